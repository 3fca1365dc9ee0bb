//! Capture files: the packets of a pcap or pcapng file, or of a pipe that one comes through.

use std::time::Duration;

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
