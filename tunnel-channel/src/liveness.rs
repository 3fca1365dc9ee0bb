//! Is the peer there, how far away is it, and does it want acknowledgements (wire-reference 2.4, 2.5).

use std::time::{Duration, Instant};

/// Why a channel wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutReason {
    /// A PING is due.
    Ping,
    /// The peer will have been silent for too long.
    Silence,
}

/// Watches whether the peer is alive. Any message is a sign of life, not just the PONG: behind a deep buffer on a slow
/// link a PONG may be late although the peer works on.
#[derive(Debug)]
pub(crate) struct Liveness {
    started: Instant,
    heard: Instant,
    dead_after: Duration,
    watch: Watch,
    rtt: Option<Duration>,
}

/// What is being waited for.
///
/// ```text
/// server: Due --time: send PING--> Pinged --PONG--> Due
/// client: Listening for ever, or Off where nothing need ever come
/// ```
#[derive(Clone, Copy, Debug)]
enum Watch {
    Off,
    /// Server: the next PING goes out at this time. `None`: so late that no clock shows it.
    Due {
        at: Option<Instant>,
        interval: Duration,
        id: u32,
    },
    /// Server: a PING is on its way, and no other is sent meanwhile.
    Pinged {
        sent: Instant,
        interval: Duration,
        id: u32,
    },
    /// Client: the server's PINGs keep the channel from being silent.
    Listening,
}

/// A PING to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ping {
    pub(crate) id: u32,
    /// Microseconds since the channel's start.
    pub(crate) timestamp: u64,
}

impl Liveness {
    pub(crate) fn server(now: Instant, interval: Option<Duration>, dead_after: Duration) -> Self {
        let watch = match interval {
            Some(interval) => Watch::Due { at: now.checked_add(interval), interval, id: 1 },
            None => Watch::Off,
        };
        Liveness { started: now, heard: now, dead_after, watch, rtt: None }
    }

    /// `pinged`: whether the server is known to send PINGs.
    pub(crate) fn client(now: Instant, pinged: bool, dead_after: Duration) -> Self {
        let watch = if pinged { Watch::Listening } else { Watch::Off };
        Liveness { started: now, heard: now, dead_after, watch, rtt: None }
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn dead_after(&self) -> Duration {
        self.dead_after
    }

    pub(crate) fn on_message(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// A PONG; one that answers no PING of ours is without effect.
    pub(crate) fn on_pong(&mut self, now: Instant, pong: Ping) {
        if let Watch::Pinged { sent, interval, id } = self.watch
            && pong == self.ping(sent, id)
        {
            self.rtt = Some(now.saturating_duration_since(sent));
            self.watch =
                Watch::Due { at: sent.max(now).checked_add(interval), interval, id: id.wrapping_add(1) };
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        match self.watch {
            Watch::Off => None,
            Watch::Due { at, .. } => at.map(|at| (at, TimeoutReason::Ping)),
            Watch::Pinged { sent, .. } => self.deadline(self.heard.max(sent)),
            Watch::Listening => self.deadline(self.heard),
        }
    }

    /// `Ok`: a PING to send, if one is due. `Err`: the peer is dead.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<Option<Ping>, Silence> {
        let Some((at, reason)) = self.poll_timeout() else { return Ok(None) };
        if now < at {
            return Ok(None);
        }
        match (reason, self.watch) {
            (TimeoutReason::Silence, _) => Err(Silence),
            (TimeoutReason::Ping, Watch::Due { interval, id, .. }) => {
                self.watch = Watch::Pinged { sent: now, interval, id };
                Ok(Some(self.ping(now, id)))
            }
            (TimeoutReason::Ping, Watch::Off | Watch::Pinged { .. } | Watch::Listening) => Ok(None),
        }
    }

    fn deadline(&self, since: Instant) -> Option<(Instant, TimeoutReason)> {
        since.checked_add(self.dead_after).map(|at| (at, TimeoutReason::Silence))
    }

    fn ping(&self, sent: Instant, id: u32) -> Ping {
        let timestamp = sent.saturating_duration_since(self.started).as_micros();
        Ping { id, timestamp: u64::try_from(timestamp).unwrap_or(u64::MAX) }
    }
}

/// The peer was silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silence;

/// The client's part of the ack window: after how many messages the server wants an ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// None was asked for, or a window of 0 was.
    Never,
    /// One per `window` messages. INVARIANT: `1 <= left <= window`.
    Every { window: u32, left: u32 },
}

impl Acks {
    pub(crate) fn on_set_ack(&mut self, window: u32) {
        *self = match window {
            0 => Acks::Never,
            window => Acks::Every { window, left: window },
        };
    }

    /// Counts a message of the server, before it is handled. `true`: send an ACK.
    #[must_use]
    pub(crate) fn count(&mut self) -> bool {
        match self {
            Acks::Never => false,
            Acks::Every { window, left } if *left <= 1 => {
                *left = *window;
                true
            }
            Acks::Every { left, .. } => {
                *left -= 1;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_acks_are_where_the_stock_client_sends_them() {
        // SET_ACK is message 1, and window 20 gives ACKs behind messages 21, 41 and 61.
        let mut acks = Acks::Never;
        let mut at = Vec::new();
        for message in 1..=61 {
            if acks.count() {
                at.push(message);
            }
            if message == 1 {
                acks.on_set_ack(20);
            }
        }
        assert_eq!(at, [21, 41, 61]);
    }

    #[test]
    fn windows_of_one_and_none() {
        let mut acks = Acks::Never;
        acks.on_set_ack(1);
        assert!(acks.count() && acks.count());
        acks.on_set_ack(0);
        assert!(!acks.count());
        acks.on_set_ack(u32::MAX);
        assert!(!acks.count());
    }

    #[test]
    fn a_pong_gives_the_round_trip_and_the_next_ping() {
        let start = Instant::now();
        let mut server = Liveness::server(start, Some(10 * SECOND), 30 * SECOND);
        assert_eq!(server.poll_timeout(), Some((start + 10 * SECOND, TimeoutReason::Ping)));
        assert_eq!(server.handle_timeout(start + 9 * SECOND), Ok(None));
        let ping = server.handle_timeout(start + 10 * SECOND).unwrap().unwrap();
        assert_eq!(ping, Ping { id: 1, timestamp: 10_000_000 });
        assert_eq!(server.poll_timeout(), Some((start + 40 * SECOND, TimeoutReason::Silence)));
        server.on_pong(start + 11 * SECOND, Ping { id: 2, ..ping });
        server.on_pong(start + 11 * SECOND, Ping { timestamp: 0, ..ping });
        assert_eq!(server.rtt(), None, "not answers to our ping");
        server.on_pong(start + 11 * SECOND, ping);
        assert_eq!(server.rtt(), Some(SECOND));
        assert_eq!(server.poll_timeout(), Some((start + 21 * SECOND, TimeoutReason::Ping)));
        server.on_pong(start + 15 * SECOND, ping);
        assert_eq!(server.rtt(), Some(SECOND), "an answer counts once");
    }

    #[test]
    fn silence_behind_a_ping_is_death_and_any_message_is_life() {
        let start = Instant::now();
        let mut server = Liveness::server(start, Some(10 * SECOND), 30 * SECOND);
        assert!(server.handle_timeout(start + 10 * SECOND).unwrap().is_some());
        server.on_message(start + 20 * SECOND);
        assert_eq!(server.handle_timeout(start + 49 * SECOND), Ok(None));
        assert_eq!(server.handle_timeout(start + 50 * SECOND), Err(Silence));
    }

    #[test]
    fn a_late_timer_counts_silence_from_the_ping() {
        // The machine slept for an hour: the peer gets its chance to answer.
        let start = Instant::now();
        let mut server = Liveness::server(start, Some(10 * SECOND), 30 * SECOND);
        assert!(server.handle_timeout(start + 3600 * SECOND).unwrap().is_some());
        assert_eq!(server.handle_timeout(start + 3629 * SECOND), Ok(None));
        assert_eq!(server.handle_timeout(start + 3630 * SECOND), Err(Silence));
    }

    #[test]
    fn a_client_listens_only_where_pings_come() {
        let start = Instant::now();
        let mut quiet = Liveness::client(start, false, SECOND);
        assert_eq!(quiet.poll_timeout(), None);
        assert_eq!(quiet.handle_timeout(start + 100 * SECOND), Ok(None));
        let mut client = Liveness::client(start, true, 30 * SECOND);
        client.on_message(start + 5 * SECOND);
        assert_eq!(client.poll_timeout(), Some((start + 35 * SECOND, TimeoutReason::Silence)));
        assert_eq!(client.handle_timeout(start + 35 * SECOND), Err(Silence));
        let forever = Liveness::client(start, true, Duration::MAX);
        assert_eq!(forever.poll_timeout(), None);
    }
}
