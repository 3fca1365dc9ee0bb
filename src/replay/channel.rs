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
//! still before the hole was noticed, nor what was held back meanwhile. Connections that begin behind it are.

mod connection;
mod names;
mod owner;
mod peer;
mod strict;
mod today;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spice_proto::link::TunnelCaps;
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage, ServiceId, SocketId};
use tunnel_channel::{Channel, Config, Role};

use self::connection::{Connection, Phase, Refusal};
use self::names::Names;
use self::strict::Strict;
use super::report::{Compared, Difference, Part, Place, Report, Subject, Verdict};
use super::story::{Said, Word, compare, own_name, peer_name};
use super::{Handicap, Options};
use crate::capture::dissect::{Body, End, Head, Hole, Message, Terms};
use crate::describe;

/// Bytes that may wait for credit on one channel. A capture in which more do is not worth its memory.
const MAX_WAITING: usize = 16 << 20;

/// Why a connection is not opened.
const NO_SERVICE: &str = "its service may have been announced in a hole";
const HELD_BACK: &str =
    "it was opened while a hole was waited for, and is not in order with what the client said";

/// Findings that are kept until the end of the channel, since a hole may be noticed that spoils them.
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
    names: Names,
    opened: u64,
    waiting: usize,
    /// Why today's channel is over, if it found a fault.
    ended: Option<Refusal>,
    /// The session goes on elsewhere, or nothing more of it is understood.
    over: bool,
    holed: bool,
    /// The end of which a hole was noticed last, and when. What it says at that very time had to wait for that, and is behind what
    /// the other end answered to it.
    held_back: Option<(Sender, Duration)>,
    /// When the client was last heard, and the server.
    heard: (Duration, Duration),
    findings: Vec<Difference>,
    left_out: u64,
    compared: Compared,
    /// What today's channel said about services and names, as number and body, until the owner has looked at it.
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
            names: Names::default(),
            opened: 0,
            waiting: 0,
            ended: None,
            over: false,
            holed: false,
            held_back: None,
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
            Body::TunnelServer(message) => Word::of_server(message),
            Body::TunnelClient(message) => Word::of_client(message),
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
                // The channel answers PING, PROBE and SET_ACK by itself, and no connection depends on it.
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
        let before = self.findings.len();
        self.findings.retain(|finding| {
            finding.verdict != Verdict::Different || finding.place.time.is_none_or(|at| at < since)
        });
        let untrue = before.saturating_sub(self.findings.len());
        self.time = time;
        self.holed = true;
        self.held_back = Some((from, time));
        let missing = hole.missing.map_or("an unknown number of".to_owned(), |n| n.to_string());
        let mut why = format!("a hole: {missing} bytes of the {} are not in the capture", from.name());
        if untrue > 0 {
            why = format!("{why}; {untrue} differences before it was noticed are not believed");
        }
        // Judged by one end alone, today's channel may have ended; it cannot be brought to where the captured one was.
        let ended_within = self.ended.as_ref().is_some_and(|ended| ended.time >= heard);
        self.over = !hole.resumed || ended_within || self.channel.is_none();
        if self.over {
            why.push_str("; nothing behind it is compared");
        }
        self.not_comparable(Subject::Capture, None, why);
        self.drop_all(Some("a hole is in it"));
        self.names_lost();
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
            _ if connection.given_up => {}
            // The channel's own end may only follow from it.
            (Some(refusal), _) if self.ended.is_some() && !refusal.agreed => {
                found.push(refused(self.role, refusal, "took it"));
            }
            _ if self.ended.is_some() => {}
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

    /// Whether a SOCKET_OPEN that comes now was held back behind a hole.
    fn is_held_back(&self) -> bool {
        self.held_back.is_some_and(|(from, at)| from == Sender::Server && self.time <= at)
    }

    /// A connection that cannot be compared from its beginning. It is never opened today.
    fn not_opened(&mut self, number: u64, socket: SocketId, service: ServiceId, why: &str) {
        let place = Place {
            connection: Some(number),
            socket: Some(socket.0),
            service: Some(service.0),
            ..self.place(None)
        };
        self.add(Difference::not_comparable(self.part(), Subject::Open, place, why));
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
        let config = Config::default();
        let caps = TunnelCaps::from_words(&self.terms.channel_caps);
        let mut config = Config {
            // The captured client does not answer a PING that it never got.
            ping_interval: None,
            // Nor does the captured server answer a PROBE. Its PINGs may be far apart, where the client asked by itself.
            dead_after: if caps.contains(TunnelCaps::PROBE) { Duration::MAX } else { config.dead_after },
            // The owner delivers when tokens show it, which is later than it was.
            memory_budget: usize::MAX / 4,
            // Nor are the two as far apart as they were.
            max_window: 0,
            ..config
        };
        if let Some((max_sockets, max_data)) = init {
            config.max_sockets = max_sockets;
            config.max_data = max_data;
        }
        if let Some(Handicap::Window(window)) = self.handicap {
            config.window = window;
        }
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
}

/// INIT, which is compared once both have said it.
#[derive(Debug, Default)]
struct Init {
    today: Option<(u16, u32)>,
    captured: Option<(u16, u32)>,
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
