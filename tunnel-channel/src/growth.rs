//! When a window grows, and how far.
//!
//! # Theory of operation
//!
//! A sender that has to wait for tokens gets one window through in one round trip. So whoever receives looks at rounds, each as
//! many messages as the window (`credit`). Where one took no more than two round trips, was not of small messages, and hardly
//! anything of it waits for its sink, the window was what held the peer up, and it is doubled. It ends between two and four
//! times of what is on its way at a time, where neither the delay nor the portions in which tokens return are felt.
//!
//! How long a round trip is, nobody needs to be told: every answer to a question of `liveness` says it, and no round takes
//! less. The least of both in the last half a minute or so counts ([`Delay`]), since most are longer than the way: they wait
//! behind data. What is idle is asked anyway; a peer is asked in the middle of a transfer only when nothing is known.
//!
//! Tokens that were granted cannot be called back. Therefore windows grow out of one [`Pool`] of half the memory budget, each
//! message counted at its longest, and no socket takes more of it than it leaves to the others. What the pool has given is
//! taken off the mark above which no credit returns. So a peer whose messages nobody takes never has more on its way because
//! windows have grown, and none is reset for it. And above that mark, whatever has grown shrinks as it is delivered.

use std::time::{Duration, Instant};

use spice_proto::tunnel::SocketId;

use crate::channel::{Channel, to_usize};
use crate::credit::Turnaround;

/// The shortest time in which anybody can be expected to send a window and be given another one. On shorter ways a larger
/// window carries nothing more: what comes of it is only that more waits in memory, beyond the processor's caches.
const LEAST: Duration = Duration::from_micros(200);

/// For how long a measurement counts by itself; then for as long again until there is another. A way that became longer is
/// noticed within twice this.
const LASTING: Duration = Duration::from_secs(15);

/// Messages are shorter than the longest by this factor at most where the peer has more to say than it may: then it would
/// have filled them.
const BULK: usize = 8;

/// The least round trip that was measured lately.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay {
    began: Instant,
    /// Since then, and in the time before. `None`: nothing was measured.
    now: Option<Duration>,
    before: Option<Duration>,
    /// The peer answered a question since then.
    asked: bool,
    /// It ever did.
    answered: bool,
}

impl Delay {
    pub(crate) fn new(now: Instant) -> Self {
        Delay { began: now, now: None, before: None, asked: false, answered: false }
    }

    /// The peer's answer took so long.
    pub(crate) fn on_answer(&mut self, now: Instant, took: Duration) {
        self.on_round(now, took);
        (self.asked, self.answered) = (true, true);
    }

    /// A round took so long, or something else that cannot be shorter than a round trip.
    pub(crate) fn on_round(&mut self, now: Instant, took: Duration) {
        self.expire(now);
        self.now = Some(self.now.map_or(took, |least| least.min(took)));
    }

    /// The least round trip. `None`: not known.
    pub(crate) fn least(&mut self, now: Instant) -> Option<Duration> {
        self.expire(now);
        self.now.into_iter().chain(self.before).min()
    }

    /// How long a round may take whose peer had to wait for tokens. `None`: not known.
    pub(crate) fn patience(&mut self, now: Instant) -> Option<Duration> {
        self.least(now).map(|least| least.max(LEAST).saturating_mul(2))
    }

    /// Whether the peer has not answered lately, so that it is worth a question.
    pub(crate) fn is_guessed(&self) -> bool {
        !self.asked
    }

    fn expire(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= LASTING {
            let before = self.now.filter(|_| age < LASTING * 2);
            *self = Delay { before, answered: self.answered, ..Delay::new(now) };
        }
    }
}

/// The tokens by which windows have grown, over all sockets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pool {
    /// INVARIANT: the sum over the windows of all sockets to which data may come.
    taken: u32,
}

impl Pool {
    /// How many tokens a window that has grown by `grown` may grow by now, out of `size` for all of them: so many that it
    /// then has no more than it leaves.
    fn share(self, size: u32, grown: u32) -> u32 {
        size.saturating_sub(self.taken).saturating_sub(grown) / 2
    }

    pub(crate) fn take(&mut self, tokens: u32) {
        self.taken = self.taken.saturating_add(tokens);
    }

    pub(crate) fn give_back(&mut self, tokens: u32) {
        debug_assert!(tokens <= self.taken, "a window gives back what it was not given");
        self.taken = self.taken.saturating_sub(tokens);
    }

    /// What was given, in bytes of messages at their longest.
    pub(crate) fn bytes(self, max_data: usize) -> usize {
        to_usize(self.taken).saturating_mul(max_data)
    }
}

impl Channel {
    /// A message of this length came for a socket to whose owner it goes: perhaps the peer could send more than it may.
    pub(crate) fn consider_growth(&mut self, now: Instant, id: SocketId, length: usize) {
        let policy = self.terms.policy;
        if !policy.grows() {
            return;
        }
        let patience = self.delay.patience(now);
        let size = self.pool_size();
        let is_short = self.is_short_of_memory();
        let max_data = self.agreed_data();
        let Some(socket) = self.table.get_mut(id) else { return };
        let window = socket.window_mut();
        let Some(Turnaround { took, bytes }) = window.measure(now, length, patience) else { return };
        let (total, grown, undelivered) = (window.total(), window.grown(), window.undelivered());
        self.delay.on_round(now, took);
        if to_usize(bytes) < to_usize(total).saturating_mul(max_data) / BULK {
            return;
        }
        self.ask_for_delay(now);
        if !self.delay.answered && self.liveness.is_asking() {
            // By the end of another round it is known whether this one took long.
            return;
        }
        if is_short || undelivered > (total / 4).max(1) {
            return;
        }
        let more = total.min(policy.most.saturating_sub(total)).min(self.pool.share(size, grown));
        if let Some(socket) = self.table.get_mut(id)
            && more > 0
        {
            tracing::trace!(socket = id.0, total, more, ?took, "window grows");
            socket.window_mut().grow(more);
            self.pool.take(more);
            self.return_credit(id);
        }
    }

    /// How many tokens windows may grow by, over all sockets.
    fn pool_size(&self) -> u32 {
        let half = self.terms.config.memory_budget / 2;
        u32::try_from(half / self.agreed_data().max(1)).unwrap_or(u32::MAX)
    }

    /// Whether credit must be held back.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        let reserved = self.pool.bytes(self.agreed_data());
        self.backlog.bytes > self.terms.config.memory_budget.saturating_sub(reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_least_of_late_counts_and_a_longer_way_is_noticed() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        assert_eq!((delay.least(start), delay.patience(start)), (None, None));
        delay.on_round(start, 5 * SECOND);
        assert!(delay.is_guessed(), "a round is no answer");
        delay.on_answer(start + SECOND, SECOND);
        delay.on_answer(start + 2 * SECOND, 2 * SECOND);
        assert!(!delay.is_guessed());
        assert_eq!(delay.patience(start + 2 * SECOND), Some(2 * SECOND));
        // It counts for as long again, whatever else is measured, and the peer is worth another question.
        delay.on_round(start + 16 * SECOND, 3 * SECOND);
        assert!(delay.is_guessed());
        assert_eq!(delay.least(start + 30 * SECOND), Some(SECOND));
        assert_eq!(delay.least(start + 31 * SECOND), Some(3 * SECOND));
        // What was long ago does not count at all.
        assert_eq!(delay.least(start + 100 * SECOND), None);
        // No way is so short that it would matter.
        delay.on_answer(start + 100 * SECOND, Duration::ZERO);
        assert_eq!(delay.patience(start + 100 * SECOND), Some(2 * LEAST));
    }

    proptest! {
        /// However windows come and go, all of them together have no more than there is, and each gets no more than it leaves.
        #[test]
        fn a_share_is_no_more_than_what_is_left(
            size in 0u32..2000,
            steps in prop::collection::vec((0usize..8, 0u8..4, 1u32..2000), 0..200),
        ) {
            let mut pool = Pool::default();
            let mut grown = [0u32; 8];
            for (id, step, wanted) in steps {
                if step == 0 {
                    let back = wanted.min(grown[id]);
                    grown[id] -= back;
                    pool.give_back(back);
                } else {
                    let more = wanted.min(pool.share(size, grown[id]));
                    grown[id] += more;
                    pool.take(more);
                    prop_assert!(more == 0 || grown[id] <= size - pool.taken, "{grown:?} of {size}");
                }
                prop_assert_eq!(pool.taken, grown.iter().sum::<u32>());
                prop_assert!(pool.taken <= size);
                prop_assert_eq!(pool.bytes(10), pool.taken as usize * 10);
            }
        }
    }
}
