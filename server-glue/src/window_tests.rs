//! What we send arrives, whatever the guest does with its window and whatever gets lost on the way.

use std::time::{Duration, Instant};

use crate::netstack::NetEvent;
use crate::script::{ACK, FIN, PSH, RST, Script, Tcp, read_tcp, tcp};

const SECOND: Duration = Duration::from_secs(1);

/// The guest's, as [`Script::establish`] announces it.
const SCALE: u32 = 7;

/// The guest of [`a_guest_that_takes_less_than_it_offered`] has its window open again: the octets that it dropped must come,
/// though it says nothing unless it is asked.
#[track_caller]
fn expect_rest(script: &mut Script, from: u32, data: &[u8]) {
    let start = script.now;
    let mut next = from;
    let end = from.wrapping_add(data.len() as u32);
    while next != end {
        let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) else {
            let due = script.net.poll_timeout().expect("a timer runs while octets are not acknowledged");
            assert!(due - start < 5 * SECOND, "octets {next}..{end} are not sent again");
            script.pass(due - script.now);
            continue;
        };
        let segment = read_tcp(&frame);
        if segment.seq == next {
            let at = next.wrapping_sub(from) as usize;
            assert_eq!(segment.data, data[at..at + segment.data.len()]);
            next = next.wrapping_add(segment.data.len() as u32);
        }
        if !segment.data.is_empty() {
            script.send_tcp(tcp(ACK, 1001, next));
        }
    }
}

/// A connection whose guest took 1460 octets of 2000, dropped the others, and shut its window; with what it still has to get,
/// and from which sequence number on.
fn a_guest_that_takes_less_than_it_offered() -> (Script, u32, Vec<u8>) {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    let data: Vec<u8> = (0..2000u32).map(octet).collect();
    assert_eq!(script.net.send(script.now, flow, &data), 2000);
    assert_eq!(script.expect_numbers(ACK, ours, 1001).data.len(), 1460);
    assert_eq!(script.expect_numbers(PSH | ACK, ours + 1460, 1001).data.len(), 540);
    script.send_tcp(Tcp { window: 0, ..tcp(ACK, 1001, ours + 1460) });
    script.expect_nothing();
    (script, ours + 1460, data[1460..].to_vec())
}

#[test]
fn what_a_guest_dropped_as_it_shut_its_window_is_sent_again_once_it_opened() {
    let (mut script, next, rest) = a_guest_that_takes_less_than_it_offered();
    script.pass(Duration::from_millis(10));
    script.send_tcp(tcp(ACK, 1001, next));
    expect_rest(&mut script, next, &rest);
}

#[test]
fn what_a_guest_dropped_is_sent_again_though_the_opening_of_its_window_was_lost() {
    let (mut script, next, rest) = a_guest_that_takes_less_than_it_offered();
    expect_rest(&mut script, next, &rest);
}

#[test]
fn a_guest_that_finished_first_gets_what_it_dropped_too() {
    let mut script = Script::new();
    let (flow, ours) = script.establish();
    script.send_tcp(tcp(FIN | ACK, 1001, ours));
    script.pass_a_ride();
    script.expect_numbers(ACK, ours, 1002);
    let data: Vec<u8> = (0..2000u32).map(octet).collect();
    assert_eq!(script.net.send(script.now, flow, &data), 2000);
    script.net.finish(script.now, flow);
    assert_eq!(script.expect_tcp().data.len(), 1460);
    assert_eq!(script.expect_tcp().data.len(), 540);
    script.expect_nothing();
    script.send_tcp(Tcp { window: 0, ..tcp(ACK, 1002, ours + 1460) });
    script.pass(Duration::from_millis(10));
    script.send_tcp(tcp(ACK, 1002, ours + 1460));
    // Here its numbers are one further, for its FIN.
    let mut next = ours + 1460;
    let start = script.now;
    loop {
        let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) else {
            let due = script.net.poll_timeout().expect("a timer");
            assert!(due - start < 5 * SECOND, "octets from {next} on are not sent again");
            script.pass(due - script.now);
            continue;
        };
        let segment = read_tcp(&frame);
        if segment.seq == next {
            next += segment.data.len() as u32;
            if segment.flags & FIN != 0 {
                break;
            }
        }
        script.send_tcp(tcp(ACK, 1002, next));
    }
    assert_eq!(next, ours + 2000);
    script.send_tcp(tcp(ACK, 1002, next + 1));
    while let Some(event) = script.event() {
        if event == (NetEvent::Closed { flow }) {
            return;
        }
    }
    panic!("not closed");
}

/// What stands at a place of either stream.
fn octet(place: u32) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 24) as u8
}

/// A small generator (xorshift), so that a seed says everything.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) as u32) % end
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.below(100) < chance
    }
}

/// How a guest behaves.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Frames lost of a hundred, each way.
    loss: u32,
    /// Octets that each side sends.
    ours: u32,
    theirs: u32,
    /// The guest's FIN does not wait for ours.
    guest_closes_first: bool,
    /// Acknowledges each segment, not only each burst.
    eager: bool,
    /// Its ring changes its size now and then, whatever it offered.
    shrinks: bool,
    /// Octets. It tells when its window opens, which may get lost; it does not say so twice.
    ring: usize,
}

/// A receiver that keeps nothing out of order, and a sender that goes back to what was not acknowledged.
struct Peer {
    manner: Manner,
    dice: Dice,
    isn: u32,
    taken: u32,
    unread: usize,
    ring: usize,
    fin_taken: bool,
    acknowledged: u32,
    sent: u32,
    resend_at: Instant,
    owes_ack: bool,
    last_window: u16,
    outbox: Vec<Tcp>,
}

impl Peer {
    fn window(&self) -> u16 {
        u16::try_from(self.ring.saturating_sub(self.unread) >> SCALE).unwrap_or(u16::MAX)
    }

    /// Its FIN counts as one more octet.
    fn may_send(&self) -> u32 {
        self.manner.theirs + u32::from(self.manner.guest_closes_first || self.fin_taken)
    }

    fn segment(&mut self, from: u32, len: u32) -> Tcp {
        let fin = from + len == self.manner.theirs + 1;
        let data: Vec<u8> = (from..from + len - u32::from(fin)).map(octet).collect();
        let ack = self.isn.wrapping_add(1).wrapping_add(self.taken).wrapping_add(u32::from(self.fin_taken));
        self.last_window = self.window();
        self.owes_ack = false;
        let flags = if fin { FIN | ACK } else { ACK };
        Tcp { window: self.last_window, ..tcp(flags, 1001 + from, ack).data(&data) }
    }

    fn acknowledge(&mut self) {
        let ack = self.segment(self.acknowledged.max(self.sent), 0);
        self.outbox.push(Tcp { flags: ACK, ..ack });
    }

    fn take(&mut self, segment: &Tcp) {
        if segment.flags & RST != 0 {
            // What it says after the end is answered so.
            assert!(self.fin_taken && self.acknowledged == self.manner.theirs + 1, "{segment:?}");
            return;
        }
        let acknowledged = segment.ack.wrapping_sub(1001);
        if acknowledged > self.acknowledged {
            assert!(acknowledged <= self.may_send());
            self.acknowledged = acknowledged;
            self.sent = self.sent.max(acknowledged);
        }
        let start = segment.seq.wrapping_sub(self.isn).wrapping_sub(1);
        let at = self.taken.wrapping_sub(start) as usize;
        let expected = self.taken + u32::from(self.fin_taken);
        if let Some(fresh) = segment.data.get(at..).filter(|_| !self.fin_taken) {
            let room = self.ring.saturating_sub(self.unread);
            let fits = &fresh[..fresh.len().min(room)];
            for value in fits {
                assert_eq!(*value, octet(self.taken), "octet {}", self.taken);
                self.taken += 1;
            }
            self.unread += fits.len();
            self.fin_taken = segment.flags & FIN != 0 && fits.len() == fresh.len();
        }
        let nothing = segment.data.is_empty() && segment.flags & FIN == 0;
        if !nothing || start != expected {
            self.owes_ack = true;
            if self.manner.eager {
                self.acknowledge();
            }
        }
    }

    fn turn(&mut self, now: Instant) {
        if self.manner.shrinks && self.dice.percent(5) {
            self.ring = 1 + self.dice.below(self.manner.ring as u32) as usize;
        }
        if self.dice.percent(30) {
            let take = self.dice.below(self.manner.ring as u32 + 1) as usize;
            self.unread -= take.min(self.unread);
        }
        if self.last_window == 0 && self.window() > 0 {
            self.owes_ack = true;
        }
        if now >= self.resend_at {
            self.sent = self.acknowledged;
        }
        while self.sent < self.may_send() && self.sent - self.acknowledged < 8000 {
            let len = (self.may_send() - self.sent).min(1 + self.dice.below(1400));
            let segment = self.segment(self.sent, len);
            self.outbox.push(segment);
            self.sent += len;
            self.resend_at = now + Duration::from_millis(300);
        }
        if self.owes_ack {
            self.acknowledge();
        }
    }
}

/// Everything arrives both ways and the connection closes, before `most` of the script's time has passed.
fn transfer(seed: u64, manner: Manner, most: Duration) {
    let mut script = Script::with(|config| config.send_buffer = 16 * 1024);
    let (flow, ours) = script.establish();
    let start = script.now;
    let mut peer = Peer {
        manner,
        dice: Dice::new(seed),
        isn: ours.wrapping_sub(1),
        taken: 0,
        unread: 0,
        ring: manner.ring,
        fin_taken: false,
        acknowledged: 0,
        sent: 0,
        resend_at: start,
        owes_ack: false,
        last_window: 64_240,
        outbox: Vec::new(),
    };
    let (mut given, mut read, mut finished, mut closed) = (0, 0, false, false);
    while !(closed && peer.fin_taken && peer.acknowledged == manner.theirs + 1) {
        let told = || format!("seed {seed}, {manner:?}: given {given}, taken {}, read {read}", peer.taken);
        assert!(script.now - start < most, "{}", told());
        while let Some(event) = script.event() {
            assert!(!matches!(event, NetEvent::Reset { .. }), "{event:?} {}", told());
            closed |= event == NetEvent::Closed { flow };
        }
        if !finished {
            let piece: Vec<u8> = (given..manner.ours.min(given + 5000)).map(octet).collect();
            given += script.net.send(script.now, flow, &piece) as u32;
            if given == manner.ours {
                script.net.finish(script.now, flow);
                finished = true;
            }
        }
        for value in script.read(flow) {
            assert_eq!(value, octet(read));
            read += 1;
        }
        while let Some(frame) = script.net.poll_transmit(script.now).map(|frame| frame.to_vec()) {
            if !peer.dice.percent(manner.loss) {
                peer.take(&read_tcp(&frame));
            }
        }
        peer.turn(script.now);
        for segment in std::mem::take(&mut peer.outbox) {
            if !peer.dice.percent(manner.loss) {
                script.send_tcp(segment);
            }
        }
        script.pass(Duration::from_millis(20));
    }
    assert_eq!((peer.taken, read), (manner.ours, manner.theirs));
}

/// Among others a guest whose ring shrinks below what it offered, and drops what is beyond. Our retransmissions double their distance, so what
/// is lost several times over takes its time.
fn transfers(loss: u32, most: Duration) {
    for seed in 0..200 {
        let mut dice = Dice::new(seed + 1_000_000);
        let manner = Manner {
            loss,
            ours: dice.below(60_000),
            theirs: dice.below(3000),
            guest_closes_first: dice.percent(50),
            eager: dice.percent(50),
            shrinks: dice.percent(50),
            ring: 2000 + dice.below(8000) as usize,
        };
        transfer(seed, manner, most);
    }
}

#[test]
fn whatever_the_guest_s_window_does_everything_arrives() {
    transfers(0, 30 * SECOND);
}

#[test]
fn whatever_is_lost_besides_everything_arrives() {
    transfers(5, 180 * SECOND);
}
