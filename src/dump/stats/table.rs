//! The tables of `--stats`. Each direction of a connection has a line: `up` is from the guest to the service.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use spice_proto::names::Sender;
use spice_proto::tunnel::ServiceId;

use crate::capture::dissect::End;
use crate::capture::ledger::{Answer, Connection, Direction, Ending, Service};
use crate::capture::reassembly::StreamId;
use crate::describe::ChannelName;
use crate::dump::books::Since;
use crate::dump::units;

use super::{ChannelTotal, Flow, ServiceTotal, Total, busy, lasted};

/// Writes them.
#[derive(Debug)]
pub(super) struct Tables {
    color: bool,
    /// The head of the connections' table was written.
    headed: bool,
}

impl Tables {
    pub(super) fn new(color: bool) -> Self {
        Self { color, headed: false }
    }

    pub(super) fn connection(
        &mut self,
        stream: StreamId,
        opened: Since,
        connection: &Connection,
        service: Option<&Service>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            self.title(out, "Connections of the guest, as they end")?;
            let text = format!(
                "{:>7} {:>6} {:>6}  {SERVICE:<40} {:>12} {:>9} {:>9}  {WAYS}  end",
                "number", "stream", "socket", "opened", "answer", "lasted"
            );
            self.head(out, &text)?;
        }
        let target = format!("{} {}", label(connection.service, service), address(connection.destination));
        write!(
            out,
            "{:>7} {:>6} {:>6}  {target:<40} {:>12} {:>9} {:>9}  ",
            format!("#{}", connection.number.0),
            stream.0,
            connection.socket.0,
            opened.to_string(),
            connection.time_to_open().map_or_else(|| "-".to_owned(), units::time),
            lasted(connection).map_or_else(|| "-".to_owned(), units::time),
        )?;
        way(out, "up", &Numbers::of(&connection.up))?;
        write!(out, "  {}", connection.ending().name())?;
        if connection.incomplete {
            out.write_all(b", incomplete")?;
        }
        if connection.answer == Answer::None
            && connection.ending() != Ending::NotSeen
            && !connection.incomplete
        {
            out.write_all(b", never answered")?;
        }
        out.push(b'\n');
        write!(out, "{:>97}", "")?;
        way(out, "down", &Numbers::of(&connection.down))?;
        out.push(b'\n');
        Ok(())
    }

    pub(super) fn services(
        &self,
        services: &BTreeMap<(StreamId, ServiceId), ServiceTotal>,
        other: &Total,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if services.is_empty() && other.connections == 0 {
            return Ok(());
        }
        self.title(out, "Services")?;
        let text = format!(
            "{:>6}  {SERVICE:<40} {:>11} {:>7} {:>7} {:>9} {:>9}  {WAYS}",
            "stream", "connections", "refused", "aborted", "answer", "longest"
        );
        self.head(out, &text)?;
        for ((stream, id), service) in services {
            let place = service.address.zip(service.port).map(|(ip, port)| SocketAddr::new(ip, port));
            let target = match (place, service.port) {
                (None, Some(port)) => format!("{} port {port}", short(*id, &service.name)),
                (place, _) => format!("{} {}", short(*id, &service.name), address(place)),
            };
            total(out, &stream.0.to_string(), &target, &service.total)?;
        }
        if other.connections > 0 {
            total(out, "-", "any other", other)?;
        }
        Ok(())
    }

    pub(super) fn channels(
        &self,
        channels: &[(StreamId, ChannelTotal)],
        more: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if channels.is_empty() {
            return Ok(());
        }
        self.title(out, "Channels")?;
        let text = format!(
            "{:>6}  {:<12} {:<24} {:<24} {:>12} {:>9}  {:>9} {:>10} {:>9} {:>10} {:>5} {:>9} {:>7}  end",
            "stream",
            "channel",
            "client",
            "server",
            "began",
            "lasted",
            "c. msgs",
            "c. bytes",
            "s. msgs",
            "s. bytes",
            "holes",
            "malformed",
            "remarks"
        );
        self.head(out, &text)?;
        for (stream, channel) in channels {
            writeln!(
                out,
                "{:>6}  {:<12} {:<24} {:<24} {:>12} {:>9}  {:>9} {:>10} {:>9} {:>10} {:>5} {:>9} {:>7}  {}{}",
                stream.0,
                ChannelName(channel.channel).to_string(),
                address(channel.ends.map(|(client, _)| client)),
                address(channel.ends.map(|(_, server)| server)),
                channel.began.to_string(),
                units::time(channel.lasted),
                channel.client.messages,
                units::bytes(channel.client.bytes),
                channel.server.messages,
                units::bytes(channel.server.bytes),
                channel.holes,
                channel.malformed,
                channel.remarks,
                match channel.end {
                    Some(End::Closed) => "closed",
                    Some(End::Reset(Sender::Client)) => "reset by the client",
                    Some(End::Reset(Sender::Server)) => "reset by the server",
                    Some(End::CaptureOver) | None => "end not seen",
                },
                if channel.from_start { "" } else { ", beginning not seen" },
            )?;
        }
        if more > 0 {
            writeln!(
                out,
                "   and {more} more channels, for which a table is too short; --json has them all"
            )?;
        }
        Ok(())
    }

    fn title(&self, out: &mut Vec<u8>, text: &str) -> io::Result<()> {
        let (bold, plain) = if self.color { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let gap = if out.is_empty() && text.starts_with("Connections") { "" } else { "\n" };
        writeln!(out, "{gap}{bold}{text}{plain}")
    }

    fn head(&self, out: &mut Vec<u8>, text: &str) -> io::Result<()> {
        let (dim, plain) = if self.color { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        writeln!(out, "{dim}{text}{plain}")
    }
}

const SERVICE: &str = "service";
const WAYS: &str = "way         bytes  messages          rate  stalls   stalled   longest  violations";

/// What a direction's columns show.
struct Numbers {
    bytes: u64,
    messages: u64,
    rate: String,
    /// Nothing where the capture does not show all of the credit.
    credit: Option<(u64, String, String, u64)>,
}

impl Numbers {
    fn of(direction: &Direction) -> Self {
        Self {
            bytes: direction.bytes,
            messages: direction.messages,
            rate: units::rate(direction.bytes, busy(direction)),
            credit: direction.counted.then(|| {
                (
                    direction.stalls,
                    units::time(direction.stalled),
                    units::time(direction.longest_stall),
                    direction.overruns,
                )
            }),
        }
    }

    fn sum(flow: &Flow) -> Self {
        Self {
            bytes: flow.bytes,
            messages: flow.messages,
            rate: units::rate(flow.bytes, flow.busy),
            credit: Some((
                flow.stalls,
                units::time(flow.stalled),
                units::time(flow.longest_stall),
                flow.overruns,
            )),
        }
    }
}

fn way(out: &mut Vec<u8>, name: &str, numbers: &Numbers) -> io::Result<()> {
    let Numbers { bytes, messages, rate, credit } = numbers;
    write!(out, "{name:<5} {:>11} {messages:>9} {rate:>13}", units::bytes(*bytes))?;
    match credit {
        Some((stalls, stalled, longest, overruns)) => {
            write!(out, " {stalls:>7} {stalled:>9} {longest:>9} {overruns:>11}")
        }
        None => write!(out, " {:>7} {:>9} {:>9} {:>11}", "?", "?", "?", "?"),
    }
}

fn total(out: &mut Vec<u8>, stream: &str, target: &str, total: &Total) -> io::Result<()> {
    let aborted =
        total.ended(Ending::Guest) + total.ended(Ending::Service) + total.ended(Ending::TunnelEnded);
    let opened = total.opening.count > 0;
    write!(
        out,
        "{stream:>6}  {target:<40} {:>11} {:>7} {aborted:>7} {:>9} {:>9}  ",
        total.connections,
        total.ended(Ending::Refused),
        total.opening.mean().map_or_else(|| "-".to_owned(), units::time),
        if opened { units::time(total.opening.longest) } else { "-".to_owned() },
    )?;
    way(out, "up", &Numbers::sum(&total.up))?;
    write!(out, "\n{:>97}", "")?;
    way(out, "down", &Numbers::sum(&total.down))?;
    out.push(b'\n');
    Ok(())
}

/// A service by its number and name.
fn label(id: Option<ServiceId>, service: Option<&Service>) -> String {
    match (id, service) {
        (Some(id), Some(service)) => short(id, &service.name),
        (Some(id), None) => id.0.to_string(),
        (None, _) => "?".to_owned(),
    }
}

/// The same, the name so short that it fits into its column, and harmless.
fn short(id: ServiceId, name: &[u8]) -> String {
    const MOST: usize = 16;
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    format!("{} {shown}", id.0)
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}
