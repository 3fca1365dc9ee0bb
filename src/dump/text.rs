//! Lines for people: one for each message, in columns.

use std::io::{self, Write};

use spice_proto::names::Sender;

use crate::capture::dissect::{Item, What};
use crate::describe::{self, ChannelName, Details, Tame};

use super::books::{Seen, Since};

/// Prints items as text.
#[derive(Debug)]
pub struct Text {
    color: bool,
    hex: bool,
    headed: bool,
}

impl Text {
    /// In colour or without, with the bytes of each message or without.
    pub fn new(color: bool, hex: bool) -> Self {
        Self { color, hex, headed: false }
    }

    /// Appends the line, or the lines, of an item.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            self.styled(out, DIM, |out| out.write_all(HEAD))?;
            out.push(b'\n');
        }
        let item = seen.item;
        let style = style(item);
        self.styled(out, DIM, |out| write!(out, "{:>12} {:>6}", seen.since, item.stream.0))?;
        out.extend_from_slice(b"  ");
        self.styled(out, style, |out| {
            column(out, 12, |out| write!(out, "{}", ChannelName(item.channel)))?;
            column(out, 8, |out| out.write_all(item.from.map_or("", Sender::name).as_bytes()))?;
            column(out, 18, |out| out.write_all(describe::name(&item.what).as_bytes()))
        })?;
        match size(item) {
            Some(size) => write!(out, "{size:>8}  ")?,
            None => out.extend_from_slice(b"          "),
        }
        let loud = matches!(item.what, What::Malformed { .. } | What::Hole(_));
        self.styled(out, if loud { style } else { "" }, |out| write!(out, "{}", Details(item)))?;
        if let Some(number) = seen.noted.connection {
            self.styled(out, DIM, |out| write!(out, "  #{}", number.0))?;
        }
        if let Some(remark) = &seen.noted.remark {
            out.extend_from_slice(b"  ");
            self.styled(out, BAD, |out| write!(out, "!! {}", Tame(&remark.text)))?;
        }
        trim(out);
        out.push(b'\n');
        if self.hex {
            self.hex(item, out)?;
        }
        Ok(())
    }

    /// Appends the line that says what is wrong with the file itself.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything.
    pub fn damage(&mut self, since: Since, error: &str, out: &mut Vec<u8>) -> io::Result<()> {
        self.styled(out, DIM, |out| write!(out, "{since:>12}       -"))?;
        self.styled(out, BAD, |out| {
            write!(out, "  -                   malformed                   {}", Tame(error))
        })?;
        out.push(b'\n');
        Ok(())
    }

    fn hex(&self, item: &Item<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let (bytes, whole) = match &item.what {
            What::Message(message) => (message.bytes, Some(message.head.size)),
            What::Malformed { bytes, header, .. } => (*bytes, header.map(|head| head.size)),
            What::Began { .. }
            | What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Linked(_)
            | What::Hole(_)
            | What::Ended { .. } => return Ok(()),
        };
        hex_dump(bytes, out)?;
        let left_out = u64::from(whole.unwrap_or(0)).saturating_sub(u64::try_from(bytes.len()).unwrap_or(0));
        if left_out > 0 {
            writeln!(out, "{INDENT}… {left_out} more bytes are not kept")?;
        }
        Ok(())
    }

    /// What `write` appends, in a style if there are colours.
    fn styled(
        &self,
        out: &mut Vec<u8>,
        style: &str,
        write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.color || style.is_empty() {
            return write(out);
        }
        out.extend_from_slice(style.as_bytes());
        write(out)?;
        out.extend_from_slice(PLAIN.as_bytes());
        Ok(())
    }
}

/// Appends bytes as lines of sixteen: their offset, hexadecimal, and what of them is printable ASCII.
///
/// # Errors
///
/// None, since memory takes everything.
pub fn hex_dump(bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    for (index, row) in bytes.chunks(16).enumerate() {
        write!(out, "{INDENT}{:06x} ", index * 16)?;
        for column in 0..16 {
            if column == 8 {
                out.push(b' ');
            }
            match row.get(column) {
                Some(byte) => write!(out, " {byte:02x}")?,
                None => out.extend_from_slice(b"   "),
            }
        }
        out.extend_from_slice(b"  |");
        out.extend(row.iter().map(|byte| match byte {
            0x20..=0x7e => *byte,
            _ => b'.',
        }));
        out.extend_from_slice(b"|\n");
    }
    Ok(())
}

/// Bytes on the wire: of a message's body, of what stands behind a link header, of a word or a ticket. `None` for what
/// has no size of its own.
pub fn size(item: &Item<'_>) -> Option<u32> {
    match &item.what {
        What::LinkMess { size, .. } | What::LinkReply { size, .. } | What::Sasl { size, .. } => Some(*size),
        What::AuthMechanism(_) | What::LinkResult(_) => Some(WORD),
        What::Ticket => Some(TICKET),
        What::Message(message) => Some(message.head.size),
        What::Malformed { header, .. } => header.map(|head| head.size),
        What::Began { .. } | What::Linked(_) | What::Hole(_) | What::Ended { .. } => None,
    }
}

fn style(item: &Item<'_>) -> &'static str {
    match (&item.what, item.from) {
        (What::Malformed { .. }, _) => BAD,
        (What::Hole(_), _) => MISSING,
        (What::Began { .. } | What::Linked(_) | What::Ended { .. }, _) => BOLD,
        (_, Some(Sender::Client)) => CLIENT,
        (_, Some(Sender::Server)) => SERVER,
        (_, None) => "",
    }
}

/// What `write` appends, and spaces up to a width. It has to be ASCII.
fn column(
    out: &mut Vec<u8>,
    width: usize,
    write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let start = out.len();
    write(out)?;
    // A text as wide as its column still needs a space behind it.
    let end = (start + width).max(out.len() + 1);
    out.resize(end, b' ');
    Ok(())
}

fn trim(out: &mut Vec<u8>) {
    while out.last() == Some(&b' ') {
        out.pop();
    }
}

const HEAD: &[u8] = b"      time s stream  channel     from    message               bytes";
const INDENT: &str = "                      ";

const WORD: u32 = 4;
const TICKET: u32 = 128;

const PLAIN: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const CLIENT: &str = "\x1b[36m";
const SERVER: &str = "\x1b[32m";
const MISSING: &str = "\x1b[33m";
const BAD: &str = "\x1b[1;31m";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spice_proto::tunnel::{ClientMessage, GroupId, ServiceAdd, ServiceId, ServiceKind};

    use super::*;
    use crate::capture::dissect::{Body, Channel, Head, Message};
    use crate::capture::reassembly::StreamId;
    use crate::dump::books::Books;
    use crate::dump::json::Json;

    /// A service whose name would clear the screen, change direction, and is no UTF-8.
    fn hostile() -> Item<'static> {
        let add = ServiceAdd {
            kind: ServiceKind::Generic,
            service: ServiceId(0),
            group: GroupId(0),
            port: 9,
            name: b"\x1b[2J\n\xe2\x80\xaeevil\xff\"",
            description: b"",
        };
        let message = ClientMessage::ServiceAdd(add);
        let head = Head { serial: Some(u64::MAX), kind: 101, size: 3, sub_list: 0 };
        Item {
            time: Duration::from_secs(1),
            stream: StreamId(u64::MAX),
            channel: Some(Channel { channel_type: 7, id: None }),
            from: Some(Sender::Client),
            what: What::Message(Message {
                head,
                name: Some(message.name()),
                body: Body::TunnelClient(message),
                bytes: b"a\x1bc",
            }),
        }
    }

    #[test]
    fn what_the_wire_says_does_not_steer_the_terminal() {
        let mut out = Vec::new();
        Books::default().note(&hostile(), |seen| Text::new(false, true).item(seen, &mut out)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(r#""\u{1b}[2J\n\u{202e}evil\xff\"""#), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains("000000  61 1b 63"), "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text:?}");
    }

    #[test]
    fn what_the_wire_says_is_good_json() {
        let mut out = Vec::new();
        Books::default().note(&hostile(), |seen| Json::new(true).item(seen, &mut out)).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["fields"]["name"], "\u{1b}[2J\n\u{202e}evil\u{fffd}\"");
        assert_eq!(line["fields"]["name_hex"], "1b5b324a0ae280ae6576696cff22");
        assert_eq!(line["serial"], u64::MAX);
        assert_eq!(line["channel_id"], serde_json::Value::Null);
        let keys: Vec<usize> = [
            "time",
            "stream",
            "channel",
            "channel_id",
            "from",
            "message",
            "type",
            "serial",
            "size",
            "fields",
        ]
        .iter()
        .map(|key| out.windows(key.len() + 3).position(|at| at == format!("\"{key}\":").as_bytes()).unwrap())
        .collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }

    #[test]
    fn colours_are_ended() {
        let mut out = Vec::new();
        Books::default().note(&hostile(), |seen| Text::new(true, false).item(seen, &mut out)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b[").count(), 2 * text.matches(PLAIN).count(), "{text:?}");
    }
}
