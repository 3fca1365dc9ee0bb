use spice_proto::service_info::Txt;

use super::super::Source;
use super::*;

pub(in crate::discover) fn advert(kind: &str, instance: &str) -> Advert {
    Advert {
        kind: ServiceType::new(kind).unwrap(),
        instance: Label::new(instance).unwrap(),
        subtypes: vec![],
        txt: Txt::default(),
    }
}

pub(in crate::discover) fn service(port: u16, adverts: &[(&str, &str)]) -> Service {
    let adverts: Vec<Advert> = adverts.iter().map(|(kind, instance)| advert(kind, instance)).collect();
    let class = adverts.iter().map(|advert| ServiceClass::of(&advert.kind)).min();
    Service { port, class: class.unwrap_or(ServiceClass::Other), adverts, host_rewrite: None }
}

pub(in crate::discover) fn device(identity: &str, name: &str, host: &str, address: &str) -> Device {
    Device {
        identity: Identity::new(identity).unwrap(),
        name: Label::new(name).unwrap(),
        host: Some(HostName::new(host).unwrap()),
        addresses: vec![address.parse().unwrap()],
        make_and_model: None,
        location: None,
        sources: [Source::DnsSd].into(),
        this_machine: false,
        standing: Standing::Plain,
        services: vec![],
    }
}

fn printer() -> Device {
    device("uuid:1", "Office Laser", "laser.local", "192.168.1.40")
}

fn ipp() -> Service {
    service(631, &[("_ipp._tcp", "Office Laser"), ("_http._tcp", "Office Laser"), ("_smb._tcp", "x")])
}

fn pattern(text: &str) -> Option<Pattern> {
    Pattern::new(text)
}

fn why(policy: &Policy, device: &Device, service: &Service) -> String {
    match policy.judge(device, service) {
        Ok((ground, _)) => ground.to_string(),
        Err(objection) => objection.to_string(),
    }
}

#[test]
fn nothing_is_shared_that_nobody_asked_for() {
    let nothing = Policy::default();
    assert_eq!(why(&nothing, &printer(), &ipp()), "not asked for: neither as a printer nor by name");
    let smb = service(445, &[("_smb._tcp", "NAS")]);
    assert_eq!(why(&nothing, &printer(), &smb), "not asked for: it is shared by name only");
    // Not even by a policy that says otherwise: only printers and scanners are a class.
    let all = Policy {
        classes: [ServiceClass::Files, ServiceClass::Web, ServiceClass::Shell, ServiceClass::Other].into(),
        ..Policy::default()
    };
    assert!(all.judge(&printer(), &smb).is_err());
}

#[test]
fn a_class_brings_its_own_adverts_and_its_pages() {
    let policy = Policy::printers_and_scanners();
    let (ground, adverts) = policy.judge(&printer(), &ipp()).unwrap();
    assert_eq!(ground, Ground::Class(ServiceClass::Printer));
    let kinds: Vec<&str> = adverts.iter().map(|advert| advert.kind.as_str()).collect();
    assert_eq!(kinds, ["_ipp._tcp", "_http._tcp"]);
    // A scanner on the same port is advertised where scanners are shared only.
    let both = service(80, &[("_ipp._tcp", "a"), ("_uscan._tcp", "a")]);
    let printers = Policy { classes: [ServiceClass::Printer].into(), ..Policy::default() };
    assert_eq!(printers.judge(&printer(), &both).unwrap().1.len(), 1);
    assert_eq!(policy.judge(&printer(), &both).unwrap().1.len(), 2);
    assert_eq!(
        why(&policy, &printer(), &service(80, &[("_http._tcp", "a")])),
        "not asked for: it is shared by name only"
    );
}

#[test]
fn what_a_class_does_not_bring() {
    let policy = Policy::printers_and_scanners();
    let here = Device { this_machine: true, ..printer() };
    assert_eq!(why(&policy, &here, &ipp()), "on this machine: it is shared by name only");
    let odd = Service { port: 445, ..ipp() };
    assert!(why(&policy, &printer(), &odd).starts_with("port 445 is something else everywhere"));
    let nowhere = Device { addresses: vec![], ..printer() };
    assert_eq!(why(&policy, &nowhere, &ipp()), "it has no address that can be dialled");
    let claims = Identity::new("uuid:9").unwrap();
    let impostor = Device { standing: Standing::Impostor { claims }, ..printer() };
    assert_eq!(
        why(&policy, &impostor, &ipp()),
        "it says that it is uuid:9, which is there as well, elsewhere"
    );
    let moved = Device { standing: Standing::Moved, ..printer() };
    assert!(why(&policy, &moved, &ipp()).starts_with("it was at other addresses"));

    // By name it brings that of this machine, by identity an impostor, by identity and address what has moved.
    let by_name = Rule { name: pattern("office*"), ..Rule::default() };
    let by_identity = Rule { identity: Some(printer().identity), ..Rule::default() };
    let there = Rule {
        addresses: vec![Network { address: "192.168.1.0".parse().unwrap(), prefix: 24 }],
        ..by_identity.clone()
    };
    let with = |rule: &Rule| Policy { allow: vec![rule.clone()], ..policy.clone() };
    assert_eq!(why(&with(&by_name), &here, &ipp()), "allowed by name, by [[allow]] 1");
    assert!(with(&by_name).judge(&impostor, &ipp()).is_err());
    assert_eq!(why(&with(&by_identity), &impostor, &ipp()), "allowed by identity, by [[allow]] 1");
    assert_eq!(with(&by_identity).judge(&moved, &ipp()), Err(Objection::Moved));
    assert!(with(&there).judge(&moved, &ipp()).is_ok());
}

#[test]
fn denying_goes_before_everything() {
    let deny = |rule: Rule| Policy {
        deny: vec![rule],
        allow: vec![Rule { name: pattern("*laser*"), ..Rule::default() }],
        ..Policy::printers_and_scanners()
    };
    let kind = |text: &str| vec![ServiceType::new(text).unwrap()];
    // A type takes the advert away, and the port only with its last.
    let http = deny(Rule { types: kind("_http._tcp"), ..Rule::default() });
    let kinds: Vec<String> = http
        .judge(&printer(), &ipp())
        .unwrap()
        .1
        .iter()
        .map(|advert| advert.kind.as_str().to_owned())
        .collect();
    assert_eq!(kinds, ["_ipp._tcp", "_smb._tcp"]);
    let page = service(80, &[("_http._tcp", "Office Laser")]);
    assert_eq!(http.judge(&printer(), &page), Err(Objection::Denied(1)));
    for rule in [
        Rule { name: pattern("OFFICE ?aser"), ..Rule::default() },
        Rule { ports: vec![600..=700], ..Rule::default() },
        Rule { identity: Some(printer().identity), ..Rule::default() },
        Rule {
            addresses: vec![Network { address: "192.168.1.32".parse().unwrap(), prefix: 27 }],
            ..Rule::default()
        },
    ] {
        assert_eq!(deny(rule.clone()).judge(&printer(), &ipp()), Err(Objection::Denied(1)), "{rule:?}");
    }
    // All that is given must hold.
    let both = Rule { name: pattern("office laser"), ports: vec![80..=80], ..Rule::default() };
    assert!(deny(both).judge(&printer(), &ipp()).is_ok());
}

#[test]
fn a_printer_whose_printing_is_denied_is_not_one() {
    let policy = Policy {
        deny: vec![Rule { types: vec![ServiceType::new("_ipp._tcp").unwrap()], ..Rule::default() }],
        ..Policy::printers_and_scanners()
    };
    assert_eq!(policy.judge(&printer(), &ipp()), Err(Objection::NotAsked(ServiceClass::Web)));
}

#[test]
fn an_address_rule_wants_all_addresses() {
    let within = Rule {
        name: pattern("*laser"),
        addresses: vec![Network { address: "192.168.1.0".parse().unwrap(), prefix: 24 }],
        ..Rule::default()
    };
    let policy = Policy { allow: vec![within], ..Policy::default() };
    let mut device = printer();
    assert!(policy.judge(&device, &ipp()).is_ok());
    device.addresses.push("10.0.0.9".parse().unwrap());
    assert!(policy.judge(&device, &ipp()).is_err());
}

#[test]
fn patterns() {
    for (text, name, expected) in [
        ("office laser", "Office Laser", true),
        ("off*", "Office", true),
        ("*laser", "Office Laser", true),
        ("*a*b*", "xxaxxbxx", true),
        ("*ab", "aab", true),
        ("a*b*c", "abbbb", false),
        ("?ffice", "Office", true),
        ("?ffice", "ffice", false),
        ("büro", "BÜRO", true),
        ("office", "office 2", false),
    ] {
        assert_eq!(pattern(text).unwrap().matches(name), expected, "{text} {name}");
    }
    // A pattern of many stars takes no time to fail.
    let stars = pattern(&"*a".repeat(30)).unwrap();
    assert!(!stars.matches(&("a".repeat(63) + "b")) && !stars.matches(&"b".repeat(63)));
    for nobody in ["", "*", "??*", " "] {
        assert_eq!(pattern(nobody), None, "{nobody:?}");
    }
}

#[test]
fn renames() {
    let to = |text: &str| Label::new(text).unwrap();
    let policy = Policy {
        renames: vec![
            Rename { of: RenameOf::Identity(Identity::new("uuid:1").unwrap()), to: to("Mine") },
            Rename { of: RenameOf::Name("Other".into()), to: to("Yours") },
        ],
        ..Policy::default()
    };
    assert_eq!(policy.name(&printer()).as_str(), "Mine");
    let other = device("uuid:2", "OTHER", "o.local", "10.0.0.1");
    assert_eq!(policy.name(&other).as_str(), "Yours");
    assert_eq!(policy.name(&device("uuid:2", "Third", "o.local", "10.0.0.1")).as_str(), "Third");
}
