//! The user's desk: a machine in the user's network, at which `connect` runs.

use std::net::SocketAddr;

use super::{Guest, Lan, Machine};
use crate::vm::rig::Program;

/// See the module's text.
pub(crate) struct Desk {
    pub(crate) machine: Machine,
    pub(crate) connect: Option<Program>,
}

impl Desk {
    pub(crate) async fn new(lan: &Lan) -> Self {
        let machine = Machine::boot("desk", "").await;
        lan.plug(&machine, lan.number()).await;
        Self { machine, connect: None }
    }

    /// Shares these, and gives where the guest finds them.
    pub(crate) async fn share(
        &mut self,
        guest: &Guest,
        services: &[SocketAddr],
        more: &[&str],
    ) -> Vec<SocketAddr> {
        self.share_with(&guest.server, services, more).await
    }

    /// The same, with the guest behind a server.
    pub(crate) async fn share_with(
        &mut self,
        server: &str,
        services: &[SocketAddr],
        more: &[&str],
    ) -> Vec<SocketAddr> {
        let share = |service: &SocketAddr| format!("tcp://{service}?name=device-{}", service.port());
        let shares: Vec<String> = services.iter().map(share).collect();
        let mut arguments = vec!["connect", server, "--json"];
        arguments.extend(more);
        arguments.extend(shares.iter().flat_map(|share| ["--share", share]));
        let mut connect = self.machine.tunnel(&arguments);
        let mut mapped = Vec::new();
        for service in services {
            let event = connect.event("mapped").await;
            let port = u16::try_from(event["port"].as_u64().unwrap()).unwrap();
            assert_eq!(port, service.port(), "mapped in the order of the command line: {event}");
            mapped.push(SocketAddr::new(event["virtual_ip"].as_str().unwrap().parse().unwrap(), port));
        }
        self.connect = Some(connect);
        mapped
    }
}
