//! Peers and owners that do anything in any order: nothing panics, and what the owner believes stays true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proptest::prelude::*;
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::{HostName, ServiceInfo};
use spice_proto::tunnel::{
    ClientMessage, GroupId, InfoBody, IpInfo, Layout, MAX_QUERIES, NameAnswer, QueryId, ServerMessage,
    ServiceId, SocketId,
};

use super::hostile::*;
use super::new_service;
use crate::{Channel, Config, Event, Role};

/// One thing out of the blue: a message of the peer or a command of the owner.
type Nonsense = (u8, u8, u8, u8);

fn nonsense() -> impl Strategy<Value = Vec<Nonsense>> {
    prop::collection::vec((0u8..30, 0u8..5, any::<u8>(), any::<u8>()), 0..200)
}

/// What the owner may believe, checked against every event.
#[derive(Default)]
struct Belief {
    offered: BTreeSet<u32>,
    /// Sockets in the owner's hands, and the messages that wait.
    held: BTreeMap<SocketId, u32>,
    /// Names asked for and not answered.
    asked: BTreeSet<QueryId>,
    domains: BTreeSet<String>,
    given_up: bool,
}

impl Belief {
    fn hear(&mut self, event: &Event<'_>, window: u32) {
        match event {
            Event::Open { socket, service } => {
                assert!(self.offered.contains(&service.0), "never offered");
                assert_eq!(self.held.insert(*socket, 0), None);
            }
            Event::Data { socket, payload } => {
                assert!(!payload.is_empty());
                let waiting = self.held.get_mut(socket).expect("data for a socket of the owner");
                *waiting += 1;
                assert!(*waiting <= window);
            }
            Event::Refused { socket } | Event::Reset { socket, .. } => {
                assert!(self.held.remove(socket).is_some(), "gone twice");
            }
            Event::Accepted { socket }
            | Event::Finished { socket }
            | Event::Writable { socket }
            | Event::PeerClosed { socket } => assert!(self.held.contains_key(socket)),
            Event::Migrate => self.held.clear(),
            Event::NameAsked { query, .. } => {
                assert!(self.asked.insert(*query), "asked twice");
                assert!(self.asked.len() <= MAX_QUERIES);
            }
            Event::NameAnswered { query, answer } => {
                assert!(self.asked.remove(query), "answered what was not asked");
                assert!(!matches!(answer, NameAnswer::Found { ttl, .. } if !(5..=3600).contains(ttl)));
            }
            Event::DomainAdded { name } => {
                assert!(self.domains.insert(name.to_lowercase()), "told twice");
            }
            Event::DomainRemoved { name } => {
                assert!(self.domains.remove(&name.to_lowercase()), "never told");
            }
            Event::ServiceDescribed { info, .. } => drop(info.info()),
            Event::ServiceAdded(_)
            | Event::ServiceRejected { .. }
            | Event::ServiceRemoved { .. }
            | Event::ServiceMapped { .. }
            | Event::Ready { .. }
            | Event::Disconnecting { .. } => {}
        }
    }

    fn command(&mut self, channel: &mut Channel, which: u8, socket: SocketId, amount: u8) {
        let role = channel.role();
        match which {
            0 if role == Role::Client => channel.accept(socket),
            1 if role == Role::Client => {
                if channel.table.get(socket).is_some_and(|s| s.state_name() == "opening") {
                    self.held.remove(&socket);
                }
                channel.refuse(socket);
            }
            2 => {
                channel.close(socket);
                self.held.remove(&socket);
            }
            3 => {
                channel.reset(socket);
                self.held.remove(&socket);
            }
            4 => channel.finish(socket),
            5 => {
                if let Some(waiting) = self.held.get_mut(&socket) {
                    let messages = (*waiting).min(u32::from(amount) % 4);
                    *waiting -= messages;
                    channel.delivered(socket, messages);
                }
            }
            6 => {
                channel.send(socket, |room| room.len().min(usize::from(amount)));
            }
            7 if amount % 4 == 1 => self.name_command(channel, amount >> 2),
            _ if role == Role::Server => {
                if let Ok(socket) = channel.open(ServiceId(0)) {
                    assert_eq!(self.held.insert(socket, 0), None, "an id was given out twice");
                }
            }
            _ => {}
        }
    }

    fn name_command(&mut self, channel: &mut Channel, choice: u8) {
        let domain = HostName::new(DOMAINS[usize::from(choice) % 3]).unwrap();
        match channel.role() {
            Role::Server => {
                if let Ok(query) = channel.ask_name(&domain) {
                    assert!(
                        self.domains.iter().any(|allowed| domain.is_within(&HostName::new(allowed).unwrap()))
                    );
                    assert!(self.asked.insert(query), "a number was given out twice");
                }
            }
            Role::Client if choice % 8 < 3 => {
                let _ = channel.add_domain(&domain);
            }
            Role::Client if choice % 8 == 3 => drop(channel.remove_domain(&domain)),
            Role::Client => {
                let query = QueryId(u32::from(choice % 4));
                self.asked.remove(&query);
                channel.answer_name(query, NameAnswer::Found { group: GroupId(0), ttl: 0 });
            }
        }
    }
}

const DOMAINS: [&str; 3] = ["a.test", "B.a.Test", "c.test"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_to_a_server(all: bool, budget in 0usize..3000, nonsense in nonsense()) {
        let caps = if all { TunnelCaps::OURS } else { TunnelCaps::EXTENDED };
        let config = Config { window: 3, max_sockets: 4, max_data: 100, memory_budget: budget, ..Config::default() };
        let mut server = new(Role::Server, caps, config);
        from_client(&mut server, ClientMessage::ServiceAdd(service_add(0, 0, b"printer")));
        let mut belief = Belief::default();
        let mut buffer = Vec::new();
        let info = InfoBody::write(&ServiceInfo::default(), &mut buffer);
        for (kind, id, amount, more) in nonsense {
            let socket = SocketId(u16::from(id));
            if amount % 2 == 0 {
                belief.command(&mut server, kind % 8, socket, more);
            } else {
                let payload = [more; 101];
                // Mostly one that was asked, since any other ends the channel.
                let query = belief.asked.first().copied().unwrap_or(QueryId(more.into()));
                let messages = [
                    ClientMessage::SocketOpenAck { socket, tokens: u32::from(more % 4) },
                    ClientMessage::SocketOpenNack { socket },
                    ClientMessage::SocketFin { socket },
                    ClientMessage::SocketClosed { socket },
                    ClientMessage::SocketData { socket, payload: &payload[..usize::from(more).min(101)] },
                    ClientMessage::SocketToken { socket, tokens: u32::from(more) << (more % 32) },
                    ClientMessage::SocketReset { socket },
                    ClientMessage::SocketClosedAck { socket },
                    ClientMessage::SocketOpenAck { socket, tokens: 2 },
                    ClientMessage::SocketData { socket, payload: b"some" },
                    ClientMessage::Probe { id: u32::from(more) },
                    ClientMessage::DomainAdd { name: DOMAINS[usize::from(more) % 3] },
                    ClientMessage::DomainRemove { name: DOMAINS[usize::from(more) % 3] },
                    ClientMessage::NameAnswer { query, answer: NameAnswer::Found { group: GroupId(more.into()), ttl: 0 } },
                    ClientMessage::ServiceInfo { service: ServiceId(more.into()), info },
                ];
                let message = messages[usize::from(kind) % messages.len()];
                let mut body = Vec::new();
                message.write_body(Layout::B, &mut body);
                match server.handle_frame(Instant::now(), frame(message.kind(), &body)) {
                    Ok(Some(event)) => belief.hear(&event, 3),
                    Ok(None) => {}
                    Err(_) => belief.given_up = true,
                }
            }
            if belief.given_up {
                prop_assert_eq!(server.sockets(), 0);
                break;
            }
            let owned = belief.held.keys().filter(|id| server.table.get(**id).is_some_and(|s| s.is_owned()));
            prop_assert_eq!(owned.count(), belief.held.len());
            prop_assert!(server.sockets() <= 4 && server.waiting() <= 2 * budget.max(100));
        }
    }

    #[test]
    fn nonsense_to_a_client(all: bool, budget in 0usize..3000, nonsense in nonsense()) {
        let caps = if all { TunnelCaps::OURS } else { TunnelCaps::EXTENDED };
        let config = Config { window: 3, max_sockets: 4, max_data: 100, memory_budget: budget, ..Config::default() };
        let mut client = new(Role::Client, caps, config);
        from_server(&mut client, init(6, 100));
        client.add_service(new_service(0, b"printer")).unwrap();
        client.add_service(new_service(1, b"scanner")).unwrap();
        client.remove_service(ServiceId(1));
        let mut belief = Belief { offered: BTreeSet::from([0]), ..Belief::default() };
        for (kind, id, amount, more) in nonsense {
            let socket = SocketId(u16::from(id));
            if amount % 2 == 0 {
                belief.command(&mut client, kind % 8, socket, more);
            } else {
                let payload = [more; 101];
                let messages = [
                    ServerMessage::SocketOpen { socket, service: ServiceId(u32::from(more % 3)), tokens: 2 },
                    ServerMessage::SocketFin { socket },
                    ServerMessage::SocketClose { socket },
                    ServerMessage::SocketData { socket, payload: &payload[..usize::from(more).min(101)] },
                    ServerMessage::SocketToken { socket, tokens: u32::from(more) << (more % 32) },
                    ServerMessage::SocketClosedAck { socket },
                    ServerMessage::ServiceIpMap { service: ServiceId(u32::from(more % 2)), address: IpInfo::Invalid },
                    ServerMessage::SocketData { socket, payload: b"some" },
                    ServerMessage::ProbeAck { id: u32::from(more) },
                    ServerMessage::NameQuery { query: QueryId(u32::from(more % 8)), name: "b.a.test" },
                ];
                let message = messages[usize::from(kind) % messages.len()];
                let mut body = Vec::new();
                message.write_body(&mut body);
                match client.handle_frame(Instant::now(), frame(message.kind(), &body)) {
                    Ok(Some(event)) => belief.hear(&event, 3),
                    Ok(None) => {}
                    Err(_) => belief.given_up = true,
                }
            }
            if belief.given_up {
                prop_assert_eq!(client.sockets(), 0);
                break;
            }
            let owned = belief.held.keys().filter(|id| client.table.get(**id).is_some_and(|s| s.is_owned()));
            prop_assert_eq!(owned.count(), belief.held.len());
            prop_assert!(client.sockets() <= 6 && client.waiting() <= 2 * budget.max(100));
        }
    }
}
