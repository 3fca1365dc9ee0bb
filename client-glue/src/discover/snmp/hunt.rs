//! Which printers there are, by SNMP: the part without sockets.
//!
//! Every network is asked by broadcast, "what kind of device are you?", in every version and with every community that is
//! configured; a few times at first, since any packet may be lost, then once a minute. Who answers "a printer" is asked for the rest, an object a
//! packet as CUPS does, because version 1 refuses a whole packet for one object that it does not know. A printer that has
//! told what it had to tell is an event, and so is one that has not been heard for long.
//!
//! ```text
//!            answers the broadcast            a place is free        all answered, or time is up
//!  (unknown) ───────────────────▶ Waiting ──────────────────▶ Asking ───────────────────────────▶ Known
//!                                    ▲                          │ nothing at all was said            │
//!                                    │                          ▼                                    │
//!                                    │                      (unknown)       from time to time, or    │
//!                                    └────────────── somebody could not reach it ◀───────────────────┘
//! ```
//!
//! Anybody on a network may answer, and under any address of it: so the devices are counted, few are asked at the same time,
//! and an answer counts only if it comes from the agent's port, from an address of the network that was asked, with the
//! number, version, community and object of a question to that address.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::codec::{self, Answer, SnmpVersion, Value};
use super::objects::{Facts, Object, PRINTER};
use crate::discover::interfaces::Interface;
use crate::discover::rounds::Rounds;

/// Where agents listen.
const PORT: u16 = 161;
/// Between two rounds, but the first.
const ROUND: Duration = Duration::from_secs(60);
/// How long answers are waited for until the questions that have none are repeated, and at the last until it is over.
const REPEATS: [Duration; 3] =
    [Duration::from_millis(1500), Duration::from_millis(2500), Duration::from_millis(3500)];
/// A printer that was silent for so long, which is more than three rounds, is gone.
const SILENCE: Duration = Duration::from_secs(200);
/// A printer is asked everything again, since another one may stand at its address.
const REFRESH: Duration = Duration::from_secs(300);
/// Most printers.
pub(super) const MAX_HOSTS: usize = 256;
/// Most printers that are asked at the same time.
const MAX_ASKED: usize = 16;
/// Most communities.
pub(super) const MAX_COMMUNITIES: usize = 8;

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transmit {
    /// From the interface with this address.
    pub(super) from: IpAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HuntEvent {
    /// A printer, or more or other things of one.
    Printer {
        address: IpAddr,
        facts: Facts,
    },
    Gone(IpAddr),
    /// Whoever answers in ordinary time has answered.
    LookedRound,
}

/// The hunt. Drain [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event) after each `handle_*` and
/// command, then wait until [`poll_timeout`](Self::poll_timeout).
pub(super) struct Hunt {
    /// INVARIANT: not empty, at most twice [`MAX_COMMUNITIES`].
    ways: Vec<(SnmpVersion, Vec<u8>)>,
    networks: Vec<Interface>,
    /// The number of a broadcast is this and the index of its way.
    round_id: u32,
    next_id: u32,
    rounds: Rounds,
    /// INVARIANT: at most [`MAX_HOSTS`].
    hosts: BTreeMap<IpAddr, Host>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<HuntEvent>,
}

struct Host {
    /// Our address there.
    from: IpAddr,
    /// How it answered first.
    way: usize,
    heard: Instant,
    state: State,
    /// It was told of.
    told: bool,
}

enum State {
    Waiting {
        doubted: bool,
    },
    Asking {
        /// When that is to be thought of again.
        due: Instant,
        /// How often the questions were repeated.
        repeated: usize,
        /// The number of the first question; that of the others follow in their order.
        first_id: u32,
        /// Of [`Object::FACTS`], in their order.
        answered: [bool; Object::FACTS.len()],
        facts: Facts,
        doubted: bool,
    },
    Known {
        until: Instant,
    },
}

impl Hunt {
    /// `seed`: something random, so that answers to others' questions do not pass for ours.
    pub(super) fn new(communities: &[Vec<u8>], seed: u32, networks: Vec<Interface>, now: Instant) -> Self {
        let communities = communities.iter().take(MAX_COMMUNITIES);
        let ways = communities.flat_map(|community| {
            [(SnmpVersion::V1, community.clone()), (SnmpVersion::V2c, community.clone())]
        });
        let mut hunt = Hunt {
            ways: ways.collect(),
            networks,
            round_id: seed,
            next_id: seed.wrapping_add(64),
            rounds: Rounds::new(ROUND, now),
            hosts: BTreeMap::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        hunt.handle_timeout(now);
        hunt
    }

    /// The machine's networks are these now, or it woke: looks again from the start.
    pub(super) fn look_again(&mut self, networks: Vec<Interface>, now: Instant) {
        self.networks = networks;
        self.transmits.clear();
        let networks = &self.networks;
        let events = &mut self.events;
        self.hosts.retain(|address, host| {
            let stays = networks
                .iter()
                .any(|place| place.network.address == host.from && place.network.holds(*address));
            if !stays && host.told {
                events.push_back(HuntEvent::Gone(*address));
            }
            stays
        });
        self.rounds.again(now);
        self.handle_timeout(now);
    }

    /// Somebody could not reach it: is it there?
    pub(super) fn verify(&mut self, address: IpAddr, now: Instant) {
        if let Some(host) = self.hosts.get_mut(&address)
            && let State::Known { .. } = host.state
        {
            host.state = State::Waiting { doubted: true };
            self.handle_timeout(now);
        }
    }

    /// A packet that came to our address `own`.
    pub(super) fn handle_packet(&mut self, own: IpAddr, from: SocketAddr, bytes: &[u8], now: Instant) {
        let address = from.ip();
        let there = |place: &Interface| place.network.address == own && place.network.holds(address);
        // Nor can a device be everybody.
        let ours = self.networks.iter().any(|place| {
            place.network.address == address || place.broadcast.map(IpAddr::V4) == Some(address)
        });
        if from.port() != PORT || ours || !self.networks.iter().any(there) {
            return;
        }
        let Ok(answer) = codec::answer(bytes) else {
            tracing::trace!("something else than SNMP from an agent's port");
            return;
        };
        let number = u32::from_be_bytes(answer.id.to_be_bytes());
        let way = self
            .ways
            .iter()
            .position(|(version, community)| *version == answer.version && *community == answer.community);
        let Some(way) = way else { return };
        if (0..).zip(&self.ways).any(|(index, _)| id(self.round_id, index) == number) {
            self.handle_round(own, address, way, number, &answer, now);
        } else {
            self.handle_fact(address, way, number, answer, now);
        }
        self.handle_timeout(now);
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.rounds.begin(now) {
            self.ask_everybody();
        }
        let addresses: Vec<IpAddr> = self.hosts.keys().copied().collect();
        for address in &addresses {
            self.step(*address, now);
        }
        for address in addresses {
            self.begin(address, now);
        }
        self.let_go(now);
        if self.rounds.looked_round(self.is_asking(), now) {
            self.events.push_back(HuntEvent::LookedRound);
        }
    }

    /// To be sent next.
    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What was found out next.
    pub(super) fn poll_event(&mut self) -> Option<HuntEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Instant {
        let hosts = self.hosts.values().filter_map(|host| match &host.state {
            State::Waiting { .. } => None,
            State::Asking { due, .. } => Some(*due),
            State::Known { until } => Some((*until).min(host.heard + SILENCE)),
        });
        hosts.fold(self.rounds.deadline(self.is_asking()), Instant::min)
    }

    fn ask_everybody(&mut self) {
        for place in &self.networks {
            let Some(broadcast) = place.broadcast else { continue };
            let from = place.network.address;
            for (index, (version, community)) in (0..).zip(&self.ways) {
                let to = SocketAddr::from((broadcast, PORT));
                let number = signed(id(self.round_id, index));
                let bytes = codec::request(*version, community, number, Object::DeviceType.name());
                self.transmits.extend(bytes.map(|bytes| Transmit { from, to, bytes }));
            }
        }
        // Some do not answer broadcasts while they sleep.
        for (address, host) in &self.hosts {
            let Some((version, community)) = self.ways.get(host.way) else { continue };
            let number = signed(id(self.round_id, host.way));
            let bytes = codec::request(*version, community, number, Object::DeviceType.name());
            let to = SocketAddr::from((*address, PORT));
            self.transmits.extend(bytes.map(|bytes| Transmit { from: host.from, to, bytes }));
        }
    }

    fn handle_round(
        &mut self,
        own: IpAddr,
        address: IpAddr,
        way: usize,
        number: u32,
        answer: &Answer,
        now: Instant,
    ) {
        let is_printer = answer.variables.iter().any(|(name, value)| {
            name == Object::DeviceType.name() && matches!(value, Some(Value::Name(kind)) if kind == PRINTER)
        });
        if id(self.round_id, way) != number || !is_printer {
            return;
        }
        if let Some(host) = self.hosts.get_mut(&address) {
            host.heard = now;
            return;
        }
        if self.hosts.len() >= MAX_HOSTS {
            tracing::debug!("more than {MAX_HOSTS} printers answer by SNMP: {address} is left out");
            return;
        }
        let state = State::Waiting { doubted: false };
        self.hosts.insert(address, Host { from: own, way, heard: now, state, told: false });
    }

    fn handle_fact(&mut self, address: IpAddr, way: usize, number: u32, answer: Answer, now: Instant) {
        let Some(host) = self.hosts.get_mut(&address).filter(|host| host.way == way) else { return };
        let State::Asking { first_id, answered, facts, .. } = &mut host.state else { return };
        let asked = (0..).zip(Object::FACTS).zip(answered);
        for ((index, object), answered) in asked {
            if id(*first_id, index) != number || *answered {
                continue;
            }
            let Some((_, value)) = answer.variables.into_iter().find(|(name, _)| name == object.name())
            else {
                return;
            };
            *answered = true;
            host.heard = now;
            facts.set(object, value);
            return;
        }
    }

    fn let_go(&mut self, now: Instant) {
        let events = &mut self.events;
        self.hosts.retain(|address, host| {
            let silent = matches!(host.state, State::Known { .. }) && now >= host.heard + SILENCE;
            if silent && host.told {
                events.push_back(HuntEvent::Gone(*address));
            }
            !silent
        });
    }

    /// Asks it, if it waits for that and not too many are being asked.
    fn begin(&mut self, address: IpAddr, now: Instant) {
        let asked = self.hosts.values().filter(|host| matches!(host.state, State::Asking { .. })).count();
        let Some(host) = self.hosts.get_mut(&address) else { return };
        if let State::Waiting { doubted } = host.state
            && asked < MAX_ASKED
        {
            host.state = State::Asking {
                due: now + wait(0),
                repeated: 0,
                first_id: self.next_id,
                answered: Default::default(),
                facts: Facts::default(),
                doubted,
            };
            self.next_id = self.next_id.wrapping_add(16);
            self.ask(address);
        }
    }

    /// What is due with one host.
    fn step(&mut self, address: IpAddr, now: Instant) {
        let Some(host) = self.hosts.get_mut(&address) else { return };
        match &mut host.state {
            State::Waiting { .. } => {}
            State::Asking { due, repeated, answered, facts, doubted, .. } => {
                let over = answered.iter().all(|answered| *answered);
                if !over && now < *due {
                    return;
                }
                if !over && *repeated + 1 < REPEATS.len() {
                    *repeated += 1;
                    *due = now + wait(*repeated);
                    self.ask(address);
                    return;
                }
                let heard = answered.iter().any(|answered| *answered);
                let (facts, doubted) = (std::mem::take(facts), *doubted);
                if heard {
                    host.told = true;
                    host.state = State::Known { until: now + REFRESH };
                    self.events.push_back(HuntEvent::Printer { address, facts });
                } else if host.told && !doubted {
                    // Busy, perhaps. If it stays silent it goes by itself.
                    host.state = State::Known { until: now + REFRESH };
                } else {
                    // It was made up, or is switched off.
                    let told = host.told;
                    self.hosts.remove(&address);
                    if told {
                        self.events.push_back(HuntEvent::Gone(address));
                    }
                }
            }
            State::Known { until } => {
                if now >= *until {
                    host.state = State::Waiting { doubted: false };
                }
            }
        }
    }

    /// Sends what has not been answered.
    fn ask(&mut self, address: IpAddr) {
        let Some(host) = self.hosts.get(&address) else { return };
        let State::Asking { first_id, answered, .. } = &host.state else { return };
        let Some((version, community)) = self.ways.get(host.way) else { return };
        for ((index, object), answered) in (0..).zip(Object::FACTS).zip(answered) {
            if !answered {
                let number = signed(id(*first_id, index));
                let bytes = codec::request(*version, community, number, object.name());
                let to = SocketAddr::from((address, PORT));
                self.transmits.extend(bytes.map(|bytes| Transmit { from: host.from, to, bytes }));
            }
        }
    }

    fn is_asking(&self) -> bool {
        self.hosts.values().any(|host| matches!(host.state, State::Waiting { .. } | State::Asking { .. }))
    }
}

fn wait(repeated: usize) -> Duration {
    REPEATS.get(repeated).copied().unwrap_or_default()
}

/// Agents are known that take a number's sign for something.
fn id(first: u32, index: usize) -> u32 {
    first.wrapping_add(u32::try_from(index).unwrap_or_default()) & 0x7fff_ffff
}

fn signed(number: u32) -> i32 {
    i32::from_be_bytes(number.to_be_bytes())
}

#[cfg(test)]
mod tests;
