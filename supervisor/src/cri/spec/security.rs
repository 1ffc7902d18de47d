//! Privileges and profiles: capabilities, seccomp, AppArmor, SELinux, paths that are masked.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ::spec::{
    apparmor::{self, AppArmor},
    caps::{self, Set},
    seccomp,
};
use nix::fcntl::OFlag;
use proto::runtime::v1::{self as cri, security_profile::ProfileType};
use serde_json::Value;

use super::{Host, SpecError};

/// Larger files are no profiles.
const PROFILE_LIMIT: u64 = 4 << 20;
/// In front of names of profiles in the deprecated fields.
const LOCALHOST: &str = "localhost/";
/// Annotations that put a container into a class of resctrl's or of block I/O.
const CLASSES: [&str; 4] = [
    "io.kubernetes.cri.rdt-class",
    "io.kubernetes.cri.blockio-class",
    "rdt.resources.beta.kubernetes.io/",
    "blockio.resources.beta.kubernetes.io/",
];

/// The request's security context; without one everything is as if its fields were empty.
pub(super) fn context(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// What a process may.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    /// Bounding, effective and permitted ones.
    pub(super) all: Set,
    /// Those that a program keeps which root isn't.
    pub(super) ambient: Set,
}

/// The default ones, with those of the request added, then others dropped; `ALL` of either comes first.
pub(super) fn capabilities(context: &cri::LinuxContainerSecurityContext) -> Result<Capabilities, SpecError> {
    let wanted = context.capabilities.clone().unwrap_or_default();
    let (add, add_all) = caps::named(&wanted.add_capabilities)?;
    let (ambient, ambient_all) = caps::named(&wanted.add_ambient_capabilities)?;
    let (drop, drop_all) = caps::named(&wanted.drop_capabilities)?;
    let mut all = match (add_all || ambient_all, drop_all) {
        (_, true) => Set::new(),
        (true, false) => caps::all_of_host(),
        (false, false) => caps::effective(&[], &[], false)?,
    };
    all.extend(add.union(&ambient));
    all.retain(|cap| !drop.contains(cap));
    if context.privileged {
        all = caps::all_of_host();
    }
    let ambient = if ambient_all { all.clone() } else { ambient.intersection(&all).copied().collect() };
    Ok(Capabilities { all, ambient })
}

/// A profile as it is asked for.
#[derive(Debug, PartialEq)]
enum Profile {
    /// Ours.
    Default,
    /// None.
    Unconfined,
    /// One of the node's.
    Named(String),
}

impl Profile {
    /// From the field, else from the deprecated one; `None`: neither says anything.
    fn of(what: &str, field: Option<&cri::SecurityProfile>, deprecated: &str) -> Result<Option<Self>, SpecError> {
        let Some(profile) = field else {
            return match deprecated {
                "" => Ok(None),
                "runtime/default" | "docker/default" => Ok(Some(Self::Default)),
                "unconfined" => Ok(Some(Self::Unconfined)),
                name => match name.strip_prefix(LOCALHOST) {
                    Some(name) => Self::named(what, name).map(Some),
                    None => {
                        let why = "is neither runtime/default, unconfined nor localhost/NAME";
                        Err(SpecError::invalid(format!("{what} profile"), name, why))
                    }
                },
            };
        };
        let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
            // Another one than ours would be less than was asked for (GHSA-7236-3392-c5c6).
            SpecError::invalid(format!("{what}.profile_type"), profile.profile_type, "is not known")
        })?;
        let name = &profile.localhost_ref;
        if kind != ProfileType::Localhost && !name.is_empty() {
            return Err(SpecError::invalid(
                format!("{what}.localhost_ref"),
                name,
                "is only for profiles of type Localhost",
            ));
        }
        Ok(Some(match kind {
            ProfileType::RuntimeDefault => Self::Default,
            ProfileType::Unconfined => Self::Unconfined,
            ProfileType::Localhost => Self::named(what, name.strip_prefix(LOCALHOST).unwrap_or(name))?,
        }))
    }

    fn named(what: &str, name: &str) -> Result<Self, SpecError> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(SpecError::invalid(format!("{what}.localhost_ref"), name, "is no name of a profile"));
        }
        Ok(Self::Named(name.to_owned()))
    }
}

/// `linux.seccomp`. Privileged containers have none, and neither have those that ask for nothing (CRI, `seccomp_profile_path`).
#[allow(deprecated, reason = "kubelets before 1.25 and other clients send only these")]
pub(super) fn seccomp(context: &cri::LinuxContainerSecurityContext, caps: &Set) -> Result<Option<Value>, SpecError> {
    let profile = Profile::of("seccomp", context.seccomp.as_ref(), &context.seccomp_profile_path)?;
    match profile {
        _ if context.privileged => Ok(None),
        None | Some(Profile::Unconfined) => Ok(None),
        Some(Profile::Default) => Ok(Some(seccomp::default_profile(caps))),
        Some(Profile::Named(path)) => {
            let path = Path::new(&path);
            if !path.is_absolute() {
                return Err(SpecError::invalid("seccomp.localhost_ref", path.display(), "is no absolute path"));
            }
            let text = read_profile(path).map_err(|cause| SpecError::ReadProfile { path: path.to_owned(), cause })?;
            let profile =
                seccomp::parse_profile(&text).map_err(|cause| SpecError::Profile { path: path.to_owned(), cause })?;
            Ok(Some(seccomp::resolve_conditions(&profile, caps)))
        }
    }
}

fn read_profile(path: &Path) -> io::Result<String> {
    // O_NONBLOCK: a FIFO in its place must not hold us.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = String::new();
    file.take(PROFILE_LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > PROFILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is larger than any profile"));
    }
    Ok(text)
}

/// AppArmor's profile for a container, loaded; none where this kernel has no AppArmor and none was asked for by name.
pub(in crate::cri) async fn settle_apparmor(
    apparmor: &AppArmor,
    config: &cri::ContainerConfig,
) -> Result<Option<String>, SpecError> {
    let context = context(config);
    match apparmor_profile(&context, apparmor::is_enabled())? {
        Profile::Default => Ok(apparmor.settle(None, context.privileged).await?),
        Profile::Unconfined => Ok(apparmor.settle(Some(apparmor::UNCONFINED), context.privileged).await?),
        Profile::Named(name) => Ok(apparmor.settle(Some(&name), context.privileged).await?),
    }
}

#[allow(deprecated, reason = "kubelets before 1.30 and other clients send only these")]
fn apparmor_profile(context: &cri::LinuxContainerSecurityContext, enabled: bool) -> Result<Profile, SpecError> {
    // Nothing is the default one (kubernetes#51746).
    let profile = Profile::of("apparmor", context.apparmor.as_ref(), &context.apparmor_profile)?;
    match profile.unwrap_or(Profile::Default) {
        Profile::Named(name) if !enabled => {
            Err(SpecError::unsupported(format!("AppArmor profile {name:?}"), "AppArmor is not enabled in this kernel"))
        }
        other => Ok(other),
    }
}

/// Labels of SELinux mean nothing where it is off, as in containerd.
pub(super) fn check_selinux(context: &cri::LinuxContainerSecurityContext, host: &Host) -> Result<(), SpecError> {
    check_selinux_options(context.selinux_options.as_ref(), host)
}

pub(super) fn check_selinux_options(options: Option<&cri::SeLinuxOption>, host: &Host) -> Result<(), SpecError> {
    match options {
        Some(options) if host.selinux && *options != cri::SeLinuxOption::default() => {
            Err(SpecError::unsupported("selinux_options", "containers get no labels of SELinux from this release"))
        }
        _ => Ok(()),
    }
}

/// Paths to be masked or read-only; nothing is added to what the kubelet says. Privileged containers have none.
pub(super) fn paths(field: &str, paths: &[String], privileged: bool) -> Result<Vec<String>, SpecError> {
    if let Some(bad) = paths.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
        return Err(SpecError::invalid(field, bad, "is no absolute path"));
    }
    Ok(if privileged { Vec::new() } else { paths.to_vec() })
}

/// Refuses classes of resources: there are none here, and a pod that has one isn't to think that it has it.
pub(super) fn refuse_classes(annotations: &HashMap<String, String>) -> Result<(), SpecError> {
    let is_class =
        |key: &&String| CLASSES.iter().any(|class| *key == class || (class.ends_with('/') && key.starts_with(class)));
    match annotations.keys().find(is_class) {
        Some(key) => {
            Err(SpecError::unsupported(format!("annotation {key}"), "there are no classes of cache or block I/O here"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(kind: i32, name: &str) -> cri::SecurityProfile {
        cri::SecurityProfile { profile_type: kind, localhost_ref: name.into() }
    }

    #[test]
    fn profiles_old_and_new() {
        let of = |field: Option<cri::SecurityProfile>, old: &str| Profile::of("x", field.as_ref(), old).ok();
        let named = |name: &str| Some(Some(Profile::Named(name.into())));
        for (field, old, wanted) in [
            (None, "", Some(None)),
            (None, "runtime/default", Some(Some(Profile::Default))),
            (None, "docker/default", Some(Some(Profile::Default))),
            (None, "unconfined", Some(Some(Profile::Unconfined))),
            (None, "localhost//p/q.json", named("/p/q.json")),
            (None, "localhost/", None),
            (None, "other", None),
            (Some(profile(0, "")), "unconfined", Some(Some(Profile::Default))),
            (Some(profile(1, "")), "runtime/default", Some(Some(Profile::Unconfined))),
            (Some(profile(2, "mine")), "", named("mine")),
            (Some(profile(2, "localhost/mine")), "", named("mine")),
            (Some(profile(2, "")), "", None),
            (Some(profile(2, "a\nb")), "", None),
            (Some(profile(0, "mine")), "", None),
            (Some(profile(99, "")), "", None),
        ] {
            assert_eq!(of(field.clone(), old), wanted, "{field:?} {old:?}");
        }
    }

    #[test]
    fn apparmor_without_a_kernel_for_it() {
        let of = |kind, enabled| {
            let apparmor = Some(profile(kind, if kind == 2 { "mine" } else { "" }));
            apparmor_profile(&cri::LinuxContainerSecurityContext { apparmor, ..Default::default() }, enabled)
        };
        assert_eq!(apparmor_profile(&Default::default(), false).unwrap(), Profile::Default);
        assert_eq!((of(0, false).unwrap(), of(1, false).unwrap()), (Profile::Default, Profile::Unconfined));
        assert_eq!(of(2, true).unwrap(), Profile::Named("mine".into()));
        let error = of(2, false).unwrap_err().to_string();
        assert_eq!(error, "AppArmor profile \"mine\" is not supported: AppArmor is not enabled in this kernel");
    }

    #[test]
    fn capabilities_of_every_wish() {
        let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let of = |add: &str, drop: &str, ambient: &str, privileged| {
            let capabilities = Some(cri::Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                add_ambient_capabilities: list(ambient),
            });
            let context = cri::LinuxContainerSecurityContext { capabilities, privileged, ..Default::default() };
            capabilities_of(&context)
        };
        let every = caps::all_of_host().len();
        for (add, drop, ambient, privileged, size, ambients) in [
            ("", "", "", false, 14, 0),
            ("NET_ADMIN", "", "", false, 15, 0),
            ("cap_net_admin", "CHOWN", "", false, 14, 0),
            ("NET_ADMIN", "ALL", "", false, 1, 0),
            ("NET_ADMIN CHOWN", "ALL CHOWN", "", false, 1, 0),
            ("ALL", "CHOWN", "", false, every - 1, 0),
            ("ALL", "ALL", "", false, 0, 0),
            ("", "", "NET_ADMIN", false, 15, 1),
            ("", "ALL", "NET_BIND_SERVICE", false, 1, 1),
            ("", "NET_ADMIN", "NET_ADMIN", false, 14, 0),
            ("", "ALL", "", true, every, 0),
        ] {
            let found = of(add, drop, ambient, privileged).unwrap();
            assert_eq!((found.all.len(), found.ambient.len()), (size, ambients), "+{add} -{drop} ^{ambient}");
            assert!(found.ambient.is_subset(&found.all));
        }
        assert!(
            of("FLY", "", "", false).is_err() && of("", "FLY", "", false).is_err() && of("", "", "FLY", false).is_err()
        );
    }

    fn capabilities_of(context: &cri::LinuxContainerSecurityContext) -> Result<Capabilities, SpecError> {
        super::capabilities(context)
    }

    #[test]
    fn seccomp_profiles_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let of = |path: &str, privileged| {
            let seccomp = Some(profile(2, path));
            seccomp_of(&cri::LinuxContainerSecurityContext { seccomp, privileged, ..Default::default() })
        };
        std::fs::write(
            at("good"),
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a","action":"SCMP_ACT_ALLOW"}]}"#,
        )
        .unwrap();
        std::fs::write(at("bad"), "{}").unwrap();
        nix::unistd::mkfifo(at("fifo").as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let filter = of(&at("good"), false).unwrap().unwrap();
        assert_eq!(filter["syscalls"][0]["names"], serde_json::json!(["a"]));
        assert_eq!(of(&at("good"), true).unwrap(), None);
        for (path, words) in [
            (at("none"), at("none")),
            (at("bad"), at("bad")),
            (at("fifo"), at("fifo")),
            (folder.path().display().to_string(), folder.path().display().to_string()),
            ("relative".to_owned(), "seccomp.localhost_ref relative: is no absolute path".to_owned()),
        ] {
            let error = of(&path, false).unwrap_err().to_string();
            assert!(error.contains(&words), "{path}: {error}");
        }
    }

    fn seccomp_of(context: &cri::LinuxContainerSecurityContext) -> Result<Option<Value>, SpecError> {
        super::seccomp(context, &Set::new())
    }

    #[test]
    fn classes_are_refused() {
        for (key, fine) in [
            ("io.kubernetes.cri.rdt-class", false),
            ("rdt.resources.beta.kubernetes.io/pod", false),
            ("blockio.resources.beta.kubernetes.io/container.a", false),
            ("io.kubernetes.cri.rdt-classes", true),
            ("kubernetes.io/config.seen", true),
        ] {
            assert_eq!(refuse_classes(&HashMap::from([(key.to_owned(), String::new())])).is_ok(), fine, "{key}");
        }
    }
}
