//! The netstack's DNS server: what reaches it, and what its answers become.

use std::net::SocketAddrV4;
use std::time::Instant;

use super::{NetEvent, Netstack};
use crate::names::dns::{self, Client, Dns};
use crate::packet::{MacAddress, put_udp};
use crate::table::FlowId;

impl Netstack {
    /// A datagram to the DNS server.
    pub(super) fn handle_dns_datagram(
        &mut self,
        now: Instant,
        station: MacAddress,
        address: SocketAddrV4,
        message: &[u8],
    ) {
        if let Some(dns) = &mut self.dns {
            dns.handle(now, &self.zone, Client::Udp { station, address }, message, &mut self.counters);
            self.serve_dns(now);
        }
    }

    /// A message of a connection to the DNS server. True: it is answered, now or later.
    pub(crate) fn handle_dns_question(&mut self, now: Instant, flow: FlowId, message: &[u8]) -> bool {
        let Some(dns) = &mut self.dns else { return false };
        dns.handle(now, &self.zone, Client::Tcp(flow), message, &mut self.counters)
    }

    /// Time has passed for the DNS server.
    pub(super) fn dns_due(&mut self, now: Instant) {
        let mut streams = std::mem::take(&mut self.streams);
        streams.handle_timeout(self, now);
        self.streams = streams;
        if let Some(dns) = &mut self.dns {
            dns.handle_timeout(now, &self.zone, &mut self.counters);
        }
        self.serve_dns(now);
    }

    /// Does what the server's connections want, and sends its answers.
    pub(super) fn serve_dns(&mut self, now: Instant) {
        let mut streams = std::mem::take(&mut self.streams);
        loop {
            if let Some(event) = self.stream_events.pop_front() {
                self.told(event);
                streams.handle(self, now, event);
            } else if let Some((client, message)) = self.dns.as_mut().and_then(Dns::poll_answer) {
                match client {
                    Client::Udp { station, address } => self.send_datagram(station, address, &message),
                    Client::Tcp(flow) => streams.answer(self, now, flow, &message),
                }
            } else {
                break;
            }
        }
        self.streams = streams;
    }

    fn send_datagram(&mut self, station: MacAddress, to: SocketAddrV4, message: &[u8]) {
        let from = SocketAddrV4::new(self.dhcp.server(), dns::PORT);
        self.edge.send_ipv4(station, &mut self.counters, |out| put_udp(out, from, to, message));
    }

    /// Queues an event for whoever owns the connection: the DNS server's are its own.
    pub(super) fn tell(&mut self, local: std::net::SocketAddr, event: NetEvent) {
        if self.dns.is_some() && local.port() == dns::PORT && local.ip() == self.dhcp.server() {
            self.stream_events.push_back(event);
        } else {
            self.events.push_back(event);
        }
    }
}
