//! The file, or the pipe, that a capture is read from.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::output::Output;

/// A reader that ends when it is told to, even while nothing comes, and that lets the output out before it waits.
pub(super) struct Input {
    file: File,
    /// Length of the file, bytes; `None` for a pipe.
    length: Option<u64>,
    stop: CancellationToken,
    output: Output,
    /// Once it was told to end: until when it takes what is in the pipe already.
    deadline: Option<Instant>,
}

impl Input {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    ///
    /// What the operating system says; a directory, or a terminal.
    pub(super) fn open(path: &Path, stop: CancellationToken, output: Output) -> io::Result<Self> {
        let file = if path.as_os_str() == "-" {
            if io::stdin().is_terminal() {
                return Err(io::Error::other("expected a capture on standard input, got a terminal"));
            }
            File::from(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            File::open(path)?
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::other("expected a capture file, got a directory"));
        }
        let length = metadata.is_file().then_some(metadata.len());
        Ok(Self { file, length, stop, output, deadline: None })
    }

    /// Length of the file, bytes; `None` for what has none, such as a pipe.
    pub(super) fn len(&self) -> Option<u64> {
        self.length
    }

    /// Waits until there is something to read. `false`: nobody wants it any more.
    fn wait(&mut self) -> io::Result<bool> {
        if self.ready(Duration::ZERO)? && !self.stop.is_cancelled() {
            return Ok(true);
        }
        if !self.output.flush() {
            return Ok(false);
        }
        loop {
            if self.stop.is_cancelled() {
                let now = Instant::now();
                let deadline = *self.deadline.get_or_insert(now + LAST_WORDS);
                return Ok(match deadline.checked_duration_since(now) {
                    Some(left) => self.ready(left)?,
                    None => false,
                });
            }
            if self.ready(NAP)? {
                return Ok(true);
            }
        }
    }

    fn ready(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = match self.length {
            Some(_) => !self.stop.is_cancelled(),
            None => self.wait()?,
        };
        if wanted { self.file.read(buf) } else { Ok(0) }
    }
}

/// How often it looks whether it was told to end.
const NAP: Duration = Duration::from_millis(100);

/// How long a pipe is read on after that. Ctrl-C ends tcpdump too, which then writes out what it has.
const LAST_WORDS: Duration = Duration::from_millis(500);
