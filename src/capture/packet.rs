//! From a captured packet to the TCP segment in it: link types, VLAN tags, IPv4, IPv6.

use std::net::SocketAddr;

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
