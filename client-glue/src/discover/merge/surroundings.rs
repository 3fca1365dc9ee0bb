//! Which addresses a device may have, seen from this machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    discover::{MAX_ADDRESSES, Sighting, Source, interfaces::Network},
    resolve::{Class, is_virtual},
};

/// The machine's own addresses and the networks that it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Every address of this machine.
    pub own: BTreeSet<IpAddr>,
    /// The networks on which devices are looked for.
    pub networks: Vec<Network>,
}

impl Surroundings {
    /// Where the device of a sighting may be dialled, most wanted first; at most [`MAX_ADDRESSES`].
    ///
    /// A device in the network can say what it likes. So an address of the internet has to be in one of our networks, unless a domain
    /// that the user chose names it: else a printer could stand for any host in the world. Private addresses of other networks are taken:
    /// many companies reflect multicast DNS between theirs. This machine's own addresses belong to its own services alone, and
    /// what a tunnel made of a device elsewhere does not go into one again.
    pub(super) fn addresses(&self, sighting: &Sighting) -> Vec<IpAddr> {
        let mut good: Vec<IpAddr> =
            sighting.addresses.iter().copied().filter(|address| self.allows(sighting, *address)).collect();
        good.sort_by_key(|address| (!self.is_near(*address), address.is_ipv6(), *address));
        good.dedup();
        good.truncate(MAX_ADDRESSES);
        good
    }

    fn allows(&self, sighting: &Sighting, address: IpAddr) -> bool {
        let class = Class::of(address);
        if sighting.this_machine {
            return class == Class::Loopback;
        }
        let anywhere = sighting.key.source == Source::UnicastDnsSd;
        class == Class::Unicast
            && !self.own.contains(&address)
            && !is_virtual(address)
            && (anywhere || is_private(address) || self.is_near(address))
    }

    fn is_near(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(address))
    }
}

/// RFC 1918, RFC 6598, RFC 4193.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_private()
                || Ipv4Addr::from(address.to_bits() & 0xffc0_0000) == Ipv4Addr::new(100, 64, 0, 0)
        }
        IpAddr::V6(address) => {
            let [first, ..] = Ipv6Addr::octets(&address);
            first & 0xfe == 0xfc
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(source: Source, addresses: &[&str]) -> Vec<String> {
        let surroundings = Surroundings {
            own: ["192.168.1.2".parse().unwrap(), "127.0.0.1".parse().unwrap()].into(),
            networks: vec![
                Network { address: "192.168.1.2".parse().unwrap(), prefix: 24 },
                Network { address: "203.0.113.2".parse().unwrap(), prefix: 28 },
                Network { address: "2001:db8::2".parse().unwrap(), prefix: 64 },
            ],
        };
        let mut sighting = Sighting::new(source, "x");
        sighting.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        surroundings.addresses(&sighting).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn near_ones_first_and_four_before_six() {
        let given = ["2001:db8::9", "fd00::9", "10.0.0.9", "192.168.1.9", "192.168.1.9"];
        assert_eq!(allowed(Source::DnsSd, &given), ["192.168.1.9", "2001:db8::9", "10.0.0.9", "fd00::9"]);
    }

    #[test]
    fn no_device_stands_for_a_host_of_the_internet() {
        assert_eq!(allowed(Source::DnsSd, &["8.8.8.8", "2001:db8:1::1", "203.0.113.20"]), [] as [&str; 0]);
        assert_eq!(allowed(Source::DnsSd, &["203.0.113.3"]), ["203.0.113.3"]);
        assert_eq!(allowed(Source::UnicastDnsSd, &["8.8.8.8"]), ["8.8.8.8"]);
    }

    #[test]
    fn no_device_stands_for_this_machine() {
        let given = ["127.0.0.1", "::1", "192.168.1.2", "169.254.1.1", "fe80::1", "0.0.0.0", "224.0.0.1"];
        for source in [Source::DnsSd, Source::UnicastDnsSd, Source::Snmp] {
            assert_eq!(allowed(source, &given), [] as [&str; 0]);
        }
        for source in [Source::DnsSd, Source::UnicastDnsSd] {
            assert_eq!(allowed(source, &["198.18.7.9", "198.19.0.1"]), [] as [&str; 0], "out of a tunnel");
        }
        assert_eq!(allowed(Source::Local, &["192.168.1.9", "127.0.0.1", "::1"]), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn they_are_bounded() {
        let many: Vec<String> = (10..60).map(|n| format!("192.168.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(allowed(Source::DnsSd, &many).len(), MAX_ADDRESSES);
    }
}
