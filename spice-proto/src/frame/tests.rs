use proptest::prelude::*;

use super::*;
use crate::testing::{chop, hex, some_bytes};

const FORMS: [HeaderForm; 2] = [HeaderForm::Full, HeaderForm::Mini];

/// INIT as the first message of a connection, wire reference 2.1 and 2.2.
#[test]
fn headers_are_laid_out_as_the_reference_says() {
    let full = hex("0100000000000000 6700 02000000 00000000 abcd");
    let mini = hex("6700 02000000 abcd");
    for (form, bytes, serial) in [(HeaderForm::Full, full, Some(1)), (HeaderForm::Mini, mini, None)] {
        let mut out = Vec::new();
        put_header(form, &mut out, 1, 103, 2);
        assert_eq!(out.len(), form.len());
        out.extend_from_slice(&[0xab, 0xcd]);
        assert_eq!(out, bytes);
        let frame = Frame { serial, kind: 103, sub_list: 0, body: &[0xab, 0xcd] };
        assert_eq!(split(form, 2, &bytes), Ok(Split::Frame { frame, consumed: bytes.len() }));
    }
}

#[test]
fn what_is_missing_is_told_from_the_start_of_the_buffer() {
    for form in FORMS {
        let mut bytes = Vec::new();
        put_header(form, &mut bytes, 1, 4, 100);
        bytes.extend_from_slice(&[7; 100]);
        for length in 0..bytes.len() {
            let needed = if length < form.len() { form.len() } else { bytes.len() };
            assert_eq!(
                split(form, 100, &bytes[..length]),
                Ok(Split::Incomplete { needed }),
                "{length} bytes"
            );
        }
        // What follows does not matter.
        bytes.extend_from_slice(b"next");
        let Ok(Split::Frame { frame, consumed }) = split(form, 100, &bytes) else { panic!() };
        assert_eq!((frame.body, consumed), (&[7; 100][..], form.len() + 100));
    }
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_header_alone() {
    for form in FORMS {
        for kind in [1, 101, 106, u16::MAX] {
            for limit in [0, 1, 4, 2050, u32::MAX - 1] {
                for size in [limit, limit + 1, u32::MAX] {
                    let mut bytes = Vec::new();
                    put_header(form, &mut bytes, 1, kind, size);
                    let found = split(form, limit, &bytes);
                    if size > limit {
                        assert_eq!(found, Err(FrameError::TooLarge { kind, size, limit }));
                    } else if size > 0 {
                        let needed = form.len() + usize::try_from(size).unwrap();
                        assert_eq!(found, Ok(Split::Incomplete { needed }));
                    } else {
                        assert!(matches!(found, Ok(Split::Frame { .. })));
                    }
                }
            }
        }
    }
}

fn in_mini_list(body: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, ParseError> {
    opened(&Frame { serial: None, kind: LIST, sub_list: 0, body })
}

fn opened(frame: &Frame<'_>) -> Result<Vec<(u16, Vec<u8>)>, ParseError> {
    sub_messages(frame)?.map(|sub| sub.map(|sub| (sub.kind, sub.body.to_vec()))).collect()
}

#[test]
fn sub_messages_of_both_forms_are_found() {
    // A list of two, then the two: type 5 with a byte, type 105 with none.
    let list = hex("0200 0a000000 11000000  0500 01000000 00  6900 00000000");
    let expected = vec![(5, vec![0]), (105, vec![])];
    assert_eq!(in_mini_list(&list), Ok(expected.clone()));
    // With a full header the list stands behind the message's own bytes, its offsets still counting from the body's start.
    let carried = hex("aabb 0200 0c000000 13000000  0500 01000000 00  6900 00000000");
    let frame = Frame { serial: Some(9), kind: 304, sub_list: 2, body: &carried };
    assert_eq!(opened(&frame), Ok(expected.clone()));
    // The list may stand behind its messages.
    let behind = hex("0500 01000000 00  6900 00000000  0200 00000000 07000000");
    let frame = Frame { serial: Some(9), kind: 304, sub_list: 13, body: &behind };
    assert_eq!(opened(&frame), Ok(expected));
    // No list, no sub-messages.
    assert_eq!(opened(&Frame { serial: Some(1), kind: 304, sub_list: 0, body: &list }), Ok(vec![]));
    assert_eq!(in_mini_list(&hex("0000")), Ok(vec![]));
}

#[test]
fn hostile_lists_are_refused() {
    let cases = [
        ("no count", ""),
        ("half a count", "01"),
        ("count 1 without an offset", "0100"),
        ("count 65535 with one offset", "ffff 06000000"),
        ("offset at the end", "0100 06000000"),
        ("offset past the end", "0100 07000000"),
        ("offset 2^32-1", "0100 ffffffff"),
        ("header cut short", "0100 06000000 0500 000000"),
        ("body cut short", "0100 06000000 0500 02000000 00"),
        ("size 2^32-1", "0100 06000000 0500 ffffffff 00"),
        ("a list in a list", "0100 06000000 0800 02000000 0000"),
        ("itself", "0100 00000000 0000"),
    ];
    for (what, body) in cases {
        assert!(in_mini_list(&hex(body)).is_err(), "{what}");
    }
    // Offset 0 reads the count as a type: here 2 and then a size that the first offset makes.
    assert!(in_mini_list(&hex("0200 00000000 00000000 0000")).is_err(), "the list as a message, twice");
    for sub_list in [3, 4, 1000, u32::MAX] {
        let frame = Frame { serial: Some(1), kind: 304, sub_list, body: b"four" };
        assert!(opened(&frame).is_err(), "sub_list {sub_list}");
    }
}

/// 16000 times the same kilobyte would be 16 MB to handle for 65 kB on the wire.
#[test]
fn a_message_cannot_be_listed_over_and_over() {
    let count = 16_000_u16;
    let mut body = count.to_le_bytes().to_vec();
    let offset = 2 + 4 * u32::from(count);
    for _ in 0..count {
        body.extend_from_slice(&offset.to_le_bytes());
    }
    put_header(HeaderForm::Mini, &mut body, 0, 5, 1024);
    body.extend_from_slice(&[0; 1024]);
    let frame = Frame { serial: None, kind: LIST, sub_list: 0, body: &body };
    let found: Vec<_> = sub_messages(&frame).unwrap().collect();
    let handled: usize = found.iter().flatten().map(|sub| sub.body.len()).sum();
    assert!(handled <= body.len(), "{handled} bytes");
    assert!(found.last().unwrap().is_err());
}

#[test]
fn a_skimmer_knows_where_messages_begin() {
    let mut skimmer = FrameSkimmer::new(HeaderForm::Mini);
    assert!(skimmer.between_messages());
    let mut chunk = &hex("0400 02000000 aa")[..];
    let header = Header { serial: None, kind: 4, size: 2, sub_list: 0 };
    assert_eq!(skimmer.next(&mut chunk), Some(Skimmed::Header { header, offset: 0 }));
    assert!(!skimmer.between_messages());
    assert_eq!(skimmer.next(&mut chunk), Some(Skimmed::Body { bytes: &[0xaa], last: false }));
    assert_eq!(skimmer.next(&mut chunk), None);
    let mut chunk = &hex("bb 0200 000000")[..];
    assert_eq!(skimmer.next(&mut chunk), Some(Skimmed::Body { bytes: &[0xbb], last: true }));
    assert!(skimmer.between_messages());
    assert_eq!(skimmer.next(&mut chunk), None, "the header lacks a byte");
    assert!(!skimmer.between_messages());
    let mut chunk = &[0][..];
    let header = Header { serial: None, kind: 2, size: 0, sub_list: 0 };
    assert_eq!(skimmer.next(&mut chunk), Some(Skimmed::Header { header, offset: 8 }));
    assert!(skimmer.between_messages(), "an empty body is over at once");
}

/// A body of 4 GiB is no reason to hold any of it.
#[test]
fn a_skimmer_passes_on_a_body_of_any_length() {
    let mut skimmer = FrameSkimmer::new(HeaderForm::Mini);
    let mut chunk = &hex("0400 ffffffff")[..];
    assert!(matches!(skimmer.next(&mut chunk), Some(Skimmed::Header { .. })));
    let megabyte = vec![0; 1 << 20];
    for _ in 0..4095 {
        let mut chunk = &megabyte[..];
        assert!(matches!(skimmer.next(&mut chunk), Some(Skimmed::Body { last: false, .. })));
    }
    let mut chunk = &megabyte[..];
    let end = Skimmed::Body { bytes: &megabyte[1..], last: true };
    assert_eq!(skimmer.next(&mut chunk), Some(end));
    assert_eq!(chunk, [0]);
}

fn messages() -> impl Strategy<Value = Vec<(u64, u16, Vec<u8>)>> {
    prop::collection::vec((any::<u64>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..50)), 0..12)
}

fn stream(form: HeaderForm, messages: &[(u64, u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (serial, kind, body) in messages {
        put_header(form, &mut out, *serial, *kind, u32::try_from(body.len()).unwrap());
        out.extend_from_slice(body);
    }
    out
}

proptest! {
    /// However the bytes arrive, `split` on what has arrived gives the same messages.
    #[test]
    fn split_gives_what_was_sent_however_it_is_chopped(messages in messages(), cuts in prop::collection::vec(1_usize..40, 1..8)) {
        for form in FORMS {
            let stream = stream(form, &messages);
            let mut buffer = Vec::new();
            let mut found = Vec::new();
            for piece in chop(&stream, &cuts) {
                buffer.extend_from_slice(piece);
                loop {
                    match split(form, 49, &buffer).unwrap() {
                        Split::Frame { frame, consumed } => {
                            found.push((frame.serial, frame.kind, frame.body.to_vec()));
                            buffer.drain(..consumed);
                        }
                        Split::Incomplete { needed } => {
                            prop_assert!(needed > buffer.len() && needed <= form.len() + 49);
                            break;
                        }
                    }
                }
            }
            prop_assert!(buffer.is_empty());
            let sent: Vec<_> = messages
                .iter()
                .map(|(serial, kind, body)| ((form == HeaderForm::Full).then_some(*serial), *kind, body.clone()))
                .collect();
            prop_assert_eq!(found, sent);
        }
    }

    /// The skimmer finds the same headers at the same places, and its pieces are the stream.
    #[test]
    fn skimmer_gives_what_was_sent_however_it_is_chopped(messages in messages(), cuts in prop::collection::vec(1_usize..40, 1..8)) {
        for form in FORMS {
            let stream = stream(form, &messages);
            let mut skimmer = FrameSkimmer::new(form);
            let (mut found, mut copy, mut ends) = (Vec::new(), Vec::new(), 0);
            for mut piece in chop(&stream, &cuts) {
                while let Some(skimmed) = skimmer.next(&mut piece) {
                    match skimmed {
                        Skimmed::Header { header, offset } => {
                            prop_assert_eq!(usize::try_from(offset).unwrap(), copy.len());
                            header.write(&mut copy);
                            ends += usize::from(header.size == 0);
                            found.push((header.kind, header.size));
                        }
                        Skimmed::Body { bytes, last } => {
                            prop_assert!(!bytes.is_empty());
                            copy.extend_from_slice(bytes);
                            ends += usize::from(last);
                        }
                    }
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert!(skimmer.between_messages());
            prop_assert_eq!(copy, stream);
            prop_assert_eq!(ends, messages.len());
            let sent: Vec<_> =
                messages.iter().map(|(_, kind, body)| (*kind, u32::try_from(body.len()).unwrap())).collect();
            prop_assert_eq!(found, sent);
        }
    }

    /// Any bytes: the skimmer loses none but those of a header that is not complete.
    #[test]
    fn any_bytes_can_be_skimmed_and_split(bytes in some_bytes(), cuts in prop::collection::vec(1_usize..40, 1..8), limit in 0_u32..5000) {
        for form in FORMS {
            let mut skimmer = FrameSkimmer::new(form);
            let mut copy = Vec::new();
            for mut piece in chop(&bytes, &cuts) {
                while let Some(skimmed) = skimmer.next(&mut piece) {
                    match skimmed {
                        Skimmed::Header { header, .. } => header.write(&mut copy),
                        Skimmed::Body { bytes, .. } => copy.extend_from_slice(bytes),
                    }
                }
            }
            prop_assert!(bytes.starts_with(&copy));
            prop_assert!(bytes.len() - copy.len() < form.len());
            let mut rest = &bytes[..];
            while let Ok(Split::Frame { frame, consumed }) = split(form, limit, rest) {
                prop_assert!(frame.body.len() <= usize::try_from(limit).unwrap());
                let subs = sub_messages(&frame).into_iter().flatten().flatten();
                let carried: usize = subs.map(|sub| sub.body.len() + 6).sum();
                prop_assert!(carried <= frame.body.len());
                rest = &rest[consumed..];
            }
        }
    }
}

#[test]
fn a_body_is_stepped_over_but_no_further() {
    let mut skimmer = FrameSkimmer::new(HeaderForm::Mini);
    assert!(!skimmer.pass_body(1), "a header comes first");
    let mut bytes: &[u8] = &[9, 0, 10, 0, 0, 0];
    assert!(matches!(skimmer.next(&mut bytes), Some(Skimmed::Header { .. })));
    assert!(!skimmer.pass_body(11));
    assert!(!skimmer.pass_body(usize::MAX));
    assert!(skimmer.pass_body(4) && skimmer.pass_body(0) && skimmer.pass_body(6));
    assert!(skimmer.between_messages() && !skimmer.pass_body(1));
    let mut bytes: &[u8] = &[9, 0, 1, 0, 0, 0];
    assert!(matches!(skimmer.next(&mut bytes), Some(Skimmed::Header { offset: 16, .. })));
}
