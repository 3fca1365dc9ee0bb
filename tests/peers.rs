//! The parts of the benchmark against peers that could lie unnoticed. Cargo runs no tests of a benchmark, so they are here. And the
//! load itself, with nothing between its ends.

#[allow(dead_code, reason = "the rest is for the benchmark")]
#[path = "../benches/peers/client.rs"]
mod client;
#[allow(dead_code, reason = "the rest is for the benchmark")]
#[path = "../benches/peers/held.rs"]
mod held;
#[allow(dead_code, reason = "the rest is for the benchmark")]
#[path = "../benches/peers/proc.rs"]
mod proc;
#[path = "../benches/peers/server.rs"]
mod server;
#[path = "../benches/peers/stats.rs"]
mod stats;
#[path = "../benches/peers/wire.rs"]
mod wire;

use std::collections::BTreeMap;

use client::{Ends, Job, Order, Said, Way};
use proc::{Memory, Stat, cpu, memory, parse_cpu_model, parse_machine, parse_rollup, parse_stat, tree};
use stats::{Spread, jain, percentile, ratio};
use wire::{Count, Request, now};

#[test]
fn a_median_is_the_middle_and_between_two_middles_their_mean() {
    assert_eq!(Spread::of(&[]), None);
    assert_eq!(Spread::of(&[7.0]), Some(Spread { median: 7.0, least: 7.0, most: 7.0 }));
    assert_eq!(Spread::of(&[9.0, 1.0, 4.0]), Some(Spread { median: 4.0, least: 1.0, most: 9.0 }));
    assert_eq!(Spread::of(&[9.0, 1.0, 4.0, 6.0]), Some(Spread { median: 5.0, least: 1.0, most: 9.0 }));
}

#[test]
fn percentiles_are_values_that_occurred() {
    let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    for (percent, expected) in [(50.0, 50.0), (99.0, 99.0), (100.0, 100.0), (0.1, 1.0)] {
        assert_eq!(percentile(&hundred, percent), Some(expected), "{percent}");
    }
    // One outlier of 200 is the hundredth of a hundred, but not the 99th.
    let mut two_hundred = vec![1.0; 199];
    two_hundred.push(50.0);
    assert_eq!(percentile(&two_hundred, 99.0), Some(1.0));
    assert_eq!(percentile(&two_hundred, 99.9), Some(50.0));
    assert_eq!(percentile(&[3.0], 99.0), Some(3.0));
    assert_eq!(percentile(&[], 50.0), None);
}

#[test]
fn fairness_is_between_one_nth_and_one() {
    assert_eq!(jain(&[5.0; 8]), Some(1.0));
    assert_eq!(jain(&[0.0, 0.0, 12.0, 0.0]), Some(0.25));
    assert_eq!(jain(&[1.0, 3.0]), Some(0.8));
    assert_eq!(jain(&[0.0, 0.0]), None);
    assert_eq!(jain(&[]), None);
}

#[test]
fn a_ratio_compares_rounds_with_themselves() {
    // The machine was half as fast in the second round; the peer was a tenth of loopback in each.
    let base = [(1, 4000.0), (2, 2000.0), (4, 0.0)];
    assert_eq!(ratio(&[(1, 400.0), (2, 200.0), (3, 9.0), (4, 9.0)], &base), Some(0.1));
    assert_eq!(ratio(&[(3, 9.0)], &base), None);
}

/// The fields of a `stat`, with a name as a hostile one would choose it.
fn line(pid: u32, parent: u32, times: [u64; 4]) -> String {
    let [user, system, waited_user, waited_system] = times;
    format!(
        "{pid} (a) S 1 (b c) S {parent} 7 7 0 -1 4194560 99 98 97 96 {user} {system} {waited_user} \
         {waited_system} 20 0 3 0 12345 1000000 250"
    )
}

#[test]
fn a_stat_is_read_behind_the_last_bracket_and_counts_waited_children() {
    let stat = parse_stat(&line(42, 7, [100, 20, 3, 4])).unwrap();
    assert_eq!(stat, Stat { parent: 7, user: 103, system: 24 });
    assert_eq!(parse_stat("42 (x) S 7"), None);
    assert_eq!(parse_stat(""), None);
}

#[test]
fn our_own_numbers_are_plausible() {
    let pid = std::process::id();
    let began = cpu(&[pid]);
    let mut sum = 0u64;
    while (cpu(&[pid]) - began).user + (cpu(&[pid]) - began).system < 0.05 {
        sum = (0..100_000).fold(sum, u64::wrapping_add);
    }
    let own = memory(&[pid]);
    assert!(own.proportional > 100 << 10 && own.resident >= own.proportional, "{own:?} ({sum})");
    assert_eq!(memory(&[u32::MAX]), Memory::default());
}

#[test]
fn a_tree_has_everybody_below_its_roots_once() {
    let stat = |parent| Stat { parent, user: 0, system: 0 };
    let all =
        BTreeMap::from([(1, stat(0)), (5, stat(1)), (6, stat(5)), (7, stat(6)), (8, stat(1)), (9, stat(9))]);
    assert_eq!(tree(&[5], &all), [5, 6, 7]);
    assert_eq!(tree(&[6, 5, 8], &all), [5, 6, 7, 8]);
    // A loop does not occur, and does not hang us either.
    assert_eq!(tree(&[9], &all), [9]);
    assert_eq!(tree(&[], &all), [] as [u32; 0]);
}

#[test]
fn a_rollup_gives_bytes_and_is_not_confused_by_its_neighbours() {
    let text = "55d0-7ffe ---p 00000000 00:00 0   [rollup]\nRss:    3000 kB\nPss:     1200 kB\nPss_Dirty:  10 kB\n\
                Pss_Anon:   11 kB\nSwapPss:  0 kB\n";
    assert_eq!(parse_rollup(text), Some(Memory { resident: 3000 << 10, proportional: 1200 << 10 }));
    assert_eq!(parse_rollup(""), None);
    assert_eq!(parse_rollup("Rss: 1 MB\nPss: 1 MB\n"), None);
}

#[test]
fn the_machine_is_read_from_its_sum() {
    let text = "cpu  100 900 50 4000 3 5 20 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
    assert_eq!(parse_machine(text, 100.0), Some((1.75, 0.4)));
    assert_eq!(parse_machine("cpu0 1 1 1 1 1 1 1 1\n", 100.0), None);
    let text = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: Some: CPU\nmodel name\t: Other\n";
    assert_eq!(parse_cpu_model(text), Some("Some: CPU"));
}

#[test]
fn requests_come_as_they_were_sent() {
    let requests = [
        Request::Sink { start: 5, end: u64::MAX },
        Request::Source { end: 77 },
        Request::Echo { size: 64 },
        Request::Hold,
        Request::Burst { size: 1 << 20 },
    ];
    let mut bytes = Vec::new();
    requests.iter().for_each(|request| request.send(&mut bytes, b"").unwrap());
    let mut rest = &bytes[..];
    for request in requests {
        assert_eq!(Request::receive(&mut rest).unwrap(), Some(request));
    }
    assert_eq!(Request::receive(&mut rest).unwrap(), None);
    assert!(Request::receive(&mut &bytes[..7]).is_err());
    bytes[0] = 9;
    assert!(Request::receive(&mut &bytes[..]).is_err());
}

#[test]
fn only_what_comes_in_time_counts() {
    let mut count = Count::default();
    let moment = now();
    count.add(10, (0, moment));
    count.add(7, (0, u64::MAX));
    count.add(1, (u64::MAX - 1, u64::MAX));
    assert_eq!((count.total, count.counted), (18, 7));
}

/// Takes a figure of nothing, over loopback.
fn take(job: Job) -> BTreeMap<String, f64> {
    let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    server::start(listener).unwrap();
    let own = Ends { near: vec![std::process::id()], far: Vec::new() };
    let order = Order { to, ends: own, service: std::process::id(), seconds: 0.3, warm: 0.1, job };
    let mut said = BTreeMap::new();
    let mut say = |one| match one {
        Said::Value { what, value, .. } => drop(said.insert(what, value)),
        Said::Failure { what, why } => panic!("{what}: {why}"),
    };
    client::run(&order, &mut say).unwrap();
    said
}

#[test]
fn bulk_is_counted_each_way_with_what_it_costs() {
    for way in [Way::Down, Way::Up] {
        let said = take(Job::Bulk { way, streams: 1, costs: true });
        assert!(said[""] > 0.0 && said["cpu near system"] > 0.0, "{said:?}");
        assert_eq!(said["cpu far user"], 0.0, "{said:?}");
        let said = take(Job::Bulk { way, streams: 4, costs: false });
        assert!((0.25..=1.0).contains(&said["fairness"]), "{said:?}");
    }
}

#[test]
fn exchanges_and_connections_are_counted() {
    let said = take(Job::RoundTrip);
    assert!(said["p50"] > 0.0 && said["p99"] >= said["p50"], "{said:?}");
    assert!(take(Job::Connections { at_once: 2 })[""] > 0.0);
    let said = take(Job::BesideBulk);
    assert!(said["beside bulk up p99"] > 0.0 && said["beside bulk down, the bulk"] > 0.0, "{said:?}");
}

#[test]
fn connections_are_held_while_others_work_and_do_bulk_all_at_once() {
    let said = take(Job::AmongIdle { count: 100, patience: 30.0 });
    assert_eq!(said["opened"], 100.0);
    assert!(said["crr-16"] > 0.0 && said["up-1"] > 0.0, "{said:?}");
    let said = take(Job::Memory { count: 50, burst: 100_000, pause: 0.1, patience: 30.0 });
    assert_eq!(said["opened"], 50.0);
    assert!(said.contains_key("near after a pause Pss") && !said.contains_key("far idle Pss"), "{said:?}");
}

#[test]
fn connections_that_cannot_be_opened_are_a_failure() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let job = Job::AmongIdle { count: 10, patience: 30.0 };
    let order = Order { to: nobody, ends: Ends::default(), service: 0, seconds: 0.1, warm: 0.0, job };
    let mut failures = Vec::new();
    let mut say = |said| {
        if let Said::Failure { why, .. } = said {
            failures.push(why);
        }
    };
    client::run(&order, &mut say).unwrap();
    assert!(failures[0].starts_with("0 of 10 connections could be opened: "), "{failures:?}");
}
