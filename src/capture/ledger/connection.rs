//! One use of a socket id, and the credit of its two directions.

use std::net::SocketAddr;
use std::time::Duration;

use spice_proto::names::Sender;
use spice_proto::tunnel::{ServiceId, SocketId};

use super::ConnectionNumber;
use crate::capture::dissect::End;

/// One use of a socket id: a connection of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its number.
    pub number: ConnectionNumber,
    /// Its socket id.
    pub socket: SocketId,
    /// Where to; `None` if the capture began later than the connection.
    pub service: Option<ServiceId>,
    /// Where to, as the guest sees it; `None` if the capture does not show it.
    pub destination: Option<SocketAddr>,
    /// SOCKET_OPEN; the first message, if the capture does not have that.
    pub opened: Duration,
    /// The client's answer.
    pub answer: Answer,
    /// From the guest to the service.
    pub up: Direction,
    /// From the service to the guest.
    pub down: Direction,
    /// SOCKET_CLOSE, the server's abort or end.
    pub close: Option<Duration>,
    /// SOCKET_CLOSED, the client's abort or end.
    pub closed: Option<Duration>,
    /// SOCKET_RESET.
    pub reset: Option<Duration>,
    /// When the id became free again: the last acknowledgement, or the refusal.
    pub freed: Option<Duration>,
    /// When the tunnel itself ended, if the connection was not over by then.
    pub lost: Option<Duration>,
    /// Whether the capture misses part of it, so that nothing can be concluded from what is not there.
    pub incomplete: bool,
}

/// What the client said to SOCKET_OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    None,
    /// SOCKET_OPEN_ACK.
    Accepted {
        /// When.
        at: Duration,
    },
    /// SOCKET_OPEN_NACK.
    Refused {
        /// When.
        at: Duration,
    },
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// The client did not reach the service.
    Refused,
    /// Both directions ended and everything was delivered.
    Clean,
    /// The guest's end aborted, or the server did so for it.
    Guest,
    /// The service's end aborted, or the client did so for it.
    Service,
    /// The tunnel ended while the connection lived.
    TunnelEnded,
    /// The capture does not show it, or it lives.
    NotSeen,
}

impl Ending {
    /// For people: `closed`, `reset by the guest`, and so on.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Refused => "refused",
            Ending::Clean => "closed",
            Ending::Guest => "aborted by the guest",
            Ending::Service => "aborted by the service",
            Ending::TunnelEnded => "lost with the tunnel",
            Ending::NotSeen => "end not seen",
        }
    }

    /// For machines: one word.
    pub fn key(self) -> &'static str {
        match self {
            Ending::Refused => "refused",
            Ending::Clean => "closed",
            Ending::Guest => "guest_aborted",
            Ending::Service => "service_aborted",
            Ending::TunnelEnded => "tunnel_ended",
            Ending::NotSeen => "not_seen",
        }
    }
}

/// One direction of a connection: what was sent, and with what credit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Direction {
    /// Bytes of payload.
    pub bytes: u64,
    /// SOCKET_DATA messages.
    pub messages: u64,
    /// First and last SOCKET_DATA.
    pub first: Option<Duration>,
    /// Last SOCKET_DATA.
    pub last: Option<Duration>,
    /// SOCKET_FIN.
    pub fin: Option<Duration>,
    /// Whether all grants and all uses were seen, so that `credit` is right. Without it there are neither stalls nor
    /// overruns.
    pub counted: bool,
    /// Credit of the sender now: granted and not used. Below 0 after overruns.
    pub credit: i64,
    /// All tokens that the sender was granted, the first grant included.
    pub granted: u64,
    /// How often its credit was used up while the connection lived, until a TOKEN or until the connection ended. Not where
    /// the sender's FIN came next: then it had nothing more to say.
    pub stalls: u64,
    /// For how long altogether.
    pub stalled: Duration,
    /// The longest.
    pub longest_stall: Duration,
    /// Since when it has no credit.
    pub stalled_since: Option<Duration>,
    /// SOCKET_DATA that were sent without credit.
    pub overruns: u64,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    pub(super) socket: SocketId,
    pub(super) service: Option<ServiceId>,
    pub(super) destination: Option<SocketAddr>,
    /// What SOCKET_OPEN grants; `None` if it was not captured.
    pub(super) tokens: Option<u32>,
}

/// What follows from a message.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// What is wrong with it; follows behind `NAME on socket N`.
    pub(super) remark: Option<String>,
    /// The id is free again.
    pub(super) freed: bool,
}

impl Connection {
    pub(super) fn new(number: ConnectionNumber, time: Duration, begin: Begin) -> Self {
        let counted = begin.tokens.is_some();
        let mut down = Direction { counted, ..Direction::default() };
        down.add(begin.tokens.unwrap_or_default());
        Self {
            number,
            socket: begin.socket,
            service: begin.service,
            destination: begin.destination,
            opened: time,
            answer: Answer::None,
            up: Direction { counted, ..Direction::default() },
            down,
            close: None,
            closed: None,
            reset: None,
            freed: None,
            lost: None,
            incomplete: !counted,
        }
    }

    /// How it ended.
    pub fn ending(&self) -> Ending {
        if let Answer::Refused { .. } = self.answer {
            return Ending::Refused;
        }
        let by = |fin: Option<Duration>, end: Duration| fin.is_some_and(|fin| fin <= end);
        let service = [self.closed, self.reset].into_iter().flatten().min();
        match (self.close, service) {
            (None, None) if self.lost.is_some() => Ending::TunnelEnded,
            (None, None) => Ending::NotSeen,
            (Some(close), service) if service.is_none_or(|service| close <= service) => {
                if by(self.up.fin, close) && by(self.down.fin, close) { Ending::Clean } else { Ending::Guest }
            }
            // CLOSED behind the guest's FIN says that the service has ended too, without a FIN of its own.
            (_, Some(closed)) if self.reset.is_none() && by(self.up.fin, closed) => Ending::Clean,
            (_, _) => Ending::Service,
        }
    }

    /// When it was over: the first of its ends to say so, the refusal, or the tunnel's end.
    pub fn ended(&self) -> Option<Duration> {
        let refused = match self.answer {
            Answer::Refused { at } => Some(at),
            Answer::None | Answer::Accepted { .. } => None,
        };
        [refused, self.close, self.closed, self.reset, self.lost].into_iter().flatten().min()
    }

    /// How long the client took to answer.
    pub fn time_to_open(&self) -> Option<Duration> {
        match self.answer {
            Answer::None => None,
            Answer::Accepted { at } | Answer::Refused { at } => at.checked_sub(self.opened),
        }
    }

    /// The direction that one end sends in.
    pub fn direction(&self, from: Sender) -> &Direction {
        match from {
            Sender::Server => &self.up,
            Sender::Client => &self.down,
        }
    }

    fn direction_mut(&mut self, from: Sender) -> &mut Direction {
        match from {
            Sender::Server => &mut self.up,
            Sender::Client => &mut self.down,
        }
    }

    /// Whether CLOSE and CLOSED crossed.
    pub(super) fn crossed(&self) -> bool {
        self.close.is_some() && self.over_for(Sender::Client)
    }

    pub(super) fn accepted(&mut self, time: Duration, tokens: u32) -> Step {
        if let Some(again) = self.answered_again() {
            return again;
        }
        self.answer = Answer::Accepted { at: time };
        self.up.add(tokens);
        if self.is_alive() {
            for direction in [&mut self.up, &mut self.down] {
                direction.look_for_stall(time);
            }
        }
        Step::default()
    }

    pub(super) fn refused(&mut self, time: Duration) -> Step {
        if let Some(again) = self.answered_again() {
            return again;
        }
        self.answer = Answer::Refused { at: time };
        Step { freed: true, ..Step::default() }
    }

    pub(super) fn data(&mut self, time: Duration, from: Sender, len: usize, limit: Option<u32>) -> Step {
        let out_of_order = self.out_of_order(from).or_else(|| {
            self.direction(from).fin.is_some().then(|| "comes behind its sender's socket_fin".to_owned())
        });
        let alive = self.is_alive() && self.is_accepted();
        let direction = self.direction_mut(from);
        let overrun = direction.send(time, len);
        if alive {
            direction.look_for_stall(time);
        }
        let credit = direction.credit;
        if let Some(limit) = limit.filter(|limit| u64::try_from(len).is_ok_and(|len| len > u64::from(*limit)))
        {
            return Step::remark(format!("has {len} bytes, while init allows {limit}"));
        }
        match self.remark(out_of_order) {
            Some(text) => Step::remark(text),
            None if overrun => Step::remark(format!("comes without credit, {} beyond it", credit.abs())),
            None => Step::default(),
        }
    }

    pub(super) fn token(&mut self, time: Duration, from: Sender, tokens: u32) -> Step {
        let remark = match self.answer {
            Answer::None => Some("comes before the answer to socket_open".to_owned()),
            Answer::Accepted { .. } | Answer::Refused { .. } => {
                self.over_for(from).then(|| self.behind(from))
            }
        };
        let remark = self.remark(remark);
        let to = match from {
            Sender::Server => Sender::Client,
            Sender::Client => Sender::Server,
        };
        let direction = self.direction_mut(to);
        direction.add(tokens);
        direction.refreshed(time);
        let credit = direction.credit;
        let too_much = (direction.counted && credit > i64::from(u32::MAX))
            .then(|| format!("of {tokens} raises the credit to {credit}, which is more than 32 bits hold"));
        Step { remark: remark.or(too_much), freed: false }
    }

    pub(super) fn fin(&mut self, time: Duration, from: Sender) -> Step {
        let remark = self
            .out_of_order(from)
            .or_else(|| self.direction(from).fin.is_some().then(|| "comes a second time".to_owned()));
        let remark = self.remark(remark);
        let direction = self.direction_mut(from);
        direction.fin.get_or_insert(time);
        direction.stalled_since = None;
        Step { remark, freed: false }
    }

    pub(super) fn close(&mut self, time: Duration) -> Step {
        let remark = self.remark(self.close.map(|_| "comes a second time".to_owned()));
        self.close.get_or_insert(time);
        self.stop(time);
        Step { remark, freed: false }
    }

    pub(super) fn closed(&mut self, time: Duration) -> Step {
        let remark = self.remark(self.over_for(Sender::Client).then(|| self.behind(Sender::Client)));
        self.closed.get_or_insert(time);
        self.stop(time);
        Step { remark, freed: false }
    }

    pub(super) fn reset(&mut self, time: Duration) -> Step {
        let remark = self.remark(self.over_for(Sender::Client).then(|| self.behind(Sender::Client)));
        self.reset.get_or_insert(time);
        self.stop(time);
        Step { remark, freed: false }
    }

    /// The acknowledgement of the other end's last word. Where CLOSE and CLOSED crossed, the client's ends it.
    pub(super) fn closed_ack(&mut self, time: Duration, from: Sender) -> Step {
        self.stop(time);
        let (heard, word) = match from {
            Sender::Server => (self.over_for(Sender::Client), "socket_closed"),
            Sender::Client => (self.close.is_some(), "socket_close"),
        };
        if from == Sender::Server && self.crossed() {
            return Step::default();
        }
        if heard || self.incomplete {
            return Step { freed: true, ..Step::default() };
        }
        Step::remark(format!("comes without a {word} to acknowledge"))
    }

    /// From now on it is not known what was granted and used, nor what else was said.
    pub(super) fn lose_count(&mut self) {
        self.incomplete = true;
        for direction in [&mut self.up, &mut self.down] {
            direction.counted = false;
            direction.stalled_since = None;
        }
    }

    /// The tunnel ended, or nothing more is seen of the connection.
    pub(super) fn lose(&mut self, time: Duration, how: End) {
        match how {
            End::Closed | End::Reset(_) => self.lost = Some(time),
            End::CaptureOver => self.incomplete = true,
        }
        self.stop(time);
    }

    /// Neither end has said its last word.
    fn is_alive(&self) -> bool {
        self.ended().is_none()
    }

    fn is_accepted(&self) -> bool {
        match self.answer {
            Answer::Accepted { .. } => true,
            Answer::None | Answer::Refused { .. } => false,
        }
    }

    /// Stalls end with the connection.
    fn stop(&mut self, time: Duration) {
        for direction in [&mut self.up, &mut self.down] {
            direction.end_stall(time);
        }
    }

    fn over_for(&self, end: Sender) -> bool {
        match end {
            Sender::Server => self.close.is_some(),
            Sender::Client => self.closed.is_some() || self.reset.is_some(),
        }
    }

    fn behind(&self, end: Sender) -> String {
        let last = match end {
            Sender::Server => "socket_close",
            Sender::Client if self.reset.is_some() => "socket_reset",
            Sender::Client => "socket_closed",
        };
        format!("comes behind its sender's {last}")
    }

    /// What is wrong with DATA or FIN from one end now.
    fn out_of_order(&self, from: Sender) -> Option<String> {
        if self.over_for(from) {
            return Some(self.behind(from));
        }
        match self.answer {
            Answer::None => Some("comes before the answer to socket_open".to_owned()),
            Answer::Accepted { .. } | Answer::Refused { .. } => None,
        }
    }

    fn answered_again(&self) -> Option<Step> {
        match self.answer {
            Answer::None => None,
            Answer::Accepted { .. } | Answer::Refused { .. } => {
                Some(Step { remark: self.remark(Some("comes a second time".to_owned())), freed: false })
            }
        }
    }

    /// Nothing is remarked about what is not seen as a whole.
    fn remark(&self, text: Option<String>) -> Option<String> {
        text.filter(|_| !self.incomplete)
    }
}

impl Direction {
    fn add(&mut self, tokens: u32) {
        self.credit = self.credit.saturating_add(i64::from(tokens));
        self.granted = self.granted.saturating_add(u64::from(tokens));
    }

    /// Books a SOCKET_DATA. `true`: there was no credit for it.
    fn send(&mut self, time: Duration, len: usize) -> bool {
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        self.first.get_or_insert(time);
        self.last = Some(time);
        self.credit = self.credit.saturating_sub(1);
        let overrun = self.counted && self.credit < 0;
        if overrun {
            self.overruns = self.overruns.saturating_add(1);
        }
        overrun
    }

    fn look_for_stall(&mut self, time: Duration) {
        if self.counted && self.credit <= 0 && self.fin.is_none() {
            self.stalled_since.get_or_insert(time);
        }
    }

    /// Credit came.
    fn refreshed(&mut self, time: Duration) {
        if self.credit > 0 {
            self.end_stall(time);
        }
    }

    fn end_stall(&mut self, time: Duration) {
        if let Some(since) = self.stalled_since.take() {
            let lasted = time.saturating_sub(since);
            self.stalls = self.stalls.saturating_add(1);
            self.stalled = self.stalled.saturating_add(lasted);
            self.longest_stall = self.longest_stall.max(lasted);
        }
    }
}

impl Step {
    fn remark(text: String) -> Self {
        Step { remark: Some(text), freed: false }
    }
}
