//! All values of a run, and what is asked of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Said;
use super::goals;
use super::peer::BASE;
use super::stats::{Spread, ratio};

#[derive(Serialize, Deserialize)]
struct Sample {
    round: usize,
    peer: String,
    figure: String,
    unit: String,
    value: f64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) round: usize,
    pub(crate) peer: String,
    pub(crate) figure: String,
    pub(crate) why: String,
}

pub(crate) struct Results {
    pub(crate) environment: Value,
    samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
    file: Option<PathBuf>,
}

/// A metric's main figure has no name of its own.
fn figure(metric: &str, what: &str) -> String {
    if what.is_empty() { metric.to_owned() } else { format!("{metric} {what}") }
}

impl Results {
    pub(crate) fn new(environment: Value, file: Option<PathBuf>) -> Self {
        Self { environment, samples: Vec::new(), failures: Vec::new(), file }
    }

    /// Of an earlier run, or of one that goes on.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Saved {
            environment: Value,
            samples: Vec<Sample>,
            failures: Vec<Failure>,
        }
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let Saved { environment, samples, failures } =
            serde_json::from_str(&text).map_err(|error| failed(&error))?;
        Ok(Self { environment, samples, failures, file: None })
    }

    pub(crate) fn add(&mut self, round: usize, peer: &str, metric: &str, said: Said) {
        match said {
            Said::Failure { what, why } => self.fail(round, peer, metric, &what, why),
            Said::Value { what, unit, value } => {
                let figure = figure(metric, &what);
                eprintln!("round {round}  {peer:<20} {figure:<36} {:>10} {unit}", number(value));
                self.samples.push(Sample { round, peer: peer.to_owned(), figure, unit, value });
            }
        }
    }

    pub(crate) fn fail(&mut self, round: usize, peer: &str, metric: &str, what: &str, why: String) {
        let figure = figure(metric, what);
        eprintln!("round {round}  {peer:<20} {figure:<36} FAILED: {why}");
        self.failures.push(Failure { round, peer: peer.to_owned(), figure, why });
    }

    pub(crate) fn value(&self, round: usize, peer: &str, figure: &str) -> Option<f64> {
        let mut of = self.of(peer, figure);
        of.find(|sample| sample.round == round).map(|sample| sample.value)
    }

    fn of(&self, peer: &str, figure: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.peer == peer && sample.figure == figure)
    }

    pub(crate) fn spread(&self, peer: &str, figure: &str) -> Option<Spread> {
        Spread::of(&self.of(peer, figure).map(|sample| sample.value).collect::<Vec<_>>())
    }

    pub(crate) fn median(&self, peer: &str, figure: &str) -> Option<f64> {
        self.spread(peer, figure).map(|spread| spread.median)
    }

    /// To what stands for no peer at all.
    pub(crate) fn ratio(&self, peer: &str, figure: &str, base: &str) -> Option<f64> {
        let of = |peer| self.of(peer, figure).map(|sample| (sample.round, sample.value)).collect::<Vec<_>>();
        ratio(&of(peer), &of(base))
    }

    /// How often it failed.
    pub(crate) fn failed(&self, peer: &str, metric: &str) -> usize {
        let of = |failure: &&Failure| failure.peer == peer && failure.figure == metric;
        self.failures.iter().filter(of).count()
    }

    /// In the order in which they came first.
    pub(crate) fn peers(&self) -> Vec<&str> {
        let mut known = Vec::new();
        let failed = self.failures.iter().map(|failure| failure.peer.as_str());
        for peer in self.samples.iter().map(|sample| sample.peer.as_str()).chain(failed) {
            if !known.contains(&peer) {
                known.push(peer);
            }
        }
        known
    }

    /// Writes the file, if one is wanted. It is written again and again, so that a run that is ended has its values.
    pub(crate) fn save(&self, complete: bool) -> Result<(), String> {
        let Some(path) = &self.file else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.json(complete)).unwrap();
        let new = path.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    fn json(&self, complete: bool) -> Value {
        let mut medians: Vec<Value> = Vec::new();
        let mut known: Vec<(&str, &str)> = Vec::new();
        for Sample { peer, figure, unit, .. } in &self.samples {
            if known.contains(&(peer, figure)) {
                continue;
            }
            known.push((peer, figure));
            let Some(Spread { median, least, most }) = self.spread(peer, figure) else { continue };
            medians.push(json!({
                "peer": peer, "figure": figure, "unit": unit, "median": median, "least": least, "most": most,
                "of_loopback": self.ratio(peer, figure, BASE),
            }));
        }
        let goals = goals::all(self).into_iter().map(|judged| {
            json!({
                "peer": judged.peer, "figure": judged.figure, "goal": judged.goal, "measured": judged.measured,
                "met": judged.met,
            })
        });
        json!({
            "complete": complete,
            "environment": self.environment,
            "samples": self.samples,
            "failures": self.failures,
            "medians": medians,
            "goals": goals.collect::<Vec<_>>(),
        })
    }
}

/// With so many places as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
