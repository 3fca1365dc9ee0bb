//! What `--nic` says: a line for each pair, what differs below it, the sum at the end.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::capture::ledger::Connection;
use crate::describe::Tame;
use crate::dump::units;

use super::guest::{GuestConnection, Reply};
use super::lane::{Lane, Side};
use super::verdict::Verdict;

/// Writes it, and counts.
#[derive(Debug)]
pub(super) struct Report {
    /// The card's capture.
    file: String,
    json: bool,
    color: bool,
    headed: bool,
    sum: Sum,
}

#[derive(Debug, Default, Serialize)]
struct Sum {
    pairs: u64,
    /// Of them.
    different: u64,
    /// Of them: not different as far as could be seen, which was not all.
    not_compared: u64,
    /// Connections of only one capture that ought to be in both.
    unpaired: u64,
    /// Connections of only one capture, for a good reason.
    excused: u64,
    /// Packets of the card's capture that nothing could be made of.
    faults: u64,
    /// What is wrong with the card's file.
    damage: Option<String>,
}

impl Report {
    pub(super) fn new(file: String, json: bool, color: bool) -> Self {
        Self { file, json, color, headed: false, sum: Sum::default() }
    }

    /// A guest's connection and its tunnelled half.
    pub(super) fn pair(
        &mut self,
        tunnel: &Connection,
        guest: &GuestConnection,
        up: &Lane,
        down: &Lane,
        verdict: &Verdict,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.sum.pairs += 1;
        let result = if !verdict.differences.is_empty() {
            self.sum.different += 1;
            "different"
        } else if !verdict.not_compared.is_empty() {
            self.sum.not_compared += 1;
            "not_compared"
        } else {
            "same"
        };
        if self.json {
            let line = Pair {
                kind: "pair",
                result,
                connection: tunnel.number.0,
                guest_stream: guest.stream.0,
                guest: guest.from,
                destination: guest.to,
                ending: tunnel.ending().key(),
                guest_ending: guest.ending().1,
                up: Bytes::of(up),
                down: Bytes::of(down),
                differences: &verdict.differences,
                not_compared: &verdict.not_compared,
                notes: &verdict.notes,
            };
            return json(out, &line);
        }
        let shown = match result {
            "different" => self.styled(BAD, "DIFFERENT"),
            "same" => "same".to_owned(),
            _ => self.styled(MISSING, "not all compared"),
        };
        let ends = ends(tunnel.ending().name(), guest.ending().0);
        self.line(guest, Some(tunnel), &format!("{shown}; {ends}"), (up, down), out)?;
        for text in &verdict.differences {
            self.below(BAD, "!!", text, out)?;
        }
        for text in &verdict.not_compared {
            self.below(MISSING, "??", text, out)?;
        }
        for text in &verdict.notes {
            self.below("", "--", text, out)?;
        }
        Ok(())
    }

    /// A tunnelled connection that no guest's connection belongs to. `times` are those of the card's capture.
    pub(super) fn tunnel_only(
        &mut self,
        tunnel: &Connection,
        times: Option<(Duration, Duration)>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let (excused, text) = match times {
            None => (false, "the card's capture is empty"),
            Some((first, _)) if tunnel.opened < first => (true, "opened before the card's capture begins"),
            Some((_, last)) if tunnel.opened > last => (true, "opened after the card's capture ends"),
            Some(_) if tunnel.destination.is_none() => {
                (false, "the tunnel's capture does not show its address, so it cannot be found at the card")
            }
            Some(_) => (false, "nobody at the card connected there at that time"),
        };
        let number = tunnel.number.0;
        self.only("tunnel_only", excused, text, &format!("#{number}"), None, tunnel.destination, out)
    }

    /// A guest's connection that was not tunnelled. `service` says whether a service is at its destination, `times` are those
    /// of the tunnel's capture.
    pub(super) fn guest_only(
        &mut self,
        guest: &GuestConnection,
        service: bool,
        times: Option<(Duration, Duration)>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let (excused, text) = match (guest.reply, times) {
            _ if !guest.from_start => (true, "began before the card's capture"),
            (_, Some((first, _))) if guest.opened < first => (true, "began before the tunnel's capture"),
            (_, Some((_, last))) if guest.opened > last => (true, "began after the tunnel's capture"),
            (Reply::Accepted { .. }, _) => (false, "accepted, but not opened in the tunnel"),
            (Reply::Refused { .. }, _) if service => (true, "refused without asking the client"),
            (Reply::Unreachable { .. }, _) if service => (true, "unreachable, without asking the client"),
            (Reply::None, _) if service => (true, "not answered, and the client was not asked"),
            (Reply::Refused { .. }, _) => (true, "refused: no service is there"),
            (Reply::Unreachable { .. }, _) => (true, "unreachable: no service is there"),
            (Reply::None, _) => (true, "not answered: no service is there"),
        };
        self.only("guest_only", excused, text, "-", Some(guest.from), Some(guest.to), out)
    }

    /// The card's file is damaged.
    pub(super) fn damage(&mut self, error: &str) {
        self.sum.damage = Some(error.to_owned());
    }

    /// Both captures are over. `false`: not everything is as it should be.
    pub(super) fn finish(&mut self, faults: u64, out: &mut Vec<u8>) -> io::Result<bool> {
        self.sum.faults = faults;
        let sum = &self.sum;
        if self.json {
            json(out, &Last { kind: "result", sum })?;
        } else {
            writeln!(
                out,
                "\n{} pairs: {} the same, {} different, {} not wholly compared; {} connections in one capture only \
                 that ought to be in both, {} for a good reason",
                sum.pairs,
                sum.pairs.saturating_sub(sum.different).saturating_sub(sum.not_compared),
                sum.different,
                sum.not_compared,
                sum.unpaired,
                sum.excused,
            )?;
            if sum.pairs == 0 {
                writeln!(out, "nothing was compared")?;
            }
            if sum.faults > 0 {
                writeln!(out, "{}: {} packets could not be read", Tame(&self.file), sum.faults)?;
            }
            if let Some(damage) = &sum.damage {
                writeln!(out, "{}: {}", Tame(&self.file), Tame(damage))?;
            }
        }
        Ok(sum.pairs > 0
            && sum.different == 0
            && sum.not_compared == 0
            && sum.unpaired == 0
            && sum.damage.is_none())
    }

    #[expect(clippy::too_many_arguments, reason = "a line's columns")]
    fn only(
        &mut self,
        kind: &'static str,
        excused: bool,
        text: &'static str,
        number: &str,
        from: Option<SocketAddr>,
        to: Option<SocketAddr>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if excused {
            self.sum.excused += 1;
        } else {
            self.sum.unpaired += 1;
        }
        if self.json {
            let connection = number.strip_prefix('#').and_then(|number| number.parse().ok());
            return json(out, &Only { kind, excused, connection, guest: from, destination: to, text });
        }
        self.head(out)?;
        let text = if excused { text.to_owned() } else { self.styled(BAD, text) };
        writeln!(out, "{number:>7}  {:<22} {:<22} {:>11} {:>11}  {text}", place(from), place(to), "-", "-")
    }

    fn line(
        &mut self,
        guest: &GuestConnection,
        tunnel: Option<&Connection>,
        text: &str,
        (up, down): (&Lane, &Lane),
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.head(out)?;
        let number = tunnel.map_or_else(|| "-".to_owned(), |tunnel| format!("#{}", tunnel.number.0));
        writeln!(
            out,
            "{number:>7}  {:<22} {:<22} {:>11} {:>11}  {text}",
            guest.from.to_string(),
            guest.to.to_string(),
            units::bytes(up.count(Side::Guest)),
            units::bytes(down.count(Side::Guest)),
        )
    }

    fn head(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.headed {
            return Ok(());
        }
        self.headed = true;
        let text = format!("{:>7}  {:<22} {:<22} {:>11} {:>11}", "number", "guest", "service", "up", "down");
        writeln!(out, "{}", self.styled(DIM, &text))
    }

    fn below(&self, style: &str, mark: &str, text: &str, out: &mut Vec<u8>) -> io::Result<()> {
        writeln!(out, "{:>9}{}", "", self.styled(style, &format!("{mark} {text}")))
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.color && !style.is_empty() { format!("{style}{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[derive(Serialize)]
struct Last<'a> {
    kind: &'static str,
    #[serde(flatten)]
    sum: &'a Sum,
}

#[derive(Serialize)]
struct Pair<'a> {
    kind: &'static str,
    result: &'static str,
    connection: u64,
    guest_stream: u64,
    guest: SocketAddr,
    destination: SocketAddr,
    ending: &'static str,
    guest_ending: &'static str,
    up: Bytes,
    down: Bytes,
    differences: &'a [String],
    not_compared: &'a [String],
    notes: &'a [String],
}

#[derive(Serialize)]
struct Only {
    kind: &'static str,
    excused: bool,
    connection: Option<u64>,
    guest: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    text: &'static str,
}

#[derive(Serialize)]
struct Bytes {
    tunnel: u64,
    guest: u64,
    same: u64,
}

impl Bytes {
    fn of(lane: &Lane) -> Self {
        Self { tunnel: lane.count(Side::Tunnel), guest: lane.count(Side::Guest), same: lane.compared() }
    }
}

fn ends(tunnel: &str, guest: &str) -> String {
    if tunnel == guest { tunnel.to_owned() } else { format!("{tunnel} (at the guest: {guest})") }
}

fn place(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

fn json(out: &mut Vec<u8>, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.push(b'\n');
    Ok(())
}

const BAD: &str = "\x1b[1;31m";
const MISSING: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";
