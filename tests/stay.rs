//! Staying joined: links that die in every way, and `connect` finding its way back, with what it shares at the same
//! addresses. A server of ours beside a guest of ours; between them and `connect` a relay that can be made a black hole.

mod namespaces;
mod relay;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use relay::Relay;
use spice_tunnel::guest::{Config, Guest, GuestStream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::pki::{Authority, Files, Leaf};
use crate::vm::rig::{Program, password_file, soon};

/// A server without a session, and the guest on its card.
struct Server {
    program: Program,
    address: SocketAddr,
    guest: Guest,
}

/// What a server keeps from one life to the next.
struct Place {
    dir: TempDir,
    card: UnixListener,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let card = UnixListener::bind(dir.path().join("nic")).unwrap();
        Self { dir, card }
    }

    fn password(&self, password: &str) -> PathBuf {
        password_file(self.dir.path(), password)
    }

    async fn serve(&self, password: &str) -> Server {
        self.serve_with(password, &["--listen", "127.0.0.1:0"]).await
    }

    async fn serve_with(&self, password: &str, arguments: &[&str]) -> Server {
        let nic = format!("connect:{}", self.dir.path().join("nic").display());
        let password = self.password(password).display().to_string();
        let always = ["serve", "--standalone", "--nic", &nic, "--password-file", &password];
        let mut program = Program::tunnel([&always, arguments].concat());
        let listening = |line: &str| {
            let (_, place) = line.split_once("listening for Spice clients address=")?;
            place.split_whitespace().next()?.parse().ok()
        };
        let address = program.line("where it listens", listening).await;
        let (card, _) = soon("the server to fetch its card", self.card.accept()).await.unwrap();
        let guest = Guest::start(card, Config::default());
        soon("a lease", guest.lease()).await.unwrap();
        Server { program, address, guest }
    }
}

impl Server {
    async fn connect(&self, to: SocketAddr) -> GuestStream {
        soon("a connection of the guest", self.guest.connect(to.ip(), to.port())).await.unwrap()
    }

    async fn signal(&self, name: &str) {
        signal(self.program.pid(), name).await;
    }
}

async fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status().await.unwrap();
    assert!(sent.success(), "kill {name}");
}

/// What is shared: an echo that tells how its connections end.
struct Echo {
    address: SocketAddr,
    ends: mpsc::UnboundedReceiver<Result<(), ErrorKind>>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, ends) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let end = tokio::io::copy(&mut read, &mut write).await;
                    let _ = tell.send(end.map(|_| ()).map_err(|error| error.kind()));
                });
            }
        });
        Self { address, ends }
    }

    async fn was_reset(&mut self) {
        let end = soon("the service to be told", self.ends.recv()).await.unwrap();
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    }
}

async fn exchange(stream: &mut GuestStream) {
    soon("writing", stream.write_all(b"are you there?")).await.unwrap();
    let mut answer = [0; 14];
    soon("the echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"are you there?");
}

async fn assert_reset(stream: &mut GuestStream) {
    let read = soon("the guest to be told", stream.read_u8()).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// `connect --json` that shares the echo.
fn connect(server: &str, password: &Path, echo: SocketAddr, more: &[&str]) -> Program {
    let password = password.display().to_string();
    let share = format!("tcp://{echo}?name=echo");
    let arguments = ["connect", server, "--json", "--password-file", &password, "--share", &share];
    Program::tunnel([&arguments, more].concat())
}

/// Where the guest finds the echo.
async fn mapped(connect: &mut Program) -> SocketAddr {
    let event = connect.event("mapped").await;
    let port = u16::try_from(event["port"].as_u64().unwrap()).unwrap();
    SocketAddr::new(event["virtual_ip"].as_str().unwrap().parse().unwrap(), port)
}

async fn reason(connect: &mut Program, event: &str) -> String {
    connect.event(event).await["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_and_a_server_that_stands_still_are_found_out_and_left_behind() {
    let (place, mut echo) = (Place::new(), Echo::start().await);
    let server = place.serve("sesame").await;
    let relay = Relay::to(server.address).await;
    let uri = format!("spice://{}", relay.address);
    let mut connect = connect(&uri, &place.password("sesame"), echo.address, &["--dead-after", "2s"]);
    let at = mapped(&mut connect).await;
    let mut stream = server.connect(at).await;
    exchange(&mut stream).await;
    // Silence that is none: the link is idle for longer than a dead one may be silent.
    tokio::time::sleep(Duration::from_secs(3)).await;
    exchange(&mut stream).await;

    relay.swallow(true);
    let began = Instant::now();
    let dead = "the link is dead: nothing was heard for 2s";
    assert_eq!(reason(&mut connect, "disconnected").await, dead);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    echo.was_reset().await;
    assert_eq!(reason(&mut connect, "waiting").await, dead);
    relay.swallow(false);
    assert_eq!(mapped(&mut connect).await, at);
    assert_reset(&mut stream).await;
    let mut stream = server.connect(at).await;
    exchange(&mut stream).await;

    // Its kernel answers still, but it does not.
    server.signal("-STOP").await;
    assert_eq!(reason(&mut connect, "disconnected").await, dead);
    echo.was_reset().await;
    server.signal("-CONT").await;
    assert_eq!(mapped(&mut connect).await, at);
    assert_reset(&mut stream).await;
    exchange(&mut server.connect(at).await).await;
    assert!(connect.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_comes_back_is_joined_again() {
    let (place, mut echo) = (Place::new(), Echo::start().await);
    let server = place.serve("sesame").await;
    let relay = Relay::to(server.address).await;
    let uri = format!("spice://{}", relay.address);
    let file = place.dir.path().join("the user's");
    std::fs::create_dir(&file).unwrap();
    let mut connect = connect(&uri, &password_file(&file, "sesame"), echo.address, &[]);
    let at = mapped(&mut connect).await;
    let mut stream = server.connect(at).await;
    exchange(&mut stream).await;
    server.signal("-KILL").await;
    drop(server);
    echo.was_reset().await;
    connect.event("disconnected").await;
    // Nobody there, several times.
    for attempt in 1..=3 {
        assert_eq!(connect.event("linking").await["attempt"], attempt);
    }
    // Back, with another password; then with the right one.
    let wrong = place.serve("open").await;
    relay.lead_to(wrong.address);
    let denied = |line: &str| line.contains("does not accept the password any more").then_some(());
    connect.line("that the password is wrong now", denied).await;
    drop(wrong);
    let server = place.serve("sesame").await;
    relay.lead_to(server.address);
    assert_eq!(mapped(&mut connect).await, at);
    exchange(&mut server.connect(at).await).await;
    // Each reason is worth one line of the log, not each attempt.
    let complaints = connect.complaints();
    let mut once = complaints.clone();
    once.dedup_by_key(|line| line.split("no tunnel:").nth(1).map(|reason| reason[..20].to_owned()));
    assert!(complaints.len() <= 6 && once.len() >= 2, "{complaints:?}");
    assert!(connect.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_is_another_one_is_not_joined_again() {
    let (place, echo) = (Place::new(), Echo::start().await);
    let issue = |name: &str| -> Files {
        let dir = place.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Authority::new(name).issue(&Leaf::default(), &dir)
    };
    let (right, wrong) = (issue("right"), issue("wrong"));
    let serve = async |files: &Files| {
        let (certificate, key) = (files.certificate.to_str().unwrap(), files.key.to_str().unwrap());
        let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key];
        place.serve_with("sesame", &tls).await
    };
    let server = serve(&right).await;
    let relay = Relay::to(server.address).await;
    let uri = format!("spice+tls://localhost:{}", relay.address.port());
    let ca = ["--ca-file", right.ca.to_str().unwrap()];
    let mut connect = connect(&uri, &place.password("sesame"), echo.address, &ca);
    let at = mapped(&mut connect).await;
    exchange(&mut server.connect(at).await).await;
    drop(server);
    connect.event("waiting").await;
    let another = serve(&wrong).await;
    relay.lead_to(another.address);
    let reason = reason(&mut connect, "gave_up").await;
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(soon("the end", connect.ended()).await.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_ended_while_it_links_and_while_it_waits() {
    let (place, echo) = (Place::new(), Echo::start().await);
    for in_wait in [false, true] {
        let server = place.serve("sesame").await;
        let relay = Relay::to(server.address).await;
        let uri = format!("spice://{}", relay.address);
        let mut connect = connect(&uri, &place.password("sesame"), echo.address, &["--dead-after", "1s"]);
        mapped(&mut connect).await;
        if in_wait {
            // Refused at once, so that most of the time it waits.
            drop(server);
            for _ in 0..4 {
                connect.event("waiting").await;
            }
        } else {
            relay.swallow(true);
            connect.event("waiting").await;
            connect.event("linking").await;
        }
        let began = Instant::now();
        assert!(connect.terminate().await.success());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
