//! The viewer as a program of its own.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use client_glue::server::Place;
use rustix::process::{Pid, Signal, kill_process};
use spice_proto::ticket::Password;
use spice_proto::tls::Roots;
use tokio::process::{Child, Command};
use tracing::{info, warn};

use super::Error;
use super::private_file::{self, PrivateFiles};
use crate::session_args::Session;

/// A viewer that is told to end has so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// A viewer that runs. One that is dropped is killed.
pub(super) struct Viewer {
    child: Child,
}

impl Viewer {
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        session: &Session,
        files: &PrivateFiles,
    ) -> Result<Viewer, Error> {
        let mut command = Command::new(program);
        if program.file_name().is_some_and(|name| name == "spicy") {
            spicy(&mut command, session, files).map_err(Error::PrivateFile)?;
            command.args(arguments);
        } else {
            let content = private_file::content(session).map_err(Error::PrivateFile)?;
            let file = files.write("session.vv", content.as_bytes()).map_err(Error::PrivateFile)?;
            // It says that it is to be removed; who wants to look at it has other means.
            command.env_remove("VIRT_VIEWER_KEEP_FILE").args(arguments).arg(file);
        }
        // What it prints is no result of ours.
        command.env_remove("SPICE_TUNNEL_PASSWORD").stdin(Stdio::null()).stdout(io::stderr());
        let started = command.kill_on_drop(true).spawn();
        let child = started.map_err(|source| Error::Start { program: program.to_owned(), source })?;
        info!(viewer = %program.display(), pid = child.id(), "started the viewer");
        Ok(Viewer { child })
    }

    /// Cancel safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Tells it to end, and makes it.
    pub(super) async fn end(&mut self) -> io::Result<ExitStatus> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            warn!(%error, "the viewer cannot be told to end");
        }
        if let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
            return status;
        }
        self.child.kill().await?;
        self.child.wait().await
    }
}

/// spicy reads no files, and its command line is no place for a password: it asks for it.
fn spicy(command: &mut Command, session: &Session, files: &PrivateFiles) -> io::Result<()> {
    let server = &session.server;
    match &server.place {
        Place::Unix(_) => {
            command.arg(format!("--uri={server}"));
        }
        Place::Tcp { host, port, tls_port } => {
            command.args(["-h", host]);
            match (tls_port, port) {
                (Some(port), _) => {
                    command.args(["-s", &port.to_string()]);
                }
                (None, Some(port)) => {
                    command.args(["-p", &port.to_string()]);
                }
                (None, None) => {}
            }
        }
    }
    if server.is_secure() {
        let ca = match &server.trust.roots {
            Roots::System => None,
            Roots::File(path) => Some(path.clone()),
            Roots::Pem(bytes) => Some(files.write("ca.pem", bytes)?),
        };
        if let Some(ca) = ca {
            let mut option = OsString::from("--spice-ca-file=");
            option.push(ca);
            command.arg(option);
        }
        if let Some(subject) = &server.trust.subject {
            command.arg(format!("--spice-host-subject={subject}"));
        }
    }
    if let Some(proxy) = &server.proxy {
        command.env("SPICE_PROXY", private_file::proxy_text(proxy));
    }
    if session.credentials.password != Password::empty() {
        info!("spicy takes no password but on its command line, where others see it: it will ask for it");
    }
    Ok(())
}

/// Where a program is, as a shell finds it.
pub(super) fn find(program: &Path) -> Result<PathBuf, Error> {
    let missing = || Error::NoViewer { program: program.to_owned() };
    if program.components().count() > 1 || program.is_absolute() {
        return if program.is_file() { Ok(program.to_owned()) } else { Err(missing()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(program));
    places.find(|place| place.is_file()).ok_or_else(missing)
}

/// What to install.
pub(super) fn package(program: &Path) -> &'static str {
    match program.to_str() {
        Some("remote-viewer") => ": install virt-viewer, or name another viewer with --viewer",
        Some("spicy") => ": install spice-client-gtk, or name another viewer with --viewer",
        Some(_) | None => ", as --viewer has it",
    }
}
