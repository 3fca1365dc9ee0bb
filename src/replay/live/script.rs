//! What a captured client did, as a script for each connection.

use std::collections::BTreeMap;

use spice_proto::link::ChannelType;
use spice_proto::service_info::ServiceInfo;
use spice_proto::tunnel::{GroupId, ServiceId, ServiceKind, SocketId};
use tunnel_channel::Config;

use crate::capture::dissect::{Body, Item, What};
use crate::capture::reassembly::StreamId;
use crate::replay::story::{Manner, Naming, Said, Word};

/// Payload of one capture that is kept, bytes. A live replay needs it all at hand: the live guest decides the order.
pub const MAX_BYTES: usize = 256 << 20;

/// What any message costs besides its payload, bytes.
const MESSAGE_COST: usize = 128;

/// What the client of a captured tunnel announced and did.
#[derive(Debug, Default)]
pub struct Script {
    stream: Option<StreamId>,
    /// In the order of their announcement.
    pub(super) services: Vec<Service>,
    /// What the next service said of itself.
    described: Option<(ServiceId, ServiceInfo)>,
    /// In the order of their SOCKET_OPENs.
    pub(super) plays: Vec<Play>,
    /// Of the sockets that live at this point of the capture.
    open: BTreeMap<SocketId, usize>,
    bytes: usize,
    /// Why it cannot be played.
    pub(super) unusable: Option<String>,
}

/// A service that the client announced.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: ServiceId,
    pub(super) kind: ServiceKind,
    pub(super) group: GroupId,
    pub(super) port: u16,
    pub(super) name: Vec<u8>,
    pub(super) description: Vec<u8>,
    /// What it said of itself last.
    pub(super) info: Option<ServiceInfo>,
    pub(super) mapped: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Play {
    pub(super) socket: SocketId,
    pub(super) service: ServiceId,
    pub(super) steps: Vec<Step>,
    /// What the guest sent.
    pub(super) up: Vec<u8>,
    /// Whether it ended its direction.
    pub(super) up_ended: bool,
    /// Whether the server ended the connection, and whether as an abort.
    pub(super) server_end: Option<Manner>,
    client_ended: bool,
}

/// Something that the client did, and what it had heard before.
#[derive(Debug)]
pub(super) struct Step {
    /// Bytes from the guest.
    pub(super) after: usize,
    /// The guest's end.
    pub(super) after_end: bool,
    pub(super) act: Act,
}

#[derive(Debug)]
pub(super) enum Act {
    Accept,
    Refuse,
    Send(Vec<u8>),
    Finish,
    Close,
    Abort,
}

impl Script {
    /// Takes the next item of a capture. The first tunnel counts.
    pub fn item(&mut self, item: &Item<'_>) {
        let is_tunnel = item.channel.is_some_and(|channel| channel.channel_type == ChannelType::TUNNEL.0);
        if !is_tunnel || *self.stream.get_or_insert(item.stream) != item.stream {
            return;
        }
        match &item.what {
            What::Message(message) => match &message.body {
                Body::TunnelServer(message) => {
                    if let Some(word) = Word::of_server(message) {
                        self.word(&word, false);
                    }
                }
                Body::TunnelClient(message) => {
                    if let Some(word) = Word::of_client(message) {
                        self.word(&word, true);
                    }
                }
                Body::BaseServer(_)
                | Body::BaseClient(_)
                | Body::MainServer(_)
                | Body::MainClient(_)
                | Body::Opaque
                | Body::Incomplete => {}
            },
            What::Hole(_) => self.give_up("a hole is in the tunnel"),
            What::Malformed { error, .. } => self.give_up(error),
            What::Began { .. }
            | What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Linked(_)
            | What::Ended { .. } => {}
        }
    }

    /// Connections to play.
    pub fn connections(&self) -> usize {
        self.plays.len()
    }

    fn give_up(&mut self, why: &str) {
        self.unusable.get_or_insert_with(|| why.to_owned());
    }

    fn word(&mut self, word: &Word<'_>, from_client: bool) {
        self.bytes += MESSAGE_COST;
        if self.bytes > MAX_BYTES {
            self.give_up("it has more payload than a live replay keeps");
        }
        if self.unusable.is_some() {
            (self.plays, self.services) = (Vec::new(), Vec::new());
            self.open.clear();
            return;
        }
        match word {
            Word::Init { .. } | Word::Remove(_) => {}
            Word::Name(Naming::Describe { service, info }) => {
                self.bytes += info.as_bytes().len();
                match self.services.iter_mut().find(|known| known.id == *service) {
                    Some(known) => known.info = Some(info.info()),
                    None => self.described = Some((*service, info.info())),
                }
            }
            // What the live guest asks for is not in the capture.
            Word::Name(
                Naming::Ask { .. } | Naming::Answer { .. } | Naming::AddDomain(_) | Naming::RemoveDomain(_),
            ) => {}
            Word::Map { service, .. } => {
                if let Some(service) = self.services.iter_mut().find(|known| known.id == *service) {
                    service.mapped = true;
                }
            }
            Word::Add(add) => {
                self.bytes += add.name.len() + add.description.len();
                if self.services.len() >= Config::default().max_services {
                    return self.give_up("it announces more services than today's channel does");
                }
                self.services.push(Service {
                    id: add.service,
                    kind: add.kind,
                    group: add.group,
                    port: add.port,
                    name: add.name.to_vec(),
                    description: add.description.to_vec(),
                    info: self.described.take().filter(|(id, _)| *id == add.service).map(|(_, info)| info),
                    mapped: false,
                });
            }
            Word::Socket(socket, Said::Open { service, .. }) => {
                self.open.insert(*socket, self.plays.len());
                self.plays.push(Play {
                    socket: *socket,
                    service: *service,
                    steps: Vec::new(),
                    up: Vec::new(),
                    up_ended: false,
                    server_end: None,
                    client_ended: false,
                });
            }
            Word::Socket(socket, said) => {
                let Some(play) = self.open.get(socket).and_then(|at| self.plays.get_mut(*at)) else { return };
                if let Said::Data(payload) = said {
                    self.bytes += payload.len();
                }
                if from_client { play.client(said) } else { play.server(said) }
            }
        }
    }
}

impl Play {
    fn server(&mut self, said: &Said<'_>) {
        match said {
            // What came behind the client's end crossed it.
            _ if self.client_ended => {}
            Said::Data(payload) => self.up.extend_from_slice(payload),
            Said::Fin => self.up_ended = true,
            Said::Close => self.server_end = Some(Manner::of(said, self.up_ended)),
            Said::Open { .. }
            | Said::Accept { .. }
            | Said::Refuse
            | Said::Token(_)
            | Said::Reset
            | Said::ClosedAck => {}
        }
    }

    fn client(&mut self, said: &Said<'_>) {
        if self.server_end.is_some() || self.client_ended {
            return;
        }
        let act = match said {
            Said::Accept { .. } => Act::Accept,
            Said::Refuse => Act::Refuse,
            Said::Data(payload) => Act::Send(payload.to_vec()),
            Said::Fin => Act::Finish,
            Said::Close | Said::Reset => {
                self.client_ended = true;
                match Manner::of(said, self.up_ended) {
                    Manner::Clean => Act::Close,
                    Manner::Abort => Act::Abort,
                }
            }
            // Credit is a matter of today's channel.
            Said::Token(_) | Said::ClosedAck | Said::Open { .. } => return,
        };
        self.steps.push(Step { after: self.up.len(), after_end: self.up_ended, act });
    }
}
