//! What `connect` prints: a line per mapped service, or with `--json` an object a line.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use client_glue::server::SpiceServer;
use client_glue::{ConnectionId, End, Event, ShareId};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tracing::{debug, info, warn};

/// The same refusal is logged again after this long only: a guest may try for ever.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Different reasons logged between two tunnels.
const MANY_REASONS: usize = 20;

/// Puts events on paper.
pub(super) struct Printer<W> {
    out: W,
    json: bool,
    /// Names and targets of the tunnel's shares.
    pub(super) names: HashMap<ShareId, (String, String)>,
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
            json,
            names: HashMap::new(),
            printed: BTreeMap::new(),
            complaints: HashMap::new(),
            reasons: HashSet::new(),
        }
    }

    /// Not cancel safe: a part of a line may be out.
    pub(super) async fn print(&mut self, event: &Event, server: &SpiceServer) -> io::Result<()> {
        self.log(event, server);
        let line = if self.json { self.json(event, server)? } else { self.text(event) };
        if let Some(mut line) = line {
            line.push('\n');
            self.out.write_all(line.as_bytes()).await?;
            self.out.flush().await?;
        }
        Ok(())
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
