//! Lines for machines: a JSON object for each message, always with the same keys.

use std::fmt::{self, Display, Formatter};
use std::io;

use serde::{Serialize, Serializer};
use spice_proto::names::Sender;

use crate::capture::dissect::What;
use crate::describe::{self, ChannelTypeName};

use super::books::{Seen, Since};
use super::fields::Fields;
use super::text::size;

/// Prints items as JSON.
#[derive(Debug)]
pub(super) struct Json {
    hex: bool,
}

impl Json {
    /// With the bytes of each message or without.
    pub(super) fn new(hex: bool) -> Self {
        Self { hex }
    }

    /// Appends the line of an item. That a connection began or ended has none.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub(super) fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let item = seen.item;
        let (head, error) = match &item.what {
            What::Began { .. } | What::Linked(_) | What::Ended { .. } => return Ok(()),
            What::Message(message) => (Some(message.head), None),
            What::Malformed { header, error, .. } => (*header, Some(error.as_str())),
            What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Hole(_) => (None, None),
        };
        let line = Line {
            time: seen.since,
            stream: Some(item.stream.0),
            channel: item.channel.map(|channel| Shown(ChannelTypeName(channel.channel_type))),
            channel_id: item.channel.and_then(|channel| channel.id),
            from: item.from.map(Sender::name),
            message: describe::name(&item.what),
            kind: head.map(|head| head.kind),
            serial: head.and_then(|head| head.serial),
            size: size(item),
            fields: Fields::of(seen, self.hex),
            error,
        };
        line.write(out)
    }

    /// Appends the line that says what is wrong with the file itself.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything.
    pub(super) fn damage(&mut self, since: Since, error: &str, out: &mut Vec<u8>) -> io::Result<()> {
        let line = Line::<Nothing> {
            time: since,
            stream: None,
            channel: None,
            channel_id: None,
            from: None,
            message: "malformed",
            kind: None,
            serial: None,
            size: None,
            fields: Nothing {},
            error: Some(error),
        };
        line.write(out)
    }
}

/// The keys, in their order. Scripts rely on them.
#[derive(Serialize)]
struct Line<'a, F> {
    time: Since,
    stream: Option<u64>,
    channel: Option<Shown<ChannelTypeName>>,
    channel_id: Option<u8>,
    from: Option<&'static str>,
    message: &'a str,
    #[serde(rename = "type")]
    kind: Option<u16>,
    serial: Option<u64>,
    size: Option<u32>,
    fields: F,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<F: Serialize> Line<'_, F> {
    fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.push(b'\n');
        Ok(())
    }
}

#[derive(Serialize)]
struct Nothing {}

/// What its `Display` says, as a string.
pub(super) struct Shown<T>(pub(super) T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Bytes as a string of hexadecimal digits.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
