//! What goes out: DATA, returned credit, and every other message.

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::frame::put_header;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{ClientMessage, ServerMessage, SocketId};

use crate::channel::{Channel, Side};
use crate::config::Role;
use crate::credit::Announce;
use crate::liveness::Ping;
use crate::socket::Say;

impl Channel {
    /// Writes one DATA message straight into the outgoing buffer, and pays a token for it. `fill` is called with
    /// [`Channel::max_data`] bytes of room and gives how many it filled from the start; it is not called without
    /// credit. Gives the number of bytes sent. 0: there was no credit or `fill` had nothing, and nothing was sent.
    pub fn send(&mut self, socket: SocketId, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let max_data = self.max_data();
        let kind = match self.side {
            Side::Server { .. } => ServerMessage::SocketData { socket, payload: &[] }.kind(),
            Side::Client { .. } => ClientMessage::SocketData { socket, payload: &[] }.kind(),
        };
        let Some(state) = self.table.get_mut(socket) else { return 0 };
        if state.sendable() == 0 {
            return 0;
        }
        let before = self.header.len() + ID_LEN;
        let room = self.outgoing.room(before + max_data);
        let Some((front, payload)) = room.split_at_mut_checked(before) else { return 0 };
        let filled = fill(payload).min(max_data);
        if filled == 0 {
            return 0;
        }
        self.serial = self.serial.wrapping_add(1);
        self.head.clear();
        put_header(self.header, &mut self.head, self.serial, kind, to_size(filled + ID_LEN));
        self.head.extend_from_slice(&socket.0.to_le_bytes());
        front.copy_from_slice(&self.head);
        self.outgoing.commit(before + filled);
        state.sent();
        filled
    }

    /// Tells the peer of credit that is due, or remembers that it was held back.
    pub(crate) fn return_credit(&mut self, id: SocketId) {
        let policy = self.terms.policy;
        let over_budget = self.is_short_of_memory();
        while let Some(socket) = self.table.get_mut(id) {
            if !socket.wants_credit() {
                return;
            }
            let window = socket.window_mut();
            if over_budget {
                self.pool.give_back(window.shrink());
            }
            let due = if over_budget { window.take_trickle(policy) } else { window.take_due(policy) };
            let Some(Announce(tokens)) = due else { break };
            match self.side {
                Side::Server { .. } => self.say_server(ServerMessage::SocketToken { socket: id, tokens }),
                Side::Client { .. } => self.say_client(ClientMessage::SocketToken { socket: id, tokens }),
            }
        }
        if over_budget {
            self.backlog.held.insert(id);
        }
    }

    pub(crate) fn release_held(&mut self) {
        while !self.is_short_of_memory()
            && let Some(id) = self.backlog.held.pop_first()
        {
            self.return_credit(id);
        }
    }

    pub(crate) fn say(&mut self, socket: SocketId, say: Say) {
        match self.role() {
            Role::Server => {
                let message = match say {
                    Say::Fin => ServerMessage::SocketFin { socket },
                    Say::Close | Say::Reset => ServerMessage::SocketClose { socket },
                    Say::ClosedAck => ServerMessage::SocketClosedAck { socket },
                    Say::OpenAck | Say::OpenNack => {
                        debug_assert!(false, "only a client answers OPEN");
                        return;
                    }
                };
                self.say_server(message);
            }
            Role::Client => {
                let message = match say {
                    Say::OpenAck => {
                        let tokens = self.table.get(socket).map_or(0, |socket| socket.window().total());
                        ClientMessage::SocketOpenAck { socket, tokens }
                    }
                    Say::OpenNack => ClientMessage::SocketOpenNack { socket },
                    Say::Fin => ClientMessage::SocketFin { socket },
                    Say::Close => ClientMessage::SocketClosed { socket },
                    Say::Reset if self.terms.has(TunnelCaps::RESET) => ClientMessage::SocketReset { socket },
                    Say::Reset => ClientMessage::SocketClosed { socket },
                    Say::ClosedAck => ClientMessage::SocketClosedAck { socket },
                };
                self.say_client(message);
            }
        }
    }

    /// Asks the peer whether it is there.
    pub(crate) fn ask(&mut self, Ping { id, timestamp }: Ping) {
        match self.side {
            Side::Server { .. } => {
                self.say_base_server(&BaseServerMessage::Ping { id, timestamp, padding: &[] });
            }
            Side::Client { .. } => self.say_client(ClientMessage::Probe { id }),
        }
    }

    /// Answers the peer's PING or PROBE. To a peer that asks faster than it reads, only the last question counts.
    pub(crate) fn answer(&mut self, question: Ping) {
        self.owed = Some(question);
        self.answer_owed();
    }

    /// Answers what was asked while too much waited to be sent.
    pub(crate) fn answer_owed(&mut self) {
        if self.outgoing_len() > self.outgoing_high_water().saturating_mul(2) {
            return;
        }
        let Some(Ping { id, timestamp }) = self.owed.take() else { return };
        match self.side {
            Side::Server { .. } => self.say_server(ServerMessage::ProbeAck { id }),
            Side::Client { .. } => self.say_base_client(&BaseClientMessage::Pong { id, timestamp }),
        }
    }

    pub(crate) fn say_server(&mut self, message: ServerMessage<'_>) {
        message.write_body(&mut self.body);
        self.queue(message.kind());
    }

    pub(crate) fn say_client(&mut self, message: ClientMessage<'_>) {
        message.write_body(self.terms.layout, &mut self.body);
        self.queue(message.kind());
    }

    pub(crate) fn say_base_server(&mut self, message: &BaseServerMessage<'_>) {
        message.write_body(&mut self.body);
        self.queue(message.kind());
    }

    pub(crate) fn say_base_client(&mut self, message: &BaseClientMessage<'_>) {
        message.write_body(&mut self.body);
        self.queue(message.kind());
    }

    /// Queues `self.body` as a message.
    fn queue(&mut self, kind: u16) {
        self.serial = self.serial.wrapping_add(1);
        self.head.clear();
        put_header(self.header, &mut self.head, self.serial, kind, to_size(self.body.len()));
        self.outgoing.append(&self.head);
        self.outgoing.append(&self.body);
        self.body.clear();
    }
}

/// The socket's id, which precedes the payload of DATA, in bytes.
const ID_LEN: usize = 2;

/// Our own messages are far shorter than 4 GiB.
fn to_size(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
