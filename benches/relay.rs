//! What the proxy's untouched channels cost: made-up display traffic through the proxy, beside the same bytes through a copier
//! and without anything between.
//!
//! ```console
//! $ cargo bench --bench relay                        # a table
//! $ cargo bench --bench relay -- --json relay.json   # and a file
//! $ cargo bench --bench relay -- --rounds 5 --seconds 2 --only 2MiB
//! ```
//!
//! A Spice server in this process accepts any link and then sends one kind of message sizes for the given time; a client
//! reads. Between them is the proxy on a thread of its own, or a thread that reads 64 KiB and writes them as socat does.
//! The thread's time on a processor (what its writes cost in the kernel included) is divided by the bytes that
//! arrived. All ways are taken in turn, round by round; medians are shown with their extremes, and the ratio to the copier.
//!
//! Linux only: threads' times are read from `/proc`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

#[allow(dead_code, reason = "one certificate is enough")]
#[path = "../tests/pki.rs"]
mod pki;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use server_glue::listen::Listener;
use server_glue::proxy::{Backend, Limits, Proxy, ProxyConfig, TunnelPolicy};
use server_glue::stream::{SecureTarget, Target, Upstream};
use spice_proto::handshake::{ClientLink, Deadlines};
use spice_proto::io::{Decision, accept, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkMess, LinkVersion, Welcome};
use spice_proto::ticket::{Password, TicketKey};
use spice_proto::tls::{Acceptor, Connector, Roots, Trust};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Args {
    /// Rounds; each figure is taken once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one figure is measured for
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only figures whose title contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sizes of bodies, bytes.
const MIXES: [(&str, &[usize]); 5] = [
    (
        "mixed 10B..2MiB",
        &[10, 300, 40, 5_000, 90, 70_000, 1_200, 10, 400_000, 24_000, 600, 2 << 20, 150, 130_000],
    ),
    ("small 10B..4KiB", &[10, 300, 40, 4_000, 90, 1_200, 150]),
    ("medium 40KiB", &[40 << 10]),
    ("medium 160KiB", &[160 << 10]),
    ("large 2MiB", &[2 << 20]),
];

/// What is between the server and the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Copier,
    Clear,
    FromUnix,
    TlsThenClear,
    ThroughTls,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Direct, Self::Copier, Self::Clear, Self::FromUnix, Self::TlsThenClear, Self::ThroughTls];

    fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Copier => "copier, 64 KiB",
            Self::Clear => "proxy, TCP and TCP",
            Self::FromUnix => "proxy, Unix and TCP",
            Self::TlsThenClear => "proxy, TCP and TLS",
            Self::ThroughTls => "proxy, TLS and TLS",
        }
    }
}

fn main() {
    let args = Args::parse();
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::start(directory.path());
    let time = Duration::from_secs_f64(args.seconds);
    // By mix and way: MB/s, and CPU seconds per GB.
    let mut figures = vec![vec![(Vec::new(), Vec::new()); Way::ALL.len()]; MIXES.len()];
    let chosen =
        |mix: &str, way: Way| args.only.is_empty() || format!("{mix}, {}", way.title()).contains(&args.only);
    for round in 0..args.rounds {
        for (at, (mix, sizes)) in MIXES.iter().enumerate() {
            for step in 0..Way::ALL.len() {
                // Each round begins with another way, so that a drift of the machine favours none.
                let which = (round + step) % Way::ALL.len();
                if chosen(mix, Way::ALL[which]) {
                    let (rate, cost) = setup.measure(Way::ALL[which], sizes, time);
                    figures[at][which].0.push(rate);
                    figures[at][which].1.push(cost);
                }
            }
        }
    }
    let mut json = Vec::new();
    for ((mix, _), ways) in MIXES.iter().zip(&figures) {
        println!("\n{mix:<22} {:>9} {:>22} {:>10}", "MB/s", "CPU s/GB", "to copier");
        let copier = median(&ways[1].1);
        for (way, (rates, costs)) in Way::ALL.iter().zip(ways) {
            if rates.is_empty() {
                continue;
            }
            let (low, high) = extremes(costs);
            let cost = median(costs);
            println!(
                "{:<22} {:>9.0} {:>6.3} ({low:.3}..{high:.3}) {:>10.2}",
                way.title(),
                median(rates),
                cost,
                cost / copier
            );
            json.push(serde_json::json!({
                "mix": mix, "way": way.title(), "megabytes_per_second": rates, "cpu_seconds_per_gigabyte": costs,
            }));
        }
    }
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn extremes(values: &[f64]) -> (f64, f64) {
    (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(f64::MIN, f64::max))
}

/// What a thread has used so far. Filled in by the thread itself: only it knows its number.
#[derive(Clone, Copy)]
struct Meter(rustix::thread::Pid);

impl Meter {
    /// Seconds on a processor: the first field of `schedstat`, in nanoseconds.
    fn used(self) -> f64 {
        let path = format!("/proc/self/task/{}/schedstat", self.0.as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    }
}

/// Runs something that goes on for ever on a thread of its own, with a runtime of its own.
fn spawn<F: Future<Output = ()>>(future: impl FnOnce() -> F + Send + 'static) -> Meter {
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        tell.send(Meter(rustix::thread::gettid())).unwrap();
        runtime().block_on(async { future().await });
    });
    told.recv().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

struct Setup {
    /// By way.
    ports: [u16; 6],
    proxy: Meter,
    copier: Meter,
    connector: Connector,
    mix: Arc<std::sync::Mutex<&'static [usize]>>,
    stop: Arc<AtomicBool>,
}

impl Setup {
    fn start(directory: &Path) -> Self {
        let files = pki::Authority::new("benchmark").issue(&pki::Leaf::default(), directory);
        let acceptor = Acceptor::load(&files.certificate, &files.key).unwrap();
        let trust = Trust { roots: Roots::File(files.ca.clone()), ..Trust::default() };
        let connector = Connector::new(&trust).unwrap();
        let mix = Arc::new(std::sync::Mutex::new(MIXES[0].1));
        let stop = Arc::new(AtomicBool::new(false));
        let bind = || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            listener.set_nonblocking(true).unwrap();
            (listener, port)
        };
        let [plain, secure] = [bind(), bind()];
        let (plain_port, secure_port) = (plain.1, secure.1);
        let local = directory.join("spice.sock");
        let unix = std::os::unix::net::UnixListener::bind(&local).unwrap();
        unix.set_nonblocking(true).unwrap();
        let sending = Arc::new(Sending {
            mix: Arc::clone(&mix),
            stop: Arc::clone(&stop),
            key: TicketKey::generate().unwrap(),
        });
        let tls = acceptor.clone();
        spawn(move || async move {
            let plain = TcpListener::from_std(plain.0).unwrap();
            let secure = TcpListener::from_std(secure.0).unwrap();
            let unix = UnixListener::from_std(unix).unwrap();
            loop {
                let sending = Arc::clone(&sending);
                tokio::select! {
                    Ok((stream, _)) = plain.accept() => drop(tokio::spawn(async move { sending.serve(stream).await })),
                    Ok((stream, _)) = unix.accept() => drop(tokio::spawn(async move { sending.serve(stream).await })),
                    Ok((stream, _)) = secure.accept() => {
                        let stream = tls.accept(stream).await.unwrap();
                        drop(tokio::spawn(async move { sending.serve(stream).await }));
                    }
                }
            }
        });
        let tcp = Target::Tcp(format!("127.0.0.1:{plain_port}"));
        let over_tls = SecureTarget {
            target: Target::Tcp(format!("127.0.0.1:{secure_port}")),
            host: "localhost".to_owned(),
            connector: connector.clone(),
        };
        let legs: [(Upstream, bool); 4] = [
            (tcp.clone().into(), false),
            (Target::Unix(local).into(), false),
            (tcp.into(), true),
            (over_tls.into(), true),
        ];
        let listeners: Vec<_> = legs.into_iter().map(|(upstream, tls)| (upstream, tls, bind())).collect();
        let through: Vec<u16> = listeners.iter().map(|(_, _, (_, port))| *port).collect();
        let proxy = spawn(move || async move {
            let (_certificates, current) = tokio::sync::watch::channel(acceptor);
            for (upstream, tls, (listener, _)) in listeners {
                let proxy = Proxy::new(ProxyConfig {
                    backend: Backend::Upstream(upstream),
                    tunnel: TunnelPolicy::Disabled,
                    limits: Limits::default(),
                });
                let listener = TcpListener::from_std(listener).unwrap();
                let listener =
                    if tls { Listener::Tls(listener, current.clone()) } else { Listener::Tcp(listener) };
                let (tunnels, _) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move { proxy.serve(listener, tunnels, CancellationToken::new()).await });
            }
            std::future::pending::<()>().await;
        });
        let (copier, copier_port) = copier(plain_port);
        Self {
            ports: [plain_port, copier_port, through[0], through[1], through[2], through[3]],
            proxy,
            copier,
            connector,
            mix,
            stop,
        }
    }

    /// MB/s that arrive, and seconds on a processor of what is between for each GB.
    fn measure(&self, way: Way, sizes: &'static [usize], time: Duration) -> (f64, f64) {
        *self.mix.lock().unwrap() = sizes;
        self.stop.store(false, Ordering::Relaxed);
        let port = self.ports[way as usize];
        let meter = match way {
            Way::Direct => None,
            Way::Copier => Some(self.copier),
            Way::Clear | Way::FromUnix | Way::TlsThenClear | Way::ThroughTls => Some(self.proxy),
        };
        let used = || meter.map_or(0.0, Meter::used);
        runtime().block_on(async {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let mut stream: Box<dyn Pipe> = match way {
                Way::Direct | Way::Copier | Way::Clear | Way::FromUnix => Box::new(stream),
                Way::TlsThenClear | Way::ThroughTls => {
                    Box::new(self.connector.connect("localhost", stream).await.unwrap())
                }
            };
            let link = ClientLink {
                version: LinkVersion::V2,
                channel_type: ChannelType::CURSOR.0,
                channel_id: 0,
                session_id: 1,
                common_caps: CommonCaps::OURS,
                channel_caps: vec![0],
            };
            let password = Password::new("").unwrap();
            connect(&mut stream, link, &password, Deadlines::default()).await.unwrap();
            let mut buffer = vec![0; 256 << 10];
            // Until windows and buffers have grown.
            let warm = Instant::now();
            while warm.elapsed() < Duration::from_millis(200) {
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
            }
            let (started, before) = (Instant::now(), used());
            let mut bytes = 0;
            while started.elapsed() < time {
                bytes += stream.read(&mut buffer).await.unwrap();
            }
            let (elapsed, cost) = (started.elapsed(), used() - before);
            self.stop.store(true, Ordering::Relaxed);
            while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
            (bytes as f64 / 1e6 / elapsed.as_secs_f64(), cost / (bytes as f64 / 1e9))
        })
    }
}

trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

/// The Spice server.
struct Sending {
    mix: Arc<std::sync::Mutex<&'static [usize]>>,
    stop: Arc<AtomicBool>,
    key: TicketKey,
}

impl Sending {
    async fn serve(&self, mut stream: impl Pipe) {
        let decide = |_: &LinkMess| {
            Decision::Welcome(Welcome {
                public_key: Box::new(*self.key.public_der()),
                common_caps: vec![CommonCaps::OURS.bits()],
                channel_caps: vec![0],
            })
        };
        accept(&mut stream, &self.key, Deadlines::default(), decide, async |_| Ok(())).await.unwrap();
        let sizes = *self.mix.lock().unwrap();
        // Small ones go together, as libspice-server's do when it is busy; nobody looks at what is in them.
        let mut batch = Vec::new();
        while batch.len() < 256 << 10 {
            for size in sizes {
                batch.extend(304u16.to_le_bytes());
                batch.extend((*size as u32).to_le_bytes());
                batch.resize(batch.len() + size, 7);
            }
        }
        while !self.stop.load(Ordering::Relaxed) {
            if stream.write_all(&batch).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    }
}

/// Copies both ways, one connection at a time; the measured thread is that from the server to the client.
fn copier(to: u16) -> (Meter, u16) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        tell.send(Meter(rustix::thread::gettid())).unwrap();
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = StdStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || copy(up.0, up.1));
            copy(server, client);
        }
    });
    (told.recv().unwrap(), port)
}

fn copy(mut from: StdStream, mut to: StdStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}
