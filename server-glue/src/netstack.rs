//! The virtual network's own host: TCP for every published address, sans-IO.
//!
//! # Calls
//!
//! * Getters: [`Netstack::can_recv`], [`Netstack::send_capacity`], [`Netstack::counters`], [`Netstack::flows`].
//! * Commands: [`Netstack::publish`], [`Netstack::withdraw`]; for one connection [`Netstack::accept`], [`Netstack::refuse`],
//!   [`Netstack::unreachable`], [`Netstack::recv`], [`Netstack::send`], [`Netstack::finish`], [`Netstack::reset`]; for all
//!   [`Netstack::set_offloads`], [`Netstack::link_lost`], [`Netstack::link_came`]; for names [`Netstack::name`], [`Netstack::unname`], [`Netstack::say_goodbye`]; for names
//!   of the user's side [`Netstack::tunnel_came`], [`Netstack::tunnel_gone`], [`Netstack::forget_tunnels`], [`Netstack::allow_domain`],
//!   [`Netstack::disallow_domain`], [`Netstack::name_answered`].
//! * Inputs: [`Netstack::handle_frame`], [`Netstack::handle_timeout`].
//! * Outputs: [`Netstack::poll_event`], [`Netstack::poll_name`], [`Netstack::poll_transmit`], [`Netstack::poll_timeout`].
//!
//! Feed every frame that is there, then drain events until `None`, then frames until `None` (or until the NIC is full: a
//! connection that could not send keeps its place in the queue), then wait until [`Netstack::poll_timeout`]. Commands
//! never send by themselves: frames come out of `poll_transmit` only, one connection after the other, a frame each.
//!
//! # A connection's life, and its events
//!
//! ```text
//!   guest's SYN ──► Connect ──accept──► Readable* Writable* Finished ──► Closed
//!                      │                        │
//!                      ├─refuse, unreachable    ├─reset (owner's)      no more events
//!                      └────────────────────────┴─► Reset
//! ```
//!
//! * `Connect`: once. The guest gets no answer until `accept` (SYN-ACK), `refuse` (RST) or `unreachable` (ICMP). Its repeated
//!   SYNs are ignored meanwhile. If none of the three comes within [`NetConfig::connect_deadline`], the guest is told host
//!   unreachable and the owner `Reset`.
//! * `Readable`: an edge. New octets are in the receive ring since the last `Readable` or `recv`. At most one is queued per
//!   connection. It does not come again for octets that were left: the owner must remember that it did not read all.
//! * `Writable`: an edge, only after a `send` that took less than it was given (0 during the handshake included): more than a
//!   quarter of the send ring is free now. At most one is queued per connection.
//! * `Finished`: once, when the guest has sent its FIN *and* everything before it was taken by `recv`. Sending goes on.
//! * `Closed`: once, the last. Both FINs were sent and acknowledged, and `Finished` was told. So the guest has everything.
//! * `Reset`: once, the last. What was not read yet is gone.
//!
//! A [`FlowId`] dies when `Closed` or `Reset` is *queued*, or with `refuse`, `unreachable` and `reset`. It is never given again. A
//! call with a dead one does nothing and returns 0, so nobody has to be careful with events that cross commands.
//!
//! # Bounds
//!
//! A guest can make us hold at most [`NetConfig::max_flows`] connections, of which [`NetConfig::max_half_open`] are not established:
//! beyond the first, a SYN is answered by RST, beyond the second it is dropped, and the guest tries again. A held SYN costs
//! some hundred octets, an accepted one its rings, as far as they were used. Once all rings together hold 512 MiB, each
//! takes 32 KiB at most: of a guest that sends on what does not fit is dropped, and sent again by it. TIME-WAIT needs no rings. Answers that wait for the NIC are
//! bounded, and dropped beyond that, as on any link.

mod dns;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use spice_proto::service_info::ServiceInfo;

use crate::dhcp::{DhcpConfig, DhcpServer};
use crate::engine::{Engine, Scratch};
use crate::ethernet::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, Edge, Upward};
use crate::flow::{Flow, FlowOptions, Progress, Rest, keep_syn, spare};
use crate::names::dns::streams::Streams;
use crate::names::{self, Names, mdns};
use crate::offload::{CardFrame, Offloads};
use crate::packet::{Segment, TcpFlags, Unreachable, put_tcp, put_udp, put_udp_ttl};
use crate::ring_socket::RingSocket;
use crate::table::{Content, Held, Pair, Table, Timer};

pub use self::dns::{DomainFault, NameFound};
pub use crate::counters::Counters;
pub use crate::net_config::{NetConfig, NetConfigError};
pub use crate::packet::MacAddress;
pub use crate::table::FlowId;

/// How long an address pair rests after we closed it first. The guest is the only link away, so no segment lives longer.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// How long a connection must be quiet before its rings give their memory back, which it takes anew afterwards: a microsecond for each 4 KiB.
const IDLE: Duration = Duration::from_secs(1);

/// Octets of memory that all rings may hold before each takes no more than [`SHORT`].
const RING_MEMORY: usize = 512 << 20;

/// Octets that a ring takes when memory is short. A connection goes on with them, more slowly.
const SHORT: usize = 32 * 1024;

/// Octets that a connection sends in a row before others have their turn. Whoever reads them in the guest is woken once then, and not by each
/// frame anew.
const TURN: usize = 64 * 1024;

/// Most sockets kept for the next connections.
const SPARES: usize = 1024;

/// What happened, for the owner of the connections. See the module's text for when each comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetEvent {
    /// The guest wants to connect. Answer with `accept`, `refuse` or `unreachable`.
    Connect {
        /// Names the connection from now on.
        flow: FlowId,
        /// The published address and port.
        destination: SocketAddr,
        /// The guest's address and port.
        source: SocketAddr,
    },
    /// New data can be read.
    Readable {
        /// Of this connection.
        flow: FlowId,
    },
    /// A `send` that was cut short can go on.
    Writable {
        /// Of this connection.
        flow: FlowId,
    },
    /// The guest sends no more, and everything it sent was read.
    Finished {
        /// Of this connection.
        flow: FlowId,
    },
    /// Both sides have closed, and the guest has everything. The flow is gone.
    Closed {
        /// It was this connection.
        flow: FlowId,
    },
    /// The connection broke. The flow is gone.
    Reset {
        /// It was this connection.
        flow: FlowId,
        /// Why.
        cause: ResetCause,
    },
    /// DHCP gave a guest its address, or confirmed it.
    GuestLeased {
        /// The guest's address on the link.
        mac: MacAddress,
        /// Its address in the virtual network.
        address: IpAddr,
    },
}

/// Why a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// The guest reset it.
    Guest,
    /// The guest did not answer for [`NetConfig::dead_after`].
    Dead,
    /// Nobody decided about its SYN within [`NetConfig::connect_deadline`].
    Undecided,
    /// The NIC's other end went away ([`Netstack::link_lost`]).
    LinkLost,
}

/// See the module's text.
pub struct Netstack {
    edge: Edge,
    dhcp: DhcpServer,
    engine: Engine,
    /// Made the engine, and the next one.
    seed: u64,
    mtu: u16,
    options: FlowOptions,
    max_flows: usize,
    max_half_open: usize,
    connect_deadline: Duration,
    /// Octets of memory that all rings may hold before each is given only [`SHORT`].
    ring_memory: usize,
    names: Names,
    table: Table,
    /// Sockets of connections that are gone, for the next ones.
    spares: Vec<RingSocket>,
    events: VecDeque<NetEvent>,
    has_dns: bool,
    /// Connections to the DNS server.
    streams: Streams,
    /// What happened to them.
    stream_events: VecDeque<NetEvent>,
    scratch: Scratch,
    /// Whose turn it is to send, and how many octets are left of it.
    turn: Option<(u32, usize)>,
    counters: Counters,
}

impl Netstack {
    /// A virtual network where nothing is published yet.
    pub fn new(config: NetConfig) -> Netstack {
        let ring = |size: usize| size.clamp(4096, 1 << 30);
        let mtu = config.mtu.max(576);
        let mut edge = Edge::new(config.mac, config.subnet, config.gateway);
        if config.domain.is_some() {
            edge.publish(config.gateway.into(), names::dns::PORT);
        }
        let mut names = Names::new(config.gateway, mtu, config.seed);
        if let Some(domain) = &config.domain {
            names = names.with_dns(domain, config.subnet, mtu);
        }
        Netstack {
            streams: Streams::default(),
            stream_events: VecDeque::new(),
            edge,
            dhcp: DhcpServer::new(DhcpConfig {
                server: config.gateway,
                subnet: config.subnet,
                range: config.guests,
                mtu,
                lease_time: config.lease_time,
                domain: config.domain.clone().filter(|_| config.announce_dns),
            }),
            engine: Engine::new(config.seed, mtu, Offloads::NONE),
            seed: config.seed,
            mtu,
            options: FlowOptions {
                receive_buffer: ring(config.receive_buffer),
                send_buffer: ring(config.send_buffer),
                keepalive: config.keepalive,
                dead_after: config.dead_after,
            },
            max_flows: config.max_flows,
            max_half_open: config.max_half_open,
            connect_deadline: config.connect_deadline,
            ring_memory: RING_MEMORY,
            names,
            has_dns: config.domain.is_some(),
            table: Table::new(),
            spares: Vec::new(),
            events: VecDeque::new(),
            scratch: Scratch::new(),
            turn: None,
            counters: Counters::default(),
        }
    }

    /// With less memory for its rings.
    #[cfg(test)]
    pub(crate) fn with_ring_memory(self, ring_memory: usize) -> Netstack {
        Netstack { ring_memory, ..self }
    }

    // Getters.

    /// What was seen and done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections in the table: held, open, and those whose last data is not read or whose RST is not sent.
    pub fn flows(&self) -> usize {
        self.table.used()
    }

    /// Those of them that are not established.
    pub fn half_open(&self) -> usize {
        self.table.half_open()
    }

    /// Octets that [`Netstack::recv`] could take (not necessarily in one piece).
    pub fn can_recv(&self, flow: FlowId) -> usize {
        self.table.connection(flow).map_or(0, |connection| connection.flow.recv_queue())
    }

    /// Octets that [`Netstack::send`] would take now. 0 during the handshake, and after `finish`.
    pub fn send_capacity(&self, flow: FlowId) -> usize {
        self.table.connection(flow).map_or(0, |connection| connection.flow.send_capacity(self.most()))
    }

    // Commands.

    /// From now on `address` exists, and `port` of it can be connected to.
    pub fn publish(&mut self, address: IpAddr, port: u16) {
        self.edge.publish(address, port);
    }

    /// No new connections to `port` of `address`. Connections that are open stay; without them, and without any published port, the
    /// address does not exist any more.
    pub fn withdraw(&mut self, address: IpAddr, port: u16) {
        self.edge.withdraw(address, port);
    }

    /// Lets the guest connect. The handshake goes on by itself; a `send` before its end takes nothing, and `Writable` comes with it.
    pub fn accept(&mut self, now: Instant, flow: FlowId) {
        let Some(held) = self.table.take_held(flow) else { return };
        let spare = self.spares.pop().unwrap_or_else(|| spare(&self.options));
        let accepted = Flow::accept(
            &mut self.engine,
            now,
            (spare, &self.options),
            held.pair.local,
            &held.syn,
            &mut self.scratch,
        );
        self.counters.accepted += 1;
        self.table.open(flow, &held, accepted);
        self.table.make_ready(flow.slot());
        self.settle(now, flow.slot());
    }

    /// Nobody listens there (any more): RST, so that the guest sees "connection refused".
    pub fn refuse(&mut self, now: Instant, flow: FlowId) {
        if let Some(held) = self.table.take_held(flow) {
            self.reset_held(&held);
            self.release(flow.slot());
        } else {
            self.reset(now, flow);
        }
    }

    /// The way there is barred: ICMP host unreachable, so that the guest sees "no route to host". For a connection that was accepted it
    /// is a reset.
    pub fn unreachable(&mut self, now: Instant, flow: FlowId) {
        if let Some(held) = self.table.take_held(flow) {
            self.bar_held(&held);
            self.release(flow.slot());
        } else {
            self.reset(now, flow);
        }
    }

    /// Offers the next received octets to `take`, which says how many it took; that is also returned. The piece ends where the ring wraps round or
    /// the data ends, so call it again after it was taken whole.
    pub fn recv(&mut self, now: Instant, flow: FlowId, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some(connection) = self.table.connection_mut(flow) else { return 0 };
        let taken = connection.flow.recv(take);
        if taken > 0 {
            self.table.stir(flow, now + IDLE);
            // The window may have opened.
            self.table.make_ready(flow.slot());
            self.settle(now, flow.slot());
        }
        taken
    }

    /// Gives octets for the guest; returns how many were taken. Fewer than given: `Writable` will come.
    pub fn send(&mut self, now: Instant, flow: FlowId, data: &[u8]) -> usize {
        let most = self.most();
        let Some(connection) = self.table.connection_mut(flow) else { return 0 };
        let taken = connection.flow.send(data, most);
        if taken > 0 {
            self.table.stir(flow, now + IDLE);
            self.table.make_ready(flow.slot());
        }
        taken
    }

    /// No more will be sent: FIN behind what was. Reading goes on. If the guest finished first, the FIN waits until it has
    /// acknowledged everything before.
    pub fn finish(&mut self, now: Instant, flow: FlowId) {
        let Some(connection) = self.table.connection_mut(flow) else { return };
        connection.flow.close();
        self.table.make_ready(flow.slot());
        self.settle(now, flow.slot());
    }

    /// Breaks a connection: RST, and what is not sent or read yet is gone. No event follows.
    pub fn reset(&mut self, _now: Instant, flow: FlowId) {
        if let Some(held) = self.table.take_held(flow) {
            self.reset_held(&held);
            self.release(flow.slot());
            return;
        }
        let Some(connection) = self.table.connection_mut(flow) else { return };
        connection.owned = false;
        if connection.is_linked() {
            connection.flow.abort();
            self.counters.resets += 1;
            self.table.make_ready(flow.slot());
        } else {
            self.release(flow.slot());
        }
    }

    /// The guest is not at the other end of the NIC any more. Every connection ends with `Reset`, nothing is sent; a guest that comes later finds
    /// the same addresses published.
    pub fn link_lost(&mut self) {
        for flow in self.table.release_all() {
            self.counters.resets += 1;
            if !self.streams.forget(flow) {
                self.events.push_back(NetEvent::Reset { flow, cause: ResetCause::LinkLost });
            }
        }
        self.stream_events.clear();
        self.edge.outbox.clear();
        self.names.link_lost();
    }

    /// What is published at this address and port has a name now, and may say something of itself, by which the guest finds it.
    pub fn name(&mut self, now: Instant, at: SocketAddr, device: &str, info: Option<&ServiceInfo>) {
        self.names.publish(now, at, device, info);
    }

    /// What was published at this address and port has no name any more.
    pub fn unname(&mut self, now: Instant, at: SocketAddr) {
        self.names.withdraw(now, at);
    }

    /// What is left to the card from now on. To be said before the first frame of a link: if it is something new, every connection ends as with
    /// [`Netstack::link_lost`].
    pub fn set_offloads(&mut self, offloads: Offloads) {
        if offloads != self.engine.offloads() {
            self.link_lost();
            // Another seed, or sequence numbers would begin again where they did.
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.engine = Engine::new(self.seed, self.mtu, offloads);
        }
    }

    /// A guest is at the other end of the NIC, maybe not the one that was there before.
    pub fn link_came(&mut self, now: Instant) {
        self.names.guest_came(now);
    }

    /// Tells the guest that none of the names will be there any more.
    pub fn say_goodbye(&mut self, now: Instant) {
        self.names.say_goodbye(now);
    }

    // Inputs.

    /// A frame from the guest, without its check sequence. Whatever it is: bad ones are counted and dropped.
    pub fn handle_frame<'a>(&mut self, now: Instant, frame: impl Into<CardFrame<'a>>) {
        match self.edge.receive(now, frame.into(), &self.table, &mut self.counters) {
            Some(Upward::Tcp { from, segment }) => self.handle_segment(now, from, &segment),
            Some(Upward::Dhcp { from, message }) => self.handle_dhcp(now, from, message),
            Some(Upward::Names(asked)) => self.names.handle(now, &asked, &mut self.counters),
            None => {}
        }
        // What a connection to the DNS server asked may have to be asked of the tunnel's client at once.
        self.serve_streams(now);
    }

    /// Time has passed: whatever was due happens. Harmless if nothing was.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.table.take_due(now) {
            match timer {
                Timer::Rest(_) => {}
                Timer::Slot(slot) => self.slot_due(slot),
                Timer::Tidy(flow) => self.table.tidy(flow, now + IDLE),
            }
        }
        self.names.handle_timeout(now, &mut self.counters);
        self.streams_due(now);
    }

    // Outputs.

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<NetEvent> {
        let event = self.events.pop_front()?;
        self.told(event);
        Some(event)
    }

    /// An event was taken by whom it is for, so that another of its kind may come.
    fn told(&mut self, event: NetEvent) {
        match event {
            NetEvent::Readable { flow } => {
                if let Some(connection) = self.table.connection_mut(flow) {
                    connection.readable_queued = false;
                }
            }
            NetEvent::Writable { flow } => {
                if let Some(connection) = self.table.connection_mut(flow) {
                    connection.writable_queued = false;
                }
            }
            NetEvent::Connect { .. }
            | NetEvent::Finished { .. }
            | NetEvent::Closed { .. }
            | NetEvent::Reset { .. }
            | NetEvent::GuestLeased { .. } => {}
        }
    }

    /// The next frame for the guest. Answers come first, then the connections in turn.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<CardFrame<'_>> {
        loop {
            self.serve_streams(now);
            if self.edge.outbox.is_empty()
                && let Some(answer) = self.names.poll_transmit()
            {
                self.counters.mdns_out += u64::from(answer.source.port() == mdns::PORT);
                self.edge.send_ipv4(answer.to, &mut self.counters, |out| {
                    put_udp_ttl(out, answer.source, answer.destination, 255, &answer.message);
                });
            }
            if !self.edge.outbox.is_empty() {
                self.counters.frames_out += 1;
                return self.edge.outbox.pop().map(CardFrame::whole);
            }
            let (slot, left) = match self.turn.take() {
                Some(turn) => turn,
                None => (self.table.next_ready()?, TURN),
            };
            if self.transmit(now, slot) {
                self.counters.frames_out += 1;
                match left.checked_sub(self.scratch.frame().len()) {
                    Some(left) => self.turn = Some((slot, left)),
                    None => self.table.make_ready(slot),
                }
                return Some(CardFrame {
                    bytes: self.scratch.frame(),
                    vouched: self.engine.offloads().checksums,
                    segment: self.scratch.segment(),
                });
            }
        }
    }

    /// When [`Netstack::handle_timeout`] must be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.table.next_due(), self.names.poll_timeout(), self.streams.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    // Segments, from here on private.

    fn handle_segment(&mut self, now: Instant, from: MacAddress, segment: &Segment<'_>) {
        let pair = Pair::of(segment);
        if let Some(slot) = self.table.find(&pair) {
            self.handle_known(now, slot, from, segment);
            return;
        }
        if let Some(rest) = self.table.rest_of(&pair)
            && !self.ends_rest(now, pair, rest, from, segment)
        {
            return;
        }
        if segment.flags.opens() {
            self.handle_syn(now, from, segment);
        } else {
            self.counters.stray += 1;
            self.send_rst(from, segment);
        }
    }

    fn handle_known(&mut self, now: Instant, slot: u32, from: MacAddress, segment: &Segment<'_>) {
        let flow = self.table.id(slot);
        let local = segment.destination;
        let most = self.most();
        match self.table.content_mut(slot) {
            Some(Content::Free) | None => {}
            Some(Content::Held(held)) => {
                held.guest = from;
                if segment.flags.has(TcpFlags::RST) {
                    // What an aborted connect sends: its own sequence number or the next.
                    if segment.sequence.wrapping_sub(held.sequence) <= 1 {
                        self.release(slot);
                        self.counters.resets += 1;
                        self.tell(local, NetEvent::Reset { flow, cause: ResetCause::Guest });
                    }
                } else if segment.flags.opens()
                    && segment.sequence != held.sequence
                    && let Some(syn) = keep_syn(segment)
                {
                    // The guest gave up the first attempt without a word and tries again from the same port.
                    held.sequence = segment.sequence;
                    held.syn = syn;
                }
            }
            Some(Content::Connection(connection)) => {
                if !segment.data.is_empty() && connection.flow.recv_queue() >= most {
                    self.counters.rings_full += 1;
                    return;
                }
                connection.guest = from;
                let edge = &mut self.edge;
                let counters = &mut self.counters;
                let unsummed = self.engine.offloads().checksums;
                connection.flow.feed(&mut self.engine, now, segment, &mut self.scratch, |reply| {
                    reply.set_header(&edge.header(from));
                    if unsummed {
                        reply.complete_checksum();
                    }
                    edge.send_frame(counters, reply.frame());
                });
                self.table.stir(flow, now + IDLE);
                self.table.make_ready(slot);
                self.settle(now, slot);
            }
        }
    }

    fn handle_syn(&mut self, now: Instant, from: MacAddress, segment: &Segment<'_>) {
        let pair = Pair::of(segment);
        if !self.edge.is_published(pair.local.ip(), pair.local.port()) {
            self.counters.refused += 1;
            self.send_rst(from, segment);
            return;
        }
        if self.flows() >= self.max_flows {
            self.counters.flows_full += 1;
            self.send_rst(from, segment);
            return;
        }
        // An owner that does not drain its events must not let them grow without end either.
        if self.table.half_open() >= self.max_half_open || self.events.len() >= 4 * self.max_flows.max(1024) {
            self.counters.half_open_full += 1;
            return;
        }
        let Some(syn) = keep_syn(segment) else {
            self.counters.malformed += 1;
            return;
        };
        let deadline = now + self.connect_deadline;
        let held = Held { pair, guest: from, sequence: segment.sequence, syn, deadline };
        let Some(flow) = self.table.hold(held) else { return };
        self.counters.connects += 1;
        let connect = NetEvent::Connect { flow, destination: pair.local, source: pair.guest };
        self.tell(pair.local, connect);
    }

    /// A segment for an address pair in TIME-WAIT. True: it is a new connection's, and the pair does not rest any more.
    fn ends_rest(
        &mut self,
        now: Instant,
        pair: Pair,
        rest: Rest,
        from: MacAddress,
        segment: &Segment<'_>,
    ) -> bool {
        // RFC 1337: a reset must not end TIME-WAIT.
        if segment.flags.has(TcpFlags::RST) {
            return false;
        }
        // RFC 9293 3.10.7.4: beyond all old sequence numbers it can only be a new connection.
        let newer = segment.sequence.wrapping_sub(rest.next_receive).wrapping_sub(1) < 1 << 31;
        if segment.flags.opens() && newer {
            self.table.end_rest(&pair);
            return true;
        }
        if segment.sequence_len() > 0 {
            // Its FIN again: our acknowledgement was lost.
            self.table.rest(pair, rest, now + TIME_WAIT);
            self.send_segment(from, pair, rest.next_send, rest.next_receive, TcpFlags::ACK);
        }
        false
    }

    /// RST in answer to a segment that belongs to nothing (RFC 9293 3.10.7.1).
    fn send_rst(&mut self, to: MacAddress, segment: &Segment<'_>) {
        if segment.flags.has(TcpFlags::RST) {
            return;
        }
        let pair = Pair::of(segment);
        if segment.flags.has(TcpFlags::ACK) {
            self.send_segment(to, pair, segment.acknowledgement, 0, TcpFlags::RST);
        } else {
            let acknowledgement = segment.sequence.wrapping_add(segment.sequence_len());
            self.send_segment(to, pair, 0, acknowledgement, TcpFlags(TcpFlags::RST.0 | TcpFlags::ACK.0));
        }
    }

    fn send_segment(
        &mut self,
        to: MacAddress,
        pair: Pair,
        sequence: u32,
        acknowledgement: u32,
        flags: TcpFlags,
    ) {
        let (SocketAddr::V4(local), SocketAddr::V4(guest)) = (pair.local, pair.guest) else { return };
        self.edge.send_ipv4(to, &mut self.counters, |out| {
            put_tcp(out, local, guest, sequence, acknowledgement, flags);
        });
    }

    fn reset_held(&mut self, held: &Held) {
        let flags = TcpFlags(TcpFlags::RST.0 | TcpFlags::ACK.0);
        self.send_segment(held.guest, held.pair, 0, held.sequence.wrapping_add(1), flags);
    }

    fn bar_held(&mut self, held: &Held) {
        let SocketAddr::V4(guest) = held.pair.guest else { return };
        self.edge.send_unreachable(held.guest, *guest.ip(), Unreachable::Host, &held.syn, &mut self.counters);
    }

    // One connection's turn, and what it leads to.

    /// True: a frame stands in the scratch.
    fn transmit(&mut self, now: Instant, slot: u32) -> bool {
        let Some(connection) = self.table.connection_at(slot) else { return false };
        let sent = connection.flow.emit(&mut self.engine, now, &mut self.scratch);
        if sent {
            self.scratch.set_header(&self.edge.header(connection.guest));
            if self.engine.offloads().checksums {
                self.scratch.leave_checksum();
            }
        } else {
            let deadline = connection.flow.deadline(&mut self.engine, now);
            self.table.set_timer(slot, deadline);
        }
        self.settle(now, slot);
        sent
    }

    /// Octets that one ring may hold.
    fn most(&self) -> usize {
        if self.table.held() < self.ring_memory { usize::MAX } else { SHORT }
    }

    fn slot_due(&mut self, slot: u32) {
        let flow = self.table.id(slot);
        if let Some(held) = self.table.take_held(flow) {
            self.bar_held(&held);
            self.release(slot);
            self.counters.resets += 1;
            self.tell(held.pair.local, NetEvent::Reset { flow, cause: ResetCause::Undecided });
        } else {
            self.table.make_ready(slot);
        }
    }

    /// Frees a place, and keeps what is worth keeping of its connection.
    fn release(&mut self, slot: u32) {
        if let Some(flow) = self.table.release(slot)
            && self.spares.len() < SPARES
        {
            self.spares.push(flow.recycle());
        }
    }

    /// Tells the owner what is new, and lets go of what is over.
    fn settle(&mut self, now: Instant, slot: u32) {
        let flow = self.table.id(slot);
        let Some(connection) = self.table.connection_at(slot) else { return };
        let (owned, pair, linked) = (connection.owned, connection.pair(), connection.is_linked());
        let ended = match connection.flow.progress() {
            Progress::Opening => None,
            Progress::Open => {
                self.table.opened(slot);
                None
            }
            Progress::Over { rest } => {
                self.table.opened(slot);
                if linked {
                    self.table.unlink(slot);
                    // Without a place in TIME-WAIT a late FIN is answered by RST: no harm, the guest has everything.
                    if let Some(rest) = rest
                        && self.table.resting() < self.max_flows
                    {
                        self.table.rest(pair, rest, now + TIME_WAIT);
                    }
                }
                None
            }
            Progress::Reset => Some(ResetCause::Guest),
            Progress::Aborted => Some(ResetCause::Dead),
        };
        if let Some(cause) = ended {
            self.release(slot);
            if owned {
                self.counters.resets += 1;
                self.tell(pair.local, NetEvent::Reset { flow, cause });
            }
            return;
        }
        let most = self.most();
        let Some(connection) = self.table.connection_mut(flow) else { return };
        let news = connection.flow.news(most);
        let readable = news.readable && !std::mem::replace(&mut connection.readable_queued, true);
        let writable = news.writable && !std::mem::replace(&mut connection.writable_queued, true);
        let done = connection.flow.is_done();
        if readable {
            self.tell(pair.local, NetEvent::Readable { flow });
        }
        if writable {
            self.tell(pair.local, NetEvent::Writable { flow });
        }
        if news.finished {
            self.tell(pair.local, NetEvent::Finished { flow });
        }
        if done {
            self.release(slot);
            self.counters.closed += 1;
            self.tell(pair.local, NetEvent::Closed { flow });
        }
    }

    fn handle_dhcp(&mut self, now: Instant, from: MacAddress, message: &[u8]) {
        let Some(answer) = self.dhcp.handle(now, message) else {
            self.counters.dhcp_ignored += 1;
            return;
        };
        self.counters.dhcp_answered += 1;
        let server = SocketAddrV4::new(self.dhcp.server(), DHCP_SERVER_PORT);
        let client = SocketAddrV4::new(answer.to, DHCP_CLIENT_PORT);
        let station = if answer.to.is_broadcast() { MacAddress::BROADCAST } else { from };
        self.edge.send_ipv4(station, &mut self.counters, |out| {
            put_udp(out, server, client, &answer.message);
        });
        if let Some((mac, address)) = answer.leased {
            // Who has just got its address has not heard what was said before.
            self.names.guest_came(now);
            self.events.push_back(NetEvent::GuestLeased { mac, address: address.into() });
        }
    }
}
