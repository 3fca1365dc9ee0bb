//! What a user offers to the guest: one TCP port of one host, with a name.

use std::{fmt, net::IpAddr, str::FromStr};

use thiserror::Error;
use url::Url;

use crate::{http_host::HostRewrite, offer::DeviceKey, resolve::Class};

/// Longest name and longest description, in bytes of UTF-8.
pub const MAX_TEXT: usize = 255;

/// One TCP port of one host, offered to the guest.
///
/// Usually parsed from what a user wrote:
///
/// ```
/// use client_glue::Share;
///
/// let share: Share = "tcp://printer.lan:631?name=Office%20printer".parse()?;
/// assert_eq!(share.name, "Office printer");
/// assert_eq!(share.target(), "tcp://printer.lan:631");
///
/// // Without a name the host's own is taken. IPv6 addresses stand in brackets.
/// let share: Share = "tcp://[2001:db8::9]:80".parse()?;
/// assert_eq!(share.name, "2001:db8::9");
/// # Ok::<(), client_glue::ShareError>(())
/// ```
///
/// # Names are addresses
///
/// The server derives a device's virtual address from the device's name, so that the guest finds it at the same
/// address every day. Shares of one host are one device: they get one virtual address and differ by port. The name
/// of **the first share of a host** becomes the name of the device and stays it for as long as the tunnel lives;
/// the other shares of that host send their own names along as descriptions. Hence:
///
/// * give a device a `name` and keep it: then the virtual address survives a new DHCP lease of the real device;
/// * when one host has several shares with different names, keep their order;
/// * a name belongs to one host: a second host with it is refused.
///
/// "One host" means written alike: letter case and a final dot do not matter, but `printer.lan` and
/// `192.168.1.50` are two devices even where the one resolves to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What the guest's user knows it by: 1 to [`MAX_TEXT`] bytes without control characters.
    pub name: String,
    /// Where it is, seen from this machine.
    pub host: Host,
    /// TCP port there and at the virtual address alike; not 0.
    pub port: u16,
    /// Free text for people, at most [`MAX_TEXT`] bytes without control characters; may be empty.
    pub description: String,
    /// What the service wants to be called by HTTP, as `HOST` or `HOST:PORT`, where that is not the name by which the guest
    /// knows it: every request of the guest gets it for its `Host`, and must be HTTP/1 in clear. A CUPS or ipp-usb on loopback
    /// needs `localhost:631` or the like. `None` leaves bytes alone, whatever they are.
    pub http_host: Option<String>,
}

/// Names a share within one tunnel; counted from 0, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareId(pub u64);

/// A host as its user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address, dialled exactly as given, loopback and link-local included: whoever writes one means it.
    Address(IpAddr),
    /// A DNS name in lower case and without a final dot. It is resolved at every dial, and where it leads is
    /// [checked](crate::resolve): only the name `localhost` may lead to this machine.
    Name(String),
}

/// Why something cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ShareError {
    /// Not of the form `tcp://HOST:PORT`, with `?name=NAME&description=TEXT&host=HOST` behind it where wanted.
    #[error(
        "`{given}` is not tcp://HOST:PORT or ipp://HOST/PATH, with ?name=NAME behind it or without: {problem}"
    )]
    Syntax {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Not a host name.
    #[error("`{given}` is not a host name: {problem}")]
    HostName {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An address that no single device has.
    #[error("cannot share {address}: it is {class}, no device's address")]
    NoDevice {
        /// The address.
        address: IpAddr,
        /// What kind of address it is.
        class: Class,
    },
    /// Port 0 is no port.
    #[error("port 0 of {host} cannot be shared: ports go from 1 to 65535")]
    PortZero {
        /// The host.
        host: Host,
    },
    /// Empty, too long, or with control characters in it.
    #[error("the {what} {given:?} cannot be used: {problem}")]
    Text {
        /// `name`, `description` or `host`.
        what: &'static str,
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The same port of the same host is shared already.
    #[error("{target} is shared already")]
    Duplicate {
        /// The target, as `tcp://HOST:PORT`.
        target: String,
    },
    /// Another device has the name, and the name decides the virtual address.
    #[error("the name `{name}` belongs to {owner} already: give this share a name of its own with ?name=")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        owner: DeviceKey,
    },
    /// The addresses of an offer cannot be dialled for it.
    #[error("the addresses of an offer cannot be used: {problem}")]
    Addresses {
        /// What is wrong with them.
        problem: String,
    },
    /// What is to be told of a service is of another device.
    #[error("what is said of a service of {device} is said of {named}")]
    Identity {
        /// The device.
        device: DeviceKey,
        /// The identity that was said.
        named: String,
    },
    /// It cannot be advertised like this.
    #[error("a share cannot be advertised like this: {problem}")]
    Advert {
        /// What is wrong.
        problem: String,
    },
    /// A domain whose names a guest cannot ask for.
    #[error("`{given}` cannot be a domain for the guest: {problem}")]
    Domain {
        /// The domain.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More shares than one tunnel bears.
    #[error("this tunnel has its {limit} shares already")]
    TooMany {
        /// The most that may be shared at a time.
        limit: usize,
    },
    /// The tunnel is over.
    #[error("the tunnel has ended")]
    Ended,
}

impl Share {
    /// A share named after its host.
    pub fn new(host: Host, port: u16) -> Share {
        let name = match &host {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        };
        Share { name, host, port, description: String::new(), http_host: None }
    }

    /// The target as people read it: `tcp://HOST:PORT`, with brackets round an IPv6 address.
    pub fn target(&self) -> String {
        format!("tcp://{}:{}", self.host, self.port)
    }

    /// Checks what the types do not say. [`crate::Handle::add_share`] does so as well.
    ///
    /// # Errors
    ///
    /// [`ShareError::PortZero`], [`ShareError::Text`], [`ShareError::HostName`] or [`ShareError::NoDevice`].
    pub fn check(&self) -> Result<(), ShareError> {
        self.host.check()?;
        if self.port == 0 {
            return Err(ShareError::PortZero { host: self.host.clone() });
        }
        if self.name.is_empty() {
            return Err(ShareError::Text { what: "name", given: String::new(), problem: "it is empty" });
        }
        for (what, text) in [("name", &self.name), ("description", &self.description)] {
            let problem = if text.len() > MAX_TEXT {
                "it is longer than 255 bytes"
            } else if text.chars().any(char::is_control) {
                "it has control characters in it"
            } else {
                continue;
            };
            return Err(ShareError::Text { what, given: text.clone(), problem });
        }
        if let Some(given) = &self.http_host
            && let Err(problem) = HostRewrite::new(given)
        {
            return Err(ShareError::Text { what: "host", given: given.clone(), problem });
        }
        Ok(())
    }
}

impl FromStr for Share {
    type Err = ShareError;

    /// Parses `tcp://HOST:PORT`, with `?name=NAME`, `?description=TEXT`, `?host=HTTPHOST` or several (`&` between them) behind it.
    /// The texts are percent-encoded where they must be; an unknown key is an error, lest a typing mistake be lost.
    fn from_str(given: &str) -> Result<Share, ShareError> {
        let wrong =
            |problem: &str| ShareError::Syntax { given: given.to_owned(), problem: problem.to_owned() };
        let url = Url::parse(given).map_err(|error| wrong(&error.to_string()))?;
        if url.scheme() != "tcp" {
            return Err(wrong("only tcp can be shared"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("no user or password belongs there"));
        }
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(wrong("nothing but ?name=, &description= and &host= may follow the port"));
        }
        let host =
            url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the host is missing"))?;
        let port = url.port().ok_or_else(|| wrong("the port is missing"))?;
        let mut share = Share::new(host.parse()?, port);
        let (mut named, mut described, mut called) = (false, false, false);
        for (key, value) in url.query_pairs() {
            let (text, seen) = match &*key {
                "name" => (&mut share.name, &mut named),
                "description" => (&mut share.description, &mut described),
                "host" => (share.http_host.get_or_insert_default(), &mut called),
                other => {
                    return Err(wrong(&format!(
                        "unknown key `{other}`: there are name, description and host"
                    )));
                }
            };
            if std::mem::replace(seen, true) {
                return Err(wrong(&format!("{key} is given twice")));
            }
            *text = value.into_owned();
        }
        share.check()?;
        Ok(share)
    }
}

impl Host {
    fn check(&self) -> Result<(), ShareError> {
        match self {
            Host::Address(address) => match Class::of(*address) {
                class @ (Class::Unspecified | Class::Multicast | Class::Reserved) => {
                    Err(ShareError::NoDevice { address: *address, class })
                }
                Class::Unicast | Class::Loopback | Class::LinkLocal | Class::Disguised => Ok(()),
            },
            Host::Name(name) => match name_problem(name) {
                Some(problem) => Err(ShareError::HostName { given: name.clone(), problem }),
                None => Ok(()),
            },
        }
    }

    /// True for `localhost` and what ends in `.localhost` (RFC 6761, section 6.3): this machine, whatever any
    /// resolver says.
    pub(crate) fn is_localhost(&self) -> bool {
        match self {
            Host::Address(_) => false,
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl FromStr for Host {
    type Err = ShareError;

    /// An IPv4 address, an IPv6 address with or without brackets, or a DNS name. An IPv4 address written as IPv6
    /// (`::ffff:192.0.2.1`) becomes IPv4. Names like `127.1`, which old programs read as addresses, are errors.
    fn from_str(given: &str) -> Result<Host, ShareError> {
        let bare = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(given);
        let host = match bare.parse::<IpAddr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) => Host::Name(given.strip_suffix('.').unwrap_or(given).to_ascii_lowercase()),
        };
        host.check()?;
        Ok(host)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// What keeps `name` from being a host name (RFC 1123, section 2.1; underscores are borne, since they are in use).
fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > 253 {
        return Some("it is longer than 253 characters");
    }
    if !name.is_ascii() {
        return Some("write it in its ASCII form (xn--…)");
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Some("its parts between the dots have 1 to 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some("its parts neither begin nor end with a hyphen");
        }
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return Some("it has letters, digits, hyphens and dots only");
        }
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return Some("it ends in a number; an IPv4 address is four numbers, as in 192.168.1.50");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Share, ShareError> {
        text.parse()
    }

    #[test]
    fn a_share_is_read_as_written() {
        let share = parse("tcp://192.168.1.50:9100?name=Big+one&description=2nd%20floor").unwrap();
        assert_eq!(share.host, Host::Address("192.168.1.50".parse().unwrap()));
        assert_eq!((share.port, &*share.name, &*share.description), (9100, "Big one", "2nd floor"));
        assert_eq!(share.target(), "tcp://192.168.1.50:9100");

        let share = parse("tcp://Printer.LAN.:631/").unwrap();
        assert_eq!(share.host, Host::Name("printer.lan".into()));
        assert_eq!((&*share.name, share.target().as_str()), ("printer.lan", "tcp://printer.lan:631"));

        let share = parse("tcp://[fe80::1]:80").unwrap();
        assert_eq!((&*share.name, share.target().as_str()), ("fe80::1", "tcp://[fe80::1]:80"));
    }

    #[test]
    fn a_service_may_want_to_be_called_otherwise() {
        let share = parse("tcp://localhost:631?name=cups&host=localhost:631").unwrap();
        assert_eq!((&*share.name, share.http_host.as_deref()), ("cups", Some("localhost:631")));
        assert_eq!(parse("tcp://localhost:631").unwrap().http_host, None);
        for host in ["localhost", "Printer.Local:80", "127.0.0.1:60000", "[::1]", "[::1]:631"] {
            assert_eq!(parse(&format!("tcp://a:1?host={host}")).unwrap().http_host.as_deref(), Some(host));
        }
        for host in [
            "",
            ":631",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "::1",
            "a%0D%0AX:1",
            "a%20b",
            "a/b",
            "u@a",
            "[::1",
            "a:1:2",
        ] {
            let error = parse(&format!("tcp://a:1?host={host}")).expect_err(host).to_string();
            assert!(error.contains("the host "), "{host}: {error}");
        }
    }

    #[test]
    fn loopback_is_shared_by_whoever_writes_it() {
        for text in ["tcp://127.0.0.1:631", "tcp://[::1]:631", "tcp://localhost:631"] {
            parse(text).unwrap();
        }
        assert_eq!(parse("tcp://[::ffff:127.0.0.1]:1").unwrap().host, Host::Address([127, 0, 0, 1].into()));
    }

    #[test]
    fn what_is_no_share_says_why() {
        for (text, expected) in [
            ("", "not tcp://"),
            ("printer:631", "only tcp"),
            ("udp://printer:53", "only tcp"),
            ("tcp://printer", "port is missing"),
            ("tcp://:80", "empty host"),
            ("tcp://printer:0", "port 0"),
            ("tcp://printer:65536", "invalid port"),
            ("tcp://u:p@printer:80", "no user"),
            ("tcp://printer:80/path", "nothing but"),
            ("tcp://printer:80#x", "nothing but"),
            ("tcp://printer:80?nmae=x", "unknown key `nmae`"),
            ("tcp://printer:80?name=a&name=b", "name is given twice"),
            ("tcp://printer:80?host=a&host=b", "host is given twice"),
            ("tcp://printer:80?name=", "it is empty"),
            ("tcp://printer:80?name=a%00b", "control characters"),
            ("tcp://printer:80?name=a%0Ab", "control characters"),
            ("tcp://0.0.0.0:80", "unspecified"),
            ("tcp://[::]:80", "unspecified"),
            ("tcp://224.0.0.251:80", "multicast"),
            ("tcp://[ff02::fb]:80", "multicast"),
            ("tcp://255.255.255.255:80", "reserved"),
            ("tcp://127.1:80", "ends in a number"),
            ("tcp://2130706433:80", "ends in a number"),
            ("tcp://0x7f000001:80", "ends in a number"),
            ("tcp://a..b:80", "between the dots"),
            ("tcp://-a:80", "hyphen"),
            ("tcp://b%C3%BCro:80", "letters"),
            ("tcp://büro:80", "letters"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = format!("tcp://printer:80?name={}", "n".repeat(256));
        assert!(parse(&long).unwrap_err().to_string().contains("longer than 255"));
    }
}
