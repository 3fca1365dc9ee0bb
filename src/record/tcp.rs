//! TCP/IP around bytes that never were in such packets: one connection as one file tells it.
//!
//! The connection itself is real, and so are its addresses and the order and time of its bytes. Its segments are made
//! here: as long as an IP packet can be, each acknowledged before long, none ever lost, so that no reader has to
//! guess. Bytes that the recorder dropped leave a gap in the sequence numbers, which is acknowledged at once: it was
//! the recorder that missed them, not the peer.
//!
//! Headers are written by hand: smoltcp's are at hand, but with IPv6 it would grow the netstack that shares it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use spice_proto::names::Sender;

use super::part::{Part, comment};
use crate::capture::packet::Flags;

/// Room that must be before a payload for its headers: IPv6 and TCP without options.
pub(super) const HEADROOM: usize = IPV6 + TCP;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// Longest IP packet.
const MAX_PACKET: usize = 65_535;
/// Bytes that stay unacknowledged at most.
const ACK_EVERY: u32 = 256 << 10;
/// Maximum segment size, window scale 8, one byte of padding: a window of 16 MiB, which is never full.
const SYN_OPTIONS: [u8; 8] = [2, 4, 0xff, 0xff, 3, 3, 8, 1];
/// The window after a SYN, scaled.
const WINDOW: u16 = 0xffff;

/// The two addresses of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client's.
    pub client: SocketAddr,
    /// The server's.
    pub server: SocketAddr,
}

impl Ends {
    /// For a link that has no addresses, as over a Unix socket: those of RFC 5737, which belong to nobody. Links
    /// differ in the client's port.
    pub fn example(number: u64) -> Self {
        let port = u16::try_from(49_152 + number % 16_384).unwrap_or(u16::MAX);
        Self {
            client: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), port),
            server: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 2).into(), 5900),
        }
    }

    /// Of one family, IPv4 where possible.
    pub(super) fn canonical(self) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (client, server) = (plain(self.client), plain(self.server));
        if client.is_ipv4() == server.is_ipv4() {
            return Self { client, server };
        }
        let wide = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        Self { client: wide(client), server: wide(server) }
    }

    fn of(&self, from: Sender) -> (SocketAddr, SocketAddr) {
        match from {
            Sender::Client => (self.client, self.server),
            Sender::Server => (self.server, self.client),
        }
    }
}

/// Something of each direction of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Both<T> {
    pub(super) client: T,
    pub(super) server: T,
}

impl<T> Both<T> {
    pub(super) fn of(&self, from: Sender) -> &T {
        match from {
            Sender::Client => &self.client,
            Sender::Server => &self.server,
        }
    }

    pub(super) fn of_mut(&mut self, from: Sender) -> &mut T {
        match from {
            Sender::Client => &mut self.client,
            Sender::Server => &mut self.server,
        }
    }
}

pub(super) fn other(from: Sender) -> Sender {
    match from {
        Sender::Client => Sender::Server,
        Sender::Server => Sender::Client,
    }
}

/// One connection in one file.
pub(super) struct Conversation {
    ends: Ends,
    /// Sequence number of the next byte.
    next: Both<u32>,
    /// Sequence number up to which the other end has acknowledged.
    acked: Both<u32>,
}

impl Conversation {
    /// Opens the connection: SYN, SYN-ACK, ACK. `first` are the sequence numbers of the first bytes.
    /// `remark` is shown beside the SYN.
    pub(super) fn open(
        part: &mut Part,
        time: Duration,
        ends: Ends,
        first: Both<u32>,
        remark: Option<String>,
    ) -> io::Result<Self> {
        let isn = Both { client: first.client.wrapping_sub(1), server: first.server.wrapping_sub(1) };
        let mut this = Self { ends, next: isn, acked: isn };
        this.segment(part, time, Sender::Client, Flags::SYN, remark)?;
        this.bare(part, time, Sender::Server, Flags::SYN | Flags::ACK)?;
        this.bare(part, time, Sender::Client, Flags::ACK)?;
        Ok(this)
    }

    /// Adds the payload `buffer[at..]`, before which there is [`HEADROOM`]. What is before the payload is overwritten.
    ///
    /// `seq` is the sequence number of its first byte; where it is ahead of the last one, the bytes between were
    /// dropped.
    pub(super) fn data(
        &mut self,
        part: &mut Part,
        time: Duration,
        from: Sender,
        seq: u32,
        buffer: &mut [u8],
        mut at: usize,
    ) -> io::Result<()> {
        let missing = seq.wrapping_sub(*self.next.of(from));
        *self.next.of_mut(from) = seq;
        let mut remark = (missing != 0).then(|| {
            comment(format!("{missing} bytes before this are missing: the recorder could not keep up"))
        });
        let most = MAX_PACKET - self.header_len();
        while at < buffer.len() {
            let end = buffer.len().min(at.saturating_add(most));
            let flags = Flags::ACK | Flags::PSH;
            let packet = self.wrap(from, flags, &[], buffer.get_mut(..end).unwrap_or_default(), at);
            part.packet(time, packet, remark.take().into_iter().collect())?;
            self.sent(from, u32::try_from(end - at).unwrap_or(0));
            at = end;
        }
        let unacked = self.next.of(from).wrapping_sub(*self.acked.of(from));
        if missing != 0 || unacked >= ACK_EVERY {
            self.bare(part, time, other(from), Flags::ACK)?;
        }
        Ok(())
    }

    /// Ends one direction. `seq` is the sequence number behind its last byte.
    pub(super) fn finish(
        &mut self,
        part: &mut Part,
        time: Duration,
        from: Sender,
        seq: u32,
    ) -> io::Result<()> {
        *self.next.of_mut(from) = seq;
        self.bare(part, time, from, Flags::FIN | Flags::ACK)
    }

    /// Acknowledges what is not acknowledged yet.
    pub(super) fn acknowledge(&mut self, part: &mut Part, time: Duration) -> io::Result<()> {
        for from in [Sender::Client, Sender::Server] {
            if self.next.of(from) != self.acked.of(from) {
                self.bare(part, time, other(from), Flags::ACK)?;
            }
        }
        Ok(())
    }

    /// Aborts the connection.
    pub(super) fn reset(&mut self, part: &mut Part, time: Duration, from: Sender) -> io::Result<()> {
        self.bare(part, time, from, Flags::RST | Flags::ACK)
    }

    /// A segment without payload.
    fn bare(&mut self, part: &mut Part, time: Duration, from: Sender, flags: Flags) -> io::Result<()> {
        self.segment(part, time, from, flags, None)
    }

    fn segment(
        &mut self,
        part: &mut Part,
        time: Duration,
        from: Sender,
        flags: Flags,
        remark: Option<String>,
    ) -> io::Result<()> {
        let options: &[u8] = if flags.contains(Flags::SYN) { &SYN_OPTIONS } else { &[] };
        let mut buffer = [0; HEADROOM + SYN_OPTIONS.len()];
        let at = buffer.len();
        let packet = self.wrap(from, flags, options, &mut buffer, at);
        part.packet(time, packet, remark.map(comment).into_iter().collect())?;
        self.sent(from, u32::from(flags.intersects(Flags::SYN | Flags::FIN)));
        Ok(())
    }

    /// Each segment acknowledges all that came the other way.
    fn sent(&mut self, from: Sender, len: u32) {
        let next = self.next.of_mut(from);
        *next = next.wrapping_add(len);
        *self.acked.of_mut(other(from)) = *self.next.of(other(from));
    }

    fn header_len(&self) -> usize {
        TCP + if self.ends.client.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// Writes the headers before the payload `buffer[at..]`, and gives the packet.
    fn wrap<'a>(
        &self,
        from: Sender,
        flags: Flags,
        options: &[u8],
        buffer: &'a mut [u8],
        at: usize,
    ) -> &'a [u8] {
        let start = at.saturating_sub(self.header_len() + options.len());
        let packet = buffer.get_mut(start..).unwrap_or_default();
        let (source, destination) = self.ends.of(from);
        let ack = if flags.contains(Flags::ACK) { *self.next.of(other(from)) } else { 0 };
        let offset = u8::try_from((TCP + options.len()) / 4).unwrap_or(0);
        let mut tcp = Vec::with_capacity(TCP + SYN_OPTIONS.len());
        tcp.extend(source.port().to_be_bytes());
        tcp.extend(destination.port().to_be_bytes());
        tcp.extend(self.next.of(from).to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([offset << 4, flags.bits()]);
        tcp.extend(WINDOW.to_be_bytes());
        // Checksum, urgent pointer.
        tcp.extend([0; 4]);
        tcp.extend(options);

        let len = packet.len();
        let mut head: Vec<u8> = Vec::with_capacity(IPV6);
        let pseudo = match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let len = u16::try_from(len).unwrap_or(u16::MAX);
                head.extend([0x45, 0]);
                head.extend(len.to_be_bytes());
                // No identification, do not fragment, 64 hops, TCP, checksum.
                head.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
                head.extend(source.octets());
                head.extend(destination.octets());
                let checksum = (!fold(sum(&head))).to_be_bytes();
                if let Some(field) = head.get_mut(10..12) {
                    field.copy_from_slice(&checksum);
                }
                sum(&source.octets()) + sum(&destination.octets())
            }
            // INVARIANT: both are of one family.
            (source, destination) => {
                let octets = |ip: IpAddr| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                let len = u16::try_from(len.saturating_sub(IPV6)).unwrap_or(u16::MAX);
                head.extend([0x60, 0, 0, 0]);
                head.extend(len.to_be_bytes());
                // TCP, 64 hops.
                head.extend([6, 64]);
                head.extend(octets(source));
                head.extend(octets(destination));
                sum(&octets(source)) + sum(&octets(destination))
            }
        };
        let payload = packet.get(head.len() + tcp.len()..).unwrap_or_default();
        let tcp_len = u64::try_from(tcp.len() + payload.len()).unwrap_or(0);
        let checksum = !fold(pseudo + 6 + tcp_len + sum(&tcp) + sum(payload));
        if let Some(field) = tcp.get_mut(16..18) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
        head.extend(&tcp);
        if let Some(room) = packet.get_mut(..head.len()) {
            room.copy_from_slice(&head);
        }
        packet
    }
}

/// Sum of 16-bit words (RFC 1071), four bytes at a time; the carries are folded in at the end.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let whole: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    whole + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while let (high, Err(_)) = (sum >> 16, u16::try_from(sum)) {
        sum = (sum & 0xffff) + high;
    }
    u16::try_from(sum).unwrap_or(0)
}
