//! What several modules' tests use.

use proptest::prelude::*;

/// Bytes from hexadecimal digits; white space means nothing.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    assert_eq!(digits.len() % 2, 0, "odd number of digits in {text}");
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Cuts a stream into the pieces that `cuts` asks for, each at least a byte long.
pub(crate) fn chop<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = stream;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let n = (*cuts.next().unwrap_or(&1)).clamp(1, rest.len());
        let (piece, tail) = rest.split_at(n);
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

/// Bytes of a size that a message could have, biased to short ones.
pub(crate) fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        // Small numbers make plausible counts, types and offsets.
        4 => prop::collection::vec(0_u8..40, 0..80),
        1 => prop::collection::vec(any::<u8>(), 0..4096),
    ]
}

/// A text without a NUL, of at most `max` bytes, of any encoding.
pub(crate) fn text(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1_u8.., 0..=max)
}
