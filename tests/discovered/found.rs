//! What stands in the user's network is there in the guest, and prints.

use std::collections::BTreeSet;
use std::time::Duration;

use openssl::sha::sha256;
use tokio::time::Instant;

use super::watch::{Seen, seen};
use super::{Home, assert_well, took};
use crate::lan::{Pace, Printer, Sink};
use crate::printing::documents::{pdf, zpl};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_sees_what_the_user_sees_and_prints_on_it() {
    let mut home = Box::pin(Home::new()).await;
    let (office, photo) = tokio::join!(
        Printer::announced(&home.lan, "office", "Office (2nd floor)", Pace::Quick),
        Printer::announced(&home.lan, "photo", "Photo", Pace::Quick)
    );
    // The user's machine has an avahi of its own, as desktops do.
    let _avahi = home.desk.announce("desk").await;
    let mut label = Sink::start(&photo.machine, photo.at(9100));
    let words =
        ["-s", "Label", "_pdl-datastream._tcp", "9100", "txtvers=1", "ty=Zebra ZD420", "note=By the door"];
    let _label = photo.machine.start("avahi-publish", "avahi-publish", &words);
    home.guest.cups().await;

    let began = Instant::now();
    home.discover(&["--discover"]).await;
    home.offered("Office_2nd_floor").await;
    took("from the session's start until CUPS of the guest offers the printer", began);
    home.finds("_ipp._tcp", "Photo").await;
    home.finds("_pdl-datastream._tcp", "Label").await;
    took("until the guest knows all three", began);

    for kind in ["_ipp._tcp", "_ipps._tcp", "_pdl-datastream._tcp"] {
        let (here, there) = tokio::join!(seen(&home.desk, kind), seen(&home.guest.machine, kind));
        // The same names, hosts, ports and every TXT entry; only where it is is another place.
        let but_address = |seen: BTreeSet<Seen>| -> BTreeSet<Seen> {
            seen.into_iter().map(|seen| Seen { address: String::new(), ..seen }).collect()
        };
        assert!(there.iter().all(Seen::is_virtual), "{there:?}");
        assert_eq!(but_address(there), but_address(here), "{kind}");
    }
    let find = ["ippfind", "-T", "2"];
    let lines = |said: String| said.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (here, there) = tokio::join!(home.desk.run(&find), home.guest.machine.run(&find));
    assert_eq!(lines(there), lines(here));
    // What CUPS offers to make queues of; the user's machine has only the part that looks. By which of a printer's
    // services each is a matter of luck.
    let backend = ["/usr/lib/cups/backend/dnssd"];
    let list = ["lpinfo", "--include-schemes", "dnssd", "-v"];
    let (here, there) = tokio::join!(home.desk.run(&backend), home.guest.machine.run(&list));
    let devices = |said: &str| -> BTreeSet<String> {
        let uris = said.split_whitespace().filter_map(|word| word.strip_prefix("dnssd://"));
        uris.filter_map(|uri| uri.split_once("._")).map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(devices(&there), devices(&here));

    let document = pdf(5, "Found");
    let job = home.guest.print("Office_2nd_floor", &["raw"], &home.file("found.pdf", &document)).await;
    home.guest.job_is(&job, "completed", MINUTE).await;
    let hashes: Vec<_> = office.stored().into_values().collect();
    assert_eq!(hashes, [sha256(&document)]);

    let zpl = zpl(7);
    home.guest.queue("label", "dnssd://Label._pdl-datastream._tcp.local/", "raw").await;
    home.guest.print("label", &[], &home.file("label.zpl", &zpl)).await;
    let got = label.next().await;
    assert_eq!((got.length, got.hash, got.end), (zpl.len() as u64, sha256(&zpl), Ok(())));
    assert_well(&mut home);
}
