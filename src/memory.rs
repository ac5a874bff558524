//! The memory limit of the container, from the kernel's control groups (cgroups(7)).

use std::fs;

/// The memory limit of this process's control group, in bytes. `None` where there is none, or the system does not say.
#[must_use]
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&groups).filter_map(|file| parse(&fs::read_to_string(file).ok()?)).min()
}

/// The files that may hold the limit. In a container its own group is usually mounted as the root, so that the path that the
/// kernel names is not found there.
fn files(groups: &str) -> impl Iterator<Item = String> {
    groups.lines().flat_map(|line| {
        // hierarchy-ID:controllers:path
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        vec![format!("{root}{}/{file}", path.trim_end_matches('/')), format!("{root}/{file}")]
    })
}

/// Version 2 writes `max` for no limit, version 1 the largest number of pages.
fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_files_of_both_versions() {
        let found = |groups| files(groups).collect::<Vec<_>>();
        assert_eq!(found("0::/\n"), ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.max"]);
        assert_eq!(found("0::/pod/a\n"), ["/sys/fs/cgroup/pod/a/memory.max", "/sys/fs/cgroup/memory.max"]);
        assert_eq!(
            found("3:cpu,cpuacct:/a\n2:hugetlb,memory:/a:b\n1:name=systemd:/a\n"),
            ["/sys/fs/cgroup/memory/a:b/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert_eq!(found(""), [""; 0]);
    }

    #[test]
    fn reads_a_limit() {
        let table = [
            ("33554432\n", Some(33_554_432)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("", None),
            ("-1\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
