//! The dissector on tunnels that are cut into packets in other ways than a capture shows: what was said stays the same.

use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslStream};
use openssl::x509::X509;
use spice_tunnel::capture::file::Reader;
use spice_tunnel::capture::packet::segment;
use spice_tunnel::capture::reassembly::{Limits, Piece, Reassembler, StreamId, Way};

use super::{items, script, shown, tshark};
use crate::captures::recording::wire;
use crate::captures::{self, Said};

const PAIR: &str = "captures/tunnel-v2-pair.pcap";
const CLIENT: &str = "192.0.2.1:49152";
/// A port that means nothing to Wireshark.
const SERVER: &str = "192.0.2.2:5961";
/// The sequence numbers wrap around soon.
const FIRST: u32 = u32::MAX - 1000;

pub(super) type Piecewise = Vec<(Way, Vec<u8>)>;

/// The tunnel of a capture: its bytes as they came.
fn tunnel(capture: &Path) -> Piecewise {
    let mut streams: Vec<(StreamId, Piecewise)> = Vec::new();
    let mut reader = Reader::open(capture).unwrap();
    let mut reassembler = Reassembler::new(Limits::default());
    while let Some(packet) = reader.next().unwrap() {
        let Some(segment) = segment(&packet).unwrap() else { continue };
        reassembler.handle(packet.time, &segment, &mut |event| match event.piece {
            Piece::Opened { .. } => streams.push((event.stream, Vec::new())),
            Piece::Bytes { way, bytes } => {
                let stream = streams.iter_mut().find(|(stream, _)| *stream == event.stream).unwrap();
                stream.1.push((way, bytes.to_vec()));
            }
            Piece::Answered | Piece::Finished { .. } | Piece::Ended { .. } => {}
            Piece::Hole { .. } | Piece::Reset { .. } => panic!("{:?}", event.piece),
        });
    }
    let is_tunnel = |pieces: &Piecewise| {
        let said: Vec<u8> = pieces
            .iter()
            .filter(|(way, _)| *way == Way::Forth)
            .flat_map(|(_, bytes)| bytes)
            .copied()
            .collect();
        said[20] == 7
    };
    streams.into_iter().map(|(_, pieces)| pieces).find(is_tunnel).unwrap()
}

/// Puts bytes into packets of at most so many, and these into a file.
pub(super) fn packets(pieces: &Piecewise, largest: usize) -> Vec<Vec<u8>> {
    packets_between(end(CLIENT), pieces, largest)
}

fn packets_between(client: SocketAddrV4, pieces: &Piecewise, largest: usize) -> Vec<Vec<u8>> {
    let mut conversation = wire::Conversation::new(client, end(SERVER), FIRST);
    let mut packets = conversation.open().to_vec();
    for (way, bytes) in pieces {
        packets.extend(bytes.chunks(largest).map(|bytes| conversation.say(*way, bytes)));
    }
    packets.push(conversation.finish(Way::Forth));
    packets.push(conversation.finish(Way::Back));
    packets
}

fn end(address: &str) -> SocketAddrV4 {
    address.parse().unwrap()
}

pub(super) fn file(packets: Vec<Vec<u8>>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let start = Duration::from_secs(1_800_000_000);
    let timed: Vec<_> =
        (0u32..).zip(packets).map(|(n, packet)| (start + n * Duration::from_millis(1), packet)).collect();
    wire::write(file.path(), &timed).unwrap();
    file
}

/// What stands first in a capture's tunnel: the link stage, the services, some connections.
fn beginning() -> (Piecewise, Vec<Said>) {
    let mut pieces = tunnel(Path::new(PAIR));
    pieces.truncate(75);
    let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!((2_000..40_000).contains(&bytes), "{bytes}");
    let whole = file(packets(&pieces, 1400));
    let said = captures::said(whole.path());
    assert!(said.len() > 50, "{}", said.len());
    assert_eq!(said[..], captures::said(Path::new(PAIR))[..said.len()]);
    (pieces, said)
}

#[test]
fn messages_that_are_cut_into_packets_are_put_together() {
    let (pieces, said) = beginning();
    for largest in [1, 7, 19, 500] {
        let file = file(packets(&pieces, largest));
        assert_eq!(captures::said(file.path()), said, "packets of {largest} bytes");
        assert_eq!(shown(file.path(), &[]), said, "packets of {largest} bytes");
    }
}

#[test]
fn messages_that_share_a_packet_are_told_apart() {
    let (pieces, _) = beginning();
    let mut together: Piecewise = Vec::new();
    for (way, bytes) in pieces {
        match together.last_mut() {
            Some((last, said)) if *last == way => said.extend(bytes),
            _ => together.push((way, bytes)),
        }
    }
    let file = file(packets(&together, 60_000));
    assert_eq!(shown(file.path(), &[]), captures::said(file.path()));
}

#[test]
fn packets_out_of_order_are_wiresharks_business() {
    let (pieces, said) = beginning();
    let mut packets = packets(&pieces, 40);
    // Within one direction's run, swap neighbours; not across an answer, which would come before what it answers.
    let source = |packet: &[u8]| packet[12..16].to_vec();
    let mut at = 20;
    let mut swapped = 0;
    while at + 1 < packets.len() - 2 {
        if source(&packets[at]) == source(&packets[at + 1]) {
            packets.swap(at, at + 1);
            swapped += 1;
            at += 2;
        } else {
            at += 1;
        }
    }
    assert!(swapped > 15, "{swapped}");
    let file = file(packets);
    let by_wireshark = ["-o", "tcp.reassemble_out_of_order:TRUE"];
    let ours = captures::said(file.path());
    assert_eq!(shown(file.path(), &by_wireshark), ours);
    // Both directions keep their order; what crosses may have changed places.
    let of =
        |said: &[Said], from: &str| said.iter().filter(|one| one.from == from).cloned().collect::<Vec<_>>();
    for from in ["client", "server"] {
        assert_eq!(of(&ours, from), of(&said, from));
    }
}

#[test]
fn a_tunnel_under_tls_is_shown_with_its_keys() {
    let (pieces, said) = beginning();
    let (sealed, keys) = seal(&pieces);
    let file = file(packets(&sealed, 1000));
    assert!(captures::said(file.path()).is_empty(), "it is not in clear");
    assert!(shown(file.path(), &[]).is_empty(), "it is not in clear");
    let mut log = tempfile::NamedTempFile::new().unwrap();
    log.write_all(keys.as_bytes()).unwrap();
    let keylog = format!("tls.keylog_file:{}", log.path().display());
    for passes in [&[][..], &["-2"]] {
        let arguments = [&["-o", &keylog, "-d", "tcp.port==5961,tls"][..], passes].concat();
        assert_eq!(shown(file.path(), &arguments), said, "{passes:?}");
    }
}

#[test]
fn what_is_malformed_is_said_and_the_next_message_is_found() {
    let (pieces, said) = beginning();
    let faults: [(&str, &str, usize, u8); 4] = [
        // Message, what is said of it, where in its body, what stands there.
        ("service_add", "offset of the name", 14, 0xff),
        ("service_add", "type: expected 1 (generic) or 2 (IPP), got 9", 0, 9),
        ("service_ip_map", "address type: expected 0 (none) or 1 (IPv4), got 7", 4, 7),
        ("socket_open", "", 0, 200),
    ];
    for (message, text, at, value) in faults {
        let mut pieces = pieces.clone();
        // The first message of the name: its place in its direction, by the steps before it.
        let index = said.iter().position(|step| step.message == message).unwrap();
        let from = &said[index].from;
        let before: usize = said[..index].iter().filter(|step| step.from == *from).map(wire_length).sum();
        let way = if from == "client" { Way::Forth } else { Way::Back };
        *byte(&mut pieces, way, before + FULL_HEADER + at) = value;
        let file = file(packets(&pieces, 1400));
        let steps = shown(file.path(), &[]);
        let mut expected = said.clone();
        if text.is_empty() {
            expected[index].socket = Some(200);
        }
        assert_eq!(names(&steps), names(&expected), "{message}");
        let script = script();
        let arguments =
            ["-X", &script, "-Y", "spice_tunnel.malformed", "-T", "fields", "-e", "_ws.expert.message"];
        let remarks = tshark(&arguments, file.path());
        assert_eq!(remarks.lines().count(), usize::from(!text.is_empty()), "{message}: {remarks}");
        assert!(remarks.contains(text), "{message}: {remarks}");
    }
}

/// A header that cannot be one takes what is in its packet with it, not the rest of the file.
#[test]
fn a_packet_of_nonsense_is_not_the_end() {
    let (mut pieces, said) = beginning();
    let at = pieces.iter().rposition(|(way, _)| *way == Way::Forth).unwrap();
    pieces.insert(at, (Way::Forth, vec![0xff; 40]));
    let file = file(packets(&pieces, 1400));
    let script = script();
    let pdml = tshark(&["-X", &script, "-Y", "spice_tunnel", "-T", "pdml"], file.path());
    let steps: Vec<String> = items(&pdml).iter().map(|item| item["spice_tunnel.message"].clone()).collect();
    let mut expected = names(&said);
    let place = steps.iter().position(|message| message == "malformed").unwrap();
    expected.insert(place, "malformed".to_owned());
    assert_eq!(steps, expected);
}

#[test]
fn a_tunnel_whose_beginning_is_not_captured_can_be_decoded_as_one() {
    let (pieces, said) = beginning();
    let first = said.iter().position(|step| step.message == "set_ack").unwrap();
    let linked: usize = said[..first].iter().map(wire_length).sum();
    let mut left = linked;
    let rest: Piecewise = pieces
        .into_iter()
        .filter(|(_, bytes)| {
            let behind = left == 0;
            left = left.saturating_sub(bytes.len());
            behind
        })
        .collect();
    let file = file(packets(&rest, 1400)[3..].to_vec());
    assert!(shown(file.path(), &[]).is_empty());
    assert_eq!(shown(file.path(), &["-d", "tcp.port==5961,spice_tunnel"]), said[first..]);
}

/// Whatever stands in a tunnel, the script makes no error of its own.
#[test]
fn nonsense_is_no_error_of_the_script() {
    let (pieces, _) = beginning();
    let mut dice = Dice(7);
    let mut all = Vec::new();
    for port in 20_000..20_060 {
        let mut pieces = pieces.clone();
        for _ in 0..=dice.roll(6) {
            // Behind the first, which says that it is a tunnel.
            let piece = 1 + dice.roll(pieces.len() - 1);
            let bytes = &mut pieces[piece].1;
            match dice.roll(3) {
                0 => bytes.truncate(dice.roll(bytes.len())),
                1 => bytes.extend([0xff; 3]),
                _ => {
                    let at = dice.roll(bytes.len());
                    bytes[at] = dice.roll(256) as u8;
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        let client = SocketAddrV4::new(*end(CLIENT).ip(), port);
        all.extend(packets_between(client, &pieces, 700));
    }
    let file = file(all);
    let script = script();
    for passes in [&[][..], &["-2"]] {
        let arguments = [&["-X", &script, "-Y", "spice_tunnel.malformed", "-V"][..], passes].concat();
        let shown = tshark(&arguments, file.path());
        assert!(
            !shown.contains("Lua Error"),
            "{}",
            shown.lines().find(|line| line.contains("Lua Error")).unwrap()
        );
        assert!(shown.matches("Spice tunnel, ").count() > 60, "nothing was malformed");
    }
}

/// Numbers that are the same in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Less than `sides`.
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

pub(super) const FULL_HEADER: usize = 18;

/// Bytes on the wire of a step in a session of 2013, which has full headers.
fn wire_length(step: &Said) -> usize {
    let header = match step.message.as_str() {
        "link_mess" | "link_reply" => 16,
        "auth_mechanism" | "ticket" | "link_result" => 0,
        _ => FULL_HEADER,
    };
    header + step.size as usize
}

fn names(said: &[Said]) -> Vec<String> {
    said.iter().map(|step| step.message.clone()).collect()
}

/// The byte at a place of a direction.
fn byte(pieces: &mut Piecewise, way: Way, mut at: usize) -> &mut u8 {
    for (_, bytes) in pieces.iter_mut().filter(|(of, _)| *of == way) {
        if at < bytes.len() {
            return &mut bytes[at];
        }
        at -= bytes.len();
    }
    panic!("no such place");
}

/// What both ends of a TLS connection wrote that said all this, and the keys for it.
fn seal(pieces: &Piecewise) -> (Piecewise, String) {
    let written = Arc::new(Mutex::new(Vec::new()));
    let keys = Arc::new(Mutex::new(String::new()));
    let (client, server) = UnixStream::pair().unwrap();
    let mut server_side = SslContext::builder(SslMethod::tls_server()).unwrap();
    let (certificate, key) = certificate();
    server_side.set_certificate(&certificate).unwrap();
    server_side.set_private_key(&key).unwrap();
    let mut client_side = SslContext::builder(SslMethod::tls_client()).unwrap();
    let log = Arc::clone(&keys);
    client_side.set_keylog_callback(move |_, line| {
        let mut keys = log.lock().unwrap();
        keys.push_str(line);
        keys.push('\n');
    });
    let noted = |stream, way| Noted { stream, way, written: Arc::clone(&written) };
    let server = noted(server, Way::Back);
    let accept = std::thread::spawn(move || Ssl::new(&server_side.build()).unwrap().accept(server).unwrap());
    let mut client = Ssl::new(&client_side.build()).unwrap().connect(noted(client, Way::Forth)).unwrap();
    let mut server = accept.join().unwrap();
    for (way, bytes) in pieces {
        let (from, to): (&mut SslStream<Noted>, &mut SslStream<Noted>) = match way {
            Way::Forth => (&mut client, &mut server),
            Way::Back => (&mut server, &mut client),
        };
        // A piece at a time, so that nobody waits for room.
        for bytes in bytes.chunks(4000) {
            from.write_all(bytes).unwrap();
            to.read_exact(&mut vec![0; bytes.len()]).unwrap();
        }
    }
    let sealed = std::mem::take(&mut *written.lock().unwrap());
    (sealed, keys.lock().unwrap().clone())
}

fn certificate() -> (X509, PKey<Private>) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    (certificate.build(), key)
}

/// A stream that notes what is written.
#[derive(Debug)]
struct Noted {
    stream: UnixStream,
    way: Way,
    written: Arc<Mutex<Piecewise>>,
}

impl Read for Noted {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buf)
    }
}

impl Write for Noted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.lock().unwrap().push((self.way, bytes.to_vec()));
        self.stream.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}
