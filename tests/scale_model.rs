//! The model of `benches/scale.rs`: how many VMs a host carries.

#[path = "../benches/scale/model.rs"]
mod model;

use model::{Costs, Host, Load, Resource, Use, carries, used};

const COSTS: Costs = Costs {
    shared_memory: 10e6,
    memory: 4e6,
    connection_memory: 20e3,
    descriptors: 20.0,
    link_descriptors: 2.0,
    threads: 5.0,
    idle: 1e-4,
    per_byte: 1e-9,
};
const LOAD: Load = Load { connections: 100.0, rate: 1e6, links: 5.0 };
const HOST: Host = Host { cores: 1.0, memory: 70e6, descriptors: 3e3, threads: 1e3, ports: 1e3 };

#[test]
fn use_is_the_sum_of_its_parts() {
    let ten = used(&COSTS, &LOAD, 10.0);
    assert_eq!((ten.memory, ten.descriptors, ten.threads), (70e6, 300.0, 50.0));
    assert!((ten.cores - 11e-3).abs() < 1e-9, "{ten:?}");
    assert_eq!(used(&COSTS, &LOAD, 0.0), Use { memory: 10e6, ..Use::default() });
}

#[test]
fn the_scarcest_resource_decides() {
    let with = |host: Host| carries(&COSTS, &LOAD, &host);
    assert_eq!(with(HOST), (10.0, Resource::Memory));
    let plenty = Host { memory: 1e12, ..HOST };
    assert_eq!(with(plenty), (100.0, Resource::Descriptors));
    let plenty = Host { descriptors: 1e9, ..plenty };
    assert_eq!(with(plenty), (200.0, Resource::Threads));
    let plenty = Host { threads: 1e9, ..plenty };
    assert_eq!(with(plenty), (909.0, Resource::Cores));
    assert_eq!(with(Host { cores: 64.0, ..plenty }), (1000.0, Resource::Ports));
    assert_eq!(with(Host { memory: 1e6, ..HOST }).0, 0.0, "not even the program fits");
}

/// As many as it carries fit, and one more does not.
#[test]
fn the_answer_is_the_largest_that_fits() {
    let (vms, _) = carries(&COSTS, &LOAD, &HOST);
    assert!(used(&COSTS, &LOAD, vms).memory <= HOST.memory);
    assert!(used(&COSTS, &LOAD, vms + 1.0).memory > HOST.memory);
}
