//! Names of the user's side that the guest asks for: the netstack's questions go to the tunnel's client, and its answers back.
//!
//! The client answers with a group. Its address is looked up here, among the services that this client has announced and that are
//! mapped: so whatever a client says, a name leads to a device that its user shares, or nowhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use spice_proto::service_info::HostName;
use spice_proto::tunnel::{GroupId, NameAnswer, QueryId};
use tracing::{debug, info, warn};

use super::{Bridge, Tunnel};
use crate::netstack::{NameFound, Netstack};

/// The questions that are out. INVARIANT: those of the channel that are not answered.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: HashMap<QueryId, HostName>,
}

impl Bridge {
    /// Asks the client for what the guest wants to know.
    pub(super) fn ask_names(&mut self, now: Instant) {
        let Some(tunnel) = &mut self.tunnel else { return };
        while let Some(name) = self.netstack.poll_name() {
            match tunnel.channel.ask_name(&name) {
                Ok(query) => {
                    tunnel.questions.asked.insert(query, name);
                }
                Err(error) => {
                    debug!(%error, "a name was not asked for");
                    self.netstack.name_answered(now, &name, NameFound::Failed);
                }
            }
        }
    }
}

impl Tunnel {
    /// The client's answer.
    pub(super) fn name_answered(
        &mut self,
        now: Instant,
        netstack: &mut Netstack,
        query: QueryId,
        answer: NameAnswer,
    ) {
        let Some(name) = self.questions.asked.remove(&query) else { return };
        let found = match answer {
            NameAnswer::Found { group, ttl } => match self.address_of(group) {
                Some(address) => NameFound::At { address, ttl },
                // It was withdrawn while the answer was under way, or could not be mapped.
                None => NameFound::Failed,
            },
            NameAnswer::NoSuchName => NameFound::NoSuchName,
            NameAnswer::Failed => NameFound::Failed,
            NameAnswer::Refused => NameFound::Refused,
        };
        debug!(name = name.as_str(), ?found, "a name of the user's side");
        netstack.name_answered(now, &name, found);
    }

    /// Where a device is: at the address of the first of its services.
    fn address_of(&self, group: GroupId) -> Option<IpAddr> {
        let of_it = self.services.iter().filter(|service| service.identity.group == group);
        of_it.min_by_key(|service| service.id.0).map(|service| service.address.ip())
    }
}

/// The client allows the guest to ask for names of a domain.
pub(super) fn allow(netstack: &mut Netstack, name: &str) {
    match netstack.allow_domain(name) {
        Ok(()) => info!(name, "the guest may ask for names of a domain"),
        Err(error) => warn!(name, %error, "the guest may not ask for names of a domain"),
    }
}

/// It does not any more.
pub(super) fn disallow(netstack: &mut Netstack, name: &str) {
    netstack.disallow_domain(name);
    info!(name, "the guest may not ask for names of a domain any more");
}

#[cfg(test)]
mod tests;
