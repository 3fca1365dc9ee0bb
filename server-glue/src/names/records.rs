//! DNS records made of the [`zone`](super::zone): for multicast DNS under `local`, for unicast DNS under the domain that DHCP gives.
//!
//! All of them are built here, from typed data: names of hosts and their addresses, DNS-SD (RFC 6763), and the way back from an address to
//! its name. What is asked for is looked up; nothing of a question gets into an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;

use hickory_proto::rr::rdata::{A, NULL, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use spice_proto::service_info::{Label, ServiceType, Txt};

use super::zone::{Instance, LOCAL, Zone};

/// Seconds for which what names a host may be kept (RFC 6762, section 10).
pub(crate) const HOST_TTL: u32 = 120;
/// Seconds for everything else.
pub(crate) const OTHER_TTL: u32 = 4500;

/// For whom records are made.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// All names end in it, but those of addresses.
    domain: Name,
    /// What the target of an SRV record ends in: always `local`, see the zone's text.
    targets: Name,
    multicast: bool,
}

impl Origin {
    /// Multicast DNS: `local`, described devices only, and NSEC where nothing else is.
    pub(crate) fn multicast() -> Origin {
        Origin { domain: local(), targets: local(), multicast: true }
    }

    /// Unicast DNS under `domain`, which may be `local`: every device has a name.
    pub(crate) fn unicast(domain: Name) -> Origin {
        Origin { domain, targets: local(), multicast: false }
    }
}

/// `local.`
pub(crate) fn local() -> Name {
    name(["local"], &Name::root()).unwrap_or_default()
}

/// A record, and whether others may have one of its name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// Nobody else has records of this name and type (RFC 6762, section 2).
    pub(crate) unique: bool,
    /// The name of the zone that it is about.
    pub(crate) owner: Owner,
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// This host.
    Host(IpAddr),
    /// This instance.
    Instance(SocketAddr, ServiceType, Label),
    /// This type: that there are instances of it.
    Kind(ServiceType),
}

/// What is known under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// These, never none.
    Records(Vec<&'a Record>),
    /// The name exists, but has nothing of the type.
    NoData,
    /// No such name.
    NoSuchName,
}

/// All records of one origin, as of one generation of the zone.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// In DNSSEC's order: what is under a name comes next to it.
    by_name: BTreeMap<Name, Vec<Entry>>,
}

impl Records {
    /// Everything that the zone says.
    pub(crate) fn of(zone: &Zone, origin: &Origin) -> Records {
        let mut records = Records::default();
        for (address, host) in zone.hosts() {
            if !origin.multicast || host.is_described() {
                records.add_host(origin, address, host.name());
            }
        }
        let mut kinds = BTreeSet::new();
        for (at, service) in zone.services() {
            let Some(host) = zone.host(at.ip()) else { continue };
            let Some(target) = name(host.name().split('.'), &origin.targets) else { continue };
            let renamed = service.local_name().filter(|own| !own.eq_ignore_ascii_case(host.name()));
            let renamed = renamed.map(|own| (own, host.name()));
            for instance in service.instances() {
                records.add_instance(origin, at, instance, &target, renamed);
                kinds.insert(instance.kind());
            }
        }
        for kind in kinds {
            records.add_kind(origin, kind);
        }
        records
    }

    /// What there is under a name of a type; `ANY` for all types.
    pub(crate) fn lookup(&self, name: &Name, kind: RecordType) -> Found<'_> {
        let found: Vec<&Record> = self
            .at(name)
            .iter()
            .map(|entry| &entry.record)
            .filter(|record| kind == RecordType::ANY || record.record_type() == kind)
            .collect();
        if !found.is_empty() {
            Found::Records(found)
        } else if self.exists(name) {
            Found::NoData
        } else {
            Found::NoSuchName
        }
    }

    /// Everything under exactly this name.
    pub(crate) fn at(&self, name: &Name) -> &[Entry] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether there is something under this name, or under one that ends in it.
    pub(crate) fn exists(&self, name: &Name) -> bool {
        let from = (Bound::Included(name), Bound::Unbounded);
        self.by_name.range::<Name, _>(from).next().is_some_and(|(next, _)| name.zone_of(next))
    }

    /// All names with what is under them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &[Entry])> {
        self.by_name.iter().map(|(name, entries)| (name, entries.as_slice()))
    }

    /// What who is told of `record` asks next (RFC 6763, section 12): for a type's PTR record the instance's SRV and TXT records, for an SRV record its
    /// target's address.
    pub(crate) fn additional(&self, record: &Record) -> Vec<&Entry> {
        let next = match record_target(record) {
            Some(target) => self.at(target),
            None => return Vec::new(),
        };
        let wanted: &[RecordType] = if record.record_type() == RecordType::PTR {
            &[RecordType::SRV, RecordType::TXT]
        } else {
            &[RecordType::A, RecordType::AAAA, RecordType::NSEC]
        };
        next.iter().filter(|entry| wanted.contains(&entry.record.record_type())).collect()
    }

    fn add_host(&mut self, origin: &Origin, address: IpAddr, host: &str) {
        let Some(host) = name(host.split('.'), &origin.domain) else { return };
        let owner = Owner::Host(address);
        // Only IPv4 is answered on the virtual network.
        if let IpAddr::V4(v4) = address {
            self.add(&owner, true, Record::from_rdata(host.clone(), HOST_TTL, RData::A(A(v4))));
        }
        self.deny(origin, &owner, &host, &[RecordType::A]);
        let back = reverse(address);
        self.add(&owner, true, Record::from_rdata(back.clone(), HOST_TTL, RData::PTR(PTR(host))));
        self.deny(origin, &owner, &back, &[RecordType::PTR]);
    }

    /// Of a host that has another name here than at home, if it is `renamed`.
    fn add_instance(
        &mut self,
        origin: &Origin,
        at: SocketAddr,
        instance: &Instance,
        target: &Name,
        renamed: Option<(&str, &str)>,
    ) {
        let Some(kind) = name(instance.kind().as_str().split('.'), &origin.domain) else { return };
        let Some(full) = name([instance.name().as_str()], &kind) else { return };
        let owner = Owner::Instance(at, instance.kind().clone(), instance.name().clone());
        let srv = SRV::new(0, 0, instance.port(at.port()), target.clone());
        self.add(&owner, true, Record::from_rdata(full.clone(), HOST_TTL, RData::SRV(srv)));
        self.add(
            &owner,
            true,
            Record::from_rdata(full.clone(), OTHER_TTL, RData::TXT(txt(instance.txt(), renamed))),
        );
        self.deny(origin, &owner, &full, &[RecordType::TXT, RecordType::SRV]);
        let mut parents = vec![kind.clone()];
        for subtype in instance.subtypes() {
            if let Some(parent) = name([subtype.as_str(), "_sub"], &kind)
                && !parents.contains(&parent)
            {
                parents.push(parent);
            }
        }
        for parent in parents {
            let record = Record::from_rdata(parent, OTHER_TTL, RData::PTR(PTR(full.clone())));
            self.add(&owner, false, record);
        }
    }

    /// That there are instances of a type (RFC 6763, section 9).
    fn add_kind(&mut self, origin: &Origin, kind: &ServiceType) {
        let owner = Owner::Kind(kind.clone());
        let types = name(["_services", "_dns-sd", "_udp"], &origin.domain);
        if let (Some(types), Some(kind)) = (types, name(kind.as_str().split('.'), &origin.domain)) {
            self.add(&owner, false, Record::from_rdata(types, OTHER_TTL, RData::PTR(PTR(kind))));
        }
    }

    /// An NSEC record: under this name there is nothing but these types (RFC 6762, section 6.1). Unicast DNS says so without one.
    fn deny(&mut self, origin: &Origin, owner: &Owner, name: &Name, types: &[RecordType]) {
        if origin.multicast {
            let rdata = NULL::with(nsec(name, types));
            let data = RData::Unknown { code: RecordType::NSEC, rdata };
            self.add(owner, true, Record::from_rdata(name.clone(), HOST_TTL, data));
        }
    }

    fn add(&mut self, owner: &Owner, unique: bool, record: Record) {
        let entry = Entry { record, unique, owner: owner.clone() };
        self.by_name.entry(entry.record.name.clone()).or_default().push(entry);
    }
}

/// The name that a record leads to.
fn record_target(record: &Record) -> Option<&Name> {
    if let RData::PTR(PTR(target)) = &record.data {
        Some(target)
    } else if let RData::SRV(srv) = &record.data {
        Some(&srv.target)
    } else {
        None
    }
}

/// The name of an address: `1.0.18.198.in-addr.arpa.`
pub(crate) fn reverse(address: IpAddr) -> Name {
    Name::from(address)
}

/// `None`: too long for DNS.
pub(crate) fn name<'a>(labels: impl IntoIterator<Item = &'a str>, domain: &Name) -> Option<Name> {
    // As bytes: a label is taken as it is, not put into Punycode.
    let name = Name::from_labels(labels.into_iter().map(str::as_bytes)).ok()?;
    name.append_domain(domain).ok().filter(|name| name.len() < 255)
}

/// Links to the host go where its name goes: by the old one they would lead to whoever has that here.
fn txt(txt: &Txt, renamed: Option<(&str, &str)>) -> TXT {
    let value = |value: &str| renamed.and_then(|(from, to)| relink(value, from, to));
    let strings: Vec<String> = txt
        .entries()
        .map(|(key, given)| {
            given.map_or_else(
                || key.to_owned(),
                |given| format!("{key}={}", value(given).as_deref().unwrap_or(given)),
            )
        })
        .filter(|entry| entry.len() <= usize::from(u8::MAX))
        .collect();
    // No record is empty (RFC 6763, section 6.1).
    TXT::new(if strings.is_empty() { vec![String::new()] } else { strings })
}

/// A link to `from.local` as one to `to.local`; `None`: it is none.
fn relink(value: &str, from: &str, to: &str) -> Option<String> {
    let (scheme, rest) = value.split_once("://")?;
    let (host, rest) = rest.split_at(rest.find([':', '/', '?', '#']).unwrap_or(rest.len()));
    let own = host.get(..host.len().checked_sub(LOCAL.len())?)?;
    let is_own = own.eq_ignore_ascii_case(from) && host.get(own.len()..)?.eq_ignore_ascii_case(LOCAL);
    is_own.then(|| format!("{scheme}://{to}{LOCAL}{rest}"))
}

/// The data of an NSEC record in multicast DNS' restricted form: its own name, and one block of types below 256.
fn nsec(name: &Name, types: &[RecordType]) -> Vec<u8> {
    let mut data = Vec::new();
    for label in name {
        data.push(u8::try_from(label.len()).unwrap_or_default());
        data.extend_from_slice(label);
    }
    data.push(0);
    let mut bitmap: Vec<u8> = Vec::new();
    for kind in types {
        let number = u16::from(*kind);
        let byte = usize::from(number / 8);
        if bitmap.len() <= byte {
            bitmap.resize(byte + 1, 0);
        }
        if let Some(byte) = bitmap.get_mut(byte) {
            *byte |= 0x80 >> (number % 8);
        }
    }
    data.push(0);
    data.push(u8::try_from(bitmap.len()).unwrap_or_default());
    data.extend_from_slice(&bitmap);
    data
}

#[cfg(test)]
mod tests;
