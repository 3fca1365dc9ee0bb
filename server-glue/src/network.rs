//! A VM's virtual network as one object, for a hypervisor or a Spice server written in Rust: a card, and linked tunnel
//! streams that join it. The session proxy is not needed for it; it feeds the same task.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use spice_proto::handshake::Linked;
use spice_proto::link::{ChannelType, CommonCaps, TunnelCaps};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::address::{AddressBook, LoadError};
use crate::bridge::AwayConfig;
use crate::challenge::Challenged;
use crate::net_config::NetConfig;
use crate::netstack::Netstack;
use crate::nic::Nic;
use crate::proxy::TunnelLink;
use crate::session::Session;
use crate::stream::Peer;

/// How a [`network`] is laid out, and how much it takes on. Start from the default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// Subnet, addresses, MTU, connections.
    pub net: NetConfig,
    /// Sockets, windows, memory of each tunnel, and when its client is dead.
    pub channel: tunnel_channel::Config,
    /// What the guest sees between two tunnels.
    pub away: AwayConfig,
    /// Tells the user's networks apart: the same device name has another address in another network.
    pub network_id: String,
    /// Remembers every address that was ever given, so that none ever moves. Without it an address is still the hash of
    /// its name.
    pub lease_file: Option<PathBuf>,
}

impl Default for NetworkConfig {
    /// That of `spice-tunnel serve`.
    fn default() -> Self {
        Self {
            net: NetConfig::default(),
            channel: tunnel_channel::Config::default(),
            away: AwayConfig::default(),
            network_id: "default".to_owned(),
            lease_file: None,
        }
    }
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The lease file cannot be read.
    #[error("cannot read the lease file {}", path.display())]
    LeaseFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lease file is not one of ours. It is left alone: whoever knows what it is may mend or remove it.
    #[error("the lease file {} is unusable", path.display())]
    LeaseText {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LoadError,
    },
    /// Initial sequence numbers need randomness.
    #[error("the system gives no random numbers")]
    Random(#[source] io::Error),
}

/// Why a tunnel cannot join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// A link of another channel: the caller's mistake.
    #[error("the link given is of channel type {got}, expected the tunnel's, 7")]
    NotATunnel {
        /// Its channel type.
        got: u8,
    },
    /// The network was shut down.
    #[error("the network was shut down")]
    Stopped,
}

/// The virtual network behind `nic`. The future runs it until [`Network::shutdown`], or until every [`Network`] is
/// dropped; spawn it. It must run in a Tokio runtime with time enabled.
///
/// Cancel safe in that a dropped future leaves nothing behind: guest and clients see their links close.
///
/// # Errors
/// [`NetworkError`]
pub fn network(
    nic: Nic,
    config: NetworkConfig,
) -> Result<(Network, impl Future<Output = ()> + Send + use<>), NetworkError> {
    let NetworkConfig { mut net, channel, away, network_id, lease_file } = config;
    if net.seed == 0 {
        let mut seed = [0; 8];
        openssl::rand::rand_bytes(&mut seed)
            .map_err(|error| NetworkError::Random(io::Error::other(error)))?;
        net.seed = u64::from_ne_bytes(seed);
    }
    // A connection that has waited for its tunnel may still take as long to be opened as any.
    net.connect_deadline = net.connect_deadline.saturating_add(away.wait.unwrap_or_default());
    net.max_flows = net.max_flows.min(channel.max_sockets.into());
    net.mtu = nic.mtu(net.mtu);
    let mut book = AddressBook::new(&network_id, net.subnet, net.reserved());
    if let Some(path) = &lease_file {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                book.load(&text).map_err(|source| NetworkError::LeaseText { path: path.clone(), source })?;
            }
            // The first run.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(NetworkError::LeaseFile { path: path.clone(), source }),
        }
    }
    let (links, tunnels) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let network = Network { links, shutdown: shutdown.clone() };
    let run = async move {
        let session = Session::new(nic, Netstack::new(net), book, lease_file, channel, tunnels);
        session.while_away(away).run(shutdown).await;
    };
    Ok((network, run))
}

/// Steers a running network. Clones steer the same one.
#[derive(Clone, Debug)]
pub struct Network {
    links: mpsc::Sender<TunnelLink>,
    shutdown: CancellationToken,
}

impl Network {
    /// Joins a tunnel over `stream`, on which the link stage is over with the outcome `linked`: from here on the guest
    /// reaches what its client shares. `name` is the client's, for logs.
    ///
    /// There is one tunnel at a time; the one before ends. Who may join is the caller's to decide: the ticket was
    /// checked, and the client's session is one that lives.
    ///
    /// Cancel safe: a call that is dropped has joined nothing, and closes the stream.
    ///
    /// # Errors
    /// [`JoinError`]
    pub async fn join<S>(
        &self,
        stream: S,
        linked: Linked,
        name: impl Into<String>,
    ) -> Result<Joined, JoinError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if linked.channel_type != ChannelType::TUNNEL.0 {
            return Err(JoinError::NotATunnel { got: linked.channel_type });
        }
        let (ended, over) = (CancellationToken::new(), CancellationToken::new());
        let stream = Box::new(Watched { stream, _over: over.clone().drop_guard() });
        let joined = Joined { leave: ended.clone().drop_guard(), over };
        let peer = Peer::named(name);
        let link = TunnelLink { stream, linked, ended, challenged: Challenged::default(), peer };
        tokio::select! {
            sent = self.links.send(link) => sent.map_err(|_| JoinError::Stopped)?,
            () = self.shutdown.cancelled() => return Err(JoinError::Stopped),
        }
        Ok(joined)
    }

    /// Where a [`Proxy`](crate::proxy::Proxy) sends its tunnels.
    pub fn links(&self) -> mpsc::Sender<TunnelLink> {
        self.links.clone()
    }

    /// Ends the tunnel and the network: the guest's connections are reset, and the future of [`network`] is done.
    pub fn shutdown(&self) {
        self.shutdown.cancel();
    }
}

/// A tunnel's membership: drop it when the user's session ends, and the tunnel ends.
#[derive(Debug)]
#[must_use = "the tunnel ends when this is dropped"]
pub struct Joined {
    leave: DropGuard,
    over: CancellationToken,
}

impl Joined {
    /// Waits until the tunnel has ended: its client left, broke the protocol or is dead, or another one joined.
    ///
    /// Cancel safe.
    pub async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Whether it has.
    pub fn has_ended(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ends the tunnel, and waits until that is done.
    pub async fn leave(self) {
        let Self { leave, over } = self;
        drop(leave);
        over.cancelled().await;
    }
}

/// The common capability words that a server advertises for [`Network::join`].
pub fn common_caps() -> Vec<u32> {
    vec![CommonCaps::OURS.bits()]
}

/// The channel capability words that a server advertises for [`Network::join`].
pub fn channel_caps() -> Vec<u32> {
    vec![TunnelCaps::OURS.bits()]
}

/// A stream that tells when it is dropped.
struct Watched<S> {
    stream: S,
    _over: DropGuard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::card::Card;

    /// A socket that is closed with something unread in it resets the connection, and its peer would take the end for a failure.
    #[tokio::test]
    async fn a_client_that_was_not_heard_to_the_end_sees_an_end_and_no_reset() {
        let (_card, nic) = Card::new(1500);
        let (network, run) = network(nic, NetworkConfig::default()).unwrap();
        let run = tokio::spawn(run);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let linked = Linked::tunnel(&common_caps(), &common_caps(), &channel_caps());
        let _tunnel = network.join(server, linked, "test").await.unwrap();
        client.read_u8().await.unwrap();
        network.shutdown();
        assert_eq!(client.try_write(&[0; 10]).unwrap(), 10);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        drop(client);
        run.await.unwrap();
    }
}
