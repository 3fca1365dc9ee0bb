//! When everybody on a network is asked: a few times at first, since any packet may be lost, then from time to time.

use std::time::{Duration, Instant};

/// When the first questions go out.
const FIRST: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];
/// When the first look round is over if nobody is being asked more, and when in any case.
const LOOKED: [Duration; 2] = [Duration::from_millis(5500), Duration::from_secs(15)];

/// The rounds of one source.
#[derive(Debug)]
pub(crate) struct Rounds {
    every: Duration,
    began: Instant,
    next: Instant,
    looked: bool,
}

impl Rounds {
    /// The first is due at once; after the first few there is one `every` so often.
    pub(crate) fn new(every: Duration, now: Instant) -> Rounds {
        Rounds { every, began: now, next: now, looked: false }
    }

    /// Begins from the start.
    pub(crate) fn again(&mut self, now: Instant) {
        (self.began, self.next) = (now, now);
    }

    /// Whether one is to begin. It has begun, then.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        // Those that were slept through are not made up for.
        let next = FIRST.iter().map(|after| self.began + *after).find(|next| *next > now);
        self.next = next.unwrap_or(now + self.every);
        true
    }

    /// Whether the first look round is over; said once. `busy`: somebody is being asked for more.
    pub(crate) fn looked_round(&mut self, busy: bool, now: Instant) -> bool {
        let over = !self.looked && now >= self.looked_at(busy);
        self.looked |= over;
        over
    }

    /// When something is due.
    pub(crate) fn deadline(&self, busy: bool) -> Instant {
        if self.looked { self.next } else { self.next.min(self.looked_at(busy)) }
    }

    fn looked_at(&self, busy: bool) -> Instant {
        let [soon, late] = LOOKED;
        self.began + if busy { late } else { soon }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_as_they_should() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut rounds = Rounds::new(Duration::from_secs(60), start);
        let mut begun = Vec::new();
        for second in 0..130 {
            if rounds.begin(at(second * 1000)) {
                begun.push(second);
            }
        }
        assert_eq!(begun, [0, 1, 3, 63, 123]);
        // The machine slept.
        assert!(rounds.begin(at(9_000_000)) && !rounds.begin(at(9_000_001)));
        rounds.again(at(9_100_000));
        assert!(rounds.begin(at(9_100_000)) && !rounds.begin(at(9_100_999)) && rounds.begin(at(9_101_000)));
    }

    #[test]
    fn the_first_look_is_over_once() {
        let start = Instant::now();
        for (busy, over) in [(false, LOOKED[0]), (true, LOOKED[1])] {
            let mut rounds = Rounds::new(Duration::from_secs(60), start);
            while rounds.begin(start + Duration::from_secs(4)) {}
            assert_eq!(rounds.deadline(busy), start + over);
            assert!(!rounds.looked_round(busy, start + over - Duration::from_millis(1)));
            assert!(rounds.looked_round(busy, start + over));
            assert!(!rounds.looked_round(busy, start + over));
            assert_eq!(rounds.deadline(busy), start + Duration::from_secs(64));
        }
    }
}
