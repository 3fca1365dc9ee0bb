//! One split virtqueue, from the device's side (virtio 1.2, 2.7).
//!
//! A ring is three tables in the guest's memory. The driver puts the head of a chain of descriptors into the *available ring*; the
//! device takes it, reads or writes the buffers which the descriptors name, and puts the head into the *used ring*.
//!
//! All of that is the guest's, and it can write to it at any time. So each field is read once and then checked, addresses
//! are followed only through `vm-memory`, which knows the bounds of what is shared, and every walk is bounded by the size of the
//! ring or by [`MAX_CHAIN`]. What no driver may do is a [`RingError`]; the ring is not to be used after it.
//!
//! `virtio-queue` has such a ring, too. But it shows the driver each used chain by itself, while those of a frame that is
//! spread over several must appear at once (5.1.6.4: a driver that finds the first counts on the others), and it does not
//! tell the end of a chain from a broken one.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use self::flags::{INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE};

/// The guest's memory, as far as it is shared with us.
pub(super) type Memory = GuestMemoryMmap<()>;

/// Most chains in a ring: what QEMU allows.
pub(super) const MAX_SIZE: u16 = 1024;
/// Most descriptors in a chain, those of indirect tables included: what QEMU allows.
const MAX_CHAIN: u16 = 1024;

/// Octets of a descriptor, of a head in the available ring, and of one in the used ring.
const DESCRIPTOR: u64 = 16;
const AVAILABLE: u64 = 2;
const USED: u64 = 8;
/// Octets of flags and index before each ring. Behind it is a field of two octets, the event index of the other side.
const HEAD: u64 = 4;
const EVENT: u64 = 2;

/// What the guest's driver did that none may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// No power of two, or too large.
    #[error("its size is {0}, expected a power of two of at most {MAX_SIZE}")]
    Size(u32),
    /// One of its tables is not in memory, or lies askew.
    #[error("its {table} at {address:#x} is not within the guest's memory, or not aligned")]
    Place {
        /// Which.
        table: &'static str,
        /// Guest physical address.
        address: u64,
    },
    /// More chains than it can have.
    #[error("{0} descriptor chains are available, more than it has room for")]
    Available(u16),
    /// No such descriptor.
    #[error("descriptor {0} is named, which it does not have")]
    Descriptor(u16),
    /// It has no end, or one too far away.
    #[error("a descriptor chain has more than {0} descriptors, or goes round in a circle")]
    Chain(u16),
    /// A table of descriptors within a table, or of a size that no table has.
    #[error("an indirect descriptor of {0} octets is where none may be, or is no table")]
    Indirect(u32),
    /// Not in memory.
    #[error("a descriptor names memory at {0:#x} that the guest does not have")]
    Memory(u64),
    /// A buffer to be read where one to be written belongs, or the other way round.
    #[error("a buffer of it is for the wrong direction")]
    Direction,
}

/// Where the tables of a ring are, by guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// A piece of the guest's memory. Nobody has checked yet whether there is such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// Which way the device uses the buffers of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// They are read: what the guest sends.
    Readable,
    /// They are written: what the guest receives.
    Writable,
}

/// A chain that is used: its head, and the octets written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedChain {
    pub(super) head: u16,
    pub(super) written: u32,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Ring {
    /// INVARIANT: a power of two, at most `MAX_SIZE`.
    size: u16,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    direction: Direction,
    /// VIRTIO_F_EVENT_IDX: both sides say from which index on they want to be told.
    event_idx: bool,
    /// Chains taken, counted without end as all indexes here.
    next_available: u16,
    /// What the available ring's index was when it was read last.
    seen_available: u16,
    next_used: u16,
    /// The used ring's index when it was last decided whether to tell the driver.
    told: u16,
    /// The driver kicks when it makes chains available.
    armed: bool,
}

impl Ring {
    /// A ring from which `base` chains have been taken.
    pub(super) fn new(
        memory: &Memory,
        layout: Layout,
        direction: Direction,
        event_idx: bool,
        base: u16,
    ) -> Result<Ring, RingError> {
        let Tables { size, descriptors, available, used } = Tables::check(memory, layout)?;
        let place = RingError::Place { table: "used ring", address: layout.used };
        let index = used.checked_add(2).ok_or(place)?;
        let next_used = u16::from_le(memory.load(index, Ordering::Acquire).map_err(|_| place)?);
        Ok(Ring {
            size,
            descriptors,
            available,
            used,
            direction,
            event_idx,
            next_available: base,
            seen_available: base,
            next_used,
            told: next_used,
            armed: true,
        })
    }

    /// The guest's memory is laid out anew; the ring goes on where it was.
    pub(super) fn relocate(&mut self, memory: &Memory, layout: Layout) -> Result<(), RingError> {
        let Tables { size, descriptors, available, used } = Tables::check(memory, layout)?;
        if size != self.size {
            return Err(RingError::Size(layout.size));
        }
        (self.descriptors, self.available, self.used) = (descriptors, available, used);
        Ok(())
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Chains taken so far: where another device goes on.
    pub(super) fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Takes the next chain, and appends its buffers. Gives its head; `None`: none is available.
    pub(super) fn pop(
        &mut self,
        memory: &Memory,
        buffers: &mut Vec<Buffer>,
    ) -> Result<Option<u16>, RingError> {
        if self.next_available == self.seen_available && !self.look(memory)? {
            return Ok(None);
        }
        if self.armed && !self.event_idx {
            self.armed = false;
            // With an event index the driver has kicked once and is silent by itself.
            self.set_used_flags(memory, NO_NOTIFY)?;
        }
        let place = self.available.0 + HEAD + u64::from(self.next_available % self.size) * AVAILABLE;
        let head = u16::from_le(load(memory, place)?);
        self.walk(memory, head, buffers)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// The last chains were not taken after all.
    pub(super) fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Gives chains back to the driver, which sees all of them at once.
    pub(super) fn give_back(&mut self, memory: &Memory, chains: &[UsedChain]) -> Result<(), RingError> {
        if chains.is_empty() {
            return Ok(());
        }
        for UsedChain { head, written } in chains {
            let place = self.used.0 + HEAD + u64::from(self.next_used % self.size) * USED;
            let [h0, h1, h2, h3] = u32::from(*head).to_le_bytes();
            let [w0, w1, w2, w3] = written.to_le_bytes();
            write(memory, &[h0, h1, h2, h3, w0, w1, w2, w3], GuestAddress(place))?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        store(memory, self.next_used, self.used.0 + 2, Ordering::Release)
    }

    /// Whether the driver is to be told of what was given back since the last time. (2.7.7)
    pub(super) fn must_tell(&mut self, memory: &Memory) -> Result<bool, RingError> {
        if self.told == self.next_used {
            return Ok(false);
        }
        // It must see the index before we see whether it sleeps.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.told, self.next_used);
        if self.event_idx {
            let event = u16::from_le(load(memory, self.available.0 + HEAD + self.entries(AVAILABLE))?);
            let passed = self.next_used.wrapping_sub(event).wrapping_sub(1);
            return Ok(passed < self.next_used.wrapping_sub(old));
        }
        let flags = u16::from_le(load(memory, self.available.0)?);
        Ok(flags & NO_INTERRUPT == 0)
    }

    /// Asks the driver to kick when chains become available beyond those we know of. True: some did meanwhile, and no kick will
    /// come for them. (2.7.10)
    pub(super) fn arm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        self.armed = true;
        let known = self.seen_available;
        if self.event_idx {
            store(memory, known, self.used.0 + HEAD + self.entries(USED), Ordering::Relaxed)?;
        } else {
            self.set_used_flags(memory, 0)?;
        }
        // It must see that before we see what it did without.
        fence(Ordering::SeqCst);
        self.look(memory)?;
        Ok(self.seen_available != known)
    }

    /// Reads the available ring's index. True: there are chains.
    fn look(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let place = self.available.0 + 2;
        let index = memory.load(GuestAddress(place), Ordering::Acquire);
        let index = u16::from_le(index.map_err(|_| RingError::Memory(place))?);
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingError::Available(waiting));
        }
        self.seen_available = index;
        Ok(waiting != 0)
    }

    fn walk(&self, memory: &Memory, head: u16, buffers: &mut Vec<Buffer>) -> Result<(), RingError> {
        let (mut table, mut size, mut index, mut indirect) = (self.descriptors, self.size, head, false);
        for _ in 0..MAX_CHAIN {
            if index >= size {
                return Err(RingError::Descriptor(index));
            }
            let place = table
                .checked_add(u64::from(index) * DESCRIPTOR)
                .ok_or(RingError::Memory(table.raw_value()))?;
            let Descriptor { address, len, flags, next } = Descriptor::read(memory, place)?;
            let last = flags & NEXT == 0;
            if flags & INDIRECT != 0 {
                let count = u64::from(len) / DESCRIPTOR;
                let count = u16::try_from(count).ok().filter(|count| (1..=MAX_CHAIN).contains(count));
                let whole = u64::from(len).is_multiple_of(DESCRIPTOR);
                match count {
                    Some(count) if whole && last && !indirect => {
                        (table, size, index, indirect) = (address, count, 0, true);
                    }
                    Some(_) | None => return Err(RingError::Indirect(len)),
                }
                continue;
            }
            let direction = if flags & WRITE == 0 { Direction::Readable } else { Direction::Writable };
            if direction != self.direction {
                return Err(RingError::Direction);
            }
            buffers.push(Buffer { address, len });
            if last {
                return Ok(());
            }
            index = next;
        }
        Err(RingError::Chain(MAX_CHAIN))
    }

    fn set_used_flags(&self, memory: &Memory, flags: u16) -> Result<(), RingError> {
        store(memory, flags, self.used.0, Ordering::Relaxed)
    }

    /// Octets of all entries of a ring.
    fn entries(&self, each: u64) -> u64 {
        u64::from(self.size) * each
    }
}

/// A layout that is right: aligned, and within memory.
struct Tables {
    size: u16,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
}

impl Tables {
    fn check(memory: &Memory, layout: Layout) -> Result<Tables, RingError> {
        let size = u16::try_from(layout.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_SIZE)
            .ok_or(RingError::Size(layout.size))?;
        let entries = u64::from(size);
        let within = |table, address: u64, octets: u64, alignment: u64, access| {
            let octets = usize::try_from(octets).unwrap_or(usize::MAX);
            let place = GuestAddress(address);
            // The end is looked at first, so that no sum of ours can overflow later.
            let right = place.checked_add(octets as u64).is_some()
                && address.is_multiple_of(alignment)
                && GuestMemory::check_range(memory, place, octets, access);
            if right { Ok(place) } else { Err(RingError::Place { table, address }) }
        };
        let (descriptors, rings) = (entries * DESCRIPTOR, HEAD + EVENT);
        Ok(Tables {
            size,
            descriptors: within(
                "descriptor table",
                layout.descriptors,
                descriptors,
                DESCRIPTOR,
                Permissions::Read,
            )?,
            available: within(
                "available ring",
                layout.available,
                rings + entries * AVAILABLE,
                2,
                Permissions::Read,
            )?,
            used: within("used ring", layout.used, rings + entries * USED, 4, Permissions::Write)?,
        })
    }
}

/// `struct virtq_desc`.
struct Descriptor {
    address: GuestAddress,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &Memory, place: GuestAddress) -> Result<Descriptor, RingError> {
        let mut raw = [0; 16];
        read(memory, &mut raw, place)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Ok(Descriptor {
            address: GuestAddress(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Copies out of the guest's memory.
pub(super) fn read(memory: &Memory, into: &mut [u8], place: GuestAddress) -> Result<(), RingError> {
    memory.read_slice(into, place).map_err(|_| RingError::Memory(place.raw_value()))
}

/// Copies into the guest's memory.
pub(super) fn write(memory: &Memory, octets: &[u8], place: GuestAddress) -> Result<(), RingError> {
    memory.write_slice(octets, place).map_err(|_| RingError::Memory(place.raw_value()))
}

fn load(memory: &Memory, place: u64) -> Result<u16, RingError> {
    memory.load(GuestAddress(place), Ordering::Relaxed).map_err(|_| RingError::Memory(place))
}

fn store(memory: &Memory, value: u16, place: u64, order: Ordering) -> Result<(), RingError> {
    memory.store(value.to_le(), GuestAddress(place), order).map_err(|_| RingError::Memory(place))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the bindings have them wider than the fields they are in"
)]
mod flags {
    use virtio_bindings::virtio_ring::{
        VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
        VRING_USED_F_NO_NOTIFY,
    };

    pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    pub(super) const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
    pub(super) const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;
}

#[cfg(test)]
mod tests;
