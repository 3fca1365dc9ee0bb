//! Descriptions, domains, questions and answers that today's code would not say, or would not take.

use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, GroupId, NameAnswer, QueryId, ServerMessage};
use spice_tunnel::replay::report::{Part, Report, Subject, Verdict};
use tunnel_channel::Role;

use super::tape::{Said, Tape};
use super::{assert_found, run, text};

/// What the replay of a session says of which the first message that is so was changed.
fn changed(is_so: impl Fn(&Said) -> bool, change: impl FnOnce(&mut Tape, usize)) -> Report {
    let mut tape = Tape::modern();
    let at = tape.position(is_so);
    change(&mut tape, at);
    run(&tape, &[Role::Server, Role::Client], None)
}

fn describes(said: &Said) -> bool {
    matches!(said.client(), Some(ClientMessage::ServiceInfo { .. }))
}

fn answers(said: &Said) -> bool {
    matches!(said.client(), Some(ClientMessage::NameAnswer { answer: NameAnswer::Found { .. }, .. }))
}

fn asks(said: &Said) -> bool {
    matches!(said.server(), Some(ServerMessage::NameQuery { .. }))
}

fn adds_domain(said: &Said) -> bool {
    matches!(said.client(), Some(ClientMessage::DomainAdd { .. }))
}

#[test]
fn a_description_of_another_service_than_the_next_is_found() {
    let report = changed(describes, |tape, at| tape.said[at].body[0] = 5);
    let words = ["describes service 5 and announces another", "comes next"];
    assert_found(&report, Part::Client, Subject::Service, &words);
}

#[test]
fn a_question_that_today_would_not_ask_is_found() {
    let other = ServerMessage::NameQuery { query: QueryId(0), name: "nas.lan" };
    let report = changed(asks, |tape, at| tape.say_server(at, &other));
    assert_found(&report, Part::Server, Subject::Name, &["nas.lan", "in no domain that the client allows"]);
    assert_found(&report, Part::Client, Subject::Name, &["found", "refused"]);
    let report = changed(adds_domain, |tape, at| drop(tape.said.remove(at)));
    assert_found(&report, Part::Server, Subject::Name, &["nas.home.arpa", "in no domain"]);
}

#[test]
fn a_question_that_crossed_the_end_of_its_domain_is_no_difference() {
    let is_removal = |said: &Said| matches!(said.client(), Some(ClientMessage::DomainRemove { .. }));
    let report = changed(is_removal, |tape, at| {
        assert!(asks(&tape.said[at - 1]));
        tape.said.swap(at - 1, at);
    });
    assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
}

#[test]
fn answers_that_do_not_fit_are_found() {
    // Of a device that was never announced.
    let answer = NameAnswer::Found { group: GroupId(9), ttl: 60 };
    let message = ClientMessage::NameAnswer { query: QueryId(0), answer };
    let report = changed(answers, |tape, at| tape.say(at, &message));
    assert_found(&report, Part::Client, Subject::Name, &["found  group 9", "failed"]);
    // For longer than anything holds.
    let answer = NameAnswer::Found { group: GroupId(0), ttl: 9999 };
    let message = ClientMessage::NameAnswer { query: QueryId(0), answer };
    let report = changed(answers, |tape, at| tape.say(at, &message));
    assert_found(&report, Part::Client, Subject::Name, &["for 9999 s", "for 3600 s"]);
    // To what was not asked.
    let message = ClientMessage::NameAnswer { query: QueryId(77), answer: NameAnswer::Failed };
    let report = changed(answers, |tape, at| tape.say(at, &message));
    assert_found(&report, Part::Server, Subject::Channel, &["which was not asked"]);
    assert_found(&report, Part::Client, Subject::Name, &["query 77", "no such query"]);
}

#[test]
fn a_domain_that_is_added_twice_is_found() {
    let report = changed(adds_domain, |tape, at| {
        let again = tape.said[at].clone();
        tape.said.insert(at, again);
    });
    assert_found(&report, Part::Client, Subject::Name, &["home.arpa", "nothing is said"]);
}

#[test]
fn what_was_not_negotiated_is_found() {
    let mut tape = Tape::modern();
    tape.negotiate(0x0f);
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Server, Subject::Channel, &["no capability was negotiated"]);
    assert_found(&report, Part::Client, Subject::Service, &["uuid:1", "it says nothing of itself"]);
    assert_found(&report, Part::Client, Subject::Name, &["home.arpa", "was not negotiated"]);
}

/// What names have to do with is not in a hole only where it is: before and behind it, nothing is held against anyone.
#[test]
fn a_hole_among_names_is_no_difference() {
    let whole = Tape::modern();
    let of_names = |said: &Said| {
        let of_server = said.from == Sender::Server && said.kind == 110;
        of_server || said.from == Sender::Client && (112..=115).contains(&said.kind)
    };
    let places: Vec<usize> = (0..whole.said.len()).filter(|at| of_names(&whole.said[*at])).collect();
    assert_eq!(places.len(), 12);
    for at in places {
        let mut tape = Tape::modern();
        tape.lose(at);
        let report = run(&tape, &[Role::Server, Role::Client], None);
        assert_eq!(report.verdict(), Verdict::NotComparable, "message {at}: {}", text(&report));
    }
}
