//! Where clients come in: listeners, the beginning of TLS, and room for those who are waiting.
//!
//! A link counts among the strangers from its accept on, so that a thousand handshakes that never end cost no more than a
//! thousand links that say nothing. What the peer does wrong is in our log; on the wire it sees what libspice-server does
//! (wire-reference 1.9): a TLS port resets who speaks in clear, a plain port answers TLS as any other magic.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use spice_proto::tls::{Acceptor, TlsError, TlsStream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::nic::{self, NicError, SocketFile};
use crate::proxy::{Proxy, TunnelLink};
use crate::stream::{BoxStream, Chain, Peer, tune};

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// Without TLS.
    Tcp(TcpListener),
    /// With TLS. Each handshake takes the acceptor of its moment, so that certificates can be changed meanwhile.
    Tls(TcpListener, watch::Receiver<Acceptor>),
    /// For programs on this machine.
    Unix(LocalListener),
}

/// A Unix socket that clients connect to.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    _file: Option<SocketFile>,
}

impl LocalListener {
    /// Listens at a path, for the own user only. A socket that a dead process left there is replaced; ours is removed in the
    /// end.
    ///
    /// # Errors
    /// The path is taken, or the system refuses it.
    pub async fn bind(path: &Path) -> Result<Self, NicError> {
        let (listener, file) = nic::listen(path, Some(0o600)).await?;
        Ok(Self { listener, _file: Some(file) })
    }

    /// The next program that connects. Cancel safe.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl From<UnixListener> for LocalListener {
    fn from(listener: UnixListener) -> Self {
        Self { listener, _file: None }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<LocalListener> for Listener {
    fn from(listener: LocalListener) -> Self {
        Self::Unix(listener)
    }
}

/// Where it is, for logs.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) | Self::Tls(listener, _) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("?"),
            },
            Self::Unix(LocalListener { listener, .. }) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => write!(f, "unix:{}", path.display()),
                    None => f.write_str("unix:?"),
                }
            }
        }
    }
}

/// Somebody who has connected.
enum Guest {
    Ready(BoxStream),
    BeforeTls(TcpStream, Acceptor),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Guest, Peer)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = tcp(listener).await?;
                (Guest::Ready(Box::new(stream)), peer)
            }
            Self::Tls(listener, acceptor) => {
                let (stream, peer) = tcp(listener).await?;
                let acceptor = acceptor.borrow().clone();
                (Guest::BeforeTls(stream, acceptor), peer)
            }
            Self::Unix(LocalListener { listener, .. }) => {
                let (stream, _) = listener.accept().await?;
                let peer = match stream.peer_cred().map(|who| (who.pid(), who.uid())) {
                    Ok((Some(pid), uid)) => Peer::named(format!("process {pid} of user {uid}")),
                    Ok((None, uid)) => Peer::named(format!("a process of user {uid}")),
                    Err(_) => Peer::named("a local process"),
                };
                (Guest::Ready(Box::new(stream)), peer)
            }
        })
    }
}

async fn tcp(listener: &TcpListener) -> io::Result<(TcpStream, Peer)> {
    let (stream, address) = listener.accept().await?;
    tune(&stream);
    let ends = stream.local_addr().ok().map(|ours| (address, ours));
    let peer = Peer { name: address.to_string(), address: Some(address.ip()), ends, secure: false };
    Ok((stream, peer))
}

impl Proxy {
    /// Takes links from a listener until `shutdown`, then ends all that came through it.
    ///
    /// Tunnels go to `tunnels`; when it is full or closed, tunnel links are refused.
    pub async fn serve(
        &self,
        listener: impl Into<Listener>,
        tunnels: mpsc::Sender<TunnelLink>,
        shutdown: CancellationToken,
    ) {
        let listener = listener.into();
        let mut links = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = links.join_next(), if !links.is_empty() => {
                    if let Err(error) = done {
                        tracing::error!(%error, "a link's task failed");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((guest, peer)) => {
                    links.spawn(self.clone().receive(guest, peer, tunnels.clone(), shutdown.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, say. It would come back at once.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        links.shutdown().await;
    }

    /// Runs one link from its first byte to its last (a tunnel's: until it is handed over).
    ///
    /// This is what a listener of another kind calls. A stream that brings TLS with it says so in its [`Peer`].
    /// `shutdown` reaches tunnels that were handed over; to end any other link drop the future.
    pub async fn handle(
        self,
        stream: BoxStream,
        peer: Peer,
        tunnels: mpsc::Sender<TunnelLink>,
        shutdown: CancellationToken,
    ) {
        self.receive(Guest::Ready(stream), peer, tunnels, shutdown).await;
    }

    async fn receive(
        self,
        guest: Guest,
        peer: Peer,
        tunnels: mpsc::Sender<TunnelLink>,
        shutdown: CancellationToken,
    ) {
        let limit = self.inner.config.limits.deadlines.step;
        let Some(mut link) = self.enter(peer, tunnels, shutdown) else { return };
        let displaced = link.displaced();
        let name = link.peer.name.clone();
        let serving = async {
            let stream = match guest {
                Guest::Ready(stream) => stream,
                Guest::BeforeTls(stream, acceptor) => match begin_tls(stream, &acceptor, limit).await {
                    Ok(stream) => {
                        link.peer.secure = true;
                        Box::new(stream)
                    }
                    Err(error) => {
                        report(&link.peer, &error);
                        return;
                    }
                },
            };
            Box::pin(link.run(stream)).await;
        };
        tokio::select! {
            () = displaced.cancelled() => {
                tracing::debug!(peer = name, "closed a link without a ticket, to make room for another");
            }
            () = serving => {}
        }
    }
}

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
enum NoTls {
    #[error("it closed before it said anything")]
    Closed,
    #[error("it speaks Spice in clear on a TLS port: its viewer must be given this port as the TLS port")]
    Spice,
    #[error("expected TLS on this port, got bytes that begin with {}", .0.escape_ascii())]
    NotTls(Vec<u8>),
    #[error("its TLS handshake did not end within {0:?}")]
    Late(Duration),
    #[error("its connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The type of the record that every handshake of TLS begins with.
const HANDSHAKE: u8 = 22;

async fn begin_tls(
    stream: TcpStream,
    acceptor: &Acceptor,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, NoTls> {
    let beginning = async {
        let mut first = [0; 4];
        // Left in the socket, for TLS to read, or to be reset.
        let seen = stream.peek(&mut first).await?;
        match first.get(..seen).unwrap_or_default() {
            [] => Err(NoTls::Closed),
            [HANDSHAKE, ..] => Ok(acceptor.accept(stream).await?),
            [b'R', ..] => Err(NoTls::Spice),
            other => Err(NoTls::NotTls(other.to_vec())),
        }
    };
    timeout(limit, beginning).await.unwrap_or(Err(NoTls::Late(limit)))
}

fn report(peer: &Peer, error: &NoTls) {
    match error {
        NoTls::Closed | NoTls::Late(_) | NoTls::Io(_) => {
            tracing::info!(%peer, "no TLS: {}", Chain(error));
        }
        NoTls::Spice | NoTls::NotTls(_) | NoTls::Tls(_) => {
            tracing::warn!(%peer, "no TLS: {}", Chain(error));
        }
    }
}
