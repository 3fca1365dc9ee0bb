//! An agent for tests.

use std::collections::BTreeMap;

use rasn::types::{Integer, ObjectIdentifier};
use rasn_snmp::{v1, v2, v2c};

use super::codec::Value;
use super::objects::{Object, PRINTER};

/// What it knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Agent(pub(super) BTreeMap<Object, Value>);

impl Agent {
    pub(super) fn printer(texts: &[(Object, &str)]) -> Agent {
        let mut agent = Agent::default();
        agent.0.insert(Object::DeviceType, Value::Name(PRINTER.to_vec()));
        for (object, text) in texts {
            agent.0.insert(*object, Value::Text(text.as_bytes().to_vec()));
        }
        agent
    }

    fn value(&self, name: &ObjectIdentifier) -> Option<Value> {
        let found = self.0.iter().find(|(object, _)| AsRef::<[u32]>::as_ref(name) == object.name());
        found.map(|(_, value)| value.clone())
    }

    /// What it answers in version 1, if that is what was asked in.
    pub(super) fn v1(&self, request: &[u8], community: &[u8]) -> Option<Vec<u8>> {
        use rasn_smi::v1::{ObjectSyntax, SimpleSyntax};
        let message: v1::Message<v1::GetRequest> = rasn::ber::decode(request).ok()?;
        if message.version != Integer::from(0) || message.community != community {
            return None;
        }
        let v1::GetRequest(mut pdu) = message.data;
        for (variable, index) in pdu.variable_bindings.iter_mut().zip(1..) {
            match self.value(&variable.name) {
                Some(Value::Text(text)) => {
                    variable.value = ObjectSyntax::Simple(SimpleSyntax::String(text.into()));
                }
                Some(Value::Name(name)) => {
                    let name = ObjectIdentifier::new(name).unwrap();
                    variable.value = ObjectSyntax::Simple(SimpleSyntax::Object(name));
                }
                None => (pdu.error_status, pdu.error_index) = (2.into(), index.into()),
            }
        }
        let (version, community) = (message.version, message.community);
        rasn::ber::encode(&v1::Message { version, community, data: v1::GetResponse(pdu) }).ok()
    }

    /// The same in version 2c.
    pub(super) fn v2c(&self, request: &[u8], community: &[u8]) -> Option<Vec<u8>> {
        use rasn_smi::v2::{ObjectSyntax, SimpleSyntax};
        let message: v2c::Message<v2::GetRequest> = rasn::ber::decode(request).ok()?;
        if message.version != Integer::from(1) || message.community != community {
            return None;
        }
        let v2::GetRequest(mut pdu) = message.data;
        for variable in &mut pdu.variable_bindings {
            variable.value = match self.value(&variable.name) {
                Some(Value::Text(text)) => {
                    v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::String(text.into())))
                }
                Some(Value::Name(name)) => {
                    let name = ObjectIdentifier::new(name).unwrap();
                    v2::VarBindValue::Value(ObjectSyntax::Simple(SimpleSyntax::ObjectId(name)))
                }
                None => v2::VarBindValue::NoSuchObject,
            };
        }
        let (version, community) = (message.version, message.community);
        rasn::ber::encode(&v2c::Message { version, community, data: v2::Response(pdu) }).ok()
    }
}
