//! What strangers may cost: how many links wait for their ticket at once, and how fast tickets may be tried.
//!
//! The numbers are per source address where there is one; of an IPv6 address the first 64 bits, which one household
//! has for itself.
//!
//! Whoever means well is through the link stage in a moment. So when there is no room, it is not the newcomer who is sent
//! away but the one who has waited longest, of the source that has most in waiting: a thousand silent connections keep
//! nobody out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

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

/// How often a crowd is told of.
const TELL: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    sources: BTreeMap<IpAddr, Source>,
    displaced: u64,
    told: Option<Instant>,
}

/// The links in waiting: of each source, by age. INVARIANT: no source is without links.
#[derive(Debug, Default)]
struct Waiting {
    of: BTreeMap<Option<IpAddr>, BTreeMap<u64, CancellationToken>>,
    total: usize,
    next: u64,
}

#[derive(Debug)]
struct Source {
    failures: u32,
    last_failure: Instant,
    /// When this source's next ticket may be judged.
    next: Instant,
}

/// There was no room, and somebody made some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// So many did since the start.
    pub(crate) displaced: u64,
    /// Links in waiting.
    pub(crate) waiting: usize,
    /// Where they come from.
    pub(crate) sources: usize,
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { displaced, waiting, sources } = self;
        write!(
            f,
            "{waiting} from {sources} addresses; for each new one the oldest is closed, {displaced} by now"
        )
    }
}

impl Guard {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Arc::default() }
    }

    /// Lets a new link in, until the admission is dropped. A crowd is told of now and then.
    pub(crate) fn admit(&self, now: Instant, source: Option<IpAddr>) -> (Admission, Option<Crowd>) {
        let source = source.map(household);
        let mut state = self.lock();
        let displaced = state.waiting.make_room(self.bounds, source);
        state.displaced += u64::from(displaced);
        let due = state.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL);
        let crowd = (displaced && due).then(|| {
            state.told = Some(now);
            let Waiting { of, total, .. } = &state.waiting;
            Crowd { displaced: state.displaced, waiting: *total, sources: of.len() }
        });
        let (id, displaced) = state.waiting.add(source);
        (Admission { guard: self.clone(), source, id, displaced }, crowd)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Whether somebody had to go.
    fn make_room(&mut self, bounds: Bounds, source: Option<IpAddr>) -> bool {
        let own = self.of.get(&source).map_or(0, BTreeMap::len);
        // The sockets of this machine are no source that could be told from others.
        let victim = if source.is_some() && own > 0 && own >= bounds.per_source {
            Some(source)
        } else if self.total > 0 && self.total >= bounds.total {
            let oldest = |links: &BTreeMap<u64, _>| links.keys().next().copied();
            let busiest =
                self.of.iter().max_by_key(|(_, links)| (links.len(), std::cmp::Reverse(oldest(links))));
            // Among equals the newcomer is the one that has one too many.
            busiest.map(|(busiest, links)| if own >= links.len() { source } else { *busiest })
        } else {
            None
        };
        let oldest = victim.and_then(|victim| {
            let id = *self.of.get(&victim)?.keys().next()?;
            self.remove(victim, id)
        });
        oldest.inspect(CancellationToken::cancel).is_some()
    }

    fn add(&mut self, source: Option<IpAddr>) -> (u64, CancellationToken) {
        let id = self.next;
        self.next += 1;
        self.total += 1;
        let displaced = CancellationToken::new();
        self.of.entry(source).or_default().insert(id, displaced.clone());
        (id, displaced)
    }

    fn remove(&mut self, source: Option<IpAddr>, id: u64) -> Option<CancellationToken> {
        let links = self.of.get_mut(&source)?;
        let token = links.remove(&id)?;
        self.total -= 1;
        if links.is_empty() {
            self.of.remove(&source);
        }
        Some(token)
    }
}

impl State {
    /// A full table forgets whoever was wrong longest ago.
    fn source(&mut self, now: Instant, address: IpAddr) -> &mut Source {
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&address) {
            self.sources.retain(|_, source| !source.forgettable(now));
            if self.sources.len() >= MOST_SOURCES {
                let oldest = self.sources.iter().min_by_key(|(_, source)| source.last_failure);
                if let Some(oldest) = oldest.map(|(address, _)| *address) {
                    self.sources.remove(&oldest);
                }
            }
        }
        let entry =
            self.sources.entry(address).or_insert(Source { failures: 0, last_failure: now, next: now });
        if now.saturating_duration_since(entry.last_failure) > MEMORY {
            entry.failures = 0;
        }
        entry
    }
}

impl Source {
    fn forgettable(&self, now: Instant) -> bool {
        self.failures == 0 || now.saturating_duration_since(self.last_failure) > MEMORY
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
    id: u64,
    displaced: CancellationToken,
}

impl Admission {
    /// Fires when this link must make room for another.
    pub(crate) fn displaced(&self) -> CancellationToken {
        self.displaced.clone()
    }

    /// When this link's ticket may be judged. Every call books the next free time, so that parallel links gain nothing.
    /// `None` when that is too far ahead to wait for.
    pub(crate) fn book(&self, now: Instant) -> Option<Instant> {
        let Some(address) = self.source else { return Some(now) };
        let mut state = self.guard.lock();
        let source = state.source(now, address);
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
        let source = state.source(now, address);
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
        state.waiting.remove(self.source, self.id);
        if let Some(address) = self.source
            && state.sources.get(&address).is_some_and(|source| source.failures == 0)
            && !state.waiting.of.contains_key(&Some(address))
        {
            state.sources.remove(&address);
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

    fn admit(guard: &Guard, source: Option<IpAddr>) -> Admission {
        guard.admit(Instant::now(), source).0
    }

    fn waiting(guard: &Guard) -> usize {
        let state = guard.lock();
        assert_eq!(state.waiting.total, state.waiting.of.values().map(BTreeMap::len).sum::<usize>());
        state.waiting.total
    }

    #[test]
    fn one_too_many_of_a_source_displaces_its_own_oldest() {
        let guard = Guard::new(BOUNDS);
        let a = admit(&guard, address("10.0.0.1"));
        let b = admit(&guard, address("10.0.0.1"));
        let other = admit(&guard, address("10.0.0.2"));
        assert!(!a.displaced().is_cancelled());
        let _c = admit(&guard, address("10.0.0.1"));
        assert!(a.displaced().is_cancelled());
        assert!(!b.displaced().is_cancelled() && !other.displaced().is_cancelled());
        assert_eq!(waiting(&guard), 3);
        drop(a);
        assert_eq!(waiting(&guard), 3, "it was counted out before");
        drop((b, other));
        assert_eq!(waiting(&guard), 1);
    }

    #[test]
    fn one_too_many_of_all_displaces_the_oldest_of_the_busiest() {
        let guard = Guard::new(BOUNDS);
        let early = admit(&guard, address("10.0.0.1"));
        let local = admit(&guard, None);
        let busy = [admit(&guard, address("10.0.0.2")), admit(&guard, address("10.0.0.2"))];
        let new = admit(&guard, address("10.0.0.3"));
        let gone = |link: &Admission| link.displaced().is_cancelled();
        assert!(gone(&busy[0]) && ![&early, &local, &busy[1], &new].into_iter().any(gone));
        // All have one now.
        let again = admit(&guard, address("10.0.0.2"));
        assert!(gone(&busy[1]) && !gone(&again), "its own: nobody has more");
        let newest = admit(&guard, address("10.0.0.4"));
        assert!(gone(&early) && !gone(&newest), "the oldest of all");
        assert_eq!(waiting(&guard), 4);
    }

    #[test]
    fn a_crowd_is_told_of_now_and_then() {
        let now = Instant::now();
        let guard = Guard::new(BOUNDS);
        let mut held = Vec::new();
        let mut admit = |now| {
            let (admission, crowd) = guard.admit(now, address("10.0.0.1"));
            held.push(admission);
            crowd
        };
        assert_eq!((admit(now), admit(now)), (None, None));
        assert_eq!(admit(now), Some(Crowd { displaced: 1, waiting: 1, sources: 1 }));
        assert_eq!(admit(now), None);
        assert_eq!(admit(now + TELL), Some(Crowd { displaced: 3, waiting: 1, sources: 1 }));
    }

    #[test]
    fn an_ipv6_household_is_one_source() {
        let guard = Guard::new(BOUNDS);
        let a = admit(&guard, address("2001:db8::1"));
        let b = admit(&guard, address("2001:db8::2"));
        let _other = admit(&guard, address("2001:db8:0:1::3"));
        let _c = admit(&guard, address("2001:db8::3"));
        assert!(a.displaced().is_cancelled() && !b.displaced().is_cancelled());
        assert_eq!(household("::ffff:10.0.0.1".parse().unwrap()), address("10.0.0.1").unwrap());
    }

    #[test]
    fn wrong_tickets_cost_more_and_more_and_are_forgotten() {
        let start = Instant::now();
        let guard = Guard::new(BOUNDS);
        let link = guard.admit(start, address("10.0.0.1")).0;
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
        let link = guard.admit(now, address("10.0.0.1")).0;
        for _ in 0..10 {
            link.wrong(now);
        }
        link.right();
        drop(link);
        let link = guard.admit(now, address("10.0.0.1")).0;
        assert_eq!(link.book(now), Some(now));
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let now = Instant::now();
        let guard = Guard::new(Bounds { total: 10, per_source: 2 });
        for n in 0..u32::try_from(MOST_SOURCES).unwrap() {
            let link = guard.admit(now, Some(IpAddr::from((n + 1).to_be_bytes()))).0;
            link.wrong(now);
        }
        guard.admit(now, address("200.0.0.1")).0.wrong(now);
        assert!(guard.lock().sources.len() <= MOST_SOURCES);
    }
}
