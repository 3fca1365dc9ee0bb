//! Two byte streams that should be one: as captured, and as made today. They come in pieces, each in its own time.

use std::collections::VecDeque;

use super::budget::{Budget, Kept};

/// How far one of the two may be ahead of the other, bytes. Windows keep them together: the one is driven by the other.
pub(super) const MAX_AHEAD: usize = 8 << 20;

/// The two streams. Only what one of them has ahead of the other is kept.
#[derive(Debug)]
pub(super) struct Twin {
    captured: u64,
    today: u64,
    /// Of the one that is ahead, from where the other ends.
    ahead: VecDeque<u8>,
    kept: Kept,
    differ: Option<Differ>,
    /// One was more than [`MAX_AHEAD`] ahead, or there was no room to keep it: the rest is counted, not compared.
    lost: bool,
}

/// The first byte that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Differ {
    pub(super) at: u64,
    pub(super) captured: u8,
    pub(super) today: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Captured,
    Today,
}

impl Twin {
    pub(super) fn new(budget: &Budget) -> Self {
        Twin {
            captured: 0,
            today: 0,
            ahead: VecDeque::new(),
            kept: budget.account(),
            differ: None,
            lost: false,
        }
    }

    /// More of what was captured.
    pub(super) fn captured(&mut self, bytes: &[u8]) {
        self.push(Side::Captured, bytes);
    }

    /// More of what is made today.
    pub(super) fn today(&mut self, bytes: &[u8]) {
        self.push(Side::Today, bytes);
    }

    /// Bytes captured so far.
    pub(super) fn captured_len(&self) -> u64 {
        self.captured
    }

    /// Bytes made today so far.
    pub(super) fn today_len(&self) -> u64 {
        self.today
    }

    /// Bytes that both have.
    pub(super) fn common(&self) -> u64 {
        self.captured.min(self.today)
    }

    pub(super) fn differ(&self) -> Option<Differ> {
        self.differ
    }

    /// Whether one was so far ahead that not everything was compared.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    fn push(&mut self, side: Side, bytes: &[u8]) {
        let (mine, other) = match side {
            Side::Captured => (self.captured, self.today),
            Side::Today => (self.today, self.captured),
        };
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match side {
            Side::Captured => self.captured = mine.saturating_add(len),
            Side::Today => self.today = mine.saturating_add(len),
        }
        if self.lost || self.differ.is_some() {
            return;
        }
        // INVARIANT: `ahead` is as long as the one is ahead of the other.
        let behind = usize::try_from(other.saturating_sub(mine)).unwrap_or(usize::MAX);
        let (compared, rest) = bytes.split_at_checked(behind).unwrap_or((bytes, &[]));
        let others = self.ahead.drain(..compared.len().min(self.ahead.len()));
        let first =
            (mine..).zip(compared.iter().copied().zip(others)).find(|(_, (mine, other))| mine != other);
        if let Some((at, (mine, other))) = first {
            let (captured, today) = match side {
                Side::Captured => (mine, other),
                Side::Today => (other, mine),
            };
            self.differ = Some(Differ { at, captured, today });
        }
        let held = self.ahead.len().saturating_add(rest.len());
        if self.differ.is_none() && held <= MAX_AHEAD && self.kept.set(held) {
            self.ahead.extend(rest);
        } else {
            self.lost = self.differ.is_none();
            self.ahead = VecDeque::new();
            // Nothing always fits.
            let _ = self.kept.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut twin = Twin::new(&Budget::new());
        for piece in bytes.chunks(7) {
            twin.captured(piece);
        }
        assert_eq!((twin.kept.bytes(), twin.common()), (200, 0));
        for piece in bytes.chunks(11) {
            twin.today(piece);
        }
        twin.today(b"more");
        assert_eq!(
            (twin.differ(), twin.captured_len(), twin.today_len(), twin.common()),
            (None, 200, 204, 200)
        );
        twin.captured(b"more");
        assert_eq!((twin.differ(), twin.kept.bytes()), (None, 0));
    }

    #[test]
    fn the_first_difference_is_found_whoever_is_ahead() {
        let mut twin = Twin::new(&Budget::new());
        twin.captured(b"abcdef");
        twin.today(b"abc");
        twin.today(b"dXY");
        assert_eq!(twin.differ(), Some(Differ { at: 4, captured: b'e', today: b'X' }));
        let mut twin = Twin::new(&Budget::new());
        twin.today(b"abcdef");
        twin.captured(b"abcdXYmore");
        assert_eq!(twin.differ(), Some(Differ { at: 4, captured: b'X', today: b'e' }));
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        let mut twin = Twin::new(&Budget::new());
        let piece = vec![0; 1 << 20];
        for _ in 0..20 {
            twin.captured(&piece);
            assert!(twin.kept.bytes() <= MAX_AHEAD);
        }
        assert!(twin.is_lost());
        assert_eq!(twin.captured_len(), 20 << 20);
    }
}
