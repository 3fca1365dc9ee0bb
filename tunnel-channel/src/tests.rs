mod sequences;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use spice_proto::frame::{HeaderForm, Split, split};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{GroupId, Layout, ServiceKind};

use crate::*;

fn flow(from: &mut Channel, to: &mut Channel, mut hear: impl FnMut(&mut Channel, Event<'_>)) {
    let bytes = from.outgoing().to_vec();
    from.sent(bytes.len());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let Split::Frame { frame, consumed } = split(from.header, to.max_body(), rest).unwrap() else {
            panic!()
        };
        if let Some(event) = to.handle_frame(Instant::now(), frame).unwrap() {
            hear(to, event);
        }
        rest = &rest[consumed..];
    }
}

#[test]
fn a_guest_prints() {
    let now = Instant::now();
    let new =
        |role| Channel::new(role, HeaderForm::Mini, Layout::B, TunnelCaps::OURS, Config::default(), now);
    let (mut server, mut client) = (new(Role::Server), new(Role::Client));
    flow(&mut server, &mut client, |_, event| {
        assert_eq!(event, Event::Ready { max_sockets: 16384, max_data: 32768 });
    });
    let printer = client
        .add_service(NewService {
            kind: ServiceKind::Generic,
            group: GroupId(0),
            port: 631,
            name: b"printer",
            description: b"",
        })
        .unwrap();
    let address = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9));
    flow(&mut client, &mut server, |server, event| {
        let Event::ServiceAdded(add) = event else { panic!("{event:?}") };
        server.map_service(add.service, address).unwrap();
    });
    let socket = server.open(printer).unwrap();
    flow(&mut server, &mut client, |client, event| match event {
        Event::ServiceMapped { service, address: at } => assert_eq!((service, at), (printer, address)),
        Event::Open { socket, .. } => client.accept(socket),
        other => panic!("{other:?}"),
    });
    flow(&mut client, &mut server, |_, event| assert_eq!(event, Event::Accepted { socket }));
    assert_eq!(
        server.send(socket, |room| {
            room[..5].copy_from_slice(b"hello");
            5
        }),
        5
    );
    server.finish(socket);
    flow(&mut server, &mut client, |client, event| match event {
        Event::Data { socket, payload } => {
            assert_eq!(payload, b"hello");
            client.delivered(socket, 1);
        }
        Event::Finished { socket } => {
            client.finish(socket);
            client.close(socket);
        }
        other => panic!("{other:?}"),
    });
    flow(&mut client, &mut server, |server, event| {
        assert_eq!(event, Event::Finished { socket });
        server.close(socket);
    });
    flow(&mut server, &mut client, |_, event| panic!("{event:?}"));
    assert_eq!((server.sockets(), client.sockets()), (0, 0));
}
