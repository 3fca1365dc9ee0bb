//! A link with a latency, and with nothing else: no loss, no limit of its own.
//!
//! Where the kernel has netem it is a pair of virtual cards with netem at both ends, whose queue has room for more than any
//! TCP window. Where it has not, a process of ours carries packets between two TUN devices, each after the delay. Both carry
//! segments of 64 KiB whole, as a modern card and its driver do between themselves.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use tun_rs::{DeviceBuilder, SyncDevice};

use super::lab::{Lab, Process, within};
use super::wire::{now, sleep_until};

/// The first argument of the process that delays.
pub(crate) const DELAY: &str = "the-delay";
const DEVICE: &str = "far0";
/// Packets that wait for their time: more than the largest windows of all streams.
const NETEM_LIMIT: usize = 1_000_000;
/// Packets that the kernel keeps until we take them.
const TUN_QUEUE: usize = 20_000;
/// Bytes that wait for their time, at most.
const ROOM: usize = 1 << 30;

/// Joins two networks. If that takes a process, here it is.
pub(crate) fn between(
    lab: &Lab,
    a: (&str, Ipv4Addr),
    b: (&str, Ipv4Addr),
    round_trip: Duration,
) -> Result<Option<Process>, String> {
    let half = round_trip / 2;
    let process = match netem(lab, a.0, b.0, half) {
        Ok(()) => None,
        Err(_) => Some(carry(lab, a.0, b.0, half)?),
    };
    for (net, address) in [a, b] {
        lab.run(net, &format!("ip address add {address}/24 dev {DEVICE}"))?;
        lab.run(net, &format!("ip link set {DEVICE} up"))?;
    }
    Ok(process)
}

/// Which of the two this machine has.
pub(crate) fn kind(lab: &Lab, net: &str) -> &'static str {
    match lab.run(net, "tc qdisc add dev lo root netem delay 1ms") {
        Ok(_) => "netem",
        Err(_) => "packets carried between two TUN devices by the benchmark (no netem in this kernel)",
    }
}

fn netem(lab: &Lab, a: &str, b: &str, half: Duration) -> Result<(), String> {
    lab.run(a, &format!("ip link add {DEVICE} type veth peer name {DEVICE} netns {b}"))?;
    for net in [a, b] {
        let delay = half.as_micros();
        let added = lab
            .run(net, &format!("tc qdisc add dev {DEVICE} root netem delay {delay}us limit {NETEM_LIMIT}"));
        if added.is_err() {
            lab.run(a, &format!("ip link delete {DEVICE}"))?;
            return added.map(drop);
        }
    }
    Ok(())
}

fn carry(lab: &Lab, a: &str, b: &str, half: Duration) -> Result<Process, String> {
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let words = [
        own.display().to_string(),
        DELAY.to_owned(),
        a.to_owned(),
        b.to_owned(),
        half.as_nanos().to_string(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut process = lab.start("host", "delay", &words)?;
    for net in [a, b] {
        lab.until("the delayed link", || {
            process.alive()?;
            Ok(lab.run(net, &format!("ip link set {DEVICE} mtu 1500 txqueuelen {TUN_QUEUE}")).ok())
        })?;
    }
    Ok(process)
}

/// Packets that were dropped there so far.
pub(crate) fn dropped(lab: &Lab, net: &str) -> Result<u64, String> {
    let said = lab.run(net, &format!("ip -json -s link show {DEVICE}"))?;
    let said: serde_json::Value = serde_json::from_str(&said).map_err(|error| format!("ip: {error}"))?;
    let of = |way: &str| said[0]["stats64"][way]["dropped"].as_u64().unwrap_or(0);
    let tc = lab.run(net, &format!("tc -json -s qdisc show dev {DEVICE}")).unwrap_or_default();
    let tc: serde_json::Value = serde_json::from_str(&tc).unwrap_or_default();
    Ok(of("rx") + of("tx") + tc[0]["drops"].as_u64().unwrap_or(0))
}

/// The process: carries packets until it is killed.
pub(crate) fn run(arguments: &[String]) -> ! {
    let [a, b, half] = arguments else { panic!("expected two networks and a time") };
    let half = half.parse().unwrap();
    let open = |net: &str| {
        let device = || {
            let builder = DeviceBuilder::new().name(DEVICE).enable(false);
            builder
                .with(|linux| {
                    linux.offload(true).packet_information(false);
                })
                .build_sync()
        };
        Arc::new(within(&PathBuf::from(format!("/run/netns/{net}")), device).unwrap().unwrap())
    };
    let (a, b) = (open(a), open(b));
    let lines = [(a.clone(), b.clone()), (b, a)].map(|(from, to)| {
        let line = Arc::new(Line::default());
        let filled = line.clone();
        thread::spawn(move || fill(&from, &filled, half));
        thread::spawn(move || empty(&to, &line))
    });
    for line in lines {
        line.join().unwrap();
    }
    unreachable!("a line never ends")
}

fn fill(from: &SyncDevice, line: &Line, half: u64) {
    // A segment and its virtio_net_hdr.
    let mut buffer = vec![0; 70_000];
    loop {
        match from.recv(&mut buffer) {
            Ok(read) => line.put(now() + half, &buffer[..read]),
            Err(error) => assert!(passes(&error), "reading a packet: {error}"),
        }
    }
}

fn empty(to: &SyncDevice, line: &Line) {
    loop {
        let (due, packet) = line.take();
        sleep_until(due);
        // A device that is not up yet takes nothing.
        let _ = to.send(&packet);
        line.give_back(packet);
    }
}

fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(rustix::io::Errno::BADFD.raw_os_error())
}

/// Packets on their way in one direction, in order.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    packets: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// Room of packets that have arrived, to be used again.
    spare: Vec<Vec<u8>>,
}

impl Line {
    fn put(&self, due: u64, packet: &[u8]) {
        let mut state = self.state.lock().unwrap();
        assert!(state.bytes < ROOM, "more than {ROOM} bytes are on their way");
        let mut room = state.spare.pop().unwrap_or_default();
        room.clear();
        room.extend_from_slice(packet);
        state.bytes += room.len();
        state.packets.push_back((due, room));
        if state.packets.len() == 1 {
            self.came.notify_one();
        }
    }

    fn take(&self) -> (u64, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        loop {
            match state.packets.pop_front() {
                Some((due, packet)) => {
                    state.bytes -= packet.len();
                    return (due, packet);
                }
                None => state = self.came.wait(state).unwrap(),
            }
        }
    }

    fn give_back(&self, room: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        if state.spare.len() < 1024 {
            state.spare.push(room);
        }
    }
}

/// What a historical tunnel could carry at most, in MB/s: its window for each round trip. A server granted 80 messages of 2048
/// bytes (down), a client 60 (up); see PROTOCOL.md.
pub(crate) fn historical(messages: f64, round_trip: Duration) -> f64 {
    messages * 2048.0 / round_trip.as_secs_f64() / 1e6
}
