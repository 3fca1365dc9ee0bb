//! How much all ledgers of a capture may keep together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::ConnectionNumber;

/// What all ledgers of one capture share: the numbers of the connections, and how much they may keep together. Clones are
/// the same one.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    connections: AtomicUsize,
    services: AtomicUsize,
}

/// Connections that live at a time, over all tunnels of a capture.
pub(super) const MAX_CONNECTIONS: usize = 1 << 16;
/// Services that are remembered at a time, over all tunnels of a capture. One that was removed is forgotten when its
/// place is needed.
pub(super) const MAX_SERVICES: usize = 1 << 14;

impl Budget {
    pub(super) fn give_back(&self, connections: usize, services: usize) {
        self.0.connections.fetch_sub(connections, Ordering::Relaxed);
        self.0.services.fetch_sub(services, Ordering::Relaxed);
    }

    pub(super) fn take_connection(&self) -> Option<ConnectionNumber> {
        take(&self.0.connections, MAX_CONNECTIONS)
            .then(|| ConnectionNumber(self.0.next.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn take_service(&self) -> bool {
        take(&self.0.services, MAX_SERVICES)
    }
}

/// Takes one of `most`, if one is left.
fn take(count: &AtomicUsize, most: usize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < most).then_some(taken + 1))
        .is_ok()
}
