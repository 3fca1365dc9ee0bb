//! What `--config` reads: what is shared by name, where to look for more, and what of it may be shared.

mod file;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use client_glue::discover::policy::{Pattern, Policy, Rename, RenameOf, Rule};
use client_glue::discover::{
    DiscoverConfig, DnsSdConfig, InterfaceFilter, LocalConfig, Network, NetworkId, ServiceClass, SnmpConfig,
    SsdpConfig, UnicastDnsSdConfig, WsDiscoveryConfig,
};
use client_glue::domains::{DEFAULT_PORTS, Domain};
use client_glue::service_info::{HostName, Identity, Label, ServiceType};
use client_glue::{MAX_DOMAINS, Offer};
use thiserror::Error;
use toml::Spanned;

use self::file::{File, Of, Switch, UnicastDnsSd};

/// A longer file is none that was meant.
const MAX_FILE: u64 = 1 << 20;

/// Most ports of one domain: each is a service for every name that the guest asks for.
const MAX_PORTS: usize = 32;

/// What else stands in people's networks, for whoever wants to see all there is: `spice-tunnel discover`, and rules that name no type.
const COMMON: [&str; 10] = [
    "_http._tcp",
    "_https._tcp",
    "_smb._tcp",
    "_ftp._tcp",
    "_ssh._tcp",
    "_sftp-ssh._tcp",
    "_nfs._tcp",
    "_afpovertcp._tcp",
    "_webdav._tcp",
    "_webdavs._tcp",
];

/// Of the configuration, for the long help of the commands that take one.
pub const HELP: &str = "\
The file of --config, all of it optional:

  network = \"home\"                   # which network this is, where its router does not say

  [[share]]                          # as --share
  name = \"NAS\"
  target = \"tcp://nas.lan:445\"

  [discover]
  enabled = true
  interfaces = [\"eth0\"]             # just these; or except-interfaces = [...]
  dns-sd = true                      # or { types = [\"_http._tcp\"] } to look for more
  unicast-dns-sd = [\"example.org\"]  # or { domains = [...], search-domains = true, types = [...] }
  snmp = true                        # or { communities = [\"public\"] }
  ssdp = true
  ws-discovery = true
  local = true                       # or { cups = \"127.0.0.1:631\", usb = true }
  share-classes = [\"printer\"]       # and \"scanner\": no other can be shared without being named

  [[deny]]                           # any of type, name, identity, address, port; all given must hold
  address = \"192.168.9.0/24\"        # deny goes before everything

  [[allow]]                          # the same, with a name or an identity
  name = \"*nas*\"                    # * is anything, ? one character, case does not matter
  type = [\"_smb._tcp\"]
  port = [445, \"8000-8100\"]

  [[rename]]                         # identity or name
  name = \"Brother HL-L2350DW [30055c]\"
  to = \"By the window\"

  [[domain]]                         # the guest may ask for its names
  name = \"home.arpa\"
  ports = [80, 443, 445, 631, 9100]  # default: 22, 80, 443, 445, 515, 631, 8080, 9100

To find is not to share. Printers and scanners are shared as a class where share-classes or --discover says so, the rest by
name only, and so is whatever is on this machine. `spice-tunnel discover` shows what is there and what would be shared.";

/// A configuration that makes sense.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// What is shared by name.
    pub shares: Vec<Offer>,
    /// Whether to look for more, and where.
    pub discover: Option<DiscoverConfig>,
    /// What of it may be shared.
    pub policy: Policy,
    /// Domains whose names the guest may ask for.
    pub domains: Vec<Domain>,
    /// Which network this is.
    pub network: Option<NetworkId>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not there, or not to be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too long, or not UTF-8.
    #[error("{} is no configuration: {problem}", file.display())]
    NoText {
        /// The file.
        file: PathBuf,
        /// Why not.
        problem: &'static str,
    },
    /// Something in it.
    #[error("{}:{line}: {problem}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// Something wrong in the text, and where.
struct Wrong {
    at: usize,
    problem: String,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], with the line.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        use io::Read;
        let failed = |source| ConfigError::Read { file: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        let no_text = |problem| ConfigError::NoText { file: path.to_owned(), problem };
        if bytes.len() as u64 > MAX_FILE {
            return Err(no_text("it is longer than a megabyte"));
        }
        let text = String::from_utf8(bytes).map_err(|_| no_text("it is not UTF-8 text"))?;
        Config::parse(&text).map_err(|Wrong { at, problem }| ConfigError::Wrong {
            file: path.to_owned(),
            line: text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1,
            problem,
        })
    }

    fn parse(text: &str) -> Result<Config, Wrong> {
        let file: File = toml::from_str(text).map_err(|error| Wrong {
            at: error.span().map_or(0, |span| span.start),
            problem: error.message().to_owned(),
        })?;
        let network = file.network.map(|Of(network)| network);
        let shares: Vec<Offer> = file.share.into_iter().map(share).collect::<Result<_, _>>()?;
        let mut classes = Vec::new();
        let mut browsed = Vec::new();
        let mut discover = match file.discover {
            Some(table) if table.enabled => {
                let (config, shared) = discover(table, network.clone());
                classes = shared;
                browsed =
                    config.unicast_dns_sd.as_ref().map_or(Vec::new(), |unicast| unicast.domains.clone());
                Some(config)
            }
            Some(_) | None => None,
        };
        let allow: Vec<Rule> = file.allow.into_iter().map(allow).collect::<Result<_, _>>()?;
        if let Some(dns_sd) = discover.as_mut().and_then(|config| config.dns_sd.as_mut()) {
            look_for(&allow, &mut dns_sd.types);
        }
        let deny = file.deny.into_iter().map(deny).collect::<Result<_, _>>()?;
        let renames = file.rename.into_iter().map(rename).collect::<Result<_, _>>()?;
        let domains = domains(file.domain)?;
        let policy =
            Policy { classes: classes.into_iter().collect(), allow, deny, renames, domains: browsed };
        Ok(Config { shares, discover, policy, domains, network })
    }
}

/// Adds the types without which what is allowed would not be found.
fn look_for(allow: &[Rule], types: &mut Vec<ServiceType>) {
    for rule in allow {
        let wanted = if rule.types.is_empty() { common_types() } else { rule.types.clone() };
        for kind in wanted {
            if !types.contains(&kind) {
                types.push(kind);
            }
        }
    }
}

/// What else than printers and scanners stands in people's networks.
pub(crate) fn common_types() -> Vec<ServiceType> {
    COMMON.iter().filter_map(|kind| ServiceType::new(kind).ok()).collect()
}

fn plain<T>(list: Vec<Of<T>>) -> Vec<T> {
    list.into_iter().map(|Of(value)| value).collect()
}

fn share(entry: Spanned<file::Share>) -> Result<Offer, Wrong> {
    let at = entry.span().start;
    let wrong = |problem| Wrong { at, problem };
    let file::Share { target, name, description } = entry.into_inner();
    let mut url = url::Url::parse(&target).map_err(|error| wrong(format!("target {target:?}: {error}")))?;
    for (key, value) in [("name", &name), ("description", &description)] {
        let Some(value) = value else { continue };
        if url.query_pairs().any(|(given, _)| given == key) {
            return Err(wrong(format!("{key} is given twice: as a key and in the target")));
        }
        url.query_pairs_mut().append_pair(key, value);
    }
    url.as_str().parse().map_err(|error: client_glue::ShareError| wrong(error.to_string()))
}

fn discover(table: file::Discover, network: Option<NetworkId>) -> (DiscoverConfig, Vec<ServiceClass>) {
    let default = DiscoverConfig::default();
    let dns_sd = match table.dns_sd {
        None => default.dns_sd.clone(),
        Some(Switch::Off) => None,
        Some(Switch::On(file::DnsSd { types })) => Some(DnsSdConfig { types: plain(types) }),
    };
    let unicast_dns_sd = table.unicast_dns_sd.map(|unicast| match unicast {
        UnicastDnsSd::Domains(domains) => {
            UnicastDnsSdConfig { domains: plain(domains), ..UnicastDnsSdConfig::default() }
        }
        UnicastDnsSd::Table(table) => UnicastDnsSdConfig {
            domains: plain(table.domains),
            search_domains: table.search_domains,
            types: plain(table.types),
        },
    });
    let local = match table.local {
        None => default.local.clone(),
        Some(Switch::Off) => None,
        Some(Switch::On(file::Local { cups, usb })) => {
            let known = LocalConfig::default();
            let cups: Option<SocketAddr> = cups.map(|Of(cups)| cups).or(known.cups);
            Some(LocalConfig { cups, usb: usb.unwrap_or(known.usb) })
        }
    };
    let snmp = match table.snmp {
        None => default.snmp.clone(),
        Some(Switch::Off) => None,
        Some(Switch::On(file::Snmp { communities: None })) => Some(SnmpConfig::default()),
        Some(Switch::On(file::Snmp { communities: Some(communities) })) => {
            let communities = plain(communities).into_iter().map(|file::Community(text)| text).collect();
            Some(SnmpConfig { communities })
        }
    };
    let ssdp = table.ssdp.unwrap_or(true).then(SsdpConfig::default);
    let ws_discovery = table.ws_discovery.unwrap_or(true).then(WsDiscoveryConfig::default);
    let interfaces = InterfaceFilter { only: table.interfaces, except: table.except_interfaces };
    let config =
        DiscoverConfig { dns_sd, unicast_dns_sd, snmp, ssdp, ws_discovery, local, interfaces, network };
    (config, plain(table.share_classes))
}

fn allow(entry: Spanned<file::Rule>) -> Result<Rule, Wrong> {
    let at = entry.span().start;
    let rule = rule(entry.into_inner());
    if rule.name.is_none() && rule.identity.is_none() {
        let problem = "[[allow]] needs a name or an identity: only printers and scanners are shared without, by \
                       share-classes in [discover]";
        return Err(Wrong { at, problem: problem.to_owned() });
    }
    Ok(rule)
}

fn deny(entry: Spanned<file::Rule>) -> Result<Rule, Wrong> {
    let at = entry.span().start;
    let rule = rule(entry.into_inner());
    if rule == Rule::default() {
        let problem =
            "[[deny]] without a condition denies everything: expected type, name, identity, address or port";
        return Err(Wrong { at, problem: problem.to_owned() });
    }
    Ok(rule)
}

fn rule(rule: file::Rule) -> Rule {
    let types: Vec<ServiceType> = plain(rule.types.0);
    let name: Option<Pattern> = rule.name.map(|Of(name)| name);
    let identity: Option<Identity> = rule.identity.map(|Of(identity)| identity);
    let addresses: Vec<Network> = plain(rule.address.0);
    let ports = rule.port.0.into_iter().map(|file::Ports(ports)| ports).collect();
    Rule { types, name, identity, addresses, ports }
}

fn rename(entry: Spanned<file::Rename>) -> Result<Rename, Wrong> {
    let at = entry.span().start;
    let file::Rename { identity, name, to: Of(to) } = entry.into_inner();
    let of = match (identity, name) {
        (Some(Of(identity)), None) => RenameOf::Identity(identity),
        (None, Some(name)) if Label::new(&name).is_ok() => RenameOf::Name(name),
        (None, Some(name)) => {
            return Err(Wrong {
                at,
                problem: format!("{name:?} is no device's name: expected 1 to 63 bytes of text"),
            });
        }
        (None, None) | (Some(_), Some(_)) => {
            let problem = "[[rename]] needs an identity or a name, one of them, and what it is called `to`";
            return Err(Wrong { at, problem: problem.to_owned() });
        }
    };
    Ok(Rename { of, to })
}

fn domains(entries: Vec<Spanned<file::Domain>>) -> Result<Vec<Domain>, Wrong> {
    let mut domains: Vec<Domain> = Vec::new();
    for entry in entries {
        let at = entry.span().start;
        let file::Domain { name: Of(name), ports } = entry.into_inner();
        let name = HostName::new(&name.as_str().to_ascii_lowercase())
            .map_err(|error| Wrong { at, problem: error.to_string() })?;
        let ports: Vec<u16> = match ports {
            None => DEFAULT_PORTS.to_vec(),
            Some(ports) => ports.into_iter().map(|file::Port(port)| port).collect(),
        };
        let text = name.as_str();
        let problem = if let Err(error) = client_glue::domains::check(&name) {
            error.to_string()
        } else if ports.is_empty() {
            format!("the domain {text} has no ports, so that nothing in it could be reached")
        } else if ports.len() > MAX_PORTS {
            format!("the domain {text} has {} ports, at most {MAX_PORTS} are accepted", ports.len())
        } else if domains.iter().any(|known| known.name == name) {
            format!("the domain {text} is there twice")
        } else if domains.len() == MAX_DOMAINS {
            format!("there are more than {MAX_DOMAINS} domains")
        } else {
            domains.push(Domain { name, ports });
            continue;
        };
        return Err(Wrong { at, problem });
    }
    Ok(domains)
}

/// Printers, scanners, or both, as `--discover` has them.
///
/// # Errors
/// Something else.
pub fn class(text: &str) -> Result<ServiceClass, String> {
    <ServiceClass as file::Text>::read(text)
}

#[cfg(test)]
mod tests;
