//! `serve` and `connect` as processes that are killed and started again, and what they cost.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::vm::rig::{SOON, until};

/// A process of ours whose log goes to a file.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: PathBuf,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) files: usize,
    pub(crate) threads: usize,
    pub(crate) kilobytes: u64,
}

impl Process {
    fn start(log: &Path, arguments: &[&str]) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
            .args(arguments)
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it ended already").to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it in order.
    pub(crate) async fn terminate(mut self) {
        self.signal("-TERM");
        let ended = timeout(SOON, self.child.wait()).await.expect("it does not end on SIGTERM").unwrap();
        assert!(ended.success(), "{ended}");
    }

    pub(crate) fn cost(&self) -> Cost {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id().expect("it ended")));
        let count = |what: &str| std::fs::read_dir(proc.join(what)).unwrap().count();
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes = rss.trim().trim_end_matches(" kB").parse().unwrap();
        Cost { files: count("fd"), threads: count("task"), kilobytes }
    }

    /// All that it, and those before it, said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub(crate) async fn says(&self, what: &str) {
        until(what, || async { self.said().contains(what).then_some(()) }).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<_> = said.lines().rev().take(40).collect();
            let last: Vec<_> = lines.into_iter().rev().collect();
            eprintln!("--- the end of {}:\n{}", self.log.display(), last.join("\n"));
        }
    }
}

/// Starts `serve`, and gives where it listens.
pub(crate) async fn serve(log: &Path, arguments: &[&str]) -> (Process, SocketAddr) {
    let before = std::fs::read_to_string(log).unwrap_or_default().len();
    let mut process = Process::start(log, &[&["serve"], arguments].concat());
    for _ in 0..600 {
        assert!(process.is_running(), "serve does not start:\n{}", process.said());
        let said = process.said();
        let listens = said[before..].lines().find_map(|line| {
            line.split("listening for Spice clients")
                .nth(1)?
                .split("address=")
                .nth(1)?
                .split_whitespace()
                .next()
        });
        if let Some(address) = listens {
            return (process, address.parse().unwrap());
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("serve does not listen:\n{}", process.said());
}

/// What one `connect` after the other says.
#[derive(Clone)]
pub(crate) struct Heard {
    /// Where each service was first, which is where it must be for ever.
    addresses: Arc<Mutex<HashMap<String, SocketAddr>>>,
    /// How often all services were mapped, and whether they are now.
    counts: watch::Sender<(u32, bool)>,
    services: usize,
}

impl Heard {
    pub(crate) fn new(services: usize) -> Self {
        Self { addresses: Arc::default(), counts: watch::channel((0, false)).0, services }
    }

    /// Starts `connect`, and listens to it.
    pub(crate) fn connect(&self, log: &Path, arguments: &[&str]) -> Process {
        let mut process = Process::start(log, &[&["connect", "--json"], arguments].concat());
        let mut lines = BufReader::new(process.child.stdout.take().unwrap()).lines();
        let heard = self.clone();
        tokio::spawn(async move {
            let mut mapped = 0;
            while let Ok(Some(line)) = lines.next_line().await {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                match event["event"].as_str().unwrap() {
                    "mapped" => {
                        heard.note(&event);
                        mapped += 1;
                        if mapped == heard.services {
                            heard.counts.send_modify(|counts| *counts = (counts.0 + 1, true));
                        }
                    }
                    "connected" => mapped = 0,
                    "disconnected" => heard.counts.send_modify(|counts| counts.1 = false),
                    _ => {}
                }
            }
            heard.counts.send_modify(|counts| counts.1 = false);
        });
        process
    }

    fn note(&self, event: &serde_json::Value) {
        let name = event["name"].as_str().unwrap().to_owned();
        let address = SocketAddr::new(
            event["virtual_ip"].as_str().unwrap().parse().unwrap(),
            event["port"].as_u64().unwrap() as u16,
        );
        let first = *self.addresses.lock().unwrap().entry(name.clone()).or_insert(address);
        if first != address {
            eprintln!("{name} moved from {first} to {address}");
            std::process::abort();
        }
    }

    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.addresses.lock().unwrap()[name]
    }

    /// How often the services were mapped.
    pub(crate) fn times(&self) -> u32 {
        self.counts.borrow().0
    }

    pub(crate) fn is_mapped(&self) -> bool {
        self.counts.borrow().1
    }

    pub(crate) async fn mapped(&self, within: Duration) {
        let mut waiting = self.counts.subscribe();
        let mapped = timeout(within, waiting.wait_for(|counts| counts.1)).await;
        assert!(mapped.is_ok(), "the services are not mapped within {within:?}");
    }
}
