//! Memory for what waits behind a slow sink.

/// Pieces that are kept at most: 2 MiB.
const MOST: usize = 64;

/// Pieces of memory that nobody needs now. What waits for sinks fills and drains all the time while bulk lasts; without this the
/// system would take the memory away and give it again, page by page.
#[derive(Debug, Default)]
pub struct Spares(Vec<Vec<u8>>);

impl Spares {
    /// Size of the pieces that are kept, in bytes: a message of the usual length.
    pub const PIECE: usize = 32 << 10;

    /// An empty piece with room for `n` bytes at least, and for a third more at most: what waits is counted by what is in it.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        if n <= Self::PIECE / 4 * 3 || n > Self::PIECE {
            return Vec::with_capacity(n);
        }
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(Self::PIECE))
    }

    /// A piece that is not needed any more.
    pub fn put(&mut self, mut piece: Vec<u8>) {
        if piece.capacity() == Self::PIECE && self.0.len() < MOST {
            piece.clear();
            self.0.push(piece);
        }
    }

    /// Gives the memory back. To be called now and then: what is needed comes again.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_are_kept_up_to_a_number_and_small_ones_are_small() {
        let mut spares = Spares::default();
        assert!(spares.take(10).capacity() < 100);
        assert!(spares.take(10 * Spares::PIECE).capacity() >= 10 * Spares::PIECE);
        let mut piece = spares.take(Spares::PIECE - 1);
        piece.extend_from_slice(&[7; 100]);
        let place = piece.as_ptr();
        spares.put(piece);
        let piece = spares.take(Spares::PIECE);
        assert_eq!((piece.as_ptr(), piece.len(), piece.capacity()), (place, 0, Spares::PIECE));
        for _ in 0..2 * MOST {
            spares.put(Vec::with_capacity(Spares::PIECE));
        }
        spares.put(Vec::with_capacity(10));
        spares.put(Vec::with_capacity(Spares::PIECE + 1));
        assert_eq!(spares.0.len(), MOST);
        spares.clear();
        assert!(spares.0.is_empty());
    }
}
