//! A tunnel beside a viewer, which stays joined: it is linked again whenever it ends, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use spice_proto::handshake::Linked;

use crate::server::{BoxStream, Credentials, LinkFailure, SpiceServer, TunnelLink};
use crate::{Error, Events, Handle, TunnelConfig};

/// How a companion behaves.
#[derive(Clone)]
pub struct CompanionConfig {
    /// Of each tunnel.
    pub tunnel: TunnelConfig,
    /// A link on which nothing at all comes for so long is dead.
    pub dead_after: Duration,
    /// Waits between attempts: the first one, doubled with every further one.
    pub first_wait: Duration,
    /// The longest.
    pub longest_wait: Duration,
    /// Puts something around each link's stream, such as a recorder. Gets the connection's ends, ours first.
    pub wrap: Option<Wrap>,
}

/// See [`CompanionConfig::wrap`].
pub type Wrap = Arc<
    dyn Fn(BoxStream, &Linked, Option<(std::net::SocketAddr, std::net::SocketAddr)>) -> BoxStream
        + Send
        + Sync,
>;

impl std::fmt::Debug for CompanionConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompanionConfig").finish_non_exhaustive()
    }
}

impl Default for CompanionConfig {
    fn default() -> Self {
        Self {
            tunnel: TunnelConfig::default(),
            dead_after: Duration::from_secs(15),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            wrap: None,
        }
    }
}

/// Why a companion gave up.
#[derive(Debug, thiserror::Error)]
pub enum CompanionError {
    /// The first attempt failed, or one from which no further attempt can lead on.
    #[error(transparent)]
    Link(#[from] LinkFailure),
    /// The first tunnel failed.
    #[error("the tunnel failed")]
    Tunnel(#[from] Error),
}

/// A tunnel to `server`, as a companion, that stays joined until [`Handle::shutdown`].
///
/// Shares may be added and removed at any time, joined or not; they keep their addresses from link to link.
///
/// Cancel safe in that a dropped future leaves nothing behind: services see a reset, the link is closed.
pub fn companion(
    server: SpiceServer,
    credentials: Credentials,
    config: CompanionConfig,
) -> (Handle, Events, impl Future<Output = Result<(), CompanionError>> + Send) {
    let (handle, commands) = Handle::new(config.tunnel.channel.max_services);
    let (sink, events) = crate::events::queue(config.tunnel.event_capacity);
    let run = async move {
        let TunnelLink { stream, linked, ends, .. } = server.link(0, &credentials).await?;
        let stream = match &config.wrap {
            Some(wrap) => wrap(stream, &linked, ends),
            None => stream,
        };
        Box::pin(crate::run(stream, linked, config.tunnel, commands, sink)).await?;
        Ok(())
    };
    (handle, events, run)
}
