use super::codec::Value;
use super::*;

fn facts(texts: &[(Object, &[u8])]) -> Facts {
    let mut facts = Facts::default();
    for (object, text) in texts {
        facts.set(*object, Some(Value::Text(text.to_vec())));
    }
    facts
}

#[test]
fn what_a_printer_says_becomes_a_sighting() {
    let facts = facts(&[
        (Object::DeviceDescription, b"HP LaserJet 4"),
        (Object::PrinterName, b"\0\0"),
        (Object::SystemName, b"lj4"),
        (Object::Location, b"Room 7"),
        (Object::Serial, b"JPBB123456"),
        (Object::Card, &[0, 0x11, 0x22, 0x33, 0x44, 0x55]),
    ]);
    let address = [10, 0, 0, 5].into();
    let seen = sighting(address, &facts, &Ways::default(), None);
    assert_eq!((seen.key.source, seen.key.id.as_str()), (Source::Snmp, "10.0.0.5"));
    assert_eq!(seen.addresses, [address]);
    assert_eq!(seen.make_and_model.unwrap().as_str(), "HP LaserJet 4");
    assert_eq!(seen.name.unwrap().as_str(), "lj4");
    assert_eq!(seen.location.unwrap().as_str(), "Room 7");
    assert_eq!(seen.serial.unwrap().as_str(), "JPBB123456");
    assert!(seen.services.is_empty() && seen.mac.is_none());
}

#[test]
fn who_has_nothing_else_is_known_by_its_card() {
    let address = [10, 0, 0, 5].into();
    let facts = facts(&[(Object::SystemName, b"lj4"), (Object::Card, &[0, 0x11, 0x22, 0x33, 0x44, 0x55])]);
    let seen = sighting(address, &facts, &Ways::default(), None);
    assert_eq!(seen.mac.unwrap().to_string(), "00:11:22:33:44:55");
    // What the kernel learnt counts more than what it says.
    let seen = sighting(address, &facts, &Ways::default(), Some([2, 0, 0, 0, 0, 1]));
    assert_eq!(seen.mac.unwrap().to_string(), "02:00:00:00:00:01");
}

#[test]
fn hostile_texts_are_cleaned_or_left_out() {
    let long = vec![b'x'; 1024];
    let facts = facts(&[
        (Object::DeviceDescription, &long),
        (Object::PrinterName, b"\xff\xfe\x1b]0;owned\x07"),
        (Object::Location, "\u{202e}gnp.exe".as_bytes()),
        (Object::Serial, b"0000000000"),
        (Object::Card, &[1, 2, 3]),
        (Object::DeviceId, b"MFG:\0;MDL:\xff;CMD:"),
    ]);
    let seen = sighting([10, 0, 0, 5].into(), &facts, &Ways::default(), None);
    assert_eq!(seen.location.unwrap().as_str(), "gnp.exe");
    assert_eq!((seen.serial, seen.mac), (None, None));
    assert!(!seen.name.unwrap().as_str().contains(char::is_control));
}
