//! Has the machine slept, or is its network another one? Then a link may be dead without anything telling so, or a server
//! that could not be reached may be in reach.
//!
//! Looked at every 2 s, and no packet leaves for it:
//!
//! * Linux has two clocks that differ by the time for which the machine slept.
//! * The kernel says from which of its addresses it would reach the server now, when a UDP socket is connected there. If that is
//!   another one than before, or there is none any more, the network has changed. An address that a link uses and that is
//!   gone cannot be that address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// The clocks are not read at the same time.
const SLEPT: Duration = Duration::from_secs(1);

/// Why a link is to be doubted, or a new one worth an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The machine slept.
    Woke {
        /// For how long.
        after: Duration,
    },
    /// The server is reached from another address, or was and is not, or the reverse.
    Network {
        /// Before.
        was: Option<IpAddr>,
        /// Now.
        is: Option<IpAddr>,
    },
}

/// What can be asked about the machine.
trait Machine: Send {
    /// For how long it has slept since it was started. `None`: it does not know.
    fn slept(&self) -> Option<Duration>;

    /// The address from which it would reach that one.
    fn source(&self, towards: SocketAddr) -> Option<IpAddr>;
}

/// Looks from time to time.
pub(crate) struct Watcher {
    /// `None`: there is nothing to look at.
    machine: Option<Box<dyn Machine>>,
    next: Option<Instant>,
    slept: Option<Duration>,
    server: Option<SocketAddr>,
    source: Option<IpAddr>,
}

impl Watcher {
    /// `on`: whether it is to look at all.
    pub(crate) fn new(on: bool) -> Self {
        Self::of(on.then(|| Box::new(ThisMachine) as Box<dyn Machine>))
    }

    fn of(machine: Option<Box<dyn Machine>>) -> Self {
        let slept = machine.as_ref().and_then(|machine| machine.slept());
        Self { machine, next: None, slept, server: None, source: None }
    }

    /// There is a link to this server, or to whatever stands before it. It is remembered when the link is gone.
    pub(crate) fn linked(&mut self, server: Option<SocketAddr>) {
        self.server = server;
        self.source = self.machine.as_ref().zip(server).and_then(|(machine, server)| machine.source(server));
    }

    /// Waits for the next change.
    ///
    /// Cancel safe: what was not told is told by the next call.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            let now = Instant::now();
            let next = *self.next.get_or_insert_with(|| now.checked_add(EVERY).unwrap_or(now));
            sleep_until(next).await;
            self.next = None;
            if let Some(change) = self.look() {
                return change;
            }
            if self.machine.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn look(&mut self) -> Option<Change> {
        let machine = self.machine.as_ref()?;
        let slept = machine.slept();
        let after = slept.zip(self.slept).map(|(now, before)| now.saturating_sub(before));
        let source = self.server.and_then(|server| machine.source(server));
        let was = std::mem::replace(&mut self.source, source);
        if let Some(after) = after.filter(|after| *after >= SLEPT) {
            self.slept = slept;
            return Some(Change::Woke { after });
        }
        (source != was).then_some(Change::Network { was, is: source })
    }
}

struct ThisMachine;

impl Machine for ThisMachine {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn slept(&self) -> Option<Duration> {
        use rustix::time::{ClockId, clock_gettime};
        let boot = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
        let running = Duration::try_from(clock_gettime(ClockId::Monotonic)).ok()?;
        Some(boot.saturating_sub(running))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn slept(&self) -> Option<Duration> {
        None
    }

    fn source(&self, towards: SocketAddr) -> Option<IpAddr> {
        let any: IpAddr = match towards {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(towards).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }
}

#[cfg(test)]
pub(crate) mod tests;
