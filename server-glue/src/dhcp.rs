//! The DHCP server of the virtual network (RFC 2131, RFC 2132), sans-IO.
//!
//! It gives a guest an address and a mask, how large packets may be, and for how long. It gives no router, so that the
//! guest's way into the world stays as it was. It names our DNS server, if it was told to, with the domain that this
//! server knows; a guest asks the servers of its other cards for the rest. It is the only server on its link, so it may
//! refuse what it does not know (RFC 2131, 4.3.2) and take up what a guest remembers from before a restart.
//!
//! A MAC's address is hashed into the guests' range, and kept as long as the range has room: it is the same after a
//! restart, unless two MACs want one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, DhcpOptions, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable, Name};
use openssl::sha::sha256;

use crate::address::Subnet;
use crate::domain::Domain;
use crate::packet::MacAddress;

/// Octets before the options: RFC 2131's fixed fields, and the magic number of RFC 2132.
const HEADER: usize = 240;
/// How long an offer is kept for the guest that it was made to.
const OFFER: Duration = Duration::from_secs(60);
/// How long an address is left alone that a guest found in use.
const DECLINED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(crate) struct DhcpConfig {
    pub(crate) server: Ipv4Addr,
    pub(crate) subnet: Subnet,
    /// First and last address that guests get.
    pub(crate) range: (Ipv4Addr, Ipv4Addr),
    pub(crate) mtu: u16,
    pub(crate) lease_time: Duration,
    /// Names `server` as the DNS server, of this domain.
    pub(crate) domain: Option<Domain>,
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
        let request = Message::from_bytes(&essence(message)?).ok()?;
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
            if let Some(domain) = &self.config.domain {
                options.insert(DhcpOption::DomainNameServer(vec![self.config.server]));
                options.insert(DhcpOption::DomainName(domain.as_str().to_owned()));
                // RFC 3397; who does not know it searches in the domain of option 15.
                if let Ok(name) = Name::from_ascii(format!("{domain}.")) {
                    options.insert(DhcpOption::DomainSearch(vec![name]));
                }
            }
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

/// A message with only those options that we look at, if their lengths are right. dhcproto 0.15 has assertions in the parsers of others (152 and
/// up), which a guest must not reach.
fn essence(message: &[u8]) -> Option<Vec<u8>> {
    let (header, mut options) = message.split_at_checked(HEADER)?;
    if !header.ends_with(&dhcproto::v4::MAGIC) {
        return None;
    }
    let mut kept = header.to_vec();
    while let Some((&code, rest)) = options.split_first() {
        if code == u8::from(OptionCode::End) {
            break;
        }
        if code == u8::from(OptionCode::Pad) {
            options = rest;
            continue;
        }
        let (&len, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(len))?;
        #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum of some hundred options")]
        let known = match OptionCode::from(code) {
            OptionCode::MessageType => len == 1,
            OptionCode::RequestedIpAddress | OptionCode::ServerIdentifier => len == 4,
            OptionCode::ClientIdentifier => len >= 2,
            _ => false,
        };
        if known {
            kept.extend_from_slice(&[code, len]);
            kept.extend_from_slice(value);
        }
        options = rest;
    }
    kept.push(u8::from(OptionCode::End));
    Some(kept)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 9, 9, 9]);
    const LEASE: Duration = Duration::from_secs(1000);

    fn server(last: u8) -> DhcpServer {
        DhcpServer::new(DhcpConfig {
            server: SERVER,
            subnet: Subnet::new(SERVER.into(), 16).unwrap(),
            range: (Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 0, last)),
            mtu: 65_520,
            lease_time: LEASE,
            domain: None,
        })
    }

    fn message(mac: MacAddress, kind: MessageType) -> Message {
        let any = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(77, any, any, any, any, &mac.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        message
    }

    fn wish(mut message: Message, address: Ipv4Addr) -> Message {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        message
    }

    fn to_server(mut message: Message, server: Ipv4Addr) -> Message {
        message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        message
    }

    fn renewing(mut message: Message, address: Ipv4Addr) -> Message {
        message.set_ciaddr(address);
        message
    }

    fn ask(server: &mut DhcpServer, now: Instant, message: &Message) -> Option<(Answer, Message)> {
        let answer = server.handle(now, &message.to_vec().unwrap())?;
        assert!(answer.message.len() >= 300);
        let reply = Message::from_bytes(&answer.message).unwrap();
        assert_eq!((reply.opcode(), reply.xid(), reply.chaddr()), (Opcode::BootReply, 77, message.chaddr()));
        Some((answer, reply))
    }

    fn kind(reply: &Message) -> MessageType {
        let Some(DhcpOption::MessageType(kind)) = reply.opts().get(OptionCode::MessageType) else { panic!() };
        *kind
    }

    /// The whole exchange of a guest that knows nothing.
    fn lease(server: &mut DhcpServer, now: Instant, mac: MacAddress) -> Option<Ipv4Addr> {
        let (_, offer) = ask(server, now, &message(mac, MessageType::Discover))?;
        assert_eq!(kind(&offer), MessageType::Offer);
        let request = to_server(wish(message(mac, MessageType::Request), offer.yiaddr()), SERVER);
        let (answer, ack) = ask(server, now, &request)?;
        assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, offer.yiaddr()));
        assert_eq!(answer.leased, Some((mac, ack.yiaddr())));
        Some(ack.yiaddr())
    }

    #[test]
    fn an_offer_holds_what_it_should_and_nothing_else() {
        let mut server = server(254);
        let now = Instant::now();
        let (answer, offer) = ask(&mut server, now, &message(MAC, MessageType::Discover)).unwrap();
        assert_eq!((answer.to, answer.leased), (offer.yiaddr(), None));
        let mut codes: Vec<u8> = offer.opts().iter().map(|(code, _)| u8::from(*code)).collect();
        codes.sort_unstable();
        // Mask, MTU, lease time, kind, server, T1, T2: no router (3), no DNS (6).
        assert_eq!(codes, [1, 26, 51, 53, 54, 58, 59]);
        assert_eq!(
            offer.opts().get(OptionCode::SubnetMask),
            Some(&DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)))
        );
        assert_eq!(offer.opts().get(OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(65_520)));
        assert_eq!(offer.opts().get(OptionCode::AddressLeaseTime), Some(&DhcpOption::AddressLeaseTime(1000)));
        assert_eq!(
            offer.opts().get(OptionCode::ServerIdentifier),
            Some(&DhcpOption::ServerIdentifier(SERVER))
        );
    }

    #[test]
    fn our_dns_server_is_named_if_it_should_be() {
        let mut server = server(254);
        server.config.domain = Some(Domain::default());
        let now = Instant::now();
        let (answer, offer) = ask(&mut server, now, &message(MAC, MessageType::Discover)).unwrap();
        let mut codes: Vec<u8> = offer.opts().iter().map(|(code, _)| u8::from(*code)).collect();
        codes.sort_unstable();
        assert_eq!(codes, [1, 6, 15, 26, 51, 53, 54, 58, 59, 119], "and still no router (3)");
        assert_eq!(
            offer.opts().get(OptionCode::DomainNameServer),
            Some(&DhcpOption::DomainNameServer(vec![SERVER]))
        );
        assert_eq!(
            offer.opts().get(OptionCode::DomainName),
            Some(&DhcpOption::DomainName("tunnel.internal".to_owned()))
        );
        let search = b"\x77\x11\x06tunnel\x08internal\x00";
        assert!(answer.message.windows(search.len()).any(|octets| octets == search), "RFC 3397's form");
        let inform = renewing(message(MAC, MessageType::Inform), Ipv4Addr::new(198, 18, 7, 7));
        let (_, ack) = ask(&mut server, now, &inform).unwrap();
        assert!(ack.opts().get(OptionCode::DomainNameServer).is_some());
        let nak = ask(&mut server, now, &message(MAC, MessageType::Request)).unwrap().1;
        assert_eq!((kind(&nak), nak.opts().get(OptionCode::DomainNameServer)), (MessageType::Nak, None));
    }

    #[test]
    fn answers_go_where_the_client_can_hear_them() {
        let mut server = server(254);
        let now = Instant::now();
        let mut discover = message(MAC, MessageType::Discover);
        discover.set_flags(dhcproto::v4::Flags::default().set_broadcast());
        let (answer, offer) = ask(&mut server, now, &discover).unwrap();
        assert_eq!(answer.to, Ipv4Addr::BROADCAST);
        assert!(offer.flags().broadcast());
        let address = lease(&mut server, now, MAC).unwrap();
        let mut renew = renewing(message(MAC, MessageType::Request), address);
        renew.set_flags(dhcproto::v4::Flags::default().set_broadcast());
        assert_eq!(ask(&mut server, now, &renew).unwrap().0.to, address);
        let wrong = renewing(message(MAC, MessageType::Request), Ipv4Addr::new(10, 0, 0, 1));
        let (answer, nak) = ask(&mut server, now, &wrong).unwrap();
        assert_eq!((answer.to, kind(&nak), answer.leased), (Ipv4Addr::BROADCAST, MessageType::Nak, None));
        assert_eq!(nak.opts().get(OptionCode::AddressLeaseTime), None);
    }

    #[test]
    fn a_mac_keeps_its_address() {
        let now = Instant::now();
        let mut first = server(254);
        let address = lease(&mut first, now, MAC).unwrap();
        assert_ne!(lease(&mut first, now, OTHER).unwrap(), address);
        // Again, after it expired, after a release, after a restart, whatever it wishes for.
        assert_eq!(lease(&mut first, now, MAC), Some(address));
        assert_eq!(lease(&mut first, now + 10 * LEASE, MAC), Some(address));
        assert!(ask(&mut first, now, &renewing(message(MAC, MessageType::Release), address)).is_none());
        assert_eq!(lease(&mut first, now, MAC), Some(address));
        assert_eq!(lease(&mut server(254), now, MAC), Some(address));
        let (_, offer) =
            ask(&mut first, now, &wish(message(MAC, MessageType::Discover), Ipv4Addr::new(198, 18, 0, 77)))
                .unwrap();
        assert_eq!(offer.yiaddr(), address);
    }

    #[test]
    fn a_guest_that_remembers_its_address_keeps_it_over_our_restart() {
        let now = Instant::now();
        let address = Ipv4Addr::new(198, 18, 0, 200);
        for request in [
            wish(message(MAC, MessageType::Request), address),
            renewing(message(MAC, MessageType::Request), address),
            to_server(wish(message(MAC, MessageType::Request), address), SERVER),
        ] {
            let (answer, ack) = ask(&mut server(254), now, &request).unwrap();
            assert_eq!((kind(&ack), answer.leased), (MessageType::Ack, Some((MAC, address))));
        }
        // But not one that is another's, outside the range, or of another network.
        let mut server = server(254);
        let taken = lease(&mut server, now, OTHER).unwrap();
        for wrong in
            [taken, SERVER, Ipv4Addr::new(198, 18, 1, 0), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::UNSPECIFIED]
        {
            let (_, nak) = ask(&mut server, now, &wish(message(MAC, MessageType::Request), wrong)).unwrap();
            assert_eq!(kind(&nak), MessageType::Nak, "{wrong}");
        }
        assert_eq!(
            kind(&ask(&mut server, now, &message(MAC, MessageType::Request)).unwrap().1),
            MessageType::Nak
        );
    }

    #[test]
    fn another_server_s_offer_is_not_ours_to_answer() {
        let now = Instant::now();
        let mut server = server(2);
        assert!(ask(&mut server, now, &message(MAC, MessageType::Discover)).is_some());
        let request = to_server(
            wish(message(MAC, MessageType::Request), Ipv4Addr::new(10, 0, 0, 5)),
            Ipv4Addr::new(10, 0, 0, 1),
        );
        assert!(ask(&mut server, now, &request).is_none());
        // And the address is free for others.
        assert!(lease(&mut server, now, OTHER).is_some());
    }

    #[test]
    fn a_declined_address_is_left_alone_for_an_hour() {
        let now = Instant::now();
        let mut server = server(254);
        let address = lease(&mut server, now, MAC).unwrap();
        // Not by somebody else, not to another server.
        for ignored in [
            to_server(wish(message(OTHER, MessageType::Decline), address), SERVER),
            to_server(wish(message(MAC, MessageType::Decline), address), Ipv4Addr::new(10, 0, 0, 1)),
        ] {
            assert!(ask(&mut server, now, &ignored).is_none());
        }
        assert_eq!(lease(&mut server, now, MAC), Some(address));
        let decline = to_server(wish(message(MAC, MessageType::Decline), address), SERVER);
        assert!(ask(&mut server, now, &decline).is_none());
        let next = lease(&mut server, now, MAC).unwrap();
        assert_ne!(next, address);
        assert!(ask(&mut server, now, &renewing(message(MAC, MessageType::Release), next)).is_none());
        assert_eq!(lease(&mut server, now + DECLINED, MAC), Some(address));
    }

    #[test]
    fn inform_gets_options_but_no_address() {
        let now = Instant::now();
        let mut server = server(254);
        let address = Ipv4Addr::new(198, 18, 7, 7);
        let (answer, ack) =
            ask(&mut server, now, &renewing(message(MAC, MessageType::Inform), address)).unwrap();
        assert_eq!((answer.to, kind(&ack), ack.yiaddr()), (address, MessageType::Ack, Ipv4Addr::UNSPECIFIED));
        assert_eq!((answer.leased, ack.opts().get(OptionCode::AddressLeaseTime)), (None, None));
        assert!(ack.opts().get(OptionCode::InterfaceMtu).is_some());
        for outside in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 0, 1)] {
            assert!(ask(&mut server, now, &renewing(message(MAC, MessageType::Inform), outside)).is_none());
        }
    }

    #[test]
    fn a_full_range_is_silent_until_something_expires() {
        let now = Instant::now();
        let mut server = server(5);
        let mac = |number: u32| {
            let [a, b, c, d] = number.to_be_bytes();
            MacAddress([2, 0, a, b, c, d])
        };
        let given: std::collections::BTreeSet<Ipv4Addr> =
            (0..4).map(|number| lease(&mut server, now, mac(number)).unwrap()).collect();
        assert_eq!(given.len(), 4);
        for number in 4..10_000 {
            assert!(ask(&mut server, now, &message(mac(number), MessageType::Discover)).is_none());
        }
        assert_eq!(server.uses.len(), 4);
        // Who has one keeps it.
        assert!(lease(&mut server, now, mac(2)).is_some());
        // Offers that nobody takes are free again after a minute, leases after their time.
        assert!(lease(&mut server, now + LEASE, mac(10)).is_some());
        let mut server = super::tests::server(2);
        assert!(ask(&mut server, now, &message(mac(1), MessageType::Discover)).is_some());
        assert!(ask(&mut server, now, &message(mac(2), MessageType::Discover)).is_none());
        assert!(ask(&mut server, now + OFFER, &message(mac(2), MessageType::Discover)).is_some());
    }

    #[test]
    fn what_is_no_request_of_a_neighbour_is_ignored() {
        let now = Instant::now();
        let mut server = server(254);
        let mut relayed = message(MAC, MessageType::Discover);
        relayed.set_giaddr(Ipv4Addr::new(198, 18, 0, 7));
        let mut reply = message(MAC, MessageType::Discover);
        reply.set_opcode(Opcode::BootReply);
        let group = message(MacAddress([1, 0, 0, 0, 0, 1]), MessageType::Discover);
        let mut bootp = message(MAC, MessageType::Discover);
        bootp.set_opts(DhcpOptions::new());
        for ignored in
            [relayed, reply, group, bootp, message(MAC, MessageType::Offer), message(MAC, MessageType::Nak)]
        {
            assert!(ask(&mut server, now, &ignored).is_none());
        }
        assert!(server.uses.is_empty());
    }

    /// dhcproto has assertions in the parsers of options 152 to 157, found by the test below.
    #[test]
    fn no_option_of_any_length_stops_the_server() {
        let now = Instant::now();
        for code in 1..=254u8 {
            for len in 0..9u8 {
                let mut server = server(254);
                let discover = message(MAC, MessageType::Discover).to_vec().unwrap();
                let mut octets = discover[..240].to_vec();
                octets.extend([code, len]);
                octets.extend((0..len).map(|_| 1));
                octets.extend([53, 1, 1, 255]);
                // A second kind of message is one too many, but an answer all the same.
                assert!(server.handle(now, &octets).is_some(), "option {code} of {len} octets");
            }
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_survived(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
            server(254).handle(Instant::now(), &octets);
        }

        #[test]
        fn any_damage_is_survived(
            which in 1..9u8,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            cut in any::<prop::sample::Index>(),
            shorten in any::<bool>(),
        ) {
            let message = wish(message(MAC, MessageType::from(which)), Ipv4Addr::new(198, 18, 0, 9));
            let mut octets = to_server(message, SERVER).to_vec().unwrap();
            for (at, value) in changes {
                let at = at.index(octets.len());
                octets[at] = value;
            }
            if shorten {
                octets.truncate(cut.index(octets.len()));
            }
            let mut server = server(254);
            let now = Instant::now();
            for _ in 0..3 {
                server.handle(now, &octets);
            }
            prop_assert!(server.uses.len() <= 253);
        }
    }
}
