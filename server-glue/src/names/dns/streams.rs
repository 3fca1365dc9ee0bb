//! DNS over TCP (RFC 7766): the guest's connections to port 53 of the gateway, for answers that one datagram does not hold.
//!
//! Each message stands behind its length. Several may be under way at once, and are answered as the answers come. A connection
//! that asks nothing for [`IDLE`] is closed.
//!
//! # Bounds
//!
//! [`MAX_STREAMS`] connections; of each one message that is not whole, [`MAX_UNDER_WAY`] that are, and about [`MAX_UNSENT`] octets of answers:
//! beyond that nothing is read, so that the guest's window closes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::netstack::{NetEvent, Netstack};
use crate::table::FlowId;

/// Most connections at once; more are refused.
const MAX_STREAMS: usize = 32;
/// Most questions of a connection that are not answered.
const MAX_UNDER_WAY: usize = 16;
/// Octets of answers that wait for the guest to read, from which on it is asked nothing more.
const MAX_UNSENT: usize = 64 * 1024;
/// Longest question. A name has 255 octets at most, and an option or two may follow.
const MAX_QUESTION: usize = 2048;
/// How long a connection may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(10);

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: BTreeMap<FlowId, Stream>,
}

#[derive(Debug)]
struct Stream {
    /// What was read of a message that is not whole.
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    /// Questions that will be answered.
    under_way: usize,
    /// The guest asks no more.
    ended: bool,
    /// We have sent our FIN.
    finished: bool,
    deadline: Instant,
}

impl Streams {
    /// It is gone, without a word to the guest. False: it is none of them.
    pub(crate) fn forget(&mut self, flow: FlowId) -> bool {
        self.streams.remove(&flow).is_some()
    }

    /// When [`Streams::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.streams.values().map(|stream| stream.deadline).min()
    }

    /// Closes those that are silent, and breaks those that do not let themselves be closed.
    pub(crate) fn handle_timeout(&mut self, netstack: &mut Netstack, now: Instant) {
        let due = |(flow, stream): (&FlowId, &Stream)| (stream.deadline <= now).then_some(*flow);
        let due: Vec<FlowId> = self.streams.iter().filter_map(due).collect();
        for flow in due {
            match self.streams.get_mut(&flow) {
                Some(stream) if !stream.finished && stream.output.is_empty() => {
                    stream.finished = true;
                    stream.deadline = now + IDLE;
                    netstack.finish(now, flow);
                }
                Some(_) => self.break_off(netstack, now, flow),
                None => {}
            }
        }
    }

    /// Something happened to one of them, or one wants to be.
    pub(crate) fn handle(&mut self, netstack: &mut Netstack, now: Instant, event: NetEvent) {
        match event {
            NetEvent::Connect { flow, .. } => {
                if self.streams.len() >= MAX_STREAMS {
                    netstack.refuse(now, flow);
                } else {
                    self.streams.insert(flow, Stream::new(now));
                    netstack.accept(now, flow);
                }
            }
            NetEvent::Readable { flow } => self.read(netstack, now, flow),
            NetEvent::Writable { flow } => self.write(netstack, now, flow),
            NetEvent::Finished { flow } => {
                if let Some(stream) = self.streams.get_mut(&flow) {
                    stream.ended = true;
                }
                self.finish_if_done(netstack, now, flow);
            }
            NetEvent::Closed { flow } | NetEvent::Reset { flow, .. } => {
                self.streams.remove(&flow);
            }
            NetEvent::GuestLeased { .. } => {}
        }
    }

    /// An answer to a question of this connection.
    pub(crate) fn answer(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId, message: &[u8]) {
        let Some(stream) = self.streams.get_mut(&flow) else { return };
        stream.under_way = stream.under_way.saturating_sub(1);
        // No answer is longer.
        let Ok(len) = u16::try_from(message.len()) else { return };
        stream.output.extend_from_slice(&len.to_be_bytes());
        stream.output.extend_from_slice(message);
        self.write(netstack, now, flow);
    }

    fn write(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        let Some(stream) = self.streams.get_mut(&flow) else { return };
        let rest = stream.output.get(stream.written..).unwrap_or_default();
        if !rest.is_empty() {
            let sent = netstack.send(now, flow, rest);
            stream.written += sent;
            if sent > 0 {
                stream.deadline = now + IDLE;
            }
        }
        if stream.written >= stream.output.len() {
            stream.output.clear();
            stream.written = 0;
        }
        // What was left unread because of it.
        self.read(netstack, now, flow);
        self.finish_if_done(netstack, now, flow);
    }

    fn read(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        while let Some(stream) = self.streams.get_mut(&flow) {
            match stream.next_question() {
                Ok(Some(question)) => {
                    stream.deadline = now + IDLE;
                    stream.under_way += usize::from(netstack.handle_dns_question(now, flow, &question));
                    continue;
                }
                Ok(None) => {}
                Err(TooLong) => return self.break_off(netstack, now, flow),
            }
            if stream.is_busy() {
                return;
            }
            let room = (2 + MAX_QUESTION).saturating_sub(stream.input.len());
            let input = &mut stream.input;
            let taken = netstack.recv(now, flow, |piece| {
                let taken = piece.get(..room).unwrap_or(piece);
                input.extend_from_slice(taken);
                taken.len()
            });
            if taken == 0 {
                return;
            }
        }
    }

    fn finish_if_done(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        if let Some(stream) = self.streams.get_mut(&flow)
            && stream.ended
            && !stream.finished
            && stream.under_way == 0
            && stream.output.is_empty()
        {
            stream.finished = true;
            stream.deadline = now + IDLE;
            netstack.finish(now, flow);
        }
    }

    fn break_off(&mut self, netstack: &mut Netstack, now: Instant, flow: FlowId) {
        self.streams.remove(&flow);
        netstack.reset(now, flow);
    }
}

/// A question longer than any is.
struct TooLong;

impl Stream {
    fn new(now: Instant) -> Stream {
        Stream {
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            under_way: 0,
            ended: false,
            finished: false,
            deadline: now + IDLE,
        }
    }

    fn is_busy(&self) -> bool {
        self.under_way >= MAX_UNDER_WAY || self.output.len() >= MAX_UNSENT
    }

    /// Takes the next message out of what was read, if it is whole and may be asked now.
    fn next_question(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some((len, rest)) = self.input.split_first_chunk::<2>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > MAX_QUESTION {
            return Err(TooLong);
        }
        if self.is_busy() || rest.len() < len {
            return Ok(None);
        }
        let message = self.input.drain(..2 + len).skip(2).collect();
        Ok(Some(message))
    }
}
