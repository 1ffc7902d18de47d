//! An overlay that is in nobody's mount table, of any number of layers, on kernels old and new.
//!
//! fsconfig(2) takes values of 255 bytes, which a few layers exceed. Linux 6.7 takes layers one by one. Those before it, Debian 12's
//! 6.1 for instance, take a page of options from mount(2): mounted in a namespace that goes with its thread, and cloned from there.

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::CloneFlags,
};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};
use sys::mount::{Filesystem, Reach, attr, clone_tree};

/// What mount(2) copies of its options, without the byte that ends them.
const PAGE: usize = 4095;
/// This kernel doesn't take layers one by one.
static OLD_KERNEL: AtomicBool = AtomicBool::new(false);

/// Where writes go: the upper folder and its working folder.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The layer.
    pub folder: &'a str,
    /// A folder on the same file system.
    pub work: &'a str,
}

/// Mounts the folders, topmost first, by absolute paths. Of a single one without an upper folder overlayfs makes nothing.
pub fn detached(lower: &[&str], upper: Option<Upper<'_>>, attributes: u64) -> Result<OwnedFd, Errno> {
    if OLD_KERNEL.load(Ordering::Relaxed) {
        return the_long_way(lower, upper, attributes);
    }
    match one_by_one(lower, upper, attributes) {
        // That is how both say it: those that don't know the option, and those that take anything until it is to be mounted.
        Err(Errno::EINVAL) => {
            let made = the_long_way(lower, upper, attributes)?;
            OLD_KERNEL.store(true, Ordering::Relaxed);
            Ok(made)
        }
        made => made,
    }
}

fn one_by_one(lower: &[&str], upper: Option<Upper<'_>>, attributes: u64) -> Result<OwnedFd, Errno> {
    let overlay = Filesystem::open("overlay")?;
    for folder in lower {
        overlay.string("lowerdir+", folder)?;
    }
    if let Some(upper) = upper {
        overlay.string("upperdir", upper.folder)?;
        overlay.string("workdir", upper.work)?;
    }
    overlay.mount(attributes)
}

fn the_long_way(lower: &[&str], upper: Option<Upper<'_>>, attributes: u64) -> Result<OwnedFd, Errno> {
    // Any folder serves as the place, in a namespace that nobody else sees.
    let Some(place) = lower.first() else { return Err(Errno::EINVAL) };
    let (start, options) = options(lower, upper);
    let flags = [
        (attr::RDONLY, MsFlags::MS_RDONLY),
        (attr::NOSUID, MsFlags::MS_NOSUID),
        (attr::NODEV, MsFlags::MS_NODEV),
        (attr::NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let flags =
        flags.iter().filter(|(bit, _)| attributes & bit != 0).fold(MsFlags::empty(), |all, (_, flag)| all | *flag);
    let make = || {
        let none: Option<&str> = None;
        // The folder it works in is its own from here on, too.
        sys::ns::unshare(CloneFlags::CLONE_NEWNS.bits() as u64)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        if let Some(start) = &start {
            nix::unistd::chdir(start)?;
        }
        mount(Some("overlay"), *place, Some("overlay"), flags, Some(options.as_str()))?;
        clone_tree(nix::fcntl::AT_FDCWD, Path::new(place), Reach::One)
    };
    std::thread::scope(|scope| scope.spawn(make).join()).unwrap_or(Err(Errno::EIO))
}

/// The options, and the folder they start from where only short paths fit.
fn options(lower: &[&str], upper: Option<Upper<'_>>) -> (Option<PathBuf>, String) {
    let written = |start: Option<&Path>| {
        let short = |path: &str| {
            let path = start.and_then(|start| Path::new(path).strip_prefix(start).ok()).unwrap_or(Path::new(path));
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            escaped(&path.display().to_string())
        };
        let layers: Vec<String> = lower.iter().map(|folder| short(folder)).collect();
        let mut text = format!("lowerdir={}", layers.join(":"));
        if let Some(upper) = upper {
            text.push_str(&format!(",upperdir={},workdir={}", short(upper.folder), short(upper.work)));
        }
        text
    };
    let text = written(None);
    if text.len() <= PAGE {
        return (None, text);
    }
    let start = lower.iter().map(|folder| Path::new(folder).to_owned()).reduce(|one, other| {
        let same = one.components().zip(other.components()).take_while(|(a, b)| a == b);
        same.map(|(component, _)| component).collect()
    });
    let text = written(start.as_deref());
    (start, text)
}

/// A path in the options of overlayfs.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::fd::AsRawFd};

    #[test]
    fn what_mount_is_told() {
        let upper = Upper { folder: "/s/9,9/fs", work: "/s/9/work" };
        let (start, text) = options(&["/s/2/fs", "/s/1:1/fs"], Some(upper));
        assert_eq!(
            (start, text.as_str()),
            (None, r"lowerdir=/s/2/fs:/s/1\:1/fs,upperdir=/s/9\,9/fs,workdir=/s/9/work")
        );
        let many: Vec<String> =
            (0..127).map(|n| format!("/a/long/path/of/somebody/who/likes/such/paths/{n}/fs")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (start, text) = options(&many, None);
        assert_eq!(start.unwrap(), Path::new("/a/long/path/of/somebody/who/likes/such/paths"));
        assert!(text.starts_with("lowerdir=0/fs:1/fs:") && text.len() < PAGE, "{text}");
    }

    #[test]
    fn both_ways_show_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("p".repeat(60));
        let layers: Vec<String> = (0..70).map(|n| long.join(format!("{n}/fs")).display().to_string()).collect();
        for (n, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer).unwrap();
            fs::write(Path::new(layer).join("all"), n.to_string()).unwrap();
            fs::write(Path::new(layer).join(format!("only{n}")), "").unwrap();
        }
        let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
        let (up, work) = (folder.path().join("up,per"), folder.path().join("work"));
        fs::create_dir(&up).unwrap();
        fs::create_dir(&work).unwrap();
        let upper = Upper { folder: up.to_str().unwrap(), work: work.to_str().unwrap() };
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        for long in [true, false] {
            let way = if long { the_long_way } else { detached };
            let view = way(&layers, None, attr::RDONLY | attr::NODEV).unwrap();
            let root = format!("/proc/self/fd/{}", view.as_raw_fd());
            assert_eq!(fs::read_to_string(format!("{root}/all")).unwrap(), "0");
            assert_eq!(fs::read_dir(&root).unwrap().count(), 71);
            assert_eq!(fs::write(format!("{root}/new"), "").unwrap_err().raw_os_error(), Some(Errno::EROFS as i32));
            drop(view);
            let view = way(&layers[..2], Some(upper), attr::NOSUID).unwrap();
            fs::write(format!("/proc/self/fd/{}/new", view.as_raw_fd()), "text").unwrap();
            drop(view);
            assert_eq!(fs::read_to_string(up.join("new")).unwrap(), "text");
            fs::remove_file(up.join("new")).unwrap();
            assert!(!mounts().contains(folder.path().to_str().unwrap()), "something is left mounted");
        }
        assert!(the_long_way(&["/nowhere", "/neither"], None, 0).is_err());
    }
}
