//! The name servers of the host: what its resolv.conf says, read again when that has changed.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::net::if_::if_nametoindex;

use super::upstream::{DOMAIN, Servers};

/// As glibc, where no server is named.
const FALLBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The file and what it said when it was read last.
#[derive(Debug)]
pub(super) struct Host {
    path: PathBuf,
    read: RefCell<Option<(Stamp, Rc<Settings>)>>,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The servers and how they are asked.
    pub(super) servers: Rc<Servers>,
    /// Whether names of few dots are completed before they are looked up as they are.
    pub(super) completes: bool,
}

/// What changes with a file's content, or when another one takes its place: by a rename, or by a link that leads elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp {
    device: u64,
    file: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Host {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: RefCell::new(None) }
    }

    /// What the file says now. While it isn't there or empty, somebody is about to write it: what it said before.
    pub(super) fn get(&self) -> Rc<Settings> {
        let mut read = self.read.borrow_mut();
        // Before its content: a change that comes between is seen the next time.
        let stamp = self.stamp().unwrap_or_default();
        if let Some((then, settings)) = read.as_ref()
            && stamp == *then
            && stamp.is_settled()
        {
            return settings.clone();
        }
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let settings = match read.take() {
            Some((_, before)) if text.trim().is_empty() => before,
            Some((_, before)) if *before == parse(&text) => before,
            _ => Rc::new(parse(&text)),
        };
        *read = Some((stamp, settings.clone()));
        settings
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let meta = fs::metadata(&self.path)?;
        Ok(Stamp {
            device: meta.dev(),
            file: meta.ino(),
            size: meta.size(),
            written: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Stamp {
    /// Whether a change would show: times of files are as coarse as the kernel's ticks, so two changes in a row may look like one.
    fn is_settled(self) -> bool {
        let changed = UNIX_EPOCH + Duration::from_secs(self.changed.0.try_into().unwrap_or(0));
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > Duration::from_secs(2))
    }
}

fn parse(text: &str) -> Settings {
    let mut servers = Servers { addresses: Vec::new(), ..Servers::of(&[]) };
    let mut completes = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.addresses.extend(words.next().and_then(server)),
            Some("options") => {
                for word in words {
                    let (name, value) = word.split_once(':').unwrap_or((word, ""));
                    match (name, value.parse::<u8>()) {
                        // As glibc has it: no more than 30 seconds, five times.
                        ("timeout", Ok(seconds @ 1..)) => {
                            servers.patience = Duration::from_secs(seconds.min(30).into())
                        }
                        ("attempts", Ok(times @ 1..)) => servers.attempts = times.min(5),
                        ("rotate", _) => servers.rotate = true,
                        ("ndots", Ok(dots)) => completes = dots > 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if servers.addresses.is_empty() {
        servers.addresses.push(SocketAddr::new(FALLBACK, DOMAIN));
    }
    Settings { servers: Rc::new(servers), completes }
}

/// `fe80::1%eth0` is one on that link.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, link)) = word.split_once('%') else { return Some(SocketAddr::new(word.parse().ok()?, DOMAIN)) };
    let index = link.parse().ok().or_else(|| if_nametoindex(link).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, DOMAIN, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn addresses(settings: &Settings) -> Vec<String> {
        settings.servers.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_of_the_host() {
        let settings = parse(
            "# x\nnameserver 127.0.0.53\nsearch a\nnameserver fe80::1%lo\nnameserver fe80::1%no-such-link\nnameserver\n\
             nameserver x\n",
        );
        assert_eq!(addresses(&settings), ["127.0.0.53:53", "[fe80::1%1]:53"]);
        assert_eq!(
            (settings.servers.patience, settings.servers.attempts, settings.servers.rotate),
            (Duration::from_secs(2), 2, false)
        );
        assert!(!settings.completes);
        let settings = parse("search a\noptions timeout:1 attempts:9 edns0\noptions rotate ndots:2 timeout:x\n");
        assert_eq!(addresses(&settings), ["127.0.0.1:53"]);
        assert_eq!(
            (settings.servers.patience, settings.servers.attempts, settings.servers.rotate),
            (Duration::from_secs(1), 5, true)
        );
        assert!(settings.completes && !parse("options ndots:0\n").completes);
    }

    #[test]
    fn changes_are_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, server: &str| fs::write(at(name), format!("nameserver {server}\n")).expect("write");
        write("resolv.conf", "10.0.0.1");
        let host = Host::new(at("resolv.conf"));
        let now = || addresses(&host.get());
        assert_eq!(now(), ["10.0.0.1:53"]);
        write("resolv.conf", "10.0.0.2");
        assert_eq!(now(), ["10.0.0.2:53"], "written");
        // As long as it is and as old as it is: another file all the same.
        write("new", "10.0.0.3");
        let modified = fs::metadata(at("resolv.conf")).and_then(|meta| meta.modified()).expect("time");
        fs::File::open(at("new")).and_then(|file| file.set_modified(modified)).expect("time");
        fs::rename(at("new"), at("resolv.conf")).expect("rename");
        assert_eq!(now(), ["10.0.0.3:53"], "replaced");
        for (name, server) in [("stub", "127.0.0.53"), ("full", "10.0.0.4")] {
            write(name, server);
            symlink(name, at("link")).and_then(|()| fs::rename(at("link"), at("resolv.conf"))).expect("link");
            assert_eq!(now(), [format!("{server}:53")], "linked");
        }
        write("full", "10.0.0.5");
        assert_eq!(now(), ["10.0.0.5:53"], "behind the link");
        let before = host.get();
        write("full", "10.0.0.5");
        assert!(Rc::ptr_eq(&before.servers, &host.get().servers), "nothing new");
        fs::write(at("full"), "").expect("write");
        assert_eq!(now(), ["10.0.0.5:53"], "about to be written");
        fs::remove_file(at("full")).expect("remove");
        assert_eq!(now(), ["10.0.0.5:53"], "about to be made");
        write("full", "10.0.0.6");
        assert_eq!(now(), ["10.0.0.6:53"]);
        assert_eq!(addresses(&Host::new(at("none")).get()), ["127.0.0.1:53"]);
    }
}
