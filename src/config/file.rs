//! The configuration file as it is written: TOML, of which every key is known and every value means something.
//!
//! Each value is checked where it is read, so that an error knows its line.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use client_glue::discover::policy::Pattern;
use client_glue::discover::{Network, NetworkId, ServiceClass};
use client_glue::service_info::{HostName, Identity, Label, ServiceType};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use toml::Spanned;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) network: Option<Of<NetworkId>>,
    pub(super) share: Vec<Spanned<Share>>,
    pub(super) discover: Option<Discover>,
    pub(super) allow: Vec<Spanned<Rule>>,
    pub(super) deny: Vec<Spanned<Rule>>,
    pub(super) rename: Vec<Spanned<Rename>>,
    pub(super) domain: Vec<Spanned<Domain>>,
}

/// `[[share]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Share {
    pub(super) target: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
}

/// `[discover]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Discover {
    pub(super) enabled: bool,
    pub(super) interfaces: Vec<String>,
    pub(super) except_interfaces: Vec<String>,
    pub(super) dns_sd: Option<Switch<DnsSd>>,
    pub(super) unicast_dns_sd: Option<UnicastDnsSd>,
    pub(super) snmp: Option<Switch<Snmp>>,
    pub(super) ssdp: Option<bool>,
    pub(super) ws_discovery: Option<bool>,
    pub(super) local: Option<Switch<Local>>,
    pub(super) share_classes: Vec<Of<ServiceClass>>,
}

impl Default for Discover {
    fn default() -> Discover {
        Discover {
            // Whoever writes the table wants it.
            enabled: true,
            interfaces: Vec::new(),
            except_interfaces: Vec::new(),
            dns_sd: None,
            unicast_dns_sd: None,
            snmp: None,
            ssdp: None,
            ws_discovery: None,
            local: None,
            share_classes: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DnsSd {
    pub(super) types: Vec<Of<ServiceType>>,
}

/// A list of domains, or more in a table.
#[derive(Debug)]
pub(super) enum UnicastDnsSd {
    Domains(Vec<Of<HostName>>),
    Table(UnicastTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct UnicastTable {
    pub(super) domains: Vec<Of<HostName>>,
    pub(super) search_domains: bool,
    pub(super) types: Vec<Of<ServiceType>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Snmp {
    pub(super) communities: Option<Vec<Of<Community>>>,
}

/// A community of SNMP.
#[derive(Debug)]
pub(super) struct Community(pub(super) String);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Local {
    pub(super) cups: Option<Of<SocketAddr>>,
    pub(super) usb: Option<bool>,
}

/// `[[allow]]` and `[[deny]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rule {
    #[serde(rename = "type")]
    pub(super) types: Many<Of<ServiceType>>,
    pub(super) name: Option<Of<Pattern>>,
    pub(super) identity: Option<Of<Identity>>,
    pub(super) address: Many<Of<Network>>,
    pub(super) port: Many<Ports>,
}

/// `[[rename]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rename {
    pub(super) identity: Option<Of<Identity>>,
    pub(super) name: Option<String>,
    pub(super) to: Of<Label>,
}

/// `[[domain]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Domain {
    pub(super) name: Of<HostName>,
    pub(super) ports: Option<Vec<Port>>,
}

/// On, off, or on with more said.
#[derive(Debug)]
pub(super) enum Switch<T> {
    Off,
    On(T),
}

/// One or a list.
#[derive(Debug)]
pub(super) struct Many<T>(pub(super) Vec<T>);

/// What is written as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Of<T>(pub(super) T);

/// A TCP port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port(pub(super) u16);

/// A port, or `"FROM-TO"`.
#[derive(Debug)]
pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl<T> Default for Many<T> {
    fn default() -> Many<T> {
        Many(Vec::new())
    }
}

/// What can be written as text.
pub(super) trait Text: Sized {
    /// How it is written.
    const FORM: &'static str;

    fn read(text: &str) -> Result<Self, String>;
}

impl Text for NetworkId {
    const FORM: &'static str = "a network's name";

    fn read(text: &str) -> Result<NetworkId, String> {
        NetworkId::new(text).ok_or_else(|| {
            format!("{text:?} is no network's name: expected up to 32 letters, digits, hyphens, underscores and dots")
        })
    }
}

impl Text for HostName {
    const FORM: &'static str = "a domain, as in \"home.arpa\"";

    fn read(text: &str) -> Result<HostName, String> {
        HostName::new(text.strip_suffix('.').unwrap_or(text)).map_err(|error| error.to_string())
    }
}

impl Text for ServiceType {
    const FORM: &'static str = "a type, as in \"_ipp._tcp\"";

    fn read(text: &str) -> Result<ServiceType, String> {
        ServiceType::new(text).map_err(|error| error.to_string())
    }
}

impl Text for Identity {
    const FORM: &'static str = "an identity, as `spice-tunnel discover` shows it";

    fn read(text: &str) -> Result<Identity, String> {
        Identity::new(text).map_err(|error| error.to_string())
    }
}

impl Text for Label {
    const FORM: &'static str = "a name";

    fn read(text: &str) -> Result<Label, String> {
        Label::new(text).map_err(|error| error.to_string())
    }
}

impl Text for Pattern {
    const FORM: &'static str = "a name, in which * stands for anything";

    fn read(text: &str) -> Result<Pattern, String> {
        Pattern::new(text)
            .ok_or_else(|| format!("{text:?} names nobody: expected a name, of which * may be a part"))
    }
}

impl Text for Network {
    const FORM: &'static str = "an address or a range, as in \"192.168.1.0/24\"";

    fn read(text: &str) -> Result<Network, String> {
        let wrong = || format!("{text:?} is no address or range: expected one as in 192.168.1.0/24");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), |prefix| prefix.parse().map_err(|_| wrong()))?;
        if prefix > most { Err(wrong()) } else { Ok(Network { address, prefix }) }
    }
}

impl Text for SocketAddr {
    const FORM: &'static str = "an address with a port, as in \"127.0.0.1:631\"";

    fn read(text: &str) -> Result<SocketAddr, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is no address with a port: expected one as in 127.0.0.1:631"))
    }
}

impl Text for ServiceClass {
    const FORM: &'static str = "\"printer\" or \"scanner\"";

    fn read(text: &str) -> Result<ServiceClass, String> {
        match text {
            "printer" | "printers" => Ok(ServiceClass::Printer),
            "scanner" | "scanners" => Ok(ServiceClass::Scanner),
            _ => Err(format!(
                "{text:?} cannot be shared as a class, only printer and scanner can: allow the rest by name with [[allow]]"
            )),
        }
    }
}

impl Text for Community {
    const FORM: &'static str = "a community, as in \"public\"";

    fn read(text: &str) -> Result<Community, String> {
        if text.is_empty() || text.len() > 255 {
            return Err(format!("{text:?} is no community of SNMP: expected 1 to 255 bytes"));
        }
        Ok(Community(text.to_owned()))
    }
}

impl<'de, T: Text> Deserialize<'de> for Of<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Of<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<T: Text> Visitor<'_> for Reader<T> {
            type Value = Of<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Of<T>, E> {
                T::read(text).map(Of).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Switch<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Reader<T> {
            type Value = Switch<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a table")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch<T>, E> {
                Ok(if on { Switch::On(T::default()) } else { Switch::Off })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Switch::On)
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

impl<'de> Deserialize<'de> for UnicastDnsSd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UnicastDnsSd, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = UnicastDnsSd;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of domains, or a table")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<UnicastDnsSd, A::Error> {
                elements(seq).map(UnicastDnsSd::Domains)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UnicastDnsSd, A::Error> {
                UnicastTable::deserialize(MapAccessDeserializer::new(map)).map(UnicastDnsSd::Table)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de, T: Deserialize<'de> + Single> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Many<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Single> Visitor<'de> for Reader<T> {
            type Value = Many<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a list of such", T::FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Many<T>, E> {
                T::of_text(text).map(|one| Many(vec![one])).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Many<T>, E> {
                T::of_number(number).map(|one| Many(vec![one])).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Many<T>, A::Error> {
                elements(seq).map(Many)
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

fn elements<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = seq.next_element()? {
        all.push(one);
    }
    Ok(all)
}

/// What may stand alone where a list may.
pub(super) trait Single: Sized {
    const FORM: &'static str;

    fn of_text(text: &str) -> Result<Self, String>;

    fn of_number(number: i64) -> Result<Self, String>;
}

impl<T: Text> Single for Of<T> {
    const FORM: &'static str = T::FORM;

    fn of_text(text: &str) -> Result<Of<T>, String> {
        T::read(text).map(Of)
    }

    fn of_number(number: i64) -> Result<Of<T>, String> {
        Err(format!("expected {}, got {number}", T::FORM))
    }
}

impl Single for Ports {
    const FORM: &'static str = "a port, or \"FROM-TO\"";

    fn of_text(text: &str) -> Result<Ports, String> {
        let wrong = || format!("{text:?} is no range of ports: expected one as in \"9100-9102\"");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (from, to) = (number(from)?, number(to)?);
        if from > to { Err(wrong()) } else { Ok(Ports(from..=to)) }
    }

    fn of_number(number: i64) -> Result<Ports, String> {
        port(number).map(|port| Ports(port..=port))
    }
}

fn port(number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{number} is no port: ports go from 1 to 65535"))
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ports, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Ports;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Ports::FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
                Ports::of_text(text).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Ports, E> {
                Ports::of_number(number).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Port, D::Error> {
        let number = i64::deserialize(deserializer)?;
        port(number).map(Port).map_err(de::Error::custom)
    }
}
