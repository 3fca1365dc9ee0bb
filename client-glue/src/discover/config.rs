//! What to look for, and where.

use std::net::SocketAddr;

use spice_proto::service_info::{HostName, ServiceType};

use super::{
    InterfaceFilter, network_id::NetworkId, snmp::SnmpConfig, ssdp::SsdpConfig,
    ws_discovery::WsDiscoveryConfig,
};

/// What to look for, and where. A source that is `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverConfig {
    /// DNS-SD over multicast DNS. On by default.
    pub dns_sd: Option<DnsSdConfig>,
    /// DNS-SD over ordinary DNS. Off by default.
    pub unicast_dns_sd: Option<UnicastDnsSdConfig>,
    /// The user's own machine. On by default.
    pub local: Option<LocalConfig>,
    /// SNMP: printers from before DNS-SD. On by default.
    pub snmp: Option<SnmpConfig>,
    /// SSDP, of UPnP. On by default.
    pub ssdp: Option<SsdpConfig>,
    /// WS-Discovery. On by default.
    pub ws_discovery: Option<WsDiscoveryConfig>,
    /// Where to look.
    pub interfaces: InterfaceFilter,
    /// Which network this is, for identities that are only good within one. `None`: found out, see [`NetworkId`].
    pub network: Option<NetworkId>,
}

/// DNS-SD over multicast DNS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsSdConfig {
    /// Types to look for besides those of printers and scanners, and besides the web pages (`_http._tcp`) of these.
    pub types: Vec<ServiceType>,
}

/// DNS-SD over ordinary DNS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnicastDnsSdConfig {
    /// Domains to browse, of at least two labels.
    pub domains: Vec<HostName>,
    /// Also those that the search domains of the system's resolver name for browsing (RFC 6763, section 11).
    pub search_domains: bool,
    /// Types to look for besides those of printers and scanners.
    pub types: Vec<ServiceType>,
}

/// The user's own machine. Nothing of it is ever shared as one of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Where CUPS answers; `None`: its queues are not asked for.
    pub cups: Option<SocketAddr>,
    /// Whether to look for USB printers behind ipp-usb, which are announced on the loopback interface.
    pub usb: bool,
}

impl Default for DiscoverConfig {
    fn default() -> DiscoverConfig {
        DiscoverConfig {
            dns_sd: Some(DnsSdConfig::default()),
            unicast_dns_sd: None,
            local: Some(LocalConfig::default()),
            snmp: Some(SnmpConfig::default()),
            ssdp: Some(SsdpConfig::default()),
            ws_discovery: Some(WsDiscoveryConfig::default()),
            interfaces: InterfaceFilter::default(),
            network: None,
        }
    }
}

impl Default for LocalConfig {
    /// CUPS at 127.0.0.1:631, and USB printers.
    fn default() -> LocalConfig {
        LocalConfig { cups: Some(SocketAddr::from(([127, 0, 0, 1], 631))), usb: true }
    }
}
