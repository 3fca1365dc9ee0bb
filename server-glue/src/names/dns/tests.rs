//! Questions as `dig` writes them, answers as it prints them.

mod allowed;
mod hostile;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::DNSClass;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use spice_proto::service_info::{Advert, Label, ServiceInfo, ServiceType, Txt};

use super::*;

const PRINTER: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 9);
const NAS: Ipv4Addr = Ipv4Addr::new(198, 18, 40, 2);
const GUEST: Client = Client::Udp {
    station: MacAddress([2, 0, 0, 0, 0, 2]),
    address: SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 4000),
};

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

/// A name with a dot behind each label; `\\.` is one within.
fn n(text: &str) -> Name {
    let text = text.replace("\\.", "\0");
    let labels: Vec<String> = text
        .split_terminator('.')
        .filter(|label| !label.is_empty())
        .map(|label| label.replace('\0', "."))
        .collect();
    Name::from_labels(labels.iter().map(String::as_bytes)).unwrap()
}

/// A device with one service that says this of itself.
fn info(host: Option<&str>, adverts: &[(&str, &str, &[&str])]) -> ServiceInfo {
    let adverts = adverts.iter().map(|(kind, instance, subtypes)| {
        let mut txt = Txt::default();
        txt.push("rp", Some("ipp/print")).unwrap();
        Advert {
            kind: ServiceType::new(kind).unwrap(),
            instance: Label::new(instance).unwrap(),
            subtypes: subtypes.iter().map(|subtype| Label::new(subtype).unwrap()).collect(),
            txt,
        }
    });
    ServiceInfo::new(None, host.map(|host| HostName::new(host).unwrap()), adverts.collect()).unwrap()
}

/// The server, the zone that it knows, and a clock.
struct World {
    dns: Dns,
    zone: Zone,
    counters: Counters,
    now: Instant,
    id: u16,
}

impl World {
    fn empty() -> World {
        World::of("198.18.0.0/16")
    }

    fn of(net: &str) -> World {
        let subnet = subnet(net);
        let Some(IpAddr::V4(gateway)) = subnet.nth(1) else { panic!() };
        World {
            dns: Dns::new(&Domain::default(), gateway, subnet, 1500),
            zone: Zone::new(),
            counters: Counters::default(),
            now: Instant::now(),
            id: 0,
        }
    }

    /// A printer that describes itself, and a NAS that the user has written down as `tcp://nas.lan:445`.
    fn usual() -> World {
        let mut world = World::empty();
        let printer = info(
            Some("Printer.local"),
            &[
                ("_ipp._tcp", "Office, 2nd floor", &["_universal", "_print"]),
                ("_ipps._tcp", "Office, 2nd floor", &[]),
            ],
        );
        world.zone.publish((PRINTER, 631).into(), "Office", Some(&printer));
        world.zone.publish((NAS, 445).into(), "nas.lan", None);
        world
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.dns.handle_timeout(self.now, &self.zone, &mut self.counters);
    }

    fn query(&mut self, name: &str, kind: RecordType) -> Message {
        self.id += 1;
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(n(name), kind));
        message
    }

    /// Sends it; gives what is answered at once.
    fn send(&mut self, client: Client, octets: &[u8]) -> Option<Message> {
        self.dns.handle(self.now, &self.zone, client, octets, &mut self.counters);
        self.answer().map(|(to, message)| {
            assert_eq!(to, client);
            message
        })
    }

    fn raw_answer(&mut self) -> Option<(Client, Vec<u8>)> {
        let datagram = self.dns.poll_datagram();
        let datagram =
            datagram.map(|(station, address, message)| (Client::Udp { station, address }, message));
        datagram.or_else(|| self.dns.poll_stream().map(|(flow, message)| (Client::Tcp(flow), message)))
    }

    fn answer(&mut self) -> Option<(Client, Message)> {
        let (client, octets) = self.raw_answer()?;
        let message = Message::from_vec(&octets).unwrap();
        assert_eq!((message.message_type, message.authentic_data), (MessageType::Response, false));
        // Whatever is said of addresses: they are of the virtual network.
        for record in message.answers.iter().chain(&message.additionals) {
            if let RData::A(A(address)) = record.data {
                assert!(subnet("198.18.0.0/15").contains(address.into()), "{address}");
            }
            assert!(!matches!(record.data, RData::AAAA(_)));
            assert!(record.ttl <= 3600);
        }
        Some((client, message))
    }

    fn ask(&mut self, name: &str, kind: RecordType) -> Option<Message> {
        let query = self.query(name, kind);
        let message = self.send(GUEST, &query.to_vec().unwrap())?;
        assert_eq!((message.id, message.recursion_desired), (query.id, true));
        assert_eq!(message.queries, query.queries);
        Some(message)
    }

    /// Asks, and expects to be answered at once: the code, whether we know, and the answers' data.
    fn dig(&mut self, name: &str, kind: RecordType) -> (ResponseCode, bool, Vec<String>) {
        let message = self.ask(name, kind).expect("an answer at once");
        (message.response_code, message.authoritative, texts(&message.answers))
    }

    /// Asks for what there is.
    fn get(&mut self, name: &str, kind: RecordType) -> Vec<String> {
        let (code, authoritative, answers) = self.dig(name, kind);
        assert_eq!((code, authoritative), (ResponseCode::NoError, true), "{name} {kind}");
        assert!(!answers.is_empty(), "{name} {kind}");
        answers
    }

    /// Asks for what there is not, though the name is.
    fn no_data(&mut self, name: &str, kind: RecordType) {
        assert_eq!(self.dig(name, kind), (ResponseCode::NoError, true, vec![]), "{name} {kind}");
    }

    fn no_such_name(&mut self, name: &str) {
        assert_eq!(self.dig(name, RecordType::A), (ResponseCode::NXDomain, true, vec![]), "{name}");
    }

    fn refused(&mut self, name: &str, kind: RecordType) {
        let message = self.ask(name, kind).expect("an answer at once");
        assert_eq!(message.response_code, ResponseCode::Refused, "{name} {kind}");
        assert!(!message.authoritative && !message.recursion_available);
        assert!(message.all_sections().next().is_none());
        assert_eq!(self.dns.poll_question(), None, "nothing goes to the client");
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn devices_have_names_in_the_domain_and_addresses_have_names() {
    let mut world = World::usual();
    assert_eq!(world.get("printer.tunnel.internal.", RecordType::A), ["198.18.7.9"]);
    assert_eq!(world.get("PRINTER.Tunnel.INTERNAL.", RecordType::A), ["198.18.7.9"]);
    assert_eq!(world.get("nas-lan.tunnel.internal.", RecordType::A), ["198.18.40.2"]);
    assert_eq!(world.get("9.7.18.198.in-addr.arpa.", RecordType::PTR), ["Printer.tunnel.internal."]);
    assert_eq!(
        world.get("2.40.18.198.in-addr.arpa.", RecordType::PTR),
        ["nas.lan.", "nas-lan.tunnel.internal."]
    );
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::HTTPS, RecordType::TXT, RecordType::DS] {
        world.no_data("printer.tunnel.internal.", kind);
    }
    world.no_data("9.7.18.198.in-addr.arpa.", RecordType::A);
    world.no_such_name("other.tunnel.internal.");
    world.no_such_name("below.printer.tunnel.internal.");
    // When it is gone, so are its names.
    world.zone.withdraw((PRINTER, 631).into());
    world.no_such_name("printer.tunnel.internal.");
    world.no_such_name("9.7.18.198.in-addr.arpa.");
}

#[test]
fn a_host_is_found_by_the_name_that_its_user_shared() {
    let mut world = World::usual();
    assert_eq!(world.get("nas.lan.", RecordType::A), ["198.18.40.2"]);
    assert_eq!(world.get("NAS.lan.", RecordType::A), ["198.18.40.2"]);
    world.no_data("nas.lan.", RecordType::AAAA);
    // It is all that is ours of that domain.
    world.refused("lan.", RecordType::A);
    world.refused("other.lan.", RecordType::A);
    world.refused("below.nas.lan.", RecordType::A);
    // A second one comes too late, also with a smaller address, and one that says what it is called is called so.
    world.zone.publish((Ipv4Addr::new(198, 18, 1, 1), 80).into(), "nas.lan", None);
    let files = info(Some("files.example.org"), &[]);
    world.zone.publish((Ipv4Addr::new(198, 18, 2, 2), 445).into(), "www.bank.example", Some(&files));
    assert_eq!(world.get("nas.lan.", RecordType::A), ["198.18.40.2"]);
    assert_eq!(world.get("files.example.org.", RecordType::A), ["198.18.2.2"]);
    // What a network calls a device that was found is not the user's word.
    world.refused("www.bank.example.", RecordType::A);
}

#[test]
fn names_that_lead_hosts_astray_are_not_given_away() {
    let mut world = World::empty();
    for (number, name) in [
        "wpad",
        "isatap",
        "wpad.lan",
        "localhost",
        "x.local",
        "10.1.2.3",
        "a.localhost",
        "x.onion",
        "1.in-addr.arpa",
    ]
    .iter()
    .enumerate()
    {
        let address = Ipv4Addr::new(198, 18, 9, number as u8);
        world.zone.publish((address, 80).into(), name, None);
    }
    world.no_such_name("wpad.tunnel.internal.");
    world.no_such_name("isatap.tunnel.internal.");
    world.no_such_name("localhost.tunnel.internal.");
    for name in [
        "wpad.",
        "wpad.lan.",
        "localhost.",
        "x.local.",
        "10.1.2.3.",
        "a.localhost.",
        "x.onion.",
        "1.in-addr.arpa.",
    ] {
        world.refused(name, RecordType::A);
    }
    assert_eq!(world.get("wpad-2.tunnel.internal.", RecordType::A), ["198.18.9.0"]);
    // Nor the gateway's own.
    world.zone.publish((Ipv4Addr::new(198, 18, 9, 99), 80).into(), "gateway", None);
    assert_eq!(world.get("gateway.tunnel.internal.", RecordType::A), ["198.18.0.1"]);
    assert_eq!(world.get("1.0.18.198.in-addr.arpa.", RecordType::PTR), ["gateway.tunnel.internal."]);
}

#[test]
fn local_names_are_multicast_dns_but_for_a_device_s_own() {
    let mut world = World::usual();
    assert_eq!(world.get("printer.local.", RecordType::A), ["198.18.7.9"]);
    world.no_data("printer.local.", RecordType::AAAA);
    world.refused("local.", RecordType::SOA);
    world.refused("other.local.", RecordType::A);
    world.refused("_ipp._tcp.local.", RecordType::PTR);
    // One that did not say so has no such name, and a company's server is no printer.
    world.refused("nas-lan.local.", RecordType::A);
    world.zone.publish((NAS, 80).into(), "dc", Some(&info(Some("dc.corp.local"), &[])));
    world.refused("dc.corp.local.", RecordType::A);
}

#[test]
fn the_domain_and_the_tree_of_addresses_are_ours() {
    let mut world = World::usual();
    for apex in ["tunnel.internal.", "18.198.in-addr.arpa.", "nas.lan."] {
        let soa = world.get(apex, RecordType::SOA);
        assert!(soa[0].starts_with("gateway.tunnel.internal. hostmaster.tunnel.internal. "), "{soa:?}");
        assert_eq!(world.get(apex, RecordType::NS), ["gateway.tunnel.internal."]);
    }
    world.no_data("tunnel.internal.", RecordType::A);
    world.no_data("7.18.198.in-addr.arpa.", RecordType::PTR);
    world.no_such_name("10.7.18.198.in-addr.arpa.");
    world.no_such_name("x.7.18.198.in-addr.arpa.");
    world.no_such_name("1.9.7.18.198.in-addr.arpa.");
    world.no_such_name("007.7.18.198.in-addr.arpa.");
    // Above and beside is not.
    for name in [
        "internal.",
        ".",
        "198.in-addr.arpa.",
        "9.7.19.198.in-addr.arpa.",
        "in-addr.arpa.",
        "256.18.198.in-addr.arpa.",
    ] {
        let kind = if name.starts_with("256") { continue } else { RecordType::PTR };
        world.refused(name, kind);
    }
    world.refused("9.0.0.0.ip6.arpa.", RecordType::PTR);
    world.refused("www.example.com.", RecordType::A);
    world.refused("tunnel.internal.example.com.", RecordType::A);
    world.refused("xtunnel.internal.", RecordType::A);
}

#[test]
fn subnets_of_any_size_have_their_tree() {
    for (net, address, inside, outside) in [
        ("198.18.0.0/15", "9.7.19.198", "19.198", "198"),
        ("198.18.16.0/20", "9.17.18.198", "17.18.198", "18.198"),
        ("198.18.5.0/24", "9.5.18.198", "5.18.198", "18.198"),
        ("198.18.5.16/28", "20.5.18.198", "21.5.18.198", "5.18.198"),
    ] {
        let mut world = World::of(net);
        let octets: Vec<u8> = address.rsplit('.').map(|octet| octet.parse().unwrap()).collect();
        let host = Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]);
        world.zone.publish((host, 80).into(), "web", None);
        let name = |labels: &str| format!("{labels}.in-addr.arpa.");
        assert_eq!(world.get(&name(address), RecordType::PTR), ["web.tunnel.internal."], "{net}");
        world.no_data(&name(inside), RecordType::A);
        world.refused(&name(outside), RecordType::PTR);
        let IpAddr::V4(network) = subnet(net).network() else { panic!() };
        let browse = format!("b._dns-sd._udp.{}", reverse_of(network));
        assert_eq!(world.get(&browse, RecordType::PTR), ["tunnel.internal."], "{net}");
    }
}

fn reverse_of(address: Ipv4Addr) -> String {
    Name::from(address).to_ascii()
}

#[test]
fn dns_sd_is_browsed_by_unicast_from_the_domain_or_from_the_address() {
    let mut world = World::usual();
    for base in ["tunnel.internal.", "0.0.18.198.in-addr.arpa."] {
        for which in ["b", "lb", "db", "LB"] {
            let name = format!("{which}._dns-sd._udp.{base}");
            assert_eq!(world.get(&name, RecordType::PTR), ["tunnel.internal."], "{name}");
        }
        for which in ["r", "dr"] {
            world.no_data(&format!("{which}._dns-sd._udp.{base}"), RecordType::PTR);
        }
        world.no_data(&format!("_udp.{base}"), RecordType::PTR);
        world.no_such_name(&format!("x._dns-sd._udp.{base}"));
    }
    world.no_such_name("b._dns-sd._udp.1.0.18.198.in-addr.arpa.");
    assert_eq!(
        world.get("_services._dns-sd._udp.tunnel.internal.", RecordType::PTR),
        ["_ipp._tcp.tunnel.internal.", "_ipps._tcp.tunnel.internal."]
    );
    let instance = "Office, 2nd floor._ipp._tcp.tunnel.internal.";
    let instances = world.ask("_ipp._tcp.tunnel.internal.", RecordType::PTR).unwrap();
    assert_eq!(instances.answers.len(), 1);
    let RData::PTR(PTR(full)) = &instances.answers[0].data else { panic!() };
    assert_eq!(full, &n(instance));
    assert_eq!(instances.answers[0].ttl, 60, "nobody says goodbye in unicast DNS");
    // All that a client asks next is there already.
    let next: Vec<(Name, RecordType)> =
        instances.additionals.iter().map(|record| (record.name.clone(), record.record_type())).collect();
    assert_eq!(
        next,
        [
            (full.clone(), RecordType::SRV),
            (full.clone(), RecordType::TXT),
            (n("printer.local."), RecordType::A)
        ]
    );
    for subtype in ["_universal", "_print"] {
        let found =
            world.ask(&format!("{subtype}._sub._ipp._tcp.tunnel.internal."), RecordType::PTR).unwrap();
        assert_eq!(found.answers[0].data, RData::PTR(PTR(full.clone())));
    }
    world.no_data("_sub._ipp._tcp.tunnel.internal.", RecordType::PTR);
    world.no_data("_tcp.tunnel.internal.", RecordType::PTR);
    world.no_such_name("_ssh._tcp.tunnel.internal.");
    assert_eq!(world.get(instance, RecordType::SRV), ["0 0 631 Printer.local."]);
    assert_eq!(world.get(instance, RecordType::TXT), ["rp=ipp/print"]);
    // Nothing shared, no types, but no lie about the name either.
    World::empty().no_data("_services._dns-sd._udp.tunnel.internal.", RecordType::PTR);
}

#[test]
fn what_is_not_there_is_so_for_ten_seconds() {
    let mut world = World::usual();
    for (name, apex) in
        [("other.tunnel.internal.", "tunnel.internal."), ("1.1.18.198.in-addr.arpa.", "18.198.in-addr.arpa.")]
    {
        let message = world.ask(name, RecordType::A).unwrap();
        assert_eq!(message.authorities.len(), 1);
        let soa = &message.authorities[0];
        assert_eq!((&soa.name, soa.ttl, soa.record_type()), (&n(apex), 10, RecordType::SOA));
        let RData::SOA(soa) = &soa.data else { panic!() };
        assert_eq!(soa.minimum, 10);
    }
    let serial = |world: &mut World| {
        let soa = world.get("tunnel.internal.", RecordType::SOA)[0].clone();
        soa.split(' ').nth(2).unwrap().parse::<u32>().unwrap()
    };
    let before = serial(&mut world);
    world.zone.withdraw((NAS, 445).into());
    assert!(serial(&mut world) > before);
}

#[test]
fn who_asks_for_everything_gets_something() {
    let mut world = World::usual();
    assert_eq!(world.get("printer.tunnel.internal.", RecordType::ANY), ["198.18.7.9"]);
    assert_eq!(world.get("tunnel.internal.", RecordType::ANY).len(), 1);
    assert_eq!(world.get("_tcp.tunnel.internal.", RecordType::ANY), ["RFC8482 "]);
    world.no_such_name("other.tunnel.internal.");
    assert_eq!(world.dig("other.tunnel.internal.", RecordType::ANY).0, ResponseCode::NXDomain);
    world.refused("example.com.", RecordType::ANY);
}

#[test]
fn transfers_other_classes_and_other_operations_are_refused() {
    let mut world = World::usual();
    world.refused("tunnel.internal.", RecordType::AXFR);
    world.refused("tunnel.internal.", RecordType::IXFR);
    world.refused("tunnel.internal.", RecordType::Unknown(253));
    let mut chaos = world.query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let answer = world.send(GUEST, &chaos.to_vec().unwrap()).unwrap();
    assert_eq!((answer.response_code, answer.queries), (ResponseCode::Refused, chaos.queries));
    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(9)] {
        let mut query = world.query("tunnel.internal.", RecordType::SOA);
        query.metadata.op_code = op_code;
        let answer = world.send(GUEST, &query.to_vec().unwrap()).unwrap();
        assert_eq!((answer.response_code, answer.op_code), (ResponseCode::NotImp, op_code));
        assert_eq!(answer.queries, []);
    }
    // An incremental transfer as it is really asked for.
    let mut transfer = world.query("tunnel.internal.", RecordType::IXFR);
    let soa = world.dns.own.soa(n("tunnel.internal."));
    transfer.add_authority(soa);
    let answer = world.send(GUEST, &transfer.to_vec().unwrap()).unwrap();
    assert_eq!(answer.response_code, ResponseCode::Refused);
}

#[test]
fn what_is_no_query_is_not_answered_and_what_is_a_wrong_one_is_told_so() {
    let mut world = World::usual();
    let good = world.query("printer.tunnel.internal.", RecordType::A).to_vec().unwrap();
    for len in 0..12 {
        assert!(world.send(GUEST, &good[..len]).is_none());
    }
    let mut response = good.clone();
    response[2] |= 0x80;
    assert!(world.send(GUEST, &response).is_none(), "two servers must not talk for ever");
    assert_eq!(world.counters.dns_dropped, 13);
    let code = |world: &mut World, octets: &[u8]| world.send(GUEST, octets).unwrap().response_code;
    for len in 12..good.len() {
        assert_eq!(code(&mut world, &good[..len]), ResponseCode::FormErr);
    }
    assert_eq!(code(&mut world, &[&good[..], &[0]].concat()), ResponseCode::FormErr, "something behind it");
    for (at, count) in [(4, 0), (4, 2), (6, 1), (8, 1), (10, 1), (10, 200)] {
        let mut wrong = good.clone();
        wrong[at + 1] = count;
        assert_eq!(code(&mut world, &wrong), ResponseCode::FormErr, "{count} at {at}");
        wrong[at] = 0xff;
        assert_eq!(code(&mut world, &wrong), ResponseCode::FormErr);
    }
    // A name that points into the header, to itself, behind the end.
    for pointer in [[0xc0, 0], [0xc0, 12], [0xc0, 20], [0xff, 0xff], [0x80, 1], [0x40, 1]] {
        let octets = [&good[..12], &pointer, &[0, 1, 0, 1]].concat();
        assert_eq!(code(&mut world, &octets), ResponseCode::FormErr, "{pointer:?}");
    }
}

#[test]
fn edns_is_spoken() {
    let mut world = World::usual();
    let ask = |world: &mut World, change: &dyn Fn(&mut Edns)| {
        let mut query = world.query("printer.tunnel.internal.", RecordType::A);
        let mut edns = Edns::new();
        change(&mut edns);
        query.set_edns(edns);
        world.send(GUEST, &query.to_vec().unwrap()).unwrap()
    };
    let answer = ask(&mut world, &|edns| {
        edns.set_max_payload(4096).set_dnssec_ok(true);
    });
    let edns = answer.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
    let answer = ask(&mut world, &|edns| {
        edns.set_version(1);
    });
    // BADVERS, which has the number of BADSIG.
    assert_eq!((u16::from(answer.response_code), answer.answers.len()), (16, 0));
    assert!(world.ask("printer.tunnel.internal.", RecordType::A).unwrap().edns.is_none());
    // Two of them, one that is not the root's, and a signature.
    let plain = world.query("printer.tunnel.internal.", RecordType::A).to_vec().unwrap();
    let with = |records: &[&[u8]]| {
        let mut octets = plain.clone();
        octets[11] = records.len() as u8;
        [octets, records.concat()].concat()
    };
    let opt: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let named: &[u8] = &[1, b'x', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let tsig: &[u8] = &[1, b'k', 0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 2, 9, 9];
    let padded: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 12, 0, 2, 0, 0];
    for (records, code) in [
        (&[opt][..], ResponseCode::NoError),
        (&[padded][..], ResponseCode::NoError),
        (&[opt, opt][..], ResponseCode::FormErr),
        (&[named][..], ResponseCode::FormErr),
        (&[&opt[..10]][..], ResponseCode::FormErr),
        (&[tsig][..], ResponseCode::Refused),
        (&[opt, tsig][..], ResponseCode::Refused),
    ] {
        assert_eq!(world.send(GUEST, &with(records)).unwrap().response_code, code, "{records:?}");
    }
}

#[test]
fn what_does_not_fit_a_datagram_is_said_over_tcp() {
    let mut world = World::empty();
    for number in 0..200u8 {
        let printer =
            info(Some(&format!("p{number}.local")), &[("_ipp._tcp", &format!("Printer {number}"), &[])]);
        world.zone.publish((Ipv4Addr::new(198, 18, 7, number), 631).into(), "p", Some(&printer));
    }
    let size = |world: &mut World, payload: Option<u16>, tcp: bool| {
        let mut query = world.query("_ipp._tcp.tunnel.internal.", RecordType::PTR);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            query.set_edns(edns);
        }
        let client = if tcp { Client::Tcp(flow()) } else { GUEST };
        world.dns.handle(world.now, &world.zone, client, &query.to_vec().unwrap(), &mut world.counters);
        let (_, octets) = world.raw_answer().unwrap();
        let message = Message::from_vec(&octets).unwrap();
        (octets.len(), message.truncation, message.answers.len(), message.additionals.len())
    };
    for payload in [None, Some(0), Some(512), Some(1232), Some(65_535)] {
        let (len, truncated, answers, _) = size(&mut world, payload, false);
        assert!(truncated && answers == 0 && len < 512, "{payload:?}");
    }
    let (len, truncated, answers, additionals) = size(&mut world, None, true);
    assert!(!truncated && answers == 200 && additionals == 600, "{len}");
    // What was not asked for makes room for what was.
    for number in 10..200u8 {
        world.zone.withdraw((Ipv4Addr::new(198, 18, 7, number), 631).into());
    }
    let (len, truncated, answers, additionals) = size(&mut world, None, false);
    assert!(!truncated && answers == 10 && additionals == 0 && len <= 512);
    let (len, truncated, answers, additionals) = size(&mut world, Some(4096), false);
    assert!(!truncated && answers == 10 && additionals == 30 && len <= 1232, "{len} {additionals}");
    // Nor is anything larger than the link can carry.
    world.dns.mtu = 576;
    let (len, truncated, answers, additionals) = size(&mut world, Some(4096), false);
    assert!(!truncated && answers == 10 && additionals == 0 && len <= 548, "{len}");
}

/// A connection's name, of which there is no other way to get one here.
fn flow() -> FlowId {
    crate::table::Table::new().id(0)
}

#[test]
fn there_is_a_limit_to_what_is_answered_in_a_second() {
    let mut world = World::usual();
    let answered =
        (0..5000).filter(|_| world.ask("printer.tunnel.internal.", RecordType::A).is_some()).count();
    assert_eq!((answered, world.counters.dns_dropped), (1000, 4000));
    world.advance(Duration::from_millis(10));
    let answered = (0..50).filter(|_| world.ask("printer.tunnel.internal.", RecordType::A).is_some()).count();
    assert_eq!(answered, 10);
}
