//! The one task of a VM: its card, its netstack and the tunnel of the Spice session that lives.
//!
//! # Theory of operation
//!
//! A turn lets the [`Bridge`] move bytes, waits until something has come (frames of the guest, messages of the client, a
//! new tunnel, a due timer) while it writes what the bridge gave, and feeds all that came to the bridge. There is no
//! queue between tasks. When the tunnel's link is slow, its outgoing buffer passes its high-water mark, the bridge reads
//! no more from the guest's connections, and their TCP windows close. When the card is slow, frames stay in the netstack
//! and its rings, and the client's credit is not returned. The client itself is always read, or both ends could wait for
//! each other.

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use spice_proto::error::FrameError;
use spice_proto::frame_stream::FrameStream;
use spice_proto::link::TunnelCaps;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{debug, info, warn};
use tunnel_channel::{Channel, Config, Role, Violation};

use crate::address::{self, AddressBook};
use crate::bridge::{AwayConfig, Bridge};
use crate::challenge::{CHALLENGE, Challenged};
use crate::netstack::Netstack;
use crate::nic::{Nic, NicEvent};
use crate::proxy::TunnelLink;
use crate::status::{EndReason, Ends, Observed, Status};
use crate::stream::{BoxStream, Peer, farewell};

/// How long the guest's card may take the last frames.
const GOODBYE: Duration = Duration::from_millis(500);
/// Messages of the client that are taken in one turn.
const MESSAGES_PER_TURN: usize = 256;
/// Frames of the guest that are taken in one turn.
const FRAMES_PER_TURN: usize = 256;

/// A VM's network and whoever's tunnel is joined to it.
pub struct Session {
    nic: Nic,
    bridge: Bridge,
    channel_config: Config,
    lease_file: Option<PathBuf>,
    tunnels: mpsc::Receiver<TunnelLink>,
    tunnel: Option<Tunnel>,
    /// Links of tunnels that we ended, until their clients have noticed.
    leaving: JoinSet<()>,
    timer: Pin<Box<Sleep>>,
    observed: Observed,
    joins: u64,
    ends: Ends,
}

/// The tunnel that is attached.
struct Tunnel {
    link: FrameStream<BoxStream>,
    peer: Peer,
    /// Its Spice session is over.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Another one wants its place.
    challenged: Challenged,
    /// Whole messages are left in the read buffer.
    more: bool,
}

/// What has come, of all that was waited for.
#[derive(Default)]
struct Woken {
    card: Option<NicEvent>,
    tunnel: Option<Result<(), TunnelEnd>>,
    joining: Option<TunnelLink>,
    question: Option<oneshot::Sender<Status>>,
    challenge: bool,
    timer: bool,
}

impl Woken {
    fn is_empty(&self) -> bool {
        self.card.is_none()
            && self.tunnel.is_none()
            && self.joining.is_none()
            && self.question.is_none()
            && !self.challenge
            && !self.timer
    }
}

impl Tunnel {
    /// Writes what the bridge has for the client, and reads once. Ready: something was read, or is left from before, or
    /// so much was written that the bridge can go on.
    fn poll(&mut self, cx: &mut Context<'_>, bridge: &mut Bridge) -> Poll<Result<(), TunnelEnd>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(TunnelEnd::Session));
        }
        let was_congested = bridge.channel().is_some_and(Channel::is_congested);
        loop {
            match self.link.poll_send(cx, bridge.outgoing())? {
                Poll::Pending | Poll::Ready(0) => break,
                Poll::Ready(written) => bridge.sent(written),
            }
        }
        let eased = was_congested && bridge.channel().is_some_and(|channel| !channel.is_congested());
        if self.more {
            return Poll::Ready(Ok(()));
        }
        match self.link.poll_fill(cx)? {
            Poll::Ready(0) => Poll::Ready(Err(match self.link.partial() {
                0 => TunnelEnd::Closed,
                bytes => TunnelEnd::Truncated(bytes),
            })),
            Poll::Ready(_) => Poll::Ready(Ok(())),
            Poll::Pending if eased => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
enum TunnelEnd {
    #[error("its Spice session is over")]
    Session,
    #[error("we are shutting down")]
    Shutdown,
    #[error("another tunnel takes its place")]
    Replaced,
    #[error("the client closed it")]
    Closed,
    #[error("the client closed it within a message, {0} bytes in")]
    Truncated(usize),
    #[error("the link broke: {0}")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the client broke the protocol: {0}")]
    Violation(Violation),
    #[error("its client is gone: nothing was heard for {0:?}")]
    Dead(Duration),
}

impl TunnelEnd {
    fn reason(&self) -> EndReason {
        match self {
            Self::Session | Self::Closed => EndReason::Closed,
            Self::Shutdown => EndReason::Shutdown,
            Self::Replaced => EndReason::Replaced,
            Self::Truncated(_) | Self::Io(_) => EndReason::Broken,
            Self::Frame(_) | Self::Violation(_) => EndReason::Protocol,
            Self::Dead(_) => EndReason::Dead,
        }
    }
}

impl From<Violation> for TunnelEnd {
    fn from(violation: Violation) -> Self {
        if let Violation::Silent { after } = violation {
            Self::Dead(after)
        } else {
            Self::Violation(violation)
        }
    }
}

impl Session {
    /// A session that joins the tunnels from `tunnels`, one at a time, to the guest on `nic`. What `book` learns is kept
    /// in `lease_file`, if there is one. Between two tunnels the guest sees what [`AwayConfig::default`] says.
    pub fn new(
        nic: Nic,
        netstack: Netstack,
        book: AddressBook,
        lease_file: Option<PathBuf>,
        channel_config: Config,
        tunnels: mpsc::Receiver<TunnelLink>,
    ) -> Self {
        Self {
            nic,
            bridge: Bridge::new(netstack, book).while_away(AwayConfig::default()),
            channel_config,
            lease_file,
            tunnels,
            tunnel: None,
            leaving: JoinSet::new(),
            timer: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
            observed: Observed::default(),
            joins: 0,
            ends: Ends::default(),
        }
    }

    /// What the guest sees between two tunnels.
    #[must_use]
    pub fn while_away(self, config: AwayConfig) -> Self {
        Self { bridge: self.bridge.while_away(config), ..self }
    }

    /// Answers those who ask how it is, see [`observer`](crate::status::observer).
    #[must_use]
    pub fn observed(self, observed: Observed) -> Self {
        Self { observed, ..self }
    }

    /// Runs until `shutdown`.
    ///
    /// Cancel safe in that a dropped run leaves no task behind; the guest and the client see their links close.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut shutdown = Box::pin(shutdown.cancelled_owned());
        // Of a card that is there from the start, nobody tells.
        if self.nic.is_connected() {
            self.bridge.guest_came(Instant::now(), self.nic.offloads());
        }
        loop {
            let now = Instant::now();
            self.bridge.advance(now);
            while !self.nic.is_full()
                && let Some(frame) = self.bridge.poll_guest_frame(now)
            {
                self.nic.queue(frame);
            }
            self.save_leases();
            if let Some(at) = self.bridge.poll_timeout()
                && self.timer.deadline() != at.into()
            {
                self.timer.as_mut().reset(at.into());
            }
            let Some(woken) = self.wait(shutdown.as_mut()).await else { break };
            self.feed(Instant::now(), woken);
        }
        self.say_goodbye().await;
    }

    /// Tells the guest that its connections and the names are over, as nobody will be there to tell it later, and lets the client
    /// see an end that is no reset.
    async fn say_goodbye(&mut self) {
        let now = Instant::now();
        self.end_tunnel(now, &TunnelEnd::Shutdown);
        self.bridge.forget(now);
        self.bridge.advance(now);
        self.bridge.say_goodbye(now);
        while let Some(frame) = self.bridge.poll_guest_frame(now) {
            self.nic.queue(frame);
        }
        let flushed = async {
            while !self.nic.is_flushed() {
                self.nic.ready().await;
                while self.nic.next_frame().is_some() {}
            }
        };
        if tokio::time::timeout(GOODBYE, flushed).await.is_err() {
            debug!("the guest's card did not take the last frames");
        }
        while self.leaving.join_next().await.is_some() {}
    }

    /// Waits until something has come, and writes meanwhile. All sources are asked, so that none starves another.
    /// `None`: it is time to go.
    async fn wait(&mut self, mut shutdown: Pin<&mut WaitForCancellationFutureOwned>) -> Option<Woken> {
        let Self { nic, bridge, tunnels, tunnel, timer, observed, .. } = self;
        let timed = bridge.poll_timeout().is_some();
        let mut card = std::pin::pin!(nic.ready());
        poll_fn(|cx| {
            if shutdown.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            let mut woken = Woken::default();
            // Before the card: what the guest said is on its way while the kernel takes the acknowledgement.
            if let Some(tunnel) = tunnel {
                woken.challenge = tunnel.challenged.poll_asked(cx).is_ready();
                if let Poll::Ready(outcome) = tunnel.poll(cx, bridge) {
                    woken.tunnel = Some(outcome);
                }
            }
            if let Poll::Ready(event) = card.as_mut().poll(cx) {
                woken.card = Some(event);
            }
            if let Poll::Ready(Some(link)) = tunnels.poll_recv(cx) {
                woken.joining = Some(link);
            }
            if let Poll::Ready(question) = observed.poll_asked(cx) {
                woken.question = Some(question);
            }
            woken.timer = timed && timer.as_mut().poll(cx).is_ready();
            if woken.is_empty() { Poll::Pending } else { Poll::Ready(Some(woken)) }
        })
        .await
    }

    fn feed(&mut self, now: Instant, woken: Woken) {
        match woken.card {
            Some(NicEvent::Connected) => {
                info!("the guest's card is there");
                self.bridge.guest_came(now, self.nic.offloads());
            }
            Some(NicEvent::Lost(reason)) => {
                info!(%reason, "the guest's card is gone");
                self.bridge.guest_lost();
            }
            Some(NicEvent::Frames) => {
                for _ in 0..FRAMES_PER_TURN {
                    let Some(frame) = self.nic.next_frame() else { break };
                    self.bridge.handle_guest_frame(now, frame);
                }
            }
            Some(NicEvent::Room) | None => {}
        }
        let outcome = woken.tunnel.unwrap_or(Ok(())).and_then(|()| self.take_messages(now));
        if let Err(end) = outcome {
            self.end_tunnel(now, &end);
        }
        // What came before the question is no answer to it.
        if woken.challenge
            && let Some(tunnel) = &mut self.tunnel
        {
            info!(peer = %tunnel.peer, "another tunnel wants its place; asking whether it lives");
            self.bridge.probe(now, CHALLENGE);
            tunnel.challenged.probed();
        }
        if woken.timer
            && let Err(violation) = self.bridge.handle_timeout(now)
        {
            self.end_tunnel(now, &violation.into());
        }
        if let Some(link) = woken.joining {
            self.join(now, link);
        }
        if let Some(question) = woken.question {
            // Whoever asked may be gone.
            let _ = question.send(self.status());
        }
    }

    fn status(&self) -> Status {
        Status {
            card: self.nic.is_connected(),
            joins: self.joins,
            ends: self.ends.clone(),
            ..self.bridge.status()
        }
    }

    fn take_messages(&mut self, now: Instant) -> Result<(), TunnelEnd> {
        let Some(tunnel) = &mut self.tunnel else { return Ok(()) };
        tunnel.more = true;
        for _ in 0..MESSAGES_PER_TURN {
            let max_body = self.bridge.channel().map_or(0, Channel::max_body);
            let Some((frame, length)) = tunnel.link.frame(max_body)? else {
                tunnel.more = false;
                break;
            };
            self.bridge.handle_tunnel_frame(now, frame)?;
            tunnel.link.consume(length);
            tunnel.challenged.alive();
        }
        Ok(())
    }

    fn join(&mut self, now: Instant, tunnel: TunnelLink) {
        let TunnelLink { stream, linked, ended, challenged, peer } = tunnel;
        if self.tunnel.is_some() {
            self.end_tunnel(now, &TunnelEnd::Replaced);
        }
        let caps = TunnelCaps::from_words(&linked.peer_channel_caps) & TunnelCaps::OURS;
        info!(%peer, ?caps, "tunnel joined");
        self.joins += 1;
        let channel =
            Channel::new(Role::Server, linked.header, linked.layout, caps, self.channel_config, now);
        self.bridge.attach(now, channel);
        let link = FrameStream::new(stream, linked.header, &linked.leftover);
        // What was read with the link stage may hold messages already.
        let ended = Box::pin(ended.cancelled_owned());
        self.tunnel = Some(Tunnel { link, peer, ended, challenged, more: true });
    }

    fn end_tunnel(&mut self, now: Instant, end: &TunnelEnd) {
        self.bridge.detach(now);
        let Some(tunnel) = self.tunnel.take() else { return };
        self.ends.count(end.reason());
        match end {
            TunnelEnd::Session | TunnelEnd::Replaced | TunnelEnd::Closed | TunnelEnd::Shutdown => {
                info!(peer = %tunnel.peer, "tunnel ended: {end}");
                while self.leaving.try_join_next().is_some() {}
                self.leaving.spawn(farewell(tunnel.link.into_inner()));
            }
            TunnelEnd::Truncated(_)
            | TunnelEnd::Io(_)
            | TunnelEnd::Frame(_)
            | TunnelEnd::Violation(_)
            | TunnelEnd::Dead(_) => {
                warn!(peer = %tunnel.peer, "tunnel ended: {end}");
            }
        }
    }

    /// Keeps what addresses were given, before anybody relies on them. Written seldom: once for each new device.
    fn save_leases(&mut self) {
        let Some(path) = &self.lease_file else { return };
        let book = self.bridge.address_book();
        let Some(text) = book.unsaved() else { return };
        match address::write_atomically(path, &text) {
            Ok(()) => debug!(path = %path.display(), "lease file written"),
            // Without it addresses are still what their names hash to. Trying again at every turn would help nobody.
            Err(error) => warn!(path = %path.display(), %error, "the lease file cannot be written"),
        }
        book.saved();
    }
}
