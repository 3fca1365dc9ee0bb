//! Which socket ids are not in use, as far as a capture shows.

use std::collections::{BTreeSet, VecDeque};

use spice_proto::tunnel::SocketId;

/// Which ids are certainly free.
#[derive(Debug)]
pub(super) struct Free {
    /// All that are not open: everything was seen.
    all: bool,
    /// Otherwise those that were seen becoming free.
    seen: BTreeSet<SocketId>,
    /// The last whose CLOSE and CLOSED crossed.
    crossed: VecDeque<SocketId>,
}

impl Free {
    /// Beyond so many, it is no longer known that they are free. A ledger's own share must be small: there can be many.
    const MAX_SEEN: usize = 1024;
    const MAX_CROSSED: usize = 64;

    pub(super) fn new(all: bool) -> Self {
        Self { all, seen: BTreeSet::new(), crossed: VecDeque::new() }
    }

    pub(super) fn has(&self, socket: SocketId) -> bool {
        self.all || self.seen.contains(&socket)
    }

    pub(super) fn crossed(&self, socket: SocketId) -> bool {
        self.crossed.contains(&socket)
    }

    pub(super) fn add(&mut self, socket: SocketId, crossed: bool) {
        if !self.all {
            if self.seen.len() >= Self::MAX_SEEN {
                self.seen.clear();
            }
            self.seen.insert(socket);
        }
        if crossed {
            if self.crossed.len() >= Self::MAX_CROSSED {
                self.crossed.pop_front();
            }
            self.crossed.push_back(socket);
        }
    }

    pub(super) fn take(&mut self, socket: SocketId) {
        self.seen.remove(&socket);
        self.crossed.retain(|crossed| *crossed != socket);
    }

    pub(super) fn forget(&mut self) {
        self.all = false;
        self.seen.clear();
        self.crossed.clear();
    }
}
