//! Discovery against real parts: avahi and ippeveprinter on one machine, this on another, a cable between them. The machines are network
//! namespaces, for which one has to be root, or what `unshare --user --map-root-user --map-auto --net` makes of a user.
//!
//! ```text
//!  user  10.77.0.2 ──cable── 10.77.0.9  printer: dbus, avahi, ippeveprinter
//! ```

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{env, process::Stdio, time::Duration};

use client_glue::discover::{Device, DiscoverConfig, Discovery, NetworkId, Standing, Update};
use spice_proto::service_info::Identity;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// How long anything may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Set where this program runs as the user's side.
const USERS_SIDE: &str = "SPICE_TUNNEL_TEST_DISCOVER";

/// What the printer's machine needs to be one. $1 is a directory for its files.
const PRINTERS_MACHINE: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/avahi-daemon /run/spool
printf '127.0.0.1 localhost\n10.77.0.9 office.local\nfd77::9 office.local\n' >/run/hosts
mount --bind /run/hosts /etc/hosts
hostname office
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
cat >/run/bus.conf <<'.'
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
  </policy>
</busconfig>
.
printf '[server]\nhost-name=office\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=cable\n[publish]\npublish-workstation=no\n' >/run/avahi.conf
ip link set lo up
echo ready
exec cat
"#;

/// A machine: its first process, which ends with its standard input.
struct Machine(Child);

impl Machine {
    async fn start(mut command: Command) -> Machine {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("this test needs unshare and nsenter of util-linux");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        assert_eq!(ready.as_deref(), Some("ready"), "this test needs the right to make namespaces");
        Machine(child)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.0.id().unwrap().to_string();
        command.args(["--target", &pid, "--net", "--mount", "--uts", "--"]);
        command.args(words);
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }

    async fn run(&self, words: &str) {
        let words: Vec<&str> = words.split_whitespace().collect();
        assert!(self.command(&words).status().await.unwrap().success(), "{words:?}: is it installed?");
    }

    fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// A network of two machines, with avahi on the printer's.
struct Lan {
    user: Machine,
    printer: Machine,
    bus: Child,
    avahi: Child,
}

impl Lan {
    async fn new() -> Lan {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--uts", "sh", "-c", PRINTERS_MACHINE]);
        let printer = Machine::start(command).await;
        let mut beside =
            printer.command(&["unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec cat"]);
        beside.stdin(Stdio::piped());
        let user = Machine::start(beside).await;
        let peer = user.0.id().unwrap();
        printer.run(&format!("ip link add cable type veth peer name cable netns {peer}")).await;
        printer.run("ip address add 10.77.0.9/24 dev cable").await;
        printer.run("ip address add fd77::9/64 dev cable nodad").await;
        user.run("ip address add 10.77.0.2/24 dev cable").await;
        printer.run("ip link set cable up").await;
        user.run("ip link set cable up").await;
        let bus = printer.spawn(&["dbus-daemon", "--config-file=/run/bus.conf", "--nofork"]);
        printer.until("test -S /run/dbus/system_bus_socket").await;
        let avahi = printer.avahi().await;
        Lan { user, printer, bus, avahi }
    }

    /// A printer that tells of itself.
    fn print(&self) -> Child {
        let words = "ippeveprinter -p 8631 -n office.local -r _print,_universal -f application/pdf,image/urf -k -d /run/spool -l Cellar";
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.push("Office printer, 2nd floor");
        self.printer.spawn(&words)
    }
}

impl Machine {
    async fn until(&self, condition: &str) {
        let wait = format!("until {condition}; do sleep 0.05; done");
        let met = timeout(PATIENCE, self.command(&["sh", "-c", &wait]).status()).await;
        assert!(met.expect(condition).unwrap().success());
    }

    async fn avahi(&self) -> Child {
        let words = "avahi-daemon --no-drop-root --no-chroot --no-rlimits -f /run/avahi.conf";
        let avahi = self.spawn(&words.split_whitespace().collect::<Vec<_>>());
        let up = "dbus-send --system --print-reply --dest=org.freedesktop.Avahi / org.freedesktop.Avahi.Server.GetState 2>/dev/null";
        self.until(&format!("{up} | grep -q 'int32 2'")).await;
        avahi
    }
}

/// Discovery on the user's machine: this very program, run there.
struct User {
    _process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl User {
    fn start(lan: &Lan) -> User {
        let program = env::current_exe().unwrap();
        let words =
            [program.to_str().unwrap(), "--exact", "the_users_side", "--nocapture", "--test-threads=1"];
        let mut command = lan.user.command(&words);
        command.env(USERS_SIDE, "yes").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        User { _process: process, input, lines }
    }

    /// The next that becomes of a device and begins with `start`; what else is told before it is passed over.
    async fn hears(&mut self, start: &str) -> String {
        self.hears_of(start, "").await
    }

    /// The next that begins with `start` and tells `what`.
    async fn hears_of(&mut self, start: &str, what: &str) -> String {
        let mut heard = Vec::new();
        let wait = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.starts_with(start) && line.contains(what) {
                    return Some(line);
                }
                heard.push(line);
            }
            None
        };
        let line = timeout(PATIENCE, wait).await;
        match line {
            Ok(Some(line)) => line,
            Ok(None) | Err(_) => panic!("expected {start:?} {what:?}, heard {heard:#?}"),
        }
    }

    async fn says(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

async fn stop(mut child: Child, signal: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
    child.wait().await.unwrap();
}

#[tokio::test]
async fn a_real_printer_comes_goes_dies_and_is_imitated() {
    let mut lan = Lan::new().await;
    let mut user = User::start(&lan);
    let printer = lan.print();
    // A device is found with what is known of it so far; what its answers add (here the subtypes) changes it.
    let whole = "8631 printer _ipp._tcp(_print,_universal) _ipps._tcp(_print,_universal)";
    let mut found = user.hears("found").await;
    if !found.contains(whole) {
        found = user.hears_of("changed", whole).await;
    }
    assert!(
        found.contains(" \"Office printer, 2nd floor\" host=office.local at=10.77.0.9,fd77::9 Plain "),
        "{found}"
    );
    assert!(found.contains("note=Cellar") && found.contains("pdl=application/pdf,image/urf"), "{found}");
    let identity = found.split(' ').nth(1).unwrap().to_owned();
    let uuid = identity.strip_prefix("uuid:").expect(&found).to_owned();

    // Another one says that it is the same.
    let mut address = lan.printer.spawn(&["avahi-publish", "-a", "-R", "twin.local", "10.77.0.66"]);
    let text = format!("UUID={uuid}");
    let mut twin =
        lan.printer.spawn(&["avahi-publish", "-s", "-H", "twin.local", "Twin", "_ipp._tcp", "631", &text]);
    let imitated = user.hears("found").await;
    assert!(imitated.contains("host=twin.local at=10.77.0.66 Impostor"), "{imitated}");
    twin.kill().await.unwrap();
    let qualified = imitated.split(' ').nth(1).unwrap();
    user.hears(&format!("lost {qualified}")).await;
    address.kill().await.unwrap();

    // It says goodbye, and comes back as who it was.
    stop(printer, "-TERM").await;
    user.hears(&format!("lost {identity}")).await;
    let printer = lan.print();
    user.hears(&format!("found {identity} ")).await;

    // It dies without a word, and somebody notices who wants to print.
    stop(std::mem::replace(&mut lan.avahi, lan.printer.spawn(&["true"])), "-KILL").await;
    user.says(&identity).await;
    user.hears(&format!("lost {identity}")).await;
    drop(printer);

    // It is there again, and the user's cable is pulled and put back.
    lan.printer.run("rm -f /run/avahi-daemon/pid").await;
    lan.avahi = lan.printer.avahi().await;
    let printer = lan.print();
    user.hears(&format!("found {identity} ")).await;
    lan.user.run("ip link set cable down").await;
    user.hears(&format!("lost {identity}")).await;
    lan.user.run("ip link set cable up").await;
    user.hears(&format!("found {identity} ")).await;
    drop((printer, lan.bus));
}

/// Not a test, but what the user's machine runs.
#[tokio::test]
async fn the_users_side() {
    if env::var_os(USERS_SIDE).is_none() {
        return;
    }
    let config = DiscoverConfig { local: None, network: NetworkId::new("test"), ..DiscoverConfig::default() };
    let mut discovery = Discovery::start(config);
    // The name of this test stands in the line.
    println!();
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            update = discovery.next() => match update.unwrap() {
                Update::Found(device) => println!("found {}", line(&device)),
                Update::Changed(device) => println!("changed {}", line(&device)),
                Update::Lost(identity) => println!("lost {}", identity.as_str()),
            },
            line = input.next_line() => match line.unwrap() {
                Some(identity) => discovery.doubt(&Identity::new(&identity).unwrap()),
                None => return,
            },
        }
    }
}

fn line(device: &Device) -> String {
    let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
    let services = device.services.iter().map(|service| {
        let adverts = service.adverts.iter().map(|advert| {
            let subtypes: Vec<&str> = advert.subtypes.iter().map(|subtype| subtype.as_str()).collect();
            format!("{}({})", advert.kind.as_str(), subtypes.join(","))
        });
        format!("{} {} {}", service.port, service.class, adverts.collect::<Vec<_>>().join(" "))
    });
    let txt =
        device.services.iter().flat_map(|service| &service.adverts).flat_map(|advert| advert.txt.entries());
    let txt: Vec<String> = txt.map(|(key, value)| format!("{key}={}", value.unwrap_or_default())).collect();
    let standing = match &device.standing {
        Standing::Plain => "Plain",
        Standing::Moved => "Moved",
        Standing::Impostor { .. } => "Impostor",
    };
    format!(
        "{} {:?} host={} at={} {standing} {} | {}",
        device.identity.as_str(),
        device.name.as_str(),
        device.host.as_ref().map_or("-", |host| host.as_str()),
        addresses.join(","),
        services.collect::<Vec<_>>().join("; "),
        txt.join(" "),
    )
}
