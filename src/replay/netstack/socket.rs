//! One captured tunnel socket, and the client behind it, played to today's server.
//!
//! The client's messages wait until today's server has done what the captured one had done when the client said them:
//! opened the socket, sent as many bytes, said FIN. Its tokens are not passed on as they were, since today's server cuts
//! the guest's bytes into other messages. They return when the captured client had returned those for the same bytes.

use std::collections::VecDeque;
use std::time::Duration;

use spice_proto::tunnel::{ServiceId, SocketId};

use super::budget::{Budget, Kept};
use super::judge::Finding;
use super::twin::Twin;
use crate::replay::report::Subject;

/// Captured messages of the client that may wait, and messages of a server that may be without their token, on one socket.
const MAX_QUEUE: usize = 65_536;

/// A captured socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) number: u64,
    pub(super) id: SocketId,
    pub(super) service: ServiceId,
    pub(super) opened: Duration,
    /// Number of the guest's connection that it goes with.
    pub(super) guest: Option<u64>,
    /// How a finding names it.
    pub(super) name: String,
    /// What today's server calls it.
    pub(super) id_today: Option<SocketId>,
    captured: Said,
    client: Client,
    today: Said,
    /// The client's messages that were not passed on yet.
    queue: VecDeque<Held>,
    kept: Kept,
    /// Of the messages whose tokens the captured client did not return: behind which byte each ends.
    unreturned: VecDeque<u64>,
    /// So many bytes the captured client returned the tokens for.
    returned: u64,
    /// As `unreturned`, of today's server.
    unreturned_today: VecDeque<u64>,
    /// DATA that today's server may send.
    credit_today: u64,
    /// DATA that today's server takes.
    grant: u64,
    up: Twin,
    incomplete: Option<&'static str>,
    /// It cannot be compared, and that is said elsewhere.
    excused: bool,
    /// It is over with the captured server, and with today's.
    freed: bool,
    freed_today: bool,
}

/// What a server said on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Said {
    bytes: u64,
    fin: bool,
    close: bool,
}

/// What the captured client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Client {
    accepted: bool,
    refused: bool,
    fin: bool,
    closed: bool,
    reset: bool,
}

/// A message of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Say {
    OpenAck(u32),
    OpenNack,
    Data(Box<[u8]>),
    Fin,
    Closed,
    Reset,
    Token(u32),
    ClosedAck,
}

#[derive(Debug)]
struct Held {
    say: Say,
    /// What the captured server had said by then.
    after: Said,
}

impl Socket {
    pub(super) fn new(
        number: u64,
        (id, service): (SocketId, ServiceId),
        opened: Duration,
        budget: &Budget,
    ) -> Self {
        Socket {
            number,
            id,
            service,
            opened,
            guest: None,
            name: "a connection".to_owned(),
            id_today: None,
            captured: Said::default(),
            client: Client::default(),
            today: Said::default(),
            queue: VecDeque::new(),
            kept: budget.account(),
            unreturned: VecDeque::new(),
            returned: 0,
            unreturned_today: VecDeque::new(),
            credit_today: 0,
            grant: 0,
            up: Twin::new(budget),
            incomplete: None,
            excused: false,
            freed: false,
            freed_today: false,
        }
    }

    // ---- what the capture shows ----

    pub(super) fn client_says(&mut self, say: Say) {
        let payload = match &say {
            Say::OpenAck(_) => {
                self.client.accepted = true;
                0
            }
            Say::OpenNack => {
                self.client.refused = true;
                self.freed = true;
                0
            }
            Say::Data(payload) => payload.len(),
            Say::Fin => {
                self.client.fin = true;
                0
            }
            Say::Closed => {
                self.client.closed = true;
                0
            }
            Say::Reset => {
                self.client.reset = true;
                0
            }
            Say::Token(tokens) => {
                for _ in 0..*tokens {
                    let Some(end) = self.unreturned.pop_front() else { break };
                    self.returned = end;
                }
                return;
            }
            // Today's CLOSE is answered when it comes.
            Say::ClosedAck => {
                self.freed = true;
                return;
            }
        };
        if self.freed_today {
            return;
        }
        if self.queue.len() >= MAX_QUEUE || !self.kept.set(self.kept.bytes().saturating_add(payload)) {
            self.give_up("the client sent far more than today's server took, which is not kept");
            return;
        }
        self.queue.push_back(Held { say, after: self.captured });
    }

    pub(super) fn captured_data(&mut self, payload: &[u8]) {
        self.up.captured(payload);
        self.captured.bytes = self.up.captured_len();
        if self.unreturned.len() >= MAX_QUEUE {
            self.give_up("the captured server sent far more messages than it could have had credit for");
            return;
        }
        self.unreturned.push_back(self.captured.bytes);
    }

    pub(super) fn captured_fin(&mut self) {
        self.captured.fin = true;
    }

    pub(super) fn captured_close(&mut self) {
        self.captured.close = true;
    }

    pub(super) fn captured_closed_ack(&mut self) {
        self.freed = true;
    }

    /// It cannot be compared. The first reason counts.
    pub(super) fn give_up(&mut self, why: &'static str) {
        self.incomplete.get_or_insert(why);
    }

    /// It cannot be compared for a reason that its connection tells.
    pub(super) fn excuse(&mut self) {
        self.excused = true;
    }

    // ---- today's server ----

    pub(super) fn opened_today(&mut self, id: SocketId, tokens: u32) {
        self.id_today = Some(id);
        self.grant = tokens.into();
    }

    pub(super) fn today_data(&mut self, payload: &[u8]) {
        self.up.today(payload);
        self.today.bytes = self.up.today_len();
        self.credit_today = self.credit_today.saturating_sub(1);
        // No more than it was granted.
        self.unreturned_today.push_back(self.today.bytes);
    }

    pub(super) fn today_fin(&mut self) {
        self.today.fin = true;
    }

    pub(super) fn today_token(&mut self, tokens: u32) {
        self.grant = self.grant.saturating_add(tokens.into());
    }

    /// CLOSE, which is to be answered.
    pub(super) fn today_close(&mut self) {
        self.today.close = true;
        self.free_today();
    }

    pub(super) fn today_closed_ack(&mut self) {
        self.free_today();
    }

    fn free_today(&mut self) {
        self.freed_today = true;
        self.queue = VecDeque::new();
        // Nothing always fits.
        let _ = self.kept.set(0);
    }

    /// What the client says to today's server now. `force`: whatever it should wait for.
    pub(super) fn next(&mut self, force: bool) -> Option<Say> {
        if self.freed_today || self.id_today.is_none() {
            return None;
        }
        if let Some(tokens) = self.tokens() {
            return Some(Say::Token(tokens));
        }
        let held = self.queue.front()?;
        let there = held.after.bytes <= self.today.bytes && (self.today.fin || !held.after.fin);
        let is_data = match held.say {
            Say::Data(_) => true,
            Say::OpenAck(_)
            | Say::OpenNack
            | Say::Fin
            | Say::Closed
            | Say::Reset
            | Say::Token(_)
            | Say::ClosedAck => false,
        };
        if is_data && self.grant == 0 || !force && !there {
            return None;
        }
        let Held { say, .. } = self.queue.pop_front()?;
        match &say {
            Say::OpenAck(tokens) => self.credit_today = (*tokens).into(),
            Say::OpenNack => self.free_today(),
            Say::Data(payload) => {
                self.grant -= 1;
                let _ = self.kept.set(self.kept.bytes().saturating_sub(payload.len()));
            }
            Say::Fin | Say::Closed | Say::Reset | Say::Token(_) | Say::ClosedAck => {}
        }
        Some(say)
    }

    /// Tokens to return: for messages whose bytes the captured client had returned the tokens for, and one where today's
    /// server has used up its credit with less than the captured one sent: that had credit for it.
    fn tokens(&mut self) -> Option<u32> {
        let mut tokens = 0;
        while self.unreturned_today.front().is_some_and(|end| *end <= self.returned) {
            self.unreturned_today.pop_front();
            tokens += 1;
        }
        if tokens == 0 && self.credit_today == 0 && self.today.bytes < self.captured.bytes {
            tokens = u32::from(self.unreturned_today.pop_front().is_some());
        }
        self.credit_today = self.credit_today.saturating_add(tokens.into());
        (tokens > 0).then_some(tokens)
    }

    // ---- how far it is ----

    pub(super) fn is_freed(&self) -> bool {
        self.freed
    }

    pub(super) fn is_over(&self) -> bool {
        self.freed && self.freed_today
    }

    /// Messages of the client wait for something that today's server has not done.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes from the guest that were compared.
    pub(super) fn compared(&self) -> u64 {
        self.up.common()
    }

    /// What is not as it was. `over`: because the capture, or the channel, is over.
    pub(super) fn judge(&self, over: bool, found: &mut Vec<Finding>) {
        if self.excused {
            return;
        }
        if let Some(why) = self.incomplete {
            found.push(Finding::not_comparable(Subject::Capture, why));
            return;
        }
        if self.guest.is_none() {
            found.push(Finding::not_comparable(
                Subject::Capture,
                "the capture of the card does not have the guest's connect",
            ));
            return;
        }
        if self.id_today.is_none() {
            found.push(Finding::different(
                Subject::Open,
                "the server asked the client to connect",
                "the client is not asked",
            ));
            return;
        }
        if self.client.refused {
            return;
        }
        let aborted_then =
            self.captured.close || self.client.reset || self.client.closed && !self.captured.fin;
        let aborted_now = self.today.close;
        if let Some(differ) = self.up.differ() {
            found.push(Finding::bytes("from the guest", differ));
        } else if self.up.is_lost() {
            found.push(Finding::not_comparable(
                Subject::Bytes,
                "captured and today's bytes from the guest are too far apart to be compared",
            ));
        } else {
            let (then, now) = (self.up.captured_len(), self.up.today_len());
            let open = !self.freed && over;
            // An abort loses what was on its way, or not, as it happens.
            if !aborted_then && (now < then || now > then && !open) {
                found.push(Finding::different(
                    Subject::Bytes,
                    format!("{then} bytes from the guest"),
                    format!("{now} bytes, equal as far as they go"),
                ));
            }
        }
        // CLOSE and CLOSED cross as it happens.
        if aborted_now != self.captured.close && !self.client.closed && !self.client.reset {
            let text = |close| {
                if close {
                    "the server aborted the socket (CLOSE)"
                } else {
                    "the server did not abort the socket"
                }
            };
            found.push(Finding::different(Subject::End, text(self.captured.close), text(aborted_now)));
        } else if self.captured.fin != self.today.fin
            && !aborted_then
            && !(over && !self.freed && self.today.fin)
        {
            let text = |fin, bytes| match fin {
                true => format!("the server said FIN behind {bytes} bytes"),
                false => format!("the server did not say FIN, and sent {bytes} bytes"),
            };
            found.push(Finding::different(
                Subject::HalfClose,
                text(self.captured.fin, self.captured.bytes),
                text(self.today.fin, self.today.bytes),
            ));
        }
        if self.freed && !self.freed_today && !aborted_then {
            found.push(Finding::different(Subject::End, "the socket's id became free again", "it did not"));
        }
        if self.waits() && !self.freed_today {
            found.push(Finding::different(
                Subject::Credit,
                "the server took all that the client said",
                format!("{} messages of the client still wait for it", self.queue.len()),
            ));
        }
    }
}
