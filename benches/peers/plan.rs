//! What is measured: each metric by its name, where it is taken, and how.

use super::client::{Job, Way};
use super::site::Distance;

/// Something that can be asked for by its name.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) at: Distance,
    /// Whether it wants a peer that has done nothing yet.
    pub(crate) fresh: bool,
    pub(crate) job: fn(&Times) -> Job,
}

/// How long things take, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) measure: f64,
    /// What connections may take to be opened, all of them.
    pub(crate) patience: f64,
    /// Between a burst and the look at what has been given back.
    pub(crate) pause: f64,
}

/// Bytes each way on each connection.
const BURST: u32 = 1 << 20;

pub(crate) const METRICS: &[Metric] = &[
    here("down-1", |_| Job::Bulk { way: Way::Down, streams: 1, costs: true }),
    here("up-1", |_| Job::Bulk { way: Way::Up, streams: 1, costs: true }),
    here("down-8", |_| Job::Bulk { way: Way::Down, streams: 8, costs: false }),
    here("up-8", |_| Job::Bulk { way: Way::Up, streams: 8, costs: false }),
    here("down-64", |_| Job::Bulk { way: Way::Down, streams: 64, costs: false }),
    here("up-64", |_| Job::Bulk { way: Way::Up, streams: 64, costs: false }),
    here("rr", |_| Job::RoundTrip),
    here("crr-1", |_| Job::Connections { at_once: 1 }),
    here("crr-16", |_| Job::Connections { at_once: 16 }),
    here("idle-1000", |times| Job::AmongIdle { count: 1000, patience: times.patience }),
    here("idle-10000", |times| Job::AmongIdle { count: 10_000, patience: times.patience }),
    Metric {
        fresh: true,
        ..here("memory-1000", |times| Job::Memory {
            count: 1000,
            burst: BURST,
            pause: times.pause,
            patience: times.patience,
        })
    },
    far("down-50ms", 50, |_| Job::Bulk { way: Way::Down, streams: 1, costs: false }),
    far("up-50ms", 50, |_| Job::Bulk { way: Way::Up, streams: 1, costs: false }),
    far("keys-50ms", 50, |_| Job::BesideBulk),
    far("down-200ms", 200, |_| Job::Bulk { way: Way::Down, streams: 1, costs: false }),
    far("up-200ms", 200, |_| Job::Bulk { way: Way::Up, streams: 1, costs: false }),
];

/// The metric of the virtual machine, which is taken in another way than all others.
pub(crate) const VM: &str = "vm";

const fn here(name: &'static str, job: fn(&Times) -> Job) -> Metric {
    Metric { name, at: Distance::Here, fresh: false, job }
}

const fn far(name: &'static str, milliseconds: u64, job: fn(&Times) -> Job) -> Metric {
    Metric { name, at: Distance::Far(milliseconds), fresh: false, job }
}

/// What the figures beside idle connections are compared with.
pub(crate) const ALONE: [&str; 5] = ["down-1", "up-1", "rr", "crr-1", "crr-16"];

impl Metric {
    /// Whether it is compared with [`ALONE`].
    pub(crate) fn is_among_idle(&self) -> bool {
        self.name.starts_with("idle-")
    }

    /// Seconds that bulk runs before it counts: windows grow by the round trip.
    pub(crate) fn warm(&self) -> f64 {
        match self.at {
            Distance::Here => 0.4,
            Distance::Far(milliseconds) => 1.0 + milliseconds as f64 / 1e3 * 30.0,
        }
    }

    /// Seconds that it counts. Few round trips fit into a second over a long way.
    pub(crate) fn seconds(&self, times: &Times) -> f64 {
        match self.at {
            Distance::Here => times.measure,
            Distance::Far(milliseconds) => {
                let exchanges = if self.name.starts_with("keys") { 200.0 } else { 20.0 };
                times.measure.max(milliseconds as f64 / 1e3 * exchanges * (times.measure / 2.0).min(1.0))
            }
        }
    }

    /// Seconds after which nothing comes any more.
    pub(crate) fn limit(&self, times: &Times) -> f64 {
        let bulk = self.warm() + self.seconds(times);
        60.0 + 8.0 * bulk + 2.0 * times.patience + if self.fresh { 300.0 } else { 0.0 }
    }
}
