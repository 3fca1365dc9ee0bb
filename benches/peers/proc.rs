//! What the kernel says of processes: their time and their memory, each with all its descendants.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};

/// Seconds of a processor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// Bytes: all that is resident, and the same with what is shared counted in parts (`Pss`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) proportional: u64,
}

impl AddAssign for Memory {
    fn add_assign(&mut self, more: Self) {
        self.resident += more.resident;
        self.proportional += more.proportional;
    }
}

/// Of these processes and their descendants, those included that have ended and were waited for.
pub(crate) fn cpu(roots: &[u32]) -> Cpu {
    let second = rustix::param::clock_ticks_per_second() as f64;
    let all = processes();
    let mut sum = Cpu::default();
    for stat in tree(roots, &all).iter().filter_map(|pid| all.get(pid)) {
        sum.user += stat.user as f64 / second;
        sum.system += stat.system as f64 / second;
    }
    sum
}

/// Of these processes and their descendants. What the kernel holds for them, such as sockets, is not in it.
pub(crate) fn memory(roots: &[u32]) -> Memory {
    let mut sum = Memory::default();
    for pid in tree(roots, &processes()) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum += parse_rollup(&text).unwrap_or_default();
    }
    sum
}

/// What matters here of `/proc/PID/stat`; times in ticks, with those of children that were waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) parent: u32,
    pub(crate) user: u64,
    pub(crate) system: u64,
}

fn processes() -> BTreeMap<u32, Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let stat = |pid| parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Each once, even if one of the roots is below another.
pub(crate) fn tree(roots: &[u32], all: &BTreeMap<u32, Stat>) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pid, stat) in all {
        children.entry(stat.parent).or_default().push(*pid);
    }
    let (mut found, mut open) = (std::collections::BTreeSet::new(), roots.to_vec());
    while let Some(pid) = open.pop() {
        if found.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found.into_iter().collect()
}

/// `proc_pid_stat(5)`. The name in the second field is the process's own choice, brackets and spaces included.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let (_, behind) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // `behind` begins with field 3. utime, stime, cutime and cstime are 14 to 17.
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        user: number(11)? + number(13)?,
        system: number(12)? + number(14)?,
    })
}

/// `/proc/PID/smaps_rollup`, see `proc_pid_smaps(5)`; of kernel threads and the dead it is empty.
pub(crate) fn parse_rollup(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let (kilobytes, unit) = line.trim().split_once(' ')?;
        (unit == "kB").then_some(())?;
        Some(kilobytes.parse::<u64>().ok()? * 1024)
    };
    Some(Memory { resident: bytes("Rss")?, proportional: bytes("Pss")? })
}

/// Seconds of all processors, since the machine was started.
pub(crate) fn machine() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_machine(&text, rustix::param::clock_ticks_per_second() as f64).unwrap_or_default()
}

/// The first processor's name in `/proc/cpuinfo`.
pub(crate) fn parse_cpu_model(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// Seconds of all processors in `/proc/stat`: what they worked, and what the hypervisor kept from them. Work that was niced is
/// somebody else's on a shared machine, and counts as neither.
pub(crate) fn parse_machine(text: &str, ticks_per_second: f64) -> Option<(f64, f64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, _nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
    Some(((user + system + irq + softirq) / ticks_per_second, stolen / ticks_per_second))
}
