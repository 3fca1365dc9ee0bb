//! Figures with connections that are open and do nothing.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::client::{Ends, Order, Said, Way, bulk, connect, connections, round_trips, tell_times, why};
use super::proc::{Memory, memory};
use super::wire::{Request, after, now, seconds};

/// Connections that are opened beside each other.
const OPENERS: usize = 16;
/// For a burst on all connections at once.
const BURST_LIMIT: Duration = Duration::from_secs(120);
/// Peers that free what they have only after a moment.
const SETTLE: Duration = Duration::from_secs(1);

/// The open connections, each of which has carried a byte back.
fn open(order: &Order, count: usize, patience: f64) -> (Vec<TcpStream>, Option<io::Error>) {
    let deadline = after(now(), patience);
    let (held, failure) = (Mutex::new(Vec::with_capacity(count)), Mutex::new(None));
    let left = Mutex::new(count);
    let one = || {
        let mut stream = connect(order)?;
        Request::Hold.send(&mut stream, b"")?;
        stream.read_exact(&mut [0])?;
        io::Result::Ok(stream)
    };
    thread::scope(|scope| {
        for _ in 0..OPENERS {
            scope.spawn(|| {
                while now() < deadline && failure.lock().unwrap().is_none() {
                    {
                        let mut left = left.lock().unwrap();
                        if *left == 0 {
                            return;
                        }
                        *left -= 1;
                    }
                    match one() {
                        Ok(stream) => held.lock().unwrap().push(stream),
                        Err(error) => *failure.lock().unwrap() = Some(error),
                    }
                }
            });
        }
    });
    (held.into_inner().unwrap(), failure.into_inner().unwrap())
}

/// Opens them or says why not.
fn open_all(order: &Order, count: usize, patience: f64, say: &mut dyn FnMut(Said)) -> Option<Vec<TcpStream>> {
    let began = now();
    let (held, failure) = open(order, count, patience);
    let took = seconds(began, now());
    say(value("opened", "", held.len() as f64));
    if held.len() == count {
        say(value("opened in", "s", took));
        return Some(held);
    }
    let opened = held.len();
    let why = match failure {
        Some(error) => format!("{opened} of {count} connections could be opened: {}", why(&error)),
        None => format!("{opened} of {count} connections could be opened in {patience:.0} s"),
    };
    say(Said::Failure { what: String::new(), why });
    None
}

fn value(what: &str, unit: &str, value: f64) -> Said {
    Said::Value { what: what.to_owned(), unit: unit.to_owned(), value }
}

pub(super) fn among_idle(
    order: &Order,
    count: usize,
    patience: f64,
    say: &mut dyn FnMut(Said),
) -> io::Result<()> {
    let Some(held) = open_all(order, count, patience, say) else { return Ok(()) };
    thread::sleep(SETTLE);
    let failed = |what: &str, error: io::Error| Said::Failure { what: what.to_owned(), why: why(&error) };
    let mut tell = |what: &str, unit: &str, number: f64| say(value(what, unit, number));
    match round_trips(order) {
        Ok(times) => tell_times("rr", &times, &mut tell)?,
        Err(error) => say(failed("rr", error)),
    }
    for at_once in [1, 16] {
        let what = format!("crr-{at_once}");
        match connections(order, at_once) {
            Ok(rate) => say(value(&what, "/s", rate)),
            Err(error) => say(failed(&what, error)),
        }
    }
    for (way, what) in [(Way::Down, "down-1"), (Way::Up, "up-1")] {
        match bulk(order, way, 1) {
            Ok(bulk) => {
                say(value(what, "MB/s", bulk.rate()));
                if let Err(error) = bulk.end {
                    say(failed(what, error));
                }
            }
            Err(error) => say(failed(what, error)),
        }
    }
    // Figures beside connections that were cut would be those of fewer.
    let dead = held.iter().step_by(count.div_ceil(200)).filter(|stream| burst(stream, 1).is_err()).count();
    if dead > 0 {
        let why = format!("{dead} of 200 connections that were held did not live to the end");
        say(Said::Failure { what: String::new(), why });
    }
    Ok(())
}

pub(super) fn memory_of(
    order: &Order,
    count: usize,
    size: u32,
    pause: f64,
    patience: f64,
    say: &mut dyn FnMut(Said),
) -> io::Result<()> {
    // What the first connection of all brings is not one connection's.
    let (first, failure) = open(order, 1, patience);
    failure.map_or(Ok(()), Err)?;
    drop(first);
    thread::sleep(SETTLE);
    let before = Both::now(&order.ends);
    let Some(held) = open_all(order, count, patience, say) else { return Ok(()) };
    thread::sleep(SETTLE);
    let tell = |when: &str, say: &mut dyn FnMut(Said)| {
        Both::now(&order.ends).tell(&before, when, count, say);
    };
    tell("idle", say);
    let began = now();
    thread::scope(|scope| {
        let burst = |stream| {
            let stack = thread::Builder::new().stack_size(64 << 10);
            stack.spawn_scoped(scope, move || burst(stream, size))
        };
        let running: Vec<_> = held.iter().map(burst).collect::<io::Result<_>>()?;
        running.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    let took = seconds(began, now());
    tell("after a burst", say);
    say(value("burst in", "s", took));
    thread::sleep(Duration::from_secs_f64(pause));
    tell("after a pause", say);
    Ok(())
}

/// So many bytes there, and then as many back.
fn burst(mut stream: &TcpStream, size: u32) -> io::Result<()> {
    let deadline = after(now(), BURST_LIMIT.as_secs_f64());
    stream.set_read_timeout(Some(BURST_LIMIT))?;
    stream.set_write_timeout(Some(BURST_LIMIT))?;
    let late = |_| io::Error::other(format!("a burst on all connections took more than {BURST_LIMIT:?}"));
    Request::Burst { size }.send(&mut stream, b"")?;
    let mut buffer = vec![0; 16 << 10];
    for part in parts(size, buffer.len()) {
        stream.write_all(&buffer[..part]).map_err(late)?;
        if now() > deadline {
            return Err(late(io::ErrorKind::TimedOut.into()));
        }
    }
    for part in parts(size, buffer.len()) {
        stream.read_exact(&mut buffer[..part]).map_err(late)?;
        if now() > deadline {
            return Err(late(io::ErrorKind::TimedOut.into()));
        }
    }
    Ok(())
}

/// What bytes are made of.
fn parts(size: u32, most: usize) -> impl Iterator<Item = usize> {
    let size = size as usize;
    (0..size).step_by(most).map(move |at| most.min(size - at))
}

struct Both {
    near: Memory,
    far: Memory,
}

impl Both {
    fn now(ends: &Ends) -> Self {
        Self { near: memory(&ends.near), far: memory(&ends.far) }
    }

    /// KiB for each connection, more than there was before any.
    fn tell(&self, before: &Self, when: &str, count: usize, say: &mut dyn FnMut(Said)) {
        let each = |now: u64, before: u64| (now as f64 - before as f64) / count as f64 / 1024.0;
        for (end, now, before) in [("near", self.near, before.near), ("far", self.far, before.far)] {
            if now == Memory::default() {
                continue;
            }
            say(value(&format!("{end} {when} Pss"), "KiB", each(now.proportional, before.proportional)));
            say(value(&format!("{end} {when} Rss"), "KiB", each(now.resident, before.resident)));
        }
    }
}
