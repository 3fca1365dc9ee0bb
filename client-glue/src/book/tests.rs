use spice_proto::service_info::Identity;

use super::*;

fn share(text: &str) -> Offer {
    Offer::from(text.parse::<Share>().unwrap())
}

fn device(identity: &str, name: &str, port: u16) -> Offer {
    let mut share: Share = format!("tcp://printer.local:{port}").parse().unwrap();
    share.name = name.to_owned();
    Offer::device(share, Identity::new(identity).unwrap(), None, vec![[192, 168, 1, 40].into()])
}

#[test]
fn one_host_is_one_device_named_by_its_first_share() {
    let mut book = ShareBook::new(10);
    let print = book.add(share("tcp://printer.lan:631?name=Printer")).unwrap();
    let web = book.add(share("tcp://PRINTER.lan.:80?name=Web%20page")).unwrap();
    let nas = book.add(share("tcp://192.168.1.9:445?name=NAS")).unwrap();
    assert_eq!((print.group, &*print.device.name), (GroupId(0), "Printer"));
    assert_eq!((web.group, &*web.device.name), (GroupId(0), "Printer"));
    assert_eq!((nas.group, &*nas.device.name, &*nas.device.lasting), (GroupId(1), "NAS", "NAS"));
    assert_eq!([print.id, web.id, nas.id], [ShareId(0), ShareId(1), ShareId(2)]);

    // The device survives its shares, and its name with it.
    assert!(book.remove(print.id) && book.remove(web.id) && !book.remove(web.id));
    let again = book.add(share("tcp://printer.lan:80?name=Web%20page")).unwrap();
    assert_eq!((again.group, &*again.device.name, again.id), (GroupId(0), "Printer", ShareId(3)));
}

#[test]
fn duplicates_and_stolen_names_are_refused() {
    let mut book = ShareBook::new(3);
    book.add(share("tcp://a:80?name=A")).unwrap();
    assert!(matches!(book.add(share("tcp://a:80?name=B")), Err(ShareError::Duplicate { .. })));
    let Err(ShareError::NameTaken { name, owner }) = book.add(share("tcp://b:80?name=A")) else {
        panic!("two devices of one name");
    };
    assert_eq!((&*name, owner.to_string().as_str()), ("A", "a"));
    book.add(share("tcp://b:80")).unwrap();
    book.add(share("tcp://b:81")).unwrap();
    assert_eq!(book.add(share("tcp://c:80")), Err(ShareError::TooMany { limit: 3 }));
}

#[test]
fn devices_of_one_name_are_told_apart_and_a_historical_server_finds_them_again() {
    let lasting = |order: &[&str]| {
        let mut book = ShareBook::new(10);
        let add = |identity: &&str| book.add(device(identity, "Laser", 631)).unwrap();
        let entries: Vec<Entry> = order.iter().map(add).collect();
        assert_eq!(entries[0].device.name, "Laser");
        assert_eq!(entries[1].device.name, entries[1].device.lasting, "the second is marked");
        let mut lasting: Vec<_> =
            entries.into_iter().map(|entry| (entry.offer.device, entry.device.lasting)).collect();
        lasting.sort();
        lasting
    };
    let names = lasting(&["uuid:1", "uuid:2"]);
    assert_eq!(names, lasting(&["uuid:2", "uuid:1"]));
    assert_eq!(names[0].1, "Laser (0cd8620b)");
    assert_ne!(names[0].1, names[1].1);
}

#[test]
fn services_of_one_identity_are_one_device_whatever_they_are_called() {
    let mut book = ShareBook::new(10);
    let print = book.add(device("uuid:1", "Laser", 631)).unwrap();
    let web = book.add(device("uuid:1", "Laser's page", 80)).unwrap();
    assert_eq!((print.group, &print.device), (web.group, &web.device));
    assert_eq!(book.group(&print.offer.device), Some(print.group));
    assert!(matches!(book.add(device("uuid:1", "Laser", 80)), Err(ShareError::Duplicate { .. })));
    // Another one behind the same host and port: two queues of one print server.
    let queue = book.add(device("uuid:2", "Other queue", 631)).unwrap();
    assert_ne!(queue.group, print.group);

    book.remove(print.id);
    book.remove(web.id);
    assert_eq!(book.group(&print.offer.device), None);
    assert_eq!(book.add(device("uuid:1", "Renamed", 631)).unwrap().device, print.device);
}

#[test]
fn a_discovered_device_does_not_take_a_written_name() {
    let mut book = ShareBook::new(10);
    book.add(share("tcp://a:80?name=NAS")).unwrap();
    let found = book.add(device("uuid:1", "NAS", 445)).unwrap();
    assert_eq!(found.device.name, found.device.lasting);
    assert!(found.device.name.starts_with("NAS ("));
    // Neither does it work the other way round.
    let error = book.add(share(&format!("tcp://b:80?name={}", found.device.name.replace(' ', "%20"))));
    assert!(matches!(error, Err(ShareError::NameTaken { .. })));
}

#[test]
fn long_names_are_cut_before_their_mark() {
    let mut book = ShareBook::new(10);
    let found = book.add(device("uuid:1", &"ü".repeat(127), 1)).unwrap();
    assert!(found.device.lasting.len() <= MAX_TEXT && found.device.lasting.ends_with(')'));
}

#[test]
fn an_update_counts_for_tunnels_to_come_and_the_same_again_is_none() {
    let mut book = ShareBook::new(10);
    let id = book.add(device("uuid:1", "Laser", 631)).unwrap().id;
    let there = vec![[192, 168, 1, 77].into()];
    let entry = book.update(id, None, there.clone()).unwrap().unwrap();
    assert_eq!(entry.offer.addresses, there);
    assert_eq!(book.entries(), [entry]);
    assert_eq!(book.update(id, None, there.clone()), Ok(None));
    assert_eq!(book.update(ShareId(9), None, there), Ok(None));
    let wrong = book.update(id, None, vec![[127, 0, 0, 1].into()]);
    assert!(matches!(wrong, Err(ShareError::Addresses { .. })));
}

#[test]
fn devices_that_a_network_makes_up_do_not_fill_the_memory() {
    let mut book = ShareBook::new(10);
    let kept = book.add(device("uuid:kept", "Kept", 631)).unwrap();
    for n in 0..3 * MAX_ABSENT {
        let id = book.add(device(&format!("uuid:{n}"), &format!("Device {n}"), 631)).unwrap().id;
        book.remove(id);
    }
    assert!(book.devices.len() <= MAX_ABSENT + 1);
    assert_eq!(book.group(&kept.offer.device), Some(kept.group));
    let last = format!("uuid:{}", 3 * MAX_ABSENT - 1);
    assert!(book.devices.contains_key(&DeviceKey::Identity(Identity::new(&last).unwrap())));
}

#[test]
fn domains_are_checked_and_counted() {
    let domain = |text: &str| HostName::new(text).unwrap();
    let mut book = ShareBook::new(1);
    for (text, expected) in [
        ("com", "two labels"),
        ("printer.local", "every host has for itself"),
        ("a.localhost", "every host has for itself"),
        ("168.192.in-addr.arpa", "every host has for itself"),
        ("Home.arpa", "lower case"),
    ] {
        let error = book.add_domain(&domain(text)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(book.add_domain(&domain("home.arpa")), Ok(true));
    assert_eq!(book.add_domain(&domain("home.arpa")), Ok(false));
    for n in 1..MAX_DOMAINS {
        book.add_domain(&domain(&format!("d{n}.example"))).unwrap();
    }
    assert!(book.add_domain(&domain("one.more")).unwrap_err().to_string().contains("32"));
    assert!(book.remove_domain(&domain("home.arpa")) && !book.remove_domain(&domain("home.arpa")));
    assert_eq!(book.domains().len(), MAX_DOMAINS - 1);
}
