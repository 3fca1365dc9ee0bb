//! Joins the netstack's connections to the tunnel channel's sockets.
//!
//! # Theory of operation
//!
//! The bridge is sans-IO. It owns a [`Netstack`], which outlives every Spice session, and at most one [`Channel`],
//! which comes with a session and goes with it. A guest connection and a tunnel socket are two views of one thing:
//!
//! ```text
//!  guest ── flow ──►  receive ring  ── DATA ──►  channel.outgoing ──► link      up:   bounded by the peer's credit
//!  guest ◄── flow ──  transmit ring ◄── tail ◄── channel event    ◄── link      down: bounded by our window
//! ```
//!
//! * Up: nothing is read from a flow unless its socket has credit and the outgoing buffer is below its high-water
//!   mark. Unread bytes stay in the flow's receive ring, so its TCP window closes and the guest waits.
//! * Down: a message goes straight into the flow's transmit ring. What does not fit is kept here as the socket's
//!   tail, and its credit returns only when its last byte is in the ring.
//! * A guest's SYN is answered only after the client's answer (connect before accept).
//!
//! Sockets that may send are served round-robin, one message a turn, so that one bulk transfer cannot starve the rest.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use spice_proto::frame::Frame;
use spice_proto::tunnel::{GroupId, ServiceAdd, ServiceId, SocketId};
use tracing::{debug, info, trace, warn};
use tunnel_channel::{Channel, Event, Violation};

use crate::address::{AddressBook, AssignError};
use crate::netstack::{FlowId, NetEvent, Netstack};

/// The guest's network and, while a session lives, the tunnel channel that carries its connections.
///
/// Drive it like this, and drain wholly before waiting:
///
/// 1. inputs: [`handle_guest_frame`](Self::handle_guest_frame), [`handle_tunnel_frame`](Self::handle_tunnel_frame),
///    [`handle_timeout`](Self::handle_timeout), [`attach`](Self::attach), [`detach`](Self::detach),
///    [`guest_lost`](Self::guest_lost);
/// 2. [`advance`](Self::advance) moves bytes between the two;
/// 3. outputs: [`poll_guest_frame`](Self::poll_guest_frame), [`outgoing`](Self::outgoing) with [`sent`](Self::sent),
///    [`poll_timeout`](Self::poll_timeout).
pub struct Bridge {
    netstack: Netstack,
    book: AddressBook,
    tunnel: Option<Tunnel>,
}

impl Bridge {
    /// A network behind which nothing stands until a tunnel is attached.
    pub fn new(netstack: Netstack, book: AddressBook) -> Self {
        Self { netstack, book, tunnel: None }
    }

    /// The guest's network, for its counters.
    pub fn netstack(&self) -> &Netstack {
        &self.netstack
    }

    /// The addresses ever given, for the lease file.
    pub fn address_book(&mut self) -> &mut AddressBook {
        &mut self.book
    }

    /// The channel of the session that lives, if one does.
    pub fn channel(&self) -> Option<&Channel> {
        self.tunnel.as_ref().map(|tunnel| &tunnel.channel)
    }

    /// Takes the channel of a new session. An attached one is detached first.
    pub fn attach(&mut self, now: Instant, channel: Channel) {
        self.detach(now);
        self.tunnel = Some(Tunnel::new(channel));
    }

    /// Ends the tunnel: every connection of the guest is reset, and nothing is published any more.
    pub fn detach(&mut self, now: Instant) {
        let Some(tunnel) = self.tunnel.take() else { return };
        for socket in tunnel.sockets.into_iter().flatten() {
            self.netstack.reset(now, socket.flow);
        }
        for service in &tunnel.services {
            self.netstack.withdraw(service.address.ip(), service.address.port());
        }
    }

    /// The guest's card is gone, so are its connections.
    pub fn guest_lost(&mut self) {
        self.netstack.link_lost();
    }

    /// An Ethernet frame from the guest's card.
    pub fn handle_guest_frame(&mut self, now: Instant, frame: &[u8]) {
        self.netstack.handle_frame(now, frame);
    }

    /// A message from the client's end of the tunnel.
    ///
    /// # Errors
    /// The client broke the protocol: detach, and close the link.
    pub fn handle_tunnel_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), Violation> {
        let Self { netstack, book, tunnel: Some(tunnel) } = self else { return Ok(()) };
        let Some(event) = tunnel.channel.handle_frame(now, frame)? else { return Ok(()) };
        match event {
            Event::Data { socket, payload } => {
                let whole = tunnel.socket(socket).is_some_and(|entry| entry.deliver(netstack, now, payload));
                if whole {
                    tunnel.channel.delivered(socket, 1);
                }
            }
            Event::Writable { socket } => tunnel.schedule(socket),
            Event::Accepted { socket } => {
                if let Some(entry) = tunnel.socket(socket) {
                    netstack.accept(now, entry.flow);
                }
            }
            Event::Refused { socket } => {
                if let Some(entry) = tunnel.remove(socket) {
                    netstack.refuse(now, entry.flow);
                }
            }
            Event::Finished { socket } => {
                if let Some(entry) = tunnel.socket(socket) {
                    entry.down = Down::Ending;
                    entry.end_if_drained(netstack, now);
                }
            }
            Event::Reset { socket, cause } => {
                if let Some(entry) = tunnel.remove(socket) {
                    debug!(socket = socket.0, %cause, "the tunnel reset a connection");
                    netstack.reset(now, entry.flow);
                }
            }
            Event::ServiceAdded(add) => tunnel.publish(netstack, book, &add),
            Event::ServiceRemoved { service } => tunnel.withdraw(netstack, service),
            Event::ServiceRejected { service, fault } => {
                warn!(service = service.0, %fault, "the client announced a service that cannot be");
            }
            Event::Disconnecting { reason } => info!(reason, "the client is leaving"),
            Event::Ready { .. }
            | Event::ServiceMapped { .. }
            | Event::Open { .. }
            | Event::PeerClosed { .. }
            | Event::Migrate => {
                debug_assert!(false, "an event of the client's role: {event:?}");
            }
        }
        Ok(())
    }

    /// Moves what can be moved between the guest and the tunnel, until one of them has to be waited for.
    pub fn advance(&mut self, now: Instant) {
        loop {
            while let Some(event) = self.netstack.poll_event() {
                self.handle_net_event(now, event);
            }
            let Some(tunnel) = &mut self.tunnel else { return };
            if !tunnel.send_round(&mut self.netstack, now) {
                return;
            }
        }
    }

    /// The next Ethernet frame for the guest's card.
    pub fn poll_guest_frame(&mut self, now: Instant) -> Option<&[u8]> {
        self.netstack.poll_transmit(now)
    }

    /// What the tunnel's link has to carry to the client; empty without a tunnel.
    pub fn outgoing(&self) -> &[u8] {
        self.tunnel.as_ref().map_or(&[], |tunnel| tunnel.channel.outgoing())
    }

    /// So many bytes of [`outgoing`](Self::outgoing) were written to the link.
    pub fn sent(&mut self, n: usize) {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.channel.sent(n);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let channel = self.channel().and_then(|channel| channel.poll_timeout()).map(|(at, _)| at);
        [channel, self.netstack.poll_timeout()].into_iter().flatten().min()
    }

    /// Serves what is due. Calling it early is harmless.
    ///
    /// # Errors
    /// The client is dead: detach, and close the link.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        self.netstack.handle_timeout(now);
        match &mut self.tunnel {
            Some(tunnel) => tunnel.channel.handle_timeout(now),
            None => Ok(()),
        }
    }

    fn handle_net_event(&mut self, now: Instant, event: NetEvent) {
        if let NetEvent::GuestLeased { mac, address } = event {
            info!(%mac, %address, "the guest has its address");
            return;
        }
        let Some(tunnel) = &mut self.tunnel else {
            // Nothing is published without a tunnel: this connection is just being reset with its tunnel.
            if let NetEvent::Connect { flow, .. } = event {
                self.netstack.refuse(now, flow);
            }
            return;
        };
        match event {
            NetEvent::Connect { flow, destination, source } => {
                if let Err(reason) = tunnel.open(flow, destination) {
                    debug!(%source, %destination, reason, "refused");
                    self.netstack.refuse(now, flow);
                }
            }
            NetEvent::Readable { flow } => {
                if let Some(socket) = tunnel.socket_of(flow) {
                    tunnel.schedule(socket);
                }
            }
            NetEvent::Writable { flow } => tunnel.drain(&mut self.netstack, now, flow),
            NetEvent::Finished { flow } => {
                if let Some(socket) = tunnel.socket_of(flow) {
                    tunnel.channel.finish(socket);
                }
            }
            NetEvent::Closed { flow } => {
                if let Some(socket) = tunnel.socket_of(flow) {
                    tunnel.remove(socket);
                    tunnel.channel.close(socket);
                }
            }
            NetEvent::Reset { flow, cause } => {
                if let Some(socket) = tunnel.socket_of(flow) {
                    debug!(socket = socket.0, ?cause, "the guest's connection broke");
                    tunnel.remove(socket);
                    tunnel.channel.reset(socket);
                }
            }
            NetEvent::GuestLeased { .. } => {}
        }
    }
}

/// What lives and dies with one channel.
struct Tunnel {
    channel: Channel,
    /// By socket id; grown on demand.
    sockets: Vec<Option<Socket>>,
    /// INVARIANT: has exactly the flows of `sockets`.
    by_flow: HashMap<FlowId, SocketId>,
    /// Sockets that may have something to send, in turn.
    ready: VecDeque<SocketId>,
    services: Vec<Service>,
    /// INVARIANT: has exactly the addresses of `services`.
    by_address: HashMap<SocketAddr, ServiceId>,
}

/// A service that the guest can reach.
struct Service {
    id: ServiceId,
    group: GroupId,
    address: SocketAddr,
    name: String,
}

impl Tunnel {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            sockets: Vec::new(),
            by_flow: HashMap::new(),
            ready: VecDeque::new(),
            services: Vec::new(),
            by_address: HashMap::new(),
        }
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(usize::from(id.0))?.as_mut()
    }

    fn socket_of(&self, flow: FlowId) -> Option<SocketId> {
        self.by_flow.get(&flow).copied()
    }

    fn remove(&mut self, id: SocketId) -> Option<Socket> {
        let socket = self.sockets.get_mut(usize::from(id.0))?.take()?;
        self.by_flow.remove(&socket.flow);
        Some(socket)
    }

    /// Opens a tunnel socket for a guest's SYN, which stays unanswered until the client's word.
    fn open(&mut self, flow: FlowId, destination: SocketAddr) -> Result<(), &'static str> {
        let service = self.by_address.get(&destination).ok_or("nothing is shared there")?;
        let id = self.channel.open(*service).map_err(|error| {
            trace!(%error);
            "the tunnel cannot carry one more connection"
        })?;
        let index = usize::from(id.0);
        if index >= self.sockets.len() {
            self.sockets.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.sockets.get_mut(index) {
            *slot = Some(Socket { flow, scheduled: false, tail: VecDeque::new(), down: Down::Open });
        }
        self.by_flow.insert(flow, id);
        Ok(())
    }

    /// Notes that a socket may have something to send.
    fn schedule(&mut self, id: SocketId) {
        if let Some(socket) = self.socket(id)
            && !socket.scheduled
        {
            socket.scheduled = true;
            self.ready.push_back(id);
        }
    }

    /// Sends one message of each socket that has data and credit. `false`: none had, or the link is full.
    fn send_round(&mut self, netstack: &mut Netstack, now: Instant) -> bool {
        let mut progress = false;
        for _ in 0..self.ready.len() {
            if self.channel.is_congested() {
                return false;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(Some(socket)) = self.sockets.get_mut(usize::from(id.0)) else { continue };
            let flow = socket.flow;
            let sent = self.channel.send(id, |room| read_from_guest(netstack, now, flow, room));
            progress |= sent > 0;
            if sent > 0 && netstack.can_recv(flow) > 0 && self.channel.credit(id) > 0 {
                self.ready.push_back(id);
            } else {
                // It comes back with Readable or with credit.
                socket.scheduled = false;
            }
        }
        progress
    }

    /// Goes on with what did not fit into a flow's transmit ring.
    fn drain(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        let Some(id) = self.socket_of(flow) else { return };
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(id.0)) else { return };
        let delivered = socket.drain(netstack, now);
        socket.end_if_drained(netstack, now);
        if delivered > 0 {
            self.channel.delivered(id, delivered);
        }
    }

    /// Gives an announced service its address. There is no way to refuse one on the wire: what cannot be mapped stays
    /// unmapped, and says so in the log.
    fn publish(&mut self, netstack: &mut Netstack, book: &mut AddressBook, add: &ServiceAdd<'_>) {
        let name = add.name.escape_ascii().to_string();
        let address = match self.address_for(book, add.group, &name, add.port) {
            Ok(address) => address,
            Err(error) => return warn!(service = add.service.0, name, %error, "not mapped"),
        };
        if let Err(error) = self.channel.map_service(add.service, address.ip()) {
            return warn!(service = add.service.0, name, %error, "not mapped");
        }
        info!(service = add.service.0, name, %address, "mapped");
        netstack.publish(address.ip(), address.port());
        self.by_address.insert(address, add.service);
        self.services.push(Service { id: add.service, group: add.group, address, name });
    }

    fn withdraw(&mut self, netstack: &mut Netstack, id: ServiceId) {
        let Some(index) = self.services.iter().position(|service| service.id == id) else { return };
        let service = self.services.swap_remove(index);
        self.by_address.remove(&service.address);
        netstack.withdraw(service.address.ip(), service.address.port());
        info!(service = id.0, name = service.name, address = %service.address, "withdrawn");
    }

    /// The address of a group is a hash of its name. Two devices of one name would get one address, which is right
    /// as long as their ports differ; where they do not, the later one is told apart by a number.
    fn address_for(
        &self,
        book: &mut AddressBook,
        group: GroupId,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, AssignError> {
        if let Some(sibling) = self.services.iter().find(|service| service.group == group)
            && self.is_free(SocketAddr::new(sibling.address.ip(), port))
        {
            return Ok(SocketAddr::new(sibling.address.ip(), port));
        }
        let mut identity = name.to_owned();
        for number in 2.. {
            let address = SocketAddr::new(book.assign(&identity)?, port);
            if self.is_free(address) {
                return Ok(address);
            }
            identity = format!("{name}#{number}");
        }
        unreachable!("services are bounded, so one of the numbers above is free")
    }

    fn is_free(&self, address: SocketAddr) -> bool {
        !self.by_address.contains_key(&address)
    }
}

/// Fills one message from the guest's receive ring, which may be in two pieces.
fn read_from_guest(netstack: &mut Netstack, now: Instant, flow: FlowId, room: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Some(rest) = room.get_mut(filled..)
        && !rest.is_empty()
    {
        let taken = netstack.recv(now, flow, |piece| {
            let len = piece.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..len), piece.get(..len)) {
                to.copy_from_slice(from);
            }
            len
        });
        if taken == 0 {
            break;
        }
        filled += taken;
    }
    filled
}

/// A guest connection and its tunnel socket.
struct Socket {
    flow: FlowId,
    /// It is in `Tunnel::ready`.
    scheduled: bool,
    /// Messages, or the last part of one, that the transmit ring had no room for. Bounded by our window.
    tail: VecDeque<Tail>,
    down: Down,
}

/// The direction from the service to the guest.
enum Down {
    /// More may come.
    Open,
    /// The service has ended; what is in the tail comes before the FIN.
    Ending,
    /// The guest has been sent everything, FIN included.
    Ended,
}

struct Tail {
    message: Box<[u8]>,
    written: usize,
}

impl Socket {
    /// Gives the guest a message, behind what waits already. `true`: it is all in the transmit ring.
    fn deliver(&mut self, netstack: &mut Netstack, now: Instant, payload: &[u8]) -> bool {
        let written = if self.tail.is_empty() { netstack.send(now, self.flow, payload) } else { 0 };
        match payload.get(written..) {
            None | Some([]) => true,
            Some(rest) => {
                self.tail.push_back(Tail { message: rest.into(), written: 0 });
                false
            }
        }
    }

    /// Gives the guest what waits. Returns how many messages were completed.
    fn drain(&mut self, netstack: &mut Netstack, now: Instant) -> u32 {
        let mut completed = 0;
        while let Some(tail) = self.tail.front_mut() {
            let Some(rest) = tail.message.get(tail.written..) else { break };
            let written = netstack.send(now, self.flow, rest);
            tail.written += written;
            if written < rest.len() {
                break;
            }
            self.tail.pop_front();
            completed += 1;
        }
        completed
    }

    fn end_if_drained(&mut self, netstack: &mut Netstack, now: Instant) {
        if matches!(self.down, Down::Ending) && self.tail.is_empty() {
            netstack.finish(now, self.flow);
            self.down = Down::Ended;
        }
    }
}
