//! Finding messages again where nobody said that one starts.
//!
//! Every byte may be the first of a header. What looks like one, having a known number and a size that goes with it, begins
//! a chain: behind its body there has to be another one, and so on. Each message of a chain is evidence, more if its body
//! parses or its serial follows the one before, and so is a chain that begins or ends where a segment does, because senders
//! write whole messages. The first chain with enough evidence wins. How much is enough depends on what was known before.
//!
//! What a tunnel carries is repetitive: pages of zeros with a small number here and there are full of headers of empty
//! messages. So an empty message is worth nothing, except for its serial or if it fills a segment, and a serial only if it is
//! one of the few that the missing bytes have room for. A chain goes on over further missing bytes if all of them are in one body.
//!
//! Work is linear: most bytes are dismissed by two comparisons, a chain is followed no further than it needs to win, and only
//! [`CHAINS`] of them are kept waiting for more bytes. Of those, no more than twice the window is kept: a chain whose
//! first messages had to go goes on, and reading begins at a later one.

use std::ops::BitAnd;

use spice_proto::base::FIRST_OF_CHANNEL;
use spice_proto::frame::HeaderForm;
use spice_proto::names::Sender;
use spice_proto::tunnel::Layout;

use super::{Body, Head, bodies, sizes};

/// A search in one direction.
#[derive(Debug, Default)]
pub(super) struct Search {
    buffer: Vec<u8>,
    /// Where the buffer starts, counted as all positions here from the first byte of the search.
    base: u64,
    /// How far headers of either form were looked for.
    full_tested: u64,
    mini_tested: u64,
    chains: Vec<Chain>,
    /// Where pieces start that are not yet tested.
    starts: Vec<u64>,
    /// Bytes that are missing among those of the search.
    gone: u64,
}

/// What is known before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clues {
    pub(super) form: Option<HeaderForm>,
    pub(super) layout: Option<Layout>,
    /// What the channel can be, if the client sends in this direction.
    pub(super) client: Types,
    /// What it can be if the server does.
    pub(super) server: Types,
    /// The last serial before.
    pub(super) serial: Option<u64>,
    /// Bytes that are missing in all; `None` if nobody knows.
    pub(super) missing: Option<u64>,
    pub(super) enough: Enough,
    /// Bytes that the search may keep.
    pub(super) window: usize,
}

/// How much evidence is enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Enough {
    pub(super) points: u32,
    pub(super) messages: u32,
    /// Different sorts of messages, as long as there are not twice as many points as are needed.
    pub(super) kinds: u32,
    /// Points for messages that fill a piece.
    pub(super) whole_piece: u32,
}

/// A set of channel types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u16);

/// Where messages start.
#[derive(Debug)]
pub(super) struct Found {
    /// Bytes before it.
    pub(super) skipped: u64,
    pub(super) form: HeaderForm,
    /// The messages' first bytes.
    pub(super) bytes: Vec<u8>,
    /// What the channel can be, as in [`Clues`].
    pub(super) client: Types,
    pub(super) server: Types,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    form: HeaderForm,
    /// Where reading would begin.
    resume: u64,
    /// Where the next header has to be.
    next: u64,
    serial: Option<u64>,
    client: Types,
    server: Types,
    points: u32,
    messages: u32,
    kinds: u32,
    last: Option<(u16, u32)>,
    /// The end of a piece that it was rewarded for.
    landed: u64,
    /// It begins where a piece does, and none has ended since.
    begins_piece: bool,
}

impl Search {
    /// Bytes that it holds on to.
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// A search behind bytes that turned out to be no message.
    pub(super) fn behind(skipped: usize) -> Self {
        let base = count(skipped);
        Search { base, full_tested: base, mini_tested: base, ..Search::default() }
    }

    /// Bytes that it was given.
    pub(super) fn seen(&self) -> u64 {
        self.end().saturating_sub(self.gone)
    }

    fn end(&self) -> u64 {
        self.base.saturating_add(count(self.buffer.len()))
    }

    /// Takes the next bytes, and whether they are the beginning and the end of a piece of the stream. Once it was found where
    /// messages start, the search is over.
    pub(super) fn feed(&mut self, bytes: &[u8], starts: bool, ends: bool, clues: &Clues) -> Option<Found> {
        if starts {
            let start = self.end();
            self.starts.push(start);
            self.reward_those_at(start, clues);
        }
        self.buffer.extend_from_slice(bytes);
        let found = self.advance(ends, clues);
        self.trim(clues.window);
        found
    }

    /// Bytes came that are not looked at.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.base = self.base.saturating_add(count(bytes));
    }

    /// Nothing more comes right behind the bytes that were fed, so that nothing is gained by waiting for the rest of a body.
    pub(super) fn finish(&mut self, clues: &Clues) -> Option<Found> {
        let mut chains = std::mem::take(&mut self.chains);
        chains.retain_mut(|chain| self.follow(chain, 0, clues));
        self.chains = chains;
        self.best(clues)
    }

    /// Lets go of all bytes, behind which some are missing.
    pub(super) fn forget(&mut self, missing: u64) {
        let base = self.end().saturating_add(missing);
        self.chains.retain(|chain| chain.next >= base);
        for chain in &mut self.chains {
            chain.resume = chain.next;
        }
        *self = Search {
            base,
            full_tested: base,
            mini_tested: base,
            chains: std::mem::take(&mut self.chains),
            gone: self.gone.saturating_add(missing),
            ..Search::default()
        };
    }

    fn advance(&mut self, piece_ends: bool, clues: &Clues) -> Option<Found> {
        let mut chains = std::mem::take(&mut self.chains);
        chains.retain_mut(|chain| self.follow(chain, SMALL, clues));
        for form in [HeaderForm::Full, HeaderForm::Mini] {
            if clues.form.is_none_or(|known| known == form) {
                self.test(form, &mut chains, clues);
            }
        }
        let tested = self.full_tested.min(self.mini_tested);
        self.starts.retain(|start| *start >= tested || clues.form.is_some());
        if self.starts.len() > STARTS {
            self.starts.drain(..STARTS / 2);
        }
        self.chains = chains;
        if piece_ends {
            self.reward_those_at(self.end(), clues);
        }
        self.best(clues)
    }

    /// A piece begins or ends here, and so do the chains that end here.
    fn reward_those_at(&mut self, end: u64, clues: &Clues) {
        for chain in self.chains.iter_mut().filter(|chain| chain.next == end && chain.landed != end) {
            chain.landed = end;
            chain.points += if chain.last.is_some_and(|(_, size)| size > 0) { 2 } else { 1 };
            if std::mem::take(&mut chain.begins_piece) {
                chain.points += clues.enough.whole_piece;
            }
        }
    }

    /// The first chain with enough evidence.
    fn best(&self, clues: &Clues) -> Option<Found> {
        let won = self
            .chains
            .iter()
            .filter(|chain| chain.is_enough(&clues.enough))
            .min_by_key(|chain| chain.resume)?;
        let bytes = self.at(won.resume)?.to_vec();
        let skipped = won.resume.saturating_sub(self.gone);
        Some(Found { skipped, form: won.form, bytes, client: won.client, server: won.server })
    }

    /// Looks for headers in what was not looked at before.
    fn test(&mut self, form: HeaderForm, chains: &mut Vec<Chain>, clues: &Clues) {
        let from = match form {
            HeaderForm::Full => self.full_tested,
            HeaderForm::Mini => self.mini_tested,
        };
        let Some(bytes) = self.at(from) else { return };
        let mut tested = from;
        let mut begun: Vec<Chain> = Vec::new();
        for (at, window) in (from..).zip(bytes.windows(form.len())) {
            tested = at + 1;
            if !may_be_header(form, window) {
                continue;
            }
            let mut chain = Chain::new(form, at, self.starts.contains(&at), clues);
            if self.follow(&mut chain, SMALL, clues) {
                begun.push(chain);
            }
            if begun.len() >= CHAINS {
                chains.append(&mut begun);
                thin_out(chains);
            }
        }
        chains.append(&mut begun);
        thin_out(chains);
        match form {
            HeaderForm::Full => self.full_tested = tested,
            HeaderForm::Mini => self.mini_tested = tested,
        }
    }

    /// Goes along a chain as far as there are bytes. A body up to `patience` is waited for. `false`: it breaks.
    fn follow(&self, chain: &mut Chain, patience: usize, clues: &Clues) -> bool {
        while !chain.is_enough(&clues.enough) {
            let Some(bytes) = self.at(chain.next) else { return true };
            let Some(head) = Head::read(chain.form, bytes) else { return true };
            let size = usize::try_from(head.size).unwrap_or(usize::MAX);
            let body = bytes.get(chain.form.len()..).and_then(|rest| rest.get(..size));
            let serials = self.serials(chain.next, clues);
            let Some((client, server, points)) = chain.fits(&head, body, serials, clues) else {
                return false;
            };
            // Each later message begins a chain itself, so nothing is lost.
            if points == 0 && chain.messages == 0 && !chain.begins_piece {
                return false;
            }
            if body.is_none() && size <= patience {
                return true;
            }
            chain.client = client;
            chain.server = server;
            chain.points += points;
            chain.messages += 1;
            chain.kinds += u32::from(chain.last.is_none_or(|(kind, _)| kind != head.kind));
            chain.last = Some((head.kind, head.size));
            chain.serial = head.serial;
            chain.next =
                chain.next.saturating_add(count(chain.form.len())).saturating_add(u64::from(head.size));
        }
        true
    }

    /// How many serials there can be from the last one that is known up to the header at a position.
    fn serials(&self, position: u64, clues: &Clues) -> u64 {
        let Some(missing) = clues.missing else { return LOST };
        let bytes = missing.saturating_sub(self.gone).saturating_add(position);
        (bytes / count(HeaderForm::Full.len())).saturating_add(LEFT_OUT).min(LOST)
    }

    /// What there is from a position on; `None` if that was let go, or is not there yet.
    fn at(&self, position: u64) -> Option<&[u8]> {
        self.buffer.get(usize::try_from(position.checked_sub(self.base)?).ok()?..)
    }

    /// Lets go of the older part of the buffer when it is full.
    fn trim(&mut self, window: usize) {
        let Some(excess) = self.buffer.len().checked_sub(window) else { return };
        if excess == 0 {
            return;
        }
        // Half of the window stays, so that the work of moving it is shared by many bytes.
        let drop = self.buffer.len() - window / 2;
        self.buffer.drain(..drop);
        self.buffer.shrink_to(window * 2);
        self.base = self.base.saturating_add(count(drop));
        let base = self.base;
        self.chains.retain_mut(|chain| {
            if chain.resume < base {
                chain.resume = chain.next;
            }
            chain.resume >= base
        });
        self.full_tested = self.full_tested.max(base);
        self.mini_tested = self.mini_tested.max(base);
        self.starts.retain(|start| *start >= base);
    }
}

impl Chain {
    fn new(form: HeaderForm, at: u64, begins_piece: bool, clues: &Clues) -> Self {
        Self {
            form,
            resume: at,
            next: at,
            serial: None,
            client: clues.client,
            server: clues.server,
            points: u32::from(begins_piece),
            messages: 0,
            kinds: 0,
            last: None,
            landed: at,
            begins_piece,
        }
    }

    fn is_enough(&self, enough: &Enough) -> bool {
        let varied = self.kinds >= enough.kinds || self.points >= 2 * enough.points;
        self.points >= enough.points && self.messages >= enough.messages && varied
    }

    /// What the channel can be if this is the chain's next message, and how much of an evidence it is. `None`: it cannot be.
    fn fits(
        &self,
        head: &Head,
        body: Option<&[u8]>,
        serials: u64,
        clues: &Clues,
    ) -> Option<(Types, Types, u32)> {
        let follows = match (head.serial, self.serial, clues.serial) {
            (None, ..) => 0,
            (Some(serial), Some(before), _) => match serial.checked_sub(before) {
                Some(1) => 2,
                Some(2..=SKIPPED) => 0,
                _ => return None,
            },
            (Some(serial), None, Some(last)) if (1..=serials).contains(&serial.wrapping_sub(last)) => 3,
            (Some(0), None, _) => return None,
            // The last one that was seen may have been a damaged one.
            (Some(serial), None, Some(_)) if serial <= LARGEST => 0,
            (Some(serial), None, None) if serial <= SMALLISH => 2,
            (Some(serial), None, None) if serial <= LARGEST => 1,
            (Some(_), None, _) => return None,
        };
        let client = self.client.that_fit(Sender::Client, head, body, clues.layout);
        let server = self.server.that_fit(Sender::Server, head, body, clues.layout);
        let possible = !client.0.is_empty() || !server.0.is_empty();
        possible.then_some((client.0, server.0, client.1.max(server.1) + follows))
    }
}

impl Types {
    /// All that have a name.
    pub(super) const ALL: Types = Types(0b1111_1111_1110);
    /// None.
    pub(super) const NONE: Types = Types(0);

    /// This one only. Those without a name are all the same.
    pub(super) fn only(channel_type: u8) -> Self {
        Self(1 << if channel_type < 12 { channel_type } else { 0 })
    }

    /// The type, if there is but one and it has a name.
    pub(super) fn single(self) -> Option<u8> {
        (self.0.count_ones() == 1)
            .then(|| u8::try_from(self.0.trailing_zeros()).unwrap_or(0))
            .filter(|kind| *kind != 0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = u8> {
        (0..12).filter(move |kind| self.0 & (1 << kind) != 0)
    }

    /// Those that have such a message, and how much of an evidence it is: none, if it is empty.
    pub(super) fn that_fit(
        self,
        from: Sender,
        head: &Head,
        body: Option<&[u8]>,
        layout: Option<Layout>,
    ) -> (Types, u32) {
        if from == Sender::Server && head.sub_list > head.size {
            return (Self::NONE, 0);
        }
        let mut fitting = Self::NONE;
        let mut points = 0;
        for channel_type in self.iter() {
            let Some(sizes) =
                sizes::of(channel_type, from, head.kind).filter(|sizes| sizes.contains(&head.size))
            else {
                continue;
            };
            let parsed = match body {
                None => false,
                Some(body) => match parses(channel_type, from, head.kind, body, layout) {
                    Some(parsed) => parsed,
                    None => continue,
                },
            };
            let exact = sizes.end() - sizes.start() <= 8;
            let telling = exact || (parsed && *sizes.end() <= STRUCTURED);
            points = points.max(match head.size {
                0 => 0,
                _ if telling => 2,
                _ => 1,
            });
            fitting.0 |= 1 << channel_type;
            // Every channel has those, with the same sizes.
            if head.kind < FIRST_OF_CHANNEL {
                return (self, points);
            }
        }
        (fitting, points)
    }
}

impl BitAnd for Types {
    type Output = Types;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Whether the parser looked into a body. `None`: it refuses it.
fn parses(channel_type: u8, from: Sender, kind: u16, body: &[u8], layout: Option<Layout>) -> Option<bool> {
    let layouts = layout.map_or([Layout::B, Layout::A], |layout| [layout; 2]);
    let parse = |layout| bodies::parse_strictly(Some(channel_type), layout, from, kind, body);
    let parsed = layouts.into_iter().find_map(|layout| parse(layout).ok())?;
    Some(!matches!(parsed, Body::Opaque))
}

/// A first look, at what no header of any channel can be.
fn may_be_header(form: HeaderForm, bytes: &[u8]) -> bool {
    let kind_and_size = match (form, bytes) {
        (HeaderForm::Full, [_, _, _, _, _, 0, 0, 0, rest @ ..]) => rest,
        (HeaderForm::Full, _) => return false,
        (HeaderForm::Mini, bytes) => bytes,
    };
    match kind_and_size {
        // No number is above 322, and no body of 512 MiB or more is believed.
        [low, high, _, _, _, size_high, ..] => {
            let known = match (*high, *low) {
                (0, low) => matches!(low, 1..=8 | 101..),
                (high, _) => high == 1,
            };
            known && *size_high < 0x20
        }
        _ => false,
    }
}

/// Keeps the best chains. Of several that have come to the same place, that is one.
fn thin_out(chains: &mut Vec<Chain>) {
    if chains.len() < 2 {
        return;
    }
    let worth = |chain: &Chain| (std::cmp::Reverse(chain.points), chain.resume);
    chains.sort_by_key(|chain| (chain.form == HeaderForm::Mini, chain.next, worth(chain)));
    chains.dedup_by_key(|chain| (chain.form, chain.next));
    if chains.len() > CHAINS {
        chains.sort_by_key(worth);
        chains.truncate(CHAINS);
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Most chains that are followed at the same time.
const CHAINS: usize = 64;

/// A body up to this length is waited for, to look into it.
const SMALL: usize = 4096;

/// A body that cannot be longer than this and that parses has a structure which chance does not produce.
const STRUCTURED: u32 = 132 << 10;

/// Starts of pieces that are remembered.
const STARTS: usize = 64;

/// Serials that a sender may leave out.
pub(super) const SKIPPED: u64 = 1000;

/// How many of them are expected behind a hole.
const LEFT_OUT: u64 = 16;

/// Messages that a hole may take.
pub(super) const LOST: u64 = 1 << 24;

/// A serial that young connections have.
const SMALLISH: u64 = 1 << 16;

/// Largest serial that is believed if none was seen before.
const LARGEST: u64 = 1 << 32;
