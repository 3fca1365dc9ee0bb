//! The link stage's bytes: header, message, reply, capability words and codes (wire-reference section 1).
//!
//! Every Spice connection opens with one exchange of these, before a ticket and before any channel message. What is
//! here is read before anyone has authenticated, so every size is capped before it is used. The order of the exchange
//! is the business of [`crate::handshake`].

use bitflags::bitflags;
use nom::IResult;
use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{le_u8, le_u32};

/// First four bytes of a link header, in both directions.
pub const MAGIC: [u8; 4] = *b"REDQ";

/// Bytes of a link header: magic, major, minor, size.
pub const HEADER_LEN: usize = 16;

/// Bytes of a link message before its capability words.
pub const MESS_LEN: usize = 18;

/// Bytes of a link reply before its capability words.
pub const REPLY_LEN: usize = 178;

/// Most bytes that may follow a link header. libspice-server's own limit, and ours in both roles.
pub const MAX_SIZE: u32 = 4096;

/// Most capability words of one kind in a link message. libspice-server's own limit.
pub const MAX_CAP_WORDS: u32 = 1024;

/// Bytes of the public key in a link reply: DER SubjectPublicKeyInfo of RSA-1024 with e = 65537.
pub const PUBLIC_KEY_LEN: usize = 162;

/// Bytes of an encrypted ticket: one RSA-1024 block, without a length before it.
pub const TICKET_LEN: usize = 128;

/// Bytes of the authentication mechanism, and of a link result.
pub const WORD_LEN: usize = 4;

/// Authentication mechanism "ticket". The values are the capabilities' bit numbers.
pub const MECHANISM_TICKET: u32 = 1;

/// Authentication mechanism SASL.
pub const MECHANISM_SASL: u32 = 2;

/// Version 2.2, which everything since 2010 speaks: major, minor.
pub const VERSION: (u32, u32) = (2, 2);

/// The development version of early 2010 (wire-reference 6.1, layout A): major, minor.
pub const VERSION_2010: (u32, u32) = (0xffff_fffe, 3);

/// The two link versions that we understand.
///
/// They share the layout of every link-stage structure. What differs comes later: the 2010 version has no capability
/// words, hence no choice of authentication, always the 18-byte data header, and tunnel layout A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkVersion {
    /// Major 2. The minor number is not looked at, as in every known server.
    V2,
    /// Major 0xfffffffe, minor 3.
    V2010,
}

impl LinkVersion {
    /// Major and minor as written on the wire.
    pub const fn numbers(self) -> (u32, u32) {
        match self {
            Self::V2 => VERSION,
            Self::V2010 => VERSION_2010,
        }
    }

    /// The version that a header's numbers name; `None` for one that we do not speak.
    pub const fn from_numbers(major: u32, minor: u32) -> Option<Self> {
        if major == VERSION.0 {
            Some(Self::V2)
        } else if major == VERSION_2010.0 && minor == VERSION_2010.1 {
            Some(Self::V2010)
        } else {
            None
        }
    }
}

/// What a link header, message or reply has wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// Not Spice at all: perhaps TLS or HTTP on a plain port.
    #[error("expected a Spice link header starting with \"REDQ\", got bytes {0:02x?}")]
    Magic([u8; 4]),
    /// A version that we do not speak.
    #[error("expected Spice link version 2.2, got {major}.{minor}")]
    Version {
        /// Major number received.
        major: u32,
        /// Minor number received.
        minor: u32,
    },
    /// The header announces too little or too much.
    #[error("expected {least}..={MAX_SIZE} bytes after the link header, got a size of {size}")]
    Size {
        /// Size received.
        size: u32,
        /// Smallest possible one here.
        least: usize,
    },
    /// More capability words than anyone has.
    #[error(
        "expected at most {MAX_CAP_WORDS} capability words of a kind, got {common} common and {channel} channel words"
    )]
    CapCount {
        /// Number of common words claimed.
        common: u32,
        /// Number of channel words claimed.
        channel: u32,
    },
    /// The capability words do not lie within the message.
    #[error("expected {words} capability words within {size} bytes, got an offset of {offset}")]
    CapOffset {
        /// Offset received.
        offset: u32,
        /// Common and channel words together.
        words: u64,
        /// Bytes that the words must lie in.
        size: usize,
    },
    /// The bytes end before the fixed part does. Only a caller that hands in the wrong piece sees this.
    #[error("the link {0} is cut short")]
    Short(&'static str),
}

impl LinkFault {
    /// The code that libspice-server answers to this fault, or `None` where it closes without a word (wire-reference 1.4).
    pub const fn code(&self) -> Option<LinkError> {
        match self {
            Self::Magic(_) => Some(LinkError::InvalidMagic),
            Self::Version { major: 0, .. } => None,
            Self::Version { .. } => Some(LinkError::VersionMismatch),
            Self::Size { .. } | Self::CapCount { .. } | Self::CapOffset { .. } | Self::Short(_) => {
                Some(LinkError::InvalidData)
            }
        }
    }
}

/// The 16 bytes before a link message or reply (wire-reference 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkHeader {
    /// The version spoken.
    pub version: LinkVersion,
    /// Bytes that follow; within the limits of the direction it was parsed for.
    pub size: u32,
}

impl LinkHeader {
    /// Reads a client's header: the size must be 18..=4096.
    pub fn parse_from_client(bytes: &[u8; HEADER_LEN]) -> Result<Self, LinkFault> {
        Self::parse(bytes, MESS_LEN)
    }

    /// Reads a server's header: the size must be 178..=4096.
    pub fn parse_from_server(bytes: &[u8; HEADER_LEN]) -> Result<Self, LinkFault> {
        Self::parse(bytes, REPLY_LEN)
    }

    /// Order of checks as in libspice-server: magic, version, size.
    fn parse(bytes: &[u8; HEADER_LEN], least: usize) -> Result<Self, LinkFault> {
        let (magic, major, minor, size) = header_fields(bytes).map_err(|_| LinkFault::Short("header"))?.1;
        if magic != MAGIC {
            return Err(LinkFault::Magic(magic));
        }
        let Some(version) = LinkVersion::from_numbers(major, minor) else {
            return Err(LinkFault::Version { major, minor });
        };
        if size > MAX_SIZE || (size as usize) < least {
            return Err(LinkFault::Size { size, least });
        }
        Ok(Self { version, size })
    }

    /// Appends the 16 bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (major, minor) = self.version.numbers();
        out.extend_from_slice(&MAGIC);
        put_u32(out, major);
        put_u32(out, minor);
        put_u32(out, self.size);
    }
}

/// What a client asks for (wire-reference 1.2), without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkMess {
    /// 0 for a new session's main channel, else the session id from MAIN_INIT.
    pub session_id: u32,
    /// Which channel; compare with [`ChannelType`]'s constants. Any number may come.
    pub channel_type: u8,
    /// Instance of that channel, from 0.
    pub channel_id: u8,
    /// Common capability words, bit *b* in word `b / 32`.
    pub common_caps: Vec<u32>,
    /// Channel capability words.
    pub channel_caps: Vec<u32>,
}

impl LinkMess {
    /// Reads what follows a client's link header.
    ///
    /// Limits of libspice-server 0.15.1: at most 1024 words of a kind, which lie behind the fixed part and within the
    /// message. The offset of no words is not looked at; bytes that nothing points at are ignored.
    pub fn parse(body: &[u8]) -> Result<Self, LinkFault> {
        let (_, (session_id, channel_type, channel_id, common, channel, offset)) =
            (le_u32::<_, nom::error::Error<&[u8]>>, le_u8, le_u8, le_u32, le_u32, le_u32)
                .parse_complete(body)
                .map_err(|_| LinkFault::Short("message"))?;
        if common > MAX_CAP_WORDS || channel > MAX_CAP_WORDS {
            return Err(LinkFault::CapCount { common, channel });
        }
        let (common_caps, channel_caps) = caps(body, MESS_LEN, offset, common, channel)?;
        Ok(Self { session_id, channel_type, channel_id, common_caps, channel_caps })
    }

    /// The common capabilities that we know the names of, and the bits we do not.
    pub fn common(&self) -> CommonCaps {
        CommonCaps::from_words(&self.common_caps)
    }

    /// Appends the whole message with its header.
    ///
    /// Only our own few words come in here; of more than 4096 bytes' worth the rest would be left out.
    pub fn write(&self, version: LinkVersion, out: &mut Vec<u8>) {
        let (common, channel) = fitting(&self.common_caps, &self.channel_caps, MESS_LEN);
        LinkHeader { version, size: size_of_parts(MESS_LEN, common, channel) }.write(out);
        put_u32(out, self.session_id);
        out.push(self.channel_type);
        out.push(self.channel_id);
        put_u32(out, count(common));
        put_u32(out, count(channel));
        put_u32(out, size_u32(MESS_LEN));
        common.iter().chain(channel).for_each(|word| put_u32(out, *word));
    }
}

/// What a server answers (wire-reference 1.3), without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkReply {
    /// The channel is there; its key and capabilities.
    Welcome(Welcome),
    /// Refused; the server closes behind it. The rest of such a reply is zero.
    Refused(LinkError),
}

/// A link reply that is no refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// DER key to encrypt the ticket with; all zero where SASL is going to be used.
    pub public_key: Box<[u8; PUBLIC_KEY_LEN]>,
    /// Common capability words of the server: all it has, not the intersection.
    pub common_caps: Vec<u32>,
    /// Channel capability words of the server.
    pub channel_caps: Vec<u32>,
}

impl Welcome {
    /// The common capabilities that we know the names of, and the bits we do not.
    pub fn common(&self) -> CommonCaps {
        CommonCaps::from_words(&self.common_caps)
    }

    /// Whether the key is all zero, by which a server with SASL says that it wants no ticket.
    pub fn has_no_key(&self) -> bool {
        self.public_key.iter().all(|byte| *byte == 0)
    }
}

impl LinkReply {
    /// Reads what follows a server's link header.
    ///
    /// As tolerant as spice-gtk: of a refusal only the code is read, and the words may lie anywhere in the reply
    /// as long as they lie in it.
    pub fn parse(body: &[u8]) -> Result<Self, LinkFault> {
        let short = |_| LinkFault::Short("reply");
        let (rest, code) = le_u32::<_, nom::error::Error<&[u8]>>(body).map_err(short)?;
        let (rest, key) = take::<_, _, nom::error::Error<&[u8]>>(PUBLIC_KEY_LEN)(rest).map_err(short)?;
        let (_, (common, channel, offset)) =
            (le_u32::<_, nom::error::Error<&[u8]>>, le_u32, le_u32).parse_complete(rest).map_err(short)?;
        if let Some(error) = LinkError::from_code(code) {
            return Ok(Self::Refused(error));
        }
        let (common_caps, channel_caps) = caps(body, 0, offset, common, channel)?;
        let public_key = Box::new(*key.first_chunk().ok_or(LinkFault::Short("reply"))?);
        Ok(Self::Welcome(Welcome { public_key, common_caps, channel_caps }))
    }

    /// Appends the whole reply with its header. A refusal is 194 bytes with an offset of 0, as stock servers write it.
    pub fn write(&self, version: LinkVersion, out: &mut Vec<u8>) {
        match self {
            Self::Refused(error) => {
                LinkHeader { version, size: size_u32(REPLY_LEN) }.write(out);
                put_u32(out, error.code());
                out.extend_from_slice(&[0; REPLY_LEN - 4]);
            }
            Self::Welcome(welcome) => {
                let (common, channel) = fitting(&welcome.common_caps, &welcome.channel_caps, REPLY_LEN);
                LinkHeader { version, size: size_of_parts(REPLY_LEN, common, channel) }.write(out);
                put_u32(out, 0);
                out.extend_from_slice(welcome.public_key.as_slice());
                put_u32(out, count(common));
                put_u32(out, count(channel));
                put_u32(out, size_u32(REPLY_LEN));
                common.iter().chain(channel).for_each(|word| put_u32(out, *word));
            }
        }
    }
}

/// Codes of a link reply and of a link result (wire-reference 1.7), other than 0 for "fine".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// 1: SASL was refused.
    Error,
    /// 2: the header does not start with "REDQ".
    InvalidMagic,
    /// 3: a size, a capability count or offset, or the authentication mechanism is wrong.
    InvalidData,
    /// 4: the major version is another one.
    VersionMismatch,
    /// 5: this channel is to be had over TLS only.
    NeedSecured,
    /// 6: this channel is to be had without TLS only.
    NeedUnsecured,
    /// 7: wrong, expired or undecryptable ticket.
    PermissionDenied,
    /// 8: no such session.
    BadConnectionId,
    /// 9: no such channel. libspice-server has it, but in fact closes without a word.
    ChannelNotAvailable,
    /// A code that the protocol does not define. Never 0..=9.
    Other(u32),
}

impl LinkError {
    /// The error that a code names; `None` for 0, which is none.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Error,
            2 => Self::InvalidMagic,
            3 => Self::InvalidData,
            4 => Self::VersionMismatch,
            5 => Self::NeedSecured,
            6 => Self::NeedUnsecured,
            7 => Self::PermissionDenied,
            8 => Self::BadConnectionId,
            9 => Self::ChannelNotAvailable,
            other => Self::Other(other),
        })
    }

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Error => 1,
            Self::InvalidMagic => 2,
            Self::InvalidData => 3,
            Self::VersionMismatch => 4,
            Self::NeedSecured => 5,
            Self::NeedUnsecured => 6,
            Self::PermissionDenied => 7,
            Self::BadConnectionId => 8,
            Self::ChannelNotAvailable => 9,
            Self::Other(code) => code,
        }
    }
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Error => "authentication refused",
            Self::InvalidMagic => "it saw no Spice link header; perhaps it expects TLS, or got it",
            Self::InvalidData => "it found the link message or the authentication mechanism invalid",
            Self::VersionMismatch => "it speaks another version of the protocol",
            Self::NeedSecured => "this channel is to be had over TLS only; use the TLS port",
            Self::NeedUnsecured => "this channel is to be had without TLS only; use the plain port",
            Self::PermissionDenied => "wrong or expired password",
            Self::BadConnectionId => "there is no such session, or it is over",
            Self::ChannelNotAvailable => "it does not have this channel",
            Self::Other(_) => "a code that the protocol does not define",
        };
        write!(f, "{text} (code {})", self.code())
    }
}

/// A channel's type number (wire-reference section 5). Any other number can stand on the wire too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelType(pub u8);

impl ChannelType {
    /// Opens and holds the session.
    pub const MAIN: Self = Self(1);
    /// One head's picture.
    pub const DISPLAY: Self = Self(2);
    /// Keyboard and mouse.
    pub const INPUTS: Self = Self(3);
    /// The pointer's shape.
    pub const CURSOR: Self = Self(4);
    /// Sound to the client.
    pub const PLAYBACK: Self = Self(5);
    /// Sound from the client.
    pub const RECORD: Self = Self(6);
    /// Ours.
    pub const TUNNEL: Self = Self(7);
    /// Smart cards of the client.
    pub const SMARTCARD: Self = Self(8);
    /// USB devices of the client.
    pub const USBREDIR: Self = Self(9);
    /// A byte stream with a name.
    pub const PORT: Self = Self(10);
    /// A folder of the client.
    pub const WEBDAV: Self = Self(11);
}

bitflags! {
    /// Common capabilities (wire-reference 1.5): one word, which every channel exchanges.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommonCaps: u32 {
        /// A 4-byte authentication mechanism precedes the ticket.
        const AUTH_SELECTION = 1 << 0;
        /// The ticket is offered. spice-gtk does not set it as a client; do not require it of one.
        const AUTH_SPICE = 1 << 1;
        /// SASL is offered.
        const AUTH_SASL = 1 << 2;
        /// 6-byte data headers are understood.
        const MINI_HEADER = 1 << 3;
        /// Bits of a later protocol are kept, not lost.
        const _ = !0;
    }
}

impl CommonCaps {
    /// What we offer in both roles, 0x0b: choice of authentication, ticket, mini header.
    pub const OURS: Self = Self::AUTH_SELECTION.union(Self::AUTH_SPICE).union(Self::MINI_HEADER);

    /// From the first common word; a missing word reads as zero, further ones say nothing that we know.
    pub fn from_words(words: &[u32]) -> Self {
        Self::from_bits_retain(words.first().copied().unwrap_or(0))
    }
}

bitflags! {
    /// Capabilities of the main channel (wire-reference 1.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MainCaps: u32 {
        /// Semi-seamless migration.
        const SEMI_SEAMLESS_MIGRATE = 1 << 0;
        /// NAME and UUID messages are understood.
        const NAME_AND_UUID = 1 << 1;
        /// AGENT_CONNECTED_TOKENS is understood.
        const AGENT_CONNECTED_TOKENS = 1 << 2;
        /// Seamless migration.
        const SEAMLESS_MIGRATE = 1 << 3;
        /// Bits of a later protocol are kept, not lost.
        const _ = !0;
    }
}

bitflags! {
    /// Capabilities of the tunnel channel. All are ours: the historical channel had none, so that a peer without them gets
    /// the historical protocol exactly. One is in force when both sides have it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TunnelCaps: u32 {
        /// More than 20 sockets, 2048-byte messages and windows of 80 and 60 tokens are borne.
        const EXTENDED = 1 << 0;
        /// The client may send SOCKET_RESET (110).
        const RESET = 1 << 1;
        /// The server implements SERVICE_REMOVE, for which historical servers drop the channel.
        const SERVICE_REMOVE = 1 << 2;
        /// The client may send PROBE (111), which the server answers by PROBE_ACK (109) at once.
        const PROBE = 1 << 3;
        /// The client may send SERVICE_INFO (112).
        const SERVICE_INFO = 1 << 4;
        /// The client may send DOMAIN_ADD (114) and DOMAIN_REMOVE (115), and the server NAME_QUERY (110), which the client answers
        /// by NAME_ANSWER (113). Without effect unless [`Self::SERVICE_INFO`] is in force too.
        const NAMES = 1 << 5;
        /// Bits of a later version are kept, not lost.
        const _ = !0;
    }
}

impl TunnelCaps {
    /// All that this code implements.
    pub const OURS: Self = Self::EXTENDED
        .union(Self::RESET)
        .union(Self::SERVICE_REMOVE)
        .union(Self::PROBE)
        .union(Self::SERVICE_INFO)
        .union(Self::NAMES);

    /// From the first channel word; a missing word reads as zero.
    pub fn from_words(words: &[u32]) -> Self {
        Self::from_bits_retain(words.first().copied().unwrap_or(0))
    }
}

/// Writes `value` little-endian, as everything in Spice.
pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

type HeaderFields = ([u8; 4], u32, u32, u32);

fn header_fields(bytes: &[u8]) -> IResult<&[u8], HeaderFields> {
    let magic = nom::combinator::map_opt(take(4usize), |raw: &[u8]| raw.first_chunk::<4>().copied());
    (magic, le_u32, le_u32, le_u32).parse_complete(bytes)
}

/// Finds the capability words, which stand `offset` bytes from the start of `body`, common ones first.
fn caps(
    body: &[u8],
    least_offset: usize,
    offset: u32,
    common: u32,
    channel: u32,
) -> Result<(Vec<u32>, Vec<u32>), LinkFault> {
    let words = u64::from(common) + u64::from(channel);
    if words == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let fault = LinkFault::CapOffset { offset, words, size: body.len() };
    let start = offset as usize;
    let end = u64::from(offset) + words * 4;
    if start < least_offset || end > body.len() as u64 {
        return Err(fault);
    }
    let (_, behind) = body.split_at_checked(start).ok_or(fault)?;
    let (rest, common_caps) = take_words(behind, common).map_err(|_| fault)?;
    let (_, channel_caps) = take_words(rest, channel).map_err(|_| fault)?;
    Ok((common_caps, channel_caps))
}

/// Only after the caller has seen that so many words are there.
fn take_words(bytes: &[u8], number: u32) -> IResult<&[u8], Vec<u32>> {
    nom::multi::count(le_u32, number as usize).parse_complete(bytes)
}

/// Our words, cut to what one message may hold.
fn fitting<'a>(common: &'a [u32], channel: &'a [u32], fixed: usize) -> (&'a [u32], &'a [u32]) {
    let room = (MAX_SIZE as usize - fixed) / 4;
    let common = common.get(..room).unwrap_or(common);
    let channel = channel.get(..room - common.len()).unwrap_or(channel);
    (common, channel)
}

fn size_of_parts(fixed: usize, common: &[u32], channel: &[u32]) -> u32 {
    size_u32(fixed + 4 * (common.len() + channel.len()))
}

fn count(words: &[u32]) -> u32 {
    size_u32(words.len())
}

/// Of our own lengths only, which [`fitting`] keeps far below the cap.
fn size_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(MAX_SIZE)
}
