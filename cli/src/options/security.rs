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

#[cfg(test)]
mod tests {
    use super::*;

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
