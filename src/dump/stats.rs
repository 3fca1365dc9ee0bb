//! `--stats`: what became of each service and each connection of the guest.

use std::io;

use super::DumpArgs;
use super::books::Seen;

/// Collects them.
#[derive(Debug)]
pub struct Stats {}

impl Stats {
    /// Nothing yet.
    pub fn new(args: &DumpArgs, color: bool) -> Self {
        let _ = (args, color);
        Self {}
    }

    /// Notes an item.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let _ = (seen, out);
        Ok(())
    }

    /// The capture is over: appends the tables.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let _ = out;
        Ok(())
    }
}
