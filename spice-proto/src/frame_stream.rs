//! A linked stream as frames: whole messages out of it, borrowed from its read buffer, and bytes into it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::FrameError;
use crate::frame::{self, Frame, HeaderForm, Split};

/// Size of the read buffer of a stream that carries much: four messages of a bulk transfer. Larger ones make reads neither fewer nor
/// cheaper.
const INPUT: usize = 4 * (32 * 1024 + 32);

/// Size of the read buffer of one that carries little.
const LEAST_INPUT: usize = 16 * 1024;

/// Length from which on messages are likely to be followed by others of that length.
const BULK: usize = 8 * 1024;

/// So many reads in a row that bring little make a stream one that carries little.
const QUIET: u8 = 8;

/// A stream whose link stage is over, with its read buffer. The buffer is small where little comes; it grows to what comes, and to
/// the longest message that was allowed, and falls back behind it.
pub struct FrameStream<S> {
    stream: S,
    header: HeaderForm,
    input: Vec<u8>,
    /// What was read and not yet consumed. INVARIANT: `start <= end <= input.len()`.
    start: usize,
    end: usize,
    /// What the buffer should have. INVARIANT: between [`LEAST_INPUT`] and [`INPUT`].
    wanted: usize,
    /// Length of the message that was consumed last, with its header.
    last: usize,
    /// Reads since one that brought much.
    quiet: u8,
    /// What went wrong behind the bytes that were read last.
    failed: Option<io::Error>,
    /// Written to the stream since it was last flushed.
    dirty: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameStream<S> {
    /// `leftover` is what was read from `stream` past the link stage.
    pub fn new(stream: S, header: HeaderForm, leftover: &[u8]) -> Self {
        let mut input = leftover.to_vec();
        input.resize(LEAST_INPUT.max(leftover.len()), 0);
        Self {
            stream,
            header,
            input,
            start: 0,
            end: leftover.len(),
            wanted: LEAST_INPUT,
            last: 0,
            quiet: 0,
            failed: None,
            dirty: false,
        }
    }

    /// Bytes of a message that is not whole yet. Not 0 at the stream's end: the peer was cut off.
    pub fn partial(&self) -> usize {
        self.end - self.start
    }

    /// The next whole frame and its length with the header, for [`consume`](Self::consume). `None`: more must be read.
    ///
    /// # Errors
    /// A header that announces more than `max_body` bytes.
    pub fn frame(&mut self, max_body: u32) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if let Split::Incomplete { needed } = self.split(max_body)? {
            self.make_room(needed);
        }
        match self.split(max_body)? {
            Split::Frame { frame, consumed } => Ok(Some((frame, consumed))),
            Split::Incomplete { .. } => Ok(None),
        }
    }

    /// The frame last given is done with.
    pub fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
        self.last = n;
    }

    /// Reads what has come, as far as there is room; 0 is the stream's end. Call it when [`frame`](Self::frame) gave `None`, which made
    /// room.
    ///
    /// # Errors
    /// The stream's own.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        self.fit();
        let until = self.bound();
        let mut room = ReadBuf::new(self.input.get_mut(self.end..until).unwrap_or_default());
        debug_assert!(room.remaining() > 0, "a read into no room looks like the end");
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        // Of TLS one record comes at a time. A stream that has no more is waited for from here on.
        let mut before = 0;
        while room.filled().len() > before && room.remaining() > 0 {
            before = room.filled().len();
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(error)) => self.failed = Some(error),
            }
        }
        let (read, is_full) = (room.filled().len(), room.remaining() == 0);
        self.end += read;
        if is_full {
            self.wanted = self.wanted.saturating_mul(2).min(INPUT);
        }
        self.quiet = if read > LEAST_INPUT / 2 { 0 } else { self.quiet.saturating_add(1) };
        Poll::Ready(Ok(read))
    }

    /// Writes once and gives how many bytes went, never 0. With nothing to write it flushes, and is ready when all
    /// was handed on.
    ///
    /// # Errors
    /// The stream's own.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            if self.dirty {
                std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
                self.dirty = false;
            }
            return Poll::Ready(Ok(0));
        }
        match std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => {
                self.dirty = true;
                Poll::Ready(Ok(written))
            }
        }
    }

    /// Closes our direction.
    ///
    /// # Errors
    /// The stream's own.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// The stream. What was read of it and not consumed is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn split(&self, max_body: u32) -> Result<Split<'_>, FrameError> {
        frame::split(self.header, max_body, self.input.get(self.start..self.end).unwrap_or_default())
    }

    /// Makes the buffer hold `needed` bytes from `start` on. They are bounded: the length was checked.
    fn make_room(&mut self, needed: usize) {
        if self.input.len() - self.start >= needed.max(self.wanted / 2) {
            return;
        }
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.input.len() < needed {
            self.input.resize(needed, 0);
        }
    }

    /// How far a read should go. A transfer's messages are of one length: with the last of them whole, none need be moved to the
    /// buffer's start for the rest of it.
    fn bound(&self) -> usize {
        let room = self.input.len() - self.start;
        let beyond = if self.last >= BULK { room % self.last } else { 0 };
        let bound = self.input.len() - beyond;
        if bound > self.end { bound } else { self.input.len() }
    }

    /// Makes the buffer as large as it should be, if it is too small, or if it is too large and empty.
    fn fit(&mut self) {
        if self.quiet >= QUIET {
            self.wanted = LEAST_INPUT;
            self.quiet = 0;
            if self.start == self.end && self.input.len() > self.wanted {
                (self.start, self.end) = (0, 0);
                self.input = vec![0; self.wanted];
            }
        }
        if self.input.len() < self.wanted {
            self.input.resize(self.wanted, 0);
        }
    }
}

#[cfg(test)]
mod tests;
