//! Kernel settings of networks, by way of /proc/sys/net. Which namespace a path there means is decided by the thread
//! that opens it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A setting that couldn't be made.
#[derive(Debug, thiserror::Error)]
#[error("set {} to {value}", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: String,
    #[source]
    cause: io::Error,
}

/// Where settings of links are, one folder for each.
const LINKS_V4: &str = "/proc/sys/net/ipv4/conf";
const LINKS_V6: &str = "/proc/sys/net/ipv6/conf";

/// Routes IPv4 packets between links: without it no container reaches anything beyond the bridge.
pub(crate) fn forward_packets() -> Result<(), SysctlError> {
    set(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")
}

/// Routes IPv6 packets between links. A host that forwards is a router and listens to others no more, unless it is told to: one that got
/// its own address or route that way keeps doing so.
pub(crate) fn forward_ipv6_packets() -> Result<(), SysctlError> {
    let all = Path::new(LINKS_V6).join("all/forwarding");
    if fs::read(&all).is_ok_and(|current| current.trim_ascii() == b"1") {
        return Ok(());
    }
    for link in fs::read_dir(LINKS_V6).into_iter().flatten().flatten() {
        let accept = link.path().join("accept_ra");
        let listens = fs::read(&accept).is_ok_and(|value| value.trim_ascii() == b"1");
        if listens && link.file_name() != "all" {
            set(&accept, "2")?;
        }
    }
    set(&all, "1")
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    Path::new(LINKS_V6).exists()
}

/// Settings of a bridge: packets with a loopback source may leave by it (that is how 127.0.0.1 reaches a published
/// port; `nft` drops what would come in that way), and router advertisements are not accepted (a container could otherwise
/// advertise itself as the host's router, CVE-2020-13401). IPv6 is off unless the network has it.
pub(crate) fn prepare_bridge(name: &str, ipv6: bool) -> Result<(), SysctlError> {
    set(&Path::new(LINKS_V4).join(name).join("route_localnet"), "1")?;
    let inet6 = Path::new(LINKS_V6).join(name);
    if inet6.exists() {
        set(&inet6.join("accept_ra"), "0")?;
        set(&inet6.join("accept_dad"), "0")?;
        set(&inet6.join("disable_ipv6"), if ipv6 { "0" } else { "1" })?;
    }
    Ok(())
}

/// What keeps packets from being routed.
pub(crate) fn not_forwarding(ipv6: bool) -> Vec<String> {
    let all = Path::new(LINKS_V6).join("all/forwarding");
    let wanted = [Some(Path::new("/proc/sys/net/ipv4/ip_forward")), Some(all.as_path()).filter(|_| ipv6)];
    wanted.into_iter().flatten().filter_map(not_one).collect()
}

/// What keeps 127.0.0.1 from published ports by a bridge.
pub(crate) fn not_prepared(bridge: &str) -> Option<String> {
    not_one(&Path::new(LINKS_V4).join(bridge).join("route_localnet"))
}

fn not_one(path: &Path) -> Option<String> {
    let value = fs::read_to_string(path).unwrap_or_default();
    (value.trim() != "1").then(|| format!("{} is {:?}, not 1", path.display(), value.trim()))
}

/// Switches IPv6 off, or lets it be, for every link that the namespace of the calling thread will get; lo, which it has,
/// keeps ::1.
pub(crate) fn prepare_namespace(ipv6: bool) -> Result<(), SysctlError> {
    if has_ipv6() { of_link("default", ipv6, false) } else { Ok(()) }
}

/// IPv6 of a link in the namespace of the calling thread. It believes no router, but where the link is on a network of others, and
/// asks nobody whether its addresses are free: they are.
pub(crate) fn of_link(name: &str, ipv6: bool, believes_routers: bool) -> Result<(), SysctlError> {
    let folder = Path::new(LINKS_V6).join(name);
    if !folder.exists() {
        return Ok(());
    }
    if ipv6 {
        set(&folder.join("accept_ra"), if believes_routers { "1" } else { "0" })?;
        set(&folder.join("accept_dad"), "0")?;
    }
    set(&folder.join("disable_ipv6"), if ipv6 { "0" } else { "1" })
}

/// Sets what a user asks for, in the namespace of the calling thread: a path below /proc/sys/net, parts of which are separated
/// by slashes.
pub(crate) fn set_by_user(path: &str, value: &str) -> Result<(), SysctlError> {
    set(&Path::new("/proc/sys").join(path), value)
}

fn set(path: &Path, value: &str) -> Result<(), SysctlError> {
    // Setting what is set already isn't free: some settings walk over all links.
    if fs::read(path).is_ok_and(|current| current.trim_ascii() == value.as_bytes()) {
        return Ok(());
    }
    // Opened without O_CREAT: a missing file means a missing setting.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|cause| SysctlError { path: path.to_owned(), value: value.to_owned(), cause })
}
