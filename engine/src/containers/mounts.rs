//! What is mounted into a container: `Binds`, `Mounts`, `Tmpfs` and the image's volumes become one list, checked. The
//! first part is pure; `Wanted` still has to be given sources (volumes, host folders).

use super::record::MountKind;
use crate::{
    api::{HostConfig, Mount, host_config::BindOptions, serial::Set, serial::is_zero},
    http::ApiError,
};
use std::collections::BTreeMap;

/// A mount before its source exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Kind of mount.
    pub kind: MountKind,
    /// Host path, or name of the volume; empty for an anonymous volume and a tmpfs.
    pub source: String,
    /// Where in the container; absolute and clean.
    pub destination: String,
    /// As written by the user.
    pub mode: String,
    /// Whether it may be written to.
    pub writable: bool,
    /// Mount propagation; empty is `rprivate`.
    pub propagation: String,
    /// Without mounts below the source.
    pub non_recursive: bool,
    /// Make a missing host folder.
    pub create_source: bool,
    /// Copy the image's content into an empty volume.
    pub copy_up: bool,
    /// Labels of a volume that is made for it.
    pub labels: BTreeMap<String, String>,
    /// Options of a tmpfs.
    pub options: Vec<String>,
    /// Who makes a volume; `local` unless said otherwise.
    pub driver: String,
    /// How.
    pub driver_options: BTreeMap<String, String>,
    /// Path below the source that is mounted in its place.
    pub subpath: String,
    /// Read-only all the way down: tried, or asked for.
    pub read_only_tree: bool,
    /// The image has it as a volume, nobody asked for it.
    pub from_image: bool,
}

/// All mounts, in the order in which they are to be made.
pub fn wanted(host: &HostConfig, image_volumes: &Set) -> Result<Vec<Wanted>, ApiError> {
    let mut list: Vec<Wanted> = Vec::new();
    for bind in host.binds.iter().flatten() {
        list.push(Wanted { driver: host.volume_driver.clone(), ..parse_bind(bind)? });
    }
    for mount in &host.mounts {
        list.push(from_mount(mount)?);
    }
    for (destination, options) in &host.tmpfs {
        let destination = clean_destination(destination)?;
        let options: Vec<_> = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
        for option in &options {
            check_tmpfs_option(option)?;
        }
        let writable = !options.iter().any(|o| o == "ro");
        list.push(Wanted { writable, options, ..plain(MountKind::Tmpfs, "", destination) });
    }
    for (at, mount) in list.iter().enumerate() {
        if list[..at].iter().any(|other| other.destination == mount.destination) {
            return Err(ApiError::invalid(format!("Duplicate mount point: {}", mount.destination)));
        }
    }
    for volume in &image_volumes.0 {
        let destination = clean_destination(volume)?;
        if !list.iter().any(|mount| mount.destination == destination) {
            let driver = host.volume_driver.clone();
            list.push(Wanted { driver, from_image: true, ..plain(MountKind::Volume, "", destination) });
        }
    }
    // An outer mount goes before the ones within it.
    list.sort_by_key(|mount| mount.destination.matches('/').count());
    Ok(list)
}

fn plain(kind: MountKind, source: &str, destination: String) -> Wanted {
    Wanted {
        kind,
        source: source.to_owned(),
        destination,
        mode: String::new(),
        writable: true,
        propagation: String::new(),
        non_recursive: false,
        create_source: false,
        copy_up: kind == MountKind::Volume,
        labels: BTreeMap::new(),
        options: Vec::new(),
        driver: String::new(),
        driver_options: BTreeMap::new(),
        subpath: String::new(),
        read_only_tree: false,
        from_image: false,
    }
}

/// `source:destination[:mode]`, or a destination alone for an anonymous volume.
fn parse_bind(text: &str) -> Result<Wanted, ApiError> {
    let bad = |why: &str| ApiError::invalid(format!("invalid volume specification: '{text}': {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts[..] {
        [destination] => ("", destination, ""),
        [source, destination] => (source, destination, ""),
        [source, destination, mode] => (source, destination, mode),
        _ => return Err(bad("too many colons")),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(bad("empty section between colons"));
    }
    let destination = clean_destination(destination)?;
    let is_path = source.starts_with('/');
    if !is_path && !source.is_empty() {
        check_volume_name(source)?;
    }
    let kind = if is_path { MountKind::Bind } else { MountKind::Volume };
    let source = if is_path { clean(source).ok_or_else(|| bad("source path"))? } else { source.to_owned() };
    let mut mount = Wanted { mode: mode.to_owned(), create_source: is_path, ..plain(kind, &source, destination) };
    let (mut access, mut propagation) = (0, 0);
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "rw" | "ro" => {
                access += 1;
                mount.writable = word == "rw";
                mount.read_only_tree = is_path && word == "ro";
            }
            // Labels of SELinux: nothing to do where there is none, as in Docker.
            "z" | "Z" => {}
            "nocopy" if !is_path => mount.copy_up = false,
            "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" if is_path => {
                propagation += 1;
                mount.propagation = word.to_owned();
            }
            "consistent" | "cached" | "delegated" => {}
            _ => return Err(bad(&format!("invalid mode: {mode}"))),
        }
    }
    if access > 1 || propagation > 1 {
        return Err(bad(&format!("invalid mode: {mode}")));
    }
    Ok(mount)
}

fn from_mount(mount: &Mount) -> Result<Wanted, ApiError> {
    let bad = |why: String| ApiError::invalid(format!("invalid mount config for type \"{}\": {why}", mount.kind));
    let nested = [
        ("", Some(&mount.other)),
        ("BindOptions.", mount.bind_options.as_ref().map(|o| &o.other)),
        ("VolumeOptions.", mount.volume_options.as_ref().map(|o| &o.other)),
        ("TmpfsOptions.", mount.tmpfs_options.as_ref().map(|o| &o.other)),
        ("ImageOptions.", mount.image_options.as_ref().map(|o| &o.other)),
    ];
    for (group, other) in nested {
        if let Some((key, _)) = other.into_iter().flatten().find(|(_, value)| !is_zero(value)) {
            return Err(bad(format!("there is no option {group}{key}")));
        }
    }
    if mount.target.is_empty() {
        return Err(bad("field Target must not be empty".into()));
    }
    let destination = clean_destination(&mount.target)?;
    let kind = match mount.kind.as_str() {
        "bind" => MountKind::Bind,
        "volume" => MountKind::Volume,
        "tmpfs" => MountKind::Tmpfs,
        "image" => MountKind::Image,
        "npipe" => return Err(bad("named pipes are Windows'".into())),
        "cluster" => return Err(bad("cluster volumes need a swarm, and this node is in none".into())),
        _ => return Err(bad("mount type unknown".into())),
    };
    if !matches!(mount.consistency.as_str(), "" | "default" | "consistent" | "cached" | "delegated") {
        return Err(bad(format!("invalid consistency: {}", mount.consistency)));
    }
    let mut wanted = Wanted { writable: !mount.read_only, ..plain(kind, &mount.source, destination) };
    for (given, of) in [
        (mount.bind_options.is_some(), MountKind::Bind),
        (mount.volume_options.is_some(), MountKind::Volume),
        (mount.tmpfs_options.is_some(), MountKind::Tmpfs),
        (mount.image_options.is_some(), MountKind::Image),
    ] {
        if given && of != kind {
            let group = match of {
                MountKind::Bind => "BindOptions",
                MountKind::Volume => "VolumeOptions",
                MountKind::Tmpfs => "TmpfsOptions",
                MountKind::Image => "ImageOptions",
            };
            return Err(bad(format!("field {group} must not be specified")));
        }
    }
    match kind {
        MountKind::Bind => bind_mount(mount, &mut wanted).map_err(bad)?,
        MountKind::Volume => {
            let options = mount.volume_options.clone().unwrap_or_default();
            if !mount.source.is_empty() {
                check_volume_name(&mount.source)?;
            } else if !options.subpath.is_empty() {
                return Err(bad("must not set Subpath when using anonymous volumes".into()));
            }
            wanted.copy_up = !options.no_copy;
            wanted.labels = options.labels;
            wanted.subpath = subpath(&options.subpath).map_err(bad)?;
            let driver = options.driver_config.unwrap_or_default();
            (wanted.driver, wanted.driver_options) = (driver.name, driver.options);
        }
        MountKind::Image => {
            if mount.source.is_empty() {
                return Err(bad("field Source must not be empty".into()));
            }
            let options = mount.image_options.clone().unwrap_or_default();
            wanted.subpath = subpath(&options.subpath).map_err(bad)?;
            wanted.writable = false;
        }
        MountKind::Tmpfs => {
            if !mount.source.is_empty() {
                return Err(bad("field Source must not be specified".into()));
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            if options.size_bytes < 0 {
                return Err(bad("size must not be negative".into()));
            }
            if options.size_bytes > 0 {
                wanted.options.push(format!("size={}", options.size_bytes));
            }
            if options.mode > 0 {
                wanted.options.push(format!("mode={:o}", options.mode));
            }
            for words in &options.options {
                let option = match &words[..] {
                    [word] => word.clone(),
                    [key, value] => format!("{key}={value}"),
                    _ => return Err(bad("an option of a tmpfs is a word, or a word and a value".into())),
                };
                check_tmpfs_option(&option)?;
                wanted.options.push(option);
            }
            if mount.read_only {
                wanted.options.push("ro".into());
            }
        }
    }
    Ok(wanted)
}

fn bind_mount(mount: &Mount, wanted: &mut Wanted) -> Result<(), String> {
    let BindOptions {
        propagation,
        non_recursive,
        create_mountpoint,
        read_only_non_recursive,
        read_only_force_recursive,
        ..
    } = mount.bind_options.clone().unwrap_or_default();
    if mount.source.is_empty() {
        return Err("field Source must not be empty".into());
    }
    let relative = || format!("invalid mount path: '{}' mount path must be absolute", mount.source);
    wanted.source = clean(&mount.source).ok_or_else(relative)?;
    if !matches!(propagation.as_str(), "" | "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate") {
        return Err(format!("invalid propagation mode: {propagation}"));
    }
    for (set, name) in
        [(read_only_non_recursive, "ReadOnlyNonRecursive"), (read_only_force_recursive, "ReadOnlyForceRecursive")]
    {
        if set && !mount.read_only {
            return Err(format!("{name} needs a mount that is read-only"));
        }
    }
    if read_only_force_recursive {
        if read_only_non_recursive {
            return Err("ReadOnlyForceRecursive and ReadOnlyNonRecursive exclude each other".into());
        }
        if non_recursive {
            return Err("ReadOnlyForceRecursive needs a recursive mount, and NonRecursive is set".into());
        }
        // Or what is mounted on the host later would come in writable.
        if !matches!(propagation.as_str(), "rprivate" | "") {
            return Err("ReadOnlyForceRecursive needs propagation rprivate".into());
        }
    }
    wanted.propagation = propagation;
    wanted.non_recursive = non_recursive;
    wanted.create_source = create_mountpoint;
    wanted.read_only_tree = mount.read_only && !read_only_non_recursive;
    Ok(())
}

/// A path that stays below where it begins; what links in it lead to is seen when it is opened.
fn subpath(path: &str) -> Result<String, String> {
    if path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(format!("invalid subpath {path:?}: it must be a relative path within the source"));
    }
    Ok(path.to_owned())
}

fn check_tmpfs_option(option: &str) -> Result<(), ApiError> {
    let key = option.split_once('=').map_or(option, |(key, _)| key);
    let known = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "mpol",
        "huge",
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    let clean = option.bytes().all(|b| b.is_ascii_graphic());
    // These turn the tmpfs into something else.
    let refused = ["remount", "bind", "rbind"].contains(&key);
    if known.contains(&key) && clean && !refused {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("invalid tmpfs option {option:?}")))
    }
}

/// Volume names become folder names.
pub fn check_volume_name(name: &str) -> Result<(), ApiError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && rest && (2..=255).contains(&name.len()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "\"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// Where something is mounted: absolute, without `.` and `..` (CVE-2022-23648), and not the root itself.
fn clean_destination(path: &str) -> Result<String, ApiError> {
    let bad = |why: &str| ApiError::invalid(format!("invalid mount path: '{path}' {why}"));
    let clean = clean(path).ok_or_else(|| bad("mount path must be absolute"))?;
    if clean == "/" {
        return Err(bad("destination can't be '/'"));
    }
    Ok(clean)
}

/// Removes `.`, `..` and doubled slashes by the letter, as Go's path.Clean; None for a relative path.
fn clean(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(json: &str) -> HostConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn binds() {
        let cases = [
            ("/a:/b", MountKind::Bind, "/a", "/b", true),
            ("/a/../c:/b/.:ro", MountKind::Bind, "/c", "/b", false),
            ("data:/b", MountKind::Volume, "data", "/b", true),
            ("/b", MountKind::Volume, "", "/b", true),
            ("/a:/b:rshared,ro,z", MountKind::Bind, "/a", "/b", false),
        ];
        for (text, kind, source, destination, writable) in cases {
            let got = parse_bind(text).unwrap();
            assert_eq!(
                (got.kind, got.source.as_str(), got.destination.as_str(), got.writable),
                (kind, source, destination, writable),
                "{text}"
            );
        }
        for bad in ["", ":", "/a:b", "/a:/", "/a:/b:x", "/a:/b:ro,rw", "a/b:/c", "/a:/b:ro:z", "x:/b:rshared", "x:/.."]
        {
            assert!(parse_bind(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_sources_together() {
        let host = host(
            r#"{"Binds":["/h:/x/y"],"Tmpfs":{"/t":"size=1m,noexec"},"Mounts":[{"Type":"bind","Source":"/m","Target":"/x","ReadOnly":true},
                {"Type":"tmpfs","Target":"/u","TmpfsOptions":{"SizeBytes":5,"Mode":511}}]}"#,
        );
        let list = wanted(&host, &Set(["/v".to_owned(), "/t".to_owned(), "/../../etc".to_owned()].into())).unwrap();
        let seen: Vec<_> = list.iter().map(|m| m.destination.as_str()).collect();
        assert_eq!(seen, ["/x", "/u", "/t", "/etc", "/v", "/x/y"]);
        assert_eq!(list[1].options, ["size=5", "mode=777"]);
        assert!(!list[0].create_source && list[5].create_source);
    }

    #[test]
    fn further_options() {
        let host = host(
            r#"{"VolumeDriver":"local","Binds":["/h:/h:ro","vv:/v"],"Mounts":[
                {"Type":"image","Source":"busybox","Target":"/i","ImageOptions":{"Subpath":"bin"}},
                {"Type":"volume","Source":"ww","Target":"/w","VolumeOptions":{"Subpath":"a/b","DriverConfig":{"Name":"local",
                 "Options":{"type":"tmpfs","device":"tmpfs"}}}},
                {"Type":"bind","Source":"/r","Target":"/r","ReadOnly":true,"BindOptions":{"ReadOnlyNonRecursive":true}},
                {"Type":"bind","Source":"/f","Target":"/f","ReadOnly":true,"Consistency":"cached"},
                {"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["exec"],["uid","5"]]}}]}"#,
        );
        let list = wanted(&host, &Set(["/data".to_owned()].into())).unwrap();
        let of = |destination: &str| list.iter().find(|m| m.destination == destination).unwrap();
        assert!(of("/h").read_only_tree && of("/f").read_only_tree && !of("/r").read_only_tree && !of("/r").writable);
        assert_eq!((of("/i").kind, of("/i").writable, of("/i").subpath.as_str()), (MountKind::Image, false, "bin"));
        assert_eq!((of("/w").subpath.as_str(), of("/w").driver_options.len()), ("a/b", 2));
        assert_eq!(of("/t").options, ["exec", "uid=5"]);
        assert!(of("/data").from_image && !of("/v").from_image);
        assert_eq!((of("/v").driver.as_str(), of("/data").driver.as_str()), ("local", "local"));
    }

    #[test]
    fn refuses() {
        for json in [
            r#"{"Binds":["/a:/x","/b:/x/"]}"#,
            r#"{"Mounts":[{"Type":"bind","Source":"rel","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"image","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"image","Source":"a","Target":"/x","ImageOptions":{"Subpath":"../b"}}]}"#,
            r#"{"Mounts":[{"Type":"npipe","Source":"a","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"cluster","Source":"a","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"nope","Source":"a","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"bind","Source":"/a","Target":"/x","BindOptions":{"ReadOnlyForceRecursive":true}}]}"#,
            r#"{"Mounts":[{"Type":"bind","Source":"/a","Target":"/x","BindOptions":{"Unknown":true}}]}"#,
            r#"{"Mounts":[{"Type":"bind","Source":"/a","Target":"/x","ReadOnly":true,"BindOptions":{"ReadOnlyForceRecursive":true,"NonRecursive":true}}]}"#,
            r#"{"Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"Options":[["remount"]]}}]}"#,
            r#"{"Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"Options":[["a","b","c"]]}}]}"#,
            r#"{"Mounts":[{"Type":"tmpfs","Target":"/x","Consistency":"x"}]}"#,
            r#"{"Mounts":[{"Type":"volume","Source":"../a","Target":"/x"}]}"#,
            r#"{"Mounts":[{"Type":"volume","Target":"/x","BindOptions":{}}]}"#,
            r#"{"Mounts":[{"Type":"volume","Target":"/x","VolumeOptions":{"Subpath":"a"}}]}"#,
            r#"{"Mounts":[{"Type":"volume","Source":"vv","Target":"/x","VolumeOptions":{"Subpath":"/a"}}]}"#,
            r#"{"Tmpfs":{"/x":"remount"}}"#,
            r#"{"Tmpfs":{"/x":"size=1 b"}}"#,
        ] {
            assert!(wanted(&host(json), &Set::default()).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn destinations_never_climb(text in "[/.a:]{0,20}") {
            if let Ok(mount) = parse_bind(&text) {
                prop_assert!(mount.destination.starts_with('/') && !mount.destination.split('/').any(|p| p == ".."));
            }
        }
    }
}
