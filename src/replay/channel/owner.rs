//! What the owner of today's channel does, by the script of the captured end.

use std::net::IpAddr;

use spice_proto::tunnel::{
    ClientMessage, IpInfo, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};
use tunnel_channel::{NewService, Role};

use super::super::Handicap;
use super::super::report::{Difference, Place, Subject};
use super::super::story::{Answer, Manner, Said, Word, own_name};
use super::connection::{Connection, Phase};
use super::{
    Driver, HELD_BACK, Head, MAX_WAITING, NO_SERVICE, describe, last_word, length, name_of, refused,
};

/// Today's spare tokens are used up one by one up to this many; no known window is larger.
const MAX_SPARE: u64 = 65_536;

impl Driver {
    /// The captured end said this. Makes today's channel say it too, if it does.
    pub(super) fn own_says(&mut self, word: &Word<'_>) {
        if self.channel.is_none() && self.role == Role::Server {
            match word {
                Word::Init { max_sockets, max_data } => self.create(Some((*max_sockets, *max_data))),
                Word::Map { .. } | Word::Add(_) | Word::Remove(_) | Word::Name(_) | Word::Socket(..) => {
                    self.create(None);
                }
            }
        }
        if let Some(ended) = &mut self.ended {
            if !ended.agreed {
                ended.agreed = true;
                let text = ended.text.clone();
                let said = match word {
                    Word::Init { .. } => "init",
                    Word::Map { .. } => "service_ip_map",
                    Word::Add(_) => "service_add",
                    Word::Remove(_) => "service_remove",
                    Word::Name(_) => "what is about names",
                    Word::Socket(_, said) => name_of(said),
                };
                self.different(
                    Subject::Channel,
                    None,
                    format!("the {} goes on, with {said}", own_name(self.role)),
                    format!("the channel is ended for a fault: {text}"),
                );
            }
            return;
        }
        match word {
            Word::Init { max_sockets, max_data } => self.own_init(*max_sockets, *max_data),
            Word::Map { service, address } => self.own_maps(*service, *address),
            Word::Add(add) => self.own_adds(add),
            Word::Remove(service) => self.own_removes(*service),
            Word::Name(said) => self.own_names(said),
            Word::Socket(socket, Said::Open { service, tokens }) => {
                self.own_opens(*socket, *service, *tokens);
            }
            Word::Socket(socket, said) => self.own_speaks(*socket, said),
        }
    }

    fn own_init(&mut self, max_sockets: u16, max_data: u32) {
        let captured = (max_sockets, max_data);
        if self.init.captured.is_some() {
            return self.different(Subject::Channel, None, "init came twice".to_owned(), "it comes once");
        }
        self.init.captured = Some(captured);
        if self.init.today != Some(captured) {
            let (sockets, data) = self.init.today.unwrap_or_default();
            self.different(
                Subject::Channel,
                None,
                format!("init announces {max_sockets} sockets and messages of {max_data} bytes"),
                format!("{sockets} sockets and {data} bytes"),
            );
        }
    }

    fn own_maps(&mut self, service: ServiceId, address: IpInfo) {
        let message = ServerMessage::ServiceIpMap { service, address };
        let IpInfo::V4(v4) = address else { return };
        if self.holed && !self.services.contains_key(&service) {
            return;
        }
        let Some(channel) = &mut self.channel else { return };
        let today = match channel.map_service(service, IpAddr::V4(v4)) {
            Ok(()) => {
                self.drain();
                self.take_said().join(", ")
            }
            Err(error) => error.to_string(),
        };
        let captured = describe::server_message(&message);
        if captured != today {
            let place = Place { service: Some(service.0), ..self.place(None) };
            self.add(Difference::new(self.part(), Subject::Service, place, captured, today));
        }
    }

    fn own_adds(&mut self, add: &ServiceAdd<'_>) {
        let ServiceAdd { kind, service, group, port, name, description } = *add;
        let info = self.description_of(service);
        let Some(channel) = &mut self.channel else { return };
        let new = NewService { kind, group, port, name, description, info: info.as_ref() };
        let today = match channel.add_service(new) {
            Ok(id) => {
                self.services.insert(service, id);
                self.compared.services += 1;
                self.drain();
                // Numbered as in the capture, whichever number it has today.
                let (said_info, said) = self.said_of_service(service, id);
                if said_info != info {
                    self.info_differs(service, info.as_ref(), said_info.as_ref());
                }
                said
            }
            Err(error) => error.to_string(),
        };
        let captured = in_full(add);
        if captured != today {
            let place = Place { service: Some(service.0), ..self.place(None) };
            self.add(Difference::new(self.part(), Subject::Service, place, captured, today));
        }
    }

    fn own_removes(&mut self, service: ServiceId) {
        let Some(id) = self.services.remove(&service) else { return };
        let Some(channel) = &mut self.channel else { return };
        channel.remove_service(id);
        self.drain();
        if self.take_said().is_empty() {
            let place = Place { service: Some(service.0), ..self.place(None) };
            self.add(Difference::new(
                self.part(),
                Subject::Service,
                place,
                "service_remove",
                "it is not said, since the server has not negotiated it",
            ));
        }
    }

    fn own_opens(&mut self, socket: SocketId, service: ServiceId, tokens: u32) {
        if self.live.contains_key(&socket) {
            self.different(
                Subject::Open,
                Some(socket),
                "the server opens another connection with its id".to_owned(),
                "the id is in use",
            );
            if let Some(before) = self.live.get_mut(&socket) {
                before.given_up = true;
            }
            self.compare_connection(socket, None);
        }
        let number = self.opened;
        self.opened += 1;
        let place = Place {
            connection: Some(number),
            socket: Some(socket.0),
            service: Some(service.0),
            ..self.place(None)
        };
        if self.holed && !self.services.contains_key(&service) {
            return self.not_opened(number, socket, service, NO_SERVICE);
        }
        if self.is_held_back() {
            return self.not_opened(number, socket, service, HELD_BACK);
        }
        let Some(channel) = &mut self.channel else { return };
        match channel.open(service) {
            Ok(id) => {
                let mut connection = Connection::new(number, socket, service, id);
                connection.into.granted_captured = u64::from(tokens);
                self.live.insert(socket, connection);
                self.ids.insert(id, socket);
                self.drain();
            }
            Err(error) => {
                let mut connection = Connection::new(number, socket, service, socket);
                connection.id = None;
                connection.phase = Phase::Gone;
                connection.given_up = true;
                self.live.insert(socket, connection);
                self.add(Difference::new(
                    self.part(),
                    Subject::Open,
                    place,
                    "the server opens a socket",
                    error.to_string(),
                ));
            }
        }
    }

    fn own_speaks(&mut self, socket: SocketId, said: &Said<'_>) {
        let role = self.role;
        let Some(connection) = self.live.get_mut(&socket) else {
            // Behind a hole it is one of those that were given up. CLOSED_ACK is nothing to anyone (wire-reference 6.11).
            if !self.holed && *said != Said::ClosedAck {
                self.different(
                    Subject::Message,
                    None,
                    format!(
                        "the {} says {} of socket {}, which does not exist",
                        own_name(role),
                        name_of(said),
                        socket.0
                    ),
                    "it never does",
                );
            }
            return;
        };
        if connection.given_up {
            if let Said::ClosedAck | Said::Refuse = said {
                self.compare_connection(socket, None);
            }
            return;
        }
        // A client's CLOSED behind the server's FIN is what would have come anyway, and no sign of anger.
        let is_end = match said {
            Said::Close => role == Role::Server || connection.captured.peer.end.is_none(),
            Said::Reset => true,
            Said::Open { .. }
            | Said::Accept { .. }
            | Said::Refuse
            | Said::Data(_)
            | Said::Token(_)
            | Said::Fin
            | Said::ClosedAck => false,
        };
        if let Some(refusal) = &mut connection.refusal
            && !refusal.agreed
        {
            refusal.agreed = is_end;
            if !is_end {
                connection.given_up = true;
                let refusal = refusal.clone();
                let went_on = format!("went on, with {}", name_of(said));
                let (subject, captured, today) = refused(role, &refusal, &went_on);
                return self.different(subject, Some(socket), captured, today);
            }
        }
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let counts = connection.own_counts();
        match said {
            Said::Accept { tokens } => {
                connection.captured.answer = Answer::Accepted;
                connection.into.granted_captured = u64::from(*tokens);
                self.own_accepts(socket);
            }
            Said::Refuse => {
                connection.captured.answer = Answer::Refused;
                self.own_refuses(socket);
                self.compare_connection(socket, None);
            }
            Said::Data(payload) => {
                if counts && connection.captured.own_end.is_none() {
                    self.own_sends(socket, payload);
                }
            }
            Said::Fin => {
                if counts && connection.captured.own.end.is_none() {
                    connection.captured.own.end = Some(connection.captured.own.bytes);
                    connection.captured.own_first = connection.captured.peer.end.is_none();
                    connection.out.fin_wanted = true;
                    self.pump(socket);
                }
            }
            Said::Token(tokens) => {
                let tokens = u64::from(*tokens);
                connection.into.granted_captured = connection.into.granted_captured.saturating_add(tokens);
                connection.into.returned = connection.into.returned.saturating_add(tokens);
                self.deliver_returned(socket);
            }
            Said::Close | Said::Reset => {
                connection.own_close_said = true;
                if counts && connection.captured.own_end.is_none() {
                    self.own_ends(socket, said);
                }
            }
            Said::ClosedAck => {
                connection.captured.acked = true;
                if connection.phase == Phase::PeerClosed {
                    self.release(socket);
                }
                self.compare_connection(socket, None);
            }
            Said::Open { .. } => {}
        }
    }

    fn own_accepts(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Phase::Opening, Some(id), Some(channel)) = (connection.phase, connection.id, &mut self.channel)
        else {
            return;
        };
        connection.phase = Phase::Open;
        channel.accept(id);
        self.drain();
    }

    fn own_refuses(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Phase::Opening, Some(id), Some(channel)) = (connection.phase, connection.id, &mut self.channel)
        else {
            return;
        };
        channel.refuse(id);
        self.drain();
    }

    fn own_sends(&mut self, socket: SocketId, payload: &[u8]) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        connection.out.captured += 1;
        if connection.out.captured > connection.out.granted {
            connection.out.overruns += 1;
        }
        connection.captured.own.bytes += length(payload);
        if payload.is_empty() {
            // Legal and useless (wire-reference 6.11): today's code never says it.
            return;
        }
        connection.matcher.expect(payload);
        connection.out.queue.push_back(payload.to_vec());
        self.waiting += payload.len();
        self.pump(socket);
        if self.waiting > MAX_WAITING {
            self.different(
                Subject::Credit,
                Some(socket),
                format!("the {} sent it", own_name(self.role)),
                format!("more than {MAX_WAITING} bytes wait for tokens"),
            );
            if let Some(connection) = self.live.get_mut(&socket) {
                connection.given_up = true;
            }
            self.compare_connection(socket, None);
        }
    }

    fn own_ends(&mut self, socket: SocketId, said: &Said<'_>) {
        let role = self.role;
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let server_finished = match role {
            Role::Server => connection.captured.own.end,
            Role::Client => connection.captured.peer.end,
        }
        .is_some();
        let manner = Manner::of(said, server_finished);
        connection.captured.own_end = Some(manner);
        if role == Role::Client && manner == Manner::Clean {
            let bytes = connection.captured.own.bytes;
            connection.captured.own.end.get_or_insert(bytes);
        }
        if connection.phase == Phase::Gone {
            return;
        }
        match (role, manner) {
            // The guest's end is gone. Whether that is an abort is for the client to conclude, from what went before.
            (Role::Server, _) | (Role::Client, Manner::Abort) => {
                let (Some(id), Some(channel)) = (connection.id, &mut self.channel) else { return };
                connection.phase = Phase::Gone;
                channel.reset(id);
                self.drain();
            }
            (Role::Client, Manner::Clean) => {
                connection.out.fin_wanted = true;
                self.deliver_all(socket);
                self.pump(socket);
                self.release(socket);
            }
        }
    }

    // ---- what the owner does by itself ----

    /// Sends what waits, as credit allows, and then ends the direction.
    pub(super) fn pump(&mut self, socket: SocketId) {
        let Some(channel) = &mut self.channel else { return };
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Phase::Open, Some(id)) = (connection.phase, connection.id) else { return };
        while channel.credit(id) > 0
            && let Some(mut message) = connection.out.queue.pop_front()
        {
            if self.handicap == Some(Handicap::CorruptByte)
                && let Some(byte) = message.first_mut()
            {
                *byte ^= 1;
            }
            let sent = channel.send(id, |room| {
                let n = room.len().min(message.len());
                if let (Some(room), Some(message)) = (room.get_mut(..n), message.get(..n)) {
                    room.copy_from_slice(message);
                }
                n
            });
            self.waiting = self.waiting.saturating_sub(sent);
            if sent == 0 {
                connection.out.queue.push_front(message);
                break;
            }
            if sent < message.len() {
                connection.out.queue.push_front(message.split_off(sent));
            }
        }
        if connection.out.fin_wanted && !connection.out.finished && connection.out.queue.is_empty() {
            connection.out.finished = true;
            if self.handicap != Some(Handicap::ForgetFin) {
                channel.finish(id);
                if self.role == Role::Client && connection.today.peer.end.is_some() {
                    // Its CLOSED says it, and it says no FIN before that if it has delivered everything.
                    let sent = self.outgoing_payload(socket);
                    if let Some(connection) = self.live.get_mut(&socket) {
                        connection.today.own.end = Some(sent);
                    }
                }
            }
        }
        self.drain();
    }

    /// What today's channel sent, with what is on its way out.
    fn outgoing_payload(&mut self, socket: SocketId) -> u64 {
        self.drain();
        self.live.get(&socket).map_or(0, |connection| connection.today.own.bytes)
    }

    /// Reports as delivered what the captured end returned tokens for.
    pub(super) fn deliver_returned(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get(&socket) else { return };
        let due = connection.into.returned.saturating_sub(connection.into.delivered);
        let messages = due.min(connection.into.undelivered());
        self.deliver(socket, messages);
    }

    fn deliver_all(&mut self, socket: SocketId) {
        let messages = self.live.get(&socket).map_or(0, |connection| connection.into.undelivered());
        self.deliver(socket, messages);
    }

    fn deliver(&mut self, socket: SocketId, messages: u64) {
        if messages == 0 || self.handicap == Some(Handicap::NeverDeliver) {
            return;
        }
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Phase::Open | Phase::PeerClosed, Some(id), Some(channel)) =
            (connection.phase, connection.id, &mut self.channel)
        else {
            return;
        };
        connection.into.delivered += messages;
        channel.delivered(id, u32::try_from(messages).unwrap_or(u32::MAX));
        self.drain();
    }

    /// Before a DATA of the peer: brings today's credit where the captured one was.
    pub(super) fn align_credit(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get(&socket) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        if connection.into.credit_captured() > 0 {
            while let Some(connection) = self.live.get(&socket)
                && connection.into.credit() == 0
                && connection.into.undelivered() > 0
                && self.handicap != Some(Handicap::NeverDeliver)
            {
                self.deliver(socket, 1);
            }
            return;
        }
        // There was no token for this message, so there must be none today.
        for _ in 0..MAX_SPARE {
            let Some(connection) = self.live.get_mut(&socket) else { return };
            let (Phase::Open, Some(id), 1..) = (connection.phase, connection.id, connection.into.credit())
            else {
                return;
            };
            connection.into.fed += 1;
            let mut body = Vec::new();
            let payload = &[0];
            let kind = match self.role {
                Role::Server => {
                    let message = ClientMessage::SocketData { socket: id, payload };
                    message.write_body(self.terms.layout, &mut body);
                    message.kind()
                }
                Role::Client => {
                    let message = ServerMessage::SocketData { socket: id, payload };
                    message.write_body(&mut body);
                    message.kind()
                }
            };
            self.feed(&head(kind, &body), &body);
        }
    }

    /// Everything was delivered and the peer's end is over: the owner lets go.
    pub(super) fn release(&mut self, socket: SocketId) {
        self.deliver_all(socket);
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Phase::Open | Phase::PeerClosed, Some(id), Some(channel)) =
            (connection.phase, connection.id, &mut self.channel)
        else {
            return;
        };
        connection.phase = Phase::Gone;
        channel.close(id);
        self.drain();
    }

    /// Frees a socket that is not going to be compared any further, so that its id can be used again.
    pub(super) fn abandon(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        let (Some(id), Some(channel)) = (connection.id, &mut self.channel) else { return };
        let phase = connection.phase;
        connection.phase = Phase::Gone;
        match (phase, self.role) {
            (Phase::Opening, Role::Client) => channel.refuse(id),
            (Phase::Opening | Phase::Open | Phase::PeerClosed, Role::Server)
            | (Phase::Open | Phase::PeerClosed, Role::Client) => channel.reset(id),
            (Phase::Gone, Role::Server | Role::Client) => {}
        }
        self.drain();
        if self.live.get(&socket).is_some_and(|connection| connection.id.is_some()) && self.ended.is_none() {
            let (kind, body) = last_word(self.role, phase, id, self.terms.layout);
            self.feed(&head(kind, &body), &body);
            self.free(socket);
        }
    }
}

/// The header of a message that the owner of the replay makes up.
fn head(kind: u16, body: &[u8]) -> Head {
    Head { serial: None, kind, size: u32::try_from(body.len()).unwrap_or(u32::MAX), sub_list: 0 }
}

/// All that a SERVICE_ADD says.
pub(super) fn in_full(add: &ServiceAdd<'_>) -> String {
    let ServiceAdd { kind, service, group, port, name, description } = add;
    let kind = match kind {
        ServiceKind::Generic => "generic".to_owned(),
        ServiceKind::Ipp(IpInfo::V4(v4)) => format!("ipp {v4}"),
        ServiceKind::Ipp(IpInfo::Invalid) => "ipp without an address".to_owned(),
    };
    format!(
        "service_add service {} group {} port {port} {kind} \"{}\" \"{}\"",
        service.0,
        group.0,
        name.escape_ascii(),
        description.escape_ascii()
    )
}
