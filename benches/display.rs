//! What the proxy costs a viewer: display traffic and input, through `serve` and directly.
//!
//! ```console
//! $ cargo bench --bench display                         # a table
//! $ cargo bench --bench display -- --json display.json  # and a file
//! $ cargo bench --bench display -- --rounds 5 --seconds 3 --only picture
//! ```
//!
//! A stock QEMU with a guest of one boot sector, which paints its screen at every key, or draws without pause. The
//! client is in this process; it links main, display and inputs, and does what a client must, but shows nothing, so that
//! the server and the way are what is measured. `serve` is the real program in a process of its own. Each figure is taken on
//! all ways in turn, round by round, by the same code; medians are shown with their extremes, and the ratio to the
//! direct way with the same cipher between client and first hop.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

#[allow(dead_code, reason = "nobody looks at the colours here")]
#[path = "../tests/viewers/painter.rs"]
mod painter;
#[allow(dead_code, reason = "one certificate is enough")]
#[path = "../tests/pki.rs"]
mod pki;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use spice_proto::handshake::{ClientLink, Deadlines};
use spice_proto::io::connect;
use spice_proto::link::{ChannelType, CommonCaps, LinkVersion};
use spice_proto::ticket::Password;
use spice_proto::tls::{Connector, Roots, Trust};
use spice_tunnel::vm::{SpiceAddress, Vm};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

#[derive(Parser)]
struct Args {
    /// Rounds; each figure is taken once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one figure is measured for
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
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
    let time = Duration::from_secs_f64(args.seconds);
    let mut table = Table::default();
    // A small picture for latency; and the largest that QEMU's refresh every 30 ms does not already limit.
    for (picture, kinds) in [
        ((320, 200), &[Kind::KeyToPicture, Kind::MotionToAcknowledgement][..]),
        ((2560, 1600), &[Kind::Drawing][..]),
    ] {
        if !kinds.iter().flat_map(|kind| kind.titles()).any(|title| title.contains(&args.only)) {
            continue;
        }
        let setup = Setup::start(picture).await;
        for kind in kinds {
            for round in 0..args.rounds {
                for step in 0..Way::ALL.len() {
                    // Each round begins with another way, so that a drift of the machine favours none.
                    let way = Way::ALL[(round + step) % Way::ALL.len()];
                    for (title, unit, value) in kind.measure(&setup, way, time).await {
                        if title.contains(&args.only) {
                            table.add(title, unit, way, value);
                        }
                    }
                }
            }
        }
    }
    print!("{}", table.text());
    if let Some(path) = args.json {
        std::fs::write(path, table.json()).unwrap();
    }
}

/// How the client reaches QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Clear,
    ThroughClear,
    Tls,
    TlsThenClear,
    ThroughTls,
}

impl Way {
    const ALL: [Self; 5] = [Self::Clear, Self::ThroughClear, Self::Tls, Self::TlsThenClear, Self::ThroughTls];

    fn title(self) -> &'static str {
        match self {
            Self::Clear => "direct, in clear",
            Self::ThroughClear => "serve, in clear on both legs",
            Self::Tls => "direct, TLS",
            Self::TlsThenClear => "serve, TLS, then in clear",
            Self::ThroughTls => "serve, TLS on both legs",
        }
    }

    /// What it is compared with.
    fn direct(self) -> Option<Self> {
        match self {
            Self::Clear | Self::Tls => None,
            Self::ThroughClear => Some(Self::Clear),
            Self::TlsThenClear | Self::ThroughTls => Some(Self::Tls),
        }
    }
}

/// A machine and our program before it, twice: with TLS upstream, and without.
struct Setup {
    _vm: Vm,
    both: Running,
    ending: Running,
    /// By way.
    ports: BTreeMap<Way, u16>,
    connector: Connector,
    /// Keys so far.
    typed: AtomicUsize,
    _directory: tempfile::TempDir,
}

impl Setup {
    async fn start((width, height): (u16, u16)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = pki::Authority::new("benchmark").issue(&pki::Leaf::default(), directory.path());
        let ports: BTreeMap<_, _> = Way::ALL.into_iter().map(|way| (way, free_port())).collect();
        let at = |way| format!("127.0.0.1:{}", ports[&way]);
        let everything_raw = "image-compression=off,jpeg-wan-compression=never,zlib-glz-wan-compression=never,streaming-video=off";
        let tls = format!("tls-port={},x509-dir={}", ports[&Way::Tls], directory.path().display());
        let vm = Vm::builder()
            .spice(SpiceAddress::Tcp((Ipv4Addr::LOCALHOST, ports[&Way::Clear]).into()))
            .memory(64)
            .floppy(painter::sector(width, height));
        let extra = ["-global", "qxl-vga.vgamem_mb=64", "-spice", everything_raw, "-spice", &tls];
        let vm = extra.into_iter().fold(vm, spice_tunnel::vm::Builder::argument).start().await.unwrap();
        let path = |path: &Path| path.display().to_string();
        let certificate =
            ["--tls-cert".to_owned(), path(&files.certificate), "--tls-key".to_owned(), path(&files.key)];
        let serve = |name: &str, legs: &[String]| {
            let nic = format!("listen:{}", directory.path().join(name).display());
            Running::start(
                Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
                    .args(["serve", "--nic", &nic, "--upstream", &at(Way::Clear)])
                    .args(legs)
                    .args(&certificate)
                    .env("RUST_LOG", "warn"),
            )
        };
        let word = str::to_owned;
        let both = serve(
            "both",
            &[
                word("--upstream-tls"),
                at(Way::Tls),
                word("--upstream-ca"),
                path(&files.ca),
                word("--listen"),
                at(Way::ThroughClear),
                word("--tls-listen"),
                at(Way::ThroughTls),
            ],
        );
        let ending = serve("ending", &[word("--tls-listen"), at(Way::TlsThenClear)]);
        let trust = Trust { roots: Roots::File(files.ca.clone()), ..Trust::default() };
        let setup = Self {
            _vm: vm,
            both,
            ending,
            connector: Connector::new(&trust).unwrap(),
            ports: ports.clone(),
            typed: AtomicUsize::new(0),
            _directory: directory,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        for port in ports.values() {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await.is_err() {
                assert!(Instant::now() < deadline, "nobody listened on port {port} within 10 s");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // The guest boots.
        tokio::time::sleep(Duration::from_secs(2)).await;
        setup
    }

    async fn link(&self, way: Way, channel: ChannelType, session_id: u32) -> Link {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[&way])).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream: Box<dyn Pipe> = match way {
            Way::Clear | Way::ThroughClear => Box::new(stream),
            Way::Tls | Way::TlsThenClear | Way::ThroughTls => {
                Box::new(self.connector.connect("localhost", stream).await.unwrap())
            }
        };
        let link = ClientLink {
            version: LinkVersion::V2,
            channel_type: channel.0,
            channel_id: 0,
            session_id,
            common_caps: CommonCaps::OURS,
            channel_caps: vec![0],
        };
        let password = Password::new("").unwrap();
        let linked = connect(&mut stream, link, &password, Deadlines::default()).await.unwrap();
        assert!(linked.leftover.is_empty());
        Link { stream, window: 0, left: 0, begun: None, scratch: vec![0; 256 << 10] }
    }

    /// Seconds of a processor that `serve` has used so far; none on a direct way.
    fn used(&self, way: Way) -> Option<f64> {
        match way {
            Way::Clear | Way::Tls => None,
            Way::ThroughClear | Way::ThroughTls => Some(self.both.used()),
            Way::TlsThenClear => Some(self.ending.used()),
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with us.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Seconds of a processor: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
    fn used(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields = stat.rsplit(") ").next().unwrap().split(' ');
        fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

/// A linked channel with the mini header.
struct Link {
    stream: Box<dyn Pipe>,
    window: u32,
    left: u32,
    /// The first byte of the next message.
    begun: Option<u8>,
    scratch: Vec<u8>,
}

impl Link {
    async fn send(&mut self, kind: u16, body: &[u8]) {
        let mut message = kind.to_le_bytes().to_vec();
        message.extend((body.len() as u32).to_le_bytes());
        message.extend(body);
        self.stream.write_all(&message).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message that means something: its type, and the size of its body, of which the beginning is in
    /// `scratch`.
    async fn next(&mut self) -> (u16, usize) {
        loop {
            self.begins().await;
            if let Some(message) = self.step().await {
                return message;
            }
        }
    }

    /// Waits until there is the beginning of a message. Cancel safe.
    async fn begins(&mut self) {
        if self.begun.is_none() {
            self.begun = Some(self.stream.read_u8().await.unwrap());
        }
    }

    /// The message that has begun; nothing if it is one to acknowledge or to answer, which is then done.
    async fn step(&mut self) -> Option<(u16, usize)> {
        let mut header = [0; 6];
        header[0] = self.begun.take()?;
        self.stream.read_exact(&mut header[1..]).await.unwrap();
        let kind = u16::from_le_bytes([header[0], header[1]]);
        let size = u32::from_le_bytes(header[2..].try_into().unwrap()) as usize;
        let mut at = 0;
        while at < size {
            // What is behind the beginning goes where nobody looks.
            let from = at.min(64);
            let end = self.scratch.len().min(from + (size - at));
            at += self.stream.read(&mut self.scratch[from..end]).await.unwrap();
        }
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                self.left = self.window;
                self.send(2, &[]).await;
            }
        }
        match kind {
            3 => {
                self.window = u32::from_le_bytes(self.scratch[4..8].try_into().unwrap());
                self.left = self.window;
                let generation = self.scratch[..4].to_vec();
                self.send(1, &generation).await;
            }
            4 => {
                let answer = self.scratch[..12].to_vec();
                self.send(3, &answer).await;
            }
            _ => return Some((kind, size)),
        }
        None
    }
}

/// A session, as far as it is needed here.
struct Client {
    display: Link,
    inputs: Link,
    _main: JoinSet<()>,
}

const PATIENCE: Duration = Duration::from_secs(10);
const INIT: u16 = 103;
const DISPLAY_INIT: u16 = 101;
const KEY_DOWN: u16 = 101;
const KEY_UP: u16 = 102;
const MOUSE_MOTION: u16 = 111;
const MOUSE_MOTION_ACK: u16 = 111;
/// libspice-server acknowledges so many motions at once.
const BUNCH: usize = 4;
/// Scan codes of `a`, `s` and the key that starts the drawing.
const KEYS: [(u8, u32); 3] = [(b'a', 0x1e), (b's', 0x1f), (painter::DRAW, 0x39)];

impl Client {
    async fn connect(setup: &Setup, way: Way) -> Self {
        let mut main = setup.link(way, ChannelType::MAIN, 0).await;
        while main.next().await.0 != INIT {}
        let session = u32::from_le_bytes(main.scratch[..4].try_into().unwrap());
        let mut display = setup.link(way, ChannelType::DISPLAY, session).await;
        let mut init = vec![1];
        init.extend((64i64 << 20).to_le_bytes());
        init.push(1);
        init.extend((16u32 << 20).to_le_bytes());
        display.send(DISPLAY_INIT, &init).await;
        let inputs = setup.link(way, ChannelType::INPUTS, session).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                main.next().await;
            }
        });
        Self { display, inputs, _main: tasks }
    }

    async fn types(&mut self, key: u8) {
        let (_, code) = KEYS.into_iter().find(|(name, _)| *name == key).unwrap();
        self.inputs.send(KEY_DOWN, &code.to_le_bytes()).await;
        self.inputs.send(KEY_UP, &(code | 0x80).to_le_bytes()).await;
    }

    /// Reads what is drawn until nothing comes for so long.
    async fn quiet(&mut self, pause: Duration) {
        while tokio::time::timeout(pause, self.display.begins()).await.is_ok() {
            self.display.step().await;
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    KeyToPicture,
    MotionToAcknowledgement,
    Drawing,
}

impl Kind {
    fn titles(self) -> &'static [&'static str] {
        match self {
            Self::KeyToPicture => &["key to picture, median", "key to picture, 99 %"],
            Self::MotionToAcknowledgement => {
                &["mouse to its acknowledgement, median", "mouse to its acknowledgement, 99 %"]
            }
            Self::Drawing => &["pictures", "processor of serve"],
        }
    }

    async fn measure(
        self,
        setup: &Setup,
        way: Way,
        time: Duration,
    ) -> Vec<(&'static str, &'static str, f64)> {
        let mut client = Client::connect(setup, way).await;
        let titles = self.titles();
        match self {
            Self::KeyToPicture => {
                let (middle, tail) = key_to_picture(setup, &mut client, time).await;
                vec![(titles[0], "ms", middle * 1e3), (titles[1], "ms", tail * 1e3)]
            }
            Self::MotionToAcknowledgement => {
                let (middle, tail) = motion_to_acknowledgement(&mut client, time).await;
                vec![(titles[0], "µs", middle * 1e6), (titles[1], "µs", tail * 1e6)]
            }
            Self::Drawing => {
                client.types(painter::DRAW).await;
                drawing(&mut client, Duration::from_millis(500)).await;
                let (before, start) = (setup.used(way), Instant::now());
                let bytes = drawing(&mut client, time).await as f64;
                let mut values = vec![(titles[0], "MB/s", bytes / start.elapsed().as_secs_f64() / 1e6)];
                if let (Some(before), Some(after)) = (before, setup.used(way)) {
                    values.push((titles[1], "s/GB", (after - before) / (bytes / 1e9)));
                }
                values
            }
        }
    }
}

/// From a key's message to the whole of the first picture that it causes; the median, and what 99 of 100 do not exceed.
async fn key_to_picture(setup: &Setup, client: &mut Client, time: Duration) -> (f64, f64) {
    client.quiet(Duration::from_millis(300)).await;
    let (mut times, start) = (Vec::new(), Instant::now());
    while start.elapsed() < time {
        // Not the one of before, of which there is nothing to see; also not that of the session before.
        let key = [b'a', b's'][setup.typed.fetch_add(1, Ordering::Relaxed) % 2];
        let sent = Instant::now();
        client.types(key).await;
        let picture = tokio::time::timeout(PATIENCE, client.display.next()).await;
        picture.expect("the guest draws nothing for a key");
        times.push(sent.elapsed().as_secs_f64());
        // The rest of the picture, and not always the same moment within QEMU's 30 ms.
        client.quiet(Duration::from_millis(80 + times.len() as u64 * 7 % 30)).await;
    }
    quantiles(times)
}

/// From the last of so many motions of the mouse to their acknowledgement: the way there and back, and QEMU's main loop.
async fn motion_to_acknowledgement(client: &mut Client, time: Duration) -> (f64, f64) {
    let (mut times, start) = (Vec::new(), Instant::now());
    while start.elapsed() < time {
        let mut motion = [0; 10];
        // Right, then left.
        motion[..4].copy_from_slice(&[1i32, -1][times.len() % 2].to_le_bytes());
        for _ in 1..BUNCH {
            client.inputs.send(MOUSE_MOTION, &motion).await;
        }
        let sent = Instant::now();
        client.inputs.send(MOUSE_MOTION, &motion).await;
        let acknowledged = async { while client.inputs.next().await.0 != MOUSE_MOTION_ACK {} };
        tokio::time::timeout(PATIENCE, acknowledged).await.expect("QEMU acknowledges no motion");
        times.push(sent.elapsed().as_secs_f64());
    }
    quantiles(times)
}

fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Bytes of messages that come on the display.
async fn drawing(client: &mut Client, time: Duration) -> usize {
    let (mut total, start) = (0, Instant::now());
    while start.elapsed() < time {
        let picture = tokio::time::timeout(PATIENCE, client.display.next()).await;
        total += picture.expect("the guest draws no more").1;
    }
    total
}

/// A figure's title, its unit, and its values by way.
type Row = (&'static str, &'static str, BTreeMap<Way, Vec<f64>>);

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, title: &'static str, unit: &'static str, way: Way, value: f64) {
        eprintln!("{title:<40} {:<30} {value:10.2} {unit}", way.title());
        let at = match self.0.iter().position(|(known, ..)| *known == title) {
            Some(at) => at,
            None => {
                self.0.push((title, unit, BTreeMap::new()));
                self.0.len() - 1
            }
        };
        self.0[at].2.entry(way).or_default().push(value);
    }

    fn text(&self) -> String {
        let mut text =
            format!("{:<40} {:<30} {:>32} {:>8}\n", "figure", "way", "median (least-most)", "ratio");
        for (title, unit, ways) in &self.0 {
            for (way, values) in ways {
                let Spread { median, least, most } = Spread::of(values);
                let places = if median < 10.0 { 2 } else { usize::from(median < 100.0) };
                let cell = format!("{median:.places$} {unit} ({least:.places$}-{most:.places$})");
                let direct = way.direct().and_then(|direct| ways.get(&direct));
                let ratio = direct
                    .map_or_else(String::new, |direct| format!("{:.3}", median / Spread::of(direct).median));
                writeln!(text, "{title:<40} {:<30} {cell:>32} {ratio:>8}", way.title()).unwrap();
            }
        }
        text
    }

    fn json(&self) -> String {
        let mut text = String::new();
        for (title, unit, ways) in &self.0 {
            for (way, values) in ways {
                let line = serde_json::json!({ "figure": title, "unit": unit, "way": way.title(), "values": values });
                writeln!(text, "{line}").unwrap();
            }
        }
        text
    }
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: sorted[sorted.len() / 2], least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}
