//! What is answered without asking anybody: the virtual network's domain, the tree of its addresses, and hosts by the names that they
//! have at home.
//!
//! Unicast DNS has no goodbye, so all that is said here is good for a minute only, and that there is nothing, for ten seconds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::rdata::{A, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::message::Question;
use super::{dotted, pointer};
use crate::address::Subnet;
use crate::domain::{self, Domain, is_under};
use crate::names::records::{Found, Origin, Owner, Records, name, reverse};
use crate::names::zone::Zone;

/// Seconds for which what there is may be kept.
const TTL: u32 = 60;
/// Seconds for which may be kept that there is nothing.
pub(super) const NEGATIVE_TTL: u32 = 10;

/// The host name of the gateway in its domain. No device gets it.
const GATEWAY: &str = "gateway";

/// What is known of a name.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Where the authority over it begins.
    pub(super) apex: Name,
    pub(super) exists: bool,
    pub(super) answers: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Part {
    pub(super) fn records(apex: Name, answers: Vec<Record>) -> Part {
        Part { apex, exists: true, answers, additionals: Vec::new() }
    }

    pub(super) fn no_data(apex: Name) -> Part {
        Part::records(apex, Vec::new())
    }

    pub(super) fn no_such_name(apex: Name) -> Part {
        Part { exists: false, ..Part::no_data(apex) }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Own {
    domain: Name,
    gateway: Ipv4Addr,
    subnet: Subnet,
    /// The zone's, as of `generation`.
    records: Records,
    /// Names at home of what is published, in lower case.
    hosts: BTreeMap<String, IpAddr>,
    generation: Option<u64>,
}

impl Own {
    pub(super) fn new(domain: &Domain, gateway: Ipv4Addr, subnet: Subnet) -> Own {
        Own {
            // A domain has been checked.
            domain: name(domain.as_str().split('.'), &Name::root()).unwrap_or_default(),
            gateway,
            subnet,
            records: Records::default(),
            hosts: BTreeMap::new(),
            generation: None,
        }
    }

    /// Takes over what has changed in the zone.
    pub(super) fn refresh(&mut self, zone: &Zone) {
        if self.generation == Some(zone.generation()) {
            return;
        }
        self.generation = Some(zone.generation());
        self.records = Records::of(zone, &Origin::unicast(self.domain.clone()));
        self.hosts.clear();
        let mut told: Vec<_> = zone
            .services()
            .filter_map(|(at, service)| Some((service.number(), service.host_at_home()?, at.ip())))
            .collect();
        // Who was there first has the name.
        told.sort_unstable();
        let own = dotted(&self.domain).unwrap_or_default();
        for (_, host, address) in told {
            let host = host.to_ascii_lowercase();
            if is_unicast_host(&host) && !is_under(&host, &own) {
                self.hosts.entry(host).or_insert(address);
            }
        }
    }

    /// What is known of what is asked. `None`: it is not ours to know. `aliases` are more names of an address.
    pub(super) fn find<'a>(
        &self,
        zone: &Zone,
        question: &Question,
        aliases: impl FnOnce(IpAddr) -> Vec<&'a str>,
    ) -> Option<Part> {
        if self.domain.zone_of(&question.name) {
            return Some(self.in_domain(zone, question));
        }
        let labels: Vec<String> = question.name.iter().rev().map(lower).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            ["arpa", "in-addr", rest @ ..] => self.in_reverse(zone, question, rest, aliases),
            ["local", host] => {
                let address = zone.address_of(host)?;
                zone.host(address)?.is_described().then(|| self.address(question, address))
            }
            _ => {
                let address = self.hosts.get(&dotted(&question.name)?)?;
                Some(self.address(question, *address))
            }
        }
    }

    /// Begins an authority.
    pub(super) fn soa(&self, apex: Name) -> Record {
        let serial = u32::try_from(self.generation.unwrap_or(0) & 0x7fff_ffff).unwrap_or(0);
        let by = self.below(["hostmaster"]);
        let soa = SOA::new(self.server(), by, serial.max(1), 3600, 600, 86_400, NEGATIVE_TTL);
        Record::from_rdata(apex, TTL, RData::SOA(soa))
    }

    /// Who answers for it.
    pub(super) fn ns(&self, apex: Name) -> Record {
        Record::from_rdata(apex, TTL, RData::NS(NS(self.server())))
    }

    fn server(&self) -> Name {
        self.below([GATEWAY])
    }

    fn below<'a>(&self, labels: impl IntoIterator<Item = &'a str>) -> Name {
        // Room for it is kept in the length of a domain.
        name(labels, &self.domain).unwrap_or_else(|| self.domain.clone())
    }

    /// A host that is an authority of its own.
    fn address(&self, question: &Question, address: IpAddr) -> Part {
        let apex = question.name.clone();
        let server = self.server();
        match (question.kind, address) {
            (RecordType::A | RecordType::ANY, IpAddr::V4(address)) => {
                Part::records(apex.clone(), vec![Record::from_rdata(apex, TTL, RData::A(A(address)))])
            }
            (RecordType::SOA, _) => Part::records(apex.clone(), vec![self.soa(apex)]),
            (RecordType::NS, _) => {
                Part::records(apex.clone(), vec![Record::from_rdata(apex, TTL, RData::NS(NS(server)))])
            }
            _ => Part::no_data(apex),
        }
    }

    // The domain.

    fn in_domain(&self, zone: &Zone, question: &Question) -> Part {
        let apex = self.domain.clone();
        let wanted = |record: &Record| is_wanted(question.kind, record);
        if let Some(records) = self.built_in(&question.name) {
            return Part::records(apex, records.into_iter().filter(wanted).collect());
        }
        match self.records.lookup(&question.name, question.kind) {
            Found::Records(found) => {
                let answers: Vec<Record> = found.into_iter().map(brief).collect();
                let additionals = self.additional(zone, &answers);
                Part { additionals, ..Part::records(apex, answers) }
            }
            Found::NoData => Part::no_data(apex),
            Found::NoSuchName => Part::no_such_name(apex),
        }
    }

    /// What there is in any case, of all types; `None`: nothing.
    fn built_in(&self, name: &Name) -> Option<Vec<Record>> {
        let below = usize::from(name.num_labels().saturating_sub(self.domain.num_labels()));
        let labels: Vec<String> = name.iter().take(below).map(lower).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => Some(vec![self.soa(name.clone()), self.ns(name.clone())]),
            [GATEWAY] => Some(vec![Record::from_rdata(name.clone(), TTL, RData::A(A(self.gateway)))]),
            // While no type is known.
            ["_services", "_dns-sd", "_udp"] if !self.records.exists(name) => Some(Vec::new()),
            labels => self.browsing(name, labels),
        }
    }

    /// RFC 6763, section 11: where to browse, and that nothing can be registered.
    fn browsing(&self, name: &Name, labels: &[&str]) -> Option<Vec<Record>> {
        match labels {
            ["b" | "db" | "lb", "_dns-sd", "_udp"] => {
                Some(vec![pointer(name.clone(), self.domain.clone(), TTL)])
            }
            ["r" | "dr", "_dns-sd", "_udp"] | ["_dns-sd", "_udp"] | ["_udp"] => Some(Vec::new()),
            _ => None,
        }
    }

    /// RFC 6763, section 12: what who browses asks next, as far as it fits.
    fn additional(&self, zone: &Zone, answers: &[Record]) -> Vec<Record> {
        let mut more: Vec<Record> = Vec::new();
        let mut add = |record: Record| {
            if !more.contains(&record) {
                more.push(record);
            }
        };
        let targets = |full: &Name, add: &mut dyn FnMut(Record)| {
            for entry in self.records.at(full) {
                if let (RData::SRV(srv), Owner::Instance(at, ..)) = (&entry.record.data, &entry.owner)
                    && zone.has(at.ip())
                    && let IpAddr::V4(address) = at.ip()
                {
                    add(Record::from_rdata(srv.target.clone(), TTL, RData::A(A(address))));
                }
            }
        };
        for answer in answers {
            for entry in self.records.additional(answer) {
                add(brief(&entry.record));
            }
            if let RData::PTR(to) = &answer.data {
                targets(&to.0, &mut add);
            } else if let RData::SRV(_) = &answer.data {
                targets(&answer.name, &mut add);
            }
        }
        more
    }

    // The tree of addresses.

    /// `labels` are those below `in-addr.arpa`, the first octet in front.
    fn in_reverse<'a>(
        &self,
        zone: &Zone,
        question: &Question,
        labels: &[&str],
        aliases: impl FnOnce(IpAddr) -> Vec<&'a str>,
    ) -> Option<Part> {
        let octets: Vec<u8> = labels.iter().take(4).map_while(|label| octet(label)).collect();
        let mut padded = [0; 4];
        padded.iter_mut().zip(&octets).for_each(|(to, from)| *to = *from);
        let address = Ipv4Addr::from(padded);
        // The shortest name below which all addresses are of the subnet.
        let own = usize::from(self.subnet.prefix().div_ceil(8));
        if octets.len() < own || !self.subnet.contains(address.into()) {
            return None;
        }
        let apex = question.name.trim_to(2 + own);
        let mut records = Vec::new();
        match labels.get(octets.len()..).unwrap_or_default() {
            [] if octets.len() == 4 => {
                records.extend(self.names_of(zone, &question.name, address, aliases));
                if records.is_empty() && own < 4 {
                    return Some(Part::no_such_name(apex));
                }
            }
            [] => {}
            below => {
                let mut below: Vec<&str> = below.to_vec();
                below.reverse();
                let network = octets.len() == 4 && self.subnet.network() == IpAddr::V4(address);
                match self.browsing(&question.name, &below) {
                    Some(found) if network => records = found,
                    _ => return Some(Part::no_such_name(apex)),
                }
            }
        }
        if question.name == apex {
            records.extend([self.soa(apex.clone()), self.ns(apex.clone())]);
        }
        records.retain(|record| is_wanted(question.kind, record));
        Some(Part::records(apex, records))
    }

    fn names_of<'a>(
        &self,
        zone: &Zone,
        from: &Name,
        address: Ipv4Addr,
        aliases: impl FnOnce(IpAddr) -> Vec<&'a str>,
    ) -> Vec<Record> {
        if address == self.gateway {
            return vec![pointer(from.clone(), self.server(), TTL)];
        }
        let address = IpAddr::V4(address);
        if !zone.has(address) {
            return Vec::new();
        }
        let at_home = self.hosts.iter().filter(|(_, of)| **of == address).map(|(host, _)| host.as_str());
        let told = aliases(address).into_iter().chain(at_home);
        let told = told.filter_map(|host| name(host.split('.'), &Name::root()));
        let mut records: Vec<Record> = told.map(|to| pointer(from.clone(), to, TTL)).collect();
        records.extend(self.records.at(&reverse(address)).iter().map(|entry| brief(&entry.record)));
        records
    }
}

/// Whether a name at home is one that we may answer for: of two labels at least, none that means something everywhere, and no address.
fn is_unicast_host(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
    };
    let top = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253
        && host.contains('.')
        && host.split('.').all(is_label)
        && !top.bytes().all(|byte| byte.is_ascii_digit())
        && !domain::is_special(host)
        && !domain::is_trap(host)
}

fn is_wanted(kind: RecordType, record: &Record) -> bool {
    kind == RecordType::ANY || record.record_type() == kind
}

/// Good for as long as unicast DNS may say so.
fn brief(record: &Record) -> Record {
    let mut record = record.clone();
    record.ttl = record.ttl.min(TTL);
    record
}

fn lower(label: &[u8]) -> String {
    // What is no UTF-8 is none of the names here.
    String::from_utf8_lossy(label).to_ascii_lowercase()
}

/// As it is written in a name: decimal, without zeros in front.
fn octet(label: &str) -> Option<u8> {
    let octet: u8 = label.parse().ok()?;
    (octet.to_string() == label).then_some(octet)
}
