//! Connecting to shared services: beside the session, bounded in number and in time.
//!
//! A guest can ask for connections faster than they can be made, and a service that is switched off keeps every
//! attempt for its whole deadline. So at most [`MAX_RUNNING`] attempts run at a time, at most [`MAX_PER_SHARE`] of them for
//! one share, and the rest waits in its share's line; waiting counts towards the deadline, so that the line of a
//! dead service empties by itself. The lines are bounded by the channel's socket limit.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use spice_proto::tunnel::SocketId;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    offer::{Offer, Reach, is_own},
    resolve::{Class, Resolver},
    share::{Host, ShareId},
};

/// Most attempts at a time.
const MAX_RUNNING: usize = 256;

/// Most attempts at a time for one share, so that a dead service does not keep the others waiting.
const MAX_PER_SHARE: usize = 64;

/// Head start of one address before the next is tried as well (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// A silent service is probed after this long, and given up after four unanswered probes, [`PROBE_EVERY`] apart.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// Why a connection that the guest wanted was not made. The guest sees it refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The name could not be resolved.
    #[error("cannot find the host {host}: {problem}")]
    Unknown {
        /// The name.
        host: String,
        /// What the resolver said.
        problem: String,
    },
    /// The name leads only where a name must not lead (see [`crate::resolve`]).
    #[error(
        "{host} leads to {address}, {class}: that is dialled only when the share itself says tcp://{}:PORT",
        Host::Address(*address)
    )]
    Forbidden {
        /// The name.
        host: String,
        /// One of the addresses that it resolved to.
        address: IpAddr,
        /// What is wrong with it.
        class: Class,
    },
    /// It leads to this machine, and is to lead elsewhere.
    #[error(
        "{host} leads to {address}, which is this machine: it is shared when it is asked for by name only"
    )]
    ThisMachine {
        /// The name, or the address itself.
        host: String,
        /// The address.
        address: IpAddr,
    },
    /// No address of the host let us in; this is what the last one said.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        error: io::Error,
    },
    /// Neither yes nor no in time.
    #[error("no answer within {} s", after.as_secs_f32())]
    Deadline {
        /// The time that it had.
        after: Duration,
    },
    /// The dialling task died: a bug in this program.
    #[error("the attempt broke off: {problem}")]
    Broken {
        /// What is known.
        problem: String,
    },
}

/// A service's connection, made and configured.
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    pub(crate) address: SocketAddr,
}

/// All dials of one session.
pub(crate) struct Dials {
    resolver: Arc<Resolver>,
    patience: Duration,
    running: JoinSet<(SocketId, Result<Dialled, Refusal>)>,
    lines: BTreeMap<ShareId, Line>,
}

/// The dials of one share.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Wanted>,
    running: Vec<(SocketId, AbortHandle)>,
}

struct Wanted {
    socket: SocketId,
    target: Arc<Target>,
    deadline: Instant,
}

/// Where a share is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    host: Host,
    port: u16,
    /// Dialled in this order; empty: the host is resolved.
    addresses: Vec<IpAddr>,
    reach: Reach,
}

impl Target {
    pub(crate) fn of(offer: &Offer) -> Target {
        let Offer { share, addresses, reach, .. } = offer;
        Target { host: share.host.clone(), port: share.port, addresses: addresses.clone(), reach: *reach }
    }

    /// The addresses to dial.
    async fn addresses(&self, resolver: &Resolver) -> Result<Vec<SocketAddr>, Refusal> {
        let mut addresses = if self.addresses.is_empty() {
            resolver.resolve(&self.host, self.port).await?
        } else {
            self.addresses.clone()
        };
        match self.reach {
            Reach::Written | Reach::ThisMachine => {}
            Reach::Elsewhere => {
                // What was not ours when it was found may be now.
                let own = addresses.iter().copied().find(|address| is_forbidden(*address));
                addresses.retain(|address| !is_forbidden(*address));
                if let (true, Some(address)) = (addresses.is_empty(), own) {
                    return Err(Refusal::ThisMachine { host: self.host.to_string(), address });
                }
            }
        }
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect())
    }
}

/// Not to be dialled for what is on another machine.
fn is_forbidden(address: IpAddr) -> bool {
    Reach::Elsewhere.objection(address).is_some() || is_own(address)
}

impl Dials {
    pub(crate) fn new(resolver: Arc<Resolver>, patience: Duration) -> Dials {
        Dials { resolver, patience, running: JoinSet::new(), lines: BTreeMap::new() }
    }

    /// Dials now, or as soon as there is room.
    pub(crate) fn start(&mut self, socket: SocketId, share: ShareId, target: Arc<Target>) {
        let deadline = Instant::now() + self.patience;
        let wanted = Wanted { socket, target, deadline };
        self.lines.entry(share).or_default().waiting.push_back(wanted);
        self.fill();
    }

    /// Forgets the dial for `socket`; nothing more is heard of it.
    pub(crate) fn cancel(&mut self, socket: SocketId, share: ShareId) {
        if let Some(line) = self.lines.get_mut(&share) {
            line.waiting.retain(|wanted| wanted.socket != socket);
            line.running.retain(|(running, task)| {
                if *running == socket {
                    task.abort();
                }
                *running != socket
            });
        }
        self.fill();
    }

    /// The next dial that came to an end.
    pub(crate) fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<(SocketId, Result<Dialled, Refusal>)> {
        loop {
            match self.running.poll_join_next_with_id(cx) {
                Poll::Ready(Some(Ok((task, (socket, outcome))))) => {
                    // A dial may end in the very moment that it is cancelled: then nobody waits for it any more.
                    if self.forget(task).is_some() {
                        return Poll::Ready((socket, outcome));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    if let Some(socket) = self.forget(error.id()) {
                        warn!(%error, "a dial broke off");
                        let refusal = Refusal::Broken { problem: error.to_string() };
                        return Poll::Ready((socket, Err(refusal)));
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn forget(&mut self, task: tokio::task::Id) -> Option<SocketId> {
        let mut found = None;
        self.lines.retain(|_, line| {
            line.running.retain(|(socket, running)| {
                if running.id() == task {
                    found = Some(*socket);
                }
                running.id() != task
            });
            !(line.running.is_empty() && line.waiting.is_empty())
        });
        self.fill();
        found
    }

    /// Starts what there is room for, one of each share in turn.
    fn fill(&mut self) {
        let mut started = true;
        while std::mem::take(&mut started) {
            for line in self.lines.values_mut() {
                if self.running.len() >= MAX_RUNNING {
                    return;
                }
                if line.running.len() >= MAX_PER_SHARE {
                    continue;
                }
                if let Some(wanted) = line.waiting.pop_front() {
                    let socket = wanted.socket;
                    let task = dial(self.resolver.clone(), wanted, self.patience);
                    let handle = self.running.spawn(async move { (socket, task.await) });
                    line.running.push((socket, handle));
                    started = true;
                }
            }
        }
    }
}

/// Resolves and connects.
///
/// Cancel safe in that a dropped dial leaves nothing behind: what was half open is closed.
async fn dial(resolver: Arc<Resolver>, wanted: Wanted, patience: Duration) -> Result<Dialled, Refusal> {
    let Wanted { target, deadline, .. } = wanted;
    let attempt = async { connect_any(target.addresses(&resolver).await?).await };
    match timeout_at(deadline, Box::pin(attempt)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Refusal::Deadline { after: patience }),
    }
}

/// The first connection that comes about. An address gets a head start of [`STAGGER`] before the next, less when it
/// fails earlier.
pub(crate) async fn connect_any(addresses: Vec<SocketAddr>) -> Result<Dialled, Refusal> {
    let mut left = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failure = Refusal::Broken { problem: "there was no address".to_owned() };
    loop {
        match left.next() {
            Some(address) => {
                attempts.spawn(connect(address));
            }
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(refusal)) => failure = refusal,
                Err(error) => failure = Refusal::Broken { problem: error.to_string() },
            },
            () = sleep(STAGGER), if left.len() > 0 => {}
        }
    }
}

async fn connect(address: SocketAddr) -> Result<Dialled, Refusal> {
    let refused = |error| Refusal::Connect { address, error };
    let stream = TcpStream::connect(address).await.map_err(refused)?;
    // A port nobody listens on can be given to the dialling socket itself, which then talks to itself.
    if stream.local_addr().is_ok_and(|own| own == address) {
        return Err(refused(io::ErrorKind::ConnectionRefused.into()));
    }
    configure(&stream);
    Ok(Dialled { stream, address })
}

/// No delay, since whole messages are relayed; keepalive against services that vanished. No user timeout: it would also
/// end a connection whose service keeps its window shut, as a printer without paper does for hours.
fn configure(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(PROBE_EVERY).with_retries(4);
    let outcome = stream.set_nodelay(true).and(SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = outcome {
        debug!(%error, "the options of a service's socket could not be set");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    use super::*;

    fn dials(patience: Duration) -> Dials {
        Dials::new(Arc::new(Resolver::default()), patience)
    }

    fn target(host: &Host, port: u16) -> Arc<Target> {
        Arc::new(Target { host: host.clone(), port, addresses: vec![], reach: Reach::Written })
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A port of this machine that answers with a reset.
    async fn closed_port() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn the_other_family_is_tried_when_the_first_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let dead = SocketAddr::new("::1".parse().unwrap(), live.port());
        assert_eq!(connect_any(vec![dead, live]).await.unwrap().address, live);

        let Err(Refusal::Connect { error, .. }) = connect_any(vec![dead, closed_port().await]).await else {
            panic!("connected to a closed port");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_silent_address_does_not_keep_the_next_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let full = silent_listener();
        let started = Instant::now();
        let dialled = connect_any(vec![full.1, listener.local_addr().unwrap()]).await.unwrap();
        assert_eq!(dialled.address, listener.local_addr().unwrap());
        assert!(started.elapsed() >= STAGGER && started.elapsed() < 8 * STAGGER);
    }

    #[tokio::test]
    async fn the_deadline_holds_and_lines_move_on() {
        let (_full, silent) = silent_listener();
        let mut dials = dials(Duration::from_millis(300));
        let host: Host = "127.0.0.1".parse().unwrap();
        // More than may run at a time for one share, so that some never start.
        let wanted = u16::try_from(MAX_PER_SHARE).unwrap() + 20;
        for n in 0..wanted {
            dials.start(SocketId(n), ShareId(1), target(&host, silent.port()));
        }
        let started = Instant::now();
        dials.start(SocketId(9999), ShareId(2), target(&host, closed_port().await.port()));
        let (first, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
        assert_eq!(first, SocketId(9999), "another share waits for a dead one: {:?}", outcome.err());
        for _ in 0..wanted {
            let (_, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
            assert!(matches!(outcome, Err(Refusal::Deadline { .. })));
        }
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(dials.lines.is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_dial_is_not_heard_of() {
        let (_full, silent) = silent_listener();
        let mut dials = dials(Duration::from_secs(5));
        let host: Host = "127.0.0.1".parse().unwrap();
        dials.start(SocketId(1), ShareId(1), target(&host, silent.port()));
        dials.start(SocketId(2), ShareId(1), target(&host, closed_port().await.port()));
        dials.cancel(SocketId(1), ShareId(1));
        assert_eq!(poll_fn(|cx| dials.poll_done(cx)).await.0, SocketId(2));
        let more = tokio::time::timeout(Duration::from_millis(50), poll_fn(|cx| dials.poll_done(cx))).await;
        assert!(more.is_err());
    }

    #[tokio::test]
    async fn localhost_means_this_machine_by_either_family() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut dials = dials(Duration::from_secs(5));
        let port = listener.local_addr().unwrap().port();
        dials.start(SocketId(1), ShareId(1), target(&"localhost".parse().unwrap(), port));
        let (_, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
        assert_eq!(outcome.unwrap().address, address(&format!("127.0.0.1:{port}")));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_dialled() {
        use hickory_resolver::{
            Hosts, TokioResolver, config::ResolverConfig, net::runtime::TokioRuntimeProvider,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"127.0.0.1 printer.example\n169.254.169.254 cloud.example\n"[..]).unwrap();
        let nowhere = ResolverConfig::from_parts(None, vec![], vec![]);
        let builder = TokioResolver::builder_with_config(nowhere, TokioRuntimeProvider::default());
        let mut resolver = builder.build().unwrap();
        resolver.set_hosts(Arc::new(hosts));
        let mut dials = Dials::new(Arc::new(Resolver::fixed(resolver)), Duration::from_secs(5));

        let port = listener.local_addr().unwrap().port();
        for (name, class) in [("printer.example", Class::Loopback), ("cloud.example", Class::LinkLocal)] {
            dials.start(SocketId(1), ShareId(1), target(&name.parse().unwrap(), port));
            let (_, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
            let Err(Refusal::Forbidden { class: found, .. }) = outcome else { panic!("{name} was dialled") };
            assert_eq!(found, class);
        }
        dials.start(SocketId(1), ShareId(1), target(&"nobody.example".parse().unwrap(), port));
        let (_, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
        assert!(matches!(outcome, Err(Refusal::Unknown { .. })));
        assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    }

    #[tokio::test]
    async fn given_addresses_are_dialled_and_nobody_is_asked_for_the_host() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let target = |reach| {
            let host = "printer.invalid".parse().unwrap();
            let addresses = vec!["::1".parse().unwrap(), live.ip()];
            Arc::new(Target { host, port: live.port(), addresses, reach })
        };
        let mut dials = dials(Duration::from_secs(5));
        dials.start(SocketId(1), ShareId(1), target(Reach::ThisMachine));
        assert_eq!(poll_fn(|cx| dials.poll_done(cx)).await.1.unwrap().address, live);

        // What is elsewhere is not here.
        dials.start(SocketId(2), ShareId(1), target(Reach::Elsewhere));
        let (_, outcome) = poll_fn(|cx| dials.poll_done(cx)).await;
        let Err(Refusal::ThisMachine { host, .. }) = outcome else { panic!("this machine was dialled") };
        assert_eq!(host, "printer.invalid");
    }

    /// A listener whose line is full: it answers no further SYN.
    fn silent_listener() -> (Vec<socket2::Socket>, SocketAddr) {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address("127.0.0.1:0").into()).unwrap();
        listener.listen(0).unwrap();
        let bound = listener.local_addr().unwrap();
        let mut all = vec![listener];
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&bound);
            all.push(socket);
        }
        (all, bound.as_socket().unwrap())
    }
}
