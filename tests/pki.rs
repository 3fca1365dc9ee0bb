//! Certificates for tests: an authority of our own, and servers that it vouches for.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};

/// An authority.
pub(crate) struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

/// What a server's certificate says.
pub(crate) struct Leaf<'a> {
    /// Its subject's entries, in order, such as `("CN", "localhost")`.
    pub(crate) subject: &'a [(&'a str, &'a str)],
    /// Its alternative names that are host names.
    pub(crate) names: &'a [&'a str],
    /// Its alternative names that are addresses.
    pub(crate) addresses: &'a [&'a str],
    /// Days from now at which it begins and ends.
    pub(crate) valid: (i64, i64),
}

impl Default for Leaf<'_> {
    /// For this machine, today.
    fn default() -> Self {
        Leaf {
            subject: &[("O", "spice-tunnel tests"), ("CN", "localhost")],
            names: &["localhost"],
            addresses: &["127.0.0.1"],
            valid: (-1, 30),
        }
    }
}

/// Files with a certificate and its key. QEMU's `x509-dir` is such a directory.
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let certificate = build(&[("CN", name)], (-10, 3650), &key, |builder, _| {
            let constraints = BasicConstraints::new().critical().ca().build().unwrap();
            builder.append_extension(constraints).unwrap();
            let mut issuer = X509NameBuilder::new().unwrap();
            issuer.append_entry_by_text("CN", name).unwrap();
            builder.set_issuer_name(&issuer.build()).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
        });
        Self { certificate, key }
    }

    /// The authority's certificate, as PEM.
    pub(crate) fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// Writes a server's certificate and key, and the authority's certificate, into `dir`, by the names QEMU expects.
    pub(crate) fn issue(&self, leaf: &Leaf<'_>, dir: &Path) -> Files {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let certificate = build(leaf.subject, leaf.valid, &key, |builder, context| {
            if !leaf.names.is_empty() || !leaf.addresses.is_empty() {
                let mut names = SubjectAlternativeName::new();
                for name in leaf.names {
                    names.dns(name);
                }
                for address in leaf.addresses {
                    names.ip(address);
                }
                let names = names.build(&builder.x509v3_context(Some(context), None)).unwrap();
                builder.append_extension(names).unwrap();
            }
            builder.set_issuer_name(self.certificate.subject_name()).unwrap();
            builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        });
        let files = Files {
            ca: dir.join("ca-cert.pem"),
            certificate: dir.join("server-cert.pem"),
            key: dir.join("server-key.pem"),
        };
        std::fs::write(&files.ca, self.pem()).unwrap();
        std::fs::write(&files.certificate, certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&files.key, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        files
    }
}

fn build(
    subject: &[(&str, &str)],
    (from, to): (i64, i64),
    key: &PKey<Private>,
    finish: impl FnOnce(&mut openssl::x509::X509Builder, &openssl::x509::X509Ref),
) -> X509 {
    let mut name = X509NameBuilder::new().unwrap();
    subject.iter().for_each(|(key, value)| name.append_entry_by_text(key, value).unwrap());
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name.build()).unwrap();
    builder.set_pubkey(key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let day = |days: i64| Asn1Time::from_unix(now.as_secs() as i64 + days * 86_400).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(to)).unwrap();
    let context = X509::builder().unwrap().build();
    finish(&mut builder, &context);
    builder.build()
}

/// The certificates are what they say: openssl's own verifier believes a server of the authority, and no other.
#[test]
fn certificates_verify() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&Leaf::default(), dir.path());
    let verify = |ca: &Path| {
        let mut command = std::process::Command::new("openssl");
        command.args(["verify", "-verify_hostname", "localhost", "-CAfile"]).arg(ca).arg(&files.certificate);
        command.output().unwrap().status.success()
    };
    assert!(verify(&files.ca));
    let other = dir.path().join("other.pem");
    std::fs::write(&other, Authority::new("another").pem()).unwrap();
    assert!(!verify(&other));
}
