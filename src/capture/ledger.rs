//! What became of the services and sockets of a tunnel channel, by watching the messages of both ends.
//!
//! A [`Ledger`] belongs to one tunnel connection. It judges nothing by itself: it keeps book of who was granted what and
//! who said what, and remarks where a message does not go with that. The dump makes its statistics of it; the replay
//! compares two of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, GroupId, ServerMessage, ServiceId, SocketId};

/// Book of one tunnel channel.
#[derive(Debug, Default)]
pub struct Ledger {
    services: BTreeMap<ServiceId, Service>,
    /// Those that live, by socket id.
    open: BTreeMap<SocketId, Connection>,
    /// Those that are over, until they are taken.
    over: Vec<Connection>,
}

/// What the book says about a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noted {
    /// The connection it belongs to, if it belongs to one. SOCKET_DATA's bytes are not kept here; whoever wants them has them.
    pub connection: Option<ConnectionNumber>,
    /// What is wrong with it.
    pub remark: Option<Remark>,
}

impl Ledger {
    /// Notes a message of the server.
    pub fn server(&mut self, time: Duration, message: &ServerMessage<'_>) -> Noted {
        let _ = (time, message);
        Noted::default()
    }

    /// Notes a message of the client.
    pub fn client(&mut self, time: Duration, message: &ClientMessage<'_>) -> Noted {
        let _ = (time, message);
        Noted::default()
    }

    /// Notes that messages of one end are missing here: everything that lives is incomplete from now on.
    pub fn hole(&mut self, time: Duration, from: Sender) {
        let _ = (time, from);
    }

    /// All services that were ever announced.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Connections that live, by socket id.
    pub fn open(&self) -> impl Iterator<Item = &Connection> {
        self.open.values()
    }

    /// Connections that are over since the last call, in the order of their ends. A long capture has many: take them, or
    /// they are kept.
    pub fn take_over(&mut self) -> Vec<Connection> {
        std::mem::take(&mut self.over)
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
    /// When it was withdrawn.
    pub removed: Option<Duration>,
}

/// Number of a tunnelled connection: which SOCKET_OPEN of the capture began it, from 0. Socket ids are used again and again,
/// this is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(pub u64);

/// One use of a socket id: a connection of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its number.
    pub number: ConnectionNumber,
    /// Its socket id.
    pub socket: SocketId,
    /// Where to; `None` if the capture began later than the connection.
    pub service: Option<ServiceId>,
    /// Where to, as the guest sees it; `None` if the capture does not show it.
    pub destination: Option<SocketAddr>,
    /// SOCKET_OPEN.
    pub opened: Duration,
    /// The client's answer.
    pub answer: Answer,
    /// From the guest to the service.
    pub up: Direction,
    /// From the service to the guest.
    pub down: Direction,
    /// SOCKET_CLOSE, the server's abort or end.
    pub close: Option<Duration>,
    /// SOCKET_CLOSED, the client's abort or end.
    pub closed: Option<Duration>,
    /// SOCKET_RESET.
    pub reset: Option<Duration>,
    /// When the id became free again: the last acknowledgement, or the refusal.
    pub freed: Option<Duration>,
    /// Whether the capture misses part of it, so that nothing can be concluded from what is not there.
    pub incomplete: bool,
}

/// What the client said to SOCKET_OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    None,
    /// SOCKET_OPEN_ACK.
    Accepted {
        /// When.
        at: Duration,
    },
    /// SOCKET_OPEN_NACK.
    Refused {
        /// When.
        at: Duration,
    },
}

/// One direction of a connection: what was sent, and with what credit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Direction {
    /// Bytes of payload.
    pub bytes: u64,
    /// SOCKET_DATA messages.
    pub messages: u64,
    /// First and last SOCKET_DATA.
    pub first: Option<Duration>,
    /// Last SOCKET_DATA.
    pub last: Option<Duration>,
    /// SOCKET_FIN.
    pub fin: Option<Duration>,
    /// Credit of the sender now: granted and not used.
    pub credit: i64,
    /// All tokens that the sender was granted, the first grant included.
    pub granted: u64,
    /// How often its credit was used up while the connection lived.
    pub stalls: u64,
    /// For how long altogether.
    pub stalled: Duration,
    /// The longest.
    pub longest_stall: Duration,
    /// SOCKET_DATA that were sent without credit.
    pub overruns: u64,
}

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
