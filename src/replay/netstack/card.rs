//! What the capture of the virtual card shows, frame by frame.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::frame::{ACK, Content, Frame, SYN, Tcp};
use super::guest::Guest;
use super::link::When;
use super::stage::Stage;
use super::tunnel::MISSED;
use crate::capture::file::Packet;
use crate::capture::packet::{Flags, Segment};
use crate::capture::reassembly::{Piece, StreamEvent, StreamId, Way};
use crate::replay::report::Place;

/// Ethernet, in tcpdump.org's list.
const ETHERNET: u32 = 1;

/// How far the clocks of the two captures may be apart: a SOCKET_OPEN may be seen so much later than the answer that the
/// guest got.
const GRACE: Duration = Duration::from_secs(1);

/// Connections of the guest that are followed at a time.
const MAX_GUESTS: usize = 20_000;

impl Stage<'_> {
    /// A captured packet of the card.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) {
        self.advance_to(packet.time);
        if packet.link_type != ETHERNET {
            return;
        }
        let Some(frame) = Frame::parse(packet.bytes) else { return };
        if self.survey.is_guest(frame.source) {
            self.guest_sent(packet, &frame);
        } else {
            self.server_sent(packet.time, &frame);
        }
        self.settle();
    }

    fn guest_sent(&mut self, packet: &Packet<'_>, frame: &Frame<'_>) {
        if let Content::Tcp(tcp) = &frame.content {
            self.guest_segment(packet.time, frame, tcp);
            return;
        }
        self.link.asked(frame);
        if packet.bytes.len() < packet.original_len {
            return;
        }
        let mut bytes = packet.bytes.to_vec();
        // The captured network may have had many addresses on the link, as Slirp has; today's has one.
        if frame.destination.is_unicast() {
            for (to, from) in bytes.iter_mut().zip(self.mac.0) {
                *to = from;
            }
        }
        self.bridge.handle_guest_frame(self.now, &bytes);
    }

    fn guest_segment(&mut self, time: Duration, frame: &Frame<'_>, tcp: &Tcp<'_>) {
        let pair = (tcp.from, tcp.to);
        let known = self.by_pair.get(&pair).copied();
        let connects = tcp.has(SYN) && !tcp.has(ACK);
        if connects {
            match known.and_then(|number| self.guests.get_mut(&number)) {
                Some(guest) if guest.is_same_syn(tcp) => guest.syn_again(),
                Some(_) | None => {
                    // The same addresses again: what was there is over.
                    if let Some(old) = known {
                        self.conclude(old, false);
                    }
                    self.connect(time, frame, tcp);
                }
            }
        }
        if self.past.contains(&pair) {
            return;
        }
        self.reassemble(time, tcp);
        let Some(number) = self.by_pair.get(&pair).copied() else { return };
        if let Some(guest) = self.guests.get_mut(&number)
            && !connects
        {
            guest.guest_sent(tcp);
        }
        self.ready_guests.insert(number);
    }

    /// A new connection of the guest.
    fn connect(&mut self, time: Duration, frame: &Frame<'_>, tcp: &Tcp<'_>) {
        if self.guests.len() >= MAX_GUESTS
            && let Some(oldest) = self.guests.keys().next().copied()
        {
            if let Some(guest) = self.guests.get_mut(&oldest) {
                guest.give_up("more connections are open at a time than are followed");
            }
            self.conclude(oldest, true);
        }
        let number = self.guests_begun;
        self.guests_begun += 1;
        let mut guest = Guest::new(frame.source, tcp, time, &self.budget);
        if self.blind_until.is_some() {
            guest.give_up(MISSED);
        }
        self.guests.insert(number, guest);
        self.by_pair.insert((tcp.from, tcp.to), number);
        self.past.retain(|pair| *pair != (tcp.from, tcp.to));
        self.pair_guest(number);
    }

    fn server_sent(&mut self, time: Duration, frame: &Frame<'_>) {
        let pair = match frame.content {
            Content::Tcp(tcp) if self.past.contains(&(tcp.to, tcp.from)) => return,
            Content::Tcp(tcp) => {
                self.reassemble(time, &tcp);
                (tcp.to, tcp.from)
            }
            Content::Unreachable { source, destination, .. } => (source, destination),
            Content::Dhcp(_)
            | Content::ArpRequest { .. }
            | Content::ArpReply { .. }
            | Content::Echo { .. }
            | Content::Other => {
                self.link.answered(When::Captured, frame);
                return;
            }
        };
        let Some(number) = self.by_pair.get(&pair).copied() else { return };
        let Some(guest) = self.guests.get_mut(&number) else { return };
        match frame.content {
            Content::Tcp(tcp) => guest.server_sent(&tcp),
            Content::Unreachable { code, .. } => guest.unreachable(code),
            Content::Dhcp(_)
            | Content::ArpRequest { .. }
            | Content::ArpReply { .. }
            | Content::Echo { .. }
            | Content::Other => {}
        }
        if guest.captured_answer().refuses() && guest.socket.is_none() {
            self.refused.push_back((time.saturating_add(GRACE), number));
        }
        self.ready_guests.insert(number);
    }

    /// Lets the captured segments become streams, whose holes and ends are what counts.
    fn reassemble(&mut self, time: Duration, tcp: &Tcp<'_>) {
        let segment = Segment {
            from: tcp.from.into(),
            to: tcp.to.into(),
            seq: tcp.seq,
            ack: tcp.ack,
            flags: Flags::from_bits_retain(tcp.flags),
            payload: tcp.payload,
            cut: tcp.cut,
        };
        let mut began_before = 0u64;
        let Stage { reassembler, streams, guests, by_pair, .. } = self;
        reassembler.handle(time, &segment, &mut |event| {
            began_before += u64::from(!stream_event(&event, streams, guests, by_pair));
        });
        if began_before > 0 {
            let place = Place { time: Some(self.since_start(time)), ..Place::default() };
            let why = format!(
                "the capture of the card does not have the beginning of the connection between {} and {}",
                tcp.from, tcp.to
            );
            self.not_comparable(place, &why);
        }
    }

    /// The capture of the card is over.
    pub(super) fn finish_streams(&mut self) {
        let Stage { reassembler, streams, guests, by_pair, .. } = self;
        reassembler.finish(&mut |event| {
            stream_event(&event, streams, guests, by_pair);
        });
    }
}

/// What a captured stream says about a connection of the guest. `false`: it is a connection that began before the capture.
fn stream_event(
    event: &StreamEvent<'_>,
    streams: &mut BTreeMap<StreamId, u64>,
    guests: &mut BTreeMap<u64, Guest>,
    by_pair: &BTreeMap<(SocketAddrV4, SocketAddrV4), u64>,
) -> bool {
    if let Piece::Opened { from, to, from_start } = event.piece {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return true };
        if let Some(number) = by_pair.get(&(from, to)).filter(|_| from_start) {
            streams.insert(event.stream, *number);
        }
        return from_start;
    }
    let Some(number) = streams.get(&event.stream).copied() else { return true };
    let Some(guest) = guests.get_mut(&number) else {
        if let Piece::Ended { .. } = event.piece {
            streams.remove(&event.stream);
        }
        return true;
    };
    match event.piece {
        Piece::Bytes { way: Way::Back, bytes } => guest.captured_down(bytes),
        Piece::Hole { way: Way::Back, .. } => {
            guest.give_up("bytes to the guest are missing in the capture of the card")
        }
        Piece::Hole { way: Way::Forth, .. } => {
            guest.give_up("bytes from the guest are missing in the capture of the card");
        }
        Piece::Ended { seen } => {
            streams.remove(&event.stream);
            if seen {
                guest.ended();
            }
        }
        Piece::Opened { .. }
        | Piece::Answered
        | Piece::Bytes { way: Way::Forth, .. }
        | Piece::Finished { .. }
        | Piece::Reset { .. } => {}
    }
    true
}
