//! The channel: its commands and getters. What the peer says comes in through `inbound.rs`, and messages
//! leave through `outbound.rs`.
//!
//! # Theory of operation
//!
//! A [`Channel`] is the whole of one end, of either role. It does no I/O and has no clock: the owner hands it the frames
//! that came, commands, and the time; and takes from it events, the bytes to send and the next deadline.
//!
//! The owner of a socket is the code beyond the channel, at the server the guest's TCP, at the client the service's. An id
//! is in the owner's hands from [`Channel::open`] or [`Event::Open`] until it gives it away ([`Channel::close`],
//! [`Channel::reset`], [`Channel::refuse`]) or is told that it is gone ([`Event::Reset`], [`Event::Refused`]). From then on
//! the channel finishes the dance with the peer alone, drops what still comes, and frees the id.
//!
//! DATA is written straight behind a reserved header, and received data is borrowed from the frame, so the channel copies no
//! payload. It keeps no payload either: what came and was not delivered is with the owner, who may hold no more of it than
//! the window allowed. Only the numbers are here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use spice_proto::base::{BaseClientMessage, BaseServerMessage, Disconnecting};
use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::ServiceInfo;
use spice_proto::tunnel::{
    ClientMessage, InfoBody, IpInfo, Layout, MAX_CLIENT_CONTROL, MAX_TEXT, ServerMessage, ServiceAdd,
    ServiceId, SocketId,
};

use crate::config::{Config, MAX_DATA_LIMIT, Role, Terms};
use crate::event::{AddError, Event, MapError, NewService, OpenError, Violation};
use crate::growth::{Delay, Pool};
use crate::liveness::{Acks, Liveness, Ping, Silence, TimeoutReason};
use crate::names::Names;
use crate::outgoing::Outgoing;
use crate::service::{Directory, ServiceFault};
use crate::socket::{Fate, Illegal, Socket, Step, Tell};
use crate::table::{Ids, Table};

/// One end of a tunnel channel.
///
/// * Getters: [`role`](Self::role), [`caps`](Self::caps), [`is_ready`](Self::is_ready), [`has_ended`](Self::has_ended),
///   [`is_naming`](Self::is_naming), [`queries`](Self::queries), [`credit`](Self::credit), [`max_data`](Self::max_data), [`max_body`](Self::max_body),
///   [`sockets`](Self::sockets), [`waiting`](Self::waiting), [`rtt`](Self::rtt),
///   [`outgoing_len`](Self::outgoing_len), [`outgoing_high_water`](Self::outgoing_high_water),
///   [`is_congested`](Self::is_congested).
/// * Commands: [`open`](Self::open), [`map_service`](Self::map_service), [`ask_name`](Self::ask_name) of a server;
///   [`add_service`](Self::add_service), [`describe_service`](Self::describe_service),
///   [`remove_service`](Self::remove_service), [`add_domain`](Self::add_domain),
///   [`remove_domain`](Self::remove_domain), [`answer_name`](Self::answer_name), [`accept`](Self::accept),
///   [`refuse`](Self::refuse) of a client; [`send`](Self::send), [`finish`](Self::finish),
///   [`delivered`](Self::delivered), [`close`](Self::close), [`reset`](Self::reset),
///   [`disconnect`](Self::disconnect) of both. A command for a socket that is not in the owner's hands, or that its
///   state does not allow, is a bug of the owner: it is logged and has no effect.
/// * Inputs: [`handle_frame`](Self::handle_frame), [`handle_timeout`](Self::handle_timeout). Each gives its event at
///   once; there is no queue of events.
/// * Outputs, to be looked at after every input and command: [`outgoing`](Self::outgoing) with [`sent`](Self::sent),
///   then [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Channel {
    pub(crate) header: HeaderForm,
    pub(crate) terms: Terms,
    pub(crate) phase: Phase,
    pub(crate) side: Side,
    pub(crate) table: Table,
    pub(crate) backlog: Backlog,
    /// Out of which windows grow.
    pub(crate) pool: Pool,
    pub(crate) delay: Delay,
    /// Services that the client announced; at the client, those that it has not removed.
    pub(crate) directory: Directory,
    pub(crate) names: Names,
    pub(crate) liveness: Liveness,
    /// The last question of the peer, not answered yet since too much waits to be sent.
    pub(crate) owed: Option<Ping>,
    /// Of the last message that was queued.
    pub(crate) serial: u64,
    pub(crate) outgoing: Outgoing,
    /// Body of the message being written, then its header. Empty in between, kept for their memory.
    pub(crate) body: Vec<u8>,
    pub(crate) head: Vec<u8>,
}

/// How far the channel is.
///
/// ```text
/// client: AwaitingInit --INIT--> Ready --MIGRATE, disconnect, violation--> Ended
/// server:                        Ready --disconnect, violation-----------> Ended
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Client: nothing but base messages may come, and nothing can be commanded.
    AwaitingInit,
    /// Everything is allowed.
    Ready { max_sockets: u16, max_data: u32 },
    /// There are no sockets. Nothing is sent, whatever comes is ignored.
    Ended,
}

/// What only one role has.
#[derive(Debug)]
pub(crate) enum Side {
    Server {
        ids: Ids,
    },
    Client {
        /// Ids of services below this were announced at some time. They are never used again, since an OPEN for a
        /// removed service may be on its way.
        next_service: u32,
        acks: Acks,
    },
}

/// What was received and not yet delivered, over all sockets.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// INVARIANT: the sum over the windows of all sockets in their owner's hands.
    pub(crate) bytes: usize,
    /// Sockets with credit that was not returned because the backlog was too long.
    pub(crate) held: BTreeSet<SocketId>,
}

/// Outgoing bytes above which sources should not be read, whatever their credit, for messages of the usual size.
const HIGH_WATER: usize = 256 << 10;

/// Outgoing bytes above which a peer that makes us write more is cut off.
pub(crate) const MAX_OUTGOING: usize = 16 << 20;

/// Largest body of a base message that is taken in: NOTIFY has text, PING has ballast.
const MAX_BASE_BODY: u32 = 64 << 10;

/// What a historical server reads control messages into, unchecked (wire-reference 6.5).
const HISTORICAL_CONTROL_BUFFER: usize = 1024;
/// The fixed part of the longest SERVICE_ADD, and the two NULs.
const SERVICE_ADD_FIXED: usize = 32;

impl Channel {
    /// A channel whose link stage is over. A server has INIT queued.
    ///
    /// `caps` are those that both sides have. Without [`TunnelCaps::EXTENDED`], and in layout A, `config` is cut to the
    /// historical numbers.
    pub fn new(
        role: Role,
        header: HeaderForm,
        layout: Layout,
        caps: TunnelCaps,
        config: Config,
        now: Instant,
    ) -> Self {
        let terms = Terms::new(role, layout, caps, config);
        let Config { max_sockets, max_data, ping_interval, dead_after, .. } = terms.config;
        let (side, phase, liveness) = match role {
            Role::Server => (
                Side::Server { ids: Ids::default() },
                Phase::Ready { max_sockets, max_data },
                Liveness::server(now, ping_interval, dead_after),
            ),
            Role::Client => (
                Side::Client { next_service: 0, acks: Acks::Never },
                Phase::AwaitingInit,
                if terms.has(TunnelCaps::PROBE) {
                    Liveness::asking(now, dead_after)
                } else {
                    Liveness::listening(now, terms.has(TunnelCaps::EXTENDED), dead_after)
                },
            ),
        };
        let mut channel = Channel {
            header,
            terms,
            phase,
            side,
            table: Table::default(),
            backlog: Backlog::default(),
            pool: Pool::default(),
            delay: Delay::new(now),
            directory: Directory::default(),
            names: Names::default(),
            liveness,
            owed: None,
            serial: 0,
            outgoing: Outgoing::default(),
            body: Vec::new(),
            head: Vec::new(),
        };
        if role == Role::Server {
            channel.say_server(ServerMessage::Init { max_sockets, max_data });
        }
        channel
    }

    // ---- getters ----

    /// Which end this is.
    pub fn role(&self) -> Role {
        match self.side {
            Side::Server { .. } => Role::Server,
            Side::Client { .. } => Role::Client,
        }
    }

    /// The capabilities in force: those that both sides have, and none in layout A.
    pub fn caps(&self) -> TunnelCaps {
        self.terms.caps
    }

    /// Whether commands are possible: at once for a server, after INIT for a client, until the channel ends.
    pub fn is_ready(&self) -> bool {
        match self.phase {
            Phase::Ready { .. } => true,
            Phase::AwaitingInit | Phase::Ended => false,
        }
    }

    /// Whether the channel is over: a violation, [`Event::Migrate`] or [`Channel::disconnect`]. Send what is
    /// outgoing and close the link.
    pub fn has_ended(&self) -> bool {
        match self.phase {
            Phase::Ended => true,
            Phase::AwaitingInit | Phase::Ready { .. } => false,
        }
    }

    /// How many DATA messages may be sent on a socket now. 0 also where there is no such socket or nothing may be
    /// sent on it any more.
    pub fn credit(&self, socket: SocketId) -> u32 {
        self.table.get(socket).map_or(0, Socket::sendable)
    }

    /// Longest payload of one message that [`Channel::send`] writes, in bytes. 0 before INIT.
    pub fn max_data(&self) -> usize {
        match self.phase {
            Phase::Ready { max_data, .. } => to_usize(max_data.min(self.terms.config.max_data)),
            Phase::AwaitingInit | Phase::Ended => 0,
        }
    }

    /// Largest body that the peer may send now, in bytes; the limit to split frames with. INIT changes it, so ask
    /// for every frame.
    pub fn max_body(&self) -> u32 {
        let data = match self.phase {
            Phase::Ready { max_data, .. } => max_data,
            Phase::AwaitingInit | Phase::Ended => 0,
        };
        let control = match self.side {
            Side::Server { .. } => MAX_CLIENT_CONTROL,
            Side::Client { .. } => MAX_BASE_BODY,
        };
        // A little above the longest DATA, so that one that is just too long ends its socket, not the channel.
        control.max(data.saturating_add(SLACK))
    }

    /// Sockets whose ids are in use, including those that only wait for the peer's last word.
    pub fn sockets(&self) -> usize {
        self.table.len()
    }

    /// Bytes that were received and not yet delivered, over all sockets. Within a socket of which some messages were
    /// delivered, the rest counts by the average size.
    pub fn waiting(&self) -> usize {
        self.backlog.bytes
    }

    /// Round trip of the last PING, or of a client's last PROBE.
    pub fn rtt(&self) -> Option<Duration> {
        self.liveness.rtt()
    }

    /// Bytes that wait to be sent.
    pub fn outgoing_len(&self) -> usize {
        self.outgoing.len()
    }

    /// Outgoing bytes above which the owner should send no more data, but let its sources wait until the link has
    /// taken some. The channel does not enforce it.
    pub fn outgoing_high_water(&self) -> usize {
        HIGH_WATER.max(self.max_data().saturating_mul(4))
    }

    /// Whether the owner should send no more data for now: more waits than [`Channel::outgoing_high_water`]; or more than a
    /// quarter of that, and the link takes less than it is given, so that whatever is added would only wait.
    pub fn is_congested(&self) -> bool {
        let mark = self.outgoing_high_water();
        let mark = if self.outgoing.is_backed_up() { mark / 4 } else { mark };
        self.outgoing_len() > mark
    }

    // ---- commands ----

    /// Server: the guest connects to a service. [`Event::Accepted`] or [`Event::Refused`] follows, or
    /// [`Event::Reset`].
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(&mut self, service: ServiceId) -> Result<SocketId, OpenError> {
        let (Phase::Ready { max_sockets, .. }, Side::Server { ids }) = (self.phase, &mut self.side) else {
            return Err(OpenError::NotReady);
        };
        if !self.directory.contains(service) {
            return Err(OpenError::UnknownService { service });
        }
        let Some(socket) = ids.take(max_sockets) else {
            return Err(OpenError::Full { limit: max_sockets });
        };
        let tokens = self.terms.policy.window;
        let fresh = self.table.insert(socket, Socket::opening(0, tokens));
        debug_assert!(fresh, "a free id has no socket");
        self.say_server(ServerMessage::SocketOpen { socket, service, tokens });
        Ok(socket)
    }

    /// Server: tells the client at which address the guest finds a service.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map_service(&mut self, service: ServiceId, address: IpAddr) -> Result<(), MapError> {
        let (Phase::Ready { .. }, Side::Server { .. }) = (self.phase, &self.side) else {
            return Err(MapError::NotReady);
        };
        if !self.directory.contains(service) {
            return Err(MapError::UnknownService { service });
        }
        let IpAddr::V4(v4) = address else { return Err(MapError::AddressFamily { address }) };
        self.say_server(ServerMessage::ServiceIpMap { service, address: IpInfo::V4(v4) });
        Ok(())
    }

    /// Client: announces a service, behind what it says of itself. [`Event::ServiceMapped`] follows, unless the server does not take it in, of which
    /// there is no message.
    ///
    /// # Errors
    ///
    /// See [`AddError`].
    pub fn add_service(&mut self, service: NewService<'_>) -> Result<ServiceId, AddError> {
        let (Phase::Ready { .. }, Side::Client { next_service, .. }) = (self.phase, &mut self.side) else {
            return Err(AddError::NotReady);
        };
        let NewService { kind, group, port, name, description, info } = service;
        if port == 0 {
            return Err(AddError::Port);
        }
        let limit = if self.terms.has(TunnelCaps::EXTENDED) {
            MAX_TEXT
        } else {
            (HISTORICAL_CONTROL_BUFFER - SERVICE_ADD_FIXED) / 2
        };
        for (field, text) in [("name", name), ("description", description)] {
            if text.len() > limit || text.contains(&0) {
                return Err(AddError::Text { field, length: text.len(), limit });
            }
        }
        let id = ServiceId(*next_service);
        let most = self.terms.config.max_services;
        let following =
            next_service.checked_add(1).ok_or(AddError::Service(ServiceFault::TooMany { limit: most }))?;
        let add = ServiceAdd { kind, service: id, group, port, name, description };
        self.directory.add(&add, most)?;
        *next_service = following;
        if let Some(info) = info {
            self.say_info(id, info);
        }
        self.say_client(ClientMessage::ServiceAdd(add));
        Ok(id)
    }

    /// Client: an announced service says something else of itself. `false`: there is no such service, or the server
    /// does not want to know.
    pub fn describe_service(&mut self, service: ServiceId, info: &ServiceInfo) -> bool {
        let (Phase::Ready { .. }, Side::Client { .. }) = (self.phase, &self.side) else { return false };
        self.directory.contains(service) && self.say_info(service, info)
    }

    /// `false`: the server does not want to know.
    fn say_info(&mut self, service: ServiceId, info: &ServiceInfo) -> bool {
        let wanted = self.terms.has(TunnelCaps::SERVICE_INFO);
        if wanted {
            let mut buffer = Vec::with_capacity(info.encoded_len());
            let info = InfoBody::write(info, &mut buffer);
            self.say_client(ClientMessage::ServiceInfo { service, info });
        }
        wanted
    }

    /// Client: withdraws a service. A server that knows how is told; any other goes on offering it to the guest, and
    /// every further OPEN for it is refused. Sockets that are open stay so. No effect for an unknown id.
    pub fn remove_service(&mut self, service: ServiceId) {
        let (Phase::Ready { .. }, Side::Client { .. }) = (self.phase, &self.side) else { return };
        if self.directory.remove(service) && self.terms.has(TunnelCaps::SERVICE_REMOVE) {
            self.say_client(ClientMessage::ServiceRemove { service });
        }
    }

    /// Client: the service answered, in reply to [`Event::Open`]. Both directions are open.
    pub fn accept(&mut self, socket: SocketId) {
        self.command(socket, "accept", Role::Client, Socket::accept);
    }

    /// Client: the service did not answer, in reply to [`Event::Open`]. The id is out of the owner's hands.
    pub fn refuse(&mut self, socket: SocketId) {
        self.command(socket, "refuse", Role::Client, Socket::refuse);
    }

    /// The local source ended: the guest's FIN, the service's end of file. All of it was sent.
    pub fn finish(&mut self, socket: SocketId) {
        let role = self.role();
        self.command(socket, "finish", role, |socket| socket.finish(role));
    }

    /// The oldest `messages` of [`Event::Data`] were written to the local sink, whole. Returns credit once enough
    /// came together.
    pub fn delivered(&mut self, socket: SocketId, messages: u32) {
        match self.table.get_mut(socket) {
            Some(state) if state.is_owned() => {
                let freed = state.window_mut().deliver(messages);
                self.backlog.bytes = self.backlog.bytes.saturating_sub(freed);
                self.return_credit(socket);
                self.release_held();
            }
            Some(_) | None => self.misused(socket, "delivered", "not in the owner's hands"),
        }
    }

    /// Both directions ended and everything received was delivered, or [`Event::PeerClosed`] came and everything was
    /// delivered. Where that is not so, it is a [`Channel::reset`]. The id is out of the owner's hands.
    pub fn close(&mut self, socket: SocketId) {
        let role = self.role();
        self.command(socket, "close", role, |socket| socket.close(role));
    }

    /// Aborts the socket. The id is out of the owner's hands.
    pub fn reset(&mut self, socket: SocketId) {
        let role = self.role();
        self.command(socket, "reset", role, |socket| socket.reset(role));
    }

    /// Says DISCONNECTING with a link error code (wire-reference 1.7; 0 for none) and ends the channel. All sockets are
    /// gone at once, without events.
    pub fn disconnect(&mut self, reason: u32) {
        if self.has_ended() {
            return;
        }
        let goodbye = Disconnecting { time_stamp: 0, reason };
        match self.side {
            Side::Server { .. } => self.say_base_server(&BaseServerMessage::Disconnecting(goodbye)),
            Side::Client { .. } => self.say_base_client(&BaseClientMessage::Disconnecting(goodbye)),
        }
        self.end();
    }

    // ---- outputs ----

    /// All bytes to send, in order.
    pub fn outgoing(&self) -> &[u8] {
        self.outgoing.pending()
    }

    /// The first `n` of [`Channel::outgoing`] were written to the link.
    pub fn sent(&mut self, n: usize) {
        self.outgoing.consume(n);
        self.answer_owed();
    }

    /// When [`Channel::handle_timeout`] wants to be called, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        match self.phase {
            Phase::AwaitingInit | Phase::Ready { .. } => self.liveness.poll_timeout(),
            Phase::Ended => None,
        }
    }

    /// Asks the peer for a sign of life now: if nothing at all has come from it within this time, it is dead. Of
    /// several probes that wait, the one counts that is over first.
    ///
    /// Gives whether the peer could be asked: a server can ask any client, a client only a server with
    /// [`TunnelCaps::PROBE`]. Where not, there is no effect.
    pub fn probe(&mut self, now: Instant, within: Duration) -> bool {
        if self.has_ended() || !self.liveness.can_ask() {
            return false;
        }
        if let Some(question) = self.liveness.probe(now, within) {
            self.ask(question);
        }
        true
    }

    /// The time has come, or not; calling too early has no effect.
    ///
    /// # Errors
    ///
    /// [`Violation::Silent`]: the peer is dead, the channel has ended.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if self.has_ended() {
            return Ok(());
        }
        match self.liveness.handle_timeout(now) {
            Ok(None) => Ok(()),
            Ok(Some(question)) => {
                self.ask(question);
                Ok(())
            }
            Err(Silence { after }) => {
                self.end();
                Err(Violation::Silent { after })
            }
        }
    }

    /// It matters how far away the peer is: asks, unless it answered lately. Historical peers are asked when it is time only.
    pub(crate) fn ask_for_delay(&mut self, now: Instant) {
        let may = self.terms.has(TunnelCaps::EXTENDED) && self.delay.is_guessed();
        if let Some(question) = may.then(|| self.liveness.ask(now)).flatten() {
            self.ask(question);
        }
    }

    // ---- below: how steps of a socket take effect ----

    /// Runs an event on a socket, if there is one, and does what follows from it.
    pub(crate) fn drive(
        &mut self,
        id: SocketId,
        event: impl FnOnce(&mut Socket) -> Result<Step, Illegal>,
    ) -> Option<Result<Option<Event<'static>>, Illegal>> {
        let socket = self.table.get_mut(id)?;
        let (was_owned, had_grown) = (socket.is_owned(), socket.grown());
        let step = match event(socket) {
            Ok(step) => step,
            Err(illegal) => return Some(Err(illegal)),
        };
        let is_owned = socket.is_owned() && step.fate == Fate::Stays;
        let dropped = if was_owned && !is_owned { socket.window().bytes() } else { 0 };
        // No event makes a window grow; it is given back with the end of what may come.
        self.pool.give_back(had_grown - if is_owned { socket.grown() } else { 0 });
        match step.fate {
            Fate::Stays => {}
            Fate::Freed => {
                self.table.remove(id);
                if let Side::Server { ids } = &mut self.side {
                    ids.give_back(id);
                }
            }
        }
        if let Some(say) = step.say {
            self.say(id, say);
        }
        if was_owned && !is_owned {
            self.backlog.bytes = self.backlog.bytes.saturating_sub(dropped);
            self.backlog.held.remove(&id);
        }
        self.release_held();
        Some(Ok(step.tell.map(|tell| event_of(id, tell))))
    }

    fn command(
        &mut self,
        id: SocketId,
        name: &'static str,
        role: Role,
        event: impl FnOnce(&mut Socket) -> Result<Step, Illegal>,
    ) {
        if role != self.role() {
            return self.misused(id, name, "not of this role");
        }
        match self.drive(id, event) {
            Some(Ok(_)) => {}
            Some(Err(Illegal { state })) => self.misused(id, name, state),
            None => self.misused(id, name, "not there"),
        }
    }

    fn misused(&self, id: SocketId, command: &'static str, state: &'static str) {
        // After the end of the channel there are no sockets, and their owners may not have heard yet.
        if !self.has_ended() {
            tracing::warn!(role = ?self.role(), socket = id.0, command, state, "command for a socket that cannot take it");
        }
    }

    /// The channel is over: nothing more is said, and no sockets are left.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ended;
        self.owed = None;
        self.names = Names::default();
        self.table.clear();
        self.backlog = Backlog::default();
        self.pool = Pool::default();
    }
}

/// What a body may have beyond the longest payload.
const SLACK: u32 = 1024;

// A server that announced the most that we bear may send bodies up to this long.
const _: () = assert!(MAX_DATA_LIMIT.checked_add(SLACK).is_some());

fn event_of(socket: SocketId, tell: Tell) -> Event<'static> {
    match tell {
        Tell::Accepted => Event::Accepted { socket },
        Tell::Refused => Event::Refused { socket },
        Tell::Finished => Event::Finished { socket },
        Tell::PeerClosed => Event::PeerClosed { socket },
        Tell::Reset(cause) => Event::Reset { socket, cause },
    }
}

pub(crate) fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
