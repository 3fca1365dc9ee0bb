//! SNMP.

mod codec;
mod neighbours;
