//! Names of units: what `cgroupsPath` says under `--systemd-cgroup`, and where systemd puts such a unit in the tree.

/// A scope, and the slice it is to be in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnitName {
    /// `a-b.slice`; empty for the default.
    pub(crate) slice: String,
    /// `prefix-name.scope`; empty for one made from the container's id.
    pub(crate) scope: String,
}

/// Longest name of a unit, as systemd has it.
const MAX_NAME: usize = 255;

/// Begins the names of scopes of containers that ask for no name.
const PREFIX: &str = "berth";

/// Reads `slice:prefix:name`. The error says what is wrong with it.
pub(crate) fn parse(path: &str) -> Result<UnitName, &'static str> {
    if path.is_empty() {
        return Ok(UnitName::default());
    }
    let mut parts = path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err("is not slice:prefix:name, which --systemd-cgroup takes");
    };
    let slice = match slice {
        "" => String::new(),
        // As runc has it.
        "-" => "-.slice".to_owned(),
        slice => slice.to_owned(),
    };
    if !slice.is_empty() {
        expand_slice(&slice)?;
    }
    if name.is_empty() {
        return Err("has no name");
    }
    if name.ends_with(".slice") {
        return Err("names a slice, in which no process can be: a container needs a scope");
    }
    let scope = scope_name(prefix, name).ok_or("has a name that systemd does not take")?;
    Ok(UnitName { slice, scope })
}

/// The scope of a container that asks for no name.
pub(crate) fn default_scope(id: &str) -> String {
    // Ids are shorter than systemd's limit by enough, except the longest: those are cut, and made unlike others by their sum.
    scope_name(PREFIX, id).unwrap_or_else(|| {
        let sum = id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        format!(
            "{PREFIX}-{}-{sum:016x}.scope",
            id.chars().filter(char::is_ascii_alphanumeric).take(120).collect::<String>()
        )
    })
}

fn scope_name(prefix: &str, name: &str) -> Option<String> {
    let mut out = String::new();
    for byte in prefix.bytes().chain((!prefix.is_empty()).then_some(b'-')).chain(name.bytes()) {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'-' | b'_' | b'.' | b'\\' => out.push(byte.into()),
            // Container ids may have these, names of units may not.
            b'+' | b'@' => out.push_str(&format!("\\x{byte:02x}")),
            _ => return None,
        }
    }
    out.push_str(".scope");
    (out.len() <= MAX_NAME).then_some(out)
}

/// Path of a slice: each dash is a level. `a-b.slice` is in `a.slice`; `-.slice` is the root.
pub(crate) fn expand_slice(slice: &str) -> Result<String, &'static str> {
    let name = slice.strip_suffix(".slice").ok_or("has a slice that does not end in .slice")?;
    if name == "-" {
        return Ok(String::new());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\-".contains(&byte);
    if slice.len() > MAX_NAME || !name.bytes().all(plain) || name.split('-').any(str::is_empty) {
        return Err("has a slice whose name systemd does not take");
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    let levels = ends.map(|end| folder(&format!("{}.slice", &name[..end])));
    Ok(levels.collect::<Vec<_>>().join("/"))
}

/// The folder of a unit: its name, or `_` and its name where that could be taken for a file of the kernel's.
pub(crate) fn folder(unit: &str) -> String {
    const CONTROLLERS: &[&str] = &[
        "cgroup",
        "cpu",
        "cpuacct",
        "cpuset",
        "io",
        "blkio",
        "memory",
        "devices",
        "pids",
        "freezer",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
        "misc",
    ];
    let first = unit.split('.').next().unwrap_or_default();
    if unit.starts_with(['_', '.']) || CONTROLLERS.contains(&first) { format!("_{unit}") } else { unit.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_slice_and_a_scope() {
        for (path, slice, scope) in [
            ("", "", ""),
            ("system.slice:docker:1234", "system.slice", "docker-1234.scope"),
            ("user.slice:libpod:abc", "user.slice", "libpod-abc.scope"),
            (":crio:abc", "", "crio-abc.scope"),
            ("-:p:n", "-.slice", "p-n.scope"),
            ("machine.slice::n", "machine.slice", "n.scope"),
            (
                "kubepods-besteffort-pod1_2.slice:cri-containerd:f00",
                "kubepods-besteffort-pod1_2.slice",
                "cri-containerd-f00.scope",
            ),
            ("a.slice:p:x+y", "a.slice", "p-x\\x2by.scope"),
        ] {
            assert_eq!(parse(path), Ok(UnitName { slice: slice.into(), scope: scope.into() }), "{path}");
        }
        let long = format!("a.slice:p:{}", "x".repeat(255));
        for bad in [
            "/docker/1234",
            "a",
            "a:b",
            "a.slice:b:c:d",
            "a/b.slice:p:n",
            "..:p:n",
            "a--b.slice:p:n",
            "-a.slice:p:n",
            "a-.slice:p:n",
            "a:p:n",
            "a.slice:p:",
            "a.slice:p:n/m",
            "a.slice:../p:n",
            "a.slice:p:n.slice",
            "a.slice:p:n\n",
            "a.slice:p q:n",
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn slices_are_nested_by_their_dashes() {
        for (slice, path) in [
            ("system.slice", "system.slice"),
            ("a-b.slice", "a.slice/a-b.slice"),
            ("kubepods-burstable-pod1.slice", "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(expand_slice(slice).as_deref(), Ok(path));
        }
    }

    #[test]
    fn folders_are_no_files_of_the_kernel() {
        assert_eq!(folder("berth-x.scope"), "berth-x.scope");
        assert_eq!(folder("memory.scope"), "_memory.scope");
        assert_eq!(folder("_x.scope"), "__x.scope");
    }

    #[test]
    fn every_id_has_a_scope() {
        assert_eq!(default_scope("web"), "berth-web.scope");
        let (a, b) = (default_scope(&"x".repeat(255)), default_scope(&"x".repeat(254)));
        assert!(a.len() <= MAX_NAME && a != b && a.ends_with(".scope"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_gets_out_of_its_folder(path in "[a-c:./\\-_]{0,20}") {
            if let Ok(name) = parse(&path) && !name.slice.is_empty() {
                let slice = expand_slice(&name.slice).expect("checked");
                proptest::prop_assert!(!slice.split('/').any(|part| part == ".." || part == "."));
                proptest::prop_assert!(!name.scope.contains('/'));
            }
        }
    }
}
