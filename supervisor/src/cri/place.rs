//! What a sandbox has on this machine: pinned namespaces, the files that its containers see, /dev/shm.
//!
//! ```text
//! RUN/supervisor/sandboxes/ID/
//!   net ipc uts user         the pod's namespaces, pinned; none where it shares the node's
//!   hosts hostname resolv.conf
//!   shm                      a tmpfs, unless the pod shares the node's ipc
//! ```
//! Everything here may be half there after a crash, so everything is removed whether or not it is known to be there.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{gethostname, sethostname},
};
use proto::runtime::v1 as cri;
use sys::userns::{Maps, Range};

use super::{error::CriError, spec};

/// Enough for a few system calls.
const STACK: usize = 128 * 1024;
/// As large as that of runtimes without CRI (`docker run --shm-size`'s default).
const SHM: &str = "mode=1777,size=65536k";
/// What a node without /etc/hosts would have in it.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// A namespace that can be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Users. The others are its own then: its root has power over them.
    User,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Processes; made by the first of them and pinned then ([`Place::pin_processes`]).
    Pid,
}

impl Kind {
    const ALL: [Self; 5] = [Self::User, Self::Net, Self::Ipc, Self::Uts, Self::Pid];

    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
        }
    }

    fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::Pid => CloneFlags::CLONE_NEWPID,
        }
    }
}

/// The namespaces that a pod has for itself. One on the node's network has the node's host name, too.
pub(super) fn own(namespaces: &cri::NamespaceOption) -> Vec<Kind> {
    let node = |mode: i32| mode == cri::NamespaceMode::Node as i32;
    let mut own = Vec::new();
    if namespaces.userns_options.as_ref().is_some_and(|users| users.mode == cri::NamespaceMode::Pod as i32) {
        own.push(Kind::User);
    }
    if !node(namespaces.network) {
        own.extend([Kind::Net, Kind::Uts]);
    }
    if !node(namespaces.ipc) {
        own.push(Kind::Ipc);
    }
    own
}

/// The ids of a pod's own user namespace.
fn maps(namespaces: &cri::NamespaceOption) -> Option<Maps> {
    let users = namespaces.userns_options.as_ref().filter(|_| own(namespaces).contains(&Kind::User))?;
    let ranges = |ids: &[cri::IdMapping]| {
        let range = |one: &cri::IdMapping| Range { inside: one.container_id, outside: one.host_id, length: one.length };
        ids.iter().map(range).collect()
    };
    Some(Maps { uids: ranges(&users.uids), gids: ranges(&users.gids) })
}

/// Whether the containers of a pod see each other's processes.
pub(super) fn shares_processes(namespaces: &cri::NamespaceOption) -> bool {
    namespaces.pid == cri::NamespaceMode::Pod as i32
}

/// A sandbox's folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    id: String,
    folder: PathBuf,
}

impl Place {
    /// That of sandbox `id` below `folder`. Touches nothing.
    pub(super) fn at(folder: &Path, id: &str) -> Self {
        Self { id: id.to_owned(), folder: folder.join(id) }
    }

    /// Where a namespace is pinned.
    pub(super) fn pin(&self, kind: Kind) -> PathBuf {
        self.folder.join(kind.name())
    }

    /// The pin, if the pod has such a namespace of its own.
    pub(super) fn pinned(&self, kind: Kind, namespaces: &cri::NamespaceOption) -> Option<PathBuf> {
        let has = match kind {
            Kind::Pid => shares_processes(namespaces),
            kind => own(namespaces).contains(&kind),
        };
        has.then(|| self.pin(kind))
    }

    /// Pins the pid namespace of a process.
    pub(super) fn pin_processes(&self, pid: u32) -> Result<(), CriError> {
        let pin = self.pin(Kind::Pid);
        let namespace =
            fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(self.error("find the namespace for", &pin))?;
        sys::netns::pin(namespace.as_fd(), &pin)
            .map_err(|error| self.error("pin a namespace at", &pin)(error.cause.into()))
    }

    /// What containers see as /etc/hosts.
    pub(super) fn hosts(&self) -> PathBuf {
        self.folder.join("hosts")
    }

    /// What containers see as /etc/hostname.
    pub(super) fn hostname(&self) -> PathBuf {
        self.folder.join("hostname")
    }

    /// What containers see as /etc/resolv.conf.
    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.folder.join("resolv.conf")
    }

    /// What containers see as /dev/shm.
    pub(super) fn shm(&self, namespaces: &cri::NamespaceOption) -> PathBuf {
        match namespaces.ipc == cri::NamespaceMode::Node as i32 {
            true => "/dev/shm".into(),
            false => self.folder.join("shm"),
        }
    }

    fn error(&self, what: &'static str, at: &Path) -> impl FnOnce(io::Error) -> CriError {
        let (id, at) = (self.id.clone(), at.to_owned());
        move |cause| CriError::Io { id, what, at, cause }
    }

    /// Makes namespaces and folder. What an earlier attempt has left goes first.
    pub(super) fn make(
        &self,
        config: &cri::PodSandboxConfig,
        namespaces: &cri::NamespaceOption,
    ) -> Result<(), CriError> {
        self.remove()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.folder)
            .map_err(self.error("make folder", &self.folder))?;
        proto::fault!("supervisor.sandbox.folder_made");
        let kinds = own(namespaces);
        let hostname = match (config.hostname.as_str(), kinds.contains(&Kind::Uts)) {
            (name, true) if !name.is_empty() => name.to_owned(),
            _ => gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into()),
        };
        let failed = |cause| CriError::Spec { id: self.id.clone(), cause };
        let sysctls = spec::sysctls(config).map_err(failed)?;
        let maps = maps(namespaces);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("sandbox".into()).stack_size(STACK);
            let made = thread.spawn_scoped(scope, || {
                self.namespaces(&kinds, maps.as_ref())?;
                self.furnish(kinds.contains(&Kind::Uts).then_some(&hostname), &sysctls)
            });
            made.map_err(self.error("start a thread for", &self.folder))?.join().map_err(|_| CriError::Panic)?
        })?;
        proto::fault!("supervisor.sandbox.namespaces_pinned");
        self.files(config, &hostname)?;
        if namespaces.ipc != cri::NamespaceMode::Node as i32 {
            let shm = self.shm(namespaces);
            fs::DirBuilder::new().mode(0o711).create(&shm).map_err(self.error("make folder", &shm))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
            let root = maps.as_ref().and_then(|maps| maps.outside(0, 0));
            let options = root.map_or(SHM.to_owned(), |(uid, gid)| format!("{SHM},uid={uid},gid={gid}"));
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|errno| self.error("mount a tmpfs at", &shm)(errno.into()))?;
        }
        proto::fault!("supervisor.sandbox.files_written");
        Ok(())
    }

    // On a thread of its own, which is in the new namespaces then, but for that of users.
    fn namespaces(&self, kinds: &[Kind], maps: Option<&Maps>) -> Result<(), CriError> {
        let others = kinds.iter().filter(|kind| **kind != Kind::User);
        let flags = others.clone().fold(CloneFlags::empty(), |all, kind| all | kind.flag());
        let failed = |what| move |errno: Errno| self.error(what, &self.folder)(errno.into());
        let Some(maps) = maps else {
            unshare(flags).map_err(failed("make the namespaces of"))?;
            return self.pin_all(kinds, "/proc/thread-self");
        };
        let made = sys::userns::make(maps, flags.bits() as u64, |pid| Ok(self.pin_all(kinds, &format!("/proc/{pid}"))));
        made.map_err(failed("make the user namespace of"))??;
        proto::fault!("supervisor.sandbox.user_namespace_pinned");
        for kind in others {
            let namespace = fs::File::open(self.pin(*kind)).map_err(self.error("open", &self.pin(*kind)))?;
            sys::ns::enter(&namespace, kind.flag().bits() as u64).map_err(failed("enter the namespaces of"))?;
        }
        Ok(())
    }

    // What their owner would do, by a thread that is in them.
    fn furnish(&self, hostname: Option<&String>, sysctls: &BTreeMap<String, String>) -> Result<(), CriError> {
        if let Some(hostname) = hostname {
            sethostname(hostname).map_err(|errno| self.error("set the host name of", &self.folder)(errno.into()))?;
        }
        for (name, value) in sysctls {
            let path = Path::new("/proc/sys").join(name);
            fs::write(&path, value).map_err(self.error("set sysctl", &path))?;
        }
        Ok(())
    }

    fn pin_all(&self, kinds: &[Kind], of: &str) -> Result<(), CriError> {
        for kind in kinds {
            let pin = self.pin(*kind);
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&pin)
                .map_err(self.error("make the pin", &pin))?;
            let own = format!("{of}/ns/{}", kind.name());
            mount(Some(own.as_str()), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| self.error("pin a namespace at", &pin)(errno.into()))?;
        }
        Ok(())
    }

    fn files(&self, config: &cri::PodSandboxConfig, hostname: &str) -> Result<(), CriError> {
        let hosts = fs::read("/etc/hosts").unwrap_or_else(|_| HOSTS.into());
        let names = match config.dns_config.as_ref().and_then(resolv_conf) {
            Some(text) => text.into_bytes(),
            None => fs::read("/etc/resolv.conf").unwrap_or_default(),
        };
        let files = [
            (self.hosts(), hosts),
            (self.hostname(), format!("{hostname}\n").into_bytes()),
            (self.resolv_conf(), names),
        ];
        for (path, content) in files {
            let written = fs::write(&path, content).and_then(|()| {
                // Whatever our umask is: everybody in the pod reads them.
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            });
            written.map_err(self.error("write", &path))?;
        }
        Ok(())
    }

    /// Whether every namespace is where it was pinned: a machine that was started anew has none.
    pub(super) fn is_whole(&self, namespaces: &cri::NamespaceOption) -> bool {
        own(namespaces).into_iter().all(|kind| sys::netns::is_pinned(&self.pin(kind)))
    }

    /// Takes the namespaces and the tmpfs away; the files stay, for who asks later.
    pub(super) fn take_down(&self) -> Result<(), CriError> {
        for kind in Kind::ALL {
            let pin = self.pin(kind);
            unmount(&pin).and_then(|()| absent(fs::remove_file(&pin))).map_err(self.error("unpin", &pin))?;
        }
        let shm = self.folder.join("shm");
        unmount(&shm).map_err(self.error("unmount", &shm))
    }

    /// Takes all of it away.
    pub(super) fn remove(&self) -> Result<(), CriError> {
        self.take_down()?;
        // Nothing is mounted in it any more: else the removal would go on into it.
        absent(fs::remove_dir_all(&self.folder)).map_err(self.error("remove", &self.folder))
    }
}

/// What isn't there any more needs no removal.
pub(super) fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Unmounts everything on a folder or file, if something is.
pub(super) fn unmount(at: &Path) -> io::Result<()> {
    loop {
        match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What resolv.conf(5) is to be; `None` if nothing was asked for: then it is the node's.
fn resolv_conf(dns: &cri::DnsConfig) -> Option<String> {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    (!text.is_empty()).then_some(text)
}

/// Refuses what would break out of its line in a file, or isn't a host name.
pub(super) fn check(config: &cri::PodSandboxConfig) -> Result<(), CriError> {
    let dns = config.dns_config.clone().unwrap_or_default();
    for (what, words) in [("server", &dns.servers), ("search domain", &dns.searches), ("option", &dns.options)] {
        if let Some(bad) =
            words.iter().find(|word| word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()))
        {
            return Err(CriError::Invalid(format!("DNS {what} {bad:?} is not one word")));
        }
    }
    let hostname = &config.hostname;
    if hostname.len() > 64 || hostname.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(CriError::Invalid(format!("host name {hostname:?} is longer than 64 bytes or not one word")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_resolv_conf() {
        assert_eq!(resolv_conf(&cri::DnsConfig::default()), None);
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:5".into()],
        };
        let wanted = "search a.example b.example\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns).as_deref(), Some(wanted));
    }

    #[test]
    fn what_would_break_out_of_a_line_is_refused() {
        let with = |server: &str, hostname: &str| cri::PodSandboxConfig {
            dns_config: Some(cri::DnsConfig { servers: vec![server.into()], ..Default::default() }),
            hostname: hostname.into(),
            ..Default::default()
        };
        assert!(check(&with("10.0.0.10", "web")).is_ok());
        for (server, hostname) in
            [("1.1.1.1\nnameserver 6.6.6.6", "web"), ("", "web"), ("1.1.1.1", "a b"), ("1.1.1.1", "a\n")]
        {
            assert!(check(&with(server, hostname)).is_err(), "{server:?} {hostname:?}");
        }
    }

    #[test]
    fn namespaces_of_pods() {
        let with = |network, ipc| cri::NamespaceOption { network, ipc, ..Default::default() };
        let (pod, node) = (cri::NamespaceMode::Pod as i32, cri::NamespaceMode::Node as i32);
        assert_eq!(own(&with(pod, pod)), [Kind::Net, Kind::Uts, Kind::Ipc]);
        assert_eq!(own(&with(node, pod)), [Kind::Ipc]);
        assert_eq!(own(&with(node, node)), []);
        let mut users = with(pod, pod);
        users.userns_options = Some(cri::UserNamespace { mode: node, ..Default::default() });
        assert_eq!((own(&users).len(), maps(&users)), (3, None));
        let id = cri::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
        users.userns_options = Some(cri::UserNamespace { mode: pod, uids: vec![id], gids: vec![id] });
        assert_eq!(own(&users), [Kind::User, Kind::Net, Kind::Uts, Kind::Ipc]);
        assert_eq!(maps(&users), Maps::parse("0:100000:65536", "0:100000:65536"));
    }

    #[test]
    fn a_place_is_made_and_goes_whole() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path(), "pod");
        let linux = cri::LinuxPodSandboxConfig {
            sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())].into(),
            ..Default::default()
        };
        let config = cri::PodSandboxConfig { hostname: "web".into(), linux: Some(linux), ..Default::default() };
        let id = cri::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
        let users = cri::UserNamespace { uids: vec![id], gids: vec![id], ..Default::default() };
        for users in [None, Some(users)] {
            lives(&place, &config, &cri::NamespaceOption { userns_options: users, ..Default::default() });
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    fn lives(place: &Place, config: &cri::PodSandboxConfig, namespaces: &cri::NamespaceOption) {
        place.make(config, namespaces).unwrap();
        assert!(place.is_whole(namespaces));
        assert_eq!(fs::read_to_string(place.hostname()).unwrap(), "web\n");
        let shm = nix::sys::statfs::statfs(&place.shm(namespaces)).unwrap();
        assert_eq!(shm.filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(place.shm(namespaces)).unwrap());
        assert_eq!(owner, if namespaces.userns_options.is_some() { 100_000 } else { 0 });
        let net = sys::netns::open(&place.pin(Kind::Net)).unwrap().unwrap();
        let inside = sys::netns::within(std::os::fd::AsFd::as_fd(&net), || {
            fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        });
        assert_eq!(inside.unwrap().unwrap(), "0\n");
        drop(net);
        // Anew over what is there, as after a crash.
        place.make(config, namespaces).unwrap();
        place.take_down().unwrap();
        assert!(!place.is_whole(namespaces) && place.hosts().exists());
        place.remove().unwrap();
        place.remove().unwrap();
    }
}
