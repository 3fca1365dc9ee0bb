//! Peers that mean harm: what both roles have in common, and the tools for the others' tables.

use std::time::Instant;

use spice_proto::base::BaseServerMessage;
use spice_proto::frame::{Frame, HeaderForm};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{
    ClientMessage, GroupId, Layout, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};

use super::{new_service, said};
use crate::{Channel, Config, Event, ResetCause, Role, SocketViolation, Violation};

pub(super) const ID: SocketId = SocketId(0);
pub(super) const SERVICE: ServiceId = ServiceId(0);

/// What a message led to, without what it borrowed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Nothing,
    /// Whatever its numbers.
    Event,
    Ends(SocketViolation),
    Aborted,
    Fatal(Violation),
    /// A body that does not parse.
    Malformed,
}
pub(super) use Outcome::{Aborted, Ends, Fatal, Malformed, Nothing};

pub(super) fn frame(kind: u16, body: &[u8]) -> Frame<'_> {
    Frame { serial: None, kind, sub_list: 0, body }
}

pub(super) fn outcome(heard: Result<Option<Event<'_>>, Violation>) -> Outcome {
    match heard {
        Ok(None) => Nothing,
        Ok(Some(Event::Reset { cause: ResetCause::Violation(violation), .. })) => Ends(violation),
        Ok(Some(Event::Reset { .. })) => Aborted,
        Ok(Some(_)) => Outcome::Event,
        Err(Violation::Malformed(_)) => Malformed,
        Err(violation) => Fatal(violation),
    }
}

pub(super) fn hear(channel: &mut Channel, kind: u16, body: &[u8]) -> Outcome {
    let outcome = outcome(channel.handle_frame(Instant::now(), frame(kind, body)));
    assert_eq!(channel.has_ended(), matches!(outcome, Fatal(_) | Malformed), "{outcome:?}");
    outcome
}

pub(super) fn from_client(channel: &mut Channel, message: ClientMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(channel.terms.layout, &mut body);
    hear(channel, message.kind(), &body)
}

pub(super) fn from_server(channel: &mut Channel, message: ServerMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(&mut body);
    hear(channel, message.kind(), &body)
}

pub(super) fn base_from_server(channel: &mut Channel, message: &BaseServerMessage<'_>) -> Outcome {
    let mut body = Vec::new();
    message.write_body(&mut body);
    hear(channel, message.kind(), &body)
}

pub(super) fn new(role: Role, caps: TunnelCaps, config: Config) -> Channel {
    let mut channel = Channel::new(role, HeaderForm::Mini, Layout::B, caps, config, Instant::now());
    said(&mut channel);
    channel
}

pub(super) fn service_add(id: u32, group: u32, name: &'static [u8]) -> ServiceAdd<'static> {
    ServiceAdd {
        kind: ServiceKind::Generic,
        service: ServiceId(id),
        group: GroupId(group),
        port: 631,
        name,
        description: b"",
    }
}

/// A server with one service.
pub(super) fn server(caps: TunnelCaps) -> Channel {
    let mut server = new(Role::Server, caps, Config { window: 4, max_data: 3000, ..Config::default() });
    let heard = from_client(&mut server, ClientMessage::ServiceAdd(service_add(0, 0, b"printer")));
    assert_eq!(heard, Outcome::Event);
    server
}

/// A server whose socket 0 was accepted with so many tokens.
pub(super) fn open_server(caps: TunnelCaps, tokens: u32) -> Channel {
    let mut server = server(caps);
    assert_eq!(server.open(SERVICE), Ok(ID));
    let heard = from_client(&mut server, ClientMessage::SocketOpenAck { socket: ID, tokens });
    assert_eq!(heard, Outcome::Event);
    said(&mut server);
    server
}

pub(super) fn init(max_sockets: u16, max_data: u32) -> ServerMessage<'static> {
    ServerMessage::Init { max_sockets, max_data }
}

/// A client with one service, of a server with 20 sockets.
pub(super) fn client(caps: TunnelCaps) -> Channel {
    let mut client = new(Role::Client, caps, Config { window: 4, ..Config::default() });
    assert_eq!(from_server(&mut client, init(20, 2048)), Outcome::Event);
    assert_eq!(client.add_service(new_service(0, b"printer")), Ok(SERVICE));
    said(&mut client);
    client
}

pub(super) fn open(socket: u16, service: u32, tokens: u32) -> ServerMessage<'static> {
    ServerMessage::SocketOpen { socket: SocketId(socket), service: ServiceId(service), tokens }
}

pub(super) fn open_client(caps: TunnelCaps, tokens: u32) -> Channel {
    let mut client = client(caps);
    assert_eq!(from_server(&mut client, open(0, 0, tokens)), Outcome::Event);
    client.accept(ID);
    said(&mut client);
    client
}

pub(super) fn every_client_message(socket: SocketId) -> Vec<ClientMessage<'static>> {
    vec![
        ClientMessage::SocketOpenAck { socket, tokens: 1 },
        ClientMessage::SocketOpenNack { socket },
        ClientMessage::SocketFin { socket },
        ClientMessage::SocketClosed { socket },
        ClientMessage::SocketData { socket, payload: b"x" },
        ClientMessage::SocketToken { socket, tokens: 1 },
        ClientMessage::SocketReset { socket },
        ClientMessage::SocketClosedAck { socket },
    ]
}

pub(super) fn every_server_message(socket: SocketId) -> Vec<ServerMessage<'static>> {
    vec![
        ServerMessage::SocketOpen { socket, service: SERVICE, tokens: 1 },
        ServerMessage::SocketFin { socket },
        ServerMessage::SocketClose { socket },
        ServerMessage::SocketData { socket, payload: b"x" },
        ServerMessage::SocketToken { socket, tokens: 1 },
        ServerMessage::SocketClosedAck { socket },
    ]
}

#[test]
fn unknown_messages() {
    for kind in (7..=100).chain(116..=130).chain([0, 1000, u16::MAX]) {
        let heard = hear(&mut open_server(TunnelCaps::OURS, 1), kind, b"x");
        assert_eq!(heard, Fatal(Violation::UnknownMessage { kind }));
    }
    // A server may be newer than we are.
    let mut client = open_client(TunnelCaps::OURS, 1);
    for kind in (9..=100).chain(111..=130).chain([0, 1000, u16::MAX]) {
        assert_eq!(hear(&mut client, kind, b"x"), Nothing);
    }
    assert_eq!(said(&mut client), [""; 0]);
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    let mut client = open_client(TunnelCaps::OURS, u32::MAX);
    // Its owner has been careless too, which makes the test shorter.
    while client.outgoing_len() < 16_000_000 {
        client.send(ID, |room| room.len());
    }
    assert!(client.is_congested());
    let mut body = Vec::new();
    BaseServerMessage::SetAck { generation: 1, window: 0 }.write_body(&mut body);
    for _ in 0..2_000_000 {
        match client.handle_frame(Instant::now(), frame(3, &body)) {
            Ok(None) => {}
            Err(Violation::NotReading { queued, limit }) => {
                assert!(queued < limit + 100 && limit < 32 << 20);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("{} bytes are queued", client.outgoing_len());
}

#[test]
fn questions_faster_than_their_answers_are_read_are_answered_once() {
    let mut client = client(TunnelCaps::OURS);
    let mut server = open_server(TunnelCaps::OURS, 1);
    said(&mut server);
    let most = 2 * client.outgoing_high_water() + 100;
    for id in 0..100_000 {
        let ping = BaseServerMessage::Ping { id, timestamp: 7, padding: &[] };
        let mut body = Vec::new();
        ping.write_body(&mut body);
        assert_eq!(client.handle_frame(Instant::now(), frame(ping.kind(), &body)), Ok(None));
        let probe = ClientMessage::Probe { id };
        assert_eq!(server.handle_frame(Instant::now(), frame(probe.kind(), &id.to_le_bytes())), Ok(None));
        assert!(client.outgoing_len() <= most && server.outgoing_len() <= most);
    }
    // The last one is answered as soon as there is room, and only it.
    for channel in [&mut client, &mut server] {
        let before = channel.outgoing_len();
        assert!(before > most / 2);
        channel.sent(before);
        let last = channel.outgoing().to_vec();
        assert_eq!(last.get(6..10), Some(&99_999u32.to_le_bytes()[..]), "{last:?}");
        channel.sent(last.len());
        assert_eq!(channel.outgoing_len(), 0);
    }
}

#[test]
fn a_probe_that_was_not_negotiated() {
    for caps in [TunnelCaps::EXTENDED, TunnelCaps::empty()] {
        let heard = hear(&mut open_server(caps, 1), 111, &[0; 4]);
        assert_eq!(heard, Fatal(Violation::NotNegotiated { message: "probe" }));
        let mut client = open_client(caps, 1);
        assert_eq!((hear(&mut client, 109, &[0; 4]), client.rtt()), (Nothing, None));
    }
}

#[test]
fn every_kind_with_every_short_body() {
    for fill in [0, 1, 0xff] {
        let body = [fill; 64];
        for kind in (0..=130).chain([u16::MAX]) {
            for length in (0..=body.len()).filter(|length| *length < 16 || length % 8 < 3) {
                for mut channel in [open_server(TunnelCaps::OURS, 1), open_client(TunnelCaps::OURS, 1)] {
                    let heard = channel.handle_frame(Instant::now(), frame(kind, &body[..length]));
                    assert!(heard.is_ok() || channel.has_ended());
                    assert!(channel.sockets() <= 2 && channel.outgoing_len() < 100);
                }
            }
        }
    }
}
