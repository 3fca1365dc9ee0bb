//! The program of this repository, as its users run it: `serve` with a TAP card that is moved to the guest, `connect` at the
//! user's desk.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;

use super::lab::{DIRECTORY, Lab, Process};
use super::peer::Running;
use super::pki::{Authority, Leaf};
use super::site::Site;

/// With `tap:` and an option behind it this is no name of a device, so that a build without the option refuses it.
const DEVICE: &str = "peers-guest0";
const WITHOUT_OFFLOADS: &str = ",offload=off";
const PORT: u16 = 5900;

/// The guest's card.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Card {
    mtu: u16,
    offloads: bool,
}

impl Card {
    pub(crate) const PLAIN_1500: Self = Self { mtu: 1500, offloads: false };
    pub(crate) const PLAIN_65520: Self = Self { mtu: 65_520, offloads: false };
    pub(crate) const OFFLOADS: Self = Self { mtu: 1500, offloads: true };
}

/// Why a peer with offloads is left out.
pub(crate) const NOT_BUILT: &str = "this spice-tunnel is built without card offloads";

/// Our program.
fn program(lab: &Lab) -> &str {
    lab.conditions.program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_spice-tunnel"))
}

/// Whether this build of ours knows offloads of the card.
pub(crate) fn knows_offloads(lab: &Lab, net: &str) -> bool {
    static KNOWS: OnceLock<bool> = OnceLock::new();
    *KNOWS.get_or_init(|| {
        let (program, nic) = (program(lab), format!("--nic tap:{DEVICE}{WITHOUT_OFFLOADS}"));
        let checked = lab.run(net, &format!("{program} serve --standalone --listen 127.0.0.1:0 {nic} --check"));
        if let Err(error) = &checked {
            eprintln!(
                "ATTENTION: this spice-tunnel is built without card offloads: it refuses {nic}. The plain cards are \
                 measured as they are, and there are no figures with offloads.\n  {error}"
            );
        }
        checked.is_ok()
    })
}

pub(crate) fn start(site: &Site, card: Card, tls: bool) -> Result<Running, String> {
    let lab = &site.lab;
    let option = match (knows_offloads(lab, site.near), card.offloads) {
        (true, true) | (false, false) => "",
        (true, false) => WITHOUT_OFFLOADS,
        (false, true) => return Err(NOT_BUILT.into()),
    };
    let (nic, mtu) = (format!("tap:{DEVICE}{option}"), card.mtu.to_string());
    let at = SocketAddr::new(site.host.into(), PORT);
    let listen = at.to_string();
    let mut serve = vec![program(lab), "serve", "--standalone", "--nic", &nic, "--mtu", &mtu];
    let mut connect = vec![program(lab), "connect"];
    let server = format!("spice{}://{at}", if tls { "+tls" } else { "" });
    connect.push(&server);
    let file = |name: &str| format!("{DIRECTORY}/{name}");
    let (certificate, key, authority) =
        (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    if tls {
        issue(&lab.outside(DIRECTORY), &site.host.to_string());
        serve.extend(["--tls-listen", &listen, "--tls-cert", &certificate, "--tls-key", &key]);
        connect.extend(["--ca-file", &authority]);
    } else {
        serve.extend(["--listen", &listen]);
    }
    let mut serve = lab.start(site.near, "serve", &serve)?;
    lab.listens(&lab.net(site.far), at, &mut [&mut serve])?;
    lab.until("the TAP device", || {
        serve.alive()?;
        Ok(lab.run(site.near, &format!("ip link show {DEVICE}")).ok())
    })?;
    lab.run(site.near, &format!("ip link set {DEVICE} netns guest"))?;
    lab.run("guest", &format!("ip link set {DEVICE} mtu {mtu} up"))?;
    lab.run("guest", &format!("ip address add 198.18.0.9/16 dev {DEVICE}"))?;

    let share = format!("tcp://{}?name=load", site.service_at_desk());
    connect.extend(["--share", &share, "--json"]);
    let mut connect = lab.start(site.far, "connect", &connect)?;
    let to = lab.until("connect to map the service", || {
        connect.alive()?;
        serve.alive()?;
        Ok(mapped(&lab.file("connect.out")))
    })?;
    Ok(Running { guest: lab.net("guest"), to, near: vec![serve], far: vec![connect] })
}

/// A certificate for the guest's host.
fn issue(directory: &Path, address: &str) {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    let leaf = Leaf { addresses: &[address], ..Leaf::default() };
    AUTHORITY.get_or_init(|| Authority::new("benchmark")).issue(&leaf, directory);
}

/// Where `connect` says that the guest finds the service.
fn mapped(events: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(events).ok()?.lines().find_map(mapped_in)
}

fn mapped_in(line: &str) -> Option<SocketAddr> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    (event["event"] == "mapped").then_some(())?;
    let port = u16::try_from(event["port"].as_u64()?).ok()?;
    Some(SocketAddr::new(event["virtual_ip"].as_str()?.parse().ok()?, port))
}

/// A card for a virtual machine on a socket, and its network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VmCard {
    pub(crate) name: &'static str,
    /// What stands before the path in `--nic`.
    pub(crate) kind: &'static str,
    pub(crate) subnet: &'static str,
}

impl VmCard {
    pub(crate) fn socket(&self) -> String {
        format!("{DIRECTORY}/nic-{}", self.name)
    }
}

/// Whether this build of ours knows such a card.
pub(crate) fn knows_card(lab: &Lab, card: VmCard) -> bool {
    let (program, nic) = (program(lab), format!("{}:{}", card.kind, card.socket()));
    lab.run("host", &format!("{program} serve --standalone --listen 127.0.0.1:0 --nic {nic} --check")).is_ok()
}

/// `serve` with a card for a virtual machine, and `connect` that shares these.
pub(crate) fn start_beside_vm(
    lab: &Lab,
    card: VmCard,
    services: &[SocketAddr],
) -> Result<([Process; 2], Vec<SocketAddr>), String> {
    let listen = format!("{DIRECTORY}/spice-{}", card.name);
    let (unix, nic) = (format!("unix:{listen}"), format!("{}:{}", card.kind, card.socket()));
    let (serve_name, connect_name) = (format!("serve-{}", card.name), format!("connect-{}", card.name));
    let serve =
        [program(lab), "serve", "--standalone", "--listen", &unix, "--nic", &nic, "--subnet", card.subnet];
    let mut serve = lab.start("host", &serve_name, &serve)?;
    lab.until("the Spice socket", || {
        serve.alive()?;
        Ok(lab.outside(&listen).exists().then_some(()))
    })?;
    let server = format!("spice+unix://{listen}");
    let shares: Vec<String> =
        services.iter().map(|at| format!("tcp://{at}?name=load-{}", at.port())).collect();
    let mut connect = vec![program(lab), "connect", &server, "--json"];
    connect.extend(shares.iter().flat_map(|share| ["--share", share]));
    let mut connect = lab.start("host", &connect_name, &connect)?;
    let mut found = Vec::new();
    lab.until("connect to map the services", || {
        connect.alive()?;
        serve.alive()?;
        let events = std::fs::read_to_string(lab.file(&format!("{connect_name}.out"))).unwrap_or_default();
        found = events.lines().filter_map(mapped_in).collect();
        Ok((found.len() == services.len()).then_some(()))
    })?;
    Ok(([serve, connect], found))
}
