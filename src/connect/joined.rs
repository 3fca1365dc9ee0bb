//! The companion, and what it says while it runs.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client_glue::discover::Notice;
use client_glue::server::SpiceServer;
use client_glue::{CompanionConfig, Event, Events, Handle, Refusal, companion};
use spice_proto::names::Sender;
use tokio::io::AsyncWrite;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::printer::Printer;
use super::sharing::{Beside, Feed};
use super::{Error, OutputArgs, Plan};
use crate::record::{Ends, Links};

/// What is printed must be taken within this time after a shutdown.
const LAST_PRINT: Duration = Duration::from_secs(1);

/// Keeps a tunnel as planned until `shutdown`, and prints its events.
pub(super) async fn share(
    plan: &Plan,
    output: &OutputArgs,
    capture: Option<&Links>,
    feed: Option<Feed>,
    shutdown: &CancellationToken,
    out: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let mut config = CompanionConfig { dead_after: output.dead_after, ..CompanionConfig::default() };
    if let Some(links) = capture.cloned() {
        config.wrap = Some(Arc::new(move |stream, linked, ends| {
            let ends = ends.map(|(client, server)| Ends { client, server });
            Box::new(links.tap(stream, linked, Sender::Client, ends))
        }));
    }
    let (handle, mut events, run) = companion(plan.server.clone(), plan.credentials.clone(), config);
    let mut printer = Printer::new(out, output.json);
    let mut by_hand = Vec::new();
    for offer in &plan.sharing.offers {
        let id = handle.offer(offer.clone())?;
        printer.shared_by_hand(id, &offer.share);
        by_hand.push((id, offer.clone()));
    }
    let mut beside = Beside::start(&handle, &plan.sharing, by_hand, feed);
    // A task of its own, which ends with this call: printing must not hold it up.
    let mut running = JoinSet::new();
    running.spawn(run);
    let heard = listen(&handle, &mut events, &mut beside, shutdown, &mut printer, &plan.server).await;
    let ended = match running.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime itself is going down.
        Some(Err(_)) | None => Ok(()),
    };
    heard.map_err(Error::Print)?;
    Ok(ended?)
}

/// Prints the events to the last. Ends the companion on `shutdown`, and when nothing can be printed.
async fn listen(
    handle: &Handle,
    events: &mut Events,
    beside: &mut Beside,
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    server: &SpiceServer,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut told = false;
    loop {
        let due = printer.due().filter(|_| outcome.is_ok());
        let takes = due.is_none() || !printer.is_full();
        let heard = tokio::select! {
            event = events.recv(), if takes => match event {
                Some(event) => Heard::Event(event),
                None if due.is_some() => return write(printer, shutdown).await,
                None => return outcome,
            },
            Some(notice) = beside.notices.recv(), if takes => Heard::Notice(notice),
            () = reached(due) => Heard::Due,
            () = shutdown.cancelled(), if !told => {
                told = true;
                handle.shutdown();
                continue;
            }
        };
        if let Heard::Event(Event::Refused {
            share,
            reason: Refusal::Connect { .. } | Refusal::Deadline { .. },
        }) = &heard
        {
            beside.doubt(*share);
        }
        if outcome.is_ok() {
            outcome = match &heard {
                Heard::Event(event) => printer.note(event, server),
                Heard::Notice(notice) => printer.note_found(notice),
                Heard::Due => write(printer, shutdown).await,
            };
            if outcome.is_err() {
                handle.shutdown();
            }
        }
    }
}

/// Never, without a time.
async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes the lines that wait. Whoever takes them may be slow while the program runs, but not hold up its end.
async fn write(
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let last_call = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LAST_PRINT).await;
    };
    tokio::select! {
        written = printer.write() => written,
        () = last_call => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What `listen` waits for.
enum Heard {
    Event(Event),
    Notice(Notice),
    /// Lines are to be written.
    Due,
}
