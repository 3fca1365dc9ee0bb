//! SASL in the link stage, followed byte by byte (wire-reference 1.8).
//!
//! ```text
//! server                                    client
//!   u32 length, mechanism list       ->
//!                                    <-       u32 length, name of one; u32 length, data
//!   u32 length, data; u8 complete    ->       again from the client's data while complete is 0
//!   u32 0                            ->       accepted; or 1, u32 length, text
//!   u32 link result                  ->       as after a ticket
//! ```
//!
//! A length of data counts a NUL at its end, which makes two cases of nothing: length 0 is no data at all, length 1 is data that
//! is empty.
//!
//! At any moment only one side may speak, and how much it has to say in one go is known. [`Exchange`] says which side that is and
//! how much, and takes that in pieces of any size. It keeps nothing but the list, the chosen name and the text of a rejection,
//! so that who relays an exchange needs no memory for what the two say. An error is final.

#[cfg(test)]
mod tests;

use crate::link::{LinkError, MAGIC, WORD_LEN};

/// Longest mechanism list. Not more is accepted by spice-gtk.
pub const MAX_LIST: u32 = 300;

/// Longest name of a mechanism. Not more is accepted by libspice-server, although RFC 4422 ends them at 20.
pub const MAX_NAME: u32 = 100;

/// Most data in one step, its NUL included.
///
/// libspice-server and spice-gtk both accept 1 MiB, and reserve at once what is announced. No stranger needs so much: the
/// largest data known are Kerberos tokens, which end at 65,535 bytes.
pub const MAX_DATA: u32 = 64 * 1024;

/// Most steps of a client in one exchange. Known mechanisms need four at most, GSSAPI included.
pub const MAX_STEPS: u32 = 16;

/// Longest text of a rejection.
pub const MAX_TEXT: u32 = 1024;

/// The two ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who links.
    Client,
    /// Whom it links to.
    Server,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// What an exchange waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This side has to speak: so many bytes until something else is due.
    Of(Side, usize),
    /// Nothing. What comes now belongs to the channel, or to nothing at all.
    Over(Outcome),
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted, and linked.
    Linked,
    /// Accepted, but there is no link, for another reason.
    Refused(LinkError),
    /// Not accepted.
    Rejected,
}

/// What the bytes are that an exchange waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The server's length of the mechanism list.
    ListLength,
    /// The server's mechanism list.
    List,
    /// The client's length of the mechanism's name.
    NameLength,
    /// The client's choice.
    Name,
    /// The length of the client's data.
    ClientLength,
    /// The client's data.
    ClientData,
    /// The length of the server's data.
    ServerLength,
    /// The server's data.
    ServerData,
    /// Whether the server is done.
    Complete,
    /// Whether it accepts.
    Verdict,
    /// The length of the text of a rejection.
    TextLength,
    /// The text.
    Text,
    /// The link result.
    LinkResult,
    /// Nothing more.
    Nothing,
}

impl Part {
    /// Who sends it.
    pub const fn side(self) -> Side {
        match self {
            Self::NameLength | Self::Name | Self::ClientLength | Self::ClientData => Side::Client,
            Self::ListLength
            | Self::List
            | Self::ServerLength
            | Self::ServerData
            | Self::Complete
            | Self::Verdict
            | Self::TextLength
            | Self::Text
            | Self::LinkResult
            | Self::Nothing => Side::Server,
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ListLength | Self::List => "the server's list of mechanisms",
            Self::NameLength | Self::Name => "the client's choice of a mechanism",
            Self::ClientLength | Self::ClientData => "the client's SASL data",
            Self::ServerLength | Self::ServerData | Self::Complete => "the server's SASL data",
            Self::Verdict | Self::TextLength | Self::Text => "the server's verdict",
            Self::LinkResult => "the server's link result",
            Self::Nothing => "nothing more",
        })
    }
}

/// What a peer got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslFault {
    /// A length beyond its limit.
    #[error("expected at most {limit} bytes as {part}, got a length of {got}")]
    TooLong {
        /// Of what.
        part: Part,
        /// The limit.
        limit: u32,
        /// What was announced.
        got: u32,
    },
    /// A mechanism without a name.
    #[error("expected the name of a mechanism from the client, got an empty one")]
    NoName,
    /// A mechanism that the server did not offer.
    #[error("expected the client to choose one of the server's mechanisms, got another")]
    NotOffered,
    /// An exchange without end.
    #[error("expected an exchange of at most {MAX_STEPS} steps, got one more from the client")]
    TooManySteps,
    /// Where a verdict should be there is a link reply.
    #[error("expected a verdict from the server, got a second link reply")]
    SecondReply,
    /// The side whose turn it is not spoke, or more came than was due.
    #[error("expected {expected} to be next, and nothing else")]
    OutOfTurn {
        /// What was due.
        expected: Part,
    },
}

impl SaslFault {
    /// Who got it wrong.
    pub const fn side(&self) -> Side {
        match self {
            Self::TooLong { part, .. } => part.side(),
            Self::NoName | Self::NotOffered | Self::TooManySteps => Side::Client,
            Self::SecondReply => Side::Server,
            Self::OutOfTurn { expected } => match expected.side() {
                Side::Client => Side::Server,
                Side::Server => Side::Client,
            },
        }
    }
}

/// Mechanisms that a server offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms(Vec<u8>);

impl Mechanisms {
    /// From the list on the wire. libspice-server 0.15.1 puts a comma before, between and behind the names, others only between.
    pub fn parse(list: &[u8]) -> Self {
        Self(list.to_vec())
    }

    /// The names, without those that cannot be one (RFC 4422, 3.1).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parts = self.0.split(|byte| matches!(byte, b',' | b' ' | 0));
        parts.filter(|name| is_name(name)).filter_map(|name| str::from_utf8(name).ok())
    }

    /// Whether one of them has this name.
    pub fn offers(&self, name: &[u8]) -> bool {
        self.names().any(|offered| offered.as_bytes() == name)
    }
}

impl std::fmt::Display for Mechanisms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, name) in self.names().enumerate() {
            f.write_str(if n == 0 { "" } else { ", " })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

fn is_name(name: &[u8]) -> bool {
    let sign = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_');
    !name.is_empty() && name.len() <= MAX_NAME as usize && name.iter().all(sign)
}

/// Appends a client's choice.
pub fn put_name(out: &mut Vec<u8>, name: &str) {
    put(out, name.as_bytes());
}

/// Appends data as either side sends it.
pub fn put_data(out: &mut Vec<u8>, data: Option<&[u8]>) {
    match data {
        None => put(out, &[]),
        Some(data) => {
            let length = u32::try_from(data.len() + 1).unwrap_or(u32::MAX);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(data);
            out.push(0);
        }
    }
}

/// What [`put_data`] was given, from what follows its length.
pub fn data(wire: &[u8]) -> Option<&[u8]> {
    // Whoever leaves out the NUL loses a byte, as with libspice-server.
    wire.split_last().map(|(_, data)| data)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// One exchange, from behind the client's mechanism 2 to the link result.
#[derive(Clone, Debug)]
pub struct Exchange {
    part: Part,
    /// Bytes that are still to come of this part. INVARIANT: not 0 but at [`Part::Nothing`].
    lacking: usize,
    /// What has come of it, if it is kept.
    kept: Vec<u8>,
    mechanisms: Mechanisms,
    chosen: String,
    steps: u32,
    text: String,
    outcome: Outcome,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// The server is to send its list.
    pub fn new() -> Self {
        Self {
            part: Part::ListLength,
            lacking: WORD_LEN,
            kept: Vec::new(),
            mechanisms: Mechanisms::default(),
            chosen: String::new(),
            steps: 0,
            text: String::new(),
            outcome: Outcome::Rejected,
        }
    }

    /// Who is to speak, and how much.
    pub fn turn(&self) -> Turn {
        if self.part == Part::Nothing {
            return Turn::Over(self.outcome);
        }
        Turn::Of(self.part.side(), self.lacking)
    }

    /// What is to come.
    pub fn part(&self) -> Part {
        self.part
    }

    /// What the server offers, once the list has come.
    pub fn mechanisms(&self) -> &Mechanisms {
        &self.mechanisms
    }

    /// What the client chose; empty before.
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    /// Why the server rejects, in its own words, of which only what can be printed is kept.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the server's closing here means that it rejects. libspice-server 0.15.1 tells a wrong password by nothing else.
    pub fn ends_in_rejection(&self) -> bool {
        match self.part {
            Part::ServerLength | Part::ServerData | Part::Complete | Part::Verdict => true,
            // The word that says so has come; the text need not.
            Part::TextLength | Part::Text => true,
            Part::Nothing => self.outcome == Outcome::Rejected,
            Part::ListLength
            | Part::List
            | Part::NameLength
            | Part::Name
            | Part::ClientLength
            | Part::ClientData
            | Part::LinkResult => false,
        }
    }

    /// Whether the server may link without another byte from the client.
    pub fn is_with_server(&self) -> bool {
        match self.part {
            Part::ServerLength | Part::ServerData | Part::Complete | Part::Verdict | Part::LinkResult => true,
            Part::Nothing => self.outcome == Outcome::Linked,
            Part::ListLength
            | Part::List
            | Part::NameLength
            | Part::Name
            | Part::ClientLength
            | Part::ClientData
            | Part::TextLength
            | Part::Text => false,
        }
    }

    /// Takes bytes of `from`: no more than its [`turn`](Self::turn) asked for.
    ///
    /// # Errors
    /// What a peer got wrong; [`SaslFault::side`] says which.
    pub fn handle(&mut self, from: Side, bytes: &[u8]) -> Result<(), SaslFault> {
        if bytes.is_empty() {
            return Ok(());
        }
        if from != self.part.side() || bytes.len() > self.lacking {
            return Err(SaslFault::OutOfTurn { expected: self.part });
        }
        self.lacking -= bytes.len();
        if !matches!(self.part, Part::ClientData | Part::ServerData) {
            self.kept.extend_from_slice(bytes);
        }
        if self.lacking > 0 {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.kept);
        self.came(&kept)
    }

    /// A whole part has come.
    fn came(&mut self, kept: &[u8]) -> Result<(), SaslFault> {
        let word: [u8; WORD_LEN] = kept.first_chunk().copied().unwrap_or_default();
        let number = u32::from_le_bytes(word);
        match self.part {
            Part::ListLength => self.length(number, MAX_LIST, Part::List, Part::NameLength)?,
            Part::List => {
                self.mechanisms = Mechanisms::parse(kept);
                self.expect(Part::NameLength, WORD_LEN);
            }
            Part::NameLength if number == 0 => return Err(SaslFault::NoName),
            Part::NameLength => self.length(number, MAX_NAME, Part::Name, Part::ClientLength)?,
            Part::Name => {
                if !self.mechanisms.offers(kept) {
                    return Err(SaslFault::NotOffered);
                }
                self.chosen = String::from_utf8_lossy(kept).into_owned();
                self.expect(Part::ClientLength, WORD_LEN);
            }
            Part::ClientLength => {
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    return Err(SaslFault::TooManySteps);
                }
                self.length(number, MAX_DATA, Part::ClientData, Part::ServerLength)?;
            }
            Part::ClientData => self.expect(Part::ServerLength, WORD_LEN),
            Part::ServerLength => self.length(number, MAX_DATA, Part::ServerData, Part::Complete)?,
            Part::ServerData => self.expect(Part::Complete, 1),
            Part::Complete if kept == [0] => self.expect(Part::ClientLength, WORD_LEN),
            Part::Complete => self.expect(Part::Verdict, WORD_LEN),
            Part::Verdict | Part::LinkResult if word == MAGIC => return Err(SaslFault::SecondReply),
            Part::Verdict if number == 0 => self.expect(Part::LinkResult, WORD_LEN),
            Part::Verdict => self.expect(Part::TextLength, WORD_LEN),
            Part::TextLength => self.length(number, MAX_TEXT, Part::Text, Part::Nothing)?,
            Part::Text => {
                let text = String::from_utf8_lossy(data(kept).unwrap_or_default());
                self.text = text.chars().filter(|sign| !sign.is_control()).collect();
                self.over(Outcome::Rejected);
            }
            Part::LinkResult => self.over(match LinkError::from_code(number) {
                None => Outcome::Linked,
                Some(error) => Outcome::Refused(error),
            }),
            Part::Nothing => {}
        }
        Ok(())
    }

    fn length(&mut self, got: u32, limit: u32, part: Part, empty: Part) -> Result<(), SaslFault> {
        if got > limit {
            return Err(SaslFault::TooLong { part, limit, got });
        }
        if got > 0 {
            self.expect(part, got as usize);
        } else if empty == Part::Nothing {
            self.over(Outcome::Rejected);
        } else {
            self.expect(empty, if empty == Part::Complete { 1 } else { WORD_LEN });
        }
        Ok(())
    }

    fn expect(&mut self, part: Part, bytes: usize) {
        self.part = part;
        self.lacking = bytes;
    }

    fn over(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.expect(Part::Nothing, 0);
    }
}
