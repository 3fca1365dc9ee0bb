//! One file of a recording as pcapng blocks, still in memory: the shell writes out what is pending.
//!
//! The blocks are pcap-file's. It is told to write whole blocks into a buffer, so that what reaches the file never
//! ends within one.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness};

/// What a file's packets are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interface {
    pub(super) link_type: DataLink,
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    /// What a reader should know of the file as a whole.
    pub(super) comment: &'static str,
}

/// One file.
pub(super) struct Part {
    /// Which file of the recording, from 0.
    pub(super) number: u64,
    /// Nothing more comes.
    pub(super) over: bool,
    writer: PcapNgWriter<Vec<u8>>,
    /// Bytes that are written out already.
    written: u64,
    packets: u64,
    /// Pieces that the recording had dropped when the file began.
    dropped_before: u64,
    began: Duration,
}

impl Part {
    pub(super) fn new(number: u64, interface: Interface, began: Duration, dropped: u64) -> io::Result<Self> {
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![
                SectionHeaderOption::Common(CommonOption::Comment(Cow::Owned(format!(
                    "recorded by {program}: {}",
                    interface.comment
                )))),
                SectionHeaderOption::UserApplication(Cow::Borrowed(program)),
            ],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section).map_err(io::Error::other)?;
        let description = InterfaceDescriptionBlock {
            linktype: interface.link_type,
            // No limit.
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(interface.name)),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed(interface.description)),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ],
        };
        writer.write_pcapng_block(description).map_err(io::Error::other)?;
        Ok(Self { number, over: false, writer, written: 0, packets: 0, dropped_before: dropped, began })
    }

    /// Adds a packet.
    pub(super) fn packet(
        &mut self,
        time: Duration,
        bytes: &[u8],
        options: Vec<EnhancedPacketOption<'_>>,
    ) -> io::Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: time,
            original_len: u32::try_from(bytes.len()).map_err(io::Error::other)?,
            data: Cow::Borrowed(bytes),
            options,
        };
        self.packets += 1;
        self.writer.write_pcapng_block(block).map(drop).map_err(io::Error::other)
    }

    /// Ends the file with its statistics. `dropped` counts from the recording's beginning.
    pub(super) fn end(&mut self, time: Duration, dropped: u64) -> io::Result<()> {
        let dropped = dropped.saturating_sub(self.dropped_before);
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            timestamp: time,
            options: vec![
                InterfaceStatisticsOption::IsbStartTime(self.began),
                InterfaceStatisticsOption::IsbEndTime(time),
                InterfaceStatisticsOption::IsbIfRecv(self.packets.saturating_add(dropped)),
                InterfaceStatisticsOption::IsbIfDrop(dropped),
            ],
        };
        self.over = true;
        self.writer.write_pcapng_block(block).map(drop).map_err(io::Error::other)
    }

    /// Bytes of the file so far.
    pub(super) fn len(&self) -> u64 {
        self.written.saturating_add(u64::try_from(self.pending().len()).unwrap_or(u64::MAX))
    }

    /// Whole blocks that are to be written out.
    pub(super) fn pending(&self) -> &[u8] {
        self.writer.get_ref()
    }

    /// The pending blocks are written out.
    pub(super) fn wrote(&mut self) {
        self.written = self.len();
        self.writer.get_mut().clear();
    }
}

/// A remark that readers show beside a packet.
pub(super) fn comment(text: String) -> EnhancedPacketOption<'static> {
    EnhancedPacketOption::Common(CommonOption::Comment(Cow::Owned(text)))
}
