//! Names that only one may have: claimed, announced, defended, lost and taken back (RFC 6762, sections 8 to 10).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use tracing::{debug, info};

use super::held::{Id, Item};
use super::{Datagram, Destination, Responder};
use crate::names::records::{Origin, Owner, Records};
use crate::names::wire::{Incoming, Outgoing};
use crate::names::zone::Zone;
use crate::netstack::Counters;

/// How many probes are sent, and how long each waits for an objection (section 8.1). The first waits a random part of it, too.
const PROBES: u8 = 3;
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How long who lost to a simultaneous probe waits (section 8.2): if it was a ghost, nobody objects any more.
const DEFER: Duration = Duration::from_secs(1);
/// How often it is announced, and how long lies between (section 8.3).
const ANNOUNCEMENTS: u8 = 2;
pub(super) const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a name rests if conflicts come too often (section 8.1).
const EXHAUSTED: Duration = Duration::from_secs(5);

/// A name, or a type, and how far we are with it. See the picture in [`super`].
#[derive(Debug)]
pub(super) struct Claim {
    /// `None` for a type: it belongs to everybody.
    name: Option<Name>,
    stage: Stage,
    /// When everybody was told of all of it last.
    announced: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A type of which no instance is up yet.
    Waiting,
    /// So many probes were sent; the next one, or the first announcement, is due then.
    Probing { sent: u8, due: Instant },
    /// So many announcements were sent; the next one is due then.
    Announcing { sent: u8, due: Instant },
    /// Nothing is due.
    Settled,
}

impl Stage {
    fn due(self) -> Option<Instant> {
        match self {
            Stage::Waiting | Stage::Settled => None,
            Stage::Probing { due, .. } | Stage::Announcing { due, .. } => Some(due),
        }
    }
}

impl Responder {
    /// Takes over what has changed in the zone.
    pub(crate) fn sync(&mut self, now: Instant, zone: &Zone) {
        self.sync_but(now, zone, &BTreeSet::new());
    }

    /// The same; `lost` are those whose names are somebody else's now, of which nothing is taken back.
    fn sync_but(&mut self, now: Instant, zone: &Zone, lost: &BTreeSet<Owner>) {
        if self.generation == Some(zone.generation()) {
            return;
        }
        self.generation = Some(zone.generation());
        let records = Records::of(zone, &Origin::multicast());
        let changes = self.held.replace(&records);
        let mut goodbyes = Vec::new();
        for (id, Item { entry, pending, .. }) in changes.gone {
            if let Some(due) = pending {
                self.pending.remove(&(due, id));
            }
            self.deferred.iter_mut().for_each(|deferred| deferred.forget(id));
            // A new record of a name and type that is only ours makes others forget the old one.
            let replaced = entry.unique
                && self
                    .held
                    .of_kind(&entry.record.name, entry.record.record_type())
                    .iter()
                    .any(|id| self.held.get(*id).is_some_and(|item| item.entry.owner == entry.owner));
            if self.is_told(&entry.owner) && !replaced && !lost.contains(&entry.owner) {
                let mut record = entry.record;
                record.ttl = 0;
                record.mdns_cache_flush = entry.unique;
                goodbyes.push(record);
            }
        }
        self.multicast(&goodbyes, &[]);
        self.claim(now, zone, &changes.told_more);
    }

    /// Claims what is new, announces what has changed, and lets go of what is gone.
    fn claim(&mut self, now: Instant, zone: &Zone, told_more: &BTreeSet<Owner>) {
        let gone: Vec<Owner> =
            self.claims.keys().filter(|owner| self.held.of(owner).is_empty()).cloned().collect();
        for owner in gone {
            self.drop_claim(&owner);
        }
        // All that is new now is probed for at the same time, in as few packets as it takes.
        let due = now + self.random.between(Duration::ZERO, PROBE_INTERVAL);
        for owner in told_more {
            let name = self.name_of(owner);
            match self.claims.get(owner) {
                Some(claim) if claim.name == name => self.announce(now, owner),
                Some(_) | None => {
                    let stage = match name {
                        Some(_) => Stage::Probing { sent: 0, due },
                        None => Stage::Waiting,
                    };
                    self.drop_claim(owner);
                    self.claimed.extend(name.clone().map(|name| (name, owner.clone())));
                    let claim = Claim { name, stage: Stage::Settled, announced: None };
                    self.claims.insert(owner.clone(), claim);
                    self.set_stage(owner, stage);
                    self.join_kind(now, owner);
                }
            }
        }
        debug!(hosts = zone.hosts().count(), claims = self.claims.len(), "names on the virtual network");
    }

    /// The name that is claimed: a host's or an instance's. Those of addresses need no claim, those of types have none.
    fn name_of(&self, owner: &Owner) -> Option<Name> {
        let claimed = |id: &Id| {
            let entry = &self.held.get(*id)?.entry;
            let kind = entry.record.record_type();
            (entry.unique && matches!(kind, RecordType::A | RecordType::AAAA | RecordType::SRV))
                .then(|| entry.record.name.clone())
        };
        self.held.of(owner).iter().find_map(claimed)
    }

    /// Whether questions about it are answered.
    pub(super) fn is_up(&self, owner: &Owner) -> bool {
        self.claims.get(owner).is_some_and(|claim| match claim.stage {
            Stage::Waiting | Stage::Probing { .. } => false,
            Stage::Announcing { .. } | Stage::Settled => true,
        })
    }

    /// Whether anybody may remember it.
    fn is_told(&self, owner: &Owner) -> bool {
        self.claims.get(owner).is_some_and(|claim| claim.announced.is_some())
    }

    fn drop_claim(&mut self, owner: &Owner) {
        self.set_stage(owner, Stage::Settled);
        if let Some(Claim { name: Some(name), .. }) = self.claims.remove(owner)
            && self.claimed.get(&name) == Some(owner)
        {
            self.claimed.remove(&name);
        }
    }

    fn set_stage(&mut self, owner: &Owner, stage: Stage) {
        let Some(claim) = self.claims.get_mut(owner) else { return };
        if let Some(due) = claim.stage.due() {
            self.timers.remove(&(due, owner.clone()));
        }
        claim.stage = stage;
        if let Some(due) = stage.due() {
            self.timers.insert((due, owner.clone()));
        }
    }

    /// Everything that is up is announced anew.
    pub(super) fn announce_all(&mut self, now: Instant) {
        let owners: Vec<Owner> = self.claims.keys().cloned().collect();
        for owner in owners {
            self.announce(now, &owner);
        }
    }

    /// Begins to announce, but not twice within a second.
    fn announce(&mut self, now: Instant, owner: &Owner) {
        if !self.is_up(owner) {
            return;
        }
        let last = self.claims.get(owner).and_then(|claim| claim.announced);
        let due = last.map_or(now, |last| now.max(last + ANNOUNCE_INTERVAL));
        self.set_stage(owner, Stage::Announcing { sent: 0, due });
    }

    /// A type is told of as soon as there is an instance of it.
    fn join_kind(&mut self, now: Instant, owner: &Owner) {
        let Owner::Instance(_, kind, _) = owner else {
            // The type itself: an instance may be up already.
            if let Owner::Kind(kind) = owner {
                let up = |(other, _): (&Owner, &Claim)| {
                    matches!(other, Owner::Instance(_, of, _) if of == kind) && self.is_up(other)
                };
                if self.claims.iter().any(up) {
                    self.set_stage(owner, Stage::Announcing { sent: 0, due: now });
                }
            }
            return;
        };
        let owner = Owner::Kind(kind.clone());
        if self.claims.get(&owner).is_some_and(|claim| claim.stage == Stage::Waiting) {
            self.set_stage(&owner, Stage::Announcing { sent: 0, due: now });
        }
    }

    /// Sends the probes and announcements that are due.
    pub(super) fn claims_due(&mut self, now: Instant) {
        let mut probes = Vec::new();
        let mut announced = Vec::new();
        while let Some((due, owner)) = self.timers.first().cloned()
            && due <= now
        {
            self.timers.remove(&(due, owner.clone()));
            let Some(claim) = self.claims.get(&owner) else { continue };
            match claim.stage {
                Stage::Probing { sent, .. } if sent < PROBES => {
                    self.set_stage(&owner, Stage::Probing { sent: sent + 1, due: now + PROBE_INTERVAL });
                    probes.push(owner);
                }
                Stage::Probing { sent, .. } => {
                    // An instance is of no use before its host; both began at the same time, if nothing went wrong.
                    if let Owner::Instance(at, ..) = &owner
                        && !self.is_up(&Owner::Host(at.ip()))
                        && let Some(host) = self.claims.get(&Owner::Host(at.ip()))
                        && let Some(host_due) = host.stage.due()
                    {
                        let due = host_due.max(now + Duration::from_millis(1));
                        self.set_stage(&owner, Stage::Probing { sent, due });
                        continue;
                    }
                    self.set_stage(&owner, Stage::Announcing { sent: 0, due: now });
                    self.join_kind(now, &owner);
                }
                Stage::Announcing { sent, .. } => {
                    let stage = if sent + 1 < ANNOUNCEMENTS {
                        Stage::Announcing { sent: sent + 1, due: now + ANNOUNCE_INTERVAL }
                    } else {
                        Stage::Settled
                    };
                    self.set_stage(&owner, stage);
                    if let Some(claim) = self.claims.get_mut(&owner) {
                        claim.announced = Some(now);
                    }
                    announced.push(owner);
                }
                Stage::Waiting | Stage::Settled => self.set_stage(&owner, Stage::Settled),
            }
        }
        self.send_probes(&probes);
        self.send_announcements(now, &announced);
    }

    fn send_announcements(&mut self, now: Instant, owners: &[Owner]) {
        let ids: Vec<Id> = owners.iter().flat_map(|owner| self.held.of(owner)).copied().collect();
        let mut records = Vec::new();
        for id in ids {
            records.extend(self.held.get(id).map(Item::record));
            self.held.was_multicast(id, now);
            // Who waits for it has it now.
            self.set_pending(id, None);
        }
        self.multicast(&records, &[]);
    }

    /// "May I have these names, for this?" (section 8.2)
    fn send_probes(&mut self, owners: &[Owner]) {
        let mut questions = Vec::new();
        let mut authorities = Vec::new();
        let mut size = 0;
        for owner in owners {
            let Some(name) = self.claims.get(owner).and_then(|claim| claim.name.clone()) else { continue };
            let mut proposed = self.proposed(owner, &name);
            let length = |records: &[Record]| -> usize {
                records.iter().filter_map(|record| record.to_bytes().ok()).map(|bytes| bytes.len()).sum()
            };
            let question = name.len() + 4;
            if question + length(&proposed) > self.sizes.0.saturating_sub(12) {
                // A long TXT record. What is left decides as well.
                proposed.retain(|record| record.record_type() != RecordType::TXT);
            }
            let length = question + length(&proposed);
            if size + length > self.sizes.0.saturating_sub(12) {
                self.send_probe(&questions, &authorities);
                (questions, authorities, size) = (Vec::new(), Vec::new(), 0);
            }
            let mut query = Query::query(name, RecordType::ANY);
            query.set_mdns_unicast_response(true);
            questions.push(query);
            authorities.extend(proposed);
            size += length;
        }
        self.send_probe(&questions, &authorities);
    }

    fn send_probe(&mut self, questions: &[Query], authorities: &[Record]) {
        if questions.is_empty() {
            return;
        }
        let message = Outgoing { questions, authorities, ..Outgoing::default() };
        if let Some(written) = message.write(self.sizes.0, self.sizes.1) {
            self.queue.push_back(Datagram { to: Destination::Everybody, message: written.bytes });
        }
    }

    /// What we will say of a claimed name.
    fn proposed(&self, owner: &Owner, name: &Name) -> Vec<Record> {
        let ours = self.held.of(owner).iter().filter_map(|id| self.held.get(*id));
        let of_name = ours.map(|item| &item.entry.record).filter(|record| record.name == *name);
        // What is not there is nobody's claim.
        of_name.filter(|record| record.record_type() != RecordType::NSEC).cloned().collect()
    }

    /// Somebody probes for a name for which we do, too: the greater data wins (section 8.2).
    pub(super) fn hear_probe(&mut self, now: Instant, message: &Incoming) {
        let names: BTreeSet<&Name> = message.authorities.iter().map(|record| &record.name).collect();
        for name in names {
            let Some(owner) = self.claimed.get(name).cloned() else { continue };
            let Some(Claim { stage: Stage::Probing { .. }, .. }) = self.claims.get(&owner) else { continue };
            let theirs = in_order(message.authorities.iter().filter(|record| record.name == *name));
            let ours = in_order(self.proposed(&owner, name).iter());
            if theirs > ours {
                debug!(%name, "somebody else probes for the name, too, and comes first");
                self.set_stage(&owner, Stage::Probing { sent: 0, due: now + DEFER });
            }
        }
    }

    /// Somebody says something of a name that is only ours (section 9).
    pub(super) fn hear_response(
        &mut self,
        now: Instant,
        message: &Incoming,
        zone: &mut Zone,
        counters: &mut Counters,
    ) {
        let mut conflicts = BTreeSet::new();
        let mut rescued = BTreeSet::new();
        for theirs in message.answers.iter().chain(&message.additionals) {
            let Some(owner) = self.claimed.get(&theirs.name) else { continue };
            if theirs.dns_class != DNSClass::IN || theirs.record_type() == RecordType::NSEC {
                continue;
            }
            let up = self.is_up(owner);
            if let Some(id) = self.held.like(theirs) {
                // Who says it for less long than we do would make others forget it (section 6.6).
                let short = self.held.get(id).is_some_and(|item| theirs.ttl < item.entry.record.ttl / 2);
                if up && short {
                    rescued.insert(id);
                }
                continue;
            }
            // Who takes something back does not want the name.
            let same_kind = !self.held.of_kind(&theirs.name, theirs.record_type()).is_empty();
            if theirs.ttl > 0 && (same_kind || !up) {
                conflicts.insert(owner.clone());
            }
        }
        for id in rescued {
            self.remind(now, id);
        }
        if conflicts.is_empty() {
            return;
        }
        counters.mdns_conflicts += 1;
        let believed = self.conflicts.take(now);
        let mut lost = BTreeSet::new();
        for owner in conflicts {
            if !believed {
                self.set_stage(&owner, Stage::Probing { sent: 0, due: now + EXHAUSTED });
            } else if self.is_up(&owner) {
                // It may be an error, or old: ask. Who answers has it.
                let due = now + self.random.between(Duration::ZERO, PROBE_INTERVAL);
                self.set_stage(&owner, Stage::Probing { sent: 0, due });
            } else {
                self.lose(&owner, zone);
                lost.insert(owner);
            }
        }
        if !lost.is_empty() {
            self.sync_but(now, zone, &lost);
        }
    }

    fn lose(&mut self, owner: &Owner, zone: &mut Zone) {
        match owner {
            Owner::Host(address) => {
                info!(%address, "somebody else on the virtual network has the name of a host, which gets another");
                zone.rename_host(*address);
            }
            Owner::Instance(at, kind, name) => {
                info!(%at, "somebody else on the virtual network has the name of a service, which gets another");
                zone.rename_instance(*at, kind, name);
            }
            Owner::Kind(_) => {}
        }
    }

    /// Takes everything back: nobody will be there to answer.
    pub(crate) fn say_goodbye(&mut self) {
        let owners: Vec<Owner> = self.claims.keys().cloned().collect();
        let mut records = Vec::new();
        for owner in owners {
            if self.is_told(&owner) {
                let items = self.held.of(&owner).iter().filter_map(|id| self.held.get(*id));
                records.extend(items.map(|item| {
                    let mut record = item.record();
                    record.ttl = 0;
                    record
                }));
            }
            self.set_stage(&owner, Stage::Waiting);
        }
        self.multicast(&records, &[]);
    }
}

/// Records as section 8.2 compares them: class, type, data.
fn in_order<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<(u16, u16, Vec<u8>)> {
    let key = |record: &Record| {
        let data = record.data.to_bytes().unwrap_or_default();
        (u16::from(record.dns_class), u16::from(record.record_type()), data)
    };
    let mut keys: Vec<_> = records.map(key).collect();
    keys.sort();
    keys
}
