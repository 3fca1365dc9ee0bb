use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::operation::BadHead;
use super::*;

struct Shop {
    printer: Printer,
    directory: tempfile::TempDir,
}

fn shop() -> Shop {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new("Test & <Printer>", directory.path());
    config.largest_job = 1 << 20;
    Shop { printer: Printer::new(config), directory }
}

impl Shop {
    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(4096);
        let printer = self.printer.clone();
        tokio::spawn(async move { printer.serve_connection(theirs).await });
        ours
    }

    async fn print(&self, document: &[u8]) -> Result<Printed, SubmitError> {
        let document = Bytes::copy_from_slice(document);
        submit(self.connect(), "198.18.0.9:631", "a job", "application/pdf", document).await
    }

    /// Sends raw bytes, gives all that comes back until the printer closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        let mut back = Vec::new();
        let talk = async {
            let _ = stream.write_all(request).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut back).await;
        };
        timeout(Duration::from_secs(10), talk).await.expect("the printer neither answers nor closes");
        String::from_utf8_lossy(&back).into_owned()
    }

    async fn ipp(&self, operation: u16, attributes: &[(u8, &str, &[u8])]) -> String {
        let mut body = vec![2, 0];
        body.extend(operation.to_be_bytes());
        body.extend([0, 0, 0, 1, 1]);
        for (tag, name, value) in attributes {
            body.push(*tag);
            body.extend((name.len() as u16).to_be_bytes());
            body.extend(name.as_bytes());
            body.extend((value.len() as u16).to_be_bytes());
            body.extend(*value);
        }
        body.push(3);
        self.post(&body).await
    }

    async fn post(&self, body: &[u8]) -> String {
        let mut request = format!(
            "POST /ipp/print HTTP/1.1\r\nHost: me:631\r\nConnection: close\r\nContent-Type: application/ipp\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.raw(&request).await
    }
}

const COMMON: [(u8, &str, &[u8]); 3] = [
    (0x47, "attributes-charset", b"utf-8"),
    (0x48, "attributes-natural-language", b"en"),
    (0x45, "printer-uri", b"ipp://me:631/ipp/print"),
];

#[tokio::test]
async fn a_job_is_stored_hashed_shown_and_given_back() {
    let shop = shop();
    let document: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let printed = shop.print(&document).await.unwrap();
    assert_eq!(printed, Printed { job: 1, state: 9 });
    let job = shop.printer.ended(1).await;
    assert_eq!(job.state, JobState::Stored);
    assert_eq!(job.bytes, 300_000);
    assert_eq!(job.sha256.as_deref(), Some(hex(&openssl::sha::sha256(&document)).as_str()));
    assert_eq!(std::fs::read(job.file.unwrap()).unwrap(), document);

    let page = shop.raw(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(page.contains("Test &amp; &lt;Printer&gt;"), "{page}");
    assert!(page.contains(job.sha256.as_deref().unwrap()), "{page}");
    let mut stream = shop.connect();
    stream.write_all(b"GET /jobs/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert!(back.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(back.ends_with(&document));
}

#[tokio::test]
async fn many_jobs_on_one_printer_have_their_own_files() {
    let shop = shop();
    for number in 1..=5u8 {
        let printed = shop.print(&[number; 10]).await.unwrap();
        assert_eq!(printed.job, u32::from(number));
    }
    let jobs = shop.printer.jobs();
    for (number, job) in (1..=5u8).zip(&jobs) {
        assert_eq!(std::fs::read(job.file.as_ref().unwrap()).unwrap(), [number; 10]);
    }
}

#[tokio::test]
async fn a_job_that_is_too_large_is_refused_and_leaves_no_file() {
    let shop = shop();
    let refused = shop.print(&vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(refused, SubmitError::Refused(IppStatus::ClientErrorRequestEntityTooLong)), "{refused}");
    assert_eq!(shop.printer.ended(1).await.state, JobState::Failed);
    assert_eq!(std::fs::read_dir(shop.directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_job_that_breaks_off_has_failed() {
    let shop = shop();
    let mut stream = shop.connect();
    let mut body = vec![2, 0, 0, 2, 0, 0, 0, 1, 1];
    for (tag, name, value) in COMMON {
        body.push(tag);
        body.extend((name.len() as u16).to_be_bytes());
        body.extend(name.as_bytes());
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(value);
    }
    body.push(3);
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/ipp\r\nContent-Length: 5000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    drop(stream);
    let job = timeout(Duration::from_secs(10), shop.printer.ended(1)).await.expect("the job never ends");
    assert_eq!(job.state, JobState::Failed);
}

#[tokio::test]
async fn it_describes_itself() {
    let shop = shop();
    let all = shop.ipp(0x000b, &COMMON).await;
    for expected in ["printer-uri-supported", "ipp://me:631/ipp/print", "media-col-default", "printer-uuid"] {
        assert!(all.contains(expected), "{expected} is missing in {all:?}");
    }
    let mut one = COMMON.to_vec();
    one.push((0x44, "requested-attributes", b"printer-name"));
    let one = shop.ipp(0x000b, &one).await;
    assert!(one.contains("printer-name") && !one.contains("printer-uuid"), "{one:?}");
}

#[tokio::test]
async fn create_send_ask_and_list() {
    let shop = shop();
    let created = shop.ipp(0x0005, &COMMON).await;
    assert!(created.contains("job-incoming"), "{created:?}");
    let mut of_job = COMMON.to_vec();
    of_job.push((0x21, "job-id", &[0, 0, 0, 1]));
    let unclear = shop.ipp(0x0006, &of_job).await;
    assert!(unclear.contains("\u{2}\0\u{4}\0\0\0\0\u{1}"), "last-document must be asked for: {unclear:?}");
    of_job.push((0x22, "last-document", &[1]));
    let sent = shop.ipp(0x0006, &of_job).await;
    assert!(sent.contains("job-completed-successfully"), "{sent:?}");
    let again = shop.ipp(0x0006, &of_job).await;
    assert!(
        again.contains("\u{2}\0\u{4}\u{4}\0\0\0\u{1}"),
        "a second document must be not possible: {again:?}"
    );
    let asked = shop.ipp(0x0009, &of_job).await;
    assert!(asked.contains("job-completed-successfully"), "{asked:?}");
    let mut completed = COMMON.to_vec();
    completed.push((0x44, "which-jobs", b"completed"));
    let listed = shop.ipp(0x000a, &completed).await;
    assert!(listed.contains("job-id") && !listed.contains("job-state"), "{listed:?}");
    let none = shop.ipp(0x000a, &COMMON).await;
    assert!(!none.contains("job-id"), "{none:?}");
}

#[tokio::test]
async fn broken_and_unknown_requests_are_refused() {
    let shop = shop();
    let status = |answer: &str| answer.split_whitespace().nth(1).unwrap_or("nothing").to_owned();
    assert_eq!(status(&shop.post(b"\x02\x00\x00\x0b\x00\x00\x00\x01\x01\x7f").await), "400");
    assert_eq!(status(&shop.post(b"\x02\x00\x00").await), "400");
    let mut long = b"\x02\x00\x00\x0b\x00\x00\x00\x01\x01".to_vec();
    for _ in 0..40 {
        long.extend(b"\x41\x00\x01a\x02\x00");
        long.extend([b'x'; 512]);
    }
    assert_eq!(status(&shop.post(&long).await), "400");
    // A value with a language whose inner length goes beyond it.
    let language = shop.ipp(0x000b, &[(0x36, "x", &[0xff, 0xff, b'e'])]).await;
    assert_eq!(status(&language), "400");
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(HEAD_LIMIT));
    assert_eq!(status(&shop.raw(head.as_bytes()).await), "431");
    assert_eq!(
        status(&shop.raw(b"GET /jobs/../x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await),
        "404"
    );
    // Unknown operation 0x3fff: server-error-operation-not-supported, 0x0501.
    let unknown = shop.ipp(0x3fff, &COMMON).await;
    assert!(unknown.contains("\u{2}\0\u{5}\u{1}\0\0\0\u{1}"), "{unknown:?}");
}

#[test]
fn a_head_is_measured_at_every_cut() {
    let head = b"\x02\x00\x00\x0b\x00\x00\x00\x01\x01\x47\x00\x02ab\x00\x01c\x03";
    for cut in 0..head.len() {
        assert_eq!(head_len(&head[..cut]), Ok(None), "cut at {cut}");
    }
    let mut more = head.to_vec();
    more.extend(b"document");
    assert_eq!(head_len(&more), Ok(Some(head.len())));
    assert_eq!(head_len(b"\x02\x00\x00\x0b\x00\x00\x00\x01\x00"), Err(BadHead::Tag(0)));
}

#[test]
fn the_uuid_has_its_form_and_follows_the_name() {
    let id = uuid("a");
    assert_eq!(id.len(), 36);
    assert_eq!(&id[14..15], "8");
    assert_eq!(id, uuid("a"));
    assert_ne!(id, uuid("b"));
}
