//! AppArmor: which profile a container gets, and the default one, loaded where it isn't.
//!
//! ```text
//!   a name              ─▶ NAME            must be loaded
//!   nothing, privileged ─▶ unconfined
//!   nothing             ─▶ docker-default  loaded when a container first needs it; one that is loaded stays as it is
//! ```
//!
//! An exec gets its container's profile, `--privileged` or not, as with dockerd. A machine without AppArmor is asked once.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command, sync::Mutex};
use tracing::{info, warn};

/// Docker's name of it, which other tools look for: whichever of the two loads it first, both use it.
pub const DEFAULT: &str = "docker-default";
/// What a process without a profile is called.
pub const UNCONFINED: &str = "unconfined";
/// How long the parser may take.
const PARSING: Duration = Duration::from_secs(20);

/// What this machine has of it.
#[derive(Debug)]
pub struct AppArmor {
    /// The kernel's folder of it in securityfs; none where it is off, or not ours to manage.
    policy: Option<PathBuf>,
    /// Where apparmor_parser may be.
    parsers: Vec<PathBuf>,
    /// The label we have ourselves, if it is one.
    label: Option<String>,
    /// It is on, but securityfs is not mounted.
    hidden: bool,
    /// Held by whoever loads the profile: one is enough. Containers that find it loaded don't wait.
    loading: Mutex<()>,
    warned: AtomicBool,
}

/// Why a container can't have its profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppArmorError {
    /// The user's.
    #[error("AppArmor profile {0:?} is not loaded: load it (apparmor_parser -a FILE)")]
    NotLoaded(String),
    /// The default one.
    #[error("AppArmor is on, and its profile {DEFAULT} could not be loaded: {}: {why}", parser.display())]
    Load {
        /// The program that loads profiles.
        parser: PathBuf,
        /// What it said.
        why: String,
    },
}

/// What a container is to have.
#[derive(Debug, PartialEq)]
enum Wish<'a> {
    /// One of the user's.
    Named(&'a str),
    /// None.
    Unconfined,
    /// The default one.
    Default,
}

fn wish(option: Option<&str>, privileged: bool) -> Wish<'_> {
    match (option, privileged) {
        (Some(UNCONFINED), _) | (None, true) => Wish::Unconfined,
        (Some(name), _) => Wish::Named(name),
        (None, false) => Wish::Default,
    }
}

/// Whether the kernel has it, switched on.
pub fn is_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

impl AppArmor {
    /// Of this machine. In a container it is the host's, which then has a profile for us and ours.
    pub fn here(in_container: bool) -> Self {
        let on = is_enabled() && !in_container;
        let policy = PathBuf::from("/sys/kernel/security/apparmor");
        let there = on && policy.is_dir();
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where it is, also for those whose PATH doesn't say so.
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let label = std::fs::read_to_string("/proc/self/attr/current").ok().filter(|_| there);
        Self {
            policy: there.then_some(policy),
            parsers: if there { folders.map(|folder| folder.join("apparmor_parser")).collect() } else { Vec::new() },
            label: label.as_deref().and_then(peer),
            hidden: on && !there,
            loading: Mutex::default(),
            warned: AtomicBool::new(false),
        }
    }

    /// The profile that a container is started with, loaded; none where there is no AppArmor. `option` is the user's.
    pub async fn settle(&self, option: Option<&str>, privileged: bool) -> Result<Option<String>, AppArmorError> {
        let wish = wish(option, privileged);
        let Some(policy) = &self.policy else {
            if self.hidden && wish == Wish::Default {
                self.warn_once();
            }
            // Whether it is there is for the kernel to say: we don't see.
            return Ok(if let Wish::Named(name) = wish { Some(name.to_owned()) } else { None });
        };
        match wish {
            Wish::Unconfined => Ok(Some(UNCONFINED.to_owned())),
            Wish::Default if self.ensure(policy).await? => Ok(Some(DEFAULT.to_owned())),
            Wish::Default => Ok(None),
            Wish::Named(DEFAULT) if self.ensure(policy).await? => Ok(Some(DEFAULT.to_owned())),
            Wish::Named(name) => match loaded(policy).await {
                // Names of other namespaces and of stacks of profiles are not in the list.
                Ok(names) if !name.starts_with(':') && !name.contains("//&") && !names.contains(name) => {
                    Err(AppArmorError::NotLoaded(name.to_owned()))
                }
                _ => Ok(Some(name.to_owned())),
            },
        }
    }

    /// Before a further process of a container with this profile: the default one may have been unloaded meanwhile.
    pub async fn keep(&self, profile: &str) -> Result<(), AppArmorError> {
        match &self.policy {
            Some(policy) if profile == DEFAULT => self.ensure(policy).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Loads the default profile unless it is there. False: it isn't, and nobody can load it.
    ///
    /// Looked at again at every start: what unloads profiles, an upgrade for instance, doesn't tell us.
    async fn ensure(&self, policy: &Path) -> Result<bool, AppArmorError> {
        let is_there = || async { loaded(policy).await.is_ok_and(|names| names.contains(DEFAULT)) };
        if is_there().await {
            return Ok(true);
        }
        let _turn = self.loading.lock().await;
        if is_there().await {
            return Ok(true);
        }
        let Some(parser) = self.parser() else {
            self.warn_once();
            return Ok(false);
        };
        match load(parser, &profile(self.label.as_deref())).await {
            Ok(()) => {
                info!(profile = DEFAULT, "AppArmor profile loaded");
                Ok(true)
            }
            // Docker's daemon may have been faster.
            Err(_) if is_there().await => Ok(true),
            Err(why) => Err(AppArmorError::Load { parser: parser.to_owned(), why }),
        }
    }

    fn parser(&self) -> Option<&Path> {
        self.parsers.iter().map(PathBuf::as_path).find(|path| path.is_absolute() && path.is_file())
    }

    /// Whether containers get a profile: `name=apparmor` in `GET /info`.
    pub async fn protects(&self) -> bool {
        self.policy.is_some() && self.warning().await.is_none()
    }

    /// Why containers get none although this machine could give them one.
    pub async fn warning(&self) -> Option<String> {
        let why = match &self.policy {
            None if self.hidden => "securityfs is not mounted at /sys/kernel/security",
            Some(policy)
                if self.parser().is_none() && !loaded(policy).await.is_ok_and(|names| names.contains(DEFAULT)) =>
            {
                "there is no apparmor_parser (package apparmor) to load it"
            }
            _ => return None,
        };
        Some(format!("AppArmor is on, but containers run without profile {DEFAULT}: {why}"))
    }

    fn warn_once(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let why = if self.hidden { "securityfs is not mounted" } else { "there is no apparmor_parser" };
            warn!(profile = DEFAULT, why, "AppArmor is on, but containers run without a profile");
        }
    }
}

/// Names of the profiles that are loaded: lines of `NAME (MODE)`.
async fn loaded(policy: &Path) -> io::Result<BTreeSet<String>> {
    let text = tokio::fs::read_to_string(policy.join("profiles")).await?;
    Ok(text.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect())
}

/// Adds a profile; one of that name is not replaced.
async fn load(parser: &Path, profile: &str) -> Result<(), String> {
    let mut command = Command::new(parser);
    // Without a cache: what it would write there is nobody's to clean up.
    command.args(["--add", "--skip-cache", "--quiet"]).env("LC_ALL", "C").kill_on_drop(true);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut input = child.stdin.take();
    let run = async {
        if let Some(mut input) = input.take() {
            // One that ends early says why itself.
            let _ = input.write_all(profile.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PARSING, run)
        .await
        .map_err(|_| format!("it did not end within {PARSING:?}"))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said.split_whitespace().collect();
    Err(if said.is_empty() { output.status.to_string() } else { said.join(" ") })
}

/// A label as others know us by it. One with characters that mean something in a profile is left out.
fn peer(label: &str) -> Option<String> {
    let name = label.trim_end_matches(['\n', '\0']).split(" (").next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    (!name.is_empty() && name != UNCONFINED && name.chars().all(plain)).then(|| name.to_owned())
}

/// The default profile. It forbids what namespaces, masked paths and missing capabilities are to prevent already, for the case that
/// one of them has a hole, or that a user opened one. It needs no file of the distribution, which may not be there.
fn profile(own: Option<&str>) -> String {
    let own = own.map(|label| format!("\n  signal (receive) peer={label},")).unwrap_or_default();
    format!(
        r"# What containers of Berth run under. Docker's has the same name and purpose.
profile {DEFAULT} flags=(attach_disconnected, mediate_deleted) {{
  # What is not about the host is up to namespaces, capabilities and seccomp.
  capability,
  file,
  network,
  unix,
  umount,
  deny mount,

  # Signals: from whoever minds containers on the host, and among themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (receive) peer=berth-*,{own}
  signal (send, receive) peer={DEFAULT},

  # Debuggers and ps: of the host on us, of ours on ours.
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (read, readby, trace, tracedby) peer={DEFAULT},

  # /proc: processes may write about themselves; settings stay as they are, but for those of IPC namespaces.
  deny /proc/* w,
  deny /proc/{{[^0-9s]*,s[^y]*,sy[^s]*,sys[^/]*}}/** w,
  deny /proc/sys/{{[^k]*,k[^e]*}} w,
  deny /proc/sys/{{[^k]*,k[^e]*}}/** w,
  deny /proc/sys/kernel/{{[^s]*,s[^eh]*,se[^m]*,sh[^m]*}} w,
  deny /proc/sys/kernel/*/** w,
  deny /proc/{{kcore,sysrq-trigger}} rwklx,

  # /sys: cgroups only.
  deny /sys/{{[^f]*,f[^s]*,fs/[^c]*,fs/c[^g]*,fs/cg[^r]*}}/** wklx,
  deny /sys/{{firmware,kernel/security,devices/virtual/powercap}}/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn which_profile() {
        for (option, privileged, wanted) in [
            (None, false, Wish::Default),
            (None, true, Wish::Unconfined),
            (Some("unconfined"), false, Wish::Unconfined),
            (Some("unconfined"), true, Wish::Unconfined),
            (Some("mine"), false, Wish::Named("mine")),
            // Asked for by name, it holds for privileged ones too.
            (Some("mine"), true, Wish::Named("mine")),
            (Some("docker-default"), true, Wish::Named("docker-default")),
        ] {
            assert_eq!(wish(option, privileged), wanted, "{option:?}, privileged: {privileged}");
        }
    }

    #[test]
    fn own_label() {
        for (text, name) in [
            ("unconfined\n", None),
            ("", None),
            ("/usr/bin/berth-engine (enforce)\n", Some("/usr/bin/berth-engine")),
            ("snap.berth.engine (complain)\0", Some("snap.berth.engine")),
            ("a,b} (enforce)", None),
        ] {
            assert_eq!(peer(text).as_deref(), name, "{text:?}");
        }
        assert!(profile(Some("snap.x")).contains("signal (receive) peer=snap.x,"));
        assert!(!profile(None).contains("{{") && !profile(None).contains("}}"));
    }

    /// A machine that has it: what is loaded, and a parser that is a shell script of `commands` with the folder as $DIR.
    fn machine(loaded: &str, commands: Option<&str>) -> (tempfile::TempDir, AppArmor) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("profiles"), loaded).unwrap();
        let parser = folder.path().join("apparmor_parser");
        if let Some(commands) = commands {
            let script = format!("#!/bin/sh\nDIR={}\n{commands}\n", folder.path().display());
            fs::write(&parser, script).unwrap();
            fs::set_permissions(&parser, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let apparmor = AppArmor {
            policy: Some(folder.path().to_owned()),
            parsers: vec![PathBuf::from("/nowhere/apparmor_parser"), parser],
            label: None,
            hidden: false,
            loading: Mutex::default(),
            warned: AtomicBool::new(false),
        };
        (folder, apparmor)
    }

    const WORKS: &str =
        "echo \"$@\" >>$DIR/calls; cat >$DIR/text; sleep 0.1; echo 'docker-default (enforce)' >>$DIR/profiles";

    #[tokio::test]
    async fn loaded_once_by_the_first_that_need_it() {
        let (folder, apparmor) = machine("other (enforce)\n", Some(WORKS));
        let (one, two) = tokio::join!(apparmor.settle(None, false), apparmor.settle(None, false));
        assert_eq!((one.unwrap().as_deref(), two.unwrap().as_deref()), (Some(DEFAULT), Some(DEFAULT)));
        let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
        assert_eq!(calls, "--add --skip-cache --quiet\n", "one call, and none that replaces");
        assert_eq!(fs::read_to_string(folder.path().join("text")).unwrap(), profile(None));
        // Gone again, as after an upgrade of the package: it is loaded again.
        fs::write(folder.path().join("profiles"), "").unwrap();
        assert_eq!(apparmor.settle(Some(DEFAULT), true).await.unwrap().as_deref(), Some(DEFAULT));
        assert!(apparmor.protects().await);
    }

    #[tokio::test]
    async fn who_needs_no_default_profile_loads_none() {
        let (folder, apparmor) = machine("mine (complain)\na//b (enforce)\n", Some(WORKS));
        assert_eq!(apparmor.settle(None, true).await.unwrap().as_deref(), Some(UNCONFINED));
        assert_eq!(apparmor.settle(Some(UNCONFINED), false).await.unwrap().as_deref(), Some(UNCONFINED));
        for name in ["mine", "a//b", ":other:thing", "mine//&a"] {
            assert_eq!(apparmor.settle(Some(name), false).await.unwrap().as_deref(), Some(name));
        }
        let error = apparmor.settle(Some("yours"), false).await.unwrap_err();
        assert!(error.to_string().starts_with("AppArmor profile \"yours\" is not loaded: load it"), "{error}");
        assert!(!folder.path().join("calls").exists());
    }

    #[tokio::test]
    async fn one_that_is_loaded_stays() {
        let (folder, apparmor) = machine("docker-default (enforce)\n", Some(WORKS));
        assert_eq!(apparmor.settle(None, false).await.unwrap().as_deref(), Some(DEFAULT));
        assert!(!folder.path().join("calls").exists());
    }

    #[tokio::test]
    async fn without_a_parser() {
        let (folder, apparmor) = machine("", None);
        assert_eq!(apparmor.settle(None, false).await.unwrap(), None);
        assert!(apparmor.warned.load(Ordering::Relaxed) && !apparmor.protects().await);
        assert!(apparmor.warning().await.unwrap().contains("no apparmor_parser (package apparmor)"));
        apparmor.settle(Some(DEFAULT), false).await.unwrap_err();
        // Docker's, say, which needs no parser of ours.
        fs::write(folder.path().join("profiles"), "docker-default (enforce)\n").unwrap();
        assert_eq!(apparmor.settle(None, false).await.unwrap().as_deref(), Some(DEFAULT));
        assert!(apparmor.warning().await.is_none() && apparmor.protects().await);
    }

    #[tokio::test]
    async fn a_parser_that_fails() {
        let (_folder, apparmor) = machine("", Some("echo Permission denied; echo '  no luck' >&2; exit 3"));
        let error = apparmor.settle(None, false).await.unwrap_err();
        assert!(error.to_string().contains("docker-default could not be loaded: /"), "{error}");
        assert!(error.to_string().ends_with("apparmor_parser: no luck"), "{error}");
        // Somebody else was faster.
        let (_folder, apparmor) = machine("", Some("echo 'docker-default (enforce)' >$DIR/profiles; exit 17"));
        assert_eq!(apparmor.settle(None, false).await.unwrap().as_deref(), Some(DEFAULT));
    }

    #[tokio::test]
    async fn where_there_is_none() {
        let off = AppArmor {
            policy: None,
            parsers: Vec::new(),
            label: None,
            hidden: false,
            loading: Mutex::default(),
            warned: AtomicBool::new(false),
        };
        for privileged in [false, true] {
            assert_eq!(off.settle(None, privileged).await.unwrap(), None);
        }
        assert_eq!(off.settle(Some(UNCONFINED), false).await.unwrap(), None);
        assert!(off.warning().await.is_none() && !off.protects().await && !off.warned.load(Ordering::Relaxed));
        let hidden = AppArmor { hidden: true, ..off };
        assert_eq!(hidden.settle(None, false).await.unwrap(), None);
        assert!(hidden.warning().await.unwrap().contains("securityfs") && hidden.warned.load(Ordering::Relaxed));
    }
}
