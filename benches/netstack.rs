//! The netstack alone, in memory, against the demo's guest: `cargo bench --bench netstack`.
//!
//! One stream each way at two sizes of packet, with none and with a thousand idle connections beside it; connections
//! opened and closed a second; and the memory that idle connections take. Both stacks run on one thread, so the netstack
//! itself is faster than the pair.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use server_glue::netstack::{FlowId, NetConfig, NetEvent, Netstack};
use spice_tunnel::guest::Config;
use spice_tunnel::guest::stack::{ConnectionId, Received, Stack};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 7));
const PORT: u16 = 9100;

struct Pair {
    net: Netstack,
    guest: Stack,
    now: Instant,
    accepted: Vec<FlowId>,
    readable: Vec<FlowId>,
}

impl Pair {
    fn new(mtu: u16) -> Pair {
        let now = Instant::now();
        let mut net = Netstack::new(NetConfig::default());
        net.publish(HOST, PORT);
        let ring = 512 << 10;
        let config = Config { mtu, receive_buffer: ring, transmit_buffer: ring, ..Config::default() };
        let mut pair =
            Pair { net, guest: Stack::new(config, now), now, accepted: Vec::new(), readable: Vec::new() };
        while pair.guest.lease().is_none() {
            pair.step();
            pair.wait();
        }
        pair
    }

    /// Moves whatever can be moved. False: nothing could.
    fn step(&mut self) -> bool {
        self.now = Instant::now();
        let mut moved = false;
        for _ in 0..64 {
            let Some(frame) = self.guest.poll_transmit(self.now) else { break };
            self.net.handle_frame(self.now, frame.bytes());
            self.guest.recycle(frame);
            moved = true;
        }
        while let Some(event) = self.net.poll_event() {
            match event {
                NetEvent::Connect { flow, .. } => {
                    self.net.accept(self.now, flow);
                    self.accepted.push(flow);
                }
                NetEvent::Readable { flow } => self.readable.push(flow),
                NetEvent::Finished { flow } => self.net.finish(self.now, flow),
                NetEvent::Writable { .. }
                | NetEvent::Closed { .. }
                | NetEvent::Reset { .. }
                | NetEvent::GuestLeased { .. } => {}
            }
        }
        for _ in 0..64 {
            let Some(frame) = self.net.poll_transmit(self.now) else { break };
            self.guest.handle_frame(self.now, &frame);
            moved = true;
        }
        while self.guest.poll_event().is_some() {}
        moved
    }

    fn wait(&mut self) {
        let next = [self.net.poll_timeout(), self.guest.poll_timeout()].into_iter().flatten().min();
        if let Some(at) = next {
            std::thread::sleep(at.saturating_duration_since(Instant::now()).min(Duration::from_millis(5)));
        }
        self.now = Instant::now();
        self.net.handle_timeout(self.now);
        self.guest.handle_timeout(self.now);
    }

    fn open(&mut self, count: usize) -> Vec<ConnectionId> {
        let ids: Vec<ConnectionId> = (0..count)
            .map(|_| {
                let id = self.guest.connect(self.now, HOST, PORT).expect("a free port");
                while self.step() {}
                id
            })
            .collect();
        while !ids.iter().all(|id| self.guest.is_open(*id) == Some(Ok(()))) {
            if !self.step() {
                self.wait();
            }
        }
        ids
    }
}

/// Gbit/s from the guest to us.
fn upload(mtu: u16, idle: usize, time: Duration) -> f64 {
    let mut pair = Pair::new(mtu);
    let ids = pair.open(idle + 1);
    let Some(id) = ids.last().copied() else { return 0.0 };
    let data = vec![7; 256 << 10];
    let start = Instant::now();
    let mut total = 0usize;
    while start.elapsed() < time {
        let _ = pair.guest.send(id, &data);
        if !pair.step() {
            pair.wait();
        }
        while let Some(flow) = pair.readable.pop() {
            loop {
                let taken = pair.net.recv(pair.now, flow, <[u8]>::len);
                if taken == 0 {
                    break;
                }
                total += taken;
            }
        }
    }
    rate(total, start)
}

/// Gbit/s from us to the guest.
fn download(mtu: u16, idle: usize, time: Duration) -> f64 {
    let mut pair = Pair::new(mtu);
    let ids = pair.open(idle + 1);
    let (Some(id), Some(flow)) = (ids.last().copied(), pair.accepted.last().copied()) else { return 0.0 };
    let data = vec![7; 256 << 10];
    let start = Instant::now();
    let mut total = 0usize;
    while start.elapsed() < time {
        pair.net.send(pair.now, flow, &data);
        if !pair.step() {
            pair.wait();
        }
        while let Ok(Received::Data(taken)) = pair.guest.recv(id, <[u8]>::len) {
            if taken == 0 {
                break;
            }
            total += taken;
        }
    }
    rate(total, start)
}

fn rate(octets: usize, start: Instant) -> f64 {
    octets as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

/// Connections opened, closed by both, and forgotten, a second.
fn churn(time: Duration) -> f64 {
    let mut pair = Pair::new(1500);
    let start = Instant::now();
    let mut count = 0u32;
    while start.elapsed() < time {
        let id = pair.open(1)[0];
        pair.guest.finish(id);
        while pair.step() {}
        pair.guest.release(id);
        while pair.step() {}
        count += 1;
    }
    assert_eq!(pair.net.counters().closed, u64::from(count), "every one was closed in order");
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// KiB of resident memory for each of a thousand connections that carried one small request, from SYNs made by hand: no guest's memory in it.
fn idle_memory(rounds: usize) -> f64 {
    let count = 1000u32;
    let now = Instant::now();
    let mut net = Netstack::new(NetConfig { max_half_open: 2000, ..NetConfig::default() });
    net.publish(HOST, PORT);
    let mut before = resident();
    let mut flows = Vec::new();
    for round in 0..rounds {
        for flow in flows.drain(..) {
            net.reset(now, flow);
        }
        while net.poll_transmit(now).is_some() {}
        if round == 0 {
            before = resident();
        }
        for number in 0..count {
            let port = 2000 + (number as u16);
            net.handle_frame(now, &segment(port, 0x02, 1, 0, b""));
            let Some(NetEvent::Connect { flow, .. }) = net.poll_event() else { continue };
            net.accept(now, flow);
            let answer = net.poll_transmit(now).map(|frame| frame.to_vec()).unwrap_or_default();
            let seq = answer.get(38..42).and_then(|seq| seq.try_into().ok()).map_or(0, u32::from_be_bytes);
            net.handle_frame(now, &segment(port, 0x10, 2, seq.wrapping_add(1), b"GET / HTTP/1.1\r\n\r\n"));
            net.recv(now, flow, <[u8]>::len);
            net.send(now, flow, &[7; 1000]);
            while net.poll_transmit(now).is_some() {}
            net.handle_frame(now, &segment(port, 0x10, 20, seq.wrapping_add(1001), b""));
            while net.poll_event().is_some() {}
            flows.push(flow);
        }
    }
    assert_eq!(net.flows(), 1000);
    (resident().saturating_sub(before)) as f64 / f64::from(count)
}

fn segment(port: u16, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0x53, 0x50, 0x54, 0, 1, 0x52, 0x54, 0, 1, 2, 3, 8, 0];
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 18, 0, 9, 198, 18, 77, 7];
    let len = (40 + data.len()) as u16;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = Vec::new();
    tcp.extend(port.to_be_bytes());
    tcp.extend(PORT.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(data);
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend((tcp.len() as u16).to_be_bytes());
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(tcp);
    frame
}

fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data
        .chunks(2)
        .map(|pair| u32::from(pair[0]) * 256 + u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn main() {
    // In a thread of its own, as in the program: there the allocator's heap grows by what is asked for, while in the main thread it grows by
    // 128 KiB more, which it clears by hand.
    let _ = std::thread::spawn(measure).join();
}

fn measure() {
    // `cargo test` runs benches too, to see that they work.
    let time = if std::env::args().any(|arg| arg == "--bench") { 2000 } else { 50 };
    let time = Duration::from_millis(time);
    println!("memory per idle connection, 1,000 of them: {:.1} KiB", idle_memory(1));
    println!("the same after others were opened and closed: {:.1} KiB", idle_memory(4));
    for mtu in [1500, 65_520] {
        for idle in [0, 1000] {
            let (up, down) = (upload(mtu, idle, time), download(mtu, idle, time));
            println!("MTU {mtu}, {idle} idle beside it: {up:.1} Gbit/s from the guest, {down:.1} to it");
        }
    }
    println!("{:.0} connections opened and closed a second", churn(time));
}
