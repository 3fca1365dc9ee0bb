//! Devices to be discovered, for trying discovery where there are none: an SNMP printer that answers broadcasts (which snmpd cannot), a UPnP
//! device, and a printer or scanner of WS-Discovery. One of them a process, best in a network namespace of its own:
//!
//! ```text
//! lan-agents snmp --address 10.0.0.5 --broadcast 10.0.0.255 --maker HP --model "LaserJet 4" --open 9100
//! lan-agents ssdp --address 10.0.0.6 --name NAS --presentation /
//! lan-agents wsd  --address 10.0.0.7 --name Scanner --scanner
//! ```
//!
//! `--odd` makes it a device that nobody should have on the network; `--ipp` puts a printer behind it that speaks IPP. Says
//! `ready` when it can be found, and leaves as a device of its kind does when it is terminated.

#![expect(
    clippy::indexing_slicing,
    reason = "a test tool: what does not hold must panic, and lengths are what the system said"
)]

mod agent;
mod page;
mod snmp;
mod ssdp;
mod wsd;

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use socket2::{Domain, Socket, Type};
use spice_tunnel::printer::{Config, Printer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about = "Devices to be discovered, for trying discovery where there are none")]
struct Cli {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// A printer that answers SNMP.
    Snmp(snmp::Arguments),
    /// A device of UPnP.
    Ssdp(ssdp::Arguments),
    /// A printer or scanner of WS-Discovery.
    Wsd(wsd::Arguments),
}

/// What every device has.
#[derive(Debug, Clone, Args)]
struct Device {
    /// Its address, which this machine must have.
    #[arg(long)]
    address: Ipv4Addr,
    /// What people know it by.
    #[arg(long, default_value = "Example printer")]
    name: String,
    #[arg(long, default_value = "Example")]
    maker: String,
    #[arg(long, default_value = "LaserWriter 1")]
    model: String,
    #[arg(long, default_value = "EX12345678")]
    serial: String,
    /// Where it stands.
    #[arg(long, default_value = "")]
    location: String,
    #[arg(long, default_value = "5eed0000-0000-4000-8000-000000000001")]
    uuid: String,
    /// Takes connections at this port, and swallows what comes; repeatable.
    #[arg(long)]
    open: Vec<u16>,
    /// Speaks IPP at port 631, as a printer of this name.
    #[arg(long)]
    ipp: bool,
    /// Behaves as no device should.
    #[arg(long)]
    odd: Option<Odd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Odd {
    /// Answers with bytes that are nothing.
    Garbage,
    /// Texts of a kilobyte, with control characters and overrides.
    Texts,
    /// Is found, and says nothing more.
    Mute,
    /// Sends answers that nobody asked for, to another's number or from another's address within them.
    Forger,
    /// Its description is at another host.
    Elsewhere,
    /// Its description redirects to another host.
    Redirect,
    /// Its description is a bomb of entities.
    Bomb,
    /// Its description has no end.
    Endless,
    /// Its description comes a byte a second.
    Slow,
}

impl Device {
    /// A text of it, unless it is odd.
    fn text(&self, plain: &str) -> String {
        if self.odd == Some(Odd::Texts) {
            return format!("{plain}\u{1b}]0;owned\u{7}\u{202e}\r\nX: {}", "\u{e9}<&'\"".repeat(150));
        }
        plain.to_owned()
    }

    fn is(&self, odd: Odd) -> bool {
        self.odd == Some(odd)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let device = match &cli.kind {
        Kind::Snmp(arguments) => &arguments.device,
        Kind::Ssdp(arguments) => &arguments.device,
        Kind::Wsd(arguments) => &arguments.device,
    };
    let jobs = tempfile::tempdir()?;
    for port in &device.open {
        let listener = TcpListener::bind((device.address, *port)).await?;
        tokio::spawn(swallow(listener));
    }
    if device.ipp {
        let listener = TcpListener::bind((device.address, 631)).await?;
        let printer = Printer::new(Config::new(&*device.name, jobs.path()));
        tokio::spawn(async move { printer.serve(listener).await });
    }
    match cli.kind {
        Kind::Snmp(arguments) => snmp::run(arguments).await,
        Kind::Ssdp(arguments) => ssdp::run(arguments).await,
        Kind::Wsd(arguments) => wsd::run(arguments).await,
    }
}

/// Until the process is told to end.
async fn told_to_end() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => {}
        ended = tokio::signal::ctrl_c() => ended?,
    }
    Ok(())
}

fn ready() {
    println!("ready");
}

/// A socket for `port` of this address: unicast to it comes there, and what is sent comes from there.
fn own_socket(address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = shared()?;
    socket.set_broadcast(true)?;
    socket.set_multicast_if_v4(&address)?;
    bound(&socket, address, port)?;
    Ok(UdpSocket::from_std(socket.into())?)
}

/// A socket for what is sent to a group or a broadcast address, on the network of our address `own`.
fn common_socket(to: Ipv4Addr, port: u16, own: Ipv4Addr) -> Result<UdpSocket> {
    let socket = shared()?;
    bound(&socket, to, port)?;
    if to.is_multicast() {
        socket.join_multicast_v4(&to, &own)?;
    }
    Ok(UdpSocket::from_std(socket.into())?)
}

/// Several of these programs may stand in one network namespace.
fn shared() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bound(socket: &Socket, address: Ipv4Addr, port: u16) -> Result<()> {
    Ok(socket.bind(&SocketAddr::from((address, port)).into())?)
}

async fn swallow(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream: TcpStream = stream;
            let mut bytes = vec![0; 64 << 10];
            while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        });
    }
}
