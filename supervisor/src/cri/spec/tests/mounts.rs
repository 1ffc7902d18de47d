//! Mounts of the request, the sandbox and the image.

use super::{namespaces::line, *};

#[test]
fn mounts_of_the_request_replace_and_are_sorted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap().display().to_string();
    std::os::unix::fs::symlink("deep", folder.path().join("link")).unwrap();
    let (link, missing) = (format!("{here}/link"), format!("{here}/deep/made"));
    let made = changed(|world| {
        world.container.mounts = vec![
            mount(&missing, "/data/in/../deep"),
            mount(&link, "data"),
            mount("/etc/hosts", "/etc//hosts"),
            mount("/dev/null", "/dev/termination-log"),
        ];
        world.container.mounts[1].readonly = true;
        world.container.mounts[1].mount_options = words(&["noexec", "nosuid"]);
        world.image.volumes =
            ["/data", "/vol", "vol/", "/etc/resolv.conf"].map(|path| (path.into(), Default::default())).into();
    })
    .make()
    .unwrap();
    let at = destinations(&made.spec);
    assert_eq!(
        at[6..],
        [
            "/data",
            "/vol",
            "/data/deep",
            "/etc/hosts",
            "/dev/termination-log",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm"
        ]
    );
    let data = mount_at(&made.spec, "/data");
    assert_eq!(
        (&data["source"], &data["options"]),
        (&json!(format!("{here}/deep")), &json!(["rbind", "rprivate", "ro", "noexec", "nosuid"]))
    );
    let deep = mount_at(&made.spec, "/data/deep");
    assert_eq!((&deep["source"], &deep["options"]), (&json!(missing), &json!(["rbind", "rprivate"])));
    assert!(Path::new(&missing).is_dir(), "what isn't there is made");
    assert_eq!(mount_at(&made.spec, "/etc/hosts")["source"], "/etc/hosts");
    let volumes: Vec<_> =
        made.volumes.iter().map(|volume| (volume.destination.as_str(), volume.source.to_str().unwrap())).collect();
    assert_eq!(volumes, [("/vol", "/state/volumes/2")]);

    let dev = changed(|world| world.container.mounts = vec![mount("/dev", "/dev")]).spec();
    assert_eq!(
        destinations(&dev).iter().filter(|at| at.starts_with("/dev")).collect::<Vec<_>>(),
        [&"/dev", &"/dev/shm"]
    );
}

#[test]
fn mounts_that_cant_be() {
    let with = |change: fn(&mut cri::Mount)| {
        changed(|world| {
            let mut mount = mount("/etc", "/x");
            change(&mut mount);
            world.recursive_read_only = mount.container_path != "/old";
            world.container.mounts = vec![mount];
        })
    };
    for (change, words) in [
        (
            (|mount| mount.container_path = "/..".into()) as fn(&mut cri::Mount),
            "container_path /..: is no place below the container's root",
        ),
        (|mount| mount.container_path = String::new(), "container_path : is no place below the container's root"),
        (|mount| mount.container_path = "/a\0".into(), "container_path /a\\0: is no place below the container's root"),
        (|mount| mount.host_path = "etc".into(), "mount on /x: host_path etc: is no absolute path"),
        (|mount| mount.host_path = String::new(), "mount on /x: host_path : is no absolute path"),
        (|mount| mount.propagation = 9, "mount on /x: propagation 9: is not known"),
        (
            |mount| mount.mount_options = words(&["suid"]),
            "mount on /x: mount_options suid: is none of noexec, nodev and nosuid",
        ),
        (|mount| mount.recursive_read_only = true, "mount on /x: recursive_read_only true: needs readonly beside it"),
        (
            |mount| (mount.readonly, mount.recursive_read_only, mount.propagation) = (true, true, 1),
            "mount on /x: recursive_read_only true: can't be had with propagation: what comes would be writable",
        ),
        (
            |mount| {
                (mount.readonly, mount.recursive_read_only) = (true, true);
                mount.container_path = "/old".into();
            },
            "mount on /old: recursive_read_only is not supported: the handler's runtime doesn't know rro",
        ),
        (|mount| mount.image_sub_path = "a".into(), "mount on /x: image_sub_path a: is there without an image"),
        (
            |mount| mount.uid_mappings = vec![line(0, 5, 1)],
            "mount on /x: uidMappings : either both of uids and gids are mapped, or none",
        ),
        (|mount| mount.image = Some(Default::default()), "mount on /x: host_path /etc: is there beside an image"),
    ] {
        assert_eq!(with(change).error(), words);
    }
    let whole = with(|mount| (mount.readonly, mount.recursive_read_only) = (true, true)).spec();
    assert_eq!(mount_at(&whole, "/x")["options"], json!(["rbind", "rprivate", "rro"]));
    let mapped =
        with(|mount| (mount.uid_mappings, mount.gid_mappings) = (vec![line(0, 5, 1)], vec![line(0, 6, 2)])).spec();
    assert_eq!(mount_at(&mapped, "/x")["gidMappings"], json!([{"containerID": 0, "hostID": 6, "size": 2}]));
}

#[test]
fn what_is_to_be_shared_has_to_be() {
    // procfs is never mounted shared by anybody in particular, but the mount table says what is so.
    let shared = ::spec::propagation::Need::Shared;
    let table = ::spec::propagation::MountTable::read().unwrap();
    let both = changed(|world| {
        world.container.mounts = vec![mount("/proc", "/a"), mount("/proc", "/b")];
        (world.container.mounts[0].propagation, world.container.mounts[1].propagation) = (2, 1);
    });
    match shared.met(&table, Path::new("/proc")) {
        Ok(()) => {
            let spec = both.spec();
            assert_eq!(spec["linux"]["rootfsPropagation"], "rshared");
            assert_eq!(mount_at(&spec, "/b")["options"], json!(["rbind", "rslave"]));
        }
        Err(_) => assert_eq!(both.error(), "mount on /a: /proc lies on /proc, which is not a shared mount"),
    }
}

#[test]
fn mounts_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    std::fs::create_dir_all(top.join("a/b")).unwrap();
    std::fs::write(top.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/a", top.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc", top.join("out")).unwrap();
    let with = |sub_path: &str, readonly| {
        changed(|world| {
            let mut mount = mount("", "/i");
            (mount.readonly, mount.image, mount.image_sub_path) = (readonly, Some(Default::default()), sub_path.into());
            world.container.mounts = vec![mount];
            let root = std::fs::File::open(&top).unwrap().into();
            world.image_mounts.insert(0, ImageMount { root, at: "/run/images/0".into() });
        })
    };
    for (sub_path, wanted) in [("", ""), ("a/b", "a/b"), ("link/b", "a/b"), ("./a", "a")] {
        let spec = with(sub_path, true).spec();
        assert_eq!(
            mount_at(&spec, "/i")["source"],
            Path::new("/run/images/0").join(wanted).to_str().unwrap().trim_end_matches('/'),
            "{sub_path}"
        );
        assert_eq!(mount_at(&spec, "/i")["options"], json!(["rbind", "rprivate", "ro", "noexec"]));
    }
    for (sub_path, words) in [
        ("../a", "mount on /i: image_sub_path ../a: is no path below the image's root"),
        ("/a", "mount on /i: image_sub_path /a: is no path below the image's root"),
        ("none", "mount on /i: find, in the image, folder none: No such file or directory (os error 2)"),
        ("file", "mount on /i: image_sub_path file: is no folder of the image"),
        // Out of the image is its own root again, which has no etc.
        ("out", "mount on /i: find, in the image, folder out: No such file or directory (os error 2)"),
    ] {
        assert_eq!(with(sub_path, true).error(), words);
    }
    assert_eq!(with("", false).error(), "mount on /i: readonly false: a mount of an image can't be written to");
    let mut forgotten = with("", true);
    forgotten.image_mounts.clear();
    assert_eq!(forgotten.error(), "mount on /i: its image is not mounted");
}
