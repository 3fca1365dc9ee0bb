//! Where a Spice server is, how it is reached, and how a tunnel is linked there.
//!
//! With a TLS port known, links go over TLS, and never in any other way: neither a server that does not answer nor one
//! that answers in clear makes this module try without. Nothing is sent before the server has proved who it is.

mod failure;
mod http;
mod reach;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use spice_proto::handshake::{ClientLink, Deadlines, Linked};
use spice_proto::io::{SaslClient, connect_with};
use spice_proto::link::{ChannelType, CommonCaps, LinkVersion};
use spice_proto::ticket::Password;
use spice_proto::tls::{Roots, Trust};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::sasl;

pub use failure::{LinkFailure, ProxyFailure, Stage};

/// Where a Spice server is, and how it is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiceServer {
    /// Where it is.
    pub place: Place,
    /// With TLS: what makes it the right one.
    pub trust: Trust,
    /// A proxy between us and it.
    pub proxy: Option<HttpProxy>,
}

/// Where a Spice server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host with one port or both. With a TLS port nothing ever goes in clear.
    Tcp {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Without TLS.
        port: Option<u16>,
        /// With TLS.
        tls_port: Option<u16>,
    },
    /// A socket on this machine.
    Unix(PathBuf),
}

/// An HTTP proxy that is asked to CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password, for basic authentication.
    pub user: Option<(String, String)>,
}

impl HttpProxy {
    /// One that asks nobody who they are.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, user: None }
    }
}

/// Without user and password.
impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        authority(f, &self.host, self.port)
    }
}

impl fmt::Debug for HttpProxy {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// How a user proves to be one.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// For SASL.
    pub username: Option<String>,
    /// Of the session; empty where there is none.
    pub password: Password,
}

impl fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Default for Credentials {
    /// For a server that asks for none.
    fn default() -> Self {
        Self::ticket(Password::empty())
    }
}

impl Credentials {
    /// A password alone.
    pub fn ticket(password: Password) -> Self {
        Self { username: None, password }
    }
}

/// Anything that carries a link.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// A tunnel channel that is linked, for [`tunnel`](crate::tunnel).
pub struct TunnelLink {
    /// Carries the channel's messages.
    pub stream: BoxStream,
    /// What the link stage agreed on.
    pub linked: Linked,
    /// The connection's two addresses, ours first, if it is TCP.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// It is protected by TLS.
    pub secure: bool,
}

impl fmt::Debug for TunnelLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelLink")
            .field("linked", &self.linked)
            .field("ends", &self.ends)
            .field("secure", &self.secure)
            .finish_non_exhaustive()
    }
}

impl SpiceServer {
    /// One that is reached without TLS.
    pub fn plain(host: impl Into<String>, port: u16) -> Self {
        let place = Place::Tcp { host: host.into(), port: Some(port), tls_port: None };
        Self { place, trust: Trust::default(), proxy: None }
    }

    /// One that is reached over TLS, and must be the one that `trust` describes.
    pub fn tls(host: impl Into<String>, tls_port: u16, trust: Trust) -> Self {
        let place = Place::Tcp { host: host.into(), port: None, tls_port: Some(tls_port) };
        Self { place, trust, proxy: None }
    }

    /// One on this machine.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Unix(path.into()), trust: Trust::default(), proxy: None }
    }

    /// The same, through a proxy. It does not see more of what goes over TLS than anybody else on the way.
    #[must_use]
    pub fn through(mut self, proxy: HttpProxy) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Connects and links the tunnel channel: of the session with this id, or with 0 as a companion.
    ///
    /// Takes 10 s at most to connect, with the proxy and TLS, and 30 s at most to link.
    ///
    /// Cancel safe in that a dropped attempt closes the connection; nothing else is left of it.
    ///
    /// # Errors
    /// [`LinkFailure`]; see [`LinkFailure::is_final`].
    pub async fn link(&self, session_id: u32, credentials: &Credentials) -> Result<TunnelLink, LinkFailure> {
        self.link_channel(ChannelType::TUNNEL, session_id, crate::channel_caps(), credentials).await
    }

    /// Whether these credentials are right, found out without a tunnel: of a server without one as well, and without
    /// disturbing any session.
    ///
    /// Servers look at the ticket before they look at the session. So a link of `inputs` of a session that nobody has is
    /// refused for its session if the ticket was right.
    ///
    /// Takes as long, and is as cancel safe, as [`SpiceServer::link`].
    ///
    /// # Errors
    /// [`LinkFailure::WrongPassword`] if they are not right; anything else if that did not become clear.
    pub async fn admits(&self, credentials: &Credentials) -> Result<(), LinkFailure> {
        // A hasher's random keys are randomness enough; 0 would ask for a session of its own.
        let nobodys = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default().max(1);
        match self.link_channel(ChannelType::INPUTS, nobodys, Vec::new(), credentials).await {
            Ok(_) | Err(LinkFailure::NoCompanion { .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn link_channel(
        &self,
        channel: ChannelType,
        session_id: u32,
        channel_caps: Vec<u32>,
        credentials: &Credentials,
    ) -> Result<TunnelLink, LinkFailure> {
        let (mut stream, ends, secure) = self.connect().await?;
        let asked = ClientLink {
            version: LinkVersion::V2,
            channel_type: channel.0,
            channel_id: 0,
            session_id,
            common_caps: CommonCaps::OURS,
            channel_caps,
        };
        let password = &credentials.password;
        let mut sasl = sasl::client(credentials, secure);
        let sasl = sasl.as_mut().map(|sasl| sasl as &mut dyn SaslClient);
        match connect_with(&mut stream, asked, password, sasl, Deadlines::default()).await {
            Ok(linked) => Ok(TunnelLink { stream, linked, ends, secure }),
            Err(error) => {
                drop(stream);
                Err(failure::explain(self, *password != Password::empty(), error).await)
            }
        }
    }

    /// Whether links go over TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self.place, Place::Tcp { tls_port: Some(_), .. })
    }
}

/// As a URI, without a password.
impl fmt::Display for SpiceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => write!(f, "spice+unix://{}", path.display()),
            Place::Tcp { host, port, tls_port } => {
                f.write_str(if tls_port.is_some() { "spice+tls://" } else { "spice://" })?;
                authority(f, host, tls_port.or(*port).unwrap_or_default())
            }
        }
    }
}

/// `HOST:PORT`, with brackets round an IPv6 address. Proxmox's hosts have colons in them as well, and its proxy knows them
/// without brackets only.
fn authority(f: &mut impl fmt::Write, host: &str, port: u16) -> fmt::Result {
    let address = host.split('%').next().unwrap_or_default();
    if address.parse::<Ipv6Addr>().is_ok() {
        write!(f, "[{host}]:{port}")
    } else {
        write!(f, "{host}:{port}")
    }
}

/// Whom viewers believe where nobody says otherwise: the authorities in `~/.spicec/spice_truststore.pem`, if there is such
/// a file, and else the system's.
pub fn default_roots() -> Roots {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let file = home.map(|home| PathBuf::from(home).join(".spicec/spice_truststore.pem"));
    file.filter(|file| file.is_file()).map_or(Roots::System, Roots::File)
}
