use proptest::prelude::*;

use super::*;
use crate::parse::put_u32;
use crate::service_info::{Advert, Identity, Label, ServiceInfo, ServiceType, Txt};
use crate::testing::{hex, some_bytes, text};

fn server(kind: u16, body: &[u8]) -> Result<Option<ServerMessage<'_>>, Problem> {
    ServerMessage::parse(kind, body).map_err(|error| error.problem)
}

fn client(layout: Layout, kind: u16, body: &[u8]) -> Result<Option<ClientMessage<'_>>, Problem> {
    ClientMessage::parse(layout, kind, body).map_err(|error| error.problem)
}

fn written(message: &ClientMessage<'_>, layout: Layout) -> Vec<u8> {
    let mut out = Vec::new();
    message.write_body(layout, &mut out);
    out
}

fn server_body(message: &ServerMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.write_body(&mut out);
    out
}

fn generic(id: u32, port: u16, name: &'static [u8], description: &'static [u8]) -> ServiceAdd<'static> {
    ServiceAdd {
        kind: ServiceKind::Generic,
        service: ServiceId(id),
        group: GroupId(id),
        port,
        name,
        description,
    }
}

const SOCKET: SocketId = SocketId(0x0102);
const SERVICE: ServiceId = ServiceId(0x0a0b_0c0d);
const QUERY: QueryId = QueryId(0x0102_0304);

/// Wire reference 6.2, each message once.
#[test]
fn server_messages_are_laid_out_as_the_reference_says() {
    use ServerMessage as M;
    let address = IpInfo::V4(Ipv4Addr::new(10, 0, 2, 5));
    let cases = [
        (101, "1400 00080000", M::Init { max_sockets: 20, max_data: 2048 }),
        (102, "0d0c0b0a 0100 0a000205", M::ServiceIpMap { service: SERVICE, address }),
        (102, "0d0c0b0a 0000", M::ServiceIpMap { service: SERVICE, address: IpInfo::Invalid }),
        (103, "0201 0d0c0b0a 50000000", M::SocketOpen { socket: SOCKET, service: SERVICE, tokens: 80 }),
        (104, "0201", M::SocketFin { socket: SOCKET }),
        (105, "0201", M::SocketClose { socket: SOCKET }),
        (106, "0201 616263", M::SocketData { socket: SOCKET, payload: b"abc" }),
        (106, "0201", M::SocketData { socket: SOCKET, payload: b"" }),
        (107, "0201", M::SocketClosedAck { socket: SOCKET }),
        (108, "0201 ffffffff", M::SocketToken { socket: SOCKET, tokens: u32::MAX }),
        (109, "04030201", M::ProbeAck { id: 0x0102_0304 }),
        (110, "04030201 07 6e61732e6c616e", M::NameQuery { query: QUERY, name: "nas.lan" }),
    ];
    for (kind, bytes, message) in cases {
        let bytes = hex(bytes);
        assert_eq!(server(kind, &bytes), Ok(Some(message)));
        assert_eq!(message.kind(), kind);
        assert_eq!(message.body_len(), bytes.len());
        let mut out = Vec::new();
        message.write_body(&mut out);
        assert_eq!(out, bytes, "{}", message.name());
    }
}

/// Wire reference 6.3, each message but SERVICE_ADD once. They are the same in both layouts.
#[test]
fn client_messages_are_laid_out_as_the_reference_says() {
    use ClientMessage as M;
    let mut buffer = Vec::new();
    let info = InfoBody::write(&ServiceInfo::default(), &mut buffer);
    let found = NameAnswer::Found { group: GroupId(0x0506_0708), ttl: 60 };
    let cases = [
        (102, "0d0c0b0a", M::ServiceRemove { service: SERVICE }),
        (103, "0201 3c000000", M::SocketOpenAck { socket: SOCKET, tokens: 60 }),
        (104, "0201", M::SocketOpenNack { socket: SOCKET }),
        (105, "0201", M::SocketFin { socket: SOCKET }),
        (106, "0201", M::SocketClosed { socket: SOCKET }),
        (107, "0201", M::SocketClosedAck { socket: SOCKET }),
        (108, "0201 616263", M::SocketData { socket: SOCKET, payload: b"abc" }),
        (109, "0201 14000000", M::SocketToken { socket: SOCKET, tokens: 20 }),
        (110, "0201", M::SocketReset { socket: SOCKET }),
        (111, "04030201", M::Probe { id: 0x0102_0304 }),
        (112, "0d0c0b0a 00 00 00", M::ServiceInfo { service: SERVICE, info }),
        (113, "04030201 00 08070605 3c000000", M::NameAnswer { query: QUERY, answer: found }),
        (
            113,
            "04030201 01 00000000 00000000",
            M::NameAnswer { query: QUERY, answer: NameAnswer::NoSuchName },
        ),
        (113, "04030201 02 00000000 00000000", M::NameAnswer { query: QUERY, answer: NameAnswer::Failed }),
        (113, "04030201 03 00000000 00000000", M::NameAnswer { query: QUERY, answer: NameAnswer::Refused }),
        (114, "09 686f6d652e61727061", M::DomainAdd { name: "home.arpa" }),
        (115, "09 486f6d652e61727061", M::DomainRemove { name: "Home.arpa" }),
    ];
    for layout in [Layout::A, Layout::B] {
        for (kind, bytes, message) in cases {
            let bytes = hex(bytes);
            assert_eq!(client(layout, kind, &bytes), Ok(Some(message)));
            assert_eq!(message.kind(), kind);
            assert_eq!(message.body_len(layout), bytes.len());
            assert_eq!(written(&message, layout), bytes, "{}", message.name());
        }
    }
}

/// Wire reference 6.4, bytes that the original marshaller produced.
#[test]
fn service_add_is_as_the_original_marshaller_wrote_it() {
    let ipp = ServiceAdd {
        kind: ServiceKind::Ipp(IpInfo::V4(Ipv4Addr::new(192, 168, 7, 9))),
        ..generic(0, 631, b"lp-01", b"office printer")
    };
    let cases = [
        (
            "0100 00000000 00000000 77020000 16000000 20000000 7072696e7465722d6100 6465736300",
            generic(0, 631, b"printer-a", b"desc"),
        ),
        (
            "0200 00000000 00000000 77020000 1c000000 22000000 0100 c0a80709
             6c702d303100 6f6666696365207072696e74657200",
            ipp,
        ),
        ("0100 01000000 01000000 50000000 16000000 17000000 00 00", generic(1, 80, b"", b"")),
    ];
    for (bytes, add) in cases {
        let bytes = hex(bytes);
        let message = ClientMessage::ServiceAdd(add);
        assert_eq!(client(Layout::B, 101, &bytes), Ok(Some(message)));
        assert_eq!(written(&message, Layout::B), bytes);
        // Layout A: two more bytes of type, hence all offsets 2 more.
        let mut wide = bytes.clone();
        wide.splice(2..2, [0, 0]);
        wide[16] += 2;
        wide[20] += 2;
        assert_eq!(client(Layout::A, 101, &wide), Ok(Some(message)));
        assert_eq!(written(&message, Layout::A), wide);
        // Neither is taken for the other.
        assert!(client(Layout::A, 101, &bytes).is_err());
        assert!(client(Layout::B, 101, &wide).is_err());
    }
}

#[test]
fn other_numbers_are_no_messages_of_the_tunnel() {
    for kind in (0..=100).chain([116, 4096, u16::MAX]) {
        assert_eq!(server(kind, b"whatever"), Ok(None));
        assert_eq!(client(Layout::B, kind, b"whatever"), Ok(None));
        assert_eq!(ServerMessage::name_of(kind), None);
    }
    for kind in 111..=115 {
        assert_eq!(server(kind, b"12"), Ok(None));
    }
}

/// Every length but the right one is refused, among them zero and those of the C structs (layout C, wire reference 6.1).
#[test]
fn bodies_of_another_length_are_refused() {
    let fixed_of_server = [(101, 6), (103, 10), (104, 2), (105, 2), (107, 2), (108, 6), (109, 4)];
    let fixed_of_client = [
        (102, 4),
        (103, 6),
        (104, 2),
        (105, 2),
        (106, 2),
        (107, 2),
        (109, 6),
        (110, 2),
        (111, 4),
        (112, 7),
        (113, 13),
    ];
    let zeros = [0; 40];
    for length in 0..zeros.len() {
        let body = &zeros[..length];
        for (kind, right) in fixed_of_server {
            assert_eq!(server(kind, body).is_ok(), length == right, "{kind} with {length} bytes");
        }
        for (kind, right) in fixed_of_client {
            assert_eq!(client(Layout::B, kind, body).is_ok(), length == right, "{kind} with {length} bytes");
        }
    }
    // SOCKET_DATA needs only the number.
    assert_eq!(server(106, b"\0"), Err(Problem::Short { at: 0, got: 1 }));
    assert_eq!(client(Layout::B, 108, b""), Err(Problem::Short { at: 0, got: 0 }));
    // SERVICE_IP_MAP is as long as its address.
    assert_eq!(server(102, &hex("00000000 0100 0a0002")), Err(Problem::Short { at: 6, got: 9 }));
    assert_eq!(
        server(102, &hex("00000000 0100 0a00020500")),
        Err(Problem::Trailing { expected: 10, got: 11 })
    );
    assert_eq!(server(102, &hex("00000000 0000 0a000205")), Err(Problem::Trailing { expected: 6, got: 10 }));
    assert!(server(102, &hex("00000000 00000000 01000000 0a000205")).is_err());
}

#[test]
fn unknown_address_types_are_refused() {
    for kind in ["0200", "ffff"] {
        let body = hex(&format!("00000000 {kind} 0a000205"));
        assert!(matches!(server(102, &body), Err(Problem::Value { field: "address type", .. })));
    }
}

/// The rows about SERVICE_ADD that a hostile client could try. Layout B, fixed part 22 bytes, or 28 with an address.
#[test]
fn hostile_service_adds_are_refused() {
    let body = |kind: &str, port: &str, name: &str, description: &str, rest: &str| {
        hex(&format!("{kind} 07000000 07000000 {port} {name} {description} {rest}"))
    };
    let good = body("0100", "50000000", "16000000", "18000000", "6e00 6400");
    assert_eq!(
        client(Layout::B, 101, &good),
        Ok(Some(ClientMessage::ServiceAdd(generic(7, 80, b"n", b"d"))))
    );
    for length in 0..good.len() {
        assert!(client(Layout::B, 101, &good[..length]).is_err(), "cut to {length} bytes");
    }

    let value =
        |field| move |problem: &Problem| matches!(problem, Problem::Value { field: f, .. } if *f == field);
    let offset =
        |field| move |problem: &Problem| matches!(problem, Problem::Offset { field: f, .. } if *f == field);
    let open = |field| move |problem: &Problem| *problem == Problem::Unterminated { field };
    let short = |problem: &Problem| matches!(problem, Problem::Short { .. });
    let trailing = |problem: &Problem| matches!(problem, Problem::Trailing { .. });
    type Check<'a> = &'a dyn Fn(&Problem) -> bool;
    let cases: [(&str, Vec<u8>, Check<'_>); 25] = [
        ("type 0", body("0000", "50000000", "16000000", "17000000", "0000"), &value("type")),
        ("type 3", body("0300", "50000000", "16000000", "17000000", "0000"), &value("type")),
        ("type 65535", body("ffff", "50000000", "16000000", "17000000", "0000"), &value("type")),
        ("port 0", body("0100", "00000000", "16000000", "17000000", "0000"), &value("port")),
        ("port 65536", body("0100", "00000100", "16000000", "17000000", "0000"), &value("port")),
        ("port 2^32-1", body("0100", "ffffffff", "16000000", "17000000", "0000"), &value("port")),
        ("name at 0", body("0100", "50000000", "00000000", "16000000", "0000"), &offset("name")),
        ("name in the fixed part", body("0100", "50000000", "15000000", "16000000", "0000"), &offset("name")),
        ("name at the end", body("0100", "50000000", "18000000", "16000000", "0000"), &offset("name")),
        ("name past the end", body("0100", "50000000", "19000000", "16000000", "0000"), &offset("name")),
        ("name at 2^32-1", body("0100", "50000000", "ffffffff", "16000000", "0000"), &offset("name")),
        (
            "description at 0",
            body("0100", "50000000", "16000000", "00000000", "0000"),
            &offset("description"),
        ),
        (
            "description at 21",
            body("0100", "50000000", "16000000", "15000000", "0000"),
            &offset("description"),
        ),
        (
            "description at end",
            body("0100", "50000000", "16000000", "18000000", "0000"),
            &offset("description"),
        ),
        (
            "description at 2^32-1",
            body("0100", "50000000", "16000000", "ffffffff", "0000"),
            &offset("description"),
        ),
        ("name without NUL", body("0100", "50000000", "16000000", "16000000", "6e6e"), &open("name")),
        (
            "description without NUL",
            body("0100", "50000000", "16000000", "18000000", "6e0064"),
            &open("description"),
        ),
        ("no strings", body("0100", "50000000", "16000000", "16000000", ""), &offset("name")),
        (
            "a byte before the strings",
            body("0100", "50000000", "17000000", "18000000", "ff0000"),
            &offset("name"),
        ),
        (
            "a byte between them",
            body("0100", "50000000", "16000000", "18000000", "00ff00"),
            &offset("description"),
        ),
        ("a byte behind them", body("0100", "50000000", "16000000", "17000000", "0000ff"), &trailing),
        ("IPP without an address", body("0200", "50000000", "16000000", "16000000", ""), &short),
        (
            "IPP with address type 2",
            body("0200", "50000000", "1c000000", "1d000000", "02000a0002050000"),
            &value("address type"),
        ),
        ("IPP with half an address", body("0200", "50000000", "16000000", "16000000", "01000a"), &short),
        (
            "name in the address",
            body("0200", "50000000", "18000000", "1c000000", "01000a00020500"),
            &offset("name"),
        ),
    ];
    for (what, bytes, as_expected) in cases {
        match client(Layout::B, 101, &bytes) {
            Ok(message) => panic!("{what} was taken for {message:?}"),
            Err(problem) => assert!(as_expected(&problem), "{what}: {problem}"),
        }
    }
}

/// What the format allows although nobody sends it.
#[test]
fn strings_may_come_in_either_order_and_overlap() {
    let parse = |text: &str| match ClientMessage::parse(Layout::B, 101, &hex(text)) {
        Ok(Some(ClientMessage::ServiceAdd(add))) => (add.name.to_vec(), add.description.to_vec()),
        other => panic!("{other:?}"),
    };
    let fixed = "0100 07000000 07000000 50000000";
    assert_eq!(parse(&format!("{fixed} 18000000 16000000 6400 6e00")), (b"n".to_vec(), b"d".to_vec()));
    assert_eq!(parse(&format!("{fixed} 16000000 16000000 6e00")), (b"n".to_vec(), b"n".to_vec()));
    assert_eq!(parse(&format!("{fixed} 17000000 16000000 616200")), (b"b".to_vec(), b"ab".to_vec()));
    // An address that is not there still belongs to the fixed part.
    assert_eq!(parse("0200 07000000 07000000 ffff0000 18000000 19000000 0000 00 00"), (vec![], vec![]));
}

#[test]
fn texts_are_capped() {
    let long = vec![b'x'; 65536];
    let add = |name, description| ServiceAdd { name, description, ..generic(1, 1, b"", b"") };
    let body = |name: &[u8]| {
        let mut body = written(&ClientMessage::ServiceAdd(add(b"", b"")), Layout::B);
        body[18] += u8::try_from(name.len() % 256).unwrap();
        body[19] += u8::try_from(name.len() / 256 % 256).unwrap();
        body[20] += u8::try_from(name.len() / 65536).unwrap();
        body.splice(22..22, name.iter().copied());
        body
    };
    assert!(client(Layout::B, 101, &body(&long[..MAX_TEXT])).is_ok());
    for length in [MAX_TEXT + 1, 65536] {
        let problem = Problem::TooLong { field: "name", got: length, limit: MAX_TEXT };
        assert_eq!(client(Layout::B, 101, &body(&long[..length])), Err(problem));
    }
    // Nothing is written that would be refused.
    let message = ClientMessage::ServiceAdd(add(&long, b"before\0behind"));
    for layout in [Layout::A, Layout::B] {
        let bytes = written(&message, layout);
        assert_eq!(bytes.len(), message.body_len(layout));
        let expected = ClientMessage::ServiceAdd(add(&long[..MAX_TEXT], b"before"));
        assert_eq!(client(layout, 101, &bytes), Ok(Some(expected)));
    }
    let ipp = ServiceKind::Ipp(IpInfo::V4(Ipv4Addr::LOCALHOST));
    let longest = ClientMessage::ServiceAdd(ServiceAdd { kind: ipp, ..add(&long, &long) });
    assert!(longest.body_len(Layout::A) < MAX_CLIENT_CONTROL as usize);
    let name = [&"x".repeat(63)[..]; 4].join(".");
    let longest = ServerMessage::NameQuery { query: QUERY, name: &name[..MAX_HOST] };
    assert_eq!(u32::try_from(longest.body_len()), Ok(MAX_SERVER_CONTROL));
    assert_eq!(server(110, &server_body(&longest)), Ok(Some(longest)));
}

/// A printer that says more the larger the number is.
fn info(size: usize) -> ServiceInfo {
    let adverts = (0..size % 8).map(|nth| {
        let mut txt = Txt::default();
        for key in 0..size % 80 {
            let _ = txt.push(&format!("k{key}"), Some(&"v".repeat(size % 250)));
        }
        Advert {
            kind: ServiceType::new("_ipp._tcp").unwrap(),
            instance: Label::new(&format!("printer {nth}")).unwrap(),
            subtypes: vec![Label::new("_print").unwrap(); size % 3],
            txt,
        }
    });
    let host = Some(HostName::new("printer.local").unwrap());
    let identity = size.is_multiple_of(2).then(|| Identity::new("uuid:1").unwrap());
    ServiceInfo::new(identity, host, adverts.collect()).unwrap_or_default()
}

#[test]
fn a_service_info_is_as_long_as_it_may_be() {
    let advert = |fill: usize| {
        let mut txt = Txt::default();
        while txt.push(&format!("k{}", txt.encoded_len()), Some(&"v".repeat(100))).is_ok() {}
        let rest = fill.saturating_sub(txt.encoded_len() + 1);
        let _ = txt.push(&"k".repeat(rest.min(255)), None);
        Advert {
            kind: ServiceType::new("_ipp._tcp").unwrap(),
            instance: Label::new("p").unwrap(),
            subtypes: vec![],
            txt,
        }
    };
    // Six full adverts and one that takes up the rest.
    let mut adverts = vec![advert(1300); 6];
    let used = ServiceInfo::new(None, None, adverts.clone()).unwrap().encoded_len();
    let mut last = advert(0);
    last.txt = Txt::default();
    adverts.push(last);
    let with_last = ServiceInfo::new(None, None, adverts.clone()).unwrap().encoded_len();
    assert!(used < with_last && with_last < MAX_INFO);
    let mut missing = MAX_INFO - with_last;
    let txt = &mut adverts.last_mut().unwrap().txt;
    while missing > 0 {
        let length = if missing > 202 {
            200
        } else if missing > 101 {
            missing / 2
        } else {
            missing
        };
        let key = format!("{missing:a<0$}", length - 1);
        txt.push(&key, None).unwrap();
        missing -= length;
    }
    let info = ServiceInfo::new(None, None, adverts).unwrap();
    assert_eq!(info.encoded_len(), MAX_INFO);
    let mut buffer = Vec::new();
    let message = ClientMessage::ServiceInfo { service: SERVICE, info: InfoBody::write(&info, &mut buffer) };
    let mut body = written(&message, Layout::B);
    assert_eq!(u32::try_from(body.len()), Ok(MAX_CLIENT_CONTROL));
    match client(Layout::B, 112, &body) {
        Ok(Some(ClientMessage::ServiceInfo { info: read, .. })) => assert_eq!(read.info(), info),
        other => panic!("{other:?}"),
    }
    body.push(0);
    let problem = Problem::TooLong { field: "info", got: MAX_INFO + 1, limit: MAX_INFO };
    assert_eq!(client(Layout::B, 112, &body), Err(problem));
}

/// What a service may say of itself is tested where that is defined; here, that it is looked at, and whole.
#[test]
fn hostile_service_infos_are_refused() {
    let mut buffer = Vec::new();
    let info = InfoBody::write(&info(5), &mut buffer);
    let good = written(&ClientMessage::ServiceInfo { service: SERVICE, info }, Layout::B);
    assert!(client(Layout::B, 112, &good).is_ok());
    for length in 0..good.len() {
        assert!(client(Layout::B, 112, &good[..length]).is_err(), "cut to {length} bytes");
    }
    let longer = [&good[..], b"x"].concat();
    let trailing = Problem::Trailing { expected: good.len(), got: longer.len() };
    assert_eq!(client(Layout::B, 112, &longer), Err(trailing));
    let bell = hex("00000000 01 07 00 00");
    let error = ClientMessage::parse(Layout::B, 112, &bell).unwrap_err();
    assert_eq!(error.to_string(), "peer sent a malformed service_info: the identity is not clean UTF-8 text");
}

#[test]
fn hostile_names_are_refused() {
    let named = |head: &[u8], name: &[u8]| [head, &[u8::try_from(name.len()).unwrap()], name].concat();
    let long = "x.".repeat(126);
    let anywhere: [&[u8]; 10] = [
        b"",
        b".",
        b"a..lan",
        b"a.lan.",
        b"a b.lan",
        b"a\0.lan",
        b"a.l\xffn",
        b"*.lan",
        "a\u{202e}.lan".as_bytes(),
        long.as_bytes(),
    ];
    for name in anywhere {
        assert!(server(110, &named(&[1, 0, 0, 0], name)).is_err(), "{name:?}");
        for kind in [114, 115] {
            assert!(client(Layout::B, kind, &named(&[], name)).is_err(), "{kind} {name:?}");
        }
    }
    for name in ["nas", "nas.lan", "a.local", "1.2.3.4", "büro.lan"] {
        assert!(server(110, &named(&[1, 0, 0, 0], name.as_bytes())).is_ok(), "{name}");
    }
    assert!(server(110, &named(&[1, 0, 0, 0], b"Nas.lan")).is_err(), "not in lower case");
    for name in ["home.arpa", "Example.com", "a.test", "my.internal", "co.uk", "notlocal.lan"] {
        assert!(client(Layout::B, 114, &named(&[], name.as_bytes())).is_ok(), "{name}");
    }
    for name in [
        "com",
        "local",
        "x.Local",
        "a.b.LOCAL",
        "my.localhost",
        "a.onion",
        "a.invalid",
        "in-addr.arpa",
        "10.in-addr.arpa",
        "x.ip6.arpa",
        "10.0.0.1",
    ] {
        assert!(client(Layout::B, 114, &named(&[], name.as_bytes())).is_err(), "{name}");
    }
    for body in ["01000000", "01000000 05 6e61732e", "01000000 03 6e61732e", "01000000 00"] {
        assert!(server(110, &hex(body)).is_err(), "{body}");
    }
    let error = ClientMessage::parse(Layout::B, 114, &named(&[], b"x.local")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "peer sent a malformed domain_add: the domain is not of the form domain.top, none that every host has for itself"
    );
}

#[test]
fn hostile_name_answers_are_refused() {
    let body = |status: u8, group: u32, ttl: u32| {
        let mut body = vec![1, 0, 0, 0, status];
        put_u32(&mut body, group);
        put_u32(&mut body, ttl);
        body
    };
    assert!(client(Layout::B, 113, &body(0, u32::MAX, u32::MAX)).is_ok(), "not judged here");
    for status in [4, 255] {
        let value =
            Problem::Value { field: "status", got: status.into(), expected: "0 (found) to 3 (refused)" };
        assert_eq!(client(Layout::B, 113, &body(status, 0, 0)), Err(value));
    }
    for status in 1..=3 {
        assert!(client(Layout::B, 113, &body(status, 0, 0)).is_ok());
        assert!(client(Layout::B, 113, &body(status, 1, 0)).is_err());
        assert!(client(Layout::B, 113, &body(status, 0, 1)).is_err());
    }
}

#[test]
fn errors_say_what_was_expected_and_what_came() {
    let error = ServerMessage::parse(101, &[0; 8]).unwrap_err();
    assert_eq!(error.to_string(), "peer sent a malformed init: expected 6 bytes, got 8");
    let body = hex("0100 00000000 00000000 00000100 16000000 17000000 0000");
    let error = ClientMessage::parse(Layout::B, 101, &body);
    assert_eq!(
        error.unwrap_err().to_string(),
        "peer sent a malformed service_add: port is 65536, expected 1 to 65535"
    );
}

/// The values of a message, owned, so that a strategy can hold them.
#[derive(Debug, Clone)]
struct Values {
    socket: SocketId,
    service: ServiceId,
    group: GroupId,
    number: u32,
    port: u16,
    kind: ServiceKind,
    address: IpInfo,
    name: Vec<u8>,
    description: Vec<u8>,
    payload: Vec<u8>,
    host: String,
    answer: NameAnswer,
    info: Vec<u8>,
}

fn values() -> impl Strategy<Value = Values> {
    let address =
        prop_oneof![Just(IpInfo::Invalid), any::<u32>().prop_map(|ip| IpInfo::V4(Ipv4Addr::from_bits(ip)))];
    let kind = prop_oneof![Just(ServiceKind::Generic), address.clone().prop_map(ServiceKind::Ipp)];
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), 1_u16..);
    let texts = (text(MAX_TEXT), text(40), prop::collection::vec(any::<u8>(), 0..200));
    let answer = prop_oneof![
        (any::<u32>(), any::<u32>())
            .prop_map(|(group, ttl)| NameAnswer::Found { group: GroupId(group), ttl }),
        Just(NameAnswer::NoSuchName),
        Just(NameAnswer::Failed),
        Just(NameAnswer::Refused),
    ];
    let infos = (0..1000_usize).prop_map(|size| {
        let mut buffer = Vec::new();
        info(size).write(&mut buffer);
        buffer
    });
    (numbers, kind, address, texts, "[a-zü_-]{1,20}(\\.[a-z0-9-]{1,30}){0,4}\\.lan", answer, infos).prop_map(
        |(numbers, kind, address, texts, host, answer, info)| {
            let (socket, service, group, number, port) = numbers;
            let (name, description, payload) = texts;
            Values {
                socket: SocketId(socket),
                service: ServiceId(service),
                group: GroupId(group),
                number,
                port,
                kind,
                address,
                name,
                description,
                payload,
                host,
                answer,
                info,
            }
        },
    )
}

proptest! {
    #[test]
    fn every_server_message_survives_the_wire(v in values()) {
        let (socket, service, tokens) = (v.socket, v.service, v.number);
        let messages = [
            ServerMessage::Init { max_sockets: socket.0, max_data: tokens },
            ServerMessage::ServiceIpMap { service, address: v.address },
            ServerMessage::SocketOpen { socket, service, tokens },
            ServerMessage::SocketFin { socket },
            ServerMessage::SocketClose { socket },
            ServerMessage::SocketData { socket, payload: &v.payload },
            ServerMessage::SocketClosedAck { socket },
            ServerMessage::SocketToken { socket, tokens },
            ServerMessage::ProbeAck { id: tokens },
            ServerMessage::NameQuery { query: QueryId(tokens), name: &v.host },
        ];
        for message in messages {
            let mut out = b"before".to_vec();
            message.write_body(&mut out);
            prop_assert_eq!(out.len(), 6 + message.body_len());
            prop_assert_eq!(ServerMessage::parse(message.kind(), &out[6..]), Ok(Some(message)));
        }
    }

    #[test]
    fn every_client_message_survives_the_wire_in_both_layouts(v in values()) {
        let (socket, service, tokens) = (v.socket, v.service, v.number);
        let (name, description) = (&v.name[..], &v.description[..]);
        let (kind, group, port) = (v.kind, v.group, v.port);
        let messages = [
            ClientMessage::ServiceAdd(ServiceAdd { kind, service, group, port, name, description }),
            ClientMessage::ServiceRemove { service },
            ClientMessage::SocketOpenAck { socket, tokens },
            ClientMessage::SocketOpenNack { socket },
            ClientMessage::SocketFin { socket },
            ClientMessage::SocketClosed { socket },
            ClientMessage::SocketClosedAck { socket },
            ClientMessage::SocketData { socket, payload: &v.payload },
            ClientMessage::SocketToken { socket, tokens },
            ClientMessage::SocketReset { socket },
            ClientMessage::Probe { id: tokens },
            ClientMessage::ServiceInfo { service, info: service::info_body(&v.info).unwrap().1 },
            ClientMessage::NameAnswer { query: QueryId(tokens), answer: v.answer },
            ClientMessage::DomainAdd { name: &v.host },
            ClientMessage::DomainRemove { name: &v.host },
        ];
        for layout in [Layout::A, Layout::B] {
            for message in messages {
                let mut out = b"before".to_vec();
                message.write_body(layout, &mut out);
                prop_assert_eq!(out.len(), 6 + message.body_len(layout));
                prop_assert_eq!(ClientMessage::parse(layout, message.kind(), &out[6..]), Ok(Some(message)));
            }
        }
    }

    /// Mostly right, so that the parsers get somewhere.
    #[test]
    fn a_message_with_a_byte_changed_parses_or_is_refused(v in values(), at: prop::sample::Index, to: u8) {
        let messages = [
            ClientMessage::ServiceInfo { service: v.service, info: service::info_body(&v.info).unwrap().1 },
            ClientMessage::NameAnswer { query: QUERY, answer: v.answer },
            ClientMessage::DomainAdd { name: &v.host },
        ];
        for message in messages {
            let mut body = written(&message, Layout::B);
            let place = at.index(body.len());
            body[place] = to;
            if let Ok(Some(message)) = ClientMessage::parse(Layout::B, message.kind(), &body) {
                prop_assert_eq!(written(&message, Layout::B), &body[..]);
                if let ClientMessage::ServiceInfo { info, .. } = message {
                    let mut buffer = Vec::new();
                    let again = InfoBody::write(&info.info(), &mut buffer);
                    prop_assert_eq!(again.info(), info.info());
                }
            }
        }
        let mut body = server_body(&ServerMessage::NameQuery { query: QUERY, name: &v.host });
        let place = at.index(body.len());
        body[place] = to;
        if let Ok(Some(message)) = ServerMessage::parse(110, &body) {
            prop_assert_eq!(server_body(&message), &body[..]);
        }
    }

    /// Whatever parses is written as something that parses to the same; but for SERVICE_ADD, whose strings can be arranged
    /// otherwise, it is the same bytes.
    #[test]
    fn any_bytes_parse_or_are_refused(kind in 100_u16..116, body in some_bytes()) {
        if let Ok(Some(message)) = ServerMessage::parse(kind, &body) {
            let mut out = Vec::new();
            message.write_body(&mut out);
            prop_assert_eq!(out, &body[..]);
        }
        for layout in [Layout::A, Layout::B] {
            if let Ok(Some(message)) = ClientMessage::parse(layout, kind, &body) {
                let out = written(&message, layout);
                prop_assert_eq!(ClientMessage::parse(layout, kind, &out), Ok(Some(message)));
                prop_assert!(out == body || kind == 101);
            }
        }
    }
}
