//! Who used the processors, from Linux's `/proc`: each of our processes with all that it started, also what has ended
//! meanwhile, and whoever else was there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::Outcome;

/// `/proc` counts in hundredths of a second on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);
/// The kernel's own threads hang below this process; they work for us as much as for anyone.
const KERNEL: u32 = 2;

/// All processes at one moment.
pub(crate) struct Processes {
    by_pid: HashMap<u32, Process>,
    busy: u64,
    at: Instant,
}

struct Process {
    parent: u32,
    /// Its own and that of children whose end it has seen.
    ticks: u64,
}

impl Processes {
    /// As they are now.
    pub(crate) fn now() -> Outcome<Self> {
        let mut by_pid = HashMap::new();
        for entry in std::fs::read_dir("/proc").map_err(|error| format!("no /proc: {error}"))? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended meanwhile is in its parent's account, or in nobody's.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            by_pid.insert(pid, Process::parse(&stat).ok_or_else(|| format!("odd stat: {stat}"))?);
        }
        let stat = std::fs::read_to_string("/proc/stat")?;
        let counts = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let counts: Vec<u64> = counts.map(str::parse).collect::<Result<_, _>>()?;
        // user, nice, system, idle, iowait, irq, softirq, steal
        let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| counts.get(*field)).sum();
        Ok(Self { by_pid, busy, at: Instant::now() })
    }

    /// What a process and all below it have used.
    pub(crate) fn tree(&self, root: u32) -> Duration {
        let below = self.by_pid.iter().filter(|(pid, _)| self.is_below(**pid, root));
        ticks(below.map(|(_, process)| process.ticks).sum())
    }

    /// What everybody has used since `before` who is neither we nor the kernel, as a share of one processor.
    pub(crate) fn foreign_since(&self, before: &Self) -> f64 {
        let foreign = self.foreign().saturating_sub(before.foreign());
        foreign.as_secs_f64() / (self.at - before.at).as_secs_f64()
    }

    fn foreign(&self) -> Duration {
        ticks(self.busy)
            .saturating_sub(self.tree(std::process::id()))
            .saturating_sub(self.tree(KERNEL))
    }

    fn is_below(&self, mut pid: u32, root: u32) -> bool {
        while pid != root {
            match self.by_pid.get(&pid) {
                Some(process) if process.parent != 0 => pid = process.parent,
                _ => return false,
            }
        }
        true
    }
}

impl Process {
    /// Of `/proc/PID/stat` (man page `proc_pid_stat`): the name may hold anything, but ends with the last parenthesis.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let times = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok());
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks: times.sum::<Option<u64>>()? })
    }
}

fn ticks(count: u64) -> Duration {
    TICK * u32::try_from(count).unwrap_or(u32::MAX)
}

/// Memory that a process has resident, in bytes.
pub(crate) fn resident(pid: u32) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.ok_or("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
