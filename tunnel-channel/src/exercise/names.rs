//! The part of the exercise that is about descriptions and names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spice_proto::link::TunnelCaps;
use spice_proto::service_info::{HostName, Identity, ServiceInfo};
use spice_proto::tunnel::{GroupId, MAX_QUERIES, NameAnswer, QueryId, ServiceId};

use super::{Owners, World};
use crate::{AskError, Channel, Event};

/// What is known of names. Descriptions and domains are told in their order, so that what the server hears can be foretold.
#[derive(Default)]
pub(super) struct Naming {
    /// What the client said of itself and of which service, not heard yet.
    pub(super) described: VecDeque<(ServiceId, ServiceInfo)>,
    /// The one heard last, and whether its service is to be added next.
    pub(super) due: Option<ServiceId>,
    /// Domains, as the client and as the server knows them.
    domains: [BTreeSet<String>; 2],
    /// What the server asked, and whether the client has heard it.
    asked: BTreeMap<QueryId, (String, bool)>,
    /// What the client answered, not heard yet.
    answered: BTreeMap<QueryId, NameAnswer>,
    pub(super) count: usize,
}

impl World {
    pub(super) fn describe(&mut self, which: u8) {
        let service = ServiceId(u32::from(which) % 4);
        let info = self.owners.names.next_info();
        let said = self.pair.client.describe_service(service, &info);
        let can = self.pair.client.terms.has(TunnelCaps::SERVICE_INFO);
        assert_eq!(said, can && self.owners.services.contains(&service));
        if said {
            self.owners.names.described.push_back((service, info));
        }
    }

    pub(super) fn change_domain(&mut self, which: u8) {
        let domain = format!("Domain{}.test", which % 3);
        let name = HostName::new(&domain).expect("a good name");
        let client = &mut self.pair.client;
        let here = self.owners.names.domains[1].contains(&domain);
        if which.is_multiple_of(2) {
            assert_eq!(client.add_domain(&name).is_ok(), client.is_naming());
            if client.is_naming() {
                self.owners.names.domains[1].insert(domain);
            }
        } else {
            assert_eq!(client.remove_domain(&name), here);
            self.owners.names.domains[1].remove(&domain);
        }
    }

    pub(super) fn ask_name(&mut self, which: u8) {
        let domain = format!("Domain{}.test", which % 3);
        let name = HostName::new(&format!("Host{which}.{domain}")).expect("a good name");
        let open = self.owners.names.asked.len() + self.owners.names.answered.len();
        match self.pair.server.ask_name(&name) {
            Ok(query) => {
                assert!(self.owners.names.domains[0].contains(&domain) && open < MAX_QUERIES);
                let asked = (name.as_str().to_lowercase(), false);
                assert_eq!(self.owners.names.asked.insert(query, asked), None, "asked twice");
            }
            Err(AskError::NoDomain) => assert!(!self.owners.names.domains[0].contains(&domain)),
            Err(AskError::Full { .. }) => assert_eq!(open, MAX_QUERIES),
            Err(AskError::NotNegotiated) => assert!(!self.pair.server.is_naming()),
            Err(AskError::NotReady) => panic!("nobody ended it"),
        }
    }

    pub(super) fn answer_name(&mut self, which: u8, choice: u8) {
        let heard: Vec<QueryId> = self
            .owners
            .names
            .asked
            .iter()
            .filter(|(_, (_, heard))| *heard)
            .map(|(query, _)| *query)
            .collect();
        let Some(query) = heard.get(usize::from(which) % heard.len().max(1)) else { return };
        let answer = match choice % 4 {
            0 => NameAnswer::Found { group: GroupId(u32::from(choice >> 4)), ttl: u32::from(choice) * 40 },
            1 => NameAnswer::NoSuchName,
            2 => NameAnswer::Failed,
            _ => NameAnswer::Refused,
        };
        self.pair.client.answer_name(*query, answer);
        self.owners.names.asked.remove(query);
        self.owners.names.answered.insert(*query, answer);
    }

    /// Everything that was asked and said has come over.
    pub(super) fn settle_names(&mut self) {
        self.carry_all(4096);
        for which in 0..MAX_QUERIES {
            self.answer_name(which as u8, 1);
        }
        self.carry_all(4096);
        let names = &self.owners.names;
        assert!(names.described.is_empty() && names.asked.is_empty() && names.answered.is_empty());
        assert_eq!(names.domains[0], names.domains[1]);
        assert_eq!((self.pair.server.queries(), self.pair.client.queries()), (0, 0));
    }
}

impl Owners {
    pub(super) fn hear_name(&mut self, channel: &Channel, event: Event<'_>) {
        let names = &mut self.names;
        match event {
            Event::ServiceDescribed { service, info } => {
                assert_eq!(names.described.pop_front(), Some((service, info.info())));
                assert_eq!(names.due, None, "the service that was described did not follow");
                names.due = (!channel.directory.contains(service)).then_some(service);
            }
            Event::NameAsked { query, name } => {
                let (asked, heard) = names.asked.get_mut(&query).expect("the server asked");
                assert_eq!((asked.as_str(), std::mem::replace(heard, true)), (name, false));
            }
            Event::NameAnswered { query, answer } => match (names.answered.remove(&query), answer) {
                (Some(NameAnswer::Found { group, ttl }), NameAnswer::Found { group: heard, ttl: held }) => {
                    assert_eq!((group, ttl.clamp(5, 3600)), (heard, held));
                }
                // All of the group's services were removed.
                (Some(NameAnswer::Found { .. }), answer) => assert_eq!(answer, NameAnswer::Failed),
                (Some(said), answer) => assert_eq!(said, answer),
                // The domain was removed while the question was on its way.
                (None, answer) => {
                    assert_eq!(answer, NameAnswer::Refused);
                    assert!(matches!(names.asked.remove(&query), Some((_, false))));
                }
            },
            Event::DomainAdded { name } => {
                assert!(names.domains[0].insert(name.to_owned()), "told twice");
            }
            Event::DomainRemoved { name } => {
                assert!(names.domains[0].remove(name), "never told");
            }
            Event::Ready { .. }
            | Event::ServiceAdded(_)
            | Event::ServiceRejected { .. }
            | Event::ServiceRemoved { .. }
            | Event::ServiceMapped { .. }
            | Event::Open { .. }
            | Event::Accepted { .. }
            | Event::Refused { .. }
            | Event::Data { .. }
            | Event::Finished { .. }
            | Event::Writable { .. }
            | Event::PeerClosed { .. }
            | Event::Reset { .. }
            | Event::Migrate
            | Event::Disconnecting { .. } => panic!("{event:?} is not about names"),
        }
    }
}

impl Naming {
    /// Something to say of a service, each time something else.
    pub(super) fn next_info(&mut self) -> ServiceInfo {
        self.count += 1;
        let identity = Identity::new(&format!("uuid:{}", self.count)).ok();
        ServiceInfo::new(identity, None, Vec::new()).expect("a small one")
    }
}
