//! What ICMP says about a TCP connection: that its destination cannot be reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::capture::file::Packet;

/// Who says so, and from where to where the connection was to be. The guest's card is Ethernet and its network IPv4, so
/// only that is understood.
pub(super) fn unreachable(packet: &Packet<'_>) -> Option<(IpAddr, SocketAddr, SocketAddr)> {
    if packet.link_type != ETHERNET {
        return None;
    }
    let (&[.., kind_high, kind_low], mut rest) = packet.bytes.split_first_chunk::<14>()?;
    let mut kind = u16::from_be_bytes([kind_high, kind_low]);
    while kind == VLAN {
        let (&[_, _, high, low], behind) = rest.split_first_chunk()?;
        kind = u16::from_be_bytes([high, low]);
        rest = behind;
    }
    if kind != IPV4 {
        return None;
    }
    let (protocol, by, _, message) = ipv4(rest)?;
    let (&[kind, ..], quoted) = message.split_first_chunk::<8>()?;
    if protocol != ICMP || kind != UNREACHABLE {
        return None;
    }
    let (protocol, from, to, start) = ipv4(quoted)?;
    let (&[p0, p1, q0, q1], _) = start.split_first_chunk()?;
    (protocol == TCP).then(|| {
        let port = |high, low| u16::from_be_bytes([high, low]);
        (by.into(), SocketAddr::new(from.into(), port(p0, p1)), SocketAddr::new(to.into(), port(q0, q1)))
    })
}

/// Protocol, source, destination and payload (RFC 791, 3.1). The payload is not cut to its length: it is looked into, not
/// passed on.
fn ipv4(packet: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8])> {
    let &[first, _, _, _, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        packet.first_chunk::<20>()?;
    let payload = packet.get(usize::from(first & 0xF) * 4..)?;
    (first >> 4 == 4 && first & 0xF >= 5)
        .then(|| (protocol, Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3), payload))
}

const ETHERNET: u32 = 1;
const VLAN: u16 = 0x8100;
const IPV4: u16 = 0x0800;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UNREACHABLE: u8 = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn packet(bytes: &[u8]) -> Packet<'_> {
        Packet { number: 1, time: Duration::ZERO, link_type: ETHERNET, original_len: bytes.len(), bytes }
    }

    fn ip(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        bytes.extend_from_slice(&from);
        bytes.extend_from_slice(&to);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_quoted_connection_is_found_and_nothing_in_half_a_packet() {
        let quoted = ip(TCP, [10, 0, 2, 15], [10, 0, 2, 31], &[0x12, 0x34, 0x1f, 0x3f, 0, 0, 0, 1]);
        let mut message = vec![UNREACHABLE, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&quoted);
        let mut bytes = vec![0; 12];
        bytes.extend_from_slice(&[0x81, 0, 0, 7, 8, 0]);
        bytes.extend_from_slice(&ip(ICMP, [10, 0, 2, 2], [10, 0, 2, 15], &message));
        let found = unreachable(&packet(&bytes)).unwrap();
        assert_eq!(found.0, IpAddr::from([10, 0, 2, 2]));
        assert_eq!(found.1, "10.0.2.15:4660".parse().unwrap());
        assert_eq!(found.2, "10.0.2.31:7999".parse().unwrap());
        // The last four bytes are a sequence number, which is not needed.
        for len in 0..bytes.len() - 4 {
            assert_eq!(unreachable(&packet(&bytes[..len])), None);
        }
    }
}
