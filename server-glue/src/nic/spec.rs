//! `--nic` in words.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

#[cfg(feature = "tap")]
use super::tap::{TapSpec, TapSpecError};

/// Where the card is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicSpec {
    /// We listen at this Unix socket, QEMU connects.
    Listen(PathBuf),
    /// QEMU listens at this Unix socket, we connect.
    Connect(PathBuf),
    /// We listen at this Unix socket, and QEMU connects to share its guest's rings.
    #[cfg(feature = "vhost-user")]
    VhostUser(PathBuf),
    /// A TAP device of this machine: what is bridged to it, or the machine itself, is the guest.
    #[cfg(feature = "tap")]
    Tap(TapSpec),
}

impl FromStr for NicSpec {
    type Err = NicSpecError;

    /// `listen:PATH`, `connect:PATH`, `vhost-user:PATH`, `tap:NAME` or `tap:NAME,offload=off`.
    fn from_str(text: &str) -> Result<NicSpec, NicSpecError> {
        match text.split_once(':') {
            #[cfg(feature = "tap")]
            Some(("tap", spec)) => Ok(NicSpec::Tap(spec.parse()?)),
            Some((_, "")) => Err(NicSpecError::Unknown(text.to_owned())),
            Some(("listen", path)) => Ok(NicSpec::Listen(path.into())),
            Some(("connect", path)) => Ok(NicSpec::Connect(path.into())),
            #[cfg(feature = "vhost-user")]
            Some(("vhost-user", path)) => Ok(NicSpec::VhostUser(path.into())),
            Some(_) | None => Err(NicSpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for NicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NicSpec::Listen(path) => write!(f, "listen:{}", path.display()),
            NicSpec::Connect(path) => write!(f, "connect:{}", path.display()),
            #[cfg(feature = "vhost-user")]
            NicSpec::VhostUser(path) => write!(f, "vhost-user:{}", path.display()),
            #[cfg(feature = "tap")]
            NicSpec::Tap(spec) => write!(f, "tap:{spec}"),
        }
    }
}

/// Not a NIC that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NicSpecError {
    /// None of the kinds, or nothing behind the colon.
    #[error(
        "\"{0}\" names no NIC: expected listen:PATH (QEMU connects, server=off), connect:PATH (QEMU listens, server=on), vhost-user:PATH (QEMU connects) or tap:NAME[,offload=off]"
    )]
    Unknown(String),
    /// No device can have this name, or what stands behind it means nothing.
    #[cfg(feature = "tap")]
    #[error(transparent)]
    Tap(#[from] TapSpecError),
}
