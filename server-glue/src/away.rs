//! What the guest goes on seeing while no tunnel is there.
//!
//! # Theory of operation
//!
//! A tunnel comes and goes with the user's network; the guest should notice as little of it as a host notices of a printer that
//! somebody switched off and on. So the services of a tunnel that went are kept in mind: their addresses answer ARP and ping, their names
//! are told of, and a new connection to one of them waits for the tunnel to come back (its SYN stays unanswered, so that connect-before-accept holds)
//! or is refused at once.
//!
//! ```text
//!  mapped ──tunnel goes──► known ──announced again──► mapped
//!                            │
//!                            └──not for `remember`, or not within `grace` of a tunnel's coming──► forgotten
//! ```
//!
//! * A tunnel that comes has `grace` to announce what the one before it had; what it does not announce is forgotten. A tunnel that left
//!   again before it announced anything at all was none: the grace is taken back.
//! * A waiting SYN goes only to a service of the same device, or of the same name if nobody said whose it is, at the same address and port, whoever's tunnel has it. That may be another user's,
//!   which is what the guest would get if it tried once more: a virtual address *is* a name, users with a right ticket are equals before the VM,
//!   and a SYN held here carries nothing that was meant for the former one.
//!
//! Here are only the books; the bridge acts on them.
//!
//! # Bounds
//!
//! At most [`AwayConfig::services`] are known, the oldest are forgotten first; at most [`AwayConfig::connections`] wait, which the netstack counts
//! among its half open connections, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use spice_proto::service_info::ServiceInfo;
use spice_proto::tunnel::{GroupId, ServiceAdd};

use crate::table::FlowId;

/// What happens to the guest's view while no tunnel is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwayConfig {
    /// How long a new connection to a known service waits for a tunnel; `None` refuses it at once.
    pub wait: Option<Duration>,
    /// How long services stay known after their tunnel went. Zero: not at all, their addresses vanish with it.
    pub remember: Duration,
    /// How long a tunnel that has come may take to announce what the one before it had.
    pub grace: Duration,
    /// Most services that are known.
    pub services: usize,
    /// Most connections that wait.
    pub connections: usize,
}

impl AwayConfig {
    /// Nothing outlives its tunnel.
    pub const FORGET: Self =
        Self { wait: None, remember: Duration::ZERO, grace: Duration::ZERO, services: 0, connections: 0 };
}

impl Default for AwayConfig {
    /// Connections wait for 5 s, services are known for an hour, and a tunnel that comes back has 5 s; 1024 services, 256 connections.
    fn default() -> Self {
        Self {
            wait: Some(Duration::from_secs(5)),
            remember: Duration::from_secs(3600),
            grace: Duration::from_secs(5),
            services: 1024,
            connections: 256,
        }
    }
}

/// By what a service is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// Its device's, if it says whose it is.
    pub(crate) device: Option<String>,
    pub(crate) group: GroupId,
    pub(crate) description: Box<[u8]>,
}

impl Identity {
    pub(crate) fn of(add: &ServiceAdd<'_>, info: Option<&ServiceInfo>) -> Self {
        let device = info.and_then(ServiceInfo::identity);
        Self {
            name: add.name.escape_ascii().to_string(),
            device: device.map(|device| device.as_str().to_owned()),
            group: add.group,
            description: add.description.into(),
        }
    }

    /// Whether both are of one device; of services that do not say, of one name.
    fn is_akin(&self, other: &Self) -> bool {
        match (&self.device, &other.device) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => self.name == other.name,
        }
    }
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A connection has waited for long enough.
    Refuse(FlowId),
    /// A service is forgotten.
    Withdraw(SocketAddr),
}

/// The books. Which addresses are known is disjoint from which are mapped; the bridge sees to that.
pub(crate) struct Away {
    config: AwayConfig,
    known: HashMap<SocketAddr, Known>,
    /// INVARIANT: has each of `known` that is forgotten at a time, at that time.
    ends: BTreeSet<(Instant, SocketAddr)>,
    waiting: BTreeMap<FlowId, Waiting>,
    /// INVARIANT: has exactly `waiting`.
    deadlines: BTreeSet<(Instant, FlowId)>,
    /// How many services were ever learned.
    learned: u64,
}

struct Known {
    identity: Identity,
    /// Which of those learned it is.
    number: u64,
    /// `None`: so late that no clock shows it.
    until: Option<Instant>,
    /// The end of a grace, if one runs.
    grace: Option<Instant>,
}

impl Known {
    fn end(&self) -> Option<Instant> {
        match (self.until, self.grace) {
            (Some(until), Some(grace)) => Some(until.min(grace)),
            (until, grace) => until.or(grace),
        }
    }
}

struct Waiting {
    destination: SocketAddr,
    deadline: Instant,
}

impl Away {
    pub(crate) fn new(config: AwayConfig) -> Self {
        Self {
            config,
            known: HashMap::new(),
            ends: BTreeSet::new(),
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            learned: 0,
        }
    }

    /// As it was made with.
    pub(crate) fn config(&self) -> &AwayConfig {
        &self.config
    }

    /// Whether a service is known at this address.
    pub(crate) fn knows(&self, address: SocketAddr) -> bool {
        self.known.contains_key(&address)
    }

    /// The address that an announced service had: of those known of its device, or with its name, and its port the one that is most like it, and of two
    /// that are equally like it the one that was there first. So twins keep their addresses in whatever order they come back.
    pub(crate) fn place(&self, identity: &Identity, port: u16) -> Option<SocketAddr> {
        let alike = self
            .known
            .iter()
            .filter(|(address, known)| address.port() == port && known.identity.is_akin(identity));
        let best = alike.min_by_key(|(_, known)| {
            let other = known.identity.description != identity.description;
            let renamed = known.identity.name != identity.name;
            (renamed, other, known.identity.group != identity.group, known.number)
        });
        best.map(|(address, _)| *address)
    }

    /// A service's tunnel went. Gives what has to be forgotten instead: the service itself, or the oldest.
    pub(crate) fn learn(
        &mut self,
        now: Instant,
        address: SocketAddr,
        identity: Identity,
    ) -> Option<SocketAddr> {
        if self.config.remember.is_zero() || self.config.services == 0 {
            return Some(address);
        }
        let oldest = (self.known.len() >= self.config.services)
            .then(|| self.known.iter().min_by_key(|(_, known)| known.number).map(|(address, _)| *address));
        let until = now.checked_add(self.config.remember);
        self.learned += 1;
        self.known.insert(address, Known { identity, number: self.learned, until, grace: None });
        self.ends.extend(until.map(|until| (until, address)));
        oldest.flatten().filter(|oldest| *oldest != address)
    }

    /// A tunnel has come: what it does not announce in time is forgotten.
    pub(crate) fn tunnel_came(&mut self, now: Instant) {
        let grace = now.checked_add(self.config.grace);
        self.change_ends(|known| known.grace = known.grace.or(grace));
    }

    /// The tunnel that had come left without having announced anything.
    pub(crate) fn tunnel_was_none(&mut self) {
        self.change_ends(|known| known.grace = None);
    }

    fn change_ends(&mut self, mut change: impl FnMut(&mut Known)) {
        self.ends.clear();
        for (address, known) in &mut self.known {
            change(known);
            self.ends.extend(known.end().map(|end| (end, *address)));
        }
    }

    /// Lets a connection wait for a service that is known. False: there is none, or nothing waits (any more).
    pub(crate) fn hold(&mut self, now: Instant, flow: FlowId, destination: SocketAddr) -> bool {
        let Some(wait) = self.config.wait else { return false };
        if !self.knows(destination) || self.waiting.len() >= self.config.connections {
            return false;
        }
        // Longer than any clock shows: the netstack's own deadline comes first in any case.
        let Some(deadline) = now.checked_add(wait) else { return false };
        self.release(flow);
        self.waiting.insert(flow, Waiting { destination, deadline });
        self.deadlines.insert((deadline, flow));
        true
    }

    /// A connection waits no longer.
    pub(crate) fn release(&mut self, flow: FlowId) {
        if let Some(waiting) = self.waiting.remove(&flow) {
            self.deadlines.remove(&(waiting.deadline, flow));
        }
    }

    /// How many connections wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The service at this address is there again, or forgotten. Gives the connections that waited for it, in the order of their coming.
    pub(crate) fn settle(&mut self, address: SocketAddr) -> Vec<FlowId> {
        if let Some(known) = self.known.remove(&address)
            && let Some(end) = known.end()
        {
            self.ends.remove(&(end, address));
        }
        let waited = |(_, flow): &&(Instant, FlowId)| {
            self.waiting.get(flow).is_some_and(|waiting| waiting.destination == address)
        };
        let flows: Vec<FlowId> = self.deadlines.iter().filter(waited).map(|(_, flow)| *flow).collect();
        for flow in &flows {
            self.release(*flow);
        }
        flows
    }

    /// The next thing that is due; to be done by the caller, with [`Away::settle`] for a service.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Due> {
        if let Some(&(at, flow)) = self.deadlines.first()
            && at <= now
        {
            self.release(flow);
            return Some(Due::Refuse(flow));
        }
        let &(at, address) = self.ends.first()?;
        (at <= now).then_some(Due::Withdraw(address))
    }

    /// Any service that is known.
    pub(crate) fn any(&self) -> Option<SocketAddr> {
        self.known.keys().next().copied()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.deadlines.first().map(|(at, _)| *at);
        let known = self.ends.first().map(|(at, _)| *at);
        [waiting, known].into_iter().flatten().min()
    }
}
