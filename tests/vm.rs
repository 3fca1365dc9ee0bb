//! The real thing, as its users have it: stock QEMU with a Spice ticket, a Linux guest, stock viewers, and our program
//! as it is built, with nothing but its command line.

mod debian;
mod printing;
pub(crate) mod rig;
#[cfg(feature = "vhost-user")]
mod vhost_user;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rig::{
    Program, RustViewer, Screen, Services, Stopwatch, TOGETHER, Viewer, password_file, serve, session, soon,
    until,
};
use spice_tunnel::vm::{Answer, Builder, NicRole, SpiceAddress, Vm};

const TICKET: &str = "open, sesame";
const BOOT: Duration = Duration::from_secs(90);
/// The console's colours, as its palette has them.
const RED: [u8; 3] = [0xa8, 0, 0];
const GREEN: [u8; 3] = [0, 0xa8, 0];
const BLUE: [u8; 3] = [0, 0, 0xa8];
const MEGABYTES: usize = 20;

fn machine(directory: &Path, role: NicRole) -> Builder {
    Vm::builder()
        .ticket(TICKET)
        .spice(SpiceAddress::Unix(directory.join("spice")))
        .nic(directory.join("nic"), role)
}

/// Runs a command in the guest that must succeed.
async fn run(vm: &Vm, command: &str) -> String {
    let answer = ask(vm, command).await;
    assert_eq!(answer.status, 0, "{command}: {}", answer.output);
    answer.output
}

async fn ask(vm: &Vm, command: &str) -> Answer {
    vm.run(command, Duration::from_secs(60)).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Fills the guest's screen.
async fn paint(vm: &Vm, colour: u8) {
    run(vm, &format!("printf '\\033[4{colour}m\\033[2J\\033[H' >/dev/tty0")).await;
}

/// Starts `connect` with everything to share.
fn connect(server: SocketAddr, password: &Path, services: &Services) -> Program {
    let mut arguments = vec!["connect".to_owned(), format!("spice://{server}"), "--json".to_owned()];
    arguments.extend(["--password-file".to_owned(), password.display().to_string()]);
    let shares = [
        ("web", services.web),
        ("half", services.half),
        ("hold", services.hold),
        ("abort", services.abort),
        ("endless", services.endless),
        ("closed", services.closed),
    ];
    for (name, address) in shares {
        arguments.extend(["--share".to_owned(), format!("tcp://{address}?name={name}")]);
    }
    Program::tunnel(arguments)
}

/// Where the guest finds what is shared: `ADDRESS PORT` by name.
async fn mapped(connect: &mut Program) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while found.len() < 6 {
        let event = connect.event("mapped").await;
        let (name, address) = (event["name"].as_str().unwrap(), event["virtual_ip"].as_str().unwrap());
        found.insert(name.to_owned(), format!("{address} {}", event["port"]));
    }
    found
}

fn url(place: &str, path: &str) -> String {
    format!("http://{}/{path}", place.replace(' ', ":"))
}

/// Waits until the guest gets an answer from the web server.
async fn reaches(vm: &Vm, web: &str) {
    let command = format!("timeout 3 wget -qO- {}", url(web, "hello"));
    let answer = vm.run_until(&command, "the guest to reach the web server", rig::SOON).await;
    let answer = answer.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.output, "hello from the user's network\n");
}

/// Fetches what never ends, until somebody ends it; gives what wget said of that.
async fn hold(vm: &Vm, hold: &str) -> String {
    let answer = ask(vm, &format!("rm -f /tmp/held; wget -qO /tmp/held {}", url(hold, ""))).await;
    assert_ne!(answer.status, 0, "it ended well: {}", answer.output);
    answer.output
}

async fn is_held(vm: &Vm) {
    let held = vm.run_until("grep holding /tmp/held", "the held connection to open", rig::SOON).await;
    held.unwrap_or_else(|error| panic!("{error}"));
}

/// Everything a guest can do with what is shared.
async fn exercise(vm: &Vm, services: &mut Services, at: &BTreeMap<String, String>, watch: &Stopwatch) {
    let blob = url(&at["web"], "blob");
    let fetched = run(vm, &format!("wget -qO /tmp/blob {blob} && sha256sum </tmp/blob")).await;
    assert_eq!(fetched.split_whitespace().next(), Some(services.blob.sha256.as_str()));
    watch.lap("fetched");

    // Not with wget: busybox posts a file up to its first zero byte.
    let length = services.blob.bytes.len();
    let head = format!("POST /sink HTTP/1.0\\r\\nContent-Length: {length}\\r\\n\\r\\n");
    let answered =
        run(vm, &format!("{{ printf '{head}'; cat /tmp/blob; }} | nc {}; rm /tmp/blob", at["web"])).await;
    assert!(
        answered.starts_with("HTTP/1.0 200 OK") && answered.contains(&services.blob.sha256),
        "{answered}"
    );
    let posted = soon("the posted megabytes", services.posted.recv()).await.unwrap();
    assert_eq!(posted, (length, services.blob.sha256.clone()));
    watch.lap("posted");

    let together = url(&at["web"], "together");
    let all = format!("for n in $(seq {TOGETHER}); do wget -qO- {together} & done; wait");
    assert_eq!(run(vm, &all).await, "together\n".repeat(TOGETHER));
    watch.lap("50 connections");

    let refused = ask(vm, &format!("nc -w 10 {} </dev/null", at["closed"])).await;
    assert_ne!(refused.status, 0);
    assert!(refused.output.contains("Connection refused"), "a service that refuses: {refused:?}");
    let (web, _) = at["web"].split_once(' ').unwrap();
    let refused = ask(vm, &format!("nc -w 10 {web} 9 </dev/null")).await;
    assert!(refused.output.contains("Connection refused"), "a port that is not shared: {refused:?}");
    let nobody = ask(vm, "nc -w 10 198.18.255.250 80 </dev/null").await;
    assert!(nobody.output.contains("No route to host"), "an address that is nobody's: {nobody:?}");
    let elsewhere = ask(vm, "nc -w 10 192.0.2.1 80 </dev/null").await;
    assert!(elsewhere.output.contains("Network is unreachable"), "there is a default route: {elsewhere:?}");
    watch.lap("refused and unreachable");

    let half = run(vm, &format!("seq 100000 | nc {}", at["half"])).await;
    assert_eq!(half, "588895 bytes to the end\n");
    watch.lap("half-close");
    let aborted = ask(vm, &format!("wget -qO /dev/null {}", url(&at["abort"], ""))).await;
    assert_ne!(aborted.status, 0);
    assert!(aborted.output.contains("Connection reset by peer"), "a service that resets: {aborted:?}");
    // nc has much unread when it dies, so that the guest resets. Its input stays open: it has not finished before.
    let command = format!(
        "mkfifo /tmp/open; sleep 1000 >/tmp/open & nc {} </tmp/open | head -c 100000 >/dev/null; kill $!; rm /tmp/open",
        at["endless"]
    );
    run(vm, &command).await;
    let broken = soon("the service to be told", services.broken.recv()).await.unwrap();
    assert!(matches!(broken, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{broken:?}");
    watch.lap("resets both ways");
    run(vm, &format!("ping -c 2 -w 10 {web}")).await;
    run(vm, "ping -c 1 -w 10 198.18.0.1").await;
    watch.lap("ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_reaches_its_users_services_beside_a_viewer() {
    let watch = Stopwatch::start();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let password = password_file(directory, TICKET);
    let mut services = Services::start(MEGABYTES << 20).await;
    let machine = machine(directory, NicRole::Listens);
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    let (upstream, nic) = (
        format!("unix:{}", directory.join("spice").display()),
        format!("connect:{}", directory.join("nic").display()),
    );
    let leases = directory.join("leases").display().to_string();
    let start = |listen: String| {
        let (upstream, nic, leases) = (upstream.clone(), nic.clone(), leases.clone());
        async move {
            serve(&["--upstream", &upstream, "--listen", &listen, "--nic", &nic, "--lease-file", &leases])
                .await
        }
    };
    let (program, server) = start("127.0.0.1:0".to_owned()).await;
    let screen = Screen::start().await;
    let mut viewer = Viewer::remote_viewer(&screen, server, TICKET);
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    watch.lap("booted");
    let lease = vm.lease(rig::SOON).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(lease.starts_with("address=198.18.") && lease.contains("/16 mtu=65520 router= "), "{lease}");
    assert!(run(&vm, "ip link show eth0").await.contains("mtu 65520"));
    watch.lap("has an address");

    let first = until("the viewer's session", || session(&vm)).await;
    paint(&vm, 1).await;
    screen.shows("the guest's red screen in the viewer", RED).await;
    watch.lap("the viewer shows it");
    let mut companion = connect(server, &password, &services);
    companion.event("connected").await;
    let at = mapped(&mut companion).await;
    watch.lap("connected");

    exercise(&vm, &mut services, &at, &watch).await;

    // None of that was the viewer's business.
    assert!(viewer.program.is_running(), "remote-viewer ended:\n{}", viewer.program.said());
    assert_eq!(session(&vm).await, Some(first), "the viewer's session is not the one it was");
    paint(&vm, 4).await;
    screen.shows("the guest's blue screen in the viewer", BLUE).await;
    watch.lap("the viewer is undisturbed");

    // The tunnel ends with the session it belongs to, and with it every connection of the guest.
    let (held, ()) = tokio::join!(hold(&vm, &at["hold"]), async {
        is_held(&vm).await;
        viewer.program.kill().await;
    });
    assert!(held.contains("Connection reset by peer"), "{held}");
    companion.event("disconnected").await;
    watch.lap("the viewer was closed");

    // The next viewer's session is the next tunnel's, at the same addresses.
    let mut second = Viewer::spicy(&screen, server, TICKET);
    let next = until("the second viewer's session", || session(&vm)).await;
    assert_ne!(next, first);
    companion.event("connected").await;
    assert_eq!(mapped(&mut companion).await, at);
    reaches(&vm, &at["web"]).await;
    paint(&vm, 2).await;
    screen.shows("the guest's green screen in the second viewer", GREEN).await;
    assert!(second.program.is_running());
    watch.lap("a second viewer");

    // Our own restart: the guest keeps its address and finds everything where it was.
    assert!(program.terminate().await.success(), "serve's exit status");
    let (program, again) = start(server.to_string()).await;
    assert_eq!(again, server);
    companion.event("connected").await;
    assert_eq!(mapped(&mut companion).await, at);
    reaches(&vm, &at["web"]).await;
    assert_eq!(vm.lease(rig::SOON).await.unwrap(), lease);
    watch.lap("serve was restarted");

    // QEMU's end and return.
    vm.kill().await.unwrap();
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    vm.lease(rig::SOON).await.unwrap_or_else(|error| panic!("{error}"));
    reaches(&vm, &at["web"]).await;
    watch.lap("QEMU was killed and started again");

    assert!(companion.terminate().await.success(), "connect's exit status");
    assert!(program.terminate().await.success(), "serve's exit status");
    vm.quit(rig::SOON).await.unwrap();
    watch.lap("all ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_connects_to_us_and_another_client_holds_the_session() {
    let watch = Stopwatch::start();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let password = password_file(directory, TICKET);
    let services = Services::start(1 << 20).await;
    let nic = directory.join("nic");
    let upstream = format!("unix:{}", directory.join("spice").display());
    let listen = format!("listen:{}", nic.display());
    // What a dead run left is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&nic).unwrap());
    let arguments = ["--upstream", &upstream, "--listen", "127.0.0.1:0", "--nic", &listen];
    let (program, server) = serve(&arguments).await;
    // What a live one has is an error.
    let mut rival = Program::tunnel([&["serve"], &arguments[..]].concat());
    rival.line("whose socket it is", |line| line.contains(&*nic.display().to_string()).then_some(())).await;
    assert!(!soon("the second serve to end", rival.ended()).await.success());

    let machine = machine(directory, NicRole::Connects);
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut companion = connect(server, &password, &services);
    let at = mapped(&mut companion).await;
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    watch.lap("booted");
    vm.lease(rig::SOON).await.unwrap_or_else(|error| panic!("{error}"));
    reaches(&vm, &at["web"]).await;
    watch.lap("reached without any session");

    // A session begins: the lone tunnel ends, and the companion joins the session.
    let mut viewer = RustViewer::connect(server, TICKET).await;
    companion.event("disconnected").await;
    companion.event("connected").await;
    assert_eq!(mapped(&mut companion).await, at);
    let first = until("the client's session", || session(&vm)).await;
    reaches(&vm, &at["web"]).await;
    let shown = viewer.displayed();
    let fetched = run(&vm, &format!("wget -qO- {} | sha256sum", url(&at["web"], "blob"))).await;
    assert_eq!(fetched.split_whitespace().next(), Some(services.blob.sha256.as_str()));
    paint(&vm, 1).await;
    viewer.displays_more_than(shown).await;
    assert!(viewer.is_whole(), "a channel of the client ended");
    assert_eq!(session(&vm).await, Some(first));
    watch.lap("reached beside a session");

    // QEMU dies: the client's session, the tunnel and the card end; its successor gets all of them again.
    vm.kill().await.unwrap();
    companion.event("disconnected").await;
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));
    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    vm.lease(rig::SOON).await.unwrap_or_else(|error| panic!("{error}"));
    reaches(&vm, &at["web"]).await;
    watch.lap("QEMU was killed and started again");

    assert!(program.terminate().await.success(), "serve's exit status");
    assert!(!nic.exists(), "serve left its socket behind");
    assert!(companion.terminate().await.success(), "connect's exit status");
    vm.quit(rig::SOON).await.unwrap();
    watch.lap("all ended");
}
