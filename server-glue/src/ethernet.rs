//! The edge of the virtual network: who is asked, and what is answered before TCP.
//!
//! A frame goes through four questions: is it for us on the link (our MAC, or all stations); is it sound (lengths,
//! checksums, no fragment); may its sender send it (an address of the subnet that is not one of ours); and does its
//! destination exist. ARP, ICMP echo and the errors a host or a router would send are answered here. What is left, TCP,
//! DHCP and questions about names, goes up.
//!
//! What exists: the gateway, every address that something is published at, and those that connections still have. Only these answer ARP and ping, so a
//! guest that looks for anything else finds a silent link, as on a real one. Nothing here is ever sent unasked.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::address::Subnet;
use crate::budget::Budget;
use crate::names::{Asked, dns, mdns};
use crate::netstack::Counters;
use crate::offload::CardFrame;
use crate::packet::{
    ArpRequest, ETHERNET_HEADER, Fault, Frame, Icmp, Ipv4, MacAddress, Outbox, PROTOCOL_ICMP, PROTOCOL_TCP,
    PROTOCOL_UDP, Payload, Route, Segment, Udp, Unreachable, ethernet_ipv4, put_arp_reply, put_echo_reply,
    put_ethernet_ipv4, put_unreachable,
};
use crate::table::Table;

/// UDP port of a DHCP server (RFC 2131).
pub(crate) const DHCP_SERVER_PORT: u16 = 67;

/// UDP port of a DHCP client (RFC 2131).
pub(crate) const DHCP_CLIENT_PORT: u16 = 68;

/// Octets of answers that may wait for the guest; beyond, new ones are dropped.
const OUTBOX_LIMIT: usize = 512 * 1024;

/// What the edge hands up.
#[derive(Debug)]
pub(crate) enum Upward<'a> {
    /// A TCP segment to an address that exists.
    Tcp { from: MacAddress, segment: Segment<'a> },
    /// A DHCP client's message.
    Dhcp { from: MacAddress, message: &'a [u8] },
    /// Something about names, to a port where they are told.
    Names(Asked<'a>),
}

/// Who we are on the link, what exists behind us, and what waits to be sent.
#[derive(Debug)]
pub(crate) struct Edge {
    mac: MacAddress,
    subnet: Subnet,
    gateway: Ipv4Addr,
    /// Ports by address. INVARIANT: no set is empty.
    published: HashMap<IpAddr, BTreeSet<u16>>,
    errors: Budget,
    pub(crate) outbox: Outbox,
}

impl Edge {
    pub(crate) fn new(mac: MacAddress, subnet: Subnet, gateway: Ipv4Addr) -> Edge {
        Edge {
            mac,
            subnet,
            gateway,
            published: HashMap::new(),
            errors: Budget::new(64, Duration::from_millis(5)),
            outbox: Outbox::new(OUTBOX_LIMIT),
        }
    }

    pub(crate) fn publish(&mut self, address: IpAddr, port: u16) {
        self.published.entry(address).or_default().insert(port);
    }

    pub(crate) fn withdraw(&mut self, address: IpAddr, port: u16) {
        if let Some(ports) = self.published.get_mut(&address) {
            ports.remove(&port);
            if ports.is_empty() {
                self.published.remove(&address);
            }
        }
    }

    pub(crate) fn is_published(&self, address: IpAddr, port: u16) -> bool {
        self.published.get(&address).is_some_and(|ports| ports.contains(&port))
    }

    fn exists(&self, address: Ipv4Addr, table: &Table) -> bool {
        let ip = IpAddr::V4(address);
        address == self.gateway || self.published.contains_key(&ip) || table.uses(ip)
    }

    /// Whether a datagram to an address that exists is for one of those who tell names: any address speaks multicast DNS, the gateway
    /// may speak DNS.
    fn tells_names(&self, ip: &Ipv4<'_>, udp: &Udp<'_>) -> bool {
        match udp.destination_port {
            mdns::PORT => true,
            dns::PORT => ip.destination == self.gateway && self.is_published(self.gateway.into(), dns::PORT),
            _ => false,
        }
    }

    fn route(&self, to: MacAddress) -> Route {
        Route { from: self.mac, to }
    }

    /// Answers a frame, or says what of it is for the layers above.
    pub(crate) fn receive<'a>(
        &mut self,
        now: Instant,
        card: CardFrame<'a>,
        table: &Table,
        counters: &mut Counters,
    ) -> Option<Upward<'a>> {
        counters.frames_in += 1;
        let frame = match Frame::parse(card.bytes) {
            Ok(frame) => frame,
            Err(fault) => return drop_faulty(fault, counters),
        };
        if !frame.source.is_unicast() || frame.source == self.mac {
            counters.martian += 1;
            return None;
        }
        if frame.destination.is_unicast() && frame.destination != self.mac {
            counters.not_for_us += 1;
            return None;
        }
        match frame.payload {
            Payload::Arp(packet) => {
                self.receive_arp(frame.source, packet, table, counters);
                None
            }
            Payload::Ipv4(packet) => {
                let packet = Ipv4::parse(packet).map(|ip| Ipv4 { vouched: card.vouched, ..ip });
                self.receive_ipv4(now, &frame, packet, table, counters)
            }
            Payload::Ipv6 => {
                counters.ipv6 += 1;
                None
            }
            Payload::Other => {
                counters.unknown_protocol += 1;
                None
            }
        }
    }

    fn receive_arp(&mut self, from: MacAddress, packet: &[u8], table: &Table, counters: &mut Counters) {
        let request = match ArpRequest::parse(packet) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(_) => {
                counters.malformed += 1;
                return;
            }
        };
        // A probe (sender 0.0.0.0, RFC 5227) for one of our addresses is answered: it defends them. An
        // announcement (sender = target) never is, and what the guest probes for itself does not exist here.
        let asks = request.sender != request.target
            && (request.sender.is_unspecified() || self.subnet.contains(request.sender.into()))
            && request.sender_mac.is_unicast();
        if !asks || !self.exists(request.target, table) {
            counters.arp_unanswered += 1;
            return;
        }
        let route = self.route(from);
        let sent = self.outbox.push(|out| put_arp_reply(out, route, request.target, &request));
        counters.sent_or_dropped(sent);
    }

    fn receive_ipv4<'a>(
        &mut self,
        now: Instant,
        frame: &Frame<'a>,
        packet: Result<Ipv4<'a>, Fault>,
        table: &Table,
        counters: &mut Counters,
    ) -> Option<Upward<'a>> {
        let ip = match packet {
            Ok(ip) => ip,
            Err(fault) => return drop_faulty(fault, counters),
        };
        if ip.protocol == PROTOCOL_UDP
            && let Ok(udp) = Udp::parse(&ip)
            && udp.destination_port == DHCP_SERVER_PORT
        {
            // A guest without an address may not be a host of the subnet yet.
            let ours = ip.destination.is_broadcast()
                || ip.destination == self.gateway
                || self.subnet.broadcast() == Some(ip.destination.into());
            if !ours {
                counters.not_for_us += 1;
                return None;
            }
            return Some(Upward::Dhcp { from: frame.source, message: udp.payload });
        }
        // Only a host of this subnet can be answered, and nobody may speak in the name of what exists here.
        if !self.subnet.is_host(ip.source.into()) || self.exists(ip.source, table) {
            counters.martian += 1;
            return None;
        }
        if ip.protocol == PROTOCOL_UDP
            && ip.destination == mdns::GROUP
            && let Ok(udp) = Udp::parse(&ip)
            && udp.destination_port == mdns::PORT
        {
            return Some(Upward::Names(asked(frame.source, &ip, &udp)));
        }
        let to_one = frame.destination == self.mac
            && !ip.destination.is_broadcast()
            && !ip.destination.is_multicast()
            && !ip.destination.is_unspecified()
            && self.subnet.broadcast() != Some(ip.destination.into())
            && self.subnet.network() != IpAddr::V4(ip.destination);
        if !to_one {
            counters.not_for_us += 1;
            return None;
        }
        if !self.exists(ip.destination, table) {
            // As a router would: it knows that nobody is there, or no way to there.
            let reason = if self.subnet.contains(ip.destination.into()) {
                Unreachable::Host
            } else {
                Unreachable::Net
            };
            self.refuse(now, frame.source, &ip, self.gateway, reason, counters);
            return None;
        }
        match ip.protocol {
            PROTOCOL_TCP => match Segment::parse(&ip) {
                Ok(segment) => Some(Upward::Tcp { from: frame.source, segment }),
                Err(fault) => drop_faulty(fault, counters),
            },
            PROTOCOL_ICMP => {
                self.receive_icmp(frame.source, &ip, counters);
                None
            }
            PROTOCOL_UDP => match Udp::parse(&ip) {
                Ok(udp) if self.tells_names(&ip, &udp) => Some(Upward::Names(asked(frame.source, &ip, &udp))),
                Ok(_) => {
                    self.refuse(now, frame.source, &ip, ip.destination, Unreachable::Port, counters);
                    None
                }
                Err(fault) => drop_faulty(fault, counters),
            },
            _ => {
                self.refuse(now, frame.source, &ip, ip.destination, Unreachable::Protocol, counters);
                None
            }
        }
    }

    fn receive_icmp(&mut self, from: MacAddress, ip: &Ipv4<'_>, counters: &mut Counters) {
        match Icmp::parse(ip.payload) {
            Ok(Icmp::EchoRequest(rest)) => {
                let route = self.route(from);
                let sent = self.outbox.push(|out| {
                    put_ethernet_ipv4(out, route);
                    put_echo_reply(out, ip.destination, ip.source, rest);
                });
                counters.echo_replies += u64::from(sent);
                counters.sent_or_dropped(sent);
            }
            Ok(Icmp::Other) => counters.icmp_ignored += 1,
            Err(fault) => count_fault(fault, counters),
        }
    }

    /// An ICMP error about `ip`, unless RFC 1122 3.2.2 forbids one (an ICMP packet that is no echo request) or too many went
    /// out lately. The caller has excluded the other cases: broadcasts, fragments, senders that are no single host.
    fn refuse(
        &mut self,
        now: Instant,
        to: MacAddress,
        ip: &Ipv4<'_>,
        source: Ipv4Addr,
        reason: Unreachable,
        counters: &mut Counters,
    ) {
        if ip.protocol == PROTOCOL_ICMP && !matches!(Icmp::parse(ip.payload), Ok(Icmp::EchoRequest(_))) {
            counters.icmp_ignored += 1;
            return;
        }
        if !self.errors.take(now) {
            counters.icmp_errors_withheld += 1;
            return;
        }
        self.send_error(to, (source, ip.source), reason, ip.whole, counters);
    }

    /// The error that the owner of a connection asked for. Not rationed: the number of held connections does that.
    pub(crate) fn send_unreachable(
        &mut self,
        to: MacAddress,
        guest: Ipv4Addr,
        reason: Unreachable,
        about: &[u8],
        counters: &mut Counters,
    ) {
        self.send_error(to, (self.gateway, guest), reason, about, counters);
    }

    fn send_error(
        &mut self,
        to: MacAddress,
        (source, destination): (Ipv4Addr, Ipv4Addr),
        reason: Unreachable,
        about: &[u8],
        counters: &mut Counters,
    ) {
        let route = self.route(to);
        let sent = self.outbox.push(|out| {
            put_ethernet_ipv4(out, route);
            put_unreachable(out, source, destination, reason, about);
        });
        counters.icmp_errors += u64::from(sent);
        counters.sent_or_dropped(sent);
    }

    /// One IPv4 packet to a station of the link.
    pub(crate) fn send_ipv4(
        &mut self,
        to: MacAddress,
        counters: &mut Counters,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let route = self.route(to);
        let sent = self.outbox.push(|out| {
            put_ethernet_ipv4(out, route);
            write(out);
        });
        counters.sent_or_dropped(sent);
    }

    /// A whole frame.
    pub(crate) fn send_frame(&mut self, counters: &mut Counters, frame: &[u8]) {
        let sent = self.outbox.push(|out| out.extend_from_slice(frame));
        counters.sent_or_dropped(sent);
    }

    /// The Ethernet header of an IPv4 packet to a station of the link.
    pub(crate) fn header(&self, to: MacAddress) -> [u8; ETHERNET_HEADER] {
        ethernet_ipv4(self.route(to))
    }
}

fn asked<'a>(from: MacAddress, ip: &Ipv4<'a>, udp: &Udp<'a>) -> Asked<'a> {
    Asked {
        from,
        source: SocketAddrV4::new(ip.source, udp.source_port),
        destination: SocketAddrV4::new(ip.destination, udp.destination_port),
        message: udp.payload,
    }
}

fn drop_faulty<T>(fault: Fault, counters: &mut Counters) -> Option<T> {
    count_fault(fault, counters);
    None
}

fn count_fault(fault: Fault, counters: &mut Counters) {
    match fault {
        Fault::Malformed => counters.malformed += 1,
        Fault::Checksum => counters.bad_checksum += 1,
        Fault::Fragment => counters.fragments += 1,
    }
}
