//! Where a Spice server is, as its user writes it: the addresses that viewers take.
//!
//! They are read as spice-gtk 0.42 reads them (tried against it), with three differences. With both ports known, TLS is
//! used for everything, where spice-gtk begins in clear. What spice-gtk drops with a warning, or reads as something else
//! than was meant, is an error. And a `username` may stand among the parameters, as its manual has it.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::{fmt, str::FromStr};

use client_glue::server::{Place, SpiceServer};
use spice_proto::ticket::{Password, PasswordError};
use spice_proto::tls::Trust;
use thiserror::Error;

/// A Spice server as an address says it.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub server: SpiceServer,
    /// The user's name, for SASL.
    pub username: Option<String>,
    /// The password from the address. Whoever may list processes sees it.
    pub password: Option<Password>,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpiceUriError {
    /// Not the address of a Spice server.
    #[error(
        "expected spice://HOST:PORT, spice+tls://HOST:PORT or spice+unix:///PATH, got `{given}`: {problem}"
    )]
    Syntax {
        /// What was given, without what may be secret.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The password within cannot be one.
    #[error("the address's password cannot be used: {0}")]
    Password(PasswordError),
}

impl FromStr for Server {
    type Err = SpiceUriError;

    /// Parses `spice://HOST:PORT`, `spice+tls://HOST:PORT`, `spice+unix:///PATH`, and with parameters behind, between
    /// `&` or `;`: `spice://HOST?port=PORT;tls-port=PORT&username=…&password=…`.
    fn from_str(given: &str) -> Result<Server, SpiceUriError> {
        let wrong = |problem: String| SpiceUriError::Syntax { given: without_secrets(given), problem };
        if let Some(path) = given.strip_prefix("spice+unix://") {
            // As spice-gtk does: all of it is the path, and nothing is decoded.
            if !path.starts_with('/') {
                return Err(wrong("the path must begin with a slash".to_owned()));
            }
            return Ok(Server::at(Place::Unix(PathBuf::from(path))));
        }
        let (tls, rest) = match (given.strip_prefix("spice://"), given.strip_prefix("spice+tls://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(wrong("it does not begin with spice://".to_owned())),
        };
        let uri = Uri::parse(rest).map_err(wrong)?;
        let mut ports = [None, None];
        let [plain, secure] = &mut ports;
        *(if tls { &mut *secure } else { &mut *plain }) = uri.port;
        let (mut username, mut password) = (uri.username, None);
        for (key, value) in parameters(uri.query).map_err(wrong)? {
            let twice = || wrong(format!("there are two values for {key}"));
            match key {
                "port" | "tls-port" if tls => {
                    return Err(wrong(format!("{key} does not go with spice+tls, which has one port")));
                }
                "port" if plain.is_some() => return Err(twice()),
                "port" => *plain = Some(port(&value).map_err(wrong)?),
                "tls-port" if secure.is_some() => return Err(twice()),
                "tls-port" => *secure = Some(port(&value).map_err(wrong)?),
                "username" if username.is_some() => return Err(twice()),
                "username" => username = Some(text("user name", value).map_err(wrong)?),
                "password" if password.is_some() => return Err(twice()),
                "password" => password = Some(Password::new(value).map_err(SpiceUriError::Password)?),
                _ => {
                    return Err(wrong(format!("{key} is none of port, tls-port, username and password")));
                }
            }
        }
        let [plain, secure] = ports;
        if plain.is_none() && secure.is_none() {
            return Err(wrong("the port is missing".to_owned()));
        }
        let server = Server::at(Place::Tcp { host: uri.host, port: plain, tls_port: secure });
        Ok(Server { username, password, ..server })
    }
}

impl Server {
    fn at(place: Place) -> Server {
        let server = SpiceServer { place, trust: Trust::default(), proxy: None };
        Server { server, username: None, password: None }
    }
}

/// What stands behind the scheme.
struct Uri<'a> {
    username: Option<String>,
    host: String,
    port: Option<u16>,
    query: &'a str,
}

impl Uri<'_> {
    fn parse(rest: &str) -> Result<Uri<'_>, String> {
        let (authority, tail) = rest.split_at(rest.find(['/', '?', ';']).unwrap_or(rest.len()));
        let tail = tail.strip_prefix('/').unwrap_or(tail);
        let query = match tail.strip_prefix(['?', ';']) {
            Some(query) => query,
            None if tail.is_empty() => "",
            None => return Err("nothing but ? may follow the port".to_owned()),
        };
        let (username, place) = match authority.split_once('@') {
            None => (None, authority),
            Some((user, _)) if user.contains(':') => {
                return Err(
                    "a password goes behind it as ?password=…, or better in a file: --password-file".into()
                );
            }
            Some((user, place)) => (Some(text("user name", decoded(user)?)?), place),
        };
        let (host, digits) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']').ok_or("the ] behind the address is missing")?;
                let host = text("address", decoded(host)?)?;
                let address = host.split('%').next().unwrap_or_default();
                if address.parse::<Ipv6Addr>().is_err() {
                    return Err("what stands in [] is no IPv6 address".to_owned());
                }
                match behind.strip_prefix(':') {
                    None if !behind.is_empty() => {
                        return Err("a colon and the port go behind the ]".to_owned());
                    }
                    digits => (host, digits),
                }
            }
            None => {
                let (host, digits) = match place.split_once(':') {
                    Some((host, digits)) => (host, Some(digits)),
                    None => (place, None),
                };
                if digits.is_some_and(|digits| digits.contains(':')) {
                    return Err("an IPv6 address goes in [], as in spice://[2001:db8::1]:5900".to_owned());
                }
                (text("host", decoded(host)?)?, digits)
            }
        };
        if host.is_empty() {
            return Err("the host is missing".to_owned());
        }
        let port = digits.filter(|digits| !digits.is_empty()).map(|digits| port(digits.as_bytes()));
        Ok(Uri { username: username.filter(|name| !name.is_empty()), host, port: port.transpose()?, query })
    }
}

/// The parameters that have a value.
fn parameters(query: &str) -> Result<Vec<(&str, Vec<u8>)>, String> {
    let mut found = Vec::new();
    for part in query.split(['&', ';']).filter(|part| !part.is_empty()) {
        let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        match part.split_once('=') {
            Some((_, "")) => {}
            Some((key, value)) if key.len() < 32 && is_key(key) => found.push((key, decoded(value)?)),
            Some(_) | None => return Err("something behind the ? is not KEY=VALUE".to_owned()),
        }
    }
    Ok(found)
}

/// `%20` and the like. A plus sign is no space.
fn decoded(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let code = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(code.ok_or("a percent sign stands without two hexadecimal digits behind it")?);
    }
    Ok(bytes)
}

fn text(what: &str, bytes: Vec<u8>) -> Result<String, String> {
    let text = String::from_utf8(bytes).map_err(|_| format!("the {what} is not UTF-8"))?;
    if text.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
        return Err(format!("the {what} has spaces or control characters in it"));
    }
    Ok(text)
}

fn port(digits: &[u8]) -> Result<u16, String> {
    let number =
        std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()) {
        Some(0) | None => Err("the port is not a number from 1 to 65535".to_owned()),
        Some(port) => Ok(port),
    }
}

/// An address up to where a password may begin.
fn without_secrets(given: &str) -> String {
    let (scheme, rest) = match given.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("", given),
    };
    let rest = rest.split(['?', ';']).next().unwrap_or_default();
    let rest = rest.rsplit('@').next().unwrap_or_default();
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{rest}").chars().filter(|letter| !letter.is_control()).take(200).collect()
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.fmt(f)
    }
}

/// Without the password.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_viewers_do() {
        for (given, shown, username, password) in [
            ("spice://vm.example:5930", "spice://vm.example:5930", None, None),
            ("spice://[2001:db8::1]:5930/", "spice://[2001:db8::1]:5930", None, None),
            ("spice://[fe80::1%25eth0]:5930", "spice://[fe80::1%eth0]:5930", None, None),
            ("spice://10.0.0.1?port=5900", "spice://10.0.0.1:5900", None, None),
            ("spice://h?port=1;password=a%26b", "spice://h:1", None, Some("a&b")),
            ("spice://h:1?password=p+q", "spice://h:1", None, Some("p+q")),
            ("spice://h;port=1&tls-port=2", "spice+tls://h:2", None, None),
            ("spice://h:1?tls-port=2", "spice+tls://h:2", None, None),
            ("spice://h/?port=1&tls-port=", "spice://h:1", None, None),
            ("spice+tls://h:2", "spice+tls://h:2", None, None),
            ("spice+tls://user%40x@h:2", "spice+tls://h:2", Some("user@x"), None),
            ("spice+tls://h:2?username=u;password=p@q", "spice+tls://h:2", Some("u"), Some("p@q")),
            ("spice+unix:///run/vm/spice", "spice+unix:///run/vm/spice", None, None),
            ("spice+unix:///tmp/a%20b?c", "spice+unix:///tmp/a%20b?c", None, None),
        ] {
            let server: Server = given.parse().unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(server.to_string(), shown);
            assert_eq!(server.username.as_deref(), username);
            assert_eq!(server.password, password.map(|text| Password::new(text).unwrap()));
            assert!(!format!("{server:?}").contains("a&b"));
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (given, expected) in [
            ("vm.example:5930", "does not begin"),
            ("vm.example", "expected spice://HOST:PORT"),
            ("http://vm.example:80", "does not begin"),
            ("SPICE://vm.example:80", "does not begin"),
            ("spice://vm.example", "port is missing"),
            ("spice://vm.example:", "port is missing"),
            ("spice://vm.example:0", "from 1 to 65535"),
            ("spice://vm.example:+5", "from 1 to 65535"),
            ("spice://:5930", "host is missing"),
            ("spice://h:1/x", "nothing but"),
            ("spice://h?port=70000", "65535"),
            ("spice://h:1?port=2", "two values for port"),
            ("spice://h:1?hunter2", "KEY=VALUE"),
            ("spice://h:1?tlsport=2", "tlsport is none of"),
            ("spice://2001:db8::1:5900", "[]"),
            ("spice://[::1:5900", "]"),
            ("spice://[::1]5900", "colon"),
            ("spice://[vm]:5900", "no IPv6"),
            ("spice://h%20x:1", "spaces"),
            ("spice://h%zz:1", "percent"),
            ("spice://h%ff:1", "UTF-8"),
            ("spice://u:hunter2@h:1", "--password-file"),
            ("spice+tls://h:1?port=2", "one port"),
            ("spice+tls://h?tls-port=2", "one port"),
            ("spice+unix://tmp/x", "slash"),
            ("spice+unix://", "slash"),
        ] {
            let error = given.parse::<Server>().expect_err(given).to_string();
            assert!(error.contains(expected), "{given}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let long = format!("spice://h:1?password={}", "x".repeat(60));
        let error = long.parse::<Server>().unwrap_err().to_string();
        assert!(error.contains("59") && !error.contains("xxx"), "{error}");
        for given in ["spice://h?password=hunter2", "spice://h;password=hunter2", "spice://hunter2@h"] {
            let error = given.parse::<Server>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!("spice://h:1?password=a%00b".parse::<Server>().unwrap_err().to_string().contains("NUL"));
    }
}
