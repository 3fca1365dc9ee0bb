//! The one task of a tunnel: everything that moves a byte is in here.
//!
//! # Theory of operation
//!
//! A turn goes through all sources that may have something: commands, the server, finished dials, service sockets that
//! stirred, timers. Each gives a bounded amount, so that none starves the rest, and what they left in the
//! channel's outgoing buffer is sent once. Turns follow each other until nothing moves; then the task sleeps, and every
//! source has its waker. After [`ROUNDS`] turns the runtime gets a chance even if there is more to do.
//!
//! There is no queue between tasks. Backpressure is not reading: a service is read only when it is its socket's turn
//! ([`Turns`]), while the socket has credit and the channel is not congested. The server is always read, or both ends could
//! wait for each other. What it sends to a service that is slow waits in that socket's tail, which the window bounds.

mod shares;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use spice_proto::{frame_stream::FrameStream, tunnel::SocketId};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::UnboundedReceiver,
    task::JoinSet,
    time::Sleep,
};
use tracing::{debug, trace, warn};
use tunnel_channel::{Channel, Event as ChannelEvent, ResetCause, Spares, Turns};

use self::shares::Shares;
use crate::{
    Life,
    dial::{Dialled, Dials, Refusal},
    error::{Error, in_full},
    events::{ConnectionId, End, Event, EventSink},
    handle::{Command, Usage},
    http_host::{HostRewrite, HttpFault},
    link,
    ready::ReadySet,
    share::ShareId,
    sockets::ServiceSocket,
};

/// Services read from in one turn, as often as they are read.
const READS_PER_TURN: usize = 16;

/// Sockets looked at in one turn.
const SOCKETS_PER_TURN: usize = 128;

/// Turns before the runtime gets a chance.
const ROUNDS: usize = 16;

/// How long a shutdown may take to tell the server.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long the server has to answer when somebody doubts that it is there.
const PROBE_WITHIN: Duration = Duration::from_secs(3);

/// Services at a time whose connection outlives the guest's, until they have taken everything.
const MAX_LINGERING: usize = 1024;

/// A session before and while it runs.
pub(crate) struct Session<'a, S> {
    pub(crate) link: FrameStream<S>,
    pub(crate) core: Core,
    pub(crate) commands: &'a mut UnboundedReceiver<Command>,
    pub(crate) timer: Pin<Box<Sleep>>,
}

/// Why a session ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Shutdown,
    Server,
    Migrated,
}

impl Ended {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Ended::Shutdown => "shut down",
            Ended::Server => "the server ended the tunnel",
            Ended::Migrated => "the VM moves to another host",
        }
    }
}

/// What a session leaves behind.
pub(crate) struct Outcome {
    pub(crate) result: Result<Ended, Error>,
    /// When INIT came.
    pub(crate) ready: Option<tokio::time::Instant>,
    /// The next connection's number.
    pub(crate) next_connection: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    /// Runs the tunnel to its end.
    ///
    /// Cancel safe in that a dropped run leaves nothing behind: services see a reset, the link is closed.
    pub(crate) async fn run(mut self) -> Outcome {
        let outcome = match self.process_frames(now()) {
            Ok(None) => std::future::poll_fn(|cx| self.poll_turns(cx)).await,
            Ok(Some(ended)) => Ok(ended),
            Err(error) => Err(error),
        };
        self.core.drop_connections();
        if let Ok(Ended::Shutdown) = outcome {
            self.core.channel.disconnect(0);
            let told =
                tokio::time::timeout(GOODBYE, link::close(&mut self.link, &mut self.core.channel)).await;
            if !matches!(told, Ok(Ok(()))) {
                debug!("the server could not be told that the tunnel ends");
            }
        }
        self.core.events.end(match &outcome {
            Ok(ended) => ended.reason().to_owned(),
            Err(error) => in_full(error),
        });
        Outcome { result: outcome, ready: self.core.ready_at, next_connection: self.core.next_connection }
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Error>> {
        self.core.ready.register(cx.waker());
        for _ in 0..ROUNDS {
            match self.turn(cx) {
                Ok(Turn::Moved) => {}
                Ok(Turn::Idle) => return Poll::Pending,
                Ok(Turn::Ended(ended)) => return Poll::Ready(Ok(ended)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Turn, Error> {
        let now = now();
        let mut moved = false;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            moved = true;
            match command {
                Command::Add(entry) => self.core.add_share(*entry),
                Command::Update(entry) => self.core.update_share(*entry),
                Command::Withdraw(share) => self.core.withdraw(share),
                Command::Remove(share) => self.core.remove_share(share),
                Command::AddDomain(domain) => self.core.add_domain(domain),
                Command::RemoveDomain(domain) => self.core.remove_domain(&domain),
                Command::Answer(query, reply) => self.core.answer_name(query, reply),
                Command::Probe => {
                    if !self.core.channel.probe(now, PROBE_WITHIN) {
                        debug!("the server cannot be asked whether it is there");
                    }
                }
                Command::Shutdown => return Ok(Turn::Ended(Ended::Shutdown)),
            }
        }
        if let Poll::Ready(read) = self.link.poll_fill(cx)? {
            moved = true;
            if read == 0 {
                return match (self.core.ready_at.is_some(), self.link.partial()) {
                    (false, _) => Err(Error::NeverBegan),
                    (true, 0) => Ok(Turn::Ended(Ended::Server)),
                    (true, have) => Err(Error::Truncated { have }),
                };
            }
            if let Some(ended) = self.process_frames(now)? {
                return Ok(Turn::Ended(ended));
            }
        }
        moved |= self.core.poll_dials(cx);
        moved |= self.core.poll_services(cx);
        moved |= link::poll_send(&mut self.link, cx, &mut self.core.channel)?;
        moved |= self.poll_timer(cx, now)?;
        Ok(if moved || self.core.has_work() { Turn::Moved } else { Turn::Idle })
    }

    /// Everything whole in the read buffer.
    fn process_frames(&mut self, now: Instant) -> Result<Option<Ended>, Error> {
        let Session { link, core, .. } = self;
        loop {
            let Some((frame, length)) = link.frame(core.channel.max_body())? else { return Ok(None) };
            if let Some(event) = core.channel.handle_frame(now, frame)?
                && let Some(ended) = core.on_event(event)
            {
                return Ok(Some(ended));
            }
            link.consume(length);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Error> {
        let Some((deadline, _)) = self.core.channel.poll_timeout() else { return Ok(false) };
        if deadline <= now {
            self.core.channel.handle_timeout(now)?;
            self.core.spares.tidy(now);
            return Ok(true);
        }
        let deadline = tokio::time::Instant::from_std(deadline);
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        Ok(self.timer.as_mut().poll(cx).is_ready())
    }
}

enum Turn {
    /// Something moved, so that there may be more.
    Moved,
    /// Nothing did, and whatever can move next has the waker.
    Idle,
    Ended(Ended),
}

/// The channel and all that hangs on it: everything but the link.
pub(crate) struct Core {
    channel: Channel,
    /// When the server's INIT came.
    ready_at: Option<tokio::time::Instant>,
    events: EventSink,
    dials: Dials,
    shares: Shares,
    usage: Usage,
    slots: BTreeMap<SocketId, Slot>,
    next_connection: u64,
    ready: Arc<ReadySet>,
    /// To be looked at. May name sockets that are gone, and the same one twice.
    stirred: VecDeque<SocketId>,
    /// Of the sockets whose services may have something to say.
    turns: Turns,
    spares: Spares,
    lingering: JoinSet<()>,
}

/// What a socket of the channel is here.
enum Slot {
    /// And what its requests are to call it, should the share be gone by then.
    Dialling(ShareId, Option<HostRewrite>),
    Connected(Box<ServiceSocket>),
}

impl Core {
    /// A core of the tunnel that `life` describes, which announces its shares as soon as it can.
    pub(crate) fn new(channel: Channel, events: EventSink, dials: Dials, life: Life) -> Core {
        Core {
            channel,
            ready_at: None,
            events,
            dials,
            shares: Shares::new(life.beginning, life.tunnel, life.asker),
            usage: life.usage,
            slots: BTreeMap::new(),
            next_connection: life.next_connection,
            ready: Arc::default(),
            stirred: VecDeque::new(),
            turns: Turns::default(),
            spares: Spares::default(),
            lingering: JoinSet::new(),
        }
    }

    fn on_event(&mut self, event: ChannelEvent<'_>) -> Option<Ended> {
        match event {
            ChannelEvent::Ready { max_sockets, max_data } => {
                self.ready_at = Some(tokio::time::Instant::now());
                self.events.push(Event::Connected { max_sockets, max_data });
                self.shares.on_ready(&mut self.channel);
            }
            ChannelEvent::ServiceMapped { service, address } => {
                if let Some(mapped) = self.shares.mapped(service, address) {
                    self.events.push(mapped);
                }
            }
            ChannelEvent::Open { socket, service } => match self.shares.target(service) {
                Some((share, target, rewrite)) => {
                    self.slots.insert(socket, Slot::Dialling(share, rewrite));
                    self.dials.start(socket, share, target);
                }
                None => self.channel.refuse(socket),
            },
            ChannelEvent::Data { socket, payload } => self.on_data(socket, payload),
            ChannelEvent::Finished { socket } => {
                if let Some(Slot::Connected(service)) = self.slots.get_mut(&socket) {
                    let outcome = service.finish(&mut self.spares);
                    self.settle(socket, outcome);
                }
            }
            ChannelEvent::PeerClosed { socket } => {
                if let Some(service) = self.connected(socket) {
                    service.stop_reading();
                    self.settle(socket, Ok(()));
                }
            }
            ChannelEvent::Writable { socket } => self.turns.ready(socket),
            ChannelEvent::Reset { socket, cause } => self.on_reset(socket, cause),
            ChannelEvent::Migrate => return Some(Ended::Migrated),
            ChannelEvent::Disconnecting { reason } => debug!(reason, "the server is about to leave"),
            // No domain is ever added here, so the channel refuses every name on its own.
            ChannelEvent::NameAsked { query, name } => self.on_name_asked(query, name),
            ChannelEvent::ServiceDescribed { .. }
            | ChannelEvent::ServiceAdded(_)
            | ChannelEvent::ServiceRejected { .. }
            | ChannelEvent::ServiceRemoved { .. }
            | ChannelEvent::NameAnswered { .. }
            | ChannelEvent::DomainAdded { .. }
            | ChannelEvent::DomainRemoved { .. }
            | ChannelEvent::Accepted { .. }
            | ChannelEvent::Refused { .. } => debug!(?event, "a client's channel has no such event"),
        }
        None
    }

    fn on_data(&mut self, socket: SocketId, payload: &[u8]) {
        let Some(Slot::Connected(service)) = self.slots.get_mut(&socket) else {
            debug!(socket = socket.0, "data for a socket without a service");
            return;
        };
        match service.take(payload, &mut self.spares) {
            Ok(0) => {}
            Ok(messages) => self.channel.delivered(socket, messages),
            Err(error) => self.settle(socket, Err(error)),
        }
    }

    fn on_reset(&mut self, socket: SocketId, cause: ResetCause) {
        match cause {
            ResetCause::Peer => trace!(socket = socket.0, "reset by the guest"),
            ResetCause::Violation(_) | ResetCause::Memory { .. } => {
                warn!(socket = socket.0, %cause, "connection reset");
            }
        }
        match self.slots.remove(&socket) {
            Some(Slot::Dialling(share, _)) => self.dials.cancel(socket, share),
            Some(Slot::Connected(service)) => self.closed(&service, End::Guest),
            None => {}
        }
    }

    fn poll_dials(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready((socket, outcome)) = self.dials.poll_done(cx) {
            moved = true;
            self.on_dialled(socket, outcome);
        }
        // Only to forget the ends of those that have it behind them.
        while let Poll::Ready(Some(_)) = self.lingering.poll_join_next(cx) {}
        moved
    }

    fn on_dialled(&mut self, socket: SocketId, outcome: Result<Dialled, Refusal>) {
        let Some(Slot::Dialling(share, rewrite)) = self.slots.get(&socket) else { return };
        let (share, rewrite) = (*share, rewrite.clone());
        match outcome {
            Ok(Dialled { stream, address }) => {
                let connection = ConnectionId(self.next_connection);
                self.next_connection += 1;
                let mark = self.ready.waker(socket);
                let service = Box::new(ServiceSocket::new(stream, share, connection, mark, rewrite));
                self.slots.insert(socket, Slot::Connected(service));
                self.channel.accept(socket);
                self.turns.ready(socket);
                debug!(socket = socket.0, %address, "connected");
                self.usage.opened(share);
                self.events.push(Event::Opened { share, connection, address });
            }
            Err(reason) => {
                self.slots.remove(&socket);
                self.channel.refuse(socket);
                debug!(socket = socket.0, %reason, "refused");
                self.events.push(Event::Refused { share, reason });
            }
        }
    }

    /// Looks at sockets that stirred, and reads from services.
    fn poll_services(&mut self, _cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        self.ready.take(&mut self.stirred);
        for _ in 0..SOCKETS_PER_TURN {
            let Some(socket) = self.stirred.pop_front() else { break };
            moved = true;
            self.look_at(socket);
        }
        for _ in 0..READS_PER_TURN {
            if self.channel.is_congested() {
                break;
            }
            let Some(socket) = self.turns.next_turn() else { break };
            moved = true;
            match self.read(socket) {
                0 => self.turns.silent(socket),
                read => self.turns.sent(socket, read),
            }
        }
        moved
    }

    /// A service takes bytes again, or says something, or both.
    fn look_at(&mut self, socket: SocketId) {
        let Some(Slot::Connected(service)) = self.slots.get_mut(&socket) else { return };
        service.looked_at();
        match service.flush(&mut self.spares) {
            Ok(0) => {}
            Ok(messages) => self.channel.delivered(socket, messages),
            Err(error) => return self.settle(socket, Err(error)),
        }
        if service.is_reading() {
            self.turns.ready(socket);
        }
        self.settle(socket, Ok(()));
    }

    /// Sends a message of what the service says. 0: it says nothing, or it may not be heard, or that was its last word.
    fn read(&mut self, socket: SocketId) -> usize {
        let Some(Slot::Connected(service)) = self.slots.get_mut(&socket) else { return 0 };
        if !service.is_reading() {
            return 0;
        }
        let mut outcome = Poll::Pending;
        // Without credit it is not read, and comes back with some.
        let sent = self.channel.send(socket, |buf| {
            outcome = service.poll_read(buf);
            match &outcome {
                Poll::Ready(Ok(read)) => *read,
                Poll::Ready(Err(_)) | Poll::Pending => 0,
            }
        });
        match outcome {
            Poll::Ready(Ok(0)) => {
                self.channel.finish(socket);
                self.settle(socket, Ok(()));
            }
            Poll::Ready(Err(error)) => self.settle(socket, Err(error)),
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        sent
    }

    /// Acts on how a socket stands now: broken, over, or neither.
    fn settle(&mut self, socket: SocketId, outcome: io::Result<()>) {
        let Some(Slot::Connected(service)) = self.slots.get(&socket) else { return };
        match outcome {
            Err(error) => {
                if error.get_ref().is_some_and(|cause| cause.is::<HttpFault>()) {
                    warn!(socket = socket.0, %error, "what the guest asks cannot be passed on with another Host");
                } else {
                    debug!(socket = socket.0, %error, "the service broke the connection");
                }
                self.channel.reset(socket);
                self.close_slot(socket, End::Service);
            }
            Ok(()) if service.has_ended() => {
                self.channel.close(socket);
                self.close_slot(socket, End::Clean);
            }
            Ok(()) => {}
        }
    }

    fn close_slot(&mut self, socket: SocketId, end: End) {
        if let Some(Slot::Connected(service)) = self.slots.remove(&socket) {
            self.closed(&service, end);
            if service.must_linger() && self.lingering.len() < MAX_LINGERING {
                self.lingering.spawn(service.linger());
            }
        }
    }

    fn closed(&mut self, service: &ServiceSocket, end: End) {
        self.usage.closed(service.share);
        self.events.push(Event::Closed {
            share: service.share,
            connection: service.connection,
            bytes_up: service.bytes_up,
            bytes_down: service.bytes_down,
            end,
        });
    }

    fn connected(&mut self, socket: SocketId) -> Option<&mut ServiceSocket> {
        match self.slots.get_mut(&socket) {
            Some(Slot::Connected(service)) => Some(service),
            Some(Slot::Dialling(..)) | None => None,
        }
    }

    fn has_work(&self) -> bool {
        !self.stirred.is_empty() || !self.turns.is_empty() && !self.channel.is_congested()
    }

    /// The tunnel is over: services see a reset.
    fn drop_connections(&mut self) {
        self.slots.clear();
        self.usage.all_closed();
    }
}

impl Slot {
    fn share(&self) -> ShareId {
        match self {
            Slot::Dialling(share, _) => *share,
            Slot::Connected(service) => service.share,
        }
    }
}

/// The runtime's clock, so that a paused one is followed.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
