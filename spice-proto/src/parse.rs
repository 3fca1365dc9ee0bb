//! What the parsers of message bodies share: how they fail, that they must use up the body, and strings behind offsets.

use nom::bytes::complete::take;
use nom::error::ErrorKind;
use nom::{Err, IResult};

use crate::error::{ParseError, Problem};

/// What a nom parser of this crate fails with: where it stood, and what was wrong unless the input simply ended.
#[derive(Debug)]
pub(crate) struct Fault<'a> {
    rest: &'a [u8],
    problem: Option<Problem>,
}

impl<'a> Fault<'a> {
    /// A failure that no alternative can mend.
    pub(crate) fn fatal(problem: Problem) -> Err<Self> {
        Err::Failure(Fault { rest: &[], problem: Some(problem) })
    }

    /// A failure because `field` has a value that is not known.
    pub(crate) fn value(field: &'static str, got: impl Into<u64>, expected: &'static str) -> Err<Self> {
        Self::fatal(Problem::Value { field, got: got.into(), expected })
    }
}

impl<'a> nom::error::ParseError<&'a [u8]> for Fault<'a> {
    fn from_error_kind(rest: &'a [u8], _: ErrorKind) -> Self {
        Fault { rest, problem: None }
    }

    fn append(_: &'a [u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// Result of the crate's nom parsers.
pub(crate) type Parsed<'a, T> = IResult<&'a [u8], T, Fault<'a>>;

/// Runs a complete parser over a whole body. Bytes it leaves are an error.
pub(crate) fn whole<'a, T>(
    what: &'static str,
    body: &'a [u8],
    parser: impl FnOnce(&'a [u8]) -> Parsed<'a, T>,
) -> Result<T, ParseError> {
    let problem = match parser(body) {
        Ok(([], value)) => return Ok(value),
        Ok((rest, _)) => {
            Problem::Trailing { expected: body.len().saturating_sub(rest.len()), got: body.len() }
        }
        Err(Err::Error(fault) | Err::Failure(fault)) => {
            let at = body.len().saturating_sub(fault.rest.len());
            fault.problem.unwrap_or(Problem::Short { at, got: body.len() })
        }
        Err(Err::Incomplete(_)) => Problem::Short { at: body.len(), got: body.len() },
    };
    Err(ParseError { what, problem })
}

/// A string or block that the fixed part of a message points at, as [`all_behind`] wants it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pointed {
    pub(crate) field: &'static str,
    /// Offset from the start of the body, as the peer gave it.
    pub(crate) at: u32,
    /// End of what stands there, exclusive. INVARIANT: within the body.
    pub(crate) end: usize,
}

/// What follows byte `offset` of a body, which has to be one that is not in the fixed part.
pub(crate) fn pointed_tail<'a>(
    field: &'static str,
    body: &'a [u8],
    fixed: usize,
    offset: u32,
) -> Result<&'a [u8], Err<Fault<'a>>> {
    let at = to_usize(offset);
    match body.get(at..) {
        Some(tail) if at >= fixed && !tail.is_empty() => Ok(tail),
        _ => Err(Fault::fatal(Problem::Offset { field, got: offset, from: fixed, to: body.len() })),
    }
}

/// The string at `offset`, up to its NUL. `limit` bounds its length in bytes, NUL not counted.
pub(crate) fn pointed_text<'a>(
    field: &'static str,
    body: &'a [u8],
    fixed: usize,
    offset: u32,
    limit: usize,
) -> Result<(&'a [u8], Pointed), Err<Fault<'a>>> {
    let tail = pointed_tail(field, body, fixed, offset)?;
    let Some(length) = tail.iter().position(|&byte| byte == 0) else {
        return Err(Fault::fatal(Problem::Unterminated { field }));
    };
    if length > limit {
        return Err(Fault::fatal(Problem::TooLong { field, got: length, limit }));
    }
    let (_, text) = take(length)(tail)?;
    Ok((text, Pointed { field, at: offset, end: to_usize(offset).saturating_add(length).saturating_add(1) }))
}

/// Checks that the blocks begin right behind the fixed part and leave no gap between them, in whatever order they come and
/// even if they share bytes. Gives what follows the last one.
///
/// So nothing is smuggled along, and no other layout passes for the one that is being parsed.
pub(crate) fn all_behind<'a, const N: usize>(
    body: &'a [u8],
    fixed: usize,
    mut blocks: [Pointed; N],
) -> Result<&'a [u8], Err<Fault<'a>>> {
    blocks.sort_unstable_by_key(|block| block.at);
    let mut end = fixed;
    for block in blocks {
        if to_usize(block.at) > end {
            let Pointed { field, at: got, .. } = block;
            return Err(Fault::fatal(Problem::Offset { field, got, from: fixed, to: end.saturating_add(1) }));
        }
        end = end.max(block.end);
    }
    Ok(body.get(end..).unwrap_or_default())
}

/// A size or offset of the wire as an index. Where `usize` is too small for it, no buffer can be that long either.
pub(crate) fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Appends a number as the wire has it.
pub(crate) fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a number as the wire has it.
pub(crate) fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a number as the wire has it.
pub(crate) fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Lengths of numbers and of a string's end on the wire.
pub(crate) const U8: usize = 1;
pub(crate) const U16: usize = 2;
pub(crate) const U32: usize = 4;
pub(crate) const U64: usize = 8;
pub(crate) const NUL: usize = 1;
