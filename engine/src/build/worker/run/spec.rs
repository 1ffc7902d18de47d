//! The specification of a command's container: that of any container of the engine, with the mounts of the build.

use super::{plan::Plan, variables::Variables};
use crate::{
    api::{Config, HostConfig},
    app::App,
    containers::{
        namespaces::Joined,
        record::{Record, State},
        security::Security,
        spec::{self, Surroundings},
    },
    http::ApiResult,
    networks::NetworkKind,
    time::Timestamp,
};
use ::spec::{cdi::Edits, users::User};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// The engine's own files of a container; builds don't have a host name of their own in theirs, as with BuildKit.
const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
/// Those that builds have.
pub const POINTS: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// What the specification depends on besides the plan.
pub struct Around<'a> {
    /// Who the command runs as.
    pub user: &'a User,
    /// Folder with hosts and resolv.conf.
    pub folder: &'a Path,
    /// The pinned network namespace; none with the host's network.
    pub netns: Option<&'a Path>,
    /// What the options of security say.
    pub security: &'a Security,
    /// AppArmor's profile.
    pub apparmor: Option<&'a str>,
    /// What devices need.
    pub devices: &'a Edits,
    /// Variables that nobody else is to see.
    pub variables: Option<&'a Variables>,
    /// What the command has mounted.
    pub mounts: &'a [Value],
}

/// The container as the engine would know it, were it a user's.
pub fn record(app: &App, plan: &Plan, id: &str) -> ApiResult<Record> {
    let mut host = HostConfig {
        network_mode: plan.network.name().to_owned(),
        ipc_mode: "private".into(),
        privileged: plan.insecure,
        readonly_rootfs: plan.root_readonly,
        cgroup_parent: plan.cgroup_parent.clone(),
        ulimits: plan.ulimits.clone().into(),
        extra_hosts: Some(plan.extra_hosts.clone()),
        ..HostConfig::default()
    };
    app.config.containers.apply(&mut host)?;
    let config = Config { hostname: plan.hostname.clone(), working_dir: plan.cwd.clone(), ..Config::default() };
    Ok(Record {
        id: id.to_owned(),
        name: format!("build-{}", crate::ids::short(id)),
        created: Timestamp::now(),
        image_id: String::new(),
        image_digest: String::new(),
        chain_id: String::new(),
        snapshotter: app.supervisor.snapshotter().to_owned(),
        config,
        host,
        mac: None,
        ip: None,
        networks: Vec::new(),
        path: plan.args.first().cloned().unwrap_or_default(),
        args: plan.args.iter().skip(1).cloned().collect(),
        mounts: Vec::new(),
        registered: false,
        update_pending: false,
        state: State::created(),
    })
}

/// Writes it.
pub fn build(app: &App, plan: &Plan, record: &Record, around: &Around<'_>) -> ApiResult<Value> {
    let surroundings = Surroundings {
        user: around.user,
        hostname: &plan.hostname,
        folder: around.folder,
        network: plan.network,
        netns: around.netns,
        unified_cgroups: app.unified_cgroups,
        security: around.security,
        apparmor: around.apparmor,
        init: None,
        joined: &Joined::default(),
        sources: &BTreeMap::new(),
        links: &[],
        devices: around.devices,
    };
    let mut spec = spec::build(record, &surroundings)?;
    let mut env = plan.env.clone();
    if !env.iter().any(|word| word.starts_with("HOME=")) {
        env.push(format!("HOME={}", around.user.home));
    }
    // What devices bring.
    if let Some(further) = spec["process"]["env"].as_array() {
        let own = spec_env_of_devices(further, around.devices);
        env.extend(own);
    }
    spec["process"]["env"] = json!(env);
    arrange(&mut spec, around);
    if let Some(variables) = around.variables {
        variables.arrange(&mut spec);
    }
    Ok(spec)
}

fn spec_env_of_devices(written: &[Value], devices: &Edits) -> Vec<String> {
    let wanted = devices.env();
    written
        .iter()
        .filter_map(Value::as_str)
        .filter(|word| wanted.iter().any(|w| w == word))
        .map(str::to_owned)
        .collect()
}

/// The kernel's file systems first, then the files, then what the build mounts, which replaces what is at its place.
fn arrange(spec: &mut Value, around: &Around<'_>) {
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    let destination = |mount: &Value| mount["destination"].as_str().unwrap_or_default().to_owned();
    mounts.retain(|mount| !FILES.contains(&destination(mount).as_str()));
    for point in POINTS {
        let source = around.folder.join(point.trim_start_matches("/etc/"));
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        mounts.push(json!({"type": "bind", "destination": point, "source": source, "options": options}));
    }
    let covered: Vec<String> = around.mounts.iter().map(destination).collect();
    mounts.retain(|mount| !covered.contains(&destination(mount)));
    mounts.extend(around.mounts.iter().cloned());
}

/// Where the network namespace of a run is found.
pub fn netns(app: &App, kind: NetworkKind, id: &str) -> Option<std::path::PathBuf> {
    (kind != NetworkKind::Host).then(|| crate::containers::register::netns_path(app, id))
}
