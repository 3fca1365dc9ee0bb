//! What a UPnP device says of itself (UPnP Device Architecture 2.0, section 2.3).

use std::net::IpAddr;

use crate::discover::location::Location;
use crate::discover::xml::{Element, XmlError};

/// How the type of a printer begins, whatever its version (UPnP Forum, Printer:1).
const PRINTER: &str = "urn:schemas-upnp-org:device:printer:";

/// As it said it: nothing is clean here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) udn: Option<String>,
    pub(super) friendly_name: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model_name: Option<String>,
    pub(super) serial: Option<String>,
    /// Its pages for people, on the same host.
    pub(super) presentation: Option<Location>,
    /// It, or a device within, is a printer.
    pub(super) is_printer: bool,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DescriptionError {
    /// Not XML, or more than is accepted.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Of something else.
    #[error("the XML describes no UPnP device")]
    NoDevice,
}

impl Description {
    /// What `device` has at `location`.
    pub(super) fn parse(
        document: &[u8],
        location: &Location,
        device: IpAddr,
    ) -> Result<Description, DescriptionError> {
        let document = Element::parse(document)?;
        let root = document.child("device").filter(|_| document.name() == "root");
        let root = root.ok_or(DescriptionError::NoDevice)?;
        let text = |name: &str| root.text_of(name).map(str::to_owned);
        let mut kinds = root.all().filter(|element| element.name() == "deviceType").filter_map(Element::text);
        let is_printer =
            |kind: &str| kind.get(..PRINTER.len()).is_some_and(|start| start.eq_ignore_ascii_case(PRINTER));
        let presentation = root.text_of("presentationURL").and_then(|url| location.join(url, device).ok());
        Ok(Description {
            udn: text("UDN"),
            friendly_name: text("friendlyName"),
            manufacturer: text("manufacturer"),
            model_name: text("modelName"),
            serial: text("serialNumber"),
            presentation,
            is_printer: kinds.any(is_printer),
        })
    }

    /// Maker and model in one line, the maker once.
    pub(super) fn make_and_model(&self) -> Option<String> {
        crate::discover::printing::make_and_model(self.manufacturer.as_deref(), self.model_name.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: &str) -> Result<Description, DescriptionError> {
        let device = [10, 0, 0, 5].into();
        let location = Location::parse("http://10.0.0.5:5000/upnp/desc.xml", device).unwrap();
        Description::parse(document.as_bytes(), &location, device)
    }

    fn printer(more: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><specVersion><major>1</major>\
             </specVersion><device><deviceType>urn:schemas-upnp-org:device:Printer:1</deviceType>\
             <friendlyName>HP &amp; friends</friendlyName><manufacturer>HP</manufacturer><modelName>HP LaserJet 4\
             </modelName><serialNumber>ABC123</serialNumber><UDN>uuid:1234</UDN>{more}</device></root>"
        )
    }

    #[test]
    fn a_printer_describes_itself() {
        let read = parse(&printer("<presentationURL>/</presentationURL>")).unwrap();
        assert!(read.is_printer);
        assert_eq!(read.friendly_name.as_deref(), Some("HP & friends"));
        assert_eq!(read.make_and_model().as_deref(), Some("HP LaserJet 4"));
        assert_eq!((read.serial.as_deref(), read.udn.as_deref()), (Some("ABC123"), Some("uuid:1234")));
        let page = read.presentation.unwrap();
        assert_eq!((page.port(), page.path().as_str()), (5000, "/"));
    }

    #[test]
    fn pages_elsewhere_are_dropped_and_embedded_printers_seen() {
        for url in
            ["http://evil.example/", "http://127.0.0.1/", "https://10.0.0.5/", "javascript:x", "//10.0.0.6/"]
        {
            let read = parse(&printer(&format!("<presentationURL>{url}</presentationURL>"))).unwrap();
            assert_eq!(read.presentation, None, "{url}");
        }
        let within = printer(
            "<deviceList><device><deviceType>urn:schemas-upnp-org:device:Printer:2</deviceType></device>\
                              </deviceList>",
        )
        .replacen("device:Printer:1", "device:Basic:1", 1);
        assert!(parse(&within).unwrap().is_printer);
        assert!(!parse(&printer("").replace("Printer:1", "MediaServer:1")).unwrap().is_printer);
    }

    #[test]
    fn what_is_none_is_refused() {
        assert_eq!(parse("<html/>"), Err(DescriptionError::NoDevice));
        assert_eq!(parse("<device/>"), Err(DescriptionError::NoDevice));
        let bomb =
            "<!DOCTYPE x [<!ENTITY a \"b\">]><root><device><friendlyName>&a;</friendlyName></device></root>";
        assert_eq!(parse(bomb), Err(DescriptionError::Xml(XmlError::Entity)));
        assert_eq!(parse("<root><device/></root>"), Ok(Description::default()));
    }
}
