//! Message bodies.

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::main_channel::{ChannelEntry, MainClientMessage, MainServerMessage, add_channel};
use spice_proto::names::{Sender, message};
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};

use crate::input::Input;

/// Byte 0: which family; 1: the message's number, 101 and up for those of a channel; then the body.
///
/// What parses is written as something that parses to the same, as long as was said.
pub fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let family = input.byte();
    let kind = u16::from(input.byte());
    let body = input.rest();
    let mut out = Vec::new();
    match family % 7 {
        0 => {
            if let Ok(Some(parsed)) = BaseServerMessage::parse(kind, body) {
                parsed.write_body(&mut out);
                assert_eq!(out.len(), parsed.body_len());
                assert_eq!((parsed.kind(), message(0, Sender::Server, kind)), (kind, Some(parsed.name())));
                assert_eq!(BaseServerMessage::parse(kind, &out), Ok(Some(parsed.clone())));
            }
        }
        1 => {
            if let Ok(Some(parsed)) = BaseClientMessage::parse(kind, body) {
                parsed.write_body(&mut out);
                assert_eq!(out, body);
                assert_eq!(out.len(), parsed.body_len());
                assert_eq!((parsed.kind(), message(0, Sender::Client, kind)), (kind, Some(parsed.name())));
            }
        }
        2 => {
            if let Ok(Some(parsed)) = MainServerMessage::parse(kind, body) {
                parsed.write_body(&mut out);
                assert_eq!(out.len(), parsed.body_len());
                assert_eq!((parsed.kind(), message(1, Sender::Server, kind)), (kind, Some(parsed.name())));
                assert_eq!(MainServerMessage::parse(kind, &out), Ok(Some(parsed.clone())));
            }
            let tunnel = ChannelEntry { channel_type: 7, channel_id: 0 };
            if let Ok(added) = add_channel(body, tunnel) {
                assert!(added.len() == body.len() || added.len() == body.len() + 2);
                assert_eq!(add_channel(&added, tunnel).as_deref(), Ok(&added[..]));
            }
        }
        3 => {
            if let Ok(Some(parsed)) = MainClientMessage::parse(kind, body) {
                parsed.write_body(&mut out);
                assert_eq!(out, body);
                assert_eq!(out.len(), parsed.body_len());
                assert_eq!((parsed.kind(), message(1, Sender::Client, kind)), (kind, Some(parsed.name())));
            }
        }
        4 => {
            if let Ok(Some(parsed)) = ServerMessage::parse(kind, body) {
                parsed.write_body(&mut out);
                assert_eq!(out, body);
                assert_eq!(out.len(), parsed.body_len());
                assert_eq!((parsed.kind(), message(7, Sender::Server, kind)), (kind, Some(parsed.name())));
            }
        }
        other => {
            let layout = if other == 5 { Layout::A } else { Layout::B };
            if let Ok(Some(parsed)) = ClientMessage::parse(layout, kind, body) {
                parsed.write_body(layout, &mut out);
                assert_eq!(out.len(), parsed.body_len(layout));
                assert_eq!((parsed.kind(), message(7, Sender::Client, kind)), (kind, Some(parsed.name())));
                assert_eq!(ClientMessage::parse(layout, kind, &out), Ok(Some(parsed)));
            }
        }
    }
}
