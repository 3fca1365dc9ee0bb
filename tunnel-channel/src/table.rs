//! Which socket ids are in use.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use spice_proto::tunnel::SocketId;

use crate::socket::Socket;

/// The sockets of a channel by id. Grows to the highest id that was ever used and no further; finding a socket is one
/// index, however many there are.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Vec<Option<Socket>>,
    live: usize,
}

impl Table {
    /// Sockets in use, including those that only wait for the peer's last word.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn get(&self, id: SocketId) -> Option<&Socket> {
        self.slots.get(usize::from(id.0))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.slots.get_mut(usize::from(id.0))?.as_mut()
    }

    #[cfg(any(test, feature = "test-pair"))]
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.slots.iter().flatten()
    }

    /// `false`: the id is in use, and nothing was changed.
    pub(crate) fn insert(&mut self, id: SocketId, socket: Socket) -> bool {
        let index = usize::from(id.0);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        match self.slots.get_mut(index) {
            Some(slot @ None) => {
                *slot = Some(socket);
                self.live += 1;
                true
            }
            Some(Some(_)) | None => false,
        }
    }

    pub(crate) fn remove(&mut self, id: SocketId) {
        if let Some(slot) = self.slots.get_mut(usize::from(id.0))
            && slot.take().is_some()
        {
            self.live -= 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Table::default();
    }
}

/// The server's supply of ids: always the lowest that is free (wire-reference 6.5).
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// Ids below `fresh` that are free.
    returned: BinaryHeap<Reverse<u16>>,
    /// No id from here on was ever used.
    fresh: u16,
}

impl Ids {
    pub(crate) fn take(&mut self, limit: u16) -> Option<SocketId> {
        if let Some(Reverse(id)) = self.returned.pop() {
            return Some(SocketId(id));
        }
        if self.fresh >= limit {
            return None;
        }
        let id = self.fresh;
        self.fresh += 1;
        Some(SocketId(id))
    }

    pub(crate) fn give_back(&mut self, id: SocketId) {
        self.returned.push(Reverse(id.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_comes_first() {
        let mut ids = Ids::default();
        let taken: Vec<_> = std::iter::from_fn(|| ids.take(4)).collect();
        assert_eq!(taken, [0, 1, 2, 3].map(SocketId));
        ids.give_back(SocketId(3));
        ids.give_back(SocketId(1));
        assert_eq!(ids.take(4), Some(SocketId(1)));
        ids.give_back(SocketId(0));
        assert_eq!(ids.take(4), Some(SocketId(0)));
        assert_eq!(ids.take(4), Some(SocketId(3)));
        assert_eq!(ids.take(4), None);
        assert_eq!(Ids::default().take(0), None);
    }

    #[test]
    fn every_id_of_65535_can_be_used() {
        let mut ids = Ids::default();
        assert_eq!(std::iter::from_fn(|| ids.take(u16::MAX)).count(), 65_535);
    }

    #[test]
    fn an_id_in_use_is_not_overwritten() {
        let mut table = Table::default();
        let socket = Socket::opening(0, 1);
        assert!(table.insert(SocketId(u16::MAX), socket));
        assert!(!table.insert(SocketId(u16::MAX), socket));
        assert_eq!(table.len(), 1);
        assert!(table.get(SocketId(0)).is_none());
        table.remove(SocketId(0));
        table.remove(SocketId(u16::MAX));
        table.remove(SocketId(u16::MAX));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn an_idle_socket_is_small() {
        assert!(size_of::<Option<Socket>>() <= 64, "{}", size_of::<Option<Socket>>());
    }
}
