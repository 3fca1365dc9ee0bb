//! Is the peer there, how far away is it, and does it want acknowledgements (wire-reference 2.4, 2.5).

use std::time::{Duration, Instant};

/// Why a channel wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutReason {
    /// A PING is due, or a client's PROBE.
    Ping,
    /// The peer will have been silent for too long.
    Silence,
}

/// Watches whether the peer is alive. Any message is a sign of life, not just the answer: behind a deep buffer on a slow
/// link an answer may be late although the peer works on.
#[derive(Debug)]
pub(crate) struct Liveness {
    started: Instant,
    heard: Instant,
    dead_after: Duration,
    /// How long the peer has at least for the answer: a machine that slept asks late.
    answer_within: Duration,
    /// Between an answer and the next question. `None`: asked is only on demand.
    interval: Option<Duration>,
    /// Nothing is asked while the peer says something anyway.
    only_if_quiet: bool,
    watch: Watch,
    urgent: Option<Urgent>,
    rtt: Option<Duration>,
}

/// What is being waited for.
///
/// ```text
/// server, asking client: Due --time, probe: ask--> Asked --answer--> Due
/// other client: Listening for ever, or Off where nothing need ever come
/// ```
#[derive(Clone, Copy, Debug)]
enum Watch {
    Off,
    /// The next question is due an interval after this.
    Due {
        since: Instant,
        id: u32,
    },
    /// A question is on its way, and no other is asked meanwhile.
    Asked {
        sent: Instant,
        id: u32,
    },
    /// The server's PINGs keep the channel from being silent.
    Listening,
}

/// Somebody doubts that the peer is there. Anything that comes ends it.
#[derive(Clone, Copy, Debug)]
struct Urgent {
    until: Instant,
    within: Duration,
}

/// A question: a PING, or a PROBE, which has no timestamp on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ping {
    pub(crate) id: u32,
    /// Microseconds since the channel's start.
    pub(crate) timestamp: u64,
}

/// How long a client waits at least where only the server can ask, which it does every 10 s.
const LEAST_LISTENING: Duration = Duration::from_secs(35);

impl Liveness {
    pub(crate) fn server(now: Instant, interval: Option<Duration>, dead_after: Duration) -> Self {
        Liveness {
            started: now,
            heard: now,
            dead_after,
            answer_within: dead_after,
            interval,
            only_if_quiet: false,
            watch: Watch::Due { since: now, id: 1 },
            urgent: None,
            rtt: None,
        }
    }

    /// A client whose server answers PROBE.
    pub(crate) fn asking(now: Instant, dead_after: Duration) -> Self {
        let third = dead_after / 3;
        Liveness {
            answer_within: dead_after.saturating_sub(third),
            interval: Some(third),
            only_if_quiet: true,
            ..Self::server(now, None, dead_after)
        }
    }

    /// `pinged`: whether the server is known to send PINGs.
    pub(crate) fn listening(now: Instant, pinged: bool, dead_after: Duration) -> Self {
        let watch = if pinged { Watch::Listening } else { Watch::Off };
        Liveness { watch, ..Self::server(now, None, dead_after.max(LEAST_LISTENING)) }
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn on_message(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
        self.urgent = None;
        if self.only_if_quiet
            && let Watch::Due { since, .. } = &mut self.watch
        {
            *since = self.heard;
        }
    }

    /// A PONG, or a PROBE_ACK, which has no timestamp. Gives how long it took. One that answers no question of ours is
    /// without effect.
    pub(crate) fn on_answer(
        &mut self,
        now: Instant,
        answered: u32,
        timestamp: Option<u64>,
    ) -> Option<Duration> {
        if let Watch::Asked { sent, id } = self.watch
            && answered == id
            && timestamp.is_none_or(|timestamp| timestamp == self.question(sent, id).timestamp)
        {
            let took = now.saturating_duration_since(sent);
            self.rtt = Some(took);
            self.watch = Watch::Due { since: sent.max(now), id: id.wrapping_add(1) };
            return Some(took);
        }
        None
    }

    /// Asks before the time. Gives the question, unless one is on its way, or none is to be asked by itself.
    pub(crate) fn ask(&mut self, now: Instant) -> Option<Ping> {
        match (self.watch, self.interval) {
            (Watch::Due { id, .. }, Some(_)) => {
                self.watch = Watch::Asked { sent: now, id };
                Some(self.question(now, id))
            }
            (Watch::Due { .. } | Watch::Off | Watch::Asked { .. } | Watch::Listening, _) => None,
        }
    }

    /// Whether a question is on its way.
    pub(crate) fn is_asking(&self) -> bool {
        match self.watch {
            Watch::Asked { .. } => true,
            Watch::Off | Watch::Due { .. } | Watch::Listening => false,
        }
    }

    /// Whether there is a question that the peer must answer.
    pub(crate) fn can_ask(&self) -> bool {
        match self.watch {
            Watch::Due { .. } | Watch::Asked { .. } => true,
            Watch::Off | Watch::Listening => false,
        }
    }

    /// Wants a sign of life within this time. Gives the question to ask, unless one is on its way.
    pub(crate) fn probe(&mut self, now: Instant, within: Duration) -> Option<Ping> {
        if let Some(until) = now.checked_add(within)
            && self.urgent.is_none_or(|urgent| until < urgent.until)
        {
            self.urgent = Some(Urgent { until, within });
        }
        let Watch::Due { id, .. } = self.watch else { return None };
        self.watch = Watch::Asked { sent: now, id };
        Some(self.question(now, id))
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, TimeoutReason)> {
        let regular = match self.watch {
            Watch::Off => None,
            Watch::Due { since, .. } => self
                .interval
                .and_then(|interval| since.checked_add(interval))
                .map(|at| (at, TimeoutReason::Ping)),
            Watch::Asked { sent, .. } => {
                let (silent, unanswered) =
                    (self.heard.checked_add(self.dead_after), sent.checked_add(self.answer_within));
                silent.zip(unanswered).map(|(silent, unanswered)| silent.max(unanswered)).map(dead)
            }
            Watch::Listening => self.heard.checked_add(self.dead_after).map(dead),
        };
        let urgent = self.urgent.map(|urgent| dead(urgent.until));
        regular.into_iter().chain(urgent).min_by_key(|(at, _)| *at)
    }

    /// `Ok`: a question to ask, if one is due. `Err`: the peer is dead.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<Option<Ping>, Silence> {
        let Some((at, reason)) = self.poll_timeout() else { return Ok(None) };
        if now < at {
            return Ok(None);
        }
        match (reason, self.watch) {
            (TimeoutReason::Silence, _) => {
                let urgent = self.urgent.filter(|urgent| urgent.until <= now);
                Err(Silence { after: urgent.map_or(self.dead_after, |urgent| urgent.within) })
            }
            (TimeoutReason::Ping, Watch::Due { id, .. }) => {
                self.watch = Watch::Asked { sent: now, id };
                Ok(Some(self.question(now, id)))
            }
            (TimeoutReason::Ping, Watch::Off | Watch::Asked { .. } | Watch::Listening) => Ok(None),
        }
    }

    fn question(&self, sent: Instant, id: u32) -> Ping {
        let timestamp = sent.saturating_duration_since(self.started).as_micros();
        Ping { id, timestamp: u64::try_from(timestamp).unwrap_or(u64::MAX) }
    }
}

fn dead(at: Instant) -> (Instant, TimeoutReason) {
    (at, TimeoutReason::Silence)
}

/// The peer was silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) after: Duration,
}

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
        server.on_answer(start + 11 * SECOND, 2, Some(ping.timestamp));
        server.on_answer(start + 11 * SECOND, ping.id, Some(0));
        assert_eq!(server.rtt(), None, "not answers to our ping");
        server.on_answer(start + 11 * SECOND, ping.id, Some(ping.timestamp));
        assert_eq!(server.rtt(), Some(SECOND));
        assert_eq!(server.poll_timeout(), Some((start + 21 * SECOND, TimeoutReason::Ping)));
        server.on_answer(start + 15 * SECOND, ping.id, Some(ping.timestamp));
        assert_eq!(server.rtt(), Some(SECOND), "an answer counts once");
    }

    #[test]
    fn silence_behind_a_ping_is_death_and_any_message_is_life() {
        let start = Instant::now();
        let mut server = Liveness::server(start, Some(10 * SECOND), 30 * SECOND);
        assert!(server.handle_timeout(start + 10 * SECOND).unwrap().is_some());
        server.on_message(start + 20 * SECOND);
        assert_eq!(server.handle_timeout(start + 49 * SECOND), Ok(None));
        assert_eq!(server.handle_timeout(start + 50 * SECOND), Err(Silence { after: 30 * SECOND }));
    }

    #[test]
    fn a_late_timer_counts_silence_from_the_ping() {
        // The machine slept for an hour: the peer gets its chance to answer.
        let start = Instant::now();
        let mut server = Liveness::server(start, Some(10 * SECOND), 30 * SECOND);
        assert!(server.handle_timeout(start + 3600 * SECOND).unwrap().is_some());
        assert_eq!(server.handle_timeout(start + 3629 * SECOND), Ok(None));
        assert_eq!(server.handle_timeout(start + 3630 * SECOND), Err(Silence { after: 30 * SECOND }));
    }

    #[test]
    fn a_client_listens_only_where_pings_come() {
        let start = Instant::now();
        let mut quiet = Liveness::listening(start, false, SECOND);
        assert_eq!(quiet.poll_timeout(), None);
        assert_eq!(quiet.handle_timeout(start + 100 * SECOND), Ok(None));
        let mut client = Liveness::listening(start, true, 40 * SECOND);
        client.on_message(start + 5 * SECOND);
        assert_eq!(client.poll_timeout(), Some((start + 45 * SECOND, TimeoutReason::Silence)));
        assert_eq!(client.handle_timeout(start + 45 * SECOND), Err(Silence { after: 40 * SECOND }));
        let forever = Liveness::listening(start, true, Duration::MAX);
        assert_eq!(forever.poll_timeout(), None);
        // The server's PINGs are 10 s apart, whatever the client would like.
        let hasty = Liveness::listening(start, true, SECOND);
        assert_eq!(hasty.poll_timeout(), Some((start + 35 * SECOND, TimeoutReason::Silence)));
        assert!(!quiet.can_ask() && !hasty.can_ask());
    }

    #[test]
    fn an_asking_client_asks_when_it_is_quiet_and_gives_up_in_time() {
        let start = Instant::now();
        let mut client = Liveness::asking(start, 15 * SECOND);
        assert_eq!(client.poll_timeout(), Some((start + 5 * SECOND, TimeoutReason::Ping)));
        client.on_message(start + 4 * SECOND);
        assert_eq!(client.poll_timeout(), Some((start + 9 * SECOND, TimeoutReason::Ping)));
        let first = client.handle_timeout(start + 9 * SECOND).unwrap().unwrap();
        assert_eq!(client.poll_timeout(), Some((start + 19 * SECOND, TimeoutReason::Silence)));
        client.on_message(start + 10 * SECOND);
        client.on_answer(start + 10 * SECOND, first.id.wrapping_add(1), None);
        assert_eq!(client.rtt(), None, "another answer");
        client.on_answer(start + 10 * SECOND, first.id, None);
        assert_eq!(client.rtt(), Some(SECOND));
        assert_eq!(client.poll_timeout(), Some((start + 15 * SECOND, TimeoutReason::Ping)));
        assert!(client.handle_timeout(start + 15 * SECOND).unwrap().is_some());
        assert_eq!(client.handle_timeout(start + 24 * SECOND), Ok(None));
        assert_eq!(client.handle_timeout(start + 25 * SECOND), Err(Silence { after: 15 * SECOND }));
    }

    #[test]
    fn a_client_that_slept_gives_the_server_time_to_answer() {
        let start = Instant::now();
        let mut client = Liveness::asking(start, 15 * SECOND);
        assert!(client.handle_timeout(start + 3600 * SECOND).unwrap().is_some());
        assert_eq!(client.poll_timeout(), Some((start + 3610 * SECOND, TimeoutReason::Silence)));
    }

    #[test]
    fn a_probe_is_asked_once_and_anything_ends_it() {
        let start = Instant::now();
        for mut end in [
            Liveness::server(start, None, 40 * SECOND),
            Liveness::server(start, Some(10 * SECOND), 40 * SECOND),
            Liveness::asking(start, 15 * SECOND),
        ] {
            assert!(end.can_ask());
            assert!(end.probe(start + SECOND, 3 * SECOND).is_some());
            assert!(end.probe(start + 2 * SECOND, 3 * SECOND).is_none(), "one is on its way");
            assert_eq!(end.poll_timeout(), Some((start + 4 * SECOND, TimeoutReason::Silence)));
            end.on_message(start + 3 * SECOND);
            assert_eq!(end.handle_timeout(start + 5 * SECOND), Ok(None), "it lives");
            assert!(end.probe(start + 6 * SECOND, 30 * SECOND).is_none());
            assert!(end.probe(start + 6 * SECOND, 3 * SECOND).is_none());
            assert_eq!(end.poll_timeout(), Some((start + 9 * SECOND, TimeoutReason::Silence)));
            assert_eq!(end.handle_timeout(start + 9 * SECOND), Err(Silence { after: 3 * SECOND }));
        }
    }
}
