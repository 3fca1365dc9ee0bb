//! What stands in the user's network.

pub(crate) mod device_id;
pub(crate) mod http;
pub(crate) mod location;
pub(crate) mod xml;
