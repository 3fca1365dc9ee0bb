//! Why `serve` did not start.

use std::io;
use std::path::PathBuf;

use server_glue::address::LoadError;
use server_glue::netstack::NetConfigError;
use spice_proto::tls::TlsError;

use super::{CardError, ListenError};
use crate::password::PasswordFileError;
use crate::record;

/// Why `serve` did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The card's socket.
    #[error(transparent)]
    Card(#[from] CardError),
    /// The virtual network.
    #[error("--subnet")]
    Net(#[from] NetConfigError),
    /// The password file.
    #[error(transparent)]
    Password(#[from] PasswordFileError),
    /// Where clients were to come in.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate and key for clients.
    #[error("--tls-cert and --tls-key")]
    Certificate(#[source] TlsError),
    /// The authorities for the Spice server's certificate.
    #[error("--upstream-tls")]
    Upstream(#[source] TlsError),
    /// `--check` found something.
    #[error("problems to be solved first: {0}")]
    Check(usize),
    /// Standard output.
    #[error("cannot print")]
    Output(#[source] io::Error),
    /// Signals.
    #[error("cannot wait for SIGHUP")]
    Signal(#[source] io::Error),
    /// The lease file cannot be read.
    #[error("cannot read the lease file {}", path.display())]
    LeaseFile {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lease file is not one of ours. It is left alone: whoever knows what it is may mend or remove it.
    #[error("the lease file {} is unusable", path.display())]
    LeaseText {
        /// As it was given.
        path: PathBuf,
        /// What is wrong.
        source: LoadError,
    },
    /// A recording.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Without it nothing is served, so somebody should start us again.
    #[error("the VM's task failed: {0}")]
    Session(String),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random(#[from] openssl::error::ErrorStack),
}
