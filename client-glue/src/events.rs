//! What a tunnel tells its owner, and the bounded queue that it goes through.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{dial::Refusal, share::ShareId};

/// What happened in a tunnel.
///
/// One of [`tunnel`](crate::tunnel) begins with [`Event::Connected`] and ends with [`Event::Disconnected`]. A
/// [`companion`](crate::companion()) goes through this:
///
/// ```text
/// Linking ──► Connected ──► Mapped, Opened, … ──► Disconnected ──► Waiting ──► Linking
///    └─────────────────── no link ─────────────────────────────────►┘
/// ```
///
/// until [`Handle::shutdown`](crate::Handle::shutdown), or [`Event::GaveUp`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A companion tries to link.
    Linking {
        /// How often it has tried since it was last connected, this time included.
        attempt: u32,
    },
    /// The server said what it bears: shares are announced now.
    Connected {
        /// Most connections at a time.
        max_sockets: u16,
        /// Most payload bytes in a message.
        max_data: u32,
    },
    /// The guest reaches a share at this address from now on. Comes again if the server moves it.
    Mapped {
        /// The share.
        share: ShareId,
        /// Its name.
        name: String,
        /// What it is, as `tcp://HOST:PORT`.
        target: String,
        /// Its address in the guest's virtual network.
        virtual_ip: IpAddr,
        /// Its port there: the share's own.
        port: u16,
    },
    /// The guest reaches a share no more: it was removed or withdrawn, and had been mapped in this tunnel.
    Unmapped {
        /// The share.
        share: ShareId,
        /// Its name.
        name: String,
        /// What it is, as `tcp://HOST:PORT`.
        target: String,
    },
    /// The guest is connected to a share.
    Opened {
        /// The share.
        share: ShareId,
        /// Names the connection within this tunnel.
        connection: ConnectionId,
        /// Which of the host's addresses it was.
        address: SocketAddr,
    },
    /// A connection is over. Each [`Event::Opened`] is followed by one, unless the tunnel itself ends before.
    Closed {
        /// The share.
        share: ShareId,
        /// As in [`Event::Opened`].
        connection: ConnectionId,
        /// Bytes written to the service.
        bytes_up: u64,
        /// Bytes read from the service.
        bytes_down: u64,
        /// How it ended.
        end: End,
    },
    /// The guest wanted a connection and got none.
    Refused {
        /// The share.
        share: ShareId,
        /// Why.
        reason: Refusal,
    },
    /// So many events of connections, and of a companion's earlier states, were dropped here, since the owner did not
    /// fetch them in time.
    Missed {
        /// How many.
        events: u64,
    },
    /// The tunnel has ended, and every connection with it. The last event, except of a companion.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// A companion has no tunnel, and waits before it tries again.
    Waiting {
        /// How long, unless the network changes, the machine wakes up, or [`Handle::probe_now`](crate::Handle::probe_now) is called.
        wait: Duration,
        /// Why there is no tunnel, for people.
        reason: String,
    },
    /// A companion has no tunnel and tries no more. The last event.
    GaveUp {
        /// Why, for people.
        reason: String,
    },
}

impl Event {
    /// It says how the tunnel stands.
    fn is_state(&self) -> bool {
        match self {
            Event::Linking { .. }
            | Event::Connected { .. }
            | Event::Disconnected { .. }
            | Event::Waiting { .. }
            | Event::GaveUp { .. } => true,
            Event::Mapped { .. }
            | Event::Unmapped { .. }
            | Event::Opened { .. }
            | Event::Closed { .. }
            | Event::Refused { .. }
            | Event::Missed { .. } => false,
        }
    }
}

/// Names a connection of one tunnel or companion; counted from 0, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides said that they were done, and everything was delivered.
    Clean,
    /// The service, or the way to it, broke it off.
    Service,
    /// The guest broke it off, or its server did.
    Guest,
    /// The share was removed.
    Unshared,
}

/// The events of one tunnel, for their one consumer.
///
/// Connections come and go without waiting for the consumer: when it is slow, `Opened`, `Closed` and `Refused` are
/// dropped and counted ([`Event::Missed`]), and of a companion's states only the last one is kept. The others are never lost.
pub struct Events {
    queue: Arc<Queue>,
}

/// The tunnel's end of [`Events`].
pub(crate) struct EventSink {
    queue: Arc<Queue>,
    scope: Scope,
}

/// Of how much an [`EventSink`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Of all there is: its end is that of the events.
    Whole,
    /// Of one tunnel of several.
    Tunnel {
        /// And it has ended.
        ended: bool,
    },
}

struct Queue {
    inner: Mutex<Inner>,
    stirred: Notify,
}

struct Inner {
    events: VecDeque<Event>,
    /// Most events held before droppable ones are dropped.
    capacity: usize,
    missed: u64,
    ended: bool,
    /// Nobody listens any more.
    deaf: bool,
}

/// An event queue for about `capacity` events.
pub(crate) fn queue(capacity: usize) -> (EventSink, Events) {
    let inner = Inner { events: VecDeque::new(), capacity, missed: 0, ended: false, deaf: false };
    let queue = Arc::new(Queue { inner: Mutex::new(inner), stirred: Notify::new() });
    (EventSink { queue: queue.clone(), scope: Scope::Whole }, Events { queue })
}

impl Events {
    /// The next event; `None` when the tunnel has ended and everything was told.
    ///
    /// Cancel safe: a dropped call has taken nothing.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            // A permit is kept when the stir comes between the look and the wait.
            match self.try_recv() {
                Taken::Event(event) => return Some(event),
                Taken::Ended => return None,
                Taken::Nothing => self.queue.stirred.notified().await,
            }
        }
    }

    fn try_recv(&mut self) -> Taken {
        let mut inner = self.queue.lock();
        if inner.missed > 0 && inner.events.len() < inner.capacity {
            // Told as soon as there was room again, which is about where the hole is.
            let events = std::mem::take(&mut inner.missed);
            return Taken::Event(Event::Missed { events });
        }
        match inner.events.pop_front() {
            Some(event) => Taken::Event(event),
            None if inner.ended => Taken::Ended,
            None => Taken::Nothing,
        }
    }
}

enum Taken {
    Event(Event),
    Nothing,
    Ended,
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.deaf = true;
        inner.events = VecDeque::new();
    }
}

impl EventSink {
    /// Queues `event`, or drops and counts it if it may be dropped and the queue is full. Never waits.
    pub(crate) fn push(&mut self, event: Event) {
        let mut inner = self.queue.lock();
        if inner.deaf {
            return;
        }
        let full = inner.events.len() >= inner.capacity;
        match &event {
            Event::Opened { .. } | Event::Closed { .. } | Event::Refused { .. } if full => {
                inner.missed = inner.missed.saturating_add(1);
                return;
            }
            Event::Mapped { share, .. } if full => {
                // A server may map the same share for ever: only the last one counts.
                let share = *share;
                inner
                    .events
                    .retain(|queued| !matches!(queued, Event::Mapped { share: old, .. } if *old == share));
                inner.events.push_back(event);
            }
            Event::Unmapped { share, .. } if full => {
                // What was mapped and is not, in the same silence, is nothing to tell.
                let share = *share;
                let before = inner.events.len();
                inner
                    .events
                    .retain(|queued| !matches!(queued, Event::Mapped { share: old, .. } if *old == share));
                if inner.events.len() == before {
                    inner.events.push_back(event);
                }
            }
            // Links may come and go for ever: only how it stands now counts.
            Event::Linking { .. }
            | Event::Connected { .. }
            | Event::Disconnected { .. }
            | Event::Waiting { .. }
                if full =>
            {
                let before = inner.events.len();
                inner.events.retain(|queued| !queued.is_state());
                let dropped = before.saturating_sub(inner.events.len());
                inner.missed = inner.missed.saturating_add(u64::try_from(dropped).unwrap_or(u64::MAX));
                inner.events.push_back(event);
            }
            Event::Opened { .. }
            | Event::Closed { .. }
            | Event::Refused { .. }
            | Event::Mapped { .. }
            | Event::Unmapped { .. }
            | Event::Linking { .. }
            | Event::Connected { .. }
            | Event::Missed { .. }
            | Event::Disconnected { .. }
            | Event::Waiting { .. }
            | Event::GaveUp { .. } => inner.events.push_back(event),
        }
        drop(inner);
        self.queue.stirred.notify_one();
    }

    /// Queues the last event of the tunnel; later ends are ignored.
    pub(crate) fn end(&mut self, reason: String) {
        let ended = match &mut self.scope {
            Scope::Whole => std::mem::replace(&mut self.queue.lock().ended, true),
            Scope::Tunnel { ended } => std::mem::replace(ended, true),
        };
        if !ended {
            self.push(Event::Disconnected { reason });
        }
    }

    /// For one tunnel of several: its end is not the last event.
    pub(crate) fn of_tunnel(&self) -> EventSink {
        EventSink { queue: self.queue.clone(), scope: Scope::Tunnel { ended: false } }
    }

    /// There are no more events behind these.
    pub(crate) fn finish(&mut self, last: Option<Event>) {
        if let Some(last) = last {
            self.push(last);
        }
        self.queue.lock().ended = true;
        self.queue.stirred.notify_one();
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        self.end("the tunnel was dropped".to_owned());
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(n: u64) -> Event {
        Event::Opened { share: ShareId(0), connection: ConnectionId(n), address: ([127, 0, 0, 1], 1).into() }
    }

    fn mapped(share: u64, last: u8) -> Event {
        let virtual_ip = [198, 18, 0, last].into();
        Event::Mapped {
            share: ShareId(share),
            name: String::new(),
            target: String::new(),
            virtual_ip,
            port: 1,
        }
    }

    async fn rest(mut events: Events) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(event) = events.recv().await {
            told.push(match &event {
                Event::Opened { connection, .. } => format!("opened {connection}"),
                Event::Mapped { share, virtual_ip, .. } => format!("mapped {} {virtual_ip}", share.0),
                Event::Missed { events } => format!("missed {events}"),
                Event::Disconnected { reason } => reason.clone(),
                Event::Unmapped { share, .. } => format!("unmapped {}", share.0),
                Event::Linking { .. }
                | Event::Connected { .. }
                | Event::Closed { .. }
                | Event::Refused { .. }
                | Event::Waiting { .. }
                | Event::GaveUp { .. } => panic!("{event:?}"),
            });
        }
        told
    }

    #[tokio::test]
    async fn a_slow_consumer_misses_connections_but_no_mapping() {
        let (mut sink, events) = queue(3);
        for n in 0..10 {
            sink.push(opened(n));
        }
        for last in 1..=20 {
            sink.push(mapped(1, last));
        }
        sink.push(mapped(2, 99));
        sink.end("over".into());
        let told = rest(events).await;
        let expected = [
            "opened 0",
            "opened 1",
            "opened 2",
            "missed 7",
            "mapped 1 198.18.0.20",
            "mapped 2 198.18.0.99",
            "over",
        ];
        let mut sorted = told.clone();
        sorted.sort();
        let mut all = expected.to_vec();
        all.sort_unstable();
        assert_eq!(sorted, all);
        assert_eq!(told.last().unwrap(), "over");
    }

    #[tokio::test]
    async fn a_device_that_comes_and_goes_unheard_is_not_worth_a_word() {
        let unmapped =
            |share| Event::Unmapped { share: ShareId(share), name: String::new(), target: String::new() };
        let (mut sink, events) = queue(1);
        sink.push(mapped(0, 1));
        for share in 1..100 {
            sink.push(mapped(share, 1));
            sink.push(unmapped(share));
        }
        sink.push(unmapped(200));
        sink.end("over".into());
        assert_eq!(rest(events).await, ["mapped 0 198.18.0.1", "unmapped 200", "over"]);
    }

    #[tokio::test]
    async fn a_dropped_tunnel_says_so_and_a_deaf_owner_costs_nothing() {
        let (sink, events) = queue(3);
        drop(sink);
        assert_eq!(rest(events).await, ["the tunnel was dropped"]);

        let (mut sink, events) = queue(3);
        drop(events);
        sink.push(mapped(1, 1));
        assert!(sink.queue.lock().events.is_empty());
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken() {
        let (mut sink, mut events) = queue(3);
        let waiting = tokio::spawn(async move { events.recv().await });
        tokio::task::yield_now().await;
        sink.push(opened(1));
        assert!(matches!(waiting.await.unwrap(), Some(Event::Opened { .. })));
    }
}
