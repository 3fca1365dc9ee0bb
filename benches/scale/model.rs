//! How many VMs a host carries: straight lines through what was measured, and the resource that ends first.
//!
//! What an instance of `serve` uses is taken for the sum of what it uses by itself, for each connection, and for each byte.
//! Nothing in `serve` is shared between VMs but the program's text, so that there is no term in which VMs meet.

/// What `serve` costs, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Costs {
    /// Bytes once for a host, however many instances there are: text and read-only data.
    pub(crate) shared_memory: f64,
    /// Bytes of an instance whose user is there and idle.
    pub(crate) memory: f64,
    /// Bytes of an idle connection of the guest.
    pub(crate) connection_memory: f64,
    /// File descriptors of an instance; the guest's connections need none here.
    pub(crate) descriptors: f64,
    /// File descriptors of a link that passes to the Spice server: the client's end and the server's.
    pub(crate) link_descriptors: f64,
    /// Threads of an instance.
    pub(crate) threads: f64,
    /// Seconds of processor time in a second of an instance that is idle, with its user there.
    pub(crate) idle: f64,
    /// Seconds of processor time for a byte of payload.
    pub(crate) per_byte: f64,
}

/// What a VM's user does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// Connections of the guest at once.
    pub(crate) connections: f64,
    /// Payload bytes a second, both ways together.
    pub(crate) rate: f64,
    /// Links of a viewer that pass through; their bytes are not in here.
    pub(crate) links: f64,
}

/// What may be used on a host, by `serve` alone: what its VMs use themselves is not in here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Host {
    /// Processor cores.
    pub(crate) cores: f64,
    /// Bytes of memory.
    pub(crate) memory: f64,
    /// File descriptors over all processes (`fs.file-max`).
    pub(crate) descriptors: f64,
    /// Threads over all processes (`kernel.pid_max`, `kernel.threads-max`).
    pub(crate) threads: f64,
    /// TCP ports that clients connect to, one a VM; infinite where they go by name or by Unix sockets.
    pub(crate) ports: f64,
}

/// What so many VMs use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Use {
    /// Bytes.
    pub(crate) memory: f64,
    /// File descriptors.
    pub(crate) descriptors: f64,
    /// Threads.
    pub(crate) threads: f64,
    /// Cores that are busy, on average.
    pub(crate) cores: f64,
}

/// What can end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Cores,
    Memory,
    Descriptors,
    Threads,
    Ports,
}

/// What `vms` of them use.
pub(crate) fn used(costs: &Costs, load: &Load, vms: f64) -> Use {
    Use {
        memory: costs.shared_memory + vms * (costs.memory + load.connections * costs.connection_memory),
        descriptors: vms * (costs.descriptors + load.links * costs.link_descriptors),
        threads: vms * costs.threads,
        cores: vms * (costs.idle + load.rate * costs.per_byte),
    }
}

/// How many VMs the host carries, and what ends first.
pub(crate) fn carries(costs: &Costs, load: &Load, host: &Host) -> (f64, Resource) {
    let one = used(&Costs { shared_memory: 0.0, ..*costs }, load, 1.0);
    let share = |there: f64, each: f64| if each > 0.0 { (there / each).max(0.0) } else { f64::INFINITY };
    let mut least = (host.ports, Resource::Ports);
    for (vms, resource) in [
        (share(host.cores, one.cores), Resource::Cores),
        (share(host.memory - costs.shared_memory, one.memory), Resource::Memory),
        (share(host.descriptors, one.descriptors), Resource::Descriptors),
        (share(host.threads, one.threads), Resource::Threads),
    ] {
        if vms < least.0 {
            least = (vms, resource);
        }
    }
    (least.0.floor(), least.1)
}
