//! The table.

use std::fmt::Write as _;

use super::goals::{self, Judged};
use super::peer::BASE;
use super::results::{Failure, Results, number};
use super::run::HISTORICAL;
use super::vm;

/// Figures that are shown beside each other.
struct Group {
    title: &'static str,
    base: &'static str,
    /// Whether extremes and ratios are shown, or medians alone.
    whole: bool,
    /// A heading and a figure.
    columns: &'static [(&'static str, &'static str)],
}

const fn group(title: &'static str, columns: &'static [(&'static str, &'static str)]) -> Group {
    Group { title, base: BASE, whole: true, columns }
}

const fn medians(title: &'static str, columns: &'static [(&'static str, &'static str)]) -> Group {
    Group { title, base: BASE, whole: false, columns }
}

const GROUPS: &[Group] = &[
    group("one stream, MB/s", &[("down", "down-1"), ("up", "up-1")]),
    medians(
        "processor seconds per GB of one stream: guest's side (near), user's side (far), both; and both ends of the load",
        &[
            ("down near user", "down-1 cpu near user"),
            ("system", "down-1 cpu near system"),
            ("far user", "down-1 cpu far user"),
            ("system", "down-1 cpu far system"),
            ("both", "down-1 cpu"),
            ("load user", "down-1 cpu load user"),
            ("system", "down-1 cpu load system"),
            ("up near user", "up-1 cpu near user"),
            ("system", "up-1 cpu near system"),
            ("far user", "up-1 cpu far user"),
            ("system", "up-1 cpu far system"),
            ("both", "up-1 cpu"),
            ("load user", "up-1 cpu load user"),
            ("system", "up-1 cpu load system"),
        ],
    ),
    group(
        "8 and 64 streams, sum in MB/s",
        &[("down 8", "down-8"), ("up 8", "up-8"), ("down 64", "down-64"), ("up 64", "up-64")],
    ),
    medians(
        "8 and 64 streams, fairness",
        &[
            ("down 8", "down-8 fairness"),
            ("up 8", "up-8 fairness"),
            ("down 64", "down-64 fairness"),
            ("up 64", "up-64 fairness"),
        ],
    ),
    group("round trip of one byte, µs", &[("median", "rr p50"), ("99 %", "rr p99")]),
    group(
        "connect, 64 bytes there and back, close; per second",
        &[("one at a time", "crr-1"), ("16 at a time", "crr-16")],
    ),
    medians(
        "with 1,000 idle connections: ratio to none, same peer",
        &[
            ("opened in s", "idle-1000 opened in"),
            ("rr p50", "idle-1000 rr p50 of none"),
            ("rr p99", "idle-1000 rr p99 of none"),
            ("crr-1", "idle-1000 crr-1 of none"),
            ("crr-16", "idle-1000 crr-16 of none"),
            ("down-1", "idle-1000 down-1 of none"),
            ("up-1", "idle-1000 up-1 of none"),
        ],
    ),
    medians(
        "with 10,000 idle connections: ratio to none, same peer",
        &[
            ("opened", "idle-10000 opened"),
            ("opened in s", "idle-10000 opened in"),
            ("rr p50", "idle-10000 rr p50 of none"),
            ("rr p99", "idle-10000 rr p99 of none"),
            ("crr-1", "idle-10000 crr-1 of none"),
            ("crr-16", "idle-10000 crr-16 of none"),
            ("down-1", "idle-10000 down-1 of none"),
            ("up-1", "idle-10000 up-1 of none"),
        ],
    ),
    medians(
        "memory per connection of 1,000, KiB (Pss): idle; after 1 MiB each way on all at once; after a pause",
        &[
            ("near idle", "memory-1000 near idle Pss"),
            ("burst", "memory-1000 near after a burst Pss"),
            ("pause", "memory-1000 near after a pause Pss"),
            ("far idle", "memory-1000 far idle Pss"),
            ("burst", "memory-1000 far after a burst Pss"),
            ("pause", "memory-1000 far after a pause Pss"),
            ("the burst took s", "memory-1000 burst in"),
        ],
    ),
    medians(
        "the same, all that is resident (Rss)",
        &[
            ("near idle", "memory-1000 near idle Rss"),
            ("burst", "memory-1000 near after a burst Rss"),
            ("pause", "memory-1000 near after a pause Rss"),
            ("far idle", "memory-1000 far idle Rss"),
            ("burst", "memory-1000 far after a burst Rss"),
            ("pause", "memory-1000 far after a pause Rss"),
        ],
    ),
    group(
        "one stream over a round trip of 50 and 200 ms, MB/s; loopback is the delayed link with plain TCP",
        &[
            ("down 50 ms", "down-50ms"),
            ("up 50 ms", "up-50ms"),
            ("down 200 ms", "down-200ms"),
            ("up 200 ms", "up-200ms"),
        ],
    ),
    medians(
        "one byte there and back over 50 ms, µs: alone, and beside bulk; and that bulk in MB/s",
        &[
            ("alone p50", "keys-50ms alone p50"),
            ("p99", "keys-50ms alone p99"),
            ("bulk down p50", "keys-50ms beside bulk down p50"),
            ("p99", "keys-50ms beside bulk down p99"),
            ("bulk", "keys-50ms beside bulk down, the bulk"),
            ("bulk up p50", "keys-50ms beside bulk up p50"),
            ("p99", "keys-50ms beside bulk up p99"),
            ("bulk", "keys-50ms beside bulk up, the bulk"),
        ],
    ),
    Group {
        title: "a real virtual machine (emulated), MB/s; the ratio is to -netdev user",
        base: vm::USER,
        whole: true,
        columns: &[("down", "vm down"), ("up", "vm up")],
    },
    medians(
        "that machine: processor seconds of serve per GB",
        &[("down", "vm down, serve"), ("up", "vm up, serve")],
    ),
];

/// As people read it.
pub(crate) fn text(results: &Results) -> String {
    let judged = goals::all(results);
    let mut text = format!("{}\n", serde_json::to_string_pretty(&results.environment).unwrap());
    for group in GROUPS {
        let mut rows = vec![vec![group.title.to_owned()]];
        rows[0].extend(group.columns.iter().map(|(heading, _)| (*heading).to_owned()));
        rows[0].push("goals".to_owned());
        for peer in results.peers() {
            let cells: Vec<String> =
                group.columns.iter().map(|(_, figure)| cell(results, group, peer, figure)).collect();
            if cells.iter().all(String::is_empty) {
                continue;
            }
            let mut row = vec![peer.to_owned()];
            row.extend(cells);
            row.push(verdict(&judged, group, peer));
            rows.push(row);
        }
        if rows.len() > 1 {
            table(&rows, &mut text);
        }
    }
    goals_text(&judged, &mut text);
    failures_text(results, &mut text);
    text
}

fn cell(results: &Results, group: &Group, peer: &str, figure: &str) -> String {
    let metric = figure.split(' ').next().unwrap_or_default();
    let failed = match results.failed(peer, metric) {
        0 => String::new(),
        times => format!("{times} failed"),
    };
    let Some(spread) = results.spread(peer, figure) else { return failed };
    let mut cell = number(spread.median);
    if group.whole && peer != HISTORICAL {
        write!(cell, " ({}-{})", number(spread.least), number(spread.most)).unwrap();
    }
    if group.whole
        && peer != group.base
        && let Some(ratio) = results.ratio(peer, figure, group.base)
    {
        write!(cell, " {ratio:.3}").unwrap();
    }
    if !failed.is_empty() {
        write!(cell, " [{failed}]").unwrap();
    }
    cell
}

/// How many of a row's goals are met; which, is in the list.
fn verdict(judged: &[Judged], group: &Group, peer: &str) -> String {
    let here = |judged: &&Judged| {
        judged.peer == peer && group.columns.iter().any(|(_, figure)| *figure == judged.figure)
    };
    let of: Vec<bool> = judged.iter().filter(here).filter_map(|judged| judged.met).collect();
    let met = of.iter().filter(|met| **met).count();
    match (met, of.len()) {
        (_, 0) => String::new(),
        (met, all) if met == all => format!("met ({all} of {all})"),
        (met, all) => format!("NOT met ({met} of {all} are)"),
    }
}

fn table(rows: &[Vec<String>], text: &mut String) {
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            // The title stands above its column, and the last column may be as wide as it likes.
            let cells = rows.iter().skip(usize::from(column == 0));
            cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
        })
        .collect();
    writeln!(text, "\n{}", rows[0][0]).unwrap();
    for (at, row) in rows.iter().enumerate() {
        let first = if at == 0 { "" } else { &row[0] };
        write!(text, "  {first:<width$}", width = widths[0]).unwrap();
        for (cell, width) in row.iter().zip(&widths).skip(1).take(widths.len() - 2) {
            write!(text, "  {cell:>width$}").unwrap();
        }
        let last = row.last().map(String::as_str).unwrap_or_default();
        writeln!(text, "  {last}").unwrap();
    }
}

/// A line for each goal of a figure, with all that it is a goal of.
fn goals_text(judged: &[Judged], text: &mut String) {
    let mut known: Vec<(&str, &str)> = Vec::new();
    for Judged { figure, goal, .. } in judged {
        if known.contains(&(figure, goal)) {
            continue;
        }
        let heading = if known.is_empty() { "\ngoals\n" } else { "" };
        known.push((figure, goal));
        let cell = |judged: &Judged| {
            let word = match judged.met {
                Some(true) => "met",
                Some(false) => "NOT MET",
                None => "not known",
            };
            format!("{} {} ({word})", judged.peer, judged.measured)
        };
        let of = judged.iter().filter(|judged| judged.figure == *figure && judged.goal == *goal);
        let cells: Vec<String> = of.map(cell).collect();
        writeln!(text, "{heading}  {figure:<34} {goal:<30} {}", cells.join("; ")).unwrap();
    }
}

fn failures_text(results: &Results, text: &mut String) {
    // What failed for one reason is said once.
    let mut reasons: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for Failure { round, peer, figure, why } in &results.failures {
        let figure = format!("{figure} (round {round})");
        match reasons.iter_mut().find(|(of, known, _)| of == peer && known == why) {
            Some((.., figures)) => figures.push(figure),
            None => reasons.push((peer, why, vec![figure])),
        }
    }
    for (at, (peer, why, figures)) in reasons.iter().enumerate() {
        let heading = if at == 0 { "\nwhat failed\n" } else { "" };
        writeln!(text, "{heading}  {peer}: {why}\n      {}", figures.join(", ")).unwrap();
    }
}
