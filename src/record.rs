//! Recording: what passes a tunnel link, and the frames of the guest's card, into pcapng files.
//!
//! # Theory of operation
//!
//! ```text
//!  tunnel link ── Tap ──┐                        ┌─ links: messages, connections, rotation ─┐
//!                       ├─► queue ──► a thread ──┤                                          ├─► part ──► files
//!  guest's card ─ Frames┘   16 MiB               └─ card: frames, rotation ─────────────────┘   pcapng
//! ```
//!
//! Traffic is copied once, into the queue, with its time. A thread takes it from there, so that a slow disk never
//! holds up traffic: when the queue is full, what comes is dropped and counted. It goes on where a message
//! begins, and the sequence numbers go on over what was dropped, so that readers see a hole of exactly that size with a
//! message behind it. The cores, [`links`] and `card`, do no I/O.
//!
//! Tickets and passwords never come here: a link is recorded from behind its link stage, and the one in the file is
//! made up.

mod card;
mod clock;
mod files;
mod link_stage;
mod links;
mod options;
mod part;
mod queue;
mod tap;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use server_glue::nic::Way;
use spice_proto::handshake::Linked;
use spice_proto::names::Sender;
use tokio::sync::oneshot;
use tracing::{info, warn};

pub use options::{Limit, LimitError, RotationArgs};
pub use tap::Tap;
pub use tcp::Ends;

use card::CardCore;
use files::Files;
use links::{LinkId, LinksCore};
use part::Part;
use queue::Queue;

/// How long the end waits for what is queued to be written.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Where a recording goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The current file. Full ones are moved to `FILE.1`, `FILE.2` and so on.
    pub path: PathBuf,
    /// How long a file may become, in bytes; `None`: as long as it likes. It ends with a whole message, so it can be
    /// a little longer.
    pub limit: Option<u64>,
    /// How many files are kept, the current one included. At least 1.
    pub files: u32,
    /// How many bytes may wait for being written.
    pub queue: usize,
}

impl Options {
    /// One file of any length, and a queue of 16 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), limit: None, files: 1, queue: 16 << 20 }
    }
}

/// Why a recording cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be written.
    #[error("cannot record to {}", path.display())]
    Create {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No thread for it.
    #[error("cannot start the thread that records")]
    Thread(#[source] io::Error),
}

/// Begins to record tunnel links.
///
/// # Errors
/// The file cannot be created. Later errors are logged, and end the recording only.
pub fn links(options: &Options) -> Result<(Recording, Links), Error> {
    info!(
        path = %options.path.display(),
        "recording the tunnel: the file holds everything that the guest and the services say to each other"
    );
    let queue = Arc::new(Queue::new(options.queue));
    let recording = begin(options, Arc::clone(&queue), |limit| LinksCore::new(limit, clock::now()))?;
    Ok((recording, Links { queue, next: Arc::default() }))
}

/// Begins to record the guest's card.
///
/// # Errors
/// As [`links`].
pub fn frames(options: &Options) -> Result<(Recording, Frames), Error> {
    info!(
        path = %options.path.display(),
        "recording the guest's card: the file holds everything that the guest and the services say to each other"
    );
    let queue = Arc::new(Queue::new(options.queue));
    let recording = begin(options, Arc::clone(&queue), |limit| CardCore::new(limit, clock::now()))?;
    Ok((recording, Frames { queue }))
}

fn begin<C: Core>(
    options: &Options,
    queue: Arc<Queue<C::Entry>>,
    core: impl FnOnce(Option<u64>) -> io::Result<C>,
) -> Result<Recording, Error> {
    let failed = |source| Error::Create { path: options.path.clone(), source };
    let files = Files::create(&options.path, options.files.max(1)).map_err(failed)?;
    // A pipe cannot be moved out of the way: whoever reads it has to bound it.
    let core = core(options.limit.filter(|_| files.can_rotate())).map_err(failed)?;
    let (tell, done) = oneshot::channel();
    let writing = Arc::clone(&queue);
    std::thread::Builder::new()
        .name("recorder".to_owned())
        .spawn(move || {
            let outcome = files::run(core, files, &writing);
            // Nobody needs to wait for it.
            let _ = tell.send(outcome);
        })
        .map_err(Error::Thread)?;
    let close = Closer(Box::new(move || queue.close()));
    Ok(Recording { path: options.path.clone(), close, done })
}

/// A recording that goes on until it is [finished](Recording::finish) or dropped.
pub struct Recording {
    path: PathBuf,
    close: Closer,
    done: oneshot::Receiver<Outcome>,
}

/// Closes the queue when it is dropped.
struct Closer(Box<dyn Fn() + Send + Sync>);

impl Drop for Closer {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Recording {
    /// Ends the recording when all that is queued is written, or after 5 s. What is noted from now on is not
    /// recorded: whatever is recorded should be over.
    ///
    /// Cancel safe in that the writing goes on; nobody waits for it then.
    pub async fn finish(self) -> Outcome {
        let Self { path, close, done } = self;
        drop(close);
        match tokio::time::timeout(LAST_WRITES, done).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome {
                dropped: Dropped::default(),
                result: Err(io::Error::other("the thread that records failed")),
            },
            Err(_) => {
                warn!(path = %path.display(), "the end of the recording could not be written in time");
                Outcome { dropped: Dropped::default(), result: Err(io::ErrorKind::TimedOut.into()) }
            }
        }
    }

    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How a recording ended. It has been logged.
#[derive(Debug)]
pub struct Outcome {
    /// What the recording misses.
    pub dropped: Dropped,
    /// Whether it was written to its end.
    pub result: io::Result<()>,
}

/// What a recording misses, because its file could not be written fast enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Frames, or reads and writes.
    pub pieces: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Records tunnel links. Clones record into the same file.
#[derive(Clone)]
pub struct Links {
    queue: Arc<Queue<links::Entry>>,
    next: Arc<AtomicU64>,
}

impl Links {
    /// Records `stream`, whose link stage led to `linked`, and in which we are the end `ours`. `ends` are its
    /// addresses, if it has any. `linked.leftover` is recorded here; it need not be passed through the stream.
    pub fn tap<S>(&self, stream: S, linked: &Linked, ours: Sender, ends: Option<Ends>) -> Tap<S> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ends = ends.unwrap_or_else(|| Ends::example(number));
        Tap::new(stream, &self.queue, LinkId(number), linked, ours, ends)
    }
}

/// Records a guest's card.
pub struct Frames {
    queue: Arc<Queue<card::Entry>>,
}

impl Frames {
    /// Records a frame.
    pub fn note(&self, way: Way, frame: &[u8]) {
        self.queue.offer(frame.len(), || card::Entry { time: clock::now(), way, frame: frame.to_vec() });
    }
}

/// What makes files of what was noted, without I/O.
trait Core: Send + 'static {
    /// Something noted.
    type Entry: Send + 'static;

    /// Takes what was noted, before which `dropped` had been dropped.
    fn handle(&mut self, entry: Self::Entry, dropped: Dropped) -> io::Result<()>;

    /// Ends all files.
    fn end(&mut self, time: Duration, dropped: Dropped) -> io::Result<()>;

    /// The files whose blocks are to be written out. Those that are over are to be taken away then.
    fn parts(&mut self) -> &mut VecDeque<Part>;
}
