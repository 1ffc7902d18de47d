//! Capability sets that must be empty.

use serde_json::{Value, json};

use super::host::Host;

fn sets(status: &str) -> Vec<(&str, u64)> {
    status
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .filter(|(name, _)| name.starts_with("Cap"))
        .map(|(name, bits)| (name, u64::from_str_radix(bits.trim(), 16).expect("hexadecimal")))
        .collect()
}

fn assert_none_inheritable(status: &str) {
    let sets = sets(status);
    let of = |name: &str| sets.iter().find(|(found, _)| *found == name).expect("a set").1;
    assert_eq!((of("CapInh"), of("CapAmb")), (0, 0), "{status}");
    assert_ne!(of("CapPrm"), 0, "{status}");
}

/// CVE-2022-24769: a container's inheritable set is empty, and stays so after a change of user.
#[test]
fn cve_2022_24769_nothing_is_inheritable_by_default() {
    let Some(host) = Host::new() else { return };
    let host = host.with(|bundle| bundle.shell("grep ^Cap /proc/self/status"));
    assert_none_inheritable(&host.attempt("capabilities").expect("runs"));
}

/// CVE-2022-27650 (crun), CVE-2022-29162 (runc), CVE-2025-27612 (youki): `exec --cap` fills the inheritable set.
#[test]
fn cve_2022_27650_cve_2022_29162_and_cve_2025_27612_exec_with_capabilities() {
    let Some(host) = Host::of_ours() else { return };
    let host = host.with(|bundle| bundle.shell("sleep 1000"));
    let bundle = &host.bundle;
    bundle.start();
    let read = ["grep", "^Cap", "/proc/self/status"];
    for flags in [&[][..], &["--cap", "CAP_NET_RAW"], &["--cap", "CAP_NET_RAW", "--cap", "CAP_NET_ADMIN"]] {
        assert_none_inheritable(&bundle.ok(&[&["exec"], flags, &[bundle.id.as_str()], &read].concat()));
    }
    // As another user, what was added is not in force unless it is ambient; what can be inherited is still nothing.
    let arguments = [&["exec", "--cap", "CAP_NET_RAW", "--user", "1000", &bundle.id], &read[..]].concat();
    let status = bundle.ok(&arguments);
    assert_eq!(sets(&status).iter().find(|(name, _)| *name == "CapInh").expect("a set").1, 0, "{status}");
    // A process file that says nothing of capabilities.
    let process = json!({"args": read, "cwd": "/", "env": ["PATH=/bin"]});
    let file = bundle.path("process.json");
    std::fs::write(&file, process.to_string()).expect("write");
    assert_none_inheritable(&bundle.ok(&["exec", "--process", file.to_str().expect("utf-8"), &bundle.id]));
}

/// CVE-2022-29162: what `spec` writes must not ask for it either.
#[test]
fn cve_2022_29162_spec_has_no_inheritable_capabilities() {
    let Some(host) = Host::new() else { return };
    for flags in [&[][..], &["--rootless"]] {
        let folder = tempfile::tempdir().expect("folder");
        let at = folder.path().to_str().expect("utf-8");
        host.bundle.ok(&[&["spec", "--bundle", at], flags].concat());
        let text = std::fs::read_to_string(folder.path().join("config.json")).expect("config.json");
        let config: Value = serde_json::from_str(&text).expect("json");
        let capabilities = &config["process"]["capabilities"];
        assert!(capabilities["bounding"].as_array().is_some_and(|list| !list.is_empty()), "{capabilities}");
        assert!(capabilities["inheritable"].as_array().is_none_or(Vec::is_empty), "{capabilities}");
        if crate::bundle::is_ours() {
            assert!(capabilities["ambient"].as_array().is_none_or(Vec::is_empty), "{capabilities}");
        }
    }
}
