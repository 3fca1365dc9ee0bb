//! `serve --metrics`, asked while a guest works through the tunnel.

use std::net::SocketAddr;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use spice_tunnel::guest::{Config, Guest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::vm::rig::{Program, serve, soon, until};

/// What a scraper gets.
async fn scrape(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> String {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/metrics").header("Host", "x").body(Empty::<Bytes>::new()).unwrap();
    let response = soon("the metrics", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = soon("the page", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn scrape_unix(path: &Path) -> String {
    scrape(UnixStream::connect(path).await.unwrap()).await
}

/// The value of a sample, named with its labels.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in {page}")).parse().unwrap()
}

/// Waits until a sample is this.
async fn comes_to(path: &Path, sample: &str, wanted: f64) -> String {
    until(&format!("{sample} {wanted}"), || async {
        let page = scrape_unix(path).await;
        (value(&page, sample) == wanted).then_some(page)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    const BYTES: usize = 300_000;

    let dir = tempfile::tempdir().unwrap();
    let [nic, metrics] = ["nic", "metrics"].map(|name| dir.path().join(name));
    let (card, at) = (format!("listen:{}", nic.display()), format!("unix:{}", metrics.display()));
    let arguments = ["--standalone", "--listen", "127.0.0.1:0", "--nic", &card, "--metrics", &at];
    let (serve, spice) = serve(&[&arguments[..], &["--metrics", "127.0.0.1:0"]].concat()).await;
    until("the metrics' socket", || async { metrics.exists().then_some(()) }).await;
    let page = scrape_unix(&metrics).await;
    for sample in ["joined", "joins_total", "services", "card_connected", "sessions", "sockets"] {
        assert_eq!(value(&page, &format!("spice_tunnel_{sample}")), 0.0, "{sample}");
    }

    let guest = Guest::start(UnixStream::connect(&nic).await.unwrap(), Config::default());
    soon("a lease", guest.lease()).await.unwrap();
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("tcp://{}?name=echo", service.local_addr().unwrap());
    let mut connect =
        Program::tunnel(["connect", &format!("spice://{spice}"), "--json", "--share", target.as_str()]);
    let mapped = connect.event("mapped").await;
    let ip = mapped["virtual_ip"].as_str().unwrap().parse().unwrap();
    let port = u16::try_from(mapped["port"].as_u64().unwrap()).unwrap();
    let echo = SocketAddr::new(ip, port);

    let accepting = async { service.accept().await.unwrap().0 };
    let opening = guest.connect(echo.ip(), echo.port());
    let (mut outside, inside) = soon("a connection", async { tokio::join!(accepting, opening) }).await;
    let mut inside = inside.unwrap();
    let mut got = vec![0; BYTES];
    inside.write_all(&vec![1; BYTES]).await.unwrap();
    soon("the bytes", outside.read_exact(&mut got)).await.unwrap();
    outside.write_all(&got[..1000]).await.unwrap();
    soon("the answer", inside.read_exact(&mut got[..1000])).await.unwrap();
    // Nothing is shared there.
    assert!(soon("a refusal", guest.connect(echo.ip(), port ^ 1)).await.is_err());

    // An answer may be a moment old; this is what happened last.
    let refused = "spice_tunnel_guest_connects_total{outcome=\"refused\"}";
    let page = comes_to(&metrics, refused, 1.0).await;
    for (sample, wanted) in [
        ("card_connected", 1.0),
        ("joined", 1.0),
        ("joins_total", 1.0),
        ("services", 1.0),
        ("guest_connections{state=\"established\"}", 1.0),
        ("guest_connections{state=\"half_open\"}", 0.0),
        ("guest_connections{state=\"waiting\"}", 0.0),
        ("guest_connects_total{outcome=\"asked\"}", 1.0),
        ("undelivered_bytes", 0.0),
        ("guest_connections_accepted_total", 1.0),
        ("data_bytes_total{direction=\"up\"}", BYTES as f64),
        ("data_bytes_total{direction=\"down\"}", 1000.0),
        ("data_messages_total{direction=\"down\"}", 1.0),
        ("dhcp_messages_total{outcome=\"answered\"}", 2.0),
        ("guest_frames_dropped_total{reason=\"bad_checksum\"}", 0.0),
        ("ends_total{reason=\"broken\"}", 0.0),
    ] {
        assert_eq!(value(&page, &format!("spice_tunnel_{sample}")), wanted, "{sample} in {page}");
    }
    assert!(value(&page, "spice_tunnel_guest_frames_total{direction=\"in\"}") >= 5.0);
    assert!(value(&page, "process_open_fds") >= 8.0 && value(&page, "process_cpu_seconds_total") > 0.0);
    // Who and what is there is nobody's business.
    for secret in [&echo.ip().to_string(), "echo", "198.18.", "127.0.0.1"] {
        assert!(!page.contains(secret), "{secret} in {page}");
    }

    // The other place tells the same.
    let said = serve.said();
    let place = said.lines().rfind(|line| line.contains("metrics are given out address=127.0.0.1:")).unwrap();
    let port = place.split("address=127.0.0.1:").nth(1).unwrap().trim();
    let other = scrape(TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap()).await;
    assert_eq!(value(&other, "spice_tunnel_data_bytes_total{direction=\"up\"}"), BYTES as f64);

    drop((inside, outside));
    assert!(connect.terminate().await.success());
    let page = comes_to(&metrics, "spice_tunnel_joined", 0.0).await;
    assert_eq!(value(&page, "spice_tunnel_ends_total{reason=\"closed\"}"), 1.0, "{page}");
    // What was carried stays counted.
    assert_eq!(value(&page, "spice_tunnel_data_bytes_total{direction=\"up\"}"), BYTES as f64);
    assert!(!page.contains("spice_tunnel_round_trip_seconds "), "{page}");

    // A client that dies is not one that says goodbye.
    let mut dies =
        Program::tunnel(["connect", &format!("spice://{spice}"), "--json", "--share", target.as_str()]);
    dies.event("mapped").await;
    comes_to(&metrics, "spice_tunnel_joins_total", 2.0).await;
    dies.kill().await;
    let page = comes_to(&metrics, "spice_tunnel_joined", 0.0).await;
    let ends =
        ["closed", "broken"].map(|end| value(&page, &format!("spice_tunnel_ends_total{{reason=\"{end}\"}}")));
    assert_eq!(ends.iter().sum::<f64>(), 2.0, "{page}");
}
