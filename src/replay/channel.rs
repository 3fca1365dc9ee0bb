//! Today's tunnel channel against one captured end, with the other captured end as the script of its owner.
//!
//! # Theory of operation
//!
//! A [`Driver`] has a [`Channel`] of today's code in the role of one end, the *own* one, and is its owner. It takes the
//! capture's messages in their order, and
//!
//! * hands those of the *peer* to the channel, as frames, on the capture's clock;
//! * does for each of the own end what an owner does whose channel would then say just that: opens a socket where
//!   SOCKET_OPEN stands, sends the captured bytes as credit allows, finishes, aborts, maps services.
//!
//! What the channel then says and tells is one story of each connection, what the capture shows is the other
//! ([`story`](super::story)), and once the captured connection is over the two are compared.
//!
//! **Why this is fair.** TCP keeps the order of each direction, and an answer is captured behind its question. So the
//! messages of the peer, in the order of the capture, are what a channel at the place of the capture could have got.
//! What the own end had said before it heard the peer's end of a socket crossed that and reached nobody; it
//! is in neither story.
//!
//! **Credit.** The owner reports messages as delivered when the captured end returned tokens for them. Historical ends
//! return other portions than today's (loans of 5, wire-reference 6.7), so where the captured grants allowed a
//! message and today's do not yet, as much is delivered before as that takes: if it does not help, today's code
//! does not return credit. Where the captured grants did *not* allow it, today's spare tokens are used up first, so that
//! today's code must find the fault.
//!
//! **Ids** are chosen by the server and services numbered by the client. Where that is today's code, they are
//! translated both ways.
//!
//! **Faults.** Where today's code refuses a message, the capture must show that the own end did so too: by
//! the end of that socket, or of the channel.
//!
//! **Holes.** What lives at a hole cannot be compared, and neither can what was found while the direction stood
//! still before the hole was noticed. Connections that begin behind it are.

mod connection;
mod owner;
mod today;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spice_proto::link::TunnelCaps;
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage, ServiceId, SocketId};
use tunnel_channel::{Channel, Config, ResetCause, Role, SocketViolation};

use self::connection::{Connection, Phase, Refusal};
use self::today::Outcome;
use super::report::{Compared, Difference, Part, Place, Report, Subject, Verdict};
use super::story::{Manner, Said, Word, compare, own_name, peer_name};
use super::{Handicap, Options};
use crate::capture::dissect::{Body, End, Head, Hole, Message, Terms};
use crate::describe;

/// Bytes that may wait for credit on one channel. A capture in which more do is not worth its memory.
const MAX_WAITING: usize = 16 << 20;

/// Findings that are held back until the end of the channel, since a hole may be noticed that spoils them.
const MAX_FINDINGS: usize = 1000;

/// Today's channel in one role, and its owner.
#[derive(Debug)]
pub(super) struct Driver {
    role: Role,
    stream: u64,
    terms: Terms,
    strict: Option<Strict>,
    handicap: Option<Handicap>,
    /// Of the capture.
    start: Duration,
    /// Time of the item in hand.
    time: Duration,
    base: Instant,
    /// From INIT on, which says how large it is.
    channel: Option<Channel>,
    /// INIT as today's channel said it, and as it was captured: sockets and bytes.
    init: Init,
    live: BTreeMap<SocketId, Connection>,
    /// From today's ids to captured ones.
    ids: BTreeMap<SocketId, SocketId>,
    /// From captured services to today's.
    services: BTreeMap<ServiceId, ServiceId>,
    opened: u64,
    waiting: usize,
    /// Why today's channel is over, if it found a fault.
    ended: Option<Refusal>,
    /// The session goes on elsewhere, or nothing more of it is understood.
    over: bool,
    holed: bool,
    /// When the client was last heard, and the server.
    heard: (Duration, Duration),
    findings: Vec<Difference>,
    left_out: u64,
    compared: Compared,
    /// What today's channel said about services, as number and body, until the owner has looked at it.
    said: Vec<(u16, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl Driver {
    /// For a channel whose link stage is over.
    pub(super) fn new(role: Role, stream: u64, terms: Terms, start: Duration, options: &Options) -> Self {
        let mut driver = Driver {
            role,
            stream,
            terms,
            strict: options.strict.then(Strict::default),
            handicap: options.handicap,
            start,
            time: start,
            base: Instant::now(),
            channel: None,
            init: Init::default(),
            live: BTreeMap::new(),
            ids: BTreeMap::new(),
            services: BTreeMap::new(),
            opened: 0,
            waiting: 0,
            ended: None,
            over: false,
            holed: false,
            heard: (start, start),
            findings: Vec::new(),
            left_out: 0,
            compared: Compared::default(),
            said: Vec::new(),
            buffer: Vec::new(),
        };
        if !driver.is_extended() {
            driver.create(None);
        }
        driver
    }

    /// A message of either end.
    pub(super) fn message(&mut self, time: Duration, from: Sender, message: &Message<'_>) {
        if self.over {
            return;
        }
        self.tick(time, from);
        let word = match &message.body {
            Body::TunnelServer(message) => Some(Word::from(message)),
            Body::TunnelClient(message) => Some(Word::from(message)),
            // The hole was reported before.
            Body::Incomplete => return,
            Body::BaseServer(_)
            | Body::BaseClient(_)
            | Body::MainServer(_)
            | Body::MainClient(_)
            | Body::Opaque => None,
        };
        self.compared.messages += 1;
        if from == self.own() {
            if let Some(strict) = &mut self.strict {
                strict.captured(&message.head, word.as_ref(), message.name);
            }
            match word {
                Some(word) => self.own_says(&word),
                None if message.name.is_none() => self.different(
                    Subject::Message,
                    None,
                    format!(
                        "the {} said message {}, which has no name",
                        own_name(self.role),
                        message.head.kind
                    ),
                    "it never does",
                ),
                // The channel answers PING and SET_ACK by itself, and no connection depends on it.
                None => {}
            }
        } else {
            self.peer_says(&message.head, word.as_ref(), message.bytes);
        }
        self.compare_strictly();
    }

    /// A message that cannot be read.
    pub(super) fn malformed(
        &mut self,
        time: Duration,
        from: Sender,
        head: Option<&Head>,
        bytes: &[u8],
        error: &str,
    ) {
        if self.over {
            return;
        }
        self.tick(time, from);
        if from == self.own() {
            let text = format!("the {} said what cannot be read: {error}", own_name(self.role));
            self.different(Subject::Message, None, text, "it never does");
            return;
        }
        match head {
            Some(head) => self.peer_says(head, None, bytes),
            None => {
                let why = format!("bytes of the {} are no message: {error}", peer_name(self.role));
                self.not_comparable(Subject::Capture, None, why);
                self.drop_all(None);
                self.over = true;
            }
        }
    }

    /// Bytes of one end are missing.
    pub(super) fn hole(&mut self, time: Duration, from: Sender, hole: &Hole) {
        // Since this end was last heard, the other was judged without it.
        let heard = *self.heard(from);
        let since = heard.saturating_sub(self.start);
        for finding in &mut self.findings {
            if finding.place.time.is_some_and(|at| at >= since) && finding.verdict == Verdict::Different {
                finding.verdict = Verdict::NotComparable;
                finding.captured = format!("beside a hole: {} / {}", finding.captured, finding.today);
                finding.today.clear();
            }
        }
        self.time = time;
        self.holed = true;
        let missing = hole.missing.map_or("an unknown number of".to_owned(), |n| n.to_string());
        let why = format!("a hole: {missing} bytes of the {} are not in the capture", from.name());
        self.not_comparable(Subject::Capture, None, why);
        let ended_within = self.ended.as_ref().is_some_and(|ended| ended.time >= heard);
        self.drop_all(Some("a hole is in it"));
        if !hole.resumed || ended_within || self.channel.is_none() {
            self.over = true;
        }
    }

    /// Nothing more comes. Adds all that was found to the report.
    pub(super) fn end(mut self, time: Duration, how: End, report: &mut Report) {
        self.time = time;
        let numbers: Vec<SocketId> = self.live.keys().copied().collect();
        for socket in numbers {
            self.compare_connection(socket, Some(how));
        }
        if let Some(ended) = self.ended.take()
            && !ended.agreed
            && how == End::CaptureOver
        {
            let why = format!(
                "the capture ends behind what today's code ends the channel for ({}), so that nobody knows whether the \
                 {} did so too",
                ended.text,
                own_name(self.role)
            );
            self.not_comparable(Subject::Channel, None, why);
        }
        if self.channel.is_some() && self.compared.messages > 0 {
            self.compared.channels = 1;
        }
        let part = self.part();
        for finding in self.findings {
            report.add(finding);
        }
        if self.left_out > 0 {
            let why = format!("{} findings more on this channel", self.left_out);
            let place = Place { stream: Some(self.stream), ..Place::default() };
            report.add(Difference::new(part, Subject::Channel, place, why, "see those before"));
        }
        let all = report.compared(part);
        all.channels += self.compared.channels;
        all.messages += self.compared.messages;
        all.services += self.compared.services;
        all.connections += self.compared.connections;
        all.bytes_up += self.compared.bytes_up;
        all.bytes_down += self.compared.bytes_down;
    }

    // ---- what the peer says ----

    fn peer_says(&mut self, head: &Head, word: Option<&Word<'_>>, body: &[u8]) {
        if self.channel.is_none() {
            match word {
                Some(Word::Init { max_sockets, max_data }) => self.create(Some((*max_sockets, *max_data))),
                Some(_) => self.create(None),
                // Nobody is there yet who would answer.
                None => return,
            }
        }
        if self.ended.is_some() {
            return;
        }
        match word {
            Some(Word::Socket(socket, Said::Open { service, tokens })) => {
                self.peer_opens(head, *socket, *service, *tokens);
            }
            Some(Word::Socket(socket, said)) => self.peer_speaks(head, *socket, said, body),
            Some(Word::Map { service, address }) => self.peer_maps(head, *service, *address),
            Some(Word::Add(_) | Word::Remove(_) | Word::Init { .. }) | None => {
                self.peer_else(head, word, body)
            }
        }
    }

    fn peer_else(&mut self, head: &Head, word: Option<&Word<'_>>, body: &[u8]) {
        let outcome = self.feed(head, body);
        match (outcome, word) {
            (Outcome::Added, Some(Word::Add(add))) => {
                self.services.insert(add.service, add.service);
                self.compared.services += 1;
            }
            (Outcome::Removed(service), _) => {
                self.services.remove(&service);
            }
            (Outcome::Ready { max_sockets, max_data }, Some(Word::Init { .. })) => {
                self.init.today = Some((max_sockets, max_data));
            }
            (Outcome::Migrate, _) => {
                self.drop_all(None);
                self.over = true;
            }
            // A rejected service shows when the captured server maps it.
            (_, _) => {}
        }
    }

    fn peer_opens(&mut self, head: &Head, socket: SocketId, service: ServiceId, tokens: u32) {
        let number = self.opened;
        self.opened += 1;
        let known = self.services.get(&service).copied();
        if known.is_none() && self.holed {
            let place = Place { connection: Some(number), socket: Some(socket.0), ..self.place(None) };
            self.add(Difference::not_comparable(
                self.part(),
                Subject::Open,
                Place { service: Some(service.0), ..place },
                "its service may have been announced in a hole",
            ));
            return;
        }
        if self.live.get(&socket).is_some_and(|old| old.id.is_none()) {
            self.compare_connection(socket, None);
        }
        let before = self.live.remove(&socket);
        let mut connection = Connection::new(number, socket, service, socket);
        connection.phase = Phase::Gone;
        connection.out.granted = u64::from(tokens);
        self.live.insert(socket, connection);
        self.ids.insert(socket, socket);
        let today = known.unwrap_or(ServiceId(u32::MAX));
        let message = ServerMessage::SocketOpen { socket, service: today, tokens };
        let mut body = Vec::new();
        message.write_body(&mut body);
        let outcome = self.feed(head, &body);
        if outcome == Outcome::Ended {
            // The one that the id belongs to is the one to speak of.
            if let Some(before) = before {
                self.live.insert(socket, before);
            }
        } else if let (Outcome::Opened(_), Some(connection)) = (outcome, self.live.get_mut(&socket)) {
            connection.phase = Phase::Opening;
        }
        // Otherwise it refused by itself, which stands in the story.
    }

    fn peer_maps(&mut self, head: &Head, service: ServiceId, address: spice_proto::tunnel::IpInfo) {
        let known = self.services.get(&service).copied();
        if known.is_none() && self.holed {
            return;
        }
        let message = ServerMessage::ServiceIpMap { service: known.unwrap_or(ServiceId(u32::MAX)), address };
        let mut body = Vec::new();
        message.write_body(&mut body);
        let outcome = self.feed(head, &body);
        let captured = match address {
            spice_proto::tunnel::IpInfo::V4(v4) => Some(std::net::IpAddr::V4(v4)),
            spice_proto::tunnel::IpInfo::Invalid => None,
        };
        if outcome == Outcome::Ended {
            return;
        }
        let today = if let Outcome::Mapped(address) = outcome { Some(address) } else { None };
        // One that was withdrawn in between has no address any more.
        if known.is_some() && today != captured {
            let text = |address: Option<std::net::IpAddr>| {
                address.map_or("no address".to_owned(), |a| a.to_string())
            };
            let place = Place { service: Some(service.0), ..self.place(None) };
            self.add(Difference::new(self.part(), Subject::Service, place, text(captured), text(today)));
        }
    }

    fn peer_speaks(&mut self, head: &Head, socket: SocketId, said: &Said<'_>, body: &[u8]) {
        let Some(connection) = self.live.get_mut(&socket) else {
            // Behind a hole, a socket that nobody knows is one of those that the hole touched.
            if !self.holed {
                let free = self.unused_id(socket);
                let body = with_id(body, free);
                self.feed(head, &body);
            }
            return;
        };
        let counts = connection.peer_counts();
        match said {
            Said::Data(payload) if counts => {
                connection.captured.peer.bytes += length(payload);
            }
            Said::Fin if counts => connection.captured.peer.end = Some(connection.captured.peer.bytes),
            Said::Close | Said::Reset if counts => {
                let server_finished = match self.role {
                    Role::Server => connection.captured.own.end,
                    Role::Client => connection.captured.peer.end,
                }
                .is_some();
                let manner = Manner::of(said, server_finished);
                connection.captured.peer_end = Some(manner);
                if self.role == Role::Server && manner == Manner::Clean {
                    let bytes = connection.captured.peer.bytes;
                    connection.captured.peer.end.get_or_insert(bytes);
                }
            }
            Said::Accept { tokens } => {
                connection.captured.answer = super::story::Answer::Accepted;
                connection.out.granted = u64::from(*tokens);
            }
            Said::Refuse => connection.captured.answer = super::story::Answer::Refused,
            Said::Token(tokens) => {
                connection.out.granted = connection.out.granted.saturating_add(u64::from(*tokens));
            }
            Said::Data(_) | Said::Fin | Said::Close | Said::Reset | Said::Open { .. } | Said::ClosedAck => {}
        }
        if let Said::Data(_) = said
            && counts
        {
            self.align_credit(socket);
        }
        self.hear(head, socket, said, body);
        let over = *said == Said::Refuse
            || *said == Said::ClosedAck
                && self.live.get(&socket).is_some_and(|connection| connection.own_close_said);
        if over {
            self.compare_connection(socket, None);
        }
    }

    /// Hands a message about a socket to today's channel, and takes into its story what becomes of it.
    fn hear(&mut self, head: &Head, socket: SocketId, said: &Said<'_>, body: &[u8]) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let phase = connection.phase;
        if *said == Said::ClosedAck {
            if phase == Phase::PeerClosed {
                // The ends crossed. The captured server left the last word to the client; today's has heard the client
                // first, and acknowledges.
                self.release(socket);
                return;
            }
            if connection.id.is_none() {
                return;
            }
        }
        let Some(id) = connection.id else {
            if !connection.given_up && connection.refusal.is_none() {
                connection.given_up = true;
                self.different(
                    Subject::Message,
                    Some(socket),
                    format!("the {} said {}", peer_name(self.role), name_of(said)),
                    "the socket is free by then",
                );
            }
            return;
        };
        if let Said::Data(_) = said
            && phase == Phase::Open
        {
            connection.into.captured += 1;
            connection.into.fed += 1;
        }
        let body = with_id(body, id);
        let outcome = self.feed(head, &body);
        let role = self.role;
        let Some(connection) = self.live.get_mut(&socket) else { return };
        match outcome {
            Outcome::Accepted => {
                connection.today.answer = super::story::Answer::Accepted;
                connection.phase = Phase::Open;
            }
            Outcome::Refused => {
                connection.today.answer = super::story::Answer::Refused;
                self.free(socket);
            }
            Outcome::Data { bytes, same } => {
                connection.today.peer.bytes += bytes;
                connection.into.taken += 1;
                if !same {
                    let text = "bytes that the owner gets unchanged".to_owned();
                    self.different(Subject::Bytes, Some(socket), text, "they are changed");
                }
                self.deliver_returned(socket);
            }
            Outcome::Finished => {
                connection.today.peer.end = Some(connection.today.peer.bytes);
                if let Said::Close = said {
                    connection.today.peer_end = Some(Manner::Clean);
                    connection.phase = Phase::PeerClosed;
                }
            }
            Outcome::PeerClosed => {
                connection.today.peer_end = Some(Manner::Clean);
                connection.phase = Phase::PeerClosed;
            }
            Outcome::Reset(ResetCause::Peer) => {
                connection.today.peer_end = Some(Manner::Abort);
                connection.phase = Phase::Gone;
            }
            Outcome::Reset(cause) => {
                connection.phase = Phase::Gone;
                connection.refusal = Some(Refusal {
                    time: self.time,
                    text: cause.to_string(),
                    credit: matches!(
                        cause,
                        ResetCause::Violation(
                            SocketViolation::NoCredit | SocketViolation::CreditOverflow { .. }
                        )
                    ),
                    agreed: false,
                });
            }
            Outcome::Nothing if *said == Said::ClosedAck && phase == Phase::Gone => self.free(socket),
            Outcome::Nothing if *said == Said::Close && role == Role::Server && phase == Phase::Open => {
                connection.today.peer_end = Some(Manner::Clean);
                connection.phase = Phase::PeerClosed;
            }
            Outcome::Nothing
            | Outcome::Writable
            | Outcome::Ended
            | Outcome::Opened(_)
            | Outcome::Added
            | Outcome::Rejected
            | Outcome::Removed(_)
            | Outcome::Mapped(_)
            | Outcome::Ready { .. }
            | Outcome::Migrate
            | Outcome::Disconnecting => {}
        }
        self.pump(socket);
    }

    // ---- comparing ----

    /// Compares what became of a connection, whose captured life is over, or with the channel as `at_end` says; and
    /// forgets it.
    fn compare_connection(&mut self, socket: SocketId, at_end: Option<End>) {
        let Some(connection) = self.live.get(&socket) else { return };
        let place = self.place(Some(connection));
        let part = self.part();
        let mut found = Vec::new();
        if connection.out.overruns > 0 {
            found.push((
                Subject::Credit,
                format!(
                    "the {} sent {} messages for which it had no token",
                    own_name(self.role),
                    connection.out.overruns
                ),
                "it waits for tokens".to_owned(),
            ));
        }
        let mut unknown = None;
        match (&connection.refusal, at_end) {
            _ if connection.given_up || self.ended.is_some() => {}
            // Both ended it.
            (Some(Refusal { agreed: true, .. }), _) | (Some(_), Some(End::Closed | End::Reset(_))) => {}
            (Some(refusal), Some(End::CaptureOver)) => {
                unknown = Some(format!(
                    "the capture ends behind what today's code ends the socket for ({})",
                    refusal.text
                ));
            }
            (Some(refusal), None) => found.push(refused(self.role, refusal, "took it")),
            (None, _) => {
                let mismatch = connection.matcher.mismatch;
                found.extend(compare(self.role, &connection.captured, &connection.today, mismatch));
                if found.is_empty() && at_end.is_none() && connection.id.is_some() {
                    let today = format!("it is still in use ({:?})", connection.phase).to_lowercase();
                    found.push((Subject::End, "the socket is free again".to_owned(), today));
                }
            }
        }
        if self.ended.is_none() {
            self.compared.connections += 1;
            let (up, down) = match self.role {
                Role::Server => (connection.captured.own, connection.captured.peer),
                Role::Client => (connection.captured.peer, connection.captured.own),
            };
            self.compared.bytes_up += up.bytes;
            self.compared.bytes_down += down.bytes;
        }
        for (subject, captured, today) in found {
            self.add(Difference::new(part, subject, place, captured, today));
        }
        if let Some(why) = unknown {
            self.add(Difference::not_comparable(part, Subject::End, place, why));
        }
        self.abandon(socket);
        self.forget(socket);
    }

    /// Gives every connection up. With a reason, that is a finding for each.
    fn drop_all(&mut self, why: Option<&str>) {
        let sockets: Vec<SocketId> = self.live.keys().copied().collect();
        for socket in sockets {
            if let Some(why) = why {
                self.not_comparable(Subject::Capture, Some(socket), why);
            }
            self.abandon(socket);
            self.forget(socket);
        }
    }

    fn forget(&mut self, socket: SocketId) {
        if let Some(connection) = self.live.remove(&socket) {
            let queued: usize = connection.out.queue.iter().map(Vec::len).sum();
            self.waiting = self.waiting.saturating_sub(queued);
            if let Some(id) = connection.id {
                self.ids.remove(&id);
            }
        }
    }

    // ---- small things ----

    fn heard(&mut self, from: Sender) -> &mut Duration {
        match from {
            Sender::Client => &mut self.heard.0,
            Sender::Server => &mut self.heard.1,
        }
    }

    fn own(&self) -> Sender {
        match self.role {
            Role::Server => Sender::Server,
            Role::Client => Sender::Client,
        }
    }

    fn part(&self) -> Part {
        match self.role {
            Role::Server => Part::Server,
            Role::Client => Part::Client,
        }
    }

    fn is_extended(&self) -> bool {
        self.terms.layout == Layout::B
            && TunnelCaps::from_words(&self.terms.channel_caps).contains(TunnelCaps::EXTENDED)
    }

    fn create(&mut self, init: Option<(u16, u32)>) {
        let mut config = Config {
            // The captured client does not answer a PING that it never got.
            ping_interval: None,
            // The owner delivers when tokens show it, which is later than it was.
            memory_budget: usize::MAX / 4,
            ..Config::default()
        };
        if let Some((max_sockets, max_data)) = init {
            config.max_sockets = max_sockets;
            config.max_data = max_data;
        }
        if let Some(Handicap::Window(window)) = self.handicap {
            config.window = window;
        }
        let caps = TunnelCaps::from_words(&self.terms.channel_caps);
        let now = self.now();
        self.channel = Some(Channel::new(self.role, self.terms.header, self.terms.layout, caps, config, now));
        self.drain();
    }

    fn now(&self) -> Instant {
        self.base.checked_add(self.time.saturating_sub(self.start)).unwrap_or(self.base)
    }

    fn tick(&mut self, time: Duration, from: Sender) {
        // Clocks can be set back; a channel's cannot.
        self.time = self.time.max(time);
        *self.heard(from) = self.time;
        let now = self.now();
        let due = self.channel.as_mut().map(|channel| channel.handle_timeout(now));
        if let Some(Err(violation)) = due {
            self.channel_ended(violation.to_string());
        }
        self.drain();
    }

    fn channel_ended(&mut self, text: String) {
        if self.ended.is_none() {
            self.ended = Some(Refusal { time: self.time, text, credit: false, agreed: false });
        }
    }

    fn place(&self, connection: Option<&Connection>) -> Place {
        Place {
            time: Some(self.time.saturating_sub(self.start)),
            stream: Some(self.stream),
            connection: connection.map(|connection| connection.number),
            socket: connection.map(|connection| connection.socket.0),
            service: connection.map(|connection| connection.service.0),
        }
    }

    fn different(
        &mut self,
        subject: Subject,
        socket: Option<SocketId>,
        captured: String,
        today: impl Into<String>,
    ) {
        let place = self.place(socket.and_then(|socket| self.live.get(&socket)));
        self.add(Difference::new(self.part(), subject, place, captured, today));
    }

    fn not_comparable(&mut self, subject: Subject, socket: Option<SocketId>, why: impl Into<String>) {
        let place = self.place(socket.and_then(|socket| self.live.get(&socket)));
        self.add(Difference::not_comparable(self.part(), subject, place, why));
    }

    fn add(&mut self, difference: Difference) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(difference);
        } else {
            self.left_out += 1;
        }
    }

    fn compare_strictly(&mut self) {
        if let Some(Some((captured, today))) = self.strict.as_mut().map(Strict::compare) {
            self.different(Subject::Strict, None, captured, today);
        }
    }

    /// An id that no socket of today's channel has.
    fn unused_id(&self, wanted: SocketId) -> SocketId {
        if self.role == Role::Client || !self.ids.contains_key(&wanted) {
            return wanted;
        }
        let free = (0..u16::MAX).map(SocketId).find(|id| !self.ids.contains_key(id));
        free.unwrap_or(SocketId(u16::MAX))
    }
}

/// INIT, which is compared once both have said it.
#[derive(Debug, Default)]
struct Init {
    today: Option<(u16, u32)>,
    captured: Option<(u16, u32)>,
}

/// What `--strict` compares: every message that the played end says, one by one, with its serial.
#[derive(Debug, Default)]
struct Strict {
    captured: std::collections::VecDeque<String>,
    today: std::collections::VecDeque<String>,
    over: bool,
    count: u64,
}

/// Messages by which one side may be ahead of the other.
const MAX_AHEAD: usize = 10_000;

impl Strict {
    fn captured(&mut self, head: &Head, word: Option<&Word<'_>>, name: Option<&'static str>) {
        self.captured.push_back(strict_line(head.serial, head.kind, word, name));
    }

    fn today(&mut self, serial: Option<u64>, kind: u16, word: Option<&Word<'_>>, name: Option<&'static str>) {
        self.today.push_back(strict_line(serial, kind, word, name));
    }

    /// The first message that is not the same. Behind it, nothing would be where it was.
    fn compare(&mut self) -> Option<(String, String)> {
        if self.over {
            self.captured.clear();
            self.today.clear();
            return None;
        }
        while !self.captured.is_empty() && !self.today.is_empty() {
            let (captured, today) = (self.captured.pop_front()?, self.today.pop_front()?);
            self.count += 1;
            if captured != today {
                self.over = true;
                return Some((format!("message {} is {captured}", self.count), today));
            }
        }
        if self.captured.len().max(self.today.len()) > MAX_AHEAD {
            self.over = true;
            let (captured, today) = (self.captured.len(), self.today.len());
            return Some((format!("{captured} messages more"), format!("{today} messages more")));
        }
        None
    }
}

fn strict_line(
    serial: Option<u64>,
    kind: u16,
    word: Option<&Word<'_>>,
    name: Option<&'static str>,
) -> String {
    let serial = serial.map_or(String::new(), |serial| format!(" serial {serial}"));
    let name = name.unwrap_or("unknown");
    match word {
        Some(Word::Socket(socket, said)) => {
            let said = match said {
                Said::Data(payload) => format!(" {} bytes", payload.len()),
                Said::Token(tokens) | Said::Accept { tokens } => format!(" {tokens} tokens"),
                Said::Open { service, tokens } => format!(" service {} {tokens} tokens", service.0),
                Said::Refuse | Said::Fin | Said::Close | Said::Reset | Said::ClosedAck => String::new(),
            };
            format!("{name} socket {}{said}{serial}", socket.0)
        }
        Some(Word::Map { service, .. } | Word::Remove(service)) => {
            format!("{name} service {}{serial}", service.0)
        }
        Some(Word::Add(add)) => format!("{name} service {}{serial}", add.service.0),
        Some(Word::Init { .. }) | None => format!("{name} ({kind}){serial}"),
    }
}

fn refused(role: Role, refusal: &Refusal, captured: &str) -> (Subject, String, String) {
    let subject = if refusal.credit { Subject::Credit } else { Subject::Message };
    let today =
        format!("the {}'s message is refused, and the socket ended: {}", peer_name(role), refusal.text);
    (subject, format!("the {} {captured}", own_name(role)), today)
}

fn name_of(said: &Said<'_>) -> &'static str {
    match said {
        Said::Open { .. } => "open",
        Said::Accept { .. } => "open_ack",
        Said::Refuse => "open_nack",
        Said::Data(_) => "data",
        Said::Token(_) => "token",
        Said::Fin => "fin",
        Said::Close => "close",
        Said::Reset => "reset",
        Said::ClosedAck => "closed_ack",
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A body that begins with a socket id, with another one.
fn with_id(body: &[u8], id: SocketId) -> Vec<u8> {
    let mut body = body.to_vec();
    if let Some(front) = body.first_chunk_mut::<2>() {
        *front = id.0.to_le_bytes();
    }
    body
}

/// The body of a message that frees a socket which nobody wants any more.
fn last_word(role: Role, phase: Phase, id: SocketId, layout: Layout) -> (u16, Vec<u8>) {
    let mut body = Vec::new();
    let kind = match (role, phase) {
        (Role::Server, Phase::Opening) => {
            let message = ClientMessage::SocketOpenNack { socket: id };
            message.write_body(layout, &mut body);
            message.kind()
        }
        (Role::Server, Phase::Open | Phase::PeerClosed | Phase::Gone) => {
            let message = ClientMessage::SocketClosedAck { socket: id };
            message.write_body(layout, &mut body);
            message.kind()
        }
        (Role::Client, _) => {
            let message = ServerMessage::SocketClosedAck { socket: id };
            message.write_body(&mut body);
            message.kind()
        }
    };
    (kind, body)
}
