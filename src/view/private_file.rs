//! The `.vv` file that a viewer is handed: for nobody else to read, with the password in it, and removed by the viewer.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use client_glue::server::{HttpProxy, Place};
use spice_proto::ticket::Password;
use spice_proto::tls::Roots;
use tempfile::TempDir;

use crate::key_file::escape;
use crate::session_args::Session;

/// A directory for the viewer's files, gone when this is dropped.
#[derive(Debug)]
pub(super) struct PrivateFiles {
    directory: TempDir,
}

impl PrivateFiles {
    /// In the user's runtime directory, which is in memory, where there is one.
    pub(super) fn new() -> io::Result<PrivateFiles> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("spice-tunnel-").permissions(PermissionsExt::from_mode(0o700));
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = match runtime.map(|path| builder.tempdir_in(path)) {
            Some(Ok(directory)) => directory,
            Some(Err(_)) | None => builder.tempdir()?,
        };
        Ok(PrivateFiles { directory })
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.directory.path().join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(content)?;
        Ok(path)
    }
}

/// What the viewer's file says: all that the user's file says, where there is one, and behind it what we know better. Of a
/// key that stands twice the last counts.
pub(super) fn content(session: &Session) -> io::Result<String> {
    let mut text = String::new();
    if let Some(file) = &session.file {
        text.push_str(&file.text);
        text.push_str("\n# By spice-tunnel:\n");
    }
    text.push_str("[virt-viewer]\ntype=spice\n");
    let mut say = |key: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key}={}", escape(value));
    };
    let server = &session.server;
    match &server.place {
        Place::Unix(path) => say("unix-path", &path_text(path)?),
        Place::Tcp { host, port, tls_port } => {
            say("host", host);
            match (tls_port, port) {
                (Some(port), _) => {
                    say("tls-port", &port.to_string());
                    // With both ports known a viewer begins in clear, but for these. Where the file's author has
                    // not chosen, it does as we do.
                    if session.file.as_ref().is_none_or(|file| file.secure_channels.is_empty()) {
                        say("secure-channels", "all");
                    }
                }
                (None, Some(port)) => say("port", &port.to_string()),
                (None, None) => {}
            }
        }
    }
    if server.is_secure() {
        match &server.trust.roots {
            Roots::System => {}
            Roots::File(path) => say("ca", &pem(std::fs::read(path)?)?),
            Roots::Pem(bytes) => say("ca", &pem(bytes.clone())?),
        }
        if let Some(subject) = &server.trust.subject {
            say("host-subject", &subject.to_string());
        }
    }
    if let Some(proxy) = &server.proxy {
        say("proxy", &proxy_text(proxy));
    }
    if let Some(name) = &session.credentials.username {
        say("username", name);
    }
    let password = &session.credentials.password;
    if *password != Password::empty() {
        say("password", &String::from_utf8(password.as_bytes().to_vec()).map_err(not_text)?);
    }
    say("delete-this-file", "1");
    Ok(text)
}

pub(super) fn proxy_text(proxy: &HttpProxy) -> String {
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    // That encodes a space as a plus sign.
    let encoded = |text: &str| encoded(text).replace('+', "%20");
    let user = proxy.user.as_ref().map(|(name, word)| format!("{}:{}@", encoded(name), encoded(word)));
    let user = user.unwrap_or_default();
    if proxy.host.contains(':') {
        format!("http://{user}[{}]:{}", proxy.host, proxy.port)
    } else {
        format!("http://{user}{}:{}", proxy.host, proxy.port)
    }
}

fn pem(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(not_text)
}

fn path_text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8"))
}

fn not_text(error: std::string::FromUtf8Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
