//! `spice-tunnel serve`: beside the VM, in front of its Spice server and behind its extra card.

mod certificate;
mod check;
mod entrance;
mod error;
mod guest_dns;
mod manager;
mod metrics;
pub mod presence;
mod upstream;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use server_glue::address::{AddressBook, Subnet, SubnetError};
use server_glue::listen::Listener;
use server_glue::netstack::{NetConfig, Netstack};
use server_glue::nic::Nic;
use server_glue::proxy::{Backend, Limits, Proxy, ProxyConfig, TunnelLink, TunnelPolicy};
use server_glue::session::Session;
use server_glue::status::observer;
use spice_proto::names::Sender;
use spice_proto::ticket::Password;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::certificate::Certificate;
use self::check::CheckArgs;
pub use self::entrance::{CardError, ListenError};
use self::entrance::{CardPlace, EntranceArgs, Place};
pub use self::error::Error;
use self::guest_dns::GuestDnsArgs;
pub use self::metrics::Metrics;
use self::metrics::MetricsArgs;
use self::upstream::UpstreamArgs;
use crate::inherited::{Inherited, InheritedError};
use crate::password;
use crate::record::{self, Ends, Recording, RotationArgs};
use presence::{Presence, PresenceArgs};

/// How long the VM's task may take to end its tunnel and remove its socket.
const GOODBYE: Duration = Duration::from_secs(2);

/// Which of a user's networks a service is in. Clients cannot say it yet, so there is one.
pub const NETWORK_ID: &str = "default";
const DEFAULT_MAX_CONNECTIONS: u16 = 16_384;

/// What `serve` is told.
#[derive(Debug, Args)]
#[command(after_help = include_str!("serve/examples.txt"))]
pub struct ServeArgs {
    #[command(flatten, next_help_heading = "The Spice server behind it")]
    upstream: UpstreamArgs,

    #[command(flatten, next_help_heading = "Where Spice clients connect")]
    entrance: EntranceArgs,

    /// No Spice server: offer a session with nothing but the tunnel
    #[arg(long, conflicts_with = "upstream")]
    standalone: bool,

    /// With --standalone: a file whose first line is the password that clients need; without it anybody may connect
    #[arg(long, value_name = "FILE", requires = "standalone")]
    password_file: Option<PathBuf>,

    /// The VM's extra card: connect:PATH where QEMU listens (-netdev stream,server=on), listen:PATH where QEMU connects
    /// (server=off), vhost-user:PATH where QEMU connects and shares its guest's memory (-netdev vhost-user), fd:N for a stream socket that was passed to this program, connected or listening, tap:NAME for a TAP
    /// device of this machine (tap:NAME,offload=off: without leaving checksums and the cutting of long segments to the kernel)
    #[arg(long, value_name = "SPEC")]
    nic: CardPlace,

    /// The virtual network. Its first address is ours, the next are for guests, the rest for what users share
    #[arg(long, value_name = "ADDRESS/PREFIX", default_value = "198.18.0.0/16")]
    subnet: SubnetArg,

    /// Largest IP packet on the card, told to the guest by DHCP. A TAP device that may not be changed can have it smaller
    #[arg(long, value_name = "BYTES", default_value_t = 65_520, value_parser = clap::value_parser!(u16).range(576..=65_520))]
    mtu: u16,

    /// How long a guest may use its address before it asks again, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 43_200, value_parser = clap::value_parser!(u32).range(60..))]
    lease_time: u32,

    /// Remember every address that was ever given in this file, so that none ever moves. Without it an address is
    /// still the hash of its name, but two names that collide may change places
    #[arg(long, value_name = "FILE", env = "SPICE_TUNNEL_LEASE_FILE")]
    lease_file: Option<PathBuf>,

    /// Refuse `spice-tunnel connect` beside a viewer: the tunnel must come from the session's own client
    #[arg(long)]
    no_companion: bool,

    /// Most connections of the guest at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_CONNECTIONS, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,

    #[command(flatten)]
    guest_dns: GuestDnsArgs,

    #[command(flatten)]
    presence: PresenceArgs,

    /// Record what passes the tunnel link, in clear, as pcapng
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,

    /// Record the frames of the VM's card, as pcapng
    #[arg(long, value_name = "FILE")]
    capture_nic: Option<PathBuf>,

    #[command(flatten)]
    rotation: RotationArgs,

    #[command(flatten)]
    metrics: MetricsArgs,

    #[command(flatten)]
    check: CheckArgs,

    /// Sockets that were passed to the process.
    #[arg(skip)]
    inherited: Inherited,
}

impl ServeArgs {
    /// Claims the sockets that were passed to the process. To be called first of all; see [`Inherited::take`].
    ///
    /// # Errors
    /// One that the arguments name was not passed.
    pub fn take_inherited(&mut self) -> Result<(), InheritedError> {
        let places = self.entrance.places().chain(&self.metrics.metrics);
        let descriptors = places.filter_map(Place::descriptor).chain(self.nic.descriptor());
        self.inherited = Inherited::take(descriptors)?;
        Ok(())
    }
}

/// `ADDRESS/PREFIX`.
#[derive(Clone, Copy, Debug)]
struct SubnetArg(Subnet);

impl FromStr for SubnetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected ADDRESS/PREFIX, such as 198.18.0.0/16, got {text:?}");
        let (address, prefix) = text.split_once('/').ok_or_else(expected)?;
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let prefix = prefix.parse().map_err(|_| expected())?;
        Subnet::new(address, prefix).map(Self).map_err(|error: SubnetError| error.to_string())
    }
}

/// Serves until `shutdown`, then ends every link and removes what it made.
///
/// # Errors
/// What keeps it from starting; once it runs it goes on.
pub async fn run(mut args: ServeArgs, shutdown: CancellationToken) -> Result<(), Error> {
    if args.check.check {
        return check::run(args).await;
    }
    let net = net_config(&args)?;
    let book = open_book(&args, &net)?;
    let backend = backend(&args)?;
    let mut recorders =
        Recorders::start(args.capture.as_deref(), args.capture_nic.as_deref(), &args.rotation)?;
    let certificate = args.entrance.certificate().map_err(Error::Certificate)?;
    let nic = args.nic.open(&mut args.inherited, net.mtu).await?;
    let acceptor = certificate.as_ref().map(Certificate::acceptor);
    let listeners = args.entrance.open(&mut args.inherited, acceptor.as_ref()).await?;
    for listener in &listeners {
        let tls = matches!(listener, Listener::Tls(..));
        info!(address = %listener, tls, "listening for Spice clients");
    }
    let metrics = args.metrics.open(&mut args.inherited).await?;
    for socket in args.inherited.unclaimed() {
        warn!(socket, "a socket was passed that no argument names");
    }
    let _reloading = certificate.map(Certificate::reload_on_hangup).transpose().map_err(Error::Signal)?;
    info!(card = %args.nic, subnet = %args.subnet.0, "the virtual network is up");
    let mut server = Server::start(Parts {
        nic,
        net,
        book,
        lease_file: args.lease_file,
        backend,
        companion: !args.no_companion,
        in_clear: args.entrance.tunnel_in_clear(&args.upstream),
        max_connections: args.max_connections,
        presence: args.presence.into(),
        listeners,
        metrics,
        capture: recorders.links.take(),
        capture_nic: recorders.frames.take(),
    });
    manager::ready();
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        failed = server.failed() => Err(Error::Session(failed)),
    };
    manager::stopping();
    server.stop().await;
    recorders.finish().await;
    info!("stopped");
    outcome
}

/// What a [`Server`] is made of.
pub struct Parts {
    /// The VM's card.
    pub nic: Nic,
    /// The virtual network.
    pub net: NetConfig,
    /// The addresses ever given in it.
    pub book: AddressBook,
    /// Where they are kept.
    pub lease_file: Option<PathBuf>,
    /// Who answers the links that are not the tunnel's.
    pub backend: Backend,
    /// Whether a tunnel may come without a viewer.
    pub companion: bool,
    /// Whether a tunnel may come in clear.
    pub in_clear: bool,
    /// Most connections of the guest at once.
    pub max_connections: u16,
    /// What the guest sees while no tunnel is there, and when a tunnel counts as gone.
    pub presence: Presence,
    /// Where Spice clients connect.
    pub listeners: Vec<Listener>,
    /// Where metrics are given out.
    pub metrics: Option<Metrics>,
    /// Records the tunnel's links.
    pub capture: Option<record::Links>,
    /// Records the card's frames.
    pub capture_nic: Option<record::Frames>,
}

impl Parts {
    /// The defaults of the command line.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new(nic: Nic, backend: Backend, listener: TcpListener) -> Result<Self, Error> {
        let net = NetConfig { seed: seed()?, ..NetConfig::default() };
        let book = AddressBook::new(NETWORK_ID, net.subnet, net.reserved());
        Ok(Self {
            nic,
            net,
            book,
            lease_file: None,
            backend,
            companion: true,
            in_clear: true,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            presence: Presence::default(),
            listeners: vec![listener.into()],
            metrics: None,
            capture: None,
            capture_nic: None,
        })
    }
}

/// A running proxy and the one task of its VM.
pub struct Server {
    shutdown: CancellationToken,
    session: JoinHandle<()>,
    serving: JoinSet<()>,
}

impl Server {
    /// Starts both. Must be called within a tokio runtime.
    pub fn start(parts: Parts) -> Self {
        let shutdown = CancellationToken::new();
        let proxy = Proxy::new(ProxyConfig {
            backend: parts.backend,
            tunnel: TunnelPolicy::Enabled { companion: parts.companion, in_clear: parts.in_clear },
            limits: Limits::default(),
        });
        let (to_session, mut tunnels) = mpsc::channel(1);
        let channel = parts.presence.channel(tunnel_channel::Config {
            max_sockets: parts.max_connections,
            ..tunnel_channel::Config::default()
        });
        let net = parts.presence.net(NetConfig {
            mtu: parts.nic.mtu(parts.net.mtu),
            max_flows: parts.max_connections.into(),
            ..parts.net
        });
        if let Some(links) = parts.capture {
            tunnels = recorded(tunnels, links);
        }
        let mut nic = parts.nic;
        if let Some(frames) = parts.capture_nic {
            nic.tap(move |way, frame| frames.note(way, frame));
        }
        let mut session =
            Session::new(nic, Netstack::new(net), parts.book, parts.lease_file, channel, tunnels)
                .while_away(parts.presence.away);
        let mut serving = JoinSet::new();
        if let Some(metrics) = parts.metrics {
            let (observer, observed) = observer();
            session = session.observed(observed);
            serving.spawn(metrics.serve(observer, proxy.clone(), shutdown.clone()));
        }
        let session = tokio::spawn(session.run(shutdown.clone()));
        for listener in parts.listeners {
            let (proxy, to_session, shutdown) = (proxy.clone(), to_session.clone(), shutdown.clone());
            serving.spawn(async move { proxy.serve(listener, to_session, shutdown).await });
        }
        Self { shutdown, session, serving }
    }

    /// Waits until the VM's task ends without having been told to, which is a defect of ours. Cancel safe.
    pub async fn failed(&mut self) -> String {
        match (&mut self.session).await {
            Ok(()) => "it ended by itself".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends every link, and removes the card's socket if it is ours.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.serving.join_all().await;
        if !self.session.is_finished() && tokio::time::timeout(GOODBYE, self.session).await.is_err() {
            warn!("the VM's task did not end in time");
        }
    }
}

/// Records the links on their way from the proxy to the VM's task.
fn recorded(mut tunnels: mpsc::Receiver<TunnelLink>, links: record::Links) -> mpsc::Receiver<TunnelLink> {
    let (to_session, recorded) = mpsc::channel(1);
    // Ends with the proxy, or with the VM's task.
    tokio::spawn(async move {
        while let Some(link) = tunnels.recv().await {
            let TunnelLink { stream, linked, ended, challenged, peer } = link;
            let ends = peer.ends.map(|(client, server)| Ends { client, server });
            let stream = Box::new(links.tap(stream, &linked, Sender::Server, ends));
            if to_session.send(TunnelLink { stream, linked, ended, challenged, peer }).await.is_err() {
                break;
            }
        }
    });
    recorded
}

/// The recordings that were asked for.
#[derive(Default)]
pub(crate) struct Recorders {
    recordings: Vec<Recording>,
    /// What records the tunnel's links.
    pub(crate) links: Option<record::Links>,
    /// What records the card's frames.
    pub(crate) frames: Option<record::Frames>,
}

impl Recorders {
    /// Begins them.
    pub(crate) fn start(
        capture: Option<&Path>,
        capture_nic: Option<&Path>,
        rotation: &RotationArgs,
    ) -> Result<Self, record::Error> {
        let mut this = Self::default();
        if let Some(path) = capture {
            let (recording, links) = record::links(&rotation.options(path))?;
            this.recordings.push(recording);
            this.links = Some(links);
        }
        if let Some(path) = capture_nic {
            let (recording, frames) = record::frames(&rotation.options(path))?;
            this.recordings.push(recording);
            this.frames = Some(frames);
        }
        Ok(this)
    }

    /// Writes what is left of them.
    pub(crate) async fn finish(self) {
        for recording in self.recordings {
            recording.finish().await;
        }
    }
}

fn seed() -> Result<u64, Error> {
    let mut seed = [0; 8];
    openssl::rand::rand_bytes(&mut seed)?;
    Ok(u64::from_ne_bytes(seed))
}

fn net_config(args: &ServeArgs) -> Result<NetConfig, Error> {
    Ok(args.guest_dns.net(NetConfig {
        mtu: args.mtu,
        lease_time: Duration::from_secs(args.lease_time.into()),
        seed: seed()?,
        ..NetConfig::new(args.subnet.0)?
    }))
}

fn open_book(args: &ServeArgs, net: &NetConfig) -> Result<AddressBook, Error> {
    let mut book = AddressBook::new(NETWORK_ID, net.subnet, net.reserved());
    let Some(path) = &args.lease_file else { return Ok(book) };
    match std::fs::read_to_string(path) {
        Ok(text) => book.load(&text).map_err(|source| Error::LeaseText { path: path.clone(), source })?,
        // The first run.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::LeaseFile { path: path.clone(), source }),
    }
    Ok(book)
}

fn backend(args: &ServeArgs) -> Result<Backend, Error> {
    if let Some(upstream) = args.upstream.upstream().map_err(Error::Upstream)? {
        return Ok(Backend::Upstream(upstream));
    }
    let password: Option<Password> = args.password_file.as_deref().map(password::read_file).transpose()?;
    if password.is_none() {
        warn!("no --password-file: anybody who can connect may offer services to the VM");
    }
    Ok(Backend::Standalone { password })
}
