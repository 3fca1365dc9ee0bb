//! `--stats`: what became of each service and each connection of the guest.
//!
//! A connection's lines are printed when it is over, a service's and a channel's at the end of the capture. What is kept
//! until then is bounded: `MAX_SERVICES` and `MAX_CHANNELS` lines. What comes behind that many is counted in one line
//! for all of them; in JSON, a channel's object is printed when it ends and nothing is left out but services.

mod json;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use spice_proto::names::Sender;
use spice_proto::tunnel::ServiceId;

use crate::capture::dissect::{Channel, End, What};
use crate::capture::ledger::{Answer, Connection, Direction, Ending, Ledger, Service};
use crate::capture::reassembly::StreamId;

use super::DumpArgs;
use super::books::{Seen, Since};
use table::Tables;

/// Services that have a line of their own.
const MAX_SERVICES: usize = 4096;
/// Channels that have a line of their own in text.
const MAX_CHANNELS: usize = 4096;

/// Collects them.
#[derive(Debug)]
pub struct Stats {
    json: bool,
    tables: Tables,
    services: BTreeMap<(StreamId, ServiceId), ServiceTotal>,
    /// Connections to what has no line of its own, or to nobody knows what.
    other_services: Total,
    /// Those that live.
    channels: BTreeMap<StreamId, ChannelTotal>,
    /// Those that are over, for the table at the end.
    over: Vec<(StreamId, ChannelTotal)>,
    /// How many more there were.
    more_channels: u64,
}

/// What a service was, and what came of the connections to it.
#[derive(Debug, Default)]
struct ServiceTotal {
    port: Option<u16>,
    name: Vec<u8>,
    address: Option<IpAddr>,
    total: Total,
}

/// What came of some connections.
#[derive(Debug, Default)]
struct Total {
    connections: u64,
    /// By how they ended.
    endings: BTreeMap<Ending, u64>,
    incomplete: u64,
    opening: Opening,
    up: Flow,
    down: Flow,
}

/// How long the client took to accept.
#[derive(Debug, Default)]
struct Opening {
    count: u32,
    sum: Duration,
    longest: Duration,
}

/// A direction of some connections.
#[derive(Debug, Default)]
struct Flow {
    bytes: u64,
    messages: u64,
    /// From the first to the last message, summed up.
    busy: Duration,
    stalls: u64,
    stalled: Duration,
    longest_stall: Duration,
    overruns: u64,
}

/// What a Spice connection carried.
#[derive(Debug)]
struct ChannelTotal {
    channel: Option<Channel>,
    ends: Option<(SocketAddr, SocketAddr)>,
    from_start: bool,
    began: Since,
    ended: Since,
    lasted: Duration,
    first: Duration,
    end: Option<End>,
    client: Said,
    server: Said,
    holes: u64,
    malformed: u64,
    remarks: u64,
}

/// What one end said.
#[derive(Debug, Default)]
struct Said {
    messages: u64,
    /// Of the bodies.
    bytes: u64,
}

impl Stats {
    /// Nothing yet.
    pub fn new(args: &DumpArgs, color: bool) -> Self {
        Self::with(args.json, color)
    }

    fn with(json: bool, color: bool) -> Self {
        Self {
            json,
            tables: Tables::new(color),
            services: BTreeMap::new(),
            other_services: Total::default(),
            channels: BTreeMap::new(),
            over: Vec::new(),
            more_channels: 0,
        }
    }

    /// Notes an item.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let item = seen.item;
        self.channels.entry(item.stream).or_insert_with(|| ChannelTotal::new(seen)).note(seen);
        if let Some(ledger) = seen.ledger {
            for connection in seen.over {
                self.connection(seen, ledger, connection, out)?;
            }
            if matches!(item.what, What::Ended { .. }) {
                for service in ledger.services() {
                    self.service(item.stream, service);
                }
            }
        }
        if matches!(item.what, What::Ended { .. })
            && let Some(channel) = self.channels.remove(&item.stream)
        {
            if self.json {
                json::channel(item.stream, &channel, out)?;
            } else if self.over.len() < MAX_CHANNELS {
                self.over.push((item.stream, channel));
            } else {
                self.more_channels += 1;
            }
        }
        Ok(())
    }

    /// The capture is over: appends the tables.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.json {
            for ((stream, id), service) in &self.services {
                json::service(Some((*stream, *id)), service, out)?;
            }
            if self.other_services.connections > 0 {
                let other = ServiceTotal {
                    total: std::mem::take(&mut self.other_services),
                    ..ServiceTotal::default()
                };
                json::service(None, &other, out)?;
            }
            return Ok(());
        }
        self.tables.services(&self.services, &self.other_services, out)?;
        self.tables.channels(&self.over, self.more_channels, out)
    }

    fn connection(
        &mut self,
        seen: &Seen<'_, '_>,
        ledger: &Ledger,
        connection: &Connection,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let stream = seen.item.stream;
        let service = connection.service.and_then(|id| ledger.service(id));
        if let Some(service) = service {
            self.service(stream, service);
        }
        let total = match connection.service {
            Some(id) if self.has_room(stream, id) => {
                &mut self.services.entry((stream, id)).or_default().total
            }
            Some(_) | None => &mut self.other_services,
        };
        total.add(connection);
        // Times of the ledger are those of the items, whose start `since` counts from.
        let opened = seen.since.earlier_by(seen.item.time.saturating_sub(connection.opened));
        if self.json {
            json::connection(stream, opened, connection, service, out)
        } else {
            self.tables.connection(stream, opened, connection, service, out)
        }
    }

    fn service(&mut self, stream: StreamId, service: &Service) {
        if self.has_room(stream, service.id) {
            let line = self.services.entry((stream, service.id)).or_default();
            line.port = Some(service.port);
            if line.name != service.name {
                line.name.clone_from(&service.name);
            }
            line.address = service.address.or(line.address);
        }
    }

    fn has_room(&self, stream: StreamId, id: ServiceId) -> bool {
        self.services.len() < MAX_SERVICES || self.services.contains_key(&(stream, id))
    }
}

impl Total {
    fn add(&mut self, connection: &Connection) {
        self.connections += 1;
        *self.endings.entry(connection.ending()).or_default() += 1;
        self.incomplete += u64::from(connection.incomplete);
        if let (Answer::Accepted { .. }, Some(took)) = (connection.answer, connection.time_to_open()) {
            self.opening.count = self.opening.count.saturating_add(1);
            self.opening.sum = self.opening.sum.saturating_add(took);
            self.opening.longest = self.opening.longest.max(took);
        }
        self.up.add(&connection.up);
        self.down.add(&connection.down);
    }

    fn ended(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or_default()
    }
}

impl Opening {
    fn mean(&self) -> Option<Duration> {
        self.sum.checked_div(self.count)
    }
}

impl Flow {
    fn add(&mut self, direction: &Direction) {
        self.bytes = self.bytes.saturating_add(direction.bytes);
        self.messages = self.messages.saturating_add(direction.messages);
        self.busy = self.busy.saturating_add(busy(direction));
        self.stalls = self.stalls.saturating_add(direction.stalls);
        self.stalled = self.stalled.saturating_add(direction.stalled);
        self.longest_stall = self.longest_stall.max(direction.longest_stall);
        self.overruns = self.overruns.saturating_add(direction.overruns);
    }
}

/// From the first to the last message, which is what throughput counts over.
fn busy(direction: &Direction) -> Duration {
    match (direction.first, direction.last) {
        (Some(first), Some(last)) => last.saturating_sub(first),
        (_, _) => Duration::ZERO,
    }
}

/// From SOCKET_OPEN to the end, if the capture has that.
fn lasted(connection: &Connection) -> Option<Duration> {
    Some(connection.ended()?.saturating_sub(connection.opened))
}

impl ChannelTotal {
    fn new(seen: &Seen<'_, '_>) -> Self {
        Self {
            channel: None,
            ends: None,
            from_start: false,
            began: seen.since,
            ended: seen.since,
            lasted: Duration::ZERO,
            first: seen.item.time,
            end: None,
            client: Said::default(),
            server: Said::default(),
            holes: 0,
            malformed: 0,
            remarks: 0,
        }
    }

    fn note(&mut self, seen: &Seen<'_, '_>) {
        let item = seen.item;
        self.ended = seen.since;
        self.lasted = item.time.saturating_sub(self.first);
        if item.channel.is_some() {
            self.channel = item.channel;
        }
        self.remarks += u64::from(seen.noted.remark.is_some());
        match &item.what {
            What::Began { client, server, from_start } => {
                self.ends = Some((*client, *server));
                self.from_start = *from_start;
            }
            What::Message(message) => {
                let said = match item.from {
                    Some(Sender::Client) => &mut self.client,
                    Some(Sender::Server) | None => &mut self.server,
                };
                said.messages += 1;
                said.bytes = said.bytes.saturating_add(message.head.size.into());
            }
            What::Malformed { .. } => self.malformed += 1,
            What::Hole(_) => self.holes += 1,
            What::Ended { how } => self.end = Some(*how),
            What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Linked(_) => {}
        }
    }
}
