//! What records of DNS-SD say, as a sighting.

use std::net::IpAddr;

use spice_proto::service_info::{Advert, HostName, Label, MAX_SUBTYPES, ServiceType, Txt};

use crate::discover::{Service, ServiceClass, Sighting, Source, Text, Uuid, clean};

/// Most TXT entries that are looked at.
const MAX_ENTRIES: usize = 128;

/// What was found of one instance: as it came, but for what is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: ServiceType,
    pub(crate) instance: String,
    pub(crate) host: Option<HostName>,
    pub(crate) port: u16,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) txt: Vec<(String, Option<Vec<u8>>)>,
}

/// `None`: it says that there is no such service.
pub(crate) fn sighting<'a>(
    source: Source,
    id: &str,
    found: &Found,
    subtypes: impl IntoIterator<Item = &'a str>,
) -> Option<Sighting> {
    if found.port == 0 {
        return None;
    }
    let host = found.host.as_ref();
    let named_by_host = || clean::label(host?.labels().next()?.as_bytes());
    let named_by_type = || Label::new(found.kind.label().trim_start_matches('_')).ok();
    let instance = clean::label(found.instance.as_bytes()).or_else(named_by_host).or_else(named_by_type)?;
    let entries = found.txt.iter().take(MAX_ENTRIES);
    let txt =
        clean::txt(entries.map(|(key, value)| (key.as_str(), value.as_deref())), host, &found.addresses);
    let mut sighting = Sighting::new(source, id);
    sighting.uuid = said(&txt, "UUID").and_then(Uuid::parse);
    sighting.make_and_model = make_and_model(&txt);
    sighting.name = Some(instance.clone());
    sighting.host = found.host.clone();
    sighting.addresses.clone_from(&found.addresses);
    sighting.addresses.sort_unstable();
    sighting.location = said(&txt, "note").and_then(|note| clean::text(note.as_bytes()));
    let mut subtypes: Vec<Label> = subtypes.into_iter().filter_map(|name| Label::new(name).ok()).collect();
    subtypes.truncate(MAX_SUBTYPES);
    let advert = Advert { kind: found.kind.clone(), instance, subtypes, txt };
    sighting.services = vec![Service {
        port: found.port,
        class: ServiceClass::of(&found.kind),
        adverts: vec![advert],
        host_rewrite: None,
    }];
    Some(sighting)
}

fn said<'a>(txt: &'a Txt, key: &str) -> Option<&'a str> {
    txt.get(key).flatten().filter(|value| !value.is_empty())
}

/// `ty`, else maker and model as USB has them, else `product`, which is PostScript's name in parentheses.
fn make_and_model(txt: &Txt) -> Option<Text> {
    let usb = || Some(format!("{} {}", said(txt, "usb_MFG")?, said(txt, "usb_MDL")?));
    let product = || Some(said(txt, "product")?.trim_matches(['(', ')']).to_owned());
    let model = said(txt, "ty").map(str::to_owned).or_else(usb).or_else(product)?;
    clean::text(model.as_bytes())
}
