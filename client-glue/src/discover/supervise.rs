//! Runs a source again and again.

use std::{future::Future, time::Duration};

use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use super::{
    Source, SourceError,
    outlet::{Ask, Outlet, SourceEvent},
};

/// First and last wait before a source is tried again; each is twice the one before.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// A source that ran for that long begins with the first wait again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// A source that is asked to look again is tried after that at the earliest.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Runs a source until discovery is over.
pub(super) async fn supervise<F, R>(
    source: Source,
    events: mpsc::Sender<SourceEvent>,
    asks: broadcast::Sender<Ask>,
    run: F,
) where
    F: Fn(Outlet) -> R + Send,
    R: Future<Output = SourceError> + Send,
{
    let mut wait = WAIT.0;
    let mut again = false;
    while events.send(SourceEvent::Started { source, again }).await.is_ok() {
        let started = Instant::now();
        let error = run(Outlet::new(source, events.clone(), asks.subscribe())).await;
        if started.elapsed() >= RAN_WELL {
            wait = WAIT.0;
        }
        let why = error.to_string();
        if again {
            debug!(%source, %error, "a source of discovery ended");
        } else {
            info!(%source, %error, "a source of discovery ended, and is tried again from time to time");
        }
        again = true;
        if events.send(SourceEvent::Failed { source, why, again_in: wait }).await.is_err() {
            return;
        }
        let mut asked = asks.subscribe();
        tokio::select! {
            () = sleep_until(Instant::now() + wait) => wait = (wait * 2).min(WAIT.1),
            () = looked_again(&mut asked) => sleep_until(Instant::now() + AT_ONCE).await,
        }
    }
}

async fn looked_again(asks: &mut broadcast::Receiver<Ask>) {
    loop {
        match asks.recv().await {
            Ok(Ask::Verify { .. }) => {}
            Ok(Ask::LookAgain) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
