//! The messages of vhost-user: what QEMU asks, and the octets of an answer (QEMU, `docs/interop/vhost-user.rst`, "Message
//! Specification").
//!
//! The crate `vhost` has them, too, and plays QEMU in the tests. But its handler refuses SET_VRING_ENABLE before SET_FEATURES, which is the
//! order of QEMU 7.2 for network cards; and it blocks, so that each card would need a thread.
//!
//! ```text
//! u32 request | u32 flags | u32 size of the payload | payload
//! ```
//!
//! All in the machine's own byte order. Descriptors come beside a message.

/// Octets before the payload.
pub(super) const HEADER: usize = 12;
/// Longest payload that we know: a table of eight regions of memory.
pub(super) const MAX_PAYLOAD: usize = 8 + MAX_REGIONS * REGION;
/// Most regions in a table, and most descriptors beside a message.
pub(super) const MAX_REGIONS: usize = 8;
const REGION: usize = 32;

/// VHOST_USER_F_PROTOCOL_FEATURES, among the features of the card: there are protocol features, and rings are enabled one by one.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK: every request is answered, if that is asked for.
pub(super) const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Why a request is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is no vhost-user.
    #[error("its flags {0:#x} are those of no request of version 1")]
    Flags(u32),
    /// It was not offered, or nobody knows it.
    #[error("request {0} is not among those that were offered")]
    Unknown(u32),
    /// No such payload.
    #[error("request {request} has {size} octets, which it never has")]
    Size {
        /// Its number.
        request: u32,
        /// What came.
        size: usize,
    },
    /// Too many or too few.
    #[error("{came} descriptors came with it, expected {expected}")]
    Descriptors {
        /// How many came.
        came: usize,
        /// How many it has.
        expected: usize,
    },
    /// What a descriptor is good for, it is not.
    #[error("its descriptor cannot be used: {0}")]
    Descriptor(String),
    /// A card has two.
    #[error("it speaks of ring {0}, and the card has but 0 and 1 (queues=1)")]
    Ring(u32),
    /// Too large.
    #[error("a ring has room for {0} chains, expected at most 1024")]
    RingSize(u32),
    /// Not a number of 16 bits.
    #[error("a ring is to begin at {0}, which is no index")]
    Base(u32),
    /// Neither on nor off.
    #[error("a ring is to be enabled by {0}, expected 0 or 1")]
    Enable(u32),
    /// Nobody would wake us.
    #[error("a ring is to be polled all the time")]
    Polling,
    /// More than was offered.
    #[error("it acknowledges features {0:#x}, which were not offered")]
    Features(u64),
    /// It cannot be mapped.
    #[error("the guest's memory cannot be shared: {0}")]
    Memory(String),
    /// It asks, and does not listen.
    #[error("it does not read what it has asked for")]
    Deaf,
}

/// The start of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) need_reply: bool,
    /// INVARIANT: at most `MAX_PAYLOAD`.
    pub(super) size: usize,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Result<Header, RequestError> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = *bytes;
        let (request, flags) = (u32::from_ne_bytes([r0, r1, r2, r3]), u32::from_ne_bytes([f0, f1, f2, f3]));
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | NEED_REPLY) != 0 {
            return Err(RequestError::Flags(flags));
        }
        let size = usize::try_from(u32::from_ne_bytes([s0, s1, s2, s3])).unwrap_or(usize::MAX);
        if size > MAX_PAYLOAD {
            return Err(RequestError::Size { request, size });
        }
        Ok(Header { request, need_reply: flags & NEED_REPLY != 0, size })
    }
}

/// A request for one of the rings, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingState {
    pub(super) ring: u32,
    pub(super) value: u32,
}

/// Where QEMU has the tables of a ring, by its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
}

/// A piece of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// Where the guest has it.
    pub(super) guest: u64,
    pub(super) size: u64,
    /// Where QEMU has it.
    pub(super) user: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<Region>),
    SetVringNum(RingState),
    SetVringAddr { ring: u32, addresses: Addresses },
    SetVringBase(RingState),
    GetVringBase { ring: u32 },
    SetVringKick(RingDescriptor),
    SetVringCall(RingDescriptor),
    SetVringErr(RingDescriptor),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    SetVringEnable(RingState),
}

/// A ring to which a descriptor belongs, if one comes with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingDescriptor {
    pub(super) ring: u32,
    pub(super) comes: bool,
}

impl Request {
    pub(super) fn parse(request: u32, payload: &[u8]) -> Result<Request, RequestError> {
        // Each payload is words of 64 bits, some of which are two of 32.
        let (words, rest) = payload.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        Ok(match (request, &words[..]) {
            _ if !rest.is_empty() => return Err(RequestError::Size { request, size: payload.len() }),
            (1, []) => Request::GetFeatures,
            (2, [features]) => Request::SetFeatures(*features),
            (3, []) => Request::SetOwner,
            (4, []) => Request::ResetOwner,
            (5, [count, table @ ..]) => {
                let (regions, rest) = table.as_chunks();
                if !rest.is_empty() || halves(*count).0 as usize != regions.len() {
                    return Err(RequestError::Size { request, size: payload.len() });
                }
                Request::SetMemTable(regions.iter().map(Region::parse).collect())
            }
            (8, [word]) => Request::SetVringNum(RingState::parse(*word)),
            (9, [head, descriptors, used, available, _log]) => Request::SetVringAddr {
                ring: halves(*head).0,
                addresses: Addresses { descriptors: *descriptors, used: *used, available: *available },
            },
            (10, [word]) => Request::SetVringBase(RingState::parse(*word)),
            (11, [word]) => Request::GetVringBase { ring: halves(*word).0 },
            (12, [word]) => Request::SetVringKick(RingDescriptor::parse(*word)),
            (13, [word]) => Request::SetVringCall(RingDescriptor::parse(*word)),
            (14, [word]) => Request::SetVringErr(RingDescriptor::parse(*word)),
            (15, []) => Request::GetProtocolFeatures,
            (16, [features]) => Request::SetProtocolFeatures(*features),
            (18, [word]) => Request::SetVringEnable(RingState::parse(*word)),
            (1..=5 | 8..=16 | 18, _) => return Err(RequestError::Size { request, size: payload.len() }),
            (_, _) => return Err(RequestError::Unknown(request)),
        })
    }

    /// Descriptors that come beside it.
    pub(super) fn descriptors(&self) -> usize {
        match self {
            Request::SetMemTable(regions) => regions.len(),
            Request::SetVringKick(of) | Request::SetVringCall(of) | Request::SetVringErr(of) => {
                usize::from(of.comes)
            }
            Request::GetFeatures
            | Request::SetFeatures(_)
            | Request::SetOwner
            | Request::ResetOwner
            | Request::SetVringNum(_)
            | Request::SetVringAddr { .. }
            | Request::SetVringBase(_)
            | Request::GetVringBase { .. }
            | Request::GetProtocolFeatures
            | Request::SetProtocolFeatures(_)
            | Request::SetVringEnable(_) => 0,
        }
    }
}

impl RingState {
    fn parse(word: u64) -> RingState {
        let (ring, value) = halves(word);
        RingState { ring, value }
    }

    pub(super) fn word(self) -> u64 {
        let ([r0, r1, r2, r3], [v0, v1, v2, v3]) = (self.ring.to_ne_bytes(), self.value.to_ne_bytes());
        u64::from_ne_bytes([r0, r1, r2, r3, v0, v1, v2, v3])
    }
}

impl RingDescriptor {
    /// The low octet is the ring, and the bit above it says that none comes.
    fn parse(word: u64) -> RingDescriptor {
        let [ring, ..] = word.to_le_bytes();
        RingDescriptor { ring: ring.into(), comes: word & 0x100 == 0 }
    }
}

impl Region {
    fn parse([guest, size, user, offset]: &[u64; REGION / 8]) -> Region {
        Region { guest: *guest, size: *size, user: *user, offset: *offset }
    }
}

/// The two numbers in a word, in the order in which they lie.
fn halves(word: u64) -> (u32, u32) {
    let [a0, a1, a2, a3, b0, b1, b2, b3] = word.to_ne_bytes();
    (u32::from_ne_bytes([a0, a1, a2, a3]), u32::from_ne_bytes([b0, b1, b2, b3]))
}

/// An answer, whose payload is always one word.
pub(super) fn answer(request: u32, word: u64) -> [u8; HEADER + 8] {
    let mut bytes = [0; HEADER + 8];
    let fields = [request, VERSION | REPLY, 8].into_iter().flat_map(u32::to_ne_bytes);
    for (octet, value) in bytes.iter_mut().zip(fields.chain(word.to_ne_bytes())) {
        *octet = value;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn two(first: u32, second: u32) -> u64 {
        RingState { ring: first, value: second }.word()
    }

    #[test]
    fn headers() {
        let bytes = |request: u32, flags: u32, size: u32| {
            let bytes: Vec<u8> = [request, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
            Header::parse(&bytes.try_into().unwrap())
        };
        assert_eq!(bytes(3, 1, 0), Ok(Header { request: 3, need_reply: false, size: 0 }));
        assert_eq!(bytes(5, 9, 264), Ok(Header { request: 5, need_reply: true, size: 264 }));
        for flags in [0, 2, 3, 5, 0x11, u32::MAX] {
            assert_eq!(bytes(1, flags, 0), Err(RequestError::Flags(flags)));
        }
        for size in [265, u32::MAX] {
            assert_eq!(bytes(5, 1, size), Err(RequestError::Size { request: 5, size: size as usize }));
        }
    }

    #[test]
    fn requests() {
        let parse = |request, payload: &[u64]| Request::parse(request, &words(payload));
        let state = RingState { ring: 1, value: 256 };
        assert_eq!(parse(1, &[]), Ok(Request::GetFeatures));
        assert_eq!(parse(2, &[7]), Ok(Request::SetFeatures(7)));
        assert_eq!(parse(8, &[two(1, 256)]), Ok(Request::SetVringNum(state)));
        let addresses = Addresses { descriptors: 10, used: 20, available: 30 };
        assert_eq!(parse(9, &[two(1, 0), 10, 20, 30, 40]), Ok(Request::SetVringAddr { ring: 1, addresses }));
        assert_eq!(parse(11, &[two(1, 9)]), Ok(Request::GetVringBase { ring: 1 }));
        for (word, comes) in [(1, true), (0x101, false)] {
            assert_eq!(parse(12, &[word]), Ok(Request::SetVringKick(RingDescriptor { ring: 1, comes })));
        }
        let regions = vec![
            Region { guest: 1, size: 2, user: 3, offset: 4 },
            Region { guest: 5, size: 6, user: 7, offset: 8 },
        ];
        assert_eq!(parse(5, &[two(2, 0), 1, 2, 3, 4, 5, 6, 7, 8]), Ok(Request::SetMemTable(regions)));
        assert_eq!(parse(5, &[two(0, 0)]), Ok(Request::SetMemTable(Vec::new())));
        for (request, payload) in [
            (1, &[0][..]),
            (2, &[]),
            (2, &[0, 0]),
            (9, &[0; 4]),
            (5, &[]),
            (5, &[two(2, 0), 1, 2, 3, 4]),
            (5, &[two(u32::MAX, 0), 1, 2, 3, 4]),
            (5, &[two(1, 0), 1, 2, 3]),
        ] {
            let size = payload.len() * 8;
            assert_eq!(parse(request, payload), Err(RequestError::Size { request, size }));
        }
        for unknown in [0, 6, 7, 17, 19, 20, 41, u32::MAX] {
            assert_eq!(parse(unknown, &[]), Err(RequestError::Unknown(unknown)));
        }
        for odd in 1..8 {
            assert_eq!(Request::parse(2, &vec![0; odd]), Err(RequestError::Size { request: 2, size: odd }));
        }
    }

    #[test]
    fn answers() {
        let fields = |bytes: &[u8]| -> Vec<u32> {
            bytes.as_chunks::<4>().0.iter().map(|field| u32::from_ne_bytes(*field)).collect()
        };
        assert_eq!(fields(&answer(11, two(1, 77))), [11, 5, 8, 1, 77]);
    }
}
