//! SNMP's messages, of which a manager needs two: GetRequest out, GetResponse in (RFC 1157; RFC 3416 for version 2c).

use rasn::types::{Integer, ObjectIdentifier, OctetString};
use rasn_snmp::{v1, v2, v2c};

/// Longest answer that is read, bytes: more than fits one unfragmented packet.
pub(super) const MAX_MESSAGE: usize = 2048;
/// Most variables of an answer that are looked at; one is asked for.
const MAX_VARIABLES: usize = 8;
/// Longest value kept, bytes.
const MAX_VALUE: usize = 1024;

/// How one speaks to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SnmpVersion {
    /// Version 1, which every printer understands.
    V1,
    /// Version 2c, which some insist on.
    V2c,
}

/// An answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) version: SnmpVersion,
    pub(super) community: Vec<u8>,
    /// The question's.
    pub(super) id: i32,
    /// The object's name, and what it is. `None` for the value: there is no such object, or something else than text or a name.
    pub(super) variables: Vec<(Vec<u32>, Option<Value>)>,
}

/// The kinds of value that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// OCTET STRING.
    Text(Vec<u8>),
    /// OBJECT IDENTIFIER.
    Name(Vec<u32>),
}

/// Why it is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SnmpError {
    /// Longer than any honest one.
    #[error("the agent's answer has {0} bytes, at most {MAX_MESSAGE} are accepted")]
    TooLong(usize),
    /// Not a GetResponse of version 1 or 2c.
    #[error("what the agent sent is no answer of SNMPv1 or v2c")]
    Malformed,
}

/// GetRequest for one object. `None`: an object's name that is none.
pub(super) fn request(
    version: SnmpVersion,
    community: &[u8],
    id: i32,
    object: &'static [u32],
) -> Option<Vec<u8>> {
    let name = ObjectIdentifier::new(object)?;
    let community = OctetString::from(community.to_vec());
    match version {
        SnmpVersion::V1 => {
            let value = v1_null();
            let pdu = v1::Pdu {
                request_id: Integer::from(id),
                error_status: 0.into(),
                error_index: 0.into(),
                variable_bindings: vec![v1::VarBind { name, value }],
            };
            let message = v1::Message { version: 0.into(), community, data: v1::GetRequest(pdu) };
            rasn::ber::encode(&message).ok()
        }
        SnmpVersion::V2c => {
            let pdu = v2::Pdu {
                request_id: id,
                error_status: 0,
                error_index: 0,
                variable_bindings: vec![v2::VarBind { name, value: v2::VarBindValue::Unspecified }],
            };
            let message = v2c::Message { version: 1.into(), community, data: v2::GetRequest(pdu) };
            rasn::ber::encode(&message).ok()
        }
    }
}

/// Reads a GetResponse.
pub(super) fn answer(bytes: &[u8]) -> Result<Answer, SnmpError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(SnmpError::TooLong(bytes.len()));
    }
    // The version stands first and says how the rest is to be read; one that is another's is no answer in either.
    answer_v2c(bytes).or_else(|| answer_v1(bytes)).ok_or(SnmpError::Malformed)
}

fn answer_v1(bytes: &[u8]) -> Option<Answer> {
    let message: v1::Message<v1::GetResponse> = rasn::ber::decode(bytes).ok()?;
    if message.version != Integer::from(0) {
        return None;
    }
    let v1::GetResponse(pdu) = message.data;
    // Version 1 has no word for a missing object: the whole answer is an error then, and repeats the question.
    let failed = pdu.error_status != Integer::from(0);
    let variables = pdu.variable_bindings.into_iter().take(MAX_VARIABLES);
    let variables = variables.map(|variable| {
        let value = if failed { None } else { value_v1(variable.value) };
        (arcs(&variable.name), value)
    });
    Some(Answer {
        version: SnmpVersion::V1,
        community: message.community.to_vec(),
        id: i32::try_from(pdu.request_id).ok()?,
        variables: variables.collect(),
    })
}

fn answer_v2c(bytes: &[u8]) -> Option<Answer> {
    let message: v2c::Message<v2::Response> = rasn::ber::decode(bytes).ok()?;
    if message.version != Integer::from(1) {
        return None;
    }
    let v2::Response(pdu) = message.data;
    let failed = pdu.error_status != 0;
    let variables = pdu.variable_bindings.into_iter().take(MAX_VARIABLES);
    let variables = variables.map(|variable| {
        let value = if failed { None } else { value_v2(variable.value) };
        (arcs(&variable.name), value)
    });
    Some(Answer {
        version: SnmpVersion::V2c,
        community: message.community.to_vec(),
        id: pdu.request_id,
        variables: variables.collect(),
    })
}

fn v1_null() -> rasn_smi::v1::ObjectSyntax {
    rasn_smi::v1::ObjectSyntax::Simple(rasn_smi::v1::SimpleSyntax::Empty)
}

fn value_v1(value: rasn_smi::v1::ObjectSyntax) -> Option<Value> {
    use rasn_smi::v1::{ObjectSyntax, SimpleSyntax};
    match value {
        ObjectSyntax::Simple(SimpleSyntax::String(text)) => Some(self::text(&text)),
        ObjectSyntax::Simple(SimpleSyntax::Object(name)) => Some(Value::Name(arcs(&name))),
        ObjectSyntax::Simple(SimpleSyntax::Number(_) | SimpleSyntax::Empty)
        | ObjectSyntax::ApplicationWide(_) => None,
    }
}

fn value_v2(value: v2::VarBindValue) -> Option<Value> {
    use rasn_smi::v2::{ObjectSyntax, SimpleSyntax};
    match value {
        v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::String(text))) => Some(self::text(&text)),
        v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::ObjectId(name))) => {
            Some(Value::Name(arcs(&name)))
        }
        v2::VarBindValue::Value(
            ObjectSyntax::Simple(SimpleSyntax::Integer(_)) | ObjectSyntax::ApplicationWide(_),
        )
        | v2::VarBindValue::Unspecified
        | v2::VarBindValue::NoSuchObject
        | v2::VarBindValue::NoSuchInstance
        | v2::VarBindValue::EndOfMibView => None,
    }
}

fn text(bytes: &[u8]) -> Value {
    Value::Text(bytes.get(..MAX_VALUE).unwrap_or(bytes).to_vec())
}

fn arcs(name: &ObjectIdentifier) -> Vec<u32> {
    let arcs: &[u32] = name.as_ref();
    arcs.get(..128).unwrap_or(arcs).to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYS_NAME: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 5, 0];

    /// As net-snmp's `snmpget -v1 -c public` sends it, but for the number.
    const GET_V1: &[u8] = &[
        0x30, 0x29, 0x02, 0x01, 0x00, 0x04, 0x06, b'p', b'u', b'b', b'l', b'i', b'c', 0xa0, 0x1c, 0x02, 0x04,
        0x12, 0x34, 0x56, 0x78, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00, 0x30, 0x0e, 0x30, 0x0c, 0x06, 0x08, 0x2b,
        0x06, 0x01, 0x02, 0x01, 0x01, 0x05, 0x00, 0x05, 0x00,
    ];

    /// An answer to it: the name is `lp`.
    fn response(version: u8, error: u8, value: &[u8]) -> Vec<u8> {
        let name = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x02, 0x01, 0x01, 0x05, 0x00];
        let wrap = |tag: u8, inside: &[u8]| [&[tag, u8::try_from(inside.len()).unwrap()], inside].concat();
        let bindings = wrap(0x30, &wrap(0x30, &[&name, value].concat()));
        let head = [0x02, 0x04, 0x12, 0x34, 0x56, 0x78, 0x02, 0x01, error, 0x02, 0x01, error];
        let pdu = wrap(0xa2, &[&head[..], &bindings].concat());
        let community = wrap(0x04, b"public");
        wrap(0x30, &[&[0x02, 0x01, version], &community[..], &pdu].concat())
    }

    #[test]
    fn a_request_is_what_net_snmp_sends() {
        let ours = request(SnmpVersion::V1, b"public", 0x1234_5678, SYS_NAME).unwrap();
        assert_eq!(ours, GET_V1);
        let mut second = GET_V1.to_vec();
        second[4] = 1;
        assert_eq!(request(SnmpVersion::V2c, b"public", 0x1234_5678, SYS_NAME).unwrap(), second);
        // It is no answer, though its own author could send it.
        assert_eq!(answer(GET_V1), Err(SnmpError::Malformed));
    }

    #[test]
    fn answers_of_both_versions_are_read() {
        for (version, byte) in [(SnmpVersion::V1, 0), (SnmpVersion::V2c, 1)] {
            let read = answer(&response(byte, 0, &[0x04, 2, b'l', b'p'])).unwrap();
            assert_eq!((read.version, read.id), (version, 0x1234_5678));
            assert_eq!(read.community, b"public");
            assert_eq!(read.variables, [(SYS_NAME.to_vec(), Some(Value::Text(b"lp".to_vec())))]);
            let read = answer(&response(byte, 0, &[0x06, 2, 0x2b, 0x06])).unwrap();
            assert_eq!(read.variables[0].1, Some(Value::Name(vec![1, 3, 6])));
        }
        assert_eq!(answer(&response(2, 0, &[0x05, 0])), Err(SnmpError::Malformed));
        assert_eq!(answer(&response(0x80, 0, &[0x05, 0])), Err(SnmpError::Malformed));
    }

    #[test]
    fn what_is_missing_or_another_kind_has_no_value() {
        for (version, error, value) in [
            (0, 2, &[0x05, 0][..]),
            (0, 2, &[0x04, 2, b'l', b'p']),
            (0, 0, &[0x02, 1, 7]),
            (0, 0, &[0x40, 4, 10, 0, 0, 1]),
            (1, 0, &[0x80, 0]),
            (1, 0, &[0x81, 0]),
            (1, 0, &[0x82, 0]),
            (1, 5, &[0x05, 0]),
            (1, 0, &[0x02, 1, 0xff]),
        ] {
            let read = answer(&response(version, error, value)).unwrap();
            assert_eq!(read.variables, [(SYS_NAME.to_vec(), None)], "{version} {error} {value:?}");
        }
    }

    #[test]
    fn hostile_lengths_and_nesting_are_refused() {
        let good = response(0, 0, &[0x04, 2, b'l', b'p']);
        for cut in 0..good.len() {
            assert_eq!(answer(&good[..cut]), Err(SnmpError::Malformed), "{cut}");
        }
        // Every byte says another length, another tag, another number.
        for (at, _) in good.iter().enumerate() {
            for value in [0, 1, 0x7f, 0x80, 0x81, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = answer(&bad);
            }
        }
        let nested = [&[0x30, 0x80].repeat(500)[..], &[0; 1000]].concat();
        assert_eq!(answer(&nested), Err(SnmpError::Malformed));
        let huge = [0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02, 0x01, 0x00];
        assert_eq!(answer(&huge), Err(SnmpError::Malformed));
        assert_eq!(answer(&[0; 3000]), Err(SnmpError::TooLong(3000)));
        // An arc of more than 32 bits, and one that never ends.
        for oid in [
            &[0x06, 7, 0x2b, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..],
            &[0x06, 3, 0x2b, 0xff, 0xff],
            &[0x06, 0],
        ] {
            assert!(answer(&response(1, 0, oid)).is_err(), "{oid:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = answer(&bytes);
        }

        #[test]
        fn damaged_answers_are_taken(
            version in 0u8..2, at in proptest::collection::vec((0usize..60, any::<u8>()), 1..6), cut in 0usize..60,
        ) {
            let mut bytes = response(version, 0, &[0x04, 2, b'l', b'p']);
            for (at, value) in at {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            bytes.truncate(cut);
            let _ = answer(&bytes);
        }
    }
}
