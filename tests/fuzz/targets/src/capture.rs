//! The way from a capture file to Spice messages, entered at its beginning and in its middle.

use std::collections::HashMap;
use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use spice_tunnel::capture::dissect::{Dissector, Item, MAX_KEPT, Options, What};
use spice_tunnel::capture::file::{MAX_PACKET, Reader};
use spice_tunnel::capture::packet::{Flags, Segment, segment};
use spice_tunnel::capture::reassembly::{Limits, Piece, Reassembler, StreamEvent, StreamId, Way};

use crate::input::Input;

/// Byte 0 chooses: the rest is a capture file; or it says which segments two honest ends exchange, in which disorder; or
/// it is what they say, and in which pieces.
pub fn capture(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 3 {
        0 => file(input.rest()),
        1 => disorder(input),
        _ => conversation(input),
    }
}

/// Reads a file to its end, or to where it is damaged.
fn file(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(Cursor::new(bytes.to_vec())) else { return };
    let mut pipeline = Pipeline::new(Limits::default());
    let mut number = 0;
    while let Ok(Some(packet)) = reader.next() {
        number += 1;
        assert_eq!(packet.number, number);
        assert!(packet.bytes.len() <= packet.original_len && packet.bytes.len() <= MAX_PACKET);
        if let Ok(Some(segment)) = segment(&packet) {
            assert!(segment.payload.len() + segment.cut <= packet.original_len.max(1 << 16));
            pipeline.segment(packet.time, &segment, false);
        }
    }
    assert!(reader.position() <= bytes.len() as u64);
    assert!(reader.next().is_ok_and(|packet| packet.is_none()));
    pipeline.finish(false);
}

/// Operations of 6 bytes: who, flags, where in the stream (3 bytes), how much. Every byte sent is the lower half of its
/// own sequence number's lower half, so that each one that comes out can be checked, behind holes as well.
fn disorder(mut input: Input<'_>) {
    let limits = Limits {
        connections: 1 + usize::from(input.byte() % 4),
        waiting: usize::from(input.short()),
        pieces: usize::from(input.byte()),
        waiting_total: usize::from(input.short()),
    };
    let mut pipeline = Pipeline::new(limits);
    let base = u32::from(input.short()) << 16 | u32::from(input.short());
    let mut time = Duration::ZERO;
    while !input.is_empty() {
        let (who, flags) = (input.byte(), input.byte());
        let seq = base.wrapping_add(u32::from(input.short()) | u32::from(input.byte()) << 24);
        let len = u32::from(input.byte());
        let payload: Vec<u8> = (0..len).map(|at| seq_byte(seq.wrapping_add(at), flags)).collect();
        let ack = base.wrapping_add(u32::from(who) << 6);
        // Whole connections are made of other ports.
        let segment = ends(who, seq, ack, Flags::from_bits_retain(flags), &payload, usize::from(who >> 5));
        time += Duration::from_millis(300);
        pipeline.segment(time, &segment, true);
    }
    pipeline.finish(true);
}

/// What the byte at a sequence number is. A SYN moves its payload by one.
fn seq_byte(seq: u32, flags: u8) -> u8 {
    let seq = if Flags::from_bits_retain(flags).contains(Flags::SYN) { seq.wrapping_add(1) } else { seq };
    seq.to_le_bytes()[0]
}

/// Operations: who, how much, and what they say; in order but for a few.
fn conversation(mut input: Input<'_>) {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut sent = [0_u32; 2];
    let syn = Flags::SYN;
    pipeline.segment(Duration::ZERO, &ends(0, 0, 0, syn, &[], 0), false);
    pipeline.segment(Duration::ZERO, &ends(1, 0, 1, syn | Flags::ACK, &[], 0), false);
    while !input.is_empty() {
        let (who, len) = (input.byte(), input.short());
        let payload = input.bytes(usize::from(len));
        let way = usize::from(who & 1);
        // Rarely something is missing, cut off or the end.
        let (gap, cut, flags) = match who >> 4 {
            14 => (u32::from(len), 0, Flags::ACK),
            15 => (0, usize::from(len >> 8), Flags::ACK),
            13 => (0, 0, Flags::ACK | Flags::FIN),
            _ => (0, 0, Flags::ACK),
        };
        let seq = 1 + sent[way].wrapping_add(gap);
        let ack = 1 + sent[1 - way];
        pipeline.segment(Duration::ZERO, &ends(who & 1, seq, ack, flags, payload, cut), false);
        let count = u32::try_from(payload.len() + cut).unwrap_or(u32::MAX);
        sent[way] = sent[way].wrapping_add(gap).wrapping_add(count);
    }
    pipeline.finish(false);
}

/// A segment of one of a few connections.
fn ends(who: u8, seq: u32, ack: u32, flags: Flags, payload: &[u8], cut: usize) -> Segment<'_> {
    let client = SocketAddr::from(([10, 0, 0, 1], 40_000 + u16::from(who >> 1 & 3)));
    let server = SocketAddr::from(([10, 0, 0, 2], 5930));
    let (from, to) = if who & 1 == 0 { (client, server) } else { (server, client) };
    Segment { from, to, seq, ack, flags, payload, cut }
}

/// Both stages behind the segments, with all that they promise checked.
struct Pipeline {
    reassembler: Reassembler,
    dissector: Dissector,
    streams: HashMap<StreamId, Stream>,
    /// Number of the next connection.
    next: u64,
    /// Spice connections that began and are not over.
    spice: HashMap<StreamId, ()>,
}

#[derive(Default)]
struct Stream {
    ways: [Direction; 2],
}

impl Stream {
    fn direction(&mut self, way: Way) -> &mut Direction {
        let direction = &mut self.ways[usize::from(way == Way::Back)];
        assert!(!direction.finished, "{way:?} goes on behind its FIN");
        direction
    }
}

#[derive(Default)]
struct Direction {
    /// The next byte, where each says its place.
    next: Option<u8>,
    finished: bool,
}

impl Pipeline {
    fn new(limits: Limits) -> Self {
        Self {
            reassembler: Reassembler::new(limits),
            dissector: Dissector::new(Options::default()),
            streams: HashMap::new(),
            next: 0,
            spice: HashMap::new(),
        }
    }

    fn segment(&mut self, time: Duration, segment: &Segment<'_>, numbered: bool) {
        let Self { reassembler, dissector, streams, next, spice } = self;
        reassembler.handle(time, segment, &mut |event| {
            assert_eq!(event.time, time);
            check_event(&event, streams, next, numbered);
            dissector.handle(event, &mut |item| check_item(&item, spice));
        });
    }

    fn finish(mut self, numbered: bool) {
        let Self { reassembler, dissector, streams, next, spice } = &mut self;
        reassembler.finish(&mut |event| {
            check_event(&event, streams, next, numbered);
            dissector.handle(event, &mut |item| check_item(&item, spice));
        });
        assert!(streams.is_empty(), "a connection did not end");
        dissector.finish(&mut |item| check_item(&item, spice));
        assert!(spice.is_empty(), "a Spice connection did not end");
    }
}

/// `numbered`: every byte says its place.
fn check_event(
    event: &StreamEvent<'_>,
    streams: &mut HashMap<StreamId, Stream>,
    next: &mut u64,
    numbered: bool,
) {
    let id = event.stream;
    if matches!(event.piece, Piece::Opened { .. }) {
        assert_eq!(id, StreamId(*next), "connections are numbered in their order");
        *next += 1;
        assert!(streams.insert(id, Stream::default()).is_none());
        return;
    }
    let stream = streams.get_mut(&id).expect("a connection that is open");
    match event.piece {
        Piece::Bytes { way, bytes } => {
            assert!(!bytes.is_empty());
            let direction = stream.direction(way);
            if numbered {
                for byte in bytes {
                    assert_eq!(direction.next.unwrap_or(*byte), *byte, "a byte out of its place");
                    direction.next = Some(byte.wrapping_add(1));
                }
            }
        }
        Piece::Hole { way, missing, .. } => {
            assert!(missing > 0);
            let direction = stream.direction(way);
            direction.next = direction.next.map(|next| next.wrapping_add(missing.to_le_bytes()[0]));
        }
        Piece::Finished { way } => stream.direction(way).finished = true,
        Piece::Ended { .. } => {
            streams.remove(&id);
        }
        Piece::Reset { .. } | Piece::Answered => {}
        Piece::Opened { .. } => unreachable!("it was handled before"),
    }
}

fn check_item(item: &Item<'_>, spice: &mut HashMap<StreamId, ()>) {
    match &item.what {
        What::Began { .. } => assert!(spice.insert(item.stream, ()).is_none(), "it began twice"),
        What::Ended { .. } => assert!(spice.remove(&item.stream).is_some(), "it ended without having begun"),
        What::Message(message) => {
            assert!(spice.contains_key(&item.stream));
            assert!(message.bytes.len() <= MAX_KEPT && message.bytes.len() <= message.head.size as usize);
        }
        What::Malformed { error, bytes, .. } => {
            assert!(spice.contains_key(&item.stream));
            assert!(!error.is_empty() && bytes.len() <= MAX_KEPT);
        }
        What::LinkMess { .. }
        | What::LinkReply { .. }
        | What::AuthMechanism(_)
        | What::Ticket
        | What::Sasl { .. }
        | What::LinkResult(_)
        | What::Linked(_)
        | What::Hole(_) => assert!(spice.contains_key(&item.stream)),
    }
    // Whatever it holds can be shown.
    let _ = format!("{item:?}");
}
