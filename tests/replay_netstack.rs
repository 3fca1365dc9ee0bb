//! A captured guest against the whole of today's netstack: the historical pairs are equal, and whatever is changed in them,
//! or in today's network, is found.
//!
//! The pairs are classic pcap files, little-endian, of Ethernet frames with IPv4.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use server_glue::address::Subnet;
use server_glue::netstack::NetConfig;
use spice_tunnel::replay::Options;
use spice_tunnel::replay::netstack::{replay, replay_with};
use spice_tunnel::replay::report::{Difference, Part, Report, Subject, Verdict};

const PAIRS: [&str; 2] = ["tunnel-v1-pair", "tunnel-v2-pair"];

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Of the pairs' network.
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 31);

fn tunnel_of(pair: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(format!("{pair}.pcap"))
}

fn card_of(pair: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(format!("{pair}.guest.pcap"))
}

/// A capture in memory, to be changed.
struct Capture {
    header: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Clone)]
struct Record {
    /// Time and lengths.
    head: Vec<u8>,
    bytes: Vec<u8>,
}

impl Capture {
    fn read(path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let (header, mut rest) = file.split_at(24);
        assert!(header.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "{}: another byte order", path.display());
        let mut records = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            records.push(Record { head: rest[..16].to_vec(), bytes: rest[16..16 + len].to_vec() });
            rest = &rest[16 + len..];
        }
        Capture { header: header.to_vec(), records }
    }

    fn write(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.header).unwrap();
        for Record { head, bytes } in &self.records {
            file.write_all(head).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.flush().unwrap();
        file
    }

    /// The only or first segment that is like this.
    fn find(&self, like: impl Fn(&Tcp) -> bool) -> usize {
        let found = self.records.iter().position(|record| Tcp::of(record).is_some_and(|tcp| like(&tcp)));
        found.expect("there is a segment like this in the capture")
    }
}

/// A segment of the card's capture.
struct Tcp {
    from: Ipv4Addr,
    to_port: u16,
    from_port: u16,
    flags: u8,
    /// Where the payload begins in the frame, and how long it is.
    payload: (usize, usize),
}

impl Tcp {
    fn of(record: &Record) -> Option<Tcp> {
        let frame = &record.bytes;
        if frame.len() < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
            return None;
        }
        let total = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let payload = 34 + usize::from(frame[46] >> 4) * 4;
        Some(Tcp {
            from: Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]),
            from_port: u16::from_be_bytes([frame[34], frame[35]]),
            to_port: u16::from_be_bytes([frame[36], frame[37]]),
            flags: frame[47],
            payload: (payload, total - payload),
        })
    }

    fn is_from_service(&self, port: u16) -> bool {
        self.from == SERVICES && self.from_port == port
    }

    fn is_to_service(&self, port: u16) -> bool {
        self.from != SERVICES && self.to_port == port
    }
}

fn run(tunnel: &Path, card: &Path) -> Report {
    let mut report = Report::default();
    replay(tunnel, card, &Options::default(), &mut report).unwrap();
    report
}

fn run_with(pair: &str, adjust: impl FnOnce(&mut NetConfig)) -> Report {
    let mut report = Report::default();
    replay_with(&tunnel_of(pair), &card_of(pair), &Options::default(), &mut report, adjust).unwrap();
    report
}

/// The pair, its card's capture changed.
fn run_changed(pair: &str, change: impl FnOnce(&mut Capture)) -> Report {
    let mut card = Capture::read(&card_of(pair));
    change(&mut card);
    run(&tunnel_of(pair), card.write().path())
}

fn text(report: &Report) -> String {
    let mut text = Vec::new();
    report.write_text(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// The one difference that was found.
fn only(report: &Report) -> &Difference {
    assert_eq!(report.differences().len(), 1, "{}", text(report));
    &report.differences()[0]
}

#[test]
fn the_historical_pairs_are_equal() {
    for pair in PAIRS {
        let report = run(&tunnel_of(pair), &card_of(pair));
        assert_eq!(report.verdict(), Verdict::Equal, "{pair}:\n{}", text(&report));
        let compared = report.compared_by(Part::Netstack);
        // The twelve scenarios, two connections in one of them, with the bytes that MANIFEST.md names, and some words.
        assert_eq!((compared.channels, compared.services, compared.connections), (1, 8, 13), "{pair}");
        assert_eq!((compared.bytes_up, compared.bytes_down), (750_033, 450_043), "{pair}");
    }
}

#[test]
fn recordings_of_our_own_program_are_equal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let mut replayed = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let card = entry.unwrap().path();
        let name = card.file_name().unwrap().to_str().unwrap();
        let Some(name) = name.strip_suffix(".guest.pcapng") else { continue };
        let report = run(&folder.join(format!("{name}.pcapng")), &card);
        assert_eq!(report.verdict(), Verdict::Equal, "{name}:\n{}", text(&report));
        assert!(report.compared_by(Part::Netstack).connections > 0, "{name}:\n{}", text(&report));
        replayed.push(name.to_owned());
    }
    for name in
        ["client-lost", "credit", "demo", "half-close", "many-sockets", "refused-port", "resets", "vm"]
    {
        assert!(replayed.iter().any(|one| one == name), "{name} was not replayed");
    }
}

#[test]
fn a_replay_has_the_same_outcome_every_time() {
    let report = || run(&tunnel_of(PAIRS[0]), &card_of(PAIRS[0])).compared_by(Part::Netstack);
    assert_eq!(report(), report());
}

#[test]
fn strict_tells_how_a_port_that_nobody_shared_is_refused() {
    let options = Options { strict: true, ..Options::default() };
    let mut report = Report::default();
    replay(&tunnel_of(PAIRS[0]), &card_of(PAIRS[0]), &options, &mut report).unwrap();
    // Slirp answered by ICMP, today's netstack by RST.
    let difference = only(&report);
    assert_eq!((difference.verdict, difference.subject), (Verdict::Different, Subject::Open));
    assert!(
        difference.captured.contains("10.0.2.31:7999") && difference.captured.contains("ICMP"),
        "{difference:?}"
    );
    assert!(difference.today.contains("RST"), "{difference:?}");
}

#[test]
fn a_changed_byte_of_the_guest_is_found() {
    for pair in PAIRS {
        let report = run_changed(pair, |card| {
            let at = card.find(|tcp| tcp.is_to_service(7001) && tcp.payload.1 == 12);
            let (start, _) = Tcp::of(&card.records[at]).unwrap().payload;
            card.records[at].bytes[start + 5] ^= 1;
        });
        let difference = only(&report);
        assert_eq!((difference.verdict, difference.subject), (Verdict::Different, Subject::Bytes));
        assert!(difference.captured.contains("byte 5 from the guest"), "{difference:?}");
        assert_eq!(difference.place.connection, Some(0), "{difference:?}");
        assert!(difference.captured.contains("10.0.2.15:"), "{difference:?}");
    }
}

#[test]
fn a_changed_byte_to_the_guest_is_found() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_from_service(7002) && tcp.payload.1 == 4);
        let (start, _) = Tcp::of(&card.records[at]).unwrap().payload;
        card.records[at].bytes[start + 3] ^= 0x80;
    });
    let difference = only(&report);
    assert_eq!((difference.verdict, difference.subject), (Verdict::Different, Subject::Bytes));
    assert!(difference.captured.contains("byte 3 to the guest is 0x8a"), "{difference:?}");
    assert!(difference.today.contains("0x0a"), "{difference:?}");
}

#[test]
fn a_changed_answer_is_found() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_from_service(7009));
        card.records[at].bytes[47] = SYN | ACK;
    });
    assert_eq!(report.verdict(), Verdict::Different, "{}", text(&report));
    let difference = &report.differences()[0];
    assert_eq!(difference.subject, Subject::Open);
    assert!(difference.captured.contains("10.0.2.31:7009: the connect was accepted"), "{difference:?}");
    assert!(difference.today.contains("refused (RST)"), "{difference:?}");
}

#[test]
fn a_removed_reset_of_the_service_is_found() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_from_service(7007) && tcp.flags & RST != 0);
        card.records.remove(at);
    });
    let difference = only(&report);
    assert_eq!((difference.verdict, difference.subject), (Verdict::Different, Subject::End));
    assert!(difference.captured.contains("10.0.2.31:7007: the guest's connection went on"), "{difference:?}");
    assert!(difference.today.contains("reset (RST)"), "{difference:?}");
}

#[test]
fn a_removed_reset_of_the_guest_is_found() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_to_service(7001) && tcp.flags & RST != 0);
        card.records.remove(at);
    });
    let difference = only(&report);
    assert_eq!((difference.verdict, difference.subject), (Verdict::Different, Subject::End));
    assert!(difference.captured.contains("aborted the socket (CLOSE)"), "{difference:?}");
}

#[test]
fn a_removed_end_of_the_guest_is_found() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_to_service(7006) && tcp.flags & FIN != 0);
        card.records.remove(at);
    });
    assert_ne!(report.verdict(), Verdict::Equal, "{}", text(&report));
    assert!(
        report.differences().iter().any(|one| one.captured.contains("10.0.2.31:7006")),
        "{}",
        text(&report)
    );
}

#[test]
fn what_the_card_capture_misses_is_not_comparable() {
    let report = run_changed(PAIRS[0], |card| {
        let at = card.find(|tcp| tcp.is_to_service(7004) && tcp.payload.1 > 1000);
        card.records.remove(at);
    });
    assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));
    let all = |difference: &Difference| difference.captured.contains("10.0.2.31:7004");
    assert!(report.differences().iter().all(all), "{}", text(&report));
    assert_eq!(report.compared_by(Part::Netstack).connections, 12);
}

#[test]
fn a_file_that_is_cut_short_is_not_comparable() {
    let file = fs::read(card_of(PAIRS[0])).unwrap();
    let mut cut = tempfile::NamedTempFile::new().unwrap();
    cut.write_all(&file[..file.len() - 10]).unwrap();
    let report = run(&tunnel_of(PAIRS[0]), cut.path());
    assert_ne!(report.verdict(), Verdict::Equal, "{}", text(&report));
    assert!(text(&report).contains("the capture of the card is damaged"), "{}", text(&report));
}

#[test]
fn a_capture_without_a_guest_is_no_success() {
    let report = run_changed(PAIRS[0], |card| card.records.clear());
    assert_ne!(report.verdict(), Verdict::Equal, "{}", text(&report));
    assert!(text(&report).contains("no guest"), "{}", text(&report));
}

#[test]
fn another_guest_behind_the_same_tunnel_is_not_equal() {
    let report = run(&tunnel_of(PAIRS[0]), &card_of(PAIRS[1]));
    assert_ne!(report.verdict(), Verdict::Equal, "{}", text(&report));
}

#[test]
fn a_network_elsewhere_is_found() {
    let report = run_with(PAIRS[0], |config| {
        let subnet = Subnet::new(Ipv4Addr::new(10, 9, 0, 0).into(), 16).unwrap();
        *config = NetConfig::new(subnet).unwrap();
    });
    assert_eq!(report.verdict(), Verdict::Different);
    let services = report.differences().iter().filter(|one| one.subject == Subject::Service);
    for difference in services.clone() {
        assert!(difference.captured.contains("the service is at 10.0.2.31:"), "{difference:?}");
        assert!(difference.today.contains("the service is at 10.9."), "{difference:?}");
    }
    assert_eq!(services.count(), 8, "{}", text(&report));
    assert!(text(&report).contains("ARP for 10.0.2.31 was answered"), "{}", text(&report));
}

#[test]
fn a_network_that_takes_no_connections_is_found() {
    let report = run_with(PAIRS[0], |config| config.max_flows = 0);
    assert_eq!(report.verdict(), Verdict::Different);
    let refused = report.differences().iter().filter(|one| one.today.contains("refused (RST)")).count();
    // All but that which nobody listened for, and that which was not shared.
    assert_eq!(refused, 11, "{}", text(&report));
}

#[test]
fn a_network_that_gives_up_too_soon_is_found() {
    // A connect waits for the client's answer, which took milliseconds.
    let report = run_with(PAIRS[0], |config| config.connect_deadline = Duration::from_micros(1));
    assert_eq!(report.verdict(), Verdict::Different, "{}", text(&report));
    assert!(text(&report).contains("ICMP destination unreachable, code 1"), "{}", text(&report));
}

#[test]
fn how_much_today_keeps_changes_nothing() {
    for size in [4096, 10_000, 1 << 22] {
        let report = run_with(PAIRS[0], |config| {
            config.send_buffer = size;
            config.receive_buffer = size;
        });
        assert_eq!(report.verdict(), Verdict::Equal, "{size}:\n{}", text(&report));
    }
}

/// A generator of numbers, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

#[test]
fn damaged_captures_are_borne() {
    for seed in 1..=8u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let pair = PAIRS[dice.roll(2)];
        let damage = |path: &Path, dice: &mut Dice| {
            let mut capture = Capture::read(path);
            for _ in 0..1 + dice.roll(40) {
                let at = dice.roll(capture.records.len());
                match dice.roll(6) {
                    0 => {
                        capture.records.remove(at);
                    }
                    1 => {
                        let again = capture.records[at].clone();
                        capture.records.insert(at, again);
                    }
                    2 => {
                        let other = dice.roll(capture.records.len());
                        capture.records.swap(at, other);
                    }
                    3 => {
                        // Another second, so that times leap.
                        capture.records[at].head[dice.roll(3)] ^= 1 << dice.roll(8);
                    }
                    _ => {
                        let record = &mut capture.records[at];
                        let byte = dice.roll(record.bytes.len().min(80));
                        record.bytes[byte] ^= 1 << dice.roll(8);
                    }
                }
            }
            capture.write()
        };
        let tunnel = damage(&tunnel_of(pair), &mut dice);
        let card = damage(&card_of(pair), &mut dice);
        let report = run(tunnel.path(), card.path());
        let mut json = Vec::new();
        report.write_json(&mut json).unwrap();
        assert!(!json.is_empty());
    }
}

/// Moves a record in time, by microseconds.
fn delay(record: &mut Record, micros: i64) {
    let field = |at: usize| i64::from(u32::from_le_bytes(record.head[at..at + 4].try_into().unwrap()));
    let time = field(0) * 1_000_000 + field(4) + micros;
    let seconds = u32::try_from(time / 1_000_000).unwrap();
    let micros = u32::try_from(time % 1_000_000).unwrap();
    record.head[..4].copy_from_slice(&seconds.to_le_bytes());
    record.head[4..8].copy_from_slice(&micros.to_le_bytes());
}

#[test]
fn clocks_may_be_a_little_apart() {
    for micros in [-300_000, -2_000, -50, 50, 2_000, 300_000] {
        let mut tunnel = Capture::read(&tunnel_of(PAIRS[0]));
        for record in &mut tunnel.records {
            delay(record, micros);
        }
        let report = run(tunnel.write().path(), &card_of(PAIRS[0]));
        assert_eq!(report.verdict(), Verdict::Equal, "{micros} µs:\n{}", text(&report));
    }
}

#[test]
fn a_pause_within_a_connection_changes_nothing() {
    // Longer than today's netstack bears a guest that does not answer, and than its channel bears such a client.
    const PAUSE: i64 = 3_600_000_000;
    let mut card = Capture::read(&card_of(PAIRS[0]));
    let at = card.find(|tcp| tcp.is_to_service(7005) && tcp.payload.1 > 0) + 100;
    let time = card.records[at].head[..8].to_vec();
    let order = |head: &[u8]| {
        (
            u32::from_le_bytes(head[..4].try_into().unwrap()),
            u32::from_le_bytes(head[4..8].try_into().unwrap()),
        )
    };
    let mut tunnel = Capture::read(&tunnel_of(PAIRS[0]));
    for record in card.records.iter_mut().chain(&mut tunnel.records) {
        if order(&record.head) >= order(&time) {
            delay(record, PAUSE);
        }
    }
    let report = run(tunnel.write().path(), card.write().path());
    assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
    assert_eq!(report.compared_by(Part::Netstack).connections, 13);
}

#[test]
fn a_leap_of_years_is_not_comparable() {
    let mut card = Capture::read(&card_of(PAIRS[0]));
    let at = card.find(|tcp| tcp.is_to_service(7005) && tcp.payload.1 > 0) + 100;
    for record in &mut card.records[at..] {
        delay(record, 20 * 365 * 86_400 * 1_000_000);
    }
    let report = run(&tunnel_of(PAIRS[0]), card.write().path());
    assert_ne!(report.verdict(), Verdict::Equal);
    assert!(text(&report).contains("too long a leap"), "{}", text(&report));
}

#[test]
fn a_hole_in_the_tunnel_touches_what_was_open() {
    let mut tunnel = Capture::read(&tunnel_of(PAIRS[0]));
    // The first long message of the guest's 200,000 bytes; TCP over loopback has options, hence the length.
    let at = tunnel.records.iter().position(|record| (2000..3000).contains(&record.bytes.len())).unwrap();
    tunnel.records.remove(at);
    let report = run(tunnel.write().path(), &card_of(PAIRS[0]));
    assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));
    assert!(report.compared_by(Part::Netstack).connections >= 9, "{}", text(&report));
}

#[test]
fn a_tunnel_capture_without_a_tunnel_is_no_success() {
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/spice-gtk-session.pcap");
    let report = run(&other, &card_of(PAIRS[0]));
    assert_eq!(report.verdict(), Verdict::NotComparable);
    assert!(only(&report).captured.contains("no tunnel channel"));
}
