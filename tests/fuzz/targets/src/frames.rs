//! Splitting a stream into messages.

use spice_proto::frame::{FrameSkimmer, HeaderForm, Skimmed, Split, split, sub_messages};

use crate::input::Input;

/// Byte 0: header form; 1 and 2: longest body; 3: how the stream is chopped; then the stream.
///
/// However it is chopped, the messages are the same, and the skimmer finds them at the same places and loses no byte.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = if input.byte() & 1 == 0 { HeaderForm::Full } else { HeaderForm::Mini };
    let max_body = u32::from(input.short());
    let piece = usize::from(input.byte()) + 1;
    let stream = input.rest();

    let mut whole = Vec::new();
    let mut rest = stream;
    let ended = loop {
        match split(form, max_body, rest) {
            Ok(Split::Frame { frame, consumed }) => {
                assert_eq!(consumed, form.len() + frame.body.len());
                assert!(frame.body.len() <= max_body as usize);
                assert_eq!(frame.serial.is_some(), form == HeaderForm::Full);
                let subs: Vec<_> = sub_messages(&frame).map(Iterator::collect).unwrap_or_default();
                let carried: usize =
                    subs.iter().flatten().map(|sub| HeaderForm::Mini.len() + sub.body.len()).sum();
                assert!(carried <= frame.body.len(), "sub-messages of {carried} bytes");
                whole.push((stream.len() - rest.len(), frame));
                rest = &rest[consumed..];
            }
            Ok(Split::Incomplete { needed }) => {
                assert!(needed > rest.len());
                assert!(needed <= form.len() + max_body as usize);
                break Ok(needed);
            }
            Err(error) => break Err(error),
        }
    };

    let mut chopped = Vec::new();
    let mut buffer = Vec::new();
    let mut failed = None;
    'pieces: for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match split(form, max_body, &buffer) {
                Ok(Split::Frame { frame, consumed }) => {
                    chopped.push((frame.serial, frame.kind, frame.sub_list, frame.body.to_vec()));
                    buffer.drain(..consumed);
                }
                Ok(Split::Incomplete { .. }) => break,
                Err(error) => {
                    failed = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    assert_eq!(failed.is_some(), ended.is_err());
    let same = whole.iter().map(|(_, frame)| (frame.serial, frame.kind, frame.sub_list, frame.body.to_vec()));
    assert!(same.eq(chopped));

    let mut skimmer = FrameSkimmer::new(form);
    let mut headers = Vec::new();
    let mut copy = Vec::new();
    for mut piece in stream.chunks(piece) {
        while let Some(skimmed) = skimmer.next(&mut piece) {
            match skimmed {
                Skimmed::Header { header, offset } => {
                    assert_eq!(offset, copy.len() as u64);
                    header.write(&mut copy);
                    headers.push((copy.len() - form.len(), header));
                }
                Skimmed::Body { bytes, .. } => {
                    assert!(!bytes.is_empty());
                    copy.extend_from_slice(bytes);
                }
            }
        }
        assert!(piece.is_empty());
    }
    assert!(stream.starts_with(&copy));
    assert!(stream.len() - copy.len() < form.len());
    for ((at, frame), (found_at, header)) in whole.iter().zip(&headers) {
        assert_eq!((*at, frame.kind, frame.serial), (*found_at, header.kind, header.serial));
        assert_eq!(frame.body.len(), header.size as usize);
    }
    assert!(headers.len() >= whole.len());
}
