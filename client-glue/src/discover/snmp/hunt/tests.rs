use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::testing::{Agent, Value as Kept};
use super::*;
use crate::discover::interfaces::Network;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const PRINTER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

fn network(own: IpAddr, broadcast: [u8; 4]) -> Interface {
    let network = Network { address: own, prefix: 24 };
    Interface { name: "eth0".into(), index: Some(2), network, broadcast: Some(broadcast.into()) }
}

/// A hunt, its clock, and the agents of its network.
struct Lan {
    hunt: Hunt,
    now: Instant,
    agents: BTreeMap<IpAddr, Agent>,
    /// How many packets were sent.
    sent: usize,
    /// Packets to each address are lost while this says so.
    lossy: Box<dyn FnMut(usize) -> bool>,
}

impl Lan {
    fn new() -> Self {
        let now = Instant::now();
        let hunt = Hunt::new(&[b"public".to_vec()], 0x1234_5678, vec![network(OWN, [10, 0, 0, 255])], now);
        Lan { hunt, now, agents: BTreeMap::new(), sent: 0, lossy: Box::new(|_| false) }
    }

    fn with(mut self, address: IpAddr, agent: Agent) -> Self {
        self.agents.insert(address, agent);
        self
    }

    /// Delivers everything there is to deliver.
    fn deliver(&mut self) {
        while let Some(packet) = self.hunt.poll_transmit() {
            self.sent += 1;
            assert_eq!((packet.from, packet.to.port()), (OWN, PORT));
            let broadcast = matches!(packet.to.ip(), IpAddr::V4(to) if to.octets()[3] == 255);
            if (self.lossy)(self.sent) {
                continue;
            }
            for (address, agent) in &self.agents {
                if !broadcast && packet.to.ip() != *address {
                    continue;
                }
                if let Some(answer) = agent.answer(&packet.bytes) {
                    self.hunt.handle_packet(OWN, SocketAddr::new(*address, PORT), &answer, self.now);
                }
            }
        }
    }

    /// Lets time pass, and gives the events of it.
    fn pass(&mut self, time: Duration) -> Vec<HuntEvent> {
        let end = self.now + time;
        let mut events = Vec::new();
        let mut steps = 0;
        loop {
            self.deliver();
            events.extend(std::iter::from_fn(|| self.hunt.poll_event()));
            let next = self.hunt.poll_timeout();
            if next > end {
                break;
            }
            steps += 1;
            assert!(steps < 10_000, "it wants to be woken for nothing");
            self.now = self.now.max(next);
            self.hunt.handle_timeout(self.now);
        }
        self.now = end;
        self.hunt.handle_timeout(end);
        self.deliver();
        events.extend(std::iter::from_fn(|| self.hunt.poll_event()));
        events
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn a_printer() -> Agent {
    a_printer_of(SnmpVersion::V1)
}

fn a_printer_of(version: SnmpVersion) -> Agent {
    Agent::printer(
        version,
        &[(Object::DeviceId, "MFG:HP;MDL:LaserJet 4;"), (Object::Serial, "ABC1"), (Object::Location, "here")],
    )
}

fn found(events: &[HuntEvent]) -> Vec<(IpAddr, &Facts)> {
    let printer = |event: &'_ HuntEvent| matches!(event, HuntEvent::Printer { .. });
    let printers = events.iter().filter(|event| printer(event));
    printers
        .map(|event| match event {
            HuntEvent::Printer { address, facts } => (*address, facts),
            HuntEvent::Gone(_) | HuntEvent::LookedRound => unreachable!(),
        })
        .collect()
}

#[test]
fn a_printer_of_either_version_tells_what_it_knows_at_once() {
    for version in [SnmpVersion::V1, SnmpVersion::V2c] {
        let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer_of(version));
        let events = lan.pass(Duration::ZERO);
        let [(address, facts)] = found(&events)[..] else { panic!("{events:?}") };
        assert_eq!(address, PRINTER_ADDRESS);
        assert_eq!(facts.get(Object::Serial), Some(&b"ABC1"[..]));
        assert_eq!(facts.device_id().unwrap().model.unwrap(), b"LaserJet 4");
        assert_eq!(facts.get(Object::SystemName), None);
        // Later rounds do not tell it again, and the first is over when it is.
        let events = lan.pass(seconds(100));
        assert_eq!(events, [HuntEvent::LookedRound]);
    }
}

#[test]
fn broadcasts_are_few_and_go_on() {
    let mut lan = Lan::new();
    let mut rounds = Vec::new();
    for second in 0..190 {
        lan.pass(seconds(1));
        if lan.sent > 0 {
            rounds.push((second, std::mem::take(&mut lan.sent)));
        }
    }
    // One in each version; the second of four here is the first's end.
    assert_eq!(rounds, [(0, 4), (2, 2), (62, 2), (122, 2), (182, 2)]);
}

#[test]
fn lost_packets_are_made_up_for() {
    let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer());
    // The first broadcasts are lost, and then about every fourth packet.
    let mut random = 1_u64;
    lan.lossy = Box::new(move |sent| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        sent <= 2 || random >> 62 == 0
    });
    let events = lan.pass(seconds(20));
    let [(_, facts)] = found(&events)[..] else { panic!("{events:?}") };
    assert!(facts.get(Object::DeviceId).is_some() && facts.get(Object::Serial).is_some(), "{facts:?}");
}

#[test]
fn what_is_no_printer_is_not_asked() {
    let mut other = a_printer();
    other.objects.insert(Object::DeviceType.name(), Kept::Name(&[1, 3, 6, 1, 2, 1, 25, 3, 1, 4]));
    let mut lan = Lan::new().with(PRINTER_ADDRESS, other);
    assert_eq!(lan.pass(seconds(10)), [HuntEvent::LookedRound]);
    assert_eq!(lan.sent, 6);
}

#[test]
fn a_silent_printer_goes_and_comes_back() {
    let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer());
    lan.pass(seconds(10));
    let (address, agent) = lan.agents.pop_first().unwrap();
    assert_eq!(lan.pass(seconds(150)), []);
    assert_eq!(lan.pass(seconds(60)), [HuntEvent::Gone(PRINTER_ADDRESS)]);
    lan.agents.insert(address, agent);
    assert_eq!(found(&lan.pass(seconds(61))).len(), 1);
}

#[test]
fn who_is_doubted_is_asked_at_once() {
    let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer());
    lan.pass(seconds(10));
    lan.hunt.verify(PRINTER_ADDRESS, lan.now);
    assert_eq!(found(&lan.pass(Duration::ZERO)).len(), 1);
    lan.agents.clear();
    lan.hunt.verify([10, 0, 0, 77].into(), lan.now);
    lan.hunt.verify(PRINTER_ADDRESS, lan.now);
    assert_eq!(lan.pass(seconds(8)), [HuntEvent::Gone(PRINTER_ADDRESS)]);
}

#[test]
fn another_printer_at_the_address_is_noticed() {
    let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer());
    lan.pass(seconds(10));
    let other = Agent::printer(SnmpVersion::V1, &[(Object::Serial, "OTHER")]);
    lan.agents.insert(PRINTER_ADDRESS, other);
    let events = lan.pass(REFRESH);
    let [(_, facts)] = found(&events)[..] else { panic!("{events:?}") };
    assert_eq!(facts.get(Object::Serial), Some(&b"OTHER"[..]));
}

#[test]
fn other_networks_take_their_printers_with_them() {
    let mut lan = Lan::new().with(PRINTER_ADDRESS, a_printer());
    lan.pass(seconds(10));
    lan.hunt.look_again(vec![network([10, 0, 1, 1].into(), [10, 0, 1, 255])], lan.now);
    assert_eq!(lan.hunt.poll_event(), Some(HuntEvent::Gone(PRINTER_ADDRESS)));
    let packet = lan.hunt.poll_transmit().unwrap();
    assert_eq!((packet.from, packet.to), ([10, 0, 1, 1].into(), ([10, 0, 1, 255], PORT).into()));
}

/// The answer of a printer at 10.0.0.5 to the first broadcast of version 1.
fn answer(hunt: &mut Hunt) -> Vec<u8> {
    let packets: Vec<_> = std::iter::from_fn(|| hunt.poll_transmit()).collect();
    packets.iter().find_map(|packet| a_printer().answer(&packet.bytes)).unwrap()
}

#[test]
fn answers_count_only_from_where_was_asked() {
    let mut lan = Lan::new();
    let good = answer(&mut lan.hunt);
    let printer = SocketAddr::new(PRINTER_ADDRESS, PORT);
    let mut wrong_number = good.clone();
    let at = good.windows(3).position(|bytes| bytes[0] == 0xa2).unwrap() + 5;
    wrong_number[at] ^= 1;
    for (own, from, bytes) in [
        // Another port, another network, ourselves, everybody, an interface that is not ours, another number, another community.
        (OWN, SocketAddr::new(PRINTER_ADDRESS, 162), &good),
        (OWN, ([10, 0, 1, 5], PORT).into(), &good),
        (OWN, SocketAddr::new(OWN, PORT), &good),
        (OWN, ([10, 0, 0, 255], PORT).into(), &good),
        ([10, 0, 9, 1].into(), printer, &good),
        (OWN, printer, &wrong_number),
        (OWN, printer, &String::from_utf8_lossy(&good).replace("public", "secret").into_bytes()),
        (OWN, printer, &b"\x30\x80".to_vec()),
    ] {
        lan.hunt.handle_packet(own, from, bytes, lan.now);
        assert!(lan.hunt.hosts.is_empty(), "{own} {from}");
    }
    lan.hunt.handle_packet(OWN, printer, &good, lan.now);
    assert_eq!(lan.hunt.hosts.len(), 1);
}

#[test]
fn made_up_hosts_are_bounded_and_forgotten() {
    let mut lan = Lan::new();
    let good = answer(&mut lan.hunt);
    let wide =
        Interface { network: Network { address: OWN, prefix: 8 }, ..network(OWN, [10, 255, 255, 255]) };
    lan.hunt.networks = vec![wide];
    for number in 0..2000_u32 {
        let from = Ipv4Addr::from_bits(0x0a00_0100 + number);
        lan.hunt.handle_packet(OWN, (from, PORT).into(), &good, lan.now);
        assert!(lan.hunt.hosts.len() <= MAX_HOSTS);
    }
    let packets = std::iter::from_fn(|| lan.hunt.poll_transmit()).count();
    assert_eq!(packets, MAX_ASKED * Object::FACTS.len());
    // A real one finds its place when the others turn out to be nobody, and nobody was told of them.
    lan = lan.with(PRINTER_ADDRESS, a_printer());
    let events = lan.pass(seconds(300));
    let hosts: Vec<_> = found(&events).into_iter().map(|(address, _)| address).collect();
    assert_eq!(hosts, [PRINTER_ADDRESS]);
    assert!(!events.iter().any(|event| matches!(event, HuntEvent::Gone(_))), "{events:?}");
}

#[test]
fn an_agent_that_answers_another_question_has_not_answered() {
    let mut lan = Lan::new();
    let good = answer(&mut lan.hunt);
    let printer = SocketAddr::new(PRINTER_ADDRESS, PORT);
    lan.hunt.handle_packet(OWN, printer, &good, lan.now);
    // All questions answered with the first one's object.
    let questions: Vec<_> = std::iter::from_fn(|| lan.hunt.poll_transmit()).collect();
    assert_eq!(questions.len(), Object::FACTS.len());
    let first = a_printer().answer(&questions[0].bytes).unwrap();
    for question in &questions {
        let read = codec::answer(&a_printer().answer(&question.bytes).unwrap()).unwrap();
        let mut forged = first.clone();
        let at = forged.windows(2).position(|bytes| bytes == [0xa2, 0x81] || bytes[0] == 0xa2).unwrap();
        let id_at = at + forged[at..].windows(2).position(|bytes| bytes == [0x02, 0x04]).unwrap() + 2;
        forged[id_at..id_at + 4].copy_from_slice(&read.id.to_be_bytes());
        lan.hunt.handle_packet(OWN, printer, &forged, lan.now);
    }
    let events = lan.pass(seconds(10));
    let [(_, facts)] = found(&events)[..] else { panic!("{events:?}") };
    assert!(facts.get(Object::Serial).is_none() && facts.get(Object::DeviceId).is_some(), "{facts:?}");
}

proptest! {
    #[test]
    fn any_packets_at_any_time_leave_it_bounded(
        steps in proptest::collection::vec(
            (0u8..4, 0u32..600, 0u64..70_000, proptest::collection::vec(any::<u8>(), 0..80)), 1..60,
        ),
    ) {
        let mut lan = Lan::new();
        let good = answer(&mut lan.hunt);
        for (what, host, wait, bytes) in steps {
            lan.now += Duration::from_millis(wait);
            let from: SocketAddr = (Ipv4Addr::from_bits(0x0a00_0000 + host), PORT).into();
            match what {
                0 => lan.hunt.handle_packet(OWN, from, &bytes, lan.now),
                1 => lan.hunt.handle_packet(OWN, from, &good, lan.now),
                2 => lan.hunt.verify(from.ip(), lan.now),
                _ => lan.hunt.handle_timeout(lan.now),
            }
            while let Some(packet) = lan.hunt.poll_transmit() {
                if let Some(answer) = a_printer().answer(&packet.bytes) {
                    lan.hunt.handle_packet(OWN, from, &answer, lan.now);
                }
            }
            lan.hunt.handle_timeout(lan.now);
            while lan.hunt.poll_event().is_some() {}
            prop_assert!(lan.hunt.hosts.len() <= MAX_HOSTS);
            prop_assert!(lan.hunt.poll_timeout() > lan.now);
        }
    }
}
