//! Names that two have: in the user's network, and between it and the guest.

use std::collections::BTreeSet;

use super::watch::seen;
use super::{Home, assert_well};
use crate::lan::{Pace, Printer};
use crate::vm::rig::{soon, until};

const IPP: &str = "_ipp._tcp";

#[tokio::test(flavor = "multi_thread")]
async fn two_printers_of_one_name_are_two_in_the_guest() {
    let mut home = Box::pin(Home::new()).await;
    home.discover(&["--discover"]).await;
    let one = Printer::announced(&home.lan, "printer", "Printer", Pace::Quick).await;
    home.finds(IPP, "Printer").await;
    let other = Printer::announced(&home.lan, "printer", "Printer", Pace::Quick).await;
    let both = until("both printers", || async {
        let seen = seen(&home.guest.machine, IPP).await;
        (seen.len() == 2).then_some(seen)
    })
    .await;
    println!("{both:#?}");
    let places: BTreeSet<_> = both.iter().map(|seen| &seen.address).collect();
    let hosts: BTreeSet<_> = both.iter().map(|seen| &seen.host).collect();
    assert_eq!((places.len(), hosts.len()), (2, 2));
    let mut reached = BTreeSet::new();
    for seen in &both {
        soon("a connection", home.guest.machine.connect(seen.at())).await.unwrap();
        let opened = home.connect.as_mut().unwrap().event("opened").await;
        reached.insert(opened["address"].as_str().unwrap().to_owned());
    }
    assert_eq!(reached, BTreeSet::from([one.address().to_string(), other.address().to_string()]));
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
    println!("{theirs:?}");
    assert!(theirs.is_virtual() && theirs.host != "guest.local" && theirs.name != "Office", "{theirs:?}");
    let both = seen(&home.guest.machine, IPP).await;
    let own = both.iter().find(|seen| seen.port == 8631).expect("the guest's own is gone");
    assert_eq!((&*own.name, &*own.host, own.value("rp")), ("Office", "guest.local", Some("mine")));
    assert_ne!(own.address, theirs.address);
    soon("a connection", home.guest.machine.connect(theirs.at())).await.unwrap();
    assert_well(&mut home);
}
