//! A hostile server, seen by a client: the list of "Tunnel, as client", and the rows of wire-reference 6.9 that are faults.

use std::time::Instant;

use spice_proto::base::{BaseServerMessage, Disconnecting, MigrateFlags, Wait};
use spice_proto::frame::Frame;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{IpInfo, ServerMessage, ServiceId, SocketId};

use super::hostile::*;
use super::{new_service, said};
use crate::{Config, Event, Role, SocketViolation, Violation};

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
