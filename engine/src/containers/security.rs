//! `SecurityOpt`: what of it is honoured. Pure, but for the question whether this kernel has AppArmor.

use super::validate::words;
use crate::{
    api::HostConfig,
    http::{ApiError, ApiResult},
};
use ::spec::{apparmor, seccomp::parse_profile};
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
            ("seccomp", profile) => security.seccomp = Some(Seccomp::Profile(parse_profile(profile)?)),
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
}
