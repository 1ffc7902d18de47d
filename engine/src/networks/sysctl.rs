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
    value: &'static str,
    #[source]
    cause: io::Error,
}

/// Routes packets between links: without it no container reaches anything beyond the bridge.
pub(crate) fn forward_packets() -> Result<(), SysctlError> {
    set(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")
}

/// Settings of a bridge: packets with a loopback source may leave by it (that is how 127.0.0.1 reaches a published
/// port; `nft` drops what would come in that way), and IPv6 is off, the acceptance of router advertisements first
/// (a container could otherwise advertise itself as the host's router, CVE-2020-13401).
pub(crate) fn prepare_bridge(name: &str) -> Result<(), SysctlError> {
    set(&Path::new("/proc/sys/net/ipv4/conf").join(name).join("route_localnet"), "1")?;
    let inet6 = Path::new("/proc/sys/net/ipv6/conf").join(name);
    if inet6.exists() {
        set(&inet6.join("accept_ra"), "0")?;
        set(&inet6.join("disable_ipv6"), "1")?;
    }
    Ok(())
}

/// Switches IPv6 off for every link that the namespace of the calling thread will get; lo, which it has, keeps ::1.
pub(crate) fn keep_ipv6_off() -> Result<(), SysctlError> {
    match set(Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6"), "1") {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.cause.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn set(path: &Path, value: &'static str) -> Result<(), SysctlError> {
    // Setting what is set already isn't free: some settings walk over all links.
    if fs::read(path).is_ok_and(|current| current.trim_ascii() == value.as_bytes()) {
        return Ok(());
    }
    // Opened without O_CREAT: a missing file means a missing setting.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|cause| SysctlError { path: path.to_owned(), value, cause })
}
