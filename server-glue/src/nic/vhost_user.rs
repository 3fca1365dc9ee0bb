//! A card whose rings are in the guest's own memory: QEMU's `-netdev vhost-user`.
//!
//! QEMU connects to our socket and hands over three things: the guest's memory as files to be mapped, where in it the rings of the guest's
//! `virtio-net` card are, and descriptors to be woken by and to wake the guest with. From then on frames go past QEMU: each is copied
//! once, between the guest's memory and ours.
//!
//! ```text
//!  guest's driver ── rings in shared memory ── frames.rs, ring.rs ── VhostUserCard ── the network
//!       │ kick, call: eventfds                                          │
//!      QEMU ────────── control connection ─────── control.rs ───── device.rs
//! ```
//!
//! * `ring.rs` walks one ring, and knows nothing but memory; `frames.rs` puts frames into two of them.
//! * `message.rs` knows what QEMU says, `device.rs` what it has told, and whether the rings may be used; `control.rs` is the
//!   connection on which it does.
//!
//! Whoever writes in the guest's memory is not trusted: what is wrong there ends the card's link, until the guest starts its
//! card anew. QEMU is believed as far as it must be: that memory which it has shared does not shrink (`memory-backend-memfd`
//! seals it), for an access beyond its end would be our end.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::task::{Context, Poll, ready};

use tokio::net::UnixListener;

use self::control::Control;
use self::device::Started;
pub use self::error::{RequestError, RingError, RingName, VhostUserError};
use self::frames::{Features, Given, MAX_RECORD, Taken};
use self::kick::Kick;
use super::framing::{Framer, PREFIX};
use super::retry::Retry;
use super::socket::{SocketFile, listen};
use super::{LinkError, MAX_FRAME, NicError, vnet};
use crate::offload::{CardFrame, Offloads};

mod control;
mod device;
#[cfg(test)]
mod driver;
mod error;
mod frames;
mod kick;
mod message;
mod ring;

/// Chains taken of the guest at once, and the room for them. A longest one always has room.
const BATCH: usize = 64;
const READ_BUFFER: usize = 512 * 1024;

/// See the module's text.
pub(super) struct VhostUserCard {
    listener: UnixListener,
    _file: SocketFile,
    retry: Retry,
    control: Option<Box<Control>>,
    link: Option<LinkUp>,
    /// INVARIANT: what `came` names lies within it.
    buffer: Box<[u8]>,
    came: VecDeque<Range<usize>>,
    /// What the guest had no buffers for: frames behind their headers.
    outgoing: Framer,
    /// The guest is to be told of frames.
    owes: bool,
    /// Why nothing can be sent any more, if so: told by [`VhostUserCard::poll_flush`].
    broken: Option<VhostUserError>,
}

/// The guest's driver runs.
struct LinkUp {
    features: Features,
    receive: Kick,
    transmit: Kick,
}

impl VhostUserCard {
    pub(super) async fn listen(path: &Path) -> Result<VhostUserCard, NicError> {
        let (listener, file) = listen(path, None).await?;
        Ok(VhostUserCard {
            listener,
            _file: file,
            retry: Retry::new(),
            control: None,
            link: None,
            buffer: vec![0; READ_BUFFER].into(),
            came: VecDeque::new(),
            outgoing: Framer::default(),
            owes: false,
            broken: None,
        })
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn offloads(&self) -> Offloads {
        self.link.as_ref().map_or(Offloads::NONE, |link| link.features.offloads())
    }

    /// What waits here. Never nothing while the guest is still to be told.
    pub(super) fn pending(&self) -> usize {
        self.outgoing.pending().len().max(usize::from(self.owes))
    }

    /// Waits until a guest's driver runs. Cancel-safe.
    pub(super) async fn attach(&mut self) {
        loop {
            if self.control.is_some() {
                match std::future::poll_fn(|cx| self.poll_start(cx)).await {
                    Ok(link) => {
                        self.link = Some(link);
                        return;
                    }
                    Err(error) => {
                        if matches!(error, VhostUserError::Closed) {
                            tracing::debug!("QEMU left the vhost-user socket");
                        } else {
                            tracing::warn!(%error, "the vhost-user connection is closed");
                        }
                        self.control = None;
                    }
                }
            }
            self.retry.pause().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tracing::debug!("QEMU is at the vhost-user socket");
                    self.control = Some(Box::new(Control::new(stream)));
                }
                // Out of descriptors, most likely: the machine in the queue keeps.
                Err(error) => self.retry.failed(&error),
            }
        }
    }

    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Result<LinkUp, VhostUserError>> {
        let Some(control) = &mut self.control else { return Poll::Ready(Err(VhostUserError::Closed)) };
        if let Poll::Ready(error) = control.poll(cx) {
            return Poll::Ready(Err(error));
        }
        let started = control.device.start()?;
        let Some(Started { features, receive, transmit }) = started else { return Poll::Pending };
        let kick = |file| Kick::new(file).map_err(VhostUserError::Kick);
        Poll::Ready(Ok(LinkUp { features, receive: kick(receive)?, transmit: kick(transmit)? }))
    }

    pub(super) fn lost(&mut self) {
        self.link = None;
        self.came.clear();
        self.outgoing = Framer::default();
        self.owes = false;
        self.broken = None;
    }

    /// Writes it into the guest's memory at once, unless others wait before it.
    pub(super) fn queue(&mut self, frame: &CardFrame<'_>) -> bool {
        if self.link.is_none()
            || self.broken.is_some()
            || frame.is_empty()
            || frame.len() > MAX_FRAME - vnet::HEADER
        {
            return false;
        }
        let header = vnet::header(frame, u16::to_le_bytes);
        if self.outgoing.pending().is_empty() {
            match self.give(&header, frame) {
                Ok(Given::Yes) => return true,
                Ok(Given::Never) => return false,
                Ok(Given::Later) => {}
                Err(error) => {
                    self.broken = Some(error);
                    return false;
                }
            }
        }
        self.outgoing.put(&[&header, frame])
    }

    fn give(&mut self, header: &[u8; vnet::HEADER], frame: &[u8]) -> Result<Given, VhostUserError> {
        let Some(Control { device, .. }) = self.control.as_deref_mut() else {
            return Err(VhostUserError::Closed);
        };
        let Some((memory, frames)) = device.running() else { return Err(device.why_not()) };
        let given = frames.give(memory, header, frame);
        let given = given.map_err(|error| RingName::Receive.broke(error)).inspect_err(|_| device.broken())?;
        self.owes |= given == Given::Yes;
        Ok(given)
    }

    pub(super) fn next_frame(&mut self) -> Option<CardFrame<'_>> {
        let features = self.link.as_ref()?.features;
        // Kinds of segments that we did not ask for are skipped.
        let range = std::iter::from_fn(|| self.came.pop_front()).find(|range| {
            self.buffer.get(range.clone()).and_then(|record| features.parse(record)).is_some()
        })?;
        features.parse(self.buffer.get(range)?)
    }

    /// Gives the guest what it has buffers for, and tells it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        self.flush(cx).map_err(LinkError::from)
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), VhostUserError> {
        let Some(control) = &mut self.control else { return Err(VhostUserError::Closed) };
        if let Poll::Ready(error) = control.poll(cx) {
            self.control = None;
            return Err(error);
        }
        let device = &mut control.device;
        let Some(link) = &mut self.link else { return Err(VhostUserError::Stopped) };
        let mut again = true;
        while let Some((header, frame)) =
            self.outgoing.first().and_then(|record| record.split_first_chunk::<{ vnet::HEADER }>())
        {
            let length = header.len() + frame.len();
            let Some((memory, frames)) = device.running() else { return Err(device.why_not()) };
            let given = frames
                .give(memory, header, frame)
                .and_then(|given| Ok((given, given == Given::Later && frames.receive.arm(memory)?)));
            let broke = |error| RingName::Receive.broke(error);
            match given.map_err(broke).inspect_err(|_| device.broken())? {
                (Given::Yes | Given::Never, _) => self.outgoing.sent(PREFIX + length),
                (Given::Later, _) if !again => {
                    // It adds buffers, but too few, and again and again: others have their turn first.
                    cx.waker().wake_by_ref();
                    break;
                }
                (Given::Later, true) => again = false,
                (Given::Later, false) => match link.receive.poll(cx).map_err(VhostUserError::Kick)? {
                    Poll::Ready(()) => again = false,
                    Poll::Pending => break,
                },
            }
        }
        if device.running().is_none() {
            return Err(device.why_not());
        }
        self.owes = false;
        device.tell().inspect_err(|_| device.broken())
    }

    /// Ready: at least one frame is there. Takes all that wait, up to a batch.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if !self.came.is_empty() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..2 {
            let filled = self.fill()?;
            if !self.came.is_empty() {
                self.retry.worked();
                return Poll::Ready(Ok(()));
            }
            match filled {
                Filled::Batch => break,
                Filled::More => {}
                Filled::All => {
                    let Some(link) = &mut self.link else { break };
                    ready!(link.transmit.poll(cx)).map_err(VhostUserError::Kick)?;
                }
            }
        }
        // A guest that kicks without end, or sends what is nothing: others have their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes a batch of chains into `came`.
    fn fill(&mut self) -> Result<Filled, VhostUserError> {
        let Some(Control { device, .. }) = self.control.as_deref_mut() else {
            return Err(VhostUserError::Closed);
        };
        let Some((memory, frames)) = device.running() else { return Err(device.why_not()) };
        let mut take = || {
            let mut start = 0;
            for _ in 0..BATCH {
                let Some(space) = self.buffer.get_mut(start..).filter(|space| space.len() >= MAX_RECORD)
                else {
                    return Ok(Filled::Batch);
                };
                match frames.take(memory, space)? {
                    Some(Taken::Record(octets)) => {
                        self.came.push_back(start..start + octets);
                        start += octets;
                    }
                    Some(Taken::Nothing) => {}
                    // Whoever has frames comes again before it sleeps.
                    None if !self.came.is_empty() || frames.transmit.arm(memory)? => return Ok(Filled::More),
                    None => return Ok(Filled::All),
                }
            }
            Ok(Filled::Batch)
        };
        let taken = take().and_then(|outcome| frames.give_back(memory).map(|()| outcome));
        let outcome =
            taken.map_err(|error| RingName::Transmit.broke(error)).inspect_err(|_| device.broken())?;
        device.tell().inspect_err(|_| device.broken())?;
        Ok(outcome)
    }
}

/// What a batch left in the ring.
enum Filled {
    /// Nothing: the guest kicks when there is more.
    All,
    /// Maybe more, and no kick will come for it.
    More,
    /// As much as may be taken at once was taken.
    Batch,
}

#[cfg(test)]
mod tests;
