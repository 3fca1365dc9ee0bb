//! Printers that know nothing of DNS-SD: the guest knows them by it all the same, and prints.

use openssl::sha::sha256;

use super::{Home, assert_well};
use crate::embed::example;
use crate::lan::{Lan, Machine, Sink, address};
use crate::printing::documents::zpl;
use crate::vm::rig::Program;

const RAW: &str = "_pdl-datastream._tcp";

/// A machine in the user's network, and its number there.
async fn plug(lan: &Lan, name: &'static str) -> (Machine, u8) {
    let (machine, number) = (Machine::boot(name, "").await, lan.number());
    lan.plug(&machine, number).await;
    (machine, number)
}

/// A printer's SNMP.
async fn agent(machine: &Machine, number: u8, more: &[&str]) -> Program {
    let agents = tokio::task::spawn_blocking(|| example("lan-agents")).await.unwrap().display().to_string();
    let address = address(number).to_string();
    let always = ["snmp", "--address", &address, "--broadcast", "192.168.7.255"];
    let mut agent = machine.start("lan-agents", &agents, &[&always[..], more].concat());
    agent.line("that it is ready", |line| (line == "ready").then_some(())).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn printers_that_only_know_snmp_print_raw() {
    let mut home = Box::pin(Home::new()).await;
    let (laser, laser_at) = plug(&home.lan, "laser").await;
    let (old, old_at) = plug(&home.lan, "old").await;
    let mut laser_sink = Sink::start(&laser, (address(laser_at), 9100).into());
    let mut old_sink = Sink::start(&old, (address(old_at), 9101).into());
    let _laser = agent(
        &laser,
        laser_at,
        &["--name", "Laser", "--maker", "HP", "--serial", "LASER1", "--location", "Room 7"],
    )
    .await;

    // A real agent, which another one answers broadcasts for.
    let objects = [
        "rocommunity public".to_owned(),
        "override 1.3.6.1.2.1.25.3.2.1.2.1 object_id 1.3.6.1.2.1.25.3.1.5".to_owned(),
        "override 1.3.6.1.2.1.25.3.2.1.3.1 octet_str \"Net Print 3000\"".to_owned(),
        "override 1.3.6.1.2.1.43.5.1.1.17.1 octet_str \"NETSNMP77\"".to_owned(),
        "override 1.3.6.1.2.1.43.5.1.1.16.1 octet_str \"Old one\"".to_owned(),
        "override 1.3.6.1.4.1.2699.1.2.1.2.1.1.3.1 octet_str \"MFG:Net;MDL:Print 3000;CMD:PCL;\"".to_owned(),
        format!(
            "override 1.3.6.1.4.1.2699.1.2.1.3.1.1.4.1.1 octet_str \"socket://{}:9101\"",
            address(old_at)
        ),
    ];
    let configuration = old.path("snmpd.conf");
    std::fs::write(&configuration, objects.join("\n")).unwrap();
    let mut command = old.command("snmpd");
    command.args(["-f", "-C", "-c"]).arg(&configuration).args(["-Le", "127.0.0.1:16100"]);
    command.env("SNMP_PERSISTENT_DIR", old.dir());
    let mut snmpd = Program::start("snmpd", command);
    snmpd.line("that it runs", |line| line.contains("NET-SNMP version").then_some(())).await;
    let _old = agent(&old, old_at, &["--before", "127.0.0.1:16100"]).await;

    home.guest.cups().await;
    home.discover(&["--discover"]).await;
    for (name, queue, port, sink) in
        [("Laser", "laser", 9100, &mut laser_sink), ("Old one", "old", 9101, &mut old_sink)]
    {
        let seen = home.finds(RAW, name).await;
        assert!(seen.is_virtual() && seen.port == port, "{seen:?}");
        let uri = format!("dnssd://{}.{RAW}.local/", name.replace(' ', "%20"));
        home.guest.queue(queue, &uri, "raw").await;
        let label = zpl(usize::from(port));
        home.guest.print(queue, &[], &home.file("label.zpl", &label)).await;
        // Whoever looked whether something listens printed nothing.
        let got = loop {
            let got = sink.next().await;
            if got.length > 0 {
                break got;
            }
        };
        assert_eq!((got.hash, got.end), (sha256(&label), Ok(())));
    }
    let laser = home.finds(RAW, "Laser").await;
    assert_eq!(laser.value("note"), Some("Room 7"), "{laser:?}");
    assert_well(&mut home);
}
