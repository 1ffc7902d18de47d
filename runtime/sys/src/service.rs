//! What a service manager hands to a service and wants to hear from it: sockets that it listens on already
//! (sd_listen_fds(3)), and where readiness and the end are reported (sd_notify(3)). Two environment variables and one
//! datagram: no library is needed for it.

use std::{
    env,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::errno::Errno;

use crate::{fd::set_cloexec, process::is_single_threaded};

/// The first descriptor that is passed on, by definition.
const FIRST: RawFd = 3;

/// Most descriptors that are believed to be passed.
const MOST: RawFd = 64;

/// The variables, which our children must not see: a runtime that finds `NOTIFY_SOCKET` lets containers speak for us.
const VARIABLES: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// What the service manager gave to this process; nothing if there is none.
#[derive(Debug, Default)]
pub struct Service {
    /// Sockets with their names (`FileDescriptorName=`).
    pub sockets: Vec<(String, OwnedFd)>,
    /// Where to report to.
    pub notifier: Notifier,
    /// How long we may be silent before we are taken for hung.
    pub watchdog: Option<Duration>,
}

/// Reports to the service manager; without one, reports go nowhere.
#[derive(Debug, Default)]
pub struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// Sends lines of `NAME=VALUE`, such as `READY=1`.
    pub fn send(&self, state: &str) -> std::io::Result<()> {
        let Some(address) = &self.0 else { return Ok(()) };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), address).map(drop)
    }

    /// Whether somebody listens.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    fn at(address: &std::ffi::OsStr) -> Option<Self> {
        let bytes = address.as_bytes();
        let address = match bytes.first()? {
            b'@' => SocketAddr::from_abstract_name(&bytes[1..]),
            b'/' => SocketAddr::from_pathname(address),
            // vsock: for virtual machines, whose manager is another's.
            _ => return None,
        };
        Some(Self(Some(address.ok()?)))
    }
}

/// Takes what was passed, and the variables out of the environment. `EBUSY` once there is a second thread: the environment
/// can't be changed then.
///
/// To be called once, first thing in `main`: descriptors from 3 on are nobody else's then.
pub fn take() -> Result<Service, Errno> {
    let number = |name| env::var(name).ok()?.parse::<i64>().ok();
    let ours = |name| number(name).is_none_or(|pid| pid == i64::from(std::process::id()));
    let count = match number("LISTEN_FDS") {
        Some(count) if number("LISTEN_PID").is_some() && ours("LISTEN_PID") => {
            i32::try_from(count).unwrap_or(0).clamp(0, MOST)
        }
        _ => 0,
    };
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let notifier = env::var_os("NOTIFY_SOCKET").and_then(|address| Notifier::at(&address)).unwrap_or_default();
    let watchdog = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && ours("WATCHDOG_PID"));
    let watchdog = watchdog.map(|usec| Duration::from_micros(usec.unsigned_abs()));
    if VARIABLES.iter().any(|name| env::var_os(name).is_some()) {
        if !is_single_threaded() {
            return Err(Errno::EBUSY);
        }
        for name in VARIABLES {
            // SAFETY: there is only this thread, hence nobody who reads the environment meanwhile.
            unsafe { env::remove_var(name) };
        }
    }
    let mut sockets = Vec::new();
    for fd in FIRST..FIRST + count {
        // Also the proof that it is open: EBADF otherwise.
        set_cloexec(fd, true)?;
        // SAFETY: open, as just seen, and by the contract of LISTEN_FDS given to this process alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        sockets.push((names.next().unwrap_or_default(), socket));
    }
    Ok(Service { sockets, notifier, watchdog })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_reach_files_and_abstract_names() {
        let name = format!("berth-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("name");
        let cases = [
            (UnixDatagram::bind(&path), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name), format!("@{name}").into()),
        ];
        for (socket, address) in cases {
            let socket = socket.expect("bind");
            let notifier = Notifier::at(&address).expect("address");
            notifier.send("READY=1").expect("send");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("receive");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        std::fs::remove_file(path).expect("remove");
        assert!(Notifier::at("vsock:2:1".as_ref()).is_none());
        Notifier::default().send("READY=1").expect("nobody to tell is no error");
    }
}
