//! Where lines go: many at a time, but never kept back while the input is waited for.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A buffered writer that the [`Input`](super::input::Input) can flush. Clones are the same one.
#[derive(Clone)]
pub(super) struct Output(Arc<Mutex<Inner>>);

struct Inner {
    writer: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    /// The first error, behind which nothing is written any more.
    failed: Option<io::Error>,
}

/// What is written at a time, bytes.
const CHUNK: usize = 64 << 10;

impl Output {
    /// Writes to this.
    pub(super) fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Inner { writer: Box::new(writer), buffer: Vec::new(), failed: None })))
    }

    /// Takes lines, and leaves `lines` empty. `false`: the writer takes nothing any more.
    pub(super) fn take(&self, lines: &mut Vec<u8>) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.buffer.append(lines);
        if inner.buffer.len() < CHUNK { inner.failed.is_none() } else { inner.write() }
    }

    /// Writes what was taken. `false`: the writer takes nothing any more.
    pub(super) fn flush(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write()
    }

    /// Writes what was taken.
    ///
    /// # Errors
    ///
    /// The first one that the writer had, once.
    pub(super) fn finish(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.write();
        inner.failed.take().map_or(Ok(()), Err)
    }
}

impl Inner {
    fn write(&mut self) -> bool {
        if self.failed.is_none()
            && let Err(error) = self.writer.write_all(&self.buffer).and_then(|()| self.writer.flush())
        {
            self.failed = Some(error);
        }
        self.buffer.clear();
        self.failed.is_none()
    }
}
