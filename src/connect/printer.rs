//! What `connect` prints: a line per mapped service, or with `--json` an object a line.

use std::collections::{BTreeMap, HashMap};
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
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
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
}

impl<W: AsyncWrite + Unpin> Printer<W> {
    pub(super) fn new(out: W, json: bool) -> Printer<W> {
        Printer { out, json, names: HashMap::new(), printed: BTreeMap::new(), complaints: HashMap::new() }
    }

    /// Not cancel safe: a part of a line may be out.
    pub(super) async fn print(&mut self, event: &Event, server: &SpiceServer) -> io::Result<()> {
        let line = if self.json { Some(self.json(event, server)?) } else { self.text(event, server) };
        if let Some(mut line) = line {
            line.push('\n');
            self.out.write_all(line.as_bytes()).await?;
            self.out.flush().await?;
        }
        Ok(())
    }

    fn json(&self, event: &Event, server: &SpiceServer) -> serde_json::Result<String> {
        let name = |share: &ShareId| -> (&str, &str) {
            self.names.get(share).map_or(("", ""), |(name, target)| (name, target))
        };
        let line = match event {
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
        };
        serde_json::to_string(&line)
    }

    fn text(&mut self, event: &Event, server: &SpiceServer) -> Option<String> {
        match event {
            Event::Mapped { name, target, virtual_ip, port, .. } => {
                let line = format!("{name}  {target}  ->  {}", SocketAddr::new(*virtual_ip, *port));
                let known = self.printed.insert(target.clone(), line.clone());
                return (known.as_ref() != Some(&line)).then_some(line);
            }
            Event::Connected { .. } => info!("connected to {server}"),
            Event::Refused { share, reason } => self.complain(*share, reason.to_string()),
            Event::Disconnected { reason } => info!(%reason, "disconnected"),
            Event::Opened { .. } | Event::Closed { .. } | Event::Missed { .. } => debug!(?event, "tunnel"),
        }
        None
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
