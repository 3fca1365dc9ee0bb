use std::time::Instant;

use super::*;
use crate::discover::announced::Order;
use crate::discover::device::ServiceClass;
use crate::discover::interfaces::Network;
use crate::discover::listen::Listener;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn listener() -> (Listener<Ssdp>, Instant) {
    let now = Instant::now();
    (Listener::new(Ssdp, vec![Network { address: OWN, prefix: 24 }], now), now)
}

fn notify(id: &str, location: &str) -> Vec<u8> {
    format!(
        "NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nNT: upnp:rootdevice\r\nUSN: uuid:{id}::upnp:rootdevice\r\n\
         LOCATION: {location}\r\nCACHE-CONTROL: max-age=100\r\n\r\n"
    )
    .into_bytes()
}

fn bye(id: &str) -> Vec<u8> {
    format!("NOTIFY * HTTP/1.1\r\nNTS: ssdp:byebye\r\nUSN: uuid:{id}\r\n\r\n").into_bytes()
}

#[test]
fn it_asks_for_printers_and_root_devices() {
    let (mut listener, now) = listener();
    for round in [0, 1, 3, 123] {
        listener.handle_timeout(now + Duration::from_secs(round));
        for target in message::TARGETS {
            let packet = listener.poll_transmit().unwrap();
            assert_eq!((packet.from, packet.to), (OWN, GROUP));
            assert!(String::from_utf8(packet.bytes).unwrap().contains(target));
        }
        assert_eq!(listener.poll_transmit(), None);
    }
}

#[test]
fn a_device_is_described_at_its_own_address_only() {
    let (mut listener, now) = listener();
    let device: SocketAddr = ([10, 0, 0, 5], 1900).into();
    for (from, location) in [
        (device, "http://10.0.0.6/d.xml"),
        (device, "http://127.0.0.1:631/"),
        (device, "https://10.0.0.5/d.xml"),
        // Not of the network, and ourselves.
        (([10, 0, 1, 5], 1900).into(), "http://10.0.1.5/d.xml"),
        ((OWN, 1900).into(), "http://10.0.0.1/d.xml"),
    ] {
        listener.handle_packet(OWN, from, &notify("a", location), now);
        assert_eq!(listener.poll_order(now), None, "{from} {location}");
    }
    listener.handle_packet(OWN, device, &notify("A", "http://10.0.0.5:80/d.xml"), now);
    let Some(Order::Describe(key, place)) = listener.poll_order(now) else { panic!("nothing to describe") };
    assert_eq!((key.id.as_str(), place.address(key.device)), ("a", ([10, 0, 0, 5], 80).into()));
    assert!(listener.described(&key, true, now));
    // Only it can take it back.
    listener.handle_packet(OWN, ([10, 0, 0, 6], 1900).into(), &bye("a"), now);
    assert_eq!(listener.poll_order(now), None);
    listener.handle_packet(OWN, device, &bye("a"), now);
    assert_eq!(listener.poll_order(now), Some(Order::Gone(key)));
}

#[test]
fn who_says_no_more_is_gone_when_it_said_it_would_be() {
    let (mut listener, now) = listener();
    listener.handle_packet(OWN, ([10, 0, 0, 5], 1900).into(), &notify("a", "http://10.0.0.5/"), now);
    let Some(Order::Describe(key, _)) = listener.poll_order(now) else { panic!("nothing to describe") };
    listener.described(&key, true, now);
    let almost = now + Duration::from_secs(99);
    listener.handle_timeout(almost);
    assert!(listener.looked_round(false, almost));
    assert_eq!(listener.poll_order(almost), None);
    assert_eq!(listener.poll_timeout(false), now + Duration::from_secs(100));
    assert_eq!(listener.poll_order(now + Duration::from_secs(100)), Some(Order::Gone(key)));
}

fn described(xml: &str) -> Sighting {
    let device = [10, 0, 0, 5].into();
    let location = Location::parse("http://10.0.0.5:5000/d.xml", device).unwrap();
    let key = Key::new(([10, 0, 0, 5], 1900).into(), "01234567-89ab-cdef-0123-456789abcdef");
    sighting(&key, &Description::parse(xml.as_bytes(), &location, device).unwrap(), &Ways::default())
}

#[test]
fn a_device_with_pages_is_a_web_service() {
    let seen = described(
        "<root><device><friendlyName>NAS &#x202e;\nof ours</friendlyName><manufacturer>Example</manufacturer>\
         <modelName>Box 2</modelName><serialNumber>S/N 1234</serialNumber><presentationURL>/ui/</presentationURL>\
         </device></root>",
    );
    assert_eq!(seen.key.id, "01234567-89ab-cdef-0123-456789abcdef@10.0.0.5");
    assert_eq!(seen.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(seen.name.unwrap().as_str(), "NAS of ours");
    assert_eq!(seen.make_and_model.unwrap().as_str(), "Example Box 2");
    assert_eq!(seen.serial.unwrap().as_str(), "S/N 1234");
    let [web] = &seen.services[..] else { panic!("{:?}", seen.services) };
    assert_eq!((web.port, web.class), (5000, ServiceClass::Web));
    assert_eq!(web.adverts[0].kind.as_str(), "_http._tcp");
    assert_eq!(web.adverts[0].txt.get("path"), Some(Some("/ui/")));
}

#[test]
fn a_device_without_anything_is_nothing_but_there() {
    let seen = described("<root><device/></root>");
    assert!(seen.services.is_empty() && seen.name.is_none() && seen.serial.is_none());
}
