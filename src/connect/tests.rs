//! `connect` against a server of the test's own, and against nobody.

mod found;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use clap::Parser;
use spice_proto::{
    frame::{self, HeaderForm, Split},
    handshake::Deadlines,
    io::Decision,
    link::{CommonCaps, LinkError, TunnelCaps, Welcome},
    ticket::{Password, TicketKey},
    tunnel::Layout,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tunnel_channel::{Channel, Role};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ConnectArgs,
}

fn args(words: &[&str]) -> Result<ConnectArgs, clap::Error> {
    Cli::try_parse_from([&["connect"], words].concat()).map(|cli| cli.args)
}

/// What was printed, readable while the program runs.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Paper {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Paper {
    /// All lines, once there are `count`.
    async fn lines(&self, count: usize) -> Vec<String> {
        let wait = async {
            loop {
                let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
                if text.lines().count() >= count {
                    return text.lines().map(str::to_owned).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), wait).await.expect("not printed")
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("spice://{}", listener.local_addr().unwrap());
    (listener, uri)
}

/// Links one client whose ticket must be `secret`.
async fn linked(listener: &TcpListener) -> Option<TcpStream> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let key = TicketKey::generate().unwrap();
    let welcome = Welcome {
        public_key: Box::new(*key.public_der()),
        common_caps: vec![CommonCaps::OURS.bits()],
        channel_caps: vec![TunnelCaps::OURS.bits()],
    };
    let secret = Password::new("secret").unwrap();
    let outcome = spice_proto::io::accept(
        &mut stream,
        &key,
        Deadlines::default(),
        |mess| {
            assert_eq!((mess.channel_type, mess.channel_id, mess.session_id), (7, 0, 0));
            Decision::Welcome(welcome)
        },
        async |ticket| {
            let right = ticket.is_ok_and(|password| password.matches(&secret));
            if right { Ok(()) } else { Err(LinkError::PermissionDenied) }
        },
    )
    .await;
    outcome.ok().map(|_| stream)
}

/// Maps every service to 198.18.0.99 until it has mapped `count`; then closes.
async fn serve(mut stream: TcpStream, count: usize) {
    let caps = TunnelCaps::OURS;
    let config = tunnel_channel::Config::default();
    let mut channel = Channel::new(Role::Server, HeaderForm::Mini, Layout::B, caps, config, Instant::now());
    let (mut input, mut mapped) = (Vec::new(), 0);
    while mapped < count {
        stream.write_all(channel.outgoing()).await.unwrap();
        channel.sent(channel.outgoing_len());
        if stream.read_buf(&mut input).await.unwrap() == 0 {
            return;
        }
        let mut start = 0;
        while let Split::Frame { frame, consumed } =
            frame::split(HeaderForm::Mini, channel.max_body(), &input[start..]).unwrap()
        {
            start += consumed;
            let event = channel.handle_frame(Instant::now(), frame).unwrap();
            if let Some(tunnel_channel::Event::ServiceAdded(add)) = event {
                channel.map_service(add.service, [198, 18, 0, 99].into()).unwrap();
                mapped += 1;
            }
        }
        input.drain(..start);
    }
    stream.write_all(channel.outgoing()).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut input).await;
}

async fn failure(uri: &str, more: &[&str]) -> Error {
    let words = [&[uri, "--share", "tcp://printer.lan:631"], more].concat();
    let running = run_to(args(&words).unwrap(), CancellationToken::new(), tokio::io::sink());
    timeout(Duration::from_secs(10), running).await.expect("still trying").expect_err("it worked")
}

#[tokio::test]
async fn maps_are_printed_and_tunnels_come_back() {
    let (listener, uri) = listen().await;
    let paper = Paper::default();
    let shutdown = CancellationToken::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    let file = file.path().to_str().unwrap();
    let args = args(&[
        &uri,
        "--password-file",
        file,
        "--share",
        "tcp://printer.lan:631?name=Office",
        "--share",
        "tcp://printer.lan:80?name=Web",
    ]);
    let running = tokio::spawn(run_to(args.unwrap(), shutdown.clone(), paper.clone()));
    // The second time is the same again, and not printed.
    for _ in 0..2 {
        serve(linked(&listener).await.unwrap(), 2).await;
    }
    let _third = linked(&listener).await.unwrap();
    let lines = paper.lines(2).await;
    let expected = [
        "Office  tcp://printer.lan:631  ->  198.18.0.99:631",
        "Web  tcp://printer.lan:80  ->  198.18.0.99:80",
    ];
    assert_eq!(lines, expected);
    shutdown.cancel();
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn json_says_everything() {
    let (listener, uri) = listen().await;
    let paper = Paper::default();
    let shutdown = CancellationToken::new();
    let uri = format!("{uri}?password=secret");
    let args = args(&[&uri, "--share", "tcp://[2001:db8::1]:631?name=Office", "--json"]).unwrap();
    let running = tokio::spawn(run_to(args, shutdown.clone(), paper.clone()));
    serve(linked(&listener).await.unwrap(), 1).await;
    let lines: Vec<serde_json::Value> =
        paper.lines(6).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["attempt"]), (&"linking".into(), &1.into()));
    assert_eq!(lines[1]["event"], "connected");
    let mapped = serde_json::json!({
        "event": "mapped", "name": "Office", "target": "tcp://[2001:db8::1]:631",
        "virtual_ip": "198.18.0.99", "port": 631,
    });
    assert_eq!(lines[2], mapped);
    let reason = serde_json::json!("the server ended the tunnel");
    assert_eq!((&lines[3]["event"], &lines[3]["reason"]), (&"disconnected".into(), &reason));
    assert_eq!((&lines[4]["event"], &lines[4]["reason"]), (&"waiting".into(), &reason));
    assert!((0.25..=0.5).contains(&lines[4]["seconds"].as_f64().unwrap()));
    assert_eq!(lines[5]["event"], "linking");
    shutdown.cancel();
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_first_failure_ends_it_and_says_why() {
    let (listener, uri) = listen().await;
    let answer = tokio::spawn(async move {
        // Wrong ticket; another tunnel in place; a stock server, which closes after the link message.
        assert!(linked(&listener).await.is_none());
        drop(linked(&listener).await.unwrap());
        for leave_unread in [false, true] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let wanted = if leave_unread { 10 } else { 16 + 18 + 8 };
            stream.read_exact(&mut vec![0; wanted]).await.unwrap();
        }
        // After a reset it is asked whether it speaks TLS.
        drop(listener.accept().await.unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let error = failure(&uri, &["--password", "guess"]).await;
    assert!(matches!(error, Error::Link(LinkFailure::WrongPassword { given: true, .. })), "{error}");
    let error = failure(&uri, &["--password", "secret"]).await;
    assert!(matches!(error, Error::Companion(CompanionError::Occupied { .. })), "{error}");
    for _ in 0..2 {
        let error = failure(&uri, &[]).await;
        assert!(matches!(error, Error::Link(LinkFailure::NoTunnel { .. })), "{error}");
    }
    let error = failure(&uri, &[]).await;
    assert!(matches!(error, Error::Link(LinkFailure::NotSpice { .. })), "{error}");
    drop(answer.await.unwrap());
    let error = failure(&uri, &[]).await;
    assert!(matches!(error, Error::Link(LinkFailure::Connect { .. })), "{error}");
}

#[tokio::test]
async fn nobody_needs_to_read_what_is_printed() {
    let (listener, uri) = listen().await;
    let shutdown = CancellationToken::new();
    let words = [&uri, "--password", "secret", "--share", "tcp://printer.lan:631", "--json"];
    let (out, _unread) = tokio::io::duplex(8);
    let running = tokio::spawn(run_to(args(&words).unwrap(), shutdown.clone(), out));
    // The tunnel works, although not even its first line is out.
    let server = tokio::spawn(async move { serve(linked(&listener).await.unwrap(), 1).await });
    timeout(Duration::from_secs(10), server).await.expect("stalled").unwrap();
    shutdown.cancel();
    let outcome = timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    assert!(matches!(outcome, Ok(()) | Err(Error::Print(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_silent_server_does_not_keep_us_from_leaving() {
    let (_listener, uri) = listen().await;
    let shutdown = CancellationToken::new();
    let args = args(&[&uri, "--share", "tcp://printer.lan:631"]).unwrap();
    let running = tokio::spawn(run_to(args, shutdown.clone(), tokio::io::sink()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    shutdown.cancel();
    timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn shares_that_cannot_go_together_are_found_before_linking() {
    let error = failure("spice://127.0.0.1:1", &["--share", "tcp://printer.lan:631?name=Other"]).await;
    let shared_twice = matches!(error, Error::Session(SessionError::Share(ShareError::Duplicate { .. })));
    assert!(shared_twice, "{error}");
    let error = failure("spice://127.0.0.1:1", &["--password-file", "/nonexistent"]).await;
    assert!(matches!(error, Error::Session(SessionError::PasswordFile(_))), "{error}");
}

#[test]
fn wrong_usage_is_explained() {
    for (words, expected) in [
        (&["spice://h:1"][..], "--share"),
        (&["--share", "tcp://a:1"], "spice://HOST:PORT"),
        (&["h:1", "--share", "tcp://a:1"], "does not begin with spice://"),
        (&["spice+tls://h:1?port=2", "--share", "tcp://a:1"], "has one port"),
        (&["spice://h:1", "--share", "a:1"], "only tcp can be shared"),
        (&["spice://h:1", "--share", "tcp://a:1", "--dead-after", "0s"], "between 1s and 1h"),
    ] {
        let error = args(words).expect_err("accepted").to_string();
        assert!(error.contains(expected), "{error}");
    }
}
