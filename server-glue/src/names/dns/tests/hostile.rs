//! Whatever a guest sends.

use proptest::prelude::*;

use super::*;

/// What is answered is an answer to it: of its id, no question but its own, and no address that is not ours (see `World::answer`).
fn survives(world: &mut World, octets: &[u8]) {
    if let Some(answer) = world.send(GUEST, octets) {
        assert_eq!(octets[..2], answer.id.to_be_bytes());
        assert!(answer.queries.len() <= 1);
        let mut encoded = Vec::new();
        answer.emit(&mut BinEncoder::new(&mut encoded)).unwrap();
        assert!(encoded.len() <= 1232 + 512);
    }
    while world.dns.poll_question().is_some() {}
    assert!(world.raw_answer().is_none());
}

proptest! {
    #[test]
    fn any_octets_are_survived(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut world = World::usual();
        world.dns.tunnel_came(world.now, Duration::ZERO);
        world.dns.add_domain("home.arpa").unwrap();
        survives(&mut world, &octets);
    }

    #[test]
    fn any_damage_is_survived(
        which in 0..6usize,
        kind in any::<u16>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut world = World::usual();
        world.dns.tunnel_came(world.now, Duration::ZERO);
        world.dns.add_domain("home.arpa").unwrap();
        let names = [
            "_ipp._tcp.tunnel.internal.", "printer.local.", "9.7.18.198.in-addr.arpa.", "nas.home.arpa.",
            "b._dns-sd._udp.0.0.18.198.in-addr.arpa.", "nas.lan.",
        ];
        let mut query = world.query(names[which], RecordType::from(kind));
        let mut edns = Edns::new();
        edns.set_max_payload(kind);
        query.set_edns(edns);
        let mut octets = query.to_vec().unwrap();
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        if let Some(cut) = cut {
            octets.truncate(cut.index(octets.len()));
        }
        survives(&mut world, &octets);
    }

    #[test]
    fn any_name_is_survived(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..6), under in 0..5usize) {
        let mut world = World::usual();
        world.dns.tunnel_came(world.now, Duration::ZERO);
        world.dns.add_domain("home.arpa").unwrap();
        let under = n(["tunnel.internal.", "18.198.in-addr.arpa.", "home.arpa.", "local.", "."][under]);
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap().append_domain(&under).unwrap();
        for kind in [RecordType::A, RecordType::PTR, RecordType::ANY] {
            let mut query = Message::new(7, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(name.clone(), kind));
            survives(&mut world, &query.to_vec().unwrap());
        }
    }
}
