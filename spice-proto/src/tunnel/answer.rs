//! How the client answers a question for a name.

use nom::Parser;
use nom::number::complete::{le_u8, le_u32};

use super::GroupId;
use crate::parse::{Fault, Parsed, U8, U32, put_u32};

/// Where a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameAnswer {
    /// Status 0.
    Found {
        /// The device that has the name. At least one of its services is announced.
        group: GroupId,
        /// For how long that holds, seconds. Both ends move it into [`NameAnswer::MIN_TTL`] to [`NameAnswer::MAX_TTL`].
        ttl: u32,
    },
    /// Status 1: there is no such name.
    NoSuchName,
    /// Status 2: it could not be found out. Later it may be.
    Failed,
    /// Status 3: the name is in no domain that may be asked for.
    Refused,
}

/// Bytes of an answer on the wire.
pub(super) const LEN: usize = U8 + U32 + U32;

const FOUND: u8 = 0;
const NO_SUCH_NAME: u8 = 1;
const FAILED: u8 = 2;
const REFUSED: u8 = 3;

impl NameAnswer {
    /// Least seconds that an answer holds.
    pub const MIN_TTL: u32 = 5;
    /// Most seconds that an answer holds.
    pub const MAX_TTL: u32 = 3600;

    /// Its status on the wire.
    pub fn status(self) -> u8 {
        match self {
            NameAnswer::Found { .. } => FOUND,
            NameAnswer::NoSuchName => NO_SUCH_NAME,
            NameAnswer::Failed => FAILED,
            NameAnswer::Refused => REFUSED,
        }
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.push(self.status());
        let (group, ttl) = match self {
            NameAnswer::Found { group, ttl } => (group.0, ttl),
            NameAnswer::NoSuchName | NameAnswer::Failed | NameAnswer::Refused => (0, 0),
        };
        put_u32(out, group);
        put_u32(out, ttl);
    }
}

/// An answer. Of a name that was not found, group and time are 0.
pub(super) fn answer(input: &[u8]) -> Parsed<'_, NameAnswer> {
    let (input, (status, group, ttl)) = (le_u8, le_u32, le_u32).parse(input)?;
    let answer = match status {
        FOUND => return Ok((input, NameAnswer::Found { group: GroupId(group), ttl })),
        NO_SUCH_NAME => NameAnswer::NoSuchName,
        FAILED => NameAnswer::Failed,
        REFUSED => NameAnswer::Refused,
        other => return Err(Fault::value("status", other, "0 (found) to 3 (refused)")),
    };
    for (field, got) in [("group", group), ("ttl", ttl)] {
        if got != 0 {
            return Err(Fault::value(field, got, "0 where nothing was found"));
        }
    }
    Ok((input, answer))
}
