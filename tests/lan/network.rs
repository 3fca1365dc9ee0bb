//! The user's network: a switch with machines at it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::process::Command;

use super::Machine;
use crate::vm::rig::until;

/// A switch.
pub(crate) struct Lan {
    switch: Machine,
    last: AtomicU8,
}

/// Where a machine is to be: the same number in both networks.
pub(crate) fn addresses(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(192, 168, 7, number).into(), Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, number.into()).into()]
}

/// The first of them.
pub(crate) fn address(number: u8) -> IpAddr {
    let [v4, _] = addresses(number);
    v4
}

impl Lan {
    pub(crate) async fn new() -> Self {
        let switch = Machine::boot("switch", "").await;
        switch.sh("ip link add br0 type bridge mcast_snooping 0 forward_delay 0 stp_state 0").await;
        switch.sh("ip link set br0 up").await;
        Self { switch, last: AtomicU8::new(9) }
    }

    /// A number that no machine has yet.
    pub(crate) fn number(&self) -> u8 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Gives the machine a card with both addresses of this number, and plugs it in.
    pub(crate) async fn plug(&self, machine: &Machine, number: u8) {
        let (port, switch) = (format!("port{number}"), self.switch.pid().to_string());
        let made = Command::new("ip")
            .args(["link", "add", "eth0", "netns", &machine.pid().to_string(), "type", "veth"])
            .args(["peer", "name", &port, "netns", &switch])
            .status();
        assert!(made.await.unwrap().success(), "a cable cannot be made: tests/install-prerequisites.sh");
        self.switch.sh(&format!("ip link set {port} master br0 up")).await;
        let [v4, v6] = addresses(number);
        machine.sh(&format!("ip address add {v4}/24 brd + dev eth0")).await;
        machine.sh(&format!("ip address add {v6}/64 dev eth0")).await;
        machine.sh("ip link set eth0 up").await;
        // The kernel says so a moment later, and programs that look for a network believe it.
        until("the cable to be in", || async {
            machine.sh("ip link show eth0").await.contains("state UP").then_some(())
        })
        .await;
    }
}
