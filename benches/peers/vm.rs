//! A real virtual machine as the guest: our stream card and our vhost-user card beside QEMU's own `-netdev user`, all in one guest.
//!
//! Each card of ours has its own `serve`, whose time of a processor counts from one figure of it to the next.
//!
//! QEMU emulates the processor, and busybox is all that is in there; so this says how the two compare, not how fast either is. Up is
//! counted by the receiver. Down cannot be, in there: it is all that was sent, over the time until the guest has closed, which
//! it does when it has read everything.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use spice_tunnel::vm::{Answer, Vm};

use super::client::Said;
use super::lab::{Conditions, Lab};
use super::ours::{self, VmCard};
use super::wire::{CHUNK, Count, after, now, seconds};
use super::{proc, server};

/// The first argument of the process that has the machine.
pub(crate) const MACHINE: &str = "the-vm";
/// The peers' names.
pub(crate) const STREAM: &str = "vm, our stream card";
pub(crate) const VHOST_USER: &str = "vm, our vhost-user card";
pub(crate) const USER: &str = "vm, -netdev user";
/// Our cards: the peer, the card, and the guest's address on it.
const OURS: [(&str, VmCard, &str); 2] = [
    (STREAM, VmCard { name: "stream", kind: "listen", subnet: "198.18.0.0/16" }, "198.18.0.9/16"),
    (VHOST_USER, VmCard { name: "vhost", kind: "vhost-user", subnet: "198.19.0.0/16" }, "198.19.0.9/16"),
];
const SOURCE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17_001);
const SINK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17_002);
/// The host, as QEMU's own network shows it.
const USER_HOST: &str = "10.0.2.2";
const BOOT: Duration = Duration::from_secs(120);

/// A figure as the process tells it: round, peer, what, MB/s, and MB in all.
type Line = (usize, String, String, f64, f64);

/// Boots a machine and takes all figures of all rounds, telling each.
pub(crate) fn measure(
    rounds: usize,
    time: f64,
    conditions: Conditions,
    tell: &mut dyn FnMut(usize, &str, Said),
) -> Result<(), String> {
    let lab = Lab::new(&["host"], conditions)?;
    let mut ours = Vec::new();
    let mut places = Vec::new();
    for (peer, card, _) in OURS {
        if !ours::knows_card(&lab, card) {
            eprintln!("ATTENTION: this spice-tunnel is built without cards of the kind {}", card.kind);
            continue;
        }
        let (processes, mapped) = ours::start_beside_vm(&lab, card, &[SOURCE, SINK])?;
        let used = proc::cpu(&[processes[0].pid]);
        ours.push((peer, processes, used));
        places.push((peer, mapped[0], mapped[1]));
    }
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let words = [
        own.display().to_string(),
        MACHINE.to_owned(),
        serde_json::to_string(&places).unwrap(),
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
            let (round, peer, what, rate, all): Line =
                serde_json::from_str(line).map_err(|error| error.to_string())?;
            let value = |what: &str, unit: &str, value: f64| Said::Value {
                what: what.to_owned(),
                unit: unit.to_owned(),
                value,
            };
            tell(round, &peer, value(&what, "MB/s", rate));
            if let Some((_, [serve, _], used)) = ours.iter_mut().find(|(name, ..)| *name == peer) {
                let cpu = proc::cpu(&[serve.pid]);
                let spent = cpu - std::mem::replace(used, cpu);
                tell(
                    round,
                    &peer,
                    value(&format!("{what}, serve"), "s/GB", (spent.user + spent.system) / all * 1e3),
                );
            }
        }
        ended?;
        ours.iter_mut().flat_map(|(_, both, _)| both).try_for_each(super::lab::Process::alive)?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The process.
pub(crate) fn run(arguments: &[String]) {
    let [places, rounds, time] = arguments else { panic!("expected three arguments") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (rounds, time) = (rounds.parse().unwrap(), time.parse().unwrap());
    let places: Vec<Place> = serde_json::from_str(places).unwrap();
    let took = runtime.block_on(all(&places, rounds, time));
    took.unwrap_or_else(|error| panic!("{error}"));
    println!("done");
}

/// A peer, and where the guest finds the two services by it.
type Place = (String, SocketAddr, SocketAddr);

async fn all(places: &[Place], rounds: usize, time: f64) -> Result<(), Box<dyn std::error::Error>> {
    let (source_listener, sink_listener) = (server::listen(SOURCE)?, server::listen(SINK)?);
    // By their addresses the guest knows which card is which.
    let mut arguments = vec!["-netdev".to_owned(), "user,id=user0".to_owned()];
    arguments.extend([
        "-device".to_owned(),
        "virtio-net-pci,netdev=user0,romfile=,mac=52:54:00:00:00:99".to_owned(),
    ]);
    let mut prepare = "set -e; up() { for c in /sys/class/net/eth*; do if grep -q $1\\$ $c/address; then c=${c##*/}; \
                       ip link set $c mtu $3 up; ip address add $2 dev $c; fi; done; }; killall udhcpc; ip address flush dev eth0; \
                       up 00:99 10.0.2.15/24 1500; "
        .to_owned();
    let known = OURS.iter().filter(|(peer, ..)| places.iter().any(|(place, ..)| place == peer));
    for (number, (_, card, guest)) in known.enumerate() {
        let (name, path) = (card.name, card.socket());
        let mut device = format!("virtio-net-pci,netdev={name},romfile=,mac=52:54:00:00:00:0{number}");
        if card.kind == "vhost-user" {
            arguments
                .extend(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"].map(str::to_owned));
            arguments.extend(["-machine", "memory-backend=memory"].map(str::to_owned));
            arguments.extend(["-chardev".to_owned(), format!("socket,id={name},path={path}")]);
            arguments.extend(["-netdev".to_owned(), format!("vhost-user,id={name},chardev={name}")]);
            // As in `spice_tunnel::vm`: without KVM, QEMU 7.2 dies of MSI-X here.
            device.push_str(",vectors=0");
        } else {
            let netdev = format!("stream,id={name},addr.type=unix,addr.path={path},server=off");
            arguments.extend(["-netdev".to_owned(), netdev]);
        }
        arguments.extend(["-device".to_owned(), device]);
        prepare.push_str(&format!("up 00:0{number} {guest} 65520; "));
    }
    // What nc reads from must not end, or it would close at once what it is to read on.
    prepare.push_str("mkfifo /tmp/endless; (sleep 100000 >/tmp/endless &)");
    let vm = arguments.into_iter().fold(Vm::builder(), spice_tunnel::vm::Builder::argument).start().await?;
    vm.booted(BOOT).await?;
    succeeded(vm.run(&prepare, BOOT).await?)?;
    let user = |service: SocketAddr| format!("{USER_HOST}:{}", service.port());
    let mut ways: Vec<_> = places
        .iter()
        .map(|(peer, source, sink)| (peer.as_str(), source.to_string(), sink.to_string()))
        .collect();
    ways.push((USER, user(SOURCE), user(SINK)));
    for round in 1..=rounds {
        for step in 0..ways.len() {
            let (peer, source, sink) = &ways[(round + step) % ways.len()];
            let say = |what: &str, (rate, all): (f64, f64)| {
                println!("{}", serde_json::to_string(&(round, *peer, what, rate, all)).unwrap());
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
    serve: fn(TcpListener, f64) -> io::Result<(f64, f64)>,
) -> Result<((f64, f64), Answer), Box<dyn std::error::Error>> {
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

/// Sends for a time: MB/s, and MB.
fn give(listener: TcpListener, time: f64) -> io::Result<(f64, f64)> {
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
    let all = sent as f64 / 1e6;
    Ok((all / seconds(start, now()), all))
}

/// Receives for a time, after a second: MB/s, and MB with those of the second.
fn take(listener: TcpListener, time: f64) -> io::Result<(f64, f64)> {
    let (mut stream, _) = listener.accept()?;
    let start = after(now(), 1.0);
    let end = after(start, time);
    let (mut buffer, mut count, mut all) = (vec![0; CHUNK], Count::default(), 0);
    while now() < end {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other("the guest ended before its time")),
            read => {
                all += read;
                count.add(read, (start, end));
            }
        }
    }
    // Closed with more to come, it is reset, and the guest ends.
    Ok((count.counted as f64 / time / 1e6, all as f64 / 1e6))
}
