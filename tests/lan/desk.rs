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
        let mut arguments: Vec<String> = ["connect", &guest.server, "--json"]
            .into_iter()
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        for service in services {
            arguments
                .extend(["--share".to_owned(), format!("tcp://{service}?name=device-{}", service.port())]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
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
