//! One machine.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Once;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::vm::rig::{Program, soon, until};

/// The files of `/etc` that a machine has of its own.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files mdns4_minimal [NOTFOUND=return] dns\n";
/// What the directories of machines begin with; behind it is the process that made them.
const PREFIX: &str = "spice-tunnel-lab-";
const BUS: &str = include_str!("bus.conf");

/// See the module above.
pub(crate) struct Machine {
    name: &'static str,
    /// Its first process, as we see it.
    pid: u32,
    dir: TempDir,
    // Closes the first process's standard input.
    _holder: Child,
}

impl Machine {
    /// With these lines in its `/etc/hosts`.
    pub(crate) async fn boot(name: &'static str, hosts: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network devices and runs CUPS: it needs root, or what \
             `unshare --user --map-root-user --map-auto --net` makes of a user"
        );
        static DEAD_RUNS: Once = Once::new();
        DEAD_RUNS.call_once(remove_what_dead_runs_left);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost\n{hosts}"));
        write("etc/resolv.conf", "");
        write("etc/nsswitch.conf", NSSWITCH);
        write("bus.conf", BUS);
        write("setup", include_str!("machine.sh"));
        for part in ["spool", "cache", "log", "etc/ssl"] {
            std::fs::create_dir_all(dir.path().join("cups").join(part)).unwrap();
        }
        // As the package brings them, but for a log that says something, and tries that are not five minutes apart.
        for file in ["cupsd.conf", "cups-files.conf", "snmp.conf"] {
            let text = std::fs::read_to_string(format!("/usr/share/cups/{file}.default"));
            let text = text.expect("this test needs CUPS: tests/install-prerequisites.sh");
            write(
                &format!("cups/etc/{file}"),
                &text.replace("LogLevel warn", "LogLevel info\nJobRetryInterval 10"),
            );
        }
        for file in ["raw.convs", "raw.types"] {
            write(
                &format!("cups/etc/{file}"),
                &std::fs::read_to_string(format!("/etc/cups/{file}")).unwrap_or_default(),
            );
        }
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
            ])
            .arg(dir.path().join("setup"))
            .arg(name)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this test needs unshare of util-linux");
        let mut said = BufReader::new(holder.stdout.take().unwrap()).lines();
        let line = soon("a machine to be there", said.next_line()).await.unwrap();
        assert_eq!(
            line.as_deref(),
            Some("ready"),
            "{name} cannot be set up: is this a container without --privileged?"
        );
        let pid = only_child(holder.id().unwrap()).expect("unshare has its child");
        Self { name, pid, dir, _holder: holder }
    }

    /// Its first process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A directory that everybody sees under the same name, and that goes with the machine.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in there.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command in here, which ends with whoever starts it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // nsenter stops as what it started is stopped, and would then outlive us: nothing could end the machine.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "nsenter"])
            .args(["--target", &self.pid.to_string(), "--net", "--mount", "--uts", "--pid", "--"])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .env("LC_ALL", "C.UTF-8")
            .kill_on_drop(true);
        command
    }

    /// A command that has to succeed, and what it says.
    pub(crate) async fn run(&self, words: &[&str]) -> String {
        let (program, arguments) = words.split_first().unwrap();
        let output = self.command(program).args(arguments).stdin(Stdio::null()).output();
        let output = soon(program, output).await.unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{words:?} on {}: {}\n{said}{complained}", self.name, output.status);
        said.into_owned()
    }

    /// [`run`](Self::run), of words between spaces.
    pub(crate) async fn sh(&self, words: &str) -> String {
        self.run(&words.split_whitespace().collect::<Vec<_>>()).await
    }

    /// Starts a program in here that goes on.
    pub(crate) fn start(&self, name: &'static str, program: &str, arguments: &[&str]) -> Program {
        let mut command = self.command(program);
        command.args(arguments);
        Program::start(name, command)
    }

    /// Our program in here.
    pub(crate) fn tunnel(&self, arguments: &[&str]) -> Program {
        let mut command = self.command(env!("CARGO_BIN_EXE_spice-tunnel"));
        command.args(arguments).env("RUST_LOG", "debug").env("NO_COLOR", "1");
        Program::start("spice-tunnel", command)
    }

    /// A system bus, and avahi that knows the machine by this name.
    pub(crate) async fn announce(&self, host: &str) -> [Program; 2] {
        let bus = self.path("bus.conf").display().to_string();
        let bus =
            self.start("dbus-daemon", "dbus-daemon", &["--nofork", "--nopidfile", "--config-file", &bus]);
        let conf = self.path("avahi.conf");
        let text = format!(
            "[server]\nhost-name={host}\nuse-ipv4=yes\nuse-ipv6=yes\n\
             [publish]\npublish-hinfo=no\npublish-workstation=no\n[rlimits]\n"
        );
        std::fs::write(&conf, text).unwrap();
        until("the system bus", || async { self.exists("/run/dbus/system_bus_socket").then_some(()) }).await;
        let conf = conf.display().to_string();
        let arguments = ["--no-drop-root", "--no-chroot", "--no-rlimits", "-f", &conf];
        let mut avahi = self.start("avahi-daemon", "avahi-daemon", &arguments);
        avahi.line("that it runs", |line| line.contains("Server startup complete").then_some(())).await;
        [bus, avahi]
    }

    /// Whether the machine has such a file.
    pub(crate) fn exists(&self, path: &str) -> bool {
        Path::new(&format!("/proc/{}/root{path}", self.pid)).exists()
    }

    /// Does something in this machine's network: what it opens there stays there.
    pub(crate) fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let network = std::fs::File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        // A thread is in one network; this one ends in there.
        std::thread::scope(|scope| {
            let act = || {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            };
            scope.spawn(act).join().unwrap()
        })
    }

    /// Listens in here.
    pub(crate) fn listen(&self, at: SocketAddr) -> TcpListener {
        let listener = self.within(|| std::net::TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// Connects from here.
    pub(crate) async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = self.within(|| match to.ip() {
            IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        });
        socket?.connect(to).await
    }
}

/// The process behind a [`Program`] of a machine, as we see it.
pub(crate) fn pid_of(program: &Program) -> u32 {
    only_child(program.pid()).expect("the program runs")
}

/// Sends the process behind it a signal.
pub(crate) async fn signal(program: &Program, name: &str) {
    let sent = Command::new("kill").args([name, &pid_of(program).to_string()]).status().await.unwrap();
    assert!(sent.success(), "kill {name}");
}

/// Directories of runs that were killed: nothing else of them stays.
fn remove_what_dead_runs_left() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if run.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another run may be at it as well.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn only_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
