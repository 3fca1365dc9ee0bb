//! Whole domains of the user's side: who is asked, what was answered, who waits.
//!
//! # Theory of operation
//!
//! A client says which domains of its side the guest may ask about. A name in one of them is asked of the client, once however
//! many want to know it, and the answer is kept for as long as the client says.
//!
//! ```text
//!            ┌─ kept, and the address still exists ──► answered
//!  a name ───┼─ no domain of it is allowed ──────────► refused; nothing goes to the client
//!            └─ else: asked, or already so ──► waits ──► answered, or given up after 5 s
//! ```
//!
//! What an answer leads to is an address of the virtual network that the *caller* looked up among what the client announced. There
//! is no way for an address of the user's side to get in here: an answer that led to anything else could turn a name of theirs
//! into a way to a third party (DNS rebinding).
//!
//! While no tunnel is there, what was answered before stays true for as long as its address is known; whatever else is asked fails, and may be
//! tried again. A tunnel that comes has a while to announce its domains again.
//!
//! # Bounds
//!
//! [`MAX_DOMAINS`], [`MAX_ASKED`] names at once with [`MAX_WAITING`] for each, [`MAX_KEPT`] answers, and no more questions a second than a [`Budget`] gives.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use spice_proto::service_info::HostName;

use crate::budget::Budget;
use crate::domain::{self, is_under};

/// Most domains of a client.
pub(crate) const MAX_DOMAINS: usize = 32;
/// Most names that are asked at once.
pub(crate) const MAX_ASKED: usize = 64;
/// Most who wait for the answer to one name.
pub(crate) const MAX_WAITING: usize = 16;
/// Most answers that are kept.
pub(crate) const MAX_KEPT: usize = 1024;
/// How long a client has to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long it is kept that there is no such name.
pub(crate) const NEGATIVE: Duration = Duration::from_secs(10);
/// Bounds of how long an address is kept, in seconds.
pub(crate) const TTL: std::ops::RangeInclusive<u32> = 5..=3600;

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is this address of the virtual network.
    Address {
        address: IpAddr,
        /// Seconds.
        ttl: u32,
    },
    /// There is none.
    NoSuchName {
        /// Seconds.
        ttl: u32,
    },
    /// Nobody could be asked, or who was does not know. Try later.
    Failed,
    /// The client says that it is none of the domains that it allows.
    Refused,
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It is in no domain that is allowed.
    NotAllowed,
    Known(Outcome),
    /// The answer comes with [`Domains::poll_answer`].
    Waits,
    /// It needs no answer of its own, or gets none: it waits already, or too many do.
    Dropped,
}

/// See the module's text. `W` is who waits for an answer.
#[derive(Debug)]
pub(crate) struct Domains<W> {
    /// In lower case.
    domains: BTreeMap<String, Domain>,
    kept: BTreeMap<String, Kept>,
    /// INVARIANT: at most [`MAX_ASKED`].
    asked: BTreeMap<String, Asked<W>>,
    /// Names of `asked` that the owner has still to ask.
    to_ask: VecDeque<String>,
    /// INVARIANT: nobody is in it and in `asked`.
    answered: VecDeque<(W, Outcome)>,
    budget: Budget,
    /// A tunnel is there.
    connected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Domain {
    /// The tunnel that is there announced it.
    Current,
    /// One that is gone did.
    Away {
        /// `None`: so late that no clock shows it.
        until: Option<Instant>,
        /// The end of a grace, if one runs.
        grace: Option<Instant>,
    },
}

impl Domain {
    fn end(self) -> Option<Instant> {
        match self {
            Domain::Current => None,
            Domain::Away { until, grace } => [until, grace].into_iter().flatten().min(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    /// `None`: no such name.
    address: Option<IpAddr>,
    until: Instant,
}

#[derive(Debug)]
struct Asked<W> {
    /// The owner has taken the question, so it will bring an answer.
    sent: bool,
    waiting: Vec<W>,
    /// When those who wait are told that it failed. `None`: they were. An answer that comes later is kept all the same.
    deadline: Option<Instant>,
}

/// Why a domain is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DomainFault {
    /// As many are allowed as may be.
    #[error("there are {MAX_DOMAINS} domains already")]
    Many,
    /// Not a domain that could be the user's own.
    #[error(
        "names of it have a meaning of their own, or it is a top-level domain: expected one of the user's side, such as home.arpa"
    )]
    Special,
}

impl<W: PartialEq> Domains<W> {
    pub(crate) fn new() -> Domains<W> {
        Domains {
            domains: BTreeMap::new(),
            kept: BTreeMap::new(),
            asked: BTreeMap::new(),
            to_ask: VecDeque::new(),
            answered: VecDeque::new(),
            // A page of a browser has some dozens of names, a scan has millions.
            budget: Budget::new(200, Duration::from_millis(20)),
            connected: false,
        }
    }

    // What the tunnel says.

    /// A tunnel has come. What the one before it allowed stays so until `grace` has passed.
    pub(crate) fn tunnel_came(&mut self, now: Instant, grace: Duration) {
        self.connected = true;
        for domain in self.domains.values_mut() {
            if let Domain::Away { grace: end, .. } = domain {
                *end = end.or(now.checked_add(grace));
            }
        }
    }

    /// The tunnel is gone. What it allowed is known for `remember`. One that has announced nothing at all, no service either, was none: the grace is
    /// taken back.
    pub(crate) fn tunnel_gone(&mut self, now: Instant, remember: Duration, announced: bool) {
        self.connected = false;
        for domain in self.domains.values_mut() {
            match domain {
                Domain::Current => *domain = Domain::Away { until: now.checked_add(remember), grace: None },
                Domain::Away { grace, .. } if !announced => *grace = None,
                Domain::Away { .. } => {}
            }
        }
        self.to_ask.clear();
        for (_, asked) in std::mem::take(&mut self.asked) {
            self.answered.extend(asked.waiting.into_iter().map(|waiter| (waiter, Outcome::Failed)));
        }
        // Another client may know more.
        self.kept.retain(|_, kept| kept.address.is_some());
        self.expire(now);
    }

    /// What is known of tunnels that are gone is to be forgotten.
    pub(crate) fn forget(&mut self) {
        self.drop_domains(|domain| domain == Domain::Current);
    }

    pub(crate) fn add(&mut self, name: &str) -> Result<(), DomainFault> {
        let name = name.to_ascii_lowercase();
        if domain::is_special(&name) || !name.contains('.') {
            return Err(DomainFault::Special);
        }
        if !self.domains.contains_key(&name) && self.domains.len() >= MAX_DOMAINS {
            // Those of the tunnel that is there come before what is remembered.
            self.forget();
            if self.domains.len() >= MAX_DOMAINS {
                return Err(DomainFault::Many);
            }
        }
        self.domains.insert(name, Domain::Current);
        Ok(())
    }

    /// True: it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let removed = self.domains.remove(&name.to_ascii_lowercase()).is_some();
        self.drop_orphans();
        removed
    }

    /// The domain that `name` (in lower case) is in, the longest.
    pub(crate) fn domain_of(&self, name: &str) -> Option<&str> {
        let under = self.domains.keys().filter(|domain| is_under(name, domain));
        under.max_by_key(|domain| domain.len()).map(String::as_str)
    }

    // Questions and answers.

    /// What is known of `name` (in lower case), else asks for it. `exists` says whether an address does.
    pub(crate) fn lookup(
        &mut self,
        now: Instant,
        name: &str,
        waiter: W,
        exists: impl Fn(IpAddr) -> bool,
    ) -> Lookup {
        if self.domain_of(name).is_none() {
            return Lookup::NotAllowed;
        }
        if !is_askable(name) {
            let ttl = u32::try_from(NEGATIVE.as_secs()).unwrap_or(u32::MAX);
            return Lookup::Known(Outcome::NoSuchName { ttl });
        }
        if let Some(outcome) = self.known(now, name, exists) {
            return Lookup::Known(outcome);
        }
        if let Some(asked) = self.asked.get_mut(name) {
            asked.deadline.get_or_insert(now + PATIENCE);
            // The same question once more is answered once.
            if asked.waiting.contains(&waiter) || asked.waiting.len() >= MAX_WAITING {
                return Lookup::Dropped;
            }
            asked.waiting.push(waiter);
            return Lookup::Waits;
        }
        if !self.connected || self.asked.len() >= MAX_ASKED || !self.budget.take(now) {
            return Lookup::Known(Outcome::Failed);
        }
        self.to_ask.push_back(name.to_owned());
        let asked = Asked { sent: false, waiting: vec![waiter], deadline: Some(now + PATIENCE) };
        self.asked.insert(name.to_owned(), asked);
        Lookup::Waits
    }

    /// The next name that the client is to be asked for.
    pub(crate) fn poll_question(&mut self) -> Option<HostName> {
        while let Some(name) = self.to_ask.pop_front() {
            if let Some(asked) = self.asked.get_mut(&name)
                && let Ok(host) = HostName::new(&name)
            {
                asked.sent = true;
                return Some(host);
            }
        }
        None
    }

    /// The client's answer to a question of [`poll_question`](Self::poll_question), or that it could not be asked.
    pub(crate) fn answer(&mut self, now: Instant, name: &str, outcome: Outcome) {
        let Some(asked) = self.asked.remove(name) else { return };
        let outcome = match outcome {
            Outcome::Address { address, ttl } => {
                let ttl = ttl.clamp(*TTL.start(), *TTL.end());
                self.keep(now, name, Some(address), Duration::from_secs(ttl.into()));
                Outcome::Address { address, ttl }
            }
            Outcome::NoSuchName { .. } => {
                self.keep(now, name, None, NEGATIVE);
                Outcome::NoSuchName { ttl: u32::try_from(NEGATIVE.as_secs()).unwrap_or(u32::MAX) }
            }
            Outcome::Failed => Outcome::Failed,
            Outcome::Refused => Outcome::Refused,
        };
        // A domain that went meanwhile takes its names with it.
        let outcome = if self.domain_of(name).is_some() { outcome } else { Outcome::Refused };
        self.drop_orphans();
        self.answered.extend(asked.waiting.into_iter().map(|waiter| (waiter, outcome)));
    }

    /// Who has waited, and for what.
    pub(crate) fn poll_answer(&mut self) -> Option<(W, Outcome)> {
        self.answered.pop_front()
    }

    /// The names by which an address was found, at most `most`.
    pub(crate) fn names_of(&self, address: IpAddr, most: usize) -> Vec<&str> {
        let of = self.kept.iter().filter(|(_, kept)| kept.address == Some(address));
        of.map(|(name, _)| name.as_str()).take(most).collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let asked = self.asked.values().filter_map(|asked| asked.deadline);
        asked.chain(self.domains.values().filter_map(|domain| domain.end())).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.expire(now);
        for asked in self.asked.values_mut() {
            if asked.deadline.is_some_and(|deadline| deadline <= now) {
                asked.deadline = None;
                self.answered.extend(asked.waiting.drain(..).map(|waiter| (waiter, Outcome::Failed)));
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.kept.len()
    }

    fn known(&mut self, now: Instant, name: &str, exists: impl Fn(IpAddr) -> bool) -> Option<Outcome> {
        let kept = *self.kept.get(name)?;
        if kept.address.is_some_and(|address| !exists(address)) || (kept.until <= now && self.connected) {
            self.kept.remove(name);
            return None;
        }
        // Nobody can be asked again while the tunnel is away, so what was true is said for a short while each time.
        let left = kept.until.saturating_duration_since(now).as_secs();
        let ttl = u32::try_from(left).unwrap_or(u32::MAX);
        Some(match kept.address {
            Some(address) => Outcome::Address { address, ttl: ttl.max(*TTL.start()) },
            None => Outcome::NoSuchName { ttl: ttl.max(1) },
        })
    }

    fn keep(&mut self, now: Instant, name: &str, address: Option<IpAddr>, time: Duration) {
        if self.kept.len() >= MAX_KEPT {
            self.kept.retain(|_, kept| kept.until > now);
        }
        if self.kept.len() >= MAX_KEPT
            && let Some(first) =
                self.kept.iter().min_by_key(|(_, kept)| kept.until).map(|(name, _)| name.clone())
        {
            self.kept.remove(&first);
        }
        self.kept.insert(name.to_owned(), Kept { address, until: now + time });
    }

    fn expire(&mut self, now: Instant) {
        if self.domains.values().any(|domain| domain.end().is_some_and(|end| end <= now)) {
            self.drop_domains(|domain| domain.end().is_none_or(|end| end > now));
        }
    }

    fn drop_domains(&mut self, stays: impl Fn(Domain) -> bool) {
        self.domains.retain(|_, domain| stays(*domain));
        self.drop_orphans();
    }

    /// Forgets what is in no domain any more. A question that is out stays, empty, since its answer will come.
    fn drop_orphans(&mut self) {
        let Self { domains, kept, asked, answered, .. } = self;
        let is_in_one = |name: &String| domains.keys().any(|domain| is_under(name, domain));
        kept.retain(|name, _| is_in_one(name));
        asked.retain(|name, asked| {
            if is_in_one(name) {
                return true;
            }
            asked.deadline = None;
            answered.extend(asked.waiting.drain(..).map(|waiter| (waiter, Outcome::Refused)));
            asked.sent
        });
    }
}

/// Whether a name may be a host's of the user's side.
fn is_askable(name: &str) -> bool {
    HostName::new(name).is_ok_and(|host| {
        // An underscore is a service's or a policy's (RFC 8552). Traps are asked for by the guest itself, of whoever is there.
        host.labels().all(|label| !label.starts_with('_')) && !domain::is_trap(name)
    })
}
