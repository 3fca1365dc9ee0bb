//! The guest's stack: frames, commands and `now` in; frames, events and the next deadline out.
//!
//! Each TCP connection is a smoltcp interface with one socket, found by its local port, because smoltcp walks its
//! whole socket set for each packet: with one set for all, a thousand idle connections would cost more than the
//! busy one. What belongs to no connection (DHCP, ARP answers, resets for strays) goes to one more interface,
//! the *host*. ARP for connections and ping is done here: connections run on smoltcp's IP medium and get their
//! Ethernet header on the way out.
//!
//! Methods are of four families. Getters: [`Stack::lease`], [`Stack::readable`]. Commands: [`Stack::connect`],
//! [`Stack::send`], [`Stack::recv`], [`Stack::finish`], [`Stack::reset`], [`Stack::release`], [`Stack::ping`].
//! Inputs: [`Stack::handle_frame`], [`Stack::handle_timeout`]. Outputs, to be drained in this order after every
//! input or command: [`Stack::poll_transmit`], [`Stack::poll_event`], then [`Stack::poll_timeout`].

mod connections;
mod neighbours;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    DhcpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv4Packet, Icmpv4Repr,
    IpCidr, IpProtocol, Ipv4Cidr, Ipv4Packet, Ipv4Repr, UdpPacket,
};

pub use super::device::Frame;
use super::device::{ETHERNET_HEADER, Port, Transmit, capabilities};
use super::trouble::{Cable, Random};
use connections::{Connection, Life, Slot, used};
use neighbours::{Neighbour, Ping};

pub use super::types::{Config, ConnectionError, ConnectionId, Event, Lease, Received};

const FIRST_PORT: u16 = 10_000;
/// Parameters asked of the DHCP server: mask, router, DNS, domain, MTU, lease time (RFC 2132).
const DHCP_PARAMETERS: &[u8] = &[1, 3, 6, 15, OPTION_MTU, OPTION_LEASE_TIME];
const OPTION_MTU: u8 = 26;
const OPTION_LEASE_TIME: u8 = 51;
const PING_IDENT: u16 = 0x5350;

/// The machine. See the module for how to drive it.
pub struct Stack {
    config: Config,
    epoch: Instant,
    random: Random,
    mac: EthernetAddress,
    lease: Option<Lease>,
    /// The network of the lease, and the router.
    network: Option<(Ipv4Cidr, Option<Ipv4Addr>)>,
    offered: Offered,
    host: Interface,
    host_sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    host_due: Option<Instant>,
    /// What smoltcp is told of the card: for the host (Ethernet) and for connections (IP).
    host_capabilities: DeviceCapabilities,
    connection_capabilities: DeviceCapabilities,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections of the past, with this era's address and MTU.
    #[expect(clippy::vec_box, reason = "they come from boxes and go into boxes")]
    spare: Vec<Box<Connection>>,
    /// How many leases there were: each begins one.
    era: u32,
    ports: BTreeMap<u16, ConnectionId>,
    next_port: u16,
    time_waits: VecDeque<ConnectionId>,
    ready: VecDeque<ConnectionId>,
    timers: BTreeSet<(Instant, ConnectionId)>,
    neighbours: BTreeMap<Ipv4Addr, Neighbour>,
    pings: BTreeMap<u16, Ping>,
    next_ping: u16,
    events: VecDeque<Event>,
    transmit: Transmit,
    cable_in: Cable,
    cable_out: Cable,
}

/// What smoltcp's DHCP client does not tell, read from the server's last ACK.
#[derive(Debug, Clone, Copy, Default)]
struct Offered {
    mtu: Option<u16>,
    time: Option<Duration>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("lease", &self.lease)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// A guest that was switched on now and starts to ask for an address.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut random = Random::new(config.seed);
        let mac = EthernetAddress(config.mac);
        let mtu = usize::from(config.mtu.max(576));
        let host_capabilities = capabilities(Medium::Ethernet, mtu, true);
        let connection_capabilities = capabilities(Medium::Ip, mtu, config.verify_checksums);
        let mut transmit = Transmit::default();
        let mut interface_config = iface::Config::new(HardwareAddress::Ethernet(mac));
        interface_config.random_seed = random.next();
        let mut port =
            Port { receive: None, transmit: &mut transmit, header: None, capabilities: &host_capabilities };
        let host = Interface::new(interface_config, &mut port, smoltcp::time::Instant::ZERO);
        let mut host_sockets = SocketSet::new(Vec::new());
        let mut dhcp = dhcpv4::Socket::new();
        dhcp.set_parameter_request_list(DHCP_PARAMETERS);
        let dhcp = host_sockets.add(dhcp);
        Self {
            cable_in: Cable::new(config.trouble, random.next()),
            cable_out: Cable::new(config.trouble, random.next()),
            epoch: now,
            random,
            mac,
            lease: None,
            network: None,
            offered: Offered::default(),
            host,
            host_sockets,
            dhcp,
            host_due: Some(now),
            host_capabilities,
            connection_capabilities,
            slots: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            era: 0,
            ports: BTreeMap::new(),
            next_port: FIRST_PORT,
            time_waits: VecDeque::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            pings: BTreeMap::new(),
            next_ping: 0,
            events: VecDeque::new(),
            transmit,
            config,
        }
    }

    /// The address the guest has, once DHCP gave one.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Connections that were not yet let go of or are still ending by themselves.
    pub fn connections(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Opens a connection; [`Event::Changed`] tells when [`Stack::is_open`] has an answer.
    ///
    /// Errors: no address yet, no route, no free port.
    pub fn connect(&mut self, now: Instant, to: IpAddr, port: u16) -> Result<ConnectionId, ConnectionError> {
        let IpAddr::V4(to) = to else { return Err(ConnectionError::NoRoute) };
        if port == 0 || to.is_unspecified() {
            return Err(ConnectionError::NoRoute);
        }
        let hop = self.next_hop(to)?;
        let local_port = self.take_port()?;
        let (network, _) = self.network.ok_or(ConnectionError::NoAddress)?;
        let id = self.insert(now, local_port, network, (to, port));
        self.ports.insert(local_port, id);
        match self.neighbours.get_mut(&hop) {
            Some(Neighbour::Known { mac, until }) if *until > now => {
                let mac = *mac;
                self.start(id, mac);
            }
            Some(Neighbour::Asking { connections, .. }) => connections.push(id),
            Some(Neighbour::Known { .. }) | None => self.ask(now, hop, vec![id], Vec::new()),
        }
        Ok(id)
    }

    /// Whether the connection is open: `None` while that is not known.
    pub fn is_open(&self, id: ConnectionId) -> Option<Result<(), ConnectionError>> {
        match self.connection(id).map(|connection| connection.life) {
            None => Some(Err(ConnectionError::Unknown)),
            Some(Life::Resolving | Life::Opening) => None,
            Some(Life::Open | Life::Done) => Some(Ok(())),
            Some(Life::Failed(error)) => Some(Err(error)),
        }
    }

    /// Bytes that came and were not taken yet.
    pub fn readable(&self, id: ConnectionId) -> usize {
        self.connection(id).map_or(0, |connection| connection.socket().recv_queue())
    }

    /// The address and port this end of the connection has.
    pub fn local(&self, id: ConnectionId) -> Option<(IpAddr, u16)> {
        let connection = self.connection(id)?;
        Some((self.lease.as_ref()?.address, connection.port))
    }

    /// Gives the taker a contiguous piece of what came; it says how many bytes it took.
    pub fn recv(
        &mut self,
        id: ConnectionId,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Result<Received, ConnectionError> {
        let connection = self.connection_mut(id).ok_or(ConnectionError::Unknown)?;
        let life = connection.life;
        if !connection.socket().can_recv() {
            return match life {
                Life::Failed(error) => Err(error),
                Life::Done => Ok(Received::End),
                Life::Resolving | Life::Opening => Ok(Received::Pending),
                Life::Open if connection.socket().may_recv() => Ok(Received::Pending),
                Life::Open => Ok(Received::End),
            };
        }
        let taken = connection.socket_mut().recv(|bytes| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        });
        self.make_ready(id);
        taken.map(Received::Data).map_err(|_| ConnectionError::Unknown)
    }

    /// Bytes that [`Stack::send`] would take now.
    pub fn writable(&self, id: ConnectionId) -> usize {
        let Some(connection) = self.connection(id) else { return 0 };
        let socket = connection.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Queues bytes; gives how many fit.
    pub fn send(&mut self, id: ConnectionId, data: &[u8]) -> Result<usize, ConnectionError> {
        let connection = self.connection_mut(id).ok_or(ConnectionError::Unknown)?;
        match connection.life {
            Life::Failed(error) => return Err(error),
            Life::Done => return Err(ConnectionError::Finished),
            Life::Resolving | Life::Opening => return Ok(0),
            Life::Open => {}
        }
        let sent = connection.socket_mut().send_slice(data).map_err(|_| ConnectionError::Finished)?;
        if sent > 0 {
            self.make_ready(id);
        }
        Ok(sent)
    }

    /// Sends FIN behind what was queued. What the peer sends is still received.
    pub fn finish(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connection_mut(id)
            && connection.life == Life::Open
        {
            connection.socket_mut().close();
            self.make_ready(id);
        }
    }

    /// Sends RST and forgets what was queued.
    pub fn reset(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection_mut(id) else { return };
        match connection.life {
            Life::Resolving | Life::Opening | Life::Open => {
                connection.socket_mut().abort();
                connection.life = Life::Failed(ConnectionError::Aborted);
                self.make_ready(id);
                self.report(id);
            }
            Life::Done | Life::Failed(_) => {}
        }
    }

    /// The owner lets go: as a host's `close()` does, unread bytes make it a reset, otherwise it ends in order by
    /// itself. The id is not valid any more.
    pub fn release(&mut self, id: ConnectionId) {
        let patience = self.config.connect_timeout;
        let Some(connection) = self.connection_mut(id) else { return };
        connection.released = true;
        connection.socket_mut().set_timeout(Some(patience.into()));
        match connection.life {
            Life::Resolving => {
                self.remove(id);
                return;
            }
            Life::Opening => connection.socket_mut().abort(),
            Life::Open if connection.socket().can_recv() => connection.socket_mut().abort(),
            Life::Open => connection.socket_mut().close(),
            Life::Done | Life::Failed(_) => {}
        }
        self.make_ready(id);
    }

    /// Sends an ICMP echo request. The answer is an [`Event::Pong`] or [`Event::PingFailed`] with the number given
    /// back, or nothing at all.
    pub fn ping(&mut self, now: Instant, to: IpAddr) -> Result<u16, ConnectionError> {
        let IpAddr::V4(to) = to else { return Err(ConnectionError::NoRoute) };
        let hop = self.next_hop(to)?;
        let sequence = self.next_ping;
        self.next_ping = self.next_ping.wrapping_add(1);
        self.pings.insert(sequence, Ping { destination: to, sent: now });
        match self.neighbours.get_mut(&hop) {
            Some(Neighbour::Known { mac, until }) if *until > now => {
                let mac = *mac;
                self.send_ping(now, sequence, mac);
            }
            Some(Neighbour::Asking { pings, .. }) => pings.push(sequence),
            Some(Neighbour::Known { .. }) | None => self.ask(now, hop, Vec::new(), vec![sequence]),
        }
        Ok(sequence)
    }

    /// Forgets a ping nobody waits for any more.
    pub fn forget_ping(&mut self, sequence: u16) {
        self.pings.remove(&sequence);
    }

    /// A frame came from the wire. Broken ones are dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        if self.cable_in.is_perfect() {
            self.receive(now, frame);
            return;
        }
        let mut passed = Vec::new();
        self.cable_in.pass(now, Frame::copy_of(frame), |frame| passed.push(frame));
        for frame in passed {
            self.receive(now, frame.bytes());
        }
    }

    /// The next frame for the wire. Hand it back through [`Stack::recycle`] when it is written.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Frame> {
        self.run_ready(now);
        if self.cable_out.is_perfect() {
            return self.transmit.pop();
        }
        loop {
            if let Some(frame) = self.cable_out.due(now) {
                return Some(frame);
            }
            let frame = self.transmit.pop()?;
            let mut passed = Vec::new();
            self.cable_out.pass(now, frame, |frame| passed.push(frame));
            let mut passed = passed.into_iter();
            if let Some(first) = passed.next() {
                for again in passed {
                    self.transmit.push_front(again);
                }
                return Some(first);
            }
        }
    }

    /// Gives a written frame's memory back.
    pub fn recycle(&mut self, frame: Frame) {
        self.transmit.recycle(frame);
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Changed(id) = event
            && let Some(connection) = self.connection_mut(id)
        {
            connection.reported = false;
        }
        Some(event)
    }

    /// When [`Stack::handle_timeout`] is to be called, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let arp = self.neighbours.values().filter_map(|neighbour| match neighbour {
            Neighbour::Asking { next, .. } => Some(*next),
            Neighbour::Known { .. } => None,
        });
        [
            self.host_due,
            self.timers.first().map(|(at, _)| *at),
            self.cable_in.poll_timeout(),
            self.cable_out.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .chain(arp)
        .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(frame) = self.cable_in.due(now) {
            self.receive(now, frame.bytes());
        }
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, id));
            if let Some(connection) = self.connection_mut(id) {
                connection.timer = None;
            }
            self.make_ready(id);
        }
        self.ask_again(now);
        if self.host_due.is_some_and(|due| due <= now) {
            self.run_host(now, None);
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(bytes) else { return };
        if frame.dst_addr() != self.mac && !frame.dst_addr().is_broadcast() {
            return;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                self.learn(now, frame.payload());
                self.run_host(now, Some(bytes));
            }
            EthernetProtocol::Ipv4 => self.receive_ipv4(now, bytes, frame.payload()),
            EthernetProtocol::Ipv6 | EthernetProtocol::Unknown(_) => {}
        }
    }

    fn receive_ipv4(&mut self, now: Instant, frame: &[u8], bytes: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        let protocol = packet.next_header();
        if protocol == IpProtocol::Tcp {
            let port = packet.payload().get(2..4).and_then(|port| port.first_chunk::<2>());
            let id = port.and_then(|port| self.ports.get(&u16::from_be_bytes(*port))).copied();
            let known = id.filter(|id| {
                self.connection(*id).is_some_and(|connection| connection.destination.0 == packet.src_addr())
            });
            match known {
                Some(id) => self.receive_tcp(now, id, bytes),
                None => self.run_host(now, Some(frame)),
            }
            return;
        }
        if protocol == IpProtocol::Icmp {
            self.receive_icmp(now, &packet);
        } else if protocol == IpProtocol::Udp {
            self.read_dhcp(packet.payload());
        }
        self.run_host(now, Some(frame));
    }

    fn receive_tcp(&mut self, now: Instant, id: ConnectionId, packet: &[u8]) {
        let at = self.instant(now);
        let Some(connection) = used(&mut self.slots, id) else { return };
        let before = connection.socket().state();
        let Connection { interface, sockets, header, .. } = connection;
        let mut port = Port {
            receive: Some(packet),
            transmit: &mut self.transmit,
            header: Some(*header),
            capabilities: &self.connection_capabilities,
        };
        interface.poll_ingress_single(at, &mut port, sockets);
        self.review(id, before, ConnectionError::Reset);
        self.make_ready(id);
    }

    fn receive_icmp(&mut self, now: Instant, packet: &Ipv4Packet<&[u8]>) {
        let Ok(icmp) = Icmpv4Packet::new_checked(packet.payload()) else { return };
        match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()) {
            Ok(Icmpv4Repr::EchoReply { ident: PING_IDENT, seq_no, .. }) => {
                let known = self.pings.get(&seq_no).is_some_and(|ping| ping.destination == packet.src_addr());
                if known && let Some(ping) = self.pings.remove(&seq_no) {
                    let round_trip = now.saturating_duration_since(ping.sent);
                    self.events.push_back(Event::Pong { sequence: seq_no, round_trip });
                }
            }
            Ok(Icmpv4Repr::DstUnreachable { header, data, .. }) => self.unreachable(&header, data),
            _ => {}
        }
    }

    /// An ICMP error came: who sent the packet it quotes?
    fn unreachable(&mut self, header: &Ipv4Repr, data: &[u8]) {
        let words = data.as_chunks::<2>().0;
        if header.next_header == IpProtocol::Tcp {
            let Some(source) = words.first() else { return };
            let Some(id) = self.ports.get(&u16::from_be_bytes(*source)).copied() else { return };
            let Some(connection) = self.connection(id) else { return };
            // As RFC 1122 4.2.3.9 has it: fatal while opening, a passing trouble on an open connection.
            if connection.destination.0 == header.dst_addr && connection.life == Life::Opening {
                self.fail(id, ConnectionError::Unreachable);
            }
        } else if header.next_header == IpProtocol::Icmp
            && let (Some(ident), Some(sequence)) = (words.get(2), words.get(3))
            && u16::from_be_bytes(*ident) == PING_IDENT
        {
            let sequence = u16::from_be_bytes(*sequence);
            if self.pings.remove(&sequence).is_some() {
                self.events.push_back(Event::PingFailed { sequence, error: ConnectionError::Unreachable });
            }
        }
    }

    /// Remembers what smoltcp's client throws away of a DHCP ACK.
    fn read_dhcp(&mut self, udp: &[u8]) {
        let Ok(udp) = UdpPacket::new_checked(udp) else { return };
        if udp.dst_port() != 68 {
            return;
        }
        let Ok(packet) = DhcpPacket::new_checked(udp.payload()) else { return };
        if packet.client_hardware_address() != self.mac {
            return;
        }
        let mut offered = Offered::default();
        for option in packet.options() {
            match (option.kind, option.data) {
                (OPTION_MTU, &[high, low]) => offered.mtu = Some(u16::from_be_bytes([high, low])),
                (OPTION_LEASE_TIME, &[a, b, c, d]) => {
                    offered.time = Some(Duration::from_secs(u64::from(u32::from_be_bytes([a, b, c, d]))));
                }
                _ => {}
            }
        }
        self.offered = offered;
    }

    fn run_host(&mut self, now: Instant, frame: Option<&[u8]>) {
        let at = self.instant(now);
        let mut port = Port {
            receive: frame,
            transmit: &mut self.transmit,
            header: None,
            capabilities: &self.host_capabilities,
        };
        self.host.poll(at, &mut port, &mut self.host_sockets);
        let event = match self.host_sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp).poll() {
            None => None,
            Some(dhcpv4::Event::Deconfigured) => Some(None),
            Some(dhcpv4::Event::Configured(config)) => Some(Some((
                config.address,
                config.router,
                config.dns_servers.iter().map(|address| IpAddr::V4(*address)).collect::<Vec<_>>(),
                config.server.identifier,
            ))),
        };
        match event {
            None => {}
            Some(None) => {
                if self.lease.take().is_some() {
                    self.events.push_back(Event::LeaseLost);
                }
                self.network = None;
                self.host.update_ip_addrs(|addresses| addresses.clear());
            }
            Some(Some((network, router, dns, server))) => self.leased(network, router, dns, server),
        }
        let due = self.host.poll_at(at, &self.host_sockets);
        self.host_due = due.map(|due| self.std_instant(due).max(now + Duration::from_millis(1)));
    }

    fn leased(&mut self, network: Ipv4Cidr, router: Option<Ipv4Addr>, dns: Vec<IpAddr>, server: Ipv4Addr) {
        let lease = Lease {
            address: network.address().into(),
            prefix_len: network.prefix_len(),
            router: router.map(IpAddr::V4),
            dns,
            mtu: self.offered.mtu,
            time: self.offered.time,
            server: server.into(),
        };
        let mtu = usize::from(lease.mtu.unwrap_or(1500).clamp(576, self.config.mtu.max(576)));
        self.connection_capabilities = capabilities(Medium::Ip, mtu, self.config.verify_checksums);
        self.network = Some((network, router));
        self.spare.clear();
        self.era = self.era.wrapping_add(1);
        self.host.update_ip_addrs(|addresses| {
            addresses.clear();
            let pushed = addresses.push(IpCidr::Ipv4(network));
            debug_assert!(pushed.is_ok(), "smoltcp holds at least one address");
        });
        self.lease = Some(lease.clone());
        self.events.push_back(Event::Leased(lease));
    }

    fn instant(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        // From 1 on: smoltcp takes instant 0 for "at once".
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX - 1) + 1)
    }

    fn std_instant(&self, at: smoltcp::time::Instant) -> Instant {
        self.epoch + Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
    }
}

fn ethernet_header(
    to: EthernetAddress,
    from: EthernetAddress,
    kind: EthernetProtocol,
) -> [u8; ETHERNET_HEADER] {
    let mut header = [0; ETHERNET_HEADER];
    let mut frame = EthernetFrame::new_unchecked(&mut header);
    frame.set_dst_addr(to);
    frame.set_src_addr(from);
    frame.set_ethertype(kind);
    header
}
