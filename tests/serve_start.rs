//! How `serve` is started: with sockets that somebody else has opened, under a service manager, and with `--check`.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Output, Stdio};

use spice_proto::tls::{Connector, Roots, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::pki::{Authority, Files, Leaf};
use crate::vm::rig::soon;

/// What a link of main in a fresh session begins with: 16 + 18 bytes and a word of capabilities.
const HELLO: &[u8] =
    b"REDQ\x02\0\0\0\x02\0\0\0\x16\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\0\x12\0\0\0\x0b\0\0\0";

/// A process that is killed when it is not needed any more.
struct Serve(Child);

impl Serve {
    /// With sockets as descriptors from 3 on. They go by way of standard input, because a test that let its own descriptors
    /// be inherited would give them to the processes of all tests.
    fn start(sockets: Vec<OwnedFd>, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut sockets = sockets.into_iter();
        let mut script = r#"exec "$0" serve --standalone "$@" "#.to_owned();
        let mut command = Command::new("sh");
        match (sockets.next(), sockets.next(), sockets.next()) {
            (None, ..) => {
                command.stdin(Stdio::null());
            }
            (Some(first), second, None) => {
                script += "3<&0 </dev/null";
                command.stdin(Stdio::from(first));
                if let Some(second) = second {
                    script += " 4>&1 >&2";
                    command.stdout(Stdio::from(second));
                }
            }
            _ => panic!("that many do not fit through here"),
        }
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_spice-tunnel")).args(arguments);
        command.env("RUST_LOG", "debug").env("NO_COLOR", "1").envs(variables.iter().copied());
        Self(command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap())
    }

    /// What it says until its end.
    async fn complaint(self) -> String {
        let output = soon("its end", self.0.wait_with_output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    async fn signal(&self, signal: &str) {
        let pid = self.0.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
    }
}

/// A Spice server answers here: the beginning of its link reply.
async fn answers(at: SocketAddr) {
    let mut stream = soon("a connection", TcpStream::connect(at)).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    let mut magic = [0; 4];
    soon("a link reply", stream.read_exact(&mut magic)).await.unwrap();
    assert_eq!(&magic, b"REDQ");
}

async fn answers_unix(at: &Path) {
    let mut stream =
        crate::vm::rig::until("a Unix socket", || async { tokio::net::UnixStream::connect(at).await.ok() })
            .await;
    stream.write_all(HELLO).await.unwrap();
    let mut magic = [0; 4];
    soon("a link reply", stream.read_exact(&mut magic)).await.unwrap();
    assert_eq!(&magic, b"REDQ");
}

fn nic(dir: &Path) -> String {
    format!("listen:{}", dir.join("nic.sock").display())
}

fn tcp() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

#[tokio::test]
async fn listens_at_sockets_that_were_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (tcp, address) = tcp();
    let path = dir.path().join("passed.sock");
    let unix: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let arguments = ["--nic", &nic(dir.path()), "--listen", "fd:3", "--listen", "fd:4"];
    let _serve = Serve::start(vec![tcp, unix], &arguments, &[]);
    answers(address).await;
    answers_unix(&path).await;
}

#[tokio::test]
async fn metrics_are_told_at_a_socket_that_was_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (tcp, address) = tcp();
    let arguments = ["--nic", &nic(dir.path()), "--listen", "127.0.0.1:0", "--metrics", "fd:3"];
    let _serve = Serve::start(vec![tcp], &arguments, &[]);
    let mut stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut page = String::new();
    soon("the metrics", stream.read_to_string(&mut page)).await.unwrap();
    assert!(page.starts_with("HTTP/1.0 200 ") && page.contains("\nspice_tunnel_joined 0\n"), "{page}");
}

#[tokio::test]
async fn wrong_descriptors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let nic = nic(dir.path());
    let connection = || vec![UnixStream::pair().unwrap().0.into()];
    let file = || vec![std::fs::File::open("/dev/null").unwrap().into()];
    for (sockets, listen, besides, complaint) in [
        (vec![], "fd:3", None, "fd:3 was not passed"),
        (vec![], "fd:1", None, "fd:1 is standard input or output"),
        (vec![], "fd:50", None, "fd:50 was not passed"),
        (connection(), "fd:3", None, "fd:3 is a Unix connection, expected a listening socket"),
        (file(), "fd:3", None, "fd:3 is no stream socket"),
        (vec![tcp().0], "fd:3", Some("fd:3"), "fd:3 is given twice"),
        (vec![], "systemd:tls", None, "systemd passed no socket with the name \"tls\": there is none"),
    ] {
        let mut arguments = vec!["--nic", &nic, "--listen", listen];
        arguments.extend(besides.map(|besides| ["--listen", besides]).into_iter().flatten());
        let said = Serve::start(sockets, &arguments, &[]).complaint().await;
        assert!(said.contains(complaint), "expected {complaint:?} of {listen}, got {said}");
    }
}

/// A frame of QEMU's framing: a DHCP question, as a guest's first word.
fn discover() -> Vec<u8> {
    const FROM: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
    dhcp.resize(28, 0);
    dhcp.extend(FROM);
    dhcp.resize(236, 0);
    dhcp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    dhcp.resize(300, 0);
    let mut udp = Vec::new();
    udp.extend(68u16.to_be_bytes());
    udp.extend(67u16.to_be_bytes());
    udp.extend((8 + dhcp.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(dhcp);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0xff; 6];
    frame.extend(FROM);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(udp);
    let mut framed = (frame.len() as u32).to_be_bytes().to_vec();
    framed.extend(frame);
    framed
}

/// The card as a manager of virtual machines passes it: one end of a pair to us, the other to the machine. And as a socket
/// that a machine connects to.
#[tokio::test]
async fn the_card_is_a_socket_that_was_passed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("card.sock");
    let (machine, ours) = UnixStream::pair().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let later = path.clone();
    let sockets: [(OwnedFd, Box<dyn FnOnce() -> UnixStream>); 2] = [
        (ours.into(), Box::new(move || machine)),
        (listener.into(), Box::new(move || UnixStream::connect(later).unwrap())),
    ];
    for (socket, machine) in sockets {
        let arguments = ["--nic", "fd:3", "--listen", "127.0.0.1:0"];
        let _serve = Serve::start(vec![socket], &arguments, &[]);
        let machine = machine();
        machine.set_nonblocking(true).unwrap();
        let mut machine = tokio::net::UnixStream::from_std(machine).unwrap();
        machine.write_all(&discover()).await.unwrap();
        let length = soon("an offer", machine.read_u32()).await.unwrap();
        let mut offer = vec![0; length as usize];
        soon("an offer", machine.read_exact(&mut offer)).await.unwrap();
        // UDP from the server's port.
        assert_eq!((offer[23], &offer[34..36]), (17, &67u16.to_be_bytes()[..]));
    }
}

/// By systemd's own tool: it listens, and starts us when somebody connects.
#[tokio::test]
async fn systemd_activates_it() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, tls) = (dir.path().join("plain.sock"), dir.path().join("other.sock"));
    let mut command = Command::new("systemd-socket-activate");
    for path in [&plain, &tls] {
        command.arg("--listen").arg(path);
    }
    command.args(["--fdname=viewers:spare", "-E", "RUST_LOG", "-E", "NO_COLOR"]);
    command.arg(env!("CARGO_BIN_EXE_spice-tunnel"));
    command.args(["serve", "--standalone", "--nic", &nic(dir.path()), "--listen", "systemd:viewers"]);
    command.env("RUST_LOG", "info").env("NO_COLOR", "1").stderr(Stdio::piped()).kill_on_drop(true);
    let mut serve =
        command.spawn().expect("this test needs systemd-socket-activate: tests/install-prerequisites.sh");
    answers_unix(&plain).await;
    serve.start_kill().unwrap();
    let said = String::from_utf8(serve.wait_with_output().await.unwrap().stderr).unwrap();
    assert!(said.contains("a socket was passed that no argument names socket=\"systemd:spare\""), "{said}");
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let manager = tokio::net::UnixDatagram::from_std(manager).unwrap();
    let next = async || {
        let mut text = [0; 256];
        let n = soon("a word to the service manager", manager.recv(&mut text)).await.unwrap();
        String::from_utf8(text[..n].to_vec()).unwrap()
    };
    let files = Authority::new("authority").issue(&Leaf::default(), dir.path());
    let ((listener, address), (tls_listener, tls_address)) = (tcp(), tcp());
    let (nic, chain, key) =
        (nic(dir.path()), files.certificate.display().to_string(), files.key.display().to_string());
    let arguments =
        ["--nic", &nic, "--listen", "fd:3", "--tls-listen", "fd:4", "--tls-cert", &chain, "--tls-key", &key];
    let mut serve =
        Serve::start(vec![listener, tls_listener], &arguments, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(next().await, "READY=1\n");
    answers(address).await;
    let trust = Trust { roots: Roots::File(files.ca.clone()), ..Trust::default() };
    let stream = TcpStream::connect(tls_address).await.unwrap();
    soon("TLS", Connector::new(&trust).unwrap().connect("localhost", stream)).await.unwrap();
    serve.signal("-HUP").await;
    let reloading = next().await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next().await, "READY=1\n");
    serve.signal("-TERM").await;
    assert_eq!(next().await, "STOPPING=1\n");
    assert!(soon("its end", serve.0.wait()).await.unwrap().success());
}

/// For the own user only, again and again, even after a death that left the socket behind.
#[tokio::test]
async fn a_unix_socket_for_viewers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("viewers.sock");
    let place = format!("unix:{}", path.display());
    let nic = nic(dir.path());
    let arguments = ["--nic", nic.as_str(), "--listen", &place];
    for _ in 0..2 {
        let mut serve = Serve::start(vec![], &arguments, &[]);
        answers_unix(&path).await;
        let found = std::fs::metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        serve.0.kill().await.unwrap();
        assert!(path.exists());
    }
    let mut serve = Serve::start(vec![], &arguments, &[]);
    answers_unix(&path).await;
    let second = Serve::start(vec![], &["--nic", "connect:/nonexistent/nic", "--listen", &place], &[]);
    assert!(second.complaint().await.contains("is in use by a running process"));
    serve.signal("-TERM").await;
    assert!(soon("its end", serve.0.wait()).await.unwrap().success());
    assert!(!path.exists());
}

async fn check(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
    command.args(["serve", "--check"]).args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    let Output { status, stdout, stderr } = soon("the check", command.output()).await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn issue(authority: &Authority, dir: &Path, valid: (i64, i64)) -> Files {
    std::fs::create_dir_all(dir).unwrap();
    let files = authority.issue(&Leaf { valid, ..Leaf::default() }, dir);
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    files
}

#[tokio::test]
async fn a_check_says_what_would_be_done_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = issue(&Authority::new("authority"), dir.path(), (-1, 30));
    let (_held, upstream) = tcp();
    let lease = dir.path().join("leases");
    let viewers = dir.path().join("viewers.sock");
    let (code, said, complaint) = check(&[
        "--upstream",
        &upstream.to_string(),
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &format!("unix:{}", viewers.display()),
        "--tls-listen",
        "127.0.0.1:0",
        "--tls-cert",
        files.certificate.to_str().unwrap(),
        "--tls-key",
        files.key.to_str().unwrap(),
        "--nic",
        &nic(dir.path()),
        "--lease-file",
        lease.to_str().unwrap(),
        "--metrics",
        "127.0.0.1:0",
    ])
    .await;
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let wanted = [
        "clients  127.0.0.1:0, in clear".to_owned(),
        format!("clients  unix:{}, for this user's programs", viewers.display()),
        "clients  127.0.0.1:0, over TLS, as O=spice-tunnel tests,CN=localhost until ".to_owned(),
        format!("server   {upstream}, without TLS, answers all clients; with those over TLS, TLS ends here"),
        "metrics  127.0.0.1:0, for whoever reaches it".to_owned(),
        "tunnel   over TLS only; in clear it is told to come over TLS; from the session's own client, or"
            .to_owned(),
        "card     QEMU connects to ".to_owned(),
        "network  198.18.0.0/16, packets of at most 65520 bytes".to_owned(),
        "names    DNS for tunnel.internal, which DHCP says".to_owned(),
        format!("leases   kept in {}", lease.display()),
        "This would work.".to_owned(),
    ];
    assert_eq!(lines.len(), wanted.len(), "{said}");
    for (line, wanted) in lines.iter().zip(&wanted) {
        assert!(line.starts_with(wanted.as_str()), "expected {wanted}, got {line}");
    }
    assert!(!lease.exists() && !viewers.exists() && !dir.path().join("nic.sock").exists());
}

#[tokio::test]
async fn a_check_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let good = issue(&authority, &dir.path().join("good"), (-1, 30));
    let soon_over = issue(&authority, &dir.path().join("soon"), (-1, 5));
    let over = issue(&authority, &dir.path().join("over"), (-20, -5));
    let readable = issue(&authority, &dir.path().join("readable"), (-1, 30));
    std::fs::set_permissions(&readable.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, "not what was expected").unwrap();
    let (_taken, taken) = tcp();
    let (listener, nobody) = tcp();
    drop(listener);
    let pair = |certificate: &Path, key: &Path| {
        let text = |path: &Path| path.display().to_string();
        [
            "--standalone",
            "--tls-listen",
            "127.0.0.1:0",
            "--tls-cert",
            &text(certificate),
            "--tls-key",
            &text(key),
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let plain = |besides: &[&str]| {
        let mut arguments = vec!["--standalone".to_owned(), "--listen".to_owned(), "127.0.0.1:0".to_owned()];
        arguments.extend(besides.iter().map(|text| (*text).to_owned()));
        arguments
    };
    let own = |arguments: &[&str]| arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let garbage = garbage.to_str().unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let nic = nic(dir.path());
    for (arguments, nic, problem, warning) in [
        (pair(&good.certificate, &over.key), nic.as_str(), "server-key.pem", ""),
        (pair(&over.certificate, &over.key), &nic, "expired on", ""),
        (pair(&soon_over.certificate, &soon_over.key), &nic, "", "expires on"),
        (pair(&readable.certificate, &readable.key), &nic, "", "everybody on this machine may read the key"),
        (pair(Path::new(garbage), &good.key), &nic, "garbage", ""),
        (pair(&dir.path().join("missing"), &good.key), &nic, "missing", ""),
        (plain(&["--lease-file", garbage]), &nic, "the lease file", ""),
        (plain(&["--lease-file", "/nonexistent/leases"]), &nic, "/nonexistent", ""),
        (plain(&["--capture", "/nonexistent/it.pcapng"]), &nic, "/nonexistent", ""),
        (plain(&["--password-file", "/nonexistent/password"]), &nic, "/nonexistent/password", ""),
        (plain(&[]), "listen:/nonexistent/nic.sock", "/nonexistent", ""),
        (plain(&[]), "connect:/tmp/no-such-machine.sock", "", "QEMU is waited for"),
        (own(&["--standalone", "--listen", &taken.to_string()]), &nic, "in use", ""),
        (own(&["--standalone", "--listen", "host.invalid:0"]), &nic, "host.invalid", ""),
        (
            own(&[&["--upstream", &nobody.to_string()], &listen[..]].concat()),
            &nic,
            "",
            "does not take a connection",
        ),
        (own(&[&["--upstream", "host.invalid:1"], &listen[..]].concat()), &nic, "cannot be resolved", ""),
        (
            own(&[&["--upstream-tls", &nobody.to_string(), "--upstream-ca", garbage], &listen[..]].concat()),
            &nic,
            "garbage",
            "",
        ),
        (
            own(&[&["--upstream-tls", &nobody.to_string()], &listen[..]].concat()),
            &nic,
            "",
            "no client can come in",
        ),
    ] {
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.extend(["--nic", nic, "--json"]);
        let (code, said, complaint) = check(&all).await;
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let texts = |list: &str| -> Vec<String> {
            report[list].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let (problems, warnings) = (texts("problems"), texts("warnings"));
        let fine = problem.is_empty();
        assert_eq!(report["ok"], fine, "{all:?}: {said}");
        assert_eq!(code, Some(i32::from(!fine)), "{all:?}: {said}");
        assert_eq!(complaint.is_empty(), fine, "{complaint}");
        assert!(fine || problems.iter().any(|text| text.contains(problem)), "expected {problem}: {said}");
        assert!(
            warning.is_empty() || warnings.iter().any(|text| text.contains(warning)),
            "expected {warning}: {said}"
        );
    }
}

/// Arguments that contradict each other, or lack each other.
#[tokio::test]
async fn arguments_that_do_not_go_together() {
    for arguments in [
        &["--upstream", "unix:/x"][..],
        &["--listen", "[::]:0"],
        &["--upstream", "unix:/x", "--listen", "[::]:0", "--upstream-ca", "/x"],
        &["--upstream", "unix:/x", "--listen", "[::]:0", "--allow-clear"],
        &["--upstream", "unix:/x", "--upstream-tls", "h:1", "--listen", "[::]:0", "--allow-clear"],
        &["--upstream", "unix:/x", "--tls-listen", "[::]:0"],
        &["--upstream", "unix:/x", "--tls-listen", "[::]:0", "--tls-cert", "/x"],
        &["--upstream", "unix:/x", "--listen", "[::]:0", "--tls-cert", "/x", "--tls-key", "/x"],
        &["--upstream", "unix:/x", "--tls-listen", "unix:/y", "--tls-cert", "/x", "--tls-key", "/x"],
        &["--standalone", "--upstream-tls", "h:1", "--listen", "[::]:0"],
        &["--standalone", "--listen", "[::]:0", "--json"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
        command.args(["serve", "--nic", "connect:/x"]).args(arguments);
        let output = soon("a complaint", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
