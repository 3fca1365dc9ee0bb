//! The server's half of the link stage.

use std::time::Instant;

use super::{Deadlines, HandshakeError, Linked, Shared, Step, header_form, layout};
use crate::link::{
    CommonCaps, HEADER_LEN, LinkError, LinkFault, LinkHeader, LinkMess, LinkReply, LinkVersion,
    MECHANISM_SASL, MECHANISM_TICKET, TICKET_LEN, WORD_LEN, Welcome, put_u32,
};

/// What the server's machine waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerNeeds<'a> {
    /// At most so many bytes from the client.
    Bytes(usize),
    /// [`ServerHandshake::welcome`], [`ServerHandshake::refuse`] or [`ServerHandshake::drop_silently`].
    Decision(&'a LinkMess),
    /// The client chose SASL and the shell asked to hear of it: [`ServerHandshake::refuse_mechanism`]; or the shell runs the
    /// exchange up to its verdict itself, and answers by [`ServerHandshake::permit`] or [`ServerHandshake::refuse`] as after a
    /// ticket; or it takes the connection out of this machine's hands.
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
    Sasl { asked: Asked, ours: CommonCaps },
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
            | ServerState::Sasl { asked, .. }
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

    /// Answers a [`ServerNeeds::Decision`] by a link reply with this code, or a [`ServerNeeds::Verdict`] or an accepted SASL
    /// exchange by a link result.
    pub fn refuse(&mut self, error: LinkError) -> Result<(), HandshakeError> {
        let at = self.at();
        match self.take() {
            ServerState::Decision { asked } => {
                LinkReply::Refused(error).write(asked.version, &mut self.shared.outbox);
            }
            ServerState::Verdict { .. } | ServerState::Sasl { .. } => {
                put_u32(&mut self.shared.outbox, error.code());
            }
            ServerState::Header
            | ServerState::Mess { .. }
            | ServerState::Mechanism { .. }
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
        let ServerState::Sasl { asked, .. } = self.take() else { return self.out_of_step(at) };
        let error = self.bad_mechanism(&asked, MECHANISM_SASL);
        self.state = ServerState::Failed(error);
        Ok(())
    }

    /// Answers a [`ServerNeeds::Verdict`], or an accepted SASL exchange: the session is there.
    pub fn permit(&mut self) -> Result<(), HandshakeError> {
        let at = self.at();
        let (ServerState::Verdict { asked, ours, .. } | ServerState::Sasl { asked, ours }) = self.take()
        else {
            return self.out_of_step(at);
        };
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
                    Some(MECHANISM_TICKET) if !is_sasl_only(ours) => ServerState::Ticket { asked, ours },
                    Some(MECHANISM_SASL) if self.on_sasl == OnSasl::Ask => ServerState::Sasl { asked, ours },
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

/// Whoever offers neither is asked for a ticket, as of old.
fn is_sasl_only(ours: CommonCaps) -> bool {
    ours.contains(CommonCaps::AUTH_SASL) && !ours.contains(CommonCaps::AUTH_SPICE)
}
