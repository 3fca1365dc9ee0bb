//! The guest's connections: their table, their ports and timers, and when they are to be asked for packets.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, EthernetProtocol, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use super::{ConnectionError, ConnectionId, Event, FIRST_PORT, Stack, ethernet_header};
use crate::guest::device::{ETHERNET_HEADER, Port};

/// Connections kept in TIME-WAIT; beyond it the oldest go first, as a host short of ports does it.
const TIME_WAITS: usize = 1024;
/// Connections of the past kept to be used again: new rings for each would be most of what a short connection costs.
const SPARES: usize = 256;
/// smoltcp 0.14 probes a closed window without a pause, for ever, when the peer acknowledged all of it, our FIN too. A
/// segment without data is never due at once behind another, so whoever wants that has to wait.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// A connection's life as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The next hop's hardware address is being asked for.
    Resolving,
    /// The SYN is out.
    Opening,
    Open,
    /// Both sides finished and the last acknowledgement came.
    Done,
    Failed(ConnectionError),
}

pub(super) struct Connection {
    /// The lease its interface was made for.
    pub(super) era: u32,
    pub(super) generation: u32,
    pub(super) port: u16,
    pub(super) destination: (Ipv4Addr, u16),
    pub(super) life: Life,
    /// The owner let go of it: it ends by itself.
    pub(super) released: bool,
    /// In the queue of those to be asked for packets.
    pub(super) queued: bool,
    /// In the queue of events.
    pub(super) reported: bool,
    pub(super) timer: Option<Instant>,
    /// In the queue of those in TIME-WAIT.
    pub(super) waiting: bool,
    pub(super) header: [u8; ETHERNET_HEADER],
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) handle: SocketHandle,
}

impl Connection {
    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Makes it as good as new, but for what is in its rings, which nobody sees.
    fn reset(&mut self) {
        self.socket_mut().abort();
        self.life = Life::Resolving;
        self.released = false;
        self.queued = false;
        self.reported = false;
        self.timer = None;
        self.waiting = false;
    }

    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

pub(super) enum Slot {
    Free { generation: u32 },
    Used(Box<Connection>),
}

impl Stack {
    pub(super) fn take_port(&mut self) -> Result<u16, ConnectionError> {
        let everything = usize::from(u16::MAX - FIRST_PORT) + 1;
        if self.ports.len() >= everything {
            let oldest = self.time_waits.pop_front().ok_or(ConnectionError::NoPort)?;
            self.remove(oldest);
        }
        for _ in 0..everything {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.ports.contains_key(&port) {
                return Ok(port);
            }
        }
        Err(ConnectionError::NoPort)
    }

    pub(super) fn insert(
        &mut self,
        now: Instant,
        port: u16,
        network: Ipv4Cidr,
        destination: (Ipv4Addr, u16),
    ) -> ConnectionId {
        let mut connection = match self.spare.pop() {
            Some(used) => used,
            None => self.blank(now, network),
        };
        let slot = self.free.pop();
        let generation = match slot.and_then(|slot| self.slots.get(slot as usize)) {
            Some(Slot::Free { generation }) => *generation,
            Some(Slot::Used(_)) | None => 0,
        };
        connection.generation = generation;
        connection.port = port;
        connection.destination = destination;
        connection.socket_mut().set_timeout(Some(self.config.connect_timeout.into()));
        let connection = Slot::Used(connection);
        let slot = match slot {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = connection;
                }
                slot
            }
            None => {
                self.slots.push(connection);
                // At most as many as there are ports, so it fits.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        ConnectionId { slot, generation }
    }

    fn blank(&mut self, now: Instant, network: Ipv4Cidr) -> Box<Connection> {
        let mut config = iface::Config::new(HardwareAddress::Ip);
        config.random_seed = self.random.next();
        let at = self.instant(now);
        let mut device = Port {
            receive: None,
            transmit: &mut self.transmit,
            header: None,
            capabilities: &self.connection_capabilities,
        };
        let mut interface = Interface::new(config, &mut device, at);
        interface.update_ip_addrs(|addresses| {
            // With prefix 0 every destination is on the link: routing was done in `next_hop`.
            let pushed = addresses.push(IpCidr::new(IpAddress::Ipv4(network.address()), 0));
            debug_assert!(pushed.is_ok(), "smoltcp holds at least one address");
        });
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; self.config.receive_buffer]),
            tcp::SocketBuffer::new(vec![0; self.config.transmit_buffer]),
        );
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Box::new(Connection {
            era: self.era,
            generation: 0,
            port: 0,
            destination: (Ipv4Addr::UNSPECIFIED, 0),
            life: Life::Resolving,
            released: false,
            queued: false,
            reported: false,
            timer: None,
            waiting: false,
            header: [0; ETHERNET_HEADER],
            interface,
            sockets,
            handle,
        })
    }

    /// The next hop is known: SYN.
    pub(super) fn start(&mut self, id: ConnectionId, mac: EthernetAddress) {
        let own = self.mac;
        let Some(connection) = self.connection_mut(id) else { return };
        connection.header = ethernet_header(mac, own, EthernetProtocol::Ipv4);
        let (destination, local) = (connection.destination, connection.port);
        let Connection { interface, sockets, handle, .. } = connection;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        match socket.connect(interface.context(), destination, local) {
            Ok(()) => {
                connection.life = Life::Opening;
                self.make_ready(id);
            }
            Err(_) => self.fail(id, ConnectionError::NoRoute),
        }
    }

    pub(super) fn fail(&mut self, id: ConnectionId, error: ConnectionError) {
        let Some(connection) = self.connection_mut(id) else { return };
        connection.life = Life::Failed(error);
        connection.socket_mut().abort();
        self.make_ready(id);
        self.report(id);
    }

    pub(super) fn make_ready(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connection_mut(id)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    pub(super) fn report(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connection_mut(id)
            && !connection.reported
            && !connection.released
        {
            connection.reported = true;
            self.events.push_back(Event::Changed(id));
        }
    }

    /// Asks the connections that have something to say for packets, as long as there is room for them.
    pub(super) fn run_ready(&mut self, now: Instant) {
        let at = self.instant(now);
        while !self.transmit.is_full() {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(connection) = used(&mut self.slots, id) else { continue };
            let before = connection.socket().state();
            let Connection { interface, sockets, header, queued, .. } = connection;
            let mut port = Port {
                receive: None,
                transmit: &mut self.transmit,
                header: Some(*header),
                capabilities: &self.connection_capabilities,
            };
            let mut sent = true;
            while sent {
                sent = interface.poll_egress(at, &mut port, sockets) != iface::PollResult::None
                    && port.transmit.last_has_data();
            }
            *queued = false;
            let due = interface.poll_at(at, sockets);
            let unfinished = due.is_some_and(|due| due <= at);
            let full = self.transmit.is_full();
            if unfinished && full {
                self.make_ready(id);
            }
            self.review(id, before, ConnectionError::TimedOut);
            let soonest = now + if unfinished { PROBE_PAUSE } else { Duration::from_millis(1) };
            self.set_timer(id, due.map(|due| self.std_instant(due).max(soonest)));
            if !unfinished {
                self.bury(id);
            }
        }
    }

    /// Compares what smoltcp says of a connection with what its owner was told. `before` is the socket's state
    /// before the packet or timer that `cause` stands for.
    pub(super) fn review(&mut self, id: ConnectionId, before: tcp::State, cause: ConnectionError) {
        let quarter = self.config.transmit_buffer / 4;
        let Some(connection) = self.connection_mut(id) else { return };
        let socket = connection.socket();
        let life = match (connection.life, before, socket.state()) {
            // Aborted, and whoever did it set the life.
            (life, tcp::State::Closed, tcp::State::Closed) => life,
            (Life::Open, tcp::State::LastAck, tcp::State::Closed) | (Life::Open, _, tcp::State::TimeWait) => {
                Life::Done
            }
            (Life::Opening, _, tcp::State::Closed) if cause == ConnectionError::Reset => {
                Life::Failed(ConnectionError::Refused)
            }
            (Life::Opening | Life::Open, _, tcp::State::Closed) => Life::Failed(cause),
            (Life::Opening, _, tcp::State::SynSent | tcp::State::SynReceived) => Life::Opening,
            (Life::Opening, _, _) => Life::Open,
            (life, _, _) => life,
        };
        let readable = socket.can_recv() || !socket.may_recv();
        let writable = socket.may_send() && socket.send_capacity() - socket.send_queue() >= quarter;
        let changed = life != connection.life;
        if changed && life == Life::Open {
            // smoltcp would end an idle connection too after this time (its documentation says otherwise).
            connection.socket_mut().set_timeout(None);
        }
        connection.life = life;
        if changed || (life == Life::Open && (readable || writable)) {
            self.report(id);
        }
    }

    /// Removes a connection that nobody owns and that has nothing more to say.
    pub(super) fn bury(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection_mut(id) else { return };
        if !connection.released {
            return;
        }
        let state = connection.socket().state();
        if state == tcp::State::Closed {
            self.remove(id);
        } else if state == tcp::State::TimeWait && !connection.waiting {
            connection.waiting = true;
            self.time_waits.push_back(id);
            if self.time_waits.len() > TIME_WAITS
                && let Some(oldest) = self.time_waits.pop_front()
            {
                self.remove(oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        let (port, timer) = (connection.port, connection.timer);
        if let Some(at) = timer {
            self.timers.remove(&(at, id));
        }
        self.ports.remove(&port);
        if let Some(place) = self.slots.get_mut(id.slot()) {
            let free = Slot::Free { generation: id.generation.wrapping_add(1) };
            if let Slot::Used(mut connection) = std::mem::replace(place, free)
                && self.spare.len() < SPARES
                && connection.era == self.era
            {
                connection.reset();
                self.spare.push(connection);
            }
            self.free.push(id.slot);
        }
        // They expire in the order they came, so the ones that are gone are in front.
        while self.time_waits.front().is_some_and(|oldest| self.connection(*oldest).is_none()) {
            self.time_waits.pop_front();
        }
    }

    pub(super) fn set_timer(&mut self, id: ConnectionId, at: Option<Instant>) {
        let Some(connection) = used(&mut self.slots, id) else { return };
        let old = std::mem::replace(&mut connection.timer, at);
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.timers.remove(&(old, id));
        }
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        match self.slots.get(id.slot())? {
            Slot::Used(connection) if connection.generation == id.generation => Some(connection),
            Slot::Used(_) | Slot::Free { .. } => None,
        }
    }

    pub(super) fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        used(&mut self.slots, id)
    }
}

pub(super) fn used(slots: &mut [Slot], id: ConnectionId) -> Option<&mut Connection> {
    match slots.get_mut(id.slot())? {
        Slot::Used(connection) if connection.generation == id.generation => Some(connection),
        Slot::Used(_) | Slot::Free { .. } => None,
    }
}
