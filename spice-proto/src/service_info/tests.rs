use super::*;
use proptest::prelude::*;

fn printer() -> ServiceInfo {
    let mut txt = Txt::default();
    txt.push("txtvers", Some("1")).unwrap();
    txt.push("rp", Some("ipp/print")).unwrap();
    txt.push("Duplex", None).unwrap();
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new("Büro, 2. Stock (HP)").unwrap(),
        subtypes: vec![Label::new("_print").unwrap(), Label::new("_universal").unwrap()],
        txt,
    };
    let identity = Identity::new("uuid:1234").unwrap();
    let host = HostName::new("HP-01.local").unwrap();
    ServiceInfo::new(Some(identity), Some(host), vec![advert]).unwrap()
}

#[test]
fn what_is_written_is_read() {
    for info in [ServiceInfo::default(), printer()] {
        let mut bytes = Vec::new();
        info.write(&mut bytes);
        assert_eq!(bytes.len(), info.encoded_len());
        let (rest, read) = ServiceInfo::parse(&bytes).unwrap();
        assert_eq!((rest.len(), read), (0, info));
    }
}

#[test]
fn every_cut_is_noticed() {
    let mut bytes = Vec::new();
    printer().write(&mut bytes);
    for length in 0..bytes.len() {
        assert!(ServiceInfo::parse(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn texts_are_what_they_may_be() {
    for good in ["a", "Büro 2", "a.b", "🖨"] {
        assert!(Label::new(good).is_ok(), "{good}");
    }
    for bad in ["", "a\0", "a\u{1b}[31m", "\u{202e}fdp", "\u{feff}a", "\u{200b}", "a\nb", "\u{85}"] {
        assert!(Label::new(bad).is_err(), "{bad:?}");
    }
    assert!(Label::new(&"x".repeat(63)).is_ok() && Label::new(&"x".repeat(64)).is_err());
    for good in ["printer.local", "nas", "a-b.c_d.lan", "müller.local"] {
        assert!(HostName::new(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "a.", ".a", "a..b", "a b", "a/b", "a:80", "[::1]", "a@b", "a\\b"] {
        assert!(HostName::new(bad).is_err(), "{bad:?}");
    }
    let local = |name: &str| HostName::new(name).unwrap().is_local();
    assert!(local("a.local") && local("a.b.LOCAL") && !local("local") && !local("a.localx"));
    assert_eq!(ServiceType::new("_IPP._tcp").unwrap().as_str(), "_ipp._tcp");
    assert_eq!(ServiceType::new("_pdl-datastream._tcp").unwrap().label(), "_pdl-datastream");
    for bad in
        ["", "_ipp", "ipp._tcp", "_ipp._udp", "_._tcp", "_-a._tcp", "_a-._tcp", "_abcdefghijklmnop._tcp"]
    {
        assert!(ServiceType::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn txt_entries_are_bounded_and_unlike() {
    let mut txt = Txt::default();
    txt.push("ty", Some("a=b")).unwrap();
    assert_eq!((txt.get("TY"), txt.get("x")), (Some(Some("a=b")), None));
    for (key, value) in [("", None), ("a=b", None), ("é", None), ("TY", None), ("x", Some("\u{7}"))] {
        assert!(txt.push(key, value).is_err(), "{key:?}");
    }
    assert!(txt.push("long", Some(&"x".repeat(251))).is_err());
    let mut pushed = 0;
    while txt.push(&format!("k{pushed}"), Some(&"x".repeat(200))).is_ok() {
        pushed += 1;
    }
    assert_eq!(pushed, 6);
    assert!(txt.encoded_len() <= MAX_TXT);
}

#[test]
fn lists_are_bounded() {
    let advert = printer().adverts()[0].clone();
    assert!(ServiceInfo::new(None, None, vec![advert.clone(); MAX_ADVERTS]).is_ok());
    assert!(ServiceInfo::new(None, None, vec![advert.clone(); MAX_ADVERTS + 1]).is_err());
    let many = Advert { subtypes: vec![Label::new("_x").unwrap(); MAX_SUBTYPES + 1], ..advert };
    assert!(ServiceInfo::new(None, None, vec![many]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok((rest, info)) = ServiceInfo::parse(&bytes) {
            let mut again = Vec::new();
            info.write(&mut again);
            prop_assert_eq!(ServiceInfo::parse(&again).unwrap().1, info);
            prop_assert!(rest.len() < bytes.len());
        }
    }
}
