use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use spice_proto::names;

use super::*;
use crate::capture::file;
use crate::capture::packet::{self, Flags, Segment};
use crate::capture::reassembly::{Limits, Reassembler, Way};

mod captures;
mod damage;
mod data;
mod link;
mod script;

/// What a capture holds of a TCP segment.
#[derive(Debug, Clone)]
struct Packet {
    time: Duration,
    from: SocketAddr,
    to: SocketAddr,
    seq: u32,
    ack: u32,
    flags: Flags,
    payload: Vec<u8>,
    /// Bytes that the capture does not have of it.
    cut: usize,
}

fn packets(name: &str) -> Vec<Packet> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("captures").join(name);
    let mut file = file::Reader::open(&path).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = file.next().unwrap() {
        let Some(segment) = packet::segment(&packet).unwrap() else { continue };
        let Segment { from, to, seq, ack, flags, payload, .. } = segment;
        packets.push(Packet {
            time: packet.time,
            from,
            to,
            seq,
            ack,
            flags,
            payload: payload.to_vec(),
            cut: 0,
        });
    }
    packets
}

/// A stream event that owns its bytes.
#[derive(Debug, Clone)]
enum Event {
    Bytes(Duration, StreamId, Way, Vec<u8>),
    Other(StreamEvent<'static>),
}

fn events(packets: &[Packet]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut sink = |StreamEvent { time, stream, piece }: StreamEvent<'_>| {
        let piece = match piece {
            Piece::Bytes { way, bytes } => {
                return events.push(Event::Bytes(time, stream, way, bytes.to_vec()));
            }
            Piece::Opened { from, to, from_start } => Piece::Opened { from, to, from_start },
            Piece::Answered => Piece::Answered,
            Piece::Hole { way, missing, cause } => Piece::Hole { way, missing, cause },
            Piece::Finished { way } => Piece::Finished { way },
            Piece::Reset { way } => Piece::Reset { way },
            Piece::Ended { seen } => Piece::Ended { seen },
        };
        events.push(Event::Other(StreamEvent { time, stream, piece }));
    };
    let mut reassembler = Reassembler::new(Limits::default());
    for Packet { time, from, to, seq, ack, flags, payload, cut } in packets {
        let (from, to, seq, ack, flags, cut) = (*from, *to, *seq, *ack, *flags, *cut);
        reassembler.handle(*time, &Segment { from, to, seq, ack, flags, payload, cut }, &mut sink);
    }
    reassembler.finish(&mut sink);
    events
}

/// Feeds events with their bytes in pieces of the lengths that `chop` gives, and gives each item to `sink`.
fn dissect(
    dissector: &mut Dissector,
    events: &[Event],
    mut chop: impl FnMut() -> usize,
    mut sink: impl FnMut(Item<'_>),
) {
    for event in events {
        match event {
            Event::Other(event) => dissector.handle(*event, &mut sink),
            Event::Bytes(time, stream, way, bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(chop().clamp(1, rest.len()));
                    let piece = Piece::Bytes { way: *way, bytes: now };
                    dissector.handle(StreamEvent { time: *time, stream: *stream, piece }, &mut sink);
                    rest = later;
                }
            }
        }
    }
    dissector.finish(&mut sink);
}

/// An item as text, without what depends on the pieces: how much is kept of what is not looked into.
fn text(mut item: Item<'_>) -> String {
    if let What::Message(message) = &mut item.what
        && message.body == Body::Opaque
    {
        message.bytes = &message.bytes[..message.bytes.len().min(bodies::PREFIX)];
    }
    format!("{item:?}")
}

fn texts(events: &[Event], chop: impl FnMut() -> usize) -> Vec<String> {
    let mut texts = Vec::new();
    let mut dissector = Dissector::new(Options::default());
    dissect(&mut dissector, events, chop, |item| texts.push(text(item)));
    assert_eq!(dissector.held, 0);
    texts
}

/// Channel, sender and name of an item that is a line of a dump.
fn label(item: &Item<'_>) -> Option<String> {
    let name = match &item.what {
        What::LinkMess { .. } => "link_mess",
        What::LinkReply { .. } => "link_reply",
        What::AuthMechanism(_) => "auth_mechanism",
        What::Ticket => "ticket",
        What::Sasl { name, .. } => name,
        What::LinkResult(_) => "link_result",
        What::Message(message) => message.name.unwrap_or("unknown"),
        What::Malformed { .. } => "malformed",
        What::Hole(_) => "hole",
        What::Began { .. } | What::Linked(_) | What::Ended { .. } => return None,
    };
    let channel = item.channel.and_then(|channel| names::channel(channel.channel_type)).unwrap_or("?");
    let from = item.from.map_or("-", Sender::name);
    Some(format!("{channel} {from} {name}"))
}

/// A generator of numbers that look random (Marsaglia's xorshift), the same ones every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

const STOCK: [&str; 3] = ["spice-gtk-session.pcap", "rust-client-session.pcap", "wrong-ticket.pcap"];
const TUNNELS: [&str; 2] = ["tunnel-v1-pair.pcap", "tunnel-v2-pair.pcap"];
