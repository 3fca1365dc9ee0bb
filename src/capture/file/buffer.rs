//! Bytes of a source, as many at once as somebody wants to see.

use std::io::{self, Read};

/// Holds what was read and not yet consumed.
pub(super) struct Buffer {
    source: Box<dyn Read + Send>,
    bytes: Vec<u8>,
    /// What is not consumed: `bytes[start..end]`.
    start: usize,
    end: usize,
    /// Bytes of the source before `start`.
    position: u64,
    over: bool,
}

/// Enough for a read to be worth its system call, few enough to stay in a processor's cache.
const CHUNK: usize = 256 << 10;

impl Buffer {
    pub(super) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source, bytes: vec![0; CHUNK], start: 0, end: 0, position: 0, over: false }
    }

    /// All that is there, and at least this many bytes, unless the source is over before. Reads only if it must, so
    /// that nothing waits for what nobody wants yet.
    pub(super) fn at_least(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.end - self.start < wanted && !self.over {
            self.read(wanted)?;
        }
        Ok(self.bytes.get(self.start..self.end).unwrap_or_default())
    }

    /// Gives away this many bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.position += count as u64;
    }

    /// Consumes `len` bytes and `rest` more, and returns the former, which stay until the next call.
    pub(super) fn take(&mut self, len: usize, rest: usize) -> &[u8] {
        let start = self.start;
        self.consume(len + rest);
        self.bytes.get(start..start + len).unwrap_or_default()
    }

    /// Bytes consumed.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Reads once, with room for `wanted` bytes. The buffer grows by doubling as bytes really come, so what a file claims
    /// costs nothing.
    fn read(&mut self, wanted: usize) -> io::Result<()> {
        if self.start == self.end || self.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        let Some(room) = self.bytes.get_mut(self.end..) else { return Ok(()) };
        match self.source.read(room) {
            Ok(0) => self.over = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
