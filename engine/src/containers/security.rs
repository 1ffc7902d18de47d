//! `SecurityOpt`: what of it is honoured. Pure, but for the question whether this kernel has AppArmor.

use super::{apparmor, validate::words};
use crate::{
    api::HostConfig,
    http::{ApiError, ApiResult},
};
use serde_json::Value;

/// Options read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Security {
    /// The process and its children gain no privileges by exec.
    pub no_new_privileges: Option<bool>,
    /// System call filter, if one was chosen.
    pub seccomp: Option<Seccomp>,
    /// Nothing in /proc and /sys is masked.
    pub system_paths_unconfined: bool,
    /// Whether its cgroups may be written to; none is for privileged containers only.
    pub writable_cgroups: Option<bool>,
    /// AppArmor's profile, or `unconfined`; none was said.
    pub apparmor: Option<String>,
}

/// Which system call filter.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Seccomp {
    /// The default one.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// One of the user's, in the form of the runtime specification.
    Profile(Value),
}

/// Reads `SecurityOpt`.
pub fn parse(host: &HostConfig) -> ApiResult<Security> {
    let mut security = Security::default();
    if host.privileged {
        security.seccomp = Some(Seccomp::Unconfined);
    }
    for option in words(&host.security_opt) {
        // The separator of Docker before 1.11 is a colon.
        let pair = option.split_once('=').or_else(|| option.split_once(':'));
        let (key, value) = match (option.as_str(), pair) {
            ("no-new-privileges" | "writable-cgroups", _) => (option.as_str(), "true"),
            ("disable", _) => ("label", "disable"),
            (_, Some(pair)) => pair,
            (_, None) => return Err(ApiError::invalid(format!("invalid --security-opt 1: {option:?}"))),
        };
        let bad = || ApiError::invalid(format!("invalid --security-opt 2: {option:?}"));
        match (key, value) {
            ("no-new-privileges", value) => security.no_new_privileges = Some(boolean(value).ok_or_else(bad)?),
            ("writable-cgroups", value) => security.writable_cgroups = Some(boolean(value).ok_or_else(bad)?),
            ("seccomp", "unconfined") => security.seccomp = Some(Seccomp::Unconfined),
            ("seccomp", "builtin") => security.seccomp = Some(Seccomp::Default),
            ("seccomp", profile) => security.seccomp = Some(Seccomp::Profile(profile_of(profile)?)),
            ("systempaths", "unconfined") => security.system_paths_unconfined = true,
            ("apparmor", "") => security.apparmor = None,
            ("apparmor", profile) => security.apparmor = Some(profile.to_owned()),
            // There are no labels: to be without is what one gets.
            ("label", "disable") => {}
            ("label", _) => {
                return Err(ApiError::invalid(format!(
                    "security option {option}: SELinux labels are not given to containers (selinux-enabled is not set)"
                )));
            }
            _ => return Err(bad()),
        }
    }
    Ok(security)
}

/// As Go reads truth.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Refuses what this kernel, or the rest of the request, doesn't allow for.
pub fn check(host: &HostConfig) -> ApiResult<()> {
    let security = parse(host)?;
    if let Some(profile) = security.apparmor.filter(|name| name != apparmor::UNCONFINED && !apparmor::is_enabled()) {
        return Err(ApiError::invalid(format!(
            "security option apparmor={profile}: AppArmor is not enabled in this kernel, so the profile could not be applied"
        )));
    }
    if security.writable_cgroups == Some(true) && host.cgroupns_mode != "private" {
        return Err(ApiError::invalid(
            "security option writable-cgroups needs a cgroup namespace of the container's own (CgroupnsMode private)",
        ));
    }
    Ok(())
}

/// Docker's form of a profile to that of the runtime specification.
pub fn profile_of(text: &str) -> ApiResult<Value> {
    let bad = |why: String| ApiError::invalid(format!("decoding seccomp profile failed: {why}"));
    let mut profile: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let map = profile.as_object_mut().ok_or_else(|| bad("not an object".into()))?;
    if !map.get("defaultAction").is_some_and(Value::is_string) {
        return Err(bad("no defaultAction".into()));
    }
    if let Some(arch_map) = map.remove("archMap") {
        let mut architectures = Vec::new();
        let native = match std::env::consts::ARCH {
            "x86_64" => "SCMP_ARCH_X86_64",
            "aarch64" => "SCMP_ARCH_AARCH64",
            _ => "",
        };
        for entry in arch_map.as_array().into_iter().flatten().filter(|e| e["architecture"] == native) {
            architectures.push(entry["architecture"].clone());
            architectures.extend(entry["subArchitectures"].as_array().cloned().unwrap_or_default());
        }
        map.insert("architectures".into(), architectures.into());
    }
    for rule in map.get_mut("syscalls").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(rule) = rule.as_object_mut() else { return Err(bad("a rule is not an object".into())) };
        if let Some(name) = rule.remove("name").filter(|name| !name.is_null()) {
            rule.insert("names".into(), vec![name].into());
        }
        if rule.get("args").is_some_and(Value::is_null) {
            rule.remove("args");
        }
        rule.remove("comment");
        // `includes` and `excludes` are kept for now: the spec writer, who knows the capabilities, resolves them.
    }
    Ok(profile)
}

/// Resolves the conditions of Docker's profile format for a container with these capabilities.
pub fn resolve_conditions(profile: &Value, caps: &std::collections::BTreeSet<&'static str>) -> Value {
    let go_arch = crate::http::system::arch();
    let holds = |condition: &Value, key: &str, test: &dyn Fn(&str) -> bool| {
        condition[key].as_array().map(|list| list.iter().filter_map(Value::as_str).map(test).collect::<Vec<_>>())
    };
    let mut profile = profile.clone();
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain_mut(|rule| {
            let Some(map) = rule.as_object_mut() else { return false };
            let includes = map.remove("includes").unwrap_or_default();
            let excludes = map.remove("excludes").unwrap_or_default();
            let has_cap = |cap: &str| caps.contains(cap);
            let is_arch = |arch: &str| arch == go_arch;
            // All capabilities, but any architecture, as moby reads them.
            let in_caps = holds(&includes, "caps", &has_cap).is_none_or(|l| l.iter().all(|on| *on));
            let in_arch = holds(&includes, "arches", &is_arch).is_none_or(|l| l.is_empty() || l.iter().any(|on| *on));
            let out_caps = holds(&excludes, "caps", &has_cap).is_some_and(|l| l.iter().any(|on| *on));
            let out_arch = holds(&excludes, "arches", &is_arch).is_some_and(|l| l.iter().any(|on| *on));
            in_caps && in_arch && !out_caps && !out_arch
        });
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> ApiResult<Security> {
        let list = options.iter().map(|&o| o.to_owned()).collect();
        parse(&HostConfig { security_opt: Some(list), ..HostConfig::default() })
    }

    #[test]
    fn options() {
        for (option, on) in [
            ("no-new-privileges", true),
            ("no-new-privileges:true", true),
            ("no-new-privileges=1", true),
            ("no-new-privileges=false", false),
        ] {
            assert_eq!(parsed(&[option]).unwrap().no_new_privileges, Some(on), "{option}");
        }
        assert_eq!(parsed(&[]).unwrap(), Security::default());
        assert_eq!(parsed(&["seccomp=unconfined"]).unwrap().seccomp, Some(Seccomp::Unconfined));
        assert_eq!(parsed(&["seccomp=builtin"]).unwrap().seccomp, Some(Seccomp::Default));
        assert_eq!(parsed(&["apparmor=mine"]).unwrap().apparmor.as_deref(), Some("mine"));
        assert_eq!(parsed(&["writable-cgroups"]).unwrap().writable_cgroups, Some(true));
        assert!(parsed(&["label=disable", "label:disable", "disable", "apparmor=unconfined"]).is_ok());
        assert!(parsed(&["systempaths=unconfined"]).unwrap().system_paths_unconfined);
        for (bad, text) in [
            ("foo", "invalid --security-opt 1: \"foo\""),
            ("what=ever", "invalid --security-opt 2: \"what=ever\""),
            ("no-new-privileges=maybe", "invalid --security-opt 2"),
            ("writable-cgroups=maybe", "invalid --security-opt 2"),
            ("seccomp={", "decoding seccomp profile failed"),
            ("seccomp={}", "decoding seccomp profile failed"),
            ("label=type:x", "SELinux"),
        ] {
            let error = parsed(&[bad]).unwrap_err();
            assert!(error.message.starts_with(text) || error.message.contains(text), "{bad}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let host = |json: &str| serde_json::from_str::<HostConfig>(json).unwrap();
        let cgroups = check(&host(r#"{"SecurityOpt":["writable-cgroups"]}"#)).unwrap_err();
        assert!(cgroups.message.contains("CgroupnsMode private"), "{cgroups}");
        check(&host(r#"{"SecurityOpt":["writable-cgroups"],"CgroupnsMode":"private"}"#)).unwrap();
        if !apparmor::is_enabled() {
            let error = check(&host(r#"{"SecurityOpt":["apparmor=mine"]}"#)).unwrap_err();
            assert!(error.message.contains("apparmor=mine") && error.message.contains("kernel"), "{error}");
        }
    }

    #[test]
    fn conditions_of_a_profile() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":null,"includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"name":"b","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let Some(Seccomp::Profile(profile)) = parsed(&[&format!("seccomp={text}")]).unwrap().seccomp else { panic!() };
        let with = resolve_conditions(&profile, &["CAP_SYS_ADMIN"].into());
        let without = resolve_conditions(&profile, &[].into());
        assert_eq!(with["syscalls"], serde_json::json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW"}]));
        assert_eq!(without["syscalls"], serde_json::json!([{"names": ["b"], "action": "SCMP_ACT_ALLOW"}]));
    }
}
