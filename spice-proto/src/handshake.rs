//! The link stage as a machine without I/O, for both roles (wire-reference 1).
//!
//! ```text
//! client                                   server
//!   link header, link message      ->        Decision: welcome, or refuse, or close without a word
//!                                  <-        link reply: key and capabilities
//!   mechanism (both AUTH_SELECTION) ->       1, or refused
//!   sealed ticket                  ->        Verdict: permit, or refuse
//!   (or 2, and a SASL exchange: see [`crate::sasl`])
//!                                  <-        link result
//! ```
//!
//! Both machines are driven alike: write out `poll_transmit` until empty, look at `needs`, and do what it says: read
//! that many bytes at most and hand them to `handle_bytes`, or answer the question. Because no machine ever wants more
//! bytes than the step in hand has, nothing is read past the link stage, and what a stranger can make us hold is
//! bounded by one link message. An error is final. So is a refusal; what it left in `poll_transmit` should still be sent.
//!
//! Neither machine holds a key or a password: the server's shell decides over the ticket, the client's seals it.

mod client;
#[cfg(test)]
mod sasl_tests;
mod server;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use client::{ClientHandshake, ClientLink, ClientNeeds};
pub use server::{OnSasl, ServerHandshake, ServerNeeds};

use crate::frame::HeaderForm;
use crate::link::{ChannelType, CommonCaps, LinkError, LinkFault, LinkVersion};
use crate::sasl::SaslFault;
use crate::tunnel::Layout;

/// What a finished link stage agreed on; the channel's messages follow on the same stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Channel type asked for.
    pub channel_type: u8,
    /// Instance of the channel.
    pub channel_id: u8,
    /// Session id that the client gave: 0 for a new session.
    pub session_id: u32,
    /// Form of the data header, the same both ways.
    pub header: HeaderForm,
    /// Layout of the tunnel's messages: A only with the 2010 link version.
    pub layout: Layout,
    /// All common capabilities of the peer.
    pub peer_common: CommonCaps,
    /// Common capabilities that both sides have.
    pub common: CommonCaps,
    /// All channel capability words of the peer.
    pub peer_channel_caps: Vec<u32>,
    /// Bytes that were read past the link stage and belong to the channel. Empty when driven by [`crate::io`].
    pub leftover: Vec<u8>,
}

impl Linked {
    /// A tunnel channel whose link stage was somebody else's work: a Spice library that hands its stream over behind the
    /// link result. For either role.
    ///
    /// The arrays are capability words as they went over the wire: the common ones we advertised, and both that the
    /// peer did. A peer whose channel capabilities nobody kept is one with `&[]`: it gets the historical protocol.
    pub fn tunnel(our_common: &[u32], peer_common: &[u32], peer_channel: &[u32]) -> Self {
        let peer_common = CommonCaps::from_words(peer_common);
        let common = CommonCaps::from_words(our_common) & peer_common;
        Self {
            channel_type: ChannelType::TUNNEL.0,
            channel_id: 0,
            session_id: 0,
            header: header_form(LinkVersion::V2, common),
            layout: layout(LinkVersion::V2),
            peer_common,
            common,
            peer_channel_caps: peer_channel.to_vec(),
            leftover: Vec::new(),
        }
    }
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For any one step.
    pub step: Duration,
    /// For the whole link stage, our own decisions included.
    pub total: Duration,
}

impl Default for Deadlines {
    /// 10 s a step, 30 s in all. libspice-server has none, and so holds a silent connection for ever.
    fn default() -> Self {
        Self { step: Duration::from_secs(10), total: Duration::from_secs(30) }
    }
}

/// The steps that something can go wrong in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Waiting for the client's link header.
    LinkHeader,
    /// Waiting for the client's link message.
    LinkMess,
    /// The server's shell decides over the link message.
    Decision,
    /// Waiting for the client's choice of authentication.
    Mechanism,
    /// Waiting for the client's ticket; in the client, for the shell to seal it.
    Ticket,
    /// The server's shell decides over the ticket.
    Verdict,
    /// Waiting for the server's link header.
    ReplyHeader,
    /// Waiting for the server's link reply.
    LinkReply,
    /// Waiting for the server's part of a SASL exchange.
    Sasl,
    /// The client's shell thinks of its part of a SASL exchange.
    SaslAnswer,
    /// Waiting for the server's link result.
    LinkResult,
    /// Linked, or given up.
    Over,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LinkHeader => "the client's link header",
            Self::LinkMess => "the client's link message",
            Self::Decision => "the decision over the link message",
            Self::Mechanism => "the client's authentication mechanism",
            Self::Ticket => "the ticket",
            Self::Verdict => "the verdict over the ticket",
            Self::ReplyHeader => "the server's link header",
            Self::LinkReply => "the server's link reply",
            Self::Sasl => "the server's SASL data",
            Self::SaslAnswer => "our answer to the server's SASL data",
            Self::LinkResult => "the server's link result",
            Self::Over => "nothing more",
        })
    }
}

/// Why there is no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The client sent something that is no link message.
    #[error("the client's link stage is wrong: {0}")]
    BadClient(LinkFault),
    /// The server sent something that is no link reply.
    #[error("the server's link stage is wrong: {0}")]
    BadServer(LinkFault),
    /// The server answered in another version than we spoke.
    #[error("expected the server to answer in link version {expected:?}, got {got:?}")]
    OtherVersion {
        /// What we sent.
        expected: LinkVersion,
        /// What came.
        got: LinkVersion,
    },
    /// The server refused, in its reply or in its result.
    #[error("the server refused the link: {0}")]
    Refused(LinkError),
    /// We, the server, refused.
    #[error("we refused the link: {0}")]
    Denied(LinkError),
    /// We, the server, closed without a word.
    #[error("we closed the link without an answer")]
    Dropped,
    /// The client chose something else than the ticket.
    #[error("expected the client to choose authentication mechanism 1 (ticket), got {0}")]
    Mechanism(u32),
    /// The server wants SASL, which we did not offer.
    #[error(
        "the server asks for SASL authentication, and we offered only a ticket; give a username, and link through TLS"
    )]
    SaslRequired,
    /// A SASL exchange broke its format.
    #[error("the SASL exchange is wrong: {0}")]
    BadSasl(SaslFault),
    /// The server does not accept what SASL told it.
    #[error("the server does not accept the username or the password")]
    SaslRejected,
    /// The server lets us choose, from nothing.
    #[error("expected the server to offer the ticket, got common capabilities {0:#x} without it")]
    NoMechanism(u32),
    /// The server sent no key although it wants a ticket.
    #[error("expected a public key in the server's link reply, got zeros")]
    NoKey,
    /// Where the result should be there is another link reply.
    #[error(
        "expected a link result, got a second link reply: the server does not take tickets (it may want SASL)"
    )]
    SecondReply,
    /// The peer closed in between.
    #[error("the peer closed the connection while we expected {0}")]
    Closed(Step),
    /// The peer took too long.
    #[error("{0} did not come in time")]
    Late(Step),
    /// The caller answered a question that was not asked.
    #[error("called out of step: the link stage was at {0}")]
    OutOfStep(Step),
}

/// Outgoing bytes and clock of one machine.
#[derive(Debug)]
struct Shared {
    deadlines: Deadlines,
    started: Instant,
    step_started: Instant,
    /// Bytes of the step in hand.
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
}

impl Shared {
    fn new(now: Instant, deadlines: Deadlines) -> Self {
        Self { deadlines, started: now, step_started: now, inbox: Vec::new(), outbox: Vec::new(), sent: 0 }
    }

    /// Takes what the step still lacks of its `wanted` bytes; true once it has them.
    fn fill(&mut self, wanted: usize, bytes: &mut &[u8]) -> bool {
        let lacking = wanted.saturating_sub(self.inbox.len());
        let (taken, rest) = bytes.split_at_checked(lacking).unwrap_or((bytes, &[]));
        self.inbox.extend_from_slice(taken);
        *bytes = rest;
        self.inbox.len() >= wanted
    }

    fn lacking(&self, wanted: usize) -> usize {
        wanted.saturating_sub(self.inbox.len())
    }

    fn next_step(&mut self, now: Instant) {
        self.inbox.clear();
        self.step_started = now;
    }

    /// A question to our own shell is bounded by the whole, not by the step: the peer is not the one who dawdles.
    fn timeout(&self, step: Step) -> Option<(Instant, Step)> {
        let whole = self.started + self.deadlines.total;
        match step {
            Step::Over => None,
            Step::Decision | Step::Verdict | Step::SaslAnswer => Some((whole, step)),
            Step::LinkHeader
            | Step::LinkMess
            | Step::Mechanism
            | Step::Ticket
            | Step::ReplyHeader
            | Step::LinkReply
            | Step::Sasl
            | Step::LinkResult => Some((whole.min(self.step_started + self.deadlines.step), step)),
        }
    }

    fn unsent(&self) -> &[u8] {
        self.outbox.get(self.sent..).unwrap_or(&[])
    }

    fn sent(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.outbox.len());
    }
}

fn header_form(version: LinkVersion, both: CommonCaps) -> HeaderForm {
    match version {
        LinkVersion::V2 if both.contains(CommonCaps::MINI_HEADER) => HeaderForm::Mini,
        LinkVersion::V2 | LinkVersion::V2010 => HeaderForm::Full,
    }
}

fn layout(version: LinkVersion) -> Layout {
    match version {
        LinkVersion::V2 => Layout::B,
        LinkVersion::V2010 => Layout::A,
    }
}
