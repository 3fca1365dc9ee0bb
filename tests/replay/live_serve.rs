//! `replay --live` against our own `serve` with a guest behind it, as an administrator would run it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Output, Stdio};
use std::time::Duration;

use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use spice_proto::ticket::Password;
use spice_tunnel::guest::{Config, Guest, GuestStream};
use spice_tunnel::serve::{Parts, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Command;
use tokio::time::timeout;

use super::captures;

const SOON: Duration = Duration::from_secs(30);

/// What the capture's services are called gives them the same address with any server.
const SHOUT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 18, 229, 31)), 37717);
const GOODBYE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 18, 229, 31)), 38177);

struct Rig {
    server: Server,
    guest: Guest,
    replay: tokio::task::JoinHandle<Output>,
    _directory: tempfile::TempDir,
}

impl Rig {
    /// A server with a guest, and the captured client of `half-close.pcapng` on its way to it.
    async fn new() -> Self {
        let (card, cable) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spice = listener.local_addr().unwrap();
        let backend = Backend::Standalone { password: Some(Password::new("sesame").unwrap()) };
        let server = Server::start(Parts::new(Nic::attached(card), backend, listener).unwrap());
        let guest = Guest::start(cable, Config::default());
        timeout(SOON, guest.lease()).await.expect("a lease").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let password = directory.path().join("password");
        std::fs::write(&password, "sesame\n").unwrap();
        let replay = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
            .arg("replay")
            .arg(captures().join("half-close.pcapng"))
            .arg("--live")
            .arg(spice.to_string())
            .arg("--password-file")
            .arg(&password)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        Self { server, guest, replay: tokio::spawn(async { replay.await.unwrap() }), _directory: directory }
    }

    /// Connects as soon as the service is there.
    async fn connect(&self, to: SocketAddr) -> GuestStream {
        let connected = async {
            loop {
                match self.guest.connect(to.ip(), to.port()).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(SOON, connected).await.expect("the captured client announced its services")
    }

    /// The replay's exit code and report.
    async fn end(self) -> (i32, String) {
        let output = timeout(SOON, self.replay).await.expect("the replay ends").unwrap();
        self.server.stop().await;
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    }
}

/// Says something, ends, and hears the service out.
async fn say(mut stream: GuestStream, what: &[u8]) -> Vec<u8> {
    stream.write_all(what).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(SOON, stream.read_to_end(&mut heard)).await.expect("the captured end").unwrap();
    heard
}

#[tokio::test]
async fn the_same_guest_finds_the_captured_client_behind_our_server() {
    let rig = Rig::new().await;
    assert_eq!(say(rig.connect(SHOUT).await, b"shout me").await, b"SHOUT ME");
    let mut goodbye = rig.connect(GOODBYE).await;
    let mut heard = Vec::new();
    timeout(SOON, goodbye.read_to_end(&mut heard)).await.expect("the captured half-close").unwrap();
    assert_eq!(heard, b"BYE\n");
    assert_eq!(say(goodbye, b"and you").await, b"");
    let (code, text) = rig.end().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("equal"), "{text}");
}

#[tokio::test]
async fn another_guest_is_a_difference() {
    let rig = Rig::new().await;
    assert_eq!(say(rig.connect(SHOUT).await, b"shout ME").await, b"SHOUT ME");
    let goodbye = rig.connect(GOODBYE).await;
    assert_eq!(say(goodbye, b"and you").await, b"BYE\n");
    let (code, text) = rig.end().await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("different"), "{text}");
}
