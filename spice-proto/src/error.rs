//! What can be wrong with bytes that a peer sent.

/// The peer's header announces something that we do not take in. Nothing behind it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than this reader allows.
    #[error(
        "peer announced a message of type {kind} with a body of {size} bytes, at most {limit} are accepted"
    )]
    TooLarge {
        /// Message type in the header.
        kind: u16,
        /// Body size in the header, bytes.
        size: u32,
        /// The reader's limit, bytes.
        limit: u32,
    },
}

/// The peer's message body breaks its format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("peer sent a malformed {what}: {problem}")]
pub struct ParseError {
    /// Name of the message (`spice.proto`'s, in lower case) or structure.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a message body. Offsets and lengths are in bytes from the start of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A field runs past the end.
    #[error("the field at byte {at} runs past the end, the body has only {got} bytes")]
    Short {
        /// Where the field starts.
        at: usize,
        /// Length of the body.
        got: usize,
    },
    /// Bytes are left that belong to no field.
    #[error("expected {expected} bytes, got {got}")]
    Trailing {
        /// Length that the fields add up to.
        expected: usize,
        /// Length of the body.
        got: usize,
    },
    /// A field has a value that the format does not know.
    #[error("{field} is {got}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What came.
        got: u64,
        /// What is allowed, in words.
        expected: &'static str,
    },
    /// An offset points outside of the part of the body that it may point into.
    #[error("{field} points at byte {got}, expected {from}..{to}")]
    Offset {
        /// The field.
        field: &'static str,
        /// Where it points.
        got: u32,
        /// First allowed byte.
        from: usize,
        /// End (exclusive) of the allowed bytes.
        to: usize,
    },
    /// A string has no NUL before the end of the body.
    #[error("{field} is not ended by a NUL")]
    Unterminated {
        /// The string.
        field: &'static str,
    },
    /// A string or list is longer than we take in.
    #[error("{field} has length {got}, at most {limit} is accepted")]
    TooLong {
        /// The string or list.
        field: &'static str,
        /// Its length, in its own unit (bytes of a string, entries of a list).
        got: usize,
        /// Most that is accepted.
        limit: usize,
    },
    /// A part of a service's description is not what it may be.
    #[error(transparent)]
    Info(#[from] crate::service_info::InfoError),
}
