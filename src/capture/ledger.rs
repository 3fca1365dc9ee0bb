//! What became of the services and sockets of a tunnel channel, by watching the messages of both ends.
//!
//! A [`Ledger`] belongs to one tunnel connection. It judges nothing by itself: it keeps book of who was granted what and
//! who said what, and remarks where a message does not go with that. The dump makes its statistics of it; the replay
//! compares two of them.
//!
//! # Theory of operation
//!
//! The watcher stands beside the wire, so it sees a message before the one who gets it does. What an end needed to have
//! heard before it speaks (a grant, an OPEN, a CLOSE to be acknowledged) was therefore seen here before, and where it
//! was not, that is remarked. The opposite cannot be concluded: a message behind the other end's last word may have been
//! sent before that was heard, so it is fine until the last acknowledgement, whoever says it.
//!
//! A capture may begin in the middle and have holes. From there on a socket of which nothing is known may be open, and
//! its first message begins a connection that is marked as incomplete. Nothing is remarked about an incomplete
//! connection, except for what is wrong whatever went before. A later file of a recording begins with a link stage, and
//! that the tunnel is older shows only in that INIT is not the first message about it.
//!
//! A book is as large as the peers make it, and the peers of a capture are nobody's friends. So all ledgers of a capture
//! share a [`Budget`]; what does not fit is not booked, which is remarked once for each connection or service.

mod budget;
mod connection;
mod free;
mod questions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spice_proto::frame::{Frame, sub_messages};
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, GroupId, IpInfo, ServerMessage, ServiceAdd, ServiceId, SocketId};

pub use budget::Budget;
use budget::{MAX_CONNECTIONS, MAX_SERVICES};
pub use connection::{Answer, Connection, Direction, Ending};
use connection::{Begin, Step};
use free::Free;
use questions::Questions;

use super::dissect::{Body, End, Item, Message, What};

/// Book of one tunnel channel.
#[derive(Debug)]
pub struct Ledger {
    budget: Budget,
    /// INIT: the number of sockets, and the longest payload.
    init: Option<(u16, u32)>,
    /// Whether the next message of the server is its first.
    awaits_init: bool,
    /// Whether every service that was announced is in `services`.
    services_known: bool,
    services: BTreeMap<ServiceId, Service>,
    /// Those of them that were removed, and when.
    removed: BTreeSet<(Duration, ServiceId)>,
    /// Those that live, by socket id.
    open: BTreeMap<SocketId, Connection>,
    /// Those of them that are not incomplete, so that a hole costs no more than there is to mark.
    sound: BTreeSet<SocketId>,
    /// Those that are over, until they are taken.
    over: Vec<Connection>,
    free: Free,
    questions: Questions,
    /// The tunnel began in an earlier file of a recording. Its directions changed files at different moments, so what is
    /// taken for one connection without a SOCKET_OPEN may be the end of one use of its id and the beginning of the next.
    split: bool,
}

/// What the book says about a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noted {
    /// The connection it belongs to, if it belongs to one. SOCKET_DATA's bytes are not kept here; whoever wants them has them.
    pub connection: Option<ConnectionNumber>,
    /// What is wrong with it.
    pub remark: Option<Remark>,
}

/// A message of either end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// The server's.
    Server(ServerMessage<'a>),
    /// The client's.
    Client(ClientMessage<'a>),
}

impl<'a> Said<'a> {
    /// The socket that it is about.
    pub fn socket(&self) -> Option<SocketId> {
        match *self {
            Said::Server(message) => match message {
                ServerMessage::Init { .. }
                | ServerMessage::ServiceIpMap { .. }
                | ServerMessage::ProbeAck { .. }
                | ServerMessage::NameQuery { .. } => None,
                ServerMessage::SocketOpen { socket, .. }
                | ServerMessage::SocketFin { socket }
                | ServerMessage::SocketClose { socket }
                | ServerMessage::SocketData { socket, .. }
                | ServerMessage::SocketClosedAck { socket }
                | ServerMessage::SocketToken { socket, .. } => Some(socket),
            },
            Said::Client(message) => match message {
                ClientMessage::ServiceAdd(_)
                | ClientMessage::ServiceRemove { .. }
                | ClientMessage::Probe { .. }
                | ClientMessage::ServiceInfo { .. }
                | ClientMessage::NameAnswer { .. }
                | ClientMessage::DomainAdd { .. }
                | ClientMessage::DomainRemove { .. } => None,
                ClientMessage::SocketOpenAck { socket, .. }
                | ClientMessage::SocketOpenNack { socket }
                | ClientMessage::SocketFin { socket }
                | ClientMessage::SocketClosed { socket }
                | ClientMessage::SocketClosedAck { socket }
                | ClientMessage::SocketData { socket, .. }
                | ClientMessage::SocketToken { socket, .. }
                | ClientMessage::SocketReset { socket } => Some(socket),
            },
        }
    }

    /// What SOCKET_DATA carries.
    pub fn payload(&self) -> Option<&'a [u8]> {
        match *self {
            Said::Server(ServerMessage::SocketData { payload, .. })
            | Said::Client(ClientMessage::SocketData { payload, .. }) => Some(payload),
            Said::Server(_) | Said::Client(_) => None,
        }
    }
}

/// The tunnel messages in a message: those of its list of sub-messages first, then itself, as they are to be handled. A
/// list that is damaged ends where it is.
pub fn said<'a>(message: &Message<'a>, from: Sender, visit: &mut impl FnMut(Said<'a>)) {
    if from == Sender::Server {
        let frame = Frame {
            serial: message.head.serial,
            kind: message.head.kind,
            sub_list: message.head.sub_list,
            body: message.bytes,
        };
        for frame in sub_messages(&frame).into_iter().flatten().flatten() {
            if let Ok(Some(message)) = ServerMessage::parse(frame.kind, frame.body) {
                visit(Said::Server(message));
            }
        }
    }
    match message.body {
        Body::TunnelServer(message) => visit(Said::Server(message)),
        Body::TunnelClient(message) => visit(Said::Client(message)),
        Body::BaseServer(_)
        | Body::BaseClient(_)
        | Body::MainServer(_)
        | Body::MainClient(_)
        | Body::Opaque
        | Body::Incomplete => {}
    }
}

impl Default for Ledger {
    /// The book of a tunnel that is seen from its start and that is the only one.
    fn default() -> Self {
        Self::new(&Budget::default(), true)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.budget.give_back(self.open.len(), self.services.len());
    }
}

impl Ledger {
    /// An empty book. `from_start` says whether the capture has the tunnel's beginning ([`What::Began`]).
    pub fn new(budget: &Budget, from_start: bool) -> Self {
        Self {
            budget: budget.clone(),
            init: None,
            awaits_init: from_start,
            services_known: from_start,
            services: BTreeMap::new(),
            removed: BTreeSet::new(),
            open: BTreeMap::new(),
            sound: BTreeSet::new(),
            over: Vec::new(),
            free: Free::new(from_start),
            questions: Questions::new(from_start),
            split: false,
        }
    }

    /// Notes whatever an item of this tunnel says: a message with those in its list, a hole, the end. What it says of the
    /// first message that there is something to say about.
    pub fn item(&mut self, item: &Item<'_>) -> Noted {
        match (&item.what, item.from) {
            (What::Message(message), Some(from)) => {
                let mut noted = self.too_long(item.time, message, from).unwrap_or_default();
                said(message, from, &mut |said| {
                    let one = match said {
                        Said::Server(message) => self.server(item.time, &message),
                        Said::Client(message) => self.client(item.time, &message),
                    };
                    noted.connection = noted.connection.or(one.connection);
                    noted.remark = noted.remark.take().or(one.remark);
                });
                noted
            }
            (What::Hole(_), Some(from)) => {
                self.hole(item.time, from);
                Noted::default()
            }
            (What::Ended { how }, _) => {
                self.end(item.time, *how);
                Noted::default()
            }
            (What::Message(_) | What::Hole(_), None)
            | (
                What::Began { .. }
                | What::LinkMess { .. }
                | What::LinkReply { .. }
                | What::AuthMechanism(_)
                | What::Ticket
                | What::Sasl { .. }
                | What::LinkResult(_)
                | What::Linked(_)
                | What::Malformed { .. },
                _,
            ) => Noted::default(),
        }
    }

    /// Notes a message of the server.
    pub fn server(&mut self, time: Duration, message: &ServerMessage<'_>) -> Noted {
        if std::mem::take(&mut self.awaits_init) && !matches!(message, ServerMessage::Init { .. }) {
            self.begun_before();
        }
        self.server_message(time, message)
    }

    /// Notes a message of the client.
    pub fn client(&mut self, time: Duration, message: &ClientMessage<'_>) -> Noted {
        let said = Told { time, from: Sender::Client, name: message.name() };
        if self.awaits_init && Said::Client(*message).socket().is_some() {
            self.begun_before();
        }
        match *message {
            ClientMessage::ServiceAdd(ref add) => self.note_service(time, add),
            ClientMessage::ServiceRemove { service } => self.note_removal(time, service),
            ClientMessage::NameAnswer { query, .. } => self.questions.answer(query),
            ClientMessage::Probe { .. }
            | ClientMessage::ServiceInfo { .. }
            | ClientMessage::DomainAdd { .. }
            | ClientMessage::DomainRemove { .. } => Noted::default(),
            ClientMessage::SocketOpenAck { socket, tokens } => {
                self.renew(time, socket);
                self.note(said, socket, |connection| connection.accepted(time, tokens))
            }
            ClientMessage::SocketOpenNack { socket } => {
                self.renew(time, socket);
                self.note(said, socket, |connection| connection.refused(time))
            }
            ClientMessage::SocketFin { socket } => {
                self.note(said, socket, |connection| connection.fin(time, Sender::Client))
            }
            ClientMessage::SocketClosed { socket } => {
                self.note(said, socket, |connection| connection.closed(time))
            }
            ClientMessage::SocketReset { socket } => {
                self.note(said, socket, |connection| connection.reset(time))
            }
            ClientMessage::SocketClosedAck { socket } => {
                self.note(said, socket, |connection| connection.closed_ack(time, Sender::Client))
            }
            ClientMessage::SocketData { socket, payload } => self.note_data(said, socket, payload.len()),
            ClientMessage::SocketToken { socket, tokens } => {
                self.note(said, socket, |connection| connection.token(time, Sender::Client, tokens))
            }
        }
    }

    /// Notes that messages of one end are missing here: everything that lives is incomplete from now on.
    pub fn hole(&mut self, time: Duration, from: Sender) {
        let _ = time;
        self.lose_count();
        match from {
            Sender::Server => self.awaits_init = false,
            Sender::Client => self.services_known = false,
        }
    }

    /// The tunnel is older than what is seen of it.
    fn begun_before(&mut self) {
        self.split = true;
        self.awaits_init = false;
        self.services_known = false;
        self.lose_count();
    }

    /// Everything that lives is incomplete from now on, and any socket may be open.
    fn lose_count(&mut self) {
        for socket in std::mem::take(&mut self.sound) {
            if let Some(connection) = self.open.get_mut(&socket) {
                connection.lose_count();
            }
        }
        self.free.forget();
        self.questions.lose_count();
    }

    /// Notes that the tunnel, or the capture, is over: so is everything that lives.
    pub fn end(&mut self, time: Duration, how: End) {
        self.sound.clear();
        for (_, mut connection) in std::mem::take(&mut self.open) {
            connection.lose(time, how);
            self.budget.give_back(1, 0);
            self.over.push(connection);
        }
    }

    /// What INIT said, once it came: ids are less than the first; the longest payload of SOCKET_DATA, bytes.
    pub fn init(&self) -> Option<(u16, u32)> {
        self.init
    }

    /// Services that were announced, by their numbers: of the latest where one was used again. Those that were removed are
    /// among them until their place is needed.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// A service by its number.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id)
    }

    /// Connections that live, by socket id.
    pub fn open(&self) -> impl Iterator<Item = &Connection> {
        self.open.values()
    }

    /// The connection that has this socket id now.
    pub fn connection(&self, socket: SocketId) -> Option<&Connection> {
        self.open.get(&socket)
    }

    /// Connections that are over since the last call, in the order of their ends. A long capture has many: take them, or
    /// they are kept.
    pub fn take_over(&mut self) -> Vec<Connection> {
        std::mem::take(&mut self.over)
    }

    /// A SOCKET_DATA that is too long to be kept as a whole is one all the same.
    fn too_long(&mut self, time: Duration, message: &Message<'_>, from: Sender) -> Option<Noted> {
        if message.body != Body::Opaque || message.name != Some(DATA) {
            return None;
        }
        let (socket, _) = message.bytes.split_first_chunk()?;
        let len = usize::try_from(message.head.size).ok()?.checked_sub(socket.len())?;
        let said = Told { time, from, name: DATA };
        Some(self.note_data(said, SocketId(u16::from_le_bytes(*socket)), len))
    }

    fn server_message(&mut self, time: Duration, message: &ServerMessage<'_>) -> Noted {
        let said = Told { time, from: Sender::Server, name: message.name() };
        match *message {
            ServerMessage::Init { max_sockets, max_data } => self.note_init(max_sockets, max_data),
            ServerMessage::ProbeAck { .. } => Noted::default(),
            ServerMessage::NameQuery { query, .. } => self.questions.ask(query),
            ServerMessage::ServiceIpMap { service, address } => self.note_address(time, service, address),
            ServerMessage::SocketOpen { socket, service, tokens } => {
                self.note_open(time, socket, service, tokens)
            }
            ServerMessage::SocketFin { socket } => {
                self.note(said, socket, |connection| connection.fin(time, Sender::Server))
            }
            ServerMessage::SocketClose { socket } => {
                self.note(said, socket, |connection| connection.close(time))
            }
            ServerMessage::SocketData { socket, payload } => self.note_data(said, socket, payload.len()),
            ServerMessage::SocketClosedAck { socket } => {
                self.note(said, socket, |connection| connection.closed_ack(time, Sender::Server))
            }
            ServerMessage::SocketToken { socket, tokens } => {
                self.note(said, socket, |connection| connection.token(time, Sender::Server, tokens))
            }
        }
    }

    fn note_init(&mut self, max_sockets: u16, max_data: u32) -> Noted {
        match self.init {
            None => {
                self.init = Some((max_sockets, max_data));
                Noted::default()
            }
            Some((sockets, data)) => {
                let text = format!(
                    "a second init: {max_sockets} sockets of {max_data} bytes, after {sockets} of {data}"
                );
                Noted::remark(Sender::Server, text)
            }
        }
    }

    fn note_address(&mut self, time: Duration, id: ServiceId, address: IpInfo) -> Noted {
        let address = match address {
            IpInfo::V4(address) => Some(IpAddr::V4(address)),
            IpInfo::Invalid => None,
        };
        match self.services.get_mut(&id) {
            Some(service) => {
                service.address = address;
                service.mapped = Some(time);
                Noted::default()
            }
            None if self.services_known => Noted::remark(
                Sender::Server,
                format!("an address for service {}, which was not announced", id.0),
            ),
            None => Noted::default(),
        }
    }

    fn note_service(&mut self, time: Duration, add: &ServiceAdd<'_>) -> Noted {
        let service = Service {
            id: add.service,
            group: add.group,
            port: add.port,
            name: add.name.to_vec(),
            address: None,
            added: time,
            mapped: None,
            removed: None,
        };
        let id = service.id;
        if let Some(known) = self.services.get_mut(&id) {
            let remark = match known.removed {
                Some(at) => {
                    self.removed.remove(&(at, id));
                    None
                }
                None => Some(Remark {
                    connection: None,
                    from: Sender::Client,
                    text: format!("service {} is announced again, without having been removed", id.0),
                }),
            };
            *known = service;
            return Noted { connection: None, remark };
        }
        if !self.budget.take_service() {
            let Some((_, gone)) = self.removed.pop_first() else {
                self.services_known = false;
                let text = format!(
                    "service {} is one more than the {MAX_SERVICES} that are remembered, and is not booked",
                    id.0
                );
                return Noted::remark(Sender::Client, text);
            };
            self.services.remove(&gone);
        }
        self.services.insert(id, service);
        Noted::default()
    }

    fn note_removal(&mut self, time: Duration, id: ServiceId) -> Noted {
        match self.services.get_mut(&id) {
            Some(service) if service.removed.is_none() => {
                service.removed = Some(time);
                self.removed.insert((time, id));
                Noted::default()
            }
            Some(_) => Noted::remark(Sender::Client, format!("service {} is removed a second time", id.0)),
            None if self.services_known => {
                Noted::remark(Sender::Client, format!("service {} is removed, which was not announced", id.0))
            }
            None => Noted::default(),
        }
    }

    fn note_open(&mut self, time: Duration, socket: SocketId, service: ServiceId, tokens: u32) -> Noted {
        let mut remark = None;
        let known = self.services.get(&service);
        if let Some((max_sockets, _)) = self.init
            && socket.0 >= max_sockets
        {
            remark =
                Some(format!("socket {} is opened, while init allows ids below {max_sockets}", socket.0));
        } else if known.is_none() && self.services_known {
            remark = Some(format!(
                "socket {} is opened to service {}, which was not announced",
                socket.0, service.0
            ));
        }
        let destination = known.and_then(|known| Some(SocketAddr::new(known.address?, known.port)));
        if let Some(old) = self.open.get(&socket) {
            if !old.incomplete {
                remark = Some(format!(
                    "socket {} is opened, which is still in use by connection {}",
                    socket.0, old.number.0
                ));
            }
            self.displace(time, socket);
        }
        let begin = Begin { socket, service: Some(service), destination, tokens: Some(tokens) };
        match self.begin(time, begin) {
            Some(number) => Noted {
                connection: Some(number),
                remark: remark.map(|text| Remark { connection: Some(number), from: Sender::Server, text }),
            },
            None => {
                // What is said about it from now on goes with nothing in the book.
                self.free.forget();
                let text = remark.unwrap_or_else(|| {
                    format!(
                        "socket {} is one more than the {MAX_CONNECTIONS} that are followed at a time, and is \
                         not booked",
                        socket.0
                    )
                });
                Noted::remark(Sender::Server, text)
            }
        }
    }

    fn note_data(&mut self, said: Told, socket: SocketId, len: usize) -> Noted {
        let limit = self.init.map(|(_, max_data)| max_data);
        self.note(said, socket, |connection| connection.data(said.time, said.from, len, limit))
    }

    /// Notes a message about a socket that should be open. `step` books it.
    fn note(&mut self, said: Told, socket: SocketId, step: impl FnOnce(&mut Connection) -> Step) -> Noted {
        if !self.open.contains_key(&socket) {
            if let Some(noted) = self.stray(said, socket) {
                return noted;
            }
            let begin = Begin { socket, service: None, destination: None, tokens: None };
            // No room: nothing can be said about it.
            if self.begin(said.time, begin).is_none() {
                return Noted::default();
            }
        }
        let Some(connection) = self.open.get_mut(&socket) else { return Noted::default() };
        let number = connection.number;
        let Step { remark, freed } = step(connection);
        if freed {
            connection.freed = Some(said.time);
            let (crossed, one_use) = (connection.crossed(), connection.service.is_some() || !self.split);
            self.finish(socket);
            if one_use {
                self.free.add(socket, crossed);
            }
        }
        let remark = remark.map(|text| Remark {
            connection: Some(number),
            from: said.from,
            text: format!("{} on socket {} {text}", said.name, socket.0),
        });
        Noted { connection: Some(number), remark }
    }

    /// What is to be said about a message for a socket that is known not to be open.
    fn stray(&mut self, said: Told, socket: SocketId) -> Option<Noted> {
        if !self.free.has(socket) {
            return None;
        }
        // Where CLOSE and CLOSED crossed, one acknowledgement is enough and two are harmless.
        if said.name == CLOSED_ACK && self.free.crossed(socket) {
            return Some(Noted::default());
        }
        let text = format!("{} for socket {}, which is not open", said.name, socket.0);
        Some(Noted::remark(said.from, text))
    }

    /// An answer to a SOCKET_OPEN that the capture does not have: whatever is known of the id belonged to its last use.
    fn renew(&mut self, time: Duration, socket: SocketId) {
        let stale = self
            .open
            .get(&socket)
            .is_some_and(|connection| connection.incomplete && connection.answer != Answer::None);
        if stale {
            self.displace(time, socket);
            self.free.take(socket);
        }
    }

    /// Ends a connection whose id is used for another.
    fn displace(&mut self, time: Duration, socket: SocketId) {
        if let Some(connection) = self.open.get_mut(&socket) {
            connection.lose(time, End::CaptureOver);
        }
        self.finish(socket);
    }

    /// Begins a connection; `None` if there is no room for it.
    fn begin(&mut self, time: Duration, begin: Begin) -> Option<ConnectionNumber> {
        let number = self.budget.take_connection()?;
        self.free.take(begin.socket);
        let connection = Connection::new(number, time, begin);
        if !connection.incomplete {
            self.sound.insert(begin.socket);
        }
        self.open.insert(begin.socket, connection);
        Some(number)
    }

    fn finish(&mut self, socket: SocketId) {
        self.sound.remove(&socket);
        if let Some(connection) = self.open.remove(&socket) {
            self.budget.give_back(1, 0);
            self.over.push(connection);
        }
    }
}

/// A message about a socket.
#[derive(Debug, Clone, Copy)]
struct Told {
    time: Duration,
    from: Sender,
    name: &'static str,
}

const DATA: &str = "socket_data";
const CLOSED_ACK: &str = "socket_closed_ack";

impl Noted {
    fn remark(from: Sender, text: String) -> Self {
        Noted { connection: None, remark: Some(Remark { connection: None, from, text }) }
    }
}

/// A service that the client announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The client's number for it.
    pub id: ServiceId,
    /// The device that it belongs to.
    pub group: GroupId,
    /// TCP port.
    pub port: u16,
    /// The device's name, as it came.
    pub name: Vec<u8>,
    /// Where the guest finds it, once the server said so.
    pub address: Option<IpAddr>,
    /// When it was announced.
    pub added: Duration,
    /// When the server said where.
    pub mapped: Option<Duration>,
    /// When it was withdrawn.
    pub removed: Option<Duration>,
}

/// Number of a tunnelled connection: which SOCKET_OPEN of the capture began it, from 0 (or which other message, where
/// the capture does not have that one). Socket ids are used again and again, this is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(pub u64);

/// Something about a message that does not go with what was said before. The message stands, the book goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The connection it concerns, if it concerns one.
    pub connection: Option<ConnectionNumber>,
    /// Whose message it is.
    pub from: Sender,
    /// What was expected, and what came.
    pub text: String,
}

#[cfg(test)]
mod tests;
