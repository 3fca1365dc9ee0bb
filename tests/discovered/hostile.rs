//! A hostile machine in the user's network: multicast DNS as nobody's avahi would say it. Honest printers go on, and nothing of
//! the rest reaches the guest as it was said.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::watch::{names, seen};
use super::{Home, assert_well};
use crate::lan::{Lan, Machine, Pace, Printer, address};
use crate::vm::rig::{soon, until};

const IPP: &str = "_ipp._tcp";
const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 5353);

/// Between two times that all of it is said. A goodbye counts a second later (RFC 6762, section 10.1): whoever says it again
/// within that puts it off.
const AGAIN: Duration = Duration::from_millis(1500);

/// For hundreds of names to go.
const MINUTES: Duration = Duration::from_secs(120);

/// A service as somebody says it is.
struct Advert {
    instance: Vec<u8>,
    host: String,
    at: Ipv4Addr,
    port: u16,
    txt: Vec<Vec<u8>>,
}

impl Advert {
    fn new(name: impl AsRef<[u8]>, host: &str, at: Ipv4Addr, port: u16, uuid: &str) -> Self {
        let entry = |text: &str| text.as_bytes().to_vec();
        let txt =
            [&format!("UUID={uuid}")[..], "txtvers=1", "rp=ipp/print", "pdl=application/pdf", "ty=Fake"];
        Self {
            instance: name.as_ref().to_vec(),
            host: host.to_owned(),
            at,
            port,
            txt: txt.map(entry).to_vec(),
        }
    }

    /// An answer of multicast DNS with all four records (RFC 6762, RFC 6763), good for so many seconds.
    fn packet(&self, life: u32) -> Vec<u8> {
        const CLASS: u16 = 1;
        const FLUSH: u16 = 0x8000;
        let kind = [&b"_ipp"[..], b"_tcp", b"local"];
        let instance = [&[&self.instance[..]][..], &kind].concat();
        let host = [self.host.as_bytes(), b"local"];
        let srv = [&[0, 0, 0, 0][..], &self.port.to_be_bytes(), &name(&host)].concat();
        let txt: Vec<u8> =
            self.txt.iter().flat_map(|entry| [&[entry.len() as u8][..], entry].concat()).collect();
        let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0];
        for (owner, number, class, data) in [
            (name(&kind), 12, CLASS, name(&instance)),
            (name(&instance), 33, CLASS | FLUSH, srv),
            (name(&instance), 16, CLASS | FLUSH, txt),
            (name(&host), 1, CLASS | FLUSH, self.at.octets().to_vec()),
        ] {
            packet.extend(owner);
            packet.extend(u16::to_be_bytes(number));
            packet.extend(class.to_be_bytes());
            packet.extend(life.to_be_bytes());
            packet.extend((data.len() as u16).to_be_bytes());
            packet.extend(data);
        }
        packet
    }
}

fn name(labels: &[&[u8]]) -> Vec<u8> {
    let mut name: Vec<u8> =
        labels.iter().flat_map(|label| [&[label.len() as u8][..], label].concat()).collect();
    name.push(0);
    name
}

/// The machine, which says all of it again and again.
struct Liar {
    machine: Machine,
    at: Ipv4Addr,
    saying: Option<JoinHandle<()>>,
}

impl Liar {
    async fn new(lan: &Lan) -> Self {
        let (machine, number) = (Machine::boot("liar", "").await, lan.number());
        lan.plug(&machine, number).await;
        let IpAddr::V4(at) = address(number) else { panic!("the first is IPv4") };
        Self { machine, at, saying: None }
    }

    fn say(&mut self, adverts: &[Advert], life: u32) {
        if let Some(saying) = self.saying.take() {
            saying.abort();
        }
        let socket = self.machine.within(shared_port).unwrap();
        socket.set_nonblocking(true).unwrap();
        // To the card that it has, as there is no route.
        let at = self.at;
        socket2::SockRef::from(&socket).set_multicast_if_v4(&at).unwrap();
        socket2::SockRef::from(&socket).set_multicast_ttl_v4(255).unwrap();
        let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
        let packets: Vec<Vec<u8>> = adverts.iter().map(|advert| advert.packet(life)).collect();
        self.saying = Some(tokio::spawn(async move {
            let mut again = tokio::time::interval(AGAIN);
            loop {
                again.tick().await;
                for packet in &packets {
                    let _ = socket.send_to(packet, GROUP).await;
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
}

/// The port of multicast DNS; what the last socket there was told may still be on its way.
fn shared_port() -> std::io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5353)).into())?;
    Ok(socket.into())
}

impl Drop for Liar {
    fn drop(&mut self) {
        if let Some(saying) = self.saying.take() {
            saying.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_and_floods_harm_nobody() {
    let mut home = Box::pin(Home::new()).await;
    let _office = Printer::announced(&home.lan, "office", "Office", Pace::Quick).await;
    home.discover(&["--discover"]).await;
    let honest = home.finds(IPP, "Office").await;
    let uuid = honest.value("UUID").unwrap().to_owned();

    let mut liar = Liar::new(&home.lan).await;
    let (here, desk) = (liar.at, Ipv4Addr::new(192, 168, 7, 10));
    let IpAddr::V4(office) = _office.address().ip() else { panic!("the first is IPv4") };
    let fake = |number: u32| format!("{number:08x}-0000-4000-8000-00000000cafe");
    let mut lies = vec![
        // The printer itself, elsewhere; its host name; other services of its.
        Advert::new("Better office", "liar", here, 631, &uuid),
        Advert::new("Office too", "office2", office, 22, &fake(1)),
        Advert::new("Shell", "shell", here, 22, &fake(2)),
        Advert::new("Folders", "folders", here, 445, &fake(3)),
        // Places that it has no right to.
        Advert::new("Loopback", "loopback", Ipv4Addr::LOCALHOST, 631, &fake(4)),
        Advert::new("Desk", "tricky", desk, 631, &fake(5)),
        Advert::new("Virtual", "virtual", Ipv4Addr::new(169, 254, 1, 1), 631, &fake(6)),
        // What a terminal or a reader would fall for.
        Advert::new("Bell\x07 \x1b]0;owned\x07 \u{202e}gnp.exe", "bell", here, 631, &fake(7)),
        Advert::new(b"Broken \xff\xfe", "broken", here, 631, &fake(8)),
        Advert::new("Zero\0width\u{200b}", "zero", here, 631, &fake(9)),
    ];
    let mut odd = Advert::new("Odd texts", "odd", here, 631, &fake(10));
    odd.txt.extend([
        b"note=\x1b[2J\x07\r\nSet-Cookie: x \xe2\x80\xae drawkcab".to_vec(),
        b"adminurl=http://evil.example/\x1b".to_vec(),
        b"=no key".to_vec(),
        b"product=\xff\xff(broken)".to_vec(),
    ]);
    lies.push(odd);
    let mut large = Advert::new("Large texts", "large", here, 631, &fake(11));
    large.txt.extend((0..30).map(|n| [format!("x{n:02}=").as_bytes(), &[b'x'; 240]].concat()));
    lies.push(large);
    let floods = |numbers: std::ops::Range<u32>| {
        numbers.map(|n| Advert::new(format!("Flood {n}"), &format!("flood{n}"), here, 631, &fake(100 + n)))
    };
    lies.extend(floods(0..100));
    liar.say(&lies, 4500);

    // In the middle of it an honest printer comes, and the guest has it.
    let _late = Printer::announced(&home.lan, "late", "Late", Pace::Quick).await;
    let late = home.finds(IPP, "Late").await;
    assert!(late.is_virtual());
    home.finds(IPP, "Flood 99").await;
    home.finds(IPP, "Odd texts").await;

    // More than anybody keeps: those that were there stay, and the user is told.
    let began = Instant::now();
    lies.extend(floods(100..400));
    liar.say(&lies, 4500);
    let connect = home.connect.as_mut().unwrap();
    let too_many = |line: &str| line.contains("there are more devices than are kept").then_some(());
    connect.line("that there are too many", too_many).await;
    let at = home.guest.machine.connect(honest.at());
    soon("a connection in the flood", at).await.unwrap();

    let services = until("most of them in the guest", || async {
        let services = seen(&home.guest.machine, IPP).await;
        println!("the guest has {} printers after {:.1} s", services.len(), began.elapsed().as_secs_f64());
        (services.len() > 200).then_some(services)
    })
    .await;
    assert!(services.len() <= 256);
    assert!(services.iter().any(|seen| *seen == late));
    let still = services.iter().find(|seen| seen.name == "Office").expect("the honest printer is gone");
    assert_eq!((&still.address, &still.txt), (&honest.address, &honest.txt));
    let bad = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{fffd}')
    };
    for seen in &services {
        assert!(!seen.name.contains(bad) && !seen.host.contains(bad), "{seen:?}");
        assert!(seen.txt.iter().all(|entry| !entry.contains(bad) && !entry.contains("\\0")), "{seen:?}");
        assert!(seen.is_virtual() && ![22, 445].contains(&seen.port), "{seen:?}");
        assert!(seen.txt.iter().all(|entry| !entry.contains("evil.example")), "{seen:?}");
        for name in ["Better office", "Loopback", "Desk", "Virtual", "Shell", "Folders", "Office too"] {
            assert!(seen.name != name, "{seen:?}");
        }
        assert!(seen.name == "Office" || seen.value("UUID") != Some(&*uuid), "{seen:?}");
    }
    let connect = home.connect.as_ref().unwrap();
    assert!(!connect.everything().contains(|c: char| c.is_control() && c != '\n'), "raw text in the log");

    // It gives up, and there is room again.
    liar.say(&lies, 0);
    let connect = home.connect.as_mut().unwrap();
    let room = |line: &str| line.contains("there are no more devices than are kept").then_some(());
    connect.line("that there is room again", room).await;
    // Hundreds of names go by and by; 25 to 31 s were seen on two busy processors.
    let gone = async {
        while !names(&home.guest.machine, IPP).await.iter().map(String::as_str).eq(["Late", "Office"]) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(MINUTES, gone).await.expect("some of it is never gone");
    let _last = Printer::announced(&home.lan, "last", "Last", Pace::Quick).await;
    home.finds(IPP, "Last").await;
    assert_well(&mut home);
}
