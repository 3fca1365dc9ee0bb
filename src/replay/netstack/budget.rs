//! How much of a capture is kept at a time, over all connections.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that may be kept altogether.
const LIMIT: usize = 256 << 20;

/// What is left to keep things in. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Budget(Rc<Cell<usize>>);

/// So many bytes are kept. They are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Budget(Rc::new(Cell::new(LIMIT)))
    }

    /// An account in which nothing is kept yet.
    pub(super) fn account(&self) -> Kept {
        Kept { budget: self.clone(), bytes: 0 }
    }
}

impl Kept {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps so many in place of what was kept. `false`: there is no room, and nothing changed.
    #[must_use]
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let left = self.budget.0.get();
        let Some(left) = left.saturating_add(self.bytes).checked_sub(bytes) else { return false };
        self.budget.0.set(left);
        self.bytes = bytes;
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get().saturating_add(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_kept_again() {
        let budget = Budget::new();
        let (mut one, mut two) = (budget.account(), budget.account());
        assert!(one.set(LIMIT - 10) && two.set(10) && !two.set(11));
        drop(one);
        assert!(two.set(11) && two.set(LIMIT) && !two.set(LIMIT + 1));
    }
}
