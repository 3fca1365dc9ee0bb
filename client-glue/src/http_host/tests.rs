use proptest::prelude::*;

use super::exercise::{HOST, Outcome, through};
use super::*;

/// The same at every place where two messages may part, and for messages of a byte.
fn everywhere(input: &[u8]) -> Outcome {
    let bytewise = through(input.chunks(1));
    for at in 0..=input.len() {
        let (one, two) = input.split_at(at);
        let outcome = through([one, two]);
        assert_eq!(outcome.fault, bytewise.fault, "split at {at}");
        match outcome.fault {
            None => assert_eq!(outcome.written, bytewise.written, "split at {at}"),
            // What stood in the same message as the fault is not written.
            Some(_) => assert!(bytewise.written.starts_with(&outcome.written), "split at {at}"),
        }
    }
    bytewise
}

fn becomes(input: &str, expected: &str) {
    let outcome = everywhere(input.as_bytes());
    assert_eq!(outcome.fault, None, "{input:?}");
    assert_eq!(String::from_utf8(outcome.written).unwrap(), expected);
    // What was rewritten is right.
    let again = through([expected.as_bytes()]);
    assert_eq!((again.fault, again.written.as_slice()), (None, expected.as_bytes()));
}

fn passes(input: &str) {
    becomes(input, input);
}

#[test]
fn the_host_is_the_services_own_and_nothing_else_changes() {
    becomes(
        "GET /printers/a?b=c HTTP/1.1\r\nUser-Agent: x y\r\nHost: printer.local:631\r\nAccept: */*\r\n\r\n",
        "GET /printers/a?b=c HTTP/1.1\r\nUser-Agent: x y\r\nHost: localhost:631\r\nAccept: */*\r\n\r\n",
    );
    // Any case, any white space, any line end, and no value at all.
    becomes("GET / HTTP/1.1\r\nhOsT:printer  \r\n\r\n", "GET / HTTP/1.1\r\nhOsT: localhost:631\r\n\r\n");
    becomes("GET / HTTP/1.1\nHOST: \t p\t\nA: b\n\n", "GET / HTTP/1.1\nHOST: localhost:631\nA: b\n\n");
    becomes("GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost:631\r\n\r\n");
    becomes("GET / HTTP/1.1\r\nHost: [fe80::1]:631\n\r\n", "GET / HTTP/1.1\r\nHost: localhost:631\n\r\n");
    // Names that begin or end like one that matters, and the name in other places.
    passes(
        "GET /Host: HTTP/1.1\r\nX-Host: a\r\nHosts: a\r\nHos: a\r\nReferer: http://printer.local/\r\n\r\n",
    );
    passes("GET / HTTP/1.1\r\nTransfer-Encodings: a\r\nA-Name-Longer-Than-Those: host: b\r\nA:\r\n\r\n");
}

#[test]
fn a_missing_host_is_added_where_it_may_be_missing() {
    becomes("GET / HTTP/1.0\r\nA: b\r\n\r\n", "GET / HTTP/1.0\r\nA: b\r\nHost: localhost:631\r\n\r\n");
    becomes("GET / HTTP/1.0\n\n", "GET / HTTP/1.0\nHost: localhost:631\n\n");
    becomes("GET / HTTP/1.0\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\r\nHost: localhost:631\r\n\r\n");
    // The service is to say what is wrong with it.
    passes("GET / HTTP/1.1\r\nA: b\r\n\r\n");
}

#[test]
fn a_target_in_absolute_form_has_the_host_too() {
    for (target, expected) in [
        ("http://printer.local:631/ipp/print", "http://localhost:631/ipp/print"),
        ("HTTPS://u:p@printer.local", "HTTPS://localhost:631"),
        ("ipp://[fe80::1]:631?a=http://b/", "ipp://localhost:631?a=http://b/"),
        ("http://#", "http://localhost:631#"),
        // Those have no authority.
        ("*", "*"),
        ("/http://printer.local/", "/http://printer.local/"),
        ("a", "a"),
        ("a/b://c", "a/b://c"),
        ("a:b://c", "a:b://c"),
        ("mailto:a@b", "mailto:a@b"),
        ("://a", "://a"),
        ("1http://a", "1http://a"),
        ("http:/a", "http:/a"),
        ("http:", "http:"),
        ("a-scheme-that-is-long://a", "a-scheme-that-is-long://a"),
    ] {
        becomes(
            &format!("POST {target} HTTP/1.1\r\nHost: printer.local\r\n\r\n"),
            &format!("POST {expected} HTTP/1.1\r\nHost: localhost:631\r\n\r\n"),
        );
    }
}

#[test]
fn no_protocol_is_changed_to() {
    becomes(
        "OPTIONS * HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: TLS/1.2,TLS/1.1,TLS/1.0\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: localhost:631\r\n\r\n",
    );
    becomes(
        "GET / HTTP/1.1\r\nHost: a\r\nUPGRADE: h2c\r\nConnection: Keep-Alive , Upgrade,HTTP2-Settings\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost:631\r\nConnection: Keep-Alive, HTTP2-Settings\r\n\r\n",
    );
    passes("GET / HTTP/1.1\r\nHost: localhost:631\r\nconnection:  keep-alive ,Te\t\r\nUpgrade-A: b\r\n\r\n");
}

#[test]
fn the_next_request_is_found_behind_every_body() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let got = "GET / HTTP/1.1\r\nHost: localhost:631\r\n\r\n";
    let body = "Host: a\r\n\r\nGET / HTTP/1.1\r\n";
    let chunks = "c;ext=\"1;2\"\r\nHost: a\r\n\r\nG\r\n00001 \t\r\n\n\r\nA ;x\r\n0123456789\r\n000;y\r\nHost: a\r\nT: u\r\n\r\n";
    for (head, body) in [
        ("Content-Length: 27\r\nExpect: 100-continue", body),
        ("content-length:\t0027 ", body),
        ("Content-Length: 0", ""),
        ("Expect: 100-continue", ""),
        ("Transfer-Encoding: chunked\r\nTrailer: T", chunks),
        ("TRANSFER-ENCODING:Chunked\t", "0\r\n\r\n"),
        // Some old clients send an empty line behind a body.
        ("Content-Length: 1", "x\r\n"),
        ("A: b", "\n\n\r\n"),
    ] {
        becomes(
            &format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}{get}{get}"),
            &format!("POST / HTTP/1.1\r\nHost: localhost:631\r\n{head}\r\n\r\n{body}{got}{got}"),
        );
    }
    let zeros = "0".repeat(40);
    passes(&format!(
        "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{zeros}1\r\nx\r\n{zeros}\r\n\r\nP / HTTP/1.1\r\n"
    ));
    passes(&format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\nGET /", u64::MAX));
}

#[test]
fn what_can_be_read_in_two_ways_or_not_at_all_is_refused() {
    use HttpFault::*;
    let chunked = |body: &str| format!("P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let head = |lines: &str| format!("POST / HTTP/1.1\r\n{lines}\r\n\r\n");
    let long = "x".repeat(MAX_HELD + 1);
    let cases: Vec<(String, HttpFault)> = vec![
        ("\x16\x03\x01\x02\0\x01".into(), Tls),
        ("\x01".into(), NotHttp),
        (" GET / HTTP/1.1\r\n".into(), NotHttp),
        ("GET\r\n".into(), NotHttp),
        ("GET /\r\n".into(), NotHttp),
        ("GET http://\r\n".into(), NotHttp),
        ("GET http://a\r\n".into(), NotHttp),
        ("GET  / HTTP/1.1\r\n".into(), NotHttp),
        ("GET /  HTTP/1.1\r\n".into(), NotHttp),
        ("GET / HTTP/1.1 \r\n".into(), NotHttp),
        ("GET / HTTP/2.0\r\n".into(), NotHttp),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), NotHttp),
        ("GET / HTTP/1.\r\n".into(), NotHttp),
        ("GET / HTTP/1.x\r\n".into(), NotHttp),
        ("GET / http/1.1\r\n".into(), NotHttp),
        ("GET /\ta HTTP/1.1\r\n".into(), NotHttp),
        (format!("{} / HTTP/1.1\r\n", "G".repeat(33)), NotHttp),
        ("\x1b%-12345X@PJL\r\n".into(), NotHttp),
        ("%!PS-Adobe-3.0\r\n".into(), NotHttp),
        ("CONNECT a:1 HTTP/1.1\r\n".into(), Connect),
        (head("no colon"), Field),
        (head("no-colon"), Field),
        (head("a-name-that-is-so-long-that-it-does-not-matter"), Field),
        (head(": a"), Field),
        (head("Host : a"), Field),
        (head("A name that is long and has spaces: a"), Field),
        (head("H\u{f6}st: a"), Field),
        (head(" Host: a"), Folded),
        (head("Host: a\r\n b"), Folded),
        (head("A: b\r\n\tc"), Folded),
        (head("Upgrade: b\r\n c"), Folded),
        (head("Content-Length: 1\r\n 2"), Folded),
        (head("A: b\rHost: c"), BareReturn),
        ("GET / HTTP/1.1\r\r\n".into(), BareReturn),
        ("\rGET / HTTP/1.1\r\n".into(), BareReturn),
        (head("A: \0"), Null),
        (head("Host: a\r\nhost: a"), HostTwice),
        (head("Content-Length: 5\r\nContent-Length: 5"), LengthTwice),
        (head("Content-Length: 5, 5"), Length),
        (head("Content-Length: +5"), Length),
        (head("Content-Length: -5"), Length),
        (head("Content-Length: 0x5"), Length),
        (head("Content-Length: 5 5"), Length),
        (head("Content-Length:"), Length),
        (head("Content-Length: 18446744073709551616"), Length),
        (head("Content-Length: 5\r\nTransfer-Encoding: chunked"), LengthAndEncoding),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 0"), LengthAndEncoding),
        (head("Transfer-Encoding: gzip, chunked"), Encoding),
        (head("Transfer-Encoding: chunked, chunked"), Encoding),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Encoding),
        (head("Transfer-Encoding: identity"), Encoding),
        (head("Transfer-Encoding: \x0bchunked"), Encoding),
        (head("Transfer-Encoding:"), Encoding),
        ("P / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Encoding),
        (head(&format!("Connection: {long}")), TooLong),
        (head(&format!("Content-Length: {long}")), TooLong),
        (head(&format!("Transfer-Encoding: {long}")), TooLong),
        (chunked("\r\n"), Chunk),
        (chunked("-1\r\n"), Chunk),
        (chunked("0x1\r\n"), Chunk),
        (chunked("1 1\r\n"), Chunk),
        (chunked("1\nx\r\n"), Chunk),
        (chunked("1;a\nx\r\n"), Chunk),
        (chunked("1\r\r"), Chunk),
        (chunked("1\r\nxy"), Chunk),
        (chunked("1\r\nx\n"), Chunk),
        (chunked("1\r\nx\r0"), Chunk),
        (chunked("10000000000000000\r\n"), Chunk),
        (chunked("0\r\n\n"), Chunk),
        (chunked("0\r\nA: b\n"), Chunk),
        (chunked("0\r\nA: b\rc"), Chunk),
        (chunked("0\r\n\rG"), Chunk),
    ];
    for (input, fault) in cases {
        let outcome = everywhere(input.as_bytes());
        assert_eq!(outcome.fault, Some(fault), "{input:?}");
        let written = String::from_utf8(outcome.written).unwrap();
        let whole = written.contains("\r\n\r\n");
        assert!(fault == Chunk || !whole, "{input:?} reached the service with a whole head: {written:?}");
    }
}

#[test]
fn an_end_in_the_middle_takes_along_what_is_held() {
    for input in [
        "",
        "\r",
        "GE",
        "POST /ipp HT",
        "GET ht",
        "GET / HTTP/1.1\r\nHos",
        "GET / HTTP/1.1\r\nA: b\r",
        "GET / HTTP/1.1\r\nContent-Length: 1",
        "GET / HTTP/1.1\r\nConnection: upgrade",
        "GET / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    ] {
        passes(input);
    }
    becomes("GET / HTTP/1.1\r\nHost: abc", "GET / HTTP/1.1\r\nHost: localhost:631");
}

#[test]
fn a_head_may_be_long_and_costs_nothing() {
    let line = |n: usize| format!("X-Line-{n}: {}\r\n", "v".repeat(1000));
    let lines: String = (0..300).map(line).collect();
    let long = "u".repeat(100_000);
    let input =
        format!("GET /{long} HTTP/1.1\r\n{lines}Host: {long}\r\nUpgrade: {long}\r\nA{long}: b\r\n\r\n");
    let expected = format!("GET /{long} HTTP/1.1\r\n{lines}Host: localhost:631\r\nA{long}: b\r\n\r\n");
    for size in [1, 7, 4096, input.len()] {
        let outcome = through(input.as_bytes().chunks(size));
        assert_eq!(outcome.fault, None);
        assert!(outcome.written == expected.as_bytes(), "in pieces of {size}");
    }
}

/// A request, and what is to become of it, put together side by side.
fn request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let line_end = prop_oneof![Just("\r\n"), Just("\n")];
    let target = prop_oneof![
        Just(("/".to_owned(), "/".to_owned())),
        "[a-z/?:]{0,20}".prop_map(|path| (format!("/{path}"), format!("/{path}"))),
        "[a-z:.@0-9]{0,20}".prop_map(|host| (format!("http://{host}/x"), format!("http://{HOST}/x"))),
    ];
    let field = prop_oneof![
        4 => "X-[A-Za-z]{1,30}: ?[ -~]{0,40}".prop_map(Some),
        1 => "[Uu]pgrade: ?[a-z/,]{0,20}".prop_map(|_| None),
    ];
    let fields = prop::collection::vec(field, 0..6);
    let body = prop_oneof![
        Just(None),
        prop::collection::vec(any::<u8>(), 0..600).prop_map(|body| Some((false, vec![body]))),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)
            .prop_map(|chunks| Some((true, chunks))),
    ];
    let host = prop_oneof![Just(None), "[a-z.:0-9]{0,30}".prop_map(Some)];
    (target, fields, host, any::<bool>(), body, line_end).prop_map(
        |(target, fields, host, is_1_0, body, end)| {
            let (mut input, mut output) = (Vec::new(), Vec::new());
            let is_1_0 = is_1_0 && !matches!(body, Some((true, _)));
            let version = if is_1_0 { "HTTP/1.0" } else { "HTTP/1.1" };
            input.extend(format!("POST {} {version}{end}", target.0).bytes());
            output.extend(format!("POST {} {version}{end}", target.1).bytes());
            let mut both = |line: &str| {
                input.extend(line.bytes());
                output.extend(line.bytes());
            };
            for field in fields.iter().flatten() {
                both(&format!("{field}{end}"));
            }
            match &body {
                None => {}
                Some((true, _)) => both(&format!("transfer-Encoding: chunked{end}")),
                Some((false, body)) => both(&format!("Content-length:{}{end}", body[0].len())),
            }
            for _ in fields.iter().filter(|field| field.is_none()) {
                input.extend(format!("Upgrade: TLS/1.0{end}Connection: Upgrade{end}").bytes());
            }
            if let Some(host) = &host {
                input.extend(format!("Host: {host}{end}").bytes());
            }
            if host.is_some() || is_1_0 {
                output.extend(format!("Host: {HOST}{end}").bytes());
            }
            let mut both = |bytes: &[u8]| {
                input.extend(bytes);
                output.extend(bytes);
            };
            both(end.as_bytes());
            match &body {
                None => {}
                Some((true, chunks)) => {
                    for chunk in chunks {
                        both(format!("{:X};a=b\r\n", chunk.len()).as_bytes());
                        both(chunk);
                        both(b"\r\n");
                    }
                    both(b"0\r\nHost: a\r\n\r\n");
                }
                Some((false, body)) => both(&body[0]),
            }
            (input, output)
        },
    )
}

proptest! {
    #[test]
    fn any_requests_in_any_pieces(requests in prop::collection::vec(request(), 1..5), sizes in prop::collection::vec(1usize..400, 1..40)) {
        let input: Vec<u8> = requests.iter().flat_map(|(input, _)| input.clone()).collect();
        let expected: Vec<u8> = requests.iter().flat_map(|(_, output)| output.clone()).collect();
        let (mut pieces, mut left, mut sizes) = (Vec::new(), input.as_slice(), sizes.iter().cycle());
        while !left.is_empty() {
            let (piece, rest) = left.split_at((*sizes.next().unwrap()).min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        let outcome = through(pieces);
        prop_assert_eq!(outcome.fault, None);
        prop_assert!(outcome.written == expected, "{:?}\nbecame\n{:?}", String::from_utf8_lossy(&input), String::from_utf8_lossy(&outcome.written));
    }

    #[test]
    fn any_bytes_in_any_pieces(input in "([GP] |HTTP/1.1|http://|Host:|Connection: |upgrade|Transfer-Encoding: |Content-Length: |chunked|[0-9a]|\r\n|\n| |,|:|;|/|\r){0,60}", size in 1usize..20) {
        let input = input.as_bytes();
        let (whole, bytewise) = (through([input]), through(input.chunks(1)));
        let pieces = through(input.chunks(size));
        prop_assert_eq!(&pieces.fault, &bytewise.fault);
        prop_assert_eq!(&whole.fault, &bytewise.fault);
        if bytewise.fault.is_none() {
            prop_assert_eq!(&pieces, &bytewise);
            prop_assert_eq!(&whole, &bytewise);
            prop_assert_eq!(&through([whole.written.as_slice()]), &whole);
        }
    }
}
