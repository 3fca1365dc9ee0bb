//! Where items go, and how much may be held back meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use spice_proto::names::Sender;

use super::knowledge::Knowledge;
use super::{Item, What};
use crate::capture::reassembly::StreamId;

/// Way out for the items of one event.
pub(super) struct Out<'s> {
    pub(super) time: Duration,
    pub(super) stream: StreamId,
    /// Bytes that all connections together may hold in addition.
    pub(super) room: usize,
    /// Server ports that Spice is expected at.
    pub(super) ports: &'s BTreeSet<u16>,
    pub(super) sink: &'s mut dyn FnMut(Item<'_>),
}

impl Out<'_> {
    /// Gives an item.
    pub(super) fn say(&mut self, know: &Knowledge, from: Option<Sender>, what: What<'_>) {
        (self.sink)(Item { time: self.time, stream: self.stream, channel: know.channel, from, what });
    }

    /// Makes room for `more` bytes in a buffer that will not grow beyond `most`, if there is any left. What is announced
    /// and does not come costs nothing: the buffer grows with what it holds.
    pub(super) fn afford(&mut self, buffer: &mut Vec<u8>, more: usize, most: usize) -> bool {
        let (have, needed) = (buffer.capacity(), buffer.len().saturating_add(more));
        if needed <= have {
            return true;
        }
        let target = needed.max(have.saturating_mul(2)).max(4096).min(most.max(needed));
        let Some(room) = self.room.checked_sub(target - have) else { return false };
        self.room = room;
        buffer.reserve_exact(target - buffer.len());
        true
    }
}
