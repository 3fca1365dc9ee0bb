//! TLS against others: real `openssl`, a real QEMU, and a man in the middle.

use std::path::Path;

use spice_proto::tls::{Acceptor, TlsError};

use crate::pki::{Authority, Leaf, self_signed};

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let files = Authority::new("authority").issue(&Leaf::default(), &sub("good"));
    let load = |certificate: &Path, key: &Path| Acceptor::load(certificate, key).unwrap_err();
    assert!(Acceptor::load(&files.certificate, &files.key).is_ok());

    let other = self_signed(&Leaf::default(), &sub("other"));
    let error = load(&files.certificate, &other.key);
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
    for file in [&files.certificate, &other.key] {
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
    let error = load(&files.key, &files.key);
    assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
    let error = load(&files.certificate, &files.ca);
    assert!(matches!(error, TlsError::NoKey { .. }), "{error}");
    let error = load(&files.certificate, &dir.path().join("missing"));
    assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
    // OpenSSL by itself would ask for the password, on the terminal, and wait.
    files.encrypt_key("sesame");
    let error = load(&files.certificate, &files.key);
    assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error}");
    std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let error = load(&files.certificate, &files.key);
    assert!(matches!(error, TlsError::BadKey { .. }), "{error}");
}
