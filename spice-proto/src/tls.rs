//! TLS as Spice uses it (wire-reference 1.9): a port of its own, TLS first, then the same bytes as without.
//!
//! TLS 1.2 and 1.3, no renegotiation, no compression, no resumption, no client certificates. What a client checks is
//! Spice's own: a chain to somebody it believes, and then either the host's name or, where the two need not agree, the
//! certificate's whole [`Subject`]. It is checked while the handshake runs, so that nothing of the client's but its
//! first message has gone to a server that is not the right one, and the server is told.
//!
//! Neither [`Connector::connect`] nor [`Acceptor::accept`] has a deadline: a peer may stall a handshake for ever, and
//! only callers know how long they would wait for everything that a handshake is part of. Files are read when a
//! connector or an acceptor is made, never later.
//!
//! No type of the TLS library shows in here.

mod acceptor;
mod connector;
mod diagnosis;
mod error;
mod pem;
mod stream;
mod subject;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;

use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslOptions, SslSessionCacheMode, SslVersion};

pub use acceptor::{Acceptor, Certificate};
pub use connector::Connector;
pub use error::{Peer, TlsError};
pub use stream::TlsStream;
pub use subject::{Subject, SubjectError};

/// Whose signature is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that the system trusts, wherever the system keeps them; `SSL_CERT_FILE` and `SSL_CERT_DIR` say
    /// otherwise.
    System,
    /// Those in this PEM file, and nobody else.
    File(PathBuf),
    /// Those in this PEM text, and nobody else.
    Pem(Vec<u8>),
}

/// What makes a server the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Who must have signed its certificate.
    pub roots: Roots,
    /// The certificate's subject; without one, the certificate must be for the host's name.
    pub subject: Option<Subject>,
    /// OpenSSL's list of ciphers for TLS 1.2 (`tls-ciphers`), if not the default. Whatever it says, ciphers without
    /// encryption or without a certificate are never taken.
    pub ciphers: Option<String>,
}

impl Default for Trust {
    /// The system's authorities and the host's name.
    fn default() -> Self {
        Self { roots: Roots::System, subject: None, ciphers: None }
    }
}

impl Trust {
    /// Only the authorities in this PEM file, and the host's name.
    pub fn ca_file(path: impl Into<PathBuf>) -> Self {
        Self { roots: Roots::File(path.into()), ..Self::default() }
    }

    /// Only the authorities in this PEM text, and the host's name.
    pub fn ca(pem: impl Into<Vec<u8>>) -> Self {
        Self { roots: Roots::Pem(pem.into()), ..Self::default() }
    }

    /// The certificate must have this subject, and need not be for the host's name.
    #[must_use]
    pub fn with_subject(mut self, subject: Subject) -> Self {
        self.subject = Some(subject);
        self
    }
}

/// What holds for both roles.
fn limit(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    // Spice servers close without TLS's farewell; TlsStream::was_cut tells it from a proper end.
    builder.set_options(
        SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_TICKET
            | SslOptions::IGNORE_UNEXPECTED_EOF,
    );
    // A record's header and its body by one read.
    builder.set_read_ahead(true);
    Ok(())
}
