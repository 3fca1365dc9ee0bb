//! Ctrl-C and SIGTERM end every command the same way: its token is cancelled, it cleans up and returns.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGINT or SIGTERM. The second ends the process at once, for a user who
/// does not want to wait.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for attempt in 0_u8..2 {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            if attempt > 0 {
                std::process::exit(code);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}
