//! A TCP connection on paper: IPv4 packets of both ends, checksums right, in a pcap file.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use spice_tunnel::capture::packet::Flags;
use spice_tunnel::capture::reassembly::Way;

use super::Error;

/// An end of the connection.
struct End {
    address: SocketAddrV4,
    /// Sequence number of the next byte it says.
    next: u32,
}

/// Makes the packets of one connection, in their order.
pub(crate) struct Conversation {
    client: End,
    server: End,
}

const IP_LEN: usize = 20;
const TCP_LEN: usize = 20;
const WINDOW: u16 = 0xffff;
const TIME_TO_LIVE: u8 = 64;
const TCP: u8 = 6;
const DONT_FRAGMENT: u16 = 0x4000;

impl Conversation {
    /// Both begin to count at `first`.
    pub(crate) fn new(client: SocketAddrV4, server: SocketAddrV4, first: u32) -> Self {
        Self { client: End { address: client, next: first }, server: End { address: server, next: first } }
    }

    /// SYN, SYN-ACK, ACK.
    pub(crate) fn open(&mut self) -> [Vec<u8>; 3] {
        let syn = self.packet(Way::Forth, Flags::SYN, &[]);
        let answer = self.packet(Way::Back, Flags::SYN | Flags::ACK, &[]);
        [syn, answer, self.packet(Way::Forth, Flags::ACK, &[])]
    }

    /// Bytes, of which an IP packet must have room: 65,495 at most.
    pub(crate) fn say(&mut self, way: Way, bytes: &[u8]) -> Vec<u8> {
        self.packet(way, Flags::PSH | Flags::ACK, bytes)
    }

    /// The end of a direction.
    pub(crate) fn finish(&mut self, way: Way) -> Vec<u8> {
        self.packet(way, Flags::FIN | Flags::ACK, &[])
    }

    fn packet(&mut self, way: Way, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let (from, to) = match way {
            Way::Forth => (&mut self.client, &self.server),
            Way::Back => (&mut self.server, &self.client),
        };
        let (seq, ack) = (from.next, if flags.contains(Flags::ACK) { to.next } else { 0 });
        let counted = payload.len() + usize::from(flags.intersects(Flags::SYN | Flags::FIN));
        from.next = from.next.wrapping_add(u32::try_from(counted).unwrap_or(u32::MAX));

        let mut tcp = Vec::with_capacity(TCP_LEN + payload.len());
        tcp.extend(from.address.port().to_be_bytes());
        tcp.extend(to.address.port().to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        // Its length in words, in the upper half.
        tcp.push(5 << 4);
        tcp.push(flags.bits());
        tcp.extend(WINDOW.to_be_bytes());
        let checksum_at = tcp.len();
        // Checksum and urgent pointer.
        tcp.extend([0; 4]);
        tcp.extend(payload);
        let length = u16::try_from(tcp.len()).unwrap_or(u16::MAX);
        let mut pseudo = Vec::with_capacity(12);
        pseudo.extend(from.address.ip().octets());
        pseudo.extend(to.address.ip().octets());
        pseudo.extend([0, TCP]);
        pseudo.extend(length.to_be_bytes());
        let sum = checksum(&[&pseudo, &tcp]);
        put(&mut tcp, checksum_at, sum);

        let mut ip = Vec::with_capacity(IP_LEN + tcp.len());
        // Version and length in words, then the service.
        ip.extend([0x45, 0]);
        ip.extend(length.saturating_add(20).to_be_bytes());
        ip.extend([0; 2]);
        ip.extend(DONT_FRAGMENT.to_be_bytes());
        ip.extend([TIME_TO_LIVE, TCP]);
        let checksum_at = ip.len();
        ip.extend([0; 2]);
        ip.extend(from.address.ip().octets());
        ip.extend(to.address.ip().octets());
        let sum = checksum(&[&ip]);
        put(&mut ip, checksum_at, sum);
        ip.extend(tcp);
        ip
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Of the parts behind each other, all but the last of even length (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| match *word {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Writes packets and their times as a pcap file of bare IP.
pub(crate) fn write(path: &Path, packets: &[(Duration, Vec<u8>)]) -> Result<(), Error> {
    let header = PcapHeader { datalink: DataLink::RAW, snaplen: 262_144, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(std::fs::File::create(path)?, header)?;
    for (time, packet) in packets {
        let length = u32::try_from(packet.len())?;
        writer.write_packet(&PcapPacket::new(*time, length, packet.as_slice())?)?;
    }
    Ok(())
}
