//! Questions to devices that run beside a source's loop: few at a time, one for each device, the newest.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;

use tokio::task::{AbortHandle, JoinSet};

/// Most that run at the same time. Each has but a few connections.
const MOST: usize = 16;

/// Tasks for devices known by `K`, which end in a `T`. Dropping it ends them.
pub(crate) struct Tasks<K, T> {
    running: JoinSet<(K, T)>,
    handles: BTreeMap<K, AbortHandle>,
    /// INVARIANT: empty while fewer than [`MOST`] run; no key twice.
    waiting: VecDeque<(K, Pin<Box<dyn Future<Output = T> + Send>>)>,
}

impl<K, T> Default for Tasks<K, T> {
    fn default() -> Self {
        Tasks { running: JoinSet::new(), handles: BTreeMap::new(), waiting: VecDeque::new() }
    }
}

impl<K: Ord + Clone + Send + 'static, T: Send + 'static> Tasks<K, T> {
    /// Begins one, in place of any other of this key.
    pub(crate) fn begin(&mut self, key: K, task: impl Future<Output = T> + Send + 'static) {
        self.forget(&key);
        self.waiting.push_back((key, Box::pin(task)));
        self.fill();
    }

    /// The device is gone: nobody wants to know any more.
    pub(crate) fn forget(&mut self, key: &K) {
        self.waiting.retain(|(waiting, _)| waiting != key);
        if let Some(handle) = self.handles.remove(key) {
            handle.abort();
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.handles.is_empty() && self.waiting.is_empty()
    }

    /// How the next one ended that was not forgotten. Waits for ever while there is none.
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> (K, T) {
        loop {
            let Some(ended) = self.running.join_next_with_id().await else {
                std::future::pending::<()>().await;
                continue;
            };
            // One that was forgotten may have ended before it was told to.
            let wanted = match ended {
                Ok((id, (key, outcome))) => {
                    let current = self.handles.get(&key).is_some_and(|handle| handle.id() == id);
                    current.then_some((key, outcome))
                }
                Err(error) => {
                    self.handles.retain(|_, handle| handle.id() != error.id());
                    None
                }
            };
            if let Some((key, outcome)) = wanted {
                self.handles.remove(&key);
                self.fill();
                return (key, outcome);
            }
            self.fill();
        }
    }

    fn fill(&mut self) {
        while self.running.len() < MOST
            && let Some((key, task)) = self.waiting.pop_front()
        {
            let name = key.clone();
            let handle = self.running.spawn(async move { (name, task.await) });
            self.handles.insert(key, handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_newest_of_each_key_counts() {
        let mut tasks = Tasks::default();
        assert!(tasks.is_empty());
        tasks.begin(1, async { "old" });
        // It may have ended already.
        tokio::task::yield_now().await;
        tasks.begin(1, async { "new" });
        tasks.begin(2, async { "gone" });
        tasks.forget(&2);
        assert_eq!(tasks.next().await, (1, "new"));
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn few_run_at_the_same_time_and_none_is_left_out() {
        let mut tasks = Tasks::default();
        let mut keys = Vec::new();
        for key in 0..100 {
            let (end, ended) = oneshot::channel::<()>();
            keys.push(end);
            tasks.begin(key, async move { ended.await.is_ok() });
            assert!(tasks.running.len() <= MOST);
        }
        assert_eq!(tasks.waiting.len(), 100 - MOST);
        for end in keys {
            end.send(()).unwrap();
        }
        let mut ended = Vec::new();
        while !tasks.is_empty() {
            ended.push(tasks.next().await.0);
        }
        ended.sort_unstable();
        assert_eq!(ended, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn one_that_panics_is_no_more() {
        let mut tasks: Tasks<i32, i32> = Tasks::default();
        tasks.begin(1, async { panic!("on purpose") });
        tasks.begin(2, async { 5 });
        assert_eq!(tasks.next().await, (2, 5));
        tokio::select! {
            biased;
            ended = tasks.next() => panic!("{ended:?}"),
            () = tokio::task::yield_now() => {}
        }
        assert!(tasks.is_empty());
    }
}
