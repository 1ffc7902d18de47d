//! `--security-opt`

use super::OptionError;

/// What the options come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `HostConfig.SecurityOpt`
    pub options: Vec<String>,
    /// No path is masked or read-only: the lists are sent empty.
    pub paths_unconfined: bool,
}

/// Reads the options; a seccomp profile is read from its file, since the engine can't see it.
pub fn parse(texts: &[String]) -> Result<Security, OptionError> {
    let mut security = Security::default();
    for text in texts {
        if text == "systempaths=unconfined" {
            security.paths_unconfined = true;
            continue;
        }
        if text == "no-new-privileges" {
            security.options.push(text.clone());
            continue;
        }
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        let (key, value) = pair.ok_or_else(|| OptionError::Invalid(format!("Invalid --security-opt: {text:?}")))?;
        if key == "seccomp" && value != "unconfined" && value != "builtin" {
            let fault = |cause: &dyn std::fmt::Display| {
                OptionError::Invalid(format!("opening seccomp profile ({value}) failed: {cause}"))
            };
            let bytes = std::fs::read(value).map_err(|cause| fault(&OptionError::file(value, cause)))?;
            let profile: serde_json::Value = serde_json::from_slice(&bytes).map_err(|cause| {
                OptionError::Invalid(format!("compacting json for seccomp profile ({value}) failed: {cause}"))
            })?;
            security.options.push(format!("seccomp={profile}"));
            continue;
        }
        security.options.push(text.clone());
    }
    Ok(security)
}

/// Capabilities in the kernel's spelling, sorted, each one once: "net_admin" is CAP_NET_ADMIN.
pub fn capabilities(names: &[String]) -> Vec<String> {
    let full = |name: &String| {
        let name = name.trim().to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    names.iter().map(full).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names() {
        let names = ["net_admin", "ALL", "CAP_NET_ADMIN", "chown"].map(str::to_owned);
        assert_eq!(capabilities(&names), ["ALL", "CAP_CHOWN", "CAP_NET_ADMIN"]);
    }

    #[test]
    fn options() {
        let texts =
            ["no-new-privileges", "systempaths=unconfined", "apparmor=x", "label:disable", "seccomp=unconfined"];
        let security = parse(&texts.map(str::to_owned)).unwrap();
        assert!(security.paths_unconfined);
        assert_eq!(security.options, ["no-new-privileges", "apparmor=x", "label:disable", "seccomp=unconfined"]);
        let profile = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(profile.path(), "{\n \"defaultAction\": \"x\"\n}").unwrap();
        let security = parse(&[format!("seccomp={}", profile.path().display())]).unwrap();
        assert_eq!(security.options, ["seccomp={\"defaultAction\":\"x\"}"]);
        let of = |text: &str| parse(&[text.to_owned()]).unwrap_err().to_string();
        assert_eq!(of("foo"), "Invalid --security-opt: \"foo\"");
        assert_eq!(of("seccomp=/ns"), "opening seccomp profile (/ns) failed: open /ns: no such file or directory");
    }
}
