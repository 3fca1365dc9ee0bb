//! What a whole capture held, in a few lines behind all others.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::time::Duration;

use spice_proto::link::{LinkError, LinkReply};
use spice_proto::names::Sender;

use crate::capture::dissect::{Channel, End, Item, What};
use crate::capture::ledger::{Answer, Connection, Direction, Ending};
use crate::capture::reader::Counts;
use crate::describe::{ChannelName, Tame};

use super::books::Seen;

/// Counts of everything in a capture. It is as large for a terabyte as for a message.
#[derive(Debug, Default)]
pub(super) struct Summary {
    connections: u64,
    /// Of them, those whose beginning the capture does not have.
    from_the_middle: u64,
    /// Of them, those whose end it does not have.
    to_the_middle: u64,
    reset: u64,
    /// Links that were refused, by the code, of which those that nobody knows count as one.
    refused_links: BTreeMap<u32, u64>,
    channels: BTreeMap<Option<Channel>, Traffic>,
    tunnels: Tunnels,
    malformed: u64,
    remarks: u64,
    holes: Holes,
    /// Items that could have had a line, and those that had one.
    lines: u64,
    shown: u64,
}

/// Messages of the data stage of a channel.
#[derive(Debug, Default)]
struct Traffic {
    links: u64,
    client: Side,
    server: Side,
}

#[derive(Debug, Default)]
struct Side {
    messages: u64,
    /// Of their bodies.
    bytes: u64,
}

#[derive(Debug, Default)]
struct Holes {
    /// What was before the capture. No fault of it.
    before: u64,
    within: u64,
    missing: u64,
    skipped: u64,
    lost_ways: u64,
}

/// What became of the guest's connections.
#[derive(Debug, Default)]
struct Tunnels {
    services: u64,
    connections: u64,
    accepted: u64,
    endings: BTreeMap<Ending, u64>,
    incomplete: u64,
    up: Credit,
    down: Credit,
}

/// Of all connections, one way.
#[derive(Debug, Default)]
struct Credit {
    messages: u64,
    bytes: u64,
    granted: u64,
    stalls: u64,
    stalled: Duration,
    overruns: u64,
}

impl Summary {
    /// Counts an item, and whether it had a line.
    pub(super) fn item(&mut self, seen: &Seen<'_, '_>, shown: bool) {
        let item = seen.item;
        if !matches!(item.what, What::Linked(_)) {
            self.lines += 1;
            self.shown += u64::from(shown);
        }
        match &item.what {
            What::Began { from_start, .. } => {
                self.connections += 1;
                self.from_the_middle += u64::from(!from_start);
            }
            What::LinkMess { .. } => self.traffic(item).links += 1,
            What::LinkReply { reply: LinkReply::Refused(error), .. } | What::LinkResult(Some(error)) => {
                *self.refused_links.entry(error.code().min(UNKNOWN_CODE)).or_default() += 1;
            }
            What::Message(message) => {
                let from = item.from;
                let size = u64::from(message.head.size);
                let traffic = self.traffic(item);
                let side = match from {
                    Some(Sender::Client) => &mut traffic.client,
                    Some(Sender::Server) | None => &mut traffic.server,
                };
                side.messages += 1;
                side.bytes = side.bytes.saturating_add(size);
                if message.name == Some("service_add") {
                    self.tunnels.services += 1;
                }
            }
            What::Malformed { .. } => self.malformed += 1,
            What::Hole(hole) => {
                match hole.cause {
                    None => self.holes.before += 1,
                    Some(_) => self.holes.within += 1,
                }
                self.holes.missing = self.holes.missing.saturating_add(hole.missing.unwrap_or(0));
                self.holes.skipped = self.holes.skipped.saturating_add(hole.skipped);
                self.holes.lost_ways += u64::from(!hole.resumed);
            }
            What::Ended { how } => match how {
                End::Closed => {}
                End::Reset(_) => self.reset += 1,
                End::CaptureOver => self.to_the_middle += 1,
            },
            What::LinkReply { reply: LinkReply::Welcome(_), .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(None)
            | What::Linked(_) => {}
        }
        self.remarks += u64::from(seen.noted.remark.is_some());
        for connection in seen.over {
            self.tunnels.note(connection);
        }
    }

    /// Whether nothing was wrong with it.
    pub(super) fn is_clean(&self) -> bool {
        self.malformed == 0 && self.holes.within == 0
    }

    fn traffic(&mut self, item: &Item<'_>) -> &mut Traffic {
        self.channels.entry(item.channel).or_default()
    }

    /// Appends the lines. `stopped` says that somebody ended the reading, `damaged` that the file did.
    pub(super) fn write(
        &self,
        counts: &Counts,
        stopped: bool,
        damaged: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        writeln!(out)?;
        write_file(counts, stopped, out)?;
        self.write_connections(counts, out)?;
        for (channel, traffic) in &self.channels {
            let name = ChannelName(*channel).to_string();
            let Traffic { links, client, server } = traffic;
            let (links, client, server) = (count(*links, "link"), client.to_string(), server.to_string());
            writeln!(out, "  {name:<12} {links:<11} client {client:<32} server {server}")?;
        }
        self.tunnels.write(out)?;
        self.write_faults(counts, damaged, out)?;
        if self.shown < self.lines {
            row(out, "filtered", format_args!("{} of {} lines shown", self.shown, self.lines))?;
        }
        Ok(())
    }

    fn write_connections(&self, counts: &Counts, out: &mut Vec<u8>) -> io::Result<()> {
        let other = counts.connections.saturating_sub(counts.spice);
        if self.connections == 0 {
            row(out, "connections", format_args!("no Spice, {}", count(other, "other TCP connection")))?;
            return Ok(());
        }
        let mut text = count(self.connections, "Spice connection");
        for (number, what) in [
            (self.from_the_middle, "began before the capture"),
            (self.to_the_middle, "not ended in it"),
            (self.reset, "reset"),
        ] {
            if number > 0 {
                text += &format!(", {number} {what}");
            }
        }
        if other > 0 {
            text += &format!("; {}", count(other, "other TCP connection"));
        }
        row(out, "connections", text)?;
        for (code, number) in &self.refused_links {
            match LinkError::from_code(*code) {
                Some(error) if *code < UNKNOWN_CODE => {
                    row(out, "refused", format_args!("{}: {error}", count(*number, "link")))?;
                }
                _ => row(out, "refused", format_args!("{}: with an unknown code", count(*number, "link")))?,
            }
        }
        Ok(())
    }

    fn write_faults(&self, counts: &Counts, damaged: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let holes = &self.holes;
        if holes.before > 0 {
            let directions = count(holes.before, "direction");
            row(out, "beginnings", format_args!("missing of {directions}: they were before the capture"))?;
        }
        if holes.within > 0 {
            let Holes { missing, skipped, lost_ways, .. } = holes;
            let mut text = format!("{}, {missing} bytes missing", count(holes.within, "hole"));
            if *skipped > 0 {
                text += &format!(", {skipped} bytes behind them not understood");
            }
            if *lost_ways > 0 {
                text += &format!(", {} lost for good", count(*lost_ways, "direction"));
            }
            row(out, "holes", text)?;
        }
        if self.remarks > 0 {
            let messages = count(self.remarks, "message");
            let why = if holes.within > 0 { "; what is missing may explain them" } else { "" };
            row(out, "remarks", format_args!("{messages} that do not go with what was said before{why}"))?;
        }
        let mut errors = Vec::new();
        if self.malformed > 0 {
            errors.push(count(self.malformed, "malformed message"));
        }
        if counts.damaged > 0 {
            errors.push(format!("{} with damaged headers", count(counts.damaged, "packet")));
        }
        if damaged {
            errors.push("the file itself is damaged".to_owned());
        }
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        row(out, "errors", errors)
    }
}

impl Tunnels {
    fn note(&mut self, connection: &Connection) {
        self.connections += 1;
        self.accepted += u64::from(matches!(connection.answer, Answer::Accepted { .. }));
        *self.endings.entry(connection.ending()).or_default() += 1;
        self.incomplete += u64::from(connection.incomplete);
        self.up.add(&connection.up);
        self.down.add(&connection.down);
    }

    fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.services > 0 {
            row(out, "services", format_args!("{} announced", self.services))?;
        }
        if self.connections == 0 {
            return Ok(());
        }
        let mut text = format!("{} opened, {} accepted", self.connections, self.accepted);
        for (ending, number) in &self.endings {
            text += &format!(", {number} {}", ending.name());
        }
        if self.incomplete > 0 {
            text += &format!(" ({} not wholly captured)", self.incomplete);
        }
        row(out, "sockets", text)?;
        self.up.write(out, "guest sent")?;
        self.down.write(out, "guest got")
    }
}

impl Credit {
    fn add(&mut self, direction: &Direction) {
        self.messages = self.messages.saturating_add(direction.messages);
        self.bytes = self.bytes.saturating_add(direction.bytes);
        self.granted = self.granted.saturating_add(direction.granted);
        self.stalls = self.stalls.saturating_add(direction.stalls);
        self.stalled = self.stalled.saturating_add(direction.stalled);
        self.overruns = self.overruns.saturating_add(direction.overruns);
    }

    fn write(&self, out: &mut Vec<u8>, label: &str) -> io::Result<()> {
        let Credit { messages, bytes, granted, stalls, stalled, overruns } = self;
        let mut text = format!("{bytes} bytes, {messages} of {granted} tokens used");
        if *stalls > 0 {
            text += &format!(", {} without credit, {:.3} s", count(*stalls, "time"), stalled.as_secs_f64());
        }
        if *overruns > 0 {
            text += &format!(", {} sent without a token", count(*overruns, "message"));
        }
        row(out, label, text)
    }
}

impl Display for Side {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} bytes", count(self.messages, "message"), self.bytes)
    }
}

fn write_file(counts: &Counts, stopped: bool, out: &mut Vec<u8>) -> io::Result<()> {
    let mut text = format!("{}, {} bytes", count(counts.packets, "packet"), counts.bytes);
    for (number, what) in [(counts.not_tcp, "not TCP"), (counts.cut_off, "cut off by the capture")] {
        if number > 0 {
            text += &format!(", {number} {what}");
        }
    }
    row(out, "capture", text)?;
    for (reason, number) in &counts.faults {
        row(out, "skipped", format_args!("{}: {reason}", count(*number, "packet")))?;
    }
    if let Some((number, fault)) = &counts.first_fault {
        row(out, "", format_args!("the first is packet {number}: {}", Tame(&fault.to_string())))?;
    }
    if stopped {
        row(out, "stopped", "what came later was not read")?;
    }
    Ok(())
}

fn row(out: &mut Vec<u8>, label: &str, text: impl Display) -> io::Result<()> {
    writeln!(out, "{label:<14} {text}")
}

/// `1 message`, `2 messages`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Codes from here on are not the protocol's.
const UNKNOWN_CODE: u32 = 10;
