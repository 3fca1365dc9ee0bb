//! One direction of a connection: its segments in, its bytes in order out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{HoleCause, Limits, Piece, Way};

/// So many acknowledgements of bytes that the capture does not show prove that they came.
pub const CONFIRMATIONS: u32 = 32;
/// Two of them prove it, if this much time is between them.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Sequence numbers further than this from what is wanted are not believed, bytes. No window that Linux opens by itself is
/// near it.
pub const PLAUSIBLE: u64 = 64 << 20;
/// So many segments, each right behind the other, are believed wherever they are.
pub const RUN: u32 = 4;
/// An RST is believed this far before and behind what was seen of its direction, bytes.
pub const RESET_SLACK: u64 = 1 << 20;

/// Pieces that wait are joined up to this size.
const PIECE: usize = 64 << 10;
/// What a piece costs besides its bytes.
const PIECE_COST: usize = 64;

/// What a flow makes of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Bytes(&'a [u8]),
    Hole(u64, HoleCause),
    Finished,
}

impl<'a> Part<'a> {
    pub(super) fn of(self, way: Way) -> Piece<'a> {
        match self {
            Part::Bytes(bytes) => Piece::Bytes { way, bytes },
            Part::Hole(missing, cause) => Piece::Hole { way, missing, cause },
            Part::Finished => Piece::Finished { way },
        }
    }
}

/// What a segment says about its own direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    /// Sequence number of the first byte.
    pub(super) seq: u32,
    pub(super) bytes: &'a [u8],
    /// Bytes behind them that the capture cut off.
    pub(super) cut: u64,
    /// The direction ends behind them.
    pub(super) fin: bool,
}

/// Where a direction began and how far it got, as sequence numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) start: u32,
    next: u32,
}

impl Ends {
    pub(super) fn is_plausible(&self, seq: u32) -> bool {
        distance(self.next, seq).unsigned_abs() < PLAUSIBLE
    }
}

/// One direction.
///
/// Positions are sequence numbers made 64 bits wide: the lower half is the number on the wire.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Where it begins; `None` before its first byte or SYN, or an acknowledgement that tells.
    start: Option<u64>,
    /// The byte that is wanted next. INVARIANT: not below `start`.
    next: u64,
    /// `start` is known from its SYN.
    begun: bool,
    /// INVARIANT: the keys are above `next`, and no two pieces overlap.
    waiting: BTreeMap<u64, Waiting>,
    held: usize,
    /// Where its FIN is. INVARIANT: not below `next`.
    fin: Option<u64>,
    finished: bool,
    doubt: Doubt,
    run: Run,
    /// For the owner: it is in the queue of those that wait.
    pub(super) queued: bool,
}

#[derive(Debug)]
enum Waiting {
    Bytes(Vec<u8>),
    /// Bytes that were cut off.
    Cut(u64),
}

impl Waiting {
    fn len(&self) -> u64 {
        match self {
            Waiting::Bytes(bytes) => bytes.len() as u64,
            Waiting::Cut(len) => *len,
        }
    }

    fn cost(&self) -> usize {
        PIECE_COST
            + match self {
                Waiting::Bytes(bytes) => bytes.capacity(),
                Waiting::Cut(_) => 0,
            }
    }
}

/// The other end acknowledges bytes that the capture did not show yet.
#[derive(Debug, Default)]
struct Doubt {
    /// The first of them.
    at: u64,
    /// Up to where, the last time.
    upto: u64,
    times: u32,
    since: Duration,
}

/// Segments in a row that are too far away to be believed.
#[derive(Debug, Default)]
struct Run {
    /// What would continue it.
    next: u32,
    length: u32,
}

impl Flow {
    /// Sequence number of the first byte, if it is known.
    pub(super) fn start(&self) -> Option<u32> {
        self.start.map(on_wire)
    }

    pub(super) fn ends(&self) -> Option<Ends> {
        Some(Ends { start: self.start()?, next: on_wire(self.next) })
    }

    /// It is not known from the SYN where it begins, and nothing of it was passed on.
    pub(super) fn is_untouched(&self) -> bool {
        !self.begun && !self.finished && self.start.is_none_or(|start| start == self.next)
    }

    /// All of it was passed on.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// What waits, bytes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether an RST with this number may be meant.
    pub(super) fn is_near(&self, seq: u32) -> bool {
        let last = self.waiting.last_key_value().map_or(self.next, |(at, piece)| at + piece.len());
        let last = if self.doubt.at == self.next { last.max(self.doubt.upto) } else { last };
        let distance = distance(on_wire(self.next), seq);
        if distance < 0 {
            distance.unsigned_abs() <= RESET_SLACK
        } else {
            distance.unsigned_abs() <= last - self.next + RESET_SLACK
        }
    }

    /// Its SYN says that this is the first byte's number.
    pub(super) fn begin(&mut self, seq: u32) {
        if self.is_untouched() {
            self.start_at(seq);
            self.begun = true;
        }
    }

    /// The other end acknowledges all before this, so it begins there, unless more is known.
    pub(super) fn conclude_start(&mut self, ack: u32) {
        if self.start.is_none() {
            self.start_at(ack);
        }
    }

    /// Begins at this number, or begins there after all. Nothing was passed on yet.
    fn start_at(&mut self, seq: u32) {
        let position = if self.start.is_some() {
            self.next.wrapping_add_signed(distance(on_wire(self.next), seq))
        } else {
            // The upper half leaves room below for what is older than the first segment.
            (1 << 32) | u64::from(seq)
        };
        if position > self.next {
            // What waits may be before the beginning, and then it is not of this connection.
            self.waiting.clear();
            self.held = 0;
        }
        self.start = Some(position);
        self.next = position;
    }

    /// Takes what a segment holds.
    pub(super) fn arrive(&mut self, arrival: &Arrival<'_>, limits: &Limits, emit: &mut impl FnMut(Part<'_>)) {
        let &Arrival { seq, bytes, cut, fin } = arrival;
        let len = bytes.len() as u64 + cut;
        if self.finished || (len == 0 && !fin) {
            return;
        }
        if self.start.is_none() {
            self.start_at(seq);
        }
        let mut distance = distance(on_wire(self.next), seq);
        if distance < 0 && self.is_untouched() && distance.unsigned_abs() < PLAUSIBLE {
            // It begins earlier than was concluded.
            self.start_at(seq);
            distance = 0;
        }
        if distance.unsigned_abs() >= PLAUSIBLE {
            if !self.run_goes_on(seq, arrival) {
                return;
            }
            self.flush(HoleCause::NotCaptured, emit);
            if self.finished {
                return;
            }
            self.skip_to(
                self.next + u64::from(seq.wrapping_sub(on_wire(self.next))),
                HoleCause::NotCaptured,
                emit,
            );
            distance = 0;
        }
        self.run = Run::default();
        let at = self.next.wrapping_add_signed(distance);
        self.bytes(at, bytes, emit);
        let behind = at + bytes.len() as u64;
        if cut > 0 {
            self.cut(behind, cut, emit);
        }
        if fin && self.fin.is_none() && behind + cut >= self.next {
            self.fin = Some(behind + cut);
        }
        while self.held > limits.waiting || self.waiting.len() > limits.pieces {
            let Some((&first, _)) = self.waiting.first_key_value() else { break };
            self.skip_to(first, HoleCause::TooFarAhead, emit);
        }
        self.check_fin(emit);
    }

    /// The other end says that it has all before this.
    pub(super) fn acknowledged(&mut self, time: Duration, ack: u32, emit: &mut impl FnMut(Part<'_>)) {
        let distance = distance(on_wire(self.next), ack);
        if self.start.is_none() || self.finished || distance <= 0 || distance.unsigned_abs() >= PLAUSIBLE {
            return;
        }
        let upto = self.limit_of_hole(self.next + distance.unsigned_abs());
        if upto == self.next {
            return;
        }
        if self.doubt.at != self.next || self.doubt.times == 0 {
            self.doubt = Doubt { at: self.next, upto, times: 0, since: time };
        }
        self.doubt.times += 1;
        self.doubt.upto = upto;
        let waited = time.saturating_sub(self.doubt.since);
        if self.doubt.times >= CONFIRMATIONS || (self.doubt.times >= 2 && waited >= PATIENCE) {
            self.skip_to(upto, HoleCause::NotCaptured, emit);
            self.check_fin(emit);
        }
    }

    /// Passes on what waits, behind holes.
    pub(super) fn flush(&mut self, cause: HoleCause, emit: &mut impl FnMut(Part<'_>)) {
        while let Some((&first, _)) = self.waiting.first_key_value() {
            self.skip_to(first, cause, emit);
        }
        self.check_fin(emit);
    }

    /// Nothing more comes of it.
    pub(super) fn finish(&mut self, emit: &mut impl FnMut(Part<'_>)) {
        self.flush(HoleCause::End, emit);
        if self.finished || self.start.is_none() {
            return;
        }
        if let Some(fin) = self.fin {
            self.skip_to(fin, HoleCause::End, emit);
            self.check_fin(emit);
        } else if self.doubt.at == self.next && self.doubt.times > 0 {
            self.skip_to(self.doubt.upto, HoleCause::End, emit);
        }
    }

    /// How far a hole may reach of which the other end acknowledged all before `upto`.
    fn limit_of_hole(&self, upto: u64) -> u64 {
        if let Some((&first, _)) = self.waiting.first_key_value() {
            upto.min(first)
        } else if let Some(fin) = self.fin {
            upto.min(fin)
        } else if upto == self.next + 1 {
            // A FIN has a number as well, and is less seldom alone than a byte is.
            self.next
        } else {
            upto
        }
    }

    /// Whether a segment that is too far away is the last of enough of them.
    fn run_goes_on(&mut self, seq: u32, arrival: &Arrival<'_>) -> bool {
        let length = if seq == self.run.next { self.run.length + 1 } else { 1 };
        let len = on_wire(arrival.bytes.len() as u64 + arrival.cut);
        self.run = Run { next: seq.wrapping_add(len), length };
        length >= RUN && len > 0
    }

    /// Takes bytes that stand at a position: passes on what is wanted, keeps what is ahead.
    fn bytes(&mut self, at: u64, bytes: &[u8], emit: &mut impl FnMut(Part<'_>)) {
        let end = at + bytes.len() as u64;
        while self.next < end && at <= self.next {
            // What came first stays.
            let upto = self.waiting.first_key_value().map_or(end, |(&first, _)| first.min(end));
            let wanted = slice(bytes, self.next - at, upto - at);
            if !wanted.is_empty() {
                emit(Part::Bytes(wanted));
                self.next = upto;
            }
            self.drain(emit);
        }
        if at > self.next {
            self.each_gap(at, end, |flow, from, upto| flow.wait(from, slice(bytes, from - at, upto - at)));
        }
    }

    /// The same for bytes that were cut off.
    fn cut(&mut self, at: u64, len: u64, emit: &mut impl FnMut(Part<'_>)) {
        let end = at + len;
        while self.next < end && at <= self.next {
            let upto = self.waiting.first_key_value().map_or(end, |(&first, _)| first.min(end));
            self.skip_to(upto, HoleCause::CutOff, emit);
        }
        if at > self.next {
            self.each_gap(at, end, |flow, from, upto| {
                let piece = Waiting::Cut(upto - from);
                flow.held += piece.cost();
                flow.waiting.insert(from, piece);
            });
        }
    }

    /// Calls `keep` with each part of `from..end` of which nothing waits.
    fn each_gap(&mut self, from: u64, end: u64, keep: impl Fn(&mut Self, u64, u64)) {
        let before = self.waiting.range(..=from).next_back();
        let mut at = before.map_or(from, |(start, piece)| from.max(start + piece.len()));
        while at < end {
            let (upto, behind) = match self.waiting.range(at..).next() {
                Some((&start, piece)) if start < end => (start, start + piece.len()),
                _ => (end, end),
            };
            if at < upto {
                keep(self, at, upto);
            }
            at = behind;
        }
    }

    /// Keeps bytes, of which none wait yet, behind the piece that they continue or as one of their own.
    fn wait(&mut self, at: u64, bytes: &[u8]) {
        if let Some((start, piece)) = self.waiting.range_mut(..at).next_back()
            && start + piece.len() == at
        {
            let before = piece.cost();
            if let Waiting::Bytes(held) = piece
                && held.len() + bytes.len() <= PIECE
            {
                held.extend_from_slice(bytes);
                self.held += piece.cost() - before;
                return;
            }
        }
        let piece = Waiting::Bytes(bytes.to_vec());
        self.held += piece.cost();
        self.waiting.insert(at, piece);
    }

    /// Gives up what is missing before a position, and passes on what waited for it.
    fn skip_to(&mut self, position: u64, cause: HoleCause, emit: &mut impl FnMut(Part<'_>)) {
        if position > self.next {
            emit(Part::Hole(position - self.next, cause));
            self.next = position;
        }
        self.drain(emit);
    }

    /// Passes on what waited for what is there now.
    fn drain(&mut self, emit: &mut impl FnMut(Part<'_>)) {
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= self.next
        {
            let piece = first.remove();
            self.held -= piece.cost();
            self.next += piece.len();
            match piece {
                Waiting::Bytes(bytes) => emit(Part::Bytes(&bytes)),
                Waiting::Cut(len) => emit(Part::Hole(len, HoleCause::CutOff)),
            }
        }
    }

    /// The direction ends where its FIN is. One that more bytes went past was not meant.
    fn check_fin(&mut self, emit: &mut impl FnMut(Part<'_>)) {
        if self.fin.is_some_and(|fin| fin < self.next) {
            self.fin = None;
        }
        if self.fin == Some(self.next) && !self.finished {
            self.finished = true;
            self.waiting.clear();
            self.held = 0;
            emit(Part::Finished);
        }
    }
}

/// The lower half of a position.
fn on_wire(position: u64) -> u32 {
    (position & 0xFFFF_FFFF) as u32
}

/// How far `to` is ahead of `from`; negative if it is behind. Half the numbers are ahead, half behind.
fn distance(from: u32, to: u32) -> i64 {
    to.wrapping_sub(from).cast_signed().into()
}

/// Part of some bytes, by distances from their start that are within them.
fn slice(bytes: &[u8], from: u64, upto: u64) -> &[u8] {
    let (Ok(from), Ok(upto)) = (usize::try_from(from), usize::try_from(upto)) else { return &[] };
    bytes.get(from..upto).unwrap_or_default()
}
