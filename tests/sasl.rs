//! SASL through the proxy, before a real QEMU with Cyrus SASL: over TLS everything works as with a ticket, in clear sessions pass
//! and the tunnel is refused.
//!
//! QEMU reads its SASL configuration from a directory that `SASL_CONF_PATH` names, and has a database of one user.

mod hostile;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client_glue::server::{Credentials, LinkFailure, Place, SpiceServer, TunnelLink as Joined};
use server_glue::proxy::{Backend, Limits, Proxy, ProxyConfig, TunnelLink, TunnelPolicy};
use server_glue::stream::{Peer, SecureTarget, Target as Socket, Upstream};
use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::handshake::{Deadlines, HandshakeError, Linked};
use spice_proto::io::{IoError, SaslClient, SaslRefusal, SaslStart, connect_with};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkVersion, TunnelCaps};
use spice_proto::sasl::Mechanisms;
use spice_proto::ticket::Password;
use spice_proto::tls::{Acceptor, Connector, Roots, TlsStream, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::pki::{Authority, Leaf};
use crate::viewers::painter;
use crate::vm::rig::{Screen, Target, Viewer, until};

const USER: &str = "user";
const PASSWORD: &str = "open sesame";
const PATIENCE: Duration = Duration::from_secs(10);

const INIT: u16 = 103;
const ATTACH_CHANNELS: u16 = 104;
const CHANNELS_LIST: u16 = 104;
const DISPLAY_INIT: u16 = 101;

/// A stock QEMU that wants SASL, with a plain and a TLS port and a screen that a boot sector paints.
struct Qemu {
    child: Child,
    plain: u16,
    tls: u16,
    ca: PathBuf,
    dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn done(command: &mut Command, what: &str) -> String {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("{what} ({error}): tests/install-prerequisites.sh"));
    assert!(output.status.success(), "{what}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

impl Qemu {
    async fn start(mechanisms: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::new("SASL tests").issue(&Leaf::default(), dir.path());
        let database = dir.path().join("sasldb");
        let configuration = format!(
            "mech_list: {mechanisms}\npwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\n",
            database.display()
        );
        std::fs::write(dir.path().join("qemu.conf"), configuration).unwrap();
        // Users without a realm are those of the machine's own name.
        let realm = done(Command::new("uname").arg("-n"), "uname");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, PASSWORD).unwrap();
        let mut add = Command::new("/usr/sbin/saslpasswd2");
        add.args(["-p", "-c", "-a", "qemu", "-u", realm.trim(), "-f"]).arg(&database).arg(USER);
        done(add.stdin(std::fs::File::open(secret).unwrap()), "saslpasswd2 (Debian: sasl2-bin)");
        let floppy = dir.path().join("floppy");
        let mut disk = painter::sector(640, 480);
        disk.resize(1_474_560, 0);
        std::fs::write(&floppy, disk).unwrap();
        let (plain, tls) = (free_port(), free_port());
        let spice =
            format!("port={plain},tls-port={tls},addr=127.0.0.1,sasl=on,x509-dir={}", dir.path().display());
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-vga", "qxl", "-display", "none", "-m", "16", "-spice", &spice])
            .args(["-drive", &format!("file={},format=raw,if=floppy", floppy.display())])
            .env("SASL_CONF_PATH", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs qemu-system-x86_64 with Spice: tests/install-prerequisites.sh");
        let mut qemu = Self { child, plain, tls, ca: files.ca, dir };
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, tls)).await.is_ok() {
                return qemu;
            }
            assert!(qemu.child.try_wait().unwrap().is_none(), "QEMU does not start with -spice {spice}");
            sleep(Duration::from_millis(50)).await;
        }
        panic!("QEMU does not listen");
    }

    fn secure(&self) -> SecureTarget {
        SecureTarget {
            target: Socket::Tcp(format!("127.0.0.1:{}", self.tls)),
            host: "127.0.0.1".to_owned(),
            connector: connector(&self.ca),
        }
    }

    fn plain(&self) -> Socket {
        Socket::Tcp(format!("127.0.0.1:{}", self.plain))
    }

    /// As `serve` has it with both ports.
    fn both(&self) -> Upstream {
        Upstream { plain: Some(self.plain()), tls: Some(self.secure()), allow_clear: false }
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
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connector(ca: &Path) -> Connector {
    Connector::new(&Trust { roots: Roots::File(ca.to_owned()), ..Trust::default() }).unwrap()
}

/// A proxy with a plain and a TLS listener.
struct Front {
    plain: SocketAddr,
    tls: SocketAddr,
    ca: PathBuf,
    tunnels: mpsc::Receiver<TunnelLink>,
    stop: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn front(qemu: &Qemu, upstream: Upstream) -> Front {
    front_with(qemu.dir.path(), upstream, Limits::default()).await
}

/// With QEMU's own certificate, for which our host is as good as its own.
async fn front_with(certificate: &Path, upstream: Upstream, limits: Limits) -> Front {
    let tunnel = TunnelPolicy::Enabled { companion: true, in_clear: true };
    let proxy = Proxy::new(ProxyConfig { backend: Backend::Upstream(upstream), tunnel, limits });
    let file = |name: &str| certificate.join(name);
    let acceptor = Acceptor::load(&file("server-cert.pem"), &file("server-key.pem")).unwrap();
    let (sender, tunnels) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let mut addresses = Vec::new();
    for acceptor in [None, Some(acceptor)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (proxy, sender, stop) = (proxy.clone(), sender.clone(), stop.clone());
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (proxy, sender, stop, acceptor) =
                    (proxy.clone(), sender.clone(), stop.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let peer = Peer {
                        address: Some(peer.ip()),
                        secure: acceptor.is_some(),
                        ..Peer::named(peer.to_string())
                    };
                    let stream = match acceptor {
                        None => Box::new(stream) as server_glue::stream::BoxStream,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let handled = proxy.handle(stream, peer, sender, stop.clone());
                    tokio::select! {
                        () = handled => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
    }
    Front { plain: addresses[0], tls: addresses[1], ca: certificate.join("ca-cert.pem"), tunnels, stop }
}

impl Front {
    async fn link(&self, channel: ChannelType, session: u32, password: &str) -> Result<Channel, IoError> {
        Channel::link(self.tls.port(), &self.ca, channel, session, password).await
    }

    async fn main(&self) -> (Channel, u32) {
        let mut main = self.link(ChannelType::MAIN, 0, PASSWORD).await.unwrap();
        let session = main.session_id().await;
        (main, session)
    }

    /// As `connect` comes.
    async fn join(
        &self,
        session: u32,
        username: Option<&str>,
        password: &str,
    ) -> Result<Joined, LinkFailure> {
        let place = Place::Tcp { host: "127.0.0.1".to_owned(), port: None, tls_port: Some(self.tls.port()) };
        let trust = Trust { roots: Roots::File(self.ca.clone()), ..Trust::default() };
        joined(SpiceServer { place, trust, proxy: None }, session, username, password).await
    }

    async fn tunnel(&mut self) -> TunnelLink {
        timeout(PATIENCE, self.tunnels.recv()).await.expect("no tunnel was handed over").unwrap()
    }
}

async fn joined(
    server: SpiceServer,
    session: u32,
    username: Option<&str>,
    password: &str,
) -> Result<Joined, LinkFailure> {
    let password = Password::new(password).unwrap();
    let credentials = Credentials { username: username.map(str::to_owned), password };
    server.link(session, &credentials).await
}

/// PLAIN, which asks the least of whoever reads along.
struct Plain(String);

impl SaslClient for Plain {
    fn start(&mut self, offered: &Mechanisms) -> Result<SaslStart, SaslRefusal> {
        assert!(offered.offers(b"PLAIN"), "{offered}");
        let data = format!("\0{USER}\0{}", self.0).into_bytes();
        Ok(SaslStart { mechanism: "PLAIN".to_owned(), data: Some(data) })
    }

    fn step(&mut self, _: Option<&[u8]>, complete: bool) -> Result<Option<Vec<u8>>, SaslRefusal> {
        assert!(complete, "PLAIN is over");
        Ok(None)
    }
}

/// A linked channel over TLS, with mini headers.
struct Channel {
    stream: TlsStream<TcpStream>,
    linked: Linked,
}

impl Channel {
    async fn link(
        port: u16,
        ca: &Path,
        channel: ChannelType,
        session_id: u32,
        password: &str,
    ) -> Result<Self, IoError> {
        let mut stream = secure_stream(port, ca).await;
        let link = spice_proto::handshake::ClientLink {
            version: LinkVersion::V2,
            channel_type: channel.0,
            channel_id: 0,
            session_id,
            common_caps: CommonCaps::OURS,
            channel_caps: vec![0],
        };
        let mut plain = Plain(password.to_owned());
        let empty = Password::empty();
        let linked = connect_with(&mut stream, link, &empty, Some(&mut plain), Deadlines::default()).await?;
        assert_eq!(linked.header, HeaderForm::Mini);
        Ok(Self { stream, linked })
    }

    async fn send(&mut self, kind: u16, body: &[u8]) {
        let mut bytes = Vec::new();
        put_header(HeaderForm::Mini, &mut bytes, 1, kind, u32::try_from(body.len()).unwrap());
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The body of the next message of this type.
    async fn until(&mut self, wanted: u16) -> Vec<u8> {
        let reading = async {
            loop {
                let kind = self.stream.read_u16_le().await.unwrap();
                let mut body = vec![0; self.stream.read_u32_le().await.unwrap() as usize];
                self.stream.read_exact(&mut body).await.unwrap();
                if kind == wanted {
                    return body;
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("the server does not say it")
    }

    async fn session_id(&mut self) -> u32 {
        u32::from_le_bytes(*self.until(INIT).await.first_chunk().unwrap())
    }

    /// The session's channels, by type and id.
    async fn list(&mut self) -> Vec<[u8; 2]> {
        self.send(ATTACH_CHANNELS, &[]).await;
        self.until(CHANNELS_LIST).await[4..].chunks_exact(2).map(|entry| [entry[0], entry[1]]).collect()
    }

    /// Whether it does not end for a moment, whatever it says.
    async fn stays(&mut self) -> bool {
        let ends = async { while self.stream.read_u8().await.is_ok() {} };
        timeout(Duration::from_millis(300), ends).await.is_err()
    }
}

async fn secure_stream(port: u16, ca: &Path) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    connector(ca).connect("127.0.0.1", stream).await.unwrap()
}

fn display_init() -> [u8; 14] {
    let mut body = [0; 14];
    body[..9].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 0]);
    body
}

fn refused<T>(outcome: Result<T, IoError>) -> HandshakeError {
    match outcome {
        Err(IoError::Handshake(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("linked"),
    }
}

#[tokio::test]
async fn a_session_over_tls_is_read_along_and_gets_its_tunnel() {
    let qemu = Qemu::start("scram-sha-256 scram-sha-1 plain").await;
    let mut front = front(&qemu, qemu.both()).await;
    let (mut main, session) = front.main().await;
    let mut inputs = front.link(ChannelType::INPUTS, session, PASSWORD).await.unwrap();
    inputs.until(101).await;
    assert_eq!(main.list().await.last(), Some(&[7, 0]), "the tunnel is announced");

    // As `connect` does, with SCRAM; into this session and as a companion.
    for id in [session, 0] {
        let joined = front.join(id, Some(USER), PASSWORD).await.unwrap();
        assert!(joined.secure);
        assert_eq!(joined.linked.peer_channel_caps, [TunnelCaps::OURS.bits()]);
        let handed = front.tunnel().await;
        assert_eq!((handed.linked.channel_type, handed.linked.session_id), (7, id));
    }
    // Nothing of it disturbed the session.
    assert!(inputs.stays().await);
    assert!(!main.list().await.is_empty());
    let listed = main.list().await;
    drop(main);
    let gone = async || {
        matches!(front.join(session, Some(USER), PASSWORD).await, Err(LinkFailure::NoCompanion { .. }))
    };
    until("the end of the session", || async { gone().await.then_some(()) }).await;
    assert!(!listed.is_empty());
}

#[tokio::test]
async fn who_is_not_known_gets_nothing() {
    let qemu = Qemu::start("scram-sha-256 plain").await;
    let mut front = front(&qemu, qemu.both()).await;
    for channel in [ChannelType::MAIN, ChannelType::DISPLAY, ChannelType::INPUTS, ChannelType::TUNNEL] {
        let outcome = front.link(channel, 0, "wrong").await;
        assert_eq!(refused(outcome), HandshakeError::SaslRejected, "{channel:?}");
    }
    // With the right one it is the session that is missing.
    for channel in [ChannelType::DISPLAY, ChannelType::INPUTS, ChannelType::TUNNEL] {
        let outcome = front.link(channel, 1, PASSWORD).await;
        assert_eq!(refused(outcome), HandshakeError::Refused(LinkError::BadConnectionId), "{channel:?}");
    }
    let wrong = |outcome| matches!(outcome, Err(LinkFailure::WrongPassword { user: true, .. }));
    assert!(wrong(front.join(0, Some(USER), "wrong").await), "SCRAM's proof");
    assert!(wrong(front.join(0, Some("nobody"), PASSWORD).await));
    let error = front.join(0, None, PASSWORD).await.unwrap_err();
    assert!(chain(&error).contains("--username"), "{}", chain(&error));
    assert!(front.tunnels.try_recv().is_err());
}

#[tokio::test]
async fn who_guesses_is_slowed_down() {
    let qemu = Qemu::start("plain").await;
    let front = front(&qemu, qemu.both()).await;
    let mut last = Duration::ZERO;
    for _ in 0..7 {
        let began = std::time::Instant::now();
        let outcome = front.link(ChannelType::INPUTS, 0, "wrong").await;
        assert_eq!(refused(outcome), HandshakeError::SaslRejected);
        last = began.elapsed();
    }
    assert!(last >= Duration::from_millis(900), "{last:?}");
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_server_with_other_mechanisms_names_them() {
    let qemu = Qemu::start("digest-md5 cram-md5").await;
    let front = front(&qemu, qemu.both()).await;
    let error = chain(&front.join(0, Some(USER), PASSWORD).await.unwrap_err());
    for word in ["DIGEST-MD5", "CRAM-MD5", "SCRAM-SHA-256", "PLAIN"] {
        assert!(error.contains(word), "{word} in {error}");
    }
}

#[tokio::test]
async fn in_clear_the_tunnel_is_refused_and_no_password_is_sent() {
    let qemu = Qemu::start("digest-md5 plain").await;
    let in_clear = |port| SpiceServer {
        place: Place::Tcp { host: "127.0.0.1".to_owned(), port: Some(port), tls_port: None },
        trust: Trust::default(),
        proxy: None,
    };
    // With TLS to be had, that is what is asked for.
    let both = front(&qemu, qemu.both()).await;
    let outcome = joined(in_clear(both.plain.port()), 0, Some(USER), PASSWORD).await;
    assert!(matches!(outcome, Err(LinkFailure::NeedsTls { .. })), "{outcome:?}");
    // Where the server is reached in clear there is no way, TLS with the client or not.
    let plain = front(&qemu, qemu.plain().into()).await;
    let outcome = joined(in_clear(plain.plain.port()), 0, Some(USER), PASSWORD).await;
    assert!(matches!(outcome, Err(LinkFailure::NotNow { .. })), "{outcome:?}");
    let outcome = plain.join(0, Some(USER), PASSWORD).await;
    assert!(matches!(outcome, Err(LinkFailure::NotNow { .. })), "{outcome:?}");
    // QEMU itself has no tunnel; but a client of ours would not even begin.
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, qemu.plain)).await.unwrap();
    let link = spice_proto::handshake::ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::INPUTS.0,
        channel_id: 0,
        session_id: 1,
        common_caps: CommonCaps::OURS,
        channel_caps: Vec::new(),
    };
    let outcome = spice_proto::io::connect(&mut stream, link, &Password::empty(), Deadlines::default()).await;
    assert_eq!(refused(outcome), HandshakeError::SaslRequired);
}

/// A display link through the proxy, up to where its client is to say DISPLAY_INIT.
async fn display(front: &Front, session: u32) -> Channel {
    front.link(ChannelType::DISPLAY, session, PASSWORD).await.unwrap()
}

#[tokio::test]
async fn a_display_that_closes_early_does_not_kill_qemu() {
    let mut qemu = Qemu::start("plain").await;
    let front = front(&qemu, qemu.both()).await;
    let (mut main, session) = front.main().await;
    for first in [&[][..], &[101, 0, 14], &[101, 0, 14, 0, 0, 0, 1, 2, 3], &[102, 0, 0, 0, 0, 0]] {
        let mut display = display(&front, session).await;
        display.stream.write_all(first).await.unwrap();
        drop(display);
        sleep(Duration::from_millis(200)).await;
    }
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
    // And one that speaks works.
    let mut display = display(&front, session).await;
    display.send(DISPLAY_INIT, &display_init()).await;
    display.until(102).await;
}

/// The client has said all that the server needs, and does not wait for the answer.
#[tokio::test]
async fn a_display_whose_client_does_not_wait_for_the_verdict_does_not_kill_qemu() {
    let mut qemu = Qemu::start("plain").await;
    let front = front(&qemu, qemu.both()).await;
    let (mut main, session) = front.main().await;
    for _ in 0..3 {
        let stream = hostile::said_plain(front.tls.port(), &front.ca, session).await;
        drop(stream);
        sleep(Duration::from_millis(300)).await;
    }
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

/// The proxy's own tasks for its links are aborted, as at a shutdown.
#[tokio::test]
async fn a_shutdown_before_a_display_has_spoken_does_not_kill_qemu() {
    let mut qemu = Qemu::start("plain").await;
    let front = front(&qemu, qemu.both()).await;
    // Not through us: it would end too, and QEMU bears a display that ends with its session.
    let mut main = Channel::link(qemu.tls, &qemu.ca, ChannelType::MAIN, 0, PASSWORD).await.unwrap();
    let session = main.session_id().await;
    let _display = display(&front, session).await;
    let _other = hostile::said_plain(front.tls.port(), &front.ca, session).await;
    front.stop.cancel();
    assert!(qemu.survives().await);
}

#[tokio::test]
async fn a_display_that_says_nothing_is_spoken_for() {
    let mut qemu = Qemu::start("plain").await;
    let deadlines = Deadlines { step: Duration::from_millis(800), ..Deadlines::default() };
    let front = front_with(qemu.dir.path(), qemu.both(), Limits { deadlines, ..Limits::default() }).await;
    let (mut main, session) = front.main().await;
    let mut display = display(&front, session).await;
    let end = timeout(PATIENCE, display.stream.read(&mut [0; 1])).await.expect("the silent display lasts");
    assert!(matches!(end, Ok(0) | Err(_)));
    assert!(qemu.survives().await);
    assert!(!main.list().await.is_empty());
}

#[tokio::test]
async fn a_display_that_closes_early_kills_qemu_without_us() {
    let mut qemu = Qemu::start("plain").await;
    let mut main = Channel::link(qemu.tls, &qemu.ca, ChannelType::MAIN, 0, PASSWORD).await.unwrap();
    let session = main.session_id().await;
    let display = Channel::link(qemu.tls, &qemu.ca, ChannelType::DISPLAY, session, PASSWORD).await.unwrap();
    assert_eq!(display.linked.session_id, session);
    drop(display);
    assert!(qemu.dies().await, "the hazard is gone: this QEMU needs no shield against it");
}

#[tokio::test]
async fn a_stock_viewer_logs_in_over_tls_and_draws() {
    let qemu = Qemu::start("scram-sha-256 plain").await;
    let mut front = front(&qemu, qemu.both()).await;
    let screen = Screen::start().await;
    let target = Target {
        tls_port: Some(front.tls.port()),
        username: Some(USER),
        password: Some(PASSWORD),
        ca: Some(&front.ca),
        ..Target::default()
    };
    let viewer = Viewer::remote_viewer_by_file(&screen, &target);
    screen.shows("the guest's picture", painter::colour(painter::START)).await;
    // Beside the viewer, into its session.
    let _joined = front.join(0, Some(USER), PASSWORD).await.unwrap();
    let tunnel = front.tunnel().await;
    assert!(!tunnel.ended.is_cancelled());
    viewer.program.kill().await;
    timeout(PATIENCE, tunnel.ended.cancelled()).await.expect("the tunnel ends with the viewer's session");
}

/// DIGEST-MD5 with rc4, which is what Cyrus SASL and spice-gtk agree on. All behind it is encrypted.
#[tokio::test]
async fn a_stock_viewer_logs_in_in_clear_and_draws() {
    let qemu = Qemu::start("digest-md5 plain").await;
    let mut front = front(&qemu, qemu.plain().into()).await;
    let screen = Screen::start().await;
    let target = Target {
        port: Some(front.plain.port()),
        username: Some(USER),
        password: Some(PASSWORD),
        ..Target::default()
    };
    let _viewer = Viewer::remote_viewer_by_file(&screen, &target);
    screen.shows("the guest's picture", painter::colour(painter::START)).await;
    assert!(front.tunnels.try_recv().is_err());
}
