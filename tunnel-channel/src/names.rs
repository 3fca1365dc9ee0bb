//! Names of the client's side: which the guest may ask for, and which questions are on their way.
//!
//! A client says of whole domains that names in them may be asked for. Both ends hold the list and judge every question by it:
//! the server asks for nothing else, and the client refuses on its own what a server asks all the same. A question
//! that crossed the removal of its domain is answered like any other.

use std::collections::BTreeSet;

use spice_proto::link::TunnelCaps;
use spice_proto::service_info::HostName;
use spice_proto::tunnel::{ClientMessage, MAX_DOMAINS, MAX_QUERIES, NameAnswer, QueryId, ServerMessage};

use crate::channel::{Channel, Phase, Side};
use crate::event::{AskError, DomainError, Event, Violation};
use crate::inbound::Heard;

/// The names of one channel, as either side keeps them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// In lower case. INVARIANT: at most [`MAX_DOMAINS`].
    domains: BTreeSet<HostName>,
    /// Asked and not answered. INVARIANT: at most [`MAX_QUERIES`].
    asked: BTreeSet<QueryId>,
    /// Server: the number to try first for the next question.
    next: u32,
}

impl Names {
    /// Whether a name is in one of the domains.
    fn cover(&self, name: &HostName) -> bool {
        self.domains.iter().any(|domain| name.is_within(domain))
    }

    /// `Err`: there are too many. `Ok(false)`: it was there.
    fn add(&mut self, name: HostName) -> Result<bool, usize> {
        if self.domains.contains(&name) {
            return Ok(false);
        }
        if self.domains.len() >= MAX_DOMAINS {
            return Err(MAX_DOMAINS);
        }
        Ok(self.domains.insert(name))
    }

    /// A number for a question, now on its way. `None`: there are too many.
    fn ask(&mut self) -> Option<QueryId> {
        if self.asked.len() >= MAX_QUERIES {
            return None;
        }
        // Ends, since at most MAX_QUERIES are in use.
        loop {
            let query = QueryId(self.next);
            self.next = self.next.wrapping_add(1);
            if self.asked.insert(query) {
                return Some(query);
            }
        }
    }
}

impl Channel {
    /// Whether names can be asked for on this channel.
    pub fn is_naming(&self) -> bool {
        self.is_ready() && self.terms.has(TunnelCaps::NAMES)
    }

    /// Questions for names that are not answered.
    pub fn queries(&self) -> usize {
        self.names.asked.len()
    }

    /// Server: asks where a name is that the guest wants to know. [`Event::NameAnswered`] follows, when the client's side
    /// knows; a client that never answers keeps the question's place for ever.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn ask_name(&mut self, name: &HostName) -> Result<QueryId, AskError> {
        let (Phase::Ready { .. }, Side::Server { .. }) = (self.phase, &self.side) else {
            return Err(AskError::NotReady);
        };
        if !self.terms.has(TunnelCaps::NAMES) {
            return Err(AskError::NotNegotiated);
        }
        if !self.names.cover(name) {
            return Err(AskError::NoDomain);
        }
        let query = self.names.ask().ok_or(AskError::Full { limit: MAX_QUERIES })?;
        self.say_server(ServerMessage::NameQuery { query, name: &name.as_str().to_ascii_lowercase() });
        Ok(query)
    }

    /// Client: names of this domain may be asked for from now on. Without effect if it is there already, in whatever
    /// case.
    ///
    /// # Errors
    ///
    /// See [`DomainError`].
    pub fn add_domain(&mut self, name: &HostName) -> Result<(), DomainError> {
        let (Phase::Ready { .. }, Side::Client { .. }) = (self.phase, &self.side) else {
            return Err(DomainError::NotReady);
        };
        if !self.terms.has(TunnelCaps::NAMES) {
            return Err(DomainError::NotNegotiated);
        }
        name.check_domain()?;
        if self.names.add(lower_case(name)).map_err(|limit| DomainError::TooMany { limit })? {
            self.say_client(ClientMessage::DomainAdd { name: name.as_str() });
        }
        Ok(())
    }

    /// Client: names of this domain may not be asked for any more; questions on their way are refused by the channel.
    /// `false`: there is no such domain.
    pub fn remove_domain(&mut self, name: &HostName) -> bool {
        let (Phase::Ready { .. }, Side::Client { .. }) = (self.phase, &self.side) else { return false };
        let removed = self.names.domains.remove(&lower_case(name));
        if removed {
            self.say_client(ClientMessage::DomainRemove { name: name.as_str() });
        }
        removed
    }

    /// Client: answers [`Event::NameAsked`]. A group without a service of this side is a bug of the owner, which is
    /// logged, and the answer a [`NameAnswer::Failed`]; as is an answer to what was not asked, which has no effect.
    pub fn answer_name(&mut self, query: QueryId, answer: NameAnswer) {
        let (Phase::Ready { .. }, Side::Client { .. }) = (self.phase, &self.side) else { return };
        if !self.names.asked.remove(&query) {
            tracing::warn!(query = query.0, "answer to a question that is not on its way");
            return;
        }
        let checked = self.checked(answer);
        if checked == NameAnswer::Failed && answer != checked {
            tracing::warn!(query = query.0, ?answer, "answer with a group that has no service");
        }
        self.say_client(ClientMessage::NameAnswer { query, answer: checked });
    }

    /// An answer that holds: its group has a service, its time is within bounds.
    fn checked(&self, answer: NameAnswer) -> NameAnswer {
        match answer {
            NameAnswer::Found { group, ttl } if self.directory.has_group(group) => {
                NameAnswer::Found { group, ttl: ttl.clamp(NameAnswer::MIN_TTL, NameAnswer::MAX_TTL) }
            }
            NameAnswer::Found { .. } | NameAnswer::Failed => NameAnswer::Failed,
            NameAnswer::NoSuchName => NameAnswer::NoSuchName,
            NameAnswer::Refused => NameAnswer::Refused,
        }
    }

    // ---- what the peer says; names were checked by the parser ----

    pub(crate) fn on_name_query<'a>(&mut self, query: QueryId, name: &'a str) -> Heard<'a> {
        if self.names.asked.contains(&query) {
            return Err(Violation::QueryInUse { query });
        }
        if self.names.asked.len() >= MAX_QUERIES {
            return Err(Violation::TooManyQueries { limit: MAX_QUERIES });
        }
        // The domain may have been removed while the question was on its way.
        if !HostName::new(name).is_ok_and(|name| self.names.cover(&name)) {
            self.say_client(ClientMessage::NameAnswer { query, answer: NameAnswer::Refused });
            return Ok(None);
        }
        self.names.asked.insert(query);
        Ok(Some(Event::NameAsked { query, name }))
    }

    pub(crate) fn on_name_answer<'a>(&mut self, query: QueryId, answer: NameAnswer) -> Heard<'a> {
        if !self.names.asked.remove(&query) {
            return Err(Violation::NeverAsked { query });
        }
        // A group that is not here can be one whose services were rejected, which the client cannot know.
        Ok(Some(Event::NameAnswered { query, answer: self.checked(answer) }))
    }

    pub(crate) fn on_domain_add<'a>(&mut self, name: &'a str) -> Heard<'a> {
        let Ok(domain) = HostName::new(name) else { return Ok(None) };
        match self.names.add(lower_case(&domain)) {
            Ok(added) => Ok(added.then_some(Event::DomainAdded { name })),
            Err(limit) => Err(Violation::TooManyDomains { limit }),
        }
    }

    pub(crate) fn on_domain_remove<'a>(&mut self, name: &'a str) -> Heard<'a> {
        let Ok(domain) = HostName::new(name) else { return Ok(None) };
        let removed = self.names.domains.remove(&lower_case(&domain));
        Ok(removed.then_some(Event::DomainRemoved { name }))
    }
}

/// As names are compared: only ASCII has a case in DNS (RFC 4343).
fn lower_case(name: &HostName) -> HostName {
    HostName::new(&name.as_str().to_ascii_lowercase()).unwrap_or_else(|_| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_on_its_way_is_not_given_again() {
        let mut names = Names { next: u32::MAX - 1, ..Names::default() };
        let taken: Vec<u32> = std::iter::from_fn(|| names.ask()).map(|query| query.0).collect();
        assert_eq!(taken.len(), MAX_QUERIES);
        assert_eq!(taken[..4], [u32::MAX - 1, u32::MAX, 0, 1]);
        assert_eq!(names.ask(), None);
        names.next = u32::MAX - 1;
        names.asked.remove(&QueryId(7));
        assert_eq!(names.ask(), Some(QueryId(7)));
    }

    #[test]
    fn a_domain_covers_itself_and_what_is_under_it() {
        let host = |name: &str| HostName::new(name).unwrap();
        let mut names = Names::default();
        assert_eq!(names.add(host("home.arpa")), Ok(true));
        assert_eq!(names.add(host("home.arpa")), Ok(false));
        for name in ["home.arpa", "nas.home.arpa", "a.b.Home.ARPA"] {
            assert!(names.cover(&host(name)), "{name}");
        }
        for name in ["arpa", "nothome.arpa", "home.arpa.com", "e.arpa"] {
            assert!(!names.cover(&host(name)), "{name}");
        }
    }
}
