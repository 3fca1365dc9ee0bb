use super::super::packet::segment;
use super::super::reassembly::{Limits, Piece, Reassembler};
use super::*;

#[test]
fn genuine_captures_are_read_to_their_ends() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let mut files: Vec<_> = std::fs::read_dir(captures).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "pcap"));
    assert!(files.len() >= 5, "{files:?}");
    for path in files {
        let mut reader = Reader::open(&path).unwrap();
        let mut reassembler = Reassembler::new(Limits::default());
        let (mut packets, mut bytes, mut holes) = (0, 0, 0);
        let mut count = |event: super::super::reassembly::StreamEvent<'_>| match event.piece {
            Piece::Bytes { bytes: piece, .. } => bytes += piece.len(),
            Piece::Hole { .. } => holes += 1,
            Piece::Opened { .. }
            | Piece::Answered
            | Piece::Finished { .. }
            | Piece::Reset { .. }
            | Piece::Ended { .. } => {}
        };
        while let Some(packet) = reader.next().unwrap() {
            packets += 1;
            assert_eq!(packet.number, packets);
            if let Some(segment) = segment(&packet).unwrap() {
                reassembler.handle(packet.time, &segment, &mut count);
            }
        }
        reassembler.finish(&mut count);
        println!("{}: {packets} packets, {bytes} bytes", path.display());
        assert_eq!(reader.position(), path.metadata().unwrap().len());
        assert!(bytes > 0, "{}", path.display());
        assert_eq!(holes, 0, "{}", path.display());
    }
}
