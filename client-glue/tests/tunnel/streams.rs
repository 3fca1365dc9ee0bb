//! Bytes, ends and resets of single connections.

use std::time::Duration;

use client_glue::{End, Event, TunnelConfig};
use spice_proto::link::TunnelCaps;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tunnel_channel::{Config, Role};

use crate::peer::*;

#[tokio::test]
async fn bulk_both_ways_at_once() {
    let mut setup = setup();
    let service = setup.share(echo_service().await).await;
    let socket = setup.open(service).await;
    let data = pattern(8 << 20);
    assert!(setup.peer.exchange(socket, &data).await == data);
    let (up, down, end) = setup
        .event(|event| match event {
            Event::Closed { bytes_up, bytes_down, end, .. } => Some((bytes_up, bytes_down, end)),
            _ => None,
        })
        .await;
    assert_eq!((up, down, end), (8 << 20, 8 << 20, End::Clean));
}

#[tokio::test]
async fn a_historical_server_gets_the_historical_protocol() {
    let historical = Config::historical(Role::Server);
    let mut setup = setup_with(TunnelCaps::empty(), historical, TunnelConfig::default());
    let service = setup.share(echo_service().await).await;
    for _ in 0..3 {
        let socket = setup.open(service).await;
        let data = pattern(300_000);
        assert!(setup.peer.exchange(socket, &data).await == data);
    }
}

#[tokio::test]
async fn the_guest_ends_first_and_still_gets_the_answer() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;
    assert!(setup.peer.send(socket, b"question").is_empty());
    setup.peer.channel.finish(socket);
    setup.peer.flush().await;
    assert_eq!(read_to_end(&mut stream).await.unwrap(), b"question");

    stream.write_all(b"answer").await.unwrap();
    assert_eq!(setup.peer.next().await, Told::Data(socket, b"answer".to_vec()));
    drop(stream);
    assert_eq!(setup.peer.next().await, Told::Finished(socket));
    setup.peer.channel.close(socket);
    setup.peer.flush().await;
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
}

#[tokio::test]
async fn the_service_ends_first_and_still_gets_the_rest() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;
    stream.write_all(b"greeting").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(setup.peer.next().await, Told::Data(socket, b"greeting".to_vec()));
    assert_eq!(setup.peer.next().await, Told::Finished(socket));

    assert!(setup.peer.send(socket, b"late").is_empty());
    setup.peer.channel.finish(socket);
    setup.peer.channel.close(socket);
    setup.peer.flush().await;
    assert_eq!(read_to_end(&mut stream).await.unwrap(), b"late");
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
}

#[tokio::test]
async fn a_service_that_resets_resets_the_guest() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    // Before the guest's end, after it, and with the service's own end behind it.
    for (guest_ends, service_ends) in [(false, false), (true, false), (false, true)] {
        let socket = setup.open(service).await;
        let mut stream = accept(&listener).await;
        if guest_ends {
            setup.peer.channel.finish(socket);
            setup.peer.flush().await;
            assert_eq!(read_to_end(&mut stream).await.unwrap(), b"");
        }
        if service_ends {
            stream.shutdown().await.unwrap();
            assert_eq!(setup.peer.next().await, Told::Finished(socket));
        }
        stream.set_zero_linger().unwrap();
        drop(stream);
        if service_ends {
            // Nobody reads any more: the next writes show it.
            for _ in 0..2 {
                setup.peer.send(socket, b"x");
                setup.peer.flush().await;
                sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(setup.peer.next().await, Told::Reset(socket));
        let end =
            setup.event(|event| if let Event::Closed { end, .. } = event { Some(end) } else { None }).await;
        assert_eq!(end, End::Service);
    }
    setup.peer.flush().await;
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
}

#[tokio::test]
async fn a_guest_that_resets_resets_the_service() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;
    setup.peer.channel.reset(socket);
    setup.peer.flush().await;
    assert_reset(&mut stream).await;
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
}

#[tokio::test]
async fn a_refused_dial_is_a_refused_connection() {
    let mut setup = setup();
    let service = setup.share(closed_port().await).await;
    let socket = setup.peer.channel.open(service).unwrap();
    assert_eq!(setup.peer.next().await, Told::Refused(socket));
    let reason =
        setup.event(|event| if let Event::Refused { reason, .. } = event { Some(reason) } else { None });
    let reason = reason.await.to_string();
    assert!(reason.contains("cannot connect to 127.0.0.1"), "{reason}");
}

#[tokio::test]
async fn a_slow_service_slows_its_own_sender_only() {
    let mut setup = setup();
    let (listener, address) = listen_narrowly();
    let slow_service = setup.share(address).await;
    let echo = setup.share(echo_service().await).await;
    let slow = setup.open(slow_service).await;
    let mut stream = accept(&listener).await;

    // Send until nothing moves any more: the service's own buffers, and the window on top.
    let data = pattern(12 << 20);
    let mut left: &[u8] = &data;
    loop {
        let before = left.len();
        left = setup.peer.send(slow, left);
        let moved = timeout(Duration::from_millis(50), async {
            setup.peer.flush().await;
            setup.peer.next().await
        });
        match moved.await {
            Ok(Told::Writable(_)) => {}
            Ok(told) => panic!("{told:?}"),
            Err(_) if left.len() == before => break,
            Err(_) => {}
        }
    }
    let held = data.len() - left.len();
    assert!(held < 10 << 20, "{held} bytes were taken from the guest");

    // Meanwhile others go on.
    let quick = setup.open(echo).await;
    assert_eq!(setup.peer.exchange(quick, b"still there?").await, b"still there?");

    // When the service reads, everything arrives, in order.
    let reader = tokio::spawn(async move { read_to_end(&mut stream).await });
    while !left.is_empty() {
        left = setup.peer.send(slow, left);
        if !left.is_empty() && setup.peer.channel.credit(slow) == 0 {
            assert_eq!(setup.peer.next().await, Told::Writable(slow));
        }
        setup.peer.flush().await;
    }
    setup.peer.channel.finish(slow);
    setup.peer.flush().await;
    assert!(reader.await.unwrap().unwrap() == data);
}

#[tokio::test]
async fn a_greedy_service_does_not_starve_another() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let greedy = setup.share(address).await;
    let echo = setup.share(echo_service().await).await;
    let flood = setup.open(greedy).await;
    let mut stream = accept(&listener).await;
    tokio::spawn(async move { while stream.write_all(&[7; 65536]).await.is_ok() {} });

    let asking = setup.open_among(echo, flood).await;
    for round in 0..20u8 {
        assert!(setup.peer.send(asking, &[round]).is_empty());
        let mut between = 0;
        loop {
            match setup.peer.next().await {
                Told::Data(socket, payload) if socket == asking => {
                    assert_eq!(payload, [round]);
                    break;
                }
                Told::Data(socket, payload) if socket == flood => between += payload.len(),
                Told::Writable(_) => {}
                told => panic!("{told:?}"),
            }
        }
        assert!(between < 16 << 20, "{between} bytes of the flood came before one byte of the other");
    }
}

#[tokio::test]
async fn a_guest_that_vanishes_after_its_end_spoils_nothing() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;
    let data = pattern(1 << 20);
    let mut left: &[u8] = &data;
    while !left.is_empty() {
        left = setup.peer.send(socket, left);
        setup.peer.flush().await;
    }
    setup.peer.channel.finish(socket);
    setup.peer.channel.reset(socket);
    setup.peer.flush().await;
    sleep(Duration::from_millis(100)).await;
    // The service says something that nobody wants, and has not read yet what the guest sent.
    let mut got = Vec::new();
    for _ in 0..64 {
        stream.write_all(&[1; 1024]).await.unwrap();
        let mut piece = vec![0; 16 << 10];
        let n = timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
        got.extend_from_slice(&piece[..n]);
    }
    got.extend(read_to_end(&mut stream).await.unwrap());
    assert!(got == data, "{} of {} bytes arrived", got.len(), data.len());
}

#[tokio::test]
async fn a_download_that_the_guest_gives_up_is_told_so() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let service = setup.share(address).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;
    // What a host does that closes while more comes: its FIN, then RST in answer to what still comes.
    setup.peer.channel.finish(socket);
    setup.peer.channel.reset(socket);
    setup.peer.flush().await;
    let piece = vec![1; 64 << 10];
    let mut said = 0;
    let told = timeout(PATIENCE, async {
        while stream.write_all(&piece).await.is_ok() {
            said += piece.len();
        }
    });
    assert!(told.await.is_ok(), "the service still believes that somebody listens after {said} bytes");
}
