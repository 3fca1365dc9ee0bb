//! Linux's table of neighbours, `/proc/net/arp`: which network card has answered for an address.

use std::net::{IpAddr, Ipv4Addr};

/// Longest table that is read, bytes.
pub(super) const MAX_TABLE: u64 = 256 * 1024;

/// An entry that somebody has answered for (`ATF_COM` of `linux/if_arp.h`).
const COMPLETE: u32 = 2;

/// The card of an address, told by the table.
pub(super) fn card(table: &str, address: IpAddr) -> Option<[u8; 6]> {
    // Address, hardware type, flags, hardware address, mask, device.
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let entry: Ipv4Addr = words.next()?.parse().ok()?;
        let _kind = words.next()?;
        let flags = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        let card = octets(words.next()?)?;
        (IpAddr::V4(entry) == address && flags & COMPLETE != 0).then_some(card)
    })
}

fn octets(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         00:11:22:aa:bb:cc     *        eth0
192.168.1.9      0x1         0x0         00:00:00:00:00:00     *        eth0
192.168.1.5      0x1         0x6         02:42:0a:00:00:05     *        wlan0
";

    #[test]
    fn cards_are_found() {
        let card = |last: u8| card(TABLE, [192, 168, 1, last].into());
        assert_eq!(card(1), Some([0, 0x11, 0x22, 0xaa, 0xbb, 0xcc]));
        assert_eq!(card(5), Some([2, 0x42, 10, 0, 0, 5]));
        assert_eq!(card(9), None);
        assert_eq!(card(7), None);
    }

    #[test]
    fn another_table_has_none() {
        let address = [192, 168, 1, 1].into();
        for table in [
            "",
            "x",
            "x\n192.168.1.1",
            "x\n192.168.1.1 0x1 2 00:11:22:aa:bb:cc",
            "x\n192.168.1.1 0x1 0x2 00:11:22:aa:bb",
            "x\n192.168.1.1 0x1 0x2 00:11:22:aa:bb:cc:dd",
            "x\n192.168.1.1 0x1 0x2 0:11:22:aa:bb:cc",
            "x\n192.168.1.1 0x1 0x2 zz:11:22:aa:bb:cc",
        ] {
            assert_eq!(card(table, address), None, "{table:?}");
        }
        assert_eq!(card(TABLE, "::1".parse().unwrap()), None);
    }
}
