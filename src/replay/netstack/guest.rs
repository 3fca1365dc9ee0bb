//! One connection of the captured guest, played to today's netstack.
//!
//! What the guest sends comes from the capture, segment by segment. What it acknowledges does not: today's netstack
//! has other sequence numbers and cuts its stream elsewhere, so the guest's receiving half is played live. It takes what
//! comes in order, as far as the captured guest's window went by then, and acknowledges it at once.
//!
//! All positions here are counted from the sender's SYN, which is 0; so the first byte of payload is at 1.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Duration;

use server_glue::netstack::MacAddress;
use smoltcp::wire::TcpControl;
use spice_proto::tunnel::SocketId;

use super::budget::{Budget, Kept};
use super::frame::{ACK, FIN, Outgoing, PSH, RST, SYN, Tcp};
use super::judge::Finding;
use super::twin::Twin;
use crate::replay::report::{Place, Subject};

/// Captured segments that may wait for today's netstack, on one connection.
const MAX_QUEUE: usize = 65_536;

/// Windows are told to today's netstack in steps of this many bits, where the guest offered to scale them.
const LARGEST_SCALE: u8 = 14;

/// How a connect was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    None,
    /// SYN-ACK.
    Accepted,
    /// RST.
    Refused,
    /// ICMP "destination unreachable" with this code.
    Unreachable(u8),
}

impl Answer {
    pub(super) fn refuses(self) -> bool {
        match self {
            Answer::Refused | Answer::Unreachable(_) => true,
            Answer::None | Answer::Accepted => false,
        }
    }

    fn text(self) -> String {
        match self {
            Answer::None => "the connect was not answered".to_owned(),
            Answer::Accepted => "the connect was accepted (SYN-ACK)".to_owned(),
            Answer::Refused => "the connect was refused (RST)".to_owned(),
            Answer::Unreachable(code) => {
                format!("the connect was answered by ICMP destination unreachable, code {code}")
            }
        }
    }
}

/// A connection of the guest.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    /// When its SYN was captured.
    pub(super) began: Duration,
    /// Number of the captured tunnel socket that it goes with.
    pub(super) socket: Option<u64>,
    /// Where the tunnel's capture has it.
    pub(super) place: Place,
    /// Today's server asked the client for it: the socket's id and the tokens.
    pub(super) opened_today: Option<(SocketId, u32)>,
    mac: MacAddress,
    syn: Syn,
    captured: Captured,
    today: Today,
    /// Captured segments that were not sent yet.
    queue: VecDeque<Step>,
    kept: Kept,
    /// To the guest.
    down: Twin,
    /// Why it cannot be compared.
    incomplete: Option<&'static str>,
}

/// The guest's first segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Syn {
    seq: u32,
    window: u16,
    mss: Option<u16>,
    scale: Option<u8>,
}

/// The connection as the capture shows it, so far.
#[derive(Debug)]
struct Captured {
    answer: Answer,
    /// The server's initial sequence number.
    isn: Option<u32>,
    /// Whether the guest's windows are scaled.
    scaled: bool,
    /// Behind the last that the server sent.
    server_sent: u64,
    /// Behind the last that the guest acknowledged.
    acked: u64,
    /// How far the guest's window goes.
    edge: u64,
    /// Behind the last that the guest sent.
    guest_sent: u64,
    server_fin: bool,
    server_rst: bool,
    guest_fin: bool,
    guest_rst: bool,
    /// The capture shows its end.
    ended: bool,
}

/// The connection with today's netstack.
#[derive(Debug)]
struct Today {
    answer: Answer,
    /// SYNs still to be sent.
    syns: u32,
    isn: Option<u32>,
    /// The server's shift.
    scale: u8,
    /// Whether our windows are scaled.
    scaled: bool,
    /// Behind the last that the guest took.
    taken: u64,
    /// How far the guest said that its window goes, which is a little more than the captured one did: windows are rounded.
    offered: u64,
    /// Behind the last that the guest sent.
    sent: u64,
    /// Behind the last that the server acknowledged.
    acked: u64,
    /// How far the server's window goes.
    edge: u64,
    owes_ack: bool,
    fin: bool,
    rst: bool,
    guest_fin: bool,
    guest_rst: bool,
}

/// A captured segment of the guest that carries more than an acknowledgement.
#[derive(Debug)]
struct Step {
    seq: u64,
    payload: Box<[u8]>,
    fin: bool,
    rst: bool,
    psh: bool,
    /// So much of the server's stream the guest had acknowledged when it sent this.
    after: u64,
}

impl Guest {
    pub(super) fn new(mac: MacAddress, tcp: &Tcp<'_>, began: Duration, budget: &Budget) -> Self {
        Guest {
            from: tcp.from,
            to: tcp.to,
            began,
            socket: None,
            place: Place::default(),
            opened_today: None,
            mac,
            syn: Syn { seq: tcp.seq, window: tcp.window, mss: tcp.mss, scale: tcp.scale },
            captured: Captured {
                answer: Answer::None,
                isn: None,
                scaled: false,
                server_sent: 0,
                acked: 0,
                edge: 1 + u64::from(tcp.window),
                guest_sent: 1,
                server_fin: false,
                server_rst: false,
                guest_fin: false,
                guest_rst: false,
                ended: false,
            },
            today: Today {
                answer: Answer::None,
                syns: 1,
                isn: None,
                scale: 0,
                scaled: false,
                taken: 0,
                offered: 1 + u64::from(tcp.window),
                sent: 1,
                acked: 0,
                edge: 0,
                owes_ack: false,
                fin: false,
                rst: false,
                guest_fin: false,
                guest_rst: false,
            },
            queue: VecDeque::new(),
            kept: budget.account(),
            down: Twin::new(budget),
            incomplete: None,
        }
    }

    // ---- what the capture shows ----

    /// Whether `tcp` is the SYN of this connection again, and not that of another.
    pub(super) fn is_same_syn(&self, tcp: &Tcp<'_>) -> bool {
        self.syn.seq == tcp.seq && self.captured.isn.is_none()
    }

    pub(super) fn syn_again(&mut self) {
        self.today.syns = self.today.syns.saturating_add(1);
    }

    /// A segment of the guest that is no SYN.
    pub(super) fn guest_sent(&mut self, tcp: &Tcp<'_>) {
        let seq = unwrapped(self.captured.guest_sent, self.syn.seq, tcp.seq);
        if tcp.has(ACK)
            && let Some(isn) = self.captured.isn
        {
            let acked = unwrapped(self.captured.acked, isn, tcp.ack).min(self.captured.server_sent);
            let shift = if self.captured.scaled { self.syn.scale.unwrap_or(0) } else { 0 };
            let edge = acked + (u64::from(tcp.window) << shift);
            self.captured.acked = self.captured.acked.max(acked);
            if edge > self.captured.edge {
                self.captured.edge = edge;
                self.today.owes_ack = true;
            }
        }
        if tcp.cut > 0 {
            self.give_up("the capture has only the beginning of a packet of the guest");
            return;
        }
        let end = seq + u64::from(tcp.len());
        self.captured.guest_sent = self.captured.guest_sent.max(end);
        self.captured.guest_fin |= tcp.has(FIN);
        // What a guest says of a connection that is over means nothing.
        let over = self.captured.server_fin && self.captured.guest_fin;
        self.captured.guest_rst |= tcp.has(RST) && !over;
        if tcp.payload.is_empty() && !tcp.has(FIN | RST) || tcp.has(RST) && over {
            return;
        }
        if self.captured.isn.is_none() && !tcp.has(RST) {
            self.give_up("the capture does not show how the connect was answered");
            return;
        }
        if self.queue.len() >= MAX_QUEUE
            || !self.kept.set(self.kept.bytes().saturating_add(tcp.payload.len()))
        {
            self.give_up("the guest sent far more than today's netstack took, which is not kept");
            return;
        }
        self.queue.push_back(Step {
            seq,
            payload: tcp.payload.into(),
            fin: tcp.has(FIN),
            rst: tcp.has(RST),
            psh: tcp.has(PSH),
            after: self.captured.acked,
        });
    }

    /// A segment to the guest.
    pub(super) fn server_sent(&mut self, tcp: &Tcp<'_>) {
        let captured = &mut self.captured;
        if tcp.has(RST) {
            match captured.answer {
                Answer::None => captured.answer = Answer::Refused,
                Answer::Accepted if captured.server_fin && captured.guest_fin || captured.guest_rst => {}
                Answer::Accepted => captured.server_rst = true,
                Answer::Refused | Answer::Unreachable(_) => {}
            }
            return;
        }
        if tcp.has(SYN) {
            if captured.isn.is_none() {
                captured.answer = Answer::Accepted;
                captured.isn = Some(tcp.seq);
                captured.scaled = tcp.scale.is_some() && self.syn.scale.is_some();
                captured.server_sent = 1;
            }
            return;
        }
        let Some(isn) = captured.isn else { return };
        let end = unwrapped(captured.server_sent, isn, tcp.seq) + u64::from(tcp.len());
        captured.server_sent = captured.server_sent.max(end);
        captured.server_fin |= tcp.has(FIN);
    }

    /// ICMP to the guest about its SYN.
    pub(super) fn unreachable(&mut self, code: u8) {
        if self.captured.answer == Answer::None {
            self.captured.answer = Answer::Unreachable(code);
        }
    }

    /// Payload to the guest, in order.
    pub(super) fn captured_down(&mut self, bytes: &[u8]) {
        self.down.captured(bytes);
    }

    /// The capture shows how it ended.
    pub(super) fn ended(&mut self) {
        self.captured.ended = true;
    }

    /// It cannot be compared. The first reason counts.
    pub(super) fn give_up(&mut self, why: &'static str) {
        self.incomplete.get_or_insert(why);
        self.clear_queue();
    }

    // ---- today's netstack ----

    /// The next frame of the guest, if it may be sent already. `force`: whatever it should wait for.
    pub(super) fn next_frame(&mut self, server: MacAddress, force: bool) -> Option<Vec<u8>> {
        if self.today.rst || self.today.guest_rst || self.today.answer.refuses() {
            self.clear_queue();
            self.today.syns = 0;
            return None;
        }
        if self.today.isn.is_none() {
            return self.next_syn(server);
        }
        self.today.syns = 0;
        // A guest does not send again what was acknowledged.
        while let Some(step) = self.queue.front()
            && !step.rst
            && step.end() <= self.today.acked
        {
            self.pop();
        }
        if let Some(step) = self.queue.front()
            && (force || step.after <= self.today.taken)
            && let Some(frame) = self.next_step(server)
        {
            return Some(frame);
        }
        if std::mem::take(&mut self.today.owes_ack) {
            return Some(self.segment(server, self.today.sent, TcpControl::None, &[]));
        }
        None
    }

    fn next_syn(&mut self, server: MacAddress) -> Option<Vec<u8>> {
        if self.today.syns > 0 {
            self.today.syns -= 1;
            let outgoing = Outgoing {
                from: self.from,
                to: self.to,
                seq: self.syn.seq,
                ack: None,
                control: TcpControl::Syn,
                window: self.syn.window,
                mss: self.syn.mss,
                scale: self.syn.scale,
                payload: &[],
            };
            return Some(outgoing.frame(self.mac, server));
        }
        // It gave up before anybody answered.
        if self.captured.isn.is_none() && self.queue.front().is_some_and(|step| step.rst) {
            let step = self.pop()?;
            self.today.guest_rst = true;
            return Some(self.segment(server, step.seq, TcpControl::Rst, &[]));
        }
        None
    }

    /// The first step of the queue, or as much of it as the server's window has room for.
    fn next_step(&mut self, server: MacAddress) -> Option<Vec<u8>> {
        let step = self.queue.front()?;
        let room = usize::try_from(self.today.edge.saturating_sub(step.seq)).unwrap_or(usize::MAX);
        if step.rst {
            let step = self.pop()?;
            self.today.guest_rst = true;
            return Some(self.segment(server, step.seq, TcpControl::Rst, &[]));
        }
        let whole = step.payload.len() + usize::from(step.fin);
        if room >= whole {
            let step = self.pop()?;
            let control = match (step.fin, step.psh) {
                (true, _) => TcpControl::Fin,
                (false, true) => TcpControl::Psh,
                (false, false) => TcpControl::None,
            };
            self.today.guest_fin |= step.fin;
            self.today.sent = self.today.sent.max(step.end());
            return Some(self.segment(server, step.seq, control, &step.payload));
        }
        if room == 0 {
            return None;
        }
        let step = self.queue.front_mut()?;
        let (now, later) = step.payload.split_at_checked(room).unwrap_or((&step.payload, &[]));
        let (now, later): (Box<[u8]>, Box<[u8]>) = (now.into(), later.into());
        let seq = step.seq;
        step.seq += to_u64(now.len());
        step.payload = later;
        self.today.sent = self.today.sent.max(step.seq);
        Some(self.segment(server, seq, TcpControl::None, &now))
    }

    /// A segment of today's netstack.
    pub(super) fn netstack_sends(&mut self, tcp: &Tcp<'_>) {
        let today = &mut self.today;
        if tcp.has(RST) {
            match today.answer {
                Answer::None => today.answer = Answer::Refused,
                Answer::Accepted if today.fin && today.guest_fin || today.guest_rst => {}
                Answer::Accepted => today.rst = true,
                Answer::Refused | Answer::Unreachable(_) => {}
            }
            return;
        }
        if tcp.has(SYN) {
            if today.isn.is_none() {
                today.answer = Answer::Accepted;
                today.isn = Some(tcp.seq);
                today.scaled = tcp.scale.is_some() && self.syn.scale.is_some();
                today.scale = if today.scaled { tcp.scale.unwrap_or(0) } else { 0 };
                today.taken = 1;
                today.acked = 1;
                today.edge = 1 + u64::from(tcp.window);
            }
            today.owes_ack = true;
            return;
        }
        let Some(isn) = today.isn else { return };
        if tcp.has(ACK) {
            let acked = unwrapped(today.acked, self.syn.seq, tcp.ack);
            today.acked = today.acked.max(acked);
            today.edge = today.edge.max(acked + (u64::from(tcp.window) << today.scale));
        }
        today.owes_ack |= tcp.len() > 0;
        let seq = unwrapped(today.taken, isn, tcp.seq);
        let Some(old) = today.taken.checked_sub(seq) else { return };
        let fresh = usize::try_from(old).ok().and_then(|old| tcp.payload.get(old..));
        let Some(fresh) = fresh else { return };
        let room = usize::try_from(today.offered.saturating_sub(today.taken)).unwrap_or(usize::MAX);
        let (fresh, beyond) = fresh.split_at_checked(room).unwrap_or((fresh, &[]));
        if !fresh.is_empty() {
            self.down.today(fresh);
            today.taken += to_u64(fresh.len());
        }
        if tcp.has(FIN) && beyond.is_empty() && !today.fin {
            today.fin = true;
            today.taken += 1;
        }
    }

    /// ICMP of today's netstack about the guest's SYN.
    pub(super) fn unreachable_today(&mut self, code: u8) {
        if self.today.answer == Answer::None {
            self.today.answer = Answer::Unreachable(code);
        }
    }

    // ---- how far it is ----

    /// How a finding names it.
    pub(super) fn name(&self) -> String {
        format!("{} to {}", self.from, self.to)
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete.is_some()
    }

    /// Captured segments wait for something that today's netstack has not done.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The capture shows that the server's network itself refused, or can still show that it asks the client.
    pub(super) fn captured_answer(&self) -> Answer {
        self.captured.answer
    }

    /// Nothing more is to be expected, neither of the capture nor of today's netstack.
    pub(super) fn is_over(&self) -> bool {
        let captured = &self.captured;
        let today = &self.today;
        let over_then =
            captured.ended || captured.server_rst || captured.guest_rst || captured.answer.refuses();
        let over_now = today.rst || today.guest_rst || today.answer.refuses() || today.fin && today.guest_fin;
        over_then && over_now && self.queue.is_empty() && !today.owes_ack
    }

    /// Bytes to the guest that were compared.
    pub(super) fn compared(&self) -> u64 {
        self.down.common()
    }

    /// What is not as it was.
    pub(super) fn judge(&self, strict: bool, over: bool, found: &mut Vec<Finding>) {
        if let Some(why) = self.incomplete {
            found.push(Finding::not_comparable(Subject::Capture, why));
            return;
        }
        let (captured, today) = (&self.captured, &self.today);
        if captured.answer == Answer::None {
            // Whether it would have been answered nobody knows.
            if !captured.guest_rst {
                found.push(Finding::not_comparable(
                    Subject::Open,
                    "the capture does not show how the connect was answered",
                ));
            }
            return;
        }
        // Who refuses without having asked the client refuses for itself. In which way is not for the guest's programs to
        // tell apart, and has changed: RST for a port where nothing is shared, ICMP for an address where nothing is.
        let own_refusal = captured.answer.refuses()
            && today.answer.refuses()
            && self.socket.is_none()
            && self.opened_today.is_none();
        if self.socket.is_none() && captured.answer == Answer::Accepted {
            found.push(Finding::not_comparable(
                Subject::Open,
                "the capture of the tunnel does not show that the client was asked",
            ));
            return;
        }
        if self.socket.is_none() && self.opened_today.is_some() && captured.answer.refuses() {
            found.push(Finding::different(
                Subject::Open,
                format!("{}, and the client was not asked", captured.answer.text()),
                "the client is asked",
            ));
            return;
        }
        if captured.answer != today.answer && (strict || !own_refusal) {
            found.push(Finding::different(Subject::Open, captured.answer.text(), today.answer.text()));
            return;
        }
        if captured.answer != Answer::Accepted {
            return;
        }
        self.judge_bytes(over, found);
        if captured.guest_rst {
            if !today.guest_rst && !today.rst {
                found.push(Finding::different(
                    Subject::End,
                    format!(
                        "the guest reset the connection behind {} bytes to it",
                        captured.acked.saturating_sub(1)
                    ),
                    format!(
                        "only {} bytes came to it, so that it was not yet where it did that",
                        self.down.today_len()
                    ),
                ));
            }
            return;
        }
        if captured.server_rst != today.rst && (today.rst || captured.ended || !over) {
            let text = |rst, fin| match (rst, fin) {
                (true, _) => "the guest's connection was reset (RST)",
                (false, true) => "the guest's connection was ended in order (FIN)",
                (false, false) => "the guest's connection went on",
            };
            found.push(Finding::different(
                Subject::End,
                text(captured.server_rst, captured.server_fin),
                text(today.rst, today.fin),
            ));
            return;
        }
        if captured.server_rst {
            return;
        }
        if captured.server_fin != today.fin && (captured.server_fin || captured.ended) {
            let text = |fin, bytes| match fin {
                true => format!("FIN to the guest behind {bytes} bytes"),
                false => format!("no FIN to the guest, which got {bytes} bytes"),
            };
            found.push(Finding::different(
                Subject::HalfClose,
                text(captured.server_fin, self.down.captured_len()),
                text(today.fin, self.down.today_len()),
            ));
        }
        if self.waits() {
            found.push(Finding::different(
                Subject::Bytes,
                format!("the server took {} bytes of the guest", captured.guest_sent.saturating_sub(1)),
                format!("it took {} and has no room for more", today.acked.saturating_sub(1)),
            ));
        }
    }

    fn judge_bytes(&self, over: bool, found: &mut Vec<Finding>) {
        let (captured, today) = (&self.captured, &self.today);
        if let Some(differ) = self.down.differ() {
            found.push(Finding::bytes("to the guest", differ));
            return;
        }
        if self.down.is_lost() {
            found.push(Finding::not_comparable(
                Subject::Bytes,
                "captured and today's bytes to the guest are too far apart to be compared",
            ));
            return;
        }
        let (then, now) = (self.down.captured_len(), self.down.today_len());
        // What was on its way when one end aborted is lost or not, as it happens; what was acknowledged is not.
        let aborted = captured.guest_rst || captured.server_rst || today.rst;
        let least = if aborted { captured.acked.saturating_sub(1).min(then) } else { then };
        let open = !captured.ended && over;
        if now < least || now > then && !aborted && !open {
            found.push(Finding::different(
                Subject::Bytes,
                format!("{then} bytes to the guest"),
                format!("{now} bytes, equal as far as they go"),
            ));
        }
    }

    fn pop(&mut self) -> Option<Step> {
        let step = self.queue.pop_front()?;
        // Less always fits.
        let _ = self.kept.set(self.kept.bytes().saturating_sub(step.payload.len()));
        Some(step)
    }

    fn clear_queue(&mut self) {
        self.queue = VecDeque::new();
        let _ = self.kept.set(0);
    }

    fn segment(&mut self, server: MacAddress, seq: u64, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        self.today.owes_ack = false;
        let window = self.window();
        let ack = self.today.isn.map(|isn| isn.wrapping_add(low(self.today.taken)));
        let outgoing = Outgoing {
            from: self.from,
            to: self.to,
            seq: self.syn.seq.wrapping_add(low(seq)),
            ack,
            control,
            window,
            mss: None,
            scale: None,
            payload,
        };
        outgoing.frame(self.mac, server)
    }

    /// What the window field says. Rounded up, so that a small window is not taken for a closed one; and a window that was
    /// offered is never taken back.
    fn window(&mut self) -> u16 {
        let room = self.captured.edge.max(self.today.offered).saturating_sub(self.today.taken);
        let shift = if self.today.scaled { self.syn.scale.unwrap_or(0).min(LARGEST_SCALE) } else { 0 };
        let window = u16::try_from(room.div_ceil(1 << shift)).unwrap_or(u16::MAX);
        self.today.offered = self.today.offered.max(self.today.taken + (u64::from(window) << shift));
        window
    }
}

impl Step {
    fn end(&self) -> u64 {
        self.seq + to_u64(self.payload.len()) + u64::from(self.fin)
    }
}

/// The position that a sequence number means: the one that is nearest to `near`.
fn unwrapped(near: u64, isn: u32, number: u32) -> u64 {
    let distance = number.wrapping_sub(isn).wrapping_sub(low(near)).cast_signed();
    near.saturating_add_signed(distance.into())
}

fn low(position: u64) -> u32 {
    let [.., a, b, c, d] = position.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
