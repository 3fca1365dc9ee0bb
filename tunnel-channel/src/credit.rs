//! Who may send how much: one token is one DATA message (wire-reference 6.7).
//!
//! All arithmetic on tokens is in this file and checked. What overflows is the peer's fault, and the caller hears of it.

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
    pub(crate) batch: Batch,
}

/// The portion in which credit is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Portions of exactly this many, as the historical ends send them.
    Exactly(u32),
    /// Everything that is owed, once it is at least this many.
    AtLeast(u32),
}

impl Policy {
    /// Returns a quarter of the window at a time: rare enough to cost little, early enough that the sender never
    /// runs dry while the receiver keeps up, and never more than the window itself, however small that is.
    pub(crate) fn fraction_of(window: u32) -> Self {
        let window = window.max(1);
        Policy { window, batch: Batch::AtLeast((window / 4).max(1)) }
    }

    /// The historical fixed portion. INVARIANT: `portion` is not above `window`, or the peer would starve.
    pub(crate) fn portions_of(portion: u32, window: u32) -> Self {
        Policy { window, batch: Batch::Exactly(portion.clamp(1, window.max(1))) }
    }
}

/// What we allow the peer to send on one socket, and what has become of it.
///
/// INVARIANT: `remaining + undelivered + owed` is the window that was granted, at all times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvWindow {
    /// Messages that the peer may still send.
    remaining: u32,
    /// Messages that came and have not reached the local sink.
    undelivered: u32,
    /// Messages that reached the local sink and were not yet returned as credit.
    owed: u32,
    /// Bytes in the undelivered messages.
    bytes: usize,
}

/// The peer sent DATA without credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Credit that was taken out of the books and that the peer must now be told of.
#[must_use = "the peer must be told of this credit, or it is lost"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announce(pub(crate) u32);

impl RecvWindow {
    pub(crate) fn new(policy: Policy) -> Self {
        RecvWindow { remaining: policy.window, undelivered: 0, owed: 0, bytes: 0 }
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

    /// Takes out one portion of credit, if enough is owed for one. Call it until it gives `None`.
    pub(crate) fn take_due(&mut self, policy: Policy) -> Option<Announce> {
        let portion = match policy.batch {
            Batch::Exactly(portion) if self.owed >= portion => portion,
            Batch::AtLeast(least) if self.owed >= least => self.owed,
            Batch::Exactly(_) | Batch::AtLeast(_) => return None,
        };
        Some(self.announce(portion))
    }

    /// Takes out a single token for a peer that has none, when nothing of it waits here. So a socket whose sink keeps
    /// up goes on, message by message, while others use up the memory budget. Never in fixed portions.
    pub(crate) fn take_trickle(&mut self, policy: Policy) -> Option<Announce> {
        match policy.batch {
            Batch::AtLeast(_) if self.remaining == 0 && self.undelivered == 0 && self.owed > 0 => {
                Some(self.announce(1))
            }
            Batch::AtLeast(_) | Batch::Exactly(_) => None,
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
        for window in [0, 1, 2, 3, 4, 5, 19, 64, u32::MAX] {
            for policy in [Policy::fraction_of(window), Policy::portions_of(20, window.max(1))] {
                let portion = match policy.batch {
                    Batch::Exactly(n) | Batch::AtLeast(n) => n,
                };
                assert!(portion >= 1 && portion <= policy.window, "window {window}: {policy:?}");
            }
        }
    }

    #[test]
    fn historical_portions_are_exact() {
        let policy = Policy::portions_of(20, 80);
        let mut window = RecvWindow::new(policy);
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
        let policy = Policy::fraction_of(4);
        let mut window = RecvWindow::new(policy);
        for _ in 0..4 {
            window.arrive(1).unwrap();
            assert_eq!(window.take_due(policy), None);
        }
        window.deliver(1);
        assert_eq!(window.take_due(policy), Some(Announce(1)));
    }

    #[test]
    fn the_trickle_is_for_the_starved_only() {
        let policy = Policy::fraction_of(2);
        let mut window = RecvWindow::new(policy);
        window.arrive(1).unwrap();
        window.deliver(1);
        assert_eq!(window.take_trickle(policy), None, "the peer still has a token");
        window.arrive(1).unwrap();
        assert_eq!(window.take_trickle(policy), None, "a message still waits here");
        window.deliver(1);
        assert_eq!(window.take_trickle(policy), Some(Announce(1)));
        assert_eq!(window.take_trickle(policy), None);
    }

    proptest! {
        #[test]
        fn the_books_balance(window in 1u32..200, fixed: bool, steps in prop::collection::vec((0u8..4, 0u32..90), 0..400)) {
            let policy = if fixed { Policy::portions_of(20, window) } else { Policy::fraction_of(window) };
            let mut books = RecvWindow::new(policy);
            let mut bytes = 0usize;
            for (step, amount) in steps {
                match step {
                    0 => if books.arrive(amount as usize).is_ok() { bytes += amount as usize },
                    1 => bytes -= books.deliver(amount),
                    2 => { let _ = books.absorb(); }
                    _ => while let Some(Announce(n)) = books.take_due(policy) { prop_assert!(n > 0) },
                }
                prop_assert_eq!(books.bytes(), bytes);
                prop_assert_eq!(books.remaining() + books.undelivered() + books.owed(), window);
                if books.undelivered() == 0 { prop_assert_eq!(books.bytes(), 0) }
            }
        }
    }
}
