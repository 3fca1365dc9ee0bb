//! The companion, and what it says while it runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use client_glue::server::SpiceServer;
use client_glue::{CompanionConfig, Events, Handle, companion};
use spice_proto::names::Sender;
use tokio::io::AsyncWrite;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::printer::Printer;
use super::{Error, OutputArgs, Plan};
use crate::record::{Ends, Links};

/// What is printed must be taken within this time after a shutdown.
const LAST_PRINT: Duration = Duration::from_secs(1);

/// Keeps a tunnel as planned until `shutdown`, and prints its events.
pub(super) async fn share(
    plan: &Plan,
    output: &OutputArgs,
    capture: Option<&Links>,
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
    for share in &plan.shares {
        let id = handle.add_share(share.clone())?;
        printer.names.insert(id, (share.name.clone(), share.target()));
    }
    // A task of its own, which ends with this call: printing must not hold it up.
    let mut running = JoinSet::new();
    running.spawn(run);
    let heard = listen(&handle, &mut events, shutdown, &mut printer, &plan.server).await;
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
    shutdown: &CancellationToken,
    printer: &mut Printer<impl AsyncWrite + Unpin>,
    server: &SpiceServer,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut told = false;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled(), if !told => {
                told = true;
                handle.shutdown();
                continue;
            }
        };
        let Some(event) = event else { return outcome };
        if outcome.is_ok() {
            let last_call = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_PRINT).await;
            };
            outcome = tokio::select! {
                printed = printer.print(&event, server) => printed,
                () = last_call => Err(io::ErrorKind::TimedOut.into()),
            };
            if outcome.is_err() {
                handle.shutdown();
            }
        }
    }
}
