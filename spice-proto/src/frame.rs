//! Message headers and the frames they announce (wire reference 2.1 to 2.3).
//!
//! Three readers stand here. [`split`] takes one whole message off the front of a buffer, for an end of the
//! channel. [`FrameSkimmer`] walks along a stream that it does not buffer, for a proxy that passes bodies on.
//! [`sub_messages`] opens the list of small messages that the server may tuck into a larger one.

use nom::Parser;
use nom::number::complete::{le_u16, le_u32, le_u64};

use crate::base::LIST;
use crate::error::{FrameError, ParseError, Problem};
use crate::parse::{Parsed, put_u16, put_u32, put_u64, to_usize, whole};

/// Which of the two headers a connection uses, in both directions (wire reference 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderForm {
    /// 18 bytes: `u64 serial, u16 type, u32 size, u32 sub_list`.
    Full,
    /// 6 bytes: `u16 type, u32 size`. Used where both sides have the common capability `MINI_HEADER`.
    Mini,
}

impl HeaderForm {
    /// Length of the header in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub const fn len(self) -> usize {
        match self {
            HeaderForm::Full => FULL_LEN,
            HeaderForm::Mini => MINI_LEN,
        }
    }
}

/// One message, its body borrowed from the buffer it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The sender's number for the message, starting at 1; a mini header has none and both ends count.
    pub serial: Option<u64>,
    /// Message type; its meaning depends on channel and direction.
    pub kind: u16,
    /// Offset in the body of a list of sub-messages, 0 for none. Meaningful from servers only: clients of 2010
    /// sent what the memory held, and every server ignores it. Always 0 with a mini header.
    pub sub_list: u32,
    /// The body, exactly as long as the header said.
    pub body: &'a [u8],
}

/// What [`split`] found at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole message.
    Frame {
        /// The message.
        frame: Frame<'a>,
        /// How many bytes of the buffer it takes up, header included.
        consumed: usize,
    },
    /// The message is not complete yet.
    Incomplete {
        /// How many bytes, counted from the start of the buffer, are needed before it makes sense to look again.
        /// Never more than a header and `max_body`.
        needed: usize,
    },
}

/// Takes the first message off `buf`.
///
/// # Errors
///
/// [`FrameError::TooLarge`] as soon as the header is there and announces more than `max_body` bytes, so that a reader
/// may grow its buffer to `needed` without fear.
pub fn split<'a>(form: HeaderForm, max_body: u32, buf: &'a [u8]) -> Result<Split<'a>, FrameError> {
    let Ok((rest, header)) = header(form, buf) else {
        return Ok(Split::Incomplete { needed: form.len() });
    };
    if header.size > max_body {
        return Err(FrameError::TooLarge { kind: header.kind, size: header.size, limit: max_body });
    }
    let size = to_usize(header.size);
    let consumed = form.len().saturating_add(size);
    Ok(match rest.split_at_checked(size) {
        None => Split::Incomplete { needed: consumed },
        Some((body, _)) => Split::Frame {
            frame: Frame { serial: header.serial, kind: header.kind, sub_list: header.sub_list, body },
            consumed,
        },
    })
}

/// Appends a header; the body of `size` bytes is the caller's to append. `serial` goes nowhere in the mini form.
pub fn put_header(form: HeaderForm, out: &mut Vec<u8>, serial: u64, kind: u16, size: u32) {
    let serial = match form {
        HeaderForm::Full => Some(serial),
        HeaderForm::Mini => None,
    };
    Header { serial, kind, size, sub_list: 0 }.write(out);
}

/// A header without its body, as a [`FrameSkimmer`] reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// As in [`Frame`]. Also says which form the header has.
    pub serial: Option<u64>,
    /// As in [`Frame`].
    pub kind: u16,
    /// Length of the body in bytes, as announced and unchecked.
    pub size: u32,
    /// As in [`Frame`].
    pub sub_list: u32,
}

impl Header {
    /// Appends the header's bytes: those that it was read from, unless a field was changed since.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some(serial) = self.serial {
            put_u64(out, serial);
        }
        put_u16(out, self.kind);
        put_u32(out, self.size);
        if self.serial.is_some() {
            put_u32(out, self.sub_list);
        }
    }
}

/// Opens the sub-messages of a message from the server (wire reference 2.3): those at `sub_list`, or those of a
/// LIST message. Gives an empty iterator for any other message. They are to be handled before the message itself.
///
/// The iterator yields at most 65,535 frames, which together are no longer than the body, and ends at its first error.
///
/// # Errors
///
/// A list that is not wholly inside of the body. Each sub-message is checked when its turn comes.
pub fn sub_messages<'a>(frame: &Frame<'a>) -> Result<SubMessages<'a>, ParseError> {
    let body = frame.body;
    let start = match (frame.sub_list, frame.kind) {
        (0, LIST) => 0,
        (0, _) => return Ok(SubMessages { body, offsets: &[], budget: 0 }),
        (start, _) => start,
    };
    let list = at(body, start)
        .ok_or(ParseError {
            what: WHAT,
            problem: Problem::Offset { field: "sub_list", got: start, from: 0, to: body.len() },
        })?
        .0;
    let (offsets, budget) = whole(WHAT, list, |input| {
        let (rest, count) = le_u16(input)?;
        let (rest, offsets) = nom::bytes::complete::take(usize::from(count).saturating_mul(4))(rest)?;
        // What follows the list, if anything, is sub-messages.
        Ok((&[], (offsets, body.len().saturating_sub(list.len().saturating_sub(rest.len())))))
    })?;
    Ok(SubMessages { body, offsets, budget })
}

/// Iterator of [`sub_messages`].
#[derive(Debug, Clone)]
pub struct SubMessages<'a> {
    body: &'a [u8],
    /// The offsets not yet visited, four bytes each.
    offsets: &'a [u8],
    /// INVARIANT: bytes that the messages still to come may take up together. Stops one long message from being
    /// listed thousands of times.
    budget: usize,
}

impl<'a> SubMessages<'a> {
    fn parse_next(&mut self, offset: u32) -> Result<Frame<'a>, ParseError> {
        let fail = |problem| Err(ParseError { what: WHAT, problem });
        let Some((input, before)) = at(self.body, offset) else {
            return fail(Problem::Offset {
                field: "sub-message offset",
                got: offset,
                from: 0,
                to: self.body.len(),
            });
        };
        let short = Problem::Short { at: before, got: self.body.len() };
        let Ok((rest, Header { kind, size, .. })) = header(HeaderForm::Mini, input) else {
            return fail(short);
        };
        let Some(body) = rest.get(..to_usize(size)) else {
            return fail(short);
        };
        if kind == LIST {
            return fail(Problem::Value {
                field: "sub-message type",
                got: u64::from(kind),
                expected: "no list in a list",
            });
        }
        let taken = MINI_LEN.saturating_add(body.len());
        match self.budget.checked_sub(taken) {
            Some(left) => self.budget = left,
            None => return fail(Problem::TooLong { field: "sub-messages", got: taken, limit: self.budget }),
        }
        Ok(Frame { serial: None, kind, sub_list: 0, body })
    }
}

impl<'a> Iterator for SubMessages<'a> {
    type Item = Result<Frame<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (offset, rest) = self.offsets.split_first_chunk::<4>()?;
        self.offsets = rest;
        let item = self.parse_next(u32::from_le_bytes(*offset));
        if item.is_err() {
            self.offsets = &[];
        }
        Some(item)
    }
}

/// Follows the messages of a stream without buffering their bodies, whatever the pieces it arrives in.
///
/// ```
/// # use spice_proto::frame::{FrameSkimmer, HeaderForm, Skimmed};
/// let mut skimmer = FrameSkimmer::new(HeaderForm::Mini);
/// let mut seen = Vec::new();
/// for mut chunk in [&b"\x04\x00\x03"[..], b"\x00\x00\x00ab", b"c"] {
///     while let Some(piece) = skimmer.next(&mut chunk) {
///         seen.push(match piece {
///             Skimmed::Header { header, .. } => format!("type {}", header.kind),
///             Skimmed::Body { bytes, last } => format!("{} bytes, last: {last}", bytes.len()),
///         });
///     }
/// }
/// assert_eq!(seen, ["type 4", "2 bytes, last: false", "1 bytes, last: true"]);
/// ```
#[derive(Debug, Clone)]
pub struct FrameSkimmer {
    form: HeaderForm,
    /// Offset in the stream of the next byte to be fed.
    position: u64,
    state: SkimState,
}

/// A piece of the stream, as [`FrameSkimmer::next`] reports it. The pieces in their order, headers written with
/// [`Header::write`], are the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skimmed<'a> {
    /// A header is complete. If its size is 0, no body follows.
    Header {
        /// The header.
        header: Header,
        /// Where in the stream it starts, bytes from the first one fed.
        offset: u64,
    },
    /// A piece of the body, never empty.
    Body {
        /// The bytes.
        bytes: &'a [u8],
        /// Whether the message ends with them.
        last: bool,
    },
}

#[derive(Debug, Clone)]
enum SkimState {
    /// INVARIANT: `have` is less than the header's length.
    Header { bytes: [u8; FULL_LEN], have: usize },
    /// INVARIANT: `left` is not 0.
    Body { left: u32 },
}

impl FrameSkimmer {
    /// A skimmer that stands at the first byte behind the link stage.
    pub fn new(form: HeaderForm) -> Self {
        FrameSkimmer { form, position: 0, state: SkimState::START }
    }

    /// Steps over the next `bytes` of the stream, if all of them belong to the body of one message. `false`: they do not, and nothing has changed.
    pub fn pass_body(&mut self, bytes: usize) -> bool {
        let (SkimState::Body { left }, Ok(passed)) = (&self.state, u32::try_from(bytes)) else {
            return false;
        };
        let Some(left) = left.checked_sub(passed) else { return false };
        self.position = self.position.wrapping_add(u64::from(passed));
        self.state = SkimState::after(left);
        true
    }

    /// Takes the next piece off the front of `chunk`. `None` when `chunk` is used up: then, bytes of a header that is not yet
    /// complete are inside of the skimmer, and come out with the header.
    pub fn next<'c>(&mut self, chunk: &mut &'c [u8]) -> Option<Skimmed<'c>> {
        match &mut self.state {
            SkimState::Header { bytes, have } => {
                let missing = bytes.get_mut(*have..self.form.len()).unwrap_or_default();
                let n = missing.len().min(chunk.len());
                let (now, rest) = chunk.split_at_checked(n)?;
                missing.get_mut(..n)?.copy_from_slice(now);
                *chunk = rest;
                *have = have.saturating_add(n);
                self.position = self.position.wrapping_add(u64::try_from(n).unwrap_or(0));
                let (_, header) = header(self.form, bytes.get(..*have)?).ok()?;
                let length = u64::try_from(*have).unwrap_or(0);
                self.state = SkimState::after(header.size);
                Some(Skimmed::Header { header, offset: self.position.wrapping_sub(length) })
            }
            SkimState::Body { left } => {
                let n = to_usize(*left).min(chunk.len());
                let (bytes, rest) = chunk.split_at_checked(n)?;
                if bytes.is_empty() {
                    return None;
                }
                *chunk = rest;
                self.position = self.position.wrapping_add(u64::try_from(n).unwrap_or(0));
                let left = left.saturating_sub(u32::try_from(n).unwrap_or(u32::MAX));
                self.state = SkimState::after(left);
                Some(Skimmed::Body { bytes, last: left == 0 })
            }
        }
    }

    /// Whether the stream stands between two messages, so that it could end or be added to here.
    pub fn between_messages(&self) -> bool {
        matches!(self.state, SkimState::Header { have: 0, .. })
    }
}

impl SkimState {
    const START: SkimState = SkimState::Header { bytes: [0; FULL_LEN], have: 0 };

    fn after(left: u32) -> Self {
        if left == 0 { Self::START } else { Self::Body { left } }
    }
}

/// Parses a header. Its only error is that there are not enough bytes.
fn header(form: HeaderForm, input: &[u8]) -> Parsed<'_, Header> {
    match form {
        HeaderForm::Full => (le_u64, le_u16, le_u32, le_u32)
            .map(|(serial, kind, size, sub_list)| Header { serial: Some(serial), kind, size, sub_list })
            .parse(input),
        HeaderForm::Mini => {
            (le_u16, le_u32).map(|(kind, size)| Header { serial: None, kind, size, sub_list: 0 }).parse(input)
        }
    }
}

/// The body from `offset` on, and the offset.
fn at(body: &[u8], offset: u32) -> Option<(&[u8], usize)> {
    let offset = to_usize(offset);
    Some((body.get(offset..)?, offset))
}

const WHAT: &str = "list of sub-messages";
const FULL_LEN: usize = 18;
const MINI_LEN: usize = 6;

#[cfg(test)]
mod tests;
