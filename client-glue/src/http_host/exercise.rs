//! The rewrite on any bytes, for fuzzing and tests. Panics when something is wrong.

#![allow(clippy::indexing_slicing)]

use super::*;

/// What the service wants to be called.
pub(super) const HOST: &str = "localhost:631";

/// Byte 0: how the stream is chopped; then what the guest says.
///
/// However it is chopped, the service gets the same, unless there is a fault; what it gets needs no rewriting any more.
pub fn exercise_bytes(bytes: &[u8]) {
    let (size, said) = bytes.split_first().unwrap_or((&0, &[]));
    let bytewise = through(said.chunks(1));
    let whole = through([said]);
    let pieces = through(said.chunks(usize::from(*size) + 1));
    assert_eq!(whole.fault, bytewise.fault);
    assert_eq!(pieces.fault, bytewise.fault);
    if bytewise.fault.is_none() {
        assert_eq!(whole, bytewise);
        assert_eq!(pieces, bytewise);
        assert_eq!(through([whole.written.as_slice()]), whole);
    } else {
        // What stood in the same message as the fault is not written.
        assert!(bytewise.written.starts_with(&whole.written));
        assert!(bytewise.written.starts_with(&pieces.written));
    }
    // The shortest that becomes longer is the line `Host:`, or a request of HTTP/1.0 without one.
    assert!(bytewise.written.len() <= said.len() * 4 + HOST.len());
}

/// What a filter makes of one stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) written: Vec<u8>,
    pub(super) fault: Option<HttpFault>,
}

/// Passes `pieces` on, one message each, and ends.
pub(super) fn through<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut filter = HttpHost::new(HostRewrite::new(HOST).expect("a host and a port"));
    let mut written = Vec::new();
    for piece in pieces {
        let (mut left, mut scratch) = (piece, Vec::new());
        while !left.is_empty() {
            match filter.next(left, &mut scratch) {
                Ok((taken, out)) => {
                    assert!((1..=left.len()).contains(&taken));
                    written.extend(out);
                    left = &left[taken..];
                }
                Err(fault) => return Outcome { written, fault: Some(fault) },
            }
            if let At::Head(head) = &filter.at {
                assert!(head.held_len() <= MAX_HELD);
            }
        }
    }
    let held = filter.finish();
    assert!(held.len() <= MAX_HELD + 1);
    written.extend(held);
    Outcome { written, fault: None }
}
