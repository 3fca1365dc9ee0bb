//! Where clients come in to `serve`, and what must be TLS.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use server_glue::listen::{Listener, LocalListener};
use server_glue::nic::{Nic, NicError, NicSpec, NicSpecError};
use spice_proto::tls::{Acceptor, TlsError};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use super::certificate::Certificate;
use super::upstream::UpstreamArgs;
use crate::inherited::{Inherited, InheritedError, Socket};

/// Where clients come in.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct EntranceArgs {
    /// In clear. Can be given many times. fd:N is a listening socket that was passed to this program, systemd:NAME those
    /// of a socket unit with FileDescriptorName=NAME (systemd: alone, if there is only one)
    #[arg(
        long,
        value_name = "HOST:PORT|unix:PATH|fd:N|systemd:NAME",
        required_unless_present = "tls_listen"
    )]
    pub(super) listen: Vec<Place>,

    /// Over TLS. Can be given many times
    #[arg(long, value_name = "HOST:PORT|fd:N|systemd:NAME", value_parser = not_a_path, requires = "tls_cert", requires = "tls_key")]
    pub(super) tls_listen: Vec<Place>,

    /// The certificate for --tls-listen, and behind it those that lead to an authority, as PEM. Read again on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_listen")]
    pub(super) tls_cert: Option<PathBuf>,

    /// Its key, as PEM. Read again on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,

    /// Let the tunnel come in clear even though there is TLS. Without this a tunnel link in clear is told that TLS is needed
    /// as soon as there is a --tls-listen or an --upstream-tls; viewers go by the Spice server's own policy
    #[arg(long)]
    pub(super) tunnel_in_clear: bool,
}

/// One place to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `fd:N`.
    Fd(RawFd),
    /// `systemd:NAME`, or `systemd:`.
    Systemd(Option<String>),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected HOST:PORT, unix:PATH, fd:N or systemd:NAME, got {text:?}");
        match text.split_once(':').ok_or_else(expected)? {
            ("unix", "") => Err(expected()),
            ("unix", path) => Ok(Self::Unix(path.into())),
            ("fd", number) => number.parse().map(Self::Fd).map_err(|_| expected()),
            ("systemd", "") => Ok(Self::Systemd(None)),
            ("systemd", name) => Ok(Self::Systemd(Some(name.to_owned()))),
            _ => {
                let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
                match port.parse::<u16>() {
                    Ok(_) if !host.is_empty() => Ok(Self::Tcp(text.to_owned())),
                    Ok(_) | Err(_) => Err(expected()),
                }
            }
        }
    }
}

fn not_a_path(text: &str) -> Result<Place, String> {
    match text.parse()? {
        Place::Unix(_) => Err("there is no TLS on Unix sockets; use --listen".to_owned()),
        place @ (Place::Tcp(_) | Place::Fd(_) | Place::Systemd(_)) => Ok(place),
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(number) => write!(f, "fd:{number}"),
            Self::Systemd(name) => write!(f, "systemd:{}", name.as_deref().unwrap_or_default()),
        }
    }
}

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A port that cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A Unix socket that cannot be had.
    #[error("cannot listen there")]
    Unix(#[from] NicError),
    /// What was to be passed was not.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
}

impl EntranceArgs {
    /// Opens all of them. `acceptor` is for those with TLS.
    ///
    /// # Errors
    /// One cannot be had.
    pub(super) async fn open(
        &self,
        inherited: &mut Inherited,
        acceptor: Option<&watch::Receiver<Acceptor>>,
    ) -> Result<Vec<Listener>, ListenError> {
        let mut listeners = Vec::new();
        for place in &self.listen {
            listeners.extend(place.open(inherited, false).await?.into_iter().map(Listener::from));
        }
        for place in &self.tls_listen {
            for opened in place.open(inherited, true).await? {
                listeners.push(match (opened, acceptor) {
                    (Opened::Tcp(listener), Some(acceptor)) => Listener::Tls(listener, acceptor.clone()),
                    (opened, _) => opened.into(),
                });
            }
        }
        Ok(listeners)
    }

    /// The certificate, if anybody comes over TLS.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn certificate(&self) -> Result<Option<Certificate>, TlsError> {
        let files = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        files.map(|(chain, key)| Certificate::load(chain, key)).transpose()
    }

    /// Whether the tunnel may come in clear: as long as there is no TLS at all, or if it was said.
    pub(super) fn tunnel_in_clear(&self, upstream: &UpstreamArgs) -> bool {
        self.tunnel_in_clear || self.tls_listen.is_empty() && upstream.upstream_tls.is_none()
    }

    /// All of them.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.listen.iter().chain(&self.tls_listen)
    }
}

/// A place that is listened at.
#[derive(Debug)]
pub(super) enum Opened {
    Tcp(TcpListener),
    Unix(LocalListener),
}

impl From<Opened> for Listener {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Tcp(listener) => listener.into(),
            Opened::Unix(listener) => listener.into(),
        }
    }
}

impl Place {
    /// The descriptor that has to be there from the start.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Fd(number) => Some(*number),
            Self::Tcp(_) | Self::Unix(_) | Self::Systemd(_) => None,
        }
    }

    /// Listens; for TLS it must be TCP.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) async fn open(
        &self,
        inherited: &mut Inherited,
        tls: bool,
    ) -> Result<Vec<Opened>, ListenError> {
        let failed = |source| ListenError::Bind { address: self.to_string(), source };
        let sockets = match self {
            Self::Tcp(address) => {
                return Ok(vec![Opened::Tcp(TcpListener::bind(address.as_str()).await.map_err(failed)?)]);
            }
            Self::Unix(path) => return Ok(vec![Opened::Unix(LocalListener::bind(path).await?)]),
            Self::Fd(number) => vec![inherited.claim(*number)?],
            Self::Systemd(name) => inherited.claim_named(name.as_deref())?,
        };
        let open = |socket| match socket {
            Socket::TcpListener(listener) => {
                Ok(Opened::Tcp(TcpListener::from_std(listener).map_err(failed)?))
            }
            Socket::UnixListener(listener) if !tls => {
                Ok(Opened::Unix(UnixListener::from_std(listener).map_err(failed)?.into()))
            }
            Socket::UnixListener(_) | Socket::TcpStream(_) | Socket::UnixStream(_) => {
                let expected = if tls { "a listening TCP socket, for TLS" } else { "a listening socket" };
                Err(InheritedError::Kind { name: self.to_string(), got: socket.kind(), expected }.into())
            }
        };
        sockets.into_iter().map(open).collect()
    }
}

/// Where the VM's card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CardPlace {
    /// A path, or a device.
    Spec(NicSpec),
    /// `fd:N`.
    Fd(RawFd),
}

impl FromStr for CardPlace {
    type Err = NicSpecError;

    fn from_str(text: &str) -> Result<Self, NicSpecError> {
        match text.strip_prefix("fd:").map(str::parse) {
            Some(Ok(number)) => Ok(Self::Fd(number)),
            Some(Err(_)) | None => text.parse().map(Self::Spec),
        }
    }
}

impl std::fmt::Display for CardPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spec(spec) => write!(f, "{spec}"),
            Self::Fd(number) => write!(f, "fd:{number}"),
        }
    }
}

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// Its path, or its device.
    #[error("--nic")]
    Nic(#[from] NicError),
    /// What was to be passed was not.
    #[error("--nic")]
    Inherited(#[from] InheritedError),
    /// The system.
    #[error("--nic {0} cannot be used")]
    Io(CardPlace, #[source] io::Error),
}

impl CardPlace {
    /// The descriptor that has to be there from the start.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Spec(_) => None,
            Self::Fd(number) => Some(*number),
        }
    }

    /// Opens it, for packets of at most `mtu` octets.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) async fn open(&self, inherited: &mut Inherited, mtu: u16) -> Result<Nic, CardError> {
        if let Self::Spec(spec) = self {
            return Ok(Nic::open(spec, mtu).await?);
        }
        let failed = |source| CardError::Io(self.clone(), source);
        Ok(match self.claim(inherited)? {
            Card::Listener(listener) => Nic::listening(UnixListener::from_std(listener).map_err(failed)?),
            Card::Unix(stream) => Nic::attached(UnixStream::from_std(stream).map_err(failed)?),
            Card::Tcp(stream) => Nic::attached(TcpStream::from_std(stream).map_err(failed)?),
        })
    }

    /// What was passed for it.
    pub(super) fn claim(&self, inherited: &mut Inherited) -> Result<Card, InheritedError> {
        match inherited.claim(self.descriptor().unwrap_or(-1))? {
            Socket::UnixListener(listener) => Ok(Card::Listener(listener)),
            Socket::UnixStream(stream) => Ok(Card::Unix(stream)),
            Socket::TcpStream(stream) => Ok(Card::Tcp(stream)),
            socket @ Socket::TcpListener(_) => {
                let expected = "a connection to the virtual machine, or a listening Unix socket";
                Err(InheritedError::Kind { name: self.to_string(), got: socket.kind(), expected })
            }
        }
    }
}

/// A socket for the card.
#[derive(Debug)]
pub(super) enum Card {
    Listener(std::os::unix::net::UnixListener),
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for text in ["0.0.0.0:5900", "[::]:0", "unix:/run/vm/viewer.sock", "fd:3", "systemd:", "systemd:tls"]
        {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("systemd:".parse(), Ok(Place::Systemd(None)));
        for wrong in ["", "5900", ":5900", "host:", "host:65536", "unix:", "fd:", "fd:x", "host:port"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
        assert!(not_a_path("unix:/run/x").is_err());
        for text in ["fd:7", "connect:/run/nic", "listen:/run/nic", "tap:vm1-tun"] {
            assert_eq!(text.parse::<CardPlace>().unwrap().to_string(), text);
        }
        for wrong in ["fd:", "fd:x", "tap:", "tap:a/b", "tun:0", ""] {
            assert!(wrong.parse::<CardPlace>().is_err(), "{wrong}");
        }
    }
}
