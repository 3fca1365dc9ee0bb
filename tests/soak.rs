//! Trouble for as long as one likes: `serve` before a real QEMU, viewers that come and go, `connect` beside them through a
//! network that breaks in every way, all of them killed and started again, and a guest that transfers all the while.
//!
//! Every transfer is whole to the last byte or ends by a reset within a bound, no address ever moves, and when it is quiet
//! again the processes hold what they held before.
//!
//! `SOAK_SECONDS` is how long the trouble lasts, `SOAK_SEED` makes it come in the same order again. `tests/run.sh soak` runs it
//! alone and shows what it counted.

mod card;
pub(crate) mod process;
mod random;
mod relay;
pub(crate) mod traffic;

pub(crate) use card::card;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use spice_tunnel::guest::{Config, Guest};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::vm::rig::{RustViewer, SOON};
use process::{Cost, Heard, Process, serve};
use random::Random;
use relay::Relay;
use traffic::{BOUND, SERVICES, Service, Traffic, transfer};

const TICKET: &str = "sesame";
/// `connect` waits for up to half a minute and a half between two attempts.
const JOINED: Duration = Duration::from_secs(90);
/// TIME-WAIT, and threads that have nothing to do, last for ten seconds.
const QUIET: Duration = Duration::from_secs(12);
const WORKERS: u64 = 8;

/// A stock QEMU with Spice and a ticket, which outlives all else.
struct Qemu(Child);

impl Qemu {
    fn start(socket: &Path) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-vga", "qxl", "-display", "none", "-S", "-m", "64"])
            .args(["-object", &format!("secret,id=ticket,data={TICKET}")])
            .args(["-spice", &format!("unix=on,addr={},password-secret=ticket", socket.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs qemu-system-x86_64 with Spice: tests/install-prerequisites.sh");
        Self(child)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was done to them.
#[derive(Debug, Default)]
struct Deeds {
    closes: u32,
    resets: u32,
    holes: u32,
    stalls: u32,
    delays: u32,
    kills: u32,
    exits: u32,
    restarts: u32,
    viewers: u32,
}

struct Soak {
    random: Random,
    dir: TempDir,
    qemu: Qemu,
    /// None only while it is started again.
    serve: Option<Process>,
    listens: SocketAddr,
    relay: Relay,
    client: Process,
    heard: Heard,
    arguments: Vec<String>,
    viewer: Option<RustViewer>,
    guest: Guest,
    traffic: Traffic,
    deeds: Deeds,
}

impl Soak {
    async fn start(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let cable = card(&at("card"));
        let qemu = Qemu::start(&at("spice"));
        while !at("spice").exists() {
            sleep(Duration::from_millis(20)).await;
        }
        std::fs::write(at("password"), TICKET).unwrap();
        let (serve, listens) = start_serve(dir.path()).await;
        let relay = Relay::start(listens).await;
        serve.says("the guest's card is there").await;
        let guest = Guest::start(cable, Config::default());
        timeout(SOON, guest.lease()).await.expect("a lease").unwrap();

        let mut arguments = vec![
            format!("spice://{}", relay.address),
            format!("--password-file={}", at("password").display()),
        ];
        for (name, service) in SERVICES {
            arguments.push(format!("--share=tcp://{}?name={name}", service.start().await));
        }
        let heard = Heard::new(SERVICES.len());
        let client = start_client(&heard, dir.path(), &arguments);
        heard.mapped(SOON).await;
        let services: Vec<(Service, SocketAddr)> =
            SERVICES.iter().map(|(name, service)| (*service, heard.address(name))).collect();
        let traffic = Traffic::start(&guest, &services, WORKERS, seed);
        Self {
            random: Random::new(seed),
            dir,
            qemu,
            serve: Some(serve),
            listens,
            relay,
            client,
            heard,
            arguments,
            viewer: None,
            guest,
            traffic,
            deeds: Deeds::default(),
        }
    }

    /// Makes trouble.
    async fn rage(&mut self, time: Duration, restarts: bool) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            // Short pauses, in which `connect` hardly joins, and longer ones in which it forgets that it had trouble.
            let pause = if self.random.within(0..3) == 0 { 5_000..13_000 } else { 200..3_000 };
            let pause = self.random.millis(pause).min(end - Instant::now());
            sleep(pause).await;
            self.look_around();
            match self.random.within(0..if restarts { 10 } else { 9 }) {
                0 => {
                    self.deeds.closes += 1;
                    self.relay.cut(false);
                }
                1 => {
                    self.deeds.resets += 1;
                    self.relay.cut(true);
                }
                2 => {
                    self.deeds.holes += 1;
                    self.freeze(4_500..9_000).await;
                    self.relay.cut(true);
                }
                3 => {
                    self.deeds.stalls += 1;
                    self.freeze(100..2_000).await;
                }
                4 | 5 => {
                    self.deeds.delays += 1;
                    let delay = self.random.millis(0..30);
                    self.relay.change(|weather| weather.delay = delay);
                }
                6 => {
                    self.deeds.kills += 1;
                    let next = start_client(&self.heard, self.dir.path(), &self.arguments);
                    // The old one is gone before the new one has linked, or is still there and has to be displaced.
                    let pause = self.random.millis(0..200);
                    sleep(pause).await;
                    std::mem::replace(&mut self.client, next).kill().await;
                }
                7 | 8 => match self.viewer.take() {
                    Some(_) => {}
                    None => {
                        self.deeds.viewers += 1;
                        self.viewer = Some(RustViewer::connect(self.listens, TICKET).await);
                    }
                },
                _ => self.restart_serve().await,
            }
        }
        self.relay.calm();
    }

    async fn freeze(&mut self, millis: std::ops::Range<u64>) {
        self.relay.change(|weather| weather.frozen = true);
        let pause = self.random.millis(millis);
        sleep(pause).await;
        self.relay.change(|weather| weather.frozen = false);
    }

    async fn restart_serve(&mut self) {
        self.deeds.restarts += 1;
        self.viewer = None;
        // A second one would not get the card.
        self.serve.take().unwrap().terminate().await;
        let (serve, listens) = start_serve(self.dir.path()).await;
        self.serve = Some(serve);
        self.listens = listens;
        let server = self.listens;
        self.relay.change(|weather| weather.server = server);
    }

    /// Nobody dies by himself but `connect`, whose first attempt may fail.
    fn look_around(&mut self) {
        self.traffic.check();
        assert!(self.serve.as_mut().unwrap().is_running(), "serve ended by itself");
        assert!(self.qemu.0.try_wait().unwrap().is_none(), "QEMU is dead");
        if !self.client.is_running() {
            self.deeds.exits += 1;
            self.client = start_client(&self.heard, self.dir.path(), &self.arguments);
        }
    }

    /// Waits until all is as if nothing had been, proves that it is, and says what it costs.
    async fn rest(&mut self) -> (Cost, Cost) {
        self.relay.calm();
        self.viewer = None;
        self.traffic.pause().await;
        let start = Instant::now();
        while !self.heard.is_mapped() {
            assert!(start.elapsed() < JOINED, "connect did not join again within {JOINED:?}");
            self.look_around();
            sleep(Duration::from_millis(200)).await;
        }
        // It may just be on its way out, with the viewer's session.
        sleep(Duration::from_secs(2)).await;
        self.heard.mapped(JOINED).await;
        for (name, service) in SERVICES {
            let seed = self.random.next();
            let whole = transfer(&self.guest, service, self.heard.address(name), seed, 100_000);
            timeout(BOUND, whole).await.expect("a transfer in peace").expect("a transfer in peace");
        }
        sleep(QUIET).await;
        (self.serve.as_ref().unwrap().cost(), self.client.cost())
    }
}

async fn start_serve(dir: &Path) -> (Process, SocketAddr) {
    let at = |name: &str| dir.join(name).display().to_string();
    let upstream = format!("unix:{}", at("spice"));
    let nic = format!("connect:{}", at("card"));
    let leases = at("leases");
    let arguments =
        ["--upstream", &upstream, "--listen", "127.0.0.1:0", "--nic", &nic, "--lease-file", &leases];
    let presence = ["--ping-interval", "1s", "--dead-after", "3s", "--while-away", "wait=5s"];
    serve(&dir.join("serve.log"), &[&arguments[..], &presence].concat()).await
}

fn start_client(heard: &Heard, dir: &Path, arguments: &[String]) -> Process {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    heard.connect(&dir.join("connect.log"), &arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_are_whole_or_reset_and_nothing_is_left_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(15));
    let random_seed = || SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into();
    let seed = number("SOAK_SEED").unwrap_or_else(random_seed);
    eprintln!("soak: {time:?} of trouble, SOAK_SEED={seed}");
    let mut soak = Soak::start(seed).await;

    // Restarts of `serve` come first, so that what it costs is of one process from then on.
    let first = time / 3;
    soak.rage(first, true).await;
    let before = soak.rest().await;
    soak.traffic.go_on();
    soak.rage(time - first, false).await;
    let after = soak.rest().await;

    // Nobody holds the seat who is not there any more.
    soak.client.signal("-STOP");
    let start = Instant::now();
    let next = start_client(&soak.heard, soak.dir.path(), &soak.arguments);
    let _stopped = std::mem::replace(&mut soak.client, next);
    let known = soak.heard.times();
    while soak.heard.times() == known {
        assert!(start.elapsed() < SOON, "a client that stands still keeps its seat");
        soak.look_around();
        sleep(Duration::from_millis(50)).await;
    }

    let tally = &soak.traffic.tally;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "soak: seed {seed}, {} times joined, {} transfers whole ({} MB), {} reset, {} refused; {:?}; seat taken over in {} ms",
        soak.heard.times(),
        count(&tally.whole),
        count(&tally.bytes) / 1_000_000,
        count(&tally.reset),
        count(&tally.refused),
        soak.deeds,
        start.elapsed().as_millis(),
    );
    for (name, before, after) in [("serve", before.0, after.0), ("connect", before.1, after.1)] {
        eprintln!(
            "soak: {name} had {} files, {} threads and {} KiB, and has {}, {} and {}",
            before.files, before.threads, before.kilobytes, after.files, after.threads, after.kilobytes
        );
        assert_eq!(after.files, before.files, "{name} keeps files open");
        assert!(after.threads <= before.threads + 1, "{name} keeps threads");
        // The allocator keeps some of what the busiest moment took.
        assert!(after.kilobytes <= before.kilobytes + before.kilobytes / 4 + 16_384, "{name} keeps memory");
    }
    assert!(count(&tally.whole) > 0 && soak.heard.times() > 1, "there was no trouble at all");
}
