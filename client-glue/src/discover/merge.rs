//! Sightings of all sources in, devices out. Sans-IO: time comes as an argument, [`Merge::poll_timeout`] says when to come back.
//!
//! # One printer, one identity
//!
//! A printer's virtual address is a hash of its identity, so the identity must not depend on which source was faster today.
//! Two things see to that. A device is held back until its sightings had time to come together: [`SETTLE`] if it has the best identity there
//! is, a service's UUID, and [`PATIENCE`] else, or longer while DNS-SD, which tells UUIDs, has not looked round once. And what it was given
//! then stays for as long as the device lives, whatever becomes known later; all its other identities are remembered, so that it is
//! given the same again if it goes and comes back.
//!
//! # Who lies
//!
//! Any machine in the network can say that it is the printer, in every one of these protocols. What can be seen is a contradiction:
//!
//! * Two places claim one identity at a time. Who came first keeps it. The other is [`Standing::Impostor`] under an identity of its own,
//!   until the first is gone; then it is found anew.
//! * An identity turns up with no address **and** no host name **and** no network card of those it had: [`Standing::Moved`]. A new address
//!   alone is a new DHCP lease, a new host name alone is a new name.
//!
//! A liar that comes first, or answers for the printer's host name, is not seen here. Who needs more than that has to have TLS to the
//! printer.
//!
//! # Comings and goings
//!
//! A device that is gone is [`LINGER`] for a while, since services that say goodbye often come back at once with another TXT record. A change
//! is told at most once in [`CHANGE_EVERY`]. All is bounded, and who is known longest stays: see [`Limits`].

mod assemble;
mod identity;
mod partition;
mod surroundings;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use spice_proto::service_info::{Identity, MAX_ADVERTS};
use tracing::debug;

pub use self::surroundings::Surroundings;
use self::{
    identity::Candidate,
    partition::{Cluster, service_uuid},
};
use crate::resolve::Class;

use super::{
    Device, MAX_KEY, MAX_SERVICES, NetworkId, Sighting, SightingEvent, SightingKey, Source, Standing, Update,
    text::Mac,
};

/// How long a device is held back once it has an address, a service, and a service's UUID.
pub const SETTLE: Duration = Duration::from_millis(500);
/// The same for a device without such a UUID.
pub const PATIENCE: Duration = Duration::from_millis(2500);
/// Longest that [`PATIENCE`] is stretched while a source that may know better has not looked round once.
pub const FIRST_ROUND: Duration = Duration::from_secs(6);
/// How long a device that is gone is still counted as there.
pub const LINGER: Duration = Duration::from_millis(1500);
/// Least time between two changes of a device that are told.
pub const CHANGE_EVERY: Duration = Duration::from_secs(1);
/// How long a source that was started anew may take to see again what it saw before.
pub const SEE_AGAIN: Duration = Duration::from_secs(60);
/// Least time between two looks at all sightings, and how much more for each of them: in a flood nothing is urgent.
const RECKON_EVERY: Duration = Duration::from_millis(50);
const RECKON_EVERY_MORE: Duration = Duration::from_millis(1);
/// Most addresses of one sighting that are looked at.
const MAX_SIGHTED: usize = 64;
/// Most identities that are remembered of devices that are gone.
const MAX_REMEMBERED: usize = 512;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Devices, those held back included.
    pub devices: usize,
    /// Sightings of one source.
    pub sightings: usize,
}

/// What was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Devices that are there now.
    pub devices: usize,
    /// Sightings, ever.
    pub sightings: u64,
    /// Sightings that are there now and have no address but one that is good on its own cable only (169.254.0.0/16, fe80::/10), which
    /// a guest is never let to.
    pub link_local: usize,
}

/// See the module's text.
///
/// | family | members |
/// | --- | --- |
/// | getters | [`device`](Self::device), [`devices`](Self::devices), [`sightings_of`](Self::sightings_of), [`seen_by`](Self::seen_by), [`left_out`](Self::left_out) |
/// | commands | [`set_network`](Self::set_network), [`set_surroundings`](Self::set_surroundings), [`accept`](Self::accept) |
/// | `handle_*` | [`handle_event`](Self::handle_event), [`handle_restart`](Self::handle_restart), [`handle_round`](Self::handle_round) |
/// | `poll_*` | [`poll_update`](Self::poll_update) until it says `None`, then [`poll_timeout`](Self::poll_timeout) |
#[derive(Debug)]
pub struct Merge {
    limits: Limits,
    network: Option<NetworkId>,
    surroundings: Surroundings,
    /// Sources whose first round devices without a service's UUID wait for, until then at the latest.
    first_rounds: BTreeSet<Source>,
    first_rounds_end: Instant,
    entries: BTreeMap<SightingKey, Entry>,
    next_entry: u64,
    tracked: BTreeMap<TrackedId, Tracked>,
    next_tracked: u64,
    remembered: BTreeMap<Identity, Remembered>,
    /// Strong identities of devices, and the one they were given.
    aliases: BTreeMap<Identity, Identity>,
    memories: u64,
    updates: VecDeque<Update>,
    left_out: LeftOut,
    /// By when sources that were started anew have to have seen again what they saw.
    sweeps: BTreeMap<Source, Instant>,
    /// When all has to be reckoned again.
    due: Option<Instant>,
    reckoned: Option<Instant>,
}

/// A sighting that is kept.
#[derive(Debug)]
struct Entry {
    sighting: Sighting,
    /// Those of its addresses that may be dialled.
    addresses: Vec<IpAddr>,
    /// When it came, counted.
    first: u64,
    /// Not seen since its source was started anew.
    stale: bool,
    /// Whose it is.
    tracked: Option<TrackedId>,
}

/// Counted in the order in which devices came.
type TrackedId = u64;

/// ```text
///  ──▶ Held ──settled──▶ Told ──gone──▶ Told, missing ──lingered──▶ (forgotten)
///       ▲                 │  ▲               │
///       └──claim is free──┘  └───back────────┘
/// ```
#[derive(Debug)]
enum Tracked {
    /// Not told yet.
    Held {
        /// Since when it could be told.
        since: Option<Instant>,
    },
    /// Found, and not lost.
    Told(Box<Told>),
}

#[derive(Debug)]
struct Told {
    device: Device,
    macs: Vec<Mac>,
    /// When it was found or changed.
    at: Instant,
    /// Since when it is not there any more.
    missing: Option<Instant>,
    /// The user said that it is the right one where it is now.
    accepted: bool,
}

/// Where a device was that had some identity.
#[derive(Debug, Clone)]
struct Remembered {
    host: Option<String>,
    addresses: Vec<IpAddr>,
    macs: Vec<Mac>,
    /// It has moved before.
    moved: bool,
    /// Orders memories by age.
    at: u64,
}

impl Default for Limits {
    /// 256 devices, 1024 sightings of each source.
    fn default() -> Limits {
        Limits { devices: 256, sightings: 1024 }
    }
}

impl Merge {
    /// Knows nothing. Devices without a UUID wait until each of `first_rounds` has looked round once, but not for ever.
    pub fn new(
        now: Instant,
        limits: Limits,
        network: Option<NetworkId>,
        surroundings: Surroundings,
        first_rounds: BTreeSet<Source>,
    ) -> Merge {
        Merge {
            limits,
            network,
            surroundings,
            first_rounds,
            first_rounds_end: now + FIRST_ROUND,
            entries: BTreeMap::new(),
            next_entry: 0,
            tracked: BTreeMap::new(),
            next_tracked: 0,
            remembered: BTreeMap::new(),
            aliases: BTreeMap::new(),
            memories: 0,
            updates: VecDeque::new(),
            left_out: LeftOut::default(),
            sweeps: BTreeMap::new(),
            due: None,
            reckoned: None,
        }
    }

    /// The device of this identity, if it is found and not lost.
    pub fn device(&self, identity: &Identity) -> Option<&Device> {
        self.devices().find(|device| device.identity == *identity)
    }

    /// Devices that are found and not lost.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.tracked.values().filter_map(|tracked| match tracked {
            Tracked::Told(told) => Some(&told.device),
            Tracked::Held { .. } => None,
        })
    }

    /// What is seen of a device.
    pub fn sightings_of(&self, identity: &Identity) -> Vec<SightingKey> {
        let its = |tracked: TrackedId| match self.tracked.get(&tracked) {
            Some(Tracked::Told(told)) => told.device.identity == *identity,
            Some(Tracked::Held { .. }) | None => false,
        };
        let seen = self.entries.iter().filter(|(_, entry)| entry.tracked.is_some_and(its));
        seen.map(|(key, _)| key.clone()).collect()
    }

    /// How many devices a source sees.
    pub fn seen_by(&self, source: Source) -> usize {
        self.devices().filter(|device| device.sources.contains(&source)).count()
    }

    /// What was left out because too much is there.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// The network is this one from now on. Devices that are known keep their identities.
    pub fn set_network(&mut self, network: Option<NetworkId>) {
        self.network = network;
    }

    /// The machine's addresses and networks are these from now on.
    pub fn set_surroundings(&mut self, now: Instant, surroundings: Surroundings) {
        if surroundings == self.surroundings {
            return;
        }
        self.surroundings = surroundings;
        for entry in self.entries.values_mut() {
            entry.addresses = self.surroundings.addresses(&entry.sighting);
        }
        self.reckon_soon(now);
    }

    /// The user says that a device which has [moved](Standing::Moved) is the right one.
    pub fn accept(&mut self, now: Instant, identity: &Identity) {
        if let Some(remembered) = self.remembered.get_mut(identity) {
            remembered.moved = false;
        }
        for tracked in self.tracked.values_mut() {
            match tracked {
                Tracked::Told(told) if told.device.identity == *identity => told.accepted = true,
                Tracked::Told(_) | Tracked::Held { .. } => {}
            }
        }
        self.reckon_soon(now);
    }

    /// A source tells something.
    pub fn handle_event(&mut self, now: Instant, event: SightingEvent) {
        match event {
            SightingEvent::Seen(sighting) => self.handle_seen(now, *sighting),
            SightingEvent::Gone(key) => {
                if self.entries.remove(&key).is_some() {
                    self.reckon_soon(now);
                }
            }
        }
    }

    /// A source was started anew: what it does not see again is gone.
    pub fn handle_restart(&mut self, now: Instant, source: Source) {
        for entry in self.entries.values_mut().filter(|entry| entry.sighting.key.source == source) {
            entry.stale = true;
        }
        self.sweeps.insert(source, now + SEE_AGAIN);
    }

    /// A source has looked round once.
    pub fn handle_round(&mut self, now: Instant, source: Source) {
        if self.first_rounds.remove(&source) {
            self.reckon_soon(now);
        }
    }

    /// What became of a device. Ask again until it says `None`.
    pub fn poll_update(&mut self, now: Instant) -> Option<Update> {
        if self.updates.is_empty() {
            self.sweep(now);
            if self.due.is_some_and(|due| due <= now) {
                self.reckon(now);
            }
        }
        self.updates.pop_front()
    }

    /// When to ask [`poll_update`](Self::poll_update) again, if nothing happens until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.sweeps.values().copied()).min()
    }

    fn handle_seen(&mut self, now: Instant, mut sighting: Sighting) {
        sighting.addresses.truncate(MAX_SIGHTED);
        sighting.services.truncate(MAX_SERVICES);
        for service in &mut sighting.services {
            service.adverts.truncate(MAX_ADVERTS);
        }
        if sighting.key.id.len() > MAX_KEY {
            self.left_out.sightings += 1;
            return;
        }
        let addresses = self.surroundings.addresses(&sighting);
        if let Some(entry) = self.entries.get_mut(&sighting.key) {
            entry.stale = false;
            if entry.sighting == sighting {
                return;
            }
            entry.sighting = sighting;
            entry.addresses = addresses;
        } else {
            let source = sighting.key.source;
            let of_source = self.entries.keys().filter(|key| key.source == source).count();
            if of_source >= self.limits.sightings {
                self.left_out.sightings += 1;
                return;
            }
            let first = self.next_entry;
            self.next_entry += 1;
            let entry = Entry { sighting, addresses, first, stale: false, tracked: None };
            self.entries.insert(entry.sighting.key.clone(), entry);
        }
        self.reckon_soon(now);
    }

    fn reckon_soon(&mut self, now: Instant) {
        let sightings = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let pause = RECKON_EVERY + RECKON_EVERY_MORE * sightings;
        let earliest = self.reckoned.map_or(now, |reckoned| now.max(reckoned + pause));
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    fn sweep(&mut self, now: Instant) {
        let over: Vec<Source> =
            self.sweeps.iter().filter(|(_, at)| **at <= now).map(|(source, _)| *source).collect();
        for source in over {
            self.sweeps.remove(&source);
            let before = self.entries.len();
            self.entries.retain(|key, entry| key.source != source || !entry.stale);
            if self.entries.len() != before {
                self.reckon_soon(now);
            }
        }
    }

    /// Looks at all sightings, and tells what became of the devices since the last time.
    fn reckon(&mut self, now: Instant) {
        self.reckoned = Some(now);
        self.due = None;
        self.left_out.devices = 0;
        let link_local = |address: &IpAddr| Class::of(*address) == Class::LinkLocal;
        let only =
            |sighting: &Sighting| !sighting.addresses.is_empty() && sighting.addresses.iter().all(link_local);
        self.left_out.link_local = self.entries.values().filter(|entry| only(&entry.sighting)).count();
        let mut reckoning = Reckoning { now, due: None };
        let clusters = partition::partition(self.entries.values());
        let views: Vec<View> =
            clusters.iter().map(|cluster| View::of(cluster, self.network.as_ref())).collect();
        let owners = self.owners(&views);
        let mut belongs: Vec<(SightingKey, TrackedId)> = Vec::new();
        let mut present: BTreeSet<TrackedId> = BTreeSet::new();
        let mut held: Vec<(TrackedId, View)> = Vec::new();
        for (mut view, owner) in views.into_iter().zip(owners) {
            let id = match owner {
                Some(id) => id,
                None if self.tracked.len() >= self.limits.devices => {
                    self.left_out.devices += 1;
                    continue;
                }
                None => {
                    let id = self.next_tracked;
                    self.next_tracked += 1;
                    self.tracked.insert(id, Tracked::Held { since: None });
                    id
                }
            };
            belongs.extend(view.keys.drain(..).map(|key| (key, id)));
            if view.device.is_some() {
                present.insert(id);
            }
            held.push((id, view));
        }
        for entry in self.entries.values_mut() {
            entry.tracked = None;
        }
        for (key, id) in belongs {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.tracked = Some(id);
            }
        }
        self.lose(&present, &mut reckoning);
        // Those that are told keep what they have, before those that are held ask for it.
        held.sort_by_key(|(id, _)| (matches!(self.tracked.get(id), Some(Tracked::Held { .. })), *id));
        for (id, view) in held {
            match self.tracked.get(&id) {
                Some(Tracked::Told(_)) => self.change(id, view, &mut reckoning),
                Some(Tracked::Held { .. }) => self.find(id, view, &mut reckoning),
                None => {}
            }
        }
        self.forget();
        if let Some(due) = reckoning.due {
            self.due = Some(self.due.map_or(due, |known| known.min(due)));
        }
    }

    /// Which tracked device each view is; each is at most one's.
    ///
    /// A device that falls apart goes on as the part that has its identity, or the oldest. Devices that become one go on as the one that was
    /// told first.
    fn owners(&self, views: &[View]) -> Vec<Option<TrackedId>> {
        let mut wanted: BTreeMap<TrackedId, Vec<usize>> = BTreeMap::new();
        for (index, view) in views.iter().enumerate() {
            let mut before: Vec<TrackedId> =
                view.keys.iter().filter_map(|key| self.entries.get(key)?.tracked).collect();
            before.sort_unstable();
            before.dedup();
            for id in before.into_iter().filter(|id| self.tracked.contains_key(id)) {
                wanted.entry(id).or_default().push(index);
            }
        }
        // One that came back under another key, before it was given up.
        for (id, told) in self.told() {
            if wanted.contains_key(&id) {
                continue;
            }
            let is_back = |view: &&(usize, &View)| {
                view.1.candidates.iter().any(|candidate| candidate.identity == told.device.identity)
                    && !told.moves(view.1)
            };
            if let Some((index, _)) = views.iter().enumerate().collect::<Vec<_>>().iter().find(is_back) {
                wanted.entry(id).or_default().push(*index);
            }
        }
        let mut owners: Vec<Option<TrackedId>> = vec![None; views.len()];
        let mut order: Vec<TrackedId> = wanted.keys().copied().collect();
        order.sort_by_key(|id| (matches!(self.tracked.get(id), Some(Tracked::Held { .. })), *id));
        for id in order {
            let own = match self.tracked.get(&id) {
                Some(Tracked::Told(told)) => Some(&told.device.identity),
                Some(Tracked::Held { .. }) | None => None,
            };
            let has_identity = |index: usize| {
                views.get(index).is_some_and(|view| {
                    view.candidates.iter().any(|candidate| Some(&candidate.identity) == own)
                })
            };
            let free = wanted
                .get(&id)
                .into_iter()
                .flatten()
                .copied()
                .filter(|index| owners.get(*index).is_some_and(Option::is_none));
            let best = free.min_by_key(|index| (!has_identity(*index), *index));
            if let Some(owner) = best.and_then(|index| owners.get_mut(index)) {
                *owner = Some(id);
            }
        }
        owners
    }

    fn told(&self) -> impl Iterator<Item = (TrackedId, &Told)> {
        self.tracked.iter().filter_map(|(id, tracked)| match tracked {
            Tracked::Told(told) => Some((*id, told.as_ref())),
            Tracked::Held { .. } => None,
        })
    }

    /// Deals with those that are not there.
    fn lose(&mut self, present: &BTreeSet<TrackedId>, reckoning: &mut Reckoning) {
        let now = reckoning.now;
        let absent: Vec<TrackedId> =
            self.tracked.keys().copied().filter(|id| !present.contains(id)).collect();
        let seen: BTreeSet<TrackedId> = self.entries.values().filter_map(|entry| entry.tracked).collect();
        for id in absent {
            match self.tracked.get_mut(&id) {
                Some(Tracked::Told(told)) => {
                    let until = *told.missing.get_or_insert(now) + LINGER;
                    if until > now {
                        reckoning.again(until);
                    } else {
                        let identity = told.device.identity.clone();
                        debug!(identity = identity.as_str(), "lost");
                        self.tracked.remove(&id);
                        self.updates.push_back(Update::Lost(identity));
                    }
                }
                Some(Tracked::Held { since }) if seen.contains(&id) => *since = None,
                Some(Tracked::Held { .. }) => {
                    self.tracked.remove(&id);
                }
                None => {}
            }
        }
    }

    /// One that is told may have changed.
    fn change(&mut self, id: TrackedId, view: View, reckoning: &mut Reckoning) {
        let now = reckoning.now;
        let free = match self.tracked.get(&id) {
            Some(Tracked::Told(told)) => match &told.device.standing {
                Standing::Impostor { claims } => {
                    self.holder(claims).is_none() || self.claim(&view).as_ref() != Some(claims)
                }
                Standing::Plain | Standing::Moved => false,
            },
            Some(Tracked::Held { .. }) | None => return,
        };
        let Some(Tracked::Told(told)) = self.tracked.get_mut(&id) else { return };
        let Some(mut device) = view.device.clone() else { return };
        if free {
            // Whom it claims to be is gone, or it claims that no more: it may be found anew.
            let lost = told.device.identity.clone();
            self.tracked.insert(id, Tracked::Held { since: Some(now) });
            self.updates.push_back(Update::Lost(lost));
            reckoning.again(now + SETTLE);
            return;
        }
        told.missing = None;
        device.identity = told.device.identity.clone();
        device.standing = match &told.device.standing {
            Standing::Plain | Standing::Moved if told.moves(&view) => Standing::Moved,
            Standing::Moved if told.accepted => Standing::Plain,
            standing @ (Standing::Plain | Standing::Moved | Standing::Impostor { .. }) => standing.clone(),
        };
        if device == told.device {
            return;
        }
        let when = told.at + CHANGE_EVERY;
        if when > now {
            reckoning.again(when);
            return;
        }
        told.device = device.clone();
        told.macs.clone_from(&view.macs);
        told.at = now;
        told.accepted = false;
        self.remember(&device, &view);
        debug!(identity = device.identity.as_str(), "changed");
        self.updates.push_back(Update::Changed(device));
    }

    /// One that is held may have settled.
    fn find(&mut self, id: TrackedId, view: View, reckoning: &mut Reckoning) {
        let now = reckoning.now;
        let Some(Tracked::Held { since }) = self.tracked.get_mut(&id) else { return };
        let Some(mut device) = view.device.clone() else { return };
        let since = *since.get_or_insert(now);
        let settled = match (view.has_service_uuid, self.first_rounds.is_empty()) {
            (true, _) => since + SETTLE,
            (false, true) => since + PATIENCE,
            (false, false) => self.first_rounds_end.max(since + PATIENCE),
        };
        if settled > now {
            reckoning.again(settled);
            return;
        }
        let Some(claim) = self.claim(&view) else { return };
        match self.holder(&claim) {
            Some(Told { missing: Some(since), .. }) => {
                // Perhaps it is the same, which has gone and come back as another.
                reckoning.again(*since + LINGER);
                return;
            }
            Some(_) => {
                let free = (0..16)
                    .filter_map(|attempt| identity::qualified(&claim, &view.candidates, attempt))
                    .find(|identity| self.holder(identity).is_none());
                let Some(identity) = free else { return };
                device.identity = identity;
                device.standing = Standing::Impostor { claims: claim };
            }
            None => {
                let moved =
                    self.remembered.get(&claim).is_some_and(|before| before.moved || before.moves(&view));
                device.standing = if moved { Standing::Moved } else { Standing::Plain };
                device.identity = claim;
            }
        }
        debug!(identity = device.identity.as_str(), standing = ?device.standing, "found");
        self.remember(&device, &view);
        let told = Told { device: device.clone(), macs: view.macs, at: now, missing: None, accepted: false };
        self.tracked.insert(id, Tracked::Told(Box::new(told)));
        self.updates.push_back(Update::Found(device));
    }

    /// What a device is to be called: what it was called before, else by the best that it may be known by. One with a service's UUID is
    /// never called by another one's, whatever else they have in common.
    fn claim(&self, view: &View) -> Option<Identity> {
        let fits = |known: &&Identity| {
            !view.has_service_uuid
                || !known.as_str().starts_with("uuid:")
                || view.candidates.iter().any(|candidate| candidate.identity == **known)
        };
        let known =
            view.candidates.iter().filter_map(|candidate| self.aliases.get(&candidate.identity)).find(fits);
        known.or_else(|| view.candidates.first().map(|best| &best.identity)).cloned()
    }

    fn holder(&self, identity: &Identity) -> Option<&Told> {
        self.told().map(|(_, told)| told).find(|told| told.device.identity == *identity)
    }

    fn remember(&mut self, device: &Device, view: &View) {
        if let Standing::Impostor { .. } = device.standing {
            return;
        }
        self.memories += 1;
        let remembered = Remembered {
            host: view.host.clone(),
            addresses: device.addresses.clone(),
            macs: view.macs.clone(),
            moved: device.standing == Standing::Moved,
            at: self.memories,
        };
        self.remembered.insert(device.identity.clone(), remembered);
        self.aliases.insert(device.identity.clone(), device.identity.clone());
        for candidate in view.candidates.iter().filter(|candidate| candidate.strong) {
            self.aliases.entry(candidate.identity.clone()).or_insert_with(|| device.identity.clone());
        }
    }

    /// Lets go of the oldest memories of what is not there.
    fn forget(&mut self) {
        let excess = self.remembered.len().saturating_sub(MAX_REMEMBERED);
        if excess > 0 {
            let there: BTreeSet<&Identity> = self.devices().map(|device| &device.identity).collect();
            let mut old: Vec<(u64, Identity)> = self
                .remembered
                .iter()
                .filter(|(identity, _)| !there.contains(identity))
                .map(|(identity, remembered)| (remembered.at, identity.clone()))
                .collect();
            old.sort();
            for (_, identity) in old.into_iter().take(excess) {
                self.remembered.remove(&identity);
            }
            let remembered = &self.remembered;
            self.aliases.retain(|_, identity| remembered.contains_key(identity));
        }
        // One device may go through many aliases.
        while self.aliases.len() > 8 * MAX_REMEMBERED {
            self.aliases.pop_last();
        }
    }
}

struct Reckoning {
    now: Instant,
    due: Option<Instant>,
}

impl Reckoning {
    fn again(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

/// What is seen of one device now.
struct View {
    keys: Vec<SightingKey>,
    candidates: Vec<Candidate>,
    has_service_uuid: bool,
    host: Option<String>,
    macs: Vec<Mac>,
    /// `None`: it has no service. Its identity and standing are not decided yet.
    device: Option<Device>,
}

impl View {
    fn of(cluster: &Cluster<'_>, network: Option<&NetworkId>) -> View {
        let candidates = identity::candidates(cluster, network);
        let provisional = candidates.first().map(|best| best.identity.clone());
        let device = provisional.and_then(|identity| assemble::assemble(cluster, identity, Standing::Plain));
        View {
            keys: cluster.members.iter().map(|entry| entry.sighting.key.clone()).collect(),
            has_service_uuid: cluster.members.iter().any(|entry| service_uuid(&entry.sighting).is_some()),
            host: device.as_ref().and_then(host_key),
            macs: identity::macs(cluster),
            candidates,
            device,
        }
    }

    fn addresses(&self) -> &[IpAddr] {
        self.device.as_ref().map_or(&[], |device| &device.addresses)
    }
}

impl Told {
    /// Whether what is seen now has nothing in common with where it was.
    fn moves(&self, view: &View) -> bool {
        moves(host_key(&self.device).as_deref(), &self.device.addresses, &self.macs, view)
    }
}

impl Remembered {
    fn moves(&self, view: &View) -> bool {
        moves(self.host.as_deref(), &self.addresses, &self.macs, view)
    }
}

fn moves(host: Option<&str>, addresses: &[IpAddr], macs: &[Mac], view: &View) -> bool {
    let same_host = host.is_some() && host == view.host.as_deref();
    let same_address = addresses.iter().any(|address| view.addresses().contains(address));
    let same_card = macs.iter().any(|mac| view.macs.contains(mac));
    !same_host && !same_address && !same_card
}

fn host_key(device: &Device) -> Option<String> {
    device.host.as_ref().map(|host| host.as_str().to_lowercase())
}

#[cfg(test)]
mod tests;
