//! The user's own machine: the queues of its CUPS, and what is announced on its loopback interface, as ipp-usb does for USB printers.
//!
//! Nobody but programs of this machine can say anything here, and nothing that is said on the network counts as this machine's. A guest reaches
//! these services by their loopback address, where CUPS refuses every `Host:` but `localhost`: hence [`Service::host_rewrite`]. Where
//! that cannot be done, in TLS, they are not offered.

mod cups;

use std::net::{IpAddr, Ipv4Addr};

use mdns_sd::{IfKind, IfPredicate};

use super::{
    LocalConfig, Service, ServiceClass, Sighting, Source, SourceError,
    dns_sd::{Browsing, types},
    outlet::Outlet,
};

/// Looks on this machine.
pub(super) async fn run(config: LocalConfig, outlet: Outlet) -> SourceError {
    let queues = outlet.another();
    let announced =
        async { if config.usb { browsing().run(outlet).await } else { std::future::pending().await } };
    let queues = async {
        match config.cups {
            Some(address) => cups::run(address, queues).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        error = announced => error,
        error = queues => error,
    }
}

fn browsing() -> Browsing {
    Browsing {
        source: Source::Local,
        on: IfKind::Predicate(IfPredicate::new(|interface| interface.is_loopback())),
        types: types(&[]),
        web: false,
        adapt: at_home,
    }
}

/// What is announced on the loopback interface is reached there.
fn at_home(mut sighting: Sighting) -> Option<Sighting> {
    sighting.this_machine = true;
    sighting.addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    for service in &mut sighting.services {
        service.adverts.retain(|advert| !matches!(advert.kind.label(), "_ipps" | "_uscans"));
        service.host_rewrite = rewrite(service);
    }
    sighting.services.retain(|service| !service.adverts.is_empty());
    (!sighting.services.is_empty()).then_some(sighting)
}

/// What the `Host:` header has to say, if there is one in what the service speaks.
fn rewrite(service: &Service) -> Option<String> {
    let speaks_http = service.adverts.iter().any(|advert| {
        matches!(advert.kind.label(), "_ipp" | "_uscan")
            || ServiceClass::of(&advert.kind) == ServiceClass::Web
    });
    speaks_http.then(|| localhost(service.port))
}

fn localhost(port: u16) -> String {
    format!("localhost:{port}")
}
