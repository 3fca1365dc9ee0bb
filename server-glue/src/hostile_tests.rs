//! A guest that does anything: random octets, damaged frames, and TCP played by dice, with an owner that does anything too.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use crate::offload::Offloads;

use crate::netstack::{FlowId, NetEvent};
use crate::packet::{Frame, Payload};
use crate::script::{
    ACK, FIN, GATEWAY, GUEST, HOST, PSH, RST, SYN, Script, Tcp, URG, icmp, ipv4, read_tcp, tcp,
};

fn samples() -> Vec<Vec<u8>> {
    let mut arp = vec![0xff; 6];
    arp.extend([0x52, 0x54, 0, 1, 2, 3, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 1, 2, 3]);
    arp.extend(GUEST.octets());
    arp.extend([0; 6]);
    arp.extend(HOST.octets());
    vec![
        arp,
        ipv4(GUEST, HOST, 1, &icmp(8, 0, &[0; 40])),
        ipv4(
            GUEST,
            GATEWAY,
            17,
            &[0, 68, 0, 67, 1, 8, 0, 0].into_iter().chain([1; 256]).collect::<Vec<u8>>(),
        ),
        ipv4(GUEST, HOST, 17, &[0, 68, 0, 69, 0, 12, 0, 0, 1, 2, 3, 4]),
        tcp(SYN, 1000, 0).options(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 4, 2]).frame(),
        tcp(PSH | ACK, 1001, 1).data(&[7; 100]).frame(),
        tcp(FIN | ACK, 1001, 1).options(&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2]).frame(),
        ipv4(GUEST, Ipv4Addr::new(9, 9, 9, 9), 6, &[0; 20]),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    /// From one of three ports, with numbers relative to what would be right.
    Segment {
        port: u16,
        flags: u8,
        seq: i32,
        ack: i32,
        len: usize,
        window: u16,
        options: u8,
    },
    /// Everything that was sent is acknowledged, in order.
    Obey {
        port: u16,
        len: usize,
        fin: bool,
    },
    Accept(usize),
    Refuse(usize),
    Unreachable(usize),
    Recv(usize, usize),
    Send(usize, usize),
    Finish(usize),
    Reset(usize),
    Drain(usize),
    Pass(u32),
    LinkLost,
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![6 => Just(0), 3 => -3000..3000i32, 1 => -300_000..300_000i32, 1 => any::<i32>()]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        24 => Just(ACK),
        8 => Just(PSH | ACK),
        8 => Just(FIN | ACK),
        6 => Just(SYN),
        1 => Just(SYN | ACK),
        1 => Just(RST | ACK),
        4 => Just(URG | ACK),
        2 => any::<u8>(),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = 1..4u16;
    let len = prop_oneof![4 => Just(0usize), 4 => 0..2000usize, 1 => 0..60_000usize];
    let window = prop_oneof![4 => Just(64_240u16), 1 => Just(0), 1 => any::<u16>()];
    let flow = 0..4usize;
    let step = prop_oneof![
        6 => (port.clone(), flags(), near(), near(), len.clone(), window, 0..5u8)
            .prop_map(|(port, flags, seq, ack, len, window, options)| {
                Step::Segment { port, flags, seq, ack, len, window, options }
            }),
        6 => (port, len.clone(), proptest::bool::weighted(0.2)).prop_map(|(port, len, fin)| Step::Obey { port, len, fin }),
        5 => flow.clone().prop_map(Step::Accept),
        1 => (flow.clone(), proptest::bool::weighted(0.2)).prop_map(|(flow, end)| {
            if end { Step::Refuse(flow) } else { Step::Recv(flow, 1) }
        }),
        1 => (flow.clone(), proptest::bool::weighted(0.2)).prop_map(|(flow, end)| {
            if end { Step::Unreachable(flow) } else { Step::Send(flow, 1) }
        }),
        4 => (flow.clone(), 0..100_000usize).prop_map(|(flow, len)| Step::Recv(flow, len)),
        4 => (flow.clone(), len).prop_map(|(flow, len)| Step::Send(flow, len)),
        2 => flow.clone().prop_map(Step::Finish),
        1 => (flow, proptest::bool::weighted(0.1)).prop_map(|(flow, end)| {
            if end { Step::Reset(flow) } else { Step::Finish(flow) }
        }),
        6 => (0..50usize).prop_map(Step::Drain),
        2 => prop_oneof![8 => 0..3000u32, 1 => 0..200_000u32].prop_map(Step::Pass),
        1 => proptest::bool::weighted(0.05).prop_map(|lost| if lost { Step::LinkLost } else { Step::Drain(9) }),
    ];
    // Most games begin with up to three open connections: dice alone seldom get that far.
    (0..4u16, proptest::collection::vec(step, 1..120)).prop_map(|(open, steps)| {
        let opening = (1..=open).flat_map(|port| {
            let (flags, options, window) = (SYN, 1, 64_240);
            [
                Step::Segment { port, flags, seq: 0, ack: 0, len: 0, window, options },
                Step::Accept(usize::from(port) - 1),
                Step::Obey { port, len: 0, fin: false },
            ]
        });
        opening.chain(steps).collect()
    })
}

/// The octet that always stands at a place of a stream.
const MTU: u16 = 1500;

fn octet(at: u32) -> u8 {
    at.wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

/// What the guest's port remembers.
#[derive(Default, Clone, Copy)]
struct Side {
    /// Next number of the guest, and what it would acknowledge.
    next: u32,
    ack: u32,
    /// Our initial number, to know the place of our octets. `None` before our SYN.
    isn: Option<u32>,
}

struct Owned {
    /// The first number of the guest's stream.
    start: u32,
    received: u32,
    sent: u32,
    finished: bool,
}

struct Play {
    script: Script,
    sides: HashMap<u16, Side>,
    /// Held or open, oldest first.
    flows: Vec<(FlowId, Owned, u16)>,
    dead: HashSet<FlowId>,
}

impl Play {
    fn new(offloads: Offloads) -> Play {
        let mut script = Script::with(|config| {
            config.mtu = MTU;
            config.receive_buffer = 20_000;
            config.send_buffer = 20_000;
            config.max_flows = 8;
            config.max_half_open = 4;
        });
        script.net.set_offloads(offloads);
        Play { script, sides: HashMap::new(), flows: Vec::new(), dead: HashSet::new() }
    }

    fn pick(&self, index: usize) -> Option<FlowId> {
        // Also one that is over, now and then.
        self.flows.get(index).map(|(flow, ..)| *flow).or_else(|| self.dead.iter().min().copied())
    }

    /// Sends it with as much data as asked, its options by number, and remembers the sender's port.
    fn segment(&mut self, segment: Tcp, len: usize, options: u8) {
        let (port, flags, seq) = (segment.guest.port(), segment.flags, segment.seq);
        let data: Vec<u8> = (0..len as u32).map(|at| octet(seq.wrapping_add(at))).collect();
        let options: &[u8] = match options {
            0 => &[],
            1 => &[2, 4, 5, 0xb4, 1, 3, 3, 7],
            2 => &[8, 10, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1],
            3 => &[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9],
            _ => &[4, 2, 2, 4, 0, 1, 3, 3, 14, 0, 0, 0],
        };
        self.script.send_tcp(segment.data(&data).options(options));
        if flags & SYN != 0 {
            let side = self.sides.entry(port).or_default();
            side.next = seq.wrapping_add(1);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.script.event() {
            match event {
                NetEvent::Connect { flow, source, .. } => {
                    assert!(!self.dead.contains(&flow), "an id is never given again");
                    assert!(self.flows.iter().all(|(known, ..)| *known != flow));
                    let owned = Owned { start: 0, received: 0, sent: 0, finished: false };
                    self.flows.push((flow, owned, source.port()));
                }
                NetEvent::Readable { flow } | NetEvent::Writable { flow } => {
                    assert!(self.flows.iter().any(|(known, ..)| *known == flow) || self.dead.contains(&flow));
                }
                NetEvent::Finished { flow } => {
                    if let Some((_, owned, _)) = self.flows.iter_mut().find(|(known, ..)| *known == flow) {
                        assert!(!owned.finished);
                        owned.finished = true;
                        assert_eq!(self.script.net.can_recv(flow), 0);
                    }
                }
                NetEvent::Closed { flow } => {
                    if !self.dead.contains(&flow) {
                        let place = self.flows.iter().position(|(known, ..)| *known == flow).unwrap();
                        assert!(self.flows[place].1.finished);
                        self.bury(flow);
                    }
                }
                NetEvent::Reset { flow, .. } => self.bury(flow),
                NetEvent::GuestLeased { .. } => {}
            }
        }
    }

    fn bury(&mut self, flow: FlowId) {
        self.flows.retain(|(known, ..)| *known != flow);
        self.dead.insert(flow);
    }

    fn drain(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(frame) = self.script.net.poll_transmit(self.script.now).map(|frame| {
                let longest = if frame.segment.is_some() { u16::MAX } else { MTU };
                assert!(frame.len() <= 14 + usize::from(longest));
                frame.summed()
            }) else {
                break;
            };
            let Payload::Ipv4(packet) = Frame::parse(&frame).unwrap().payload else { continue };
            if packet[9] != 6 {
                continue;
            }
            let segment = read_tcp(&frame);
            let side = self.sides.entry(segment.guest.port()).or_default();
            if segment.flags & RST != 0 {
                continue;
            }
            if segment.flags & SYN != 0 {
                side.isn = Some(segment.seq);
                side.next = segment.ack;
                let port = segment.guest.port();
                if let Some((_, owned, _)) = self.flows.iter_mut().rev().find(|(.., of)| *of == port) {
                    owned.start = segment.ack;
                }
            }
            // Octets are what they must be at their place, however often they are sent. A keep-alive carries one of no value.
            if let Some(isn) = side.isn
                && segment.data.len() > 1
            {
                for (at, got) in (0u32..).zip(&segment.data) {
                    let place = segment.seq.wrapping_add(at).wrapping_sub(isn).wrapping_sub(1);
                    assert_eq!(*got, octet(place), "octet {place} of our stream");
                }
            }
            let controls = u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
            side.ack = segment.seq.wrapping_add(segment.data.len() as u32 + controls);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Segment { port, flags, seq, ack, len, window, options } => {
                let side = *self.sides.entry(port).or_default();
                let seq = side.next.wrapping_add_signed(seq);
                let ack = side.ack.wrapping_add_signed(ack);
                let segment = Tcp { window, urgent: window, ..tcp(flags, seq, ack).from(port) };
                self.segment(segment, len, options);
            }
            Step::Obey { port, len, fin } => {
                self.drain(1000);
                let side = *self.sides.entry(port).or_default();
                let flags = if fin { FIN | ACK } else { ACK };
                self.segment(tcp(flags, side.next, side.ack).from(port), len, 0);
                let side = self.sides.entry(port).or_default();
                side.next = side.next.wrapping_add(len as u32 + u32::from(fin));
            }
            Step::Accept(index) => {
                if let Some(flow) = self.pick(index) {
                    self.script.net.accept(self.script.now, flow);
                }
            }
            Step::Refuse(index) => self.end(index, |script, flow| script.net.refuse(script.now, flow)),
            Step::Unreachable(index) => {
                self.end(index, |script, flow| script.net.unreachable(script.now, flow))
            }
            Step::Reset(index) => self.end(index, |script, flow| script.net.reset(script.now, flow)),
            Step::Finish(index) => {
                if let Some(flow) = self.pick(index) {
                    self.script.net.finish(self.script.now, flow);
                }
            }
            Step::Recv(index, limit) => {
                let Some(flow) = self.pick(index) else { return };
                let before = self.script.net.can_recv(flow);
                let mut got = Vec::new();
                let taken = self.script.net.recv(self.script.now, flow, |bytes| {
                    let count = bytes.len().min(limit);
                    got.extend_from_slice(&bytes[..count]);
                    count
                });
                assert_eq!(taken, got.len());
                assert!(taken <= before);
                if let Some((_, owned, _)) = self.flows.iter_mut().find(|(known, ..)| *known == flow) {
                    assert!(taken == 0 || !owned.finished);
                    for value in got {
                        let place = owned.start.wrapping_add(owned.received);
                        assert_eq!(value, octet(place), "octet {} of the guest's stream", owned.received);
                        owned.received += 1;
                    }
                } else {
                    assert_eq!(taken, 0, "a dead flow has nothing");
                }
            }
            Step::Send(index, len) => {
                let Some(flow) = self.pick(index) else { return };
                let from = self
                    .flows
                    .iter()
                    .find(|(known, ..)| *known == flow)
                    .map_or(0, |(_, owned, _)| owned.sent);
                let data: Vec<u8> = (0..len as u32).map(|at| octet(from.wrapping_add(at))).collect();
                let room = self.script.net.send_capacity(flow);
                let sent = self.script.net.send(self.script.now, flow, &data);
                assert_eq!(sent, len.min(room));
                if let Some((_, owned, _)) = self.flows.iter_mut().find(|(known, ..)| *known == flow) {
                    owned.sent += sent as u32;
                }
            }
            Step::Drain(limit) => self.drain(limit),
            Step::Pass(millis) => self.script.pass(Duration::from_millis(millis.into())),
            Step::LinkLost => {
                self.script.net.link_lost();
                assert_eq!((self.script.net.flows(), self.script.net.poll_timeout()), (0, None));
            }
        }
        self.events();
        assert!(self.script.net.flows() <= 8);
    }

    fn end(&mut self, index: usize, end: impl FnOnce(&mut Script, FlowId)) {
        if let Some(flow) = self.pick(index) {
            end(&mut self.script, flow);
            self.events();
            self.bury(flow);
        }
    }

    /// Everybody lets go: nothing may be left.
    fn finish(mut self) {
        for (flow, ..) in std::mem::take(&mut self.flows) {
            self.script.net.reset(self.script.now, flow);
        }
        for _ in 0..20 {
            while self.script.net.poll_transmit(self.script.now).is_some() {}
            self.script.pass(Duration::from_secs(100));
        }
        assert_eq!((self.script.net.flows(), self.script.net.poll_timeout()), (0, None));
    }
}

proptest! {
    #[test]
    fn any_octets_are_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut script = Script::new();
        for frame in frames {
            script.send(&frame);
        }
    }

    #[test]
    fn any_damage_is_survived(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        mend in any::<bool>(),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut script = Script::new();
        let samples = samples();
        let mut frame = samples[which.index(samples.len())].clone();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if cut {
            frame.truncate(len.index(frame.len()));
        }
        if mend && frame.len() > 34 && usize::from(frame[14] & 15) * 4 + 14 <= frame.len() {
            crate::script::fix_ipv4_checksum(&mut frame);
            if frame[23] == 6 && frame.len() >= 54 {
                let (from, to) = (frame[26..30].try_into().unwrap(), frame[30..34].try_into().unwrap());
                let (from, to): ([u8; 4], [u8; 4]) = (from, to);
                crate::script::fix_tcp_checksum(from.into(), to.into(), &mut frame[34..]);
            }
        }
        for _ in 0..2 {
            script.send(&frame);
            while let Some(NetEvent::Connect { flow, .. }) = script.event() {
                script.net.accept(script.now, flow);
            }
            while script.net.poll_transmit(script.now).is_some() {}
            script.pass(Duration::from_secs(1));
        }
    }

    #[test]
    fn any_game_keeps_its_rules(steps in steps(), offload: bool) {
        let mut play = Play::new(if offload { Offloads::ALL } else { Offloads::NONE });
        for step in steps {
            play.step(step);
        }
        play.finish();
    }
}
