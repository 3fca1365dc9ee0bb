//! The recording of a guest's card, without I/O: frames go in, files' blocks come out.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use server_glue::nic::Way;

use super::part::{Interface, Part};
use super::{Core, Dropped};

/// A frame.
pub(super) struct Entry {
    pub(super) time: Duration,
    pub(super) way: Way,
    pub(super) frame: Vec<u8>,
}

/// See the module's text.
pub(super) struct CardCore {
    /// Length of a file above which the next begins.
    limit: Option<u64>,
    parts: VecDeque<Part>,
    /// Frames that were dropped up to the last one recorded.
    dropped: u64,
}

const INTERFACE: Interface = Interface {
    link_type: DataLink::ETHERNET,
    name: "card",
    description: "the guest's network card: inbound is from the guest, outbound is to it",
    comment: "Ethernet frames of the guest's network card",
};

/// The directions of epb_flags.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

impl CardCore {
    pub(super) fn new(limit: Option<u64>, now: Duration) -> io::Result<Self> {
        Ok(Self { limit, parts: VecDeque::from([Part::new(0, INTERFACE, now, 0)?]), dropped: 0 })
    }
}

impl Core for CardCore {
    type Entry = Entry;

    fn handle(&mut self, entry: Entry, dropped: Dropped) -> io::Result<()> {
        let Some(part) = self.parts.back_mut() else { return Ok(()) };
        let flags = match entry.way {
            Way::FromGuest => INBOUND,
            Way::ToGuest => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(flags)];
        let missing = dropped.pieces.saturating_sub(self.dropped);
        if missing > 0 {
            options.push(EnhancedPacketOption::DropCount(missing));
            self.dropped = dropped.pieces;
        }
        part.packet(entry.time, &entry.frame, options)?;
        if self.limit.is_some_and(|limit| part.len() >= limit) {
            part.end(entry.time, dropped.pieces)?;
            let next = Part::new(part.number + 1, INTERFACE, entry.time, dropped.pieces)?;
            self.parts.push_back(next);
        }
        Ok(())
    }

    fn end(&mut self, time: Duration, dropped: Dropped) -> io::Result<()> {
        match self.parts.back_mut() {
            Some(part) => part.end(time, dropped.pieces),
            None => Ok(()),
        }
    }

    fn parts(&mut self) -> &mut VecDeque<Part> {
        &mut self.parts
    }
}
