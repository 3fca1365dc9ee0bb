//! What this process uses, by the names that every exporter gives it.

use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// What this process uses. What the system does not say is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// Processor time, of all its threads.
    pub(super) cpu: Duration,
    /// Files, sockets and the like that are open.
    pub(super) open_fds: Option<u64>,
    /// As many may be; `None` is no limit.
    pub(super) max_fds: Option<u64>,
    /// Bytes of memory that are resident.
    pub(super) resident: Option<u64>,
    /// Its threads.
    pub(super) threads: Option<u64>,
    /// When it began, since 1970.
    pub(super) began: Duration,
}

impl Process {
    pub(super) fn now(began: SystemTime) -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let (seconds, nanos) = (u64::try_from(cpu.tv_sec), u32::try_from(cpu.tv_nsec));
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // The listing itself is one of them.
        let open_fds =
            std::fs::read_dir("/proc/self/fd").ok().map(|list| (list.count() as u64).saturating_sub(1));
        Self {
            cpu: Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default()),
            open_fds,
            max_fds: getrlimit(Resource::Nofile).current,
            resident: field(&status, "VmRSS:").map(|kibibytes| kibibytes.saturating_mul(1024)),
            threads: field(&status, "Threads:"),
            began: began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        }
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_it() {
        let process = Process::now(SystemTime::now());
        assert!(process.open_fds.unwrap() >= 3, "{process:?}");
        assert!(process.resident.unwrap() > 1 << 20, "{process:?}");
        assert!(process.threads.unwrap() >= 2, "the test has a thread of its own: {process:?}");
        assert!(process.cpu > Duration::ZERO && process.began > Duration::from_secs(1_600_000_000));
        assert_eq!(field("Name:\tx\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(field("VmRSS:\tmuch\n", "VmRSS:"), None);
    }
}
