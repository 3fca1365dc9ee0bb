//! `discover` with devices of the test's own.

use client_glue::discover::{Device, Service, ServiceClass, Source, Standing, Update};
use client_glue::service_info::{Advert, HostName, Label, ServiceType, Txt};
use tokio::sync::mpsc;

use super::*;

pub(crate) fn printer(identity: &str, name: &str, host: &str, address: [u8; 4]) -> Device {
    let mut txt = Txt::default();
    txt.push("rp", Some("ipp/print")).unwrap();
    txt.push("air", None).unwrap();
    let advert = Advert {
        kind: ServiceType::new("_ipp._tcp").unwrap(),
        instance: Label::new(name).unwrap(),
        subtypes: vec![Label::new("_universal").unwrap()],
        txt,
    };
    let ipp = Service { adverts: vec![advert], ..Service::bare(631, ServiceClass::Printer) };
    Device {
        identity: Identity::new(identity).unwrap(),
        name: Label::new(name).unwrap(),
        host: Some(HostName::new(host).unwrap()),
        addresses: vec![address.into()],
        make_and_model: None,
        location: None,
        sources: [Source::DnsSd, Source::Snmp].into(),
        this_machine: false,
        standing: Standing::Plain,
        services: vec![ipp, Service::bare(80, ServiceClass::Web)],
    }
}

/// A feed that gives `updates` and then nothing more.
fn script(updates: Vec<Update>) -> Feed {
    let (sender, receiver) = mpsc::channel(100);
    for update in updates {
        sender.try_send(update).unwrap();
    }
    Feed::Script { updates: receiver, doubts: mpsc::unbounded_channel().0 }
}

fn args(watch: bool, json: bool) -> DiscoverArgs {
    DiscoverArgs { config: None, time: Duration::from_secs(60), watch, json, check: false }
}

async fn run(args: DiscoverArgs, updates: Vec<Update>) -> String {
    let mut out = Vec::new();
    let plan = Plan::of(&args).unwrap();
    Box::pin(run_fed(&args, plan, script(updates), CancellationToken::new(), &mut out)).await.unwrap();
    String::from_utf8(out).unwrap()
}

fn laser() -> Device {
    printer("uuid:1", "Laser", "laser.local", [192, 168, 1, 40])
}

#[tokio::test]
async fn a_table_says_what_is_there_and_what_would_be_shared() {
    let text = run(args(false, false), vec![Update::Found(laser())]).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "NAME   KIND     WHERE                                FOUND BY      IDENTITY  SHARED",
            "Laser  printer  laser.local (192.168.1.40) port 631  dns-sd, snmp  uuid:1    yes: every printer is shared",
            "       web      laser.local (192.168.1.40) port 80                           no: not asked for: it is shared by name only",
        ]
    );
}

#[tokio::test]
async fn json_has_a_line_for_each_device_that_is_there_at_the_end() {
    let other = printer("uuid:2", "Inkjet", "ink.local", [192, 168, 1, 41]);
    let gone = Update::Lost(Identity::new("uuid:3").unwrap());
    let third = printer("uuid:3", "Third", "third.local", [192, 168, 1, 42]);
    let updates = vec![Update::Found(laser()), Update::Found(third), Update::Found(other), gone];
    let text = run(args(false, true), updates).await;
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| &line["name"]).collect::<Vec<_>>(), ["Inkjet", "Laser"]);
    let expected = serde_json::json!({
        "name": "Laser", "own_name": "Laser", "identity": "uuid:1", "host": "laser.local",
        "addresses": ["192.168.1.40"], "make_and_model": null, "location": null,
        "found_by": ["dns-sd", "snmp"], "this_machine": false, "standing": "plain", "claims": null,
        "services": [
            {
                "port": 631, "class": "printer", "shared": true, "why": "every printer is shared",
                "adverts": [{
                    "type": "_ipp._tcp", "instance": "Laser", "subtypes": ["_universal"],
                    "txt": { "rp": "ipp/print", "air": null },
                }],
            },
            {
                "port": 80, "class": "web", "shared": false, "adverts": [],
                "why": "not asked for: it is shared by name only",
            },
        ],
    });
    assert_eq!(lines[1], expected);
}

#[tokio::test]
async fn watching_tells_each_event() {
    let moved = printer("uuid:1", "Laser", "laser.local", [192, 168, 1, 41]);
    let updates =
        vec![Update::Found(laser()), Update::Changed(moved), Update::Lost(Identity::new("uuid:1").unwrap())];
    let text = run(args(true, true), updates.clone()).await;
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (event["event"].as_str().unwrap(), event["addresses"][0].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("found", "192.168.1.40"), ("changed", "192.168.1.41"), ("lost", "192.168.1.41")]);
    let text = run(args(true, false), updates).await;
    assert!(text.starts_with(
        "found    Laser  uuid:1  by dns-sd, snmp  printer  laser.local (192.168.1.40) port 631  yes: every printer"
    ));
    assert!(text.contains("\nlost "));
}

#[tokio::test]
async fn nothing_found_is_said_and_is_no_failure() {
    let text = run(args(false, false), vec![]).await;
    assert_eq!(
        text,
        "nothing was found within 1m, by dns-sd, snmp, ssdp, ws-discovery, local; --for looks longer\n"
    );
    assert_eq!(run(args(false, true), vec![]).await, "");
}

#[test]
fn a_terminal_gets_nothing_but_ordinary_characters() {
    assert_eq!(found::escape("a\u{1b}[2Jb\u{202e}c\nü"), "a\\u{1b}[2Jb\\u{202e}c\\u{a}ü");
}

#[test]
fn a_configuration_without_discovery_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[[share]]\ntarget = 'tcp://a:1'\n").unwrap();
    let args = DiscoverArgs { config: Some(file.path().to_owned()), ..args(false, false) };
    let Err(error) = Plan::of(&args) else { panic!("accepted") };
    assert!(error.to_string().contains("has no [discover]"));
    std::fs::write(
        file.path(),
        "[[share]]\ntarget = 'tcp://a:1?name=A'\n[discover]\nshare-classes = ['printer']\n",
    )
    .unwrap();
    let text = Plan::of(&args).ok().unwrap().text();
    assert_eq!(
        text,
        "discover  by dns-sd, snmp, ssdp, ws-discovery, local; every printer is shared\nshare     A  tcp://a:1\n"
    );
}
