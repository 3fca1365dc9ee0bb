//! A guest without a virtual machine: a network card and a TCP/IP stack of its own.
//!
//! It is what the demo prints from, what the tests speak to the netstack with, and the load generator of the
//! benchmark. On the wire it is an ordinary host: it asks for an address by DHCP, resolves by ARP, pings and opens
//! TCP connections, all through smoltcp, so that our own netstack is tested against code that is not ours.
//!
//! [`stack`] is the machine (frames and `now` in, frames and events out, no clock, no I/O); [`stream`] is the
//! shell around it: it speaks QEMU's framing of network card frames (a 4-byte big-endian length before each,
//! `-netdev stream`) over any byte stream and gives an async API.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use spice_tunnel::guest::{Config, Guest};
//!
//! let nic = tokio::net::UnixStream::connect("/run/nic.sock").await?;
//! let guest = Guest::start(nic, Config::default());
//! let lease = guest.lease().await?;
//! println!("the guest is {}", lease.address);
//! let _stream = guest.connect("198.18.3.4".parse()?, 631).await?;
//! # Ok(()) }
//! ```

mod device;
pub mod stack;
pub mod stream;
mod trouble;
mod types;

pub use stack::{Config, ConnectionError, Lease};
pub use stream::{Guest, GuestStream};
pub use trouble::Trouble;

#[cfg(test)]
mod tests;
