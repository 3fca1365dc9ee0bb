//! Scripts: what a guest says, what it hears and when, by a clock that is turned by hand.

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, PTR, SRV, TXT};
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;
use spice_proto::service_info::{Advert, HostName, Label, ServiceInfo, ServiceType, Txt};

use super::*;
use crate::names::wire::tests::text;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), PORT);
const GUEST_MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
const PRINTER: &str = "198.18.7.9:631";
const INSTANCE: &str = "Office._ipp._tcp.local.";

/// A guest, the responder, and a clock.
struct Lab {
    start: Instant,
    now: Instant,
    zone: Zone,
    responder: Responder,
    counters: Counters,
}

/// What was heard: milliseconds since the clock was last looked at, where to, and the message, one line a record.
type Heard = Vec<(u128, Destination, Vec<String>)>;

impl Lab {
    fn new() -> Lab {
        let now = Instant::now();
        let counters = Counters::default();
        Lab { start: now, now, zone: Zone::new(), responder: Responder::new(7, 65_520), counters }
    }

    /// One that has a printer, and has announced it.
    fn with_printer() -> Lab {
        let mut lab = Lab::new();
        lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
        lab.run(10_000);
        lab
    }

    fn publish(&mut self, at: &str, info: &ServiceInfo) {
        self.zone.publish(at.parse().unwrap(), "device", Some(info));
    }

    fn withdraw(&mut self, at: &str) {
        self.zone.withdraw(at.parse().unwrap());
    }

    /// Lets time go by, and hears what comes meanwhile.
    fn run(&mut self, milliseconds: u64) -> Heard {
        self.start = self.now;
        let end = self.now + Duration::from_millis(milliseconds);
        let mut heard = Vec::new();
        for turn in 0.. {
            assert!(turn < 20_000, "it does not come to rest");
            self.responder.handle_timeout(self.now, &self.zone, &mut self.counters);
            heard.extend(self.hear());
            match self.responder.poll_timeout() {
                Some(at) if at <= end => self.now = at,
                Some(_) | None => break,
            }
        }
        self.now = end;
        heard
    }

    fn hear(&mut self) -> Heard {
        let mut heard = Vec::new();
        while let Some(Datagram { to, message }) = self.responder.poll_transmit() {
            assert!(message.len() <= 1472, "{}", message.len());
            heard.push(((self.now - self.start).as_millis(), to, text(&message)));
        }
        heard
    }

    fn send_from(&mut self, from: Station, message: &[u8]) {
        self.start = self.now;
        self.responder.handle(self.now, from, message, &mut self.zone, &mut self.counters);
    }

    fn send(&mut self, message: &Outgoing<'_>) {
        self.send_from(guest(), &message.write(9000, 9000).unwrap().bytes);
    }

    fn ask(&mut self, questions: &[Query]) {
        self.send(&Outgoing { questions, ..Outgoing::default() });
    }

    fn say(&mut self, answers: &[Record]) {
        self.send(&Outgoing { flags: flags::RESPONSE, answers, ..Outgoing::default() });
    }

    fn expect_nothing(&mut self, milliseconds: u64) {
        let heard = self.run(milliseconds);
        assert!(heard.is_empty(), "{heard:#?}");
    }
}

fn guest() -> Station {
    Station { mac: GUEST_MAC, address: GUEST, local: GATEWAY, multicast: true }
}

fn printer(instance: &str, host: &str, path: &str) -> ServiceInfo {
    let mut txt = Txt::default();
    txt.push("rp", Some(path)).unwrap();
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new(instance).unwrap(),
        subtypes: vec![Label::new("_universal").unwrap()],
        txt,
    };
    let host = HostName::new(&format!("{host}.local")).unwrap();
    ServiceInfo::new(None, Some(host), vec![advert]).unwrap()
}

fn n(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(name: &str, kind: RecordType) -> Query {
    Query::query(n(name), kind)
}

fn alone(name: &str, kind: RecordType) -> Query {
    let mut query = question(name, kind);
    query.set_mdns_unicast_response(true);
    query
}

fn a(name: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(n(name), ttl, RData::A(A(address.into())))
}

fn ptr(name: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(n(name), ttl, RData::PTR(PTR(n(target))))
}

fn srv(name: &str, ttl: u32, port: u16, target: &str) -> Record {
    Record::from_rdata(n(name), ttl, RData::SRV(SRV::new(0, 0, port, n(target))))
}

/// The lines of what was heard, sorted, without times.
fn lines(heard: &Heard) -> Vec<&str> {
    let mut lines: Vec<&str> = heard.iter().flat_map(|(_, _, lines)| lines).map(String::as_str).collect();
    lines.sort_unstable();
    lines
}

const A_LINE: &str = "! 120 printer.local. A 198.18.7.9";
const EVERYTHING: [&str; 10] = [
    "= 4500 _ipp._tcp.local. PTR Office._ipp._tcp.local.",
    "= 4500 _services._dns-sd._udp.local. PTR _ipp._tcp.local.",
    "= 4500 _universal._sub._ipp._tcp.local. PTR Office._ipp._tcp.local.",
    "=! 120 9.7.18.198.in-addr.arpa. NSEC",
    "=! 120 9.7.18.198.in-addr.arpa. PTR printer.local.",
    "=! 120 Office._ipp._tcp.local. NSEC",
    "=! 120 Office._ipp._tcp.local. SRV 0 0 631 printer.local.",
    "=! 120 printer.local. A 198.18.7.9",
    "=! 120 printer.local. NSEC",
    "=! 4500 Office._ipp._tcp.local. TXT rp=ipp/print",
];

// Section 8: coming.

#[test]
fn a_service_is_probed_for_three_times_and_announced_twice() {
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    let heard = lab.run(20_000);
    let times: Vec<u128> = heard.iter().map(|(at, ..)| *at).collect();
    let first = times[0];
    assert!(first <= 250, "{first}");
    let expected: Vec<u128> = [0, 250, 500, 750, 1750].iter().map(|after| first + after).collect();
    assert_eq!(times, expected);
    assert!(heard.iter().all(|(_, to, _)| *to == Destination::Everybody));
    for (_, _, lines) in &heard[..3] {
        assert_eq!(
            lines[..],
            [
                "?! printer.local. ANY",
                "?! Office._ipp._tcp.local. ANY",
                "~ 120 printer.local. A 198.18.7.9",
                "~ 120 Office._ipp._tcp.local. SRV 0 0 631 printer.local.",
                "~ 4500 Office._ipp._tcp.local. TXT rp=ipp/print",
            ]
        );
    }
    for announcement in &heard[3..] {
        assert_eq!(lines(&vec![announcement.clone()]), EVERYTHING);
    }
    lab.expect_nothing(10_000_000);
}

#[test]
fn nothing_is_said_of_what_is_not_ours_yet() {
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(300);
    lab.ask(&[question("printer.local.", RecordType::A), question("_ipp._tcp.local.", RecordType::PTR)]);
    let heard = lab.run(200);
    assert!(heard.iter().all(|(_, _, lines)| lines[0].starts_with('?')), "{heard:#?}");
}

#[test]
fn an_undescribed_service_is_not_told_of() {
    let mut lab = Lab::new();
    lab.zone.publish(PRINTER.parse().unwrap(), "nas", None);
    lab.expect_nothing(5000);
    lab.ask(&[question("nas.local.", RecordType::A)]);
    lab.expect_nothing(5000);
    // It describes itself after all.
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    assert_eq!(lab.run(5000).len(), 5);
}

#[test]
fn another_service_of_a_device_leaves_the_first_alone() {
    let mut lab = Lab::with_printer();
    let mut other = printer("Office", "printer", "x");
    let mut advert = other.adverts()[0].clone();
    (advert.kind, advert.subtypes) = (ServiceType::new("_http._tcp").unwrap(), Vec::new());
    other = ServiceInfo::new(None, other.host().cloned(), vec![advert]).unwrap();
    lab.publish("198.18.7.9:80", &other);
    let heard = lab.run(5000);
    assert_eq!(heard.len(), 5);
    assert_eq!(
        lines(&heard[4..].to_vec()),
        [
            "= 4500 _http._tcp.local. PTR Office._http._tcp.local.",
            "= 4500 _services._dns-sd._udp.local. PTR _http._tcp.local.",
            "=! 120 Office._http._tcp.local. NSEC",
            "=! 120 Office._http._tcp.local. SRV 0 0 80 printer.local.",
            "=! 4500 Office._http._tcp.local. TXT rp=x",
        ]
    );
}

#[test]
fn many_services_take_as_many_packets_as_they_need() {
    let mut lab = Lab::new();
    for number in 0..60 {
        let info = printer(&format!("Printer {number}"), &format!("printer{number}"), &"x".repeat(200));
        lab.publish(&format!("198.18.8.{number}:631"), &info);
    }
    let heard = lab.run(5000);
    let questions = heard.iter().flat_map(|(_, _, lines)| lines).filter(|line| line.starts_with('?')).count();
    assert_eq!(questions, 3 * 2 * 60);
    let pointers = heard.iter().flat_map(|(_, _, lines)| lines);
    assert_eq!(pointers.filter(|line| line.starts_with("= 4500 _ipp")).count(), 2 * 60);
    let probes = heard.iter().filter(|(_, _, lines)| lines[0].starts_with('?')).count();
    assert!((3 * 6..3 * 24).contains(&probes), "{probes} packets of probes");
}

// Section 8.2 and 9: somebody else.

#[test]
fn a_name_that_somebody_has_is_left_to_them() {
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(300);
    lab.say(&[a("PRINTER.local.", 120, [198, 18, 0, 2])]);
    let heard = lab.run(5000);
    assert_eq!(lab.zone.host(Ipv4Addr::new(198, 18, 7, 9).into()).unwrap().name(), "printer-2");
    let last = heard.last().unwrap();
    assert!(last.2.contains(&"=! 120 printer-2.local. A 198.18.7.9".to_owned()), "{last:#?}");
    let wrong = |line: &&String| line.contains(" printer.local. A");
    let late: Vec<_> = heard.iter().flat_map(|(_, _, lines)| lines).filter(wrong).collect();
    assert!(late.is_empty(), "{late:#?}");
    assert!(
        heard
            .iter()
            .flat_map(|(_, _, lines)| lines)
            .any(|line| line.ends_with("SRV 0 0 631 printer-2.local."))
    );
    assert_eq!(lab.counters.mdns_conflicts, 1);
}

#[test]
fn an_instance_that_somebody_has_is_numbered() {
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(300);
    lab.say(&[srv(INSTANCE, 120, 631, "guest.local.")]);
    let heard = lab.run(5000);
    let all = lines(&heard);
    // As hickory shows a space and brackets.
    let line = r"= 4500 _ipp._tcp.local. PTR Office\040\(2\)._ipp._tcp.local.";
    assert!(all.contains(&line), "{all:#?}");
    assert!(!all.iter().any(|line| line.starts_with("= 0")), "nothing of theirs is taken back");
}

#[test]
fn of_two_that_probe_at_once_the_greater_wins() {
    let probe = |record: Record, lab: &mut Lab| {
        let questions = [alone("printer.local.", RecordType::ANY)];
        lab.send(&Outgoing { questions: &questions, authorities: &[record], ..Outgoing::default() });
    };
    // Theirs is greater: we wait a second, and ask again from the start.
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(300);
    probe(a("printer.local.", 120, [198, 18, 200, 1]), &mut lab);
    let asks = |(_, _, lines): &&(u128, Destination, Vec<String>)| {
        lines.contains(&"?! printer.local. ANY".to_owned())
    };
    let heard = lab.run(10_000);
    let times: Vec<u128> = heard.iter().filter(asks).map(|(at, ..)| *at).collect();
    assert_eq!(times, [1000, 1250, 1500]);
    assert!(lines(&heard).iter().any(|line| line.ends_with(A_LINE)), "they did not take it after all");
    // Ours is greater, or it is ourselves: nothing changes.
    for address in [[198, 18, 0, 2], [198, 18, 7, 9]] {
        let mut lab = Lab::new();
        lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
        lab.run(300);
        probe(a("printer.local.", 120, address), &mut lab);
        let heard = lab.run(5000);
        assert!(heard.iter().filter(asks).all(|(at, ..)| *at < 500));
    }
    // More records are greater than less of the same; another type is as its number.
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(300);
    let more = [a("printer.local.", 120, [198, 18, 7, 9]), a("printer.local.", 120, [198, 18, 7, 10])];
    let questions = [alone("printer.local.", RecordType::ANY)];
    lab.send(&Outgoing { questions: &questions, authorities: &more, ..Outgoing::default() });
    let heard = lab.run(5000);
    assert_eq!(heard.iter().filter(asks).map(|(at, ..)| *at).next(), Some(1000));
}

#[test]
fn a_name_that_is_ours_is_defended_against_a_probe_at_once() {
    let mut lab = Lab::with_printer();
    for _ in 0..3 {
        let questions = [alone("printer.local.", RecordType::ANY)];
        let theirs = [a("printer.local.", 120, [198, 18, 0, 2])];
        lab.send(&Outgoing { questions: &questions, authorities: &theirs, ..Outgoing::default() });
        let heard = lab.hear();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].1, Destination::One(guest()));
        assert_eq!(heard[0].2, [format!("={A_LINE}"), "+! 120 printer.local. NSEC".to_owned()]);
        lab.run(100);
    }
    // Also when it asks for multicast, and we have just said it.
    lab.say(&[]);
    for _ in 0..2 {
        let questions = [question("printer.local.", RecordType::ANY)];
        let theirs = [a("printer.local.", 120, [198, 18, 0, 2])];
        lab.send(&Outgoing { questions: &questions, authorities: &theirs, ..Outgoing::default() });
        let heard = lab.run(250);
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].1, Destination::Everybody);
    }
}

#[test]
fn a_name_that_somebody_takes_from_us_is_asked_for_again() {
    let mut lab = Lab::with_printer();
    lab.say(&[a("printer.local.", 120, [198, 18, 0, 2])]);
    // Nobody answers: it stays ours.
    let heard = lab.run(5000);
    let probes = heard
        .iter()
        .filter(|(_, _, lines)| lines == &["?! printer.local. ANY", &format!("~{}", &A_LINE[1..])]);
    assert_eq!(probes.count(), 3);
    assert!(heard.last().unwrap().2.contains(&format!("={A_LINE}")));
    // They insist: it is theirs.
    lab.say(&[a("printer.local.", 120, [198, 18, 0, 2])]);
    lab.run(300);
    lab.say(&[a("printer.local.", 120, [198, 18, 0, 2])]);
    let heard = lab.run(5000);
    let all = lines(&heard);
    assert!(all.contains(&"=! 120 printer-2.local. A 198.18.7.9"), "{all:#?}");
    assert!(all.contains(&"=! 120 Office._ipp._tcp.local. SRV 0 0 631 printer-2.local."), "{all:#?}");
    assert!(!all.iter().any(|line| line.contains(" 0 ") && !line.contains("SRV")), "{all:#?}");
}

#[test]
fn what_is_no_conflict_changes_nothing() {
    let mut lab = Lab::with_printer();
    // The same data; another type; taken back; another class; a name that is not ours; a name that everybody may have.
    lab.say(&[a("printer.local.", 120, [198, 18, 7, 9])]);
    lab.say(&[Record::from_rdata(n("printer.local."), 120, RData::TXT(TXT::new(vec!["x".into()])))]);
    lab.say(&[a("printer.local.", 0, [198, 18, 0, 2])]);
    let mut chaos = a("printer.local.", 120, [198, 18, 0, 2]);
    chaos.dns_class = hickory_proto::rr::DNSClass::CH;
    lab.say(&[chaos]);
    lab.say(&[a("guest.local.", 120, [198, 18, 0, 2])]);
    lab.say(&[ptr("_ipp._tcp.local.", 4500, "Guest._ipp._tcp.local.")]);
    lab.say(&[ptr("9.7.18.198.in-addr.arpa.", 120, "guest.local.")]);
    // From another port than a responder's.
    let legacy = SocketAddrV4::new(*GUEST.ip(), 4000);
    let theirs = [a("printer.local.", 120, [198, 18, 0, 2])];
    let message = Outgoing { flags: flags::RESPONSE, answers: &theirs, ..Outgoing::default() };
    lab.send_from(Station { address: legacy, ..guest() }, &message.write(9000, 9000).unwrap().bytes);
    lab.expect_nothing(5000);
    assert_eq!(lab.counters.mdns_conflicts, 0);
}

#[test]
fn conflicts_without_end_are_believed_seldom() {
    let mut lab = Lab::with_printer();
    for _ in 0..200 {
        let name = lab.zone.host(Ipv4Addr::new(198, 18, 7, 9).into()).unwrap().name().to_owned();
        lab.say(&[a(&format!("{name}.local."), 120, [198, 18, 0, 2])]);
        lab.run(20);
    }
    assert_eq!(lab.counters.mdns_conflicts, 200);
    let name = lab.zone.host(Ipv4Addr::new(198, 18, 7, 9).into()).unwrap().name().to_owned();
    let number: u32 = name.strip_prefix("printer-").unwrap().parse().unwrap();
    assert!(number <= 17, "{name}");
    // It comes to rest as soon as the guest does.
    let heard = lab.run(20_000);
    assert!(heard.last().unwrap().2.contains(&format!("=! 120 {name}.local. A 198.18.7.9")));
}

// Sections 5 to 7: questions.

#[test]
fn what_others_may_have_is_answered_after_a_while_with_what_is_asked_next() {
    let mut lab = Lab::with_printer();
    lab.ask(&[question("_ipp._tcp.local.", RecordType::PTR)]);
    assert!(lab.hear().is_empty());
    let heard = lab.run(1000);
    assert_eq!(heard.len(), 1);
    assert!((20..=120).contains(&heard[0].0), "{}", heard[0].0);
    assert_eq!(heard[0].1, Destination::Everybody);
    assert_eq!(
        heard[0].2,
        [
            "= 4500 _ipp._tcp.local. PTR Office._ipp._tcp.local.",
            "+! 120 Office._ipp._tcp.local. SRV 0 0 631 printer.local.",
            "+! 4500 Office._ipp._tcp.local. TXT rp=ipp/print",
            "+! 120 printer.local. A 198.18.7.9",
            "+! 120 printer.local. NSEC",
        ]
    );
}

#[test]
fn what_only_we_have_is_answered_at_once() {
    let mut lab = Lab::with_printer();
    lab.ask(&[question("printer.local.", RecordType::A)]);
    let heard = lab.hear();
    assert_eq!(lines(&heard), ["+! 120 printer.local. NSEC", &format!("={A_LINE}")]);
    lab.run(2000);
    lab.ask(&[question("office._IPP._tcp.LOCAL.", RecordType::SRV)]);
    let heard = lab.hear();
    assert_eq!(heard[0].2[0], "=! 120 Office._ipp._tcp.local. SRV 0 0 631 printer.local.");
    lab.run(2000);
    lab.ask(&[question(INSTANCE, RecordType::ANY)]);
    assert_eq!(lab.hear()[0].2.iter().filter(|line| line.starts_with('=')).count(), 2);
    lab.run(2000);
    lab.ask(&[question("9.7.18.198.in-addr.arpa.", RecordType::PTR)]);
    assert_eq!(lab.hear()[0].2[0], "=! 120 9.7.18.198.in-addr.arpa. PTR printer.local.");
}

#[test]
fn what_there_is_not_is_denied_where_the_name_is_ours_and_ignored_elsewhere() {
    let mut lab = Lab::with_printer();
    lab.ask(&[question("printer.local.", RecordType::AAAA)]);
    assert_eq!(lines(&lab.hear()), ["=! 120 printer.local. NSEC"]);
    lab.run(2000);
    for name in
        ["_ipp._tcp.local.", "_ftp._tcp.local.", "nobody.local.", "local.", ".", "printer.", "_tcp.local."]
    {
        lab.ask(&[question(name, RecordType::SRV), question(name, RecordType::AAAA)]);
    }
    let mut chaos = question("printer.local.", RecordType::A);
    chaos.set_query_class(hickory_proto::rr::DNSClass::CH);
    lab.ask(&[chaos]);
    lab.expect_nothing(5000);
}

#[test]
fn one_message_answers_many_questions_each_record_once() {
    let mut lab = Lab::with_printer();
    lab.ask(&[
        question("_ipp._tcp.local.", RecordType::PTR),
        question("_universal._sub._ipp._tcp.local.", RecordType::PTR),
        question("_services._dns-sd._udp.local.", RecordType::PTR),
        question("printer.local.", RecordType::A),
        question("printer.local.", RecordType::ANY),
        question("printer.local.", RecordType::A),
    ]);
    let heard = lab.run(1000);
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].2.iter().filter(|line| line.starts_with('=')).count(), 4);
    assert_eq!(heard[0].2.iter().filter(|line| line.ends_with(A_LINE)).count(), 1);
}

#[test]
fn nothing_is_sent_to_all_twice_within_a_second() {
    let mut lab = Lab::with_printer();
    let mut heard = Vec::new();
    for turn in 0..50 {
        lab.ask(&[question("printer.local.", RecordType::A)]);
        let now = lab.hear();
        let all = now.into_iter().chain(lab.run(100));
        heard.extend(all.map(|(at, _, lines)| (100 * turn + at, lines)));
    }
    let answers = heard.iter().filter(|(_, lines)| lines.contains(&format!("={A_LINE}")));
    let times: Vec<u128> = answers.map(|(at, _)| *at).collect();
    assert_eq!(times, [0, 1000, 2000, 3000, 4000, 5000]);
}

#[test]
fn what_is_known_is_not_said_again() {
    let mut lab = Lab::with_printer();
    let ask = |lab: &mut Lab, ttl: u32| {
        let known = [ptr("_ipp._tcp.local.", ttl, INSTANCE)];
        let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
        lab.send(&Outgoing { questions: &questions, answers: &known, ..Outgoing::default() });
    };
    ask(&mut lab, 4500);
    ask(&mut lab, 2250);
    lab.expect_nothing(2000);
    // Not for long enough.
    ask(&mut lab, 2249);
    assert_eq!(lab.run(2000).len(), 1);
    // Something else.
    let known =
        [ptr("_ipp._tcp.local.", 4500, "Other._ipp._tcp.local."), a("printer.local.", 120, [1, 2, 3, 4])];
    let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
    lab.send(&Outgoing { questions: &questions, answers: &known, ..Outgoing::default() });
    assert_eq!(lab.run(2000).len(), 1);
}

#[test]
fn known_answers_may_go_on_in_another_message() {
    let mut lab = Lab::new();
    for (number, name) in ["One", "Two", "Three"].iter().enumerate() {
        lab.publish(&format!("198.18.7.{number}:631"), &printer(name, &format!("p{number}"), "x"));
    }
    lab.run(10_000);
    let known = |name: &str| ptr("_ipp._tcp.local.", 4000, &format!("{name}._ipp._tcp.local."));
    let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
    let (one, two, three) = ([known("One")], [known("Two")], [known("Three")]);
    let first =
        Outgoing { flags: flags::TRUNCATED, questions: &questions, answers: &one, ..Outgoing::default() };
    lab.send(&first);
    lab.expect_nothing(300);
    lab.send(&Outgoing { flags: flags::TRUNCATED, answers: &two, ..Outgoing::default() });
    lab.expect_nothing(300);
    // Somebody else's knowledge does not count.
    let other = Station { address: SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 3), PORT), ..guest() };
    let message = Outgoing { answers: &three, ..Outgoing::default() };
    lab.send_from(other, &message.write(9000, 9000).unwrap().bytes);
    let heard = lab.run(2000);
    assert_eq!(heard.len(), 1);
    let answers: Vec<&String> = heard[0].2.iter().filter(|line| line.starts_with('=')).collect();
    assert_eq!(answers, ["= 4500 _ipp._tcp.local. PTR Three._ipp._tcp.local."]);
    // All of it is known in the end.
    lab.send(&first);
    let rest = [known("Two"), known("Three")];
    lab.send(&Outgoing { answers: &rest, ..Outgoing::default() });
    lab.expect_nothing(3000);
    // It cannot be put off for ever, and not by many.
    lab.send(&first);
    let mut waited = 0;
    while lab.run(100).is_empty() {
        lab.send(&Outgoing { flags: flags::TRUNCATED, answers: &one, ..Outgoing::default() });
        waited += 1;
        assert!(waited < 30);
    }
    lab.run(2000);
    for _ in 0..100 {
        lab.send(&first);
    }
    assert_eq!(lab.responder.deferred.len(), 16);
    lab.run(5000);
}

#[test]
fn who_has_just_been_told_by_another_is_not_told_again() {
    let mut lab = Lab::with_printer();
    lab.ask(&[question("_ipp._tcp.local.", RecordType::PTR)]);
    lab.say(&[ptr("_ipp._tcp.local.", 4500, INSTANCE)]);
    lab.expect_nothing(2000);
}

#[test]
fn who_says_it_for_less_long_is_put_right() {
    let mut lab = Lab::with_printer();
    lab.say(&[a("printer.local.", 10, [198, 18, 7, 9])]);
    let heard = lab.run(1000);
    assert!(lines(&heard).contains(&format!("={A_LINE}").as_str()));
}

#[test]
fn who_wants_it_alone_gets_it_alone_if_all_have_heard_it_lately() {
    let mut lab = Lab::with_printer();
    lab.ask(&[alone("printer.local.", RecordType::A)]);
    let heard = lab.hear();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, Destination::One(guest()));
    assert_eq!(heard[0].2, [format!("={A_LINE}"), "+! 120 printer.local. NSEC".to_owned()]);
    // A quarter of its TTL later all are reminded.
    lab.run(31_000);
    lab.ask(&[alone("printer.local.", RecordType::A)]);
    let heard = lab.hear();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, Destination::Everybody);
    // What is asked of one of our addresses is answered from there.
    let asked = Station { local: Ipv4Addr::new(198, 18, 7, 9), multicast: false, ..guest() };
    let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
    let message = Outgoing { questions: &questions, ..Outgoing::default() };
    lab.send_from(asked, &message.write(9000, 9000).unwrap().bytes);
    let heard = lab.hear();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1, Destination::One(asked));
}

#[test]
fn an_ordinary_resolver_is_answered_as_one() {
    let mut lab = Lab::with_printer();
    let resolver = Station { address: SocketAddrV4::new(*GUEST.ip(), 40_000), ..guest() };
    let questions = [alone("printer.local.", RecordType::A)];
    let message = Outgoing { id: 0x1234, questions: &questions, ..Outgoing::default() };
    lab.send_from(resolver, &message.write(9000, 9000).unwrap().bytes);
    let Datagram { to, message } = lab.responder.poll_transmit().unwrap();
    assert_eq!(to, Destination::One(resolver));
    assert_eq!(message[..4], [0x12, 0x34, 0x84, 0]);
    assert_eq!(text(&message), ["? printer.local. A", "= 10 printer.local. A 198.18.7.9"]);
    let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
    let message = Outgoing { id: 1, questions: &questions, ..Outgoing::default() };
    lab.send_from(resolver, &message.write(9000, 9000).unwrap().bytes);
    let heard = lab.hear();
    assert_eq!(heard.len(), 1, "at once, as nobody else is asked");
    assert!(heard[0].2.contains(&"+ 10 Office._ipp._tcp.local. TXT rp=ipp/print".to_owned()));
    assert!(!heard[0].2.iter().any(|line| line.contains("NSEC")));
    // Nothing is said of what there is not.
    let questions = [question("printer.local.", RecordType::AAAA), question("nobody.local.", RecordType::A)];
    let message = Outgoing { id: 1, questions: &questions, ..Outgoing::default() };
    lab.send_from(resolver, &message.write(9000, 9000).unwrap().bytes);
    lab.expect_nothing(2000);
}

#[test]
fn an_answer_that_is_too_long_for_a_resolver_says_so() {
    let mut lab = Lab::new();
    for number in 0..60 {
        lab.publish(
            &format!("198.18.8.{number}:631"),
            &printer(&format!("Printer {number} {}", "x".repeat(40)), "p", "x"),
        );
    }
    lab.run(10_000);
    let resolver = Station { address: SocketAddrV4::new(*GUEST.ip(), 40_000), ..guest() };
    let questions = [question("_ipp._tcp.local.", RecordType::PTR)];
    let message = Outgoing { id: 1, questions: &questions, ..Outgoing::default() };
    lab.send_from(resolver, &message.write(9000, 9000).unwrap().bytes);
    let Datagram { message, .. } = lab.responder.poll_transmit().unwrap();
    assert_eq!(message[2..4], [0x86, 0]);
    // Who speaks multicast DNS gets all of it.
    lab.ask(&questions);
    let heard = lab.run(1000);
    let answers = heard.iter().flat_map(|(_, _, lines)| lines).filter(|line| line.starts_with('=')).count();
    assert!(heard.len() > 1 && answers == 60, "{} {answers}", heard.len());
}

// Section 10: going and changing.

#[test]
fn what_goes_is_taken_back() {
    let mut lab = Lab::with_printer();
    lab.withdraw(PRINTER);
    let heard = lab.run(5000);
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].0, 0);
    let expected: Vec<String> =
        EVERYTHING.iter().map(|line| line.replace(" 4500 ", " 0 ").replace(" 120 ", " 0 ")).collect();
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(lines(&heard), expected);
    lab.ask(&[question("printer.local.", RecordType::A), question("_ipp._tcp.local.", RecordType::PTR)]);
    lab.expect_nothing(5000);
    assert!(
        lab.responder.claims.is_empty()
            && lab.responder.claimed.is_empty()
            && lab.responder.timers.is_empty()
    );
}

#[test]
fn what_goes_before_it_was_told_of_goes_silently() {
    let mut lab = Lab::new();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.run(600);
    lab.withdraw(PRINTER);
    lab.expect_nothing(5000);
}

#[test]
fn of_a_device_that_stays_only_the_service_is_taken_back() {
    let mut lab = Lab::with_printer();
    lab.publish("198.18.7.9:8631", &printer("Second", "printer", "x"));
    lab.run(10_000);
    lab.withdraw("198.18.7.9:8631");
    assert_eq!(
        lines(&lab.run(5000)),
        [
            "= 0 _ipp._tcp.local. PTR Second._ipp._tcp.local.",
            "= 0 _universal._sub._ipp._tcp.local. PTR Second._ipp._tcp.local.",
            "=! 0 Second._ipp._tcp.local. NSEC",
            "=! 0 Second._ipp._tcp.local. SRV 0 0 8631 printer.local.",
            "=! 0 Second._ipp._tcp.local. TXT rp=x",
        ]
    );
}

#[test]
fn what_comes_back_in_the_same_moment_makes_no_noise() {
    let mut lab = Lab::with_printer();
    lab.withdraw(PRINTER);
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/print"));
    lab.expect_nothing(5000);
}

#[test]
fn what_changes_is_announced_not_more_than_once_a_second() {
    let mut lab = Lab::with_printer();
    lab.publish(PRINTER, &printer("Office", "printer", "ipp/other"));
    let heard = lab.run(5000);
    assert_eq!(heard.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [0, 1000]);
    assert!(heard[0].2.contains(&"=! 4500 Office._ipp._tcp.local. TXT rp=ipp/other".to_owned()));
    assert!(!lines(&heard).iter().any(|line| line.contains("printer.local. A")), "the host is as it was");
    assert!(!lines(&heard).iter().any(|line| line.starts_with("=! 0")), "it makes others forget by itself");
    let mut heard = Vec::new();
    for change in 0..100 {
        lab.publish(PRINTER, &printer("Office", "printer", &change.to_string()));
        heard.extend(lab.run(100));
    }
    assert!((10..=12).contains(&heard.len()), "{}", heard.len());
}

#[test]
fn a_guest_that_comes_is_told_of_everything() {
    let mut lab = Lab::with_printer();
    lab.responder.link_lost();
    lab.responder.guest_came(lab.now);
    let heard = lab.run(5000);
    assert_eq!(heard.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [0, 1000]);
    assert_eq!(lines(&heard[..1].to_vec()), EVERYTHING);
    // One that comes all the time is told once a second.
    let mut heard = Vec::new();
    for _ in 0..100 {
        lab.responder.guest_came(lab.now);
        heard.extend(lab.run(20));
    }
    assert!((2..=3).contains(&heard.len()), "{}", heard.len());
}

#[test]
fn a_guest_that_went_gets_nothing_that_was_meant_for_it() {
    let mut lab = Lab::with_printer();
    lab.ask(&[question("_ipp._tcp.local.", RecordType::PTR), question("printer.local.", RecordType::A)]);
    lab.responder.link_lost();
    lab.expect_nothing(5000);
}

#[test]
fn in_the_end_everything_is_taken_back() {
    let mut lab = Lab::with_printer();
    lab.publish("198.18.7.10:631", &printer("Late", "late", "x"));
    lab.run(300);
    lab.responder.say_goodbye();
    let heard = lab.hear();
    assert_eq!(heard.len(), 1);
    assert!(heard[0].2.iter().all(|line| line.starts_with("= 0 ") || line.starts_with("=! 0 ")));
    assert_eq!(heard[0].2.len(), EVERYTHING.len(), "nothing of what nobody knows");
    lab.expect_nothing(5000);
}

// Hostile guests.

#[test]
fn a_flood_of_questions_is_answered_at_a_limited_rate() {
    let mut lab = Lab::with_printer();
    let mut sent = 0;
    for _ in 0..10_000 {
        lab.ask(&[alone("_ipp._tcp.local.", RecordType::PTR)]);
        sent += lab.hear().len() + lab.run(1).len();
    }
    // 10 s: what may come at once, and 50 a second.
    assert!((500..=256 + 520).contains(&sent), "{sent}");
    assert!(lab.counters.mdns_withheld > 9000);
    assert!(lab.responder.queue.is_empty());
}

#[test]
fn one_question_of_a_large_zone_does_not_flood() {
    let mut lab = Lab::new();
    for number in 0..1000u32 {
        let address = Ipv4Addr::from_bits(0xc612_1000 + number);
        lab.publish(
            &format!("{address}:631"),
            &printer(&format!("P{number}"), &format!("p{number}"), &"x".repeat(200)),
        );
    }
    lab.run(20_000);
    let mut sent = 0;
    for _ in 0..1000 {
        lab.ask(&[alone("_ipp._tcp.local.", RecordType::PTR), question("_ipp._tcp.local.", RecordType::PTR)]);
        sent += lab.hear().len() + lab.run(1).len();
    }
    assert!(sent <= 256 + 110, "{sent}");
}

#[test]
fn what_is_no_message_is_counted() {
    let mut lab = Lab::with_printer();
    for message in [&b""[..], b"mdns", &[0; 11], &[0xff; 12], &[0xff; 600], &[0; 9000]] {
        lab.send_from(guest(), message);
    }
    assert_eq!(lab.counters.mdns_malformed, 6);
    // An empty query, an empty answer, other kinds of queries, errors.
    let questions = [question("printer.local.", RecordType::A)];
    for flags in [0, flags::RESPONSE] {
        lab.send(&Outgoing { flags, ..Outgoing::default() });
    }
    for flags in [0x0800, 0x2800, 0x7800, 1, 5] {
        lab.send(&Outgoing { flags, questions: &questions, ..Outgoing::default() });
    }
    lab.expect_nothing(5000);
    assert_eq!(lab.counters.mdns_malformed, 6);
}

#[derive(Debug, Clone)]
enum Step {
    Publish(u8, u8),
    Withdraw(u8),
    Message(Vec<u8>),
    /// Flags, questions, records; from port 5353.
    Sensible(u16, Vec<(u8, u8)>, Vec<(u8, u8, u8)>, bool),
    Came,
    Lost,
    Wait(u64),
}

const NAMES: [&str; 7] = [
    "printer.local.",
    "printer-2.local.",
    "_ipp._tcp.local.",
    "Office._ipp._tcp.local.",
    "_services._dns-sd._udp.local.",
    "1.7.18.198.in-addr.arpa.",
    "x.",
];

fn step() -> impl Strategy<Value = Step> {
    let kinds = || 0u8..5;
    prop_oneof![
        3 => (1u8..4, 0u8..3).prop_map(|(host, variant)| Step::Publish(host, variant)),
        1 => (1u8..4).prop_map(Step::Withdraw),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Step::Message),
        6 => (
            prop_oneof![Just(0), Just(flags::TRUNCATED), Just(flags::RESPONSE)],
            proptest::collection::vec((0u8..7, kinds()), 0..4),
            proptest::collection::vec((0u8..7, kinds(), 0u8..3), 0..4),
            any::<bool>(),
        )
            .prop_map(|(flags, questions, records, port)| Step::Sensible(flags, questions, records, port)),
        1 => Just(Step::Came),
        1 => Just(Step::Lost),
        4 => (0u64..1500).prop_map(Step::Wait),
    ]
}

fn kind(number: u8) -> RecordType {
    [RecordType::A, RecordType::PTR, RecordType::SRV, RecordType::ANY, RecordType::AAAA][usize::from(number)]
}

proptest! {
    #[test]
    fn whatever_a_guest_says_the_responder_is_sound_and_comes_to_rest(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut lab = Lab::new();
        for step in steps {
            match step {
                Step::Publish(host, variant) => {
                    let (name, path) = if variant == 0 { ("Other", "a") } else { ("Office", if variant == 1 { "a" } else { "b" }) };
                    lab.publish(&format!("198.18.7.{host}:631"), &printer(name, "printer", path));
                }
                Step::Withdraw(host) => lab.withdraw(&format!("198.18.7.{host}:631")),
                Step::Message(bytes) => lab.send_from(guest(), &bytes),
                Step::Sensible(flags, questions, records, port) => {
                    let questions: Vec<Query> =
                        questions.iter().map(|(name, of)| question(NAMES[usize::from(*name)], kind(*of))).collect();
                    let records: Vec<Record> = records
                        .iter()
                        .map(|(name, of, data)| {
                            let name = NAMES[usize::from(*name)];
                            match of {
                                0 => a(name, 120, [198, 18, 7, *data]),
                                1 => ptr(name, 4500, NAMES[usize::from(*data) + 2]),
                                2 => srv(name, u32::from(*data) * 100, 631, "printer.local."),
                                _ => Record::from_rdata(n(name), 4500, RData::TXT(TXT::new(vec!["rp=a".into()]))),
                            }
                        })
                        .collect();
                    let mut message = Outgoing { flags, questions: &questions, ..Outgoing::default() };
                    if records.len() == 1 { message.authorities = &records } else { message.answers = &records }
                    let address = SocketAddrV4::new(*GUEST.ip(), if port { PORT } else { 4000 });
                    let bytes = message.write(9000, 9000).unwrap().bytes;
                    lab.send_from(Station { address, ..guest() }, &bytes);
                }
                Step::Came => lab.responder.guest_came(lab.now),
                Step::Lost => lab.responder.link_lost(),
                Step::Wait(milliseconds) => {
                    lab.run(milliseconds);
                }
            }
            let responder = &lab.responder;
            let timers = responder.timers.iter().all(|(_, owner)| responder.claims.contains_key(owner));
            prop_assert!(timers && responder.timers.len() <= responder.claims.len());
            prop_assert!(responder.claimed.len() <= responder.claims.len());
            let pending = responder.pending.iter().all(|(due, id)| responder.held.get(*id).unwrap().pending == Some(*due));
            prop_assert!(pending);
        }
        lab.run(60_000);
        lab.expect_nothing(1_000_000);
        // And it still does its work: every host has a name that nobody took.
        let hosts: Vec<String> = lab.zone.hosts().map(|(_, host)| host.name().to_owned()).collect();
        for host in hosts {
            lab.run(2000);
            lab.ask(&[question(&format!("{host}.local."), RecordType::A)]);
            prop_assert_eq!(lab.hear().len(), 1);
        }
    }
}
