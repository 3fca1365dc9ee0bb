//! What is shared beside printers is what the user named, under the names that the user gave.

use std::net::SocketAddr;

use openssl::sha::sha256;
use tokio::io::AsyncWriteExt;

use super::watch::seen;
use super::{Home, assert_well};
use crate::lan::{Machine, Pace, Printer, Sink, address};
use crate::vm::rig::{Program, soon, until};

/// A machine with shared folders and pages.
async fn storage(home: &Home, host: &'static str, name: &str) -> (Machine, u8, Vec<Program>) {
    let (machine, number) = (Machine::boot(host, "").await, home.lan.number());
    home.lan.plug(&machine, number).await;
    let mut running = Vec::from(machine.announce(host).await);
    for (kind, port) in [("_smb._tcp", "445"), ("_http._tcp", "8080"), ("_ssh._tcp", "22")] {
        let mut publish = machine.start("avahi-publish", "avahi-publish", &["-s", name, kind, port]);
        publish.line("that it is announced", |line| line.contains("Established").then_some(())).await;
        running.push(publish);
    }
    (machine, number, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_says_what_is_there() {
    let mut home = Box::pin(Home::new()).await;
    let (nas, nas_at, _nas) = storage(&home, "nas", "Family NAS").await;
    let (_other, _, _theirs) = storage(&home, "other", "Work").await;
    let (_window, _boss) = tokio::join!(
        Printer::announced(&home.lan, "window", "Brother", Pace::Quick),
        Printer::announced(&home.lan, "boss", "Boss", Pace::Quick)
    );
    let mut folders = Sink::start(&nas, SocketAddr::new(address(nas_at), 445));
    let config = home.config(
        r#"
        [discover]
        share-classes = ["printer"]
        [[allow]]
        name = "*nas"
        type = ["_smb._tcp", "_http._tcp"]
        [[rename]]
        name = "Brother"
        to = "By the window"
        [[deny]]
        name = "Boss"
        "#,
    );
    home.discover(&["--config", &config]).await;
    let printer = home.finds("_ipp._tcp", "By the window").await;
    assert_eq!(printer.host, "window.local");
    let smb = home.finds("_smb._tcp", "Family NAS").await;
    let http = home.finds("_http._tcp", "Family NAS").await;
    assert_eq!((&*smb.host, smb.port, &*http.host, http.port), ("nas.local", 445, "nas.local", 8080));
    assert_eq!(smb.address, http.address);
    // The others were found as well, and the guest is told nothing of them.
    for (name, kind) in [("Work", "_smb._tcp"), ("Boss", "_ipp._tcp")] {
        let connect = home.connect.as_ref().unwrap();
        let own_name = format!("\"own_name\":\"{name}\"");
        until(name, || async { connect.everything().contains(&own_name).then_some(()) }).await;
        assert!(!seen(&home.guest.machine, kind).await.iter().any(|seen| seen.name == name), "{name}");
    }
    assert!(seen(&home.guest.machine, "_ssh._tcp").await.is_empty());
    let ssh = SocketAddr::new(smb.at().ip(), 22);
    assert!(home.guest.machine.connect(ssh).await.is_err(), "a port was reached that nobody allowed");

    let mut stream = soon("a connection to the NAS", home.guest.machine.connect(smb.at())).await.unwrap();
    stream.write_all(b"negotiate").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(folders.next().await.hash, sha256(b"negotiate"));

    // What `discover` shows is the same.
    let shown = home.desk_discover(&["--for", "3s", "--config", &config]).await;
    let row = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in\n{shown}"))
    };
    assert!(row("By the window").contains("yes: every printer is shared"), "{shown}");
    assert!(row("Family NAS").contains("yes: allowed by name, by [[allow]] 1"), "{shown}");
    assert!(row("Boss").contains("no: denied by [[deny]] 1"), "{shown}");
    assert!(row("Work").contains("no: not asked for: it is shared by name only"), "{shown}");
    assert_well(&mut home);
}

#[tokio::test(flavor = "multi_thread")]
async fn discover_shows_what_is_there() {
    let lan = crate::lan::Lan::new().await;
    let desk = Machine::boot("desk", "").await;
    lan.plug(&desk, lan.number()).await;
    let (_office, _photo) = tokio::join!(
        Printer::announced(&lan, "office", "Office", Pace::Quick),
        Printer::announced(&lan, "photo", "Photo", Pace::Quick)
    );
    let ask = |more: &'static [&'static str]| {
        let mut command = desk.command(env!("CARGO_BIN_EXE_spice-tunnel"));
        command.args(["discover", "--for", "3s"]).args(more);
        async move { soon("what discover finds", command.output()).await.unwrap() }
    };
    let (table, json) = tokio::join!(ask(&[]), ask(&["--json"]));
    let (table, json) = (String::from_utf8(table.stdout).unwrap(), String::from_utf8(json.stdout).unwrap());
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("NAME"), "{table}");
    let devices: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = devices.iter().map(|device| device["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Office", "Photo"]);
    for (name, host) in [("Office", "office.local"), ("Photo", "photo.local")] {
        let row = lines.next().unwrap();
        assert!(row.starts_with(name) && row.contains(host) && row.contains("dns-sd"), "{table}");
        let device = devices.iter().find(|device| device["name"] == name).unwrap();
        assert_eq!(device["host"], host);
        assert!(row.contains(device["identity"].as_str().unwrap()), "{table}");
        let services = device["services"].as_array().unwrap();
        assert!(
            services.iter().any(|service| service["port"] == 631 && service["shared"] == true),
            "{device}"
        );
    }
}
