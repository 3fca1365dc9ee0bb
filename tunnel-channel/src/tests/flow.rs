//! Credit, memory, and what DATA looks like on the wire.

use std::time::{Duration, Instant};

use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{Layout, ServiceId, SocketId};

use super::{new_service, said};
use crate::pair::{Pair, Setup};
use crate::{Channel, Config, Event, ResetCause, Role, TimeoutReason, Violation};

const ID: SocketId = SocketId(0);

/// A pair with so many open sockets, 0 and up, and nothing in the logs.
fn open(setup: &Setup, sockets: u16) -> Pair {
    let mut pair = Pair::new(setup);
    pair.settle(4096, |_, _| {}).unwrap();
    pair.client.add_service(new_service(0, b"printer")).unwrap();
    pair.settle(4096, |_, _| {}).unwrap();
    for id in 0..sockets {
        assert_eq!(pair.server.open(ServiceId(0)), Ok(SocketId(id)));
    }
    pair.settle(4096, |channel, event| match event {
        Event::Open { socket, .. } => channel.accept(socket),
        Event::Accepted { .. } => {}
        other => panic!("{other:?}"),
    })
    .unwrap();
    pair.wire.clear();
    pair
}

fn send(channel: &mut Channel, socket: SocketId, length: usize) -> usize {
    channel.send(socket, |room| {
        room[..length].fill(7);
        length
    })
}

/// Settles and gives what passed and what was heard, without data.
fn settle(pair: &mut Pair) -> (Vec<String>, Vec<String>) {
    let mut heard = Vec::new();
    pair.settle(4096, |channel, event| match event {
        Event::Data { .. } => {}
        event => heard.push(format!("{:?} {event:?}", channel.role())),
    })
    .unwrap();
    (std::mem::take(&mut pair.wire), heard)
}

#[test]
fn data_bytes() {
    for (header, expected) in [
        (HeaderForm::Mini, vec![106, 0, 7, 0, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o']),
        (
            HeaderForm::Full,
            [&[3, 0, 0, 0, 0, 0, 0, 0, 106, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], b"hello"].concat(),
        ),
    ] {
        let mut pair = open(&Setup { header, ..Setup::default() }, 1);
        let sent = pair.server.send(ID, |room| {
            assert_eq!(room.len(), 32_768);
            room[..5].copy_from_slice(b"hello");
            5
        });
        assert_eq!(sent, 5);
        // INIT and OPEN had serials 1 and 2.
        assert_eq!(pair.server.outgoing(), expected);
        assert_eq!(pair.server.outgoing_len(), expected.len());
        pair.server.sent(3);
        assert_eq!(pair.server.outgoing(), &expected[3..]);
    }
    let mut pair = open(&Setup::default(), 1);
    assert_eq!(send(&mut pair.client, ID, 1), 1);
    assert_eq!(pair.client.outgoing(), [108, 0, 3, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn nothing_to_send_costs_nothing() {
    let mut pair = open(&Setup::default(), 1);
    assert_eq!(pair.server.send(ID, |_| 0), 0);
    assert_eq!((pair.server.credit(ID), pair.server.outgoing_len()), (64, 0));
    // A closure that claims to have filled more than there is room gets what there is.
    assert_eq!(pair.server.send(ID, |_| usize::MAX), 32_768);
    for _ in 0..63 {
        assert_eq!(send(&mut pair.server, ID, 1), 1);
    }
    assert_eq!(pair.server.send(ID, |_| panic!("room without credit")), 0);
    assert_eq!(pair.server.send(SocketId(1), |_| panic!("room without a socket")), 0);
}

#[test]
fn a_modern_peer_returns_a_quarter_of_its_window() {
    for (window, portion) in [(64, 16), (8, 2), (5, 1), (3, 1), (1, 1)] {
        let config = Config { window, ..Config::default() };
        let mut pair = open(&Setup { client: config, ..Setup::default() }, 1);
        for _ in 0..window {
            send(&mut pair.server, ID, 10);
        }
        assert_eq!(send(&mut pair.server, ID, 10), 0);
        settle(&mut pair);
        for _ in 1..portion {
            pair.client.delivered(ID, 1);
            assert_eq!(settle(&mut pair), (vec![], vec![]), "window {window}");
        }
        pair.client.delivered(ID, 1);
        let (wire, heard) = settle(&mut pair);
        assert_eq!(wire, [format!("C socket_token 0 tokens {portion}")]);
        assert_eq!(heard, ["Server Writable { socket: SocketId(0) }"]);
        assert_eq!(pair.server.credit(ID), portion);
    }
}

#[test]
fn historical_numbers_are_exact() {
    for layout in [Layout::A, Layout::B] {
        // Whatever is configured, and whatever capabilities a peer of layout A seems to have.
        let caps = if layout == Layout::A { TunnelCaps::OURS } else { TunnelCaps::empty() };
        let mut pair = open(&Setup { caps, layout, ..Setup::historical() }, 20);
        assert_eq!(pair.server.open(ServiceId(0)), Err(crate::OpenError::Full { limit: 20 }));
        assert_eq!((pair.server.max_data(), pair.client.max_data()), (2048, 2048));
        assert_eq!((pair.server.credit(ID), pair.client.credit(ID)), (60, 80));
        for (from, to, tokens, letter) in
            [(Role::Server, Role::Client, 60, 'C'), (Role::Client, Role::Server, 80, 'S')]
        {
            for _ in 0..tokens {
                assert_eq!(send(pair.end(from), ID, 2048), 2048);
            }
            assert_eq!(send(pair.end(from), ID, 1), 0);
            settle(&mut pair);
            pair.end(to).delivered(ID, 19);
            assert_eq!(settle(&mut pair).0, [""; 0]);
            pair.end(to).delivered(ID, 1);
            assert_eq!(settle(&mut pair).0, [format!("{letter} socket_token 0 tokens 20")]);
            pair.end(to).delivered(ID, tokens - 20);
            let portions = (tokens as usize - 20) / 20;
            assert_eq!(settle(&mut pair).0, vec![format!("{letter} socket_token 0 tokens 20"); portions]);
            assert_eq!(pair.end(from).credit(ID), tokens);
        }
        // SERVICE_REMOVE is never said.
        pair.client.remove_service(ServiceId(0));
        assert_eq!(settle(&mut pair).0, [""; 0]);
    }
}

#[test]
fn the_server_returns_no_credit_after_the_clients_fin() {
    for setup in [Setup::default(), Setup::historical()] {
        let mut pair = open(&setup, 1);
        for _ in 0..40 {
            send(&mut pair.client, ID, 1);
        }
        pair.client.finish(ID);
        settle(&mut pair);
        pair.server.delivered(ID, 40);
        assert_eq!(settle(&mut pair).0, [""; 0]);
    }
}

#[test]
fn delivery_beyond_what_came_counts_as_all() {
    let mut pair = open(&Setup::default(), 1);
    for _ in 0..20 {
        send(&mut pair.server, ID, 100);
    }
    settle(&mut pair);
    assert_eq!(pair.client.waiting(), 2000);
    pair.client.delivered(ID, u32::MAX);
    assert_eq!(pair.client.waiting(), 0);
    assert_eq!(settle(&mut pair).0, ["C socket_token 0 tokens 20"]);
    pair.client.delivered(ID, u32::MAX);
    assert_eq!(settle(&mut pair).0, [""; 0]);
}

#[test]
fn credit_is_held_back_while_memory_is_short() {
    let config = Config { window: 4, memory_budget: 10_000, ..Config::default() };
    let mut pair = open(&Setup { client: config, ..Setup::default() }, 3);
    let [slow, quick, third] = [0, 1, 2].map(SocketId);
    for _ in 0..4 {
        send(&mut pair.server, slow, 2000);
        send(&mut pair.server, quick, 1000);
        send(&mut pair.server, third, 1);
    }
    settle(&mut pair);
    assert_eq!(pair.client.waiting(), 12_004);
    // One that keeps up gets a token at a time once it has none, and only then.
    pair.client.delivered(third, 3);
    assert_eq!(settle(&mut pair).0, [""; 0]);
    pair.client.delivered(third, 1);
    assert_eq!(settle(&mut pair).0, ["C socket_token 2 tokens 1"]);
    send(&mut pair.server, third, 1);
    settle(&mut pair);
    pair.client.delivered(third, 1);
    assert_eq!(settle(&mut pair).0, ["C socket_token 2 tokens 1"]);
    // Below the budget all of it goes out at once, for those too that have nothing more to deliver.
    pair.client.delivered(quick, 2);
    assert_eq!(pair.client.waiting(), 10_000);
    assert_eq!(settle(&mut pair).0, ["C socket_token 1 tokens 2", "C socket_token 2 tokens 3"]);
    assert_eq!((pair.server.credit(quick), pair.server.credit(third)), (2, 4));
}

#[test]
fn a_socket_that_goes_gives_its_memory_to_the_others() {
    let config = Config { window: 4, memory_budget: 5000, ..Config::default() };
    let mut pair = open(&Setup { server: config, ..Setup::default() }, 2);
    let [slow, quick] = [0, 1].map(SocketId);
    for _ in 0..4 {
        send(&mut pair.client, slow, 2000);
        send(&mut pair.client, quick, 1);
    }
    settle(&mut pair);
    pair.server.delivered(quick, 3);
    assert_eq!(settle(&mut pair).0, [""; 0]);
    pair.server.reset(slow);
    assert_eq!(pair.server.waiting(), 1);
    let (wire, _) = settle(&mut pair);
    assert_eq!(wire, ["S socket_close 0", "S socket_token 1 tokens 3", "C socket_closed_ack 0"]);
}

#[test]
fn a_socket_that_overflows_twice_the_budget_is_reset() {
    for role in [Role::Server, Role::Client] {
        let config = Config { memory_budget: 3000, max_data: 2000, ..Config::default() };
        let setup = Setup { server: config, client: config, ..Setup::default() };
        // The other socket holds all the memory, but the message that does not fit is this one's.
        let mut pair = open(&setup, 2);
        let from = if role == Role::Server { Role::Client } else { Role::Server };
        for _ in 0..3 {
            send(pair.end(from), SocketId(1), 2000);
        }
        settle(&mut pair);
        assert_eq!(pair.end(role).waiting(), 6000);
        send(pair.end(from), ID, 1);
        let mut causes = Vec::new();
        pair.settle(4096, |channel, event| match event {
            Event::Reset { socket: ID, cause } => causes.push((channel.role(), cause)),
            other => panic!("{other:?}"),
        })
        .unwrap();
        assert_eq!(causes[0], (role, ResetCause::Memory { waiting: 6000 }));
        assert_eq!(causes[1], (from, ResetCause::Peer));
        assert_eq!(pair.end(role).waiting(), 6000);
        assert_eq!((pair.server.sockets(), pair.client.sockets()), (1, 1));
    }
}

#[test]
fn empty_messages_do_not_hide_what_waits() {
    // An empty message is legal, so a hostile peer may send it between the others.
    let mut pair = open(&Setup::default(), 1);
    send(&mut pair.server, ID, 1000);
    settle(&mut pair);
    let empty = spice_proto::frame::Frame { serial: None, kind: 106, sub_list: 0, body: &ID.0.to_le_bytes() };
    for _ in 0..30 {
        assert_eq!(pair.client.handle_frame(pair.now, empty), Ok(None));
    }
    assert_eq!(pair.client.waiting(), 1000);
    assert_eq!(said(&mut pair.client), ["C socket_token 0 tokens 16"], "they give their tokens back");
}

#[test]
fn the_slow_link_is_seen() {
    let mut pair = open(&Setup::default(), 1);
    let mut sent = 0;
    while !pair.server.is_congested() {
        sent += send(&mut pair.server, ID, 32_768);
    }
    assert!(sent <= pair.server.outgoing_high_water() + 32_768);
    pair.server.sent(usize::MAX);
    assert!(!pair.server.is_congested() && pair.server.outgoing().is_empty());
}

#[test]
fn pings_measure_the_way_and_keep_the_channel_alive() {
    let config = Config {
        ping_interval: Some(Duration::from_secs(10)),
        dead_after: Duration::from_secs(30),
        ..Config::default()
    };
    let client = Config { dead_after: Duration::from_secs(40), ..config };
    let latency = Duration::from_millis(40);
    let setup = Setup { server: config, client, latency, caps: TunnelCaps::EXTENDED, ..Setup::default() };
    let mut pair = open(&setup, 1);
    assert_eq!(pair.server.rtt(), None);
    for _ in 0..20 {
        pair.advance(Duration::from_secs(10)).unwrap();
        assert_eq!(settle(&mut pair).0, ["S ping", "C pong"]);
    }
    assert_eq!(pair.server.rtt(), Some(Duration::from_millis(80)));
    assert!(matches!(pair.server.poll_timeout(), Some((_, TimeoutReason::Ping))));
    assert!(matches!(pair.client.poll_timeout(), Some((_, TimeoutReason::Silence))));
    // The link breaks: each side finds out by itself.
    let died = pair.now;
    let silent = Err(Violation::Silent { after: Duration::from_secs(30) });
    let later = Err(Violation::Silent { after: Duration::from_secs(40) });
    assert_eq!(pair.client.handle_timeout(died + Duration::from_secs(40)), later);
    assert!(pair.client.has_ended());
    assert_eq!(pair.client.handle_timeout(died + Duration::from_secs(60)), Ok(()));
    let (at, _) = pair.server.poll_timeout().unwrap();
    assert_eq!(pair.server.handle_timeout(at), Ok(()));
    let (dead, reason) = pair.server.poll_timeout().unwrap();
    assert_eq!((dead - at, reason), (Duration::from_secs(30), TimeoutReason::Silence));
    assert_eq!(pair.server.handle_timeout(dead), silent);
    assert_eq!((pair.server.sockets(), pair.client.sockets()), (0, 0));
}

#[test]
fn a_client_asks_by_itself_where_the_server_answers() {
    let config = Config { ping_interval: None, dead_after: Duration::from_secs(15), ..Config::default() };
    let latency = Duration::from_millis(40);
    let mut pair = open(&Setup { server: config, client: config, latency, ..Setup::default() }, 1);
    for _ in 0..3 {
        pair.advance(Duration::from_secs(5)).unwrap();
        assert_eq!(settle(&mut pair).0, ["C probe", "S probe_ack"]);
    }
    assert_eq!(pair.client.rtt(), Some(Duration::from_millis(80)));
    // At once, and from either side.
    let within = Duration::from_secs(3);
    assert!(pair.client.probe(pair.now, within));
    assert!(pair.client.probe(pair.now, within), "it was asked");
    assert_eq!(settle(&mut pair).0, ["C probe", "S probe_ack"]);
    assert!(pair.server.probe(pair.now, within));
    assert_eq!(settle(&mut pair).0, ["S ping", "C pong"]);
    pair.advance(within).unwrap();
    assert!(pair.client.is_ready() && !pair.server.has_ended());
    // The link breaks.
    settle(&mut pair);
    for end in [&mut pair.client, &mut pair.server] {
        assert!(end.probe(pair.now, within));
        assert_eq!(end.handle_timeout(pair.now + within / 2), Ok(()));
        assert_eq!(end.handle_timeout(pair.now + within), Err(Violation::Silent { after: within }));
        assert!(!end.probe(pair.now, within), "it has ended");
    }
}

#[test]
fn a_client_may_ask_before_init() {
    let setup = Setup { latency: Duration::from_secs(20), ..Setup::default() };
    let mut pair = crate::pair::Pair::new(&setup);
    assert!(pair.client.probe(pair.now, Duration::from_secs(60)));
    settle(&mut pair);
    assert!(pair.client.is_ready() && pair.client.rtt() == Some(Duration::from_secs(40)));
}

#[test]
fn an_old_server_cannot_be_asked() {
    for caps in [TunnelCaps::empty(), TunnelCaps::EXTENDED] {
        let mut pair = open(&Setup { caps, ..Setup::default() }, 0);
        let before = pair.client.poll_timeout();
        assert!(!pair.client.probe(pair.now, Duration::from_secs(3)));
        assert_eq!((pair.client.poll_timeout(), pair.client.outgoing_len()), (before, 0));
    }
}

#[test]
fn an_old_server_may_be_silent() {
    let mut client = Channel::new(
        Role::Client,
        HeaderForm::Full,
        Layout::B,
        TunnelCaps::empty(),
        Config::default(),
        Instant::now(),
    );
    assert_eq!(client.poll_timeout(), None);
    assert_eq!(client.handle_timeout(Instant::now() + Duration::from_secs(1_000_000)), Ok(()));
}

#[test]
fn services_that_cannot_be_written() {
    let mut pair = open(&Setup::default(), 0);
    let mut old = open(&Setup::historical(), 0);
    let long = vec![b'n'; 1025];
    assert!(pair.client.add_service(new_service(1, &long)).is_err());
    assert!(pair.client.add_service(new_service(1, &long[..1024])).is_ok());
    // The old server's buffer is 1024 bytes for the whole message.
    assert!(old.client.add_service(new_service(1, &long[..497])).is_err());
    assert!(old.client.add_service(new_service(1, &long[..496])).is_ok());
    for client in [&mut pair.client, &mut old.client] {
        assert!(client.add_service(new_service(2, b"nul\0")).is_err());
        assert!(client.add_service(new_service(0, b"not printer")).is_err());
        assert!(client.add_service(crate::NewService { port: 0, ..new_service(3, b"p") }).is_err());
    }
    let six = "2001:db8::1".parse().unwrap();
    assert_eq!(
        pair.server.map_service(ServiceId(0), six),
        Err(crate::MapError::AddressFamily { address: six })
    );
    let four = "198.18.0.9".parse().unwrap();
    let unknown = crate::MapError::UnknownService { service: ServiceId(9) };
    assert_eq!(pair.server.map_service(ServiceId(9), four), Err(unknown));
    assert_eq!(pair.client.map_service(ServiceId(0), four), Err(crate::MapError::NotReady));
    assert_eq!(pair.client.open(ServiceId(0)), Err(crate::OpenError::NotReady));
    assert_eq!(pair.server.add_service(new_service(9, b"x")), Err(crate::AddError::NotReady));
}
