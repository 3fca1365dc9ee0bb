//! Which items get a line.

use std::str::FromStr;

use spice_proto::link::ChannelType;
use spice_proto::names::{self, Sender};
use spice_proto::tunnel::{ServiceId, SocketId};

use crate::capture::dissect::What;
use crate::capture::reassembly::StreamId;
use crate::describe;

use super::books::{Seen, Since};

/// What is asked for. All of it has to be fulfilled; what is not set, is.
///
/// What is malformed and what is missing is shown wherever it might belong to what is asked for: nobody knows which
/// socket a hole concerns, but that it was in this channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// This connection only.
    pub stream: Option<StreamId>,
    /// These channels only; any if there are none.
    pub channels: Vec<ChannelFilter>,
    /// What this end said.
    pub from: Option<Sender>,
    /// Messages with one of these names; any if there are none.
    pub messages: Vec<MessageName>,
    /// About this socket of a tunnel.
    pub socket: Option<SocketId>,
    /// About this service of a tunnel, its connections included.
    pub service: Option<ServiceId>,
    /// Captured within this time.
    pub time: Option<TimeRange>,
}

impl Filter {
    /// Whether an item gets a line.
    pub fn passes(&self, seen: &Seen<'_, '_>) -> bool {
        let item = seen.item;
        self.stream.is_none_or(|stream| stream == item.stream)
            && self.time.is_none_or(|range| range.contains(seen.since))
            && match item.what {
                What::Began { .. } | What::Ended { .. } => self.is_broad(),
                What::Linked(_) => false,
                What::Malformed { .. } | What::Hole(_) => self.may_concern(seen),
                What::LinkMess { .. }
                | What::LinkReply { .. }
                | What::AuthMechanism(_)
                | What::Ticket
                | What::Sasl { .. }
                | What::LinkResult(_)
                | What::Message(_) => self.concerns(seen),
            }
    }

    /// Whether whole connections are asked for, rather than some of their messages.
    fn is_broad(&self) -> bool {
        self.channels.is_empty()
            && self.from.is_none()
            && self.messages.is_empty()
            && self.socket.is_none()
            && self.service.is_none()
    }

    fn concerns(&self, seen: &Seen<'_, '_>) -> bool {
        let item = seen.item;
        self.from.is_none_or(|from| item.from == Some(from))
            && (self.channels.is_empty()
                || item.channel.is_some_and(|channel| {
                    self.channels.iter().any(|wanted| wanted.matches(channel.channel_type, channel.id))
                }))
            && (self.messages.is_empty() || {
                let name = describe::name(&item.what);
                self.messages.iter().any(|wanted| wanted.0 == name)
            })
            && self.socket.is_none_or(|socket| seen.socket() == Some(socket))
            && self.service.is_none_or(|service| seen.service() == Some(service))
    }

    fn may_concern(&self, seen: &Seen<'_, '_>) -> bool {
        let item = seen.item;
        let channel_type = item.channel.map(|channel| channel.channel_type);
        let about_tunnels = self.socket.is_some() || self.service.is_some();
        self.from.is_none_or(|from| item.from.is_none_or(|sender| sender == from))
            && (self.channels.is_empty()
                || item.channel.is_none_or(|channel| {
                    self.channels.iter().any(|wanted| wanted.matches(channel.channel_type, channel.id))
                }))
            && (!about_tunnels || channel_type.is_none_or(|kind| kind == ChannelType::TUNNEL.0))
            && (self.messages.is_empty() || {
                // Of what is malformed, the header may say which message it should have been.
                let head = if let What::Malformed { header, .. } = &item.what { *header } else { None };
                let meant = head
                    .zip(channel_type)
                    .zip(item.from)
                    .and_then(|((head, channel), from)| names::message(channel, from, head.kind));
                let own = describe::name(&item.what);
                let by_own_name = |wanted: &&MessageName| wanted.0 == "malformed" || wanted.0 == "hole";
                let only_own_names = self.messages.iter().all(|wanted| by_own_name(&wanted));
                self.messages.iter().any(|wanted| wanted.0 == own)
                    || (!only_own_names
                        && meant.is_none_or(|name| self.messages.iter().any(|wanted| wanted.0 == name)))
            })
    }
}

/// A channel type, or one channel of it: `display`, `display:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelFilter {
    channel_type: u8,
    id: Option<u8>,
}

impl ChannelFilter {
    /// A channel whose number the capture does not show might be any.
    fn matches(self, channel_type: u8, id: Option<u8>) -> bool {
        self.channel_type == channel_type && (self.id.is_none() || id.is_none() || self.id == id)
    }
}

impl FromStr for ChannelFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, id) = match text.split_once(':') {
            Some((name, id)) => (name, Some(id)),
            None => (text, None),
        };
        let id = id
            .map(|id| id.parse().map_err(|_| format!("expected a channel number of 0 to 255, got {id:?}")))
            .transpose()?;
        let channel_type = names::channel_type(name)
            .or_else(|| name.strip_prefix("type-").unwrap_or(name).parse().ok())
            .ok_or_else(|| {
                format!("expected a channel such as main, display, display:1 or tunnel, got {name:?}")
            })?;
        Ok(Self { channel_type, id })
    }
}

/// A name that messages can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageName(&'static str);

impl FromStr for MessageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_lowercase().replace('-', "_");
        all_names().find(|name| **name == wanted).map(Self).ok_or_else(|| {
            let mut like: Vec<&str> = all_names().filter(|name| name.contains(&wanted)).collect();
            like.sort_unstable();
            like.dedup();
            match like.as_slice() {
                [] => "no message has this name; they are spice.proto's in lower case, such as socket_open"
                    .to_owned(),
                some => format!("no message has this name; there are {}", some.join(", ")),
            }
        })
    }
}

/// Every name that a line can have, some of them many times.
fn all_names() -> impl Iterator<Item = &'static str> {
    let messages = (1..=MOST_TYPES).flat_map(|channel_type| {
        [Sender::Client, Sender::Server].into_iter().flat_map(move |sender| {
            (0..=MOST_KINDS).filter_map(move |kind| names::message(channel_type, sender, kind))
        })
    });
    OWN_NAMES.iter().copied().chain(messages)
}

/// Names of lines that are no messages of the data stage.
const OWN_NAMES: &[&str] = &[
    "link_mess",
    "link_reply",
    "auth_mechanism",
    "ticket",
    "sasl_mechanisms",
    "sasl_mechanism",
    "sasl_data",
    "sasl_result",
    "link_result",
    "unknown",
    "malformed",
    "hole",
];

/// Numbers of channel types and of messages end before these.
const MOST_TYPES: u8 = 16;
const MOST_KINDS: u16 = 400;

/// A span of time since the first packet: `2..3.5`, `2..`, `..3.5`, seconds. Both ends are part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeRange {
    from: Option<Since>,
    to: Option<Since>,
}

impl TimeRange {
    fn contains(self, time: Since) -> bool {
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time <= to)
    }
}

impl FromStr for TimeRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("expected seconds since the first packet, such as 2..3.5, 2.. or ..3.5, got {text:?}");
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let end = |text: &str| match text.trim().trim_end_matches('s') {
            "" => Ok(None),
            number => match number.parse::<f64>() {
                Ok(seconds) if seconds.is_finite() => Ok(Some(Since::from_seconds(seconds))),
                _ => Err(wrong()),
            },
        };
        let range = Self { from: end(from)?, to: end(to)? };
        match (range.from, range.to) {
            (None, None) => Err(wrong()),
            (Some(from), Some(to)) if from > to => Err(format!("{text} ends before it begins")),
            _ => Ok(range),
        }
    }
}

#[cfg(test)]
mod tests;
