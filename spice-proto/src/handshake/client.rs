//! The client's half of the link stage.

use std::time::Instant;

use super::{Deadlines, HandshakeError, Linked, Shared, Step, header_form, layout};
use crate::link::{
    CommonCaps, HEADER_LEN, LinkError, LinkHeader, LinkMess, LinkReply, LinkVersion, MAGIC, MECHANISM_SASL,
    MECHANISM_TICKET, PUBLIC_KEY_LEN, TICKET_LEN, WORD_LEN, Welcome, put_u32,
};
use crate::sasl::{self, Exchange, Mechanisms, Outcome, Part, Side, Turn};

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
    /// Common capabilities, usually [`CommonCaps::OURS`]. With [`CommonCaps::AUTH_SASL`] in it SASL is chosen where the server
    /// offers it; give that only to a server whose TLS certificate was right, for it will learn the password.
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
    /// [`ClientHandshake::sasl_start`], with one of these.
    SaslStart(&'a Mechanisms),
    /// The mechanism's answer to this: [`ClientHandshake::sasl_step`], or with `complete` [`ClientHandshake::sasl_agree`].
    SaslStep {
        /// What the server sent; `None` differs from empty.
        data: Option<&'a [u8]>,
        /// The server is done. Whether it proved what it had to is for the mechanism to say.
        complete: bool,
    },
    /// Nothing: take the outcome by [`ClientHandshake::finish`].
    Done,
}

#[derive(Debug)]
enum ClientState {
    Header,
    Reply { header: LinkHeader },
    Ticket { welcome: Welcome },
    Sasl { welcome: Welcome, sasl: Box<Sasl> },
    Result { welcome: Welcome },
    Linked(Linked),
    Failed(HandshakeError),
}

/// An exchange, with what the server said last.
#[derive(Debug)]
struct Sasl {
    exchange: Exchange,
    /// As on the wire, but for its length. INVARIANT: at most [`sasl::MAX_DATA`] bytes.
    said: Vec<u8>,
    /// The mechanism agrees to the server's being done.
    agreed: bool,
}

impl Sasl {
    fn needs(&self) -> ClientNeeds<'_> {
        let data = sasl::data(&self.said);
        match (self.exchange.part(), self.exchange.turn()) {
            (_, Turn::Over(_)) => ClientNeeds::Done,
            (Part::NameLength, Turn::Of(..)) => ClientNeeds::SaslStart(self.exchange.mechanisms()),
            (_, Turn::Of(Side::Client, _)) => ClientNeeds::SaslStep { data, complete: false },
            (Part::Verdict, Turn::Of(..)) if !self.agreed => ClientNeeds::SaslStep { data, complete: true },
            (_, Turn::Of(Side::Server, lacking)) => ClientNeeds::Bytes(lacking),
        }
    }

    /// Says what is due of us, and so has the turn go to the server.
    fn say(&mut self, mut bytes: &[u8]) -> Result<(), HandshakeError> {
        self.said.clear();
        while let (Turn::Of(_, lacking), false) = (self.exchange.turn(), bytes.is_empty()) {
            let (now, later) = bytes.split_at_checked(lacking).unwrap_or((bytes, &[]));
            self.exchange.handle(Side::Client, now).map_err(HandshakeError::BadSasl)?;
            bytes = later;
        }
        Ok(())
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        if self.exchange.part() == Part::ServerData {
            self.said.extend_from_slice(bytes);
        }
        self.exchange.handle(Side::Server, bytes).map_err(HandshakeError::BadSasl)
    }
}

/// The link stage as the client sees it: as tolerant as spice-gtk, but with a cap on the reply's size (wire-reference 1.4).
///
/// Getters: [`needs`](Self::needs). Commands: `ticket`, `sasl_start`, `sasl_step`, `sasl_agree`. Inputs: `handle_bytes`, `handle_eof`, `handle_timeout`. Outputs,
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
            ClientState::Sasl { sasl, .. } => sasl.needs(),
            ClientState::Result { .. } => ClientNeeds::Bytes(self.shared.lacking(WORD_LEN)),
            ClientState::Linked(_) | ClientState::Failed(_) => ClientNeeds::Done,
        }
    }

    /// The server's reply, from then on until the link is there.
    pub fn reply(&self) -> Option<&Welcome> {
        match &self.state {
            ClientState::Ticket { welcome }
            | ClientState::Sasl { welcome, .. }
            | ClientState::Result { welcome } => Some(welcome),
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

    /// The server will send no more. Instead of a link reply that is how libspice-server says "no such channel", and within
    /// SASL "wrong".
    pub fn handle_eof(&mut self) -> HandshakeError {
        let error = match &self.state {
            ClientState::Sasl { sasl, .. } if sasl.exchange.ends_in_rejection() => {
                HandshakeError::SaslRejected
            }
            ClientState::Header
            | ClientState::Reply { .. }
            | ClientState::Ticket { .. }
            | ClientState::Sasl { .. }
            | ClientState::Result { .. }
            | ClientState::Linked(_)
            | ClientState::Failed(_) => HandshakeError::Closed(self.at()),
        };
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

    /// Answers a [`ClientNeeds::SaslStart`] with the mechanism's name and its first data, if it begins with any.
    pub fn sasl_start(
        &mut self,
        now: Instant,
        mechanism: &str,
        data: Option<&[u8]>,
    ) -> Result<(), HandshakeError> {
        let due = matches!(self.needs(), ClientNeeds::SaslStart(_));
        let mut bytes = Vec::new();
        sasl::put_name(&mut bytes, mechanism);
        sasl::put_data(&mut bytes, data);
        self.sasl_say(now, due, &bytes)
    }

    /// Answers a [`ClientNeeds::SaslStep`] that is not complete.
    pub fn sasl_step(&mut self, now: Instant, data: Option<&[u8]>) -> Result<(), HandshakeError> {
        let due = matches!(self.needs(), ClientNeeds::SaslStep { complete: false, .. });
        let mut bytes = Vec::new();
        sasl::put_data(&mut bytes, data);
        self.sasl_say(now, due, &bytes)
    }

    /// Answers a [`ClientNeeds::SaslStep`] that is complete: the mechanism is content with what the server said.
    pub fn sasl_agree(&mut self, now: Instant) -> Result<(), HandshakeError> {
        let due = matches!(self.needs(), ClientNeeds::SaslStep { complete: true, .. });
        if let (true, ClientState::Sasl { sasl, .. }) = (due, &mut self.state) {
            sasl.agreed = true;
        }
        self.sasl_say(now, due, &[])
    }

    fn sasl_say(&mut self, now: Instant, due: bool, bytes: &[u8]) -> Result<(), HandshakeError> {
        let outcome = match &mut self.state {
            ClientState::Sasl { sasl, .. } if due => sasl.say(bytes),
            ClientState::Header
            | ClientState::Reply { .. }
            | ClientState::Ticket { .. }
            | ClientState::Sasl { .. }
            | ClientState::Result { .. }
            | ClientState::Linked(_)
            | ClientState::Failed(_) => Err(HandshakeError::OutOfStep(self.at())),
        };
        match outcome {
            Ok(()) => {
                self.shared.outbox.extend_from_slice(bytes);
                self.shared.next_step(now);
            }
            Err(error) => self.state = ClientState::Failed(error),
        }
        outcome
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
            | ClientState::Sasl { .. }
            | ClientState::Result { .. } => Err(HandshakeError::OutOfStep(step)),
        }
    }

    fn at(&self) -> Step {
        match &self.state {
            ClientState::Header => Step::ReplyHeader,
            ClientState::Reply { .. } => Step::LinkReply,
            ClientState::Ticket { .. } => Step::Ticket,
            ClientState::Sasl { .. } => match self.needs() {
                ClientNeeds::SaslStart(_) | ClientNeeds::SaslStep { .. } => Step::SaslAnswer,
                ClientNeeds::Bytes(_) | ClientNeeds::Ticket(_) | ClientNeeds::Done => Step::Sasl,
            },
            ClientState::Result { .. } => Step::LinkResult,
            ClientState::Linked(_) | ClientState::Failed(_) => Step::Over,
        }
    }

    fn step(&mut self, now: Instant, rest: &mut &[u8]) -> Result<bool, HandshakeError> {
        let ClientNeeds::Bytes(lacking) = self.needs() else { return Ok(false) };
        if let ClientState::Sasl { sasl, .. } = &mut self.state {
            let (heard, later) = rest.split_at_checked(lacking).unwrap_or((rest, &[]));
            *rest = later;
            if heard.is_empty() {
                return Ok(false);
            }
            let at = sasl.exchange.part();
            sasl.hear(heard)?;
            if sasl.exchange.part() != at {
                self.shared.next_step(now);
            }
            return self.sasl_outcome();
        }
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
                        self.offered(welcome)?
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
            other @ (ClientState::Ticket { .. }
            | ClientState::Sasl { .. }
            | ClientState::Linked(_)
            | ClientState::Failed(_)) => other,
        };
        Ok(true)
    }

    /// Goes on with what the server offers, in spice-gtk's order of preference.
    fn offered(&mut self, welcome: Welcome) -> Result<ClientState, HandshakeError> {
        let common = welcome.common();
        let both = common & self.link.common_caps;
        let selects = both.contains(CommonCaps::AUTH_SELECTION);
        if selects && both.contains(CommonCaps::AUTH_SASL) {
            put_u32(&mut self.shared.outbox, MECHANISM_SASL);
            let sasl = Sasl { exchange: Exchange::new(), said: Vec::new(), agreed: false };
            return Ok(ClientState::Sasl { welcome, sasl: Box::new(sasl) });
        }
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
        Ok(ClientState::Ticket { welcome })
    }

    /// Leaves the exchange when it is over.
    fn sasl_outcome(&mut self) -> Result<bool, HandshakeError> {
        let ClientState::Sasl { welcome, sasl } = &self.state else { return Ok(false) };
        match sasl.exchange.turn() {
            Turn::Of(..) => {}
            Turn::Over(Outcome::Linked) => self.state = ClientState::Linked(self.linked(welcome.clone())),
            Turn::Over(Outcome::Refused(error)) => return Err(HandshakeError::Refused(error)),
            Turn::Over(Outcome::Rejected) => return Err(HandshakeError::SaslRejected),
        }
        Ok(true)
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
