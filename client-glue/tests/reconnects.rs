//! A hundred links of one companion, real sockets and all: nothing of the earlier ones may be left. Alone in its process,
//! whose open files are counted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm)]

use std::time::{Duration, Instant};

use client_glue::server::{Credentials, SpiceServer};
use client_glue::{CompanionConfig, Event, companion};
use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::handshake::Deadlines;
use spice_proto::io::Decision;
use spice_proto::link::{CommonCaps, LinkError, TunnelCaps, Welcome};
use spice_proto::ticket::{Password, TicketKey};
use spice_proto::tunnel::Layout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tunnel_channel::{Channel, Config, Event as ChannelEvent, Role};

const LINKS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);

async fn accept(listener: &TcpListener, key: &TicketKey, secret: &Password) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let welcome = Welcome {
        public_key: Box::new(*key.public_der()),
        common_caps: vec![CommonCaps::OURS.bits()],
        channel_caps: vec![TunnelCaps::OURS.bits()],
    };
    let check = async |ticket: Result<Password, _>| {
        let right = ticket.is_ok_and(|password| password.matches(secret));
        if right { Ok(()) } else { Err(LinkError::PermissionDenied) }
    };
    let deadlines = Deadlines::default();
    spice_proto::io::accept(&mut stream, key, deadlines, |_| Decision::Welcome(welcome), check)
        .await
        .unwrap();
    stream
}

/// Lets a guest connect to the one service and send a little, and breaks the link in the middle of that.
async fn serve(mut stream: TcpStream) {
    let config = Config::default();
    let mut channel =
        Channel::new(Role::Server, HeaderForm::Mini, Layout::B, TunnelCaps::OURS, config, Instant::now());
    let (mut input, mut echoed) = (Vec::new(), false);
    while !echoed {
        stream.write_all(channel.outgoing()).await.unwrap();
        channel.sent(usize::MAX);
        assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0, "the client left");
        while let Split::Frame { frame, consumed } =
            frame::split(HeaderForm::Mini, channel.max_body(), &input).unwrap()
        {
            match channel.handle_frame(Instant::now(), frame).unwrap() {
                Some(ChannelEvent::ServiceAdded(add)) => {
                    channel.map_service(add.service, [198, 18, 0, 9].into()).unwrap();
                    channel.open(add.service).unwrap();
                }
                Some(ChannelEvent::Accepted { socket }) => {
                    channel.send(socket, |room| {
                        room[..5].copy_from_slice(b"hello");
                        5
                    });
                }
                Some(ChannelEvent::Data { .. }) => echoed = true,
                _ => {}
            }
            input.drain(..consumed);
        }
    }
    stream.set_zero_linger().unwrap();
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Pages of memory that belong to nobody else.
fn data() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(5).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_hundred_links_leave_nothing_behind() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let share = format!("tcp://{}?name=echo", echo.local_addr().unwrap());
    let (broken, mut resets) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let (mut read, mut write) = stream.split();
            let end = tokio::io::copy(&mut read, &mut write).await;
            broken.send(end.map_err(|error| error.kind())).unwrap();
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = SpiceServer::plain("127.0.0.1", listener.local_addr().unwrap().port());
    let (key, secret) = (TicketKey::generate().unwrap(), Password::new("secret").unwrap());
    let config = CompanionConfig {
        first_wait: Duration::from_millis(2),
        longest_wait: Duration::from_millis(2),
        ..CompanionConfig::default()
    };
    let (handle, mut events, run) = companion(server, Credentials::ticket(secret.clone()), config);
    handle.add_share(share.parse().unwrap()).unwrap();
    let running = tokio::spawn(run);
    let mut connections = Vec::new();
    let mut before = None;
    for link in 0..LINKS {
        let stream = timeout(PATIENCE, accept(&listener, &key, &secret)).await.expect("no link");
        timeout(PATIENCE, serve(stream)).await.expect("no service");
        let end = timeout(PATIENCE, resets.recv()).await.expect("the service was not told").unwrap();
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
        loop {
            match timeout(PATIENCE, events.recv()).await.expect("no event").unwrap() {
                Event::Opened { connection, .. } => connections.push(connection.0),
                Event::Waiting { .. } => break,
                _ => {}
            }
        }
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let now = (open_files(), tasks, data());
        // After the first few, memory and name lookups are as they stay.
        if link == 9 {
            before = Some(now);
        }
        if let Some((files, tasks, pages)) = before {
            assert!(
                now.0 <= files && now.1 <= tasks,
                "{now:?} after link {link}, {before:?} after the tenth"
            );
            assert!(now.2 < pages + 512, "{now:?} after link {link}, {before:?} after the tenth");
        }
    }
    let counted: Vec<u64> = (0..LINKS as u64).collect();
    assert_eq!(connections, counted, "connections are numbered throughout");
    handle.shutdown();
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
