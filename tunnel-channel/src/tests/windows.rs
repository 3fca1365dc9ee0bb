//! Windows that grow: over long links, within a budget, and not for everybody.
//!
//! A [`Road`] is a pair with bulk on it, in virtual time: every millisecond the sources send what their credit and the
//! link's rate allow, and the sinks take what they can. Bytes are counted, and nothing is timed.

use std::collections::VecDeque;
use std::time::Duration;

use spice_proto::frame::Frame;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ServiceId, SocketId};

use super::new_service;
use crate::pair::{Pair, Setup};
use crate::{Channel, Config, Event, Role};

const MILLISECOND: Duration = Duration::from_millis(1);

/// The two ways, each with bulk.
const WAYS: [(Role, Role); 2] = [(Role::Server, Role::Client), (Role::Client, Role::Server)];

struct Road {
    pair: Pair,
    from: Role,
    to: Role,
    /// Bytes that the link takes in a millisecond.
    link: usize,
    /// Bytes that it could still take in the last one, less than a message.
    spare: usize,
    /// Payload of one message.
    length: usize,
    sockets: Vec<Line>,
    /// Where the next round among the sockets begins.
    turn: usize,
    resets: usize,
}

/// One socket's way to its sink.
#[derive(Clone, Debug, Default)]
struct Line {
    is_sending: bool,
    /// Bytes that the sink takes in a millisecond.
    sink: usize,
    /// Lengths of the messages that wait for the sink, and what it may take of them in this millisecond.
    waiting: VecDeque<usize>,
    taken: usize,
    sent: usize,
    delivered: usize,
}

impl Road {
    /// So many sockets are open and silent. Their sinks take everything.
    fn new(setup: &Setup, (from, to): (Role, Role), link: usize, sockets: usize) -> Self {
        let mut pair = Pair::new(setup);
        pair.settle(4096, |_, _| {}).unwrap();
        pair.client.add_service(new_service(0, b"printer")).unwrap();
        pair.settle(4096, |_, _| {}).unwrap();
        for id in 0..sockets {
            assert_eq!(pair.server.open(ServiceId(0)), Ok(SocketId(id as u16)));
        }
        pair.settle(1 << 16, |channel, event| {
            if let Event::Open { socket, .. } = event {
                channel.accept(socket);
            }
        })
        .unwrap();
        pair.wire.clear();
        let length = pair.end(from).max_data();
        let line = Line { sink: usize::MAX, ..Line::default() };
        Road { pair, from, to, link, spare: 0, length, sockets: vec![line; sockets], turn: 0, resets: 0 }
    }

    fn drive(&mut self, milliseconds: usize) {
        for _ in 0..milliseconds {
            self.pair.advance(MILLISECOND).unwrap();
            self.send();
            // A message at a time, so that a sink has each before the next comes, as where it is written at once.
            self.pair.load(self.from, self.length);
            self.pair.load(self.to, 1 << 20);
            for line in &mut self.sockets {
                line.taken = line.taken.saturating_add(line.sink);
            }
            self.sink();
            while self.hear() {
                self.sink();
            }
            for line in self.sockets.iter_mut().filter(|line| line.waiting.is_empty()) {
                line.taken = 0;
            }
            self.pair.load(self.to, 1 << 20);
        }
    }

    /// One message of each in turn, until the link has enough for this millisecond.
    fn send(&mut self) {
        let mut left = self.link + self.spare;
        let mut idle = 0;
        while idle < self.sockets.len() && left >= self.length {
            let at = self.turn % self.sockets.len();
            self.turn += 1;
            idle += 1;
            let line = &mut self.sockets[at];
            if line.is_sending {
                let length = self.length;
                let sent = self.pair.end(self.from).send(SocketId(at as u16), |room| {
                    room[..length].fill(1);
                    length
                });
                if sent > 0 {
                    idle = 0;
                    line.sent += sent;
                    left -= sent;
                }
            }
        }
        self.spare = left.min(self.length);
    }

    fn hear(&mut self) -> bool {
        let (sockets, resets) = (&mut self.sockets, &mut self.resets);
        let mut moved = false;
        for to in [self.to, self.from] {
            moved |= self
                .pair
                .step(to, |_, event| match event {
                    Event::Data { socket, payload } => {
                        sockets[usize::from(socket.0)].waiting.push_back(payload.len());
                    }
                    Event::Reset { .. } => *resets += 1,
                    Event::Writable { .. } => {}
                    other => panic!("{other:?}"),
                })
                .unwrap();
        }
        moved
    }

    fn sink(&mut self) {
        let channel = self.pair.end(self.to);
        for (id, line) in self.sockets.iter_mut().enumerate() {
            let mut messages = 0;
            while let Some(length) = line.waiting.front()
                && line.taken >= *length
            {
                line.taken -= length;
                line.delivered += length;
                line.waiting.pop_front();
                messages += 1;
            }
            if messages > 0 {
                channel.delivered(SocketId(id as u16), messages);
            }
        }
    }

    fn window(&mut self, id: u16) -> u32 {
        self.receiver().table.get(SocketId(id)).unwrap().window().total()
    }

    fn receiver(&mut self) -> &mut Channel {
        self.pair.end(self.to)
    }

    fn grown(&mut self) -> u32 {
        let grown = self.receiver().table.sockets().map(|socket| socket.grown()).sum();
        let max_data = self.receiver().agreed_data();
        assert_eq!(self.receiver().pool.bytes(max_data), grown as usize * max_data, "the pool's books");
        grown
    }

    fn delivered(&self) -> usize {
        self.sockets.iter().map(|line| line.delivered).sum()
    }

    /// Bytes delivered in this time.
    fn carried(&mut self, milliseconds: usize) -> usize {
        let before = self.delivered();
        self.drive(milliseconds);
        self.delivered() - before
    }
}

fn far(rtt: u64) -> Setup {
    Setup { latency: Duration::from_millis(rtt / 2), ..Setup::default() }
}

fn fixed(setup: Setup) -> Setup {
    let fixed = |config| Config { max_window: 0, ..config };
    Setup { server: fixed(setup.server), client: fixed(setup.client), ..setup }
}

#[test]
fn one_stream_fills_a_long_link() {
    // 120 MB/s over 50 ms and 50 MB/s over 200 ms are 6 and 10 MB on their way.
    for (rtt, link) in [(50, 120_000), (200, 50_000)] {
        for way in WAYS {
            let mut road = Road::new(&far(rtt), way, link, 1);
            road.sockets[0].is_sending = true;
            road.drive(10 * rtt as usize);
            let carried = road.carried(20 * rtt as usize);
            let could = 20 * rtt as usize * link;
            assert!(carried * 100 >= could * 97, "{way:?}, {rtt} ms: {carried} of {could} bytes");
            // And no more than it needs for it: four times of what is on its way.
            let window = road.window(0) as usize * 32_768;
            assert!(window <= 4 * rtt as usize * link, "{window}");
            // Without growth it is one window in a round trip.
            let mut road = Road::new(&fixed(far(rtt)), way, link, 1);
            road.sockets[0].is_sending = true;
            road.drive(10 * rtt as usize);
            assert!(road.carried(20 * rtt as usize) <= 21 * 64 * 32_768);
        }
    }
}

#[test]
fn it_grows_within_a_few_round_trips() {
    let mut road = Road::new(&far(50), WAYS[0], 120_000, 1);
    road.sockets[0].is_sending = true;
    let mut before = road.window(0);
    let mut times = 0;
    for _ in 0..10 {
        road.drive(50);
        let window = road.window(0);
        assert!(window >= before && window <= 4 * before);
        times += u32::from(window > before);
        before = window;
    }
    assert!((2..=4).contains(&times) && before >= 256, "{before} tokens after {times} steps");
}

#[test]
fn a_short_link_does_not_need_more() {
    for way in WAYS {
        let mut road = Road::new(&far(4), way, 120_000, 1);
        road.sockets[0].is_sending = true;
        road.drive(1000);
        assert!(road.carried(1000) >= 115_000_000);
        assert_eq!((road.window(0), road.grown()), (64, 0));
    }
}

#[test]
fn a_slow_sink_does_not_get_more() {
    let mut road = Road::new(&far(50), WAYS[0], 120_000, 1);
    road.sockets[0] = Line { is_sending: true, sink: 10_000, ..Line::default() };
    road.drive(4000);
    assert!(road.carried(1000) >= 9_900_000);
    assert_eq!((road.window(0), road.grown()), (64, 0));
}

#[test]
fn many_streams_share_the_link_without_growing() {
    let mut road = Road::new(&far(50), WAYS[1], 120_000, 16);
    for line in &mut road.sockets {
        line.is_sending = true;
    }
    road.drive(500);
    assert!(road.carried(1000) >= 116_000_000);
    assert_eq!(road.grown(), 0, "16 windows of 2 MiB are far more than is on its way");
    let counts: Vec<usize> = road.sockets.iter().map(|line| line.delivered).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 64 * 32_768, "{counts:?}");
}

/// Small windows and little memory, so that little is much.
fn tight() -> Setup {
    let config =
        Config { max_data: 4096, window: 8, max_window: 4096, memory_budget: 4 << 20, ..Config::default() };
    Setup { server: config, client: config, latency: Duration::from_millis(25), ..Setup::default() }
}

#[test]
fn sinks_that_stop_when_all_windows_have_grown_reset_nobody() {
    for way in WAYS {
        let mut road = Road::new(&tight(), way, 100_000, 24);
        for line in &mut road.sockets {
            line.is_sending = true;
        }
        road.drive(2000);
        let grown = road.grown() as usize * 4096;
        assert!(grown > 1 << 20 && grown <= 2 << 20, "they grew by {grown} bytes, of 2 MiB at most");
        for line in &mut road.sockets {
            line.sink = 0;
        }
        road.drive(2000);
        let waiting = road.receiver().waiting();
        assert!(waiting > 2 << 20 && waiting <= 4 << 20, "{waiting} bytes wait, 4 MiB is the budget");
        assert_eq!(road.resets, 0);
        let sent: usize = road.sockets.iter().map(|line| line.sent).sum();
        assert_eq!(sent, road.delivered() + waiting, "and nobody has a token left to send more");
        for line in &mut road.sockets {
            line.sink = usize::MAX;
        }
        // All of it comes out, and it goes on with windows that grow again: as they were at first, 24 of 8 messages a round trip, they carry 16 MB.
        let carried = road.carried(1000);
        assert!(carried >= waiting + 40_000_000, "{carried}");
        assert_eq!(road.resets, 0);
    }
}

#[test]
fn one_stalled_socket_holds_up_nobody_else() {
    for way in WAYS {
        let mut road = Road::new(&far(50), way, 80_000, 2);
        road.sockets[0].is_sending = true;
        road.sockets[1].is_sending = true;
        road.drive(1000);
        road.sockets[0].sink = 0;
        road.drive(1000);
        let before = road.sockets[1].delivered;
        road.drive(1000);
        let carried = road.sockets[1].delivered - before;
        assert!(carried >= 76_000_000, "{carried}");
        assert_eq!(road.resets, 0);
        // What the stalled one had grown by is not the other's.
        assert!(road.window(1) >= 128);
    }
}

#[test]
fn short_memory_takes_back_what_has_grown() {
    let mut road = Road::new(&tight(), WAYS[0], 100_000, 4);
    for line in &mut road.sockets {
        line.is_sending = true;
    }
    road.drive(1000);
    let grown = road.grown();
    assert!(grown >= 256, "{grown}");
    // Three stop, and hold as much as their windows let them. The fourth goes on in what it was granted at first.
    for line in &mut road.sockets[..3] {
        line.sink = 0;
    }
    road.pair.end(road.to).terms.config.memory_budget = 1 << 20;
    road.drive(1000);
    assert_eq!(road.window(3), 8);
    assert!(road.grown() < grown);
    let before = road.sockets[3].delivered;
    road.drive(1000);
    assert!(road.sockets[3].delivered > before, "it still goes on");
    // And when it is over, it may grow again.
    road.pair.end(road.to).terms.config.memory_budget = 4 << 20;
    for line in &mut road.sockets {
        line.sink = usize::MAX;
    }
    road.drive(2000);
    assert!(road.window(3) > 8 && road.resets == 0);
}

#[test]
fn no_window_takes_more_than_it_leaves() {
    // Of 512 tokens for growth, 4096 bytes each.
    let mut road = Road::new(&tight(), WAYS[1], 1_000_000, 3);
    let mut grown = [0; 3];
    for id in 0..3 {
        road.sockets[id].is_sending = true;
        road.drive(3000);
        grown[id] = road.window(id as u16) - 8;
        let left = 512 - road.grown();
        assert!(grown[id] >= 32 && grown[id] <= left + 1, "{grown:?}, {left} left");
    }
    // What ends gives back.
    for id in 0..3 {
        road.pair.server.reset(SocketId(id));
    }
    assert_eq!(road.grown(), 0);
}

#[test]
fn a_window_is_given_back_with_the_peers_last_word() {
    for way in WAYS {
        let mut road = Road::new(&tight(), way, 1_000_000, 1);
        road.sockets[0].is_sending = true;
        road.drive(1000);
        assert!(road.grown() > 0);
        road.sockets[0].is_sending = false;
        road.drive(200);
        assert!(road.grown() > 0, "it is only idle");
        road.pair.end(road.from).finish(SocketId(0));
        road.pair.settle(4096, |_, _| {}).unwrap();
        assert_eq!(road.grown(), 0);
        road.pair.end(road.to).reset(SocketId(0));
        assert_eq!(road.grown(), 0);
    }
}

#[test]
fn small_messages_get_no_more_and_do_not_stall() {
    for length in [1, 2000] {
        let mut road = Road::new(&far(50), WAYS[0], 64 << 10, 1);
        road.length = length;
        road.sockets[0].is_sending = true;
        road.drive(1000);
        // Most of a window in a round trip, as ever.
        assert!(road.carried(1000) >= 15 * 64 * length);
        assert_eq!((road.window(0), road.grown()), (64, 0));
    }
}

#[test]
fn historical_ends_keep_their_windows_and_hear_nothing_new() {
    for (way, window) in WAYS.into_iter().zip([60, 80]) {
        let setup = Setup { latency: Duration::from_millis(25), ..Setup::historical() };
        let mut road = Road::new(&setup, way, 120_000, 2);
        road.sockets[0].is_sending = true;
        road.drive(9000);
        assert_eq!((road.window(0), road.grown()), (window, 0));
        let expected = ["socket_data 0 len 2048", "socket_token 0 tokens 20"];
        for line in &road.pair.wire {
            assert!(expected.contains(&&line[2..]), "{line}");
        }
        // The server's regular PING comes as it always did.
        road.drive(2000);
        assert_eq!(road.pair.wire.iter().filter(|line| *line == "S ping").count(), 1);
    }
}

#[test]
fn the_way_is_asked_for_once_it_matters() {
    for way in WAYS {
        let mut road = Road::new(&far(50), way, 120_000, 1);
        let question = match way.1 {
            Role::Server => "S ping",
            Role::Client => "C probe",
        };
        let asked = |road: &Road| road.pair.wire.iter().filter(|line| *line == question).count();
        road.drive(4000);
        assert_eq!((asked(&road), road.receiver().rtt()), (0, None), "nothing has come");
        road.sockets[0].is_sending = true;
        road.drive(400);
        assert_eq!(asked(&road), 1);
        assert!(road.receiver().rtt().is_some_and(|rtt| rtt < Duration::from_millis(80)));
        // Neither at every round, nor never again.
        road.drive(30_000);
        assert!((2..=6).contains(&asked(&road)), "{}", asked(&road));
    }
}

#[test]
fn who_must_not_ask_still_grows() {
    // A client of a server without PROBE, and a server that was told to send no PING, have only their rounds to go by.
    let quiet = |config| Config { ping_interval: None, ..config };
    let setup = far(50);
    let setup = Setup {
        caps: TunnelCaps::EXTENDED,
        server: quiet(setup.server),
        client: quiet(setup.client),
        ..setup
    };
    for way in WAYS {
        let mut road = Road::new(&setup, way, 120_000, 1);
        road.sockets[0].is_sending = true;
        road.drive(1000);
        assert!(road.carried(1000) >= 116_000_000);
        assert!(road.pair.wire.iter().all(|line| !line.ends_with("ping") && !line.ends_with("probe")));
    }
}

#[test]
fn a_hostile_peer_gets_what_there_is_and_no_more() {
    // It sends as fast as its tokens come back, on all sockets, without any delay, and says that it is at no distance.
    let mut road = Road::new(&Setup { latency: Duration::ZERO, ..tight() }, WAYS[1], 1, 6);
    let now = road.pair.now;
    let mut body = vec![0; 2 + 4096];
    for round in 0..20_000u16 {
        let id = round % 6;
        body[..2].copy_from_slice(&id.to_le_bytes());
        let frame = Frame { serial: None, kind: 108, sub_list: 0, body: &body };
        match road.pair.server.handle_frame(now, frame) {
            Ok(Some(Event::Data { .. })) => road.pair.server.delivered(SocketId(id), 1),
            other => panic!("{other:?}"),
        }
        road.pair.load(Role::Server, usize::MAX);
        while road.pair.step(Role::Client, |_, _| ()).unwrap() {}
        road.pair.load(Role::Client, usize::MAX);
        while road.pair.step(Role::Server, |_, _| ()).unwrap() {}
        let grown = road.grown();
        assert!(grown <= 512 && road.window(id) <= 8 + 256, "{grown}, {}", road.window(id));
    }
    assert!(road.grown() > 256, "it was given what was free");
}

#[test]
fn the_most_is_the_most() {
    let config = Config { max_window: 100, ..Config::default() };
    let setup = Setup { client: config, server: config, ..far(200) };
    let mut road = Road::new(&setup, WAYS[0], 120_000, 1);
    road.sockets[0].is_sending = true;
    road.drive(4000);
    assert_eq!(road.window(0), 100);
}
