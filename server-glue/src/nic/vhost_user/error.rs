//! What can go wrong with a vhost-user card, and whose fault it is.

use std::fmt;
use std::io;

pub use super::message::RequestError;
pub use super::ring::RingError;

/// Why a vhost-user card has no virtual machine any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// It is gone.
    #[error("QEMU closed the vhost-user connection")]
    Closed,
    /// The guest reboots, or its driver is unloaded, or QEMU pauses it.
    #[error("the guest's driver stopped the card")]
    Stopped,
    /// Nothing more can be made of the ring until the driver starts it again.
    #[error("the guest's network driver broke the {ring} ring: {error}")]
    Ring {
        /// Which.
        ring: RingName,
        /// How.
        error: RingError,
    },
    /// Its tables are where the guest has no memory that we know of.
    #[error("QEMU has the {0} ring outside of the memory that it shares")]
    Outside(RingName),
    /// The connection is over with it.
    #[error("QEMU made a vhost-user request that cannot be followed: {0}")]
    Request(RequestError),
    /// What the system said.
    #[error("the vhost-user connection broke: {0}")]
    Connection(#[source] io::Error),
    /// What it is to wake us with is nothing that can.
    #[error("QEMU's kick descriptor cannot be waited for: {0}")]
    Kick(#[source] io::Error),
}

/// One of a card's two rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingName {
    /// What the guest receives; number 0.
    Receive,
    /// What the guest sends; number 1.
    Transmit,
}

impl RingName {
    pub(super) fn broke(self, error: RingError) -> VhostUserError {
        VhostUserError::Ring { ring: self, error }
    }
}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingName::Receive => "receive",
            RingName::Transmit => "transmit",
        })
    }
}

impl From<RequestError> for VhostUserError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}
