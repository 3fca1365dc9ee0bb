//! The book of a tunnel's shares: which there are, which device each belongs to, and how devices are called.
//!
//! A device keeps its group and its name when its last share goes, so that it is the same when it comes back. Devices that a
//! network made up could fill the memory in this way, so that of those known by an identity the ones that were away
//! longest are forgotten.

use std::collections::{BTreeMap, BTreeSet};

use spice_proto::service_info::{HostName, ServiceInfo};
use spice_proto::tunnel::{GroupId, MAX_DOMAINS};

use crate::http_host::HostRewrite;
use crate::offer::{self, DeviceKey, Offer};
use crate::share::{MAX_TEXT, Share, ShareError, ShareId};

/// Most devices without a share that are remembered by an identity.
const MAX_ABSENT: usize = 1024;

/// An offer with its place in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ShareId,
    pub(crate) offer: Offer,
    /// What the server is told of it.
    pub(crate) told: Option<ServiceInfo>,
    /// The device that the share belongs to.
    pub(crate) group: GroupId,
    pub(crate) device: DeviceName,
    /// What the guest's HTTP requests are to call the service.
    pub(crate) host_rewrite: Option<HostRewrite>,
}

/// How a device is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceName {
    /// Different from every other device's.
    pub(crate) name: String,
    /// What a server derives the virtual address from that knows no identities: it does not depend on which of two devices
    /// of one name came first.
    pub(crate) lasting: String,
}

/// Which shares there are, and which device each belongs to.
pub(crate) struct ShareBook {
    max_shares: usize,
    next_share: u64,
    next_group: u32,
    shares: BTreeMap<ShareId, Offer>,
    devices: BTreeMap<DeviceKey, Device>,
    /// Whose names the guest may ask for.
    domains: BTreeSet<HostName>,
}

struct Device {
    group: GroupId,
    called: DeviceName,
    /// Shares of it.
    shares: usize,
    /// When its last one went, as `next_share` counts.
    absent_since: u64,
}

impl ShareBook {
    pub(crate) fn new(max_shares: usize) -> ShareBook {
        ShareBook {
            max_shares,
            next_share: 0,
            next_group: 0,
            shares: BTreeMap::new(),
            devices: BTreeMap::new(),
            domains: BTreeSet::new(),
        }
    }

    pub(crate) fn add(&mut self, offer: Offer) -> Result<Entry, ShareError> {
        offer.check()?;
        if self.shares.len() >= self.max_shares {
            return Err(ShareError::TooMany { limit: self.max_shares });
        }
        let same = |other: &Offer| other.device == offer.device && other.share.port == offer.share.port;
        if self.shares.values().any(same) {
            return Err(ShareError::Duplicate { target: offer.share.target() });
        }
        let called = self.name(&offer)?;
        if !self.devices.contains_key(&offer.device) {
            let group = GroupId(self.next_group);
            self.next_group = self.next_group.saturating_add(1);
            let device = Device { group, called, shares: 0, absent_since: 0 };
            self.devices.insert(offer.device.clone(), device);
        }
        let id = ShareId(self.next_share);
        self.next_share += 1;
        if let Some(device) = self.devices.get_mut(&offer.device) {
            device.shares += 1;
        }
        self.shares.insert(id, offer);
        self.entry(id).ok_or(ShareError::Ended)
    }

    /// Replaces what is told of an offer and where it is. `None`: there is no such share, or it is so already.
    pub(crate) fn update(
        &mut self,
        share: ShareId,
        info: Option<ServiceInfo>,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<Option<Entry>, ShareError> {
        let Some(known) = self.shares.get_mut(&share) else { return Ok(None) };
        offer::check_addresses(known.reach, &addresses)?;
        offer::check_info(&known.device, info.as_ref())?;
        if known.info == info && known.addresses == addresses {
            return Ok(None);
        }
        (known.info, known.addresses) = (info, addresses);
        Ok(self.entry(share))
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.shares.keys().filter_map(|id| self.entry(*id)).collect()
    }

    pub(crate) fn remove(&mut self, share: ShareId) -> bool {
        let Some(offer) = self.shares.remove(&share) else { return false };
        if let Some(device) = self.devices.get_mut(&offer.device) {
            device.shares = device.shares.saturating_sub(1);
            device.absent_since = self.next_share;
        }
        self.forget_absent();
        true
    }

    /// The group of a device that has a share.
    pub(crate) fn group(&self, device: &DeviceKey) -> Option<GroupId> {
        self.devices.get(device).filter(|device| device.shares > 0).map(|device| device.group)
    }

    /// `false`: it is there already.
    pub(crate) fn add_domain(&mut self, domain: &HostName) -> Result<bool, ShareError> {
        check_domain(domain)?;
        if self.domains.contains(domain) {
            return Ok(false);
        }
        if self.domains.len() >= MAX_DOMAINS {
            let problem = format!("there are {MAX_DOMAINS} domains already");
            return Err(ShareError::Domain { given: domain.as_str().to_owned(), problem });
        }
        Ok(self.domains.insert(domain.clone()))
    }

    pub(crate) fn remove_domain(&mut self, domain: &HostName) -> bool {
        self.domains.remove(domain)
    }

    pub(crate) fn domains(&self) -> Vec<HostName> {
        self.domains.iter().cloned().collect()
    }

    fn entry(&self, id: ShareId) -> Option<Entry> {
        let offer = self.shares.get(&id)?.clone();
        let device = self.devices.get(&offer.device)?;
        let told = offer.told();
        // Checked when it was added.
        let host_rewrite = offer.share.http_host.as_deref().and_then(|host| HostRewrite::new(host).ok());
        Some(Entry { id, offer, told, group: device.group, device: device.called.clone(), host_rewrite })
    }

    /// How the device of `offer` is called if it is new.
    fn name(&self, offer: &Offer) -> Result<DeviceName, ShareError> {
        let Share { name, .. } = &offer.share;
        match &offer.device {
            DeviceKey::Host(_) => match self.owner(name, &offer.device) {
                Some(owner) => Err(ShareError::NameTaken { name: name.clone(), owner: owner.clone() }),
                None => Ok(DeviceName { name: name.clone(), lasting: name.clone() }),
            },
            DeviceKey::Identity(identity) => {
                let lasting = with_mark(name, identity.as_str());
                let free = |name: &String| self.owner(name, &offer.device).is_none();
                let chosen = [name, &lasting].into_iter().find(|name| free(name));
                match chosen {
                    Some(chosen) if free(&lasting) => Ok(DeviceName { name: chosen.clone(), lasting }),
                    // Somebody made it so.
                    Some(_) | None => {
                        let owner = self.owner(&lasting, &offer.device).unwrap_or(&offer.device).clone();
                        Err(ShareError::NameTaken { name: lasting, owner })
                    }
                }
            }
        }
    }

    /// Another device that is called so, or has a share that is.
    fn owner(&self, name: &str, than: &DeviceKey) -> Option<&DeviceKey> {
        let plain = |offer: &Offer| matches!(offer.device, DeviceKey::Host(_)) && offer.share.name == name;
        let of_shares = self.shares.values().filter(|offer| plain(offer)).map(|offer| &offer.device);
        let is = |device: &Device| device.called.name == name || device.called.lasting == name;
        let of_devices = self.devices.iter().filter(|(_, device)| is(device)).map(|(key, _)| key);
        of_shares.chain(of_devices).find(|key| *key != than)
    }

    fn forget_absent(&mut self) {
        let absent = |(key, device): (&DeviceKey, &Device)| match key {
            DeviceKey::Identity(_) if device.shares == 0 => Some((device.absent_since, key.clone())),
            DeviceKey::Identity(_) | DeviceKey::Host(_) => None,
        };
        let mut absent: Vec<_> = self.devices.iter().filter_map(absent).collect();
        if absent.len() > MAX_ABSENT {
            absent.sort();
            // Many at once, so that it does not happen with every share that goes.
            for (_, key) in absent.into_iter().take(MAX_ABSENT / 2) {
                self.devices.remove(&key);
            }
        }
    }
}

/// A domain whose names a guest may ask for; in lower case, so that it is there once.
pub(crate) fn check_domain(domain: &HostName) -> Result<(), ShareError> {
    let wrong = |problem| ShareError::Domain { given: domain.as_str().to_owned(), problem };
    domain.check_domain().map_err(|error| wrong(error.to_string()))?;
    if domain.as_str() != domain.as_str().to_ascii_lowercase() {
        return Err(wrong("write it in lower case".to_owned()));
    }
    Ok(())
}

/// The name with a mark behind it that is the identity's own.
fn with_mark(name: &str, identity: &str) -> String {
    let mark = format!(" ({:08x})", fnv1a(identity.as_bytes()));
    let mut end = name.len().min(MAX_TEXT - mark.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default().to_owned() + &mark
}

/// FNV-1a, of 32 bits: the same in every version of every program. It tells names apart and protects nothing.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests;
