//! What goes in and out of the guest's stack.

use std::net::IpAddr;
use std::time::Duration;

use super::trouble::Trouble;

/// What the guest is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// The card's address.
    pub mac: [u8; 6],
    /// The largest IP packet in bytes; what DHCP says is used where it is smaller. At least 576.
    pub mtu: u16,
    /// Bytes of receive ring a connection has.
    pub receive_buffer: usize,
    /// Bytes of transmit ring a connection has.
    pub transmit_buffer: usize,
    /// How long a SYN may stay unanswered, and a connection nobody owns any more may take to end.
    pub connect_timeout: Duration,
    /// Whether TCP and IP checksums are checked on arrival. They are always sent.
    pub verify_checksums: bool,
    /// The cable's faults.
    pub trouble: Trouble,
    /// Everything random comes from it.
    pub seed: u64,
}

impl Default for Config {
    /// A perfect cable, MTU 65,520, half a megabyte each way for a connection.
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0x00, 0x67, 0x75, 0x01],
            mtu: 65_520,
            receive_buffer: 512 << 10,
            transmit_buffer: 512 << 10,
            connect_timeout: Duration::from_secs(30),
            verify_checksums: true,
            trouble: Trouble::NONE,
            seed: 1,
        }
    }
}

/// What DHCP gave (RFC 2131, RFC 2132).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: IpAddr,
    /// Length of the network's prefix in bits.
    pub prefix_len: u8,
    /// The default route, if one was given.
    pub router: Option<IpAddr>,
    /// Resolvers, if given.
    pub dns: Vec<IpAddr>,
    /// Interface MTU (option 26), if given.
    pub mtu: Option<u16>,
    /// Lease time (option 51), if given.
    pub time: Option<Duration>,
    /// Who gave it.
    pub server: IpAddr,
}

/// Why a connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The destination is in no network of ours and there is no router.
    #[error("network unreachable: no route to it")]
    NoRoute,
    /// Nobody has the address (no answer to ARP), or a host said so by ICMP.
    #[error("host unreachable")]
    Unreachable,
    /// The SYN was answered with RST.
    #[error("connection refused")]
    Refused,
    /// An RST came on an open connection.
    #[error("connection reset by peer")]
    Reset,
    /// Nothing came for the configured time.
    #[error("connection timed out")]
    TimedOut,
    /// We reset it ourselves.
    #[error("connection was reset by the guest itself")]
    Aborted,
    /// The guest has no address yet.
    #[error("the guest has no address yet")]
    NoAddress,
    /// Every local port is taken.
    #[error("the guest has no local port left")]
    NoPort,
    /// The sending half was finished before.
    #[error("the sending half of the connection was closed before")]
    Finished,
    /// No such connection: it was released.
    #[error("no such connection")]
    Unknown,
}

/// One connection. Never reused: a slot and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl ConnectionId {
    /// A small number, unique among the connections of the moment: fit to index a table beside the stack.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What came of the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// DHCP gave or changed the address.
    Leased(Lease),
    /// The lease is over.
    LeaseLost,
    /// Something about a connection changed: it opened, failed, may be read or written. Asking it tells what.
    Changed(ConnectionId),
    /// An echo came back.
    Pong {
        /// The number [`Stack::ping`](super::stack::Stack::ping) gave.
        sequence: u16,
        /// From the request leaving to the answer.
        round_trip: Duration,
    },
    /// An echo request found no one.
    PingFailed {
        /// The number [`Stack::ping`](super::stack::Stack::ping) gave.
        sequence: u16,
        /// Why.
        error: ConnectionError,
    },
}

/// What [`Stack::recv`](super::stack::Stack::recv) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// This many bytes were taken.
    Data(usize),
    /// Nothing yet.
    Pending,
    /// The peer finished, and all it sent was taken.
    End,
}
