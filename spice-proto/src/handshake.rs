//! The link stage as a machine without I/O, for both roles (wire-reference 1).
//!
//! ```text
//! client                                   server
//!   link header, link message      ->        Decision: welcome, or refuse, or close without a word
//!                                  <-        link reply: key and capabilities
//!   mechanism (both AUTH_SELECTION) ->       1, or refused
//!   sealed ticket                  ->        Verdict: permit, or refuse
//!                                  <-        link result
//! ```
//!
//! Both machines are driven alike: write out `poll_transmit` until empty, look at `needs`, and do what it says: read
//! that many bytes at most and hand them to `handle_bytes`, or answer the question. Because no machine ever wants more
//! bytes than the step in hand has, nothing is read past the link stage, and what a stranger can make us hold is
//! bounded by one link message. An error is final. So is a refusal; what it left in `poll_transmit` should still be sent.
//!
//! Neither machine holds a key or a password: the server's shell decides over the ticket, the client's seals it.

use std::time::{Duration, Instant};

use crate::frame::HeaderForm;
use crate::link::{
    CommonCaps, HEADER_LEN, LinkError, LinkFault, LinkHeader, LinkMess, LinkReply, LinkVersion, MAGIC,
    MECHANISM_SASL, MECHANISM_TICKET, PUBLIC_KEY_LEN, TICKET_LEN, WORD_LEN, Welcome, put_u32,
};
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
    /// The server wants SASL, which we do not speak.
    #[error(
        "the server asks for SASL authentication, and we have only tickets; turn SASL off in it, or link through TLS with a ticket"
    )]
    SaslRequired,
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
            Step::Decision | Step::Verdict => Some((whole, step)),
            Step::LinkHeader
            | Step::LinkMess
            | Step::Mechanism
            | Step::Ticket
            | Step::ReplyHeader
            | Step::LinkReply
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

/// What the server's machine waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerNeeds<'a> {
    /// At most so many bytes from the client.
    Bytes(usize),
    /// [`ServerHandshake::welcome`], [`ServerHandshake::refuse`] or [`ServerHandshake::drop_silently`].
    Decision(&'a LinkMess),
    /// The client chose SASL and the shell asked to hear of it: [`ServerHandshake::refuse_mechanism`], or take the
    /// connection out of this machine's hands.
    Sasl,
    /// [`ServerHandshake::permit`] or [`ServerHandshake::refuse`], after opening this sealed ticket.
    Verdict(&'a [u8; TICKET_LEN]),
    /// Nothing: take the outcome by [`ServerHandshake::finish`], when everything is sent.
    Done,
}

/// What to do about a client that chooses SASL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSasl {
    /// Answer as to any unknown mechanism: a second link reply with code 3.
    Refuse,
    /// Stop with [`ServerNeeds::Sasl`], for a proxy whose upstream may speak it.
    Ask,
}

#[derive(Debug)]
enum ServerState {
    Header,
    Mess { header: LinkHeader },
    Decision { asked: Asked },
    Mechanism { asked: Asked, ours: CommonCaps },
    Sasl { asked: Asked },
    Ticket { asked: Asked, ours: CommonCaps },
    Verdict { asked: Asked, ours: CommonCaps, ticket: Box<[u8; TICKET_LEN]> },
    Linked(Linked),
    Failed(HandshakeError),
}

#[derive(Debug)]
struct Asked {
    version: LinkVersion,
    mess: LinkMess,
}

/// The link stage as the server sees it: strict, every limit that of libspice-server 0.15.1 (wire-reference 1.4).
///
/// Getters: [`needs`](Self::needs), [`raw`](Self::raw). Commands: `welcome`, `refuse`, `drop_silently`, `permit`,
/// `refuse_mechanism`. Inputs: `handle_bytes`, `handle_eof`, `handle_timeout`. Outputs, in this order: `poll_transmit`,
/// `needs`, `poll_timeout`.
#[derive(Debug)]
pub struct ServerHandshake {
    shared: Shared,
    state: ServerState,
    on_sasl: OnSasl,
    raw: Vec<u8>,
}

impl ServerHandshake {
    /// For a connection accepted at `now`.
    pub fn new(now: Instant, deadlines: Deadlines, on_sasl: OnSasl) -> Self {
        Self { shared: Shared::new(now, deadlines), state: ServerState::Header, on_sasl, raw: Vec::new() }
    }

    /// What to do next.
    pub fn needs(&self) -> ServerNeeds<'_> {
        match &self.state {
            ServerState::Header => ServerNeeds::Bytes(self.shared.lacking(HEADER_LEN)),
            ServerState::Mess { header } => ServerNeeds::Bytes(self.shared.lacking(header.size as usize)),
            ServerState::Decision { asked } => ServerNeeds::Decision(&asked.mess),
            ServerState::Mechanism { .. } => ServerNeeds::Bytes(self.shared.lacking(WORD_LEN)),
            ServerState::Sasl { .. } => ServerNeeds::Sasl,
            ServerState::Ticket { .. } => ServerNeeds::Bytes(self.shared.lacking(TICKET_LEN)),
            ServerState::Verdict { ticket, .. } => ServerNeeds::Verdict(ticket),
            ServerState::Linked(_) | ServerState::Failed(_) => ServerNeeds::Done,
        }
    }

    /// All bytes of the link stage that were consumed so far, as they came: what a proxy passes on.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The version that the client speaks, from the link message on.
    pub fn version(&self) -> Option<LinkVersion> {
        match &self.state {
            ServerState::Header | ServerState::Linked(_) | ServerState::Failed(_) => None,
            ServerState::Mess { header } => Some(header.version),
            ServerState::Decision { asked }
            | ServerState::Mechanism { asked, .. }
            | ServerState::Sasl { asked }
            | ServerState::Ticket { asked, .. }
            | ServerState::Verdict { asked, .. } => Some(asked.version),
        }
    }

    /// Bytes from the client. Returns how many were consumed: fewer than given when a question comes up or the link
    /// stage ends; hand the rest in again after the answer, or keep it for the channel.
    ///
    /// # Errors
    /// What the client got wrong. An answer to it may be waiting in `poll_transmit`; send it and close.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, HandshakeError> {
        let mut rest = bytes;
        loop {
            let before = rest;
            let moved = self.step(now, &mut rest);
            let taken = before.len() - rest.len();
            self.raw.extend_from_slice(before.get(..taken).unwrap_or(&[]));
            match moved {
                Ok(true) => {}
                Ok(false) => return Ok(bytes.len() - rest.len()),
                Err(error) => {
                    self.state = ServerState::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// The client will send no more.
    pub fn handle_eof(&mut self) -> HandshakeError {
        let error = HandshakeError::Closed(self.at());
        self.state = ServerState::Failed(error);
        error
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and what is late then.
    pub fn poll_timeout(&self) -> Option<(Instant, Step)> {
        self.shared.timeout(self.at())
    }

    /// Gives up if a deadline has passed. Nothing is answered, as to one who does not talk.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError> {
        match self.poll_timeout() {
            Some((at, step)) if at <= now => {
                let error = HandshakeError::Late(step);
                self.state = ServerState::Failed(error);
                Err(error)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Bytes to write.
    pub fn poll_transmit(&self) -> &[u8] {
        self.shared.unsent()
    }

    /// `n` of them were written.
    pub fn sent(&mut self, n: usize) {
        self.shared.sent(n);
    }

    /// Answers a [`ServerNeeds::Decision`]: the channel is there. A 2010 client is told no capabilities.
    pub fn welcome(&mut self, now: Instant, mut welcome: Welcome) -> Result<(), HandshakeError> {
        let at = self.at();
        let ServerState::Decision { asked } = self.take() else { return self.out_of_step(at) };
        let (ours, selects) = match asked.version {
            LinkVersion::V2 => (welcome.common(), asked.mess.common().contains(CommonCaps::AUTH_SELECTION)),
            LinkVersion::V2010 => {
                welcome.common_caps.clear();
                welcome.channel_caps.clear();
                (CommonCaps::empty(), false)
            }
        };
        LinkReply::Welcome(welcome).write(asked.version, &mut self.shared.outbox);
        // The server goes by the client's bit alone (wire-reference 1.5).
        self.state = if selects {
            ServerState::Mechanism { asked, ours }
        } else {
            ServerState::Ticket { asked, ours }
        };
        self.shared.next_step(now);
        Ok(())
    }

    /// Answers a [`ServerNeeds::Decision`] by a link reply with this code, or a [`ServerNeeds::Verdict`] by a link result.
    pub fn refuse(&mut self, error: LinkError) -> Result<(), HandshakeError> {
        let at = self.at();
        match self.take() {
            ServerState::Decision { asked } => {
                LinkReply::Refused(error).write(asked.version, &mut self.shared.outbox);
            }
            ServerState::Verdict { .. } => put_u32(&mut self.shared.outbox, error.code()),
            ServerState::Header
            | ServerState::Mess { .. }
            | ServerState::Mechanism { .. }
            | ServerState::Sasl { .. }
            | ServerState::Ticket { .. }
            | ServerState::Linked(_)
            | ServerState::Failed(_) => return self.out_of_step(at),
        }
        self.state = ServerState::Failed(HandshakeError::Denied(error));
        Ok(())
    }

    /// Answers a [`ServerNeeds::Decision`] like libspice-server a link to a channel that it has not: not at all.
    pub fn drop_silently(&mut self) -> Result<(), HandshakeError> {
        let at = self.at();
        let ServerState::Decision { .. } = self.take() else { return self.out_of_step(at) };
        self.state = ServerState::Failed(HandshakeError::Dropped);
        Ok(())
    }

    /// Answers a [`ServerNeeds::Sasl`] as any unknown mechanism.
    pub fn refuse_mechanism(&mut self) -> Result<(), HandshakeError> {
        let at = self.at();
        let ServerState::Sasl { asked } = self.take() else { return self.out_of_step(at) };
        let error = self.bad_mechanism(&asked, MECHANISM_SASL);
        self.state = ServerState::Failed(error);
        Ok(())
    }

    /// Answers a [`ServerNeeds::Verdict`]: the ticket is right and the session is there.
    pub fn permit(&mut self) -> Result<(), HandshakeError> {
        let at = self.at();
        let ServerState::Verdict { asked, ours, .. } = self.take() else { return self.out_of_step(at) };
        put_u32(&mut self.shared.outbox, 0);
        let peer_common = asked.mess.common();
        self.state = ServerState::Linked(Linked {
            channel_type: asked.mess.channel_type,
            channel_id: asked.mess.channel_id,
            session_id: asked.mess.session_id,
            header: header_form(asked.version, peer_common & ours),
            layout: layout(asked.version),
            peer_common,
            common: peer_common & ours,
            peer_channel_caps: asked.mess.channel_caps,
            leftover: Vec::new(),
        });
        Ok(())
    }

    /// The outcome, once `needs` says [`ServerNeeds::Done`].
    pub fn finish(self) -> Result<Linked, HandshakeError> {
        let step = self.at();
        match self.state {
            ServerState::Linked(linked) => Ok(linked),
            ServerState::Failed(error) => Err(error),
            ServerState::Header
            | ServerState::Mess { .. }
            | ServerState::Decision { .. }
            | ServerState::Mechanism { .. }
            | ServerState::Sasl { .. }
            | ServerState::Ticket { .. }
            | ServerState::Verdict { .. } => Err(HandshakeError::OutOfStep(step)),
        }
    }

    fn at(&self) -> Step {
        match &self.state {
            ServerState::Header => Step::LinkHeader,
            ServerState::Mess { .. } => Step::LinkMess,
            ServerState::Decision { .. } | ServerState::Sasl { .. } => Step::Decision,
            ServerState::Mechanism { .. } => Step::Mechanism,
            ServerState::Ticket { .. } => Step::Ticket,
            ServerState::Verdict { .. } => Step::Verdict,
            ServerState::Linked(_) | ServerState::Failed(_) => Step::Over,
        }
    }

    /// One step, if its bytes are all there; false when there is nothing to do but wait.
    fn step(&mut self, now: Instant, rest: &mut &[u8]) -> Result<bool, HandshakeError> {
        let ServerNeeds::Bytes(lacking) = self.needs() else { return Ok(false) };
        let wanted = self.shared.inbox.len() + lacking;
        if !self.shared.fill(wanted, rest) {
            return Ok(false);
        }
        let bytes = std::mem::take(&mut self.shared.inbox);
        self.shared.next_step(now);
        self.state = match self.take() {
            ServerState::Header => {
                let raw = bytes.first_chunk().ok_or(HandshakeError::OutOfStep(Step::LinkHeader))?;
                match LinkHeader::parse_from_client(raw) {
                    Ok(header) => ServerState::Mess { header },
                    Err(fault) => return Err(self.bad_client(LinkVersion::V2, fault)),
                }
            }
            ServerState::Mess { header } => match LinkMess::parse(&bytes) {
                Ok(mess) => ServerState::Decision { asked: Asked { version: header.version, mess } },
                Err(fault) => return Err(self.bad_client(header.version, fault)),
            },
            ServerState::Mechanism { asked, ours } => {
                match bytes.first_chunk().copied().map(u32::from_le_bytes) {
                    Some(MECHANISM_TICKET) => ServerState::Ticket { asked, ours },
                    Some(MECHANISM_SASL) if self.on_sasl == OnSasl::Ask => ServerState::Sasl { asked },
                    other => return Err(self.bad_mechanism(&asked, other.unwrap_or_default())),
                }
            }
            ServerState::Ticket { asked, ours } => {
                let ticket = Box::new(*bytes.first_chunk().ok_or(HandshakeError::OutOfStep(Step::Ticket))?);
                ServerState::Verdict { asked, ours, ticket }
            }
            other @ (ServerState::Decision { .. }
            | ServerState::Sasl { .. }
            | ServerState::Verdict { .. }
            | ServerState::Linked(_)
            | ServerState::Failed(_)) => other,
        };
        Ok(true)
    }

    fn bad_client(&mut self, version: LinkVersion, fault: LinkFault) -> HandshakeError {
        if let Some(code) = fault.code() {
            LinkReply::Refused(code).write(version, &mut self.shared.outbox);
        }
        HandshakeError::BadClient(fault)
    }

    fn bad_mechanism(&mut self, asked: &Asked, mechanism: u32) -> HandshakeError {
        LinkReply::Refused(LinkError::InvalidData).write(asked.version, &mut self.shared.outbox);
        HandshakeError::Mechanism(mechanism)
    }

    /// INVARIANT: whoever takes puts a state back before it returns, or leaves the machine failed.
    fn take(&mut self) -> ServerState {
        std::mem::replace(&mut self.state, ServerState::Failed(HandshakeError::OutOfStep(Step::Over)))
    }

    fn out_of_step(&mut self, at: Step) -> Result<(), HandshakeError> {
        let error = HandshakeError::OutOfStep(at);
        self.state = ServerState::Failed(error);
        Err(error)
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLink {
    /// Version to speak. With the 2010 one no capabilities are sent.
    pub version: LinkVersion,
    /// Channel type; see [`crate::link::ChannelType`].
    pub channel_type: u8,
    /// Instance of the channel.
    pub channel_id: u8,
    /// 0 for a new session (and for our companion), else the id from MAIN_INIT.
    pub session_id: u32,
    /// Common capabilities, usually [`CommonCaps::OURS`].
    pub common_caps: CommonCaps,
    /// Channel capability words.
    pub channel_caps: Vec<u32>,
}

/// What the client's machine waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientNeeds<'a> {
    /// At most so many bytes from the server.
    Bytes(usize),
    /// [`ClientHandshake::ticket`], sealed for this key.
    Ticket(&'a [u8; PUBLIC_KEY_LEN]),
    /// Nothing: take the outcome by [`ClientHandshake::finish`].
    Done,
}

#[derive(Debug)]
enum ClientState {
    Header,
    Reply { header: LinkHeader },
    Ticket { welcome: Welcome },
    Result { welcome: Welcome },
    Linked(Linked),
    Failed(HandshakeError),
}

/// The link stage as the client sees it: as tolerant as spice-gtk, but with a cap on the reply's size (wire-reference 1.4).
///
/// Getters: [`needs`](Self::needs). Commands: `ticket`. Inputs: `handle_bytes`, `handle_eof`, `handle_timeout`. Outputs,
/// in this order: `poll_transmit`, `needs`, `poll_timeout`.
#[derive(Debug)]
pub struct ClientHandshake {
    shared: Shared,
    link: ClientLink,
    state: ClientState,
}

impl ClientHandshake {
    /// For a connection made at `now`; the link message is ready to be sent at once.
    pub fn new(now: Instant, deadlines: Deadlines, mut link: ClientLink) -> Self {
        let mut shared = Shared::new(now, deadlines);
        let common_caps = match link.version {
            LinkVersion::V2 => vec![link.common_caps.bits()],
            LinkVersion::V2010 => {
                link.common_caps = CommonCaps::empty();
                link.channel_caps.clear();
                Vec::new()
            }
        };
        let mess = LinkMess {
            session_id: link.session_id,
            channel_type: link.channel_type,
            channel_id: link.channel_id,
            common_caps,
            channel_caps: link.channel_caps.clone(),
        };
        mess.write(link.version, &mut shared.outbox);
        Self { shared, link, state: ClientState::Header }
    }

    /// What to do next.
    pub fn needs(&self) -> ClientNeeds<'_> {
        match &self.state {
            ClientState::Header => ClientNeeds::Bytes(self.shared.lacking(HEADER_LEN)),
            ClientState::Reply { header } => ClientNeeds::Bytes(self.shared.lacking(header.size as usize)),
            ClientState::Ticket { welcome } => ClientNeeds::Ticket(&welcome.public_key),
            ClientState::Result { .. } => ClientNeeds::Bytes(self.shared.lacking(WORD_LEN)),
            ClientState::Linked(_) | ClientState::Failed(_) => ClientNeeds::Done,
        }
    }

    /// The server's reply, while its ticket is due.
    pub fn reply(&self) -> Option<&Welcome> {
        match &self.state {
            ClientState::Ticket { welcome } | ClientState::Result { welcome } => Some(welcome),
            ClientState::Header
            | ClientState::Reply { .. }
            | ClientState::Linked(_)
            | ClientState::Failed(_) => None,
        }
    }

    /// Bytes from the server; returns how many were consumed, as [`ServerHandshake::handle_bytes`] does.
    ///
    /// # Errors
    /// That the server refused, or what it got wrong.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, HandshakeError> {
        let mut rest = bytes;
        loop {
            match self.step(now, &mut rest) {
                Ok(true) => {}
                Ok(false) => return Ok(bytes.len() - rest.len()),
                Err(error) => {
                    self.state = ClientState::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// The server will send no more. Instead of a link reply that is how libspice-server says "no such channel".
    pub fn handle_eof(&mut self) -> HandshakeError {
        let error = HandshakeError::Closed(self.at());
        self.state = ClientState::Failed(error);
        error
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and what is late then.
    pub fn poll_timeout(&self) -> Option<(Instant, Step)> {
        self.shared.timeout(self.at())
    }

    /// Gives up if a deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError> {
        match self.poll_timeout() {
            Some((at, step)) if at <= now => {
                let error = HandshakeError::Late(step);
                self.state = ClientState::Failed(error);
                Err(error)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Bytes to write.
    pub fn poll_transmit(&self) -> &[u8] {
        self.shared.unsent()
    }

    /// `n` of them were written.
    pub fn sent(&mut self, n: usize) {
        self.shared.sent(n);
    }

    /// Answers a [`ClientNeeds::Ticket`].
    pub fn ticket(&mut self, now: Instant, sealed: &[u8; TICKET_LEN]) -> Result<(), HandshakeError> {
        let error = HandshakeError::OutOfStep(self.at());
        let ClientState::Ticket { welcome } = std::mem::replace(&mut self.state, ClientState::Failed(error))
        else {
            return Err(error);
        };
        // Whoever lacks the bit neither reads nor writes the mechanism (wire-reference 1.5).
        let both = self.link.common_caps & welcome.common();
        if both.contains(CommonCaps::AUTH_SELECTION) {
            put_u32(&mut self.shared.outbox, MECHANISM_TICKET);
        }
        self.shared.outbox.extend_from_slice(sealed);
        self.shared.next_step(now);
        self.state = ClientState::Result { welcome };
        Ok(())
    }

    /// The outcome, once `needs` says [`ClientNeeds::Done`].
    pub fn finish(self) -> Result<Linked, HandshakeError> {
        let step = self.at();
        match self.state {
            ClientState::Linked(linked) => Ok(linked),
            ClientState::Failed(error) => Err(error),
            ClientState::Header
            | ClientState::Reply { .. }
            | ClientState::Ticket { .. }
            | ClientState::Result { .. } => Err(HandshakeError::OutOfStep(step)),
        }
    }

    fn at(&self) -> Step {
        match &self.state {
            ClientState::Header => Step::ReplyHeader,
            ClientState::Reply { .. } => Step::LinkReply,
            ClientState::Ticket { .. } => Step::Ticket,
            ClientState::Result { .. } => Step::LinkResult,
            ClientState::Linked(_) | ClientState::Failed(_) => Step::Over,
        }
    }

    fn step(&mut self, now: Instant, rest: &mut &[u8]) -> Result<bool, HandshakeError> {
        let ClientNeeds::Bytes(lacking) = self.needs() else { return Ok(false) };
        let wanted = self.shared.inbox.len() + lacking;
        if !self.shared.fill(wanted, rest) {
            return Ok(false);
        }
        let bytes = std::mem::take(&mut self.shared.inbox);
        self.shared.next_step(now);
        self.state = match std::mem::replace(&mut self.state, ClientState::Header) {
            ClientState::Header => {
                let raw = bytes.first_chunk().ok_or(HandshakeError::OutOfStep(Step::ReplyHeader))?;
                let header = LinkHeader::parse_from_server(raw).map_err(HandshakeError::BadServer)?;
                ClientState::Reply { header }
            }
            ClientState::Reply { header } => {
                match LinkReply::parse(&bytes).map_err(HandshakeError::BadServer)? {
                    LinkReply::Refused(error) => return Err(HandshakeError::Refused(error)),
                    LinkReply::Welcome(welcome) => {
                        // Judged only now, because a server of another version refuses ours under its own header.
                        if header.version != self.link.version {
                            let (expected, got) = (self.link.version, header.version);
                            return Err(HandshakeError::OtherVersion { expected, got });
                        }
                        self.check_offer(&welcome)?;
                        ClientState::Ticket { welcome }
                    }
                }
            }
            ClientState::Result { welcome } => {
                let word = bytes.first_chunk().copied().unwrap_or_default();
                if word == MAGIC {
                    return Err(HandshakeError::SecondReply);
                }
                match LinkError::from_code(u32::from_le_bytes(word)) {
                    Some(error) => return Err(HandshakeError::Refused(error)),
                    None => ClientState::Linked(self.linked(welcome)),
                }
            }
            other @ (ClientState::Ticket { .. } | ClientState::Linked(_) | ClientState::Failed(_)) => other,
        };
        Ok(true)
    }

    /// Whether the server takes a ticket, in spice-gtk's order of preference.
    fn check_offer(&self, welcome: &Welcome) -> Result<(), HandshakeError> {
        let common = welcome.common();
        let selects = (common & self.link.common_caps).contains(CommonCaps::AUTH_SELECTION);
        if selects && !common.contains(CommonCaps::AUTH_SPICE) {
            return Err(if common.contains(CommonCaps::AUTH_SASL) {
                HandshakeError::SaslRequired
            } else {
                HandshakeError::NoMechanism(common.bits())
            });
        }
        if welcome.has_no_key() {
            return Err(HandshakeError::NoKey);
        }
        Ok(())
    }

    fn linked(&self, welcome: Welcome) -> Linked {
        let peer_common = welcome.common();
        let common = peer_common & self.link.common_caps;
        Linked {
            channel_type: self.link.channel_type,
            channel_id: self.link.channel_id,
            session_id: self.link.session_id,
            header: header_form(self.link.version, common),
            layout: layout(self.link.version),
            peer_common,
            common,
            peer_channel_caps: welcome.channel_caps,
            leftover: Vec::new(),
        }
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
