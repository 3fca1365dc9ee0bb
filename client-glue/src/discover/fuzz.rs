//! What fuzzers reach of the parsers of devices' bytes. No part of the interface.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::device_id::DeviceId;
use super::http::Reader;
use super::interfaces::Network;
use super::location::Location;
use super::xml::Element;
use super::{printing, snmp, ssdp, ws_discovery};

const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const DEVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));

/// Byte 0 chooses the parser, the rest is for it. Panics for a bug.
///
/// 0: HTTP, in pieces of the size of byte 1; 1: XML; 2: an IEEE 1284 id; 3: SNMP; 4: IPP; 5: SSDP; 6: a description of UPnP; 7:
/// WS-Discovery; 8: its metadata; 9: a location; 10: packets to the hunt, each behind its length and the last byte of its sender's address.
pub fn exercise_bytes(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else { return };
    match choice % 11 {
        0 => http(rest),
        1 => {
            if let Ok(root) = Element::parse(rest) {
                assert!(root.all().count() <= 8192);
            }
        }
        2 => {
            if let Some(id) = DeviceId::parse(rest) {
                assert!(id.make_and_model().is_none_or(|text| text.len() <= 1025));
                id.media_types();
            }
        }
        3 => snmp::exercise_message(rest),
        4 => printing::exercise_answer(rest),
        5 => ssdp::exercise(false, rest, OWN, DEVICE),
        6 => ssdp::exercise(true, rest, OWN, DEVICE),
        7 => ws_discovery::exercise(false, rest, OWN, DEVICE),
        8 => ws_discovery::exercise(true, rest, OWN, DEVICE),
        9 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Ok(location) = Location::parse(text, DEVICE) {
                let address = location.address(SocketAddr::new(DEVICE, 1900));
                assert!(address.ip() == DEVICE && address.port() != 0);
                assert!(location.path().bytes().all(|byte| byte.is_ascii_graphic()));
                assert!(location.host().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        _ => snmp::exercise_hunt(rest, OWN),
    }
}

fn http(bytes: &[u8]) {
    let Some((piece, answer)) = bytes.split_first() else { return };
    let read = |piece: usize| {
        let mut reader = Reader::new(1000);
        for piece in answer.chunks(piece) {
            if let Some(response) = reader.feed(piece).map_err(|error| error.to_string())? {
                return Ok(response);
            }
        }
        reader.end().map_err(|error| error.to_string())
    };
    let pieces = read(usize::from(*piece).max(1));
    assert!(pieces.as_ref().is_ok_and(|response| response.body.len() <= 1000) || pieces.is_err());
    // What is told of an error may depend on how far it was read, but not whether there is one.
    assert_eq!(pieces.ok(), read(usize::MAX).ok());
}

/// Networks and a clock for a listener.
pub(super) fn place() -> (Vec<Network>, Instant) {
    (vec![Network { address: OWN, prefix: 24 }], Instant::now())
}

/// So much later than any deadline of a source.
pub(super) const LATER: Duration = Duration::from_secs(100_000);
