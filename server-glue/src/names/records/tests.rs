use std::net::Ipv4Addr;

use hickory_proto::serialize::binary::{BinDecodable, BinEncodable, BinEncoder};
use spice_proto::service_info::{Advert, HostName, ServiceInfo};

use super::*;

const PRINTER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 7, 9));

/// A name as `dig` writes it.
fn n(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn zone() -> Zone {
    let mut txt = Txt::default();
    txt.push("rp", Some("ipp/print")).unwrap();
    txt.push("Bind", None).unwrap();
    let labels = |labels: &[&str]| labels.iter().map(|label| Label::new(label).unwrap()).collect();
    let advert = |kind: &str, subtypes: &[&str], txt: Txt| Advert {
        kind: ServiceType::new(kind).unwrap(),
        instance: Label::new("Büro 2. Stock").unwrap(),
        subtypes: labels(subtypes),
        txt,
    };
    let adverts = vec![
        advert("_ipp._tcp", &["_universal", "_print", "_Print"], txt),
        advert("_ipps._tcp", &[], Txt::default()),
    ];
    let info = ServiceInfo::new(None, Some(HostName::new("Printer.local").unwrap()), adverts).unwrap();
    let mut zone = Zone::new();
    zone.publish((PRINTER, 631).into(), "Office", Some(&info));
    zone.publish((Ipv4Addr::new(198, 18, 7, 10), 22).into(), "nas", None);
    zone
}

/// What is found, as text.
fn look(records: &Records, name: &str, kind: RecordType) -> Vec<String> {
    match records.lookup(&n(name), kind) {
        Found::Records(found) => {
            found.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect()
        }
        Found::NoData => vec!["no data".to_owned()],
        Found::NoSuchName => vec!["no such name".to_owned()],
    }
}

#[test]
fn multicast_tells_of_hosts_types_and_instances() {
    let records = Records::of(&zone(), &Origin::multicast());
    let instance = name(["Büro 2. Stock", "_ipp", "_tcp"], &local()).unwrap();
    let ptr = vec![format!("4500 {instance}")];
    assert_eq!(look(&records, "_ipp._tcp.local.", RecordType::PTR), ptr);
    assert_eq!(look(&records, "_IPP._tcp.LOCAL.", RecordType::PTR), ptr, "case does not matter");
    assert_eq!(look(&records, "_universal._sub._ipp._tcp.local.", RecordType::PTR), ptr);
    assert_eq!(look(&records, "_print._sub._ipp._tcp.local.", RecordType::PTR), ptr, "once");
    let types = look(&records, "_services._dns-sd._udp.local.", RecordType::PTR);
    assert_eq!(types, ["4500 _ipp._tcp.local.", "4500 _ipps._tcp.local."]);
    let Found::Records(found) = records.lookup(&instance, RecordType::SRV) else { panic!() };
    assert_eq!(format!("{} {}", found[0].ttl, found[0].data), "120 0 0 631 Printer.local.");
    let Found::Records(found) = records.lookup(&instance, RecordType::TXT) else { panic!() };
    let RData::TXT(txt) = &found[0].data else { panic!() };
    assert_eq!(txt.txt_data, [b"rp=ipp/print"[..].into(), b"Bind"[..].into()].into());
    assert_eq!(look(&records, "printer.local.", RecordType::A), ["120 198.18.7.9"]);
    assert_eq!(look(&records, "9.7.18.198.in-addr.arpa.", RecordType::PTR), ["120 Printer.local."]);
}

#[test]
fn links_to_a_host_follow_its_name() {
    let mut txt = Txt::default();
    for (key, value) in [
        ("adminurl", "https://PRINTER.local:631/admin"),
        ("more", "http://printer.local"),
        ("other", "http://printer.local.example/"),
        ("longer", "http://my-printer.local/"),
        ("note", "printer.local"),
    ] {
        txt.push(key, Some(value)).unwrap();
    }
    let longest = format!("http://printer.local/{}", "x".repeat(255 - "long=http://printer.local/".len()));
    txt.push("long", Some(&longest)).unwrap();
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new("Office").unwrap(),
        subtypes: Vec::new(),
        txt,
    };
    let info = ServiceInfo::new(None, Some(HostName::new("printer.local").unwrap()), vec![advert]).unwrap();
    let mut zone = Zone::new();
    zone.publish((PRINTER, 631).into(), "Office", Some(&info));
    let said = |zone: &Zone| -> Vec<String> {
        let records = Records::of(zone, &Origin::multicast());
        let Found::Records(found) = records.lookup(&n("Office._ipp._tcp.local."), RecordType::TXT) else {
            panic!()
        };
        let RData::TXT(txt) = &found[0].data else { panic!() };
        txt.txt_data.iter().map(|entry| String::from_utf8(entry.to_vec()).unwrap()).collect()
    };
    let before = said(&zone);
    assert_eq!((before.len(), &*before[0]), (6, "adminurl=https://PRINTER.local:631/admin"));
    zone.rename_host(PRINTER);
    let after = [
        "adminurl=https://printer-2.local:631/admin",
        "more=http://printer-2.local",
        "other=http://printer.local.example/",
        "longer=http://my-printer.local/",
        "note=printer.local",
    ];
    assert_eq!(said(&zone), after, "what does not fit any more is left out");
}

#[test]
fn multicast_says_what_there_is_not() {
    let records = Records::of(&zone(), &Origin::multicast());
    assert_eq!(look(&records, "printer.local.", RecordType::AAAA), ["no data"]);
    assert_eq!(look(&records, "_tcp.local.", RecordType::PTR), ["no data"], "there are names under it");
    assert_eq!(look(&records, "rinter.local.", RecordType::A), ["no such name"]);
    assert_eq!(look(&records, "_ftp._tcp.local.", RecordType::PTR), ["no such name"]);
    assert_eq!(look(&records, "nas.local.", RecordType::A), ["no such name"], "said nothing of itself");
    assert_eq!(look(&records, "10.7.18.198.in-addr.arpa.", RecordType::PTR), ["no such name"]);
    let Found::Records(found) = records.lookup(&n("printer.local."), RecordType::NSEC) else { panic!() };
    let mut bytes = Vec::new();
    found[0].data.emit(&mut BinEncoder::new(&mut bytes)).unwrap();
    // Its own name, block 0, one byte of bitmap: type 1.
    assert_eq!(bytes, b"\x07Printer\x05local\0\0\x01\x40");
}

#[test]
fn nsec_lists_what_an_instance_has() {
    // TXT is 16, SRV is 33.
    assert_eq!(nsec(&n("a."), &[RecordType::TXT, RecordType::SRV]), b"\x01a\0\0\x05\0\0\x80\0\x40");
    assert_eq!(nsec(&n("a."), &[RecordType::PTR]), b"\x01a\0\0\x02\0\x08");
}

#[test]
fn unicast_names_every_device_and_leaves_targets_local() {
    let records = Records::of(&zone(), &Origin::unicast(n("vm.internal.")));
    assert_eq!(look(&records, "printer.vm.internal.", RecordType::A), ["120 198.18.7.9"]);
    assert_eq!(look(&records, "nas.vm.internal.", RecordType::A), ["120 198.18.7.10"]);
    assert_eq!(look(&records, "nas.vm.internal.", RecordType::NSEC), ["no data"]);
    assert_eq!(look(&records, "10.7.18.198.in-addr.arpa.", RecordType::PTR), ["120 nas.vm.internal."]);
    let Found::Records(found) = records.lookup(&n("_ipps._tcp.vm.internal."), RecordType::PTR) else {
        panic!()
    };
    let RData::PTR(PTR(instance)) = &found[0].data else { panic!() };
    let Found::Records(found) = records.lookup(instance, RecordType::SRV) else { panic!() };
    assert_eq!(found[0].data.to_string(), "0 0 631 Printer.local.");
    assert_eq!(look(&records, "printer.local.", RecordType::A), ["no such name"]);
    let local = Records::of(&zone(), &Origin::unicast(local()));
    assert_eq!(look(&local, "nas.local.", RecordType::A), ["120 198.18.7.10"]);
}

#[test]
fn additional_records_follow_the_way_to_an_address() {
    let records = Records::of(&zone(), &Origin::multicast());
    let kinds = |record: &Record| -> Vec<RecordType> {
        records.additional(record).iter().map(|entry| entry.record.record_type()).collect()
    };
    let Found::Records(found) = records.lookup(&n("_ipp._tcp.local."), RecordType::PTR) else { panic!() };
    assert_eq!(kinds(found[0]), [RecordType::SRV, RecordType::TXT]);
    let srv = &records.additional(found[0])[0].record;
    assert_eq!(kinds(srv), [RecordType::A, RecordType::NSEC]);
    let Found::Records(found) = records.lookup(&n("printer.local."), RecordType::A) else { panic!() };
    assert!(kinds(found[0]).is_empty());
}

#[test]
fn what_is_too_long_for_dns_is_left_out() {
    let domain = n(&format!("{}.", vec!["y".repeat(63); 3].join(".")));
    let records = Records::of(&zone(), &Origin::unicast(domain.clone()));
    let printer = name(["printer"], &domain).unwrap();
    assert!(matches!(records.lookup(&printer, RecordType::A), Found::Records(_)));
    assert_eq!(name(["x".repeat(63).as_str()], &domain), None);
}

#[test]
fn all_of_it_can_be_written_and_read() {
    let records = Records::of(&zone(), &Origin::multicast());
    let mut count = 0;
    for (name, entries) in records.iter() {
        for entry in entries {
            let bytes = entry.record.to_bytes().unwrap();
            assert_eq!(Record::from_bytes(&bytes).unwrap(), entry.record, "{name}");
            count += 1;
        }
    }
    // Host: A, NSEC, PTR back, NSEC. Instances: SRV, TXT, NSEC, PTR each, two subtypes. Two types.
    assert_eq!(count, 4 + 2 * 4 + 2 + 2);
}
