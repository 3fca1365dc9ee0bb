//! Questions and their answers (RFC 6762, sections 5 to 7).

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Record, RecordType};

use super::held::{Id, Item};
use super::{Datagram, Destination, LIMITS, PORT, Responder, Station};
use crate::names::wire::{Incoming, Outgoing, flags};
use crate::names::zone::Zone;
use crate::netstack::Counters;

/// How long an answer waits that others may have, too (section 6).
const SHARED_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(120));
/// How long for more known answers (section 7.2).
const KNOWN_DELAY: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(500));
/// How long for all of them together.
const KNOWN_MOST: Duration = Duration::from_secs(2);
/// Most questions that wait so. More are answered as if their known answers were all.
const MAX_DEFERRED: usize = 16;
/// Most records that are offered for what room a message has left.
const MAX_ADDITIONAL: usize = 64;
/// How often a record may be sent to everybody; and in answer to a probe (section 6).
const ONCE: Duration = Duration::from_secs(1);
const ONCE_FOR_PROBE: Duration = Duration::from_millis(250);
/// Seconds for which a resolver that knows nothing of multicast may keep an answer (section 6.7).
const LEGACY_TTL: u32 = 10;

/// A question whose known answers go on in another message.
#[derive(Debug)]
pub(super) struct Deferred {
    from: SocketAddrV4,
    /// When it is answered, and until when that may be put off.
    pub(super) due: Instant,
    until: Instant,
    plan: Plan,
}

/// What is to be sent in answer to a message.
#[derive(Debug)]
struct Plan {
    to: Station,
    /// To everybody.
    multicast: BTreeSet<Id>,
    /// To who asked.
    unicast: BTreeSet<Id>,
    /// Who asked is about to take a name: it must not wait.
    probe: bool,
}

impl Deferred {
    pub(super) fn forget(&mut self, id: Id) {
        self.plan.multicast.remove(&id);
        self.plan.unicast.remove(&id);
    }
}

impl Responder {
    /// A guest's message to port 5353, of the group or of one of our addresses.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        from: Station,
        message: &[u8],
        zone: &mut Zone,
        counters: &mut Counters,
    ) {
        self.sync(now, zone);
        if !self.queries.take(now) {
            counters.mdns_withheld += 1;
            return;
        }
        let Some(message) = Incoming::parse(message, LIMITS) else {
            counters.mdns_malformed += 1;
            return;
        };
        counters.mdns_in += 1;
        // Section 18: other kinds of queries, and errors, are for nobody here.
        if message.has(flags::OPCODE | flags::RESPONSE_CODE) {
            return;
        }
        if message.has(flags::RESPONSE) {
            // Section 6: what does not come from the port is no responder's.
            if from.address.port() == PORT {
                self.hear_answers(&message);
                self.hear_response(now, &message, zone, counters);
            }
            return;
        }
        self.hear_known(now, from, &message);
        self.hear_probe(now, &message);
        if message.questions.is_empty() {
            return;
        }
        if from.address.port() == PORT {
            self.answer(now, from, &message, counters);
        } else {
            self.answer_legacy(now, from, &message, counters);
        }
    }

    /// The records that answer a question: those that are ours to tell, and if there is no such record, that there is none.
    fn find(&self, question: &Query) -> Vec<Id> {
        if !matches!(question.query_class, DNSClass::IN | DNSClass::ANY) {
            return Vec::new();
        }
        let name = &question.name;
        let up = |id: &Id| self.held.get(*id).is_some_and(|item| self.is_up(&item.entry.owner));
        let nothing = self.held.of_kind(name, RecordType::NSEC);
        let found: Vec<Id> = if question.query_type == RecordType::ANY {
            self.held.at(name).filter(|id| !nothing.contains(id)).filter(up).collect()
        } else {
            self.held.of_kind(name, question.query_type).iter().copied().filter(up).collect()
        };
        if found.is_empty() { nothing.iter().copied().filter(up).collect() } else { found }
    }

    /// What the sender of a message knows, for long enough (section 7.1).
    fn known(&self, message: &Incoming) -> BTreeSet<Id> {
        let long = |id: &Id, ttl| self.held.get(*id).is_some_and(|item| ttl >= item.entry.record.ttl / 2);
        let answers = message.answers.iter();
        answers.filter_map(|known| self.held.like(known).filter(|id| long(id, known.ttl))).collect()
    }

    fn answer(&mut self, now: Instant, from: Station, message: &Incoming, counters: &mut Counters) {
        let probe = !message.authorities.is_empty();
        let mut plan = Plan { to: from, multicast: BTreeSet::new(), unicast: BTreeSet::new(), probe };
        let known = self.known(message);
        let mut asked = HashSet::new();
        for question in message.questions.iter().filter(|question| asked.insert(*question)) {
            for id in self.find(question) {
                if known.contains(&id) {
                    continue;
                }
                // Section 5.4: who wants it alone gets it alone, unless all should be reminded of it.
                let alone = question.mdns_unicast_response || !from.multicast;
                let reminded = self.held.get(id).is_some_and(|item| {
                    let quarter = Duration::from_secs(u64::from(item.entry.record.ttl) / 4);
                    item.multicast.is_some_and(|last| now.saturating_duration_since(last) < quarter)
                });
                if alone && (reminded || probe || !from.multicast) {
                    plan.unicast.insert(id);
                }
                if !alone || (!reminded && from.multicast) {
                    plan.multicast.insert(id);
                }
            }
        }
        if message.has(flags::TRUNCATED) && self.deferred.len() < MAX_DEFERRED {
            let due = now + self.random.between(KNOWN_DELAY.0, KNOWN_DELAY.1);
            let deferred = Deferred { from: from.address, due, until: now + KNOWN_MOST, plan };
            self.deferred.push(deferred);
        } else {
            self.carry_out(now, plan, counters);
        }
    }

    /// The message goes on with what its sender knows (section 7.2).
    fn hear_known(&mut self, now: Instant, from: Station, message: &Incoming) {
        if message.answers.is_empty() {
            return;
        }
        let known = self.known(message);
        for deferred in self.deferred.iter_mut().filter(|deferred| deferred.from == from.address) {
            known.iter().for_each(|id| deferred.forget(*id));
            if message.has(flags::TRUNCATED) {
                let due = now + self.random.between(KNOWN_DELAY.0, KNOWN_DELAY.1);
                deferred.due = due.min(deferred.until);
            }
        }
    }

    /// Somebody else has just said what we were about to (section 7.4).
    fn hear_answers(&mut self, message: &Incoming) {
        for theirs in &message.answers {
            if let Some(id) = self.held.like(theirs)
                && self.held.get(id).is_some_and(|item| theirs.ttl >= item.entry.record.ttl)
            {
                self.set_pending(id, None);
            }
        }
    }

    pub(super) fn deferred_due(&mut self, now: Instant, counters: &mut Counters) {
        let (due, later) =
            std::mem::take(&mut self.deferred).into_iter().partition(|deferred| deferred.due <= now);
        self.deferred = later;
        let due: Vec<Deferred> = due;
        for deferred in due {
            self.carry_out(now, deferred.plan, counters);
        }
    }

    fn carry_out(&mut self, now: Instant, plan: Plan, counters: &mut Counters) {
        let Plan { to, multicast, unicast, probe } = plan;
        let answers: Vec<Record> =
            unicast.iter().filter_map(|id| self.held.get(*id)).map(Item::record).collect();
        let additionals = self.additionals(&unicast, |_| true);
        let additionals: Vec<Record> = additionals.into_iter().map(|(_, record)| record).collect();
        self.send(Destination::One(to), &answers, &additionals, Some((&mut *counters, now)));

        let shared = |id: &Id| self.held.get(*id).is_some_and(|item| !item.entry.unique);
        let delay = if multicast.iter().any(shared) && !probe {
            self.random.between(SHARED_DELAY.0, SHARED_DELAY.1)
        } else {
            Duration::ZERO
        };
        for id in multicast {
            let once = if probe { ONCE_FOR_PROBE } else { ONCE };
            let due = self.earliest(now + delay, id, once);
            self.send_by(id, due);
        }
        self.answers_due(now, counters);
    }

    /// When a record may be sent to everybody.
    fn earliest(&self, wanted: Instant, id: Id, once: Duration) -> Instant {
        let last = self.held.get(id).and_then(|item| item.multicast);
        last.map_or(wanted, |last| wanted.max(last + once))
    }

    /// A record has to be told to everybody, as soon as that may be.
    pub(super) fn remind(&mut self, now: Instant, id: Id) {
        let due = self.earliest(now, id, ONCE);
        self.send_by(id, due);
    }

    fn send_by(&mut self, id: Id, due: Instant) {
        let before = self.held.get(id).and_then(|item| item.pending);
        self.set_pending(id, Some(before.map_or(due, |before| before.min(due))));
    }

    /// Sends to everybody what is due.
    pub(super) fn answers_due(&mut self, now: Instant, counters: &mut Counters) {
        let mut ids = BTreeSet::new();
        while let Some((due, id)) = self.pending.first().copied()
            && due <= now
        {
            self.set_pending(id, None);
            ids.insert(id);
        }
        if ids.is_empty() {
            return;
        }
        let answers: Vec<Record> = ids.iter().filter_map(|id| self.held.get(*id)).map(Item::record).collect();
        let fresh =
            |last: Option<Instant>| last.is_none_or(|last| now.saturating_duration_since(last) >= ONCE);
        let additionals = self.additionals(&ids, fresh);
        let records: Vec<Record> = additionals.iter().map(|(_, record)| record.clone()).collect();
        let sent = self.send(Destination::Everybody, &answers, &records, Some((counters, now)));
        for id in ids {
            self.held.was_multicast(id, now);
        }
        for (id, _) in sent.into_iter().filter_map(|index| additionals.get(index)) {
            self.held.was_multicast(*id, now);
        }
    }

    /// What is sent along with these answers, if it may be sent, given when it was sent to everybody last.
    fn additionals(
        &self,
        answers: &BTreeSet<Id>,
        may: impl Fn(Option<Instant>) -> bool,
    ) -> Vec<(Id, Record)> {
        let mut seen = answers.clone();
        let mut found = Vec::new();
        for id in answers.iter().flat_map(|id| self.held.additional(*id)) {
            if found.len() == MAX_ADDITIONAL {
                break;
            }
            if let Some(item) = self.held.get(id)
                && self.is_up(&item.entry.owner)
                && may(item.multicast)
                && seen.insert(id)
            {
                found.push((id, item.record()));
            }
        }
        found
    }

    /// Who does not come from the port is an ordinary resolver, and is answered as one (section 6.7).
    fn answer_legacy(&mut self, now: Instant, from: Station, message: &Incoming, counters: &mut Counters) {
        let mut ids = BTreeSet::new();
        let mut asked = HashSet::new();
        for question in message.questions.iter().filter(|question| asked.insert(*question)) {
            let found = self.find(question).into_iter();
            ids.extend(found.filter(|id| {
                self.held.get(*id).is_some_and(|item| item.entry.record.record_type() != RecordType::NSEC)
            }));
        }
        if ids.is_empty() {
            return;
        }
        if !self.answers.take(now) {
            counters.mdns_withheld += 1;
            return;
        }
        let plain = |mut record: Record| {
            record.mdns_cache_flush = false;
            record.ttl = record.ttl.min(LEGACY_TTL);
            record
        };
        let answers: Vec<Record> =
            ids.iter().filter_map(|id| self.held.get(*id)).map(|item| plain(item.record())).collect();
        let additionals: Vec<Record> = self
            .additionals(&ids, |_| true)
            .into_iter()
            .filter(|(_, record)| record.record_type() != RecordType::NSEC)
            .map(|(_, record)| plain(record))
            .collect();
        let mut questions = message.questions.clone();
        for question in &mut questions {
            question.set_mdns_unicast_response(false);
        }
        let mut outgoing = Outgoing {
            id: message.id,
            flags: flags::RESPONSE | flags::AUTHORITATIVE,
            questions: &questions,
            answers: &answers,
            additionals: &additionals,
            ..Outgoing::default()
        };
        let Some(mut written) = outgoing.write(self.sizes.0, self.sizes.1) else { return };
        if written.answers < answers.len() {
            outgoing.flags |= flags::TRUNCATED;
            outgoing.additionals = &[];
            let Some(again) = outgoing.write(self.sizes.0, self.sizes.1) else { return };
            written = again;
        }
        self.queue.push_back(Datagram { to: Destination::One(from), message: written.bytes });
    }
}
