//! The stream below TLS: watched for what a failed handshake is explained by, and later given its records many at a time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Octets of records beyond which something is wrong: who writes puts in little at a time, and waits until it is gone.
const MOST: usize = 256 * 1024;

/// Room that is kept for the next records.
const KEPT: usize = 4 * 1024;

/// How the peer began, whether its stream ended, and records that it is still to get.
#[derive(Debug)]
pub(super) struct Wire<S> {
    pub(super) stream: S,
    /// The handshake is over: records are gathered until [`Wire::poll_drain`], and TLS never sees a write wait.
    gathers: bool,
    records: Vec<u8>,
    /// How much of them the stream has. INVARIANT: at most `records.len()`.
    written: usize,
    head: [u8; 8],
    /// INVARIANT: at most `head.len()`.
    seen: usize,
    ended: bool,
    shutting: bool,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            gathers: false,
            records: Vec::new(),
            written: 0,
            head: [0; 8],
            seen: 0,
            ended: false,
            shutting: false,
        }
    }

    /// From now on records wait for [`Wire::poll_drain`]. Whoever writes sees to it that they are few.
    pub(super) fn gather(&mut self) {
        self.gathers = true;
    }

    /// The first bytes that came.
    pub(super) fn head(&self) -> &[u8] {
        self.head.get(..self.seen).unwrap_or_default()
    }

    /// The peer ended its stream.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Our direction was, or is being, ended.
    pub(super) fn is_shutting(&self) -> bool {
        self.shutting
    }

    fn watch(&mut self, came: &[u8]) {
        self.ended |= came.is_empty();
        for (byte, slot) in came.iter().zip(self.head.iter_mut().skip(self.seen)) {
            *slot = *byte;
            self.seen += 1;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.seen < self.head.len() || buf.filled().len() == before {
            self.watch(buf.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Writes all that was gathered.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.records.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        self.records.clear();
        self.records.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.gathers {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        if self.records.len() > MOST {
            let problem = "TLS has more to say than the peer takes";
            return Poll::Ready(Err(io::Error::other(problem)));
        }
        self.records.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    /// Does not wait for what was gathered: TLS would take that for a failure.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_drain(cx)? {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_flush(cx),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutting = true;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
