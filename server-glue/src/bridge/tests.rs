//! What a client announces, and what the guest hears of it: both ends of the channel, the bridge, and multicast DNS.

use std::net::IpAddr;

use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::{Advert, HostName, Identity, Label, ServiceType, Txt};
use spice_proto::tunnel::{GroupId, Layout, ServiceKind};
use tunnel_channel::{Config, NewService, Role};

use super::*;
use crate::names::mdns;
use crate::names::wire::tests::text;
use crate::netstack::NetConfig;
use crate::packet::{Frame as Ethernet, Ipv4, Payload, Udp};

const HEADER: HeaderForm = HeaderForm::Mini;

struct World {
    now: Instant,
    bridge: Bridge,
    client: Channel,
    /// Where the client's services are.
    mapped: HashMap<ServiceId, IpAddr>,
}

fn channel(role: Role, caps: TunnelCaps, now: Instant) -> Channel {
    Channel::new(role, HEADER, Layout::B, caps, Config::default(), now)
}

impl World {
    fn new(away: AwayConfig) -> World {
        let now = Instant::now();
        let net = NetConfig { seed: 7, ..NetConfig::default() };
        let book = AddressBook::new("test", net.subnet, net.reserved());
        let bridge = Bridge::new(Netstack::new(net), book).while_away(away);
        let client = channel(Role::Client, TunnelCaps::OURS, now);
        let mut world = World { now, bridge, client, mapped: HashMap::new() };
        world.join(TunnelCaps::OURS);
        world
    }

    /// A client comes, with nothing announced yet.
    fn join(&mut self, caps: TunnelCaps) {
        self.client = channel(Role::Client, caps, self.now);
        self.mapped.clear();
        self.bridge.attach(self.now, channel(Role::Server, caps, self.now));
        self.settle();
    }

    fn share(
        &mut self,
        name: &str,
        group: u32,
        port: u16,
        info: Option<&ServiceInfo>,
    ) -> (ServiceId, SocketAddr) {
        let kind = ServiceKind::Generic;
        let group = GroupId(group);
        let new = NewService { kind, group, port, name: name.as_bytes(), description: b"", info };
        let id = self.client.add_service(new).unwrap();
        self.settle();
        (id, SocketAddr::new(self.mapped[&id], port))
    }

    /// Moves everything until nothing moves. Gives what the guest heard of multicast DNS.
    fn settle(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            self.bridge.advance(self.now);
            let to_client = self.bridge.outgoing().to_vec();
            self.bridge.sent(to_client.len());
            let to_server = self.client.outgoing().to_vec();
            self.client.sent(to_server.len());
            let mut rest = &to_client[..];
            while let Split::Frame { frame, consumed } = frame::split(HEADER, 1 << 20, rest).unwrap() {
                if let Some(Event::ServiceMapped { service, address }) =
                    self.client.handle_frame(self.now, frame).unwrap()
                {
                    self.mapped.insert(service, address);
                }
                rest = &rest[consumed..];
            }
            let mut rest = &to_server[..];
            while let Split::Frame { frame, consumed } = frame::split(HEADER, 1 << 20, rest).unwrap() {
                self.bridge.handle_tunnel_frame(self.now, frame).unwrap();
                rest = &rest[consumed..];
            }
            while let Some(frame) = self.bridge.poll_guest_frame(self.now) {
                heard.extend(multicast(&frame));
            }
            if self.bridge.poll_timeout().is_some_and(|at| at <= self.now) {
                self.bridge.handle_timeout(self.now).unwrap();
            } else if to_client.is_empty() && to_server.is_empty() {
                return heard;
            }
        }
    }

    /// Lets time go by. Gives what the guest heard meanwhile, but no probes.
    fn run(&mut self, duration: Duration) -> Vec<String> {
        let end = self.now + duration;
        let mut heard = self.settle();
        while let Some(at) = self.bridge.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.bridge.handle_timeout(self.now).unwrap();
            heard.extend(self.settle());
        }
        self.now = end;
        heard.retain(|line| line.starts_with('='));
        heard
    }

    fn seconds(&mut self, seconds: u64) -> Vec<String> {
        self.run(Duration::from_secs(seconds))
    }
}

/// The lines of a message to everybody.
fn multicast(frame: &[u8]) -> Vec<String> {
    let Payload::Ipv4(packet) = Ethernet::parse(frame).unwrap().payload else { return Vec::new() };
    let ip = Ipv4::parse(packet).unwrap();
    assert_eq!(ip.destination, mdns::GROUP);
    text(Udp::parse(&ip).unwrap().payload)
}

fn described(uuid: &str, instance: &str, path: &str) -> ServiceInfo {
    let mut txt = Txt::default();
    txt.push("rp", Some(path)).unwrap();
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new(instance).unwrap(),
        subtypes: Vec::new(),
        txt,
    };
    let host = HostName::new("printer.local").unwrap();
    ServiceInfo::new(Some(Identity::new(uuid).unwrap()), Some(host), vec![advert]).unwrap()
}

/// Whether one of the lines is this, with `*` for the virtual address.
fn has(heard: &[String], line: &str, address: SocketAddr) -> bool {
    heard.contains(&line.replace('*', &address.ip().to_string()))
}

#[test]
fn what_a_service_says_of_itself_is_told_to_the_guest() {
    let mut world = World::new(AwayConfig::default());
    let (_, at) = world.share("Büro", 1, 631, Some(&described("uuid:1", "Büro", "ipp/print")));
    let heard = world.seconds(5);
    assert!(has(&heard, "=! 120 printer.local. A *", at), "{heard:#?}");
    assert!(has(&heard, "=! 4500 B\\303\\274ro._ipp._tcp.local. TXT rp=ipp/print", at), "{heard:#?}");
    // One that says nothing is there, but not told of.
    world.share("plain", 2, 80, None);
    assert!(world.seconds(5).is_empty());
}

#[test]
fn who_says_something_new_is_heard() {
    let mut world = World::new(AwayConfig::default());
    let (id, at) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    world.seconds(5);
    assert!(world.client.describe_service(id, &described("uuid:2", "P", "b")));
    let heard = world.seconds(5);
    assert!(has(&heard, "=! 4500 P._ipp._tcp.local. TXT rp=b", at), "{heard:#?}");
    // The same again is nothing new; of what is not there nothing is said.
    world.client.describe_service(id, &described("uuid:1", "P", "b"));
    assert!(world.seconds(5).is_empty());
    let (other, same) = world.share("p", 1, 80, None);
    assert_eq!(at.ip(), same.ip());
    world.client.remove_service(other);
    assert!(world.seconds(5).is_empty());
    world.client.remove_service(id);
    let heard = world.seconds(5);
    assert!(has(&heard, "=! 0 printer.local. A *", at), "{heard:#?}");
    assert!(has(&heard, "= 0 _ipp._tcp.local. PTR P._ipp._tcp.local.", at));
}

#[test]
fn an_address_is_that_of_the_device_whatever_it_is_called() {
    let mut world = World::new(AwayConfig::FORGET);
    let (id, at) = world.share("Office", 1, 631, Some(&described("uuid:1", "P", "a")));
    let (_, plain) = world.share("Office", 2, 631, None);
    let (_, other) = world.share("Office", 3, 631, Some(&described("uuid:2", "P", "a")));
    assert!(at.ip() != plain.ip() && at.ip() != other.ip() && other.ip() != plain.ip());
    world.client.remove_service(id);
    world.settle();
    let (_, again) = world.share("Renamed", 4, 631, Some(&described("uuid:1", "P", "a")));
    assert_eq!(again, at);
    // Its other services are with it: by their group, or by saying whose they are.
    assert_eq!(world.share("Renamed", 4, 80, None).1.ip(), at.ip());
    assert_eq!(world.share("x", 9, 9100, Some(&described("uuid:1", "P", "a"))).1.ip(), at.ip());
    // But for a port that is taken.
    assert_ne!(world.share("x", 10, 9100, Some(&described("uuid:1", "P", "a"))).1.ip(), at.ip());
    // Names have the addresses that they always had.
    let net = NetConfig::default();
    let mut book = AddressBook::new("test", net.subnet, net.reserved());
    assert_eq!(book.assign("Office"), Ok(plain.ip()));
    assert_eq!(book.assign("uuid:1"), Ok(at.ip()));
}

#[test]
fn a_tunnel_that_comes_back_is_not_noticed() {
    let mut world = World::new(AwayConfig::default());
    let info = described("uuid:1", "P", "a");
    let (_, at) = world.share("p", 1, 631, Some(&info));
    world.seconds(10);
    world.bridge.detach(world.now);
    assert!(world.seconds(60).is_empty(), "its names stay");
    world.join(TunnelCaps::OURS);
    // Another group, another name: it is the same device.
    let (_, again) = world.share("q", 7, 631, Some(&info));
    assert_eq!(again, at);
    assert!(world.seconds(60).is_empty());
}

#[test]
fn what_is_not_announced_again_is_taken_back() {
    let mut world = World::new(AwayConfig::default());
    let (_, at) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    world.seconds(10);
    world.bridge.detach(world.now);
    world.join(TunnelCaps::OURS);
    world.share("other", 1, 22, None);
    let heard = world.run(AwayConfig::default().grace + Duration::from_secs(1));
    assert!(has(&heard, "=! 0 printer.local. A *", at), "{heard:#?}");
    // Without a view that outlives the tunnel it is taken back with it.
    let mut world = World::new(AwayConfig::FORGET);
    let (_, at) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    world.seconds(10);
    world.bridge.detach(world.now);
    assert!(has(&world.seconds(1), "=! 0 printer.local. A *", at));
}

#[test]
fn a_client_that_cannot_describe_has_plain_names() {
    let mut world = World::new(AwayConfig::default());
    world.join(TunnelCaps::EXTENDED);
    let (id, _) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    assert!(!world.client.describe_service(id, &described("uuid:1", "P", "a")));
    assert!(world.seconds(5).is_empty());
}

#[test]
fn in_the_end_the_guest_is_told() {
    let mut world = World::new(AwayConfig::default());
    let (_, at) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    world.seconds(10);
    world.bridge.detach(world.now);
    world.bridge.forget(world.now);
    world.bridge.say_goodbye(world.now);
    let mut heard = Vec::new();
    while let Some(frame) = world.bridge.poll_guest_frame(world.now) {
        heard.extend(multicast(&frame));
    }
    assert!(has(&heard, "=! 0 printer.local. A *", at), "{heard:#?}");
}

#[test]
fn a_guest_that_comes_hears_what_is_there() {
    let mut world = World::new(AwayConfig::default());
    let (_, at) = world.share("p", 1, 631, Some(&described("uuid:1", "P", "a")));
    world.seconds(10);
    world.bridge.guest_lost();
    assert!(world.seconds(10).is_empty());
    world.bridge.guest_came(world.now, Offloads::NONE);
    assert!(has(&world.settle(), "=! 120 printer.local. A *", at));
}
