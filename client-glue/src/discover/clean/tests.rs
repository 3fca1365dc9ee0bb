use proptest::prelude::*;

use super::*;
use crate::discover::text::{MAX_SERIAL, Mac, Uuid};

fn said(entries: &[(&str, Option<&[u8]>)]) -> Vec<String> {
    let device = HostName::new("Office.local").unwrap();
    let addresses = ["192.168.1.9".parse().unwrap(), "fd00::9".parse().unwrap()];
    let txt = txt(entries.iter().copied(), Some(&device), &addresses);
    txt.entries().map(|(key, value)| value.map_or(key.to_owned(), |value| format!("{key}={value}"))).collect()
}

fn one(key: &str, value: &str) -> Option<String> {
    let said = said(&[(key, Some(value.as_bytes()))]);
    said.first().map(|entry| entry.split_once('=').unwrap().1.to_owned())
}

#[test]
fn a_line_is_one_line() {
    let line = |given: &[u8]| text(given).map(|text| text.as_str().to_owned());
    assert_eq!(line(b"  HP\tLaserJet \r\n 400\0 ").as_deref(), Some("HP LaserJet 400"));
    assert_eq!(line("\u{202e}gnp.exe\u{200b}".as_bytes()).as_deref(), Some("gnp.exe"));
    assert_eq!(line(b"B\xfcro").as_deref(), Some("B?ro"));
    assert_eq!(line("Büro".as_bytes()).as_deref(), Some("Büro"));
    assert_eq!(line(b"\x1b[31mred\x1b[0m").as_deref(), Some("[31mred [0m"));
    for nothing in [&b""[..], b"  ", b"\0\0", "\u{200b}\u{feff}".as_bytes()] {
        assert_eq!(line(nothing), None);
    }
}

#[test]
fn a_name_is_cut_between_characters() {
    let long = "ä".repeat(100);
    assert_eq!(label(long.as_bytes()).unwrap().as_str(), "ä".repeat(31));
    let words = "word ".repeat(100);
    assert_eq!(label(words.as_bytes()).unwrap().as_str().len(), 63);
}

#[test]
fn host_names_are_names() {
    for (given, expected) in [
        ("Office.local.", Some("Office.local")),
        ("nas", Some("nas")),
        ("192.168.1.9", None),
        ("0x7f.1", None),
        ("a.0x7f000001", None),
        ("localhost", None),
        ("a.LocalHost.", None),
        ("a b.local", None),
        ("a..local", None),
        ("", None),
        (".", None),
        ("a/../b.local", None),
    ] {
        assert_eq!(host(given).as_ref().map(HostName::as_str), expected, "{given}");
    }
    assert!(local_host("Office.LOCAL.").is_some());
    assert_eq!(local_host("www.bank.example"), None);
    assert_eq!(local_host("local"), None);
}

#[test]
fn links_lead_to_the_device_by_its_name() {
    for good in [
        "http://192.168.1.9/",
        "http://Office.local/",
        "http://office.local./",
        "http://OFFICE/",
        "http://[fd00::9]/",
    ] {
        assert_eq!(one("adminurl", good).as_deref(), Some("http://office.local/"), "{good}");
    }
    assert_eq!(
        one("printer-icons", "https://192.168.1.9:8443/icon.png?x=1#y").as_deref(),
        Some("https://office.local:8443/icon.png?x=1#y")
    );
    assert_eq!(
        one("anything", "ipp://192.168.1.9/ipp/print").as_deref(),
        Some("ipp://Office.local/ipp/print")
    );
    for bad in [
        "http://evil.example/",
        "http://192.168.1.1/",
        "http://office.local@evil.example/",
        "http://user:secret@office.local/",
        "http://127.0.0.1/",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "data:text/html,x",
        "//evil.example/",
        "/relative",
        "ftp://office.local/",
        "http://[fe80::1%25eth0]/",
        "http://",
    ] {
        assert_eq!(one("adminurl", bad), None, "{bad}");
    }
    for bad in ["http://evil.example/", "x http://evil.example/"] {
        assert_eq!(one("note2", bad), None, "{bad}");
    }
    assert_eq!(link("http://192.168.1.9/", None, &["192.168.1.9".parse().unwrap()]), None);
}

#[test]
fn paths_stay_on_the_device() {
    for good in ["ipp/print", "/ipp/print", "printers/B%C3%BCro_2", "", "auto"] {
        assert_eq!(one("rp", good).as_deref(), Some(good));
    }
    for bad in [
        "../../admin",
        "a/../b",
        "a/%2e%2E/b",
        "a/.%2e/b",
        "//evil.example/x",
        "a b",
        "a?b",
        "a#b",
        "a\\b",
        "bü",
    ] {
        assert_eq!(one("rp", bad), None, "{bad}");
    }
}

#[test]
fn values_are_mended_for_people_and_dropped_for_machines() {
    assert_eq!(one("ty", "HP\u{202e}  LaserJet\n").as_deref(), Some("HP LaserJet"));
    assert_eq!(one("pdl", "application/pdf,image/urf").as_deref(), Some("application/pdf,image/urf"));
    assert_eq!(one("pdl", "application/pdf\n"), None);
    assert_eq!(
        one("UUID", "{4509A320-00A0-008F-00B6-002507510ECA}").as_deref(),
        Some("4509a320-00a0-008f-00b6-002507510eca")
    );
    assert_eq!(one("UUID", "not one"), None);
    assert_eq!(
        said(&[("ty", Some(b"B\xfcro")), ("pdl", Some(b"\xff")), ("Scan", None)]),
        ["ty=B?ro", "Scan"]
    );
}

#[test]
fn the_first_of_two_counts_and_keys_are_keys() {
    assert_eq!(
        said(&[
            ("Color", Some(b"T")),
            ("color", Some(b"F")),
            ("", Some(b"x")),
            ("a=b", Some(b"x")),
            ("k\u{fc}", None),
            ("Duplex", Some(b"F")),
        ]),
        ["Color=T", "Duplex=F"]
    );
}

#[test]
fn what_does_not_fit_is_left_out() {
    let many: Vec<String> = (0..200).map(|n| format!("key{n}")).collect();
    let long = "v".repeat(150);
    let entries: Vec<_> = many.iter().map(|key| (key.as_str(), Some(long.as_bytes()))).collect();
    assert_eq!(said(&entries).len(), 8);
    assert_eq!(one("ty", &"w".repeat(300)).unwrap().len(), 252);
    assert_eq!(one("pdl", &"w".repeat(300)), None);
}

#[test]
fn serials_that_say_nothing_are_none() {
    assert_eq!(serial(b" CNB1234567 ").unwrap().as_str(), "CNB1234567");
    for nobodys in ["", "0000000", "XXXXXXXX", "xXxX", "unknown", "N/A", "abc", "---", "a\nbcdef", "bücher"]
    {
        assert_eq!(serial(nobodys.as_bytes()), None, "{nobodys}");
    }
    assert_eq!(serial("ab".repeat(MAX_SERIAL).as_bytes()), None);
    assert_eq!(serial(b"\xff\xfe1234"), None);
}

#[test]
fn uuids_and_cards() {
    let expected = "4509a320-00a0-008f-00b6-002507510eca";
    for given in [
        expected,
        "urn:uuid:4509A320-00A0-008F-00B6-002507510ECA",
        "{4509a32000a0008f00b6002507510eca}",
        "UUID:4509a320-00a0-008f-00b6-002507510eca",
    ] {
        assert_eq!(Uuid::parse(given).unwrap().to_string(), expected);
    }
    for bad in [
        "",
        "uuid:",
        "4509a320-00a0-008f-00b6-002507510ec",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "+509a32000a0008f00b6002507510eca",
        "é",
    ] {
        assert_eq!(Uuid::parse(bad), None, "{bad}");
    }
    assert_eq!(Mac::parse("02:00:5E:00-00:01").unwrap().to_string(), "02:00:5e:00:00:01");
    for bad in [
        "",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "02:00:5e:00:00",
        "02:00:5e:00:00:01:02",
        "+2:00:5e:00:00:01",
    ] {
        assert_eq!(Mac::parse(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn whatever_is_sent_comes_out_clean(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Some(text) = text(&bytes) {
            prop_assert!(text.as_str().chars().all(is_clean) && text.as_str().len() <= MAX_TEXT);
            // What is clean stays as it is.
            prop_assert_eq!(super::text(text.as_str().as_bytes()), Some(text));
        }
        if let Some(label) = label(&bytes) {
            prop_assert!(label.as_str().len() <= MAX_LABEL);
            prop_assert_eq!(super::label(label.as_str().as_bytes()), Some(label));
        }
        let _ = serial(&bytes);
    }

    #[test]
    fn whatever_text_is_sent_is_a_name_a_link_a_path_or_nothing(
        key in "\\PC{0,12}|ty|rp|UUID|adminurl", value in "\\PC{0,80}|(http|ipp)s?://\\PC{0,40}",
    ) {
        let device = HostName::new("Office.local").unwrap();
        let txt = txt([(key.as_str(), Some(value.as_bytes()))], Some(&device), &[]);
        for (_, value) in txt.entries() {
            let value = value.unwrap();
            prop_assert!(value.chars().all(is_clean));
            if value.contains("://") && !FOR_PEOPLE.iter().any(|people| key.eq_ignore_ascii_case(people)) {
                prop_assert!(Url::parse(value).unwrap().host_str().unwrap().eq_ignore_ascii_case("office.local"));
            }
        }
        let _ = host(&value);
        let _ = Uuid::parse(&value);
        let _ = Mac::parse(&value);
    }
}
