//! A stream to the server: sockets, the proxy, TLS, within one deadline.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use spice_proto::tls::{Connector, TlsError, Trust};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::failure::{LinkFailure, ProxyFailure, Stage};
use super::http;
use super::{BoxStream, Place, SpiceServer};
use crate::dial::{Refusal, connect_any};

/// How long the way to the server may take: names, connections, the proxy and TLS together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long to find out, after a failure, whether a port speaks TLS.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// More addresses than this no server has.
const MOST_ADDRESSES: usize = 16;

/// A peer that acknowledges nothing for so long is gone. Keepalive alone would not notice: it rests while bytes are on
/// their way.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Bytes that the system takes of a link before it can send them. More would only wait there, whatever is more urgent; less
/// would let a fast link run dry while its task waits for the processor.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;

type Reached = (BoxStream, Option<(SocketAddr, SocketAddr)>, bool);

impl SpiceServer {
    pub(super) async fn connect(&self) -> Result<Reached, LinkFailure> {
        let mut stage = Stage::Connect;
        // Before anybody is asked: a wrong file needs no network.
        let connector = match self.is_secure() {
            true => Some(Connector::new(&self.trust).map_err(|source| self.no_tls(source))?),
            false => None,
        };
        match timeout(CONNECT_DEADLINE, Box::pin(self.reach(connector, &mut stage))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(LinkFailure::Late { server: self.to_string(), stage, after: CONNECT_DEADLINE }),
        }
    }

    async fn reach(&self, connector: Option<Connector>, stage: &mut Stage) -> Result<Reached, LinkFailure> {
        let (host, port) = match &self.place {
            Place::Unix(path) => {
                if self.proxy.is_some() {
                    return Err(self.misconfigured("a proxy cannot lead to a socket on this machine"));
                }
                let failed = |source| LinkFailure::Connect { server: self.to_string(), source };
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                return Ok((Box::new(stream), None, false));
            }
            Place::Tcp { host, port, tls_port } => match tls_port.or(*port) {
                None | Some(0) => return Err(self.misconfigured("no port is known")),
                Some(port) => (host, port),
            },
        };
        let stream = self.dial(host, port, stage).await?;
        let ends = stream.local_addr().ok().zip(stream.peer_addr().ok());
        let Some(connector) = connector else {
            return Ok((Box::new(stream), ends, false));
        };
        *stage = Stage::Tls;
        let stream = connector.connect(host, stream).await.map_err(|source| self.no_tls(source))?;
        tracing::debug!(server = %self, version = stream.version(), "the link is protected by TLS");
        Ok((Box::new(stream), ends, true))
    }

    /// A TCP connection to the server, by whatever way.
    async fn dial(&self, host: &str, port: u16, stage: &mut Stage) -> Result<TcpStream, LinkFailure> {
        let Some(proxy) = &self.proxy else {
            let failed = |source| LinkFailure::Connect { server: self.to_string(), source };
            return tcp(host, port).await.map_err(failed);
        };
        let failed =
            |source| LinkFailure::Proxy { server: self.to_string(), proxy: proxy.to_string(), source };
        let stream = tcp(&proxy.host, proxy.port).await.map_err(|error| failed(ProxyFailure::Io(error)))?;
        *stage = Stage::Proxy;
        http::connect(stream, proxy, host, port).await.map_err(failed)
    }

    /// Whether the server answers in TLS, in whatever way, where it did not answer Spice. Tells it nothing.
    pub(super) async fn speaks_tls(&self) -> bool {
        let Place::Tcp { host, port: Some(port), .. } = &self.place else {
            return false;
        };
        let asking = async {
            let connector = Connector::new(&Trust::default()).ok()?;
            let stream = self.dial(host, *port, &mut Stage::Connect).await.ok()?;
            Some(connector.connect(host, stream).await)
        };
        match timeout(SECOND_LOOK, Box::pin(asking)).await {
            Ok(Some(Ok(_))) => true,
            Ok(Some(Err(error))) => {
                error.is_untrusted()
                    || matches!(
                        error,
                        TlsError::OldTls { .. } | TlsError::Refused { .. } | TlsError::Handshake { .. }
                    )
            }
            Ok(None) | Err(_) => false,
        }
    }

    fn misconfigured(&self, problem: &'static str) -> LinkFailure {
        LinkFailure::Misconfigured { server: self.to_string(), problem }
    }

    fn no_tls(&self, source: TlsError) -> LinkFailure {
        LinkFailure::Tls { server: self.to_string(), source }
    }
}

/// Connects to whichever address of a host answers first.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await?.take(MOST_ADDRESSES).collect();
    match connect_any(addresses).await {
        Ok(dialled) => {
            #[cfg(target_os = "linux")]
            {
                let socket = SockRef::from(&dialled.stream);
                let tuned = socket
                    .set_tcp_user_timeout(Some(UNACKNOWLEDGED))
                    .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT));
                if let Err(error) = tuned {
                    tracing::debug!(%error, "a link's socket could not be tuned");
                }
            }
            Ok(dialled.stream)
        }
        Err(Refusal::Connect { error, .. }) => Err(error),
        Err(other) => Err(io::Error::other(other)),
    }
}
