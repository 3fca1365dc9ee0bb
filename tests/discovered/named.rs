//! A domain of the user's side, with a real name server of theirs: the guest asks for its names and reaches what they lead to.

use std::net::{IpAddr, SocketAddr};

use openssl::sha::sha256;
use tokio::io::AsyncWriteExt;

use super::{Home, assert_well};
use crate::lan::{Machine, Sink, address};
use crate::vm::rig::{soon, until};

impl Home {
    /// What dig of the guest says, asking whom DHCP named.
    async fn dig(&self, words: &str) -> String {
        self.guest.machine.sh(&format!("dig +tries=1 +time=10 {words}")).await
    }

    async fn status(&self, name: &str) -> String {
        let said = self.dig(name).await;
        let status = said.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
        status.unwrap_or_else(|| panic!("no status in {said}")).to_owned()
    }

    async fn resolved(&self, name: &str) -> String {
        let said = self.dig(&format!("+short {name}")).await;
        said.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_an_allowed_domain_lead_to_what_stands_there() {
    let mut home = Box::pin(Home::new()).await;
    let (router, router_at) = (Machine::boot("router", "").await, home.lan.number());
    home.lan.plug(&router, router_at).await;
    let (nas, nas_at) = (Machine::boot("nas", "").await, home.lan.number());
    home.lan.plug(&nas, nas_at).await;
    let mut folders = Sink::start(&nas, SocketAddr::new(address(nas_at), 445));
    let records = [
        format!("nas.home.arpa,{}", address(nas_at)),
        "loop.home.arpa,127.0.0.1".to_owned(),
        format!("desk.home.arpa,{}", address(10)),
        "www.example.com,192.0.2.1".to_owned(),
    ];
    let conf = records.map(|record| format!("host-record={record}\n")).concat();
    let path = router.path("dnsmasq.conf");
    std::fs::write(&path, conf + "no-resolv\nno-hosts\nlocal=/home.arpa/\nuser=root\nlocal-ttl=5\n").unwrap();
    let path = path.display().to_string();
    let mut dnsmasq = router.start(
        "dnsmasq",
        "dnsmasq",
        &["--keep-in-foreground", "--log-facility=-", "-C", &path, "--pid-file="],
    );
    dnsmasq.line("that it runs", |line| line.contains("started").then_some(())).await;
    std::fs::write(home.desk.path("etc/resolv.conf"), format!("nameserver {}\n", address(router_at)))
        .unwrap();

    let config = home.config("[[domain]]\nname = \"home.arpa\"\n");
    home.discover(&["--config", &config]).await;
    let at =
        until("the name's address", || async { home.resolved("nas.home.arpa").await.parse::<IpAddr>().ok() })
            .await;
    assert!(at.to_string().starts_with("198.18."), "{at}");
    let hosts = home.guest.machine.sh("getent hosts nas.home.arpa").await;
    assert_eq!(hosts.split_whitespace().collect::<Vec<_>>(), [&*at.to_string(), "nas.home.arpa"]);
    assert_eq!(home.resolved("NAS.Home.Arpa").await, at.to_string());

    let mut stream = soon("a connection", home.guest.machine.connect((at, 445).into())).await.unwrap();
    stream.write_all(b"negotiate").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(folders.next().await.hash, sha256(b"negotiate"));
    // What its machine does not have is refused by that.
    assert!(home.guest.machine.connect((at, 9100).into()).await.is_err());

    for (name, status) in [
        ("nobody.home.arpa", "NXDOMAIN"),
        ("loop.home.arpa", "NXDOMAIN"),
        ("desk.home.arpa", "NXDOMAIN"),
        ("www.example.com", "REFUSED"),
        ("nas.lan", "REFUSED"),
    ] {
        assert_eq!(home.status(name).await, status, "{name}");
    }

    // Tomorrow it is there as well.
    home.leave("-TERM").await;
    home.restart_serve(&[]).await;
    home.discover(&["--config", &config]).await;
    let again =
        until("the name's address", || async { home.resolved("nas.home.arpa").await.parse::<IpAddr>().ok() })
            .await;
    assert_eq!(again, at);
    assert_well(&mut home);
}
