//! The guest's shell: a [`Stack`] driven over any byte stream that carries a network card's frames, with an async
//! API in front.
//!
//! One task drives the stack; owners of connections reach it through a lock that is held for a copy and never
//! across an await. The frames' own stream decides how fast it goes: when it takes no more, the stack is not asked
//! for packets, and writers wait.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stack::{Config, ConnectionError, ConnectionId, Event, Frame, Lease, Received, Stack};

/// The longest frame QEMU sends or takes on a stream network card: a 64 KiB packet and its headers.
const LONGEST_FRAME: usize = 69_632;
/// Room for several of the longest frames, so that one read brings a batch.
const READ_BUFFER: usize = 1 << 20;
/// Frames handed to one write.
const WRITE_BATCH: usize = 64;
/// Reads and writes in a row before other tasks get their turn.
const BUDGET: usize = 32;

/// Why a guest can do nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream of frames ended or broke.
    #[error("the guest's network card is gone: {0}")]
    Nic(Arc<str>),
    /// One connection or ping failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Nic(_) => io::ErrorKind::NetworkDown,
            Error::Connection(error) => match error {
                ConnectionError::NoRoute | ConnectionError::NoAddress => io::ErrorKind::NetworkUnreachable,
                ConnectionError::Unreachable => io::ErrorKind::HostUnreachable,
                ConnectionError::Refused => io::ErrorKind::ConnectionRefused,
                ConnectionError::Reset => io::ErrorKind::ConnectionReset,
                ConnectionError::TimedOut => io::ErrorKind::TimedOut,
                ConnectionError::Aborted => io::ErrorKind::ConnectionAborted,
                ConnectionError::NoPort => io::ErrorKind::AddrNotAvailable,
                ConnectionError::Finished => io::ErrorKind::BrokenPipe,
                ConnectionError::Unknown => io::ErrorKind::NotConnected,
            },
        };
        io::Error::new(kind, error)
    }
}

/// A running guest. It is switched off when the last clone and the last of its streams are gone.
#[derive(Debug, Clone)]
pub struct Guest {
    power: Arc<Power>,
}

/// Keeps the driver running; its drop ends it.
#[derive(Debug)]
struct Power {
    shared: Arc<Shared>,
}

impl Drop for Power {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.off = true;
        self.shared.wake_driver(inner);
    }
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stack: Stack,
    driver: Option<Waker>,
    off: bool,
    dead: Option<Arc<str>>,
    lease_waiters: Vec<Waker>,
    /// By slot of the connection.
    waiters: Vec<Waiters>,
    pings: Vec<(u16, PingWaiter)>,
}

#[derive(Debug, Default)]
struct Waiters {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
enum PingWaiter {
    Waiting(Option<Waker>),
    Answered(Result<Duration, ConnectionError>),
}

impl Guest {
    /// Switches a guest on with its network card's cable in `nic`, a stream of frames with QEMU's lengths before them.
    /// Must be called within a tokio runtime: a task drives it.
    pub fn start<S>(nic: S, config: Config) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (guest, driver) = Self::new(nic, config);
        tokio::spawn(driver);
        guest
    }

    /// Like [`Guest::start`], with the driver given back for the caller to run. It ends without error when the guest
    /// is switched off, and with one when the stream of frames ends or breaks.
    pub fn new<S>(nic: S, config: Config) -> (Self, impl Future<Output = io::Result<()>>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stack = Stack::new(config, now());
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                stack,
                driver: None,
                off: false,
                dead: None,
                lease_waiters: Vec::new(),
                waiters: Vec::new(),
                pings: Vec::new(),
            }),
        });
        let driver = Driver::new(nic, Arc::clone(&shared));
        (Self { power: Arc::new(Power { shared }) }, driver.run())
    }

    /// Waits for an address; at once if the guest has one. Cancel safe.
    pub async fn lease(&self) -> Result<Lease, Error> {
        poll_fn(|cx| {
            let mut inner = self.power.shared.lock();
            if let Some(lease) = inner.stack.lease() {
                return Poll::Ready(Ok(lease.clone()));
            }
            if let Some(reason) = &inner.dead {
                return Poll::Ready(Err(Error::Nic(Arc::clone(reason))));
            }
            if !inner.lease_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                inner.lease_waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Opens a TCP connection; waits until it is open. Cancel safe: dropping the future gives the attempt up.
    pub async fn connect(&self, to: IpAddr, port: u16) -> Result<GuestStream, Error> {
        let stream = {
            let mut inner = self.power.shared.lock();
            inner.alive()?;
            let id = inner.stack.connect(now(), to, port)?;
            if inner.waiters.len() <= id.slot() {
                inner.waiters.resize_with(id.slot() + 1, Waiters::default);
            }
            self.power.shared.wake_driver(inner);
            GuestStream { power: Arc::clone(&self.power), id }
        };
        poll_fn(|cx| {
            let mut inner = self.power.shared.lock();
            if let Some(result) = inner.stack.is_open(stream.id) {
                return Poll::Ready(result.map_err(Error::from));
            }
            inner.alive()?;
            inner.waiters_of(stream.id).writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        Ok(stream)
    }

    /// Connections the guest's stack holds: open ones, and those that still end by themselves.
    pub fn connections(&self) -> usize {
        self.power.shared.lock().stack.connections()
    }

    /// Sends an ICMP echo request and waits for its answer; for ever if none comes. Gives the time it took. Cancel
    /// safe.
    pub async fn ping(&self, to: IpAddr) -> Result<Duration, Error> {
        /// Forgets the ping however the future ends.
        struct Forget<'a>(&'a Shared, u16);
        impl Drop for Forget<'_> {
            fn drop(&mut self) {
                let mut inner = self.0.lock();
                inner.stack.forget_ping(self.1);
                inner.pings.retain(|(sequence, _)| *sequence != self.1);
            }
        }
        let sequence = {
            let mut inner = self.power.shared.lock();
            inner.alive()?;
            let sequence = inner.stack.ping(now(), to)?;
            inner.pings.push((sequence, PingWaiter::Waiting(None)));
            self.power.shared.wake_driver(inner);
            sequence
        };
        let _forget = Forget(&self.power.shared, sequence);
        poll_fn(|cx| {
            let mut inner = self.power.shared.lock();
            inner.alive()?;
            match inner.pings.iter_mut().find(|(number, _)| *number == sequence) {
                Some((_, PingWaiter::Answered(result))) => Poll::Ready(result.map_err(Error::from)),
                Some((_, PingWaiter::Waiting(waker))) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(Err(ConnectionError::Unknown.into())),
            }
        })
        .await
    }
}

/// A TCP connection of the guest. `shutdown` sends FIN; dropping it ends it as a host's `close()` does: in order,
/// or by a reset where something received was never read.
#[derive(Debug)]
pub struct GuestStream {
    power: Arc<Power>,
    id: ConnectionId,
}

impl GuestStream {
    /// Resets the connection: RST to the peer, errors here from now on.
    pub fn reset(&mut self) {
        let mut inner = self.power.shared.lock();
        inner.stack.reset(self.id);
        self.power.shared.wake_driver(inner);
    }

    /// The guest's address and port of this connection.
    pub fn local(&self) -> Option<(IpAddr, u16)> {
        self.power.shared.lock().stack.local(self.id)
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let mut inner = self.power.shared.lock();
        *inner.waiters_of(self.id) = Waiters::default();
        inner.stack.release(self.id);
        self.power.shared.wake_driver(inner);
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.power.shared.lock();
        let mut taken = false;
        // Twice, because the ring's content may be in two pieces.
        while buf.remaining() > 0 {
            let received = inner.stack.recv(self.id, |bytes| {
                let len = bytes.len().min(buf.remaining());
                buf.put_slice(bytes.get(..len).unwrap_or_default());
                len
            });
            match received {
                Ok(Received::Data(_)) => taken = true,
                _ if taken => break,
                Ok(Received::End) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(Error::from(error).into())),
                Ok(Received::Pending) => {
                    inner.alive()?;
                    inner.waiters_of(self.id).reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        if taken {
            self.power.shared.wake_driver(inner);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.power.shared.lock();
        inner.alive()?;
        match inner.stack.send(self.id, data) {
            Err(error) => Poll::Ready(Err(Error::from(error).into())),
            Ok(0) if !data.is_empty() => {
                inner.waiters_of(self.id).writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(sent) => {
                self.power.shared.wake_driver(inner);
                Poll::Ready(Ok(sent))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.power.shared.lock();
        if let Some(Err(error)) = inner.stack.is_open(self.id) {
            return Poll::Ready(Err(Error::from(error).into()));
        }
        inner.stack.finish(self.id);
        self.power.shared.wake_driver(inner);
        Poll::Ready(Ok(()))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the stack as good as it was between two calls.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the driver that the stack has something to do. Takes the lock's guard, so that the driver does not
    /// wake up into a lock that is still held.
    fn wake_driver(&self, mut inner: MutexGuard<'_, Inner>) {
        let driver = inner.driver.take();
        drop(inner);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Inner {
    fn alive(&self) -> Result<(), Error> {
        match &self.dead {
            Some(reason) => Err(Error::Nic(Arc::clone(reason))),
            None => Ok(()),
        }
    }

    fn waiters_of(&mut self, id: ConnectionId) -> &mut Waiters {
        let slot = id.slot();
        if self.waiters.len() <= slot {
            self.waiters.resize_with(slot + 1, Waiters::default);
        }
        #[expect(clippy::indexing_slicing, reason = "made long enough just above")]
        &mut self.waiters[slot]
    }

    /// Takes the events out of the stack; gives whom to wake.
    fn drain_events(&mut self, wake: &mut Vec<Waker>) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Leased(_) => wake.append(&mut self.lease_waiters),
                Event::LeaseLost => {}
                Event::Changed(id) => {
                    let waiters = self.waiters_of(id);
                    wake.extend(waiters.reader.take());
                    wake.extend(waiters.writer.take());
                }
                Event::Pong { sequence, round_trip } => self.answer(sequence, Ok(round_trip), wake),
                Event::PingFailed { sequence, error } => self.answer(sequence, Err(error), wake),
            }
        }
    }

    fn answer(&mut self, sequence: u16, result: Result<Duration, ConnectionError>, wake: &mut Vec<Waker>) {
        if let Some((_, waiter)) = self.pings.iter_mut().find(|(number, _)| *number == sequence)
            && let PingWaiter::Waiting(waker) = std::mem::replace(waiter, PingWaiter::Answered(result))
        {
            wake.extend(waker);
        }
    }

    /// Wakes everybody: there is nothing to wait for any more.
    fn die(&mut self, reason: &str, wake: &mut Vec<Waker>) {
        self.dead.get_or_insert_with(|| Arc::from(reason));
        wake.append(&mut self.lease_waiters);
        for waiters in &mut self.waiters {
            wake.extend(waiters.reader.take());
            wake.extend(waiters.writer.take());
        }
        for (_, waiter) in &mut self.pings {
            if let PingWaiter::Waiting(waker) = waiter {
                wake.extend(waker.take());
            }
        }
    }
}

/// The clock, as tokio has it: a test that pauses tokio's time pauses the guest.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Moves frames between the stream and the stack.
struct Driver<S> {
    nic: S,
    shared: Arc<Shared>,
    input: Box<[u8]>,
    /// Bytes of `input` that hold something.
    filled: usize,
    batch: VecDeque<Frame>,
    /// Bytes of the first frame of the batch that are written already.
    written: usize,
    timer: Pin<Box<tokio::time::Sleep>>,
    wake: Vec<Waker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn new(nic: S, shared: Arc<Shared>) -> Self {
        Self {
            nic,
            shared,
            input: vec![0; READ_BUFFER].into_boxed_slice(),
            filled: 0,
            batch: VecDeque::new(),
            written: 0,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            wake: Vec::new(),
        }
    }

    async fn run(mut self) -> io::Result<()> {
        let result = poll_fn(|cx| self.poll(cx)).await;
        let reason = match &result {
            Ok(()) => "it was switched off".to_owned(),
            Err(error) => error.to_string(),
        };
        self.shared.lock().die(&reason, &mut self.wake);
        self.wake_all();
        result
    }

    fn wake_all(&mut self) {
        for waker in self.wake.drain(..) {
            waker.wake();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..BUDGET {
            let read = self.poll_read(cx)?;
            let deadline = match self.run_stack(cx) {
                Some(deadline) => deadline,
                None => return Poll::Ready(Ok(())),
            };
            let wrote = self.poll_write(cx)?;
            self.wake_all();
            if read || wrote {
                continue;
            }
            let Some(deadline) = deadline else { return Poll::Pending };
            self.timer.as_mut().reset(deadline.into());
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and all whole frames of it into the stack. True if something came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut buf = ReadBuf::new(self.input.get_mut(self.filled..).unwrap_or_default());
        match Pin::new(&mut self.nic).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(false),
            Poll::Ready(result) => result?,
        }
        let came = buf.filled().len();
        if came == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end closed it"));
        }
        self.filled += came;
        let mut inner = self.shared.lock();
        let now = now();
        let mut rest = self.input.get(..self.filled).unwrap_or_default();
        while let Some((prefix, behind)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            if len > LONGEST_FRAME {
                let problem =
                    format!("a frame of {len} bytes announced, at most {LONGEST_FRAME} are allowed");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            let Some((frame, behind)) = behind.split_at_checked(len) else { break };
            inner.stack.handle_frame(now, frame);
            rest = behind;
        }
        let left = rest.len();
        inner.drain_events(&mut self.wake);
        drop(inner);
        self.input.copy_within(self.filled - left..self.filled, 0);
        self.filled = left;
        Ok(true)
    }

    /// Timers and outgoing frames. Gives the stack's next deadline, or `None` when the guest was switched off.
    fn run_stack(&mut self, cx: &mut Context<'_>) -> Option<Option<Instant>> {
        let mut inner = self.shared.lock();
        if inner.off {
            return None;
        }
        let now = now();
        if inner.stack.poll_timeout().is_some_and(|deadline| deadline <= now) {
            inner.stack.handle_timeout(now);
        }
        while self.batch.len() < WRITE_BATCH {
            let Some(frame) = inner.stack.poll_transmit(now) else { break };
            self.batch.push_back(frame);
        }
        inner.drain_events(&mut self.wake);
        if !inner.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            inner.driver = Some(cx.waker().clone());
        }
        Some(inner.stack.poll_timeout())
    }

    /// One write of as many frames as wait. True if something went.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.batch.is_empty() {
            return Ok(false);
        }
        let mut slices = Vec::with_capacity(self.batch.len());
        let mut skip = self.written;
        for frame in &self.batch {
            slices.push(IoSlice::new(frame.framed().get(skip..).unwrap_or_default()));
            skip = 0;
        }
        let mut written = match Pin::new(&mut self.nic).poll_write_vectored(cx, &slices) {
            Poll::Pending => return Ok(false),
            Poll::Ready(result) => result?,
        };
        if written == 0 {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the other end takes nothing any more"));
        }
        let mut done = Vec::new();
        while let Some(frame) = self.batch.front() {
            let left = frame.framed().len() - self.written;
            if written < left {
                self.written += written;
                break;
            }
            written -= left;
            self.written = 0;
            done.extend(self.batch.pop_front());
        }
        if !done.is_empty() {
            let mut inner = self.shared.lock();
            for frame in done {
                inner.stack.recycle(frame);
            }
        }
        Ok(true)
    }
}
