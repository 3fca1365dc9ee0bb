//! One connection to a real service: its two directions and the readiness that drives them.
//!
//! TCP is the one kind so far. Everything but [`ServiceSocket::abort`] goes through `AsyncRead` and `AsyncWrite`, so
//! that another kind becomes a variant of an enum in place of the `TcpStream`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tracing::trace;
use tunnel_channel::{Spares, Tail};

use crate::{
    events::ConnectionId,
    http_host::{HostRewrite, HttpHost},
    ready::SocketWaker,
    share::ShareId,
};

/// How long a service may take to end its side when the guest has vanished after sending all. Printers digest slowly.
const LINGER: Duration = Duration::from_secs(300);

/// How much a service may say meanwhile. One that echoes must be heard out, or it would stop reading: that is no more than
/// what the guest sent and is still on its way through two sockets' buffers. One that says more has not noticed that
/// nobody listens, as a download would not until it is told.
const LINGER_BYTES: usize = 16 << 20;

/// A connected service.
///
/// ```text
/// reading:  Open ──EOF──► Ended                 (the channel is told FIN)
///             └───guest gone──► Unwanted
/// writing:  Open ──guest's FIN──► Finishing ──tail written, shut down──► Ended
/// ```
///
/// Dropped before both directions have ended, it is reset: a service must not take a broken-off job for a whole one.
pub(crate) struct ServiceSocket {
    stream: TcpStream,
    pub(crate) share: ShareId,
    pub(crate) connection: ConnectionId,
    /// Bytes written to the service and read from it.
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    mark: Arc<SocketWaker>,
    waker: Waker,
    reading: Reading,
    writing: Writing,
    tail: Tail,
    /// Where the service is to be called by another name. What it holds back counts as written: it is bounded, and goes
    /// on with what follows, or with the guest's end.
    rewrite: Option<Box<HttpHost>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// The guest's connection is gone: nobody wants what the service says.
    Unwanted,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// More may come.
    Open,
    /// The guest is done; the tail is still to be written.
    Finishing,
    /// Shut down, after the last byte.
    Ended,
}

impl ServiceSocket {
    pub(crate) fn new(
        stream: TcpStream,
        share: ShareId,
        connection: ConnectionId,
        mark: Arc<SocketWaker>,
        rewrite: Option<HostRewrite>,
    ) -> ServiceSocket {
        ServiceSocket {
            stream,
            share,
            connection,
            bytes_up: 0,
            bytes_down: 0,
            waker: Waker::from(mark.clone()),
            mark,
            reading: Reading::Open,
            writing: Writing::Open,
            tail: Tail::default(),
            rewrite: rewrite.map(|host| Box::new(HttpHost::new(host))),
        }
    }

    /// To be called before a look at this socket that its waker asked for.
    pub(crate) fn looked_at(&self) {
        self.mark.looked_at();
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.reading == Reading::Open
    }

    /// Both directions have ended, and everything is in the hands of the operating system.
    pub(crate) fn has_ended(&self) -> bool {
        self.reading != Reading::Open && self.writing == Writing::Ended
    }

    /// The guest is gone after it had sent everything: what it sent is still delivered.
    pub(crate) fn stop_reading(&mut self) {
        match self.reading {
            Reading::Open => self.reading = Reading::Unwanted,
            Reading::Unwanted | Reading::Ended => {}
        }
    }

    /// Closing now could lose what the guest sent: were the service to say anything more, this machine would answer
    /// with a reset and forget what it has not transmitted yet.
    pub(crate) fn must_linger(&self) -> bool {
        self.reading == Reading::Unwanted && self.has_ended()
    }

    /// Drops what the service says until it is done, or breaks off, or [`LINGER`] is over or [`LINGER_BYTES`] were said.
    ///
    /// Cancel safe: a dropped call closes the connection.
    pub(crate) async fn linger(mut self: Box<Self>) {
        let mut scrap = vec![0; 4096];
        let until_end = async {
            let mut left = LINGER_BYTES;
            while let Ok(read @ 1..) = self.stream.read(&mut scrap).await {
                let Some(rest) = left.checked_sub(read) else { return self.abort() };
                left = rest;
            }
        };
        if tokio::time::timeout(LINGER, until_end).await.is_err() {
            trace!("a service did not end its side after the guest was gone");
        }
    }

    /// Takes one message: writes what the service takes now and keeps the rest. Gives the number of messages
    /// that were delivered by it, 0 or 1.
    ///
    /// # Errors
    ///
    /// The connection is broken, or the guest said something that cannot be rewritten.
    pub(crate) fn take(&mut self, payload: &[u8], spares: &mut Spares) -> io::Result<u32> {
        // Taken out, since writing needs the whole of `self`.
        let mut rewrite = self.rewrite.take();
        let unwritten = match &mut rewrite {
            Some(rewrite) => self.write_rewritten(rewrite, payload, spares),
            None => self.write_or_keep(payload, spares),
        };
        self.rewrite = rewrite;
        let unwritten = unwritten?;
        // Behind others even if nothing of it is left: credit returns in order.
        if unwritten == 0 && self.tail.is_empty() {
            return Ok(1);
        }
        self.tail.end_message(unwritten);
        Ok(0)
    }

    /// The guest sends no more: the service is told once it has everything.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub(crate) fn finish(&mut self, spares: &mut Spares) -> io::Result<()> {
        match self.writing {
            Writing::Open => {
                self.writing = Writing::Finishing;
                let held = self.rewrite.as_mut().map(|rewrite| rewrite.finish()).unwrap_or_default();
                self.write_or_keep(&held, spares)?;
                self.shut_down_when_written()
            }
            Writing::Finishing | Writing::Ended => Ok(()),
        }
    }

    /// Writes of the tail what the service takes now. Gives the number of messages that are delivered by it.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub(crate) fn flush(&mut self, spares: &mut Spares) -> io::Result<u32> {
        let mut delivered = 0u32;
        while !self.tail.is_empty() {
            // Taken out, since writing needs the whole of `self`.
            let mut tail = std::mem::take(&mut self.tail);
            let outcome = self.poll_write_some(tail.front());
            if let Ok(Poll::Ready(written)) = &outcome {
                delivered = delivered.saturating_add(tail.written(*written, spares));
            }
            self.tail = tail;
            if outcome?.is_pending() {
                return Ok(delivered);
            }
        }
        // An idle connection keeps no buffer.
        self.tail = Tail::default();
        self.shut_down_when_written()?;
        Ok(delivered)
    }

    /// Reads what the service has, at most `buf.len()` bytes; 0 is its end. Pending: the session will be woken.
    pub(crate) fn poll_read(&mut self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(&self.waker);
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut self.stream).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len();
                if read == 0 {
                    self.reading = Reading::Ended;
                }
                self.bytes_down = self.bytes_down.saturating_add(read as u64);
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Breaks the connection off, so that the service sees a reset.
    pub(crate) fn abort(&mut self) {
        if let Err(error) = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            trace!(%error, "a broken service socket could not be set to reset");
        }
        (self.reading, self.writing) = (Reading::Ended, Writing::Ended);
    }

    /// Gives how many bytes went into the tail.
    fn write_rewritten(
        &mut self,
        rewrite: &mut HttpHost,
        payload: &[u8],
        spares: &mut Spares,
    ) -> io::Result<usize> {
        let (mut left, mut kept, mut scratch) = (payload, 0usize, Vec::new());
        while !left.is_empty() {
            let (taken, piece) = rewrite.next(left, &mut scratch)?;
            kept = kept.saturating_add(self.write_or_keep(piece, spares)?);
            left = left.get(taken..).unwrap_or_default();
        }
        Ok(kept)
    }

    /// Gives how many of `bytes` went into the tail.
    fn write_or_keep(&mut self, bytes: &[u8], spares: &mut Spares) -> io::Result<usize> {
        let mut left = bytes;
        while self.tail.is_empty() && !left.is_empty() {
            match self.poll_write_some(left)? {
                Poll::Ready(written) => left = left.get(written..).unwrap_or_default(),
                Poll::Pending => break,
            }
        }
        self.tail.extend(left, spares);
        Ok(left.len())
    }

    fn poll_write_some(&mut self, bytes: &[u8]) -> io::Result<Poll<usize>> {
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.stream).poll_write(&mut cx, bytes) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => {
                self.bytes_up = self.bytes_up.saturating_add(written as u64);
                Ok(Poll::Ready(written))
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn shut_down_when_written(&mut self) -> io::Result<()> {
        if self.writing != Writing::Finishing || !self.tail.is_empty() {
            return Ok(());
        }
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.stream).poll_shutdown(&mut cx) {
            // Tokio takes a connection that is gone for one that is shut down.
            Poll::Ready(Ok(())) => match self.stream.take_error()? {
                Some(error) => return Err(error),
                None => self.writing = Writing::Ended,
            },
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {}
        }
        Ok(())
    }
}

impl Drop for ServiceSocket {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.abort();
        }
    }
}
