//! What an operation asks for, read and judged before anything is done: what can be refused is refused here. Pure.

use crate::{api::Ulimit, networks::NetworkKind};
use proto::pb;
use solver::StepError;

/// Host name in the place of none; BuildKit's.
const HOSTNAME: &str = "buildkitsandbox";
/// Search path of images that have none; BuildKit's.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where agents are found by programs.
const AUTH_SOCK: &str = "SSH_AUTH_SOCK";
/// Where the first agent is, if nobody says.
const FIRST_SOCK: &str = "/run/buildkit/ssh_agent.0";
/// More mounts than anybody writes down.
const MOST_MOUNTS: usize = 256;

/// A RUN.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The command.
    pub args: Vec<String>,
    /// Its environment, without the secrets.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: String,
    /// `user[:group]`.
    pub user: String,
    /// The container's name for itself.
    pub hostname: String,
    /// `name:address`.
    pub extra_hosts: Vec<String>,
    /// Limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// The cgroup that its own is made in.
    pub cgroup_parent: String,
    /// Exit codes that are no failure.
    pub valid_codes: Vec<u32>,
    /// Its network.
    pub network: NetworkKind,
    /// All privileges.
    pub insecure: bool,
    /// The root file system.
    pub root: Slot,
    /// The root can't be written to.
    pub root_readonly: bool,
    /// What else is mounted, parents first.
    pub mounts: Vec<Mount>,
    /// Secrets that become variables.
    pub secret_env: Vec<pb::SecretEnv>,
    /// Devices by the names of the Container Device Interface.
    pub devices: Vec<pb::CdiDevice>,
    /// Folders above mount points that were made for them go, too.
    pub deep_cleaning: bool,
    /// How many results it has.
    pub outputs: usize,
}

/// Where something comes from and where what was written to it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Place among the inputs; none: it starts empty.
    pub input: Option<usize>,
    /// Place among the results.
    pub output: Option<usize>,
}

/// Something that is mounted.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// Where, absolute and without `..`.
    pub dest: String,
    /// A path within the source.
    pub selector: String,
    /// It can't be written to.
    pub readonly: bool,
    /// Its source.
    pub slot: Slot,
    /// What it is.
    pub kind: Kind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A filesystem of the build.
    Bind,
    /// An empty one, in memory.
    Tmpfs {
        /// Bytes; 0: no limit.
        size: i64,
    },
    /// A folder that outlives the build.
    Cache {
        /// Its name.
        id: String,
        /// Who else may have it meanwhile.
        sharing: pb::CacheSharingOpt,
    },
    /// A file with a secret.
    Secret(pb::SecretOpt),
    /// A socket of an agent.
    Ssh(pb::SshOpt),
}

fn invalid(text: impl Into<String>) -> StepError {
    StepError::Invalid(text.into())
}

fn allowed(entitlements: &[String], wanted: &str) -> Result<(), StepError> {
    // `device` alone allows every device.
    let fits =
        |has: &String| has == wanted || wanted.strip_prefix(has.as_str()).is_some_and(|rest| rest.starts_with('='));
    if entitlements.iter().any(fits) { Ok(()) } else { Err(StepError::Denied(format!("{wanted} is not allowed"))) }
}

impl Plan {
    /// Reads an operation on so many inputs.
    pub fn new(op: &pb::ExecOp, inputs: usize, entitlements: &[String]) -> Result<Self, StepError> {
        let meta = op.meta.as_ref().ok_or_else(|| invalid("exec op without meta"))?;
        if meta.args.first().is_none_or(String::is_empty) {
            return Err(invalid("exec op without a command"));
        }
        if meta.args.iter().chain(&meta.env).any(|word| word.contains('\0')) {
            return Err(invalid("exec op: a word of the command or its environment contains a zero byte"));
        }
        // Numbers that nobody knows are errors and never a branch (GHSA-7236-3392-c5c6).
        let insecure = match pb::SecurityMode::try_from(op.security) {
            Ok(pb::SecurityMode::Sandbox) => false,
            Ok(pb::SecurityMode::Insecure) => true,
            Err(_) => return Err(invalid(format!("unknown security mode {}", op.security))),
        };
        let network = match pb::NetMode::try_from(op.network) {
            Ok(pb::NetMode::Unset) => NetworkKind::Bridge,
            Ok(pb::NetMode::Host) => NetworkKind::Host,
            Ok(pb::NetMode::None) => NetworkKind::None,
            Err(_) => return Err(invalid(format!("unknown network mode {}", op.network))),
        };
        if insecure {
            allowed(entitlements, "security.insecure")?;
        }
        if network == NetworkKind::Host {
            allowed(entitlements, "network.host")?;
        }
        for device in &op.cdi_devices {
            allowed(entitlements, &format!("device={}", device.name))?;
        }
        if op.mounts.len() > MOST_MOUNTS {
            return Err(invalid(format!(
                "exec op with {} mounts: at most {MOST_MOUNTS} are possible",
                op.mounts.len()
            )));
        }
        let mut root = None;
        let mut mounts = Vec::with_capacity(op.mounts.len());
        for mount in &op.mounts {
            let read = read_mount(mount, &meta.cwd, inputs)?;
            if read.dest != "/" {
                mounts.push(read);
            } else if read.kind != Kind::Bind || !matches!(read.selector.as_str(), "" | "/" | ".") {
                return Err(invalid("the root filesystem of an exec op must be a whole input"));
            } else if root.replace(read).is_some() {
                return Err(invalid("exec op with two root filesystems"));
            }
        }
        let root = root.ok_or_else(|| invalid("exec op without a root filesystem"))?;
        let mut outputs = 0;
        let mut seen = std::collections::BTreeSet::new();
        for slot in mounts.iter().map(|mount| mount.slot).chain([root.slot]) {
            let Some(output) = slot.output else { continue };
            if output >= MOST_MOUNTS || !seen.insert(output) {
                return Err(invalid(format!("exec op with a wrong output index {output}")));
            }
            outputs = outputs.max(output + 1);
        }
        mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        let cgroup_parent = meta.cgroup_parent.clone();
        if cgroup_parent.split('/').any(|part| part == "..") || cgroup_parent.contains('\0') {
            return Err(invalid(format!("invalid cgroup parent {cgroup_parent:?}")));
        }
        let number = |code: &i32| u32::try_from(*code).map_err(|_| invalid(format!("invalid exit code {code}")));
        let mut valid_codes = meta.valid_exit_codes.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        if valid_codes.is_empty() {
            valid_codes.push(0);
        }
        Ok(Self {
            args: meta.args.clone(),
            env: environment(meta, &mounts),
            cwd: if meta.cwd.is_empty() { "/".into() } else { absolute("/", &meta.cwd)? },
            user: meta.user.clone(),
            hostname: if meta.hostname.is_empty() { HOSTNAME.into() } else { meta.hostname.clone() },
            extra_hosts: meta.extra_hosts.iter().map(|host| format!("{}:{}", host.host, host.ip)).collect(),
            ulimits: meta.ulimit.iter().map(|u| Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect(),
            cgroup_parent,
            valid_codes,
            network,
            insecure,
            root: root.slot,
            root_readonly: root.readonly,
            mounts,
            secret_env: op.secretenv.clone(),
            devices: op.cdi_devices.clone(),
            deep_cleaning: meta.remove_mount_stubs_recursive,
            outputs,
        })
    }

    /// The command as it is shown in errors: quoted as BuildKit does, without the quotes around it.
    pub fn command(&self) -> String {
        let joined = self.args.join(" ");
        let mut text = String::with_capacity(joined.len());
        for c in joined.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => text.push(c),
            }
        }
        text
    }
}

fn read_mount(mount: &pb::Mount, cwd: &str, inputs: usize) -> Result<Mount, StepError> {
    let bad = |what: &str, number: i64| invalid(format!("mount {}: {what} {number}", mount.dest));
    let input = match mount.input {
        -1 => None,
        at => Some(usize::try_from(at).ok().filter(|at| *at < inputs).ok_or_else(|| bad("no such input", at))?),
    };
    let output = match mount.output {
        -1 => None,
        at => Some(usize::try_from(at).map_err(|_| bad("invalid output", at))?),
    };
    let kind = match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind) => Kind::Bind,
        Ok(pb::MountType::Tmpfs) => Kind::Tmpfs { size: mount.tmpfs_opt.map_or(0, |opt| opt.size.max(0)) },
        Ok(pb::MountType::Cache) => {
            let opt = mount
                .cache_opt
                .clone()
                .ok_or_else(|| invalid(format!("mount {}: cache without options", mount.dest)))?;
            let sharing = pb::CacheSharingOpt::try_from(opt.sharing)
                .map_err(|_| bad("unknown sharing of a cache", i64::from(opt.sharing)))?;
            Kind::Cache { id: opt.id, sharing }
        }
        Ok(pb::MountType::Secret) => {
            let opt = mount.secret_opt.clone().filter(|opt| !opt.id.is_empty());
            Kind::Secret(opt.ok_or_else(|| invalid(format!("mount {}: secret without an id", mount.dest)))?)
        }
        Ok(pb::MountType::Ssh) => {
            let opt = mount.ssh_opt.clone();
            Kind::Ssh(opt.ok_or_else(|| invalid(format!("mount {}: ssh without options", mount.dest)))?)
        }
        Err(_) => return Err(bad("unknown mount type", i64::from(mount.mount_type))),
    };
    if output.is_some() && kind != Kind::Bind {
        return Err(bad("only what is bound can be an output, not", mount.output));
    }
    let dest = absolute(cwd, &mount.dest)?;
    Ok(Mount { dest, selector: mount.selector.clone(), readonly: mount.readonly, slot: Slot { input, output }, kind })
}

/// Without `.`, `..` and doubled slashes; relative to `base`.
fn absolute(base: &str, path: &str) -> Result<String, StepError> {
    if path.contains('\0') {
        return Err(invalid(format!("invalid path {path:?}")));
    }
    let mut parts: Vec<&str> = Vec::new();
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

fn environment(meta: &pb::Meta, mounts: &[Mount]) -> Vec<String> {
    let mut env = meta.env.clone();
    let has = |env: &[String], key: &str| env.iter().any(|word| word.split_once('=').is_some_and(|(k, _)| k == key));
    if let Some(proxies) = &meta.proxy_env {
        let pairs = [
            ("HTTP_PROXY", &proxies.http_proxy),
            ("HTTPS_PROXY", &proxies.https_proxy),
            ("FTP_PROXY", &proxies.ftp_proxy),
            ("NO_PROXY", &proxies.no_proxy),
            ("ALL_PROXY", &proxies.all_proxy),
        ];
        for (key, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            env.push(format!("{key}={value}"));
            env.push(format!("{}={value}", key.to_ascii_lowercase()));
        }
    }
    if !has(&env, "PATH") {
        env.push(DEFAULT_PATH.to_owned());
    }
    let agent = mounts.iter().find(|mount| matches!(mount.kind, Kind::Ssh(_)));
    if let Some(agent) = agent.filter(|_| !has(&env, AUTH_SOCK)) {
        let at = if agent.dest.is_empty() { FIRST_SOCK } else { &agent.dest };
        env.push(format!("{AUTH_SOCK}={at}"));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op() -> pb::ExecOp {
        pb::ExecOp {
            meta: Some(pb::Meta { args: vec!["true".into()], ..pb::Meta::default() }),
            mounts: vec![pb::Mount { dest: "/".into(), ..pb::Mount::default() }],
            ..pb::ExecOp::default()
        }
    }

    fn with(change: impl FnOnce(&mut pb::ExecOp)) -> Result<Plan, StepError> {
        let mut op = op();
        change(&mut op);
        Plan::new(&op, 2, &[])
    }

    fn mount(kind: pb::MountType, dest: &str) -> pb::Mount {
        pb::Mount { dest: dest.into(), input: -1, output: -1, mount_type: kind as i32, ..pb::Mount::default() }
    }

    #[test]
    fn the_simplest_one() {
        let plan = with(|_| {}).unwrap();
        assert_eq!((plan.cwd.as_str(), plan.hostname.as_str(), plan.outputs), ("/", "buildkitsandbox", 1));
        assert_eq!(plan.env, [DEFAULT_PATH]);
        assert_eq!(plan.valid_codes, [0]);
        assert_eq!(plan.root, Slot { input: Some(0), output: Some(0) });
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        type Change = Box<dyn Fn(&mut pb::ExecOp)>;
        let refused: [(&str, Change); 15] = [
            ("security mode 99", Box::new(|op| op.security = 99)),
            ("network mode 99", Box::new(|op| op.network = 99)),
            ("mount type 99", Box::new(|op| op.mounts[0].mount_type = 99)),
            ("no such input 2", Box::new(|op| op.mounts[0].input = 2)),
            ("no such input -2", Box::new(|op| op.mounts[0].input = -2)),
            ("invalid output -9", Box::new(|op| op.mounts[0].output = -9)),
            ("output index 4096", Box::new(|op| op.mounts[0].output = 4096)),
            ("without a root", Box::new(|op| op.mounts.clear())),
            ("two root", Box::new(|op| op.mounts.push(op.mounts[0].clone()))),
            ("without meta", Box::new(|op| op.meta = None)),
            ("without a command", Box::new(|op| op.meta.as_mut().unwrap().args.clear())),
            ("cgroup parent", Box::new(|op| op.meta.as_mut().unwrap().cgroup_parent = "a/../../b".into())),
            ("cache without", Box::new(|op| op.mounts.push(mount(pb::MountType::Cache, "/c")))),
            ("secret without", Box::new(|op| op.mounts.push(mount(pb::MountType::Secret, "/s")))),
            (
                "sharing of a cache 99",
                Box::new(|op| {
                    op.mounts.push(pb::Mount {
                        cache_opt: Some(pb::CacheOpt { id: "x".into(), sharing: 99 }),
                        ..mount(pb::MountType::Cache, "/c")
                    });
                }),
            ),
        ];
        for (text, change) in refused {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn what_was_not_allowed_is_denied() {
        let mut hungry = op();
        hungry.security = pb::SecurityMode::Insecure as i32;
        hungry.network = pb::NetMode::Host as i32;
        hungry.cdi_devices.push(pb::CdiDevice { name: "vendor.com/gpu=0".into(), optional: false });
        let all = ["security.insecure", "network.host", "device"].map(str::to_owned);
        Plan::new(&hungry, 1, &all).unwrap();
        for (at, text) in [(0, "security.insecure"), (1, "network.host"), (2, "device=vendor.com/gpu=0")] {
            let mut some = all.to_vec();
            some.remove(at);
            let error = Plan::new(&hungry, 1, &some).unwrap_err();
            assert!(matches!(error, StepError::Denied(_)));
            assert_eq!(error.to_string(), format!("{text} is not allowed"));
        }
    }

    #[test]
    fn mounts_come_in_order_and_nowhere_else() {
        let plan = with(|op| {
            op.meta.as_mut().unwrap().cwd = "/work".into();
            for dest in ["/b/c", "sub/../../x", "/b", "../../../y"] {
                op.mounts.push(mount(pb::MountType::Tmpfs, dest));
            }
        });
        let plan = plan.unwrap();
        let places: Vec<_> = plan.mounts.iter().map(|mount| mount.dest.as_str()).collect();
        assert_eq!(places, ["/b", "/b/c", "/x", "/y"]);
    }

    #[test]
    fn proxies_path_and_agent_of_the_environment() {
        let plan = with(|op| {
            let meta = op.meta.as_mut().unwrap();
            meta.env = vec!["PATH=/bin".into()];
            meta.proxy_env = Some(pb::ProxyEnv { http_proxy: "http://p".into(), ..pb::ProxyEnv::default() });
            let ssh_opt = Some(pb::SshOpt { id: "default".into(), ..pb::SshOpt::default() });
            op.mounts.push(pb::Mount { ssh_opt, ..mount(pb::MountType::Ssh, FIRST_SOCK) });
        });
        let agent = format!("SSH_AUTH_SOCK={FIRST_SOCK}");
        assert_eq!(plan.unwrap().env, ["PATH=/bin", "HTTP_PROXY=http://p", "http_proxy=http://p", agent.as_str()]);
    }

    #[test]
    fn commands_are_quoted() {
        let plan =
            with(|op| op.meta.as_mut().unwrap().args = vec!["/bin/sh".into(), "-c".into(), "echo \"a\\b\"\n".into()]);
        assert_eq!(plan.unwrap().command(), r#"/bin/sh -c echo \"a\\b\"\n"#);
    }
}
