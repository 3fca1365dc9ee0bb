#![doc = include_str!("../README.md")]
//!
//! # Where is what
//!
//! | question | look at |
//! | --- | --- |
//! | how do I plug it in | [`tunnel`], [`Linked::tunnel`], [`companion()`] |
//! | what can be shared | [`Share`] |
//! | where may a name lead | [`resolve`] |
//! | what happens in a tunnel | [`Event`] |
//! | how is it steered | [`Handle`] |
//! | where is a server, and which is the right one | [`server`] |
//! | what is there to share | `discover`, with the feature of that name |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod companion;
mod dial;
#[cfg(feature = "discover")]
pub mod discover;
mod error;
mod events;
mod handle;
mod link;
mod network;
mod ready;
pub mod resolve;
mod sasl;
pub mod server;
mod session;
mod share;
mod sockets;

use std::{future::Future, sync::Arc, time::Duration};

use spice_proto::{
    frame_stream::FrameStream,
    link::{ChannelType, CommonCaps, TunnelCaps},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel_channel::{Channel, Role};

pub use crate::{
    companion::{CompanionConfig, CompanionError, companion},
    dial::Refusal,
    error::Error,
    events::{ConnectionId, End, Event, Events},
    handle::{Handle, check_shares},
    server::{Credentials, HttpProxy, LinkFailure, Place, SpiceServer},
    share::{Host, MAX_TEXT, Share, ShareError, ShareId},
};
// What a client needs of the crates below, so that it names but this one.
pub use spice_proto::{
    handshake::Linked,
    ticket::{Password, PasswordError},
    tls::{Roots, Subject, Trust},
};
pub use tunnel_channel::Config as ChannelConfig;

/// How much a tunnel takes on.
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// Sockets, message sizes, windows, memory.
    pub channel: tunnel_channel::Config,
    /// How long the guest waits for a service: resolving, waiting in line and connecting together.
    pub dial_deadline: Duration,
    /// Events held for an owner that is slow to fetch them, before connections' events are dropped.
    pub event_capacity: usize,
}

impl Default for TunnelConfig {
    /// 10 s to dial, 1024 events.
    fn default() -> TunnelConfig {
        TunnelConfig {
            channel: tunnel_channel::Config::default(),
            dial_deadline: Duration::from_secs(10),
            event_capacity: 1024,
        }
    }
}

/// The common capability words to advertise when linking the tunnel channel for [`tunnel`]: a ticket, and short headers.
pub fn common_caps() -> Vec<u32> {
    vec![CommonCaps::OURS.bits()]
}

/// The channel capability words to advertise when linking the tunnel channel for [`tunnel`].
pub fn channel_caps() -> Vec<u32> {
    vec![TunnelCaps::OURS.bits()]
}

/// A tunnel over `stream`, on which the link stage is over with the outcome `linked`.
///
/// The future runs the tunnel to its end: `Ok` after [`Handle::shutdown`], when the server leaves in good order (as it does
/// when the Spice session ends) and when the VM migrates; [`Error`] else. It must run within a Tokio runtime with time
/// and I/O enabled. The last event, [`Event::Disconnected`], says why as well.
///
/// Cancel safe in that a dropped future leaves nothing behind: services see a reset, the stream is closed.
pub fn tunnel<S>(
    stream: S,
    linked: Linked,
    config: TunnelConfig,
) -> (Handle, Events, impl Future<Output = Result<(), Error>> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (handle, commands) = Handle::new(config.channel.max_services);
    let (sink, events) = events::queue(config.event_capacity);
    let run = async move {
        let mut commands = commands;
        let life = Life { shares: Vec::new(), next_connection: 0 };
        Box::pin(run(stream, linked, config, &mut commands, sink, life)).await.result.map(|_| ())
    };
    (handle, events, run)
}

/// What a tunnel begins with.
struct Life {
    shares: Vec<handle::Entry>,
    /// The first connection's number.
    next_connection: u64,
}

/// Runs one tunnel to its end.
async fn run<S>(
    stream: S,
    linked: Linked,
    config: TunnelConfig,
    commands: &mut tokio::sync::mpsc::UnboundedReceiver<handle::Command>,
    mut sink: events::EventSink,
    life: Life,
) -> session::Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if linked.channel_type != ChannelType::TUNNEL.0 {
        let error = Error::NotATunnel { got: linked.channel_type };
        sink.end(error.to_string());
        return session::Outcome { result: Err(error), ready: None, next_connection: life.next_connection };
    }
    let caps = TunnelCaps::from_words(&linked.peer_channel_caps) & TunnelCaps::OURS;
    let now = tokio::time::Instant::now();
    let channel =
        Channel::new(Role::Client, linked.header, linked.layout, caps, config.channel, now.into_std());
    let dials = dial::Dials::new(Arc::default(), config.dial_deadline);
    let session = session::Session {
        link: FrameStream::new(stream, linked.header, &linked.leftover),
        core: session::Core::new(channel, sink, dials, life.shares, life.next_connection),
        commands,
        timer: Box::pin(tokio::time::sleep_until(now)),
    };
    Box::pin(session.run()).await
}
