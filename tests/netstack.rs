//! The netstack against a guest that is a TCP/IP stack of its own, over good cables and bad ones.
//!
//! Both are machines without a clock, so hours pass in milliseconds, and the same seed gives the same run.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use server_glue::netstack::{FlowId, NetConfig, NetEvent, Netstack, ResetCause};
use spice_tunnel::guest::stack::{ConnectionId, Event, Received, Stack};
use spice_tunnel::guest::{Config, ConnectionError, Trouble};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 7));
const SILENT_HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 8));

/// What the owner of the connections does, by port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// Keeps what comes; closes when the guest has.
    Sink,
    /// Sends so much, closes, and keeps what comes.
    Source(usize),
    /// Sends back what comes, and closes when the guest has.
    Echo,
    Refuse,
    Unreachable,
    /// Never decides.
    Undecided,
    /// Resets once so much has come.
    ResetAfter(usize),
    /// Reads nothing until told to.
    Blocked,
}

#[derive(Debug, Default)]
struct Server {
    flow: Option<FlowId>,
    service: Option<Service>,
    received: Vec<u8>,
    /// To be sent; what was sent is drained.
    sending: Vec<u8>,
    source_left: usize,
    finished: bool,
    closing: bool,
    /// `None`: alive.
    end: Option<NetEvent>,
}

struct World {
    now: Instant,
    start: Instant,
    net: Netstack,
    guest: Stack,
    services: HashMap<u16, Service>,
    /// In the order in which they connected.
    servers: Vec<Server>,
    by_flow: HashMap<FlowId, usize>,
    guest_events: Vec<Event>,
    frames: usize,
    /// The cable is cut: frames vanish.
    cut: bool,
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

impl World {
    fn new(guest: Config, change: impl FnOnce(&mut NetConfig)) -> World {
        let now = Instant::now();
        let mut config = NetConfig { seed: 5, ..NetConfig::default() };
        change(&mut config);
        World {
            now,
            start: now,
            net: Netstack::new(config),
            guest: Stack::new(guest, now),
            services: HashMap::new(),
            servers: Vec::new(),
            by_flow: HashMap::new(),
            guest_events: Vec::new(),
            frames: 0,
            cut: false,
        }
    }

    /// A world with a perfect cable, in which the guest has its address.
    fn ready() -> World {
        let mut world = World::new(Config::default(), |_| {});
        world.lease();
        world
    }

    fn lease(&mut self) {
        assert!(self.run(Duration::from_secs(120), |world| world.guest.lease().is_some()), "no lease");
    }

    fn serve(&mut self, port: u16, service: Service) {
        self.services.insert(port, service);
        self.net.publish(HOST, port);
    }

    fn connect(&mut self, port: u16) -> ConnectionId {
        self.guest.connect(self.now, HOST, port).unwrap()
    }

    /// Connects and waits for the answer.
    fn try_connect(&mut self, address: IpAddr, port: u16) -> Result<ConnectionId, ConnectionError> {
        let id = self.guest.connect(self.now, address, port)?;
        assert!(self.run(Duration::from_secs(300), |world| world.guest.is_open(id).is_some()));
        self.guest.is_open(id).unwrap().map(|()| id)
    }

    /// Lets both run until `done`. False: it did not come to that in `limit`.
    fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            let mut steps = 0;
            while self.pump() {
                steps += 1;
                assert!(steps < 1_000_000, "they talk without end");
                if done(self) {
                    return true;
                }
            }
            if done(self) {
                return true;
            }
            let next = [self.net.poll_timeout(), self.guest.poll_timeout()].into_iter().flatten().min();
            match next {
                Some(at) if at <= end => self.now = self.now.max(at),
                Some(_) | None => {
                    self.now = end;
                    return false;
                }
            }
            self.net.handle_timeout(self.now);
            self.guest.handle_timeout(self.now);
        }
    }

    /// One round: a few frames each way, and what follows from them.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..16 {
            let Some(frame) = self.guest.poll_transmit(self.now) else { break };
            if !self.cut {
                self.net.handle_frame(self.now, frame.bytes());
            }
            self.guest.recycle(frame);
            self.frames += 1;
            moved = true;
        }
        while let Some(event) = self.net.poll_event() {
            self.handle(event);
            moved = true;
        }
        for _ in 0..16 {
            let Some(frame) = self.net.poll_transmit(self.now) else { break };
            if !self.cut {
                self.guest.handle_frame(self.now, &frame);
            }
            self.frames += 1;
            moved = true;
        }
        while let Some(event) = self.guest.poll_event() {
            self.guest_events.push(event);
            moved = true;
        }
        moved
    }

    fn handle(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connect { flow, destination, .. } => {
                assert_eq!(destination.ip(), HOST);
                let service = self.services[&destination.port()];
                self.by_flow.insert(flow, self.servers.len());
                self.servers.push(Server { flow: Some(flow), service: Some(service), ..Server::default() });
                match service {
                    Service::Refuse => self.net.refuse(self.now, flow),
                    Service::Unreachable => self.net.unreachable(self.now, flow),
                    Service::Undecided => {}
                    Service::Source(len) => {
                        self.net.accept(self.now, flow);
                        self.servers.last_mut().unwrap().source_left = len;
                        self.serve_one(flow);
                    }
                    Service::Sink | Service::Echo | Service::ResetAfter(_) | Service::Blocked => {
                        self.net.accept(self.now, flow);
                    }
                }
            }
            NetEvent::Readable { flow } | NetEvent::Writable { flow } => self.serve_one(flow),
            NetEvent::Finished { flow } => {
                let server = &mut self.servers[self.by_flow[&flow]];
                assert!(!server.finished && server.end.is_none(), "told twice");
                server.finished = true;
                self.serve_one(flow);
            }
            NetEvent::Closed { flow } | NetEvent::Reset { flow, .. } => {
                let server = &mut self.servers[self.by_flow[&flow]];
                assert!(server.end.is_none(), "ended twice");
                assert!(server.finished || !matches!(event, NetEvent::Closed { .. }), "closed unfinished");
                server.end = Some(event);
            }
            NetEvent::GuestLeased { .. } => {}
        }
    }

    fn serve_one(&mut self, flow: FlowId) {
        let server = &mut self.servers[self.by_flow[&flow]];
        let service = server.service.unwrap();
        if service == Service::Blocked || server.end.is_some() {
            return;
        }
        loop {
            // An echo takes only what it can pass on, so that backpressure goes through it.
            if service == Service::Echo && server.sending.len() > 100_000 {
                break;
            }
            let before = server.received.len();
            let taken = self.net.recv(self.now, flow, |bytes| {
                server.received.extend_from_slice(bytes);
                bytes.len()
            });
            if taken == 0 {
                break;
            }
            if service == Service::Echo {
                let new = server.received[before..].to_vec();
                server.sending.extend(new);
            }
        }
        if let Service::ResetAfter(len) = service
            && server.received.len() >= len
        {
            self.net.reset(self.now, flow);
            server.end = Some(NetEvent::Reset { flow, cause: ResetCause::Guest });
            return;
        }
        loop {
            if let Service::Source(len) = service
                && server.sending.is_empty()
                && server.source_left > 0
            {
                let count = server.source_left.min(50_000);
                server.sending = pattern(len - server.source_left, count);
                server.source_left -= count;
            }
            if server.sending.is_empty() {
                break;
            }
            let sent = self.net.send(self.now, flow, &server.sending);
            server.sending.drain(..sent);
            if !server.sending.is_empty() {
                break;
            }
        }
        let all_sent = server.sending.is_empty() && server.source_left == 0;
        let close = match service {
            Service::Source(_) => all_sent,
            Service::Sink | Service::Echo => server.finished && all_sent && self.net.can_recv(flow) == 0,
            Service::Refuse
            | Service::Unreachable
            | Service::Undecided
            | Service::ResetAfter(_)
            | Service::Blocked => false,
        };
        if close && !server.closing {
            server.closing = true;
            self.net.finish(self.now, flow);
        }
        // An echo that stopped reading for lack of room must go on by itself: Readable is an edge.
        if service == Service::Echo && server.sending.len() <= 100_000 && self.net.can_recv(flow) > 0 {
            self.serve_one(flow);
        }
    }

    /// The guest sends `len` octets of the pattern, closes, and reads all that comes; gives that.
    fn exchange(&mut self, id: ConnectionId, len: usize, limit: Duration) -> Vec<u8> {
        let data = pattern(0, len);
        let (mut sent, mut closed, mut ended) = (0, false, false);
        let mut received = Vec::new();
        let done = self.run(limit, |world| {
            match world.guest.is_open(id) {
                Some(Ok(())) => {}
                Some(Err(error)) => panic!("connection failed: {error}"),
                None => return false,
            }
            if sent < len {
                sent += world.guest.send(id, &data[sent..]).unwrap();
            } else if !closed {
                closed = true;
                world.guest.finish(id);
            }
            while !ended {
                let got = world.guest.recv(id, |bytes| {
                    received.extend_from_slice(bytes);
                    bytes.len()
                });
                match got.unwrap() {
                    Received::Data(_) => {}
                    Received::Pending => break,
                    Received::End => ended = true,
                }
            }
            closed && ended && world.servers.last().unwrap().end.is_some()
        });
        assert!(
            done,
            "stuck after {:?}: sent {sent} of {len}, received {}, end {ended}, server {:?}",
            self.now - self.start,
            received.len(),
            self.servers.last().map(|server| (
                server.received.len(),
                server.sending.len(),
                server.finished,
                server.end
            )),
        );
        received
    }
}

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert!(
        got.len() == expected.len() && first.is_none(),
        "{what}: {} octets of {}, first difference at {first:?}",
        got.len(),
        expected.len()
    );
}

#[test]
fn the_guest_gets_an_address_and_a_name_server_but_no_way_into_the_world() {
    let world = World::ready();
    let lease = world.guest.lease().unwrap();
    assert_eq!(lease.prefix_len, 16);
    assert_eq!(lease.server, IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)));
    assert_eq!(lease.router, None);
    assert_eq!(lease.dns, [lease.server]);
    assert_eq!(lease.mtu, Some(65_520));
    assert_eq!(lease.time, Some(Duration::from_secs(12 * 3600)));
    let IpAddr::V4(address) = lease.address else { panic!("no IPv4 address") };
    assert!((Ipv4Addr::new(198, 18, 0, 2)..=Ipv4Addr::new(198, 18, 0, 254)).contains(&address));
    // The same card gets the same address from a server that knows nothing of it.
    assert_eq!(World::ready().guest.lease().unwrap().address, lease.address);
}

#[test]
fn the_lease_is_renewed_for_days() {
    let mut world = World::ready();
    let address = world.guest.lease().unwrap().address;
    world.run(Duration::from_secs(5 * 24 * 3600), |_| false);
    assert_eq!(world.guest.lease().unwrap().address, address);
    assert!(!world.guest_events.contains(&Event::LeaseLost));
}

#[test]
fn what_exists_answers_pings_and_what_does_not_is_silent() {
    let mut world = World::ready();
    world.net.publish(HOST, 80);
    let gateway = world.guest.lease().unwrap().server;
    for target in [gateway, HOST] {
        let sequence = world.guest.ping(world.now, target).unwrap();
        assert!(world.run(Duration::from_secs(5), |world| {
            world
                .guest_events
                .iter()
                .any(|event| matches!(event, Event::Pong { sequence: s, .. } if *s == sequence))
        }));
    }
    let sequence = world.guest.ping(world.now, SILENT_HOST).unwrap();
    assert!(world.run(Duration::from_secs(20), |world| {
        world.guest_events.contains(&Event::PingFailed { sequence, error: ConnectionError::Unreachable })
    }));
    world.net.withdraw(HOST, 80);
    world.run(Duration::from_secs(120), |_| false);
    let sequence = world.guest.ping(world.now, HOST).unwrap();
    assert!(world.run(Duration::from_secs(20), |world| {
        world.guest_events.contains(&Event::PingFailed { sequence, error: ConnectionError::Unreachable })
    }));
}

#[test]
fn the_guest_sees_the_truth_about_what_it_connects_to() {
    let mut world = World::ready();
    world.serve(1, Service::Sink);
    world.serve(2, Service::Refuse);
    world.serve(3, Service::Unreachable);
    assert!(world.try_connect(HOST, 1).is_ok());
    assert_eq!(world.try_connect(HOST, 2), Err(ConnectionError::Refused));
    assert_eq!(world.try_connect(HOST, 3), Err(ConnectionError::Unreachable));
    assert_eq!(world.try_connect(HOST, 4), Err(ConnectionError::Refused));
    assert_eq!(world.try_connect(SILENT_HOST, 1), Err(ConnectionError::Unreachable));
    assert_eq!(world.servers.len(), 3, "only what is published asks anybody");
    assert_eq!(world.net.flows(), 1);
}

#[test]
fn an_undecided_connection_is_unreachable_in_the_end() {
    let mut world =
        World::new(Config { connect_timeout: Duration::from_secs(200), ..Config::default() }, |_| {});
    world.lease();
    world.serve(1, Service::Undecided);
    let start = world.now;
    assert_eq!(world.try_connect(HOST, 1), Err(ConnectionError::Unreachable));
    let waited = world.now - start;
    assert!((Duration::from_secs(60)..Duration::from_secs(62)).contains(&waited), "{waited:?}");
    assert!(matches!(world.servers[0].end, Some(NetEvent::Reset { cause: ResetCause::Undecided, .. })));
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn bytes_are_exact_both_ways_at_every_mtu() {
    for mtu in [576, 1500, 9000, 65_520] {
        let mut world = World::new(Config { mtu, ..Config::default() }, |_| {});
        world.lease();
        world.serve(7, Service::Echo);
        let id = world.connect(7);
        let len = 1_000_000;
        let received = world.exchange(id, len, Duration::from_secs(600));
        assert_same(&received, &pattern(0, len), "echo");
        assert!(matches!(world.servers[0].end, Some(NetEvent::Closed { .. })));
        world.guest.release(id);
        assert_eq!(world.net.flows(), 0);
        // A perfect cable: not a second was waited for anything.
        assert!(world.now - world.start < Duration::from_secs(20), "{:?}", world.now - world.start);
    }
}

#[test]
fn bytes_are_exact_over_a_bad_cable() {
    let cables = [
        Trouble { loss: 20, duplicate: 0, reorder: 0 },
        Trouble { loss: 0, duplicate: 100, reorder: 0 },
        Trouble { loss: 0, duplicate: 0, reorder: 200 },
        Trouble { loss: 30, duplicate: 30, reorder: 50 },
        Trouble { loss: 150, duplicate: 50, reorder: 100 },
    ];
    for (index, trouble) in cables.into_iter().enumerate() {
        for seed in 0..4 {
            let mtu = [576, 1500, 9000, 65_520][seed as usize];
            let config = Config { mtu, trouble, seed: seed + 100 * index as u64, ..Config::default() };
            let mut world = World::new(config, |config| config.seed = seed);
            world.lease();
            world.serve(7, Service::Echo);
            world.serve(8, Service::Source(200_000));
            let id = world.connect(7);
            let len = 200_000;
            let received = world.exchange(id, len, Duration::from_secs(3600));
            assert_same(&received, &pattern(0, len), "echo");
            let id = world.connect(8);
            let received = world.exchange(id, 50_000, Duration::from_secs(3600));
            assert_same(&received, &pattern(0, 200_000), "source");
            assert_same(&world.servers.last().unwrap().received, &pattern(0, 50_000), "sink");
        }
    }
}

#[test]
fn either_side_may_close_first_and_still_receive() {
    let mut world = World::ready();
    world.serve(1, Service::Sink);
    world.serve(2, Service::Source(300_000));
    // The guest closes first, then we.
    let id = world.connect(1);
    assert!(world.exchange(id, 10, Duration::from_secs(60)).is_empty());
    assert_same(&world.servers[0].received, &pattern(0, 10), "sink");
    // We close at once; the guest sends and reads long after that.
    let id = world.connect(2);
    assert!(world.run(Duration::from_secs(60), |world| world.guest.readable(id) > 100_000));
    world.run(Duration::from_secs(3600), |_| false);
    assert!(world.servers[1].closing && world.servers[1].end.is_none());
    let received = world.exchange(id, 400_000, Duration::from_secs(60));
    assert_same(&received, &pattern(0, 300_000), "source");
    assert_same(&world.servers[1].received, &pattern(0, 400_000), "sent after our FIN");
    assert!(matches!(world.servers[1].end, Some(NetEvent::Closed { .. })));
}

#[test]
fn a_service_that_closes_before_the_handshake_is_over_still_closes_in_order() {
    let mut world = World::ready();
    world.serve(1, Service::Source(0));
    let id = world.connect(1);
    let received = world.exchange(id, 5000, Duration::from_secs(60));
    assert!(received.is_empty());
    assert_same(&world.servers[0].received, &pattern(0, 5000), "sent after their FIN");
    assert!(matches!(world.servers[0].end, Some(NetEvent::Closed { .. })));
}

#[test]
fn either_side_may_reset() {
    let mut world = World::ready();
    world.serve(1, Service::Sink);
    world.serve(2, Service::ResetAfter(1000));
    let id = world.try_connect(HOST, 1).unwrap();
    world.guest.send(id, b"half a messa").unwrap();
    world.guest.reset(id);
    assert!(world.run(Duration::from_secs(5), |world| world.servers[0].end.is_some()));
    assert!(matches!(world.servers[0].end, Some(NetEvent::Reset { cause: ResetCause::Guest, .. })));
    let id = world.try_connect(HOST, 2).unwrap();
    world.guest.send(id, &pattern(0, 20_000)).unwrap();
    assert!(world.run(Duration::from_secs(5), |world| matches!(world.guest.is_open(id), Some(Err(_)))));
    assert_eq!(world.guest.is_open(id), Some(Err(ConnectionError::Reset)));
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn a_guest_that_gives_up_while_it_is_held_is_heard_of() {
    let mut world = World::ready();
    world.serve(1, Service::Undecided);
    let id = world.connect(1);
    assert!(world.run(Duration::from_secs(5), |world| !world.servers.is_empty()));
    world.guest.reset(id);
    assert!(world.run(Duration::from_secs(5), |world| world.servers[0].end.is_some()));
    assert!(matches!(world.servers[0].end, Some(NetEvent::Reset { cause: ResetCause::Guest, .. })));
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn nobody_reading_stops_the_guest_and_reading_lets_it_go_on() {
    let mut world = World::ready();
    world.serve(1, Service::Blocked);
    let id = world.try_connect(HOST, 1).unwrap();
    let data = pattern(0, 2_000_000);
    let mut sent = 0;
    for _ in 0..20 {
        world.run(Duration::from_secs(30), |world| {
            sent += world.guest.send(id, &data[sent..]).unwrap();
            false
        });
    }
    let flow = world.servers[0].flow.unwrap();
    assert!(world.net.can_recv(flow) > 250_000 && world.net.can_recv(flow) <= 256 * 1024);
    assert!(sent <= 256 * 1024 + 512 * 1024, "the guest's own ring and ours, no more: {sent}");
    world.servers[0].service = Some(Service::Sink);
    world.serve_one(flow);
    assert!(world.run(Duration::from_secs(60), |world| {
        sent += world.guest.send(id, &data[sent..]).unwrap();
        world.servers[0].received.len() == data.len()
    }));
    assert_same(&world.servers[0].received, &data, "sink");
}

#[test]
fn data_that_nobody_reads_for_an_hour_after_both_closed_is_still_there() {
    let mut world = World::ready();
    world.serve(1, Service::Blocked);
    let id = world.try_connect(HOST, 1).unwrap();
    let flow = world.servers[0].flow.unwrap();
    // We close first, so the connection goes through TIME-WAIT, with unread data.
    world.net.finish(world.now, flow);
    world.run(Duration::from_secs(1), |_| false);
    world.guest.send(id, &pattern(0, 60_000)).unwrap();
    world.guest.finish(id);
    world.run(Duration::from_secs(3600), |_| false);
    assert_eq!(world.net.can_recv(flow), 60_000);
    world.servers[0].service = Some(Service::Sink);
    world.servers[0].closing = true;
    world.serve_one(flow);
    world.run(Duration::from_secs(1), |_| false);
    assert_same(&world.servers[0].received, &pattern(0, 60_000), "sink");
    assert!(matches!(world.servers[0].end, Some(NetEvent::Closed { .. })));
}

#[test]
fn an_idle_connection_lives_and_a_dead_guest_is_noticed() {
    let mut world = World::ready();
    world.serve(1, Service::Sink);
    let id = world.try_connect(HOST, 1).unwrap();
    let frames = world.frames;
    world.run(Duration::from_secs(24 * 3600), |_| false);
    assert_eq!(world.guest.is_open(id), Some(Ok(())));
    assert!(world.servers[0].end.is_none());
    let asked = world.frames - frames;
    assert!(asked > 1000 && asked < 10_000, "{asked} frames in a day of silence");
    world.cut = true;
    let start = world.now;
    assert!(world.run(Duration::from_secs(3600), |world| world.servers[0].end.is_some()));
    assert!(matches!(world.servers[0].end, Some(NetEvent::Reset { cause: ResetCause::Dead, .. })));
    assert!(world.now - start <= Duration::from_secs(180 + 45), "{:?}", world.now - start);
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn a_thousand_connections_at_once() {
    let mut world = World::new(
        Config { receive_buffer: 16 << 10, transmit_buffer: 16 << 10, ..Config::default() },
        |_| {},
    );
    world.lease();
    world.serve(7, Service::Echo);
    let ids: Vec<ConnectionId> = (0..1000).map(|_| world.connect(7)).collect();
    assert!(world.run(Duration::from_secs(60), |world| {
        ids.iter().all(|id| world.guest.is_open(*id) == Some(Ok(())))
    }));
    for (number, id) in ids.iter().enumerate() {
        world.guest.send(*id, &pattern(number, 500)).unwrap();
        world.guest.finish(*id);
    }
    let mut received = vec![Vec::new(); ids.len()];
    world.run(Duration::from_secs(5), |_| false);
    for (id, received) in ids.iter().zip(&mut received) {
        while let Ok(Received::Data(_)) = world.guest.recv(*id, |bytes| {
            received.extend_from_slice(bytes);
            bytes.len()
        }) {}
    }
    for (number, received) in received.iter().enumerate() {
        assert_same(received, &pattern(number, 500), "echo");
    }
    assert_eq!(world.net.flows(), 0);
    assert_eq!(world.net.counters().closed, 1000);
}

#[test]
fn the_link_going_away_ends_every_connection() {
    let mut world = World::ready();
    world.serve(1, Service::Sink);
    world.serve(2, Service::Undecided);
    world.try_connect(HOST, 1).unwrap();
    world.connect(2);
    world.run(Duration::from_secs(1), |_| false);
    world.net.link_lost();
    world.run(Duration::from_secs(0), |_| false);
    for server in &world.servers {
        assert!(matches!(server.end, Some(NetEvent::Reset { cause: ResetCause::LinkLost, .. })));
    }
    assert_eq!(world.net.flows(), 0);
    assert_eq!(world.net.poll_timeout(), None);
    // Another guest finds the same network.
    world.guest = Stack::new(Config::default(), world.now);
    world.lease();
    assert!(world.try_connect(HOST, 1).is_ok());
}
