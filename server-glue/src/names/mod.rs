//! Names on the virtual network: what is called what, and who is told.
//!
//! | question | look at |
//! | --- | --- |
//! | who is called what | [`zone`] |
//! | which DNS records say so | [`records`] |
//! | how DNS messages are read and written | [`wire`] |
//! | how the guest finds it all by itself | [`mdns`] |

pub(crate) mod mdns;
pub(crate) mod records;
pub(crate) mod wire;
pub(crate) mod zone;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use spice_proto::service_info::ServiceInfo;

use self::mdns::{Datagram, Destination, Responder, Station};
use self::zone::Zone;
use crate::counters::Counters;
use crate::packet::MacAddress;

/// A UDP datagram from the guest to a port where names are asked for.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// Who sent it, on the link.
    pub(crate) from: MacAddress,
    /// Its address and port.
    pub(crate) source: SocketAddrV4,
    /// An address of ours that exists, or [`mdns::GROUP`]; [`mdns::PORT`].
    pub(crate) destination: SocketAddrV4,
    pub(crate) message: &'a [u8],
}

/// A UDP datagram for the guest.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Where to on the link.
    pub(crate) to: MacAddress,
    /// What it comes from.
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) message: Vec<u8>,
}

/// The names of the virtual network, and all who tell of them.
#[derive(Debug)]
pub(crate) struct Names {
    gateway: Ipv4Addr,
    zone: Zone,
    responder: Responder,
    /// The zone was changed then, and not everybody who tells of it has looked yet.
    changed: Option<Instant>,
}

impl Names {
    /// No names yet. `seed` decides what is left to chance.
    pub(crate) fn new(gateway: Ipv4Addr, mtu: u16, seed: u64) -> Names {
        Names { gateway, zone: Zone::new(), responder: Responder::new(seed, mtu), changed: None }
    }

    // Commands.

    /// A service has this name, and says this of itself; if it had others, those are forgotten.
    pub(crate) fn publish(&mut self, now: Instant, at: SocketAddr, device: &str, info: Option<&ServiceInfo>) {
        self.zone.publish(at, device, info);
        self.changed = self.changed.or(Some(now));
    }

    /// A service is gone.
    pub(crate) fn withdraw(&mut self, now: Instant, at: SocketAddr) {
        self.zone.withdraw(at);
        self.changed = self.changed.or(Some(now));
    }

    /// A guest is there that may not know anything.
    pub(crate) fn guest_came(&mut self, now: Instant) {
        self.responder.sync(now, &self.zone);
        self.responder.guest_came(now);
    }

    /// The guest is gone.
    pub(crate) fn link_lost(&mut self) {
        self.responder.link_lost();
    }

    /// Nobody will tell of anything any more.
    pub(crate) fn say_goodbye(&mut self, now: Instant) {
        self.responder.sync(now, &self.zone);
        self.responder.say_goodbye();
    }

    // Inputs.

    /// A guest asks, or says something.
    pub(crate) fn handle(&mut self, now: Instant, asked: &Asked<'_>, counters: &mut Counters) {
        let multicast = *asked.destination.ip() == mdns::GROUP;
        let local = if multicast { self.gateway } else { *asked.destination.ip() };
        let station = Station { mac: asked.from, address: asked.source, local, multicast };
        self.responder.handle(now, station, asked.message, &mut self.zone, counters);
    }

    /// Time has passed: whatever was due happens. Harmless if nothing was.
    pub(crate) fn handle_timeout(&mut self, now: Instant, counters: &mut Counters) {
        self.changed = None;
        self.responder.handle_timeout(now, &self.zone, counters);
    }

    // Outputs.

    /// The next datagram.
    pub(crate) fn poll_transmit(&mut self) -> Option<Answer> {
        let Datagram { to, message } = self.responder.poll_transmit()?;
        Some(match to {
            Destination::Everybody => Answer {
                to: mdns::GROUP_MAC,
                source: SocketAddrV4::new(self.gateway, mdns::PORT),
                destination: SocketAddrV4::new(mdns::GROUP, mdns::PORT),
                message,
            },
            Destination::One(station) => Answer {
                to: station.mac,
                source: SocketAddrV4::new(station.local, mdns::PORT),
                destination: station.address,
                message,
            },
        })
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.changed, self.responder.poll_timeout()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
