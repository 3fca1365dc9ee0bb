//! TLS as a server.

use std::fmt;
use std::path::Path;
use std::pin::Pin;

use openssl::ssl::{Ssl, SslAcceptor, SslMethod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use super::diagnosis::{failed_handshake, names};
use super::error::Peer;
use super::subject::text_of;
use super::wire::Wire;
use super::{TlsError, TlsStream, limit, pem};

/// Begins TLS as a server.
#[derive(Clone)]
pub struct Acceptor {
    inner: SslAcceptor,
    certificate: Certificate,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a server's certificate says, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// Whom it is for, as `host-subject` would have it.
    pub subject: String,
    /// Names and addresses it is for.
    pub names: Vec<String>,
    /// When it begins.
    pub valid_from: String,
    /// When it ends.
    pub valid_until: String,
    /// It has ended, or had when it was loaded.
    pub expired: bool,
}

impl Acceptor {
    /// One that shows the certificates in `chain`, its own first, with `key`; both are PEM files.
    ///
    /// An encrypted key is refused: nobody is there to type its password.
    ///
    /// # Errors
    /// The files cannot be used, or do not belong together.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        limit(&mut builder)?;
        builder.set_num_tickets(0)?;
        let origin = chain.display().to_string();
        let mut certificates = pem::certificates(&pem::read(chain)?, &origin)?.into_iter();
        let Some(own) = certificates.next() else {
            return Err(TlsError::NoCertificate { origin });
        };
        let private = pem::private_key(key)?;
        if !own.public_key().is_ok_and(|public| private.public_eq(&public)) {
            return Err(TlsError::Mismatch { certificate: chain.to_owned(), key: key.to_owned() });
        }
        let unusable = |error| TlsError::Unusable { path: chain.to_owned(), reason: pem::reason(&error) };
        builder.set_certificate(&own).map_err(unusable)?;
        for certificate in certificates {
            builder.add_extra_chain_cert(certificate).map_err(unusable)?;
        }
        builder.set_private_key(&private).map_err(unusable)?;
        let now = openssl::asn1::Asn1Time::days_from_now(0)?;
        let certificate = Certificate {
            subject: text_of(own.subject_name()),
            names: names(&own),
            valid_from: own.not_before().to_string(),
            valid_until: own.not_after().to_string(),
            expired: own.not_after() < now,
        };
        Ok(Self { inner: builder.build(), certificate })
    }

    /// What it shows.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// TLS over `stream`.
    ///
    /// Has no deadline; give it one. Not cancel safe, as [`Connector::connect`](super::Connector::connect).
    ///
    /// # Errors
    /// The client does not speak TLS, or not ours, or refuses our certificate.
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = SslStream::new(Ssl::new(self.inner.context())?, Wire::new(stream))?;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => Ok(TlsStream::new(stream)),
            Err(error) => Err(failed_handshake(Peer::Client, stream.get_ref(), error)),
        }
    }
}
