//! The instances that are there: what each is told as, and whether it is told at all.

use std::collections::{BTreeMap, BTreeSet};

use super::records::{Found, sighting};
use crate::discover::{ServiceClass, Sighting, Source};

/// Most instances that are known of. The merge keeps fewer, and counts what it leaves out.
const MAX_INSTANCES: usize = 2048;

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::discover) enum Told {
    Seen(Box<Sighting>),
    Gone(String),
}

/// See the module's text.
pub(in crate::discover) struct Instances {
    source: Source,
    /// Web pages are told whoever has them, and not only those of hosts that print or scan.
    web: bool,
    adapt: fn(Sighting) -> Option<Sighting>,
    known: BTreeMap<String, Instance>,
}

struct Instance {
    found: Found,
    subtypes: BTreeSet<&'static str>,
    told: bool,
}

impl Instances {
    pub(in crate::discover) fn new(
        source: Source,
        web: bool,
        adapt: fn(Sighting) -> Option<Sighting>,
    ) -> Instances {
        Instances { source, web, adapt, known: BTreeMap::new() }
    }

    /// An instance was found, by its type or by a subtype, or has changed.
    pub(in crate::discover) fn resolved(
        &mut self,
        id: &str,
        found: Found,
        subtype: Option<&'static str>,
    ) -> Vec<Told> {
        if self.known.len() >= MAX_INSTANCES && !self.known.contains_key(id) {
            return Vec::new();
        }
        let host = found.host.clone();
        let instance = self.known.entry(id.to_owned()).or_insert_with(|| Instance {
            found: found.clone(),
            subtypes: BTreeSet::new(),
            told: false,
        });
        let before = std::mem::replace(&mut instance.found, found);
        instance.subtypes.extend(subtype);
        let mut told = self.tell(id);
        for host in BTreeSet::from([before.host, host]) {
            told.extend(self.tell_web(host.as_ref().map(|host| host.as_str())));
        }
        told
    }

    /// An instance was found, or has changed, and has these subtypes and no others.
    pub(in crate::discover) fn replaced(
        &mut self,
        id: &str,
        found: Found,
        subtypes: BTreeSet<&'static str>,
    ) -> Vec<Told> {
        if let Some(known) = self.known.get_mut(id) {
            if known.found == found && known.subtypes == subtypes {
                return Vec::new();
            }
            known.subtypes = subtypes;
            return self.resolved(id, found, None);
        }
        let mut told = self.resolved(id, found, None);
        if !subtypes.is_empty()
            && let Some(known) = self.known.get_mut(id)
        {
            known.subtypes = subtypes;
            told.retain(|told| !matches!(told, Told::Seen(seen) if seen.key.id == id));
            told.extend(self.tell(id));
        }
        told
    }

    /// An instance is gone.
    pub(in crate::discover) fn removed(&mut self, id: &str) -> Vec<Told> {
        let Some(instance) = self.known.remove(id) else { return Vec::new() };
        let mut told = Vec::new();
        if instance.told {
            told.push(Told::Gone(id.to_owned()));
        }
        told.extend(self.tell_web(instance.found.host.as_ref().map(|host| host.as_str())));
        told
    }

    /// An instance does not have that subtype any more.
    pub(in crate::discover) fn lost_subtype(&mut self, id: &str, subtype: &str) -> Vec<Told> {
        let had = self.known.get_mut(id).is_some_and(|instance| instance.subtypes.remove(subtype));
        if had { self.tell(id) } else { Vec::new() }
    }

    fn tell(&mut self, id: &str) -> Vec<Told> {
        let Some(instance) = self.known.get(id) else { return Vec::new() };
        let wanted = self.web || !is_web(&instance.found) || self.prints_or_scans(&instance.found);
        let sighting = sighting(self.source, id, &instance.found, instance.subtypes.iter().copied())
            .filter(|_| wanted)
            .and_then(self.adapt);
        let Some(instance) = self.known.get_mut(id) else { return Vec::new() };
        match sighting {
            Some(sighting) => {
                instance.told = true;
                vec![Told::Seen(Box::new(sighting))]
            }
            None if std::mem::take(&mut instance.told) => vec![Told::Gone(id.to_owned())],
            None => Vec::new(),
        }
    }

    /// Something else on a host has changed: is its web page to be told?
    fn tell_web(&mut self, host: Option<&str>) -> Vec<Told> {
        if self.web {
            return Vec::new();
        }
        let Some(host) = host else { return Vec::new() };
        let pages: Vec<(String, bool)> = self
            .known
            .iter()
            .filter(|(_, instance)| is_web(&instance.found) && is_on(&instance.found, host))
            .map(|(id, instance)| (id.clone(), instance.told))
            .collect();
        let print = self
            .known
            .values()
            .any(|instance| is_on(&instance.found, host) && prints_or_scans(&instance.found));
        pages.into_iter().filter(|(_, told)| *told != print).flat_map(|(id, _)| self.tell(&id)).collect()
    }

    fn prints_or_scans(&self, found: &Found) -> bool {
        let Some(host) = &found.host else { return false };
        self.known.values().any(|other| is_on(&other.found, host.as_str()) && prints_or_scans(&other.found))
    }
}

fn is_web(found: &Found) -> bool {
    ServiceClass::of(&found.kind) == ServiceClass::Web
}

fn prints_or_scans(found: &Found) -> bool {
    found.port != 0 && matches!(ServiceClass::of(&found.kind), ServiceClass::Printer | ServiceClass::Scanner)
}

fn is_on(found: &Found, host: &str) -> bool {
    found.host.as_ref().is_some_and(|own| own.as_str().eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use spice_proto::service_info::{HostName, ServiceType};

    use super::*;

    fn found(kind: &str, port: u16, txt: &[(&str, &str)]) -> Found {
        Found {
            kind: ServiceType::new(kind).unwrap(),
            instance: "Office".into(),
            host: HostName::new("office.local").ok(),
            port,
            addresses: vec!["192.168.1.9".parse().unwrap()],
            txt: txt
                .iter()
                .map(|(key, value)| ((*key).to_owned(), Some(value.as_bytes().to_vec())))
                .collect(),
        }
    }

    fn short(told: &[Told]) -> Vec<String> {
        let short = |told: &Told| match told {
            Told::Seen(seen) => {
                let subtypes: Vec<&str> =
                    seen.services[0].adverts[0].subtypes.iter().map(|label| label.as_str()).collect();
                format!("+{} {}", seen.key.id, subtypes.join(",")).trim_end().to_owned()
            }
            Told::Gone(id) => format!("-{id}"),
        };
        told.iter().map(short).collect()
    }

    #[test]
    fn a_web_page_is_told_for_as_long_as_its_host_prints() {
        let mut instances = Instances::new(Source::DnsSd, false, Some);
        assert_eq!(short(&instances.resolved("web", found("_http._tcp", 80, &[]), None)), [] as [&str; 0]);
        assert_eq!(short(&instances.resolved("ipp", found("_ipp._tcp", 631, &[]), None)), ["+ipp", "+web"]);
        assert_eq!(short(&instances.resolved("scan", found("_uscan._tcp", 80, &[]), None)), ["+scan"]);
        assert_eq!(short(&instances.removed("ipp")), ["-ipp"]);
        assert_eq!(short(&instances.removed("scan")), ["-scan", "-web"]);
        assert_eq!(short(&instances.removed("web")), [] as [&str; 0]);
        let mut all = Instances::new(Source::DnsSd, true, Some);
        assert_eq!(short(&all.resolved("web", found("_http._tcp", 80, &[]), None)), ["+web"]);
    }

    #[test]
    fn subtypes_add_up() {
        let mut instances = Instances::new(Source::DnsSd, false, Some);
        let ipp = || found("_ipp._tcp", 631, &[]);
        assert_eq!(short(&instances.resolved("ipp", ipp(), Some("_universal"))), ["+ipp _universal"]);
        assert_eq!(short(&instances.resolved("ipp", ipp(), None)), ["+ipp _universal"]);
        assert_eq!(short(&instances.resolved("ipp", ipp(), Some("_print"))), ["+ipp _print,_universal"]);
        assert_eq!(short(&instances.lost_subtype("ipp", "_universal")), ["+ipp _print"]);
        assert_eq!(short(&instances.lost_subtype("ipp", "_universal")), [] as [&str; 0]);
    }

    #[test]
    fn port_zero_is_no_service() {
        let mut instances = Instances::new(Source::DnsSd, false, Some);
        assert_eq!(short(&instances.resolved("lpd", found("_printer._tcp", 0, &[]), None)), [] as [&str; 0]);
        assert_eq!(short(&instances.resolved("web", found("_http._tcp", 80, &[]), None)), [] as [&str; 0]);
        assert_eq!(
            short(&instances.resolved("lpd", found("_printer._tcp", 515, &[]), None)),
            ["+lpd", "+web"]
        );
        assert_eq!(short(&instances.resolved("lpd", found("_printer._tcp", 0, &[]), None)), ["-lpd", "-web"]);
    }

    #[test]
    fn what_a_printer_says_is_read() {
        let txt = [
            ("ty", "HP LaserJet"),
            ("note", "2nd floor"),
            ("UUID", "4509a320-00a0-008f-00b6-002507510eca"),
            ("adminurl", "http://192.168.1.9/"),
        ];
        let seen = sighting(Source::DnsSd, "x", &found("_ipp._tcp", 631, &txt), []).unwrap();
        assert_eq!(seen.make_and_model.unwrap().as_str(), "HP LaserJet");
        assert_eq!(seen.location.unwrap().as_str(), "2nd floor");
        assert_eq!(seen.uuid.unwrap().to_string(), "4509a320-00a0-008f-00b6-002507510eca");
        let advert = &seen.services[0].adverts[0];
        assert_eq!(advert.txt.get("adminurl"), Some(Some("http://office.local/")));
        let usb = [("usb_MFG", "EPSON"), ("usb_MDL", "ET-2750"), ("product", "(Epson)")];
        let model = |txt: &[(&str, &str)]| {
            let seen = sighting(Source::DnsSd, "x", &found("_ipp._tcp", 631, txt), []).unwrap();
            seen.make_and_model.unwrap().as_str().to_owned()
        };
        assert_eq!(model(&usb), "EPSON ET-2750");
        assert_eq!(model(&usb[2..]), "Epson");
        let mut nameless = found("_ipp._tcp", 631, &[]);
        nameless.instance = "\u{200b}".into();
        assert_eq!(sighting(Source::DnsSd, "x", &nameless, []).unwrap().name.unwrap().as_str(), "office");
    }

    #[test]
    fn they_are_bounded() {
        let mut instances = Instances::new(Source::DnsSd, false, Some);
        for n in 0..MAX_INSTANCES + 100 {
            instances.resolved(&n.to_string(), found("_ipp._tcp", 631, &[]), None);
        }
        assert_eq!(instances.known.len(), MAX_INSTANCES);
        assert!(!instances.resolved("0", found("_ipp._tcp", 632, &[]), None).is_empty());
    }
}
