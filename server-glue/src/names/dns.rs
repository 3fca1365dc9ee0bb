//! The DNS server of the virtual network, on the gateway's address: sans-IO, messages in, answers or questions to the client out.
//!
//! # Theory of operation
//!
//! It knows four things, and is asked about everything:
//!
//! | asked about | answered from |
//! | --- | --- |
//! | the virtual network's domain, and the way back from its addresses | the [`zone`](super::zone): devices, and DNS-SD (RFC 6763) |
//! | a host that the user shared by a name of unicast DNS (`nas.lan`) | the zone |
//! | a domain of the user's side that their client allowed | [`domains`]: the client is asked |
//! | a `.local` name of a device | the zone, see below |
//! | all else | REFUSED |
//!
//! It is no resolver: nothing is ever looked up in the world. REFUSED, not NXDOMAIN, is what makes a guest with several name servers go on
//! to the next one; NXDOMAIN for a name that we know nothing of would be believed.
//!
//! `.local` belongs to multicast DNS (RFC 6762, section 22.1: authoritative servers should not answer for it), and here we *are* who
//! answers for these names on this link, by multicast. The SRV records of our domain lead to them, since a printer refuses requests in
//! another name. So a device's own name (one label below `local`) is answered, and nothing else of `.local`: deeper names may be those
//! of a company that has called its domain so, and are its name servers' to answer.
//!
//! # What cannot come out of it
//!
//! Addresses: each is one of the virtual network at which something is published. What the client answers is a group, of which the
//! address is looked up. So no name can lead the guest anywhere else (DNS rebinding).
//!
//! # Bounds
//!
//! A [`Budget`] of messages, beyond which they are dropped; those of [`domains`]; and [`MAX_UNSENT`] answers, of which those for connections
//! are bounded by [`streams`].

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, HINFO, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use spice_proto::service_info::HostName;

use self::domains::{DomainFault, Domains, Lookup, Outcome};
use self::message::{Question, Reply, Request, Transport};
use self::own::{Own, Part};
use super::zone::Zone;
use crate::address::Subnet;
use crate::budget::Budget;
use crate::counters::Counters;
use crate::domain::Domain;
use crate::packet::MacAddress;
use crate::table::FlowId;

pub(crate) mod domains;
mod message;
mod own;
pub(crate) mod streams;

/// UDP and TCP port of a DNS server.
pub(crate) const PORT: u16 = 53;

/// Most datagrams that wait to be sent.
const MAX_UNSENT: usize = 256;

/// Names that an address may have besides its own.
const MAX_ALIASES: usize = 4;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Udp { station: MacAddress, address: SocketAddrV4 },
    Tcp(FlowId),
}

/// Who waits for the client's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiter {
    client: Client,
    request: Request,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Dns {
    own: Own,
    mtu: u16,
    domains: Domains<Waiter>,
    budget: Budget,
    datagrams: VecDeque<(MacAddress, SocketAddrV4, Vec<u8>)>,
    streams: VecDeque<(FlowId, Vec<u8>)>,
}

/// What is to be said now, if anything.
enum Decision {
    Say(Reply),
    Wait,
    Drop,
}

impl Dns {
    pub(crate) fn new(domain: &Domain, gateway: Ipv4Addr, subnet: Subnet, mtu: u16) -> Dns {
        Dns {
            own: Own::new(domain, gateway, subnet),
            mtu,
            domains: Domains::new(),
            budget: Budget::new(1000, Duration::from_millis(1)),
            datagrams: VecDeque::new(),
            streams: VecDeque::new(),
        }
    }

    // Inputs.

    /// A message of the guest's. True: it is answered, now or later.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        zone: &Zone,
        client: Client,
        message: &[u8],
        counters: &mut Counters,
    ) -> bool {
        let parsed = if self.budget.take(now) { Request::parse(message) } else { None };
        let Some((request, verdict)) = parsed else {
            counters.dns_dropped += 1;
            return false;
        };
        let decision = match (verdict, request.question()) {
            (Ok(()), Some(question)) => self.decide(now, zone, client, &request, question),
            (Ok(()), None) => Decision::Say(Reply::bare(ResponseCode::FormErr)),
            (Err(code), _) => Decision::Say(Reply::bare(code)),
        };
        match decision {
            Decision::Say(reply) => return self.say(client, &request, reply, counters),
            Decision::Wait => {
                counters.dns_asked += 1;
                return true;
            }
            Decision::Drop => counters.dns_dropped += 1,
        }
        false
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant, zone: &Zone, counters: &mut Counters) {
        self.domains.handle_timeout(now);
        self.tell_waiting(zone, counters);
    }

    /// The tunnel's client answered a question of [`poll_question`](Self::poll_question), or cannot be asked. An address is one of a
    /// group that this client announced.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        zone: &Zone,
        name: &str,
        outcome: Outcome,
        counters: &mut Counters,
    ) {
        let outcome = match outcome {
            Outcome::Address { address, .. } if !zone.has(address) => Outcome::Failed,
            Outcome::Address { .. } | Outcome::NoSuchName { .. } | Outcome::Failed | Outcome::Refused => {
                outcome
            }
        };
        self.domains.answer(now, name, outcome);
        self.tell_waiting(zone, counters);
    }

    /// The client allows a domain.
    pub(crate) fn add_domain(&mut self, name: &str) -> Result<(), DomainFault> {
        self.domains.add(name)
    }

    /// The client does not allow it any more.
    pub(crate) fn remove_domain(&mut self, name: &str, zone: &Zone, counters: &mut Counters) {
        self.domains.remove(name);
        self.tell_waiting(zone, counters);
    }

    /// A tunnel has come, and may take `grace` to allow again what the one before did.
    pub(crate) fn tunnel_came(&mut self, now: Instant, grace: Duration) {
        self.domains.tunnel_came(now, grace);
    }

    /// The tunnel is gone, and what it allowed is known for `remember`. `announced`: it had announced something at all.
    pub(crate) fn tunnel_gone(
        &mut self,
        now: Instant,
        remember: Duration,
        announced: bool,
        zone: &Zone,
        counters: &mut Counters,
    ) {
        self.domains.tunnel_gone(now, remember, announced);
        self.tell_waiting(zone, counters);
    }

    /// What is known of tunnels that are gone is to be forgotten.
    pub(crate) fn forget(&mut self) {
        self.domains.forget();
    }

    /// The guest is gone: nobody is there to be answered.
    pub(crate) fn link_lost(&mut self) {
        self.datagrams.clear();
        self.streams.clear();
    }

    // Outputs.

    /// The next answer that is a datagram.
    pub(crate) fn poll_datagram(&mut self) -> Option<(MacAddress, SocketAddrV4, Vec<u8>)> {
        self.datagrams.pop_front()
    }

    /// The next answer for a connection.
    pub(crate) fn poll_stream(&mut self) -> Option<(FlowId, Vec<u8>)> {
        self.streams.pop_front()
    }

    /// The next name to ask the tunnel's client for; in any case [`Dns::answer`] has to follow, or the end of the tunnel.
    pub(crate) fn poll_question(&mut self) -> Option<HostName> {
        self.domains.poll_question()
    }

    /// When [`Dns::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.domains.poll_timeout()
    }

    // Decisions, from here on private.

    fn decide(
        &mut self,
        now: Instant,
        zone: &Zone,
        client: Client,
        request: &Request,
        question: &Question,
    ) -> Decision {
        if question.class != IN || is_meta(question.kind) {
            return Decision::Say(Reply::bare(ResponseCode::Refused));
        }
        self.own.refresh(zone);
        let aliases = |address: IpAddr| self.domains.names_of(address, MAX_ALIASES);
        if let Some(part) = self.own.find(zone, question, aliases) {
            return Decision::Say(self.authoritative(part, question));
        }
        let Some(name) = dotted(&question.name) else {
            return Decision::Say(Reply::bare(ResponseCode::Refused));
        };
        let Some(domain) = self.domains.domain_of(&name) else {
            return Decision::Say(Reply::bare(ResponseCode::Refused));
        };
        if name == domain && matches!(question.kind, RecordType::SOA | RecordType::NS) {
            let apex = question.name.clone();
            let records =
                vec![if question.kind == RecordType::SOA { self.own.soa(apex) } else { self.own.ns(apex) }];
            let mut reply = self.authoritative(Part::records(question.name.clone(), records), question);
            reply.recursion = true;
            return Decision::Say(reply);
        }
        let waiter = Waiter { client, request: request.clone() };
        match self.domains.lookup(now, &name, waiter, |address| zone.has(address)) {
            Lookup::NotAllowed => Decision::Say(Reply::bare(ResponseCode::Refused)),
            Lookup::Known(outcome) => Decision::Say(self.told(question, &name, outcome)),
            Lookup::Waits => Decision::Wait,
            Lookup::Dropped => Decision::Drop,
        }
    }

    fn tell_waiting(&mut self, zone: &Zone, counters: &mut Counters) {
        while let Some((waiter, outcome)) = self.domains.poll_answer() {
            let Some(question) = waiter.request.question() else { continue };
            let Some(name) = dotted(&question.name) else { continue };
            self.own.refresh(zone);
            let reply = self.told(question, &name, outcome);
            self.say(waiter.client, &waiter.request, reply, counters);
        }
    }

    /// The answer about a name in a domain of the user's side.
    fn told(&self, question: &Question, name: &str, outcome: Outcome) -> Reply {
        let apex = self.domains.domain_of(name).and_then(|domain| Name::from_utf8(format!("{domain}.")).ok());
        let (ttl, records, exists) = match outcome {
            Outcome::Address { address: IpAddr::V4(address), ttl } => {
                let record = Record::from_rdata(question.name.clone(), ttl, RData::A(A(address)));
                (ttl, vec![record], true)
            }
            Outcome::Address { address: IpAddr::V6(_), ttl } => (ttl, Vec::new(), true),
            Outcome::NoSuchName { ttl } => (ttl, Vec::new(), false),
            Outcome::Failed => return Reply { recursion: true, ..Reply::bare(ResponseCode::ServFail) },
            Outcome::Refused => return Reply::bare(ResponseCode::Refused),
        };
        let Some(apex) = apex else { return Reply::bare(ResponseCode::Refused) };
        let wanted = matches!(question.kind, RecordType::A | RecordType::ANY);
        let part = match (exists, wanted) {
            (true, true) if !records.is_empty() => Part::records(apex, records),
            (true, _) => Part::no_data(apex),
            (false, _) => Part::no_such_name(apex),
        };
        let mut reply = self.authoritative(part, question);
        for soa in &mut reply.authorities {
            soa.ttl = soa.ttl.min(ttl);
        }
        Reply { recursion: true, ..reply }
    }

    /// What we know, and know to be all. Who asks for everything gets something (RFC 8482).
    fn authoritative(&self, part: Part, question: &Question) -> Reply {
        let code = if part.exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut reply = Reply { authoritative: true, ..Reply::bare(code) };
        reply.answers = part.answers;
        reply.additionals = part.additionals;
        if question.kind == RecordType::ANY && part.exists {
            let first = reply.answers.first().map(Record::record_type);
            reply.answers.retain(|record| Some(record.record_type()) == first);
            if reply.answers.is_empty() {
                let about = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
                reply.answers.push(Record::from_rdata(question.name.clone(), own::NEGATIVE_TTL, about));
            }
        }
        for record in &mut reply.answers {
            if record.name == question.name {
                record.name = question.name.clone();
            }
        }
        if reply.answers.is_empty() {
            let mut soa = self.own.soa(part.apex);
            soa.ttl = own::NEGATIVE_TTL;
            reply.authorities.push(soa);
        }
        reply
    }

    fn say(&mut self, client: Client, request: &Request, reply: Reply, counters: &mut Counters) -> bool {
        let transport = match client {
            Client::Udp { .. } => Transport::Udp { mtu: self.mtu },
            Client::Tcp(_) => Transport::Tcp,
        };
        let refused = reply.code == ResponseCode::Refused;
        let Some(message) = request.encode(reply, transport) else {
            counters.dns_dropped += 1;
            return false;
        };
        counters.dns_answered += 1;
        counters.dns_refused += u64::from(refused);
        match client {
            // Nobody fetches them while the card is away.
            Client::Udp { .. } if self.datagrams.len() >= MAX_UNSENT => counters.dns_dropped += 1,
            Client::Udp { station, address } => self.datagrams.push_back((station, address, message)),
            // Few, since each connection waits for its answers.
            Client::Tcp(flow) => self.streams.push_back((flow, message)),
        }
        true
    }
}

/// The class of everything that there is (RFC 1035).
const IN: u16 = 1;

/// Types that are no records (RFC 6895, section 3.1): transfers, signatures, mail boxes of the eighties. `ANY` is answered.
fn is_meta(kind: RecordType) -> bool {
    let number = u16::from(kind);
    kind != RecordType::ANY && (number == 0 || number == 41 || (128..=255).contains(&number))
}

/// A name with dots, in lower case, without the last dot. `None`: it has a dot within a label or is no UTF-8, so it is no host's.
fn dotted(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name {
        let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&label.to_ascii_lowercase());
    }
    (!text.is_empty()).then_some(text)
}

/// A PTR record.
fn pointer(from: Name, to: Name, ttl: u32) -> Record {
    Record::from_rdata(from, ttl, RData::PTR(PTR(to)))
}

#[cfg(test)]
mod tests;
