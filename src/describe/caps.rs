//! Names of capability bits (wire reference 1.5), as `spice/protocol.h` and `spice/enums.h` spell them, in lower case.

use std::fmt::{self, Display, Formatter};

use spice_proto::link::ChannelType;

/// A capability that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// One that has a name.
    Known(&'static str),
    /// One that has none: its bit, counted over all words.
    Bit(usize),
}

impl Display for Cap {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Cap::Known(name) => f.write_str(name),
            Cap::Bit(bit) => write!(f, "bit_{bit}"),
        }
    }
}

/// The common capabilities that are set in these words.
pub fn common(words: &[u32]) -> impl Iterator<Item = Cap> {
    set(words, COMMON)
}

/// The capabilities of a channel of this type that are set in these words.
pub fn channel(channel_type: u8, words: &[u32]) -> impl Iterator<Item = Cap> {
    set(words, names(ChannelType(channel_type)))
}

fn set(words: &[u32], names: &'static [&'static str]) -> impl Iterator<Item = Cap> {
    words
        .iter()
        .enumerate()
        .flat_map(|(index, word)| {
            (0..32).filter(move |bit| word & (1 << bit) != 0).map(move |bit| index * 32 + bit)
        })
        .map(|bit| names.get(bit).map_or(Cap::Bit(bit), |name| Cap::Known(name)))
}

fn names(channel_type: ChannelType) -> &'static [&'static str] {
    match channel_type {
        ChannelType::MAIN => {
            &["semi_seamless_migrate", "name_and_uuid", "agent_connected_tokens", "seamless_migrate"]
        }
        ChannelType::DISPLAY => &[
            "sized_stream",
            "monitors_config",
            "composite",
            "a8_surface",
            "stream_report",
            "lz4_compression",
            "pref_compression",
            "gl_scanout",
            "multi_codec",
            "codec_mjpeg",
            "codec_vp8",
            "codec_h264",
            "pref_video_codec_type",
            "codec_vp9",
            "codec_h265",
        ],
        ChannelType::INPUTS => &["key_scancode"],
        ChannelType::PLAYBACK => &["celt_0_5_1", "volume", "latency", "opus"],
        ChannelType::RECORD => &["celt_0_5_1", "volume", "opus"],
        ChannelType::TUNNEL => &["extended", "reset", "service_remove", "probe", "service_info", "names"],
        ChannelType::USBREDIR | ChannelType::PORT | ChannelType::WEBDAV => &["data_compress_lz4"],
        _ => &[],
    }
}

const COMMON: &[&str] = &["auth_selection", "auth_spice", "auth_sasl", "mini_header"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_those_that_are_set() {
        let names: Vec<String> = common(&[0b1011, 1]).map(|cap| cap.to_string()).collect();
        assert_eq!(names, ["auth_selection", "auth_spice", "mini_header", "bit_32"]);
        // What libspice-server 0.15.1 says of its display.
        let names: Vec<String> = channel(2, &[0x1052]).map(|cap| cap.to_string()).collect();
        assert_eq!(names, ["monitors_config", "stream_report", "pref_compression", "pref_video_codec_type"]);
        assert_eq!(channel(42, &[0]).count(), 0);
    }
}
