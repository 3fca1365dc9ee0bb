//! What the two ends of the load say to each other: requests of a fixed size, many on one connection.
//!
//! Both ends are on one machine and share its monotonic clock, in whose nanoseconds they agree on when to count.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

/// The bytes of a request.
const REQUEST: usize = 24;
/// Bytes that are read or written at once.
pub(crate) const CHUNK: usize = 256 << 10;

/// What the service is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Take all that comes. When there is no more, or when that takes too long, say how many bytes came from `start` to `end`,
    /// and when there is no more how many came altogether.
    Sink { start: u64, end: u64 },
    /// Give without pause until `end`, then close.
    Source { end: u64 },
    /// Give each message of so many bytes back, until the end.
    Echo { size: u32 },
    /// Say a byte, and wait for the next request without spending anything on it.
    Hold,
    /// Take so many bytes, then give as many, and wait as in [`Self::Hold`].
    Burst { size: u32 },
}

impl Request {
    /// Writes it, with this behind it in the same packet.
    pub(crate) fn send(self, stream: &mut impl Write, more: &[u8]) -> io::Result<()> {
        let (kind, size, start, end) = match self {
            Self::Sink { start, end } => (1, 0, start, end),
            Self::Source { end } => (2, 0, 0, end),
            Self::Echo { size } => (3, size, 0, 0),
            Self::Hold => (4, 0, 0, 0),
            Self::Burst { size } => (5, size, 0, 0),
        };
        let mut bytes = Vec::with_capacity(REQUEST + more.len());
        bytes.extend(u32::to_le_bytes(kind));
        bytes.extend(size.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend(end.to_le_bytes());
        bytes.extend(more);
        stream.write_all(&bytes)
    }

    /// The next one; nothing if the other end has no more.
    pub(crate) fn receive(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; REQUEST];
        let mut filled = 0;
        while filled < REQUEST {
            match stream.read(&mut bytes[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        let small = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let large = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (size, start, end) = (small(4), large(8), large(16));
        match small(0) {
            1 => Ok(Some(Self::Sink { start, end })),
            2 => Ok(Some(Self::Source { end })),
            3 => Ok(Some(Self::Echo { size })),
            4 => Ok(Some(Self::Hold)),
            5 => Ok(Some(Self::Burst { size })),
            kind => Err(io::Error::other(format!("request {kind} is none of 1 to 5: the way spoils bytes"))),
        }
    }
}

/// Nanoseconds of the clock that all processes of this machine share.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// That moment, so much later.
pub(crate) fn after(from: u64, seconds: f64) -> u64 {
    from + (seconds * 1e9) as u64
}

/// Seconds between two moments.
pub(crate) fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

/// Returns at that moment, or at once if it is over.
pub(crate) fn sleep_until(moment: u64) {
    std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now())));
}

/// Bytes that came, and those of them within the time that counts.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) total: u64,
    pub(crate) counted: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: usize, (start, end): (u64, u64)) {
        self.total += bytes as u64;
        if (start..end).contains(&now()) {
            self.counted += bytes as u64;
        }
    }
}
