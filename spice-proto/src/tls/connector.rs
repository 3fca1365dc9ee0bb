//! TLS as a client.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509StoreContextRef, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use super::diagnosis::{failed_handshake, untrusted};
use super::error::Peer;
use super::subject::text_of;
use super::wire::Wire;
use super::{Roots, Subject, TlsError, TlsStream, Trust, limit, pem};

/// Begins TLS as a client.
#[derive(Clone)]
pub struct Connector {
    inner: SslConnector,
    subject: Option<Subject>,
    /// Whom it believes, for messages.
    roots: String,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("roots", &self.roots)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// One that believes `trust`. Reads the authorities' file, if there is one.
    ///
    /// # Errors
    /// The authorities or the ciphers cannot be used.
    pub fn new(trust: &Trust) -> Result<Self, TlsError> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        limit(&mut builder)?;
        let roots = match &trust.roots {
            Roots::System => {
                believe_the_system(&mut builder);
                "the authorities that this system trusts".to_owned()
            }
            Roots::File(path) => {
                let origin = path.display().to_string();
                believe_only(&mut builder, &pem::read(path)?, &origin)?;
                format!("those in {origin}")
            }
            Roots::Pem(text) => {
                believe_only(&mut builder, text, "the CA that was given")?;
                "those of the CA that was given".to_owned()
            }
        };
        if let Some(given) = &trust.ciphers {
            // Struck out for good, whatever else the list says.
            let list = format!("{given}:!aNULL:!eNULL");
            let refused = |_| TlsError::Ciphers { given: given.clone() };
            if given.contains('\0') {
                return Err(TlsError::Ciphers { given: given.clone() });
            }
            builder.set_cipher_list(&list).map_err(refused)?;
        }
        Ok(Self { inner: builder.build(), subject: trust.subject.clone(), roots })
    }

    /// TLS over `stream`, which leads to `host`: a name or an address, an IPv6 address without brackets.
    ///
    /// Has no deadline; give it one. Not cancel safe: a handshake that was cancelled half-way is spoilt; drop the stream.
    ///
    /// # Errors
    /// The server is not the right one, or does not speak TLS.
    pub async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if host.contains('\0') {
            return Err(TlsError::Library { reason: "a host's name cannot have a NUL".to_owned() });
        }
        let configuration = self.inner.configure()?.verify_hostname(self.subject.is_none());
        let mut ssl = configuration.into_ssl(host)?;
        let verdict = Arc::new(Mutex::new(Verdict::None));
        ssl.set_verify_callback(SslVerifyMode::PEER, self.judge(host, &verdict));
        let mut stream = SslStream::new(ssl, Wire::new(stream))?;
        let outcome = Pin::new(&mut stream).connect().await;
        let verdict =
            std::mem::replace(&mut *verdict.lock().unwrap_or_else(PoisonError::into_inner), Verdict::None);
        match (outcome, verdict) {
            (_, Verdict::Refused(error)) => Err(error),
            (Ok(()), Verdict::Approved) => Ok(TlsStream::new(stream)),
            // A cipher that needs no certificate would get here, if one were ever taken.
            (Ok(()), Verdict::None) => Err(TlsError::Anonymous),
            (Err(error), Verdict::Approved | Verdict::None) => {
                Err(failed_handshake(Peer::Server, stream.get_ref(), error))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn with_subject(self, subject: Option<Subject>) -> Self {
        Self { subject, ..self }
    }

    /// What OpenSSL calls with every certificate of the chain, the server's own last.
    fn judge(
        &self,
        host: &str,
        verdict: &Arc<Mutex<Verdict>>,
    ) -> impl Fn(bool, &mut X509StoreContextRef) -> bool + Sync + Send + 'static {
        let (host, roots) = (host.to_owned(), self.roots.clone());
        let (subject, verdict) = (self.subject.clone(), Arc::clone(verdict));
        move |good, context| {
            let judged = if !good {
                let leaf = context.chain().and_then(|chain| chain.get(0));
                Verdict::Refused(untrusted(context.error(), context.current_cert(), leaf, &host, &roots))
            } else if context.error_depth() > 0 {
                return true;
            } else {
                match (&subject, context.current_cert()) {
                    (_, None) => Verdict::Refused(TlsError::Anonymous),
                    (Some(expected), Some(got)) if !expected.is(got.subject_name()) => {
                        Verdict::Refused(TlsError::WrongSubject {
                            expected: expected.to_string(),
                            got: text_of(got.subject_name()),
                        })
                    }
                    (Some(_) | None, Some(_)) => Verdict::Approved,
                }
            };
            let approved = matches!(judged, Verdict::Approved);
            if good && !approved {
                context.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
            }
            *verdict.lock().unwrap_or_else(PoisonError::into_inner) = judged;
            approved
        }
    }
}

/// What became of the server's certificate.
enum Verdict {
    /// Not seen yet.
    None,
    Approved,
    Refused(TlsError),
}

/// OpenSSL's own default, and beside it what is found where systems keep theirs: an OpenSSL that we built ourselves does
/// not know this system's place.
fn believe_the_system(builder: &mut SslConnectorBuilder) {
    let found = openssl_probe::probe();
    if let Some(file) = found.cert_file {
        // Without it the server is refused, and the message says whom we believe.
        let _ = builder.set_ca_file(file);
    }
}

fn believe_only(builder: &mut SslConnectorBuilder, pem: &[u8], origin: &str) -> Result<(), TlsError> {
    let mut store = X509StoreBuilder::new()?;
    for certificate in pem::certificates(pem, origin)? {
        store.add_cert(certificate)?;
    }
    builder.set_cert_store(store.build());
    Ok(())
}
