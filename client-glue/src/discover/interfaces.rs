//! On which of the machine's interfaces one looks for devices.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use thiserror::Error;

use crate::resolve::is_virtual;

/// Interfaces of virtual machines and containers, by how their names begin: their networks are not the user's, and the guest
/// itself may be behind one of them.
const VIRTUAL: [&str; 10] =
    ["docker", "podman", "cni", "virbr", "vnet", "lxcbr", "lxdbr", "br-", "vmnet", "vboxnet"];

/// Most interface addresses that are considered.
const MAX_INTERFACES: usize = 64;

/// The machine does not say which interfaces it has.
#[derive(Debug, Error)]
#[error("cannot list the network interfaces: {0}")]
pub struct InterfaceError(#[from] std::io::Error);

/// Which interfaces are looked on. By default all that are up and are neither loopback, point to point (VPN), nor named like those of virtual
/// machines and containers, nor in the network of a tunnel's guests, as this machine's are where it is such a guest itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceFilter {
    /// Just these, by name, whatever they are; loopback alone never. Empty: the default.
    pub only: Vec<String>,
    /// Never these, by name.
    pub except: Vec<String>,
}

/// A network: an address in it, and how many bits of it all its addresses have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address in it.
    pub address: IpAddr,
    /// How many bits are the network's.
    pub prefix: u8,
}

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) index: Option<u32>,
    /// The interface's own address, in its network.
    pub(crate) network: Network,
    pub(crate) broadcast: Option<Ipv4Addr>,
}

impl Network {
    /// Whether `address` is in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The machine's interfaces that pass the filter, an entry for each address.
pub(crate) fn interfaces(filter: &InterfaceFilter) -> Result<Vec<Interface>, InterfaceError> {
    let mut found: Vec<Interface> = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(|interface| filter.takes(interface))
        .map(|interface| {
            let (prefix, broadcast) = match &interface.addr {
                if_addrs::IfAddr::V4(four) => (four.prefixlen, four.broadcast),
                if_addrs::IfAddr::V6(six) => (six.prefixlen, None),
            };
            let (address, index) = (interface.ip(), interface.index);
            Interface { name: interface.name, index, network: Network { address, prefix }, broadcast }
        })
        .collect();
    found.truncate(MAX_INTERFACES);
    Ok(found)
}

impl InterfaceFilter {
    /// Whether to look on this interface.
    pub(super) fn takes(&self, interface: &if_addrs::Interface) -> bool {
        let named = |names: &[String]| names.contains(&interface.name);
        if interface.is_loopback() || !interface.is_oper_up() || named(&self.except) {
            return false;
        }
        if !self.only.is_empty() {
            return named(&self.only);
        }
        !interface.is_p2p()
            && !is_virtual(interface.ip())
            && !VIRTUAL.iter().any(|start| interface.name.starts_with(start))
    }
}

/// Every address of this machine, loopback included.
pub(crate) fn own_addresses() -> Result<BTreeSet<IpAddr>, InterfaceError> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}
