//! TCP reassembly: from segments as they were captured to the two byte streams of each connection.

use std::net::SocketAddr;
use std::time::Duration;

/// Number of a connection in a capture, from 0, in the order of their first packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One of the two directions of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the end that connected. Where the capture does not show who that was, from the one that was seen first.
    Forth,
    /// The other.
    Back,
}

/// Something that happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEvent<'a> {
    /// When the packet was captured that let it happen, since the Unix epoch.
    pub time: Duration,
    /// Which connection.
    pub stream: StreamId,
    /// What happened.
    pub piece: Piece<'a>,
}

/// What can happen to a connection. [`Opened`](Piece::Opened) is the first, [`Ended`](Piece::Ended) the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Its first packet.
    Opened {
        /// Who connected, or who was seen first.
        from: SocketAddr,
        /// To whom.
        to: SocketAddr,
        /// Whether the capture holds its beginning: the SYN, or the answer to it. Otherwise bytes are missing before the
        /// first ones of either direction, nobody knows how many, and `from` may be either end.
        from_start: bool,
    },
    /// The other end answered the SYN: the connection is established. Not reported where the capture does not show it.
    Answered,
    /// Bytes, in order, each once, never empty.
    Bytes {
        /// From whom.
        way: Way,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Bytes are missing here, and will not come any more.
    Hole {
        /// From whom.
        way: Way,
        /// How many.
        missing: u64,
        /// Why.
        cause: HoleCause,
    },
    /// One end sends no more: its FIN, in order.
    Finished {
        /// Which.
        way: Way,
    },
    /// One end aborted the connection.
    Reset {
        /// Which.
        way: Way,
    },
    /// Nothing more comes of this connection: both ends finished, one aborted, its addresses are used for a new one, it
    /// was given up for want of memory, or the capture is over.
    Ended {
        /// Whether the capture showed how it ended (both FINs, or an RST).
        seen: bool,
    },
}

/// Why bytes are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoleCause {
    /// The capture does not have the packet, although it came: the other end acknowledged it, or much came behind it.
    NotCaptured,
    /// The capture has only the beginning of the packet.
    CutOff,
    /// More came behind them than is kept while waiting.
    TooFarAhead,
    /// The capture, or the connection, is over, and they never came.
    End,
}
