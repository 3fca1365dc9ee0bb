//! The two machines between which a peer works: the one beside the guest, and the user's desk with the service; and what lies
//! between them.

use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::lab::{Conditions, Lab, Process};
use super::{delay, server};

/// The service's port.
const PORT: u16 = 17000;
/// The user's desk and the guest's host, where they are apart.
const DESK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// How far it is from the guest's host to the user's desk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// None: it is the same machine.
    Here,
    /// So many milliseconds there and back.
    Far(u64),
}

/// See the module's text. There is a network `guest` for the guest.
pub(crate) struct Site {
    pub(crate) service: Process,
    /// What delays, where netem is not there.
    _delay: Option<Process>,
    /// Behind the processes in it, which end first.
    pub(crate) lab: Lab,
    /// The network of the guest's host.
    pub(crate) near: &'static str,
    /// That of the user's desk.
    pub(crate) far: &'static str,
    /// The host's address on what lies between.
    pub(crate) host: Ipv4Addr,
    /// The desk's.
    pub(crate) desk: Ipv4Addr,
}

impl Site {
    pub(crate) fn new(distance: Distance, conditions: &Conditions) -> Result<Self, String> {
        let lab = Lab::new(&["guest", "host", "desk"], conditions.clone())?;
        let (near, far, host, desk, between) = match distance {
            Distance::Here => ("host", "host", Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, None),
            Distance::Far(milliseconds) => {
                let round_trip = Duration::from_millis(milliseconds);
                (
                    "host",
                    "desk",
                    HOST,
                    DESK,
                    delay::between(&lab, ("host", HOST), ("desk", DESK), round_trip)?,
                )
            }
        };
        let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
        let own = own.display().to_string();
        let words = [conditions.load_words(), vec![&own, SERVE]].concat();
        let mut service = lab.start(far, "service", &words)?;
        lab.listens(&lab.net(near), SocketAddr::new(desk.into(), PORT), &mut [&mut service])?;
        Ok(Self { service, _delay: between, lab, near, far, host, desk })
    }

    /// Whether host and desk are one machine, with one loopback.
    pub(crate) fn together(&self) -> bool {
        self.near == self.far
    }

    /// The service, as the guest's host reaches it.
    pub(crate) fn service_at(&self) -> SocketAddr {
        SocketAddr::new(self.desk.into(), PORT)
    }

    /// The service, as the user's desk reaches it.
    pub(crate) fn service_at_desk(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)
    }

    /// Starts a client of the load in a network. It ends when its standard input does.
    pub(crate) fn client(&self, net: &Path) -> io::Result<std::process::Child> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", net.display())).arg("--").args(self.lab.conditions.load_words());
        command.arg(std::env::current_exe()?).arg(LOAD);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// What was lost on the way, which makes figures worthless: packets that the delayed link dropped.
    pub(crate) fn dropped(&self) -> Result<u64, String> {
        if self.together() {
            return Ok(0);
        }
        let mut sum = 0;
        for net in ["host", "desk"] {
            sum += delay::dropped(&self.lab, net)?;
        }
        Ok(sum)
    }
}

/// The first argument of the service's process, and of the load's.
pub(crate) const SERVE: &str = "the-service";
pub(crate) const LOAD: &str = "the-load";

/// The service's process.
pub(crate) fn serve() -> ! {
    let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    server::listen(at).and_then(server::start).unwrap_or_else(|error| panic!("{at}: {error}"));
    loop {
        std::thread::park();
    }
}

/// The load's process: an order on standard input, figures on standard output.
pub(crate) fn load() {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).unwrap();
    let order = serde_json::from_str(&line).unwrap();
    std::thread::spawn(|| {
        // Whoever wanted to know is gone.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(1);
    });
    let mut say = |said| println!("{}", serde_json::to_string(&said).unwrap());
    if let Err(error) = super::client::run(&order, &mut say) {
        say(super::client::Said::Failure { what: String::new(), why: super::client::why(&error) });
    }
}
