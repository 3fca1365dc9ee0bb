//! A hostile client, seen by a server: the list of "Tunnel, as server", and the rows of wire-reference 6.8 that are faults.

use std::time::Instant;

use spice_proto::base::{BaseClientMessage, Disconnecting};
use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ClientMessage, Layout, ServiceId, SocketId};

use super::hostile::*;
use super::said;
use crate::{Channel, Config, Event, OpenError, Role, ServiceFault, SocketViolation, Violation};

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
