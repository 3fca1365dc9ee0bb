//! Files with certificates and keys.

use std::io::Read;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use super::TlsError;
use super::error::tame;

/// A system's whole set of authorities has a quarter of a megabyte.
const LARGEST: usize = 4 * 1024 * 1024;

/// The bytes of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    check(&bytes, &path.display().to_string())?;
    Ok(bytes)
}

fn check(bytes: &[u8], origin: &str) -> Result<(), TlsError> {
    match bytes.len() > LARGEST {
        true => Err(TlsError::TooLarge { origin: origin.to_owned(), limit: LARGEST }),
        false => Ok(()),
    }
}

/// All certificates in PEM text, at least one; what stands between them is ignored, as everywhere.
pub(super) fn certificates(pem: &[u8], origin: &str) -> Result<Vec<X509>, TlsError> {
    check(pem, origin)?;
    let certificates = X509::stack_from_pem(pem).map_err(|error| TlsError::BadCertificate {
        origin: origin.to_owned(),
        number: good_before_the_bad(pem) + 1,
        reason: reason(&error),
    })?;
    match certificates.is_empty() {
        true => Err(TlsError::NoCertificate { origin: origin.to_owned() }),
        false => Ok(certificates),
    }
}

fn good_before_the_bad(pem: &[u8]) -> usize {
    const END: &[u8] = b"-----END CERTIFICATE-----";
    let ends = pem.windows(END.len()).enumerate().filter(|(_, window)| *window == END);
    ends.map_while(|(at, _)| X509::stack_from_pem(pem.get(..at + END.len())?).ok()).count()
}

/// The private key in a PEM file. Never asks for a password, as OpenSSL by itself would, on the terminal.
pub(super) fn private_key(path: &Path) -> Result<PKey<Private>, TlsError> {
    let pem = read(path)?;
    let mut asked = false;
    let key = PKey::private_key_from_pem_callback(&pem, |_| {
        asked = true;
        Err(ErrorStack::get())
    });
    match key {
        Ok(key) if !asked => Ok(key),
        Ok(_) | Err(_) if asked => Err(TlsError::EncryptedKey { path: path.to_owned() }),
        Ok(_) => Err(TlsError::NoKey { path: path.to_owned() }),
        Err(error) => match pem.windows(12).any(|window| window == b"PRIVATE KEY-") {
            true => Err(TlsError::BadKey { path: path.to_owned(), reason: reason(&error) }),
            false => Err(TlsError::NoKey { path: path.to_owned() }),
        },
    }
}

/// What the TLS library says, without its file names and numbers.
pub(super) fn reason(error: &ErrorStack) -> String {
    let reasons: Vec<&str> = error.errors().iter().filter_map(|error| error.reason()).collect();
    match reasons.first() {
        Some(first) => tame(first),
        None => "no reason was given".to_owned(),
    }
}

impl From<ErrorStack> for TlsError {
    fn from(error: ErrorStack) -> Self {
        Self::Library { reason: reason(&error) }
    }
}
