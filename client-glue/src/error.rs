//! Why a tunnel ended that should not have.

use std::{io, time::Duration};

use spice_proto::error::FrameError;
use thiserror::Error;
use tunnel_channel::Violation;

/// Why a tunnel ended other than by [`Handle::shutdown`](crate::Handle::shutdown) or by the server's leave.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The link is one of another channel: the caller's mistake.
    #[error("the link given is of channel type {got}, expected the tunnel's, 7")]
    NotATunnel {
        /// Its channel type.
        got: u8,
    },
    /// The server broke the protocol.
    #[error("the server broke the tunnel's protocol")]
    Violation(#[source] Violation),
    /// The server is dead, or the way to it broken.
    #[error("the link is dead: nothing was heard for {after:?}")]
    Dead {
        /// For how long.
        after: Duration,
    },
    /// The server sent something that is no message.
    #[error("the server sent something that is no message")]
    Frame(#[from] FrameError),
    /// The server closed the link before INIT.
    #[error("the server closed the tunnel before it began")]
    NeverBegan,
    /// The server closed the link within a message.
    #[error("the server closed the tunnel in the middle of a message, of which {have} bytes had come")]
    Truncated {
        /// What had come of it.
        have: usize,
    },
    /// Reading from or writing to the server failed.
    #[error("the link to the server broke")]
    Link(#[from] io::Error),
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Error {
        if let Violation::Silent { after } = violation {
            Error::Dead { after }
        } else {
            Error::Violation(violation)
        }
    }
}

/// An error with all its causes.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
