//! The conformance suites of ipptool say of a printer through the tunnel what they say of it directly.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::documents::{noise, pdf};
use crate::lan::{Desk, Guest, Lan, Machine, Pace, Printer};

const SUITES: &str = "/usr/share/cups/ipptool";
const LIMIT: Duration = Duration::from_secs(900);

/// The suites, and beside them every document that they print: the package brings none.
fn copy(suite: &str, into: &Path) -> PathBuf {
    for file in
        std::fs::read_dir(SUITES).expect("this test needs cups-ipp-utils: tests/install-prerequisites.sh")
    {
        let file = file.unwrap();
        std::fs::copy(file.path(), into.join(file.file_name())).unwrap();
    }
    for suite in ["ipp-1.1.test", "ipp-2.0.test", suite] {
        let text = std::fs::read_to_string(into.join(suite)).unwrap();
        for line in text.lines() {
            let Some(name) = line.trim().strip_prefix("FILE ").filter(|name| !name.contains('$')) else {
                continue;
            };
            let path = into.join(name.trim());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // Nobody looks into it.
            std::fs::write(path, if name.ends_with(".pdf") { pdf(2, "Sample") } else { noise(40_000, 9) })
                .unwrap();
        }
    }
    std::fs::write(into.join("document.pdf"), pdf(3, "Document")).unwrap();
    into.join(suite)
}

/// Each test and its verdict, as ipptool on this machine says.
async fn verdicts(machine: &Machine, printer: &str, suite: &str) -> Vec<(String, String)> {
    let dir = machine.path("ipptool");
    std::fs::create_dir_all(&dir).unwrap();
    let suite = copy(suite, &dir);
    let mut command = machine.command("ipptool");
    command
        .args(["-V", "2.0", "-tI", "-T", "60", "-f"])
        .arg(dir.join("document.pdf"))
        .arg(printer)
        .arg(suite);
    let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = |line: &str| {
        let (name, verdict) = line.rsplit_once('[')?;
        let verdict = verdict.strip_suffix(']')?;
        ["PASS", "FAIL", "SKIP"].contains(&verdict).then(|| (name.trim().to_owned(), verdict.to_owned()))
    };
    said.lines().filter_map(verdict).collect()
}

async fn same(suite: &str, at_least: usize) {
    let lan = Lan::new().await;
    // Two of the same kind, so that none remembers the other's jobs.
    let (one, other) =
        tokio::join!(Printer::silent(&lan, "one", Pace::Real), Printer::silent(&lan, "other", Pace::Real));
    let (mut desk, guest) = tokio::join!(Desk::new(&lan), Guest::boot(&[]));
    let at = desk.share(&guest, &[other.address()], &[]).await[0];
    let (direct, tunnelled) = (format!("ipp://{}/ipp/print", one.address()), format!("ipp://{at}/ipp/print"));
    let (direct, tunnelled) =
        tokio::join!(verdicts(&desk.machine, &direct, suite), verdicts(&guest.machine, &tunnelled, suite));
    let passed = direct.iter().filter(|(_, verdict)| verdict == "PASS").count();
    println!("{suite}: {passed} of {} pass directly", direct.len());
    assert!(passed >= at_least, "the suite did not run: {direct:?}");
    assert_eq!(tunnelled, direct);
}

#[tokio::test(flavor = "multi_thread")]
async fn ipp_1_1() {
    same("ipp-1.1.test", 25).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipp_2_0() {
    same("ipp-2.0.test", 28).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipp_everywhere() {
    same("ipp-everywhere.test", 28).await;
}
