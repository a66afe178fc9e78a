//! What the kernel knows of a process and of its sockets.

use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};

use rustix::process::Pid;

/// The load average of the last minute: how noisy the figures are.
pub fn load_average() -> String {
    let text = read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}

/// Private anonymous memory in use, in bytes.  `RssAnon` of the status is a sum of counters that
/// may lag by some pages per processor; this is counted page by page.
pub fn memory(pid: Pid) -> i64 {
    let kibibytes = |file: &str, key: &str| {
        let text = read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches(" kB").parse::<i64>().ok()
    };
    let sum = kibibytes("smaps_rollup", "Anonymous:").or_else(|| kibibytes("status", "RssAnon:"));
    sum.unwrap() * 1024
}

/// Processor time of all threads, in microseconds.
pub fn processor_time(pid: Pid) -> u64 {
    read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| {
            let text = read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            let nanoseconds = text.split(' ').next().unwrap_or_default();
            nanoseconds.parse::<u64>().unwrap_or_default() / 1000
        })
        .sum()
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
