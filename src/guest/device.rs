//! What smoltcp sees as its network device, and the frames that wait for the wire.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};

/// Bytes before the IP packet in a frame: two addresses and the type.
pub(super) const ETHERNET_HEADER: usize = 14;
/// Bytes of QEMU's length before each frame.
const LENGTH_PREFIX: usize = 4;
/// Bytes waiting for the wire above which connections are not asked for more.
const TRANSMIT_HIGH_WATER: usize = 8 << 20;

/// A frame on its way to the wire.
#[derive(Debug, Clone)]
pub struct Frame {
    /// QEMU's length, then the frame, then leftovers of the frame that used the buffer before.
    buffer: Vec<u8>,
    len: usize,
}

impl Frame {
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        let mut frame = Self { buffer: Vec::new(), len: 0 };
        if let Some(place) = frame.reserve(bytes.len()) {
            place.copy_from_slice(bytes);
        }
        frame
    }

    /// The Ethernet frame.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(LENGTH_PREFIX..LENGTH_PREFIX + self.len).unwrap_or_default()
    }

    /// The frame with QEMU's 4-byte big-endian length before it.
    pub fn framed(&self) -> &[u8] {
        self.buffer.get(..LENGTH_PREFIX + self.len).unwrap_or_default()
    }

    /// Makes it a frame of `len` bytes of unspecified content and gives the place to write them.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let wanted = LENGTH_PREFIX + len;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        self.len = len;
        let prefix = u32::try_from(len).ok()?.to_be_bytes();
        let (head, rest) = self.buffer.split_at_mut_checked(LENGTH_PREFIX)?;
        head.copy_from_slice(&prefix);
        rest.get_mut(..len)
    }
}

/// Frames for the wire, and buffers that were there before.
#[derive(Debug, Default)]
pub(super) struct Transmit {
    frames: VecDeque<Frame>,
    bytes: usize,
    spare: Vec<Frame>,
}

impl Transmit {
    const SPARES: usize = 256;

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= TRANSMIT_HIGH_WATER
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += frame.len;
        self.frames.push_back(frame);
    }

    /// Whether the last frame is a TCP segment with data. For frames that smoltcp made: IPv4 without options.
    pub(super) fn last_has_data(&self) -> bool {
        let words =
            self.frames.back().and_then(|frame| frame.bytes().get(ETHERNET_HEADER..)?.first_chunk::<33>());
        let Some(&[_, _, high, low, .., offset]) = words else { return false };
        let headers = 20 + 4 * u16::from(offset >> 4);
        u16::from_be_bytes([high, low]) > headers
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len;
        Some(frame)
    }

    /// Puts a frame in front, as the next to go.
    pub(super) fn push_front(&mut self, frame: Frame) {
        self.bytes += frame.len;
        self.frames.push_front(frame);
    }

    fn blank(&mut self) -> Frame {
        self.spare.pop().unwrap_or(Frame { buffer: Vec::new(), len: 0 })
    }

    pub(super) fn recycle(&mut self, frame: Frame) {
        if self.spare.len() < Self::SPARES {
            self.spare.push(frame);
        }
    }
}

/// What smoltcp sees as its device: at most one frame in, frames out behind a header.
pub(super) struct Port<'a> {
    pub(super) receive: Option<&'a [u8]>,
    pub(super) transmit: &'a mut Transmit,
    pub(super) header: Option<[u8; ETHERNET_HEADER]>,
    pub(super) capabilities: &'a DeviceCapabilities,
}

pub(super) struct Rx<'a>(&'a [u8]);

pub(super) struct Tx<'a> {
    pub(super) transmit: &'a mut Transmit,
    pub(super) header: Option<[u8; ETHERNET_HEADER]>,
}

impl smoltcp::phy::RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl smoltcp::phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let head: &[u8] = self.header.as_ref().map_or(&[], |header| header.as_slice());
        let mut frame = self.transmit.blank();
        let place = frame.reserve(head.len() + len).and_then(|place| {
            let (front, rest) = place.split_at_mut_checked(head.len())?;
            front.copy_from_slice(head);
            Some(rest)
        });
        let Some(place) = place else {
            // Only a packet of 4 GiB gets here, and smoltcp makes none above 64 KiB; it wants its closure called.
            return fill(&mut vec![0; len]);
        };
        let result = fill(place);
        self.transmit.push(frame);
        result
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Rx<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let frame = self.receive.take()?;
        Some((Rx(frame), Tx { transmit: self.transmit, header: self.header }))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        (!self.transmit.is_full()).then_some(Tx { transmit: self.transmit, header: self.header })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// The card as smoltcp is told of it.
pub(super) fn capabilities(medium: Medium, ip_mtu: usize, verify: bool) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = medium;
    capabilities.max_transmission_unit = match medium {
        Medium::Ethernet => ip_mtu + ETHERNET_HEADER,
        Medium::Ip => ip_mtu,
    };
    if !verify {
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
    }
    capabilities
}
