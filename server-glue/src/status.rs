//! What an operator is told of a running network and of the proxy before it: numbers.
//!
//! Nothing in here is a name, an address or anything else that a guest, a user or a device chose, so that it can be shown to
//! whoever watches the host. The VM's task is asked and answers in its turn; while nobody asks it costs nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::netstack::Counters;

/// The state of a VM's network at one moment, and what it has counted since it began.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What the netstack counts.
    pub netstack: Counters,
    /// Connections of the guest, the half-open ones and those that wait included.
    pub connections: usize,
    /// Those that are not established: the client has not answered, or the guest has not.
    pub half_open: usize,
    /// Those that wait for a tunnel.
    pub waiting: usize,
    /// The guest's card is there.
    pub card: bool,
    /// The tunnel that is joined.
    pub tunnel: Option<TunnelStatus>,
    /// What tunnels carried.
    pub traffic: Traffic,
    /// Tunnels that have joined.
    pub joins: u64,
    /// Tunnels that have ended.
    pub ends: Ends,
}

/// A tunnel at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Services that the guest can reach.
    pub services: usize,
    /// Sockets, those that only wait for the client's last word included.
    pub sockets: usize,
    /// The last round trip that was measured.
    pub rtt: Option<Duration>,
    /// Bytes that came from the client and that the guest has not taken.
    pub undelivered: usize,
    /// Bytes that wait to be written to the link.
    pub outgoing: usize,
}

/// Payload in DATA messages, over all tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from the guest to the client.
    pub up_bytes: u64,
    /// Messages of them.
    pub up_messages: u64,
    /// Bytes from the client to the guest.
    pub down_bytes: u64,
    /// Messages of them.
    pub down_messages: u64,
}

impl Traffic {
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.up_bytes += bytes as u64;
        self.up_messages += u64::from(bytes > 0);
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.down_bytes += bytes as u64;
        self.down_messages += 1;
    }
}

/// Why a tunnel ended, in kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndReason {
    /// The client closed it, or its Spice session is over.
    Closed,
    /// Another tunnel took its place.
    Replaced,
    /// The program ends.
    Shutdown,
    /// The link broke, perhaps within a message.
    Broken,
    /// The client broke the protocol.
    Protocol,
    /// Nothing was heard of the client for too long.
    Dead,
}

impl EndReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::Replaced, Self::Shutdown, Self::Broken, Self::Protocol, Self::Dead];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Replaced => "replaced",
            Self::Shutdown => "shutdown",
            Self::Broken => "broken",
            Self::Protocol => "protocol",
            Self::Dead => "dead",
        }
    }
}

/// How many tunnels ended, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends(BTreeMap<EndReason, u64>);

impl Ends {
    pub(crate) fn count(&mut self, reason: EndReason) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// Those that ended for this reason.
    pub fn of(&self, reason: EndReason) -> u64 {
        self.0.get(&reason).copied().unwrap_or_default()
    }
}

/// A way to ask a VM's task, and the task's end of it, for [`Session::observed`](crate::session::Session::observed).
pub fn observer() -> (Observer, Observed) {
    let (questions, asked) = mpsc::channel(1);
    (Observer { questions }, Observed { asked: Some(asked) })
}

/// Asks a VM's task how it is. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Observer {
    questions: mpsc::Sender<oneshot::Sender<Status>>,
}

impl Observer {
    /// How it is now; `None` if the task has ended. It answers in its next turn, before it waits again. Cancel safe.
    pub async fn status(&self) -> Option<Status> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).await.ok()?;
        answered.await.ok()
    }
}

/// Where a VM's task hears that somebody asks. By default nobody ever does.
#[derive(Debug, Default)]
pub struct Observed {
    asked: Option<mpsc::Receiver<oneshot::Sender<Status>>>,
}

impl Observed {
    /// Answers the next who asks, for an owner that is not a [`Session`](crate::session::Session). Never done once nobody can ask
    /// any more. Cancel safe.
    pub async fn answer(&mut self, status: Status) {
        let question = std::future::poll_fn(|cx| self.poll_asked(cx)).await;
        // Whoever asked may be gone.
        let _ = question.send(status);
    }

    /// The next question.
    pub(crate) fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<oneshot::Sender<Status>> {
        let Some(asked) = &mut self.asked else { return Poll::Pending };
        match asked.poll_recv(cx) {
            Poll::Ready(Some(answer)) => Poll::Ready(answer),
            Poll::Ready(None) => {
                self.asked = None;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The state of a proxy at one moment, and what it has counted since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Spice sessions that live.
    pub sessions: usize,
    /// Links that pass through to the Spice server, by the channel's type (`display`, …; `unknown` for one without a name).
    pub links: BTreeMap<&'static str, LinkCount>,
    /// Tickets that were wrong.
    pub wrong_tickets: u64,
    /// Links that were closed unheard, since there were too many.
    pub rejected: u64,
    /// Links without a ticket of which one had to go for another, since there were too many.
    pub crowded: u64,
}

/// Links of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCount {
    /// Now.
    pub open: u64,
    /// Ever.
    pub total: u64,
}

/// What a proxy counts. Touched where a link begins and ends, never for what passes on it.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// INVARIANT: its keys are our own names of channel types, so that they are few.
    links: Mutex<BTreeMap<&'static str, LinkCount>>,
    pub(crate) wrong_tickets: Tally,
    pub(crate) rejected: Tally,
    pub(crate) crowded: Tally,
}

#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Census {
    /// A link of this channel type passes through from now on, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, channel: &'static str) -> Passing {
        let mut links = self.lock();
        let count = links.entry(channel).or_default();
        count.open += 1;
        count.total += 1;
        Passing { census: Arc::clone(self), channel }
    }

    pub(crate) fn links(&self) -> BTreeMap<&'static str, LinkCount> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, LinkCount>> {
        // Nothing in here panics half-way.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link that passes through.
#[derive(Debug)]
pub(crate) struct Passing {
    census: Arc<Census>,
    channel: &'static str,
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(count) = self.census.lock().get_mut(self.channel) {
            count.open = count.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_counted_while_they_pass() {
        let census = Arc::new(Census::default());
        let first = census.enter("display");
        let second = census.enter("display");
        let _main = census.enter("main");
        drop(first);
        assert_eq!(census.links()["display"], LinkCount { open: 1, total: 2 });
        drop(second);
        assert_eq!(census.links()["display"], LinkCount { open: 0, total: 2 });
        assert_eq!(census.links()["main"], LinkCount { open: 1, total: 1 });
    }

    #[test]
    fn each_end_has_its_own_count_and_name() {
        let mut ends = Ends::default();
        ends.count(EndReason::Dead);
        ends.count(EndReason::Dead);
        assert_eq!(EndReason::ALL.map(|reason| ends.of(reason)).iter().sum::<u64>(), 2);
        assert_eq!(ends.of(EndReason::Dead), 2);
        let names = EndReason::ALL.map(EndReason::name);
        assert_eq!(std::collections::BTreeSet::from(names).len(), names.len());
    }

    #[tokio::test]
    async fn whoever_asks_a_task_that_is_gone_gets_no_answer() {
        let (observer, observed) = observer();
        drop(observed);
        assert!(observer.status().await.is_none());
    }
}
