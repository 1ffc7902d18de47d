//! Options of the `local` driver: what mount(2) is to mount as a volume (`type`, `device`, `o`), in Docker's words. Network file
//! systems are given the address that a name stands for: the kernel doesn't look names up.

use crate::config::parse_size;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::{IpAddr, ToSocketAddrs},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};
use sys::path::{Within, open_within};

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
    #[error("port not allowed in CIFS device URL, include 'port' in 'o='")]
    Port,
    /// The kernel would cut them off without a word.
    #[error("mount options of {0} bytes: the kernel takes {LONGEST}")]
    Long(usize),
}

/// A page with a NUL at its end is what mount(2) reads; pages are nowhere smaller.
const LONGEST: usize = 4095;

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
    let text = |key: &str| options.get(key).map_or("", String::as_str);
    if is_cifs(text("type")) && host_of(text("device")).is_some_and(|host| port_of(host).is_some()) {
        return Err(OptionsError::Port);
    }
    let long = text("o").split(',').filter(|word| flag(word).is_none()).map(|word| word.len() + 1).sum::<usize>();
    if long > LONGEST + 1 {
        return Err(OptionsError::Long(long - 1));
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
    let address = |host: &str| {
        let failed = |error: io::Error| {
            io::Error::other(format!("error resolving passed in network volume address: lookup {host}: {error}"))
        };
        host.parse().or_else(|_| resolve(host)).map_err(failed)
    };
    let (mut flags, mut propagation) = (MsFlags::empty(), MsFlags::empty());
    let (mut data, mut addressed) = (Vec::new(), false);
    for word in text("o").split(',').filter(|word| !word.is_empty()) {
        match flag(word) {
            Some((flag, true)) if is_propagation(flag) => propagation |= flag,
            Some((flag, true)) => flags |= flag,
            Some((flag, false)) => flags &= !flag,
            None => match word.split_once('=') {
                Some(("addr", host)) if matches!(kind.as_str(), "nfs" | "nfs4") || is_cifs(&kind) => {
                    addressed = true;
                    data.push(format!("addr={}", address(host)?));
                }
                _ => data.push(word.to_owned()),
            },
        }
    }
    // The server keeps the name that it is called by if the address is told besides.
    if is_cifs(&kind)
        && !addressed
        && let Some(host) = host_of(&device)
    {
        device = device.replacen(host, &address(host)?.to_string(), 1);
    }
    Ok(Call { kind, device, flags, propagation, data: data.join(",") })
}

fn is_cifs(kind: &str) -> bool {
    matches!(kind, "cifs" | "smb3")
}

/// The server of `//server/share`.
fn host_of(device: &str) -> Option<&str> {
    let (_, rest) = device.split_once("//")?;
    rest.split('/').next().filter(|host| !host.is_empty())
}

/// What is behind the last colon of `host:port`, not of an address of IPv6.
fn port_of(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    (!name.contains(':') || name.ends_with(']')).then_some(port).filter(|port| !port.is_empty())
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

/// Mounts, unless something is mounted there already, and looks at what is there then. May take as long as a server likes.
pub fn mount_at(options: &BTreeMap<String, String>, at: &Path) -> io::Result<()> {
    if !is_mounted(at)? {
        mount_anew(options, at)?;
    }
    // That its server went away meanwhile is better found out here than by what starts the container.
    std::fs::metadata(at)
        .map(drop)
        .map_err(|error| io::Error::other(format!("failed to mount local volume: look at {}: {error}", at.display())))
}

fn mount_anew(options: &BTreeMap<String, String>, at: &Path) -> io::Result<()> {
    let call = call(options, |host| {
        let found: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
        // As dockerd does: of several, one of IPv4.
        let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
        first.copied().ok_or_else(|| io::Error::other("it has no address"))
    })?;
    let failed = |error: Errno| {
        io::Error::other(format!(
            "failed to mount local volume: mount {}:{}, flags: {:#x}{}: {}",
            call.device,
            at.display(),
            call.flags.bits(),
            if call.data.is_empty() { String::new() } else { format!(", data: {}", without_secrets(&call.data)) },
            error.desc().to_lowercase(),
        ))
    };
    if call.data.len() > LONGEST {
        return Err(io::Error::other(format!("failed to mount local volume: {}", OptionsError::Long(call.data.len()))));
    }
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

/// What a volume's options ask for, fit to be shown.
pub fn words(options: &BTreeMap<String, String>) -> String {
    let text = |key: &str| options.get(key).map_or("", String::as_str);
    format!("{} of type {}, options: {}", text("device"), text("type"), without_secrets(text("o")))
}

fn without_secrets(data: &str) -> String {
    let shown = |word: &str| match word.split_once('=') {
        Some((key @ ("password" | "pass" | "password2" | "secret"), _)) => format!("{key}=********"),
        _ => word.to_owned(),
    };
    data.split(',').map(shown).collect::<Vec<_>>().join(",")
}

/// Whether something is mounted at this folder. The look-up ends in front of it: to look at what is mounted could mean to wait for a server.
pub fn is_mounted(at: &Path) -> io::Result<bool> {
    let Some((parent, name)) = at.parent().zip(at.file_name()) else { return Ok(true) };
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let opened = open(parent, flags | OFlag::O_DIRECTORY, Mode::empty())
        .and_then(|parent| open_within(parent, name, flags | OFlag::O_NOFOLLOW, 0, Within::Plain));
    match opened {
        Ok(_) | Err(Errno::ENOENT) => Ok(false),
        Err(Errno::EXDEV) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Where something is mounted, in the order of the table.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(|point| OsString::from_vec(unescaped(point)).into()).collect())
}

/// White space and backslashes are written as `\` with three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
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
            (
                &[("type", "cifs"), ("device", "//server:445/share")],
                "port not allowed in CIFS device URL, include 'port' in 'o='",
            ),
            (
                &[("type", "nfs"), ("device", ":/e"), ("o", &"a".repeat(4096))],
                "mount options of 4096 bytes: the kernel takes 4095",
            ),
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
        assert_eq!(made.device, "//server/share");
        assert_eq!(without_secrets(&made.data), "addr=10.0.0.7,username=a,password=********");
        let cifs = options(&[("type", "cifs"), ("device", "//server/share/below"), ("o", "username=a")]);
        assert_eq!(call(&cifs, resolve).unwrap().device, "//10.0.0.7/share/below");
        for nobody in [
            options(&[("type", "nfs"), ("device", ":/e"), ("o", "addr=nobody")]),
            options(&[("type", "cifs"), ("device", "//nobody/e")]),
        ] {
            assert!(call(&nobody, resolve).unwrap_err().to_string().contains("lookup nobody"));
        }
        // Others' words are nobody's to understand.
        let other = options(&[("type", "btrfs"), ("device", "/dev/x"), ("o", "subvol=a,noatime,addr=server,odd")]);
        let made = call(&other, resolve).unwrap();
        assert_eq!((made.flags, made.data.as_str()), (MsFlags::MS_NOATIME, "subvol=a,addr=server,odd"));
        check(&options(&[("type", "nfs"), ("device", ":/e"), ("o", &format!("ro,{}", "a".repeat(4095)))])).unwrap();
    }

    #[test]
    fn mounts_are_found_and_read_as_they_are_written() {
        assert_eq!(unescaped(br"/a\040b\134c\9"), br"/a b\c\9");
        assert!(is_mounted(Path::new("/proc")).unwrap() && is_mounted(Path::new("/")).unwrap());
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_mounted(folder.path()).unwrap() && !is_mounted(&folder.path().join("none/none")).unwrap());
    }
}
