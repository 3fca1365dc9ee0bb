//! A bad cable: loses, duplicates and reorders frames, the same way for the same seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::device::Frame;

/// How bad the cable is. Each number is a chance in a thousand, for each frame, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trouble {
    /// Frames that vanish.
    pub loss: u16,
    /// Frames that come twice.
    pub duplicate: u16,
    /// Frames that are overtaken by those of the next few milliseconds.
    pub reorder: u16,
}

impl Trouble {
    /// The perfect cable.
    pub const NONE: Self = Self { loss: 0, duplicate: 0, reorder: 0 };
}

/// How long an overtaken frame is held back.
const HELD_FOR: Duration = Duration::from_millis(3);

/// One direction of the cable.
#[derive(Debug)]
pub(super) struct Cable {
    trouble: Trouble,
    random: Random,
    /// INVARIANT: ordered by time, since each is held for the same while.
    held: VecDeque<(Instant, Frame)>,
}

impl Cable {
    pub(super) fn new(trouble: Trouble, seed: u64) -> Self {
        Self { trouble, random: Random::new(seed), held: VecDeque::new() }
    }

    pub(super) fn is_perfect(&self) -> bool {
        self.trouble == Trouble::NONE
    }

    /// What becomes of a frame: none, one or two come out now, or one later through [`Cable::due`].
    pub(super) fn pass(&mut self, now: Instant, frame: Frame, mut out: impl FnMut(Frame)) {
        if self.random.chance(self.trouble.loss) {
            return;
        }
        if self.random.chance(self.trouble.reorder) {
            self.held.push_back((now + HELD_FOR, frame));
            return;
        }
        if self.random.chance(self.trouble.duplicate) {
            out(frame.clone());
        }
        out(frame);
    }

    /// A held frame whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Frame> {
        let (at, _) = self.held.front()?;
        if *at > now {
            return None;
        }
        self.held.pop_front().map(|(_, frame)| frame)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.held.front().map(|(at, _)| *at)
    }
}

/// SplitMix64: small, seeded, good enough to choose victims and sequence numbers.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn chance(&mut self, in_a_thousand: u16) -> bool {
        in_a_thousand > 0 && self.next() % 1000 < u64::from(in_a_thousand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(trouble: Trouble, seed: u64) -> Vec<u8> {
        let mut cable = Cable::new(trouble, seed);
        let mut now = Instant::now();
        let mut seen = Vec::new();
        for number in 0..200u8 {
            cable.pass(now, Frame::copy_of(&[number]), |frame| seen.push(frame.bytes()[0]));
            now += Duration::from_millis(1);
            while let Some(frame) = cable.due(now) {
                seen.push(frame.bytes()[0]);
            }
        }
        seen
    }

    #[test]
    fn a_perfect_cable_changes_nothing() {
        assert_eq!(run(Trouble::NONE, 1), (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn a_bad_cable_does_all_three_and_the_same_for_the_same_seed() {
        let trouble = Trouble { loss: 50, duplicate: 50, reorder: 50 };
        let seen = run(trouble, 7);
        assert_eq!(seen, run(trouble, 7));
        assert_ne!(seen, run(trouble, 8));
        assert!((0..200).any(|number| !seen.contains(&number)), "nothing was lost");
        assert!(seen.windows(2).any(|pair| pair[0] == pair[1]), "nothing came twice");
        assert!(seen.windows(2).any(|pair| pair[0] > pair[1]), "nothing was overtaken");
    }
}
