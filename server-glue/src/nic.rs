//! The virtual machine's network card, as QEMU's `-netdev stream` gives it: frames over a stream, each behind its length.
//!
//! The framing is QEMU's (`net/stream.c`): four octets, big-endian, then that many octets of Ethernet frame. QEMU closes
//! the stream when it is sent a length above 69,632, and skips length zero; so do we.
//!
//! Either side may be the one that listens:
//!
//! * `listen:PATH`: QEMU connects (`server=off`). QEMU 7.2 does so once, at its start, and never again, so we must be there
//!   first and stay. QEMU 8 and later can be told to reconnect.
//! * `connect:PATH`: QEMU listens (`server=on`), and we try for ever. This survives restarts of either, with every version.
//!
//! [`Nic`] owns the socket and two buffers and is driven by one task, with no queue between: [`Nic::ready`] waits for whatever
//! can happen, moving octets both ways meanwhile; frames are then taken with [`Nic::next_frame`] and given with
//! [`Nic::queue`]. Frames in flight are lost with the connection, as on a real link.

use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::Instant;

/// Longest frame, in octets. QEMU's `NET_BUFSIZE`.
pub const MAX_FRAME: usize = 69_632;

/// Octets of a frame's length.
const PREFIX: usize = 4;
/// Octets read at once. Room for one frame however it lies, and for a burst of small ones.
const READ_BUFFER: usize = 512 * 1024;
/// Queued octets from which [`Nic::is_full`].
const HIGH_WATER: usize = 512 * 1024;
/// Queued octets at which a full queue has room again.
const LOW_WATER: usize = 128 * 1024;

/// Connections that may wait at a socket to be accepted.
const BACKLOG: u32 = 1024;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);

/// Where the card is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicSpec {
    /// We listen at this Unix socket, QEMU connects.
    Listen(PathBuf),
    /// QEMU listens at this Unix socket, we connect.
    Connect(PathBuf),
}

impl FromStr for NicSpec {
    type Err = NicSpecError;

    /// `listen:PATH` or `connect:PATH`.
    fn from_str(text: &str) -> Result<NicSpec, NicSpecError> {
        match text.split_once(':') {
            Some((_, "")) => Err(NicSpecError(text.to_owned())),
            Some(("listen", path)) => Ok(NicSpec::Listen(path.into())),
            Some(("connect", path)) => Ok(NicSpec::Connect(path.into())),
            Some(_) | None => Err(NicSpecError(text.to_owned())),
        }
    }
}

impl fmt::Display for NicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NicSpec::Listen(path) => write!(f, "listen:{}", path.display()),
            NicSpec::Connect(path) => write!(f, "connect:{}", path.display()),
        }
    }
}

/// Not a NIC that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" names no NIC: expected listen:PATH (QEMU connects, server=off) or connect:PATH (QEMU listens, server=on)"
)]
pub struct NicSpecError(String);

/// Why a NIC cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// Somebody answers at the socket.
    #[error("{} is in use by a running process: stop that one, or choose another path", .0.display())]
    InUse(PathBuf),
    /// A file that we will not replace.
    #[error("{} exists and is no socket: remove it, or choose another path", .0.display())]
    NotSocket(PathBuf),
    /// What the system said.
    #[error("cannot listen at {}: {error}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// What [`Nic::ready`] waited for.
#[derive(Debug)]
#[non_exhaustive]
pub enum NicEvent {
    /// A virtual machine is there.
    Connected,
    /// Frames can be taken with [`Nic::next_frame`]. Take all of them: as long as some are left, `ready` returns this at once.
    Frames,
    /// The queue was full and has room again.
    Room,
    /// The other end went away, and what was queued is gone. [`Nic::ready`] waits for the next one; behind an attached stream there is
    /// none, and it waits for ever.
    Lost(LinkError),
}

/// Why a NIC's stream is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It was closed by the other end.
    #[error("the virtual machine closed the NIC's stream")]
    Closed,
    /// What follows cannot be understood.
    #[error("the virtual machine sent a frame length of {0}: expected at most {MAX_FRAME}")]
    FrameLength(u32),
    /// What the system said.
    #[error("the NIC's stream broke: {0}")]
    Io(#[from] io::Error),
}

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It came from the guest.
    FromGuest,
    /// It was queued for the guest.
    ToGuest,
}

/// Sees every frame.
type FrameTap = Box<dyn FnMut(Way, &[u8]) + Send>;

/// A byte stream to a virtual machine.
pub trait Link: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Link for T {}

/// See the module's text.
pub struct Nic {
    source: Source,
    link: Option<Box<dyn Link>>,
    incoming: Deframer,
    outgoing: Framer,
    /// The owner was told that the queue is full, and waits for room.
    full: bool,
    dropped: u64,
    tap: Option<FrameTap>,
}

enum Source {
    Listen { listener: UnixListener, _file: Option<SocketFile>, retry: Retry },
    Connect { path: PathBuf, retry: Retry },
    Attached,
}

impl Nic {
    /// Opens a NIC. Nobody needs to be at the other end yet.
    ///
    /// # Errors
    /// `listen:` only: the path is taken, or the system refuses it. A socket that a dead process left there is replaced.
    pub async fn open(spec: &NicSpec) -> Result<Nic, NicError> {
        let source = match spec {
            NicSpec::Listen(path) => {
                let (listener, file) = listen(path, None).await?;
                Source::Listen { listener, _file: Some(file), retry: Retry::new() }
            }
            NicSpec::Connect(path) => Source::Connect { path: path.clone(), retry: Retry::new() },
        };
        Ok(Nic::new(source, None))
    }

    /// A NIC over a stream that is connected already, to whatever speaks the same framing: a hypervisor in Rust, a test, the demo's guest.
    pub fn attached(stream: impl Link + 'static) -> Nic {
        Nic::new(Source::Attached, Some(Box::new(stream)))
    }

    /// A NIC that QEMU connects to, at a socket that somebody else has made.
    pub fn listening(listener: UnixListener) -> Nic {
        Nic::new(Source::Listen { listener, _file: None, retry: Retry::new() }, None)
    }

    fn new(source: Source, link: Option<Box<dyn Link>>) -> Nic {
        let (incoming, outgoing) = (Deframer::new(), Framer::default());
        Nic { source, link, incoming, outgoing, full: false, dropped: 0, tap: None }
    }

    /// Waits until something can be done, and meanwhile sends what is queued and receives. Cancel-safe: nothing is lost when the future is dropped.
    /// The queue moves only while this is polled.
    pub async fn ready(&mut self) -> NicEvent {
        if self.link.is_none() {
            self.link = Some(self.source.next_link().await);
            return NicEvent::Connected;
        }
        match poll_fn(|cx| self.poll_link(cx)).await {
            Ok(event) => {
                if matches!(event, NicEvent::Frames) {
                    self.source.worked();
                }
                event
            }
            Err(error) => {
                self.link = None;
                self.incoming = Deframer::new();
                self.outgoing = Framer::default();
                self.full = false;
                self.source.failed();
                NicEvent::Lost(error)
            }
        }
    }

    /// The next frame that has come, without its length.
    pub fn next_frame(&mut self) -> Option<&[u8]> {
        let frame = self.incoming.next().ok().flatten()?;
        if let Some(tap) = &mut self.tap {
            tap(Way::FromGuest, frame);
        }
        Some(frame)
    }

    /// Queues a frame for the virtual machine. False: it was dropped, because there is no virtual machine, or the frame is longer than
    /// [`MAX_FRAME`], or the queue holds twice what makes it full.
    pub fn queue(&mut self, frame: &[u8]) -> bool {
        let queued =
            self.link.is_some() && self.outgoing.pending().len() < 2 * HIGH_WATER && self.outgoing.put(frame);
        self.dropped += u64::from(!queued);
        if queued && let Some(tap) = &mut self.tap {
            tap(Way::ToGuest, frame);
        }
        queued
    }

    /// Shows every frame from now on to `tap`: when it is taken with [`Nic::next_frame`], and when [`Nic::queue`] has taken it.
    pub fn tap(&mut self, tap: impl FnMut(Way, &[u8]) + Send + 'static) {
        self.tap = Some(Box::new(tap));
    }

    /// Enough is queued: stop, and go on after [`NicEvent::Room`].
    pub fn is_full(&mut self) -> bool {
        self.full = self.outgoing.pending().len() >= HIGH_WATER;
        self.full
    }

    /// Whether everything that was queued has been sent; it moves only while [`Nic::ready`] is polled.
    pub fn is_flushed(&self) -> bool {
        self.outgoing.pending().is_empty()
    }

    /// Whether a virtual machine is at the other end.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Frames that [`Nic::queue`] did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Result<NicEvent, LinkError>> {
        let Some(link) = &mut self.link else { return Poll::Ready(Err(LinkError::Closed)) };
        let mut wrote = false;
        while !self.outgoing.pending().is_empty() {
            match Pin::new(&mut **link).poll_write(cx, self.outgoing.pending()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(LinkError::Closed)),
                Poll::Ready(Ok(count)) => {
                    self.outgoing.sent(count);
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => break,
            }
        }
        if wrote && let Poll::Ready(Err(error)) = Pin::new(&mut **link).poll_flush(cx) {
            return Poll::Ready(Err(error.into()));
        }
        if self.full && self.outgoing.pending().len() <= LOW_WATER {
            self.full = false;
            return Poll::Ready(Ok(NicEvent::Room));
        }
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
        Poll::Ready(Ok(NicEvent::Frames))
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

/// When to try again: 100 ms, doubled up to 3 s, and a quarter of it by chance, so that many do not try as one.
struct Retry {
    delay: Duration,
    /// No attempt before this.
    at: Option<Instant>,
}

impl Retry {
    fn new() -> Retry {
        Retry { delay: FIRST_RETRY, at: None }
    }

    async fn pause(&self) {
        if let Some(at) = self.at {
            tokio::time::sleep_until(at).await;
        }
    }

    fn worked(&mut self) {
        *self = Retry::new();
    }

    fn failed(&mut self, error: &io::Error) {
        self.schedule();
        tracing::debug!(%error, "no virtual machine at the NIC yet");
    }

    fn schedule(&mut self) {
        let mut random = [0; 1];
        // Without randomness the attempts are merely regular.
        let _ = openssl::rand::rand_bytes(&mut random);
        let [random] = random;
        let jitter = self.delay.mul_f64(f64::from(random) / 255.0 / 4.0);
        self.at = Some(Instant::now() + self.delay - jitter);
        self.delay = (self.delay * 2).min(LAST_RETRY);
    }
}

/// Listens at a path, with these permissions or those that the process gives to all it makes.
pub(crate) async fn listen(path: &Path, mode: Option<u32>) -> Result<(UnixListener, SocketFile), NicError> {
    let failed = |error| NicError::Listen { path: path.to_owned(), error };
    let listener = match bind(path, mode) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let kind = std::fs::symlink_metadata(path).map_err(failed)?.file_type();
            if !kind.is_socket() {
                return Err(NicError::NotSocket(path.to_owned()));
            }
            match UnixStream::connect(path).await {
                // Nobody has it open: its process died without removing it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => return Err(NicError::InUse(path.to_owned())),
            }
            std::fs::remove_file(path).map_err(failed)?;
            bind(path, mode).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let file = SocketFile::of(path).map_err(failed)?;
    Ok((listener, file))
}

/// Nobody can connect before the permissions are set.
fn bind(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(BACKLOG)
}

/// A socket file that is ours: removed at the end, unless it is another's by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode: the file itself, whatever its name.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Finds frames in a stream of octets.
#[derive(Debug)]
pub(crate) struct Deframer {
    /// All initialised; what has come is `start..end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Deframer {
    pub(crate) fn new() -> Deframer {
        Deframer { buffer: vec![0; READ_BUFFER].into(), start: 0, end: 0 }
    }

    /// Where the next octets go; never empty as long as [`Deframer::has_frame`] is false.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < PREFIX + MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many octets have come into [`Deframer::spare`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    fn has_frame(&mut self) -> Result<bool, LinkError> {
        Ok(self.frame()?.is_some())
    }

    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, LinkError> {
        let Some((from, to)) = self.frame()? else { return Ok(None) };
        self.start = to;
        Ok(self.buffer.get(from..to))
    }

    /// Where the next frame lies, if it is whole. Steps over empty ones.
    fn frame(&mut self) -> Result<Option<(usize, usize)>, LinkError> {
        loop {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else { return Ok(None) };
            let announced = u32::from_be_bytes(*prefix);
            let len = usize::try_from(announced).unwrap_or(usize::MAX);
            if len > MAX_FRAME {
                return Err(LinkError::FrameLength(announced));
            }
            if len == 0 {
                self.start += PREFIX;
                continue;
            }
            if rest.len() < len {
                return Ok(None);
            }
            let from = self.start + PREFIX;
            return Ok(Some((from, from + len)));
        }
    }
}

/// Frames on their way out, each behind its length.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    bytes: Vec<u8>,
    start: usize,
}

impl Framer {
    /// False: a frame of no length, or too long.
    pub(crate) fn put(&mut self, frame: &[u8]) -> bool {
        let Ok(len) = u32::try_from(frame.len()) else { return false };
        if frame.is_empty() || frame.len() > MAX_FRAME {
            return false;
        }
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(frame);
        true
    }

    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(crate) fn sent(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start >= HIGH_WATER {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    /// Feeds `bytes` in pieces of `size` and gives all frames.
    fn deframe(bytes: &[u8], size: usize) -> Result<Vec<Vec<u8>>, LinkError> {
        let mut deframer = Deframer::new();
        let mut frames = Vec::new();
        for mut piece in bytes.chunks(size) {
            while !piece.is_empty() {
                let spare = deframer.spare();
                let count = piece.len().min(spare.len());
                assert!(count > 0, "a deframer without a whole frame must have room");
                spare[..count].copy_from_slice(&piece[..count]);
                deframer.filled(count);
                piece = &piece[count..];
                while let Some(frame) = deframer.next()? {
                    frames.push(frame.to_vec());
                }
            }
        }
        Ok(frames)
    }

    async fn scratch() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("nic-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect("it should not take this long")
    }

    async fn frames(nic: &mut Nic) -> Vec<Vec<u8>> {
        assert!(matches!(soon(nic.ready()).await, NicEvent::Frames));
        let mut frames = Vec::new();
        while let Some(frame) = nic.next_frame() {
            frames.push(frame.to_vec());
        }
        frames
    }

    #[test]
    fn specs() {
        assert_eq!("listen:/a:b".parse(), Ok(NicSpec::Listen("/a:b".into())));
        assert_eq!("connect:x".parse(), Ok(NicSpec::Connect("x".into())));
        for wrong in ["", "listen", "listen:", "tap:0", "/a"] {
            assert!(wrong.parse::<NicSpec>().unwrap_err().to_string().contains("listen:PATH"), "{wrong}");
        }
        assert_eq!(NicSpec::Listen("/a".into()).to_string(), "listen:/a");
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let large = vec![7; MAX_FRAME];
        let sent: [&[u8]; 5] = [b"a", &large, b"", &large[..60], b"zz"];
        let bytes = framed(&sent).repeat(12);
        let whole = sent.iter().filter(|frame| !frame.is_empty()).map(|frame| frame.to_vec());
        let expected: Vec<Vec<u8>> = whole.cycle().take(4 * 12).collect();
        for size in [1, 2, 3, 5, 1000, 65_536, READ_BUFFER, usize::MAX] {
            assert_eq!(deframe(&bytes, size).unwrap(), expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_an_error_and_needs_no_memory() {
        for len in [69_633u32, 0x7fff_ffff, u32::MAX] {
            let error = deframe(&len.to_be_bytes(), 4).unwrap_err();
            assert!(matches!(error, LinkError::FrameLength(got) if got == len));
        }
    }

    #[test]
    fn what_cannot_be_framed_is_not() {
        let mut framer = Framer::default();
        assert!(!framer.put(&[]));
        assert!(!framer.put(&[0; MAX_FRAME + 1]));
        assert!(framer.put(&[0; MAX_FRAME]));
        assert_eq!(framer.pending().len(), PREFIX + MAX_FRAME);
    }

    #[tokio::test]
    async fn a_pair_carries_frames_both_ways_and_says_when_it_is_full() {
        let (one, other) = tokio::io::duplex(HIGH_WATER);
        let (mut here, mut there) = (Nic::attached(one), Nic::attached(other));
        assert!(here.queue(b"one") && here.queue(b"two"));
        let pump = async {
            let _ = here.ready().await;
        };
        tokio::select! {
            () = pump => panic!("nothing came, nothing was full"),
            got = frames(&mut there) => assert_eq!(got, [b"one", b"two"]),
        }
        let mut queued = 0;
        while !here.is_full() {
            assert!(here.queue(&[9; 1500]));
            queued += 1;
        }
        let mut got = 0;
        let mut room = false;
        while got < queued {
            tokio::select! {
                event = here.ready() => room |= matches!(event, NicEvent::Room),
                more = frames(&mut there) => got += more.len(),
            }
        }
        assert!(room && !here.is_full());
        drop(there);
        assert!(matches!(soon(here.ready()).await, NicEvent::Lost(LinkError::Closed | LinkError::Io(_))));
        assert!(!here.queue(b"nobody"));
        assert_eq!(here.dropped(), 1);
    }

    #[tokio::test]
    async fn listening_serves_one_machine_at_a_time_and_the_next_takes_over() {
        let path = scratch().await.join("nic");
        let mut nic = Nic::open(&NicSpec::Listen(path.clone())).await.unwrap();
        let mut first = UnixStream::connect(&path).await.unwrap();
        assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
        let mut second = UnixStream::connect(&path).await.unwrap();
        second.write_all(&framed(&[b"second"])).await.unwrap();
        first.write_all(&framed(&[b"", b"first"])).await.unwrap();
        assert_eq!(frames(&mut nic).await, [b"first"]);
        drop(first);
        assert!(matches!(soon(nic.ready()).await, NicEvent::Lost(_)));
        assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
        assert_eq!(frames(&mut nic).await, [b"second"]);
        nic.queue(b"hello");
        let mut got = [0; 9];
        tokio::select! {
            _ = nic.ready() => panic!("nothing to tell"),
            read = soon(second.read_exact(&mut got)) => { read.unwrap(); }
        }
        assert_eq!(&got, b"\0\0\0\x05hello");
        drop(nic);
        assert!(!path.exists(), "the socket file is ours, so it goes with us");
    }

    #[tokio::test]
    async fn an_oversized_frame_costs_the_connection_only() {
        let path = scratch().await.join("nic");
        let mut nic = Nic::open(&NicSpec::Listen(path.clone())).await.unwrap();
        for _ in 0..3 {
            let mut machine = UnixStream::connect(&path).await.unwrap();
            machine.write_all(&69_633u32.to_be_bytes()).await.unwrap();
            assert!(matches!(soon(nic.ready()).await, NicEvent::Connected));
            assert!(matches!(soon(nic.ready()).await, NicEvent::Lost(LinkError::FrameLength(69_633))));
        }
    }

    #[tokio::test]
    async fn a_dead_process_s_socket_is_replaced_and_a_live_one_s_is_not() {
        let path = scratch().await.join("nic");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let nic = Nic::open(&NicSpec::Listen(path.clone())).await.unwrap();
        let error = Nic::open(&NicSpec::Listen(path.clone())).await.err().unwrap();
        assert!(matches!(error, NicError::InUse(_)), "{error}");
        // Replaced by somebody else meanwhile: theirs stays.
        std::fs::remove_file(&path).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(nic);
        assert!(path.exists());
        let file = path.with_extension("txt");
        std::fs::write(&file, "precious").unwrap();
        let error = Nic::open(&NicSpec::Listen(file.clone())).await.err().unwrap();
        assert!(matches!(error, NicError::NotSocket(_)), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[tokio::test(start_paused = true)]
    async fn connecting_is_tried_for_ever_and_after_every_loss() {
        let path = scratch().await.join("nic");
        let mut nic = Nic::open(&NicSpec::Connect(path.clone())).await.unwrap();
        // Nobody there for a day; every attempt is cancelled in between, which loses nothing.
        for _ in 0..24 {
            assert!(tokio::time::timeout(Duration::from_secs(3600), nic.ready()).await.is_err());
        }
        for round in 0..3 {
            let listener = UnixListener::bind(&path).unwrap();
            assert!(matches!(nic.ready().await, NicEvent::Connected));
            let (mut machine, _) = listener.accept().await.unwrap();
            machine.write_all(&framed(&[b"hi"])).await.unwrap();
            assert_eq!(frames(&mut nic).await, [b"hi"], "round {round}");
            drop((machine, listener));
            std::fs::remove_file(&path).unwrap();
            assert!(matches!(nic.ready().await, NicEvent::Lost(_)));
            assert!(!nic.is_connected());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_closes_at_once_is_not_hammered() {
        let path = scratch().await.join("nic");
        let listener = UnixListener::bind(&path).unwrap();
        let mut nic = Nic::open(&NicSpec::Connect(path)).await.unwrap();
        let start = Instant::now();
        for _ in 0..10 {
            assert!(matches!(nic.ready().await, NicEvent::Connected));
            drop(listener.accept().await.unwrap());
            assert!(matches!(nic.ready().await, NicEvent::Lost(_)));
        }
        assert!(start.elapsed() > Duration::from_secs(10), "took {:?}", start.elapsed());
    }
}
