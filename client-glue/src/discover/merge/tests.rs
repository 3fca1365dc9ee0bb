use proptest::prelude::*;
use spice_proto::service_info::{Advert, HostName, Label, ServiceType, Txt};

use super::*;
use crate::discover::{MAX_ADDRESSES, MAX_SERVICES, Network, Serial, Service, ServiceClass, Text, Uuid};

const PRINTER: u128 = 0x1111_2222;
const OTHER: u128 = 0x3333_4444;

/// A network in which things are seen, and the time.
struct Lan {
    merge: Merge,
    now: Instant,
}

/// What a service says by DNS-SD.
fn dns_sd(kind: &str, instance: &str, host: &str, address: &str, port: u16, uuid: Option<u128>) -> Sighting {
    let kind = ServiceType::new(kind).unwrap();
    let id = format!("{instance}.{}.local.", kind.as_str()).to_lowercase();
    let mut sighting = Sighting::new(Source::DnsSd, id);
    sighting.name = Label::new(instance).ok();
    sighting.host = HostName::new(host).ok();
    sighting.addresses = vec![address.parse().unwrap()];
    sighting.uuid = uuid.map(self::uuid);
    let class = ServiceClass::of(&kind);
    let advert =
        Advert { kind, instance: Label::new(instance).unwrap(), subtypes: vec![], txt: Txt::default() };
    sighting.services = vec![Service { port, class, adverts: vec![advert], host_rewrite: None }];
    sighting
}

fn snmp(address: &str, model: &str, serial: Option<&str>) -> Sighting {
    let mut sighting = Sighting::new(Source::Snmp, address);
    sighting.addresses = vec![address.parse().unwrap()];
    sighting.make_and_model = Text::new(model);
    sighting.serial = serial.and_then(Serial::new);
    sighting.services = vec![Service::bare(9100, ServiceClass::Printer)];
    sighting
}

fn uuid(value: u128) -> Uuid {
    Uuid::parse(&format!("{value:032x}")).unwrap()
}

fn named(value: u128) -> String {
    format!("uuid:{}", uuid(value))
}

/// An office printer with AirPrint and a web page.
fn office() -> [Sighting; 2] {
    [
        dns_sd("_ipp._tcp", "Office", "office.local", "192.168.1.9", 631, Some(PRINTER)),
        dns_sd("_http._tcp", "Office web", "office.local", "192.168.1.9", 80, None),
    ]
}

impl Lan {
    fn new() -> Lan {
        Lan::in_network("home")
    }

    fn in_network(network: &str) -> Lan {
        let now = Instant::now();
        let surroundings = Surroundings {
            own: ["127.0.0.1".parse().unwrap(), "192.168.1.2".parse().unwrap()].into(),
            networks: vec![Network { address: "192.168.1.2".parse().unwrap(), prefix: 24 }],
        };
        let network = NetworkId::new(network);
        Lan { merge: Merge::new(now, Limits::default(), network, surroundings, BTreeSet::new()), now }
    }

    fn see(&mut self, sightings: impl IntoIterator<Item = Sighting>) -> &mut Lan {
        for sighting in sightings {
            self.merge.handle_event(self.now, SightingEvent::Seen(Box::new(sighting)));
        }
        self
    }

    fn gone(&mut self, sightings: impl IntoIterator<Item = Sighting>) -> &mut Lan {
        for sighting in sightings {
            self.merge.handle_event(self.now, SightingEvent::Gone(sighting.key));
        }
        self
    }

    /// What is told within that time; wakes up only when asked to.
    fn pass(&mut self, time: Duration) -> Vec<Update> {
        let end = self.now + time;
        let mut told = Vec::new();
        for _ in 0..10_000 {
            while let Some(update) = self.merge.poll_update(self.now) {
                told.push(update);
            }
            match self.merge.poll_timeout().filter(|at| *at <= end) {
                Some(at) => {
                    assert!(at > self.now, "asks to be woken for nothing");
                    self.now = at;
                }
                None => {
                    self.now = end;
                    return told;
                }
            }
        }
        panic!("never comes to rest");
    }

    /// A minute, and what was told in it, in short.
    fn expect(&mut self, expected: &[&str]) -> &mut Lan {
        let told = self.pass(Duration::from_secs(7));
        let short: Vec<String> = told.iter().map(short).collect();
        assert_eq!(short, expected);
        self
    }
}

fn short(update: &Update) -> String {
    let device = |device: &Device| {
        let ports: Vec<String> = device.services.iter().map(|service| service.port.to_string()).collect();
        let standing = match &device.standing {
            Standing::Plain => "",
            Standing::Moved => " moved",
            Standing::Impostor { .. } => " impostor",
        };
        let identity = device.identity.as_str().split('~').next().unwrap();
        format!("{identity} {:?} {}{standing}", device.addresses, ports.join(","))
    };
    match update {
        Update::Found(found) => format!("+ {}", device(found)),
        Update::Changed(changed) => format!("= {}", device(changed)),
        Update::Lost(identity) => format!("- {}", identity.as_str().split('~').next().unwrap()),
    }
}

/// Every order in which they may come.
fn orders<T: Clone>(things: &[T]) -> Vec<Vec<T>> {
    let Some((first, rest)) = things.split_first() else { return vec![vec![]] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for at in 0..=order.len() {
            let mut order = order.clone();
            order.insert(at, first.clone());
            all.push(order);
        }
    }
    all
}

#[test]
fn what_is_on_one_host_is_one_device() {
    let mut lan = Lan::new();
    lan.see(office());
    let told = lan.pass(SETTLE);
    let [Update::Found(device)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(device.identity.as_str(), named(PRINTER));
    assert_eq!(device.name.as_str(), "Office");
    assert_eq!(device.host.as_ref().unwrap().as_str(), "office.local");
    assert_eq!(device.standing, Standing::Plain);
    let classes: Vec<_> = device.services.iter().map(|service| (service.port, service.class)).collect();
    assert_eq!(classes, [(631, ServiceClass::Printer), (80, ServiceClass::Web)]);
    assert_eq!(device.info(&device.services[0]).unwrap().adverts().len(), 1);
    lan.expect(&[]);
}

#[test]
fn the_identity_does_not_depend_on_who_is_faster() {
    let [ipp, http] = office();
    let mut agent = snmp("192.168.1.9", "HP LaserJet", Some("CNB1234567"));
    agent.mac = Mac::new([2, 0, 0, 0, 0, 9]);
    let mut upnp = Sighting::new(Source::Ssdp, "x");
    upnp.uuid = Some(uuid(OTHER));
    upnp.addresses = vec!["192.168.1.9".parse().unwrap()];
    let expected = format!("+ {} [192.168.1.9] 631,9100,80", named(PRINTER));
    for order in orders(&[ipp, http, agent, upnp]) {
        for pause in [Duration::ZERO, Duration::from_millis(450)] {
            let mut lan = Lan::new();
            let mut told = Vec::new();
            for sighting in order.clone() {
                lan.see([sighting]);
                told.extend(lan.pass(pause));
            }
            told.extend(lan.pass(Duration::from_secs(7)));
            assert_eq!(
                short(told.last().unwrap()),
                expected.replace('+', short(told.last().unwrap()).get(..1).unwrap())
            );
            assert!(told.iter().all(|update| short(update).contains(&named(PRINTER))), "{told:?}");
        }
    }
}

#[test]
fn a_printer_that_was_asked_by_ipp_is_known_as_by_dns_sd() {
    let mut agent = snmp("192.168.1.9", "HP LaserJet", Some("CNB1234567"));
    let [ipp, _] = office();
    agent.services.extend(ipp.services);
    agent.uuid = ipp.uuid;
    Lan::new().see([agent.clone()]).expect(&[&format!("+ {} [192.168.1.9] 631,9100", named(PRINTER))]);
    // UPnP has UUIDs of its own.
    agent.key.source = Source::Ssdp;
    agent.services.truncate(1);
    Lan::new().see([agent]).expect(&["+ serial:hp:CNB1234567 [192.168.1.9] 9100"]);
}

#[test]
fn a_device_waits_for_the_source_that_knows_uuids() {
    let now = Instant::now();
    let mut lan = Lan::new();
    let surroundings = lan.merge.surroundings.clone();
    lan.merge = Merge::new(now, Limits::default(), None, surroundings, [Source::DnsSd].into());
    lan.now = now;
    lan.see([snmp("192.168.1.9", "HP LaserJet", Some("CNB1234567"))]);
    assert_eq!(lan.pass(Duration::from_secs(5)), []);
    lan.see(office());
    lan.expect(&[&format!("+ {} [192.168.1.9] 631,9100,80", named(PRINTER))]);
    // Nobody waits for ever, and not longer than it takes.
    lan.see([snmp("192.168.1.10", "HP LaserJet", Some("CNB7654321"))]);
    lan.merge.handle_round(lan.now, Source::DnsSd);
    lan.expect(&["+ serial:hp:CNB7654321 [192.168.1.10] 9100"]);
}

#[test]
fn a_better_identity_that_comes_late_is_remembered_but_not_taken() {
    let mut lan = Lan::new();
    let agent = snmp("192.168.1.9", "Hewlett-Packard LaserJet", Some("cnb1234567"));
    lan.see([agent.clone()]).expect(&["+ serial:hp:CNB1234567 [192.168.1.9] 9100"]);
    lan.see(office()).expect(&["= serial:hp:CNB1234567 [192.168.1.9] 631,9100,80"]);
    lan.gone([agent]).expect(&["= serial:hp:CNB1234567 [192.168.1.9] 631,80"]);
    lan.gone(office()).expect(&["- serial:hp:CNB1234567"]);
    // In this session it stays what it was.
    lan.see(office()).expect(&["+ serial:hp:CNB1234567 [192.168.1.9] 631,80"]);
}

#[test]
fn the_same_printer_has_the_same_identity_in_every_network_and_every_session() {
    for network in ["home", "office"] {
        Lan::in_network(network)
            .see(office())
            .expect(&[&format!("+ {} [192.168.1.9] 631,80", named(PRINTER))]);
    }
}

#[test]
fn a_name_is_good_in_its_network_only() {
    let raw = dns_sd("_pdl-datastream._tcp", "Label printer", "zebra.local", "192.168.1.9", 9100, None);
    let nas = |network: &str| {
        let mut lan = Lan::in_network(network);
        lan.see([raw.clone()]).expect(&[&format!("+ dns-sd:{network}/zebra.local [192.168.1.9] 9100")]);
    };
    nas("home");
    nas("office");
    let mut nameless = snmp("192.168.1.9", "Zebra ZD420", None);
    nameless.name = Label::new("Lager").ok();
    Lan::new().see([nameless.clone()]).expect(&["+ name:home/lager [192.168.1.9] 9100"]);
    nameless.mac = Mac::new([2, 0, 0, 0, 0, 9]);
    Lan::new().see([nameless]).expect(&["+ mac:02:00:00:00:00:09 [192.168.1.9] 9100"]);
}

#[test]
fn queues_of_a_print_server_are_devices_of_their_own() {
    let queue =
        |kind: &str, instance: &str, uuid| dns_sd(kind, instance, "server.local", "192.168.1.3", 631, uuid);
    let mut lan = Lan::new();
    lan.see([
        queue("_ipp._tcp", "A", Some(PRINTER)),
        queue("_ipp._tcp", "B", Some(OTHER)),
        queue("_printer._tcp", "A", None),
        dns_sd("_ssh._tcp", "server", "server.local", "192.168.1.3", 22, None),
    ]);
    lan.expect(&[
        &format!("+ {} [192.168.1.3] 631", named(PRINTER)),
        &format!("+ {} [192.168.1.3] 631", named(OTHER)),
        "+ dns-sd:home/server.local [192.168.1.3] 22",
    ]);
    let a = lan.merge.devices().find(|device| device.name.as_str() == "A").unwrap();
    assert_eq!(a.services[0].adverts.len(), 2);
}

#[test]
fn two_places_with_one_uuid() {
    let twin = dns_sd("_ipp._tcp", "Twin", "twin.local", "192.168.1.66", 631, Some(PRINTER));
    let mut lan = Lan::new();
    lan.see(office());
    lan.pass(Duration::from_millis(10));
    lan.see([twin.clone()]);
    lan.expect(&[
        &format!("+ {} [192.168.1.9] 631,80", named(PRINTER)),
        &format!("+ {} [192.168.1.66] 631 impostor", named(PRINTER)),
    ]);
    let identities: BTreeSet<&str> = lan.merge.devices().map(|device| device.identity.as_str()).collect();
    assert_eq!(identities.len(), 2);
    // The first goes: the other may have it, but it is not where it was.
    lan.gone(office());
    lan.expect(&[
        &format!("- {}", named(PRINTER)),
        &format!("- {}", named(PRINTER)),
        &format!("+ {} [192.168.1.66] 631 moved", named(PRINTER)),
    ]);
    // And when the first comes back, it is too late, until its user says who is right.
    lan.see(office()).expect(&[&format!("+ {} [192.168.1.9] 631,80 impostor", named(PRINTER))]);
    let identity = Identity::new(&named(PRINTER)).unwrap();
    lan.merge.accept(lan.now, &identity);
    lan.expect(&[&format!("= {} [192.168.1.66] 631", named(PRINTER))]);
}

#[test]
fn an_impostor_that_finds_a_name_of_its_own_is_found_by_it() {
    let mut twin = dns_sd("_ipp._tcp", "Twin", "twin.local", "192.168.1.66", 631, Some(PRINTER));
    let mut lan = Lan::new();
    lan.see(office()).see([twin.clone()]).pass(Duration::from_secs(5));
    twin.uuid = Some(uuid(OTHER));
    lan.see([twin])
        .expect(&[&format!("- {}", named(PRINTER)), &format!("+ {} [192.168.1.66] 631", named(OTHER))]);
}

#[test]
fn two_with_one_weak_name_are_two() {
    let mut lan = Lan::new();
    lan.see([snmp("192.168.1.9", "Zebra ZD420", None), snmp("192.168.1.10", "Zebra ZD420", None)]).expect(&[
        "+ name:home/zebra zd420 [192.168.1.9] 9100",
        "+ name:home/zebra zd420 [192.168.1.10] 9100 impostor",
    ]);
}

#[test]
fn nobody_writes_the_mark_of_an_impostor() {
    let mut named = snmp("192.168.1.9", "Zebra", None);
    named.name = Label::new("x~12345678").ok();
    Lan::new().see([named]).expect(&["+ name:home/x-12345678 [192.168.1.9] 9100"]);
}

#[test]
fn a_serial_number_claimed_first_does_not_hold_back_one_with_a_uuid() {
    let mut liar = dns_sd("_ipp._tcp", "Liar", "liar.local", "192.168.1.66", 631, Some(OTHER));
    liar.serial = Serial::new("CNB1234567");
    liar.make_and_model = Text::new("HP");
    let mut lan = Lan::new();
    lan.see([liar]).expect(&[&format!("+ {} [192.168.1.66] 631", named(OTHER))]);
    lan.see(office()).see([snmp("192.168.1.9", "HP LaserJet", Some("CNB1234567"))]);
    lan.expect(&[&format!("+ {} [192.168.1.9] 631,9100,80", named(PRINTER))]);
}

#[test]
fn a_host_that_claims_anothers_address_gets_neither_its_services_nor_its_jobs() {
    let [ipp, http] = office();
    let mut liar = dns_sd("_ipp._tcp", "Liar", "liar.local", "192.168.1.66", 631, None);
    liar.addresses.push("192.168.1.9".parse().unwrap());
    for order in orders(&[ipp, http, liar]) {
        let mut lan = Lan::new();
        lan.see(order);
        lan.pass(Duration::from_secs(7));
        let office = lan.merge.devices().find(|device| device.identity.as_str() == named(PRINTER)).unwrap();
        assert_eq!(office.addresses, ["192.168.1.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(lan.merge.devices().count(), 2);
    }
}

#[test]
fn one_source_cannot_lead_anothers_printer_elsewhere() {
    // Found in the company's domain, and somebody in the room says by multicast that its address is his as well.
    let mut domain = dns_sd("_ipp._tcp", "Office", "office.corp.example", "192.168.1.9", 631, Some(PRINTER));
    domain.key = SightingKey { source: Source::UnicastDnsSd, id: "x".into() };
    let mut liar = dns_sd("_ipp._tcp", "Liar", "liar.local", "192.168.1.66", 631, None);
    liar.addresses.push("192.168.1.9".parse().unwrap());
    let mut lan = Lan::new();
    lan.see([liar, domain]).expect(&[&format!("+ {} [192.168.1.9] 631", named(PRINTER))]);
}

#[test]
fn a_new_lease_is_a_change_and_a_new_name_too() {
    let mut lan = Lan::new();
    lan.see(office()).expect(&[&format!("+ {} [192.168.1.9] 631,80", named(PRINTER))]);
    let moved = office().map(|mut sighting| {
        sighting.addresses = vec!["192.168.1.77".parse().unwrap()];
        sighting
    });
    lan.see(moved.clone()).expect(&[&format!("= {} [192.168.1.77] 631,80", named(PRINTER))]);
    let renamed = moved.map(|mut sighting| {
        sighting.host = HostName::new("office-2.local").ok();
        sighting
    });
    lan.see(renamed).expect(&[&format!("= {} [192.168.1.77] 631,80", named(PRINTER))]);
}

#[test]
fn another_host_and_another_address_is_a_move() {
    let elsewhere = || {
        office().map(|mut sighting| {
            sighting.addresses = vec!["192.168.1.66".parse().unwrap()];
            sighting.host = HostName::new("evil.local").ok();
            sighting
        })
    };
    let mut lan = Lan::new();
    lan.see(office()).pass(Duration::from_secs(5));
    lan.see(elsewhere()).expect(&[&format!("= {} [192.168.1.66] 631,80 moved", named(PRINTER))]);
    // It went and another came.
    let mut lan = Lan::new();
    lan.see(office()).pass(Duration::from_secs(5));
    lan.gone(office()).expect(&[&format!("- {}", named(PRINTER))]);
    lan.see(elsewhere()).expect(&[&format!("+ {} [192.168.1.66] 631,80 moved", named(PRINTER))]);
}

#[test]
fn a_printer_without_a_name_is_known_by_its_card_when_it_moves() {
    let mut old = snmp("192.168.1.9", "HP LaserJet", Some("CNB1234567"));
    old.mac = Mac::new([2, 0, 0, 0, 0, 9]);
    let mut new = snmp("192.168.1.10", "HP LaserJet", Some("CNB1234567"));
    new.mac = old.mac;
    let mut lan = Lan::new();
    lan.see([old.clone()]).pass(Duration::from_secs(5));
    lan.see([new.clone()]).gone([old.clone()]);
    lan.expect(&["= serial:hp:CNB1234567 [192.168.1.10] 9100"]);
    lan.gone([new]).pass(Duration::from_secs(5));
    old.mac = None;
    old.addresses = vec!["192.168.1.11".parse().unwrap()];
    lan.see([old]).expect(&["+ serial:hp:CNB1234567 [192.168.1.11] 9100 moved"]);
}

#[test]
fn a_goodbye_that_is_taken_back_is_no_loss() {
    let mut lan = Lan::new();
    lan.see(office()).pass(Duration::from_secs(5));
    lan.gone(office());
    assert_eq!(lan.pass(LINGER / 2), []);
    lan.see(office()).expect(&[]);
    lan.gone(office()).expect(&[&format!("- {}", named(PRINTER))]);
}

#[test]
fn what_is_said_before_it_settles_and_taken_back_is_never_told() {
    let mut lan = Lan::new();
    lan.see(office());
    assert_eq!(lan.pass(SETTLE / 2), []);
    lan.gone(office()).expect(&[]);
}

#[test]
fn changes_are_told_once_in_a_while() {
    let mut lan = Lan::new();
    lan.see(office()).pass(Duration::from_secs(5));
    let mut told = 0;
    for n in 0_u8..200 {
        let [mut ipp, _] = office();
        ipp.location = Text::new(&format!("room {n}"));
        lan.see([ipp]);
        told += lan.pass(Duration::from_millis(50)).len();
    }
    assert!(told <= 11, "{told} changes in 10 s");
    lan.pass(Duration::from_secs(2));
    let device = lan.merge.devices().next().unwrap();
    assert_eq!(device.location.as_ref().unwrap().as_str(), "room 199");
}

#[test]
fn a_source_that_starts_anew_forgets_what_it_does_not_see_again() {
    let [ipp, http] = office();
    let mut lan = Lan::new();
    lan.see([ipp.clone(), http]).pass(Duration::from_secs(5));
    lan.merge.handle_restart(lan.now, Source::DnsSd);
    lan.see([ipp]);
    assert_eq!(lan.pass(SEE_AGAIN - Duration::from_secs(1)), []);
    lan.expect(&[&format!("= {} [192.168.1.9] 631", named(PRINTER))]);
}

#[test]
fn this_machine_is_its_own() {
    let mut queue = Sighting::new(Source::Local, "cups/Office");
    queue.uuid = Some(uuid(PRINTER));
    queue.name = Label::new("Office").ok();
    queue.addresses = vec!["127.0.0.1".parse().unwrap()];
    queue.services = vec![Service::bare(631, ServiceClass::Printer)];
    let mut shell = Sighting::new(Source::Local, "ssh");
    shell.host = HostName::new("me.local").ok();
    shell.addresses = vec!["127.0.0.1".parse().unwrap()];
    shell.services = vec![Service::bare(22, ServiceClass::Shell)];
    let mut lan = Lan::new();
    // Nobody in the network speaks for this machine.
    let liar = dns_sd("_ssh._tcp", "me", "me.local", "192.168.1.2", 22, Some(PRINTER));
    lan.see([queue, shell, liar]).see(office()).expect(&[
        &format!("+ local-{} [127.0.0.1] 631", named(PRINTER)),
        &format!("+ {} [192.168.1.9] 631,80", named(PRINTER)),
        "+ local-dns-sd:/me.local [127.0.0.1] 22",
    ]);
    assert_eq!(lan.merge.devices().filter(|device| device.this_machine).count(), 2);
}

#[test]
fn a_flood_leaves_what_was_there() {
    let mut lan = Lan::new();
    lan.see(office()).pass(Duration::from_secs(5));
    let mut flood = |source: Source| {
        for n in 0_u32..3000 {
            let host = format!("h{n}.local");
            let address = format!("10.{}.{}.{}", source as u8, n / 250, n % 250 + 1);
            let mut sighting =
                dns_sd("_ipp._tcp", &host, &host, &address, 631, Some(u128::from(n) + 1_000_000));
            sighting.key.source = source;
            lan.see([sighting]);
        }
        lan.pass(Duration::from_secs(30)).len()
    };
    assert_eq!(flood(Source::DnsSd), 255);
    assert_eq!(flood(Source::WsDiscovery), 0);
    assert_eq!(lan.merge.devices().count(), 256);
    let left_out = lan.merge.left_out();
    assert_eq!(left_out.sightings, 3000 + 3000 + 2 - 2048);
    assert!(left_out.devices > 0);
    let office = Identity::new(&named(PRINTER)).unwrap();
    assert!(lan.merge.device(&office).is_some());
}

#[test]
fn services_and_addresses_of_one_host_are_bounded() {
    let mut lan = Lan::new();
    lan.see(office());
    for n in 1_u16..200 {
        let mut more =
            dns_sd("_http._tcp", &format!("web {n}"), "office.local", "192.168.1.9", 1000 + n, None);
        more.addresses = (0..100).map(|host| IpAddr::from([192, 168, 1, 100 + host])).collect();
        more.addresses.push("192.168.1.9".parse().unwrap());
        lan.see([more]);
    }
    lan.pass(Duration::from_secs(5));
    let device = lan.merge.devices().next().unwrap();
    assert_eq!(device.services.len(), MAX_SERVICES);
    assert!(device.addresses.len() <= MAX_ADDRESSES);
    assert!(device.services.iter().any(|service| service.port == 631));
}

#[test]
fn what_cannot_be_reached_is_counted() {
    let mut lan = Lan::new();
    lan.see([dns_sd("_ipp._tcp", "Cable", "cable.local", "169.254.7.7", 631, Some(OTHER))]).expect(&[]);
    assert_eq!(lan.merge.left_out().link_local, 1);
}

#[test]
fn what_is_told_of_a_service_fits() {
    let mut lan = Lan::new();
    for n in 0..20 {
        let mut advert =
            dns_sd("_ipp._tcp", &format!("{n} {}", "x".repeat(50)), "a.local", "192.168.1.9", 631, None);
        let txt = &mut advert.services[0].adverts[0].txt;
        while txt.push(&format!("k{}", txt.entries().count()), Some(&"v".repeat(200))).is_ok() {}
        lan.see([advert]);
    }
    lan.pass(Duration::from_secs(5));
    let device = lan.merge.devices().next().unwrap();
    let info = device.info(&device.services[0]).unwrap();
    assert!((1..8).contains(&info.adverts().len()));
}

#[test]
fn a_router_that_is_replaced_moves_only_what_has_no_better_identity() {
    let raw = dns_sd("_pdl-datastream._tcp", "Label printer", "zebra.local", "192.168.1.10", 9100, None);
    let mut lan = Lan::in_network("old");
    lan.see(office()).see([raw.clone()]).pass(Duration::from_secs(5));
    lan.merge.set_network(NetworkId::new("new"));
    lan.see([dns_sd("_http._tcp", "x", "new.local", "192.168.1.11", 80, None)]);
    // Who lives keeps what it has.
    lan.expect(&["+ dns-sd:new/new.local [192.168.1.11] 80"]);
}

/// Something that may happen.
#[derive(Debug, Clone)]
enum Happening {
    Seen { source: u8, host: u8, kind: u8, uuid: u8, serial: u8, address: u8, named: bool },
    Gone { source: u8, host: u8, kind: u8 },
    Restart(u8),
    Pass(u16),
    Accept,
}

fn happening() -> impl Strategy<Value = Happening> {
    let seen = (0..6_u8, 0..4_u8, 0..4_u8, 0..4_u8, 0..3_u8, 0..5_u8, any::<bool>());
    prop_oneof![
        6 => seen.prop_map(|(source, host, kind, uuid, serial, address, named)| {
            Happening::Seen { source, host, kind, uuid, serial, address, named }
        }),
        3 => (0..6_u8, 0..4_u8, 0..4_u8).prop_map(|(source, host, kind)| Happening::Gone { source, host, kind }),
        1 => (0..6_u8).prop_map(Happening::Restart),
        4 => (0..4000_u16).prop_map(Happening::Pass),
        1 => Just(Happening::Accept),
    ]
}

fn sighting(source: u8, host: u8, kind: u8) -> Sighting {
    let kinds = ["_ipp._tcp", "_http._tcp", "_ssh._tcp", "_pdl-datastream._tcp"];
    let ports = [631, 80, 22, 9100];
    let (kind, port) = (kinds[usize::from(kind)], ports[usize::from(kind)]);
    let name = format!("h{host}");
    let mut seen = dns_sd(kind, &name, &format!("{name}.local"), "192.168.1.1", port, None);
    seen.key.source = Source::ALL[usize::from(source)];
    seen.this_machine = seen.key.source == Source::Local;
    seen
}

proptest! {
    /// Whatever happens: updates are consistent, identities are unique and never change, and it comes to rest.
    #[test]
    fn updates_tell_one_story(happenings in proptest::collection::vec(happening(), 1..80)) {
        let mut lan = Lan::new();
        let mut known: BTreeMap<Identity, Device> = BTreeMap::new();
        let mut hear = |told: Vec<Update>| {
            for update in told {
                match update {
                    Update::Found(device) => {
                        assert!(known.insert(device.identity.clone(), device).is_none(), "found twice");
                    }
                    Update::Changed(device) => {
                        let before = known.insert(device.identity.clone(), device.clone());
                        assert!(before.is_some_and(|before| before != device), "changed without a change");
                    }
                    Update::Lost(identity) => assert!(known.remove(&identity).is_some(), "lost unknown"),
                }
            }
            known.clone()
        };
        for happening in happenings {
            match happening {
                Happening::Seen { source, host, kind, uuid, serial, address, named } => {
                    let mut seen = sighting(source, host, kind);
                    seen.uuid = (uuid > 0).then(|| self::uuid(u128::from(uuid) + 1));
                    seen.serial = (serial > 0).then(|| Serial::new(&format!("SERIAL{serial}")).unwrap());
                    seen.make_and_model = Text::new("ACME");
                    let prefix = if seen.this_machine { "127.0.0" } else { "192.168.1" };
                    seen.addresses = vec![format!("{prefix}.{}", address + 1).parse().unwrap()];
                    if !named {
                        seen.host = None;
                    }
                    lan.see([seen]);
                }
                Happening::Gone { source, host, kind } => {
                    lan.gone([sighting(source, host, kind)]);
                }
                Happening::Restart(source) => lan.merge.handle_restart(lan.now, Source::ALL[usize::from(source)]),
                Happening::Pass(time) => {
                    let told = lan.pass(Duration::from_millis(u64::from(time)));
                    hear(told);
                }
                Happening::Accept => {
                    let any = lan.merge.devices().map(|device| device.identity.clone()).next();
                    if let Some(identity) = any {
                        lan.merge.accept(lan.now, &identity);
                    }
                }
            }
        }
        let told = lan.pass(Duration::from_secs(120));
        let known = hear(told);
        // What was told is what is there.
        let there: BTreeMap<Identity, Device> =
            lan.merge.devices().map(|device| (device.identity.clone(), device.clone())).collect();
        assert_eq!(known, there);
        for device in there.values() {
            assert!(!device.addresses.is_empty() && !device.services.is_empty());
            let local = device.addresses.iter().any(IpAddr::is_loopback);
            assert_eq!(local, device.this_machine);
        }
        // All leaves, and nothing stays.
        let all: Vec<SightingKey> = lan.merge.entries.keys().cloned().collect();
        for key in all {
            lan.merge.handle_event(lan.now, SightingEvent::Gone(key));
        }
        lan.pass(Duration::from_secs(120));
        assert_eq!(lan.merge.devices().count(), 0);
        assert!(lan.merge.tracked.is_empty());
    }
}
