//! Asks for a password on the terminal, without echo.
//!
//! By hand with termios rather than by a crate: those at hand read on a thread that nobody can interrupt, and leave the
//! terminal without its echo when the program ends meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;

use client_glue::server::LinkFailure;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use spice_proto::ticket::{Password, PasswordError};
use thiserror::Error;

/// How often a user may mistype.
pub const TRIES: u32 = 3;

/// The longest line a terminal gives.
const MAX_LINE: usize = 4096;

/// Why there is no password.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The terminal fails.
    #[error("cannot ask for the password on the terminal")]
    Terminal(#[from] io::Error),
    /// Ctrl-D.
    #[error("no password was given")]
    Nothing,
    /// What was typed cannot be a password.
    #[error("what was typed cannot be the password")]
    Password(#[from] PasswordError),
}

/// The terminal that the user sits at.
pub struct Terminal {
    tty: File,
}

impl Terminal {
    /// None where nobody sits: standard input is no terminal, or the program has none.
    pub fn open() -> Option<Terminal> {
        if !io::stdin().is_terminal() {
            return None;
        }
        Some(Terminal { tty: OpenOptions::new().read(true).write(true).open("/dev/tty").ok()? })
    }

    /// Shows `question`, and reads a line that is not shown.
    ///
    /// Cancel safe: the terminal is as before, whatever was typed is lost.
    ///
    /// # Errors
    /// [`PromptError`]
    pub async fn password(&self, question: &str) -> Result<Password, PromptError> {
        let silent = Silent::new(&self.tty)?;
        (&self.tty).write_all(question.as_bytes())?;
        let tty = self.tty.try_clone()?;
        let (stop, stopped) = UnixStream::pair()?;
        let reading = tokio::task::spawn_blocking(move || line(tty, &stopped));
        let line = reading.await.map_err(io::Error::other);
        // Closed sooner, when this future is dropped, it ends the thread.
        drop(stop);
        drop(silent);
        Ok(Password::new(line??.ok_or(PromptError::Nothing)?)?)
    }
}

/// A line without its end; none if the user ends the input, or `stopped` is closed.
fn line(mut tty: File, stopped: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut chunk = [0; 256];
    while line.len() < MAX_LINE {
        let mut ready = [PollFd::new(&tty, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            outcome => outcome?,
        };
        let [_, stop] = &ready;
        if !stop.revents().is_empty() {
            return Ok(None);
        }
        let read = tty.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        line.extend_from_slice(bytes);
        if line.last() == Some(&b'\n') {
            line.pop();
            break;
        }
    }
    Ok(Some(line))
}

/// No echo, but of the line's end, until it is dropped.
struct Silent<'a> {
    tty: &'a File,
    before: Termios,
}

impl Silent<'_> {
    fn new(tty: &File) -> io::Result<Silent<'_>> {
        let before = termios::tcgetattr(tty)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        termios::tcsetattr(tty, OptionalActions::Flush, &silent)?;
        Ok(Silent { tty, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(self.tty, OptionalActions::Flush, &self.before) {
            tracing::warn!(%error, "the terminal may be without echo now; `stty sane` helps");
        }
    }
}

/// The server wants another password than the one it got, so that asking the user may help.
pub fn may_help(failure: &LinkFailure) -> bool {
    matches!(failure, LinkFailure::WrongPassword { .. })
}
