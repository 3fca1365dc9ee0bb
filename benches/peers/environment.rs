//! What a run needs of the machine, and what it is told about it.

use std::process::Command;

use serde_json::{Value, json};

use super::Args;
use super::lab::Lab;
use super::peer::{Peer, installed};
use super::proc::parse_cpu_model;
use super::site::Distance;
use super::{delay, plan};

const ALWAYS: &[(&str, &str)] = &[
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("taskset", "util-linux"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
];

/// Open files of the load and of peers that do not raise the limit themselves.
const FILES: u64 = 100_000;

/// Fails with what is missing, and how to get it.
pub(crate) fn check(peers: &[&Peer], machine: bool) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("this makes networks of its own and needs root".into());
    }
    let mut missing: Vec<(&str, &str)> = Vec::new();
    for need in ALWAYS.iter().chain(peers.iter().flat_map(|peer| peer.needs)) {
        if installed(need.0).is_none() && !missing.contains(need) {
            missing.push(*need);
        }
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let mut what: Vec<String> = missing.iter().map(|(program, _)| (*program).to_owned()).collect();
    if machine && let Err(more) = spice_tunnel::vm::Host::find() {
        what.extend(more.what);
        packages.extend(more.packages);
    }
    packages.sort_unstable();
    packages.dedup();
    if !what.is_empty() {
        let note = match packages.contains(&"openssh-server") {
            true => "\n(openssh-server starts an sshd of this machine, which nobody needs here)",
            false => "",
        };
        return Err(format!(
            "this needs what is not installed here: {}\ninstall it with:\n  apt-get install --no-install-recommends \
             {}{note}\nor leave out who needs it: --peers, --only",
            what.join(", "),
            packages.join(" ")
        ));
    }
    raise_files();
    Ok(())
}

/// Lets us and all peers have as many open files as we may; who needs more says so when it comes to that.
fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let Some(maximum) = limit.maximum else { return };
    for files in [FILES.max(maximum), maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) }).is_ok() {
            return;
        }
    }
}

/// Everything that a reader of the figures may ask for.
pub(crate) fn describe(args: &Args) -> Result<Value, String> {
    let lab = Lab::new(&["host"], args.conditions())?;
    let kernel = |name: &str| {
        let said = lab.run("host", &format!("cat /proc/sys/net/{name}")).unwrap_or_default();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let times = args.times();
    let far: Vec<Value> = plan::METRICS
        .iter()
        .filter(|metric| matches!(metric.at, Distance::Far(_)))
        .map(|metric| json!({ "metric": metric.name, "warm": metric.warm(), "seconds": metric.seconds(&times) }))
        .collect();
    Ok(json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": parse_cpu_model(&read("/proc/cpuinfo")),
        "processors": processors,
        "congestion_control": kernel("ipv4/tcp_congestion_control"),
        "tcp_rmem": kernel("ipv4/tcp_rmem"),
        "tcp_wmem": kernel("ipv4/tcp_wmem"),
        "rmem_max": read("/proc/sys/net/core/rmem_max").trim(),
        "wmem_max": read("/proc/sys/net/core/wmem_max").trim(),
        "delayed_link": delay::kind(&lab, "host"),
        "versions": {
            "spice-tunnel": env!("CARGO_PKG_VERSION"),
            "another program": args.program,
            "commit": said("git", &["describe", "--always", "--dirty"]),
            "slirp4netns": said("slirp4netns", &["--version"]),
            "pasta": packaged("passt"),
            "ssh": said("ssh", &["-V"]),
            "socat": said("socat", &["-V"]),
            "qemu": said("qemu-system-x86_64", &["--version"]),
        },
        "rounds": args.rounds(),
        "seconds": times.measure,
        "far": far,
        "pinned": { "peers": args.pin_peers, "load": args.pin_load },
    }))
}

/// The first line with a number in it that a program says.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    Some(line.trim().to_owned())
}

/// The version of a Debian package, of a program that does not know its own.
fn packaged(package: &str) -> Option<String> {
    said("dpkg-query", &["--show", package])
}
