//! The session's shares and domains: how they are announced, and what becomes of their connections when they go.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use spice_proto::{
    link::TunnelCaps,
    service_info::HostName,
    tunnel::{NameAnswer, QueryId, ServiceId, ServiceKind, SocketId},
};
use tracing::{debug, warn};
use tunnel_channel::{Channel, NewService};

use super::{Core, Slot};
use crate::{
    book::Entry,
    dial::Target,
    events::{End, Event},
    handle::Beginning,
    http_host::HostRewrite,
    question::{Asker, NameQuery, Question},
    share::ShareId,
};

/// What is shared by one tunnel.
pub(super) struct Shares {
    /// Until the server's INIT comes.
    waiting: Beginning,
    announced: BTreeMap<ServiceId, Announced>,
    /// The tunnel's number, of a companion's.
    tunnel: u64,
    asker: Asker,
}

struct Announced {
    entry: Entry,
    target: Arc<Target>,
    is_mapped: bool,
}

impl Announced {
    fn new(entry: Entry) -> Announced {
        let target = Arc::new(Target::of(&entry.offer));
        Announced { entry, target, is_mapped: false }
    }

    fn unmapped(self) -> Option<Event> {
        let share = self.entry.offer.share;
        self.is_mapped.then(|| Event::Unmapped {
            share: self.entry.id,
            target: share.target(),
            name: share.name,
        })
    }
}

impl Shares {
    pub(super) fn new(waiting: Beginning, tunnel: u64, asker: Asker) -> Shares {
        Shares { waiting, announced: BTreeMap::new(), tunnel, asker }
    }

    /// The server's INIT came.
    pub(super) fn on_ready(&mut self, channel: &mut Channel) {
        let Beginning { shares, domains } = std::mem::take(&mut self.waiting);
        for entry in shares {
            self.announce(channel, entry);
        }
        for domain in domains {
            add_domain(channel, &domain);
        }
    }

    /// Where the guest finds a service.
    pub(super) fn mapped(&mut self, service: ServiceId, address: IpAddr) -> Option<Event> {
        let announced = self.announced.get_mut(&service)?;
        announced.is_mapped = true;
        let share = &announced.entry.offer.share;
        Some(Event::Mapped {
            share: announced.entry.id,
            name: share.name.clone(),
            target: share.target(),
            virtual_ip: address,
            port: share.port,
        })
    }

    /// What is to be dialled for a service.
    pub(super) fn target(&self, service: ServiceId) -> Option<(ShareId, Arc<Target>, Option<HostRewrite>)> {
        let Announced { entry, target, .. } = self.announced.get(&service)?;
        Some((entry.id, target.clone(), entry.host_rewrite.clone()))
    }

    fn announce(&mut self, channel: &mut Channel, entry: Entry) {
        let Entry { offer, told, group, device, .. } = &entry;
        let share = &offer.share;
        let knows_identities = channel.caps().contains(TunnelCaps::SERVICE_INFO);
        let name = if knows_identities { &device.name } else { &device.lasting };
        let description = match (&share.description, &share.name) {
            (description, _) if !description.is_empty() => description.as_str(),
            (_, of_share) if of_share != name => of_share.as_str(),
            (_, _) => "",
        };
        let service = NewService {
            kind: ServiceKind::Generic,
            group: *group,
            port: share.port,
            name: name.as_bytes(),
            description: description.as_bytes(),
            info: told.as_ref(),
        };
        match channel.add_service(service) {
            Ok(service) => {
                debug!(service = service.0, share = %share.name, target = share.target(), "announced");
                self.announced.insert(service, Announced::new(entry));
            }
            // The book and the configuration leave nothing that the channel could object to.
            Err(error) => warn!(share = %share.name, %error, "a share could not be announced"),
        }
    }

    /// Withdraws it from the guest.
    fn remove(&mut self, channel: &mut Channel, share: ShareId) -> Option<Event> {
        self.waiting.shares.retain(|entry| entry.id != share);
        let is = |(service, announced): (&ServiceId, &Announced)| {
            (announced.entry.id == share).then_some(*service)
        };
        let service = self.announced.iter().find_map(is)?;
        channel.remove_service(service);
        self.announced.remove(&service)?.unmapped()
    }
}

impl Core {
    pub(super) fn add_share(&mut self, entry: Entry) {
        match self.ready_at {
            None => self.shares.waiting.shares.push(entry),
            Some(_) => self.shares.announce(&mut self.channel, entry),
        }
    }

    /// What is told of it, and where it is dialled from now on.
    pub(super) fn update_share(&mut self, entry: Entry) {
        let shares = &mut self.shares;
        if let Some(waiting) = shares.waiting.shares.iter_mut().find(|waiting| waiting.id == entry.id) {
            *waiting = entry;
        } else if let Some((service, known)) =
            shares.announced.iter_mut().find(|(_, known)| known.entry.id == entry.id)
        {
            if let Some(told) = entry.told.as_ref().filter(|told| known.entry.told.as_ref() != Some(told)) {
                self.channel.describe_service(*service, told);
            }
            known.target = Arc::new(Target::of(&entry.offer));
            known.entry = entry;
        }
    }

    /// The guest gets no new connections. Those that are open stay until they end, and those that are being made are made.
    pub(super) fn withdraw(&mut self, share: ShareId) {
        if let Some(unmapped) = self.shares.remove(&mut self.channel, share) {
            self.events.push(unmapped);
        }
    }

    pub(super) fn remove_share(&mut self, share: ShareId) {
        self.withdraw(share);
        let of_share: Vec<SocketId> =
            self.slots.iter().filter(|(_, slot)| slot.share() == share).map(|(socket, _)| *socket).collect();
        for socket in of_share {
            match self.slots.remove(&socket) {
                Some(Slot::Dialling(..)) => {
                    self.dials.cancel(socket, share);
                    self.channel.refuse(socket);
                }
                Some(Slot::Connected(service)) => {
                    self.channel.reset(socket);
                    self.closed(&service, End::Unshared);
                }
                None => {}
            }
        }
    }

    pub(super) fn add_domain(&mut self, domain: HostName) {
        match self.ready_at {
            None => self.shares.waiting.domains.push(domain),
            Some(_) => add_domain(&mut self.channel, &domain),
        }
    }

    pub(super) fn remove_domain(&mut self, domain: &HostName) {
        self.shares.waiting.domains.retain(|waiting| waiting != domain);
        self.channel.remove_domain(domain);
    }

    /// The guest asks for a name of a domain that was added.
    pub(super) fn on_name_asked(&mut self, query: QueryId, name: &str) {
        let question = HostName::new(name).ok().map(|name| {
            let query = NameQuery { tunnel: self.shares.tunnel, query };
            Question { query, name }
        });
        if !question.is_some_and(|question| self.shares.asker.ask(question)) {
            debug!(query = query.0, "nobody answers a question for a name");
            self.channel.answer_name(query, NameAnswer::Failed);
        }
    }

    pub(super) fn answer_name(&mut self, query: NameQuery, answer: NameAnswer) {
        if query.tunnel == self.shares.tunnel {
            self.channel.answer_name(query.query, answer);
        } else {
            debug!(?query, ?answer, "the tunnel that asked has ended");
        }
    }
}

fn add_domain(channel: &mut Channel, domain: &HostName) {
    match channel.add_domain(domain) {
        Ok(()) => {
            debug!(domain = domain.as_str(), naming = channel.is_naming(), "the guest may ask for its names")
        }
        // The book leaves nothing that the channel could object to, unless the server knows no names.
        Err(error) => debug!(domain = domain.as_str(), %error, "the guest cannot ask for its names"),
    }
}
