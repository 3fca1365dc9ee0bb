use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { length: 9000, questions: 4, records: 6 };

/// A message, one line a record: `?` question, `=` answer, `~` authority, `+` additional; `!` makes others forget, or asks for unicast.
pub(crate) fn text(message: &[u8]) -> Vec<String> {
    let limits = Limits { length: 9000, questions: 1000, records: 1000 };
    let message = Incoming::parse(message, limits).unwrap();
    let mut lines = Vec::new();
    for question in &message.questions {
        let bang = if question.mdns_unicast_response { "!" } else { "" };
        lines.push(format!("?{bang} {} {}", question.name, question.query_type));
    }
    let sections = [("=", &message.answers), ("~", &message.authorities), ("+", &message.additionals)];
    for (sign, records) in sections {
        for record in records {
            let bang = if record.mdns_cache_flush { "!" } else { "" };
            let known = !matches!(record.data, RData::Unknown { .. });
            let data = if known { format!(" {}", record.data.to_string().trim_end()) } else { String::new() };
            lines.push(format!("{sign}{bang} {} {} {}{data}", record.ttl, record.name, record.record_type()));
        }
    }
    lines
}

fn header(counts: [u16; 4]) -> Vec<u8> {
    let mut message = vec![0, 1, 0, 0];
    message.extend(counts.into_iter().flat_map(u16::to_be_bytes));
    message
}

fn n(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let questions = [Query::query(n("a.b.local."), RecordType::ANY)];
    let mut flushed = Record::from_rdata(n("a.b.local."), 120, RData::A(A([1, 2, 3, 4].into())));
    flushed.mdns_cache_flush = true;
    let answers = [
        flushed,
        Record::from_rdata(n("b.local."), 1, RData::PTR(PTR(n("c.b.local.")))),
        Record::from_rdata(n("c.b.local."), 2, RData::SRV(SRV::new(1, 2, 3, n("b.local.")))),
    ];
    let authorities =
        [Record::from_rdata(n("c.local."), 3, RData::TXT(TXT::new(vec!["x=y".into(), String::new()])))];
    let data = RData::Unknown { code: RecordType::NSEC, rdata: NULL::with(vec![1, 2]) };
    let additionals = [Record::from_rdata(n("d.local."), 4, data)];
    let message = Outgoing {
        id: 0xabcd,
        flags: flags::RESPONSE,
        questions: &questions,
        answers: &answers,
        authorities: &authorities,
        additionals: &additionals,
    };
    let written = message.write(1472, 1472).unwrap();
    assert_eq!((written.answers, written.additionals), (3, vec![0]));
    let read = Incoming::parse(&written.bytes, LIMITS).unwrap();
    assert_eq!((read.id, read.flags), (0xabcd, flags::RESPONSE));
    assert_eq!(read.questions, questions);
    assert_eq!((read.answers.as_slice(), read.authorities.as_slice()), (&answers[..], &authorities[..]));
    assert_eq!(read.additionals, additionals);
    assert!(read.answers[0].mdns_cache_flush && !read.answers[1].mdns_cache_flush);
    assert_eq!(read.answers[2].ttl, 2);
    // hickory reads the same.
    let theirs = hickory_proto::op::Message::from_vec(&written.bytes).unwrap();
    assert_eq!(theirs.answers, answers);
    assert_eq!(theirs.authorities, authorities);
}

#[test]
fn a_message_has_a_size() {
    let record = |number: usize, length: usize| {
        Record::from_rdata(
            n(&format!("n{number}.local.")),
            120,
            RData::TXT(TXT::new(vec!["x".repeat(length)])),
        )
    };
    let answers: Vec<Record> = (0..20).map(|number| record(number, 100)).collect();
    let additionals = [record(30, 200), record(31, 10)];
    let message = Outgoing { answers: &answers, additionals: &additionals, ..Outgoing::default() };
    let written = message.write(600, 9000).unwrap();
    assert!(
        written.bytes.len() <= 600 && written.answers == 5,
        "{} {}",
        written.bytes.len(),
        written.answers
    );
    assert!(written.additionals.is_empty(), "they belong to the last message");
    // The rest fits, and of the additional ones what has room.
    let message = Outgoing { answers: &answers[16..], additionals: &additionals, ..Outgoing::default() };
    let written = message.write(600, 9000).unwrap();
    assert_eq!((written.answers, written.additionals), (4, vec![1]));
    assert_eq!(Incoming::parse(&written.bytes, LIMITS).unwrap().additionals, additionals[1..]);
    // One that is larger than usual goes alone, up to what is possible at all.
    let large =
        [Record::from_rdata(n("a."), 1, RData::TXT(TXT::new(vec!["x".repeat(255); 4]))), record(1, 1)];
    let message = Outgoing { answers: &large, ..Outgoing::default() };
    assert_eq!(message.write(600, 9000).unwrap().answers, 1);
    assert!(message.write(600, 1000).is_none());
}

#[test]
fn names_may_be_compressed_but_not_go_in_circles() {
    let question = |name: &[u8]| {
        let mut message = header([1, 0, 0, 0]);
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 1, 0, 1]);
        Incoming::parse(&message, LIMITS).map(|message| message.questions[0].name.to_string())
    };
    assert_eq!(question(b"\x01a\x05local\0"), Some("a.local.".to_owned()));
    assert_eq!(question(b"\0"), Some(".".to_owned()));
    // To itself, ahead, to each other, nowhere, labels of kinds that are not.
    for bad in
        [&b"\xc0\x0c"[..], b"\xc0\x0e\0", b"\x01a\xc0\x0c", b"\xff\xff", b"\x40a\0", b"\x80", b"\x05ab", b""]
    {
        assert_eq!(question(bad), None, "{bad:?}");
    }
    // Too long: 255 octets are allowed.
    let long = |labels: usize, last: usize| {
        let mut name = [&[63][..], &[b'x'; 63]].concat().repeat(labels);
        name.push(last as u8);
        name.extend(vec![b'y'; last]);
        name.push(0);
        question(&name)
    };
    assert!(long(3, 61).is_some());
    assert!(long(3, 62).is_none());
    assert!(long(4, 1).is_none());
}

#[test]
fn pointers_are_counted() {
    // A chain of names: each is a pointer to the one before.
    let chain = |length: usize| {
        let mut message = header([1, 0, 0, 0]);
        message.push(0);
        message.extend_from_slice(&[0, 1, 0, 1]);
        message[5] = 2;
        let mut target = 12u16;
        let mut names = Vec::new();
        let start = message.len() as u16;
        for index in 0..length {
            names.extend_from_slice(&(0xc000 | target).to_be_bytes());
            target = start + 2 * index as u16;
        }
        // The names stand where the second question's is; it begins with the last of them.
        message.extend_from_slice(&names);
        message.extend_from_slice(&[0, 1, 0, 1]);
        let mut reader = Reader { message: &message, at: usize::from(start) + 2 * (length - 1) };
        reader.name()
    };
    assert_eq!(chain(1), Some(Name::root()));
    assert_eq!(chain(MAX_POINTERS), Some(Name::root()));
    assert_eq!(chain(MAX_POINTERS + 1), None);
}

#[test]
fn counts_are_not_believed() {
    let mut message = header([5, 0, 0, 0]);
    message.extend_from_slice(&[0, 0, 1, 0, 1].repeat(5));
    assert!(Incoming::parse(&message, LIMITS).is_none(), "more questions than allowed");
    message[5] = 4;
    assert_eq!(Incoming::parse(&message, LIMITS).unwrap().questions.len(), 4);
    message.truncate(20);
    assert!(Incoming::parse(&message, LIMITS).is_none(), "questions that are not there");
    // Records beyond the limit, or beyond the message, are left out.
    let record = [0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4];
    let mut message = header([0, 0xffff, 0xffff, 0xffff]);
    message.extend_from_slice(&record.repeat(4));
    let read = Incoming::parse(&message, LIMITS).unwrap();
    assert_eq!((read.answers.len(), read.authorities.len(), read.additionals.len()), (4, 0, 0));
    let mut message = header([0, 4, 4, 4]);
    message.extend_from_slice(&record.repeat(12));
    let read = Incoming::parse(&message, LIMITS).unwrap();
    assert_eq!((read.answers.len(), read.authorities.len(), read.additionals.len()), (4, 2, 0));
    assert!(Incoming::parse(&[0; 9001], LIMITS).is_none());
}

#[test]
fn data_that_is_not_as_its_type_wants_is_just_octets() {
    let with = |kind: u16, data: &[u8]| {
        let mut message = header([0, 2, 0, 0]);
        for (kind, data) in [(kind, data), (1, &[9, 8, 7, 6][..])] {
            message.push(0);
            message.extend_from_slice(&kind.to_be_bytes());
            message.extend_from_slice(&[0x80, 1, 0, 0, 0, 9]);
            message.extend_from_slice(&(data.len() as u16).to_be_bytes());
            message.extend_from_slice(data);
        }
        let mut read = Incoming::parse(&message, LIMITS).unwrap();
        assert_eq!(read.answers.len(), 2, "what follows is read");
        assert_eq!(read.answers[1].data, RData::A(A([9, 8, 7, 6].into())));
        read.answers.swap_remove(0).data
    };
    let bad: [(u16, &[u8]); 11] = [
        (1, &[1, 2, 3]),
        (1, &[1, 2, 3, 4, 5]),
        (1, &[]),
        (12, &[]),
        (12, &[1, b'a']),
        (12, &[0, 0]),
        (12, &[0xc0, 0xff]),
        (33, &[0, 0, 0, 0, 0]),
        (16, &[5, b'a']),
        (47, &[0, 0, 1, 0x40]),
        (28, &[0; 16]),
    ];
    for (kind, data) in bad {
        assert!(matches!(with(kind, data), RData::Unknown { .. }), "{kind} {data:?}");
    }
    assert!(matches!(with(16, &[0]), RData::TXT(_)));
    assert!(matches!(with(16, &[]), RData::TXT(_)));
    assert_eq!(with(12, &[0xc0, 12]), RData::PTR(PTR(Name::root())));
}

proptest! {
    #[test]
    fn any_octets_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), counts in any::<[u8; 4]>()) {
        let mut message = header(counts.map(u16::from));
        message.extend_from_slice(&bytes);
        if let Some(read) = Incoming::parse(&message, LIMITS) {
            prop_assert!(read.questions.len() <= 4);
            prop_assert!(read.answers.len() + read.authorities.len() + read.additionals.len() <= 6);
            // What was read can be written.
            for record in &read.answers {
                record.to_bytes().unwrap();
            }
        }
    }
}
