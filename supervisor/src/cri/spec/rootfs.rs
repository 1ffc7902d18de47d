//! The users of an image, read where nothing of it is mounted: straight from the folders of its layers. Where links or other odd
//! things are in the way, the layers are mounted for the look, in a mount namespace that nobody sees.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use ::spec::users::{Database, read_file};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag},
};
use proto::containerd::types::Mount;

use super::SpecError;
use crate::layers::{
    place::{folders, open_folder, readable},
    tree::{is, is_opaque, is_whiteout, look, open_dir_at, path_of},
};

/// Says of a directory that its lower part is elsewhere (overlayfs.rst).
const REDIRECT: &std::ffi::CStr = c"trusted.overlay.redirect";

/// The passwd and group files of what a snapshot's mounts show. `scratch` is an empty folder.
pub(in crate::cri) fn users(mounts: &[Mount], scratch: &Path) -> Result<Database, SpecError> {
    if let Some(folders) = folders(mounts)
        && let Some(database) = in_layers(&folders)?
    {
        return Ok(database);
    }
    match readable(mounts, scratch)? {
        Some(root) => Ok(Database::read(root)?),
        None => Ok(Database::default()),
    }
}

/// `None`: it takes a mount to tell.
fn in_layers(folders: &[PathBuf]) -> Result<Option<Database>, SpecError> {
    let layers: Vec<OwnedFd> = folders.iter().map(|folder| open_folder(folder)).collect::<Result<_, _>>()?;
    let find = |name: &str| match find(&layers, name) {
        Ok(Seen::Nothing) => Ok(Some(String::new())),
        Ok(Seen::File(file)) => Ok(Some(read_file(file, &format!("etc/{name}"))?)),
        // Whatever is wrong there, the second look says it better.
        Ok(Seen::Unclear) | Err(_) => Ok::<_, SpecError>(None),
    };
    let Some(passwd) = find("passwd")? else { return Ok(None) };
    Ok(find("group")?.map(|group| Database { passwd, group }))
}

enum Seen {
    File(File),
    Nothing,
    Unclear,
}

/// What the stack of layers, topmost first, shows at `/etc/NAME`.
fn find(layers: &[OwnedFd], name: &str) -> Result<Seen, Errno> {
    for layer in layers {
        match look(layer, b"etc")? {
            None => continue,
            Some(stat) if is_whiteout(&stat) => return Ok(Seen::Nothing),
            Some(stat) if is(&stat, SFlag::S_IFDIR) => {}
            Some(_) => return Ok(Seen::Unclear),
        }
        let etc = open_dir_at(layer, b"etc")?;
        if sys::xattr::lget(&path_of(&etc, b".")?, REDIRECT)?.is_some() {
            return Ok(Seen::Unclear);
        }
        match look(&etc, name.as_bytes())? {
            None if is_opaque(&etc)? => return Ok(Seen::Nothing),
            None => {}
            Some(stat) if is_whiteout(&stat) => return Ok(Seen::Nothing),
            Some(stat) if is(&stat, SFlag::S_IFREG) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                return Ok(Seen::File(openat(&etc, name, flags, Mode::empty())?.into()));
            }
            Some(_) => return Ok(Seen::Unclear),
        }
    }
    Ok(Seen::Nothing)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use ::spec::users::ReadError;
    use nix::sys::stat::mknod;

    use super::*;

    /// Layers, topmost first: folders, and files with their texts.
    fn stack(layers: &[&[(&str, &str)]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let paths = layers.iter().enumerate().map(|(number, files)| {
            let layer = folder.path().join(number.to_string());
            fs::create_dir(&layer).unwrap();
            for (path, text) in *files {
                let path = layer.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                match text.strip_prefix("-> ") {
                    Some(target) => symlink(target, path).unwrap(),
                    None if *text == "gone" => mknod(&path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap(),
                    None => fs::write(path, text).unwrap(),
                }
            }
            layer
        });
        let paths = paths.collect();
        (folder, paths)
    }

    fn read(folder: &Path, layers: &[PathBuf]) -> Result<Database, SpecError> {
        let scratch = folder.join("scratch");
        fs::create_dir_all(&scratch).unwrap();
        let layers: Vec<_> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let mount = match layers.as_slice() {
            [only] => {
                Mount { r#type: "bind".into(), source: only.clone(), options: vec!["ro".into()], ..Default::default() }
            }
            all => Mount {
                r#type: "overlay".into(),
                source: "overlay".into(),
                options: vec![format!("lowerdir={}", all.join(":"))],
                ..Default::default()
            },
        };
        users(&[mount], &scratch)
    }

    #[test]
    fn every_layer_says_its_part() {
        for (layers, passwd, group) in [
            (&[&[("etc/passwd", "p"), ("etc/group", "g")][..]][..], "p", "g"),
            (&[&[("etc/passwd", "upper")], &[("etc/passwd", "p"), ("etc/group", "g")]], "upper", "g"),
            (&[&[("etc/passwd", "gone")], &[("etc/passwd", "p"), ("etc/group", "g")]], "", "g"),
            (&[&[("etc", "gone")], &[("etc/passwd", "p"), ("etc/group", "g")]], "", ""),
            (&[&[], &[("x", "")]], "", ""),
            // Links, also from one layer into another, and never out of the image.
            (&[&[("etc/passwd", "-> /lib/users")], &[("lib/users", "p"), ("etc/group", "g")]], "p", "g"),
            (&[&[("etc", "-> lib")], &[("lib/passwd", "p")]], "p", ""),
            (&[&[("etc/passwd", "-> ../../../../../../etc/group")], &[("etc/group", "g")]], "g", "g"),
        ] {
            let (folder, paths) = stack(layers);
            let found = read(folder.path(), &paths).unwrap();
            assert_eq!((found.passwd.as_str(), found.group.as_str()), (passwd, group), "{layers:?}");
        }
    }

    #[test]
    fn an_opaque_folder_hides_what_is_below() {
        let (folder, paths) = stack(&[&[("etc/group", "g")], &[("etc/passwd", "p")]]);
        let etc = fs::File::open(paths[0].join("etc")).unwrap();
        sys::xattr::fset(&etc, crate::layers::tree::OPAQUE, b"y").unwrap();
        let found = read(folder.path(), &paths).unwrap();
        assert_eq!((found.passwd.as_str(), found.group.as_str()), ("", "g"));
    }

    #[test]
    fn most_images_need_no_mount() {
        let (_folder, paths) = stack(&[&[], &[("etc/passwd", "p"), ("etc/group", "g")]]);
        assert!(in_layers(&paths).unwrap().is_some());
        let (_folder, paths) = stack(&[&[("etc/passwd", "-> x")], &[("etc/x", "p")]]);
        assert!(in_layers(&paths).unwrap().is_none());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let (folder, paths) = stack(&[&[("etc/group", "")]]);
        nix::unistd::mkfifo(&paths[0].join("etc/passwd"), Mode::S_IRUSR).unwrap();
        let error = read(folder.path(), &paths).unwrap_err();
        assert!(matches!(error, SpecError::Users(ReadError::NotAFile { .. })), "{error}");
        fs::remove_file(paths[0].join("etc/passwd")).unwrap();
        File::create(paths[0].join("etc/passwd")).unwrap().set_len(2 << 30).unwrap();
        let error = read(folder.path(), &paths).unwrap_err();
        assert!(matches!(error, SpecError::Users(ReadError::TooLarge { .. })), "{error}");
    }
}
