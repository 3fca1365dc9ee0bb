//! The load's near end: takes one figure, from where the guest is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::proc::{Cpu, cpu, machine};
use super::stats::{jain, percentile};
use super::wire::{CHUNK, Count, Request, after, now, seconds, sleep_until};

/// What to measure, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Where the service is found from here.
    pub(crate) to: SocketAddr,
    /// The peer's processes.
    pub(crate) ends: Ends,
    /// The service's process.
    pub(crate) service: u32,
    /// For how long.
    pub(crate) seconds: f64,
    /// How long bulk runs before it counts.
    pub(crate) warm: f64,
    pub(crate) job: Job,
}

/// A peer's processes, by where they would be: beside the guest, and at the user's desk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ends {
    pub(crate) near: Vec<u32>,
    pub(crate) far: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Way {
    Down,
    Up,
}

/// A metric, or the part of one that is taken at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Job {
    /// So many streams at once; and what they cost.
    Bulk { way: Way, streams: usize, costs: bool },
    /// A byte there and back, again and again.
    RoundTrip,
    /// Connect, 64 bytes there and back, close: so many at once.
    Connections { at_once: usize },
    /// The same figures, with so many connections open that do nothing.
    AmongIdle { count: usize, patience: f64 },
    /// What connections cost: idle, after a burst on all of them, and after a pause.
    Memory { count: usize, burst: u32, pause: f64, patience: f64 },
    /// A byte there and back, alone and beside bulk.
    BesideBulk,
}

/// One number, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Said {
    /// `what` is empty for the metric's main figure.
    Value {
        what: String,
        unit: String,
        value: f64,
    },
    Failure {
        what: String,
        why: String,
    },
}

/// Takes the figures and says each as soon as it is there.
pub(crate) fn run(order: &Order, say: &mut dyn FnMut(Said)) -> io::Result<()> {
    let mut tell = |what: &str, unit: &str, value: f64| {
        say(Said::Value { what: what.to_owned(), unit: unit.to_owned(), value });
    };
    match order.job {
        Job::Bulk { way, streams, costs } => {
            let bulk = bulk(order, way, streams)?;
            tell("", "MB/s", bulk.rate());
            if streams > 1 {
                tell("fairness", "", jain(&bulk.shares).ok_or_else(|| io::Error::other("nothing came"))?);
            }
            if costs {
                bulk.tell_cpu(&mut tell);
            }
            bulk.end
        }
        Job::RoundTrip => {
            let times = round_trips(order)?;
            tell_times("", &times, &mut tell)
        }
        Job::Connections { at_once } => {
            tell("", "/s", connections(order, at_once)?);
            Ok(())
        }
        Job::AmongIdle { count, patience } => super::held::among_idle(order, count, patience, say),
        Job::Memory { count, burst, pause, patience } => {
            super::held::memory_of(order, count, burst, pause, patience, say)
        }
        Job::BesideBulk => beside_bulk(order, &mut tell),
    }
}

pub(super) fn tell_times(what: &str, times: &[f64], tell: &mut dyn FnMut(&str, &str, f64)) -> io::Result<()> {
    for percent in [50.0, 99.0] {
        let value = percentile(times, percent).ok_or_else(|| io::Error::other("no byte came back"))?;
        tell(format!("{what} p{percent}").trim_start(), "µs", value);
    }
    Ok(())
}

/// How long an answer may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn connect(order: &Order) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&order.to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What bulk was.
pub(super) struct Bulk {
    /// Bytes of each stream in the time that counts.
    shares: Vec<f64>,
    took: f64,
    near: Cpu,
    far: Cpu,
    load: Cpu,
    /// Processors that somebody else had meanwhile: other processes, and the hypervisor.
    others: f64,
    /// Whether all came to its end behind the time that counts. What stalls has a rate nonetheless.
    pub(super) end: io::Result<()>,
}

impl Bulk {
    fn bytes(&self) -> f64 {
        self.shares.iter().sum()
    }

    /// MB/s.
    pub(super) fn rate(&self) -> f64 {
        self.bytes() / self.took / 1e6
    }

    fn tell_cpu(&self, tell: &mut dyn FnMut(&str, &str, f64)) {
        let gigabytes = self.bytes() / 1e9;
        // Of next to nothing, there is no saying what it costs.
        if gigabytes < 0.01 {
            return;
        }
        for (end, cpu) in [("near", self.near), ("far", self.far), ("load", self.load)] {
            tell(&format!("cpu {end} user"), "s/GB", cpu.user / gigabytes);
            tell(&format!("cpu {end} system"), "s/GB", cpu.system / gigabytes);
        }
        let both = [self.near, self.far].map(|cpu| cpu.user + cpu.system);
        tell("others", "processors", self.others);
        tell("cpu", "s/GB", both.iter().sum::<f64>() / gigabytes);
    }
}

struct Used {
    at: u64,
    near: Cpu,
    far: Cpu,
    load: Cpu,
    /// Of the whole machine: worked, and stolen.
    all: (f64, f64),
}

impl Used {
    fn now(order: &Order) -> Self {
        let load = cpu(&[std::process::id(), order.service]);
        Self { at: now(), near: cpu(&order.ends.near), far: cpu(&order.ends.far), load, all: machine() }
    }
}

pub(super) fn bulk(order: &Order, way: Way, streams: usize) -> io::Result<Bulk> {
    let connected: Vec<TcpStream> = (0..streams).map(|_| connect(order)).collect::<io::Result<_>>()?;
    let start = after(now(), 0.02 + order.warm);
    let end = after(start, order.seconds);
    thread::scope(|scope| {
        let running: Vec<_> = connected
            .into_iter()
            .map(|stream| {
                scope.spawn(move || match way {
                    Way::Down => down(stream, start, end),
                    Way::Up => up(stream, start, end),
                })
            })
            .collect();
        sleep_until(start);
        let before = Used::now(order);
        sleep_until(end);
        let used = Used::now(order);
        let mut shares = Vec::new();
        let mut all_ended = Ok(());
        for stream in running {
            let (counted, ended) = stream.join().unwrap()?;
            shares.push(counted as f64);
            all_ended = all_ended.and(ended);
        }
        // Looking at the processes takes a moment at both ends, and what it sees is spread over a bit more than was counted.
        let part = order.seconds / seconds(before.at, used.at);
        let (near, far, load) = (used.near - before.near, used.far - before.far, used.load - before.load);
        let known: f64 = [near, far, load].map(|cpu| cpu.user + cpu.system).iter().sum();
        let all = used.all.0 - before.all.0 + used.all.1 - before.all.1;
        let within = |cpu: Cpu| Cpu { user: cpu.user * part, system: cpu.system * part };
        Ok(Bulk {
            shares,
            end: all_ended,
            took: order.seconds,
            near: within(near),
            far: within(far),
            load: within(load),
            others: (all - known).max(0.0) / seconds(before.at, used.at),
        })
    })
}

/// What was counted, and whether it ended.
type Counted = (u64, io::Result<()>);

fn down(mut stream: TcpStream, start: u64, end: u64) -> io::Result<Counted> {
    Request::Source { end: after(end, 0.01) }.send(&mut stream, b"")?;
    let mut buffer = vec![0; CHUNK];
    let mut count = Count::default();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if now() < end => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Ok((count.counted, Ok(()))),
            Ok(read) => count.add(read, (start, end)),
            Err(error) if now() < end => return Err(error),
            Err(error) => return Ok((count.counted, Err(stalled(&error)))),
        }
    }
}

fn stalled(error: &io::Error) -> io::Error {
    io::Error::other(format!("it did not come to an end: {}", why(error)))
}

/// An error in words: of a socket with a timeout, the system says that it is temporarily unavailable.
pub(crate) fn why(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::WouldBlock {
        return format!("it stalled for {} s", PATIENCE.as_secs());
    }
    error.to_string()
}

fn up(mut stream: TcpStream, start: u64, end: u64) -> io::Result<Counted> {
    Request::Sink { start, end }.send(&mut stream, b"")?;
    // As often as it is looked whether that is enough.
    stream.set_write_timeout(Some(Duration::from_millis(50)))?;
    let (buffer, mut sent) = (vec![0; CHUNK], 0);
    while now() < end {
        match stream.write(&buffer) {
            Ok(written) => sent += written as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let mut number = [0; 8];
    stream.read_exact(&mut number)?;
    let counted = u64::from_le_bytes(number);
    let ended = stream.read_exact(&mut number);
    let total = u64::from_le_bytes(number);
    Ok(match ended {
        Err(error) => (counted, Err(stalled(&error))),
        Ok(()) if total == sent => (counted, Ok(())),
        Ok(()) => (counted, Err(io::Error::other(format!("{sent} bytes were sent, and {total} came")))),
    })
}

/// Microseconds of each.
pub(super) fn round_trips(order: &Order) -> io::Result<Vec<f64>> {
    let mut stream = connect(order)?;
    Request::Echo { size: 1 }.send(&mut stream, b"")?;
    let (mut times, mut byte) = (Vec::new(), [0]);
    let mut exchange = || {
        let sent = now();
        stream.write_all(b"k")?;
        stream.read_exact(&mut byte)?;
        io::Result::Ok(seconds(sent, now()) * 1e6)
    };
    // The first ones set the way up.
    for _ in 0..3 {
        exchange()?;
    }
    let end = after(now(), order.seconds);
    while now() < end {
        times.push(exchange()?);
    }
    Ok(times)
}

/// How many went well per second.
pub(super) fn connections(order: &Order, at_once: usize) -> io::Result<f64> {
    const MESSAGE: [u8; 64] = [b'c'; 64];
    let one = || {
        let mut stream = connect(order)?;
        Request::Echo { size: MESSAGE.len() as u32 }.send(&mut stream, &MESSAGE)?;
        let mut answer = [0; MESSAGE.len()];
        stream.read_exact(&mut answer)?;
        stream.shutdown(Shutdown::Write)?;
        match (answer == MESSAGE, stream.read(&mut answer)?) {
            (true, 0) => Ok(()),
            _ => Err(io::Error::other("the answer was another one")),
        }
    };
    let start = now();
    let end = after(start, order.seconds);
    let done = thread::scope(|scope| {
        let all = || {
            let mut done = 0u64;
            while now() < end {
                one()?;
                done += 1;
            }
            io::Result::Ok(done)
        };
        let running: Vec<_> = (0..at_once).map(|_| scope.spawn(all)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum::<io::Result<u64>>()
    })?;
    Ok(done as f64 / seconds(start, now()))
}

/// Keystrokes come at all times, bulk fills what it finds.
fn beside_bulk(order: &Order, tell: &mut dyn FnMut(&str, &str, f64)) -> io::Result<()> {
    tell_times("alone", &round_trips(order)?, tell)?;
    for (way, title) in [(Way::Down, "beside bulk down"), (Way::Up, "beside bulk up")] {
        let bulk_order = Order { seconds: order.seconds + 0.5, ..order.clone() };
        let (times, bulk) = thread::scope(|scope| {
            let running = scope.spawn(|| bulk(&bulk_order, way, 1));
            thread::sleep(Duration::from_secs_f64(order.warm));
            (round_trips(order), running.join().unwrap())
        });
        tell_times(title, &times?, tell)?;
        let bulk = bulk?;
        tell(&format!("{title}, the bulk"), "MB/s", bulk.rate());
        bulk.end?;
    }
    Ok(())
}
