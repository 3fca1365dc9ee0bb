//! Printers that stop, go away and come back, and users who change their mind.

use std::collections::BTreeSet;
use std::time::Duration;

use openssl::sha::sha256;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::documents::{noise, zpl};
use super::{IPP, OTHER, Office, RAW};
use crate::lan::Pace;
use crate::vm::rig::until;

const MINUTES: Duration = Duration::from_secs(600);
/// More than anything between an application and a printer keeps on its way.
const LARGE: usize = 60_000_000;

async fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().await.unwrap().success());
}

impl Office {
    /// Waits until the printer has begun to store the next job, and stops it there, as a paper jam does.
    async fn jam(&self, jobs_before: usize) {
        until("the printer to begin", || async {
            let begun = |path: std::path::PathBuf| path.metadata().is_ok_and(|file| file.len() > 100_000);
            let files = self.printer.files();
            (files.len() > jobs_before && files.into_iter().any(begun)).then_some(())
        })
        .await;
        signal(self.printer.pid(), "-STOP").await;
    }
}

/// Out of paper for longer than any time limit of ours: the jobs wait, all others go on, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn printers_that_pause_for_minutes() {
    const PAUSE: Duration = Duration::from_secs(130);

    let mut office = Office::open(Pace::Quick).await;
    let (slow, slower) = (noise(LARGE, 1), noise(LARGE, 2));
    let raw_job = office.guest.print(RAW, &[], &office.file("slow", &slow)).await;
    office.sink.has_read(1_000_000).await;
    office.sink.out_of_paper();
    let ipp_job = office.guest.print(IPP, &["raw"], &office.file("slower", &slower)).await;
    office.jam(0).await;
    let began = Instant::now();

    // Another printer prints all the while: the time goes by in its jobs.
    let mut number = 0;
    while began.elapsed() < PAUSE {
        let label = [zpl(number), noise(500_000, number as u64)].concat();
        office.guest.print(OTHER, &[], &office.file("label", &label)).await;
        assert_eq!(office.other.next().await.hash, sha256(&label));
        for job in [&raw_job, &ipp_job] {
            let (state, _) = office.guest.state(job).await;
            assert_eq!(state, "processing", "{job:?} after {:?}", began.elapsed());
        }
        number += 1;
        sleep(Duration::from_secs(1)).await;
    }
    office.assert_steady();
    assert_eq!(office.sink.more(), None);

    office.sink.refill();
    signal(office.printer.pid(), "-CONT").await;
    let got = office.sink.next().await;
    assert_eq!((got.hash, got.end), (sha256(&slow), Ok(())));
    for job in [&raw_job, &ipp_job] {
        office.guest.job_is(job, "completed", MINUTES).await;
    }
    assert!(office.printer.stored().into_values().eq([sha256(&slower)]));
    office.assert_steady();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_ends_at_the_printer_and_the_next_one_is_whole() {
    let mut office = Office::open(Pace::Quick).await;

    let job = office.guest.print(RAW, &[], &office.file("regret", &noise(LARGE, 3))).await;
    office.sink.has_read(1_000_000).await;
    office.sink.out_of_paper();
    office.guest.machine.run(&["cancel", &job.0]).await;
    office.guest.job_is(&job, "canceled", MINUTES).await;
    let label = zpl(2);
    office.guest.print(RAW, &[], &office.file("label", &label)).await;
    office.sink.has_connections(2).await;
    office.sink.refill();
    let (one, other) = (office.sink.next().await, office.sink.next().await);
    let (cancelled, whole) = if one.hash == sha256(&label) { (other, one) } else { (one, other) };
    assert!((1_000_000..LARGE as u64).contains(&cancelled.length), "{cancelled:?}");
    assert_eq!((whole.hash, whole.end), (sha256(&label), Ok(())));

    let job = office.guest.print(IPP, &["raw"], &office.file("regret", &noise(LARGE, 4))).await;
    office.jam(0).await;
    office.guest.machine.run(&["cancel", &job.0]).await;
    office.guest.job_is(&job, "canceled", MINUTES).await;
    signal(office.printer.pid(), "-CONT").await;
    let document = noise(200_000, 5);
    let next = office.guest.print(IPP, &["raw"], &office.file("next", &document)).await;
    office.guest.job_is(&next, "completed", MINUTES).await;
    assert!(office.printer.stored().values().any(|hash| *hash == sha256(&document)));
    office.assert_steady();
}

/// A plug is pulled in mid-job: the guest says so, keeps the job, and prints all of it when the printer is back.
#[tokio::test(flavor = "multi_thread")]
async fn printers_switched_off_in_mid_job() {
    let mut office = Office::open(Pace::Quick).await;
    let (first, second) = (noise(LARGE, 6), noise(LARGE, 7));

    let ipp_job = office.guest.print(IPP, &["raw"], &office.file("first", &first)).await;
    office.jam(0).await;
    office.printer.switch_off().await;
    let raw_job = office.guest.print(RAW, &[], &office.file("second", &second)).await;
    office.sink.has_read(1_000_000).await;
    office.sink.switch_off().await;

    for job in [&ipp_job, &raw_job] {
        let told = until("the guest to be told", || async {
            let (state, why) = office.guest.state(job).await;
            // Of many kinds: whichever step the loss was noticed in.
            ["Unable to", "not responding", "unavailable"]
                .iter()
                .any(|part| why.contains(part))
                .then_some(state)
        })
        .await;
        // Neither printed nor given up: CUPS tries again, or waits for that.
        assert!(["processing", "pending", "pending-held"].contains(&told.as_str()), "{job:?} is {told}");
    }
    // Those that are sent now wait behind it.
    let next = zpl(3);
    let next_job = office.guest.print(RAW, &[], &office.file("next", &next)).await;

    office.printer.switch_on().await;
    // A printer that goes away within a document is one that CUPS stops, until somebody has had a look at it.
    office.guest.machine.run(&["cupsenable", IPP]).await;
    office.sink.switch_on(&office.printer.machine);
    // In whichever order: CUPS lets the next job pass one that waits to be tried again.
    let mut printed = BTreeSet::new();
    for _ in 0..2 {
        let got = timeout(MINUTES, office.sink.next_at_leisure()).await.unwrap();
        assert_eq!(got.end, Ok(()));
        printed.insert(got.hash);
    }
    assert_eq!(printed, BTreeSet::from([sha256(&second), sha256(&next)]));
    for job in [&ipp_job, &raw_job, &next_job] {
        office.guest.job_is(job, "completed", MINUTES).await;
    }
    assert!(office.printer.stored().values().any(|hash| *hash == sha256(&first)));
    office.assert_steady();
}
