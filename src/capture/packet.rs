//! From a captured packet to the TCP segment in it: link types, VLAN tags, IPv4, IPv6.
//!
//! Checksums are not judged: where packets are captured before the network card fills them in, they are wrong. Lengths
//! are the IP header's, so padding behind a short Ethernet frame is no payload; where it leaves its length to the card,
//! which then cuts the packet into segments, all that was there is.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::file::Packet;

/// A TCP segment, its payload borrowed from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Sequence number of the first payload byte (of the SYN, if there is one).
    pub seq: u32,
    /// Acknowledgement number; means something only with the flag.
    pub ack: u32,
    /// The flags.
    pub flags: Flags,
    /// What was captured of the payload.
    pub payload: &'a [u8],
    /// Bytes of payload that were on the wire and that the capture cut off.
    pub cut: usize,
}

bitflags::bitflags! {
    /// Flags of a TCP header (RFC 9293, 3.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// The sender sends no more.
        const FIN = 1 << 0;
        /// The connection begins.
        const SYN = 1 << 1;
        /// The connection is aborted.
        const RST = 1 << 2;
        /// To be delivered at once.
        const PSH = 1 << 3;
        /// `ack` means something.
        const ACK = 1 << 4;
        /// Urgent data.
        const URG = 1 << 5;
        /// Others are kept.
        const _ = !0;
    }
}

/// Why nothing can be said about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketFault {
    /// It begins with something that is not known here.
    #[error("expected Ethernet, Linux cooked, loopback, PPP, NFLOG or raw IP, got link type {0}")]
    LinkType(u32),
    /// The capture ends within a header.
    #[error("the capture cut off the packet within its {header}: expected {expected} bytes, got {got}")]
    CutOff {
        /// Which.
        header: &'static str,
        /// Its length.
        expected: usize,
        /// What is left of the packet.
        got: usize,
    },
    /// The packet itself ends within a header.
    #[error("expected {expected} bytes of {header}, got {got}")]
    TooShort {
        /// Which.
        header: &'static str,
        /// Its length.
        expected: usize,
        /// What is left of the packet.
        got: usize,
    },
    /// A field holds what it cannot hold.
    #[error("expected {field} {expected}, got {got}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        got: usize,
    },
    /// Part of a TCP segment that was sent in fragments. They are not put together: a hole takes their place.
    #[error("part of a TCP segment: IP fragments are not put together")]
    Fragment,
}

/// Finds the TCP segment of a packet. `None`: it holds none.
pub fn segment<'a>(packet: &Packet<'a>) -> Result<Option<Segment<'a>>, PacketFault> {
    let len = packet.original_len.max(packet.bytes.len());
    let (protocol, rest) = link(packet.link_type, Slice { bytes: packet.bytes, len })?;
    let (from, to, tcp) = match protocol {
        Network::Ipv4 => match ipv4(rest)? {
            Some((from, to, tcp)) => (from.into(), to.into(), tcp),
            None => return Ok(None),
        },
        Network::Ipv6 => match ipv6(rest)? {
            Some((from, to, tcp)) => (from.into(), to.into(), tcp),
            None => return Ok(None),
        },
        Network::Other => return Ok(None),
    };
    tcp_segment(from, to, tcp).map(Some)
}

/// What is left of a packet: its length on the wire, and as much of it as was captured.
#[derive(Clone, Copy)]
struct Slice<'a> {
    bytes: &'a [u8],
    /// INVARIANT: not less than `bytes` has.
    len: usize,
}

impl<'a> Slice<'a> {
    /// Takes a header of `len` bytes off the front.
    fn split(self, header: &'static str, len: usize) -> Result<(&'a [u8], Self), PacketFault> {
        match self.bytes.split_at_checked(len) {
            Some((head, bytes)) => Ok((head, Self { bytes, len: self.len - len })),
            None if self.len >= len => {
                Err(PacketFault::CutOff { header, expected: len, got: self.bytes.len() })
            }
            None => Err(PacketFault::TooShort { header, expected: len, got: self.bytes.len() }),
        }
    }

    /// The same for a header of constant length.
    fn take<const N: usize>(self, header: &'static str) -> Result<(&'a [u8; N], Self), PacketFault> {
        let (_, rest) = self.split(header, N)?;
        match self.bytes.first_chunk() {
            Some(head) => Ok((head, rest)),
            None => Err(PacketFault::TooShort { header, expected: N, got: self.bytes.len() }),
        }
    }

    /// Without what stands behind the first `len` bytes. Where less than that was captured, the rest is cut off, whatever
    /// the file says of the packet's length.
    fn limit(self, len: usize) -> Self {
        Self { bytes: self.bytes.get(..len).unwrap_or(self.bytes), len }
    }

    fn first(self) -> Option<u8> {
        self.bytes.first().copied()
    }
}

/// What stands behind a link header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    Ipv4,
    Ipv6,
    Other,
}

/// Takes the link header off. The numbers are tcpdump.org's list of LINKTYPEs.
fn link(link_type: u32, packet: Slice<'_>) -> Result<(Network, Slice<'_>), PacketFault> {
    match link_type {
        // Ethernet: two addresses, EtherType.
        1 => {
            let (header, rest) = packet.take::<14>("Ethernet header")?;
            let [.., high, low] = *header;
            ether_type(u16::from_be_bytes([high, low]), rest)
        }
        // BSD loopback, in the byte order of the machine that captured, and OpenBSD's, in network order.
        0 | 108 => {
            let (&family, rest) = packet.take("loopback header")?;
            let family = u32::from_be_bytes(family);
            Ok((address_family(if family > 0xFFFF { family.swap_bytes() } else { family }), rest))
        }
        // PPP, also in HDLC framing.
        9 | 50 => ppp(packet),
        // IP without anything before it; 12 and 14 are what some systems number it.
        12 | 14 | 101 => Ok((by_version(packet), packet)),
        228 => Ok((Network::Ipv4, packet)),
        229 => Ok((Network::Ipv6, packet)),
        // Linux cooked: packet type, hardware type, address with its length, EtherType.
        113 => {
            let (header, rest) = packet.take::<16>("Linux cooked header")?;
            let [.., high, low] = *header;
            ether_type(u16::from_be_bytes([high, low]), rest)
        }
        // The same, version 2: EtherType first, then two reserved bytes, interface index, the rest.
        276 => {
            let (header, rest) = packet.take::<20>("Linux cooked header")?;
            let [high, low, ..] = *header;
            ether_type(u16::from_be_bytes([high, low]), rest)
        }
        239 => nflog(packet),
        other => Err(PacketFault::LinkType(other)),
    }
}

/// Follows VLAN tags and PPPoE to what they carry.
fn ether_type(mut kind: u16, mut rest: Slice<'_>) -> Result<(Network, Slice<'_>), PacketFault> {
    loop {
        match kind {
            0x0800 => return Ok((Network::Ipv4, rest)),
            0x86DD => return Ok((Network::Ipv6, rest)),
            // 802.1Q, 802.1ad and what was used before the latter: the tag, and the next EtherType.
            0x8100 | 0x88A8 | 0x9100 => {
                let (&[_, _, high, low], behind) = rest.take("VLAN tag")?;
                kind = u16::from_be_bytes([high, low]);
                rest = behind;
            }
            // A PPPoE session: version and type, code, session, length.
            0x8864 => return ppp(rest.take::<6>("PPPoE header")?.1),
            _ => return Ok((Network::Other, rest)),
        }
    }
}

fn ppp(packet: Slice<'_>) -> Result<(Network, Slice<'_>), PacketFault> {
    // Address and control may be left out, and the first byte of the protocol, which is even.
    let (_, packet) = match packet.bytes {
        [0xFF, 0x03, ..] => packet.split("PPP header", 2)?,
        _ => (&[][..], packet),
    };
    let (protocol, rest) = match packet.first() {
        Some(first) if first % 2 == 1 => (first.into(), packet.split("PPP header", 1)?.1),
        _ => {
            let (&protocol, rest) = packet.take("PPP header")?;
            (u16::from_be_bytes(protocol), rest)
        }
    };
    let network = match protocol {
        0x0021 => Network::Ipv4,
        0x0057 => Network::Ipv6,
        _ => Network::Other,
    };
    Ok((network, rest))
}

/// Netfilter's log: a header with the address family, then attributes, one of which is the packet. The attributes are in
/// the byte order of the machine that captured.
fn nflog(packet: Slice<'_>) -> Result<(Network, Slice<'_>), PacketFault> {
    const PAYLOAD: u16 = 9;
    let (&[family, ..], mut rest) = packet.take::<4>("NFLOG header")?;
    while rest.len > 0 {
        let (&[a, b, c, d], behind) = rest.take("NFLOG attribute")?;
        // No attribute's number is above 255.
        let (len, kind) = if d == 0 {
            (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
        } else {
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        };
        let Some(len) = usize::from(len).checked_sub(4) else {
            return Err(PacketFault::Field {
                field: "NFLOG attribute length",
                expected: "at least 4",
                got: len.into(),
            });
        };
        if kind == PAYLOAD {
            return Ok((address_family(family.into()), behind.limit(len)));
        }
        rest = behind.split("NFLOG attribute", len.next_multiple_of(4))?.1;
    }
    Ok((Network::Other, rest))
}

/// AF_INET is the same everywhere, AF_INET6 is Linux's, or one of the BSDs'.
fn address_family(family: u32) -> Network {
    match family {
        2 => Network::Ipv4,
        10 | 24 | 28 | 30 => Network::Ipv6,
        _ => Network::Other,
    }
}

fn by_version(packet: Slice<'_>) -> Network {
    match packet.first().map(|first| first >> 4) {
        Some(4) => Network::Ipv4,
        Some(6) => Network::Ipv6,
        _ => Network::Other,
    }
}

const TCP: u8 = 6;

/// Addresses and what they exchange, if it is TCP (RFC 791, 3.1).
fn ipv4(packet: Slice<'_>) -> Result<Option<(Ipv4Addr, Ipv4Addr, Slice<'_>)>, PacketFault> {
    const HEADER: &str = "IPv4 header";
    let (header, _) = packet.take::<20>(HEADER)?;
    let &[version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    check_version(version_ihl, 4)?;
    if protocol != TCP {
        return Ok(None);
    }
    let header_len = usize::from(version_ihl & 0xF) * 4;
    if header_len < 20 {
        return Err(PacketFault::Field {
            field: "IPv4 header length",
            expected: "at least 20",
            got: header_len,
        });
    }
    const MORE_OR_OFFSET: u16 = 0x3FFF;
    if u16::from_be_bytes([f0, f1]) & MORE_OR_OFFSET != 0 {
        return Err(PacketFault::Fragment);
    }
    let packet = match usize::from(u16::from_be_bytes([l0, l1])) {
        // Left to the network card.
        0 => packet,
        total => packet.limit(total),
    };
    let (_, payload) = packet.split(HEADER, header_len)?;
    Ok(Some((Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3), payload)))
}

/// The same for IPv6 (RFC 8200), whose extension headers are passed over.
fn ipv6(packet: Slice<'_>) -> Result<Option<(Ipv6Addr, Ipv6Addr, Slice<'_>)>, PacketFault> {
    let (header, rest) = packet.take::<40>("IPv6 header")?;
    let (&[version, _, _, _, l0, l1, mut next, _], addresses) =
        header.split_first_chunk().unwrap_or((&[0; 8], &[]));
    check_version(version, 6)?;
    let (Some(from), Some(to)) = (addresses.first_chunk::<16>(), addresses.last_chunk::<16>()) else {
        return Ok(None);
    };
    let mut rest = match usize::from(u16::from_be_bytes([l0, l1])) {
        // Left to the network card, or in a jumbo option because it does not fit.
        0 => rest,
        len => rest.limit(len),
    };
    loop {
        let unit = match next {
            TCP => return Ok(Some(((*from).into(), (*to).into(), rest))),
            // Hop by hop, routing, destination options, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => 8,
            // Authentication.
            51 => 4,
            44 => {
                let (&[kind, _, o0, o1, ..], behind) = rest.take::<8>("IPv6 fragment header")?;
                const OFFSET_OR_MORE: u16 = 0xFFF9;
                if u16::from_be_bytes([o0, o1]) & OFFSET_OR_MORE == 0 {
                    (next, rest) = (kind, behind);
                    continue;
                }
                return if kind == TCP { Err(PacketFault::Fragment) } else { Ok(None) };
            }
            _ => return Ok(None),
        };
        const HEADER: &str = "IPv6 extension header";
        let (&[kind, len], _) = rest.take(HEADER)?;
        let len = if unit == 8 { (usize::from(len) + 1) * 8 } else { (usize::from(len) + 2) * 4 };
        rest = rest.split(HEADER, len)?.1;
        next = kind;
    }
}

fn check_version(first: u8, expected: u8) -> Result<(), PacketFault> {
    let got = first >> 4;
    if got == expected {
        return Ok(());
    }
    let expected = if expected == 4 { "4" } else { "6" };
    Err(PacketFault::Field { field: "IP version", expected, got: got.into() })
}

/// Takes the TCP header off (RFC 9293, 3.1).
fn tcp_segment(from: IpAddr, to: IpAddr, packet: Slice<'_>) -> Result<Segment<'_>, PacketFault> {
    let (header, _) = packet.take::<20>("TCP header")?;
    let &[p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, ..] = header;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < 20 {
        return Err(PacketFault::Field {
            field: "TCP header length",
            expected: "at least 20",
            got: header_len,
        });
    }
    let Some(len) = packet.len.checked_sub(header_len) else {
        return Err(PacketFault::TooShort { header: "TCP header", expected: header_len, got: packet.len });
    };
    // The options may be cut off: nothing in them is wanted.
    let payload = packet.bytes.get(header_len..).unwrap_or_default();
    Ok(Segment {
        from: SocketAddr::new(from, u16::from_be_bytes([p0, p1])),
        to: SocketAddr::new(to, u16::from_be_bytes([p2, p3])),
        seq: u32::from_be_bytes([s0, s1, s2, s3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags: Flags::from_bits_retain(flags),
        payload,
        cut: len - payload.len(),
    })
}
