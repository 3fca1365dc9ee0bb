//! What avahi of a machine knows, by avahi-browse.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use crate::lan::Machine;
use crate::vm::rig::{Program, soon};

/// For avahi-browse to end by itself when it believes to have all. What goes while it looks closer holds it up.
const PATIENCE: &str = "8";

/// A service that was resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) txt: BTreeSet<String>,
}

impl Seen {
    /// Of a line of `avahi-browse -rpk`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("=;")?.splitn(9, ';');
        let (_card, _protocol, name) = (fields.next()?, fields.next()?, fields.next()?);
        let (_kind, _domain, host) = (fields.next()?, fields.next()?, fields.next()?);
        let (address, port, txt) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
        let txt = txt.trim_matches('"').split("\" \"").filter(|entry| !entry.is_empty());
        Some(Self {
            name: unescape(name),
            host: host.to_owned(),
            address: address.to_owned(),
            port: port.parse().ok()?,
            txt: txt.map(str::to_owned).collect(),
        })
    }

    /// It is where the guest's network is.
    pub(super) fn is_virtual(&self) -> bool {
        self.address.starts_with("198.18.")
    }

    /// Where it is.
    pub(super) fn at(&self) -> SocketAddr {
        SocketAddr::new(self.address.parse().unwrap(), self.port)
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.txt
            .iter()
            .find_map(|entry| entry.split_once('=').filter(|(name, _)| *name == key))
            .map(|(_, v)| v)
    }
}

/// Everything of a type, over IPv4.
pub(super) async fn seen(machine: &Machine, kind: &str) -> BTreeSet<Seen> {
    let said = browse(machine, "-rtpk", kind).await;
    said.lines().filter(|line| line.contains(";IPv4;")).filter_map(Seen::parse).collect()
}

/// The names of a type, over IPv4, whether there is more to be known of them or not.
pub(super) async fn names(machine: &Machine, kind: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in browse(machine, "-tpk", kind).await.lines() {
        let fields: Vec<&str> = line.split(';').collect();
        if let ["+", _, "IPv4", name, ..] = fields[..] {
            names.insert(unescape(name));
        } else if let ["-", _, "IPv4", name, ..] = fields[..] {
            names.remove(&unescape(name));
        }
    }
    names
}

async fn browse(machine: &Machine, options: &str, kind: &str) -> String {
    let mut command = machine.command("timeout");
    command.args([PATIENCE, "avahi-browse", options, kind]).stdin(Stdio::null());
    let output = soon("avahi-browse", command.output()).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || output.status.code() == Some(124), "avahi-browse: {complaint}");
    said
}

/// What avahi-browse prints as it comes.
pub(super) struct Watch(Program);

impl Watch {
    pub(super) fn start(machine: &Machine, kind: &str) -> Self {
        Self(machine.start("avahi-browse", "stdbuf", &["-oL", "avahi-browse", "-rpk", kind]))
    }

    /// Waits until a service of this name is resolved.
    pub(super) async fn comes(&mut self, name: &str) -> Seen {
        self.comes_as(name, |_| true).await
    }

    /// Waits until a service of this name is resolved to something that is right.
    pub(super) async fn comes_as(&mut self, name: &str, right: impl Fn(&Seen) -> bool) -> Seen {
        self.0.line(name, |line| Seen::parse(line).filter(|seen| seen.name == name && right(seen))).await
    }

    /// Waits until the service of this name is said to be gone.
    pub(super) async fn goes(&mut self, name: &str, limit: Duration) {
        let gone = timeout(limit, self.gone(name)).await;
        gone.unwrap_or_else(|_| panic!("{name} is still there"));
    }

    /// [`goes`](Self::goes), for whoever has a deadline. Cancel safe.
    pub(super) async fn gone(&mut self, name: &str) {
        let gone = |line: &str| {
            let named = line.strip_prefix("-;")?.split(';').nth(2)?;
            (unescape(named) == name).then_some(())
        };
        self.0.line("that it is gone", gone).await;
    }
}

/// `\DDD` is a byte, `\` and anything else that.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes().collect::<Vec<_>>().into_iter());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(first) if first.is_ascii_digit() => {
                let digits: Vec<u8> = [Some(first), rest.next(), rest.next()].into_iter().flatten().collect();
                let number: u16 = std::str::from_utf8(&digits).unwrap().parse().unwrap();
                bytes.push(number as u8);
            }
            Some(other) => bytes.push(other),
            None => {}
        }
    }
    String::from_utf8(bytes).unwrap()
}
