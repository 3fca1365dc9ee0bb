//! How long a message can be: what tells a header from bytes that happen to look like one.

use std::ops::RangeInclusive;

use spice_proto::base::FIRST_OF_CHANNEL;
use spice_proto::link::ChannelType;
use spice_proto::main_channel::MAX_CHANNELS_LIST;
use spice_proto::names::Sender;

/// Least and most bytes of the body of a message that is known. The most is what is believable, where the protocol sets no
/// limit.
///
/// Type 0 is a channel of which nothing is known: all numbers that a channel could use are its.
pub(super) fn of(channel_type: u8, from: Sender, kind: u16) -> Option<RangeInclusive<u32>> {
    if kind < FIRST_OF_CHANNEL {
        return base(from, kind);
    }
    match (ChannelType(channel_type), from) {
        (ChannelType::MAIN, Sender::Server) => main_server(kind),
        (ChannelType::MAIN, Sender::Client) => main_client(kind),
        (ChannelType::DISPLAY, Sender::Server) => display_server(kind),
        (ChannelType::DISPLAY, Sender::Client) => display_client(kind),
        (ChannelType::INPUTS, Sender::Server) => inputs_server(kind),
        (ChannelType::INPUTS, Sender::Client) => inputs_client(kind),
        (ChannelType::CURSOR, Sender::Server) => cursor_server(kind),
        (ChannelType::PLAYBACK, Sender::Server) => playback_server(kind),
        (ChannelType::RECORD, Sender::Server) => record_server(kind),
        (ChannelType::RECORD, Sender::Client) => record_client(kind),
        (ChannelType::TUNNEL, Sender::Server) => tunnel_server(kind),
        (ChannelType::TUNNEL, Sender::Client) => tunnel_client(kind),
        (ChannelType::SMARTCARD, _) => smartcard(kind),
        (ChannelType::USBREDIR, _) => vmc(kind),
        (ChannelType::PORT | ChannelType::WEBDAV, from) => port(from, kind),
        (ChannelType(0 | 12..), _) => (FIRST_OF_CHANNEL..LAST).contains(&kind).then_some(0..=MIB),
        _ => None,
    }
}

/// Longest body that a header may announce before we say that the header is damaged. An unknown number is no reason to doubt,
/// as long as it is one that a later protocol could have given out.
pub(super) fn limit(channel_type: Option<u8>, from: Sender, kind: u16) -> Option<u32> {
    if kind == 0 || kind >= LAST {
        return None;
    }
    let Some(channel_type) = channel_type else {
        return Some(if kind < FIRST_OF_CHANNEL {
            base(from, kind).map_or(MIB, |sizes| *sizes.end())
        } else {
            IMAGE
        });
    };
    // A body that is a little too long is malformed, and no reason to doubt the header.
    Some(of(channel_type, from, kind).map_or(16 * MIB, |sizes| (*sizes.end()).max(64 * KIB)))
}

fn base(from: Sender, kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match (from, kind) {
        (Sender::Server, 1) => 4..=4,
        (Sender::Server, 2) => 0..=64 * MIB,
        (Sender::Server, 3) => 8..=8,
        (Sender::Server, 4) => 12..=2 * MIB,
        (Sender::Server, 5) => 1..=1 + 255 * 10,
        (Sender::Server, 6) => 12..=12,
        (Sender::Server, 7) => 24..=64 * KIB,
        (Sender::Server, 8) => 2..=64 * MIB,
        (Sender::Client, 1) => 4..=4,
        (Sender::Client, 2 | 4) => 0..=0,
        (Sender::Client, 3 | 6) => 12..=12,
        (Sender::Client, 5) => 0..=64 * MIB,
        _ => return None,
    })
}

fn main_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 | 111 => 22..=64 * KIB,
        102 | 107 | 112 | 117 | 118 => 0..=0,
        103 => 32..=32,
        104 => 4..=MAX_CHANNELS_LIST,
        105 | 106 | 108 | 110 | 115 => 4..=4,
        109 => 0..=2 * MIB,
        113 => 4..=64 * KIB,
        114 => 16..=16,
        116 => 26..=64 * KIB,
        _ => return None,
    })
}

fn main_client(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 8..=8,
        102..=104 | 109 | 111 => 0..=0,
        105 => 2..=2,
        106 | 108 | 110 => 4..=4,
        107 => 0..=2 * MIB,
        112 => 0..=64 * KIB,
        _ => return None,
    })
}

fn display_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 12..=12,
        102 | 103 | 108 | 126 => 0..=0,
        105 => 2..=MIB,
        106 => 1..=64 * KIB,
        107 => 8..=8,
        122 => 51..=MIB,
        123 => 12..=IMAGE,
        124 => 5..=MIB,
        125 | 315 => 4..=4,
        // A surface, a rectangle and a kind of clipping at least.
        104 | 302..=313 | 318 => 21..=IMAGE,
        314 => 20..=20,
        316 => 36..=IMAGE,
        317 => 4..=64 * KIB,
        319 => 16..=16,
        320..=322 => 0..=64 * KIB,
        _ => return None,
    })
}

fn display_client(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 14..=14,
        102 => 32..=32,
        103 => 1..=1,
        104 => 0..=0,
        105 => 1..=256,
        _ => return None,
    })
}

/// The longer ones are those of 2010.
fn inputs_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 | 102 => 2..=4,
        111 => 0..=0,
        _ => return None,
    })
}

fn inputs_client(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 | 102 => 4..=4,
        103 => 2..=4,
        104 => 1..=256,
        111 => 10..=12,
        112 => 11..=13,
        113 | 114 => 3..=8,
        _ => return None,
    })
}

fn cursor_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 11..=16 * MIB,
        102 | 105 | 108 => 0..=0,
        103 => 7..=16 * MIB,
        104 | 106 => 4..=4,
        107 => 8..=8,
        _ => return None,
    })
}

fn playback_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 4..=MIB,
        102 => 6..=64 * KIB,
        103 => 14..=14,
        104 => 0..=0,
        105 => 1..=1 + 255 * 2,
        106 => 1..=1,
        107 => 4..=4,
        _ => return None,
    })
}

fn record_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 10..=10,
        102 => 0..=0,
        103 => 1..=1 + 255 * 2,
        104 => 1..=1,
        _ => return None,
    })
}

fn record_client(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 4..=MIB,
        102 => 6..=64 * KIB,
        103 => 4..=4,
        _ => return None,
    })
}

fn tunnel_server(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 6..=6,
        102 => 6..=10,
        103 => 10..=10,
        104 | 105 | 107 => 2..=2,
        106 => 2..=2 + MIB,
        108 => 6..=6,
        109 => 4..=4,
        110 => 6..=spice_proto::tunnel::MAX_SERVER_CONTROL,
        _ => return None,
    })
}

fn tunnel_client(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 | 112 => 7..=spice_proto::tunnel::MAX_CLIENT_CONTROL,
        102 | 111 => 4..=4,
        103 | 109 => 6..=6,
        104..=107 | 110 => 2..=2,
        108 => 2..=2 + MIB,
        113 => 13..=13,
        114 | 115 => 4..=254,
        _ => return None,
    })
}

fn smartcard(kind: u16) -> Option<RangeInclusive<u32>> {
    (kind == 101).then_some(8..=MIB)
}

fn vmc(kind: u16) -> Option<RangeInclusive<u32>> {
    Some(match kind {
        101 => 0..=16 * MIB,
        102 => 5..=16 * MIB,
        _ => return None,
    })
}

fn port(from: Sender, kind: u16) -> Option<RangeInclusive<u32>> {
    match (from, kind) {
        (Sender::Server, 201) => Some(9..=64 * KIB),
        (Sender::Server, 202) | (Sender::Client, 201) => Some(1..=1),
        _ => vmc(kind),
    }
}

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// A picture of 8192 by 8192 pixels.
const IMAGE: u32 = 256 * MIB;

/// No channel comes near this number. The highest one in use is 322.
const LAST: u16 = 1000;
