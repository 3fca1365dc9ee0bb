//! The queue between traffic and the thread that writes: bounded by bytes, and never waited for by traffic.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Dropped;

/// What an entry takes besides its bytes, roughly.
const OVERHEAD: usize = 128;

/// See the module's text.
pub(super) struct Queue<E> {
    state: Mutex<State<E>>,
    news: Condvar,
    capacity: usize,
    /// Bytes that are queued or being written.
    held: AtomicUsize,
    pieces: AtomicU64,
    bytes: AtomicU64,
    /// Nothing is recorded any more: it failed, or is over.
    stopped: AtomicBool,
}

struct State<E> {
    entries: VecDeque<Queued<E>>,
    /// Take what is there, then end.
    closed: bool,
}

/// An entry in the queue.
pub(super) struct Queued<E> {
    pub(super) entry: E,
    /// What had been dropped before it.
    pub(super) dropped: Dropped,
    /// For [`Queue::release`].
    pub(super) cost: usize,
}

/// What [`Queue::take`] gives.
pub(super) enum Taken<E> {
    /// All that was there.
    Entries(VecDeque<Queued<E>>),
    /// Nothing came in time.
    Late,
    /// Nothing is there, and nothing more comes.
    Over,
}

impl<E> Queue<E> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State { entries: VecDeque::new(), closed: false }),
            news: Condvar::new(),
            capacity,
            held: AtomicUsize::new(0),
            pieces: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Puts in what `make` gives, which holds `bytes` bytes, unless the queue is full: then it is counted as dropped.
    /// Gives whether there was room.
    pub(super) fn offer(&self, bytes: usize, make: impl FnOnce() -> E) -> bool {
        if self.is_stopped() {
            return false;
        }
        let cost = bytes.saturating_add(OVERHEAD);
        let room = |held: usize| held.checked_add(cost).filter(|sum| *sum <= self.capacity);
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            self.count_dropped(bytes);
            return false;
        }
        self.push(make(), cost);
        true
    }

    /// Puts in something small even if the queue is full.
    pub(super) fn force(&self, entry: E) {
        if !self.is_stopped() {
            self.held.fetch_add(OVERHEAD, Ordering::Relaxed);
            self.push(entry, OVERHEAD);
        }
    }

    /// Counts what was dropped without asking for room.
    pub(super) fn count_dropped(&self, bytes: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether there is much room again. Who has dropped something waits for that, so that the holes are few.
    pub(super) fn is_relieved(&self) -> bool {
        self.held.load(Ordering::Relaxed) <= self.capacity / 2
    }

    pub(super) fn dropped(&self) -> Dropped {
        Dropped { pieces: self.pieces.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// What is queued is still to be taken; nothing more comes in.
    pub(super) fn close(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.lock().closed = true;
        self.news.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Waits for entries, until `deadline` if there is one.
    pub(super) fn take(&self, deadline: Option<Instant>) -> Taken<E> {
        let mut state = self.lock();
        loop {
            if !state.entries.is_empty() {
                return Taken::Entries(mem::take(&mut state.entries));
            }
            if state.closed {
                return Taken::Over;
            }
            state = match deadline {
                None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Taken::Late;
                    }
                    self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Gives back the room of an entry that was dealt with.
    pub(super) fn release(&self, cost: usize) {
        self.held.fetch_sub(cost, Ordering::Relaxed);
    }

    /// Throws away what is queued, and what is still to come.
    pub(super) fn abandon(&self) {
        self.close();
        self.lock().entries = VecDeque::new();
    }

    fn push(&self, entry: E, cost: usize) {
        let dropped = self.dropped();
        self.lock().entries.push_back(Queued { entry, dropped, cost });
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
