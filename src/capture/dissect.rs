//! From a connection's bytes to Spice: the link stage, then messages.
//!
//! # Theory of operation
//!
//! ```text
//!             ┌─ "REDQ" ──► link_stage ─── linked ────────► data_stage ◄─┐
//! first bytes ┤                 └── a hole ──────┐              │        │ found
//!             ├─ began before the capture ───────┴─► resync ◄───┘ ───────┘
//!             └─ anything else: not Spice             ▲  a hole between messages, a damaged header
//! ```
//!
//! The two directions of a `Connection` are followed apart, each through these states, and share what is known of
//! channel, header and roles. Where the link stage is not in the capture, the search finds out: who is the client by the messages
//! that only one end can send or by the port, and the channel once no other has the messages that were seen.
//! `sizes` says what a header can look like, `bodies` what its message says.
//!
//! # Bounds
//!
//! | what | bytes of a direction |
//! | --- | --- |
//! | not known to be Spice | 64 |
//! | link stage that waits for the other end | 1.25 MiB (a SASL step can be that long) |
//! | the body in hand, if it is parsed | [`MAX_KEPT`] |
//! | any other body in hand | 4 KiB |
//! | search | 128 KiB, and 64 KiB in all where nothing speaks for Spice |
//!
//! All of it together is at most [`Options::memory`] and a few hundred bytes per connection, whose number is the reassembly's
//! limit. When it is used up, bodies are not looked into any more, and searches see less. A message that lies in one piece is not
//! copied at all, one that comes in pieces is copied once.

mod bodies;
mod connection;
mod data_stage;
mod knowledge;
mod link_stage;
mod out;
mod resync;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::frame::HeaderForm;
use spice_proto::link::{LinkError, LinkMess, LinkReply};
use spice_proto::main_channel::{MainClientMessage, MainServerMessage};
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

use self::connection::{Connection, Fate};
use self::out::Out;
use super::reassembly::{HoleCause, Piece, StreamEvent, StreamId};

/// Finds the Spice connections among all, and makes [`Item`]s of them.
#[derive(Debug)]
pub struct Dissector {
    options: Options,
    /// Those that are Spice, or may be.
    connections: BTreeMap<StreamId, Connection>,
    /// Server ports that Spice was seen on.
    ports: BTreeSet<u16>,
    /// Bytes that the connections hold on to.
    held: usize,
    /// When the last event was.
    now: Duration,
}

/// What a [`Dissector`] looks at.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only connections whose server has this port.
    pub port: Option<u16>,
    /// Bytes that all connections together may hold back. Beyond it, long bodies are not looked into.
    pub memory: usize,
}

impl Default for Options {
    /// All ports; 64 MiB.
    fn default() -> Self {
        Self { port: None, memory: 64 << 20 }
    }
}

impl Dissector {
    /// A dissector that has seen nothing.
    pub fn new(options: Options) -> Self {
        let ports = options.port.into_iter().collect();
        Self { options, connections: BTreeMap::new(), ports, held: 0, now: Duration::ZERO }
    }

    /// Takes an event, and gives what it brings to an end.
    pub fn handle(&mut self, event: StreamEvent<'_>, sink: &mut impl FnMut(Item<'_>)) {
        let StreamEvent { time, stream, piece } = event;
        self.now = time;
        if let Piece::Opened { from, to, from_start } = piece {
            if self.options.port.is_none_or(|port| to.port() == port || (!from_start && from.port() == port))
            {
                self.connections.insert(stream, Connection::new(from, to, from_start));
            }
            return;
        }
        let Some(connection) = self.connections.get_mut(&stream) else { return };
        let before = connection.held();
        let room = self.options.memory.saturating_sub(self.held);
        let out = &mut Out { time, stream, room, ports: &self.ports, sink };
        let mut fate = Fate::Keep;
        match piece {
            Piece::Opened { .. } | Piece::Answered => {}
            Piece::Bytes { way, bytes } => fate = connection.bytes(way, bytes, out),
            Piece::Hole { way, missing, cause } => connection.hole(way, missing, cause, out),
            Piece::Finished { way } => connection.finished(way, out),
            Piece::Reset { way } => connection.reset(way),
            Piece::Ended { seen } => {
                connection.ended(seen, out);
                fate = Fate::Forget;
            }
        }
        if let Some(port) = connection.spice_port() {
            self.ports.insert(port);
        }
        self.held = self.held.saturating_sub(before);
        match fate {
            Fate::Keep => self.held = self.held.saturating_add(connection.held()),
            Fate::Forget => {
                self.connections.remove(&stream);
            }
        }
    }

    /// The capture is over. Whatever still lives ends here.
    pub fn finish(&mut self, sink: &mut impl FnMut(Item<'_>)) {
        let time = self.now;
        for (stream, mut connection) in std::mem::take(&mut self.connections) {
            connection.ended(false, &mut Out { time, stream, room: 0, ports: &self.ports, sink });
        }
        self.held = 0;
    }
}

/// Something that a Spice connection said, or that happened to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item<'a> {
    /// When its last byte was captured, since the Unix epoch.
    pub time: Duration,
    /// On which connection.
    pub stream: StreamId,
    /// Which channel; `None` before the link message, and where the capture does not hold it and nothing gives it away.
    pub channel: Option<Channel>,
    /// Who said it; `None` for what concerns both directions.
    pub from: Option<Sender>,
    /// What.
    pub what: What<'a>,
}

/// Type and instance of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// Compare with the constants of `spice_proto::link::ChannelType`.
    pub channel_type: u8,
    /// Which one of that type; `None` where the link message is not in the capture.
    pub id: Option<u8>,
}

/// What an [`Item`] is.
#[derive(Debug, Clone, PartialEq)]
pub enum What<'a> {
    /// A Spice connection was recognised. The first item of every one.
    Began {
        /// The client's address.
        client: SocketAddr,
        /// The server's.
        server: SocketAddr,
        /// Whether the capture holds its link stage; otherwise what follows was found by searching for messages.
        from_start: bool,
    },
    /// The client's link message. `size` is that of its header.
    LinkMess {
        /// Bytes behind the link header.
        size: u32,
        /// Major and minor version.
        version: (u32, u32),
        /// The message.
        mess: LinkMess,
    },
    /// The server's link reply.
    LinkReply {
        /// Bytes behind the link header.
        size: u32,
        /// Major and minor version.
        version: (u32, u32),
        /// The reply.
        reply: LinkReply,
    },
    /// The client's choice of authentication: 1 a ticket, 2 SASL.
    AuthMechanism(u32),
    /// The client's sealed ticket, whose bytes are nobody's business.
    Ticket,
    /// A step of a SASL exchange, whose data is nobody's business: it can hold a password.
    Sasl {
        /// `sasl_mechanisms`, `sasl_mechanism`, `sasl_data`, `sasl_result`.
        name: &'static str,
        /// Bytes on the wire.
        size: u32,
    },
    /// The server's verdict: `None` is fine, and messages follow.
    LinkResult(Option<LinkError>),
    /// The data stage begins, and this is how it is read. Not a line of its own in a dump. Comes behind a good link result,
    /// or, where the link stage was not captured, once the search for messages has found out.
    Linked(Terms),
    /// A message.
    Message(Message<'a>),
    /// Bytes that are not what has to stand there. The connection goes on behind them where that is possible.
    Malformed {
        /// What was expected, and what came.
        error: String,
        /// The message's header, if it had a sound one. Its body is `bytes`.
        header: Option<Head>,
        /// The bytes it is about, as many as are kept.
        bytes: &'a [u8],
    },
    /// Bytes that the capture does not have.
    Hole(Hole),
    /// The connection is over, or the capture. The last item of every one.
    Ended {
        /// How.
        how: End,
    },
}

/// A message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The sender's number for it; a mini header has none.
    pub serial: Option<u64>,
    /// Type of the message.
    pub kind: u16,
    /// Bytes of the body.
    pub size: u32,
    /// Where in the body the list of sub-messages is, 0 for none.
    pub sub_list: u32,
}

/// A message of the data stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<'a> {
    /// Its header.
    pub head: Head,
    /// `spice.proto`'s name in lower case; `None` if its channel has no message of that number.
    pub name: Option<&'static str>,
    /// What is known of the body.
    pub body: Body<'a>,
    /// The body's bytes: all of them if it is parsed, otherwise as many as are kept ([`MAX_KEPT`]). Empty if a hole is in
    /// it.
    pub bytes: &'a [u8],
}

/// A message's body.
#[derive(Debug, Clone, PartialEq)]
pub enum Body<'a> {
    /// A message that every channel has.
    BaseServer(BaseServerMessage<'a>),
    /// A message that every channel has.
    BaseClient(BaseClientMessage<'a>),
    /// Of the main channel.
    MainServer(MainServerMessage<'a>),
    /// Of the main channel.
    MainClient(MainClientMessage<'a>),
    /// Of the tunnel channel.
    TunnelServer(ServerMessage<'a>),
    /// Of the tunnel channel.
    TunnelClient(ClientMessage<'a>),
    /// Not looked into: another channel's, an unknown number, or longer than what is kept.
    Opaque,
    /// Not looked into, because the capture does not have all of it. A [`What::Hole`] went before.
    Incomplete,
}

/// Bytes that are missing from a connection's direction, or that are there and say nothing: `missing` is `Some(0)` where all
/// bytes are there, but where the next message starts was not known. Behind a damaged header, which was
/// [malformed](What::Malformed), that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// How many bytes the capture does not have; `None` if nobody knows, as before its first packet.
    pub missing: Option<u64>,
    /// How many bytes behind it, which the capture has, could not be understood, because no message's start was found in
    /// them. 0 if the hole is within the body of one message.
    pub skipped: u64,
    /// Whether messages are understood again behind it. `false`: nothing more of this direction is.
    pub resumed: bool,
    /// Why; `None` for what was before the capture's first packet, and if nothing is missing.
    pub cause: Option<HoleCause>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both ends finished.
    Closed,
    /// This end aborted it.
    Reset(Sender),
    /// It goes on behind the end of the capture, for all that is known.
    CaptureOver,
}

/// What a connection's messages are read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Form of the header, both ways.
    pub header: HeaderForm,
    /// Layout of a tunnel's SERVICE_ADD.
    pub layout: Layout,
    /// Channel capability words that both ends have: the bits in common, word by word. Empty if the link stage was not
    /// captured.
    pub channel_caps: Vec<u32>,
}

/// Longest body that is kept and parsed. A main channel's network test is 256,000 bytes, a tunnel's message at most
/// 1 MiB; a body of another channel is never needed whole.
pub const MAX_KEPT: usize = 2 << 20;
