//! How many VMs a host carries: what an instance of `serve` and of `connect` costs, what a connection, what a byte.
//!
//! ```console
//! $ cargo bench --bench scale                       # tables, and what the model makes of them
//! $ cargo bench --bench scale -- --instances 10,50,200 --connections 100,1000,5000 --seconds 20
//! ```
//!
//! `serve --standalone` and `connect` are the real program, each in a process of its own, joined by Unix sockets; the guests
//! (user-space stacks) and the service are in this process. The costs are taken from all but the largest number of
//! instances, and what the model makes of them for the largest is compared with what is measured there. See SCALE.md.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

#[path = "scale/model.rs"]
mod model;
#[path = "scale/process.rs"]
mod process;

use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use spice_tunnel::guest::{Config, Guest, GuestStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::oneshot;

use model::{Costs, Host, Load, Use, carries, used};
use process::{Running, Usage};

#[derive(Parser)]
struct Args {
    /// Instances, ascending; the model is made of all but the last
    #[arg(long, value_delimiter = ',', default_values_t = [10, 50, 200])]
    instances: Vec<usize>,
    /// Idle connections in one instance, ascending
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000])]
    connections: Vec<usize>,
    /// Instances that are under load at once, to check the costs of one
    #[arg(long, default_value_t = 50)]
    loaded: usize,
    /// Seconds for each measurement of time
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_spice-tunnel");
/// After it an end that was busy has given back what it can.
const SETTLE: Duration = Duration::from_secs(8);
/// Of the load in the examples: connections of a VM, and bytes a second of all of them together.
const STREAMS: usize = 5;
const RATE: f64 = 1e6;
/// Pieces that the paced service writes.
const PIECE: usize = 4096;

// What the first byte asks the service for.
const SINK: u8 = b'U';
const SOURCE: u8 = b'D';
const PACED: u8 = b'P';
const ECHO: u8 = b'E';

#[tokio::main]
async fn main() {
    let args = Args::parse();
    spice_tunnel::open_files::raise_limit();
    let load = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = load.local_addr().unwrap();
    tokio::spawn(serve_load(load));
    let time = Duration::from_secs_f64(args.seconds);

    println!("One instance, idle connections (memory is PSS; each connection was used once):");
    let connection_memory = connections(service, &args.connections).await;

    println!("\nOne instance, processor seconds for a GB of payload:");
    println!("{:<34} {:>8} {:>10} {:>10}", "", "MB/s", "serve", "connect");
    let mut paced = 0.0;
    for mtu in [1500, 65_520] {
        let vm = Vm::start(service, mtu).await;
        for (title, kind) in [("bulk to the guest", SOURCE), ("bulk from the guest", SINK)] {
            let moved = one_stream(&vm, kind, time.min(Duration::from_secs(5))).await;
            moved.print(&format!("{title}, MTU {mtu}"));
        }
        let moved = under_load(std::slice::from_ref(&vm), time).await;
        moved.print(&format!("{STREAMS} streams, 1 MB/s in all, MTU {mtu}"));
        paced = moved.serve / moved.bytes;
    }

    println!("\nInstances, each with a guest, a user and a service, idle; of all together:");
    let head = ["instances", "end", "PSS MiB", "threads", "fds", "CPU s/min"];
    println!("{:>9} {:<8} {:>9} {:>8} {:>7} {:>10}", head[0], head[1], head[2], head[3], head[4], head[5]);
    let mut vms = Vec::new();
    let mut measured: Vec<(usize, Usage)> = Vec::new();
    let mut loaded = None;
    for &count in &args.instances {
        while vms.len() < count {
            vms.push(Vm::start(service, 65_520).await);
        }
        tokio::time::sleep(SETTLE).await;
        let idle = idle(&vms, time).await;
        for (end, usage) in [("serve", idle.0), ("connect", idle.1)] {
            let Usage { memory, threads, descriptors, cpu } = usage;
            let (mib, cpu) = (memory / (1 << 20) as f64, cpu * 60.0);
            println!("{count:>9} {end:<8} {mib:>9.1} {threads:>8} {descriptors:>7} {cpu:>10.3}");
        }
        measured.push((count, idle.0));
        if loaded.is_none() && count >= args.loaded {
            loaded = Some(under_load(&vms[..args.loaded], time).await);
        }
    }

    let costs = Costs { connection_memory, per_byte: paced, ..costs(&measured) };
    println!("\nCosts of serve: {costs:#?}");
    let (count, last) = *measured.last().unwrap();
    let nothing = Load { connections: 0.0, rate: 0.0, links: 0.0 };
    println!("\nThe model against {count} instances, idle:");
    let measured =
        Use { memory: last.memory, descriptors: last.descriptors, threads: last.threads, cores: last.cpu };
    compare(&used(&costs, &nothing, count as f64), &measured);
    if let Some(moved) = loaded {
        let load = Load { rate: moved.bytes / moved.time / args.loaded as f64, ..nothing };
        let cores = moved.serve / moved.time;
        println!(
            "\nThe model, by the costs of one under load, against {} at once ({:.1} MB/s in all):",
            args.loaded,
            moved.bytes / moved.time / 1e6
        );
        row("cores", used(&costs, &load, args.loaded as f64).cores, cores);
    }
    examples(&costs);
}

/// The line through what was measured with all numbers of instances but the last.
fn costs(measured: &[(usize, Usage)]) -> Costs {
    let known = &measured[..measured.len().max(2) - 1];
    let (least, few) = known[0];
    let (most, many) = known[known.len() - 1];
    let each = if most > least {
        (many.memory - few.memory) / (most - least) as f64
    } else {
        many.memory / most as f64
    };
    let number = most as f64;
    Costs {
        shared_memory: (many.memory - each * number).max(0.0),
        memory: each,
        descriptors: many.descriptors / number,
        link_descriptors: 2.0,
        threads: many.threads / number,
        idle: many.cpu / number,
        ..Costs::default()
    }
}

fn compare(model: &Use, measured: &Use) {
    row("memory, MiB", model.memory / (1 << 20) as f64, measured.memory / (1 << 20) as f64);
    row("file descriptors", model.descriptors, measured.descriptors);
    row("threads", model.threads, measured.threads);
    row("cores", model.cores, measured.cores);
}

fn row(what: &str, model: f64, measured: f64) {
    let off = (model / measured - 1.0) * 100.0;
    println!("{what:<18} model {model:>10.4}   measured {measured:>10.4}   {off:>+6.1} %");
}

fn examples(costs: &Costs) {
    const GIB: f64 = (1_u64 << 30) as f64;
    // What a Debian 12 of that size says: file-max is without a bound that matters, pid_max 4,194,304.
    let host =
        |cores, memory| Host { cores, memory, descriptors: 1e9, threads: 4_194_304.0, ports: 64_511.0 };
    let whole = host(64.0, 512.0 * GIB);
    // What is left for serve where the VMs take the rest.
    let tithe = host(6.4, 25.6 * GIB);
    let small = host(2.0, 4.0 * GIB);
    let light = Load { connections: 5.0, rate: 1e6, links: 6.0 };
    let idle = Load { rate: 0.0, ..light };
    let heavy = Load { connections: 200.0, rate: 20e6, links: 6.0 };
    println!("\nExamples (serve alone; viewers' pictures are not in here):");
    for (title, host, load) in [
        ("64 cores, 512 GiB; 5 connections, 1 MB/s", &whole, &light),
        ("a tenth of its cores, a twentieth of its memory", &tithe, &light),
        ("the same, idle users", &tithe, &idle),
        ("the same, 200 connections, 20 MB/s", &tithe, &heavy),
        ("2 cores, 4 GiB; 5 connections, 1 MB/s", &small, &light),
    ] {
        let (vms, first) = carries(costs, load, host);
        println!("{title:<50} {vms:>9} VMs, then {first:?} ends");
    }
}

/// A guest, the program at both ends, and the address of the service.
struct Vm {
    guest: Guest,
    mapped: SocketAddr,
    serve: Running,
    connect: Running,
    _dir: tempfile::TempDir,
}

impl Vm {
    async fn start(service: SocketAddr, mtu: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [nic, spice] = ["nic.sock", "spice.sock"].map(|name| dir.path().join(name));
        let serve = Running::start(
            Command::new(PROGRAM)
                .args(["serve", "--standalone", "--mtu", &mtu.to_string()])
                .arg("--listen")
                .arg(format!("unix:{}", spice.display()))
                .arg("--nic")
                .arg(format!("listen:{}", nic.display()))
                .env("RUST_LOG", "error"),
        );
        appears(&nic).await;
        appears(&spice).await;
        let mut connect = Running::start(
            Command::new(PROGRAM)
                .args(["connect", &format!("spice+unix://{}", spice.display()), "--json", "--share"])
                .arg(format!("tcp://{service}?name=load"))
                .env("RUST_LOG", "error")
                .stdout(Stdio::piped()),
        );
        let lines = BufReader::new(connect.0.stdout.take().unwrap()).lines();
        let (found, mapped) = oneshot::channel();
        std::thread::spawn(move || read_events(lines.map_while(Result::ok), found));
        let card = UnixStream::connect(&nic).await.unwrap();
        // Small rings, since thousands of the guest's connections are in this one process.
        let (receive_buffer, transmit_buffer) = (64 << 10, 64 << 10);
        let guest = Guest::start(card, Config { mtu, receive_buffer, transmit_buffer, ..Config::default() });
        guest.lease().await.unwrap();
        let mapped = mapped.await.expect("connect ended before the service was mapped");
        Self { guest, mapped, serve, connect, _dir: dir }
    }

    async fn connect(&self, what: u8) -> GuestStream {
        let mut stream = self.guest.connect(self.mapped.ip(), self.mapped.port()).await.unwrap();
        stream.write_u8(what).await.unwrap();
        stream
    }
}

async fn appears(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < deadline, "serve did not listen within 30 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads to the end, since the program would have to drop its events else.
fn read_events(lines: impl Iterator<Item = String>, found: oneshot::Sender<SocketAddr>) {
    let mut found = Some(found);
    for line in lines {
        let Some(found) = found.take_if(|_| line.contains("\"mapped\"")) else { continue };
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        let ip: IpAddr = event["virtual_ip"].as_str().unwrap().parse().unwrap();
        let _ = found.send(SocketAddr::new(ip, event["port"].as_u64().unwrap() as u16));
    }
}

/// What an idle connection costs; gives the bytes of one in `serve`, from the first number to the last.
async fn connections(service: SocketAddr, numbers: &[usize]) -> f64 {
    let vm = Vm::start(service, 65_520).await;
    tokio::time::sleep(SETTLE).await;
    let before = (vm.serve.usage(), vm.connect.usage());
    let mut held = Vec::new();
    let mut points = Vec::new();
    println!(
        "{:>11} {:>16} {:>8} {:>18} {:>10}",
        "connections", "serve KiB each", "fds", "connect KiB each", "fds"
    );
    for &number in numbers {
        while held.len() < number {
            let mut stream = vm.connect(ECHO).await;
            stream.write_all(b"x").await.unwrap();
            stream.read_u8().await.unwrap();
            held.push(stream);
        }
        tokio::time::sleep(SETTLE).await;
        let after = (vm.serve.usage(), vm.connect.usage());
        let each = |before: &Usage, after: &Usage| (after.memory - before.memory) / number as f64 / 1024.0;
        println!(
            "{number:>11} {:>16.2} {:>8} {:>18.2} {:>10}",
            each(&before.0, &after.0),
            after.0.descriptors,
            each(&before.1, &after.1),
            after.1.descriptors
        );
        points.push((number as f64, after.0.memory));
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    if points.len() > 1 {
        (last.1 - first.1) / (last.0 - first.0)
    } else {
        (last.1 - before.0.memory) / last.0
    }
}

/// Payload that moved, and what it took.
struct Moved {
    bytes: f64,
    time: f64,
    serve: f64,
    connect: f64,
}

impl Moved {
    fn print(&self, title: &str) {
        let per_gb = |cpu: f64| cpu / self.bytes * 1e9;
        let rate = self.bytes / self.time / 1e6;
        println!("{title:<34} {rate:>8.1} {:>10.2} {:>10.2}", per_gb(self.serve), per_gb(self.connect));
    }
}

async fn one_stream(vm: &Vm, kind: u8, time: Duration) -> Moved {
    let mut stream = vm.connect(kind).await;
    let mut buffer = vec![0; 256 << 10];
    let start = Instant::now();
    let before = (vm.serve.usage(), vm.connect.usage());
    let mut bytes = 0;
    while start.elapsed() < time {
        if kind == SINK {
            stream.write_all(&buffer).await.unwrap();
            bytes += buffer.len();
        } else {
            bytes += stream.read(&mut buffer).await.unwrap();
        }
    }
    moved(bytes, start, before, (vm.serve.usage(), vm.connect.usage()))
}

fn moved(bytes: usize, start: Instant, before: (Usage, Usage), after: (Usage, Usage)) -> Moved {
    Moved {
        bytes: bytes as f64,
        time: start.elapsed().as_secs_f64(),
        serve: after.0.cpu - before.0.cpu,
        connect: after.1.cpu - before.1.cpu,
    }
}

fn ends(vms: &[Vm]) -> (Usage, Usage) {
    (vms.iter().map(|vm| vm.serve.usage()).sum(), vms.iter().map(|vm| vm.connect.usage()).sum())
}

/// Each VM with [`STREAMS`] streams, and [`RATE`] on all of them together.
async fn under_load(vms: &[Vm], time: Duration) -> Moved {
    let mut streams = Vec::new();
    for vm in vms {
        for _ in 0..STREAMS {
            streams.push(vm.connect(PACED).await);
        }
    }
    let (start, before) = (Instant::now(), ends(vms));
    let mut readers = tokio::task::JoinSet::new();
    for mut stream in streams {
        readers.spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            let mut bytes = 0;
            while let Some(left) = time.checked_sub(start.elapsed()) {
                match tokio::time::timeout(left, stream.read(&mut buffer)).await {
                    Ok(n) => bytes += n.unwrap(),
                    Err(_) => break,
                }
            }
            // Held until all are done, so that no end of a stream is in what is measured.
            (bytes, stream)
        });
    }
    let mut read = Vec::new();
    while let Some(one) = readers.join_next().await {
        read.push(one.unwrap());
    }
    moved(read.iter().map(|one| one.0).sum(), start, before, ends(vms))
}

/// What all use, and the processor time of a second.
async fn idle(vms: &[Vm], time: Duration) -> (Usage, Usage) {
    let (start, before) = (Instant::now(), ends(vms));
    tokio::time::sleep(time).await;
    let after = ends(vms);
    let seconds = start.elapsed().as_secs_f64();
    let per_second = |before: Usage, after: Usage| Usage { cpu: (after.cpu - before.cpu) / seconds, ..after };
    (per_second(before.0, after.0), per_second(before.1, after.1))
}

async fn serve_load(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_one(stream));
    }
}

async fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        SINK => {
            let mut buffer = vec![0; 256 << 10];
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        }
        SOURCE => {
            let buffer = vec![0; 256 << 10];
            loop {
                stream.write_all(&buffer).await?;
            }
        }
        PACED => {
            let pause = PIECE as f64 * STREAMS as f64 / RATE;
            let mut tick = tokio::time::interval(Duration::from_secs_f64(pause));
            loop {
                tick.tick().await;
                stream.write_all(&[0; PIECE]).await?;
            }
        }
        _ => {
            // Small: thousands of these wait at once.
            let mut buffer = [0; 64];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    n => stream.write_all(&buffer[..n]).await?,
                }
            }
        }
    }
}
