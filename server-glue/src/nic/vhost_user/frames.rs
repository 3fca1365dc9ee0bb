//! Ethernet frames in the two rings of a network card (virtio 1.2, 5.1.6).
//!
//! A `virtio_net_hdr` stands before each. A frame from the guest is one chain of the transmit ring. A frame for the guest
//! fills one chain of the receive ring, or with VIRTIO_NET_F_MRG_RXBUF as many as it takes, whose number is in the header.

use virtio_bindings::virtio_config::{VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Address, GuestAddress};

use super::ring::{Buffer, Memory, Ring, RingError, UsedChain, read, write};
use crate::nic::{MAX_FRAME, vnet};
use crate::offload::{CardFrame, Offloads};

/// Features of a card, bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    /// What we can do. VIRTIO_NET_F_MTU is QEMU's `host_mtu=`: it tells the guest, and we need not know.
    pub(super) const OFFERED: Features = Features(
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_F_ANY_LAYOUT
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_MTU,
    );

    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }

    pub(super) fn event_idx(self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }

    fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Octets of `virtio_net_hdr`: the last field, `num_buffers`, is missing in drivers from before virtio 1.
    fn header(self) -> usize {
        if self.has(VIRTIO_F_VERSION_1) || self.mergeable() { LONG_HEADER } else { vnet::HEADER }
    }

    /// What the guest takes unfinished.
    pub(super) fn offloads(self) -> Offloads {
        let checksums = self.has(VIRTIO_NET_F_GUEST_CSUM);
        Offloads { checksums, segments: checksums && self.has(VIRTIO_NET_F_GUEST_TSO4) }
    }

    /// The frame in a record that [`Frames::take`] took.
    pub(super) fn parse(self, record: &[u8]) -> Option<CardFrame<'_>> {
        vnet::parse(record, self.header(), u16::from_le_bytes)
    }
}

/// What became of a frame for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// It is in the guest's memory.
    Yes,
    /// Too few buffers are available: later.
    Later,
    /// The guest has no buffers so large, and never will have.
    Never,
}

/// What became of a chain of the transmit ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// A record of so many octets.
    Record(usize),
    /// It held no frame, or too much.
    Nothing,
}

/// Both rings of a card whose driver runs.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) features: Features,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    /// Chains of the transmit ring that were taken.
    taken: Vec<UsedChain>,
    // Of the frame in hand; kept for their memory.
    buffers: Vec<Buffer>,
    chains: Vec<UsedChain>,
}

impl Frames {
    pub(super) fn new(features: Features, receive: Ring, transmit: Ring) -> Frames {
        Frames { features, receive, transmit, taken: Vec::new(), buffers: Vec::new(), chains: Vec::new() }
    }

    /// Takes a frame of the guest, header included, into `space`, where a longest one has room; `None`: it has sent none. The chain is the
    /// guest's again with [`Frames::give_back`].
    pub(super) fn take(&mut self, memory: &Memory, space: &mut [u8]) -> Result<Option<Taken>, RingError> {
        self.buffers.clear();
        let Some(head) = self.transmit.pop(memory, &mut self.buffers)? else { return Ok(None) };
        self.taken.push(UsedChain { head, written: 0 });
        let octets = self.buffers.iter().map(|buffer| u64::from(buffer.len)).sum::<u64>();
        let octets = usize::try_from(octets).unwrap_or(usize::MAX);
        if octets <= self.features.header() || octets > MAX_RECORD {
            return Ok(Some(Taken::Nothing));
        }
        let Some(mut space) = space.get_mut(..octets) else { return Ok(Some(Taken::Nothing)) };
        for Buffer { address, len } in &self.buffers {
            let Some((part, rest)) = space.split_at_mut_checked(usize::try_from(*len).unwrap_or(usize::MAX))
            else {
                break;
            };
            read(memory, part, *address)?;
            space = rest;
        }
        Ok(Some(Taken::Record(octets)))
    }

    /// Gives the guest what was taken.
    pub(super) fn give_back(&mut self, memory: &Memory) -> Result<(), RingError> {
        let given = self.transmit.give_back(memory, &self.taken);
        self.taken.clear();
        given
    }

    /// Gives the guest a frame with the first fields of its header.
    pub(super) fn give(
        &mut self,
        memory: &Memory,
        header: &[u8; vnet::HEADER],
        frame: &[u8],
    ) -> Result<Given, RingError> {
        let header_len = self.features.header();
        let needed = (header_len + frame.len()) as u64;
        let mergeable = self.features.mergeable();
        self.buffers.clear();
        self.chains.clear();
        let mut room = 0;
        while room < needed {
            let start = self.buffers.len();
            // A guest that uses them all up and goes on adding is not followed.
            let full = self.chains.len() >= usize::from(self.receive.size());
            let popped = if full { None } else { self.receive.pop(memory, &mut self.buffers)? };
            let Some(head) = popped else {
                self.unpop();
                return Ok(if full { Given::Never } else { Given::Later });
            };
            let added = self.buffers.get(start..).unwrap_or_default();
            let capacity = added.iter().map(|buffer| u64::from(buffer.len)).sum::<u64>();
            let written = u32::try_from(capacity.min(needed - room)).unwrap_or(u32::MAX);
            self.chains.push(UsedChain { head, written });
            room += capacity;
            if !mergeable && room < needed {
                self.unpop();
                return Ok(Given::Never);
            }
        }
        let [n0, n1] = u16::try_from(self.chains.len()).unwrap_or(u16::MAX).to_le_bytes();
        let count = [n0, n1];
        let count = if header_len == LONG_HEADER { &count[..] } else { &[] };
        scatter(memory, &self.buffers, &[header, count, frame])?;
        self.receive.give_back(memory, &self.chains)?;
        Ok(Given::Yes)
    }

    fn unpop(&mut self) {
        // As many as the ring has, at most.
        self.receive.unpop(u16::try_from(self.chains.len()).unwrap_or(u16::MAX));
    }
}

/// Writes pieces into buffers, one behind the other.
fn scatter(memory: &Memory, buffers: &[Buffer], pieces: &[&[u8]]) -> Result<(), RingError> {
    let mut buffers = buffers.iter().copied();
    let mut buffer = Buffer { address: GuestAddress(0), len: 0 };
    for mut piece in pieces.iter().copied() {
        while !piece.is_empty() {
            if buffer.len == 0 {
                let Some(next) = buffers.next() else { return Ok(()) };
                buffer = next;
                continue;
            }
            let count = u32::try_from(piece.len()).unwrap_or(u32::MAX).min(buffer.len);
            let Some((now, later)) = piece.split_at_checked(usize::try_from(count).unwrap_or(usize::MAX))
            else {
                return Ok(());
            };
            write(memory, now, buffer.address)?;
            let end = buffer.address.checked_add(u64::from(count));
            let address = end.ok_or(RingError::Memory(buffer.address.raw_value()))?;
            buffer = Buffer { address, len: buffer.len - count };
            piece = later;
        }
    }
    Ok(())
}

/// Octets of `virtio_net_hdr` with `num_buffers`.
const LONG_HEADER: usize = vnet::HEADER + 2;
/// Longest record: a frame and its header.
pub(super) const MAX_RECORD: usize = MAX_FRAME;

#[cfg(test)]
mod tests;
