//! A card that is a TAP device: the kernel is at its other end, and with it whatever is bridged to the device.
//!
//! Somebody makes the device for us (`ip tuntap add NAME mode tap user USER`), and then no privilege is needed; or we make it,
//! for as long as we run. Bringing it up and setting its MTU takes CAP_NET_ADMIN; without it the device stays as it is, and the
//! network takes the smaller of both MTUs.
//!
//! Each read is one frame and each write is one, taken by the kernel there and then, so nothing is queued here but in the rare
//! case that it has no memory for it. With offloads (`IFF_VNET_HDR`) a `virtio_net_hdr` stands before each: what the guest's
//! kernel has not summed up or cut comes so, and what we have not goes so.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::task::{Context, Poll};

use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

use super::framing::{Framer, PREFIX};
use super::retry::Retry;
use super::{LinkError, MAX_FRAME, vnet};
use crate::offload::{CardFrame, Offloads};

mod spec;

pub use self::spec::{TapName, TapNameError, TapSpec, TapSpecError};

/// Least packet that the virtual network needs.
const MIN_MTU: u16 = 576;
/// Frames read at once, and the room for them. A longest one always has room.
const BATCH: usize = 64;
const READ_BUFFER: usize = 512 * 1024;
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why a TAP device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The kernel has no TAP devices, or a container was not given them.
    #[error(
        "this system has no {CLONE_DEVICE}: load the kernel module tun, or give the container this device"
    )]
    NoDriver,
    /// The way to all of them is closed.
    #[error("{CLONE_DEVICE} cannot be opened: {0}")]
    Driver(#[source] io::Error),
    /// It is not there, and we may not make it.
    #[error(
        "there is no TAP device {0}, and making it takes CAP_NET_ADMIN: let root make it with \
         `ip tuntap add {0} mode tap user USER`, with the user that this program runs as"
    )]
    Absent(TapName),
    /// Another user's.
    #[error(
        "the TAP device {0} is not this user's: let root make it again with \
         `ip tuntap add {0} mode tap user USER`, with the user that this program runs as"
    )]
    NotOurs(TapName),
    /// Another program's.
    #[error("the TAP device {0} is in use by another program, and takes but one")]
    InUse(TapName),
    /// The name belongs to something else.
    #[error("{name} is {kind}, expected a TAP device with one queue")]
    OtherKind {
        /// Whose name.
        name: TapName,
        /// What it is.
        kind: &'static str,
    },
    /// It takes too little.
    #[error(
        "the TAP device {name} takes packets of {mtu} bytes, expected at least {MIN_MTU}, and we may not change it"
    )]
    Mtu {
        /// Which.
        name: TapName,
        /// What it takes.
        mtu: u16,
    },
    /// What the system said.
    #[error("the TAP device {name} cannot be opened: {error}")]
    Io {
        /// Which.
        name: TapName,
        /// Why.
        error: io::Error,
    },
}

/// What [`TapName::probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TapState {
    /// There is one; else it would be made.
    pub exists: bool,
    /// Whether it is up; `None` if that cannot be told.
    pub up: Option<bool>,
    /// Largest packet it takes now.
    pub mtu: Option<u16>,
    /// Whether we may bring it up and set its MTU.
    pub privileged: bool,
}

impl TapName {
    /// Whether [`Nic::open`](super::Nic::open) would do now, without making or changing anything. A device that is there is opened and closed again. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// What `open` would say.
    pub fn probe(&self) -> Result<TapState, TapError> {
        let (exists, privileged) = (self.exists(), may_configure());
        if exists {
            let up = self.is_up();
            let device = open(self, false)?;
            let mtu = device.mtu().ok();
            if let Some(mtu) = mtu
                && mtu < MIN_MTU
                && !privileged
            {
                return Err(TapError::Mtu { name: self.clone(), mtu });
            }
            return Ok(TapState { exists, up, mtu, privileged });
        }
        driver()?;
        if !privileged {
            return Err(TapError::Absent(self.clone()));
        }
        Ok(TapState { exists, up: None, mtu: None, privileged })
    }

    /// In this thread's network namespace. A system that cannot tell is taken to have it: opening it says more.
    fn exists(&self) -> bool {
        let Ok(devices) = fs::read_to_string("/proc/thread-self/net/dev") else { return true };
        devices.lines().filter_map(|line| line.split_once(':')).any(|(name, _)| name.trim() == self.0)
    }

    fn is_up(&self) -> Option<bool> {
        const IFF_UP: u32 = 1;

        Some(self.flags("flags")? & IFF_UP != 0)
    }

    /// What stands in the way of opening it as a TAP device.
    fn kind(&self) -> &'static str {
        const IFF_TUN: u32 = 1;
        const IFF_MULTI_QUEUE: u32 = 0x100;

        match self.flags("tun_flags") {
            Some(flags) if flags & IFF_TUN != 0 => "a TUN device, which carries no Ethernet",
            Some(flags) if flags & IFF_MULTI_QUEUE != 0 => "a TAP device with many queues",
            Some(_) | None => "another kind of device",
        }
    }

    /// An attribute in hexadecimal. sysfs is of the namespace it was mounted in, so this serves words only, not decisions.
    fn flags(&self, attribute: &str) -> Option<u32> {
        let text = fs::read_to_string(format!("/sys/class/net/{self}/{attribute}")).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    }
}

/// The device, and what has been read of it.
pub(super) struct TapCard {
    name: TapName,
    /// A `virtio_net_hdr` stands before each frame.
    offload: bool,
    wanted_mtu: u16,
    mtu: u16,
    /// It was not there before us, so that we make it again when somebody has deleted it. Another's device is waited for.
    ours: bool,
    device: Option<AsyncDevice>,
    /// INVARIANT: what `came` names lies within it.
    buffer: Box<[u8]>,
    came: VecDeque<Range<usize>>,
    /// What the kernel had no room for.
    outgoing: Framer,
    /// Why nothing can be sent any more, if so: told by [`TapCard::poll_flush`].
    broken: Option<LinkError>,
    retry: Retry,
}

impl TapCard {
    pub(super) fn open(spec: &TapSpec, mtu: u16) -> Result<TapCard, TapError> {
        let TapSpec { name, offload } = spec;
        let ours = !name.exists();
        let mut card = TapCard {
            name: name.clone(),
            offload: *offload,
            wanted_mtu: mtu,
            mtu,
            ours,
            device: None,
            buffer: vec![0; READ_BUFFER].into(),
            came: VecDeque::new(),
            outgoing: Framer::default(),
            broken: None,
            retry: Retry::new(),
        };
        card.fetch()?;
        if card.mtu < MIN_MTU {
            return Err(TapError::Mtu { name: name.clone(), mtu: card.mtu });
        }
        Ok(card)
    }

    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(super) fn offloads(&self) -> Offloads {
        if self.offload { Offloads::ALL } else { Offloads::NONE }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.device.is_some()
    }

    /// Waits until the device is there again. Cancel-safe.
    pub(super) async fn attach(&mut self) {
        loop {
            self.retry.pause().await;
            let fetched = if self.ours || self.name.exists() {
                self.fetch()
            } else {
                Err(TapError::Absent(self.name.clone()))
            };
            match fetched {
                // Unless it works for a while, the next attempt waits too.
                Ok(()) => return self.retry.schedule(),
                Err(error) => self.retry.failed(&error),
            }
        }
    }

    /// Opens the device, and makes it as it should be as far as we may.
    fn fetch(&mut self) -> Result<(), TapError> {
        let name = &self.name;
        let device = open(name, self.offload)?;
        let failed = |error| TapError::Io { name: name.clone(), error };
        let has = device.mtu().map_err(failed)?;
        let set = if has == self.wanted_mtu { Ok(()) } else { device.set_mtu(self.wanted_mtu) };
        self.mtu = match set {
            Ok(()) => self.wanted_mtu,
            Err(error) => {
                tracing::info!(device = %name, mtu = has, %error, "the TAP device keeps its MTU");
                has.min(self.wanted_mtu)
            }
        };
        if let Err(error) = device.enabled(true)
            && name.is_up() == Some(false)
        {
            tracing::warn!(
                device = %name, %error,
                "the TAP device is down and cannot be brought up: let root do `ip link set {name} up`"
            );
        }
        self.device = Some(device);
        Ok(())
    }

    pub(super) fn lost(&mut self) {
        self.device = None;
        self.came.clear();
        self.outgoing = Framer::default();
        self.broken = None;
        self.retry.schedule();
    }

    pub(super) fn pending(&self) -> usize {
        self.outgoing.pending().len()
    }

    /// Writes it at once, unless others wait before it.
    pub(super) fn queue(&mut self, frame: &CardFrame<'_>) -> bool {
        let Some(device) = &self.device else { return false };
        if frame.is_empty() || frame.len() > MAX_FRAME - vnet::HEADER || self.broken.is_some() {
            return false;
        }
        let header = vnet::header(frame, u16::to_ne_bytes);
        let header = if self.offload { header.as_slice() } else { &[] };
        if self.outgoing.pending().is_empty() {
            let outcome = if self.offload {
                device.try_send_vectored(&[IoSlice::new(header), IoSlice::new(frame)])
            } else {
                device.try_send(frame)
            };
            match sent(outcome) {
                Sent::Yes => return true,
                Sent::Dropped => return false,
                Sent::Later => {}
                Sent::Broken(error) => {
                    self.broken = Some(error);
                    return false;
                }
            }
        }
        self.outgoing.put(&[header, frame])
    }

    pub(super) fn next_frame(&mut self) -> Option<CardFrame<'_>> {
        if !self.offload {
            let range = self.came.pop_front()?;
            return self.buffer.get(range).map(CardFrame::whole);
        }
        let parse = |record| vnet::parse(record, vnet::HEADER, u16::from_ne_bytes);
        // Kinds of segments that we did not ask for are skipped.
        let range = std::iter::from_fn(|| self.came.pop_front())
            .find(|range| self.buffer.get(range.clone()).and_then(parse).is_some())?;
        self.buffer.get(range).and_then(parse)
    }

    /// Sends what can be sent now.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let Some(device) = &self.device else { return Err(LinkError::Deleted) };
        while let Some(frame) = self.outgoing.first() {
            let Poll::Ready(outcome) = device.poll_send(cx, frame) else { break };
            let length = frame.len();
            match sent(outcome) {
                Sent::Yes | Sent::Dropped => self.outgoing.sent(PREFIX + length),
                Sent::Later => break,
                Sent::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ready: at least one frame is there. Reads all that wait, up to a batch.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if !self.came.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Some(device) = &self.device else { return Poll::Ready(Err(LinkError::Deleted)) };
        let mut start = 0;
        while self.came.len() < BATCH {
            let Some(spare) = self.buffer.get_mut(start..).filter(|spare| spare.len() >= MAX_FRAME) else {
                break;
            };
            match device.poll_recv(cx, spare) {
                Poll::Ready(Ok(count)) => {
                    let end = start + count.min(spare.len());
                    self.came.push_back(start..end);
                    start = end;
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                // What was read before the failure still counts; the failure comes again.
                Poll::Ready(Err(_)) | Poll::Pending if !self.came.is_empty() => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.retry.worked();
        Poll::Ready(Ok(()))
    }
}

/// What became of a write.
enum Sent {
    Yes,
    /// The kernel did not want it, as a link that is down does not; the next one may do better.
    Dropped,
    Later,
    Broken(LinkError),
}

fn sent(outcome: io::Result<usize>) -> Sent {
    const EIO: i32 = 5;

    match outcome {
        Ok(_) => Sent::Yes,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Later,
        Err(error)
            if error.raw_os_error() == Some(EIO)
                || matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::OutOfMemory) =>
        {
            tracing::trace!(%error, "the TAP device did not take a frame");
            Sent::Dropped
        }
        Err(error) => Sent::Broken(broken(error)),
    }
}

fn broken(error: io::Error) -> LinkError {
    const EBADFD: i32 = 77;

    match error.raw_os_error() {
        Some(EBADFD) => LinkError::Deleted,
        Some(_) | None => LinkError::Device(error),
    }
}

/// Whether TAP devices can be had at all. Asked before the library, which would make the device node by itself.
fn driver() -> Result<(), TapError> {
    const ENODEV: i32 = 19;
    const ENXIO: i32 = 6;

    match fs::OpenOptions::new().read(true).write(true).open(Path::new(CLONE_DEVICE)) {
        Ok(_) => Ok(()),
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(ENODEV | ENXIO)) =>
        {
            Err(TapError::NoDriver)
        }
        Err(error) => Err(TapError::Driver(error)),
    }
}

fn open(name: &TapName, offload: bool) -> Result<AsyncDevice, TapError> {
    driver()?;
    let existed = name.exists();
    let builder =
        DeviceBuilder::new().name(&*name.0).layer(Layer::L2).inherit_enable_state().offload(offload);
    builder.build_async().map_err(|error| {
        let (name, kind) = (name.clone(), error.kind());
        if kind == ErrorKind::PermissionDenied {
            if existed { TapError::NotOurs(name) } else { TapError::Absent(name) }
        } else if kind == ErrorKind::ResourceBusy {
            TapError::InUse(name)
        } else if kind == ErrorKind::InvalidInput && existed {
            TapError::OtherKind { kind: name.kind(), name }
        } else {
            TapError::Io { name, error }
        }
    })
}

/// Whether this thread has CAP_NET_ADMIN.
fn may_configure() -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;

    let Ok(status) = fs::read_to_string("/proc/thread-self/status") else { return false };
    let word = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    word.and_then(|word| u64::from_str_radix(word.trim(), 16).ok())
        .is_some_and(|caps| caps & CAP_NET_ADMIN != 0)
}

#[cfg(test)]
mod tests;
