//! `SecurityOpt`: what of it is honoured. Pure.

use super::validate::{not_yet, words};
use crate::{
    api::HostConfig,
    http::{ApiError, ApiResult},
};
use serde_json::Value;

/// Options read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Security {
    /// The process and its children gain no privileges by exec.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Nothing in /proc and /sys is masked.
    pub system_paths_unconfined: bool,
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
        security.seccomp = Seccomp::Unconfined;
    }
    for option in words(&host.security_opt) {
        let (key, value) = match option.split_once('=') {
            Some(pair) => pair,
            // The separator of Docker before 1.11.
            None => option.split_once(':').unwrap_or((option, "")),
        };
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "unconfined") => security.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin") => security.seccomp = Seccomp::Default,
            ("seccomp", profile) => security.seccomp = Seccomp::Profile(profile_of(profile)?),
            ("systempaths", "unconfined") => security.system_paths_unconfined = true,
            // There is neither here: to be without is what one gets.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor" | "label" | "writable-cgroups", _) => {
                return Err(not_yet(&format!("security option {option}")));
            }
            _ => return Err(ApiError::invalid(format!("invalid --security-opt: {option:?}"))),
        }
    }
    Ok(security)
}

/// Docker's form of a profile to that of the runtime specification.
fn profile_of(text: &str) -> ApiResult<Value> {
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
        assert!(parsed(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(parsed(&["no-new-privileges:true"]).unwrap().no_new_privileges);
        assert_eq!(parsed(&["seccomp=unconfined"]).unwrap().seccomp, Seccomp::Unconfined);
        for bad in ["what=ever", "seccomp={", "seccomp={}", "apparmor=x", "label=type:x"] {
            assert!(parsed(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn conditions_of_a_profile() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":null,"includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"name":"b","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let Seccomp::Profile(profile) = parsed(&[&format!("seccomp={text}")]).unwrap().seccomp else { panic!() };
        let with = resolve_conditions(&profile, &["CAP_SYS_ADMIN"].into());
        let without = resolve_conditions(&profile, &[].into());
        assert_eq!(with["syscalls"], serde_json::json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW"}]));
        assert_eq!(without["syscalls"], serde_json::json!([{"names": ["b"], "action": "SCMP_ACT_ALLOW"}]));
    }
}
