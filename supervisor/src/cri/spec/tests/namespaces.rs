//! Namespaces and the maps of users.

use super::*;

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

pub(super) fn line(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { host_id, container_id, length }
}

pub(super) fn userns(mode: i32, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> Option<cri::UserNamespace> {
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
        (userns(POD, &good, &[line(0, 65536, 9)]), Some("65536 and 9: users and groups have to be equally many")),
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
