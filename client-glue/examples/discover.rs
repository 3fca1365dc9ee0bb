//! Prints what comes and goes: `cargo run -p client-glue --features discover --example discover [TYPE]…`
//!
//! Types besides printers and scanners, such as `_ssh._tcp`, are arguments. A line on standard input with an identity casts doubt on that
//! device, an empty one looks again.

use std::{env, error::Error};

use client_glue::discover::{
    Device, DiscoverConfig, Discovery, DnsSdConfig, LocalConfig, NetworkId, UnicastDnsSdConfig, Update,
};
use spice_proto::service_info::{HostName, Identity, ServiceType};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut config = DiscoverConfig {
        network: env::var("NETWORK").ok().and_then(|id| NetworkId::new(&id)),
        ..DiscoverConfig::default()
    };
    let types: Vec<ServiceType> =
        env::args().skip(1).map(|kind| ServiceType::new(&kind)).collect::<Result<_, _>>()?;
    if let Ok(domains) = env::var("DOMAINS") {
        let domains = domains.split(',').map(HostName::new).collect::<Result<_, _>>()?;
        config.unicast_dns_sd =
            Some(UnicastDnsSdConfig { domains, search_domains: false, types: types.clone() });
    }
    if let Ok(cups) = env::var("CUPS") {
        config.local = Some(LocalConfig { cups: Some(cups.parse()?), ..LocalConfig::default() });
    }
    config.dns_sd = Some(DnsSdConfig { types });
    let mut discovery = Discovery::start(config);
    let mut status = discovery.watch();
    let mut asked = BufReader::new(stdin()).lines();
    let mut listening = true;
    loop {
        tokio::select! {
            update = discovery.next() => match update {
                Some(Update::Found(device)) => show("found", &device),
                Some(Update::Changed(device)) => show("changed", &device),
                Some(Update::Lost(identity)) => println!("lost {}", identity.as_str()),
                None => return Ok(()),
            },
            Ok(()) = status.changed() => {
                let status = status.borrow_and_update().clone();
                for (source, how) in status.sources {
                    println!("status {source} {} {:?}", how.found, how.state);
                }
            }
            line = asked.next_line(), if listening => match line?.as_deref() {
                Some("") => discovery.look_again(),
                Some(identity) => discovery.doubt(&Identity::new(identity)?),
                None => listening = false,
            },
        }
    }
}

fn show(what: &str, device: &Device) {
    let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
    let host = device.host.as_ref().map_or("-", |host| host.as_str());
    let model = device.make_and_model.as_ref().map_or("-", |model| model.as_str());
    println!(
        "{what} {} name={:?} host={host} addresses={} model={model:?} standing={:?} local={}",
        device.identity.as_str(),
        device.name.as_str(),
        addresses.join(","),
        device.standing,
        device.this_machine,
    );
    for service in &device.services {
        println!("  {} {} rewrite={:?}", service.port, service.class, service.host_rewrite);
        for advert in &service.adverts {
            let subtypes: Vec<&str> = advert.subtypes.iter().map(|subtype| subtype.as_str()).collect();
            let txt: Vec<String> = advert
                .txt
                .entries()
                .map(|(key, value)| value.map_or(key.to_owned(), |value| format!("{key}={value}")))
                .collect();
            println!(
                "    {:?} {} {} {txt:?}",
                advert.instance.as_str(),
                advert.kind.as_str(),
                subtypes.join(",")
            );
        }
    }
}
