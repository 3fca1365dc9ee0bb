//! The link stage of one connection (wire-reference section 1).
//!
//! ```text
//! client: message ─► mechanism? ─► ticket ──────────────────► waits
//!                        └───────► SASL mechanism ─► SASL data ⟲ ─► waits
//! server: reply ─► result
//!                └► SASL mechanisms ─► SASL data ⟲ ─► SASL result ─► result
//! ```
//!
//! Each direction has a step of its own and waits, with the bytes it has, for what only the other one can tell: whether
//! there is a mechanism, which one, and whether the exchange is over. So neither the sizes of the pieces nor the order in
//! which the directions were captured matter. What waits is bounded.

use spice_proto::frame::HeaderForm;
use spice_proto::link::{
    ChannelType, CommonCaps, HEADER_LEN, LinkError, LinkFault, LinkMess, LinkReply, MAGIC, MAX_SIZE,
    MECHANISM_SASL, MECHANISM_TICKET, MESS_LEN, REPLY_LEN, TICKET_LEN, VERSION_2010, WORD_LEN, Welcome,
};
use spice_proto::names::Sender;
use spice_proto::tunnel::Layout;

use super::data_stage::LONGEST;
use super::knowledge::Knowledge;
use super::out::Out;
use super::{Channel, Head, Terms, What, sizes};

/// The link stage of a connection.
#[derive(Debug, Default)]
pub(super) struct LinkStage {
    client: Vec<u8>,
    server: Vec<u8>,
    client_at: ClientStep,
    server_at: ServerStep,
    mess: Option<(LinkMess, (u32, u32))>,
    welcome: Option<Welcome>,
    mechanism: Option<u32>,
    /// How often the server asked for more SASL data than the client sent so far.
    sasl_owed: u32,
    /// Directions that lost their bytes in a hole: the other one no longer waits for them.
    client_lost: bool,
    server_lost: bool,
    /// The client's first message came when the server's was still awaited.
    pub(super) client_first: bool,
}

/// How far the link stage got.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not over.
    Going,
    /// Linked; messages follow in both directions.
    Linked(Terms),
    /// Refused, or nothing that can be followed: no messages come.
    Over,
    /// Messages may follow, but with which header is not known.
    Unclear,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ClientStep {
    #[default]
    Mess,
    Mechanism,
    Ticket,
    SaslMechanism,
    SaslData,
    /// For the server. What comes is kept, because it may be messages.
    Waits,
    /// What comes is of no use.
    Over,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ServerStep {
    #[default]
    Reply,
    /// For the client, who chooses the mechanism.
    Waits,
    Result,
    SaslMechanisms,
    SaslData,
    SaslResult,
    ResultBehindSasl,
    /// Of a tunnel, to see its header.
    FirstMessage,
    Linked,
    Over,
}

/// Whether a step was made.
enum Step {
    Made,
    Waits,
}

impl LinkStage {
    /// Bytes that it holds on to.
    pub(super) fn held(&self) -> usize {
        self.client.capacity() + self.server.capacity()
    }

    /// Takes bytes of one direction.
    pub(super) fn feed(
        &mut self,
        from: Sender,
        bytes: &[u8],
        know: &mut Knowledge,
        out: &mut Out<'_>,
    ) -> Outcome {
        let over = match from {
            Sender::Client => self.client_at == ClientStep::Over,
            Sender::Server => self.server_at == ServerStep::Over,
        };
        if !over {
            let buffer = self.buffer(from);
            let length = buffer.len().saturating_add(bytes.len());
            if length > MOST || (length > ALWAYS && !out.afford(buffer, bytes.len(), MOST)) {
                let error =
                    format!("expected a link stage, got more than {MOST} bytes from the {}", from.name());
                out.say(know, Some(from), What::Malformed { error, header: None, bytes: &[] });
                return Outcome::Over;
            }
            buffer.extend_from_slice(bytes);
        }
        if from == Sender::Client && self.server_at == ServerStep::FirstMessage && self.server.is_empty() {
            self.client_first = true;
        }
        let outcome = self.run(know, out);
        if outcome != Outcome::Going || !self.waits(from) || self.buffer(from).len() <= ENOUGH {
            return outcome;
        }
        // So much does not come before an answer: the capture does not have it.
        match from {
            Sender::Client => self.lose(Sender::Server, know, out),
            Sender::Server => self.lose(Sender::Client, know, out),
        }
    }

    /// Whether a direction can only go on when the other one has spoken.
    fn waits(&self, from: Sender) -> bool {
        match from {
            Sender::Client => matches!(self.client_at, ClientStep::Mechanism | ClientStep::Waits),
            Sender::Server => self.server_at == ServerStep::Waits,
        }
    }

    /// One direction misses bytes, or began before the capture.
    pub(super) fn lose(&mut self, from: Sender, know: &mut Knowledge, out: &mut Out<'_>) -> Outcome {
        match from {
            Sender::Client => {
                self.client_lost = true;
                self.client_at = ClientStep::Over;
            }
            Sender::Server => {
                self.server_lost = true;
                self.server_at = ServerStep::Over;
            }
        }
        self.buffer(from).clear();
        self.run(know, out)
    }

    /// The sender closed. In the middle of something that is a fault; before something it says no more than it says.
    pub(super) fn closed(&mut self, from: Sender, know: &mut Knowledge, out: &mut Out<'_>) -> Outcome {
        if from == Sender::Server && self.welcome.is_none() && self.client_at == ClientStep::Mechanism {
            // What a client sends in advance would wait for the reply, which will not come.
            self.server_lost = true;
            self.server_at = ServerStep::Over;
        }
        let outcome = self.run(know, out);
        let what = match from {
            Sender::Client => match self.client_at {
                ClientStep::Mess => "its link message",
                // Whole, and waiting to be understood.
                ClientStep::Mechanism if self.client.len() >= WORD_LEN => return outcome,
                ClientStep::Mechanism => "its choice of authentication",
                ClientStep::Ticket => "its ticket",
                ClientStep::SaslMechanism | ClientStep::SaslData => "a step of SASL",
                ClientStep::Waits | ClientStep::Over => return outcome,
            },
            Sender::Server => match self.server_at {
                ServerStep::Reply => "its link reply",
                ServerStep::Result | ServerStep::ResultBehindSasl => "its link result",
                ServerStep::SaslMechanisms | ServerStep::SaslData | ServerStep::SaslResult => {
                    "a step of SASL"
                }
                ServerStep::Waits | ServerStep::FirstMessage | ServerStep::Linked | ServerStep::Over => {
                    return outcome;
                }
            },
        };
        let have = self.buffer(from).len();
        if have > 0 {
            let error = format!("the {} closed within {what}, behind {have} bytes of it", from.name());
            out.say(know, Some(from), What::Malformed { error, header: None, bytes: &[] });
            self.buffer(from).clear();
        }
        outcome
    }

    /// The capture is over, or the connection: what waits for something that will not come does so no longer.
    pub(super) fn ended(&mut self, know: &mut Knowledge, out: &mut Out<'_>) -> Outcome {
        if self.server_at == ServerStep::FirstMessage {
            return self.terms().map_or(Outcome::Unclear, Outcome::Linked);
        }
        if self.waits(Sender::Client) && !self.client.is_empty() && !self.server_lost {
            return self.lose(Sender::Server, know, out);
        }
        if self.waits(Sender::Server) && !self.server.is_empty() && !self.client_lost {
            return self.lose(Sender::Client, know, out);
        }
        Outcome::Going
    }

    /// What was not used up of one direction: the beginning of the data stage.
    pub(super) fn take(&mut self, from: Sender) -> Vec<u8> {
        std::mem::take(self.buffer(from))
    }

    /// What the part of the link stage that is known leaves possible.
    pub(super) fn form(&self) -> Option<HeaderForm> {
        let lacks = |common: CommonCaps| !common.contains(CommonCaps::MINI_HEADER);
        let client =
            self.mess.as_ref().map(|(mess, version)| lacks(mess.common()) || *version == VERSION_2010);
        let server = self.welcome.as_ref().map(|welcome| lacks(welcome.common()));
        match (client, server) {
            (Some(true), _) | (_, Some(true)) => Some(HeaderForm::Full),
            (Some(false), Some(false)) => Some(HeaderForm::Mini),
            (Some(false) | None, None) | (None, Some(false)) => None,
        }
    }

    /// Layout, if the link message is known.
    pub(super) fn layout(&self) -> Option<Layout> {
        let (_, version) = self.mess.as_ref()?;
        Some(if *version == VERSION_2010 { Layout::A } else { Layout::B })
    }

    /// Capabilities of the channel that both have.
    pub(super) fn channel_caps(&self) -> Vec<u32> {
        let (Some((mess, _)), Some(welcome)) = (&self.mess, &self.welcome) else { return Vec::new() };
        mess.channel_caps.iter().zip(&welcome.channel_caps).map(|(client, server)| client & server).collect()
    }

    fn buffer(&mut self, from: Sender) -> &mut Vec<u8> {
        match from {
            Sender::Client => &mut self.client,
            Sender::Server => &mut self.server,
        }
    }

    /// Makes all the steps that can be made.
    fn run(&mut self, know: &mut Knowledge, out: &mut Out<'_>) -> Outcome {
        loop {
            let client = self.client_step(know, out);
            let server = self.server_step(know, out);
            match self.server_at {
                ServerStep::Linked => return self.terms().map_or(Outcome::Unclear, Outcome::Linked),
                ServerStep::Over if !self.server_lost => {
                    // What the client sent in advance.
                    self.client_step(know, out);
                    return Outcome::Over;
                }
                ServerStep::Reply
                | ServerStep::Waits
                | ServerStep::Result
                | ServerStep::SaslMechanisms
                | ServerStep::SaslData
                | ServerStep::SaslResult
                | ServerStep::ResultBehindSasl
                | ServerStep::FirstMessage
                | ServerStep::Over => {}
            }
            let client_is_through = self.client_lost || self.client_at == ClientStep::Waits;
            if self.server_lost && client_is_through {
                return Outcome::Unclear;
            }
            if matches!((client, server), (Step::Waits, Step::Waits)) {
                return Outcome::Going;
            }
        }
    }

    fn client_step(&mut self, know: &mut Knowledge, out: &mut Out<'_>) -> Step {
        const FROM: Sender = Sender::Client;
        match self.client_at {
            ClientStep::Mess => {
                if let Some(magic) = self.client.first_chunk().filter(|magic| **magic != MAGIC) {
                    let error = LinkFault::Magic(*magic).to_string();
                    let bytes = self.client.get(..HEADER_LEN).unwrap_or(&self.client);
                    out.say(know, Some(FROM), What::Malformed { error, header: None, bytes });
                    self.client_at = ClientStep::Over;
                    return Step::Made;
                }
                let Some(header) = self.client.first_chunk::<HEADER_LEN>() else { return Step::Waits };
                let (_, version, size) = link_header(header);
                if size > MAX_SIZE || length(size) < MESS_LEN {
                    let error = LinkFault::Size { size, least: MESS_LEN }.to_string();
                    out.say(know, Some(FROM), What::Malformed { error, header: None, bytes: header });
                    self.client_at = ClientStep::Over;
                    return Step::Made;
                }
                let Some(body) = self.client.get(HEADER_LEN..HEADER_LEN + length(size)) else {
                    return Step::Waits;
                };
                self.client_at = match LinkMess::parse(body) {
                    Ok(mess) => {
                        know.set_channel(Channel {
                            channel_type: mess.channel_type,
                            id: Some(mess.channel_id),
                        });
                        out.say(know, Some(FROM), What::LinkMess { size, version, mess: mess.clone() });
                        self.mess = Some((mess, version));
                        ClientStep::Mechanism
                    }
                    Err(error) => {
                        let error = format!("the client's link message is malformed: {error}");
                        out.say(know, Some(FROM), What::Malformed { error, header: None, bytes: body });
                        ClientStep::Over
                    }
                };
                self.client.drain(..HEADER_LEN + length(size));
                Step::Made
            }
            ClientStep::Mechanism => {
                let Some(word) = word(&self.client) else {
                    return if self.mechanism_follows() == Some(false) {
                        self.client_at = ClientStep::Ticket;
                        Step::Made
                    } else {
                        Step::Waits
                    };
                };
                let follows = match self.mechanism_follows() {
                    None if self.server_at == ServerStep::Over => {
                        (MECHANISM_TICKET..=MECHANISM_SASL).contains(&word)
                    }
                    None => return Step::Waits,
                    Some(follows) => follows,
                };
                if follows {
                    self.client.drain(..WORD_LEN);
                    self.mechanism = Some(word);
                    out.say(know, Some(FROM), What::AuthMechanism(word));
                }
                self.client_at = match self.mechanism {
                    Some(MECHANISM_SASL) => ClientStep::SaslMechanism,
                    None | Some(MECHANISM_TICKET) => ClientStep::Ticket,
                    Some(_) => ClientStep::Over,
                };
                Step::Made
            }
            ClientStep::Ticket => {
                if self.client.len() < TICKET_LEN {
                    return Step::Waits;
                }
                self.client.drain(..TICKET_LEN);
                out.say(know, Some(FROM), What::Ticket);
                self.client_at = ClientStep::Waits;
                Step::Made
            }
            ClientStep::SaslMechanism => {
                self.client_sasl("sasl_mechanism", ClientStep::SaslData, 100, know, out)
            }
            ClientStep::SaslData => self.client_sasl("sasl_data", ClientStep::Waits, SASL_MOST, know, out),
            ClientStep::Waits => match self.sasl_owed.checked_sub(1) {
                Some(owed) => {
                    self.sasl_owed = owed;
                    self.client_at = ClientStep::SaslData;
                    Step::Made
                }
                None => Step::Waits,
            },
            ClientStep::Over => {
                self.client.clear();
                Step::Waits
            }
        }
    }

    /// A length and as many bytes, from the client.
    fn client_sasl(
        &mut self,
        name: &'static str,
        next: ClientStep,
        most: u32,
        know: &Knowledge,
        out: &mut Out<'_>,
    ) -> Step {
        let Some(n) = word(&self.client) else { return Step::Waits };
        if n > most {
            let error =
                format!("expected at most {most} bytes of {name} from the client, got a length of {n}");
            out.say(know, Some(Sender::Client), What::Malformed { error, header: None, bytes: &[] });
            self.client_at = ClientStep::Over;
            return Step::Made;
        }
        let size = WORD_LEN + length(n);
        if self.client.len() < size {
            return Step::Waits;
        }
        self.client.drain(..size);
        out.say(know, Some(Sender::Client), What::Sasl { name, size: number(size) });
        self.client_at = next;
        Step::Made
    }

    fn server_step(&mut self, know: &mut Knowledge, out: &mut Out<'_>) -> Step {
        const FROM: Sender = Sender::Server;
        match self.server_at {
            ServerStep::Reply => {
                if self.link_reply(know, out) {
                    return Step::Made;
                }
                Step::Waits
            }
            ServerStep::Waits => {
                self.server_at = match (self.mechanism_follows(), self.mechanism, word(&self.server)) {
                    (Some(false), ..) => ServerStep::Result,
                    (_, Some(MECHANISM_SASL), _) => ServerStep::SaslMechanisms,
                    (_, Some(_), _) => ServerStep::Result,
                    // Who chose is not in the capture. A list of mechanisms is longer than any result is large.
                    (_, None, Some(word)) if self.client_lost || self.client_at == ClientStep::Over => {
                        if word <= LAST_CODE || word.to_le_bytes() == MAGIC {
                            ServerStep::Result
                        } else {
                            ServerStep::SaslMechanisms
                        }
                    }
                    (_, None, _) => return Step::Waits,
                };
                Step::Made
            }
            ServerStep::Result | ServerStep::ResultBehindSasl => {
                let Some(word) = word(&self.server) else { return Step::Waits };
                if word.to_le_bytes() == MAGIC {
                    return if self.link_reply(know, out) { Step::Made } else { Step::Waits };
                }
                if self.server_at == ServerStep::ResultBehindSasl && word > LAST_CODE {
                    let error =
                        "expected a link result behind SASL, got what must be SASL's encryption; nothing \
                                 behind it can be read"
                            .to_owned();
                    out.say(know, Some(FROM), What::Malformed { error, header: None, bytes: &[] });
                    self.server_at = ServerStep::Over;
                    return Step::Made;
                }
                self.server.drain(..WORD_LEN);
                let error = LinkError::from_code(word);
                out.say(know, Some(FROM), What::LinkResult(error));
                self.server_at = match error {
                    Some(_) => ServerStep::Over,
                    None if self.is_modern_tunnel() => ServerStep::FirstMessage,
                    None => ServerStep::Linked,
                };
                Step::Made
            }
            ServerStep::SaslMechanisms => {
                let Some(n) = word(&self.server) else { return Step::Waits };
                if n.to_le_bytes() == MAGIC {
                    // It does not have SASL, and says so with another link reply.
                    return if self.link_reply(know, out) { Step::Made } else { Step::Waits };
                }
                self.server_sasl("sasl_mechanisms", n, 0, ServerStep::SaslData, know, out)
            }
            ServerStep::SaslData => self.sasl_data(know, out),
            ServerStep::SaslResult => {
                let Some(code) = word(&self.server) else { return Step::Waits };
                let text = if code == 0 {
                    0
                } else {
                    let Some(n) = self.server.get(WORD_LEN..).and_then(word) else { return Step::Waits };
                    WORD_LEN + length(n.min(MAX_SIZE))
                };
                let size = WORD_LEN + text;
                if self.server.len() < size {
                    return Step::Waits;
                }
                self.server.drain(..size);
                out.say(know, Some(FROM), What::Sasl { name: "sasl_result", size: number(size) });
                self.server_at = if code == 0 { ServerStep::ResultBehindSasl } else { ServerStep::Over };
                Step::Made
            }
            ServerStep::FirstMessage => {
                if self.server.len() < LONGEST && self.server_could_be_full() && self.client.len() <= ENOUGH {
                    return Step::Waits;
                }
                self.server_at = ServerStep::Linked;
                Step::Made
            }
            ServerStep::Linked | ServerStep::Over => Step::Waits,
        }
    }

    /// A link reply, or another one instead of a result. `false`: it is not whole yet.
    fn link_reply(&mut self, know: &Knowledge, out: &mut Out<'_>) -> bool {
        const FROM: Sender = Sender::Server;
        let Some(header) = self.server.first_chunk::<HEADER_LEN>() else { return false };
        let (magic, version, size) = link_header(header);
        if magic != MAGIC || size > MAX_SIZE || length(size) < REPLY_LEN {
            let error = if magic == MAGIC {
                LinkFault::Size { size, least: REPLY_LEN }.to_string()
            } else {
                LinkFault::Magic(magic).to_string()
            };
            out.say(know, Some(FROM), What::Malformed { error, header: None, bytes: header });
            self.server_at = ServerStep::Over;
            return true;
        }
        let Some(body) = self.server.get(HEADER_LEN..HEADER_LEN + length(size)) else { return false };
        let second = self.welcome.is_some();
        self.server_at = match LinkReply::parse(body) {
            Ok(reply) => {
                out.say(know, Some(FROM), What::LinkReply { size, version, reply: reply.clone() });
                match reply {
                    LinkReply::Welcome(welcome) if !second => {
                        self.welcome = Some(welcome);
                        ServerStep::Waits
                    }
                    LinkReply::Welcome(_) | LinkReply::Refused(_) => ServerStep::Over,
                }
            }
            Err(error) => {
                let error = format!("the server's link reply is malformed: {error}");
                out.say(know, Some(FROM), What::Malformed { error, header: None, bytes: body });
                ServerStep::Over
            }
        };
        self.server.drain(..HEADER_LEN + length(size));
        true
    }

    /// The server's answer to SASL data: a length, so many bytes, and whether it is over. A refusal stands in its place.
    fn sasl_data(&mut self, know: &Knowledge, out: &mut Out<'_>) -> Step {
        let Some(n) = word(&self.server) else { return Step::Waits };
        if n == 1 {
            // Data of one byte is a NUL. Behind a refusal's 1 comes the length of its text, which is not 0.
            match self.server.get(WORD_LEN) {
                None => return Step::Waits,
                Some(0) => {}
                Some(_) => {
                    self.server_at = ServerStep::SaslResult;
                    return Step::Made;
                }
            }
        }
        let Some(complete) = self.server.get(WORD_LEN.saturating_add(length(n))).copied() else {
            if n > SASL_MOST {
                return self.server_sasl("sasl_data", n, 1, ServerStep::Over, know, out);
            }
            return Step::Waits;
        };
        let next = if complete == 0 { ServerStep::SaslData } else { ServerStep::SaslResult };
        if complete == 0 {
            self.sasl_owed = self.sasl_owed.saturating_add(1);
        }
        self.server_sasl("sasl_data", n, 1, next, know, out)
    }

    /// A length, as many bytes, and `more`, from the server.
    fn server_sasl(
        &mut self,
        name: &'static str,
        n: u32,
        more: usize,
        next: ServerStep,
        know: &Knowledge,
        out: &mut Out<'_>,
    ) -> Step {
        if n > SASL_MOST {
            let error =
                format!("expected at most {SASL_MOST} bytes of {name} from the server, got a length of {n}");
            out.say(know, Some(Sender::Server), What::Malformed { error, header: None, bytes: &[] });
            self.server_at = ServerStep::Over;
            return Step::Made;
        }
        let size = WORD_LEN + length(n) + more;
        if self.server.len() < size {
            return Step::Waits;
        }
        self.server.drain(..size);
        out.say(know, Some(Sender::Server), What::Sasl { name, size: number(size) });
        self.server_at = next;
        Step::Made
    }

    /// Whether a mechanism precedes the ticket; `None` as long as the other side has not said.
    fn mechanism_follows(&self) -> Option<bool> {
        let has = |common: CommonCaps| common.contains(CommonCaps::AUTH_SELECTION);
        let client = self.mess.as_ref().map(|(mess, _)| has(mess.common()));
        let server = self.welcome.as_ref().map(|welcome| has(welcome.common()));
        match (client, server) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            (Some(true) | None, None) | (None, Some(true)) => None,
        }
    }

    /// Whether it is a tunnel that both ends said to speak with mini headers on, which servers of 2012 and 2013 did not do.
    fn is_modern_tunnel(&self) -> bool {
        self.form() == Some(HeaderForm::Mini)
            && self.mess.as_ref().is_some_and(|(mess, _)| mess.channel_type == ChannelType::TUNNEL.0)
    }

    fn server_could_be_full(&self) -> bool {
        could_be_first_full(Sender::Server, &self.server)
    }

    /// What was agreed on; `None` if half of the agreement is missing.
    fn terms(&self) -> Option<Terms> {
        let form = self.form()?;
        let form = if self.is_modern_tunnel() && is_first_full(Sender::Server, &self.server) {
            HeaderForm::Full
        } else {
            form
        };
        self.welcome.as_ref()?;
        Some(Terms { header: form, layout: self.layout()?, channel_caps: self.channel_caps() })
    }
}

/// Whether a tunnel's first message has the full header, although the mini header was agreed on.
pub(super) fn is_first_full(from: Sender, bytes: &[u8]) -> bool {
    could_be_first_full(from, bytes) && bytes.len() >= LONGEST
}

/// Serial 1 in 8 bytes, and then a type and a size that go together. As a mini header it would be a MIGRATE of 0 bytes, which
/// has 4, or an ACK_SYNC of 0 bytes, which has 4 too.
fn could_be_first_full(from: Sender, bytes: &[u8]) -> bool {
    match Head::read(HeaderForm::Full, bytes) {
        None => 1u64.to_le_bytes().starts_with(bytes.get(..8).unwrap_or(bytes)),
        Some(head) => {
            let sizes = sizes::of(ChannelType::TUNNEL.0, from, head.kind);
            head.serial == Some(1) && sizes.is_some_and(|sizes| head.size <= (*sizes.end()).max(64))
        }
    }
}

/// Magic, version and size, unjudged.
fn link_header(bytes: &[u8; HEADER_LEN]) -> ([u8; 4], (u32, u32), u32) {
    let [m0, m1, m2, m3, a0, a1, a2, a3, b0, b1, b2, b3, s0, s1, s2, s3] = *bytes;
    let version = (u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([b0, b1, b2, b3]));
    ([m0, m1, m2, m3], version, u32::from_le_bytes([s0, s1, s2, s3]))
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Of a number of the wire that was compared with a limit before.
fn length(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Of a size that came from the wire.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Highest code of a link result that has a name.
const LAST_CODE: u32 = 9;

/// Longest data of a SASL step, bytes: stock servers' limit.
const SASL_MOST: u32 = 1 << 20;

/// Most bytes of one direction that wait here.
const MOST: usize = (1 << 20) + (256 << 10);

/// So many bytes of one direction may wait even if no memory is left. A usual link message and reply have less.
const ALWAYS: usize = 512;

/// So many bytes of one direction wait for the other one, and no more, where that should have answered.
const ENOUGH: usize = 64 << 10;
