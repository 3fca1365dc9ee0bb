//! Finding messages again where nobody said that one starts.

use spice_proto::frame::HeaderForm;

/// A search in one direction.
#[derive(Debug, Default)]
pub(super) struct Search {
    seen: u64,
}

/// Where messages start.
pub(super) struct Found {
    /// Bytes before it.
    pub(super) skipped: u64,
    pub(super) form: HeaderForm,
    /// The messages' first bytes.
    pub(super) bytes: Vec<u8>,
    /// Serial of the message before.
    pub(super) serial: Option<u64>,
}

impl Search {
    pub(super) fn held(&self) -> usize {
        0
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Found> {
        self.seen = self.seen.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        None
    }

    /// Bytes are missing behind those that were fed.
    pub(super) fn hole(&mut self) {}
}
