//! Specifications of containers as kubelets ask for them.

use std::{collections::HashMap, sync::LazyLock};

use proptest::{prelude::*, test_runner::TestRunner};

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
    image_mounts: BTreeMap<usize, PathBuf>,
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
fn namespaces_in_every_mode() {
    let kinds = |spec: &Value| {
        let list = spec["linux"]["namespaces"].as_array().unwrap();
        let name = |entry: &Value| {
            // Its last part; of /proc/PID/ns/pid the process.
            let path = entry["path"].as_str();
            let path = path.map(|path| path.rsplit('/').nth(if path.starts_with("/proc") { 2 } else { 0 }));
            match path {
                Some(path) => format!("{}={}", entry["type"].as_str().unwrap(), path.unwrap()),
                None => entry["type"].as_str().unwrap().to_owned(),
            }
        };
        list.iter().map(name).filter(|name| name != "mount" && name != "cgroup").collect::<Vec<_>>().join(" ")
    };
    for (pod, container, wanted) in [
        // Network, pid, ipc.
        ([POD, POD, POD], [POD, POD, POD], "network=net uts=uts ipc=ipc pid=pid"),
        ([POD, CONTAINER, POD], [POD, CONTAINER, POD], "network=net uts=uts ipc=ipc pid"),
        ([POD, POD, POD], [POD, CONTAINER, POD], "network=net uts=uts ipc=ipc pid"),
        ([NODE, NODE, NODE], [NODE, NODE, NODE], ""),
        ([NODE, NODE, NODE], [POD, POD, POD], ""),
        ([NODE, CONTAINER, POD], [POD, CONTAINER, POD], "ipc=ipc pid"),
        ([POD, CONTAINER, POD], [POD, TARGET, POD], "network=net uts=uts ipc=ipc pid=42"),
    ] {
        let spec = changed(|world| {
            [world.pod_options().network, world.pod_options().pid, world.pod_options().ipc] = pod;
            [world.options().network, world.options().pid, world.options().ipc] = container;
            world.target_pid = Some(42);
        })
        .spec();
        assert_eq!(kinds(&spec), wanted, "{pod:?} {container:?}");
    }
    for (pod, container, words) in [
        ([POD, POD, POD], [NODE, POD, POD], "namespace_options.network NODE: the sandbox has a namespace of its own"),
        ([POD, POD, POD], [POD, NODE, POD], "namespace_options.pid NODE: the sandbox has a namespace of its own"),
        ([POD, POD, POD], [POD, POD, NODE], "namespace_options.ipc NODE: the sandbox has a namespace of its own"),
        ([POD, POD, POD], [CONTAINER, POD, POD], "namespace_options.network CONTAINER: only POD and NODE are possible"),
        ([POD, POD, POD], [POD, POD, TARGET], "namespace_options.ipc TARGET: only POD and NODE are possible"),
        ([POD, CONTAINER, POD], [POD, POD, POD], "namespace_options.pid POD: the sandbox shares no pid namespace"),
        ([POD, POD, POD], [POD, TARGET, POD], "container \"t\", whose pid namespace is to be joined, is not running"),
        ([POD, POD, POD], [POD, 9, POD], "namespace_options.pid 9: is not known"),
    ] {
        let world = changed(|world| {
            [world.pod_options().network, world.pod_options().pid, world.pod_options().ipc] = pod;
            [world.options().network, world.options().pid, world.options().ipc] = container;
            world.options().target_id = "t".into();
        });
        assert_eq!(world.error(), words);
    }
    let missing = changed(|world| world.pins.net = None).error();
    assert_eq!(missing, "the sandbox has no network namespace");
    // Without a hierarchy of its own a cgroup namespace hides nothing.
    let old = changed(|world| world.host.kernel.unified = false).spec();
    assert!(old["linux"]["namespaces"].as_array().unwrap().iter().all(|entry| entry["type"] != "cgroup"));
    let shm = changed(|world| world.pod_options().ipc = NODE).spec();
    assert_eq!(mount_at(&shm, "/dev/shm")["source"], "/dev/shm");
}

fn line(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { host_id, container_id, length }
}

fn userns(mode: i32, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> Option<cri::UserNamespace> {
    Some(cri::UserNamespace { mode, uids: uids.to_vec(), gids: gids.to_vec() })
}

#[test]
fn user_namespaces() {
    let own = userns(POD, &[line(0, 65536, 65536)], &[line(0, 131_072, 65536)]);
    let with = |pod: Option<cri::UserNamespace>, container: Option<cri::UserNamespace>| {
        changed(|world| {
            world.pod_options().userns_options = pod;
            world.options().userns_options = container;
            world.pins.user = Some("/run/pins/user".into());
        })
    };
    let spec = with(own.clone(), own.clone()).spec();
    assert_eq!(spec["linux"]["namespaces"][1], json!({"type": "user", "path": "/run/pins/user"}));
    let gids = json!([{"containerID": 0, "hostID": 131_072, "size": 65536}]);
    assert_eq!(spec["linux"]["gidMappings"], gids);
    assert_eq!(mount_at(&spec, "/etc/hosts")["gidMappings"], gids);
    assert!(mount_at(&spec, "/dev/shm")["uidMappings"].is_null());
    assert_eq!(with(own.clone(), None).spec()["linux"]["uidMappings"][0]["hostID"], 65536);
    let narrow = userns(POD, &[line(0, 65536, 1)], &[line(0, 65536, 1)]);
    assert!(!mount_at(&with(narrow, None).spec(), "/dev/pts")["options"].as_array().unwrap().contains(&json!("gid=5")));
    assert!(with(userns(NODE, &[], &[]), userns(NODE, &[], &[])).spec()["linux"]["uidMappings"].is_null());
    let error = with(own.clone(), userns(NODE, &[], &[])).error();
    assert!(error.contains("in the user namespace of its sandbox"), "{error}");
    with(None, own).make().unwrap_err();
    with(None, userns(NODE, &[], &[])).make().unwrap();

    let good = [line(0, 65536, 65536)];
    for (options, words) in [
        (userns(POD, &good, &good), None),
        (userns(NODE, &[], &[]), None),
        (userns(POD, &[], &good), Some("uids 0: exactly one")),
        (userns(POD, &good, &[]), Some("gids 0: exactly one")),
        (userns(POD, &[line(0, 1, 1), line(1, 5, 1)], &good), Some("uids 2: exactly one")),
        (userns(POD, &[line(1, 65536, 9)], &good), Some("uids 1: the mapping has to begin with id 0")),
        (userns(POD, &[line(0, 65536, 0)], &good), Some("0 65536 0: is empty, or leaves")),
        (userns(POD, &good, &[line(0, u32::MAX, 2)]), Some("is empty, or leaves")),
        (userns(NODE, &good, &good), Some("can't be used with mappings")),
        (userns(CONTAINER, &good, &good), Some("only POD and NODE")),
        (userns(7, &good, &good), Some("is not known")),
    ] {
        let mut world = World::new();
        world.pod_options().userns_options = options.clone();
        let found = check_sandbox(&world.pod, world.driver, &world.host).map_err(|error| error.to_string());
        match words {
            None => found.unwrap(),
            Some(words) => assert!(found.as_ref().unwrap_err().contains(words), "{options:?}: {found:?}"),
        }
    }
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
fn limits() {
    let of = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut wanted = cri::LinuxContainerResources::default();
        change(&mut wanted);
        resources(&wanted, &host())
    };
    for (change, wanted) in [
        ((|_| {}) as fn(&mut cri::LinuxContainerResources), json!({})),
        (
            |wanted| (wanted.cpu_period, wanted.cpu_quota, wanted.cpu_shares) = (100_000, 50_000, 512),
            json!({"cpu": {"period": 100_000, "quota": 50_000, "shares": 512}}),
        ),
        (|wanted| wanted.cpu_quota = -1, json!({"cpu": {"quota": -1}})),
        (
            |wanted| (wanted.cpuset_cpus, wanted.cpuset_mems) = ("0-1,3".into(), "0".into()),
            json!({"cpu": {"cpus": "0-1,3", "mems": "0"}}),
        ),
        (|wanted| wanted.memory_limit_in_bytes = 64 << 20, json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}})),
        (
            |wanted| (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (64 << 20, 128 << 20),
            json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
        ),
        (
            |wanted| wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 5 }],
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}),
        ),
        (
            |wanted| wanted.unified = HashMap::from([("memory.high".into(), "5".into())]),
            json!({"unified": {"memory.high": "5"}}),
        ),
    ] {
        assert_eq!(Value::from(of(change).unwrap()), wanted);
    }
    for (change, words) in [
        ((|wanted| wanted.cpu_shares = -1) as fn(&mut cri::LinuxContainerResources), "cpu_shares -1: is negative"),
        (|wanted| wanted.cpu_quota = -2, "cpu_quota -2: is negative"),
        (|wanted| wanted.memory_limit_in_bytes = -5, "memory_limit_in_bytes -5: is negative"),
        (|wanted| wanted.cpuset_cpus = "a".into(), "cpuset_cpus a: is no list of numbers and ranges"),
        (
            |wanted| (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (9, 8),
            "memory_swap_limit_in_bytes 8: is less than the limit of memory, which is part of it",
        ),
        (
            |wanted| wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "../x".into(), limit: 5 }],
            "hugepage_limits.page_size ../x: is not like 64KB, 2MB or 1GB",
        ),
        (
            |wanted| wanted.unified = HashMap::from([("../memory.high".into(), "5".into())]),
            "unified ../memory.high: is no file of a cgroup",
        ),
    ] {
        assert_eq!(of(change).unwrap_err().to_string(), words);
    }
}

#[test]
fn limits_that_this_kernel_lacks_are_left_out_with_a_word() {
    let made = changed(|world| {
        (world.host.kernel.swap, world.host.kernel.hugetlb) = (false, false);
        let wanted = world.resources();
        (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (64 << 20, 65 << 20);
        wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 5 }];
    })
    .make()
    .unwrap();
    assert_eq!(made.spec["linux"]["resources"]["memory"], json!({"limit": 64 << 20}));
    assert!(made.spec["linux"]["resources"]["hugepageLimits"].is_null());
    assert_eq!(made.warnings.len(), 2, "{:?}", made.warnings);
    let old = changed(|world| {
        world.host.kernel.unified = false;
        world.resources().unified = HashMap::from([("memory.high".into(), "5".into())]);
    });
    assert_eq!(old.error(), "unified memory.high is not supported: this node has cgroups of version 1");
}

#[test]
fn scores_of_the_oom_killer() {
    let of = |wanted, lowest| {
        changed(|world| {
            world.resources().oom_score_adj = wanted;
            world.host.lowest_oom_score_adj = lowest;
        })
    };
    for (wanted, lowest, score) in [(-998, None, -998), (1000, None, 1000), (-998, Some(-5), -5), (7, Some(-5), 7)] {
        assert_eq!(of(wanted, lowest).spec()["process"]["oomScoreAdj"], score);
    }
    assert_eq!(of(1001, None).error(), "oom_score_adj 1001: is not from -1000 to 1000");
}

#[test]
fn cgroups_by_their_driver() {
    let (systemd, cgroupfs) = (cri::CgroupDriver::Systemd, cri::CgroupDriver::Cgroupfs);
    for (parent, driver, wanted) in [
        ("/kubepods/pod1", cgroupfs, Some("/kubepods/pod1/x")),
        ("kubepods//pod1/", cgroupfs, Some("/kubepods/pod1/x")),
        ("", cgroupfs, Some("/k8s.io/x")),
        ("", systemd, Some("system.slice:cri-berth:x")),
        ("/kubepods.slice/kubepods-pod1.slice", systemd, Some("kubepods-pod1.slice:cri-berth:x")),
        ("kubepods-pod1.slice", systemd, Some("kubepods-pod1.slice:cri-berth:x")),
        ("/kubepods.slice", cgroupfs, None),
        ("/kubepods/pod1", systemd, None),
        ("/a:b.slice", systemd, None),
        ("-.slice", systemd, None),
        ("/kubepods/../../system", cgroupfs, None),
        ("..", cgroupfs, None),
        ("/../kubepods.slice", systemd, None),
        ("/a\nb", cgroupfs, None),
    ] {
        assert_eq!(cgroups_path(parent, driver, "x").ok().as_deref(), wanted, "{parent:?}");
    }
}

#[test]
fn sandboxes_that_cant_be() {
    check_sandbox(&World::new().pod, cri::CgroupDriver::Cgroupfs, &host()).unwrap();
    let sysctl = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    for (change, words) in [
        ((|pod| pod.options(TARGET, POD, POD)) as fn(&mut Pod), "namespace_options.network TARGET: only POD and NODE"),
        (|pod| pod.options(POD, TARGET, POD), "namespace_options.pid TARGET: is for containers"),
        (|pod| pod.options(POD, POD, CONTAINER), "namespace_options.ipc CONTAINER: only POD and NODE"),
        (|pod| pod.0.windows = Some(Default::default()), "windows is not supported"),
        (|pod| pod.0.hostname = "a\nb".into(), "hostname a\\nb: has blanks"),
        (|pod| pod.0.hostname = "a".repeat(65), "is longer than 64 bytes"),
        (
            |pod| {
                pod.0.dns_config =
                    Some(cri::DnsConfig { searches: words(&["a\nnameserver 6.6.6.6"]), ..Default::default() })
            },
            "dns_config.searches a\\nnameserver 6.6.6.6",
        ),
        (|pod| pod.linux().cgroup_parent = "/a/../..".into(), "cgroup_parent /a/../..: leads elsewhere"),
        (
            |pod| pod.linux().resources = Some(cri::LinuxContainerResources { cpu_shares: -1, ..Default::default() }),
            "cpu_shares",
        ),
        (
            |pod| drop(pod.0.annotations.insert("blockio.resources.beta.kubernetes.io/pod".into(), "x".into())),
            "annotation blockio.resources.beta.kubernetes.io/pod is not supported",
        ),
        (
            |pod| {
                pod.options(NODE, POD, POD);
                let context = pod.linux().security_context.get_or_insert_default();
                context.namespace_options.get_or_insert_default().userns_options =
                    userns(POD, &[line(0, 65536, 9)], &[line(0, 65536, 9)]);
            },
            "a user namespace of the pod with the node's network namespace is not supported",
        ),
    ] {
        let mut pod = Pod(World::new().pod);
        change(&mut pod);
        let error = check_sandbox(&pod.0, cri::CgroupDriver::Cgroupfs, &host()).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    for (key, network, ipc, wanted) in [
        ("net.ipv4.ip_forward", POD, POD, Some("net/ipv4/ip_forward")),
        ("net/ipv4/conf/eth0.1/forwarding", POD, POD, Some("net/ipv4/conf/eth0.1/forwarding")),
        ("net.ipv4.conf.eth0/1.forwarding", POD, POD, Some("net/ipv4/conf/eth0.1/forwarding")),
        ("kernel.shm_rmid_forced", POD, POD, Some("kernel/shm_rmid_forced")),
        ("fs.mqueue.msg_max", NODE, POD, Some("fs/mqueue/msg_max")),
        ("net.ipv4.ip_forward", NODE, POD, None),
        ("kernel.msgmax", POD, NODE, None),
        ("kernel.panic", POD, POD, None),
        ("kernel.core_pattern", POD, POD, None),
        ("kernel.hostname", POD, POD, None),
        ("vm.swappiness", POD, POD, None),
        ("net.ipv4.//.x", POD, POD, None),
        ("net/../../kernel/core_pattern", POD, POD, None),
        ("net..x", POD, POD, None),
        ("net.a+kernel.core_pattern=x", POD, POD, None),
        ("", POD, POD, None),
    ] {
        let mut pod = Pod(World::new().pod);
        pod.options(network, POD, ipc);
        pod.linux().sysctls = sysctl(key, "1");
        let found = sysctls(&pod.0).map(|settings| settings.into_keys().next().unwrap());
        assert_eq!(found.as_ref().ok().map(String::as_str), wanted, "{key}: {found:?}");
    }
    let mut pod = Pod(World::new().pod);
    pod.linux().sysctls = sysctl("net.ipv4.ip_forward", "1\nx");
    assert!(sysctls(&pod.0).is_err());
}

struct Pod(cri::PodSandboxConfig);

impl Pod {
    fn linux(&mut self) -> &mut cri::LinuxPodSandboxConfig {
        self.0.linux.get_or_insert_default()
    }

    fn options(&mut self, network: i32, pid: i32, ipc: i32) {
        let context = self.linux().security_context.get_or_insert_default();
        let options = context.namespace_options.get_or_insert_default();
        (options.network, options.pid, options.ipc) = (network, pid, ipc);
    }
}

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
            world.image_mounts.insert(0, top.clone());
        })
    };
    for (sub_path, wanted) in [("", ""), ("a/b", "a/b"), ("link/b", "a/b"), ("./a", "a")] {
        let spec = with(sub_path, true).spec();
        assert_eq!(
            mount_at(&spec, "/i")["source"],
            top.join(wanted).to_str().unwrap().trim_end_matches('/'),
            "{sub_path}"
        );
        assert_eq!(mount_at(&spec, "/i")["options"], json!(["rbind", "rprivate", "ro"]));
    }
    for (sub_path, words) in [
        ("../a", "mount on /i: image_sub_path ../a: is no path below the image's root"),
        ("/a", "mount on /i: image_sub_path /a: is no path below the image's root"),
        ("none", "mount on /i: find, in the image, none: No such file or directory (os error 2)"),
        ("file", "mount on /i: find, in the image, file: Not a directory (os error 20)"),
        // Out of the image is its own root again, which has no etc.
        ("out", "mount on /i: find, in the image, out: No such file or directory (os error 2)"),
    ] {
        assert_eq!(with(sub_path, true).error(), words);
    }
    assert_eq!(with("", false).error(), "mount on /i: readonly false: a mount of an image can't be written to");
    let mut forgotten = with("", true);
    forgotten.image_mounts.clear();
    assert_eq!(forgotten.error(), "mount on /i: its image is not mounted");
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

/// Words that mean something somewhere.
fn word() -> impl Strategy<Value = String> {
    static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
        "/ .. /.. /../.. a /a /a/../../b /proc /dev /sys/fs/cgroup/x ALL CAP_CHOWN chown unconfined runtime/default localhost/x 0 -1 www www:staff \
         4294967295 net.ipv4.x kernel.panic cdi.k8s.io/x v/c=d memory.high ../memory.high 2MB a.slice /a/b.slice A=b"
            .split_whitespace()
            .chain(["", "\0", "a\nb", "/a\0b"])
            .collect()
    });
    prop_oneof![3 => proptest::sample::select(WORDS.as_slice()).prop_map(str::to_owned), 1 => ".{0,12}"]
}

/// Mostly one of these, now and then any word: of a request with many odd parts nothing is ever made.
fn mostly(fine: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![24 => proptest::sample::select(fine).prop_map(str::to_owned), 1 => word()]
}

fn list(fine: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(mostly(fine), 0..3)
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![24 => 0..1000i64, 1 => any::<i64>(), 1 => proptest::sample::select(&[-1, i64::MAX, i64::MIN][..])]
}

fn choice() -> impl Strategy<Value = i32> {
    prop_oneof![12 => Just(0), 2 => 1..4i32, 1 => Just(-1)]
}

fn pairs(keys: &'static [&'static str]) -> impl Strategy<Value = HashMap<String, String>> {
    prop::collection::hash_map(mostly(keys), mostly(&["", "x"]), 0..2)
}

/// Places in a container, many of them by detours.
fn place() -> impl Strategy<Value = String> {
    let fine =
        &["/data", "data", "/a/../../b", "/../../etc/x", "//a//b/./c", "/dev", "/sys", "/etc/hosts/", "/proc/../x"][..];
    prop_oneof![6 => proptest::sample::select(fine).prop_map(str::to_owned), 2 => "/[./a-c]{1,12}", 1 => word()]
}

fn a_mount() -> impl Strategy<Value = cri::Mount> {
    // Only what is there: a folder that isn't would be made.
    let fine = &["/etc", "/etc/../etc/", "/dev/null", "/dev", "/", "/etc/passwd"][..];
    let source =
        prop_oneof![12 => proptest::sample::select(fine), 1 => proptest::sample::select(&["etc", "", "/\0"][..])];
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.05));
    let options = list(&["noexec", "nodev", "nosuid"]);
    (place(), source, flags, choice(), options, word()).prop_map(
        |(container_path, host_path, (readonly, recursive, image), propagation, mount_options, sub_path)| cri::Mount {
            container_path,
            host_path: if image { String::new() } else { host_path.to_owned() },
            readonly: readonly || recursive || image,
            recursive_read_only: recursive,
            propagation,
            mount_options,
            image: image.then(Default::default),
            image_sub_path: if image { sub_path } else { String::new() },
            ..Default::default()
        },
    )
}

fn a_context() -> impl Strategy<Value = cri::LinuxContainerSecurityContext> {
    const CAPS: &[&str] = &["ALL", "CAP_CHOWN", "chown", "NET_ADMIN", "SYS_ADMIN"];
    let names = prop_oneof![6 => Just(String::new()), 1 => mostly(&["www", "root"])];
    let ids = (prop::option::of(number()), prop::option::of(number()), names, prop::collection::vec(number(), 0..3));
    let profile = (choice(), prop_oneof![3 => Just(String::new()), 1 => word()])
        .prop_map(|(profile_type, localhost_ref)| cri::SecurityProfile { profile_type, localhost_ref });
    let seccomp = (prop::option::of(profile), mostly(&["", "unconfined", "runtime/default"]));
    let paths = (list(&["/proc/kcore", "/x/../y"]), list(&["/proc/sys"]));
    (
        ids,
        any::<[bool; 3]>(),
        (list(CAPS), list(CAPS), list(CAPS)),
        paths,
        seccomp,
        [choice(), choice(), choice(), choice()],
    )
        .prop_map(|(ids, flags, caps, paths, seccomp, modes)| {
            let value = |id: Option<i64>| id.map(|value| cri::Int64Value { value });
            #[allow(deprecated, reason = "it counts all the same")]
            cri::LinuxContainerSecurityContext {
                run_as_user: value(ids.0).filter(|_| ids.2.is_empty()),
                run_as_group: value(ids.1).filter(|_| ids.0.is_some() || !ids.2.is_empty()),
                run_as_username: ids.2,
                supplemental_groups: ids.3,
                supplemental_groups_policy: modes[3],
                privileged: flags[0],
                readonly_rootfs: flags[1],
                no_new_privs: flags[2],
                capabilities: Some(cri::Capability {
                    add_capabilities: caps.0,
                    drop_capabilities: caps.1,
                    add_ambient_capabilities: caps.2,
                }),
                masked_paths: paths.0,
                readonly_paths: paths.1,
                seccomp: seccomp.0,
                seccomp_profile_path: seccomp.1,
                namespace_options: Some(cri::NamespaceOption {
                    network: modes[0],
                    pid: modes[1],
                    ipc: modes[2],
                    ..Default::default()
                }),
                ..Default::default()
            }
        })
}

fn some_resources() -> impl Strategy<Value = cri::LinuxContainerResources> {
    let numbers = [number(), number(), number(), number(), number(), number()];
    let texts = (mostly(&["", "0", "0-1,3"]), mostly(&["2MB", "1GB"]), pairs(&["memory.high", "cpu.weight"]));
    (numbers, texts).prop_map(|([period, quota, shares, memory, score, swap], (cpus, size, unified))| {
        cri::LinuxContainerResources {
            cpu_period: period,
            cpu_quota: quota,
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap.saturating_add(memory),
            oom_score_adj: score,
            cpuset_cpus: cpus,
            hugepage_limits: vec![cri::HugepageLimit { page_size: size, limit: 1 }],
            unified,
            ..Default::default()
        }
    })
}

fn a_device() -> impl Strategy<Value = cri::Device> {
    let source = proptest::sample::select(&["/dev/null", "/dev/zero", "/dev/../dev/full", "/etc"][..]);
    (source, place(), mostly(&["", "rwm", "r"])).prop_map(|(host_path, container_path, permissions)| cri::Device {
        host_path: host_path.to_owned(),
        container_path,
        permissions,
    })
}

fn an_image() -> impl Strategy<Value = ImageConfig> {
    let user = mostly(&["", "www", "33:50", "www:staff"]);
    (
        user,
        list(&["A=b", "PATH=/x", "HOME=/h"]),
        list(&["/e", ""]),
        list(&["c"]),
        mostly(&["", "/w", "w"]),
        prop::collection::vec(place(), 0..2),
    )
        .prop_map(|(user, env, entrypoint, cmd, working_dir, volumes)| ImageConfig {
            user,
            env,
            entrypoint,
            cmd,
            working_dir,
            volumes: volumes.into_iter().map(|path| (path, Default::default())).collect(),
            stop_signal: String::new(),
        })
}

fn a_container() -> impl Strategy<Value = cri::ContainerConfig> {
    let process = (list(&["/bin/app", "x"]), list(&["a"]), mostly(&["", "/w"]), pairs(&["A", "HOME"]), any::<bool>());
    let mounts = prop::collection::vec(a_mount(), 0..3);
    let devices = prop::collection::vec(a_device(), 0..2);
    let linux = (prop::option::of(a_context()), prop::option::of(some_resources()));
    (process, mounts, devices, linux, pairs(&["note", "cdi.k8s"])).prop_map(
        |((command, args, working_dir, envs, tty), mounts, devices, (security_context, resources), annotations)| {
            cri::ContainerConfig {
                command,
                args,
                working_dir,
                envs: envs.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
                tty,
                mounts,
                devices,
                annotations: annotations.into_iter().collect(),
                linux: Some(cri::LinuxContainerConfig { resources, security_context }),
                ..Default::default()
            }
        },
    )
}

fn check_bounds(made: Made) -> Result<(), TestCaseError> {
    for at in destinations(&made.spec) {
        prop_assert!(at.starts_with('/') && at.len() > 1 && !at.contains("//") && !at.contains('\0'), "{at:?}");
        prop_assert!(at.split('/').all(|part| part != ".." && part != "."), "{at:?}");
    }
    for device in made.spec["linux"]["devices"].as_array().unwrap() {
        prop_assert!(device["path"].as_str().unwrap().split('/').all(|part| part != ".."));
    }
    prop_assert!(made.volumes.iter().all(|volume| volume.source.parent() == Some(Path::new("/state/volumes"))));
    prop_assert!(made.spec["process"]["user"]["uid"].as_i64().unwrap() <= i64::from(i32::MAX));
    prop_assert!(!made.spec["process"].to_string().contains("\\u0000"));
    let parsed = serde_json::from_value::<oci_spec::runtime::Spec>(made.spec);
    prop_assert!(parsed.is_ok(), "{parsed:?}");
    Ok(())
}

#[test]
fn whatever_is_asked_for_stays_in_its_bounds() {
    const CASES: u32 = 1024;
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() });
    let made = std::cell::Cell::new(0);
    let cases = (a_container(), an_image(), mostly(&["", "/kubepods/pod1", "kubepods"]), any::<bool>());
    let run = runner.run(&cases, |(container, image, parent, privileged)| {
        let mut world = World { container, image, ..World::new() };
        world.pod_context().privileged = privileged;
        world.target_pid = Some(42);
        world.pod.linux.get_or_insert_default().cgroup_parent = parent;
        match world.make() {
            Ok(found) => {
                made.set(made.get() + 1);
                check_bounds(found)
            }
            Err(error) => {
                prop_assert!(!error.to_string().contains(['\0', '\n']), "{error}");
                Ok(())
            }
        }
    });
    run.unwrap();
    assert!(made.get() > CASES / 8, "of {CASES} requests only {} could be had: they say too little", made.get());
}

proptest! {
    #[test]
    fn a_cgroup_stays_below_its_pods(parent in prop_oneof![word(), "[./a-c:]{0,16}(\\.slice)?"], systemd: bool) {
        let driver = if systemd { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
        if let Ok(path) = cgroups_path(&parent, driver, "c0ffee") {
            prop_assert!(!path.split(['/', ':']).any(|part| part == ".."), "{path}");
            let parts = |text: &str| text.split('/').filter(|part| !["", "."].contains(part)).map(str::to_owned).collect::<Vec<_>>();
            let (parent, own) = (parts(&parent), parts(&path));
            match systemd {
                true => {
                    prop_assert_eq!(path.matches(':').count(), 2);
                    let slice = path.split(':').next().unwrap();
                    prop_assert_eq!(parent.last().map_or("system.slice", String::as_str), slice);
                }
                false if parent.is_empty() => prop_assert_eq!(path, "/k8s.io/c0ffee"),
                false => prop_assert!(own.starts_with(&parent) && own.len() == parent.len() + 1, "{}", path),
            }
        }
    }

    #[test]
    fn any_destination_is_below_the_root(path in "[./a-c\\x00é]{0,20}") {
        if let Ok(at) = mounts::destination("x", &path) {
            prop_assert!(at.starts_with('/') && at.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }
}
