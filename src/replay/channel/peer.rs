//! What the captured peer says, to today's channel.

use std::net::IpAddr;

use spice_proto::tunnel::{IpInfo, ServerMessage, ServiceId, SocketId};
use tunnel_channel::{ResetCause, Role, SocketViolation};

use super::super::report::{Difference, Place, Subject};
use super::super::story::{Answer, Manner, Said, Word, peer_name};
use super::connection::{Connection, Phase, Refusal};
use super::today::Outcome;
use super::{Driver, HELD_BACK, NO_SERVICE, length, name_of};
use crate::capture::dissect::Head;

impl Driver {
    /// Hands a message of the peer to today's channel.
    pub(super) fn peer_says(&mut self, head: &Head, word: Option<&Word<'_>>, body: &[u8]) {
        if self.channel.is_none() {
            match word {
                Some(Word::Init { max_sockets, max_data }) => self.create(Some((*max_sockets, *max_data))),
                Some(_) => self.create(None),
                // Nobody is there yet who would answer.
                None => return,
            }
        }
        if self.ended.is_some() {
            return;
        }
        match word {
            Some(Word::Socket(socket, Said::Open { service, tokens })) => {
                self.peer_opens(head, *socket, *service, *tokens);
            }
            Some(Word::Socket(socket, said)) => self.peer_speaks(head, *socket, said, body),
            Some(Word::Map { service, address }) => self.peer_maps(head, *service, *address),
            Some(Word::Name(said)) => self.peer_names(head, said, body),
            Some(Word::Add(_) | Word::Remove(_) | Word::Init { .. }) | None => {
                self.peer_else(head, word, body)
            }
        }
    }

    fn peer_else(&mut self, head: &Head, word: Option<&Word<'_>>, body: &[u8]) {
        let outcome = self.feed(head, body);
        match (outcome, word) {
            (Outcome::Added, Some(Word::Add(add))) => {
                self.services.insert(add.service, add.service);
                self.compared.services += 1;
            }
            (Outcome::Removed(service), _) => {
                self.services.remove(&service);
            }
            (Outcome::Ready { max_sockets, max_data }, Some(Word::Init { .. })) => {
                self.init.today = Some((max_sockets, max_data));
            }
            (Outcome::Migrate, _) => {
                self.drop_all(None);
                self.over = true;
            }
            // A rejected service shows when the captured server maps it.
            (_, _) => {}
        }
    }

    fn peer_opens(&mut self, head: &Head, socket: SocketId, service: ServiceId, tokens: u32) {
        let number = self.opened;
        self.opened += 1;
        let known = self.services.get(&service).copied();
        if known.is_none() && self.holed {
            return self.not_opened(number, socket, service, NO_SERVICE);
        }
        if self.is_held_back() {
            return self.not_opened(number, socket, service, HELD_BACK);
        }
        if self.live.get(&socket).is_some_and(|old| old.id.is_none()) {
            self.compare_connection(socket, None);
        }
        let before = self.live.remove(&socket);
        let mut connection = Connection::new(number, socket, service, socket);
        connection.phase = Phase::Gone;
        connection.out.granted = u64::from(tokens);
        self.live.insert(socket, connection);
        self.ids.insert(socket, socket);
        let today = known.unwrap_or(ServiceId(u32::MAX));
        let message = ServerMessage::SocketOpen { socket, service: today, tokens };
        let mut body = Vec::new();
        message.write_body(&mut body);
        let outcome = self.feed(head, &body);
        if outcome == Outcome::Ended {
            // The one that the id belongs to is the one to speak of.
            if let Some(before) = before {
                self.live.insert(socket, before);
            }
        } else if let (Outcome::Opened(_), Some(connection)) = (outcome, self.live.get_mut(&socket)) {
            connection.phase = Phase::Opening;
        }
        // Otherwise it refused by itself, which stands in the story.
    }

    fn peer_maps(&mut self, head: &Head, service: ServiceId, address: IpInfo) {
        let known = self.services.get(&service).copied();
        if known.is_none() && self.holed {
            return;
        }
        let message = ServerMessage::ServiceIpMap { service: known.unwrap_or(ServiceId(u32::MAX)), address };
        let mut body = Vec::new();
        message.write_body(&mut body);
        let outcome = self.feed(head, &body);
        let captured = match address {
            IpInfo::V4(v4) => Some(IpAddr::V4(v4)),
            IpInfo::Invalid => None,
        };
        if outcome == Outcome::Ended {
            return;
        }
        let today = if let Outcome::Mapped(address) = outcome { Some(address) } else { None };
        // One that was withdrawn in between has no address any more.
        if known.is_some() && today != captured {
            let text = |address: Option<IpAddr>| address.map_or("no address".to_owned(), |a| a.to_string());
            let place = Place { service: Some(service.0), ..self.place(None) };
            self.add(Difference::new(self.part(), Subject::Service, place, text(captured), text(today)));
        }
    }

    fn peer_speaks(&mut self, head: &Head, socket: SocketId, said: &Said<'_>, body: &[u8]) {
        let Some(connection) = self.live.get_mut(&socket) else {
            // Behind a hole, a socket that nobody knows is one of those that the hole touched.
            if !self.holed {
                let free = self.unused_id(socket);
                let body = with_id(body, free);
                self.feed(head, &body);
            }
            return;
        };
        let counts = connection.peer_counts();
        match said {
            Said::Data(payload) if counts => {
                connection.captured.peer.bytes += length(payload);
            }
            Said::Fin if counts => connection.captured.peer.end = Some(connection.captured.peer.bytes),
            Said::Close | Said::Reset if counts => {
                let server_finished = match self.role {
                    Role::Server => connection.captured.own.end,
                    Role::Client => connection.captured.peer.end,
                }
                .is_some();
                let manner = Manner::of(said, server_finished);
                connection.captured.peer_end = Some(manner);
                if self.role == Role::Server && manner == Manner::Clean {
                    let bytes = connection.captured.peer.bytes;
                    connection.captured.peer.end.get_or_insert(bytes);
                }
            }
            Said::Accept { tokens } => {
                connection.captured.answer = Answer::Accepted;
                connection.out.granted = u64::from(*tokens);
            }
            Said::Refuse => connection.captured.answer = Answer::Refused,
            Said::Token(tokens) => {
                connection.out.granted = connection.out.granted.saturating_add(u64::from(*tokens));
            }
            Said::Data(_) | Said::Fin | Said::Close | Said::Reset | Said::Open { .. } | Said::ClosedAck => {}
        }
        if let Said::Data(_) = said
            && counts
        {
            self.align_credit(socket);
        }
        self.hear(head, socket, said, body);
        let over = *said == Said::Refuse
            || *said == Said::ClosedAck
                && self.live.get(&socket).is_some_and(|connection| connection.own_close_said);
        if over {
            self.compare_connection(socket, None);
        }
    }

    /// Hands a message about a socket to today's channel, and takes into its story what becomes of it.
    fn hear(&mut self, head: &Head, socket: SocketId, said: &Said<'_>, body: &[u8]) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let phase = connection.phase;
        if *said == Said::ClosedAck {
            if phase == Phase::PeerClosed {
                // The ends crossed. The captured server left the last word to the client; today's has heard the client
                // first, and acknowledges.
                self.release(socket);
                return;
            }
            if connection.id.is_none() {
                return;
            }
        }
        let Some(id) = connection.id else {
            if !connection.given_up && connection.refusal.is_none() {
                connection.given_up = true;
                let (captured, today) = (connection.captured.answer, connection.today.answer);
                if captured == today {
                    let text = format!("the {} said {}", peer_name(self.role), name_of(said));
                    self.different(Subject::Message, Some(socket), text, "the socket is free by then");
                } else {
                    self.different(Subject::Open, Some(socket), captured.words().to_owned(), today.words());
                }
            }
            return;
        };
        if let Said::Data(_) = said
            && phase == Phase::Open
        {
            connection.into.captured += 1;
            connection.into.fed += 1;
        }
        let body = with_id(body, id);
        let outcome = self.feed(head, &body);
        let role = self.role;
        let Some(connection) = self.live.get_mut(&socket) else { return };
        match outcome {
            Outcome::Accepted => {
                connection.today.answer = Answer::Accepted;
                connection.phase = Phase::Open;
            }
            Outcome::Refused => {
                connection.today.answer = Answer::Refused;
                self.free(socket);
            }
            Outcome::Data { bytes, same } => {
                connection.today.peer.bytes += bytes;
                connection.into.taken += 1;
                if !same {
                    let text = "bytes that the owner gets unchanged".to_owned();
                    self.different(Subject::Bytes, Some(socket), text, "they are changed");
                }
                self.deliver_returned(socket);
            }
            Outcome::Finished => {
                connection.today.peer.end = Some(connection.today.peer.bytes);
                if let Said::Close = said {
                    connection.today.peer_end = Some(Manner::Clean);
                    connection.phase = Phase::PeerClosed;
                }
            }
            Outcome::PeerClosed => {
                connection.today.peer_end = Some(Manner::Clean);
                connection.phase = Phase::PeerClosed;
            }
            Outcome::Reset(ResetCause::Peer) => {
                connection.today.peer_end = Some(Manner::Abort);
                connection.phase = Phase::Gone;
            }
            Outcome::Reset(cause) => {
                connection.phase = Phase::Gone;
                connection.refusal = Some(Refusal {
                    time: self.time,
                    text: cause.to_string(),
                    credit: matches!(
                        cause,
                        ResetCause::Violation(
                            SocketViolation::NoCredit | SocketViolation::CreditOverflow { .. }
                        )
                    ),
                    agreed: false,
                });
            }
            Outcome::Nothing if *said == Said::ClosedAck && phase == Phase::Gone => self.free(socket),
            Outcome::Nothing if *said == Said::Close && role == Role::Server && phase == Phase::Open => {
                connection.today.peer_end = Some(Manner::Clean);
                connection.phase = Phase::PeerClosed;
            }
            Outcome::Nothing
            | Outcome::Writable
            | Outcome::Ended
            | Outcome::Opened(_)
            | Outcome::Added
            | Outcome::Rejected
            | Outcome::Removed(_)
            | Outcome::Named
            | Outcome::Mapped(_)
            | Outcome::Ready { .. }
            | Outcome::Migrate
            | Outcome::Disconnecting => {}
        }
        self.pump(socket);
    }

    /// An id that no socket of today's channel has.
    fn unused_id(&self, wanted: SocketId) -> SocketId {
        if self.role == Role::Client || !self.ids.contains_key(&wanted) {
            return wanted;
        }
        let free = (0..u16::MAX).map(SocketId).find(|id| !self.ids.contains_key(id));
        free.unwrap_or(SocketId(u16::MAX))
    }
}

/// A body that begins with a socket id, with another one.
fn with_id(body: &[u8], id: SocketId) -> Vec<u8> {
    let mut body = body.to_vec();
    if let Some(front) = body.first_chunk_mut::<2>() {
        *front = id.0.to_le_bytes();
    }
    body
}
