//! `spice-tunnel replay`: today's code against yesterday's traffic.

pub mod netstack;
pub mod report;

use std::path::PathBuf;
use std::time::Duration;

/// What every part of a replay goes by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Only connections of this server port; `None`: all.
    pub port: Option<u16>,
    /// Also what does not mean anything to the ends: serials, message boundaries, token batches.
    pub strict: bool,
    /// Time of the capture's first packet since the Unix epoch, once known: findings give times since then.
    pub start: Option<Duration>,
}

/// Why a replay could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or that is no capture.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
