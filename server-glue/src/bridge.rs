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
//! * What the client announces gets an address and a name, see `services`.
//! * A tunnel that goes resets what went through it. Its services stay known for a while, see [`AwayConfig`].
//!
//! Sockets that may send have their [`Turns`], so that one bulk transfer cannot starve the rest.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use spice_proto::frame::Frame;
use spice_proto::service_info::ServiceInfo;
use spice_proto::tunnel::{ServiceId, SocketId};
use tracing::{debug, info, trace, warn};
use tunnel_channel::{Channel, Event, Spares, Tail, Turns, Violation};

use crate::address::AddressBook;
pub use crate::away::AwayConfig;
use crate::away::{Away, Due, Identity};
use crate::netstack::{FlowId, NetEvent, Netstack};
use crate::offload::{CardFrame, Offloads};
use crate::status::{Status, Traffic, TunnelStatus};

use self::domains::Questions;

mod domains;
mod services;

/// The guest's network and, while a session lives, the tunnel channel that carries its connections.
///
/// Drive it like this, and drain wholly before waiting:
///
/// 1. inputs: [`handle_guest_frame`](Self::handle_guest_frame), [`handle_tunnel_frame`](Self::handle_tunnel_frame),
///    [`handle_timeout`](Self::handle_timeout), [`attach`](Self::attach), [`detach`](Self::detach),
///    [`forget`](Self::forget), [`probe`](Self::probe), [`guest_came`](Self::guest_came), [`guest_lost`](Self::guest_lost),
///    [`say_goodbye`](Self::say_goodbye);
/// 2. [`advance`](Self::advance) moves bytes between the two;
/// 3. outputs: [`poll_guest_frame`](Self::poll_guest_frame), [`outgoing`](Self::outgoing) with [`sent`](Self::sent),
///    [`poll_timeout`](Self::poll_timeout).
pub struct Bridge {
    netstack: Netstack,
    book: AddressBook,
    tunnel: Option<Tunnel>,
    away: Away,
    traffic: Traffic,
}

impl Bridge {
    /// A network behind which nothing stands until a tunnel is attached, and nothing any more once it is detached.
    pub fn new(netstack: Netstack, book: AddressBook) -> Self {
        Self {
            netstack,
            book,
            tunnel: None,
            away: Away::new(AwayConfig::FORGET),
            traffic: Traffic::default(),
        }
    }

    /// The same, with a view that outlives its tunnels.
    #[must_use]
    pub fn while_away(self, config: AwayConfig) -> Self {
        Self { away: Away::new(config), ..self }
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

    /// Connections of the guest that wait for a tunnel.
    pub fn waiting(&self) -> usize {
        self.away.waiting()
    }

    /// What it and its tunnels are and were; what an owner alone knows is left out.
    pub fn status(&self) -> Status {
        let tunnel = self.tunnel.as_ref().map(|Tunnel { channel, services, .. }| TunnelStatus {
            services: services.len(),
            sockets: channel.sockets(),
            rtt: channel.rtt(),
            undelivered: channel.waiting(),
            outgoing: channel.outgoing_len(),
        });
        Status {
            netstack: *self.netstack.counters(),
            connections: self.netstack.flows(),
            half_open: self.netstack.half_open(),
            waiting: self.waiting(),
            tunnel,
            traffic: self.traffic,
            ..Status::default()
        }
    }

    /// Takes the channel of a new session. An attached one is detached first.
    pub fn attach(&mut self, now: Instant, channel: Channel) {
        self.detach(now);
        self.away.tunnel_came(now);
        self.netstack.tunnel_came(now, self.away.config().grace);
        self.tunnel = Some(Tunnel::new(channel));
    }

    /// Ends the tunnel: every connection of the guest is reset. Its services become what is known while it is away; a connection
    /// that the client had not answered yet waits with the new ones.
    pub fn detach(&mut self, now: Instant) {
        let Some(tunnel) = self.tunnel.take() else { return };
        self.netstack.tunnel_gone(now, self.away.config().remember, tunnel.announced);
        if !tunnel.announced {
            self.away.tunnel_was_none();
        }
        for service in tunnel.services {
            if let Some(forgotten) = self.away.learn(now, service.address, service.identity) {
                self.forget_service(now, forgotten);
            }
        }
        for socket in tunnel.sockets.into_iter().flatten() {
            let waits =
                socket.dialing.is_some_and(|destination| self.away.hold(now, socket.flow, destination));
            if !waits {
                self.netstack.reset(now, socket.flow);
            }
        }
    }

    /// Forgets what is known of tunnels that are gone: nothing of it answers any more.
    pub fn forget(&mut self, now: Instant) {
        self.netstack.forget_tunnels();
        while let Some(address) = self.away.any() {
            self.forget_service(now, address);
        }
    }

    fn forget_service(&mut self, now: Instant, address: SocketAddr) {
        for flow in self.away.settle(address) {
            self.netstack.refuse(now, flow);
        }
        self.netstack.withdraw(address.ip(), address.port());
        self.netstack.unname(now, address);
    }

    /// Tells the guest that no name of this network will be there any more; to be called last.
    pub fn say_goodbye(&mut self, now: Instant) {
        self.netstack.say_goodbye(now);
    }

    /// Asks the client for a sign of life. If none comes within this time, [`handle_timeout`](Self::handle_timeout) says so.
    pub fn probe(&mut self, now: Instant, within: Duration) {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.channel.probe(now, within);
        }
    }

    /// The guest's card is there, which can be left to do this: it gets to know what is there.
    pub fn guest_came(&mut self, now: Instant, offloads: Offloads) {
        self.netstack.set_offloads(offloads);
        self.netstack.link_came(now);
    }

    /// The guest's card is gone, so are its connections.
    pub fn guest_lost(&mut self) {
        self.netstack.link_lost();
    }

    /// An Ethernet frame from the guest's card.
    pub fn handle_guest_frame<'a>(&mut self, now: Instant, frame: impl Into<CardFrame<'a>>) {
        self.netstack.handle_frame(now, frame);
    }

    /// A message from the client's end of the tunnel.
    ///
    /// # Errors
    /// The client broke the protocol: detach, and close the link.
    pub fn handle_tunnel_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), Violation> {
        let Self { netstack, book, tunnel: Some(tunnel), away, traffic } = self else { return Ok(()) };
        let Some(event) = tunnel.channel.handle_frame(now, frame)? else { return Ok(()) };
        match event {
            Event::Data { socket, payload } => {
                traffic.received(payload.len());
                let Tunnel { sockets, spares, .. } = tunnel;
                let entry = sockets.get_mut(usize::from(socket.0)).and_then(Option::as_mut);
                let whole = entry.is_some_and(|entry| entry.deliver(netstack, now, payload, spares));
                if whole {
                    tunnel.channel.delivered(socket, 1);
                }
            }
            Event::Writable { socket } => tunnel.turns.ready(socket),
            Event::Accepted { socket } => {
                if let Some(entry) = tunnel.socket(socket) {
                    entry.dialing = None;
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
            Event::ServiceAdded(add) => tunnel.publish(now, netstack, (book, away), &add),
            Event::ServiceRemoved { service } => tunnel.withdraw(now, netstack, service),
            Event::ServiceDescribed { service, info } => tunnel.describe(now, netstack, service, info),
            Event::ServiceRejected { service, fault } => {
                tunnel.described = None;
                warn!(service = service.0, %fault, "the client announced a service that cannot be");
            }
            Event::NameAnswered { query, answer } => tunnel.name_answered(now, netstack, query, answer),
            Event::DomainAdded { name } => domains::allow(netstack, name),
            Event::DomainRemoved { name } => domains::disallow(netstack, name),
            Event::Disconnecting { reason } => info!(reason, "the client is leaving"),
            Event::Ready { .. }
            | Event::NameAsked { .. }
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
            self.ask_names(now);
            let Some(tunnel) = &mut self.tunnel else { return };
            if !tunnel.send_round(&mut self.netstack, &mut self.traffic, now) {
                return;
            }
        }
    }

    /// The next Ethernet frame for the guest's card.
    pub fn poll_guest_frame(&mut self, now: Instant) -> Option<CardFrame<'_>> {
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
        [channel, self.netstack.poll_timeout(), self.away.poll_timeout()].into_iter().flatten().min()
    }

    /// Serves what is due. Calling it early is harmless.
    ///
    /// # Errors
    /// The client is dead: detach, and close the link.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        while let Some(due) = self.away.take_due(now) {
            match due {
                Due::Refuse(flow) => {
                    debug!("no tunnel came for a connection that waited");
                    self.netstack.refuse(now, flow);
                }
                Due::Withdraw(address) => {
                    info!(%address, "forgotten: no tunnel announced it again");
                    self.forget_service(now, address);
                }
            }
        }
        self.netstack.handle_timeout(now);
        match &mut self.tunnel {
            Some(tunnel) => {
                tunnel.spares.tidy(now);
                tunnel.channel.handle_timeout(now)
            }
            None => Ok(()),
        }
    }

    fn handle_net_event(&mut self, now: Instant, event: NetEvent) {
        if let NetEvent::GuestLeased { mac, address } = event {
            info!(%mac, %address, "the guest has its address");
            return;
        }
        if let NetEvent::Reset { flow, .. } = event {
            self.away.release(flow);
        }
        if let NetEvent::Connect { flow, destination, source } = event {
            return self.connect(now, flow, destination, source);
        }
        // Without a tunnel there are only connections that wait, of which nothing else comes.
        let Some(tunnel) = &mut self.tunnel else { return };
        match event {
            NetEvent::Readable { flow } => {
                if let Some(socket) = tunnel.socket_of(flow) {
                    tunnel.turns.ready(socket);
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
            NetEvent::Connect { .. } | NetEvent::GuestLeased { .. } => {}
        }
    }

    /// The guest's SYN goes to the client, or waits for one, or is refused.
    fn connect(&mut self, now: Instant, flow: FlowId, destination: SocketAddr, source: SocketAddr) {
        if self.away.hold(now, flow, destination) {
            return debug!(%source, %destination, "waits for the tunnel");
        }
        let opened = match &mut self.tunnel {
            Some(tunnel) => tunnel.open(flow, destination),
            None => Err("no tunnel is there"),
        };
        if let Err(reason) = opened {
            debug!(%source, %destination, reason, "refused");
            self.netstack.refuse(now, flow);
        }
    }
}

/// Messages of guest connections that are sent before the netstack is heard again.
const MESSAGES_PER_ROUND: usize = 64;

/// What lives and dies with one channel.
struct Tunnel {
    channel: Channel,
    /// By socket id; grown on demand.
    sockets: Vec<Option<Socket>>,
    /// INVARIANT: has exactly the flows of `sockets`.
    by_flow: HashMap<FlowId, SocketId>,
    /// Of the sockets that may have something to send.
    turns: Turns,
    /// For what waits for the guest.
    spares: Spares,
    services: Vec<Service>,
    /// INVARIANT: has exactly the addresses of `services`.
    by_address: HashMap<SocketAddr, ServiceId>,
    questions: Questions,
    /// What the service that is announced next says of itself.
    described: Option<(ServiceId, ServiceInfo)>,
    /// The client has announced a service.
    announced: bool,
}

/// A service that the guest can reach.
struct Service {
    id: ServiceId,
    address: SocketAddr,
    /// Its device's.
    name: String,
    identity: Identity,
}

impl Tunnel {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            sockets: Vec::new(),
            by_flow: HashMap::new(),
            turns: Turns::default(),
            spares: Spares::default(),
            services: Vec::new(),
            by_address: HashMap::new(),
            questions: Questions::default(),
            described: None,
            announced: false,
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
            let dialing = Some(destination);
            *slot = Some(Socket { flow, dialing, tail: Tail::default(), down: Down::Open });
        }
        self.by_flow.insert(flow, id);
        Ok(())
    }

    /// Sends some messages of sockets that have data and credit. `false`: none had, or the link is full.
    fn send_round(&mut self, netstack: &mut Netstack, traffic: &mut Traffic, now: Instant) -> bool {
        let mut progress = false;
        for _ in 0..MESSAGES_PER_ROUND {
            if self.channel.is_congested() {
                break;
            }
            let Some(id) = self.turns.next_turn() else { break };
            let socket = self.sockets.get(usize::from(id.0)).and_then(Option::as_ref);
            let sent = match socket.map(|socket| socket.flow) {
                Some(flow) => self.channel.send(id, |room| read_from_guest(netstack, now, flow, room)),
                None => 0,
            };
            if sent > 0 {
                progress = true;
                traffic.sent(sent);
                self.turns.sent(id, sent);
            } else {
                // It comes back with Readable or with credit.
                self.turns.silent(id);
            }
        }
        progress
    }

    /// Goes on with what did not fit into a flow's transmit ring.
    fn drain(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        let Some(id) = self.socket_of(flow) else { return };
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(id.0)) else { return };
        let delivered = socket.drain(netstack, now, &mut self.spares);
        socket.end_if_drained(netstack, now);
        if delivered > 0 {
            self.channel.delivered(id, delivered);
        }
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
    /// Where the guest's SYN went to, until the client has answered it.
    dialing: Option<SocketAddr>,
    /// What the transmit ring had no room for.
    tail: Tail,
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

impl Socket {
    /// Gives the guest a message, behind what waits already. `true`: it is all in the transmit ring.
    fn deliver(
        &mut self,
        netstack: &mut Netstack,
        now: Instant,
        payload: &[u8],
        spares: &mut Spares,
    ) -> bool {
        let written = if self.tail.is_empty() { netstack.send(now, self.flow, payload) } else { 0 };
        match payload.get(written..) {
            None | Some([]) => true,
            Some(rest) => {
                self.tail.extend(rest, spares);
                self.tail.end_message(rest.len());
                false
            }
        }
    }

    /// Gives the guest what waits. Returns how many messages were completed.
    fn drain(&mut self, netstack: &mut Netstack, now: Instant, spares: &mut Spares) -> u32 {
        let mut completed = 0;
        while !self.tail.is_empty() {
            let waiting = self.tail.front();
            let len = waiting.len();
            let written = netstack.send(now, self.flow, waiting);
            completed += self.tail.written(written, spares);
            if written < len {
                return completed;
            }
        }
        // An idle connection keeps no buffer.
        self.tail = Tail::default();
        completed
    }

    fn end_if_drained(&mut self, netstack: &mut Netstack, now: Instant) {
        if matches!(self.down, Down::Ending) && self.tail.is_empty() {
            netstack.finish(now, self.flow);
            self.down = Down::Ended;
        }
    }
}

#[cfg(test)]
mod tests;
