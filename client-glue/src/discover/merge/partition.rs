//! Which sightings are one device.
//!
//! First by place: sightings of one host are in one place, and a sighting of another source joins the place whose address it has. Then a
//! place is divided if it has several UUIDs: the queues of a print server are devices of their own.
//!
//! What this trusts: multicast DNS keeps host names apart, so two names of one source are two places whatever addresses
//! they claim. A claim to a UUID or serial number joins nothing across places; see [`Merge`](super::Merge) for who keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::Entry;
use crate::discover::{Sighting, Source, Uuid};

/// The sightings of one device, most telling first; never empty.
pub(super) struct Cluster<'a> {
    pub(super) members: Vec<&'a Entry>,
    /// When the first of them came.
    pub(super) first: u64,
}

/// Sorts sightings into devices. The order in which they came decides nothing but what [`Cluster::first`] says, except that of several
/// places with one address the first gets the sightings that have no name of their own.
pub(super) fn partition<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<Cluster<'a>> {
    let mut sorted: Vec<&Entry> = entries.filter(|entry| !entry.addresses.is_empty()).collect();
    sorted.sort_by_key(|entry| (rank(entry.sighting.key.source), entry.first));
    let mut clusters: Vec<Cluster<'a>> = places(&sorted).into_iter().flat_map(divide).collect();
    clusters.sort_by_key(|cluster| cluster.first);
    clusters
}

/// Whose word counts more.
pub(super) fn rank(source: Source) -> u8 {
    match source {
        Source::DnsSd => 0,
        Source::UnicastDnsSd => 1,
        Source::Local => 2,
        Source::WsDiscovery => 3,
        Source::Snmp => 4,
        Source::Ssdp => 5,
    }
}

/// Whether a source knows hosts by names that only one of them has.
fn names_hosts(source: Source) -> bool {
    match source {
        Source::DnsSd | Source::UnicastDnsSd => true,
        Source::Local | Source::WsDiscovery | Source::Snmp | Source::Ssdp => false,
    }
}

/// Whether a source tells services' own UUIDs, each for itself.
pub(super) fn tells_services(source: Source) -> bool {
    match source {
        // SNMP knows none: what its sightings have was asked for by IPP.
        Source::DnsSd | Source::UnicastDnsSd | Source::Local | Source::Snmp => true,
        Source::WsDiscovery | Source::Ssdp => false,
    }
}

/// The UUID of the print or scan service (TXT `UUID`, `printer-uuid`), not of UPnP or WS-Discovery: those sources have it where they asked the
/// printer by IPP, and then they say so.
pub(super) fn service_uuid(sighting: &Sighting) -> Option<Uuid> {
    let mut adverts = sighting.services.iter().flat_map(|service| &service.adverts);
    let mut by_ipp = || adverts.any(|advert| matches!(advert.kind.label(), "_ipp" | "_ipps"));
    sighting.uuid.filter(|_| tells_services(sighting.key.source) || by_ipp())
}

/// What is surely in one place for one source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Spot<'a> {
    ThisMachine,
    Host(Source, String),
    Alone(Source, &'a str),
}

#[derive(Default)]
struct Place<'a> {
    members: Vec<&'a Entry>,
    /// Sources that know it by a host name.
    named_by: BTreeSet<Source>,
    this_machine: bool,
}

fn places<'a>(sorted: &[&'a Entry]) -> Vec<Vec<&'a Entry>> {
    let mut places: Vec<Place<'a>> = Vec::new();
    let mut spots: BTreeMap<Spot<'a>, usize> = BTreeMap::new();
    let mut at_address: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for &entry in sorted {
        let sighting = &entry.sighting;
        let source = sighting.key.source;
        let spot = match &sighting.host {
            _ if sighting.this_machine => Spot::ThisMachine,
            Some(host) if names_hosts(source) => Spot::Host(source, host.as_str().to_ascii_lowercase()),
            Some(_) | None => Spot::Alone(source, &sighting.key.id),
        };
        let named_apart = |place: &Place<'_>| names_hosts(source) && place.named_by.contains(&source);
        let joins = |place: &Place<'_>| !(place.this_machine || sighting.this_machine || named_apart(place));
        let index = spots.get(&spot).copied().or_else(|| {
            let there = entry.addresses.iter().filter_map(|address| at_address.get(address)).flatten();
            there.copied().find(|index| places.get(*index).is_some_and(joins))
        });
        let index = index.unwrap_or(places.len());
        if index == places.len() {
            places.push(Place::default());
        }
        let Some(place) = places.get_mut(index) else { continue };
        place.members.push(entry);
        place.this_machine |= sighting.this_machine;
        if names_hosts(source) {
            place.named_by.insert(source);
        }
        spots.insert(spot, index);
        for address in &entry.addresses {
            let there = at_address.entry(*address).or_default();
            if !there.contains(&index) {
                there.push(index);
            }
        }
    }
    places.into_iter().map(|place| place.members).collect()
}

/// A place into its devices.
///
/// The user's own machine is always divided: what shares one of its queues must not share its shell along with it.
fn divide(members: Vec<&Entry>) -> Vec<Cluster<'_>> {
    let service_uuid =
        |entry: &Entry| entry.sighting.uuid.filter(|_| tells_services(entry.sighting.key.source));
    let uuids: BTreeSet<Uuid> = members.iter().filter_map(|entry| service_uuid(entry)).collect();
    let this_machine = members.iter().any(|entry| entry.sighting.this_machine);
    if uuids.len() < 2 && !this_machine {
        return cluster(members).into_iter().collect();
    }
    let instance = |entry: &Entry| entry.sighting.name.as_ref().map(|name| name.as_str().to_lowercase());
    let mut instances: BTreeMap<String, Uuid> = BTreeMap::new();
    for entry in &members {
        if let (Some(name), Some(uuid)) = (instance(entry), service_uuid(entry)) {
            instances.entry(name).or_insert(uuid);
        }
    }
    let mut of_uuid: BTreeMap<Uuid, Vec<&Entry>> = BTreeMap::new();
    let mut rest = Vec::new();
    for entry in members {
        let uuid = service_uuid(entry)
            .or_else(|| entry.sighting.uuid.filter(|uuid| uuids.contains(uuid)))
            .or_else(|| instance(entry).and_then(|name| instances.get(&name).copied()));
        match uuid {
            Some(uuid) => of_uuid.entry(uuid).or_default().push(entry),
            None => rest.push(entry),
        }
    }
    of_uuid.into_values().chain([rest]).filter_map(cluster).collect()
}

fn cluster(members: Vec<&Entry>) -> Option<Cluster<'_>> {
    let first = members.iter().map(|entry| entry.first).min()?;
    Some(Cluster { members, first })
}
