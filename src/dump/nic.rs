//! `--nic FILE`: the same run seen on the guest's card, each of its connections paired with its socket in the tunnel.
//!
//! # Theory of operation
//!
//! Both captures are read side by side, in the order of their times, which are of one machine's clock. A SOCKET_OPEN follows
//! from a guest's SYN to the service's address, and soon; so it is paired with the first such SYN that is not taken yet,
//! of those from the second before it, and if there is none, with the last before that. Then each direction is
//! compared byte by byte (`lane`): what one capture is ahead waits for the other, in bounded memory. Where it does
//! not fit, the capture that is behind is read first; where that is not enough, it is said that the rest was not
//! compared.
//!
//! What the guest sends must come out of the tunnel's server, all of it, and nothing else; what the service sent must
//! come to the guest. Only a connection that was aborted may end with some of it on its way (`verdict`).

mod guest;
mod icmp;
mod lane;
mod list;
mod report;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Debug, Formatter};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use spice_proto::names::Sender;
use spice_proto::tunnel::ServerMessage;

use crate::capture::dissect::What;
use crate::capture::file::Reader;
use crate::capture::ledger::{Connection, ConnectionNumber, Said, said};
use crate::capture::reassembly::{StreamId, Way};

use super::DumpArgs;
use super::books::Seen;
use guest::{GuestConnection, Guests, News, Reply};
use lane::{Lane, Room, Side};
use report::Report;

pub use list::list;

/// How far the times of the two captures may be apart.
const SLACK: Duration = Duration::from_millis(10);
/// An OPEN follows from its SYN within this, unless there is no other.
const SOON: Duration = Duration::from_secs(1);
/// Addresses of services that are remembered, to say whether a guest's connection was to one of them.
const MAX_SERVICES: usize = 4096;

/// Pairs them.
pub struct Nic {
    guests: Guests,
    pairing: Pairing,
}

impl Debug for Nic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic").finish_non_exhaustive()
    }
}

/// What lives in either capture, and what is to be said of what is over.
struct Pairing {
    tunnelled: BTreeMap<ConnectionNumber, Tunnelled>,
    at_guest: BTreeMap<StreamId, AtGuest>,
    /// Guest's connections that are not paired, by where they go and when they began.
    free: BTreeMap<SocketAddr, BTreeSet<(Duration, StreamId)>>,
    /// Guest's connections that will not be paired any more if they are not when the tunnel's capture is beyond this time.
    settling: VecDeque<(Duration, StreamId)>,
    /// Tunnelled connections for which the guest's SYN may still come.
    undecided: VecDeque<(Duration, ConnectionNumber)>,
    services: BTreeSet<SocketAddr>,
    /// Of the tunnel's capture: the first and the last item's time.
    tunnel_times: Option<(Duration, Duration)>,
    /// Of the card's: the first and the last packet's so far.
    card_times: Option<(Duration, Duration)>,
    room: Room,
    report: Report,
}

/// A tunnelled connection.
struct Tunnelled {
    opened: Duration,
    destination: Option<SocketAddr>,
    stream: StreamId,
    /// Whether `guest` is what it will be.
    decided: bool,
    guest: Option<StreamId>,
    /// Once it is over.
    over: Option<Connection>,
    /// From the guest, and to it.
    up: Lane,
    down: Lane,
}

/// A connection at the guest's card.
struct AtGuest {
    connection: GuestConnection,
    over: bool,
    role: Role,
}

/// What a guest's connection is paired with.
enum Role {
    /// With nothing yet. What it carried waits here.
    Free { up: Lane, down: Lane },
    /// With this one.
    Paired(ConnectionNumber),
    /// With nothing, ever.
    Alone,
}

impl Nic {
    /// Reads the card's capture.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not a capture.
    pub fn open(path: &Path, args: &DumpArgs, color: bool) -> io::Result<Self> {
        let named = |error: &dyn fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(|error| named(&error))?;
        let reader = Reader::new(file).map_err(|error| named(&error))?;
        let report = Report::new(path.display().to_string(), args.json, color);
        Ok(Self::with(Guests::new(reader), report))
    }

    fn with(guests: Guests, report: Report) -> Self {
        let pairing = Pairing {
            tunnelled: BTreeMap::new(),
            at_guest: BTreeMap::new(),
            free: BTreeMap::new(),
            settling: VecDeque::new(),
            undecided: VecDeque::new(),
            services: BTreeSet::new(),
            tunnel_times: None,
            card_times: None,
            room: Room::default(),
            report,
        };
        Self { guests, pairing }
    }

    /// Notes an item of the tunnel's capture.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let until = seen.item.time.saturating_add(SLACK);
        loop {
            let behind = self.guests.times().is_none_or(|(_, last)| last <= until);
            let room = &self.pairing.room;
            let wanted = (behind && !room.is_crowded(Side::Guest)) || room.is_crowded(Side::Tunnel);
            if !wanted || !self.step(out)? {
                break;
            }
        }
        self.pairing.item(seen, out)?;
        self.decide(out)
    }

    /// Both captures are over: appends the pairs. `false` if any of them differ.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        while self.step(out)? {}
        self.decide(out)?;
        self.pairing.finish(out)?;
        self.pairing.report.finish(self.guests.faults(), out)
    }

    /// Reads a packet of the card's capture. `false`: it is over.
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Self { guests, pairing } = self;
        let mut failed = Ok(());
        let step = guests.step(&mut |connection, news| {
            if failed.is_ok() {
                failed = pairing.news(connection, news, out);
            }
        });
        failed?;
        let more = step.unwrap_or_else(|error| {
            pairing.report.damage(&error.to_string());
            false
        });
        self.decide(out)?;
        Ok(more)
    }

    /// Pairs those tunnelled connections whose SYN must have been seen by now.
    fn decide(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let times = self.guests.times();
        let pairing = &mut self.pairing;
        pairing.card_times = times;
        while let Some(&(opened, number)) = pairing.undecided.front() {
            let until = opened.saturating_add(SLACK);
            if !self.guests.is_over() && times.is_none_or(|(_, last)| last <= until) {
                break;
            }
            pairing.undecided.pop_front();
            pairing.pair(number, out)?;
        }
        Ok(())
    }
}

impl Pairing {
    /// Notes what happened at the guest's card.
    fn news(&mut self, connection: &GuestConnection, news: News<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let stream = connection.stream;
        if news == News::Began {
            let role = if connection.from_start {
                self.free.entry(connection.to).or_default().insert((connection.opened, stream));
                Role::Free { up: Lane::new(), down: Lane::new() }
            } else {
                Role::Alone
            };
            self.at_guest.insert(stream, AtGuest { connection: connection.clone(), over: false, role });
            return Ok(());
        }
        let Some(known) = self.at_guest.get_mut(&stream) else { return Ok(()) };
        let lanes = match &mut known.role {
            Role::Free { up, down } => Some((up, down)),
            Role::Paired(number) => {
                self.tunnelled.get_mut(number).map(|paired| (&mut paired.up, &mut paired.down))
            }
            Role::Alone => None,
        };
        let room = &mut self.room;
        if let Some((up, down)) = lanes {
            match news {
                News::Bytes { way: Way::Forth, bytes } => up.feed(Side::Guest, bytes, room),
                News::Bytes { way: Way::Back, bytes } => down.feed(Side::Guest, bytes, room),
                News::Hole { way: Way::Forth } => up.hole(Side::Guest, room),
                News::Hole { way: Way::Back } => down.hole(Side::Guest, room),
                News::Over => {
                    up.end(Side::Guest, room);
                    down.end(Side::Guest, room);
                }
                News::Began | News::Changed => {}
            }
        }
        match news {
            News::Bytes { .. } | News::Hole { .. } | News::Began => return Ok(()),
            News::Changed | News::Over => {}
        }
        let accepted = |connection: &GuestConnection| matches!(connection.reply, Reply::Accepted { .. });
        let new = news == News::Over || accepted(connection) && !accepted(&known.connection);
        known.connection = connection.clone();
        known.over = news == News::Over;
        match known.role {
            Role::Free { .. } if new => {
                let at = connection.ended.or(connection.answered()).unwrap_or(connection.opened);
                self.settling.push_back((at, stream));
            }
            Role::Paired(number) if known.over => self.complete(number, out)?,
            Role::Alone if known.over => self.alone(stream, out)?,
            Role::Free { .. } | Role::Paired(_) | Role::Alone => {}
        }
        Ok(())
    }

    /// Notes an item of the tunnel's capture.
    fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let item = seen.item;
        self.tunnel_times.get_or_insert((item.time, item.time)).1 = item.time;
        self.settle(item.time, out)?;
        let Some(ledger) = seen.ledger else { return Ok(()) };
        match (&item.what, item.from) {
            (What::Message(message), Some(from)) => {
                said(message, from, &mut |said| {
                    if let Said::Server(ServerMessage::ServiceIpMap { service, .. }) = said {
                        let known = ledger.service(service);
                        let place = known.and_then(|known| Some(SocketAddr::new(known.address?, known.port)));
                        if self.services.len() < MAX_SERVICES {
                            self.services.extend(place);
                        }
                    }
                    let Some(socket) = said.socket() else { return };
                    let open = ledger.connection(socket);
                    let of = open.or_else(|| seen.over.iter().find(|over| over.socket == socket));
                    let Some(connection) = of else { return };
                    let undecided = &mut self.undecided;
                    let tunnelled = self.tunnelled.entry(connection.number).or_insert_with(|| {
                        undecided.push_back((connection.opened, connection.number));
                        Tunnelled::new(connection, item.stream)
                    });
                    if let Some(payload) = said.payload() {
                        tunnelled.lane(from).feed(Side::Tunnel, payload, &mut self.room);
                    }
                });
            }
            (What::Hole(_), Some(from)) => {
                for tunnelled in self.tunnelled.values_mut().filter(|live| live.stream == item.stream) {
                    if tunnelled.over.is_none() {
                        tunnelled.lane(from).hole(Side::Tunnel, &mut self.room);
                    }
                }
            }
            (_, _) => {}
        }
        for over in seen.over {
            let Some(tunnelled) = self.tunnelled.get_mut(&over.number) else { continue };
            tunnelled.over = Some(over.clone());
            tunnelled.up.end(Side::Tunnel, &mut self.room);
            tunnelled.down.end(Side::Tunnel, &mut self.room);
            self.complete(over.number, out)?;
        }
        Ok(())
    }

    /// Gives up what can no longer be paired, the tunnel's capture being at this time.
    fn settle(&mut self, time: Duration, out: &mut Vec<u8>) -> io::Result<()> {
        while let Some(&(at, stream)) = self.settling.front() {
            if at.saturating_add(SLACK * 2) >= time {
                break;
            }
            self.settling.pop_front();
            self.give_up(stream, out)?;
        }
        Ok(())
    }

    /// A guest's connection stays alone, if it is not paired.
    fn give_up(&mut self, stream: StreamId, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(known) = self.at_guest.get_mut(&stream) else { return Ok(()) };
        if let Role::Free { up, down } = &mut known.role {
            up.end(Side::Tunnel, &mut self.room);
            down.end(Side::Tunnel, &mut self.room);
            known.role = Role::Alone;
            let (to, opened) = (known.connection.to, known.connection.opened);
            self.taken(to, opened, stream);
        }
        self.alone(stream, out)
    }

    fn taken(&mut self, to: SocketAddr, opened: Duration, stream: StreamId) {
        if let Some(free) = self.free.get_mut(&to) {
            free.remove(&(opened, stream));
            if free.is_empty() {
                self.free.remove(&to);
            }
        }
    }

    /// Finds the guest's connection that a tunnelled one was opened for.
    fn pair(&mut self, number: ConnectionNumber, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(tunnelled) = self.tunnelled.get_mut(&number) else { return Ok(()) };
        tunnelled.decided = true;
        let opened = tunnelled.opened;
        let soon = opened.saturating_sub(SOON);
        let found = tunnelled.destination.and_then(|to| {
            let free = self.free.get(&to)?;
            let first = (soon, StreamId(0));
            let last = (opened.saturating_add(SLACK), StreamId(u64::MAX));
            let (began, stream) =
                free.range(first..=last).next().or_else(|| free.range(..first).next_back()).copied()?;
            Some((to, began, stream))
        });
        let Some((to, began, stream)) = found else {
            if let Some(tunnelled) = self.tunnelled.get_mut(&number) {
                tunnelled.up.end(Side::Guest, &mut self.room);
                tunnelled.down.end(Side::Guest, &mut self.room);
            }
            return self.complete(number, out);
        };
        self.taken(to, began, stream);
        let (Some(known), Some(tunnelled)) =
            (self.at_guest.get_mut(&stream), self.tunnelled.get_mut(&number))
        else {
            return Ok(());
        };
        tunnelled.guest = Some(stream);
        if let Role::Free { up, down } = std::mem::replace(&mut known.role, Role::Paired(number)) {
            tunnelled.up.join(up, &mut self.room);
            tunnelled.down.join(down, &mut self.room);
        }
        self.complete(number, out)
    }

    /// Reports a tunnelled connection, if all is known of it.
    fn complete(&mut self, number: ConnectionNumber, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(tunnelled) = self.tunnelled.get(&number) else { return Ok(()) };
        let Some(connection) = tunnelled.over.as_ref().filter(|_| tunnelled.decided) else { return Ok(()) };
        match tunnelled.guest {
            None => self.report.tunnel_only(connection, self.card_times, out)?,
            Some(stream) => {
                let Some(known) = self.at_guest.get(&stream).filter(|known| known.over) else {
                    return Ok(());
                };
                let verdict = verdict::of(connection, &known.connection, &tunnelled.up, &tunnelled.down);
                self.report.pair(
                    connection,
                    &known.connection,
                    &tunnelled.up,
                    &tunnelled.down,
                    &verdict,
                    out,
                )?;
                self.at_guest.remove(&stream);
            }
        }
        self.tunnelled.remove(&number);
        Ok(())
    }

    /// Reports a guest's connection that is over and has no other half.
    fn alone(&mut self, stream: StreamId, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(known) = self.at_guest.get(&stream) else { return Ok(()) };
        let Role::Alone = known.role else { return Ok(()) };
        if known.over {
            let service = self.services.contains(&known.connection.to);
            self.report.guest_only(&known.connection, service, self.tunnel_times, out)?;
            self.at_guest.remove(&stream);
        }
        Ok(())
    }

    /// Both captures are over.
    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        while let Some((_, stream)) = self.settling.pop_front() {
            self.give_up(stream, out)?;
        }
        let rest: Vec<StreamId> = self.at_guest.keys().copied().collect();
        for stream in rest {
            self.give_up(stream, out)?;
        }
        Ok(())
    }
}

impl Tunnelled {
    fn new(connection: &Connection, stream: StreamId) -> Self {
        Self {
            opened: connection.opened,
            destination: connection.destination,
            stream,
            decided: false,
            guest: None,
            over: None,
            up: Lane::new(),
            down: Lane::new(),
        }
    }

    fn lane(&mut self, from: Sender) -> &mut Lane {
        match from {
            Sender::Server => &mut self.up,
            Sender::Client => &mut self.down,
        }
    }
}
