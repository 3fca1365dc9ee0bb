//! `spice-tunnel connect`: the client's side, next to any viewer.
//!
//! It links the tunnel channel by itself, as a *companion*: with session id 0 and the ticket. The server joins it to the
//! one live session; where none lives, the tunnel stands alone until a session begins, and is ended then. So a
//! tunnel that ended is linked again, with the ticket, for as long as the program runs.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use client_glue::{ConnectionId, End, Event, Events, Handle, Share, ShareError, ShareId, TunnelConfig};
use serde::Serialize;
use spice_proto::{
    handshake::{ClientLink, Deadlines, HandshakeError, Linked, Step},
    io::IoError,
    link::{ChannelType, CommonCaps, LinkError, LinkFault, LinkVersion},
    names::Sender,
    ticket::{Password, PasswordError},
};
use thiserror::Error as ThisError;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    open_files,
    password::{self, PasswordFileError},
    record::{self, Ends, Links, RotationArgs},
    spice_uri::{Server, Transport},
};

/// How long the server's host may take to answer a connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Waits between attempts to link again: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is printed must be taken within this time after a shutdown.
const LAST_PRINT: Duration = Duration::from_secs(1);

/// The same refusal is logged again after this long only: a guest may try for ever.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A tunnel that lived for so long was a good one: the next attempt waits shortly again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// What `connect` is told.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The Spice server: spice://HOST:PORT, where `spice-tunnel serve` listens
    #[arg(value_name = "spice://HOST:PORT")]
    pub server: Server,

    /// What the VM may reach: tcp://HOST:PORT, with ?name=NAME behind it to give it a lasting name, from which its
    /// virtual address is derived. Can be given many times
    #[arg(long = "share", value_name = "tcp://HOST:PORT?name=NAME", required = true)]
    pub shares: Vec<Share>,

    /// File whose first line is the password of the Spice session
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// The password itself, best given by the environment; --password-file goes before it
    #[arg(long, value_name = "PASSWORD", env = "SPICE_TUNNEL_PASSWORD", hide_env_values = true, hide = true)]
    pub password: Option<String>,

    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,

    /// Record what passes the tunnel link, in clear, as pcapng
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,

    /// How large that becomes.
    #[command(flatten)]
    pub rotation: RotationArgs,
}

/// Why `connect` failed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The shares cannot be offered.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The password file is of no use.
    #[error(transparent)]
    PasswordFile(#[from] PasswordFileError),
    /// The password cannot be one.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The recording.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Nobody there.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something else than a Spice server.
    #[error("{server} is not a Spice server")]
    NotSpice {
        /// The server.
        server: String,
        /// What is wrong with its answer.
        source: LinkFault,
    },
    /// A Spice server without a tunnel closes without a word.
    #[error("{server} offers no tunnel channel; is `spice-tunnel serve` in front of it?")]
    NoTunnel {
        /// The server.
        server: String,
    },
    /// Wrong or expired ticket.
    #[error("{server} does not accept the password: {}", if *given { "it is wrong, or has expired" } else { "none was given; use --password-file" })]
    WrongPassword {
        /// The server.
        server: String,
        /// A password was given.
        given: bool,
    },
    /// The server knows no session that we could join.
    #[error(
        "{server} takes no tunnel beside a viewer: companions are turned off there, or there are several sessions"
    )]
    NoCompanion {
        /// The server.
        server: String,
    },
    /// Not now.
    #[error("{server} cannot take a tunnel now; is the Spice server behind it running?")]
    NotNow {
        /// The server.
        server: String,
    },
    /// The link was fine and then closed.
    #[error("{server} closed the tunnel at once: there is another one already, it seems")]
    Occupied {
        /// The server.
        server: String,
    },
    /// TLS only.
    #[error("{server} wants TLS for the tunnel, which cannot be used yet")]
    NeedsTls {
        /// The server.
        server: String,
    },
    /// Anything else in the link stage.
    #[error("cannot link the tunnel channel of {server}")]
    Link {
        /// The server.
        server: String,
        /// What happened.
        source: IoError,
    },
    /// The tunnel itself failed.
    #[error("the tunnel to {server} failed")]
    Tunnel {
        /// The server.
        server: String,
        /// What happened.
        source: client_glue::Error,
    },
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Shares `args.shares` with the VM behind `args.server`, and prints what the guest reaches where, until `shutdown`.
///
/// Cancel safe in that a dropped run leaves nothing behind: services see a reset, the link is closed.
///
/// # Errors
///
/// [`Error`], when what was asked for makes no sense, or when the first attempt to link fails. Once there was a
/// tunnel, it is linked again for ever.
pub async fn run(args: ConnectArgs, shutdown: CancellationToken) -> Result<(), Error> {
    debug!(limit = ?open_files::raise_limit(), "open files");
    run_to(args, shutdown, tokio::io::stdout()).await
}

/// [`run`], printing to `out`. Whoever reads that slowly does not slow the tunnel.
///
/// # Errors
///
/// As [`run`].
pub async fn run_to(
    args: ConnectArgs,
    shutdown: CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    client_glue::check_shares(&args.shares)?;
    let password = chosen_password(&args)?;
    let Some(path) = &args.capture else {
        return Box::pin(share(&args, &password, None, &shutdown, out)).await;
    };
    let (recording, links) = record::links(&args.rotation.options(path))?;
    let outcome = Box::pin(share(&args, &password, Some(&links), &shutdown, out)).await;
    recording.finish().await;
    outcome
}

async fn share(
    args: &ConnectArgs,
    password: &Password,
    capture: Option<&Links>,
    shutdown: &CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let mut printer = Printer::new(out, args.json);
    let mut backoff = Backoff::default();
    let mut was_connected = false;
    loop {
        let started = Instant::now();
        let link = tokio::select! {
            link = Box::pin(link(&args.server, password)) => link,
            () = shutdown.cancelled() => return Ok(()),
        };
        let outcome = match link {
            // It hears of the shutdown itself, and says goodbye.
            Ok((stream, linked)) => match capture {
                None => {
                    let run = tunnel(args, stream, linked, shutdown, &mut printer, &mut was_connected);
                    Box::pin(run).await
                }
                Some(links) => {
                    let ends = ends(&stream).ok();
                    let stream = links.tap(stream, &linked, Sender::Client, ends);
                    let run = tunnel(args, stream, linked, shutdown, &mut printer, &mut was_connected);
                    Box::pin(run).await
                }
            },
            Err(error) => Err(error),
        };
        if shutdown.is_cancelled() {
            return Ok(());
        }
        match outcome {
            Err(error @ Error::Print(_)) => return Err(error),
            Err(error) if !was_connected => return Err(error),
            Err(error) => warn!(error = in_full(&error), "no tunnel at the moment"),
            Ok(()) => info!("the server ended the tunnel; linking again"),
        }
        if started.elapsed() >= GOOD_LIFE {
            backoff = Backoff::default();
        }
        let wait = backoff.next();
        debug!(?wait, "waiting before the next attempt");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Connects and links.
async fn link(server: &Server, password: &Password) -> Result<(TcpStream, Linked), Error> {
    let Transport::Plain(port) = server.transport;
    let connect = TcpStream::connect((server.host.as_str(), port));
    let mut stream = match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(Error::Connect { server: server.to_string(), source }),
        Err(_) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s");
            return Err(Error::Connect { server: server.to_string(), source });
        }
    };
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the link's socket could not be set to send at once");
    }
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: client_glue::channel_caps(),
    };
    match spice_proto::io::connect(&mut stream, asked, password, Deadlines::default()).await {
        Ok(linked) => Ok((stream, linked)),
        Err(error) => Err(explain(server.to_string(), *password != Password::empty(), error)),
    }
}

/// What a failed link stage means to a user.
fn explain(server: String, given: bool, error: IoError) -> Error {
    match error {
        IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) => Error::NoTunnel { server },
        // A close with something of ours still unread shows as a reset.
        IoError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => Error::NoTunnel { server },
        IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied)) => {
            Error::WrongPassword { server, given }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId)) => {
            Error::NoCompanion { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::ChannelNotAvailable)) => {
            Error::NotNow { server }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::NeedSecured)) => Error::NeedsTls { server },
        IoError::Handshake(HandshakeError::BadServer(source)) => Error::NotSpice { server, source },
        source @ (IoError::Handshake(_) | IoError::Io(_) | IoError::Seal(_)) => {
            Error::Link { server, source }
        }
    }
}

fn ends(stream: &TcpStream) -> io::Result<Ends> {
    Ok(Ends { client: stream.local_addr()?, server: stream.peer_addr()? })
}

/// Runs one tunnel to its end.
async fn tunnel(
    args: &ConnectArgs,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    linked: Linked,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    was_connected: &mut bool,
) -> Result<(), Error> {
    let (handle, mut events, run) = client_glue::tunnel(stream, linked, TunnelConfig::default());
    printer.names.clear();
    for share in &args.shares {
        let id = handle.add_share(share.clone())?;
        printer.names.insert(id, (share.name.clone(), share.target()));
    }
    let listen = listen(&handle, &mut events, shutdown, printer, was_connected, &args.server);
    // A task of its own, which ends with this call: printing must not hold it up.
    let mut running = JoinSet::new();
    running.spawn(run);
    let heard = listen.await;
    let ended = match running.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime itself is going down.
        Some(Err(_)) | None => Ok(()),
    };
    heard.map_err(Error::Print)?;
    let server = args.server.to_string();
    ended.map_err(|source| match source {
        client_glue::Error::NeverBegan => Error::Occupied { server },
        source @ (client_glue::Error::NotATunnel { .. }
        | client_glue::Error::Violation(_)
        | client_glue::Error::Frame(_)
        | client_glue::Error::Truncated { .. }
        | client_glue::Error::Link(_)) => Error::Tunnel { server, source },
    })
}

/// Prints the events of one tunnel to the last. Ends the tunnel on `shutdown`, and when nothing can be printed.
async fn listen(
    handle: &Handle,
    events: &mut Events,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    was_connected: &mut bool,
    server: &Server,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut told = false;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled(), if !told => {
                told = true;
                handle.shutdown();
                continue;
            }
        };
        let Some(event) = event else { return outcome };
        if let Event::Connected { .. } = &event {
            *was_connected = true;
        }
        if outcome.is_ok() {
            let last_call = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_PRINT).await;
            };
            outcome = tokio::select! {
                printed = printer.print(&event, server) => printed,
                () = last_call => Err(io::ErrorKind::TimedOut.into()),
            };
            if outcome.is_err() {
                handle.shutdown();
            }
        }
    }
}

fn chosen_password(args: &ConnectArgs) -> Result<Password, Error> {
    if args.server.password.is_some() {
        warn!("a password in the address is seen by whoever lists processes: better use --password-file");
    }
    if let Some(path) = &args.password_file {
        return Ok(password::read_file(path)?);
    }
    match (&args.password, &args.server.password) {
        (Some(text), _) => Ok(Password::new(text.as_bytes())?),
        (None, Some(password)) => Ok(password.clone()),
        (None, None) => Ok(Password::empty()),
    }
}

/// Waits that grow, each up to a half longer or shorter than planned, so that many clients do not come at once.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST_WAIT }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let planned = self.next;
        self.next = planned.saturating_mul(2).min(LONGEST_WAIT);
        // A hasher's random keys are randomness enough for this.
        let random = u32::try_from(RandomState::new().hash_one(()) % 1000).unwrap_or_default();
        planned / 2 + planned * random / 1000
    }
}

/// Puts events on paper.
struct Printer<W> {
    out: W,
    json: bool,
    /// Names and targets of the tunnel's shares.
    names: HashMap<ShareId, (String, String)>,
    /// Lines printed as text, by target: a tunnel that comes back the same is not worth a second one.
    printed: BTreeMap<String, String>,
    /// The last refusal logged of each share, and when.
    complaints: HashMap<ShareId, (String, Instant)>,
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Connected {
        server: String,
        max_sockets: u16,
        max_data: u32,
    },
    Mapped {
        name: &'a str,
        target: &'a str,
        virtual_ip: IpAddr,
        port: u16,
    },
    Opened {
        name: &'a str,
        target: &'a str,
        connection: u64,
        address: SocketAddr,
    },
    Closed {
        name: &'a str,
        target: &'a str,
        connection: u64,
        bytes_up: u64,
        bytes_down: u64,
        end: &'static str,
    },
    Refused {
        name: &'a str,
        target: &'a str,
        reason: String,
    },
    Missed {
        events: u64,
    },
    Disconnected {
        reason: &'a str,
    },
}

impl<W: AsyncWrite + Unpin> Printer<W> {
    fn new(out: W, json: bool) -> Printer<W> {
        Printer { out, json, names: HashMap::new(), printed: BTreeMap::new(), complaints: HashMap::new() }
    }

    /// Not cancel safe: a part of a line may be out.
    async fn print(&mut self, event: &Event, server: &Server) -> io::Result<()> {
        let line = if self.json { Some(self.json(event, server)?) } else { self.text(event, server) };
        if let Some(mut line) = line {
            line.push('\n');
            self.out.write_all(line.as_bytes()).await?;
            self.out.flush().await?;
        }
        Ok(())
    }

    fn json(&self, event: &Event, server: &Server) -> serde_json::Result<String> {
        let name = |share: &ShareId| -> (&str, &str) {
            self.names.get(share).map_or(("", ""), |(name, target)| (name, target))
        };
        let line = match event {
            Event::Connected { max_sockets, max_data } => {
                Line::Connected { server: server.to_string(), max_sockets: *max_sockets, max_data: *max_data }
            }
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                Line::Mapped { name, target, virtual_ip: *virtual_ip, port: *port }
            }
            Event::Opened { share, connection: ConnectionId(connection), address } => {
                let (name, target) = name(share);
                Line::Opened { name, target, connection: *connection, address: *address }
            }
            Event::Closed { share, connection: ConnectionId(connection), bytes_up, bytes_down, end } => {
                let (name, target) = name(share);
                let (bytes_up, bytes_down) = (*bytes_up, *bytes_down);
                Line::Closed { name, target, connection: *connection, bytes_up, bytes_down, end: word(*end) }
            }
            Event::Refused { share, reason } => {
                let (name, target) = name(share);
                Line::Refused { name, target, reason: reason.to_string() }
            }
            Event::Missed { events } => Line::Missed { events: *events },
            Event::Disconnected { reason } => Line::Disconnected { reason },
        };
        serde_json::to_string(&line)
    }

    fn text(&mut self, event: &Event, server: &Server) -> Option<String> {
        match event {
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                let line = format!("{name}  {target}  ->  {}", SocketAddr::new(*virtual_ip, *port));
                let known = self.printed.insert(target.clone(), line.clone());
                return (known.as_ref() != Some(&line)).then_some(line);
            }
            Event::Connected { .. } => info!("connected to {server}"),
            Event::Refused { share, reason } => self.complain(*share, reason.to_string()),
            Event::Disconnected { reason } => info!(%reason, "disconnected"),
            Event::Opened { .. } | Event::Closed { .. } | Event::Missed { .. } => debug!(?event, "tunnel"),
        }
        None
    }

    fn complain(&mut self, share: ShareId, reason: String) {
        let name = self.names.get(&share).map_or("", |(name, _)| name);
        match self.complaints.get(&share) {
            Some((known, when)) if *known == reason && when.elapsed() < COMPLAIN_EVERY => {
                debug!(share = name, reason, "a connection of the guest was refused");
            }
            Some(_) | None => {
                warn!(share = name, reason, "a connection of the guest was refused");
                self.complaints.insert(share, (reason, Instant::now()));
            }
        }
    }
}

fn word(end: End) -> &'static str {
    match end {
        End::Clean => "clean",
        End::Service => "service",
        End::Guest => "guest",
        End::Unshared => "unshared",
    }
}

/// An error with all its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let colon = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{colon}{error}");
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
