//! config.json as the OCI runtime specification 1.3 has it, as far as this runtime reads it.
//!
//! Tolerant on purpose: unknown fields are skipped, words stay words (their meaning is checked by `plan`, which can name the
//! field), and `null` is the same as absent, because Go writes empty lists that way.

#![expect(clippy::disallowed_methods, reason = "config.json and its like are the caller's files, on the host")]

pub(crate) mod linux;
mod locate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

pub(crate) use linux::*;

/// The version of the specification that this runtime follows.
pub(crate) const VERSION: &str = "1.3.0";

/// Largest config.json accepted, far above any real one.
const MAX_SIZE: u64 = 32 << 20;

/// Why config.json could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("parse {path}")]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    /// One value of the file is not what it should be.
    #[error("parse {path}: {field}")]
    Field {
        path: PathBuf,
        field: String,
        #[source]
        cause: serde_json::Error,
    },
    /// The file is absurdly large.
    #[error("{path} is larger than {} MiB", MAX_SIZE >> 20)]
    TooLarge { path: PathBuf },
}

/// Reads `null` as the default value.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The whole of config.json.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    #[serde(deserialize_with = "nullable")]
    pub(crate) oci_version: String,
    pub(crate) process: Option<Process>,
    pub(crate) root: Option<Root>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) domainname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) mounts: Vec<Mount>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) hooks: Hooks,
    #[serde(deserialize_with = "nullable")]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) linux: Option<Linux>,
}

impl Spec {
    /// Reads `config.json` of a bundle. The bytes come back too: the state folder keeps a copy.
    pub(crate) fn load(bundle: &Path) -> Result<(Self, Vec<u8>), SpecError> {
        let path = bundle.join("config.json");
        let bytes = read_bounded(&path)?;
        Ok((parse(&path, &bytes)?, bytes))
    }
}

/// Reads any JSON file of a bounded size into `T`.
pub(crate) fn load_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, SpecError> {
    parse(path, &read_bounded(path)?)
}

/// Reads JSON text into `T`; the path is for the error.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, SpecError> {
    serde_json::from_slice(bytes).map_err(|cause| {
        let path = path.to_owned();
        match locate::field_at(bytes, cause.line(), cause.column()) {
            field if field.is_empty() => SpecError::Parse { path, cause },
            field => SpecError::Field { path, field, cause },
        }
    })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, SpecError> {
    use std::io::Read;
    let failed = |cause| SpecError::Read { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(SpecError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// `root`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Root {
    #[serde(deserialize_with = "nullable")]
    pub(crate) path: PathBuf,
    #[serde(deserialize_with = "nullable")]
    pub(crate) readonly: bool,
}

/// One of `mounts`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Mount {
    #[serde(deserialize_with = "nullable")]
    pub(crate) destination: String,
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) source: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) options: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) gid_mappings: Vec<IdMapping>,
}

/// `process`, and what `exec --process` reads
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Process {
    #[serde(deserialize_with = "nullable")]
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) user: User,
    #[serde(deserialize_with = "nullable")]
    pub(crate) args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cwd: String,
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) rlimits: Vec<Rlimit>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) no_new_privileges: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) apparmor_profile: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) selinux_label: String,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) scheduler: Option<Scheduler>,
    #[serde(rename = "ioPriority")]
    pub(crate) io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity")]
    pub(crate) exec_cpu_affinity: Option<ExecCpuAffinity>,
}

/// `process.execCPUAffinity`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ExecCpuAffinity {
    #[serde(deserialize_with = "nullable")]
    pub(crate) initial: String,
    #[serde(rename = "final", deserialize_with = "nullable")]
    pub(crate) last: String,
}

/// `process.consoleSize`
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u64,
    pub(crate) width: u64,
}

/// `process.user`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct User {
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: u32,
    #[serde(deserialize_with = "nullable")]
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) additional_gids: Vec<u32>,
}

/// `process.capabilities`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Capabilities {
    #[serde(deserialize_with = "nullable")]
    pub(crate) bounding: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) effective: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) inheritable: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) permitted: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ambient: Vec<String>,
}

/// One of `process.rlimits`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// `process.scheduler`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Scheduler {
    pub(crate) policy: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) nice: i32,
    #[serde(deserialize_with = "nullable")]
    pub(crate) priority: i32,
    #[serde(deserialize_with = "nullable")]
    pub(crate) flags: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) runtime: u64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) deadline: u64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) period: u64,
}

/// `process.ioPriority`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IoPriority {
    pub(crate) class: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) priority: i32,
}

/// `hooks`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Hooks {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) prestart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) create_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) start_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststop: Vec<Hook>,
}

/// One hook
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Hook {
    pub(crate) path: PathBuf,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_unknown_fields_are_nothing() {
        let text = r#"{"ociVersion":"9.9.9","future":{"a":1},"mounts":null,"process":{"args":null,"user":null,
            "rlimits":null,"terminal":null},"root":{"path":"r"},"linux":{"namespaces":null,"resources":{"devices":null}}}"#;
        let spec: Spec = serde_json::from_str(text).expect("parses");
        assert!(spec.mounts.is_empty());
        assert_eq!(spec.process.expect("process").user.uid, 0);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Spec::load(Path::new("/nonexistent")).expect_err("error").to_string();
        assert_eq!(error, "read /nonexistent/config.json");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<Spec>(&bytes);
        }
    }
}
