//! Where a Spice server is, how it is reached, and how a tunnel is linked there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spice_proto::handshake::{ClientLink, Deadlines, HandshakeError, Linked, Step};
use spice_proto::io::IoError;
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkFault, LinkVersion};
use spice_proto::ticket::Password;
use spice_proto::tls::{Connector, TlsError, Trust};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long the server's host may take to answer a connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

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

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    /// Nobody there.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// No TLS, or not with the right one.
    #[error("{server} cannot be trusted")]
    Tls {
        /// The server.
        server: String,
        /// What is wrong.
        source: TlsError,
    },
    /// Something else than a Spice server.
    #[error("{server} is not a Spice server")]
    NotSpice {
        /// The server.
        server: String,
        /// What is wrong with its answer.
        source: LinkFault,
    },
    /// A Spice server without a tunnel closes without a word.
    #[error("{server} offers no tunnel channel; is `spice-tunnel serve` in front of it?")]
    NoTunnel {
        /// The server.
        server: String,
    },
    /// Wrong or expired ticket.
    #[error("{server} does not accept the password: {}", if *given { "it is wrong, or has expired" } else { "none was given; use --password-file" })]
    WrongPassword {
        /// The server.
        server: String,
        /// A password was given.
        given: bool,
    },
    /// The server knows no session that we could join.
    #[error(
        "{server} takes no tunnel beside a viewer: companions are turned off there, or there are several sessions"
    )]
    NoCompanion {
        /// The server.
        server: String,
    },
    /// Not now.
    #[error("{server} cannot take a tunnel now; is the Spice server behind it running?")]
    NotNow {
        /// The server.
        server: String,
    },
    /// TLS only.
    #[error("{server} wants TLS for the tunnel: give its TLS port, as in spice+tls://HOST:PORT")]
    NeedsTls {
        /// The server.
        server: String,
    },
    /// Anything else in the link stage.
    #[error("cannot link the tunnel channel of {server}")]
    Link {
        /// The server.
        server: String,
        /// What happened.
        source: IoError,
    },
}

impl SpiceServer {
    /// Connects and links the tunnel channel: of the session with this id, or with 0 as a companion.
    ///
    /// Not cancel safe in that a dropped attempt closes the connection; nothing else is left of it.
    ///
    /// # Errors
    /// [`LinkFailure`]
    pub async fn link(&self, session_id: u32, credentials: &Credentials) -> Result<TunnelLink, LinkFailure> {
        let (mut stream, ends, secure) = self.connect().await?;
        let asked = ClientLink {
            version: LinkVersion::V2,
            channel_type: ChannelType::TUNNEL.0,
            channel_id: 0,
            session_id,
            common_caps: CommonCaps::OURS,
            channel_caps: crate::channel_caps(),
        };
        let password = &credentials.password;
        match spice_proto::io::connect(&mut stream, asked, password, Deadlines::default()).await {
            Ok(linked) => Ok(TunnelLink { stream, linked, ends, secure }),
            Err(error) => Err(explain(self.to_string(), *password != Password::empty(), error)),
        }
    }

    /// Whether links go over TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self.place, Place::Tcp { tls_port: Some(_), .. })
    }

    async fn connect(&self) -> Result<(BoxStream, Option<(SocketAddr, SocketAddr)>, bool), LinkFailure> {
        let failed = |source| LinkFailure::Connect { server: self.to_string(), source };
        let connecting = async {
            match &self.place {
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(failed)?;
                    Ok((Box::new(stream) as BoxStream, None, false))
                }
                Place::Tcp { host, port, tls_port } => {
                    let Some(port) = tls_port.or(*port) else {
                        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "no port is known")));
                    };
                    if self.proxy.is_some() {
                        return Err(failed(io::ErrorKind::Unsupported.into()));
                    }
                    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "the link's socket could not be set to send at once");
                    }
                    let ends = stream.local_addr().ok().zip(stream.peer_addr().ok());
                    if tls_port.is_none() {
                        return Ok((Box::new(stream) as BoxStream, ends, false));
                    }
                    let failed = |source| LinkFailure::Tls { server: self.to_string(), source };
                    let connector = Connector::new(&self.trust).map_err(failed)?;
                    let stream = connector.connect(host, stream).await.map_err(failed)?;
                    Ok((Box::new(stream) as BoxStream, ends, true))
                }
            }
        };
        match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s"))),
        }
    }
}

/// As a URI, without a password.
impl fmt::Display for SpiceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => write!(f, "spice+unix://{}", path.display()),
            Place::Tcp { host, port, tls_port } => {
                let scheme = if tls_port.is_some() { "spice+tls" } else { "spice" };
                let port = tls_port.or(*port).unwrap_or_default();
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

/// What a failed link stage means to a user.
fn explain(server: String, given: bool, error: IoError) -> LinkFailure {
    match error {
        IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) => LinkFailure::NoTunnel { server },
        // A close with something of ours still unread shows as a reset.
        IoError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => {
            LinkFailure::NoTunnel { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied)) => {
            LinkFailure::WrongPassword { server, given }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId)) => {
            LinkFailure::NoCompanion { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::ChannelNotAvailable)) => {
            LinkFailure::NotNow { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::NeedSecured)) => {
            LinkFailure::NeedsTls { server }
        }
        IoError::Handshake(HandshakeError::BadServer(source)) => LinkFailure::NotSpice { server, source },
        source @ (IoError::Handshake(_) | IoError::Io(_) | IoError::Seal(_)) => {
            LinkFailure::Link { server, source }
        }
    }
}
