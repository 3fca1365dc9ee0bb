//! The stream below TLS, watched for what a failed handshake is explained by.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How the peer began, and whether its stream ended.
#[derive(Debug)]
pub(super) struct Wire<S> {
    pub(super) stream: S,
    head: [u8; 8],
    /// INVARIANT: at most `head.len()`.
    seen: usize,
    ended: bool,
    shutting: bool,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, head: [0; 8], seen: 0, ended: false, shutting: false }
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutting = true;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
