//! `.vv` files, with which Proxmox, oVirt and others hand a session to virt-viewer: `[virt-viewer]` with where the server
//! is, who it must be, and usually a password that expires soon.
//!
//! Read as virt-viewer 11 reads them, so that whatever opens there opens here, but for what contradicts itself: that is an
//! error, with the file and the key. Keys that only matter to a viewer are ignored. A group of our own,
//! `[spice-tunnel]`, may list shares; viewers ignore it.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use client_glue::Offer;
use client_glue::server::{HttpProxy, Place, SpiceServer};
use openssl::x509::X509;
use spice_proto::ticket::Password;
use spice_proto::tls::{Roots, Subject, Trust};
use thiserror::Error;

use crate::key_file::{self, KeyFile, LineError};
use crate::proxy_uri;

/// A longer file is none that a viewer was meant to open.
const MAX_FILE: u64 = 1 << 20;
/// Longer than any host, path or name; Proxmox's hosts are tickets of a hundred letters.
const MAX_TEXT: usize = 4096;
const GROUP: &str = "virt-viewer";
const OUR_GROUP: &str = "spice-tunnel";

/// A `.vv` file that was read.
#[derive(Clone)]
pub struct ViewerFile {
    /// The file as it was named.
    pub path: PathBuf,
    /// Where the server is and who it must be.
    pub server: SpiceServer,
    /// For SASL.
    pub username: Option<String>,
    /// The password, usually one that expires soon.
    pub password: Option<Password>,
    /// What our own group lists. Whoever wrote the file chose it, not the user.
    pub shares: Vec<Offer>,
    /// The channels that must go over TLS, for a viewer: the tunnel does so anyway where it can.
    pub secure_channels: Vec<String>,
    /// The channel is among the `disable-channels`.
    pub tunnel_disabled: bool,
    /// Whoever opens the file is to remove it.
    pub delete: bool,
    /// All of it, for a viewer.
    pub text: String,
    /// Which file it was, if it was one.
    identity: Option<(u64, u64)>,
}

/// Why a `.vv` file cannot be used.
#[derive(Debug, Error)]
pub enum ViewerFileError {
    /// Not there, or not to be read.
    #[error("cannot read {}{}", file.display(), if source.kind() == io::ErrorKind::NotFound { " (viewers remove a file with delete-this-file=1 as they open it: `spice-tunnel view` serves both, and `connect` must come first)" } else { "" })]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a file for viewers.
    #[error("{} is no connection file of a viewer: it is longer than 1 MiB", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// Not text.
    #[error("{} is no connection file of a viewer: line {line} is not UTF-8", file.display())]
    NotText {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// Not a key file.
    #[error("{} is no connection file of a viewer: {error}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Which line, and why.
        error: LineError,
    },
    /// Another kind of key file.
    #[error("{} is no connection file of a viewer: it has no group [virt-viewer]", file.display())]
    NoGroup {
        /// The file.
        file: PathBuf,
    },
    /// A key that is missing, wrong, or in contradiction to another.
    #[error("{}: {key}: {problem}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl ViewerFile {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// [`ViewerFileError`]
    pub fn read(path: &Path) -> Result<ViewerFile, ViewerFileError> {
        let failed = |source| ViewerFileError::Read { file: path.to_owned(), source };
        let mut bytes = Vec::new();
        let identity = if path == Path::new("-") {
            io::stdin().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
            None
        } else {
            let file = File::open(path).map_err(failed)?;
            let identity = identity(&file.metadata().map_err(failed)?);
            file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
            Some(identity)
        };
        let read = ViewerFile::parse(path, bytes)?;
        Ok(ViewerFile { identity, ..read })
    }

    /// Makes of a file's bytes what they say.
    ///
    /// # Errors
    /// [`ViewerFileError`], but for `Read`.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<ViewerFile, ViewerFileError> {
        let file = || path.to_owned();
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
            return Err(ViewerFileError::TooLong { file: file() });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
            ViewerFileError::NotText { file: file(), line: 1 + good.filter(|&&byte| byte == b'\n').count() }
        })?;
        let keys = KeyFile::parse(&text).map_err(|error| ViewerFileError::Line { file: file(), error })?;
        if !keys.has_group(GROUP) {
            return Err(ViewerFileError::NoGroup { file: file() });
        }
        let keys = Keys(&keys);
        keys.read(path, text).map_err(|Wrong { key, problem }| ViewerFileError::Key {
            file: file(),
            key,
            problem,
        })
    }

    /// Removes the file if it says so, as viewers do: once, and not what has taken its place since. One that cannot be
    /// removed stays. `VIRT_VIEWER_KEEP_FILE` in the environment keeps it, as it keeps viewers from it.
    pub fn remove(&self) {
        let Some(known) = self.identity else { return };
        if !self.delete || std::env::var_os("VIRT_VIEWER_KEEP_FILE").is_some() {
            return;
        }
        match std::fs::metadata(&self.path) {
            Ok(now) if identity(&now) == known => match std::fs::remove_file(&self.path) {
                Ok(()) => tracing::debug!(file = %self.path.display(), "removed, as it says"),
                Err(error) => tracing::warn!(file = %self.path.display(), %error, "cannot remove the file"),
            },
            Ok(_) | Err(_) => tracing::debug!(file = %self.path.display(), "it is gone already"),
        }
    }
}

/// Without the password and the text that holds it.
impl std::fmt::Debug for ViewerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewerFile")
            .field("path", &self.path)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What is wrong with a key.
struct Wrong {
    key: &'static str,
    problem: String,
}

fn wrong<T>(key: &'static str, problem: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key, problem: problem.into() })
}

struct Keys<'a>(&'a KeyFile);

impl Keys<'_> {
    fn read(&self, path: &Path, text: String) -> Result<ViewerFile, Wrong> {
        match self.string("type")?.as_deref() {
            Some("spice") => {}
            Some("vnc") => return wrong("type", "this is a VNC session; only Spice has a tunnel channel"),
            Some(other) => return wrong("type", format!("expected spice, got {other:?}")),
            None => return wrong("type", "it is missing; expected type=spice"),
        }
        let place = self.place()?;
        let tls_port = matches!(place, Place::Tcp { tls_port: Some(_), .. });
        let secure_channels = self.list("secure-channels")?;
        if !tls_port && let Some(channel) = secure_channels.first() {
            return wrong(
                "secure-channels",
                format!("it wants TLS for {channel:?}, but there is no tls-port to go to"),
            );
        }
        let proxy = self.proxy()?;
        if proxy.is_some() && matches!(place, Place::Unix(_)) {
            return wrong(
                "proxy",
                "it does not go with unix-path: no proxy leads to a socket of this machine",
            );
        }
        let password = match self.string("password")? {
            Some(text) => match Password::new(text) {
                Ok(password) => Some(password),
                Err(error) => return wrong("password", error.to_string()),
            },
            None => None,
        };
        for key in self.0.keys(GROUP).filter(|key| !KNOWN.contains(key)) {
            tracing::debug!(key, "a key of the file that matters to viewers only");
        }
        Ok(ViewerFile {
            path: path.to_owned(),
            server: SpiceServer { place, trust: self.trust()?, proxy },
            username: self.string("username")?,
            password,
            shares: self.shares()?,
            secure_channels,
            tunnel_disabled: self.list("disable-channels")?.iter().any(|channel| channel == "tunnel"),
            delete: self.flag("delete-this-file")?,
            text,
            identity: None,
        })
    }

    fn place(&self) -> Result<Place, Wrong> {
        let (host, path) = (self.string("host")?, self.string("unix-path")?);
        let (port, tls_port) = (self.port("port")?, self.port("tls-port")?);
        match (host, path) {
            (None, None) => wrong("host", "it is missing; expected host with port or tls-port, or unix-path"),
            (None, Some(_)) if port.is_some() || tls_port.is_some() => {
                wrong("unix-path", "it does not go with port or tls-port")
            }
            (None, Some(path)) if !path.starts_with('/') => {
                wrong("unix-path", format!("expected an absolute path, got {path:?}"))
            }
            (None, Some(path)) => Ok(Place::Unix(PathBuf::from(path))),
            (Some(_), Some(_)) => {
                wrong("unix-path", "it does not go with host: the server is at one of them")
            }
            (Some(_), None) if port.is_none() && tls_port.is_none() => {
                wrong("port", "it is missing, and tls-port as well; expected one of them")
            }
            (Some(host), None) if host.contains(char::is_whitespace) => {
                wrong("host", format!("expected a host's name or address, got {host:?}"))
            }
            (Some(host), None) => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
                Ok(Place::Tcp { host: bare.to_owned(), port, tls_port })
            }
        }
    }

    fn trust(&self) -> Result<Trust, Wrong> {
        let roots = match self.long_string("ca")? {
            None => Roots::System,
            Some(pem) => match X509::stack_from_pem(pem.as_bytes()) {
                Ok(certificates) if !certificates.is_empty() => Roots::Pem(pem.into_bytes()),
                Ok(_) | Err(_) => {
                    return wrong(
                        "ca",
                        "expected certificates in PEM form, their lines separated by \\n, got something else",
                    );
                }
            },
        };
        let subject = match self.string("host-subject")?.map(|text| text.parse::<Subject>()) {
            None => None,
            Some(Ok(subject)) => Some(subject),
            Some(Err(error)) => return wrong("host-subject", error.to_string()),
        };
        Ok(Trust { roots, subject, ciphers: self.string("tls-ciphers")? })
    }

    fn proxy(&self) -> Result<Option<HttpProxy>, Wrong> {
        match self.string("proxy")?.map(|text| proxy_uri::parse(&text)) {
            None => Ok(None),
            Some(Ok(proxy)) => Ok(Some(proxy)),
            Some(Err(error)) => wrong("proxy", error.to_string()),
        }
    }

    fn shares(&self) -> Result<Vec<Offer>, Wrong> {
        for key in self.0.keys(OUR_GROUP).filter(|key| *key != "share") {
            tracing::warn!(key, "this key of [spice-tunnel] means nothing; expected share");
        }
        let mut shares = Vec::new();
        for raw in self.0.all(OUR_GROUP, "share") {
            let items = key_file::list(raw).or_else(|error| wrong("share", error.to_string()))?;
            for item in items {
                match item.trim().parse() {
                    Ok(share) => shares.push(share),
                    Err(error) => return wrong("share", format!("{error}")),
                }
            }
        }
        Ok(shares)
    }

    /// A port. Viewers take an empty one for none.
    fn port(&self, key: &'static str) -> Result<Option<u16>, Wrong> {
        match self.0.raw(GROUP, key).map(str::trim_ascii) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse() {
                Ok(0) | Err(_) => {
                    wrong(key, format!("expected a number from 1 to 65535, got {}", shown(text)))
                }
                Ok(port) => Ok(Some(port)),
            },
        }
    }

    /// A switch. Viewers read a number.
    fn flag(&self, key: &'static str) -> Result<bool, Wrong> {
        match self.0.raw(GROUP, key).map(str::trim_ascii) {
            None | Some("" | "0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(text) => wrong(key, format!("expected 0 or 1, got {}", shown(text))),
        }
    }

    fn list(&self, key: &'static str) -> Result<Vec<String>, Wrong> {
        let items = self.0.raw(GROUP, key).map(key_file::list).unwrap_or_else(|| Ok(Vec::new()));
        let items = items.or_else(|error| wrong(key, error.to_string()))?;
        Ok(items.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    /// A text of one line that is not empty.
    fn string(&self, key: &'static str) -> Result<Option<String>, Wrong> {
        let text = self.long_string(key)?;
        match &text {
            Some(text) if text.len() > MAX_TEXT => {
                wrong(key, format!("expected at most {MAX_TEXT} bytes, got {}", text.len()))
            }
            // A password may be of any letters.
            Some(text) if key != "password" && text.contains(char::is_control) => {
                wrong(key, "there are control characters in it")
            }
            Some(_) | None => Ok(text),
        }
    }

    fn long_string(&self, key: &'static str) -> Result<Option<String>, Wrong> {
        let text = self.0.raw(GROUP, key).map(key_file::string).transpose();
        let text = text.or_else(|error| wrong(key, error.to_string()))?;
        Ok(text.filter(|text| !text.is_empty()))
    }
}

/// A value that is no secret, but may be anything.
fn shown(text: &str) -> String {
    let begin: String = text.chars().take(40).collect();
    if begin.len() < text.len() { format!("{begin:?}…") } else { format!("{begin:?}") }
}

/// What is read here, or is about the file itself.
const KNOWN: &[&str] = &[
    "type",
    "host",
    "port",
    "tls-port",
    "unix-path",
    "username",
    "password",
    "ca",
    "host-subject",
    "tls-ciphers",
    "proxy",
    "secure-channels",
    "disable-channels",
    "delete-this-file",
];

#[cfg(test)]
mod tests;
