//! TCP reassembly: from segments as they were captured to the two byte streams of each connection.
//!
//! # Theory of operation
//!
//! Each direction of a connection (`flow`) knows the position of the next byte it wants. A segment that holds it is
//! passed on without a copy, without what was had before. One from further ahead waits. Where bytes are wanted that the
//! capture does not have, somebody must decide that they will not come any more; they are given up, and become a hole,
//! when
//!
//! * the other end acknowledged them again and again, [`CONFIRMATIONS`] times, or after [`PATIENCE`]: the
//!   packet came, but the capture does not have it. Once is not enough: an acknowledgement can be captured before the
//!   bytes, and anybody can send a wrong one;
//! * more waits behind them than [`Limits`] allow;
//! * the connection or the capture is over. Then what was acknowledged once and never came is missing, too.
//!
//! Positions are 64 bits long, so a direction may carry more than 4 GiB. A segment more than [`PLAUSIBLE`] bytes from the
//! wanted one is not believed, until [`RUN`] of them follow one upon the other: then the capture lacks that much.
//! An RST is believed within [`RESET_SLACK`] of what was seen; a SYN with another number is a new connection.
//!
//! # Bounds
//!
//! Waiting bytes: [`Limits::waiting`] per direction, in at most [`Limits::pieces`] pieces, and [`Limits::waiting_total`]
//! altogether; whoever began to wait first gives up first. Connections: [`Limits::connections`], at some 400 bytes each.
//! Those that are over are remembered, so that their late packets are not taken for new connections, until their places
//! are wanted; after them goes the one that was idle for longest. The work for one packet does not depend on the number
//! of connections.

mod flow;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::packet::{Flags, Segment};
use flow::{Arrival, Ends, Flow};

pub use flow::{CONFIRMATIONS, PATIENCE, PLAUSIBLE, RESET_SLACK, RUN};

/// Number of a connection in a capture, from 0, in the order of their first packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One of the two directions of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the end that connected. Where the capture does not show who that was, from the one that was seen first.
    Forth,
    /// The other.
    Back,
}

/// Something that happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEvent<'a> {
    /// When the packet was captured that let it happen, since the Unix epoch.
    pub time: Duration,
    /// Which connection.
    pub stream: StreamId,
    /// What happened.
    pub piece: Piece<'a>,
}

/// What can happen to a connection. [`Opened`](Piece::Opened) is the first, [`Ended`](Piece::Ended) the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Its first packet.
    Opened {
        /// Who connected, or who was seen first.
        from: SocketAddr,
        /// To whom.
        to: SocketAddr,
        /// Whether the capture holds its beginning: the SYN, or the answer to it. Otherwise bytes are missing before the
        /// first ones of either direction, nobody knows how many, and `from` may be either end.
        from_start: bool,
    },
    /// The other end answered the SYN: the connection is established. Not reported where the capture does not show it.
    Answered,
    /// Bytes, in order, each once, never empty.
    Bytes {
        /// From whom.
        way: Way,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Bytes are missing here, and will not come any more.
    Hole {
        /// From whom.
        way: Way,
        /// How many.
        missing: u64,
        /// Why.
        cause: HoleCause,
    },
    /// One end sends no more: its FIN, in order.
    Finished {
        /// Which.
        way: Way,
    },
    /// One end aborted the connection.
    Reset {
        /// Which.
        way: Way,
    },
    /// Nothing more comes of this connection: both ends finished, one aborted, its addresses are used for a new one, it
    /// was given up for want of memory, or the capture is over.
    Ended {
        /// Whether the capture showed how it ended (both FINs, or an RST).
        seen: bool,
    },
}

/// Why bytes are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoleCause {
    /// The capture does not have the packet, although it came: the other end acknowledged it, or much came behind it.
    NotCaptured,
    /// The capture has only the beginning of the packet.
    CutOff,
    /// More came behind them than is kept while waiting.
    TooFarAhead,
    /// The capture, or the connection, is over, and they never came.
    End,
}

/// How much a [`Reassembler`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that it follows or remembers, at least 1.
    pub connections: usize,
    /// Bytes of one direction that wait for those before them.
    pub waiting: usize,
    /// Pieces of one direction that wait, which are next to each other or have gaps between them.
    pub pieces: usize,
    /// Bytes of all directions that wait.
    pub waiting_total: usize,
}

impl Default for Limits {
    /// At most some 70 MiB. The windows that Linux opens by default, 6 MiB, fit into one direction.
    fn default() -> Self {
        Self { connections: 65_536, waiting: 8 << 20, pieces: 512, waiting_total: 32 << 20 }
    }
}

/// Puts segments together to streams. See the module for how and within which bounds.
///
/// Commands: [`handle`](Self::handle) every segment in the order of the capture, then [`finish`](Self::finish). Both give
/// what came of it to `sink`, in order.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    connections: HashMap<Key, Entry>,
    /// Number of the next connection.
    next: u64,
    /// Segments so far, which is the clock that idleness is measured by.
    segments: u64,
    /// Every live connection once, and perhaps some that are over: what was idle for longest is near the front.
    live: VecDeque<Idle>,
    /// Those that are over, oldest first; perhaps some whose addresses are used again.
    over: VecDeque<(Key, StreamId)>,
    /// Directions in which bytes wait, oldest first; perhaps some in which none do any more.
    waiting: VecDeque<(Key, StreamId, Way)>,
    /// What waits in all directions.
    held: usize,
    time: Duration,
}

/// A connection's two addresses, in either order the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    lower: SocketAddr,
    upper: SocketAddr,
}

impl Key {
    fn new(segment: &Segment<'_>) -> Self {
        let (a, b) = (segment.from, segment.to);
        if a <= b { Self { lower: a, upper: b } } else { Self { lower: b, upper: a } }
    }
}

/// A place in the queue for being given up: stands if there was no segment since.
#[derive(Debug, Clone, Copy)]
struct Idle {
    key: Key,
    id: StreamId,
    since: u64,
}

#[derive(Debug)]
enum Entry {
    Live(Box<Connection>),
    Over(Remains),
}

/// A connection that goes on.
#[derive(Debug)]
struct Connection {
    id: StreamId,
    /// Who sends what goes [`Way::Forth`].
    from: SocketAddr,
    /// The capture holds its beginning.
    from_start: bool,
    answered: bool,
    /// Number of its last segment.
    last: u64,
    forth: Flow,
    back: Flow,
}

/// What is remembered of a connection that is over.
#[derive(Debug)]
struct Remains {
    id: StreamId,
    from: SocketAddr,
    /// What of its directions was seen, if anything.
    forth: Option<Ends>,
    back: Option<Ends>,
}

impl Reassembler {
    /// Nothing seen yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: HashMap::new(),
            next: 0,
            segments: 0,
            live: VecDeque::new(),
            over: VecDeque::new(),
            waiting: VecDeque::new(),
            held: 0,
            time: Duration::ZERO,
        }
    }

    /// Takes the next segment of the capture. `time` is when it was captured, since the Unix epoch.
    pub fn handle(&mut self, time: Duration, segment: &Segment<'_>, sink: &mut impl FnMut(StreamEvent<'_>)) {
        self.time = time;
        self.segments += 1;
        let key = Key::new(segment);
        match self.connections.get(&key) {
            Some(Entry::Live(connection)) if connection.is_replaced_by(segment) => {
                self.end(key, false, sink);
                self.open(key, segment, sink);
            }
            Some(Entry::Live(_)) => {}
            Some(Entry::Over(remains)) if !remains.is_replaced_by(segment) => return,
            Some(Entry::Over(_)) | None => self.open(key, segment, sink),
        }
        let Some(Entry::Live(connection)) = self.connections.get_mut(&key) else { return };
        connection.last = self.segments;
        let id = connection.id;
        let held = connection.held();
        let over = connection.handle(time, segment, &self.limits, sink);
        self.held = self.held - held + connection.held();
        for way in [Way::Forth, Way::Back] {
            let flow = connection.flow(way);
            if flow.held() > 0 && !flow.queued {
                flow.queued = true;
                self.waiting.push_back((key, id, way));
            }
        }
        if over {
            self.end(key, true, sink);
        }
        while self.held > self.limits.waiting_total && self.give_up_oldest_gap(sink) {}
    }

    /// The capture is over, and so is every connection that still lives.
    pub fn finish(&mut self, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let mut rest: Vec<_> = self.live.drain(..).map(|idle| (idle.id, idle.key)).collect();
        rest.sort_unstable_by_key(|(id, _)| *id);
        for (id, key) in rest {
            if self.is_live(&key, id) {
                self.end(key, false, sink);
            }
        }
    }

    fn is_live(&self, key: &Key, id: StreamId) -> bool {
        matches!(self.connections.get(key), Some(Entry::Live(connection)) if connection.id == id)
    }

    /// Begins a connection with its first segment, in the place of an older one if need be.
    fn open(&mut self, key: Key, segment: &Segment<'_>, sink: &mut impl FnMut(StreamEvent<'_>)) {
        self.make_room(&key, sink);
        let id = StreamId(self.next);
        self.next += 1;
        let connection = Connection::new(id, segment, self.segments);
        let (from, to) = if connection.from == segment.from {
            (segment.from, segment.to)
        } else {
            (segment.to, segment.from)
        };
        let piece = Piece::Opened { from, to, from_start: connection.from_start };
        self.connections.insert(key, Entry::Live(Box::new(connection)));
        self.live.push_back(Idle { key, id, since: self.segments });
        sink(StreamEvent { time: self.time, stream: id, piece });
    }

    /// Sees to it that one more connection is within the limit, and that the queues hold few that is out of date.
    fn make_room(&mut self, key: &Key, sink: &mut impl FnMut(StreamEvent<'_>)) {
        while self.connections.len() >= self.limits.connections && !self.connections.contains_key(key) {
            if let Some((key, id)) = self.over.pop_front() {
                if matches!(self.connections.get(&key), Some(Entry::Over(remains)) if remains.id == id) {
                    self.connections.remove(&key);
                }
                continue;
            }
            let Some(idle) = self.live.pop_front() else { break };
            match self.connections.get(&idle.key) {
                Some(Entry::Live(connection)) if connection.id == idle.id => {
                    if connection.last == idle.since {
                        self.end(idle.key, false, sink);
                        self.connections.remove(&idle.key);
                        // It was put there by its end.
                        self.over.pop_back();
                    } else {
                        self.live.push_back(Idle { since: connection.last, ..idle });
                    }
                }
                Some(Entry::Live(_) | Entry::Over(_)) | None => {}
            }
        }
        let most = self.limits.connections.saturating_mul(2).max(1024);
        let connections = &self.connections;
        if self.live.len() >= most {
            self.live.retain(
                |idle| matches!(connections.get(&idle.key), Some(Entry::Live(connection)) if connection.id == idle.id),
            );
        }
        if self.over.len() >= most {
            self.over.retain(
                |(key, id)| matches!(connections.get(key), Some(Entry::Over(remains)) if remains.id == *id),
            );
        }
        if self.waiting.len() >= most {
            self.waiting.retain(
                |(key, id, _)| matches!(connections.get(key), Some(Entry::Live(connection)) if connection.id == *id),
            );
        }
    }

    /// Ends a connection that lives: what waits in it is passed on behind holes.
    fn end(&mut self, key: Key, seen: bool, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let Some(entry) = self.connections.get_mut(&key) else { return };
        let Entry::Live(connection) = entry else { return };
        let (time, stream) = (self.time, connection.id);
        self.held -= connection.held();
        let closed = connection.flush(time, sink);
        let remains = connection.remains();
        *entry = Entry::Over(remains);
        self.over.push_back((key, stream));
        sink(StreamEvent { time, stream, piece: Piece::Ended { seen: seen || closed } });
    }

    /// Makes the direction that waits for longest give up its gaps. `false` if none waits.
    fn give_up_oldest_gap(&mut self, sink: &mut impl FnMut(StreamEvent<'_>)) -> bool {
        let Some((key, id, way)) = self.waiting.pop_front() else { return false };
        let Some(Entry::Live(connection)) = self.connections.get_mut(&key) else { return true };
        if connection.id != id {
            return true;
        }
        let (time, stream) = (self.time, connection.id);
        let flow = connection.flow(way);
        flow.queued = false;
        self.held -= flow.held();
        flow.flush(HoleCause::TooFarAhead, &mut |piece| {
            sink(StreamEvent { time, stream, piece: piece.of(way) })
        });
        self.held += flow.held();
        if connection.forth.is_finished() && connection.back.is_finished() {
            self.end(key, true, sink);
        }
        true
    }
}

impl Connection {
    fn new(id: StreamId, segment: &Segment<'_>, number: u64) -> Self {
        let syn = segment.flags.contains(Flags::SYN);
        // Whoever answers is not who connected.
        let answer = syn && segment.flags.contains(Flags::ACK);
        Self {
            id,
            from: if answer { segment.to } else { segment.from },
            from_start: syn,
            answered: false,
            last: number,
            forth: Flow::default(),
            back: Flow::default(),
        }
    }

    /// Whether this segment is the beginning of another connection between the same addresses.
    fn is_replaced_by(&self, segment: &Segment<'_>) -> bool {
        if !segment.flags.contains(Flags::SYN) {
            return false;
        }
        let answer = segment.flags.contains(Flags::ACK);
        let (flow, other) = match self.way(segment.from) {
            Way::Forth => (&self.forth, &self.back),
            Way::Back => (&self.back, &self.forth),
        };
        match flow.start() {
            Some(start) if start == segment.seq.wrapping_add(1) => false,
            // Where it begins was concluded from an acknowledgement, and nothing came yet.
            Some(_) if answer && flow.is_untouched() => false,
            Some(_) => true,
            // Both ends may connect at the same time (RFC 9293, 3.5).
            None if self.from_start => !answer && self.answered,
            None => !answer || other.start() != Some(segment.ack),
        }
    }

    fn way(&self, from: SocketAddr) -> Way {
        if from == self.from { Way::Forth } else { Way::Back }
    }

    fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::Forth => &mut self.forth,
            Way::Back => &mut self.back,
        }
    }

    /// What waits in both directions, bytes.
    fn held(&self) -> usize {
        self.forth.held() + self.back.held()
    }

    /// Takes a segment. Whether the connection is over with it.
    fn handle(
        &mut self,
        time: Duration,
        segment: &Segment<'_>,
        limits: &Limits,
        sink: &mut impl FnMut(StreamEvent<'_>),
    ) -> bool {
        let stream = self.id;
        let mut emit = |piece: Piece<'_>| sink(StreamEvent { time, stream, piece });
        let way = self.way(segment.from);
        let (flow, other, opposite) = match way {
            Way::Forth => (&mut self.forth, &mut self.back, Way::Back),
            Way::Back => (&mut self.back, &mut self.forth, Way::Forth),
        };
        let ack = segment.flags.contains(Flags::ACK).then_some(segment.ack);
        if segment.flags.contains(Flags::RST) {
            let believed = match (flow.start(), ack) {
                // It refuses a connection, or the capture shows nothing of who says it.
                (None, Some(ack)) => other.start().is_none() || other.is_near(ack),
                (None, None) => true,
                (Some(_), _) => flow.is_near(segment.seq),
            };
            if believed {
                self.flush(time, sink);
                sink(StreamEvent { time, stream, piece: Piece::Reset { way } });
            }
            return believed;
        }
        let mut seq = segment.seq;
        if segment.flags.contains(Flags::SYN) {
            seq = seq.wrapping_add(1);
            flow.begin(seq);
            if ack.is_some() && self.from_start && way == Way::Back && !self.answered {
                self.answered = true;
                emit(Piece::Answered);
            }
        }
        if let Some(ack) = ack
            && self.from_start
        {
            other.conclude_start(ack);
        }
        let arrival = Arrival {
            seq,
            bytes: segment.payload,
            cut: segment.cut as u64,
            fin: segment.flags.contains(Flags::FIN),
        };
        flow.arrive(&arrival, limits, &mut |part| emit(part.of(way)));
        if let Some(ack) = ack {
            other.acknowledged(time, ack, &mut |part| emit(part.of(opposite)));
        }
        self.forth.is_finished() && self.back.is_finished()
    }

    /// Passes on all that waits, behind holes. Whether both ends finished.
    fn flush(&mut self, time: Duration, sink: &mut impl FnMut(StreamEvent<'_>)) -> bool {
        let stream = self.id;
        for way in [Way::Forth, Way::Back] {
            self.flow(way).finish(&mut |part| sink(StreamEvent { time, stream, piece: part.of(way) }));
        }
        self.forth.is_finished() && self.back.is_finished()
    }

    fn remains(&self) -> Remains {
        Remains { id: self.id, from: self.from, forth: self.forth.ends(), back: self.back.ends() }
    }
}

impl Remains {
    /// Whether this segment is the beginning of another connection, and no late or repeated one of this.
    fn is_replaced_by(&self, segment: &Segment<'_>) -> bool {
        let ends = if segment.from == self.from { &self.forth } else { &self.back };
        let Some(ends) = ends else { return !segment.flags.contains(Flags::RST) };
        if segment.flags.contains(Flags::SYN) {
            return ends.start != segment.seq.wrapping_add(1);
        }
        // The capture may lack the SYN.
        !segment.payload.is_empty() && !ends.is_plausible(segment.seq)
    }
}
