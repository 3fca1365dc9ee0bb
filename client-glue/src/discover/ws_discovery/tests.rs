use std::time::Instant;

use super::*;
use crate::discover::announced::Order;
use crate::discover::interfaces::Network;
use crate::discover::listen::Listener;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn listener() -> (Listener<WsDiscovery>, Instant) {
    let now = Instant::now();
    let networks = vec![
        Network { address: OWN, prefix: 24 },
        Network { address: "fd00::1".parse().unwrap(), prefix: 64 },
    ];
    (Listener::new(WsDiscovery::new(7), networks, now), now)
}

fn message(kind: &str, relates_to: &str, endpoint: &str, types: &str, addresses: &str) -> Vec<u8> {
    let inner = format!(
        "<EndpointReference><Address>{endpoint}</Address></EndpointReference><Types>{types}</Types><XAddrs>{addresses}</XAddrs>"
    );
    let inner = match kind {
        "ProbeMatches" => format!("<ProbeMatch>{inner}</ProbeMatch>"),
        "ResolveMatches" => format!("<ResolveMatch>{inner}</ResolveMatch>"),
        _ => inner,
    };
    format!(
        "<Envelope><Header><RelatesTo>{relates_to}</RelatesTo></Header><Body><{kind}>{inner}</{kind}></Body></Envelope>"
    )
    .into_bytes()
}

/// The ids of the questions that wait to be sent, with where they go.
fn questions(listener: &mut Listener<WsDiscovery>) -> Vec<(SocketAddr, String)> {
    let packets = std::iter::from_fn(|| listener.poll_transmit());
    packets
        .map(|packet| {
            let question = Element::parse(&packet.bytes).unwrap();
            (packet.to, question.child("Header").unwrap().text_of("MessageID").unwrap().to_owned())
        })
        .collect()
}

const DEVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)), PORT);
const ENDPOINT: &str = "urn:uuid:01234567-89ab-cdef-0123-456789abcdef";

#[test]
fn both_versions_of_ip_are_asked_and_ids_are_never_used_twice() {
    let (mut listener, now) = listener();
    let mut ids = std::collections::BTreeSet::new();
    for round in [0, 1, 3, 63] {
        listener.handle_timeout(now + Duration::from_secs(round));
        let asked = questions(&mut listener);
        let to: Vec<_> = asked.iter().map(|(to, _)| *to).collect();
        assert_eq!(to, [GROUPS[0], GROUPS[0], GROUPS[1], GROUPS[1]]);
        for (_, id) in asked {
            assert!(id.starts_with("urn:uuid:") && Uuid::parse(&id).is_some(), "{id}");
            assert!(ids.insert(id));
        }
    }
}

#[test]
fn a_match_counts_if_it_was_asked_for_and_leads_to_itself() {
    let (mut listener, now) = listener();
    let asked = questions(&mut listener);
    let (printer, here) = ("wprt:PrintDeviceType", "http://10.0.0.5:5357/wsd");
    for (id, types, addresses) in [
        ("urn:uuid:of-another", printer, here),
        (&asked[0].1, "wsdp:Device", here),
        (&asked[0].1, printer, "http://10.0.0.6/wsd https://10.0.0.5/ http://localhost/ x"),
    ] {
        listener.handle_packet(OWN, DEVICE, &message("ProbeMatches", id, ENDPOINT, types, addresses), now);
        assert_eq!(listener.poll_order(now), None, "{id} {types} {addresses}");
    }
    let addresses = format!("http://10.0.0.6/ {here}");
    listener.handle_packet(
        OWN,
        DEVICE,
        &message("ProbeMatches", &asked[1].1, ENDPOINT, printer, &addresses),
        now,
    );
    let Some(Order::Describe(key, place)) = listener.poll_order(now) else { panic!("nothing to describe") };
    assert_eq!((key.id.as_str(), place.location.port()), (ENDPOINT, 5357));
    assert!(place.is_printer && !place.is_scanner);
    assert!(listener.described(&key, true, now));
    listener.handle_packet(OWN, ([10, 0, 0, 6], PORT).into(), &message("Bye", "", ENDPOINT, "", ""), now);
    assert_eq!(listener.poll_order(now), None);
    listener.handle_packet(OWN, DEVICE, &message("Bye", "", ENDPOINT, "", ""), now);
    assert_eq!(listener.poll_order(now), Some(Order::Gone(key)));
}

#[test]
fn who_says_hello_without_an_address_is_resolved() {
    let (mut listener, now) = listener();
    questions(&mut listener);
    listener.handle_packet(OWN, DEVICE, &message("Hello", "", ENDPOINT, "scn:ScanDeviceType", ""), now);
    assert_eq!(listener.poll_order(now), None);
    let asked = questions(&mut listener);
    let [(to, id)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(*to, GROUPS[0]);
    let here = "http://10.0.0.5/";
    listener.handle_packet(
        OWN,
        DEVICE,
        &message("ResolveMatches", id, ENDPOINT, "scn:ScanDeviceType", here),
        now,
    );
    let Some(Order::Describe(_, place)) = listener.poll_order(now) else { panic!("nothing to describe") };
    assert!(place.is_scanner);
}

#[test]
fn floods_make_us_neither_remember_nor_send_without_end() {
    let (mut listener, now) = listener();
    for number in 0..10_000 {
        let endpoint = format!("urn:uuid:{number}");
        listener.handle_packet(OWN, DEVICE, &message("Hello", "", &endpoint, "x:PrintDeviceType", ""), now);
    }
    assert!(questions(&mut listener).len() <= 1024);
}

#[test]
fn what_a_device_says_becomes_a_sighting() {
    let key = Key::new(DEVICE, ENDPOINT);
    let location = Location::parse("http://10.0.0.5:5357/wsd", DEVICE.ip()).unwrap();
    let place = Place { location, is_printer: false, is_scanner: true };
    let metadata = Metadata {
        friendly_name: Some("Scan\u{200b}ner".into()),
        manufacturer: Some("Example".into()),
        model_name: Some("Example S1".into()),
        serial: Some("SN1234".into()),
        presentation: Some("http://10.0.0.5:80/".into()),
        ..Metadata::default()
    };
    let seen = sighting(&key, &place, &metadata, &Ways::default(), Some(8080));
    assert_eq!(seen.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(seen.name.unwrap().as_str(), "Scanner");
    assert_eq!(seen.make_and_model.unwrap().as_str(), "Example S1");
    let [scan, web] = &seen.services[..] else { panic!("{:?}", seen.services) };
    assert_eq!(
        (scan.port, scan.class, web.port, web.class),
        (8080, ServiceClass::Scanner, 80, ServiceClass::Web)
    );
    let advert = &scan.adverts[0];
    assert_eq!((advert.kind.as_str(), advert.txt.get("rs")), ("_uscan._tcp", Some(Some("eSCL"))));
}
