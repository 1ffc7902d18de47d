//! Specifications of containers as kubelets ask for them.

mod any;
mod limits;
mod mounts;
mod namespaces;
mod sandbox;

use std::collections::HashMap;

use super::*;
use crate::failure::Failure;

fn host() -> Host {
    Host { kernel: Kernel { unified: true, ..Kernel::COMPLETE }, selinux: false, lowest_oom_score_adj: None }
}

/// Everything that a specification depends on, to be changed by tests.
struct World {
    pod: cri::PodSandboxConfig,
    container: cri::ContainerConfig,
    image: ImageConfig,
    users: Database,
    pins: Pins,
    files: SandboxFiles,
    target_pid: Option<u32>,
    driver: cri::CgroupDriver,
    image_mounts: BTreeMap<usize, ImageMount>,
    recursive_read_only: bool,
    host: Host,
}

impl World {
    fn new() -> Self {
        let pin = |name: &str| Some(PathBuf::from("/run/pins").join(name));
        Self {
            pod: cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "pod".into(),
                    uid: "u-1".into(),
                    namespace: "default".into(),
                    attempt: 0,
                }),
                hostname: "web-0".into(),
                linux: Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "/kubepods/pod1".into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            container: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
                image: Some(cri::ImageSpec {
                    image: "sha256:1".into(),
                    user_specified_image: "web:1".into(),
                    ..Default::default()
                }),
                command: vec!["/bin/app".into()],
                ..Default::default()
            },
            image: ImageConfig::default(),
            users: Database {
                passwd: "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n1000:x:0:0::/:/bin/sh".into(),
                group: "root:x:0:\nstaff:x:50:www\nwww:x:33:".into(),
            },
            pins: Pins { net: pin("net"), ipc: pin("ipc"), uts: pin("uts"), user: None, pid: pin("pid") },
            files: SandboxFiles {
                hosts: "/s/hosts".into(),
                hostname: "/s/hostname".into(),
                resolv_conf: "/s/resolv.conf".into(),
                shm: "/s/shm".into(),
            },
            target_pid: None,
            driver: cri::CgroupDriver::Cgroupfs,
            image_mounts: BTreeMap::new(),
            recursive_read_only: true,
            host: host(),
        }
    }

    fn make(&self) -> Result<Made, SpecError> {
        make(&Input {
            id: "c0ffee",
            sandbox_id: "5a5a",
            pod: &self.pod,
            container: &self.container,
            image: &self.image,
            users: &self.users,
            pins: &self.pins,
            files: &self.files,
            target_pid: self.target_pid,
            driver: self.driver,
            image_mounts: &self.image_mounts,
            volumes: Path::new("/state/volumes"),
            apparmor: Some("docker-default"),
            recursive_read_only: self.recursive_read_only,
            cdi: &[],
            host: &self.host,
        })
    }

    fn spec(&self) -> Value {
        let made = self.make().unwrap();
        // What runtimes written in Rust read of it.
        serde_json::from_value::<oci_spec::runtime::Spec>(made.spec.clone()).unwrap();
        made.spec
    }

    fn error(&self) -> String {
        let error = self.make().unwrap_err();
        proto::kind::chain(&error)
    }

    fn context(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.container.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn options(&mut self) -> &mut cri::NamespaceOption {
        self.context().namespace_options.get_or_insert_default()
    }

    fn pod_context(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.pod.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn pod_options(&mut self) -> &mut cri::NamespaceOption {
        self.pod_context().namespace_options.get_or_insert_default()
    }
}

fn changed(change: impl FnOnce(&mut World)) -> World {
    let mut world = World::new();
    change(&mut world);
    world
}

fn destinations(spec: &Value) -> Vec<&str> {
    spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect()
}

fn mount_at<'a>(spec: &'a Value, at: &str) -> &'a Value {
    spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == at).unwrap()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

fn mount(host_path: &str, container_path: &str) -> cri::Mount {
    cri::Mount { host_path: host_path.into(), container_path: container_path.into(), ..Default::default() }
}

const POD: i32 = cri::NamespaceMode::Pod as i32;
const CONTAINER: i32 = cri::NamespaceMode::Container as i32;
const NODE: i32 = cri::NamespaceMode::Node as i32;
const TARGET: i32 = cri::NamespaceMode::Target as i32;

#[test]
fn a_plain_container() {
    let spec = World::new().spec();
    assert_eq!(spec["process"]["args"], json!(["/bin/app"]));
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(spec["process"]["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    assert_eq!(spec["process"]["apparmorProfile"], "docker-default");
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(spec["process"]["capabilities"]["inheritable"], json!([]));
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert!(
        spec["process"]["oomScoreAdj"].is_null() && spec["linux"]["seccomp"].is_null() && spec["hostname"].is_null()
    );
    assert_eq!((&spec["linux"]["maskedPaths"], &spec["linux"]["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/c0ffee");
    assert_eq!(
        spec["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "network", "path": "/run/pins/net"}, {"type": "uts", "path": "/run/pins/uts"},
               {"type": "ipc", "path": "/run/pins/ipc"}, {"type": "pid", "path": "/run/pins/pid"}, {"type": "cgroup"}])
    );
    assert_eq!(
        spec["annotations"],
        json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "5a5a",
            "io.kubernetes.cri.sandbox-name": "pod", "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.sandbox-uid": "u-1", "io.kubernetes.cri.container-name": "c",
            "io.kubernetes.cri.image-name": "web:1",
        })
    );
    assert_eq!(
        destinations(&spec),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/dev/shm"
        ]
    );
    assert_eq!(mount_at(&spec, "/dev/shm")["source"], "/s/shm");
}

#[test]
fn annotations_of_a_pod_dont_reach_the_runtime() {
    let spec = changed(|world| {
        let key = "org.systemd.property.ExecStart".to_owned();
        world.pod.annotations = HashMap::from([(key.clone(), "x".into())]);
        world.container.annotations = HashMap::from([(key, "x".into())]);
    })
    .spec();
    assert_eq!(spec["annotations"].as_object().unwrap().len(), 7);
}

#[test]
fn command_and_arguments() {
    for (command, args, entrypoint, cmd, wanted) in [
        (&[][..], &[][..], &["e"][..], &["c"][..], Some("e c")),
        (&[], &["a"], &["e"], &["c"], Some("e a")),
        (&["x"], &[], &["e"], &["c"], Some("x")),
        (&["x"], &["a"], &["e"], &["c"], Some("x a")),
        (&[], &[], &[], &["c"], Some("c")),
        (&[], &["a"], &[], &[], Some("a")),
        (&[], &[], &[""], &["c"], Some("c")),
        (&[], &[], &[], &[], None),
        (&[""], &["a"], &[], &[], None),
    ] {
        let world = changed(|world| {
            (world.container.command, world.container.args) = (words(command), words(args));
            (world.image.entrypoint, world.image.cmd) = (words(entrypoint), words(cmd));
        });
        let found = world.make().map(|made| made.spec["process"]["args"].clone());
        match wanted {
            Some(line) => assert_eq!(found.unwrap(), json!(words(&line.split(' ').collect::<Vec<_>>())), "{line}"),
            None => {
                let error = found.unwrap_err();
                assert!(matches!(error, SpecError::NoCommand), "{error}");
                assert_eq!(error.kind(), proto::kind::ErrorKind::InvalidArgument);
            }
        }
    }
}

#[test]
fn environment_in_order() {
    let spec = changed(|world| {
        world.image.env = words(&["PATH=/image", "A=image", "B=image"]);
        let env = [("A", "pod"), ("C", ""), ("A", "again")];
        world.container.envs =
            env.iter().map(|(key, value)| cri::KeyValue { key: (*key).into(), value: (*value).into() }).collect();
        world.container.tty = true;
    })
    .spec();
    let env = ["PATH=/image", "TERM=xterm", "HOSTNAME=web-0", "A=again", "B=image", "C=", "HOME=/root"];
    assert_eq!(spec["process"]["env"], json!(env));
    assert_eq!(spec["process"]["terminal"], true);
    for (key, value, words) in [
        ("", "x", "envs : is no name of a variable"),
        ("A=B", "x", "envs A=B: is no name of a variable"),
        ("A", "secret\0", "envs A: has a NUL"),
    ] {
        let world =
            changed(|world| world.container.envs = vec![cri::KeyValue { key: key.into(), value: value.into() }]);
        assert_eq!(world.error(), words);
    }
}

#[test]
fn working_directories() {
    for (asked, image, wanted) in [("", "", "/"), ("", "/i", "/i"), ("", "i", "/i"), ("/a", "/i", "/a")] {
        let spec = changed(|world| {
            world.container.working_dir = asked.into();
            world.image.working_dir = image.into();
        })
        .spec();
        assert_eq!(spec["process"]["cwd"], wanted, "{asked:?} {image:?}");
    }
    assert_eq!(changed(|world| world.container.working_dir = "a".into()).error(), "working_dir a: is not absolute");
}

#[test]
fn users_and_groups() {
    let of = |user: Option<i64>, name: &str, group: Option<i64>, image: &str, extra: &[i64], strict: bool| {
        changed(|world| {
            world.image.user = image.into();
            let context = world.context();
            context.run_as_user = user.map(|value| cri::Int64Value { value });
            context.run_as_group = group.map(|value| cri::Int64Value { value });
            context.run_as_username = name.into();
            context.supplemental_groups = extra.to_vec();
            context.supplemental_groups_policy = i32::from(strict);
        })
    };
    for (user, name, group, image, extra, strict, uid, gid, groups, home) in [
        (None, "", None, "", &[][..], false, 0, 0, &[0][..], "/root"),
        (None, "", None, "www", &[], false, 33, 33, &[33, 50], "/var/www"),
        (None, "", None, "www:7", &[], false, 33, 7, &[7, 50], "/var/www"),
        (None, "", None, "www", &[9], true, 33, 33, &[9, 33], "/var/www"),
        (Some(33), "", None, "", &[5], false, 33, 33, &[5, 33, 50], "/var/www"),
        (Some(33), "", Some(8), "", &[5], false, 33, 8, &[5, 8, 50], "/var/www"),
        (Some(33), "", Some(8), "", &[5], true, 33, 8, &[5, 8], "/var/www"),
        (None, "www", Some(8), "root", &[], true, 33, 8, &[8], "/var/www"),
        // A line named 1000 with uid 0 makes nobody root (CVE-2016-3697).
        (Some(1000), "", None, "", &[], false, 1000, 0, &[0], "/"),
        (None, "", None, "1000", &[], false, 1000, 0, &[0], "/"),
    ] {
        let spec = of(user, name, group, image, extra, strict).spec();
        let wanted = json!({"uid": uid, "gid": gid, "additionalGids": groups});
        assert_eq!(spec["process"]["user"], wanted, "{user:?} {name:?} {group:?} {image:?} {strict}");
        let home = format!("HOME={home}");
        assert!(spec["process"]["env"].as_array().unwrap().contains(&home.into()));
    }
    for (user, name, group, image, extra) in [
        (None, "", Some(5), "", &[][..]),
        (Some(5), "www", None, "", &[]),
        (None, "www:root", None, "", &[]),
        (None, "nobody", None, "", &[]),
        (Some(-1), "", None, "", &[]),
        (Some(4_294_967_296), "", None, "", &[]),
        (Some(2_147_483_648), "", None, "", &[]),
        (Some(1), "", Some(-1), "", &[]),
        (Some(1), "", Some(4_294_967_296), "", &[]),
        (Some(1), "", None, "", &[-1]),
        (Some(1), "", None, "", &[4_294_967_296]),
        (None, "", None, "99999999999", &[]),
    ] {
        let error = of(user, name, group, image, extra, false).make().unwrap_err();
        assert_eq!(error.kind(), proto::kind::ErrorKind::InvalidArgument, "{user:?} {name:?} {group:?}: {error}");
    }
    let unknown = changed(|world| world.context().supplemental_groups_policy = 9).error();
    assert_eq!(unknown, "supplemental_groups_policy 9: is not known");
}

#[test]
fn privileged_ones() {
    let mut world = changed(|world| {
        world.context().privileged = true;
        world.context().seccomp = Some(cri::SecurityProfile::default());
        world.context().masked_paths = words(&["/proc/kcore"]);
    });
    assert_eq!(world.error(), "privileged true: the sandbox isn't: it has to be for a privileged container");
    world.pod_context().privileged = true;
    let spec = world.spec();
    assert!(spec["linux"]["seccomp"].is_null());
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    assert!(spec["linux"]["devices"].as_array().unwrap().iter().any(|device| device["path"] == "/dev/null"));
    for at in ["/sys", "/sys/fs/cgroup"] {
        assert!(mount_at(&spec, at)["options"].as_array().unwrap().contains(&json!("rw")), "{at}");
    }
    assert!(spec["linux"]["namespaces"].as_array().unwrap().iter().all(|entry| entry["type"] != "cgroup"));
}

#[test]
fn security_as_asked() {
    let spec = changed(|world| {
        let context = world.context();
        context.readonly_rootfs = true;
        context.no_new_privs = true;
        context.masked_paths = words(&["/proc/kcore"]);
        context.readonly_paths = words(&["/proc/sys"]);
        context.seccomp = Some(cri::SecurityProfile::default());
        context.selinux_options = Some(cri::SeLinuxOption { level: "s0".into(), ..Default::default() });
    })
    .spec();
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(mount_at(&spec, "/etc/hosts")["options"], json!(["rbind", "rprivate", "ro"]));
    for (change, words) in [
        (
            (|world: &mut World| {
                world.host.selinux = true;
                world.context().selinux_options = Some(cri::SeLinuxOption { level: "s0".into(), ..Default::default() });
            }) as fn(&mut World),
            "selinux_options is not supported: containers get no labels of SELinux from this release",
        ),
        (|world| world.context().masked_paths = words(&["proc"]), "masked_paths proc: is no absolute path"),
        (|world| world.container.windows = Some(Default::default()), "windows is not supported: this node runs Linux"),
        (
            |world| {
                world.container.annotations.insert("io.kubernetes.cri.rdt-class".into(), "gold".into());
            },
            "annotation io.kubernetes.cri.rdt-class is not supported: there are no classes of cache or block I/O here",
        ),
    ] {
        assert_eq!(changed(change).error(), words);
    }
}

#[test]
fn signals_that_ask_to_end() {
    for (asked, image, wanted) in [
        (cri::Signal::RuntimeDefault, "", Some(15)),
        (cri::Signal::RuntimeDefault, "SIGQUIT", Some(3)),
        (cri::Signal::RuntimeDefault, "9", Some(9)),
        (cri::Signal::Sigusr1, "SIGQUIT", Some(10)),
        (cri::Signal::Sigrtminplus1, "", Some(35)),
        (cri::Signal::Sigrtmaxminus14, "", Some(50)),
        (cri::Signal::RuntimeDefault, "NOPE", None),
    ] {
        let config = cri::ContainerConfig { stop_signal: asked.into(), ..Default::default() };
        let image = ImageConfig { stop_signal: image.into(), ..Default::default() };
        assert_eq!(stop_signal(&config, &image).ok(), wanted, "{asked:?} {image:?}");
    }
    // Every one of them has a number.
    for number in 0..=65 {
        let config = cri::ContainerConfig { stop_signal: number, ..Default::default() };
        stop_signal(&config, &ImageConfig::default()).unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    assert!(
        stop_signal(&cri::ContainerConfig { stop_signal: 66, ..Default::default() }, &ImageConfig::default()).is_err()
    );
}
