//! What services say of themselves, and names: what the owner of today's channel does about them, and what it hears.
//!
//! The client numbers its groups and the server its questions. The first are the owner's to choose, so that they are
//! today what they were; questions are translated where today's channel asks them.

use std::collections::{BTreeMap, BTreeSet};

use spice_proto::service_info::{HostName, ServiceInfo};
use spice_proto::tunnel::{
    ClientMessage, InfoBody, MAX_QUERIES, NameAnswer, QueryId, ServerMessage, ServiceAdd, ServiceId,
};

use tunnel_channel::AskError;

use super::super::report::{Difference, Place, Subject};
use super::super::story::{Naming, own_name};
use super::owner::in_full;
use super::today::Outcome;
use super::{Driver, describe};
use crate::capture::dissect::Head;

/// What was said about names and is not settled.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The captured client described a service that it did not announce before, so that the next one is this.
    described: Option<(ServiceId, ServiceInfo)>,
    /// From captured questions of the own server to today's. Those that are not answered.
    asked: BTreeMap<QueryId, QueryId>,
    /// Captured questions that today's server does not ask. Those that are not answered.
    unasked: BTreeSet<QueryId>,
    /// The captured client removed a domain. What the server asked before it heard of that may stand behind it.
    domain_gone: bool,
    /// What today's client answered, and the captured one has not yet. The channel refuses some questions by itself.
    answered: BTreeMap<QueryId, NameAnswer>,
}

/// Where questions begin that were never asked.
const NEVER_ASKED: QueryId = QueryId(u32::MAX);

impl Driver {
    // ---- the own end ----

    pub(super) fn own_names(&mut self, said: &Naming<'_>) {
        match said {
            Naming::Describe { service, info } => self.own_describes(*service, *info),
            Naming::Ask { query, name } => self.own_asks(*query, name),
            Naming::Answer { query, answer } => self.own_answers(*query, *answer),
            Naming::AddDomain(name) => {
                let done = |driver: &mut Self, name: &HostName| {
                    let channel = driver.channel.as_mut()?;
                    channel.add_domain(name).err().map(|error| error.to_string())
                };
                self.own_domain(name, ClientMessage::DomainAdd { name }, done);
            }
            Naming::RemoveDomain(name) => {
                let done = |driver: &mut Self, name: &HostName| {
                    let removed = driver.channel.as_mut()?.remove_domain(name);
                    (!removed).then(|| "there is no such domain".to_owned())
                };
                self.own_domain(name, ClientMessage::DomainRemove { name }, done);
            }
        }
    }

    fn own_describes(&mut self, service: ServiceId, info: InfoBody<'_>) {
        self.described_alone();
        let Some(today) = self.services.get(&service).copied() else {
            self.names.described = Some((service, info.info()));
            return;
        };
        let Some(channel) = &mut self.channel else { return };
        let told = channel.describe_service(today, &info.info());
        self.drain();
        let said = self.take_info(service);
        let captured = ClientMessage::ServiceInfo { service, info };
        if !told || said.as_ref() != Some(&info.info()) {
            let today = said.map_or("the server is not told".to_owned(), |said| described(service, &said));
            self.names_differ(Some(service), describe::client_message(&captured), today);
        }
    }

    /// The service that was described last is not announced: another is, or described.
    fn described_alone(&mut self) {
        if let Some((service, _)) = self.names.described.take()
            && !self.holed
        {
            let captured = format!("the client describes service {} and announces another", service.0);
            self.names_differ(Some(service), captured, "the one that is described comes next");
        }
    }

    /// What the captured client said of the service that it announces now.
    pub(super) fn description_of(&mut self, service: ServiceId) -> Option<ServiceInfo> {
        match self.names.described.take() {
            Some((described, info)) if described == service => Some(info),
            other => {
                self.names.described = other;
                self.described_alone();
                None
            }
        }
    }

    /// What today's client said when it announced a service or described it, in captured numbers: the description, and the
    /// rest in words.
    pub(super) fn said_of_service(
        &mut self,
        service: ServiceId,
        today: ServiceId,
    ) -> (Option<ServiceInfo>, String) {
        let info = self.take_info(service);
        let layout = self.terms.layout;
        let said = std::mem::take(&mut self.said);
        let words = said.iter().filter_map(|(kind, body)| {
            let message = ClientMessage::parse(layout, *kind, body).ok().flatten()?;
            Some(
                if let ClientMessage::ServiceAdd(said) = message
                    && said.service == today
                {
                    in_full(&ServiceAdd { service, ..said })
                } else {
                    describe::client_message(&message)
                },
            )
        });
        (info, words.collect::<Vec<_>>().join(", "))
    }

    /// A description that comes first in what today's client said, if it is one of this captured service.
    fn take_info(&mut self, service: ServiceId) -> Option<ServiceInfo> {
        let (kind, body) = self.said.first()?;
        let message = ClientMessage::parse(self.terms.layout, *kind, body).ok().flatten()?;
        let ClientMessage::ServiceInfo { service: said, info } = message else { return None };
        if self.services.get(&service) != Some(&said) {
            return None;
        }
        let info = info.info();
        self.said.remove(0);
        Some(info)
    }

    fn own_domain(
        &mut self,
        name: &str,
        captured: ClientMessage<'_>,
        done: impl FnOnce(&mut Self, &HostName) -> Option<String>,
    ) {
        // Parsed as a name before.
        let Ok(host) = HostName::new(name) else { return };
        let error = done(self, &host);
        self.drain();
        let said = self.take_said().join(", ");
        let nothing = || if said.is_empty() { "nothing is said".to_owned() } else { said };
        let today = error.unwrap_or_else(nothing);
        let captured = describe::client_message(&captured);
        // Behind a hole, it may have been added in there.
        if captured != today && !self.holed {
            self.names_differ(None, captured, today);
        }
    }

    fn own_asks(&mut self, query: QueryId, name: &str) {
        let Ok(host) = HostName::new(name) else { return };
        let Some(channel) = &mut self.channel else { return };
        let asked = channel.ask_name(&host);
        self.drain();
        let said = std::mem::take(&mut self.said);
        let today = match asked {
            Ok(id) => {
                if self.names.asked.len() < MAX_QUERIES {
                    self.names.asked.insert(query, id);
                }
                let words = said.iter().filter_map(|(kind, body)| {
                    let message = ServerMessage::parse(*kind, body).ok().flatten()?;
                    Some(describe::server_message(&if let ServerMessage::NameQuery { query: said, name } =
                        message
                        && said == id
                    {
                        ServerMessage::NameQuery { query, name }
                    } else {
                        message
                    }))
                });
                words.collect::<Vec<_>>().join(", ")
            }
            Err(error) => {
                if self.names.unasked.len() < MAX_QUERIES {
                    self.names.unasked.insert(query);
                }
                // The domain may have been added in the hole.
                if self.holed || error == AskError::NoDomain && self.names.domain_gone {
                    return;
                }
                error.to_string()
            }
        };
        let captured = describe::server_message(&ServerMessage::NameQuery { query, name });
        if captured != today {
            self.names_differ(None, captured, today);
        }
    }

    fn own_answers(&mut self, query: QueryId, answer: NameAnswer) {
        if !self.names.answered.contains_key(&query)
            && let Some(channel) = &mut self.channel
        {
            channel.answer_name(query, answer);
            self.drain();
        }
        let today = self.names.answered.remove(&query);
        if today != Some(answer) && !self.holed {
            let words = |answer| describe::client_message(&ClientMessage::NameAnswer { query, answer });
            self.names_differ(None, words(answer), today.map_or("no such query".to_owned(), words));
        }
    }

    // ---- the peer ----

    pub(super) fn peer_names(&mut self, head: &Head, said: &Naming<'_>, body: &[u8]) {
        let (expected, outcome) = match said {
            Naming::Answer { query, .. } if self.names.unasked.remove(query) => return,
            Naming::Answer { query, answer } => {
                let today = self.names.asked.remove(query);
                if today.is_none() && self.holed {
                    return;
                }
                let query = today.unwrap_or(NEVER_ASKED);
                let mut body = Vec::new();
                ClientMessage::NameAnswer { query, answer: *answer }.write_body(self.terms.layout, &mut body);
                (true, self.feed(head, &body))
            }
            Naming::Describe { .. } => (true, self.feed(head, body)),
            // What is said twice is not told; what is in no domain the client refuses by itself.
            Naming::Ask { .. } | Naming::AddDomain(_) | Naming::RemoveDomain(_) => {
                (false, self.feed(head, body))
            }
        };
        if let Naming::RemoveDomain(_) = said {
            self.names.domain_gone = true;
        }
        // That a fault ended the channel is found at what the own end says next.
        if expected && outcome != Outcome::Named && outcome != Outcome::Ended {
            let captured = format!("the {} is told", own_name(self.role));
            self.names_differ(None, captured, format!("{outcome:?}").to_lowercase());
        }
    }

    /// Today's client answered a question.
    pub(super) fn answered_today(&mut self, query: QueryId, answer: NameAnswer) {
        if self.names.answered.len() < MAX_QUERIES {
            self.names.answered.insert(query, answer);
        }
    }

    /// What is not settled is not comparable any more.
    pub(super) fn names_lost(&mut self) {
        self.names.described = None;
    }

    fn names_differ(&mut self, service: Option<ServiceId>, captured: String, today: impl Into<String>) {
        let place = Place { service: service.map(|service| service.0), ..self.place(None) };
        let subject = if service.is_some() { Subject::Service } else { Subject::Name };
        self.add(Difference::new(self.part(), subject, place, captured, today));
    }

    pub(super) fn info_differs(
        &mut self,
        service: ServiceId,
        captured: Option<&ServiceInfo>,
        today: Option<&ServiceInfo>,
    ) {
        let words = |info: Option<&ServiceInfo>| match info {
            Some(info) => described(service, info),
            None => "it says nothing of itself".to_owned(),
        };
        self.names_differ(Some(service), words(captured), words(today));
    }
}

fn described(service: ServiceId, info: &ServiceInfo) -> String {
    let mut buffer = Vec::new();
    let info = InfoBody::write(info, &mut buffer);
    describe::client_message(&ClientMessage::ServiceInfo { service, info })
}
