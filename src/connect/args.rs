//! What `connect` is told.

use std::path::PathBuf;

use clap::Args;

use crate::record::RotationArgs;
use crate::session_args::{SessionArgs, SharingArgs};

/// What `connect` is told.
#[derive(Debug, Args)]
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

/// What a tunnel's user side says of itself.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
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
