//! What strangers may cost: how many links wait for their ticket at once, and how fast tickets may be tried.
//!
//! The numbers are per source address where there is one; of an IPv6 address the first 64 bits, which one household
//! has for itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bounds on links that are not authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// At once, from everywhere.
    pub(crate) total: usize,
    /// At once, from one source.
    pub(crate) per_source: usize,
}

/// Wrong tickets that cost nothing.
const FREE_FAILURES: u32 = 3;

/// Delay of the first ticket that costs; doubles with every further one.
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// Longest delay between two tickets of one source.
const LONGEST_DELAY: Duration = Duration::from_secs(8);

/// So far ahead tickets may be booked; who wants more is refused.
const HORIZON: Duration = Duration::from_secs(12);

/// After so long without a wrong ticket all is forgotten.
const MEMORY: Duration = Duration::from_secs(300);

/// Sources remembered at once.
const MOST_SOURCES: usize = 4096;

/// Shared by all links of one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    bounds: Bounds,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    sources: BTreeMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    waiting: usize,
    failures: u32,
    last_failure: Instant,
    /// When this source's next ticket may be judged.
    next: Instant,
}

impl Guard {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Arc::default() }
    }

    /// Lets a new link in, until the admission is dropped; `None` when too many wait already.
    pub(crate) fn admit(&self, now: Instant, source: Option<IpAddr>) -> Option<Admission> {
        let source = source.map(household);
        let mut state = self.lock();
        if state.waiting >= self.bounds.total {
            return None;
        }
        if let Some(address) = source {
            let entry = state.source(now, address)?;
            if entry.waiting >= self.bounds.per_source {
                return None;
            }
            entry.waiting += 1;
        }
        state.waiting += 1;
        Some(Admission { guard: self.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A full table forgets whoever was wrong longest ago; `None` when all of its sources have links waiting.
    fn source(&mut self, now: Instant, address: IpAddr) -> Option<&mut Source> {
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&address) {
            self.sources.retain(|_, source| !source.forgettable(now));
            if self.sources.len() >= MOST_SOURCES {
                let idle = self.sources.iter().filter(|(_, source)| source.waiting == 0);
                let oldest =
                    idle.min_by_key(|(_, source)| source.last_failure).map(|(address, _)| *address)?;
                self.sources.remove(&oldest);
            }
        }
        let entry = self.sources.entry(address).or_insert(Source {
            waiting: 0,
            failures: 0,
            last_failure: now,
            next: now,
        });
        if now.saturating_duration_since(entry.last_failure) > MEMORY {
            entry.failures = 0;
        }
        Some(entry)
    }
}

impl Source {
    fn forgettable(&self, now: Instant) -> bool {
        self.waiting == 0 && (self.failures == 0 || now.saturating_duration_since(self.last_failure) > MEMORY)
    }

    fn delay(&self) -> Duration {
        match self.failures.checked_sub(FREE_FAILURES) {
            None | Some(0) => Duration::ZERO,
            Some(over) => FIRST_DELAY.saturating_mul(1 << (over - 1).min(16)).min(LONGEST_DELAY),
        }
    }
}

/// One link that is not authenticated yet.
#[derive(Debug)]
pub(crate) struct Admission {
    guard: Guard,
    source: Option<IpAddr>,
}

impl Admission {
    /// When this link's ticket may be judged. Every call books the next free time, so that parallel links gain nothing.
    /// `None` when that is too far ahead to wait for.
    pub(crate) fn book(&self, now: Instant) -> Option<Instant> {
        let Some(address) = self.source else { return Some(now) };
        let mut state = self.guard.lock();
        let source = state.source(now, address)?;
        let delay = source.delay();
        let at = if delay.is_zero() { now } else { now.max(source.next) };
        if at.saturating_duration_since(now) > HORIZON {
            return None;
        }
        source.next = at + delay;
        Some(at)
    }

    /// The ticket was wrong. Returns how many were, lately.
    pub(crate) fn wrong(&self, now: Instant) -> u32 {
        let Some(address) = self.source else { return 1 };
        let mut state = self.guard.lock();
        let Some(source) = state.source(now, address) else { return 1 };
        source.failures = source.failures.saturating_add(1);
        source.last_failure = now;
        let delay = source.delay();
        source.next = source.next.max(now + delay);
        source.failures
    }

    /// The ticket was right: whatever went before were typing errors.
    pub(crate) fn right(&self) {
        if let Some(address) = self.source
            && let Some(source) = self.guard.lock().sources.get_mut(&address)
        {
            source.failures = 0;
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.guard.lock();
        state.waiting = state.waiting.saturating_sub(1);
        if let Some(address) = self.source
            && let Some(source) = state.sources.get_mut(&address)
        {
            source.waiting = source.waiting.saturating_sub(1);
            if source.waiting == 0 && source.failures == 0 {
                state.sources.remove(&address);
            }
        }
    }
}

fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { total: 4, per_source: 2 };

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn links_in_waiting_are_counted_and_let_go() {
        let now = Instant::now();
        let guard = Guard::new(BOUNDS);
        let a = guard.admit(now, address("10.0.0.1")).unwrap();
        let b = guard.admit(now, address("10.0.0.1")).unwrap();
        assert!(guard.admit(now, address("10.0.0.1")).is_none());
        let _c = guard.admit(now, address("2001:db8::1")).unwrap();
        let _d = guard.admit(now, None).unwrap();
        assert!(guard.admit(now, address("10.0.0.2")).is_none(), "the total");
        drop((a, b));
        let _e = guard.admit(now, address("10.0.0.1")).unwrap();
        assert_eq!(guard.lock().sources.len(), 2);
    }

    #[test]
    fn an_ipv6_household_is_one_source() {
        let now = Instant::now();
        let guard = Guard::new(BOUNDS);
        let _a = guard.admit(now, address("2001:db8::1")).unwrap();
        let _b = guard.admit(now, address("2001:db8::2")).unwrap();
        assert!(guard.admit(now, address("2001:db8::3")).is_none());
        assert!(guard.admit(now, address("2001:db8:0:1::3")).is_some());
        assert_eq!(household("::ffff:10.0.0.1".parse().unwrap()), address("10.0.0.1").unwrap());
    }

    #[test]
    fn wrong_tickets_cost_more_and_more_and_are_forgotten() {
        let start = Instant::now();
        let guard = Guard::new(BOUNDS);
        let link = guard.admit(start, address("10.0.0.1")).unwrap();
        for _ in 0..FREE_FAILURES {
            assert_eq!(link.book(start), Some(start));
            link.wrong(start);
        }
        assert_eq!(link.book(start), Some(start), "the first few cost nothing");
        link.wrong(start);
        let first = link.book(start).unwrap();
        assert_eq!(first, start + FIRST_DELAY);
        assert_eq!(link.book(start), Some(first + FIRST_DELAY), "in parallel as after one another");
        for _ in 0..20 {
            link.wrong(start);
        }
        assert!(link.book(start).unwrap() <= start + HORIZON);
        while link.book(start).is_some() {}
        assert_eq!(link.book(start + MEMORY * 2), Some(start + MEMORY * 2), "forgotten");
    }

    #[test]
    fn a_right_ticket_clears_the_record() {
        let now = Instant::now();
        let guard = Guard::new(BOUNDS);
        let link = guard.admit(now, address("10.0.0.1")).unwrap();
        for _ in 0..10 {
            link.wrong(now);
        }
        link.right();
        drop(link);
        let link = guard.admit(now, address("10.0.0.1")).unwrap();
        assert_eq!(link.book(now), Some(now));
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let now = Instant::now();
        let guard = Guard::new(Bounds { total: 10, per_source: 2 });
        for n in 0..u32::try_from(MOST_SOURCES).unwrap() {
            let link = guard.admit(now, Some(IpAddr::from((n + 1).to_be_bytes()))).unwrap();
            link.wrong(now);
        }
        assert!(guard.admit(now, address("200.0.0.1")).is_some());
        assert!(guard.lock().sources.len() <= MOST_SOURCES);
    }
}
