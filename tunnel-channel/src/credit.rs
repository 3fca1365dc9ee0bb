//! Who may send how much: one token is one DATA message (wire-reference 6.7).
//!
//! All arithmetic on tokens is in this file and checked. What overflows is the peer's fault, and the caller hears of it.
//! When a window grows, and by how much, is `growth`'s business.

use std::time::{Duration, Instant};

/// What the peer still allows us to send on one socket, in DATA messages.
///
/// The first grant (in OPEN or OPEN_ACK) sets it, every TOKEN adds to it, every DATA takes one away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendCredit {
    available: u32,
}

/// A TOKEN would lift the credit above what a u32 holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditOverflow {
    pub(crate) had: u32,
    pub(crate) granted: u32,
}

impl SendCredit {
    pub(crate) fn new(granted: u32) -> Self {
        SendCredit { available: granted }
    }

    pub(crate) fn available(self) -> u32 {
        self.available
    }

    /// Takes one token for one DATA message. `false`: there was none, and nothing may be sent.
    pub(crate) fn charge(&mut self) -> bool {
        match self.available.checked_sub(1) {
            Some(rest) => {
                self.available = rest;
                true
            }
            None => false,
        }
    }

    /// Adds what a TOKEN brought. `Ok(true)`: there was none before, so the owner may write again.
    pub(crate) fn add(&mut self, granted: u32) -> Result<bool, CreditOverflow> {
        let had = self.available;
        self.available = had.checked_add(granted).ok_or(CreditOverflow { had, granted })?;
        Ok(had == 0 && granted > 0)
    }
}

/// How much we grant, and in what portions it goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The grant of a new socket. INVARIANT: at least 1.
    pub(crate) window: u32,
    /// What it may grow to. INVARIANT: not below `window`.
    pub(crate) most: u32,
    pub(crate) batch: Batch,
}

/// The portion in which credit is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Portions of exactly this many, as the historical ends send them.
    Exactly(u32),
    /// Everything that is owed, once it is a quarter of the window that there is, or [`LARGEST_PORTION`]: rare enough to
    /// cost little, early enough that the sender never runs dry while the receiver keeps up, and never more than the
    /// window itself, however small that is.
    Quarter,
}

/// Messages delivered after which credit returns however large the window is, so that it does not come in bursts.
const LARGEST_PORTION: u32 = 16;

impl Policy {
    /// Windows that begin with `window` and may grow to `most`; not at all where that is less.
    pub(crate) fn growing(window: u32, most: u32) -> Self {
        let window = window.max(1);
        Policy { window, most: most.max(window), batch: Batch::Quarter }
    }

    /// The historical fixed portion. INVARIANT: `portion` is not above `window`, or the peer would starve.
    pub(crate) fn portions_of(portion: u32, window: u32) -> Self {
        Policy { window, most: window, batch: Batch::Exactly(portion.clamp(1, window.max(1))) }
    }

    /// Whether windows are more than a number that was said once.
    pub(crate) fn grows(self) -> bool {
        self.most > self.window
    }
}

/// What we allow the peer to send on one socket, and what has become of it.
///
/// INVARIANT: `remaining + undelivered + owed` is the window, at all times: what was granted at first, and `grown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvWindow {
    /// Messages that the peer may still send.
    remaining: u32,
    /// Messages that came and have not reached the local sink.
    undelivered: u32,
    /// Messages that reached the local sink and were not yet returned as credit.
    owed: u32,
    /// What the window has grown by since the first grant.
    grown: u32,
    /// Bytes in the undelivered messages.
    bytes: usize,
    round: Option<Round>,
}

/// As many messages as the window: at least one of them was sent on a token that was granted after the round's begin. So
/// a round takes a round trip or more, and hardly more if the peer had to wait for its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    began: Instant,
    /// Messages still to come. INVARIANT: not 0.
    left: u32,
    bytes: u32,
}

/// A round that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turnaround {
    pub(crate) took: Duration,
    /// In all its messages.
    pub(crate) bytes: u32,
}

/// The peer sent DATA without credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Credit that was taken out of the books and that the peer must now be told of.
#[must_use = "the peer must be told of this credit, or it is lost"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announce(pub(crate) u32);

impl RecvWindow {
    /// A peer that may send so many messages.
    pub(crate) fn new(granted: u32) -> Self {
        RecvWindow { remaining: granted, undelivered: 0, owed: 0, grown: 0, bytes: 0, round: None }
    }

    /// All tokens that there are, wherever they are.
    pub(crate) fn total(self) -> u32 {
        // Cannot overflow: it is what was granted at first and what was added, both of which were checked.
        self.remaining.saturating_add(self.undelivered).saturating_add(self.owed)
    }

    /// What the window has grown by since the first grant.
    pub(crate) fn grown(self) -> u32 {
        self.grown
    }

    /// Messages that the peer may still send, as we know it.
    #[cfg(any(test, feature = "test-pair"))]
    pub(crate) fn remaining(self) -> u32 {
        self.remaining
    }

    /// Credit that is due to the peer and not yet announced.
    #[cfg(any(test, feature = "test-pair"))]
    pub(crate) fn owed(self) -> u32 {
        self.owed
    }

    /// Messages that came and have not reached the local sink.
    pub(crate) fn undelivered(self) -> u32 {
        self.undelivered
    }

    /// Bytes that came and have not reached the local sink. An estimate while some of the messages have; exact at
    /// zero, and exact before the first.
    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }

    /// A DATA message of `length` bytes came.
    pub(crate) fn arrive(&mut self, length: usize) -> Result<(), Overrun> {
        self.remaining = self.remaining.checked_sub(1).ok_or(Overrun)?;
        // Cannot overflow: the three sum up to the window, which is a u32.
        self.undelivered = self.undelivered.saturating_add(1);
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }

    /// A DATA message without a byte came: there is nothing to deliver, so its token is owed at once.
    pub(crate) fn absorb(&mut self) -> Result<(), Overrun> {
        self.remaining = self.remaining.checked_sub(1).ok_or(Overrun)?;
        self.owed = self.owed.saturating_add(1);
        Ok(())
    }

    /// The local sink took the oldest `messages`; more than there are count as all. Gives the bytes that are thereby
    /// off our hands. Sizes of single messages are not kept, so that an idle socket stays small: each counts as the
    /// average of those waiting.
    pub(crate) fn deliver(&mut self, messages: u32) -> usize {
        let messages = messages.min(self.undelivered);
        let freed = if messages == self.undelivered {
            self.bytes
        } else {
            let average = self.bytes / (self.undelivered as usize).max(1);
            average.saturating_mul(messages as usize).min(self.bytes)
        };
        self.undelivered -= messages;
        self.owed = self.owed.saturating_add(messages);
        self.bytes -= freed;
        freed
    }

    /// To be called for every message that arrived, with its length. Gives what became of the round, if it is over.
    ///
    /// One that takes longer than `patience` says that the peer did not wait for tokens, and nothing else: it begins
    /// anew at once, so that a burst behind a pause is measured by itself.
    pub(crate) fn measure(
        &mut self,
        now: Instant,
        length: usize,
        patience: Option<Duration>,
    ) -> Option<Turnaround> {
        let next = Some(Round { began: now, left: self.total().max(1), bytes: 0 });
        let Some(round) = &mut self.round else {
            self.round = next;
            return None;
        };
        let took = now.saturating_duration_since(round.began);
        if patience.is_some_and(|patience| took > patience) {
            self.round = next;
            return None;
        }
        let bytes = round.bytes.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        if round.left > 1 {
            *round = Round { left: round.left - 1, bytes, ..*round };
            return None;
        }
        self.round = next;
        Some(Turnaround { took, bytes })
    }

    /// Adds tokens to the window, which are owed to the peer at once. The round begins anew.
    pub(crate) fn grow(&mut self, tokens: u32) {
        let tokens = tokens.min(u32::MAX - self.total());
        self.owed += tokens;
        self.grown = self.grown.saturating_add(tokens);
        self.round = None;
    }

    /// Takes from what is owed the tokens that the window has grown by. Gives how many.
    pub(crate) fn shrink(&mut self) -> u32 {
        let tokens = self.owed.min(self.grown);
        self.owed -= tokens;
        self.grown -= tokens;
        if tokens > 0 {
            self.round = None;
        }
        tokens
    }

    /// Takes out one portion of credit, if enough is owed for one. Call it until it gives `None`.
    pub(crate) fn take_due(&mut self, policy: Policy) -> Option<Announce> {
        let (least, portion) = match policy.batch {
            Batch::Exactly(portion) => (portion, portion),
            Batch::Quarter => ((self.total() / 4).clamp(1, LARGEST_PORTION), self.owed),
        };
        (self.owed >= least).then(|| self.announce(portion))
    }

    /// Takes out a single token for a peer that has none, when nothing of it waits here. So a socket whose sink keeps
    /// up goes on, message by message, while others use up the memory budget. Never in fixed portions.
    pub(crate) fn take_trickle(&mut self, policy: Policy) -> Option<Announce> {
        match policy.batch {
            Batch::Quarter if self.remaining == 0 && self.undelivered == 0 && self.owed > 0 => {
                Some(self.announce(1))
            }
            Batch::Quarter | Batch::Exactly(_) => None,
        }
    }

    fn announce(&mut self, portion: u32) -> Announce {
        let portion = portion.min(self.owed);
        self.owed -= portion;
        self.remaining = self.remaining.saturating_add(portion);
        Announce(portion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_pays_for_one_message() {
        let mut credit = SendCredit::new(2);
        assert!(credit.charge());
        assert!(credit.charge());
        assert!(!credit.charge());
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn only_the_first_token_after_none_wakes_the_writer() {
        let mut credit = SendCredit::new(0);
        assert_eq!(credit.add(0), Ok(false));
        assert_eq!(credit.add(3), Ok(true));
        assert_eq!(credit.add(3), Ok(false));
        assert_eq!(credit.available(), 6);
    }

    #[test]
    fn a_wrapping_grant_is_refused_and_changes_nothing() {
        let mut credit = SendCredit::new(u32::MAX);
        assert_eq!(credit.add(0), Ok(false));
        assert_eq!(credit.add(1), Err(CreditOverflow { had: u32::MAX, granted: 1 }));
        assert_eq!(credit.available(), u32::MAX);
    }

    #[test]
    fn the_portion_never_exceeds_the_window() {
        for window in [1, 2, 3, 4, 5, 19, 63, 64, 65, 1000, u32::MAX] {
            for policy in [Policy::growing(window, 0), Policy::portions_of(20, window)] {
                assert_eq!(policy.window, window);
                let mut books = RecvWindow::new(window);
                // All of it used and delivered: the peer waits, and must be told of something.
                (books.remaining, books.owed) = (0, window);
                let Announce(portion) = books.take_due(policy).expect("or the peer starves");
                assert!(portion >= 1 && portion <= window, "window {window}: {policy:?}");
            }
        }
        assert_eq!(Policy::growing(0, 0).window, 1);
    }

    #[test]
    fn historical_portions_are_exact() {
        let policy = Policy::portions_of(20, 80);
        assert!(!policy.grows());
        let mut window = RecvWindow::new(80);
        for _ in 0..80 {
            window.arrive(10).unwrap();
        }
        assert_eq!(window.arrive(10), Err(Overrun));
        window.deliver(19);
        assert_eq!(window.take_due(policy), None);
        window.deliver(40);
        assert_eq!(window.take_due(policy), Some(Announce(20)));
        assert_eq!(window.take_due(policy), Some(Announce(20)));
        assert_eq!(window.take_due(policy), None);
        assert_eq!((window.remaining(), window.undelivered(), window.owed()), (40, 21, 19));
    }

    #[test]
    fn credit_comes_back_on_delivery_and_not_on_arrival() {
        let policy = Policy::growing(4, 4);
        let mut window = RecvWindow::new(4);
        for _ in 0..4 {
            window.arrive(1).unwrap();
            assert_eq!(window.take_due(policy), None);
        }
        window.deliver(1);
        assert_eq!(window.take_due(policy), Some(Announce(1)));
    }

    #[test]
    fn the_portion_follows_the_window_up_to_a_point() {
        let policy = Policy::growing(8, 1000);
        let mut books = RecvWindow::new(8);
        for (more, portion) in [(0, 2), (8, 4), (16, 8), (32, 16), (64, 16), (800, 16)] {
            books.grow(more);
            while let Some(Announce(_)) = books.take_due(policy) {}
            assert_eq!(books.owed, 0, "a window that doubles is told of at once");
            for _ in 1..portion {
                books.arrive(1).unwrap();
                books.deliver(1);
                assert_eq!(books.take_due(policy), None, "window {}", books.total());
            }
            books.arrive(1).unwrap();
            books.deliver(1);
            assert_eq!(books.take_due(policy), Some(Announce(portion)));
        }
    }

    #[test]
    fn the_trickle_is_for_the_starved_only() {
        let policy = Policy::growing(2, 2);
        let mut window = RecvWindow::new(2);
        window.arrive(1).unwrap();
        window.deliver(1);
        assert_eq!(window.take_trickle(policy), None, "the peer still has a token");
        window.arrive(1).unwrap();
        assert_eq!(window.take_trickle(policy), None, "a message still waits here");
        window.deliver(1);
        assert_eq!(window.take_trickle(policy), Some(Announce(1)));
        assert_eq!(window.take_trickle(policy), None);
    }

    #[test]
    fn only_what_has_grown_and_is_owed_can_be_taken_back() {
        let policy = Policy::growing(4, 100);
        let mut window = RecvWindow::new(4);
        assert_eq!(window.shrink(), 0);
        window.grow(6);
        assert_eq!((window.total(), window.grown(), window.owed()), (10, 6, 6));
        assert_eq!(window.take_due(policy), Some(Announce(6)));
        assert_eq!(window.shrink(), 0, "the peer was told of them");
        for _ in 0..3 {
            window.arrive(1).unwrap();
        }
        window.deliver(2);
        assert_eq!((window.shrink(), window.total(), window.grown()), (2, 8, 4));
        for _ in 0..7 {
            window.arrive(1).unwrap();
        }
        window.deliver(8);
        assert_eq!((window.shrink(), window.total(), window.grown()), (4, 4, 0));
        assert_eq!(window.take_due(policy), Some(Announce(4)), "what it began with stays");
    }

    #[test]
    fn a_round_is_a_window_of_messages() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut window = RecvWindow::new(4);
        let mut come = |ms, patience: Option<u64>| {
            window.arrive(100).unwrap();
            window.deliver(1);
            let _ = window.take_due(Policy::growing(4, 4));
            window.measure(at(ms), 100, patience.map(Duration::from_millis))
        };
        assert_eq!(come(0, None), None, "the first message begins one");
        assert_eq!([come(10, None), come(20, None), come(30, None)], [None; 3]);
        let over = Turnaround { took: Duration::from_millis(1000), bytes: 400 };
        assert_eq!(come(1000, None), Some(over));
        // The last message of a round begins the next.
        assert_eq!([come(1001, Some(20)), come(1002, Some(20)), come(1003, Some(20))], [None; 3]);
        let over = Turnaround { took: Duration::from_millis(20), bytes: 400 };
        assert_eq!(come(1020, Some(20)), Some(over));
        // A pause ends a round, and what comes behind it is measured by itself.
        assert_eq!([come(1021, Some(20)), come(2000, Some(20))], [None; 2]);
        assert_eq!([come(2001, Some(20)), come(2002, Some(20)), come(2003, Some(20))], [None; 3]);
        let over = Turnaround { took: Duration::from_millis(4), bytes: 400 };
        assert_eq!(come(2004, Some(20)), Some(over));
    }

    proptest! {
        #[test]
        fn the_books_balance(
            window in 1u32..200,
            fixed: bool,
            steps in prop::collection::vec((0u8..7, 0u32..90), 0..400),
        ) {
            let policy = if fixed { Policy::portions_of(20, window) } else { Policy::growing(window, 1000) };
            let mut books = RecvWindow::new(window);
            // What the peer may have sent, as it sees it, what is here, and the window.
            let (mut credit, mut here, mut total) = (window, 0u32, window);
            let mut bytes = 0usize;
            let mut now = Instant::now();
            for (step, amount) in steps {
                match step {
                    0 => match books.arrive(amount as usize) {
                        Ok(()) => { bytes += amount as usize; here += 1; credit -= 1; }
                        Err(Overrun) => prop_assert_eq!(credit, 0),
                    },
                    1 => {
                        bytes -= books.deliver(amount);
                        here -= amount.min(here);
                    }
                    2 => match books.absorb() {
                        Ok(()) => credit -= 1,
                        Err(Overrun) => prop_assert_eq!(credit, 0),
                    },
                    3 if policy.grows() => { books.grow(amount); total += amount; }
                    4 => {
                        let back = books.shrink();
                        prop_assert!(back <= total - window, "the first grant was touched");
                        total -= back;
                    }
                    5 => {
                        now += Duration::from_millis(u64::from(amount));
                        let patience = amount.is_multiple_of(2).then_some(Duration::from_millis(200));
                        if let Some(Turnaround { took, .. }) = books.measure(now, 1, patience) {
                            prop_assert!(patience.is_none_or(|patience| took <= patience));
                        }
                    }
                    _ => while let Some(Announce(n)) = books.take_due(policy) {
                        prop_assert!(n > 0);
                        credit += n;
                    },
                }
                prop_assert_eq!(books.bytes(), bytes);
                prop_assert_eq!(books.remaining() + books.undelivered() + books.owed(), total);
                prop_assert_eq!((books.remaining(), books.undelivered()), (credit, here));
                prop_assert_eq!((books.total(), books.grown()), (total, total - window));
                if books.undelivered() == 0 { prop_assert_eq!(books.bytes(), 0) }
            }
            // Whatever happened, a peer that has nothing left is not left alone once everything is delivered.
            books.deliver(u32::MAX);
            let _ = books.shrink();
            let due = books.take_due(policy);
            prop_assert!(books.remaining() > 0, "starved: {books:?}, {due:?}");
        }
    }
}
