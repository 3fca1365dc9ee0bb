//! From a capture file to Spice, the whole way.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dissect::{Dissector, Item, Options, What};
use super::file::{self, FileError};
use super::packet::{self, PacketFault};
use super::reassembly::{Limits, Piece, Reassembler, StreamEvent};

/// Reads a capture file packet by packet and gives what the Spice connections in it say.
///
/// Memory does not depend on the file: see [`file::Reader`], [`Limits`] and [`Options::memory`].
pub struct SpiceReader {
    file: file::Reader,
    reassembler: Reassembler,
    dissector: Dissector,
    counts: Counts,
    start: Option<Duration>,
    over: bool,
}

/// What a capture held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets of the file.
    pub packets: u64,
    /// Bytes that they had on the wire.
    pub bytes: u64,
    /// Packets that hold no TCP.
    pub not_tcp: u64,
    /// Packets of which the capture has only the beginning.
    pub cut_off: u64,
    /// Packets that nothing can be said about, by the reason. There are a few reasons only.
    pub faults: BTreeMap<&'static str, u64>,
    /// Those of them whose headers cannot be: they are damaged, not just unknown, cut off or in fragments.
    pub damaged: u64,
    /// The first packet of all these: its number, and what is wrong with it.
    pub first_fault: Option<(u64, PacketFault)>,
    /// TCP connections.
    pub connections: u64,
    /// Those of them that are Spice.
    pub spice: u64,
    /// Messages, link stage and malformed ones not counted.
    pub messages: u64,
    /// Faults of what Spice connections say.
    pub malformed: u64,
    /// Holes in Spice connections, without those before the capture's first packet.
    pub holes: u64,
}

impl SpiceReader {
    /// Reads `file` from where it stands.
    pub fn new(file: file::Reader, options: Options) -> Self {
        Self {
            file,
            reassembler: Reassembler::new(Limits::default()),
            dissector: Dissector::new(options),
            counts: Counts::default(),
            start: None,
            over: false,
        }
    }

    /// Reads one packet. `false`: the file is over, and everything was brought to its end.
    ///
    /// # Errors
    /// The file is damaged or cut short. Everything before was brought to its end; nothing more comes.
    pub fn step(&mut self, sink: &mut impl FnMut(Item<'_>)) -> Result<bool, FileError> {
        if self.over {
            return Ok(false);
        }
        let Self { file, reassembler, dissector, counts, start, over } = self;
        let ended = match file.next() {
            Ok(Some(packet)) => {
                start.get_or_insert(packet.time);
                counts.packets += 1;
                counts.bytes += u64::try_from(packet.original_len).unwrap_or(0);
                if packet.bytes.len() < packet.original_len {
                    counts.cut_off += 1;
                }
                match packet::segment(&packet) {
                    Ok(Some(segment)) => {
                        reassembler.handle(packet.time, &segment, &mut |event| {
                            counts.event(event, dissector, sink);
                        });
                    }
                    Ok(None) => counts.not_tcp += 1,
                    Err(fault) => {
                        *counts.faults.entry(reason(&fault)).or_default() += 1;
                        counts.damaged += u64::from(is_damage(&fault));
                        counts.first_fault.get_or_insert((packet.number, fault));
                    }
                }
                return Ok(true);
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        *over = true;
        reassembler.finish(&mut |event| counts.event(event, dissector, sink));
        dissector.finish(&mut |item| counts.item(item, sink));
        ended
    }

    /// When the first packet was captured, since the Unix epoch; `None` before it was read.
    pub fn start(&self) -> Option<Duration> {
        self.start
    }

    /// Bytes of the file that were consumed.
    pub fn position(&self) -> u64 {
        self.file.position()
    }

    /// What was read so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Counts {
    fn event(&mut self, event: StreamEvent<'_>, dissector: &mut Dissector, sink: &mut impl FnMut(Item<'_>)) {
        if matches!(event.piece, Piece::Opened { .. }) {
            self.connections += 1;
        }
        dissector.handle(event, &mut |item| self.item(item, sink));
    }

    fn item(&mut self, item: Item<'_>, sink: &mut impl FnMut(Item<'_>)) {
        match &item.what {
            What::Began { .. } => self.spice += 1,
            What::Message(_) => self.messages += 1,
            What::Malformed { .. } => self.malformed += 1,
            What::Hole(hole) => self.holes += u64::from(hole.missing.is_some()),
            What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Linked(_)
            | What::Ended { .. } => {}
        }
        sink(item);
    }
}

/// Whether a packet is not what it was when it was sent.
fn is_damage(fault: &PacketFault) -> bool {
    match fault {
        PacketFault::TooShort { .. } | PacketFault::Field { .. } => true,
        PacketFault::LinkType(_) | PacketFault::CutOff { .. } | PacketFault::Fragment => false,
    }
}

/// A few words for a sort of fault.
fn reason(fault: &PacketFault) -> &'static str {
    match fault {
        PacketFault::LinkType(_) => "unknown link type",
        PacketFault::CutOff { .. } => "cut off within a header",
        PacketFault::TooShort { .. } => "too short for its headers",
        PacketFault::Field { .. } => "impossible header field",
        PacketFault::Fragment => "fragment of an IP packet",
    }
}
