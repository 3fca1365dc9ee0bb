//! What of all that is found the user lets the guest reach.
//!
//! To find is not to share. Printers and scanners may be shared as a class, when the user says so; whatever else, and whatever is on
//! the user's own machine, only by name. What is denied is not shared, however it is allowed.
//!
//! A rule looks at one service of one device, advert by advert: a printer's port that is advertised as `_ipp._tcp` and `_http._tcp` is
//! still shared where `_http._tcp` is denied, but not advertised as that.

use std::{collections::BTreeSet, fmt, net::IpAddr, ops::RangeInclusive};

use spice_proto::service_info::{Advert, HostName, Identity, Label, ServiceType};

use super::{Device, Network, Service, ServiceClass, Standing};

/// Ports that are something else than a printer or scanner everywhere, so that a device that calls them one is not believed: it may
/// say so of an address that this machine reaches and it does not. They can be shared by name.
const NEVER_OF_A_CLASS: [u16; 36] = [
    21, 22, 23, 25, 53, 88, 110, 111, 135, 139, 143, 389, 445, 465, 587, 636, 873, 993, 995, 1433, 1521,
    2049, 2375, 2376, 3260, 3306, 3389, 5432, 5900, 5985, 5986, 6379, 6443, 9200, 11211, 27017,
];

/// What of all that is found the user lets the guest reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Shared without being named: printers, scanners, or both. Other classes count as not listed.
    pub classes: BTreeSet<ServiceClass>,
    /// What is shared because it is named.
    pub allow: Vec<Rule>,
    /// What is not, whatever else is said. Looked at first.
    pub deny: Vec<Rule>,
    /// How devices are called instead of by their own names.
    pub renames: Vec<Rename>,
    /// Domains whose names the guest may be told besides those of multicast DNS.
    pub domains: Vec<HostName>,
}

/// A condition: all that is given must hold; of what is a list, one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// One of the service's adverts is of one of these types.
    pub types: Vec<ServiceType>,
    /// The device, or one of the service's adverts, is called so.
    pub name: Option<Pattern>,
    /// The device is known by this identity.
    pub identity: Option<Identity>,
    /// All of the device's addresses are within these.
    pub addresses: Vec<Network>,
    /// The service's port is one of these.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// A name in which `*` stands for any characters and `?` for one. Case does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Another name for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// Which.
    pub of: RenameOf,
    /// What it is called.
    pub to: Label,
}

/// Which device is to be renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenameOf {
    /// That of this identity.
    Identity(Identity),
    /// Those of this name. Case does not matter.
    Name(String),
}

/// Why a service is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// All of this class are.
    Class(ServiceClass),
    /// The rule of this number, counted from 1, allows it by its name.
    Name(usize),
    /// The rule of this number, counted from 1, allows it by its identity.
    Identity(usize),
}

/// Why a service is not shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// Nothing allows it.
    NotAsked(ServiceClass),
    /// It is of a class that is shared, but on the user's own machine.
    ThisMachine,
    /// It is of a class that is shared, but its port is something else's everywhere.
    Port(u16),
    /// The rule of this number, counted from 1, denies it.
    Denied(usize),
    /// The user shares it by hand already.
    ByHand,
    /// It says that it is another device.
    Impostor(Identity),
    /// It was elsewhere, and called otherwise.
    Moved,
    /// It has no address that can be dialled.
    NoAddress,
    /// Its host name is that of another device, which is elsewhere.
    Host {
        /// The host name.
        host: HostName,
        /// The other device.
        of: Label,
    },
    /// Another device had its name when it was allowed by that.
    Name(Identity),
    /// As many are shared as may be.
    TooMany(usize),
    /// The tunnel refused it.
    Refused(String),
}

impl Policy {
    /// Printers and scanners, as `--discover` has it.
    pub fn printers_and_scanners() -> Policy {
        let classes = [ServiceClass::Printer, ServiceClass::Scanner].into();
        Policy { classes, ..Policy::default() }
    }

    /// Whether `service` of `device` may be shared, as far as it says itself, and advertised as what.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn judge(&self, device: &Device, service: &Service) -> Result<(Ground, Vec<Advert>), Objection> {
        let adverts = self.not_denied(device, service)?;
        let ground = self.ground(device, service, &adverts)?;
        match &device.standing {
            Standing::Plain => {}
            Standing::Moved if self.allows_there(&ground) => {}
            Standing::Moved => return Err(Objection::Moved),
            Standing::Impostor { claims } if !matches!(ground, Ground::Identity(_)) => {
                return Err(Objection::Impostor(claims.clone()));
            }
            Standing::Impostor { .. } => {}
        }
        if device.addresses.is_empty() {
            return Err(Objection::NoAddress);
        }
        let adverts = match ground {
            Ground::Name(_) | Ground::Identity(_) => adverts,
            // What else the port is said to be was not asked for, but for the pages of a printer's own.
            Ground::Class(_) => adverts
                .into_iter()
                .filter(|advert| match ServiceClass::of(&advert.kind) {
                    class @ (ServiceClass::Printer | ServiceClass::Scanner) => self.classes.contains(&class),
                    ServiceClass::Web => true,
                    ServiceClass::Files | ServiceClass::Shell | ServiceClass::Other => false,
                })
                .collect(),
        };
        Ok((ground, adverts))
    }

    /// What a device is called.
    pub fn name<'a>(&'a self, device: &'a Device) -> &'a Label {
        let is = |rename: &&Rename| match &rename.of {
            RenameOf::Identity(identity) => *identity == device.identity,
            RenameOf::Name(name) => same(name, device.name.as_str()),
        };
        self.renames.iter().find(is).map_or(&device.name, |rename| &rename.to)
    }

    /// The adverts that are not denied.
    fn not_denied(&self, device: &Device, service: &Service) -> Result<Vec<Advert>, Objection> {
        let denies = |advert: Option<&Advert>| {
            self.deny.iter().position(|rule| rule.matches(device, service, advert)).map(|at| at + 1)
        };
        if service.adverts.is_empty() {
            return denies(None).map_or(Ok(Vec::new()), |rule| Err(Objection::Denied(rule)));
        }
        let mut denied = None;
        let mut left = Vec::new();
        for advert in &service.adverts {
            match denies(Some(advert)) {
                Some(rule) => denied = Some(rule),
                None => left.push(advert.clone()),
            }
        }
        match denied {
            Some(rule) if left.is_empty() => Err(Objection::Denied(rule)),
            Some(_) | None => Ok(left),
        }
    }

    fn ground(&self, device: &Device, service: &Service, adverts: &[Advert]) -> Result<Ground, Objection> {
        let allows = |rule: &Rule| {
            if adverts.is_empty() {
                rule.matches(device, service, None)
            } else {
                adverts.iter().any(|advert| rule.matches(device, service, Some(advert)))
            }
        };
        for (at, rule) in self.allow.iter().enumerate().filter(|(_, rule)| allows(rule)) {
            match (&rule.identity, &rule.name) {
                (Some(_), _) => return Ok(Ground::Identity(at + 1)),
                (None, Some(_)) => return Ok(Ground::Name(at + 1)),
                // By neither is by none.
                (None, None) => {}
            }
        }
        // What is left of the adverts says what it is.
        let class = if adverts.len() == service.adverts.len() {
            service.class
        } else {
            adverts.iter().map(|advert| ServiceClass::of(&advert.kind)).min().unwrap_or(service.class)
        };
        let consented = match class {
            ServiceClass::Printer | ServiceClass::Scanner => self.classes.contains(&class),
            ServiceClass::Web | ServiceClass::Files | ServiceClass::Shell | ServiceClass::Other => false,
        };
        if !consented {
            return Err(Objection::NotAsked(class));
        }
        if device.this_machine {
            return Err(Objection::ThisMachine);
        }
        if NEVER_OF_A_CLASS.contains(&service.port) {
            return Err(Objection::Port(service.port));
        }
        Ok(Ground::Class(class))
    }

    /// Whether the user said where it is as well.
    fn allows_there(&self, ground: &Ground) -> bool {
        match ground {
            Ground::Class(_) | Ground::Name(_) => false,
            Ground::Identity(number) => {
                let rule = number.checked_sub(1).and_then(|at| self.allow.get(at));
                rule.is_some_and(|rule| !rule.addresses.is_empty())
            }
        }
    }
}

impl Rule {
    fn matches(&self, device: &Device, service: &Service, advert: Option<&Advert>) -> bool {
        let kind = || advert.is_some_and(|advert| self.types.contains(&advert.kind));
        let name = |pattern: &Pattern| {
            pattern.matches(device.name.as_str())
                || advert.is_some_and(|advert| pattern.matches(advert.instance.as_str()))
        };
        let within = |address: &IpAddr| self.addresses.iter().any(|network| network.holds(*address));
        (self.types.is_empty() || kind())
            && self.name.as_ref().is_none_or(name)
            && self.identity.as_ref().is_none_or(|identity| *identity == device.identity)
            && (self.addresses.is_empty()
                || !device.addresses.is_empty() && device.addresses.iter().all(within))
            && (self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(&service.port)))
    }
}

impl Pattern {
    /// `None`: it names nobody, as there is nothing in it but `*` and `?`.
    pub fn new(text: &str) -> Option<Pattern> {
        let names = text.chars().any(|c| !matches!(c, '*' | '?') && !c.is_whitespace());
        names.then(|| Pattern(text.to_lowercase()))
    }

    /// Whether it stands for `name`.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name): (Vec<char>, Vec<char>) =
            (self.0.chars().collect(), name.to_lowercase().chars().collect());
        // The last `*`, and how much of the name it has taken: where the rest does not match, it takes one more.
        let mut star: Option<(usize, usize)> = None;
        let (mut at, mut seen) = (0, 0);
        while seen < name.len() {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(c) if *c == '?' || name.get(seen) == Some(c) => {
                    at += 1;
                    seen += 1;
                }
                Some(_) | None => {
                    let Some((of, taken)) = star else { return false };
                    star = Some((of, taken + 1));
                    at = of + 1;
                    seen = taken + 1;
                }
            }
        }
        pattern.iter().skip(at).all(|c| *c == '*')
    }

    /// As it was given, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Without regard to case.
pub(super) fn same(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ground::Class(class) => write!(f, "every {class} is shared"),
            Ground::Name(rule) => write!(f, "allowed by name, by [[allow]] {rule}"),
            Ground::Identity(rule) => write!(f, "allowed by identity, by [[allow]] {rule}"),
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Objection::NotAsked(class @ (ServiceClass::Printer | ServiceClass::Scanner)) => {
                write!(f, "not asked for: neither as a {class} nor by name")
            }
            Objection::NotAsked(_) => f.write_str("not asked for: it is shared by name only"),
            Objection::ThisMachine => f.write_str("on this machine: it is shared by name only"),
            Objection::Port(port) => {
                write!(f, "port {port} is something else everywhere: it is shared by name only")
            }
            Objection::Denied(rule) => write!(f, "denied by [[deny]] {rule}"),
            Objection::ByHand => f.write_str("shared by hand already"),
            Objection::Impostor(claims) => {
                write!(f, "it says that it is {}, which is there as well, elsewhere", claims.as_str())
            }
            Objection::Moved => f.write_str(
                "it was at other addresses and under another name before: to share it, allow it by identity and address",
            ),
            Objection::NoAddress => f.write_str("it has no address that can be dialled"),
            Objection::Host { host, of } => {
                write!(f, "it says that it is {}, which is where {} is", host.as_str(), of.as_str())
            }
            Objection::Name(identity) => {
                write!(f, "another device had this name when it was allowed: {}", identity.as_str())
            }
            Objection::TooMany(limit) => write!(f, "{limit} services are shared already"),
            Objection::Refused(problem) => f.write_str(problem),
        }
    }
}

#[cfg(test)]
pub(in crate::discover) mod tests;
