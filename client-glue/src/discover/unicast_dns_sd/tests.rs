use std::{net::Ipv4Addr, str::FromStr, sync::Arc};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::{Message, OpCode},
        rr::{
            Record,
            rdata::{A, PTR, SRV, TXT},
        },
    },
};
use tokio::{net::UdpSocket, sync::Mutex};

use super::*;

/// A name server, and what it knows.
struct Server {
    records: Arc<Mutex<Zone>>,
    resolver: TokioResolver,
}

#[derive(Default)]
struct Zone {
    records: Vec<Record>,
    /// It answers nothing but that it cannot.
    broken: bool,
}

impl Server {
    async fn start() -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone: Arc<Mutex<Zone>> = Arc::default();
        let records = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries.first().unwrap().clone();
                let mut answer = Message::response(question.id, OpCode::Query);
                answer.add_query(query.clone());
                let zone = zone.lock().await;
                let about = zone.records.iter().filter(|record| record.name == query.name);
                let known = about.clone().count() > 0;
                answer.add_answers(about.filter(|record| record.record_type() == query.query_type).cloned());
                if zone.broken {
                    answer.answers.clear();
                    answer.metadata.response_code = ResponseCode::ServFail;
                } else if !known {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = address.port();
        let mut server = NameServerConfig::udp(address.ip());
        server.connections = vec![connection];
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        builder.options_mut().timeout = Duration::from_secs(2);
        builder.options_mut().attempts = 1;
        Server { records, resolver: builder.build().unwrap() }
    }

    async fn add(&self, name: &str, ttl: u32, data: RData) {
        self.add_named(Name::from_str(name).unwrap(), ttl, data).await;
    }

    async fn add_named(&self, name: Name, ttl: u32, data: RData) {
        let record = Record::from_rdata(name, ttl, data);
        self.records.lock().await.records.push(record);
    }

    /// A printer of the domain.
    async fn printer(&self, instance: &str, host: &str, address: Ipv4Addr) {
        let labels = [instance, "_ipp", "_tcp", "corp", "example"].map(str::as_bytes);
        let full = Name::from_labels(labels).unwrap();
        let pointer = || RData::PTR(PTR(full.clone()));
        self.add("_ipp._tcp.corp.example.", 300, pointer()).await;
        self.add("_universal._sub._ipp._tcp.corp.example.", 300, pointer()).await;
        self.add_named(full.clone(), 120, RData::SRV(SRV::new(0, 0, 631, Name::from_str(host).unwrap())))
            .await;
        let text = vec!["ty=HP LaserJet".to_owned(), "UUID=4509a320-00a0-008f-00b6-002507510eca".to_owned()];
        self.add_named(full.clone(), 60, RData::TXT(TXT::new(text))).await;
        self.add(host, 90, RData::A(A(address))).await;
    }

    async fn look(&self) -> Round {
        let domains = ["corp.example", "local", "example"].map(|domain| HostName::new(domain).unwrap());
        look(&self.resolver, &domains, &types(&[])).await
    }
}

struct Listener {
    known: BTreeMap<Key, ()>,
    instances: Instances,
}

impl Listener {
    fn new() -> Listener {
        Listener { known: BTreeMap::new(), instances: Instances::new(Source::UnicastDnsSd, false, Some) }
    }

    fn hear(&mut self, round: Round) -> Vec<Told> {
        round.apply(&mut self.known, &mut self.instances)
    }
}

#[tokio::test]
async fn a_printer_of_a_domain_comes_and_goes() {
    let server = Server::start().await;
    server.printer("Office, 2.floor", "office.corp.example.", Ipv4Addr::new(10, 1, 2, 3)).await;
    let mut listener = Listener::new();
    let round = server.look().await;
    assert_eq!(round.again(), Duration::from_secs(60));
    let told = listener.hear(round);
    let [Told::Seen(seen)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(seen.name.as_ref().unwrap().as_str(), "Office, 2.floor");
    assert_eq!(seen.host.as_ref().unwrap().as_str(), "office.corp.example");
    assert_eq!(seen.addresses, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(seen.make_and_model.as_ref().unwrap().as_str(), "HP LaserJet");
    assert!(seen.uuid.is_some());
    let advert = &seen.services[0].adverts[0];
    assert_eq!(advert.subtypes.iter().map(|label| label.as_str()).collect::<Vec<_>>(), ["_universal"]);
    // Nothing new.
    assert_eq!(listener.hear(server.look().await), []);
    // Nobody answers: it stays, and is asked for again soon.
    server.records.lock().await.broken = true;
    let round = server.look().await;
    assert_eq!(round.again(), AGAIN_FAILED);
    assert_eq!(listener.hear(round), []);
    // It is answered that there is none.
    *server.records.lock().await = Zone::default();
    let told = listener.hear(server.look().await);
    assert!(matches!(told.as_slice(), [Told::Gone(_)]), "{told:?}");
}

#[tokio::test]
async fn a_host_of_another_domain_keeps_its_name_to_itself() {
    let server = Server::start().await;
    server.printer("Bank", "www.bank.test.", Ipv4Addr::new(10, 1, 2, 3)).await;
    let told = Listener::new().hear(server.look().await);
    let [Told::Seen(seen)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(seen.host, None);
}

#[tokio::test]
async fn instances_are_bounded_and_belong_to_their_type() {
    let server = Server::start().await;
    for n in 0..20 {
        server.printer(&format!("p{n}"), &format!("h{n}.corp.example."), Ipv4Addr::new(10, 1, 3, n)).await;
    }
    let elsewhere = RData::PTR(PTR(Name::from_str("x._ipp._tcp.other.example.").unwrap()));
    server.add("_ipp._tcp.corp.example.", 300, elsewhere).await;
    let told = Listener::new().hear(server.look().await);
    assert_eq!(told.len(), 20);
}

#[test]
fn hosts_belong_to_their_domain_or_to_the_one_above() {
    let belongs = |host: &str, domain: &str| super::belongs(&HostName::new(host).unwrap(), domain);
    assert!(belongs("p.print.corp.example", "print.corp.example"));
    assert!(belongs("p.corp.example", "print.corp.example"));
    assert!(belongs("P.Corp.Example", "print.corp.example"));
    assert!(!belongs("p.example", "corp.example"));
    assert!(!belongs("notcorp.example", "corp.example"));
    assert!(!belongs("corp.example", "corp.example"));
}
