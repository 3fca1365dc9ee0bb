//! `virtio_net_hdr`, which stands before each frame and says what is left open of it (virtio 1.2, 5.1.6; Linux
//! `include/uapi/linux/virtio_net.h`).
//!
//! ```text
//! u8 flags | u8 gso_type | u16 hdr_len | u16 gso_size | u16 csum_start | u16 csum_offset
//! ```
//!
//! A TAP device takes the machine's own byte order, virtio 1 is little-endian.

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

/// What follows a header of `length` octets, whose fields are read with `short`. `None`: too short, or a kind that was not asked for.
pub(super) fn parse(record: &[u8], length: usize, short: fn([u8; 2]) -> u16) -> Option<CardFrame<'_>> {
    let &[flags, kind, _, _, s0, s1, _, _, _, _] = record.first_chunk::<HEADER>()?;
    let bytes = record.get(length..)?;
    let segment = match kind & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(NonZeroU16::new(short([s0, s1]))?),
        _ => return None,
    };
    Some(CardFrame { bytes, vouched: flags & (NEEDS_CSUM | DATA_VALID) != 0, segment })
}

/// The header of a frame for the guest, whose fields are written with `octets`. What is left open of it must be TCP over IPv4.
pub(super) fn header(frame: &CardFrame<'_>, octets: fn(u16) -> [u8; 2]) -> [u8; HEADER] {
    let Some(place) = frame.vouched.then(|| ChecksumPlace::of(frame.bytes)).flatten() else {
        return [0; HEADER];
    };
    let kind = if frame.segment.is_some() { GSO_TCPV4 } else { GSO_NONE };
    let [h0, h1] = octets(short(place.headers));
    let [s0, s1] = octets(frame.segment.map_or(0, NonZeroU16::get));
    let [c0, c1] = octets(short(place.start));
    let [o0, o1] = octets(short(place.field - place.start));
    [NEEDS_CSUM, kind, h0, h1, s0, s1, c0, c1, o0, o1]
}

/// All headers of a frame together are far shorter.
fn short(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{ACK, tcp};

    fn header(frame: &CardFrame<'_>) -> [u8; HEADER] {
        super::header(frame, u16::to_ne_bytes)
    }

    fn parse(record: &[u8]) -> Option<CardFrame<'_>> {
        super::parse(record, HEADER, u16::from_ne_bytes)
    }

    #[test]
    fn what_is_left_open_is_said() {
        let frame = tcp(ACK, 1, 2).options(&[1, 1, 1, 1]).data(&[9; 3000]).frame();
        let whole = CardFrame::whole(&frame);
        assert_eq!(header(&whole), [0; HEADER]);
        let vouched = CardFrame { vouched: true, ..whole };
        let [flags, kind, rest @ ..] = header(&vouched);
        let fields = rest.as_chunks::<2>().0.iter().map(|field| u16::from_ne_bytes(*field));
        assert_eq!((flags, kind, fields.collect::<Vec<_>>()), (1, 0, vec![58, 0, 34, 16]));
        let cut = CardFrame { segment: NonZeroU16::new(1460), ..vouched };
        let [flags, kind, rest @ ..] = header(&cut);
        let fields = rest.as_chunks::<2>().0.iter().map(|field| u16::from_ne_bytes(*field));
        assert_eq!((flags, kind, fields.collect::<Vec<_>>()), (1, 1, vec![58, 1460, 34, 16]));
    }

    #[test]
    fn what_comes_is_believed_as_far_as_it_was_asked_for() {
        let record = |flags: u8, kind: u8, size: u16| {
            let [s0, s1] = size.to_ne_bytes();
            [&[flags, kind, 0, 0, s0, s1, 0xff, 0xff, 0xff, 0xff][..], b"frame"].concat()
        };
        let seen =
            |record: &[u8]| parse(record).map(|frame| (frame.vouched, frame.segment.map(NonZeroU16::get)));
        assert_eq!(parse(&record(0, 0, 0)).unwrap().bytes, b"frame");
        assert_eq!(seen(&record(0, 0, 0)), Some((false, None)));
        assert_eq!(seen(&record(NEEDS_CSUM, 0, 7)), Some((true, None)));
        assert_eq!(seen(&record(DATA_VALID, 0, 0)), Some((true, None)));
        assert_eq!(seen(&record(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1400)), Some((true, Some(1400))));
        assert_eq!(seen(&record(NEEDS_CSUM, GSO_TCPV4, 0)), None, "pieces of nothing");
        for kind in [2, 3, 4, 5, 0x7f] {
            assert_eq!(seen(&record(NEEDS_CSUM, kind, 1400)), None, "kind {kind}");
        }
        for short in 0..HEADER {
            assert_eq!(parse(&record(0, 0, 0)[..short]), None);
        }
    }
}
