//! A tunnel link's stream whose bytes are noted as they pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use spice_proto::frame::{FrameSkimmer, HeaderForm, Skimmed};
use spice_proto::handshake::Linked;
use spice_proto::names::Sender;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::links::{Entry, LinkId};
use super::queue::Queue;
use super::tcp::{Both, Ends, HEADROOM, other};
use super::{clock, link_stage};

/// A stream that is recorded, in clear: TLS belongs below it.
///
/// What it notes is what was read and what the stream below took to write. It never waits for the recorder.
pub struct Tap<S> {
    stream: S,
    notes: Option<Notes>,
}

impl<S> Tap<S> {
    /// Records `stream`, whose link stage led to `linked`. `ours` is the end that we are.
    pub(super) fn new(
        stream: S,
        queue: &Arc<Queue<Entry>>,
        link: LinkId,
        linked: &Linked,
        ours: Sender,
        ends: Ends,
    ) -> Self {
        Self { stream, notes: Notes::new(queue, link, linked, ours, ends) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Some(notes) = &mut self.notes {
            let from = other(notes.ours);
            match buf.filled().get(before..) {
                _ if read.is_err() => notes.broke(),
                Some(bytes) if !bytes.is_empty() => notes.passed(from, bytes),
                Some(_) | None if room > 0 => notes.finished(from),
                Some(_) | None => {}
            }
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        if let Some(notes) = &mut self.notes {
            match &written {
                Ok(written) => notes.passed(notes.ours, buf.get(..*written).unwrap_or_default()),
                Err(_) => notes.broke(),
            }
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        if let Some(notes) = &mut self.notes {
            match &shut {
                Ok(()) => notes.finished(notes.ours),
                Err(_) => notes.broke(),
            }
        }
        Poll::Ready(shut)
    }
}

/// What is noted of one link.
pub(super) struct Notes {
    queue: Arc<Queue<Entry>>,
    link: LinkId,
    ours: Sender,
    ways: Both<Way>,
    /// Its end is noted.
    over: bool,
}

/// One direction.
struct Way {
    /// Follows the messages, so that files and what comes behind a drop begin with one.
    skimmer: FrameSkimmer,
    /// Bytes that the message in hand lacks.
    left: u32,
    /// The beginning of a header that is not complete: shorter than one. Handed on with the rest of it.
    header: Vec<u8>,
    /// Offset of the first byte that was not handed on.
    offset: u64,
    /// Something was dropped, and nothing is noted until there is room and a message begins.
    dropping: bool,
    finished: bool,
}

impl Way {
    fn new(form: HeaderForm) -> Self {
        Self {
            skimmer: FrameSkimmer::new(form),
            left: 0,
            header: Vec::new(),
            offset: 0,
            dropping: false,
            finished: false,
        }
    }

    /// Where it ends.
    fn total(&self) -> u64 {
        self.offset.saturating_add(length(&self.header))
    }
}

impl Notes {
    /// `None`: there is no room even for that, or nothing is recorded any more.
    pub(super) fn new(
        queue: &Arc<Queue<Entry>>,
        link: LinkId,
        linked: &Linked,
        ours: Sender,
        ends: Ends,
    ) -> Option<Self> {
        let stage = link_stage::synthesise(linked, ours);
        let bytes = stage.iter().map(|(_, bytes)| bytes.len()).sum();
        let open = || Entry::Open { link, time: clock::now(), ends, stage };
        let opened = queue.offer(bytes, open);
        opened.then(|| {
            let ways = Both { client: Way::new(linked.header), server: Way::new(linked.header) };
            let mut notes = Self { queue: Arc::clone(queue), link, ours, ways, over: false };
            // They were read with the link stage.
            notes.passed(other(ours), &linked.leftover);
            notes
        })
    }

    /// Bytes of one direction.
    pub(super) fn passed(&mut self, from: Sender, bytes: &[u8]) {
        if bytes.is_empty() || self.queue.is_stopped() {
            return;
        }
        let way = self.ways.of_mut(from);
        let carried = way.header.len();
        // Positions from the first byte not handed on: up to where it can be, and where a message begins.
        let mut end = 0;
        let mut begins = (way.left == 0).then_some(0);
        let mut rest = bytes;
        while let Some(piece) = way.skimmer.next(&mut rest) {
            end = carried + bytes.len() - rest.len();
            way.left = match piece {
                Skimmed::Header { header, .. } => header.size,
                Skimmed::Body { bytes, .. } => {
                    way.left.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                }
            };
            if way.left == 0 && begins.is_none() {
                begins = Some(end);
            }
        }
        let start = match (way.dropping, begins) {
            (false, _) => 0,
            (true, Some(begins)) if self.queue.is_relieved() => begins,
            (true, _) => end,
        };
        if start > 0 {
            self.queue.count_dropped(start);
        }
        if start < end {
            let (link, offset, left, header) =
                (self.link, way.offset.saturating_add(position(start)), way.left, &way.header);
            let len = end - start;
            way.dropping = !self.queue.offer(len, || {
                let mut buffer = Vec::with_capacity(HEADROOM + len);
                buffer.resize(HEADROOM, 0);
                buffer.extend_from_slice(header.get(start..).unwrap_or_default());
                let range = start.saturating_sub(carried)..end.saturating_sub(carried);
                buffer.extend_from_slice(bytes.get(range).unwrap_or_default());
                Entry::Data { link, time: clock::now(), from, offset, left, buffer }
            });
        }
        way.offset = way.offset.saturating_add(position(end));
        if end > 0 {
            way.header.clear();
        }
        way.header.extend_from_slice(bytes.get(end.saturating_sub(carried)..).unwrap_or_default());
    }

    /// Hands on the beginning of a header whose rest never came.
    fn flush(&mut self, from: Sender) {
        let way = self.ways.of_mut(from);
        if way.header.is_empty() {
            return;
        }
        let header = std::mem::take(&mut way.header);
        let offset = way.offset;
        way.offset = offset.saturating_add(length(&header));
        if way.dropping {
            self.queue.count_dropped(header.len());
            return;
        }
        let link = self.link;
        self.queue.offer(header.len(), || {
            let mut buffer = vec![0; HEADROOM];
            buffer.extend_from_slice(&header);
            Entry::Data { link, time: clock::now(), from, offset, left: 0, buffer }
        });
    }

    /// One end sends no more.
    pub(super) fn finished(&mut self, from: Sender) {
        if self.over || std::mem::replace(&mut self.ways.of_mut(from).finished, true) {
            return;
        }
        self.flush(from);
        let total = self.ways.of(from).total();
        self.queue.force(Entry::Finished { link: self.link, time: clock::now(), from, total });
    }

    /// The connection failed. It was not us.
    pub(super) fn broke(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        for from in [Sender::Client, Sender::Server] {
            self.flush(from);
        }
        self.queue.force(Entry::Reset { link: self.link, time: clock::now(), from: other(self.ours) });
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        for from in [Sender::Client, Sender::Server] {
            self.flush(from);
        }
        let totals = Both { client: self.ways.client.total(), server: self.ways.server.total() };
        let (link, ours) = (self.link, self.ours);
        self.queue.force(Entry::Closed { link, time: clock::now(), ours, totals });
    }
}

fn position(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(0)
}

fn length(bytes: &[u8]) -> u64 {
    position(bytes.len())
}
