use proptest::prelude::*;

use super::super::driver::{Driver, WRITE, memory, peek, poke};
use super::super::ring::{Direction, Layout};
use super::*;

const MIB: usize = 1 << 20;
const SIZE: u16 = 8;
const TRANSMIT: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const HEADER: [u8; vnet::HEADER] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
const LEGACY: Features = Features(0);
const MERGEABLE: Features = Features(1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_F_VERSION_1);
const PLAIN: Features = Features(1 << VIRTIO_F_VERSION_1);

struct Card<'m> {
    frames: Frames,
    receive: Driver<'m>,
    transmit: Driver<'m>,
}

fn card(memory: &Memory, features: Features) -> Card<'_> {
    let (receive, transmit) = (Driver::new(memory, 0, SIZE), Driver::new(memory, TRANSMIT, SIZE));
    let ring =
        |driver: &Driver<'_>, direction| Ring::new(memory, driver.layout(), direction, false, 0).unwrap();
    let frames =
        Frames::new(features, ring(&receive, Direction::Writable), ring(&transmit, Direction::Readable));
    Card { frames, receive, transmit }
}

#[test]
fn offloads_are_what_the_guest_takes() {
    let segments = 1 << VIRTIO_NET_F_GUEST_TSO4;
    let checksums = 1 << VIRTIO_NET_F_GUEST_CSUM;
    assert_eq!(Features::OFFERED.offloads(), Offloads::ALL);
    assert_eq!(Features(segments).offloads(), Offloads::NONE, "not without checksums");
    assert_eq!(Features(checksums).offloads(), Offloads { checksums: true, segments: false });
    assert_eq!(Features(segments | checksums).offloads(), Offloads::ALL);
    assert_eq!(PLAIN.offloads(), Offloads::NONE);
}

#[test]
fn a_frame_is_taken_however_it_lies() {
    let memory = memory(MIB);
    for (features, header) in [(LEGACY, 10), (PLAIN, 12), (MERGEABLE, 12)] {
        let mut card = card(&memory, features);
        let start = card.frames.transmit.next_available();
        let record: Vec<u8> = [vec![0; header], b"a frame of some length".to_vec()].concat();
        for cuts in [&[1][..], &[header], &[3, 9, 11], &[header - 1, header + 1]] {
            let mut buffers = Vec::new();
            let mut from = 0;
            for (place, to) in (0..).zip(cuts.iter().copied().chain([record.len()])) {
                let address = DATA + place * 0x1000;
                poke(&memory, address, &record[from..to]);
                buffers.push((address, (to - from) as u32));
                from = to;
            }
            let head = card.transmit.chain(&buffers, 0);
            let mut space = vec![0xee; MAX_RECORD];
            let taken = card.frames.take(&memory, &mut space);
            assert_eq!(taken, Ok(Some(Taken::Record(record.len()))));
            let frame = features.parse(&space[..record.len()]).unwrap();
            assert_eq!(frame.bytes, b"a frame of some length");
            assert_eq!(card.frames.take(&memory, &mut space), Ok(None));
            card.frames.give_back(&memory).unwrap();
            assert_eq!(card.transmit.used(), [(head.into(), 0)]);
        }
        assert_eq!(card.frames.transmit.next_available(), start + 4);
        // The next kind of driver begins anew.
        poke(&memory, 0, &[0; DATA as usize]);
    }
}

#[test]
fn what_is_no_frame_is_skipped_and_given_back() {
    let memory = memory(MIB);
    let mut card = card(&memory, PLAIN);
    let mut space = vec![0; MAX_RECORD];
    // Nothing, a header alone, one octet too much, and far too much.
    let chains: [&[(u64, u32)]; 4] = [
        &[(DATA, 0)],
        &[(DATA, 12)],
        &[(DATA, MAX_RECORD as u32), (DATA, 1)],
        &[(DATA, u32::MAX), (DATA, u32::MAX), (u64::MAX, u32::MAX)],
    ];
    let heads = chains.map(|buffers| card.transmit.chain(buffers, 0));
    for _ in heads {
        assert_eq!(card.frames.take(&memory, &mut space), Ok(Some(Taken::Nothing)));
    }
    card.frames.give_back(&memory).unwrap();
    assert_eq!(card.transmit.used(), heads.map(|head| (head.into(), 0)));
    card.transmit.chain(&[(DATA, MAX_RECORD as u32)], 0);
    assert_eq!(card.frames.take(&memory, &mut space), Ok(Some(Taken::Record(MAX_RECORD))));
    for outside in [MIB as u64 - 10, MIB as u64, u64::MAX - 5] {
        let error = Err(RingError::Memory(outside));
        card.transmit.chain(&[(outside, 20)], 0);
        assert_eq!(card.frames.take(&memory, &mut space), error);
    }
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_takes() {
    let memory = memory(MIB);
    let mut card = card(&memory, MERGEABLE);
    let frame: Vec<u8> = (0..3000u16).map(|n| n as u8).collect();
    let give = |card: &mut Card<'_>| card.frames.give(&memory, &HEADER, &frame);
    assert_eq!(give(&mut card), Ok(Given::Later));
    let (a, b, c) = (DATA, DATA + 0x1000, DATA + 0x2000);
    let first = card.receive.chain(&[(a, 5), (a + 5, 995)], WRITE);
    let second = card.receive.chain(&[(b, 1500)], WRITE);
    for _ in 0..3 {
        assert_eq!(give(&mut card), Ok(Given::Later));
        assert_eq!(card.receive.used(), []);
        assert_eq!(card.frames.receive.next_available(), 0);
    }
    let third = card.receive.chain(&[(c, 4000)], WRITE);
    assert_eq!(give(&mut card), Ok(Given::Yes));
    let used = [(first.into(), 1000), (second.into(), 1500), (third.into(), 512)];
    assert_eq!(card.receive.used(), used);
    let written = [peek(&memory, a, 1000), peek(&memory, b, 1500), peek(&memory, c, 512)].concat();
    assert_eq!(written, [&HEADER[..], &[3, 0], &frame].concat());
    assert_eq!(peek(&memory, c + 512, 4), [0; 4], "not an octet further");
}

#[test]
fn without_merging_a_frame_has_one_chain_or_none() {
    let memory = memory(MIB);
    for (features, header) in [(PLAIN, 12), (LEGACY, 10)] {
        poke(&memory, 0, &[0; DATA as usize]);
        let mut card = card(&memory, features);
        card.receive.chain(&[(DATA, header as u32), (DATA + 0x100, 60)], WRITE);
        let give = |card: &mut Card<'_>, octets| card.frames.give(&memory, &HEADER, &vec![7; octets]);
        assert_eq!(give(&mut card, 61), Ok(Given::Never), "a card drops what does not fit");
        assert_eq!(card.receive.used(), []);
        assert_eq!(give(&mut card, 60), Ok(Given::Yes), "and the buffer is there for the next");
        assert_eq!(card.receive.used(), [(0, header as u32 + 60)]);
        let count: &[u8] = if header == 12 { &[1, 0] } else { &[] };
        assert_eq!(peek(&memory, DATA, header), [&HEADER, count].concat());
        assert_eq!(give(&mut card, 60), Ok(Given::Later));
    }
}

#[test]
fn buffers_that_never_suffice_are_not_waited_for() {
    let memory = memory(MIB);
    let mut card = card(&memory, MERGEABLE);
    for _ in 0..SIZE {
        card.receive.chain(&[(DATA, 100)], WRITE);
    }
    let give = |card: &mut Card<'_>, octets| card.frames.give(&memory, &HEADER, &vec![7; octets]);
    assert_eq!(give(&mut card, 789), Ok(Given::Never));
    assert_eq!(give(&mut card, 788), Ok(Given::Yes));
    assert_eq!(card.receive.used().len(), usize::from(SIZE));
    // Empty ones without end, made available while we look.
    for _ in 0..SIZE {
        card.receive.chain(&[(DATA, 0)], WRITE);
    }
    assert_eq!(give(&mut card, 1), Ok(Given::Never));
}

#[test]
fn nothing_is_written_where_no_memory_is() {
    let memory = memory(MIB);
    for outside in [MIB as u64 - 10, MIB as u64, u64::MAX - 5] {
        poke(&memory, 0, &[0; DATA as usize]);
        let mut card = card(&memory, MERGEABLE);
        card.receive.chain(&[(DATA, 20), (outside, 4000)], WRITE);
        assert_eq!(card.frames.give(&memory, &HEADER, &[7; 100]), Err(RingError::Memory(outside)));
        assert_eq!(card.receive.used(), []);
    }
}

proptest! {
    /// A driver that writes whatever it likes, and changes it while we look: no panic, and each step is short.
    #[test]
    fn rings_of_noise(
        noise in prop::collection::vec(any::<u8>(), 0x400),
        sparse in any::<bool>(),
        tables in prop::array::uniform6(0u64..0x400),
        sizes in prop::array::uniform2(0u32..6),
        base in any::<u16>(),
        features in any::<u64>(),
        steps in prop::collection::vec((0u64..0x400, any::<u8>(), any::<u8>()), 1..60),
    ) {
        let memory = memory(0x1000);
        // Noise alone seldom has an index that may be, or a descriptor whose buffer is in memory.
        let noise: Vec<u8> = if sparse { noise.into_iter().map(|byte| byte & 3).collect() } else { noise };
        poke(&memory, 0, &noise);
        let layout = |t: &[u64], size: u32| Layout {
            size: 1 << size,
            descriptors: t[0] & !15,
            available: t[1] & !1,
            used: t[2] & !3,
        };
        if sparse {
            // So that the ring has chains for certain.
            for available in [tables[1], tables[4]] {
                poke(&memory, (available & !1) + 2, &base.wrapping_add(3).to_le_bytes());
            }
        }
        let features = Features(features);
        let new = |t, size, direction| Ring::new(&memory, layout(t, size), direction, features.event_idx(), base);
        let (Ok(receive), Ok(transmit)) = (
            new(&tables[..3], sizes[0], Direction::Writable),
            new(&tables[3..], sizes[1], Direction::Readable),
        ) else {
            return Ok(());
        };
        let mut frames = Frames::new(features, receive, transmit);
        let mut space = vec![0; MAX_RECORD];
        for (place, byte, octets) in steps {
            poke(&memory, place, &[byte]);
            let _ = frames.take(&memory, &mut space);
            let _ = frames.give_back(&memory);
            let _ = frames.give(&memory, &HEADER, &vec![byte; usize::from(octets) * 7]);
            let _ = frames.transmit.must_tell(&memory);
            let _ = frames.receive.arm(&memory);
        }
    }
}
