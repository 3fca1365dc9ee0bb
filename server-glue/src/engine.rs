//! smoltcp, as connections share it: one interface, one clock, and for each call at most one packet in and one out.
//!
//! An [`Interface`] holds nothing of a connection, so one serves all of them; with `any_ip` it takes every address. What it knows as its
//! network card is a [`Port`], made anew for each call, and what it sends is left in a [`Scratch`].

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::HardwareAddress;

use crate::offload::Offloads;
use crate::packet::{ChecksumPlace, ETHERNET_HEADER};
use crate::ring_socket::RingSocket;

/// What all connections share.
pub(crate) struct Engine {
    interface: Interface,
    mtu: u16,
    /// What smoltcp leaves to the card.
    offloads: Offloads,
    /// smoltcp counts time from here. Set by the first call.
    epoch: Option<Instant>,
}

/// smoltcp's time at the epoch. Not zero, which means "at once" in its deadlines.
const EPOCH: Duration = Duration::from_secs(1);

impl Engine {
    /// `seed` makes our initial sequence numbers; `mtu` is that of IP packets.
    pub(crate) fn new(seed: u64, mtu: u16, offloads: Offloads) -> Engine {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut nothing = Port { incoming: None, out: &mut Scratch::new(), mtu, offloads };
        let mut interface = Interface::new(config, &mut nothing, StackInstant::ZERO);
        interface.set_any_ip(true);
        Engine { interface, mtu, offloads, epoch: None }
    }

    pub(crate) fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Feeds a packet to a socket. What it sends at once is in `out`; nothing, if that is empty.
    pub(crate) fn ingress(
        &mut self,
        socket: &mut RingSocket,
        now: Instant,
        packet: &[u8],
        out: &mut Scratch,
    ) {
        out.clear();
        let at = self.stack_time(now);
        let mut port = self.port(Some(packet), out);
        socket.ingress(&mut self.interface, at, &mut port);
    }

    /// Lets a socket send one packet, into `out`; it stays empty if there is none.
    pub(crate) fn egress(&mut self, socket: &mut RingSocket, now: Instant, out: &mut Scratch) {
        out.clear();
        let at = self.stack_time(now);
        let mut port = self.port(None, out);
        socket.egress(&mut self.interface, at, &mut port);
    }

    /// When a socket has something to send though nothing comes.
    pub(crate) fn poll_at(&mut self, socket: &mut RingSocket, now: Instant) -> Option<Instant> {
        let at = self.stack_time(now);
        let due = socket.poll_at(&mut self.interface, at)?;
        self.std_time(due)
    }

    fn port<'a>(&self, incoming: Option<&'a [u8]>, out: &'a mut Scratch) -> Port<'a> {
        Port { incoming, out, mtu: self.mtu, offloads: self.offloads }
    }

    fn stack_time(&mut self, now: Instant) -> StackInstant {
        let epoch = *self.epoch.get_or_insert(now);
        let micros = (now.saturating_duration_since(epoch) + EPOCH).as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn std_time(&self, at: StackInstant) -> Option<Instant> {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.epoch?.checked_add(Duration::from_micros(micros).saturating_sub(EPOCH))
    }
}

/// One outgoing frame under construction. Its storage is kept, so that a packet costs no clearing of memory.
pub(crate) struct Scratch {
    bytes: Box<[u8]>,
    len: usize,
    /// It is longer than the MTU, and to be cut into pieces with so much data.
    segment: Option<NonZeroU16>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { bytes: vec![0; ETHERNET_HEADER + usize::from(u16::MAX)].into(), len: 0, segment: None }
    }

    /// Empty, or a whole frame whose Ethernet header is still to be written.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The IP packet in it.
    pub(crate) fn packet(&self) -> &[u8] {
        self.bytes.get(ETHERNET_HEADER..self.len).unwrap_or_default()
    }

    pub(crate) fn segment(&self) -> Option<NonZeroU16> {
        self.segment
    }

    pub(crate) fn set_header(&mut self, header: &[u8]) {
        for (to, from) in self.bytes.iter_mut().zip(header) {
            *to = *from;
        }
    }

    /// Leaves the checksum of a whole frame to the card.
    pub(crate) fn leave_checksum(&mut self) {
        if let Some(place) = ChecksumPlace::of(self.frame())
            && let Some(frame) = self.bytes.get_mut(..self.len)
        {
            place.leave(frame);
        }
    }

    /// Puts into a whole frame the checksum that smoltcp did not.
    pub(crate) fn complete_checksum(&mut self) {
        if let Some(place) = ChecksumPlace::of(self.frame())
            && let Some(frame) = self.bytes.get_mut(..self.len)
        {
            place.complete(frame);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.segment = None;
    }
}

/// What smoltcp sees of the world for one call: at most one packet in, at most one out.
struct Port<'a> {
    incoming: Option<&'a [u8]>,
    out: &'a mut Scratch,
    mtu: u16,
    offloads: Offloads,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a>(&'a mut Scratch);

impl Device for Port<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(self.out)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // The edge has verified both.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = if self.offloads.checksums { Checksum::None } else { Checksum::Tx };
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities.checksum = checksum;
        if self.offloads.checksums && self.offloads.segments {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(usize::from(u16::MAX));
        }
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.0.segment = meta.segmentation_offload_size;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let scratch = self.0;
        scratch.len = ETHERNET_HEADER + len;
        match scratch.bytes.get_mut(ETHERNET_HEADER..ETHERNET_HEADER + len) {
            Some(packet) => f(packet),
            // No IPv4 packet is longer than the scratch, but the closure must have its room.
            None => f(&mut vec![0; len]),
        }
    }
}

pub(crate) fn to_stack_duration(duration: Duration) -> StackDuration {
    StackDuration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
