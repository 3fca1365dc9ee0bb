//! What people would use instead: how each is set up. To add one, write a function and a line in [`PEERS`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::lab::{DIRECTORY, Process};
use super::ours::{self, Card};
use super::site::Site;

/// A way from the guest to the service.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Programs that it needs, and the Debian packages that they are in.
    pub(crate) needs: &'static [(&'static str, &'static str)],
    pub(crate) start: fn(&Site) -> Result<Running, String>,
}

impl Peer {
    /// Whether it is of us with card offloads, which not every build has.
    pub(crate) fn wants_offloads(&self) -> bool {
        self.name.ends_with("offload")
    }
}

/// A peer that is set up.
pub(crate) struct Running {
    /// The guest's network.
    pub(crate) guest: PathBuf,
    /// Where the service is for the guest.
    pub(crate) to: SocketAddr,
    /// The processes of the guest's side and of the user's side.
    pub(crate) near: Vec<Process>,
    pub(crate) far: Vec<Process>,
}

/// What all ratios are of.
pub(crate) const BASE: &str = "loopback";

const SLIRP: (&str, &str) = ("slirp4netns", "slirp4netns");
const PASTA: (&str, &str) = ("pasta", "passt");
const SOCAT: (&str, &str) = ("socat", "socat");
const SSH: (&str, &str) = ("ssh", "openssh-client");
const SSHD: (&str, &str) = ("sshd", "openssh-server");

pub(crate) const PEERS: &[Peer] = &[
    Peer { name: BASE, needs: &[], start: nothing },
    Peer { name: "slirp4netns-1500", needs: &[SLIRP], start: |site| slirp(site, 1500) },
    Peer { name: "slirp4netns-65520", needs: &[SLIRP], start: |site| slirp(site, 65_520) },
    Peer { name: "pasta-1500", needs: &[PASTA], start: |site| pasta(site, 1500) },
    Peer { name: "pasta-65520", needs: &[PASTA], start: |site| pasta(site, 65_520) },
    Peer { name: "ssh", needs: &[SSH, SSHD], start: ssh },
    Peer { name: "slirp4netns+ssh", needs: &[SLIRP, SSH, SSHD], start: slirp_and_ssh },
    Peer { name: "slirp4netns+socat", needs: &[SLIRP, SOCAT], start: slirp_and_socat },
    Peer { name: "ours-1500", needs: &[], start: |site| ours::start(site, Card::PLAIN_1500, false) },
    Peer { name: "ours-65520", needs: &[], start: |site| ours::start(site, Card::PLAIN_65520, false) },
    Peer { name: "ours-offload", needs: &[], start: |site| ours::start(site, Card::OFFLOADS, false) },
    Peer { name: "ours-tls-1500", needs: &[], start: |site| ours::start(site, Card::PLAIN_1500, true) },
    Peer { name: "ours-tls-65520", needs: &[], start: |site| ours::start(site, Card::PLAIN_65520, true) },
    Peer { name: "ours-tls-offload", needs: &[], start: |site| ours::start(site, Card::OFFLOADS, true) },
];

/// The ports of what relays on the guest's host.
const RELAY: u16 = 18_000;
const SSH_PORT: u16 = 2200;
/// The guest's host, as libslirp shows it to the guest.
const SLIRP_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn nothing(site: &Site) -> Result<Running, String> {
    Ok(Running { guest: site.lab.net(site.near), to: site.service_at(), near: Vec::new(), far: Vec::new() })
}

fn slirp(site: &Site, mtu: u16) -> Result<Running, String> {
    let mut running = guest_of_slirp(site, mtu, site.service_at().port())?;
    if !site.together() {
        running.to = site.service_at();
    }
    Ok(running)
}

/// With what listens on this port of the guest's host.
fn guest_of_slirp(site: &Site, mtu: u16, port: u16) -> Result<Running, String> {
    let mtu = format!("--mtu={mtu}");
    let words = ["slirp4netns", "--configure", &mtu, "--netns-type=path", "/run/netns/guest", "tap0"];
    let mut slirp = site.lab.start(site.near, "slirp4netns", &words)?;
    site.lab.until("the guest's card", || {
        slirp.alive()?;
        let routes = site.lab.run("guest", "ip route show default")?;
        Ok((!routes.is_empty()).then_some(()))
    })?;
    let to = SocketAddr::new(SLIRP_HOST.into(), port);
    Ok(Running { guest: site.lab.net("guest"), to, near: vec![slirp], far: Vec::new() })
}

/// It makes the guest's network itself, owned by `nobody` as it is, and copies an address and a default route into it. The router
/// of that route stands for the host's loopback.
fn pasta(site: &Site, mtu: u16) -> Result<Running, String> {
    let lab = &site.lab;
    const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    lab.run(site.near, "ip link add uplink0 type veth peer name uplink1")?;
    lab.run(site.near, "ip link set uplink1 up")?;
    lab.run(site.near, "ip address add 198.51.100.2/24 dev uplink0")?;
    lab.run(site.near, "ip link set uplink0 up")?;
    lab.run(site.near, &format!("ip route add default via {ROUTER}"))?;
    let mtu = mtu.to_string();
    #[rustfmt::skip]
    let words = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
        "pasta", "-f", "-q", "--config-net", "-4", "-i", "uplink0", "-I", "tap0", "-m", &mtu,
        "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--", "sleep", "infinity",
    ];
    let mut pasta = lab.start(site.near, "pasta", &words)?;
    let guest = lab.until("the guest's network", || {
        pasta.alive()?;
        Ok(pasta.child().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))))
    })?;
    lab.tune(&guest)?;
    let to = match site.together() {
        true => SocketAddr::new(ROUTER.into(), site.service_at().port()),
        false => site.service_at(),
    };
    Ok(Running { guest, to, near: vec![pasta], far: Vec::new() })
}

fn ssh(site: &Site) -> Result<Running, String> {
    let (ssh, sshd) = start_ssh(site)?;
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), RELAY);
    Ok(Running { guest: site.lab.net(site.near), to, near: vec![ssh], far: vec![sshd] })
}

fn slirp_and_ssh(site: &Site) -> Result<Running, String> {
    let (ssh, sshd) = start_ssh(site)?;
    let mut running = guest_of_slirp(site, 1500, RELAY)?;
    running.near.push(ssh);
    running.far.push(sshd);
    Ok(running)
}

fn start_ssh(site: &Site) -> Result<(Process, Process), String> {
    let lab = &site.lab;
    for name in ["user-key", "host-key"] {
        let file = format!("{DIRECTORY}/{name}");
        lab.run_words(site.far, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file])?;
    }
    let configuration = format!(
        "Port {SSH_PORT}\nListenAddress {}\nHostKey {DIRECTORY}/host-key\nAuthorizedKeysFile {DIRECTORY}/user-key.pub\n\
         PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n\
         AllowTcpForwarding local\nPrintMotd no\nPrintLastLog no\nMaxSessions 0\n",
        site.desk
    );
    std::fs::write(lab.file("sshd.conf"), configuration).map_err(|error| format!("sshd.conf: {error}"))?;
    // It wants to be called by its whole path.
    let path = installed("sshd").ok_or("sshd is not installed")?.display().to_string();
    let configuration = format!("{DIRECTORY}/sshd.conf");
    let mut sshd = lab.start(site.far, "sshd", &[&path, "-D", "-e", "-f", &configuration])?;
    let at = SocketAddr::new(site.desk.into(), SSH_PORT);
    lab.listens(&lab.net(site.near), at, &mut [&mut sshd])?;
    let port = SSH_PORT.to_string();
    let forward = format!("127.0.0.1:{RELAY}:{}", site.service_at_desk());
    let key = format!("{DIRECTORY}/user-key");
    let whom = format!("root@{}", site.desk);
    #[rustfmt::skip]
    let words = [
        "ssh", "-F", "none", "-N", "-i", &key, "-p", &port, "-c", "aes128-gcm@openssh.com", "-L", &forward,
        "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR", &whom,
    ];
    let mut ssh = lab.start(site.near, "ssh", &words)?;
    let relay = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), RELAY);
    lab.listens(&lab.net(site.near), relay, &mut [&mut ssh, &mut sshd])?;
    Ok((ssh, sshd))
}

fn slirp_and_socat(site: &Site) -> Result<Running, String> {
    let listen = format!("TCP-LISTEN:{RELAY},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay");
    let to = format!("TCP:{},nodelay", site.service_at());
    let mut socat = site.lab.start(site.near, "socat", &["socat", &listen, &to])?;
    let relay = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), RELAY);
    site.lab.listens(&site.lab.net(site.near), relay, &mut [&mut socat])?;
    let mut running = guest_of_slirp(site, 1500, RELAY)?;
    running.near.push(socat);
    Ok(running)
}

/// Where a program is.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&paths).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}
