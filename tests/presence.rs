//! The tunnel is away, comes back, is stale: `serve` and `connect` as processes, with a guest that looks on.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spice_tunnel::guest::{Config, Guest, GuestStream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::soak::card;
use crate::soak::process::{Heard, Process, serve};
use crate::soak::traffic::Service;
use crate::vm::rig::{SOON, soon};

/// A server that offers nothing but the tunnel, its guest, and the services of a user.
struct Rig {
    dir: TempDir,
    serve: Process,
    listens: SocketAddr,
    guest: Guest,
    /// On as many machines.
    echoes: [SocketAddr; 2],
}

impl Rig {
    async fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let cable = card(&at("card"));
        std::fs::write(at("password"), "sesame").unwrap();
        let (nic, password) =
            (format!("connect:{}", at("card").display()), at("password").display().to_string());
        let own = ["--standalone", "--password-file", &password, "--listen", "127.0.0.1:0", "--nic", &nic];
        let (serve, listens) = serve(&at("serve.log"), &[&own, options].concat()).await;
        serve.says("the guest's card is there").await;
        let guest = Guest::start(cable, Config { connect_timeout: 2 * SOON, ..Config::default() });
        soon("a lease", guest.lease()).await.unwrap();
        let echoes = [Service::Echo.start_at("127.0.0.1").await, Service::Echo.start_at("127.0.0.2").await];
        Self { dir, serve, listens, guest, echoes }
    }

    /// A client that shares an echo service under each of these names.
    fn connect(&self, heard: &Heard, names: &[&str]) -> Process {
        let mut arguments = vec![
            format!("spice://{}", self.listens),
            format!("--password-file={}", self.dir.path().join("password").display()),
        ];
        let shares = names.iter().zip(self.echoes);
        arguments.extend(shares.map(|(name, at)| format!("--share=tcp://{at}?name={name}")));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        heard.connect(&self.dir.path().join("connect.log"), &arguments)
    }

    async fn joined(&self, names: &[&str]) -> (Process, Heard) {
        let heard = Heard::new(names.len());
        let client = self.connect(&heard, names);
        heard.mapped(SOON).await;
        (client, heard)
    }

    async fn open(&self, to: SocketAddr) -> Result<GuestStream, ErrorKind> {
        let opened = soon("an answer to the guest", self.guest.connect(to.ip(), to.port())).await;
        opened.map_err(|error| std::io::Error::from(error).kind())
    }

    async fn is_pinged(&self, address: IpAddr) -> bool {
        matches!(timeout(SOON, self.guest.ping(address)).await, Ok(Ok(_)))
    }
}

async fn is_echoed(stream: &mut GuestStream) {
    stream.write_all(b"are you there?").await.unwrap();
    let mut answer = [0; 14];
    soon("the echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"are you there?");
}

#[tokio::test]
async fn a_new_connection_outlasts_the_tunnels_absence_and_an_old_one_is_reset() {
    let rig = Rig::start(&["--while-away", "wait=1m"]).await;
    let (client, heard) = rig.joined(&["echo"]).await;
    let echo = heard.address("echo");
    let mut old = rig.open(echo).await.unwrap();
    is_echoed(&mut old).await;

    client.kill().await;
    let read = soon("the reset", old.read_u8()).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(rig.is_pinged(echo.ip()).await);
    let guest = rig.guest.clone();
    let new = tokio::spawn(async move { guest.connect(echo.ip(), echo.port()).await });
    // What nobody ever shared waits for nobody.
    assert_eq!(rig.open(SocketAddr::new(echo.ip(), 1)).await.unwrap_err(), ErrorKind::ConnectionRefused);
    assert_eq!(rig.open("198.18.99.99:1".parse().unwrap()).await.unwrap_err(), ErrorKind::HostUnreachable);
    // The guest has sent its SYN twice by now.
    sleep(Duration::from_millis(1500)).await;
    assert!(!new.is_finished(), "the SYN was answered");

    // The same address, or the test is ended by `heard`.
    let _client = rig.connect(&heard, &["echo"]);
    is_echoed(&mut soon("the connection that waits", new).await.unwrap().unwrap()).await;
}

#[tokio::test]
async fn refused_at_once_where_that_is_wanted() {
    let rig = Rig::start(&["--while-away", "refuse"]).await;
    let (client, heard) = rig.joined(&["echo"]).await;
    let echo = heard.address("echo");
    client.kill().await;
    rig.serve.says("tunnel ended").await;
    let start = Instant::now();
    assert_eq!(rig.open(echo).await.unwrap_err(), ErrorKind::ConnectionRefused);
    assert!(start.elapsed() < Duration::from_secs(4), "it waited for {:?}", start.elapsed());
    assert!(rig.is_pinged(echo.ip()).await);
}

#[tokio::test]
async fn what_is_not_shared_again_is_forgotten() {
    let rig = Rig::start(&[]).await;
    let (client, heard) = rig.joined(&["first", "second"]).await;
    let (first, second) = (heard.address("first"), heard.address("second"));
    client.kill().await;
    rig.serve.says("tunnel ended").await;
    assert!(rig.is_pinged(second.ip()).await);
    let (_client, again) = rig.joined(&["first"]).await;
    assert_eq!(again.address("first"), first);
    assert!(rig.is_pinged(second.ip()).await, "it has a few seconds");
    rig.serve.says("forgotten: no tunnel announced it again").await;
    assert!(!rig.is_pinged(second.ip()).await);
    is_echoed(&mut rig.open(first).await.unwrap()).await;
}

#[tokio::test]
async fn a_client_that_stands_still_makes_room_long_before_it_is_given_up() {
    let rig = Rig::start(&["--dead-after", "1d"]).await;
    let (stale, heard) = rig.joined(&["echo"]).await;
    let echo = heard.address("echo");
    let mut old = rig.open(echo).await.unwrap();
    is_echoed(&mut old).await;
    stale.signal("-STOP");
    let (_client, _) = rig.joined(&["echo"]).await;
    let read = soon("the reset", old.read_u8()).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    is_echoed(&mut rig.open(echo).await.unwrap()).await;
    rig.serve.says("takes the place of a tunnel that is over").await;
    // It wakes up in a world that has moved on.
    stale.signal("-CONT");
    is_echoed(&mut rig.open(echo).await.unwrap()).await;
}

#[tokio::test]
async fn a_client_that_lives_stays_whoever_comes() {
    let mut rig = Rig::start(&[]).await;
    let (mut client, heard) = rig.joined(&["echo"]).await;
    let mut stream = rig.open(heard.address("echo")).await.unwrap();
    // Whoever has no right ticket is not even a reason to ask.
    let password = rig.dir.path().join("password");
    std::fs::write(&password, "guessed").unwrap();
    let mut stranger = rig.connect(&Heard::new(1), &["echo"]);
    assert!(!soon("the stranger's end", stranger.child.wait()).await.unwrap().success());
    assert!(!rig.serve.said().contains("asking whether it lives"));
    std::fs::write(&password, "sesame").unwrap();
    let mut others: Vec<_> = (0..5).map(|_| rig.connect(&Heard::new(1), &["echo"])).collect();
    rig.serve.says("there is a tunnel already, and its client lives").await;
    for _ in 0..10 {
        is_echoed(&mut stream).await;
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(heard.times(), 1);
    assert!(client.is_running() && rig.serve.is_running());
    for other in &mut others {
        assert!(soon("the newcomer's end", other.child.wait()).await.is_ok());
    }
    let asked = rig.serve.said().matches("asking whether it lives").count();
    assert!(asked <= 2, "five newcomers at once were {asked} challenges");
}

#[tokio::test]
async fn a_thousand_connections_that_wait_are_not_taken() {
    let rig = Rig::start(&["--while-away", "wait=1m"]).await;
    let (client, heard) = rig.joined(&["echo"]).await;
    let echo = heard.address("echo");
    client.kill().await;
    rig.serve.says("tunnel ended").await;
    let mut connections = JoinSet::new();
    for _ in 0..1000 {
        let guest = rig.guest.clone();
        connections.spawn(async move { guest.connect(echo.ip(), echo.port()).await });
    }
    let most = 256;
    for _ in most..1000 {
        let outcome = soon("the refusal of one too many", connections.join_next()).await.unwrap().unwrap();
        assert_eq!(std::io::Error::from(outcome.unwrap_err()).kind(), ErrorKind::ConnectionRefused);
    }
    assert!(rig.is_pinged(echo.ip()).await);
    let _client = rig.connect(&heard, &["echo"]);
    for _ in 0..most {
        let opened = soon("one that waited", connections.join_next()).await.unwrap().unwrap();
        is_echoed(&mut opened.unwrap()).await;
    }
}
