//! Ethernet, ARP, IPv4, ICMP, UDP and TCP headers: borrowed views of what the guest sent, and writers for what we answer.
//!
//! A view exists only for a packet whose lengths and checksums are right, so nobody above looks at them again. Writers
//! append to a buffer. Formats: RFC 894 (Ethernet), RFC 826 (ARP), RFC 791 (IPv4), RFC 792 (ICMP), RFC 768 (UDP), RFC 9293
//! (TCP).

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Octets of an Ethernet header without tags.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// How many routers a packet of ours may pass; it passes none.
const TTL: u8 = 64;
/// Octets of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
/// Octets of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations of the link.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Names one station: neither a group (broadcast included) nor all zero.
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a packet is not looked at further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Too short, a length that lies, a field that must not have its value.
    Malformed,
    /// The checksum says that it was damaged on its way.
    Checksum,
    /// A piece of a datagram; we do not reassemble.
    Fragment,
}

/// An Ethernet II frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) destination: MacAddress,
    pub(crate) source: MacAddress,
    pub(crate) payload: Payload<'a>,
}

/// What an Ethernet frame carries, still unparsed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    Ipv4(&'a [u8]),
    Arp(&'a [u8]),
    Ipv6,
    /// A tag, a length (IEEE 802.3), or something else that we do not speak.
    Other,
}

impl<'a> Frame<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Result<Frame<'a>, Fault> {
        let (destination, rest) = frame.split_first_chunk().ok_or(Fault::Malformed)?;
        let (source, rest) = rest.split_first_chunk().ok_or(Fault::Malformed)?;
        let (kind, payload) = rest.split_first_chunk().ok_or(Fault::Malformed)?;
        let payload = match u16::from_be_bytes(*kind) {
            ETHERTYPE_IPV4 => Payload::Ipv4(payload),
            ETHERTYPE_ARP => Payload::Arp(payload),
            ETHERTYPE_IPV6 => Payload::Ipv6,
            _ => Payload::Other,
        };
        Ok(Frame { destination: MacAddress(*destination), source: MacAddress(*source), payload })
    }
}

/// An ARP request for IPv4 over Ethernet. Replies and other kinds of ARP have no view: nothing here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArpRequest {
    pub(crate) sender_mac: MacAddress,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

impl ArpRequest {
    /// `None`: valid ARP, but not a request.
    pub(crate) fn parse(packet: &[u8]) -> Result<Option<ArpRequest>, Fault> {
        let (kind, rest) = packet.split_first_chunk::<6>().ok_or(Fault::Malformed)?;
        if kind != &[0, 1, 8, 0, 6, 4] {
            return Err(Fault::Malformed);
        }
        let (operation, rest) = rest.split_first_chunk::<2>().ok_or(Fault::Malformed)?;
        let (sender_mac, rest) = rest.split_first_chunk::<6>().ok_or(Fault::Malformed)?;
        let (sender, rest) = rest.split_first_chunk::<4>().ok_or(Fault::Malformed)?;
        let (_target_mac, rest) = rest.split_first_chunk::<6>().ok_or(Fault::Malformed)?;
        let target = rest.first_chunk::<4>().ok_or(Fault::Malformed)?;
        Ok((*operation == [0, 1]).then_some(ArpRequest {
            sender_mac: MacAddress(*sender_mac),
            sender: Ipv4Addr::from(*sender),
            target: Ipv4Addr::from(*target),
        }))
    }
}

/// An unfragmented IPv4 packet with a right header checksum, link padding cut off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv4<'a> {
    /// Header and payload.
    pub(crate) whole: &'a [u8],
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
    /// Whoever brought it vouches for the checksum of its TCP or UDP, which may not be in its place.
    pub(crate) vouched: bool,
}

impl<'a> Ipv4<'a> {
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Ipv4<'a>, Fault> {
        let &[
            version_ihl,
            _,
            len0,
            len1,
            _,
            _,
            flags,
            offset,
            _,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ] = packet.first_chunk::<IPV4_HEADER>().ok_or(Fault::Malformed)?;
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([len0, len1]));
        if version_ihl >> 4 != 4 || header_len < IPV4_HEADER || total_len < header_len {
            return Err(Fault::Malformed);
        }
        let whole = packet.get(..total_len).ok_or(Fault::Malformed)?;
        let (header, payload) = whole.split_at_checked(header_len).ok_or(Fault::Malformed)?;
        if finish(sum(header)) != 0 {
            return Err(Fault::Checksum);
        }
        // More fragments, or an offset. The reserved bit above them is not ours to judge (RFC 3514).
        if flags & 0x3f != 0 || offset != 0 {
            return Err(Fault::Fragment);
        }
        Ok(Ipv4 {
            whole,
            source: Ipv4Addr::new(s0, s1, s2, s3),
            destination: Ipv4Addr::new(d0, d1, d2, d3),
            protocol,
            payload,
            vouched: false,
        })
    }

    fn pseudo_sum(&self) -> u64 {
        pseudo_sum(self.source, self.destination, self.protocol, self.payload.len())
    }
}

/// An ICMP message with a right checksum.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Icmp<'a> {
    /// Everything behind type, code and checksum: identifier, sequence number, data.
    EchoRequest(&'a [u8]),
    /// Answers, errors, and what we do not know.
    Other,
}

impl<'a> Icmp<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Icmp<'a>, Fault> {
        let (&[kind, code, _, _], rest) = message.split_first_chunk::<4>().ok_or(Fault::Malformed)?;
        if finish(sum(message)) != 0 {
            return Err(Fault::Checksum);
        }
        match (kind, code) {
            (8, 0) if rest.len() >= 4 => Ok(Icmp::EchoRequest(rest)),
            (8, 0) => Err(Fault::Malformed),
            _ => Ok(Icmp::Other),
        }
    }
}

/// A UDP datagram with a right or vouched checksum, or none (RFC 768 lets the sender leave it out).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Udp<'a> {
    pub(crate) fn parse(ip: &Ipv4<'a>) -> Result<Udp<'a>, Fault> {
        let &[s0, s1, d0, d1, l0, l1, c0, c1] = ip.payload.first_chunk::<8>().ok_or(Fault::Malformed)?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let datagram = ip.payload.get(..len).ok_or(Fault::Malformed)?;
        let payload = datagram.get(8..).ok_or(Fault::Malformed)?;
        let pseudo = pseudo_sum(ip.source, ip.destination, ip.protocol, len);
        if !ip.vouched && [c0, c1] != [0, 0] && finish(pseudo + sum(datagram)) != 0 {
            return Err(Fault::Checksum);
        }
        Ok(Udp {
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            payload,
        })
    }
}

/// TCP control bits (RFC 9293, 3.1), as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpFlags(pub(crate) u8);

impl TcpFlags {
    pub(crate) const FIN: TcpFlags = TcpFlags(0x01);
    pub(crate) const SYN: TcpFlags = TcpFlags(0x02);
    pub(crate) const RST: TcpFlags = TcpFlags(0x04);
    pub(crate) const ACK: TcpFlags = TcpFlags(0x10);

    pub(crate) fn has(self, flag: TcpFlags) -> bool {
        self.0 & flag.0 == flag.0
    }

    /// The SYN of a new connection and nothing else. A SYN with data is one (we ignore the data: the guest sends it again).
    pub(crate) fn opens(self) -> bool {
        self.has(TcpFlags::SYN)
            && !self.has(TcpFlags::ACK)
            && !self.has(TcpFlags::RST)
            && !self.has(TcpFlags::FIN)
    }
}

/// A TCP segment with a right or vouched checksum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// The IPv4 packet that carries it.
    pub(crate) ip: Ipv4<'a>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: TcpFlags,
    /// TCP header with its options.
    pub(crate) header: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl<'a> Segment<'a> {
    pub(crate) fn parse(ip: &Ipv4<'a>) -> Result<Segment<'a>, Fault> {
        let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, _, _, _, _, _, _] =
            ip.payload.first_chunk::<TCP_HEADER>().ok_or(Fault::Malformed)?;
        let header_len = usize::from(offset >> 4) * 4;
        if header_len < TCP_HEADER {
            return Err(Fault::Malformed);
        }
        let (header, data) = ip.payload.split_at_checked(header_len).ok_or(Fault::Malformed)?;
        if !ip.vouched && finish(ip.pseudo_sum() + sum(ip.payload)) != 0 {
            return Err(Fault::Checksum);
        }
        let source_port = u16::from_be_bytes([s0, s1]);
        let destination_port = u16::from_be_bytes([d0, d1]);
        if source_port == 0 || destination_port == 0 {
            return Err(Fault::Malformed);
        }
        Ok(Segment {
            ip: *ip,
            source: SocketAddrV4::new(ip.source, source_port).into(),
            destination: SocketAddrV4::new(ip.destination, destination_port).into(),
            sequence: u32::from_be_bytes([q0, q1, q2, q3]),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            flags: TcpFlags(flags),
            header,
            data,
        })
    }

    /// How much of the sequence space it takes: its data, and one each for SYN and FIN.
    pub(crate) fn sequence_len(&self) -> u32 {
        let controls = u32::from(self.flags.has(TcpFlags::SYN)) + u32::from(self.flags.has(TcpFlags::FIN));
        // An IPv4 packet has at most 65,535 octets.
        u32::try_from(self.data.len()).unwrap_or(u32::MAX).saturating_add(controls)
    }
}

/// Where an answer goes on the link: our address, the guest's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) from: MacAddress,
    pub(crate) to: MacAddress,
}

/// The Ethernet header of an IPv4 packet.
pub(crate) fn ethernet_ipv4(route: Route) -> [u8; ETHERNET_HEADER] {
    ethernet(route, ETHERTYPE_IPV4)
}

pub(crate) fn put_ethernet_ipv4(out: &mut Vec<u8>, route: Route) {
    out.extend_from_slice(&ethernet_ipv4(route));
}

fn ethernet(route: Route, kind: u16) -> [u8; ETHERNET_HEADER] {
    let [a, b, c, d, e, f] = route.to.0;
    let [g, h, i, j, k, l] = route.from.0;
    let [m, n] = kind.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
}

/// "`address` is at `route.from`", to the asker.
pub(crate) fn put_arp_reply(out: &mut Vec<u8>, route: Route, address: Ipv4Addr, request: &ArpRequest) {
    out.extend_from_slice(&ethernet(route, ETHERTYPE_ARP));
    out.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend_from_slice(&route.from.0);
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&request.sender_mac.0);
    out.extend_from_slice(&request.sender.octets());
}

/// An IPv4 header without options, may not be fragmented. The payload must fit an IPv4 packet (65,515 octets).
pub(crate) fn put_ipv4(
    out: &mut Vec<u8>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    payload: usize,
) {
    put_ipv4_ttl(out, (source, destination), protocol, TTL, payload);
}

fn put_ipv4_ttl(
    out: &mut Vec<u8>,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    ttl: u8,
    payload: usize,
) {
    let total = u16::try_from(IPV4_HEADER + payload).unwrap_or(u16::MAX);
    let [len0, len1] = total.to_be_bytes();
    let [s0, s1, s2, s3] = source.octets();
    let [d0, d1, d2, d3] = destination.octets();
    let mut header =
        [0x45, 0, len0, len1, 0, 0, 0x40, 0, ttl, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let [c0, c1] = finish(sum(&header)).to_be_bytes();
    let [_, _, _, _, _, _, _, _, _, _, check0, check1, ..] = &mut header;
    (*check0, *check1) = (c0, c1);
    out.extend_from_slice(&header);
}

/// The answer to an echo request: what it carried, back (RFC 792).
pub(crate) fn put_echo_reply(out: &mut Vec<u8>, source: Ipv4Addr, destination: Ipv4Addr, rest: &[u8]) {
    put_ipv4(out, source, destination, PROTOCOL_ICMP, 4 + rest.len());
    let [c0, c1] = finish(sum(rest)).to_be_bytes();
    out.extend_from_slice(&[0, 0, c0, c1]);
    out.extend_from_slice(rest);
}

/// Codes of ICMP "destination unreachable" (RFC 792, RFC 1122 3.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Net,
    Host,
    Protocol,
    Port,
}

/// ICMP "destination unreachable", quoting the head of the packet that it answers, 576 octets at most in all (RFC 1812 4.3.2.3).
pub(crate) fn put_unreachable(
    out: &mut Vec<u8>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    reason: Unreachable,
    about: &[u8],
) {
    let code = match reason {
        Unreachable::Net => 0,
        Unreachable::Host => 1,
        Unreachable::Protocol => 2,
        Unreachable::Port => 3,
    };
    let quoted = about.get(..576 - IPV4_HEADER - 8).unwrap_or(about);
    put_ipv4(out, source, destination, PROTOCOL_ICMP, 8 + quoted.len());
    let [c0, c1] = finish(sum(&[3, code]) + sum(quoted)).to_be_bytes();
    out.extend_from_slice(&[3, code, c0, c1, 0, 0, 0, 0]);
    out.extend_from_slice(quoted);
}

/// A UDP datagram with its IPv4 header.
pub(crate) fn put_udp(out: &mut Vec<u8>, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) {
    put_udp_ttl(out, source, destination, TTL, payload);
}

/// The same, with a TTL that the receiver may look at: 255 says that it comes from this link (RFC 6762, section 11).
pub(crate) fn put_udp_ttl(
    out: &mut Vec<u8>,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    ttl: u8,
    payload: &[u8],
) {
    let len = 8 + payload.len();
    put_ipv4_ttl(out, (*source.ip(), *destination.ip()), PROTOCOL_UDP, ttl, len);
    let [s0, s1] = source.port().to_be_bytes();
    let [d0, d1] = destination.port().to_be_bytes();
    let [l0, l1] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let header = [s0, s1, d0, d1, l0, l1];
    let pseudo = pseudo_sum(*source.ip(), *destination.ip(), PROTOCOL_UDP, len);
    let checksum = match finish(pseudo + sum(&header) + sum(payload)) {
        0 => 0xffff, // zero would say "no checksum"
        other => other,
    };
    out.extend_from_slice(&header);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A TCP segment without options and data, window zero: a reset, or the acknowledgement of a connection that is over.
pub(crate) fn put_tcp(
    out: &mut Vec<u8>,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    sequence: u32,
    acknowledgement: u32,
    flags: TcpFlags,
) {
    put_ipv4(out, *source.ip(), *destination.ip(), PROTOCOL_TCP, TCP_HEADER);
    let [s0, s1] = source.port().to_be_bytes();
    let [d0, d1] = destination.port().to_be_bytes();
    let [q0, q1, q2, q3] = sequence.to_be_bytes();
    let [a0, a1, a2, a3] = acknowledgement.to_be_bytes();
    let mut header = [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, 5 << 4, flags.0, 0, 0, 0, 0, 0, 0];
    let pseudo = pseudo_sum(*source.ip(), *destination.ip(), PROTOCOL_TCP, TCP_HEADER);
    let [c0, c1] = finish(pseudo + sum(&header)).to_be_bytes();
    let [.., check0, check1, _, _] = &mut header;
    (*check0, *check1) = (c0, c1);
    out.extend_from_slice(&header);
}

/// Where in an Ethernet frame the checksum of its TCP or UDP over IPv4 is, and over what it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChecksumPlace {
    /// Where the TCP or UDP header begins, and with it what the checksum is of.
    pub(crate) start: usize,
    /// Where the packet ends; link padding may follow.
    end: usize,
    /// Where its two octets are.
    pub(crate) field: usize,
    /// Octets of all headers. Of UDP and TCP without options if that cannot be told.
    pub(crate) headers: usize,
    pseudo: u64,
}

impl ChecksumPlace {
    /// `None`: something else, a fragment, or cut short.
    pub(crate) fn of(frame: &[u8]) -> Option<ChecksumPlace> {
        let Payload::Ipv4(packet) = Frame::parse(frame).ok()?.payload else { return None };
        let ip = Ipv4::parse(packet).ok()?;
        let start = ETHERNET_HEADER + ip.whole.len() - ip.payload.len();
        let (offset, headers) = match (ip.protocol, ip.payload) {
            (PROTOCOL_TCP, &[_, _, _, _, _, _, _, _, _, _, _, _, data, _, _, _, _, _, _, _, ..]) => {
                (16, start + usize::from(data >> 4) * 4)
            }
            (PROTOCOL_UDP, &[_, _, _, _, _, _, _, _, ..]) => (6, start + 8),
            _ => return None,
        };
        let end = ETHERNET_HEADER + ip.whole.len();
        Some(ChecksumPlace { start, end, field: start + offset, headers, pseudo: ip.pseudo_sum() })
    }

    fn put(&self, frame: &mut [u8], checksum: u16) {
        if let Some(field) = frame.get_mut(self.field..self.field + 2) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// Leaves the checksum to the card, which wants to find what only we know: the folded sum of the pseudo header.
    pub(crate) fn leave(&self, frame: &mut [u8]) {
        self.put(frame, !finish(self.pseudo));
    }

    /// Puts the checksum in, whatever stands there.
    pub(crate) fn complete(&self, frame: &mut [u8]) {
        self.put(frame, 0);
        let sum = self.pseudo + sum(frame.get(self.start..self.end).unwrap_or_default());
        // Zero would say "no checksum" in UDP, and in TCP both mean the same.
        self.put(frame, if finish(sum) == 0 { 0xffff } else { finish(sum) });
    }
}

/// Frames waiting to go to the guest, back to back in one buffer, up to a limit.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Lengths of the frames in `bytes` from `start` on.
    lengths: std::collections::VecDeque<usize>,
    start: usize,
    limit: usize,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Outbox {
        Outbox { bytes: Vec::new(), lengths: std::collections::VecDeque::new(), start: 0, limit }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Appends one frame, written by `write`. False: there is no room for more.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if self.is_empty() {
            self.clear();
        }
        if self.bytes.len() - self.start >= self.limit {
            return false;
        }
        if self.start > self.limit {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let before = self.bytes.len();
        write(&mut self.bytes);
        self.lengths.push_back(self.bytes.len() - before);
        true
    }

    pub(crate) fn pop(&mut self) -> Option<&[u8]> {
        let len = self.lengths.pop_front()?;
        let frame = self.bytes.get(self.start..self.start + len);
        self.start += len;
        frame
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
        self.start = 0;
    }
}

/// Unfolded sum of RFC 1071 over `data` as if it stood at an even offset. The sum does not care for byte order, so
/// it is taken in the machine's own and swapped once in [`finish`].
fn sum(data: &[u8]) -> u64 {
    let (words, tail) = data.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (pairs, odd) = tail.as_chunks::<2>();
    total += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
    total + odd.iter().map(|&byte| u64::from(u16::from_ne_bytes([byte, 0]))).sum::<u64>()
}

fn pseudo_sum(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: usize) -> u64 {
    let [l0, l1] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    sum(&source.octets()) + sum(&destination.octets()) + sum(&[0, protocol, l0, l1])
}

/// The checksum field's value for a sum; zero for a sum that includes a right checksum.
fn finish(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let folded = u16::try_from(total).unwrap_or(u16::MAX);
    !u16::from_be_bytes(folded.to_ne_bytes())
}
