//! `dump`, measured on a capture of a busy tunnel, beside `cat` and `tshark` on the same file.
//!
//! ```console
//! $ cargo bench --bench dump                      # a table, of a capture of 1 GiB
//! $ cargo bench --bench dump -- --gib 4           # longer than what memory can hold, perhaps
//! $ cargo bench --bench dump -- --rounds 5 --json dump.json
//! ```
//!
//! Each program is the real one, in a process of its own, and prints to /dev/null. All are run in turn, round by round;
//! medians are shown with their extremes. tshark is given the beginning of the capture only, as it is slow and its
//! memory grows with what it read; everything is per byte. What a capture holds is in `tests/traffic.rs`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

#[path = "../tests/traffic.rs"]
#[expect(dead_code, reason = "the tests make more of it")]
mod traffic;

use traffic::Traffic;

#[derive(Parser)]
struct Args {
    /// Rounds; each figure is taken once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the capture, GiB
    #[arg(long, default_value_t = 1.0)]
    gib: f64,
    /// How much of it tshark is given, MiB
    #[arg(long, default_value_t = 64)]
    tshark_mib: u64,
    /// Only figures whose title contains this; that of cat is always taken
    #[arg(long, default_value = "")]
    only: String,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, size: u64| {
        let path = dir.path().join(name);
        io::copy(&mut Traffic::new(size), &mut File::create(&path).unwrap()).unwrap();
        path
    };
    let whole = make("whole.pcap", (args.gib * f64::from(1 << 30)) as u64);
    let beginning = make("beginning.pcap", args.tshark_mib << 20);

    let mut figures: Vec<_> = Kind::ALL
        .into_iter()
        .filter(|kind| matches!(kind, Kind::Cat) || kind.title().contains(&args.only))
        .map(|kind| Figure { kind, rates: Vec::new(), peak: 0 })
        .collect();
    for round in 0..args.rounds {
        // Every other round runs the other way, so that a drift of the machine favours none.
        let order: Vec<_> =
            if round % 2 == 0 { (0..figures.len()).collect() } else { (0..figures.len()).rev().collect() };
        for index in order {
            let figure = &mut figures[index];
            let path = if matches!(figure.kind, Kind::Tshark) { &beginning } else { &whole };
            let Run { time, peak } = figure.kind.run(path);
            figure.rates.push(path.metadata().unwrap().len() as f64 / time.as_secs_f64() / 1e9);
            figure.peak = figure.peak.max(peak);
            eprintln!(
                "round {}: {:<14} {:>8.3} GB/s",
                round + 1,
                figure.kind.title(),
                figure.rates.last().unwrap()
            );
        }
    }

    let median = |kind: fn(&Kind) -> bool| {
        figures.iter().find(|figure| kind(&figure.kind)).map(|figure| Spread::of(&figure.rates).median)
    };
    let cat = median(|kind| matches!(kind, Kind::Cat));
    let tshark = median(|kind| matches!(kind, Kind::Tshark));
    println!("{:<14} {:>26} {:>9} {:>12} {:>12}", "", "GB/s", "of cat", "of tshark", "peak memory");
    let mut lines = String::new();
    for figure in &figures {
        let Spread { median, least, most } = Spread::of(&figure.rates);
        let ratio = |to: Option<f64>| to.map(|to| median / to);
        let cell = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        println!(
            "{:<14} {:>26} {:>9} {:>12} {:>8} MiB",
            figure.kind.title(),
            format!("{median:.3} ({least:.3}-{most:.3})"),
            cell(ratio(cat)),
            cell(ratio(tshark)),
            figure.peak >> 20,
        );
        let line = serde_json::json!({
            "figure": figure.kind.title(), "unit": "GB/s", "rates": figure.rates, "of_cat": ratio(cat),
            "of_tshark": ratio(tshark), "peak_bytes": figure.peak,
        });
        writeln!(lines, "{line}").unwrap();
    }
    if let Some(path) = args.json {
        std::fs::write(path, lines).unwrap();
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Cat,
    Stats,
    Text,
    Json,
    Tshark,
}

/// How long a program ran, and the most memory that it had, bytes.
struct Run {
    time: Duration,
    peak: u64,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Cat, Self::Stats, Self::Text, Self::Json, Self::Tshark];

    fn title(self) -> &'static str {
        match self {
            Self::Cat => "cat",
            Self::Stats => "dump --stats",
            Self::Text => "dump",
            Self::Json => "dump --json",
            Self::Tshark => "tshark",
        }
    }

    fn run(self, path: &Path) -> Run {
        let mut command = Command::new(match self {
            Self::Cat => "cat",
            Self::Tshark => "tshark",
            Self::Stats | Self::Text | Self::Json => env!("CARGO_BIN_EXE_spice-tunnel"),
        });
        match self {
            Self::Cat => command.arg(path),
            Self::Stats => command.arg("dump").arg(path).arg("--stats"),
            Self::Text => command.arg("dump").arg(path),
            Self::Json => command.arg("dump").arg(path).arg("--json"),
            Self::Tshark => {
                // Its own dissector of Spice, on the ports that the capture has.
                command.args(["-n", "-Y", "spice"]);
                for port in [5930, 6316] {
                    command.args(["-d", &format!("tcp.port=={port},spice")]);
                }
                command.arg("-r").arg(path)
            }
        };
        command.stdin(Stdio::null()).stdout(File::create("/dev/null").unwrap()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        let code = loop {
            if let Some(code) = child.try_wait().unwrap() {
                break code;
            }
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with("VmHWM:"));
            let number =
                line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok());
            peak = peak.max(number.unwrap_or(0) << 10);
            std::thread::sleep(Duration::from_millis(1));
        };
        let time = start.elapsed();
        assert!(code.success(), "{command:?}: {code}");
        Run { time, peak }
    }
}

struct Figure {
    kind: Kind,
    /// GB/s, 10⁹ bytes of the capture file.
    rates: Vec<f64>,
    peak: u64,
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
