//! DNS-SD over multicast DNS (RFC 6762, RFC 6763), by the crate mdns-sd, which does it in a thread of its own.
//!
//! Each type is browsed, and the subtypes that printing clients look for as well: who re-advertises a printer has to know which it has. Port 0
//! says that a protocol is *not* spoken (Bonjour Printing Specification 1.2.1, section 5.1), so that is no service.

mod instances;
mod records;

use std::time::Duration;

use mdns_sd::{IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent};
use spice_proto::service_info::ServiceType;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::debug;

use self::instances::{Instances, Told};
use self::records::Found;
use super::{
    DnsSdConfig, InterfaceFilter, Sighting, Source, SourceError, interfaces,
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
const WEB: &str = "_http._tcp";
/// Subtypes that printing clients look for: of AirPrint and of IPP Everywhere.
const SUBTYPES: [(&str, &str); 4] = [
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
        let _ = self.0.shutdown();
    }
}

/// What a browse says, and the number of the round in which it was begun.
type Heard = (u64, Option<ServiceEvent>);

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
        let mut listeners = JoinSet::new();
        let mut round = 0;
        self.browse(&daemon.0, round, &sender, &mut listeners)?;
        outlet.looking().await;
        let mut looked_round = Some(Instant::now() + ROUND);
        let mut measure = Instant::now() + MEASURE_EVERY;
        loop {
            tokio::select! {
                Some((of_round, event)) = heard.recv() => match event {
                    Some(event) => {
                        for told in self.hear(&mut instances, event) {
                            match told {
                                Told::Seen(sighting) => outlet.seen(*sighting).await,
                                Told::Gone(id) => outlet.gone(&id).await,
                            }
                        }
                    }
                    // It was replaced by that of a later round.
                    None if of_round < round => {}
                    None => return Err(SourceError::Failed("more multicast DNS came in than can be dealt with".into())),
                },
                ask = outlet.asked() => match ask {
                    Ask::Verify { keys, .. } => {
                        for key in keys.into_iter().filter(|key| key.source == self.source) {
                            daemon.0.verify(key.id, VERIFY).map_err(failed)?;
                        }
                    }
                    Ask::LookAgain => {
                        round += 1;
                        self.browse(&daemon.0, round, &sender, &mut listeners)?;
                    }
                },
                () = sleep_until(looked_round.unwrap_or(measure)), if looked_round.is_some() => {
                    looked_round = None;
                    outlet.looked_round().await;
                }
                () = sleep_until(measure) => {
                    measure = Instant::now() + MEASURE_EVERY;
                    check_size(&daemon.0).await?;
                }
            }
        }
    }

    /// Begins to browse, or begins anew: then the daemon asks again, and tells again what it knows.
    fn browse(
        &self,
        daemon: &ServiceDaemon,
        round: u64,
        sender: &mpsc::Sender<Heard>,
        listeners: &mut JoinSet<()>,
    ) -> Result<(), SourceError> {
        while listeners.try_join_next().is_some() {}
        let plain = self.types.iter().map(|kind| format!("{}.local.", kind.as_str()));
        let subtypes = SUBTYPES.iter().map(|(subtype, kind)| format!("{subtype}._sub.{kind}.local."));
        for name in plain.chain(subtypes) {
            let events = daemon.browse(&name).map_err(failed)?;
            listeners.spawn(listen(events, round, sender.clone()));
        }
        Ok(())
    }

    fn hear(&self, instances: &mut Instances, event: ServiceEvent) -> Vec<Told> {
        match event {
            ServiceEvent::ServiceResolved(resolved) => {
                let Some((subtype, kind)) = self.browsed(&resolved.ty_domain) else { return Vec::new() };
                let Some(found) = found(&resolved, kind) else { return Vec::new() };
                instances.resolved(&resolved.fullname, found, subtype)
            }
            ServiceEvent::ServiceRemoved(name, fullname) => match self.browsed(&name) {
                Some((None, _)) => instances.removed(&fullname),
                Some((Some(subtype), _)) => instances.lost_subtype(&fullname, subtype),
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

async fn listen(events: Receiver<ServiceEvent>, round: u64, sender: mpsc::Sender<Heard>) {
    while let Ok(event) = events.recv_async().await {
        if sender.send((round, Some(event))).await.is_err() {
            return;
        }
    }
    let _ = sender.send((round, None)).await;
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
