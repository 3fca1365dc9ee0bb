//! Through HTTP proxies: tinyproxy, and some that misbehave.

use client_glue::server::{HttpProxy, ProxyFailure};

use super::*;

/// tinyproxy, which lets its user connect to one port.
struct Tinyproxy {
    port: u16,
    _process: Child,
}

impl Tinyproxy {
    async fn start(dir: &Path, to: u16) -> Self {
        for _ in 0..5 {
            let port = free_port();
            let file = dir.join("tinyproxy.conf");
            let text = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 8\nBasicAuth alice secret\nConnectPort {to}\n"
            );
            std::fs::write(&file, text).unwrap();
            let mut process = Command::new("tinyproxy")
                .args(["-d", "-c"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("tinyproxy does not start: tests/install-prerequisites.sh");
            if comes_up(&mut process, &[port]).await {
                return Self { port, _process: process };
            }
        }
        panic!("tinyproxy ended at once, five times");
    }
}

#[tokio::test]
async fn a_real_proxy_leads_to_tls() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&Leaf::default(), &dirs.dir());
    let (acceptor, listener) = acceptor(&files).await;
    let port = listener.local_addr().unwrap().port();
    let tinyproxy = Tinyproxy::start(&dirs.dir(), port).await;
    let proxy = |user: Option<(&str, &str)>| HttpProxy {
        user: user.map(|(user, password)| (user.to_owned(), password.to_owned())),
        ..HttpProxy::new("localhost", tinyproxy.port)
    };
    let direct = SpiceServer::tls("localhost", port, Trust::ca_file(&files.ca));

    // To the end of the link stage: the server behind it closes there, as one without a tunnel does.
    let serving = async {
        let (stream, _) = soon("a client", listener.accept()).await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut message = [0; 16 + 18];
        stream.read_exact(&mut message).await.unwrap();
        assert!(message.starts_with(b"REDQ"));
        let mut rest = [0; 64];
        let _ = stream.read(&mut rest).await;
        stream.shutdown().await.unwrap();
        let _ = stream.read(&mut rest).await;
    };
    let server = direct.clone().through(proxy(Some(("alice", "secret"))));
    let (error, ()) = tokio::join!(failure(&server), serving);
    assert!(matches!(error, LinkFailure::NoTunnel { .. }), "{}", text(&error));

    let error = failure(&direct.clone().through(proxy(None))).await;
    assert!(
        text(&error).contains("wants a user name and a password") && error.is_final(),
        "{}",
        text(&error)
    );
    let error = failure(&direct.clone().through(proxy(Some(("alice", "wrong"))))).await;
    assert!(text(&error).contains("does not accept our user name and password"), "{}", text(&error));
    assert!(!text(&error).contains("wrong"), "the password is shown");
    let forbidden = SpiceServer::plain("localhost", port - 1).through(proxy(Some(("alice", "secret"))));
    let error = failure(&forbidden).await;
    assert!(text(&error).contains("it answered 403") && error.is_final(), "{}", text(&error));
    drop(listener);
    let error = failure(&direct.through(proxy(Some(("alice", "secret"))))).await;
    assert!(text(&error).contains("it answered 50") && !error.is_final(), "{}", text(&error));
}

#[tokio::test]
async fn a_bad_proxy_is_named_and_gets_nothing_but_the_question() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server =
        SpiceServer::tls("vm.example", 5901, Trust::default()).through(HttpProxy::new("127.0.0.1", port));
    let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"X: y\r\n".repeat(100_000)].concat();
    for (answer, expected) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(), "it does not speak HTTP"),
        (b"\x15\x03\x01\0\x02\x02\x46", "it does not speak HTTP"),
        (b"HTTP/1.1 banana\r\n\r\n", "it does not speak HTTP"),
        (&endless, "longer than 8192 bytes"),
        (b"HTTP/1.1 200", "closed the connection without an answer"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 503 \x1b[31mno\r\n\r\n", "it answered 503 \"\u{fffd}[31mno\""),
    ] {
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            // It may hang up in the middle of it.
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut asked).await;
            asked
        };
        let (error, asked) = tokio::join!(failure(&server), answering);
        let said = text(&error);
        assert!(
            said.contains(expected) && said.contains(&format!("through the proxy http://127.0.0.1:{port}")),
            "{said}"
        );
        assert_eq!(asked, b"CONNECT vm.example:5901 HTTP/1.1\r\nHost: vm.example:5901\r\n\r\n");
    }
    drop(listener);
    let error = failure(&server).await;
    let nobody = matches!(&error, LinkFailure::Proxy { source: ProxyFailure::Io(_), .. });
    assert!(nobody && !error.is_final(), "{}", text(&error));

    // A host that would be more than a host.
    let sly =
        SpiceServer::plain("vm.example:1 HTTP/1.1\r\nX: y", 5900).through(HttpProxy::new("127.0.0.1", port));
    let error = failure(&sly).await;
    assert!(matches!(error, LinkFailure::Proxy { .. }), "{error}");
}
