//! The eventfd that a guest wakes us with.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::Receiver;

/// Something that is read when the guest has made chains available. To tokio it is a pipe: what can be read of it wakes, and a read
/// takes all of it.
pub(super) struct Kick(Receiver);

impl Kick {
    /// Of a file that does not block.
    pub(super) fn new(file: File) -> io::Result<Kick> {
        Receiver::from_file_unchecked(file).map(Kick)
    }

    /// Ready: the guest has kicked since the last time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Twice what an eventfd holds: so tokio knows without another read that nothing is left.
        let mut count = [0; 16];
        let mut count = ReadBuf::new(&mut count);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut count))?;
        Poll::Ready(if count.filled().is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }
}
