//! A device out of its sightings.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use spice_proto::service_info::{
    Advert, HostName, Identity, Label, MAX_ADVERTS, MAX_IDENTITY, MAX_SUBTYPES, ServiceInfo, ServiceType,
};

use super::partition::Cluster;
use crate::discover::{Device, MAX_SERVICES, Service, ServiceClass, Source, Standing, clean};

/// The device that these sightings are; `None` if it has no service. Its identity is for its owner to give.
pub(super) fn assemble(cluster: &Cluster<'_>, identity: Identity, standing: Standing) -> Option<Device> {
    let sightings = || cluster.members.iter().map(|entry| &entry.sighting);
    let host = sightings().find_map(|sighting| sighting.host.clone());
    let services = services(cluster, host.as_ref());
    if services.is_empty() {
        return None;
    }
    let make_and_model = sightings().find_map(|sighting| sighting.make_and_model.clone());
    let name = name(cluster)
        .or_else(|| host.as_ref().and_then(|host| clean::label(host.labels().next()?.as_bytes())))
        .or_else(|| make_and_model.as_ref().and_then(|model| clean::label(model.as_str().as_bytes())))
        .or_else(|| clean::label(identity.as_str().as_bytes()))?;
    Some(Device {
        identity,
        name,
        host,
        addresses: addresses(cluster),
        make_and_model,
        location: sightings().find_map(|sighting| sighting.location.clone()),
        sources: sightings().map(|sighting| sighting.key.source).collect(),
        this_machine: sightings().any(|sighting| sighting.this_machine),
        standing,
        services,
    })
}

/// The name of the most telling service, whichever was found first.
fn name(cluster: &Cluster<'_>) -> Option<Label> {
    let named = cluster.members.iter().filter_map(|entry| {
        let sighting = &entry.sighting;
        let name = sighting.name.as_ref()?;
        let adverts = sighting.services.iter().flat_map(|service| &service.adverts);
        let best = adverts.map(|advert| weight(&advert.kind)).min().unwrap_or(u8::MAX);
        Some((super::partition::rank(sighting.key.source), best, name))
    });
    named.min().map(|(_, _, name)| name.clone())
}

/// What all sources agree on. A source that knows several addresses may have been told some of them by somebody who has only one of
/// them; one that got an answer from an address knows that one.
fn addresses(cluster: &Cluster<'_>) -> Vec<IpAddr> {
    let mut of_source: BTreeMap<Source, Vec<IpAddr>> = BTreeMap::new();
    for entry in &cluster.members {
        let known = of_source.entry(entry.sighting.key.source).or_default();
        let new: Vec<IpAddr> =
            entry.addresses.iter().copied().filter(|address| !known.contains(address)).collect();
        known.extend(new);
    }
    let Some(first) = cluster.members.first() else { return Vec::new() };
    let mut agreed = of_source.get(&first.sighting.key.source).cloned().unwrap_or_default();
    let all = agreed.clone();
    agreed.retain(|address| of_source.values().all(|known| known.contains(address)));
    let mut chosen = if agreed.is_empty() { all } else { agreed };
    chosen.truncate(crate::discover::MAX_ADDRESSES);
    chosen
}

fn services(cluster: &Cluster<'_>, host: Option<&HostName>) -> Vec<Service> {
    let mut members = cluster.members.clone();
    members.sort_by_key(|entry| entry.first);
    let mut by_port: BTreeMap<u16, Service> = BTreeMap::new();
    for service in members.iter().flat_map(|entry| &entry.sighting.services) {
        if service.port == 0 || (by_port.len() >= MAX_SERVICES && !by_port.contains_key(&service.port)) {
            continue;
        }
        let merged =
            by_port.entry(service.port).or_insert_with(|| Service::bare(service.port, service.class));
        merged.class = merged.class.min(service.class);
        if merged.host_rewrite.is_none() {
            merged.host_rewrite.clone_from(&service.host_rewrite);
        }
        for advert in &service.adverts {
            match merged.adverts.iter_mut().find(|known| is_same(known, advert)) {
                Some(known) if richer(advert) > richer(known) => *known = advert.clone(),
                Some(_) => {}
                None => merged.adverts.push(advert.clone()),
            }
        }
    }
    let mut services: Vec<Service> = by_port.into_values().collect();
    for service in &mut services {
        service.adverts.sort_by(|a, b| {
            (weight(&a.kind), &a.kind, &a.instance).cmp(&(weight(&b.kind), &b.kind, &b.instance))
        });
        bound(&mut service.adverts, host);
    }
    services.sort_by_key(|service| (service.class, service.port));
    services
}

/// Two adverts of one type on one port are one if they have one name, or lead to one path: a queue of this machine that CUPS tells of, and
/// announces as well.
fn is_same(one: &Advert, other: &Advert) -> bool {
    let path = |advert: &Advert| advert.txt.get("rp").flatten().map(str::to_owned);
    let same_path = || path(one).is_some() && path(one) == path(other);
    let same_name = one.instance.as_str().eq_ignore_ascii_case(other.instance.as_str());
    one.kind == other.kind && (same_name || same_path())
}

/// Which of them is told, whichever came first: the one that says more.
fn richer(advert: &Advert) -> (usize, usize, Reverse<&Label>) {
    (advert.txt.entries().count(), advert.subtypes.len(), Reverse(&advert.instance))
}

/// Leaves away the least telling adverts until the rest can be told to a guest.
fn bound(adverts: &mut Vec<Advert>, host: Option<&HostName>) {
    adverts.truncate(MAX_ADVERTS);
    for advert in adverts.iter_mut() {
        advert.subtypes.truncate(MAX_SUBTYPES);
    }
    let longest = Identity::new(&"x".repeat(MAX_IDENTITY)).ok();
    while !adverts.is_empty() && ServiceInfo::new(longest.clone(), host.cloned(), adverts.clone()).is_err() {
        adverts.pop();
    }
}

/// How telling an advert is; less is more.
fn weight(kind: &ServiceType) -> u8 {
    let class = match ServiceClass::of(kind) {
        ServiceClass::Printer => 0,
        ServiceClass::Scanner => 10,
        ServiceClass::Files => 20,
        ServiceClass::Web => 30,
        ServiceClass::Shell => 40,
        ServiceClass::Other => 50,
    };
    let among = match kind.label() {
        "_ipp" | "_uscan" | "_smb" => 0,
        "_ipps" | "_uscans" | "_ftp" => 1,
        "_pdl-datastream" | "_scanner" => 2,
        _ => 3,
    };
    class + among
}
