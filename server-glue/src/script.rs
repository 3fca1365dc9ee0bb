//! For tests: a guest made of frames. It sends what it is told, understands what comes, and expects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::flow::RIDE;
use crate::netstack::{FlowId, NetConfig, NetEvent, Netstack};
use crate::packet::{
    Frame, Ipv4, MacAddress, PROTOCOL_TCP, Payload, Route, Segment, TcpFlags, put_ethernet_ipv4, put_ipv4,
    put_tcp,
};

pub(crate) const GUEST_MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
pub(crate) const OUR_MAC: MacAddress = MacAddress([0x02, 0x53, 0x50, 0x54, 0x00, 0x01]);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Published with [`PORT`].
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 40, 2);
pub(crate) const PORT: u16 = 631;

pub(crate) const FIN: u8 = TcpFlags::FIN.0;
pub(crate) const SYN: u8 = TcpFlags::SYN.0;
pub(crate) const RST: u8 = TcpFlags::RST.0;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = TcpFlags::ACK.0;
pub(crate) const URG: u8 = 0x20;

pub(crate) struct Script {
    pub(crate) now: Instant,
    pub(crate) net: Netstack,
}

/// A TCP segment as a script writes and reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) guest: SocketAddrV4,
    pub(crate) host: SocketAddrV4,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    /// A multiple of 4 octets.
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// From the guest's port 4000 to the published service, window 64,240, no data.
pub(crate) fn tcp(flags: u8, seq: u32, ack: u32) -> Tcp {
    Tcp {
        guest: SocketAddrV4::new(GUEST, 4000),
        host: SocketAddrV4::new(HOST, PORT),
        flags,
        seq,
        ack,
        window: 64_240,
        urgent: 0,
        options: Vec::new(),
        data: Vec::new(),
    }
}

impl Tcp {
    pub(crate) fn data(mut self, data: &[u8]) -> Tcp {
        self.data = data.to_vec();
        self
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Tcp {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn from(mut self, port: u16) -> Tcp {
        self.guest.set_port(port);
        self
    }

    pub(crate) fn to(mut self, address: Ipv4Addr, port: u16) -> Tcp {
        self.host = SocketAddrV4::new(address, port);
        self
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut header = Vec::new();
        // Its IPv4 header is thrown away; what is wanted is the TCP header.
        put_tcp(&mut header, self.guest, self.host, self.seq, self.ack, TcpFlags(self.flags));
        let mut segment = header[20..].to_vec();
        segment.extend_from_slice(&self.options);
        segment[12] = ((20 + self.options.len()) / 4 * 16) as u8;
        segment[14..16].copy_from_slice(&self.window.to_be_bytes());
        segment[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        segment.extend_from_slice(&self.data);
        fix_tcp_checksum(*self.guest.ip(), *self.host.ip(), &mut segment);
        ipv4(*self.guest.ip(), *self.host.ip(), PROTOCOL_TCP, &segment)
    }
}

/// Plain RFC 1071, octet by octet, to check the fast one by.
pub(crate) fn plain_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    let all: Vec<u8> = parts.concat();
    for pair in all.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn fix_tcp_checksum(source: Ipv4Addr, destination: Ipv4Addr, segment: &mut [u8]) {
    segment[16..18].fill(0);
    let len = (segment.len() as u16).to_be_bytes();
    let pseudo = [&source.octets()[..], &destination.octets(), &[0, PROTOCOL_TCP], &len].concat();
    let checksum = plain_checksum(&[&pseudo, segment]);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

/// A frame from the guest.
pub(crate) fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_ethernet_ipv4(&mut frame, Route { from: GUEST_MAC, to: OUR_MAC });
    put_ipv4(&mut frame, source, destination, protocol, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// A frame whose IPv4 header was changed gets a right checksum again.
pub(crate) fn fix_ipv4_checksum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let checksum = plain_checksum(&[&frame[14..end]]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

pub(crate) fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    let checksum = plain_checksum(&[&message]);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

impl Script {
    pub(crate) fn new() -> Script {
        Script::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut NetConfig)) -> Script {
        let mut config = NetConfig { seed: 3, ..NetConfig::default() };
        change(&mut config);
        let mut net = Netstack::new(config);
        net.publish(HOST.into(), PORT);
        Script { now: Instant::now(), net }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.net.handle_frame(self.now, frame);
    }

    pub(crate) fn send_tcp(&mut self, segment: Tcp) {
        self.send(&segment.frame());
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.net.handle_timeout(self.now);
    }

    /// So long that an acknowledgement which found nothing to ride on goes alone.
    #[track_caller]
    pub(crate) fn pass_a_ride(&mut self) {
        self.expect_nothing();
        self.pass(RIDE);
    }

    /// The next frame that comes. Panics if there is none.
    pub(crate) fn expect(&mut self) -> Vec<u8> {
        self.net.poll_transmit(self.now).expect("a frame").to_vec()
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) {
        let frame = self.net.poll_transmit(self.now);
        assert!(frame.is_none(), "unexpected frame: {frame:02x?}");
    }

    /// The next frame, which must be TCP.
    #[track_caller]
    pub(crate) fn expect_tcp(&mut self) -> Tcp {
        read_tcp(&self.expect())
    }

    /// The next frame must be TCP with these flags and numbers.
    #[track_caller]
    pub(crate) fn expect_numbers(&mut self, flags: u8, seq: u32, ack: u32) -> Tcp {
        let got = self.expect_tcp();
        assert_eq!((got.flags, got.seq, got.ack), (flags, seq, ack), "{got:?}");
        got
    }

    /// The next frame, which must be ICMP from `source`: type, code, and the rest.
    #[track_caller]
    pub(crate) fn expect_icmp(&mut self, source: Ipv4Addr) -> (u8, u8, Vec<u8>) {
        let frame = self.expect();
        let ip = read_ipv4(&frame);
        assert_eq!((ip.source, ip.destination, ip.protocol), (source, GUEST, 1));
        assert_eq!(plain_checksum(&[ip.payload]), 0);
        (ip.payload[0], ip.payload[1], ip.payload[4..].to_vec())
    }

    pub(crate) fn event(&mut self) -> Option<NetEvent> {
        self.net.poll_event()
    }

    #[track_caller]
    pub(crate) fn expect_connect(&mut self) -> FlowId {
        match self.event() {
            Some(NetEvent::Connect { flow, .. }) => flow,
            other => panic!("expected Connect, got {other:?}"),
        }
    }

    /// A connection from port 4000: guest's next number 1001, window scale 7 of the guest, given MSS. Gives our next number.
    #[track_caller]
    pub(crate) fn establish(&mut self) -> (FlowId, u32) {
        self.establish_from(4000)
    }

    /// The same, from another port.
    #[track_caller]
    pub(crate) fn establish_from(&mut self, port: u16) -> (FlowId, u32) {
        self.send_tcp(tcp(SYN, 1000, 0).from(port).options(&[2, 4, 0x05, 0xb4, 1, 3, 3, 7]));
        let flow = self.expect_connect();
        self.net.accept(self.now, flow);
        let syn_ack = self.expect_tcp();
        assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, 1001));
        self.expect_nothing();
        self.send_tcp(tcp(ACK, 1001, syn_ack.seq.wrapping_add(1)).from(port));
        self.expect_nothing();
        (flow, syn_ack.seq.wrapping_add(1))
    }

    pub(crate) fn read(&mut self, flow: FlowId) -> Vec<u8> {
        let mut all = Vec::new();
        while self.net.recv(self.now, flow, |bytes| {
            all.extend_from_slice(bytes);
            bytes.len()
        }) > 0
        {}
        all
    }
}

/// Checks everything about a frame to the guest that can be checked, but not with the code that made it where another way is simple.
#[track_caller]
pub(crate) fn read_ipv4(frame: &[u8]) -> Ipv4<'_> {
    let parsed = Frame::parse(frame).unwrap();
    assert_eq!((parsed.source, parsed.destination), (OUR_MAC, GUEST_MAC));
    let Payload::Ipv4(packet) = parsed.payload else { panic!("not IPv4: {frame:02x?}") };
    assert_eq!(plain_checksum(&[&packet[..20]]), 0, "IPv4 checksum");
    let ip = Ipv4::parse(packet).unwrap();
    assert_eq!(ip.whole.len(), packet.len(), "octets behind the packet");
    ip
}

#[track_caller]
pub(crate) fn read_tcp(frame: &[u8]) -> Tcp {
    let ip = read_ipv4(frame);
    assert_eq!(ip.protocol, PROTOCOL_TCP);
    let mut copy = ip.payload.to_vec();
    fix_tcp_checksum(ip.source, ip.destination, &mut copy);
    assert_eq!(copy, ip.payload, "TCP checksum");
    let segment = Segment::parse(&ip).unwrap();
    let (SocketAddr::V4(host), SocketAddr::V4(guest)) = (segment.source, segment.destination) else {
        panic!("not IPv4")
    };
    Tcp {
        guest,
        host,
        flags: segment.flags.0,
        seq: segment.sequence,
        ack: segment.acknowledgement,
        window: u16::from_be_bytes([segment.header[14], segment.header[15]]),
        urgent: 0,
        options: segment.header[20..].to_vec(),
        data: segment.data.to_vec(),
    }
}

#[test]
fn the_script_s_own_frames_are_sound() {
    let frame = tcp(SYN, 7, 0).options(&[2, 4, 5, 0xb4]).data(b"odd").frame();
    let parsed = Frame::parse(&frame).unwrap();
    let Payload::Ipv4(packet) = parsed.payload else { panic!() };
    let ip = Ipv4::parse(packet).unwrap();
    let segment = Segment::parse(&ip).unwrap();
    assert_eq!((segment.sequence, segment.data, segment.header.len()), (7, &b"odd"[..], 24));
    assert_eq!(segment.source.ip(), IpAddr::V4(GUEST));
}
