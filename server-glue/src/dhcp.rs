//! The DHCP server of the virtual network (RFC 2131, RFC 2132), sans-IO.
//!
//! It gives a guest an address and a mask, how large packets may be, and for how long. It gives no router and no name
//! server, so that the guest's way into the world stays as it was. It is the only server on its link, so it may refuse
//! what it does not know (RFC 2131, 4.3.2) and take up what a guest remembers from before a restart.
//!
//! A MAC's address is hashed into the guests' range, and kept as long as the range has room: it is the same after a
//! restart, unless two MACs want one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, DhcpOptions, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use openssl::sha::sha256;

use crate::address::Subnet;
use crate::packet::MacAddress;

/// How long an offer is kept for the guest that it was made to.
const OFFER: Duration = Duration::from_secs(60);
/// How long an address is left alone that a guest found in use.
const DECLINED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
pub(crate) struct DhcpConfig {
    pub(crate) server: Ipv4Addr,
    pub(crate) subnet: Subnet,
    /// First and last address that guests get.
    pub(crate) range: (Ipv4Addr, Ipv4Addr),
    pub(crate) mtu: u16,
    pub(crate) lease_time: Duration,
}

/// What to send back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Broadcast, or the guest's address.
    pub(crate) to: Ipv4Addr,
    pub(crate) message: Vec<u8>,
    /// The guest has this address from now on.
    pub(crate) leased: Option<(MacAddress, Ipv4Addr)>,
}

#[derive(Debug)]
pub(crate) struct DhcpServer {
    config: DhcpConfig,
    /// INVARIANT: only addresses of the range, so there are never more entries than it has addresses.
    uses: BTreeMap<Ipv4Addr, Use>,
}

/// What an address of the range is used for. Past `until` another guest may get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Guest { mac: MacAddress, until: Instant },
    Declined { until: Instant },
}

impl DhcpServer {
    pub(crate) fn new(config: DhcpConfig) -> DhcpServer {
        DhcpServer { config, uses: BTreeMap::new() }
    }

    pub(crate) fn server(&self) -> Ipv4Addr {
        self.config.server
    }

    /// Takes the payload of a UDP datagram to port 67. `None`: nothing to answer, or nothing that can be understood.
    pub(crate) fn handle(&mut self, now: Instant, message: &[u8]) -> Option<Answer> {
        let request = Message::from_bytes(message).ok()?;
        // A relay agent cannot be on this link.
        if request.opcode() != Opcode::BootRequest || !request.giaddr().is_unspecified() {
            return None;
        }
        if request.htype() != HType::Eth || request.hlen() != 6 {
            return None;
        }
        let mac = MacAddress(*request.chaddr().first_chunk::<6>()?);
        if !mac.is_unicast() {
            return None;
        }
        let kind = request.opts().get(OptionCode::MessageType);
        let Some(DhcpOption::MessageType(kind)) = kind else { return None };
        #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum, mostly of what servers say")]
        match kind {
            MessageType::Discover => self.discover(now, mac, &request),
            MessageType::Request => self.request(now, mac, &request),
            MessageType::Decline => {
                let declined = requested(&request)?;
                if server_id(&request) == Some(self.config.server) && self.is_mine(mac, declined) {
                    self.uses.insert(declined, Use::Declined { until: now + DECLINED });
                }
                None
            }
            MessageType::Release => {
                if self.is_mine(mac, request.ciaddr()) {
                    self.uses.remove(&request.ciaddr());
                }
                None
            }
            MessageType::Inform => {
                let to = request.ciaddr();
                if !self.config.subnet.is_host(to.into()) {
                    return None;
                }
                let reply = self.reply(&request, MessageType::Ack, None);
                Some(Answer { to, message: encode(&reply)?, leased: None })
            }
            _ => None,
        }
    }

    fn discover(&mut self, now: Instant, mac: MacAddress, request: &Message) -> Option<Answer> {
        let address = self.choose(now, mac, requested(request))?;
        self.keep(address, mac, now + OFFER);
        let reply = self.reply(request, MessageType::Offer, Some(address));
        Some(Answer { to: destination(request, address), message: encode(&reply)?, leased: None })
    }

    fn request(&mut self, now: Instant, mac: MacAddress, request: &Message) -> Option<Answer> {
        match server_id(request) {
            Some(server) if server != self.config.server => {
                // It took another server's offer.
                self.uses.retain(|_, used| !matches!(used, Use::Guest { mac: theirs, .. } if *theirs == mac));
                return None;
            }
            Some(_) | None => {}
        }
        // SELECTING and INIT-REBOOT name the address in an option, RENEWING and REBINDING have it already.
        let wanted = requested(request).unwrap_or(request.ciaddr());
        if self.is_free_for(now, mac, wanted) {
            self.uses.retain(
                |address, used| !matches!(used, Use::Guest { mac: theirs, .. } if *theirs == mac && *address != wanted),
            );
            self.keep(wanted, mac, now + self.config.lease_time);
            let reply = self.reply(request, MessageType::Ack, Some(wanted));
            let to = if request.ciaddr().is_unspecified() {
                destination(request, wanted)
            } else {
                request.ciaddr()
            };
            Some(Answer { to, message: encode(&reply)?, leased: Some((mac, wanted)) })
        } else {
            let reply = self.reply(request, MessageType::Nak, None);
            Some(Answer { to: Ipv4Addr::BROADCAST, message: encode(&reply)?, leased: None })
        }
    }

    /// The address for a guest: the one it has, the one it asks for, the one that its MAC is hashed to, or any.
    fn choose(&self, now: Instant, mac: MacAddress, wish: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let current = self.uses.iter().find_map(|(address, used)| match used {
            Use::Guest { mac: theirs, .. } if *theirs == mac => Some(*address),
            Use::Guest { .. } | Use::Declined { .. } => None,
        });
        let (first, last) = (self.config.range.0.to_bits(), self.config.range.1.to_bits());
        let count = last.saturating_sub(first).saturating_add(1);
        let digest = sha256(&mac.0);
        let hash = digest.first_chunk::<4>().map_or(0, |chunk| u32::from_be_bytes(*chunk)) % count;
        let all = (0..count).map(|step| {
            let index = (u64::from(hash) + u64::from(step)) % u64::from(count);
            Ipv4Addr::from_bits(first.saturating_add(u32::try_from(index).unwrap_or(0)))
        });
        current.into_iter().chain(wish).chain(all).find(|address| self.is_free_for(now, mac, *address))
    }

    fn is_free_for(&self, now: Instant, mac: MacAddress, address: Ipv4Addr) -> bool {
        if address < self.config.range.0 || address > self.config.range.1 {
            return false;
        }
        match self.uses.get(&address) {
            None => true,
            Some(Use::Guest { mac: theirs, until }) => *theirs == mac || *until <= now,
            Some(Use::Declined { until }) => *until <= now,
        }
    }

    fn is_mine(&self, mac: MacAddress, address: Ipv4Addr) -> bool {
        matches!(self.uses.get(&address), Some(Use::Guest { mac: theirs, .. }) if *theirs == mac)
    }

    /// An offer must not shorten a lease.
    fn keep(&mut self, address: Ipv4Addr, mac: MacAddress, until: Instant) {
        let until = match self.uses.get(&address) {
            Some(Use::Guest { mac: theirs, until: before }) if *theirs == mac => until.max(*before),
            Some(Use::Guest { .. } | Use::Declined { .. }) | None => until,
        };
        self.uses.insert(address, Use::Guest { mac, until });
    }

    /// `address`: the one given by an offer or an acknowledgement; without it there is no lease to speak of.
    fn reply(&self, request: &Message, kind: MessageType, address: Option<Ipv4Addr>) -> Message {
        let mut reply = Message::new_with_id(
            request.xid(),
            Ipv4Addr::UNSPECIFIED,
            address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            request.chaddr(),
        );
        reply.set_opcode(Opcode::BootReply).set_flags(request.flags());
        if kind == MessageType::Ack {
            reply.set_ciaddr(request.ciaddr());
        }
        let mut options = DhcpOptions::new();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.config.server));
        if kind != MessageType::Nak {
            if let Some(mask) = self.config.subnet.mask() {
                options.insert(DhcpOption::SubnetMask(mask));
            }
            options.insert(DhcpOption::InterfaceMtu(self.config.mtu));
        }
        if address.is_some() {
            let seconds = u32::try_from(self.config.lease_time.as_secs()).unwrap_or(u32::MAX);
            options.insert(DhcpOption::AddressLeaseTime(seconds));
            options.insert(DhcpOption::Renewal(seconds / 2));
            options.insert(DhcpOption::Rebinding(seconds / 8 * 7));
        }
        // RFC 6842: a client that named itself finds its name in the answer.
        if let Some(DhcpOption::ClientIdentifier(id)) = request.opts().get(OptionCode::ClientIdentifier) {
            options.insert(DhcpOption::ClientIdentifier(id.clone()));
        }
        reply.set_opts(options);
        reply
    }
}

/// Where an offer or acknowledgement goes (RFC 2131, 4.1).
fn destination(request: &Message, address: Ipv4Addr) -> Ipv4Addr {
    if request.flags().broadcast() { Ipv4Addr::BROADCAST } else { address }
}

fn requested(request: &Message) -> Option<Ipv4Addr> {
    match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    }
}

fn server_id(request: &Message) -> Option<Ipv4Addr> {
    match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(address)) => Some(*address),
        _ => None,
    }
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = message.to_vec().ok()?;
    // RFC 1542, 2.1: old clients drop what is shorter than a BOOTP message.
    bytes.resize(bytes.len().max(300), 0);
    Some(bytes)
}
