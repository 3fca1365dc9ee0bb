//! Names that two have: in the user's network, and between it and the guest.

use std::collections::BTreeSet;

use super::watch::seen;
use super::{Home, assert_well};
use crate::lan::{Pace, Printer};
use crate::vm::rig::{SOON, soon, until};

const IPP: &str = "_ipp._tcp";

#[tokio::test(flavor = "multi_thread")]
async fn two_printers_of_one_name_are_two_in_the_guest() {
    let mut home = Box::pin(Home::new()).await;
    home.discover(&["--discover"]).await;
    let one = Printer::announced(&home.lan, "one", "Printer", Pace::Quick).await;
    home.finds(IPP, "Printer").await;
    let other = Printer::announced(&home.lan, "other", "Printer", Pace::Quick).await;
    let both = until("both printers", || async {
        let seen = seen(&home.guest.machine, IPP).await;
        (seen.len() == 2).then_some(seen)
    })
    .await;
    let names: BTreeSet<_> = both.iter().map(|seen| &seen.name).collect();
    let places: BTreeSet<_> = both.iter().map(|seen| &seen.address).collect();
    assert_eq!((names.len(), places.len()), (2, 2), "{both:#?}");
    for (printer, host) in [(&one, "one.local"), (&other, "other.local")] {
        let seen = both.iter().find(|seen| seen.host == host).unwrap();
        soon("a connection", home.guest.machine.connect(seen.at())).await.unwrap();
        let opened = home.connect.as_mut().unwrap().event("opened").await;
        assert_eq!(opened["address"], printer.address().to_string());
    }
    assert_well(&mut home);
}

/// ippeveprinter makes its UUID of its names, so that a second one of the same names claims to be the first.
#[tokio::test(flavor = "multi_thread")]
async fn who_claims_to_be_another_is_held_back() {
    let mut home = Box::pin(Home::new()).await;
    home.discover(&["--discover"]).await;
    let mut watch = home.watch(IPP).await;
    let mut one = Printer::announced(&home.lan, "printer", "Printer", Pace::Quick).await;
    let first = watch.comes("Printer").await;
    let _twin = Printer::announced(&home.lan, "printer", "Printer", Pace::Quick).await;
    let connect = home.connect.as_mut().unwrap();
    let twin = connect.event_where("discovered", |event| event["standing"] == "impostor").await;
    assert_eq!(
        (&twin["claims"], &twin["host"]),
        (&format!("uuid:{}", first.value("UUID").unwrap()).into(), &"printer-2.local".into())
    );
    let seen_now = seen(&home.guest.machine, IPP).await;
    assert_eq!(seen_now, BTreeSet::from([first]));

    // When the first is gone, the other is still not taken for it.
    one.leave("-TERM").await;
    let connect = home.connect.as_mut().unwrap();
    connect.event_where("discovered", |event| event["standing"] == "moved").await;
    watch.goes("Printer", SOON).await;
    assert_eq!(seen(&home.guest.machine, IPP).await, BTreeSet::new());
    assert_well(&mut home);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_is_called_itself_stays_its_own() {
    let mut home = Box::pin(Home::new()).await;
    let mine = ["-s", "Office", IPP, "8631", "rp=mine"];
    let mut mine = home.guest.machine.start("avahi-publish", "avahi-publish", &mine);
    mine.line("that it is announced", |line| line.contains("Established").then_some(())).await;
    // The guest is guest.local.
    let _office = Printer::announced(&home.lan, "guest", "Office", Pace::Quick).await;
    home.discover(&["--discover"]).await;
    let theirs = until("the printer of the user", || async {
        seen(&home.guest.machine, IPP).await.into_iter().find(|seen| seen.port == 631)
    })
    .await;
    assert!(theirs.is_virtual() && theirs.host != "guest.local" && theirs.name != "Office", "{theirs:?}");
    let both = seen(&home.guest.machine, IPP).await;
    let own = both.iter().find(|seen| seen.port == 8631).expect("the guest's own is gone");
    assert_eq!((&*own.name, &*own.host, own.value("rp")), ("Office", "guest.local", Some("mine")));
    assert_ne!(own.address, theirs.address);
    let link = format!("https://{}:631/", theirs.host);
    assert_eq!(theirs.value("adminurl"), Some(&*link), "a link to the guest itself");
    let uri = format!("ipp://{}:631/ipp/print", theirs.host);
    home.guest.machine.run(&["ipptool", "-t", &uri, "get-printer-attributes.test"]).await;
    assert_well(&mut home);
}
