//! Certificates for tests: an authority of our own, and servers that it vouches for.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder, X509Ref};

/// An authority.
pub(crate) struct Authority {
    certificate: X509,
    key: PKey<Private>,
    /// Of one that another one vouches for: what its servers show besides, from itself up.
    above: Vec<X509>,
    /// Whom clients are to believe.
    root: X509,
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
        let key = new_key();
        let certificate = build(&[("CN", name)], (-10, 3650), &key, |builder, _| {
            be_an_authority(builder);
            builder.set_issuer_name(&named(&[("CN", name)])).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
        });
        Self { root: certificate.clone(), certificate, key, above: Vec::new() }
    }

    /// Another authority, for which this one vouches. Its servers show its certificate behind their own.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = new_key();
        let certificate = build(&[("CN", name)], (-10, 3650), &key, |builder, _| {
            be_an_authority(builder);
            builder.set_issuer_name(self.certificate.subject_name()).unwrap();
            builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        });
        let above = std::iter::once(certificate.clone()).chain(self.above.iter().cloned()).collect();
        Self { certificate, key, above, root: self.root.clone() }
    }

    /// The authority's certificate, as PEM.
    pub(crate) fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// Writes a server's certificate and key, and the root's certificate, into `dir`, by the names QEMU expects.
    pub(crate) fn issue(&self, leaf: &Leaf<'_>, dir: &Path) -> Files {
        let key = new_key();
        let certificate = build(leaf.subject, leaf.valid, &key, |builder, context| {
            name(leaf, builder, context);
            builder.set_issuer_name(self.certificate.subject_name()).unwrap();
            builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        });
        let chain: Vec<&X509> = std::iter::once(&certificate).chain(&self.above).collect();
        write(&self.root, &chain, &key, dir)
    }
}

/// Writes the certificate of a server that vouches for itself, which is its own authority, into `dir`.
pub(crate) fn self_signed(leaf: &Leaf<'_>, dir: &Path) -> Files {
    let key = new_key();
    let certificate = build(leaf.subject, leaf.valid, &key, |builder, context| {
        name(leaf, builder, context);
        builder.set_issuer_name(&named(leaf.subject)).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
    });
    write(&certificate, &[&certificate], &key, dir)
}

impl Files {
    /// Puts the key under a password.
    pub(crate) fn encrypt_key(&self, password: &str) {
        let key = PKey::private_key_from_pem(&std::fs::read(&self.key).unwrap()).unwrap();
        let pem = key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), password.as_bytes());
        std::fs::write(&self.key, pem.unwrap()).unwrap();
    }
}

fn write(ca: &X509, chain: &[&X509], key: &PKey<Private>, dir: &Path) -> Files {
    let files = Files {
        ca: dir.join("ca-cert.pem"),
        certificate: dir.join("server-cert.pem"),
        key: dir.join("server-key.pem"),
    };
    std::fs::write(&files.ca, ca.to_pem().unwrap()).unwrap();
    let chain: Vec<u8> = chain.iter().flat_map(|certificate| certificate.to_pem().unwrap()).collect();
    std::fs::write(&files.certificate, chain).unwrap();
    std::fs::write(&files.key, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    files
}

fn new_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

fn named(entries: &[(&str, &str)]) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    entries.iter().for_each(|(key, value)| name.append_entry_by_text(key, value).unwrap());
    name.build()
}

fn be_an_authority(builder: &mut X509Builder) {
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
}

/// Adds a server's alternative names.
fn name(leaf: &Leaf<'_>, builder: &mut X509Builder, context: &X509Ref) {
    if leaf.names.is_empty() && leaf.addresses.is_empty() {
        return;
    }
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

fn build(
    subject: &[(&str, &str)],
    (from, to): (i64, i64),
    key: &PKey<Private>,
    finish: impl FnOnce(&mut X509Builder, &X509Ref),
) -> X509 {
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&named(subject)).unwrap();
    builder.set_pubkey(key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let day = |days: i64| Asn1Time::from_unix(now.as_secs() as i64 + days * 86_400).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(to)).unwrap();
    let context = X509::builder().unwrap().build();
    finish(&mut builder, &context);
    builder.build()
}

/// The certificates are what they say: openssl's own verifier believes a server of the authority, or of one that it
/// vouches for, and no other.
#[test]
fn certificates_verify() {
    let dir = tempfile::tempdir().unwrap();
    let verifies = |ca: &Path, files: &Files| {
        let mut command = std::process::Command::new("openssl");
        command.args(["verify", "-verify_hostname", "localhost", "-CAfile"]).arg(ca);
        command.arg("-untrusted").arg(&files.certificate).arg(&files.certificate);
        command.output().unwrap().status.success()
    };
    let authority = Authority::new("spice-tunnel test authority");
    let files = authority.issue(&Leaf::default(), dir.path());
    assert!(verifies(&files.ca, &files));
    let other = dir.path().join("other.pem");
    std::fs::write(&other, Authority::new("another").pem()).unwrap();
    assert!(!verifies(&other, &files));
    for sub in ["below", "alone"].map(|name| dir.path().join(name)) {
        std::fs::create_dir(&sub).unwrap();
        let files = match sub.ends_with("below") {
            true => authority.intermediate("below").issue(&Leaf::default(), &sub),
            false => self_signed(&Leaf::default(), &sub),
        };
        assert!(verifies(&files.ca, &files), "{}", sub.display());
        assert!(!verifies(&other, &files), "{}", sub.display());
    }
}
