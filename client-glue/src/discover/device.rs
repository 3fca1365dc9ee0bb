//! What discovery finds: devices, their services, and what becomes of them.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use spice_proto::service_info::{Advert, HostName, Identity, InfoError, Label, ServiceInfo, ServiceType};

use super::text::Text;

/// Most addresses of one device.
pub const MAX_ADDRESSES: usize = 8;
/// Most services of one device.
pub const MAX_SERVICES: usize = 32;

/// Something that answers on the user's network, or on the user's own machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// By what it is known for ever.
    pub identity: Identity,
    /// What people know it by. Several devices may have the same.
    pub name: Label,
    /// Its own name in the network. Several devices may have the same: the queues of one print server.
    pub host: Option<HostName>,
    /// Where it can be reached, most wanted first; only addresses that may be dialled, at most [`MAX_ADDRESSES`]. Loopback only
    /// where `this_machine`.
    pub addresses: Vec<IpAddr>,
    /// Maker and model.
    pub make_and_model: Option<Text>,
    /// Where it stands.
    pub location: Option<Text>,
    /// Who sees it.
    pub sources: BTreeSet<Source>,
    /// It is a part of the user's own machine: never shared as one of a class, only when named.
    pub this_machine: bool,
    /// Whether it is what it says it is, as far as one can tell.
    pub standing: Standing,
    /// What it offers, by port; at most [`MAX_SERVICES`], no port twice.
    pub services: Vec<Service>,
}

/// Whether a device is who it says it is, as far as one can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    Plain,
    /// A device of this identity was seen before, at other addresses **and** under another host name. It may have been reinstalled, or be
    /// somebody else who took the name of one that left. What its user allowed before was allowed for the other one: ask again.
    Moved,
    /// It says that it is a device that is there as well, at other addresses and under another host name. Its `identity` is therefore not
    /// the one that it claims, but qualified by its host. Not to be shared as one of a class.
    Impostor {
        /// Whom it claims to be.
        claims: Identity,
    },
}

/// One port of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The TCP port; not 0.
    pub port: u16,
    /// What it is for.
    pub class: ServiceClass,
    /// How it is advertised, the most telling first. Empty where only its port is known.
    pub adverts: Vec<Advert>,
    /// What the `Host:` header of requests has to say in place of what the guest writes. `None`: leave it alone.
    pub host_rewrite: Option<String>,
}

/// What a service is for. What may be shared as a class is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceClass {
    /// Takes print jobs.
    Printer,
    /// Gives scans.
    Scanner,
    /// Pages for people.
    Web,
    /// Files: SMB, FTP, NFS, WebDAV.
    Files,
    /// A command line: SSH.
    Shell,
    /// Anything else.
    Other,
}

/// Where one learns of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// DNS-SD over multicast DNS (RFC 6762, RFC 6763).
    DnsSd,
    /// DNS-SD over ordinary DNS.
    UnicastDnsSd,
    /// SNMP.
    Snmp,
    /// SSDP, of UPnP.
    Ssdp,
    /// WS-Discovery.
    WsDiscovery,
    /// The user's own machine.
    Local,
}

/// What became of a device. Each carries the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// There is a new one.
    Found(Device),
    /// Something about one that was found has changed, but never its identity.
    Changed(Device),
    /// It is gone.
    Lost(Identity),
}

impl Device {
    /// What the guest may be told of `service`, which is one of this device's.
    ///
    /// # Errors
    /// More than fits.
    pub fn info(&self, service: &Service) -> Result<ServiceInfo, InfoError> {
        ServiceInfo::new(Some(self.identity.clone()), self.host.clone(), service.adverts.clone())
    }
}

impl Service {
    /// A service of which only the port is known.
    pub fn bare(port: u16, class: ServiceClass) -> Service {
        Service { port, class, adverts: Vec::new(), host_rewrite: None }
    }
}

impl ServiceClass {
    /// Of a DNS-SD type.
    pub fn of(kind: &ServiceType) -> ServiceClass {
        match kind.label() {
            "_ipp" | "_ipps" | "_printer" | "_pdl-datastream" | "_ipp-tls" | "_fax-ipp" => {
                ServiceClass::Printer
            }
            "_uscan" | "_uscans" | "_scanner" => ServiceClass::Scanner,
            "_http" | "_https" => ServiceClass::Web,
            "_smb" | "_ftp" | "_nfs" | "_afpovertcp" | "_webdav" | "_webdavs" | "_sftp-ssh" => {
                ServiceClass::Files
            }
            "_ssh" | "_telnet" => ServiceClass::Shell,
            _ => ServiceClass::Other,
        }
    }

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceClass::Printer => "printer",
            ServiceClass::Scanner => "scanner",
            ServiceClass::Web => "web",
            ServiceClass::Files => "files",
            ServiceClass::Shell => "shell",
            ServiceClass::Other => "other",
        }
    }
}

impl fmt::Display for ServiceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Source {
    /// All there are.
    pub const ALL: [Source; 6] =
        [Source::DnsSd, Source::UnicastDnsSd, Source::Snmp, Source::Ssdp, Source::WsDiscovery, Source::Local];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::DnsSd => "dns-sd",
            Source::UnicastDnsSd => "unicast-dns-sd",
            Source::Snmp => "snmp",
            Source::Ssdp => "ssdp",
            Source::WsDiscovery => "ws-discovery",
            Source::Local => "local",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
