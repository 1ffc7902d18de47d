//! A graph as a text, for tests and for those who look for what went wrong.

use super::{
    llb::{NAME, digest},
    platform,
};
use prost::Message as _;
use proto::pb::{self, file_action::Action, op};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

/// The graph as a text, an operation per line: its number, what it is, the numbers of what it works on, what it does, its name.
pub fn show(definition: &pb::Definition) -> String {
    let mut numbers = HashMap::new();
    let mut text = String::new();
    for (number, bytes) in definition.def.iter().enumerate() {
        let digest = digest(bytes);
        let Ok(op) = pb::Op::decode(bytes.as_slice()) else {
            let _ = writeln!(text, "{number} unreadable");
            continue;
        };
        let inputs: Vec<String> = op
            .inputs
            .iter()
            .map(|input| {
                let number = numbers.get(&input.digest).map_or_else(|| "?".into(), usize::to_string);
                if input.index == 0 { number } else { format!("{number}.{}", input.index) }
            })
            .collect();
        let what = match &op.op {
            None => "result".into(),
            Some(op) => show_op(op),
        };
        let _ = write!(text, "{number} {what}");
        if !inputs.is_empty() {
            let _ = write!(text, " <- {}", inputs.join(" "));
        }
        if let Some(platform) = &op.platform {
            let _ = write!(text, " on {}", platform::format(platform));
        }
        if let Some(metadata) = definition.metadata.get(&digest) {
            if metadata.ignore_cache {
                text += " no-cache";
            }
            if let Some(name) = metadata.description.get(NAME) {
                let _ = write!(text, " # {name}");
            }
        }
        text.push('\n');
        numbers.insert(digest, number);
    }
    text
}

fn show_op(op: &op::Op) -> String {
    match op {
        op::Op::Source(source) => {
            let attributes: BTreeMap<_, _> = source.attrs.iter().collect();
            attributes.iter().fold(source.identifier.clone(), |text, (key, value)| format!("{text} {key}={value}"))
        }
        op::Op::Exec(exec) => show_exec(exec),
        op::Op::File(file) => file.actions.iter().map(show_action).collect::<Vec<_>>().join("; "),
        op::Op::Merge(merge) => {
            format!("merge{}", merge.inputs.iter().map(|input| format!(" {}", input.input)).collect::<String>())
        }
        op::Op::Diff(_) => "diff".into(),
        op::Op::Build(_) => "build".into(),
    }
}

fn show_exec(exec: &pb::ExecOp) -> String {
    let meta = exec.meta.clone().unwrap_or_default();
    let mut text = format!("exec {:?} env={:?} cwd={}", meta.args, meta.env, meta.cwd);
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = write!(text, " {name}={value}");
        }
    };
    field("user", &meta.user);
    field("hostname", &meta.hostname);
    field("cgroup-parent", &meta.cgroup_parent);
    match exec.network() {
        pb::NetMode::Unset => (),
        mode => field("network", mode.as_str_name()),
    }
    match exec.security() {
        pb::SecurityMode::Sandbox => (),
        mode => field("security", mode.as_str_name()),
    }
    for host in &meta.extra_hosts {
        field("host", &format!("{}:{}", host.host, host.ip));
    }
    for limit in &meta.ulimit {
        field("ulimit", &format!("{}={}:{}", limit.name, limit.soft, limit.hard));
    }
    if let Some(proxy) = &meta.proxy_env {
        let values = [&proxy.http_proxy, &proxy.https_proxy, &proxy.ftp_proxy, &proxy.no_proxy, &proxy.all_proxy];
        field("proxy", &values.map(String::as_str).join(","));
    }
    for secret in &exec.secretenv {
        field("secret", &format!("{}:{}{}", secret.id, secret.name, if secret.optional { "?" } else { "" }));
    }
    for device in &exec.cdi_devices {
        field("device", &format!("{}{}", device.name, if device.optional { "?" } else { "" }));
    }
    for mount in &exec.mounts {
        field("mount", &show_mount(mount));
    }
    text
}

fn show_mount(mount: &pb::Mount) -> String {
    let mut text = match mount.selector.as_str() {
        "" => format!("{}:{}", mount.input, mount.dest),
        selector => format!("{}({selector}):{}", mount.input, mount.dest),
    };
    if mount.mount_type() != pb::MountType::Bind {
        let _ = write!(text, ",{}", mount.mount_type().as_str_name().to_lowercase());
    }
    if mount.readonly {
        text += ",ro";
    }
    if mount.output >= 0 {
        let _ = write!(text, ",out={}", mount.output);
    }
    let option = |optional: bool| if optional { "?" } else { "" };
    if let Some(cache) = &mount.cache_opt {
        let _ = write!(text, ",id={},{}", cache.id, cache.sharing().as_str_name().to_lowercase());
    }
    if let Some(tmpfs) = &mount.tmpfs_opt {
        let _ = write!(text, ",size={}", tmpfs.size);
    }
    if let Some(secret) = &mount.secret_opt {
        let _ = write!(text, ",id={}{}", secret.id, option(secret.optional));
        let _ = write!(text, ",{}:{}:{:o}", secret.uid, secret.gid, secret.mode);
    }
    if let Some(ssh) = &mount.ssh_opt {
        let _ = write!(text, ",id={}{},{}:{}:{:o}", ssh.id, option(ssh.optional), ssh.uid, ssh.gid, ssh.mode);
    }
    text
}

fn show_owner(owner: Option<&pb::ChownOpt>) -> String {
    let one = |user: Option<&pb::UserOpt>| match user.and_then(|user| user.user.as_ref()) {
        None => String::new(),
        Some(pb::user_opt::User::ById(id)) => id.to_string(),
        Some(pb::user_opt::User::ByName(named)) => format!("{}@{}", named.name, named.input),
    };
    match owner {
        None => String::new(),
        Some(pb::ChownOpt { user, group: None }) => format!(" owner={}", one(user.as_ref())),
        Some(pb::ChownOpt { user, group }) => format!(" owner={}:{}", one(user.as_ref()), one(group.as_ref())),
    }
}

fn show_time(time: i64) -> String {
    if time < 0 { String::new() } else { format!(" time={time}") }
}

fn show_action(action: &pb::FileAction) -> String {
    let at = action.input;
    match &action.action {
        None => "nothing".into(),
        Some(Action::Mkfile(file)) => format!(
            "mkfile {at}:{} {:o} {:?}{}{}",
            file.path,
            file.mode,
            String::from_utf8_lossy(&file.data),
            show_owner(file.owner.as_ref()),
            show_time(file.timestamp)
        ),
        Some(Action::Mkdir(folder)) => format!(
            "mkdir {at}:{} {:o}{}{}{}",
            folder.path,
            folder.mode,
            if folder.make_parents { " parents" } else { "" },
            show_owner(folder.owner.as_ref()),
            show_time(folder.timestamp)
        ),
        Some(Action::Rm(rm)) => format!("rm {at}:{}", rm.path),
        Some(Action::Symlink(link)) => format!("symlink {at}:{} -> {}", link.newpath, link.oldpath),
        Some(Action::Copy(copy)) => {
            let mut text = format!("copy {}:{} {at}:{}", action.secondary_input, copy.src, copy.dest);
            text += &show_owner(copy.owner.as_ref());
            if copy.mode >= 0 {
                let _ = write!(text, " mode={:o}", copy.mode);
            }
            if !copy.mode_str.is_empty() {
                let _ = write!(text, " mode={}", copy.mode_str);
            }
            let flags = [
                (copy.follow_symlink, " follow"),
                (copy.dir_copy_contents, " contents"),
                (copy.attempt_unpack_docker_compatibility, " unpack"),
                (copy.create_dest_path, " create"),
                (copy.allow_wildcard, " wildcard"),
                (copy.allow_empty_wildcard, " empty"),
            ];
            flags.iter().filter(|(set, _)| *set).for_each(|(_, word)| text += word);
            for (name, list) in [
                ("include", &copy.include_patterns),
                ("exclude", &copy.exclude_patterns),
                ("required", &copy.required_paths),
            ] {
                if !list.is_empty() {
                    let _ = write!(text, " {name}={}", list.join(","));
                }
            }
            text + &show_time(copy.timestamp)
        }
    }
}
