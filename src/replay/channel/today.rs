//! What today's channel is given, and what it says and tells.

use std::net::IpAddr;

use spice_proto::frame::{Frame, Header, Split, split};
use spice_proto::tunnel::{ClientMessage, ServerMessage, ServiceId, SocketId};
use tunnel_channel::{Event, ResetCause, Role};

use super::super::report::Subject;
use super::super::story::{Answer, Manner, Naming, Said, Word, own_name};
use super::connection::Phase;
use super::{Driver, describe, length};
use crate::capture::dissect::Head;

/// What became of a message that today's channel was given: its event, on its own feet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Nothing,
    Ready {
        max_sockets: u16,
        max_data: u32,
    },
    Added,
    Rejected,
    Removed(ServiceId),
    /// Of what a service says of itself, and of names.
    Named,
    Mapped(IpAddr),
    Opened(ServiceId),
    Accepted,
    Refused,
    /// `same`: as they stood in the message.
    Data {
        bytes: u64,
        same: bool,
    },
    Finished,
    Writable,
    PeerClosed,
    Reset(ResetCause),
    Migrate,
    Disconnecting,
    /// The channel is over.
    Ended,
}

impl Driver {
    /// Hands a message of the peer to today's channel, as bytes.
    pub(super) fn feed(&mut self, head: &Head, body: &[u8]) -> Outcome {
        let now = self.now();
        let form = self.terms.header;
        let Some(channel) = &mut self.channel else { return Outcome::Nothing };
        let mut bytes = Vec::with_capacity(form.len() + body.len());
        let serial = match form {
            spice_proto::frame::HeaderForm::Full => Some(head.serial.unwrap_or_default()),
            spice_proto::frame::HeaderForm::Mini => None,
        };
        Header { serial, kind: head.kind, size: head.size, sub_list: head.sub_list }.write(&mut bytes);
        bytes.extend_from_slice(body);
        let heard = match split(form, channel.max_body(), &bytes) {
            Ok(Split::Frame { frame, consumed: _ }) => {
                channel.handle_frame(now, frame).map_err(|violation| violation.to_string())
            }
            // It is longer than what is kept of it, and still not too long for the channel: that cannot be.
            Ok(Split::Incomplete { .. }) => Err("its body is not in the capture".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let outcome = match heard {
            Ok(event) => self.outcome(event, body),
            Err(text) => {
                let name = self.peer_message_name(head.kind);
                self.channel_ended(format!("{name}: {text}"));
                Outcome::Ended
            }
        };
        self.drain();
        outcome
    }

    fn outcome(&mut self, event: Option<Event<'_>>, body: &[u8]) -> Outcome {
        let Some(event) = event else { return Outcome::Nothing };
        let mut about = None;
        let outcome = match event {
            Event::Ready { max_sockets, max_data } => Outcome::Ready { max_sockets, max_data },
            Event::ServiceAdded(_) => Outcome::Added,
            Event::ServiceRejected { .. } => Outcome::Rejected,
            Event::ServiceRemoved { service } => Outcome::Removed(service),
            Event::ServiceDescribed { .. }
            | Event::NameAsked { .. }
            | Event::NameAnswered { .. }
            | Event::DomainAdded { .. }
            | Event::DomainRemoved { .. } => Outcome::Named,
            Event::ServiceMapped { service: _, address } => Outcome::Mapped(address),
            Event::Open { socket, service } => {
                about = Some(socket);
                Outcome::Opened(service)
            }
            Event::Accepted { socket } => {
                about = Some(socket);
                Outcome::Accepted
            }
            Event::Refused { socket } => {
                about = Some(socket);
                Outcome::Refused
            }
            Event::Data { socket, payload } => {
                about = Some(socket);
                let same = body.get(ID_LEN..).unwrap_or_default() == payload;
                Outcome::Data { bytes: length(payload), same }
            }
            Event::Finished { socket } => {
                about = Some(socket);
                Outcome::Finished
            }
            Event::Writable { socket } => {
                about = Some(socket);
                Outcome::Writable
            }
            Event::PeerClosed { socket } => {
                about = Some(socket);
                Outcome::PeerClosed
            }
            Event::Reset { socket, cause } => {
                about = Some(socket);
                Outcome::Reset(cause)
            }
            Event::Migrate => Outcome::Migrate,
            Event::Disconnecting { .. } => Outcome::Disconnecting,
        };
        let meant = body.first_chunk().map(|id| SocketId(u16::from_le_bytes(*id)));
        if about.is_some() && about != meant {
            let (about, meant) = (about.map_or(0, |id| id.0), meant.map_or(0, |id| id.0));
            self.different(
                Subject::Message,
                None,
                format!("a message about socket {meant}"),
                format!("an event of socket {about}"),
            );
        }
        outcome
    }

    /// Takes what today's channel has said since the last time.
    pub(super) fn drain(&mut self) {
        let mut bytes = std::mem::take(&mut self.buffer);
        loop {
            bytes.clear();
            let Some(channel) = &mut self.channel else { break };
            bytes.extend_from_slice(channel.outgoing());
            channel.sent(bytes.len());
            if bytes.is_empty() {
                break;
            }
            let mut rest = bytes.as_slice();
            while let Ok(Split::Frame { frame, consumed }) = split(self.terms.header, u32::MAX, rest) {
                self.says(&frame);
                rest = rest.get(consumed..).unwrap_or_default();
            }
        }
        self.buffer = bytes;
    }

    fn says(&mut self, frame: &Frame<'_>) {
        let parsed = match self.role {
            Role::Server => ServerMessage::parse(frame.kind, frame.body)
                .map(|message| message.map(|message| (Word::of_server(&message), message.name()))),
            Role::Client => ClientMessage::parse(self.terms.layout, frame.kind, frame.body)
                .map(|message| message.map(|message| (Word::of_client(&message), message.name()))),
        };
        let (word, name) = match parsed {
            Ok(Some((word, name))) => (word, Some(name)),
            Ok(None) => (None, None),
            Err(error) => {
                self.different(
                    Subject::Message,
                    None,
                    "messages that can be read".to_owned(),
                    format!("the {} says what it could not read itself: {error}", own_name(self.role)),
                );
                return;
            }
        };
        let word = word.map(|word| self.in_captured_numbers(word));
        if let Some(strict) = &mut self.strict {
            let base = spice_proto::names::message(
                spice_proto::link::ChannelType::TUNNEL.0,
                match self.role {
                    Role::Server => spice_proto::names::Sender::Server,
                    Role::Client => spice_proto::names::Sender::Client,
                },
                frame.kind,
            );
            strict.today(frame.serial, frame.kind, word.as_ref(), name.or(base));
        }
        match word {
            Some(Word::Init { max_sockets, max_data }) => self.init.today = Some((max_sockets, max_data)),
            Some(Word::Name(Naming::Answer { query, answer })) => self.answered_today(query, answer),
            Some(Word::Map { .. } | Word::Add(_) | Word::Remove(_) | Word::Name(_)) => {
                self.said.push((frame.kind, frame.body.to_vec()));
            }
            Some(Word::Socket(socket, said)) => self.says_of_socket(socket, said),
            None => {}
        }
    }

    /// A message of today's channel, with the captured socket id.
    fn in_captured_numbers<'a>(&self, word: Word<'a>) -> Word<'a> {
        match word {
            Word::Socket(id, said) => Word::Socket(self.ids.get(&id).copied().unwrap_or(id), said),
            Word::Init { .. } | Word::Map { .. } | Word::Add(_) | Word::Remove(_) | Word::Name(_) => word,
        }
    }

    fn says_of_socket(&mut self, socket: SocketId, said: Said<'_>) {
        let role = self.role;
        let max_data = self.channel.as_ref().map_or(0, tunnel_channel::Channel::max_data);
        let Some(connection) = self.live.get_mut(&socket) else {
            // A connection that was given up may have a last word.
            return;
        };
        let mut wrong = None;
        match said {
            Said::Open { tokens, .. } | Said::Accept { tokens } => {
                connection.into.granted = u64::from(tokens);
                connection.into.window = u64::from(tokens);
                if role == Role::Client {
                    connection.today.answer = Answer::Accepted;
                }
            }
            Said::Refuse => {
                connection.today.answer = Answer::Refused;
                connection.phase = Phase::Gone;
                self.free(socket);
            }
            Said::Data(payload) => {
                connection.matcher.got(payload);
                connection.today.own.bytes += length(payload);
                connection.out.sent += 1;
                if connection.today.own.end.is_some() || connection.today.own_end.is_some() {
                    wrong = Some((Subject::HalfClose, "nothing behind the end", "data behind it".to_owned()));
                }
                if connection.out.sent > connection.out.granted {
                    let granted = connection.out.granted;
                    wrong = Some((
                        Subject::Credit,
                        "a token for every message",
                        format!("more than the {granted} granted"),
                    ));
                }
                if payload.len() > max_data {
                    let len = payload.len();
                    wrong = Some((
                        Subject::Credit,
                        "messages as long as INIT allows",
                        format!("{len} bytes in one"),
                    ));
                }
            }
            Said::Token(tokens) => {
                connection.into.granted = connection.into.granted.saturating_add(u64::from(tokens));
                if connection.into.credit() > connection.into.window {
                    let (credit, window) = (connection.into.credit(), connection.into.window);
                    wrong = Some((
                        Subject::Credit,
                        "never more than the window is granted",
                        format!("{credit} tokens are out, the window is {window}"),
                    ));
                }
            }
            Said::Fin => {
                connection.today.own.end = Some(connection.today.own.bytes);
                connection.today.own_first = connection.today.peer.end.is_none();
            }
            Said::Close | Said::Reset => {
                let server_finished = match role {
                    Role::Server => connection.today.own.end,
                    Role::Client => connection.today.peer.end,
                }
                .is_some();
                let manner = Manner::of(&said, server_finished);
                connection.today.own_end = Some(manner);
                if role == Role::Client && manner == Manner::Clean {
                    let bytes = connection.today.own.bytes;
                    connection.today.own.end.get_or_insert(bytes);
                }
            }
            Said::ClosedAck => {
                connection.today.acked = true;
                self.free(socket);
            }
        }
        if let Some((subject, captured, today)) = wrong {
            self.different(subject, Some(socket), captured.to_owned(), today);
        }
    }

    /// The id is free in today's channel, and may be used for another connection while the captured one still has it.
    pub(super) fn free(&mut self, socket: SocketId) {
        let Some(connection) = self.live.get_mut(&socket) else { return };
        connection.phase = Phase::Gone;
        if let Some(id) = connection.id.take() {
            self.ids.remove(&id);
        }
    }

    fn peer_message_name(&self, kind: u16) -> String {
        let from = match self.role {
            Role::Server => spice_proto::names::Sender::Client,
            Role::Client => spice_proto::names::Sender::Server,
        };
        let name = spice_proto::names::message(spice_proto::link::ChannelType::TUNNEL.0, from, kind);
        name.map_or_else(|| format!("message {kind}"), str::to_owned)
    }

    /// What was said about services and names since the last time, for people.
    pub(super) fn take_said(&mut self) -> Vec<String> {
        let layout = self.terms.layout;
        let said = std::mem::take(&mut self.said);
        said.iter()
            .filter_map(|(kind, body)| match self.role {
                Role::Server => {
                    ServerMessage::parse(*kind, body).ok().flatten().map(|m| describe::server_message(&m))
                }
                Role::Client => ClientMessage::parse(layout, *kind, body)
                    .ok()
                    .flatten()
                    .map(|m| describe::client_message(&m)),
            })
            .collect()
    }
}

/// The socket's id, before the payload of DATA.
const ID_LEN: usize = 2;
