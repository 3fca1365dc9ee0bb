//! What a source is given: where its sightings go, and what it is asked meanwhile.
//!
//! A source is one future, `async fn run(config, &InterfaceFilter, outlet) -> SourceError`. It looks around, tells the outlet what it
//! sees, and goes on until it is dropped or cannot go on. Then it is started again, after a while, and what it saw before stays known for
//! that while. So a source need not mend a broken socket: it says what broke, and ends.

use std::{net::IpAddr, time::Duration};

use thiserror::Error;
use tokio::sync::{broadcast, mpsc};

use super::{
    device::Source,
    interfaces::InterfaceError,
    sighting::{Sighting, SightingEvent, SightingKey},
};

/// Why a source cannot go on for now.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The machine has no interface on which to look.
    #[error("there is no network interface to look on")]
    NoInterface,
    /// The machine does not say which interfaces it has.
    #[error(transparent)]
    Interfaces(#[from] InterfaceError),
    /// A socket cannot be had, or broke.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What came of it.
        error: std::io::Error,
    },
    /// Something else, in words.
    #[error("{0}")]
    Failed(String),
}

/// What a source is asked to do at once, besides what it does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A device could not be reached, whose sightings these are and whose addresses: is it still there? Who finds that it is not says
    /// [`Outlet::gone`].
    Verify {
        /// Keys of any sources.
        keys: Vec<SightingKey>,
        /// The device's addresses.
        addresses: Vec<IpAddr>,
    },
    /// The machine woke, or its network is another: look again from the start.
    LookAgain,
}

/// Between a source and the merge.
pub(crate) struct Outlet {
    source: Source,
    events: mpsc::Sender<SourceEvent>,
    asks: broadcast::Receiver<Ask>,
}

/// What comes out of an outlet.
#[derive(Debug)]
pub(crate) enum SourceEvent {
    /// Of a device.
    Sighting(SightingEvent),
    /// It is being started, `again` if not for the first time.
    Started { source: Source, again: bool },
    /// It looks round for the first time.
    Looking { source: Source },
    /// It has looked round.
    LookedRound { source: Source },
    /// It ended.
    Failed { source: Source, why: String, again_in: Duration },
}

impl Outlet {
    pub(crate) fn new(
        source: Source,
        events: mpsc::Sender<SourceEvent>,
        asks: broadcast::Receiver<Ask>,
    ) -> Outlet {
        Outlet { source, events, asks }
    }

    /// Another one for the same source, which is asked from now on.
    pub(crate) fn another(&self) -> Outlet {
        Outlet { source: self.source, events: self.events.clone(), asks: self.asks.resubscribe() }
    }

    /// Something is there, and this is all that is known of it. Waits while the merge is behind.
    ///
    /// Cancel safe: either told or not.
    pub(crate) async fn seen(&self, sighting: Sighting) {
        debug_assert_eq!(sighting.key.source, self.source, "a source speaks for itself");
        self.send(SourceEvent::Sighting(SightingEvent::Seen(Box::new(sighting)))).await;
    }

    /// What was seen by this id is gone. Nothing happens if it was not.
    ///
    /// Cancel safe: either told or not.
    pub(crate) async fn gone(&self, id: &str) {
        let key = SightingKey { source: self.source, id: id.to_owned() };
        self.send(SourceEvent::Sighting(SightingEvent::Gone(key))).await;
    }

    /// It is looking: sockets are there, first questions are out.
    pub(crate) async fn looking(&self) {
        self.send(SourceEvent::Looking { source: self.source }).await;
    }

    /// It has looked once round: whoever answers in ordinary time has answered.
    pub(crate) async fn looked_round(&self) {
        self.send(SourceEvent::LookedRound { source: self.source }).await;
    }

    /// What it is asked. Never ends by itself.
    ///
    /// Cancel safe.
    pub(crate) async fn asked(&mut self) -> Ask {
        match self.asks.recv().await {
            Ok(ask) => ask,
            // Too many to hold: one look round answers them all.
            Err(broadcast::error::RecvError::Lagged(_)) => Ask::LookAgain,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    async fn send(&self, event: SourceEvent) {
        if self.events.send(event).await.is_err() {
            // Discovery is over, and drops this source in a moment.
            std::future::pending::<()>().await;
        }
    }
}

/// For tests of a source: an outlet, what comes out of it, and where it is asked.
#[cfg(test)]
pub(crate) fn test_outlet(source: Source) -> (Outlet, mpsc::Receiver<SourceEvent>, broadcast::Sender<Ask>) {
    let (events, told) = mpsc::channel(64);
    let (asking, asks) = broadcast::channel(16);
    (Outlet::new(source, events, asks), told, asking)
}
