//! An SNMP agent, without a socket: GetRequest of version 1 or 2c in, GetResponse out.

use std::collections::BTreeMap;

use rasn::types::{Integer, ObjectIdentifier};
use rasn_snmp::{v1, v2, v2c};

/// What an object is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(Vec<u8>),
    Name(&'static [u32]),
}

/// What it knows, and whom it answers.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) community: Vec<u8>,
    pub(crate) v1: bool,
    pub(crate) v2c: bool,
    pub(crate) objects: BTreeMap<&'static [u32], Value>,
}

impl Agent {
    /// `None`: it keeps silent, as an agent does that is asked in other words than its own.
    pub(crate) fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.answer_v1(request).or_else(|| self.answer_v2c(request))
    }

    fn value(&self, name: &ObjectIdentifier) -> Option<Value> {
        let name: &[u32] = name.as_ref();
        self.objects.get(name).cloned()
    }

    fn answer_v1(&self, request: &[u8]) -> Option<Vec<u8>> {
        use rasn_smi::v1::{ObjectSyntax, SimpleSyntax};
        let message: v1::Message<v1::GetRequest> = rasn::ber::decode(request).ok()?;
        if !self.v1 || message.version != Integer::from(0) || message.community != self.community {
            return None;
        }
        let v1::GetRequest(mut pdu) = message.data;
        for (variable, index) in pdu.variable_bindings.iter_mut().zip(1..) {
            let value = match self.value(&variable.name) {
                Some(Value::Text(text)) => SimpleSyntax::String(text.into()),
                Some(Value::Name(name)) => SimpleSyntax::Object(ObjectIdentifier::new(name)?),
                None => {
                    // noSuchName, and the question comes back.
                    (pdu.error_status, pdu.error_index) = (2.into(), index.into());
                    continue;
                }
            };
            variable.value = ObjectSyntax::Simple(value);
        }
        let (version, community) = (message.version, message.community);
        rasn::ber::encode(&v1::Message { version, community, data: v1::GetResponse(pdu) }).ok()
    }

    fn answer_v2c(&self, request: &[u8]) -> Option<Vec<u8>> {
        use rasn_smi::v2::{ObjectSyntax, SimpleSyntax};
        let message: v2c::Message<v2::GetRequest> = rasn::ber::decode(request).ok()?;
        if !self.v2c || message.version != Integer::from(1) || message.community != self.community {
            return None;
        }
        let v2::GetRequest(mut pdu) = message.data;
        for variable in &mut pdu.variable_bindings {
            variable.value = match self.value(&variable.name) {
                Some(Value::Text(text)) => {
                    v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::String(text.into())))
                }
                Some(Value::Name(name)) => {
                    let name = ObjectIdentifier::new(name)?;
                    v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::ObjectId(name)))
                }
                None => v2::VarBindValue::NoSuchObject,
            };
        }
        let (version, community) = (message.version, message.community);
        rasn::ber::encode(&v2c::Message { version, community, data: v2::Response(pdu) }).ok()
    }
}
