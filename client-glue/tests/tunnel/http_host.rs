//! Services that are called by another name: what credit, ends and resets come to when bytes are held back and lengths change.

use std::time::Duration;

use client_glue::{End, Event, Share, TunnelConfig};
use spice_proto::{
    link::TunnelCaps,
    tunnel::{ServiceId, SocketId},
};
use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinHandle, time::timeout};
use tunnel_channel::{Config, Role};

use crate::peer::*;

const ASKED: &[u8] = b"POST /ipp/print HTTP/1.1\r\nUser-Agent: guest\r\nConnection: keep-alive, Upgrade\r\nUpgrade: TLS/1.2\r\nHost: printer.local:631\r\nContent-Length: 5\r\n\r\nhello";
const GIVEN: &[u8] = b"POST /ipp/print HTTP/1.1\r\nUser-Agent: guest\r\nConnection: keep-alive\r\nHost: localhost:631\r\nContent-Length: 5\r\n\r\nhello";

/// Shares what listens under the name that it wants.
async fn share_renamed(setup: &mut Setup, listener: &TcpListener) -> ServiceId {
    let address = listener.local_addr().unwrap();
    let share = Share { http_host: Some("localhost:631".into()), ..share(address) };
    setup.handle.add_share(share).unwrap();
    match setup.peer.next().await {
        Told::Added { service, .. } => service,
        told => panic!("{told:?}"),
    }
}

/// A service that takes one connection and reads it to its end.
fn reader(listener: TcpListener) -> JoinHandle<std::io::Result<Vec<u8>>> {
    tokio::spawn(async move { read_to_end(&mut accept(&listener).await).await })
}

/// Sends all of `data`, at most `size` bytes a message.
async fn send_in_pieces(setup: &mut Setup, socket: SocketId, data: &[u8], size: usize) {
    for piece in data.chunks(size) {
        let mut left = piece;
        loop {
            left = setup.peer.send(socket, left);
            if left.is_empty() {
                break;
            }
            setup.peer.flush().await;
            if setup.peer.channel.credit(socket) == 0 {
                assert_eq!(setup.peer.next().await, Told::Writable(socket));
            }
        }
    }
}

/// Ends the guest's side and gives what the service has got.
async fn finish(
    setup: &mut Setup,
    socket: SocketId,
    reader: JoinHandle<std::io::Result<Vec<u8>>>,
) -> Vec<u8> {
    setup.peer.channel.finish(socket);
    setup.peer.flush().await;
    let got = reader.await.unwrap().unwrap();
    assert_eq!(setup.peer.next().await, Told::Finished(socket));
    setup.peer.channel.close(socket);
    setup.peer.flush().await;
    got
}

#[tokio::test]
async fn a_head_in_single_bytes_does_not_use_up_any_window() {
    let small =
        TunnelConfig { channel: Config { window: 1, ..Config::default() }, ..TunnelConfig::default() };
    let historical =
        || setup_with(TunnelCaps::empty(), Config::historical(Role::Server), TunnelConfig::default());
    for mut setup in [historical(), setup_with(TunnelCaps::OURS, Config::default(), small)] {
        let (listener, _) = listen().await;
        let service = share_renamed(&mut setup, &listener).await;
        let reader = reader(listener);
        let socket = setup.open(service).await;
        let long = "x".repeat(5000);
        let asked = format!("GET / HTTP/1.1\r\nA: {long}\r\nHost: {long}\r\nUpgrade: {long}\r\n\r\n");
        let given = format!("GET / HTTP/1.1\r\nA: {long}\r\nHost: localhost:631\r\n\r\n");
        send_in_pieces(&mut setup, socket, asked.as_bytes(), 1).await;
        let got = finish(&mut setup, socket, reader).await;
        assert!(got == given.as_bytes(), "{}", String::from_utf8_lossy(&got));
    }
}

#[tokio::test]
async fn requests_on_one_connection_in_pieces_of_any_size() {
    for size in [1, 2, 3, 7, 50, 1000] {
        let mut setup = setup();
        let (listener, _) = listen().await;
        let service = share_renamed(&mut setup, &listener).await;
        let reader = reader(listener);
        let socket = setup.open(service).await;
        send_in_pieces(&mut setup, socket, &ASKED.repeat(20), size).await;
        assert!(finish(&mut setup, socket, reader).await == GIVEN.repeat(20), "in pieces of {size}");
        let up = setup.event(|event| {
            if let Event::Closed { bytes_up, end, .. } = event { Some((bytes_up, end)) } else { None }
        });
        assert_eq!(up.await, (20 * GIVEN.len() as u64, End::Clean));
    }
}

#[tokio::test]
async fn a_slow_service_gets_every_byte_and_credit_comes_back() {
    let mut setup = setup();
    let (listener, _) = listen_narrowly();
    let service = share_renamed(&mut setup, &listener).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;

    // Of most messages the service gets nothing: were they not counted, the window would soon be gone.
    let (head, body) = ("Host: printer.local\r\nUpgrade: ", pattern(100_000));
    let mut messages = vec![&b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n"[..], head.as_bytes()];
    messages.extend([&[b'z'; 200][..]; 100]);
    messages.extend([&b"z\r\n\r\n"[..], &body]);
    let given = [messages[0], b"Host: localhost:631\r\n\r\n", &body].concat();
    let all: Vec<&[u8]> = std::iter::repeat_n(messages, 250).flatten().collect();
    let (mut to_come, mut left, mut got): (_, &[u8], _) = (all.iter(), &[], Vec::new());
    while to_come.len() > 0 {
        // As much as goes while the service reads nothing: its own buffers, and the window on top.
        loop {
            while setup.peer.channel.credit(socket) > 0 && !(left.is_empty() && to_come.len() == 0) {
                left = setup.peer.send(socket, if left.is_empty() { to_come.next().unwrap() } else { left });
                setup.peer.flush().await;
            }
            match timeout(Duration::from_millis(50), setup.peer.next()).await {
                Ok(told) => assert_eq!(told, Told::Writable(socket)),
                Err(_) => break,
            }
        }
        // Then it reads all that there is.
        let mut piece = vec![0; 64 << 10];
        while let Ok(read) = timeout(Duration::from_millis(50), stream.read(&mut piece)).await {
            got.extend_from_slice(&piece[..read.unwrap()]);
        }
        if setup.peer.channel.credit(socket) == 0 {
            assert_eq!(setup.peer.next().await, Told::Writable(socket));
        }
    }
    let reader = tokio::spawn(async move { read_to_end(&mut stream).await });
    send_in_pieces(&mut setup, socket, left, 1 << 20).await;
    // Many more messages than the window has.
    send_in_pieces(&mut setup, socket, &ASKED.repeat(10), 1).await;
    got.extend(finish(&mut setup, socket, reader).await);
    assert!(got == [given.repeat(250), GIVEN.repeat(10)].concat());
}

#[tokio::test]
async fn a_guest_that_ends_within_a_head_has_said_what_it_said() {
    let mut setup = setup();
    for (said, got) in [
        ("GET / HTTP/1.1\r\nHos", "GET / HTTP/1.1\r\nHos"),
        ("GET / HTTP/1.1\r\nConnection: upgr", "GET / HTTP/1.1\r\nConnection: upgr"),
        ("GET / HTTP/1.1\r\nHost: printer.lo", "GET / HTTP/1.1\r\nHost: localhost:631"),
    ] {
        let (listener, _) = listen().await;
        let service = share_renamed(&mut setup, &listener).await;
        let reader = reader(listener);
        let socket = setup.open(service).await;
        send_in_pieces(&mut setup, socket, said.as_bytes(), 4).await;
        assert_eq!(String::from_utf8(finish(&mut setup, socket, reader).await).unwrap(), got);
    }
}

#[tokio::test]
async fn what_is_no_request_ends_its_connection_and_no_other() {
    let mut setup = setup();
    let (listener, _) = listen().await;
    let service = share_renamed(&mut setup, &listener).await;
    let other = setup.open(service).await;
    let mut good = accept(&listener).await;
    let twice: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxxPOST /";
    for (asked, written) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01"[..], &b""[..]),
        (b"@PJL JOB\r\n", b""),
        (twice, b"POST / HTTP/1.1\r\nContent-Length: 1\r\n"),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
    ] {
        let socket = setup.open(service).await;
        let mut stream = accept(&listener).await;
        assert!(setup.peer.send(socket, asked).is_empty());
        // Nothing that comes behind it makes a difference.
        assert!(setup.peer.send(socket, ASKED).is_empty());
        setup.peer.flush().await;
        assert_eq!(setup.peer.next().await, Told::Reset(socket));
        let end = setup.event(|event| if let Event::Closed { end, .. } = event { Some(end) } else { None });
        assert_eq!(end.await, End::Service);
        // The system may drop what the service has not read of a connection that was reset.
        let mut got = vec![0; 1000];
        let n = match stream.read(&mut got).await {
            Ok(n) if n > 0 => {
                assert_reset(&mut stream).await;
                n
            }
            other => {
                assert_eq!(other.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
                0
            }
        };
        assert!(written.starts_with(&got[..n]), "{:?}", String::from_utf8_lossy(&got[..n]));
    }
    send_in_pieces(&mut setup, other, ASKED, 9).await;
    setup.peer.flush().await;
    let mut got = vec![0; GIVEN.len()];
    good.read_exact(&mut got).await.unwrap();
    assert!(got == GIVEN);
}
