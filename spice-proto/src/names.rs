//! Names of channel types and of every channel's messages, as `spice.proto` spells them, for people and tools.

use crate::base::{BaseClientMessage, BaseServerMessage};
use crate::link::ChannelType;
use crate::main_channel::{MainClientMessage, MainServerMessage};
use crate::tunnel::{ClientMessage, ServerMessage};

/// Which end of a channel sent a message. The two number their messages independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// The viewer's side, which linked.
    Client,
    /// The VM's side, which accepted.
    Server,
}

impl Sender {
    /// `client` or `server`.
    pub fn name(self) -> &'static str {
        match self {
            Sender::Client => "client",
            Sender::Server => "server",
        }
    }
}

/// The name of a channel type, such as `main` or `tunnel` (wire reference 5).
pub fn channel(channel_type: u8) -> Option<&'static str> {
    let index = usize::from(channel_type).checked_sub(1)?;
    CHANNELS.get(index).copied()
}

/// The type of the channel with this name.
pub fn channel_type(name: &str) -> Option<u8> {
    let index = CHANNELS.iter().position(|known| *known == name)?;
    u8::try_from(index).ok()?.checked_add(1)
}

/// The name of a message, such as `socket_open` or `channels_list`, by the type of its channel, its sender and its number.
/// The numbers below 101 mean the same on every channel, known or not.
pub fn message(channel_type: u8, sender: Sender, kind: u16) -> Option<&'static str> {
    let base = match sender {
        Sender::Server => BaseServerMessage::name_of(kind),
        Sender::Client => BaseClientMessage::name_of(kind),
    };
    base.or_else(|| match (ChannelType(channel_type), sender) {
        (ChannelType::MAIN, Sender::Server) => MainServerMessage::name_of(kind),
        (ChannelType::MAIN, Sender::Client) => MainClientMessage::name_of(kind),
        (ChannelType::TUNNEL, Sender::Server) => ServerMessage::name_of(kind),
        (ChannelType::TUNNEL, Sender::Client) => ClientMessage::name_of(kind),
        (other, sender) => runs(other, sender).iter().find_map(|(first, names)| {
            let index = kind.checked_sub(*first)?;
            names.get(usize::from(index)).copied()
        }),
    })
}

/// Runs of consecutive message numbers: the first one, and the names. The channels that this crate parses name their own.
fn runs(channel_type: ChannelType, sender: Sender) -> &'static [(u16, &'static [&'static str])] {
    match (channel_type, sender) {
        (ChannelType::DISPLAY, Sender::Server) => &[
            (
                101,
                &[
                    "mode",
                    "mark",
                    "reset",
                    "copy_bits",
                    "inval_list",
                    "inval_all_pixmaps",
                    "inval_palette",
                    "inval_all_palettes",
                ],
            ),
            (122, &["stream_create", "stream_data", "stream_clip", "stream_destroy", "stream_destroy_all"]),
            (
                302,
                &[
                    "draw_fill",
                    "draw_opaque",
                    "draw_copy",
                    "draw_blend",
                    "draw_blackness",
                    "draw_whiteness",
                    "draw_invers",
                    "draw_rop3",
                    "draw_stroke",
                    "draw_text",
                    "draw_transparent",
                    "draw_alpha_blend",
                    "surface_create",
                    "surface_destroy",
                    "stream_data_sized",
                    "monitors_config",
                    "draw_composite",
                    "stream_activate_report",
                    "gl_scanout_unix",
                    "gl_draw",
                    "quality_indicator",
                ],
            ),
        ],
        (ChannelType::DISPLAY, Sender::Client) => &[(
            101,
            &["init", "stream_report", "preferred_compression", "gl_draw_done", "preferred_video_codec_type"],
        )],
        (ChannelType::INPUTS, Sender::Server) => {
            &[(101, &["init", "key_modifiers"]), (111, &["mouse_motion_ack"])]
        }
        (ChannelType::INPUTS, Sender::Client) => &[
            (101, &["key_down", "key_up", "key_modifiers", "key_scancode"]),
            (111, &["mouse_motion", "mouse_position", "mouse_press", "mouse_release"]),
        ],
        (ChannelType::CURSOR, Sender::Server) => {
            &[(101, &["init", "reset", "set", "move", "hide", "trail", "inval_one", "inval_all"])]
        }
        (ChannelType::PLAYBACK, Sender::Server) => {
            &[(101, &["data", "mode", "start", "stop", "volume", "mute", "latency"])]
        }
        (ChannelType::RECORD, Sender::Server) => &[(101, &["start", "stop", "volume", "mute"])],
        (ChannelType::RECORD, Sender::Client) => &[(101, &["data", "mode", "start_mark"])],
        (ChannelType::SMARTCARD, Sender::Server | Sender::Client) => &[(101, &["data"])],
        (ChannelType::USBREDIR, Sender::Server | Sender::Client) => &[(101, VMC)],
        (ChannelType::PORT | ChannelType::WEBDAV, Sender::Server) => &[(101, VMC), (201, &["init", "event"])],
        (ChannelType::PORT | ChannelType::WEBDAV, Sender::Client) => &[(101, VMC), (201, &["event"])],
        _ => &[],
    }
}

/// What the channels for devices have in common.
const VMC: &[&str] = &["data", "compressed_data"];

/// By type, from 1.
const CHANNELS: &[&str] = &[
    "main",
    "display",
    "inputs",
    "cursor",
    "playback",
    "record",
    "tunnel",
    "smartcard",
    "usbredir",
    "port",
    "webdav",
];

#[cfg(test)]
mod tests;
