//! What services say of themselves, and names: by the rules, by peers that break them, and where it was not negotiated.

use std::time::Instant;

use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::{HostName, Identity, ServiceInfo};
use spice_proto::tunnel::{
    ClientMessage, GroupId, InfoBody, Layout, MAX_DOMAINS, MAX_QUERIES, NameAnswer, QueryId, ServerMessage,
    ServiceId,
};

use super::hostile::*;
use super::{new_service, said};
use crate::pair::{Pair, Setup};
use crate::{AskError, Channel, Config, DomainError, Event, NewService, Role, ServiceFault, Violation};

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn info(uuid: &str) -> ServiceInfo {
    ServiceInfo::new(Identity::new(uuid).ok(), None, Vec::new()).unwrap()
}

fn query(number: u32, name: &str) -> ServerMessage<'_> {
    ServerMessage::NameQuery { query: QueryId(number), name }
}

fn answer(number: u32, answer: NameAnswer) -> ClientMessage<'static> {
    ClientMessage::NameAnswer { query: QueryId(number), answer }
}

fn found(group: u32, ttl: u32) -> NameAnswer {
    NameAnswer::Found { group: GroupId(group), ttl }
}

/// What a server makes of an answer to a question of its own.
fn heard_answer(server: &mut Channel, number: u32, said: NameAnswer) -> NameAnswer {
    let message = answer(number, said);
    let mut body = Vec::new();
    message.write_body(Layout::B, &mut body);
    match server.handle_frame(Instant::now(), frame(message.kind(), &body)) {
        Ok(Some(Event::NameAnswered { query, answer })) => {
            assert_eq!(query, QueryId(number));
            answer
        }
        other => panic!("{other:?}"),
    }
}

/// A server whose client allows home.arpa.
fn naming_server() -> Channel {
    let mut server = server(TunnelCaps::OURS);
    assert_eq!(from_client(&mut server, ClientMessage::DomainAdd { name: "Home.arpa" }), Outcome::Event);
    said(&mut server);
    server
}

/// A client that allows home.arpa.
fn naming_client() -> Channel {
    let mut client = client(TunnelCaps::OURS);
    assert_eq!(client.add_domain(&host("Home.arpa")), Ok(()));
    assert_eq!(said(&mut client), ["C domain_add Home.arpa"]);
    client
}

#[test]
fn a_conversation() {
    let mut pair = Pair::new(&Setup::default());
    let mut told = Vec::new();
    pair.settle(3, |_, _| {}).unwrap();
    let first = info("uuid:1");
    let service =
        pair.client.add_service(NewService { info: Some(&first), ..new_service(4, b"nas") }).unwrap();
    assert!(pair.client.describe_service(service, &info("uuid:2")));
    pair.client.add_domain(&host("home.arpa")).unwrap();
    let mut run = |pair: &mut Pair| {
        pair.settle(3, |channel, event| match event {
            Event::ServiceDescribed { service, info } => {
                let info = info.info();
                told.push(format!("{} is {}", service.0, info.identity().unwrap().as_str()));
            }
            Event::ServiceAdded(add) => told.push(format!("{} is there", add.service.0)),
            Event::DomainAdded { name } => told.push(format!("+{name}")),
            Event::DomainRemoved { name } => told.push(format!("-{name}")),
            Event::NameAsked { query, name } => {
                told.push(format!("{name}?"));
                channel.answer_name(
                    query,
                    if name == "nas.home.arpa" { found(4, 60) } else { NameAnswer::NoSuchName },
                );
            }
            Event::NameAnswered { query, answer } => told.push(format!("{}: {answer:?}", query.0)),
            other => panic!("{other:?}"),
        })
        .unwrap();
    };
    run(&mut pair);
    assert_eq!(pair.server.ask_name(&host("NAS.home.arpa")), Ok(QueryId(0)));
    assert_eq!(pair.server.ask_name(&host("home.arpa")), Ok(QueryId(1)));
    assert_eq!((pair.server.queries(), pair.client.queries()), (2, 0));
    run(&mut pair);
    assert!(pair.client.remove_domain(&host("HOME.arpa")));
    assert!(!pair.client.remove_domain(&host("home.arpa")));
    // It crosses the removal, and is refused without the owner.
    assert_eq!(pair.server.ask_name(&host("nas.home.arpa")), Ok(QueryId(2)));
    run(&mut pair);
    assert_eq!(pair.server.ask_name(&host("nas.home.arpa")), Err(AskError::NoDomain));
    assert_eq!((pair.server.queries(), pair.client.queries()), (0, 0));
    assert_eq!(
        told,
        [
            "0 is uuid:1",
            "0 is there",
            "0 is uuid:2",
            "+home.arpa",
            "nas.home.arpa?",
            "home.arpa?",
            "0: Found { group: GroupId(4), ttl: 60 }",
            "1: NoSuchName",
            "-HOME.arpa",
            "2: Refused",
        ]
    );
}

/// To a peer without the capabilities, what is said is the same byte for byte, whatever the owner would like to say.
#[test]
fn who_did_not_negotiate_it_hears_nothing_of_it() {
    let described = info("uuid:1");
    let without_names = TunnelCaps::OURS - TunnelCaps::NAMES;
    let without_info = TunnelCaps::OURS - TunnelCaps::SERVICE_INFO;
    for (layout, caps, is_told) in [
        (Layout::A, TunnelCaps::OURS, false),
        (Layout::B, TunnelCaps::empty(), false),
        (Layout::B, TunnelCaps::EXTENDED, false),
        (Layout::B, TunnelCaps::NAMES, false),
        (Layout::B, without_info, false),
        (Layout::B, without_names, true),
    ] {
        let talk = |talkative: bool| {
            let config = Config::default();
            let mut client =
                Channel::new(Role::Client, HeaderForm::Full, layout, caps, config, Instant::now());
            assert_eq!(from_server(&mut client, init(20, 2048)), Outcome::Event);
            let info = talkative.then_some(&described);
            let service = client.add_service(NewService { info, ..new_service(0, b"printer") }).unwrap();
            if talkative {
                assert!(!client.is_naming());
                assert_eq!(client.caps().contains(TunnelCaps::SERVICE_INFO), is_told);
                assert_eq!(client.describe_service(service, &described), is_told);
                assert_eq!(client.add_domain(&host("home.arpa")), Err(DomainError::NotNegotiated));
                assert!(!client.remove_domain(&host("home.arpa")));
                client.answer_name(QueryId(0), NameAnswer::Refused);
            }
            client.outgoing().to_vec()
        };
        assert_eq!(talk(true) == talk(false), !is_told, "{layout:?} {caps:?}");
        let mut server =
            Channel::new(Role::Server, HeaderForm::Full, layout, caps, Config::default(), Instant::now());
        let before = server.outgoing().to_vec();
        assert_eq!(server.ask_name(&host("nas.home.arpa")), Err(AskError::NotNegotiated));
        assert_eq!(server.outgoing(), before);
    }
}

#[test]
fn words_that_were_not_negotiated_end_the_channel() {
    let mut buffer = Vec::new();
    let describe =
        ClientMessage::ServiceInfo { service: SERVICE, info: InfoBody::write(&info("uuid:1"), &mut buffer) };
    let naming = [
        answer(0, NameAnswer::Refused),
        ClientMessage::DomainAdd { name: "home.arpa" },
        ClientMessage::DomainRemove { name: "home.arpa" },
    ];
    for caps in [TunnelCaps::empty(), TunnelCaps::EXTENDED, TunnelCaps::NAMES] {
        for message in naming.into_iter().chain([describe]) {
            let heard = from_client(&mut server(caps), message);
            assert_eq!(heard, Fatal(Violation::NotNegotiated { message: message.name() }));
        }
        let heard = from_server(&mut client(caps), query(0, "nas.home.arpa"));
        assert_eq!(heard, Fatal(Violation::NotNegotiated { message: "name_query" }));
    }
    let caps = TunnelCaps::OURS - TunnelCaps::NAMES;
    assert_eq!(from_client(&mut server(caps), describe), Outcome::Event);
    for message in naming {
        let heard = from_client(&mut server(caps), message);
        assert_eq!(heard, Fatal(Violation::NotNegotiated { message: message.name() }));
    }
}

/// What a client says, one after the other, and what the last of it leads to. The server has one service and asked for
/// nothing but where `ask` stands.
#[test]
fn a_server_and_every_order() {
    let mut buffer = Vec::new();
    let body = InfoBody::write(&info("uuid:1"), &mut buffer);
    let describe = |id| ClientMessage::ServiceInfo { service: ServiceId(id), info: body };
    let announce = |id| ClientMessage::ServiceAdd(service_add(id, id, b"other"));
    let add = ClientMessage::DomainAdd { name: "home.arpa" };
    let again = ClientMessage::DomainAdd { name: "HOME.arpa" };
    let remove = ClientMessage::DomainRemove { name: "Home.arpa" };
    let no = answer(0, NameAnswer::NoSuchName);
    let never = |query| Fatal(Violation::NeverAsked { query: QueryId(query) });
    // `None`: the server asks.
    let ask = None;
    type Words<'a> = Vec<Option<ClientMessage<'a>>>;
    let table: Vec<(Words<'_>, Outcome)> = vec![
        (vec![Some(no)], never(0)),
        (vec![Some(add), ask, Some(no)], Outcome::Event),
        (vec![Some(add), ask, Some(no), Some(no)], never(0)),
        (vec![Some(add), ask, Some(answer(1, NameAnswer::Failed))], never(1)),
        (vec![Some(add), ask, Some(remove), Some(no)], Outcome::Event),
        (vec![Some(add), ask, ask, Some(answer(1, NameAnswer::Failed)), Some(no)], Outcome::Event),
        (vec![Some(add)], Outcome::Event),
        (vec![Some(add), Some(again)], Nothing),
        (vec![Some(remove)], Nothing),
        (vec![Some(add), Some(remove)], Outcome::Event),
        (vec![Some(add), Some(remove), Some(remove)], Nothing),
        (vec![Some(add), Some(remove), Some(add)], Outcome::Event),
        // Of what is there, and of what comes next.
        (vec![Some(describe(0))], Outcome::Event),
        (vec![Some(describe(7)), Some(announce(7))], Outcome::Event),
        // Of what never comes: the client may take a service for announced that was rejected.
        (vec![Some(describe(7)), Some(announce(8))], Outcome::Event),
        (vec![Some(describe(7)), Some(describe(8))], Outcome::Event),
        (vec![Some(describe(u32::MAX))], Outcome::Event),
        (vec![Some(ClientMessage::ServiceRemove { service: SERVICE }), Some(describe(0))], Outcome::Event),
    ];
    for (words, expected) in table {
        let mut server = server(TunnelCaps::OURS);
        let mut last = Nothing;
        for word in &words {
            match word {
                Some(message) => last = from_client(&mut server, *message),
                None => drop(server.ask_name(&host("nas.home.arpa")).unwrap()),
            }
        }
        assert_eq!(last, expected, "{words:?}");
        assert!(!server.has_ended() || server.queries() == 0);
    }
}

/// The same of a client, which allows home.arpa.
#[test]
fn a_client_and_every_order() {
    let nas = |number| query(number, "nas.home.arpa");
    let in_use = |query| Fatal(Violation::QueryInUse { query: QueryId(query) });
    // `None`: the owner answers query 0.
    let answers = None;
    let table: Vec<(Vec<Option<ServerMessage<'_>>>, Outcome, &str)> = vec![
        (vec![Some(nas(0))], Outcome::Event, ""),
        (vec![Some(nas(0)), Some(nas(0))], in_use(0), ""),
        (vec![Some(nas(0)), Some(nas(u32::MAX))], Outcome::Event, ""),
        (vec![Some(nas(0)), answers], Outcome::Event, "C name_answer 0 status 1"),
        (vec![Some(nas(0)), answers, answers], Outcome::Event, "C name_answer 0 status 1"),
        (vec![Some(nas(0)), answers, Some(nas(0))], Outcome::Event, "C name_answer 0 status 1"),
        (vec![answers], Nothing, ""),
        (vec![Some(query(0, "home.arpa"))], Outcome::Event, ""),
        // Never heard of by the owner.
        (vec![Some(query(5, "arpa"))], Nothing, "C name_answer 5 status 3"),
        (vec![Some(query(5, "nothome.arpa"))], Nothing, "C name_answer 5 status 3"),
        (vec![Some(query(5, "printer.local"))], Nothing, "C name_answer 5 status 3"),
        (vec![Some(query(5, "127.0.0.1"))], Nothing, "C name_answer 5 status 3"),
        (vec![Some(query(5, "x.lan")), Some(query(5, "x.lan"))], Nothing, "C name_answer 5 status 3"),
        (vec![Some(query(0, "Nas.home.arpa"))], Malformed, ""),
    ];
    for (words, expected, answer) in table {
        let mut client = naming_client();
        let mut last = Nothing;
        for word in &words {
            match word {
                Some(message) => last = from_server(&mut client, *message),
                None => client.answer_name(QueryId(0), NameAnswer::NoSuchName),
            }
        }
        assert_eq!(last, expected, "{words:?}");
        let said = said(&mut client);
        assert_eq!(said.first().map_or("", String::as_str), answer, "{words:?}");
        assert!(!client.has_ended() || client.queries() == 0);
    }
    let mut early = new(Role::Client, TunnelCaps::OURS, Config::default());
    assert_eq!(early.add_domain(&host("home.arpa")), Err(DomainError::NotReady));
    assert_eq!(from_server(&mut early, nas(0)), Fatal(Violation::BeforeInit { message: "name_query" }));
}

#[test]
fn no_more_questions_than_there_may_be() {
    let (mut server, mut client) = (naming_server(), naming_client());
    for number in 0..MAX_QUERIES as u32 {
        assert_eq!(server.ask_name(&host("nas.home.arpa")), Ok(QueryId(number)));
        assert_eq!(from_server(&mut client, query(number, "nas.home.arpa")), Outcome::Event);
    }
    assert_eq!(server.ask_name(&host("nas.home.arpa")), Err(AskError::Full { limit: MAX_QUERIES }));
    assert_eq!(said(&mut server).len(), MAX_QUERIES);
    // Whatever it is that is asked for.
    let heard = from_server(&mut client, query(MAX_QUERIES as u32, "elsewhere.lan"));
    assert_eq!(heard, Fatal(Violation::TooManyQueries { limit: MAX_QUERIES }));
    assert_eq!(from_client(&mut server, answer(7, NameAnswer::Failed)), Outcome::Event);
    assert_eq!(server.ask_name(&host("nas.home.arpa")), Ok(QueryId(MAX_QUERIES as u32)));
}

#[test]
fn no_more_domains_than_there_may_be() {
    let (mut server, mut client) = (server(TunnelCaps::OURS), client(TunnelCaps::OURS));
    for number in 0..MAX_DOMAINS {
        let name = format!("d{number}.test");
        assert_eq!(client.add_domain(&host(&name)), Ok(()));
        assert_eq!(from_client(&mut server, ClientMessage::DomainAdd { name: &name }), Outcome::Event);
    }
    assert_eq!(said(&mut client).len(), MAX_DOMAINS);
    let limit = MAX_DOMAINS;
    assert_eq!(client.add_domain(&host("more.test")), Err(DomainError::TooMany { limit }));
    assert_eq!(client.add_domain(&host("D0.test")), Ok(()), "it is there");
    for name in ["local", "x.local", "test", "10.in-addr.arpa", "10.0.0.1"] {
        assert!(matches!(client.add_domain(&host(name)), Err(DomainError::Name(_))), "{name}");
    }
    assert_eq!(said(&mut client), [""; 0]);
    assert_eq!(from_client(&mut server, ClientMessage::DomainAdd { name: "D0.Test" }), Nothing);
    let heard = from_client(&mut server, ClientMessage::DomainAdd { name: "more.test" });
    assert_eq!(heard, Fatal(Violation::TooManyDomains { limit }));
}

#[test]
fn an_answer_holds_for_a_device_that_is_there_and_some_time() {
    for (ttl, held) in [(0, 5), (5, 5), (60, 60), (3600, 3600), (3601, 3600), (u32::MAX, 3600)] {
        let mut server = naming_server();
        server.ask_name(&host("nas.home.arpa")).unwrap();
        assert_eq!(heard_answer(&mut server, 0, found(0, ttl)), found(0, held));
        // What a client says is within bounds already.
        let mut client = naming_client();
        assert_eq!(from_server(&mut client, query(0, "nas.home.arpa")), Outcome::Event);
        client.answer_name(QueryId(0), found(0, ttl));
        let expected = [&[0, 0, 0, 0, 0, 0, 0, 0, 0][..], &u32::to_le_bytes(held)].concat();
        assert_eq!(client.outgoing()[6..], expected);
    }
    // No service of this group is there: at the server it may have been rejected, at the client it is a bug.
    let mut server = naming_server();
    server.ask_name(&host("nas.home.arpa")).unwrap();
    assert_eq!(heard_answer(&mut server, 0, found(9, 60)), NameAnswer::Failed);
    let mut client = naming_client();
    for number in 0..2 {
        assert_eq!(from_server(&mut client, query(number, "nas.home.arpa")), Outcome::Event);
    }
    client.answer_name(QueryId(0), found(9, 60));
    client.remove_service(SERVICE);
    client.answer_name(QueryId(1), found(0, 60));
    let failed = |number| format!("C name_answer {number} status 2");
    assert_eq!(said(&mut client), [failed(0), "C service_remove 0".to_owned(), failed(1)]);
}

/// A description comes before the event that takes the service in, or does not.
#[test]
fn a_rejected_service_is_described_all_the_same() {
    let mut server = server(TunnelCaps::OURS);
    let mut buffer = Vec::new();
    let body = InfoBody::write(&info("uuid:1"), &mut buffer);
    let describe = ClientMessage::ServiceInfo { service: ServiceId(1), info: body };
    assert_eq!(from_client(&mut server, describe), Outcome::Event);
    let message = ClientMessage::ServiceAdd(service_add(1, 0, b"another name"));
    let mut body = Vec::new();
    message.write_body(Layout::B, &mut body);
    let heard = server.handle_frame(Instant::now(), frame(message.kind(), &body));
    let fault = ServiceFault::NameMismatch;
    assert_eq!(heard, Ok(Some(Event::ServiceRejected { service: ServiceId(1), fault })));
    // The client does not know, and may have more to say of it.
    assert_eq!(from_client(&mut server, describe), Outcome::Event);
    let next = ClientMessage::ServiceAdd(service_add(2, 2, b"scanner"));
    assert_eq!(from_client(&mut server, next), Outcome::Event);
}

#[test]
fn nothing_is_left_of_names_when_the_channel_is_over() {
    let (mut server, mut client) = (naming_server(), naming_client());
    server.ask_name(&host("nas.home.arpa")).unwrap();
    assert_eq!(from_server(&mut client, query(0, "nas.home.arpa")), Outcome::Event);
    for channel in [&mut server, &mut client] {
        channel.disconnect(0);
        said(channel);
        assert_eq!((channel.queries(), channel.is_naming()), (0, false));
        assert_eq!(channel.ask_name(&host("nas.home.arpa")), Err(AskError::NotReady));
        assert_eq!(channel.add_domain(&host("home.arpa")), Err(DomainError::NotReady));
        channel.answer_name(QueryId(0), NameAnswer::Failed);
        assert_eq!(said(channel), [""; 0]);
    }
}
