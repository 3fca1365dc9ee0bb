//! What is known of a device beyond a share: told, dialled, changed, withdrawn; and names of the user's domains.

use client_glue::service_info::{HostName, Identity, ServiceInfo};
use client_glue::{Answer, DeviceKey, Event, Offer, Reach, ShareId, TunnelConfig};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{NameAnswer, ServiceId};
use tunnel_channel::Config;

use crate::peer::{PATIENCE, Setup, Told, accept, listen, pattern, setup, setup_with, virtual_ip};
use tokio::time::timeout;

/// Something on this machine, since that is where a test's services are.
fn offer(identity: &str, name: &str, addresses: &[std::net::SocketAddr]) -> Offer {
    let port = addresses[0].port();
    let mut share: client_glue::Share = format!("tcp://printer.local:{port}").parse().unwrap();
    share.name = name.to_owned();
    let identity = Identity::new(identity).unwrap();
    let addresses = addresses.iter().map(|address| address.ip()).collect();
    let host = HostName::new("printer.local").unwrap();
    let info = ServiceInfo::new(None, Some(host), vec![]).unwrap();
    Offer { reach: Reach::ThisMachine, ..Offer::device(share, identity, Some(info), addresses) }
}

async fn described(setup: &mut Setup) -> (ServiceId, ServiceInfo) {
    match setup.peer.next().await {
        Told::Described(service, info) => (service, info),
        told => panic!("{told:?}"),
    }
}

async fn unmapped(setup: &mut Setup) -> ShareId {
    setup.event(|event| if let Event::Unmapped { share, .. } = event { Some(share) } else { None }).await
}

#[tokio::test]
async fn a_device_is_described_and_dialled_where_it_is() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let id = setup.handle.offer(offer("uuid:1", "Laser", &[address])).unwrap();
    let (service, info) = described(&mut setup).await;
    assert_eq!(info.identity().unwrap().as_str(), "uuid:1");
    assert_eq!(info.host().unwrap().as_str(), "printer.local");
    assert!(matches!(setup.peer.next().await, Told::Added { service: added, .. } if added == service));
    let socket = setup.open(service).await;
    let _stream = accept(&listener).await;
    assert_eq!(setup.handle.connections(id), 1);

    // It says another thing, and has moved: to where nobody is, first.
    let host = HostName::new("other.local").unwrap();
    let info = ServiceInfo::new(Some(Identity::new("uuid:1").unwrap()), Some(host), vec![]).unwrap();
    let there = vec!["127.0.0.77".parse().unwrap(), address.ip()];
    assert!(setup.handle.update_offer(id, Some(info.clone()), there).unwrap());
    assert_eq!(described(&mut setup).await, (service, info));
    // The addresses are tried in their order until one answers, and the open connection is left alone.
    setup.open(service).await;
    accept(&listener).await;
    assert_eq!(setup.handle.connections(id), 2);
    setup.peer.channel.reset(socket);
    setup.peer.flush().await;
    setup.event(|event| matches!(event, Event::Closed { .. }).then_some(())).await;
    assert_eq!(setup.handle.connections(id), 1);
}

#[tokio::test]
async fn a_withdrawn_device_finishes_its_jobs_and_gets_no_new_ones() {
    let mut setup = setup();
    let (listener, address) = listen().await;
    let id = setup.handle.offer(offer("uuid:1", "Laser", &[address])).unwrap();
    let (service, _) = described(&mut setup).await;
    setup.peer.next().await;
    setup.peer.channel.map_service(service, virtual_ip()).unwrap();
    setup.peer.flush().await;
    setup.event(|event| matches!(event, Event::Mapped { .. }).then_some(())).await;
    let socket = setup.open(service).await;
    let mut stream = accept(&listener).await;

    assert!(setup.handle.withdraw(id) && !setup.handle.withdraw(id));
    assert_eq!(unmapped(&mut setup).await, id);
    // The guest's next connect and this cross.
    let late = setup.peer.channel.open(service).unwrap();
    setup.peer.flush().await;
    let mut told = vec![setup.peer.next().await, setup.peer.next().await];
    told.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, [Told::Refused(late), Told::Removed(service)]);

    // The job that is being printed goes on to its end.
    let job = pattern(300_000);
    let printing = tokio::spawn(async move {
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    assert_eq!(setup.peer.exchange(socket, &job).await, job);
    printing.await.unwrap();

    // When it is back it is the same device, of the same group.
    setup.handle.offer(offer("uuid:1", "Laser", &[address])).unwrap();
    let (again, _) = described(&mut setup).await;
    assert_ne!(again, service);
    assert!(matches!(setup.peer.next().await, Told::Added { group: 0, .. }));
}

#[tokio::test]
async fn a_historical_server_gets_names_that_last() {
    let caps = TunnelCaps::OURS & !TunnelCaps::SERVICE_INFO & !TunnelCaps::NAMES;
    let mut setup = setup_with(caps, Config::default(), TunnelConfig::default());
    let (_listener, address) = listen().await;
    setup.handle.offer(offer("uuid:1", "Laser", &[address])).unwrap();
    setup.handle.offer(offer("uuid:2", "Laser", &[address])).unwrap();
    setup.handle.add_domain(&HostName::new("home.arpa").unwrap()).unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        let Told::Added { name, .. } = setup.peer.next().await else { panic!("not added") };
        names.push(name);
    }
    assert!(names[0].starts_with("Laser (") && names[1].starts_with("Laser (") && names[0] != names[1]);
    setup.peer.silence().await;
}

#[tokio::test]
async fn a_plain_share_tells_its_host_and_nothing_else() {
    let mut setup = setup();
    setup.handle.add_share("tcp://nas.lan:445?name=NAS".parse().unwrap()).unwrap();
    let (_, info) = described(&mut setup).await;
    assert_eq!((info.identity(), info.host().unwrap().as_str()), (None, "nas.lan"));
    assert!(matches!(setup.peer.next().await, Told::Added { .. }));
    setup.handle.add_share("tcp://192.168.1.9:445".parse().unwrap()).unwrap();
    assert!(matches!(setup.peer.next().await, Told::Added { .. }));
}

#[tokio::test]
async fn names_are_asked_for_and_answered() {
    let mut setup = setup();
    let domain = HostName::new("home.arpa").unwrap();
    let mut questions = setup.handle.questions().unwrap();
    assert!(setup.handle.questions().is_none(), "they were taken already");
    setup.handle.add_domain(&domain).unwrap();
    assert_eq!(setup.peer.next().await, Told::Domain("home.arpa".into(), true));
    let name = HostName::new("nas.home.arpa").unwrap();
    let query = setup.peer.channel.ask_name(&name).unwrap();
    setup.peer.flush().await;
    let question = timeout(PATIENCE, questions.recv()).await.unwrap().unwrap();
    assert_eq!(question.name, name);

    let (_listener, address) = listen().await;
    let device = DeviceKey::Identity(Identity::new("dns:nas.home.arpa").unwrap());
    setup.handle.offer(offer("dns:nas.home.arpa", "nas.home.arpa", &[address])).unwrap();
    let ttl = std::time::Duration::from_secs(60);
    setup.handle.answer_name(question.query, Answer::Found { device: device.clone(), ttl });
    // What it leads to is announced before.
    let (service, _) = described(&mut setup).await;
    assert!(matches!(setup.peer.next().await, Told::Added { service: added, .. } if added == service));
    let Told::Name(answered, NameAnswer::Found { ttl: 60, .. }) = setup.peer.next().await else {
        panic!("not found")
    };
    assert_eq!(answered, query);

    // A device of which nothing is offered cannot be an answer.
    let query = setup.peer.channel.ask_name(&name).unwrap();
    setup.peer.flush().await;
    let question = timeout(PATIENCE, questions.recv()).await.unwrap().unwrap();
    let nobody = DeviceKey::Identity(Identity::new("uuid:nobody").unwrap());
    setup.handle.answer_name(question.query, Answer::Found { device: nobody, ttl });
    assert_eq!(setup.peer.next().await, Told::Name(query, NameAnswer::Failed));

    assert!(setup.handle.remove_domain(&domain));
    assert_eq!(setup.peer.next().await, Told::Domain("home.arpa".into(), false));
}

#[tokio::test]
async fn questions_that_nobody_takes_are_answered() {
    let mut setup = setup();
    setup.handle.add_domain(&HostName::new("home.arpa").unwrap()).unwrap();
    setup.peer.next().await;
    drop(setup.handle.questions());
    let query = setup.peer.channel.ask_name(&HostName::new("nas.home.arpa").unwrap()).unwrap();
    setup.peer.flush().await;
    assert_eq!(setup.peer.next().await, Told::Name(query, NameAnswer::Failed));
}
