//! The virtual machine's network card: frames of a guest, from wherever they come.
//!
//! Three kinds:
//!
//! * **A stream**, as QEMU's `-netdev stream` gives it: frames over a stream, each behind its length. The framing is QEMU's
//!   (`net/stream.c`): four octets, big-endian, then that many octets of Ethernet frame. QEMU closes the stream when it is
//!   sent a length above 69,632, and skips length zero; so do we. Either side may be the one that listens:
//!
//!     * `listen:PATH`: QEMU connects (`server=off`). QEMU 7.2 does so once, at its start, and never again, so we must be
//!       there first and stay. QEMU 8 and later can be told to reconnect.
//!     * `connect:PATH`: QEMU listens (`server=on`), and we try for ever. This survives restarts of either, with every version.
//!
//! * **A TAP device** of this machine, `tap:NAME` (feature `tap`): what the kernel sends out of it is the guest's. So the guest
//!   is whatever is bridged to it, QEMU's `-netdev tap` among others, or the network namespace the device is in. Long TCP segments pass
//!   whole and without checksums ([`crate::offload`]), unless `,offload=off` stands behind the name.
//!
//! * **The guest's own rings**, `vhost-user:PATH` (feature `vhost-user`): QEMU connects (`-netdev vhost-user`), and shares the
//!   guest's memory with us. So a frame is copied once, and no octet of it passes QEMU or a socket. Segments pass whole and without checksums
//!   if the guest's driver can do that. The memory must be such that can be shared (`memory-backend-memfd`, `share=on`). QEMU refuses
//!   to migrate such a machine.
//!
//! [`Nic`] owns the descriptor and its buffers and is driven by one task, with no queue between: [`Nic::ready`] waits for whatever
//! can happen, moving octets both ways meanwhile; frames are then taken with [`Nic::next_frame`] and given with
//! [`Nic::queue`]. Frames in flight are lost with the connection, as on a real link.

mod framing;
mod retry;
mod socket;
mod spec;
mod stream;
#[cfg(feature = "tap")]
pub mod tap;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
#[cfg(any(feature = "tap", feature = "vhost-user"))]
mod vnet;

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

pub(crate) use self::framing::{Deframer, Framer};
pub(crate) use self::socket::{SocketFile, listen};
pub use self::spec::{NicSpec, NicSpecError};
use self::stream::StreamCard;
#[cfg(feature = "tap")]
use self::tap::{TapCard, TapError};
#[cfg(feature = "vhost-user")]
use self::vhost_user::{VhostUserCard, VhostUserError};
use crate::offload::{CardFrame, Offloads};

/// Longest frame, in octets. QEMU's `NET_BUFSIZE`.
pub const MAX_FRAME: usize = 69_632;

/// Queued octets from which [`Nic::is_full`].
const HIGH_WATER: usize = 512 * 1024;
/// Queued octets at which a full queue has room again.
const LOW_WATER: usize = 128 * 1024;

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
    /// A TAP device that cannot be had.
    #[cfg(feature = "tap")]
    #[error(transparent)]
    Tap(#[from] TapError),
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
    /// Somebody deleted the device.
    #[cfg(feature = "tap")]
    #[error("the TAP device was deleted")]
    Deleted,
    /// What the system said.
    #[cfg(feature = "tap")]
    #[error("the TAP device failed: {0}")]
    Device(#[source] io::Error),
    /// The rings in the guest's memory are not to be used any more.
    #[cfg(feature = "vhost-user")]
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
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
    card: Card,
    /// The owner was told that the queue is full, and waits for room.
    full: bool,
    dropped: u64,
    tap: Option<FrameTap>,
}

enum Card {
    Stream(Box<StreamCard>),
    #[cfg(feature = "tap")]
    Tap(Box<TapCard>),
    #[cfg(feature = "vhost-user")]
    VhostUser(Box<VhostUserCard>),
}

impl Nic {
    /// Opens a NIC for a network with packets of at most `mtu` octets. Nobody needs to be at the other end yet.
    ///
    /// # Errors
    /// `listen:` and `vhost-user:` the path is taken, or the system refuses it; a socket that a dead process left there is replaced. `tap:` the device
    /// cannot be had, or takes no packets of 576 octets.
    #[cfg_attr(not(feature = "tap"), expect(unused_variables, reason = "only TAP devices have an MTU"))]
    pub async fn open(spec: &NicSpec, mtu: u16) -> Result<Nic, NicError> {
        Ok(match spec {
            NicSpec::Listen(path) => Nic::over(StreamCard::listen(path).await?),
            NicSpec::Connect(path) => Nic::over(StreamCard::connect(path.clone())),
            #[cfg(feature = "vhost-user")]
            NicSpec::VhostUser(path) => {
                Nic::new(Card::VhostUser(Box::new(VhostUserCard::listen(path).await?)))
            }
            #[cfg(feature = "tap")]
            NicSpec::Tap(tap) => Nic::new(Card::Tap(Box::new(TapCard::open(tap, mtu)?))),
        })
    }

    /// A NIC over a stream that is connected already, to whatever speaks the same framing: a hypervisor in Rust, a test, the demo's guest.
    pub fn attached(stream: impl Link + 'static) -> Nic {
        Nic::over(StreamCard::attached(stream))
    }

    /// A NIC that QEMU connects to, at a socket that somebody else has made.
    pub fn listening(listener: UnixListener) -> Nic {
        Nic::over(StreamCard::listening(listener))
    }

    fn over(stream: StreamCard) -> Nic {
        Nic::new(Card::Stream(Box::new(stream)))
    }

    fn new(card: Card) -> Nic {
        Nic { card, full: false, dropped: 0, tap: None }
    }

    /// Waits until something can be done, and meanwhile sends what is queued and receives. Cancel-safe: nothing is lost when the future is dropped.
    /// The queue moves only while this is polled.
    pub async fn ready(&mut self) -> NicEvent {
        if !self.is_connected() {
            match &mut self.card {
                Card::Stream(card) => card.attach().await,
                #[cfg(feature = "tap")]
                Card::Tap(card) => card.attach().await,
                #[cfg(feature = "vhost-user")]
                Card::VhostUser(card) => card.attach().await,
            }
            return NicEvent::Connected;
        }
        match poll_fn(|cx| self.poll_link(cx)).await {
            Ok(event) => event,
            Err(error) => {
                match &mut self.card {
                    Card::Stream(card) => card.lost(),
                    #[cfg(feature = "tap")]
                    Card::Tap(card) => card.lost(),
                    #[cfg(feature = "vhost-user")]
                    Card::VhostUser(card) => card.lost(),
                }
                self.full = false;
                NicEvent::Lost(error)
            }
        }
    }

    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Result<NicEvent, LinkError>> {
        match &mut self.card {
            Card::Stream(card) => card.poll_flush(cx)?,
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.poll_flush(cx)?,
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.poll_flush(cx)?,
        }
        if self.full && self.pending() <= LOW_WATER {
            self.full = false;
            return Poll::Ready(Ok(NicEvent::Room));
        }
        let filled = match &mut self.card {
            Card::Stream(card) => card.poll_fill(cx),
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.poll_fill(cx),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.poll_fill(cx),
        };
        ready!(filled)?;
        Poll::Ready(Ok(NicEvent::Frames))
    }

    /// The next frame that has come, without its length.
    pub fn next_frame(&mut self) -> Option<CardFrame<'_>> {
        let frame = match &mut self.card {
            Card::Stream(card) => card.next_frame().map(CardFrame::whole),
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.next_frame(),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.next_frame(),
        }?;
        if let Some(tap) = &mut self.tap {
            show(tap, Way::FromGuest, &frame);
        }
        Some(frame)
    }

    /// Queues a frame for the virtual machine. False: it was dropped, because there is no virtual machine, or the frame is longer than
    /// [`MAX_FRAME`], or leaves something to the card that is not among its [`Nic::offloads`], or the queue holds twice what makes it full.
    pub fn queue<'a>(&mut self, frame: impl Into<CardFrame<'a>>) -> bool {
        let frame = frame.into();
        let Offloads { checksums, segments } = self.offloads();
        let able = (checksums || !frame.vouched) && (segments || frame.segment.is_none());
        let queued = able
            && self.pending() < 2 * HIGH_WATER
            && match &mut self.card {
                Card::Stream(card) => card.queue(frame.bytes),
                #[cfg(feature = "tap")]
                Card::Tap(card) => card.queue(&frame),
                #[cfg(feature = "vhost-user")]
                Card::VhostUser(card) => card.queue(&frame),
            };
        self.dropped += u64::from(!queued);
        if queued && let Some(tap) = &mut self.tap {
            show(tap, Way::ToGuest, &frame);
        }
        queued
    }

    /// What can be left to the card. It may be something else once another virtual machine is at the other end.
    pub fn offloads(&self) -> Offloads {
        match &self.card {
            Card::Stream(_) => Offloads::NONE,
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.offloads(),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.offloads(),
        }
    }

    /// Shows every frame from now on to `tap`: when it is taken with [`Nic::next_frame`], and when [`Nic::queue`] has taken it. Checksums are put
    /// in for it; a segment that the card cuts is shown whole.
    pub fn tap(&mut self, tap: impl FnMut(Way, &[u8]) + Send + 'static) {
        self.tap = Some(Box::new(tap));
    }

    /// Enough is queued: stop, and go on after [`NicEvent::Room`].
    pub fn is_full(&mut self) -> bool {
        self.full = self.pending() >= HIGH_WATER;
        self.full
    }

    /// Whether everything that was queued has been sent; it moves only while [`Nic::ready`] is polled.
    pub fn is_flushed(&self) -> bool {
        self.pending() == 0
    }

    /// Whether a virtual machine is at the other end.
    pub fn is_connected(&self) -> bool {
        match &self.card {
            Card::Stream(card) => card.is_connected(),
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.is_connected(),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.is_connected(),
        }
    }

    /// The largest packet for a network that would have it so large: a TAP device can have a limit of its own.
    pub fn mtu(&self, wanted: u16) -> u16 {
        match &self.card {
            Card::Stream(_) => wanted,
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.mtu().min(wanted),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(_) => wanted,
        }
    }

    /// Frames that [`Nic::queue`] did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Queued octets.
    fn pending(&self) -> usize {
        match &self.card {
            Card::Stream(card) => card.pending(),
            #[cfg(feature = "tap")]
            Card::Tap(card) => card.pending(),
            #[cfg(feature = "vhost-user")]
            Card::VhostUser(card) => card.pending(),
        }
    }
}

fn show(tap: &mut FrameTap, way: Way, frame: &CardFrame<'_>) {
    if frame.vouched {
        tap(way, &frame.summed());
    } else {
        tap(way, frame);
    }
}

#[cfg(test)]
mod tests;
