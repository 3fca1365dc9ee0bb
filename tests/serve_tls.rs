//! `serve` with TLS on both legs: before a real QEMU with both its ports and a policy for its channels, with openssl's own
//! client, an independent Spice client, wrong certificates, and crowds that never finish their handshake.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use client_glue::server::{Credentials, LinkFailure, Place, SpiceServer};
use spice_proto::handshake::{ClientLink, Deadlines, HandshakeError};
use spice_proto::io::{Decision, IoError, accept, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkVersion, Welcome};
use spice_proto::ticket::{Password, TicketKey};
use spice_proto::tls::{Acceptor, Connector, Roots, TlsStream, Trust};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::pki::{Authority, Files, Leaf};
use crate::vm::rig::{Program, RustViewer, soon, until};

const PASSWORD: &str = "sesame";

/// A directory with an authority, and certificates that it has signed.
struct Pki {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Pki {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), authority: Authority::new("spice-tunnel test authority") }
    }

    fn issue(&self, name: &str, leaf: &Leaf<'_>) -> (PathBuf, Files) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let files = self.authority.issue(leaf, &dir);
        (dir, files)
    }

    fn trust(&self) -> Trust {
        Trust { roots: Roots::Pem(self.authority.pem()), ..Trust::default() }
    }

    fn password_file(&self) -> String {
        crate::vm::rig::password_file(self.dir.path(), PASSWORD).display().to_string()
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A stock QEMU with Spice, a ticket and one display.
struct Qemu {
    port: Option<u16>,
    tls_port: Option<u16>,
    _child: tokio::process::Child,
}

impl Qemu {
    /// With these ports, and this policy of its channels besides.
    async fn start(pki: &Pki, plain: bool, tls: bool, policy: &str) -> Self {
        let (x509, _) = pki.issue("qemu", &Leaf::default());
        let (port, tls_port) = (plain.then(free_port), tls.then(free_port));
        let mut spice = "addr=127.0.0.1,password-secret=ticket".to_owned();
        if let Some(port) = port {
            spice += &format!(",port={port}");
        }
        if let Some(port) = tls_port {
            spice += &format!(",tls-port={port},x509-dir={}", x509.display());
        }
        spice += policy;
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-vga", "qxl", "-display", "none", "-S", "-m", "64"])
            .args(["-object", &format!("secret,id=ticket,data={PASSWORD}"), "-spice", &spice])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("this test needs qemu-system-x86_64 with Spice: tests/install-prerequisites.sh");
        for port in [port, tls_port].into_iter().flatten() {
            until("QEMU to listen", || async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        }
        Self { port, tls_port, _child: child }
    }

    fn plain(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port.unwrap()).into()
    }

    fn tls(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.tls_port.unwrap()).into()
    }

    /// How `serve` is told of it.
    fn arguments(&self, pki: &Pki) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(port) = self.port {
            arguments.extend(["--upstream".to_owned(), format!("127.0.0.1:{port}")]);
        }
        if let Some(port) = self.tls_port {
            let ca = pki.dir.path().join("qemu/ca-cert.pem").display().to_string();
            arguments.extend(["--upstream-tls".to_owned(), format!("localhost:{port}")]);
            arguments.extend(["--upstream-ca".to_owned(), ca]);
        }
        arguments
    }
}

/// `spice-tunnel serve`, with what it says.
struct Serve {
    program: Program,
    plain: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    _nic: tempfile::TempDir,
}

impl Serve {
    /// With listeners in clear and over TLS, as asked, and these arguments besides.
    async fn start(pki: &Pki, plain: bool, tls: bool, besides: &[String]) -> Self {
        let nic = tempfile::tempdir().unwrap();
        let mut arguments = vec!["serve".to_owned(), "--nic".to_owned()];
        arguments.push(format!("listen:{}", nic.path().join("nic.sock").display()));
        if plain {
            arguments.extend(["--listen", "127.0.0.1:0"].map(str::to_owned));
        }
        if tls {
            let (_, files) = pki.issue("serve", &Leaf::default());
            arguments.extend(["--tls-listen", "127.0.0.1:0", "--tls-cert"].map(str::to_owned));
            arguments.push(files.certificate.display().to_string());
            arguments.push("--tls-key".to_owned());
            arguments.push(files.key.display().to_string());
        }
        arguments.extend_from_slice(besides);
        let mut this = Self { program: Program::tunnel(arguments), plain: None, tls: None, _nic: nic };
        for _ in 0..usize::from(plain) + usize::from(tls) {
            let (address, tls) = this
                .program
                .line("where it listens", |line| {
                    let (_, place) = line.split_once("listening for Spice clients address=")?;
                    let (address, tls) = place.split_once(" tls=")?;
                    Some((address.parse().unwrap(), tls == "true"))
                })
                .await;
            *(if tls { &mut this.tls } else { &mut this.plain }) = Some(address);
        }
        this
    }

    fn plain(&self) -> SocketAddr {
        self.plain.unwrap()
    }

    fn tls(&self) -> SocketAddr {
        self.tls.unwrap()
    }

    async fn says(&mut self, text: &str) -> String {
        self.program.line(text, |line| line.contains(text).then(|| line.to_owned())).await
    }
}

/// A tunnel without a viewer, by our own client.
async fn companion(
    at: SocketAddr,
    tls: bool,
    trust: Trust,
    password: &str,
) -> Result<client_glue::server::TunnelLink, LinkFailure> {
    let (port, tls_port) = if tls { (None, Some(at.port())) } else { (Some(at.port()), None) };
    let server = SpiceServer {
        place: Place::Tcp { host: "localhost".to_owned(), port, tls_port },
        trust,
        proxy: None,
    };
    let credentials = Credentials::ticket(Password::new(password).unwrap());
    soon("the tunnel's link", server.link(0, &credentials)).await
}

/// What a link of a channel comes to: 0, or a code.
async fn link(mut stream: impl AsyncRead + AsyncWrite + Unpin, channel: ChannelType) -> u32 {
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: channel.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: vec![0],
    };
    let password = Password::new(PASSWORD).unwrap();
    match soon("a link", connect(&mut stream, asked, &password, Deadlines::default())).await {
        Ok(_) => 0,
        Err(IoError::Handshake(HandshakeError::Refused(error))) => error.code(),
        Err(other) => panic!("{other}"),
    }
}

async fn link_plain(at: SocketAddr, channel: ChannelType) -> u32 {
    link(TcpStream::connect(at).await.unwrap(), channel).await
}

async fn link_tls(at: SocketAddr, trust: &Trust, channel: ChannelType) -> u32 {
    let stream = TcpStream::connect(at).await.unwrap();
    let connector = Connector::new(trust).unwrap();
    link(soon("TLS", connector.connect("localhost", stream)).await.unwrap(), channel).await
}

/// What both ends say of QEMU's policy is the same, with us between and without.
#[tokio::test]
async fn both_ports_keep_the_policy_of_the_server() {
    const SECURED: u32 = 5;
    const UNSECURED: u32 = 6;
    const UNKNOWN_SESSION: u32 = 8;

    let pki = Pki::new();
    let qemu = Qemu::start(&pki, true, true, ",tls-channel=main,plaintext-channel=display").await;
    let mut serve = Serve::start(&pki, true, true, &qemu.arguments(&pki)).await;
    for (channel, plain, tls) in [
        (ChannelType::MAIN, SECURED, 0),
        (ChannelType::DISPLAY, UNKNOWN_SESSION, UNSECURED),
        (ChannelType::INPUTS, UNKNOWN_SESSION, UNKNOWN_SESSION),
        (ChannelType::CURSOR, UNKNOWN_SESSION, UNKNOWN_SESSION),
    ] {
        for (at, secure) in [(qemu.plain(), qemu.tls()), (serve.plain(), serve.tls())] {
            let trust = pki.trust();
            let got = (link_plain(at, channel).await, link_tls(secure, &trust, channel).await);
            assert_eq!(got, (plain, tls), "channel {channel:?} at {at} and {secure}");
        }
    }
    // The tunnel has a policy of its own: no ticket is asked for in clear.
    let refused = companion(serve.plain(), false, Trust::default(), "wrong").await;
    assert!(matches!(refused, Err(LinkFailure::NeedsTls { .. })), "{refused:?}");
    let wrong = companion(serve.tls(), true, pki.trust(), "wrong").await;
    assert!(matches!(wrong, Err(LinkFailure::WrongPassword { .. })), "{wrong:?}");
    let tunnel = companion(serve.tls(), true, pki.trust(), PASSWORD).await.unwrap();
    assert!(tunnel.secure);
    serve.says("tunnel linked").await;
}

/// A ticket is judged whatever QEMU's policy for inputs, which is asked first.
#[tokio::test]
async fn tickets_are_judged_under_every_policy() {
    let in_clear = ["--tunnel-in-clear".to_owned()];
    for (plain, tls, policy, tunnel_over_tls) in [
        (true, true, ",tls-channel=inputs", true),
        // Asked about over TLS, then.
        (true, true, ",tls-channel=inputs", false),
        // Asked about by another channel, over TLS.
        (true, true, ",plaintext-channel=inputs", true),
        (true, true, ",plaintext-channel=inputs,plaintext-channel=cursor", true),
        (false, true, "", true),
        // TLS with the client ends at the proxy.
        (true, false, "", true),
    ] {
        let pki = Pki::new();
        let qemu = Qemu::start(&pki, plain, tls, policy).await;
        let arguments = [qemu.arguments(&pki).as_slice(), &in_clear].concat();
        let serve = Serve::start(&pki, true, true, &arguments).await;
        let at = if tunnel_over_tls { serve.tls() } else { serve.plain() };
        let case = format!("{policy}, over TLS: {tunnel_over_tls}");
        let wrong = companion(at, tunnel_over_tls, pki.trust(), "wrong").await;
        assert!(matches!(wrong, Err(LinkFailure::WrongPassword { .. })), "{case}: {wrong:?}");
        let right = companion(at, tunnel_over_tls, pki.trust(), PASSWORD).await;
        assert!(right.is_ok(), "{case}: {right:?}");
    }
}

/// With TLS upstream only, a client in clear is told to come over TLS, unless its owner wants it otherwise.
#[tokio::test]
async fn nothing_goes_in_clear_before_a_server_with_tls_only() {
    let pki = Pki::new();
    let qemu = Qemu::start(&pki, false, true, "").await;
    let serve = Serve::start(&pki, true, true, &qemu.arguments(&pki)).await;
    for channel in [ChannelType::MAIN, ChannelType::INPUTS, ChannelType::TUNNEL] {
        assert_eq!(link_plain(serve.plain(), channel).await, LinkError::NeedSecured.code());
    }
    assert_eq!(link_tls(serve.tls(), &pki.trust(), ChannelType::MAIN).await, 0);
    let allowed = [qemu.arguments(&pki).as_slice(), &["--allow-clear".to_owned()]].concat();
    let serve = Serve::start(&pki, true, false, &allowed).await;
    assert_eq!(link_plain(serve.plain(), ChannelType::MAIN).await, 0);
    assert_eq!(link_plain(serve.plain(), ChannelType::TUNNEL).await, LinkError::NeedSecured.code());
}

/// An independent client draws its picture over TLS, all the way and half of it.
#[tokio::test]
async fn another_client_has_its_session_over_tls() {
    let pki = Pki::new();
    let qemu = Qemu::start(&pki, true, true, "").await;
    let whole = Serve::start(&pki, false, true, &qemu.arguments(&pki)).await;
    let plain = ["--upstream".to_owned(), qemu.plain().to_string()];
    let half = Serve::start(&pki, false, true, &plain).await;
    for serve in [&whole, &half] {
        let mut viewer = RustViewer::connect_tls(serve.tls(), PASSWORD, &pki.authority.pem()).await;
        viewer.displays_more_than(2).await;
        assert!(viewer.is_whole());
    }
}

/// Whoever stands between us and the Spice server, and whatever certificate it shows: nothing is sent to it, the log says
/// what is wrong, and the client's link ends.
#[tokio::test]
async fn a_wrong_server_gets_nothing() {
    let pki = Pki::new();
    let (_, good) = pki.issue("good", &Leaf::default());
    let (_, expired) = pki.issue("expired", &Leaf { valid: (-20, -10), ..Leaf::default() });
    let elsewhere = Leaf {
        names: &["elsewhere.example"],
        addresses: &[],
        subject: &[("CN", "elsewhere")],
        ..Leaf::default()
    };
    let (_, elsewhere) = pki.issue("elsewhere", &elsewhere);
    let stranger = Pki { dir: tempfile::tempdir().unwrap(), authority: Authority::new("stranger") };
    let (_, strange) = stranger.issue("strange", &Leaf::default());
    let subject = |text: &str| vec!["--upstream-subject".to_owned(), text.to_owned()];
    for (shown, besides, complaint) in [
        (&strange, vec![], "who is not among"),
        (&expired, vec![], "expired on"),
        (&elsewhere, vec![], "for another host: expected localhost"),
        (&good, subject("O=somebody else,CN=localhost"), "for another subject: expected O=somebody else"),
    ] {
        let port = free_port();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-naccept", "50", "-accept", &format!("127.0.0.1:{port}")]);
        command.arg("-cert").arg(&shown.certificate).arg("-key").arg(&shown.key);
        let mut impostor = Program::start("openssl s_server", command);
        until("openssl to listen", || async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        let mut arguments = vec!["--upstream-tls".to_owned(), format!("localhost:{port}")];
        arguments.extend(["--upstream-ca".to_owned(), good.ca.display().to_string()]);
        arguments.extend(besides);
        let mut serve = Serve::start(&pki, false, true, &arguments).await;
        let stream = TcpStream::connect(serve.tls()).await.unwrap();
        let connector = Connector::new(&pki.trust()).unwrap();
        let mut client = soon("TLS", connector.connect("localhost", stream)).await.unwrap();
        client.write_all(&main_link()).await.unwrap();
        let answer = soon("the end of the link", read_out(&mut client)).await;
        assert!(answer.is_empty(), "{answer:?}");
        let line = serve.says("is not trusted: nothing was sent to it").await;
        assert!(line.contains(complaint), "expected {complaint} in {line}");
        assert!(impostor.is_running() && !impostor.said().contains("REDQ"));
    }
}

/// A link message for a new session, as a viewer begins.
fn main_link() -> Vec<u8> {
    let mess = spice_proto::link::LinkMess {
        session_id: 0,
        channel_type: 1,
        channel_id: 0,
        common_caps: vec![CommonCaps::OURS.bits()],
        channel_caps: vec![0],
    };
    let mut bytes = Vec::new();
    mess.write(LinkVersion::V2, &mut bytes);
    bytes
}

/// What comes until the end, be it clean or not.
async fn read_out(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        all.extend_from_slice(&piece[..n]);
    }
    all
}

/// The serial number of the certificate that is shown, by openssl's own client.
async fn serial_shown(at: SocketAddr) -> String {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("openssl s_client -connect {at} </dev/null 2>/dev/null | openssl x509 -noout -serial"));
    String::from_utf8(soon("openssl", command.output()).await.unwrap().stdout).unwrap()
}

async fn serial_of(certificate: &Path) -> String {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-serial", "-in"]).arg(certificate);
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_hangup_reads_the_certificate_again() {
    let pki = Pki::new();
    let standalone = ["--standalone".to_owned(), "--password-file".to_owned(), pki.password_file()];
    let mut serve = Serve::start(&pki, false, true, &standalone).await;
    let certificate = pki.dir.path().join("serve/server-cert.pem");
    let first = serial_of(&certificate).await;
    assert!(first.starts_with("serial="), "{first}");
    assert_eq!(serial_shown(serve.tls()).await, first);
    // Lives through all of it.
    let session = companion(serve.tls(), true, pki.trust(), PASSWORD).await.unwrap();
    let (_, files) = pki.issue("serve", &Leaf::default());
    let second = serial_of(&certificate).await;
    assert_ne!(first, second);
    assert_eq!(serial_shown(serve.tls()).await, first, "only when it is told to");
    hang_up(&serve.program).await;
    serve.says("certificate read again").await;
    assert_eq!(serial_shown(serve.tls()).await, second);
    // A key that belongs to another certificate, and then none at all.
    let (_, other) = pki.issue("other", &Leaf::default());
    std::fs::copy(&other.key, &files.key).unwrap();
    for _ in 0..2 {
        hang_up(&serve.program).await;
        serve.says("the new certificate is unusable, the old one stays").await;
        assert_eq!(serial_shown(serve.tls()).await, second);
        let _ = std::fs::remove_file(&files.key);
    }
    drop(session);
    assert!(serve.program.terminate().await.success());
}

async fn hang_up(program: &Program) {
    let sent = Command::new("kill").args(["-HUP", &program.pid().to_string()]).status().await.unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn standalone_works_over_tls() {
    let pki = Pki::new();
    let standalone = ["--standalone".to_owned(), "--password-file".to_owned(), pki.password_file()];
    let serve = Serve::start(&pki, true, true, &standalone).await;
    assert_eq!(link_tls(serve.tls(), &pki.trust(), ChannelType::MAIN).await, 0);
    let refused = companion(serve.plain(), false, Trust::default(), PASSWORD).await;
    assert!(matches!(refused, Err(LinkFailure::NeedsTls { .. })), "{refused:?}");
    companion(serve.tls(), true, pki.trust(), PASSWORD).await.unwrap();
    let stranger = Authority::new("stranger").pem();
    let trust = Trust { roots: Roots::Pem(stranger), ..Trust::default() };
    let refused = companion(serve.tls(), true, trust, PASSWORD).await;
    assert!(matches!(refused, Err(LinkFailure::Tls { .. })), "{refused:?}");
}

/// As libspice-server does it (wire-reference 1.9), and said in the log.
#[tokio::test]
async fn the_wrong_kind_of_port_is_named() {
    let pki = Pki::new();
    let mut serve = Serve::start(&pki, true, true, &["--standalone".to_owned()]).await;
    let mut clear = TcpStream::connect(serve.tls()).await.unwrap();
    clear.write_all(&main_link()).await.unwrap();
    let mut nothing = Vec::new();
    let ended = soon("the end", clear.read_to_end(&mut nothing)).await;
    assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(nothing.is_empty());
    let line = serve.says("it speaks Spice in clear on a TLS port").await;
    assert!(line.contains(&format!("peer={}", clear.local_addr().unwrap())), "{line}");

    let stream = TcpStream::connect(serve.plain()).await.unwrap();
    let address = stream.local_addr().unwrap();
    let connector = Connector::new(&pki.trust()).unwrap();
    soon("the end of TLS", connector.connect("localhost", stream)).await.unwrap_err();
    let line = serve.says("it begins TLS on a port for Spice in clear").await;
    assert!(line.contains(&format!("peer={address}")), "{line}");
    // Old TLS is nobody's any more.
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", &serve.tls().to_string()]);
    let old = soon("openssl", command.stdin(Stdio::null()).output()).await.unwrap();
    assert!(!old.status.success());
    serve.says("no TLS: ").await;
}

/// A thousand connections that never get further, of three kinds and from twenty addresses; and somebody who means well.
#[tokio::test]
async fn a_thousand_half_open_links_keep_nobody_out() {
    let pki = Pki::new();
    let standalone = ["--standalone".to_owned(), "--password-file".to_owned(), pki.password_file()];
    let mut serve =
        Serve::start(&pki, true, true, &[&standalone[..], &["--tunnel-in-clear".to_owned()]].concat()).await;
    let mut held = Vec::new();
    for n in 0..1000u32 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 100 + (n % 20) as u8], 0).into()).unwrap();
        let at = if n % 4 == 3 { serve.plain() } else { serve.tls() };
        let mut stream = socket.connect(at).await.unwrap();
        // Nothing; the beginning of a ClientHello; and that of a link header.
        let piece: &[u8] = match n % 4 {
            0 => &[],
            1 => &[0x16],
            2 => &[0x16, 3, 1, 2, 0, 1, 0],
            _ => b"REDQ\x02",
        };
        let _ = stream.write_all(piece).await;
        held.push(stream);
    }
    serve.says("too many links without a ticket").await;
    let started = Instant::now();
    for _ in 0..5 {
        assert_eq!(link_tls(serve.tls(), &pki.trust(), ChannelType::MAIN).await, 0);
        companion(serve.tls(), true, pki.trust(), PASSWORD).await.unwrap();
        companion(serve.plain(), false, Trust::default(), PASSWORD).await.unwrap();
        // Its place is taken until the server has seen its end.
        sleep(Duration::from_millis(50)).await;
    }
    assert!(
        started.elapsed() < Deadlines::default().step,
        "not because the crowd was gone: {:?}",
        started.elapsed()
    );
    let mut open = 0;
    for stream in &mut held {
        let over = timeout(Duration::from_millis(1), stream.read(&mut [0; 256])).await.is_ok();
        open += usize::from(!over);
    }
    assert!((1..=256).contains(&open), "{open} are still open");
    for mut stream in held {
        soon("the end of a half-open link", read_out(&mut stream)).await;
    }
}

/// What each side of [`halves_close_by_themselves`] sends: messages of the short header, of all sizes.
fn messages(first: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for size in (first..).step_by(977).take(count) {
        bytes.extend(200u16.to_le_bytes());
        bytes.extend((size as u32).to_le_bytes());
        bytes.extend((0..size).map(|n| (n * size) as u8));
    }
    bytes
}

/// A Spice server that accepts one link of inputs over TLS.
async fn accept_inputs(listener: &TcpListener, acceptor: &Acceptor) -> TlsStream<TcpStream> {
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let mut stream = soon("TLS", acceptor.accept(stream)).await.unwrap();
    let key = TicketKey::generate().unwrap();
    let decide = |_: &spice_proto::link::LinkMess| {
        let common_caps = vec![CommonCaps::OURS.bits()];
        let public_key = Box::new(*key.public_der());
        Decision::Welcome(Welcome { public_key, common_caps, channel_caps: vec![0] })
    };
    let judge = async |_| Ok(());
    soon("a link", accept(&mut stream, &key, Deadlines::default(), decide, judge)).await.unwrap();
    stream
}

/// With TLS on both legs each direction ends by itself, by `close_notify`, and nothing is lost on its way; nor when the end
/// comes without one, as from some viewers.
#[tokio::test]
async fn halves_close_by_themselves() {
    let pki = Pki::new();
    let (_, files) = pki.issue("qemu", &Leaf::default());
    let acceptor = Acceptor::load(&files.certificate, &files.key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut arguments = vec!["--upstream-tls".to_owned(), format!("localhost:{port}")];
    arguments.extend(["--upstream-ca".to_owned(), files.ca.display().to_string()]);
    let serve = Serve::start(&pki, false, true, &arguments).await;
    let (up, down) = (messages(3, 40), messages(100, 80));
    let connector = Connector::new(&pki.trust()).unwrap();
    for clean in [true, false] {
        let server = async {
            let mut stream = accept_inputs(&listener, &acceptor).await;
            assert!(soon("the client's messages", read_out(&mut stream)).await == up);
            if clean {
                // Long after the other direction has ended.
                sleep(Duration::from_millis(300)).await;
                stream.write_all(&down).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        };
        let client = async {
            let stream = TcpStream::connect(serve.tls()).await.unwrap();
            let mut stream = soon("TLS", connector.connect("localhost", stream)).await.unwrap();
            let asked = ClientLink {
                version: LinkVersion::V2,
                channel_type: ChannelType::INPUTS.0,
                channel_id: 0,
                session_id: 7,
                common_caps: CommonCaps::OURS,
                channel_caps: vec![0],
            };
            connect(&mut stream, asked, &Password::empty(), Deadlines::default()).await.unwrap();
            stream.write_all(&up).await.unwrap();
            if clean {
                stream.shutdown().await.unwrap();
                assert!(soon("the server's messages", read_out(&mut stream)).await == down);
            }
            stream.flush().await.unwrap();
        };
        tokio::join!(server, client);
    }
}
