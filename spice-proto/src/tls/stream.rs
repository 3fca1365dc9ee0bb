//! A stream protected by TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

use super::wire::Wire;

/// As much as one TLS record carries.
const RECORD: usize = 16 * 1024;

/// TLS over some stream.
///
/// Writes go out at once, a record each; write large pieces. Vectored writes are not worth anything here: TLS takes one
/// slice at a time. A shutdown sends TLS's farewell and ends our direction; the other one can still be read.
///
/// What was half sent stays half sent: when a write is given up while it was pending, the next one must begin with the
/// same bytes, or it fails. A stream without TLS would forgive that.
#[derive(Debug)]
pub struct TlsStream<S> {
    inner: SslStream<Wire<S>>,
    /// What the TLS library took of a write that was pending.
    taken: Vec<u8>,
    /// The peer's direction is over.
    ended: bool,
}

impl<S> TlsStream<S> {
    pub(super) fn new(inner: SslStream<Wire<S>>) -> Self {
        Self { inner, taken: Vec::new(), ended: false }
    }

    /// What carries it.
    pub fn get_ref(&self) -> &S {
        &self.inner.get_ref().stream
    }

    /// The peer's direction ended without TLS's farewell: somebody on the way may have cut it. Most Spice servers end so
    /// themselves, so that a clean end of reading is all that shows of it; whoever reads messages knows whether the last
    /// one was whole.
    pub fn was_cut(&self) -> bool {
        self.ended && self.inner.get_ref().ended()
    }

    /// The version that was agreed on, such as `TLSv1.3`.
    pub fn version(&self) -> &'static str {
        self.inner.ssl().version_str()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.ended |= buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // The TLS library would send on what it has, and believe that it was this.
        if !buf.starts_with(&this.taken) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a write was given up half-way, which TLS cannot undo",
            )));
        }
        let length = if this.taken.is_empty() { buf.len().min(RECORD) } else { this.taken.len() };
        let piece = buf.get(..length).unwrap_or_default();
        match Pin::new(&mut this.inner).poll_write(cx, piece) {
            Poll::Ready(outcome) => {
                this.taken.clear();
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                if this.taken.is_empty() {
                    this.taken.extend_from_slice(piece);
                }
                Poll::Pending
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.inner.get_ref().is_shutting() {
            match Pin::new(&mut self.inner).poll_shutdown(cx) {
                // There is no farewell where TLS has failed already.
                Poll::Ready(Err(_)) => {}
                outcome @ (Poll::Ready(Ok(())) | Poll::Pending) => return outcome,
            }
        }
        // Another farewell would wait for the peer's, and for good where none comes.
        Pin::new(self.inner.get_mut()).poll_shutdown(cx)
    }
}
