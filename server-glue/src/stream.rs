//! Byte streams that the proxy stands between: who is on them, and how the upstream Spice server is reached.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
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
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Where the Spice server is that the proxy stands in front of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// What an upstream address should look like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT or unix:PATH for the Spice server, got {0:?}")]
pub struct UpstreamError(String);

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(UpstreamError(text.to_owned())),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(Self::Tcp(text.to_owned()))
            }
            Some(_) | None => Err(UpstreamError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Upstream {
    /// Connects, within `limit`.
    pub async fn connect(&self, limit: Duration) -> io::Result<BoxStream> {
        let connecting = async {
            Ok(match self {
                Self::Tcp(address) => {
                    let stream = TcpStream::connect(address.as_str()).await?;
                    tune(&stream);
                    Box::new(stream) as BoxStream
                }
                Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            })
        };
        match timeout(limit, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("{self} did not answer in {limit:?}")))
            }
        }
    }
}

/// A peer that acknowledges nothing for so long is gone.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Sends small messages at once, and notices within a minute or two when the peer's machine is gone.
///
/// That needs both timers: keepalive rests while bytes are on their way. A link that hung for the quarter of an hour that
/// the system would take would keep its session, and so its tunnel, from the user who comes back by another way.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(15));
    let tuned = stream.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    #[cfg(target_os = "linux")]
    let tuned = tuned.and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)));
    if let Err(error) = tuned {
        // The connection works without, only worse.
        tracing::debug!(%error, "could not tune a connection");
    }
}

/// Closes a stream whose last bytes must still arrive: a socket closed with unread bytes in it resets the
/// connection, and the reset overtakes what was written. So it reads on for a moment.
pub(crate) async fn farewell(mut stream: impl Stream) {
    let _ = timeout(Duration::from_secs(1), async {
        stream.shutdown().await?;
        let mut sink = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_addresses() {
        assert_eq!("unix:/run/spice.sock".parse(), Ok(Upstream::Unix("/run/spice.sock".into())));
        assert_eq!("localhost:5900".parse(), Ok(Upstream::Tcp("localhost:5900".into())));
        assert_eq!("[::1]:5900".parse(), Ok(Upstream::Tcp("[::1]:5900".into())));
        for wrong in
            ["", "unix:", "localhost", ":5900", "localhost:", "localhost:0", "localhost:65536", "/run/x"]
        {
            assert!(wrong.parse::<Upstream>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_upstream_is_an_error() {
        let gone = Upstream::Unix("/nonexistent/spice.sock".into());
        assert!(gone.connect(Duration::from_secs(1)).await.is_err());
    }
}
