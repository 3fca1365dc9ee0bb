//! From what discovery finds to what is offered to the guest, by the user's policy.
//!
//! # Theory of operation
//!
//! Every [`Update`] is judged, service by service, and the [`Handle`] told what changed: offered, told anew, withdrawn. What is
//! offered is known by the device's identity, so it has the same virtual address wherever the device is. A device that is lost is
//! withdrawn gently: connections that are open stay, since a printer that multicast DNS has lost sight of may be printing.
//!
//! The policy looks at one device alone. What only shows beside the others is judged here:
//!
//! * **A host name belongs to whom it was first seen with.** A device that says it is `nas.local` from somewhere else would lead the guest
//!   astray. Devices that share an address may share a name: the queues of one print server do.
//! * **A name that was allowed belongs to the device that had it then**, as long as this lives. Whoever comes later under the same name
//!   is another device, which was not asked about.
//!
//! What is held back is looked at again whenever a device changes or goes.

use std::collections::{BTreeMap, BTreeSet};

use spice_proto::service_info::{Advert, HostName, Identity, ServiceInfo};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{debug, info, warn};

use super::{
    Device, Service, Update,
    policy::{Ground, Objection, Policy, same},
};
use crate::{Handle, Host, Offer, Reach, Share, ShareId, handle::Command};

/// Most services that are offered because they were found. A tunnel bears 1024 of all kinds, so that what the user shares by hand and
/// what is asked for by name have room.
pub const MAX_DISCOVERED: usize = 384;

/// Most devices that are known at a time.
const MAX_DEVICES: usize = 1024;

/// Most names that are kept for the device that had them first.
const MAX_PINS: usize = 1024;

/// Offers what is found.
pub struct Sharer {
    policy: Policy,
    handle: Handle,
    /// Hosts and ports that the user shares by hand.
    by_hand: Vec<(Host, u16)>,
    devices: BTreeMap<Identity, Known>,
    /// How many were ever found, or took another host name.
    found: u64,
    pins: BTreeMap<String, Identity>,
    of_share: BTreeMap<ShareId, Identity>,
    /// Where there is no tunnel: what it would have been told.
    unheard: Option<UnboundedReceiver<Command>>,
}

struct Known {
    device: Device,
    /// Its place in the order in which they took their host names.
    since: u64,
    shared: BTreeMap<u16, ShareId>,
    verdicts: BTreeMap<u16, Verdict>,
}

/// What becomes of a service.
pub type Verdict = Result<Ground, Objection>;

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened to it.
    pub change: Change,
    /// The device, as it is or was last.
    pub device: Device,
    /// What it is called, after the user's renames.
    pub name: String,
    /// What becomes of its services, by port.
    pub verdicts: BTreeMap<u16, Verdict>,
}

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Found,
    /// It, or what becomes of it, is another.
    Changed,
    /// It is gone.
    Lost,
}

impl Sharer {
    /// Offers by `handle` what `policy` lets it, but for what is shared `by_hand`.
    pub fn new(handle: Handle, policy: Policy, by_hand: Vec<(Host, u16)>) -> Sharer {
        Sharer {
            policy,
            handle,
            by_hand,
            devices: BTreeMap::new(),
            found: 0,
            pins: BTreeMap::new(),
            of_share: BTreeMap::new(),
            unheard: None,
        }
    }

    /// Finds out what would be shared, and offers nothing to anybody.
    pub fn outlook(policy: Policy, by_hand: Vec<(Host, u16)>) -> Sharer {
        let (handle, commands) = Handle::new(MAX_DISCOVERED);
        Sharer { unheard: Some(commands), ..Sharer::new(handle, policy, by_hand) }
    }

    /// Takes in what discovery found. Gives what is worth telling.
    pub fn handle_update(&mut self, update: Update) -> Vec<Notice> {
        let (identity, mut notices) = match update {
            Update::Found(device) | Update::Changed(device) => {
                let identity = device.identity.clone();
                if !self.devices.contains_key(&identity) && self.devices.len() >= MAX_DEVICES {
                    debug!(device = identity.as_str(), "too many devices: this one is passed over");
                    return Vec::new();
                }
                let known = self.devices.get_mut(&identity);
                let change = match known {
                    Some(known) if known.device == device => return Vec::new(),
                    Some(known) => {
                        if known.device.host != device.host {
                            known.since = self.found;
                            self.found += 1;
                        }
                        known.device = device;
                        Change::Changed
                    }
                    None => {
                        let known = Known {
                            device,
                            since: self.found,
                            shared: BTreeMap::new(),
                            verdicts: BTreeMap::new(),
                        };
                        self.found += 1;
                        self.devices.insert(identity.clone(), known);
                        Change::Found
                    }
                };
                self.apply(&identity);
                let notice = self.notice(&identity, change);
                (identity, notice.into_iter().collect::<Vec<_>>())
            }
            Update::Lost(identity) => {
                let notice = self.notice(&identity, Change::Lost);
                if let Some(known) = self.devices.remove(&identity) {
                    for share in known.shared.into_values() {
                        self.take_back(share);
                    }
                }
                (identity, notice.into_iter().collect())
            }
        };
        // What it stood in the way of.
        let held = |(other, known): (&Identity, &Known)| {
            (*other != identity && self.may_be_released(known)).then(|| other.clone())
        };
        let others: Vec<Identity> = self.devices.iter().filter_map(held).collect();
        for other in others {
            let before = self.devices.get(&other).map(|known| known.verdicts.clone());
            self.apply(&other);
            if self.devices.get(&other).map(|known| &known.verdicts) != before.as_ref() {
                notices.extend(self.notice(&other, Change::Changed));
            }
        }
        if let Some(unheard) = &mut self.unheard {
            while unheard.try_recv().is_ok() {}
        }
        notices
    }

    /// Whose offer this is.
    pub fn device_of(&self, share: ShareId) -> Option<&Identity> {
        self.of_share.get(&share)
    }

    /// Takes everything back.
    pub fn withdraw_all(&mut self) {
        for share in std::mem::take(&mut self.of_share).into_keys() {
            self.handle.withdraw(share);
        }
        self.devices.clear();
    }

    /// Something of it was held back on account of others.
    fn may_be_released(&self, known: &Known) -> bool {
        known.verdicts.values().any(|verdict| match verdict {
            Err(Objection::Host { .. } | Objection::Refused(_)) => true,
            Err(Objection::TooMany(limit)) => self.of_share.len() < *limit,
            Ok(_)
            | Err(
                Objection::NotAsked(_)
                | Objection::ThisMachine
                | Objection::Port(_)
                | Objection::Denied(_)
                | Objection::ByHand
                | Objection::Impostor(_)
                | Objection::Moved
                | Objection::NoAddress
                | Objection::Name(_),
            ) => false,
        })
    }

    /// Judges a device anew and lets the tunnel know.
    fn apply(&mut self, identity: &Identity) {
        let Some(known) = self.devices.get(identity) else { return };
        let device = known.device.clone();
        let mut shared = known.shared.clone();
        let mut verdicts = BTreeMap::new();
        let name = self.policy.name(&device).as_str().to_owned();
        let host = self.host_to_tell(&device);
        let mut kept = BTreeMap::new();
        for service in &device.services {
            let verdict = self.judge(&device, service).and_then(|(ground, adverts)| {
                let adverts = self.renamed(&device, adverts);
                let offer = offer(&device, service, &name, info(&device, host.clone(), adverts));
                let share = match shared.remove(&service.port) {
                    Some(share) => self.update(share, offer),
                    None => self.offer(offer),
                }?;
                kept.insert(service.port, share);
                self.of_share.insert(share, identity.clone());
                if let Ground::Name(_) = ground
                    && self.pins.len() < MAX_PINS
                {
                    self.pins.entry(device.name.as_str().to_lowercase()).or_insert_with(|| identity.clone());
                }
                Ok(ground)
            });
            verdicts.insert(service.port, verdict);
        }
        for share in shared.into_values() {
            self.take_back(share);
        }
        if let Some(known) = self.devices.get_mut(identity) {
            known.shared = kept;
            let before = std::mem::replace(&mut known.verdicts, verdicts);
            log(&name, known, &before);
        }
    }

    /// What the policy says, and what shows beside the others.
    fn judge(&self, device: &Device, service: &Service) -> Result<(Ground, Vec<Advert>), Objection> {
        let (ground, adverts) = self.policy.judge(device, service)?;
        let is = |host: &Host| match host {
            Host::Address(address) => device.addresses.contains(address),
            Host::Name(name) => {
                device.host.as_ref().is_some_and(|host| host.as_str().eq_ignore_ascii_case(name))
            }
        };
        if self.by_hand.iter().any(|(host, port)| *port == service.port && is(host)) {
            return Err(Objection::ByHand);
        }
        if let Ground::Name(_) = ground
            && let Some(owner) = self.pins.get(&device.name.as_str().to_lowercase())
            && *owner != device.identity
        {
            return Err(Objection::Name(owner.clone()));
        }
        if let Some(host) = &device.host
            && let Some(owner) = self.host_owner(device, host)
        {
            return Err(Objection::Host { host: host.clone(), of: owner.name.clone() });
        }
        Ok((ground, adverts))
    }

    /// Who has this host name, if `device` is elsewhere: whoever was the first to have it.
    fn host_owner(&self, device: &Device, host: &HostName) -> Option<&Device> {
        let has = |known: &&Known| {
            let theirs = known.device.host.as_ref();
            theirs.is_some_and(|theirs| theirs.as_str().eq_ignore_ascii_case(host.as_str()))
                && !known.device.addresses.is_empty()
        };
        let owner = self.devices.values().filter(has).min_by_key(|known| known.since)?;
        (owner.device.identity != device.identity && !share_address(&owner.device, device))
            .then_some(&owner.device)
    }

    /// The host name that the guest's DNS gives an address: one of multicast DNS, or of a domain that the user chose. Any other could
    /// be a name of the internet.
    fn host_to_tell(&self, device: &Device) -> Option<HostName> {
        let host = device.host.as_ref()?;
        let first = host.labels().next().unwrap_or_default();
        // Names by which machines look for their configuration.
        let trap = ["wpad", "isatap", "localhost"].iter().any(|trap| first.eq_ignore_ascii_case(trap));
        let under = |domain: &HostName| {
            let (host, domain) = (host.as_str().to_lowercase(), domain.as_str().to_lowercase());
            host.strip_suffix(&domain).is_some_and(|own| own.ends_with('.'))
        };
        let good = host.is_local() || self.policy.domains.iter().any(under);
        (good && !trap).then(|| host.clone())
    }

    /// The adverts, under the name that the user gave the device.
    fn renamed(&self, device: &Device, mut adverts: Vec<Advert>) -> Vec<Advert> {
        let name = self.policy.name(device);
        if *name == device.name {
            return adverts;
        }
        // Two of one type cannot have one name: only those that are called like the device are.
        let mut given = BTreeSet::new();
        for advert in &mut adverts {
            if same(advert.instance.as_str(), device.name.as_str()) && given.insert(advert.kind.clone()) {
                advert.instance = name.clone();
            }
        }
        adverts
    }

    fn offer(&self, offer: Offer) -> Result<ShareId, Objection> {
        if self.of_share.len() >= MAX_DISCOVERED {
            return Err(Objection::TooMany(MAX_DISCOVERED));
        }
        self.handle.offer(offer).map_err(|error| Objection::Refused(error.to_string()))
    }

    fn update(&mut self, share: ShareId, offer: Offer) -> Result<ShareId, Objection> {
        match self.handle.update_offer(share, offer.info, offer.addresses) {
            Ok(_) => Ok(share),
            Err(error) => {
                self.take_back(share);
                Err(Objection::Refused(error.to_string()))
            }
        }
    }

    fn take_back(&mut self, share: ShareId) {
        self.of_share.remove(&share);
        self.handle.withdraw(share);
    }

    fn notice(&self, identity: &Identity, change: Change) -> Option<Notice> {
        let known = self.devices.get(identity)?;
        let (device, verdicts) = (known.device.clone(), known.verdicts.clone());
        let name = self.policy.name(&device).as_str().to_owned();
        Some(Notice { change, device, name, verdicts })
    }
}

/// Why something is held back that looks as if it were allowed is worth a warning; the rest is what the user wanted.
fn log(name: &str, known: &Known, before: &BTreeMap<u16, Verdict>) {
    for (port, verdict) in &known.verdicts {
        if before.get(port) == Some(verdict) {
            continue;
        }
        let identity = known.device.identity.as_str();
        match verdict {
            Ok(ground) => info!(name, port, identity, why = %ground, "shared"),
            Err(
                objection @ (Objection::NotAsked(_)
                | Objection::ThisMachine
                | Objection::Denied(_)
                | Objection::ByHand
                | Objection::NoAddress),
            ) => debug!(name, port, identity, why = %objection, "not shared"),
            Err(
                objection @ (Objection::Port(_)
                | Objection::Impostor(_)
                | Objection::Moved
                | Objection::Host { .. }
                | Objection::Name(_)
                | Objection::TooMany(_)
                | Objection::Refused(_)),
            ) => warn!(name, port, identity, why = %objection, "held back"),
        }
    }
}

fn share_address(one: &Device, other: &Device) -> bool {
    one.addresses.iter().any(|address| other.addresses.contains(address))
}

fn offer(device: &Device, service: &Service, name: &str, info: ServiceInfo) -> Offer {
    let host = device.host.as_ref().and_then(|host| host.as_str().parse().ok());
    let first = device.addresses.first().map(|address| Host::Address(*address));
    let host = host.or(first).unwrap_or(Host::Name("device.invalid".to_owned()));
    let mut share = Share::new(host, service.port);
    name.clone_into(&mut share.name);
    share.http_host.clone_from(&service.host_rewrite);
    let reach = if device.this_machine { Reach::ThisMachine } else { Reach::Elsewhere };
    let addresses = device.addresses.clone();
    Offer { reach, ..Offer::device(share, device.identity.clone(), Some(info), addresses) }
}

/// What is told of a service: as much of it as fits.
fn info(device: &Device, host: Option<HostName>, mut adverts: Vec<Advert>) -> ServiceInfo {
    loop {
        match ServiceInfo::new(Some(device.identity.clone()), host.clone(), adverts.clone()) {
            Ok(info) => return info,
            Err(_) if adverts.pop().is_some() => {}
            Err(_) => return ServiceInfo::default(),
        }
    }
}

#[cfg(test)]
mod tests;
