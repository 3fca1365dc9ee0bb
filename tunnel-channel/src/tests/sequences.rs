//! Random operations on two honest ends: no byte is lost, credit balances, every id is freed.

use std::time::Duration;

use proptest::prelude::*;
use spice_proto::frame::HeaderForm;
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::Layout;

use crate::Config;
use crate::pair::{Setup, exercise, exercise_bytes};

fn operations() -> impl Strategy<Value = Vec<[u8; 4]>> {
    prop::collection::vec(any::<[u8; 4]>(), 0..400)
}

fn forms() -> impl Strategy<Value = (HeaderForm, u64)> {
    (prop_oneof![Just(HeaderForm::Mini), Just(HeaderForm::Full)], 0u64..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn modern_ends(
        (header, latency) in forms(),
        bits in 0u32..64,
        max_sockets in 1u16..30,
        max_data in 1u32..300,
        windows in (0u32..40, 0u32..40),
        most in (0u32..120, 0u32..120),
        operations in operations(),
    ) {
        let config = Config { max_sockets, max_data, ping_interval: Some(Duration::from_secs(1)), ..Config::default() };
        exercise(&Setup {
            caps: TunnelCaps::from_bits_retain(bits) | TunnelCaps::EXTENDED,
            header,
            server: Config { window: windows.0, max_window: most.0, ..config },
            client: Config { window: windows.1, max_window: most.1, ..config },
            latency: Duration::from_millis(latency),
            ..Setup::default()
        }, &operations);
    }

    #[test]
    fn historical_ends((header, latency) in forms(), a: bool, operations in operations()) {
        exercise(&Setup {
            header,
            layout: if a { Layout::A } else { Layout::B },
            latency: Duration::from_millis(latency),
            ..Setup::historical()
        }, &operations);
    }

    #[test]
    fn short_of_memory((header, latency) in forms(), budgets in (0usize..2000, 0usize..2000), window in 1u32..10, operations in operations()) {
        let config = Config { max_sockets: 8, max_data: 100, window, max_window: 50, ..Config::default() };
        exercise(&Setup {
            header,
            server: Config { memory_budget: budgets.0, ..config },
            client: Config { memory_budget: budgets.1, ..config },
            latency: Duration::from_millis(latency),
            ..Setup::default()
        }, &operations);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..1600)) {
        exercise_bytes(&bytes);
    }
}
