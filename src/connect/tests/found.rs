//! What is found becomes shares: a run of `connect` with devices of the test's own.

use client_glue::discover::policy::{Pattern, Policy, Rule};
use client_glue::discover::{Device, DiscoverConfig, Update};
use client_glue::domains::Domain;
use client_glue::service_info::{HostName, Identity};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::discover::tests::printer;
use crate::session_args::Discovering;

/// A server that maps every service, and tells what it is told.
async fn keep_serving(
    mut stream: TcpStream,
    told: mpsc::UnboundedSender<String>,
    open: bool,
    ask: Option<&str>,
) {
    let caps = TunnelCaps::OURS;
    let config = tunnel_channel::Config::default();
    let mut channel = Channel::new(Role::Server, HeaderForm::Mini, Layout::B, caps, config, Instant::now());
    let mut input = Vec::new();
    let mut identity = String::new();
    loop {
        stream.write_all(channel.outgoing()).await.unwrap();
        channel.sent(channel.outgoing_len());
        if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
        let mut start = 0;
        while let Split::Frame { frame, consumed } =
            frame::split(HeaderForm::Mini, channel.max_body(), &input[start..]).unwrap()
        {
            start += consumed;
            let line = match channel.handle_frame(Instant::now(), frame).unwrap() {
                Some(tunnel_channel::Event::ServiceDescribed { info, .. }) => {
                    let info = info.info();
                    identity = info.identity().map_or("", Identity::as_str).to_owned();
                    continue;
                }
                Some(tunnel_channel::Event::ServiceAdded(add)) => {
                    channel.map_service(add.service, [198, 18, 0, 99].into()).unwrap();
                    if open {
                        channel.open(add.service).unwrap();
                    }
                    let name = String::from_utf8_lossy(add.name);
                    format!("added {name} {} {}", add.port, std::mem::take(&mut identity))
                }
                Some(tunnel_channel::Event::ServiceRemoved { .. }) => "removed".to_owned(),
                Some(tunnel_channel::Event::DomainAdded { name }) => {
                    let line = format!("domain {name}");
                    if let Some(ask) = ask {
                        channel.ask_name(&HostName::new(ask).unwrap()).unwrap();
                    }
                    line
                }
                Some(tunnel_channel::Event::NameAnswered { answer, .. }) => format!("answered {answer:?}"),
                Some(tunnel_channel::Event::Refused { .. }) => "refused".to_owned(),
                Some(_) | None => continue,
            };
            let _ = told.send(line);
        }
        input.drain(..start);
    }
}

struct Rig {
    listener: TcpListener,
    updates: mpsc::Sender<Update>,
    doubts: mpsc::UnboundedReceiver<Identity>,
    paper: Paper,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), Error>>,
}

async fn rig(policy: Policy, domains: Vec<Domain>) -> Rig {
    let (listener, uri) = listen().await;
    let uri = format!("{uri}?password=secret");
    let args = args(&[&uri, "--discover", "--json"]).unwrap();
    let session = args.session.resolve().unwrap();
    let mut sharing = args.sharing.sharing(&session).unwrap();
    assert_eq!(sharing.discovery.as_ref().unwrap().policy, Policy::printers_and_scanners());
    sharing.discovery = Some(Discovering { config: DiscoverConfig::default(), policy });
    sharing.domains = domains;
    let plan = Plan { server: session.server.clone(), credentials: session.credentials.clone(), sharing };
    let (updates, receiver) = mpsc::channel(10);
    let (doubter, doubts) = mpsc::unbounded_channel();
    let feed = Feed::Script { updates: receiver, doubts: doubter };
    let (paper, shutdown) = (Paper::default(), CancellationToken::new());
    let (out, stop) = (paper.clone(), shutdown.clone());
    let running =
        tokio::spawn(async move { Box::pin(keep_fed(&plan, &args.output, Some(feed), &stop, out)).await });
    Rig { listener, updates, doubts, paper, shutdown, running }
}

impl Rig {
    async fn serve(
        &self,
        open: bool,
        ask: Option<&'static str>,
    ) -> (mpsc::UnboundedReceiver<String>, JoinHandle<()>) {
        let (sender, told) = mpsc::unbounded_channel();
        let stream = linked(&self.listener).await.unwrap();
        (told, tokio::spawn(keep_serving(stream, sender, open, ask)))
    }

    /// Waits for a line of `--json` with this event.
    async fn line(&self, event: &str, count: usize) -> serde_json::Value {
        let wait = async {
            loop {
                let text = String::from_utf8(self.paper.0.lock().unwrap().clone()).unwrap();
                let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                let mut lines =
                    whole.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
                if let Some(line) = lines.by_ref().filter(|line| line["event"] == event).nth(count) {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.expect(event)
    }

    async fn end(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(10), self.running).await.unwrap().unwrap().unwrap();
    }
}

async fn next(told: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(Duration::from_secs(20), told.recv()).await.expect("nothing told").expect("the server ended")
}

fn laser() -> Device {
    printer("uuid:1", "Laser", "laser.local", [192, 168, 1, 40])
}

#[tokio::test]
async fn a_printer_that_is_found_is_shared_for_as_long_as_it_is_there() {
    let rig = rig(Policy::printers_and_scanners(), vec![]).await;
    let (mut told, serving) = rig.serve(false, None).await;
    rig.updates.send(Update::Found(laser())).await.unwrap();
    assert_eq!(next(&mut told).await, "added Laser 631 uuid:1");
    let discovered = rig.line("discovered", 0).await;
    assert_eq!((&discovered["name"], &discovered["identity"]), (&"Laser".into(), &"uuid:1".into()));
    let mapped = rig.line("mapped", 0).await;
    let expected = serde_json::json!({
        "event": "mapped", "name": "Laser", "target": "tcp://laser.local:631",
        "virtual_ip": "198.18.0.99", "port": 631,
    });
    assert_eq!(mapped, expected);

    // A link that is lost takes nothing with it.
    serving.abort();
    let (mut told, _serving) = rig.serve(false, None).await;
    assert_eq!(next(&mut told).await, "added Laser 631 uuid:1");

    rig.updates.send(Update::Lost(laser().identity)).await.unwrap();
    assert_eq!(next(&mut told).await, "removed");
    assert_eq!(rig.line("unmapped", 0).await["target"], "tcp://laser.local:631");
    assert_eq!(rig.line("lost", 0).await["name"], "Laser");
    rig.end().await;
}

#[tokio::test]
async fn a_found_service_that_nobody_answers_at_is_doubted() {
    let allow = Rule { name: Pattern::new("Laser"), ..Rule::default() };
    let mut rig = rig(Policy { allow: vec![allow], ..Policy::default() }, vec![]).await;
    // On this machine, where a port that refuses is at hand.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut device = Device { this_machine: true, addresses: vec![[127, 0, 0, 1].into()], ..laser() };
    device.services.truncate(1);
    device.services[0].port = port;
    let (mut told, _serving) = rig.serve(true, None).await;
    rig.updates.send(Update::Found(device)).await.unwrap();
    assert_eq!(next(&mut told).await, format!("added Laser {port} uuid:1"));
    assert_eq!(next(&mut told).await, "refused");
    let doubted = timeout(Duration::from_secs(20), rig.doubts.recv()).await.unwrap().unwrap();
    assert_eq!(doubted.as_str(), "uuid:1");
    assert_eq!(rig.line("refused", 0).await["name"], "Laser");
    rig.end().await;
}

#[tokio::test]
async fn names_of_a_domain_are_answered() {
    let domain = Domain { name: HostName::new("tunnel.invalid.example").unwrap(), ports: vec![80] };
    let rig = rig(Policy::default(), vec![domain]).await;
    let (mut told, _serving) = rig.serve(false, Some("nas.tunnel.invalid.example")).await;
    assert_eq!(next(&mut told).await, "domain tunnel.invalid.example");
    // There is no such name, or nobody who would know.
    let answer = next(&mut told).await;
    assert!(["answered NoSuchName", "answered Failed"].contains(&&*answer), "{answer}");
    rig.end().await;
}
