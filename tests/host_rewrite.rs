//! A real CUPS on loopback, which answers to `localhost` and to nothing else, before a guest that knows it by another name.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipp::attribute::IppAttribute;
use ipp::model::{DelimiterTag, IppVersion, Operation};
use ipp::request::IppRequestResponse;
use ipp::value::IppValue;
use spice_tunnel::guest::{Config, Guest};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Command;

use crate::vm::rig::{Program, serve, soon, until};

/// What the guest calls it.
const NAME: &str = "printer.local:631";

/// What stands at `/`.
const PAGE: &str = "<html><body>printers</body></html>\n";

/// Prints a file and asks for the printer, with the guest's name in `printer-uri` both times.
const JOB: &str = r#"
{
    NAME "Print-Job"
    OPERATION Print-Job
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri ipp://printer.local:631/printers/raw
    ATTR name requesting-user-name guest
    ATTR mimeMediaType document-format application/vnd.cups-raw
    FILE $filename
    STATUS successful-ok
}
{
    NAME "Get-Printer-Attributes"
    OPERATION Get-Printer-Attributes
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri ipp://printer.local:631/printers/raw
    STATUS successful-ok
}
"#;

/// A CUPS of its own, with one printer, that keeps what it was given to print.
struct Cups {
    program: Program,
    port: u16,
    directory: TempDir,
}

impl Cups {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let write = |name: &str, text: String| fs::write(root.join(name), text).unwrap();
        write(
            "cupsd.conf",
            format!(
                "Listen 127.0.0.1:{port}\nBrowsing Off\nWebInterface Yes\nPreserveJobFiles Yes\nLogLevel info\n\
                 <Location />\nAllow all\n</Location>\n<Policy default>\n<Limit All>\nAllow all\n</Limit>\n</Policy>\n"
            ),
        );
        let at = root.display();
        write(
            "cups-files.conf",
            format!(
                "ServerRoot {at}\nRequestRoot {at}/spool\nCacheDir {at}/cache\nStateDir {at}/state\nTempDir {at}/spool\n\
                 AccessLog {at}/access_log\nErrorLog stderr\nPageLog {at}/page_log\nFileDevice Yes\nUser lp\nGroup lp\nPrintcap {at}/printcap\n\
                 DocumentRoot {at}/pages\n"
            ),
        );
        write(
            "printers.conf",
            "<Printer raw>\nDeviceURI file:///dev/null\nState Idle\nAccepting Yes\n</Printer>\n".into(),
        );
        for name in ["spool", "cache", "state", "pages"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("pages/index.html"), PAGE).unwrap();
        let mut command = Command::new("/usr/sbin/cupsd");
        command.arg("-f").arg("-c").arg(root.join("cupsd.conf")).arg("-s").arg(root.join("cups-files.conf"));
        let mut program = Program::start("cupsd", command);
        until("cupsd", || async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        assert!(program.is_running());
        Self { program, port, directory }
    }

    /// The document of the job with this number, as CUPS got it.
    fn document(&self, job: u32) -> Vec<u8> {
        fs::read(self.directory.path().join(format!("spool/d{job:05}-001"))).unwrap()
    }

    fn documents(&self) -> usize {
        let entries = fs::read_dir(self.directory.path().join("spool")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('d')).count()
    }
}

/// A guest that reaches the CUPS twice: as it is, and by the name that it wants.
struct Stage {
    cups: Cups,
    guest: Guest,
    plain: SocketAddr,
    renamed: SocketAddr,
    connect: Program,
    _serve: Program,
    _directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let cups = Cups::start().await;
        let directory = tempfile::tempdir().unwrap();
        let nic = directory.path().join("nic");
        let card = format!("listen:{}", nic.display());
        let (serve, spice) = serve(&["--standalone", "--listen", "127.0.0.1:0", "--nic", &card]).await;
        let port = cups.port;
        let mut connect = Program::tunnel([
            "connect",
            &format!("spice://{spice}"),
            "--json",
            "--share",
            &format!("tcp://127.0.0.1:{port}?name=plain"),
            "--share",
            &format!("tcp://localhost:{port}?name=renamed&host=localhost:{port}"),
        ]);
        let mut mapped = Vec::new();
        for _ in 0..2 {
            let event = connect.event("mapped").await;
            let address: SocketAddr =
                format!("{}:{}", event["virtual_ip"].as_str().unwrap(), event["port"]).parse().unwrap();
            mapped.push((event["name"].as_str().unwrap().to_owned(), address));
        }
        let find = |name: &str| mapped.iter().find(|(named, _)| named == name).unwrap().1;
        let (plain, renamed) = (find("plain"), find("renamed"));
        let guest = Guest::start(UnixStream::connect(&nic).await.unwrap(), Config::default());
        soon("the guest's address", guest.lease()).await.unwrap();
        Self { cups, guest, plain, renamed, connect, _serve: serve, _directory: directory }
    }

    /// A connection that may be used again and again.
    async fn http(&self, to: SocketAddr) -> SendRequest<Full<Bytes>> {
        let stream = soon("a connection", self.guest.connect(to.ip(), to.port())).await.unwrap();
        let (requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        requests
    }

    /// Where programs of this machine reach what the guest reaches at `to`. CUPS's own say `localhost` to whatever is on loopback,
    /// so what a guest would say is put in its place here.
    async fn door(&self, to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let guest = self.guest.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let guest = guest.clone();
                tokio::spawn(async move {
                    let far = guest.connect(to.ip(), to.port()).await.unwrap();
                    let ((near_in, mut near_out), (mut far_in, far_out)) =
                        (tokio::io::split(near), tokio::io::split(far));
                    let said = format!("Host: localhost:{}\r\n", address.port());
                    let up = replaced(near_in, far_out, said.as_bytes(), b"Host: printer.local:631\r\n");
                    let down = async {
                        tokio::io::copy(&mut far_in, &mut near_out).await?;
                        near_out.shutdown().await
                    };
                    // A reset, or an end: both halves are gone then.
                    let _ = tokio::try_join!(up, down);
                });
            }
        });
        address
    }

    /// Runs [`JOB`] with a document; gives how many of its two requests passed, and all of what is said.
    async fn ipptool(&self, door: SocketAddr, document: &Path, options: &[&str]) -> (usize, String) {
        let test = self.cups.directory.path().join("job.test");
        fs::write(&test, JOB).unwrap();
        let mut command = Command::new("ipptool");
        command.args(["-I", "-t", "-T", "20"]).args(options).arg("-f").arg(document);
        command.arg(format!("ipp://{door}/printers/raw")).arg(test).kill_on_drop(true);
        let output = soon("ipptool", command.output()).await.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (text.matches("[PASS]").count(), text)
    }
}

#[tokio::test]
async fn cups_is_printed_to_by_another_name() {
    let stage = Stage::set().await;
    let document = stage.cups.directory.path().join("document");
    let content: Vec<u8> =
        (0..6_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(&document, &content).unwrap();

    let (plain, renamed) = (stage.door(stage.plain).await, stage.door(stage.renamed).await);
    let (passed, text) = stage.ipptool(plain, &document, &[]).await;
    assert_eq!(passed, 0, "{text}");
    assert_eq!(stage.cups.documents(), 0);
    // In chunks, and with a length; both ask for `100 Continue`.
    for (job, option) in [(1, "-C"), (2, "-L")] {
        let (passed, text) = stage.ipptool(renamed, &document, &[option]).await;
        assert_eq!(passed, 2, "{option}: {text}");
        assert!(stage.cups.document(job) == content, "job {job} is not what was sent");
    }
    assert_eq!(stage.cups.documents(), 2);

    // TLS is not to be had, neither asked for (RFC 2817) nor from the first byte, and the guest hears so at once.
    for option in ["-E", "-S"] {
        let (passed, text) = stage.ipptool(renamed, &document, &[option]).await;
        assert_eq!(passed, 0, "{option}: {text}");
    }
    assert_eq!(stage.cups.documents(), 2);
    let warned = stage.connect.complaints().iter().any(|line| line.contains("begins with TLS"));
    assert!(warned, "{:?}", stage.connect.complaints());
    drop(stage.cups.program);
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let stage = Stage::set().await;
    let get = |path: &str| {
        Request::get(path).header(HOST, NAME).header("Upgrade", "TLS/1.0").body(Full::default()).unwrap()
    };
    let mut requests = stage.http(stage.plain).await;
    let response = soon("an answer", requests.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);

    let mut requests = stage.http(stage.renamed).await;
    let content: Vec<u8> = (0..300_000u32).map(|n| n.wrapping_mul(40_503).to_be_bytes()[2]).collect();
    for round in 1..=5 {
        let response = soon("an answer", requests.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let page = soon("a page", response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(page, PAGE);

        // A target that names the host, as a proxy gets it.
        let mut body = print_job();
        body.extend(&content);
        let request = Request::builder()
            .method(Method::POST)
            .uri("http://printer.local:631/printers/raw")
            .header(HOST, NAME)
            .header("Content-Type", "application/ipp")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = soon("an answer", requests.send_request(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let answer = soon("an answer", response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(&answer[2..4], [0, 0], "not successful-ok: {answer:?}");
        assert!(stage.cups.document(round) == content);
    }
}

/// Requests as other clients make them, byte by byte. Not one behind the other: CUPS forgets a request that comes before the
/// answer to the last.
#[tokio::test]
async fn unusual_requests_are_answered_too() {
    let stage = Stage::set().await;
    let ipp = print_job();
    let head = "POST /printers/raw HTTP/1.1\r\nHOST:printer.local\r\nContent-Type: application/ipp\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let first = format!("{head}{:x} ;a=b\r\n", ipp.len());
    let post = [first.as_bytes(), &ipp, b"\r\n5\r\nHost:\r\n0\r\n\r\n"].concat();
    let requests: [&[u8]; 4] = [
        &post,
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nhost: printer.local\nConnection: close\n\n",
        b"GET http://printer.local/ HTTP/1.1\r\nHost: printer.local\r\nConnection: close\r\n\r\n",
    ];
    for request in requests {
        let to = stage.renamed;
        let mut stream = soon("a connection", stage.guest.connect(to.ip(), to.port())).await.unwrap();
        for byte in request.chunks(1) {
            stream.write_all(byte).await.unwrap();
        }
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.lines().next().unwrap_or_default();
        assert!(status.ends_with(" 200 OK"), "{status:?} to {:?}", String::from_utf8_lossy(request));
    }
    assert_eq!(stage.cups.document(1), b"Host:");
}

/// Copies to the end, with one text in place of another.
async fn replaced(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    old: &[u8],
    new: &[u8],
) -> io::Result<()> {
    let (mut held, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        let n = from.read(&mut buffer).await?;
        held.extend_from_slice(&buffer[..n]);
        while let Some(at) = held.windows(old.len()).position(|part| part == old) {
            held.splice(at..at + old.len(), new.iter().copied());
        }
        // What may be the beginning of it waits for the rest.
        let kept =
            (0..old.len().min(held.len() + 1)).rev().find(|kept| held.ends_with(&old[..*kept])).unwrap_or(0);
        let whole = held.len() - if n == 0 { 0 } else { kept };
        to.write_all(&held[..whole]).await?;
        held.drain(..whole);
        if n == 0 {
            return to.shutdown().await;
        }
    }
}

/// Print-Job up to its document.
fn print_job() -> Vec<u8> {
    let uri = "ipp://printer.local:631/printers/raw".parse().unwrap();
    let mut request = IppRequestResponse::new(IppVersion::v1_1(), Operation::PrintJob, Some(uri)).unwrap();
    let format = IppValue::new_mime_media_type("application/vnd.cups-raw").unwrap();
    let format = IppAttribute::with_name("document-format", format).unwrap();
    request.attributes_mut().add(DelimiterTag::OperationAttributes, format);
    request.to_bytes().to_vec()
}
