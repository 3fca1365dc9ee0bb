//! `spice-tunnel view`: a viewer and the tunnel, started together, with one password, and ended together.
//!
//! The viewer is any stock one. It gets a `.vv` file of its own, so that the password stands on no command line. The tunnel
//! is a companion, as with `connect`. Without a tunnel at the server the user still gets the desktop.

mod private_file;
mod viewer;

use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use client_glue::server::LinkFailure;
use private_file::PrivateFiles;
use thiserror::Error as ThisError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use viewer::Viewer;

use crate::causes;
use crate::check;
use crate::connect::{self, OutputArgs, Plan};
use crate::open_files;
use crate::prompt::{self, PromptError, Terminal};
use crate::session_args::{PasswordSource, Session, SessionArgs, SessionError, Sharing, SharingArgs};

/// The tunnel has so long to say goodbye when the viewer has gone.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What `view` is told.
#[derive(Debug, Args)]
#[command(after_long_help = crate::config::HELP)]
pub struct ViewArgs {
    /// The session.
    #[command(flatten)]
    pub session: SessionArgs,

    /// What is shared with it.
    #[command(flatten)]
    pub sharing: SharingArgs,

    /// The viewer: remote-viewer, spicy, or another one that takes a .vv file. spicy asks for a password itself, as it
    /// takes none but on its command line, where others see it
    #[arg(long, value_name = "PROGRAM", default_value = "remote-viewer")]
    pub viewer: PathBuf,

    /// More arguments for the viewer
    #[arg(last = true, value_name = "ARGUMENT")]
    pub viewer_arguments: Vec<std::ffi::OsString>,

    /// What is said of the tunnel.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Validate what was given, print what would be done, start and connect nothing
    #[arg(long)]
    pub check: bool,
}

/// Why there was nothing to see.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The session cannot be used as described, or nothing be shared with it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Nothing can be linked there, a viewer's channels neither.
    #[error(transparent)]
    Link(#[from] LinkFailure),
    /// The password that came with a file does not work.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The user was asked for the password.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// There is no such program.
    #[error("there is no {}{}", program.display(), viewer::package(program))]
    NoViewer {
        /// The viewer.
        program: PathBuf,
    },
    /// It does not start.
    #[error("cannot start {}", program.display())]
    Start {
        /// The viewer.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The viewer's file.
    #[error("cannot write a file for the viewer")]
    PrivateFile(#[source] io::Error),
    /// Nobody reads what is printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Starts the viewer and keeps the tunnel beside it, until the viewer ends or `shutdown`, which ends both. The exit code is
/// the viewer's.
///
/// # Errors
/// [`Error`], before the viewer was started. Whatever happens to the tunnel afterwards leaves the viewer alone.
pub async fn run(args: ViewArgs, shutdown: CancellationToken) -> Result<ExitCode, Error> {
    debug!(limit = ?open_files::raise_limit(), "open files");
    let mut session = args.session.resolve()?;
    let sharing = args.sharing.sharing(&session)?;
    let program = viewer::find(&args.viewer)?;
    if args.check {
        let text = check::report(&session, &sharing, Some(&program), args.output.json);
        check::print(tokio::io::stdout(), &text).await.map_err(Error::Print)?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        found = Box::pin(find_password(&mut session)) => found?,
        () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
    }
    let files = PrivateFiles::new().map_err(Error::PrivateFile)?;
    let viewer = Viewer::start(&program, &args.viewer_arguments, &session, &files)?;
    if let Some(file) = &session.file {
        file.remove();
    }
    let ended = Box::pin(beside(viewer, &session, sharing, &args.output, &shutdown)).await;
    drop(files);
    let status = ended.map_err(|source| Error::Start { program, source })?;
    Ok(if shutdown.is_cancelled() { ExitCode::SUCCESS } else { exit_code(status) })
}

/// Finds out whether the password is right, and asks for one where none was given. A server that says neither is left
/// to the viewer.
async fn find_password(session: &mut Session) -> Result<(), Error> {
    let mut tries = 0..prompt::TRIES;
    loop {
        let failure = match session.server.admits(&session.credentials).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if !prompt::may_help(&failure) {
            return if is_unclear(&failure) {
                debug!(%failure, "whether the password is right shows later");
                Ok(())
            } else {
                Err(failure.into())
            };
        }
        let asked = session.password_source == PasswordSource::Nowhere && tries.next().is_some();
        let Some(terminal) = asked.then(Terminal::open).flatten() else {
            return Err(connect::explain(failure.into(), session).into());
        };
        let question = format!("Password for {}: ", session.server);
        session.credentials.password = terminal.password(&question).await?;
    }
}

/// The viewer may yet get what was not to be had in this way.
fn is_unclear(failure: &LinkFailure) -> bool {
    matches!(
        failure,
        LinkFailure::NoTunnel { .. }
            | LinkFailure::NotNow { .. }
            | LinkFailure::NeedsTls { .. }
            | LinkFailure::NeedsClear { .. }
            | LinkFailure::Sasl { .. }
            | LinkFailure::Link { .. }
    )
}

/// Waits for the viewer, with the tunnel beside it.
async fn beside(
    mut viewer: Viewer,
    session: &Session,
    sharing: Sharing,
    output: &OutputArgs,
    shutdown: &CancellationToken,
) -> io::Result<ExitStatus> {
    let over = shutdown.child_token();
    let tunnel = async {
        if let Some(file) = session.file.as_ref().filter(|file| file.tunnel_disabled) {
            let file = file.path.display();
            warn!(%file, "no tunnel: the file has tunnel among its disable-channels");
            return;
        }
        let plan = Plan { server: session.server.clone(), credentials: session.credentials.clone(), sharing };
        let outcome = connect::keep(&plan, output, &over, tokio::io::stdout()).await;
        if let Err(error) = outcome {
            let error = connect::explain(error, session);
            warn!(
                error = causes::in_line(&error),
                "no tunnel, nothing is shared; the viewer goes on without"
            );
        }
    };
    tokio::pin!(tunnel);
    let mut tunnel_over = false;
    let status = loop {
        tokio::select! {
            status = viewer.ended() => break status,
            () = &mut tunnel, if !tunnel_over => tunnel_over = true,
            () = shutdown.cancelled() => break viewer.end().await,
        }
    };
    info!(server = %session.server, "the viewer has ended, and the tunnel with it");
    over.cancel();
    if !tunnel_over && tokio::time::timeout(LAST_WORDS, tunnel).await.is_err() {
        debug!("the tunnel did not end in time");
    }
    status
}

/// As a shell has it: a program that a signal ended has 128 and its number.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
