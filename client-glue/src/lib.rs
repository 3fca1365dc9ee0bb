//! The client's side of a Spice tunnel: what the guest connects to becomes ordinary sockets here.
//!
//! A virtual machine stands somewhere else than its user. This crate runs the tunnel channel (type 7) of the user's
//! Spice session and thereby lets the guest reach what the user *shares*: a printer, a NAS, a web page on the user's
//! own machine. The guest finds each share at an address of its own in a small virtual network.
//!
//! # Use
//!
//! Link a channel of type 7 by whatever means your Spice client has, advertising [`channel_caps`]; then hand the stream
//! to [`tunnel`]. It gives a [`Handle`] for commands, [`Events`] to listen to, and a future that does all the work:
//! spawn it, or poll it beside your own. Nothing runs elsewhere but dials and name lookups.
//!
//! ```no_run
//! use std::time::Instant;
//!
//! use client_glue::{Event, TunnelConfig, tunnel};
//! use spice_proto::{handshake::{ClientLink, Deadlines}, io, link::{ChannelType, CommonCaps, LinkVersion}, ticket::Password};
//! use tokio::net::TcpStream;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut stream = TcpStream::connect("vm-host.example:5930").await?;
//! let link = ClientLink {
//!     version: LinkVersion::V2,
//!     channel_type: ChannelType::TUNNEL.0,
//!     channel_id: 0,
//!     session_id: 0,
//!     common_caps: CommonCaps::OURS,
//!     channel_caps: client_glue::channel_caps(),
//! };
//! let linked = io::connect(&mut stream, link, &Password::new("secret")?, Deadlines::default()).await?;
//!
//! let (handle, mut events, run) = tunnel(stream, linked, TunnelConfig::default());
//! let running = tokio::spawn(run);
//! handle.add_share("tcp://printer.lan:631?name=Office%20printer".parse()?)?;
//!
//! while let Some(event) = events.recv().await {
//!     if let Event::Mapped { name, target, virtual_ip, port, .. } = event {
//!         println!("{name}  {target}  ->  {virtual_ip}:{port}");
//!     }
//! }
//! running.await??;
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees
//!
//! * **It dials nothing but shares.** A server that asks for anything else is refused, and names lead only where names
//!   may lead: see [`resolve`]. Taking a share back resets its connections at once.
//! * **It holds little.** An idle connection costs a socket and about a kilobyte (`examples/idle.rs` measures it). What a slow service has not
//!   taken is bounded by the window of its socket, and over all sockets by
//!   [`memory_budget`](tunnel_channel::Config::memory_budget).
//! * **It tells the truth.** A service's end of stream, half-close, refusal and reset reach the guest as what they are,
//!   and the guest's reach the service. When the tunnel ends, services see a reset, never a clean end.
//! * **One slow party stops only itself.** Neither a service, nor the guest, nor whoever listens to the events.
//!
//! | question | module |
//! | --- | --- |
//! | what can be shared | [`Share`] |
//! | where may a name lead | [`resolve`] |
//! | what happens in a tunnel | [`Event`] |
//! | how is it steered | [`Handle`] |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod companion;
mod dial;
mod error;
mod events;
mod handle;
mod link;
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
    let run = async move { Box::pin(run(stream, linked, config, commands, sink)).await };
    (handle, events, run)
}

/// Runs one tunnel to its end.
async fn run<S>(
    stream: S,
    linked: Linked,
    config: TunnelConfig,
    commands: tokio::sync::mpsc::UnboundedReceiver<handle::Command>,
    mut sink: events::EventSink,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if linked.channel_type != ChannelType::TUNNEL.0 {
        let error = Error::NotATunnel { got: linked.channel_type };
        sink.end(error.to_string());
        return Err(error);
    }
    let caps = TunnelCaps::from_words(&linked.peer_channel_caps) & TunnelCaps::OURS;
    let now = tokio::time::Instant::now();
    let channel =
        Channel::new(Role::Client, linked.header, linked.layout, caps, config.channel, now.into_std());
    let dials = dial::Dials::new(Arc::default(), config.dial_deadline);
    let session = session::Session {
        link: FrameStream::new(stream, linked.header, &linked.leftover),
        core: session::Core::new(channel, sink, dials),
        commands,
        timer: Box::pin(tokio::time::sleep_until(now)),
    };
    Box::pin(session.run()).await
}
