//! One guest connection: a smoltcp TCP socket in a socket set of its own.
//!
//! smoltcp walks its whole socket set for every packet, so a set with all connections gets slower with each of them
//! (design.md, decision 3). Here every connection has its own set, found by the netstack's hash table, and only that one
//! is polled. They take turns with one [`Engine`], which takes every address: the edge has already decided which exist.
//!
//! smoltcp 0.14 needs care in ten places, all of them here:
//!
//! * it takes the window of its own SYN-ACK, which is not scaled, for a scaled one, and panics when the guest fills what it
//!   believes to have announced: [`window_ring`] sizes rings so that both are the same;
//! * a FIN whose data does not fit the window is taken although the data was cut: such a segment is fed as two;
//! * data behind a FIN is taken too: such a segment is dropped;
//! * `close` before the handshake is over takes the guest's acknowledgement of our SYN for one of our FIN: it is put off;
//! * when TIME-WAIT ends, unread data is thrown away: the netstack keeps TIME-WAIT itself and lets go of the socket;
//! * an acknowledgement that shuts the window makes it probe that window instead of keeping its retransmission timer, though there may
//!   be octets under way: if the guest dropped them, they are never sent again. And when everything is acknowledged so, our
//!   FIN too, it goes on probing for ever and without a pause. Such a segment is fed as two, the acknowledgement
//!   first and then the shut window, which alone does not touch a timer that runs ([`Flow::shuts_behind`]);
//! * when that timer runs out while the window is shut, none runs any more until the guest says something, and its word that the window is
//!   open may have been lost: meanwhile keep-alives go out often ([`ASK_AGAIN`]);
//! * in LAST-ACK it ignores every segment that acknowledges nothing new, so that a window never opens: `close` behind the
//!   guest's FIN is put off until all data is acknowledged;
//! * a reset during the handshake makes it listen again: that counts as reset here;
//! * its delayed acknowledgements hold back a lone segment whatever its size, and never one of a FIN: they are not used. The netstack sends
//!   only when it is asked to, after a whole batch of frames was fed, which acknowledges a burst at once; a lone small segment, or a FIN,
//!   waits here for an answer that carries its acknowledgement ([`RIDE`]).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpListenEndpoint, TcpPacket, TcpRepr};

use crate::engine::{Engine, Scratch, to_stack_duration};
use crate::packet::{PROTOCOL_TCP, Segment, TCP_HEADER, TcpFlags, put_ipv4};
use crate::ring_socket::RingSocket;

/// How long our SYN-ACK may stay unanswered. A guest that takes longer than this over a link without distance never meant it.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Octets through the rings of a connection that is over up to which the next one gets their memory as it is.
const WORTH_KEEPING: usize = 16 * 1024;

/// How long a guest whose shut window holds us up may be silent once no other timer runs.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long the acknowledgement of one small segment may wait for something to ride on. A question and its answer cost one frame to the guest
/// less then, and so does the end of a connection that both close: a card takes one frame at a time, and the guest's TCP with it. RFC 9293
/// (3.8.6.3) allows half a second; Linux waits for 40 ms at least.
pub(crate) const RIDE: Duration = Duration::from_millis(5);

/// Octets in a segment beyond which it is part of a transfer, whose sender counts on acknowledgements.
const SMALL: usize = 1024;

/// The soonest that a connection is looked at again which had something to do, yet did nothing.
const SOONEST: Duration = Duration::from_millis(5);

/// Options of every connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowOptions {
    pub(crate) receive_buffer: usize,
    pub(crate) send_buffer: usize,
    pub(crate) keepalive: Duration,
    pub(crate) dead_after: Duration,
}

/// How far a connection is. The handshake is ours to finish only once its owner accepted it, so it starts with our SYN-ACK.
///
/// ```text
///   Opening ──guest's ACK──► Open ──both FINs, ours acknowledged──► Over
///      └──────────┴── RST, dead guest, abort ──► Aborted
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Our SYN-ACK is not acknowledged.
    Opening,
    /// Established, or half closed.
    Open,
    /// Closed in order by both; what was received can still be read.
    Over {
        /// We closed first, so the address pair must rest (TIME-WAIT).
        rest: Option<Rest>,
    },
    /// The guest reset it.
    Reset,
    /// The guest does not answer any more, or we aborted; our RST is out.
    Aborted,
}

/// What TIME-WAIT needs to know to acknowledge a late FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) next_send: u32,
    pub(crate) next_receive: u32,
}

/// Octets that were written to the rings of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Touched {
    receive: usize,
    send: usize,
}

pub(crate) struct Flow {
    socket: RingSocket,
    progress: Progress,
    /// Sequence number behind, and acknowledgement in, the last segment that was sent.
    last_sent: Rest,
    /// The sequence number behind the guest's FIN, once that was taken.
    guest_end: Option<u32>,
    /// The owner wants to close, but smoltcp must not know yet ([`Flow::may_close`]).
    close_later: bool,
    /// What smoltcp waits to see acknowledged first. Known once our SYN-ACK is out.
    unacknowledged: u32,
    /// Until when the acknowledgement of the last segment waits for something to ride on.
    rides_until: Option<Instant>,
    /// The guest's window was shut while we had more for it.
    shut: bool,
    /// Octets that the owner knows to be in the receive ring.
    known: usize,
    /// The owner had more to send than fitted.
    wants_room: bool,
    /// The owner knows that the guest sends no more.
    end_told: bool,
    /// Octets that were written to each ring since their memory was given back.
    touched: Touched,
    /// The sequence number behind the last octet that came within the window, in order or not.
    furthest: Option<u32>,
    /// How long the guest may be silent once the connection is open.
    dead_after: Duration,
    /// How long the guest may be silent before it is asked for a sign of life.
    keepalive: Duration,
}

/// A socket without a connection. It is kept for the next one: a mapping need not be made then.
pub(crate) fn spare(options: &FlowOptions) -> RingSocket {
    let mut spare = RingSocket::new(window_ring(options.receive_buffer), options.send_buffer);
    let socket = spare.get_mut();
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    // The guest is next to us: nothing in between could be congested. 2 MB at MTU 1500 took 0.01 s without control and 0.44 s with Reno
    // or Cubic (in a simulation without latency); where every hundredth frame was lost, 1.0, 8.9 and 7.2 s.
    socket.set_congestion_control(tcp::CongestionControl::None);
    spare
}

/// What the owner of a connection should hear of, since it last did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) finished: bool,
}

impl Flow {
    /// Takes the connection that `syn`, an IPv4 packet made by [`keep_syn`], asks for. The SYN-ACK comes from [`Flow::emit`].
    pub(crate) fn accept(
        engine: &mut Engine,
        now: Instant,
        (mut socket, options): (RingSocket, &FlowOptions),
        local: SocketAddr,
        syn: &[u8],
        scratch: &mut Scratch,
    ) -> Flow {
        let address = match local.ip() {
            IpAddr::V4(address) => Some(IpAddress::Ipv4(address)),
            // smoltcp is built without IPv6; no segment of a v6 connection comes this far.
            IpAddr::V6(_) => None,
        };
        // Fails only for port 0, which no segment has. It also forgets all that the socket was before.
        let listener = IpListenEndpoint { addr: address, port: local.port() };
        let _ = socket.get_mut().listen(listener);
        socket.get_mut().set_timeout(Some(to_stack_duration(options.dead_after.min(HANDSHAKE))));
        socket.get_mut().set_keep_alive(Some(to_stack_duration(options.keepalive)));
        let mut flow = Flow {
            socket,
            progress: Progress::Opening,
            last_sent: Rest { next_send: 0, next_receive: 0 },
            guest_end: None,
            close_later: false,
            unacknowledged: 0,
            rides_until: None,
            shut: false,
            known: 0,
            wants_room: false,
            end_told: false,
            touched: Touched::default(),
            furthest: None,
            dead_after: options.dead_after,
            keepalive: options.keepalive,
        };
        flow.ingress(engine, now, syn, scratch);
        if flow.socket().state() != tcp::State::SynReceived {
            flow.progress = Progress::Reset;
        }
        flow
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// Feeds a segment of this connection. `reply` gets each packet that must go out at once.
    pub(crate) fn feed(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        segment: &Segment<'_>,
        scratch: &mut Scratch,
        mut reply: impl FnMut(&mut Scratch),
    ) {
        let end = segment.sequence.wrapping_add(segment.sequence_len());
        if let Some(guest_end) = self.guest_end
            && !segment.data.is_empty()
            && end.wrapping_sub(guest_end).wrapping_sub(1) < 1 << 31
        {
            return;
        }
        self.note_data(segment);
        let queued = self.socket().send_queue();
        let shuts_behind = self.shuts_behind(segment);
        let window = if shuts_behind { 1 } else { window(segment) };
        let mut feed = |flow: &mut Flow, part: &[u8]| {
            flow.ingress(engine, now, part, scratch);
            if !scratch.frame().is_empty() {
                reply(scratch);
            }
        };
        if segment.flags.has(TcpFlags::FIN) && !segment.data.is_empty() {
            for part in split_fin(segment, window) {
                feed(self, &part);
            }
        } else if shuts_behind {
            feed(self, &rewritten(segment, segment.sequence, segment.flags.0, window, segment.data));
        } else {
            feed(self, segment.ip.whole);
        }
        // Only behind the first: alone it would acknowledge and shut at once, which is what must not be.
        if shuts_behind && self.socket().send_queue() < queued && self.sends_data() {
            feed(self, &rewritten(segment, end, TcpFlags::ACK.0, 0, &[]));
        }
        self.ask_again(segment);
        self.let_ride(now, segment);
        if self.guest_end.is_none() && self.fin_taken() {
            self.guest_end = Some(end);
        }
        self.follow(if segment.flags.has(TcpFlags::RST) { Cause::GuestReset } else { Cause::GuestSegment });
    }

    /// Sends at most one packet, left in `scratch`. False: there is none to send now.
    pub(crate) fn emit(&mut self, engine: &mut Engine, now: Instant, scratch: &mut Scratch) -> bool {
        scratch.clear();
        if matches!(self.progress, Progress::Over { .. } | Progress::Reset | Progress::Aborted) {
            return false;
        }
        if self.rides(now) {
            return false;
        }
        self.rides_until = None;
        engine.egress(&mut self.socket, now, scratch);
        let sent = !scratch.frame().is_empty();
        if sent {
            self.note_sent(scratch);
            if self.progress == Progress::Opening {
                self.unacknowledged = self.last_sent.next_send;
            }
        }
        self.follow(Cause::OwnTurn);
        if !sent && self.socket().state() == tcp::State::TimeWait {
            // Nothing left to send means that the guest's FIN is acknowledged.
            self.progress = Progress::Over { rest: Some(self.last_sent) };
        }
        sent
    }

    /// When [`Flow::emit`] must be called though nothing happens.
    pub(crate) fn deadline(&mut self, engine: &mut Engine, now: Instant) -> Option<Instant> {
        match self.progress {
            Progress::Opening | Progress::Open => {}
            Progress::Over { .. } | Progress::Reset | Progress::Aborted => return None,
        }
        if self.rides(now) {
            return self.rides_until;
        }
        Some(engine.poll_at(&mut self.socket, now)?.max(now + SOONEST))
    }

    /// What the owner has not heard of yet; told once. `most` is how much may wait for the guest.
    pub(crate) fn news(&mut self, most: usize) -> News {
        let received = self.socket().recv_queue();
        let readable = received > self.known;
        self.known = received;
        let most = most.min(self.socket().send_capacity());
        let writable = self.wants_room && self.send_capacity(most) > most / 4;
        self.wants_room &= !writable;
        let finished = self.guest_end.is_some() && received == 0 && !self.end_told;
        self.end_told |= finished;
        News { readable, writable, finished }
    }

    /// Closed by both, and the owner has read everything: nobody needs it any more.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.progress, Progress::Over { .. }) && self.end_told
    }

    pub(crate) fn recv(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        if !self.socket().can_recv() {
            return 0;
        }
        let taken = self.socket_mut().recv(|bytes| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        });
        self.known = self.socket().recv_queue();
        taken.unwrap_or(0)
    }

    pub(crate) fn recv_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// `most` is how much may wait for the guest then.
    pub(crate) fn send(&mut self, data: &[u8], most: usize) -> usize {
        let fits = data.get(..self.send_capacity(most)).unwrap_or(data);
        let sent = self.socket_mut().send_slice(fits).unwrap_or(0);
        self.wants_room |= sent < data.len();
        self.touched.send = self.touched.send.saturating_add(sent);
        sent
    }

    /// What [`Flow::send`] would take.
    pub(crate) fn send_capacity(&self, most: usize) -> usize {
        let socket = self.socket();
        let most = most.min(socket.send_capacity());
        if socket.may_send() && !self.close_later { most.saturating_sub(socket.send_queue()) } else { 0 }
    }

    /// No more data from us: FIN behind what was sent.
    pub(crate) fn close(&mut self) {
        self.wants_room = false;
        self.close_later = true;
        self.close_in_time();
    }

    /// Octets of memory that its rings hold, at most.
    pub(crate) fn held(&self) -> usize {
        let socket = self.socket();
        self.touched.receive.min(socket.recv_capacity()) + self.touched.send.min(socket.send_capacity())
    }

    /// Gives the memory of the rings back, if nothing is in them. What comes later takes it anew.
    pub(crate) fn give_back(&mut self) {
        if self.is_settled() {
            self.socket.give_back();
            self.touched = Touched::default();
        }
    }

    /// The socket, for another connection.
    pub(crate) fn recycle(mut self) -> RingSocket {
        self.abort();
        // Nobody wants what is in the rings any more; listening empties them. It cannot fail for a socket that was aborted.
        let _ = self.socket_mut().listen(IpListenEndpoint { addr: None, port: 1 });
        self.abort();
        if self.touched.receive.saturating_add(self.touched.send) > WORTH_KEEPING {
            self.socket.give_back();
        }
        self.socket
    }

    /// RST with the next [`Flow::emit`].
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.socket.get()
    }

    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.socket.get_mut()
    }

    /// Remembers how far data has come.
    fn note_data(&mut self, segment: &Segment<'_>) {
        if segment.data.is_empty() {
            return;
        }
        // A small piece far ahead touches a page of its own.
        self.touched.receive = self.touched.receive.saturating_add(segment.data.len().max(1024));
        let next = self.last_sent.next_receive;
        let room = u32::try_from(self.socket().recv_capacity()).unwrap_or(u32::MAX);
        let start = segment.sequence.wrapping_sub(next);
        let end = start.wrapping_add(segment.sequence_len());
        let is_old = end == 0 || end >= 1 << 31;
        let is_beyond = start < 1 << 31 && start > room;
        if is_old || is_beyond {
            return;
        }
        // What lies beyond the window was cut off.
        let end = end.min(room + 1);
        let known = self.furthest.map_or(0, |furthest| furthest.wrapping_sub(next));
        if known >= 1 << 31 || end > known {
            self.furthest = Some(next.wrapping_add(end));
        }
    }

    /// Nothing is in the rings, and nothing has come out of order that was not acknowledged since.
    fn is_settled(&self) -> bool {
        let acknowledged =
            |end: u32| end.wrapping_sub(self.last_sent.next_receive).wrapping_sub(1) >= 1 << 31;
        self.socket().recv_queue() == 0
            && self.socket().send_queue() == 0
            && self.furthest.is_none_or(acknowledged)
    }

    fn fin_taken(&self) -> bool {
        match self.socket().state() {
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait => true,
            tcp::State::Closed
            | tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2 => false,
        }
    }

    fn ingress(&mut self, engine: &mut Engine, now: Instant, packet: &[u8], scratch: &mut Scratch) {
        let queued = self.socket().send_queue();
        engine.ingress(&mut self.socket, now, packet, scratch);
        let acknowledged = queued.saturating_sub(self.socket().send_queue());
        self.unacknowledged =
            self.unacknowledged.wrapping_add(u32::try_from(acknowledged).unwrap_or(u32::MAX));
        if !scratch.frame().is_empty() {
            self.note_sent(scratch);
        }
    }

    /// Lets the acknowledgement of a lone small segment or FIN wait. That of a second one goes at once, with that of the first.
    fn let_ride(&mut self, now: Instant, segment: &Segment<'_>) {
        if segment.sequence_len() > 0 {
            let lone = self.rides_until.is_none() && segment.data.len() <= SMALL;
            // Who is about to fill the window waits for the word that it is open again.
            let roomy = self.socket().recv_queue() <= self.socket().recv_capacity() / 4;
            self.rides_until = (lone && roomy).then(|| now + RIDE);
        }
    }

    /// Whether there is nothing to send now but an acknowledgement that may still wait.
    fn rides(&self, now: Instant) -> bool {
        let socket = self.socket();
        self.rides_until.is_some_and(|until| now < until)
            && matches!(socket.state(), tcp::State::Established | tcp::State::CloseWait)
            && socket.send_queue() == 0
    }

    /// Whether `segment` acknowledges some of what is queued, and shuts the window with the same word. It is fed as one that leaves
    /// the window open, then one that only shuts it. Nothing is sent between the two.
    fn shuts_behind(&self, segment: &Segment<'_>) -> bool {
        let queued = self.socket().send_queue();
        let acknowledged = segment.acknowledgement.wrapping_sub(self.unacknowledged) as usize;
        // Our FIN may be acknowledged with the data.
        let acknowledges = acknowledged > 0 && acknowledged <= queued + 1;
        let flags = segment.flags;
        let plain = flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::RST);
        plain && window(segment) == 0 && queued > 0 && acknowledges
    }

    /// Sees to it that somebody asks a guest whose window is shut.
    fn ask_again(&mut self, segment: &Segment<'_>) {
        let shut = window(segment) == 0 && self.socket().send_queue() > 0;
        if shut != self.shut {
            self.shut = shut;
            let interval = if shut { self.keepalive.min(ASK_AGAIN) } else { self.keepalive };
            self.socket_mut().set_keep_alive(Some(to_stack_duration(interval)));
        }
    }

    /// Our stream has not ended with all of it acknowledged, so the window matters.
    fn sends_data(&self) -> bool {
        self.socket().may_send() || self.socket().send_queue() > 0
    }

    /// Whether smoltcp may know that we close: not before the handshake is over, and in answer to the guest's FIN not before all data is
    /// acknowledged.
    fn may_close(&self) -> bool {
        match self.socket().state() {
            tcp::State::SynReceived => false,
            tcp::State::CloseWait => self.socket().send_queue() == 0,
            tcp::State::Closed
            | tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck
            | tcp::State::TimeWait => true,
        }
    }

    fn close_in_time(&mut self) {
        if self.close_later && self.may_close() {
            self.close_later = false;
            self.socket_mut().close();
        }
    }

    fn note_sent(&mut self, scratch: &Scratch) {
        if let Some(sent) = behind(scratch.packet()) {
            self.last_sent = sent;
        }
    }

    /// Looks at what smoltcp made of it.
    fn follow(&mut self, cause: Cause) {
        let closed = match (self.progress, self.socket().state()) {
            (Progress::Over { .. } | Progress::Reset | Progress::Aborted, _) => return,
            (Progress::Opening, tcp::State::SynReceived) => return,
            (Progress::Opening, tcp::State::Listen) => {
                self.progress = Progress::Reset;
                return;
            }
            (Progress::Opening | Progress::Open, tcp::State::Closed) => true,
            (
                Progress::Opening | Progress::Open,
                tcp::State::Listen
                | tcp::State::SynSent
                | tcp::State::SynReceived
                | tcp::State::Established
                | tcp::State::FinWait1
                | tcp::State::FinWait2
                | tcp::State::CloseWait
                | tcp::State::Closing
                | tcp::State::LastAck
                | tcp::State::TimeWait,
            ) => false,
        };
        if closed {
            // While it remembers the guest, its RST is still to go out.
            if self.socket().remote_endpoint().is_none() {
                self.progress = match cause {
                    Cause::GuestReset => Progress::Reset,
                    Cause::GuestSegment => Progress::Over { rest: None },
                    Cause::OwnTurn => Progress::Aborted,
                };
            }
        } else if self.progress == Progress::Opening {
            self.progress = Progress::Open;
            let timeout = to_stack_duration(self.dead_after);
            self.socket_mut().set_timeout(Some(timeout));
        }
        self.close_in_time();
    }
}

/// The largest size up to `size` that a window field can say exactly: 65,535, or that shifted by some window scale.
fn window_ring(size: usize) -> usize {
    let largest = usize::from(u16::MAX);
    (0..=14).rev().map(|scale| largest << scale).find(|exact| *exact <= size).unwrap_or(size)
}

/// What smoltcp has just been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    GuestSegment,
    GuestReset,
    /// A chance to send.
    OwnTurn,
}

/// The SYN of `segment` as an IPv4 packet without data: what is kept until the owner of the connection decided. `None`: smoltcp would not take
/// it (its options are malformed).
pub(crate) fn keep_syn(segment: &Segment<'_>) -> Option<Box<[u8]>> {
    let mut packet = Vec::with_capacity(20 + segment.header.len());
    put_ipv4(&mut packet, segment.ip.source, segment.ip.destination, PROTOCOL_TCP, segment.header.len());
    packet.extend_from_slice(segment.header);
    let view = TcpPacket::new_checked(segment.header).ok()?;
    let (source, destination) = (IpAddress::Ipv4(segment.ip.source), IpAddress::Ipv4(segment.ip.destination));
    TcpRepr::parse(&view, &source, &destination, &ChecksumCapabilities::ignored()).ok()?;
    Some(packet.into())
}

/// The data of a segment, then its FIN alone. If the data was cut at the window's edge, the FIN stands beyond a gap, and is ignored until
/// the guest sends it again.
fn split_fin(segment: &Segment<'_>, window: u16) -> [Vec<u8>; 2] {
    let data_len = u32::try_from(segment.data.len()).unwrap_or(u32::MAX);
    let data = rewritten(segment, segment.sequence, segment.flags.0 & !TcpFlags::FIN.0, window, segment.data);
    let fin = rewritten(segment, segment.sequence.wrapping_add(data_len), segment.flags.0, window, &[]);
    [data, fin]
}

/// A segment like `segment`, its TCP checksum not renewed: smoltcp does not look at it here.
fn rewritten(segment: &Segment<'_>, sequence: u32, flags: u8, window: u16, data: &[u8]) -> Vec<u8> {
    let len = segment.header.len() + data.len();
    let mut packet = Vec::with_capacity(20 + len);
    put_ipv4(&mut packet, segment.ip.source, segment.ip.destination, PROTOCOL_TCP, len);
    let tcp = packet.len();
    packet.extend_from_slice(segment.header);
    packet.extend_from_slice(data);
    if let Some([_, _, _, _, q0, q1, q2, q3, _, _, _, _, _, control, w0, w1, ..]) = packet.get_mut(tcp..) {
        [*q0, *q1, *q2, *q3] = sequence.to_be_bytes();
        *control = flags;
        [*w0, *w1] = window.to_be_bytes();
    }
    packet
}

/// The window that a segment announces, not scaled. A header without one cannot be.
fn window(segment: &Segment<'_>) -> u16 {
    match segment.header.first_chunk::<TCP_HEADER>() {
        Some(&[.., w0, w1, _, _, _, _]) => u16::from_be_bytes([w0, w1]),
        None => 0,
    }
}

/// What follows a segment that smoltcp made: its IPv4 header has no options.
fn behind(packet: &[u8]) -> Option<Rest> {
    let (_, tcp) = packet.split_first_chunk::<20>()?;
    let &[_, _, _, _, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, _, _, _, _, _, _] =
        tcp.first_chunk::<TCP_HEADER>()?;
    let flags = TcpFlags(flags);
    let data = tcp.len().checked_sub(usize::from(offset >> 4) * 4)?;
    let controls = usize::from(flags.has(TcpFlags::SYN)) + usize::from(flags.has(TcpFlags::FIN));
    let len = u32::try_from(data + controls).ok()?;
    Some(Rest {
        next_send: u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(len),
        next_receive: u32::from_be_bytes([a0, a1, a2, a3]),
    })
}
