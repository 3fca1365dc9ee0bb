//! A tunnel beside a viewer, which stays joined: it is linked again whenever it ends, until it is told to stop.
//!
//! # Theory of operation
//!
//! ```text
//!            ┌────── wait over, network changed, woke up ──────┐
//!            ▼                                                 │
//! start ─► linking ──linked──► joined ──ended, dead──► waiting ┘
//!            │ └───── failed, but not for good ──────────►┘
//!            └─ failed for good, or at the very first ─► given up
//! ```
//!
//! All of it is one task. The commands of the [`Handle`] are taken by whoever runs: the tunnel while joined, else the
//! companion itself. What is shared stands in the handle's book, and each tunnel begins with all of it, in the same
//! order and with the same names and groups: from these the server derives the addresses, so they stay the same.
//!
//! Whether the server is still there the tunnel finds out by itself, within [`CompanionConfig::dead_after`]. When the
//! machine woke up or its network changed (`network.rs`) it asks at once; or, where there is no tunnel,
//! the next attempt is made at once, and one that is under way is begun anew, since it may hang on a way that is gone.

mod backoff;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use spice_proto::handshake::Linked;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::debug;

use self::backoff::Backoff;
use crate::events::EventSink;
use crate::handle::Command;
use crate::network::{Change, Watcher};
use crate::server::{BoxStream, Credentials, LinkFailure, SpiceServer, TunnelLink};
use crate::session::{Ended, Outcome};
use crate::{Error, Event, Events, Handle, Life, TunnelConfig, error::in_full};

/// A tunnel that lived for so long was a good one: the next wait is the first one again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// How often in a row the password may be refused once it was right. A server that was started again may be given its
/// password late.
const MAX_DENIALS: u32 = 10;

/// How a companion behaves.
#[derive(Clone)]
pub struct CompanionConfig {
    /// Of each tunnel. Of its channel, [`dead_after`](tunnel_channel::Config::dead_after) is set to the one below.
    pub tunnel: TunnelConfig,
    /// A link on which nothing at all comes for so long is dead. With servers that cannot be asked whether they are
    /// there it is at least 35 s.
    pub dead_after: Duration,
    /// Waits between attempts: the first one, doubled with every further one.
    pub first_wait: Duration,
    /// The longest. Each wait is cut by up to a half of it, so that many clients do not come at once.
    pub longest_wait: Duration,
    /// Looks every 2 s whether the machine slept, or would reach the server from another address now. No packet is
    /// sent for that. A host that knows by other means may turn it off and call [`Handle::probe_now`].
    pub watch_network: bool,
    /// Puts something around each link's stream, such as a recorder. Gets the connection's ends, ours first.
    pub wrap: Option<Wrap>,
}

/// See [`CompanionConfig::wrap`].
pub type Wrap = Arc<dyn Fn(BoxStream, &Linked, Option<(SocketAddr, SocketAddr)>) -> BoxStream + Send + Sync>;

impl std::fmt::Debug for CompanionConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompanionConfig")
            .field("tunnel", &self.tunnel)
            .field("dead_after", &self.dead_after)
            .field("first_wait", &self.first_wait)
            .field("longest_wait", &self.longest_wait)
            .field("watch_network", &self.watch_network)
            .finish_non_exhaustive()
    }
}

impl Default for CompanionConfig {
    /// Dead after 15 s, waits from 0.5 s to 30 s.
    fn default() -> Self {
        Self {
            tunnel: TunnelConfig::default(),
            dead_after: Duration::from_secs(15),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            watch_network: true,
            wrap: None,
        }
    }
}

/// Why a companion gave up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompanionError {
    /// The very first attempt failed, or one after which another is of no use.
    #[error(transparent)]
    Link(#[from] LinkFailure),
    /// The first link was fine, and closed at once.
    #[error("{server} closed the tunnel at once: there is another one already, it seems")]
    Occupied {
        /// The server.
        server: String,
    },
    /// The first tunnel failed before it had begun.
    #[error("the tunnel to {server} failed")]
    Tunnel {
        /// The server.
        server: String,
        /// What happened.
        source: Error,
    },
    /// The password was right, and is not any more.
    #[error(
        "the password was right before and {server} refused it {times} times since: the ticket has expired, or the password is another one now"
    )]
    Expired {
        /// The server.
        server: String,
        /// How often.
        times: u32,
    },
}

/// A tunnel to `server`, as a companion, that stays joined until [`Handle::shutdown`].
///
/// Shares may be added and removed at any time, joined or not; they keep their addresses from link to link. What is in
/// flight when a link is lost is reset, at both ends. [`Event`] says which states there are.
///
/// The future gives `Ok` after a shutdown. It must run within a Tokio runtime with time and I/O enabled.
///
/// Cancel safe in that a dropped future leaves nothing behind: services see a reset, the link is closed.
///
/// # Errors
///
/// [`CompanionError`]: whatever goes wrong the first time, so that a mistake is found at once; later only what another attempt
/// cannot mend.
///
/// ```no_run
/// use client_glue::server::{Credentials, SpiceServer};
/// use client_glue::{CompanionConfig, Event, companion};
/// use spice_proto::{ticket::Password, tls::Trust};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let server = SpiceServer::tls("vm-host.example", 5931, Trust::default());
/// let credentials = Credentials::ticket(Password::new("secret")?);
/// let (handle, mut events, run) = companion(server, credentials, CompanionConfig::default());
/// handle.add_share("tcp://printer.lan:631?name=Office%20printer".parse()?)?;
/// let running = tokio::spawn(run);
/// while let Some(event) = events.recv().await {
///     match event {
///         Event::Mapped { name, virtual_ip, port, .. } => println!("{name} is at {virtual_ip}:{port}"),
///         Event::Waiting { wait, reason } => println!("{reason}; trying again in {wait:?}"),
///         _ => {}
///     }
/// }
/// running.await??;
/// # Ok(())
/// # }
/// ```
pub fn companion(
    server: SpiceServer,
    credentials: Credentials,
    config: CompanionConfig,
) -> (Handle, Events, impl Future<Output = Result<(), CompanionError>> + Send) {
    start(Remote { server, credentials }, config)
}

/// What gives links.
trait Linker: Send + Sync {
    /// The server, for people.
    fn name(&self) -> String;

    fn link(&self) -> impl Future<Output = Result<TunnelLink, LinkFailure>> + Send;
}

struct Remote {
    server: SpiceServer,
    credentials: Credentials,
}

impl Linker for Remote {
    fn name(&self) -> String {
        self.server.to_string()
    }

    async fn link(&self) -> Result<TunnelLink, LinkFailure> {
        self.server.link(0, &self.credentials).await
    }
}

fn start<L: Linker>(
    linker: L,
    config: CompanionConfig,
) -> (Handle, Events, impl Future<Output = Result<(), CompanionError>> + Send) {
    let (handle, commands) = Handle::new(config.tunnel.channel.max_services);
    let (sink, events) = crate::events::queue(config.tunnel.event_capacity);
    let of_companion = handle.clone();
    let run = async move {
        let companion = Companion {
            linker,
            backoff: Backoff::new(config.first_wait, config.longest_wait),
            watcher: Watcher::new(config.watch_network),
            config,
            handle: of_companion,
            commands,
            sink,
            has_joined: false,
            attempts: 0,
            denials: 0,
            next_connection: 0,
            tunnels: 0,
        };
        Box::pin(companion.run()).await
    };
    (handle, events, run)
}

struct Companion<L> {
    linker: L,
    config: CompanionConfig,
    handle: Handle,
    commands: UnboundedReceiver<Command>,
    sink: EventSink,
    watcher: Watcher,
    backoff: Backoff,
    /// There was a tunnel once.
    has_joined: bool,
    /// Since there was one.
    attempts: u32,
    /// Times in a row that the password was refused.
    denials: u32,
    next_connection: u64,
    /// How many there were.
    tunnels: u64,
}

/// Told to stop.
struct Shutdown;

impl<L: Linker> Companion<L> {
    async fn run(mut self) -> Result<(), CompanionError> {
        let outcome = self.stay_joined().await;
        let last = outcome.as_ref().err().map(|error| Event::GaveUp { reason: in_full(error) });
        self.sink.finish(last);
        outcome
    }

    async fn stay_joined(&mut self) -> Result<(), CompanionError> {
        loop {
            let reason = match self.link().await {
                Err(Shutdown) => return Ok(()),
                Ok(Ok(link)) => match Box::pin(self.tunnel(link)).await {
                    Err(Shutdown) => return Ok(()),
                    Ok(outcome) => self.judge_tunnel(outcome)?,
                },
                Ok(Err(failure)) => self.judge_failure(failure)?,
            };
            if let Err(Shutdown) = self.wait(reason).await {
                return Ok(());
            }
        }
    }

    async fn link(&mut self) -> Result<Result<TunnelLink, LinkFailure>, Shutdown> {
        self.attempts = self.attempts.saturating_add(1);
        self.sink.push(Event::Linking { attempt: self.attempts });
        loop {
            tokio::select! {
                biased;
                doubt = doubts(&mut self.commands, &mut self.watcher) => doubt?,
                link = Box::pin(self.linker.link()) => return Ok(link),
            }
            debug!("linking anew");
        }
    }

    /// Runs a tunnel to its end.
    async fn tunnel(&mut self, link: TunnelLink) -> Result<Outcome, Shutdown> {
        let TunnelLink { stream, linked, ends, .. } = link;
        let stream = match &self.config.wrap {
            Some(wrap) => wrap(stream, &linked, ends),
            None => stream,
        };
        let beginning = self.handle.beginning(&mut self.commands).ok_or(Shutdown)?;
        let mut config = self.config.tunnel.clone();
        config.channel.dead_after = self.config.dead_after;
        self.watcher.linked(ends.map(|(_, server)| server));
        let life = Life {
            beginning,
            next_connection: self.next_connection,
            tunnel: self.tunnels,
            asker: self.handle.asker(),
            usage: self.handle.usage(),
        };
        self.tunnels += 1;
        let tunnel = crate::run(stream, linked, config, &mut self.commands, self.sink.of_tunnel(), life);
        let mut tunnel = Box::pin(tunnel);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut tunnel => break outcome,
                change = self.watcher.changed() => {
                    debug!(?change, "asking the server whether it is there");
                    self.handle.probe_now();
                }
            }
        };
        match outcome.result {
            Ok(Ended::Shutdown) => Err(Shutdown),
            Ok(Ended::Server | Ended::Migrated) | Err(_) => Ok(outcome),
        }
    }

    /// Why there is no tunnel, if it is to be tried again.
    fn judge_tunnel(&mut self, outcome: Outcome) -> Result<String, CompanionError> {
        self.next_connection = outcome.next_connection;
        if let Some(ready) = outcome.ready {
            self.has_joined = true;
            self.attempts = 0;
            self.denials = 0;
            if ready.elapsed() >= GOOD_LIFE {
                self.backoff.reset();
            }
        }
        let server = || self.linker.name();
        match outcome.result {
            Ok(ended) => Ok(ended.reason().to_owned()),
            Err(Error::NeverBegan) if !self.has_joined => Err(CompanionError::Occupied { server: server() }),
            Err(source) if !self.has_joined => Err(CompanionError::Tunnel { server: server(), source }),
            Err(error) => Ok(in_full(&error)),
        }
    }

    /// Why there is no link, if it is to be tried again.
    fn judge_failure(&mut self, failure: LinkFailure) -> Result<String, CompanionError> {
        if !self.has_joined || failure.is_final() {
            return Err(failure.into());
        }
        if !matches!(failure, LinkFailure::WrongPassword { .. }) {
            self.denials = 0;
            return Ok(in_full(&failure));
        }
        self.denials = self.denials.saturating_add(1);
        if self.denials >= MAX_DENIALS {
            return Err(CompanionError::Expired { server: self.linker.name(), times: self.denials });
        }
        Ok(format!(
            "{} does not accept the password any more: the ticket has expired, it seems",
            self.linker.name()
        ))
    }

    async fn wait(&mut self, reason: String) -> Result<(), Shutdown> {
        let wait = self.backoff.next();
        let over = Instant::now().checked_add(wait);
        self.sink.push(Event::Waiting { wait, reason });
        let over = async {
            match over {
                Some(over) => tokio::time::sleep_until(over).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            doubt = doubts(&mut self.commands, &mut self.watcher) => {
                doubt?;
                // What was tried in vain before says nothing about the way that there may be now.
                self.backoff.reset();
            }
            () = over => {}
        }
        Ok(())
    }
}

/// Waits for a reason to try at once; shares need none, as they stand in the book.
async fn doubts(commands: &mut UnboundedReceiver<Command>, watcher: &mut Watcher) -> Result<(), Shutdown> {
    loop {
        let change: Change = tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Shutdown) => return Err(Shutdown),
                Some(Command::Probe) => return Ok(()),
                // The companion has a handle itself, so that there is always one.
                Some(
                    Command::Add(_)
                    | Command::Update(_)
                    | Command::Withdraw(_)
                    | Command::Remove(_)
                    | Command::AddDomain(_)
                    | Command::RemoveDomain(_)
                    | Command::Answer(..),
                )
                | None => continue,
            },
            change = watcher.changed() => change,
        };
        debug!(?change, "trying at once");
        return Ok(());
    }
}

#[cfg(test)]
mod tests;
