//! When a card is looked for again.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);

/// When to try again: 100 ms, doubled up to 3 s, and a quarter of it by chance, so that many do not try as one.
pub(super) struct Retry {
    delay: Duration,
    /// No attempt before this.
    at: Option<Instant>,
}

impl Retry {
    pub(super) fn new() -> Retry {
        Retry { delay: FIRST_RETRY, at: None }
    }

    pub(super) async fn pause(&self) {
        if let Some(at) = self.at {
            tokio::time::sleep_until(at).await;
        }
    }

    pub(super) fn worked(&mut self) {
        *self = Retry::new();
    }

    pub(super) fn failed(&mut self, error: &dyn fmt::Display) {
        self.schedule();
        tracing::debug!(%error, "no virtual machine at the NIC yet");
    }

    pub(super) fn schedule(&mut self) {
        let mut random = [0; 1];
        // Without randomness the attempts are merely regular.
        let _ = openssl::rand::rand_bytes(&mut random);
        let [random] = random;
        let jitter = self.delay.mul_f64(f64::from(random) / 255.0 / 4.0);
        self.at = Some(Instant::now() + self.delay - jitter);
        self.delay = (self.delay * 2).min(LAST_RETRY);
    }
}
