//! What the client's side offers: services, in groups that are devices (wire-reference 6.4, 6.6).

use std::collections::BTreeMap;

use spice_proto::tunnel::{GroupId, ServiceAdd, ServiceId};

/// Why a service was not taken into the directory. No message tells the client, so it simply gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceFault {
    /// The client announced this id before and has not removed it.
    #[error("the id is in use")]
    DuplicateId,
    /// Another service of the group has another name; a group is one device with one name.
    #[error("the name differs from that of its group")]
    NameMismatch,
    /// The client announced more services than [`Config::max_services`](crate::Config::max_services).
    #[error("there are {limit} services already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// The services of one channel, as either side keeps them: which ids are live and what each group is called.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// A service's group.
    services: BTreeMap<ServiceId, GroupId>,
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Debug)]
struct Group {
    name: Box<[u8]>,
    /// INVARIANT: at least 1; a group without services is removed.
    services: usize,
}

impl Directory {
    pub(crate) fn contains(&self, service: ServiceId) -> bool {
        self.services.contains_key(&service)
    }

    /// Whether a service of this group is there.
    pub(crate) fn has_group(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group)
    }

    /// Takes a service in.
    pub(crate) fn add(&mut self, add: &ServiceAdd<'_>, limit: usize) -> Result<(), ServiceFault> {
        if self.contains(add.service) {
            return Err(ServiceFault::DuplicateId);
        }
        if self.services.len() >= limit {
            return Err(ServiceFault::TooMany { limit });
        }
        let group =
            self.groups.entry(add.group).or_insert_with(|| Group { name: add.name.into(), services: 0 });
        if *group.name != *add.name {
            return Err(ServiceFault::NameMismatch);
        }
        group.services += 1;
        self.services.insert(add.service, add.group);
        Ok(())
    }

    /// `false`: there is no such service.
    pub(crate) fn remove(&mut self, service: ServiceId) -> bool {
        let Some(id) = self.services.remove(&service) else { return false };
        if let Some(group) = self.groups.get_mut(&id) {
            group.services = group.services.saturating_sub(1);
            if group.services == 0 {
                self.groups.remove(&id);
            }
        }
        true
    }
}
