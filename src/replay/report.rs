//! What a replay found: the report, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

/// Findings that are kept with their text. More are counted: a capture that differs everywhere must not fill the memory.
pub const MAX_KEPT: usize = 1000;

/// Longest text of one side of a finding that is kept, in characters.
const MAX_TEXT: usize = 300;

/// The outcome of a replay, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Something was compared, and today's code does as the capture shows.
    Equal,
    /// What could be compared is equal, but something could not be, or there was nothing at all.
    NotComparable,
    /// Today's code does something else.
    Different,
}

/// Which of the things that a replay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Every message is parsed and written again.
    Messages,
    /// The link stages go through the handshake machines.
    Link,
    /// Today's server channel against the captured client.
    Server,
    /// Today's client channel against the captured server.
    Client,
    /// The whole netstack against the captured guest.
    Netstack,
    /// A running server against the captured client.
    Live,
}

impl Part {
    /// The word for it in text and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Part::Messages => "messages",
            Part::Link => "link",
            Part::Server => "server",
            Part::Client => "client",
            Part::Netstack => "netstack",
            Part::Live => "live",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The capture itself: a hole, a cut, a beginning in the middle.
    Capture,
    /// The link stage.
    Link,
    /// A message that is understood or written in another way.
    Message,
    /// The tunnel channel as a whole.
    Channel,
    /// A service and its address.
    Service,
    /// A name: a domain, a question, an answer.
    Name,
    /// Whether a connection is opened, accepted or refused.
    Open,
    /// Payload.
    Bytes,
    /// The end of one direction, and behind which byte it stands.
    HalfClose,
    /// The end of a connection, and whether it is an abort.
    End,
    /// Tokens.
    Credit,
    /// Something that only `--strict` compares.
    Strict,
}

impl Subject {
    /// The words for it in text.
    fn words(self) -> &'static str {
        match self {
            Subject::Capture => "capture",
            Subject::Link => "link",
            Subject::Message => "message",
            Subject::Channel => "channel",
            Subject::Service => "service",
            Subject::Name => "name",
            Subject::Open => "open",
            Subject::Bytes => "bytes",
            Subject::HalfClose => "half-close",
            Subject::End => "end",
            Subject::Credit => "credit",
            Subject::Strict => "strict",
        }
    }
}

/// Where in a capture something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    /// Since the capture's first packet.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub time: Option<Duration>,
    /// Number of the TCP connection in the capture, as the dump counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<u64>,
    /// Number of the tunnelled connection on its channel: which SOCKET_OPEN began it, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// Its socket id in the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<u16>,
    /// The service, as the capture numbers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<u32>,
}

/// Something that is not as it was, or that nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// [`Verdict::Different`] or [`Verdict::NotComparable`].
    pub verdict: Verdict,
    /// Who found it.
    pub part: Part,
    /// What it is about.
    pub subject: Subject,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What the capture shows. Of what cannot be compared: why not.
    pub captured: String,
    /// What today's code does; empty for what cannot be compared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub today: String,
}

impl Difference {
    /// Today's code does something else than what was captured.
    pub fn new(
        part: Part,
        subject: Subject,
        place: Place,
        captured: impl Into<String>,
        today: impl Into<String>,
    ) -> Self {
        Difference {
            verdict: Verdict::Different,
            part,
            subject,
            place,
            captured: bounded(captured.into()),
            today: bounded(today.into()),
        }
    }

    /// Nobody can tell, and why.
    pub fn not_comparable(part: Part, subject: Subject, place: Place, why: impl Into<String>) -> Self {
        Difference {
            verdict: Verdict::NotComparable,
            part,
            subject,
            place,
            captured: bounded(why.into()),
            today: String::new(),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mut line = String::new();
        let place = &self.place;
        let time = place.time.map(|time| format!("{:.6}", time.as_secs_f64())).unwrap_or_default();
        let what = match self.verdict {
            Verdict::Different => "different",
            Verdict::NotComparable => "not comparable",
            Verdict::Equal => "equal",
        };
        // Writing to a String never fails.
        let _ = write!(line, "{time:>13}  {what:<14}  {:<8}", self.part.name());
        if let Some(stream) = place.stream {
            let _ = write!(line, "  stream {stream}");
        }
        match (place.connection, place.socket) {
            (Some(connection), Some(socket)) => {
                let _ = write!(line, "  connection {connection} (socket {socket})");
            }
            (Some(connection), None) => {
                let _ = write!(line, "  connection {connection}");
            }
            (None, Some(socket)) => {
                let _ = write!(line, "  socket {socket}");
            }
            (None, None) => {}
        }
        if let Some(service) = place.service {
            let _ = write!(line, "  service {service}");
        }
        let _ = write!(line, "  {}: ", self.subject.words());
        if self.today.is_empty() {
            line.push_str(&self.captured);
        } else {
            let _ = write!(line, "captured: {}; today: {}", self.captured, self.today);
        }
        line
    }
}

/// How much was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Compared {
    /// Link stages, or tunnel channels.
    pub channels: u64,
    /// Messages that went in.
    pub messages: u64,
    /// Services announced.
    pub services: u64,
    /// Connections of the guest whose whole life was compared.
    pub connections: u64,
    /// Payload bytes from the guest that were compared.
    pub bytes_up: u64,
    /// Payload bytes to the guest.
    pub bytes_down: u64,
}

impl Compared {
    fn is_nothing(&self) -> bool {
        *self == Compared::default()
    }
}

/// What a replay found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    kept: Vec<Difference>,
    different: u64,
    not_comparable: u64,
    compared: BTreeMap<Part, Compared>,
}

impl Report {
    /// Adds a finding.
    pub fn add(&mut self, difference: Difference) {
        match difference.verdict {
            Verdict::Different => self.different = self.different.saturating_add(1),
            Verdict::NotComparable => self.not_comparable = self.not_comparable.saturating_add(1),
            Verdict::Equal => return,
        }
        if self.kept.len() < MAX_KEPT {
            self.kept.push(difference);
        }
    }

    /// The counters of a part, to be raised.
    pub fn compared(&mut self, part: Part) -> &mut Compared {
        self.compared.entry(part).or_default()
    }

    /// What a part compared.
    pub fn compared_by(&self, part: Part) -> Compared {
        self.compared.get(&part).copied().unwrap_or_default()
    }

    /// Puts another report behind this one.
    pub fn absorb(&mut self, other: Report) {
        let kept_there = other.kept.iter().fold((0u64, 0u64), |(different, not), one| match one.verdict {
            Verdict::Different => (different + 1, not),
            Verdict::NotComparable => (different, not + 1),
            Verdict::Equal => (different, not),
        });
        for difference in other.kept {
            self.add(difference);
        }
        // Those that were only counted.
        self.different += other.different.saturating_sub(kept_there.0);
        self.not_comparable += other.not_comparable.saturating_sub(kept_there.1);
        for (part, theirs) in other.compared {
            let ours = self.compared(part);
            ours.channels += theirs.channels;
            ours.messages += theirs.messages;
            ours.services += theirs.services;
            ours.connections += theirs.connections;
            ours.bytes_up += theirs.bytes_up;
            ours.bytes_down += theirs.bytes_down;
        }
    }

    /// The findings that were kept, in the order in which they were made.
    pub fn differences(&self) -> &[Difference] {
        &self.kept
    }

    /// The outcome of it all. Where nothing was compared, nothing is equal.
    pub fn verdict(&self) -> Verdict {
        if self.different > 0 {
            Verdict::Different
        } else if self.not_comparable > 0 || self.compared.values().all(Compared::is_nothing) {
            Verdict::NotComparable
        } else {
            Verdict::Equal
        }
    }

    /// Writes it for people: every finding in a line, what was compared, and the verdict.
    ///
    /// # Errors
    ///
    /// Nobody takes it.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for difference in &self.kept {
            writeln!(out, "{}", difference.line())?;
        }
        if let more @ 1.. = self.left_out() {
            writeln!(out, "and {more} more")?;
        }
        for (part, compared) in &self.compared {
            if !compared.is_nothing() {
                writeln!(out, "{}", compared_line(*part, compared))?;
            }
        }
        writeln!(out, "{}", self.conclusion())
    }

    /// Writes it for programs: a JSON object a line, one for each finding, and a last one with the key `summary`.
    ///
    /// # Errors
    ///
    /// Nobody takes it.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        for difference in &self.kept {
            serde_json::to_writer(&mut *out, difference)?;
            out.write_all(b"\n")?;
        }
        let compared: BTreeMap<_, _> =
            self.compared.iter().filter(|(_, compared)| !compared.is_nothing()).collect();
        let summary = Summary {
            verdict: self.verdict(),
            different: self.different,
            not_comparable: self.not_comparable,
            left_out: self.left_out(),
            compared,
        };
        serde_json::to_writer(&mut *out, &Last { summary })?;
        out.write_all(b"\n")
    }

    fn left_out(&self) -> u64 {
        let kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        self.different.saturating_add(self.not_comparable).saturating_sub(kept)
    }

    fn conclusion(&self) -> String {
        match self.verdict() {
            Verdict::Equal => "equal: today's code does as the capture shows".to_owned(),
            Verdict::Different if self.not_comparable > 0 => {
                format!("different in {}, not comparable in {}", self.different, self.not_comparable)
            }
            Verdict::Different => format!("different in {}", self.different),
            Verdict::NotComparable if self.not_comparable > 0 => {
                format!("not comparable in {}", self.not_comparable)
            }
            Verdict::NotComparable => "not comparable: nothing in the capture could be replayed".to_owned(),
        }
    }
}

#[derive(Serialize)]
struct Last<'a> {
    summary: Summary<'a>,
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: Verdict,
    different: u64,
    not_comparable: u64,
    left_out: u64,
    compared: BTreeMap<&'a Part, &'a Compared>,
}

fn compared_line(part: Part, compared: &Compared) -> String {
    let Compared { channels, messages, services, connections, bytes_up, bytes_down } = *compared;
    match part {
        Part::Messages => format!("messages  {} parsed and written again", count(messages, "message")),
        Part::Link => format!("link      {} replayed", count(channels, "link stage")),
        Part::Server | Part::Client | Part::Netstack | Part::Live => format!(
            "{:<8}  {}, {}, {}; {bytes_up} bytes up, {bytes_down} bytes down",
            part.name(),
            count(channels, "channel"),
            count(services, "service"),
            count(connections, "connection"),
        ),
    }
}

fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Peers' text can stand in a finding, and a line is no place for a novel.
fn bounded(text: String) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

fn seconds<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_f64(time.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict) -> Difference {
        let place = Place {
            time: Some(Duration::from_millis(1500)),
            stream: Some(1),
            connection: Some(3),
            socket: Some(0),
            service: Some(7),
        };
        Difference { verdict, ..Difference::new(Part::Server, Subject::Open, place, "refused", "accepted") }
    }

    #[test]
    fn silence_is_no_success() {
        let mut report = Report::default();
        assert_eq!(report.verdict(), Verdict::NotComparable);
        assert!(report.conclusion().contains("nothing in the capture"));
        let _ = report.compared(Part::Messages);
        assert_eq!(report.verdict(), Verdict::NotComparable, "asked for, not raised");
        report.compared(Part::Messages).messages += 1;
        assert_eq!(report.verdict(), Verdict::Equal);
        report.add(finding(Verdict::NotComparable));
        assert_eq!(report.verdict(), Verdict::NotComparable);
        report.add(finding(Verdict::Different));
        assert_eq!(report.verdict(), Verdict::Different);
    }

    #[test]
    fn a_line_points_at_the_place() {
        assert_eq!(
            finding(Verdict::Different).line(),
            "     1.500000  different       server    stream 1  connection 3 (socket 0)  service 7  open: \
             captured: refused; today: accepted"
        );
        let mut out = Vec::new();
        let mut report = Report::default();
        report.add(finding(Verdict::Different));
        report.write_json(&mut out).unwrap();
        let lines: Vec<serde_json::Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[0],
            serde_json::json!({
                "verdict": "different", "part": "server", "subject": "open", "time": 1.5, "stream": 1,
                "connection": 3, "socket": 0, "service": 7, "captured": "refused", "today": "accepted"
            })
        );
        assert_eq!(lines[1]["summary"]["different"], 1);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_flood_of_findings_is_counted_and_not_kept() {
        let mut report = Report::default();
        for _ in 0..MAX_KEPT + 5 {
            report.add(Difference { captured: bounded("x".repeat(100_000)), ..finding(Verdict::Different) });
        }
        assert_eq!((report.differences().len(), report.left_out()), (MAX_KEPT, 5));
        assert!(report.kept[0].captured.chars().count() <= MAX_TEXT + 1);
        let mut both = Report::default();
        both.add(finding(Verdict::Different));
        both.absorb(report);
        assert_eq!(both.different, u64::try_from(MAX_KEPT).unwrap() + 6);
    }
}
