//! `virtio_net_hdr`, which stands before each frame and says what is left open of it (virtio 1.2, 5.1.6; Linux
//! `include/uapi/linux/virtio_net.h`).
//!
//! ```text
//! u8 flags | u8 gso_type | u16 hdr_len | u16 gso_size | u16 csum_start | u16 csum_offset
//! ```
//!
//! A TAP device takes the machine's own byte order.

use std::num::NonZeroU16;

use crate::offload::CardFrame;
use crate::packet::ChecksumPlace;

/// Octets of the header.
pub(super) const HEADER: usize = 10;

/// The checksum from `csum_start` on belongs at `csum_offset` from there.
const NEEDS_CSUM: u8 = 1;
/// The checksum was found right.
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
/// Beside the type: the segment has ECN's CWR, which is to be in the first piece only.
const GSO_ECN: u8 = 0x80;

/// What follows `header`. `None`: too short, or a kind that was not asked for.
pub(super) fn parse(record: &[u8]) -> Option<CardFrame<'_>> {
    let (&[flags, kind, _, _, s0, s1, _, _, _, _], bytes) = record.split_first_chunk::<HEADER>()?;
    let segment = match kind & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(NonZeroU16::new(u16::from_ne_bytes([s0, s1]))?),
        _ => return None,
    };
    Some(CardFrame { bytes, vouched: flags & (NEEDS_CSUM | DATA_VALID) != 0, segment })
}

/// The header of a frame for the guest. What is left open of it must be TCP over IPv4.
pub(super) fn header(frame: &CardFrame<'_>) -> [u8; HEADER] {
    let Some(place) = frame.vouched.then(|| ChecksumPlace::of(frame.bytes)).flatten() else {
        return [0; HEADER];
    };
    let kind = if frame.segment.is_some() { GSO_TCPV4 } else { GSO_NONE };
    let [h0, h1] = short(place.headers).to_ne_bytes();
    let [s0, s1] = frame.segment.map_or(0, NonZeroU16::get).to_ne_bytes();
    let [c0, c1] = short(place.start).to_ne_bytes();
    let [o0, o1] = short(place.field - place.start).to_ne_bytes();
    [NEEDS_CSUM, kind, h0, h1, s0, s1, c0, c1, o0, o1]
}

/// All headers of a frame together are far shorter.
fn short(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}
