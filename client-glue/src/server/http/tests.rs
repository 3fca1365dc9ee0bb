use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;

fn fed(pieces: &[&[u8]]) -> Progress {
    let mut head = Head::default();
    let mut progress = Progress::More;
    for piece in pieces {
        assert!(matches!(progress, Progress::More), "it was over before {piece:?}");
        progress = head.feed(piece);
    }
    progress
}

fn done(bytes: &[u8]) -> (u16, String, usize) {
    match fed(&[bytes]) {
        Progress::Done { status, reason, used } => (status, reason, used),
        other @ (Progress::More | Progress::Failed(_)) => panic!("{other:?}"),
    }
}

#[test]
fn answers() {
    let yes = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nREDQ";
    assert_eq!(done(yes), (200, "Connection established".to_owned(), yes.len() - 4));
    assert_eq!(done(b"HTTP/1.0 200\r\n\r\n").0, 200);
    assert_eq!(done(b"HTTP/1.1 200 \n\n").0, 200);
    assert_eq!(done(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 Who?\r\n\r\n").0, 407);
    assert_eq!(done(b"HTTP/1.1 502 a\x1b[31mb\r\n\r\n").1, "a\u{fffd}[31mb");
    for wrong in [
        b"REDQ".as_slice(),
        b"SSH-2.0-x\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.x 200 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ] {
        assert!(matches!(fed(&[wrong]), Progress::Failed(ProxyFailure::NotHttp { .. })), "{wrong:?}");
    }
}

#[test]
fn heads_end() {
    let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 9000]].concat();
    assert!(matches!(fed(&[&long]), Progress::Failed(ProxyFailure::TooLong { .. })));
    // Nor can many short ones go on for ever.
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
    assert!(matches!(fed(&[&interim]), Progress::Failed(ProxyFailure::TooLong { .. })));
}

proptest! {
    #[test]
    fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..200), http in any::<bool>()) {
        let bytes = if http { [b"HTTP/1.1 ".as_slice(), &bytes].concat() } else { bytes };
        if let Progress::Done { used, .. } = fed(&[&bytes]) {
            prop_assert!(used <= bytes.len());
        }
    }

    #[test]
    fn pieces_make_no_difference(cut in 0usize..46, status in 200u16..600) {
        let whole = format!("HTTP/1.1 {status} Some words\r\nA: b\r\nC: d\r\n\r\nrest");
        let (first, second) = whole.as_bytes().split_at(cut.min(whole.len() - 5));
        let Progress::Done { status: got, used, .. } = fed(&[first, second]) else { panic!("not done") };
        prop_assert_eq!((got, first.len() + used), (status, whole.len() - 4));
    }

    #[test]
    fn a_request_has_one_target(host in r"[ -~\r\n]{0,30}", user in r"[ -~\r\n]{0,10}") {
        let proxy = HttpProxy { user: Some((user, "secret".to_owned())), ..HttpProxy::new("proxy", 3128) };
        if let Ok(request) = request(&proxy, &host, 5900) {
            prop_assert_eq!(request.matches("\r\n").count(), 4);
            prop_assert_eq!(request.matches('\n').count(), 4);
        }
    }
}

#[tokio::test]
async fn what_follows_the_head_is_left_in_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let user = Some(("Aladdin".to_owned(), "open sesame".to_owned()));
    let proxy = HttpProxy { user, ..HttpProxy::new("proxy", 3128) };
    let asking = tokio::spawn(async move { connect(client, &proxy, "2001:db8::1", 5901).await });
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(server.read_u8().await.unwrap());
    }
    assert_eq!(
        std::str::from_utf8(&asked).unwrap(),
        "CONNECT [2001:db8::1]:5901 HTTP/1.1\r\nHost: [2001:db8::1]:5901\r\n\
         Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
    );
    for piece in ["HTTP/1.1 200", " OK\r\nA: b\r", "\n\r\nfirst ", "words"] {
        server.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(server);
    let mut rest = String::new();
    asking.await.unwrap().unwrap().read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "first words");
}
