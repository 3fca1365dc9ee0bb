//! What is left to a network card: checksums, and the cutting of long TCP segments.
//!
//! A guest next to us needs neither. Its kernel and ours hand each other whole 64 KiB segments whose checksum nobody has taken, and only
//! where they leave the machine does hardware cut them and sum them up (Linux, `Documentation/networking/segmentation-offloads.rst` and
//! `checksum-offloads.rst`; virtio 1.2, 5.1.6). What is so left open travels beside a frame, in [`CardFrame`].

use std::num::NonZeroU16;
use std::ops::Deref;

use crate::packet::ChecksumPlace;

/// What a card can be left to do with frames for the guest. From the guest it may always leave the same open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It puts TCP checksums in, or passes on that they are not needed.
    pub checksums: bool,
    /// It cuts TCP segments over IPv4 into pieces, or passes them on whole. Needs `checksums`.
    pub segments: bool,
}

impl Offloads {
    /// A card that carries frames as they are.
    pub const NONE: Offloads = Offloads { checksums: false, segments: false };
    /// A card that does whatever can be left to one.
    pub const ALL: Offloads = Offloads { checksums: true, segments: true };
}

/// An Ethernet frame, and what is left open of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardFrame<'a> {
    /// The frame without its check sequence. With `segment` it is longer than the link's MTU.
    pub bytes: &'a [u8],
    /// From the guest: the card vouches for the checksum of TCP or UDP, which may not be in its place. For the guest: the field has the
    /// folded sum of the pseudo header, not inverted, and the card is to finish it.
    pub vouched: bool,
    /// Octets of data in each of the TCP segments that this one stands for.
    pub segment: Option<NonZeroU16>,
}

impl<'a> CardFrame<'a> {
    /// A frame of which nothing is left open.
    pub fn whole(bytes: &'a [u8]) -> CardFrame<'a> {
        CardFrame { bytes, vouched: false, segment: None }
    }
}

impl CardFrame<'_> {
    /// The frame with its checksum in place; a segment to be cut stays whole.
    pub fn summed(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        if let Some(place) = self.vouched.then(|| ChecksumPlace::of(self.bytes)).flatten() {
            place.complete(&mut bytes);
        }
        bytes
    }
}

impl<'a> From<&'a [u8]> for CardFrame<'a> {
    fn from(bytes: &'a [u8]) -> CardFrame<'a> {
        CardFrame::whole(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for CardFrame<'a> {
    fn from(bytes: &'a [u8; N]) -> CardFrame<'a> {
        CardFrame::whole(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for CardFrame<'a> {
    fn from(bytes: &'a Vec<u8>) -> CardFrame<'a> {
        CardFrame::whole(bytes)
    }
}

impl Deref for CardFrame<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}
