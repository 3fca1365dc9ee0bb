//! The conformance suites of ipptool say of a printer through the tunnel what they say of it directly.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::documents::{noise, pdf};
use crate::lan::{Desk, Guest, Lan, Machine, Pace, Printer};
use crate::vm::rig::until;

const SUITES: &str = "/usr/share/cups/ipptool";
const LIMIT: Duration = Duration::from_secs(900);

/// The suites, and beside them every document that they print: the package brings none.
fn copy(into: &Path) {
    for file in
        std::fs::read_dir(SUITES).expect("this test needs cups-ipp-utils: tests/install-prerequisites.sh")
    {
        let file = file.unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(into.join(file.file_name()), shortened(&text)).unwrap();
    }
    for suite in ["ipp-1.1.test", "ipp-2.0.test", "ipp-everywhere.test"] {
        let text = std::fs::read_to_string(into.join(suite)).unwrap();
        for name in text.lines().filter_map(document) {
            let path = into.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // Nobody looks into it.
            std::fs::write(path, if name.ends_with(".pdf") { pdf(2, "Sample") } else { noise(40_000, 9) })
                .unwrap();
        }
    }
    std::fs::write(into.join("document.pdf"), pdf(3, "Document")).unwrap();
}

/// The document that a line of a suite names.
fn document(line: &str) -> Option<&str> {
    line.trim().strip_prefix("FILE ").map(str::trim).filter(|name| !name.contains('$'))
}

/// Of hundreds of rasters one picture in one resolution: the other ones are the same tests again, for minutes.
fn shortened(suite: &str) -> String {
    let (mut kept, mut block) = (String::new(), String::new());
    for line in suite.lines() {
        block.push_str(line);
        block.push('\n');
        if line == "{" {
            continue;
        }
        if line == "}" || !block.starts_with('{') {
            let raster = block.lines().filter_map(document).find(|name| name.ends_with(".pwg"));
            if raster.is_none_or(|name| name.contains("color.jpg-4x6") && name.contains("300dpi")) {
                kept.push_str(&block);
            }
            block.clear();
        }
    }
    kept + &block
}

/// What ipptool says of a test.
struct Verdict {
    name: String,
    verdict: String,
    why: String,
}

async fn verdicts(machine: &Machine, printer: &str, suite: &str) -> Vec<Verdict> {
    let dir = machine.path("ipptool");
    std::fs::create_dir_all(&dir).unwrap();
    copy(&dir);
    let mut command = machine.command("ipptool");
    command.args(["-V", "2.0", "-tI", "-T", "60", "-f"]).arg(dir.join("document.pdf"));
    command.arg(printer).arg(dir.join(suite));
    let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.is_empty(), "ipptool could not run {suite}: {complaint}");
    let mut verdicts: Vec<Verdict> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let named = line.rsplit_once('[').and_then(|(name, rest)| Some((name, rest.strip_suffix(']')?)));
        match (named, verdicts.last_mut()) {
            (Some((name, verdict @ ("PASS" | "FAIL" | "SKIP"))), _) => {
                let (name, verdict) = (name.trim().to_owned(), verdict.to_owned());
                verdicts.push(Verdict { name, verdict, why: String::new() });
            }
            (_, Some(last)) => last.why = format!("{}\n{line}", last.why),
            (_, None) => {}
        }
    }
    verdicts
}

async fn same(suite: &str, at_least: usize) {
    let lan = Lan::new().await;
    // Two of the same kind, so that none remembers the other's jobs.
    let (one, other) =
        tokio::join!(Printer::silent(&lan, "one", Pace::Slow), Printer::silent(&lan, "other", Pace::Slow));
    let (mut desk, guest) = tokio::join!(Desk::new(&lan), Guest::boot(&[]));
    let at = desk.share(&guest, &[other.address()], &[]).await[0];
    for printer in [&one, &other] {
        // In its first second it says that it has been up for none, which a test does not like.
        let uri = format!("ipp://{}/ipp/print", printer.address());
        until("the printer to have been up for a second", || async {
            let said = desk.machine.run(&["ipptool", "-tv", &uri, "get-printer-attributes.test"]).await;
            let (_, uptime) = said.split_once("printer-up-time (integer) = ")?;
            (!uptime.starts_with("0\n")).then_some(())
        })
        .await;
    }
    let (direct, tunnelled) = (format!("ipp://{}/ipp/print", one.address()), format!("ipp://{at}/ipp/print"));
    let (direct, tunnelled) =
        tokio::join!(verdicts(&desk.machine, &direct, suite), verdicts(&guest.machine, &tunnelled, suite));
    let passed = direct.iter().filter(|direct| direct.verdict == "PASS").count();
    println!("{suite}: {passed} of {} pass directly", direct.len());
    for (direct, tunnelled) in direct.iter().zip(&tunnelled) {
        assert_eq!(tunnelled.name, direct.name, "another test follows");
        assert!(
            tunnelled.verdict == direct.verdict,
            "{}: {} directly{}\nand {} through the tunnel{}",
            direct.name,
            direct.verdict,
            direct.why,
            tunnelled.verdict,
            tunnelled.why
        );
    }
    assert_eq!(tunnelled.len(), direct.len());
    assert!(passed >= at_least, "{passed} tests passed directly, expected {at_least}");
}

/// All at the same time: most of it is waiting for printers.
#[tokio::test(flavor = "multi_thread")]
async fn every_suite_says_of_a_printer_through_the_tunnel_what_it_says_directly() {
    tokio::join!(same("ipp-1.1.test", 25), same("ipp-2.0.test", 26), same("ipp-everywhere.test", 32));
}
