//! The recording of tunnel links, without I/O: what the taps noted goes in, files' blocks come out.
//!
//! # Rotation
//!
//! Every file can be read by itself: it begins each connection that lives with a SYN and the link stage, and the
//! first byte behind is the first of a message. The two directions hardly ever stand between two messages at the same
//! time, so each changes files by itself: when a file is full the next one begins, and what is still to come of the
//! message that a direction is within goes to the old one. The sequence numbers go on over files; the link stage's
//! end where the next message begins.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use pcap_file::DataLink;
use spice_proto::names::Sender;

use super::link_stage::{self, Stage};
use super::part::{Interface, Part};
use super::tcp::{Both, Conversation, Ends, HEADROOM, other};
use super::{Core, Dropped};

/// Which link of a recording, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkId(pub(super) u64);

/// What a tap noted.
pub(super) enum Entry {
    /// A link begins, behind its link stage.
    Open { link: LinkId, time: Duration, ends: Ends, stage: Stage },
    /// Bytes of one direction.
    Data {
        link: LinkId,
        time: Duration,
        from: Sender,
        /// Where in the direction they are, from the first byte behind the link stage. A jump is a drop.
        offset: u64,
        /// How many bytes the message that they end in still lacks.
        left: u32,
        /// The bytes, behind [`HEADROOM`].
        buffer: Vec<u8>,
    },
    /// One end sends no more.
    Finished { link: LinkId, time: Duration, from: Sender, total: u64 },
    /// One end aborted the link.
    Reset { link: LinkId, time: Duration, from: Sender },
    /// Our end let go of the link: nothing more comes. `totals` are the bytes of each direction, dropped ones too.
    Closed { link: LinkId, time: Duration, ours: Sender, totals: Both<u64> },
}

impl Entry {
    fn time(&self) -> Duration {
        match self {
            Entry::Open { time, .. }
            | Entry::Data { time, .. }
            | Entry::Finished { time, .. }
            | Entry::Reset { time, .. }
            | Entry::Closed { time, .. } => *time,
        }
    }
}

/// See the module's text.
pub(super) struct LinksCore {
    /// Length of a file above which the next begins.
    limit: Option<u64>,
    /// The files that are not over. The last one is the current one; those before it wait for the rest of a message.
    parts: VecDeque<Part>,
    links: BTreeMap<LinkId, Link>,
    /// Length of the current file when its links were opened in it. A file holds something before it is full.
    opening: u64,
}

/// A link that lives.
struct Link {
    ends: Ends,
    stage: Stage,
    /// By the file that they are in.
    conversations: BTreeMap<u64, Conversation>,
    ways: Both<Way>,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// Offset of the next byte.
    next: u64,
    /// Bytes that the message lacks which `next` is within.
    left: u32,
    /// Bytes before this offset belong to the file `old`, the others to the current one.
    switch: u64,
    old: u64,
    finished: bool,
}

impl Way {
    /// Whether a file waits for the rest of a message.
    fn waits(&self) -> bool {
        !self.finished && self.next < self.switch
    }
}

const INTERFACE: Interface = Interface {
    link_type: DataLink::RAW,
    name: "tunnel",
    description: "the Spice tunnel link, in clear",
    comment: "what passed the Spice tunnel link, in clear. The TCP/IP headers are made up, the key and the ticket of the link stage are zero",
};

const BOTH: [Sender; 2] = [Sender::Client, Sender::Server];

/// Sequence number of the first byte behind the link stage, which is longer in no version.
const FIRST: u32 = 10_000;

impl LinksCore {
    pub(super) fn new(limit: Option<u64>, now: Duration) -> io::Result<Self> {
        let first = Part::new(0, INTERFACE, now, 0)?;
        let opening = first.len();
        Ok(Self { limit, parts: VecDeque::from([first]), links: BTreeMap::new(), opening })
    }

    fn open(&mut self, link: LinkId, time: Duration, ends: Ends, stage: Stage) -> io::Result<()> {
        let Some(part) = self.parts.back_mut() else { return Ok(()) };
        let ends = ends.canonical();
        let conversation = begin(part, time, ends, &stage, Both::default())?;
        let conversations = BTreeMap::from([(part.number, conversation)]);
        self.links.insert(link, Link { ends, stage, conversations, ways: Both::default() });
        self.opening = part.len();
        Ok(())
    }

    fn data(
        &mut self,
        id: LinkId,
        time: Duration,
        from: Sender,
        offset: u64,
        left: u32,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let (Some(current), Some(link)) = (self.number(), self.links.get_mut(&id)) else { return Ok(()) };
        let way = link.ways.of_mut(from);
        let len = buffer.len().saturating_sub(HEADROOM);
        let old = usize::try_from(way.switch.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let behind = offset.saturating_add(u64::try_from(old).unwrap_or(0));
        way.next = offset.saturating_add(u64::try_from(len).unwrap_or(0));
        way.left = left;
        let pieces = [(way.old, offset, 0..old), (current, behind, old..len)];
        for (number, offset, range) in pieces {
            let part = self.parts.iter_mut().find(|part| part.number == number);
            if let (false, Some(part), Some(conversation)) =
                (range.is_empty(), part, link.conversations.get_mut(&number))
            {
                let piece = buffer.get_mut(..HEADROOM + range.end).unwrap_or_default();
                conversation.data(part, time, from, seq(offset), piece, HEADROOM + range.start)?;
            }
        }
        Ok(())
    }

    /// Begins the next file if the current one is full.
    fn rotate(&mut self, time: Duration, dropped: Dropped) -> io::Result<()> {
        let (Some(limit), Some(current)) = (self.limit, self.parts.back()) else { return Ok(()) };
        if current.len() < limit || current.len() == self.opening {
            return Ok(());
        }
        let full = current.number;
        let mut part = Part::new(full + 1, INTERFACE, time, dropped.pieces)?;
        for link in self.links.values_mut() {
            for from in BOTH {
                let way = link.ways.of_mut(from);
                // Otherwise a file before this one waits for it still.
                if !way.waits() {
                    way.old = full;
                    way.switch = way.next.saturating_add(way.left.into());
                }
            }
            let first = Both { client: link.ways.client.switch, server: link.ways.server.switch };
            let mut conversation = begin(&mut part, time, link.ends, &link.stage, first)?;
            for from in BOTH {
                if link.ways.of(from).finished {
                    conversation.finish(&mut part, time, from, seq(*first.of(from)))?;
                }
            }
            link.conversations.insert(part.number, conversation);
        }
        self.opening = part.len();
        self.parts.push_back(part);
        Ok(())
    }

    /// Ends the files before the current one that nothing more belongs to.
    fn settle(&mut self, time: Duration, dropped: Dropped) -> io::Result<()> {
        let Some(current) = self.number() else { return Ok(()) };
        for part in self.parts.iter_mut().filter(|part| part.number < current && !part.over) {
            let number = part.number;
            let waits = |way: &Way| way.old == number && way.waits();
            if !self.links.values().any(|link| waits(&link.ways.client) || waits(&link.ways.server)) {
                part.end(time, dropped.pieces)?;
                for link in self.links.values_mut() {
                    link.conversations.remove(&number);
                }
            }
        }
        Ok(())
    }

    /// The current file's.
    fn number(&self) -> Option<u64> {
        self.parts.back().map(|part| part.number)
    }

    fn finish_way(&mut self, id: LinkId, time: Duration, from: Sender, total: u64) -> io::Result<()> {
        let (Some(link), Some(part)) = (self.links.get_mut(&id), self.parts.back_mut()) else {
            return Ok(());
        };
        let way = link.ways.of_mut(from);
        if std::mem::replace(&mut way.finished, true) {
            return Ok(());
        }
        // Cut off within a message that belongs to a file before: in this one, the direction ends where it began.
        way.next = total.max(way.switch);
        way.left = 0;
        match link.conversations.get_mut(&part.number) {
            Some(conversation) => conversation.finish(part, time, from, seq(way.next)),
            None => Ok(()),
        }
    }

    fn close(&mut self, id: LinkId, time: Duration, ours: Sender, totals: Both<u64>) -> io::Result<()> {
        // Nobody can tell from here when the other end closed, but it is no use to keep readers waiting for it.
        self.finish_way(id, time, ours, *totals.of(ours))?;
        self.finish_way(id, time, other(ours), *totals.of(other(ours)))?;
        self.take_leave(id, |conversation, part| conversation.acknowledge(part, time))
    }

    /// The link is over, with these last words in the current file.
    fn take_leave(
        &mut self,
        id: LinkId,
        words: impl FnOnce(&mut Conversation, &mut Part) -> io::Result<()>,
    ) -> io::Result<()> {
        let (Some(mut link), Some(part)) = (self.links.remove(&id), self.parts.back_mut()) else {
            return Ok(());
        };
        match link.conversations.get_mut(&part.number) {
            Some(conversation) => words(conversation, part),
            None => Ok(()),
        }
    }
}

impl Core for LinksCore {
    type Entry = Entry;

    fn handle(&mut self, entry: Entry, dropped: Dropped) -> io::Result<()> {
        let time = entry.time();
        self.rotate(time, dropped)?;
        match entry {
            Entry::Open { link, time, ends, stage } => self.open(link, time, ends, stage),
            Entry::Data { link, time, from, offset, left, mut buffer } => {
                self.data(link, time, from, offset, left, &mut buffer)
            }
            Entry::Finished { link, time, from, total } => self.finish_way(link, time, from, total),
            Entry::Reset { link, time, from } => {
                self.take_leave(link, |conversation, part| conversation.reset(part, time, from))
            }
            Entry::Closed { link, time, ours, totals } => self.close(link, time, ours, totals),
        }?;
        self.settle(time, dropped)
    }

    fn end(&mut self, time: Duration, dropped: Dropped) -> io::Result<()> {
        self.parts.iter_mut().filter(|part| !part.over).try_for_each(|part| part.end(time, dropped.pieces))
    }

    fn parts(&mut self) -> &mut VecDeque<Part> {
        &mut self.parts
    }
}

/// Opens a link in a file: the connection, then the link stage, which ends right before the bytes at the offsets
/// `first`.
fn begin(
    part: &mut Part,
    time: Duration,
    ends: Ends,
    stage: &Stage,
    first: Both<u64>,
) -> io::Result<Conversation> {
    let lengths = link_stage::lengths(stage);
    let mut at = Both {
        client: seq(first.client).wrapping_sub(lengths.client),
        server: seq(first.server).wrapping_sub(lengths.server),
    };
    let remark = (first != Both::default()).then(|| {
        let Both { client, server } = first;
        format!("this connection began in an earlier file, with {client} bytes of the client and {server} of the server")
    });
    let mut conversation = Conversation::open(part, time, ends, at, remark)?;
    for (from, bytes) in stage {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(bytes);
        conversation.data(part, time, *from, *at.of(*from), &mut buffer, HEADROOM)?;
        let at = at.of_mut(*from);
        *at = at.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
    }
    Ok(conversation)
}

/// Sequence number of an offset, in every file.
fn seq(offset: u64) -> u32 {
    let [.., a, b, c, d] = offset.to_be_bytes();
    FIRST.wrapping_add(u32::from_be_bytes([a, b, c, d]))
}
