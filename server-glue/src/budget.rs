//! How much may be done in a time.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, then one each `interval`.
#[derive(Debug)]
pub(crate) struct Budget {
    burst: u32,
    interval: Duration,
    left: u32,
    refilled: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(burst: u32, interval: Duration) -> Budget {
        Budget { burst, interval, left: burst, refilled: None }
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let refilled = *self.refilled.get_or_insert(now);
        let due = now.saturating_duration_since(refilled).as_nanos() / self.interval.as_nanos().max(1);
        if let Ok(due) = u32::try_from(due)
            && due <= self.burst
        {
            self.left = self.left.saturating_add(due).min(self.burst);
            self.refilled = refilled.checked_add(self.interval * due);
        } else {
            self.left = self.burst;
            self.refilled = Some(now);
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}
