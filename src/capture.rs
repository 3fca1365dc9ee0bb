//! Recorded traffic: from a capture file's packets to Spice messages, and from live traffic to a capture file.
//!
//! # Theory of operation
//!
//! ```text
//!  file ── Packet ──► packet ── Segment ──► reassembly ── StreamEvent ──► dissect ── Item ──► ledger, dump, replay
//!  pcap, pcapng       link types, IP, TCP   one byte stream per           link stage,        what became of
//!                                           direction, holes reported     messages           services and sockets
//! ```
//!
//! Every stage is sans-IO but the first, takes one thing and gives what it made of it to a callback, borrowed from
//! its own buffer. None holds more than a fixed amount, whatever the file says: what does not fit is reported as a
//! hole. Nothing that a capture holds is trusted; what is wrong with it becomes an item of its own, and reading
//! goes on behind it.

pub mod dissect;
pub mod file;
pub mod ledger;
pub mod packet;
pub mod reader;
pub mod reassembly;
