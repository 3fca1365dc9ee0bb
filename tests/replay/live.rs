//! `replay --live` against a server of a few lines, whose guest does as it is told.

use std::time::{Duration, Instant};

use spice_proto::frame::{Frame, Split, split};
use spice_proto::handshake::Deadlines;
use spice_proto::io::{Decision, accept};
use spice_proto::link::{CommonCaps, LinkError, TunnelCaps, Welcome};
use spice_proto::names::Sender;
use spice_proto::ticket::{Password, TicketKey};
use spice_proto::tunnel::{ClientMessage, ServiceId, SocketId};
use spice_tunnel::capture::dissect;
use spice_tunnel::capture::file::Reader;
use spice_tunnel::capture::reader::SpiceReader;
use spice_tunnel::replay::live::{Script, run};
use spice_tunnel::replay::report::{Part, Report, Subject, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tunnel_channel::{Channel, Config, Event, Role};

use super::tape::Tape;
use super::{assert_found, text};

/// What the live guest does: one connection after the other, on each of which it sends this and ends its direction, and
/// then reads to the end.
type Guest = &'static [&'static [u8]];

/// What came back on each; `None` where it was refused.
type Heard = Vec<Option<Vec<u8>>>;

async fn serve(listener: TcpListener, guest: Guest, maps: bool) -> Heard {
    let (mut stream, _) = listener.accept().await.unwrap();
    let key = TicketKey::generate().unwrap();
    let welcome = Welcome {
        public_key: Box::new(*key.public_der()),
        common_caps: vec![CommonCaps::OURS.bits()],
        channel_caps: vec![TunnelCaps::OURS.bits()],
    };
    let wanted = Password::new("sesame").unwrap();
    let verdict = async |given: Result<Password, _>| match given {
        Ok(given) if given.matches(&wanted) => Ok(()),
        Ok(_) | Err(_) => Err(LinkError::PermissionDenied),
    };
    let linked =
        accept(&mut stream, &key, Deadlines::default(), |_| Decision::Welcome(welcome), verdict).await;
    let Ok(linked) = linked else { return Vec::new() };
    let now = Instant::now();
    let mut server =
        Channel::new(Role::Server, linked.header, linked.layout, TunnelCaps::OURS, Config::default(), now);
    let mut heard = Heard::new();
    let mut coming = Vec::new();
    let mut bytes = Vec::new();
    let mut described = None;
    loop {
        flush(&mut server, &mut stream).await;
        let Ok(Split::Frame { frame, consumed }) = split(linked.header, server.max_body(), &bytes) else {
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(n @ 1..) => bytes.extend(&piece[..n]),
                Ok(0) | Err(_) => return heard,
            }
            continue;
        };
        let body = frame.body.to_vec();
        let frame = Frame { body: &body, ..frame };
        bytes.drain(..consumed);
        let Some(event) = server.handle_frame(Instant::now(), frame).unwrap() else { continue };
        match event {
            Event::ServiceAdded(add) => {
                assert_eq!(described.take(), Some((add.service, super::tape::described())));
                if maps {
                    server.map_service(add.service, [10, 0, 2, 31].into()).unwrap();
                }
                if !guest.is_empty() {
                    server.open(ServiceId(0)).unwrap();
                }
            }
            Event::Accepted { socket } => {
                let payload = guest[heard.len()];
                server.send(socket, |room| {
                    room[..payload.len()].copy_from_slice(payload);
                    payload.len()
                });
                server.finish(socket);
            }
            Event::Data { socket, payload } => {
                coming.extend(payload);
                server.delivered(socket, 1);
            }
            Event::Finished { socket } => {
                heard.push(Some(std::mem::take(&mut coming)));
                server.close(socket);
                if heard.len() < guest.len() {
                    server.open(ServiceId(0)).unwrap();
                }
            }
            Event::Refused { .. } => {
                heard.push(None);
                if heard.len() < guest.len() {
                    server.open(ServiceId(0)).unwrap();
                }
            }
            Event::ServiceDescribed { service, info } => described = Some((service, info.info())),
            Event::Disconnecting { .. } => {}
            Event::Ready { .. }
            | Event::ServiceRejected { .. }
            | Event::ServiceRemoved { .. }
            | Event::ServiceMapped { .. }
            | Event::NameAsked { .. }
            | Event::NameAnswered { .. }
            | Event::DomainAdded { .. }
            | Event::DomainRemoved { .. }
            | Event::Open { .. }
            | Event::Writable { .. }
            | Event::PeerClosed { .. }
            | Event::Reset { .. }
            | Event::Migrate => panic!("{event:?}"),
        }
    }
}

async fn flush(server: &mut Channel, stream: &mut TcpStream) {
    while server.outgoing_len() > 0 {
        let Ok(n) = stream.write(server.outgoing()).await else { return };
        server.sent(n);
    }
}

fn script(tape: &Tape) -> Script {
    let file = Reader::new(std::io::Cursor::new(tape.pcap())).unwrap();
    let mut reader = SpiceReader::new(file, dissect::Options::default());
    let mut script = Script::default();
    while reader.step(&mut |item| script.item(&item)).unwrap() {}
    script
}

/// Long enough for any machine. What is not going to come is waited for more shortly.
const PATIENCE: Duration = Duration::from_secs(60);
const IMPATIENCE: Duration = Duration::from_secs(1);

async fn live(tape: &Tape, guest: Guest, maps: bool, patience: Duration) -> (Report, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(serve(listener, guest, maps));
    let password = Password::new("sesame").unwrap();
    let report = run(&address, &password, script(tape), patience).await.unwrap();
    (report, server.await.unwrap())
}

#[tokio::test]
async fn the_same_guest_is_equal() {
    let tape = Tape::greetings();
    let (report, heard) = live(&tape, &[b"hello", b"", b"again"], true, PATIENCE).await;
    assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
    assert_eq!(heard, [Some(b"world".to_vec()), None, Some(b"!".to_vec())]);
    let compared = report.compared_by(Part::Live);
    assert_eq!((compared.services, compared.connections), (1, 3));
    assert_eq!((compared.bytes_up, compared.bytes_down), (10, 6));
}

#[tokio::test]
async fn a_changed_byte_is_found() {
    // Of the guest.
    let (report, _) = live(&Tape::greetings(), &[b"hallo", b"", b"again"], true, PATIENCE).await;
    assert_found(&report, Part::Live, Subject::Bytes, &["connection 0", "0x65 at offset 1", "0x61"]);
    // Of the service, in the capture: the live guest hears it.
    let mut tape = Tape::greetings();
    let data = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketData { .. })));
    tape.say(data, &ClientMessage::SocketData { socket: SocketId(0), payload: b"w0rld" });
    let (_, heard) = live(&tape, &[b"hello", b"", b"again"], true, PATIENCE).await;
    assert_eq!(heard[0], Some(b"w0rld".to_vec()));
}

#[tokio::test]
async fn a_guest_that_does_less_or_more_is_found() {
    let (report, _) = live(&Tape::greetings(), &[b"hell", b"", b"again"], true, IMPATIENCE).await;
    assert_found(
        &report,
        Part::Live,
        Subject::HalfClose,
        &["connection 0", "behind byte 5", "behind byte 4"],
    );
    let (report, _) = live(&Tape::greetings(), &[b"hello!", b"", b"again"], true, IMPATIENCE).await;
    assert_found(&report, Part::Live, Subject::Bytes, &["connection 0", "nothing at offset 5"]);
    let (report, _) = live(&Tape::greetings(), &[b"hello", b""], true, IMPATIENCE).await;
    assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));
    assert!(text(&report).contains("the live guest did not open it"), "{}", text(&report));
    let (report, _) = live(&Tape::greetings(), &[], false, IMPATIENCE).await;
    assert_found(&report, Part::Live, Subject::Service, &["service 0", "it got an address", "it got none"]);
}

#[tokio::test]
async fn a_capture_with_a_hole_is_not_played() {
    let mut tape = Tape::greetings();
    let at = tape.position(|said| said.from == Sender::Server && said.body.ends_with(b"hello"));
    tape.lose(at);
    let (report, heard) = live(&tape, &[b"hello", b"", b"again"], true, PATIENCE).await;
    assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));
    assert_eq!(heard, []);
}

#[tokio::test]
async fn a_wrong_password_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(serve(listener, &[], true));
    let password = Password::new("other").unwrap();
    let failed = run(&address, &password, script(&Tape::greetings()), PATIENCE).await;
    assert!(format!("{:?}", failed.unwrap_err()).contains("PermissionDenied"));
    server.await.unwrap();
}
