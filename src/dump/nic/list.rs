//! A capture of the guest's card by itself: its connections, a line each, as they end.

use std::fmt::Arguments;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::capture::file::{FileError, Reader};
use crate::dump::books::Since;
use crate::dump::units;

use super::guest::{GuestConnection, GuestFlow, Guests, News, Reply};

/// Prints the connections of a capture, in the order of their ends, through `flush`, which takes what is there and says
/// whether more is wanted. Returns how many there were.
///
/// # Errors
///
/// The file is damaged; everything before is printed.
pub fn list(
    reader: Reader,
    json: bool,
    color: bool,
    flush: &mut impl FnMut(&mut Vec<u8>) -> bool,
) -> Result<u64, FileError> {
    let mut guests = Guests::new(reader);
    let mut lines = Vec::new();
    let mut count = 0;
    let mut start = None;
    loop {
        let step = guests.step(&mut |connection, news| {
            let start = *start.get_or_insert(connection.opened);
            if news == News::Over {
                if !json && count == 0 {
                    head(color, &mut lines);
                }
                count += 1;
                if json {
                    object(start, connection, &mut lines);
                } else {
                    line(start, connection, color, &mut lines);
                }
            }
        });
        if start.is_none() {
            start = guests.times().map(|(first, _)| first);
        }
        let wanted = flush(&mut lines);
        match step {
            Ok(true) if wanted => {}
            Ok(_) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
}

fn head(color: bool, out: &mut Vec<u8>) {
    let (dim, plain) = if color { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let text = format!(
        "{:>12} {:>6}  {:<22} {:<22} {:>9} {:>9} {:>11} {:>13} {:>11} {:>13}  end",
        "time s", "number", "guest", "connects to", "answer", "lasted", "up", "rate", "down", "rate"
    );
    text_line(out, format_args!("{dim}{text}{plain}"));
}

fn line(start: Duration, connection: &GuestConnection, color: bool, out: &mut Vec<u8>) {
    let answered = connection.answered().map(|at| at.saturating_sub(connection.opened));
    let (ending, _) = connection.ending();
    let (style, plain) = match connection.reply {
        Reply::Refused { .. } | Reply::Unreachable { .. } if color => ("\x1b[33m", "\x1b[0m"),
        Reply::None | Reply::Accepted { .. } | Reply::Refused { .. } | Reply::Unreachable { .. } => ("", ""),
    };
    let by = match connection.reply {
        Reply::Unreachable { by, .. } => format!(", says {by}"),
        Reply::None | Reply::Accepted { .. } | Reply::Refused { .. } => String::new(),
    };
    let missing = connection.up.missing.saturating_add(connection.down.missing);
    let missing = if missing > 0 {
        format!(", {} missing in the capture", units::bytes(missing))
    } else {
        String::new()
    };
    let begun = if connection.from_start { "" } else { ", began before the capture" };
    text_line(
        out,
        format_args!(
            "{:>12} {:>6}  {:<22} {:<22} {:>9} {:>9} {:>11} {:>13} {:>11} {:>13}  {style}{ending}{by}{begun}{missing}{plain}",
            Since::between(start, connection.opened).to_string(),
            connection.stream.0,
            connection.from.to_string(),
            connection.to.to_string(),
            answered.map_or_else(|| "-".to_owned(), units::time),
            units::time(connection.lasted()),
            units::bytes(connection.up.bytes),
            units::rate(connection.up.bytes, busy(&connection.up)),
            units::bytes(connection.down.bytes),
            units::rate(connection.down.bytes, busy(&connection.down)),
        ),
    );
}

fn object(start: Duration, connection: &GuestConnection, out: &mut Vec<u8>) {
    let (_, ending) = connection.ending();
    let object = Line {
        time: Since::between(start, connection.opened),
        stream: connection.stream.0,
        channel: None,
        channel_id: None,
        from: None,
        message: "guest_connection",
        kind: None,
        serial: None,
        size: connection.up.bytes.saturating_add(connection.down.bytes),
        fields: Fields {
            guest: connection.from,
            destination: connection.to,
            from_start: connection.from_start,
            answer: match connection.reply {
                Reply::None => None,
                Reply::Accepted { .. } => Some("accepted"),
                Reply::Refused { .. } => Some("refused"),
                Reply::Unreachable { .. } => Some("unreachable"),
            },
            answered_after: connection
                .answered()
                .map(|at| at.saturating_sub(connection.opened).as_secs_f64()),
            duration: connection.lasted().as_secs_f64(),
            up: Flow::of(&connection.up),
            down: Flow::of(&connection.down),
            ending,
        },
    };
    // Writing into memory does not fail, and neither do numbers and short texts.
    if serde_json::to_writer(&mut *out, &object).is_ok() {
        out.push(b'\n');
    }
}

/// The keys that every line of the dump has.
#[derive(Serialize)]
struct Line {
    time: Since,
    stream: u64,
    channel: Option<&'static str>,
    channel_id: Option<u8>,
    from: Option<&'static str>,
    message: &'static str,
    #[serde(rename = "type")]
    kind: Option<u16>,
    serial: Option<u64>,
    size: u64,
    fields: Fields,
}

#[derive(Serialize)]
struct Fields {
    guest: SocketAddr,
    destination: SocketAddr,
    from_start: bool,
    answer: Option<&'static str>,
    answered_after: Option<f64>,
    duration: f64,
    up: Flow,
    down: Flow,
    ending: &'static str,
}

#[derive(Serialize)]
struct Flow {
    bytes: u64,
    throughput: Option<f64>,
    missing: u64,
    finished: bool,
}

impl Flow {
    fn of(flow: &GuestFlow) -> Self {
        Self {
            bytes: flow.bytes,
            throughput: units::per_second(flow.bytes, busy(flow)),
            missing: flow.missing,
            finished: flow.fin.is_some(),
        }
    }
}

/// From the first byte to the last.
fn busy(flow: &GuestFlow) -> Duration {
    match (flow.first, flow.last) {
        (Some(first), Some(last)) => last.saturating_sub(first),
        (_, _) => Duration::ZERO,
    }
}

fn text_line(out: &mut Vec<u8>, text: Arguments<'_>) {
    // Memory takes everything.
    let _ = writeln!(out, "{text}");
}
