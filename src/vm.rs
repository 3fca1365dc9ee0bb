//! A real virtual machine: stock QEMU with a Spice display, Debian's kernel, and busybox for all the rest.
//!
//! The demo shows it and the tests are made of it. QEMU is started the way a user would start it, so that what
//! works here works there. The guest boots within seconds even without KVM, brings its extra network card up by
//! DHCP, and runs shell commands that come over a serial port.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use spice_tunnel::vm::{NicRole, Vm};
//! use std::time::Duration;
//!
//! let vm = Vm::builder().ticket("secret").nic("/run/nic.sock", NicRole::Listens).start().await?;
//! vm.booted(Duration::from_secs(60)).await?;
//! let answer = vm.run("ip address show eth0", Duration::from_secs(10)).await?;
//! assert_eq!(answer.status, 0);
//! # Ok(()) }
//! ```

mod host;
mod initramfs;
mod qmp;
mod serial;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

pub use host::{Host, Missing};
pub use initramfs::Initramfs;
use qmp::Qmp;
pub use serial::Answer;
use serial::{Commands, Log};

/// The guest's first program: see the comment in it for the protocol of the serial port.
const INIT: &str = include_str!("vm/init.sh");
const LEASE_SCRIPT: &str = include_str!("vm/lease.sh");
/// Bytes of a disk of 3.5 inches.
const FLOPPY: usize = 1440 << 10;
/// How long QEMU may take to open its connections to us.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What goes wrong with a virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of it is not installed.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file, a socket or a program of the host.
    #[error("{what}: {error}")]
    Host {
        /// What was tried.
        what: String,
        /// What came of it.
        error: io::Error,
    },
    /// QEMU ended by itself.
    #[error("qemu ended ({status}){}", tail(log))]
    Ended {
        /// How it ended.
        status: String,
        /// The last lines of the console and of what it complained.
        log: Vec<String>,
    },
    /// Something did not come in time.
    #[error("waited {after:?} in vain for {what}{}", tail(log))]
    Deadline {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// The last lines of the console and of what QEMU complained.
        log: Vec<String>,
    },
    /// QEMU's control socket answered with an error.
    #[error("qemu refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
}

fn tail(log: &[String]) -> String {
    if log.is_empty() {
        return String::new();
    }
    format!("; the last it said:\n  {}", log.join("\n  "))
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Host { what, error }
}

/// Which side of the card's Unix socket QEMU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicRole {
    /// QEMU listens (`server=on`); the other side connects, as often as it likes. Survives any restart.
    Listens,
    /// QEMU connects (`server=off`) to whoever listens. Before QEMU 8 it tries once; later ones are told to try again
    /// every second.
    Connects,
    /// QEMU connects, again and again, to whoever listens, and shares its guest's rings (`vhost-user`).
    VhostUser,
}

/// Where QEMU's Spice server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpiceAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for SpiceAddress {
    /// As `serve --upstream` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SpiceAddress::Tcp(address) => write!(f, "{address}"),
            SpiceAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What kind of machine is to be started. Can be kept and started again.
#[derive(Debug, Clone)]
pub struct Builder {
    ticket: Option<String>,
    spice: Option<SpiceAddress>,
    nic: Option<(PathBuf, NicRole)>,
    memory_mib: u32,
    init: String,
    floppy: Option<Vec<u8>>,
    archives: Vec<Vec<u8>>,
    extra: Vec<String>,
}

impl Builder {
    /// The Spice password. Without one, ticketing is off.
    #[must_use]
    pub fn ticket(mut self, ticket: impl Into<String>) -> Self {
        self.ticket = Some(ticket.into());
        self
    }

    /// Where the Spice server listens. Without it: on a Unix socket in the machine's own directory.
    #[must_use]
    pub fn spice(mut self, address: SpiceAddress) -> Self {
        self.spice = Some(address);
        self
    }

    /// A network card with its cable at a Unix socket.
    #[must_use]
    pub fn nic(mut self, path: impl Into<PathBuf>, role: NicRole) -> Self {
        self.nic = Some((path.into(), role));
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Another first program, a shell script for busybox, instead of the one that obeys [`Vm::run`].
    #[must_use]
    pub fn init(mut self, script: impl Into<String>) -> Self {
        self.init = script.into();
        self
    }

    /// Boots from a floppy disk that begins with these bytes, instead of Linux. What [`Vm::booted`] and [`Vm::run`] want of
    /// a guest, this one does not do.
    #[must_use]
    pub fn floppy(mut self, content: impl Into<Vec<u8>>) -> Self {
        self.floppy = Some(content.into());
        self
    }

    /// More for the guest's root file system: an archive that the kernel unpacks over what is there (see [`Initramfs`]).
    #[must_use]
    pub fn archive(mut self, archive: impl Into<Vec<u8>>) -> Self {
        self.archives.push(archive.into());
        self
    }

    /// One more argument for QEMU.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// Starts QEMU. It runs when this returns; the guest is booting ([`Vm::booted`]).
    ///
    /// # Errors
    /// What is missing on this machine, or QEMU's own complaint.
    pub async fn start(&self) -> Result<Vm, Error> {
        let host = Host::find()?;
        let directory = tempfile::Builder::new()
            .prefix("spice-tunnel-vm-")
            .tempdir()
            .map_err(failed("a directory for the virtual machine"))?;
        let (name, content) = match &self.floppy {
            Some(content) => {
                let mut disk = content.clone();
                disk.resize(FLOPPY, 0);
                ("floppy", disk)
            }
            None => ("initrd", self.initramfs(&host)?),
        };
        let path = directory.path().join(name);
        std::fs::write(&path, content).map_err(failed(path.display().to_string()))?;
        let listen = |name: &str| {
            let path = directory.path().join(name);
            UnixListener::bind(&path).map_err(failed(path.display().to_string()))
        };
        let (console, command, control) = (listen("console")?, listen("command")?, listen("control")?);
        let spice = self.spice.clone().unwrap_or_else(|| SpiceAddress::Unix(directory.path().join("spice")));
        let version = host.qemu_version().map_err(failed(host.qemu.display().to_string()))?;
        let mut child = Command::new(&host.qemu)
            .args(self.arguments(&host, version, directory.path(), &spice))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed(host.qemu.display().to_string()))?;
        let log = Log::default();
        if let Some(complaints) = child.stderr.take() {
            tokio::spawn(log.clone().keep("qemu", complaints));
        }
        let accept = async {
            let (console, _) = console.accept().await?;
            let (command, _) = command.accept().await?;
            let (control, _) = control.accept().await?;
            Ok::<_, io::Error>((console, command, control))
        };
        let (console, command, control) = tokio::select! {
            accepted = timeout(START_DEADLINE, accept) => match accepted {
                Ok(accepted) => accepted.map_err(failed("qemu's serial ports"))?,
                Err(_) => return Err(log.deadline("qemu to open its serial ports", START_DEADLINE)),
            },
            status = child.wait() => return Err(log.ended(status).await),
        };
        tokio::spawn(log.clone().keep("guest", console));
        let qmp = match timeout(START_DEADLINE, Qmp::new(control)).await {
            Ok(qmp) => qmp?,
            Err(_) => return Err(log.deadline("qemu's control socket", START_DEADLINE)),
        };
        let (command, answers) = Commands::new(command);
        tokio::spawn(answers);
        Ok(Vm {
            child: tokio::sync::Mutex::new(child),
            qmp: tokio::sync::Mutex::new(qmp),
            command,
            log,
            spice,
            _directory: directory,
        })
    }

    fn initramfs(&self, host: &Host) -> Result<Vec<u8>, Error> {
        let read = |path: &Path| std::fs::read(path).map_err(failed(path.display().to_string()));
        let mut archive = Initramfs::new();
        for directory in ["bin", "dev", "etc", "modules"] {
            archive.directory(directory);
        }
        archive.device("dev/console", 5, 1);
        archive.file("bin/busybox", &read(&host.busybox)?);
        archive.file("init", self.init.as_bytes());
        archive.file("etc/lease", LEASE_SCRIPT.as_bytes());
        let mut order = String::new();
        for module in &host.modules {
            let name = host::module_name(module);
            let content = host.read_module(module).map_err(failed(module.display().to_string()))?;
            archive.file(&format!("modules/{name}.ko"), &content);
            order.push_str(&format!("{name}.ko\n"));
        }
        archive.file("modules/order", order.as_bytes());
        let mut all = archive.finish();
        for archive in &self.archives {
            all.extend_from_slice(archive);
        }
        Ok(all)
    }

    fn arguments(
        &self,
        host: &Host,
        version: (u32, u32),
        directory: &Path,
        spice: &SpiceAddress,
    ) -> Vec<String> {
        let in_directory = |name: &str| escape(&directory.join(name));
        let mut spice_option = match spice {
            SpiceAddress::Tcp(address) => format!("addr={},port={}", address.ip(), address.port()),
            SpiceAddress::Unix(path) => format!("unix=on,addr={}", escape(path)),
        };
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| {
            arguments.push(option.to_owned());
            arguments.push(value);
        };
        let memory = format!("{}M", self.memory_mib);
        let shared = matches!(self.nic, Some((_, NicRole::VhostUser)));
        add("-machine", format!("pc,accel=tcg{}", if shared { ",memory-backend=memory" } else { "" }));
        if shared {
            add("-object", format!("memory-backend-memfd,id=memory,size={memory},share=on"));
        }
        add("-m", memory);
        if self.floppy.is_some() {
            add("-drive", format!("file={},format=raw,if=floppy", in_directory("floppy")));
        } else {
            add("-kernel", host.kernel.display().to_string());
            add("-initrd", directory.join("initrd").display().to_string());
            add("-append", "console=tty0 console=ttyS0 loglevel=4 panic=-1 mitigations=off".to_owned());
        }
        add("-display", "none".to_owned());
        add("-device", "qxl-vga".to_owned());
        for (name, option) in [("console", "-serial"), ("command", "-serial"), ("control", "-mon")] {
            add("-chardev", format!("socket,id={name},path={}", in_directory(name)));
            let value =
                if option == "-mon" { "chardev=control,mode=control" } else { &format!("chardev:{name}") };
            add(option, value.to_owned());
        }
        match &self.ticket {
            Some(ticket) => {
                let ticket = ticket.replace(',', ",,");
                add("-object", format!("secret,id=ticket,data={ticket}"));
                spice_option.push_str(",password-secret=ticket");
            }
            None => spice_option.push_str(",disable-ticketing=on"),
        }
        add("-spice", spice_option);
        if let Some((path, role)) = &self.nic {
            let path = escape(path);
            let again = if version < (9, 2) { "reconnect=1" } else { "reconnect-ms=1000" };
            let stream = format!("stream,id=tunnel,addr.type=unix,addr.path={path}");
            let card = match role {
                NicRole::Listens => format!("{stream},server=on"),
                NicRole::Connects if version < (8, 0) => format!("{stream},server=off"),
                NicRole::Connects => format!("{stream},server=off,{again}"),
                NicRole::VhostUser => {
                    add("-chardev", format!("socket,id=tunnel,path={path},{again}"));
                    "vhost-user,id=tunnel,chardev=tunnel".to_owned()
                }
            };
            add("-netdev", card);
            // Without KVM, QEMU 7.2 dies of vhost-user and MSI-X together (it sets up an irqfd).
            let vectors = if shared { ",vectors=0" } else { "" };
            add("-device", format!("virtio-net-pci,netdev=tunnel,romfile={vectors}"));
        }
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        arguments.extend(self.extra.iter().cloned());
        arguments
    }
}

/// A path within one of QEMU's comma-separated options.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A running virtual machine. Dropping it kills QEMU and removes its directory.
#[derive(Debug)]
pub struct Vm {
    child: tokio::sync::Mutex<Child>,
    qmp: tokio::sync::Mutex<Qmp>,
    command: Commands,
    log: Log,
    spice: SpiceAddress,
    _directory: TempDir,
}

impl Vm {
    /// A machine with 256 MiB, no ticket and no network card.
    pub fn builder() -> Builder {
        Builder {
            ticket: None,
            spice: None,
            nic: None,
            memory_mib: 256,
            init: INIT.to_owned(),
            floppy: None,
            archives: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// Where its Spice server listens.
    pub fn spice(&self) -> &SpiceAddress {
        &self.spice
    }

    /// Waits until the guest is up and runs commands. Its network card may still be without an address. Cancel safe.
    ///
    /// # Errors
    /// It takes longer than `within`, or QEMU ends; both come with the last lines of the guest's console.
    pub async fn booted(&self, within: Duration) -> Result<(), Error> {
        let mut ready = self.command.ready.clone();
        let booted = async { ready.wait_for(|ready| *ready).await.is_ok() };
        match timeout(within, booted).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.ended().await),
            Err(_) => Err(self.log.deadline("the guest to boot", within)),
        }
    }

    /// Runs a command in a shell of the guest and waits until it ends. Several may run beside each other.
    ///
    /// # Errors
    /// No answer `within` the time, or QEMU ended. A command that fails is no error: see [`Answer::status`].
    pub async fn run(&self, command: &str, within: Duration) -> Result<Answer, Error> {
        let what = || format!("the guest to run {command:?}");
        let answer = async {
            // Before that, the serial port is not in the mode the commands need.
            self.command.ready.clone().wait_for(|ready| *ready).await.ok()?;
            self.command.run(command).await
        };
        match timeout(within, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.ended().await),
            Err(_) => Err(self.log.deadline(&what(), within)),
        }
    }

    /// Runs a command again and again until it succeeds.
    ///
    /// # Errors
    /// It does not `within` the time; the error names `what` was awaited. Or QEMU ended.
    pub async fn run_until(&self, command: &str, what: &str, within: Duration) -> Result<Answer, Error> {
        let deadline = Instant::now() + within;
        let mut last = String::from("no answer");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.run(command, left).await {
                Ok(answer) if answer.status == 0 => return Ok(answer),
                Ok(answer) => {
                    last = format!("status {} of {command:?}: {}", answer.status, answer.output.trim_end());
                }
                Err(Error::Deadline { .. }) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(self.log.deadline(&format!("{what} (the last try: {last})"), within));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the guest has an address on its card; gives what DHCP told it, as `key=value` words.
    ///
    /// # Errors
    /// As [`Vm::run_until`].
    pub async fn lease(&self, within: Duration) -> Result<String, Error> {
        let answer = self.run_until("cat /tmp/lease", "the guest to get an address by DHCP", within).await?;
        Ok(answer.output.trim().to_owned())
    }

    /// Asks QEMU something over QMP (the QEMU Machine Protocol) and gives its `return` value.
    ///
    /// # Errors
    /// QEMU's own error, or it ended.
    pub async fn qmp(&self, command: &str) -> Result<serde_json::Value, Error> {
        self.qmp_with(command, serde_json::json!({})).await
    }

    /// The same with arguments, an object.
    ///
    /// # Errors
    /// As [`Vm::qmp`].
    pub async fn qmp_with(
        &self,
        command: &str,
        arguments: serde_json::Value,
    ) -> Result<serde_json::Value, Error> {
        self.qmp.lock().await.execute(command, arguments).await
    }

    /// Whether QEMU still runs.
    pub async fn is_running(&self) -> bool {
        matches!(self.child.lock().await.try_wait(), Ok(None))
    }

    /// The last lines of the guest's console and of what QEMU complained.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Lets QEMU end in order and waits for it.
    ///
    /// # Errors
    /// It does not end `within` the time: then it is killed.
    pub async fn quit(self, within: Duration) -> Result<ExitStatus, Error> {
        // QEMU may be gone before it answers.
        let _ = self.qmp.lock().await.execute("quit", serde_json::json!({})).await;
        let mut child = self.child.lock().await;
        match timeout(within, child.wait()).await {
            Ok(status) => status.map_err(failed("qemu")),
            Err(_) => Err(self.log.deadline("qemu to quit", within)),
        }
    }

    /// Kills QEMU, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// The host does not let us.
    pub async fn kill(self) -> Result<(), Error> {
        self.child.lock().await.kill().await.map_err(failed("killing qemu"))
    }

    async fn ended(&self) -> Error {
        let status = timeout(Duration::from_secs(5), async { self.child.lock().await.wait().await }).await;
        match status {
            Ok(status) => self.log.ended(status).await,
            Err(_) => {
                self.log.deadline("qemu to end after it closed its serial ports", Duration::from_secs(5))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(builder: &Builder, version: (u32, u32)) -> String {
        let host = Host {
            qemu: "/qemu".into(),
            kernel: "/kernel".into(),
            modules: Vec::new(),
            busybox: "/busybox".into(),
        };
        let spice = builder.spice.clone().unwrap_or(SpiceAddress::Unix("/a,b/spice".into()));
        builder.arguments(&host, version, Path::new("/a,b"), &spice).join(" ")
    }

    #[test]
    fn commas_are_doubled_wherever_qemu_would_split() {
        let line = line(&Vm::builder().ticket("x,y").nic("/n,ic", NicRole::Listens), (7, 2));
        for part in [
            "-object secret,id=ticket,data=x,,y",
            "-spice unix=on,addr=/a,,b/spice,password-secret=ticket",
            "-netdev stream,id=tunnel,addr.type=unix,addr.path=/n,,ic,server=on -device virtio-net-pci",
            "-chardev socket,id=command,path=/a,,b/command",
            "-initrd /a,b/initrd",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_card_that_connects_tries_again_where_qemu_can() {
        let builder = Vm::builder().nic("/nic", NicRole::Connects);
        for (version, role) in [
            ((7, 2), "server=off "),
            ((8, 0), "server=off,reconnect=1 "),
            ((9, 1), "server=off,reconnect=1 "),
            ((9, 2), "server=off,reconnect-ms=1000 "),
            ((10, 0), "server=off,reconnect-ms=1000 "),
        ] {
            let line = line(&builder, version);
            assert!(line.contains(&format!("addr.path=/nic,{role}")), "{version:?}: {line}");
        }
        assert!(line(&builder, (7, 2)).contains("disable-ticketing=on"));
    }

    #[test]
    fn a_card_that_shares_memory_has_memory_to_share() {
        let builder = Vm::builder().nic("/nic", NicRole::VhostUser);
        for (version, again) in [((7, 2), "reconnect=1"), ((9, 2), "reconnect-ms=1000")] {
            let line = line(&builder, version);
            for part in [
                "-machine pc,accel=tcg,memory-backend=memory -object memory-backend-memfd,id=memory,size=256M,share=on",
                &format!(
                    "-chardev socket,id=tunnel,path=/nic,{again} -netdev vhost-user,id=tunnel,chardev=tunnel"
                ),
            ] {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
    }
}
