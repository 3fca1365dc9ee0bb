//! An agent for tests.

use super::codec::SnmpVersion;
use super::objects::{Object, PRINTER};

#[path = "../../../../examples/lan-agents/agent.rs"]
mod agent;

pub(super) use agent::{Agent, Value};

impl Agent {
    /// A printer of one version, community `public`.
    pub(super) fn printer(version: SnmpVersion, texts: &[(Object, &str)]) -> Agent {
        let texts = texts.iter().map(|(object, text)| (object.name(), Value::Text(text.as_bytes().to_vec())));
        let kind = (Object::DeviceType.name(), Value::Name(PRINTER));
        Agent {
            community: b"public".to_vec(),
            v1: version == SnmpVersion::V1,
            v2c: version == SnmpVersion::V2c,
            objects: texts.chain([kind]).collect(),
        }
    }
}
