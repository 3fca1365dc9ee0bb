//! Names on the virtual network: what is called what, and who is told.
//!
//! | question | look at |
//! | --- | --- |
//! | who is called what | [`zone`] |
//! | which DNS records say so | [`records`] |
//! | how DNS messages are read and written | [`wire`] |
//! | how the guest finds it all by itself | [`mdns`] |
//! | how it asks for names, as on any network | [`dns`] |

pub(crate) mod dns;
pub(crate) mod mdns;
pub(crate) mod records;
pub(crate) mod wire;
pub(crate) mod zone;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use spice_proto::service_info::{HostName, ServiceInfo};

use self::dns::domains::{DomainFault, Outcome};
use self::dns::{Client, Dns};
use self::mdns::{Datagram, Destination, Responder, Station};
use self::zone::Zone;
use crate::address::Subnet;
use crate::counters::Counters;
use crate::domain::Domain;
use crate::packet::MacAddress;
use crate::table::FlowId;

/// A UDP datagram from the guest to a port where names are asked for.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// Who sent it, on the link.
    pub(crate) from: MacAddress,
    /// Its address and port.
    pub(crate) source: SocketAddrV4,
    /// An address of ours that exists, or [`mdns::GROUP`]; [`mdns::PORT`], or the gateway's [`dns::PORT`].
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
    /// `None`: unicast DNS is not answered.
    dns: Option<Dns>,
    /// The zone was changed then, and not everybody who tells of it has looked yet.
    changed: Option<Instant>,
}

impl Names {
    /// No names yet. `seed` decides what is left to chance.
    pub(crate) fn new(gateway: Ipv4Addr, mtu: u16, seed: u64) -> Names {
        Names { gateway, zone: Zone::new(), responder: Responder::new(seed, mtu), dns: None, changed: None }
    }

    /// The same, with a DNS server for `domain`.
    #[must_use]
    pub(crate) fn with_dns(self, domain: &Domain, subnet: Subnet, mtu: u16) -> Names {
        Names { dns: Some(Dns::new(domain, self.gateway, subnet, mtu)), ..self }
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
        if let Some(dns) = &mut self.dns {
            dns.link_lost();
        }
    }

    /// Nobody will tell of anything any more.
    pub(crate) fn say_goodbye(&mut self, now: Instant) {
        self.responder.sync(now, &self.zone);
        self.responder.say_goodbye();
    }

    // Inputs.

    /// A guest asks, or says something.
    pub(crate) fn handle(&mut self, now: Instant, asked: &Asked<'_>, counters: &mut Counters) {
        if asked.destination.port() == dns::PORT {
            // Who gives no port to answer to wants no answer (RFC 768).
            if let Some(dns) = &mut self.dns
                && asked.source.port() != 0
            {
                let client = Client::Udp { station: asked.from, address: asked.source };
                dns.handle(now, &self.zone, client, asked.message, counters);
            }
            return;
        }
        let multicast = *asked.destination.ip() == mdns::GROUP;
        let local = if multicast { self.gateway } else { *asked.destination.ip() };
        let station = Station { mac: asked.from, address: asked.source, local, multicast };
        self.responder.handle(now, station, asked.message, &mut self.zone, counters);
    }

    /// Time has passed: whatever was due happens. Harmless if nothing was.
    pub(crate) fn handle_timeout(&mut self, now: Instant, counters: &mut Counters) {
        self.changed = None;
        self.responder.handle_timeout(now, &self.zone, counters);
        if let Some(dns) = &mut self.dns {
            dns.handle_timeout(now, &self.zone, counters);
        }
    }

    /// A DNS message of a connection to the gateway. True: it is answered, now or later.
    pub(crate) fn handle_stream(
        &mut self,
        now: Instant,
        flow: FlowId,
        message: &[u8],
        counters: &mut Counters,
    ) -> bool {
        let Some(dns) = &mut self.dns else { return false };
        dns.handle(now, &self.zone, Client::Tcp(flow), message, counters)
    }

    // The tunnel's side of unicast DNS: what its client allows the guest to ask for, and answers.

    /// A tunnel has come, and may take `grace` to allow again what the one before did.
    pub(crate) fn tunnel_came(&mut self, now: Instant, grace: Duration) {
        if let Some(dns) = &mut self.dns {
            dns.tunnel_came(now, grace);
        }
    }

    /// The tunnel is gone, and what it allowed is known for `remember`. `announced`: it had announced something at all.
    pub(crate) fn tunnel_gone(
        &mut self,
        now: Instant,
        remember: Duration,
        announced: bool,
        counters: &mut Counters,
    ) {
        if let Some(dns) = &mut self.dns {
            dns.tunnel_gone(now, remember, announced, &self.zone, counters);
        }
    }

    /// What is known of tunnels that are gone is to be forgotten.
    pub(crate) fn forget_tunnels(&mut self) {
        if let Some(dns) = &mut self.dns {
            dns.forget();
        }
    }

    /// The client allows the guest to ask for names in a domain.
    pub(crate) fn add_domain(&mut self, name: &str) -> Result<(), DomainFault> {
        self.dns.as_mut().map_or(Ok(()), |dns| dns.add_domain(name))
    }

    /// It does not any more.
    pub(crate) fn remove_domain(&mut self, name: &str, counters: &mut Counters) {
        if let Some(dns) = &mut self.dns {
            dns.remove_domain(name, &self.zone, counters);
        }
    }

    /// The next name that the client is to be asked for; [`Names::answer`] has to follow, or the end of the tunnel.
    pub(crate) fn poll_question(&mut self) -> Option<HostName> {
        self.dns.as_mut()?.poll_question()
    }

    /// What it said, or that it could not be asked.
    pub(crate) fn answer(&mut self, now: Instant, name: &str, outcome: Outcome, counters: &mut Counters) {
        if let Some(dns) = &mut self.dns {
            dns.answer(now, &self.zone, name, outcome, counters);
        }
    }

    // Outputs.

    /// The next datagram.
    pub(crate) fn poll_transmit(&mut self) -> Option<Answer> {
        if let Some((to, destination, message)) = self.dns.as_mut().and_then(Dns::poll_datagram) {
            let source = SocketAddrV4::new(self.gateway, dns::PORT);
            return Some(Answer { to, source, destination, message });
        }
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

    /// The next DNS message for a connection to the gateway.
    pub(crate) fn poll_stream(&mut self) -> Option<(FlowId, Vec<u8>)> {
        self.dns.as_mut()?.poll_stream()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dns = self.dns.as_ref().and_then(Dns::poll_timeout);
        [self.changed, self.responder.poll_timeout(), dns].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
