//! The printer before CUPS's own conformance tests, which come with `ipptool`.

use std::net::SocketAddr;

use spice_tunnel::printer::{Config, Printer};
use tokio::net::TcpListener;
use tokio::process::Command;

/// A printer that prints into a directory until it is dropped.
async fn printer(directory: &std::path::Path) -> (Printer, SocketAddr, tokio::task::JoinSet<()>) {
    let printer = Printer::new(Config::new("Conformance", directory));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let serving = printer.clone();
    tasks.spawn(async move { serving.serve(listener).await.unwrap() });
    (printer, address, tasks)
}

/// Runs a test file of ipptool's; gives the names of the passed and all of what it says.
async fn ipptool(address: SocketAddr, document: &std::path::Path, test: &str) -> (Vec<String>, String) {
    let output = Command::new("ipptool")
        .args(["-I", "-t", "-f"])
        .arg(document)
        .arg(format!("ipp://{address}/ipp/print"))
        .arg(test)
        .output()
        .await
        .expect("ipptool does not start: tests/install-prerequisites.sh");
    let text = String::from_utf8(output.stdout).unwrap();
    let passed =
        text.lines().filter_map(|line| line.strip_suffix("[PASS]")).map(|name| name.trim().to_owned());
    (passed.collect(), text)
}

#[tokio::test]
async fn ipptool_is_content() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("document.pdf");
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 253) as u8).collect();
    std::fs::write(&document, &content).unwrap();
    let jobs = directory.path().join("jobs");
    std::fs::create_dir(&jobs).unwrap();
    let (printer, address, _tasks) = printer(&jobs).await;

    for test in ["get-printer-attributes.test", "validate-job.test", "print-job.test"] {
        let (passed, text) = ipptool(address, &document, test).await;
        assert_eq!(passed.len(), 1, "{test}: {text}");
    }
    let job = printer.ended(1).await;
    assert_eq!(std::fs::read(job.file.unwrap()).unwrap(), content);

    // It skips what needs documents that are not packaged, but fails nothing.
    for (test, least) in [("ipp-1.1.test", 18), ("ipp-2.0.test", 20)] {
        let (passed, text) = ipptool(address, &document, test).await;
        assert!(!text.contains("[FAIL]"), "{test}: {text}");
        assert!(passed.len() >= least, "only {} passed of {test}: {text}", passed.len());
    }
}
