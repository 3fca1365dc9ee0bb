//! What the tunnel's capture shows, message by message, and the session of today's server that it is played to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use spice_proto::base::BaseClientMessage;
use spice_proto::frame::{Frame, HeaderForm};
use spice_proto::link::{ChannelType, TunnelCaps};
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, IpInfo, NameAnswer, QueryId, ServerMessage, ServiceId, SocketId};
use tunnel_channel::{Channel, Config, Role};

use super::guest::Guest;
use super::questions::Questions;
use super::socket::{Say, Socket};
use super::stage::Stage;
use crate::capture::dissect::{Body, End, Item, Message, Terms, What};
use crate::capture::reassembly::StreamId;
use crate::replay::report::{Difference, Part, Place, Subject};

/// Why a connection cannot be compared.
pub(super) const MISSED: &str = "messages of the tunnel are missing in the capture while it was open";

/// Services of one channel that are followed.
const MAX_SERVICES: usize = 4096;

/// Captured sockets whose connection is looked for.
const MAX_UNPAIRED: usize = 1024;

/// Sockets of one channel that are followed at a time. Ids are 16 bits, and one that is over for the capture may not be so
/// for today's server.
const MAX_SOCKETS: usize = 1 << 17;

/// A captured tunnel channel.
#[derive(Debug)]
pub(super) struct Tunnel {
    stream: StreamId,
    terms: Terms,
    /// Serial of the last message to today's server.
    serial: u64,
    services: BTreeMap<ServiceId, Service>,
    questions: Questions,
    /// Captured sockets, by number.
    pub(super) sockets: BTreeMap<u64, Socket>,
    opened: u64,
    by_id: BTreeMap<SocketId, u64>,
    /// Today's ids of sockets that have a captured one.
    pub(super) by_today: BTreeMap<SocketId, u64>,
    /// Today's sockets of connections for which the captured server has not asked (yet).
    alone: BTreeSet<SocketId>,
    /// Captured sockets whose connection the card's capture has not shown (yet).
    unpaired: VecDeque<u64>,
    /// Today's channel lives.
    attached: bool,
    /// Messages are missing, or the channel is not understood: nothing more can be concluded.
    incomplete: bool,
}

#[derive(Debug, Default)]
struct Service {
    port: u16,
    captured: Option<Ipv4Addr>,
    today: Option<Ipv4Addr>,
    removed: bool,
}

impl Tunnel {
    pub(super) fn header(&self) -> HeaderForm {
        self.terms.header
    }

    /// Sockets whose client has something to say that waits.
    pub(super) fn waiting(&self) -> Vec<u64> {
        self.sockets.values().filter(|socket| socket.waits()).map(|socket| socket.number).collect()
    }

    /// Type and body of a message of the client.
    pub(super) fn write(&self, socket: SocketId, say: &Say) -> (u16, Vec<u8>) {
        let message = match say {
            Say::OpenAck(tokens) => ClientMessage::SocketOpenAck { socket, tokens: *tokens },
            Say::OpenNack => ClientMessage::SocketOpenNack { socket },
            Say::Data(payload) => ClientMessage::SocketData { socket, payload },
            Say::Fin => ClientMessage::SocketFin { socket },
            Say::Closed => ClientMessage::SocketClosed { socket },
            Say::Reset => ClientMessage::SocketReset { socket },
            Say::Token(tokens) => ClientMessage::SocketToken { socket, tokens: *tokens },
            Say::ClosedAck => ClientMessage::SocketClosedAck { socket },
        };
        let mut body = Vec::new();
        message.write_body(self.terms.layout, &mut body);
        (message.kind(), body)
    }

    pub(super) fn frame<'b>(&mut self, kind: u16, body: &'b [u8]) -> Frame<'b> {
        self.serial += 1;
        let serial = match self.terms.header {
            HeaderForm::Full => Some(self.serial),
            HeaderForm::Mini => None,
        };
        Frame { serial, kind, sub_list: 0, body }
    }

    fn by_id(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(self.by_id.get(&id)?)
    }

    fn by_today(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(self.by_today.get(&id)?)
    }

    fn destination(&self, service: ServiceId) -> Option<SocketAddrV4> {
        let service = self.services.get(&service)?;
        Some(SocketAddrV4::new(service.captured?, service.port))
    }
}

impl Stage<'_> {
    /// Something that a Spice connection of the capture says.
    pub(super) fn item(&mut self, item: &Item<'_>) {
        let is_tunnel = item.channel.is_some_and(|channel| channel.channel_type == ChannelType::TUNNEL.0);
        if !is_tunnel {
            return;
        }
        self.advance_to(item.time);
        match &item.what {
            What::Linked(terms) => self.begin_tunnel(item.stream, terms),
            _ if !self.is_current(item.stream) => {}
            What::Message(message) => self.message(item, message),
            What::Malformed { error, .. } => {
                self.miss(&format!("a message of the tunnel cannot be understood: {error}"));
            }
            What::Hole(_) => self.miss("messages of the tunnel are missing in the capture"),
            What::Ended { how: End::Closed | End::Reset(_) } => {
                self.settle();
                self.end_tunnel(false);
            }
            What::Began { .. }
            | What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Ended { how: End::CaptureOver } => {}
        }
        self.settle();
    }

    fn message(&mut self, item: &Item<'_>, message: &Message<'_>) {
        match &message.body {
            Body::TunnelServer(said) => self.server_said(item.time, said),
            Body::TunnelClient(said) => self.client_said(message, said),
            Body::BaseClient(BaseClientMessage::Disconnecting(_)) => {
                self.hear_client(message.head.kind, message.bytes);
            }
            Body::Incomplete => self.miss("a message of the tunnel is not whole in the capture"),
            // One that the tunnel does not have: what today's server thinks of it shows.
            Body::Opaque if item.from == Some(Sender::Client) => {
                self.hear_client(message.head.kind, message.bytes);
            }
            Body::Opaque => {}
            // PONGs and acknowledgements answer what the captured server asked.
            Body::BaseClient(_) | Body::BaseServer(_) | Body::MainServer(_) | Body::MainClient(_) => {}
        }
    }

    fn is_current(&self, stream: StreamId) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.stream == stream)
    }

    fn begin_tunnel(&mut self, stream: StreamId, terms: &Terms) {
        self.end_tunnel(false);
        self.tunnel = Some(Tunnel {
            stream,
            terms: terms.clone(),
            serial: 0,
            services: BTreeMap::new(),
            questions: Questions::default(),
            sockets: BTreeMap::new(),
            opened: 0,
            by_id: BTreeMap::new(),
            by_today: BTreeMap::new(),
            alone: BTreeSet::new(),
            unpaired: VecDeque::new(),
            attached: false,
            incomplete: false,
        });
        let compared = self.report.compared(Part::Netstack);
        compared.channels = compared.channels.saturating_add(1);
    }

    /// The captured server's first message: today's server begins with the same numbers.
    fn attach(&mut self, max_sockets: u16, max_data: u32) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if std::mem::replace(&mut tunnel.attached, true) {
            return;
        }
        let config = Config {
            max_sockets,
            max_data,
            window: self.survey.window().unwrap_or(Config::default().window).max(1),
            max_window: 0,
            ..Config::default()
        };
        let Terms { header, layout, ref channel_caps } = tunnel.terms;
        let caps = TunnelCaps::from_words(channel_caps) & TunnelCaps::OURS;
        let channel = Channel::new(Role::Server, header, layout, caps, config, self.now);
        self.bridge.attach(self.now, channel);
    }

    // ---- the captured server ----

    fn server_said(&mut self, time: Duration, message: &ServerMessage<'_>) {
        if let ServerMessage::Init { max_sockets, max_data } = *message {
            self.attach(max_sockets, max_data);
            return;
        }
        let Some(tunnel) = &mut self.tunnel else { return };
        let id = match *message {
            ServerMessage::Init { .. }
            | ServerMessage::SocketToken { .. }
            | ServerMessage::ProbeAck { .. } => return,
            ServerMessage::NameQuery { query, name } => return tunnel.questions.captured(query, name),
            ServerMessage::ServiceIpMap { service, address } => {
                if let (Some(service), IpInfo::V4(address)) = (tunnel.services.get_mut(&service), address) {
                    service.captured = Some(address);
                }
                return;
            }
            ServerMessage::SocketOpen { socket, service, .. } => {
                self.captured_open(time, socket, service);
                return;
            }
            ServerMessage::SocketData { socket, .. }
            | ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketClosedAck { socket } => socket,
        };
        let Some(socket) = tunnel.by_id(id) else { return };
        match *message {
            ServerMessage::SocketData { payload, .. } => socket.captured_data(payload),
            ServerMessage::SocketFin { .. } => socket.captured_fin(),
            ServerMessage::SocketClose { .. } => socket.captured_close(),
            ServerMessage::SocketClosedAck { .. } => socket.captured_closed_ack(),
            ServerMessage::Init { .. }
            | ServerMessage::ServiceIpMap { .. }
            | ServerMessage::SocketOpen { .. }
            | ServerMessage::SocketToken { .. }
            | ServerMessage::NameQuery { .. }
            | ServerMessage::ProbeAck { .. } => {}
        }
        self.captured_touched(id);
    }

    fn captured_open(&mut self, time: Duration, id: SocketId, service: ServiceId) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if let Some(number) = tunnel.by_id.get(&id).copied() {
            if let Some(socket) = tunnel.sockets.get_mut(&number) {
                socket.give_up("its id is opened again in the capture, which does not show its end");
            }
            self.conclude_socket(number, true);
        }
        let Some(tunnel) = &mut self.tunnel else { return };
        if tunnel.sockets.len() >= MAX_SOCKETS {
            tunnel.incomplete = true;
            return;
        }
        let number = tunnel.opened;
        tunnel.opened += 1;
        let mut socket = Socket::new(number, (id, service), time, &self.budget);
        if self.blind_until.is_some() {
            socket.give_up(MISSED);
        }
        tunnel.sockets.insert(number, socket);
        tunnel.by_id.insert(id, number);
        self.pair_socket(number);
    }

    /// Finds the connection of the guest for which the captured server asked the client. SOCKET_OPEN names only the service,
    /// so it is the oldest that wanted to go there and for which nobody was asked yet.
    fn pair_socket(&mut self, number: u64) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let Some(socket) = tunnel.sockets.get(&number) else { return };
        let destination = tunnel.destination(socket.service);
        let found = self
            .unasked
            .iter()
            .position(|waiting| self.guests.get(waiting).is_some_and(|guest| Some(guest.to) == destination));
        match found.and_then(|at| self.unasked.remove(at)) {
            Some(waiting) => self.pair(number, waiting),
            // The card's capture is a little behind, or does not have it.
            None => {
                tunnel.unpaired.push_back(number);
                if tunnel.unpaired.len() > MAX_UNPAIRED {
                    tunnel.unpaired.pop_front();
                }
            }
        }
    }

    /// A new connection of the guest: perhaps the captured server was seen to ask the client already.
    pub(super) fn pair_guest(&mut self, waiting: u64) {
        let destination = self.guests.get(&waiting).map(|guest| guest.to);
        let found = self.tunnel.as_mut().and_then(|tunnel| {
            let at = tunnel.unpaired.iter().position(|number| {
                let socket = tunnel.sockets.get(number);
                destination.is_some()
                    && socket.and_then(|socket| tunnel.destination(socket.service)) == destination
            })?;
            tunnel.unpaired.remove(at)
        });
        match found {
            Some(number) => self.pair(number, waiting),
            None => self.unasked.push_back(waiting),
        }
    }

    fn pair(&mut self, number: u64, waiting: u64) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let (Some(socket), Some(guest)) = (tunnel.sockets.get_mut(&number), self.guests.get_mut(&waiting))
        else {
            return;
        };
        guest.socket = Some(number);
        guest.place = place_of(tunnel.stream, socket);
        socket.guest = Some(waiting);
        socket.name = guest.name();
        if let Some((id, tokens)) = guest.opened_today {
            socket.opened_today(id, tokens);
            tunnel.alone.remove(&id);
            tunnel.by_today.insert(id, number);
        }
        self.ready_sockets.insert(number);
        self.ready_guests.insert(waiting);
    }

    /// The captured network refused a connect, and no SOCKET_OPEN came of it: the client was not asked.
    pub(super) fn refused_unasked(&mut self, guest: u64) {
        self.unasked.retain(|waiting| *waiting != guest);
        let Some(tunnel) = &mut self.tunnel else { return };
        let opened = self.guests.get(&guest).and_then(|guest| guest.opened_today);
        if let Some((id, _)) = opened
            && tunnel.alone.remove(&id)
        {
            self.say(id, &Say::OpenNack);
        }
        self.ready_guests.insert(guest);
    }

    // ---- the captured client ----

    fn client_said(&mut self, message: &Message<'_>, said: &ClientMessage<'_>) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let (id, say) = match *said {
            ClientMessage::ServiceAdd(add) => {
                if tunnel.services.len() < MAX_SERVICES {
                    let service = Service { port: add.port, ..Service::default() };
                    tunnel.services.entry(add.service).or_insert(service);
                }
                return self.hear_client(message.head.kind, message.bytes);
            }
            ClientMessage::ServiceRemove { service } => {
                if let Some(service) = tunnel.services.get_mut(&service) {
                    service.removed = true;
                }
                return self.hear_client(message.head.kind, message.bytes);
            }
            ClientMessage::NameAnswer { query, answer } => {
                for query in tunnel.questions.answered(query, answer) {
                    self.answer_name(query, answer);
                }
                return;
            }
            ClientMessage::Probe { .. }
            | ClientMessage::ServiceInfo { .. }
            | ClientMessage::DomainAdd { .. }
            | ClientMessage::DomainRemove { .. } => {
                return self.hear_client(message.head.kind, message.bytes);
            }
            ClientMessage::SocketOpenAck { socket, tokens } => (socket, Say::OpenAck(tokens)),
            ClientMessage::SocketOpenNack { socket } => (socket, Say::OpenNack),
            ClientMessage::SocketFin { socket } => (socket, Say::Fin),
            ClientMessage::SocketClosed { socket } => (socket, Say::Closed),
            ClientMessage::SocketClosedAck { socket } => (socket, Say::ClosedAck),
            ClientMessage::SocketData { socket, payload } => (socket, Say::Data(payload.into())),
            ClientMessage::SocketToken { socket, tokens } => (socket, Say::Token(tokens)),
            ClientMessage::SocketReset { socket } => (socket, Say::Reset),
        };
        if let Some(socket) = tunnel.by_id(id) {
            socket.client_says(say);
        }
        self.captured_touched(id);
    }

    /// Something was captured of a socket: it may go on, or be over.
    fn captured_touched(&mut self, id: SocketId) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let Some(number) = tunnel.by_id.get(&id).copied() else { return };
        if tunnel.sockets.get(&number).is_none_or(Socket::is_freed) {
            tunnel.by_id.remove(&id);
        }
        self.ready_sockets.insert(number);
    }

    /// Something of the tunnel is not in the capture.
    pub(super) fn miss(&mut self, why: &str) {
        let Some(tunnel) = &mut self.tunnel else { return };
        for socket in tunnel.sockets.values_mut() {
            socket.give_up(MISSED);
        }
        let guests: Vec<u64> = tunnel.sockets.values().filter_map(|socket| socket.guest).collect();
        let stream = tunnel.stream;
        if !std::mem::replace(&mut tunnel.incomplete, true) {
            let place =
                Place { time: Some(self.since_start(self.time)), stream: Some(stream.0), ..Place::default() };
            self.not_comparable(place, why);
        }
        for number in guests.iter().chain(&self.unasked.clone()) {
            if let Some(guest) = self.guests.get_mut(number) {
                guest.give_up(MISSED);
            }
        }
    }

    // ---- today's server ----

    pub(super) fn server_says_today(&mut self, message: &ServerMessage<'_>) {
        let connecting = self.connecting();
        let Some(tunnel) = &mut self.tunnel else { return };
        let id = match *message {
            ServerMessage::Init { .. } | ServerMessage::ProbeAck { .. } => return,
            ServerMessage::NameQuery { query, name } => {
                if let Some(answer) = tunnel.questions.today(query, name) {
                    self.answer_name(query, answer);
                }
                return;
            }
            ServerMessage::ServiceIpMap { service, address } => {
                if let (Some(service), IpInfo::V4(address)) = (tunnel.services.get_mut(&service), address) {
                    service.today = Some(address);
                }
                return;
            }
            ServerMessage::SocketOpen { socket: id, tokens, .. } => {
                let Some(guest) = connecting.and_then(|number| self.guests.get_mut(&number)) else { return };
                guest.opened_today = Some((id, tokens));
                match guest.socket.and_then(|socket| tunnel.sockets.get_mut(&socket)) {
                    Some(socket) => {
                        socket.opened_today(id, tokens);
                        tunnel.by_today.insert(id, socket.number);
                        self.ready_sockets.insert(socket.number);
                    }
                    None => {
                        tunnel.alone.insert(id);
                    }
                }
                return;
            }
            ServerMessage::SocketData { socket, .. }
            | ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketClosedAck { socket }
            | ServerMessage::SocketToken { socket, .. } => socket,
        };
        let number = tunnel.by_today.get(&id).copied();
        if let Some(socket) = tunnel.by_today(id) {
            match *message {
                ServerMessage::SocketData { payload, .. } => socket.today_data(payload),
                ServerMessage::SocketFin { .. } => socket.today_fin(),
                ServerMessage::SocketClose { .. } => socket.today_close(),
                ServerMessage::SocketClosedAck { .. } => socket.today_closed_ack(),
                ServerMessage::SocketToken { tokens, .. } => socket.today_token(tokens),
                ServerMessage::Init { .. }
                | ServerMessage::ServiceIpMap { .. }
                | ServerMessage::SocketOpen { .. }
                | ServerMessage::NameQuery { .. }
                | ServerMessage::ProbeAck { .. } => {}
            }
        }
        self.ready_sockets.extend(number);
        match *message {
            ServerMessage::SocketClose { .. } => {
                tunnel.by_today.remove(&id);
                tunnel.alone.remove(&id);
                // A client answers it in any case.
                self.say(id, &Say::ClosedAck);
            }
            ServerMessage::SocketClosedAck { .. } => {
                tunnel.by_today.remove(&id);
                tunnel.alone.remove(&id);
            }
            ServerMessage::Init { .. }
            | ServerMessage::ServiceIpMap { .. }
            | ServerMessage::SocketOpen { .. }
            | ServerMessage::SocketData { .. }
            | ServerMessage::SocketFin { .. }
            | ServerMessage::SocketToken { .. }
            | ServerMessage::NameQuery { .. }
            | ServerMessage::ProbeAck { .. } => {}
        }
    }

    /// Today's server hears where a name is that it asked for.
    fn answer_name(&mut self, query: QueryId, answer: NameAnswer) {
        let Some(tunnel) = &self.tunnel else { return };
        let message = ClientMessage::NameAnswer { query, answer };
        let mut body = Vec::new();
        message.write_body(tunnel.terms.layout, &mut body);
        self.hear_client(message.kind(), &body);
    }

    /// The client answers a PING at once.
    pub(super) fn pong(&mut self, id: u32, timestamp: u64) {
        let pong = BaseClientMessage::Pong { id, timestamp };
        let mut body = Vec::new();
        pong.write_body(&mut body);
        self.hear_client(pong.kind(), &body);
    }

    // ---- the end ----

    /// Today's server has ended the channel, for a fault that it sees in what the client said.
    pub(super) fn tunnel_broke(&mut self, violation: &str) {
        let Some(tunnel) = &self.tunnel else { return };
        let place = Place {
            time: Some(self.since_start(self.time)),
            stream: Some(tunnel.stream.0),
            ..Place::default()
        };
        self.report.add(Difference::new(
            Part::Netstack,
            Subject::Channel,
            place,
            "the channel went on",
            format!("the server ends it: {violation}"),
        ));
        self.miss("today's server ended the channel, so that the rest cannot be compared");
        self.end_tunnel(true);
    }

    /// The channel is over. `cut`: not because the capture shows its end.
    pub(super) fn end_tunnel(&mut self, cut: bool) {
        if self.tunnel.is_none() {
            return;
        }
        for number in self.sockets_left() {
            self.conclude_socket(number, cut || self.tunnel_is_incomplete());
        }
        let Some(tunnel) = self.tunnel.take() else { return };
        if tunnel.attached && !cut {
            self.bridge.detach(self.now);
        }
        self.judge_services(&tunnel, cut);
    }

    fn sockets_left(&self) -> Vec<u64> {
        self.tunnel.iter().flat_map(|tunnel| tunnel.sockets.keys().copied()).collect()
    }

    /// Whether messages of the tunnel are missing that could concern any connection.
    pub(super) fn tunnel_is_incomplete(&self) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.incomplete)
    }

    fn judge_services(&mut self, tunnel: &Tunnel, cut: bool) {
        let stream = Some(tunnel.stream.0);
        if !tunnel.attached {
            let place = Place { stream, ..Place::default() };
            self.not_comparable(place, "the capture does not show the beginning of the tunnel (INIT)");
            return;
        }
        for (id, service) in &tunnel.services {
            let place = Place { stream, service: Some(id.0), ..Place::default() };
            let text = |address: Option<Ipv4Addr>| match address {
                Some(address) => format!("the service is at {}", SocketAddrV4::new(address, service.port)),
                None => "the service has no address".to_owned(),
            };
            let unknown = service.captured.is_none() && (cut || tunnel.incomplete || service.removed);
            if service.captured == service.today {
                let compared = self.report.compared(Part::Netstack);
                compared.services = compared.services.saturating_add(1);
            } else if unknown {
                self.not_comparable(place, "the capture does not show the address of the service");
            } else {
                self.report.add(Difference::new(
                    Part::Netstack,
                    Subject::Service,
                    place,
                    text(service.captured),
                    text(service.today),
                ));
            }
        }
    }

    pub(super) fn conclude_socket_if_over(&mut self, number: u64) {
        let over =
            self.tunnel.as_ref().and_then(|tunnel| tunnel.sockets.get(&number)).is_some_and(Socket::is_over);
        if over {
            self.conclude_socket(number, false);
        }
    }

    fn conclude_socket(&mut self, number: u64, cut: bool) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let Some(mut socket) = tunnel.sockets.remove(&number) else { return };
        if tunnel.by_id.get(&socket.id) == Some(&number) {
            tunnel.by_id.remove(&socket.id);
        }
        if let Some(id) = socket.id_today
            && tunnel.by_today.get(&id) == Some(&number)
        {
            tunnel.by_today.remove(&id);
        }
        tunnel.unpaired.retain(|waiting| *waiting != number);
        if socket.guest.is_none()
            && let Some(destination) = tunnel.destination(socket.service)
        {
            socket.name = format!("a connection to {destination}");
        }
        let place = Place {
            time: Some(self.since_start(socket.opened)),
            ..self.tunnel.as_ref().map_or(Place::default(), |tunnel| place_of(tunnel.stream, &socket))
        };
        let guest = socket.guest.and_then(|guest| self.guests.get(&guest));
        let mut found = Vec::new();
        if !guest.is_some_and(Guest::is_incomplete) {
            socket.judge(cut, &mut found);
        }
        for finding in found {
            self.report.add(finding.difference(place, &socket.name));
        }
        let compared = self.report.compared(Part::Netstack);
        compared.bytes_up = compared.bytes_up.saturating_add(socket.compared());
    }
}

/// Where a socket is found in the tunnel's capture.
fn place_of(stream: StreamId, socket: &Socket) -> Place {
    Place {
        time: None,
        stream: Some(stream.0),
        connection: Some(socket.number),
        socket: Some(socket.id.0),
        service: Some(socket.service.0),
    }
}
