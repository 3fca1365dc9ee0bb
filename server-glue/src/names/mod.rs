//! Names on the virtual network: what is called what, and who is told.

pub(crate) mod dns;
