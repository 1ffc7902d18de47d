//! Mounts as they are planned.

use super::*;

fn step(kind: &str, destination: &str, options: &[&str]) -> Result<MountStep, PlanError> {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    let mount =
        Mount { destination: destination.into(), kind: kind.into(), source: "src".into(), options, ..Mount::default() };
    let namespaces = NamespacePlan::default();
    MountStep::new(0, &mount, &Surroundings { namespaces: &namespaces, label: "" }, &mut Vec::new())
}

#[test]
fn what_belongs_to_a_file_system_goes_there_and_not_to_a_bind() {
    let options = |kind| match step(kind, "/x", &["sync", "nolazytime", "ro"]).expect("step").source {
        Source::Filesystem { options, .. } => options.into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(" "),
        other => panic!("{other:?}"),
    };
    assert_eq!(options("tmpfs"), "sync nolazytime");
    assert_eq!(options("ext4"), "sync nolazytime ro");
    let mount = Mount {
        destination: "/x".into(),
        kind: "bind".into(),
        source: "/y".into(),
        options: ["sync", "async", "ro", "size=1m"].map(str::to_owned).to_vec(),
        ..Mount::default()
    };
    let (namespaces, mut warnings) = (NamespacePlan::default(), Vec::new());
    let around = Surroundings { namespaces: &namespaces, label: "a:b:c" };
    let made = MountStep::new(4, &mount, &around, &mut warnings).expect("step");
    assert!(made.source.is_bind());
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("mounts[4].options: \"sync\"") && warnings[1].contains("\"size\""));
}

#[test]
fn labels_go_with_new_file_systems() {
    let namespaces = NamespacePlan::default();
    let around = Surroundings { namespaces: &namespaces, label: "u:r:t:s0:c1,c2" };
    for (kind, labelled) in [("tmpfs", true), ("mqueue", true), ("proc", false), ("sysfs", false)] {
        let mount = Mount { destination: format!("/{kind}"), kind: kind.into(), ..Mount::default() };
        let made = MountStep::new(0, &mount, &around, &mut Vec::new()).expect("step");
        let Source::Filesystem { options, .. } = made.source else { panic!("{kind}") };
        assert_eq!(options == [("context".into(), Some("u:r:t:s0:c1,c2".into()))], labelled, "{kind}");
    }
}

#[test]
fn owners_have_to_be_mapped() {
    let map = vec![crate::spec::IdMapping { container_id: 0, host_id: 1000, size: 1 }];
    let namespaces =
        NamespacePlan { new: NEWUSER, uid_mappings: map.clone(), gid_mappings: map, ..NamespacePlan::default() };
    let around = Surroundings { namespaces: &namespaces, label: "" };
    for (option, allowed) in [("gid=5", false), ("gid=0", true), ("uid=1", false), ("mode=0620", true)] {
        let mount = Mount {
            destination: "/dev/pts".into(),
            kind: "devpts".into(),
            options: vec![option.into()],
            ..Mount::default()
        };
        assert_eq!(MountStep::new(2, &mount, &around, &mut Vec::new()).is_ok(), allowed, "{option}");
    }
}

#[test]
fn words_that_do_not_go_together() {
    assert!(step("tmpfs", "/x", &["copy-symlink"]).is_err());
    assert!(step("tmpfs", "/x", &["src-nofollow"]).is_err());
    assert!(step("bind", "/x", &["tmpcopyup"]).is_err());
    assert!(step("bind", "/x", &["idmap"]).is_err(), "no user namespace, no map");
    assert!(step("", "/x", &["remount", "ro"]).is_ok());
    assert!(step("bind", "/x", &["copy-symlink", "src-nofollow", "dest-nofollow"]).is_ok());
}

#[test]
fn words_become_attributes() {
    let made = step("tmpfs", "/x", &["nosuid", "noexec", "ro", "mode=755", "size=64k", "huge"]).expect("step");
    assert_eq!(made.attributes.set, attr::NOSUID | attr::NOEXEC | attr::RDONLY);
    let options = vec![("mode".into(), Some("755".into())), ("size".into(), Some("64k".into())), ("huge".into(), None)];
    assert_eq!(made.source, Source::Filesystem { kind: "tmpfs".into(), source: "src".into(), options });
}

#[test]
fn binds_are_found_by_type_or_option() {
    for (kind, options, reach) in [
        ("bind", &[][..], Reach::One),
        ("none", &["bind"], Reach::One),
        ("", &["rbind", "rprivate"], Reach::Tree),
        ("bind", &["rbind"], Reach::Tree),
    ] {
        let made = step(kind, "/x", options).expect("step");
        assert_eq!(made.source, Source::Bind { path: "src".into(), reach }, "{kind} {options:?}");
    }
}

#[test]
fn recursive_words_are_kept_apart() {
    let made = step("bind", "/x", &["rbind", "rro", "rnosuid", "rw", "rslave"]).expect("step");
    assert_eq!(made.tree_attributes.set, attr::RDONLY | attr::NOSUID);
    assert_eq!(made.attributes, Attributes { set: 0, clear: attr::RDONLY });
    assert_eq!(made.propagation, [(Propagation::Slave, Reach::Tree)]);
}

#[test]
fn the_last_word_wins_and_atime_is_one_field() {
    let made = step("bind", "/x", &["ro", "rw", "noatime"]).expect("step");
    assert_eq!(made.attributes, Attributes { set: attr::NOATIME, clear: attr::RDONLY | attr::ATIME });
}

#[test]
fn destinations_are_normalised() {
    for (given, meant) in [("a/b", "/a/b"), ("/a//./b/", "/a/b"), ("/../../etc", "/etc"), ("/", "/")] {
        assert_eq!(step("tmpfs", given, &[]).expect("step").destination, Path::new(meant));
    }
}

#[test]
fn proc_is_guarded() {
    assert!(step("proc", "/proc", &[]).is_ok());
    assert!(step("tmpfs", "/proc", &[]).is_err());
    assert!(step("tmpfs", "/proc/sys", &[]).is_err());
    assert!(step("bind", "/tmp/../proc/self/attr", &[]).is_err());
    assert!(step("bind", "/proc/uptime", &[]).is_ok());
}
