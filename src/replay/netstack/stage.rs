//! Where it is played: today's bridge with its netstack, the captured guest before it, the captured client behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use server_glue::bridge::{AwayConfig, Bridge};
use server_glue::netstack::{MacAddress, NetConfig, Netstack};
use spice_proto::base::BaseServerMessage;
use spice_proto::frame::{self, Split};
use spice_proto::tunnel::{ServerMessage, SocketId};

use super::budget::Budget;
use super::frame::{Content, Frame};
use super::guest::Guest;
use super::judge::Finding;
use super::link::{Link, When};
use super::socket::Say;
use super::survey::{Blind, Survey};
use super::tunnel::Tunnel;
use crate::capture::reassembly::{Limits, Reassembler, StreamId};
use crate::replay::Options;
use crate::replay::report::{Difference, Part, Place, Report, Subject};

/// Deadlines of today's code that are served in the pauses of a capture. With a PING each ten seconds it is eleven days.
const MAX_DEADLINES: u64 = 100_000;

/// So many more with each event of the capture.
const MORE_DEADLINES: u64 = 20;

/// Turns that one event of a capture may lead to. A frame and its answers are a turn.
const MAX_TURNS: u32 = 1_000_000;

/// How long today's code may go on behind the capture's end, for what it does by its timers.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// Connections that are over and remembered.
const MAX_PAST: usize = 256;

/// Largest body that today's server may send.
const MAX_BODY: u32 = 2 << 20;

/// See the module's text.
pub(super) struct Stage<'a> {
    pub(super) options: Options,
    pub(super) report: &'a mut Report,
    pub(super) survey: Survey,
    pub(super) bridge: Bridge,
    /// Today's address on the link.
    pub(super) mac: MacAddress,
    pub(super) budget: Budget,
    /// Of the first event.
    base: Option<(Instant, Duration)>,
    pub(super) now: Instant,
    /// The same on the capture's clock.
    pub(super) time: Duration,
    /// The guest's connections that are not over, by number.
    pub(super) guests: BTreeMap<u64, Guest>,
    pub(super) by_pair: BTreeMap<(SocketAddrV4, SocketAddrV4), u64>,
    pub(super) guests_begun: u64,
    /// Addresses of those that were over lately, whose last segments may still come.
    pub(super) past: VecDeque<(SocketAddrV4, SocketAddrV4)>,
    /// Connects for which the captured server has not asked the client (yet).
    pub(super) unasked: VecDeque<u64>,
    /// Those of them that it refused, and until when a SOCKET_OPEN may still turn up.
    pub(super) refused: VecDeque<(Duration, u64)>,
    pub(super) reassembler: Reassembler,
    /// Which connection of the guest a captured stream is, and whether the guest's side is its first.
    pub(super) streams: BTreeMap<StreamId, u64>,
    pub(super) tunnel: Option<Tunnel>,
    pub(super) link: Link,
    /// The connection whose frame today's netstack is being given.
    feeding: Option<u64>,
    /// Connections and sockets that may have something to send.
    pub(super) ready_guests: BTreeSet<u64>,
    pub(super) ready_sockets: BTreeSet<u64>,
    deadlines_left: u64,
    /// Times to come in which messages of the tunnel are missing.
    blind: VecDeque<Blind>,
    /// Until when they are missing now.
    pub(super) blind_until: Option<Duration>,
    /// The clock made too long a leap, and it was said.
    leapt: bool,
    /// Today's code ran in circles, and it was said.
    overrun: bool,
}

impl<'a> Stage<'a> {
    pub(super) fn new(options: &Options, survey: Survey, config: NetConfig, report: &'a mut Report) -> Self {
        let book = survey.book(&config);
        let blind = survey.blind();
        let mac = config.mac;
        Stage {
            options: *options,
            report,
            survey,
            bridge: Bridge::new(Netstack::new(config), book).while_away(AwayConfig::default()),
            mac,
            budget: Budget::new(),
            base: None,
            now: Instant::now(),
            time: Duration::ZERO,
            guests: BTreeMap::new(),
            by_pair: BTreeMap::new(),
            guests_begun: 0,
            past: VecDeque::new(),
            unasked: VecDeque::new(),
            refused: VecDeque::new(),
            reassembler: Reassembler::new(Limits::default()),
            streams: BTreeMap::new(),
            tunnel: None,
            link: Link::default(),
            feeding: None,
            ready_guests: BTreeSet::new(),
            ready_sockets: BTreeSet::new(),
            deadlines_left: MAX_DEADLINES,
            blind: blind.into(),
            blind_until: None,
            leapt: false,
            overrun: false,
        }
    }

    // ---- the clock ----

    /// Lets the time go on to that of an event, and today's code do what falls due until then. A capture's clock that goes
    /// back stands still here.
    pub(super) fn advance_to(&mut self, time: Duration) {
        let (base, start) = *self.base.get_or_insert((self.now, time));
        let Some(target) = base.checked_add(time.saturating_sub(start)) else { return };
        if target < self.now {
            return;
        }
        while let Some(due) = self.bridge.poll_timeout()
            && due <= target
        {
            self.now = self.now.max(due);
            self.time = start + self.now.saturating_duration_since(base);
            if let Err(violation) = self.bridge.handle_timeout(self.now) {
                self.tunnel_broke(&violation.to_string());
            }
            self.settle();
            let Some(left) = self.deadlines_left.checked_sub(1) else {
                self.leap();
                break;
            };
            self.deadlines_left = left;
        }
        self.deadlines_left = self.deadlines_left.saturating_add(MORE_DEADLINES);
        self.now = self.now.max(target);
        self.time = self.time.max(time);
        self.look_for_blindness();
        while let Some((until, number)) = self.refused.front().copied()
            && until < self.time
        {
            self.refused.pop_front();
            if self.guests.get(&number).is_some_and(|guest| guest.socket.is_none()) {
                self.refused_unasked(number);
            }
        }
    }

    /// Knows when messages of the tunnel begin to be missing.
    fn look_for_blindness(&mut self) {
        while let Some(blind) = self.blind.front().copied()
            && blind.after < self.time
        {
            self.blind.pop_front();
            self.blind_until = self.blind_until.max(Some(blind.until));
            self.miss("messages of the tunnel are missing in the capture");
        }
        if self.blind_until.is_some_and(|until| until < self.time) {
            self.blind_until = None;
        }
    }

    /// Time since the capture's first event, for findings.
    pub(super) fn since_start(&self, time: Duration) -> Duration {
        let start = self.options.start.or(self.base.map(|(_, start)| start)).unwrap_or(time);
        time.saturating_sub(start)
    }

    // ---- today's code ----

    /// Gives today's code what it may have now, until nothing moves any more.
    pub(super) fn settle(&mut self) {
        // What once ran in circles will again.
        for _ in 0..if self.overrun { 1000 } else { MAX_TURNS } {
            self.bridge.advance(self.now);
            let mut moved = self.take_outgoing();
            moved |= self.take_frames();
            if let Some(number) = self.ready_guests.first().copied() {
                moved = true;
                if !self.feed_guest(number, false) {
                    self.ready_guests.remove(&number);
                    self.conclude_if_over(number);
                }
            } else if let Some(number) = self.ready_sockets.first().copied() {
                moved = true;
                if !self.feed_socket(number, false) {
                    self.ready_sockets.remove(&number);
                    self.conclude_socket_if_over(number);
                }
            }
            if !moved {
                return;
            }
        }
        if !std::mem::replace(&mut self.overrun, true) {
            self.report.add(Difference::new(
                Part::Netstack,
                Subject::Channel,
                Place { time: Some(self.since_start(self.time)), ..Place::default() },
                "the server came to rest after every event",
                "it goes on for ever without time going by",
            ));
        }
    }

    /// The next frame of one connection. `false`: there is none now.
    fn feed_guest(&mut self, number: u64, force: bool) -> bool {
        let Some(guest) = self.guests.get_mut(&number) else { return false };
        let Some(frame) = guest.next_frame(self.mac, force) else { return false };
        self.feeding = Some(number);
        self.bridge.handle_guest_frame(self.now, &frame);
        // A SOCKET_OPEN that comes now is this connection's.
        self.bridge.advance(self.now);
        self.take_outgoing();
        self.feeding = None;
        true
    }

    /// The next message of the client on one socket. `false`: there is none now.
    fn feed_socket(&mut self, number: u64, force: bool) -> bool {
        let Some(tunnel) = &mut self.tunnel else { return false };
        let Some(socket) = tunnel.sockets.get_mut(&number) else { return false };
        let (Some(id), Some(say)) = (socket.id_today, socket.next(force)) else { return false };
        if let Say::OpenNack = say {
            tunnel.by_today.remove(&id);
        }
        self.say(id, &say);
        true
    }

    /// A message of the client to today's server.
    pub(super) fn say(&mut self, id: SocketId, say: &Say) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let (kind, body) = tunnel.write(id, say);
        self.hear_client(kind, &body);
    }

    /// A message of the client, as it is on the wire.
    pub(super) fn hear_client(&mut self, kind: u16, body: &[u8]) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let frame = tunnel.frame(kind, body);
        let compared = self.report.compared(Part::Netstack);
        compared.messages = compared.messages.saturating_add(1);
        if let Err(violation) = self.bridge.handle_tunnel_frame(self.now, frame) {
            self.tunnel_broke(&violation.to_string());
        }
    }

    /// Takes what today's server says to the client. `false`: nothing.
    fn take_outgoing(&mut self) -> bool {
        let bytes = self.bridge.outgoing().to_vec();
        let mut rest = bytes.as_slice();
        while let Some(tunnel) = &self.tunnel
            && let Ok(Split::Frame { frame, consumed }) = frame::split(tunnel.header(), MAX_BODY, rest)
        {
            rest = rest.get(consumed..).unwrap_or_default();
            match ServerMessage::parse(frame.kind, frame.body) {
                Ok(Some(message)) => self.server_says_today(&message),
                Ok(None) => {
                    if let Ok(Some(BaseServerMessage::Ping { id, timestamp, .. })) =
                        BaseServerMessage::parse(frame.kind, frame.body)
                    {
                        self.pong(id, timestamp);
                    }
                }
                Err(_) => {}
            }
        }
        self.bridge.sent(bytes.len());
        !bytes.is_empty()
    }

    /// The connection that is connecting right now, for a SOCKET_OPEN of today's server.
    pub(super) fn connecting(&self) -> Option<u64> {
        self.feeding
    }

    /// Takes what today's netstack sends to the guest. `false`: nothing.
    fn take_frames(&mut self) -> bool {
        let mut any = false;
        while let Some(card) = self.bridge.poll_guest_frame(self.now) {
            any = true;
            let Some(frame) = Frame::parse(card.bytes) else { continue };
            let number = match frame.content {
                Content::Tcp(tcp) => {
                    let number = self.by_pair.get(&(tcp.to, tcp.from)).copied();
                    if let Some(guest) = number.and_then(|number| self.guests.get_mut(&number)) {
                        guest.netstack_sends(&tcp);
                    }
                    number
                }
                Content::Unreachable { code, source, destination, .. } => {
                    let number = self.by_pair.get(&(source, destination)).copied();
                    if let Some(guest) = number.and_then(|number| self.guests.get_mut(&number)) {
                        guest.unreachable_today(code);
                    }
                    number
                }
                Content::Dhcp(_)
                | Content::ArpRequest { .. }
                | Content::ArpReply { .. }
                | Content::Echo { .. }
                | Content::Other => {
                    self.link.answered(When::Today, &frame);
                    None
                }
            };
            self.ready_guests.extend(number);
        }
        any
    }

    // ---- the end ----

    /// The captures are over.
    pub(super) fn finish(&mut self) {
        self.finish_streams();
        self.settle();
        // Also lets the time pass until which sockets are looked for.
        self.advance_to(self.time.saturating_add(AFTERWARDS));
        // What still waits, waits for something that today's code does not do. The guest and the client went on then.
        loop {
            let guests: Vec<u64> =
                self.guests.iter().filter(|(_, guest)| guest.waits()).map(|(number, _)| *number).collect();
            let sockets: Vec<u64> = self.tunnel.iter().flat_map(Tunnel::waiting).collect();
            let mut moved = false;
            for number in guests {
                moved |= self.feed_guest(number, true);
                self.settle();
            }
            for number in sockets {
                moved |= self.feed_socket(number, true);
                self.settle();
            }
            if !moved {
                break;
            }
        }
        for number in self.guests.keys().copied().collect::<Vec<_>>() {
            self.conclude(number, true);
        }
        self.end_tunnel(true);
        let mut found = Vec::new();
        let survey = &self.survey;
        self.link.judge(self.options.strict, |address| survey.exists(address), &mut found);
        for finding in found {
            self.report.add(finding.difference(Place::default(), "the network"));
        }
        if self.link.questions() == 0 && self.guests_begun == 0 {
            self.not_comparable(
                Place::default(),
                "the capture of the card has no guest that asks for anything",
            );
        }
    }

    /// The guest's connection is over, then and now: what differs is said, and it is forgotten.
    pub(super) fn conclude_if_over(&mut self, number: u64) {
        // While the client may still turn out to have been asked, it is not over.
        if self.guests.get(&number).is_some_and(Guest::is_over) && !self.unasked.contains(&number) {
            self.conclude(number, false);
        }
    }

    pub(super) fn conclude(&mut self, number: u64, over: bool) {
        let Some(mut guest) = self.guests.remove(&number) else { return };
        if self.by_pair.get(&(guest.from, guest.to)) == Some(&number) {
            self.by_pair.remove(&(guest.from, guest.to));
            self.past.push_back((guest.from, guest.to));
            if self.past.len() > MAX_PAST {
                self.past.pop_front();
            }
        }
        self.unasked.retain(|waiting| *waiting != number);
        if guest.is_incomplete()
            && let Some(tunnel) = &mut self.tunnel
            && let Some(socket) = guest.socket.and_then(|socket| tunnel.sockets.get_mut(&socket))
        {
            socket.excuse();
        }
        if guest.socket.is_none() && self.tunnel_is_incomplete() {
            guest.give_up("messages of the tunnel are missing in the capture, which may have been about it");
        }
        let mut found = Vec::new();
        guest.judge(self.options.strict, over, &mut found);
        let place = Place { time: Some(self.since_start(guest.began)), ..guest.place };
        let name = guest.name();
        let comparable = found.iter().all(Finding::is_difference);
        for finding in found {
            self.report.add(finding.difference(place, &name));
        }
        let compared = self.report.compared(Part::Netstack);
        compared.connections = compared.connections.saturating_add(u64::from(comparable));
        compared.bytes_down = compared.bytes_down.saturating_add(guest.compared());
    }

    /// The capture's clock leaps so far that today's timers are not served until then. What is open does not bear that.
    fn leap(&mut self) {
        const LEAP: &str = "the capture's clock makes too long a leap while it is open";
        for guest in self.guests.values_mut() {
            guest.give_up(LEAP);
        }
        for socket in self.tunnel.iter_mut().flat_map(|tunnel| tunnel.sockets.values_mut()) {
            socket.give_up(LEAP);
        }
        if !std::mem::replace(&mut self.leapt, true) {
            let place = Place { time: Some(self.since_start(self.time)), ..Place::default() };
            self.not_comparable(place, "the capture's clock makes too long a leap");
        }
    }

    pub(super) fn not_comparable(&mut self, place: Place, why: &str) {
        self.report.add(Difference::not_comparable(Part::Netstack, Subject::Capture, place, why));
    }
}
