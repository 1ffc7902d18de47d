//! Options of the `local` driver: what mount(2) is to mount as a volume (`type`, `device`, `o`), in Docker's words. Network file
//! systems are given the address that a name stands for: the kernel doesn't look names up.

use crate::{config::parse_size, containers::archive::mount_id};
use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    path::Path,
};

/// What is wrong with options.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionsError {
    #[error("invalid option: {0:?}")]
    Unknown(String),
    #[error("missing required option: {0:?}")]
    Missing(&'static str),
    #[error("invalid option: {0:?} holds a NUL character")]
    Nul(String),
    #[error("invalid size: {0:?}")]
    Size(String),
    #[error("size can't be limited of what is mounted: leave it out, or type, device and o")]
    SizeOfMount,
}

/// Which options go together.
pub fn check(options: &BTreeMap<String, String>) -> Result<(), OptionsError> {
    for (key, value) in options {
        match key.as_str() {
            "type" | "o" | "device" => {}
            "size" if parse_size(value).is_none() => return Err(OptionsError::Size(value.clone())),
            "size" => {}
            _ => return Err(OptionsError::Unknown(key.clone())),
        }
        if value.contains('\0') {
            return Err(OptionsError::Nul(key.clone()));
        }
    }
    if size(options).is_some() && options.contains_key("type") {
        return Err(OptionsError::SizeOfMount);
    }
    let needs: [(&str, &[&'static str]); 3] =
        [("device", &["type"]), ("type", &["device"]), ("o", &["device", "type"])];
    for (key, others) in needs {
        if let Some(missing) = others.iter().find(|other| options.contains_key(key) && !options.contains_key(**other)) {
            return Err(OptionsError::Missing(missing));
        }
    }
    Ok(())
}

/// The most bytes that a volume may take, if that is limited.
pub fn size(options: &BTreeMap<String, String>) -> Option<u64> {
    options.get("size").and_then(|text| parse_size(text)).filter(|bytes| *bytes > 0)
}

/// What is handed to mount(2).
#[derive(Debug, PartialEq, Eq)]
struct Call {
    kind: String,
    device: String,
    flags: MsFlags,
    propagation: MsFlags,
    data: String,
}

/// Words of mount(8) are flags, everything else is the file system's own.
fn call(options: &BTreeMap<String, String>, resolve: impl Fn(&str) -> io::Result<IpAddr>) -> io::Result<Call> {
    let text = |key: &str| options.get(key).cloned().unwrap_or_default();
    let (kind, mut device) = (text("type"), text("device"));
    let (mut flags, mut propagation) = (MsFlags::empty(), MsFlags::empty());
    let mut data = Vec::new();
    for word in text("o").split(',').filter(|word| !word.is_empty()) {
        match flag(word) {
            Some((flag, true)) if is_propagation(flag) => propagation |= flag,
            Some((flag, true)) => flags |= flag,
            Some((flag, false)) => flags &= !flag,
            None => match word.split_once('=') {
                Some(("addr", host)) if matches!(kind.as_str(), "nfs" | "nfs4" | "cifs") => {
                    let address = host.parse().or_else(|_| resolve(host))?;
                    data.push(format!("addr={address}"));
                    if kind == "cifs" {
                        device = device.replacen(host, &address.to_string(), 1);
                    }
                }
                _ => data.push(word.to_owned()),
            },
        }
    }
    Ok(Call { kind, device, flags, propagation, data: data.join(",") })
}

fn is_propagation(flag: MsFlags) -> bool {
    flag.intersects(MsFlags::MS_SHARED | MsFlags::MS_SLAVE | MsFlags::MS_PRIVATE | MsFlags::MS_UNBINDABLE)
}

/// A word that is a flag, and whether it sets or clears it.
fn flag(word: &str) -> Option<(MsFlags, bool)> {
    let tree = MsFlags::MS_REC;
    Some(match word {
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "remount" => (MsFlags::MS_REMOUNT, true),
        "mand" => (MsFlags::MS_MANDLOCK, true),
        "nomand" => (MsFlags::MS_MANDLOCK, false),
        "atime" => (MsFlags::MS_NOATIME, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND | tree, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "shared" => (MsFlags::MS_SHARED, true),
        "rshared" => (MsFlags::MS_SHARED | tree, true),
        "slave" => (MsFlags::MS_SLAVE, true),
        "rslave" => (MsFlags::MS_SLAVE | tree, true),
        "private" => (MsFlags::MS_PRIVATE, true),
        "rprivate" => (MsFlags::MS_PRIVATE | tree, true),
        "unbindable" => (MsFlags::MS_UNBINDABLE, true),
        "runbindable" => (MsFlags::MS_UNBINDABLE | tree, true),
        _ => return None,
    })
}

/// Mounts; nothing is done if something is mounted there already.
pub fn mount_at(options: &BTreeMap<String, String>, at: &Path) -> io::Result<()> {
    if is_mounted(at) {
        return Ok(());
    }
    let call = call(options, |host| {
        let found = (host, 0).to_socket_addrs()?.next();
        found.map(|address| address.ip()).ok_or_else(|| io::Error::other(format!("{host} has no address")))
    })?;
    let failed = |error: nix::errno::Errno| {
        io::Error::other(format!(
            "failed to mount local volume: mount {}:{}, flags: {:#x}{}: {}",
            call.device,
            at.display(),
            call.flags.bits(),
            if call.data.is_empty() { String::new() } else { format!(", data: {}", without_secrets(&call.data)) },
            error.desc().to_lowercase(),
        ))
    };
    let none: Option<&str> = None;
    let data = (!call.data.is_empty()).then_some(call.data.as_str());
    mount(Some(call.device.as_str()), at, Some(call.kind.as_str()), call.flags, data).map_err(failed)?;
    let undo = |error| {
        let _ = umount2(at, MntFlags::MNT_DETACH);
        failed(error)
    };
    // A bind takes its flags by a second call only.
    let second = call.flags - MsFlags::MS_BIND - MsFlags::MS_REC;
    if call.flags.contains(MsFlags::MS_BIND) && !second.is_empty() {
        mount(none, at, none, second | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, none).map_err(undo)?;
    }
    if !call.propagation.is_empty() {
        mount(none, at, none, call.propagation, none).map_err(undo)?;
    }
    Ok(())
}

fn without_secrets(data: &str) -> String {
    let shown = |word: &str| match word.split_once('=') {
        Some((key @ ("password" | "pass" | "password2"), _)) => format!("{key}=********"),
        _ => word.to_owned(),
    };
    data.split(',').map(shown).collect::<Vec<_>>().join(",")
}

/// Whether something is mounted at this folder. By the number of the mount: a bind from the same file system has its device.
pub fn is_mounted(at: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mount = |path: &Path| open(path, flags, Mode::empty()).ok().and_then(|file| mount_id(&file));
    let (own, outer) = (mount(at), at.parent().and_then(mount));
    own.is_some() && own != outer
}

/// Unmounts everything that is mounted there.
pub fn unmount(at: &Path) -> io::Result<()> {
    match umount2(at, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn which_go_together() {
        check(&options(&[])).unwrap();
        check(&options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")])).unwrap();
        check(&options(&[("size", "1g")])).unwrap();
        assert_eq!(size(&options(&[("size", "1g")])), Some(1 << 30));
        assert_eq!((size(&options(&[("size", "0")])), size(&options(&[]))), (None, None));
        for (list, text) in [
            (&[("foo", "x")][..], "invalid option: \"foo\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("device", "tmpfs")], "missing required option: \"type\""),
            (&[("o", "bind"), ("type", "none")], "missing required option: \"device\""),
            (&[("size", "much")], "invalid size: \"much\""),
        ] {
            assert_eq!(check(&options(list)).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn words_become_flags_data_and_addresses() {
        let resolve = |host: &str| match host {
            "server" => Ok("10.0.0.7".parse().unwrap()),
            _ => Err(io::Error::other("unknown host")),
        };
        let made = call(&options(&[("type", "none"), ("device", "/srv"), ("o", "bind,ro,rslave")]), resolve).unwrap();
        assert_eq!(made.flags, MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        assert_eq!((made.propagation, made.data.as_str()), (MsFlags::MS_SLAVE | MsFlags::MS_REC, ""));
        let nfs = options(&[("type", "nfs"), ("device", ":/export"), ("o", "addr=server,rw,nfsvers=4")]);
        assert_eq!(call(&nfs, resolve).unwrap().data, "addr=10.0.0.7,nfsvers=4");
        let cifs =
            options(&[("type", "cifs"), ("device", "//server/share"), ("o", "addr=server,username=a,password=b")]);
        let made = call(&cifs, resolve).unwrap();
        assert_eq!(made.device, "//10.0.0.7/share");
        assert_eq!(without_secrets(&made.data), "addr=10.0.0.7,username=a,password=********");
        assert!(call(&options(&[("type", "nfs"), ("device", ":/e"), ("o", "addr=nobody")]), resolve).is_err());
    }
}
