//! The specification of typical containers.

use super::*;
use crate::containers::record::{MountKind, MountPoint, Phase, State};
use crate::{
    api::{Config, HostConfig},
    time::Timestamp,
};

fn record(host: &str) -> Record {
    let mut state = State::created();
    state.phase = Phase::Created;
    Record {
        id: "ab".repeat(32),
        name: "web".into(),
        created: Timestamp::now(),
        image_id: String::new(),
        image_digest: String::new(),
        chain_id: String::new(),
        snapshotter: "overlayfs".into(),
        config: Config { env: vec!["A=b".into()], working_dir: "/srv".into(), ..Config::default() },
        host: serde_json::from_str(host).unwrap(),
        mac: None,
        ip: None,
        networks: Vec::new(),
        path: "sh".into(),
        args: vec!["-c".into(), "true".into()],
        mounts: Vec::new(),
        registered: false,
        update_pending: false,
        state,
    }
}

fn spec_of(record: &Record, network: NetworkKind) -> Value {
    let user = User { uid: 0, gid: 0, groups: vec![0], home: "/root".into() };
    let security = security::parse(&record.host).unwrap();
    let around = Surroundings {
        user: &user,
        hostname: "abababababab",
        folder: Path::new("/d"),
        network,
        netns: (network != NetworkKind::Host).then_some(Path::new("/netns/x")),
        unified_cgroups: true,
        security: &security,
        apparmor: Some("docker-default"),
        init: None,
        joined: &Joined::default(),
        sources: &BTreeMap::new(),
        links: &[],
        devices: &cdi::Edits::default(),
    };
    build(record, &around).unwrap()
}

fn destinations(spec: &Value) -> Vec<&str> {
    spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect()
}

#[test]
fn profile_of_apparmor() {
    let spec = spec_of(&record("{}"), NetworkKind::Bridge);
    assert_eq!(spec["process"]["apparmorProfile"], "docker-default");
}

#[test]
fn plain() {
    let spec = spec_of(&record("{}"), NetworkKind::Bridge);
    assert_eq!(spec["process"]["args"], json!(["sh", "-c", "true"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    let caps = &spec["process"]["capabilities"];
    assert_eq!(caps["bounding"].as_array().unwrap().len(), 14);
    assert_eq!((caps["inheritable"].clone(), caps["ambient"].clone()), (json!([]), json!([])));
    assert_eq!(spec["process"]["env"].as_array().unwrap().last().unwrap(), "HOME=/root");
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(json!(kinds), json!(["mount", "network", "uts", "pid", "ipc", "cgroup"]));
    assert_eq!(spec["linux"]["namespaces"][1]["path"], "/netns/x");
    assert_eq!(spec["linux"]["cgroupsPath"], format!("/berth/{}", "ab".repeat(32)));
    assert!(spec["linux"]["maskedPaths"].as_array().unwrap().len() >= 12);
    assert_eq!(spec["linux"]["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
    assert!(spec["linux"]["seccomp"].is_object());
    assert_eq!(
        destinations(&spec),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/sys",
            "/sys/fs/cgroup",
            "/dev/mqueue",
            "/dev/shm",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts"
        ]
    );
}

#[test]
fn privileged_has_no_walls() {
    let spec = spec_of(&record(r#"{"Privileged":true}"#), NetworkKind::Host);
    assert!(spec["linux"]["seccomp"].is_null());
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    assert!(spec["linux"]["namespaces"].as_array().unwrap().iter().all(|n| n["type"] != "network"));
}

#[test]
fn limits_and_modes() {
    let spec = spec_of(
        &record(
            r#"{"Memory":67108864,"NanoCpus":1500000000,"PidsLimit":50,"CpusetCpus":"0","ShmSize":1048576,"PidMode":"host",
                "IpcMode":"host","UTSMode":"host","ReadonlyRootfs":true,"Ulimits":[{"Name":"nofile","Soft":10,"Hard":-1}],
                "SecurityOpt":["no-new-privileges","seccomp=unconfined"],"OomScoreAdj":5,"CgroupParent":"mine"}"#,
        ),
        NetworkKind::None,
    );
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 67_108_864, "swap": 134_217_728}));
    assert_eq!(resources["cpu"], json!({"period": 100_000, "quota": 150_000, "cpus": "0"}));
    assert_eq!(resources["pids"], json!({"limit": 50}));
    assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": u64::MAX}]));
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["oomScoreAdj"], 5);
    assert_eq!(spec["root"]["readonly"], true);
    assert!(spec["hostname"].is_null());
    assert!(spec["linux"]["cgroupsPath"].as_str().unwrap().starts_with("/mine/"));
    assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 3);
}

#[test]
fn block_devices_are_limited_by_their_numbers() {
    let host = r#"{"BlkioWeight":300,"BlkioWeightDevice":[{"Path":"/dev/null","Weight":20}],
        "BlkioDeviceReadBps":[{"Path":"/dev/zero","Rate":5}],"BlkioDeviceWriteIOps":[{"Path":"/dev/full","Rate":6}]}"#;
    let spec = spec_of(&record(host), NetworkKind::Bridge);
    let expected = json!({
        "weight": 300, "weightDevice": [{"major": 1, "minor": 3, "weight": 20}],
        "throttleReadBpsDevice": [{"major": 1, "minor": 5, "rate": 5}],
        "throttleWriteIOPSDevice": [{"major": 1, "minor": 7, "rate": 6}],
    });
    assert_eq!(spec["linux"]["resources"]["blockIO"], expected);
    let missing: HostConfig =
        serde_json::from_str(r#"{"BlkioDeviceReadBps":[{"Path":"/dev/nope","Rate":5}]}"#).unwrap();
    assert!(resources::resources(&missing).unwrap_err().message.contains("/dev/nope"));
}

#[test]
fn mounts_of_the_user_come_last_and_replace() {
    let mut record = record("{}");
    let mount = |kind, source: &str, destination: &str, options: &[&str]| MountPoint {
        kind,
        source: source.into(),
        destination: destination.into(),
        propagation: "rshared".into(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..MountPoint::default()
    };
    record.mounts = vec![
        mount(MountKind::Bind, "/my/hosts", "/etc/hosts", &[]),
        mount(MountKind::Tmpfs, "", "/dev/shm", &["exec", "size=1m"]),
    ];
    let spec = spec_of(&record, NetworkKind::Bridge);
    let list = spec["mounts"].as_array().unwrap();
    assert_eq!(destinations(&spec).iter().filter(|d| **d == "/dev/shm").count(), 1);
    assert_eq!(list[list.len() - 2]["options"], json!(["rbind", "rshared", "ro"]));
    assert_eq!(list[list.len() - 1]["options"], json!(["nosuid", "nodev", "exec", "size=1m"]));
    assert_eq!(spec["linux"]["rootfsPropagation"], "shared");
}
