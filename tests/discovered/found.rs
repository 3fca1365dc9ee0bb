//! What stands in the user's network is there in the guest, and prints.

use std::collections::BTreeSet;
use std::time::Duration;

use openssl::sha::sha256;
use tokio::time::Instant;

use super::watch::seen;
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
    let words = ["-s", "Label", "_pdl-datastream._tcp", "9100", "txtvers=1", "ty=Zebra ZD420", "note=By the door"];
    let _label = photo.machine.start("avahi-publish", "avahi-publish", &words);
    home.guest.cups().await;

    let began = Instant::now();
    home.discover(&["--discover"]).await;
    home.offered("Office_2nd_floor").await;
    took("from the session's start until CUPS of the guest offers the printer", began);
    home.finds("_ipp._tcp", "Photo").await;
    home.finds("_pdl-datastream._tcp", "Label").await;
    took("until the guest knows all three", began);

    for kind in ["_ipp._tcp", "_pdl-datastream._tcp"] {
        let (here, there) = tokio::join!(seen(&home.desk, kind), seen(&home.guest.machine, kind));
        let whole = |seen: &BTreeSet<super::Seen>| -> BTreeSet<_> {
            seen.iter().map(|seen| (seen.name.clone(), seen.host.clone(), seen.port)).collect()
        };
        assert_eq!(whole(&there), whole(&here), "{kind}");
        for there in there {
            let here = here.iter().find(|here| here.name == there.name).unwrap();
            assert!(there.address.starts_with("198.18.") || there.address.starts_with("198.19."), "{there:?}");
            let missing: Vec<_> = here.txt.difference(&there.txt).collect();
            let added: Vec<_> = there.txt.difference(&here.txt).collect();
            println!("{kind} {:?}: missing {missing:?}, added {added:?}", there.name);
        }
    }
    for words in [&["ippfind", "-T", "5"][..], &["lpinfo", "-v"], &["lpstat", "-e"]] {
        println!("{words:?}: {:?}", home.guest.ask(words).await);
        println!("desk {words:?}: {:?}", home.desk.command(words[0]).args(&words[1..]).output().await);
    }

    let document = pdf(5, "Found");
    let job = home.guest.print("Office_2nd_floor", &["raw"], &home.file("found.pdf", &document)).await;
    home.guest.job_is(&job, "completed", MINUTE).await;
    let hashes: Vec<_> = office.stored().into_values().collect();
    assert_eq!(hashes, [sha256(&document)]);

    let zpl = zpl(7);
    let at = home.finds("_pdl-datastream._tcp", "Label").await;
    let device = format!("socket://{}:{}", at.host, at.port);
    home.guest.queue("label", &device, "raw").await;
    home.guest.print("label", &[], &home.file("label.zpl", &zpl)).await;
    let got = label.next().await;
    assert_eq!((got.length, got.hash, got.end), (zpl.len() as u64, sha256(&zpl), Ok(())));
    assert_well(&mut home);
}
