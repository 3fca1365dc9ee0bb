use super::super::driver::{self, Driver, memory};
use super::*;

const SIZE: u16 = 8;
const MIB: usize = 1 << 20;
/// Where tests have their buffers.
const DATA: u64 = 0x1_0000;

fn ring(memory: &Memory, driver: &Driver<'_>, direction: Direction, event_idx: bool) -> Ring {
    Ring::new(memory, driver.layout(), direction, event_idx, 0).unwrap()
}

fn used(head: u16, written: u32) -> UsedChain {
    UsedChain { head, written }
}

#[test]
fn chains_are_taken_in_order_and_given_back_at_once() {
    let memory = memory(MIB);
    // Near the end of all numbers, so that every index passes it.
    let mut driver = Driver::from(&memory, 0, SIZE, 0xfffd);
    let mut ring = Ring::new(&memory, driver.layout(), Direction::Readable, false, 0xfffd).unwrap();
    let mut buffers = Vec::new();
    for round in 0..20 {
        assert_eq!(ring.pop(&memory, &mut buffers), Ok(None));
        let first = driver.chain(&[(DATA, 10), (DATA + 100, 0), (DATA + 10, 20)], 0);
        let second = driver.chain(&[(DATA + 30, 1)], 0);
        assert_eq!(ring.pop(&memory, &mut buffers), Ok(Some(first)), "round {round}");
        let expected = [(DATA, 10), (DATA + 100, 0), (DATA + 10, 20)]
            .map(|(address, len)| Buffer { address: GuestAddress(address), len });
        assert_eq!(buffers, expected);
        buffers.clear();
        assert_eq!(ring.pop(&memory, &mut buffers), Ok(Some(second)));
        assert_eq!(std::mem::take(&mut buffers).len(), 1);
        assert_eq!(driver.used(), []);
        ring.give_back(&memory, &[used(second, 7), used(first, 0)]).unwrap();
        assert_eq!(driver.used(), [(second.into(), 7), (first.into(), 0)]);
    }
    assert_eq!(ring.next_available(), 0xfffdu16.wrapping_add(40));
}

#[test]
fn what_was_not_taken_after_all_is_taken_again() {
    let memory = memory(MIB);
    let mut driver = Driver::new(&memory, 0, SIZE);
    let mut ring = ring(&memory, &driver, Direction::Writable, true);
    let heads = [0, 1, 2].map(|n| driver.chain(&[(DATA + n, 1)], driver::WRITE));
    let mut buffers = Vec::new();
    for _ in 0..3 {
        let taken = heads.map(|_| ring.pop(&memory, &mut buffers).unwrap().unwrap());
        assert_eq!(taken, heads);
        assert_eq!(ring.pop(&memory, &mut buffers), Ok(None));
        ring.unpop(3);
        assert_eq!(ring.next_available(), 0);
    }
}

#[test]
fn an_indirect_table_is_a_chain() {
    let memory = memory(MIB);
    let mut driver = Driver::new(&memory, 0, SIZE);
    let mut ring = ring(&memory, &driver, Direction::Readable, true);
    let table = 0x8000;
    // Longer than the ring, and not in the order of its descriptors.
    for index in 0..20u16 {
        let flags = if index == 7 { 0 } else { driver::NEXT };
        driver::descriptor(&memory, table, index, DATA + u64::from(index), 1, flags, (index + 7) % 20);
    }
    driver.descriptor(0, DATA, 3, driver::NEXT, 1);
    driver.descriptor(1, table, 20 * 16, driver::INDIRECT, 0);
    driver.offer(0);
    let mut buffers = Vec::new();
    assert_eq!(ring.pop(&memory, &mut buffers), Ok(Some(0)));
    let addresses: Vec<u64> = buffers.iter().map(|buffer| buffer.address.0 - DATA).collect();
    assert_eq!(addresses, [0, 0, 7]);
}

/// What no driver may do: each is named, and nothing worse happens.
#[test]
fn hostile_chains() {
    use driver::{INDIRECT, NEXT, WRITE};
    type Wrong = fn(&mut Driver<'_>, &Memory);
    let cases: [(&str, Wrong, RingError); 15] = [
        ("more chains than it has", |d, _| d.set_available_index(SIZE + 1), RingError::Available(SIZE + 1)),
        ("the index goes back", |d, _| d.set_available_index(0xffff), RingError::Available(0xffff)),
        ("no such head", |d, _| d.offer(SIZE), RingError::Descriptor(SIZE)),
        ("no such head at all", |d, _| d.offer(0xffff), RingError::Descriptor(0xffff)),
        (
            "no such next",
            |d, _| {
                d.descriptor(0, DATA, 1, NEXT, SIZE);
                d.offer(0);
            },
            RingError::Descriptor(SIZE),
        ),
        (
            "a circle of one",
            |d, _| {
                d.descriptor(3, DATA, 1, NEXT, 3);
                d.offer(3);
            },
            RingError::Chain(MAX_CHAIN),
        ),
        (
            "a circle of all",
            |d, _| {
                (0..SIZE).for_each(|n| d.descriptor(n, DATA, 1, NEXT, (n + 1) % SIZE));
                d.offer(0);
            },
            RingError::Chain(MAX_CHAIN),
        ),
        (
            "a circle in a table",
            |d, memory| {
                driver::descriptor(memory, 0x8000, 0, DATA, 1, NEXT, 0);
                d.descriptor(0, 0x8000, 16, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Chain(MAX_CHAIN),
        ),
        (
            "a table in a table",
            |d, memory| {
                driver::descriptor(memory, 0x8000, 0, 0x8000, 16, INDIRECT, 0);
                d.descriptor(0, 0x8000, 16, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Indirect(16),
        ),
        (
            "a table that is not the last",
            |d, _| {
                d.descriptor(0, 0x8000, 16, INDIRECT | NEXT, 1);
                d.offer(0);
            },
            RingError::Indirect(16),
        ),
        (
            "a table of nothing",
            |d, _| {
                d.descriptor(0, 0x8000, 0, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Indirect(0),
        ),
        (
            "a table of half a descriptor",
            |d, _| {
                d.descriptor(0, 0x8000, 24, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Indirect(24),
        ),
        (
            "a table of four GiB",
            |d, _| {
                d.descriptor(0, 0, !15, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Indirect(!15),
        ),
        (
            "a table where no memory is",
            |d, _| {
                d.descriptor(0, u64::MAX - 15, 32, INDIRECT, 0);
                d.offer(0);
            },
            RingError::Memory(u64::MAX - 15),
        ),
        (
            "a buffer for the wrong direction",
            |d, _| {
                d.chain(&[(DATA, 1)], WRITE);
            },
            RingError::Direction,
        ),
    ];
    for (what, wrong, error) in cases {
        for event_idx in [false, true] {
            let memory = memory(MIB);
            let mut driver = Driver::new(&memory, 0, SIZE);
            let mut ring = ring(&memory, &driver, Direction::Readable, event_idx);
            wrong(&mut driver, &memory);
            assert_eq!(ring.pop(&memory, &mut Vec::new()), Err(error), "{what}");
        }
    }
}

#[test]
fn hostile_layouts() {
    let memory = memory(MIB);
    let right = Driver::new(&memory, 0, SIZE).layout();
    let new = |layout| Ring::new(&memory, layout, Direction::Readable, true, 0).err();
    assert_eq!(new(right), None);
    for size in [0, 3, 100, 2048, 65_536, u32::MAX] {
        assert_eq!(new(Layout { size, ..right }), Some(RingError::Size(size)));
    }
    let end = MIB as u64;
    for address in [1, 8, end - 16, end, 1 << 40, u64::MAX - 15, u64::MAX] {
        let error = Some(RingError::Place { table: "descriptor table", address });
        assert_eq!(new(Layout { descriptors: address, ..right }), error);
    }
    for address in [1, end - 20, end, u64::MAX - 21, u64::MAX] {
        let error = Some(RingError::Place { table: "available ring", address });
        assert_eq!(new(Layout { available: address, ..right }), error);
    }
    for address in [2, end - 68, end, u64::MAX - 69, u64::MAX] {
        let error = Some(RingError::Place { table: "used ring", address });
        assert_eq!(new(Layout { used: address, ..right }), error);
    }
    // To the last octet.
    assert_eq!(new(Layout { available: end - 22, ..right }), None);
    assert_eq!(new(Layout { used: end - 72, ..right }), None);
}

#[test]
fn memory_that_goes_away_is_an_error() {
    let (large, small) = (memory(MIB), memory(0x1000));
    let mut driver = Driver::new(&large, 0, SIZE);
    let mut ring = ring(&large, &driver, Direction::Readable, true);
    driver.chain(&[(DATA, 1)], 0);
    ring.give_back(&large, &[used(0, 0)]).unwrap();
    assert!(matches!(ring.relocate(&small, driver.layout()), Err(RingError::Place { .. })));
    assert!(matches!(ring.pop(&small, &mut Vec::new()), Err(RingError::Memory(_))));
    assert!(matches!(ring.give_back(&small, &[used(0, 0)]), Err(RingError::Memory(_))));
    assert!(matches!(ring.must_tell(&small), Err(RingError::Memory(_))));
    assert!(matches!(ring.arm(&small), Err(RingError::Memory(_))));
}

#[test]
fn the_driver_is_told_when_it_wants_to_be() {
    let memory = memory(MIB);
    for event_idx in [false, true] {
        let mut driver = Driver::new(&memory, 0, SIZE);
        driver.set_available_index(0);
        driver.set_available_flags(0);
        poke_used_index(&memory, &driver);
        let mut ring = ring(&memory, &driver, Direction::Readable, event_idx);
        let mut give = |ring: &mut Ring, count: usize| {
            let heads: Vec<u16> = (0..count).map(|_| driver.chain(&[(DATA, 1)], 0)).collect();
            heads.iter().for_each(|_| assert!(ring.pop(&memory, &mut Vec::new()).unwrap().is_some()));
            let chains: Vec<_> = heads.into_iter().map(|head| used(head, 0)).collect();
            ring.give_back(&memory, &chains).unwrap();
        };
        assert_eq!(ring.must_tell(&memory), Ok(false), "nothing was given");
        if event_idx {
            for (event, count, told) in
                [(0, 1, true), (0, 1, false), (3, 1, false), (3, 1, true), (6, 4, true), (9, 1, false)]
            {
                Driver::new(&memory, 0, SIZE).set_used_event(event);
                give(&mut ring, count);
                assert_eq!(ring.must_tell(&memory), Ok(told), "from {event} on, and {count} were given");
                assert_eq!(ring.must_tell(&memory), Ok(false), "once");
            }
        } else {
            for (flags, told) in [(0, true), (1, false), (0, true)] {
                Driver::new(&memory, 0, SIZE).set_available_flags(flags);
                give(&mut ring, 1);
                assert_eq!(ring.must_tell(&memory), Ok(told));
            }
        }
    }
}

fn poke_used_index(memory: &Memory, driver: &Driver<'_>) {
    driver::poke(memory, driver.layout().used + 2, &[0, 0]);
}

#[test]
fn the_device_is_told_when_it_waits() {
    let memory = memory(MIB);
    for event_idx in [false, true] {
        let mut driver = Driver::from(&memory, 0, SIZE, 0);
        let mut ring = ring(&memory, &driver, Direction::Readable, event_idx);
        assert_eq!(ring.arm(&memory), Ok(false));
        assert_eq!((driver.used_flags(), driver.available_event()), (0, 0));
        driver.chain(&[(DATA, 1)], 0);
        assert_eq!(ring.arm(&memory), Ok(true), "it came before the device slept");
        assert!(ring.pop(&memory, &mut Vec::new()).unwrap().is_some());
        assert_eq!(driver.used_flags(), if event_idx { 0 } else { 1 }, "no more kicks, please");
        assert_eq!(ring.arm(&memory), Ok(false));
        assert_eq!(driver.used_flags(), 0);
        assert_eq!(driver.available_event(), if event_idx { 1 } else { 0 });
        // A chain that is known, and not enough: it waits for the one after it.
        driver.chain(&[(DATA, 1)], 0);
        assert_eq!(ring.arm(&memory), Ok(true));
        assert_eq!(ring.arm(&memory), Ok(false));
        assert_eq!(driver.available_event(), if event_idx { 2 } else { 0 });
    }
}
