//! What QEMU has told of the card: memory, features, rings. And the rings, while the guest's driver runs.
//!
//! The state of a ring is vhost-user's (QEMU, `docs/interop/vhost-user.rst`, "Ring states"): it can be used once it has a kick
//! descriptor and is enabled, and until GET_VRING_BASE. A card needs both its rings.
//!
//! ```text
//!           all is known, start() finds no fault
//!  stopped ─────────────────────────────────────▶ running
//!     ▲  ▲                                         │   │
//!     │  └──────── stop(): a request ──────────────┘   │ a RingError
//!     └─────── stop() ── broken ◀──────────────────────┘
//! ```

use std::fs::File;
use std::io::{self, Write};

use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::error::{RingName, VhostUserError};
use super::frames::{Features, Frames};
use super::message::{Addresses, F_PROTOCOL_FEATURES, Region, RequestError};
use super::ring::{Direction, Layout, MAX_SIZE, Memory, Ring};

/// See the module's text.
#[derive(Default)]
pub(super) struct Device {
    memory: Option<Shared>,
    features: u64,
    receive: Setup,
    transmit: Setup,
    state: State,
    /// Why the card does not run any more, until somebody asks.
    why: Option<VhostUserError>,
}

#[derive(Default)]
enum State {
    /// The driver does not run, as far as we know.
    #[default]
    Stopped,
    /// It runs.
    Running(Frames),
    /// It did what none may: it is waited for until it stops.
    Broken,
}

/// The guest's memory, and where QEMU has it: its requests name that.
struct Shared {
    memory: Memory,
    regions: Vec<Region>,
}

/// What is known of a ring.
#[derive(Default)]
struct Setup {
    size: u32,
    base: u16,
    /// In QEMU's memory.
    addresses: Option<Addresses>,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
}

/// A card that runs: what was agreed on, and what its rings are waited for with.
pub(super) struct Started {
    pub(super) features: Features,
    pub(super) receive: File,
    pub(super) transmit: File,
}

impl Device {
    // Requests.

    /// All features: of virtio, and vhost-user's own.
    pub(super) const OFFERED: u64 = Features::OFFERED.0 | F_PROTOCOL_FEATURES;

    pub(super) fn set_features(&mut self, features: u64) -> Result<(), RequestError> {
        let unknown = features & !Self::OFFERED;
        if unknown != 0 {
            return Err(RequestError::Features(unknown));
        }
        if features != self.features {
            self.stop();
            self.features = features;
        }
        if features & F_PROTOCOL_FEATURES == 0 {
            (self.receive.enabled, self.transmit.enabled) = (true, true);
        }
        Ok(())
    }

    pub(super) fn set_memory(&mut self, regions: Vec<Region>, files: Vec<File>) -> Result<(), RequestError> {
        let memory = map(&regions, files).map_err(RequestError::Memory)?;
        self.memory = Some(Shared { memory, regions });
        self.relocate();
        Ok(())
    }

    pub(super) fn set_size(&mut self, index: u32, size: u32) -> Result<(), RequestError> {
        let setup = self.setup(index)?;
        if size > u32::from(MAX_SIZE) {
            return Err(RequestError::RingSize(size));
        }
        // Whether the driver may choose this is seen when it starts.
        setup.size = size;
        Ok(())
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), RequestError> {
        let setup = self.setup(index)?;
        setup.base = u16::try_from(base).map_err(|_| RequestError::Base(base))?;
        Ok(())
    }

    pub(super) fn set_addresses(&mut self, index: u32, addresses: Addresses) -> Result<(), RequestError> {
        self.setup(index)?.addresses = Some(addresses);
        self.relocate();
        Ok(())
    }

    pub(super) fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<(), RequestError> {
        self.setup(index)?;
        let Some(kick) = kick else { return Err(RequestError::Polling) };
        self.stop();
        self.setup(index)?.kick = Some(kick);
        Ok(())
    }

    pub(super) fn set_call(&mut self, index: u32, call: Option<File>) -> Result<(), RequestError> {
        let setup = self.setup(index)?;
        setup.call = call;
        // Whoever waits at the new one may have missed something at the old.
        signal(setup.call.as_ref());
        Ok(())
    }

    pub(super) fn set_enabled(&mut self, index: u32, enabled: bool) -> Result<(), RequestError> {
        let setup = self.setup(index)?;
        if setup.enabled != enabled {
            setup.enabled = enabled;
            self.stop();
        }
        Ok(())
    }

    /// Stops a ring, and gives from where it would go on.
    pub(super) fn take_base(&mut self, index: u32) -> Result<u16, RequestError> {
        self.stop();
        let setup = self.setup(index)?;
        setup.kick = None;
        Ok(setup.base)
    }

    // The card.

    /// Starts the card if all is known of it; `None`: not yet.
    pub(super) fn start(&mut self) -> Result<Option<Started>, VhostUserError> {
        let (State::Stopped, Some(Shared { memory, .. })) = (&self.state, &self.memory) else {
            return Ok(None);
        };
        let (Some(receive), Some(transmit)) = (self.receive.ready(), self.transmit.ready()) else {
            return Ok(None);
        };
        let own = |kick: &File| kick.try_clone().map_err(VhostUserError::Kick);
        let (receive_kick, transmit_kick) = (own(receive)?, own(transmit)?);
        let features = Features(self.features);
        let ring = |name: RingName, setup: &Setup, direction| {
            let layout = self.layout(setup).ok_or(VhostUserError::Outside(name))?;
            Ring::new(memory, layout, direction, features.event_idx(), setup.base)
                .map_err(|error| name.broke(error))
        };
        let rings = ring(RingName::Receive, &self.receive, Direction::Writable).and_then(|receive| {
            Ok((receive, ring(RingName::Transmit, &self.transmit, Direction::Readable)?))
        });
        match rings {
            Ok((receive, transmit)) => {
                self.why = None;
                self.state = State::Running(Frames::new(features, receive, transmit));
                Ok(Some(Started { features, receive: receive_kick, transmit: transmit_kick }))
            }
            Err(error) => {
                tracing::warn!(%error, "the card waits until the guest starts it again");
                self.state = State::Broken;
                Ok(None)
            }
        }
    }

    /// Why the rings may not be used now.
    pub(super) fn why_not(&mut self) -> VhostUserError {
        self.why.take().unwrap_or(VhostUserError::Stopped)
    }

    /// What there is to work with while the card runs.
    pub(super) fn running(&mut self) -> Option<(&Memory, &mut Frames)> {
        match (&mut self.state, &self.memory) {
            (State::Running(frames), Some(shared)) => Some((&shared.memory, frames)),
            (State::Running(_) | State::Stopped | State::Broken, _) => None,
        }
    }

    /// No ring is touched any more until the driver has stopped it and started again.
    pub(super) fn broken(&mut self) {
        self.stop();
        self.state = State::Broken;
    }

    /// Tells the driver of what was given back to it, if it wants to be told.
    pub(super) fn tell(&mut self) -> Result<(), VhostUserError> {
        let (State::Running(frames), Some(shared)) = (&mut self.state, &self.memory) else { return Ok(()) };
        let rings = [
            (RingName::Receive, &mut frames.receive, &self.receive),
            (RingName::Transmit, &mut frames.transmit, &self.transmit),
        ];
        for (name, ring, setup) in rings {
            if ring.must_tell(&shared.memory).map_err(|error| name.broke(error))? {
                signal(setup.call.as_ref());
            }
        }
        Ok(())
    }

    // Within.

    fn setup(&mut self, index: u32) -> Result<&mut Setup, RequestError> {
        match index {
            0 => Ok(&mut self.receive),
            1 => Ok(&mut self.transmit),
            _ => Err(RequestError::Ring(index)),
        }
    }

    fn stop(&mut self) {
        if let State::Running(frames) = &self.state {
            self.receive.base = frames.receive.next_available();
            self.transmit.base = frames.transmit.next_available();
        }
        self.state = State::Stopped;
    }

    /// Memory or rings have moved. Rings that run go on, wherever their tables are now.
    fn relocate(&mut self) {
        if self.running().is_none() {
            return;
        }
        let layouts = [
            (RingName::Receive, self.layout(&self.receive)),
            (RingName::Transmit, self.layout(&self.transmit)),
        ];
        for (name, layout) in layouts {
            let Some((memory, frames)) = self.running() else { return };
            let ring = match name {
                RingName::Receive => &mut frames.receive,
                RingName::Transmit => &mut frames.transmit,
            };
            if layout.is_none_or(|layout| ring.relocate(memory, layout).is_err()) {
                self.broken();
                self.why = Some(VhostUserError::Outside(name));
            }
        }
    }

    /// Where the guest has the tables of a ring.
    fn layout(&self, setup: &Setup) -> Option<Layout> {
        let Addresses { descriptors, available, used } = setup.addresses?;
        let regions = &self.memory.as_ref()?.regions;
        let place = |address: u64| {
            regions.iter().find_map(|region| {
                let offset = address.checked_sub(region.user).filter(|offset| *offset < region.size)?;
                region.guest.checked_add(offset)
            })
        };
        Some(Layout {
            size: setup.size,
            descriptors: place(descriptors)?,
            available: place(available)?,
            used: place(used)?,
        })
    }
}

impl Setup {
    fn ready(&self) -> Option<&File> {
        self.kick.as_ref().filter(|_| self.enabled && self.addresses.is_some())
    }
}

/// Maps the guest's memory.
fn map(regions: &[Region], files: Vec<File>) -> Result<Memory, String> {
    let mut mapped = Vec::new();
    for (region, file) in regions.iter().zip(files) {
        let size = usize::try_from(region.size).map_err(|error| error.to_string())?;
        let has = file.metadata().map_err(|error| error.to_string())?.len();
        // Beyond the end of its file there are addresses, and whoever uses one is killed.
        if region.offset.checked_add(region.size).is_none_or(|end| end > has) {
            return Err(format!("a region of {size} octets does not fit into its file of {has}"));
        }
        let memory = MmapRegion::from_file(FileOffset::new(file, region.offset), size);
        let memory = memory.map_err(|error| error.to_string())?;
        let start = GuestAddress(region.guest);
        let memory = GuestRegionMmap::new(memory, start).ok_or("a region wraps round the end")?;
        mapped.push((start, memory));
    }
    mapped.sort_by_key(|(start, _)| *start);
    let mapped = mapped.into_iter().map(|(_, region)| region).collect();
    Memory::from_regions(mapped).map_err(|error| error.to_string())
}

/// Wakes who waits at an eventfd.
fn signal(call: Option<&File>) {
    let Some(mut call) = call else { return };
    match call.write(&1u64.to_ne_bytes()) {
        // It is full: whoever waits is awake.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => tracing::debug!(%error, "the guest cannot be told of its frames"),
    }
}
