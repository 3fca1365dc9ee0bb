//! A guest asks, the network between asks on, the user's side answers: both ends of the channel, the bridge and the DNS server, under a
//! manual clock.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{Layout, ServiceId, ServiceKind};
use tunnel_channel::{Channel, Config, Event, NewService, Role};

use super::*;
use crate::address::AddressBook;
use crate::bridge::AwayConfig;
use crate::dns_tests::{datagram, query};
use crate::netstack::NetConfig;
use crate::script::{GATEWAY, GUEST, read_ipv4};

const HEADER: HeaderForm = HeaderForm::Mini;

struct World {
    now: Instant,
    bridge: Bridge,
    client: Channel,
    mapped: HashMap<ServiceId, IpAddr>,
    /// What the client was asked for and has not answered.
    asked: Vec<(QueryId, String)>,
    answers: Vec<Message>,
    id: u16,
}

fn channel(role: Role, now: Instant) -> Channel {
    Channel::new(role, HEADER, Layout::B, TunnelCaps::OURS, Config::default(), now)
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

impl World {
    /// A client that shares a NAS, as group 3, and allows `home.arpa`.
    fn new() -> (World, IpAddr) {
        let now = Instant::now();
        let net = NetConfig { seed: 7, ..NetConfig::default() };
        let book = AddressBook::new("test", net.subnet, net.reserved());
        let bridge = Bridge::new(Netstack::new(net), book).while_away(AwayConfig::default());
        let mut world = World {
            now,
            bridge,
            client: channel(Role::Client, now),
            mapped: HashMap::new(),
            asked: Vec::new(),
            answers: Vec::new(),
            id: 0,
        };
        world.join();
        let nas = world.share("nas", 3, 445);
        world.client.add_domain(&host("Home.arpa")).unwrap();
        world.settle();
        (world, nas.ip())
    }

    fn join(&mut self) {
        self.client = channel(Role::Client, self.now);
        self.asked.clear();
        self.mapped.clear();
        self.bridge.attach(self.now, channel(Role::Server, self.now));
        self.settle();
    }

    fn share(&mut self, name: &str, group: u32, port: u16) -> SocketAddr {
        let (kind, group) = (ServiceKind::Generic, GroupId(group));
        let new = NewService { kind, group, port, name: name.as_bytes(), description: b"", info: None };
        let id = self.client.add_service(new).unwrap();
        self.settle();
        SocketAddr::new(self.mapped[&id], port)
    }

    fn settle(&mut self) {
        loop {
            self.bridge.advance(self.now);
            let to_client = self.bridge.outgoing().to_vec();
            self.bridge.sent(to_client.len());
            let mut rest = &to_client[..];
            while let Split::Frame { frame, consumed } = frame::split(HEADER, 1 << 20, rest).unwrap() {
                match self.client.handle_frame(self.now, frame).unwrap() {
                    Some(Event::ServiceMapped { service, address }) => {
                        self.mapped.insert(service, address);
                    }
                    Some(Event::NameAsked { query, name }) => self.asked.push((query, name.to_owned())),
                    _ => {}
                }
                rest = &rest[consumed..];
            }
            let to_server = self.client.outgoing().to_vec();
            self.client.sent(to_server.len());
            let mut rest = &to_server[..];
            while let Split::Frame { frame, consumed } = frame::split(HEADER, 1 << 20, rest).unwrap() {
                self.bridge.handle_tunnel_frame(self.now, frame).unwrap();
                rest = &rest[consumed..];
            }
            while let Some(frame) = self.bridge.poll_guest_frame(self.now).map(|frame| frame.to_vec()) {
                // Multicast DNS goes to all stations.
                if frame[0] & 1 == 0 {
                    let ip = read_ipv4(&frame);
                    assert_eq!((ip.source, ip.payload[..2].to_vec()), (GATEWAY, vec![0, 53]));
                    self.answers.push(Message::from_vec(&ip.payload[8..]).unwrap());
                }
            }
            if to_client.is_empty() && to_server.is_empty() {
                return;
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) = self.bridge.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.bridge.handle_timeout(self.now).unwrap();
            self.settle();
        }
        self.now = end;
    }

    fn ask(&mut self, name: &str, kind: RecordType) {
        self.id += 1;
        let message = query(self.id, name, kind);
        self.bridge.handle_guest_frame(self.now, &datagram((GUEST, 4000), (GATEWAY, 53), &message));
        self.settle();
    }

    /// The client answers the only question that is out.
    fn client_says(&mut self, name: &str, answer: NameAnswer) {
        let (query, asked) = self.asked.remove(0);
        assert_eq!((asked.as_str(), self.asked.len()), (name, 0));
        self.client.answer_name(query, answer);
        self.settle();
    }

    /// What the guest was answered.
    #[track_caller]
    fn told(&mut self) -> (ResponseCode, Vec<String>) {
        assert_eq!(self.answers.len(), 1);
        let message = self.answers.remove(0);
        (message.response_code, message.answers.iter().map(|record| record.data.to_string()).collect())
    }

    fn get(&mut self, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        self.ask(name, kind);
        assert!(self.asked.is_empty(), "it was asked of the client");
        self.told()
    }
}

const FOUND: NameAnswer = NameAnswer::Found { group: GroupId(3), ttl: 60 };

fn reverse(address: IpAddr) -> String {
    hickory_proto::rr::Name::from(address).to_ascii()
}

#[test]
fn a_name_of_the_user_s_side_leads_to_what_its_user_shares() {
    let (mut world, nas) = World::new();
    world.ask("NAS.home.arpa.", RecordType::A);
    assert_eq!(world.answers, [], "not before the client has answered");
    world.client_says("nas.home.arpa", FOUND);
    assert_eq!(world.told(), (ResponseCode::NoError, vec![nas.to_string()]));
    assert_eq!(world.get("nas.home.arpa.", RecordType::A), (ResponseCode::NoError, vec![nas.to_string()]));
    let (_, names) = world.get(&reverse(nas), RecordType::PTR);
    assert_eq!(names, ["nas.home.arpa.", "nas.tunnel.internal."]);
    // One that comes to be shared because it is asked for.
    world.ask("printer.home.arpa.", RecordType::A);
    let printer = world.share("printer", 4, 631);
    world.client_says("printer.home.arpa", NameAnswer::Found { group: GroupId(4), ttl: 60 });
    assert_eq!(world.told(), (ResponseCode::NoError, vec![printer.ip().to_string()]));
    for (answer, code) in [
        (NameAnswer::NoSuchName, ResponseCode::NXDomain),
        (NameAnswer::Failed, ResponseCode::ServFail),
        (NameAnswer::Refused, ResponseCode::Refused),
    ] {
        let name = format!("{answer:?}.home.arpa").to_lowercase();
        world.ask(&format!("{name}."), RecordType::A);
        world.client_says(&name, answer);
        assert_eq!(world.told(), (code, vec![]));
    }
    assert_eq!(world.bridge.netstack().counters().dns_asked, 5);
}

#[test]
fn a_guest_cannot_ask_the_client_for_anything_else() {
    let (mut world, _) = World::new();
    for name in ["example.com.", "home.arpa.example.com.", "xhome.arpa.", "arpa.", "router.lan.", "x.local."]
    {
        assert_eq!(world.get(name, RecordType::A), (ResponseCode::Refused, vec![]), "{name}");
    }
    world.client.remove_domain(&host("home.ARPA"));
    world.settle();
    assert_eq!(world.get("nas.home.arpa.", RecordType::A), (ResponseCode::Refused, vec![]));
}

/// A server's part of it: whatever group a client names, the guest gets the address of what that client has announced and that is mapped,
/// or none. (An honest channel does not send such an answer, so it is put into the bridge's hands.)
#[test]
fn a_group_that_is_not_there_leads_nowhere() {
    let (mut world, nas) = World::new();
    for group in [0, 4, 7, u32::MAX] {
        world.ask("evil.home.arpa.", RecordType::A);
        let (query, _) = world.asked.remove(0);
        let Bridge { tunnel: Some(tunnel), netstack, .. } = &mut world.bridge else { panic!() };
        let answer = NameAnswer::Found { group: GroupId(group), ttl: 3600 };
        tunnel.name_answered(world.now, netstack, query, answer);
        // Once only.
        tunnel.name_answered(world.now, netstack, query, FOUND);
        world.settle();
        assert_eq!(world.told(), (ResponseCode::ServFail, vec![]), "{group}");
        // That it is answered twice on the wire is the channel's to see.
        world.join();
        assert_eq!(world.share("nas", 3, 445).ip(), nas);
        world.client.add_domain(&host("home.arpa")).unwrap();
        world.settle();
    }
}

#[test]
fn a_client_that_does_not_answer_makes_nobody_wait_for_long() {
    let (mut world, nas) = World::new();
    world.ask("slow.home.arpa.", RecordType::A);
    world.wait(Duration::from_secs(4));
    assert_eq!(world.answers, []);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.told(), (ResponseCode::ServFail, vec![]));
    world.client_says("slow.home.arpa", FOUND);
    assert_eq!(world.answers, []);
    assert_eq!(world.get("slow.home.arpa.", RecordType::A), (ResponseCode::NoError, vec![nas.to_string()]));
    // 64 at once, and the guest hears at once of what is too much.
    for number in 0..70 {
        world.ask(&format!("n{number}.home.arpa."), RecordType::A);
    }
    assert_eq!((world.asked.len(), world.answers.len()), (64, 6));
}

#[test]
fn names_outlive_the_tunnel_as_their_services_do() {
    let (mut world, nas) = World::new();
    world.ask("nas.home.arpa.", RecordType::A);
    world.client_says("nas.home.arpa", FOUND);
    world.told();
    world.ask("asked.home.arpa.", RecordType::A);
    world.bridge.detach(world.now);
    world.client = channel(Role::Client, world.now);
    world.settle();
    assert_eq!(world.told(), (ResponseCode::ServFail, vec![]));
    world.asked.clear();
    world.wait(Duration::from_secs(1800));
    assert_eq!(world.get("nas.home.arpa.", RecordType::A), (ResponseCode::NoError, vec![nas.to_string()]));
    assert_eq!(world.get("new.home.arpa.", RecordType::A), (ResponseCode::ServFail, vec![]));
    assert_eq!(world.get("nas.tunnel.internal.", RecordType::A).1, [nas.to_string()]);
    // One comes that has neither the service nor the domain.
    world.join();
    world.share("other", 1, 80);
    world.wait(Duration::from_secs(6));
    assert_eq!(world.get("nas.home.arpa.", RecordType::A), (ResponseCode::Refused, vec![]));
    assert_eq!(world.get("nas.tunnel.internal.", RecordType::A), (ResponseCode::NXDomain, vec![]));
    // And what is forgotten is forgotten.
    world.client.add_domain(&host("home.arpa")).unwrap();
    world.settle();
    world.bridge.detach(world.now);
    world.bridge.forget(world.now);
    assert_eq!(world.get("x.home.arpa.", RecordType::A), (ResponseCode::Refused, vec![]));
}
