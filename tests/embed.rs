//! The examples for those who build a tunnel into programs of their own: each is built, run as a process against the real
//! thing, and does what it says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;

use spice_tunnel::guest::{Config, Guest, GuestStream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::vm::rig::{Program, serve, soon, until};

const TICKET: &str = "open, sesame";

/// A stock QEMU that does not run its guest, `serve` in front of it, and a guest of ours on the card behind.
struct Stage {
    qemu: Child,
    _serve: Program,
    spice: SocketAddr,
    guest: Guest,
    _directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (spice, nic) = (directory.path().join("spice"), directory.path().join("nic"));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-vga", "qxl", "-display", "none", "-S", "-m", "64"])
            .args(["-object", &format!("secret,id=ticket,data={}", TICKET.replace(',', ",,"))])
            .args(["-spice", &format!("unix=on,addr={},password-secret=ticket", spice.display())])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("this test needs qemu-system-x86_64: tests/install-prerequisites.sh");
        until("qemu's socket", || async { UnixStream::connect(&spice).await.ok() }).await;
        let (upstream, card) = (format!("unix:{}", spice.display()), format!("listen:{}", nic.display()));
        let (serve, spice) =
            serve(&["--upstream", &upstream, "--listen", "127.0.0.1:0", "--nic", &card]).await;
        let cable = UnixStream::connect(&nic).await.unwrap();
        let guest = Guest::start(cable, Config::default());
        soon("the guest's address", guest.lease()).await.unwrap();
        Self { qemu, _serve: serve, spice, guest, _directory: directory }
    }

    async fn connect(&self, to: SocketAddr) -> GuestStream {
        soon("a connection of the guest", self.guest.connect(to.ip(), to.port())).await.unwrap()
    }
}

/// A service of the user's network that says everything back.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, task)
}

async fn speaks(stream: &mut GuestStream) {
    let asked = vec![7; 100_000];
    let exchange = async {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut got = vec![0; asked.len()];
        let (wrote, read) = tokio::join!(write.write_all(&asked), read.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        assert_eq!(got, asked);
    };
    soon("the service's answer", exchange).await;
}

/// The connection was broken off, and not by a clean end.
async fn is_reset(stream: &mut GuestStream) {
    let mut rest = [0; 1];
    let read = soon("the connection's end", stream.read(&mut rest)).await;
    assert!(read.is_err(), "it ended as {read:?}");
}

/// Where a line says that `name` is to be found: `NAME  TARGET  ->  ADDRESS:PORT`.
async fn mapped(program: &mut Program, name: &str) -> SocketAddr {
    program
        .line("where the guest finds the share", |line| {
            let (named, rest) = line.split_once("  ")?;
            (named == name).then_some(rest.rsplit("  ->  ").next()?.parse().ok()?)
        })
        .await
}

/// The directory that cargo puts what it builds in, of the profile that this test is of.
fn built() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_spice-tunnel")).parent().unwrap().to_owned()
}

/// Builds with the profile that this test is of.
fn cargo_build(arguments: &[&str]) {
    let mut cargo = StdCommand::new(env!("CARGO"));
    cargo.arg("build").args(arguments).arg("--target-dir").arg(built().parent().unwrap());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An example of one of the crates.
pub(crate) fn example(name: &str) -> PathBuf {
    // With the features that a test of all crates has, which so has built it already.
    cargo_build(&["--workspace", "--example", name]);
    built().join("examples").join(name)
}

fn beside_spice_gtk() -> PathBuf {
    cargo_build(&["--manifest-path", "examples/beside-spice-gtk/Cargo.toml"]);
    built().join("beside-spice-gtk")
}

fn start(name: &'static str, program: &Path, arguments: &[&str]) -> Program {
    let mut command = Command::new(program);
    command.args(arguments).env("SPICE_PASSWORD", TICKET);
    Program::start(name, command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_shakenfist_s_library() {
    let program = tokio::task::spawn_blocking(|| example("shakenfist")).await.unwrap();
    let mut stage = Stage::set().await;
    let (service, _echo) = echo().await;
    let (port, share) = (stage.spice.port().to_string(), format!("tcp://{service}?name=echo"));
    let arguments = ["127.0.0.1", &port, &share];

    let mut client = start("shakenfist", &program, &arguments);
    let at = mapped(&mut client, "echo").await;
    let mut stream = stage.connect(at).await;
    speaks(&mut stream).await;
    assert_eq!(client.end_by("INT").await.code(), Some(0));
    is_reset(&mut stream).await;

    // The same address again; and now the session ends.
    let mut client = start("shakenfist", &program, &arguments);
    assert_eq!(mapped(&mut client, "echo").await, at);
    let mut stream = stage.connect(at).await;
    speaks(&mut stream).await;
    stage.qemu.kill().await.unwrap();
    client
        .line("that the session has ended", |line| line.contains("the session has ended").then_some(()))
        .await;
    assert_eq!(soon("the client's end", client.ended()).await.code(), Some(0));
    is_reset(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_spice_gtk() {
    let program = tokio::task::spawn_blocking(beside_spice_gtk).await.unwrap();
    let mut stage = Stage::set().await;
    let (service, _echo) = echo().await;
    let (uri, share) = (format!("spice://{}", stage.spice), format!("tcp://{service}?name=echo"));

    let mut client = start("beside-spice-gtk", &program, &[&uri, &share]);
    let at = mapped(&mut client, "echo").await;
    let mut stream = stage.connect(at).await;
    speaks(&mut stream).await;
    assert_eq!(client.end_by("INT").await.code(), Some(0));
    is_reset(&mut stream).await;

    let mut client = start("beside-spice-gtk", &program, &[&uri, &share]);
    assert_eq!(mapped(&mut client, "echo").await, at);
    let mut stream = stage.connect(at).await;
    speaks(&mut stream).await;
    stage.qemu.kill().await.unwrap();
    client.line("that the tunnel has ended", |line| (line == "the tunnel has ended").then_some(())).await;
    soon("the client's end", client.ended()).await;
    is_reset(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_not_let_in_say_so_and_fail() {
    let shakenfist = tokio::task::spawn_blocking(|| example("shakenfist")).await.unwrap();
    let gtk = tokio::task::spawn_blocking(beside_spice_gtk).await.unwrap();
    let stage = Stage::set().await;
    let (port, uri) = (stage.spice.port().to_string(), format!("spice://{}", stage.spice));
    for (program, arguments) in [(shakenfist, vec!["127.0.0.1", &port]), (gtk, vec![uri.as_str()])] {
        let mut command = Command::new(&program);
        command.args(arguments).env("SPICE_PASSWORD", "wrong").stdin(Stdio::null());
        let output = timeout(Duration::from_secs(30), command.output()).await.expect("it ends").unwrap();
        assert!(!output.status.success(), "{}: {output:?}", program.display());
    }
}

/// Everything of it is in one process: it fails if the guest does not hear the service.
#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_s_frames() {
    let program = tokio::task::spawn_blocking(|| example("frames")).await.unwrap();
    let output = Command::new(program).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = soon("the example's end", output).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let expected = [
        "server: a tunnel joined",
        "user: greeter is at 198.18.",
        "guest: my address is 198.18.0.",
        "hello from",
    ];
    for line in expected {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
    assert_eq!(said.lines().last(), Some("user: the server ended the tunnel"), "{said}");
}
