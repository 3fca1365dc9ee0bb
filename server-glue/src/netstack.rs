//! The virtual network's own host: TCP for every published address, sans-IO.
//!
//! # Calls
//!
//! * Getters: [`Netstack::can_recv`], [`Netstack::send_capacity`], [`Netstack::counters`], [`Netstack::flows`].
//! * Commands: [`Netstack::publish`], [`Netstack::withdraw`]; for one connection [`Netstack::accept`], [`Netstack::refuse`],
//!   [`Netstack::unreachable`], [`Netstack::recv`], [`Netstack::send`], [`Netstack::finish`], [`Netstack::reset`]; for all
//!   [`Netstack::link_lost`].
//! * Inputs: [`Netstack::handle_frame`], [`Netstack::handle_timeout`].
//! * Outputs: [`Netstack::poll_event`], [`Netstack::poll_transmit`], [`Netstack::poll_timeout`].
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
//! some hundred octets, an accepted one its rings, as far as they were used. TIME-WAIT needs no rings. Answers that wait
//! for the NIC are bounded, and dropped beyond that, as on any link.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::address::{Subnet, SubnetError};
use crate::dhcp::{DhcpConfig, DhcpServer};
use crate::ethernet::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, Edge, Upward};
use crate::flow::{Engine, Flow, FlowOptions, Progress, Rest, Scratch, keep_syn};
use crate::packet::{Segment, TcpFlags, Unreachable, put_tcp, put_udp};

pub use crate::packet::MacAddress;

/// How long an address pair rests after we closed it first. The guest is the only link away, so no segment lives longer.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// One guest connection. Never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    slot: u32,
    generation: u32,
}

/// How the virtual network is laid out, and its limits.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The virtual network. Only IPv4 is answered as yet.
    pub subnet: Subnet,
    /// Our own address in it: DHCP server, source of ICMP errors.
    pub gateway: Ipv4Addr,
    /// First and last address that DHCP gives.
    pub guests: (Ipv4Addr, Ipv4Addr),
    /// Our address on the link; unicast.
    pub mac: MacAddress,
    /// Largest IP packet, 576 to 65,535 octets. Told to the guest by DHCP.
    pub mtu: u16,
    /// How long a guest may use its address without asking again.
    pub lease_time: Duration,
    /// Most connections at once, held SYNs included.
    pub max_flows: usize,
    /// Most connections at once that are not established.
    pub max_half_open: usize,
    /// How long a SYN is held for its owner to decide.
    pub connect_deadline: Duration,
    /// Start of the initial sequence numbers; from a random source.
    pub seed: u64,
    /// Octets that one connection may receive before its owner reads them: 4 KiB to 1 GiB. Memory is used as it is filled.
    pub receive_buffer: usize,
    /// Octets that one connection may have sent without acknowledgement: 4 KiB to 1 GiB. Memory is used as it is filled.
    pub send_buffer: usize,
    /// How long a connection may be silent before the guest is asked whether it still has it.
    pub keepalive: Duration,
    /// How long the guest may leave us without any answer before a connection is given up.
    pub dead_after: Duration,
}

impl NetConfig {
    /// The usual layout of a subnet: its first address is the gateway's, the next ones (253, or a quarter of a small subnet) are for guests,
    /// the rest for services.
    ///
    /// # Errors
    /// Not an IPv4 subnet, or one with less than 14 hosts.
    pub fn new(subnet: Subnet) -> Result<NetConfig, NetConfigError> {
        let network = match subnet.network() {
            IpAddr::V4(network) if subnet.prefix() <= 28 => network,
            IpAddr::V4(_) => return Err(NetConfigError::Small(subnet)),
            IpAddr::V6(_) => return Err(NetConfigError::Version(subnet)),
        };
        let hosts = (1u32 << (32 - u32::from(subnet.prefix()))) - 2;
        let guests = (hosts / 4).min(253);
        // Within the subnet, hence within 32 bits.
        let nth = |index: u32| Ipv4Addr::from_bits(network.to_bits().wrapping_add(index));
        Ok(NetConfig {
            subnet,
            gateway: nth(1),
            guests: (nth(2), nth(1 + guests)),
            mac: MacAddress([0x02, 0x53, 0x50, 0x54, 0x00, 0x01]),
            mtu: 65_520,
            lease_time: Duration::from_secs(12 * 3600),
            max_flows: 16_384,
            max_half_open: 1024,
            connect_deadline: Duration::from_secs(60),
            seed: 0,
            receive_buffer: 256 * 1024,
            send_buffer: 256 * 1024,
            keepalive: Duration::from_secs(45),
            dead_after: Duration::from_secs(180),
        })
    }

    /// The address ranges that no service may get: the gateway's and the guests', ends included.
    pub fn reserved(&self) -> Vec<(IpAddr, IpAddr)> {
        let gateway = IpAddr::V4(self.gateway);
        vec![(gateway, gateway), (self.guests.0.into(), self.guests.1.into())]
    }
}

impl Default for NetConfig {
    /// 198.18.0.0/16, of the range set aside for network tests (RFC 2544): no user's network has it, so nothing is hidden by it.
    fn default() -> NetConfig {
        let subnet = Subnet::new(Ipv4Addr::new(198, 18, 0, 0).into(), 16);
        match subnet.map_err(NetConfigError::from).and_then(NetConfig::new) {
            Ok(config) => config,
            Err(error) => unreachable!("a constant: {error}"),
        }
    }
}

/// Why a subnet cannot be the virtual network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetConfigError {
    /// Too few addresses.
    #[error("{0} is too small: expected a prefix of at most 28, better 16")]
    Small(Subnet),
    /// Not IPv4.
    #[error("{0} is not an IPv4 subnet; the guest is answered on IPv4 only")]
    Version(Subnet),
    /// Not a subnet at all.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
}

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
        address: Ipv4Addr,
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

/// What the netstack has seen and done since it started, in packets where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Too short, or with lengths or fields that cannot be.
    pub malformed: u64,
    /// Damaged.
    pub bad_checksum: u64,
    /// Pieces of IPv4 datagrams; we do not put them together.
    pub fragments: u64,
    /// IPv6, not answered yet.
    pub ipv6: u64,
    /// Of a kind that we do not know (VLAN tags, IPX, …).
    pub unknown_protocol: u64,
    /// From a sender that cannot be: a group, outside the subnet, one of our own addresses.
    pub martian: u64,
    /// To another station, or to all of them.
    pub not_for_us: u64,
    /// ARP for what does not exist, or the guest's own.
    pub arp_unanswered: u64,
    /// Pings answered.
    pub echo_replies: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// ICMP errors not sent, because too many were.
    pub icmp_errors_withheld: u64,
    /// ICMP that needs no answer.
    pub icmp_ignored: u64,
    /// Answers dropped, because too many wait for the NIC.
    pub outbox_full: u64,
    /// DHCP messages that were answered.
    pub dhcp_answered: u64,
    /// DHCP messages that were not.
    pub dhcp_ignored: u64,
    /// SYNs that became a `Connect`.
    pub connects: u64,
    /// SYNs refused, because nothing is published there.
    pub refused: u64,
    /// SYNs dropped: too many connections are not established.
    pub half_open_full: u64,
    /// SYNs refused: too many connections.
    pub flows_full: u64,
    /// Segments of no connection, answered by RST.
    pub stray: u64,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that ended in order.
    pub closed: u64,
    /// Connections that broke, for whatever cause.
    pub resets: u64,
}

impl Counters {
    pub(crate) fn sent_or_dropped(&mut self, sent: bool) {
        self.outbox_full += u64::from(!sent);
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pair {
    guest: SocketAddr,
    local: SocketAddr,
}

impl Pair {
    fn of(segment: &Segment<'_>) -> Pair {
        Pair { guest: segment.source, local: segment.destination }
    }
}

/// Who wants to be called at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Slot(u32),
    Rest(Pair),
}

/// One place in the table.
struct Slot {
    /// How often it was used: distinguishes the connections that had it.
    generation: u32,
    /// It is in `ready`, where it may outlive the connection that put it there.
    ready: bool,
    content: Content,
}

enum Content {
    Free,
    Held(Held),
    Connection(Box<Connection>),
}

/// A SYN whose owner has not decided yet.
struct Held {
    pair: Pair,
    guest: MacAddress,
    sequence: u32,
    /// The SYN without its data, as an IPv4 packet.
    syn: Box<[u8]>,
    deadline: Instant,
}

struct Connection {
    pair: Pair,
    guest: MacAddress,
    flow: Flow,
    /// It is in `by_pair`: segments find it. Not any more once both ends closed and only reading is left.
    linked: bool,
    /// Its owner still knows it. Not any more while its RST waits to be sent.
    owned: bool,
    /// Counted in `half_open`.
    half_open: bool,
    /// Its entry in `timers`.
    timer: Option<Instant>,
    readable_queued: bool,
    writable_queued: bool,
}

/// TIME-WAIT: the address pair of a connection that we closed first.
struct Resting {
    rest: Rest,
    until: Instant,
}

/// See the module's text.
pub struct Netstack {
    edge: Edge,
    dhcp: DhcpServer,
    engine: Engine,
    options: FlowOptions,
    max_flows: usize,
    max_half_open: usize,
    connect_deadline: Duration,
    slots: Vec<Slot>,
    /// Free places in `slots`.
    free: Vec<u32>,
    by_pair: HashMap<Pair, u32>,
    resting: HashMap<Pair, Resting>,
    half_open: usize,
    /// Connections that may have something to send, in turn.
    ready: VecDeque<u32>,
    timers: BTreeSet<(Instant, Timer)>,
    events: VecDeque<NetEvent>,
    scratch: Scratch,
    counters: Counters,
}

impl Netstack {
    /// A virtual network where nothing is published yet.
    pub fn new(config: NetConfig) -> Netstack {
        let ring = |size: usize| size.clamp(4096, 1 << 30);
        let mtu = config.mtu.max(576);
        Netstack {
            edge: Edge::new(config.mac, config.subnet, config.gateway),
            dhcp: DhcpServer::new(DhcpConfig {
                server: config.gateway,
                subnet: config.subnet,
                range: config.guests,
                mtu,
                lease_time: config.lease_time,
            }),
            engine: Engine::new(config.seed, mtu),
            options: FlowOptions {
                receive_buffer: ring(config.receive_buffer),
                send_buffer: ring(config.send_buffer),
                keepalive: config.keepalive,
                dead_after: config.dead_after,
            },
            max_flows: config.max_flows,
            max_half_open: config.max_half_open,
            connect_deadline: config.connect_deadline,
            slots: Vec::new(),
            free: Vec::new(),
            by_pair: HashMap::new(),
            resting: HashMap::new(),
            half_open: 0,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            events: VecDeque::new(),
            scratch: Scratch::new(),
            counters: Counters::default(),
        }
    }

    // Getters.

    /// What was seen and done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections in the table: held, open, and those whose last data is not read or whose RST is not sent.
    pub fn flows(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Octets that [`Netstack::recv`] could take (not necessarily in one piece).
    pub fn can_recv(&self, flow: FlowId) -> usize {
        self.connection(flow).map_or(0, |connection| connection.flow.recv_queue())
    }

    /// Octets that [`Netstack::send`] would take now. 0 during the handshake, and after `finish`.
    pub fn send_capacity(&self, flow: FlowId) -> usize {
        self.connection(flow).map_or(0, |connection| connection.flow.send_capacity())
    }

    // Commands.

    /// From now on `address` exists, and `port` of it can be connected to.
    pub fn publish(&mut self, address: IpAddr, port: u16) {
        self.edge.publish(address, port);
    }

    /// No new connections to `port` of `address`; without any published port the address does not exist any more. Connections that
    /// are open stay.
    pub fn withdraw(&mut self, address: IpAddr, port: u16) {
        self.edge.withdraw(address, port);
    }

    /// Lets the guest connect. The handshake goes on by itself; a `send` before its end takes nothing, and `Writable` comes with it.
    pub fn accept(&mut self, now: Instant, flow: FlowId) {
        let Some(held) = self.take_held(flow) else { return };
        let accepted =
            Flow::accept(&mut self.engine, now, &self.options, held.pair.local, &held.syn, &mut self.scratch);
        self.counters.accepted += 1;
        let connection = Connection {
            pair: held.pair,
            guest: held.guest,
            flow: accepted,
            linked: true,
            owned: true,
            half_open: true,
            timer: None,
            readable_queued: false,
            writable_queued: false,
        };
        // Still half open: the quota goes over from the SYN to the handshake.
        self.half_open += 1;
        if let Some(slot) = self.slot_mut(flow) {
            slot.content = Content::Connection(Box::new(connection));
            self.by_pair.insert(held.pair, flow.slot);
        }
        self.make_ready(flow.slot);
        self.settle(now, flow.slot);
    }

    /// Nobody listens there (any more): RST, so that the guest sees "connection refused".
    pub fn refuse(&mut self, now: Instant, flow: FlowId) {
        if let Some(held) = self.take_held(flow) {
            self.reset_held(&held);
            self.release(flow.slot);
        } else {
            self.reset(now, flow);
        }
    }

    /// The way there is barred: ICMP host unreachable, so that the guest sees "no route to host". For a connection that was accepted it
    /// is a reset.
    pub fn unreachable(&mut self, now: Instant, flow: FlowId) {
        if let Some(held) = self.take_held(flow) {
            self.bar_held(&held);
            self.release(flow.slot);
        } else {
            self.reset(now, flow);
        }
    }

    /// Offers the next received octets to `take`, which says how many it took; that is also returned. The piece ends where the ring wraps round or
    /// the data ends, so call it again after it was taken whole.
    pub fn recv(&mut self, now: Instant, flow: FlowId, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some(connection) = self.connection_mut(flow) else { return 0 };
        let taken = connection.flow.recv(take);
        if taken > 0 {
            // The window may have opened.
            self.make_ready(flow.slot);
            self.settle(now, flow.slot);
        }
        taken
    }

    /// Gives octets for the guest; returns how many were taken. Fewer than given: `Writable` will come.
    pub fn send(&mut self, _now: Instant, flow: FlowId, data: &[u8]) -> usize {
        let Some(connection) = self.connection_mut(flow) else { return 0 };
        let taken = connection.flow.send(data);
        if taken > 0 {
            self.make_ready(flow.slot);
        }
        taken
    }

    /// No more will be sent: FIN behind what was. Reading goes on.
    pub fn finish(&mut self, now: Instant, flow: FlowId) {
        let Some(connection) = self.connection_mut(flow) else { return };
        connection.flow.close();
        self.make_ready(flow.slot);
        self.settle(now, flow.slot);
    }

    /// Breaks a connection: RST, and what is not sent or read yet is gone. No event follows.
    pub fn reset(&mut self, _now: Instant, flow: FlowId) {
        if let Some(held) = self.take_held(flow) {
            self.reset_held(&held);
            self.release(flow.slot);
            return;
        }
        let Some(connection) = self.connection_mut(flow) else { return };
        connection.owned = false;
        if connection.linked {
            connection.flow.abort();
            self.counters.resets += 1;
            self.make_ready(flow.slot);
        } else {
            self.release(flow.slot);
        }
    }

    /// The guest is not at the other end of the NIC any more. Every connection ends with `Reset`, nothing is sent; a guest that comes later finds
    /// the same addresses published.
    pub fn link_lost(&mut self) {
        for slot in 0..self.slots.len() {
            let Ok(slot) = u32::try_from(slot) else { break };
            let flow = match self.slots.get(slot as usize) {
                Some(Slot { generation, content: Content::Held(_), .. }) => {
                    Some(FlowId { slot, generation: *generation })
                }
                Some(Slot { generation, content: Content::Connection(connection), .. }) => {
                    connection.owned.then_some(FlowId { slot, generation: *generation })
                }
                Some(Slot { content: Content::Free, .. }) | None => continue,
            };
            self.release(slot);
            if let Some(flow) = flow {
                self.counters.resets += 1;
                self.events.push_back(NetEvent::Reset { flow, cause: ResetCause::LinkLost });
            }
        }
        self.resting.clear();
        self.timers.clear();
        self.edge.outbox.clear();
    }

    // Inputs.

    /// A frame from the guest, without its check sequence. Whatever it is: bad ones are counted and dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        match self.edge.receive(now, frame, &mut self.counters) {
            Some(Upward::Tcp { from, segment }) => self.handle_segment(now, from, &segment),
            Some(Upward::Dhcp { from, message }) => self.handle_dhcp(now, from, message),
            None => {}
        }
    }

    /// Time has passed: whatever was due happens. Harmless if nothing was.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Rest(pair) => {
                    self.resting.remove(&pair);
                }
                Timer::Slot(slot) => self.slot_due(slot),
            }
        }
    }

    // Outputs.

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<NetEvent> {
        let event = self.events.pop_front()?;
        match event {
            NetEvent::Readable { flow } => {
                if let Some(connection) = self.connection_mut(flow) {
                    connection.readable_queued = false;
                }
            }
            NetEvent::Writable { flow } => {
                if let Some(connection) = self.connection_mut(flow) {
                    connection.writable_queued = false;
                }
            }
            NetEvent::Connect { .. }
            | NetEvent::Finished { .. }
            | NetEvent::Closed { .. }
            | NetEvent::Reset { .. }
            | NetEvent::GuestLeased { .. } => {}
        }
        Some(event)
    }

    /// The next frame for the guest. Answers come first, then the connections in turn.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<&[u8]> {
        if !self.edge.outbox.is_empty() {
            self.counters.frames_out += 1;
            return self.edge.outbox.pop();
        }
        while let Some(slot) = self.ready.pop_front() {
            if self.transmit(now, slot) {
                self.counters.frames_out += 1;
                return Some(self.scratch.frame());
            }
        }
        None
    }

    /// When [`Netstack::handle_timeout`] must be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    // From here on private: the table.

    fn slot_mut(&mut self, flow: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(flow.slot as usize)?;
        (slot.generation == flow.generation).then_some(slot)
    }

    /// The connection, while its owner knows it.
    fn connection(&self, flow: FlowId) -> Option<&Connection> {
        let slot = self.slots.get(flow.slot as usize)?;
        match &slot.content {
            Content::Connection(connection) if slot.generation == flow.generation && connection.owned => {
                Some(connection)
            }
            Content::Connection(_) | Content::Held(_) | Content::Free => None,
        }
    }

    fn connection_mut(&mut self, flow: FlowId) -> Option<&mut Connection> {
        match &mut self.slot_mut(flow)?.content {
            Content::Connection(connection) if connection.owned => Some(connection),
            Content::Connection(_) | Content::Held(_) | Content::Free => None,
        }
    }

    /// The connection in a place, whoever knows it.
    fn connection_at(&mut self, slot: u32) -> Option<&mut Connection> {
        match &mut self.slots.get_mut(slot as usize)?.content {
            Content::Connection(connection) => Some(connection),
            Content::Held(_) | Content::Free => None,
        }
    }

    fn flow_at(&self, slot: u32) -> FlowId {
        let generation = self.slots.get(slot as usize).map_or(0, |slot| slot.generation);
        FlowId { slot, generation }
    }

    /// A held SYN, taken out of its place, which stays the flow's.
    fn take_held(&mut self, flow: FlowId) -> Option<Held> {
        let slot = self.slot_mut(flow)?;
        match std::mem::replace(&mut slot.content, Content::Free) {
            Content::Held(held) => {
                self.by_pair.remove(&held.pair);
                self.timers.remove(&(held.deadline, Timer::Slot(flow.slot)));
                self.half_open -= 1;
                Some(held)
            }
            other @ (Content::Connection(_) | Content::Free) => {
                slot.content = other;
                None
            }
        }
    }

    /// A place for a new connection.
    fn reserve(&mut self, content: Content) -> Option<FlowId> {
        if let Some(slot) = self.free.pop() {
            let place = self.slots.get_mut(slot as usize)?;
            place.content = content;
            return Some(FlowId { slot, generation: place.generation });
        }
        let slot = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(Slot { generation: 0, ready: false, content });
        Some(FlowId { slot, generation: 0 })
    }

    /// Frees a place. The id of the connection that had it is dead from here on.
    fn release(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.generation = place.generation.wrapping_add(1);
        match std::mem::replace(&mut place.content, Content::Free) {
            Content::Free => {}
            Content::Held(held) => {
                self.by_pair.remove(&held.pair);
                self.timers.remove(&(held.deadline, Timer::Slot(slot)));
                self.half_open -= 1;
            }
            Content::Connection(connection) => {
                if connection.linked {
                    self.by_pair.remove(&connection.pair);
                }
                if let Some(at) = connection.timer {
                    self.timers.remove(&(at, Timer::Slot(slot)));
                }
                self.half_open -= usize::from(connection.half_open);
            }
        }
        self.free.push(slot);
    }

    fn make_ready(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && let Content::Connection(connection) = &place.content
            && connection.linked
            && !place.ready
        {
            place.ready = true;
            self.ready.push_back(slot);
        }
    }

    // Segments.

    fn handle_segment(&mut self, now: Instant, from: MacAddress, segment: &Segment<'_>) {
        let pair = Pair::of(segment);
        if let Some(&slot) = self.by_pair.get(&pair) {
            self.handle_known(now, slot, from, segment);
            return;
        }
        if self.resting.contains_key(&pair) && !self.wake_rested(now, pair, from, segment) {
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
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        match &mut place.content {
            Content::Free => {}
            Content::Held(held) => {
                held.guest = from;
                if segment.flags.has(TcpFlags::RST) {
                    // What an aborted connect sends: its own sequence number or the next.
                    if segment.sequence.wrapping_sub(held.sequence) <= 1 {
                        let flow = FlowId { slot, generation: place.generation };
                        self.release(slot);
                        self.counters.resets += 1;
                        self.events.push_back(NetEvent::Reset { flow, cause: ResetCause::Guest });
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
            Content::Connection(connection) => {
                connection.guest = from;
                let edge = &mut self.edge;
                let counters = &mut self.counters;
                connection.flow.feed(&mut self.engine, now, segment, &mut self.scratch, |reply| {
                    edge.send_ipv4(from, counters, |out| out.extend_from_slice(reply.packet()));
                });
                self.make_ready(slot);
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
        if self.half_open >= self.max_half_open || self.events.len() >= 4 * self.max_flows.max(1024) {
            self.counters.half_open_full += 1;
            return;
        }
        let Some(syn) = keep_syn(segment) else {
            self.counters.malformed += 1;
            return;
        };
        let deadline = now + self.connect_deadline;
        let held = Held { pair, guest: from, sequence: segment.sequence, syn, deadline };
        let Some(flow) = self.reserve(Content::Held(held)) else { return };
        self.half_open += 1;
        self.by_pair.insert(pair, flow.slot);
        self.timers.insert((deadline, Timer::Slot(flow.slot)));
        self.counters.connects += 1;
        self.events.push_back(NetEvent::Connect { flow, destination: pair.local, source: pair.guest });
    }

    /// A segment for an address pair in TIME-WAIT. True: it is a new connection's, and the pair does not rest any more.
    fn wake_rested(&mut self, now: Instant, pair: Pair, from: MacAddress, segment: &Segment<'_>) -> bool {
        let Some(resting) = self.resting.get_mut(&pair) else { return true };
        // RFC 1337: a reset must not end TIME-WAIT.
        if segment.flags.has(TcpFlags::RST) {
            return false;
        }
        let Rest { next_send, next_receive } = resting.rest;
        // RFC 9293 3.10.7.4: beyond all old sequence numbers it can only be a new connection.
        let newer = segment.sequence.wrapping_sub(next_receive).wrapping_sub(1) < 1 << 31;
        if segment.flags.opens() && newer {
            let until = resting.until;
            self.resting.remove(&pair);
            self.timers.remove(&(until, Timer::Rest(pair)));
            return true;
        }
        if segment.sequence_len() > 0 {
            // Its FIN again: our acknowledgement was lost.
            let until = std::mem::replace(&mut resting.until, now + TIME_WAIT);
            self.timers.remove(&(until, Timer::Rest(pair)));
            self.timers.insert((now + TIME_WAIT, Timer::Rest(pair)));
            self.send_segment(from, pair, next_send, next_receive, TcpFlags::ACK);
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
        let Some(place) = self.slots.get_mut(slot as usize) else { return false };
        place.ready = false;
        let Content::Connection(connection) = &mut place.content else { return false };
        let sent = connection.flow.emit(&mut self.engine, now, &mut self.scratch);
        if sent {
            self.scratch.set_header(&self.edge.header(connection.guest));
            place.ready = true;
            self.ready.push_back(slot);
        } else {
            let deadline = connection.flow.deadline(&mut self.engine, now);
            if connection.timer != deadline {
                if let Some(at) = connection.timer {
                    self.timers.remove(&(at, Timer::Slot(slot)));
                }
                if let Some(at) = deadline {
                    self.timers.insert((at, Timer::Slot(slot)));
                }
                connection.timer = deadline;
            }
        }
        self.settle(now, slot);
        sent
    }

    fn slot_due(&mut self, slot: u32) {
        let flow = self.flow_at(slot);
        if let Some(connection) = self.connection_at(slot) {
            connection.timer = None;
            self.make_ready(slot);
        } else if let Some(held) = self.take_held(flow) {
            self.bar_held(&held);
            self.release(slot);
            self.counters.resets += 1;
            self.events.push_back(NetEvent::Reset { flow, cause: ResetCause::Undecided });
        }
    }

    /// Tells the owner what is new, and lets go of what is over.
    fn settle(&mut self, now: Instant, slot: u32) {
        let flow = self.flow_at(slot);
        let Some(Slot { content: Content::Connection(connection), .. }) = self.slots.get_mut(slot as usize)
        else {
            return;
        };
        let progress = connection.flow.progress();
        if connection.half_open && progress != Progress::Opening {
            connection.half_open = false;
            self.half_open -= 1;
        }
        let ended = match progress {
            Progress::Opening | Progress::Open => None,
            Progress::Over { rest } => {
                if connection.linked {
                    connection.linked = false;
                    self.by_pair.remove(&connection.pair);
                    if let Some(at) = connection.timer.take() {
                        self.timers.remove(&(at, Timer::Slot(slot)));
                    }
                    // Without a place in TIME-WAIT a late FIN is answered by RST: no harm, the guest has everything.
                    if let Some(rest) = rest
                        && self.resting.len() < self.max_flows
                    {
                        let until = now + TIME_WAIT;
                        self.resting.insert(connection.pair, Resting { rest, until });
                        self.timers.insert((until, Timer::Rest(connection.pair)));
                    }
                }
                None
            }
            Progress::Reset => Some(ResetCause::Guest),
            Progress::Aborted => Some(ResetCause::Dead),
        };
        let owned = connection.owned;
        if let Some(cause) = ended {
            self.release(slot);
            if owned {
                self.counters.resets += 1;
                self.events.push_back(NetEvent::Reset { flow, cause });
            }
            return;
        }
        if !owned {
            return;
        }
        let news = connection.flow.news();
        if news.readable && !connection.readable_queued {
            connection.readable_queued = true;
            self.events.push_back(NetEvent::Readable { flow });
        }
        if news.writable && !connection.writable_queued {
            connection.writable_queued = true;
            self.events.push_back(NetEvent::Writable { flow });
        }
        if news.finished {
            self.events.push_back(NetEvent::Finished { flow });
        }
        if connection.flow.is_done() {
            self.release(slot);
            self.counters.closed += 1;
            self.events.push_back(NetEvent::Closed { flow });
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
            self.events.push_back(NetEvent::GuestLeased { mac, address });
        }
    }
}
