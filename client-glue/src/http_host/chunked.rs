//! Where a body in chunks ends (RFC 9112, section 7.1).
//!
//! Lines end in CR LF and nothing else: readers differ in what else they take for an end, and then in where the body's is.

use super::HttpFault;

/// A place within a body in chunks, trailers included.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// Before the first digit of a chunk's size.
    #[default]
    Start,
    /// Behind at least one.
    Size(u64),
    /// In white space behind the size, which RFC 7230 bore before an extension.
    Space(u64),
    Extension(u64),
    /// Behind the size line's CR.
    SizeEnd(u64),
    /// In a chunk's data, with so many bytes to come. INVARIANT: not 0.
    Data(u64),
    /// Behind the data.
    DataEnd,
    /// Behind the data's CR.
    DataFeed,
    /// At the beginning of a trailer, or of the empty line.
    TrailerStart,
    Trailer,
    /// Behind a trailer's CR.
    TrailerEnd,
    /// Behind the CR of the empty line.
    Last,
}

impl Chunked {
    /// How much of `input` belongs to the body, and whether the body ends there.
    pub(super) fn take(&mut self, input: &[u8]) -> Result<(usize, bool), HttpFault> {
        let mut taken = 0;
        while let Some(rest @ [byte, ..]) = input.get(taken..) {
            if let Chunked::Data(left) = self {
                let there = u64::try_from(rest.len()).unwrap_or(u64::MAX).min(*left);
                *left -= there;
                if *left == 0 {
                    *self = Chunked::DataEnd;
                }
                // Not more than `rest.len()`, which is a usize.
                taken += usize::try_from(there).unwrap_or(rest.len());
                continue;
            }
            taken += 1;
            match self.step(*byte)? {
                Some(next) => *self = next,
                None => return Ok((taken, true)),
            }
        }
        Ok((taken, false))
    }

    /// What comes behind a byte that is not data; `None`: the body has ended.
    fn step(self, byte: u8) -> Result<Option<Chunked>, HttpFault> {
        Ok(Some(match (self, byte) {
            (Chunked::Start, _) => Chunked::Size(digit(byte).ok_or(HttpFault::Chunk)?),
            (Chunked::Size(size) | Chunked::Space(size), b' ' | b'\t') => Chunked::Space(size),
            (Chunked::Size(size) | Chunked::Space(size), b';') => Chunked::Extension(size),
            (Chunked::Size(size) | Chunked::Space(size) | Chunked::Extension(size), b'\r') => {
                Chunked::SizeEnd(size)
            }
            (Chunked::Size(size), _) => {
                let digit = digit(byte).ok_or(HttpFault::Chunk)?;
                Chunked::Size(size.checked_mul(16).ok_or(HttpFault::Chunk)? | digit)
            }
            (Chunked::Extension(_), b'\n' | 0) => return Err(HttpFault::Chunk),
            (Chunked::Extension(size), _) => Chunked::Extension(size),
            (Chunked::SizeEnd(0), b'\n') => Chunked::TrailerStart,
            (Chunked::SizeEnd(size), b'\n') => Chunked::Data(size),
            (Chunked::DataEnd, b'\r') => Chunked::DataFeed,
            (Chunked::DataFeed, b'\n') => Chunked::Start,
            (Chunked::TrailerStart, b'\r') => Chunked::Last,
            (Chunked::Trailer, b'\r') => Chunked::TrailerEnd,
            (Chunked::TrailerStart | Chunked::Trailer, b'\n' | 0) => return Err(HttpFault::Chunk),
            (Chunked::TrailerStart | Chunked::Trailer, _) => Chunked::Trailer,
            (Chunked::TrailerEnd, b'\n') => Chunked::TrailerStart,
            (Chunked::Last, b'\n') => return Ok(None),
            (
                Chunked::Space(_)
                | Chunked::SizeEnd(_)
                | Chunked::Data(_)
                | Chunked::DataEnd
                | Chunked::DataFeed
                | Chunked::TrailerEnd
                | Chunked::Last,
                _,
            ) => return Err(HttpFault::Chunk),
        }))
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}
