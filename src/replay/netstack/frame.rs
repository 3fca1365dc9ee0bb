//! Frames of the virtual card: what of them matters to a replay, and the guest's TCP segments as they are sent today.
//!
//! Nothing is verified here. Checksums of a captured frame are often wrong, as the card was to fill them in; what we
//! send is computed anew.

use std::net::{Ipv4Addr, SocketAddrV4};

use server_glue::netstack::MacAddress;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

/// An Ethernet II frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) destination: MacAddress,
    pub(super) source: MacAddress,
    pub(super) content: Content<'a>,
}

/// What a frame carries, as far as it is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    Tcp(Tcp<'a>),
    /// The fixed fields and options of a DHCP message.
    Dhcp(Dhcp),
    /// Somebody is asked for.
    ArpRequest {
        target: Ipv4Addr,
    },
    /// Who is there.
    ArpReply {
        sender: Ipv4Addr,
    },
    /// ICMP "destination unreachable" about a TCP segment.
    Unreachable {
        from: Ipv4Addr,
        code: u8,
        source: SocketAddrV4,
        destination: SocketAddrV4,
    },
    /// ICMP echo.
    Echo {
        request: bool,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    },
    Other,
}

/// A TCP segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tcp<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// As on the wire.
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Largest segment that its sender takes; in a SYN.
    pub(super) mss: Option<u16>,
    /// By how many bits its sender's windows are shifted; in a SYN.
    pub(super) scale: Option<u8>,
    pub(super) payload: &'a [u8],
    /// Bytes of the payload that the capture cut off.
    pub(super) cut: usize,
}

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

impl Tcp<'_> {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How much of the sequence space it takes.
    pub(super) fn len(&self) -> u32 {
        let controls = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        // An IPv4 packet has at most 65,535 bytes.
        u32::try_from(self.payload.len().saturating_add(self.cut)).unwrap_or(0).saturating_add(controls)
    }
}

/// What is looked at of a DHCP message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dhcp {
    /// A server's.
    pub(super) reply: bool,
    /// Option 53, 0 if it is missing.
    pub(super) kind: u8,
    /// The address that the server gives.
    pub(super) given: Ipv4Addr,
    /// The guest.
    pub(super) guest: MacAddress,
    /// Option 1.
    pub(super) mask: Option<Ipv4Addr>,
    /// Option 54.
    pub(super) server: Option<Ipv4Addr>,
}

impl<'a> Frame<'a> {
    /// `None`: shorter than an Ethernet header.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (destination, rest) = bytes.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let content = match u16::from_be_bytes(*kind) {
            0x0800 => ipv4(rest),
            0x0806 => arp(rest),
            _ => None,
        };
        Some(Frame {
            destination: MacAddress(*destination),
            source: MacAddress(*source),
            content: content.unwrap_or(Content::Other),
        })
    }
}

fn arp(packet: &[u8]) -> Option<Content<'_>> {
    let (kind, rest) = packet.split_first_chunk::<6>()?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let target = rest.first_chunk::<4>()?;
    if kind != &[0, 1, 8, 0, 6, 4] {
        return None;
    }
    match operation {
        [0, 1] => Some(Content::ArpRequest { target: (*target).into() }),
        [0, 2] => Some(Content::ArpReply { sender: (*sender).into() }),
        _ => None,
    }
}

/// An IPv4 header: protocol, addresses, payload as far as it was captured, bytes of it that were cut off.
fn ipv4_header(packet: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8], usize)> {
    let &[first, _, l0, l1, _, _, flags, offset, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        packet.first_chunk::<20>()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(u16::from_be_bytes([l0, l1]));
    // A piece of a datagram says nothing by itself.
    if first >> 4 != 4 || header < 20 || total < header || flags & 0x3f != 0 || offset != 0 {
        return None;
    }
    let there = packet.get(..total.min(packet.len()))?;
    let payload = there.get(header..)?;
    let (source, destination) = ([s0, s1, s2, s3].into(), [d0, d1, d2, d3].into());
    Some((protocol, source, destination, payload, total - there.len()))
}

fn ipv4(packet: &[u8]) -> Option<Content<'_>> {
    let (protocol, source, destination, payload, cut) = ipv4_header(packet)?;
    match protocol {
        1 => icmp(source, destination, payload),
        6 => tcp(source, destination, payload, cut).map(Content::Tcp),
        17 => udp(payload),
        _ => None,
    }
}

fn tcp(source: Ipv4Addr, destination: Ipv4Addr, bytes: &[u8], cut: usize) -> Option<Tcp<'_>> {
    let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1, _, _, _, _] =
        bytes.first_chunk::<20>()?;
    let header = usize::from(offset >> 4) * 4;
    let options = bytes.get(20..header)?;
    let from = SocketAddrV4::new(source, u16::from_be_bytes([s0, s1]));
    let to = SocketAddrV4::new(destination, u16::from_be_bytes([d0, d1]));
    if from.port() == 0 || to.port() == 0 {
        return None;
    }
    let (mss, scale) = if flags & SYN == 0 { (None, None) } else { syn_options(options) };
    Some(Tcp {
        from,
        to,
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags,
        window: u16::from_be_bytes([w0, w1]),
        mss,
        scale,
        payload: bytes.get(header..)?,
        cut,
    })
}

/// Segment size and window scale.
fn syn_options(mut options: &[u8]) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut scale) = (None, None);
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            0 => break,
            1 => options = rest,
            _ => {
                let Some((&len, _)) = rest.split_first() else { break };
                let Some(value) = options.get(2..usize::from(len)) else { break };
                match (kind, value) {
                    (2, &[high, low]) => mss = Some(u16::from_be_bytes([high, low])),
                    // RFC 7323, 2.3: more than 14 is taken for 14.
                    (3, &[shift]) => scale = Some(shift.min(14)),
                    _ => {}
                }
                options = options.get(usize::from(len)..).unwrap_or_default();
            }
        }
    }
    (mss, scale)
}

fn icmp(source: Ipv4Addr, destination: Ipv4Addr, message: &[u8]) -> Option<Content<'_>> {
    let (&[kind, code, ..], rest) = message.split_first_chunk::<8>()?;
    match kind {
        0 | 8 => Some(Content::Echo { request: kind == 8, source, destination }),
        3 => {
            let (protocol, about_source, about_destination, quoted, _) = ipv4_header(rest)?;
            let &[s0, s1, d0, d1] = quoted.first_chunk::<4>()?;
            (protocol == 6).then_some(Content::Unreachable {
                from: source,
                code,
                source: SocketAddrV4::new(about_source, u16::from_be_bytes([s0, s1])),
                destination: SocketAddrV4::new(about_destination, u16::from_be_bytes([d0, d1])),
            })
        }
        _ => None,
    }
}

fn udp(datagram: &[u8]) -> Option<Content<'_>> {
    let (&[s0, s1, d0, d1, _, _, _, _], message) = datagram.split_first_chunk::<8>()?;
    match (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])) {
        (67 | 68, 67 | 68) => dhcp(message).map(Content::Dhcp),
        _ => None,
    }
}

fn dhcp(message: &[u8]) -> Option<Dhcp> {
    let (header, mut options) = message.split_at_checked(240)?;
    if !header.ends_with(&[99, 130, 83, 99]) {
        return None;
    }
    let four = |value: &[u8]| value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
    let mut found = Dhcp {
        reply: header.first() == Some(&2),
        kind: 0,
        given: four(header.get(16..)?)?,
        guest: MacAddress(*header.get(28..)?.first_chunk()?),
        mask: None,
        server: None,
    };
    while let Some((&code, rest)) = options.split_first() {
        if code == 0 {
            options = rest;
            continue;
        }
        let Some((&len, rest)) = rest.split_first() else { break };
        let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else { break };
        match code {
            1 => found.mask = four(value),
            53 => found.kind = value.first().copied().unwrap_or(0),
            54 => found.server = four(value),
            255 => break,
            _ => {}
        }
        options = rest;
    }
    Some(found)
}

/// A segment of the guest, to be sent today.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) control: TcpControl,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    pub(super) payload: &'a [u8],
}

impl Outgoing<'_> {
    /// The whole frame, checksums included. The payload is at most 65,000 bytes.
    pub(super) fn frame(&self, source: MacAddress, destination: MacAddress) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: self.from.port(),
            dst_port: self.to.port(),
            control: self.control,
            seq_number: seq_number(self.seq),
            ack_number: self.ack.map(seq_number),
            window_len: self.window,
            window_scale: self.scale,
            max_seg_size: self.mss,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: self.payload,
        };
        let ip = Ipv4Repr {
            src_addr: *self.from.ip(),
            dst_addr: *self.to.ip(),
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress(source.0),
            dst_addr: EthernetAddress(destination.0),
            ethertype: EthernetProtocol::Ipv4,
        };
        let checksums = ChecksumCapabilities::default();
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + tcp.buffer_len()];
        let mut frame = EthernetFrame::new_unchecked(bytes.as_mut_slice());
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &checksums);
        let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
        tcp.emit(&mut segment, &IpAddress::Ipv4(ip.src_addr), &IpAddress::Ipv4(ip.dst_addr), &checksums);
        bytes
    }
}

/// smoltcp keeps sequence numbers as signed ones.
fn seq_number(number: u32) -> TcpSeqNumber {
    TcpSeqNumber(number.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const SERVER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn segment(payload: &[u8]) -> Vec<u8> {
        let outgoing = Outgoing {
            from: SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 4000),
            to: SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 31), 80),
            seq: 0xffff_fff0,
            ack: Some(7),
            control: TcpControl::Fin,
            window: 99,
            mss: None,
            scale: None,
            payload,
        };
        outgoing.frame(GUEST, SERVER)
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        let bytes = segment(b"hello");
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.source, frame.destination), (GUEST, SERVER));
        let Content::Tcp(tcp) = frame.content else { panic!("{frame:?}") };
        assert_eq!((tcp.seq, tcp.ack, tcp.flags, tcp.window), (0xffff_fff0, 7, FIN | ACK, 99));
        assert_eq!((tcp.payload, tcp.cut, tcp.len()), (b"hello".as_slice(), 0, 6));
    }

    #[test]
    fn what_a_capture_cut_off_still_counts() {
        let bytes = segment(b"hello");
        let frame = Frame::parse(&bytes[..bytes.len() - 2]).unwrap();
        let Content::Tcp(tcp) = frame.content else { panic!("{frame:?}") };
        assert_eq!((tcp.payload, tcp.cut, tcp.len()), (b"hel".as_slice(), 2, 6));
    }

    #[test]
    fn any_prefix_of_a_frame_is_borne() {
        let bytes = segment(b"hello");
        for len in 0..bytes.len() {
            let _ = Frame::parse(&bytes[..len]);
        }
    }

    #[test]
    fn options_of_a_syn_are_found_behind_others() {
        let options = [1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 180, 3, 3, 40, 0];
        assert_eq!(syn_options(&options), (Some(1460), Some(14)));
        assert_eq!(syn_options(&[2, 4, 5]), (None, None));
        assert_eq!(syn_options(&[9, 0, 2, 4, 5, 180]), (None, None));
    }
}
