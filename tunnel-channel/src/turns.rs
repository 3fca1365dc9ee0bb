//! Whose turn it is to send.
//!
//! # Theory of operation
//!
//! Deficit round-robin by bytes, with the two lists that FQ-CoDel (RFC 8290, 4.2) has. A socket that comes to have something
//! to say is *fresh* and goes before all that are *busy*, so that a keystroke does not wait for bulk. It may send a
//! quantum, in as many messages as it likes, and then joins the busy ones at their end; so it does when it has no more to say.
//! A busy one that has none at its turn is in neither list, and can become fresh again. So whoever speaks little at a time is
//! heard at once, but no more than twice before everybody busy was heard.
//!
//! A message may be longer than what is left of a quantum; the next turns pay for it.

use std::collections::VecDeque;

use spice_proto::tunnel::SocketId;

/// The order in which sockets send. Knows nothing of the sockets but their ids: one that is gone has nothing to say.
///
/// ```text
/// Absent --ready--> Fresh --quantum used up, nothing to say--> Busy --nothing to say--> Absent
/// ```
#[derive(Debug, Default)]
pub struct Turns {
    fresh: VecDeque<SocketId>,
    busy: VecDeque<SocketId>,
    /// By socket id; grown on demand. INVARIANT: says in which of the two lists an id is, once.
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    list: List,
    /// Bytes that it may still send in this turn. Below 0 it has sent more than that.
    left: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum List {
    #[default]
    Absent,
    Fresh,
    Busy,
}

/// Bytes that a socket may send in one turn: some messages of the usual length, so that whoever takes them, a guest's card or a service, gets long
/// pieces. Turns of one message each carried a tenth less on 64 connections.
const QUANTUM: i64 = 128 << 10;

impl Turns {
    /// A socket may have something to send. No effect if that is known.
    pub fn ready(&mut self, socket: SocketId) {
        let index = usize::from(socket.0);
        if self.places.len() <= index {
            self.places.resize(index + 1, Place::default());
        }
        if let Some(place @ Place { list: List::Absent, .. }) = self.places.get_mut(index) {
            *place = Place { list: List::Fresh, left: QUANTUM };
            self.fresh.push_back(socket);
        }
    }

    /// Who sends the next message. [`Turns::sent`] or [`Turns::silent`] must say what came of it, or it stays that
    /// socket's turn, which is right where the link takes no more.
    pub fn next_turn(&mut self) -> Option<SocketId> {
        loop {
            let socket = *self.fresh.front().or(self.busy.front())?;
            let place = self.places.get_mut(usize::from(socket.0))?;
            if place.left > 0 {
                return Some(socket);
            }
            place.left += QUANTUM;
            self.go_last(socket);
        }
    }

    /// The socket whose turn it is sent so many bytes, and may have more.
    pub fn sent(&mut self, socket: SocketId, bytes: usize) {
        if let Some(place) = self.places.get_mut(usize::from(socket.0)) {
            place.left = place.left.saturating_sub_unsigned(bytes as u64);
        }
    }

    /// The socket whose turn it is has nothing to send, or may not. [`Turns::ready`] brings it back.
    pub fn silent(&mut self, socket: SocketId) {
        let Some(place) = self.places.get_mut(usize::from(socket.0)) else { return };
        match place.list {
            List::Absent => {}
            List::Fresh => self.go_last(socket),
            List::Busy => {
                *place = Place::default();
                remove(&mut self.busy, socket);
            }
        }
    }

    /// Whether nobody has anything to send.
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.busy.is_empty()
    }

    /// How many have something to send, or may have.
    pub fn len(&self) -> usize {
        self.fresh.len() + self.busy.len()
    }

    /// Puts a socket that is in one of the lists behind all that are busy.
    fn go_last(&mut self, socket: SocketId) {
        let Some(place) = self.places.get_mut(usize::from(socket.0)) else { return };
        match place.list {
            List::Absent => return,
            List::Fresh => remove(&mut self.fresh, socket),
            List::Busy => remove(&mut self.busy, socket),
        }
        place.list = List::Busy;
        self.busy.push_back(socket);
    }
}

/// Takes one id out, which is the first but for owners that report out of turn.
fn remove(list: &mut VecDeque<SocketId>, socket: SocketId) {
    if list.front() == Some(&socket) {
        list.pop_front();
    } else {
        list.retain(|id| *id != socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Sockets with so much to send, and never more than `longest` in one message.
    struct Senders {
        turns: Turns,
        waiting: BTreeMap<u16, usize>,
        sent: BTreeMap<u16, usize>,
        longest: usize,
    }

    impl Senders {
        fn new(longest: usize) -> Self {
            Senders { turns: Turns::default(), waiting: BTreeMap::new(), sent: BTreeMap::new(), longest }
        }

        fn add(&mut self, id: u16, bytes: usize) {
            *self.waiting.entry(id).or_default() += bytes;
            self.turns.ready(SocketId(id));
        }

        /// Whose message goes next; those who have nothing say so.
        fn send(&mut self) -> Option<(u16, usize)> {
            loop {
                let SocketId(id) = self.turns.next_turn()?;
                let waiting = self.waiting.entry(id).or_default();
                let bytes = self.longest.min(*waiting);
                if bytes > 0 {
                    *waiting -= bytes;
                    *self.sent.entry(id).or_default() += bytes;
                    self.turns.sent(SocketId(id), bytes);
                    return Some((id, bytes));
                }
                self.turns.silent(SocketId(id));
            }
        }
    }

    /// As long as a turn.
    const MESSAGE: usize = QUANTUM as usize;

    #[test]
    fn a_keystroke_goes_before_bulk() {
        let mut senders = Senders::new(MESSAGE);
        for bulk in 0..64 {
            senders.add(bulk, 100 << 20);
        }
        for _ in 0..1000 {
            senders.send();
        }
        senders.add(99, 1);
        assert_eq!(senders.send(), Some((99, 1)));
        // Where the link takes no more in between, it stays whose turn it is.
        let next = senders.send().unwrap().0;
        assert!(next < 64);
        assert_eq!(senders.turns.next_turn(), senders.turns.next_turn());
    }

    #[test]
    fn who_speaks_often_does_not_keep_the_others_waiting() {
        let mut senders = Senders::new(MESSAGE);
        for bulk in 0..4 {
            senders.add(bulk, 1 << 30);
        }
        let mut order = Vec::new();
        for _ in 0..600 {
            senders.add(9, 10);
            let first = senders.send().unwrap().0;
            // It had said all.
            if first == 9 {
                senders.turns.silent(SocketId(9));
                senders.waiting.insert(9, 0);
            }
            order.push(first);
        }
        assert!(order.windows(6).all(|some| some.contains(&9)), "{order:?}");
        assert!(order.windows(6).all(|some| (0..4).all(|bulk| some.contains(&bulk))), "{order:?}");
    }

    #[test]
    fn short_messages_get_as_many_bytes_as_long_ones() {
        let mut turns = Turns::default();
        let lengths = [100usize, 1448, 32 << 10, 1 << 20];
        let mut sent = [0usize; 4];
        for id in 0..4 {
            turns.ready(SocketId(id));
        }
        while sent.iter().sum::<usize>() < 400 << 20 {
            let socket = turns.next_turn().unwrap();
            let id = usize::from(socket.0);
            sent[id] += lengths[id];
            turns.sent(socket, lengths[id]);
        }
        for bytes in sent {
            assert!(bytes.abs_diff(100 << 20) <= 2 << 20, "{sent:?}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten_at_its_turn() {
        let mut turns = Turns::default();
        turns.ready(SocketId(7));
        turns.ready(SocketId(7));
        assert_eq!(turns.len(), 1);
        assert_eq!(turns.next_turn(), Some(SocketId(7)));
        turns.silent(SocketId(7));
        turns.silent(SocketId(7));
        assert!(turns.is_empty() && turns.next_turn().is_none());
        // Reports out of turn, and of what was never ready.
        turns.sent(SocketId(7), 10);
        turns.silent(SocketId(8));
        turns.ready(SocketId(1));
        turns.ready(SocketId(2));
        turns.silent(SocketId(2));
        turns.silent(SocketId(2));
        assert_eq!(turns.next_turn(), Some(SocketId(1)));
        turns.ready(SocketId(2));
        assert_eq!(turns.len(), 2);
    }

    proptest! {
        /// Among those that always have something to send nobody falls behind, whoever comes and goes beside them.
        #[test]
        fn nobody_starves(
            lengths in prop::collection::vec(1000usize..100_000, 2..12),
            others in prop::collection::vec((20u16..40, 1usize..200_000), 0..200),
        ) {
            let mut turns = Turns::default();
            let mut sent = vec![0usize; lengths.len()];
            let mut waiting = BTreeMap::<SocketId, usize>::new();
            for id in 0..lengths.len() {
                turns.ready(SocketId(id as u16));
            }
            let mut others = others.into_iter();
            for step in 0..20_000 {
                if step % 50 == 0 && let Some((id, bytes)) = others.next() {
                    *waiting.entry(SocketId(id)).or_default() += bytes;
                    turns.ready(SocketId(id));
                }
                let socket = turns.next_turn().unwrap();
                match sent.get_mut(usize::from(socket.0)) {
                    Some(sent) => {
                        let length = lengths[usize::from(socket.0)];
                        *sent += length;
                        turns.sent(socket, length);
                    }
                    None => match std::mem::take(waiting.entry(socket).or_default()) {
                        0 => turns.silent(socket),
                        bytes => turns.sent(socket, bytes),
                    },
                }
            }
            let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            // Each is behind by a quantum and its longest message at most.
            prop_assert!(most - least <= 2 * (QUANTUM as usize + 100_000), "{sent:?}");
            prop_assert!(waiting.values().all(|bytes| *bytes == 0), "somebody was never heard");
            prop_assert!(turns.len() <= lengths.len() + 20);
        }

        /// Every id is in one list at most, once, and the table knows which.
        #[test]
        fn the_lists_agree_with_the_table(steps in prop::collection::vec((0u8..4, 0u16..10, 0usize..100_000), 0..300)) {
            let mut turns = Turns::default();
            for (step, id, bytes) in steps {
                match step {
                    0 => turns.ready(SocketId(id)),
                    1 => turns.silent(SocketId(id)),
                    2 => turns.sent(SocketId(id), bytes),
                    _ => prop_assert_eq!(turns.next_turn().is_none(), turns.is_empty()),
                }
                for id in 0..10 {
                    let place = turns.places.get(usize::from(id)).copied().unwrap_or_default();
                    let count = |list: &VecDeque<SocketId>| list.iter().filter(|at| at.0 == id).count();
                    let expected = match place.list {
                        List::Absent => (0, 0),
                        List::Fresh => (1, 0),
                        List::Busy => (0, 1),
                    };
                    prop_assert_eq!((count(&turns.fresh), count(&turns.busy)), expected);
                }
            }
        }
    }
}
