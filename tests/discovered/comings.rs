//! Printers that come, go and come back, elsewhere too, and a tunnel that does the same: the guest is told as it happens, and
//! finds each at the address that it had.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::watch::seen;
use super::{Home, assert_well, took};
use crate::lan::{Pace, Printer, Sink, signal};
use crate::vm::rig::{SOON, soon, until};

const IPP: &str = "_ipp._tcp";

impl Home {
    /// The guest connects, and this is whom it reaches.
    async fn reaches(&mut self, at: SocketAddr) -> IpAddr {
        let stream = soon("a connection of the guest", self.guest.machine.connect(at)).await.unwrap();
        let opened = self.connect.as_mut().unwrap().event("opened").await;
        drop(stream);
        let address: SocketAddr = opened["address"].as_str().unwrap().parse().unwrap();
        address.ip()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_comes_goes_and_comes_back_elsewhere() {
    let mut home = Box::pin(Home::new()).await;
    home.discover(&["--discover"]).await;
    let mut watch = home.watch(IPP).await;
    let mut printer = Printer::announced(&home.lan, "late", "Late", Pace::Quick).await;
    let began = Instant::now();
    let first = watch.comes("Late").await;
    took("from a printer's coming until the guest has it", began);
    assert!(first.is_virtual());

    // It says goodbye, and comes again.
    for leave in ["-TERM", "-KILL"] {
        printer.leave(leave).await;
        let began = Instant::now();
        watch.goes("Late", SOON).await;
        took("from its leaving until the guest knows", began);
        printer.switch_on().await;
        let again = watch.comes("Late").await;
        assert_eq!((again.address, again.txt), (first.address.clone(), first.txt.clone()));
    }

    // ippeveprinter listens at the addresses that it began with only; what prints raw, everywhere.
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9100));
    let _raw = Sink::start(&printer.machine, everywhere);
    let words = ["-s", "Late", "_pdl-datastream._tcp", "9100"];
    let announced = printer.machine.start("avahi-publish", "avahi-publish", &words);
    let raw = home.finds("_pdl-datastream._tcp", "Late").await;
    assert_eq!(raw.address, first.address);
    // It says something else of itself.
    signal(&announced, "-TERM").await;
    let words = [&words[..], &["note=Out of toner"]].concat();
    let _announced = printer.machine.start("avahi-publish", "avahi-publish", &words);
    until("what is new", || async {
        let seen = seen(&home.guest.machine, "_pdl-datastream._tcp").await;
        let seen = seen.into_iter().find(|seen| seen.value("note") == Some("Out of toner"))?;
        assert_eq!(seen.address, first.address);
        Some(())
    })
    .await;

    // One network only, so that a new lease is an address of which nothing was known.
    printer.machine.sh("ip -6 address flush dev eth0").await;
    let single = |event: &serde_json::Value| event["addresses"].as_array().is_some_and(|all| all.len() == 1);
    home.connect.as_mut().unwrap().event_where("discovered", single).await;
    // A new lease: the guest is told nothing, because nothing is another for it.
    assert_eq!(home.reaches(raw.at()).await, printer.address().ip());
    let elsewhere: IpAddr = "192.168.7.201".parse().unwrap();
    let eth0 = |what: &str, ip: IpAddr| format!("ip address {what} {ip}/24 dev eth0");
    printer.machine.sh(&eth0("delete", printer.address().ip())).await;
    printer.machine.sh(&eth0("add", elsewhere)).await;
    let moved = |event: &serde_json::Value| event["addresses"] == serde_json::json!([elsewhere]);
    home.connect.as_mut().unwrap().event_where("discovered", moved).await;
    assert_eq!(home.finds(IPP, "Late").await.address, first.address);
    assert_eq!(home.reaches(raw.at()).await, elsewhere);

    // Its plug is pulled: nobody says goodbye. Whoever wants something of it finds out.
    drop(printer);
    let began = Instant::now();
    while tokio::time::timeout(Duration::from_secs(5), watch.gone("Late")).await.is_err() {
        assert!(began.elapsed() < 2 * SOON, "the guest is never told");
        let _ = tokio::time::timeout(Duration::from_secs(5), home.guest.machine.connect(first.at())).await;
    }
    took("from a failed connection until the guest knows that nobody is there", began);
    let _printer = Printer::announced(&home.lan, "late", "Late", Pace::Quick).await;
    assert_eq!(watch.comes("Late").await.address, first.address);
    assert_well(&mut home);
}

/// Both programs start anew, in turn, and `serve` with what it remembered or without.
async fn restarts(lease_file: bool) {
    let directory = tempfile::tempdir().unwrap();
    let leases = directory.path().join("leases.json").display().to_string();
    let options = if lease_file { &["--lease-file", &*leases][..] } else { &[] };
    let mut home = Box::pin(Home::with(options)).await;
    let mut printer = Printer::announced(&home.lan, "steady", "Steady", Pace::Quick).await;
    home.discover(&["--discover"]).await;
    let first = home.finds(IPP, "Steady").await;

    // The user's side, gently and not.
    let mut watch = home.watch(IPP).await;
    watch.comes("Steady").await;
    home.leave("-TERM").await;
    home.discover(&["--discover"]).await;
    assert_eq!(home.finds(IPP, "Steady").await.address, first.address);
    assert_eq!(home.reaches(first.at()).await, printer.address().ip());
    home.leave("-KILL").await;
    home.discover(&["--discover"]).await;
    assert_eq!(home.finds(IPP, "Steady").await.address, first.address);
    assert_eq!(home.reaches(first.at()).await, printer.address().ip());

    // While nobody joins, the printer changes.
    home.leave("-TERM").await;
    printer.leave("-TERM").await;
    printer.switch_on().await;
    home.discover(&["--discover"]).await;
    assert_eq!(home.finds(IPP, "Steady").await.address, first.address);

    // The guest's side; the card comes and goes with it.
    home.restart_serve(options).await;
    home.connect.as_mut().unwrap().event("connected").await;
    let began = Instant::now();
    assert_eq!(home.finds(IPP, "Steady").await.address, first.address);
    took("from a new session until the guest has the printer", began);
    assert_eq!(home.reaches(first.at()).await, printer.address().ip());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_restarts_everything_is_where_it_was() {
    tokio::join!(Box::pin(restarts(false)), Box::pin(restarts(true)));
}
