//! Where a peer runs: namespaces of networks, processes and mounts, of which nothing stays.
//!
//! All namespaces live as long as their first process does, and that reads its standard input from us. So whatever ends the
//! benchmark (its end, a panic, Ctrl-C, `kill -9`), the kernel ends every process of a peer, and takes the devices, the mounts
//! and the files with them: what peers write is in a file system in memory that only they see. The machine's own `/dev/net/tun`
//! and `/run` are not touched: in here there are others, and the device is for everybody, as pasta needs it, which is `nobody`
//! when it opens it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where peers write, as they see it.
pub(crate) const DIRECTORY: &str = "/run/peers";
/// For what should take a moment.
pub(crate) const SOON: Duration = Duration::from_secs(15);

const SETUP: &str = "
    set -e
    mount -t tmpfs tmpfs /run
    mkdir -p /run/peers /run/sshd
    mknod -m 666 /run/tun c 10 200
    mount --bind /run/tun /dev/net/tun
    for net in $NETS; do
        ip netns add $net
        ip -netns $net link set lo up
    done
    echo ready
    exec cat >/dev/null";

/// What each network has otherwise than a new one. Sizes of socket buffers stay as they are. Ports do not run out for the minute
/// that the kernel remembers a connection, and those that peers listen on are not given to others.
const SETTINGS: &[(&str, &str)] = &[
    ("ip_local_reserved_ports", "2200,5900,17000-18000"),
    ("ip_local_port_range", "1024 65001"),
    ("tcp_tw_reuse", "1"),
    ("tcp_max_tw_buckets", "1024"),
];

/// What is the same for everybody, if the user wants it otherwise than the machine has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditions {
    /// The processors of peers, as `taskset -c` takes them.
    pub(crate) peers: Option<String>,
    /// Those of both ends of the load.
    pub(crate) load: Option<String>,
    /// TCP's congestion control.
    pub(crate) congestion: Option<String>,
    /// Our program, if not the one that is built with this.
    pub(crate) program: Option<String>,
}

impl Conditions {
    /// What stands before the words of a program of the load.
    pub(crate) fn load_words(&self) -> Vec<&str> {
        self.load.as_deref().map_or_else(Vec::new, |list| vec!["taskset", "-c", list])
    }
}

/// Namespaces with networks in them. Dropping it ends all that runs in here.
pub(crate) struct Lab {
    holder: Child,
    /// Of the first process, as we see it.
    first: u32,
    pub(crate) conditions: Conditions,
}

impl Lab {
    /// With these networks.
    pub(crate) fn new(nets: &[&str], conditions: Conditions) -> Result<Self, String> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SETUP])
            .env("NETS", nets.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line);
        let first = only_child(holder.id());
        let mut lab = Self { holder, first: 0, conditions };
        match (said, first, line.trim()) {
            (Ok(_), Some(first), "ready") => lab.first = first,
            _ => {
                return Err(
                    "no namespaces can be made here: is this a container without --privileged?".into()
                );
            }
        }
        nets.iter().try_for_each(|net| lab.tune(&lab.net(net)))?;
        Ok(lab)
    }

    /// Makes a network's settings those of all.
    pub(crate) fn tune(&self, net: &Path) -> Result<(), String> {
        let congestion = self.conditions.congestion.as_deref();
        let congestion = congestion.map(|name| ("tcp_congestion_control", name));
        let write = |(name, value): (&str, &str)| {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).map_err(|error| {
                format!("net.ipv4.{name} cannot be {value} in a network of its own: {error}")
            })
        };
        within(net, || SETTINGS.iter().copied().chain(congestion).try_for_each(write))?
    }

    /// A path in here, as we see it.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// A file of [`DIRECTORY`], as we see it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.outside(DIRECTORY).join(name)
    }

    /// A network in here, as we see it.
    pub(crate) fn net(&self, name: &str) -> PathBuf {
        self.outside("/run/netns").join(name)
    }

    fn command(&self, net: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string(), "--mount", "--pid", "--", "nsenter"])
            .arg(format!("--net=/run/netns/{net}"))
            .arg("--")
            .args(words)
            .env("LC_ALL", "C.UTF-8")
            .env("TMPDIR", DIRECTORY)
            .stdin(Stdio::null());
        command
    }

    /// Runs something in one of the networks that has to succeed, and gives what it says.
    pub(crate) fn run(&self, net: &str, words: &str) -> Result<String, String> {
        self.run_words(net, &words.split_whitespace().collect::<Vec<_>>())
    }

    /// [`run`](Self::run), with words as they are.
    pub(crate) fn run_words(&self, net: &str, words: &[&str]) -> Result<String, String> {
        let output = self.command(net, words).output().map_err(|error| format!("nsenter: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(format!(
                "`{}`: {said}{}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            )),
        }
    }

    /// Starts a program of a peer in one of the networks. What it says goes to files with this name.
    pub(crate) fn start(&self, net: &str, name: &str, words: &[&str]) -> Result<Process, String> {
        let list = self.conditions.peers.as_deref();
        let before = list.map_or_else(Vec::new, |list| vec!["taskset", "-c", list]);
        let file = |kind: &str| File::create(self.file(&format!("{name}.{kind}")));
        let start = || {
            let mut command = self.command(net, &[&before[..], words].concat());
            command
                .env("RUST_LOG", "warn")
                .env("NO_COLOR", "1")
                .stdout(file("out")?)
                .stderr(file("log")?)
                .spawn()
        };
        let child = start().map_err(|error| format!("{name}: {error}"))?;
        let mut process = Process { child, pid: 0, log: self.file(&format!("{name}.log")) };
        process.pid = self.until(&format!("{name} to start"), || {
            process.alive()?;
            Ok(only_child(process.child.id()))
        })?;
        Ok(process)
    }

    /// Waits for something that comes by itself.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        mut poll: impl FnMut() -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(value) = poll()? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                return Err(format!("waited {SOON:?} in vain for {what}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until somebody listens there, as long as these processes live.
    pub(crate) fn listens(&self, net: &Path, at: SocketAddr, of: &mut [&mut Process]) -> Result<(), String> {
        self.until(&format!("a connection to {at}"), || {
            of.iter_mut().try_for_each(|process| process.alive())?;
            let tried = within(net, || TcpStream::connect_timeout(&at, Duration::from_secs(2)));
            Ok(tried?.ok().map(drop))
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The first process ends when its input does, and takes all others with it before what waits for it goes on. What has
        // to be torn down keeps the machine busy for a moment, which is to be nobody else's.
        drop(self.holder.stdin.take());
        let deadline = Instant::now() + SOON;
        while matches!(self.holder.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A program of a peer. It ends with its [`Lab`], or before, when this is dropped.
pub(crate) struct Process {
    /// What started it, and waits for it.
    child: Child,
    /// Itself, as we see it.
    pub(crate) pid: u32,
    log: PathBuf,
}

impl Process {
    /// Fails with what it said last if it has ended.
    pub(crate) fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                let how = ended.ok().flatten().map_or_else(String::new, |status| status.to_string());
                let name = self.log.file_stem().unwrap_or_default().display();
                Err(format!("{name} has ended ({how}): {}", last.join(" / ")))
            }
        }
    }

    /// The first process that it started, in a network of its own, once there is one.
    pub(crate) fn child(&self) -> Option<u32> {
        only_child(self.pid)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        // As long as what waits for it is there, its number is nobody else's.
        if let (Some(pid), Ok(None)) = (pid, self.child.try_wait()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does something in a network: what it opens there stays there.
pub(crate) fn within<T: Send>(net: &Path, act: impl FnOnce() -> T + Send) -> Result<T, String> {
    let file = File::open(net).map_err(|error| format!("{}: {error}", net.display()))?;
    // A thread is in one network; this one ends in there.
    thread::scope(|scope| {
        let moved = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(act())
        });
        moved.join().unwrap().map_err(|error: rustix::io::Errno| format!("{}: {error}", net.display()))
    })
}

fn only_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
