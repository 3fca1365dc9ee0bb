//! The whole path, measured: the demo's guest → its card → `serve` → the tunnel → `connect` → a service on loopback.
//!
//! ```console
//! $ cargo bench --bench path                      # a table
//! $ cargo bench --bench path -- --json path.json  # and a file
//! $ cargo bench --bench path -- --rounds 5 --seconds 3 --idle 1000
//! ```
//!
//! `serve --standalone` and `connect` are the real program, each in a process of its own. The guest and the service
//! are in this process. Each figure is taken through the tunnel and over plain loopback TCP in turn, round by round,
//! by the same code; medians are shown with their extremes and their ratio. Throughput is counted by the receiver.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use spice_tunnel::guest::{Config, Guest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Args {
    /// Rounds; each figure is taken once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one figure is measured for
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections to hold for the memory figure
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Only figures whose title contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let load = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = load.local_addr().unwrap();
    tokio::spawn(serve_load(load));

    let mut figures = Vec::new();
    for mtu in [1500, 65_520] {
        let setup = Setup::start(service, mtu).await;
        let path = Way::Tunnel { guest: setup.guest.clone(), to: setup.mapped };
        let loopback = Way::Loopback { to: service };
        for kind in Kind::ALL.into_iter().filter(|kind| kind.title().contains(&args.only)) {
            let mut figure = Figure::new(format!("{}, MTU {mtu}", kind.title()), kind.unit());
            for round in 0..args.rounds {
                let ways = [&path, &loopback];
                // Every other round begins with the other way, so that a drift of the machine favours neither.
                for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                    let value = kind.measure(ways[index], Duration::from_secs_f64(args.seconds)).await;
                    [&mut figure.tunnel, &mut figure.loopback][index].push(value);
                }
            }
            eprintln!("{}", figure.row());
            figures.push(figure);
        }
        if mtu == 65_520 && "memory".contains(&args.only) {
            figures.extend(idle_memory(&setup, args.idle).await);
        }
    }
    println!("{:<44} {:>26} {:>26} {:>8}", "figure", "through the tunnel", "plain loopback", "ratio");
    for figure in &figures {
        println!("{}", figure.row());
    }
    if let Some(path) = args.json {
        std::fs::write(path, json(&figures)).unwrap();
    }
}

/// The program at both ends and a guest between them.
struct Setup {
    guest: Guest,
    mapped: SocketAddr,
    serve: Running,
    connect: Running,
    _dir: tempfile::TempDir,
}

impl Setup {
    async fn start(service: SocketAddr, mtu: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nic = dir.path().join("nic.sock");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let spice = format!("127.0.0.1:{port}");
        let serve = Running::start(
            Command::new(PROGRAM)
                .args(["serve", "--standalone", "--listen", &spice, "--nic"])
                .arg(format!("listen:{}", nic.display()))
                .args(["--mtu", &mtu.to_string()])
                .env("RUST_LOG", "warn"),
        );
        wait_for(&nic, &spice).await;
        let mut connect = Running::start(
            Command::new(PROGRAM)
                .args(["connect", &format!("spice://{spice}"), "--json", "--share"])
                .arg(format!("tcp://{service}?name=load"))
                .env("RUST_LOG", "warn")
                .stdout(Stdio::piped()),
        );
        let mapped = mapped_address(&mut connect.0);
        let card = UnixStream::connect(&nic).await.unwrap();
        let guest = Guest::start(card, Config { mtu, ..Config::default() });
        guest.lease().await.unwrap();
        Self { guest, mapped, serve, connect, _dir: dir }
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_spice-tunnel");

/// A process that ends with us.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Resident memory in bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn wait_for(nic: &Path, spice: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !nic.exists() || TcpStream::connect(spice).await.is_err() {
        assert!(Instant::now() < deadline, "serve did not listen within 10 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn mapped_address(connect: &mut Child) -> SocketAddr {
    let lines = BufReader::new(connect.stdout.take().unwrap()).lines();
    let mut mapped = None;
    let mut lines = lines.map_while(Result::ok);
    for line in lines.by_ref() {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["event"] == "mapped" {
            let ip: IpAddr = event["virtual_ip"].as_str().unwrap().parse().unwrap();
            mapped = Some(SocketAddr::new(ip, event["port"].as_u64().unwrap() as u16));
            break;
        }
    }
    // Its events must go somewhere, or it would have to drop them.
    std::thread::spawn(move || lines.for_each(drop));
    mapped.expect("connect ended before the service was mapped")
}

/// How the service is reached.
enum Way {
    Tunnel { guest: Guest, to: SocketAddr },
    Loopback { to: SocketAddr },
}

trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

impl Way {
    async fn connect(&self) -> Box<dyn Pipe> {
        match self {
            Self::Tunnel { guest, to } => Box::new(guest.connect(to.ip(), to.port()).await.unwrap()),
            Self::Loopback { to } => {
                let stream = TcpStream::connect(to).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
        }
    }

    fn share(&self) -> Self {
        match self {
            Self::Tunnel { guest, to } => Self::Tunnel { guest: guest.clone(), to: *to },
            Self::Loopback { to } => Self::Loopback { to: *to },
        }
    }
}

// What the first byte asks the service for.
const SINK: u8 = b'U';
const SOURCE: u8 = b'D';
const ECHO: u8 = b'E';
const CHUNK: usize = 256 << 10;

async fn serve_load(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_one(stream));
    }
}

async fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    match stream.read_u8().await? {
        SINK => {
            let mut total = 0;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    n => total += n as u64,
                }
            }
            stream.write_u64(total).await
        }
        SOURCE => loop {
            stream.write_all(&buffer).await?;
        },
        _ => loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                n => stream.write_all(&buffer[..n]).await?,
            }
        },
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Down,
    Up,
    RoundTripMedian,
    RoundTripP99,
    ConnectionsOne,
    ConnectionsSixteen,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Down,
        Self::Up,
        Self::RoundTripMedian,
        Self::RoundTripP99,
        Self::ConnectionsOne,
        Self::ConnectionsSixteen,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Down => "one stream to the guest",
            Self::Up => "one stream from the guest",
            Self::RoundTripMedian => "round trip of a byte, median",
            Self::RoundTripP99 => "round trip of a byte, 99 %",
            Self::ConnectionsOne => "connections, one at a time",
            Self::ConnectionsSixteen => "connections, 16 at a time",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Down | Self::Up => "MB/s",
            Self::RoundTripMedian | Self::RoundTripP99 => "µs",
            Self::ConnectionsOne | Self::ConnectionsSixteen => "/s",
        }
    }

    async fn measure(self, way: &Way, time: Duration) -> f64 {
        match self {
            Self::Down => down(way, time).await,
            Self::Up => up(way, time).await,
            Self::RoundTripMedian => round_trip(way, time, 0.5).await,
            Self::RoundTripP99 => round_trip(way, time, 0.99).await,
            Self::ConnectionsOne => connections(way, time, 1).await,
            Self::ConnectionsSixteen => connections(way, time, 16).await,
        }
    }
}

async fn down(way: &Way, time: Duration) -> f64 {
    let mut stream = way.connect().await;
    stream.write_u8(SOURCE).await.unwrap();
    let mut buffer = vec![0; CHUNK];
    let warm = Instant::now() + Duration::from_millis(200);
    while Instant::now() < warm {
        assert_ne!(stream.read(&mut buffer).await.unwrap(), 0, "the source never ends");
    }
    let start = Instant::now();
    let mut total = 0;
    while start.elapsed() < time {
        total += stream.read(&mut buffer).await.unwrap();
    }
    total as f64 / start.elapsed().as_secs_f64() / 1e6
}

async fn up(way: &Way, time: Duration) -> f64 {
    let mut stream = way.connect().await;
    stream.write_u8(SINK).await.unwrap();
    let buffer = vec![0; CHUNK];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&buffer).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let total = stream.read_u64().await.unwrap();
    total as f64 / start.elapsed().as_secs_f64() / 1e6
}

async fn round_trip(way: &Way, time: Duration, quantile: f64) -> f64 {
    let mut stream = way.connect().await;
    stream.write_u8(ECHO).await.unwrap();
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[(times.len() as f64 * quantile) as usize]
}

/// Connections opened, asked 64 bytes, answered and closed, per second.
async fn connections(way: &Way, time: Duration, at_once: usize) -> f64 {
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for _ in 0..at_once {
        let way = way.share();
        tasks.spawn(async move {
            let mut done = 0_u64;
            let request = [ECHO; 65];
            let mut answer = [0; 64];
            while start.elapsed() < time {
                let mut stream = way.connect().await;
                stream.write_all(&request).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                stream.shutdown().await.unwrap();
                assert_eq!(stream.read(&mut answer).await.unwrap(), 0, "nothing but the end was to come");
                done += 1;
            }
            done
        });
    }
    let total: u64 = tasks.join_all().await.into_iter().sum();
    total as f64 / start.elapsed().as_secs_f64()
}

/// What a connection that was used once, and is idle since, costs in resident memory at each end.
async fn idle_memory(setup: &Setup, count: usize) -> [Figure; 2] {
    let way = Way::Tunnel { guest: setup.guest.clone(), to: setup.mapped };
    let before = (setup.serve.resident(), setup.connect.resident());
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = way.connect().await;
        stream.write_all(&[ECHO, b'x']).await.unwrap();
        stream.read_u8().await.unwrap();
        held.push(stream);
    }
    let after = (setup.serve.resident(), setup.connect.resident());
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / count as f64 / 1024.0;
    [("serve", each(before.0, after.0)), ("connect", each(before.1, after.1))].map(|(end, value)| {
        let mut figure = Figure::new(format!("memory per idle connection of {count}, {end}"), "KiB");
        figure.tunnel.push(value);
        eprintln!("{}", figure.row());
        figure
    })
}

struct Figure {
    title: String,
    unit: &'static str,
    tunnel: Vec<f64>,
    loopback: Vec<f64>,
}

impl Figure {
    fn new(title: String, unit: &'static str) -> Self {
        Self { title, unit, tunnel: Vec::new(), loopback: Vec::new() }
    }

    fn ratio(&self) -> Option<f64> {
        Some(Spread::of(&self.tunnel)?.median / Spread::of(&self.loopback)?.median)
    }

    fn row(&self) -> String {
        let cell = |values| {
            Spread::of(values).map_or_else(String::new, |Spread { median, least, most }| {
                format!("{median:.0} {} ({least:.0}-{most:.0})", self.unit)
            })
        };
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        format!("{:<44} {:>26} {:>26} {ratio:>8}", self.title, cell(&self.tunnel), cell(&self.loopback))
    }
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: *sorted.get(sorted.len() / 2)?, least: *sorted.first()?, most: *sorted.last()? })
    }
}

fn json(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figure in figures {
        let line = serde_json::json!({
            "figure": figure.title, "unit": figure.unit, "tunnel": figure.tunnel, "loopback": figure.loopback,
            "ratio": figure.ratio(),
        });
        writeln!(text, "{line}").unwrap();
    }
    text
}
