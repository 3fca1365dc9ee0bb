//! Messages that every channel has (wire reference 2.4). Their numbers are 1 to 8; a channel's own begin at 101.

use nom::Parser;
use nom::bytes::complete::take;
use nom::combinator::rest;
use nom::multi::count;
use nom::number::complete::{le_u8, le_u32, le_u64};

use crate::error::ParseError;
use crate::frame::{Frame, sub_messages};
use crate::parse::{Fault, NUL, Parsed, U8, U32, U64, put_u32, put_u64, to_usize, whole};

bitflags::bitflags! {
    /// What the server wants of a client that it sends MIGRATE.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MigrateFlags: u32 {
        /// A MIGRATE_FLUSH_MARK behind the client's last message.
        const NEED_FLUSH = 1 << 0;
        /// MIGRATE_DATA carried to the new host.
        const NEED_DATA_TRANSFER = 1 << 1;
    }
}

/// Message from the server on any channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseServerMessage<'a> {
    /// 1 MIGRATE: the session moves to another host.
    Migrate {
        /// What is wanted of the client.
        flags: MigrateFlags,
    },
    /// 2 MIGRATE_DATA: to be carried to the new host unread.
    MigrateData {
        /// The server's own matter.
        data: &'a [u8],
    },
    /// 3 SET_ACK: the client acknowledges every `window` messages from here on.
    SetAck {
        /// Number of this request, to be echoed.
        generation: u32,
        /// Messages; 0 for no acknowledgements.
        window: u32,
    },
    /// 4 PING: to be answered by PONG.
    Ping {
        /// To be echoed.
        id: u32,
        /// The sender's clock, to be echoed.
        timestamp: u64,
        /// Ballast to measure bandwidth with, not echoed.
        padding: &'a [u8],
    },
    /// 5 WAIT_FOR_CHANNELS: other channels first have to come this far.
    WaitForChannels {
        /// At most 255.
        waits: Vec<Wait>,
    },
    /// 6 DISCONNECTING: the connection ends on purpose.
    Disconnecting(Disconnecting),
    /// 7 NOTIFY: something for people.
    Notify(Notify<'a>),
    /// 8 LIST: nothing but sub-messages, which [`sub_messages`] opens. All of them have been checked to be in the body.
    List {
        /// The whole body.
        body: &'a [u8],
    },
}

/// Message from the client on any channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseClientMessage<'a> {
    /// 1 ACK_SYNC: a SET_ACK was seen.
    AckSync {
        /// The SET_ACK's.
        generation: u32,
    },
    /// 2 ACK: one more window of messages was received.
    Ack,
    /// 3 PONG: answers PING.
    Pong {
        /// The PING's.
        id: u32,
        /// The PING's.
        timestamp: u64,
    },
    /// 4 MIGRATE_FLUSH_MARK: the last message before a migration that asked for it. Unasked, it kills stock servers.
    MigrateFlushMark,
    /// 5 MIGRATE_DATA: what the old host sent.
    MigrateData {
        /// Unread.
        data: &'a [u8],
    },
    /// 6 DISCONNECTING: the connection ends on purpose.
    Disconnecting(Disconnecting),
}

/// An entry of WAIT_FOR_CHANNELS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wait {
    /// Type of the other channel.
    pub channel_type: u8,
    /// Which one of that type.
    pub channel_id: u8,
    /// Serial (or count, with mini headers) of the message there that has to be handled first.
    pub serial: u64,
}

/// What DISCONNECTING says, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Disconnecting {
    /// The sender's clock.
    pub time_stamp: u64,
    /// A link error code (wire reference 1.7); unchecked.
    pub reason: u32,
}

/// What NOTIFY says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Notify<'a> {
    /// The sender's clock.
    pub time_stamp: u64,
    /// How bad it is.
    pub severity: Severity,
    /// How much a user would want to see it.
    pub visibility: Visibility,
    /// A code; only 0 is known.
    pub what: u32,
    /// The text, usually UTF-8, without the NUL behind it.
    pub message: &'a [u8],
}

/// Severity of NOTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// 0.
    Info,
    /// 1.
    Warn,
    /// 2.
    Error,
}

/// Visibility of NOTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// 0.
    Low,
    /// 1.
    Medium,
    /// 2.
    High,
}

impl<'a> BaseServerMessage<'a> {
    /// Parses the body of a message from the server. `None`: no message of that number is common to all channels.
    ///
    /// # Errors
    ///
    /// A body that is not as 2.4 has it. The NUL behind NOTIFY's text may be missing.
    pub fn parse(kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        if kind == LIST {
            let list = Frame { serial: None, kind, sub_list: 0, body };
            sub_messages(&list)?.try_for_each(|message| message.map(|_| ()))?;
            return Ok(Some(Self::List { body }));
        }
        whole(name, body, |input| match kind {
            MIGRATE => {
                let (input, bits) = le_u32(input)?;
                match MigrateFlags::from_bits(bits) {
                    Some(flags) => Ok((input, Self::Migrate { flags })),
                    None => Err(Fault::value("flags", bits, "0 to 3")),
                }
            }
            SERVER_MIGRATE_DATA => rest.map(|data| Self::MigrateData { data }).parse(input),
            SET_ACK => {
                (le_u32, le_u32).map(|(generation, window)| Self::SetAck { generation, window }).parse(input)
            }
            PING => (le_u32, le_u64, rest)
                .map(|(id, timestamp, padding)| Self::Ping { id, timestamp, padding })
                .parse(input),
            WAIT_FOR_CHANNELS => {
                let (input, entries) = le_u8(input)?;
                count(wait, usize::from(entries)).map(|waits| Self::WaitForChannels { waits }).parse(input)
            }
            SERVER_DISCONNECTING => disconnecting.map(Self::Disconnecting).parse(input),
            // NOTIFY, the last number that has a name.
            _ => notify.map(Self::Notify).parse(input),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Migrate { .. } => MIGRATE,
            Self::MigrateData { .. } => SERVER_MIGRATE_DATA,
            Self::SetAck { .. } => SET_ACK,
            Self::Ping { .. } => PING,
            Self::WaitForChannels { .. } => WAIT_FOR_CHANNELS,
            Self::Disconnecting(_) => SERVER_DISCONNECTING,
            Self::Notify(_) => NOTIFY,
            Self::List { .. } => LIST,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self) -> usize {
        match self {
            Self::Migrate { .. } => U32,
            Self::MigrateData { data } => data.len(),
            Self::SetAck { .. } => U32 + U32,
            Self::Ping { padding, .. } => (U32 + U64).saturating_add(padding.len()),
            Self::WaitForChannels { waits } => U8 + waits.len().min(MAX_WAITS) * (U8 + U8 + U64),
            Self::Disconnecting(_) => Disconnecting::LEN,
            Self::Notify(notify) => {
                let (time_stamp, severity, visibility, what, message_len) = (U64, U32, U32, U32, U32);
                let fixed = time_stamp + severity + visibility + what + message_len;
                fixed.saturating_add(notify.message.len()).saturating_add(NUL)
            }
            Self::List { body } => body.len(),
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s. Waits beyond the 255th are left out.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Migrate { flags } => put_u32(out, flags.bits()),
            Self::MigrateData { data: bytes } | Self::List { body: bytes } => out.extend_from_slice(bytes),
            Self::SetAck { generation, window } => {
                put_u32(out, *generation);
                put_u32(out, *window);
            }
            Self::Ping { id, timestamp, padding } => {
                put_u32(out, *id);
                put_u64(out, *timestamp);
                out.extend_from_slice(padding);
            }
            Self::WaitForChannels { waits } => {
                let count = u8::try_from(waits.len()).unwrap_or(u8::MAX);
                out.push(count);
                for wait in waits.iter().take(usize::from(count)) {
                    out.extend_from_slice(&[wait.channel_type, wait.channel_id]);
                    put_u64(out, wait.serial);
                }
            }
            Self::Disconnecting(disconnecting) => disconnecting.write(out),
            Self::Notify(notify) => notify.write(out),
        }
    }

    /// `spice.proto`'s name of the message, in lower case.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            MIGRATE => "migrate",
            SERVER_MIGRATE_DATA => "migrate_data",
            SET_ACK => "set_ack",
            PING => "ping",
            WAIT_FOR_CHANNELS => "wait_for_channels",
            SERVER_DISCONNECTING => "disconnecting",
            NOTIFY => "notify",
            LIST => "list",
            _ => return None,
        })
    }
}

impl<'a> BaseClientMessage<'a> {
    /// Parses the body of a message from the client. `None`: no message of that number is common to all channels.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as 2.4 has it.
    pub fn parse(kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        whole(name, body, |input| match kind {
            ACK_SYNC => le_u32.map(|generation| Self::AckSync { generation }).parse(input),
            ACK => Ok((input, Self::Ack)),
            PONG => (le_u32, le_u64).map(|(id, timestamp)| Self::Pong { id, timestamp }).parse(input),
            MIGRATE_FLUSH_MARK => Ok((input, Self::MigrateFlushMark)),
            CLIENT_MIGRATE_DATA => rest.map(|data| Self::MigrateData { data }).parse(input),
            // CLIENT_DISCONNECTING, the last number that has a name.
            _ => disconnecting.map(Self::Disconnecting).parse(input),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::AckSync { .. } => ACK_SYNC,
            Self::Ack => ACK,
            Self::Pong { .. } => PONG,
            Self::MigrateFlushMark => MIGRATE_FLUSH_MARK,
            Self::MigrateData { .. } => CLIENT_MIGRATE_DATA,
            Self::Disconnecting(_) => CLIENT_DISCONNECTING,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self) -> usize {
        match self {
            Self::AckSync { .. } => U32,
            Self::Ack | Self::MigrateFlushMark => 0,
            Self::Pong { .. } => U32 + U64,
            Self::MigrateData { data } => data.len(),
            Self::Disconnecting(_) => Disconnecting::LEN,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::AckSync { generation } => put_u32(out, generation),
            Self::Ack | Self::MigrateFlushMark => {}
            Self::Pong { id, timestamp } => {
                put_u32(out, id);
                put_u64(out, timestamp);
            }
            Self::MigrateData { data } => out.extend_from_slice(data),
            Self::Disconnecting(disconnecting) => disconnecting.write(out),
        }
    }

    /// `spice.proto`'s name of the message, in lower case.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            ACK_SYNC => "ack_sync",
            ACK => "ack",
            PONG => "pong",
            MIGRATE_FLUSH_MARK => "migrate_flush_mark",
            CLIENT_MIGRATE_DATA => "migrate_data",
            CLIENT_DISCONNECTING => "disconnecting",
            _ => return None,
        })
    }
}

impl Disconnecting {
    const LEN: usize = U64 + U32;

    fn write(&self, out: &mut Vec<u8>) {
        put_u64(out, self.time_stamp);
        put_u32(out, self.reason);
    }
}

impl Notify<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        put_u64(out, self.time_stamp);
        put_u32(
            out,
            match self.severity {
                Severity::Info => 0,
                Severity::Warn => 1,
                Severity::Error => 2,
            },
        );
        put_u32(
            out,
            match self.visibility {
                Visibility::Low => 0,
                Visibility::Medium => 1,
                Visibility::High => 2,
            },
        );
        put_u32(out, self.what);
        // A longer text would not fit the header's size either.
        put_u32(out, u32::try_from(self.message.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(self.message);
        out.push(0);
    }
}

fn notify(input: &[u8]) -> Parsed<'_, Notify<'_>> {
    let (input, (time_stamp, severity, visibility, what, length)) =
        (le_u64, le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let severity = match severity {
        0 => Severity::Info,
        1 => Severity::Warn,
        2 => Severity::Error,
        other => return Err(Fault::value("severity", other, "0 (info), 1 (warn) or 2 (error)")),
    };
    let visibility = match visibility {
        0 => Visibility::Low,
        1 => Visibility::Medium,
        2 => Visibility::High,
        other => return Err(Fault::value("visibility", other, "0 (low), 1 (medium) or 2 (high)")),
    };
    let (input, message) = take(to_usize(length))(input)?;
    // libspice-server ends the text with a NUL that the length does not count.
    let input = input.strip_prefix(b"\0").unwrap_or(input);
    Ok((input, Notify { time_stamp, severity, visibility, what, message }))
}

fn wait(input: &[u8]) -> Parsed<'_, Wait> {
    (le_u8, le_u8, le_u64)
        .map(|(channel_type, channel_id, serial)| Wait { channel_type, channel_id, serial })
        .parse(input)
}

fn disconnecting(input: &[u8]) -> Parsed<'_, Disconnecting> {
    (le_u64, le_u32).map(|(time_stamp, reason)| Disconnecting { time_stamp, reason }).parse(input)
}

/// Number of the message that holds sub-messages and nothing else, server to client.
pub const LIST: u16 = 8;

/// First number of a channel's own messages.
pub const FIRST_OF_CHANNEL: u16 = 101;

/// Number of the client's MIGRATE_FLUSH_MARK, which a proxy drops where the server did not ask for it.
pub const MIGRATE_FLUSH_MARK: u16 = 4;

/// Number of the server's MIGRATE.
pub const MIGRATE: u16 = 1;

const SERVER_MIGRATE_DATA: u16 = 2;
const SET_ACK: u16 = 3;
const PING: u16 = 4;
const WAIT_FOR_CHANNELS: u16 = 5;
const SERVER_DISCONNECTING: u16 = 6;
const NOTIFY: u16 = 7;

const ACK_SYNC: u16 = 1;
const ACK: u16 = 2;
const PONG: u16 = 3;
const CLIENT_MIGRATE_DATA: u16 = 5;
const CLIENT_DISCONNECTING: u16 = 6;

const MAX_WAITS: usize = 255;

#[cfg(test)]
mod tests;
