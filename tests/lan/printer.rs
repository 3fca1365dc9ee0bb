//! A printer of the user's network: ippeveprinter, which speaks IPP as today's printers do.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::sha::Sha256;

use super::machine::{pid_of, signal};
use super::network::addresses;
use super::{Lan, Machine};
use crate::vm::rig::{Program, soon, until};

/// How long a job takes once it has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Eight seconds: a job that comes within them is sent away, as printers do that take one at a time.
    Slow,
    /// No time.
    Quick,
}

impl Pace {
    fn seconds(self) -> u32 {
        match self {
            Self::Slow => 8,
            Self::Quick => 0,
        }
    }
}

/// A printer, switched on.
pub(crate) struct Printer {
    pub(crate) machine: Machine,
    number: u8,
    host: String,
    name: &'static str,
    pace: Pace,
    running: Option<Program>,
    _announcing: Option<[Program; 2]>,
}

const PORT: u16 = 631;

impl Printer {
    /// One that does not announce itself.
    pub(crate) async fn silent(lan: &Lan, host: &str, pace: Pace) -> Self {
        Self::plug(lan, host, "Silent", pace, false).await
    }

    /// One that announces itself by this name, as HOST.local.
    pub(crate) async fn announced(lan: &Lan, host: &str, name: &'static str, pace: Pace) -> Self {
        Self::plug(lan, host, name, pace, true).await
    }

    async fn plug(lan: &Lan, host: &str, name: &'static str, pace: Pace, announced: bool) -> Self {
        let number = lan.number();
        let hosts: String = addresses(number).iter().map(|ip| format!("{ip} {host}.local\n")).collect();
        let machine = Machine::boot("printer", &hosts).await;
        lan.plug(&machine, number).await;
        for directory in ["jobs", "keys"] {
            std::fs::create_dir(machine.path(directory)).unwrap();
        }
        // ippeveprinter needs avahi even where nobody hears of it.
        let announcing = Some(machine.announce(host).await);
        if !announced {
            machine.sh("ip link set eth0 multicast off").await;
        }
        let mut printer = Self {
            machine,
            number,
            host: host.to_owned(),
            name,
            pace,
            running: None,
            _announcing: announcing,
        };
        printer.switch_on().await;
        printer
    }

    pub(crate) async fn switch_on(&mut self) {
        let path = |name: &str| self.machine.path(name).display().to_string();
        // Without a place for its key it advertises a TLS that it cannot speak.
        let (jobs, keys, port) = (path("jobs"), path("keys"), PORT.to_string());
        let host = format!("{}.local", self.host);
        let mut arguments =
            vec!["-v", "-p", &port, "-n", &host, "-r", "_print,_universal", "-k", "-d", &jobs];
        arguments.extend(["-K", &keys]);
        arguments.extend(["-f", "application/pdf,image/urf,image/pwg-raster,application/octet-stream"]);
        // By itself it takes five to fifteen, by chance.
        let command = self.machine.path("print");
        std::fs::write(&command, format!("#!/bin/sh\nsleep {}\n", self.pace.seconds())).unwrap();
        std::fs::set_permissions(&command, Permissions::from_mode(0o755)).unwrap();
        let command = command.display().to_string();
        arguments.extend(["-c", &command]);
        arguments.push(self.name);
        self.running = Some(self.machine.start("ippeveprinter", "ippeveprinter", &arguments));
        let at = self.address();
        until("the printer to answer", || async { self.machine.connect(at).await.ok() }).await;
    }

    /// Pulls its plug: nothing is said, and nobody is there any more to say it.
    pub(crate) async fn switch_off(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill().await;
        }
    }

    /// Ends its program by this signal. Its avahi stays, and says goodbye for it.
    pub(crate) async fn leave(&mut self, name: &str) {
        if let Some(mut running) = self.running.take() {
            signal(&running, name).await;
            soon("the printer to end", running.ended()).await;
        }
    }

    /// The process of the printer, for signals.
    pub(crate) fn pid(&self) -> u32 {
        pid_of(self.running.as_ref().unwrap())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(addresses(self.number)[0], PORT)
    }

    /// An address of the printer's machine, for something else in there.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(addresses(self.number)[0], port)
    }

    /// What it stored: SHA-256 by file.
    pub(crate) fn stored(&self) -> BTreeMap<PathBuf, [u8; 32]> {
        self.files().into_iter().map(|path| (path.clone(), hash(&path))).collect()
    }

    /// The files it stores jobs in.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.machine.path("jobs")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        // What the command says: nothing.
        files.filter(|path| path.extension().is_none_or(|kind| kind != "prn")).collect()
    }
}

/// Of a file that may be large.
fn hash(path: &Path) -> [u8; 32] {
    let (mut file, mut hash, mut buffer) = (File::open(path).unwrap(), Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hash.finish(),
            read => hash.update(&buffer[..read]),
        }
    }
}
