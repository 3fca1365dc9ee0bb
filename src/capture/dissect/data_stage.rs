//! One direction of the data stage: from bytes to messages, as long as it is known where the next one starts.

use spice_proto::frame::HeaderForm;
use spice_proto::names::Sender;
use spice_proto::tunnel::Layout;

use super::bodies;
use super::knowledge::Knowledge;
use super::out::Out;
use super::resync::LOST;
use super::sizes;
use super::{Body, Head, Hole, Message, What};

/// Follows the messages of one direction.
#[derive(Debug)]
pub(super) struct Framer {
    from: Sender,
    form: HeaderForm,
    state: State,
    /// What is kept of the body in hand.
    kept: Vec<u8>,
    /// Of the last header.
    serial: Option<u64>,
    /// Messages that have yet to stand where they have to, until it is sure that these are messages. 0: it is.
    unproved: u32,
}

#[derive(Debug)]
enum State {
    /// INVARIANT: `have` is less than the header's length.
    Header { bytes: [u8; LONGEST], have: usize },
    /// INVARIANT: `left` is not 0.
    Body {
        head: Head,
        /// Bytes that are still to come.
        left: usize,
        /// Bytes to keep, less than the size if it is not looked into.
        keep: usize,
        /// Whether the capture misses some of it.
        holed: bool,
    },
}

/// What a piece did to a [`Framer`].
pub(super) enum Fed<'b> {
    /// It was used up.
    Ok,
    /// A header is not one. A message may start anywhere in these bytes.
    Lost {
        /// The damaged header but for its first byte, or a body.
        behind: Vec<u8>,
        /// What follows it in the piece.
        rest: &'b [u8],
        /// `None`: it was reported. Otherwise the messages before it were not sure to be any, and so many bytes went
        /// before these ones.
        unproved: Option<usize>,
    },
}

/// What a hole did to a [`Framer`].
pub(super) enum Holed {
    /// It is within one body: the next message's start is known.
    Survived,
    /// Where the next message starts is not known. The body that the hole begins in is lost.
    Lost(Option<Head>),
}

impl Framer {
    pub(super) fn new(from: Sender, form: HeaderForm, serial: Option<u64>) -> Self {
        Self { from, form, state: State::START, kept: Vec::new(), serial, unproved: 0 }
    }

    /// Where messages were found by a search, which may have taken something else for them.
    pub(super) fn found(from: Sender, form: HeaderForm, serial: Option<u64>) -> Self {
        Self { unproved: PROOF, ..Self::new(from, form, serial) }
    }

    /// Bytes that it holds on to.
    pub(super) fn held(&self) -> usize {
        self.kept.capacity()
    }

    /// Serial of the last message.
    pub(super) fn serial(&self) -> Option<u64> {
        self.serial
    }

    /// Takes the next bytes.
    pub(super) fn feed<'b>(
        &mut self,
        mut bytes: &'b [u8],
        know: &mut Knowledge,
        out: &mut Out<'_>,
    ) -> Fed<'b> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header { bytes: partial, have } => {
                    let length = self.form.len();
                    let mut raw = [0; LONGEST];
                    let rest = match bytes.split_at_checked(length) {
                        Some((whole, rest)) if *have == 0 => {
                            raw.iter_mut().zip(whole).for_each(|(to, from)| *to = *from);
                            rest
                        }
                        _ => {
                            let (now, rest) = bytes.split_at_checked(length - *have).unwrap_or((bytes, &[]));
                            partial.iter_mut().skip(*have).zip(now).for_each(|(to, from)| *to = *from);
                            *have += now.len();
                            if *have < length {
                                return Fed::Ok;
                            }
                            raw = *partial;
                            rest
                        }
                    };
                    let raw = raw.get(..length).unwrap_or_default();
                    let Some(head) = Head::read(self.form, raw) else { return Fed::Ok };
                    if self.unproved > 0 && self.is_unlikely(&head, know) {
                        self.state = State::START;
                        let behind = raw.get(1..).unwrap_or_default().to_vec();
                        return Fed::Lost { behind, rest, unproved: Some(1) };
                    }
                    if let Some(error) = self.doubt(&head, know) {
                        out.say(know, Some(self.from), What::Malformed { error, header: None, bytes: raw });
                        self.state = State::START;
                        let behind = raw.get(1..).unwrap_or_default().to_vec();
                        return Fed::Lost { behind, rest, unproved: None };
                    }
                    if self.unproved > 0 {
                        let size = usize::try_from(head.size).unwrap_or(usize::MAX);
                        if rest.get(..size).is_some_and(|body| is_refused(self.from, &head, body, know)) {
                            self.state = State::START;
                            let behind = raw.get(1..).unwrap_or_default().to_vec();
                            return Fed::Lost { behind, rest, unproved: Some(1) };
                        }
                        // An empty one proves nothing.
                        self.unproved -= u32::from(head.size > 0 || head.serial.is_some());
                    }
                    bytes = self.start(head, rest, know, out);
                }
                State::Body { head, left, keep, holed } => {
                    let n = bytes.len().min(*left);
                    let (now, rest) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
                    bytes = rest;
                    *left -= n;
                    let wanted = keep.saturating_sub(self.kept.len()).min(n);
                    if wanted > 0 && !*holed {
                        if out.afford(&mut self.kept, wanted, *keep) {
                            self.kept.extend_from_slice(now.get(..wanted).unwrap_or_default());
                        } else {
                            *keep = self.kept.len();
                        }
                    }
                    if *left == 0 {
                        let (head, holed) = (*head, *holed);
                        if self.unproved > 0 && !holed && is_refused(self.from, &head, &self.kept, know) {
                            self.state = State::START;
                            let behind = std::mem::take(&mut self.kept);
                            return Fed::Lost { behind, rest: bytes, unproved: Some(self.form.len()) };
                        }
                        self.finish(head, holed, know, out);
                    }
                }
            }
        }
        Fed::Ok
    }

    /// Takes note that the next `missing` bytes will not come.
    pub(super) fn hole(&mut self, missing: u64) -> Holed {
        match &mut self.state {
            State::Body { head, left, holed, .. } => {
                let missing = usize::try_from(missing).unwrap_or(usize::MAX);
                *holed = true;
                match left.checked_sub(missing) {
                    Some(rest) => {
                        *left = rest;
                        Holed::Survived
                    }
                    None => Holed::Lost(Some(*head)),
                }
            }
            State::Header { .. } => Holed::Lost(None),
        }
    }

    /// Gives the message that ends with the hole that was just reported, if one does.
    pub(super) fn behind_hole(&mut self, know: &mut Knowledge, out: &mut Out<'_>) {
        if let State::Body { head, left: 0, holed, .. } = self.state {
            self.finish(head, holed, know, out);
        }
    }

    /// The sender closed. In the middle of a message that is a fault, if it surely was one.
    pub(super) fn closed(&mut self, know: &Knowledge, out: &mut Out<'_>) {
        let who = self.from.name();
        if self.unproved > 0 {
            let skipped = match &self.state {
                State::Header { have, .. } => u64::try_from(*have).unwrap_or(u64::MAX),
                State::Body { head, left, .. } => {
                    let left = u64::try_from(*left).unwrap_or(u64::MAX);
                    let header = u64::try_from(self.form.len()).unwrap_or(u64::MAX);
                    header.saturating_add(u64::from(head.size).saturating_sub(left))
                }
            };
            if skipped > 0 {
                let hole = Hole { missing: Some(0), skipped, resumed: false, cause: None };
                out.say(know, Some(self.from), What::Hole(hole));
            }
            self.state = State::START;
        }
        match &self.state {
            State::Header { have: 0, .. } => {}
            State::Header { bytes, have } => {
                let error =
                    format!("the {who} closed within a message header, {have} of {} bytes", self.form.len());
                let bytes = bytes.get(..*have).unwrap_or_default();
                out.say(know, Some(self.from), What::Malformed { error, header: None, bytes });
            }
            State::Body { head, left, .. } => {
                let size = usize::try_from(head.size).unwrap_or(usize::MAX);
                let error = format!(
                    "the {who} closed within a message, {} of {size} bytes",
                    size.saturating_sub(*left)
                );
                out.say(
                    know,
                    Some(self.from),
                    What::Malformed { error, header: Some(*head), bytes: &self.kept },
                );
            }
        }
        self.state = State::START;
        self.kept = Vec::new();
    }

    /// A header is there. Gives what follows the message if all of it is there too, in which case nothing is copied.
    fn start<'b>(&mut self, head: Head, rest: &'b [u8], know: &mut Knowledge, out: &mut Out<'_>) -> &'b [u8] {
        self.serial = head.serial;
        let size = usize::try_from(head.size).unwrap_or(usize::MAX);
        if let Some((body, rest)) = rest.split_at_checked(size) {
            self.state = State::START;
            give(self.from, head, body, know, out);
            return rest;
        }
        let keep = bodies::wanted(know.channel_type(), self.from, &head);
        self.kept.clear();
        self.state = State::Body { head, left: size, keep, holed: false };
        rest
    }

    /// The last byte of a body that came in pieces is there, or is known not to come.
    fn finish(&mut self, head: Head, holed: bool, know: &mut Knowledge, out: &mut Out<'_>) {
        self.state = State::START;
        if holed {
            incomplete(self.from, head, know, out);
        } else {
            give(self.from, head, &self.kept, know, out);
        }
        if self.kept.capacity() > LEFT_OVER || out.room < 64 * LEFT_OVER {
            self.kept = Vec::new();
        }
        self.kept.clear();
    }

    /// Whether this is no header that a sender of this channel would write next.
    fn is_unlikely(&self, head: &Head, know: &Knowledge) -> bool {
        let follows = match (head.serial, self.serial) {
            (Some(serial), Some(last)) => (1..=LOST).contains(&serial.wrapping_sub(last)),
            _ => true,
        };
        let fits = know.channel_type().is_none_or(|channel_type| {
            sizes::of(channel_type, self.from, head.kind).is_some_and(|sizes| sizes.contains(&head.size))
        });
        !follows || !fits || self.doubt(head, know).is_some()
    }

    /// Why this can be no header.
    fn doubt(&self, head: &Head, know: &Knowledge) -> Option<String> {
        let Head { kind, size, .. } = *head;
        let who = self.from.name();
        let Some(limit) = sizes::limit(know.channel_type(), self.from, kind) else {
            return Some(format!(
                "expected a message header from the {who}, got one of type {kind}, which no channel has"
            ));
        };
        if size > limit {
            return Some(format!(
                "the {who} announced a message of type {kind} with a body of {size} bytes, expected at most {limit}"
            ));
        }
        // Serials alone say nothing, because nobody checks them.
        if let (Some(serial), Some(last), Some(channel_type)) =
            (head.serial, self.serial, know.channel_type())
            && !(1..=LOST).contains(&serial.wrapping_sub(last))
            && !sizes::of(channel_type, self.from, kind).is_some_and(|sizes| sizes.contains(&size))
        {
            return Some(format!(
                "expected a message header from the {who} with a serial above {last}, got {serial} with type {kind} and \
                 size {size}, which do not go together"
            ));
        }
        None
    }
}

/// Gives a message, of whose body these bytes were kept.
fn give(from: Sender, head: Head, kept: &[u8], know: &mut Knowledge, out: &mut Out<'_>) {
    let whole = usize::try_from(head.size) == Ok(kept.len());
    know.learn(from, &head, whole.then_some(kept));
    let channel_type = know.channel_type();
    let body = if whole && kept.len() <= super::MAX_KEPT {
        bodies::parse(channel_type, know.layout(), from, &head, kept)
    } else {
        Ok(Body::Opaque)
    };
    let what = match body {
        Ok(body) => What::Message(Message {
            head,
            name: bodies::name(channel_type, from, head.kind),
            body,
            bytes: kept,
        }),
        Err(error) => What::Malformed { error, header: Some(head), bytes: kept },
    };
    out.say(know, Some(from), what);
}

/// Whether a body cannot be what its header says.
fn is_refused(from: Sender, head: &Head, body: &[u8], know: &Knowledge) -> bool {
    let whole = usize::try_from(head.size) == Ok(body.len());
    let layouts = know.layout.map_or([Layout::B, Layout::A], |layout| [layout; 2]);
    let reads = |layout| bodies::parse(know.channel_type(), layout, from, head, body).is_ok();
    whole && body.len() <= super::MAX_KEPT && !layouts.into_iter().any(reads)
}

/// Gives a message that the capture does not have all of.
pub(super) fn incomplete(from: Sender, head: Head, know: &Knowledge, out: &mut Out<'_>) {
    let name = bodies::name(know.channel_type(), from, head.kind);
    out.say(know, Some(from), What::Message(Message { head, name, body: Body::Incomplete, bytes: &[] }));
}

impl Head {
    /// Reads a header. `None`: the bytes are too few.
    pub(super) fn read(form: HeaderForm, bytes: &[u8]) -> Option<Head> {
        match form {
            HeaderForm::Full => {
                let (serial, rest) = bytes.split_first_chunk()?;
                let (kind, rest) = rest.split_first_chunk()?;
                let (size, rest) = rest.split_first_chunk()?;
                let (sub_list, _) = rest.split_first_chunk()?;
                Some(Head {
                    serial: Some(u64::from_le_bytes(*serial)),
                    kind: u16::from_le_bytes(*kind),
                    size: u32::from_le_bytes(*size),
                    sub_list: u32::from_le_bytes(*sub_list),
                })
            }
            HeaderForm::Mini => {
                let (kind, rest) = bytes.split_first_chunk()?;
                let (size, _) = rest.split_first_chunk()?;
                let (kind, size) = (u16::from_le_bytes(*kind), u32::from_le_bytes(*size));
                Some(Head { serial: None, kind, size, sub_list: 0 })
            }
        }
    }
}

impl State {
    const START: State = State::Header { bytes: [0; LONGEST], have: 0 };
}

/// Bytes of the longer header.
pub(super) const LONGEST: usize = HeaderForm::Full.len();

/// Messages that have to stand where they have to behind one that was found.
const PROOF: u32 = 4;

/// A buffer up to this size is kept for the next message, unless memory is short.
const LEFT_OVER: usize = 64 << 10;
