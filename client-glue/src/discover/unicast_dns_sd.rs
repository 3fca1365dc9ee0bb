//! DNS-SD over ordinary DNS (RFC 6763): the domains that the user names and, if wanted, those that the search domains of the system's
//! resolver recommend for browsing. Asked for again when the records' time is up.
//!
//! A domain speaks for itself: a host of another domain, which somebody there named as that of a printer, does not get its name told to the
//! guest. What no name server answers stays as it was; what one says not to exist is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::LookupIpStrategy,
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use spice_proto::service_info::{HostName, ServiceType};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    MAX_KEY, Source, SourceError, UnicastDnsSdConfig, clean,
    dns_sd::{Found, Instances, SUBTYPES, Told, WEB, types},
    outlet::{Ask, Outlet},
};

/// Most domains that are browsed.
const MAX_DOMAINS: usize = 16;
/// Most instances of one type in one domain.
const MAX_INSTANCES: usize = 64;
/// Most addresses of one host that are looked at.
const MAX_ADDRESSES: usize = 16;
/// Questions that are open at a time.
const AT_A_TIME: usize = 16;
/// Records are asked for again after their time, but within these limits.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// The same where no name server answered.
const AGAIN_FAILED: Duration = Duration::from_secs(30);

/// Looks in the domains.
pub(super) async fn run(config: UnicastDnsSdConfig, mut outlet: Outlet) -> SourceError {
    let types = types(&config.types);
    let web = config.types.iter().any(|kind| kind.as_str() == WEB);
    let mut instances = Instances::new(Source::UnicastDnsSd, web, Some);
    let mut known = BTreeMap::new();
    outlet.looking().await;
    loop {
        // Built anew each time: a laptop changes networks.
        let resolver = match resolver() {
            Ok(resolver) => resolver,
            Err(error) => return SourceError::Failed(format!("no name server is configured: {error}")),
        };
        let mut domains = config.domains.clone();
        if config.search_domains {
            domains.extend(recommended(&resolver).await);
        }
        domains.truncate(MAX_DOMAINS);
        let round = look(&resolver, &domains, &types).await;
        let again = round.again();
        for told in round.apply(&mut known, &mut instances) {
            match told {
                Told::Seen(sighting) => outlet.seen(*sighting).await,
                Told::Gone(id) => outlet.gone(&id).await,
            }
        }
        outlet.looked_round().await;
        tokio::select! {
            () = sleep_until(Instant::now() + again) => {}
            () = asked(&mut outlet) => {}
        }
    }
}

async fn asked(outlet: &mut Outlet) {
    loop {
        match outlet.asked().await {
            Ask::LookAgain => return,
            Ask::Verify { keys, .. } if keys.iter().any(|key| key.source == Source::UnicastDnsSd) => return,
            Ask::Verify { .. } => {}
        }
    }
}

fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Who doubts a device wants to know what is, not what was.
    options.cache_size = 0;
    builder.build()
}

/// What was found by looking round once.
#[derive(Default)]
struct Round {
    found: BTreeMap<Key, (Found, BTreeSet<&'static str>)>,
    /// Where no name server answered: all types of a domain, or one instance.
    unanswered: BTreeSet<Place>,
    shortest: Option<Duration>,
}

/// An instance: domain, type and full name.
type Key = (String, ServiceType, String);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Type(String, ServiceType),
    Instance(String),
}

impl Round {
    fn lives(&mut self, seconds: u32) {
        let time = Duration::from_secs(seconds.into());
        self.shortest = Some(self.shortest.map_or(time, |shortest| shortest.min(time)));
    }

    fn again(&self) -> Duration {
        let again = self.shortest.unwrap_or(AGAIN.1).clamp(AGAIN.0, AGAIN.1);
        if self.unanswered.is_empty() { again } else { again.min(AGAIN_FAILED) }
    }

    /// What is to be told after this, and after what was `known` before.
    fn apply(self, known: &mut BTreeMap<Key, ()>, instances: &mut Instances) -> Vec<Told> {
        let mut told = Vec::new();
        let gone = |(domain, kind, id): &&Key| {
            !self.found.contains_key(&(domain.clone(), kind.clone(), id.clone()))
                && !self.unanswered.contains(&Place::Type(domain.clone(), kind.clone()))
                && !self.unanswered.contains(&Place::Instance(id.clone()))
        };
        let gone: Vec<Key> = known.keys().filter(gone).cloned().collect();
        for key in gone {
            known.remove(&key);
            told.extend(instances.removed(&key.2));
        }
        for (key, (found, subtypes)) in self.found {
            told.extend(instances.replaced(&key.2, found, subtypes));
            known.insert(key, ());
        }
        told
    }
}

async fn look(resolver: &TokioResolver, domains: &[HostName], types: &[ServiceType]) -> Round {
    let mut round = Round::default();
    let mut browsed: BTreeMap<Key, (Name, BTreeSet<&'static str>)> = BTreeMap::new();
    for domain in domains {
        let questions = questions(domain, types);
        for ((subtype, kind), answer) in ask(resolver, questions, RecordType::PTR).await {
            let place = Place::Type(domain.as_str().to_owned(), kind.clone());
            let Some(records) = answered(answer, place, &mut round) else { continue };
            for (data, ttl) in records.into_iter().take(MAX_INSTANCES) {
                let RData::PTR(target) = data else { continue };
                let Some(id) = id_of(&target, &kind, domain) else { continue };
                round.lives(ttl);
                let key = (domain.as_str().to_owned(), kind.clone(), id);
                browsed.entry(key).or_insert_with(|| (target.0, BTreeSet::new())).1.extend(subtype);
            }
        }
    }
    resolve(resolver, browsed, &mut round).await;
    round
}

/// What is to be asked of a domain. Those of one label, and that of multicast DNS, are not asked for.
fn questions(domain: &HostName, types: &[ServiceType]) -> Vec<((Option<&'static str>, ServiceType), Name)> {
    if domain.labels().count() < 2 || domain.is_local() {
        return Vec::new();
    }
    let mut questions = Vec::new();
    let mut add = |subtype: Option<&'static str>, kind: ServiceType| {
        let name = match subtype {
            Some(subtype) => format!("{subtype}._sub.{}.{}.", kind.as_str(), domain.as_str()),
            None => format!("{}.{}.", kind.as_str(), domain.as_str()),
        };
        questions.extend(Name::from_utf8(name).ok().map(|name| ((subtype, kind), name)));
    };
    for kind in types {
        add(None, kind.clone());
    }
    for (subtype, kind) in SUBTYPES {
        ServiceType::new(kind).into_iter().for_each(|kind| add(Some(subtype), kind));
    }
    questions
}

/// The services and the hosts of instances.
async fn resolve(
    resolver: &TokioResolver,
    browsed: BTreeMap<Key, (Name, BTreeSet<&'static str>)>,
    round: &mut Round,
) {
    let names: Vec<(Key, Name)> =
        browsed.iter().map(|(key, (name, _))| (key.clone(), name.clone())).collect();
    let mut services = BTreeMap::new();
    for (key, answer) in ask(resolver, names.clone(), RecordType::SRV).await {
        let place = Place::Instance(key.2.clone());
        let records = answered(answer, place, round).unwrap_or_default();
        let best = records.into_iter().filter_map(|(data, ttl)| {
            let RData::SRV(service) = data else { return None };
            Some((service, ttl))
        });
        if let Some((service, ttl)) = best.min_by_key(|(service, _)| service.priority) {
            round.lives(ttl);
            services.insert(key, service);
        }
    }
    let named = names.into_iter().filter(|(key, _)| services.contains_key(key)).collect();
    let mut texts = BTreeMap::new();
    for (key, answer) in ask(resolver, named, RecordType::TXT).await {
        let place = Place::Instance(key.2.clone());
        let Some(records) = answered(answer, place, round) else { continue };
        if let Some((RData::TXT(text), ttl)) = records.into_iter().next() {
            round.lives(ttl);
            texts.insert(key, text);
        }
    }
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let mut unanswered = BTreeSet::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        let hosts: BTreeMap<String, Name> =
            services.values().map(|service| (service.target.to_utf8(), service.target.clone())).collect();
        for (host, answer) in ask(resolver, hosts.into_iter().collect(), kind).await {
            match answer {
                Answer::Records(records) => {
                    let known = addresses.entry(host).or_default();
                    for (data, ttl) in records.into_iter().take(MAX_ADDRESSES) {
                        known.extend(data.ip_addr());
                        round.lives(ttl);
                    }
                }
                Answer::Nothing => {}
                Answer::Unanswered => {
                    unanswered.insert(host);
                }
            }
        }
    }
    for (key, service) in services {
        let target = service.target.to_utf8();
        let of_host = addresses.get(&target).cloned().unwrap_or_default();
        if unanswered.contains(&target) && of_host.is_empty() {
            round.unanswered.insert(Place::Instance(key.2.clone()));
        }
        if round.unanswered.contains(&Place::Instance(key.2.clone())) {
            continue;
        }
        let Some((name, subtypes)) = browsed.get(&key) else { continue };
        let instance = name.iter().next().map(|label| String::from_utf8_lossy(label).into_owned());
        let text = texts.get(&key);
        let strings = text.into_iter().flat_map(|text| text.txt_data.iter());
        let found = Found {
            kind: key.1.clone(),
            instance: instance.unwrap_or_default(),
            host: clean::host(&target).filter(|host| belongs(host, &key.0)),
            port: service.port,
            addresses: of_host,
            txt: strings.filter_map(|string| entry(string)).collect(),
        };
        round.found.insert(key, (found, subtypes.clone()));
    }
}

enum Answer {
    Records(Vec<(RData, u32)>),
    /// There is no such name, or nothing of that kind.
    Nothing,
    Unanswered,
}

/// Asks many at a time.
async fn ask<K: Send + 'static>(
    resolver: &TokioResolver,
    questions: Vec<(K, Name)>,
    kind: RecordType,
) -> Vec<(K, Answer)> {
    let mut questions = questions.into_iter();
    let mut open = JoinSet::new();
    let mut answers = Vec::new();
    loop {
        while open.len() < AT_A_TIME
            && let Some((key, name)) = questions.next()
        {
            let resolver = resolver.clone();
            open.spawn(async move { (key, question(&resolver, name, kind).await) });
        }
        match open.join_next().await {
            Some(Ok(answer)) => answers.push(answer),
            // Not cancelled by us, and it does not panic.
            Some(Err(error)) => debug!(%error, "a question was not answered"),
            None => return answers,
        }
    }
}

async fn question(resolver: &TokioResolver, name: Name, kind: RecordType) -> Answer {
    match resolver.lookup(name, kind).await {
        Ok(found) => {
            let records = found.answers().iter().filter(|record| record.record_type() == kind);
            Answer::Records(records.map(|record| (record.data.clone(), record.ttl)).collect())
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))
            if matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Answer::Nothing
        }
        Err(error) => {
            debug!(%error, "no name server answers");
            Answer::Unanswered
        }
    }
}

fn answered(answer: Answer, place: Place, round: &mut Round) -> Option<Vec<(RData, u32)>> {
    match answer {
        Answer::Records(records) => Some(records),
        Answer::Nothing => Some(Vec::new()),
        Answer::Unanswered => {
            round.unanswered.insert(place);
            None
        }
    }
}

/// Domains that the resolver's search domains name for browsing (RFC 6763, section 11).
async fn recommended(resolver: &TokioResolver) -> Vec<HostName> {
    let Ok((system, _)) = hickory_resolver::system_conf::read_system_conf() else { return Vec::new() };
    let search = system.search.iter().chain(&system.domain).take(MAX_DOMAINS);
    let questions: Vec<((), Name)> = search
        .filter_map(|domain| Some(((), Name::from_ascii("b._dns-sd._udp").ok()?.append_domain(domain).ok()?)))
        .collect();
    let answers = ask(resolver, questions, RecordType::PTR).await;
    let targets = answers.into_iter().flat_map(|((), answer)| match answer {
        Answer::Records(records) => records,
        Answer::Nothing | Answer::Unanswered => Vec::new(),
    });
    let names = targets.filter_map(|(data, _)| {
        let RData::PTR(target) = data else { return None };
        clean::host(&target.to_utf8())
    });
    let mut domains: Vec<HostName> = names.take(MAX_DOMAINS).collect();
    domains.sort();
    domains.dedup();
    domains
}

/// By what an instance is known: its full name, if it is one of this type in this domain.
fn id_of(target: &Name, kind: &ServiceType, domain: &HostName) -> Option<String> {
    let parent = Name::from_utf8(format!("{}.{}.", kind.as_str(), domain.as_str())).ok()?;
    let id = target.to_utf8();
    (target.base_name() == parent && id.len() <= MAX_KEY).then_some(id)
}

/// Whether a host may be known by its name: it is in the domain, or in the one above it, unless that is nobody's own.
fn belongs(host: &HostName, domain: &str) -> bool {
    let above = domain.split_once('.').map(|(_, above)| above).filter(|above| above.contains('.'));
    let within = |domain: &str| {
        let (host, domain) = (host.as_str().to_ascii_lowercase(), domain.to_ascii_lowercase());
        host.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
    };
    within(domain) || above.is_some_and(within)
}

fn entry(string: &[u8]) -> Option<(String, Option<Vec<u8>>)> {
    let mut parts = string.splitn(2, |byte| *byte == b'=');
    let key = std::str::from_utf8(parts.next()?).ok()?;
    Some((key.to_owned(), parts.next().map(<[u8]>::to_vec)))
}

#[cfg(test)]
mod tests;
