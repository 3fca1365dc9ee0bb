//! What the sources do that listen for announcements: SSDP and WS-Discovery. The messages are theirs; when to ask, whom to believe, and
//! sockets are here.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::announced::{Announced, Key, Order};
use super::interfaces::{Interface, InterfaceFilter, Network, interfaces};
use super::outlet::{Ask, Outlet, SourceError};
use super::printing::Ways;
use super::rounds::Rounds;
use super::sighting::Sighting;
use super::sockets::Sockets;
use super::tasks::Tasks;

/// Most packets that wait to be sent.
const MOST_TO_SEND: usize = 1024;

/// A protocol of announcements: its messages, without sockets and clocks.
pub(crate) trait Protocol {
    /// Where a device says that its description is.
    type Place: Clone + PartialEq + Send + 'static;
    /// Between two rounds, but the first.
    const ROUND: Duration;
    /// Longest packet, bytes.
    const LONGEST: usize;
    /// Where devices announce themselves.
    const GROUPS: &'static [SocketAddr];

    /// What is asked in a round from our address `own`, and of whom.
    fn questions(&mut self, own: IpAddr) -> Vec<(SocketAddr, Vec<u8>)>;

    /// What a packet means, which is not much: the sender is in the network of our address `own`, and nothing else is sure.
    fn hear(&mut self, own: IpAddr, from: SocketAddr, bytes: &[u8]) -> Vec<Heard<Self::Place>>;
}

/// What a packet means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard<P> {
    /// A device is there.
    Alive {
        /// Which.
        key: Key,
        /// Where its description is.
        place: P,
        /// For how long it is.
        life: Duration,
    },
    /// A device goes.
    Bye(Key),
    /// More is to be asked.
    Ask {
        /// Of whom.
        to: SocketAddr,
        /// In these words.
        bytes: Vec<u8>,
    },
}

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transmit {
    /// From this address of ours.
    pub(crate) from: IpAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// A protocol at work, without sockets. Drain [`poll_transmit`](Self::poll_transmit) and [`poll_order`](Self::poll_order) after each
/// `handle_*` and command, then wait until [`poll_timeout`](Self::poll_timeout).
pub(crate) struct Listener<P: Protocol> {
    protocol: P,
    networks: Vec<Network>,
    rounds: Rounds,
    announced: Announced<P::Place>,
    transmits: VecDeque<Transmit>,
}

impl<P: Protocol> Listener<P> {
    pub(crate) fn new(protocol: P, networks: Vec<Network>, now: Instant) -> Self {
        let mut listener = Listener {
            protocol,
            networks,
            rounds: Rounds::new(P::ROUND, now),
            announced: Announced::default(),
            transmits: VecDeque::new(),
        };
        listener.handle_timeout(now);
        listener
    }

    /// The machine's networks are these now, or it woke: looks again from the start.
    pub(crate) fn look_again(&mut self, networks: Vec<Network>, now: Instant) {
        self.announced.retain(|address| networks.iter().any(|network| network.holds(address)));
        self.networks = networks;
        self.transmits.clear();
        self.rounds.again(now);
        self.handle_timeout(now);
    }

    /// Somebody could not reach it: is it there?
    pub(crate) fn verify(&mut self, address: IpAddr, now: Instant) {
        self.announced.doubt(address, now);
        self.rounds.again(now);
        self.handle_timeout(now);
    }

    /// A packet that came to our address `own`.
    pub(crate) fn handle_packet(&mut self, own: IpAddr, from: SocketAddr, bytes: &[u8], now: Instant) {
        let there = |network: &Network| network.address == own && network.holds(from.ip());
        let ours = self.networks.iter().any(|network| network.address == from.ip());
        if ours || bytes.len() > P::LONGEST || !self.networks.iter().any(there) {
            return;
        }
        for heard in self.protocol.hear(own, from, bytes) {
            match heard {
                Heard::Alive { key, place, life } => self.announced.alive(key, place, life, now),
                Heard::Bye(key) => self.announced.bye(&key),
                Heard::Ask { to, bytes } => self.send(own, to, bytes),
            }
        }
        self.handle_timeout(now);
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if !self.rounds.begin(now) {
            return;
        }
        let owns: Vec<IpAddr> = self.networks.iter().map(|network| network.address).collect();
        for own in owns {
            for (to, bytes) in self.protocol.questions(own) {
                self.send(own, to, bytes);
            }
        }
    }

    /// What became of asking for a description. `false`: the device went meanwhile.
    pub(crate) fn described(&mut self, key: &Key, had: bool, now: Instant) -> bool {
        if had {
            return self.announced.described(key, now);
        }
        self.announced.failed(key, now);
        false
    }

    /// Whether the first look round is over; said once.
    pub(crate) fn looked_round(&mut self, busy: bool, now: Instant) -> bool {
        self.rounds.looked_round(busy, now)
    }

    /// To be sent next.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// To be done next.
    pub(crate) fn poll_order(&mut self, now: Instant) -> Option<Order<P::Place>> {
        self.announced.poll(now)
    }

    /// When there is something to do. `busy`: descriptions are being asked for.
    pub(crate) fn poll_timeout(&self, busy: bool) -> Instant {
        let round = self.rounds.deadline(busy);
        self.announced.poll_timeout().map_or(round, |due| due.min(round))
    }

    fn send(&mut self, from: IpAddr, to: SocketAddr, bytes: Vec<u8>) {
        // A flood that makes us ask is cut here.
        if self.transmits.len() < MOST_TO_SEND {
            self.transmits.push_back(Transmit { from, to, bytes });
        }
    }
}

/// What one description tells: how the device can be printed to, which is remembered, and what is told of it.
pub(crate) type Described = (Ways, Sighting);

/// Looks until it is dropped, or cannot go on. `describe` finds out more of a device, knowing how it could be printed to before.
pub(crate) async fn run<P, F>(
    protocol: P,
    describe: impl Fn(Key, P::Place, Ways) -> F,
    filter: &InterfaceFilter,
    outlet: Outlet,
) -> SourceError
where
    P: Protocol,
    F: Future<Output = Option<Described>> + Send + 'static,
{
    match look(protocol, describe, filter, outlet).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn look<P, F>(
    protocol: P,
    describe: impl Fn(Key, P::Place, Ways) -> F,
    filter: &InterfaceFilter,
    mut outlet: Outlet,
) -> Result<std::convert::Infallible, SourceError>
where
    P: Protocol,
    F: Future<Output = Option<Described>> + Send + 'static,
{
    let first = places::<P>(filter)?;
    let mut sockets = open::<P>(&first)?;
    let mut listener = Listener::new(protocol, networks(&first), Instant::now());
    let mut tasks: Tasks<Key, Option<Described>> = Tasks::default();
    let mut known: BTreeMap<Key, Ways> = BTreeMap::new();
    let mut buffer = vec![0; P::LONGEST + 1];
    let mut looking = false;
    loop {
        let now = Instant::now();
        while let Some(order) = listener.poll_order(now) {
            match order {
                Order::Describe(key, place) => {
                    let before = known.get(&key).cloned().unwrap_or_default();
                    tasks.begin(key.clone(), describe(key, place, before));
                }
                Order::Gone(key) => {
                    tasks.forget(&key);
                    known.remove(&key);
                    outlet.gone(&key.sighting_id()).await;
                }
            }
        }
        while let Some(packet) = listener.poll_transmit() {
            sockets.send(packet.from, packet.to, &packet.bytes).await;
        }
        if !std::mem::replace(&mut looking, true) {
            outlet.looking().await;
        }
        if listener.looked_round(!tasks.is_empty(), now) {
            outlet.looked_round().await;
        }
        let next = listener.poll_timeout(!tasks.is_empty());
        tokio::select! {
            packet = sockets.receive(&mut buffer) => {
                let packet = packet?;
                let bytes = buffer.get(..packet.length).unwrap_or_default();
                listener.handle_packet(packet.own, packet.from, bytes, Instant::now());
            }
            (key, described) = tasks.next() => {
                if listener.described(&key, described.is_some(), Instant::now())
                    && let Some((ways, sighting)) = described
                {
                    known.insert(key, ways);
                    outlet.seen(sighting).await;
                }
            }
            ask = outlet.asked() => match ask {
                Ask::Verify { addresses, .. } => {
                    for address in addresses {
                        listener.verify(address, Instant::now());
                    }
                }
                Ask::LookAgain => {
                    let places = places::<P>(filter)?;
                    sockets = open::<P>(&places)?;
                    listener.look_again(networks(&places), Instant::now());
                }
            },
            () = tokio::time::sleep_until(next.into()) => {}
        }
        listener.handle_timeout(Instant::now());
    }
}

/// Where one can ask: networks of a version of IP that has a group. What is meaningful on one cable only cannot be shared
/// (see `resolve::Class`), so nobody is asked from there.
fn places<P: Protocol>(filter: &InterfaceFilter) -> Result<Vec<Interface>, SourceError> {
    let mut places = interfaces(filter)?;
    places.retain(|place| {
        let address = place.network.address;
        let local = matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
        !local && P::GROUPS.iter().any(|group| group.is_ipv4() == address.is_ipv4())
    });
    if places.is_empty() { Err(SourceError::NoInterface) } else { Ok(places) }
}

fn networks(places: &[Interface]) -> Vec<Network> {
    places.iter().map(|place| place.network).collect()
}

fn open<P: Protocol>(places: &[Interface]) -> Result<Sockets, SourceError> {
    let mut sockets = Sockets::open(places)?;
    for group in P::GROUPS {
        if places.iter().any(|place| place.network.address.is_ipv4() == group.is_ipv4())
            && let Err(error) = sockets.listen(*group)
        {
            // Another program has the port for itself. Who is asked answers nevertheless.
            tracing::debug!("announcements to {group} are not heard: {error}");
        }
    }
    Ok(sockets)
}
