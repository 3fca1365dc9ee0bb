//! Finds what could be shared: printers above all, but also scanners, NAS, web interfaces, on the user's network and on the user's own machine.
//!
//! | question | look at |
//! | --- | --- |
//! | how is it used | [`Discovery`], [`DiscoverConfig`] |
//! | what is found | [`Device`], [`Service`], [`Update`] |
//! | how does it go | [`Status`] |
//! | what of it is shared | [`policy`], [`Sharer`] |
//! | what makes sightings devices, and who is who | [`merge`] |
//! | how is text of the network made harmless | [`clean`] |
//! | which network is this | [`NetworkId`] |
//! | how is a source plugged in | `outlet` |
//!
//! ```text
//!  dns_sd ────────┐
//!  unicast_dns_sd ┼─ Outlet ── one bounded channel ──▶ merge ──▶ Discovery::next
//!  local, … ──────┘◀──────────── Ask ────────────────── doubt, woke, network changed
//! ```
//!
//! Sources are tasks, and each is started again when it ends. Everything else happens within [`Discovery::next`]: who does not call it makes the
//! sources wait.

mod announced;
mod by_hand;
pub mod clean;
mod config;
mod device;
mod device_id;
mod dns_sd;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod http;
mod interfaces;
mod listen;
mod local;
mod location;
pub mod merge;
mod network_id;
mod outlet;
pub mod policy;
mod printing;
mod rounds;
mod sharer;
mod sighting;
mod snmp;
mod sockets;
mod ssdp;
mod supervise;
mod tasks;
mod text;
mod unicast_dns_sd;
mod ws_discovery;
mod xml;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use spice_proto::service_info::Identity;
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use self::{
    merge::{LeftOut, Limits, Merge, Surroundings},
    outlet::{Ask, Outlet, SourceEvent},
    supervise::supervise,
};
use crate::network::Watcher;

pub use self::{
    by_hand::complete,
    config::{DiscoverConfig, DnsSdConfig, LocalConfig, UnicastDnsSdConfig},
    device::{Device, MAX_ADDRESSES, MAX_SERVICES, Service, ServiceClass, Source, Standing, Update},
    interfaces::{InterfaceError, InterfaceFilter, Network},
    network_id::{MAX_NETWORK_ID, NetworkId},
    outlet::SourceError,
    policy::Policy,
    sharer::{Change, MAX_DISCOVERED, Notice, Sharer, Verdict},
    sighting::{MAX_KEY, Sighting, SightingEvent, SightingKey},
    snmp::SnmpConfig,
    ssdp::SsdpConfig,
    text::{MAX_SERIAL, MAX_TEXT, Mac, Serial, Text, Uuid},
    ws_discovery::WsDiscoveryConfig,
};

/// Events between the sources and the merge.
const EVENTS: usize = 256;
/// Questions that a slow source may leave unread.
const ASKS: usize = 16;
/// Between two looks at the machine's interfaces.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The same while the network is not known yet: devices may wait for it.
const LOOK_SOON: Duration = Duration::from_millis(300);
/// How often the network's router is looked for before it is taken that there is none.
const ROUTER_LOOKS: u32 = 10;

/// Looks for devices until it is dropped.
///
/// | family | members |
/// | --- | --- |
/// | what happens | [`next`](Self::next) |
/// | getters | [`status`](Self::status), [`watch`](Self::watch), [`device`](Self::device), [`devices`](Self::devices) |
/// | commands | [`doubt`](Self::doubt), [`look_again`](Self::look_again), [`accept`](Self::accept), [`shutdown`](Self::shutdown) |
#[derive(Debug)]
pub struct Discovery {
    merge: Merge,
    events: mpsc::Receiver<SourceEvent>,
    /// Kept so that there may be no source.
    #[cfg_attr(not(test), expect(dead_code, reason = "keeps the channel open"))]
    sender: mpsc::Sender<SourceEvent>,
    asks: broadcast::Sender<Ask>,
    tasks: JoinSet<()>,
    status: watch::Sender<Status>,
    around: Around,
    over: bool,
}

/// How discovery goes. Kept up to date while [`Discovery::next`] is awaited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The sources that are on.
    pub sources: BTreeMap<Source, SourceStatus>,
    /// What was left out because too much is there.
    pub left_out: LeftOut,
    /// Which network this is, if that is known.
    pub network: Option<NetworkId>,
}

/// How a source is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it does.
    pub state: SourceState,
    /// How many devices it sees.
    pub found: usize,
}

/// What a source does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It has not begun to look yet.
    Starting,
    /// It looks round for the first time.
    Looking,
    /// It has looked round once, and goes on.
    LookedRound,
    /// It cannot look.
    Failed {
        /// Why.
        why: String,
        /// When it will be tried again.
        again_in: Duration,
    },
}

/// What is known of this machine's place.
struct Around {
    filter: InterfaceFilter,
    /// The user says which network this is.
    chosen: bool,
    network: Option<NetworkId>,
    surroundings: Surroundings,
    next: Instant,
    looks: u32,
    sleep: Watcher,
}

impl std::fmt::Debug for Around {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Around").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Discovery {
    /// Begins to look. Must be called within a Tokio runtime with time and I/O enabled.
    pub fn start(config: DiscoverConfig) -> Discovery {
        let (sender, events) = mpsc::channel(EVENTS);
        let (asks, _) = broadcast::channel(ASKS);
        let around = Around::new(config.interfaces.clone(), config.network.clone());
        let mut tasks = JoinSet::new();
        let mut on = BTreeSet::new();
        let mut begin = |source: Source| {
            on.insert(source);
            (sender.clone(), asks.clone())
        };
        let filter = &config.interfaces;
        if let Some(config) = config.dns_sd {
            let (sender, asks) = begin(Source::DnsSd);
            let filter = filter.clone();
            tasks.spawn(supervise(Source::DnsSd, sender, asks, move |outlet: Outlet| {
                let (config, filter) = (config.clone(), filter.clone());
                async move { dns_sd::run(config, &filter, outlet).await }
            }));
        }
        if let Some(config) = config.snmp {
            let (sender, asks) = begin(Source::Snmp);
            let filter = filter.clone();
            tasks.spawn(supervise(Source::Snmp, sender, asks, move |outlet: Outlet| {
                let (config, filter) = (config.clone(), filter.clone());
                async move { snmp::run(config, &filter, outlet).await }
            }));
        }
        if let Some(config) = config.ssdp {
            let (sender, asks) = begin(Source::Ssdp);
            let filter = filter.clone();
            tasks.spawn(supervise(Source::Ssdp, sender, asks, move |outlet: Outlet| {
                let (config, filter) = (config.clone(), filter.clone());
                async move { ssdp::run(config, &filter, outlet).await }
            }));
        }
        if let Some(config) = config.ws_discovery {
            let (sender, asks) = begin(Source::WsDiscovery);
            let filter = filter.clone();
            tasks.spawn(supervise(Source::WsDiscovery, sender, asks, move |outlet: Outlet| {
                let (config, filter) = (config.clone(), filter.clone());
                async move { ws_discovery::run(config, &filter, outlet).await }
            }));
        }
        if let Some(config) = config.unicast_dns_sd {
            let (sender, asks) = begin(Source::UnicastDnsSd);
            let run = move |outlet: Outlet| unicast_dns_sd::run(config.clone(), outlet);
            tasks.spawn(supervise(Source::UnicastDnsSd, sender, asks, run));
        }
        if let Some(config) = config.local {
            let (sender, asks) = begin(Source::Local);
            let run = move |outlet: Outlet| local::run(config.clone(), outlet);
            tasks.spawn(supervise(Source::Local, sender, asks, run));
        }
        let first_rounds: BTreeSet<Source> =
            on.iter().copied().filter(|source| *source == Source::DnsSd).collect();
        let merge = Merge::new(
            Instant::now().into_std(),
            Limits::default(),
            around.network.clone(),
            around.surroundings.clone(),
            first_rounds,
        );
        let starting = SourceStatus { state: SourceState::Starting, found: 0 };
        let sources = on.into_iter().map(|source| (source, starting.clone())).collect();
        let network = around.network.clone();
        let (status, _) = watch::channel(Status { sources, left_out: LeftOut::default(), network });
        Discovery { merge, events, sender, asks, tasks, status, around, over: false }
    }

    /// What becomes of a device. `None` only after [`shutdown`](Self::shutdown).
    ///
    /// Cancel safe: what was not told is told by the next call.
    pub async fn next(&mut self) -> Option<Update> {
        while !self.over {
            let now = Instant::now();
            if let Some(update) = self.merge.poll_update(now.into_std()) {
                self.publish();
                return Some(update);
            }
            self.publish();
            let timeout = self.merge.poll_timeout().map(Instant::from_std);
            let timer = async {
                match timeout {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                () = timer => {}
                () = sleep_until(self.around.next) => self.look_around(),
                change = self.around.sleep.changed() => {
                    debug!(?change, "the machine woke: looking again");
                    self.look_again();
                    self.look_around();
                }
            }
        }
        None
    }

    /// How it goes, as of the last [`next`](Self::next).
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows how it goes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The device of this identity, if it was found and not lost.
    pub fn device(&self, identity: &Identity) -> Option<&Device> {
        self.merge.device(identity)
    }

    /// The devices that were found and not lost.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.merge.devices()
    }

    /// A device could not be reached: is it still there? If not, it is lost within seconds.
    pub fn doubt(&self, identity: &Identity) {
        let keys = self.merge.sightings_of(identity);
        let addresses = self.merge.device(identity).map(|device| device.addresses.clone());
        if let Some(addresses) = addresses {
            self.ask(Ask::Verify { keys, addresses });
        }
    }

    /// Looks round again, as if just started, and forgets nothing.
    pub fn look_again(&self) {
        self.ask(Ask::LookAgain);
    }

    /// A device that has [moved](Standing::Moved) is the right one, says the user.
    pub fn accept(&mut self, identity: &Identity) {
        self.merge.accept(Instant::now().into_std(), identity);
    }

    /// Stops looking. Dropping does it as well.
    pub fn shutdown(&mut self) {
        self.over = true;
        self.tasks.abort_all();
    }

    fn ask(&self, ask: Ask) {
        // Fails if there is no source.
        let _ = self.asks.send(ask);
    }

    fn handle(&mut self, event: SourceEvent) {
        let now = Instant::now().into_std();
        let (source, state) = match event {
            SourceEvent::Sighting(sighting) => return self.merge.handle_event(now, sighting),
            SourceEvent::Started { source, again } => {
                if again {
                    self.merge.handle_restart(now, source);
                }
                (source, SourceState::Starting)
            }
            SourceEvent::Looking { source } => (source, SourceState::Looking),
            SourceEvent::LookedRound { source } => {
                self.merge.handle_round(now, source);
                (source, SourceState::LookedRound)
            }
            SourceEvent::Failed { source, why, again_in } => {
                // Nobody waits for it.
                self.merge.handle_round(now, source);
                (source, SourceState::Failed { why, again_in })
            }
        };
        self.status.send_if_modified(|status| {
            let Some(known) = status.sources.get_mut(&source) else { return false };
            let changed = known.state != state;
            known.state = state;
            changed
        });
    }

    fn publish(&mut self) {
        self.status.send_if_modified(|status| {
            let before = (status.left_out, status.network.clone());
            status.left_out = self.merge.left_out();
            status.network.clone_from(&self.around.network);
            let mut changed = before != (status.left_out, status.network.clone());
            for (source, known) in &mut status.sources {
                let found = self.merge.seen_by(*source);
                changed |= found != known.found;
                known.found = found;
            }
            changed
        });
    }

    fn look_around(&mut self) {
        let (network, surroundings) = (self.around.network.clone(), self.around.surroundings.clone());
        self.around.look();
        if self.around.network != network {
            info!(network = ?self.around.network, "the network is another");
            self.merge.set_network(self.around.network.clone());
        }
        if self.around.surroundings != surroundings {
            debug!("the machine's interfaces changed: looking again");
            self.merge.set_surroundings(Instant::now().into_std(), self.around.surroundings.clone());
            self.look_again();
        }
    }
}

impl Around {
    fn new(filter: InterfaceFilter, chosen: Option<NetworkId>) -> Around {
        let mut around = Around {
            filter,
            chosen: chosen.is_some(),
            network: chosen,
            surroundings: Surroundings::default(),
            next: Instant::now(),
            looks: 0,
            sleep: Watcher::new(true),
        };
        around.look();
        around
    }

    fn look(&mut self) {
        let mut surroundings = Surroundings::default();
        match interfaces::own_addresses() {
            Ok(own) => surroundings.own = own,
            // What was known is better than nothing: own addresses must not be taken for a device's.
            Err(error) => {
                debug!(%error, "cannot see the machine's addresses");
                surroundings.own.clone_from(&self.surroundings.own);
            }
        }
        if let Ok(interfaces) = interfaces::interfaces(&self.filter) {
            surroundings.networks = interfaces.iter().map(|interface| interface.network).collect();
        }
        if surroundings != self.surroundings {
            self.looks = 0;
        }
        self.surroundings = surroundings;
        if !self.chosen {
            // A router that does not answer for a while is still the router.
            match NetworkId::of_this_machine() {
                Some(network) => self.network = Some(network),
                None => network_id::default_gateway_of_this_machine().into_iter().for_each(call_upon),
            }
        }
        self.looks = self.looks.saturating_add(1);
        let soon = self.network.is_none() && self.looks < ROUTER_LOOKS;
        self.next = Instant::now() + if soon { LOOK_SOON } else { LOOK_EVERY };
    }
}

/// Makes the kernel ask for the hardware address of a neighbour: by an empty datagram to a port where nobody answers (RFC 863).
fn call_upon(neighbour: Ipv4Addr) {
    const DISCARD: u16 = 9;
    let send = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&[], (IpAddr::V4(neighbour), DISCARD));
    if let Err(error) = send() {
        debug!(%error, "cannot call upon the router");
    }
}

#[cfg(test)]
mod tests;
