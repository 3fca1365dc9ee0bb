//! A multicast DNS responder on the virtual card (RFC 6762), sans-IO: by it a guest with Avahi, systemd-resolved, Bonjour or CUPS finds
//! what was shared, and nothing has to be configured there.
//!
//! # Theory of operation
//!
//! The [`Zone`] says what is called what. After each change [`Responder::sync`] makes its records anew and compares them with those it holds:
//! what is new is claimed or announced, what is gone is taken back (TTL 0), what stayed is left alone. So a tunnel that comes back with the same services
//! makes no noise.
//!
//! Claimed are names that only one may have, those of hosts and instances:
//!
//! ```text
//!             ┌─────────lost: renamed, or beaten by a simultaneous probe──┐
//!             ▼                                                           │
//!  new ──► Probing ──3 probes, 250 ms apart, nobody objects──► Announcing ──2 times, 1 s apart──► Settled
//!             ▲                                                    ▲  │                            │  │
//!             └──────────────somebody else says other data─────────┼──┴────────────────────────────┘  │
//!                                                                  └──data changed, a guest came──────┘
//! ```
//!
//! In `Announcing` and `Settled` the claim is *up*: questions are answered. What is shared (the PTR records of DNS-SD) goes with the claim that it
//! leads to. Names of addresses are not probed for: no other host can have an address of ours, the [`edge`](crate::ethernet) sees to that.
//!
//! Questions are answered as section 6 wants it: records that only we have at once, shared ones after 20 to 120 ms, no record by multicast twice in a
//! second, but for a probe; by unicast who asks for it, if the record was multicast lately, and who does not come from port 5353.
//!
//! The source address of all that goes by multicast is the gateway's: a responder must be on the link for its answers to be believed (section 11, and Avahi
//! checks it), one address of the subnet is as good as another, and the gateway is the one that is always there.
//!
//! # Bounds
//!
//! Records are bounded by the zone's instances. A guest's messages are answered at a limited rate, its answers are put into packets at a limited rate, few
//! questions wait for more known answers, and conflicts are believed at a limited rate (section 8.1). What nobody asked for (probes,
//! announcements) is sent at most once a second for each name.

mod answer;
mod claim;
mod held;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, Record};

use self::answer::Deferred;
use self::claim::Claim;
use self::held::{Held, Id};
use super::records::Owner;
use super::wire::{Limits, Outgoing, flags};
use super::zone::Zone;
use crate::budget::Budget;
use crate::netstack::Counters;
use crate::packet::MacAddress;

/// UDP port of multicast DNS.
pub(crate) const PORT: u16 = 5353;
/// Its group (RFC 6762, section 3).
pub(crate) const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// Where frames to the group go (RFC 1112, section 6.4).
pub(crate) const GROUP_MAC: MacAddress = MacAddress([0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb]);

/// Octets of an IPv4 and a UDP header.
const HEADERS: usize = 28;
/// Longest message that is sent, if one record does not need more: what Ethernet carries, whatever the MTU that DHCP offers.
const USUAL: usize = 1500 - HEADERS;
/// Longest message in any case (RFC 6762, section 17).
const LONGEST: usize = 9000 - HEADERS;
/// What of a guest's message is looked at.
const LIMITS: Limits = Limits { length: LONGEST, questions: 128, records: 512 };

/// A message for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) to: Destination,
    pub(crate) message: Vec<u8>,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To the group.
    Everybody,
    /// To one station.
    One(Station),
}

/// Who sent a message, and to which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Station {
    /// On the link.
    pub(crate) mac: MacAddress,
    /// Its address and port.
    pub(crate) address: SocketAddrV4,
    /// The address it sent to; the gateway's, if it was the group.
    pub(crate) local: Ipv4Addr,
    /// It was the group.
    pub(crate) multicast: bool,
}

/// See the module's text.
///
/// Feed it with [`handle`](Self::handle), [`sync`](Self::sync), [`guest_came`](Self::guest_came), [`link_lost`](Self::link_lost); take what it
/// has to say with [`poll_transmit`](Self::poll_transmit) until `None`; call [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub(crate) struct Responder {
    /// Longest usual message, and longest one.
    sizes: (usize, usize),
    random: Random,
    held: Held,
    claims: BTreeMap<Owner, Claim>,
    /// INVARIANT: has exactly the claims that are due some time.
    timers: BTreeSet<(Instant, Owner)>,
    /// Names that are claimed. INVARIANT: has exactly those of `claims`.
    claimed: HashMap<Name, Owner>,
    /// Answers that wait for their time. INVARIANT: has exactly the records that are pending, at their time.
    pending: BTreeSet<(Instant, Id)>,
    /// Questions that wait for more known answers.
    deferred: Vec<Deferred>,
    queue: VecDeque<Datagram>,
    /// Messages of guests.
    queries: Budget,
    /// Packets with answers to them.
    answers: Budget,
    /// Messages that are believed to show a conflict.
    conflicts: Budget,
    /// When a guest came last.
    came: Option<Instant>,
    /// The generation of the zone that `held` is of.
    generation: Option<u64>,
}

impl Responder {
    /// For guests with this MTU. `seed` decides what is left to chance.
    pub(crate) fn new(seed: u64, mtu: u16) -> Responder {
        let room = usize::from(mtu).saturating_sub(HEADERS);
        Responder {
            sizes: (room.min(USUAL), room.min(LONGEST)),
            random: Random(seed),
            held: Held::default(),
            claims: BTreeMap::new(),
            timers: BTreeSet::new(),
            claimed: HashMap::new(),
            pending: BTreeSet::new(),
            deferred: Vec::new(),
            queue: VecDeque::new(),
            queries: Budget::new(256, Duration::from_millis(20)),
            answers: Budget::new(256, Duration::from_millis(10)),
            conflicts: Budget::new(15, Duration::from_secs(5)),
            came: None,
            generation: None,
        }
    }

    // Inputs; those about questions and claims are with them.

    /// A guest came: it gets to know everything now, and not only when it asks.
    pub(crate) fn guest_came(&mut self, now: Instant) {
        // Who came less than a second after another hears the second announcement that was meant for that one.
        if self.came.is_some_and(|came| now.saturating_duration_since(came) < claim::ANNOUNCE_INTERVAL) {
            return;
        }
        self.came = Some(now);
        self.held.forget_multicasts();
        self.announce_all(now);
    }

    /// The guest is gone: what was meant for it is nobody's.
    pub(crate) fn link_lost(&mut self) {
        self.queue.clear();
        while let Some((_, id)) = self.pending.first().copied() {
            self.set_pending(id, None);
        }
        self.deferred.clear();
    }

    /// Time has passed: whatever was due happens. Harmless if nothing was.
    pub(crate) fn handle_timeout(&mut self, now: Instant, zone: &Zone, counters: &mut Counters) {
        self.sync(now, zone);
        self.claims_due(now);
        self.deferred_due(now, counters);
        self.answers_due(now, counters);
    }

    // Outputs.

    /// The next message.
    pub(crate) fn poll_transmit(&mut self) -> Option<Datagram> {
        self.queue.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let claims = self.timers.first().map(|(at, _)| *at);
        let answers = self.pending.first().map(|(at, _)| *at);
        let deferred = self.deferred.iter().map(|deferred| deferred.due).min();
        [claims, answers, deferred].into_iter().flatten().min()
    }

    /// Plans to tell everybody of a record, or not any more.
    fn set_pending(&mut self, id: Id, due: Option<Instant>) {
        let Some(item) = self.held.get_mut(id) else { return };
        if let Some(before) = std::mem::replace(&mut item.pending, due) {
            self.pending.remove(&(before, id));
        }
        self.pending.extend(due.map(|due| (due, id)));
    }

    /// Sends records to everybody, in as many messages as they need.
    fn multicast(&mut self, answers: &[Record], additionals: &[Record]) -> Vec<usize> {
        self.send(Destination::Everybody, answers, additionals, None)
    }

    /// Sends records in as many messages as they need, or as `budget` has. Gives the additional ones that were sent.
    fn send(
        &mut self,
        to: Destination,
        mut answers: &[Record],
        additionals: &[Record],
        mut budget: Option<(&mut Counters, Instant)>,
    ) -> Vec<usize> {
        while !answers.is_empty() {
            if let Some((counters, now)) = &mut budget
                && !self.answers.take(*now)
            {
                counters.mdns_withheld += 1;
                return Vec::new();
            }
            let flags = flags::RESPONSE | flags::AUTHORITATIVE;
            let message = Outgoing { flags, answers, additionals, ..Outgoing::default() };
            let Some(written) = message.write(self.sizes.0, self.sizes.1) else {
                // A record that no packet has room for.
                answers = answers.get(1..).unwrap_or_default();
                continue;
            };
            self.queue.push_back(Datagram { to, message: written.bytes });
            answers = answers.get(written.answers..).unwrap_or_default();
            if answers.is_empty() {
                return written.additionals;
            }
        }
        Vec::new()
    }
}

/// What is left to chance: SplitMix64. Nobody gains by guessing it.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// Something between the two.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let range = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
        least + Duration::from_micros(z % range.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
