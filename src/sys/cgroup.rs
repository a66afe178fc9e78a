//! What the control group of this process (cgroups(7)) shows.
//!
//! Its name has the name of the unit.  One of its files has the number of processes that the kernel has
//! killed for want of memory (`oom_kill` in `memory.events`, the kernel's cgroup-v2 document).
//!
//! If that count has grown since the previous process read it, the log can say why that one ended.  The
//! service manager makes a new group for each start, so the count is read from the parent group, which
//! includes all groups below it.  Where the group is the topmost one that a container sees, or with
//! version 1 of control groups (cgroups(7)), which counts for each group by itself, the group of the
//! process is read.

use std::path::{Path, PathBuf};

/// The number of processes killed for want of memory so far; `None`: the kernel does not report it.
#[must_use]
pub(crate) fn memory_kills() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&groups).iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        kills(&text)
    })
}

/// Whether this process is that of an instance of a template (`NAME@INSTANCE.service`, systemd.unit(5)).
#[must_use]
pub(crate) fn is_instance() -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let units = groups.lines().filter_map(|line| line.rsplit('/').next());
    units
        .into_iter()
        .any(|unit| unit.ends_with(".service") && unit.contains('@'))
}

/// The files that may have the count, in the order in which they are tried; `groups` is the text of
/// `/proc/PID/cgroup` (cgroups(7)).
fn files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        if controllers.is_empty() {
            let top = Path::new("/sys/fs/cgroup");
            let above = path.parent().map(|above| top.join(above));
            let groups = above.into_iter().chain([top.join(path)]);
            files.extend(groups.map(|group| group.join("memory.events")));
        } else if controllers.split(',').any(|name| name == "memory") {
            let top = Path::new("/sys/fs/cgroup/memory");
            files.push(top.join(path).join("memory.oom_control"));
        }
    }
    files
}

/// The count in the text of such a file.
fn kills(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_group_is_read_first() {
        let expected = [
            "/sys/fs/cgroup/system.slice/memory.events",
            "/sys/fs/cgroup/system.slice/tcp-echo.service/memory.events",
        ];
        let found = files("0::/system.slice/tcp-echo.service\n");
        assert_eq!(found, expected.map(PathBuf::from));
        let found = files("0::/\n");
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/memory.events")]);
        let found = files("5:cpu,memory:/a/b\n1:name=systemd:/\n");
        let expected = "/sys/fs/cgroup/memory/a/b/memory.oom_control";
        assert_eq!(found, [PathBuf::from(expected)]);
        assert!(files("nonsense\n").is_empty());
    }

    #[test]
    fn the_count_is_that_of_processes_killed_for_want_of_memory() {
        assert_eq!(
            kills("low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
            Some(2)
        );
        assert_eq!(kills("under_oom 0\n"), None);
    }
}
