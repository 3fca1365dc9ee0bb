use std::collections::BTreeSet;

use server_glue::proxy::{Backend, Limits, ProxyConfig, TunnelPolicy};
use server_glue::status::{LinkCount, ProxyStatus, Status, Traffic, TunnelStatus, observer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn page() -> Page {
    let tunnel = TunnelStatus {
        services: 3,
        sockets: 7,
        rtt: Some(Duration::from_millis(25)),
        undelivered: 11,
        outgoing: 13,
    };
    let traffic = Traffic { up_bytes: 100, up_messages: 2, down_bytes: 300, down_messages: 4 };
    let proxy = ProxyStatus {
        sessions: 1,
        links: [("display", LinkCount { open: 1, total: 5 }), ("main", LinkCount { open: 1, total: 2 })]
            .into(),
        wrong_tickets: 6,
        ..ProxyStatus::default()
    };
    let status = Status {
        connections: 9,
        half_open: 4,
        waiting: 1,
        card: true,
        tunnel: Some(tunnel),
        traffic,
        joins: 8,
        ..Status::default()
    };
    Page { status, proxy, process: Process::now(SystemTime::now()) }
}

/// That each sample belongs to the family before it, and is named by its type and unit.
fn check(text: &str) -> BTreeSet<&str> {
    let mut families = BTreeSet::new();
    let (mut name, mut kind) = ("", "");
    for line in text.lines().filter(|line| *line != "# EOF") {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", _, help] => assert!(!help.is_empty()),
            ["#", "TYPE", family, its] => {
                assert!(families.insert(*family), "twice: {family}");
                (name, kind) = (family, its);
            }
            ["#", "UNIT", family, unit] => assert!(*family == name && family.ends_with(unit), "{line}"),
            [_, ..] => {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
                let rest = sample.strip_prefix(name).unwrap_or_else(|| panic!("{line} under {name}"));
                let suffix = rest.split('{').next().unwrap();
                match kind {
                    "counter" => assert!(suffix == "_total" || name.ends_with("_total"), "{line}"),
                    "info" => assert_eq!(suffix, "_info"),
                    "gauge" => assert_eq!(suffix, ""),
                    other => panic!("{other}"),
                }
            }
            [] => panic!("an empty line"),
        }
    }
    families
}

#[test]
fn every_number_has_its_place() {
    let text = page().text(Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"));
    assert!(check(&text).len() > 30, "{text}");
    for line in [
        "spice_tunnel_joined 1",
        "spice_tunnel_joins_total 8",
        "spice_tunnel_ends_total{reason=\"dead\"} 0",
        "spice_tunnel_services 3",
        "spice_tunnel_sockets 7",
        "# UNIT spice_tunnel_round_trip_seconds seconds",
        "spice_tunnel_round_trip_seconds 0.025",
        "spice_tunnel_undelivered_bytes 11",
        "spice_tunnel_unsent_bytes 13",
        "spice_tunnel_data_bytes_total{direction=\"up\"} 100",
        "spice_tunnel_data_bytes_total{direction=\"down\"} 300",
        "spice_tunnel_data_messages_total{direction=\"down\"} 4",
        "spice_tunnel_guest_connections{state=\"established\"} 5",
        "spice_tunnel_guest_connections{state=\"half_open\"} 3",
        "spice_tunnel_guest_connections{state=\"waiting\"} 1",
        "spice_tunnel_card_connected 1",
        "spice_tunnel_sessions 1",
        "spice_tunnel_proxied_links{channel=\"display\"} 1",
        "spice_tunnel_proxied_links_opened_total{channel=\"display\"} 5",
        "spice_tunnel_wrong_tickets_total 6",
        concat!("spice_tunnel_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
}

#[test]
fn both_formats_tell_the_same() {
    let page = page();
    let samples = |format| {
        let text = page.text(format).unwrap();
        check(&text);
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    assert_eq!(samples(Format::OpenMetrics), samples(Format::Text));
}

#[test]
fn the_reader_says_what_it_reads() {
    for (accept, wanted) in [
        (None, Format::OpenMetrics),
        (Some("*/*"), Format::OpenMetrics),
        (Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3"), Format::OpenMetrics),
        (Some("text/plain;version=0.0.4"), Format::Text),
    ] {
        assert_eq!(Format::wanted(accept), wanted, "{accept:?}");
    }
}

/// An endpoint before a VM's task that answers, and counts how often.
struct Rig {
    at: std::net::SocketAddr,
    asked: Arc<std::sync::atomic::AtomicUsize>,
    _shutdown: tokio_util::sync::DropGuard,
}

async fn rig(lives: bool) -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let proxy = Proxy::new(ProxyConfig {
        backend: Backend::Standalone { password: None },
        tunnel: TunnelPolicy::Disabled,
        limits: Limits::default(),
    });
    let (observer, observed) = observer();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    if lives {
        let mut observed = observed;
        tokio::spawn(async move {
            loop {
                let status = Status { joins: 42, ..Status::default() };
                observed.answer(status).await;
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
    }
    let shutdown = CancellationToken::new();
    let metrics = Metrics { places: vec![Opened::Tcp(listener)] };
    tokio::spawn(metrics.serve(observer, proxy, shutdown.clone()));
    Rig { at, asked, _shutdown: shutdown.drop_guard() }
}

impl Rig {
    /// Sends it, and gives all that comes until the end.
    async fn talk(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        read.expect("it neither answers nor closes").ok();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn http() {
    let rig = rig(true).await;
    let head = "Host: x\r\n\r\n";
    let answer = rig.talk(&format!("GET /metrics HTTP/1.1\r\n{head}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.contains("\nspice_tunnel_joins_total 42\n") && answer.ends_with("# EOF\n"), "{answer}");
    let answer = rig.talk(&format!("GET /metrics HTTP/1.1\r\nAccept: text/plain\r\n{head}")).await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    let answer = rig.talk(&format!("HEAD /metrics HTTP/1.1\r\n{head}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("joins"), "{answer}");
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\n{head}"), "404"),
        (format!("GET /metrics/x HTTP/1.1\r\n{head}"), "404"),
        (format!("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n{head}"), "405"),
        (format!("GET /{} HTTP/1.1\r\n{head}", "x".repeat(9000)), "4"),
        (format!("GET /metrics HTTP/1.1\r\n{}{head}", "A: b\r\n".repeat(100)), "431"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = rig.talk(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "expected {status}, got {answer:?}");
    }
}

#[tokio::test]
async fn a_task_that_is_gone_is_an_error_not_a_page_of_zeros() {
    let answer = rig(false).await.talk("GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 503 ") && !answer.contains("spice_tunnel"), "{answer}");
}

#[tokio::test]
async fn many_who_ask_are_one_question() {
    let rig = rig(true).await;
    let ask = || rig.talk("GET /metrics HTTP/1.0\r\n\r\n");
    let began = Instant::now();
    let mut answers = 0;
    while answers < 40 {
        let (a, b) = tokio::join!(ask(), ask());
        answers += [a, b].iter().filter(|answer| answer.contains(" 200 ")).count();
    }
    let most = 1 + began.elapsed().as_millis() / FRESH.as_millis();
    let asked = rig.asked.load(std::sync::atomic::Ordering::SeqCst) as u128;
    assert!((1..=most).contains(&asked), "{asked} questions where {most} are the most");
}

#[tokio::test]
async fn those_who_say_nothing_make_room() {
    let rig = rig(true).await;
    let mut silent = Vec::new();
    for _ in 0..3 * MOST {
        silent.push(TcpStream::connect(rig.at).await.unwrap());
    }
    assert!(rig.talk("GET /metrics HTTP/1.0\r\n\r\n").await.contains(" 200 "));
    // The first ones went at once, not by their deadline.
    for stream in &mut silent[..2 * MOST] {
        let read = timeout(HEAD_DEADLINE / 2, stream.read(&mut [0; 1])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
}
