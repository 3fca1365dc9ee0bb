use super::*;

const SPICE: &str = "[virt-viewer]\ntype=spice\n";

fn parse(text: impl AsRef<[u8]>) -> Result<ViewerFile, ViewerFileError> {
    ViewerFile::parse(Path::new("dir/console.vv"), text.as_ref().to_vec())
}

fn certificate() -> String {
    let key = openssl::pkey::PKey::generate_ed25519().unwrap();
    let mut builder = X509::builder().unwrap();
    let (from, until) =
        (openssl::asn1::Asn1Time::days_from_now(0), openssl::asn1::Asn1Time::days_from_now(1));
    builder.set_not_before(&from.unwrap()).unwrap();
    builder.set_not_after(&until.unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.sign(&key, openssl::hash::MessageDigest::null()).unwrap();
    String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
}

/// As Proxmox writes it: the host is a ticket, for its proxy alone.
#[test]
fn a_file_of_proxmox_is_read() {
    let host = "pvespiceproxy:5a1b:100:pve::d1f2e3a4b5";
    let ca = certificate();
    let text = format!(
        "[virt-viewer]\nsecure-attention=Ctrl+Alt+Ins\ntls-port=61000\nproxy=http://pve.example:3128\n\
         host-subject=OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=pve.example\ndelete-this-file=1\n\
         type=spice\nhost={host}\ntitle=VM 100 - desk\npassword=0f1e2d\nrelease-cursor=Ctrl+Alt+R\nca={}\n",
        ca.replace('\n', "\\n")
    );
    let file = parse(&text).unwrap();
    assert_eq!(file.server.place, Place::Tcp { host: host.to_owned(), port: None, tls_port: Some(61000) });
    assert_eq!(file.server.trust.roots, Roots::Pem(ca.into_bytes()));
    let subject = file.server.trust.subject.as_ref().unwrap().to_string();
    assert_eq!(subject, "OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN=pve.example");
    let proxy = HttpProxy { host: "pve.example".to_owned(), port: 3128, user: None };
    assert_eq!(file.server.proxy, Some(proxy));
    assert!(file.password == Some(Password::new("0f1e2d").unwrap()));
    assert!(file.delete && !file.tunnel_disabled && file.shares.is_empty());
    assert_eq!(file.text, text);
    assert!(!format!("{file:?}").contains("0f1e2d"));
}

#[test]
fn every_key_finds_its_place() {
    let file = parse(format!(
        "# from somewhere\n{SPICE}host=[2001:db8::1]\nport=5900\ntls-port=5901\nusername=me\n\
         tls-ciphers=HIGH\nsecure-channels=main;inputs;\ndisable-channels=record;tunnel\nnovel=1\n\
         [ovirt]\nhost=engine\n[spice-tunnel]\nshare=tcp://a:1?name=A;tcp://b:2\nshare=tcp://c:3\n"
    ))
    .unwrap();
    assert_eq!(file.server.to_string(), "spice+tls://[2001:db8::1]:5901");
    assert_eq!(file.server.trust.ciphers.as_deref(), Some("HIGH"));
    assert_eq!(file.username.as_deref(), Some("me"));
    assert!(file.tunnel_disabled && !file.delete);
    let shares: Vec<String> = file.shares.iter().map(|offer| offer.share.target()).collect();
    assert_eq!(shares, ["tcp://a:1", "tcp://b:2", "tcp://c:3"]);
    let file = parse(format!("{SPICE}unix-path=/run/vm/a\\sb\nhost=\nport=\n")).unwrap();
    assert_eq!(file.server.place, Place::Unix("/run/vm/a b".into()));
    let file =
        parse(format!("{SPICE}host=h\nport=1\nport=2\n[other]\nx=1\n[virt-viewer]\ntls-port= \n")).unwrap();
    assert_eq!(file.server.to_string(), "spice://h:2");
}

/// What is wrong, the key it is wrong in, and words that help.
const WRONG: &[(&str, &str, &str)] = &[
    ("type=vnc\nhost=h\nport=1", "type", "only Spice"),
    ("type=ovirt\nhost=h\nport=1", "type", "expected spice"),
    ("host=h\nport=1", "type", "missing"),
    ("type=spice\nport=1", "host", "missing"),
    ("type=spice\nhost=h", "port", "tls-port as well"),
    ("type=spice\nhost=h\nport=0", "port", "1 to 65535"),
    ("type=spice\nhost=h\nport=-1", "port", "1 to 65535"),
    ("type=spice\nhost=h\nport=1\ntls-port=65536", "tls-port", "1 to 65535"),
    ("type=spice\nhost=h\nport=5900x", "port", "1 to 65535"),
    ("type=spice\nhost=h\nport=1\nunix-path=/x", "unix-path", "host"),
    ("type=spice\nunix-path=/x\ntls-port=1", "unix-path", "tls-port"),
    ("type=spice\nunix-path=x", "unix-path", "absolute"),
    ("type=spice\nunix-path=/x\nproxy=http://p:1", "proxy", "unix-path"),
    ("type=spice\nhost=h\\nx\nport=1", "host", "control"),
    ("type=spice\nhost=h\u{1b}[2J\nport=1", "host", "control"),
    ("type=spice\nhost=a b\nport=1", "host", "name or address"),
    ("type=spice\nhost=h\\q\nport=1", "host", "backslash"),
    ("type=spice\nhost=h\nport=1\nsecure-channels=main", "secure-channels", "no tls-port"),
    ("type=spice\nunix-path=/x\nsecure-channels=all", "secure-channels", "no tls-port"),
    ("type=spice\nhost=h\nport=1\nproxy=https://p:1", "proxy", "https"),
    ("type=spice\nhost=h\nport=1\nproxy=socks5://u:hunter2@p:1", "proxy", "socks5"),
    ("type=spice\nhost=h\ntls-port=1\nca=hunter2", "ca", "PEM"),
    (
        "type=spice\nhost=h\ntls-port=1\nca=-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n",
        "ca",
        "PEM",
    ),
    ("type=spice\nhost=h\ntls-port=1\nhost-subject=pve", "host-subject", "CN="),
    ("type=spice\nhost=h\nport=1\ndelete-this-file=maybe", "delete-this-file", "0 or 1"),
    (
        "type=spice\nhost=h\nport=1\npassword=hunter2hunter2hunter2hunter2hunter2hunter2hunter2hunter2hunter2",
        "password",
        "at most 59",
    ),
    ("type=spice\nhost=h\nport=1\n[spice-tunnel]\nshare=udp://a:1", "share", "tcp"),
];

#[test]
fn what_cannot_be_is_named_by_file_and_key() {
    for (text, wrong_key, help) in WRONG {
        let error = parse(format!("[virt-viewer]\n{text}\n")).expect_err(text);
        let ViewerFileError::Key { key, .. } = &error else { panic!("{text}: {error}") };
        assert_eq!(key, wrong_key, "{text}: {error}");
        let shown = error.to_string();
        assert!(shown.starts_with("dir/console.vv: ") && shown.contains(help), "{text}: {shown}");
        assert!(!shown.contains("hunter2") && !shown.contains(char::is_control), "{shown}");
    }
}

#[test]
fn what_is_no_connection_file_is_said_so() {
    for (bytes, help) in [
        (&b""[..], "no group [virt-viewer]"),
        (b"[ovirt]\nhost=h\n", "no group [virt-viewer]"),
        (b"\x89PNG\r\n\x1a\n", "line 1 is not UTF-8"),
        (b"[virt-viewer]\ntype=spice\ntitle=\xff\n", "line 3 is not UTF-8"),
        (b"[virt-viewer]\ntype=spice\nhost=a\0b\n", "line 3: expected text, found a NUL"),
        (b"<!DOCTYPE html>\n", "line 1: expected KEY=VALUE"),
        (b"[virt-viewer]\nhunter2\n", "line 2: expected KEY=VALUE"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.contains("dir/console.vv is no connection file"), "{error}");
        assert!(error.contains(help) && !error.contains("hunter2"), "{error}");
    }
    let long = vec![b'#'; (1 << 20) + 1];
    assert!(parse(&long).unwrap_err().to_string().contains("longer than 1 MiB"));
    let text = format!("{SPICE}port=1\nhost={}\n", "h".repeat(5000));
    assert!(parse(&text).unwrap_err().to_string().contains("host: expected at most 4096"));
}

#[test]
fn a_file_is_removed_once_and_only_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.vv");
    let text = format!("{SPICE}host=h\nport=1\n");
    std::fs::write(&path, &text).unwrap();
    ViewerFile::read(&path).unwrap().remove();
    assert!(path.exists(), "it does not ask for that");
    std::fs::write(&path, format!("{text}delete-this-file=1\n")).unwrap();
    let file = ViewerFile::read(&path).unwrap();
    assert!(path.exists(), "reading alone does not remove it");
    let other = directory.path().join("other");
    std::fs::write(&other, "another file").unwrap();
    std::fs::rename(&path, directory.path().join("kept")).unwrap();
    std::fs::rename(&other, &path).unwrap();
    file.remove();
    assert!(path.exists(), "this is another file");
    std::fs::rename(directory.path().join("kept"), &path).unwrap();
    file.remove();
    assert!(!path.exists());
    file.remove();
}

proptest::proptest! {
    #[test]
    fn no_file_is_too_strange(text in "(?s)(\\[virt-viewer\\]\n)?((type|host|port|tls-port|ca|proxy|share|password)=(spice|[^\n]{0,20})\n){0,6}.{0,50}") {
        if let Err(error) = parse(&text) {
            let _ = error.to_string();
        }
    }
}
