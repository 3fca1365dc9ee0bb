//! The guest's driver, for tests: it does what it should, or whatever else it is told to.

use vm_memory::{Bytes, GuestAddress};

use super::ring::{Layout, Memory};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// One ring, at `base` in memory: the descriptor table, and 0x4000 octets further the available ring, and 0x1000 further the used one.
pub(super) struct Driver<'m> {
    memory: &'m Memory,
    base: u64,
    size: u16,
    /// Chains made available, and chains seen used.
    available: u16,
    seen: u16,
    free: u16,
}

impl<'m> Driver<'m> {
    pub(super) fn new(memory: &'m Memory, base: u64, size: u16) -> Self {
        Self { memory, base, size, available: 0, seen: 0, free: 0 }
    }

    /// As if so many chains had been used before.
    pub(super) fn from(memory: &'m Memory, base: u64, size: u16, index: u16) -> Self {
        let driver = Self { available: index, seen: index, ..Self::new(memory, base, size) };
        driver.set_available_index(index);
        driver.put(driver.layout().used + 2, index);
        driver
    }

    pub(super) fn layout(&self) -> Layout {
        let available = self.base + 0x4000;
        Layout { size: self.size.into(), descriptors: self.base, available, used: available + 0x1000 }
    }

    fn put(&self, place: u64, value: u16) {
        self.memory.write_obj(value.to_le(), GuestAddress(place)).unwrap();
    }

    fn get(&self, place: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(place)).unwrap())
    }

    pub(super) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        descriptor(self.memory, self.base, index, address, len, flags, next);
    }

    /// A chain of these buffers, made available. Descriptors are taken one after the other, round and round.
    pub(super) fn chain(&mut self, buffers: &[(u64, u32)], flags: u16) -> u16 {
        let head = self.free;
        for (position, (address, len)) in buffers.iter().enumerate() {
            let next = (self.free + 1) % self.size;
            let more = if position + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(self.free, *address, *len, flags | more, next);
            self.free = next;
        }
        self.offer(head);
        head
    }

    /// Makes a chain available, whether there is one or not.
    pub(super) fn offer(&mut self, head: u16) {
        self.put(self.layout().available + 4 + u64::from(self.available % self.size) * 2, head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub(super) fn set_available_index(&self, index: u16) {
        self.put(self.layout().available + 2, index);
    }

    pub(super) fn set_available_flags(&self, flags: u16) {
        self.put(self.layout().available, flags);
    }

    /// From which used index on it wants to be told.
    pub(super) fn set_used_event(&self, index: u16) {
        self.put(self.layout().available + 4 + u64::from(self.size) * 2, index);
    }

    /// From which available index on the device wants to be told.
    pub(super) fn available_event(&self) -> u16 {
        self.get(self.layout().used + 4 + u64::from(self.size) * 8)
    }

    pub(super) fn used_flags(&self) -> u16 {
        self.get(self.layout().used)
    }

    /// Chains that were used since the last time: heads, and octets written.
    pub(super) fn used(&mut self) -> Vec<(u32, u32)> {
        let index = self.get(self.layout().used + 2);
        let mut chains = Vec::new();
        while self.seen != index {
            let place = self.layout().used + 4 + u64::from(self.seen % self.size) * 8;
            let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(place)).unwrap();
            chains.push((u32::from_le(head), u32::from_le(written)));
            self.seen = self.seen.wrapping_add(1);
        }
        chains
    }
}

pub(super) fn descriptor(
    memory: &Memory,
    table: u64,
    index: u16,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let raw = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
    memory.write_slice(&raw.concat(), GuestAddress(table + u64::from(index) * 16)).unwrap();
}

/// Memory from address 0, all zero.
pub(super) fn memory(octets: usize) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), octets)]).unwrap()
}

pub(super) fn peek(memory: &Memory, address: u64, octets: usize) -> Vec<u8> {
    let mut bytes = vec![0; octets];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

pub(super) fn poke(memory: &Memory, address: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(address)).unwrap();
}
