//! A machine that is the guest and the user's at once: what is announced to it as the guest is nothing that it should find as
//! the user's.

use std::collections::BTreeSet;

use crate::lan::{Guest, Lan, Pace, Printer};

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_out_of_the_tunnel_does_not_go_in_again() {
    let lan = Lan::new().await;
    let guest = Guest::boot(&[]).await;
    lan.plug(&guest.machine, lan.number()).await;
    let _office = Printer::announced(&lan, "office", "Office", Pace::Quick).await;
    let mut connect = guest.machine.tunnel(&["connect", &guest.server, "--json", "--discover"]);
    connect.event_where("mapped", |event| event["name"] == "Office").await;
    // Each of these was announced to the guest well before the next was mapped.
    let mut printers = Vec::new();
    for (host, name) in [("one", "One"), ("two", "Two")] {
        printers.push(Printer::announced(&lan, host, name, Pace::Quick).await);
        connect.event_where("mapped", |event| event["name"] == name).await;
    }
    let events = connect.everything();
    let events = events.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let events: Vec<_> = events.filter(|event| event["event"] == "discovered").collect();
    let names: BTreeSet<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["Office", "One", "Two"]));
    for event in &events {
        assert_eq!(event["standing"], "plain", "{event}");
        assert!(!event["addresses"].to_string().contains("198.18."), "{event}");
    }
    assert!(connect.is_running() && connect.complaints().is_empty(), "{:?}", connect.complaints());
}
