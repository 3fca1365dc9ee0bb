//! Names on the virtual network: what is called what, and who is told.
//!
//! | question | look at |
//! | --- | --- |
//! | who is called what | [`zone`] |
//! | which DNS records say so | [`records`] |
//! | who answers unicast DNS | [`dns`] |

pub(crate) mod dns;
pub(crate) mod records;
pub(crate) mod zone;
