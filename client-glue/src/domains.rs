//! Whole domains of the user's side: the guest asks for a name, it is looked up here, and what it leads to is offered.
//!
//! # Theory of operation
//!
//! A name that the guest asks for must be in one of the domains that the user allowed, and lead to another machine than this one. Then
//! the domain's ports are offered under it, as a device of its own that is known by the name: it has the same virtual address
//! every day, whatever the real one is. The real one is found out at every connection, by the rules of [`crate::resolve`].
//!
//! What the guest may make us hold is bounded: so many names are alive, and of those that were not asked for lately and have
//! no open connection, the one asked for longest ago makes room. Idle names are taken back, gently.
//!
//! `Desk` decides, without I/O and with the time as an argument; [`serve`] looks names up for it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use spice_proto::service_info::{HostName, Identity, ServiceInfo};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::{
    Handle, Refusal,
    book::check_domain,
    offer::{DeviceKey, Offer, is_own},
    question::{Answer, NameQuery, Question, Questions},
    resolve::{NoAddress, Resolver, is_virtual},
    share::{Host, Share, ShareError, ShareId},
};

/// What is offered of a name where nothing else is said: SSH, web, SMB, LPD, IPP, web again, raw printing.
pub const DEFAULT_PORTS: [u16; 8] = [22, 80, 443, 445, 515, 631, 8080, 9100];

/// Most names at a time.
pub const MAX_NAMES: usize = 256;

/// Most services at a time of all names: a tunnel bears 1024 of all kinds.
pub const MAX_SERVICES: usize = 512;

/// A name that was not asked for during this time, and not during what it was answered to be good for, is idle.
const IDLE_AFTER: Duration = Duration::from_secs(600);

/// How long an answer is good for, at least and at most (PROTOCOL.md).
const TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));

/// A domain whose names the guest may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// The domain, in lower case.
    pub name: HostName,
    /// What is offered of every name in it.
    pub ports: Vec<u16>,
}

/// Whether `domain` can be one.
///
/// # Errors
/// [`ShareError::Domain`].
pub fn check(domain: &HostName) -> Result<(), ShareError> {
    check_domain(domain)
}

/// Answers the guest's questions for names in `domains`, until there are no more. `network` keeps two networks apart in which a name
/// leads to different machines.
///
/// Cancel safe in that a dropped call leaves nothing running; what it offered stays offered.
///
/// # Errors
/// [`ShareError`]: a domain that cannot be one, or a tunnel that has ended.
pub async fn serve(
    handle: Handle,
    questions: Questions,
    domains: Vec<Domain>,
    network: Option<String>,
) -> Result<(), ShareError> {
    serve_by(Arc::new(Resolver::default()), handle, questions, domains, network).await
}

async fn serve_by(
    resolver: Arc<Resolver>,
    handle: Handle,
    mut questions: Questions,
    domains: Vec<Domain>,
    network: Option<String>,
) -> Result<(), ShareError> {
    let mut desk = Desk::new(handle, domains, network)?;
    let mut lookups = JoinSet::new();
    loop {
        let idle = desk.poll_timeout().map(tokio::time::Instant::from_std);
        let idle = async {
            match idle {
                Some(idle) => tokio::time::sleep_until(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            question = questions.recv() => {
                let Some(question) = question else { return Ok(()) };
                // As many as the server may ask at a time.
                if let Some(name) = desk.handle_question(now(), question) {
                    let resolver = resolver.clone();
                    lookups.spawn(async move {
                        let found = resolver.look_up(name.as_str()).await;
                        let found = found.map(|(addresses, ttl)| Found { addresses, ttl });
                        (name, found)
                    });
                }
            }
            Some(found) = lookups.join_next() => match found {
                Ok((name, found)) => desk.handle_found(now(), &name, found),
                Err(error) => warn!(%error, "a lookup broke off"),
            },
            () = idle => desk.handle_timeout(now()),
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Where a name leads.
struct Found {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

/// Decides about names.
struct Desk {
    handle: Handle,
    domains: Vec<Domain>,
    network: Option<String>,
    alive: BTreeMap<HostName, Alive>,
    /// Being looked up, and for whom.
    pending: BTreeMap<HostName, Vec<NameQuery>>,
}

/// A name that is offered.
struct Alive {
    device: DeviceKey,
    shares: Vec<ShareId>,
    /// When it was asked for last.
    asked: Instant,
    /// Until when the answer is good.
    good_until: Instant,
}

impl Alive {
    fn idle_at(&self) -> Instant {
        self.good_until.max(self.asked + IDLE_AFTER)
    }
}

impl Desk {
    fn new(handle: Handle, domains: Vec<Domain>, network: Option<String>) -> Result<Desk, ShareError> {
        for domain in &domains {
            handle.add_domain(&domain.name)?;
        }
        Ok(Desk { handle, domains, network, alive: BTreeMap::new(), pending: BTreeMap::new() })
    }

    /// The name to look up, where that has to be done.
    fn handle_question(&mut self, now: Instant, question: Question) -> Option<HostName> {
        let Question { query, name } = question;
        if self.domain(&name).is_none() {
            debug!(name = name.as_str(), "the guest asked for a name of no domain that was allowed");
            self.handle.answer_name(query, Answer::Refused);
            return None;
        }
        if let Some(waiting) = self.pending.get_mut(&name) {
            waiting.push(query);
            return None;
        }
        if let Some(alive) = self.alive.get_mut(&name)
            && alive.good_until > now
        {
            alive.asked = now;
            let ttl = clamp(alive.good_until.saturating_duration_since(now));
            let device = alive.device.clone();
            self.handle.answer_name(query, Answer::Found { device, ttl });
            return None;
        }
        self.pending.insert(name.clone(), vec![query]);
        Some(name)
    }

    fn handle_found(&mut self, now: Instant, name: &HostName, found: Result<Found, NoAddress>) {
        let answer = self.settle(now, name, found);
        for query in self.pending.remove(name).unwrap_or_default() {
            self.handle.answer_name(query, answer.clone());
        }
    }

    fn settle(&mut self, now: Instant, name: &HostName, found: Result<Found, NoAddress>) -> Answer {
        let ttl = match found {
            Ok(Found { addresses, ttl }) => {
                if let Some(why) = objection(&addresses) {
                    warn!(name = name.as_str(), why, "the guest asked for a name that it is not told");
                    self.withdraw(name);
                    return Answer::NoSuchName;
                }
                clamp(ttl)
            }
            Err(NoAddress::NoSuchName) => {
                self.withdraw(name);
                return Answer::NoSuchName;
            }
            Err(NoAddress::Failed(refusal @ Refusal::Forbidden { .. })) => {
                warn!(name = name.as_str(), why = %refusal, "the guest asked for a name that it is not told");
                self.withdraw(name);
                return Answer::NoSuchName;
            }
            Err(NoAddress::Failed(refusal)) => {
                debug!(name = name.as_str(), %refusal, "a name could not be looked up");
                return Answer::Failed;
            }
        };
        if let Some(alive) = self.alive.get_mut(name) {
            (alive.asked, alive.good_until) = (now, now + ttl);
            return Answer::Found { device: alive.device.clone(), ttl };
        }
        match self.offer(now, name, ttl) {
            Ok(device) => Answer::Found { device, ttl },
            Err(problem) => {
                warn!(name = name.as_str(), problem, "a name cannot be offered");
                Answer::Failed
            }
        }
    }

    /// Offers a name that was not.
    fn offer(&mut self, now: Instant, name: &HostName, ttl: Duration) -> Result<DeviceKey, String> {
        let ports = self.domain(name).map(|domain| domain.ports.clone()).unwrap_or_default();
        while self.alive.len() >= MAX_NAMES || self.services() + ports.len() > MAX_SERVICES {
            let idle = |alive: &Alive| alive.idle_at() <= now && !self.is_in_use(alive);
            let oldest =
                self.alive.iter().filter(|(_, alive)| idle(alive)).min_by_key(|(_, alive)| alive.asked);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                return Err(format!("{} names are in use", self.alive.len()));
            };
            self.withdraw(&oldest);
        }
        let host: Host = name.as_str().parse().map_err(|error: ShareError| error.to_string())?;
        let network = self.network.as_ref().map(|network| format!("{network}/")).unwrap_or_default();
        let identity = format!("dns:{network}{}", name.as_str());
        // The longest name with a network's before it may be too long: it is unlike others in its beginning as well.
        let identity = Identity::new(identity.get(..identity.len().min(255)).unwrap_or(&identity))
            .map_err(|error| error.to_string())?;
        let info = ServiceInfo::new(Some(identity.clone()), Some(name.clone()), Vec::new()).ok();
        let mut shares = Vec::new();
        let mut problem = "it has no ports".to_owned();
        for port in ports {
            let share = Share::new(host.clone(), port);
            match self.handle.offer(Offer::device(share, identity.clone(), info.clone(), Vec::new())) {
                Ok(share) => shares.push(share),
                Err(error) => problem = error.to_string(),
            }
        }
        if shares.is_empty() {
            return Err(problem);
        }
        let device = DeviceKey::Identity(identity);
        let alive = Alive { device: device.clone(), shares, asked: now, good_until: now + ttl };
        self.alive.insert(name.clone(), alive);
        Ok(device)
    }

    fn withdraw(&mut self, name: &HostName) {
        for share in self.alive.remove(name).map(|alive| alive.shares).unwrap_or_default() {
            self.handle.withdraw(share);
        }
    }

    fn services(&self) -> usize {
        self.alive.values().map(|alive| alive.shares.len()).sum()
    }

    fn is_in_use(&self, alive: &Alive) -> bool {
        alive.shares.iter().any(|share| self.handle.connections(*share) > 0)
    }

    /// The domain that a name is in: the nearest of them.
    fn domain(&self, name: &HostName) -> Option<&Domain> {
        let holds = |domain: &&Domain| {
            let before = name.as_str().strip_suffix(domain.name.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        self.domains.iter().filter(holds).max_by_key(|domain| domain.name.as_str().len())
    }

    /// When the next name is idle.
    fn poll_timeout(&self) -> Option<Instant> {
        self.alive.values().map(Alive::idle_at).min()
    }

    /// Takes back what is idle. What is not, on account of a connection, is looked at again later.
    fn handle_timeout(&mut self, now: Instant) {
        let over: Vec<HostName> = self
            .alive
            .iter()
            .filter(|(_, alive)| alive.idle_at() <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            let in_use = self.alive.get(&name).is_some_and(|alive| self.is_in_use(alive));
            if !in_use {
                debug!(name = name.as_str(), "nobody asks for it any more");
                self.withdraw(&name);
            } else if let Some(alive) = self.alive.get_mut(&name) {
                alive.asked = now;
            }
        }
    }
}

/// Why a name that leads there is not for the guest.
fn objection(addresses: &[IpAddr]) -> Option<&'static str> {
    if addresses.iter().any(|address| is_own(*address)) {
        return Some("it leads to this machine");
    }
    if addresses.iter().any(|address| is_virtual(*address)) {
        return Some("it leads into the network that guests of a tunnel are in");
    }
    addresses.is_empty().then_some("it has no address")
}

fn clamp(ttl: Duration) -> Duration {
    ttl.clamp(TTL.0, TTL.1)
}

#[cfg(test)]
mod tests;
