//! Messages of the main channel (wire reference 3), and the change that a proxy makes to one of them.

use std::borrow::Cow;

use nom::Parser;
use nom::bytes::complete::take;
use nom::combinator::rest;
use nom::multi::count;
use nom::number::complete::{be_u128, le_u8, le_u16, le_u32, le_u64};

use crate::error::{ParseError, Problem};
use crate::parse::{
    Fault, NUL, Parsed, Pointed, U8, U16, U32, U64, all_behind, pointed_tail, put_u16, put_u32, put_u64,
    to_usize, whole,
};

/// Message from the server on the main channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MainServerMessage<'a> {
    /// 101 MIGRATE_BEGIN: connect to another host too.
    MigrateBegin(MigrateTarget<'a>),
    /// 102 MIGRATE_CANCEL.
    MigrateCancel,
    /// 103 INIT, the first message of a session.
    Init(Init),
    /// 104 CHANNELS_LIST: answers ATTACH_CHANNELS, and adds to what earlier lists said.
    ChannelsList {
        /// At most [`MAX_CHANNELS`]. Never holds main.
        channels: Vec<ChannelEntry>,
    },
    /// 105 MOUSE_MODE.
    MouseMode {
        /// What the server can do.
        supported: MouseModes,
        /// What it does.
        current: MouseModes,
    },
    /// 106 MULTI_MEDIA_TIME.
    MultiMediaTime {
        /// Milliseconds.
        time: u32,
    },
    /// 107 AGENT_CONNECTED: the guest agent is there.
    AgentConnected,
    /// 108 AGENT_DISCONNECTED: it is gone.
    AgentDisconnected {
        /// A link error code (wire reference 1.7); unchecked.
        error: u32,
    },
    /// 109 AGENT_DATA: from the guest agent.
    AgentData {
        /// The agent's own protocol.
        data: &'a [u8],
    },
    /// 110 AGENT_TOKEN: more credit for the client's AGENT_DATA.
    AgentToken {
        /// How many.
        tokens: u32,
    },
    /// 111 MIGRATE_SWITCH_HOST: connect to another host instead.
    MigrateSwitchHost(MigrateTarget<'a>),
    /// 112 MIGRATE_END.
    MigrateEnd,
    /// 113 NAME of the VM.
    Name {
        /// Without the NUL behind it.
        name: &'a [u8],
    },
    /// 114 UUID of the VM.
    Uuid {
        /// In the order of its text form.
        uuid: [u8; 16],
    },
    /// 115 AGENT_CONNECTED_TOKENS: AGENT_CONNECTED with the client's credit.
    AgentConnectedTokens {
        /// How many AGENT_DATA the client may send.
        tokens: u32,
    },
    /// 116 MIGRATE_BEGIN_SEAMLESS.
    MigrateBeginSeamless {
        /// The other host.
        target: MigrateTarget<'a>,
        /// Version of the migration protocol at this host.
        source_version: u32,
    },
    /// 117 MIGRATE_DST_SEAMLESS_ACK.
    MigrateDstSeamlessAck,
    /// 118 MIGRATE_DST_SEAMLESS_NACK.
    MigrateDstSeamlessNack,
}

/// Message from the client on the main channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainClientMessage<'a> {
    /// 101 CLIENT_INFO. Nobody uses it.
    ClientInfo {
        /// Bytes.
        cache_size: u64,
    },
    /// 102 MIGRATE_CONNECTED: the other host was reached.
    MigrateConnected,
    /// 103 MIGRATE_CONNECT_ERROR: it was not.
    MigrateConnectError,
    /// 104 ATTACH_CHANNELS: asks for CHANNELS_LIST.
    AttachChannels,
    /// 105 MOUSE_MODE_REQUEST.
    MouseModeRequest {
        /// The wanted one.
        mode: MouseModes,
    },
    /// 106 AGENT_START: the client speaks to the agent.
    AgentStart {
        /// How many AGENT_DATA the server may send.
        tokens: u32,
    },
    /// 107 AGENT_DATA: for the guest agent.
    AgentData {
        /// The agent's own protocol.
        data: &'a [u8],
    },
    /// 108 AGENT_TOKEN: more credit for the server's AGENT_DATA.
    AgentToken {
        /// How many.
        tokens: u32,
    },
    /// 109 MIGRATE_END.
    MigrateEnd,
    /// 110 MIGRATE_DST_DO_SEAMLESS.
    MigrateDstDoSeamless {
        /// Version of the migration protocol at the host that the session comes from.
        source_version: u32,
    },
    /// 111 MIGRATE_CONNECTED_SEAMLESS.
    MigrateConnectedSeamless,
    /// 112 QUALITY_INDICATOR.
    QualityIndicator {
        /// Opaque.
        data: &'a [u8],
    },
}

/// What INIT says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Init {
    /// What the session's other links have to name (wire reference 4).
    pub session_id: u32,
    /// How many display channels there might be.
    pub display_channels_hint: u32,
    /// What the server can do.
    pub supported_mouse_modes: MouseModes,
    /// What it does.
    pub current_mouse_mode: MouseModes,
    /// Whether the guest agent is there. On the wire, anything but 0 says so.
    pub agent_connected: bool,
    /// How many AGENT_DATA the client may send.
    pub agent_tokens: u32,
    /// Milliseconds.
    pub multi_media_time: u32,
    /// Video memory, bytes.
    pub ram_hint: u32,
}

/// A host that a session can move to. Neither text has a NUL in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MigrateTarget<'a> {
    /// Port for plain connections, 0 for none.
    pub port: u16,
    /// Port for TLS, 0 for none.
    pub secure_port: u16,
    /// Name or address.
    pub host: &'a [u8],
    /// Subject that its certificate must have; empty for none.
    pub cert_subject: &'a [u8],
}

/// A channel that a client may link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelEntry {
    /// Type (wire reference 5).
    pub channel_type: u8,
    /// Which one of that type.
    pub channel_id: u8,
}

bitflags::bitflags! {
    /// Mouse modes. Bits that are not known are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MouseModes: u32 {
        /// Relative motion, cursor drawn by the server.
        const SERVER = 1 << 0;
        /// Absolute position.
        const CLIENT = 1 << 1;
    }
}

/// Gives the body of a CHANNELS_LIST with `entry` at its end, or the same body if it is in the list already. Replacing the
/// body so adds no message, hence changes no serial and no count.
///
/// # Errors
///
/// A body that is not a CHANNELS_LIST. A proxy passes it on as it is.
pub fn add_channel(body: &[u8], entry: ChannelEntry) -> Result<Cow<'_, [u8]>, ParseError> {
    let mut channels = whole(LIST_NAME, body, channels)?;
    if channels.contains(&entry) {
        return Ok(Cow::Borrowed(body));
    }
    channels.push(entry);
    let list = MainServerMessage::ChannelsList { channels };
    let mut out = Vec::with_capacity(list.body_len());
    list.write_body(&mut out);
    Ok(Cow::Owned(out))
}

impl<'a> MainServerMessage<'a> {
    /// Parses the body of a message from the server. `None`: the main channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as section 3 has it.
    pub fn parse(kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        whole(name, body, |input| match kind {
            MIGRATE_BEGIN => {
                migrate_target(body, nothing).map(|(rest, (target, ()))| (rest, Self::MigrateBegin(target)))
            }
            MIGRATE_CANCEL => Ok((input, Self::MigrateCancel)),
            INIT => init.map(Self::Init).parse(input),
            CHANNELS_LIST => channels.map(|channels| Self::ChannelsList { channels }).parse(input),
            MOUSE_MODE => (mouse_mode, mouse_mode)
                .map(|(supported, current)| Self::MouseMode { supported, current })
                .parse(input),
            MULTI_MEDIA_TIME => le_u32.map(|time| Self::MultiMediaTime { time }).parse(input),
            AGENT_CONNECTED => Ok((input, Self::AgentConnected)),
            AGENT_DISCONNECTED => le_u32.map(|error| Self::AgentDisconnected { error }).parse(input),
            SERVER_AGENT_DATA => rest.map(|data| Self::AgentData { data }).parse(input),
            SERVER_AGENT_TOKEN => le_u32.map(|tokens| Self::AgentToken { tokens }).parse(input),
            MIGRATE_SWITCH_HOST => migrate_target(body, nothing)
                .map(|(rest, (target, ()))| (rest, Self::MigrateSwitchHost(target))),
            SERVER_MIGRATE_END => Ok((input, Self::MigrateEnd)),
            NAME => name_text.map(|name| Self::Name { name }).parse(input),
            UUID => be_u128.map(|uuid| Self::Uuid { uuid: uuid.to_be_bytes() }).parse(input),
            AGENT_CONNECTED_TOKENS => le_u32.map(|tokens| Self::AgentConnectedTokens { tokens }).parse(input),
            MIGRATE_BEGIN_SEAMLESS => migrate_target(body, le_u32).map(|(rest, (target, source_version))| {
                (rest, Self::MigrateBeginSeamless { target, source_version })
            }),
            MIGRATE_DST_SEAMLESS_ACK => Ok((input, Self::MigrateDstSeamlessAck)),
            // MIGRATE_DST_SEAMLESS_NACK, the last number that has a name.
            _ => Ok((input, Self::MigrateDstSeamlessNack)),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::MigrateBegin(_) => MIGRATE_BEGIN,
            Self::MigrateCancel => MIGRATE_CANCEL,
            Self::Init(_) => INIT,
            Self::ChannelsList { .. } => CHANNELS_LIST,
            Self::MouseMode { .. } => MOUSE_MODE,
            Self::MultiMediaTime { .. } => MULTI_MEDIA_TIME,
            Self::AgentConnected => AGENT_CONNECTED,
            Self::AgentDisconnected { .. } => AGENT_DISCONNECTED,
            Self::AgentData { .. } => SERVER_AGENT_DATA,
            Self::AgentToken { .. } => SERVER_AGENT_TOKEN,
            Self::MigrateSwitchHost(_) => MIGRATE_SWITCH_HOST,
            Self::MigrateEnd => SERVER_MIGRATE_END,
            Self::Name { .. } => NAME,
            Self::Uuid { .. } => UUID,
            Self::AgentConnectedTokens { .. } => AGENT_CONNECTED_TOKENS,
            Self::MigrateBeginSeamless { .. } => MIGRATE_BEGIN_SEAMLESS,
            Self::MigrateDstSeamlessAck => MIGRATE_DST_SEAMLESS_ACK,
            Self::MigrateDstSeamlessNack => MIGRATE_DST_SEAMLESS_NACK,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self) -> usize {
        match self {
            Self::MigrateBegin(target) | Self::MigrateSwitchHost(target) => target.len(0),
            Self::MigrateBeginSeamless { target, .. } => target.len(U32),
            Self::Init(_) => INIT_LEN,
            Self::ChannelsList { channels } => U32 + channels.len().min(MAX_CHANNELS) * (U8 + U8),
            Self::MouseMode { .. } => U16 + U16,
            Self::MultiMediaTime { .. }
            | Self::AgentDisconnected { .. }
            | Self::AgentToken { .. }
            | Self::AgentConnectedTokens { .. } => U32,
            Self::AgentData { data } => data.len(),
            Self::Name { name } => U32.saturating_add(name.len()).saturating_add(NUL),
            Self::Uuid { uuid } => uuid.len(),
            Self::MigrateCancel
            | Self::AgentConnected
            | Self::MigrateEnd
            | Self::MigrateDstSeamlessAck
            | Self::MigrateDstSeamlessNack => 0,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s. Channels beyond [`MAX_CHANNELS`] are
    /// left out.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::MigrateBegin(target) | Self::MigrateSwitchHost(target) => target.write(None, out),
            Self::MigrateBeginSeamless { target, source_version } => target.write(Some(*source_version), out),
            Self::Init(init) => {
                for field in [
                    init.session_id,
                    init.display_channels_hint,
                    init.supported_mouse_modes.bits(),
                    init.current_mouse_mode.bits(),
                    u32::from(init.agent_connected),
                    init.agent_tokens,
                    init.multi_media_time,
                    init.ram_hint,
                ] {
                    put_u32(out, field);
                }
            }
            Self::ChannelsList { channels } => {
                let count = channels.len().min(MAX_CHANNELS);
                put_u32(out, length(count));
                for entry in channels.iter().take(count) {
                    out.extend_from_slice(&[entry.channel_type, entry.channel_id]);
                }
            }
            Self::MouseMode { supported, current } => {
                put_u16(out, supported.low());
                put_u16(out, current.low());
            }
            Self::MultiMediaTime { time: number }
            | Self::AgentDisconnected { error: number }
            | Self::AgentToken { tokens: number }
            | Self::AgentConnectedTokens { tokens: number } => put_u32(out, *number),
            Self::AgentData { data } => out.extend_from_slice(data),
            Self::Name { name } => {
                put_u32(out, length(name.len().saturating_add(NUL)));
                out.extend_from_slice(name);
                out.push(0);
            }
            Self::Uuid { uuid } => out.extend_from_slice(uuid),
            Self::MigrateCancel
            | Self::AgentConnected
            | Self::MigrateEnd
            | Self::MigrateDstSeamlessAck
            | Self::MigrateDstSeamlessNack => {}
        }
    }

    /// `spice.proto`'s name of the message, in lower case.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            MIGRATE_BEGIN => "migrate_begin",
            MIGRATE_CANCEL => "migrate_cancel",
            INIT => "init",
            CHANNELS_LIST => LIST_NAME,
            MOUSE_MODE => "mouse_mode",
            MULTI_MEDIA_TIME => "multi_media_time",
            AGENT_CONNECTED => "agent_connected",
            AGENT_DISCONNECTED => "agent_disconnected",
            SERVER_AGENT_DATA => "agent_data",
            SERVER_AGENT_TOKEN => "agent_token",
            MIGRATE_SWITCH_HOST => "migrate_switch_host",
            SERVER_MIGRATE_END => "migrate_end",
            NAME => "name",
            UUID => "uuid",
            AGENT_CONNECTED_TOKENS => "agent_connected_tokens",
            MIGRATE_BEGIN_SEAMLESS => "migrate_begin_seamless",
            MIGRATE_DST_SEAMLESS_ACK => "migrate_dst_seamless_ack",
            MIGRATE_DST_SEAMLESS_NACK => "migrate_dst_seamless_nack",
            _ => return None,
        })
    }
}

impl<'a> MainClientMessage<'a> {
    /// Parses the body of a message from the client. `None`: the main channel has no message of that number.
    ///
    /// # Errors
    ///
    /// A body that is not exactly as section 3 has it.
    pub fn parse(kind: u16, body: &'a [u8]) -> Result<Option<Self>, ParseError> {
        let Some(name) = Self::name_of(kind) else { return Ok(None) };
        whole(name, body, |input| match kind {
            CLIENT_INFO => le_u64.map(|cache_size| Self::ClientInfo { cache_size }).parse(input),
            MIGRATE_CONNECTED => Ok((input, Self::MigrateConnected)),
            MIGRATE_CONNECT_ERROR => Ok((input, Self::MigrateConnectError)),
            ATTACH_CHANNELS => Ok((input, Self::AttachChannels)),
            MOUSE_MODE_REQUEST => mouse_mode.map(|mode| Self::MouseModeRequest { mode }).parse(input),
            AGENT_START => le_u32.map(|tokens| Self::AgentStart { tokens }).parse(input),
            CLIENT_AGENT_DATA => rest.map(|data| Self::AgentData { data }).parse(input),
            CLIENT_AGENT_TOKEN => le_u32.map(|tokens| Self::AgentToken { tokens }).parse(input),
            CLIENT_MIGRATE_END => Ok((input, Self::MigrateEnd)),
            MIGRATE_DST_DO_SEAMLESS => {
                le_u32.map(|source_version| Self::MigrateDstDoSeamless { source_version }).parse(input)
            }
            MIGRATE_CONNECTED_SEAMLESS => Ok((input, Self::MigrateConnectedSeamless)),
            // QUALITY_INDICATOR, the last number that has a name.
            _ => rest.map(|data| Self::QualityIndicator { data }).parse(input),
        })
        .map(Some)
    }

    /// The message's number.
    pub fn kind(&self) -> u16 {
        match self {
            Self::ClientInfo { .. } => CLIENT_INFO,
            Self::MigrateConnected => MIGRATE_CONNECTED,
            Self::MigrateConnectError => MIGRATE_CONNECT_ERROR,
            Self::AttachChannels => ATTACH_CHANNELS,
            Self::MouseModeRequest { .. } => MOUSE_MODE_REQUEST,
            Self::AgentStart { .. } => AGENT_START,
            Self::AgentData { .. } => CLIENT_AGENT_DATA,
            Self::AgentToken { .. } => CLIENT_AGENT_TOKEN,
            Self::MigrateEnd => CLIENT_MIGRATE_END,
            Self::MigrateDstDoSeamless { .. } => MIGRATE_DST_DO_SEAMLESS,
            Self::MigrateConnectedSeamless => MIGRATE_CONNECTED_SEAMLESS,
            Self::QualityIndicator { .. } => QUALITY_INDICATOR,
        }
    }

    /// How many bytes [`write_body`](Self::write_body) appends.
    pub fn body_len(&self) -> usize {
        match self {
            Self::ClientInfo { .. } => U64,
            Self::MouseModeRequest { .. } => U16,
            Self::AgentStart { .. } | Self::AgentToken { .. } | Self::MigrateDstDoSeamless { .. } => U32,
            Self::AgentData { data } | Self::QualityIndicator { data } => data.len(),
            Self::MigrateConnected
            | Self::MigrateConnectError
            | Self::AttachChannels
            | Self::MigrateEnd
            | Self::MigrateConnectedSeamless => 0,
        }
    }

    /// Appends the body; the header is [`put_header`](crate::frame::put_header)'s.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::ClientInfo { cache_size } => put_u64(out, cache_size),
            Self::MouseModeRequest { mode } => put_u16(out, mode.low()),
            Self::AgentStart { tokens: number }
            | Self::AgentToken { tokens: number }
            | Self::MigrateDstDoSeamless { source_version: number } => put_u32(out, number),
            Self::AgentData { data } | Self::QualityIndicator { data } => out.extend_from_slice(data),
            Self::MigrateConnected
            | Self::MigrateConnectError
            | Self::AttachChannels
            | Self::MigrateEnd
            | Self::MigrateConnectedSeamless => {}
        }
    }

    /// `spice.proto`'s name of the message, in lower case.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.kind()).unwrap_or_default()
    }

    /// The name of the message with this number.
    pub fn name_of(kind: u16) -> Option<&'static str> {
        Some(match kind {
            CLIENT_INFO => "client_info",
            MIGRATE_CONNECTED => "migrate_connected",
            MIGRATE_CONNECT_ERROR => "migrate_connect_error",
            ATTACH_CHANNELS => "attach_channels",
            MOUSE_MODE_REQUEST => "mouse_mode_request",
            AGENT_START => "agent_start",
            CLIENT_AGENT_DATA => "agent_data",
            CLIENT_AGENT_TOKEN => "agent_token",
            CLIENT_MIGRATE_END => "migrate_end",
            MIGRATE_DST_DO_SEAMLESS => "migrate_dst_do_seamless",
            MIGRATE_CONNECTED_SEAMLESS => "migrate_connected_seamless",
            QUALITY_INDICATOR => "quality_indicator",
            _ => return None,
        })
    }
}

impl MouseModes {
    /// What of it MOUSE_MODE and MOUSE_MODE_REQUEST have room for.
    fn low(self) -> u16 {
        u16::try_from(self.bits() & u32::from(u16::MAX)).unwrap_or_default()
    }
}

impl MigrateTarget<'_> {
    /// Length of a message with `more` bytes in its fixed part.
    fn len(&self, more: usize) -> usize {
        let subject =
            if self.cert_subject.is_empty() { 0 } else { self.cert_subject.len().saturating_add(NUL) };
        let host = self.host.len().saturating_add(NUL);
        TARGET_LEN.saturating_add(more).saturating_add(host).saturating_add(subject)
    }

    fn write(&self, source_version: Option<u32>, out: &mut Vec<u8>) {
        put_u16(out, self.port);
        put_u16(out, self.secure_port);
        let host_at = TARGET_LEN + source_version.map_or(0, |_| U32);
        let host_size = self.host.len().saturating_add(NUL);
        let (subject_at, subject_size) = match self.cert_subject.len() {
            0 => (0, 0),
            n => (host_at.saturating_add(host_size), n.saturating_add(NUL)),
        };
        for number in [host_size, host_at, subject_size, subject_at] {
            put_u32(out, length(number));
        }
        if let Some(version) = source_version {
            put_u32(out, version);
        }
        for text in [self.host, self.cert_subject].into_iter().take(if subject_size == 0 { 1 } else { 2 }) {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
}

fn init(input: &[u8]) -> Parsed<'_, Init> {
    (le_u32, le_u32, le_u32, le_u32, le_u32, le_u32, le_u32, le_u32)
        .map(
            |(session_id, display_channels_hint, supported, current, agent, agent_tokens, time, ram_hint)| {
                Init {
                    session_id,
                    display_channels_hint,
                    supported_mouse_modes: MouseModes::from_bits_retain(supported),
                    current_mouse_mode: MouseModes::from_bits_retain(current),
                    agent_connected: agent != 0,
                    agent_tokens,
                    multi_media_time: time,
                    ram_hint,
                }
            },
        )
        .parse(input)
}

fn channels(input: &[u8]) -> Parsed<'_, Vec<ChannelEntry>> {
    let (input, entries) = le_u32.map(to_usize).parse(input)?;
    if entries > MAX_CHANNELS {
        return Err(Fault::fatal(Problem::TooLong { field: "list", got: entries, limit: MAX_CHANNELS }));
    }
    count((le_u8, le_u8).map(|(channel_type, channel_id)| ChannelEntry { channel_type, channel_id }), entries)
        .parse(input)
}

fn mouse_mode(input: &[u8]) -> Parsed<'_, MouseModes> {
    le_u16.map(|bits| MouseModes::from_bits_retain(u32::from(bits))).parse(input)
}

/// The NUL that the length counts may be missing.
fn name_text(input: &[u8]) -> Parsed<'_, &[u8]> {
    let (input, length) = le_u32(input)?;
    take(to_usize(length)).map(|name: &[u8]| name.strip_suffix(b"\0").unwrap_or(name)).parse(input)
}

/// A target, whose fixed part `more` ends.
fn migrate_target<'a, T>(
    body: &'a [u8],
    more: impl FnOnce(&'a [u8]) -> Parsed<'a, T>,
) -> Parsed<'a, (MigrateTarget<'a>, T)> {
    let (input, (port, secure_port, host_size, host_at, subject_size, subject_at)) =
        (le_u16, le_u16, le_u32, le_u32, le_u32, le_u32).parse(body)?;
    let (texts, more) = more(input)?;
    let fixed = body.len().saturating_sub(texts.len());
    let (host, host_place) = sized_text("host", body, fixed, host_at, host_size)?;
    let (cert_subject, subject_place) = match subject_size {
        0 => (&[][..], host_place),
        size => sized_text("cert_subject", body, fixed, subject_at, size)?,
    };
    let unread = all_behind(body, fixed, [host_place, subject_place])?;
    Ok((unread, (MigrateTarget { port, secure_port, host, cert_subject }, more)))
}

fn nothing(input: &[u8]) -> Parsed<'_, ()> {
    Ok((input, ()))
}

/// The string of `size` bytes at `offset`, of which only the last one is a NUL.
fn sized_text<'a>(
    field: &'static str,
    body: &'a [u8],
    fixed: usize,
    offset: u32,
    size: u32,
) -> Result<(&'a [u8], Pointed), nom::Err<Fault<'a>>> {
    let tail = pointed_tail(field, body, fixed, offset)?;
    let (_, text) = take(to_usize(size))(tail)?;
    match text.split_last() {
        Some((0, text)) if !text.contains(&0) => {
            let end = to_usize(offset).saturating_add(to_usize(size));
            Ok((text, Pointed { field, at: offset, end }))
        }
        _ => Err(Fault::fatal(Problem::Unterminated { field })),
    }
}

/// A length as the wire has it. One that does not fit would not fit the header's size either.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Most channels in a list: every type with every number.
pub const MAX_CHANNELS: usize = 65536;

/// Longest body of a CHANNELS_LIST that parses, for readers that buffer nothing else.
pub const MAX_CHANNELS_LIST: u32 = 4 + 2 * 65536;

/// Number of the server's INIT, whose body is [`INIT_LEN`] bytes long.
pub const INIT: u16 = 103;

/// Length of INIT's body, bytes.
pub const INIT_LEN: usize = 8 * U32;

/// Number of the server's CHANNELS_LIST.
pub const CHANNELS_LIST: u16 = 104;

/// Number of the client's ATTACH_CHANNELS.
pub const ATTACH_CHANNELS: u16 = 104;

const MIGRATE_BEGIN: u16 = 101;
const MIGRATE_CANCEL: u16 = 102;
const MOUSE_MODE: u16 = 105;
const MULTI_MEDIA_TIME: u16 = 106;
const AGENT_CONNECTED: u16 = 107;
const AGENT_DISCONNECTED: u16 = 108;
const SERVER_AGENT_DATA: u16 = 109;
const SERVER_AGENT_TOKEN: u16 = 110;
const MIGRATE_SWITCH_HOST: u16 = 111;
const SERVER_MIGRATE_END: u16 = 112;
const NAME: u16 = 113;
const UUID: u16 = 114;
const AGENT_CONNECTED_TOKENS: u16 = 115;
const MIGRATE_BEGIN_SEAMLESS: u16 = 116;
const MIGRATE_DST_SEAMLESS_ACK: u16 = 117;
const MIGRATE_DST_SEAMLESS_NACK: u16 = 118;

const CLIENT_INFO: u16 = 101;
const MIGRATE_CONNECTED: u16 = 102;
const MIGRATE_CONNECT_ERROR: u16 = 103;
const MOUSE_MODE_REQUEST: u16 = 105;
const AGENT_START: u16 = 106;
const CLIENT_AGENT_DATA: u16 = 107;
const CLIENT_AGENT_TOKEN: u16 = 108;
const CLIENT_MIGRATE_END: u16 = 109;
const MIGRATE_DST_DO_SEAMLESS: u16 = 110;
const MIGRATE_CONNECTED_SEAMLESS: u16 = 111;
const QUALITY_INDICATOR: u16 = 112;

const LIST_NAME: &str = "channels_list";

/// Fixed part of a message with a target: two ports, two sizes, two offsets.
const TARGET_LEN: usize = 2 * U16 + 4 * U32;

#[cfg(test)]
mod tests;
