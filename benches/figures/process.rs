//! What the kernel knows of a process and of its sockets.

use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};

use crate::daemon::Daemon;

/// The load average of the last minute: how noisy the figures are.
pub fn load_average() -> String {
    let text = read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}

/// Private anonymous memory in use, in bytes.  `RssAnon` of the status is a sum of counters that
/// may lag by some pages per processor; this is counted page by page.
pub fn memory(daemon: &Daemon) -> i64 {
    let path = format!("/proc/{}/smaps_rollup", daemon.pid());
    let line = read_to_string(path).ok().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("Anonymous:"))
            .map(str::to_owned)
    });
    match line {
        Some(line) => line.trim().trim_end_matches(" kB").parse::<i64>().unwrap() * 1024,
        None => i64::try_from(daemon.memory()).unwrap(),
    }
}

/// Processor time of all threads, in microseconds.
pub fn processor_time(daemon: &Daemon) -> u64 {
    read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        .map(|task| {
            let text = read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            let nanoseconds = text.split(' ').next().unwrap_or_default();
            nanoseconds.parse::<u64>().unwrap_or_default() / 1000
        })
        .sum()
}

/// Whether every thread is traced.
pub fn traced(daemon: &Daemon) -> bool {
    read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        .all(|task| {
            let text = read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            text.lines()
                .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
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
