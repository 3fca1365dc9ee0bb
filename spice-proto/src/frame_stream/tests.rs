use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::frame::put_header;

/// Gives as much of its bytes as there is room for, pauses after each time, and takes nothing.
#[derive(Default)]
struct Source {
    bytes: Vec<u8>,
    /// At most so many at a time.
    most: usize,
    pauses: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pauses = !self.pauses && !self.bytes.is_empty();
        if !self.pauses && !self.bytes.is_empty() {
            return Poll::Pending;
        }
        let n = self.most.min(self.bytes.len()).min(room.remaining());
        room.put_slice(&self.bytes[..n]);
        self.bytes.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

fn message(length: usize, fill: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(HeaderForm::Mini, &mut bytes, 0, 7, length as u32);
    bytes.resize(bytes.len() + length, fill);
    bytes
}

/// Reads, after a pause if there is one. 0 is the end.
fn fill(stream: &mut FrameStream<Source>) -> usize {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(read) = stream.poll_fill(&mut cx) {
            return read.unwrap();
        }
    }
}

/// Reads messages of these lengths to the end, and checks each.
fn carry(stream: &mut FrameStream<Source>, lengths: &[usize], most: usize) {
    for (i, length) in lengths.iter().enumerate() {
        stream.stream.bytes.extend(message(*length, i as u8));
    }
    stream.stream.most = most;
    for (i, length) in lengths.iter().enumerate() {
        let consumed = loop {
            if let Some((frame, consumed)) = stream.frame(2 << 20).unwrap() {
                assert_eq!((frame.kind, frame.body.len()), (7, *length));
                assert!(frame.body.iter().all(|byte| *byte == i as u8));
                break consumed;
            }
            assert!(fill(stream) > 0, "the rest of a message");
        };
        stream.consume(consumed);
    }
    assert!(stream.frame(2 << 20).unwrap().is_none() && stream.partial() == 0);
}

fn stream() -> FrameStream<Source> {
    FrameStream::new(Source::default(), HeaderForm::Mini, &[])
}

/// Gives these, one at a time, as TLS its records; then it waits.
struct Records(std::vec::IntoIter<io::Result<Vec<u8>>>);

impl AsyncRead for Records {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(record) = self.0.next() else { return Poll::Pending };
        room.put_slice(&record?);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Records {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[test]
fn all_records_that_came_are_one_read_and_what_went_wrong_behind_them_the_next() {
    let mut cx = Context::from_waker(Waker::noop());
    for (end, next) in [
        (Ok(Vec::new()), Ok(0)),
        (Err(io::ErrorKind::ConnectionReset.into()), Err(io::ErrorKind::ConnectionReset)),
    ] {
        let records = vec![Ok(vec![1; 10]), Ok(vec![2; 10]), end, Ok(Vec::new())];
        let mut stream = FrameStream::new(Records(records.into_iter()), HeaderForm::Mini, &[]);
        assert!(matches!(stream.poll_fill(&mut cx), Poll::Ready(Ok(20))));
        let Poll::Ready(got) = stream.poll_fill(&mut cx) else { panic!("the end") };
        assert_eq!(got.map_err(|error| error.kind()), next);
        assert_eq!(stream.partial(), 20);
    }
}

#[test]
fn a_transfer_is_read_in_whole_messages() {
    let mut stream = stream();
    carry(&mut stream, &[32_770; 20], 1 << 20);
    // One of another length in between puts them out of step for one read.
    for (round, between) in [false, false, true, false, false, true, false].into_iter().enumerate() {
        let short = if between { message(4, 1) } else { Vec::new() };
        let transfer = std::iter::repeat_with(|| message(32_770, 2)).take(12).flatten();
        stream.stream.bytes = short.into_iter().chain(transfer).collect();
        let mut fills = 0;
        let mut torn = 0;
        while fill(&mut stream) > 0 {
            fills += 1;
            while let Some((_, consumed)) = stream.frame(1 << 20).unwrap() {
                stream.consume(consumed);
            }
            torn += usize::from(stream.partial() > 0);
        }
        assert_eq!((fills, torn), (3 + usize::from(between), usize::from(between)), "round {round}");
    }
}

#[test]
fn the_buffer_grows_with_what_comes_and_falls_back() {
    let mut stream = stream();
    assert_eq!(stream.input.len(), LEAST_INPUT);
    carry(&mut stream, &[100; 50], 150);
    assert_eq!(stream.input.len(), LEAST_INPUT, "small messages need no more");
    carry(&mut stream, &[32 << 10; 50], usize::MAX);
    assert_eq!(stream.input.len(), INPUT, "reads are as large as they may be");
    carry(&mut stream, &[10; 20], 16);
    assert_eq!(stream.input.len(), LEAST_INPUT, "the burst is over");
    carry(&mut stream, &[1 << 20], usize::MAX);
    assert!((1 << 20..1 << 21).contains(&stream.input.len()), "one message of any allowed length");
    carry(&mut stream, &[10; 20], 16);
    assert_eq!(stream.input.len(), LEAST_INPUT);
}

proptest! {
    #[test]
    fn every_message_comes_out_whole(
        bursts in prop::collection::vec((prop::collection::vec(0usize..70_000, 0..12), 1usize..200_000), 0..12),
    ) {
        let mut stream = stream();
        for (lengths, most) in bursts {
            carry(&mut stream, &lengths, most);
            prop_assert!(stream.input.len() >= LEAST_INPUT && stream.input.len() <= INPUT.max(80_000) * 2);
        }
    }
}
