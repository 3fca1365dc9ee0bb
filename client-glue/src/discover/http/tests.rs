use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;

const BOUNDS: Bounds = Bounds { body: 1000, time: Duration::from_secs(5) };

/// An answer in pieces of that size, and the end of the connection.
fn read(answer: &[u8], piece: usize) -> Result<Response, HttpError> {
    let mut reader = Reader::new(BOUNDS.body);
    for piece in answer.chunks(piece) {
        if let Some(response) = reader.feed(piece)? {
            return Ok(response);
        }
        assert!(reader.pending.len() < LONGEST_HEAD && reader.body.len() <= BOUNDS.body);
    }
    reader.end()
}

/// The same in pieces of any size.
fn whole(answer: &str) -> Result<(u16, String), String> {
    let results: Vec<_> = [1, 2, 3, 7, 100_000]
        .into_iter()
        .map(|piece| {
            read(answer.as_bytes(), piece)
                .map(|response| (response.status, String::from_utf8(response.body).unwrap()))
                .map_err(|error| error.to_string())
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{answer:?}: {results:?}");
    results[0].clone()
}

#[test]
fn bodies_end_as_they_say() {
    for (answer, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, not more", "hello"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        ("HTTP/1.0 200 OK\r\n\r\nuntil it closes", "until it closes"),
        ("HTTP/1.1 200\nServer: x\n\nbare", "bare"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n8;x=y\r\n, chunks\r\n0\r\nA: b\r\n\r\n",
            "hello, chunks",
        ),
        // Chunked counts more than a length.
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: CHUNKED\r\n\r\n1\na\n0\n", "a"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!",
            "!",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n!", "!"),
    ] {
        assert_eq!(whole(answer), Ok((200, body.to_owned())), "{answer:?}");
    }
    assert_eq!(whole("HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n"), Ok((204, String::new())));
    let moved = whole("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(moved, Ok((302, String::new())));
}

#[test]
fn what_is_cut_is_not_whole() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        assert_eq!(whole(answer), Err(HttpError::Closed.to_string()), "{answer:?}");
    }
}

#[test]
fn lies_are_noticed() {
    let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(65));
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000);
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1001));
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "64\r\n".to_owned() + &"x".repeat(100) + "\r\n"
    );
    let chunks = chunks.clone() + &chunks[chunks.find("64").unwrap()..].repeat(10);
    for (answer, error) in [
        (long.as_str(), "the head of the device's answer is longer than 16384 bytes"),
        (&many, "the device's answer is not HTTP: it has too many headers"),
        (&interim, "the head of the device's answer is longer than 16384 bytes"),
        (&endless, "the body of the device's answer is longer than 1000 bytes"),
        (&chunks, "the body of the device's answer is longer than 1000 bytes"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
            "the body of the device's answer is longer than 1000 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "the body of the device's answer is longer than 1000 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "the device's answer is not HTTP: its length is no number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "the device's answer is not HTTP: its length is no number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "the device's answer is not HTTP: it has two lengths",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "the device's answer is not HTTP: its transfer coding is not chunked",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
            "the device's answer is not HTTP: a chunk's size is no number",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
            "the device's answer is not HTTP: a chunk's size is no number",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            "the device's answer is not HTTP: a chunk is longer than it said",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the device's answer is not HTTP: its version is not 1.0 or 1.1"),
    ] {
        assert_eq!(whole(answer), Err(error.to_owned()), "{:.60?}", answer);
    }
    let line = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;{}", "x".repeat(1000));
    assert!(whole(&line).is_err());
}

#[test]
fn a_chunk_may_not_claim_more_than_fits() {
    // Nothing is reserved for what is only claimed.
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nabc";
    assert_eq!(whole(answer), Err(HttpError::Closed.to_string()));
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1usize..500) {
        let _ = read(&bytes, piece);
    }

    #[test]
    fn any_body_behind_a_good_head_is_the_same_in_any_pieces(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'a'), any::<u8>()], 0..300),
        piece in 1usize..50,
        chunked in any::<bool>(),
    ) {
        let head = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 7" };
        let answer = [format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes(), &bytes].concat();
        let pieces = read(&answer, piece).map_err(|error| error.to_string());
        let once = read(&answer, usize::MAX).map_err(|error| error.to_string());
        prop_assert_eq!(pieces, once);
    }
}

#[tokio::test]
async fn a_request_is_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = vec![0; 4096];
        let mut have = 0;
        while !got[..have].ends_with(b"what?") {
            have += stream.read(&mut got[have..]).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nthat").await.unwrap();
        String::from_utf8(got[..have].to_vec()).unwrap()
    });
    let request = Request { host: "printer.local:80", path: "/a?b=c", post: Some(("text/plain", b"what?")) };
    let answer = fetch(address, request, BOUNDS).await.unwrap();
    assert_eq!(answer.success().unwrap(), b"that");
    let expected = "POST /a?b=c HTTP/1.1\r\nHost: printer.local:80\r\nConnection: close\r\nContent-Type: text/plain\r\n\
                    Content-Length: 5\r\n\r\nwhat?";
    assert_eq!(server.await.unwrap(), expected);
}

#[tokio::test]
async fn lines_cannot_be_slipped_in() {
    for (host, path) in
        [("a\r\nB: c", "/"), ("", "/"), ("a b", "/"), ("a", "/ HTTP/1.1\r\n"), ("a", "b"), ("a", "")]
    {
        let request = Request { host, path, post: None };
        let (ours, _theirs) = tokio::io::duplex(10);
        let error = exchange(ours, request, BOUNDS).await.unwrap_err();
        assert!(matches!(error, HttpError::Request(_)), "{host:?} {path:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_and_dribbling_end_in_time() {
    let request = Request { host: "a", path: "/", post: None };
    let (ours, theirs) = tokio::io::duplex(100);
    assert!(matches!(exchange(ours, request, BOUNDS).await, Err(HttpError::Late(_))));
    drop(theirs);
    let (ours, mut theirs) = tokio::io::duplex(100);
    tokio::spawn(async move {
        let _ = theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(matches!(exchange(ours, request, BOUNDS).await, Err(HttpError::Late(_))));
}

#[tokio::test]
async fn a_refusal_before_all_was_read_is_heard() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let device = tokio::spawn(async move {
        let mut few = [0; 10];
        theirs.read_exact(&mut few).await.unwrap();
        theirs.write_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    let post = vec![b'x'; 10_000];
    let request = Request { host: "a", path: "/", post: Some(("text/plain", &post)) };
    let answer = exchange(ours, request, BOUNDS).await.unwrap();
    assert!(matches!(answer.success(), Err(HttpError::Status(413))));
    device.await.unwrap();
}
