//! Servers that want what they were not given.

use std::time::Duration;

use client_glue::{Error, Event, TunnelConfig};
use spice_proto::tunnel::{IpInfo, ServerMessage, ServiceId, SocketId};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::peer::*;

const INIT: ServerMessage<'static> = ServerMessage::Init { max_sockets: 1000, max_data: 2048 };

fn open(socket: u16, service: u32) -> ServerMessage<'static> {
    ServerMessage::SocketOpen { socket: SocketId(socket), service: ServiceId(service), tokens: 10 }
}

fn data(socket: u16, payload: &[u8]) -> ServerMessage<'_> {
    ServerMessage::SocketData { socket: SocketId(socket), payload }
}

#[tokio::test]
async fn only_shares_are_dialled() {
    let (listener, address) = listen().await;
    let mut server = hostile(TunnelConfig::default());
    server.say(&[INIT]).await;
    // Nothing is shared, so nothing can be opened.
    server.say(&[open(0, 0), open(1, 0xffff_ffff)]).await;
    assert_eq!(server.hear().await, "socket_open_nack");
    assert_eq!(server.hear().await, "socket_open_nack");
    server.handle.add_share(share(address)).unwrap();
    assert_eq!(server.hear().await, "service_add");
    server.say(&[open(2, 1)]).await;
    assert_eq!(server.hear().await, "socket_open_nack");
    assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    server.say(&[open(2, 0)]).await;
    assert_eq!(server.hear().await, "socket_open_ack");
    accept(&listener).await;
}

#[tokio::test]
async fn data_before_the_answer_ends_the_dial() {
    let mut server = hostile(TunnelConfig::default());
    server.say(&[INIT]).await;
    server.handle.add_share("tcp://192.0.2.1:9".parse().unwrap()).unwrap();
    assert_eq!(server.hear().await, "service_add");
    server.say(&[open(0, 0), data(0, b"too early")]).await;
    let answer = server.hear().await;
    assert!(["socket_closed", "socket_reset", "socket_open_nack"].contains(&answer), "{answer}");
}

#[tokio::test]
async fn breaking_the_rules_of_one_socket_ends_that_socket() {
    let (listener, address) = listen().await;
    let mut server = hostile(TunnelConfig::default());
    server.say(&[INIT]).await;
    server.handle.add_share(share(address)).unwrap();
    assert_eq!(server.hear().await, "service_add");
    let fin = |socket| ServerMessage::SocketFin { socket: SocketId(socket) };
    let long = [0; 2049];
    for (socket, wrong) in
        [(0, vec![fin(0), fin(0)]), (1, vec![fin(1), data(1, b"x")]), (2, vec![data(2, &long)])]
    {
        server.say(&[open(socket, 0)]).await;
        assert_eq!(server.hear().await, "socket_open_ack");
        let mut stream = accept(&listener).await;
        server.say(&wrong).await;
        assert!(["socket_closed", "socket_reset"].contains(&server.hear().await));
        let seen = read_to_end(&mut stream).await;
        assert!(seen.is_err() || seen.is_ok_and(|bytes| bytes.is_empty()));
    }
    server.say(&[open(9, 0)]).await;
    assert_eq!(server.hear().await, "socket_open_ack");
}

#[tokio::test]
async fn breaking_the_rules_of_the_channel_ends_the_tunnel() {
    let map = ServerMessage::ServiceIpMap { service: ServiceId(7), address: IpInfo::Invalid };
    let cases: [(&str, Vec<ServerMessage<'_>>); 6] = [
        ("open before init", vec![open(0, 0)]),
        ("init twice", vec![INIT, INIT]),
        ("no room for data", vec![ServerMessage::Init { max_sockets: 1, max_data: 0 }]),
        ("too much data", vec![ServerMessage::Init { max_sockets: 1, max_data: u32::MAX }]),
        ("id out of range", vec![INIT, open(1000, 0)]),
        ("an address for nothing", vec![INIT, map]),
    ];
    for (what, messages) in cases {
        let mut server = hostile(TunnelConfig::default());
        server.say(&messages).await;
        let outcome = server.outcome().await;
        assert!(matches!(outcome, Err(Error::Violation(_))), "{what}: {outcome:?}");
    }
    let mut server = hostile(TunnelConfig::default());
    server.stream.write_all(&[106, 0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    let outcome = server.outcome().await;
    assert!(matches!(outcome, Err(Error::Frame(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_flood_of_opens_is_bounded() {
    let config = TunnelConfig { dial_deadline: Duration::from_millis(500), ..TunnelConfig::default() };
    let mut server = hostile(config);
    server.say(&[ServerMessage::Init { max_sockets: u16::MAX, max_data: 2048 }]).await;
    server.handle.add_share("tcp://192.0.2.1:9".parse().unwrap()).unwrap();
    assert_eq!(server.hear().await, "service_add");
    let before = open_files();
    let opens: Vec<_> = (0..10_000).map(|socket| open(socket, 0)).collect();
    // The answers are read meanwhile, or the pipe would fill.
    let mut most = 0;
    for part in opens.chunks(500) {
        server.say(part).await;
        tokio::task::yield_now().await;
        most = most.max(open_files());
    }
    assert!(most < before + 300, "{} sockets at once", most - before);
    for _ in 0..opens.len() {
        assert_eq!(server.hear().await, "socket_open_nack");
    }
}

#[tokio::test]
async fn a_server_that_does_not_read_its_answers_is_cut_off() {
    let mut server = hostile(TunnelConfig::default());
    server.say(&[INIT]).await;
    // SET_ACK, each to be answered, and nobody fetches the answers.
    let mut questions = Vec::new();
    for _ in 0..4096 {
        questions.extend_from_slice(&[3, 0, 8, 0, 0, 0]);
        questions.extend_from_slice(&[0; 8]);
    }
    let flood = async {
        loop {
            if server.stream.write_all(&questions).await.is_err() {
                break;
            }
        }
    };
    timeout(PATIENCE, flood).await.expect("never cut off");
    let outcome = server.run.await.unwrap();
    assert!(
        matches!(outcome, Err(Error::Violation(tunnel_channel::Violation::NotReading { .. }))),
        "{outcome:?}"
    );
    drop(server.events);
}

#[tokio::test]
async fn mapping_for_ever_fills_nothing() {
    let config = TunnelConfig { event_capacity: 4, ..TunnelConfig::default() };
    let mut server = hostile(config);
    server.say(&[INIT]).await;
    server.handle.add_share("tcp://printer.lan:9".parse().unwrap()).unwrap();
    assert_eq!(server.hear().await, "service_info");
    assert_eq!(server.hear().await, "service_add");
    let maps: Vec<_> = (0..5000u32)
        .map(|n| ServerMessage::ServiceIpMap {
            service: ServiceId(0),
            address: IpInfo::V4((0xc612_0000 + n).into()),
        })
        .collect();
    server.say(&maps).await;
    drop(server.stream);
    let mut told = Vec::new();
    timeout(PATIENCE, server.run).await.unwrap().unwrap().unwrap();
    while let Some(event) = server.events.recv().await {
        if let Event::Mapped { virtual_ip, .. } = event {
            told.push(virtual_ip.to_string());
        }
    }
    assert!(told.len() <= 4, "{told:?}");
    assert_eq!(told.last().unwrap(), "198.18.19.135");
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
