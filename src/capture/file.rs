//! Capture files: the packets of a pcap or pcapng file, or of a pipe that one comes through.
//!
//! The formats' framing is pcap-file's, over a buffer of our own. Its checks of the contents are not used, because they
//! refuse files that programs do write: packets longer than the snap length, lengths on the wire that are too small,
//! comments that are not UTF-8.

mod buffer;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use pcap_file::Endianness;
use pcap_file::pcap::{PcapHeader, PcapParseError, PcapParser, PcapTsResolution};
use pcap_file::pcapng::blocks::{
    ENHANCED_PACKET_BLOCK, INTERFACE_DESCRIPTION_BLOCK, PACKET_BLOCK, SECTION_HEADER_BLOCK,
    SIMPLE_PACKET_BLOCK,
};
use pcap_file::pcapng::{PcapNgParseError, PcapNgParser, PcapNgState, RawBlock};

use buffer::Buffer;

/// A packet as a capture file holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its number in the file, from 1, as Wireshark counts.
    pub number: u64,
    /// When it was captured, since the Unix epoch.
    pub time: Duration,
    /// What stands at its start: a LINKTYPE number of tcpdump.org's list.
    pub link_type: u32,
    /// How long it was on the wire, bytes. More than `bytes` has if the capture cut it off.
    pub original_len: usize,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

/// Most bytes that are read of one packet. What tcpdump and Wireshark take by default is a quarter of it.
pub const MAX_PACKET: usize = 1 << 20;
/// Longest block of a pcapng file, the same as Wireshark's.
pub const MAX_BLOCK: usize = 16 << 20;
/// Most bytes of section header and interface descriptions in one section of a pcapng file; they are kept while it lasts.
pub const MAX_DESCRIPTIONS: usize = 1 << 20;

/// What is wrong with a capture file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the capture: {0}")]
    Io(io::Error),
    /// There is not a single byte in it.
    #[error("the capture is empty: expected the header of a pcap or pcapng file")]
    Empty,
    /// It does not begin like one.
    #[error("not a capture: expected the magic number of pcap or pcapng, got {0:02x?}")]
    NotACapture([u8; 4]),
    /// It ends within something.
    #[error(
        "the capture is cut short: {what} at byte {at} should have {expected} bytes, but the file ends after {got}"
    )]
    CutShort {
        /// Packet 7, the file header, ...
        what: String,
        /// Where in the file it begins.
        at: u64,
        /// Its length as far as it is known.
        expected: usize,
        /// How much of it there is.
        got: usize,
    },
    /// Something in it cannot be.
    #[error("the capture is damaged: {what} at byte {at}: {wrong}")]
    Damaged {
        /// Packet 7, the file header, ...
        what: String,
        /// Where in the file it begins.
        at: u64,
        /// What was expected, and what came.
        wrong: String,
    },
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the packets of a capture, one after the other.
///
/// Memory: a buffer of 256 KiB, which grows to [`MAX_BLOCK`] where a block is really that long, and the descriptions of
/// interfaces, at most [`MAX_DESCRIPTIONS`] bytes of the file. A live capture's packets come out as soon as they are read.
pub struct Reader {
    buffer: Buffer,
    format: Format,
    /// Packets so far.
    packets: u64,
    /// An error was returned: nothing more comes.
    failed: bool,
}

enum Format {
    Pcap(PcapParser),
    PcapNg {
        parser: PcapNgParser,
        /// Bytes of this section's header and interface descriptions, all of which the parser keeps.
        kept: usize,
        /// Of the packet before: a simple packet block has no time of its own.
        time: Duration,
    },
}

impl Reader {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::new(File::open(path)?)
    }

    /// Takes a file, a pipe or whatever else, and reads what stands before the first packet.
    pub fn new(source: impl Read + Send + 'static) -> Result<Self, FileError> {
        let mut buffer = Buffer::new(Box::new(source));
        let format = match buffer.at_least(4)? {
            [] => return Err(FileError::Empty),
            [0x0A, 0x0D, 0x0D, 0x0A, ..] => {
                let parser = pcapng_header(&mut buffer)?;
                Format::PcapNg { parser, kept: 0, time: Duration::ZERO }
            }
            [0xA1, 0xB2, 0xC3, 0xD4, ..]
            | [0xA1, 0xB2, 0x3C, 0x4D, ..]
            | [0xD4, 0xC3, 0xB2, 0xA1, ..]
            | [0x4D, 0x3C, 0xB2, 0xA1, ..] => Format::Pcap(pcap_header(&mut buffer)?),
            &[a, b, c, d, ..] => return Err(FileError::NotACapture([a, b, c, d])),
            short => {
                let got = short.len();
                return Err(FileError::CutShort { what: "the file header".into(), at: 0, expected: 24, got });
            }
        };
        Ok(Self { buffer, format, packets: 0, failed: false })
    }

    /// The next packet; `None` at the clean end of the file. Behind an error nothing more comes.
    #[expect(
        clippy::should_implement_trait,
        reason = "what it returns borrows from it, which an iterator's items cannot"
    )]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, FileError> {
        if self.failed {
            return Ok(None);
        }
        self.failed = true;
        let number = self.packets + 1;
        let found = match &mut self.format {
            Format::Pcap(parser) => pcap_packet(parser, &mut self.buffer, number)?,
            Format::PcapNg { parser, kept, time } => {
                pcapng_packet(parser, kept, time, &mut self.buffer, number)?
            }
        };
        self.failed = false;
        let Some(Found { time, link_type, original_len, len, rest }) = found else { return Ok(None) };
        self.packets = number;
        // The packet stands at the front of the buffer: taking it out does not touch its bytes before the next call.
        let bytes = self.buffer.take(len, rest);
        let original_len = original_len.max(bytes.len());
        Ok(Some(Packet { number, time, link_type, original_len, bytes }))
    }

    /// Bytes of the file that were consumed, for progress.
    pub fn position(&self) -> u64 {
        self.buffer.position()
    }
}

/// A packet that stands at the front of the buffer.
struct Found {
    time: Duration,
    link_type: u32,
    original_len: usize,
    /// Bytes of the packet.
    len: usize,
    /// Bytes behind it that belong to it: padding, options.
    rest: usize,
}

fn pcap_header(buffer: &mut Buffer) -> Result<PcapParser, FileError> {
    const LEN: usize = 24;
    let bytes = buffer.at_least(LEN)?;
    match PcapParser::new(bytes) {
        Ok((_, parser)) => {
            buffer.consume(LEN);
            Ok(parser)
        }
        Err(PcapParseError::IncompleteBuffer(expected, got)) => {
            Err(FileError::CutShort { what: "the file header".into(), at: 0, expected, got })
        }
        Err(PcapParseError::Validation(error)) => Err(damaged("the file header", 0, &error)),
    }
}

/// Finds the next record, and leaves the buffer before its packet.
fn pcap_packet(parser: &PcapParser, buffer: &mut Buffer, number: u64) -> Result<Option<Found>, FileError> {
    const HEADER: usize = 16;
    let at = buffer.position();
    let mut wanted = HEADER;
    loop {
        let bytes = buffer.at_least(wanted)?;
        let got = bytes.len();
        if got == 0 {
            return Ok(None);
        }
        if got < wanted {
            return Err(FileError::CutShort { what: format!("packet {number}"), at, expected: wanted, got });
        }
        match parser.next_raw_packet(bytes) {
            Ok((_, record)) => {
                let len = record.data.len();
                if len > MAX_PACKET {
                    return Err(too_long(number, at, len));
                }
                let PcapHeader { ts_resolution, datalink, .. } = parser.header();
                let fraction = u64::from(record.ts_frac);
                let fraction = match ts_resolution {
                    PcapTsResolution::MicroSecond => Duration::from_micros(fraction),
                    PcapTsResolution::NanoSecond => Duration::from_nanos(fraction),
                };
                let found = Found {
                    time: Duration::from_secs(record.ts_sec.into()) + fraction,
                    // The upper bits may say how long a checksum behind each packet is; the IP header says where it is.
                    link_type: u32::from(datalink) & 0x03FF_FFFF,
                    original_len: record.orig_len as usize,
                    len,
                    rest: 0,
                };
                buffer.consume(HEADER);
                return Ok(Some(found));
            }
            // The header is there, so this is the packet's length.
            Err(PcapParseError::IncompleteBuffer(len, _)) if len > MAX_PACKET => {
                return Err(too_long(number, at, len));
            }
            Err(PcapParseError::IncompleteBuffer(len, _)) => wanted = HEADER + len,
            Err(PcapParseError::Validation(error)) => {
                return Err(damaged(&format!("packet {number}"), at, &error));
            }
        }
    }
}

fn pcapng_header(buffer: &mut Buffer) -> Result<PcapNgParser, FileError> {
    const WHAT: &str = "the section header";
    let mut wanted = 28;
    loop {
        let bytes = buffer.at_least(wanted)?;
        let got = bytes.len();
        if got < wanted {
            return Err(FileError::CutShort { what: WHAT.into(), at: 0, expected: wanted, got });
        }
        let damaged_header = |wrong| FileError::Damaged { what: WHAT.into(), at: 0, wrong };
        BlockHead::read(bytes, Endianness::Big).check_kept(0).map_err(damaged_header)?;
        match PcapNgParser::new(bytes) {
            Ok((rest, parser)) => {
                let len = got - rest.len();
                buffer.consume(len);
                return Ok(parser);
            }
            Err(PcapNgParseError::IncompleteBuffer(body, _)) => wanted = block_len(body, WHAT, 0)?,
            Err(error) => return Err(damaged(WHAT, 0, &error)),
        }
    }
}

/// Finds the next block that holds a packet, and leaves the buffer before its bytes.
fn pcapng_packet(
    parser: &mut PcapNgParser,
    kept: &mut usize,
    time: &mut Duration,
    buffer: &mut Buffer,
    number: u64,
) -> Result<Option<Found>, FileError> {
    const SHORTEST: usize = 12;
    let mut wanted = SHORTEST;
    loop {
        let at = buffer.position();
        let bytes = buffer.at_least(wanted)?;
        let got = bytes.len();
        if got == 0 {
            return Ok(None);
        }
        let head = BlockHead::read(bytes, parser.section().endianness);
        let what =
            || format!("{} {number}", if head.is_packet() { "packet" } else { "the block before packet" });
        if got < wanted {
            return Err(FileError::CutShort { what: what(), at, expected: wanted, got });
        }
        head.check_kept(*kept).map_err(|wrong| FileError::Damaged { what: what(), at, wrong })?;
        let (rest, block) = match parser.next_raw_block(bytes) {
            Ok(parsed) => parsed,
            Err(PcapNgParseError::IncompleteBuffer(body, _)) => {
                wanted = block_len(body, &what(), at)?;
                continue;
            }
            Err(error) => return Err(damaged(&what(), at, &error)),
        };
        let len = got - rest.len();
        if len > MAX_BLOCK {
            return Err(block_too_long(&what(), at, len));
        }
        match block.type_ {
            SECTION_HEADER_BLOCK => *kept = len,
            INTERFACE_DESCRIPTION_BLOCK => *kept += len,
            ENHANCED_PACKET_BLOCK | PACKET_BLOCK | SIMPLE_PACKET_BLOCK => {
                let (before, found) = packet_block(&block, parser.state(), *time)
                    .map_err(|wrong| FileError::Damaged { what: what(), at, wrong })?;
                if found.len > MAX_PACKET {
                    return Err(too_long(number, at, found.len));
                }
                *time = found.time;
                // Behind the block's type and length.
                let before = 8 + before;
                buffer.consume(before);
                return Ok(Some(Found { rest: len - before - found.len, ..found }));
            }
            _ => {}
        }
        buffer.consume(len);
        wanted = SHORTEST;
    }
}

/// How a block begins, read before pcap-file reads it.
struct BlockHead {
    kind: u32,
    len: usize,
}

impl BlockHead {
    /// `endianness` is the section's, and does not matter where a section begins. What is not there reads as 0, a type
    /// that is reserved.
    fn read(bytes: &[u8], endianness: Endianness) -> Self {
        let kind = Fields { bytes, endianness }.u32(0).unwrap_or(0);
        let magic = Fields { bytes, endianness: Endianness::Big }.u32(8);
        let endianness = match (kind, magic) {
            (SECTION_HEADER_BLOCK, Some(0x1A2B_3C4D)) => Endianness::Big,
            (SECTION_HEADER_BLOCK, _) => Endianness::Little,
            _ => endianness,
        };
        Self { kind, len: Fields { bytes, endianness }.u32(4).unwrap_or(0) as usize }
    }

    fn is_packet(&self) -> bool {
        matches!(self.kind, ENHANCED_PACKET_BLOCK | PACKET_BLOCK | SIMPLE_PACKET_BLOCK)
    }

    /// Sees to it that what pcap-file keeps stays within bounds, on top of what it keeps already.
    fn check_kept(&self, already: usize) -> Result<(), String> {
        let len = match self.kind {
            SECTION_HEADER_BLOCK => self.len,
            INTERFACE_DESCRIPTION_BLOCK => already.saturating_add(self.len),
            _ => return Ok(()),
        };
        if len <= MAX_DESCRIPTIONS {
            return Ok(());
        }
        Err(format!("expected at most {MAX_DESCRIPTIONS} bytes of interfaces and section header, got {len}"))
    }
}

/// The length of a whole block, from what pcap-file says is missing: all but the type and the length before.
fn block_len(missing: usize, what: &str, at: u64) -> Result<usize, FileError> {
    let len = missing.saturating_add(8);
    if len > MAX_BLOCK { Err(block_too_long(what, at, len)) } else { Ok(len) }
}

/// Reads the fields of a block that holds a packet: how many bytes of its body stand before it, and the rest.
fn packet_block(
    block: &RawBlock<'_>,
    state: &PcapNgState,
    before: Duration,
) -> Result<(usize, Found), String> {
    let bytes: &[u8] = match &block.body {
        Cow::Borrowed(bytes) => bytes,
        Cow::Owned(bytes) => bytes,
    };
    let fields = Fields { bytes, endianness: state.endianness() };
    let missing = || format!("the fields before the packet do not fit into {} bytes", bytes.len());
    let (header, interface, original_len) = match block.type_ {
        SIMPLE_PACKET_BLOCK => (4, 0, fields.u32(0)),
        ENHANCED_PACKET_BLOCK => (20, fields.u32(0).ok_or_else(missing)?, fields.u32(16)),
        // The obsolete one: the number of lost packets is next to the interface.
        _ => (20, fields.u16(0).ok_or_else(missing)?.into(), fields.u32(16)),
    };
    let original_len = original_len.ok_or_else(missing)? as usize;
    let Some(description) = state.interfaces().get(interface as usize) else {
        return Err(format!(
            "it is of interface {interface}, but {} were described in this section",
            state.interfaces().len()
        ));
    };
    let room = bytes.len() - header;
    let (time, len) = if block.type_ == SIMPLE_PACKET_BLOCK {
        let snap_len = if description.snaplen == 0 { usize::MAX } else { description.snaplen as usize };
        (before, original_len.min(snap_len))
    } else {
        let high = fields.u32(4).ok_or_else(missing)?;
        let low = fields.u32(8).ok_or_else(missing)?;
        let time = state.decode_timestamp(interface, high, low).map_err(|error| error.to_string())?;
        (time, fields.u32(12).ok_or_else(missing)? as usize)
    };
    if len > room {
        return Err(format!("expected {len} bytes of the packet, but the block has room for {room}"));
    }
    let link_type = description.linktype.into();
    Ok((header, Found { time, link_type, original_len, len, rest: 0 }))
}

/// Numbers in a block.
struct Fields<'a> {
    bytes: &'a [u8],
    endianness: Endianness,
}

impl Fields<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.endianness.is_big() { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.endianness.is_big() { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }
}

fn too_long(number: u64, at: u64, len: usize) -> FileError {
    let wrong = format!("expected at most {MAX_PACKET} bytes, got a length of {len}");
    FileError::Damaged { what: format!("packet {number}"), at, wrong }
}

fn block_too_long(what: &str, at: u64, len: usize) -> FileError {
    let wrong = format!("expected a block of at most {MAX_BLOCK} bytes, got a length of {len}");
    FileError::Damaged { what: what.into(), at, wrong }
}

/// With what pcap-file says, and what it says is behind that.
fn damaged(what: &str, at: u64, error: &dyn std::error::Error) -> FileError {
    let mut wrong = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        wrong = format!("{wrong}: {error}");
        source = error.source();
    }
    FileError::Damaged { what: what.into(), at, wrong }
}
