//! Thousands of sockets.

use std::time::Instant;

use spice_proto::tunnel::{ServiceId, SocketId};

use super::new_service;
use crate::pair::{Pair, Setup};
use crate::{Config, Event, Role};

/// A pair with this many open sockets.
fn open(config: Config) -> Pair {
    let mut pair = Pair::new(&Setup { server: config, client: config, ..Setup::default() });
    pair.settle(1 << 16, |_, _| {}).unwrap();
    pair.client.add_service(new_service(0, b"printer")).unwrap();
    pair.settle(1 << 16, |_, _| {}).unwrap();
    for id in 0..config.max_sockets {
        assert_eq!(pair.server.open(ServiceId(0)), Ok(SocketId(id)));
    }
    assert!(pair.server.open(ServiceId(0)).is_err());
    pair.settle(1 << 16, |channel, event| {
        if let Event::Open { socket, .. } = event {
            channel.accept(socket);
        }
    })
    .unwrap();
    pair
}

#[test]
fn every_socket_of_65535_carries_and_closes() {
    let mut pair = open(Config { max_sockets: u16::MAX, max_data: 64, ..Config::default() });
    assert_eq!((pair.server.sockets(), pair.client.sockets()), (65_535, 65_535));
    for id in 0..u16::MAX {
        for role in [Role::Server, Role::Client] {
            let sent = pair.end(role).send(SocketId(id), |room| {
                room[..2].copy_from_slice(&id.to_le_bytes());
                2
            });
            assert_eq!(sent, 2);
            pair.end(role).finish(SocketId(id));
        }
    }
    let mut received = 0;
    pair.settle(1 << 16, |channel, event| match event {
        Event::Data { socket, payload } => {
            assert_eq!(payload, socket.0.to_le_bytes());
            received += 1;
            channel.delivered(socket, 1);
        }
        Event::Finished { socket } => channel.close(socket),
        other => panic!("{other:?}"),
    })
    .unwrap();
    assert_eq!(received, 2 * 65_535);
    assert_eq!((pair.server.sockets(), pair.client.sockets()), (0, 0));
}

/// The cost of a message must not grow with the number of sockets. Measured as a ratio within this run, with room for a
/// busy machine: a walk over the sockets would make it hundreds.
#[test]
fn the_cost_of_a_message_does_not_grow_with_the_sockets() {
    let time = |sockets: u16| {
        let mut pair = open(Config { max_sockets: sockets, ..Config::default() });
        pair.wire.clear();
        let mut round = || {
            let started = Instant::now();
            for _ in 0..10 {
                for _ in 0..16 {
                    pair.server.send(SocketId(0), |room| room.len().min(100));
                }
                pair.settle(1 << 16, |channel, event| {
                    if let Event::Data { socket, .. } = event {
                        channel.delivered(socket, 1);
                    }
                })
                .unwrap();
            }
            started.elapsed()
        };
        (0..20).map(|_| round()).min().unwrap()
    };
    let (few, many) = (time(2), time(10_000));
    assert!(many < few * 20, "{few:?} with 2 sockets, {many:?} with 10000");
}
