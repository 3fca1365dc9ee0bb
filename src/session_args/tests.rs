use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    sharing: SharingArgs,
}

const VV: &str = "[virt-viewer]\ntype=spice\nhost=vm.example\n";

fn cli(words: &[&str]) -> Cli {
    Cli::try_parse_from([&["x"], words].concat()).unwrap_or_else(|error| panic!("{error}"))
}

fn resolve(words: &[&str]) -> Result<Session, SessionError> {
    cli(&[&["--share", "tcp://a:1"], words].concat()).session.resolve()
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("session.vv");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

#[test]
fn addresses_and_files_are_told_apart() {
    for name in ["session.vv", "./session", "/tmp/x y", "-"] {
        assert!(matches!(name.parse(), Ok(Address::File(_))), "{name}");
    }
    for uri in ["spice://h:1", "spice+unix:///run/x.vv"] {
        assert!(matches!(uri.parse(), Ok(Address::Uri(_))), "{uri}");
    }
    for wrong in ["vm.example:5900", "http://x/y.vv", "spice:/x.vv", "spice+tls:h"] {
        assert!(wrong.parse::<Address>().is_err(), "{wrong}");
    }
}

#[test]
fn what_is_nearer_to_the_user_counts() {
    let (_directory, path) = file(&format!("{VV}port=1\npassword=file\nusername=f\n"));
    let (password_file, _keep) = {
        let keep = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keep.path(), "option\n").unwrap();
        (keep.path().display().to_string(), keep)
    };
    let session = resolve(&[&path]).unwrap();
    assert_eq!(session.server.to_string(), "spice://vm.example:1");
    assert!(session.credentials.password == Password::new("file").unwrap());
    assert_eq!(session.password_source, PasswordSource::ViewerFile(path.clone().into()));
    assert_eq!(session.credentials.username.as_deref(), Some("f"));
    let session = resolve(&[&path, "--password", "word", "--username", "me"]).unwrap();
    assert!(session.credentials.password == Password::new("word").unwrap());
    assert_eq!(session.password_source, PasswordSource::User);
    assert_eq!(session.credentials.username.as_deref(), Some("me"));
    let session = resolve(&[&path, "--password", "word", "--password-file", &password_file]).unwrap();
    assert!(session.credentials.password == Password::new("option").unwrap());
    assert_eq!(resolve(&["spice://h:1"]).unwrap().password_source, PasswordSource::Nowhere);
}

#[test]
fn options_that_contradict_the_address_are_refused() {
    for (words, expected) in [
        (&["spice://h:1", "--ca-file", "/nonexistent"][..], "--ca-file is for TLS"),
        (&["spice+unix:///x", "--host-subject", "CN=h"], "--host-subject is for TLS"),
        (&["spice+unix:///x", "--proxy", "http://p:1"], "socket of this machine"),
        (&["spice+tls://h:1", "--ca-file", "/nonexistent"], "TLS to spice+tls://h:1 cannot be set up"),
        (&["spice://h:1", "--password-file", "/nonexistent"], "/nonexistent"),
        (&["/nonexistent.vv"], "viewers remove a file"),
    ] {
        let error = resolve(words).expect_err("accepted").to_string();
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    let wrong =
        Cli::try_parse_from(["x", "spice://h:1", "--share", "tcp://a:1", "--proxy", "socks5://u:hunter2@p"]);
    let error = wrong.unwrap_err().to_string();
    assert!(error.contains("socks5 proxies"), "{error}");
}

#[test]
fn a_file_shares_nothing_by_itself() {
    let (_directory, path) = file(&format!("{VV}port=1\n[spice-tunnel]\nshare=tcp://b:2\n"));
    let targets = |words: &[&str]| {
        let cli = cli(words);
        let sharing = cli.sharing.sharing(&cli.session.resolve().unwrap())?;
        Ok::<_, SessionError>(sharing.offers.iter().map(|offer| offer.share.target()).collect::<Vec<_>>())
    };
    assert_eq!(targets(&[&path, "--share", "tcp://a:1"]).unwrap(), ["tcp://a:1"]);
    assert_eq!(targets(&[&path, "--shares-from-file"]).unwrap(), ["tcp://b:2"]);
    let both = targets(&[&path, "--shares-from-file", "--share", "tcp://a:1"]).unwrap();
    assert_eq!(both, ["tcp://a:1", "tcp://b:2"]);
    assert!(matches!(targets(&["spice://h:1", "--shares-from-file"]), Err(SessionError::NoFile)));
    let (_directory, path) = file(&format!("{VV}port=1\n"));
    assert!(matches!(targets(&[&path, "--shares-from-file"]), Err(SessionError::NoShares { .. })));
    assert!(Cli::try_parse_from(["x", &path]).unwrap_err().to_string().contains("--share"));
}
