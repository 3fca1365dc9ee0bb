//! DNS-SD over multicast DNS (RFC 6762, RFC 6763), by the crate mdns-sd, which does it in a thread of its own.
//!
//! Each type is browsed, and the subtypes that printing clients look for as well: who re-advertises a printer has to know which it has. Port 0
//! says that a protocol is *not* spoken (Bonjour Printing Specification 1.2.1, section 5.1), so that is no service.

mod instances;
mod records;

use std::{collections::BTreeSet, time::Duration};

use mdns_sd::{IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent};
use spice_proto::service_info::ServiceType;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::debug;

pub(super) use self::{
    instances::{Instances, Told},
    records::Found,
};
use super::{
    DnsSdConfig, InterfaceFilter, Sighting, SightingKey, Source, SourceError, interfaces,
    outlet::{Ask, Outlet},
};

/// Types of printers and scanners.
const PRINTERS_AND_SCANNERS: [&str; 7] = [
    "_ipp._tcp",
    "_ipps._tcp",
    "_printer._tcp",
    "_pdl-datastream._tcp",
    "_uscan._tcp",
    "_uscans._tcp",
    "_scanner._tcp",
];
/// Web pages: those of printers and scanners belong to them.
pub(super) const WEB: &str = "_http._tcp";
/// Subtypes that printing clients look for: of AirPrint and of IPP Everywhere.
pub(super) const SUBTYPES: [(&str, &str); 4] = [
    ("_universal", "_ipp._tcp"),
    ("_universal", "_ipps._tcp"),
    ("_print", "_ipp._tcp"),
    ("_print", "_ipps._tcp"),
];

/// When whoever answers in ordinary time has answered: questions go out at once, after 1 s, and after 2 s more.
const ROUND: Duration = Duration::from_millis(2500);
/// How long a service that is doubted may take to answer.
const VERIFY: Duration = Duration::from_secs(5);
/// Between two looks at how much mdns-sd has stored, which sets itself no limit.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// More records than that are no network, but a flood: some twenty for each of a thousand services.
const MAX_RECORDS: i64 = 20_000;
/// Most services that are verified for one question.
const MAX_VERIFIED: usize = 64;
/// After the first sign that an instance is gone, before its type is browsed anew: there are more signs to come.
const SUSPECT: Duration = Duration::from_millis(100);
/// How long mdns-sd may take to tell again what it knows.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Most instances that are suspected at a time.
const MAX_SUSPECTS: usize = 256;
/// Before mdns-sd is told again to end.
const SHUTDOWN_AGAIN: Duration = Duration::from_millis(100);
/// Events between mdns-sd and us, besides those that it holds itself.
const EVENTS: usize = 64;

/// Looks on the user's network.
pub(super) async fn run(config: DnsSdConfig, filter: &InterfaceFilter, outlet: Outlet) -> SourceError {
    match interfaces::interfaces(filter) {
        Ok(interfaces) if interfaces.is_empty() => return SourceError::NoInterface,
        Ok(_) => {}
        Err(error) => return error.into(),
    }
    let filter = filter.clone();
    let browsing = Browsing {
        source: Source::DnsSd,
        on: IfKind::Predicate(IfPredicate::new(move |interface| filter.takes(interface))),
        types: types(&config.types),
        web: config.types.iter().any(|kind| kind.as_str() == WEB),
        adapt: Some,
    };
    browsing.run(outlet).await
}

/// Those of printers and scanners, of web pages, and `others`.
pub(super) fn types(others: &[ServiceType]) -> Vec<ServiceType> {
    let known = PRINTERS_AND_SCANNERS.iter().chain([&WEB]).filter_map(|kind| ServiceType::new(kind).ok());
    let mut types: Vec<ServiceType> = Vec::new();
    for kind in known.chain(others.iter().cloned()) {
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    types
}

/// What to browse, and where.
pub(super) struct Browsing {
    pub(super) source: Source,
    pub(super) on: IfKind,
    pub(super) types: Vec<ServiceType>,
    /// Web pages of anybody, not only of printers and scanners.
    pub(super) web: bool,
    /// What becomes of a sighting before it is told; `None`: nothing that is to be told.
    pub(super) adapt: fn(Sighting) -> Option<Sighting>,
}

enum Never {}

/// The thread of mdns-sd, for as long as this lives.
struct Daemon(ServiceDaemon);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(mdns_sd::Error::Again) = self.0.shutdown() {
            // Its queue is full, and a thread must not be left behind.
            let daemon = self.0.clone();
            std::thread::spawn(move || {
                while let Err(mdns_sd::Error::Again) = daemon.shutdown() {
                    std::thread::sleep(SHUTDOWN_AGAIN);
                }
            });
        }
    }
}

/// What a browse says; `None`: it has ended.
struct Heard {
    browse: usize,
    /// The how manieth time it was begun.
    time: u64,
    event: Option<ServiceEvent>,
}

/// The browses, by their place in `names`.
struct Browses {
    daemon: Daemon,
    names: Vec<String>,
    times: Vec<u64>,
    sender: mpsc::Sender<Heard>,
    listeners: JoinSet<()>,
}

/// Instances that are perhaps gone.
#[derive(Default)]
struct Suspects {
    names: BTreeSet<String>,
    /// When their types are browsed anew, and then, when who was not told again is gone.
    next: Option<(Instant, Step)>,
}

#[derive(Clone, Copy)]
enum Step {
    Browse,
    Remove,
}

impl Browsing {
    /// Goes on until something breaks.
    pub(super) async fn run(self, outlet: Outlet) -> SourceError {
        match self.go(outlet).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn go(self, mut outlet: Outlet) -> Result<Never, SourceError> {
        let daemon = Daemon(ServiceDaemon::new().map_err(failed)?);
        daemon.0.disable_interface(IfKind::All).map_err(failed)?;
        daemon.0.enable_interface(self.on.clone()).map_err(failed)?;
        let mut instances = Instances::new(self.source, self.web, self.adapt);
        let (sender, mut heard) = mpsc::channel::<Heard>(EVENTS);
        let mut browses = Browses::new(daemon, &self.types, sender);
        browses.begin(|_| true)?;
        outlet.looking().await;
        let mut suspects = Suspects::default();
        let mut looked_round = Some(Instant::now() + ROUND);
        let mut measure = Instant::now() + MEASURE_EVERY;
        loop {
            let told = tokio::select! {
                Some(heard) = heard.recv() => match heard.event {
                    Some(event) => self.hear(&mut instances, &mut suspects, event),
                    // It was begun anew.
                    None if browses.times.get(heard.browse) != Some(&heard.time) => Vec::new(),
                    None => {
                        let why = "more multicast DNS came in than can be dealt with".to_owned();
                        return Err(SourceError::Failed(why));
                    }
                },
                ask = outlet.asked() => {
                    match ask {
                        Ask::Verify { keys, .. } => browses.verify(keys.into_iter().filter(|key| key.source == self.source))?,
                        Ask::LookAgain => browses.begin(|_| true)?,
                    }
                    Vec::new()
                }
                step = suspects.step() => match step {
                    Step::Browse => {
                        browses.begin(|name| suspects.names.iter().any(|suspect| suspect.ends_with(&format!(".{name}"))))?;
                        Vec::new()
                    }
                    Step::Remove => {
                        let gone = std::mem::take(&mut suspects.names);
                        gone.iter().flat_map(|name| instances.removed(name)).collect()
                    }
                },
                () = sleep_until(looked_round.unwrap_or(measure)), if looked_round.is_some() => {
                    looked_round = None;
                    outlet.looked_round().await;
                    Vec::new()
                }
                () = sleep_until(measure) => {
                    measure = Instant::now() + MEASURE_EVERY;
                    check_size(&browses.daemon.0).await?;
                    Vec::new()
                }
            };
            for told in told {
                match told {
                    Told::Seen(sighting) => outlet.seen(*sighting).await,
                    Told::Gone(id) => outlet.gone(&id).await,
                }
            }
        }
    }

    fn hear(&self, instances: &mut Instances, suspects: &mut Suspects, event: ServiceEvent) -> Vec<Told> {
        match event {
            ServiceEvent::ServiceResolved(resolved) => {
                let Some((subtype, kind)) = self.browsed(&resolved.ty_domain) else { return Vec::new() };
                let Some(found) = found(&resolved, kind) else { return Vec::new() };
                if subtype.is_none() {
                    suspects.names.remove(&resolved.fullname);
                }
                instances.resolved(&resolved.fullname, found, subtype)
            }
            ServiceEvent::ServiceRemoved(name, fullname) => match self.browsed(&name) {
                Some((None, _)) => instances.removed(&fullname),
                Some((Some(subtype), _)) => {
                    let told = instances.lost_subtype(&fullname, subtype);
                    suspects.add(fullname);
                    told
                }
                None => Vec::new(),
            },
            ServiceEvent::SearchStarted(_)
            | ServiceEvent::ServiceFound(..)
            | ServiceEvent::SearchStopped(_) => Vec::new(),
            other => {
                debug!(?other, "mdns-sd says something new");
                Vec::new()
            }
        }
    }

    /// The subtype, if it is one, and the type that was browsed by this name.
    fn browsed(&self, name: &str) -> Option<(Option<&'static str>, &ServiceType)> {
        let name = name.strip_suffix(".local.")?;
        let (subtype, kind) = match name.split_once("._sub.") {
            Some((subtype, kind)) => {
                let known = SUBTYPES.iter().find(|known| **known == (subtype, kind))?;
                (Some(known.0), kind)
            }
            None => (None, name),
        };
        self.types.iter().find(|known| known.as_str() == kind).map(|kind| (subtype, kind))
    }
}

impl Browses {
    fn new(daemon: Daemon, types: &[ServiceType], sender: mpsc::Sender<Heard>) -> Browses {
        let plain = types.iter().map(|kind| format!("{}.local.", kind.as_str()));
        let subtypes = SUBTYPES.iter().map(|(subtype, kind)| format!("{subtype}._sub.{kind}.local."));
        let names: Vec<String> = plain.chain(subtypes).collect();
        Browses { daemon, times: vec![0; names.len()], names, sender, listeners: JoinSet::new() }
    }

    /// Begins to browse by those names, or begins anew: then the daemon asks again, and tells again what it knows.
    fn begin(&mut self, wanted: impl Fn(&str) -> bool) -> Result<(), SourceError> {
        while self.listeners.try_join_next().is_some() {}
        for (browse, (name, time)) in self.names.iter().zip(&mut self.times).enumerate() {
            if wanted(name) {
                let events = self.daemon.0.browse(name).map_err(failed)?;
                *time += 1;
                self.listeners.spawn(listen(events, browse, *time, self.sender.clone()));
            }
        }
        Ok(())
    }

    fn verify(&self, keys: impl Iterator<Item = SightingKey>) -> Result<(), SourceError> {
        for key in keys.take(MAX_VERIFIED) {
            match self.daemon.0.verify(key.id, VERIFY) {
                // It is busy. Who still doubts will ask again.
                Ok(()) | Err(mdns_sd::Error::Again) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

impl Suspects {
    /// An instance has lost a subtype, or all: mdns-sd tells only one of the browses that would have to know when the records of an
    /// instance run out.
    fn add(&mut self, name: String) {
        if self.names.len() < MAX_SUSPECTS {
            self.names.insert(name);
        }
        self.next.get_or_insert_with(|| (Instant::now() + SUSPECT, Step::Browse));
    }

    /// Cancel safe.
    async fn step(&mut self) -> Step {
        let Some((at, step)) = self.next else { return std::future::pending().await };
        sleep_until(at).await;
        self.next = match step {
            Step::Browse if !self.names.is_empty() => Some((Instant::now() + TELL_AGAIN, Step::Remove)),
            Step::Browse | Step::Remove => None,
        };
        step
    }
}

async fn listen(events: Receiver<ServiceEvent>, browse: usize, time: u64, sender: mpsc::Sender<Heard>) {
    while let Ok(event) = events.recv_async().await {
        if sender.send(Heard { browse, time, event: Some(event) }).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Heard { browse, time, event: None }).await;
}

fn found(resolved: &ResolvedService, kind: &ServiceType) -> Option<Found> {
    let end = format!(".{}.local.", kind.as_str());
    let (instance, rest) =
        resolved.fullname.split_at_checked(resolved.fullname.len().checked_sub(end.len())?)?;
    if !rest.eq_ignore_ascii_case(&end) {
        return None;
    }
    let txt = resolved.txt_properties.iter();
    Some(Found {
        kind: kind.clone(),
        instance: instance.to_owned(),
        host: super::clean::local_host(&resolved.host),
        port: resolved.port,
        addresses: resolved.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).collect(),
        txt: txt.map(|entry| (entry.key().to_owned(), entry.val().map(<[u8]>::to_vec))).collect(),
    })
}

/// mdns-sd keeps whatever is sent to it for as long as its sender says. Who sends too much makes us begin again with nothing.
async fn check_size(daemon: &ServiceDaemon) -> Result<(), SourceError> {
    let metrics = daemon.get_metrics().map_err(failed)?.recv_async().await;
    let metrics = metrics.map_err(|_| SourceError::Failed("the thread of mdns-sd has ended".into()))?;
    let cached = ["cached-ptr", "cached-srv", "cached-addr", "cached-txt", "cached-nsec", "cached-subtype"];
    let records: i64 = cached.iter().filter_map(|name| metrics.get(*name)).sum();
    if records > MAX_RECORDS {
        return Err(SourceError::Failed(format!(
            "somebody floods the network: {records} records of multicast DNS"
        )));
    }
    Ok(())
}

fn failed(error: mdns_sd::Error) -> SourceError {
    SourceError::Failed(format!("multicast DNS: {error}"))
}
