//! Peers that mean harm: the lists "as server" and "as client", and random nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proptest::prelude::*;
use spice_proto::base::{BaseClientMessage, BaseServerMessage, Disconnecting, MigrateFlags, Wait};
use spice_proto::frame::{Frame, HeaderForm};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{
    ClientMessage, GroupId, IpInfo, Layout, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

use super::{new_service, said};
use crate::{Channel, Config, Event, OpenError, ResetCause, Role, ServiceFault, SocketViolation, Violation};

const ID: SocketId = SocketId(0);
const SERVICE: ServiceId = ServiceId(0);

/// What a message led to, without what it borrowed.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Nothing,
    /// Whatever its numbers.
    Event,
    Ends(SocketViolation),
    Aborted,
    Fatal(Violation),
    /// A body that does not parse.
    Malformed,
}
use Outcome::{Aborted, Ends, Fatal, Malformed, Nothing};

fn frame(kind: u16, body: &[u8]) -> Frame<'_> {
    Frame { serial: None, kind, sub_list: 0, body }
}

fn outcome(heard: Result<Option<Event<'_>>, Violation>) -> Outcome {
    match heard {
        Ok(None) => Nothing,
        Ok(Some(Event::Reset { cause: ResetCause::Violation(violation), .. })) => Ends(violation),
        Ok(Some(Event::Reset { .. })) => Aborted,
        Ok(Some(_)) => Outcome::Event,
        Err(Violation::Malformed(_)) => Malformed,
        Err(violation) => Fatal(violation),
    }
}

fn hear(channel: &mut Channel, kind: u16, body: &[u8]) -> Outcome {
    let outcome = outcome(channel.handle_frame(Instant::now(), frame(kind, body)));
    assert_eq!(channel.has_ended(), matches!(outcome, Fatal(_) | Malformed), "{outcome:?}");
    outcome
}

fn from_client(channel: &mut Channel, message: ClientMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(channel.terms.layout, &mut body);
    hear(channel, message.kind(), &body)
}

fn from_server(channel: &mut Channel, message: ServerMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(&mut body);
    hear(channel, message.kind(), &body)
}

fn base_from_server(channel: &mut Channel, message: &BaseServerMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(&mut body);
    hear(channel, message.kind(), &body)
}

fn new(role: Role, caps: TunnelCaps, config: Config) -> Channel {
    let mut channel = Channel::new(role, HeaderForm::Mini, Layout::B, caps, config, Instant::now());
    said(&mut channel);
    channel
}

fn service_add(id: u32, group: u32, name: &'static [u8]) -> ServiceAdd<'static> {
    ServiceAdd {
        kind: ServiceKind::Generic,
        service: ServiceId(id),
        group: GroupId(group),
        port: 631,
        name,
        description: b"",
    }
}

/// A server with one service.
fn server(caps: TunnelCaps) -> Channel {
    let mut server = new(Role::Server, caps, Config { window: 4, max_data: 3000, ..Config::default() });
    let heard = from_client(&mut server, ClientMessage::ServiceAdd(service_add(0, 0, b"printer")));
    assert_eq!(heard, Outcome::Event);
    server
}

/// A server whose socket 0 was accepted with so many tokens.
fn open_server(caps: TunnelCaps, tokens: u32) -> Channel {
    let mut server = server(caps);
    assert_eq!(server.open(SERVICE), Ok(ID));
    let heard = from_client(&mut server, ClientMessage::SocketOpenAck { socket: ID, tokens });
    assert_eq!(heard, Outcome::Event);
    said(&mut server);
    server
}

fn init(max_sockets: u16, max_data: u32) -> ServerMessage<'static> {
    ServerMessage::Init { max_sockets, max_data }
}

/// A client with one service, of a server with 20 sockets.
fn client(caps: TunnelCaps) -> Channel {
    let mut client = new(Role::Client, caps, Config { window: 4, ..Config::default() });
    assert_eq!(from_server(&mut client, init(20, 2048)), Outcome::Event);
    assert_eq!(client.add_service(new_service(0, b"printer")), Ok(SERVICE));
    said(&mut client);
    client
}

fn open(socket: u16, service: u32, tokens: u32) -> ServerMessage<'static> {
    ServerMessage::SocketOpen { socket: SocketId(socket), service: ServiceId(service), tokens }
}

fn open_client(caps: TunnelCaps, tokens: u32) -> Channel {
    let mut client = client(caps);
    assert_eq!(from_server(&mut client, open(0, 0, tokens)), Outcome::Event);
    client.accept(ID);
    said(&mut client);
    client
}

fn every_client_message(socket: SocketId) -> Vec<ClientMessage<'static>> {
    vec![
        ClientMessage::SocketOpenAck { socket, tokens: 1 },
        ClientMessage::SocketOpenNack { socket },
        ClientMessage::SocketFin { socket },
        ClientMessage::SocketClosed { socket },
        ClientMessage::SocketData { socket, payload: b"x" },
        ClientMessage::SocketToken { socket, tokens: 1 },
        ClientMessage::SocketReset { socket },
        ClientMessage::SocketClosedAck { socket },
    ]
}

fn every_server_message(socket: SocketId) -> Vec<ServerMessage<'static>> {
    vec![
        ServerMessage::SocketOpen { socket, service: SERVICE, tokens: 1 },
        ServerMessage::SocketFin { socket },
        ServerMessage::SocketClose { socket },
        ServerMessage::SocketData { socket, payload: b"x" },
        ServerMessage::SocketToken { socket, tokens: 1 },
        ServerMessage::SocketClosedAck { socket },
    ]
}

#[test]
fn server_ids_out_of_range_end_the_channel() {
    for (caps, limit) in [(TunnelCaps::OURS, 16_384), (TunnelCaps::RESET, 20)] {
        for id in [limit, limit + 1, u16::MAX] {
            let socket = SocketId(id);
            for message in every_client_message(socket) {
                let heard = from_client(&mut open_server(caps, 1), message);
                let fault = Violation::SocketOutOfRange { message: message.name(), socket, limit };
                assert_eq!(heard, Fatal(fault));
            }
        }
    }
}

#[test]
fn server_free_ids_end_the_channel_but_for_closed_ack() {
    for id in [1, 19] {
        let socket = SocketId(id);
        for message in every_client_message(socket) {
            let heard = from_client(&mut open_server(TunnelCaps::OURS, 1), message);
            if message.name() == "socket_closed_ack" {
                assert_eq!(heard, Nothing);
            } else {
                assert_eq!(heard, Fatal(Violation::NoSuchSocket { message: message.name(), socket }));
            }
        }
    }
}

#[test]
fn server_faults_on_one_socket() {
    let data = |payload| ClientMessage::SocketData { socket: ID, payload };
    let token = |tokens| ClientMessage::SocketToken { socket: ID, tokens };
    let fin = ClientMessage::SocketFin { socket: ID };
    let closed = ClientMessage::SocketClosed { socket: ID };
    let unexpected = |message, state| Ends(SocketViolation::Unexpected { message, state });
    let long = vec![7; 3001];
    let longest = &long[..3000];
    // What a client sends after OPEN_ACK with 1 token, and what the last of it leads to.
    let table: Vec<(Vec<ClientMessage<'_>>, Outcome)> = vec![
        (vec![data(b"")], Nothing),
        (vec![data(b""); 4], Nothing),
        (vec![data(b"x"); 4], Outcome::Event),
        (vec![data(b"x"); 5], Ends(SocketViolation::NoCredit)),
        (vec![data(longest)], Outcome::Event),
        (vec![data(&long)], Ends(SocketViolation::TooLong { length: 3001, limit: 3000 })),
        (vec![fin, fin], unexpected("socket_fin", "open, the peer finished")),
        (vec![fin, data(b"x")], unexpected("socket_data", "open, the peer finished")),
        (vec![fin, data(b"")], unexpected("socket_data", "open, the peer finished")),
        (vec![ClientMessage::SocketOpenAck { socket: ID, tokens: 1 }], unexpected("socket_open_ack", "open")),
        (vec![ClientMessage::SocketOpenNack { socket: ID }], unexpected("socket_open_nack", "open")),
        (vec![ClientMessage::SocketClosedAck { socket: ID }], unexpected("socket_closed_ack", "open")),
        (vec![closed], Aborted),
        (vec![closed, closed], Fatal(Violation::NoSuchSocket { message: "socket_closed", socket: ID })),
        (vec![token(0)], Nothing),
        (vec![token(u32::MAX - 1)], Nothing),
        (vec![token(u32::MAX)], Ends(SocketViolation::CreditOverflow { had: 1, granted: u32::MAX })),
        (
            vec![token(1), token(u32::MAX - 1)],
            Ends(SocketViolation::CreditOverflow { had: 2, granted: u32::MAX - 1 }),
        ),
    ];
    for (messages, expected) in table {
        let mut server = open_server(TunnelCaps::OURS, 1);
        // Another socket must not notice, whatever happens on the first.
        let other = server.open(SERVICE).unwrap();
        from_client(&mut server, ClientMessage::SocketOpenAck { socket: other, tokens: 5 });
        said(&mut server);
        let mut last = Nothing;
        for message in &messages {
            last = from_client(&mut server, *message);
        }
        assert_eq!(last, expected, "{messages:?}");
        match expected {
            Ends(_) => {
                assert_eq!(said(&mut server).last().unwrap(), "S socket_close 0");
                // All that was on its way is dropped, and the one answer frees the id.
                for message in [data(b"late"), token(9), fin, closed] {
                    assert_eq!(from_client(&mut server, message), Nothing);
                }
                let ack = ClientMessage::SocketClosedAck { socket: ID };
                assert_eq!(from_client(&mut server, ack), Nothing);
                assert_eq!(said(&mut server), [""; 0]);
                assert_eq!(server.open(SERVICE), Ok(ID));
                assert_eq!(server.credit(other), 5);
            }
            Nothing | Outcome::Event | Aborted => assert_eq!(server.credit(other), 5),
            Fatal(_) | Malformed => assert_eq!(server.sockets(), 0),
        }
    }
}

#[test]
fn server_answers_with_any_number_of_tokens() {
    for tokens in [0, 1, u32::MAX] {
        let mut server = open_server(TunnelCaps::OURS, tokens);
        assert_eq!(server.credit(ID), tokens);
        let sent = server.send(ID, |room| {
            room[0] = 1;
            1
        });
        assert_eq!(sent, usize::from(tokens > 0));
    }
}

#[test]
fn server_eighty_first_message_of_an_old_client() {
    let mut server = open_server(TunnelCaps::empty(), 60);
    for _ in 0..80 {
        let heard = from_client(&mut server, ClientMessage::SocketData { socket: ID, payload: &[1; 2048] });
        assert_eq!(heard, Outcome::Event);
    }
    let heard = from_client(&mut server, ClientMessage::SocketData { socket: ID, payload: b"x" });
    assert_eq!(heard, Ends(SocketViolation::NoCredit));
    let mut server = open_server(TunnelCaps::empty(), 60);
    let heard = from_client(&mut server, ClientMessage::SocketData { socket: ID, payload: &[1; 2049] });
    assert_eq!(heard, Ends(SocketViolation::TooLong { length: 2049, limit: 2048 }));
    assert!(server.max_body() > 2 + 2049, "one byte too long must reach the socket, not break the frame");
}

#[test]
fn server_words_that_were_not_negotiated() {
    let reset = ClientMessage::SocketReset { socket: ID };
    let remove = ClientMessage::ServiceRemove { service: SERVICE };
    for (caps, message) in [(TunnelCaps::EXTENDED, reset), (TunnelCaps::EXTENDED, remove)] {
        let heard = from_client(&mut open_server(caps, 1), message);
        assert_eq!(heard, Fatal(Violation::NotNegotiated { message: message.name() }));
    }
    // Layout A had no capabilities, whatever the words say.
    let config = Config::default();
    let mut old =
        Channel::new(Role::Server, HeaderForm::Full, Layout::A, TunnelCaps::OURS, config, Instant::now());
    assert_eq!(from_client(&mut old, remove), Fatal(Violation::NotNegotiated { message: "service_remove" }));
}

#[test]
fn server_services() {
    let mut server = server(TunnelCaps::OURS);
    let mut add = |service, group, name: &'static [u8]| {
        let message = ClientMessage::ServiceAdd(service_add(service, group, name));
        let mut body = Vec::new();
        message.write_body(Layout::B, &mut body);
        match server.handle_frame(Instant::now(), frame(message.kind(), &body)) {
            Ok(Some(Event::ServiceAdded(_))) => Ok(()),
            Ok(Some(Event::ServiceRejected { fault, .. })) => Err(fault),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(add(0, 0, b"printer"), Err(ServiceFault::DuplicateId));
    assert_eq!(add(0, 5, b"other"), Err(ServiceFault::DuplicateId));
    assert_eq!(add(1, 0, b"scanner"), Err(ServiceFault::NameMismatch));
    assert_eq!(add(1, 0, b""), Err(ServiceFault::NameMismatch));
    assert_eq!(add(1, 0, b"printer"), Ok(()));
    assert_eq!(add(u32::MAX, u32::MAX, b""), Ok(()));
    assert_eq!(server.open(ServiceId(2)), Err(OpenError::UnknownService { service: ServiceId(2) }));
    // A name is forgotten with the last of its group.
    for service in [0, 1] {
        let remove = ClientMessage::ServiceRemove { service: ServiceId(service) };
        assert_eq!(from_client(&mut server, remove), Outcome::Event);
        assert_eq!(from_client(&mut server, remove), Nothing, "it may have been rejected");
    }
    let heard = from_client(&mut server, ClientMessage::ServiceAdd(service_add(0, 0, b"scanner")));
    assert_eq!(heard, Outcome::Event);
}

#[test]
fn server_ten_thousand_services() {
    let mut server = server(TunnelCaps::OURS);
    let mut taken = 1;
    for id in 1..10_000 {
        let add = ClientMessage::ServiceAdd(service_add(id, id, b"printer"));
        let mut body = Vec::new();
        add.write_body(Layout::B, &mut body);
        match server.handle_frame(Instant::now(), frame(add.kind(), &body)).unwrap() {
            Some(Event::ServiceAdded(_)) => taken += 1,
            Some(Event::ServiceRejected { fault: ServiceFault::TooMany { limit: 1024 }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, 1024);
    assert_eq!(server.open(ServiceId(1023)), Ok(ID));
}

#[test]
fn server_bodies_of_other_layouts() {
    let c_open_ack = [0, 0, 0, 0, 60, 0, 0, 0];
    let b_service: Vec<u8> = {
        let mut body = Vec::new();
        ClientMessage::ServiceAdd(service_add(1, 1, b"lp")).write_body(Layout::B, &mut body);
        body
    };
    let a_service: Vec<u8> = {
        let mut body = Vec::new();
        ClientMessage::ServiceAdd(service_add(1, 1, b"lp")).write_body(Layout::A, &mut body);
        body
    };
    assert_eq!(hear(&mut open_server(TunnelCaps::OURS, 1), 103, &c_open_ack), Malformed);
    assert_eq!(hear(&mut open_server(TunnelCaps::OURS, 1), 109, &c_open_ack), Malformed);
    assert_eq!(hear(&mut open_server(TunnelCaps::OURS, 1), 101, &a_service), Malformed);
    let mut old = Channel::new(
        Role::Server,
        HeaderForm::Full,
        Layout::A,
        TunnelCaps::empty(),
        Config::default(),
        Instant::now(),
    );
    assert_eq!(hear(&mut old, 101, &a_service), Outcome::Event);
    assert_eq!(hear(&mut old, 101, &b_service), Malformed);
}

#[test]
fn server_base_messages() {
    let base: Vec<(BaseClientMessage<'_>, Outcome)> = vec![
        (BaseClientMessage::AckSync { generation: 7 }, Nothing),
        (BaseClientMessage::Ack, Nothing),
        (BaseClientMessage::Pong { id: 1, timestamp: 2 }, Nothing),
        (BaseClientMessage::MigrateFlushMark, Nothing),
        (BaseClientMessage::MigrateData { data: b"TMDA" }, Nothing),
        (BaseClientMessage::Disconnecting(Disconnecting { time_stamp: 1, reason: 2 }), Outcome::Event),
    ];
    let mut server = open_server(TunnelCaps::OURS, 1);
    for (message, expected) in base {
        let mut body = Vec::new();
        message.write_body(&mut body);
        for _ in 0..3 {
            assert_eq!(hear(&mut server, message.kind(), &body), expected, "{message:?}");
        }
    }
    assert_eq!(said(&mut server), [""; 0]);
    assert_eq!(server.rtt(), None);
}

#[test]
fn unknown_messages() {
    for kind in (7..=100).chain(111..=130).chain([0, 1000, u16::MAX]) {
        let heard = hear(&mut open_server(TunnelCaps::OURS, 1), kind, b"x");
        assert_eq!(heard, Fatal(Violation::UnknownMessage { kind }));
    }
    // A server may be newer than we are.
    let mut client = open_client(TunnelCaps::OURS, 1);
    for kind in (9..=100).chain(109..=130).chain([0, 1000, u16::MAX]) {
        assert_eq!(hear(&mut client, kind, b"x"), Nothing);
    }
    assert_eq!(said(&mut client), [""; 0]);
}

#[test]
fn client_inits() {
    let table = [
        (init(0, 1), Outcome::Event),
        (init(u16::MAX, 1 << 20), Outcome::Event),
        (init(20, 0), Fatal(Violation::InitData { got: 0, limit: 1 << 20 })),
        (init(20, (1 << 20) + 1), Fatal(Violation::InitData { got: (1 << 20) + 1, limit: 1 << 20 })),
        (init(20, u32::MAX), Fatal(Violation::InitData { got: u32::MAX, limit: 1 << 20 })),
    ];
    for (message, expected) in table {
        let mut client = new(Role::Client, TunnelCaps::OURS, Config::default());
        assert_eq!(client.max_data(), 0);
        assert_eq!(from_server(&mut client, message), expected, "{message:?}");
        if expected == Outcome::Event {
            assert_eq!(from_server(&mut client, message), Fatal(Violation::InitTwice));
        }
    }
    // No more than we bear to write, no more than the server said.
    let mut client = new(Role::Client, TunnelCaps::OURS, Config::default());
    from_server(&mut client, init(20, 1 << 20));
    assert_eq!((client.max_data(), client.max_body()), (32_768, (1 << 20) + 1024));
    let mut client = new(Role::Client, TunnelCaps::OURS, Config::default());
    from_server(&mut client, init(20, 100));
    assert_eq!(client.max_data(), 100);
}

#[test]
fn client_hears_nothing_of_the_tunnel_before_init() {
    let map = ServerMessage::ServiceIpMap { service: SERVICE, address: IpInfo::Invalid };
    for message in every_server_message(ID).into_iter().chain([map]) {
        let mut client = new(Role::Client, TunnelCaps::OURS, Config::default());
        let heard = from_server(&mut client, message);
        assert_eq!(heard, Fatal(Violation::BeforeInit { message: message.name() }));
    }
    let mut client = new(Role::Client, TunnelCaps::OURS, Config::default());
    assert!(client.add_service(new_service(0, b"early")).is_err());
    let ping = BaseServerMessage::Ping { id: 1, timestamp: 2, padding: b"" };
    assert_eq!(base_from_server(&mut client, &ping), Nothing);
    assert_eq!(said(&mut client), ["C pong"]);
}

#[test]
fn client_ids_out_of_range_or_free_end_the_channel() {
    for id in [20, 21, u16::MAX] {
        let socket = SocketId(id);
        for message in every_server_message(socket) {
            let heard = from_server(&mut open_client(TunnelCaps::OURS, 1), message);
            let fault = Violation::SocketOutOfRange { message: message.name(), socket, limit: 20 };
            assert_eq!(heard, Fatal(fault));
        }
    }
    let socket = SocketId(19);
    for message in every_server_message(socket) {
        let heard = from_server(&mut open_client(TunnelCaps::OURS, 1), message);
        match message.name() {
            "socket_open" => assert_eq!(heard, Outcome::Event),
            "socket_closed_ack" => assert_eq!(heard, Nothing),
            message => assert_eq!(heard, Fatal(Violation::NoSuchSocket { message, socket })),
        }
    }
}

#[test]
fn client_faults_on_one_socket() {
    let data = |payload| ServerMessage::SocketData { socket: ID, payload };
    let token = |tokens| ServerMessage::SocketToken { socket: ID, tokens };
    let fin = ServerMessage::SocketFin { socket: ID };
    let close = ServerMessage::SocketClose { socket: ID };
    let unexpected = |message, state| Ends(SocketViolation::Unexpected { message, state });
    let long = vec![7; 2049];
    let table: Vec<(Vec<ServerMessage<'_>>, Outcome)> = vec![
        (vec![data(b"")], Nothing),
        (vec![data(b"x"); 4], Outcome::Event),
        (vec![data(b"x"); 5], Ends(SocketViolation::NoCredit)),
        (vec![data(&long[..2048])], Outcome::Event),
        (vec![data(&long)], Ends(SocketViolation::TooLong { length: 2049, limit: 2048 })),
        (vec![fin, fin], unexpected("socket_fin", "open, the peer finished")),
        (vec![fin, data(b"x")], unexpected("socket_data", "open, the peer finished")),
        (vec![fin, close, data(b"late"), token(1), fin], Nothing),
        (vec![fin, close, close], unexpected("socket_close", "closed by the peer")),
        (vec![ServerMessage::SocketClosedAck { socket: ID }], unexpected("socket_closed_ack", "open")),
        (vec![close], Aborted),
        (vec![close, close], Fatal(Violation::NoSuchSocket { message: "socket_close", socket: ID })),
        (vec![open(0, 0, 1)], Fatal(Violation::SocketInUse { socket: ID })),
        (vec![token(0)], Nothing),
        (vec![token(u32::MAX)], Ends(SocketViolation::CreditOverflow { had: 1, granted: u32::MAX })),
        (vec![token(u32::MAX - 1), token(1)], {
            Ends(SocketViolation::CreditOverflow { had: u32::MAX, granted: 1 })
        }),
    ];
    for caps in [TunnelCaps::OURS, TunnelCaps::EXTENDED] {
        for (messages, expected) in &table {
            let mut client = open_client(caps, 1);
            let mut last = Nothing;
            for message in messages {
                last = from_server(&mut client, *message);
            }
            assert_eq!(last, *expected, "{messages:?}");
        }
    }
}

#[test]
fn client_faults_before_the_connect_completes() {
    let unexpected = |message| Ends(SocketViolation::Unexpected { message, state: "opening" });
    let table = [
        (ServerMessage::SocketData { socket: ID, payload: b"x" }, unexpected("socket_data")),
        (ServerMessage::SocketFin { socket: ID }, unexpected("socket_fin")),
        (ServerMessage::SocketToken { socket: ID, tokens: 1 }, unexpected("socket_token")),
        (ServerMessage::SocketClose { socket: ID }, Aborted),
        (open(0, 0, 1), Fatal(Violation::SocketInUse { socket: ID })),
    ];
    for (message, expected) in table {
        let mut client = client(TunnelCaps::OURS);
        assert_eq!(from_server(&mut client, open(0, 0, 1)), Outcome::Event);
        assert_eq!(from_server(&mut client, message), expected);
        assert_eq!(client.sockets(), 0);
        // The dial ends some time later; its owner may not have heard yet.
        said(&mut client);
        client.accept(ID);
        client.refuse(ID);
        assert_eq!(said(&mut client), [""; 0]);
    }
}

#[test]
fn client_ids_reused_too_early() {
    let mut client = open_client(TunnelCaps::OURS, 1);
    client.reset(ID);
    // The CLOSED_ACK for the old socket is still owed.
    assert_eq!(from_server(&mut client, open(0, 0, 1)), Fatal(Violation::SocketInUse { socket: ID }));
}

#[test]
fn client_never_opens_what_it_does_not_offer() {
    let mut client = client(TunnelCaps::OURS);
    for service in [1, 2, u32::MAX] {
        assert_eq!(from_server(&mut client, open(3, service, 1)), Nothing);
        assert_eq!(said(&mut client), ["C socket_open_nack 3"]);
    }
    client.remove_service(SERVICE);
    said(&mut client);
    assert_eq!(from_server(&mut client, open(3, 0, 1)), Nothing);
    assert_eq!(said(&mut client), ["C socket_open_nack 3"]);
    assert_eq!(client.sockets(), 0);
}

#[test]
fn client_open_flood() {
    let config = Config { max_sockets: 100, ..Config::default() };
    let mut client = new(Role::Client, TunnelCaps::OURS, config);
    from_server(&mut client, init(u16::MAX, 2048));
    client.add_service(new_service(0, b"printer")).unwrap();
    said(&mut client);
    let mut opened = 0;
    for id in 0..u16::MAX {
        match from_server(&mut client, open(id, 0, u32::MAX)) {
            Outcome::Event => opened += 1,
            Nothing => assert_eq!(said(&mut client), [format!("C socket_open_nack {id}")]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((opened, client.sockets()), (100, 100));
}

#[test]
fn client_addresses() {
    let map = |service, address| ServerMessage::ServiceIpMap { service: ServiceId(service), address };
    let address = IpInfo::V4([198, 18, 0, 9].into());
    let mut client = client(TunnelCaps::OURS);
    assert_eq!(from_server(&mut client, map(0, address)), Outcome::Event);
    assert_eq!(from_server(&mut client, map(0, IpInfo::Invalid)), Nothing);
    let second = client.add_service(new_service(1, b"scanner")).unwrap();
    client.remove_service(second);
    assert_eq!(from_server(&mut client, map(1, address)), Nothing, "it was removed meanwhile");
    let never = Violation::NeverAnnounced { service: ServiceId(2) };
    assert_eq!(from_server(&mut client, map(2, address)), Fatal(never));
    for body in [&[0, 0, 0, 0, 2, 0, 1, 2, 3, 4][..], &[0, 0, 0, 0, 1, 0, 1, 2, 3], &[0, 0, 0, 0]] {
        assert_eq!(hear(&mut self::client(TunnelCaps::OURS), 102, body), Malformed);
    }
}

#[test]
fn client_base_messages() {
    let mut client = open_client(TunnelCaps::OURS, 1);
    let padding = vec![0; 60_000];
    let ping = BaseServerMessage::Ping { id: 5, timestamp: 6, padding: &padding };
    assert_eq!(base_from_server(&mut client, &ping), Nothing);
    assert_eq!(client.outgoing(), [&[3, 0, 12, 0, 0, 0, 5, 0, 0, 0, 6][..], &[0; 7]].concat());
    said(&mut client);
    let waits = vec![Wait { channel_type: 7, channel_id: 0, serial: u64::MAX }; 255];
    assert_eq!(base_from_server(&mut client, &BaseServerMessage::WaitForChannels { waits }), Nothing);
    // A notice of an unknown severity, one that runs past its end, and none at all.
    let mut notice = vec![0; 24];
    notice[8] = 9;
    assert_eq!(hear(&mut client, 7, &notice), Nothing);
    notice[20] = 200;
    assert_eq!(hear(&mut client, 7, &notice), Nothing);
    assert_eq!(hear(&mut client, 7, b""), Nothing);
    assert_eq!(base_from_server(&mut client, &BaseServerMessage::MigrateData { data: b"TMDA" }), Nothing);
    let goodbye = BaseServerMessage::Disconnecting(Disconnecting { time_stamp: 0, reason: 3 });
    assert_eq!(base_from_server(&mut client, &goodbye), Outcome::Event);
    assert_eq!(said(&mut client), [""; 0]);
    for short in [&b""[..], &[0; 11]] {
        assert_eq!(hear(&mut open_client(TunnelCaps::OURS, 1), 4, short), Malformed);
    }
    assert_eq!(hear(&mut open_client(TunnelCaps::OURS, 1), 5, &[255, 7, 0]), Malformed);
}

#[test]
fn client_acks() {
    let set_ack = |window| BaseServerMessage::SetAck { generation: 1, window };
    let token = ServerMessage::SocketToken { socket: ID, tokens: 0 };
    for (window, acked) in [(0, 0), (1, 10), (3, 3), (u32::MAX, 0)] {
        let mut client = open_client(TunnelCaps::OURS, 1);
        base_from_server(&mut client, &set_ack(window));
        assert_eq!(said(&mut client), ["C ack_sync"]);
        for _ in 0..10 {
            from_server(&mut client, token);
        }
        assert_eq!(said(&mut client), vec!["C ack"; acked]);
        // Again, with another window: this one counts for the old one.
        base_from_server(&mut client, &set_ack(5));
        let mut said = said(&mut client);
        assert_eq!(said.pop().unwrap(), "C ack_sync");
        assert_eq!(said.len(), usize::from(window == 1));
    }
}

#[test]
fn client_message_lists() {
    let list = hear(&mut open_client(TunnelCaps::OURS, 1), 8, &[0, 0]);
    assert_eq!(list, Fatal(Violation::SubMessages { kind: 8 }));
    assert_eq!(hear(&mut open_client(TunnelCaps::OURS, 1), 8, &[255, 255]), Malformed);
    for sub_list in [1, u32::MAX] {
        let mut client = open_client(TunnelCaps::OURS, 1);
        let carrier = Frame { serial: Some(9), kind: 104, sub_list, body: &[0, 0] };
        let heard = outcome(client.handle_frame(Instant::now(), carrier));
        assert_eq!(heard, Fatal(Violation::SubMessages { kind: 104 }));
        // Old clients leave garbage there, and no server looks.
        let mut server = open_server(TunnelCaps::OURS, 1);
        let carrier = Frame { kind: 105, ..carrier };
        assert_eq!(outcome(server.handle_frame(Instant::now(), carrier)), Outcome::Event);
    }
}

#[test]
fn migration_closes_everything_in_every_state() {
    for flags in [MigrateFlags::empty(), MigrateFlags::NEED_FLUSH, MigrateFlags::all()] {
        let mut client = client(TunnelCaps::OURS);
        for id in 0..6 {
            from_server(&mut client, open(id, 0, 9));
        }
        let fin = |id| ServerMessage::SocketFin { socket: SocketId(id) };
        for id in 1..6 {
            client.accept(SocketId(id));
        }
        client.finish(SocketId(2));
        from_server(&mut client, fin(3));
        from_server(&mut client, fin(4));
        from_server(&mut client, ServerMessage::SocketClose { socket: SocketId(4) });
        client.reset(SocketId(5));
        from_server(&mut client, ServerMessage::SocketData { socket: SocketId(1), payload: b"x" });
        assert_eq!((client.sockets(), client.waiting()), (6, 1));
        said(&mut client);
        let mut body = Vec::new();
        BaseServerMessage::Migrate { flags }.write_body(&mut body);
        let heard = client.handle_frame(Instant::now(), frame(1, &body));
        assert_eq!(heard, Ok(Some(Event::Migrate)));
        assert!(client.has_ended() && !client.is_ready());
        assert_eq!((client.sockets(), client.waiting()), (0, 0));
        let marked =
            if flags.contains(MigrateFlags::NEED_FLUSH) { vec!["C migrate_flush_mark"] } else { vec![] };
        assert_eq!(said(&mut client), marked);
        // Nothing comes of anything after that.
        for id in 0..6 {
            client.accept(SocketId(id));
            client.close(SocketId(id));
            assert_eq!(client.send(SocketId(id), |_| 1), 0);
        }
        assert!(client.add_service(new_service(9, b"late")).is_err());
        let data = ServerMessage::SocketData { socket: SocketId(1), payload: b"x" };
        let mut body = Vec::new();
        data.write_body(&mut body);
        assert_eq!(client.handle_frame(Instant::now(), frame(data.kind(), &body)), Ok(None));
        assert_eq!(said(&mut client), [""; 0]);
    }
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    let mut client = open_client(TunnelCaps::OURS, u32::MAX);
    // Its owner has been careless too, which makes the test shorter.
    while client.outgoing_len() < 16_000_000 {
        client.send(ID, |room| room.len());
    }
    assert!(client.is_congested());
    let mut body = Vec::new();
    BaseServerMessage::Ping { id: 1, timestamp: 1, padding: &[] }.write_body(&mut body);
    for _ in 0..2_000_000 {
        match client.handle_frame(Instant::now(), frame(4, &body)) {
            Ok(None) => {}
            Err(Violation::NotReading { queued, limit }) => {
                assert!(queued < limit + 100 && limit < 32 << 20);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("{} bytes are queued", client.outgoing_len());
}

#[test]
fn every_kind_with_every_short_body() {
    for fill in [0, 1, 0xff] {
        let body = [fill; 64];
        for kind in (0..=130).chain([u16::MAX]) {
            for length in (0..=body.len()).filter(|length| *length < 16 || length % 8 < 3) {
                for mut channel in [open_server(TunnelCaps::OURS, 1), open_client(TunnelCaps::OURS, 1)] {
                    let heard = channel.handle_frame(Instant::now(), frame(kind, &body[..length]));
                    assert!(heard.is_ok() || channel.has_ended());
                    assert!(channel.sockets() <= 2 && channel.outgoing_len() < 100);
                }
            }
        }
    }
}

/// One thing out of the blue: a message of the peer or a command of the owner.
type Nonsense = (u8, u8, u8, u8);

fn nonsense() -> impl Strategy<Value = Vec<Nonsense>> {
    prop::collection::vec((0u8..16, 0u8..5, any::<u8>(), any::<u8>()), 0..200)
}

/// What the owner may believe, checked against every event.
#[derive(Default)]
struct Belief {
    offered: BTreeSet<u32>,
    /// Sockets in the owner's hands, and the messages that wait.
    held: BTreeMap<SocketId, u32>,
    given_up: bool,
}

impl Belief {
    fn hear(&mut self, event: &Event<'_>, window: u32) {
        match event {
            Event::Open { socket, service } => {
                assert!(self.offered.contains(&service.0), "never offered");
                assert_eq!(self.held.insert(*socket, 0), None);
            }
            Event::Data { socket, payload } => {
                assert!(!payload.is_empty());
                let waiting = self.held.get_mut(socket).expect("data for a socket of the owner");
                *waiting += 1;
                assert!(*waiting <= window);
            }
            Event::Refused { socket } | Event::Reset { socket, .. } => {
                assert!(self.held.remove(socket).is_some(), "gone twice");
            }
            Event::Accepted { socket }
            | Event::Finished { socket }
            | Event::Writable { socket }
            | Event::PeerClosed { socket } => assert!(self.held.contains_key(socket)),
            Event::Migrate => self.held.clear(),
            Event::ServiceAdded(_)
            | Event::ServiceRejected { .. }
            | Event::ServiceRemoved { .. }
            | Event::ServiceMapped { .. }
            | Event::Ready { .. }
            | Event::Disconnecting { .. } => {}
        }
    }

    fn command(&mut self, channel: &mut Channel, which: u8, socket: SocketId, amount: u8) {
        let role = channel.role();
        match which {
            0 if role == Role::Client => channel.accept(socket),
            1 if role == Role::Client => {
                if channel.table.get(socket).is_some_and(|s| s.state_name() == "opening") {
                    self.held.remove(&socket);
                }
                channel.refuse(socket);
            }
            2 => {
                channel.close(socket);
                self.held.remove(&socket);
            }
            3 => {
                channel.reset(socket);
                self.held.remove(&socket);
            }
            4 => channel.finish(socket),
            5 => {
                if let Some(waiting) = self.held.get_mut(&socket) {
                    let messages = (*waiting).min(u32::from(amount) % 4);
                    *waiting -= messages;
                    channel.delivered(socket, messages);
                }
            }
            6 => {
                channel.send(socket, |room| room.len().min(usize::from(amount)));
            }
            _ if role == Role::Server => {
                if let Ok(socket) = channel.open(ServiceId(0)) {
                    assert_eq!(self.held.insert(socket, 0), None, "an id was given out twice");
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_to_a_server(all: bool, budget in 0usize..3000, nonsense in nonsense()) {
        let caps = if all { TunnelCaps::OURS } else { TunnelCaps::EXTENDED };
        let config = Config { window: 3, max_sockets: 4, max_data: 100, memory_budget: budget, ..Config::default() };
        let mut server = new(Role::Server, caps, config);
        from_client(&mut server, ClientMessage::ServiceAdd(service_add(0, 0, b"printer")));
        let mut belief = Belief::default();
        for (kind, id, amount, more) in nonsense {
            let socket = SocketId(u16::from(id));
            if amount % 2 == 0 {
                belief.command(&mut server, kind % 8, socket, more);
            } else {
                let payload = [more; 101];
                let messages = [
                    ClientMessage::SocketOpenAck { socket, tokens: u32::from(more % 4) },
                    ClientMessage::SocketOpenNack { socket },
                    ClientMessage::SocketFin { socket },
                    ClientMessage::SocketClosed { socket },
                    ClientMessage::SocketData { socket, payload: &payload[..usize::from(more).min(101)] },
                    ClientMessage::SocketToken { socket, tokens: u32::from(more) << (more % 32) },
                    ClientMessage::SocketReset { socket },
                    ClientMessage::SocketClosedAck { socket },
                    ClientMessage::SocketOpenAck { socket, tokens: 2 },
                    ClientMessage::SocketData { socket, payload: b"some" },
                ];
                let message = messages[usize::from(kind) % messages.len()];
                let mut body = Vec::new();
                message.write_body(Layout::B, &mut body);
                match server.handle_frame(Instant::now(), frame(message.kind(), &body)) {
                    Ok(Some(event)) => belief.hear(&event, 3),
                    Ok(None) => {}
                    Err(_) => belief.given_up = true,
                }
            }
            if belief.given_up {
                prop_assert_eq!(server.sockets(), 0);
                break;
            }
            let owned = belief.held.keys().filter(|id| server.table.get(**id).is_some_and(|s| s.is_owned()));
            prop_assert_eq!(owned.count(), belief.held.len());
            prop_assert!(server.sockets() <= 4 && server.waiting() <= 2 * budget.max(100));
        }
    }

    #[test]
    fn nonsense_to_a_client(all: bool, budget in 0usize..3000, nonsense in nonsense()) {
        let caps = if all { TunnelCaps::OURS } else { TunnelCaps::EXTENDED };
        let config = Config { window: 3, max_sockets: 4, max_data: 100, memory_budget: budget, ..Config::default() };
        let mut client = new(Role::Client, caps, config);
        from_server(&mut client, init(6, 100));
        client.add_service(new_service(0, b"printer")).unwrap();
        client.add_service(new_service(1, b"scanner")).unwrap();
        client.remove_service(ServiceId(1));
        let mut belief = Belief { offered: BTreeSet::from([0]), ..Belief::default() };
        for (kind, id, amount, more) in nonsense {
            let socket = SocketId(u16::from(id));
            if amount % 2 == 0 {
                belief.command(&mut client, kind % 8, socket, more);
            } else {
                let payload = [more; 101];
                let messages = [
                    ServerMessage::SocketOpen { socket, service: ServiceId(u32::from(more % 3)), tokens: 2 },
                    ServerMessage::SocketFin { socket },
                    ServerMessage::SocketClose { socket },
                    ServerMessage::SocketData { socket, payload: &payload[..usize::from(more).min(101)] },
                    ServerMessage::SocketToken { socket, tokens: u32::from(more) << (more % 32) },
                    ServerMessage::SocketClosedAck { socket },
                    ServerMessage::ServiceIpMap { service: ServiceId(u32::from(more % 2)), address: IpInfo::Invalid },
                    ServerMessage::SocketData { socket, payload: b"some" },
                ];
                let message = messages[usize::from(kind) % messages.len()];
                let mut body = Vec::new();
                message.write_body(&mut body);
                match client.handle_frame(Instant::now(), frame(message.kind(), &body)) {
                    Ok(Some(event)) => belief.hear(&event, 3),
                    Ok(None) => {}
                    Err(_) => belief.given_up = true,
                }
            }
            if belief.given_up {
                prop_assert_eq!(client.sockets(), 0);
                break;
            }
            let owned = belief.held.keys().filter(|id| client.table.get(**id).is_some_and(|s| s.is_owned()));
            prop_assert_eq!(owned.count(), belief.held.len());
            prop_assert!(client.sockets() <= 6 && client.waiting() <= 2 * budget.max(100));
        }
    }
}
