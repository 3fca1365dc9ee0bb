//! The files of a recording on disk, and the thread that writes them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::queue::{Queue, Taken};
use super::{Core, Outcome, clock};

/// Whole blocks are handed to the system when there are so many bytes of them.
const WRITE_AT: usize = 128 << 10;
/// Nothing stays in memory for longer than this.
const FLUSH_AFTER: Duration = Duration::from_millis(250);
/// Nobody but the owner may read what guests and services say to each other.
const MODE: u32 = 0o600;

/// See the module's text.
pub(super) struct Files {
    path: PathBuf,
    /// How many are kept, the current one included.
    keep: u32,
    /// By their number in the recording.
    open: BTreeMap<u64, OpenFile>,
    /// Number of the file that is to be begun next.
    next: u64,
}

struct OpenFile {
    file: File,
    /// Whether it can be cut to whole blocks.
    regular: bool,
    /// Bytes of whole blocks in it.
    len: u64,
}

impl Files {
    /// Opens the first file.
    pub(super) fn create(path: &Path, keep: u32) -> io::Result<Self> {
        let first = create(path)?;
        Ok(Self { path: path.to_owned(), keep, open: BTreeMap::from([(0, first)]), next: 1 })
    }

    /// Whether the files are files, so that a full one can be moved out of the way.
    pub(super) fn can_rotate(&self) -> bool {
        self.open.values().all(|file| file.regular)
    }

    /// Writes out what is pending: all of it, or only where it has become much.
    fn write(&mut self, core: &mut impl Core, all: bool) -> io::Result<()> {
        let parts = core.parts();
        for part in parts.iter_mut() {
            if part.pending().is_empty() || !(all || part.over || part.pending().len() >= WRITE_AT) {
                continue;
            }
            while part.number >= self.next {
                self.rotate()?;
            }
            if let Some(file) = self.open.get_mut(&part.number) {
                file.append(part.pending())?;
            }
            part.wrote();
        }
        parts.retain(|part| {
            if part.over {
                self.open.remove(&part.number);
            }
            !part.over
        });
        Ok(())
    }

    /// Moves the files out of the way, the oldest one away, and begins the next. Who still writes to one of them goes
    /// on to.
    fn rotate(&mut self) -> io::Result<()> {
        let mut from = self.keep;
        while from > 1 {
            from -= 1;
            let older = self.numbered(from);
            match fs::rename(self.numbered(from - 1), older) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let file = create(&self.path)?;
        self.open.insert(self.next, file);
        self.next += 1;
        if self.next > self.keep.into() {
            info!(path = %self.path.display(), kept = self.keep, "the recording's oldest file was removed");
        }
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl OpenFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // A full disk takes a part of it. What is there is to remain readable.
            if self.regular {
                let _ = self.file.set_len(self.len);
            }
            return Err(error);
        }
        self.len = self.len.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        Ok(())
    }
}

/// Creates a file that only its owner can read. One that is there is replaced, as every recorder does; whoever has it
/// open keeps it. What is no file, as a pipe, is written to.
fn create(path: &Path) -> io::Result<OpenFile> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            // To open a pipe for writing only would wait for its reader, and end with it.
            let file = OpenOptions::new().read(found.file_type().is_fifo()).write(true).open(path)?;
            return Ok(OpenFile { file, regular: false, len: 0 });
        }
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    Ok(OpenFile { file, regular: true, len: 0 })
}

/// Writes what comes through the queue until that is closed or writing fails. Runs on a thread of its own.
pub(super) fn run<C: Core>(mut core: C, mut files: Files, queue: &Arc<Queue<C::Entry>>) -> Outcome {
    let result = write_all(&mut core, &mut files, queue);
    // From here on nobody needs to copy anything.
    queue.abandon();
    let dropped = queue.dropped();
    if let Err(error) = &result {
        warn!(path = %files.path.display(), %error, "the recording stops here; what it records does not");
    }
    if dropped.pieces > 0 {
        let (path, bytes, pieces) = (files.path.display(), dropped.bytes, dropped.pieces);
        warn!(%path, bytes, pieces, "the recording has holes: its file could not be written fast enough");
    }
    Outcome { dropped, result }
}

fn write_all<C: Core>(core: &mut C, files: &mut Files, queue: &Arc<Queue<C::Entry>>) -> io::Result<()> {
    // The header at once, so that whoever follows the file sees it begin.
    files.write(core, true)?;
    let mut flush_at = None;
    loop {
        match queue.take(flush_at) {
            Taken::Entries(entries) => {
                for queued in entries {
                    core.handle(queued.entry, queued.dropped)?;
                    files.write(core, false)?;
                    queue.release(queued.cost);
                }
                flush_at = flush_at.or_else(|| Some(Instant::now() + FLUSH_AFTER));
            }
            Taken::Late => {}
            Taken::Over => break,
        }
        if flush_at.is_some_and(|at| at <= Instant::now()) {
            files.write(core, true)?;
            flush_at = None;
        }
    }
    core.end(clock::now(), queue.dropped())?;
    files.write(core, true)
}
