//! The stream to the server: whole frames out of it, the channel's outgoing bytes into it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use spice_proto::{
    error::FrameError,
    frame::{self, Frame, HeaderForm, Split},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tunnel_channel::Channel;

/// Bytes read at a time, at least.
const INPUT: usize = 128 * 1024;

/// The linked stream with its read buffer.
pub(crate) struct Link<S> {
    stream: S,
    header: HeaderForm,
    input: Box<[u8]>,
    /// What was read and not yet consumed. INVARIANT: `start <= end <= input.len()`.
    start: usize,
    end: usize,
    /// Written to the stream since it was last flushed.
    dirty: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// `leftover` is what was read from `stream` before.
    pub(crate) fn new(stream: S, header: HeaderForm, leftover: &[u8]) -> Link<S> {
        let mut input = vec![0; INPUT.max(leftover.len())].into_boxed_slice();
        let end = leftover.len();
        if let Some(front) = input.get_mut(..end) {
            front.copy_from_slice(leftover);
        }
        Link { stream, header, input, start: 0, end, dirty: false }
    }

    /// Bytes of a message that is not whole yet.
    pub(crate) fn partial(&self) -> usize {
        self.end - self.start
    }

    /// The next whole frame and its length with the header, for [`Link::consume`]; `None` when more must be read.
    ///
    /// # Errors
    ///
    /// A header that announces more than `max_body`.
    pub(crate) fn frame(&mut self, max_body: u32) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
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

    fn split(&self, max_body: u32) -> Result<Split<'_>, FrameError> {
        frame::split(self.header, max_body, self.input.get(self.start..self.end).unwrap_or_default())
    }

    /// The frame last given is done with.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
    }

    /// Makes the buffer hold `needed` bytes from `start` on. They are bounded: the length was checked.
    fn make_room(&mut self, needed: usize) {
        if self.input.len() - self.start >= needed.max(INPUT / 2) {
            return;
        }
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.input.len() < needed {
            let mut larger = vec![0; needed.saturating_add(INPUT)];
            for (to, from) in larger.iter_mut().zip(&self.input) {
                *to = *from;
            }
            self.input = larger.into_boxed_slice();
        }
    }

    /// Reads once. 0: the server closed the link.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(self.input.get_mut(self.end..).unwrap_or_default());
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let read = room.filled().len();
                self.end += read;
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes what the channel has for the server. Gives whether anything moved; what is left waits for the stream.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, channel: &mut Channel) -> io::Result<bool> {
        let mut moved = false;
        while !channel.outgoing().is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, channel.outgoing()) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    channel.sent(written);
                    (moved, self.dirty) = (true, true);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.dirty && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
            self.dirty = false;
        }
        Ok(moved)
    }

    /// Sends the rest and closes our direction.
    ///
    /// Not cancel safe: a dropped call may have sent a part.
    pub(crate) async fn close(&mut self, channel: &mut Channel) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            self.poll_send(cx, channel)?;
            if self.dirty || !channel.outgoing().is_empty() {
                return Poll::Pending;
            }
            Pin::new(&mut self.stream).poll_shutdown(cx)
        })
        .await
    }
}
