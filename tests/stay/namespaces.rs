//! A real change of the network: `connect` in a network namespace with two ways to a server in another one, as a laptop
//! has with a cable and a radio.
//!
//! ```text
//!  connect:  10.1.0.2 ──cable── 10.1.0.1 \
//!                                         10.9.0.1 :server
//!            10.2.0.2 ──radio── 10.2.0.1 /
//! ```

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::{Echo, reason};
use crate::vm::rig::{Program, password_file, until};

/// A process that does nothing but have a namespace.
struct Namespace(Child);

impl Namespace {
    /// One of users and one of networks, of which we are root.
    async fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sleep", "infinity"]);
        Self::start(command, None).await
    }

    /// Another one of networks, with the same users.
    async fn beside(&self) -> Self {
        Self::start(self.command(&["unshare", "--net", "sleep", "infinity"]), Some(self)).await
    }

    async fn start(mut command: Command, not: Option<&Self>) -> Self {
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
        let child = child.expect("this test needs unshare and nsenter of util-linux");
        let namespace = Self(child);
        let ours = network("self");
        let theirs = not.map(|not| network(&not.pid()));
        until("a network namespace: this test needs the right to make user and network namespaces. A container needs \
               --security-opt seccomp=unconfined or --privileged; a host, kernel.unprivileged_userns_clone=1 and \
               kernel.apparmor_restrict_unprivileged_userns=0", || async {
            let is = network(&namespace.pid());
            (is.is_some() && is != ours && Some(&is) != theirs.as_ref()).then_some(())
        })
        .await;
        namespace
    }

    fn pid(&self) -> String {
        self.0
            .id()
            .expect("the namespace's process has ended: is it allowed to make user namespaces?")
            .to_string()
    }

    /// A command in here.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid(), "--user", "--net", "--preserve-credentials", "--"])
            .args(words);
        command
    }

    async fn run(&self, words: &str) {
        let words: Vec<&str> = words.split_whitespace().collect();
        let done = self.command(&words).status().await.unwrap();
        assert!(done.success(), "{words:?}: tests/install-prerequisites.sh");
    }

    fn tunnel(&self, arguments: &[&str]) -> Program {
        let words = [&[env!("CARGO_BIN_EXE_spice-tunnel")], arguments].concat();
        let mut command = self.command(&words);
        command.env("RUST_LOG", "debug").env("NO_COLOR", "1");
        Program::start("spice-tunnel", command)
    }
}

fn network(pid: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_network_is_noticed_long_before_the_dead_link_would_be() {
    let (here, there) = {
        let here = Namespace::new().await;
        let there = here.beside().await;
        (here, there)
    };
    there.run("ip link set lo up").await;
    there.run("ip address add 10.9.0.1/32 dev lo").await;
    for (link, net) in [("cable", 1), ("radio", 2)] {
        let peer = there.pid();
        here.run(&format!("ip link add {link} type veth peer name {link} netns {peer}")).await;
        here.run(&format!("ip address add 10.{net}.0.2/24 dev {link}")).await;
        there.run(&format!("ip address add 10.{net}.0.1/24 dev {link}")).await;
        here.run(&format!("ip link set {link} up")).await;
        there.run(&format!("ip link set {link} up")).await;
    }
    here.run("ip route add 10.9.0.1 via 10.1.0.1 dev cable metric 1").await;
    let dir = tempfile::tempdir().unwrap();
    let nic = format!("listen:{}", dir.path().join("nic").display());
    let password = password_file(dir.path(), "sesame").display().to_string();
    let always = ["serve", "--standalone", "--nic", &nic, "--password-file", &password];
    let mut serve = there.tunnel(&[&always[..], &["--listen", "10.9.0.1:0"]].concat());
    let address: SocketAddr = serve
        .line("where it listens", |line| {
            let (_, place) = line.split_once("listening for Spice clients address=")?;
            place.split_whitespace().next()?.parse().ok()
        })
        .await;
    // Nobody connects to it: it stands for something.
    let echo = Echo::start().await;
    let share = format!("tcp://{}?name=echo", echo.address);
    let uri = format!("spice://{address}");
    let arguments = ["connect", &uri, "--json", "--password-file", &password, "--share", &share];
    let mut connect = here.tunnel(&[&arguments[..], &["--dead-after", "1m"]].concat());
    let first = connect.event("mapped").await;

    // The cable is pulled, and after a while there is the radio.
    here.run("ip link set cable down").await;
    let began = Instant::now();
    assert_eq!(reason(&mut connect, "disconnected").await, "the link is dead: nothing was heard for 3s");
    here.run("ip route add 10.9.0.1 via 10.2.0.1 dev radio").await;
    assert_eq!(connect.event("mapped").await["virtual_ip"], first["virtual_ip"]);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());

    // Back to the cable, while the other way still stands: the link is asked, answers, and goes on.
    here.run("ip link set cable up").await;
    here.run("ip route replace 10.9.0.1 via 10.1.0.1 dev cable").await;
    let asked = |line: &str| line.contains("asking the server whether it is there").then_some(());
    connect.line("that it asks", asked).await;
    assert!(connect.terminate().await.success());
}
