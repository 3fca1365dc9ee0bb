//! Which network this is. Two networks may each have a "Printer" on `printer.local`, and they are not the same printer.
//!
//! A network is known by its router: by a hash of the router's hardware address, so short that the address cannot be had back from it (each
//! of its 2^32 values stands for some 65 000 addresses). A new router makes it another network; identities that are good everywhere, such as a
//! UUID, do not contain it, so that only what has no better identity moves then.

use std::{fmt, fs::File, io::Read, net::Ipv4Addr};

use openssl::sha::sha256;

use super::text::Mac;

/// Longest [`NetworkId`], bytes.
pub const MAX_NETWORK_ID: usize = 32;

/// Most bytes of the kernel's tables that are looked at.
const MAX_TABLE: u64 = 256 * 1024;

/// The kernel's tables of routes and of neighbours; Linux has them.
const ROUTE: &str = "/proc/net/route";
const ARP: &str = "/proc/net/arp";

/// Which network this is: 1 to [`MAX_NETWORK_ID`] ASCII letters, digits, hyphens, underscores and dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(String);

impl NetworkId {
    /// One that its user chose. `None`: it is not of that form.
    pub fn new(text: &str) -> Option<NetworkId> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=MAX_NETWORK_ID).contains(&text.len()) && text.bytes().all(good);
        fits.then(|| NetworkId(text.to_owned()))
    }

    /// The network whose router has this address.
    pub fn of_router(mac: Mac) -> NetworkId {
        let digest = sha256(&[b"spice-tunnel network ".as_slice(), &mac.octets()].concat());
        NetworkId(digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The network of a machine whose `/proc/net/route` and `/proc/net/arp` these are.
    pub fn of_tables(route: &str, arp: &str) -> Option<NetworkId> {
        let router = default_gateway(route)?;
        neighbour(arp, router).map(NetworkId::of_router)
    }

    /// The network of this machine. `None`: it has no router, or does not say.
    pub fn of_this_machine() -> Option<NetworkId> {
        NetworkId::of_tables(&read(ROUTE)?, &read(ARP)?)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where this machine's packets for the world go.
pub(super) fn default_gateway_of_this_machine() -> Option<Ipv4Addr> {
    default_gateway(&read(ROUTE)?).map(|(_, gateway)| gateway)
}

fn read(path: &str) -> Option<String> {
    let mut table = String::new();
    File::open(path).ok()?.take(MAX_TABLE).read_to_string(&mut table).ok()?;
    Some(table)
}

/// The gateway of the default route with the least metric, and its interface. A route of a VPN has no gateway here, and is passed over.
fn default_gateway(route: &str) -> Option<(&str, Ipv4Addr)> {
    // Iface Destination Gateway Flags RefCnt Use Metric Mask …; addresses as the bytes lie in memory (fib_trie.c).
    let routes = route.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (interface, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let (metric, mask) = (fields.nth(3)?, fields.next()?);
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        let default = destination == "00000000" && mask == "00000000" && !gateway.is_unspecified();
        default.then_some((metric.parse::<u32>().ok()?, interface, gateway))
    });
    routes.min_by_key(|(metric, _, _)| *metric).map(|(_, interface, gateway)| (interface, gateway))
}

fn neighbour(arp: &str, (interface, address): (&str, Ipv4Addr)) -> Option<Mac> {
    // IP address, HW type, Flags, HW address, Mask, Device (arp.c).
    arp.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[ip, _, _, mac, _, device] = fields.as_slice() else { return None };
        let its = device == interface && ip.parse::<Ipv4Addr>() == Ok(address);
        its.then(|| Mac::parse(mac)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
";
    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         02:00:00:00:00:01     *        wlan0
192.168.2.1      0x1         0x2         02:00:00:00:00:02     *        eth0
";

    fn network(route: &str, arp: &str) -> Option<NetworkId> {
        NetworkId::of_tables(route, arp)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_network_is_known_by_its_nearest_router() {
        let id = network(ROUTE, ARP).unwrap();
        assert_eq!(id, NetworkId::of_router(Mac::new([2, 0, 0, 0, 0, 2]).unwrap()));
        assert_ne!(id, NetworkId::of_router(Mac::new([2, 0, 0, 0, 0, 1]).unwrap()));
        assert_eq!(id.as_str().len(), 8);
        assert_eq!(NetworkId::new(id.as_str()), Some(id));
    }

    #[test]
    fn without_a_router_or_its_address_there_is_none() {
        assert_eq!(network("", ""), None);
        assert_eq!(network(ROUTE, ""), None);
        assert_eq!(network("", ARP), None);
        let incomplete = ARP.replace("02:00:00:00:00:02", "00:00:00:00:00:00");
        assert_eq!(network(ROUTE, &incomplete), None);
        for broken in ["x", "x\ny", "a b c d\n1 2 3", "h\ne 00000000 zz 0 0 0 0 00000000"] {
            assert_eq!(network(broken, broken), None);
        }
    }

    #[test]
    fn a_chosen_one_is_plain() {
        assert!(NetworkId::new("home-office_2.x").is_some());
        for bad in ["", "a b", "ä", "a/b", &"a".repeat(33)] {
            assert_eq!(NetworkId::new(bad), None);
        }
    }
}
