//! What went through the interfaces of pods. One thread goes from one pod's network to the next, and ends.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::stat::Mode,
};
use proto::runtime::v1 as cri;
use tracing::warn;

use super::files::Reader;

/// The interface that CNI plugins are asked for.
const DEFAULT: &str = "eth0";
/// Enough for a few system calls.
const STACK: usize = 128 * 1024;

/// What an interface has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Counted,
    pub(super) sent: Counted,
}

/// In one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// The interfaces in each of these pinned network namespaces, without the loopback; `None` where there is no such namespace.
pub(super) fn read(pins: &[Option<PathBuf>]) -> Vec<Option<Vec<Interface>>> {
    let nothing = || vec![None; pins.len()];
    if pins.iter().all(Option::is_none) {
        return nothing();
    }
    let visit = || {
        let mut reader = Reader::new();
        pins.iter().map(|pin| enter(pin.as_deref()?, &mut reader)).collect()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network stats".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, visit) {
            Ok(thread) => thread.join().unwrap_or_else(|_| nothing()),
            Err(error) => {
                warn!(%error, "no thread for the networks of pods, whose statistics are left out");
                nothing()
            }
        }
    })
}

// On a thread of its own, which stays where it is until the next one.
fn enter(pin: &Path, reader: &mut Reader) -> Option<Vec<Interface>> {
    let namespace = sys::netns::open(pin).ok()??;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).ok()?;
    let folder = open("/proc/thread-self/net", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    Some(reader.text(&folder, "dev")?.lines().filter_map(interface).filter(|one| one.name != "lo").collect())
}

/// A line of /proc/net/dev (proc_pid_net(5)): eight numbers of what came, eight of what went.
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse::<u64>().ok());
    let mut direction = || {
        let counted = Counted {
            bytes: numbers.next()??,
            packets: numbers.next()??,
            errors: numbers.next()??,
            dropped: numbers.next()??,
        };
        numbers.nth(3)?;
        Some(counted)
    };
    Some(Interface { name: name.trim().to_owned(), received: direction()?, sent: direction()? })
}

/// As CRI says it.
pub(super) fn usage(interfaces: &[Interface], timestamp: i64) -> cri::NetworkUsage {
    let value = |value| Some(cri::UInt64Value { value });
    let one = |one: &Interface| cri::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: value(one.received.bytes),
        rx_errors: value(one.received.errors),
        tx_bytes: value(one.sent.bytes),
        tx_errors: value(one.sent.errors),
    };
    cri::NetworkUsage {
        timestamp,
        default_interface: interfaces.iter().find(|one| one.name == DEFAULT).map(one),
        interfaces: interfaces.iter().filter(|one| one.name != DEFAULT).map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_interfaces() {
        let line = "  eth0: 1047 11    3    4    0     0          0         0     2152      22    7    8    0     0       0          0";
        let wanted = Interface {
            name: "eth0".into(),
            received: Counted { bytes: 1047, packets: 11, errors: 3, dropped: 4 },
            sent: Counted { bytes: 2152, packets: 22, errors: 7, dropped: 8 },
        };
        assert_eq!(interface(line), Some(wanted.clone()));
        assert_eq!(interface("Inter-|   Receive                                                |  Transmit"), None);
        assert_eq!(interface("eth0: 1 2 3"), None);
        let other = Interface { name: "net1".into(), ..Default::default() };
        let usage = usage(&[other, wanted], 5);
        assert_eq!(usage.default_interface.map(|one| one.tx_bytes), Some(Some(cri::UInt64Value { value: 2152 })));
        assert_eq!(usage.interfaces.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["net1"]);
    }

    /// A pinned namespace, with an interface in it.
    struct Pinned(PathBuf);

    impl Pinned {
        fn new(pin: PathBuf, interface: &str) -> Self {
            let add = || std::process::Command::new("ip").args(["link", "add", interface, "type", "bridge"]).status();
            let made = sys::netns::create(&pin, add);
            let pinned = Self(pin);
            assert!(made.expect("a namespace").1.expect("start ip").success());
            pinned
        }
    }

    impl Drop for Pinned {
        fn drop(&mut self) {
            let _ = sys::netns::delete(&self.0);
        }
    }

    #[test]
    fn networks_are_visited_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let one = Pinned::new(folder.path().join("one"), "eth0");
        let two = Pinned::new(folder.path().join("two"), "net1");
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let found = read(&[Some(one.0.clone()), None, Some(folder.path().join("none")), Some(two.0.clone())]);
        let names: Vec<Option<Vec<String>>> =
            found.into_iter().map(|all| Some(all?.into_iter().map(|one| one.name).collect())).collect();
        assert_eq!(names, [Some(vec!["eth0".to_owned()]), None, None, Some(vec!["net1".to_owned()])]);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        let began = std::time::Instant::now();
        assert!(read(&vec![Some(one.0.clone()); 200]).iter().all(Option::is_some));
        println!("200 networks: {:?}", began.elapsed());
    }
}
