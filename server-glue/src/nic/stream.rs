//! A card over a stream: QEMU's `-netdev stream`, or anything else that frames as it does.

use std::future::pending;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::net::{UnixListener, UnixStream};

use super::framing::{Deframer, Framer};
use super::retry::Retry;
use super::socket::{SocketFile, listen};
use super::{Link, LinkError, NicError};

/// The socket of the moment, a buffer each way, and where the next socket comes from.
pub(super) struct StreamCard {
    source: Source,
    link: Option<Box<dyn Link>>,
    incoming: Deframer,
    outgoing: Framer,
}

enum Source {
    Listen { listener: UnixListener, _file: Option<SocketFile>, retry: Retry },
    Connect { path: PathBuf, retry: Retry },
    Attached,
}

impl StreamCard {
    pub(super) async fn listen(path: &std::path::Path) -> Result<StreamCard, NicError> {
        let (listener, file) = listen(path, None).await?;
        Ok(Self::new(Source::Listen { listener, _file: Some(file), retry: Retry::new() }, None))
    }

    pub(super) fn connect(path: PathBuf) -> StreamCard {
        Self::new(Source::Connect { path, retry: Retry::new() }, None)
    }

    pub(super) fn listening(listener: UnixListener) -> StreamCard {
        Self::new(Source::Listen { listener, _file: None, retry: Retry::new() }, None)
    }

    pub(super) fn attached(stream: impl Link + 'static) -> StreamCard {
        Self::new(Source::Attached, Some(Box::new(stream)))
    }

    fn new(source: Source, link: Option<Box<dyn Link>>) -> StreamCard {
        StreamCard { source, link, incoming: Deframer::new(), outgoing: Framer::default() }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Cancel-safe.
    pub(super) async fn attach(&mut self) {
        self.link = Some(self.source.next_link().await);
    }

    pub(super) fn lost(&mut self) {
        self.link = None;
        self.incoming = Deframer::new();
        self.outgoing = Framer::default();
        self.source.failed();
    }

    pub(super) fn pending(&self) -> usize {
        self.outgoing.pending().len()
    }

    pub(super) fn queue(&mut self, frame: &[u8]) -> bool {
        self.link.is_some() && self.outgoing.put(&[frame])
    }

    pub(super) fn next_frame(&mut self) -> Option<&[u8]> {
        self.incoming.next().ok().flatten()
    }

    /// Sends what can be sent now.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let Some(link) = &mut self.link else { return Err(LinkError::Closed) };
        let mut wrote = false;
        while !self.outgoing.pending().is_empty() {
            match Pin::new(&mut **link).poll_write(cx, self.outgoing.pending()) {
                Poll::Ready(Ok(0)) => return Err(LinkError::Closed),
                Poll::Ready(Ok(count)) => {
                    self.outgoing.sent(count);
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => break,
            }
        }
        if wrote && let Poll::Ready(Err(error)) = Pin::new(&mut **link).poll_flush(cx) {
            return Err(error.into());
        }
        Ok(())
    }

    /// Ready: there is a whole frame.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let Some(link) = &mut self.link else { return Poll::Ready(Err(LinkError::Closed)) };
        while !self.incoming.has_frame()? {
            let mut buffer = ReadBuf::new(self.incoming.spare());
            match Pin::new(&mut **link).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => match buffer.filled().len() {
                    0 => return Poll::Ready(Err(LinkError::Closed)),
                    count => self.incoming.filled(count),
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.source.worked();
        Poll::Ready(Ok(()))
    }
}

impl Source {
    /// Waits for the next virtual machine. Cancel-safe.
    async fn next_link(&mut self) -> Box<dyn Link> {
        loop {
            match self {
                Source::Attached => return pending().await,
                Source::Listen { listener, retry, .. } => {
                    retry.pause().await;
                    match listener.accept().await {
                        Ok((stream, _)) => return Box::new(stream),
                        // Out of descriptors, most likely: the machine in the queue keeps.
                        Err(error) => retry.failed(&error),
                    }
                }
                Source::Connect { path, retry } => {
                    retry.pause().await;
                    match UnixStream::connect(&*path).await {
                        Ok(stream) => {
                            // Unless it works for a while, the next attempt waits too.
                            retry.schedule();
                            return Box::new(stream);
                        }
                        Err(error) => retry.failed(&error),
                    }
                }
            }
        }
    }

    /// Frames came: the next attempt need not wait.
    fn worked(&mut self) {
        match self {
            Source::Connect { retry, .. } | Source::Listen { retry, .. } => retry.worked(),
            Source::Attached => {}
        }
    }

    fn failed(&mut self) {
        match self {
            // Whoever waits in the listener's queue takes over at once.
            Source::Listen { .. } | Source::Attached => {}
            Source::Connect { retry, .. } => retry.schedule(),
        }
    }
}
