//! Which sockets deserve a look: wakers that name their socket, and the queue that they fill.
//!
//! Polling every socket of a session whenever one stirs would cost more with each idle connection. Here each socket
//! registers a waker of its own with the reactor; waking puts the socket's id into a queue and wakes the session's
//! task, which then looks at these sockets only.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use spice_proto::tunnel::SocketId;

/// The queue between the reactor and one session.
#[derive(Default)]
pub(crate) struct ReadySet {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    woken: VecDeque<SocketId>,
    task: Option<Waker>,
}

/// One socket's own waker.
pub(crate) struct SocketWaker {
    socket: SocketId,
    /// In the queue already.
    queued: AtomicBool,
    set: Arc<ReadySet>,
}

impl ReadySet {
    /// A waker that puts `socket` into this queue.
    pub(crate) fn waker(self: &Arc<Self>, socket: SocketId) -> Arc<SocketWaker> {
        Arc::new(SocketWaker { socket, queued: AtomicBool::new(false), set: self.clone() })
    }

    /// From now on `task` is woken when a socket stirs.
    pub(crate) fn register(&self, task: &Waker) {
        match &mut self.lock().task {
            Some(known) => known.clone_from(task),
            none => *none = Some(task.clone()),
        }
    }

    /// Moves the ids of all woken sockets behind those in `queue`.
    pub(crate) fn take(&self, queue: &mut VecDeque<SocketId>) {
        queue.append(&mut self.lock().woken);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SocketWaker {
    /// The socket is about to be looked at: from here on it may be queued again. To be called *before* looking, or a
    /// wake in between is lost.
    pub(crate) fn looked_at(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for SocketWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut inner = self.set.lock();
        inner.woken.push_back(self.socket);
        // Woken outside of the lock: a waker is foreign code.
        let task = inner.task.clone();
        drop(inner);
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_socket_is_queued_once_until_it_is_looked_at() {
        let set = Arc::new(ReadySet::default());
        let count = Arc::new(Count::default());
        set.register(&count.clone().into());
        let (one, two) = (set.waker(SocketId(1)), set.waker(SocketId(2)));
        for waker in [&two, &one, &two, &one] {
            waker.wake_by_ref();
        }
        let mut queue = VecDeque::new();
        set.take(&mut queue);
        assert_eq!(queue, [SocketId(2), SocketId(1)]);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);

        two.wake_by_ref();
        set.take(&mut queue);
        assert_eq!(queue.len(), 2, "queued again before it was looked at");
        two.looked_at();
        two.wake_by_ref();
        set.take(&mut queue);
        assert_eq!(queue.len(), 3);
    }
}
