//! Whole captures of programs that are not ours.

use super::*;

fn counts(name: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    dissect(&mut Dissector::new(Options::default()), &events(&packets(name)), || usize::MAX, |item| {
        if let Some(label) = label(&item) {
            *counts.entry(label).or_default() += 1;
        }
    });
    counts
}

#[test]
fn a_refused_ticket_is_followed_to_its_end() {
    let expected = ["auth_mechanism", "link_mess", "ticket"].map(|name| (format!("main client {name}"), 1));
    let answers = ["link_reply", "link_result"].map(|name| (format!("main server {name}"), 1));
    assert_eq!(counts("wrong-ticket.pcap"), expected.into_iter().chain(answers).collect());
}

#[test]
fn pieces_of_any_length_say_the_same() {
    for name in STOCK.into_iter().chain(TUNNELS) {
        let events = events(&packets(name));
        let whole = texts(&events, || usize::MAX);
        let mut random = Random(0x5EED);
        assert!(texts(&events, || 1) == whole, "{name}, byte by byte");
        for most in [3, 40, 5000] {
            assert!(texts(&events, || 1 + random.below(most)) == whole, "{name}, up to {most}");
        }
    }
}
