//! Folders and layers that are mounted with other owners than they have on the disk (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::mount::{Reach, clone_tree, set_id_mapping};
use crate::userns::{Maps, of_ids};

/// A folder as a detached mount, with the ids of `maps`: what belongs to id `inside` on the disk belongs to `outside` there. `EINVAL` where
/// kernel or file system have no such mounts.
pub fn folder(path: &Path, reach: Reach, maps: &Maps) -> Result<OwnedFd, Errno> {
    let mount = clone_tree(AT_FDCWD, path, reach)?;
    set_id_mapping(&mount, Reach::One, of_ids(maps)?)?;
    Ok(mount)
}

/// The layers of an overlay (`lowerdir`) in that way: one mount that has all of them, and their names in it.
///
/// Kernels before 6.15 take layers of a mount only once it is attached somewhere.
pub fn layers(lowerdir: &str, maps: &Maps) -> Result<(OwnedFd, String), Errno> {
    let whole =
        |path| fs::canonicalize(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
    let layers: Vec<PathBuf> = lowerdir.split(':').map(whole).collect::<Result<_, _>>()?;
    let common = common(&layers).ok_or(Errno::EINVAL)?;
    let name = |layer: &PathBuf| layer.strip_prefix(common).ok()?.to_str().map(str::to_owned);
    let names: Option<Vec<String>> = layers.iter().map(name).collect();
    Ok((folder(common, Reach::One, maps)?, names.ok_or(Errno::EINVAL)?.join(":")))
}

/// The lowest folder that all are in.
fn common(layers: &[PathBuf]) -> Option<&Path> {
    let (first, others) = layers.split_first()?;
    first.ancestors().skip(1).find(|folder| others.iter().all(|layer| layer != folder && layer.starts_with(folder)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_folder_of_all_layers() {
        let of = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            common(&paths).map(Path::to_owned)
        };
        assert_eq!(of(&["/s/12/fs", "/s/3/fs"]), Some("/s".into()));
        assert_eq!(of(&["/s/12/fs"]), Some("/s/12".into()));
        assert_eq!(of(&["/s/1", "/s/1/fs"]), Some("/s".into()));
        assert_eq!((of(&["/"]), of(&[])), (None, None));
    }

    #[test]
    fn layers_have_other_owners() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let root = std::env::temp_dir().join(format!("sys-idmap-{}", std::process::id()));
        for layer in ["1/fs", "2/fs"] {
            fs::create_dir_all(root.join(layer)).expect("layer");
        }
        fs::write(root.join("1/fs/file"), "").expect("file");
        let maps = Maps::parse("0:100000:10", "0:200000:10").expect("maps");
        let lowerdir = format!("{0}/2/fs:{0}/1/fs", root.display());
        let made = layers(&lowerdir, &maps);
        let seen = made.as_ref().map(|(mount, _)| {
            let file = fs::metadata(format!("/proc/self/fd/{}/1/fs/file", mount.as_raw_fd())).expect("file");
            (file.uid(), file.gid())
        });
        let names = made.as_ref().map(|(_, names)| names.clone());
        fs::remove_dir_all(&root).expect("nothing is mounted there");
        assert_eq!((seen, names.as_deref()), (Ok((100_000, 200_000)), Ok("2/fs:1/fs")));
    }
}
