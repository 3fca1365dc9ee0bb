//! The time that recordings are in.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, since the Unix epoch.
///
/// It is the system's time once, and a clock that never jumps from then on: all recordings of a process can be laid
/// beside each other, and time only goes forward in them.
pub(super) fn now() -> Duration {
    static START: LazyLock<(Instant, Duration)> =
        LazyLock::new(|| (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()));
    let (at, time) = *START;
    time.saturating_add(at.elapsed())
}
