//! Tunnels as a whole: shares that come and go, many connections, the ends of a tunnel.

use std::time::Duration;

use client_glue::{End, Error, Event, TunnelConfig, tunnel};
use spice_proto::{
    link::TunnelCaps,
    tunnel::{ServiceId, SocketId},
};
use tokio::{
    io::{AsyncWriteExt, duplex},
    time::{sleep, timeout},
};
use tunnel_channel::Config;

use crate::peer::*;

impl Setup {
    /// [`Setup::open`] while `other` sends.
    pub(crate) async fn open_among(&mut self, service: ServiceId, other: SocketId) -> SocketId {
        let socket = self.peer.channel.open(service).unwrap();
        loop {
            match self.peer.next().await {
                Told::Accepted(of) if of == socket => return socket,
                Told::Data(of, _) if of == other => {}
                told => panic!("{told:?}"),
            }
        }
    }
}

#[tokio::test]
async fn shares_are_announced_as_devices_and_mapped() {
    let mut setup = setup();
    // Before the server said INIT to the task, and with the second port named otherwise than the device.
    setup.handle.add_share("tcp://printer.lan:631?name=Printer".parse().unwrap()).unwrap();
    setup.handle.add_share("tcp://printer.lan:80?name=Web".parse().unwrap()).unwrap();
    let nas = setup.handle.add_share("tcp://nas.lan:445?description=Files".parse().unwrap()).unwrap();
    let (mut added, mut hosts) = (Vec::new(), Vec::new());
    while added.len() < 3 {
        match setup.peer.next().await {
            Told::Described(_, info) => hosts.push(info.host().unwrap().as_str().to_owned()),
            Told::Added { service, group, port, name, description } => {
                setup.peer.channel.map_service(service, virtual_ip()).unwrap();
                added.push((group, port, name, description));
            }
            told => panic!("{told:?}"),
        }
    }
    assert_eq!(hosts, ["printer.lan", "printer.lan", "nas.lan"]);
    let expected = [(0, 631, "Printer", ""), (0, 80, "Printer", "Web"), (1, 445, "nas.lan", "Files")];
    for ((group, port, name, description), expected) in added.iter().zip(expected) {
        assert_eq!((*group, *port, name.as_str(), description.as_str()), expected);
    }
    setup.peer.flush().await;
    let mapped = setup.event(|event| match event {
        Event::Mapped { share, name, target, virtual_ip, port } if share == nas => {
            Some((name, target, virtual_ip, port))
        }
        _ => None,
    });
    assert_eq!(mapped.await, ("nas.lan".to_owned(), "tcp://nas.lan:445".to_owned(), virtual_ip(), 445));
}

#[tokio::test]
async fn a_share_taken_back_is_closed_at_once() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let id = setup.handle.add_share(share(address)).unwrap();
    let Told::Added { service, .. } = setup.peer.next().await else { panic!("not added") };
    let open = setup.open(service).await;
    let mut stream = accept(&listener).await;

    assert!(setup.handle.remove_share(id));
    // The guest's connect and our removal cross.
    let late = setup.peer.channel.open(service).unwrap();
    setup.peer.flush().await;
    let mut told = vec![setup.peer.next().await, setup.peer.next().await, setup.peer.next().await];
    told.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, [Told::Refused(late), Told::Removed(service), Told::Reset(open)]);
    assert_reset(&mut stream).await;
    assert!(
        timeout(Duration::from_millis(50), listener.accept()).await.is_err(),
        "a removed share was dialled"
    );
    let end = setup.event(|event| if let Event::Closed { end, .. } = event { Some(end) } else { None }).await;
    assert_eq!(end, End::Unshared);

    // And offered again.
    let again = setup.share(address).await;
    assert_ne!(again, service);
    setup.open(again).await;
    assert!(!setup.handle.remove_share(id));
}

#[tokio::test]
async fn a_share_taken_back_while_dialling_is_refused() {
    let mut setup = setup();
    // TEST-NET-1: nobody answers there, whether by silence or by an error.
    let id = setup.handle.add_share("tcp://192.0.2.1:9".parse().unwrap()).unwrap();
    let Told::Added { service, .. } = setup.peer.next().await else { panic!("not added") };
    let socket = setup.peer.channel.open(service).unwrap();
    setup.peer.flush().await;
    setup.handle.remove_share(id);
    let mut told = vec![setup.peer.next().await, setup.peer.next().await];
    told.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, [Told::Refused(socket), Told::Removed(service)]);
}

#[tokio::test]
async fn a_thousand_connections_at_once() {
    const COUNT: usize = 1000;
    let mut setup = setup();
    let service = setup.share(echo_service().await).await;
    let sockets: Vec<SocketId> = (0..COUNT).map(|_| setup.peer.channel.open(service).unwrap()).collect();
    let mut accepted = 0;
    while accepted < COUNT {
        match setup.peer.next().await {
            Told::Accepted(_) => accepted += 1,
            told => panic!("{told:?}"),
        }
    }
    for socket in &sockets {
        let message = socket.0.to_le_bytes();
        assert!(setup.peer.send(*socket, &message).is_empty());
        setup.peer.channel.finish(*socket);
    }
    let (mut answers, mut ends) = (0, 0);
    while ends < COUNT {
        match setup.peer.next().await {
            Told::Data(socket, payload) => {
                assert_eq!(payload, socket.0.to_le_bytes());
                answers += 1;
            }
            Told::Finished(socket) => {
                setup.peer.channel.close(socket);
                ends += 1;
            }
            told => panic!("{told:?}"),
        }
    }
    assert_eq!(answers, COUNT);
    setup.peer.flush().await;
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
}

#[tokio::test]
async fn services_see_a_reset_when_the_server_vanishes() {
    let mut setup = setup();
    let (listener, address) = listen_narrowly();
    let service = setup.share(address).await;
    // Open; half-closed by the guest; half-closed by the service; with a tail that is not written yet.
    let _plain = setup.open(service).await;
    let mut plain = accept(&listener).await;
    let guest_ended = setup.open(service).await;
    let mut ended = accept(&listener).await;
    setup.peer.channel.finish(guest_ended);
    let _service_ended = setup.open(service).await;
    let mut half = accept(&listener).await;
    half.shutdown().await.unwrap();
    assert!(matches!(setup.peer.next().await, Told::Finished(_)));
    let full = setup.open(service).await;
    let mut stuck = accept(&listener).await;
    let data = pattern(12 << 20);
    let mut left: &[u8] = &data;
    while let Ok(Some(_)) = timeout(Duration::from_millis(200), async {
        left = setup.peer.send(full, left);
        setup.peer.flush().await;
        setup.peer.next_or_end().await
    })
    .await
    {}
    assert!(!left.is_empty());

    drop(setup.peer);
    let outcome = timeout(PATIENCE, setup.run).await.unwrap().unwrap();
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_reset(&mut plain).await;
    assert_reset(&mut half).await;
    assert_reset(&mut stuck).await;
    // This one got the guest's end, which was true; then nobody is there for its answer.
    assert_eq!(read_to_end(&mut ended).await.map_err(|error| error.kind()).unwrap_or_default(), b"");
    sleep(Duration::from_millis(20)).await;
    let _ = ended.write_all(b"x").await;
    sleep(Duration::from_millis(20)).await;
    assert!(ended.write_all(b"x").await.is_err());

    let mut last = None;
    while let Some(event) = setup.events.recv().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Disconnected { .. })), "{last:?}");
}

#[tokio::test]
async fn a_dropped_future_resets_as_well() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    setup.open(service).await;
    let mut stream = accept(&listener).await;
    setup.run.abort();
    assert_reset(&mut stream).await;
    assert!(setup.handle.add_share("tcp://a:1".parse().unwrap()).is_err());
    let reason =
        setup.event(|event| if let Event::Disconnected { reason } = event { Some(reason) } else { None });
    assert_eq!(reason.await, "the tunnel was dropped");
}

#[tokio::test]
async fn shutdown_says_goodbye() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    setup.open(service).await;
    let mut stream = accept(&listener).await;
    setup.handle.shutdown();
    assert_eq!(setup.peer.next().await, Told::Leaving);
    assert_eq!(setup.peer.next_or_end().await, None);
    assert_reset(&mut stream).await;
    timeout(PATIENCE, setup.run).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_read_cannot_keep_us_from_leaving() {
    let (near, far) = duplex(16);
    let (handle, _events, run) = tunnel(near, linked(TunnelCaps::OURS), TunnelConfig::default());
    handle.shutdown();
    timeout(PATIENCE, run).await.expect("still here").unwrap();
    drop(far);
}

#[tokio::test]
async fn ends_that_should_not_be_are_errors() {
    let (near, far) = duplex(1024);
    let mut other = linked(TunnelCaps::OURS);
    other.channel_type = 3;
    let (_, _, run) = tunnel(near, other, TunnelConfig::default());
    assert!(matches!(run.await, Err(Error::NotATunnel { got: 3 })));
    drop(far);

    let (near, far) = duplex(1024);
    let (_, mut events, run) = tunnel(near, linked(TunnelCaps::OURS), TunnelConfig::default());
    drop(far);
    assert!(matches!(run.await, Err(Error::NeverBegan)));
    assert!(matches!(events.recv().await, Some(Event::Disconnected { .. })));
    assert!(events.recv().await.is_none());

    // INIT is here as what was read along with the link stage; then a part of a message.
    let (near, mut far) = duplex(1024);
    let mut early = linked(TunnelCaps::OURS);
    early.leftover = vec![101, 0, 6, 0, 0, 0, 20, 0, 0, 8, 0, 0, 103];
    let (_, mut events, run) = tunnel(near, early, TunnelConfig::default());
    far.write_all(&[0, 10]).await.unwrap();
    far.shutdown().await.unwrap();
    assert!(matches!(run.await, Err(Error::Truncated { have: 3 })));
    assert!(matches!(events.recv().await, Some(Event::Connected { max_sockets: 20, max_data: 2048 })));
}

#[tokio::test]
async fn one_byte_at_a_time_is_enough() {
    let (near, far) = duplex(1);
    let (handle, _events, run) = tunnel(near, linked(TunnelCaps::OURS), TunnelConfig::default());
    tokio::spawn(run);
    let mut setup = setup_with(TunnelCaps::OURS, Config::default(), TunnelConfig::default());
    setup.peer.stream = far;
    setup.handle = handle;
    let service = setup.share(echo_service().await).await;
    let socket = setup.open(service).await;
    let data = pattern(3000);
    assert_eq!(setup.peer.exchange(socket, &data).await, data);
}

#[tokio::test]
async fn nobody_needs_to_listen_to_the_events() {
    let config = TunnelConfig { event_capacity: 2, ..TunnelConfig::default() };
    let mut setup = setup_with(TunnelCaps::OURS, Config::default(), config);
    let service = setup.share(echo_service().await).await;
    for _ in 0..20 {
        let socket = setup.open(service).await;
        assert_eq!(setup.peer.exchange(socket, b"x").await, b"x");
    }
    setup.peer.channel.map_service(service, virtual_ip()).unwrap();
    setup.peer.flush().await;
    sleep(Duration::from_millis(50)).await;
    let (mut missed, mut mapped) = (0, false);
    while !mapped {
        setup
            .event(|event| {
                match event {
                    Event::Missed { events } => missed += events,
                    Event::Mapped { .. } => mapped = true,
                    _ => {}
                }
                Some(())
            })
            .await;
    }
    assert!(missed >= 38, "{missed}");
}

#[tokio::test]
async fn the_pipe_may_be_a_real_connection() {
    let (listener, address) = listen().await;
    let near = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut far = accept(&listener).await;
    let (_handle, mut events, run) = tunnel(near, linked(TunnelCaps::OURS), TunnelConfig::default());
    let run = tokio::spawn(run);
    far.write_all(&[101, 0, 6, 0, 0, 0, 20, 0, 0, 8, 0, 0]).await.unwrap();
    assert!(matches!(events.recv().await, Some(Event::Connected { .. })));
    far.set_zero_linger().unwrap();
    drop(far);
    assert!(matches!(run.await.unwrap(), Err(Error::Link(_))));
}
