//! What stands in the user's network.

pub(crate) mod http;
