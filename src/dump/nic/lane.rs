//! Two copies of one byte stream that come at different times, compared as they come.

use std::collections::VecDeque;

/// Which of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Tunnel,
    Guest,
}

/// One direction of a pair. What one side is ahead of the other waits here.
#[derive(Debug)]
pub(super) struct Lane {
    /// Bytes so far, compared or not.
    tunnel: u64,
    guest: u64,
    /// Bytes that were found the same.
    compared: u64,
    /// What `leader` has and the other does not have yet.
    ahead: VecDeque<u8>,
    leader: Side,
    /// A side of which nothing more comes.
    tunnel_over: bool,
    guest_over: bool,
    /// Why nothing is compared any more.
    stop: Option<Stop>,
}

/// Why the comparison of a direction ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// This byte is not the same.
    Difference { offset: u64, tunnel: u8, guest: u8 },
    /// One of the captures lacks bytes here.
    Hole { side: Side, offset: u64 },
    /// One side is further ahead than can be kept.
    TooFarApart { offset: u64 },
}

/// How much all lanes keep.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// What the tunnel is ahead, and what the guest's card is, bytes over all lanes.
    tunnel: usize,
    guest: usize,
}

/// A lane keeps no more.
const MAX_LANE: usize = 16 << 20;
/// All lanes keep no more.
const MAX_ALL: usize = 64 << 20;

impl Room {
    /// Whether so much of one side waits for the other that the other is to be read first.
    pub(super) fn is_crowded(&self, side: Side) -> bool {
        match side {
            Side::Tunnel => self.tunnel > MAX_ALL / 4,
            Side::Guest => self.guest > MAX_ALL / 4,
        }
    }

    fn of(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Tunnel => &mut self.tunnel,
            Side::Guest => &mut self.guest,
        }
    }
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            tunnel: 0,
            guest: 0,
            compared: 0,
            ahead: VecDeque::new(),
            leader: Side::Tunnel,
            tunnel_over: false,
            guest_over: false,
            stop: None,
        }
    }

    /// Bytes that one side had.
    pub(super) fn count(&self, side: Side) -> u64 {
        match side {
            Side::Tunnel => self.tunnel,
            Side::Guest => self.guest,
        }
    }

    /// Bytes that are the same, from the first one on.
    pub(super) fn compared(&self) -> u64 {
        self.compared
    }

    pub(super) fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// One side has more bytes.
    pub(super) fn feed(&mut self, side: Side, bytes: &[u8], room: &mut Room) {
        let count = match side {
            Side::Tunnel => &mut self.tunnel,
            Side::Guest => &mut self.guest,
        };
        *count = count.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.stop.is_some() {
            return;
        }
        let rest = if self.leader == side { bytes } else { self.compare(side, bytes, room) };
        if self.stop.is_none() && !rest.is_empty() {
            self.keep(side, rest, room);
        }
    }

    /// Takes over what the guest's side had, which was kept in a lane of its own until it was known to belong here.
    pub(super) fn join(&mut self, mut guest: Lane, room: &mut Room) {
        let held = room.of(Side::Guest);
        *held = held.saturating_sub(guest.ahead.len());
        let ahead = std::mem::take(&mut guest.ahead);
        let (front, back) = ahead.as_slices();
        self.feed(Side::Guest, front, room);
        self.feed(Side::Guest, back, room);
        self.guest = guest.guest;
        if let (None, Some(stop)) = (self.stop, guest.stop) {
            self.stop_at(stop, room);
        }
        if guest.guest_over {
            self.end(Side::Guest, room);
        }
    }

    /// Bytes of one side are missing in its capture.
    pub(super) fn hole(&mut self, side: Side, room: &mut Room) {
        let offset = self.count(side);
        if self.stop.is_none() {
            self.stop_at(Stop::Hole { side, offset }, room);
        }
    }

    /// Nothing more comes of one side: what the other has beyond is counted, not kept.
    pub(super) fn end(&mut self, side: Side, room: &mut Room) {
        match side {
            Side::Tunnel => self.tunnel_over = true,
            Side::Guest => self.guest_over = true,
        }
        if self.leader != side {
            self.forget(room);
        }
    }

    /// Compares with what the other side is ahead. Returns what is beyond that.
    fn compare<'a>(&mut self, side: Side, bytes: &'a [u8], room: &mut Room) -> &'a [u8] {
        let common = bytes.len().min(self.ahead.len());
        let (now, rest) = bytes.split_at_checked(common).unwrap_or((bytes, &[]));
        let mut left = now;
        while !left.is_empty() {
            let (front, _) = self.ahead.as_slices();
            let step = front.len().min(left.len());
            let (Some(theirs), Some((ours, behind))) = (front.get(..step), left.split_at_checked(step))
            else {
                break;
            };
            if let Some((place, theirs, ours)) = first_difference(theirs, ours) {
                self.compared = self.compared.saturating_add(place);
                let (tunnel, guest) = match side {
                    Side::Tunnel => (ours, theirs),
                    Side::Guest => (theirs, ours),
                };
                self.stop_at(Stop::Difference { offset: self.compared, tunnel, guest }, room);
                return &[];
            }
            self.ahead.drain(..step);
            self.compared = self.compared.saturating_add(u64::try_from(step).unwrap_or(u64::MAX));
            let held = room.of(self.leader);
            *held = held.saturating_sub(step);
            left = behind;
        }
        rest
    }

    fn keep(&mut self, side: Side, bytes: &[u8], room: &mut Room) {
        self.leader = side;
        let other_over = match side {
            Side::Tunnel => self.guest_over,
            Side::Guest => self.tunnel_over,
        };
        if other_over {
            return;
        }
        let total = room.tunnel.saturating_add(room.guest).saturating_add(bytes.len());
        if self.ahead.len().saturating_add(bytes.len()) > MAX_LANE || total > MAX_ALL {
            let offset = self.compared;
            self.stop_at(Stop::TooFarApart { offset }, room);
            return;
        }
        self.ahead.extend(bytes);
        let held = room.of(side);
        *held = held.saturating_add(bytes.len());
    }

    fn stop_at(&mut self, stop: Stop, room: &mut Room) {
        self.stop = Some(stop);
        self.forget(room);
    }

    fn forget(&mut self, room: &mut Room) {
        let held = room.of(self.leader);
        *held = held.saturating_sub(self.ahead.len());
        self.ahead = VecDeque::new();
    }
}

/// Where two pieces of the same length differ first, and what is there.
fn first_difference(one: &[u8], other: &[u8]) -> Option<(u64, u8, u8)> {
    // The usual case, much faster than looking at each.
    if one == other {
        return None;
    }
    let (place, (one, other)) = one.iter().zip(other).enumerate().find(|(_, (one, other))| one != other)?;
    Some((u64::try_from(place).unwrap_or(u64::MAX), *one, *other))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the two copies come, they are found the same to the end of the shorter one, and nothing is kept then.
        #[test]
        fn equal_copies_are_the_same_however_they_come(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            tunnel in 0..300usize,
            guest in 0..300usize,
            turns in prop::collection::vec((any::<bool>(), 1..40usize), 0..60),
        ) {
            let copies = [&bytes[..tunnel.min(bytes.len())], &bytes[..guest.min(bytes.len())]];
            let (mut lane, mut room) = (Lane::new(), Room::default());
            let mut at = [0, 0];
            let rest = [(false, usize::MAX), (true, usize::MAX)];
            for (which, len) in turns.into_iter().chain(rest) {
                let (side, index) = if which { (Side::Guest, 1) } else { (Side::Tunnel, 0) };
                let end = at[index] + len.min(copies[index].len() - at[index]);
                lane.feed(side, &copies[index][at[index]..end], &mut room);
                at[index] = end;
            }
            prop_assert_eq!(lane.stop(), None);
            prop_assert_eq!(lane.compared(), copies[0].len().min(copies[1].len()) as u64);
            prop_assert_eq!(lane.count(Side::Guest), copies[1].len() as u64);
            prop_assert_eq!(room.tunnel + room.guest, copies[0].len().abs_diff(copies[1].len()));
            lane.end(Side::Tunnel, &mut room);
            lane.end(Side::Guest, &mut room);
            prop_assert_eq!(room.tunnel + room.guest, 0);
        }

        /// A changed byte is found, and where.
        #[test]
        fn a_changed_byte_is_found(
            bytes in prop::collection::vec(any::<u8>(), 1..300),
            place in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let place = place.index(bytes.len());
            let cut = cut.index(bytes.len());
            let mut changed = bytes.clone();
            changed[place] ^= 0x20;
            let (mut lane, mut room) = (Lane::new(), Room::default());
            lane.feed(Side::Guest, &bytes[..cut], &mut room);
            lane.feed(Side::Tunnel, &changed, &mut room);
            lane.feed(Side::Guest, &bytes[cut..], &mut room);
            let (tunnel, guest) = (changed[place], bytes[place]);
            prop_assert_eq!(lane.stop(), Some(Stop::Difference { offset: place as u64, tunnel, guest }));
            prop_assert_eq!(room.tunnel + room.guest, 0);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_not_called_the_same() {
        let (mut lane, mut room) = (Lane::new(), Room::default());
        let piece = vec![7; 1 << 20];
        for _ in 0..16 {
            lane.feed(Side::Guest, &piece, &mut room);
        }
        assert_eq!(lane.stop(), None);
        assert!(!room.is_crowded(Side::Tunnel));
        lane.feed(Side::Guest, &piece, &mut room);
        assert_eq!(lane.stop(), Some(Stop::TooFarApart { offset: 0 }));
        assert_eq!(room.guest, 0);
        // What nobody waits for is counted, and not kept.
        let mut over = Lane::new();
        over.end(Side::Tunnel, &mut room);
        for _ in 0..100 {
            over.feed(Side::Guest, &piece, &mut room);
        }
        assert_eq!((over.stop(), over.count(Side::Guest), room.guest), (None, 100 << 20, 0));
    }
}
