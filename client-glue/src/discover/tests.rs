use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::timeout;

use super::*;

fn nothing() -> DiscoverConfig {
    DiscoverConfig {
        dns_sd: None,
        unicast_dns_sd: None,
        snmp: None,
        ssdp: None,
        ws_discovery: None,
        local: None,
        ..DiscoverConfig::default()
    }
}

fn seen(source: Source, address: &str) -> SourceEvent {
    let mut sighting = Sighting::new(source, address);
    sighting.addresses = vec![address.parse().unwrap()];
    sighting.serial = Serial::new("CNB1234567");
    sighting.make_and_model = Text::new("HP LaserJet");
    sighting.services = vec![Service::bare(9100, ServiceClass::Printer)];
    SourceEvent::Sighting(SightingEvent::Seen(Box::new(sighting)))
}

fn identity() -> Identity {
    Identity::new("serial:hp:CNB1234567").unwrap()
}

#[tokio::test(start_paused = true)]
async fn without_sources_nothing_is_found_and_it_ends_when_told_to() {
    let mut discovery = Discovery::start(nothing());
    assert!(timeout(Duration::from_secs(60), discovery.next()).await.is_err());
    assert!(discovery.status().sources.is_empty());
    discovery.shutdown();
    assert_eq!(discovery.next().await, None);
}

#[tokio::test]
async fn a_device_is_found_doubted_and_lost_and_waiting_may_be_cancelled() {
    let mut discovery = Discovery::start(nothing());
    let mut asks = discovery.asks.subscribe();
    discovery.sender.send(seen(Source::Snmp, "10.0.0.9")).await.unwrap();
    let found = loop {
        // What is cancelled in between is not lost.
        if let Ok(update) = timeout(Duration::from_millis(7), discovery.next()).await {
            break update;
        }
    };
    let Some(Update::Found(device)) = found else { panic!("{found:?}") };
    assert_eq!(device.identity, identity());
    assert_eq!(discovery.device(&identity()), Some(&device));
    discovery.doubt(&identity());
    let Ask::Verify { keys, addresses } = asks.recv().await.unwrap() else { panic!() };
    assert_eq!(keys, [SightingKey { source: Source::Snmp, id: "10.0.0.9".into() }]);
    assert_eq!(addresses, device.addresses);
    // Nobody knows it.
    discovery.doubt(&Identity::new("uuid:x").unwrap());
    assert!(asks.try_recv().is_err());
    let [key] = keys.try_into().unwrap();
    discovery.sender.send(SourceEvent::Sighting(SightingEvent::Gone(key))).await.unwrap();
    assert_eq!(discovery.next().await, Some(Update::Lost(identity())));
    assert_eq!(discovery.devices().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_tried_again_ever_later_and_at_once_when_the_network_changes() {
    let (events, mut told) = mpsc::channel(64);
    let (asks, _keep) = broadcast::channel(16);
    let tries = Arc::new(AtomicU32::new(0));
    let counted = tries.clone();
    let running = tokio::spawn(supervise(Source::Snmp, events, asks.clone(), move |_outlet: Outlet| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { SourceError::NoInterface }
    }));
    let mut waits = Vec::new();
    let mut first = true;
    while waits.len() < 8 {
        match told.recv().await.unwrap() {
            SourceEvent::Started { again, .. } => assert_eq!(again, !std::mem::take(&mut first)),
            SourceEvent::Failed { why, again_in, .. } => {
                assert_eq!(why, "there is no network interface to look on");
                waits.push(again_in.as_secs());
            }
            SourceEvent::Looking { .. } | SourceEvent::LookedRound { .. } | SourceEvent::Sighting(_) => {
                panic!()
            }
        }
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
    tokio::task::yield_now().await;
    let before = Instant::now();
    asks.send(Ask::LookAgain).unwrap();
    assert!(matches!(told.recv().await, Some(SourceEvent::Started { again: true, .. })));
    assert!(before.elapsed() < Duration::from_secs(1));
    running.abort();
}

#[tokio::test]
async fn how_it_goes_is_told() {
    let mut config = nothing();
    // Nobody answers there.
    config.local = Some(LocalConfig { cups: Some("127.0.0.1:9".parse().unwrap()), usb: false });
    let mut discovery = Discovery::start(config);
    let mut status = discovery.watch();
    let looked = |status: &Status| {
        status.sources.get(&Source::Local).is_some_and(|local| local.state == SourceState::LookedRound)
    };
    tokio::select! {
        update = discovery.next() => panic!("{update:?}"),
        status = status.wait_for(looked) => assert_eq!(status.unwrap().sources.len(), 1),
    }
}
