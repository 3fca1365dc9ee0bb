//! What a device may be known by, best first.
//!
//! | identity | of | good |
//! | --- | --- | --- |
//! | `uuid:UUID` | the print or scan service's UUID | everywhere |
//! | `serial:MAKER:NUMBER` | serial number, and the first word of maker and model | everywhere |
//! | `uuid:UUID` | the UUID of UPnP or WS-Discovery | everywhere |
//! | `dns-sd:NETWORK/HOST` | the host name of DNS-SD | in one network |
//! | `mac:ADDRESS` | a network card | everywhere |
//! | `name:NETWORK/NAME` | what people know it by | in one network |
//!
//! Never an IP address. Only the first word of maker and model counts because sources and firmware spell the rest in their own ways. The
//! DNS-SD identity is that of the host alone and not of an instance: all that a host without UUIDs offers is one device, and which of its
//! services is found first is chance.
//!
//! What is good in one network only carries the [`NetworkId`]: another network's `printer.local` is another printer. What is good everywhere
//! does not, so that a router's replacement moves no printer that has a UUID.
//!
//! What belongs to the user's own machine has `local-` before it, and no network: a printer may be there by USB and by the network at a time.

use openssl::sha::sha256;
use spice_proto::service_info::{Identity, MAX_IDENTITY};

use super::partition::{Cluster, service_uuid, tells_services};
use crate::discover::{NetworkId, text::Mac};

/// Something that a device may be known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) identity: Identity,
    /// No two devices have it, unless one of them lies.
    pub(super) strong: bool,
}

/// What a device may be known by, best first. Empty only for one that says nothing at all.
pub(super) fn candidates(cluster: &Cluster<'_>, network: Option<&NetworkId>) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let this_machine = cluster.members.iter().any(|entry| entry.sighting.this_machine);
    let mut add = |strong: bool, text: String| {
        // The mark of a qualified one is nobody's to write.
        let text = text.replace('~', "-");
        let text = if this_machine { format!("local-{text}") } else { text };
        // Too long can only be what is good in one network: cut, it is still the same every day.
        let cut = text
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|end| *end <= MAX_IDENTITY)
            .last();
        let Ok(identity) = Identity::new(text.get(..cut.unwrap_or(0)).unwrap_or_default()) else { return };
        if !found.iter().any(|known| known.identity == identity) {
            found.push(Candidate { identity, strong });
        }
    };
    let network = match network {
        _ if this_machine => "",
        Some(network) => network.as_str(),
        None => "unknown",
    };
    let sightings = || cluster.members.iter().map(|entry| &entry.sighting);
    for uuid in sightings().filter_map(service_uuid) {
        add(true, format!("uuid:{uuid}"));
    }
    let maker = sightings()
        .find_map(|sighting| sighting.make_and_model.as_ref())
        .and_then(|model| maker(model.as_str()));
    for serial in sightings().filter_map(|sighting| sighting.serial.as_ref()) {
        if let Some(maker) = &maker {
            add(true, format!("serial:{maker}:{}", serial.as_str().to_ascii_uppercase()));
        }
    }
    for uuid in sightings().filter_map(|sighting| sighting.uuid) {
        add(true, format!("uuid:{uuid}"));
    }
    for host in sightings()
        .filter(|sighting| tells_services(sighting.key.source))
        .filter_map(|sighting| sighting.host.as_ref())
    {
        add(false, format!("dns-sd:{network}/{}", host.as_str().to_lowercase()));
    }
    for mac in macs(cluster) {
        add(true, format!("mac:{mac}"));
    }
    for name in sightings().filter_map(|sighting| sighting.name.as_ref()) {
        add(false, format!("name:{network}/{}", name.as_str().to_lowercase()));
    }
    for model in sightings().filter_map(|sighting| sighting.make_and_model.as_ref()) {
        add(false, format!("name:{network}/{}", model.as_str().to_lowercase()));
    }
    found
}

/// An identity for a device that claims one which another has: the claim, and who makes it.
pub(super) fn qualified(claim: &Identity, candidates: &[Candidate], attempt: usize) -> Option<Identity> {
    let who: Vec<&str> = candidates
        .iter()
        .map(|candidate| candidate.identity.as_str())
        .filter(|own| *own != claim.as_str())
        .collect();
    let digest = sha256(format!("{}\n{attempt}", who.join("\n")).as_bytes());
    let mark: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let room = MAX_IDENTITY.saturating_sub(mark.len() + 1);
    let kept: String = claim
        .as_str()
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= room)
        .map(|(_, c)| c)
        .collect();
    Identity::new(&format!("{kept}~{mark}")).ok()
}

/// The network cards that are named.
pub(super) fn macs(cluster: &Cluster<'_>) -> Vec<Mac> {
    let mut macs: Vec<Mac> = cluster.members.iter().filter_map(|entry| entry.sighting.mac).collect();
    macs.sort_unstable();
    macs.dedup();
    macs
}

/// The first word of maker and model, as all sources spell it.
fn maker(model: &str) -> Option<String> {
    let word: String =
        model.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty())?.to_lowercase();
    Some(if word == "hewlett" { "hp".to_owned() } else { word })
}
