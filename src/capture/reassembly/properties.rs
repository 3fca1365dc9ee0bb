//! Any disorder of a stream's segments gives the stream, with holes where they are missing.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A stream in pieces, some of which the capture does not have, and in which order it has the others.
#[derive(Debug, Clone)]
struct Shuffled {
    start: u32,
    pieces: Vec<(Vec<u8>, bool)>,
    /// How far each segment, and the acknowledgement of it, is captured behind its place.
    delays: Vec<usize>,
    /// First and last piece of what is sent again.
    again: Vec<(usize, usize)>,
}

/// No segment is captured this many places too late.
const WINDOW: usize = 8;

fn shuffled(missing: f64) -> impl Strategy<Value = Shuffled> {
    let start = prop_oneof![any::<u32>(), (u32::MAX - 2000)..];
    let piece = (prop::collection::vec(any::<u8>(), 1..50), prop::bool::weighted(missing));
    (start, prop::collection::vec(piece, 1..60)).prop_flat_map(|(start, pieces)| {
        let count = pieces.len();
        let delays = prop::collection::vec(0..WINDOW, 3 * count + 1);
        let again = prop::collection::vec((0..count, 0..3_usize), 0..count).prop_map(move |all| {
            all.into_iter().map(|(at, more)| (at, (at + more).min(count - 1))).collect()
        });
        (delays, again).prop_map(move |(delays, again)| Shuffled {
            start,
            pieces: pieces.clone(),
            delays,
            again,
        })
    })
}

impl Shuffled {
    /// What comes out: bytes, and holes where some are missing.
    fn expected(&self) -> Vec<Result<u8, u64>> {
        let mut all: Vec<Result<u8, u64>> = Vec::new();
        for (piece, missing) in &self.pieces {
            match all.last_mut() {
                Some(Err(hole)) if *missing => *hole += piece.len() as u64,
                _ if *missing => all.push(Err(piece.len() as u64)),
                _ => all.extend(piece.iter().map(|byte| Ok(*byte))),
            }
        }
        all
    }

    /// What does come out.
    fn reassembled(&self) -> Vec<Result<u8, u64>> {
        let mut ends = vec![0];
        for (piece, _) in &self.pieces {
            ends.push(ends.last().unwrap() + piece.len());
        }
        let seq = |at: usize| self.start.wrapping_add(1 + u32::try_from(ends[at]).unwrap());
        let (client, server): (SocketAddr, SocketAddr) =
            ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:5930".parse().unwrap());
        let segment = |first: usize, last: usize| {
            let pieces = &self.pieces[first..=last];
            let bytes: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes).copied().collect();
            let captured = pieces.iter().all(|(_, missing)| !missing);
            captured.then_some((client, server, seq(first), 0, Flags::empty(), bytes))
        };

        // Each segment, its acknowledgement, and what is sent again, then the FIN: by the place where they are captured.
        let mut order = Vec::new();
        for at in 0..self.pieces.len() {
            order.push((order.len(), segment(at, at)));
            order.push((order.len(), Some((server, client, 1, seq(at + 1), Flags::ACK, Vec::new()))));
            for (first, last) in self.again.iter().filter(|(_, last)| *last == at) {
                order.push((order.len(), segment(*first, *last)));
            }
        }
        order.push((order.len(), Some((client, server, seq(self.pieces.len()), 0, Flags::FIN, Vec::new()))));
        for ((place, _), delay) in order.iter_mut().zip(&self.delays) {
            *place += delay;
        }
        order.sort_by_key(|(place, _)| *place);

        let mut all: Vec<Result<u8, u64>> = Vec::new();
        let mut finished = false;
        let mut sink = |event: StreamEvent<'_>| match event.piece {
            Piece::Bytes { way: Way::Forth, bytes } => all.extend(bytes.iter().map(|byte| Ok(*byte))),
            Piece::Hole { way: Way::Forth, missing, .. } => match all.last_mut() {
                Some(Err(hole)) => *hole += missing,
                _ => all.push(Err(missing)),
            },
            Piece::Finished { way: Way::Forth } => finished = true,
            Piece::Opened { .. } | Piece::Ended { seen: false } => {}
            Piece::Answered
            | Piece::Bytes { way: Way::Back, .. }
            | Piece::Hole { way: Way::Back, .. }
            | Piece::Finished { way: Way::Back }
            | Piece::Reset { .. }
            | Piece::Ended { seen: true } => panic!("{event:?}"),
        };
        let mut reassembler = Reassembler::new(Limits::default());
        let syn = (client, server, self.start, 0, Flags::SYN, Vec::new());
        for (from, to, seq, ack, flags, payload) in
            std::iter::once(syn).chain(order.into_iter().filter_map(|(_, s)| s))
        {
            let segment = Segment { from, to, seq, ack, flags, payload: &payload, cut: 0 };
            reassembler.handle(Duration::ZERO, &segment, &mut sink);
        }
        reassembler.finish(&mut sink);
        assert!(finished, "the FIN was captured");
        assert_eq!(reassembler.held, 0);
        all
    }
}

proptest! {
    #[test]
    fn whatever_is_captured_comes_out_once_and_in_order(stream in shuffled(0.0)) {
        prop_assert_eq!(stream.reassembled(), stream.expected());
    }

    #[test]
    fn whatever_is_missing_is_a_hole_of_its_length(stream in shuffled(0.2)) {
        prop_assert_eq!(stream.reassembled(), stream.expected());
    }
}
