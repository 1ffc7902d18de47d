//! What config.json asks for -> what has to be done, with everything refused that can be refused. Pure: no system call.
//!
//! `create`, `run` and `exec` act on these plans only. An error names the field of config.json it is about.

pub(crate) mod cgroup;
pub(crate) mod devices;
#[cfg(test)]
mod fuzz;
pub(crate) mod id_maps;
pub(crate) mod mount_words;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod net_devices;
pub(crate) mod numbers;
pub(crate) mod process;
pub(crate) mod rdt;
pub(crate) mod sysctl;
pub(crate) mod task;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sys::mount::{Propagation, Reach};

use crate::confine::cgroup::systemd::Property;
use crate::confine::cgroup::systemd::names::UnitName;
use crate::confine::seccomp::{self, Filter};
use crate::spec::{Hooks, Resources, Spec};
use devices::DeviceStep;
use mounts::{MountStep, Surroundings};
use namespaces::NamespacePlan;
use net_devices::NetDeviceStep;
use process::ProcessPlan;
use rdt::RdtPlan;

/// Why a configuration is refused. `field` is the path in config.json.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Something that has to be there is not.
    #[error("config.json: {field} is missing")]
    Missing { field: &'static str },
    /// A word that is not one of those known.
    #[error("config.json: {field}: {word:?} is unknown")]
    Unknown { field: String, word: String },
    /// A value that cannot be.
    #[error("config.json: {field}: {value:?} {why}")]
    Invalid { field: String, value: String, why: &'static str },
    /// Something that must not touch the host's namespace.
    #[error("config.json: {field} needs a private {namespace} namespace")]
    NeedsNamespace { field: String, namespace: &'static str },
    /// The seccomp section.
    #[error("config.json: linux.seccomp")]
    Seccomp(#[from] seccomp::SeccompError),
}

impl PlanError {
    pub(crate) fn invalid(field: impl Into<String>, value: impl Into<String>, why: &'static str) -> Self {
        Self::Invalid { field: field.into(), value: cut(value.into()), why }
    }

    pub(crate) fn unknown(field: impl Into<String>, word: impl Into<String>) -> Self {
        Self::Unknown { field: field.into(), word: cut(word.into()) }
    }
}

/// A value as far as somebody will read it.
fn cut(mut value: String) -> String {
    const MAX: usize = 200;
    if let Some((at, _)) = value.char_indices().nth(MAX) {
        value.truncate(at);
        value.push('…');
    }
    value
}

/// Flags of `create` and `run` that change what is done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// `--no-pivot`
    pub(crate) no_pivot: bool,
    /// `--no-new-keyring`
    pub(crate) no_new_keyring: bool,
    /// `--systemd-cgroup`
    pub(crate) systemd_cgroup: bool,
}

/// Everything about a container to be.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly_rootfs: bool,
    pub(crate) rootfs_propagation: (Propagation, Reach),
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) namespaces: NamespacePlan,
    pub(crate) mounts: Vec<MountStep>,
    /// What SELinux is to call the files of new file systems; empty for nothing.
    pub(crate) mount_label: String,
    /// False when /dev is bound from elsewhere: then nothing is made in it.
    pub(crate) populate_dev: bool,
    pub(crate) devices: Vec<DeviceStep>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) net_devices: Vec<NetDeviceStep>,
    pub(crate) process: ProcessPlan,
    pub(crate) seccomp: Option<Filter>,
    pub(crate) resources: Resources,
    pub(crate) rdt: Option<RdtPlan>,
    /// As in config.json: empty for the default.
    pub(crate) cgroups_path: String,
    /// The same as a unit's name, under `--systemd-cgroup`.
    pub(crate) unit: UnitName,
    /// Of annotations.
    pub(crate) unit_properties: Vec<Property>,
    pub(crate) hooks: Hooks,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) options: Options,
    /// Things left out that somebody should know about.
    pub(crate) warnings: Vec<String>,
}

impl Plan {
    /// Checks a configuration and works out what it takes.
    pub(crate) fn new(spec: &Spec, bundle: &Path, options: Options) -> Result<Self, PlanError> {
        let mut warnings = Vec::new();
        let root = spec.root.as_ref().ok_or(PlanError::Missing { field: "root" })?;
        if root.path.as_os_str().is_empty() {
            return Err(PlanError::Missing { field: "root.path" });
        }
        if root.path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(PlanError::invalid("root.path", root.path.to_string_lossy(), "contains a NUL"));
        }
        let linux = spec.linux.clone().unwrap_or_default();
        let namespaces = NamespacePlan::new(&linux)?;
        let process = spec.process.as_ref().ok_or(PlanError::Missing { field: "process" })?;
        let mut process = ProcessPlan::new(process, &mut warnings)?;
        namespaces.check_ids(&process)?;
        process.add_common(&linux, &mut warnings)?;
        let named = |field: &str, value: &str| match value {
            "" => Ok(None),
            _ if !namespaces.is_private(libc_flag::NEWUTS) => {
                Err(PlanError::NeedsNamespace { field: field.into(), namespace: "uts" })
            }
            _ if value.len() > 64 || value.contains('\0') => {
                Err(PlanError::invalid(field, value, "is longer than 64 bytes"))
            }
            _ => Ok(Some(value.to_owned())),
        };
        let (hostname, domainname) = (named("hostname", &spec.hostname)?, named("domainname", &spec.domainname)?);
        let around = Surroundings { namespaces: &namespaces, label: &linux.mount_label };
        let mounts = spec
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| MountStep::new(index, mount, &around, &mut warnings))
            .collect::<Result<Vec<_>, _>>()?;
        let populate_dev = !mounts.iter().any(|mount| mount.destination == Path::new("/dev") && mount.source.is_bind());
        sysctl::check(&linux.sysctl, &namespaces)?;
        for (field, paths) in
            [("linux.maskedPaths", &linux.masked_paths), ("linux.readonlyPaths", &linux.readonly_paths)]
        {
            if let Some(path) = paths.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
                return Err(PlanError::invalid(field, path.as_str(), "is not an absolute path"));
            }
        }
        let rdt = linux.intel_rdt.as_ref().map(RdtPlan::new).transpose()?;
        let net_devices = net_devices::plan(&linux.net_devices, &namespaces)?;
        if linux.mount_label.contains('\0') {
            return Err(PlanError::invalid("linux.mountLabel", linux.mount_label.as_str(), "contains a NUL"));
        }
        let (unit, unit_properties) = cgroup::check_path(&linux.cgroups_path, &spec.annotations, options)?;
        check_hooks(&spec.hooks)?;
        let resources = linux.resources.unwrap_or_default();
        cgroup::check_resources(&resources)?;
        let seccomp = linux.seccomp.as_ref().map(|section| seccomp::compile(section, &mut warnings)).transpose()?;
        Ok(Self {
            rootfs: bundle.join(&root.path),
            readonly_rootfs: root.readonly,
            rootfs_propagation: propagation(&linux.rootfs_propagation)?,
            hostname,
            domainname,
            mounts,
            mount_label: linux.mount_label,
            populate_dev,
            devices: devices::plan(&linux.devices)?,
            masked_paths: linux.masked_paths,
            readonly_paths: linux.readonly_paths,
            sysctl: linux.sysctl,
            net_devices,
            process,
            seccomp: seccomp.flatten(),
            resources,
            rdt,
            cgroups_path: linux.cgroups_path,
            unit,
            unit_properties,
            hooks: spec.hooks.clone(),
            annotations: spec.annotations.clone(),
            namespaces,
            options,
            warnings,
        })
    }
}

/// Namespace flags by the names of clone(2), without pulling in libc.
pub(crate) mod libc_flag {
    pub(crate) const NEWTIME: u64 = sys::ns::CLONE_NEWTIME;
    pub(crate) const NEWNS: u64 = 0x0002_0000;
    pub(crate) const NEWCGROUP: u64 = 0x0200_0000;
    pub(crate) const NEWUTS: u64 = 0x0400_0000;
    pub(crate) const NEWIPC: u64 = 0x0800_0000;
    pub(crate) const NEWUSER: u64 = 0x1000_0000;
    pub(crate) const NEWPID: u64 = 0x2000_0000;
    pub(crate) const NEWNET: u64 = 0x4000_0000;
}

fn propagation(word: &str) -> Result<(Propagation, Reach), PlanError> {
    Ok(match word {
        "" | "rslave" => (Propagation::Slave, Reach::Tree),
        "slave" => (Propagation::Slave, Reach::One),
        "private" => (Propagation::Private, Reach::One),
        "rprivate" => (Propagation::Private, Reach::Tree),
        "shared" => (Propagation::Shared, Reach::One),
        "rshared" => (Propagation::Shared, Reach::Tree),
        "unbindable" => (Propagation::Unbindable, Reach::One),
        "runbindable" => (Propagation::Unbindable, Reach::Tree),
        _ => return Err(PlanError::unknown("linux.rootfsPropagation", word)),
    })
}

/// Whether a text is fit to be a path below a cgroup root: no component that leads elsewhere or that no file system would take.
pub(crate) fn is_cgroup_path(path: &str) -> bool {
    path.len() < PATH_MAX
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| part.len() <= NAME_MAX && !matches!(part, "." | ".."))
}

/// Longest path, with its NUL, and longest name of a file.
pub(crate) const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

fn check_hooks(hooks: &Hooks) -> Result<(), PlanError> {
    for (field, list) in [
        ("hooks.prestart", &hooks.prestart),
        ("hooks.createRuntime", &hooks.create_runtime),
        ("hooks.createContainer", &hooks.create_container),
        ("hooks.startContainer", &hooks.start_container),
        ("hooks.poststart", &hooks.poststart),
        ("hooks.poststop", &hooks.poststop),
    ] {
        for hook in list {
            if !hook.path.is_absolute() {
                return Err(PlanError::invalid(field, hook.path.to_string_lossy(), "is not an absolute path"));
            }
            let words = hook.args.iter().chain(hook.env.iter().flatten()).map(String::as_str);
            let path = hook.path.to_string_lossy();
            if let Some(word) = words.chain([&*path]).find(|word| word.contains('\0')) {
                return Err(PlanError::invalid(field, word, "contains a NUL"));
            }
            if let Some(timeout) = hook.timeout.filter(|timeout| *timeout <= 0) {
                return Err(PlanError::invalid(field, timeout.to_string(), "is no timeout in seconds"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest configuration that is accepted, to be changed by tests.
    pub(crate) fn minimal() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["true"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    fn plan(value: &serde_json::Value) -> Result<Plan, PlanError> {
        let spec: Spec = serde_json::from_value(value.clone()).expect("a spec");
        Plan::new(&spec, Path::new("/bundle"), Options::default())
    }

    #[test]
    fn relative_root_is_below_the_bundle() {
        assert_eq!(plan(&minimal()).expect("plan").rootfs, Path::new("/bundle/rootfs"));
    }

    #[test]
    fn refusals_name_the_field() {
        let cases: &[(&str, serde_json::Value, &str)] = &[
            ("/root", serde_json::json!(null), "root is missing"),
            ("/process", serde_json::json!(null), "process is missing"),
            ("/process/args", serde_json::json!([]), "process.args is missing"),
            ("/process/cwd", serde_json::json!("tmp"), "process.cwd: \"tmp\" is not an absolute path"),
            ("/hostname", serde_json::json!("web"), "hostname needs a private uts namespace"),
            (
                "/linux/namespaces",
                serde_json::json!([{"type": "pid"}]),
                "linux.namespaces needs a private mount namespace",
            ),
            ("/linux/namespaces", serde_json::json!([{"type": "moon"}]), "linux.namespaces: \"moon\" is unknown"),
            (
                "/linux/cgroupsPath",
                serde_json::json!("/a/../b"),
                "linux.cgroupsPath: \"/a/../b\" has \".\", \"..\" or a control character in it, or is too long",
            ),
            ("/linux/maskedPaths", serde_json::json!(["x"]), "linux.maskedPaths: \"x\" is not an absolute path"),
            ("/linux/rootfsPropagation", serde_json::json!("up"), "linux.rootfsPropagation: \"up\" is unknown"),
            (
                "/linux/sysctl",
                serde_json::json!({"kernel.panic": "1"}),
                "linux.sysctl: \"kernel.panic\" is not namespaced",
            ),
            (
                "/linux/intelRdt",
                serde_json::json!({"closID": "../x"}),
                "linux.intelRdt.closID: \"../x\" is not the name of a class",
            ),
            (
                "/hooks",
                serde_json::json!({"prestart": [{"path": "x"}]}),
                "hooks.prestart: \"x\" is not an absolute path",
            ),
            (
                "/linux/resources",
                serde_json::json!({"unified": {"../x.y": "1"}}),
                "linux.resources.unified: \"../x.y\" is not the name of a cgroup file",
            ),
        ];
        for (pointer, value, message) in cases {
            let mut config = minimal();
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            config.pointer_mut(parent).expect("parent")[key] = value.clone();
            let error = plan(&config).expect_err(pointer).to_string();
            assert_eq!(error, format!("config.json: {message}"), "{pointer}");
        }
    }

    proptest::proptest! {
        #[test]
        fn planning_never_panics(
            words in proptest::collection::vec("[a-z:=/.,0-9\\-]{0,14}", 6),
            number in proptest::prelude::any::<i64>(),
        ) {
            let mut config = minimal();
            config["mounts"] = serde_json::json!([{"destination": words[0], "type": words[1], "source": words[2],
                "options": [words[3], words[4], "mode=755"]}]);
            config["linux"]["sysctl"] = serde_json::json!({&words[5]: words[0]});
            config["linux"]["devices"] = serde_json::json!([{"path": words[1], "type": "c", "major": number, "minor": number}]);
            config["linux"]["cgroupsPath"] = words[2].clone().into();
            config["process"]["rlimits"] = serde_json::json!([{"type": words[3], "soft": 1, "hard": 0}]);
            let _ = plan(&config);
        }
    }
}
