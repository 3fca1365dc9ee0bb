//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from the first to the longest, each cut by up to a half, so that many clients do not come at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    planned: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self { first, longest, planned: first }
    }

    pub(super) fn reset(&mut self) {
        self.planned = self.first;
    }

    pub(super) fn next(&mut self) -> Duration {
        let planned = self.planned;
        self.planned = planned.saturating_mul(2).min(self.longest);
        // A hasher's random keys are randomness enough for this.
        let thousandths = u32::try_from(RandomState::new().hash_one(()) % 1001).unwrap_or_default();
        let half = planned / 2;
        half.saturating_add((half / 1000).saturating_mul(thousandths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_vary_and_begin_anew() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, longest);
        for _ in 0..2 {
            let mut planned = first;
            for _ in 0..12 {
                let wait = backoff.next();
                assert!((planned / 2..=planned).contains(&wait), "{wait:?} of {planned:?}");
                planned = (planned * 2).min(longest);
            }
            backoff.reset();
        }
        let mut many: Vec<Duration> = (0..20).map(|_| Backoff::new(longest, longest).next()).collect();
        many.dedup();
        assert!(many.len() > 10, "everybody waits for the same time: {many:?}");
    }

    #[test]
    fn no_length_is_too_long() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        assert!(backoff.next() >= Duration::MAX / 4 && backoff.next() >= Duration::MAX / 4);
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).next(), Duration::ZERO);
    }
}
