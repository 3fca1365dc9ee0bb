//! The bytes on their way to the link: one buffer, written at its end, read at its front.

/// A flat queue of bytes. The front moves forward as bytes are sent; the rest is moved down only when that frees at
/// least as much as it moves, so that the cost per byte is constant. What was initialised once is not cleared again. It
/// grows with what is queued, and falls back when that was little for a while.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// INVARIANT: `start <= end <= buffer.len()`; what is queued lies between the two.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The link did not take all that it was last given.
    is_backed_up: bool,
    /// Times that it became empty since there was much in it.
    quiet: u8,
    /// The most room that was asked for at once. It is asked for again and again, however little is queued in it.
    asked: usize,
}

/// What an empty queue keeps of its memory at most, in bytes.
const KEPT: usize = 1 << 20;
/// What it keeps where little is queued at a time, beside the room that is always asked for.
const KEPT_IF_QUIET: usize = 16 << 10;
/// So often in a row there must have been little.
const QUIET: u8 = 8;

impl Outgoing {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the link takes less than it is given: it has a queue of its own.
    pub(crate) fn is_backed_up(&self) -> bool {
        self.is_backed_up
    }

    /// Everything queued.
    pub(crate) fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `n` queued bytes have left; more than there are count as all.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n.min(self.len());
        self.is_backed_up = self.start < self.end;
        if self.start == self.end {
            self.quiet = if self.end > KEPT_IF_QUIET { 0 } else { self.quiet.saturating_add(1) };
            self.start = 0;
            self.end = 0;
            let kept = if self.quiet >= QUIET { KEPT_IF_QUIET + self.asked } else { KEPT };
            if self.buffer.len() > kept {
                self.buffer.truncate(kept);
                self.buffer.shrink_to_fit();
            }
        }
    }

    /// Room for `n` bytes behind the queue. They are queued by [`Outgoing::commit`] only.
    pub(crate) fn room(&mut self, n: usize) -> &mut [u8] {
        self.asked = self.asked.max(n);
        self.make_room(n)
    }

    fn make_room(&mut self, n: usize) -> &mut [u8] {
        if self.buffer.len() - self.end < n {
            let queued = self.len();
            if self.start >= queued && queued + n <= self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.start = 0;
                self.end = queued;
            } else {
                let least = self.end + n;
                self.buffer.resize(least.max(self.buffer.len().saturating_mul(2)), 0);
            }
        }
        self.buffer.get_mut(self.end..self.end + n).unwrap_or_default()
    }

    /// Queues the first `n` bytes of what [`Outgoing::room`] gave.
    pub(crate) fn commit(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buffer.len());
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len()).copy_from_slice(bytes);
        self.commit(bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_queue_gives_its_memory_back() {
        let mut out = Outgoing::default();
        out.append(&vec![7; 3 * KEPT]);
        assert_eq!(out.len(), 3 * KEPT);
        out.consume(3 * KEPT);
        assert!(out.buffer.capacity() <= KEPT + KEPT / 2);
        assert!(out.pending().is_empty());
    }

    #[test]
    fn what_bulk_needed_is_given_back_behind_it() {
        let mut out = Outgoing::default();
        for _ in 0..100 {
            out.append(&[7; 300 << 10]);
            out.consume(1000);
            assert!(out.is_backed_up());
            out.consume(usize::MAX);
            assert!(!out.is_backed_up());
        }
        let kept = out.buffer.len();
        assert!(kept >= 300 << 10, "it would be needed again");
        for _ in 0..QUIET {
            out.append(&[1; 20]);
            out.consume(20);
        }
        assert!(out.buffer.capacity() <= 2 * KEPT_IF_QUIET);
        // Little that is written into much room neither makes it grow each time nor fall back behind each.
        let mut places = Vec::new();
        for _ in 0..4 * QUIET {
            out.room(40 << 10)[0] = 1;
            out.commit(20);
            out.consume(20);
            places.push((out.buffer.as_ptr(), out.buffer.len()));
        }
        assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    }

    #[test]
    fn a_long_lived_queue_does_not_creep() {
        let mut out = Outgoing::default();
        out.append(&[0; 100]);
        for _ in 0..100_000 {
            out.append(&[1; 100]);
            out.consume(100);
        }
        assert!(out.buffer.len() <= 1000, "{}", out.buffer.len());
    }

    proptest! {
        #[test]
        fn bytes_leave_as_they_came(steps in prop::collection::vec((0usize..300, 0usize..300), 0..200)) {
            let mut out = Outgoing::default();
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u8;
            for (come, go) in steps {
                let bytes: Vec<u8> = (0..come).map(|_| { next = next.wrapping_add(1); next }).collect();
                out.append(&bytes);
                model.extend(bytes);
                out.consume(go);
                model.drain(..go.min(model.len()));
                prop_assert_eq!(out.pending(), model.make_contiguous() as &[u8]);
            }
        }
    }
}
