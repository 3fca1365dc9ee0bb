//! The client's TLS against a real QEMU's.

use super::*;

/// A QEMU without a machine to speak of, with both ports.
struct Qemu {
    port: u16,
    tls_port: u16,
    _process: Child,
}

impl Qemu {
    async fn start(x509: &Path) -> Self {
        // Somebody else may take a port between our look and QEMU's.
        for _ in 0..5 {
            let (port, tls_port) = (free_port(), free_port());
            let spice = format!(
                "addr=127.0.0.1,port={port},tls-port={tls_port},x509-dir={},disable-ticketing=on",
                x509.display()
            );
            let mut process = Command::new("qemu-system-x86_64")
                .args([
                    "-nodefaults",
                    "-machine",
                    "pc,accel=tcg",
                    "-S",
                    "-display",
                    "none",
                    "-vga",
                    "none",
                    "-spice",
                    &spice,
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("QEMU does not start: tests/install-prerequisites.sh");
            if comes_up(&mut process, &[port, tls_port]).await {
                return Self { port, tls_port, _process: process };
            }
        }
        panic!("QEMU ended at once, five times");
    }
}

#[tokio::test]
async fn qemu_is_believed_only_if_it_is_the_right_one() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let leaf = Leaf { addresses: &[], ..leaf() };
    let files = authority.issue(&leaf, &dirs.dir());
    let qemu = Qemu::start(files.ca.parent().unwrap()).await;
    let trust = Trust::ca_file(&files.ca);
    let with = |subject: &str| trust.clone().with_subject(subject.parse().unwrap());
    let secure = |trust: Trust| SpiceServer::tls("127.0.0.1", qemu.tls_port, trust);

    // Its name is another one than its address; the subject makes it the right one. QEMU by itself has no tunnel.
    let error = failure(&secure(with(SUBJECT))).await;
    assert!(matches!(error, LinkFailure::NoTunnel { .. }) && !error.is_final(), "{error}");
    for (trust, expected) in [
        (
            trust.clone(),
            "cannot be trusted: the server's certificate is for another host: expected 127.0.0.1, got vm.example",
        ),
        (with("CN=vm.example"), "for another subject"),
        (
            Trust::ca(Authority::new("another").pem()).with_subject(SUBJECT.parse().unwrap()),
            "not among those of the CA",
        ),
    ] {
        let error = failure(&secure(trust)).await;
        assert!(error.is_final() && text(&error).contains(expected), "{}", text(&error));
    }

    let error = failure(&SpiceServer::plain("127.0.0.1", qemu.port)).await;
    assert!(matches!(error, LinkFailure::NoTunnel { .. }), "{error}");
    // The wrong port, both ways round.
    let error = failure(&SpiceServer::tls("127.0.0.1", qemu.port, trust.clone())).await;
    assert!(
        text(&error).contains("speaks Spice without TLS; its TLS port is another one"),
        "{}",
        text(&error)
    );
    assert!(error.is_final());
    let error = failure(&SpiceServer::plain("127.0.0.1", qemu.tls_port)).await;
    assert!(matches!(error, LinkFailure::TlsPort { .. }) && error.is_final(), "{error}");
    assert!(error.to_string().contains("use spice+tls://"), "{error}");
}

/// The system's authorities are those that `SSL_CERT_FILE` names; with a CA given they do not count.
#[tokio::test]
async fn the_systems_authorities_are_found() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&Leaf::default(), &dirs.dir());
    let other = dirs.dir().join("ca.pem");
    std::fs::write(&other, Authority::new("another").pem()).unwrap();
    let qemu = Qemu::start(files.ca.parent().unwrap()).await;
    let home = dirs.dir();
    let said = async |system: &Path, more: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
        command.args([
            "connect",
            "--share",
            "tcp://127.0.0.1:1",
            &format!("spice+tls://localhost:{}", qemu.tls_port),
        ]);
        command.args(more).env("SSL_CERT_FILE", system).env("NO_COLOR", "1").env("HOME", &home);
        let output = soon("its end", command.stdin(Stdio::null()).kill_on_drop(true).output()).await.unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = said(&files.ca, &[]).await;
    assert!(text.contains("offers no tunnel channel"), "{text}");
    let text = said(&other, &[]).await;
    assert!(text.contains("cannot be trusted"), "{text}");
    let text = said(&files.ca, &[Path::new("--ca-file"), &other]).await;
    assert!(text.contains("cannot be trusted"), "{text}");
    // Viewers keep theirs here; it goes before the system's, and behind what is said.
    std::fs::create_dir(home.join(".spicec")).unwrap();
    std::fs::copy(&files.ca, home.join(".spicec/spice_truststore.pem")).unwrap();
    let text = said(&other, &[]).await;
    assert!(text.contains("offers no tunnel channel"), "{text}");
    let text = said(&other, &[Path::new("--ca-file"), &other]).await;
    assert!(text.contains("cannot be trusted"), "{text}");
}
