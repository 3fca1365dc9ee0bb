//! `spice-tunnel connect`: the client's side, next to any viewer.
//!
//! It links the tunnel channel by itself, as a *companion*: with session id 0 and the ticket. The server joins it to the
//! one live session; where none lives, the tunnel stands alone until a session begins, and is ended then. So a
//! tunnel that ended is linked again, with the ticket, for as long as the program runs: [`client_glue::companion()`] does
//! that.

mod args;
mod joined;
mod printer;
mod sharing;

use std::io;
use std::path::PathBuf;

pub use args::{ConnectArgs, OutputArgs};
use client_glue::server::{Credentials, LinkFailure, SpiceServer};
use client_glue::{CompanionError, ShareError};
use joined::share;
pub(crate) use sharing::{Complaints, Feed, changed};
use thiserror::Error as ThisError;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::check;
use crate::open_files;
use crate::prompt::{self, PromptError, Terminal};
use crate::record;
use crate::session_args::{PasswordSource, Session, SessionError, Sharing};

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
    /// There was a link, and will be no other.
    #[error(transparent)]
    Companion(CompanionError),
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

impl From<CompanionError> for Error {
    fn from(error: CompanionError) -> Self {
        match error {
            CompanionError::Link(failure) => Self::Link(failure),
            other @ (CompanionError::Occupied { .. }
            | CompanionError::Tunnel { .. }
            | CompanionError::Expired { .. }
            | _) => Self::Companion(other),
        }
    }
}

/// Shares what `args.sharing` says with the VM behind `args.server`, and prints what the guest reaches where, until `shutdown`.
///
/// Cancel safe in that a dropped run leaves nothing behind: services see a reset, the link is closed.
///
/// # Errors
///
/// [`Error`], when what was asked for makes no sense, or when the first attempt to link fails. Once there was a
/// tunnel, it is linked again, unless that is of no use any more ([`client_glue::CompanionError`]).
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
    let sharing = args.sharing.sharing(&session)?;
    if let Some(file) = session.file.as_ref().filter(|file| file.tunnel_disabled) {
        return Err(Error::Disabled { file: file.path.clone() });
    }
    if args.check {
        let text = check::report(&session, &sharing, None, args.output.json);
        return check::print(out, &text).await.map_err(Error::Print);
    }
    let mut plan = Plan { server: session.server.clone(), credentials: session.credentials.clone(), sharing };
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
    pub(crate) sharing: Sharing,
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
    let feed = plan.sharing.discovery.as_ref().map(Feed::live);
    keep_fed(plan, output, feed, shutdown, out).await
}

/// [`keep`], with the devices that `feed` finds.
async fn keep_fed(
    plan: &Plan,
    output: &OutputArgs,
    feed: Option<Feed>,
    shutdown: &CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let Some(path) = &output.capture else {
        return Box::pin(share(plan, output, None, feed, shutdown, out)).await;
    };
    let (recording, links) = record::links(&output.rotation.options(path))?;
    let outcome = Box::pin(share(plan, output, Some(&links), feed, shutdown, out)).await;
    recording.finish().await;
    outcome
}

#[cfg(test)]
mod tests;
