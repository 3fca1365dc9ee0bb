//! How the virtual network is laid out, and how much of it there may be.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::address::{Subnet, SubnetError};
use crate::domain::Domain;
use crate::packet::MacAddress;

/// How the virtual network is laid out, and its limits.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The virtual network. Only IPv4 is answered as yet.
    pub subnet: Subnet,
    /// Our own address in it: DHCP server, source of ICMP errors.
    pub gateway: Ipv4Addr,
    /// First and last address that DHCP gives.
    pub guests: (Ipv4Addr, Ipv4Addr),
    /// Our address on the link; unicast.
    pub mac: MacAddress,
    /// Largest IP packet, 576 to 65,535 octets. Told to the guest by DHCP.
    pub mtu: u16,
    /// How long a guest may use its address without asking again.
    pub lease_time: Duration,
    /// The gateway is a DNS server for this domain; `None`: it is none.
    pub domain: Option<Domain>,
    /// DHCP tells guests of the DNS server.
    pub announce_dns: bool,
    /// Most connections at once, held SYNs included.
    pub max_flows: usize,
    /// Most connections at once that are not established.
    pub max_half_open: usize,
    /// How long a SYN is held for its owner to decide.
    pub connect_deadline: Duration,
    /// Start of the initial sequence numbers; from a random source.
    pub seed: u64,
    /// Octets that one connection may receive before its owner reads them: 4 KiB to 1 GiB. Memory is used as it is filled.
    pub receive_buffer: usize,
    /// Octets that one connection may have sent without acknowledgement: 4 KiB to 1 GiB. Memory is used as it is filled.
    pub send_buffer: usize,
    /// How long a connection may be silent before the guest is asked whether it still has it.
    pub keepalive: Duration,
    /// How long the guest may leave us without any answer before a connection is given up.
    pub dead_after: Duration,
}

impl NetConfig {
    /// The usual layout of a subnet: its first address is the gateway's, the next ones (253, or a quarter of a small subnet) are for guests,
    /// the rest for services.
    ///
    /// # Errors
    /// Not an IPv4 subnet, or one with less than 14 hosts.
    pub fn new(subnet: Subnet) -> Result<NetConfig, NetConfigError> {
        let network = match subnet.network() {
            IpAddr::V4(network) if subnet.prefix() <= 28 => network,
            IpAddr::V4(_) => return Err(NetConfigError::Small(subnet)),
            IpAddr::V6(_) => return Err(NetConfigError::Version(subnet)),
        };
        let hosts = (1u32 << (32 - u32::from(subnet.prefix()))) - 2;
        let guests = (hosts / 4).min(253);
        // Within the subnet, hence within 32 bits.
        let nth = |index: u32| Ipv4Addr::from_bits(network.to_bits().wrapping_add(index));
        Ok(NetConfig {
            subnet,
            gateway: nth(1),
            guests: (nth(2), nth(1 + guests)),
            mac: MacAddress([0x02, 0x53, 0x50, 0x54, 0x00, 0x01]),
            mtu: 65_520,
            lease_time: Duration::from_secs(12 * 3600),
            domain: Some(Domain::default()),
            announce_dns: true,
            max_flows: 16_384,
            max_half_open: 1024,
            connect_deadline: Duration::from_secs(60),
            seed: 0,
            receive_buffer: 256 * 1024,
            send_buffer: 512 * 1024,
            keepalive: Duration::from_secs(45),
            dead_after: Duration::from_secs(180),
        })
    }

    /// The address ranges that no service may get: the gateway's and the guests', ends included.
    pub fn reserved(&self) -> Vec<(IpAddr, IpAddr)> {
        let gateway = IpAddr::V4(self.gateway);
        vec![(gateway, gateway), (self.guests.0.into(), self.guests.1.into())]
    }
}

impl Default for NetConfig {
    /// 198.18.0.0/16, of the range set aside for network tests (RFC 2544): no user's network has it, so nothing is hidden by it.
    fn default() -> NetConfig {
        let subnet = Subnet::new(Ipv4Addr::new(198, 18, 0, 0).into(), 16);
        match subnet.map_err(NetConfigError::from).and_then(NetConfig::new) {
            Ok(config) => config,
            Err(error) => unreachable!("a constant: {error}"),
        }
    }
}

/// Why a subnet cannot be the virtual network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetConfigError {
    /// Too few addresses.
    #[error("{0} is too small: expected a prefix of at most 28, better 16")]
    Small(Subnet),
    /// Not IPv4.
    #[error("{0} is not an IPv4 subnet; the guest is answered on IPv4 only")]
    Version(Subnet),
    /// Not a subnet at all.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
}
