//! Every captured message, parsed and written again: the bytes must be the same.

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::main_channel::{MainClientMessage, MainServerMessage};
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

use crate::capture::dissect::{Body, Message};

/// Whether a message is the same after it was parsed and written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewritten {
    /// Its channel's messages are not looked into, or the capture does not have all of it.
    Unknown,
    Same,
    /// Its strings lie in another order or place, which the wire allows, and it reads as the same.
    Rearranged,
    Different,
}

/// Parses what was captured, writes that, and compares.
pub(super) fn rewrite(message: &Message<'_>, layout: Layout, scratch: &mut Vec<u8>) -> Rewritten {
    scratch.clear();
    let kind = message.head.kind;
    let same_when_read = match &message.body {
        Body::BaseServer(parsed) => {
            parsed.write_body(scratch);
            BaseServerMessage::parse(kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::BaseClient(parsed) => {
            parsed.write_body(scratch);
            BaseClientMessage::parse(kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::MainServer(parsed) => {
            parsed.write_body(scratch);
            MainServerMessage::parse(kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::MainClient(parsed) => {
            parsed.write_body(scratch);
            MainClientMessage::parse(kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::TunnelServer(parsed) => {
            parsed.write_body(scratch);
            ServerMessage::parse(kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::TunnelClient(parsed) => {
            parsed.write_body(layout, scratch);
            ClientMessage::parse(layout, kind, scratch).ok().flatten().as_ref() == Some(parsed)
        }
        Body::Opaque | Body::Incomplete => return Rewritten::Unknown,
    };
    if scratch.as_slice() == message.bytes {
        Rewritten::Same
    } else if same_when_read {
        Rewritten::Rearranged
    } else {
        Rewritten::Different
    }
}
