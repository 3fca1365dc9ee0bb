//! What the peer says, message by message (wire-reference 2.4, 6.2, 6.3, 6.8, 6.9).

use std::net::IpAddr;
use std::time::Instant;

use spice_proto::base::{BaseClientMessage, BaseServerMessage, Disconnecting, MigrateFlags};
use spice_proto::frame::Frame;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ClientMessage, IpInfo, ServerMessage, ServiceId, SocketId};

use crate::channel::{Channel, MAX_OUTGOING, Phase, Side, to_usize};
use crate::config::{MAX_DATA_LIMIT, Role};
use crate::credit::Overrun;
use crate::event::{Event, ResetCause, SocketViolation, Violation};
use crate::liveness::Ping;
use crate::socket::{Arrival, Illegal, Socket, Step};

pub(crate) type Heard<'a> = Result<Option<Event<'a>>, Violation>;

impl Channel {
    /// Takes in one message of the peer, as [`split`](spice_proto::frame::split) gave it.
    ///
    /// What the peer does wrong on one socket ends that socket: the peer is told, and [`Event::Reset`] tells the owner.
    /// After the channel has ended, everything is ignored.
    ///
    /// # Errors
    ///
    /// What cannot be answered by ending a socket. The channel has ended; close the link.
    pub fn handle_frame<'a>(&mut self, now: Instant, frame: Frame<'a>) -> Heard<'a> {
        if self.has_ended() {
            return Ok(None);
        }
        self.liveness.on_message(now);
        let heard = match self.role() {
            Role::Server => self.hear_client(now, frame),
            Role::Client => self.hear_server(now, frame),
        };
        let queued = self.outgoing_len();
        let heard = match heard {
            Ok(_) if queued > MAX_OUTGOING => Err(Violation::NotReading { queued, limit: MAX_OUTGOING }),
            heard => heard,
        };
        if heard.is_err() {
            self.end();
        }
        heard
    }

    // ---- server ----

    fn hear_client<'a>(&mut self, now: Instant, frame: Frame<'a>) -> Heard<'a> {
        // `sub_list` is not looked at: every server ignores a client's, and old clients sent garbage there.
        if let Some(message) = ClientMessage::parse(self.terms.layout, frame.kind, frame.body)? {
            return self.tunnel_from_client(now, message);
        }
        match BaseClientMessage::parse(frame.kind, frame.body)? {
            Some(BaseClientMessage::Pong { id, timestamp }) => {
                self.on_answer(now, id, Some(timestamp));
                Ok(None)
            }
            Some(BaseClientMessage::Disconnecting(Disconnecting { reason, .. })) => {
                Ok(Some(Event::Disconnecting { reason }))
            }
            // Nothing here asks for any of these, but they do no harm.
            Some(
                BaseClientMessage::AckSync { .. }
                | BaseClientMessage::Ack
                | BaseClientMessage::MigrateFlushMark
                | BaseClientMessage::MigrateData { .. },
            ) => Ok(None),
            None => Err(Violation::UnknownMessage { kind: frame.kind }),
        }
    }

    fn tunnel_from_client<'a>(&mut self, now: Instant, message: ClientMessage<'a>) -> Heard<'a> {
        let name = message.name();
        match message {
            ClientMessage::SocketData { socket, payload } => self.on_data(now, socket, name, payload),
            ClientMessage::SocketToken { socket, tokens } => self.on_token(socket, name, tokens),
            ClientMessage::ServiceAdd(add) => {
                // An old server drops the whole channel for each of these. Not to map the service is enough: no other
                // is touched, and the client's sockets live on.
                Ok(Some(match self.directory.add(&add, self.terms.config.max_services) {
                    Ok(()) => Event::ServiceAdded(add),
                    Err(fault) => Event::ServiceRejected { service: add.service, fault },
                }))
            }
            ClientMessage::ServiceRemove { service } => {
                self.negotiated(TunnelCaps::SERVICE_REMOVE, name)?;
                // Not to be found: it was rejected, which the client cannot know.
                Ok(self.directory.remove(service).then_some(Event::ServiceRemoved { service }))
            }
            ClientMessage::SocketOpenAck { socket, tokens } => {
                self.on_step(socket, name, |socket| socket.on_open_ack(tokens))
            }
            ClientMessage::SocketOpenNack { socket } => self.on_step(socket, name, Socket::on_open_nack),
            ClientMessage::SocketFin { socket } => self.on_step(socket, name, Socket::on_fin),
            ClientMessage::SocketClosed { socket } => self.on_step(socket, name, Socket::on_closed),
            ClientMessage::SocketReset { socket } => {
                self.negotiated(TunnelCaps::RESET, name)?;
                self.on_step(socket, name, Socket::on_reset)
            }
            ClientMessage::SocketClosedAck { socket } => self.on_closed_ack(socket, name),
            ClientMessage::Probe { id } => {
                self.negotiated(TunnelCaps::PROBE, name)?;
                self.answer(Ping { id, timestamp: 0 });
                Ok(None)
            }
            ClientMessage::ServiceInfo { service, info } => {
                self.negotiated(TunnelCaps::SERVICE_INFO, name)?;
                Ok(Some(Event::ServiceDescribed { service, info }))
            }
            ClientMessage::NameAnswer { query, answer } => {
                self.negotiated(TunnelCaps::NAMES, name)?;
                self.on_name_answer(query, answer)
            }
            ClientMessage::DomainAdd { name: domain } => {
                self.negotiated(TunnelCaps::NAMES, name)?;
                self.on_domain_add(domain)
            }
            ClientMessage::DomainRemove { name: domain } => {
                self.negotiated(TunnelCaps::NAMES, name)?;
                self.on_domain_remove(domain)
            }
        }
    }

    // ---- client ----

    fn hear_server<'a>(&mut self, now: Instant, frame: Frame<'a>) -> Heard<'a> {
        if let Side::Client { acks, .. } = &mut self.side
            && acks.count()
        {
            self.say_base_client(&BaseClientMessage::Ack);
        }
        if frame.sub_list != 0 {
            return Err(Violation::SubMessages { kind: frame.kind });
        }
        if let Some(message) = ServerMessage::parse(frame.kind, frame.body)? {
            return self.tunnel_from_server(now, message);
        }
        match BaseServerMessage::parse(frame.kind, frame.body) {
            Ok(Some(message)) => self.base_from_server(frame.kind, message),
            Ok(None) => {
                // As every Spice client does. A server of another version may know more messages.
                tracing::debug!(kind = frame.kind, "unknown message ignored");
                Ok(None)
            }
            // Text for people, with severities that we may not know.
            Err(error) if BaseServerMessage::name_of(frame.kind) == Some("notify") => {
                tracing::debug!(%error, "notice ignored");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn base_from_server<'a>(&mut self, kind: u16, message: BaseServerMessage<'a>) -> Heard<'a> {
        match message {
            BaseServerMessage::Ping { id, timestamp, padding: _ } => {
                self.answer(Ping { id, timestamp });
                Ok(None)
            }
            BaseServerMessage::SetAck { generation, window } => {
                if let Side::Client { acks, .. } = &mut self.side {
                    acks.on_set_ack(window);
                }
                self.say_base_client(&BaseClientMessage::AckSync { generation });
                Ok(None)
            }
            BaseServerMessage::Migrate { flags } => {
                // The guest's connections go on elsewhere and are lost to us. The mark lets the old server finish.
                if flags.contains(MigrateFlags::NEED_FLUSH) {
                    self.say_base_client(&BaseClientMessage::MigrateFlushMark);
                }
                self.end();
                Ok(Some(Event::Migrate))
            }
            BaseServerMessage::Disconnecting(Disconnecting { reason, .. }) => {
                Ok(Some(Event::Disconnecting { reason }))
            }
            BaseServerMessage::Notify(notify) => {
                let text = String::from_utf8_lossy(notify.message);
                tracing::debug!(severity = ?notify.severity, text = text.escape_debug().to_string(), "notice from the server");
                Ok(None)
            }
            // No message of this channel depends on another channel, so there is nothing to wait for.
            BaseServerMessage::WaitForChannels { .. } => Ok(None),
            // A leftover of a migration, which has already ended the channel.
            BaseServerMessage::MigrateData { .. } => Ok(None),
            BaseServerMessage::List { .. } => Err(Violation::SubMessages { kind }),
        }
    }

    fn tunnel_from_server<'a>(&mut self, now: Instant, message: ServerMessage<'a>) -> Heard<'a> {
        let name = message.name();
        match (self.phase, message) {
            // Before INIT too: the client may have asked already. Where it did not, it is without effect.
            (Phase::AwaitingInit | Phase::Ready { .. }, ServerMessage::ProbeAck { id }) => {
                self.on_answer(now, id, None);
                Ok(None)
            }
            (Phase::AwaitingInit, ServerMessage::Init { max_sockets, max_data }) => {
                if !(1..=MAX_DATA_LIMIT).contains(&max_data) {
                    return Err(Violation::InitData { got: max_data, limit: MAX_DATA_LIMIT });
                }
                self.phase = Phase::Ready { max_sockets, max_data };
                Ok(Some(Event::Ready { max_sockets, max_data }))
            }
            (Phase::AwaitingInit, _) => Err(Violation::BeforeInit { message: name }),
            (Phase::Ready { .. }, ServerMessage::Init { .. }) => Err(Violation::InitTwice),
            (Phase::Ready { .. }, ServerMessage::ServiceIpMap { service, address }) => {
                self.on_map(service, address)
            }
            (Phase::Ready { .. }, ServerMessage::SocketOpen { socket, service, tokens }) => {
                self.on_open(name, socket, service, tokens)
            }
            (Phase::Ready { .. }, ServerMessage::SocketData { socket, payload }) => {
                self.on_data(now, socket, name, payload)
            }
            (Phase::Ready { .. }, ServerMessage::SocketToken { socket, tokens }) => {
                self.on_token(socket, name, tokens)
            }
            (Phase::Ready { .. }, ServerMessage::SocketFin { socket }) => {
                self.on_step(socket, name, Socket::on_fin)
            }
            (Phase::Ready { .. }, ServerMessage::SocketClose { socket }) => {
                self.on_step(socket, name, Socket::on_close)
            }
            (Phase::Ready { .. }, ServerMessage::SocketClosedAck { socket }) => {
                self.on_closed_ack(socket, name)
            }
            (Phase::Ready { .. }, ServerMessage::NameQuery { query, name: host }) => {
                self.negotiated(TunnelCaps::NAMES, name)?;
                self.on_name_query(query, host)
            }
            (Phase::Ended, _) => Ok(None),
        }
    }

    fn on_map<'a>(&mut self, service: ServiceId, address: IpInfo) -> Heard<'a> {
        let Side::Client { next_service, .. } = self.side else { return Ok(None) };
        if service.0 >= next_service {
            return Err(Violation::NeverAnnounced { service });
        }
        match address {
            // Removed while the address was on its way.
            _ if !self.directory.contains(service) => Ok(None),
            IpInfo::V4(v4) => Ok(Some(Event::ServiceMapped { service, address: IpAddr::V4(v4) })),
            IpInfo::Invalid => {
                tracing::debug!(service = service.0, "the server has no address for the service");
                Ok(None)
            }
        }
    }

    fn on_open<'a>(
        &mut self,
        name: &'static str,
        socket: SocketId,
        service: ServiceId,
        tokens: u32,
    ) -> Heard<'a> {
        self.check_range(name, socket)?;
        let fresh = Socket::opening(tokens, self.terms.policy.window);
        if self.table.get(socket).is_some() {
            return Err(Violation::SocketInUse { socket });
        }
        // An unknown service may have been removed while the OPEN was on its way. The number of ids is the server's to
        // choose, what we spend on them is not.
        if !self.directory.contains(service) || socket.0 >= self.terms.config.max_sockets {
            self.say_client(ClientMessage::SocketOpenNack { socket });
            return Ok(None);
        }
        self.table.insert(socket, fresh);
        Ok(Some(Event::Open { socket, service }))
    }

    // ---- both ----

    fn on_answer(&mut self, now: Instant, id: u32, timestamp: Option<u64>) {
        if let Some(took) = self.liveness.on_answer(now, id, timestamp) {
            self.delay.on_answer(now, took);
        }
    }

    fn on_data<'a>(
        &mut self,
        now: Instant,
        id: SocketId,
        name: &'static str,
        payload: &'a [u8],
    ) -> Heard<'a> {
        self.check_range(name, id)?;
        let role = self.role();
        let agreed = self.agreed_data();
        let waiting = self.backlog.bytes;
        let budget = self.terms.config.memory_budget.max(agreed);
        let Some(socket) = self.table.get_mut(id) else {
            return Err(Violation::NoSuchSocket { message: name, socket: id });
        };
        match socket.on_data(role) {
            Ok(Arrival::Dropped) => return Ok(None),
            Ok(Arrival::Deliver) => {}
            Err(Illegal { state }) => {
                return Ok(self.violated(id, SocketViolation::Unexpected { message: name, state }));
            }
        }
        if payload.len() > agreed {
            return Ok(self.violated(id, SocketViolation::TooLong { length: payload.len(), limit: agreed }));
        }
        let window = socket.window_mut();
        if payload.is_empty() {
            // Legal and useless: it costs a token, which goes back as if it had been delivered.
            return Ok(match window.absorb() {
                Ok(()) => {
                    self.return_credit(id);
                    None
                }
                Err(Overrun) => self.violated(id, SocketViolation::NoCredit),
            });
        }
        if window.arrive(payload.len()).is_err() {
            return Ok(self.violated(id, SocketViolation::NoCredit));
        }
        self.backlog.bytes = waiting.saturating_add(payload.len());
        if self.backlog.bytes > budget.saturating_mul(2) {
            return Ok(self.abort(id, ResetCause::Memory { waiting }));
        }
        self.consider_growth(now, id, payload.len());
        Ok(Some(Event::Data { socket: id, payload }))
    }

    fn on_token<'a>(&mut self, id: SocketId, name: &'static str, tokens: u32) -> Heard<'a> {
        self.check_range(name, id)?;
        let role = self.role();
        let Some(socket) = self.table.get_mut(id) else {
            return Err(Violation::NoSuchSocket { message: name, socket: id });
        };
        Ok(match socket.on_token(role, tokens) {
            Ok(Ok(true)) => Some(Event::Writable { socket: id }),
            Ok(Ok(false)) => None,
            Ok(Err(overflow)) => self.violated(
                id,
                SocketViolation::CreditOverflow { had: overflow.had, granted: overflow.granted },
            ),
            Err(Illegal { state }) => self.violated(id, SocketViolation::Unexpected { message: name, state }),
        })
    }

    fn on_closed_ack<'a>(&mut self, id: SocketId, name: &'static str) -> Heard<'a> {
        self.check_range(name, id)?;
        if self.table.get(id).is_none() {
            // Tolerated by wire-reference 6.11.
            return Ok(None);
        }
        self.on_step(id, name, Socket::on_closed_ack)
    }

    /// A message that is one event of one socket.
    fn on_step<'a>(
        &mut self,
        id: SocketId,
        name: &'static str,
        event: impl FnOnce(&mut Socket) -> Result<Step, Illegal>,
    ) -> Heard<'a> {
        self.check_range(name, id)?;
        match self.drive(id, event) {
            Some(Ok(event)) => Ok(event),
            Some(Err(Illegal { state })) => {
                Ok(self.violated(id, SocketViolation::Unexpected { message: name, state }))
            }
            None => Err(Violation::NoSuchSocket { message: name, socket: id }),
        }
    }

    fn negotiated(&self, cap: TunnelCaps, message: &'static str) -> Result<(), Violation> {
        if self.terms.has(cap) { Ok(()) } else { Err(Violation::NotNegotiated { message }) }
    }

    fn check_range(&self, message: &'static str, socket: SocketId) -> Result<(), Violation> {
        match self.phase {
            Phase::Ready { max_sockets, .. } if socket.0 >= max_sockets => {
                Err(Violation::SocketOutOfRange { message, socket, limit: max_sockets })
            }
            Phase::Ready { .. } | Phase::AwaitingInit | Phase::Ended => Ok(()),
        }
    }

    /// What INIT said about DATA, which is the limit for what we receive.
    pub(crate) fn agreed_data(&self) -> usize {
        match self.phase {
            Phase::Ready { max_data, .. } => to_usize(max_data),
            Phase::AwaitingInit | Phase::Ended => 0,
        }
    }

    fn violated(&mut self, id: SocketId, violation: SocketViolation) -> Option<Event<'static>> {
        tracing::debug!(role = ?self.role(), socket = id.0, %violation, "socket ended for a fault of the peer");
        self.abort(id, ResetCause::Violation(violation))
    }

    fn abort(&mut self, id: SocketId, cause: ResetCause) -> Option<Event<'static>> {
        let role = self.role();
        self.drive(id, |socket| Ok(socket.abort(role, cause))).and_then(Result::ok).flatten()
    }
}
