//! The first process: what it runs, as whom, in which environment.

use ::spec::{
    signal,
    users::{self, Memberships},
};
use proto::runtime::v1 as cri;
use serde_json::{Value, json};

use super::{ImageConfig, Input, SpecError, resources, security::Capabilities};

/// What finds programs where neither image nor request say so.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `process`.
pub(super) fn process(
    input: &Input<'_>,
    context: &cri::LinuxContainerSecurityContext,
    caps: &Capabilities,
) -> Result<Value, SpecError> {
    let config = input.container;
    let user = user(input, context)?;
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": arguments(config, input.image)?,
        "env": environment(input, &user.home)?,
        "cwd": working_dir(config, input.image)?,
        "capabilities": {
            "bounding": caps.all, "effective": caps.all, "permitted": caps.all,
            // Nothing inheritable but what is to be ambient (CVE-2022-24769).
            "inheritable": caps.ambient, "ambient": caps.ambient,
        },
        "noNewPrivileges": context.no_new_privs,
    });
    if let Some(score) = resources::oom_score_adj(config, input.host)? {
        process["oomScoreAdj"] = score.into();
    }
    if let Some(profile) = input.apparmor {
        process["apparmorProfile"] = profile.into();
    }
    Ok(process)
}

/// Command and arguments: the request's command stands for the image's entrypoint and takes its cmd away.
fn arguments(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let (mut command, mut args) = (config.command.as_slice(), config.args.as_slice());
    if command.is_empty() {
        if args.is_empty() {
            args = &image.cmd;
        }
        // One empty word is how a builder says "no entrypoint".
        if image.entrypoint != [""] {
            command = &image.entrypoint;
        }
    }
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if all.iter().any(|word| word.contains('\0')) {
        return Err(SpecError::invalid("command", all.join(" "), "has a NUL"));
    }
    if all.first().is_none_or(String::is_empty) { Err(SpecError::NoCommand) } else { Ok(all) }
}

/// Variables, later ones in the place of earlier ones of the same name.
fn environment(input: &Input<'_>, home: &str) -> Result<Vec<String>, SpecError> {
    let mut env = vec![PATH.to_owned()];
    if input.container.tty {
        env.push("TERM=xterm".to_owned());
    }
    let node = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let hostname = Some(input.pod.hostname.clone()).filter(|name| !name.is_empty()).unwrap_or_else(node);
    env.push(format!("HOSTNAME={hostname}"));
    for word in &input.image.env {
        set(&mut env, word.clone());
    }
    for cri::KeyValue { key, value } in &input.container.envs {
        if key.is_empty() || key.contains('=') {
            return Err(SpecError::invalid("envs", key, "is no name of a variable"));
        }
        set(&mut env, format!("{key}={value}"));
    }
    if let Some(word) = env.iter().find(|word| word.contains('\0')) {
        // Not its value: that may be a secret.
        return Err(SpecError::invalid("envs", name(word), "has a NUL"));
    }
    if !env.iter().any(|word| name(word) == "HOME") {
        env.push(format!("HOME={home}"));
    }
    Ok(env)
}

fn name(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

fn set(env: &mut Vec<String>, word: String) {
    match env.iter_mut().find(|have| name(have) == name(&word)) {
        Some(have) => *have = word,
        None => env.push(word),
    }
}

fn working_dir(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<String, SpecError> {
    let (asked, image) = (&config.working_dir, &image.working_dir);
    if asked.contains('\0') || image.contains('\0') {
        return Err(SpecError::invalid("working_dir", asked, "has a NUL"));
    }
    match (asked.as_str(), image.as_str()) {
        ("", "") => Ok("/".to_owned()),
        ("", image) if image.starts_with('/') => Ok(image.to_owned()),
        ("", image) => Ok(format!("/{image}")),
        (asked, _) if asked.starts_with('/') => Ok(asked.to_owned()),
        (asked, _) => Err(SpecError::invalid("working_dir", asked, "is not absolute")),
    }
}

/// Who it is: the request's user, else the image's. The groups are those that the request names, with `Merge` those besides of which
/// the image's group file says so.
fn user(input: &Input<'_>, context: &cri::LinuxContainerSecurityContext) -> Result<users::User, SpecError> {
    let group = context.run_as_group.map(|group| group.value.to_string());
    let name = &context.run_as_username;
    if name.contains(':') {
        return Err(SpecError::invalid("run_as_username", name, "has a colon: a group is named by run_as_group"));
    }
    let asked = match (name.as_str(), context.run_as_user) {
        ("", None) => None,
        ("", Some(user)) => Some(user.value.to_string()),
        (name, None) => Some(name.to_owned()),
        (name, Some(_)) => {
            return Err(SpecError::invalid(
                "run_as_username",
                name,
                "is there beside run_as_user: only one of them counts",
            ));
        }
    };
    let wanted = match (asked, group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user,
        (None, Some(group)) => {
            return Err(SpecError::invalid("run_as_group", group, "needs run_as_user or run_as_username beside it"));
        }
        (None, None) => input.image.user.clone(),
    };
    let policy = context.supplemental_groups_policy;
    let memberships = match cri::SupplementalGroupsPolicy::try_from(policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => Memberships::Always,
        Ok(cri::SupplementalGroupsPolicy::Strict) => Memberships::Never,
        Err(_) => return Err(SpecError::invalid("supplemental_groups_policy", policy, "is not known")),
    };
    let extra: Vec<String> = context.supplemental_groups.iter().map(i64::to_string).collect();
    Ok(users::find(input.users, &wanted, memberships, &extra)?)
}

/// The signal that asks a container to end: the request's, else the image's, else SIGTERM.
pub(in crate::cri) fn stop_signal(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<u32, SpecError> {
    let number = config.stop_signal;
    let asked = cri::Signal::try_from(number).map_err(|_| SpecError::invalid("stop_signal", number, "is not known"))?;
    let name = match asked {
        cri::Signal::RuntimeDefault if image.stop_signal.is_empty() => "SIGTERM".to_owned(),
        cri::Signal::RuntimeDefault => image.stop_signal.clone(),
        // SIGRTMINPLUS1 is SIGRTMIN+1 elsewhere.
        asked => asked.as_str_name().replace("PLUS", "+").replace("MINUS", "-"),
    };
    Ok(signal::parse(&name)?)
}
