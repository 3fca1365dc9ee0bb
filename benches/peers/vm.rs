//! A real virtual machine as the guest: our stream card beside QEMU's own `-netdev user`, both in one guest.
//!
//! QEMU emulates the processor, and busybox is all that is in there; so this says how the two compare, not how fast either is. Up is
//! counted by the receiver. Down cannot be, in there: it is all that was sent, over the time until the guest has closed, which
//! it does when it has read everything.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use spice_tunnel::vm::{Answer, NicRole, Vm};

use super::client::Said;
use super::lab::{Conditions, DIRECTORY, Lab};
use super::wire::{CHUNK, Count, after, now, seconds};
use super::{ours, server};

/// The first argument of the process that has the machine.
pub(crate) const MACHINE: &str = "the-vm";
/// The peers' names.
pub(crate) const STREAM: &str = "vm, our stream card";
pub(crate) const USER: &str = "vm, -netdev user";
const SOURCE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17_001);
const SINK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17_002);
/// The host, as QEMU's own network shows it.
const USER_HOST: &str = "10.0.2.2";
const BOOT: Duration = Duration::from_secs(120);

/// A figure as the process tells it: round, peer, and what.
type Line = (usize, String, Said);

/// Boots a machine and takes all figures of all rounds, telling each.
pub(crate) fn measure(
    rounds: usize,
    time: f64,
    conditions: Conditions,
    tell: &mut dyn FnMut(usize, &str, Said),
) -> Result<(), String> {
    let lab = Lab::new(&["host"], conditions)?;
    let nic = format!("{DIRECTORY}/nic");
    let (mut ours, mapped) = ours::start_beside_vm(&lab, &nic, &[SOURCE, SINK])?;
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let words = [
        own.display().to_string(),
        MACHINE.to_owned(),
        nic,
        mapped[0].to_string(),
        mapped[1].to_string(),
        rounds.to_string(),
        time.to_string(),
    ];
    let mut machine = lab.start("host", "vm", &words.each_ref().map(String::as_str))?;
    let mut told = 0;
    loop {
        let ended = machine.alive();
        let said = std::fs::read_to_string(lab.file("vm.out")).unwrap_or_default();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().skip(told) {
            told += 1;
            if line == "done" {
                return Ok(());
            }
            let (round, peer, said): Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
            tell(round, &peer, said);
        }
        ended?;
        ours.iter_mut().try_for_each(super::lab::Process::alive)?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The process.
pub(crate) fn run(arguments: &[String]) {
    let [nic, source, sink, rounds, time] = arguments else { panic!("expected five arguments") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (rounds, time) = (rounds.parse().unwrap(), time.parse().unwrap());
    let [source, sink] = [source, sink].map(|at| at.parse::<SocketAddr>().unwrap());
    let took = runtime.block_on(all(Path::new(nic), source, sink, rounds, time));
    took.unwrap_or_else(|error| panic!("{error}"));
    println!("done");
}

async fn all(
    nic: &Path,
    source: SocketAddr,
    sink: SocketAddr,
    rounds: usize,
    time: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (source_listener, sink_listener) = (server::listen(SOURCE)?, server::listen(SINK)?);
    let builder = Vm::builder().nic(nic, NicRole::Connects);
    let user = ["-netdev", "user,id=user0", "-device", "virtio-net-pci,netdev=user0,romfile="];
    let vm = user.into_iter().fold(builder, spice_tunnel::vm::Builder::argument).start().await?;
    vm.booted(BOOT).await?;
    vm.lease(BOOT).await?;
    // What nc reads from must not end, or it would close at once what it is to read on.
    let prepare = "ip link set eth1 up && ip address add 10.0.2.15/24 dev eth1 && mkfifo /tmp/endless && \
                   (sleep 100000 >/tmp/endless &)";
    succeeded(vm.run(prepare, BOOT).await?)?;
    let ways = [
        (STREAM, source.to_string(), sink.to_string()),
        (USER, format!("{USER_HOST}:{}", SOURCE.port()), format!("{USER_HOST}:{}", SINK.port())),
    ];
    for round in 1..=rounds {
        for step in 0..ways.len() {
            let (peer, source, sink) = &ways[(round + step) % ways.len()];
            let say = |what: &str, rate: f64| {
                let said = Said::Value { what: what.to_owned(), unit: "MB/s".to_owned(), value: rate };
                println!("{}", serde_json::to_string(&(round, *peer, said)).unwrap());
            };
            let fetch = format!("nc {} </tmp/endless >/dev/null", source.replace(':', " "));
            let (rate, _) = beside(&vm, fetch, &source_listener, time, give).await?;
            say("down", rate);
            let bring = format!("nc {} </dev/zero", sink.replace(':', " "));
            let (rate, _) = beside(&vm, bring, &sink_listener, time, take).await?;
            say("up", rate);
        }
    }
    Ok(())
}

/// Runs a command in the guest, and what it connects to.
async fn beside(
    vm: &Vm,
    command: String,
    listener: &TcpListener,
    time: f64,
    serve: fn(TcpListener, f64) -> io::Result<f64>,
) -> Result<(f64, Answer), Box<dyn std::error::Error>> {
    let listener = listener.try_clone()?;
    let served = tokio::task::spawn_blocking(move || serve(listener, time));
    let within = Duration::from_secs_f64(60.0 + time);
    let answer = vm.run(&command, within).await?;
    // A command that failed never connected, and nobody would come.
    let rate = tokio::time::timeout(Duration::from_secs(5), served).await;
    match rate {
        Ok(rate) => Ok((rate??, answer)),
        Err(_) => Err(format!("{command}: {answer:?}").into()),
    }
}

fn succeeded(answer: Answer) -> Result<(), String> {
    match answer.status {
        0 => Ok(()),
        status => Err(format!("the guest: status {status}: {}", answer.output)),
    }
}

fn give(listener: TcpListener, time: f64) -> io::Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let (buffer, start) = (vec![0; CHUNK], now());
    let end = after(start, time);
    let mut sent = 0;
    while now() < end {
        stream.write_all(&buffer)?;
        sent += buffer.len();
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let rest = stream.read(&mut [0])?;
    assert_eq!(rest, 0, "the guest has nothing to say");
    Ok(sent as f64 / seconds(start, now()) / 1e6)
}

fn take(listener: TcpListener, time: f64) -> io::Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let start = after(now(), 1.0);
    let end = after(start, time);
    let (mut buffer, mut count) = (vec![0; CHUNK], Count::default());
    while now() < end {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other("the guest ended before its time")),
            read => count.add(read, (start, end)),
        }
    }
    // Closed with more to come, it is reset, and the guest ends.
    Ok(count.counted as f64 / time / 1e6)
}
