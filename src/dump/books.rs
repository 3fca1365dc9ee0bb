//! What is known around an item: its tunnel's ledger, the connection it belongs to, and when it was.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::{Serialize, Serializer};
use spice_proto::link::ChannelType;
use spice_proto::tunnel::{ClientMessage, ServerMessage, ServiceId, SocketId};

use crate::capture::dissect::{Body, Item, What};
use crate::capture::ledger::{Budget, Connection, Ledger, Noted};
use crate::capture::reassembly::StreamId;

/// An item, and what is known around it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a, 'b> {
    /// The item.
    pub item: &'a Item<'b>,
    /// When it was captured.
    pub since: Since,
    /// What its tunnel's ledger says about it; nothing on other channels.
    pub noted: &'a Noted,
    /// Connections of the guest that are over with this item. Each is shown once.
    pub over: &'a [Connection],
    /// Its tunnel's ledger, the item noted; `None` on other channels.
    pub ledger: Option<&'a Ledger>,
}

/// The ledgers of all tunnels that live in a capture.
#[derive(Debug, Default)]
pub struct Books {
    budget: Budget,
    /// Of every Spice connection that lives. INVARIANT: as many as the reassembler follows, since each ends.
    streams: BTreeMap<StreamId, Book>,
    /// Time of the first packet.
    start: Option<Duration>,
    /// Of the item before.
    latest: Since,
    noted: Noted,
    over: Vec<Connection>,
}

#[derive(Debug)]
struct Book {
    from_start: bool,
    ledger: Option<Ledger>,
}

impl Books {
    /// Sets the time of the first packet, which [`Since`] counts from. Otherwise it is the first item's.
    pub fn set_start(&mut self, start: Duration) {
        self.start.get_or_insert(start);
    }

    /// When the last item was captured.
    pub fn latest(&self) -> Since {
        self.latest
    }

    /// Notes an item, and shows it with what is known.
    pub fn note<R>(&mut self, item: &Item<'_>, show: impl FnOnce(&Seen<'_, '_>) -> R) -> R {
        self.set_start(item.time);
        let from_start = matches!(item.what, What::Began { from_start: true, .. });
        let book = self.streams.entry(item.stream).or_insert(Book { from_start, ledger: None });
        if book.ledger.is_none()
            && item.channel.is_some_and(|channel| channel.channel_type == ChannelType::TUNNEL.0)
        {
            book.ledger = Some(Ledger::new(&self.budget, book.from_start));
        }
        self.noted = Noted::default();
        self.over.clear();
        if let Some(ledger) = &mut book.ledger {
            self.noted = ledger.item(item);
            self.over = ledger.take_over();
        }
        let since = Since::between(self.start.unwrap_or(item.time), item.time);
        self.latest = since;
        let shown =
            show(&Seen { item, since, noted: &self.noted, over: &self.over, ledger: book.ledger.as_ref() });
        if matches!(item.what, What::Ended { .. }) {
            self.streams.remove(&item.stream);
        }
        shown
    }
}

impl Seen<'_, '_> {
    /// The socket that it is about.
    pub fn socket(&self) -> Option<SocketId> {
        subject(self.item).0
    }

    /// The service that it is about, if only because its socket's connection goes there.
    pub fn service(&self) -> Option<ServiceId> {
        let (socket, service) = subject(self.item);
        service.or_else(|| {
            let number = self.noted.connection?;
            let over = self.over.iter().find(|connection| connection.number == number);
            over.or_else(|| self.ledger?.connection(socket?)).and_then(|connection| connection.service)
        })
    }
}

/// Socket and service that a tunnel message names.
fn subject(item: &Item<'_>) -> (Option<SocketId>, Option<ServiceId>) {
    let What::Message(message) = &item.what else { return (None, None) };
    match &message.body {
        Body::TunnelServer(message) => match *message {
            ServerMessage::Init { .. } | ServerMessage::ProbeAck { .. } | ServerMessage::NameQuery { .. } => {
                (None, None)
            }
            ServerMessage::ServiceIpMap { service, .. } => (None, Some(service)),
            ServerMessage::SocketOpen { socket, service, .. } => (Some(socket), Some(service)),
            ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketData { socket, .. }
            | ServerMessage::SocketClosedAck { socket }
            | ServerMessage::SocketToken { socket, .. } => (Some(socket), None),
        },
        Body::TunnelClient(message) => match *message {
            ClientMessage::ServiceAdd(ref add) => (None, Some(add.service)),
            ClientMessage::ServiceRemove { service } | ClientMessage::ServiceInfo { service, .. } => {
                (None, Some(service))
            }
            ClientMessage::Probe { .. }
            | ClientMessage::NameAnswer { .. }
            | ClientMessage::DomainAdd { .. }
            | ClientMessage::DomainRemove { .. } => (None, None),
            ClientMessage::SocketOpenAck { socket, .. }
            | ClientMessage::SocketOpenNack { socket }
            | ClientMessage::SocketFin { socket }
            | ClientMessage::SocketClosed { socket }
            | ClientMessage::SocketClosedAck { socket }
            | ClientMessage::SocketData { socket, .. }
            | ClientMessage::SocketToken { socket, .. }
            | ClientMessage::SocketReset { socket } => (Some(socket), None),
        },
        Body::BaseServer(_)
        | Body::BaseClient(_)
        | Body::MainServer(_)
        | Body::MainClient(_)
        | Body::Opaque
        | Body::Incomplete => (None, None),
    }
}

/// Time since the first packet. Negative where a capture is not in order. Shown in seconds, with six digits behind the point,
/// to the right if there is a width; in JSON as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Since {
    /// Nanoseconds. INVARIANT: the difference of two `Duration`, hence far from overflow.
    nanos: i128,
}

impl Since {
    /// From one time to another.
    pub fn between(start: Duration, time: Duration) -> Self {
        Self { nanos: signed(time) - signed(start) }
    }

    /// A time before or after the first packet, in seconds. One that is not finite, or absurdly far, is at the end of time.
    pub fn from_seconds(seconds: f64) -> Self {
        let span = Duration::try_from_secs_f64(seconds.abs()).map_or(i128::MAX, signed);
        Self { nanos: if seconds < 0.0 { -span } else { span } }
    }

    /// So much earlier.
    #[must_use]
    pub fn earlier_by(self, span: Duration) -> Self {
        Self { nanos: self.nanos - signed(span) }
    }

    /// In seconds.
    pub fn seconds(self) -> f64 {
        // Exact to the nanosecond for a hundred days, which is better than clocks are.
        self.nanos as f64 / 1e9
    }
}

impl Display for Since {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let micros = self.nanos.unsigned_abs() / 1000;
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        if self.nanos < 0 {
            return f.pad(&format!("-{seconds}.{micros:06}"));
        }
        let behind = ".000000".len();
        write!(f, "{seconds:>width$}.{micros:06}", width = f.width().unwrap_or(0).saturating_sub(behind))
    }
}

impl Serialize for Since {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.seconds())
    }
}

fn signed(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_from_the_first_packet_both_ways() {
        let start = Duration::new(1_700_000_000, 999_999_000);
        let later = Since::between(start, Duration::new(1_700_000_001, 1_000));
        assert_eq!(format!("{later}|{later:>12}"), "0.000002|    0.000002");
        assert_eq!(serde_json::to_string(&later).unwrap(), "2e-6");
        let earlier = Since::between(start, Duration::new(1_699_999_999, 499_999_000));
        assert_eq!(format!("{earlier}|{earlier:>12}"), "-1.500000|   -1.500000");
        assert_eq!(serde_json::to_string(&earlier).unwrap(), "-1.5");
        let far = Since::between(Duration::ZERO, Duration::MAX);
        assert!(far.seconds().is_finite());
        assert!(serde_json::to_string(&far).unwrap().parse::<f64>().unwrap() > 1e19);
        assert!(Since::from_seconds(f64::INFINITY) > far);
        assert!(Since::from_seconds(-1.5) == earlier);
    }
}
