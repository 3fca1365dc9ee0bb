//! Whether the tunnel that holds the seat still lives: asked when another one wants it.
//!
//! The proxy's link asks, the VM's task probes its client, and the answer goes to all who ask meanwhile. Nobody but holders of a right ticket gets
//! here; even they cannot keep a living tunnel busy with it, since an answer counts for a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long a challenged client may take for a sign of life.
pub const CHALLENGE: Duration = Duration::from_secs(3);
/// How long the one who asked waits, the VM's own delays included.
const VERDICT: Duration = Duration::from_millis(3500);
/// A tunnel that has shown life is not asked again for so long.
const REST: Duration = Duration::from_secs(5);

/// The VM's end: hears of challenges, and tells of life. By default nobody ever asks.
#[derive(Debug, Default)]
pub struct Challenged {
    shared: Arc<Shared>,
}

/// The proxy's end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Challenger {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Wakes the VM's task.
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing was asked yet.
    #[default]
    Idle,
    /// The VM's task has not heard of it yet.
    Asked { since: Instant },
    /// The client has been probed.
    Probed { since: Instant },
    /// It showed life.
    Alive { at: Instant },
    /// The tunnel is over.
    Gone,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Challenged {
    /// Ready while somebody waits for the client to be [`probed`](Self::probed).
    pub fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if let Phase::Asked { .. } = state.phase {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The client has been asked for a sign of life, and has [`CHALLENGE`] for it.
    pub fn probed(&mut self) {
        let mut state = self.shared.lock();
        if let Phase::Asked { since } = state.phase {
            state.phase = Phase::Probed { since };
        }
    }

    /// Something came from the client. Whatever it was, if the client had been probed before, it lives.
    pub fn alive(&mut self) {
        let mut state = self.shared.lock();
        if let Phase::Probed { .. } = state.phase {
            state.phase = Phase::Alive { at: Instant::now() };
            self.shared.settled.notify_waiters();
        }
    }
}

impl Challenger {
    pub(crate) fn challenged(&self) -> Challenged {
        Challenged { shared: Arc::clone(&self.shared) }
    }

    /// Asks, or joins those who ask already. `true`: the tunnel lives, as far as is known within [`VERDICT`]. `false`: it is over.
    ///
    /// Cancel safe: the challenge goes on for the others.
    pub(crate) async fn ask(&self) -> bool {
        let verdict = async {
            loop {
                let settled = self.shared.settled.notified();
                tokio::pin!(settled);
                settled.as_mut().enable();
                if let Some(alive) = self.look() {
                    return alive;
                }
                settled.await;
            }
        };
        // A VM's task that says nothing is at work; its client may be, too.
        timeout(VERDICT, verdict).await.unwrap_or(true)
    }

    fn look(&self) -> Option<bool> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        match state.phase {
            Phase::Gone => return Some(false),
            Phase::Alive { at } if now.duration_since(at) < REST => return Some(true),
            Phase::Asked { since } | Phase::Probed { since } if now.duration_since(since) < REST => {
                return None;
            }
            // Not asked yet, or so long ago that it says nothing about now.
            Phase::Idle | Phase::Alive { .. } | Phase::Asked { .. } | Phase::Probed { .. } => {}
        }
        state.phase = Phase::Asked { since: now };
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        None
    }

    /// The tunnel is over, and its seat free.
    pub(crate) fn gone(&self) {
        self.shared.lock().phase = Phase::Gone;
        self.shared.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn asked(challenged: &mut Challenged) {
        timeout(Duration::from_secs(60), poll_fn(|cx| challenged.poll_asked(cx))).await.expect("a challenge");
        challenged.probed();
    }

    async fn rests(challenged: &mut Challenged) -> bool {
        timeout(Duration::from_secs(1), poll_fn(|cx| challenged.poll_asked(cx))).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn many_newcomers_are_one_challenge() {
        let challenger = Challenger::default();
        let mut challenged = challenger.challenged();
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let challenger = challenger.clone();
                tokio::spawn(async move { challenger.ask().await })
            })
            .collect();
        asked(&mut challenged).await;
        assert!(rests(&mut challenged).await);
        challenged.alive();
        for answer in asking {
            assert!(answer.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_a_while() {
        let challenger = Challenger::default();
        let mut challenged = challenger.challenged();
        for _ in 0..2 {
            let both = async {
                asked(&mut challenged).await;
                challenged.alive();
            };
            assert!(tokio::join!(challenger.ask(), both).0);
            for _ in 0..1000 {
                assert!(challenger.ask().await);
            }
            assert!(rests(&mut challenged).await);
            tokio::time::sleep(REST).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn life_before_the_question_is_no_answer() {
        let challenger = Challenger::default();
        let mut challenged = challenger.challenged();
        challenged.alive();
        let end = async {
            asked(&mut challenged).await;
            challenger.gone();
        };
        assert!(!tokio::join!(challenger.ask(), end).0);
        assert!(!challenger.ask().await);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_the_vms_task_is_no_verdict() {
        let challenger = Challenger::default();
        let start = Instant::now();
        assert!(challenger.ask().await);
        assert_eq!(start.elapsed(), VERDICT);
    }
}
