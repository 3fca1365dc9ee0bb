//! What `connect` is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::duration::{self, DurationError};
use crate::record::RotationArgs;
use crate::session_args::{SessionArgs, SharingArgs};

/// What `connect` is told.
#[derive(Debug, Args)]
#[command(after_long_help = crate::config::HELP)]
pub struct ConnectArgs {
    /// The session.
    #[command(flatten)]
    pub session: SessionArgs,

    /// What is shared with it.
    #[command(flatten)]
    pub sharing: SharingArgs,

    /// What it says of itself.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Validate what was given, print what would be done, and connect nowhere
    #[arg(long)]
    pub check: bool,
}

/// What a tunnel's user side says of itself, and when it takes a link for dead.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// A link on which nothing at all was heard for so long is dead, and another is made: 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_dead_after)]
    pub dead_after: Duration,

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

fn parse_dead_after(text: &str) -> Result<Duration, DurationError> {
    duration::parse_within(text, Duration::from_secs(1), Duration::from_secs(3600))
}
