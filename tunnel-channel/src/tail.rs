//! What waits behind a slow sink, and the memory that it waits in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

/// Bytes of a piece of memory: a message of the usual length.
const PIECE: usize = 32 << 10;

/// Spare pieces at most: 32 MiB.
const MOST: usize = 1024;

/// How long a piece must not have been needed before it is given back.
const UNNEEDED: Duration = Duration::from_secs(1);

/// Messages that a sink was too slow to take. The window bounds it.
///
/// What is in it counts by its bytes; it takes memory by the page.
#[derive(Debug, Default)]
pub struct Tail {
    /// In pieces, so that a long one is never copied to another place to grow, and what is written serves others at once.
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written. INVARIANT: fewer than it has.
    written: usize,
    /// Bytes that are not.
    len: usize,
    /// Unwritten bytes of each message, which may be none. INVARIANT: their sum is no more than `len`.
    messages: VecDeque<usize>,
}

impl Tail {
    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is to be written first; not all there is.
    pub fn front(&self) -> &[u8] {
        self.pieces.front().and_then(|piece| piece.bytes().get(self.written..)).unwrap_or_default()
    }

    /// Appends bytes of a message, or some that belong to none.
    pub fn extend(&mut self, bytes: &[u8], spares: &mut Spares) {
        self.len += bytes.len();
        let mut left = bytes;
        while !left.is_empty() {
            let taken = self.pieces.back_mut().map_or(0, |piece| piece.append(left));
            left = left.get(taken..).unwrap_or_default();
            if !left.is_empty() {
                self.pieces.push_back(spares.take());
            }
        }
    }

    /// Ends a message, the last so many bytes of which were appended.
    pub fn end_message(&mut self, appended: usize) {
        self.messages.push_back(appended);
    }

    /// So many bytes of the front were written. Gives how many messages became whole by it.
    pub fn written(&mut self, n: usize, spares: &mut Spares) -> u32 {
        let mut left = n.min(self.len);
        self.len -= left;
        self.written += left;
        while let Some(piece) = self.pieces.front()
            && self.written >= piece.len
        {
            self.written -= piece.len;
            self.pieces.pop_front().into_iter().for_each(|piece| spares.put(piece));
        }
        let mut whole = 0;
        while let Some(message) = self.messages.front_mut() {
            if *message > left {
                *message -= left;
                break;
            }
            left -= *message;
            self.messages.pop_front();
            whole += 1;
        }
        whole
    }
}

/// Pieces that no [`Tail`] needs now. What waits fills and drains all the time while bulk lasts; without this the system would take the
/// memory away and give it again, page by page.
#[derive(Debug, Default)]
pub struct Spares {
    pieces: Vec<Piece>,
    /// The fewest that there were since the last [`Spares::tidy`] that looked.
    fewest: usize,
    looked: Option<Instant>,
}

impl Spares {
    /// Gives back what was not needed for a while. To be called now and then: what is needed comes again.
    pub fn tidy(&mut self, now: Instant) {
        let looked = *self.looked.get_or_insert(now);
        if now.saturating_duration_since(looked) >= UNNEEDED {
            self.pieces.drain(..self.fewest.min(self.pieces.len()));
            self.fewest = self.pieces.len();
            self.looked = Some(now);
        }
    }

    fn take(&mut self) -> Piece {
        let piece = self.pieces.pop().unwrap_or_else(Piece::new);
        self.fewest = self.fewest.min(self.pieces.len());
        piece
    }

    fn put(&mut self, mut piece: Piece) {
        if self.pieces.len() < MOST {
            piece.len = 0;
            self.pieces.push(piece);
        }
    }
}

/// Memory that the system gives page by page, and gets back whole: a mapping of its own. In the heap it would lie among what lives longer, so that
/// after a burst on many connections most of that stayed with the process (50 MB of 53, measured with glibc).
#[derive(Debug)]
struct Piece {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    /// The system maps no more for this process.
    Heap(Box<[u8]>),
}

impl Piece {
    fn new() -> Piece {
        let memory = match MmapMut::map_anon(PIECE) {
            Ok(mapped) => Memory::Mapped(mapped),
            Err(_) => Memory::Heap(vec![0; PIECE].into()),
        };
        Piece { memory, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        let memory: &[u8] = match &self.memory {
            Memory::Mapped(mapped) => mapped,
            Memory::Heap(heap) => heap,
        };
        memory.get(..self.len).unwrap_or_default()
    }

    /// Gives how many of `bytes` found room.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let memory: &mut [u8] = match &mut self.memory {
            Memory::Mapped(mapped) => mapped,
            Memory::Heap(heap) => heap,
        };
        let room = memory.get_mut(self.len..).unwrap_or_default();
        let fits = room.len().min(bytes.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..fits), bytes.get(..fits)) {
            room.copy_from_slice(bytes);
        }
        self.len += fits;
        fits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tail_gives_what_it_got(steps in prop::collection::vec((0usize..3, 0usize..90_000), 0..60)) {
            let (mut tail, mut spares) = (Tail::default(), Spares::default());
            let mut model = VecDeque::<u8>::new();
            let (mut put, mut whole, mut next) = (0u32, 0, 0u8);
            for (step, n) in steps {
                if step == 0 {
                    let n = if n % 3 == 0 { n } else { n % 20 };
                    let message: Vec<u8> = (0..n).map(|_| { next = next.wrapping_add(1); next }).collect();
                    tail.extend(&message, &mut spares);
                    tail.end_message(n);
                    put += 1;
                    model.extend(message);
                } else {
                    let n = n.min(tail.front().len());
                    prop_assert!(tail.front()[..n].iter().eq(model.iter().take(n)));
                    whole += tail.written(n, &mut spares);
                    model.drain(..n);
                }
                prop_assert_eq!(tail.len, model.len());
                prop_assert_eq!(tail.is_empty(), tail.front().is_empty());
                prop_assert_eq!(tail.messages.len() as u32, put - whole);
                prop_assert!(tail.pieces.len() * PIECE <= model.len() + 2 * PIECE);
            }
            while !tail.is_empty() {
                let n = tail.front().len();
                whole += tail.written(n, &mut spares);
                model.drain(..n);
            }
            whole += tail.written(0, &mut spares);
            prop_assert!(model.is_empty() && tail.pieces.is_empty());
            prop_assert_eq!(whole, put);
        }
    }

    fn fill(tail: &mut Tail, pieces: usize, spares: &mut Spares) {
        tail.extend(&vec![7; pieces * PIECE], spares);
    }

    fn drain(tail: &mut Tail, spares: &mut Spares) {
        while !tail.is_empty() {
            tail.written(tail.front().len(), spares);
        }
    }

    #[test]
    fn pieces_are_kept_while_they_are_needed_up_to_a_number() {
        let (mut tail, mut spares, start) = (Tail::default(), Spares::default(), Instant::now());
        fill(&mut tail, 3, &mut spares);
        drain(&mut tail, &mut spares);
        spares.tidy(start);
        assert_eq!(spares.pieces.len(), 3);
        // One is needed all the time, the others are not.
        for second in 1..5 {
            fill(&mut tail, 1, &mut spares);
            drain(&mut tail, &mut spares);
            spares.tidy(start + UNNEEDED * second);
        }
        assert_eq!(spares.pieces.len(), 1);
        for second in 5..7 {
            spares.tidy(start + UNNEEDED * second);
        }
        assert!(spares.pieces.is_empty());
        fill(&mut tail, MOST + 10, &mut spares);
        drain(&mut tail, &mut spares);
        assert_eq!(spares.pieces.len(), MOST);
    }

    /// Where the system maps no more, which a test cannot make it do.
    #[test]
    fn memory_from_the_heap_does_as_well() {
        let mut piece = Piece { memory: Memory::Heap(vec![0; PIECE].into()), len: 0 };
        assert_eq!((piece.append(b"abc"), piece.append(b"de")), (3, 2));
        assert_eq!(piece.bytes(), b"abcde");
        assert_eq!(piece.append(&[0; PIECE]), PIECE - 5);
        assert_eq!(piece.append(b"f"), 0);
    }
}
