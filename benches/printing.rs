//! What a print job costs on the tunnel's link, by the language of the document, and what compression would save of it.
//!
//! ```console
//! $ cargo bench --bench printing                          # a table
//! $ cargo bench --bench printing -- --json printing.json  # and a file
//! $ cargo bench --bench printing -- --keep DIRECTORY      # and the documents and what went over the link
//! ```
//!
//! Ghostscript makes two documents as PDF, and of these PostScript, PCL and PWG raster, as a guest's filters would. ipptool prints
//! each with the requests that CUPS makes of a job, by the demo's guest → netstack → tunnel → a real CUPS, which must have got it
//! byte by byte. All that crosses the link is kept and counted. What goes to the printer is then compressed by zstd and lz4, each at
//! its fastest: as one stream, and by zstd each message by itself too. No time is measured.
//!
//! On Debian: `apt install ghostscript cups-daemon cups-ipp-utils zstd lz4`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use clap::Parser;
use client_glue::{Event, Linked, TunnelConfig};
use server_glue::nic::Nic;
use server_glue::{NetworkConfig, network};
use spice_proto::frame::{self, Split};
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage};
use spice_tunnel::guest::{Config, Guest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};

#[derive(Parser)]
struct Args {
    /// Also write the rows to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Leave the documents and what went over the link in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    for program in ["gs", "cupsd", "ipptool", "zstd", "lz4"] {
        assert!(
            is_installed(program),
            "{program} is missing; on Debian: apt install ghostscript cups-daemon cups-ipp-utils zstd lz4"
        );
    }
    let scratch = tempfile::tempdir().unwrap();
    let directory = args.keep.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&directory).unwrap();

    let sources = [("text, 10 pages", "text", text_pages(10)), ("photo, 1 page", "photo", photo_page())];
    let cups = Cups::start().await;
    let setup = Setup::start(cups.port).await;
    let mut rows = Vec::new();
    for (title, name, source) in sources {
        let mut made_of = directory.join(format!("{name}.source.ps"));
        std::fs::write(&made_of, source).unwrap();
        for (at, format) in FORMATS.iter().enumerate() {
            let document = directory.join(format!("{name}.{}", format.extension));
            format.make(&made_of, &document);
            // The first is the PDF.
            if at == 0 {
                made_of.clone_from(&document);
            }
            let row = setup.print(&cups, title, format, &document).await;
            eprintln!("{}", row.text());
            rows.push(row);
        }
    }
    println!("{}", Row::head());
    for row in &rows {
        println!("{}", row.text());
    }
    if let Some(path) = args.json {
        std::fs::write(path, rows.iter().map(Row::json).collect::<String>()).unwrap();
    }
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]).any(|path| path.join(program).exists())
}

/// A page description language, and how Ghostscript makes it. CUPS has no name for PCL and takes it as it is.
struct Format {
    title: &'static str,
    extension: &'static str,
    mime: &'static str,
    device: &'static str,
    options: &'static [&'static str],
}

const FORMATS: &[Format] = &[
    Format {
        title: "PDF",
        extension: "pdf",
        mime: "application/pdf",
        device: "pdfwrite",
        options: &["-dPDFSETTINGS=/printer"],
    },
    Format {
        title: "PostScript",
        extension: "ps",
        mime: "application/postscript",
        device: "ps2write",
        options: &[],
    },
    Format {
        title: "PCL XL, colour, 600 dpi",
        extension: "pxl",
        mime: "application/vnd.cups-raw",
        device: "pxlcolor",
        options: &["-r600"],
    },
    Format {
        title: "PCL 5e, black, 600 dpi",
        extension: "pcl",
        mime: "application/vnd.cups-raw",
        device: "ljet4",
        options: &["-r600"],
    },
    Format {
        title: "PWG raster, sRGB, 300 dpi",
        extension: "pwg",
        mime: "image/pwg-raster",
        device: "pwgraster",
        // 19: sRGB; three times 8 bits for each pixel.
        options: &["-r300", "-dcupsColorSpace=19", "-dcupsBitsPerColor=8", "-dcupsColorOrder=0"],
    },
];

impl Format {
    fn make(&self, source: &Path, document: &Path) {
        let output = Command::new("gs")
            .args(["-q", "-dBATCH", "-dNOPAUSE", "-dSAFER", "-sPAPERSIZE=a4"])
            .arg(format!("-sDEVICE={}", self.device))
            .arg(format!("-sOutputFile={}", document.display()))
            .args(self.options)
            .arg(source)
            .output()
            .unwrap();
        assert!(output.status.success(), "gs: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// So many pages of this project's own prose.
fn text_pages(pages: usize) -> Vec<u8> {
    const LINES: usize = 62;
    const COLUMNS: usize = 92;
    let prose = [include_str!("../spice-proto/PROTOCOL.md"), include_str!("../README.md")].concat();
    let mut lines = Vec::new();
    for paragraph in prose.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if line.len() + word.len() >= COLUMNS {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word.chars().map(|c| if (' '..='~').contains(&c) { c } else { '-' }));
        }
        lines.push(line);
    }
    assert!(lines.len() >= pages * LINES, "the prose is {} lines long", lines.len());
    let mut source = "%!PS\n".to_owned();
    for page in lines.chunks(LINES).take(pages) {
        for (at, line) in page.iter().enumerate() {
            let face = if line.starts_with('#') { "Helvetica-Bold" } else { "Times-Roman" };
            let escaped = line.replace('\\', "\\\\").replace('(', "\\(").replace(')', "\\)");
            let y = 790 - at * 12;
            writeln!(source, "/{face} findfont 11 scalefont setfont 50 {y} moveto ({escaped}) show").unwrap();
        }
        source += "showpage\n";
    }
    source.into_bytes()
}

/// A page with one picture of two megapixels as a camera makes it, as far as compression goes: detail of every size, each weaker
/// than the one twice as large, and the grain of a sensor on top.
fn photo_page() -> Vec<u8> {
    const WIDTH: usize = 1800;
    const HEIGHT: usize = 1200;
    let mut source = format!(
        "%!PS\n50 200 translate 495 330 scale\n/DeviceRGB setcolorspace\n<< /ImageType 1 /Width {WIDTH} /Height {HEIGHT} \
         /BitsPerComponent 8 /Decode [0 1 0 1 0 1] /ImageMatrix [{WIDTH} 0 0 -{HEIGHT} 0 {HEIGHT}] \
         /DataSource currentfile /ASCIIHexDecode filter >> image\n"
    );
    let octaves = 9;
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let light = noise(x, y, octaves, 1);
            for channel in 0..3 {
                // Colours differ in what is large only.
                let value = 0.7 * light + 0.3 * noise(x, y, 4, 2 + channel);
                let grain = (hash(x, y, 99 + channel) - 0.5) * 0.06;
                let level = ((value - 0.5) * 1.8 + 0.5 + grain).clamp(0.0, 1.0);
                write!(source, "{:02x}", (level * 255.0) as u8).unwrap();
            }
        }
        source.push('\n');
    }
    source += ">\nshowpage\n";
    source.into_bytes()
}

/// Smooth noise of several sizes, between 0 and 1.
fn noise(x: usize, y: usize, octaves: u32, seed: u64) -> f64 {
    let (mut sum, mut weight) = (0.0, 0.0);
    for octave in 0..octaves {
        let size = 512 >> octave;
        let (column, row) = (x / size, y / size);
        let smooth = |offset: usize| {
            let t = offset as f64 / size as f64;
            t * t * (3.0 - 2.0 * t)
        };
        let (u, v) = (smooth(x % size), smooth(y % size));
        let at = |dx, dy| hash(column + dx, row + dy, seed * 100 + u64::from(octave));
        let top = at(0, 0) * (1.0 - u) + at(1, 0) * u;
        let bottom = at(0, 1) * (1.0 - u) + at(1, 1) * u;
        let strength = 0.7_f64.powi(octave as i32);
        sum += strength * (top * (1.0 - v) + bottom * v);
        weight += strength;
    }
    sum / weight
}

/// A number between 0 and 1 that looks random.
fn hash(x: usize, y: usize, seed: u64) -> f64 {
    let mut n = (x as u64) << 40 ^ (y as u64) << 16 ^ seed;
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        n = (n ^ n >> 33).wrapping_mul(factor);
    }
    ((n ^ n >> 33) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A CUPS of its own on loopback, with one printer that prints nothing, and that keeps what it was given.
struct Cups {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Cups {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let daemon = format!(
            "Listen 127.0.0.1:{port}\nBrowsing Off\nPreserveJobFiles Yes\n<Location />\nAllow all\n</Location>\n\
             <Policy default>\n<Limit All>\nAllow all\n</Limit>\n</Policy>\n"
        );
        let files = format!(
            "ServerRoot {root}\nRequestRoot {root}/spool\nCacheDir {root}/cache\nStateDir {root}/state\n\
             TempDir {root}/spool\nAccessLog {root}/access_log\nErrorLog {root}/error_log\nPageLog {root}/page_log\n\
             FileDevice Yes\nUser lp\nGroup lp\nPrintcap {root}/printcap\n"
        );
        let printers = "<Printer raw>\nDeviceURI file:///dev/null\nState Idle\nAccepting Yes\n</Printer>\n";
        for (name, text) in [
            ("cupsd.conf", &*daemon),
            ("cups-files.conf", &*files),
            ("printers.conf", printers),
            ("job.test", JOB),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        for name in ["spool", "cache", "state"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let child = Command::new("/usr/sbin/cupsd")
            .args(["-f", "-c", &format!("{root}/cupsd.conf"), "-s", &format!("{root}/cups-files.conf")])
            .spawn()
            .unwrap();
        let cups = Self { child, port, directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < deadline, "cupsd did not listen within 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cups
    }

    /// The document that it got last; it forgets it.
    fn take_document(&self) -> Vec<u8> {
        let spool = std::fs::read_dir(self.directory.path().join("spool")).unwrap();
        let is_document = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('d');
        let mut documents: Vec<PathBuf> =
            spool.map(|entry| entry.unwrap().path()).filter(is_document).collect();
        documents.sort();
        std::fs::read(documents.pop().expect("a document was printed")).unwrap()
    }
}

impl Drop for Cups {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What CUPS says to a printer for one job.
const JOB: &str = r#"
DEFINE-DEFAULT format application/octet-stream
{
    OPERATION Get-Printer-Attributes
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri $uri
    STATUS successful-ok
}
{
    OPERATION Validate-Job
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri $uri
    ATTR name requesting-user-name guest
    ATTR name job-name document
    ATTR mimeMediaType document-format $format
    STATUS successful-ok
}
{
    OPERATION Create-Job
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri $uri
    ATTR name requesting-user-name guest
    ATTR name job-name document
    STATUS successful-ok
    EXPECT job-id
}
{
    OPERATION Send-Document
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri $uri
    ATTR integer job-id $job-id
    ATTR name requesting-user-name guest
    ATTR mimeMediaType document-format $format
    ATTR boolean last-document true
    FILE $filename
    STATUS successful-ok
}
{
    OPERATION Get-Job-Attributes
    GROUP operation-attributes-tag
    ATTR charset attributes-charset utf-8
    ATTR naturalLanguage attributes-natural-language en
    ATTR uri printer-uri $uri
    ATTR integer job-id $job-id
    ATTR name requesting-user-name guest
    STATUS successful-ok
}
"#;

/// Both ends of a tunnel in this process, with a guest before it and the CUPS behind.
struct Setup {
    link: Arc<Mutex<Link>>,
    form: frame::HeaderForm,
    /// Where ipptool reaches what the guest reaches.
    door: SocketAddr,
    _network: server_glue::Network,
    _joined: server_glue::Joined,
}

/// All that went over the link, from its first message on.
#[derive(Default)]
struct Link {
    to_client: Vec<u8>,
    to_server: Vec<u8>,
}

impl Setup {
    async fn start(port: u16) -> Self {
        let (card, cable) = UnixStream::pair().unwrap();
        let (network, run) = network(Nic::attached(card), NetworkConfig::default()).unwrap();
        tokio::spawn(run);
        let guest = Guest::start(cable, Config::default());
        guest.lease().await.unwrap();

        let (near, far) = tokio::io::duplex(1 << 20);
        let ours = (client_glue::common_caps(), client_glue::channel_caps());
        let theirs = (server_glue::common_caps(), server_glue::channel_caps());
        let linked = Linked::tunnel(&ours.0, &theirs.0, &theirs.1);
        let form = linked.header;
        let link = Arc::new(Mutex::new(Link::default()));
        let tapped = Tapped { stream: near, link: Arc::clone(&link) };
        let (handle, mut events, run) = client_glue::tunnel(tapped, linked, TunnelConfig::default());
        tokio::spawn(run);
        let joined = network.join(far, Linked::tunnel(&theirs.0, &ours.0, &ours.1), "bench").await.unwrap();
        handle.add_share(format!("tcp://127.0.0.1:{port}?name=printer").parse().unwrap()).unwrap();
        let to = loop {
            if let Event::Mapped { virtual_ip, port, .. } = events.recv().await.expect("the tunnel ended") {
                break SocketAddr::new(virtual_ip, port);
            }
        };

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        tokio::spawn(async move {
            // Their end, like that of all in here, is the program's.
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = guest.connect(to.ip(), to.port()).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
            }
        });
        Self { link, form, door, _network: network, _joined: joined }
    }

    async fn print(&self, cups: &Cups, document: &'static str, format: &'static Format, file: &Path) -> Row {
        let before = self.lengths();
        let url = format!("ipp://{}/printers/raw", self.door);
        let output = tokio::process::Command::new("ipptool")
            .args(["-t", "-d", &format!("format={}", format.mime), "-f"])
            .arg(file)
            .arg(url)
            .arg(cups.directory.path().join("job.test"))
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: ipptool says:\n{said}", format.title);
        let content = std::fs::read(file).unwrap();
        assert!(cups.take_document() == content, "{} did not arrive as it was", file.display());

        // The connection's end crosses the link after ipptool's own.
        let mut after = self.lengths();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if std::mem::replace(&mut after, self.lengths()) == self.lengths() {
                break;
            }
        }
        let (up, down) = {
            let link = self.link.lock().unwrap();
            (link.to_client[before.0..after.0].to_vec(), link.to_server[before.1..after.1].to_vec())
        };
        let up_messages = self.messages(&up);
        let down_messages = self.messages(&down);
        let said = up_messages.iter().map(|message| self.said_by_guest(message)).sum::<usize>();
        let answered = down_messages.iter().map(|message| self.said_to_guest(message)).sum::<usize>();
        let whole = file.with_added_extension("link");
        std::fs::write(&whole, &up).unwrap();
        let parts = tempfile::tempdir().unwrap();
        let part = |(at, message): (usize, &&[u8])| {
            let path = parts.path().join(at.to_string());
            std::fs::write(&path, message).unwrap();
            path
        };
        let parts: Vec<PathBuf> = up_messages.iter().enumerate().map(part).collect();
        Row {
            document,
            format: format.title,
            size: content.len(),
            up: up.len(),
            down: down.len(),
            tunnel: up.len() + down.len() - said - answered,
            up_messages: up_messages.len(),
            down_messages: down_messages.len(),
            zstd: compressed("zstd", std::slice::from_ref(&whole)),
            zstd_each: compressed("zstd", &parts),
            lz4: compressed("lz4", &[whole]),
        }
    }

    fn lengths(&self) -> (usize, usize) {
        let link = self.link.lock().unwrap();
        (link.to_client.len(), link.to_server.len())
    }

    /// The messages one by one.
    fn messages<'a>(&self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let Split::Frame { consumed, .. } = frame::split(self.form, 1 << 21, bytes).unwrap() else {
                panic!("the link was cut within a message");
            };
            let (message, rest) = bytes.split_at(consumed);
            messages.push(message);
            bytes = rest;
        }
        messages
    }

    /// How many bytes of the guest's own are in a message.
    fn said_by_guest(&self, message: &[u8]) -> usize {
        let Ok(Split::Frame { frame, .. }) = frame::split(self.form, 1 << 21, message) else { return 0 };
        match ServerMessage::parse(frame.kind, frame.body).unwrap() {
            Some(ServerMessage::SocketData { payload, .. }) => payload.len(),
            _ => 0,
        }
    }

    /// And of the printer's.
    fn said_to_guest(&self, message: &[u8]) -> usize {
        let Ok(Split::Frame { frame, .. }) = frame::split(self.form, 1 << 21, message) else { return 0 };
        match ClientMessage::parse(Layout::B, frame.kind, frame.body).unwrap() {
            Some(ClientMessage::SocketData { payload, .. }) => payload.len(),
            _ => 0,
        }
    }
}

/// How large files become by a compressor at its fastest, each by itself.
fn compressed(program: &str, files: &[PathBuf]) -> usize {
    let output =
        Command::new(program).args(["-1", "-q", "-c"]).args(files).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} failed");
    output.stdout.len()
}

/// Keeps what goes through.
struct Tapped<S> {
    stream: S,
    link: Arc<Mutex<Link>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.link.lock().unwrap().to_client.extend_from_slice(&buf.filled()[before..]);
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = outcome {
            self.link.lock().unwrap().to_server.extend_from_slice(&bytes[..written]);
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What one job came to. `up` is towards the printer.
struct Row {
    document: &'static str,
    format: &'static str,
    size: usize,
    up: usize,
    down: usize,
    /// Of both, what is neither the guest's nor the printer's.
    tunnel: usize,
    up_messages: usize,
    down_messages: usize,
    zstd: usize,
    zstd_each: usize,
    lz4: usize,
}

impl Row {
    fn overhead(&self) -> f64 {
        (self.up + self.down - self.size) as f64 / self.size as f64
    }

    fn saved(&self, compressed: usize) -> f64 {
        1.0 - compressed as f64 / self.up as f64
    }

    fn head() -> String {
        format!(
            "{:<15} {:<25} {:>9} {:>14} {:>12} {:>8} {:>10} {:>11} {:>13} {:>12} {:>12}",
            "document",
            "as",
            "size",
            "to the printer",
            "to the guest",
            "overhead",
            "of tunnel",
            "messages",
            "zstd -1 saves",
            "each message",
            "lz4 -1 saves"
        )
    }

    fn text(&self) -> String {
        let bytes = |n: usize| match n {
            0..100_000 => format!("{:.1} kB", n as f64 / 1e3),
            _ => format!("{:.2} MB", n as f64 / 1e6),
        };
        // What compression does not make smaller is sent as it is.
        let part = |part: f64| format!("{:.1} %", 100.0 * part.max(0.0));
        format!(
            "{:<15} {:<25} {:>9} {:>14} {:>12} {:>8} {:>10} {:>11} {:>13} {:>12} {:>12}",
            self.document,
            self.format,
            bytes(self.size),
            bytes(self.up),
            bytes(self.down),
            part(self.overhead()),
            bytes(self.tunnel),
            format!("{} + {}", self.up_messages, self.down_messages),
            part(self.saved(self.zstd)),
            part(self.saved(self.zstd_each)),
            part(self.saved(self.lz4)),
        )
    }

    fn json(&self) -> String {
        let line = serde_json::json!({
            "document": self.document, "format": self.format, "bytes": self.size, "bytes_to_printer": self.up,
            "bytes_to_guest": self.down, "tunnel_bytes": self.tunnel, "messages_to_printer": self.up_messages,
            "messages_to_guest": self.down_messages, "overhead": self.overhead(), "zstd_1_bytes": self.zstd, "zstd_1_each_message_bytes": self.zstd_each,
            "lz4_1_bytes": self.lz4,
        });
        format!("{line}\n")
    }
}
