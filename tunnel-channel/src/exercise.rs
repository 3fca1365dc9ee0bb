//! A pair of channels under any sequence of operations, for property tests and fuzzing.
//!
//! [`exercise`] plays both owners by the rules, and panics when a byte is lost, reordered or doubled, when credit goes
//! wrong, or when an id is not freed in the end.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{GroupId, Layout, ServiceId, ServiceKind, SocketId};

use crate::credit::Policy;
use crate::pair::{Pair, Setup};
use crate::{Channel, Config, Event, NewService, OpenError, ResetCause, Role};

mod names;
use names::Naming;

/// Runs a sequence of operations on a fresh pair, then winds everything down. Every four bytes are an operation: which
/// one, on which side and socket, how much, and a choice. Any bytes are good.
///
/// # Panics
///
/// When an end breaks a promise.
pub fn exercise(setup: &Setup, operations: &[[u8; 4]]) {
    let mut world = World::new(setup);
    for operation in operations {
        world.operate(*operation);
        world.check();
    }
    world.wind_down();
}

/// As [`exercise`], with the setup in the first bytes too: for a fuzzer.
pub fn exercise_bytes(bytes: &[u8]) {
    let Some(([kind, data, window, budget], operations)) = bytes.split_first_chunk::<4>() else { return };
    let small = Config {
        max_sockets: 1 + u16::from(kind >> 4),
        max_data: 1 + u32::from(*data),
        window: u32::from(*window) % 70,
        max_window: u32::from(*data ^ *window) % 130,
        memory_budget: if budget % 4 == 0 { 64 << 20 } else { usize::from(*budget) * 16 },
        ..Config::default()
    };
    let setup = Setup {
        caps: TunnelCaps::from_bits_retain(
            u32::from(kind & 7) | u32::from(window >> 7) << 3 | u32::from(budget >> 6) << 4,
        ),
        layout: if data % 8 == 7 { Layout::A } else { Layout::B },
        header: if kind & 8 == 0 { HeaderForm::Mini } else { HeaderForm::Full },
        server: small,
        client: small,
        latency: Duration::from_millis(u64::from(budget % 3)),
    };
    let operations: Vec<[u8; 4]> = operations.as_chunks::<4>().0.to_vec();
    exercise(&setup, &operations);
}

/// A pair with both owners, and what each believes about every connection that ever was.
struct World {
    pair: Pair,
    owners: Owners,
}

#[derive(Default)]
struct Owners {
    connections: Vec<Connection>,
    /// Which connection was opened last under an id.
    latest: Vec<Option<usize>>,
    /// Those that the client has not removed.
    services: Vec<ServiceId>,
    names: Naming,
    /// Whether sockets may be reset because too much waits.
    memory_is_short: bool,
    /// What each end grants at first, and at most.
    window: [u32; 2],
    most: [u32; 2],
}

struct Connection {
    socket: SocketId,
    number: usize,
    /// The server's owner, then the client's.
    ends: [End; 2],
}

/// What one owner knows of its end.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    hold: Hold,
    sent: u64,
    received: u64,
    /// Messages that came and were not reported as delivered.
    waiting: u32,
    finished: bool,
    peer_finished: bool,
    peer_closed: bool,
    /// Found no credit and was not told of any since.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    /// The client has not heard of it.
    #[default]
    Nothing,
    Opening,
    Open,
    /// Given away or taken away.
    Gone,
}

const ROLES: [Role; 2] = [Role::Server, Role::Client];

fn index(role: Role) -> usize {
    match role {
        Role::Server => 0,
        Role::Client => 1,
    }
}

/// The byte at a place of a stream: differs between connections and directions.
fn byte_at(connection: usize, from: usize, offset: u64) -> u8 {
    let mixed = (connection as u64 * 2 + from as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ offset.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    mixed.to_be_bytes()[0]
}

impl World {
    fn new(setup: &Setup) -> Self {
        let quiet = |config: Config| Config { dead_after: Duration::MAX, ..config };
        let setup = Setup { server: quiet(setup.server), client: quiet(setup.client), ..*setup };
        let mut pair = Pair::new(&setup);
        let budget = setup.server.memory_budget.min(setup.client.memory_budget);
        let memory_is_short = budget < 64 << 20;
        let [window, most] = [|policy: Policy| policy.window, |policy: Policy| policy.most]
            .map(|of| [of(pair.server.terms.policy), of(pair.client.terms.policy)]);
        pair.settle(7, |_, _| {}).expect("an honest pair agrees on INIT");
        assert!(pair.client.is_ready());
        let owners = Owners { memory_is_short, window, most, ..Owners::default() };
        let mut world = World { pair, owners };
        world.add_service();
        world
    }

    fn operate(&mut self, [operation, which, amount, choice]: [u8; 4]) {
        let role = ROLES[usize::from(choice & 1)];
        match operation % 16 {
            0 | 1 => self.open(which),
            2 => self.answer(which, !amount.is_multiple_of(4)),
            3..=5 => self.send(role, which, amount),
            6 | 7 => self.deliver(role, which, u32::from(amount % 40)),
            8 => self.finish(role, which),
            9 => self.close(role, which),
            10 if amount % 3 == 0 => self.reset(role, which),
            10..=12 => self.carry(role, usize::from(amount) + 1, usize::from(which)),
            13 => {
                self.pair.advance(Duration::from_millis(u64::from(amount) * 10)).expect("nobody is silent");
            }
            14 if amount % 8 == 0 => self.add_service(),
            14 if amount % 8 == 1 => self.remove_service(which),
            14 if amount % 8 == 2 => self.probe(role),
            14 if amount % 8 == 3 => self.describe(which),
            14 if amount % 8 == 4 => self.change_domain(which),
            14 if amount % 8 == 5 => self.ask_name(which),
            14 if amount % 8 == 6 => self.answer_name(which, choice),
            14 => self.misuse(role, SocketId(u16::from(which) % 24), choice >> 1),
            _ => self.carry_all(usize::from(amount) + 1),
        }
    }

    fn add_service(&mut self) {
        let count = self.owners.services.len();
        let info = self.owners.names.next_info();
        let info = (!self.owners.names.count.is_multiple_of(4)).then_some(&info);
        let added = self.pair.client.add_service(NewService {
            kind: ServiceKind::Generic,
            group: GroupId(count as u32 / 3),
            port: 1 + count as u16,
            name: format!("device {}", count / 3).as_bytes(),
            description: b"of the exercise",
            info,
        });
        if let Ok(service) = added {
            self.owners.services.push(service);
            if let Some(info) = info
                && self.pair.client.terms.has(TunnelCaps::SERVICE_INFO)
            {
                self.owners.names.described.push_back((service, info.clone()));
            }
        }
    }

    fn remove_service(&mut self, which: u8) {
        if self.owners.services.len() > 1 {
            let at = usize::from(which) % self.owners.services.len();
            let service = self.owners.services.remove(at);
            self.pair.client.remove_service(service);
        }
    }

    fn probe(&mut self, role: Role) {
        let now = self.pair.now;
        let asked = self.pair.end(role).probe(now, Duration::MAX);
        let can = role == Role::Server || self.pair.client.terms.has(TunnelCaps::PROBE);
        assert_eq!(asked, can);
    }

    fn open(&mut self, which: u8) {
        // Any id that was ever announced: those that the client has removed meanwhile are refused.
        if let Ok(socket) = self.pair.server.open(ServiceId(u32::from(which) % 4)) {
            let number = self.owners.connections.len();
            let mut ends = [End::default(); 2];
            ends[0].hold = Hold::Opening;
            self.owners.connections.push(Connection { socket, number, ends });
            let at = usize::from(socket.0);
            if self.owners.latest.len() <= at {
                self.owners.latest.resize(at + 1, None);
            }
            self.owners.latest[at] = Some(number);
        }
    }

    /// A connection whose end of this role is in the given hold.
    fn pick(&mut self, role: Role, hold: Hold, which: u8) -> Option<&mut Connection> {
        let mut held: Vec<&mut Connection> =
            self.owners.connections.iter_mut().filter(|c| c.ends[index(role)].hold == hold).collect();
        if held.is_empty() {
            return None;
        }
        let at = usize::from(which) % held.len();
        Some(held.swap_remove(at))
    }

    fn answer(&mut self, which: u8, accept: bool) {
        let Some(connection) = self.pick(Role::Client, Hold::Opening, which) else { return };
        let socket = connection.socket;
        connection.ends[1].hold = if accept { Hold::Open } else { Hold::Gone };
        if accept { self.pair.client.accept(socket) } else { self.pair.client.refuse(socket) }
    }

    fn send(&mut self, role: Role, which: u8, amount: u8) {
        let me = index(role);
        let Some(connection) = self.pick(role, Hold::Open, which) else { return };
        let (socket, number, mut end) = (connection.socket, connection.number, connection.ends[me]);
        if end.finished {
            return;
        }
        let channel = self.pair.end(role);
        if channel.is_congested() {
            return;
        }
        let credit = channel.credit(socket);
        let sent = channel.send(socket, |room| {
            let length = room.len().min(usize::from(amount));
            for (i, byte) in room.iter_mut().take(length).enumerate() {
                *byte = byte_at(number, me, end.sent + i as u64);
            }
            length
        });
        assert!(sent == 0 || credit > 0, "sent without credit");
        assert_eq!(channel.credit(socket), credit - u32::from(sent > 0), "one message is one token");
        assert!(sent > 0 || amount == 0 || credit == 0, "credit and bytes, yet nothing sent");
        end.sent += sent as u64;
        end.blocked = credit == 0 && !end.peer_closed;
        self.owners.connections[number].ends[me] = end;
    }

    fn deliver(&mut self, role: Role, which: u8, messages: u32) {
        let Some(connection) = self.pick(role, Hold::Open, which) else { return };
        let socket = connection.socket;
        let end = &mut connection.ends[index(role)];
        let messages = messages.min(end.waiting);
        end.waiting -= messages;
        self.pair.end(role).delivered(socket, messages);
    }

    fn finish(&mut self, role: Role, which: u8) {
        let Some(connection) = self.pick(role, Hold::Open, which) else { return };
        let socket = connection.socket;
        let end = &mut connection.ends[index(role)];
        if !end.finished {
            end.finished = true;
            self.pair.end(role).finish(socket);
        }
    }

    fn close(&mut self, role: Role, which: u8) {
        let Some(connection) = self.pick(role, Hold::Open, which) else { return };
        let socket = connection.socket;
        let end = &mut connection.ends[index(role)];
        if end.waiting == 0 && (end.peer_closed || end.finished && end.peer_finished) {
            end.hold = Hold::Gone;
            self.pair.end(role).close(socket);
        }
    }

    fn reset(&mut self, role: Role, which: u8) {
        let hold = if which & 1 == 0 { Hold::Open } else { Hold::Opening };
        let Some(connection) = self.pick(role, hold, which >> 1) else { return };
        let socket = connection.socket;
        connection.ends[index(role)].hold = Hold::Gone;
        self.pair.end(role).reset(socket);
    }

    /// Commands for an id that its owner does not hold must change nothing.
    fn misuse(&mut self, role: Role, socket: SocketId, choice: u8) {
        let me = index(role);
        if self
            .owners
            .connections
            .iter()
            .any(|c| c.socket == socket && matches!(c.ends[me].hold, Hold::Opening | Hold::Open))
        {
            return;
        }
        let channel = self.pair.end(role);
        let before = (channel.outgoing_len(), channel.sockets(), channel.waiting());
        match choice % 8 {
            0 => channel.accept(socket),
            1 => channel.refuse(socket),
            2 => channel.finish(socket),
            3 => channel.close(socket),
            4 => channel.reset(socket),
            5 => channel.delivered(socket, 5),
            6 => assert_eq!(channel.send(socket, |_| panic!("room without credit")), 0),
            _ => assert_eq!(channel.credit(socket), 0),
        }
        assert_eq!(before, (channel.outgoing_len(), channel.sockets(), channel.waiting()));
    }

    fn carry(&mut self, to: Role, pieces: usize, piece: usize) {
        let from = match to {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        };
        self.pair.load(from, piece + 1);
        let owners = &mut self.owners;
        for _ in 0..pieces {
            let moved = self.pair.step(to, |channel, event| owners.hear(channel, event));
            if !moved.expect("two honest ends never find fault with each other") {
                break;
            }
        }
    }

    fn carry_all(&mut self, piece: usize) {
        let owners = &mut self.owners;
        self.pair
            .settle(piece, |channel, event| owners.hear(channel, event))
            .expect("two honest ends never find fault with each other");
    }

    /// What must hold between any two operations.
    fn check(&self) {
        for channel in [&self.pair.server, &self.pair.client] {
            let bound = channel.outgoing_high_water() + channel.max_data() + (64 << 10);
            assert!(channel.outgoing_len() <= bound, "outgoing grew to {}", channel.outgoing_len());
        }
        let mut waiting = [0usize; 2];
        for connection in &self.owners.connections {
            let ends = [&self.pair.server, &self.pair.client].map(|c| c.table.get(connection.socket));
            for (me, channel) in [(0, &self.pair.server), (1, &self.pair.client)] {
                let end = connection.ends[me];
                if !matches!(end.hold, Hold::Open | Hold::Opening) {
                    continue;
                }
                let socket = ends[me].expect("an id in its owner's hands is in the table");
                assert!(socket.is_owned());
                let window = socket.window();
                let total = window.remaining() + window.undelivered() + window.owed();
                assert_eq!(total, self.owners.window[me] + window.grown(), "credit was lost or made");
                assert!(total <= self.owners.most[me], "it grew too far");
                assert_eq!(window.undelivered(), end.waiting);
                waiting[me] += window.bytes();
                assert!(!end.blocked || channel.credit(connection.socket) == 0, "nobody woke the writer");
                // Nobody may send more than the other one reckons with.
                let other = connection.ends[1 - me];
                if end.hold == Hold::Open
                    && other.hold == Hold::Open
                    && let Some(peer) = ends[1 - me]
                {
                    assert!(channel.credit(connection.socket) <= peer.window().remaining());
                }
            }
        }
        assert_eq!(waiting, [self.pair.server.waiting(), self.pair.client.waiting()]);
        for channel in [&self.pair.server, &self.pair.client] {
            let grown: u32 = channel.table.sockets().map(|socket| socket.grown()).sum();
            let reserved = channel.pool.bytes(channel.agreed_data());
            assert_eq!(reserved, grown as usize * channel.agreed_data(), "growth was lost or made");
            assert!(reserved <= channel.terms.config.memory_budget / 2);
        }
    }

    /// Ends every connection as good owners do; then nothing may be left.
    fn wind_down(&mut self) {
        self.pump();
        self.settle_names();
        for _ in 0..1000 {
            self.carry_all(4096);
            self.check();
            for number in 0..self.owners.connections.len() {
                for role in ROLES {
                    self.wind_down_end(number, role);
                }
            }
            if self.pair.server.sockets() + self.pair.client.sockets() == 0 {
                assert_eq!(self.pair.server.waiting() + self.pair.client.waiting(), 0);
                return self.reopen();
            }
        }
        panic!("sockets are left: {} {}", self.pair.server.sockets(), self.pair.client.sockets());
    }

    /// Sends more than a window over everything that is still open, so that a socket that has run dry is found out.
    fn pump(&mut self) {
        let target = u64::from(self.owners.most[0].max(self.owners.most[1])) + 3;
        let mut pumped = vec![[0u64; 2]; self.owners.connections.len()];
        for _ in 0..4 * target {
            self.carry_all(4096);
            let mut missing = false;
            for (number, pumped) in pumped.iter_mut().enumerate() {
                for role in ROLES {
                    let (me, end) = (index(role), self.owners.connections[number].ends[index(role)]);
                    if end.hold != Hold::Open {
                        continue;
                    }
                    let socket = self.owners.connections[number].socket;
                    let channel = self.pair.end(role);
                    channel.delivered(socket, end.waiting);
                    let before = end.sent;
                    let mut end = End { waiting: 0, ..end };
                    if !end.finished && !end.peer_closed {
                        while pumped[me] + end.sent - before < target
                            && channel.send(socket, |room| {
                                room[0] = byte_at(number, me, end.sent);
                                1
                            }) == 1
                        {
                            end.sent += 1;
                        }
                        // Where the other owner has gone, nobody takes what is sent.
                        missing |= pumped[me] + end.sent - before < target
                            && self.owners.connections[number].ends[1 - me].hold == Hold::Open;
                    }
                    pumped[me] += end.sent - before;
                    self.owners.connections[number].ends[me] = end;
                }
            }
            if !missing {
                return;
            }
        }
        panic!("a socket ran dry");
    }

    /// Every id can be used again, the lowest first.
    fn reopen(&mut self) {
        let service = self.owners.services[0];
        let most = self.pair.server.terms.config.max_sockets;
        for id in 0..most {
            assert_eq!(self.pair.server.open(service), Ok(SocketId(id)));
        }
        assert_eq!(self.pair.server.open(service), Err(OpenError::Full { limit: most }));
    }

    fn wind_down_end(&mut self, number: usize, role: Role) {
        let connection = &mut self.owners.connections[number];
        let socket = connection.socket;
        let end = &mut connection.ends[index(role)];
        let channel = self.pair.end(role);
        match (end.hold, role) {
            (Hold::Nothing | Hold::Gone, _) | (Hold::Opening, Role::Server) => {}
            (Hold::Opening, Role::Client) => {
                end.hold = Hold::Open;
                channel.accept(socket);
            }
            (Hold::Open, _) => {
                channel.delivered(socket, end.waiting);
                end.waiting = 0;
                if !end.finished {
                    end.finished = true;
                    channel.finish(socket);
                }
                if end.peer_closed || end.peer_finished {
                    end.hold = Hold::Gone;
                    channel.close(socket);
                }
            }
        }
    }
}

impl Owners {
    fn hear(&mut self, channel: &mut Channel, event: Event<'_>) {
        let role = channel.role();
        let me = index(role);
        let (socket, happening) = match event {
            Event::ServiceAdded(add) => {
                let due = self.names.due.take();
                assert!(due.is_none_or(|due| due == add.service), "described was another");
                let address = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
                return channel.map_service(add.service, address).expect("it was just added");
            }
            Event::ServiceRemoved { .. } | Event::ServiceMapped { .. } => return,
            Event::ServiceDescribed { .. }
            | Event::NameAsked { .. }
            | Event::NameAnswered { .. }
            | Event::DomainAdded { .. }
            | Event::DomainRemoved { .. } => return self.hear_name(channel, event),
            Event::ServiceRejected { .. }
            | Event::Ready { .. }
            | Event::Migrate
            | Event::Disconnecting { .. } => panic!("{event:?} between honest ends"),
            Event::Open { socket, service } => {
                assert!(self.services.contains(&service), "the client heard of what it does not offer");
                (socket, Happening::Open)
            }
            Event::Accepted { socket } => (socket, Happening::Accepted),
            Event::Refused { socket } => (socket, Happening::Gone),
            Event::Data { socket, payload } => (socket, Happening::Data(payload)),
            Event::Finished { socket } => (socket, Happening::Finished),
            Event::Writable { socket } => (socket, Happening::Writable),
            Event::PeerClosed { socket } => (socket, Happening::PeerClosed),
            Event::Reset { socket, cause } => {
                match cause {
                    ResetCause::Peer => {}
                    ResetCause::Memory { .. } => assert!(self.memory_is_short),
                    ResetCause::Violation(violation) => panic!("{violation} between honest ends"),
                }
                (socket, Happening::Gone)
            }
        };
        // The server cannot have given the id to another connection before the client answered for this one.
        let number = self.latest[usize::from(socket.0)].expect("the server opened it");
        let connection = &mut self.connections[number];
        let [server, client] = connection.ends.map(|end| end.sent);
        let peer_sent = [client, server][me];
        let end = &mut connection.ends[me];
        match happening {
            Happening::Open => {
                assert_eq!(end.hold, Hold::Nothing);
                end.hold = Hold::Opening;
            }
            Happening::Accepted => {
                assert_eq!(end.hold, Hold::Opening);
                end.hold = Hold::Open;
            }
            Happening::Data(payload) => {
                assert_eq!(end.hold, Hold::Open);
                assert!(!end.peer_finished && !payload.is_empty() && payload.len() <= channel.max_data());
                for byte in payload {
                    assert_eq!(*byte, byte_at(number, 1 - me, end.received), "a byte was lost or reordered");
                    end.received += 1;
                }
                end.waiting += 1;
            }
            Happening::Finished => {
                assert_eq!(end.hold, Hold::Open);
                assert!(!end.peer_finished, "told twice");
                assert_eq!(end.received, peer_sent, "bytes were lost before the end");
                end.peer_finished = true;
            }
            Happening::Writable => {
                assert_eq!(end.hold, Hold::Open);
                assert!(!end.finished && channel.credit(socket) > 0);
                end.blocked = false;
            }
            Happening::PeerClosed => {
                assert_eq!((end.hold, role), (Hold::Open, Role::Client));
                assert!(end.peer_finished);
                end.peer_closed = true;
                end.blocked = false;
            }
            Happening::Gone => {
                assert!(matches!(end.hold, Hold::Opening | Hold::Open));
                end.hold = Hold::Gone;
            }
        }
    }
}

enum Happening<'a> {
    Open,
    Accepted,
    Data(&'a [u8]),
    Finished,
    Writable,
    PeerClosed,
    Gone,
}
