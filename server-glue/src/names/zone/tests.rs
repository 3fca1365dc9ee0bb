use std::net::Ipv4Addr;

use proptest::prelude::*;
use spice_proto::service_info::HostName;

use super::*;

fn at(host: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(198, 18, 1, host), port).into()
}

fn advert(kind: &str, instance: &str) -> Advert {
    let mut txt = Txt::default();
    txt.push("rp", Some("ipp/print")).unwrap();
    Advert {
        kind: ServiceType::new(kind).unwrap(),
        instance: Label::new(instance).unwrap(),
        subtypes: Vec::new(),
        txt,
    }
}

fn info(host: Option<&str>, adverts: &[(&str, &str)]) -> ServiceInfo {
    let host = host.map(|host| HostName::new(host).unwrap());
    let adverts = adverts.iter().map(|(kind, instance)| advert(kind, instance)).collect();
    ServiceInfo::new(None, host, adverts).unwrap()
}

fn host(zone: &Zone, number: u8) -> &str {
    zone.host(at(number, 0).ip()).unwrap().name()
}

fn instances(zone: &Zone, at: SocketAddr) -> Vec<(&str, &str, u16)> {
    let (_, service) = zone.services().find(|(other, _)| *other == at).unwrap();
    let all = service.instances().iter();
    all.map(|instance| (instance.kind().as_str(), instance.name().as_str(), instance.port(at.port())))
        .collect()
}

#[test]
fn a_host_has_its_own_local_name_or_one_made_of_its_devices() {
    let mut zone = Zone::new();
    zone.publish(at(1, 631), "Office", Some(&info(Some("EPSON12.local"), &[])));
    zone.publish(at(2, 631), "Café — 2nd floor!", Some(&info(Some("printer.example.com"), &[])));
    zone.publish(at(3, 80), "???", None);
    zone.publish(at(4, 80), &"x".repeat(80), None);
    assert_eq!(host(&zone, 1), "EPSON12");
    assert_eq!(host(&zone, 2), "caf-2nd-floor");
    assert_eq!(host(&zone, 3), "device");
    assert_eq!(host(&zone, 4), "x".repeat(63));
    assert_eq!(zone.address_of("epson12"), Some(at(1, 0).ip()));
    assert_eq!(zone.address_of("epson1"), None);
    assert!(zone.host(at(1, 0).ip()).unwrap().is_described());
    assert!(!zone.host(at(3, 0).ip()).unwrap().is_described());
}

#[test]
fn a_name_belongs_to_who_came_first_and_stays_with_who_has_it() {
    let mut zone = Zone::new();
    let info = info(Some("printer.local"), &[("_ipp._tcp", "Printer"), ("_ipps._tcp", "Printer")]);
    zone.publish(at(1, 631), "a", Some(&info));
    zone.publish(at(2, 631), "b", Some(&info));
    zone.publish(at(3, 631), "PRINTER", None);
    assert_eq!((host(&zone, 1), host(&zone, 2), host(&zone, 3)), ("printer", "printer-2", "printer-3"));
    assert_eq!(
        instances(&zone, at(2, 631)),
        [("_ipp._tcp", "Printer (2)", 631), ("_ipps._tcp", "Printer (2)", 631)]
    );
    zone.withdraw(at(1, 631));
    assert_eq!(host(&zone, 2), "printer-2", "nobody is renamed because somebody left");
    assert_eq!(instances(&zone, at(2, 631))[0].1, "Printer (2)");
    zone.publish(at(4, 631), "c", Some(&info));
    assert_eq!(host(&zone, 4), "printer", "the free name is given again");
    assert_eq!(instances(&zone, at(4, 631))[0].1, "Printer");
}

#[test]
fn a_devices_services_have_one_host_and_one_instance_name() {
    let mut zone = Zone::new();
    zone.publish(at(1, 631), "p", Some(&info(Some("p.local"), &[("_ipp._tcp", "P")])));
    zone.publish(at(2, 631), "q", Some(&info(Some("q.local"), &[("_ipp._tcp", "p")])));
    zone.publish(at(2, 9100), "q", Some(&info(Some("other.local"), &[("_pdl-datastream._tcp", "p")])));
    assert_eq!(host(&zone, 2), "q");
    assert_eq!(instances(&zone, at(2, 631)), [("_ipp._tcp", "p (2)", 631)]);
    assert_eq!(instances(&zone, at(2, 9100)), [("_pdl-datastream._tcp", "p (2)", 9100)]);
    // Also when the name of the first would be free again.
    zone.withdraw(at(1, 631));
    zone.publish(at(2, 443), "q", Some(&info(None, &[("_ipps._tcp", "p")])));
    assert_eq!(instances(&zone, at(2, 443)), [("_ipps._tcp", "p (2)", 443)]);
    // The first that knows decides on the host's name.
    zone.withdraw(at(2, 631));
    assert_eq!(host(&zone, 2), "other");
    zone.withdraw(at(2, 9100));
    assert_eq!(host(&zone, 2), "q");
    zone.withdraw(at(2, 443));
    assert!(zone.host(at(2, 0).ip()).is_none());
    assert_eq!(zone.address_of("q"), None);
}

#[test]
fn an_update_keeps_names_and_says_whether_anything_changed() {
    let mut zone = Zone::new();
    let plain = info(Some("p.local"), &[("_ipp._tcp", "P")]);
    zone.publish(at(1, 631), "p", Some(&plain));
    zone.publish(at(2, 631), "p", Some(&plain));
    let before = zone.generation();
    zone.publish(at(2, 631), "p", Some(&plain));
    assert_eq!(zone.generation(), before);
    zone.withdraw(at(1, 631));
    zone.publish(at(2, 631), "p", Some(&info(Some("p.local"), &[("_ipp._tcp", "P"), ("_http._tcp", "P")])));
    assert!(zone.generation() > before);
    assert_eq!(host(&zone, 2), "p-2");
    assert_eq!(instances(&zone, at(2, 631)), [("_ipp._tcp", "P (2)", 631), ("_http._tcp", "P (2)", 631)]);
}

#[test]
fn who_lost_a_name_gets_the_next_one() {
    let mut zone = Zone::new();
    let info = info(Some("p.local"), &[("_ipp._tcp", "P"), ("_ipps._tcp", "P")]);
    zone.publish(at(1, 631), "p", Some(&info));
    zone.rename_host(at(1, 0).ip());
    assert_eq!(host(&zone, 1), "p-2");
    zone.rename_host(at(1, 0).ip());
    assert_eq!(host(&zone, 1), "p-3");
    let (ipp, p) = (ServiceType::new("_ipp._tcp").unwrap(), Label::new("P").unwrap());
    zone.rename_instance(at(1, 631), &ipp, &p);
    assert_eq!(instances(&zone, at(1, 631)), [("_ipp._tcp", "P (2)", 631), ("_ipps._tcp", "P", 631)]);
    zone.rename_instance(at(1, 631), &ServiceType::new("_ipps._tcp").unwrap(), &p);
    assert_eq!(instances(&zone, at(1, 631)), [("_ipp._tcp", "P (2)", 631), ("_ipps._tcp", "P (2)", 631)]);
    // What is not there is not renamed.
    let before = zone.generation();
    zone.rename_instance(at(1, 631), &ipp, &p);
    zone.rename_instance(at(9, 631), &ipp, &p);
    zone.rename_host(at(9, 0).ip());
    assert_eq!(zone.generation(), before);
}

#[test]
fn names_that_programs_trust_unasked_are_nobodys() {
    let mut zone = Zone::new();
    for (number, name) in (1..).zip(["wpad", "WPAD", "localhost", "isatap"]) {
        zone.publish(at(number, 80), "x", Some(&info(Some(&format!("{name}.local")), &[])));
    }
    assert_eq!((host(&zone, 1), host(&zone, 2)), ("wpad-2", "WPAD-3"));
    assert_eq!((host(&zone, 3), host(&zone, 4)), ("localhost-2", "isatap-2"));
    zone.publish(at(9, 80), "local", None);
    assert_eq!(host(&zone, 9), "local-2");
    for (number, name) in (20..).zip(["_ipp._tcp.local", "_services._dns-sd._udp.local", "a._sub.local"]) {
        zone.publish(at(number, 80), "Innocent", Some(&info(Some(name), &[])));
        assert!(host(&zone, number).starts_with("innocent"), "{name}");
    }
}

#[test]
fn numbers_are_put_where_they_fit() {
    assert_eq!(numbered_host("nas.lab", 2), "nas-2.lab");
    assert_eq!(numbered_host(&"x".repeat(63), 10), format!("{}-10", "x".repeat(60)));
    assert_eq!(numbered_instance("Büro", 3), "Büro (3)");
    let long = "ü".repeat(31);
    assert_eq!(numbered_instance(&long, 2), format!("{} (2)", "ü".repeat(29)), "whole characters");
}

#[test]
fn a_printer_without_lpd_keeps_its_place_among_the_lpd_printers() {
    let mut zone = Zone::new();
    let mut flagship = advert("_printer._tcp", "P");
    flagship.txt = Txt::default();
    let both = vec![advert("_ipp._tcp", "P"), flagship.clone()];
    zone.publish(at(1, 631), "p", Some(&ServiceInfo::new(None, None, both).unwrap()));
    assert_eq!(instances(&zone, at(1, 631)), [("_ipp._tcp", "P", 631), ("_printer._tcp", "P", 0)]);
    // A real one.
    zone.publish(at(1, 515), "p", Some(&info(None, &[("_printer._tcp", "P")])));
    assert_eq!(instances(&zone, at(1, 515))[0].2, 515);
    zone.publish(at(2, 515), "q", Some(&ServiceInfo::new(None, None, vec![flagship]).unwrap()));
    assert_eq!(instances(&zone, at(2, 515))[0].2, 515);
}

#[test]
fn one_service_is_not_advertised_twice_alike() {
    let mut zone = Zone::new();
    zone.publish(
        at(1, 631),
        "p",
        Some(&info(None, &[("_ipp._tcp", "P"), ("_ipp._tcp", "p"), ("_ipp._tcp", "Q")])),
    );
    assert_eq!(instances(&zone, at(1, 631)), [("_ipp._tcp", "P", 631), ("_ipp._tcp", "Q", 631)]);
    zone.publish(at(1, 632), "p", Some(&info(None, &[("_ipp._tcp", "P")])));
    assert_eq!(instances(&zone, at(1, 632)), [("_ipp._tcp", "P (2)", 632)]);
}

#[test]
fn no_more_than_so_many_instances_are_named() {
    let mut zone = Zone::new();
    let eight: Vec<(String, String)> = (0..8).map(|n| ("_ipp._tcp".to_owned(), format!("P{n}"))).collect();
    let eight: Vec<(&str, &str)> = eight.iter().map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
    for number in 0..=MAX_INSTANCES / 8 {
        let address = Ipv4Addr::from_bits(0xc612_0100 + number as u32);
        zone.publish((address, 631).into(), "p", Some(&info(None, &eight)));
    }
    let count = |zone: &Zone| zone.services().map(|(_, service)| service.instances().len()).sum::<usize>();
    assert_eq!(count(&zone), MAX_INSTANCES);
    let first = zone.services().next().unwrap().0;
    zone.withdraw(first);
    assert_eq!(count(&zone), MAX_INSTANCES - 8);
    zone.publish(first, "p", Some(&info(None, &eight)));
    assert_eq!(count(&zone), MAX_INSTANCES);
}

#[derive(Debug, Clone)]
enum Step {
    Publish(u8, u16, usize, Option<(usize, Vec<usize>)>),
    Withdraw(u8, u16),
    RenameHost(u8),
    RenameInstances(u8, u16),
}

const TEXTS: [&str; 6] = ["p", "P", "p-2", "p (2)", "wpad", "ü"];

fn step() -> impl Strategy<Value = Step> {
    let info = proptest::option::of((0..TEXTS.len(), proptest::collection::vec(0..TEXTS.len() * 2, 0..4)));
    prop_oneof![
        4 => (1u8..5, 1u16..4, 0..TEXTS.len(), info).prop_map(|(host, port, name, info)| Step::Publish(host, port, name, info)),
        2 => (1u8..5, 1u16..4).prop_map(|(host, port)| Step::Withdraw(host, port)),
        1 => (1u8..5).prop_map(Step::RenameHost),
        1 => (1u8..5, 1u16..4).prop_map(|(host, port)| Step::RenameInstances(host, port)),
    ]
}

proptest! {
    #[test]
    fn names_are_unique_whatever_happens(steps in proptest::collection::vec(step(), 0..40)) {
        let mut zone = Zone::new();
        for step in steps {
            match step {
                Step::Publish(number, port, name, told) => {
                    let told = told.map(|(name, adverts)| {
                        let host = format!("{}.local", TEXTS[name].replace(['(', ')', ' '], "-"));
                        let kinds = ["_ipp._tcp", "_http._tcp"];
                        let adverts: Vec<_> =
                            adverts.iter().map(|advert| (kinds[advert % 2], TEXTS[advert / 2])).collect();
                        info(Some(&host), &adverts)
                    });
                    zone.publish(at(number, port), TEXTS[name], told.as_ref());
                }
                Step::Withdraw(number, port) => zone.withdraw(at(number, port)),
                Step::RenameHost(number) => zone.rename_host(at(number, 0).ip()),
                Step::RenameInstances(number, port) => {
                    let of = |(other, service): (SocketAddr, &Service)| {
                        (other == at(number, port)).then(|| service.instances().to_vec())
                    };
                    let instances = zone.services().find_map(of).unwrap_or_default();
                    for instance in instances {
                        zone.rename_instance(at(number, port), instance.kind(), instance.name());
                    }
                }
            }
            let hosts: Vec<String> = zone.hosts().map(|(_, host)| host.name().to_ascii_lowercase()).collect();
            let different: BTreeSet<&String> = hosts.iter().collect();
            prop_assert_eq!(different.len(), hosts.len());
            prop_assert_eq!(zone.by_host.len(), hosts.len());
            for (address, host) in zone.hosts() {
                prop_assert_eq!(zone.address_of(host.name()), Some(address));
                prop_assert!(!RESERVED_HOSTS.contains(&host.name().to_ascii_lowercase().as_str()));
            }
            let mut names = BTreeSet::new();
            let mut count = 0;
            for (_, service) in zone.services() {
                for instance in service.instances() {
                    let name = instance.name().as_str().to_ascii_lowercase();
                    prop_assert!(names.insert((instance.kind().clone(), name)));
                    count += 1;
                }
            }
            prop_assert_eq!(count, zone.instances);
            let addresses: BTreeSet<IpAddr> = zone.services().map(|(at, _)| at.ip()).collect();
            prop_assert_eq!(addresses, zone.hosts().map(|(address, _)| address).collect::<BTreeSet<_>>());
        }
    }
}
