//! What `connect` prints: a line per mapped service, or with `--json` an object a line.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use client_glue::discover::{Change, Notice};
use client_glue::server::SpiceServer;
use client_glue::{ConnectionId, End, Event, Share, ShareId};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tracing::{debug, info, warn};

use crate::discover::found;

/// The same refusal is logged again after this long only: a guest may try for ever.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Most names that are remembered.
const MANY_NAMES: usize = 4096;

/// Different reasons logged between two tunnels.
const MANY_REASONS: usize = 20;

/// Lines are written at once, but the next not before this time is over: what came meanwhile goes out together. A write to the standard
/// output is a wait for another thread, and a busy guest opens thousands of connections a second.
const GATHER: Duration = Duration::from_millis(5);

/// Octets of lines beyond which no event is taken before they are written.
const MUCH: usize = 64 * 1024;

/// Puts events on paper.
pub(super) struct Printer<W> {
    out: W,
    /// Lines that are not written.
    waiting: String,
    /// The earliest time of the next write.
    next: Instant,
    json: bool,
    /// Names and targets of the tunnel's shares.
    names: BTreeMap<ShareId, (String, String)>,
    /// Those that the user shares by hand; they come first, and their names are kept.
    by_hand: u64,
    /// Lines printed as text, by target: a tunnel that comes back the same is not worth a second one.
    printed: BTreeMap<String, String>,
    /// The last refusal logged of each share, and when.
    complaints: HashMap<ShareId, (String, Instant)>,
    /// Why there was no tunnel, as logged since there was one: a server that is away for hours is worth a line for each
    /// reason, not for each attempt.
    reasons: HashSet<String>,
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Linking {
        server: String,
        attempt: u32,
    },
    Connected {
        server: String,
        max_sockets: u16,
        max_data: u32,
    },
    Mapped {
        name: &'a str,
        target: &'a str,
        virtual_ip: IpAddr,
        port: u16,
    },
    Unmapped {
        name: &'a str,
        target: &'a str,
    },
    Discovered(Box<found::Line>),
    Lost(Box<found::Line>),
    Opened {
        name: &'a str,
        target: &'a str,
        connection: u64,
        address: SocketAddr,
    },
    Closed {
        name: &'a str,
        target: &'a str,
        connection: u64,
        bytes_up: u64,
        bytes_down: u64,
        end: &'static str,
    },
    Refused {
        name: &'a str,
        target: &'a str,
        reason: String,
    },
    Missed {
        events: u64,
    },
    Disconnected {
        reason: &'a str,
    },
    Waiting {
        seconds: f64,
        reason: &'a str,
    },
    GaveUp {
        reason: &'a str,
    },
}

impl<W: AsyncWrite + Unpin> Printer<W> {
    pub(super) fn new(out: W, json: bool) -> Printer<W> {
        Printer {
            out,
            waiting: String::new(),
            next: Instant::now(),
            json,
            names: BTreeMap::new(),
            by_hand: 0,
            printed: BTreeMap::new(),
            complaints: HashMap::new(),
            reasons: HashSet::new(),
        }
    }

    /// A share whose name is known before it is mapped. To be told of all before anything is printed.
    pub(super) fn shared_by_hand(&mut self, share: ShareId, what: &Share) {
        self.names.insert(share, (what.name.clone(), what.target()));
        self.by_hand = self.by_hand.max(share.0 + 1);
    }

    /// When [`Printer::write`] is to be called, if anything waits for it.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next)
    }

    /// Whether so much waits that it must be written before more is noted.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MUCH
    }

    /// Writes all that waits.
    ///
    /// Not cancel safe: a part of a line may be out.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        self.out.write_all(self.waiting.as_bytes()).await?;
        self.out.flush().await?;
        self.waiting.clear();
        self.next = Instant::now() + GATHER;
        Ok(())
    }

    /// Takes what happened, to be written when it is due.
    pub(super) fn note(&mut self, event: &Event, server: &SpiceServer) -> io::Result<()> {
        if let Event::Mapped { share, name, target, .. } = event {
            self.remember(*share, name, target);
        }
        self.log(event, server);
        let line = if self.json { self.json(event, server)? } else { self.text(event) };
        self.put(line);
        Ok(())
    }

    /// Takes what was found, with `--json`; people see what is mapped.
    pub(super) fn note_found(&mut self, notice: &Notice) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let found = Box::new(found::Line::new(notice));
        let line = match notice.change {
            Change::Found | Change::Changed => Line::Discovered(found),
            Change::Lost => Line::Lost(found),
        };
        let line = serde_json::to_string(&line)?;
        self.put(Some(line));
        Ok(())
    }

    /// Connections outlive what they were mapped by, so that names do; but not for ever.
    fn remember(&mut self, share: ShareId, name: &str, target: &str) {
        self.names.insert(share, (name.to_owned(), target.to_owned()));
        if self.names.len() > MANY_NAMES {
            let oldest = self.names.range(ShareId(self.by_hand)..).next().map(|(share, _)| *share);
            if let Some(oldest) = oldest {
                self.names.remove(&oldest);
                self.complaints.remove(&oldest);
            }
        }
    }

    fn put(&mut self, line: Option<String>) {
        if let Some(line) = line {
            self.waiting.push_str(&line);
            self.waiting.push('\n');
        }
    }

    fn json(&self, event: &Event, server: &SpiceServer) -> serde_json::Result<Option<String>> {
        let name = |share: &ShareId| -> (&str, &str) {
            self.names.get(share).map_or(("", ""), |(name, target)| (name, target))
        };
        let line = match event {
            Event::Linking { attempt } => Line::Linking { server: server.to_string(), attempt: *attempt },
            Event::Connected { max_sockets, max_data } => {
                Line::Connected { server: server.to_string(), max_sockets: *max_sockets, max_data: *max_data }
            }
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                Line::Mapped { name, target, virtual_ip: *virtual_ip, port: *port }
            }
            Event::Unmapped { name, target, .. } => Line::Unmapped { name, target },
            Event::Opened { share, connection: ConnectionId(connection), address } => {
                let (name, target) = name(share);
                Line::Opened { name, target, connection: *connection, address: *address }
            }
            Event::Closed { share, connection: ConnectionId(connection), bytes_up, bytes_down, end } => {
                let (name, target) = name(share);
                let (bytes_up, bytes_down) = (*bytes_up, *bytes_down);
                Line::Closed { name, target, connection: *connection, bytes_up, bytes_down, end: word(*end) }
            }
            Event::Refused { share, reason } => {
                let (name, target) = name(share);
                Line::Refused { name, target, reason: reason.to_string() }
            }
            Event::Missed { events } => Line::Missed { events: *events },
            Event::Disconnected { reason } => Line::Disconnected { reason },
            Event::Waiting { wait, reason } => {
                let seconds = (wait.as_secs_f64() * 1000.0).round() / 1000.0;
                Line::Waiting { seconds, reason }
            }
            Event::GaveUp { reason } => Line::GaveUp { reason },
            _ => return Ok(None),
        };
        serde_json::to_string(&line).map(Some)
    }

    fn text(&mut self, event: &Event) -> Option<String> {
        if let Event::Unmapped { target, .. } = event {
            // If it comes back, that is worth a line.
            self.printed.remove(target);
        }
        let Event::Mapped { name, target, virtual_ip, port, .. } = event else { return None };
        let line = format!("{name}  {target}  ->  {}", SocketAddr::new(*virtual_ip, *port));
        let known = self.printed.insert(target.clone(), line.clone());
        (known.as_ref() != Some(&line)).then_some(line)
    }

    /// What a person wants to know while it happens.
    fn log(&mut self, event: &Event, server: &SpiceServer) {
        match event {
            Event::Connected { .. } => {
                self.reasons.clear();
                info!("connected to {server}");
            }
            Event::Unmapped { name, target, .. } => info!(name, target, "not shared any more"),
            Event::Refused { share, reason } => self.complain(*share, reason.to_string()),
            Event::Waiting { wait, reason } => {
                let new = self.reasons.len() < MANY_REASONS && self.reasons.insert(reason.clone());
                let wait = wait.as_secs_f64();
                if new {
                    warn!("no tunnel: {reason}; trying again in {wait:.1} s, and for as long as it takes");
                } else {
                    debug!("no tunnel: {reason}; trying again in {wait:.1} s");
                }
            }
            // Why it failed is the program's last word.
            Event::GaveUp { .. } => {}
            Event::Linking { .. }
            | Event::Mapped { .. }
            | Event::Opened { .. }
            | Event::Closed { .. }
            | Event::Missed { .. }
            | Event::Disconnected { .. } => debug!(?event, "tunnel"),
            _ => debug!(?event, "tunnel"),
        }
    }

    fn complain(&mut self, share: ShareId, reason: String) {
        let name = self.names.get(&share).map_or("", |(name, _)| name);
        match self.complaints.get(&share) {
            Some((known, when)) if *known == reason && when.elapsed() < COMPLAIN_EVERY => {
                debug!(share = name, reason, "a connection of the guest was refused");
            }
            Some(_) | None => {
                warn!(share = name, reason, "a connection of the guest was refused");
                self.complaints.insert(share, (reason, Instant::now()));
            }
        }
    }
}

fn word(end: End) -> &'static str {
    match end {
        End::Clean => "clean",
        End::Service => "service",
        End::Guest => "guest",
        End::Unshared => "unshared",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_that_come_together_go_out_together() {
        let server = SpiceServer::plain("127.0.0.1", 5900);
        let attempt = |attempt| Event::Linking { attempt };
        let mut printer = Printer::new(Vec::new(), true);
        assert_eq!(printer.due(), None);
        printer.note(&attempt(1), &server).unwrap();
        assert!(printer.due().unwrap() <= Instant::now(), "the first waits for nothing");
        printer.write().await.unwrap();
        let (written, before) = (printer.out.len(), Instant::now());
        printer.note(&attempt(2), &server).unwrap();
        printer.note(&attempt(3), &server).unwrap();
        assert_eq!(printer.out.len(), written);
        let due = printer.due().unwrap();
        assert!(due <= before + GATHER && due > before - GATHER);
        assert!(!printer.is_full());
        while !printer.is_full() {
            printer.note(&attempt(4), &server).unwrap();
        }
        assert!(printer.waiting.len() < MUCH + 200);
        printer.write().await.unwrap();
        assert_eq!((printer.due(), printer.is_full()), (None, false));
        let out = String::from_utf8(printer.out).unwrap();
        let attempts: Vec<_> = out.lines().map(|line| line.split("attempt").nth(1).unwrap()).collect();
        assert_eq!(attempts[..4], ["\":1}", "\":2}", "\":3}", "\":4}"]);
    }
}
