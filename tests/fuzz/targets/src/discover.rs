//! Discovery: whatever is said in a network, what is told of it is clean, bounded and one story.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use client_glue::discover::{
    Device, MAX_ADDRESSES, MAX_SERVICES, Mac, Network, NetworkId, Service, ServiceClass, Sighting,
    SightingEvent, SightingKey, Source, Standing, Update, Uuid, clean,
    merge::{Limits, Merge, Surroundings},
};
use spice_proto::service_info::{Advert, Identity, ServiceType};

use crate::input::Input;

const LIMITS: Limits = Limits { devices: 12, sightings: 24 };

/// The first byte of each step chooses what happens. Texts have their length before them.
pub fn discover(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut now = Instant::now();
    let own: IpAddr = [192, 168, 1, 2].into();
    let surroundings = Surroundings {
        own: BTreeSet::from([own, [127, 0, 0, 1].into()]),
        networks: vec![Network { address: own, prefix: 24 }],
    };
    let first_rounds = BTreeSet::from([Source::DnsSd]);
    let mut merge = Merge::new(now, LIMITS, NetworkId::new("net"), surroundings, first_rounds);
    let mut known: BTreeMap<Identity, Device> = BTreeMap::new();
    while !input.is_empty() {
        match input.byte() % 8 {
            0..=3 => {
                if let Some(sighting) = sighting(&mut input) {
                    merge.handle_event(now, SightingEvent::Seen(Box::new(sighting)));
                }
            }
            4 => {
                let key = SightingKey { source: source(&mut input), id: id(&mut input) };
                merge.handle_event(now, SightingEvent::Gone(key));
            }
            5 => merge.handle_restart(now, source(&mut input)),
            6 => merge.handle_round(now, source(&mut input)),
            _ => {
                let end = now + Duration::from_millis(u64::from(input.short()));
                now = pass(&mut merge, now, end, &mut known);
            }
        }
    }
    pass(&mut merge, now, now + Duration::from_secs(200), &mut known);
    let there: BTreeMap<Identity, Device> =
        merge.devices().map(|device| (device.identity.clone(), device.clone())).collect();
    assert_eq!(known, there, "what was told is what is there");
    known.values().for_each(check);
}

fn pass(
    merge: &mut Merge,
    mut now: Instant,
    end: Instant,
    known: &mut BTreeMap<Identity, Device>,
) -> Instant {
    for _ in 0..100_000 {
        while let Some(update) = merge.poll_update(now) {
            match update {
                Update::Found(device) => {
                    assert!(known.insert(device.identity.clone(), device).is_none(), "found twice");
                }
                Update::Changed(device) => {
                    let before = known.insert(device.identity.clone(), device.clone());
                    assert!(before.is_some_and(|before| before != device), "changed without a change");
                }
                Update::Lost(identity) => assert!(known.remove(&identity).is_some(), "lost, but never found"),
            }
            assert!(known.len() <= LIMITS.devices);
        }
        match merge.poll_timeout().filter(|at| *at <= end) {
            Some(at) => {
                assert!(at > now, "asks to be woken for nothing");
                now = at;
            }
            None => return end,
        }
    }
    panic!("it never comes to rest");
}

fn check(device: &Device) {
    assert!((1..=MAX_ADDRESSES).contains(&device.addresses.len()));
    assert!((1..=MAX_SERVICES).contains(&device.services.len()));
    assert_eq!(device.addresses.iter().any(IpAddr::is_loopback), device.this_machine);
    assert!(!device.addresses.contains(&[192, 168, 1, 2].into()));
    assert_eq!(device.identity.as_str().contains('~'), matches!(device.standing, Standing::Impostor { .. }));
    let ports: BTreeSet<u16> = device.services.iter().map(|service| service.port).collect();
    assert!(ports.len() == device.services.len() && !ports.contains(&0));
    for service in &device.services {
        device.info(service).expect("what is found can be told");
    }
}

fn sighting(input: &mut Input<'_>) -> Option<Sighting> {
    let source = source(input);
    let mut seen = Sighting::new(source, id(input));
    let has = input.byte();
    if has & 1 != 0 {
        seen.uuid = Uuid::parse(&format!("{:032x}", u128::from(input.byte() % 4)));
    }
    if has & 2 != 0 {
        seen.serial = clean::serial(format!("SERIAL{}", input.byte() % 4).as_bytes());
    }
    if has & 4 != 0 {
        seen.mac = Mac::new([2, 0, 0, 0, 0, input.byte() % 4]);
    }
    if has & 8 != 0 {
        seen.host = clean::local_host(&format!("h{}.local", input.byte() % 4));
    }
    seen.addresses = (0..has >> 6).map(|_| address(input, seen.this_machine)).collect();
    seen.make_and_model = clean::text(text(input));
    seen.name = clean::label(text(input));
    seen.location = clean::text(text(input));
    let kinds = ["_ipp._tcp", "_ipps._tcp", "_http._tcp", "_uscan._tcp", "_ssh._tcp"];
    for _ in 0..input.byte() % 4 {
        let kind = ServiceType::new(kinds[usize::from(input.byte()) % kinds.len()]).ok()?;
        let key = String::from_utf8_lossy(text(input)).into_owned();
        let value = text(input);
        let entries = [
            (key.as_str(), Some(value)),
            ("adminurl", Some(value)),
            ("rp", Some(value)),
            ("ty", Some(value)),
        ];
        let txt = clean::txt(entries, seen.host.as_ref(), &seen.addresses);
        let instance = seen.name.clone().or_else(|| clean::label(b"x"))?;
        let class = ServiceClass::of(&kind);
        let advert = Advert { kind, instance, subtypes: Vec::new(), txt };
        seen.services.push(Service {
            port: u16::from(input.byte() % 8),
            class,
            adverts: vec![advert],
            host_rewrite: None,
        });
    }
    Some(seen)
}

fn source(input: &mut Input<'_>) -> Source {
    Source::ALL[usize::from(input.byte()) % Source::ALL.len()]
}

fn id(input: &mut Input<'_>) -> String {
    format!("id{}", input.byte() % 32)
}

fn address(input: &mut Input<'_>, this_machine: bool) -> IpAddr {
    let last = input.byte();
    match last >> 5 {
        0 => [8, 8, 8, last].into(),
        1 => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        2 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        _ if this_machine => [127, 0, 0, 1].into(),
        _ => [192, 168, 1, last % 8].into(),
    }
}

fn text<'a>(input: &mut Input<'a>) -> &'a [u8] {
    let length = input.byte();
    input.bytes(usize::from(length) % 80)
}
