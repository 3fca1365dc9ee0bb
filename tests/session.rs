//! The VM's one task with a guest on its card and a user behind its tunnel, all in this process: what ends, and who is
//! told.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use client_glue::{Event, Host, Share, TunnelConfig};
use server_glue::address::AddressBook;
use server_glue::netstack::{NetConfig, Netstack};
use server_glue::nic::Nic;
use server_glue::proxy::TunnelLink;
use server_glue::session::Session;
use server_glue::stream::Peer;
use spice_proto::frame::HeaderForm;
use spice_proto::handshake::Linked;
use spice_proto::link::{ChannelType, CommonCaps};
use spice_proto::tunnel::Layout;
use spice_tunnel::guest::{Config, Guest, GuestStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

struct Rig {
    guest: Guest,
    tunnels: mpsc::Sender<TunnelLink>,
    shutdown: CancellationToken,
    session: JoinHandle<()>,
    echo: SocketAddr,
    leases: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let (card, cable) = UnixStream::pair().unwrap();
        let net = NetConfig::default();
        let book = AddressBook::new("test", net.subnet, net.reserved());
        let leases = tempfile::tempdir().unwrap();
        let (tunnels, incoming) = mpsc::channel(1);
        let file = Some(leases.path().join("leases"));
        let session =
            Session::new(Nic::attached(card), Netstack::new(net), book, file, Default::default(), incoming);
        let shutdown = CancellationToken::new();
        let session = tokio::spawn(session.run(shutdown.clone()));
        let guest = Guest::start(cable, Config::default());
        timeout(SOON, guest.lease()).await.expect("a lease").unwrap();
        Self { guest, tunnels, shutdown, session, echo: echo().await, leases }
    }

    /// A user comes with a tunnel and shares the echo service. Gives its session's token and the virtual address.
    async fn join(&self) -> (CancellationToken, SocketAddr) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        self.join_by(ours, theirs).await
    }

    /// The same, by the two ends of this link.
    async fn join_by(&self, ours: DuplexStream, theirs: DuplexStream) -> (CancellationToken, SocketAddr) {
        let ended = CancellationToken::new();
        let link = TunnelLink {
            stream: Box::new(ours),
            linked: linked(),
            ended: ended.clone(),
            challenged: Default::default(),
            peer: Peer::named("a user"),
        };
        self.tunnels.send(link).await.unwrap();
        let (handle, mut events, tunnel) = client_glue::tunnel(theirs, linked(), TunnelConfig::default());
        tokio::spawn(tunnel);
        let host = Host::Address(self.echo.ip());
        handle.add_share(Share { name: "echo".to_owned(), ..Share::new(host, self.echo.port()) }).unwrap();
        let mapped = async {
            loop {
                if let Event::Mapped { virtual_ip, port, .. } = events.recv().await.expect("the tunnel lives")
                {
                    return SocketAddr::new(virtual_ip, port);
                }
            }
        };
        let mapped = timeout(SOON, mapped).await.expect("an address");
        tokio::spawn(async move {
            while events.recv().await.is_some() {}
            drop(handle);
        });
        (ended, mapped)
    }

    async fn connect(&self, to: SocketAddr) -> GuestStream {
        timeout(SOON, self.guest.connect(to.ip(), to.port())).await.expect("an answer").unwrap()
    }
}

/// The two ends of a link on which every byte is on its way for so long, and as many as like.
fn long_link(delay: Duration) -> (DuplexStream, DuplexStream) {
    let ((ours, near), (far, theirs)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    tokio::spawn(carry_late(near_read, far_write, delay));
    tokio::spawn(carry_late(far_read, near_write, delay));
    (ours, theirs)
}

async fn carry_late(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, delay: Duration) {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    tokio::spawn(async move {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if pieces.send((Instant::now() + delay, piece[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

fn linked() -> Linked {
    Linked {
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        header: HeaderForm::Mini,
        layout: Layout::B,
        peer_common: CommonCaps::OURS,
        common: CommonCaps::OURS,
        peer_channel_caps: client_glue::channel_caps(),
        leftover: Vec::new(),
    }
}

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

async fn exchange(stream: &mut GuestStream) {
    stream.write_all(b"are you there?").await.unwrap();
    let mut answer = [0; 14];
    timeout(SOON, stream.read_exact(&mut answer)).await.expect("the echo").unwrap();
    assert_eq!(&answer, b"are you there?");
}

async fn assert_reset(stream: &mut GuestStream) {
    let read = timeout(SOON, stream.read_u8()).await.expect("the guest to be told");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_session_that_ends_resets_the_guest_and_the_next_finds_the_same_address() {
    let rig = Rig::new().await;
    let (ended, first) = rig.join().await;
    let mut stream = rig.connect(first).await;
    exchange(&mut stream).await;
    ended.cancel();
    assert_reset(&mut stream).await;

    let (_ended, second) = rig.join().await;
    assert_eq!(second, first);
    exchange(&mut rig.connect(second).await).await;
    let leases = std::fs::read_to_string(rig.leases.path().join("leases")).unwrap();
    assert!(leases.contains(&first.ip().to_string()), "{leases}");
}

#[tokio::test]
async fn a_user_who_vanishes_resets_the_guest() {
    let rig = Rig::new().await;
    let (ours, theirs) = tokio::io::duplex(4096);
    let link = TunnelLink {
        stream: Box::new(ours),
        linked: linked(),
        ended: Default::default(),
        challenged: Default::default(),
        peer: Peer::named("x"),
    };
    rig.tunnels.send(link).await.unwrap();
    drop(theirs);
    // The place is free again.
    let (_ended, address) = rig.join().await;
    exchange(&mut rig.connect(address).await).await;
}

#[tokio::test]
async fn a_user_who_breaks_the_protocol_loses_the_tunnel_only() {
    let rig = Rig::new().await;
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let link = TunnelLink {
        stream: Box::new(ours),
        linked: linked(),
        ended: Default::default(),
        challenged: Default::default(),
        peer: Peer::named("x"),
    };
    rig.tunnels.send(link).await.unwrap();
    theirs.write_all(&[0xff; 64]).await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, theirs.read_to_end(&mut rest)).await.expect("the link to be closed").unwrap();
    let (_ended, address) = rig.join().await;
    exchange(&mut rig.connect(address).await).await;
}

#[tokio::test]
async fn a_shutdown_tells_the_guest() {
    let rig = Rig::new().await;
    let (_ended, address) = rig.join().await;
    let mut stream = rig.connect(address).await;
    exchange(&mut stream).await;
    rig.shutdown.cancel();
    assert_reset(&mut stream).await;
    timeout(SOON, rig.session).await.expect("the session to end").unwrap();
}

/// The byte at a place of a stream.
fn byte_at(stream: u64, offset: u64) -> u8 {
    ((stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
        .to_be_bytes()[0]
}

/// Windows grow, data waits for its turn, and both ends' buffers run full and empty.
#[tokio::test]
async fn bulk_over_a_long_way_arrives_as_it_was_sent() {
    const LENGTH: u64 = 12 << 20;
    let rig = Rig::new().await;
    let (ours, theirs) = long_link(Duration::from_millis(25));
    let (_ended, address) = rig.join_by(ours, theirs).await;
    let mut bulk = tokio::task::JoinSet::new();
    for number in 0..3 {
        let (mut read, mut write) = split(rig.connect(address).await);
        bulk.spawn(async move {
            for start in (0..LENGTH).step_by(48 << 10) {
                let end = LENGTH.min(start + (48 << 10));
                let piece: Vec<u8> = (start..end).map(|at| byte_at(number, at)).collect();
                write.write_all(&piece).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        bulk.spawn(async move {
            let (mut piece, mut at) = (vec![0; 64 << 10], 0);
            loop {
                let length = read.read(&mut piece).await.unwrap();
                for byte in &piece[..length] {
                    assert_eq!(*byte, byte_at(number, at), "byte {at} of stream {number}");
                    at += 1;
                }
                if length == 0 {
                    return assert_eq!(at, LENGTH);
                }
            }
        });
    }
    // And what is small comes through meanwhile.
    let mut small = rig.connect(address).await;
    while !bulk.is_empty() {
        exchange(&mut small).await;
        while let Some(done) = bulk.try_join_next() {
            done.unwrap();
        }
    }
}
