//! Men in the middle, and servers that are not what their address says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_glue::server::{HttpProxy, Place, Stage};
use spice_proto::handshake::Deadlines;
use spice_proto::io::Decision;
use spice_proto::link::{CommonCaps, LinkError, Welcome};
use spice_proto::ticket::TicketKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::*;

/// Nothing of TLS but its first words: a ClientHello, and after it an alert at most.
fn assert_only_a_hello(heard: &[u8]) {
    let mut rest = heard;
    let mut kinds = Vec::new();
    while let [kind, 3, _, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(body.len() >= length, "half a record: {heard:02x?}");
        kinds.push((*kind, body[0]));
        rest = &body[length..];
    }
    assert!(rest.is_empty(), "not TLS: {rest:02x?}");
    let (first, later) = kinds.split_first().expect("nothing was said");
    assert_eq!(*first, (22, 1), "not a ClientHello");
    assert!(later.iter().all(|(kind, _)| *kind == 21) && later.len() <= 1, "more than an alert: {kinds:?}");
    assert!(!heard.windows(4).any(|window| window == b"REDQ"));
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Nobody came a second time, perhaps to try without TLS.
async fn assert_nobody_else(listener: &TcpListener) {
    let second = timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(second.is_err(), "a second connection came");
}

#[tokio::test]
async fn who_answers_in_clear_gets_nothing() {
    let (listener, port) = listen().await;
    for (answer, expected) in [
        (
            b"REDQ\x02\0\0\0\x02\0\0\0\xb2\0\0\0".as_slice(),
            "does not speak TLS: the server speaks Spice without TLS",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS: the server does not speak TLS"),
        // An alert: close notify, handshake failure.
        (b"\x15\x03\x03\0\x02\x02\x28", "no TLS with"),
    ] {
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 4096];
            let read = stream.read(&mut heard).await.unwrap();
            heard.truncate(read);
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_to_end(&mut heard).await;
            heard
        };
        let server = SpiceServer::tls("localhost", port, Trust::default());
        let (error, heard) = tokio::join!(failure(&server), answering);
        assert!(text(&error).contains(expected), "{}", text(&error));
        assert_eq!(error.is_final(), answer.starts_with(b"REDQ"), "{error}");
        assert_only_a_hello(&heard);
        assert_nobody_else(&listener).await;
    }
}

#[tokio::test]
async fn who_shows_another_certificate_gets_nothing() {
    let dirs = Dirs::new();
    let ours = Authority::new("spice-tunnel test authority");
    let real = OpensslServer::start(&ours.issue(&leaf(), &dirs.dir()), &[]).await;
    // The same names, the same subject, and an authority of the same name: all but its key.
    let theirs = Authority::new("spice-tunnel test authority").issue(&leaf(), &dirs.dir());
    let acceptor = Acceptor::load(&theirs.certificate, &theirs.key).unwrap();
    let (listener, port) = listen().await;
    for subject in [None, Some(SUBJECT)] {
        let mut trust = Trust::ca(ours.pem());
        trust.subject = subject.map(|subject| subject.parse().unwrap());
        let relaying = async {
            let (stream, _) = listener.accept().await.unwrap();
            // The real one is ready behind; there is nothing to pass on.
            let behind = real.meet(HOST, &Trust::ca(ours.pem())).await.unwrap();
            let met = acceptor.accept(stream).await;
            drop(behind);
            met.map(drop)
        };
        // By address, which is in the certificate as well.
        let server = SpiceServer::tls("127.0.0.1", port, trust);
        let (error, met) = tokio::join!(failure(&server), relaying);
        assert!(matches!(&error, LinkFailure::Tls { source, .. } if source.is_untrusted()), "{error}");
        assert!(error.is_final() && error.to_string().ends_with("cannot be trusted"), "{error}");
        let met = met.expect_err("the handshake was finished");
        assert!(matches!(met, TlsError::Refused { .. }), "{met}");
        assert_nobody_else(&listener).await;
    }
}

#[tokio::test]
async fn with_both_ports_only_tls_is_tried() {
    let (plain, port) = listen().await;
    let closed = free_port();
    let mut server = SpiceServer::tls("127.0.0.1", closed, Trust::default());
    server.place = Place::Tcp { host: "127.0.0.1".to_owned(), port: Some(port), tls_port: Some(closed) };
    let error = failure(&server).await;
    assert!(matches!(error, LinkFailure::Connect { .. }) && !error.is_final(), "{error}");
    assert_nobody_else(&plain).await;
}

#[tokio::test]
async fn a_stalled_handshake_ends() {
    let (listener, port) = listen().await;
    let (proxy, proxy_port) = listen().await;
    let stalling = async {
        let one = listener.accept().await.unwrap();
        let two = proxy.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop((one, two));
    };
    let server = SpiceServer::tls("127.0.0.1", port, Trust::default());
    let behind = server.clone().through(HttpProxy::new("127.0.0.1", proxy_port));
    let started = std::time::Instant::now();
    let (stall, no_proxy) = tokio::select! {
        failures = async { tokio::join!(failure(&server), failure(&behind)) } => failures,
        () = stalling => unreachable!(),
    };
    assert!(matches!(stall, LinkFailure::Late { stage: Stage::Tls, .. }), "{stall}");
    assert!(matches!(no_proxy, LinkFailure::Late { stage: Stage::Proxy, .. }), "{no_proxy}");
    assert!(!stall.is_final() && started.elapsed() >= Duration::from_secs(9));
}

/// Links as a server that refuses with this, or takes the ticket.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    refuse: Option<LinkError>,
    tickets: &Mutex<Vec<String>>,
) {
    let key = TicketKey::generate().unwrap();
    let decide = |_: &_| match refuse {
        Some(error) => Decision::Refuse(error),
        None => Decision::Welcome(Welcome {
            public_key: Box::new(*key.public_der()),
            common_caps: vec![CommonCaps::OURS.bits()],
            channel_caps: Vec::new(),
        }),
    };
    let verdict = async |ticket: Result<Password, _>| {
        let right = ticket.is_ok_and(|ticket| ticket.matches(&Password::new(PASSWORD).unwrap()));
        tickets.lock().unwrap().push(right.to_string());
        Ok(())
    };
    let _ = spice_proto::io::accept(stream, &key, Deadlines::default(), decide, verdict).await;
    // A close with something unread would be a reset.
    let _ = timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
}

#[tokio::test]
async fn what_a_server_asks_for_is_said() {
    let dirs = Dirs::new();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&Leaf::default(), &dirs.dir());
    let (acceptor, listener) = acceptor(&files).await;
    let port = listener.local_addr().unwrap().port();
    let tickets = Arc::new(Mutex::new(Vec::new()));
    let (told, refusals) =
        (Arc::clone(&tickets), [None, Some(LinkError::NeedUnsecured), Some(LinkError::NeedSecured)]);
    let serving = tokio::spawn(async move {
        for refuse in refusals {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await;
            answer(&mut stream.unwrap(), refuse, &told).await;
        }
        for refuse in refusals {
            answer(&mut listener.accept().await.unwrap().0, refuse, &told).await;
        }
    });
    let secure = SpiceServer::tls("localhost", port, Trust::ca_file(&files.ca));
    let credentials = Credentials::ticket(Password::new(PASSWORD).unwrap());
    let link = soon("a link", secure.link(0, &credentials)).await.unwrap();
    assert!(link.secure && link.ends.is_some());
    drop(link);
    let error = failure(&secure).await;
    assert!(matches!(error, LinkFailure::NeedsClear { .. }) && error.is_final(), "{error}");
    // That makes no sense over TLS.
    let error = failure(&secure).await;
    assert!(matches!(error, LinkFailure::Link { .. }), "{error}");

    let plain = SpiceServer::plain("localhost", port);
    let link = soon("a link", plain.link(0, &credentials)).await.unwrap();
    assert!(!link.secure);
    drop(link);
    let error = failure(&plain).await;
    assert!(matches!(error, LinkFailure::Link { .. }), "{error}");
    let error = failure(&plain).await;
    assert!(matches!(error, LinkFailure::NeedsTls { .. }) && error.is_final(), "{error}");
    soon("the server", serving).await.unwrap();
    assert_eq!(*tickets.lock().unwrap(), ["true", "true"]);
}
