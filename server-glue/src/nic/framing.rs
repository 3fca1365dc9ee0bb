//! QEMU's framing of a stream: four octets of length, big-endian, then that many octets of Ethernet frame.

use super::{HIGH_WATER, LinkError, MAX_FRAME};

/// Octets of a frame's length.
pub(super) const PREFIX: usize = 4;
/// Octets read at once. Room for one frame however it lies, and for a burst of small ones.
pub(super) const READ_BUFFER: usize = 512 * 1024;

/// Finds frames in a stream of octets.
#[derive(Debug)]
pub(crate) struct Deframer {
    /// All initialised; what has come is `start..end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Deframer {
    pub(crate) fn new() -> Deframer {
        Deframer { buffer: vec![0; READ_BUFFER].into(), start: 0, end: 0 }
    }

    /// Where the next octets go; never empty as long as [`Deframer::has_frame`] is false.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < PREFIX + MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many octets have come into [`Deframer::spare`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    pub(super) fn has_frame(&mut self) -> Result<bool, LinkError> {
        Ok(self.frame()?.is_some())
    }

    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, LinkError> {
        let Some((from, to)) = self.frame()? else { return Ok(None) };
        self.start = to;
        Ok(self.buffer.get(from..to))
    }

    /// Where the next frame lies, if it is whole. Steps over empty ones.
    fn frame(&mut self) -> Result<Option<(usize, usize)>, LinkError> {
        loop {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else { return Ok(None) };
            let announced = u32::from_be_bytes(*prefix);
            let len = usize::try_from(announced).unwrap_or(usize::MAX);
            if len > MAX_FRAME {
                return Err(LinkError::FrameLength(announced));
            }
            if len == 0 {
                self.start += PREFIX;
                continue;
            }
            if rest.len() < len {
                return Ok(None);
            }
            let from = self.start + PREFIX;
            return Ok(Some((from, from + len)));
        }
    }
}

/// Frames on their way out, each behind its length.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    bytes: Vec<u8>,
    start: usize,
}

impl Framer {
    /// Queues a frame that is given in pieces. False: it has no length, or is too long.
    pub(crate) fn put(&mut self, pieces: &[&[u8]]) -> bool {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let Ok(len) = u32::try_from(total) else { return false };
        if total == 0 || total > MAX_FRAME {
            return false;
        }
        self.bytes.extend_from_slice(&len.to_be_bytes());
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        true
    }

    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The first frame, without its length.
    #[cfg(any(feature = "tap", feature = "vhost-user"))]
    pub(super) fn first(&self) -> Option<&[u8]> {
        let (prefix, rest) = self.pending().split_first_chunk::<PREFIX>()?;
        rest.get(..usize::try_from(u32::from_be_bytes(*prefix)).ok()?)
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start >= HIGH_WATER {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}
