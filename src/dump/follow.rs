//! `--follow N`: the bytes of one connection of the guest, both ways.

use std::io;

use super::DumpArgs;
use super::books::Seen;

/// Prints them as they come.
#[derive(Debug)]
pub struct Follow {}

impl Follow {
    /// Nothing yet.
    ///
    /// # Errors
    ///
    /// When the files for `--raw` cannot be created.
    pub fn new(args: &DumpArgs, color: bool) -> io::Result<Self> {
        let _ = (args, color);
        Ok(Self {})
    }

    /// Appends what an item says on the connection.
    ///
    /// # Errors
    ///
    /// When the files for `--raw` cannot be written.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let _ = (seen, out);
        Ok(())
    }

    /// The capture is over.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let _ = out;
        Ok(())
    }
}
