//! Byte streams that the proxy stands between: who is on them, and how the upstream Spice server is reached.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use spice_proto::link::LinkError;
use spice_proto::tls::{Connector, TlsError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Anything that carries a Spice link: TCP, TLS over it, a Unix socket, a pipe in a test.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Who is at the other end of an accepted stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// For logs.
    pub name: String,
    /// What wrong tickets are counted by; `None` where there is no such thing, as on a Unix socket.
    pub address: Option<IpAddr>,
    /// The connection's two addresses, if it is TCP: theirs, and ours.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// It comes over TLS.
    pub secure: bool,
}

impl Peer {
    /// Somebody who has no address.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), address: None, ends: None, secure: false }
    }

    /// Whether others in the network could read along: no TLS, and not on this machine's own sockets either.
    pub fn in_clear(&self) -> bool {
        !self.secure && self.address.is_some()
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A socket of a Spice server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// What an upstream address should look like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT or unix:PATH for the Spice server, got {0:?}")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(TargetError(text.to_owned())),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(Self::Tcp(text.to_owned()))
            }
            Some(_) | None => Err(TargetError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    async fn open(&self) -> io::Result<BoxStream> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                tune(&stream);
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

/// A TLS port of a Spice server, and what makes it the right one.
#[derive(Clone, Debug)]
pub struct SecureTarget {
    /// Where.
    pub target: Target,
    /// The host that its certificate must be for, unless the connector wants a subject instead.
    pub host: String,
    /// Whom it believes.
    pub connector: Connector,
}

/// Where the Spice server is that the proxy stands in front of: its plain port, its TLS port, or both.
///
/// A client's link in clear is answered by the plain port and one over TLS by the TLS port, so that the server's own policy
/// of what must be TLS (QEMU's `tls-channel=`, `plaintext-channel=`) means to clients what it would mean without a proxy.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Its port without TLS. If it is the only one, TLS with clients ends at the proxy.
    pub plain: Option<Target>,
    /// Its port with TLS. If it is the only one, clients in clear are told to come over TLS.
    pub tls: Option<SecureTarget>,
    /// With nothing but the TLS port: let clients in clear nonetheless, on a user's own machine for instance.
    pub allow_clear: bool,
}

impl From<Target> for Upstream {
    fn from(plain: Target) -> Self {
        Self { plain: Some(plain), tls: None, allow_clear: false }
    }
}

impl From<SecureTarget> for Upstream {
    fn from(tls: SecureTarget) -> Self {
        Self { plain: None, tls: Some(tls), allow_clear: false }
    }
}

impl Upstream {
    /// Which port answers this client.
    ///
    /// # Errors
    /// None does: the code that tells the client so.
    pub fn leg(&self, client: &Peer) -> Result<Leg, LinkError> {
        let plain = || self.plain.clone().map(Leg::Plain);
        let tls = || self.tls.clone().map(Leg::Tls);
        let leg = if client.secure {
            tls().or_else(plain)
        } else {
            let may_use_tls = self.allow_clear || !client.in_clear();
            plain().or_else(|| tls().filter(|_| may_use_tls))
        };
        leg.ok_or(if self.tls.is_some() { LinkError::NeedSecured } else { LinkError::ChannelNotAvailable })
    }
}

/// One of the ports of the Spice server.
#[derive(Clone, Debug)]
pub enum Leg {
    /// Without TLS.
    Plain(Target),
    /// With TLS.
    Tls(SecureTarget),
}

/// Why there is no connection to the Spice server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there.
    #[error("the Spice server {at} does not take a connection")]
    Unreachable {
        /// Where.
        at: Target,
        /// What the system says.
        source: io::Error,
    },
    /// No TLS, or not with the right one.
    #[error("the Spice server {at} is not trusted: nothing was sent to it")]
    Tls {
        /// Where.
        at: Target,
        /// What is wrong.
        source: TlsError,
    },
    /// Not in time.
    #[error("the Spice server {at} did not answer in {limit:?}")]
    Late {
        /// Where.
        at: Target,
        /// How long it had.
        limit: Duration,
    },
}

impl Leg {
    /// Connects, within `limit`.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self, limit: Duration) -> Result<BoxStream, ConnectError> {
        let at = self.target();
        let connecting = async {
            let unreachable = |source| ConnectError::Unreachable { at: at.clone(), source };
            let stream = at.open().await.map_err(unreachable)?;
            match self {
                Self::Plain(_) => Ok(stream),
                Self::Tls(SecureTarget { host, connector, .. }) => {
                    let failed = |source| ConnectError::Tls { at: at.clone(), source };
                    Ok(Box::new(connector.connect(host, stream).await.map_err(failed)?) as BoxStream)
                }
            }
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| Err(ConnectError::Late { at: at.clone(), limit }))
    }

    /// Where it is.
    pub fn target(&self) -> &Target {
        match self {
            Self::Plain(target) | Self::Tls(SecureTarget { target, .. }) => target,
        }
    }
}

/// An error with its causes, on one line of a log.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors of other libraries are wrapped by others that say the same.
            if text != last {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

/// A peer that acknowledges nothing for so long is gone.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Bytes that the system takes of a connection before it can send them. More would only wait there, in the order in which they
/// came; less would let a fast link run dry while its task waits for the processor.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;

/// Sends small messages at once, keeps little of the large ones in the system's buffers, and notices within a minute or two when
/// the peer's machine is gone.
///
/// That needs both timers: keepalive rests while bytes are on their way. A link that hung for the quarter of an hour that
/// the system would take would keep its session, and so its tunnel, from the user who comes back by another way.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(15));
    let tuned = stream.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    #[cfg(target_os = "linux")]
    let tuned = tuned
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)))
        .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT));
    if let Err(error) = tuned {
        // The connection works without, only worse.
        tracing::debug!(%error, "could not tune a connection");
    }
}

/// Writes all of it, and sees to it that it is under way: what stands in the way of that is waited for here, not where an answer is.
pub(crate) async fn send_all(
    stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Closes a stream whose last bytes must still arrive: a socket closed with unread bytes in it resets the
/// connection, and the reset overtakes what was written. So it reads on until the peer closes, for a moment at most.
pub(crate) async fn farewell(mut stream: impl Stream) {
    let _ = timeout(Duration::from_secs(1), async {
        stream.shutdown().await?;
        let mut sink = vec![0; 16 << 10];
        while stream.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_addresses() {
        assert_eq!("unix:/run/spice.sock".parse(), Ok(Target::Unix("/run/spice.sock".into())));
        assert_eq!("localhost:5900".parse(), Ok(Target::Tcp("localhost:5900".into())));
        assert_eq!("[::1]:5900".parse(), Ok(Target::Tcp("[::1]:5900".into())));
        for wrong in
            ["", "unix:", "localhost", ":5900", "localhost:", "localhost:0", "localhost:65536", "/run/x"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_upstream_is_an_error() {
        let gone = Leg::Plain(Target::Unix("/nonexistent/spice.sock".into()));
        let error = gone.connect(Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(
            Chain(&error).to_string(),
            "the Spice server unix:/nonexistent/spice.sock does not take a connection: \
             No such file or directory (os error 2)"
        );
    }

    /// Every kind of client before every kind of server.
    #[test]
    fn each_client_gets_the_port_of_its_kind() {
        use LinkError::{ChannelNotAvailable, NeedSecured};

        let plain = Target::Tcp("plain:1".to_owned());
        let target = Target::Tcp("tls:2".to_owned());
        let connector = Connector::new(&spice_proto::tls::Trust::default()).unwrap();
        let tls = SecureTarget { target, host: "tls".to_owned(), connector };
        let both = Upstream { plain: Some(plain.clone()), tls: Some(tls.clone()), allow_clear: false };
        let forced = Upstream { allow_clear: true, ..tls.clone().into() };
        let local = Peer::named("local");
        let clear = Peer { address: Some([192, 0, 2, 1].into()), ..local.clone() };
        let secure = Peer { secure: true, ..clear.clone() };
        let table: [(&Upstream, [Result<&str, LinkError>; 3]); 5] = [
            (&Upstream::default(), [Err(ChannelNotAvailable); 3]),
            (&plain.into(), [Ok("plain:1"); 3]),
            (&tls.into(), [Ok("tls:2"), Err(NeedSecured), Ok("tls:2")]),
            (&forced, [Ok("tls:2"); 3]),
            (&both, [Ok("plain:1"), Ok("plain:1"), Ok("tls:2")]),
        ];
        for (upstream, wanted) in table {
            let got =
                [&local, &clear, &secure].map(|peer| upstream.leg(peer).map(|leg| leg.target().to_string()));
            assert_eq!(got, wanted.map(|leg| leg.map(str::to_owned)), "{upstream:?}");
        }
    }
}
