//! The guest: a machine whose only card is the TAP device of `serve`, with DHCP, CUPS and, if wanted, avahi.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::Machine;
use crate::vm::rig::{Program, soon, until};

/// See the module's text.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) serve: Program,
    /// What the user's side connects to.
    pub(crate) server: String,
    _announcing: Option<[Program; 2]>,
    cups: Option<Program>,
}

/// What CUPS calls a job: QUEUE-NUMBER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job(pub(crate) String);

impl Guest {
    /// With an address, and nothing else.
    pub(crate) async fn boot(more: &[&str]) -> Self {
        Self::boot_on("tap:tap0", more).await
    }

    /// The same, with tap0 used otherwise.
    pub(crate) async fn boot_on(nic: &str, more: &[&str]) -> Self {
        let machine = Machine::boot("guest", "").await;
        let socket = machine.path("spice.sock").display().to_string();
        let listen = format!("unix:{socket}");
        let always = ["serve", "--standalone", "--nic", nic, "--listen", &listen];
        let mut serve = machine.tunnel(&[&always[..], more].concat());
        serve.line("that it is up", |line| line.contains("the virtual network is up").then_some(())).await;
        let guest =
            Self { machine, serve, server: format!("spice+unix://{socket}"), _announcing: None, cups: None };
        guest.lease().await;
        guest
    }

    /// Asks for an address, as whatever manages the guest's cards does.
    pub(crate) async fn lease(&self) -> Ipv4Addr {
        let script = self.machine.path("lease");
        std::fs::write(&script, include_str!("lease.sh")).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = self.machine.command("busybox");
        command
            .args(["udhcpc", "-f", "-q", "-n", "-i", "tap0", "-s"])
            .arg(&script)
            .env("resolv", self.machine.path("etc/resolv.conf"));
        let output = soon("a lease", command.output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let leased =
            said.lines().find_map(|line| line.split_once("lease of ")?.1.split(' ').next()?.parse().ok());
        leased.unwrap_or_else(|| panic!("the guest got no address: {said}"))
    }

    /// Starts avahi, before CUPS.
    pub(crate) async fn avahi(&mut self) {
        self._announcing = Some(self.machine.announce("guest").await);
    }

    /// Starts CUPS, as Debian configures it.
    pub(crate) async fn cups(&mut self) {
        self.cups = Some(self.machine.start("cupsd", "cupsd", &["-f"]));
        until("CUPS to answer", || async {
            self.ask(&["lpstat", "-r"]).await.filter(|said| said.contains("is running"))
        })
        .await;
    }

    fn cups_log(&self) -> String {
        std::fs::read_to_string(self.machine.path("cups/log/error_log")).unwrap_or_default()
    }

    /// What a command says, if it succeeds.
    pub(crate) async fn ask(&self, words: &[&str]) -> Option<String> {
        let (program, arguments) = words.split_first().unwrap();
        let output = self.machine.command(program).args(arguments).output().await.unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A queue for a device that the guest has been told of. `model`: `everywhere`, or `raw`.
    pub(crate) async fn queue(&self, name: &str, device: &str, model: &str) {
        self.machine.run(&["lpadmin", "-p", name, "-E", "-v", device, "-m", model]).await;
        if model == "everywhere" {
            // cupsd asks the printer in a thread of its own, beside which other requests do not do well: it is not bothered before it says in
            // its log that it is done.
            let done = format!("Printer \"{name}\" is now available");
            until("CUPS to have asked the printer", || async {
                self.cups_log().contains(&done).then_some(())
            })
            .await;
            let uri = format!("ipp://localhost/printers/{name}");
            until("CUPS to know the printer", || async {
                let said = self.ask(&["ipptool", "-tv", &uri, "get-printer-attributes.test"]).await?;
                said.contains("IPP Everywhere").then_some(())
            })
            .await;
        }
    }

    /// Prints a file.
    pub(crate) async fn print(&self, queue: &str, options: &[&str], file: &Path) -> Job {
        let file = file.display().to_string();
        let options = options.iter().flat_map(|option| ["-o", option]);
        let words: Vec<&str> =
            ["lp", "-d", queue].into_iter().chain(options).chain([file.as_str()]).collect();
        let said = self.machine.run(&words).await;
        let job = said.strip_prefix("request id is ").and_then(|rest| rest.split(' ').next());
        Job(job.unwrap_or_else(|| panic!("lp said {said:?}")).to_owned())
    }

    /// What CUPS says of a job: its state, and why.
    pub(crate) async fn state(&self, job: &Job) -> (String, String) {
        let (_, number) = job.0.rsplit_once('-').unwrap();
        let uri = format!("ipp://localhost/jobs/{number}");
        let words = ["ipptool", "-tv", &uri, "get-job-attributes.test"];
        let said = self.ask(&words).await.unwrap_or_default();
        let value = |name: &str| {
            let line = said.lines().find(|line| line.trim_start().starts_with(&format!("{name} (")));
            line.and_then(|line| line.split_once(" = "))
                .map_or_else(String::new, |(_, value)| value.to_owned())
        };
        (value("job-state"), value("job-printer-state-message"))
    }

    /// Waits until CUPS says so of a job.
    pub(crate) async fn job_is(&self, job: &Job, state: &str, limit: Duration) {
        let began = Instant::now();
        loop {
            let (is, why) = self.state(job).await;
            if is == state {
                return;
            }
            assert!(began.elapsed() < limit, "{} is {is:?} ({why}) after {limit:?}, expected {state}", job.0);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Jobs that CUPS still has before it.
    async fn waiting(&self) -> Vec<String> {
        let said = self.machine.run(&["lpstat", "-o"]).await;
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Waits until no queue has a job before it.
    pub(crate) async fn all_printed(&self, limit: Duration) {
        let began = Instant::now();
        loop {
            let waiting = self.waiting().await;
            if waiting.is_empty() {
                return;
            }
            assert!(began.elapsed() < limit, "still waiting after {limit:?}: {waiting:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.cups_log();
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            if let Some(status) = self.cups.as_mut().and_then(Program::has_ended) {
                eprintln!("--- the guest's CUPS ended by itself: {status}");
            }
            eprintln!("--- the guest's CUPS logged:");
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
