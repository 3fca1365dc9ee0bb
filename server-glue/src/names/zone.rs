//! Who is called what: the devices and services of the virtual network, and the names they have there.
//!
//! # Theory of operation
//!
//! What comes in is typed: an address and port, the device's name, and what the service says of itself. What comes out are names
//! that no two of them share:
//!
//! * A *host* is an address. It is called what its device is called on the user's side, if that is a `.local` name, since a printer refuses
//!   requests for a host that it does not know; else a name made of the device's. Who claims a name that another address has gets a
//!   numbered one: `printer-2`.
//! * An *instance* is one advert of one service. Its name is the advertised one, or a numbered one ("Printer (2)") where another device has
//!   that, of whatever type, or the same type has it twice. So all adverts of a device keep one name, by which CUPS takes them for one
//!   printer.
//!
//! Who has a name keeps it for as long as it is published, also if the one who had the better name leaves. Numbers also part us from a guest that
//! has one of the names: [`Zone::rename_host`], [`Zone::rename_instance`].
//!
//! Nothing is reflected: DNS data is made of this by [`records`](super::records).
//!
//! # Bounds
//!
//! At most [`MAX_INSTANCES`] are named, and hosts are no more than addresses published; what is beyond is reachable, but not advertised.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use spice_proto::service_info::{
    Advert, HostName, Label, MAX_HOST, MAX_LABEL, ServiceInfo, ServiceType, Txt,
};

/// Most instances that are named.
pub(crate) const MAX_INSTANCES: usize = 1024;

/// Host names that a device must not have by itself, whatever it is called at home: programs look them up unasked and trust who has
/// them (WPAD hands a browser its proxy), or they mean something else everywhere.
const RESERVED_HOSTS: [&str; 6] = ["localhost", "local", "wpad", "isatap", "broadcasthost", "gateway"];

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    services: BTreeMap<SocketAddr, Service>,
    /// INVARIANT: has exactly the addresses of `services`.
    hosts: BTreeMap<IpAddr, Host>,
    /// Host names in lower case. INVARIANT: the mirror image of `hosts`.
    by_host: HashMap<String, IpAddr>,
    instances: usize,
    /// How many services were ever published.
    published: u64,
    generation: u64,
}

/// An address and what it is called.
#[derive(Debug)]
pub(crate) struct Host {
    /// What it wants to be called, without a domain.
    base: String,
    /// Counts from 1, which is `base` itself.
    number: u32,
    name: String,
    /// One of its services has described itself.
    described: bool,
}

impl Host {
    /// Its name without a domain: one label or more, with dots between them.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether multicast DNS tells of it: a service that said nothing of itself is not advertised.
    pub(crate) fn is_described(&self) -> bool {
        self.described
    }
}

/// What is published at an address and port.
#[derive(Debug)]
pub(crate) struct Service {
    /// Which of those published it is.
    number: u64,
    device: String,
    info: Option<ServiceInfo>,
    instances: Vec<Instance>,
}

impl Service {
    /// As which it is advertised.
    pub(crate) fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// Which of those published it is: the first has the smallest number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// What its host is called by multicast DNS on the user's side, without the domain.
    pub(crate) fn local_name(&self) -> Option<&str> {
        let host = self.info.as_ref()?.host().filter(|host| host.is_local())?.as_str();
        host.get(..host.len() - LOCAL.len())
    }

    /// What its device is called on the user's side, where that may be a name of unicast DNS: what it says of itself, or, of one that says
    /// nothing, what its user called it. A device that was found has the latter from the network, so it does not count then.
    pub(crate) fn host_at_home(&self) -> Option<&str> {
        match &self.info {
            Some(info) => info.host().filter(|host| !host.is_local()).map(HostName::as_str),
            None => Some(&self.device),
        }
    }
}

/// One advert, with the name it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    advert: Advert,
    number: u32,
    name: Label,
    /// It only keeps others from taking its name.
    placeholder: bool,
}

impl Instance {
    /// Its name among those of its type.
    pub(crate) fn name(&self) -> &Label {
        &self.name
    }

    /// Its type.
    pub(crate) fn kind(&self) -> &ServiceType {
        &self.advert.kind
    }

    /// Subtypes of its type, of which it is one.
    pub(crate) fn subtypes(&self) -> &[Label] {
        &self.advert.subtypes
    }

    /// More about it.
    pub(crate) fn txt(&self) -> &Txt {
        &self.advert.txt
    }

    /// The port of its SRV record. A printer that does not speak LPD, but IPP, still has the LPD service's name, at port 0: so all
    /// printing services of all printers are named in one place (Bonjour Printing 1.2.1, "flagship naming"). Such an advert comes with
    /// a service that is not LPD's, and says nothing in its TXT record.
    pub(crate) fn port(&self, service: u16) -> u16 {
        if self.placeholder { 0 } else { service }
    }
}

impl Zone {
    /// Nothing.
    pub(crate) fn new() -> Zone {
        Zone::default()
    }

    // Getters.

    /// Another one after each change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether something is published at this address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.hosts.contains_key(&address)
    }

    /// All addresses with their names.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (IpAddr, &Host)> {
        self.hosts.iter().map(|(address, host)| (*address, host))
    }

    /// The name of an address.
    pub(crate) fn host(&self, address: IpAddr) -> Option<&Host> {
        self.hosts.get(&address)
    }

    /// The address of a name, which is given without a domain.
    pub(crate) fn address_of(&self, host: &str) -> Option<IpAddr> {
        self.by_host.get(&host.to_ascii_lowercase()).copied()
    }

    /// All services, those of an address next to each other.
    pub(crate) fn services(&self) -> impl Iterator<Item = (SocketAddr, &Service)> {
        self.services.iter().map(|(at, service)| (*at, service))
    }

    // Commands.

    /// A service of a device is here now, or says something new of itself. Names that it has it keeps.
    pub(crate) fn publish(&mut self, at: SocketAddr, device: &str, info: Option<&ServiceInfo>) {
        if let Some(known) = self.services.get(&at)
            && known.device == device
            && known.info.as_ref() == info
        {
            return;
        }
        let before = self.services.remove(&at);
        let number = before.as_ref().map_or(self.published, |before| before.number);
        let old = before.map(|before| before.instances).unwrap_or_default();
        self.published += 1;
        self.instances = self.instances.saturating_sub(old.len());
        let adverts = info.map(ServiceInfo::adverts).unwrap_or_default();
        let service =
            Service { number, device: device.to_owned(), info: info.cloned(), instances: Vec::new() };
        self.services.insert(at, service);
        // Names that are kept come before those that are chosen.
        let (kept, new): (Vec<&Advert>, Vec<&Advert>) =
            adverts.iter().partition(|advert| old.iter().any(|instance| is_alike(&instance.advert, advert)));
        for advert in kept.into_iter().chain(new) {
            let instance = self.named(at, advert, adverts, &old);
            if self.instances < MAX_INSTANCES
                && let (Some(instance), Some(service)) = (instance, self.services.get_mut(&at))
            {
                service.instances.push(instance);
                self.instances += 1;
            }
        }
        self.name_host(at.ip());
        self.generation += 1;
    }

    /// A service is gone, and its names are free.
    pub(crate) fn withdraw(&mut self, at: SocketAddr) {
        let Some(service) = self.services.remove(&at) else { return };
        self.instances = self.instances.saturating_sub(service.instances.len());
        self.name_host(at.ip());
        self.generation += 1;
    }

    /// Somebody else has the name of this host: it gets the next one.
    pub(crate) fn rename_host(&mut self, address: IpAddr) {
        let Some(host) = self.hosts.get(&address) else { return };
        let (base, next) = (host.base.clone(), host.number.saturating_add(1));
        self.call_host(address, base, next);
        self.generation += 1;
    }

    /// Somebody else has the name of this instance: it gets the next one. Its siblings keep theirs, until they lose them, too.
    pub(crate) fn rename_instance(&mut self, at: SocketAddr, kind: &ServiceType, name: &Label) {
        let position = |instance: &Instance| instance.kind() == kind && instance.name() == name;
        let Some(service) = self.services.get(&at) else { return };
        let Some(index) = service.instances.iter().position(position) else { return };
        let Some(lost) = service.instances.get(index).cloned() else { return };
        let first = lost.number.saturating_add(1);
        // A sibling that had to give way before has shown which name is free.
        let (number, name) = self.free_instance(at, &lost.advert, first);
        if let Some(service) = self.services.get_mut(&at)
            && let Some(instance) = service.instances.get_mut(index)
        {
            (instance.number, instance.name) = (number, name);
        }
        self.generation += 1;
    }

    // Names of instances.

    /// `None`: there is one of the same type and name at this very service, which says all that there is to say.
    fn named(
        &self,
        at: SocketAddr,
        advert: &Advert,
        adverts: &[Advert],
        old: &[Instance],
    ) -> Option<Instance> {
        let here = self.services.get(&at).map(Service::instances).unwrap_or_default();
        if here.iter().any(|instance| is_alike(&instance.advert, advert)) {
            return None;
        }
        let placeholder = advert.kind.as_str() == "_printer._tcp"
            && advert.txt.is_empty()
            && adverts.iter().any(|other| {
                matches!(other.kind.as_str(), "_ipp._tcp" | "_ipps._tcp" | "_pdl-datastream._tcp")
            });
        let (number, name) = match old.iter().find(|instance| is_alike(&instance.advert, advert)) {
            Some(known) => (known.number, known.name.clone()),
            None => self.free_instance(at, advert, 1),
        };
        Some(Instance { advert: advert.clone(), number, name, placeholder })
    }

    /// The first free name from number `first` on, or the one that a sibling of the same base has.
    fn free_instance(&self, at: SocketAddr, advert: &Advert, first: u32) -> (u32, Label) {
        let base = advert.instance.as_str();
        // Names that are not free: those of other devices, and those of this one's own that have the type.
        let mut taken = BTreeSet::new();
        let mut siblings = BTreeSet::new();
        for (other, service) in &self.services {
            for instance in &service.instances {
                let name = instance.name.as_str().to_ascii_lowercase();
                if other.ip() == at.ip() && instance.advert.kind != advert.kind {
                    if is_same(instance.advert.instance.as_str(), base) {
                        siblings.insert((instance.number, name));
                    }
                } else {
                    taken.insert(name);
                }
            }
        }
        let sibling = siblings.iter().find(|(number, name)| *number >= first && !taken.contains(name));
        let start = sibling.map_or(first, |(number, _)| *number);
        for number in start.. {
            let name = numbered_instance(base, number);
            if !taken.contains(&name.to_ascii_lowercase())
                && let Ok(label) = Label::new(&name)
            {
                return (number, label);
            }
        }
        (first, advert.instance.clone())
    }

    // Names of hosts.

    /// Names an address after its services, or forgets it with the last of them.
    fn name_host(&mut self, address: IpAddr) {
        let Some(base) = self.base_of(address) else {
            if let Some(host) = self.hosts.remove(&address) {
                self.by_host.remove(&host.name.to_ascii_lowercase());
            }
            return;
        };
        if self.hosts.get(&address).is_none_or(|host| !is_same(&host.base, &base)) {
            self.call_host(address, base, 1);
        }
        let described = self.at(address).any(|service| service.info.is_some());
        if let Some(host) = self.hosts.get_mut(&address) {
            host.described = described;
        }
    }

    fn call_host(&mut self, address: IpAddr, base: String, first: u32) {
        let described = match self.hosts.remove(&address) {
            Some(host) => {
                self.by_host.remove(&host.name.to_ascii_lowercase());
                host.described
            }
            None => false,
        };
        for number in first.. {
            let name = numbered_host(&base, number);
            let lower = name.to_ascii_lowercase();
            if RESERVED_HOSTS.contains(&lower.as_str()) || self.by_host.contains_key(&lower) {
                continue;
            }
            self.by_host.insert(lower, address);
            self.hosts.insert(address, Host { base, number, name, described });
            return;
        }
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let range = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        self.services.range(range).map(|(_, service)| service)
    }

    /// What the device at `address` wants to be called: the first of its services that knows decides.
    fn base_of(&self, address: IpAddr) -> Option<String> {
        let own = |service: &Service| {
            // Room for a number, and for a domain. An underscore in front is for services' names, which are nobody's.
            let fits = |name: &&str| {
                name.len() <= MAX_HOST / 2 && !name.split('.').any(|label| label.starts_with('_'))
            };
            service.local_name().filter(fits).map(str::to_owned)
        };
        let told = self.at(address).filter_map(|service| Some((service.number, own(service)?))).min();
        let made = || self.at(address).map(|service| (service.number, host_label(&service.device))).min();
        told.or_else(made).map(|(_, name)| name)
    }
}

pub(super) const LOCAL: &str = ".local";

/// DNS compares names so (RFC 4343; RFC 6762, section 16).
fn is_same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Whether they are adverts of one instance.
fn is_alike(one: &Advert, other: &Advert) -> bool {
    one.kind == other.kind && is_same(one.instance.as_str(), other.instance.as_str())
}

/// A host's name made of a device's: letters, digits, and hyphens for everything else.
pub(crate) fn host_label(device: &str) -> String {
    let mut label = String::new();
    for c in device.chars() {
        if label.len() == MAX_LABEL {
            break;
        }
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "device".to_owned() } else { label.to_owned() }
}

/// `printer`, `printer-2`, `printer-3`, …; of several labels the first is numbered.
fn numbered_host(base: &str, number: u32) -> String {
    if number <= 1 {
        return base.to_owned();
    }
    let (first, rest) = base.split_at(base.find('.').unwrap_or(base.len()));
    let suffix = format!("-{number}");
    format!("{}{suffix}{rest}", cut(first, MAX_LABEL - suffix.len()))
}

/// `Printer`, `Printer (2)`, `Printer (3)`, … (RFC 6763, appendix D).
fn numbered_instance(base: &str, number: u32) -> String {
    if number <= 1 {
        return base.to_owned();
    }
    let suffix = format!(" ({number})");
    format!("{}{suffix}", cut(base, MAX_LABEL - suffix.len()))
}

/// At most so many bytes of it, whole characters.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
