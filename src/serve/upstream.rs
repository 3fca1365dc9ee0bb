//! Which Spice server `serve` stands in front of, and how that one is told from others.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use server_glue::stream::{SecureTarget, Target, Upstream};
use spice_proto::tls::{Connector, Roots, Subject, TlsError, Trust};

/// Where the Spice server is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct UpstreamArgs {
    /// Its port without TLS: answers the clients that come in clear, and with no --upstream-tls those that come over TLS
    /// too (TLS then ends here, which suits a Unix socket)
    #[arg(long, value_name = "HOST:PORT|unix:PATH", required_unless_present_any = ["standalone", "upstream_tls"])]
    pub(super) upstream: Option<Target>,

    /// Its TLS port: answers the clients that come over TLS. Its certificate must be for HOST, signed by an authority that
    /// the system trusts, unless the next two say otherwise
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "standalone")]
    pub(super) upstream_tls: Option<HostPort>,

    /// The authorities that may have signed its certificate, as PEM; no others count
    #[arg(long, value_name = "FILE", requires = "upstream_tls")]
    pub(super) upstream_ca: Option<PathBuf>,

    /// Its certificate's whole subject, such as C=XX,O=Example,CN=host7; then HOST's name does not matter
    #[arg(long, value_name = "SUBJECT", requires = "upstream_tls")]
    pub(super) upstream_subject: Option<Subject>,

    /// With --upstream-tls alone: let clients come in clear nonetheless, for a proxy on the user's own machine. Without it
    /// they are told that TLS is needed
    #[arg(long, requires = "upstream_tls", conflicts_with = "upstream")]
    pub(super) allow_clear: bool,
}

/// `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    /// Name or address, an IPv6 address without brackets.
    pub(super) host: String,
    /// Not 0.
    pub(super) port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected HOST:PORT, got {text:?}");
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(expected)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(inner) => inner.ok_or_else(expected)?,
            None if host.contains(':') => return Err(expected()),
            None => host,
        };
        if host.is_empty() { Err(expected()) } else { Ok(Self { host: host.to_owned(), port }) }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl UpstreamArgs {
    /// The server, unless there is none.
    ///
    /// # Errors
    /// The authorities cannot be used.
    pub(super) fn upstream(&self) -> Result<Option<Upstream>, TlsError> {
        if self.upstream.is_none() && self.upstream_tls.is_none() {
            return Ok(None);
        }
        let tls = self.upstream_tls.as_ref().map(|at| {
            Ok::<_, TlsError>(SecureTarget {
                target: Target::Tcp(at.to_string()),
                host: at.host.clone(),
                connector: Connector::new(&self.trust())?,
            })
        });
        Ok(Some(Upstream {
            plain: self.upstream.clone(),
            tls: tls.transpose()?,
            allow_clear: self.allow_clear,
        }))
    }

    fn trust(&self) -> Trust {
        let roots = self.upstream_ca.clone().map_or(Roots::System, Roots::File);
        Trust { roots, subject: self.upstream_subject.clone(), ..Trust::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port) in [
            ("vm.example:5901", "vm.example", 5901),
            ("[::1]:1", "::1", 1),
            ("192.0.2.7:65535", "192.0.2.7", 65535),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string(), text);
        }
        for wrong in ["", "vm", "vm:", "vm:0", ":5901", "::1:5901", "[::1:5901", "[]:5901", "vm:65536"] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }
}
