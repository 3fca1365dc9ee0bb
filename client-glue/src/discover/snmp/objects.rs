//! What a printer is asked by SNMP, and what it said.

use std::collections::BTreeMap;
use std::net::IpAddr;

use url::{Host, Url};

use super::codec::Value;
use crate::discover::device_id::DeviceId;
use crate::discover::printing::Printed;

/// An object of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// `hrDeviceType.1` of HOST-RESOURCES-MIB (RFC 2790).
    DeviceType,
    /// `hrDeviceDescr.1`.
    DeviceDescription,
    /// `sysDescr.0` (RFC 3418).
    SystemDescription,
    /// `sysName.0`.
    SystemName,
    /// `sysLocation.0`.
    Location,
    /// `ifPhysAddress.1` (RFC 2863).
    Card,
    /// `prtGeneralPrinterName.1` of Printer-MIB (RFC 3805).
    PrinterName,
    /// `prtGeneralSerialNumber.1`.
    Serial,
    /// `ppmPrinterIEEE1284DeviceId.1` of PWG's Printer-Port-Monitor-MIB (PWG 5107.1).
    DeviceId,
    /// The same of Hewlett-Packard.
    HpDeviceId,
    /// The same of Lexmark.
    LexmarkDeviceId,
    /// The same of Ricoh.
    RicohDeviceId,
    /// Xerox's product name.
    XeroxProduct,
    /// `ppmPortServiceNameOrURI.1.1`.
    Uri,
}

/// `hrDeviceTypes`' number for printers.
pub(super) const PRINTER: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 1, 5];

impl Object {
    /// All but the device's type, in the order of asking.
    pub(super) const FACTS: [Object; 13] = [
        Object::DeviceId,
        Object::HpDeviceId,
        Object::LexmarkDeviceId,
        Object::RicohDeviceId,
        Object::XeroxProduct,
        Object::Serial,
        Object::PrinterName,
        Object::DeviceDescription,
        Object::SystemName,
        Object::Location,
        Object::SystemDescription,
        Object::Uri,
        Object::Card,
    ];

    pub(super) fn name(self) -> &'static [u32] {
        match self {
            Object::DeviceType => &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 2, 1],
            Object::DeviceDescription => &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 3, 1],
            Object::SystemDescription => &[1, 3, 6, 1, 2, 1, 1, 1, 0],
            Object::SystemName => &[1, 3, 6, 1, 2, 1, 1, 5, 0],
            Object::Location => &[1, 3, 6, 1, 2, 1, 1, 6, 0],
            Object::Card => &[1, 3, 6, 1, 2, 1, 2, 2, 1, 6, 1],
            Object::PrinterName => &[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 16, 1],
            Object::Serial => &[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 17, 1],
            Object::DeviceId => &[1, 3, 6, 1, 4, 1, 2699, 1, 2, 1, 2, 1, 1, 3, 1],
            Object::HpDeviceId => &[1, 3, 6, 1, 4, 1, 11, 2, 3, 9, 1, 1, 7, 0],
            Object::LexmarkDeviceId => &[1, 3, 6, 1, 4, 1, 641, 2, 1, 2, 1, 3, 1],
            Object::RicohDeviceId => &[1, 3, 6, 1, 4, 1, 367, 3, 2, 1, 1, 1, 11, 0],
            Object::XeroxProduct => &[1, 3, 6, 1, 4, 1, 128, 2, 1, 3, 1, 2, 0],
            Object::Uri => &[1, 3, 6, 1, 4, 1, 2699, 1, 2, 1, 3, 1, 1, 4, 1, 1],
        }
    }
}

/// What a printer said of itself, as it said it: nothing is clean here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts(BTreeMap<Object, Vec<u8>>);

impl Facts {
    /// Text is kept, anything else says nothing.
    pub(super) fn set(&mut self, object: Object, value: Option<Value>) {
        if let Some(Value::Text(text)) = value
            && !text.is_empty()
        {
            self.0.insert(object, text);
        }
    }

    /// Whether both are of one device, as far as it says.
    pub(super) fn is_same_device(&self, other: &Facts) -> bool {
        [Object::Serial, Object::DeviceId, Object::DeviceDescription]
            .into_iter()
            .all(|object| self.get(object) == other.get(object))
    }

    pub(super) fn get(&self, object: Object) -> Option<&[u8]> {
        self.0.get(&object).map(Vec::as_slice)
    }

    /// The first of the ids that is one.
    pub(super) fn device_id(&self) -> Option<DeviceId> {
        [Object::DeviceId, Object::HpDeviceId, Object::LexmarkDeviceId, Object::RicohDeviceId]
            .into_iter()
            .find_map(|object| DeviceId::parse(self.get(object)?))
    }

    /// What its own URI says; `None` too if that is about another host than `printer`, which is no business of its.
    pub(super) fn printed(&self, printer: IpAddr) -> Option<Printed> {
        let text = std::str::from_utf8(self.get(Object::Uri)?).ok()?;
        let url = Url::parse(text.trim()).ok()?;
        if !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        // A name cannot be held against it: it is the path and the port that are used, at the printer's own address.
        match url.host()? {
            Host::Ipv4(address) if IpAddr::V4(address) != printer => return None,
            Host::Ipv6(address) if IpAddr::V6(address) != printer => return None,
            // The URL standard reads addresses in schemes that it knows only.
            Host::Domain(name) if name.parse::<IpAddr>().is_ok_and(|address| address != printer) => {
                return None;
            }
            Host::Ipv4(_) | Host::Ipv6(_) | Host::Domain(_) => {}
        }
        let port = |usual: u16| Some(url.port().unwrap_or(usual)).filter(|port| *port != 0);
        match url.scheme() {
            "socket" => Some(Printed::Raw(port(9100)?)),
            "lpd" => {
                let queue = url.path().trim_start_matches('/').to_owned();
                Some(Printed::Lpd { port: port(515)?, queue })
            }
            "ipp" | "http" => {
                let path = if url.path().is_empty() { "/" } else { url.path() };
                Some(Printed::Ipp { port: port(631)?, path: path.to_owned() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(object: Object, text: &str) -> Facts {
        let mut facts = Facts::default();
        facts.set(object, Some(Value::Text(text.as_bytes().to_vec())));
        facts
    }

    #[test]
    fn every_object_is_asked_once_under_a_name_of_its_own() {
        let mut names: Vec<_> = Object::FACTS.into_iter().map(Object::name).collect();
        names.push(Object::DeviceType.name());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Object::FACTS.len() + 1);
        assert!(names.iter().all(|name| rasn::types::ObjectIdentifier::new(*name).is_some()));
    }

    #[test]
    fn ids_of_makers_are_found() {
        let mut all = facts(Object::LexmarkDeviceId, "MFG:Lexmark;MDL:E260;");
        all.set(Object::DeviceId, Some(Value::Text(b"none of it".to_vec())));
        assert_eq!(all.device_id().unwrap().maker.unwrap(), b"Lexmark");
        all.set(Object::Serial, Some(Value::Name(vec![1, 3])));
        all.set(Object::Serial, Some(Value::Text(Vec::new())));
        all.set(Object::Serial, None);
        assert_eq!(all.get(Object::Serial), None);
    }

    #[test]
    fn a_uri_says_how_the_printer_itself_is_printed_to() {
        let printer: IpAddr = [10, 0, 0, 5].into();
        let printed = |text: &str| facts(Object::Uri, text).printed(printer);
        assert_eq!(printed("socket://10.0.0.5:9101/"), Some(Printed::Raw(9101)));
        assert_eq!(printed("socket://printer.lan"), Some(Printed::Raw(9100)));
        assert_eq!(printed("lpd://10.0.0.5/raw"), Some(Printed::Lpd { port: 515, queue: "raw".into() }));
        assert_eq!(
            printed("ipp://printer.local/ipp/print"),
            Some(Printed::Ipp { port: 631, path: "/ipp/print".into() })
        );
        for text in [
            "",
            "lpr",
            "9100",
            "socket://10.0.0.6:9100/",
            "ipp://[::1]/",
            "http://127.0.0.1/",
            "socket://10.0.0.5:0/",
            "smb://10.0.0.5/x",
            "ipp://user:word@10.0.0.5/",
            "file:///etc/passwd",
        ] {
            assert_eq!(printed(text), None, "{text}");
        }
    }
}
