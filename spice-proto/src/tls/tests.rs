use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Name, X509NameBuilder};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::error::tame;
use super::*;

fn name(entries: &[(&str, &str)]) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    entries.iter().for_each(|(key, value)| name.append_entry_by_text(key, value).unwrap());
    name.build()
}

/// A server that vouches for itself.
fn certificate() -> (X509, PKey<Private>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let whom = name(&[("O", "Example, Inc."), ("CN", "server")]);
    builder.set_subject_name(&whom).unwrap();
    builder.set_issuer_name(&whom).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    let names = SubjectAlternativeName::new().dns("server").build(&builder.x509v3_context(None, None));
    builder.append_extension(names.unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}

fn both() -> (Connector, Acceptor) {
    let (certificate, key) = certificate();
    let pem = certificate.to_pem().unwrap();
    let dir = std::env::temp_dir().join(format!("spice-proto-tls-{}-{:p}", std::process::id(), &pem));
    std::fs::create_dir_all(&dir).unwrap();
    let (chain, private) = (dir.join("chain.pem"), dir.join("key.pem"));
    std::fs::write(&chain, &pem).unwrap();
    std::fs::write(&private, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let acceptor = Acceptor::load(&chain, &private).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    (Connector::new(&Trust::ca(pem)).unwrap(), acceptor)
}

async fn pair(room: usize) -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (connector, acceptor) = both();
    let (near, far) = duplex(room);
    let (near, far) = tokio::join!(connector.connect("server", near), acceptor.accept(far));
    (near.unwrap(), far.unwrap())
}

#[test]
fn subjects_are_read_as_viewers_read_them() {
    for (given, shown) in [
        ("CN=server", "CN=server"),
        ("C=XX, O=Example,  CN=server", "C=XX,O=Example,CN=server"),
        (r"O=Example\, Inc.,CN=server", r"O=Example\, Inc.,CN=server"),
        (r"O=back\\slash", r"O=back\\slash"),
        ("CN=a=b", "CN=a=b"),
        ("CN=server,", "CN=server"),
        ("CN= with space ", "CN= with space "),
        ("commonName=server", "commonName=server"),
        ("2.5.4.3=server", "2.5.4.3=server"),
        ("CN=Käse", "CN=Käse"),
    ] {
        let subject: Subject = given.parse().unwrap_or_else(|error| panic!("{given}: {error}"));
        assert_eq!(subject.to_string(), shown);
        assert_eq!(shown.parse(), Ok(subject));
    }
    for wrong in [
        "",
        " ",
        ",",
        "server",
        "CN",
        "CN=",
        "CN=a,,O=b",
        "CN=a,O",
        "CN=a,O=",
        r"CN=a\",
        r"CN=\=",
        r"CN=a\nb",
        "NOSUCH=a",
        "=a",
        "CN =a",
        "\tCN=a",
        "C=XYZ",
        "CN=a\0b",
        "C\0N=a",
    ] {
        assert!(wrong.parse::<Subject>().is_err(), "{wrong:?}");
    }
    assert!(format!("CN={}", "a".repeat(5000)).parse::<Subject>().is_err());
}

#[test]
fn subjects_are_compared_as_names_are() {
    let got = name(&[("C", "XX"), ("O", "Example, Inc."), ("CN", "server")]);
    let is = |text: &str| text.parse::<Subject>().unwrap().is(&got);
    assert!(is(r"C=XX,O=Example\, Inc.,CN=server"));
    assert!(is(r"C=xx,O=EXAMPLE\,   inc.,CN= Server "), "case and spaces do not count");
    assert!(is(r"countryName=XX,organizationName=Example\, Inc.,2.5.4.3=server"));
    for other in [
        r"O=Example\, Inc.,C=XX,CN=server",
        "C=XX,CN=server",
        r"C=XX,O=Example\, Inc.,CN=server,CN=server",
        r"C=XX,O=Example\, Inc.",
        r"C=XX,O=Example\, Inc.,CN=server2",
    ] {
        assert!(!is(other), "{other}");
    }
    // What a message shows can be given as the subject.
    assert!(is(&subject::text_of(&got)));
}

proptest! {
    #[test]
    fn no_text_upsets_the_parser_of_subjects(text in r"[CNO=,\\ a-z\x00é]{0,40}") {
        if let Ok(subject) = text.parse::<Subject>() {
            prop_assert_eq!(subject.to_string().parse::<Subject>(), Ok(subject));
        }
    }

    #[test]
    fn any_value_survives(values in prop::collection::vec(r"[ -~é€]{1,20}", 1..5)) {
        let entries: Vec<(&str, &str)> = values.iter().map(|value| ("CN", value.as_str())).collect();
        let escaped: Vec<String> =
            values.iter().map(|value| format!("CN={}", value.replace('\\', r"\\").replace(',', r"\,"))).collect();
        let subject: Subject = escaped.join(",").parse().unwrap();
        prop_assert!(subject.is(&name(&entries)));
    }
}

#[test]
fn certificates_are_found_among_junk() {
    let (one, two) = (certificate().0.to_pem().unwrap(), certificate().0.to_pem().unwrap());
    let key = certificate().1.private_key_to_pem_pkcs8().unwrap();
    let text =
        [b"# the authorities\r\n".as_slice(), &one, b"junk ----- \xff\n", &key, &two, b"\nend"].concat();
    assert_eq!(pem::certificates(&text, "a file").unwrap().len(), 2);
    let mut damaged = [one.as_slice(), &two].concat();
    let at = damaged.len() - 200;
    damaged[at..at + 40].fill(b'A');
    let error = pem::certificates(&damaged, "a file").unwrap_err();
    assert!(matches!(error, TlsError::BadCertificate { number: 2, .. }), "{error}");
    for nothing in [b"".as_slice(), b"nothing of that kind", &key] {
        let error = pem::certificates(nothing, "a file").unwrap_err();
        assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
    }
    let huge = vec![b'\n'; 5 * 1024 * 1024];
    assert!(matches!(pem::certificates(&huge, "a file"), Err(TlsError::TooLarge { .. })));
    let error = Connector::new(&Trust::ca_file("/dev/zero")).unwrap_err();
    assert!(matches!(error, TlsError::TooLarge { .. }), "{error}");
    let error = Connector::new(&Trust::ca_file("/nonexistent/ca.pem")).unwrap_err();
    assert!(error.is_configuration() && error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}

#[test]
fn lists_of_ciphers_cannot_take_protection_away() {
    let with = |ciphers: &str| Trust { ciphers: Some(ciphers.to_owned()), ..Trust::default() };
    assert!(Connector::new(&with("ECDHE+AESGCM")).is_ok());
    for wrong in ["NOSUCH", "", "aNULL:@SECLEVEL=0", "eNULL:@SECLEVEL=0", "A\0B"] {
        let error = Connector::new(&with(wrong)).unwrap_err();
        assert!(matches!(error, TlsError::Ciphers { .. }), "{wrong:?}: {error}");
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_through_a_narrow_stream() {
    let (mut near, mut far) = pair(700).await;
    assert_eq!(near.version(), "TLSv1.3");
    let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let echo = async {
        let mut got = vec![0; sent.len()];
        far.read_exact(&mut got).await.unwrap();
        far.write_all(&got).await.unwrap();
        far.shutdown().await.unwrap();
        far
    };
    let ask = async {
        near.write_all(&sent).await.unwrap();
        near.flush().await.unwrap();
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
        assert!(!near.was_cut());
    };
    let (mut far, ()) = tokio::join!(echo, ask);
    // Its end does not keep us from saying more, and to end twice is to end.
    near.write_all(b"bye").await.unwrap();
    for _ in 0..2 {
        timeout(Duration::from_secs(10), near.shutdown()).await.expect("stalled").unwrap();
    }
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
}

#[tokio::test]
async fn a_read_ends_where_a_record_ends() {
    let (mut near, mut far) = pair(4096).await;
    for message in [b"one".as_slice(), b"three"] {
        near.write_all(message).await.unwrap();
    }
    let mut room = [0; 100];
    assert_eq!(far.read(&mut room).await.unwrap(), 3);
    assert_eq!(far.read(&mut room).await.unwrap(), 5);
}

#[tokio::test]
async fn an_end_without_a_farewell_is_told_from_a_proper_one() {
    let (near, mut far) = pair(4096).await;
    drop(near);
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(far.was_cut());
    let (mut near, mut far) = pair(4096).await;
    near.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    drop(near);
    assert!(!far.was_cut());
}

#[tokio::test]
async fn a_write_given_up_changes_nothing() {
    let (mut near, mut far) = pair(300).await;
    assert_eq!(near.write(&[b'a'; 1000]).await.unwrap(), 1000);
    for given_up in [b'b', b'c'] {
        assert!(timeout(Duration::from_millis(20), near.write(&[given_up; 1000])).await.is_err());
    }
    let say = async {
        near.write_all(&[b'd'; 1000]).await.unwrap();
        near.flush().await.unwrap();
    };
    let mut got = [0; 2000];
    let ((), read) = tokio::join!(say, far.read_exact(&mut got));
    read.unwrap();
    assert_eq!(got.as_slice(), [[b'a'; 1000], [b'd'; 1000]].concat());
}

#[tokio::test]
async fn what_a_full_stream_did_not_take_is_little() {
    let (mut near, mut far) = pair(300).await;
    let endless = vec![7; 1_000_000];
    let mut sent = 0;
    while let Ok(wrote) = timeout(Duration::from_millis(20), near.write(&endless)).await {
        sent += wrote.unwrap();
    }
    assert!(sent <= 64 * 1024, "{sent} bytes were taken for a stream that holds 300");
    let mut got = vec![0; sent];
    let (flushed, read) = tokio::join!(near.flush(), far.read_exact(&mut got));
    flushed.unwrap();
    read.unwrap();
    assert_eq!(got, endless[..sent]);
}

/// What comes of a handshake with somebody who says this, whatever he hears, and ends.
async fn met(peer: Peer, says: &[u8]) -> TlsError {
    let (connector, acceptor) = both();
    let (near, mut far) = duplex(4096);
    let handshake = async {
        match peer {
            Peer::Server => connector.connect("server", near).await.map(drop),
            Peer::Client => acceptor.accept(near).await.map(drop),
        }
    };
    let other = async {
        far.write_all(says).await.unwrap();
        far.shutdown().await.unwrap();
        let _ = far.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(handshake, other).0.unwrap_err()
}

#[tokio::test]
async fn peers_without_our_tls_are_recognised() {
    for (says, expected) in [
        (b"REDQ\x02\0\0\0\x02\0\0\0".as_slice(), "speaks Spice without TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak TLS: expected a TLS handshake, got \"HTTP/"),
        (b"RE", "does not speak TLS"),
        (b"\x01\x1b[31m", "does not speak TLS: expected a TLS handshake"),
        (b"", "closed the connection in the TLS handshake"),
        (b"\x16\x03\x01", "closed the connection in the TLS handshake"),
        (b"\x16\x03\x03\xff\xff", "failed"),
    ] {
        for peer in [Peer::Server, Peer::Client] {
            let error = met(peer, says).await;
            let text = error.to_string();
            assert!(text.contains(&peer.to_string()) && text.contains(expected), "{says:?}: {text}");
            assert!(!text.contains('\x1b'));
            assert!(!error.is_untrusted() && !error.is_configuration(), "{error}");
        }
    }
    // Alerts: protocol version, and handshake failure.
    let error = met(Peer::Server, b"\x15\x03\x01\0\x02\x02\x46").await;
    assert!(matches!(error, TlsError::OldTls { peer: Peer::Server }), "{error}");
    let error = met(Peer::Server, b"\x15\x03\x03\0\x02\x02\x28").await;
    assert!(matches!(error, TlsError::Refused { peer: Peer::Server, .. }), "{error}");
}

#[tokio::test]
async fn the_certificate_decides_while_the_handshake_runs() {
    let (mut connector, acceptor) = both();
    let outcome = async |host: &str, connector: &Connector| {
        let (near, far) = duplex(4096);
        let (near, far) = tokio::join!(connector.connect(host, near), acceptor.accept(far));
        (near.map(drop), far.map(drop))
    };
    let (near, far) = outcome("other", &connector).await;
    let error = near.unwrap_err();
    assert!(error.is_untrusted(), "{error}");
    let text = error.to_string();
    assert!(text.contains("expected other, got server"), "{text}");
    // The server is told, by an alert.
    let told = far.unwrap_err();
    assert!(matches!(told, TlsError::Refused { peer: Peer::Client, .. }), "{told}");

    // By the subject the name does not matter; and only the whole subject counts.
    connector = connector.with_subject(Some(r"O=Example\, Inc.,CN=server".parse().unwrap()));
    assert!(outcome("other", &connector).await.0.is_ok());
    connector = connector.with_subject(Some("CN=server".parse().unwrap()));
    let (near, far) = outcome("server", &connector).await;
    let text = near.unwrap_err().to_string();
    assert!(text.contains(r"expected CN=server, got O=Example\, Inc.,CN=server"), "{text}");
    assert!(far.is_err());
}

#[test]
fn what_a_peer_says_is_harmless() {
    assert_eq!(tame("a\x1b[31mb\u{202e}c\n"), r"a\u{1b}[31mb\u{202e}c\n");
    assert!(tame(&"x".repeat(10_000)).len() < 400);
}
