//! What people would use instead, set up and measured beside us in one run.
//!
//! ```console
//! # cargo bench --bench peers                                # everything: 3 rounds, over an hour
//! # cargo bench --bench peers -- --json peers.json           # and every single value
//! # cargo bench --bench peers -- --quick --only down-1,up-1,rr --peers ours,slirp4netns
//! # cargo bench --bench peers -- --show peers.json           # the table of such a file, while it runs too
//! # cargo bench --bench peers -- --list                      # the names of metrics and peers
//! ```
//!
//! It needs root, for networks of its own, and the programs of the peers: it says which are missing, and in which Debian packages they are.
//! Nothing stays of it, whatever ends it: see `peers/lab.rs`.
//!
//! ```text
//!   guest ── TAP ── what stands beside the guest ══════ what stands at the user's desk ── the service
//!   (load)          slirp4netns, pasta, ssh, serve      sshd, connect                     (load)
//! ```
//!
//! Guest, host and desk are network namespaces. Host and desk are one machine, joined by its loopback, except for the figures over a
//! distance, for which a link with a delay joins two. A figure is taken of all peers in turn, each round in another
//! order, by the same code: threads of their own process that block on sockets, with buffers of 256 KiB; throughput is counted by the
//! receiver within a time that both ends know. A peer is set up anew each round. `loopback` is the same without any peer:
//! plain TCP, over the delayed link if there is one.
//!
//! | metric | what |
//! | --- | --- |
//! | `down-1` `up-1` | one stream to and from the guest; with it the processor time of the peer's processes per GB, at each end |
//! | `down-8` `up-8` `down-64` `up-64` | the sum of so many streams, and Jain's index of fairness |
//! | `rr` | a byte there and back |
//! | `crr-1` `crr-16` | connect, 64 bytes there and back, close: one at a time, and 16 |
//! | `idle-1000` `idle-10000` | these figures with so many connections open that do nothing; the ratio is to none, on the same peer |
//! | `memory-1000` | memory at each end for each of so many connections: idle, after 1 MiB each way on all of them at once, and after a pause. `Pss` counts shared pages in parts, `Rss` whole. The kernel's own, such as socket buffers, is in neither |
//! | `down-50ms` … `up-200ms` | one stream where it takes so long to the desk and back; beside it what the historical tunnel's window allows, computed |
//! | `keys-50ms` | a byte there and back over 50 ms: alone, and on another connection than the bulk |
//! | `vm` | one stream to and from a real virtual machine on our stream card, our vhost-user card, and on QEMU's own `-netdev user` in the same machine |
//!
//! Socket buffers and congestion control are the machine's (`--congestion` is another), and are in the JSON, since they matter: the queue of
//! a TAP device drops packets when many senders fill it, and with BBR a sender may then believe for minutes in a bandwidth of
//! some kbit/s. Compare runs of the same congestion control only.
//!
//! The table has medians with their extremes, and the median of each round's ratio to loopback. Behind our own rows it says which goals of
//! the project the medians of this run meet.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

#[path = "peers/client.rs"]
mod client;
#[path = "peers/delay.rs"]
mod delay;
#[path = "peers/environment.rs"]
mod environment;
#[path = "peers/goals.rs"]
mod goals;
#[path = "peers/held.rs"]
mod held;
#[path = "peers/lab.rs"]
mod lab;
#[path = "peers/ours.rs"]
mod ours;
#[path = "peers/peer.rs"]
mod peer;
#[allow(dead_code, reason = "one kind of certificate is enough")]
#[path = "../tests/pki.rs"]
mod pki;
#[path = "peers/plan.rs"]
mod plan;
#[path = "peers/proc.rs"]
mod proc;
#[path = "peers/report.rs"]
mod report;
#[path = "peers/results.rs"]
mod results;
#[path = "peers/run.rs"]
mod run;
#[path = "peers/server.rs"]
mod server;
#[path = "peers/site.rs"]
mod site;
#[path = "peers/stats.rs"]
mod stats;
#[path = "peers/vm.rs"]
mod vm;
#[path = "peers/wire.rs"]
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use peer::{BASE, PEERS, Peer};
use plan::{METRICS, Metric, Times};

#[derive(Parser, Clone)]
pub(crate) struct Args {
    /// Rounds; each figure is taken once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one figure is measured for; more where a round trip takes long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One round, half a second: to see that it works
    #[arg(long)]
    quick: bool,
    /// Only metrics whose names begin with one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only peers whose names contain one of these, and loopback
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Seconds that opening all idle connections may take
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// Seconds between a burst and the look at what was given back
    #[arg(long, default_value_t = 5.0)]
    pause: f64,
    /// Processors for the peers' programs, as `taskset -c` takes them
    #[arg(long)]
    pin_peers: Option<String>,
    /// Processors for both ends of the load
    #[arg(long)]
    pin_load: Option<String>,
    /// TCP's congestion control in all networks; else the machine's. One that is not in net.ipv4.tcp_allowed_congestion_control
    /// has to be added there first
    #[arg(long)]
    congestion: Option<String>,
    /// Our program, if not the one that is built with this
    #[arg(long)]
    program: Option<String>,
    /// Also write every value to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measure nothing: show the table of such a file. It is written all the time, and is good while a run goes on
    #[arg(long)]
    show: Option<PathBuf>,
    /// List metrics and peers
    #[arg(long)]
    list: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn times(&self) -> Times {
        let measure = if self.quick { 0.5 } else { self.seconds };
        Times { measure, patience: self.patience, pause: self.pause }
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        let mut chosen: Vec<&Metric> = METRICS.iter().filter(|metric| self.wants(metric.name)).collect();
        if chosen.iter().any(|metric| metric.is_among_idle()) {
            let missing = METRICS.iter().filter(|metric| plan::ALONE.contains(&metric.name));
            let missing: Vec<&Metric> = missing.filter(|metric| !self.wants(metric.name)).collect();
            chosen.splice(0..0, missing);
        }
        chosen
    }

    fn wants(&self, metric: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| metric.starts_with(part.as_str()))
    }

    fn peers(&self) -> Vec<&'static Peer> {
        let wants =
            |name: &str| self.peers.is_empty() || self.peers.iter().any(|part| name.contains(part.as_str()));
        PEERS.iter().filter(|peer| peer.name == BASE || wants(peer.name)).collect()
    }

    fn conditions(&self) -> lab::Conditions {
        let Self { pin_peers: peers, pin_load: load, congestion, program, .. } = self.clone();
        lab::Conditions { peers, load, congestion, program }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((role, _)) if role == site::SERVE => site::serve(),
        Some((role, _)) if role == site::LOAD => site::load(),
        Some((role, rest)) if role == delay::DELAY => delay::run(rest),
        Some((role, rest)) if role == vm::MACHINE => vm::run(rest),
        _ => match benchmark(&Args::parse()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}

fn benchmark(args: &Args) -> Result<(), String> {
    let (metrics, mut peers) = (args.metrics(), args.peers());
    let machine = args.wants(plan::VM);
    if args.list {
        let names = metrics.iter().map(|metric| metric.name).chain(machine.then_some(plan::VM));
        println!("metrics: {}", names.collect::<Vec<_>>().join(" "));
        println!("peers: {}", peers.iter().map(|peer| peer.name).collect::<Vec<_>>().join(" "));
        return Ok(());
    }
    if let Some(path) = &args.show {
        print!("{}", report::text(&results::Results::load(path)?));
        return Ok(());
    }
    environment::check(&peers, machine)?;
    let mut results = results::Results::new(environment::describe(args)?, args.json.clone());
    if peers.iter().any(|peer| peer.wants_offloads())
        && !ours::knows_offloads(&lab::Lab::new(&["host"], args.conditions())?, "host")
    {
        peers.retain(|peer| !peer.wants_offloads());
        results.fail(1, "ours-offload", "everything", "", ours::NOT_BUILT.to_owned());
    }
    run::all(args, &metrics, &peers, &mut results)?;
    if machine {
        run::machine(args, &mut results);
    }
    results.save(true)?;
    print!("{}", report::text(&results));
    Ok(())
}
