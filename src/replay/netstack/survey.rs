//! What has to be known before the first frame: who is the guest, and how the captured network was laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde_json::json;
use server_glue::address::{AddressBook, MAX_NAME, Subnet};
use server_glue::netstack::{MacAddress, NetConfig};
use spice_proto::link::ChannelType;
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, IpInfo, ServerMessage, ServiceId};

use super::frame::{ACK, Content, Frame, SYN};
use crate::capture::dissect::{Body, Item, What};
use crate::capture::reassembly::StreamId;

/// Of each kind of thing so many are remembered; a network with more guests or services is not replayed rightly.
const MAX_KNOWN: usize = 4096;

/// Names two user networks apart; here it is one and the same.
const NETWORK: &str = "replay";

/// A time in which messages of a tunnel are missing. A hole is known only once something behind it was seen, which can be
/// long after it: so it is looked for at the first reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blind {
    /// The last that was heard before.
    pub(super) after: Duration,
    /// When messages are understood again.
    pub(super) until: Duration,
}

/// What both captures say about the network.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Stations that connect, or ask for an address.
    connecting: BTreeSet<MacAddress>,
    /// Stations that only look for others.
    looking: BTreeSet<MacAddress>,
    guests: BTreeSet<Ipv4Addr>,
    leases: BTreeSet<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
    dhcp_server: Option<Ipv4Addr>,
    /// Who sends ICMP errors.
    routers: BTreeSet<Ipv4Addr>,
    announced: BTreeMap<(StreamId, ServiceId), (String, u16)>,
    /// In the order of their mapping.
    mapped: Vec<(String, SocketAddrV4)>,
    /// A tunnel channel is in the capture.
    tunnel: bool,
    /// When an end of a tunnel last said something.
    heard: BTreeMap<(StreamId, Option<Sender>), Duration>,
    holes: Vec<Blind>,
    /// Tokens of the first SOCKET_OPEN.
    tokens: Option<u32>,
}

impl Survey {
    pub(super) fn frame(&mut self, bytes: &[u8]) {
        let Some(frame) = Frame::parse(bytes) else { return };
        match frame.content {
            Content::Tcp(tcp) if tcp.has(SYN) && !tcp.has(ACK) => {
                keep(&mut self.connecting, frame.source);
                keep(&mut self.guests, *tcp.from.ip());
            }
            Content::Dhcp(dhcp) if dhcp.reply => {
                self.mask = self.mask.or(dhcp.mask);
                self.dhcp_server = self.dhcp_server.or(dhcp.server);
                if dhcp.kind == super::link::DHCP_ACK && !dhcp.given.is_unspecified() {
                    keep(&mut self.leases, dhcp.given);
                    keep(&mut self.guests, dhcp.given);
                }
            }
            Content::Dhcp(_) => keep(&mut self.connecting, frame.source),
            Content::ArpRequest { .. } => keep(&mut self.looking, frame.source),
            Content::Unreachable { from, .. } => keep(&mut self.routers, from),
            Content::Tcp(_) | Content::ArpReply { .. } | Content::Echo { .. } | Content::Other => {}
        }
    }

    pub(super) fn item(&mut self, item: &Item<'_>) {
        if item.channel.is_none_or(|channel| channel.channel_type != ChannelType::TUNNEL.0) {
            return;
        }
        self.tunnel = true;
        self.look_for_hole(item);
        let What::Message(message) = &item.what else { return };
        match &message.body {
            Body::TunnelClient(said) => self.client_said(item.stream, said),
            Body::TunnelServer(said) => self.server_said(item.stream, said),
            Body::BaseServer(_)
            | Body::BaseClient(_)
            | Body::MainServer(_)
            | Body::MainClient(_)
            | Body::Opaque
            | Body::Incomplete => {}
        }
    }

    fn look_for_hole(&mut self, item: &Item<'_>) {
        let from = item.from;
        if let What::Hole(hole) = &item.what {
            let after = self.heard.get(&(item.stream, from)).copied().unwrap_or(item.time);
            // Too many to be remembered are one.
            let last = self.holes.len() >= MAX_KNOWN;
            let until = if hole.resumed && !last { item.time } else { Duration::MAX };
            if !last || self.holes.last().is_some_and(|hole| hole.until < Duration::MAX) {
                self.holes.push(Blind { after, until });
            }
        }
        if self.heard.len() < MAX_KNOWN || self.heard.contains_key(&(item.stream, from)) {
            self.heard.insert((item.stream, from), item.time);
        }
    }

    /// The times in which messages of a tunnel are missing, in order.
    pub(super) fn blind(&self) -> Vec<Blind> {
        let mut holes = self.holes.clone();
        holes.sort_unstable();
        holes
    }

    fn client_said(&mut self, stream: StreamId, said: &ClientMessage<'_>) {
        if let ClientMessage::ServiceAdd(add) = said
            && self.announced.len() < MAX_KNOWN
        {
            let name = add.name.escape_ascii().to_string();
            self.announced.insert((stream, add.service), (name, add.port));
        }
    }

    fn server_said(&mut self, stream: StreamId, said: &ServerMessage<'_>) {
        if let ServerMessage::SocketOpen { tokens, .. } = said {
            self.tokens.get_or_insert(*tokens);
        }
        if let ServerMessage::ServiceIpMap { service, address: IpInfo::V4(address) } = said
            && self.mapped.len() < MAX_KNOWN
            && let Some((name, port)) = self.announced.get(&(stream, *service))
        {
            self.mapped.push((name.clone(), SocketAddrV4::new(*address, *port)));
        }
    }

    /// Whether a station is a guest: it connects to others, or asks for an address. If none does, whoever looks for others.
    pub(super) fn is_guest(&self, station: MacAddress) -> bool {
        if self.connecting.is_empty() {
            self.looking.contains(&station)
        } else {
            self.connecting.contains(&station)
        }
    }

    pub(super) fn has_tunnel(&self) -> bool {
        self.tunnel
    }

    /// Whether something of the captured network had an address.
    pub(super) fn exists(&self, address: Ipv4Addr) -> bool {
        self.dhcp_server == Some(address)
            || self.routers.contains(&address)
            || self.mapped.iter().any(|(_, mapped)| *mapped.ip() == address)
    }

    /// The window that the captured server granted for each socket.
    pub(super) fn window(&self) -> Option<u32> {
        self.tokens
    }

    /// A network laid out as the captured one.
    pub(super) fn config(&self) -> NetConfig {
        let mut config = self.subnet().and_then(|subnet| NetConfig::new(subnet).ok()).unwrap_or_default();
        let in_use = |address: &Ipv4Addr| {
            self.guests.contains(address) || self.mapped.iter().any(|(_, mapped)| mapped.ip() == address)
        };
        let router =
            self.routers.iter().find(|router| config.subnet.is_host((**router).into()) && !in_use(router));
        if let Some(gateway) = self.dhcp_server.or(router.copied()) {
            config.gateway = gateway;
        }
        let (first, last) = config.guests;
        let range = first..=last;
        let usual = self.leases.iter().all(|lease| range.contains(lease))
            && !self.mapped.iter().any(|(_, mapped)| range.contains(mapped.ip()));
        let given = if self.leases.is_empty() { &self.guests } else { &self.leases };
        if !usual && let (Some(first), Some(last)) = (given.first(), given.last()) {
            config.guests = (*first, *last);
        }
        config
    }

    /// The addresses that the captured server gave, as if they had been given by today's, so that it gives them again.
    pub(super) fn book(&self, config: &NetConfig) -> AddressBook {
        let mut reserved: Vec<(IpAddr, IpAddr)> = vec![(config.gateway.into(), config.gateway.into())];
        reserved.extend(self.guests.iter().map(|guest| (IpAddr::V4(*guest), IpAddr::V4(*guest))));
        let mut leases: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (name, mapped) in &self.mapped {
            let address = *mapped.ip();
            // One that cannot be given today must not keep the others from it: it shows as a difference of its own.
            let possible = config.subnet.is_host(address.into())
                && address != config.gateway
                && !self.guests.contains(&address)
                && !name.is_empty()
                && name.len() <= MAX_NAME;
            // Today's server tells devices of one name apart by a number; the first keeps the name.
            let identities =
                std::iter::once(name.clone()).chain((2..10).map(|number| format!("{name}#{number}")));
            for identity in identities.filter(|identity| possible && identity.len() <= MAX_NAME) {
                let known = leases.get(&identity).copied();
                if known == Some(address) {
                    break;
                }
                if known.is_none() && taken.insert(address) {
                    leases.insert(identity, address);
                    break;
                }
            }
        }
        let leases: Vec<_> = leases
            .into_iter()
            .map(|(identity, address)| json!({ "address": address, "identity": identity }))
            .collect();
        let subnet = config.subnet.to_string();
        let text = json!({ "version": 1, "network": NETWORK, "subnet": subnet, "leases": leases });
        let mut book = AddressBook::new(NETWORK, config.subnet, reserved);
        if let Err(error) = book.load(&text.to_string()) {
            tracing::warn!(%error, "the captured addresses cannot be given today");
        }
        book
    }

    /// The subnet as DHCP said it, or the smallest that all known addresses are in, but not smaller than 256.
    fn subnet(&self) -> Option<Subnet> {
        let guest = *self.guests.first()?;
        if let Some(mask) = self.mask
            && let Ok(prefix) = u8::try_from(mask.to_bits().leading_ones())
        {
            return Subnet::new(guest.into(), prefix).ok();
        }
        let everybody =
            || self.guests.iter().copied().chain(self.mapped.iter().map(|(_, mapped)| *mapped.ip()));
        let usual = NetConfig::default().subnet;
        if everybody().all(|address| usual.contains(address.into())) {
            return Some(usual);
        }
        (8..=24)
            .rev()
            .filter_map(|prefix| Subnet::new(guest.into(), prefix).ok())
            .find(|subnet| everybody().all(|address| subnet.contains(address.into())))
    }
}

fn keep<T: Ord>(set: &mut BTreeSet<T>, value: T) {
    if set.len() < MAX_KNOWN {
        set.insert(value);
    }
}
