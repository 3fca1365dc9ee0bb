//! Who has which address on the link (ARP, RFC 826), and the pings that wait for it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::phy::{ChecksumCapabilities, TxToken as _};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    IpProtocol, Ipv4Packet, Ipv4Repr,
};

use super::{ConnectionError, ConnectionId, Event, PING_IDENT, Stack, ethernet_header};
use crate::guest::device::{ETHERNET_HEADER, Tx};

const ARP_TRIES: u8 = 3;
const ARP_INTERVAL: Duration = Duration::from_secs(1);
const ARP_LIFETIME: Duration = Duration::from_secs(60);

pub(super) struct Ping {
    pub(super) destination: Ipv4Addr,
    pub(super) sent: Instant,
}

pub(super) enum Neighbour {
    Known { mac: EthernetAddress, until: Instant },
    Asking { tries: u8, next: Instant, connections: Vec<ConnectionId>, pings: Vec<u16> },
}

impl Stack {
    pub(super) fn next_hop(&self, to: Ipv4Addr) -> Result<Ipv4Addr, ConnectionError> {
        let (network, router) = self.network.ok_or(ConnectionError::NoAddress)?;
        if network.contains_addr(&to) {
            return Ok(to);
        }
        router.ok_or(ConnectionError::NoRoute)
    }

    pub(super) fn ask(
        &mut self,
        now: Instant,
        hop: Ipv4Addr,
        connections: Vec<ConnectionId>,
        pings: Vec<u16>,
    ) {
        let next = now + ARP_INTERVAL;
        self.neighbours.insert(hop, Neighbour::Asking { tries: 1, next, connections, pings });
        self.send_arp(hop);
    }

    pub(super) fn ask_again(&mut self, now: Instant) {
        let mut again = Vec::new();
        let mut given_up = Vec::new();
        for (hop, neighbour) in &mut self.neighbours {
            if let Neighbour::Asking { tries, next, .. } = neighbour
                && *next <= now
            {
                if *tries == ARP_TRIES {
                    given_up.push(*hop);
                } else {
                    *tries += 1;
                    *next = now + ARP_INTERVAL;
                    again.push(*hop);
                }
            }
        }
        for hop in again {
            self.send_arp(hop);
        }
        for hop in given_up {
            if let Some(Neighbour::Asking { connections, pings, .. }) = self.neighbours.remove(&hop) {
                for id in connections {
                    self.fail(id, ConnectionError::Unreachable);
                }
                for sequence in pings {
                    if self.pings.remove(&sequence).is_some() {
                        let error = ConnectionError::Unreachable;
                        self.events.push_back(Event::PingFailed { sequence, error });
                    }
                }
            }
        }
    }

    pub(super) fn learn(&mut self, now: Instant, arp: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(arp) else { return };
        let Ok(ArpRepr::EthernetIpv4 { source_hardware_addr: mac, source_protocol_addr: hop, .. }) =
            ArpRepr::parse(&packet)
        else {
            return;
        };
        // Like a host that was asked nothing: an announcement alone makes no entry.
        if !mac.is_unicast() || !self.neighbours.contains_key(&hop) {
            return;
        }
        let known = Neighbour::Known { mac, until: now + ARP_LIFETIME };
        if let Some(Neighbour::Asking { connections, pings, .. }) = self.neighbours.insert(hop, known) {
            for id in connections {
                self.start(id, mac);
            }
            for sequence in pings {
                self.send_ping(now, sequence, mac);
            }
        }
    }

    pub(super) fn send_arp(&mut self, hop: Ipv4Addr) {
        let Some((network, _)) = self.network else { return };
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.mac,
            source_protocol_addr: network.address(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: hop,
        };
        let header = ethernet_header(EthernetAddress::BROADCAST, self.mac, EthernetProtocol::Arp);
        self.emit(&header, arp.buffer_len(), |place| arp.emit(&mut ArpPacket::new_unchecked(place)));
    }

    pub(super) fn send_ping(&mut self, now: Instant, sequence: u16, mac: EthernetAddress) {
        let Some((network, _)) = self.network else { return };
        let Some(ping) = self.pings.get_mut(&sequence) else { return };
        ping.sent = now;
        let echo = Icmpv4Repr::EchoRequest { ident: PING_IDENT, seq_no: sequence, data: &[0x61; 56] };
        let ip = Ipv4Repr {
            src_addr: network.address(),
            dst_addr: ping.destination,
            next_header: IpProtocol::Icmp,
            payload_len: echo.buffer_len(),
            hop_limit: 64,
        };
        let checksums = ChecksumCapabilities::default();
        let header = ethernet_header(mac, self.mac, EthernetProtocol::Ipv4);
        self.emit(&header, ip.buffer_len() + echo.buffer_len(), |place| {
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut *place), &checksums);
            let payload = place.split_at_mut(ip.buffer_len()).1;
            echo.emit(&mut Icmpv4Packet::new_unchecked(payload), &checksums);
        });
    }

    pub(super) fn emit(&mut self, header: &[u8; ETHERNET_HEADER], len: usize, fill: impl FnOnce(&mut [u8])) {
        let tx = Tx { transmit: &mut self.transmit, header: Some(*header) };
        tx.consume(len, fill);
    }
}
