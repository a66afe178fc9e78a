//! What the kernel knows of a process and of its sockets.

use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The load average of the last minute: how noisy the figures are.
pub fn load_average() -> String {
    let text = read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}

/// Memory of its own in use, in bytes: private and anonymous, and the state file.  `RssAnon` of the status
/// is a sum of counters that may lag by some pages per processor; this is counted page by page.
pub fn memory(pid: Pid) -> i64 {
    let kibibytes = |file: &str, key: &str| {
        let text = read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches(" kB").parse::<i64>().ok()
    };
    let anonymous =
        kibibytes("smaps_rollup", "Anonymous:").or_else(|| kibibytes("status", "RssAnon:"));
    let shared = kibibytes("smaps_rollup", "Pss_Shmem:");
    (anonymous.unwrap()
        + shared
            .or_else(|| kibibytes("status", "RssShmem:"))
            .unwrap_or(0))
        * 1024
}

/// The kernel's slabs, in bytes.
pub fn slabs() -> i64 {
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let number = line.map_or("0", |line| line.trim().trim_end_matches(" kB"));
    number.parse::<i64>().unwrap_or_default() * 1024
}

/// Processor time of all threads, in microseconds.
pub fn processor_time(pid: Pid) -> u64 {
    let tasks = read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    tasks
        .map(|task| {
            let text = read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            let nanoseconds = text.split(' ').next().unwrap_or_default();
            nanoseconds.parse::<u64>().unwrap_or_default() / 1000
        })
        .sum()
}

/// Processor time of a process and of all that came from it, in microseconds.  Of those that have
/// ended already the kernel reports ticks of 10 ms, and only once their parent has waited for them.
pub fn family_time(pid: Pid) -> u64 {
    let time = |pid| ended_time(pid) + processor_time(pid);
    family(pid).into_iter().map(time).sum()
}

/// Processor time of the children of a process that have ended, in microseconds.
fn ended_time(pid: Pid) -> u64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ended = fields.split(' ').skip(13).take(2);
    let ticks: u64 = ended.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks * 10_000
}

/// The processors that we may use.
pub fn processors() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// Confines all threads of a process, and those that they start, to some processors.
pub fn pin(pid: Pid, cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    for task in read_dir(format!("/proc/{pid}/task")).unwrap() {
        let name = task.unwrap().file_name();
        let task = name.to_str().and_then(|name| name.parse().ok());
        // One that has ended since needs no processor.
        let _ = sched_setaffinity(task.and_then(Pid::from_raw), &set);
    }
}

/// The process itself and all that come from it.
pub fn family(pid: Pid) -> Vec<Pid> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at) {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let text = read_to_string(path).unwrap_or_default();
        let children = text.split_whitespace().filter_map(|word| word.parse().ok());
        all.extend(children.filter_map(Pid::from_raw));
        at += 1;
    }
    all
}

/// Bytes that were written to connections to 127.0.0.1 and that the other side's kernel has not
/// acknowledged, by local and remote port.
pub fn unacknowledged() -> HashMap<(u16, u16), u64> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let text = read_to_string("/proc/net/tcp").unwrap();
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let ports = (port(fields.next()?)?, port(fields.next()?)?);
            let queues = fields.nth(1)?;
            let unsent = u64::from_str_radix(queues.split(':').next()?, 16).ok()?;
            Some((ports, unsent))
        })
        .collect()
}
