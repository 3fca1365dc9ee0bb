//! Why a handshake failed, from what came, what the TLS library says, and what it thinks of the certificate.

use openssl::nid::Nid;
use openssl::ssl::Error;
use openssl::x509::{X509Ref, X509VerifyResult};

use super::error::{Peer, TlsError, tame};
use super::pem::reason;
use super::subject::text_of;
use super::wire::Wire;

/// How a Spice link begins, in either direction.
const SPICE: &[u8] = b"REDQ";

/// The types of a TLS record: change of ciphers, alert, handshake, data.
const RECORDS: std::ops::RangeInclusive<u8> = 20..=23;

/// OpenSSL's reasons that are about versions: unsupported protocol, unknown protocol, wrong SSL version, version too
/// low, no protocols available, and the alert that says so.
const VERSIONS: [i32; 6] = [258, 252, 266, 396, 191, 1070];

/// OpenSSL's reason for an alert of the peer's is this and the alert's number.
const ALERTS: i32 = 1000;

/// Why the handshake with `peer` failed, if not for its certificate.
pub(super) fn failed_handshake<S>(peer: Peer, wire: &Wire<S>, error: Error) -> TlsError {
    let head = wire.head();
    if head.starts_with(SPICE) {
        return TlsError::PlainSpice { peer };
    }
    if head.first().is_some_and(|first| !RECORDS.contains(first)) {
        return TlsError::NotTls { peer, got: tame(&String::from_utf8_lossy(head)) };
    }
    if let Some(stack) = error.ssl_error()
        && let Some(first) = stack.errors().first()
        && !wire.ended()
    {
        let code = first.reason_code();
        return if VERSIONS.contains(&code) {
            TlsError::OldTls { peer }
        } else if code > ALERTS {
            TlsError::Refused { peer, reason: reason(stack) }
        } else {
            TlsError::Handshake { peer, reason: reason(stack) }
        };
    }
    if wire.ended() {
        return TlsError::Closed { peer };
    }
    match error.into_io_error() {
        Ok(source) => source.into(),
        Err(error) => TlsError::Handshake { peer, reason: tame(&error.to_string()) },
    }
}

/// What is wrong with a certificate of the server's.
pub(super) fn untrusted(
    result: X509VerifyResult,
    certificate: Option<&X509Ref>,
    leaf: Option<&X509Ref>,
    host: &str,
    roots: &str,
) -> TlsError {
    // OpenSSL's numbers, in x509_vfy.h since ever.
    const UNABLE_TO_GET_ISSUER: i32 = 2;
    const NOT_YET_VALID: i32 = 9;
    const EXPIRED: i32 = 10;
    const SELF_SIGNED: i32 = 18;
    const SELF_SIGNED_IN_CHAIN: i32 = 19;
    const UNABLE_TO_GET_ISSUER_LOCALLY: i32 = 20;
    const UNABLE_TO_VERIFY_LEAF: i32 = 21;
    const HOST_MISMATCH: i32 = 62;
    const ADDRESS_MISMATCH: i32 = 64;

    let Some(certificate) = certificate else {
        return TlsError::Anonymous;
    };
    let subject = text_of(certificate.subject_name());
    let roots = roots.to_owned();
    match result.as_raw() {
        NOT_YET_VALID => TlsError::NotYetValid { subject, from: certificate.not_before().to_string() },
        EXPIRED => TlsError::Expired { subject, at: certificate.not_after().to_string() },
        SELF_SIGNED => TlsError::SelfSigned { subject, roots },
        UNABLE_TO_GET_ISSUER
        | SELF_SIGNED_IN_CHAIN
        | UNABLE_TO_GET_ISSUER_LOCALLY
        | UNABLE_TO_VERIFY_LEAF => TlsError::UnknownIssuer {
            subject: leaf.map_or(subject, |leaf| text_of(leaf.subject_name())).into(),
            issuer: text_of(certificate.issuer_name()).into(),
            roots: roots.into(),
        },
        HOST_MISMATCH | ADDRESS_MISMATCH => {
            TlsError::WrongHost { expected: host.to_owned(), names: names(certificate) }
        }
        _ => TlsError::BadChain { subject, reason: tame(result.error_string()) },
    }
}

/// Whom a certificate is for: its names and addresses, or else its subject.
pub(super) fn names(certificate: &X509Ref) -> Vec<String> {
    /// More would only be noise.
    const MOST: usize = 16;
    let address = |bytes: &[u8]| -> Option<String> {
        match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
            _ => None,
        }
    };
    let mut names: Vec<String> = Vec::new();
    for name in certificate.subject_alt_names().into_iter().flatten() {
        names.extend(name.dnsname().map(tame));
        names.extend(name.ipaddress().and_then(address));
    }
    if names.is_empty() {
        let common = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
        names.extend(common.filter_map(|entry| entry.data().to_string().ok()).map(|name| tame(&name)));
    }
    if names.is_empty() {
        names.push(text_of(certificate.subject_name()));
    }
    if names.len() > MOST {
        names.truncate(MOST);
        names.push("…".to_owned());
    }
    names
}
