//! Devices that announce themselves and are then asked for a description: what SSDP and WS-Discovery have in common, without
//! sockets and without what is special about either.
//!
//! A device is known by its id **and** the address that announced it: who claims another's id from elsewhere is another entry,
//! and cannot change or end that one. Entries are bounded, in all and for each address. A description is asked for when a
//! device or its place is new, again from time to time, and after a while if it could not be had, a few times.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Most devices.
const MOST: usize = 256;
/// Most devices of one address.
const MOST_OF_ONE: usize = 8;
/// How long a device may say that it is there, at least and at most.
const LIVES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(24 * 3600)];
/// Between a description and the next look at it.
const AGAIN: Duration = Duration::from_secs(600);
/// Before another attempt at a description that could not be had; after the last one it waits for a new announcement.
const RETRIES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];

/// By what a device is known here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Its address; of IPv6 with its zone, and without a port.
    pub(crate) device: SocketAddr,
    /// What it calls itself.
    pub(crate) id: String,
}

impl Key {
    /// `from`: where the announcement came from.
    pub(crate) fn new(from: SocketAddr, id: &str) -> Key {
        let mut device = from;
        device.set_port(0);
        Key { device, id: id.to_owned() }
    }

    /// As a sighting has it.
    pub(crate) fn sighting_id(&self) -> String {
        format!("{}@{}", self.id, self.device.ip())
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order<P> {
    /// Ask for the description there.
    Describe(Key, P),
    /// It is gone.
    Gone(Key),
}

/// The devices, with the places of their descriptions. Drain [`poll`](Self::poll) after each call that has `now`, then wait until
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub(crate) struct Announced<P> {
    /// INVARIANT: at most [`MOST`], and at most [`MOST_OF_ONE`] of one address.
    devices: BTreeMap<Key, Entry<P>>,
    gone: Vec<Key>,
}

#[derive(Debug)]
struct Entry<P> {
    place: P,
    until: Instant,
    state: State,
    /// It was described once, so somebody has heard of it.
    told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is to be asked at that time; it was so many times in vain.
    Due(Instant, usize),
    /// It is being asked, after so many attempts in vain.
    Asked(usize),
    /// It could not be had.
    GivenUp,
}

impl<P> Default for Announced<P> {
    fn default() -> Self {
        Announced { devices: BTreeMap::new(), gone: Vec::new() }
    }
}

impl<P: Clone + PartialEq> Announced<P> {
    /// It says that it is there, for that time.
    pub(crate) fn alive(&mut self, key: Key, place: P, life: Duration, now: Instant) {
        let [least, most] = LIVES;
        let until = now + life.clamp(least, most);
        if let Some(entry) = self.devices.get_mut(&key) {
            entry.until = until;
            if entry.place != place || entry.state == State::GivenUp {
                entry.place = place;
                entry.state = State::Due(now, 0);
            }
            return;
        }
        let of_one = self.devices.keys().filter(|known| known.device == key.device).count();
        if self.devices.len() >= MOST || of_one >= MOST_OF_ONE {
            tracing::debug!("too many devices announce themselves: one at {} is left out", key.device.ip());
            return;
        }
        self.devices.insert(key, Entry { place, until, state: State::Due(now, 0), told: false });
    }

    /// It says that it goes.
    pub(crate) fn bye(&mut self, key: &Key) {
        if let Some(entry) = self.devices.remove(key)
            && entry.told
        {
            self.gone.push(key.clone());
        }
    }

    /// Its description was had; `false`: it went meanwhile.
    pub(crate) fn described(&mut self, key: &Key, now: Instant) -> bool {
        let Some(entry) = self.devices.get_mut(key) else { return false };
        entry.state = State::Due(now + AGAIN, 0);
        entry.told = true;
        true
    }

    /// Its description could not be had.
    pub(crate) fn failed(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.devices.get_mut(key) else { return };
        let State::Asked(attempts) = entry.state else { return };
        entry.state = match RETRIES.get(attempts) {
            Some(wait) => State::Due(now + *wait, attempts + 1),
            None => State::GivenUp,
        };
    }

    /// Somebody could not reach it: if it cannot be described either, it is gone.
    pub(crate) fn doubt(&mut self, address: IpAddr, now: Instant) {
        let [least, _] = LIVES;
        for (_, entry) in self.devices.iter_mut().filter(|(key, _)| key.device.ip() == address) {
            if !matches!(entry.state, State::Asked(_)) {
                entry.state = State::Due(now, 0);
            }
            // A description makes no announcement; the next one does.
            entry.until = entry.until.min(now + least);
        }
    }

    /// Forgets those that are in none of our networks any more.
    pub(crate) fn retain(&mut self, there: impl Fn(IpAddr) -> bool) {
        let left: Vec<Key> = self.devices.keys().filter(|key| !there(key.device.ip())).cloned().collect();
        for key in left {
            self.bye(&key);
        }
    }

    /// What is to be done next.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Order<P>> {
        let over: Vec<Key> =
            self.devices.iter().filter(|(_, entry)| now >= entry.until).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.bye(&key);
        }
        if let Some(key) = self.gone.pop() {
            return Some(Order::Gone(key));
        }
        self.devices.iter_mut().find_map(|(key, entry)| match entry.state {
            State::Due(at, attempts) if now >= at => {
                entry.state = State::Asked(attempts);
                Some(Order::Describe(key.clone(), entry.place.clone()))
            }
            State::Due(..) | State::Asked(_) | State::GivenUp => None,
        })
    }

    /// When [`poll`](Self::poll) has something.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.devices.values().map(|entry| match entry.state {
            State::Due(at, _) => at.min(entry.until),
            State::Asked(_) | State::GivenUp => entry.until,
        });
        due.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(1800);

    fn key(last: u8, id: &str) -> Key {
        Key::new(([10, 0, 0, last], 1900).into(), id)
    }

    fn describe(key: Key, place: u8) -> Option<Order<u8>> {
        Some(Order::Describe(key, place))
    }

    #[test]
    fn a_device_comes_is_described_and_goes() {
        let now = Instant::now();
        let mut announced = Announced::default();
        announced.alive(key(5, "a"), 1, LIFE, now);
        assert_eq!(announced.poll(now), describe(key(5, "a"), 1));
        assert_eq!(announced.poll(now), None);
        // Announcements come in threes.
        announced.alive(key(5, "a"), 1, LIFE, now);
        assert_eq!(announced.poll(now), None);
        assert!(announced.described(&key(5, "a"), now));
        assert_eq!(announced.poll(now), None);
        // Its description moved.
        announced.alive(key(5, "a"), 2, LIFE, now);
        assert_eq!(announced.poll(now), describe(key(5, "a"), 2));
        // Another's claim to be it changes nothing, nor does its bye.
        announced.bye(&key(6, "a"));
        announced.alive(key(6, "a"), 3, LIFE, now);
        assert_eq!(announced.poll(now), describe(key(6, "a"), 3));
        announced.bye(&key(6, "a"));
        assert_eq!(announced.poll(now), None);
        announced.bye(&key(5, "a"));
        assert_eq!(announced.poll(now), Some(Order::Gone(key(5, "a"))));
        assert_eq!((announced.poll(now), announced.poll_timeout()), (None, None));
        assert!(!announced.described(&key(5, "a"), now));
    }

    #[test]
    fn lives_end_and_are_bounded() {
        let now = Instant::now();
        for (life, kept) in [(0, 60), (1800, 1800), (u64::MAX, 24 * 3600)] {
            let mut announced = Announced::default();
            announced.alive(key(5, "a"), 1, Duration::from_secs(life), now);
            announced.poll(now);
            announced.described(&key(5, "a"), now);
            let almost = now + Duration::from_secs(kept - 1);
            while let Some(order) = announced.poll(almost) {
                assert_eq!(Some(order), describe(key(5, "a"), 1));
            }
            assert_eq!(announced.poll_timeout(), Some(now + Duration::from_secs(kept)));
            let end = now + Duration::from_secs(kept);
            assert_eq!(announced.poll(end), Some(Order::Gone(key(5, "a"))));
        }
    }

    #[test]
    fn who_cannot_be_described_is_asked_a_few_times() {
        let mut now = Instant::now();
        let mut announced = Announced::default();
        announced.alive(key(5, "a"), 1, LIFE, now);
        for wait in RETRIES {
            assert_eq!(announced.poll(now), describe(key(5, "a"), 1));
            announced.failed(&key(5, "a"), now);
            assert_eq!((announced.poll(now), announced.poll_timeout()), (None, Some(now + wait)));
            now += wait;
        }
        assert_eq!(announced.poll(now), describe(key(5, "a"), 1));
        announced.failed(&key(5, "a"), now);
        assert_eq!(announced.poll(now + AGAIN), None);
        announced.alive(key(5, "a"), 1, LIFE, now);
        assert_eq!(announced.poll(now), describe(key(5, "a"), 1));
        // Nobody was told of it.
        announced.bye(&key(5, "a"));
        assert_eq!(announced.poll(now), None);
    }

    #[test]
    fn floods_are_bounded() {
        let now = Instant::now();
        let mut announced = Announced::default();
        for id in 0..100 {
            announced.alive(key(5, &id.to_string()), 1, LIFE, now);
        }
        assert_eq!(announced.devices.len(), MOST_OF_ONE);
        for host in 0..10_000_u32 {
            let from = (std::net::Ipv4Addr::from_bits(0x0a01_0000 + host), 1900);
            announced.alive(Key::new(from.into(), "a"), 1, LIFE, now);
        }
        assert_eq!(announced.devices.len(), MOST);
        announced.retain(|address| address == IpAddr::from([10, 0, 0, 5]));
        assert_eq!(announced.devices.len(), MOST_OF_ONE);
    }

    #[test]
    fn who_is_doubted_is_asked_and_must_announce_itself() {
        let now = Instant::now();
        let mut announced = Announced::default();
        announced.alive(key(5, "a"), 1, LIFE, now);
        announced.poll(now);
        announced.described(&key(5, "a"), now);
        announced.doubt([10, 0, 0, 5].into(), now);
        assert_eq!(announced.poll(now), describe(key(5, "a"), 1));
        assert_eq!(announced.poll(now + LIVES[0]), Some(Order::Gone(key(5, "a"))));
    }
}
