//! The session proxy before a real QEMU: that it adds the tunnel, changes nothing else, and keeps from QEMU what kills it.
//!
//! QEMU runs without a guest and without a picture. Where a test shows that a hazard does not reach QEMU, another shows that
//! it is one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use server_glue::proxy::{Backend, Limits, Proxy, ProxyConfig, TunnelLink, TunnelPolicy};
use server_glue::stream::{Leg, Target};
use shakenfist_spice_protocol as other;
use spice_proto::frame::{HeaderForm, Split, put_header, split};
use spice_proto::handshake::{ClientLink, Deadlines, HandshakeError, Linked, Step};
use spice_proto::io::{IoError, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkVersion, TunnelCaps};
use spice_proto::main_channel::{ChannelEntry, MainServerMessage};
use spice_proto::ticket::Password;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const PASSWORD: &str = "sesame";
const PATIENCE: Duration = Duration::from_secs(10);
const TUNNEL: ChannelEntry = ChannelEntry { channel_type: 7, channel_id: 0 };

const INIT: u16 = 103;
const CHANNELS_LIST: u16 = 104;
const ATTACH_CHANNELS: u16 = 104;
const FLUSH_MARK: u16 = 4;
const DISPLAY_INIT: u16 = 101;
const DO_SEAMLESS: u16 = 110;

/// A stock QEMU with Spice, a ticket and one display.
struct Qemu {
    child: Child,
    upstream: Target,
    _dir: tempfile::TempDir,
}

impl Qemu {
    /// On a Unix socket.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spice.sock");
        let address = format!("unix=on,addr={}", path.display());
        Self::start_at(&address, Target::Unix(path), dir).await
    }

    /// On TCP, where libspice-server measures the network by a ping of 256,000 bytes.
    async fn start_tcp() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("port={port},addr=127.0.0.1");
        let upstream = Target::Tcp(format!("127.0.0.1:{port}"));
        Self::start_at(&address, upstream, tempfile::tempdir().unwrap()).await
    }

    async fn start_at(address: &str, upstream: Target, dir: tempfile::TempDir) -> Self {
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-vga", "qxl", "-display", "none", "-S", "-m", "64"])
            .args(["-object", &format!("secret,id=ticket,data={PASSWORD}")])
            .args(["-spice", &format!("{address},password-secret=ticket")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs qemu-system-x86_64 with Spice (Debian: qemu-system-x86, qemu-system-modules-spice)");
        for _ in 0..200 {
            if Leg::Plain(upstream.clone()).connect(PATIENCE).await.is_ok() {
                return Self { child, upstream, _dir: dir };
            }
            assert!(child.try_wait().unwrap().is_none(), "QEMU does not start with -spice {address}");
            sleep(Duration::from_millis(50)).await;
        }
        panic!("QEMU does not listen");
    }

    /// Whether it is still there a moment later.
    async fn survives(&mut self) -> bool {
        sleep(Duration::from_millis(700)).await;
        self.child.try_wait().unwrap().is_none()
    }

    /// Whether it dies within ten seconds.
    async fn dies(&mut self) -> bool {
        for _ in 0..100 {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            sleep(Duration::from_millis(100)).await;
        }
        false
    }

    fn path(&self) -> PathBuf {
        match &self.upstream {
            Target::Unix(path) => path.clone(),
            Target::Tcp(_) => panic!("this test wants a Unix socket"),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy that listens.
struct Front {
    address: SocketAddr,
    tunnels: mpsc::Receiver<TunnelLink>,
    stop: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn front(backend: Backend, tunnel: TunnelPolicy) -> Front {
    let proxy = Proxy::new(ProxyConfig { backend, tunnel, limits: Limits::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, tunnels) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move { proxy.serve(listener, sender, token).await });
    Front { address, tunnels, stop }
}

const OPEN: TunnelPolicy = TunnelPolicy::Enabled { companion: true, in_clear: true };

async fn before(qemu: &Qemu) -> Front {
    front(Backend::Upstream(qemu.upstream.clone().into()), OPEN).await
}

impl Front {
    async fn link(
        &self,
        channel: ChannelType,
        session: u32,
        password: &str,
    ) -> Result<Channel<TcpStream>, IoError> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Channel::link(stream, channel, session, password, CommonCaps::OURS).await
    }

    async fn main(&self) -> (Channel<TcpStream>, u32) {
        let mut main = self.link(ChannelType::MAIN, 0, PASSWORD).await.unwrap();
        let session = main.session_id().await;
        (main, session)
    }

    async fn tunnel(&mut self) -> TunnelLink {
        timeout(PATIENCE, self.tunnels.recv()).await.expect("no tunnel was handed over").unwrap()
    }
}

/// A linked channel, as a client sees it.
struct Channel<S> {
    stream: S,
    linked: Linked,
    got: Vec<u8>,
    serial: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    async fn link(
        mut stream: S,
        channel: ChannelType,
        session_id: u32,
        password: &str,
        common_caps: CommonCaps,
    ) -> Result<Self, IoError> {
        let link = ClientLink {
            version: LinkVersion::V2,
            channel_type: channel.0,
            channel_id: 0,
            session_id,
            common_caps,
            channel_caps: vec![0],
        };
        let password = Password::new(password).unwrap();
        let linked = connect(&mut stream, link, &password, Deadlines::default()).await?;
        Ok(Self { stream, linked, got: Vec::new(), serial: 0 })
    }

    async fn send(&mut self, kind: u16, body: &[u8]) {
        self.serial += 1;
        let mut bytes = Vec::new();
        put_header(self.linked.header, &mut bytes, self.serial, kind, u32::try_from(body.len()).unwrap());
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Next message; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        timeout(PATIENCE, async {
            loop {
                if let Split::Frame { frame, consumed } =
                    split(self.linked.header, 1 << 24, &self.got).unwrap()
                {
                    let message = (frame.kind, frame.body.to_vec());
                    self.got.drain(..consumed);
                    return Some(message);
                }
                match self.stream.read_buf(&mut self.got).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("the server says nothing")
    }

    async fn until(&mut self, kind: u16) -> Vec<u8> {
        loop {
            let (got, body) = self.next().await.expect("the link ended");
            if got == kind {
                return body;
            }
        }
    }

    async fn session_id(&mut self) -> u32 {
        let body = self.until(INIT).await;
        match MainServerMessage::parse(INIT, &body).unwrap() {
            Some(MainServerMessage::Init(init)) => init.session_id,
            other => panic!("{other:?}"),
        }
    }

    async fn list(&mut self) -> Vec<ChannelEntry> {
        self.send(ATTACH_CHANNELS, &[]).await;
        let body = self.until(CHANNELS_LIST).await;
        match MainServerMessage::parse(CHANNELS_LIST, &body).unwrap() {
            Some(MainServerMessage::ChannelsList { channels }) => channels,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the stream ends, whatever comes before it.
    async fn ends(&mut self) -> bool {
        while self.next().await.is_some() {}
        true
    }

    /// Whether it says nothing for a moment, and stays.
    async fn stays(&mut self) -> bool {
        let mut byte = [0; 1];
        timeout(Duration::from_millis(300), self.stream.read(&mut byte)).await.is_err()
    }
}

fn refused(outcome: Result<Channel<TcpStream>, IoError>) -> LinkError {
    match outcome {
        Err(IoError::Handshake(HandshakeError::Refused(error))) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("linked"),
    }
}

async fn ended(token: &CancellationToken) -> bool {
    timeout(PATIENCE, token.cancelled()).await.is_ok()
}

#[tokio::test]
async fn a_wrong_ticket_opens_nothing() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    for channel in [ChannelType::MAIN, ChannelType::DISPLAY, ChannelType::TUNNEL] {
        assert_eq!(
            refused(front.link(channel, 0, "wrong").await),
            LinkError::PermissionDenied,
            "{channel:?}"
        );
    }
    // With the right one it is the session that is missing.
    for channel in [ChannelType::DISPLAY, ChannelType::INPUTS] {
        assert_eq!(
            refused(front.link(channel, 1, PASSWORD).await),
            LinkError::BadConnectionId,
            "{channel:?}"
        );
    }
    assert_eq!(refused(front.link(ChannelType::TUNNEL, 1, PASSWORD).await), LinkError::BadConnectionId);
    assert!(front.tunnels.try_recv().is_err());
}

#[tokio::test]
async fn an_unknown_channel_is_closed_without_a_word_as_by_qemu() {
    let qemu = Qemu::start().await;
    let front = before(&qemu).await;
    for unknown in [0, 42, 255] {
        match front.link(ChannelType(unknown), 0, PASSWORD).await {
            Err(IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) | IoError::Io(_)) => {}
            Err(other) => panic!("{unknown}: {other}"),
            Ok(_) => panic!("{unknown}: linked"),
        }
    }
}

#[tokio::test]
async fn lists_get_the_tunnel_and_nothing_else_changes() {
    let qemu = Qemu::start_tcp().await;
    let front = before(&qemu).await;
    for caps in [CommonCaps::OURS, CommonCaps::OURS - CommonCaps::MINI_HEADER] {
        let Target::Tcp(address) = &qemu.upstream else { panic!() };
        let direct = TcpStream::connect(address).await.unwrap();
        let mut direct = Channel::link(direct, ChannelType::MAIN, 0, PASSWORD, caps).await.unwrap();
        direct.session_id().await;
        let mut expected = direct.list().await;
        assert!(!expected.contains(&TUNNEL));
        expected.push(TUNNEL);

        let stream = TcpStream::connect(front.address).await.unwrap();
        let mut main = Channel::link(stream, ChannelType::MAIN, 0, PASSWORD, caps).await.unwrap();
        let mini = caps.contains(CommonCaps::MINI_HEADER);
        assert_eq!(main.linked.header, if mini { HeaderForm::Mini } else { HeaderForm::Full });
        main.session_id().await;
        assert_eq!(main.list().await, expected);
        assert_eq!(main.list().await, expected, "and every further one");
    }
}

#[tokio::test]
async fn asking_about_a_ticket_disturbs_no_session() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    let (mut main, session) = front.main().await;
    let mut inputs = front.link(ChannelType::INPUTS, session, PASSWORD).await.unwrap();
    inputs.until(101).await;
    assert_eq!(refused(front.link(ChannelType::TUNNEL, session, "wrong").await), LinkError::PermissionDenied);
    assert_eq!(
        refused(front.link(ChannelType::TUNNEL, session ^ 1, PASSWORD).await),
        LinkError::BadConnectionId
    );
    let tunnel = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    assert_eq!(tunnel.linked.common, CommonCaps::OURS);
    assert_eq!(tunnel.linked.peer_channel_caps, [TunnelCaps::OURS.bits()]);
    let handed = front.tunnel().await;
    assert_eq!((handed.linked.channel_type, handed.linked.session_id), (7, session));
    assert!(main.list().await.contains(&TUNNEL));
    assert!(inputs.stays().await);
}

#[tokio::test]
async fn a_display_that_closes_early_does_not_reach_qemu() {
    let mut qemu = Qemu::start().await;
    let front = before(&qemu).await;
    let (mut main, session) = front.main().await;
    for first in [
        &[][..],
        &[101, 0, 14],
        &[101, 0, 14, 0, 0, 0, 1, 2, 3],
        &[102, 0, 0, 0, 0, 0],
        &[101, 0, 13, 0, 0, 0],
    ] {
        let mut display = front.link(ChannelType::DISPLAY, session, PASSWORD).await.unwrap();
        display.stream.write_all(first).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        drop(display);
    }
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

#[tokio::test]
async fn a_display_that_closes_early_kills_qemu_without_us() {
    let mut qemu = Qemu::start().await;
    let connect = || async { UnixStream::connect(qemu.path()).await.unwrap() };
    let mut main =
        Channel::link(connect().await, ChannelType::MAIN, 0, PASSWORD, CommonCaps::OURS).await.unwrap();
    let session = main.session_id().await;
    let stream = connect().await;
    let display =
        Channel::link(stream, ChannelType::DISPLAY, session, PASSWORD, CommonCaps::OURS).await.unwrap();
    drop(display);
    assert!(qemu.dies().await, "the hazard is gone: this QEMU needs no shield against it");
}

#[tokio::test]
async fn a_display_works_once_it_has_spoken() {
    let mut qemu = Qemu::start().await;
    let front = before(&qemu).await;
    let (mut main, session) = front.main().await;
    let mut display = front.link(ChannelType::DISPLAY, session, PASSWORD).await.unwrap();
    assert!(display.stays().await, "QEMU does not know of it yet");
    let init = display_init();
    display.send(DISPLAY_INIT, &init).await;
    assert!(display.next().await.is_some());
    drop(display);
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

/// The first message alone is not enough: QEMU has to have begun with it.
#[tokio::test]
async fn a_display_that_misbehaves_after_its_first_message_does_no_harm() {
    let mut qemu = Qemu::start().await;
    let front = before(&qemu).await;
    let (mut main, session) = front.main().await;
    for (pause, then) in [
        (0, None),
        (0, None),
        (1, None),
        (5, None),
        (0, Some(250)),
        (0, Some(DISPLAY_INIT)),
        (50, Some(DISPLAY_INIT)),
    ] {
        let mut display = front.link(ChannelType::DISPLAY, session, PASSWORD).await.unwrap();
        display.send(DISPLAY_INIT, &display_init()).await;
        sleep(Duration::from_millis(pause)).await;
        if let Some(kind) = then {
            display.send(kind, &display_init()).await;
            sleep(Duration::from_millis(50)).await;
        }
        drop(display);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

#[tokio::test]
async fn a_display_that_misbehaves_after_its_first_message_kills_qemu_without_us() {
    for then in [None, Some(DISPLAY_INIT)] {
        let mut qemu = Qemu::start().await;
        let connect = || async { UnixStream::connect(qemu.path()).await.unwrap() };
        let mut main =
            Channel::link(connect().await, ChannelType::MAIN, 0, PASSWORD, CommonCaps::OURS).await.unwrap();
        let session = main.session_id().await;
        let stream = connect().await;
        let mut display =
            Channel::link(stream, ChannelType::DISPLAY, session, PASSWORD, CommonCaps::OURS).await.unwrap();
        display.send(DISPLAY_INIT, &display_init()).await;
        if let Some(kind) = then {
            display.next().await.unwrap();
            display.send(kind, &display_init()).await;
            sleep(Duration::from_millis(50)).await;
        }
        drop(display);
        assert!(qemu.dies().await, "the hazard is gone: this QEMU needs no shield against it");
    }
}

fn display_init() -> Vec<u8> {
    let mut body = vec![1];
    body.extend_from_slice(&(1i64 << 20).to_le_bytes());
    body.push(1);
    body.extend_from_slice(&(1u32 << 20).to_le_bytes());
    body
}

#[tokio::test]
async fn unprompted_migration_messages_do_not_reach_qemu() {
    let mut qemu = Qemu::start().await;
    let front = before(&qemu).await;
    let (mut main, session) = front.main().await;
    main.send(DO_SEAMLESS, &[0; 4]).await;
    let mut inputs = front.link(ChannelType::INPUTS, session, PASSWORD).await.unwrap();
    inputs.send(FLUSH_MARK, &[]).await;
    main.send(FLUSH_MARK, &[]).await;
    main.send(FLUSH_MARK, &[1, 2, 3]).await;
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

#[tokio::test]
async fn unprompted_migration_messages_kill_qemu_without_us() {
    for (kind, body) in [(FLUSH_MARK, &[][..]), (DO_SEAMLESS, &[0; 4])] {
        let mut qemu = Qemu::start().await;
        let stream = UnixStream::connect(qemu.path()).await.unwrap();
        let mut main = Channel::link(stream, ChannelType::MAIN, 0, PASSWORD, CommonCaps::OURS).await.unwrap();
        main.session_id().await;
        main.send(kind, body).await;
        assert!(qemu.dies().await, "the hazard of {kind} is gone: this QEMU needs no shield against it");
    }
}

#[tokio::test]
async fn a_tunnel_ends_with_its_session() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    let (main, session) = front.main().await;
    let _client = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    assert!(!tunnel.ended.is_cancelled());
    drop(main);
    assert!(ended(&tunnel.ended).await);
    assert_eq!(refused(front.link(ChannelType::TUNNEL, session, PASSWORD).await), LinkError::BadConnectionId);
}

#[tokio::test]
async fn a_second_client_kicks_the_first_as_with_qemu() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    let (mut first, session) = front.main().await;
    let _client = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    let (mut second, other) = front.main().await;
    assert_ne!(session, other);
    assert!(first.ends().await);
    assert!(ended(&tunnel.ended).await);
    // The first one's stream still lives, which does not keep the second one's tunnel out.
    let _client = front.link(ChannelType::TUNNEL, other, PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    assert!(!second.list().await.is_empty());
    assert!(!tunnel.ended.is_cancelled());
}

#[tokio::test]
async fn there_is_one_tunnel_and_the_first_stays() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    let (_main, session) = front.main().await;
    let mut first = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    let mut second = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    assert!(second.ends().await);
    assert!(first.stays().await);
    assert!(!tunnel.ended.is_cancelled());
    assert!(front.tunnels.try_recv().is_err());
    drop(tunnel);
    assert!(first.ends().await);
    let _third = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    front.tunnel().await;
}

#[tokio::test]
async fn a_companion_joins_the_session_or_stands_alone() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    assert_eq!(refused(front.link(ChannelType::TUNNEL, 0, "wrong").await), LinkError::PermissionDenied);
    let _client = front.link(ChannelType::TUNNEL, 0, PASSWORD).await.unwrap();
    let alone = front.tunnel().await;
    assert!(!alone.ended.is_cancelled());
    let (main, _) = front.main().await;
    assert!(ended(&alone.ended).await, "a lone tunnel ends when a session begins");
    drop(alone);
    let _client = front.link(ChannelType::TUNNEL, 0, PASSWORD).await.unwrap();
    let joined = front.tunnel().await;
    assert!(!joined.ended.is_cancelled());
    drop(main);
    assert!(ended(&joined.ended).await);
}

#[tokio::test]
async fn companions_can_be_turned_off() {
    let qemu = Qemu::start().await;
    let backend = Backend::Upstream(qemu.upstream.clone().into());
    let front = front(backend, TunnelPolicy::Enabled { companion: false, in_clear: true }).await;
    let (_main, session) = front.main().await;
    assert_eq!(refused(front.link(ChannelType::TUNNEL, 0, PASSWORD).await), LinkError::BadConnectionId);
    front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
}

#[tokio::test]
async fn with_the_tunnel_off_there_is_nothing_to_see() {
    let qemu = Qemu::start().await;
    let front = front(Backend::Upstream(qemu.upstream.clone().into()), TunnelPolicy::Disabled).await;
    let (mut main, session) = front.main().await;
    assert!(!main.list().await.contains(&TUNNEL));
    match front.link(ChannelType::TUNNEL, session, PASSWORD).await {
        Err(IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) | IoError::Io(_)) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("linked"),
    }
}

/// An independent client gets through, and to the tunnel.
#[tokio::test]
async fn another_client_finds_and_links_the_tunnel() {
    let qemu = Qemu::start().await;
    let mut front = before(&qemu).await;
    let (_main, session) = front.main().await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let kind = other::ChannelType::Tunnel;
    let reply =
        other::link::perform_link_with_caps(&mut stream, session, kind, 0, &[0x0b], &[]).await.unwrap();
    reply.check_client_requirements().unwrap();
    assert_eq!(reply.channel_caps, [TunnelCaps::OURS.bits()]);
    other::link::perform_auth(&mut stream, &reply.pub_key, Some(PASSWORD)).await.unwrap();
    let handed = front.tunnel().await;
    assert_eq!(handed.linked.header, HeaderForm::Mini);
}

#[tokio::test]
async fn standalone_is_a_session_of_main_and_tunnel() {
    let backend = Backend::Standalone { password: Some(Password::new(PASSWORD).unwrap()) };
    let mut front = front(backend, OPEN).await;
    assert_eq!(refused(front.link(ChannelType::MAIN, 0, "wrong").await), LinkError::PermissionDenied);
    assert_eq!(refused(front.link(ChannelType::MAIN, 9, PASSWORD).await), LinkError::BadConnectionId);
    let (mut first, session) = front.main().await;
    assert_eq!(first.list().await, [TUNNEL]);
    assert_eq!(
        refused(front.link(ChannelType::TUNNEL, session ^ 1, PASSWORD).await),
        LinkError::BadConnectionId
    );
    assert_eq!(refused(front.link(ChannelType::TUNNEL, session, "").await), LinkError::PermissionDenied);
    let _client = front.link(ChannelType::TUNNEL, session, PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    let (mut second, other) = front.main().await;
    assert_ne!(session, other);
    assert!(first.ends().await);
    assert!(ended(&tunnel.ended).await);
    assert_eq!(second.list().await, [TUNNEL]);
    assert!(front.link(ChannelType::INPUTS, other, PASSWORD).await.is_err());
}

#[tokio::test]
async fn standalone_without_a_password_lets_everybody_in() {
    let mut front = front(Backend::Standalone { password: None }, OPEN).await;
    let (main, session) = front.main().await;
    let _client = front.link(ChannelType::TUNNEL, session, "anything").await.unwrap();
    let tunnel = front.tunnel().await;
    drop(main);
    assert!(ended(&tunnel.ended).await);
}
