//! TLS as Spice uses it (wire-reference 1.9): a port of its own, TLS first, then the same bytes as without.
//!
//! TLS 1.2 and 1.3, no renegotiation, no client certificates. What a client checks is Spice's own: a CA, and then either
//! the host's name or, where the two need not agree, the certificate's whole *subject* (`host-subject`).
//!
//! No type of the TLS library shows in here.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslAcceptor, SslConnector, SslContextBuilder, SslFiletype, SslMethod, SslOptions, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

/// Whose signature is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that the system trusts.
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
    /// OpenSSL's list of ciphers for TLS 1.2, if not the default.
    pub ciphers: Option<String>,
}

impl Default for Trust {
    /// The system's authorities and the host's name.
    fn default() -> Self {
        Self { roots: Roots::System, subject: None, ciphers: None }
    }
}

/// A certificate's subject as `host-subject` has it: `C=XX,O=Example,CN=server`, `\` before a comma that belongs to a
/// value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(Vec<(String, String)>);

/// A text that is no subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a certificate's subject such as C=XX,O=Example,CN=server, got {0:?}")]
pub struct SubjectError(String);

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let wrong = || SubjectError(text.to_owned());
        let parts = text.split(',').map(|part| part.trim().split_once('='));
        let parts: Option<Vec<_>> =
            parts.map(|part| part.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect();
        parts.map(Self).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut comma = "";
        for (key, value) in &self.0 {
            write!(f, "{comma}{key}={value}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl Subject {
    fn is_of(&self, certificate: &X509) -> bool {
        let entries: Vec<(String, String)> = certificate
            .subject_name()
            .entries()
            .filter_map(|entry| {
                let key = entry.object().nid().short_name().ok()?.to_owned();
                Some((key, entry.data().to_string().ok()?))
            })
            .collect();
        entries == self.0
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file with certificates or a key cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ErrorStack,
    },
    /// What was configured cannot be.
    #[error("the TLS library does not take the configuration")]
    Setup(#[from] ErrorStack),
    /// The server's certificate is for somebody else.
    #[error("the server's certificate is for another subject: expected {expected}, got {got}")]
    WrongSubject {
        /// What it should have been.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[from] openssl::ssl::Error),
}

/// Begins TLS as a client.
#[derive(Clone)]
pub struct Connector {
    inner: SslConnector,
    subject: Option<Subject>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Connector {
    /// One that believes `trust`.
    ///
    /// # Errors
    /// The authorities or the ciphers cannot be used.
    pub fn new(trust: &Trust) -> Result<Self, TlsError> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        limit(&mut builder)?;
        match &trust.roots {
            Roots::System => {}
            Roots::File(path) => {
                builder.set_cert_store(X509StoreBuilder::new()?.build());
                let failed = |source| TlsError::File { path: path.clone(), source };
                builder.set_ca_file(path).map_err(failed)?;
            }
            Roots::Pem(text) => {
                let mut store = X509StoreBuilder::new()?;
                for certificate in X509::stack_from_pem(text)? {
                    store.add_cert(certificate)?;
                }
                builder.set_cert_store(store.build());
            }
        }
        if let Some(ciphers) = &trust.ciphers {
            builder.set_cipher_list(ciphers)?;
        }
        Ok(Self { inner: builder.build(), subject: trust.subject.clone() })
    }

    /// TLS over `stream`, which leads to `host`.
    ///
    /// Not cancel safe: a handshake that was cancelled half-way is spoilt; drop the stream.
    ///
    /// # Errors
    /// The server is not the right one, or does not speak TLS.
    pub async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let configuration = self.inner.configure()?.verify_hostname(self.subject.is_none());
        let ssl = configuration.into_ssl(host)?;
        let mut stream = SslStream::new(ssl, stream)?;
        Pin::new(&mut stream).connect().await?;
        if let (Some(expected), Some(certificate)) = (&self.subject, stream.ssl().peer_certificate())
            && !expected.is_of(&certificate)
        {
            let got = format!("{:?}", certificate.subject_name());
            return Err(TlsError::WrongSubject { expected: expected.to_string(), got });
        }
        Ok(TlsStream(stream))
    }
}

/// Begins TLS as a server.
#[derive(Clone)]
pub struct Acceptor {
    inner: SslAcceptor,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// One that shows the certificates in `chain` (its own first), with `key`; both are PEM files.
    ///
    /// # Errors
    /// The files cannot be used, or do not belong together.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        limit(&mut builder)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { path, source }
        };
        builder.set_certificate_chain_file(chain).map_err(failed(chain))?;
        builder.set_private_key_file(key, SslFiletype::PEM).map_err(failed(key))?;
        builder.check_private_key().map_err(failed(key))?;
        Ok(Self { inner: builder.build() })
    }

    /// TLS over `stream`.
    ///
    /// Not cancel safe, as [`Connector::connect`].
    ///
    /// # Errors
    /// The client does not speak TLS, or not ours.
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = SslStream::new(Ssl::new(self.inner.context())?, stream)?;
        Pin::new(&mut stream).accept().await?;
        Ok(TlsStream(stream))
    }
}

fn limit(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_options(SslOptions::NO_RENEGOTIATION);
    Ok(())
}

/// TLS over some stream.
#[derive(Debug)]
pub struct TlsStream<S>(SslStream<S>);

impl<S> TlsStream<S> {
    /// What carries it.
    pub fn get_ref(&self) -> &S {
        self.0.get_ref()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
