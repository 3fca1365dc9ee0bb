//! The records that the responder holds, each with a number of its own for as long as it stays the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::names::records::{Entry, Owner, Records};

/// Names a record that is held. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(u64);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_id: HashMap<Id, Item>,
    /// INVARIANT: both have exactly the records of `by_id`, and no list is empty. A type may have thousands of PTR records; no other list is
    /// long.
    by_name: BTreeMap<Name, BTreeMap<RecordType, Vec<Id>>>,
    by_owner: BTreeMap<Owner, Vec<Id>>,
    /// PTR records by name and target.
    pointers: HashMap<(Name, Name), Id>,
    given: u64,
}

/// A record and its history.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    /// When everybody was told last.
    pub(super) multicast: Option<Instant>,
    /// When everybody will be told, in answer to somebody.
    pub(super) pending: Option<Instant>,
}

/// What another set of records changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Those that have new records.
    pub(super) told_more: BTreeSet<Owner>,
    /// Records that are no more, and the numbers they had.
    pub(super) gone: Vec<(Id, Item)>,
}

impl Held {
    /// Holds what is in `records` from now on, and nothing else.
    pub(super) fn replace(&mut self, records: &Records) -> Changes {
        let mut changes = Changes::default();
        // Thousands may have one name, so they are not compared each with each.
        let names: Vec<Name> = self.by_name.keys().cloned().collect();
        for name in names {
            let wanted = by_owner(records.at(&name).iter());
            for id in self.at(&name).collect::<Vec<Id>>() {
                let stays = self.by_id.get(&id).is_some_and(|item| is_among(&item.entry, &wanted));
                if !stays && let Some(item) = self.remove(id) {
                    changes.gone.push((id, item));
                }
            }
        }
        for (name, entries) in records.iter() {
            let known = by_owner(self.at(name).filter_map(|id| self.get(id)).map(|item| &item.entry));
            let new: Vec<Entry> = entries.iter().filter(|entry| !is_among(entry, &known)).cloned().collect();
            for entry in new {
                changes.told_more.insert(entry.owner.clone());
                self.insert(entry);
            }
        }
        changes
    }

    pub(super) fn get(&self, id: Id) -> Option<&Item> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Item> {
        self.by_id.get_mut(&id)
    }

    /// Under exactly this name.
    pub(super) fn at(&self, name: &Name) -> impl Iterator<Item = Id> {
        self.by_name.get(name).into_iter().flat_map(BTreeMap::values).flatten().copied()
    }

    /// Under exactly this name, of this type.
    pub(super) fn of_kind(&self, name: &Name, kind: RecordType) -> &[Id] {
        self.by_name.get(name).and_then(|kinds| kinds.get(&kind)).map_or(&[], Vec::as_slice)
    }

    /// The record that says the same as `other`, which came from somebody.
    pub(super) fn like(&self, other: &Record) -> Option<Id> {
        if other.dns_class != DNSClass::IN {
            return None;
        }
        if let RData::PTR(target) = &other.data {
            return self.pointers.get(&(other.name.clone(), target.0.clone())).copied();
        }
        let ids = self.of_kind(&other.name, other.record_type()).iter().copied();
        ids.into_iter().find(|id| self.get(*id).is_some_and(|item| item.entry.record.data == other.data))
    }

    /// About this.
    pub(super) fn of(&self, owner: &Owner) -> &[Id] {
        self.by_owner.get(owner).map_or(&[], Vec::as_slice)
    }

    /// Everybody was told now.
    pub(super) fn was_multicast(&mut self, id: Id, now: Instant) {
        if let Some(item) = self.by_id.get_mut(&id) {
            item.multicast = Some(now);
        }
    }

    /// Nobody who is there now was told of anything.
    pub(super) fn forget_multicasts(&mut self) {
        // In no order that matters.
        self.by_id.values_mut().for_each(|item| item.multicast = None);
    }

    /// What is worth telling along with a record, nearest first.
    pub(super) fn additional(&self, id: Id) -> Vec<Id> {
        let Some(item) = self.get(id) else { return Vec::new() };
        let of_kinds = |name: &Name, kinds: &[RecordType]| -> Vec<Id> {
            kinds.iter().flat_map(|kind| self.of_kind(name, *kind)).copied().collect()
        };
        let record = &item.entry.record;
        if let RData::PTR(target) = &record.data {
            let mut found = of_kinds(target, &[RecordType::SRV, RecordType::TXT]);
            let targets: Vec<Id> = found.iter().flat_map(|id| self.additional(*id)).collect();
            found.extend(targets);
            found
        } else if let RData::SRV(srv) = &record.data {
            of_kinds(&srv.target, &[RecordType::A, RecordType::AAAA, RecordType::NSEC])
        } else if matches!(record.data, RData::A(_) | RData::AAAA(_)) {
            // There is no address of the other kind.
            of_kinds(&record.name, &[RecordType::NSEC])
        } else {
            Vec::new()
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.given += 1;
        let id = Id(self.given);
        let record = &entry.record;
        let kinds = self.by_name.entry(record.name.clone()).or_default();
        kinds.entry(record.record_type()).or_default().push(id);
        self.by_owner.entry(entry.owner.clone()).or_default().push(id);
        if let RData::PTR(target) = &record.data {
            self.pointers.insert((record.name.clone(), target.0.clone()), id);
        }
        self.by_id.insert(id, Item { entry, multicast: None, pending: None });
    }

    fn remove(&mut self, id: Id) -> Option<Item> {
        let item = self.by_id.remove(&id)?;
        let record = &item.entry.record;
        if let Some(kinds) = self.by_name.get_mut(&record.name) {
            if let Some(ids) = kinds.get_mut(&record.record_type()) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    kinds.remove(&record.record_type());
                }
            }
            if kinds.is_empty() {
                self.by_name.remove(&record.name);
            }
        }
        if let Some(ids) = self.by_owner.get_mut(&item.entry.owner) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_owner.remove(&item.entry.owner);
            }
        }
        if let RData::PTR(target) = &record.data {
            self.pointers.remove(&(record.name.clone(), target.0.clone()));
        }
        Some(item)
    }
}

impl Item {
    /// As it is sent: those that only we have make others forget what they knew before (RFC 6762, section 10.2).
    pub(super) fn record(&self) -> Record {
        let mut record = self.entry.record.clone();
        record.mdns_cache_flush = self.entry.unique;
        record
    }
}

fn by_owner<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<&'a Owner, Vec<&'a Entry>> {
    let mut by_owner: BTreeMap<&Owner, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_owner.entry(&entry.owner).or_default().push(entry);
    }
    by_owner
}

fn is_among(entry: &Entry, others: &BTreeMap<&Owner, Vec<&Entry>>) -> bool {
    others.get(&entry.owner).is_some_and(|others| others.contains(&entry))
}
