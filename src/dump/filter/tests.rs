use std::time::Duration;

use spice_proto::frame::HeaderForm;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

use super::*;
use crate::capture::dissect::{Body, Channel, End, Head, Hole, Item, Message, Terms};
use crate::dump::books::Books;

const TUNNEL: Option<Channel> = Some(Channel { channel_type: 7, id: Some(0) });

fn item(channel: Option<Channel>, from: Option<Sender>, what: What<'_>) -> Item<'_> {
    Item { time: Duration::from_secs(10), stream: StreamId(3), channel, from, what }
}

fn server(message: ServerMessage<'_>) -> Item<'_> {
    let head = Head { serial: Some(1), kind: message.kind(), size: 2, sub_list: 0 };
    let name = Some(message.name());
    let what = What::Message(Message { head, name, body: Body::TunnelServer(message), bytes: &[] });
    item(TUNNEL, Some(Sender::Server), what)
}

fn client(message: ClientMessage<'_>) -> Item<'_> {
    let head = Head { serial: Some(1), kind: message.kind(), size: 2, sub_list: 0 };
    let name = Some(message.name());
    let what = What::Message(Message { head, name, body: Body::TunnelClient(message), bytes: &[] });
    item(TUNNEL, Some(Sender::Client), what)
}

/// A short story: what passes of it, by its number.
fn passing(filter: &Filter) -> Vec<usize> {
    let (socket, service) = (SocketId(4), ServiceId(2));
    let list = Terms { header: HeaderForm::Full, layout: Layout::B, channel_caps: vec![] };
    let malformed = |kind| What::Malformed {
        error: "expected sense".into(),
        header: Some(Head { serial: None, kind, size: 0, sub_list: 0 }),
        bytes: &[],
    };
    let hole = Hole { missing: Some(1), skipped: 0, resumed: true, cause: None };
    let addresses = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let story = [
        item(None, None, What::Began { client: addresses.0, server: addresses.1, from_start: true }),
        item(TUNNEL, Some(Sender::Client), What::Ticket),
        item(TUNNEL, None, What::Linked(list)),
        server(ServerMessage::SocketOpen { socket, service, tokens: 1 }),
        client(ClientMessage::SocketOpenAck { socket, tokens: 1 }),
        server(ServerMessage::SocketData { socket: SocketId(5), payload: b"x" }),
        client(ClientMessage::SocketClosed { socket }),
        server(ServerMessage::SocketClosedAck { socket }),
        item(TUNNEL, Some(Sender::Server), malformed(106)),
        item(Some(Channel { channel_type: 2, id: Some(1) }), Some(Sender::Server), malformed(106)),
        item(TUNNEL, Some(Sender::Client), What::Hole(hole)),
        item(TUNNEL, None, What::Ended { how: End::Closed }),
    ];
    let mut books = Books::default();
    let mut passing = Vec::new();
    for (index, item) in story.iter().enumerate() {
        if books.note(item, |seen| filter.passes(seen)) {
            passing.push(index);
        }
    }
    passing
}

#[test]
fn without_a_filter_everything_has_a_line_that_can() {
    assert_eq!(passing(&Filter::default()), [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
}

#[test]
fn what_might_be_meant_passes() {
    let socket = Filter { socket: Some(SocketId(4)), ..Filter::default() };
    assert_eq!(passing(&socket), [3, 4, 6, 7, 8, 10]);
    let service = Filter { service: Some(ServiceId(2)), ..Filter::default() };
    assert_eq!(
        passing(&service),
        [3, 4, 6, 7, 8, 10],
        "the connection's messages too, the last one included"
    );
    let other = Filter { service: Some(ServiceId(3)), ..Filter::default() };
    assert_eq!(passing(&other), [8, 10]);
    let from = Filter { from: Some(Sender::Client), ..Filter::default() };
    assert_eq!(passing(&from), [1, 4, 6, 10]);
    let named = |name: &str| Filter { messages: vec![name.parse().unwrap()], ..Filter::default() };
    assert_eq!(passing(&named("socket_data")), [5, 8, 10], "type 106 of a server's tunnel is SOCKET_DATA");
    assert_eq!(passing(&named("SOCKET-OPEN")), [3, 10]);
    assert_eq!(passing(&named("hole")), [10]);
    assert_eq!(passing(&named("malformed")), [8, 9]);
    let channel = |name: &str| Filter { channels: vec![name.parse().unwrap()], ..Filter::default() };
    assert_eq!(passing(&channel("tunnel")), [1, 3, 4, 5, 6, 7, 8, 10]);
    assert_eq!(passing(&channel("display:1")), [9]);
    assert_eq!(passing(&channel("display:0")), [0_usize; 0]);
    let both = Filter { channels: vec!["display".parse().unwrap(), "tunnel:0".parse().unwrap()], ..socket };
    assert_eq!(passing(&both), [3, 4, 6, 7, 8, 10]);
}

#[test]
fn times_and_streams_hold_for_everything() {
    let within =
        |range: &str| passing(&Filter { time: Some(range.parse().unwrap()), ..Filter::default() }).len();
    assert_eq!(within("0..0"), 11, "the first item is at 0, and so are the others");
    assert_eq!(within("..0.5"), 11);
    assert_eq!(within("-1..1s"), 11);
    assert_eq!(within("0.5.."), 0);
    let other = Filter { stream: Some(StreamId(2)), ..Filter::default() };
    assert_eq!(passing(&other).len(), 0);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for range in ["", "..", "1", "2..1", "a..b", "1..inf", "nan.."] {
        assert!(range.parse::<TimeRange>().is_err(), "{range:?}");
    }
    for channel in ["", "tunel", "main:", "main:256", "300", "main:0:0"] {
        assert!(channel.parse::<ChannelFilter>().is_err(), "{channel:?}");
    }
    assert!("type-42".parse::<ChannelFilter>().is_ok());
    let error = "socket".parse::<MessageName>().unwrap_err();
    assert!(error.contains("socket_open_nack"), "{error}");
    assert!("nonsense".parse::<MessageName>().is_err());
}
