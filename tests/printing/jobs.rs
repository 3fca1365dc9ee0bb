//! Jobs that nothing goes wrong with.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use openssl::sha::sha256;
use tokio::time::timeout;

use super::documents::{noise, pdf, pour, zpl};
use super::{IPP, Office, RAW};
use crate::lan::Pace;
use crate::vm::rig::soon;

const MINUTES: Duration = Duration::from_secs(600);

/// How often each hash is among these.
fn tally(hashes: impl IntoIterator<Item = [u8; 32]>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for hash in hashes {
        let name = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        *tally.entry(name).or_default() += 1;
    }
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pdf_and_a_label_come_out_as_they_went_in() {
    let mut office = Office::open(Pace::Quick).await;
    let guest = &office.guest;

    // Untouched by CUPS, as from a program that speaks the printer's language.
    let document = pdf(7, "Untouched");
    let job = guest.print(IPP, &["raw"], &office.file("untouched.pdf", &document)).await;
    guest.job_is(&job, "completed", MINUTES).await;
    assert_eq!(tally(office.printer.stored().into_values()), tally([sha256(&document)]));

    // The way of every application: CUPS makes of it what the printer wants.
    let job = guest.print(IPP, &[], &office.file("filtered.pdf", &pdf(7, "Filtered"))).await;
    guest.job_is(&job, "completed", MINUTES).await;
    let (path, _) = office.printer.stored().into_iter().find(|(_, hash)| *hash != sha256(&document)).unwrap();
    let text = guest.machine.run(&["pdftotext", path.to_str().unwrap(), "-"]).await;
    let pages: Vec<&str> = text.split('\x0c').map(str::trim).filter(|page| !page.is_empty()).collect();
    let expected: Vec<String> = (1..=7).map(|page| format!("Filtered, page {page} of 7")).collect();
    assert_eq!(pages, expected);

    let label = zpl(1);
    let job = guest.print(RAW, &[], &office.file("label.zpl", &label)).await;
    let got = office.sink.next().await;
    assert_eq!((got.length, got.hash, got.end), (label.len() as u64, sha256(&label), Ok(())));
    guest.job_is(&job, "completed", MINUTES).await;
    office.assert_steady();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_jobs_in_a_row_and_ten_at_once() {
    let mut office = Office::open(Pace::Quick).await;
    let guest = &office.guest;
    // Before there are jobs: cupsd asks about a new queue in a thread of its own, and 2.4.2 crashes now and then if it prints meanwhile.
    let offices: Vec<String> = (0..10).map(|number| format!("office{number}")).collect();
    for queue in &offices {
        guest.queue(queue, &office.ipp_uri(), "everywhere").await;
    }
    let mut sent = Vec::new();
    for number in 0..100 {
        let document = noise(10 + number * 2_003, number as u64);
        guest.print(IPP, &["raw"], &office.file("document", &document)).await;
        sent.push(sha256(&document));
    }

    // Meanwhile ten queues of ten programs at one raw printer, which goes on only once all of them are there.
    office.sink.out_of_paper();
    let mut labels = Vec::new();
    for number in 0..10 {
        let queue = format!("label{number}");
        guest.queue(&queue, &office.raw_uri(), "raw").await;
        let label = [zpl(number), noise(300_000, number as u64)].concat();
        guest.print(&queue, &[], &office.file("label", &label)).await;
        labels.push(sha256(&label));
    }
    office.sink.has_connections(10).await;
    office.sink.refill();
    let mut printed = Vec::new();
    for _ in 0..10 {
        let got = office.sink.next().await;
        assert_eq!(got.end, Ok(()));
        printed.push(got.hash);
    }
    assert_eq!(tally(printed), tally(labels));

    // And ten at the one that speaks IPP, which takes one job at a time and says so to the others.
    for (queue, seed) in offices.iter().zip(1_000..) {
        let document = noise(50_000, seed);
        guest.print(queue, &["raw"], &office.file("document", &document)).await;
        sent.push(sha256(&document));
    }
    guest.all_printed(MINUTES).await;
    assert_eq!(tally(office.printer.stored().into_values()), tally(sent));
    assert_eq!(office.sink.more(), None);
    office.assert_steady();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_gigabyte() {
    const MEGABYTES: u32 = 500;

    let mut office = Office::open(Pace::Quick).await;
    let guest = &office.guest;
    let mut sent = Vec::new();
    for queue in [RAW, IPP] {
        let mut command = guest.machine.command("lp");
        command.args(["-d", queue, "-o", "raw"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut lp = command.spawn().unwrap();
        sent.push(timeout(MINUTES, pour(lp.stdin.take().unwrap(), MEGABYTES)).await.unwrap());
        assert!(soon("lp", lp.wait()).await.unwrap().success());
    }
    let got = timeout(MINUTES, office.sink.next_at_leisure()).await.unwrap();
    assert_eq!((got.length, got.end), (u64::from(MEGABYTES) * 1_000_000, Ok(())));
    assert_eq!(got.hash, sent[0]);
    guest.all_printed(MINUTES).await;
    assert_eq!(tally(office.printer.stored().into_values()), tally([sent[1]]));
    office.assert_steady();
}
