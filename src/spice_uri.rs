//! Where a Spice server is, as its user writes it.

use std::{fmt, str::FromStr};

use client_glue::server::{Place, SpiceServer};
use spice_proto::ticket::{Password, PasswordError};
use spice_proto::tls::Trust;
use thiserror::Error;
use url::{Url, form_urlencoded};

/// A Spice server as an address says it.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub server: SpiceServer,
    /// The password from the address. Whoever may list processes sees it.
    pub password: Option<Password>,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpiceUriError {
    /// Not `spice://HOST:PORT`.
    #[error("expected spice://HOST:PORT, got `{given}`: {problem}")]
    Syntax {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Right, but this program cannot do it yet.
    #[error("{what} cannot be used yet: so far `connect` takes spice://HOST:PORT only")]
    NotYet {
        /// What it would have been.
        what: &'static str,
    },
    /// Both a plain and a TLS port.
    #[error(
        "the address has a TLS port as well, and TLS cannot be used yet; to go without it, leave tls-port away"
    )]
    Downgrade,
    /// The password within cannot be one.
    #[error("the address's password cannot be used: {0}")]
    Password(PasswordError),
}

impl FromStr for Server {
    type Err = SpiceUriError;

    /// Parses `spice://HOST:PORT` and the forms that viewers take besides: `spice://HOST?port=PORT&password=…`, with
    /// `&` or `;` between the parts. Parts that mean nothing here are ignored, as viewers do.
    fn from_str(given: &str) -> Result<Server, SpiceUriError> {
        // The password may be in it, so that what is shown ends before the question mark.
        let shown = given.split('?').next().unwrap_or(given);
        let wrong =
            |problem: &str| SpiceUriError::Syntax { given: shown.to_owned(), problem: problem.to_owned() };
        if given.ends_with(".vv") {
            return Err(SpiceUriError::NotYet { what: "a viewer's file (.vv)" });
        }
        let url = Url::parse(given).map_err(|error| wrong(&error.to_string()))?;
        match url.scheme() {
            "spice" => {}
            "spice+tls" => return Err(SpiceUriError::NotYet { what: "spice+tls" }),
            "spice+unix" => return Err(SpiceUriError::NotYet { what: "spice+unix" }),
            _ => return Err(wrong("it does not begin with spice://")),
        }
        if !matches!(url.path(), "" | "/") {
            return Err(wrong("nothing but ? may follow the port"));
        }
        let host =
            url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the host is missing"))?;
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let mut port = url.port();
        let mut tls_port = false;
        let mut password = None;
        for part in url.query().unwrap_or_default().split(['&', ';']) {
            // Viewers do not take a plus sign for a space.
            let part = part.replace('+', "%2B");
            for (key, value) in form_urlencoded::parse(part.as_bytes()) {
                match &*key {
                    "port" => {
                        port = Some(value.parse().map_err(|_| wrong("the port is not a number up to 65535"))?)
                    }
                    "tls-port" => tls_port = true,
                    "password" => {
                        let text = Password::new(value.into_owned()).map_err(SpiceUriError::Password)?;
                        password = Some(text);
                    }
                    _ => {}
                }
            }
        }
        match (port, tls_port) {
            (Some(_), true) => Err(SpiceUriError::Downgrade),
            (None, true) => Err(SpiceUriError::NotYet { what: "a TLS port" }),
            (None | Some(0), false) => Err(wrong("the port is missing")),
            (Some(port), false) => {
                let place = Place::Tcp { host: host.to_owned(), port: Some(port), tls_port: None };
                Ok(Server { server: SpiceServer { place, trust: Trust::default(), proxy: None }, password })
            }
        }
    }
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
        for (given, shown, password) in [
            ("spice://vm.example:5930", "spice://vm.example:5930", None),
            ("spice://[2001:db8::1]:5930/", "spice://[2001:db8::1]:5930", None),
            ("spice://10.0.0.1?port=5900", "spice://10.0.0.1:5900", None),
            ("spice://h?port=1;password=a%26b", "spice://h:1", Some("a&b")),
            ("spice://h:1?unknown=x&password=p+q", "spice://h:1", Some("p+q")),
        ] {
            let server: Server = given.parse().unwrap();
            assert_eq!(server.to_string(), shown);
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
            ("spice://vm.example", "port is missing"),
            ("spice://vm.example:0", "port is missing"),
            ("spice://:5930", "host"),
            ("spice://h:1/x", "nothing but"),
            ("spice://h?port=70000", "65535"),
            ("spice+tls://h:1", "yet"),
            ("spice://h?tls-port=1", "yet"),
            ("spice://h:1?tls-port=1", "TLS port as well"),
            ("/tmp/console.vv", "viewer's file (.vv) cannot be used yet"),
        ] {
            let error = given.parse::<Server>().expect_err(given).to_string();
            assert!(error.contains(expected), "{given}: {error}");
        }
        let long = format!("spice://h:1?password={}", "x".repeat(60));
        let error = long.parse::<Server>().unwrap_err().to_string();
        assert!(error.contains("59") && !error.contains("xxx"), "{error}");
        let error = "spice://h?password=secret".parse::<Server>().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
