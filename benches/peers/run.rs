//! Takes the figures: round by round, peer by peer.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::client::{Ends, Order, Said};
use super::delay::historical;
use super::peer::{Peer, Running};
use super::plan::{ALONE, Metric};
use super::results::Results;
use super::site::{Distance, Site};
use super::{Args, vm};

/// Metrics that are taken of a peer one after the other, without setting it up anew.
struct Visit<'a> {
    at: Distance,
    metrics: Vec<&'a Metric>,
}

pub(crate) fn all(
    args: &Args,
    metrics: &[&Metric],
    peers: &[&Peer],
    results: &mut Results,
) -> Result<(), String> {
    let mut visits: Vec<Visit> = Vec::new();
    for metric in metrics {
        match visits.last_mut() {
            Some(visit) if visit.at == metric.at && !metric.fresh => visit.metrics.push(metric),
            _ => visits.push(Visit { at: metric.at, metrics: vec![metric] }),
        }
    }
    for round in 1..=args.rounds() {
        for visit in &visits {
            for step in 0..peers.len() {
                // Another order each round, so that a drift of the machine favours nobody.
                let at = (step * if round % 2 == 0 { peers.len() - 1 } else { 1 } + round - 1) % peers.len();
                pay(args, round, visit, peers[at], results);
                results.save(false)?;
            }
            compute_historical(round, visit, results);
        }
    }
    Ok(())
}

/// Pays a peer a visit. What goes wrong is a result like any other.
fn pay(args: &Args, round: usize, visit: &Visit, peer: &Peer, results: &mut Results) {
    let mut set_up: Option<(Running, Site)> = None;
    for (at, metric) in visit.metrics.iter().enumerate() {
        if set_up.is_none() {
            match start(args, visit.at, peer) {
                Ok(made) => set_up = Some(made),
                Err(why) => {
                    // It would be no better for the rest.
                    let rest = visit.metrics.iter().skip(at);
                    rest.for_each(|metric| results.fail(round, peer.name, metric.name, "", why.clone()));
                    return;
                }
            }
        }
        let Some((running, site)) = &mut set_up else { continue };
        let dropped = site.dropped();
        let went = take(args, metric, running, site, &mut |said| {
            results.add(round, peer.name, metric.name, said);
        });
        let lost = dropped.and_then(|before| Ok(site.dropped()? - before));
        match lost {
            Ok(0) => {}
            Ok(lost) => {
                // Of loss, TCP makes delay: the figure is not what it says.
                let why = format!("the delayed link dropped {lost} packets");
                results.fail(round, peer.name, metric.name, "link", why);
            }
            Err(why) => results.fail(round, peer.name, metric.name, "link", why),
        }
        if let Err(why) = went {
            results.fail(round, peer.name, metric.name, "", why);
            set_up = None;
        }
        if metric.is_among_idle() {
            compare(round, peer.name, metric.name, results);
        }
    }
}

/// Sets a peer up, until the guest reaches the service.
fn start(args: &Args, distance: Distance, peer: &Peer) -> Result<(Running, Site), String> {
    let site = Site::new(distance, &args.conditions())?;
    let mut running = (peer.start)(&site)?;
    let mut of: Vec<_> = running.near.iter_mut().chain(&mut running.far).collect();
    site.lab.listens(&running.guest, running.to, &mut of)?;
    Ok((running, site))
}

/// Lets a process in the guest's network take the figures of a metric.
fn take(
    args: &Args,
    metric: &Metric,
    running: &mut Running,
    site: &Site,
    say: &mut dyn FnMut(Said),
) -> Result<(), String> {
    let times = args.times();
    let pids = |of: &[super::lab::Process]| of.iter().map(|process| process.pid).collect();
    let order = Order {
        to: running.to,
        ends: Ends { near: pids(&running.near), far: pids(&running.far) },
        service: site.service.pid,
        seconds: metric.seconds(&times),
        warm: metric.warm(),
        job: (metric.job)(&times),
    };
    let client = site.client(&running.guest).map_err(|error| format!("nsenter: {error}"))?;
    let mut client = Killed(client);
    let mut input = client.0.stdin.take().unwrap();
    let order = serde_json::to_string(&order).unwrap();
    writeln!(input, "{order}").map_err(|error| format!("the load: {error}"))?;
    let (sender, lines) = mpsc::channel();
    let output = client.0.stdout.take().unwrap();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    let limit = Duration::from_secs_f64(metric.limit(&times));
    let deadline = Instant::now() + limit;
    let mut failed = None;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let said = serde_json::from_str(&line).map_err(|error| format!("the load: {error}"))?;
                if let Said::Failure { what, why } = &said
                    && what.is_empty()
                {
                    failed = Some(why.clone());
                } else {
                    say(said);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(format!("it did not end within {limit:?}")),
        }
    }
    let status = client.0.wait().map_err(|error| format!("the load: {error}"))?;
    if !status.success() {
        let mut complaint = String::new();
        let _ = client.0.stderr.take().unwrap().read_to_string(&mut complaint);
        return Err(format!("the load ended ({status}): {complaint}"));
    }
    if let Some(why) = failed {
        return Err(why);
    }
    // A peer that broke may have lost nothing yet.
    running.near.iter_mut().chain(&mut running.far).try_for_each(super::lab::Process::alive)
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds the ratios to the same peer without idle connections, of this round.
fn compare(round: usize, peer: &str, metric: &str, results: &mut Results) {
    let mut ratios = Vec::new();
    for alone in ALONE {
        let parts: &[&str] = if alone == "rr" { &[" p50", " p99"] } else { &[""] };
        for part in parts {
            let what = format!("{alone}{part}");
            let with = results.value(round, peer, &format!("{metric} {what}"));
            let without = results.value(round, peer, &what);
            if let (Some(with), Some(without)) = (with, without) {
                ratios.push((format!("{what} of none"), with / without));
            }
        }
    }
    for (what, value) in ratios {
        results.add(round, peer, metric, Said::Value { what, unit: String::new(), value });
    }
}

/// The row that nobody measures.
fn compute_historical(round: usize, visit: &Visit, results: &mut Results) {
    let Distance::Far(milliseconds) = visit.at else { return };
    for metric in &visit.metrics {
        let messages = match metric.name {
            name if name.starts_with("down") => 80.0,
            name if name.starts_with("up") => 60.0,
            _ => continue,
        };
        let value = historical(messages, Duration::from_millis(milliseconds));
        let said = Said::Value { what: String::new(), unit: "MB/s".into(), value };
        results.add(round, HISTORICAL, metric.name, said);
    }
}

pub(crate) const HISTORICAL: &str = "historical window (computed)";

/// The virtual machine.
pub(crate) fn machine(args: &Args, results: &mut Results) {
    let time = args.times().measure.max(2.0);
    let took = vm::measure(args.rounds(), time, args.conditions(), &mut |round, peer, said| {
        results.add(round, peer, super::plan::VM, said);
    });
    if let Err(why) = took {
        results.fail(1, vm::STREAM, super::plan::VM, "", why);
    }
}
