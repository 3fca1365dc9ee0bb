//! A stock guest finds its user's printer, of which nobody told it, and prints: real avahi and CUPS in a real virtual
//! machine, behind a real network card.

use std::time::Duration;

use openssl::sha::sha256;
use spice_tunnel::vm::{NicRole, Vm};
use tokio::process::Command;

use super::debian::Tree;
use super::rig::{Stopwatch, password_file};
use super::{BOOT, Program, TICKET, machine, run};
use crate::lan::{Desk, Lan, Pace, Printer};
use crate::printing::documents::pdf;

/// What a desktop has installed to print.
const PACKAGES: [&str; 10] = [
    "dbus-daemon",
    "dbus-system-bus-common",
    "avahi-daemon",
    "avahi-utils",
    "libnss-mdns",
    "cups-daemon",
    "cups-client",
    "cups-core-drivers",
    "cups-server-common",
    "cups-filters-core-drivers",
];
const USERS: &str =
    "root:x:0:0::/tmp:/bin/sh\nlp:x:7:7::/:/\nmessagebus:x:100:100::/:/\navahi:x:101:101::/:/\n";
const GROUPS: &str =
    "root:x:0:\nadm:x:4:\nlp:x:7:\nmessagebus:x:100:\navahi:x:101:\nnetdev:x:102:\nlpadmin:x:103:\n";
const TITLE: &str = "From a guest that was told nothing";
/// For what the guest does in seconds, on a machine that is busy with other guests.
const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "Büro Drucker";

/// The guest's file system: packages as they are, users, and nothing about any printer.
fn desktop(document: &[u8]) -> Tree {
    let mut tree = Tree::of_packages(&PACKAGES);
    tree.write("/etc/passwd", USERS);
    tree.write("/etc/group", GROUPS);
    tree.write("/etc/hosts", "127.0.0.1 localhost guest\n::1 localhost\n");
    // As libnss-mdns leaves it.
    tree.write("/etc/nsswitch.conf", "hosts: files mdns4_minimal [NOTFOUND=return] dns\n");
    // As cups-daemon makes it, but for a log that says something.
    let cupsd = std::fs::read_to_string("/usr/share/cups/cupsd.conf.default").unwrap();
    tree.write("/etc/cups/cupsd.conf", cupsd.replace("LogLevel warn", "LogLevel debug"));
    tree.write(
        "/etc/cups/cups-files.conf",
        std::fs::read("/usr/share/cups/cups-files.conf.default").unwrap(),
    );
    tree.write("/desktop", include_str!("desktop.sh"));
    tree.write("/document.pdf", document);
    tree
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_guest_finds_a_printer_and_prints_on_it() {
    let watch = Stopwatch::start();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let password = password_file(directory, TICKET).display().to_string();
    let document = pdf(3, TITLE);
    let machine = machine(directory, NicRole::Listens).memory(512).archive(desktop(&document).archive());
    watch.lap("the guest's file system");
    let vm = machine.start().await.unwrap_or_else(|error| panic!("{error}"));

    let lan = Lan::new().await;
    let (mut printer, desk) =
        tokio::join!(Printer::announced(&lan, "office", NAME, Pace::Quick), Desk::new(&lan));
    let at = |kind: &str, name: &str| format!("{kind}:{}", directory.join(name).display());
    let (upstream, listen, nic) = (at("unix", "spice"), at("unix", "front"), at("connect", "nic"));
    let mut serve = Program::tunnel(["serve", "--upstream", &upstream, "--listen", &listen, "--nic", &nic]);
    serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
    watch.lap("the user's network, and serve");

    vm.booted(BOOT).await.unwrap_or_else(|error| panic!("{error}"));
    watch.lap("booted");
    vm.lease(PATIENCE).await.unwrap_or_else(|error| panic!("{error}"));
    run(&vm, "sh /desktop").await;
    watch.lap("the guest's desktop is up");
    let nothing = run(&vm, "lpstat -e").await;
    assert_eq!(nothing, "", "a printer that nobody shares");
    watch.lap("has no printer");

    let tunnel = Stopwatch::start();
    let server = format!("spice+unix://{}", directory.join("front").display());
    let arguments = ["connect", &server, "--password-file", &password, "--json", "--discover"];
    let mut connect = desk.machine.tunnel(&arguments);
    connect.event("connected").await;
    tunnel.lap("from the tunnel's start to a connection");
    connect.event("mapped").await;
    tunnel.lap("from the tunnel's start to a shared printer");
    let listed = vm.run_until("lpstat -e | grep .", "the guest to list a printer", PATIENCE).await;
    let listed = listed.unwrap_or_else(|error| panic!("{error}")).output;
    tunnel.lap("from the tunnel's start to a printer in the guest's list");
    assert_eq!(listed.lines().count(), 1, "{listed}");
    let queue = listed.trim();
    let found = run(&vm, "lpstat -l -e").await;
    assert!(found.contains("._tcp.local/"), "found by another way than DNS-SD: {found}");
    let before = browse(&vm).await;

    // Untouched by CUPS, as from a program that speaks the printer's language.
    print(&vm, &format!("-d {queue} -o raw")).await;
    watch.lap("printed as it is");
    assert_eq!(printer.stored().into_values().collect::<Vec<_>>(), [sha256(&document)]);

    // The way of every application: CUPS makes of it what the printer wants.
    print(&vm, &format!("-d {queue}")).await;
    watch.lap("printed through CUPS's filters");
    let (filtered, _) = printer.stored().into_iter().find(|(_, hash)| *hash != sha256(&document)).unwrap();
    let text = Command::new("pdftotext").arg(filtered).arg("-").output().await.unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    let pages: Vec<&str> = text.split('\x0c').map(str::trim).filter(|page| !page.is_empty()).collect();
    let expected: Vec<String> = (1..=3).map(|page| format!("{TITLE}, page {page} of 3")).collect();
    assert_eq!(pages, expected);
    assert!(!connect.told("disconnected"), "the tunnel broke:\n{}", connect.said());

    // It is switched off, and the guest hears of it.
    let off = Stopwatch::start();
    printer.switch_off().await;
    finds_nothing(&vm).await;
    off.lap("from the printer's end to nothing in the guest's list");

    // It is back, and so is all that the guest knew of it: this time by asking, as a guest that boots only now.
    printer.switch_on().await;
    connect.event("mapped").await;
    run(&vm, "avahi-daemon --kill && avahi-daemon --daemonize").await;
    assert_eq!(browse(&vm).await, before);
    print(&vm, &format!("-d {queue} -o raw -t again")).await;
    watch.lap("printed again");
    assert_eq!(printer.stored().into_values().filter(|hash| *hash == sha256(&document)).count(), 2);

    // What nobody serves any more is not to stay in the guest's list for an hour.
    serve.terminate().await;
    finds_nothing(&vm).await;
    watch.lap("served no more");
}

/// Waits until avahi in the guest knows of no printer.
async fn finds_nothing(vm: &Vm) {
    let browse = "test -z \"$(avahi-browse -ptk _ipp._tcp)\"";
    let gone = vm.run_until(browse, "the guest to lose the printer", PATIENCE).await;
    gone.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until avahi in the guest knows a printer: its host and its address.
async fn browse(vm: &Vm) -> Vec<String> {
    let browsing = vm.run_until(
        "avahi-browse -rptk _universal._sub._ipp._tcp | grep '^='",
        "the guest to find it",
        PATIENCE,
    );
    let said = browsing.await.unwrap_or_else(|error| panic!("{error}")).output;
    let fields: Vec<&str> = said.trim().split(';').collect();
    fields[6..9].iter().map(|field| (*field).to_owned()).collect()
}

/// Prints the document, and waits until CUPS is done with it.
async fn print(vm: &Vm, options: &str) {
    let printing = async {
        let answer = vm.run(&format!("lp {options} /document.pdf"), PATIENCE).await?;
        let job = answer.output.strip_prefix("request id is ").and_then(|rest| rest.split(' ').next());
        let job = job.unwrap_or_else(|| panic!("lp said {answer:?}"));
        let done = format!("lpstat -W completed -o | grep -F '{job} '");
        vm.run_until(&done, "the guest to be done with the job", PATIENCE).await
    };
    let printed = printing.await;
    if let Err(error) = printed {
        let ask = "timeout 10 lpstat -t; timeout 10 avahi-browse -rpt _ipps._tcp; ps; netstat -tn; \
                   grep -vE 'PWGRaster|cupsdReadClient' /var/log/cups/error_log | tail -n 200";
        let why = run(vm, ask).await;
        panic!("{error}\nthe guest's CUPS says:\n{why}");
    }
}
