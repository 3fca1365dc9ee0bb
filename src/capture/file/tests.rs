use std::io::Cursor;

use super::super::packet::segment;
use super::super::reassembly::{Limits, Piece, Reassembler, StreamEvent};
use super::*;

/// What a file holds: number, time, link type, length on the wire, bytes.
type Packets = Vec<(u64, Duration, u32, usize, Vec<u8>)>;

/// Reads all, and how it ends.
fn read(source: impl Read + Send + 'static) -> (Packets, Result<u64, FileError>) {
    let mut packets = Vec::new();
    let mut reader = match Reader::new(source) {
        Ok(reader) => reader,
        Err(error) => return (packets, Err(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(Packet { number, time, link_type, original_len, bytes })) => {
                packets.push((number, time, link_type, original_len, bytes.to_vec()));
            }
            Ok(None) => return (packets, Ok(reader.position())),
            Err(error) => {
                assert!(reader.next().unwrap().is_none(), "something came behind an error");
                return (packets, Err(error));
            }
        }
    }
}

#[track_caller]
fn good(bytes: &[u8]) -> Packets {
    let (packets, end) = read(Cursor::new(bytes.to_vec()));
    assert_eq!(end.unwrap(), bytes.len() as u64, "position behind the last packet");
    let (again, end) = read(Trickle(Cursor::new(bytes.to_vec())));
    end.unwrap();
    assert_eq!(again, packets, "the same, byte by byte");
    packets
}

/// How many packets come before an error, and what it says.
#[track_caller]
fn bad(bytes: &[u8]) -> (usize, String) {
    let (packets, end) = read(Cursor::new(bytes.to_vec()));
    (packets.len(), end.expect_err("it should not be read to its end").to_string())
}

/// Gives one byte at a time, and is interrupted before each.
struct Trickle(Cursor<Vec<u8>>);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.0.position();
        if at.is_multiple_of(2) {
            self.0.set_position(at + 1);
            return Err(io::ErrorKind::Interrupted.into());
        }
        let index = usize::try_from(at / 2).unwrap();
        self.0.set_position(at + 1);
        let Some(byte) = self.0.get_ref().get(index) else { return Ok(0) };
        buffer[0] = *byte;
        Ok(1)
    }
}

/// Numbers in either byte order.
#[derive(Clone, Copy)]
struct Order(bool);

const LITTLE: Order = Order(false);
const BIG: Order = Order(true);

impl Order {
    fn u16(self, value: u16) -> [u8; 2] {
        if self.0 { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        if self.0 { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn pcap(self, magic: u32, link_type: u32) -> Vec<u8> {
        let version = [self.u16(2), self.u16(4)].concat();
        let rest = [0, 0, 65_535, link_type].map(|number| self.u32(number)).concat();
        [self.u32(magic).to_vec(), version, rest].concat()
    }

    fn record(self, seconds: u32, fraction: u32, original_len: u32, bytes: &[u8]) -> Vec<u8> {
        let len = u32::try_from(bytes.len()).unwrap();
        [&[seconds, fraction, len, original_len].map(|number| self.u32(number)).concat(), bytes].concat()
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let len = self.u32(u32::try_from(body.len()).unwrap() + 12);
        [&self.u32(kind)[..], &len, &body, &len].concat()
    }

    fn section(self) -> Vec<u8> {
        let body = [&self.u32(0x1A2B_3C4D)[..], &self.u16(1), &self.u16(0), &[0xFF; 8]].concat();
        self.block(0x0A0D_0D0A, &body)
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut option =
            [&self.u16(code)[..], &self.u16(u16::try_from(value.len()).unwrap()), value].concat();
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    fn interface(self, link_type: u16, snap_len: u32, options: &[u8]) -> Vec<u8> {
        self.block(1, &[&self.u16(link_type)[..], &[0, 0], &self.u32(snap_len), options].concat())
    }

    fn enhanced(self, interface: u32, time: u64, original_len: u32, bytes: &[u8], options: &[u8]) -> Vec<u8> {
        let (high, low) = (u32::try_from(time >> 32).unwrap(), u32::try_from(time & 0xFFFF_FFFF).unwrap());
        let len = u32::try_from(bytes.len()).unwrap();
        let mut body = [interface, high, low, len, original_len].map(|number| self.u32(number)).concat();
        body.extend_from_slice(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend_from_slice(options);
        self.block(6, &body)
    }
}

#[test]
fn pcap_of_either_byte_order_and_resolution() {
    for order in [LITTLE, BIG] {
        for (magic, nanoseconds) in [(0xA1B2_C3D4, 7_000), (0xA1B2_3C4D, 7)] {
            let file = [
                order.pcap(magic, 101),
                order.record(5, 7, 4, b"four"),
                order.record(6, 0, 1500, b"cut"),
                order.record(6, 0, 0, b""),
            ]
            .concat();
            let at = |seconds, nanoseconds| Duration::new(seconds, nanoseconds);
            assert_eq!(
                good(&file),
                [
                    (1, at(5, nanoseconds), 101, 4, b"four".to_vec()),
                    (2, at(6, 0), 101, 1500, b"cut".to_vec()),
                    (3, at(6, 0), 101, 0, Vec::new()),
                ]
            );
        }
    }
}

/// Such files are written by real programs: a packet longer than the snap length, a length on the wire that is not
/// filled in, more than a second of microseconds, and a link type that says how long the frame checksum is.
#[test]
fn pcap_with_odd_numbers_is_read() {
    let file = [
        LITTLE.pcap(0xA1B2_C3D4, 0x2400_0001),
        LITTLE.record(1, 1_500_000, 0, &vec![7; 70_000]),
        LITTLE.record(1, 0, 1, &[8; 60]),
    ]
    .concat();
    let packets = good(&file);
    assert_eq!(packets[0].1, Duration::from_millis(2500));
    assert_eq!((packets[0].2, packets[0].3, packets[0].4.len()), (1, 70_000, 70_000));
    assert_eq!((packets[1].3, packets[1].4.len()), (60, 60));
}

#[test]
fn what_is_no_capture_is_refused() {
    assert_eq!(bad(b"").1, "the capture is empty: expected the header of a pcap or pcapng file");
    assert_eq!(
        bad(b"REDQ and so on").1,
        "not a capture: expected the magic number of pcap or pcapng, got [52, 45, 44, 51]"
    );
    let cut =
        "the capture is cut short: the file header at byte 0 should have 24 bytes, but the file ends after";
    assert_eq!(bad(&[0xD4]).1, format!("{cut} 1"));
    assert_eq!(bad(&LITTLE.pcap(0xA1B2_C3D4, 1)[..23]).1, format!("{cut} 23"));
    let section = &LITTLE.section()[..27];
    assert!(
        bad(section).1.contains("the section header at byte 0 should have 28 bytes"),
        "{}",
        bad(section).1
    );
}

#[test]
fn a_pcap_that_is_cut_short_gives_all_before_and_says_where() {
    let file =
        [LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 4, b"four"), LITTLE.record(1, 0, 6, b"second")]
            .concat();
    for end in 24..file.len() {
        let (packets, result) = read(Cursor::new(file[..end].to_vec()));
        assert_eq!(packets.len(), usize::from(end >= 44), "{end}");
        assert_eq!(result.is_ok(), end == 24 || end == 44, "{end}");
    }
    let at = "the capture is cut short: packet 2 at byte 44 should have";
    assert_eq!(bad(&file[..50]), (1, format!("{at} 16 bytes, but the file ends after 6")));
    assert_eq!(bad(&file[..65]), (1, format!("{at} 22 bytes, but the file ends after 21")));
}

#[test]
fn a_length_that_no_packet_has_is_damage() {
    let mut record = LITTLE.record(1, 0, 4, b"four");
    record[8..12].copy_from_slice(&0xFFFF_FFF0_u32.to_le_bytes());
    let file = [LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 4, b"four"), record].concat();
    let text = "the capture is damaged: packet 2 at byte 44: expected at most 1048576 bytes, got a length of 4294967280";
    assert_eq!(bad(&file), (1, text.into()));

    let longest = vec![1; MAX_PACKET];
    assert_eq!(good(&[LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 4, &longest)].concat())[0].4, longest);
    let longer = vec![1; MAX_PACKET + 1];
    assert_eq!(bad(&[LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 4, &longer)].concat()).0, 0);
}

#[test]
fn pcapng_with_all_that_can_be_in_it() {
    for order in [LITTLE, BIG] {
        let other = Order(!order.0);
        let milliseconds = [
            order.option(9, &[3]),
            order.option(14, &if order.0 { 100_i64.to_be_bytes() } else { 100_i64.to_le_bytes() }),
        ]
        .concat();
        // 2^-10 s
        let binary = order.option(9, &[0x8A]);
        let not_utf8 = [order.option(1, &[0xFF, 0xFE]), order.option(0, &[])].concat();
        let obsolete = [
            &order.u16(1)[..],
            &order.u16(9),
            &order.u32(0),
            &order.u32(4_000),
            &order.u32(3),
            &order.u32(30),
            b"old",
        ]
        .concat();
        let file = [
            order.section(),
            order.interface(1, 5, &[]),
            order.interface(113, 0, &milliseconds),
            order.block(0x0BAD, &[0; 40]),
            order.interface(101, 0, &binary),
            order.enhanced(0, 2_000_003, 4, b"four", &not_utf8),
            order.enhanced(1, 1_500, 1500, b"cut", &[]),
            order.block(0x7FFF_FFFF, &vec![0xAA; 300_000]),
            order.enhanced(2, 1024 + 512, 0, b"", &[]),
            order.block(3, &[&order.u32(9)[..], b"simpl"].concat()),
            order.block(2, &obsolete),
            // Statistics, as dumpcap writes at the end.
            order.block(5, &[0; 12]),
            other.section(),
            other.interface(276, 0, &[]),
            other.block(3, &[&other.u32(3)[..], b"all"].concat()),
        ]
        .concat();
        let at = |milliseconds| Duration::from_millis(milliseconds);
        assert_eq!(
            good(&file),
            [
                (1, Duration::from_micros(2_000_003), 1, 4, b"four".to_vec()),
                (2, at(101_500), 113, 1500, b"cut".to_vec()),
                (3, at(1_500), 101, 0, Vec::new()),
                (4, at(1_500), 1, 9, b"simpl".to_vec()),
                (5, at(104_000), 113, 30, b"old".to_vec()),
                (6, at(104_000), 276, 3, b"all".to_vec()),
            ]
        );
    }
}

#[test]
fn a_pcapng_that_is_cut_short_gives_all_before_and_says_where() {
    let start = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let packet = LITTLE.enhanced(0, 1, 4, b"four", &[]);
    let file = [&start[..], &packet, &packet].concat();
    let whole = [LITTLE.section().len(), start.len(), start.len() + packet.len()];
    for end in LITTLE.section().len()..file.len() {
        let (packets, result) = read(Cursor::new(file[..end].to_vec()));
        assert_eq!(packets.len(), usize::from(end >= whole[2]), "{end}");
        assert_eq!(result.is_ok(), whole.contains(&end), "{end}");
    }
    let (at, last) = (whole[2], file.len() - 1);
    let text = format!("the capture is cut short: packet 2 at byte {at} should have 36 bytes");
    assert_eq!(bad(&file[..last]), (1, format!("{text}, but the file ends after 35")));
}

#[test]
fn damaged_blocks_say_what_is_wrong() {
    let start = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let at = start.len();
    let damaged = |block: Vec<u8>| bad(&[&start[..], &block].concat()).1;
    let says = |block, what: &str| {
        let text = damaged(block);
        assert!(text.starts_with("the capture is damaged: ") && text.contains(what), "{text}");
        assert!(text.contains(&format!("at byte {at}")), "{text}");
    };

    says(
        LITTLE.enhanced(1, 1, 4, b"four", &[]),
        "it is of interface 1, but 1 were described in this section",
    );
    let mut longer_than_its_block = LITTLE.enhanced(0, 1, 4, b"four", &[]);
    longer_than_its_block[20] = 200;
    says(
        longer_than_its_block,
        "packet 1 at byte 48: expected 200 bytes of the packet, but the block has room for 4",
    );
    says(LITTLE.block(6, &[0; 8]), "do not fit into 8 bytes");
    let mut trailer = LITTLE.enhanced(0, 1, 4, b"four", &[]);
    *trailer.last_mut().unwrap() = 1;
    says(trailer, "packet 1");
    let mut length = LITTLE.enhanced(0, 1, 4, b"four", &[]);
    length[4..8].copy_from_slice(&0xFFFF_FFF0_u32.to_le_bytes());
    says(length, "expected a block of at most 16777216 bytes, got a length of 4294967280");
    let mut length = LITTLE.enhanced(0, 1, 4, b"four", &[]);
    length[4] = 8;
    says(length, "packet 1");
}

/// What the parser keeps of a section does not grow with the file.
#[test]
fn interface_descriptions_are_bounded() {
    let many_options = LITTLE.option(2, b"").repeat(1000);
    let interface = LITTLE.interface(1, 0, &many_options);
    let few = 200;
    let sections = [LITTLE.section(), interface.repeat(few)].concat().repeat(3);
    good(&sections);
    let (_, text) =
        bad(&[LITTLE.section(), interface.repeat(MAX_DESCRIPTIONS / interface.len() + 1)].concat());
    assert!(text.contains("expected at most 1048576 bytes of interfaces and section header"), "{text}");
    let one = LITTLE.interface(1, 0, &LITTLE.option(2, b"").repeat(MAX_DESCRIPTIONS / 4));
    assert!(
        bad(&[LITTLE.section(), one].concat()).1.contains("expected at most 1048576 bytes of interfaces")
    );
}

/// A live capture's packet is not held back until the next one comes.
#[test]
fn a_packet_comes_out_as_soon_as_it_is_there() {
    struct Live(Vec<Vec<u8>>);
    impl Read for Live {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(!self.0.is_empty(), "it reads on although a packet is there");
            let chunk = self.0.remove(0);
            buffer[..chunk.len()].copy_from_slice(&chunk);
            Ok(chunk.len())
        }
    }
    let start = [LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 3, b"one")].concat();
    let mut reader = Reader::new(Live(vec![start, LITTLE.record(2, 0, 3, b"two")])).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().bytes, b"one");
    assert_eq!(reader.next().unwrap().unwrap().bytes, b"two");

    let start =
        [LITTLE.section(), LITTLE.interface(1, 0, &[]), LITTLE.enhanced(0, 1, 3, b"one", &[])].concat();
    let mut reader = Reader::new(Live(vec![start, LITTLE.enhanced(0, 2, 3, b"two", &[])])).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().bytes, b"one");
    assert_eq!(reader.next().unwrap().unwrap().bytes, b"two");
}

#[test]
fn an_error_of_the_source_is_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let start = Cursor::new([LITTLE.pcap(0xA1B2_C3D4, 1), LITTLE.record(1, 0, 3, b"one")].concat());
    let (packets, end) = read(start.chain(Broken));
    assert_eq!(packets.len(), 1);
    assert!(matches!(end, Err(FileError::Io(error)) if error.to_string() == "the disk is gone"));
}

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
        let mut count = |event: StreamEvent<'_>| match event.piece {
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
