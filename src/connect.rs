//! `spice-tunnel connect`: the client's side, next to any viewer.
//!
//! It links the tunnel channel by itself, as a *companion*: with session id 0 and the ticket. The server joins it to the
//! one live session; where none lives, the tunnel stands alone until a session begins, and is ended then. So a
//! tunnel that ended is linked again, with the ticket, for as long as the program runs.

mod args;
mod printer;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use args::{ConnectArgs, OutputArgs};
use client_glue::server::{Credentials, LinkFailure, SpiceServer, TunnelLink};
use client_glue::{Event, Events, Handle, Share, ShareError, TunnelConfig};
use printer::Printer;
use spice_proto::handshake::Linked;
use spice_proto::names::Sender;
use thiserror::Error as ThisError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::check;
use crate::open_files;
use crate::prompt::{self, PromptError, Terminal};
use crate::record::{self, Ends, Links};
use crate::session_args::{PasswordSource, Session, SessionError};

/// Waits between attempts to link again: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is printed must be taken within this time after a shutdown.
const LAST_PRINT: Duration = Duration::from_secs(1);

/// A tunnel that lived for so long was a good one: the next attempt waits shortly again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// Why `connect` failed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The session cannot be used as described, or nothing be shared with it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The file forbids it.
    #[error("{} has tunnel among its disable-channels: this session is not to have a tunnel", file.display())]
    Disabled {
        /// The file.
        file: PathBuf,
    },
    /// The password that came with a file does not work.
    #[error("{server} does not accept the password in {}: it has expired, most likely; fetch a new file", file.display())]
    Expired {
        /// The server.
        server: String,
        /// The file.
        file: PathBuf,
    },
    /// The user was asked for the password.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A share was added twice, or too many.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The recording.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// There is no link.
    #[error(transparent)]
    Link(#[from] LinkFailure),
    /// The link was fine and then closed.
    #[error("{server} closed the tunnel at once: there is another one already, it seems")]
    Occupied {
        /// The server.
        server: String,
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
    mut out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let session = args.session.resolve()?;
    let shares = args.sharing.shares(&session)?;
    if let Some(file) = session.file.as_ref().filter(|file| file.tunnel_disabled) {
        return Err(Error::Disabled { file: file.path.clone() });
    }
    if args.check {
        let text = check::report(&session, &shares, None, args.output.json);
        return check::print(out, &text).await.map_err(Error::Print);
    }
    let mut plan = Plan { server: session.server.clone(), credentials: session.credentials.clone(), shares };
    let mut tries = 0..prompt::TRIES;
    let outcome = loop {
        let outcome = keep(&plan, &args.output, &shutdown, &mut out).await;
        let refused = matches!(&outcome, Err(Error::Link(failure)) if prompt::may_help(failure));
        if !refused || session.password_source != PasswordSource::Nowhere || tries.next().is_none() {
            break outcome;
        }
        let Some(terminal) = Terminal::open() else { break outcome };
        let question = format!("Password for {}: ", plan.server);
        plan.credentials.password = tokio::select! {
            typed = terminal.password(&question) => typed?,
            () = shutdown.cancelled() => break Ok(()),
        };
    };
    // Not before: a viewer may be given the file as well, and removes it as it opens it.
    if let Some(file) = &session.file {
        file.remove();
    }
    outcome.map_err(|error| explain(error, &session))
}

/// What is to be done, once all that describes it was read.
pub(crate) struct Plan {
    pub(crate) server: SpiceServer,
    pub(crate) credentials: Credentials,
    pub(crate) shares: Vec<Share>,
}

/// A password from a file is most likely one that expires.
pub(crate) fn explain(error: Error, session: &Session) -> Error {
    match (error, &session.password_source) {
        (Error::Link(LinkFailure::WrongPassword { server, .. }), PasswordSource::ViewerFile(file)) => {
            Error::Expired { server, file: file.clone() }
        }
        (error, _) => error,
    }
}

/// Keeps the tunnel up, recorded where that is wanted.
///
/// # Errors
/// As [`run`].
pub(crate) async fn keep(
    plan: &Plan,
    output: &OutputArgs,
    shutdown: &CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let Some(path) = &output.capture else {
        return Box::pin(share(plan, output.json, None, shutdown, out)).await;
    };
    let (recording, links) = record::links(&output.rotation.options(path))?;
    let outcome = Box::pin(share(plan, output.json, Some(&links), shutdown, out)).await;
    recording.finish().await;
    outcome
}

async fn share(
    plan: &Plan,
    json: bool,
    capture: Option<&Links>,
    shutdown: &CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let mut printer = Printer::new(out, json);
    let mut backoff = Backoff::default();
    let mut was_connected = false;
    loop {
        let started = Instant::now();
        let link = tokio::select! {
            link = Box::pin(plan.server.link(0, &plan.credentials)) => link.map_err(Error::from),
            () = shutdown.cancelled() => return Ok(()),
        };
        let outcome = match link {
            // It hears of the shutdown itself, and says goodbye.
            Ok(TunnelLink { stream, linked, ends, .. }) => match capture {
                None => {
                    let run = tunnel(plan, stream, linked, shutdown, &mut printer, &mut was_connected);
                    Box::pin(run).await
                }
                Some(links) => {
                    let ends = ends.map(|(client, server)| Ends { client, server });
                    let stream = links.tap(stream, &linked, Sender::Client, ends);
                    let run = tunnel(plan, stream, linked, shutdown, &mut printer, &mut was_connected);
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

/// Runs one tunnel to its end.
async fn tunnel(
    plan: &Plan,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    linked: Linked,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    was_connected: &mut bool,
) -> Result<(), Error> {
    let (handle, mut events, run) = client_glue::tunnel(stream, linked, TunnelConfig::default());
    printer.names.clear();
    for share in &plan.shares {
        let id = handle.add_share(share.clone())?;
        printer.names.insert(id, (share.name.clone(), share.target()));
    }
    let listen = listen(&handle, &mut events, shutdown, printer, was_connected, &plan.server);
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
    let server = plan.server.to_string();
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
    server: &SpiceServer,
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

/// An error with all its causes.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
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
