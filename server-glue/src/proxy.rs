//! The session proxy: stands before a stock Spice server and adds the tunnel channel to its sessions.
//!
//! Every link is answered by one of four ways:
//!
//! | link | way |
//! | --- | --- |
//! | tunnel | we are the server: own key, the ticket's verdict from upstream, then a [`TunnelLink`] for the VM's task |
//! | display | we are the server for the link stage, with upstream's capabilities; upstream sees the ticket only once the client's first message is here, because a display link that ends before it kills QEMU |
//! | any other | bytes pass, the ticket included, which is sealed for upstream |
//! | any, with SASL over TLS upstream | the exchange passes and is followed; a tunnel's is judged by upstream, a display is shielded |
//! | any, with SASL otherwise | bytes pass unseen; what SASL encrypts cannot be read along |
//!
//! Without an upstream ([`Backend::Standalone`]) there is only main, which we answer too, and the tunnel.
//!
//! What strangers cost is bounded: links in waiting by number and deadline ([`Limits`]), tickets by a pace.

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use spice_proto::handshake::{Deadlines, HandshakeError, Linked, OnSasl, ServerHandshake, ServerNeeds};
use spice_proto::io::{IoError, advance};
use spice_proto::link::{
    ChannelType, CommonCaps, LinkError, LinkFault, LinkMess, LinkReply, TICKET_LEN, TunnelCaps, Welcome,
};
use spice_proto::sasl::SaslFault;
use spice_proto::ticket::{CryptoError, Password, TicketKey};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::challenge::Challenged;
use crate::guard::{Admission, Bounds, Guard};
use crate::oracle::{self, Inquiry, Verdict};
use crate::registry::{Home, NoSeat, Present, Registry, Seat};
use crate::status::{Census, ProxyStatus};
use crate::stream::{BoxStream, Chain, ConnectError, Peer, Upstream, farewell};
use crate::{passage, sasl, standalone};

/// What a proxy does.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Who answers the links that are not the tunnel's.
    pub backend: Backend,
    /// Whether there is a tunnel.
    pub tunnel: TunnelPolicy,
    /// What peers may cost.
    pub limits: Limits,
}

/// Who answers the links that are not the tunnel's.
#[derive(Clone, Debug)]
pub enum Backend {
    /// A stock Spice server.
    Upstream(Upstream),
    /// We do, with a session that has nothing but main and tunnel.
    Standalone {
        /// What a client must know; `None` lets everybody in.
        password: Option<Password>,
    },
}

/// Whether there is a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelPolicy {
    /// No: lists stay as they are, and a tunnel link is closed without a word, as by a stock server.
    Disabled,
    /// Yes.
    Enabled {
        /// Whether a tunnel may come without a viewer of its own: session id 0 and a right ticket. It joins the only
        /// session, or stands alone where none lives.
        companion: bool,
        /// Whether it may come in clear. If not, who tries is told that TLS is needed, before any ticket is asked for.
        in_clear: bool,
    },
}

/// What peers may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the link stage.
    pub deadlines: Deadlines,
    /// Links at once, of any kind.
    pub links: usize,
    /// Links at once that have not shown a right ticket. One more displaces the one that has waited longest of the
    /// address that has most.
    pub unauthenticated: usize,
    /// The same, from one address. One more displaces its own that has waited longest.
    pub unauthenticated_per_source: usize,
    /// Display links at once that have shown their ticket and said nothing since. They may take as long as they like.
    pub silent_displays: usize,
}

impl Default for Limits {
    /// 1024 links, 256 of them unauthenticated, 64 of these from one address; 64 silent displays.
    fn default() -> Self {
        Self {
            deadlines: Deadlines::default(),
            links: 1024,
            unauthenticated: 256,
            unauthenticated_per_source: 64,
            silent_displays: 64,
        }
    }
}

/// A tunnel channel that is linked and belongs to a session, for the VM's task.
///
/// As long as the stream lives no other tunnel is let in, unless `ended` has fired.
pub struct TunnelLink {
    /// Carries the channel's messages from here on.
    pub stream: BoxStream,
    /// What the link stage agreed on.
    pub linked: Linked,
    /// Fires when the tunnel must end: its session is over, or it stood alone and a session began.
    pub ended: CancellationToken,
    /// Where those ask who want its place.
    pub challenged: Challenged,
    /// Who it is.
    pub peer: Peer,
}

impl std::fmt::Debug for TunnelLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelLink")
            .field("peer", &self.peer)
            .field("linked", &self.linked)
            .finish_non_exhaustive()
    }
}

/// The proxy. Clones are the same proxy, so that several listeners can share its sessions.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ProxyConfig,
    pub(crate) registry: Registry,
    guard: Guard,
    links: Arc<Semaphore>,
    keys: Semaphore,
    pub(crate) silent_displays: Arc<Semaphore>,
    pub(crate) census: Arc<Census>,
}

/// Ticket keys computed at once.
const KEYS_AT_ONCE: usize = 2;

/// Why a link ended in its link stage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The client, or we towards it.
    #[error(transparent)]
    Client(#[from] IoError),
    /// The connection to the client.
    #[error("the connection to the client failed: {0}")]
    Io(#[from] io::Error),
    /// Upstream is not there, or not the right one.
    #[error("{}", Chain(.0))]
    Unreachable(#[from] ConnectError),
    /// The connection to upstream.
    #[error("the connection to the Spice server failed in the link stage: {0}")]
    Upstream(io::Error),
    /// Upstream sent no link reply.
    #[error("the Spice server's link stage is wrong: {0}")]
    BadUpstream(LinkFault),
    /// Upstream has no such channel.
    #[error("the Spice server closed without an answer; it does not have this channel")]
    NoChannel,
    /// We have no such channel.
    #[error("closed without an answer, as by a server that does not have this channel")]
    NotOurs,
    /// Upstream refused.
    #[error("the Spice server refused the link: {0}")]
    Refused(LinkError),
    /// Something did not come in time.
    #[error("{0} did not come in time")]
    Late(&'static str),
    /// A SASL exchange broke its format.
    #[error("the SASL exchange is wrong: {0}")]
    Sasl(SaslFault),
    /// Upstream does not accept who came by SASL.
    #[error("the Spice server does not accept the username or the password")]
    SaslRejected,
    /// The client's first display message is not the one that must come first.
    #[error(
        "expected DISPLAY_INIT of 14 bytes as the first display message, got type {kind} with {size} bytes"
    )]
    NotInit {
        /// Type of the message.
        kind: u16,
        /// Its size.
        size: u32,
    },
    /// Nothing that anyone did wrong.
    #[error("{0}")]
    Over(&'static str),
    /// openssl failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<HandshakeError> for End {
    fn from(error: HandshakeError) -> Self {
        Self::Client(error.into())
    }
}

impl End {
    /// Whether somebody did what no well-meaning peer does.
    fn is_wrong(&self) -> bool {
        match self {
            Self::Client(IoError::Handshake(error)) => {
                matches!(error, HandshakeError::BadClient(_) | HandshakeError::Mechanism(_))
            }
            Self::Unreachable(_)
            | Self::Upstream(_)
            | Self::BadUpstream(_)
            | Self::Crypto(_)
            | Self::Sasl(_)
            | Self::NotInit { .. } => true,
            Self::Client(IoError::Io(_) | IoError::Seal(_) | IoError::Sasl(_))
            | Self::Io(_)
            | Self::NoChannel
            | Self::NotOurs
            | Self::Refused(_)
            | Self::SaslRejected
            | Self::Late(_)
            | Self::Over(_) => false,
        }
    }
}

impl Proxy {
    /// A proxy without listeners yet.
    pub fn new(config: ProxyConfig) -> Self {
        let limits = config.limits;
        let bounds = Bounds { total: limits.unauthenticated, per_source: limits.unauthenticated_per_source };
        Self {
            inner: Arc::new(Inner {
                config,
                registry: Registry::default(),
                guard: Guard::new(bounds),
                links: Arc::new(Semaphore::new(limits.links)),
                keys: Semaphore::new(KEYS_AT_ONCE),
                silent_displays: Arc::new(Semaphore::new(limits.silent_displays)),
                census: Arc::default(),
            }),
        }
    }

    /// What it is and has counted.
    pub fn status(&self) -> ProxyStatus {
        let census = &self.inner.census;
        ProxyStatus {
            sessions: self.inner.registry.sessions(),
            links: census.links(),
            wrong_tickets: census.wrong_tickets.get(),
            rejected: census.rejected.get(),
            crowded: census.crowded.get(),
        }
    }

    /// Takes a new link in, unless there are too many.
    pub(crate) fn enter(
        self,
        peer: Peer,
        tunnels: mpsc::Sender<TunnelLink>,
        shutdown: CancellationToken,
    ) -> Option<Link> {
        let Ok(place) = Arc::clone(&self.inner.links).try_acquire_owned() else {
            self.inner.census.rejected.count();
            tracing::warn!(%peer, "too many links; closed a new one");
            return None;
        };
        let (admission, crowd) = self.inner.guard.admit(Instant::now(), peer.address);
        if let Some(crowd) = crowd {
            self.inner.census.crowded.count();
            tracing::warn!(%peer, "too many links without a ticket: {crowd}");
        }
        Some(Link { inner: self.inner, peer, admission, place, tunnels, shutdown })
    }
}

/// One link in its link stage.
pub(crate) struct Link {
    pub(crate) inner: Arc<Inner>,
    pub(crate) peer: Peer,
    admission: Admission,
    place: OwnedSemaphorePermit,
    tunnels: mpsc::Sender<TunnelLink>,
    shutdown: CancellationToken,
}

/// One link that has shown a right ticket. It no longer counts among the strangers, but still among all links.
pub(crate) struct Trusted {
    pub(crate) inner: Arc<Inner>,
    pub(crate) peer: Peer,
    place: OwnedSemaphorePermit,
    shutdown: CancellationToken,
}

impl Trusted {
    /// Takes the place of a tunnel that is dead. `None`: it lives.
    async fn displace(&self, present: &Present, home: Home) -> Option<Seat> {
        let (peer, holder) = (&self.peer, &present.peer);
        if present.lives().await {
            tracing::info!(%peer, holder, "there is a tunnel already, and its client lives");
            return None;
        }
        tracing::info!(%peer, holder, "takes the place of a tunnel that is over");
        self.inner.registry.seat(home, &peer.name).ok()
    }
}

/// How a client's ticket fared with us as the server.
pub(crate) enum Judged {
    /// To be answered by `permit`, if nothing else speaks against it.
    Right(Password),
    /// To be answered by `refuse`.
    Refuse(LinkError),
    /// The client wants SASL.
    Sasl,
}

impl Link {
    /// Fires when it must make room for another stranger. Never, once it has shown a right ticket.
    pub(crate) fn displaced(&self) -> CancellationToken {
        self.admission.displaced()
    }

    pub(crate) async fn run(self, mut stream: BoxStream) {
        let peer = self.peer.clone();
        let deadlines = self.inner.config.limits.deadlines;
        let mut machine = ServerHandshake::new(now(), deadlines, OnSasl::Ask);
        let mess = match advance(&mut stream, &mut machine).await {
            Ok(()) => match machine.needs() {
                ServerNeeds::Decision(mess) => mess.clone(),
                ServerNeeds::Bytes(_) | ServerNeeds::Sasl | ServerNeeds::Verdict(_) | ServerNeeds::Done => {
                    return;
                }
            },
            Err(error) => {
                let end = End::from(error);
                report(&peer, None, &end);
                let Self { place: _place, admission, .. } = self;
                drop(admission);
                if end.is_wrong() {
                    // It has been told why.
                    farewell(stream).await;
                }
                return;
            }
        };
        tracing::debug!(%peer, channel = channel_name(mess.channel_type), id = mess.channel_id, session = mess.session_id, "link");
        let outcome = match (ChannelType(mess.channel_type), &self.inner.config.backend) {
            (ChannelType::TUNNEL, _) => Box::pin(self.tunnel(stream, machine, &mess)).await,
            (channel, Backend::Upstream(upstream)) => match (channel, upstream.leg(&peer)) {
                (_, Err(error)) => refuse(stream, machine, error).await,
                (ChannelType::DISPLAY, Ok(leg)) => {
                    Box::pin(passage::display(self, leg, stream, machine, &mess)).await
                }
                (_, Ok(leg)) => Box::pin(passage::straight(self, leg, stream, machine.raw(), &mess)).await,
            },
            (ChannelType::MAIN, Backend::Standalone { .. }) if mess.channel_id == 0 => {
                Box::pin(standalone::main(self, stream, machine, &mess)).await
            }
            (_, Backend::Standalone { .. }) => Err(End::NotOurs),
        };
        if let Err(end) = outcome {
            report(&peer, Some(&mess), &end);
        }
    }

    /// A tunnel link: we are the server.
    async fn tunnel(
        self,
        mut stream: BoxStream,
        mut machine: ServerHandshake,
        mess: &LinkMess,
    ) -> Result<(), End> {
        let (companion, in_clear) = match self.inner.config.tunnel {
            TunnelPolicy::Enabled { companion, in_clear } if mess.channel_id == 0 => (companion, in_clear),
            TunnelPolicy::Enabled { .. } | TunnelPolicy::Disabled => return Err(End::NotOurs),
        };
        if self.peer.in_clear() && !in_clear {
            return refuse(stream, machine, LinkError::NeedSecured).await;
        }
        let mut inquiry = match &self.inner.config.backend {
            Backend::Upstream(upstream) => match self.inquire(upstream).await {
                Some(inquiry) => Some(inquiry),
                None => return refuse(stream, machine, LinkError::ChannelNotAvailable).await,
            },
            Backend::Standalone { .. } => None,
        };
        if let Some(inquiry) = inquiry.take_if(|inquiry| inquiry.wants_sasl()) {
            (stream, machine) = sasl::tunnel(&self, stream, machine, mess, inquiry).await?;
        } else {
            let caps = (vec![CommonCaps::OURS.bits()], vec![TunnelCaps::OURS.bits()]);
            match self.judge(&mut stream, &mut machine, caps, inquiry).await? {
                Judged::Right(_) => {}
                Judged::Refuse(error) => return refuse(stream, machine, error).await,
                Judged::Sasl => {
                    machine.refuse_mechanism()?;
                    return finish_refused(stream, machine).await;
                }
            }
        }
        let home = match self.inner.registry.home(mess.session_id, companion) {
            Ok(home) => home,
            Err(error) => {
                tracing::info!(peer = %self.peer, "no tunnel: {error}");
                return refuse(stream, machine, LinkError::BadConnectionId).await;
            }
        };
        let tunnels = self.tunnels.clone();
        let trusted = self.authenticated();
        let Ok(handover) = tunnels.clone().try_reserve_owned() else {
            tracing::warn!(peer = %trusted.peer, "the VM's side takes no tunnel now");
            return refuse(stream, machine, LinkError::ChannelNotAvailable).await;
        };
        let seat = match trusted.inner.registry.seat(home.clone(), &trusted.peer.name) {
            Ok(seat) => Some((seat, handover)),
            Err(NoSeat::NotAlone) => None,
            Err(NoSeat::Taken(present)) => {
                // The place in the queue is for whoever is seated meanwhile.
                drop(handover);
                trusted.displace(&present, home).await.zip(tunnels.try_reserve_owned().ok())
            }
        };
        machine.permit()?;
        advance(&mut stream, &mut machine).await?;
        let linked = machine.finish()?;
        let Some((seat, handover)) = seat else {
            // As libspice-server does to the second link of any channel.
            farewell(stream).await;
            return Err(End::Over("there is a tunnel already, which stays"));
        };
        tracing::info!(peer = %trusted.peer, session = mess.session_id, "tunnel linked");
        let ended = seat.ended().clone();
        let shutdown = trusted.shutdown;
        let both = ended.clone();
        // The seat's token is the registry's; a shutdown must reach the tunnel too.
        let watch = tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => both.cancel(),
                () = both.cancelled() => {}
            }
        });
        let challenged = seat.challenged();
        let stream = Box::new(Seated { stream, _seat: seat, _place: trusted.place, watch });
        handover.send(TunnelLink { stream, linked, ended, challenged, peer: trusted.peer });
        Ok(())
    }

    /// The ticket was right.
    pub(crate) fn authenticated(self) -> Trusted {
        self.admission.right();
        self.let_go()
    }

    /// Nobody knows about the ticket, but the link may stay.
    pub(crate) fn let_go(self) -> Trusted {
        Trusted { inner: self.inner, peer: self.peer, place: self.place, shutdown: self.shutdown }
    }

    /// Answers the link message with a key of our own and these capabilities (common and channel words), and finds out
    /// about the ticket that comes: from upstream by this inquiry, or one of its own.
    pub(crate) async fn judge(
        &self,
        stream: &mut BoxStream,
        machine: &mut ServerHandshake,
        (common_caps, channel_caps): (Vec<u32>, Vec<u32>),
        inquiry: Option<Inquiry>,
    ) -> Result<Judged, End> {
        let key = self.new_key().await?;
        machine
            .welcome(now(), Welcome { public_key: Box::new(*key.public_der()), common_caps, channel_caps })?;
        advance(stream, machine).await?;
        let ticket = match machine.needs() {
            ServerNeeds::Verdict(ticket) => *ticket,
            ServerNeeds::Sasl => return Ok(Judged::Sasl),
            ServerNeeds::Bytes(_) | ServerNeeds::Decision(_) | ServerNeeds::Done => {
                return Err(End::Over("the link stage ended early"));
            }
        };
        self.pace().await?;
        Ok(match self.verdict(&key, &ticket, inquiry).await {
            Some((Verdict::Right, Some(password))) => Judged::Right(password),
            Some(_) => {
                self.wrong();
                Judged::Refuse(LinkError::PermissionDenied)
            }
            None => Judged::Refuse(LinkError::ChannelNotAvailable),
        })
    }

    /// Making one is milliseconds of computing, which must not hold up other links. Strangers can ask for it, so that only
    /// a few are made at once.
    async fn new_key(&self) -> Result<TicketKey, End> {
        let _turn = self.inner.keys.acquire().await;
        match tokio::task::spawn_blocking(TicketKey::generate).await {
            Ok(key) => Ok(key?),
            Err(_) => Err(End::Over("the proxy shuts down")),
        }
    }

    /// `None` when upstream does not say.
    async fn verdict(
        &self,
        key: &TicketKey,
        ticket: &[u8; TICKET_LEN],
        inquiry: Option<Inquiry>,
    ) -> Option<(Verdict, Option<Password>)> {
        let opened = key.open(ticket);
        let verdict = match &self.inner.config.backend {
            Backend::Standalone { password: None } if opened.is_ok() => Verdict::Right,
            Backend::Standalone { password: None } => Verdict::Wrong,
            Backend::Standalone { password: Some(wanted) } => {
                // Compared in any case, so that a ticket that does not open takes as long as a wrong one.
                let nothing = Password::empty();
                let same = wanted.matches(opened.as_ref().unwrap_or(&nothing));
                if same && opened.is_ok() { Verdict::Right } else { Verdict::Wrong }
            }
            Backend::Upstream(upstream) => {
                let inquiry = match inquiry {
                    Some(inquiry) => inquiry,
                    None => self.inquire(upstream).await?,
                };
                let limit = self.inner.config.limits.deadlines.step;
                match inquiry.ticket(&opened, limit).await {
                    Ok(verdict) => verdict,
                    Err(error) => {
                        tracing::warn!(peer = %self.peer, "{}", Chain(&error));
                        return None;
                    }
                }
            }
        };
        Some((verdict, opened.ok()))
    }

    /// Begins to ask upstream about this client; `None` when it does not answer.
    async fn inquire(&self, upstream: &Upstream) -> Option<Inquiry> {
        let deadlines = self.inner.config.limits.deadlines;
        match oracle::open(upstream, &self.peer, &self.inner.registry, deadlines).await {
            Ok(inquiry) => Some(inquiry),
            Err(error) => {
                tracing::warn!(peer = %self.peer, "{}", Chain(&error));
                None
            }
        }
    }

    /// Waits until this source's next ticket may be tried.
    pub(crate) async fn pace(&self) -> Result<(), End> {
        match self.admission.book(Instant::now()) {
            Some(at) => {
                sleep_until(at.into()).await;
                Ok(())
            }
            None => Err(End::Over("too many wrong tickets from there; not even tried")),
        }
    }

    /// The ticket was wrong.
    pub(crate) fn wrong(&self) {
        self.inner.census.wrong_tickets.count();
        let times = self.admission.wrong(Instant::now());
        tracing::warn!(peer = %self.peer, times, "wrong ticket");
    }
}

/// Answers with this code and closes.
pub(crate) async fn refuse(
    stream: BoxStream,
    mut machine: ServerHandshake,
    error: LinkError,
) -> Result<(), End> {
    machine.refuse(error)?;
    finish_refused(stream, machine).await
}

pub(crate) async fn finish_refused(mut stream: BoxStream, mut machine: ServerHandshake) -> Result<(), End> {
    advance(&mut stream, &mut machine).await?;
    farewell(stream).await;
    machine.finish().map(drop).map_err(End::from)
}

/// Waits for `work` no longer than `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, End>>,
) -> Result<T, End> {
    timeout(limit, work).await.unwrap_or(Err(End::Late(what)))
}

/// A link reply as upstream sent it.
pub(crate) struct Reply {
    pub(crate) raw: Vec<u8>,
    pub(crate) reply: LinkReply,
}

fn report(peer: &Peer, mess: Option<&LinkMess>, end: &End) {
    let channel = mess.map_or("none yet", |mess| channel_name(mess.channel_type));
    if let End::Client(IoError::Handshake(HandshakeError::BadClient(LinkFault::Magic(magic)))) = end
        && let Some(what) = other_protocol(*magic)
    {
        tracing::warn!(%peer, "no link: it {what} on a port for Spice in clear");
    } else if end.is_wrong() {
        tracing::warn!(%peer, channel, "no link: {end}");
    } else {
        tracing::info!(%peer, channel, "no link: {end}");
    }
}

/// What somebody does who begins like this instead of by Spice's magic.
fn other_protocol(magic: [u8; 4]) -> Option<&'static str> {
    match &magic {
        [22, 3, ..] => Some("begins TLS"),
        b"GET " | b"POST" | b"HEAD" | b"OPTI" | b"CONN" | b"PRI " => Some("speaks HTTP"),
        _ => None,
    }
}

/// A channel type's name, for logs.
pub(crate) fn channel_name(channel_type: u8) -> &'static str {
    spice_proto::names::channel(channel_type).unwrap_or("unknown")
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A tunnel's stream, which holds the tunnel's place as long as it lives.
struct Seated {
    stream: BoxStream,
    _seat: Seat,
    _place: OwnedSemaphorePermit,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
