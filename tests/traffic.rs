//! Captures of any length, made while they are read: what a busy tunnel and a stock session look like on the wire.
//!
//! Used by the tests and, by its path, by the benchmark of `dump`.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::link::{
    ChannelType, CommonCaps, LinkMess, LinkReply, LinkVersion, PUBLIC_KEY_LEN, TunnelCaps, Welcome,
};
use spice_proto::tunnel::{
    ClientMessage, GroupId, IpInfo, Layout, ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};
use spice_tunnel::capture::file::Reader;

/// A pcap file that is made as it is read. It ends behind the first round that makes it `size` bytes long or longer.
///
/// A round is half a megabyte through one socket of a tunnel in 32 KiB messages, one direction after the other; small
/// messages through another tunnel; and a session of a stock viewer, with its own addresses. The tunnels' connections are
/// the same from the first round to the last, so their sequence numbers wrap around every 4 GiB.
pub(crate) struct Traffic {
    size: u64,
    wire: Wire,
    /// Bytes of `wire` that were read.
    read: usize,
    bulk: Tunnel,
    small: Tunnel,
    session: Vec<Vec<u8>>,
    rounds: u32,
}

impl Traffic {
    pub(crate) fn new(size: u64) -> Self {
        let mut wire = Wire::default();
        let bulk = Tunnel::connect(&mut wire, 50_000);
        let small = Tunnel::connect(&mut wire, 50_001);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/spice-gtk-session.pcap");
        let mut reader = Reader::open(&path).unwrap();
        let mut session = Vec::new();
        while let Some(packet) = reader.next().unwrap() {
            session.push(packet.bytes.to_vec());
        }
        Self { size, wire, read: 0, bulk, small, session, rounds: 0 }
    }

    /// What the services of both tunnels sent so far, and what they were sent, bytes.
    pub(crate) fn carried(&self) -> [u64; 2] {
        [0, 1].map(|end| self.bulk.carried[end] + self.small.carried[end])
    }

    fn round(&mut self) {
        self.rounds += 1;
        let payload = [0x5A; 32 << 10];
        for at in 0..16 {
            self.bulk.data(&mut self.wire, at % 2 == 0, &payload);
        }
        for at in 0..64 {
            self.small.data(&mut self.wire, at % 3 == 0, &payload[..20 + 3 * at]);
        }
        // Addresses of 127.0.0.0/8, so that each is another session.
        let [_, a, b, c] = self.rounds.to_be_bytes();
        for frame in &self.session {
            let mut frame = frame.clone();
            frame[27..30].copy_from_slice(&[a, b, c]);
            frame[31..34].copy_from_slice(&[a, b, c]);
            self.wire.frame(&frame);
        }
    }
}

impl Read for Traffic {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.wire.bytes.len() {
            if self.wire.length >= self.size {
                return Ok(0);
            }
            self.wire.bytes.clear();
            self.read = 0;
            self.round();
        }
        let rest = &self.wire.bytes[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

/// What is on the wire, as pcap.
pub(crate) struct Wire {
    /// The file since it was last emptied.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of it since the beginning.
    pub(crate) length: u64,
    time: Duration,
}

impl Default for Wire {
    fn default() -> Self {
        let mut wire = Self { bytes: Vec::new(), length: 0, time: Duration::from_secs(1_700_000_000) };
        let header = [0xA1B2_C3D4, 0x0004_0002, 0, 0, 262_144, 1].map(u32::to_le_bytes).concat();
        wire.put(&header);
        wire
    }
}

impl Wire {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.length += bytes.len() as u64;
    }

    /// An Ethernet frame, 12 µs behind the one before.
    fn frame(&mut self, frame: &[u8]) {
        self.record(frame.len());
        self.put(frame);
    }

    fn record(&mut self, len: usize) {
        self.time += Duration::from_micros(12);
        let len = len as u32;
        let header = [self.time.as_secs() as u32, self.time.subsec_micros(), len, len];
        self.put(&header.map(u32::to_le_bytes).concat());
    }
}

/// A TCP connection over IPv4, without checksums.
pub(crate) struct Connection {
    ports: [u16; 2],
    hosts: [[u8; 4]; 2],
    /// Next sequence number of each end.
    seq: [u32; 2],
}

const CLIENT: usize = 0;
const SERVER: usize = 1;
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Payload of a full segment at an MTU of 1500, with the timestamps that everybody sends.
pub(crate) const SEGMENT: usize = 1448;

impl Connection {
    pub(crate) fn connect(wire: &mut Wire, host: [u8; 4], port: u16) -> Self {
        let mut connection =
            Self { ports: [port, 5930], hosts: [host, [10, 0, 0, 2]], seq: [u32::MAX - 1000, 77] };
        connection.segment(wire, CLIENT, SYN, &[]);
        connection.segment(wire, SERVER, SYN | ACK, &[]);
        connection.segment(wire, CLIENT, ACK, &[]);
        connection
    }

    /// One end says this, in full segments, of which the other acknowledges every second one.
    pub(crate) fn say(&mut self, wire: &mut Wire, end: usize, bytes: &[u8]) {
        for (number, chunk) in bytes.chunks(SEGMENT).enumerate() {
            self.segment(wire, end, ACK, chunk);
            if number % 2 == 1 {
                self.segment(wire, 1 - end, ACK, &[]);
            }
        }
        self.segment(wire, 1 - end, ACK, &[]);
    }

    /// The same number of bytes, which the capture does not have.
    pub(crate) fn lose(&mut self, end: usize, bytes: u32) {
        self.seq[end] = self.seq[end].wrapping_add(bytes);
    }

    pub(crate) fn segment(&mut self, wire: &mut Wire, end: usize, flags: u8, payload: &[u8]) {
        const HEADERS: usize = 14 + 20 + 32;
        wire.record(HEADERS + payload.len());
        let mut header = [0; HEADERS];
        header[..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0]);
        header[14] = 0x45;
        header[16..18].copy_from_slice(&((HEADERS - 14 + payload.len()) as u16).to_be_bytes());
        header[22..24].copy_from_slice(&[64, 6]);
        header[26..30].copy_from_slice(&self.hosts[end]);
        header[30..34].copy_from_slice(&self.hosts[1 - end]);
        header[34..36].copy_from_slice(&self.ports[end].to_be_bytes());
        header[36..38].copy_from_slice(&self.ports[1 - end].to_be_bytes());
        header[38..42].copy_from_slice(&self.seq[end].to_be_bytes());
        header[42..46].copy_from_slice(&self.seq[1 - end].to_be_bytes());
        header[46..50].copy_from_slice(&[8 << 4, flags, 255, 255]);
        header[54..58].copy_from_slice(&[1, 1, 8, 10]);
        wire.put(&header);
        wire.put(payload);
        let counted = u32::from(flags & (SYN | FIN) != 0);
        self.seq[end] = self.seq[end].wrapping_add(payload.len() as u32 + counted);
    }
}

/// A tunnel channel with one socket, whose credit is always renewed in time.
pub(crate) struct Tunnel {
    pub(crate) connection: Connection,
    buffer: Vec<u8>,
    /// SOCKET_DATA since the last tokens.
    used: [u32; 2],
    /// Bytes in SOCKET_DATA of either end.
    carried: [u64; 2],
}

impl Tunnel {
    /// Connects, links, shares a service and opens a socket.
    pub(crate) fn connect(wire: &mut Wire, port: u16) -> Self {
        Self::connect_from(wire, [10, 0, 0, 1], port)
    }

    pub(crate) fn connect_from(wire: &mut Wire, host: [u8; 4], port: u16) -> Self {
        let connection = Connection::connect(wire, host, port);
        let mut tunnel = Self { connection, buffer: Vec::new(), used: [0; 2], carried: [0; 2] };
        let (common_caps, channel_caps) = (vec![CommonCaps::OURS.bits()], vec![TunnelCaps::OURS.bits()]);
        let mess = LinkMess {
            session_id: 1,
            channel_type: ChannelType::TUNNEL.0,
            channel_id: 0,
            common_caps: common_caps.clone(),
            channel_caps: channel_caps.clone(),
        };
        tunnel.say(wire, CLIENT, |out| mess.write(LinkVersion::V2, out));
        let reply = LinkReply::Welcome(Welcome {
            public_key: Box::new([1; PUBLIC_KEY_LEN]),
            common_caps,
            channel_caps,
        });
        tunnel.say(wire, SERVER, |out| reply.write(LinkVersion::V2, out));
        // The mechanism, and a ticket.
        tunnel.say(wire, CLIENT, |out| {
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&[0; 128]);
        });
        tunnel.say(wire, SERVER, |out| out.extend_from_slice(&0_u32.to_le_bytes()));

        let (socket, service) = (SocketId(0), ServiceId(1));
        tunnel.server(wire, &ServerMessage::Init { max_sockets: 1024, max_data: 32 << 10 });
        let (name, description) = (&b"load"[..], &b"nothing but bytes"[..]);
        let (kind, group) = (ServiceKind::Generic, GroupId(1));
        let add = ServiceAdd { kind, service, group, port: 9100, name, description };
        tunnel.client(wire, &ClientMessage::ServiceAdd(add));
        let address = IpInfo::V4([198, 18, 1, 1].into());
        tunnel.server(wire, &ServerMessage::ServiceIpMap { service, address });
        tunnel.server(wire, &ServerMessage::SocketOpen { socket, service, tokens: 2 * TOKENS });
        tunnel.client(wire, &ClientMessage::SocketOpenAck { socket, tokens: 2 * TOKENS });
        tunnel
    }

    /// A SOCKET_DATA of either end, and new credit for it now and then.
    pub(crate) fn data(&mut self, wire: &mut Wire, from_client: bool, payload: &[u8]) {
        let socket = SocketId(0);
        let end = usize::from(!from_client);
        self.carried[end] += payload.len() as u64;
        let used = &mut self.used[end];
        *used += 1;
        let renew = *used == TOKENS;
        if renew {
            *used = 0;
        }
        if from_client {
            self.client(wire, &ClientMessage::SocketData { socket, payload });
        } else {
            self.server(wire, &ServerMessage::SocketData { socket, payload });
        }
        match (renew, from_client) {
            (false, _) => {}
            (true, true) => self.server(wire, &ServerMessage::SocketToken { socket, tokens: TOKENS }),
            (true, false) => self.client(wire, &ClientMessage::SocketToken { socket, tokens: TOKENS }),
        }
    }

    fn client(&mut self, wire: &mut Wire, message: &ClientMessage<'_>) {
        self.say(wire, CLIENT, |out| {
            put_header(HeaderForm::Mini, out, 0, message.kind(), message.body_len(Layout::B) as u32);
            message.write_body(Layout::B, out);
        });
    }

    fn server(&mut self, wire: &mut Wire, message: &ServerMessage<'_>) {
        self.say(wire, SERVER, |out| {
            put_header(HeaderForm::Mini, out, 0, message.kind(), message.body_len() as u32);
            message.write_body(out);
        });
    }

    fn say(&mut self, wire: &mut Wire, end: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.buffer.clear();
        write(&mut self.buffer);
        self.connection.say(wire, end, &self.buffer);
    }
}

/// How many tokens are granted at once.
const TOKENS: u32 = 8;
