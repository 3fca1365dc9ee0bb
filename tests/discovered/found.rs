//! What stands in the user's network is there in the guest, and prints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use openssl::sha::sha256;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::watch::{Seen, seen};
use super::{Home, assert_well, took};
use crate::lan::{Machine, Pace, Printer, Sink};
use crate::printing::documents::{pdf, zpl};
use crate::vm::rig::{soon, until};

const MINUTE: Duration = Duration::from_secs(60);

/// All that ippfind finds. It gives up after two seconds, which may be too few.
async fn ippfind(machine: &Machine, printers: usize) -> BTreeSet<String> {
    until("ippfind to find all", || async {
        let output = machine.command("ippfind").args(["-T", "2"]).output().await.unwrap();
        let found: BTreeSet<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        (found.len() == printers).then_some(found)
    })
    .await
}

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
        // The same names, hosts, ports and every TXT entry; only where it is is another place.
        let but_address = |seen: BTreeSet<Seen>| -> BTreeSet<Seen> {
            seen.into_iter().map(|seen| Seen { address: String::new(), ..seen }).collect()
        };
        until("the same to be seen", || async {
            let (here, there) = tokio::join!(seen(&home.desk, kind), seen(&home.guest.machine, kind));
            assert!(there.iter().all(Seen::is_virtual), "{there:?}");
            let (here, there) = (but_address(here), but_address(there));
            let same = !here.is_empty() && here == there;
            if !same {
                println!("{kind}: {here:#?}\nand in the guest {there:#?}");
            }
            same.then_some(())
        })
        .await;
    }
    let (here, there) = tokio::join!(ippfind(&home.desk, 2), ippfind(&home.guest.machine, 2));
    assert_eq!(there, here);

    // For those who know no multicast: the name server that DHCP gave.
    let browsed = home.guest.machine.sh("dig +short PTR _ipp._tcp.tunnel.internal").await;
    assert_eq!(browsed.lines().count(), 2, "{browsed}");
    let looked_up = home.guest.machine.sh("dig +short office.local").await;
    let multicast = home.guest.machine.sh("getent hosts office.local").await;
    assert_eq!(multicast.split_whitespace().collect::<Vec<_>>(), [looked_up.trim(), "office.local"]);

    // What CUPS offers to make queues of; the user's machine has only the part that looks. By which of a printer's
    // services each is a matter of luck.
    let backend = ["/usr/lib/cups/backend/dnssd"];
    let list = ["lpinfo", "--include-schemes", "dnssd", "-v"];
    let devices = |said: String| -> BTreeSet<String> {
        let uris = said.split_whitespace().filter_map(|word| word.strip_prefix("dnssd://"));
        uris.filter_map(|uri| uri.split_once("._")).map(|(name, _)| name.to_owned()).collect()
    };
    until("the same to be offered", || async {
        let (here, there) = tokio::join!(home.desk.run(&backend), home.guest.machine.run(&list));
        let (here, there) = (devices(here), devices(there));
        println!("CUPS offers {here:?}, and in the guest {there:?}");
        (here.len() == 3 && here == there).then_some(())
    })
    .await;

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

/// Two cards in one network, as a laptop has with its cable in, and a printer that only knows IPv6.
#[tokio::test(flavor = "multi_thread")]
async fn a_printer_of_another_kind_of_address_seen_twice_is_one() {
    let mut home = Box::pin(Home::new()).await;
    for words in [
        "ip link add eth1 link eth0 type macvlan mode bridge",
        "ip address add 192.168.7.200/24 brd + dev eth1",
        "ip address add fd07::c8/64 dev eth1",
        "ip link set eth1 up",
    ] {
        home.desk.sh(words).await;
    }
    let (six, number) = (Machine::boot("six", "").await, home.lan.number());
    home.lan.plug(&six, number).await;
    six.sh("ip -4 address flush dev eth0").await;
    let at: SocketAddr = format!("[fd07::{number:x}]:9100").parse().unwrap();
    let mut label = Sink::start(&six, at);
    let _avahi = six.announce("six").await;
    let words = ["-s", "Six", "_pdl-datastream._tcp", "9100", "ty=Zebra"];
    let _announced = six.start("avahi-publish", "avahi-publish", &words);

    home.discover(&["--discover"]).await;
    let seen_there = home.finds("_pdl-datastream._tcp", "Six").await;
    assert!(seen_there.is_virtual());
    let mut stream = soon("a connection", home.guest.machine.connect(seen_there.at())).await.unwrap();
    stream.write_all(&zpl(6)).await.unwrap();
    stream.shutdown().await.unwrap();
    let got = label.next().await;
    assert_eq!((got.hash, got.end), (sha256(&zpl(6)), Ok(())));
    let connect = home.connect.as_mut().unwrap();
    assert_eq!(connect.event("opened").await["address"], at.to_string());
    assert_eq!(seen(&home.guest.machine, "_pdl-datastream._tcp").await.len(), 1);
    assert_well(&mut home);
}
