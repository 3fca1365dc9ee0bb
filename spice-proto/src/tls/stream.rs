//! A stream protected by TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

use super::wire::Wire;

/// As much as one TLS record carries.
const RECORD: usize = 16 * 1024;

/// As much as is written at once, in records of which each alone would cost the system a call, a segment, and the peer its being woken.
const TOGETHER: usize = 4 * RECORD;

/// TLS over some stream.
///
/// Writes go out at once, as records of up to 16 KiB; write large pieces. A write is done when TLS has it: what the stream could not
/// take is written by the next write or flush. Vectored writes are not worth anything here: TLS takes one slice at a time. A
/// shutdown sends TLS's farewell and ends our direction; the other one can still be read.
#[derive(Debug)]
pub struct TlsStream<S> {
    inner: SslStream<Wire<S>>,
    /// The peer's direction is over.
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite> TlsStream<S> {
    pub(super) fn new(mut inner: SslStream<Wire<S>>) -> Self {
        inner.get_mut().gather();
        Self { inner, ended: false }
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
    /// Gives what one record carries, or a part of it, so that whoever passes it on as one write keeps the peer's records. Of viewers that
    /// matters: spice-gtk waits for the socket when a record held two messages, and has not looked at the second.
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
        // The stream is full, and what comes must wait where others can still overtake it.
        ready!(self.inner.get_mut().poll_drain(cx))?;
        let mut taken = 0;
        for piece in buf.chunks(RECORD).take(TOGETHER / RECORD) {
            match Pin::new(&mut self.inner).poll_write(cx, piece) {
                Poll::Ready(Ok(count)) => {
                    taken += count;
                    // A peer may have asked for shorter records.
                    if count < piece.len() {
                        break;
                    }
                }
                Poll::Ready(Err(_)) | Poll::Pending if taken > 0 => break,
                unable @ (Poll::Ready(Err(_)) | Poll::Pending) => return unable,
            }
        }
        // Records are with TLS now, whatever the stream says: the next call is told of a failure.
        let _ = self.inner.get_mut().poll_drain(cx);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.inner.get_mut().poll_drain(cx))?;
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
