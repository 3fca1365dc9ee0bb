//! What the project wants of itself, and whether the medians of a run say so.

use super::peer::BASE;
use super::results::{Results, number};

/// What a figure is held against.
enum Against {
    /// So many times what another peer has; more is better.
    AtLeast(f64, &'static str),
    /// The same where less is better.
    AtMost(f64, &'static str),
    /// So much of loopback, or of the delayed link.
    OfLoopback(f64),
    /// So many times another figure of its own; more is better.
    AtLeastOwn(f64, &'static str),
    /// The same where less is better.
    BelowOwn(f64, &'static str),
    Above(f64),
    AtLeastNumber(f64),
    Below(f64),
    AtMostNumber(f64),
}

/// Figures of peers, all of which are to reach the same.
struct Goal {
    peers: &'static [&'static str],
    figures: &'static [&'static str],
    against: Against,
}

/// What came of it. Where a value is missing, nothing can be said.
pub(crate) struct Judged {
    pub(crate) peer: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) goal: String,
    pub(crate) measured: String,
    pub(crate) met: Option<bool>,
}

const ALL: &[&str] =
    &["ours-1500", "ours-65520", "ours-offload", "ours-tls-1500", "ours-tls-65520", "ours-tls-offload"];
const CLEAR: &[&str] = &["ours-1500", "ours-65520", "ours-offload"];
const LARGE: &[&str] = &["ours-65520", "ours-offload"];
const LARGE_TLS: &[&str] = &["ours-tls-65520", "ours-tls-offload"];
const ONE_STREAM: &[&str] = &["down-1", "up-1"];

const fn goal(peers: &'static [&'static str], figures: &'static [&'static str], against: Against) -> Goal {
    Goal { peers, figures, against }
}

const GOALS: &[Goal] = &[
    goal(&["ours-1500"], ONE_STREAM, Against::AtLeast(1.0, "slirp4netns-1500")),
    goal(&["ours-1500"], ONE_STREAM, Against::AtLeast(2.0, "slirp4netns+socat")),
    goal(LARGE, ONE_STREAM, Against::OfLoopback(0.2)),
    goal(LARGE, ONE_STREAM, Against::AtLeast(1.0, "slirp4netns-65520")),
    goal(LARGE_TLS, ONE_STREAM, Against::AtLeast(3.0, "slirp4netns+ssh")),
    goal(CLEAR, &["down-1 cpu", "up-1 cpu"], Against::AtMost(1.0, "slirp4netns+socat")),
    goal(ALL, &["down-8", "down-64"], Against::AtLeastOwn(1.0, "down-1")),
    goal(ALL, &["up-8", "up-64"], Against::AtLeastOwn(1.0, "up-1")),
    goal(
        ALL,
        &["down-8 fairness", "down-64 fairness", "up-8 fairness", "up-64 fairness"],
        Against::Above(0.9),
    ),
    goal(CLEAR, &["rr p50", "rr p99"], Against::AtMost(1.0, "slirp4netns+socat")),
    goal(CLEAR, &["crr-1", "crr-16"], Against::AtLeast(2.0, "slirp4netns+ssh")),
    goal(&["ours-1500", "ours-offload"], &["crr-1", "crr-16"], Against::AtLeast(1.0, "pasta-1500")),
    goal(&["ours-65520"], &["crr-1", "crr-16"], Against::AtLeast(1.0, "pasta-65520")),
    goal(
        CLEAR,
        &[
            "idle-1000 crr-1 of none",
            "idle-1000 crr-16 of none",
            "idle-1000 down-1 of none",
            "idle-1000 up-1 of none",
            "idle-10000 crr-1 of none",
            "idle-10000 crr-16 of none",
            "idle-10000 down-1 of none",
            "idle-10000 up-1 of none",
        ],
        Against::AtLeastNumber(0.9),
    ),
    goal(CLEAR, &["idle-1000 rr p50 of none", "idle-10000 rr p50 of none"], Against::AtMostNumber(1.1)),
    goal(
        ALL,
        &[
            "memory-1000 near idle Pss",
            "memory-1000 far idle Pss",
            "memory-1000 near after a pause Pss",
            "memory-1000 far after a pause Pss",
        ],
        Against::Below(16.0),
    ),
    goal(ALL, &["down-50ms", "up-50ms", "down-200ms", "up-200ms"], Against::OfLoopback(0.8)),
    goal(
        ALL,
        &["keys-50ms beside bulk down p99", "keys-50ms beside bulk up p99"],
        Against::BelowOwn(2.0, "keys-50ms alone p99"),
    ),
];

/// Every goal of every peer that was measured.
pub(crate) fn all(results: &Results) -> Vec<Judged> {
    let measured = results.peers();
    let mut judged = Vec::new();
    for goal in GOALS {
        for peer in goal.peers.iter().filter(|peer| measured.contains(peer)) {
            for figure in goal.figures {
                judged.extend(judge(results, peer, figure, &goal.against));
            }
        }
    }
    judged
}

/// Nothing where nobody measured it, or tried to.
fn judge(results: &Results, peer: &'static str, figure: &'static str, against: &Against) -> Option<Judged> {
    let value = results.median(peer, figure);
    let tried = || results.failed(peer, figure.split(' ').next().unwrap_or_default()) > 0;
    if value.is_none() && !tried() {
        return None;
    }
    let times = |other: Option<f64>| Some(value? / other?);
    let (goal, reached, limit, most) = match *against {
        Against::AtLeast(factor, other) => {
            (format!("at least {factor} x {other}"), times(results.median(other, figure)), factor, false)
        }
        Against::AtMost(factor, other) => {
            (format!("at most {factor} x {other}"), times(results.median(other, figure)), factor, true)
        }
        Against::OfLoopback(factor) => {
            (format!("at least {factor} of {BASE}"), results.ratio(peer, figure, BASE), factor, false)
        }
        Against::AtLeastOwn(factor, other) => {
            (format!("at least {factor} x {other}"), times(results.median(peer, other)), factor, false)
        }
        Against::BelowOwn(factor, other) => {
            (format!("below {factor} x {other}"), times(results.median(peer, other)), factor, true)
        }
        Against::Above(limit) => (format!("above {limit}"), value, limit, false),
        Against::AtLeastNumber(limit) => (format!("at least {limit}"), value, limit, false),
        Against::Below(limit) => (format!("below {limit}"), value, limit, true),
        Against::AtMostNumber(limit) => (format!("at most {limit}"), value, limit, true),
    };
    let met = reached.map(|reached| if most { reached <= limit } else { reached >= limit });
    // What was tried and failed has not been reached.
    let met = if value.is_none() { Some(false) } else { met };
    let measured = match (value, reached) {
        (None, _) => "failed".to_owned(),
        (Some(_), None) => "nothing to compare with".to_owned(),
        (Some(_), Some(reached)) => number(reached),
    };
    Some(Judged { peer, figure, goal, measured, met })
}
