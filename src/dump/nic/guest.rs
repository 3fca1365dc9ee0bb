//! The connections in a capture of the guest's card: who to, how answered, how many bytes, how ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::capture::file::{FileError, Reader};
use crate::capture::packet::segment;
use crate::capture::reassembly::{Limits, Piece, Reassembler, StreamEvent, StreamId, Way};

use super::icmp::unreachable;

/// Reads them from a file.
pub(super) struct Guests {
    reader: Reader,
    reassembler: Reassembler,
    live: BTreeMap<StreamId, GuestConnection>,
    /// Those that nobody answered yet, for what ICMP says of them. INVARIANT: no more than `live`.
    unanswered: BTreeMap<(SocketAddr, SocketAddr), StreamId>,
    /// Time of the first packet, and of the last.
    times: Option<(Duration, Duration)>,
    over: bool,
    /// Packets that nothing could be made of.
    faults: u64,
}

/// A TCP connection at the guest's card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestConnection {
    /// Its number in the capture.
    pub(super) stream: StreamId,
    /// The guest's address.
    pub(super) from: SocketAddr,
    /// Who it connected to.
    pub(super) to: SocketAddr,
    /// Whether the capture has its beginning. If not, `from` and `to` may be the wrong way round.
    pub(super) from_start: bool,
    /// Its first packet.
    pub(super) opened: Duration,
    /// What the guest was told.
    pub(super) reply: Reply,
    /// From the guest.
    pub(super) up: GuestFlow,
    /// To the guest.
    pub(super) down: GuestFlow,
    /// Who aborted it, and when.
    pub(super) reset: Option<(Way, Duration)>,
    /// When it was over, or the capture.
    pub(super) ended: Option<Duration>,
    /// Whether the capture has its end.
    pub(super) end_seen: bool,
}

/// What a guest that connects is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// Nothing.
    None,
    /// Its connection is established.
    Accepted {
        /// When.
        at: Duration,
    },
    /// RST.
    Refused {
        /// When.
        at: Duration,
    },
    /// ICMP: destination unreachable.
    Unreachable {
        /// When.
        at: Duration,
        /// By whom.
        by: IpAddr,
    },
}

/// A direction of a guest's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct GuestFlow {
    /// Bytes.
    pub(super) bytes: u64,
    /// When the first came.
    pub(super) first: Option<Duration>,
    /// When the last came.
    pub(super) last: Option<Duration>,
    /// FIN.
    pub(super) fin: Option<Duration>,
    /// Bytes that the capture lacks.
    pub(super) missing: u64,
}

/// What happened to a guest's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News<'a> {
    /// It is new.
    Began,
    /// There are more bytes.
    Bytes {
        /// From whom: the guest is [`Way::Forth`].
        way: Way,
        /// They.
        bytes: &'a [u8],
    },
    /// The capture lacks bytes.
    Hole {
        /// From whom.
        way: Way,
    },
    /// Something else about it is known now.
    Changed,
    /// Nothing more comes of it.
    Over,
}

impl Guests {
    /// Those in this file.
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            reassembler: Reassembler::new(Limits::default()),
            live: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            times: None,
            over: false,
            faults: 0,
        }
    }

    /// Reads a packet. `Ok(false)`: there was none, and every connection is over.
    ///
    /// # Errors
    ///
    /// The file is damaged here. Nothing more comes of it, and every connection is over.
    pub(super) fn step(
        &mut self,
        sink: &mut impl FnMut(&GuestConnection, News<'_>),
    ) -> Result<bool, FileError> {
        if self.over {
            return Ok(false);
        }
        let Self { reader, reassembler, live, unanswered, times, over, faults } = self;
        let failed = match reader.next() {
            Ok(Some(packet)) => {
                let time = packet.time;
                times.get_or_insert((time, time)).1 = time;
                match segment(&packet) {
                    Ok(Some(segment)) => reassembler.handle(time, &segment, &mut |event| {
                        note(live, unanswered, event, sink);
                    }),
                    Ok(None) => {
                        if let Some((by, from, to)) = unreachable(&packet)
                            && let Some(stream) = unanswered.remove(&(from, to))
                            && let Some(connection) = live.get_mut(&stream)
                        {
                            connection.reply = Reply::Unreachable { at: time, by };
                            sink(connection, News::Changed);
                        }
                    }
                    Err(_) => *faults += 1,
                }
                return Ok(true);
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        *over = true;
        reassembler.finish(&mut |event| note(live, unanswered, event, sink));
        failed.map_or(Ok(false), Err)
    }

    /// Whether everything was read.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Time of the first packet, and of the last so far.
    pub(super) fn times(&self) -> Option<(Duration, Duration)> {
        self.times
    }

    /// How many packets nothing could be made of.
    pub(super) fn faults(&self) -> u64 {
        self.faults
    }
}

fn note(
    live: &mut BTreeMap<StreamId, GuestConnection>,
    unanswered: &mut BTreeMap<(SocketAddr, SocketAddr), StreamId>,
    event: StreamEvent<'_>,
    sink: &mut impl FnMut(&GuestConnection, News<'_>),
) {
    let StreamEvent { time, stream, piece } = event;
    if let Piece::Opened { from, to, from_start } = piece {
        let connection = GuestConnection::new(stream, time, from, to, from_start);
        sink(&connection, News::Began);
        if from_start {
            unanswered.insert((from, to), stream);
        }
        live.insert(stream, connection);
        return;
    }
    let Some(connection) = live.get_mut(&stream) else { return };
    let news = connection.note(time, piece);
    if connection.reply != Reply::None || news == News::Over {
        let addresses = (connection.from, connection.to);
        if unanswered.get(&addresses) == Some(&stream) {
            unanswered.remove(&addresses);
        }
    }
    sink(connection, news);
    if news == News::Over {
        live.remove(&stream);
    }
}

impl GuestConnection {
    pub(super) fn new(
        stream: StreamId,
        time: Duration,
        from: SocketAddr,
        to: SocketAddr,
        from_start: bool,
    ) -> Self {
        Self {
            stream,
            from,
            to,
            from_start,
            opened: time,
            reply: Reply::None,
            up: GuestFlow::default(),
            down: GuestFlow::default(),
            reset: None,
            ended: None,
            end_seen: false,
        }
    }

    fn note<'a>(&mut self, time: Duration, piece: Piece<'a>) -> News<'a> {
        match piece {
            Piece::Opened { .. } => News::Changed,
            Piece::Answered => {
                self.reply = Reply::Accepted { at: time };
                News::Changed
            }
            Piece::Bytes { way, bytes } => {
                let flow = self.flow_mut(way);
                flow.bytes = flow.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                flow.first.get_or_insert(time);
                flow.last = Some(time);
                News::Bytes { way, bytes }
            }
            Piece::Hole { way, missing, .. } => {
                let flow = self.flow_mut(way);
                flow.missing = flow.missing.saturating_add(missing);
                News::Hole { way }
            }
            Piece::Finished { way } => {
                self.flow_mut(way).fin = Some(time);
                News::Changed
            }
            Piece::Reset { way } => {
                if self.reply == Reply::None && self.from_start && way == Way::Back {
                    self.reply = Reply::Refused { at: time };
                } else {
                    self.reset = Some((way, time));
                }
                News::Changed
            }
            Piece::Ended { seen } => {
                self.ended = Some(time);
                self.end_seen = seen;
                News::Over
            }
        }
    }

    fn flow_mut(&mut self, way: Way) -> &mut GuestFlow {
        match way {
            Way::Forth => &mut self.up,
            Way::Back => &mut self.down,
        }
    }

    /// How it ended, for people and as one word.
    pub(super) fn ending(&self) -> (&'static str, &'static str) {
        match (self.reply, self.reset) {
            (Reply::Refused { .. }, _) => ("refused", "refused"),
            (Reply::Unreachable { .. }, _) => ("unreachable", "unreachable"),
            (_, Some((Way::Forth, _))) => ("reset by the guest", "guest_reset"),
            (_, Some((Way::Back, _))) => ("reset by the service", "service_reset"),
            (_, None) if self.up.fin.is_some() && self.down.fin.is_some() => ("closed", "closed"),
            (Reply::None, None) if self.from_start => ("no answer", "no_answer"),
            (_, None) => ("end not seen", "not_seen"),
        }
    }

    /// From the first packet to the last event.
    pub(super) fn lasted(&self) -> Duration {
        let last = [
            self.up.last,
            self.down.last,
            self.up.fin,
            self.down.fin,
            self.reset.map(|(_, at)| at),
            self.answered(),
        ];
        last.into_iter().flatten().max().unwrap_or(self.opened).saturating_sub(self.opened)
    }

    /// When the guest was told something.
    pub(super) fn answered(&self) -> Option<Duration> {
        match self.reply {
            Reply::None => None,
            Reply::Accepted { at } | Reply::Refused { at } | Reply::Unreachable { at, .. } => Some(at),
        }
    }
}
