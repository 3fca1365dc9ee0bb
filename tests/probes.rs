//! Devices that know nothing of DNS-SD, in a network of their own: SNMP, SSDP and WS-Discovery with real sockets, real
//! broadcasts and real multicast, and with a real snmpd; honest devices and odd ones together.
//!
//! ```text
//!  discovery: 10.77.0.1 ── 10.77.0.5 and up: devices
//! ```

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::embed::example;
use crate::vm::rig::{Program, until};

/// Two network namespaces with a cable between them. They end with their processes.
struct Network {
    user: Child,
    devices: Child,
    agents: PathBuf,
    discover: PathBuf,
}

impl Network {
    async fn new() -> Self {
        let programs = || (example("lan-agents"), example("discover"));
        let (agents, discover) = tokio::task::spawn_blocking(programs).await.unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sleep", "infinity"]);
        let user = namespace(command, None).await;
        let beside = within(&user, &["unshare", "--net", "sleep", "infinity"]);
        let devices = namespace(beside, Some(&user)).await;
        let network = Network { user, devices, agents, discover };
        let peer = network.devices.id().unwrap();
        for words in [
            &*format!("ip link add lan type veth peer name lan netns {peer}"),
            "ip address add 10.77.0.1/24 brd + dev lan",
            "ip link set lan up",
            "ip link set lo up",
        ] {
            run(&network.user, words).await;
        }
        for last in 5..30 {
            run(&network.devices, &format!("ip address add 10.77.0.{last}/24 brd + dev lan")).await;
        }
        run(&network.devices, "ip link set lan up").await;
        run(&network.devices, "ip link set lo up").await;
        network
    }

    /// A device, which can be found.
    async fn device(&self, last: u8, kind: &str, more: &[&str]) -> Program {
        let agents = self.agents.display().to_string();
        let (address, uuid) =
            (format!("10.77.0.{last}"), format!("5eed0000-0000-4000-8000-0000000000{last:02}"));
        let serial = format!("SERIAL{last:02}");
        let mut words = vec![&*agents, kind, "--address", &address, "--uuid", &uuid, "--serial", &serial];
        if kind == "snmp" {
            words.extend(["--broadcast", "10.77.0.255"]);
        }
        words.extend(more);
        let mut device = Program::start("lan-agents", within(&self.devices, &words));
        device.line("that it is ready", |line| (line == "ready").then_some(())).await;
        device
    }

    /// Discovery, on the other side.
    fn discover(&self) -> Discovery {
        let discover = self.discover.display().to_string();
        let mut command = within(&self.user, &[&*discover]);
        // Nothing of this machine: there is no CUPS in the namespace, and no router to know the network by.
        command.env("NETWORK", "test").env("RUST_LOG", "debug");
        Discovery { program: Program::start("discover", command), lines: Vec::new() }
    }
}

/// Discovery at work, and all it has said.
struct Discovery {
    program: Program,
    lines: Vec<String>,
}

impl Discovery {
    /// Waits until something can be made of what was said.
    async fn until<T>(&mut self, what: &str, mut make: impl FnMut(&[String]) -> Option<T>) -> T {
        loop {
            if let Some(made) = make(&self.lines) {
                return made;
            }
            let line = self.program.line(what, |line| Some(line.to_owned())).await;
            self.lines.push(line);
        }
    }

    /// A device of this name: its line, and those of its services.
    async fn found(&mut self, name: &str) -> (String, String) {
        let named = format!("name=\"{name}\"");
        self.until(name, |lines| {
            let at = lines.iter().position(|line| line.starts_with("found ") && line.contains(&named))?;
            let services = lines[at + 1..].iter();
            // Whole when something else follows.
            services.clone().find(|line| !line.starts_with("  "))?;
            let services: Vec<_> = services.take_while(|line| line.starts_with("  ")).cloned().collect();
            Some((lines[at].clone(), services.join("\n")))
        })
        .await
    }

    async fn looked_round(&mut self, source: &str) {
        let start = format!("status {source} ");
        let done = |line: &String| line.starts_with(&start) && line.ends_with(" LookedRound");
        self.until("a look round", |lines| lines.iter().any(done).then_some(())).await;
    }
}

async fn namespace(mut command: Command, not: Option<&Child>) -> Child {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("unshare of util-linux");
    let network = |pid: Option<u32>| {
        let pid = pid.map_or("self".into(), |pid| pid.to_string());
        std::fs::read_link(Path::new("/proc").join(pid).join("ns/net")).ok()
    };
    until("a network namespace", || async {
        let is = network(child.id());
        let theirs = not.and_then(|not| network(not.id()));
        // Root of it is one only when the map of users is there.
        let users = std::fs::read_to_string(format!("/proc/{}/uid_map", child.id()?)).unwrap_or_default();
        (is.is_some() && is != network(None) && is != theirs && !users.trim().is_empty()).then_some(())
    })
    .await;
    child
}

fn within(namespace: &Child, words: &[&str]) -> Command {
    let pid = namespace.id().expect("may user namespaces be made?").to_string();
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid, "--user", "--net", "--preserve-credentials", "--"]).args(words);
    command
}

async fn run(namespace: &Child, words: &str) {
    let words: Vec<&str> = words.split_whitespace().collect();
    let done = within(namespace, &words).status().await.unwrap();
    assert!(done.success(), "{words:?}: tests/install-prerequisites.sh");
}

#[tokio::test(flavor = "multi_thread")]
async fn printers_without_dns_sd_are_found_told_apart_and_missed() {
    let network = Network::new().await;
    let directory = tempfile::tempdir().unwrap();
    let laser = ["--name", "Laser", "--maker", "HP", "--model", "LaserJet 4", "--location", "Room 7"];
    let _laser =
        network.device(5, "snmp", &[&laser[..], &["--open", "9100", "--open", "515"]].concat()).await;
    let _modern = network.device(6, "snmp", &["--name", "Modern", "--ipp", "--version", "2c"]).await;
    let basic = "urn:schemas-upnp-org:device:Basic:1";
    let nas = network.device(7, "ssdp", &["--name", "NAS", "--kind", basic, "--presentation", "/ui"]).await;
    let scanner = network.device(8, "wsd", &["--name", "Scanner", "--scanner", "--shy"]).await;
    let _upnp = network.device(9, "ssdp", &["--name", "Inkjet", "--open", "9100"]).await;

    // A real agent, which another one answers broadcasts for.
    let configuration = directory.path().join("snmpd.conf");
    let objects = [
        "rocommunity public",
        "override 1.3.6.1.2.1.25.3.2.1.2.1 object_id 1.3.6.1.2.1.25.3.1.5",
        "override 1.3.6.1.2.1.25.3.2.1.3.1 octet_str \"Net Print 3000\"",
        "override 1.3.6.1.2.1.43.5.1.1.17.1 octet_str \"NETSNMP77\"",
        "override 1.3.6.1.2.1.43.5.1.1.16.1 octet_str \"Netsnmp\"",
        "override 1.3.6.1.4.1.2699.1.2.1.2.1.1.3.1 octet_str \"MFG:Net;MDL:Print 3000;CMD:PCL;\"",
        "override 1.3.6.1.4.1.2699.1.2.1.3.1.1.4.1.1 octet_str \"socket://10.77.0.10:9101\"",
    ];
    std::fs::write(&configuration, objects.join("\n")).unwrap();
    let conf = configuration.display().to_string();
    let mut command = within(&network.devices, &["snmpd", "-f", "-C", "-c", &conf, "-Le", "127.0.0.1:16100"]);
    command.env("SNMP_PERSISTENT_DIR", directory.path());
    let mut snmpd = Program::start("snmpd", command);
    snmpd.line("that it runs", |line| line.contains("NET-SNMP version").then_some(())).await;
    let _real = network.device(10, "snmp", &["--before", "127.0.0.1:16100", "--open", "9101"]).await;

    let mut discover = network.discover();
    for (name, start, address) in [
        ("Laser", "found serial:hp:SERIAL05 ", "10.77.0.5"),
        ("Modern", "found uuid:", "10.77.0.6"),
        ("NAS", "found serial:example:SERIAL07 ", "10.77.0.7"),
        ("Scanner", "found serial:example:SERIAL08 ", "10.77.0.8"),
        ("Inkjet", "found serial:example:SERIAL09 ", "10.77.0.9"),
        ("Netsnmp", "found serial:net:NETSNMP77 ", "10.77.0.10"),
    ] {
        let (line, _) = discover.found(name).await;
        assert!(line.starts_with(start), "{line}");
        assert!(line.contains(&format!("addresses={address} ")) && line.contains("standing=Plain"), "{line}");
    }
    for (name, needles) in [
        (
            "Laser",
            &[
                "9100 printer",
                "515 printer",
                "_pdl-datastream._tcp",
                "_printer._tcp",
                "note=Room 7",
                "ty=HP LaserJet 4",
            ][..],
        ),
        ("Modern", &["631 printer", "_ipp._tcp _print,_universal", "rp=ipp/print", "UUID=", "image/urf"]),
        ("NAS", &["49152 web", "_http._tcp", "path=/ui"]),
        ("Scanner", &["5357 scanner", "_uscan._tcp", "rs=eSCL"]),
        ("Inkjet", &["9100 printer", "_pdl-datastream._tcp"]),
        ("Netsnmp", &["9101 printer", "pdl=application/vnd.hp-PCL"]),
    ] {
        let (_, services) = discover.found(name).await;
        for needle in needles {
            assert!(services.contains(needle), "{name}: no {needle} in {services}");
        }
    }
    // None of them was said to have more than it has.
    for (name, port) in [("Modern", "9100"), ("Netsnmp", "515")] {
        let (_, services) = discover.found(name).await;
        assert!(!services.contains(port), "{services}");
    }

    // Two leave, and say so.
    for (device, last) in [(nas, 7), (scanner, 8)] {
        assert!(device.terminate().await.success());
        let lost = format!("lost serial:example:SERIAL{last:02}");
        discover.until("that it is lost", |lines| lines.contains(&lost).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_devices_do_no_harm() {
    let network = Network::new().await;
    let mut devices = Vec::new();
    let mut last = 5;
    for (kind, odds) in [
        ("snmp", &["garbage", "mute", "forger", "texts"][..]),
        ("ssdp", &["garbage", "mute", "elsewhere", "redirect", "bomb", "endless", "slow", "texts"]),
        ("wsd", &["garbage", "mute", "forger", "elsewhere", "redirect", "bomb", "endless", "slow", "texts"]),
    ] {
        for odd in odds {
            let name = format!("{kind} {odd}");
            let more = ["--odd", odd, "--name", &name, "--open", "9100"];
            devices.push(network.device(last, kind, &more).await);
            last += 1;
        }
    }
    let _honest = network.device(last, "snmp", &["--name", "Honest", "--open", "9100"]).await;
    let mut discover = network.discover();
    discover.found("Honest").await;
    for source in ["snmp", "ssdp", "ws-discovery"] {
        discover.looked_round(source).await;
    }
    let _late = network.device(last + 1, "wsd", &["--name", "Late", "--open", "9100"]).await;
    discover.found("Late").await;
    assert!(discover.program.is_running());
    let names: Vec<&String> = discover.lines.iter().filter(|line| line.starts_with("found ")).collect();
    // Those with odd texts, cleaned, and the honest ones; nobody else has a description.
    for line in &names {
        let named = line.split_once("name=\"").map(|(_, rest)| rest).unwrap_or_default();
        let known = ["Honest", "Late", "snmp texts", "ssdp texts", "wsd texts"];
        assert!(known.iter().any(|known| named.starts_with(known)), "{line}");
    }
    assert_eq!(names.len(), 5, "{names:#?}");
    let bad = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
    for line in &discover.lines {
        assert!(!line.contains(bad) && !line.contains("127.0.0.1"), "{line}");
    }
}
