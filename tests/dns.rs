//! DNS of the virtual network, as BIND's `dig` sees it from the guest. It speaks TCP, which our own guest can carry for it.

use std::net::IpAddr;
use std::process::Stdio;

use spice_tunnel::guest::{Config, Guest};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::vm::rig::{Program, serve, soon};

/// A port of ours behind which the guest connects to its name server.
struct Door {
    port: u16,
    task: JoinHandle<()>,
}

impl Door {
    async fn open(guest: Guest, server: IpAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((mut outside, _)) = listener.accept().await {
                let mut inside = soon("the name server's answer", guest.connect(server, 53)).await.unwrap();
                tokio::spawn(async move {
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { port, task }
    }

    /// What `dig` prints.
    async fn dig(&self, question: &str) -> String {
        let port = self.port.to_string();
        let dig = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+tcp", "+tries=1", "+time=20"])
            .args(question.split(' '))
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output =
            soon("dig's end", dig).await.expect("this test needs dig: tests/install-prerequisites.sh");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn short(&self, question: &str) -> Vec<String> {
        let answer = self.dig(&format!("+short {question}")).await;
        answer.lines().map(str::to_owned).collect()
    }

    /// The status, and the flags.
    async fn header(&self, question: &str) -> (String, String) {
        let answer = self.dig(question).await;
        let between = |from: &str, to: &str| {
            let rest = answer.split_once(from).unwrap_or_else(|| panic!("no {from:?} in {answer}")).1;
            rest.split(to).next().unwrap().trim().to_owned()
        };
        (between("status: ", ","), between(";; flags:", ";"))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address of a share, from a line `NAME  TARGET  ->  ADDRESS:PORT`.
async fn mapped(program: &mut Program, name: &str) -> String {
    program
        .line("where the guest finds the share", |line| {
            let (named, rest) = line.split_once("  ")?;
            let address = rest.rsplit("  ->  ").next()?.rsplit_once(':')?.0;
            (named == name).then(|| address.to_owned())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_finds_what_is_shared_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let nic = directory.path().join("nic");
    let card = format!("listen:{}", nic.display());
    let (_serve, spice) =
        serve(&["--standalone", "--listen", "127.0.0.1:0", "--nic", &card, "--domain", "vm.example"]).await;
    let guest = Guest::start(UnixStream::connect(&nic).await.unwrap(), Config::default());
    let lease = soon("the guest's address", guest.lease()).await.unwrap();
    assert_eq!(lease.dns, [lease.server]);
    let door = Door::open(guest, lease.server).await;
    assert_eq!(door.short("gateway.vm.example").await, [lease.server.to_string()]);
    assert_eq!(door.short("nas.lan").await, [""; 0]);
    let mut connect = Program::tunnel([
        "connect",
        &format!("spice://{spice}"),
        "--share",
        "tcp://nas.lan:445",
        "--share",
        "tcp://127.0.0.1:9?name=Office%20printer",
    ]);
    let nas = mapped(&mut connect, "nas.lan").await;
    let printer = mapped(&mut connect, "Office printer").await;

    assert_eq!(door.short("nas.lan").await, std::slice::from_ref(&nas));
    assert_eq!(door.short("OFFICE-printer.vm.example").await, std::slice::from_ref(&printer));
    assert_eq!(door.short(&format!("-x {printer}")).await, ["office-printer.vm.example."]);
    assert_eq!(door.short(&format!("-x {nas}")).await, ["nas.lan.", "nas-lan.vm.example."]);
    // Several questions in one connection.
    let both = door.short("+keepopen nas.lan A office-printer.vm.example A").await;
    assert_eq!(both, [nas.clone(), printer.clone()]);
    for name in ["b._dns-sd._udp.vm.example", "lb._dns-sd._udp.0.0.18.198.in-addr.arpa"] {
        assert_eq!(door.short(&format!("PTR {name}")).await, ["vm.example."]);
    }

    let header = |status: &str, flags: &str| (status.to_owned(), flags.to_owned());
    assert_eq!(door.header("nas.lan").await, header("NOERROR", "qr aa rd"));
    assert_eq!(door.header("AAAA nas.lan").await, header("NOERROR", "qr aa rd"));
    assert_eq!(door.header("nobody.vm.example").await, header("NXDOMAIN", "qr aa rd"));
    assert_eq!(door.header("www.example.com").await, header("REFUSED", "qr rd"));
    assert_eq!(door.header("nobody.local").await, header("REFUSED", "qr rd"));
    assert_eq!(door.header("+edns=1 +noednsneg nas.lan").await, header("BADVERS", "qr rd"));
    assert_eq!(door.header("+opcode=NOTIFY +noedns SOA vm.example").await, header("NOTIMP", "qr rd"));
    assert!(door.dig("AXFR vm.example").await.contains("Transfer failed"));

    // The tunnel goes; its names stay for a while, and then they are gone with its addresses.
    connect.terminate().await;
    assert_eq!(door.short("nas.lan").await, [nas]);
}
