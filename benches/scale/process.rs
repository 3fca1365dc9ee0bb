//! What a process uses, as the system tells.

use std::process::{Child, Command, Stdio};

/// A process that ends with us.
pub(crate) struct Running(pub(crate) Child);

/// What processes use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Bytes: proportional set size, in which pages that several processes map are shared out among them.
    pub(crate) memory: f64,
    pub(crate) threads: f64,
    pub(crate) descriptors: f64,
    /// Seconds of processor time of the first thread, ever.
    pub(crate) cpu: f64,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn usage(&self) -> Usage {
        let proc = format!("/proc/{}", self.0.id());
        let rollup = std::fs::read_to_string(format!("{proc}/smaps_rollup")).unwrap();
        let pss = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
        let mut usage = Usage {
            memory: pss.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0,
            descriptors: std::fs::read_dir(format!("{proc}/fd")).unwrap().count() as f64,
            ..Usage::default()
        };
        usage.threads = std::fs::read_dir(format!("{proc}/task")).unwrap().count() as f64;
        // In nanoseconds, where /proc/PID/stat counts in hundredths of a second. Of the first thread alone: in it everything
        // runs but the making of a link's key and the looking up of names, whose threads end, and their time with them.
        let times = std::fs::read_to_string(format!("{proc}/schedstat")).unwrap();
        usage.cpu = times.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9;
        usage
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            memory: sum.memory + one.memory,
            threads: sum.threads + one.threads,
            descriptors: sum.descriptors + one.descriptors,
            cpu: sum.cpu + one.cpu,
        })
    }
}
