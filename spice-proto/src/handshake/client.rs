//! The client's half of the link stage.

use std::time::Instant;

use super::{Deadlines, HandshakeError, Linked, Shared, Step, header_form, layout};
use crate::link::{
    CommonCaps, HEADER_LEN, LinkError, LinkHeader, LinkMess, LinkReply, LinkVersion, MAGIC, MECHANISM_TICKET,
    PUBLIC_KEY_LEN, TICKET_LEN, WORD_LEN, Welcome, put_u32,
};

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

    /// Bytes from the server; returns how many were consumed, as [`super::ServerHandshake::handle_bytes`] does.
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
