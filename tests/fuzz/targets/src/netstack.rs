//! A guest against the whole netstack, with the owner of the connections played by the input as well.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use server_glue::netstack::{FlowId, NetConfig, NetEvent, Netstack};
use server_glue::offload::{CardFrame, Offloads};

use crate::input::Input;
use crate::packet::{ACK, FIN, GUEST_IP, RST, SYN, Seen, Tcp, check, is_tcp, mend};

/// Byte 0: the MTU, the rings, and whether the card does offloads; then operations, each a byte that chooses and the bytes it needs.
///
/// The guest is no honest TCP: it sends any segment at any time, yet the same byte at the same sequence number always. So
/// what the owner reads, and what the guest is sent, can be checked byte for byte, as can every checksum, every bound,
/// that each event is one that may come now, and that neither frames nor timers go on for ever.
pub fn netstack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.byte());
    while !input.is_empty() {
        world.operate(&mut input);
        world.drain();
    }
    world.wind_down();
}

/// Addresses and ports that a service may be published at.
const SERVICES: [([u8; 4], u16); 3] =
    [([198, 18, 1, 1], 631), ([198, 18, 1, 1], 80), ([198, 18, 7, 200], 9100)];
const FLOWS: usize = 6;
const HALF_OPEN: usize = 4;
const FRAME_LIMIT: usize = 20_000;

struct World {
    net: Netstack,
    gateway: [u8; 6],
    mtu: usize,
    now: Instant,
    guest: HashMap<(usize, u16), Guest>,
    flows: Vec<Flow>,
    /// The guest sent segments that were not made here, so no byte can be relied on.
    wild: bool,
}

/// What the guest knows of one pair of ports.
#[derive(Clone, Copy, Default)]
struct Guest {
    /// Next sequence number to send.
    next: u32,
    /// Next sequence number expected.
    expected: u32,
}

struct Flow {
    id: FlowId,
    service: usize,
    port: u16,
    phase: Phase,
    /// Sequence number of the next byte to read, since the SYN-ACK told it.
    read: Option<u32>,
    /// Sequence number of the first byte sent to the guest.
    first: Option<u32>,
    /// How many bytes were taken for sending.
    sent: u32,
    we_finished: bool,
    guest_finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Held,
    Accepted,
    Gone,
}

/// The byte that the guest sends at a sequence number.
fn from_guest(port: u16, sequence: u32) -> u8 {
    (sequence ^ (sequence >> 8) ^ u32::from(port)).to_le_bytes()[0]
}

/// The byte that a flow sends at an offset.
fn to_guest(flow: usize, offset: u32) -> u8 {
    (offset ^ (offset >> 8)).to_le_bytes()[0] ^ flow.to_le_bytes()[0].wrapping_mul(31)
}

impl World {
    fn new(choice: u8) -> Self {
        let mtu = [576, 1500, 9000, 65_520][usize::from(choice & 3)];
        let config = NetConfig {
            mtu,
            max_flows: FLOWS,
            max_half_open: HALF_OPEN,
            receive_buffer: 4096 << (choice >> 2 & 3),
            send_buffer: 4096 << (choice >> 4 & 3),
            seed: 1,
            ..NetConfig::default()
        };
        let gateway = config.mac.0;
        let mut net = Netstack::new(config);
        for (address, port) in SERVICES {
            net.publish(address.into(), port);
        }
        let offloads = if choice & 0x80 == 0 { Offloads::NONE } else { Offloads::ALL };
        net.set_offloads(offloads);
        World {
            net,
            gateway,
            mtu: usize::from(mtu),
            now: Instant::now(),
            guest: HashMap::new(),
            flows: Vec::new(),
            wild: false,
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => {
                let (service, port) = pair(input.byte());
                let choice = input.byte();
                self.syn(service, port, choice);
            }
            // A whole handshake, as most connections begin.
            1 => {
                let (service, port) = pair(input.byte());
                let choice = input.byte();
                self.syn(service, port, choice);
                self.drain();
                let last = self.flows.len().wrapping_sub(1);
                let Some(Flow { phase: Phase::Held, id, .. }) = self.flows.get(last) else { return };
                self.net.accept(self.now, *id);
                self.flows[last].phase = Phase::Accepted;
                self.drain();
                let guest = self.guest.entry((service, port)).or_default();
                let (next, expected) = (guest.next, guest.expected);
                self.segment(service, port, next, expected, ACK, 64240, &[], &[]);
            }
            2..=6 => {
                let (service, port) = pair(input.byte());
                let flags = input.byte();
                let shift = i32::from(input.byte().cast_signed());
                let length = usize::from(input.byte()) * if flags & 0x80 == 0 { 1 } else { 40 };
                let back = input.byte();
                let guest = self.guest.entry((service, port)).or_default();
                let sequence = guest.next.wrapping_add_signed(shift);
                let acknowledged = guest.expected.wrapping_sub(u32::from(back & 0x0f) * 100);
                let payload: Vec<u8> = (0..length as u32)
                    .map(|offset| from_guest(port, sequence.wrapping_add(offset)))
                    .take(self.mtu - 40)
                    .collect();
                let flags = ACK | flags & (FIN | 0x28) | if flags & 0x50 == 0x50 { RST } else { 0 };
                let after = sequence.wrapping_add(payload.len() as u32 + u32::from(flags & FIN));
                if after.wrapping_sub(guest.next).cast_signed() > 0 {
                    guest.next = after;
                }
                let window = if back >= 0xf0 { 0 } else { u16::from(back) << 8 };
                self.segment(service, port, sequence, acknowledged, flags, window, &[], &payload);
            }
            7 => {
                // From one millisecond to half an hour, but mostly less than two seconds.
                let choice = input.byte();
                let most = if choice < 32 { 22 } else { 11 };
                self.now += Duration::from_millis(1 << (choice % most));
            }
            8 => {
                let choice = input.byte();
                let Some(flow) = self.flow(input.byte(), |flow| flow.phase == Phase::Held) else { return };
                let (now, id) = (self.now, self.flows[flow].id);
                match choice % 8 {
                    0 => self.net.refuse(now, id),
                    1 => self.net.unreachable(now, id),
                    2 => self.net.reset(now, id),
                    _ => self.net.accept(now, id),
                }
                self.flows[flow].phase = if choice % 8 < 3 { Phase::Gone } else { Phase::Accepted };
            }
            9 | 10 => {
                let length = u32::from(input.byte()) * 40;
                let Some(flow) = self.flow(input.byte(), |flow| flow.phase == Phase::Accepted) else {
                    return;
                };
                self.send(flow, length);
            }
            11 | 12 => {
                let most = usize::from(input.byte()) * 16;
                let Some(flow) = self.flow(input.byte(), |flow| flow.phase == Phase::Accepted) else {
                    return;
                };
                self.read(flow, most);
            }
            13 => {
                let choice = input.byte();
                let Some(flow) = self.flow(input.byte(), |flow| flow.phase == Phase::Accepted) else {
                    return;
                };
                let (now, id) = (self.now, self.flows[flow].id);
                if choice % 4 == 0 {
                    self.net.reset(now, id);
                    self.flows[flow].phase = Phase::Gone;
                } else {
                    self.net.finish(now, id);
                    self.flows[flow].we_finished = true;
                }
            }
            14 => {
                let choice = input.byte();
                let (address, port) = SERVICES[usize::from(choice) % SERVICES.len()];
                match choice >> 4 {
                    0..=6 => self.net.publish(address.into(), port),
                    7..=14 => self.net.withdraw(address.into(), port),
                    _ => self.net.link_lost(),
                }
            }
            _ => {
                let choice = input.byte();
                let length = usize::from(input.short() % 2048);
                let mut frame = input.bytes(length).to_vec();
                if choice & 1 != 0 {
                    mend(&mut frame);
                }
                self.wild |= is_tcp(&frame);
                let vouched = choice & 2 != 0;
                self.net.handle_frame(self.now, CardFrame { vouched, ..CardFrame::whole(&frame) });
            }
        }
    }

    fn syn(&mut self, service: usize, port: u16, choice: u8) {
        let fresh = u32::from(choice).wrapping_mul(0x0101_0101);
        let guest = self.guest.entry((service, port)).or_default();
        // The same number again is a SYN sent twice.
        if choice & 1 == 0 {
            guest.next = fresh.wrapping_add(1);
        }
        let sequence = guest.next.wrapping_sub(1);
        let options: &[u8] = match choice >> 1 & 3 {
            0 => &[],
            1 => &[2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 1, 1],
            2 => &[2, 4, 0, 1, 3, 3, 14, 0],
            _ => &[2, 3, 0, 0, 0xff, 0, 0, 0],
        };
        self.segment(service, port, sequence, 0, SYN, 64240, options, &[]);
    }

    #[expect(clippy::too_many_arguments, reason = "a segment has that many fields")]
    fn segment(
        &mut self,
        service: usize,
        guest_port: u16,
        sequence: u32,
        acknowledged: u32,
        flags: u8,
        window: u16,
        options: &[u8],
        payload: &[u8],
    ) {
        let (address, port) = SERVICES[service];
        let segment =
            Tcp { address, port, guest_port, sequence, acknowledged, flags, window, options, payload };
        self.net.handle_frame(self.now, &segment.frame(self.gateway));
    }

    /// One of the flows that are as wanted.
    fn flow(&self, which: u8, wanted: impl Fn(&Flow) -> bool) -> Option<usize> {
        let fitting: Vec<_> = (0..self.flows.len()).filter(|&flow| wanted(&self.flows[flow])).collect();
        fitting.get(usize::from(which) % fitting.len().max(1)).copied()
    }

    fn send(&mut self, flow: usize, length: u32) {
        let state = &mut self.flows[flow];
        let data: Vec<u8> = (0..length).map(|offset| to_guest(flow, state.sent + offset)).collect();
        let capacity = self.net.send_capacity(state.id);
        let taken = self.net.send(self.now, state.id, &data);
        assert!(taken <= data.len());
        assert_eq!(taken, data.len().min(capacity), "send takes what it said it would");
        assert!(taken == 0 || !state.we_finished, "sent after finish");
        state.sent += taken as u32;
    }

    fn read(&mut self, flow: usize, most: usize) {
        let wild = self.wild;
        let state = &mut self.flows[flow];
        let readable = self.net.can_recv(state.id);
        let taken = self.net.recv(self.now, state.id, |piece| {
            assert!(!piece.is_empty() || readable == 0, "nothing offered of {readable} bytes");
            assert!(piece.len() <= readable);
            let piece = &piece[..piece.len().min(most)];
            if let Some(next) = state.read
                && !wild
            {
                let expected =
                    (0..piece.len() as u32).map(|offset| from_guest(state.port, next.wrapping_add(offset)));
                assert!(expected.eq(piece.iter().copied()), "what the guest sent is not what was read");
            }
            piece.len()
        });
        assert!(taken == 0 || !state.guest_finished, "data after the end");
        state.read = state.read.map(|next| next.wrapping_add(taken as u32));
        assert_eq!(self.net.can_recv(state.id), readable - taken);
    }

    /// Takes everything that comes out, and lets timers fire until none is due.
    fn drain(&mut self) {
        let mut limit = FRAME_LIMIT;
        loop {
            while let Some(event) = self.net.poll_event() {
                self.hear(event);
            }
            let mut idle = true;
            while let Some(frame) = self.net.poll_transmit(self.now) {
                let mtu = if frame.segment.is_some() { usize::from(u16::MAX) } else { self.mtu };
                let frame = frame.summed();
                let seen = check(&frame, mtu);
                if let Seen::Tcp(segment) = seen {
                    look(&mut self.guest, &mut self.flows, &segment, self.wild);
                }
                idle = false;
                limit -= 1;
                assert!(limit > 0, "frames without an end");
            }
            if self.net.poll_timeout().is_some_and(|at| at <= self.now) {
                self.net.handle_timeout(self.now);
                idle = false;
                limit -= 1;
                assert!(limit > 0, "timers that are due without an end");
            }
            if idle {
                break;
            }
        }
        assert!(self.net.flows() <= FLOWS, "{} flows", self.net.flows());
    }

    fn hear(&mut self, event: NetEvent) {
        let (id, expected): (_, &[Phase]) = match event {
            NetEvent::Connect { flow, destination, source } => {
                assert!(self.flows.iter().all(|known| known.id != flow), "an id that was given before");
                let service =
                    SERVICES.iter().position(|(address, port)| destination == (*address, *port).into());
                let Some(service) = service else { panic!("a connection to {destination}") };
                assert!(self.wild || source.ip() == std::net::IpAddr::from(GUEST_IP));
                self.flows.push(Flow {
                    id: flow,
                    service,
                    port: source.port(),
                    phase: Phase::Held,
                    read: None,
                    first: None,
                    sent: 0,
                    we_finished: false,
                    guest_finished: false,
                });
                return;
            }
            NetEvent::GuestLeased { .. } => return,
            NetEvent::Readable { flow } | NetEvent::Writable { flow } | NetEvent::Finished { flow } => {
                (flow, &[Phase::Accepted])
            }
            NetEvent::Closed { flow } => (flow, &[Phase::Accepted]),
            NetEvent::Reset { flow, .. } => (flow, &[Phase::Held, Phase::Accepted]),
        };
        let Some(state) = self.flows.iter_mut().find(|flow| flow.id == id) else { panic!("{event:?}") };
        // An event may have been queued before a command of the owner's ended the flow, but then the id is dead.
        if state.phase == Phase::Gone {
            assert_eq!(self.net.can_recv(id), 0);
            return;
        }
        assert!(expected.contains(&state.phase), "{event:?} in phase {:?}", state.phase);
        match event {
            NetEvent::Finished { .. } => {
                assert!(!state.guest_finished, "finished twice");
                assert_eq!(self.net.can_recv(id), 0, "finished before everything was read");
                state.guest_finished = true;
            }
            NetEvent::Closed { .. } => {
                assert!(state.guest_finished && state.we_finished, "closed without both ends' doing");
                state.phase = Phase::Gone;
            }
            NetEvent::Reset { .. } => state.phase = Phase::Gone,
            NetEvent::Connect { .. }
            | NetEvent::GuestLeased { .. }
            | NetEvent::Readable { .. }
            | NetEvent::Writable { .. } => {}
        }
    }

    /// A long time later, without a guest, nothing is left but what the owner has not read.
    fn wind_down(&mut self) {
        for flow in 0..self.flows.len() {
            let id = self.flows[flow].id;
            match self.flows[flow].phase {
                Phase::Held => self.net.refuse(self.now, id),
                Phase::Accepted => self.net.reset(self.now, id),
                Phase::Gone => {
                    assert_eq!(self.net.send(self.now, id, b"late"), 0, "a dead flow took data");
                    assert_eq!(self.net.recv(self.now, id, <[u8]>::len), 0, "a dead flow gave data");
                }
            }
            self.flows[flow].phase = Phase::Gone;
        }
        self.drain();
        assert_eq!(self.net.flows(), 0, "flows that nobody knows");
        for _ in 0..100 {
            let Some(at) = self.net.poll_timeout() else { return };
            self.now = self.now.max(at);
            self.drain();
        }
        panic!("timers without a connection");
    }
}

/// What the guest learns from a segment, and whether its data is right.
fn look(guests: &mut HashMap<(usize, u16), Guest>, flows: &mut [Flow], segment: &Tcp<'_>, wild: bool) {
    let service = SERVICES.iter().position(|known| *known == (segment.address, segment.port));
    let Some(service) = service else { return };
    let port = segment.guest_port;
    let length = segment.payload.len() as u32 + u32::from(segment.flags & FIN);
    let opens = segment.flags & SYN != 0;
    let guest = guests.entry((service, port)).or_default();
    let end = segment.sequence.wrapping_add(length + u32::from(opens));
    if opens || end.wrapping_sub(guest.expected).cast_signed() > 0 {
        guest.expected = end;
    }
    let flow = flows
        .iter_mut()
        .enumerate()
        .rev()
        .find(|(_, flow)| flow.service == service && flow.port == port && flow.phase != Phase::Held);
    let Some((number, flow)) = flow else {
        assert!(wild || segment.payload.is_empty(), "data without a flow");
        return;
    };
    if opens {
        flow.first = Some(segment.sequence.wrapping_add(1));
        if flow.read.is_none() {
            flow.read = Some(segment.acknowledged);
        }
    }
    let Some(first) = flow.first else {
        assert!(segment.payload.is_empty(), "data before the handshake");
        return;
    };
    // A probe of the window or for life repeats a byte, or has one where none was.
    if wild || segment.payload.len() <= 1 {
        return;
    }
    let offset = segment.sequence.wrapping_sub(first);
    assert!(offset + segment.payload.len() as u32 <= flow.sent, "more was sent than was given");
    let expected = (0..segment.payload.len() as u32).map(|index| to_guest(number, offset + index));
    assert!(expected.eq(segment.payload.iter().copied()), "what the guest gets is not what was given");
}

/// Which service and which of the guest's ports.
fn pair(choice: u8) -> (usize, u16) {
    (usize::from(choice) % SERVICES.len(), 40_000 + u16::from(choice >> 4) % 4)
}
