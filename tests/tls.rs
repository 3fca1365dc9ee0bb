//! TLS against others: real `openssl`, a real QEMU, a man in the middle, and proxies on the way.

mod http_proxy;
mod middle;
mod qemu;

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use client_glue::server::{Credentials, LinkFailure, SpiceServer};
use spice_proto::ticket::Password;
use spice_proto::tls::{Acceptor, Connector, TlsError, TlsStream, Trust};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::pki::{Authority, Files, Leaf, self_signed};
use crate::vm::rig::soon;

/// What would leak.
const PASSWORD: &str = "sesame open";

/// Asks for a tunnel that is not to come about.
async fn failure(server: &SpiceServer) -> LinkFailure {
    let credentials = Credentials::ticket(Password::new(PASSWORD).unwrap());
    soon("a failure", server.link(0, &credentials)).await.expect_err("linked")
}

/// An error with all that is behind it, as a user sees it.
fn text(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// A port that is free now. For programs that cannot choose one by themselves.
fn free_port() -> u16 {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits until a program listens. `false`: it ended, as it does when somebody else took a port in the meantime.
async fn comes_up(process: &mut Child, ports: &[u16]) -> bool {
    let asking = async {
        for port in ports {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await.is_err() {
                if process.try_wait().unwrap().is_some() {
                    return false;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        process.try_wait().unwrap().is_none()
    };
    soon("a program to listen", asking).await
}

/// A directory of its own for each certificate.
struct Dirs(TempDir, std::cell::Cell<u32>);

impl Dirs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), std::cell::Cell::new(0))
    }

    fn dir(&self) -> PathBuf {
        self.1.set(self.1.get() + 1);
        let path = self.0.path().join(self.1.get().to_string());
        std::fs::create_dir(&path).unwrap();
        path
    }
}

/// `openssl s_server`, which sends every line back in reverse.
struct OpensslServer {
    address: SocketAddr,
    _process: Child,
}

impl OpensslServer {
    async fn start(files: &Files, more: &[&str]) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert"]).arg(&files.certificate);
        command.arg("-key").arg(&files.key).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = soon("openssl", lines.next_line()).await.unwrap().expect("openssl ended");
            if let Some(address) = line.strip_prefix("ACCEPT ") {
                break address.parse().unwrap();
            }
        };
        // What it says further is not read by anybody, but it must be able to say it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, _process: process }
    }

    /// TLS with it, as if it were at `host`.
    async fn meet(&self, host: &str, trust: &Trust) -> Result<TlsStream<TcpStream>, TlsError> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = Connector::new(trust)?;
        soon("a handshake", connector.connect(host, stream)).await
    }
}

/// The servers of [`a_server_must_be_the_right_one`] are all for this.
const HOST: &str = "vm.example";
const SUBJECT: &str = r"O=Example\, Inc.,CN=vm.example";

fn leaf() -> Leaf<'static> {
    Leaf { subject: &[("O", "Example, Inc."), ("CN", HOST)], names: &[HOST], ..Leaf::default() }
}

#[tokio::test]
async fn a_server_must_be_the_right_one() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&leaf(), &dirs.dir());
    let trust = Trust::ca(authority.pem());
    let with = |subject: &str| trust.clone().with_subject(subject.parse().unwrap());
    let server = OpensslServer::start(&files, &[]).await;

    let mut stream = server.meet(HOST, &trust).await.unwrap();
    assert_eq!(stream.version(), "TLSv1.3");
    stream.write_all(b"drawer\n").await.unwrap();
    let mut answer = [0; 7];
    soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"reward\n");
    // openssl's server takes one after another.
    drop(stream);

    assert!(server.meet("127.0.0.1", &trust).await.is_ok(), "its address is in the certificate too");
    assert!(server.meet("elsewhere.example", &with(SUBJECT)).await.is_ok(), "only the subject counts");
    assert!(server.meet(HOST, &Trust::ca_file(&files.ca)).await.is_ok());

    let others = [
        (
            server.meet("elsewhere.example", &trust).await,
            "expected elsewhere.example, got vm.example, 127.0.0.1",
        ),
        (server.meet("127.0.0.2", &trust).await, "expected 127.0.0.2, got vm.example, 127.0.0.1"),
        (
            server.meet(HOST, &with("CN=vm.example")).await,
            r"expected CN=vm.example, got O=Example\, Inc.,CN=vm.example",
        ),
        (
            server.meet(HOST, &Trust::ca(Authority::new("another").pem())).await,
            r"for O=Example\, Inc.,CN=vm.example, was issued by CN=spice-tunnel test authority, who is not among",
        ),
        (server.meet(HOST, &Trust::default()).await, "not among the authorities that this system trusts"),
    ];
    for (outcome, expected) in others {
        let error = outcome.expect_err(expected);
        assert!(error.is_untrusted() && error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn certificates_have_their_time() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    for (valid, expected) in [((-10, -1), " expired on "), ((1, 10), " is not valid before ")] {
        let files = authority.issue(&Leaf { valid, ..leaf() }, &dirs.dir());
        let server = OpensslServer::start(&files, &[]).await;
        // Nor does the subject make up for it.
        for trust in
            [Trust::ca(authority.pem()), Trust::ca(authority.pem()).with_subject(SUBJECT.parse().unwrap())]
        {
            let error = server.meet(HOST, &trust).await.unwrap_err();
            assert!(error.is_untrusted(), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(expected) && text.contains("CN=vm.example") && text.contains(" 20"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn chains_lead_to_whom_we_believe() {
    let dirs = Dirs::new();
    let root = Authority::new("root");
    let files = root.intermediate("upper").intermediate("lower").issue(&leaf(), &dirs.dir());
    let chain = files.certificate.to_str().unwrap();
    let whole = OpensslServer::start(&files, &["-cert_chain", chain]).await;
    assert!(whole.meet(HOST, &Trust::ca(root.pem())).await.is_ok());
    let several = [Authority::new("another").pem(), b"# and ours\n".to_vec(), root.pem()].concat();
    assert!(whole.meet(HOST, &Trust::ca(several)).await.is_ok());
    let broken = OpensslServer::start(&files, &[]).await;
    let error = broken.meet(HOST, &Trust::ca(root.pem())).await.unwrap_err();
    assert!(matches!(&error, TlsError::UnknownIssuer { issuer, .. } if &**issuer == "CN=lower"), "{error}");

    // One that vouches for itself is believed only if it is the CA.
    let alone = self_signed(&leaf(), &dirs.dir());
    let server = OpensslServer::start(&alone, &[]).await;
    assert!(server.meet(HOST, &Trust::ca_file(&alone.ca)).await.is_ok());
    for trust in [Trust::ca(root.pem()), Trust::default()] {
        let error = server.meet(HOST, &trust).await.unwrap_err();
        assert!(matches!(error, TlsError::SelfSigned { .. }) && error.is_untrusted(), "{error}");
    }
}

#[tokio::test]
async fn old_versions_are_not_spoken() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&leaf(), &dirs.dir());
    let trust = Trust::ca(authority.pem());
    for version in ["-tls1", "-tls1_1"] {
        let server = OpensslServer::start(&files, &[version, "-cipher", "DEFAULT:@SECLEVEL=0"]).await;
        let error = server.meet(HOST, &trust).await.unwrap_err();
        assert!(matches!(error, TlsError::OldTls { .. }), "{version}: {error}");
    }
    let server = OpensslServer::start(&files, &["-tls1_2"]).await;
    assert_eq!(server.meet(HOST, &trust).await.unwrap().version(), "TLSv1.2");

    // Nor as a server.
    let (acceptor, listener) = acceptor(&files).await;
    for version in ["-tls1", "-tls1_1"] {
        let client = openssl_client(&listener, &[version, "-cipher", "DEFAULT:@SECLEVEL=0"]);
        let (stream, _) = soon("a client", listener.accept()).await.unwrap();
        let error = soon("a handshake", acceptor.accept(stream)).await.unwrap_err();
        assert!(matches!(error, TlsError::OldTls { .. }), "{version}: {error}");
        drop(client);
    }
}

async fn acceptor(files: &Files) -> (Acceptor, TcpListener) {
    let acceptor = Acceptor::load(&files.certificate, &files.key).unwrap();
    (acceptor, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
}

fn openssl_client(listener: &TcpListener, more: &[&str]) -> Child {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect"]).arg(listener.local_addr().unwrap().to_string()).args(more);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_client_cannot_have_it_all_over_again() {
    let dirs = Dirs::new();
    let files = Authority::new("spice-tunnel test authority").issue(&leaf(), &dirs.dir());
    let (acceptor, listener) = acceptor(&files).await;
    let mut client = openssl_client(&listener, &["-tls1_2"]);
    let (stream, _) = soon("a client", listener.accept()).await.unwrap();
    let mut stream = soon("a handshake", acceptor.accept(stream)).await.unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let mut said = [0; 6];
    soon("what it says", stream.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"hello\n");
    // To openssl's client a line with R alone means: renegotiate.
    stdin.write_all(b"R\n").await.unwrap();
    let ended = async { tokio::join!(stream.read(&mut said), client.wait_with_output()) };
    let (read, output) = soon("the client's end", ended).await;
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation"), "{said}");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    // Neither resumption nor compression is on offer.
    assert!(said.contains("Compression: NONE"), "{said}");
    assert!(!said.contains("TLS session ticket:"), "{said}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let files = Authority::new("authority").issue(&Leaf::default(), &sub("good"));
    let load = |certificate: &Path, key: &Path| Acceptor::load(certificate, key).unwrap_err();
    assert!(Acceptor::load(&files.certificate, &files.key).is_ok());

    let other = self_signed(&Leaf::default(), &sub("other"));
    let error = load(&files.certificate, &other.key);
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
    for file in [&files.certificate, &other.key] {
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
    let error = load(&files.key, &files.key);
    assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
    let error = load(&files.certificate, &files.ca);
    assert!(matches!(error, TlsError::NoKey { .. }), "{error}");
    let error = load(&files.certificate, &dir.path().join("missing"));
    assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
    // OpenSSL by itself would ask for the password, on the terminal, and wait.
    files.encrypt_key("sesame");
    let error = load(&files.certificate, &files.key);
    assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error}");
    std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let error = load(&files.certificate, &files.key);
    assert!(matches!(error, TlsError::BadKey { .. }), "{error}");
}
