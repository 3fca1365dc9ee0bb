//! What the sources tell: that something was seen, or is gone. Already clean, not yet known to be one device or two.

use std::net::IpAddr;

use spice_proto::service_info::{HostName, Label};

use super::{
    device::{Service, Source},
    text::{Mac, Serial, Text, Uuid},
};

/// Longest id in a [`SightingKey`], bytes. A source that has longer ones shortens them itself.
pub const MAX_KEY: usize = 320;

/// What a source has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SightingEvent {
    /// It is there, and this is all that this source knows of it: what was said of the same key before is forgotten.
    Seen(Box<Sighting>),
    /// It is gone.
    Gone(SightingKey),
}

/// What one source knows something by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SightingKey {
    /// Whose key it is.
    pub source: Source,
    /// DNS-SD: the service's full name; SNMP: the agent's address; SSDP and WS-Discovery: the device's UUID or endpoint.
    pub id: String,
}

/// Something that one source sees. Several of them may be one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// By which this source speaks of it again.
    pub key: SightingKey,
    /// The device's UUID.
    pub uuid: Option<Uuid>,
    /// The device's serial number.
    pub serial: Option<Serial>,
    /// A network card of the device.
    pub mac: Option<Mac>,
    /// Maker and model.
    pub make_and_model: Option<Text>,
    /// What people know it by: DNS-SD's instance, SNMP's `prtGeneralPrinterName`, UPnP's `friendlyName`.
    pub name: Option<Label>,
    /// The device's own name in the network, if it can be resolved there.
    pub host: Option<HostName>,
    /// Where it can be reached. Those that may not be dialled are left out when sightings are merged.
    pub addresses: Vec<IpAddr>,
    /// Where it stands.
    pub location: Option<Text>,
    /// It is part of the user's own machine.
    pub this_machine: bool,
    /// What it offers.
    pub services: Vec<Service>,
}

impl Sighting {
    /// Nothing known but that it is there.
    pub fn new(source: Source, id: impl Into<String>) -> Sighting {
        Sighting {
            key: SightingKey { source, id: id.into() },
            uuid: None,
            serial: None,
            mac: None,
            make_and_model: None,
            name: None,
            host: None,
            addresses: Vec::new(),
            location: None,
            this_machine: source == Source::Local,
            services: Vec::new(),
        }
    }
}
