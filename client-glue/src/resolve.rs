//! From a share's host to the addresses that may be dialled for it.
//!
//! A guest must not be able to use a shared *name* to reach what was not shared: whoever answers for
//! `printer.example` could answer `127.0.0.1` today (DNS rebinding). So a name is resolved at every dial, and only
//! ordinary unicast addresses among the answers are dialled; loopback, link-local, multicast, unspecified and
//! reserved ones are not, nor IPv6 addresses that carry such an IPv4 address inside or are just another way to write
//! an IPv4 address. Only an address that the user wrote himself, or the name `localhost`, leads to this machine.
//!
//! Private networks are what shares are for, hence they are allowed.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Mutex,
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use tracing::debug;

use crate::{dial::Refusal, share::Host};

/// How long the system's resolver configuration is used before it is read again: a laptop changes networks.
const CONFIGURATION_LIFE: Duration = Duration::from_secs(10);

/// Most addresses of one name that are considered; the rest is ignored.
const MAX_ADDRESSES: usize = 8;

/// What kind of address it is, as far as dialling is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// One device's, public or private (RFC 1918, RFC 4193).
    Unicast,
    /// This machine: 127.0.0.0/8, ::1.
    Loopback,
    /// Meaningful on one cable only: 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// Nobody's, but often read as this machine: 0.0.0.0/8, ::.
    Unspecified,
    /// Many devices': 224.0.0.0/4, ff00::/8.
    Multicast,
    /// Never assigned: 240.0.0.0/4 with the broadcast address, and Teredo's 2001::/32.
    Reserved,
    /// An IPv6 form of an IPv4 address: mapped, compatible or translated; 6to4 and NAT64 where the IPv4 address
    /// within is not unicast.
    Disguised,
}

impl Class {
    /// Sorts an address (RFC 6890 and the registries it started; RFC 4291, 6052, 3056, 4380 for the disguises).
    pub fn of(address: IpAddr) -> Class {
        match address {
            IpAddr::V4(address) => Class::of_v4(address),
            IpAddr::V6(address) => Class::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Class {
        match address.octets() {
            [0, ..] => Class::Unspecified,
            [127, ..] => Class::Loopback,
            [169, 254, ..] => Class::LinkLocal,
            [224..=239, ..] => Class::Multicast,
            [240..=255, ..] => Class::Reserved,
            [..] => Class::Unicast,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Class {
        let embedded = |high: u16, low: u16| {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            match Class::of_v4(Ipv4Addr::new(a, b, c, d)) {
                Class::Unicast => Class::Unicast,
                Class::Loopback
                | Class::LinkLocal
                | Class::Unspecified
                | Class::Multicast
                | Class::Reserved
                | Class::Disguised => Class::Disguised,
            }
        };
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
            [0, 0, 0, 0, 0 | 0xffff, 0 | 0xffff, _, _] => Class::Disguised,
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
            [0x64, 0xff9b, 1, ..] => Class::Disguised,
            [0x2002, high, low, ..] => embedded(high, low),
            [0x2001, 0, ..] => Class::Reserved,
            [0xfe80..=0xfebf, ..] => Class::LinkLocal,
            [0xff00..=0xffff, ..] => Class::Multicast,
            [..] => Class::Unicast,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Unicast => "a unicast address",
            Class::Loopback => "a loopback address",
            Class::LinkLocal => "a link-local address",
            Class::Unspecified => "the unspecified address",
            Class::Multicast => "a multicast address",
            Class::Reserved => "a reserved address",
            Class::Disguised => "another address in disguise",
        })
    }
}

/// In 198.18.0.0/15, where virtual networks are unless they were put elsewhere (RFC 2544): what is there came out of a tunnel.
pub(crate) fn is_virtual(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets(), [198, 18 | 19, ..]),
        IpAddr::V6(_) => false,
    }
}

/// Why a name has no address.
#[derive(Debug)]
pub(crate) enum NoAddress {
    /// There is no such name, or it has no address.
    NoSuchName,
    /// It could not be found out, or it leads where no name may lead.
    Failed(Refusal),
}

/// Resolves shared hosts with the system's configuration: `/etc/resolv.conf` and `/etc/hosts`.
///
/// Names below `.local` belong to multicast DNS (RFC 6762), which is not in `resolv.conf`; they are left to the
/// system's own resolver, which knows them where mDNS is installed.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    dns: Mutex<Option<(Instant, TokioResolver)>>,
}

impl Resolver {
    /// The addresses to dial for `host`, most wanted first: never empty, no address twice, families alternating.
    ///
    /// Cancel safe: nothing is kept between polls but the resolver's own cache.
    pub(crate) async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<IpAddr>, Refusal> {
        match host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(_) if host.is_localhost() => {
                Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()])
            }
            Host::Name(name) => {
                let answers = if name.ends_with(".local") {
                    ask_system(name, port).await?
                } else {
                    self.ask_dns(name).await?
                };
                choose(name, answers)
            }
        }
    }

    /// The addresses that may be dialled for `name`, by DNS alone and just as it is written, and how long they are good for.
    ///
    /// Cancel safe: nothing is kept between polls but the resolver's own cache.
    pub(crate) async fn look_up(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), NoAddress> {
        let unknown =
            |problem: String| NoAddress::Failed(Refusal::Unknown { host: name.to_owned(), problem });
        let resolver = self.dns().map_err(|error| unknown(error.to_string()))?;
        // With the final dot no search domain is put behind it.
        match resolver.lookup_ip(format!("{name}.")).await {
            Ok(found) => {
                let ttl = found.valid_until().saturating_duration_since(Instant::now());
                let addresses = choose(name, found.iter().take(64).collect()).map_err(NoAddress::Failed)?;
                Ok((addresses, ttl))
            }
            Err(error) if error.is_no_records_found() => Err(NoAddress::NoSuchName),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    async fn ask_dns(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        let unknown = |problem: String| Refusal::Unknown { host: name.to_owned(), problem };
        let resolver = self.dns().map_err(|error| unknown(error.to_string()))?;
        match resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().take(64).collect()),
            Err(error) if error.is_no_records_found() => Err(unknown("no such name".to_owned())),
            Err(error) => Err(unknown(error.to_string())),
        }
    }

    /// A resolver with a configuration not older than [`CONFIGURATION_LIFE`].
    fn dns(&self) -> Result<TokioResolver, NetError> {
        let mut kept = self.dns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*kept {
            Some((read, resolver)) if read.elapsed() < CONFIGURATION_LIFE => Ok(resolver.clone()),
            Some(_) | None => {
                let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
                    debug!(%error, "no name server is configured: only /etc/hosts is asked");
                    let nowhere = ResolverConfig::from_parts(None, vec![], vec![]);
                    TokioResolver::builder_with_config(nowhere, TokioRuntimeProvider::default())
                });
                builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
                let resolver = builder.build()?;
                *kept = Some((Instant::now(), resolver.clone()));
                Ok(resolver)
            }
        }
    }

    /// Asks only `resolver`, for ever.
    #[cfg(test)]
    pub(crate) fn fixed(resolver: TokioResolver) -> Resolver {
        let never_old = Instant::now() + Duration::from_secs(3600);
        Resolver { dns: Mutex::new(Some((never_old, resolver))) }
    }
}

async fn ask_system(name: &str, port: u16) -> Result<Vec<IpAddr>, Refusal> {
    match tokio::net::lookup_host((name, port)).await {
        Ok(found) => Ok(found.map(|address| address.ip()).take(64).collect()),
        Err(error) => Err(Refusal::Unknown { host: name.to_owned(), problem: error.to_string() }),
    }
}

/// Of the answers for a name, those that may be dialled, in dialling order.
fn choose(name: &str, answers: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refusal> {
    let mut forbidden = None;
    let (mut six, mut four) = (Vec::new(), Vec::new());
    for address in answers {
        match Class::of(address) {
            Class::Unicast => {
                let family = if address.is_ipv6() { &mut six } else { &mut four };
                if !family.contains(&address) && family.len() < MAX_ADDRESSES {
                    family.push(address);
                }
            }
            class @ (Class::Loopback
            | Class::LinkLocal
            | Class::Unspecified
            | Class::Multicast
            | Class::Reserved
            | Class::Disguised) => forbidden = Some((address, class)),
        }
    }
    let mut chosen = Vec::with_capacity(six.len() + four.len());
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let (one, other) = (six.next(), four.next());
        if one.is_none() && other.is_none() {
            break;
        }
        chosen.extend(one.into_iter().chain(other));
    }
    chosen.truncate(MAX_ADDRESSES);
    match (chosen.is_empty(), forbidden) {
        (false, _) => Ok(chosen),
        (true, Some((address, class))) => Err(Refusal::Forbidden { host: name.to_owned(), address, class }),
        (true, None) => {
            Err(Refusal::Unknown { host: name.to_owned(), problem: "it has no address".to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(addresses: &[&str], expected: Class) {
        for address in addresses {
            assert_eq!(Class::of(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn addresses_are_sorted() {
        classes(
            &[
                "10.0.0.1",
                "192.168.1.1",
                "172.16.0.1",
                "100.64.0.1",
                "8.8.8.8",
                "fd00::1",
                "2001:db8::1",
                "64:ff9b::808:808",
                "2002:0808:0808::1",
                "fec0::1",
            ],
            Class::Unicast,
        );
        classes(&["127.0.0.1", "127.255.255.254", "::1"], Class::Loopback);
        classes(&["169.254.169.254", "fe80::1", "febf::1"], Class::LinkLocal);
        classes(&["0.0.0.0", "0.1.2.3", "::"], Class::Unspecified);
        classes(&["224.0.0.1", "239.255.255.250", "ff02::fb", "ffff::1"], Class::Multicast);
        classes(&["240.0.0.1", "255.255.255.255", "2001::1"], Class::Reserved);
        classes(
            &[
                "::ffff:127.0.0.1",
                "::ffff:8.8.8.8",
                "::127.0.0.1",
                "::2",
                "::ffff:0:127.0.0.1",
                "64:ff9b::7f00:1",
                "64:ff9b::a9fe:a9fe",
                "64:ff9b:1::7f00:1",
                "2002:7f00:1::",
                "2002:a9fe:a9fe::1",
            ],
            Class::Disguised,
        );
    }

    fn chosen(answers: &[&str]) -> Result<Vec<String>, String> {
        let answers = answers.iter().map(|address| address.parse().unwrap()).collect();
        match choose("printer.example", answers) {
            Ok(chosen) => Ok(chosen.iter().map(ToString::to_string).collect()),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    #[test]
    fn families_alternate_and_bad_answers_are_left_out() {
        assert_eq!(
            chosen(&["10.0.0.1", "10.0.0.2", "10.0.0.1", "127.0.0.1", "fd00::1", "fe80::1"]).unwrap(),
            ["fd00::1", "10.0.0.1", "10.0.0.2"],
        );
    }

    #[test]
    fn a_name_that_leads_to_this_machine_is_refused() {
        for answers in
            [&["127.0.0.1"][..], &["::1"], &["0.0.0.0"], &["::ffff:127.0.0.1"], &["169.254.169.254"]]
        {
            let error = chosen(answers).unwrap_err();
            assert!(error.contains("printer.example") && error.contains(answers[0]), "{error}");
        }
        assert!(chosen(&[]).unwrap_err().contains("no address"));
    }

    #[test]
    fn answers_are_bounded() {
        let many: Vec<String> = (0..60).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(chosen(&many).unwrap().len(), MAX_ADDRESSES);
    }
}
