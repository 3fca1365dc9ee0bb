//! From a message's bytes to what it says.

use spice_proto::base::{BaseClientMessage, BaseServerMessage, FIRST_OF_CHANNEL, LIST};
use spice_proto::error::ParseError;
use spice_proto::frame::{Frame, sub_messages};
use spice_proto::link::ChannelType;
use spice_proto::main_channel::{MainClientMessage, MainServerMessage};
use spice_proto::names::{self, Sender};
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

use super::{Body, Head, MAX_KEPT};

/// Bytes kept of a body that is not looked into, unless they come in one piece anyway.
pub(super) const PREFIX: usize = 4096;

/// How many bytes of a body there is a use for.
pub(super) fn wanted(channel_type: Option<u8>, from: Sender, head: &Head) -> usize {
    let size = usize::try_from(head.size).unwrap_or(usize::MAX);
    if size <= MAX_KEPT && looked_into(channel_type, from, head) { size } else { size.min(PREFIX) }
}

/// Name of a message; without a channel, of those that every channel has.
pub(super) fn name(channel_type: Option<u8>, from: Sender, kind: u16) -> Option<&'static str> {
    names::message(channel_type.unwrap_or(0), from, kind)
}

/// Parses a whole body.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse<'a>(
    channel_type: Option<u8>,
    layout: Layout,
    from: Sender,
    head: &Head,
    bytes: &'a [u8],
) -> Result<Body<'a>, String> {
    let main = main_part(from, head, bytes).map_err(|error| error.to_string())?;
    parse_strictly(channel_type, layout, from, head.kind, main).map_err(|error| {
        let hint = if channel_type == Some(ChannelType::TUNNEL.0) { hint(from, head) } else { "" };
        format!("{error}{hint}")
    })
}

/// Parses what stands before the sub-messages. `Opaque` for what is not looked into.
///
/// # Errors
/// The parser's.
pub(super) fn parse_strictly(
    channel_type: Option<u8>,
    layout: Layout,
    from: Sender,
    kind: u16,
    body: &[u8],
) -> Result<Body<'_>, ParseError> {
    let known = if kind < FIRST_OF_CHANNEL {
        match from {
            Sender::Server => BaseServerMessage::parse(kind, body)?.map(Body::BaseServer),
            Sender::Client => BaseClientMessage::parse(kind, body)?.map(Body::BaseClient),
        }
    } else {
        match (channel_type.map(ChannelType), from) {
            (Some(ChannelType::MAIN), Sender::Server) => {
                MainServerMessage::parse(kind, body)?.map(Body::MainServer)
            }
            (Some(ChannelType::MAIN), Sender::Client) => {
                MainClientMessage::parse(kind, body)?.map(Body::MainClient)
            }
            (Some(ChannelType::TUNNEL), Sender::Server) => {
                ServerMessage::parse(kind, body)?.map(Body::TunnelServer)
            }
            (Some(ChannelType::TUNNEL), Sender::Client) => {
                ClientMessage::parse(layout, kind, body)?.map(Body::TunnelClient)
            }
            _ => None,
        }
    };
    Ok(known.unwrap_or(Body::Opaque))
}

/// Whether [`parse_strictly`] makes something of it, or sub-messages are in it.
fn looked_into(channel_type: Option<u8>, from: Sender, head: &Head) -> bool {
    let parsed =
        channel_type.is_some_and(|kind| [ChannelType::MAIN.0, ChannelType::TUNNEL.0].contains(&kind));
    let lists = from == Sender::Server && (head.sub_list != 0 || head.kind == LIST);
    lists || ((parsed || head.kind < FIRST_OF_CHANNEL) && name(channel_type, from, head.kind).is_some())
}

/// The body without its sub-messages, which are checked. Those of clients are not there, whatever the header says.
fn main_part<'a>(from: Sender, head: &Head, bytes: &'a [u8]) -> Result<&'a [u8], ParseError> {
    if from == Sender::Client || head.sub_list == 0 {
        return Ok(bytes);
    }
    let frame = Frame { serial: head.serial, kind: head.kind, sub_list: head.sub_list, body: bytes };
    sub_messages(&frame)?.try_for_each(|message| message.map(|_| ()))?;
    let end = usize::try_from(head.sub_list).unwrap_or(usize::MAX);
    Ok(bytes.get(..end).unwrap_or(bytes))
}

/// What a size betrays that is wrong here, but right in the structures of another compiler (wire-reference 6.1, layout C).
fn hint(from: Sender, head: &Head) -> &'static str {
    match (from, head.kind, head.size) {
        (Sender::Server, 101 | 108, 8) | (Sender::Server, 102, 16) | (Sender::Server, 103, 12) => {
            "; released servers from 0.5.2 to 0.12.4 send this size, because they pad their structures"
        }
        (Sender::Client, 103 | 109, 8) => {
            "; released servers from 0.5.2 to 0.12.4 expect this size, because they pad their structures"
        }
        _ => "",
    }
}
