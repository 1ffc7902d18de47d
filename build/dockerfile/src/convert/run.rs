//! RUN.

use super::{
    llb::{About, Files, Output, Tree},
    path,
    stages::{Converter, Step},
    vars::Vars,
};
use crate::{
    Error,
    expand::{Env, Lexer},
    instruction::{Command, Heredoc, Mount, MountKind, Run, Sharing},
    parse,
};
use proto::pb::{self, file_action::Action, op};

/// Where a script with a line that says what reads it lies while it runs.
const SCRIPTS: &str = "/dev/pipes/";

/// Variables of a RUN for its name: what comes from secrets is not shown, though what is known here is only its name.
struct Masked<'a> {
    vars: &'a Vars,
    secret: Vec<&'a str>,
}

impl Env for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secret.contains(&name) { Some("****") } else { self.vars.get(name) }
    }
}

/// What RUN's mounts come to.
#[derive(Default)]
struct Mounts {
    /// With what is mounted, if that is something.
    trees: Vec<(Tree, pb::Mount)>,
    /// Secrets and agents; they come last, in the order of the instruction.
    others: Vec<pb::Mount>,
    variables: Vec<pb::SecretEnv>,
    agents: usize,
}

impl Converter<'_> {
    pub(super) fn run(&mut self, at: usize, step: &Step, run: &Run) -> Result<(), Error> {
        // A command may read anything.
        self.use_path(at, "/");
        let mut mounts = Mounts::default();
        let mut name = step.instruction.text.clone();
        let command = match &run.command {
            Command::Exec(words) if run.heredocs.is_empty() => words.clone(),
            Command::Exec(words) => {
                return Err(step.error(format!("parsing produced an invalid run command: {words:?}")));
            }
            Command::Shell(line) => {
                let script = match &run.heredocs[..] {
                    [] => line.clone(),
                    [only] if is_alone(line) => {
                        name += &format!(" ({})", summary(&only.content));
                        self.script(only, &mut mounts)
                    }
                    several => several
                        .iter()
                        .fold(line.clone(), |text, heredoc| format!("{text}\n{}{}", heredoc.content, heredoc.name)),
                };
                self.stages[at].image.with_shell(&script)
            }
        };
        for (mount, source) in run.mounts.iter().zip(&step.sources) {
            self.mount(at, step, mount, *source, &mut mounts)?;
        }
        if let Some(size) = self.options.shm_size.filter(|size| *size > 0) {
            let tmpfs_opt = Some(pb::TmpfsOpt { size: i64::try_from(size).unwrap_or(i64::MAX) });
            let mount = pb::Mount { dest: "/dev/shm".into(), tmpfs_opt, ..mount_of(pb::MountType::Tmpfs) };
            mounts.trees.push((None, mount));
        }
        let (network, security) = self.confinement(step, run)?;

        let stage = &self.stages[at];
        let mut env = stage.env.clone();
        let args: usize = stage.args.iter().map(|(name, _)| name.len() + 100).sum();
        self.count(2 * env.size() + args, step.span())?;
        let stage = &self.stages[at];
        if let Some(socket) = mounts.others.iter().find(|mount| mount.ssh_opt.is_some())
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", &socket.dest);
        }
        let options = self.options;
        let meta = pb::Meta {
            args: command.clone(),
            env: env.list(),
            cwd: stage.dir.clone(),
            user: stage.user.clone(),
            proxy_env: self.proxy.clone(),
            extra_hosts: options
                .extra_hosts
                .iter()
                .map(|(host, ip)| pb::HostIp { host: host.clone(), ip: ip.clone() })
                .collect(),
            hostname: options.hostname.clone().unwrap_or_default(),
            ulimit: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone().unwrap_or_default(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        };
        let root = pb::Mount { dest: "/".into(), output: 0, ..mount_of(pb::MountType::Bind) };
        mounts.trees.insert(0, (stage.tree, root));
        mounts.trees.sort_by(|(_, one), (_, other)| one.dest.cmp(&other.dest));
        let mut inputs: Vec<Output> = Vec::new();
        let mut all = Vec::new();
        for (tree, mount) in mounts.trees {
            let input = match tree {
                None => -1,
                Some(output) => match inputs.iter().position(|known| *known == output) {
                    Some(at) => at as i64,
                    None => {
                        inputs.push(output);
                        inputs.len() as i64 - 1
                    }
                },
            };
            all.push(pb::Mount { input, ..mount });
        }
        all.extend(mounts.others);
        let exec = pb::ExecOp {
            meta: Some(meta),
            mounts: all,
            network: network.into(),
            security: security.into(),
            secretenv: mounts.variables,
            cdi_devices: run
                .devices
                .iter()
                .map(|device| pb::CdiDevice { name: device.name.clone(), optional: !device.required })
                .collect(),
        };
        let vars = self.stages[at].env.clone();
        let secret = exec.secretenv.iter().map(|secret| secret.name.as_str()).collect();
        let lexer = Lexer::display(self.lexer.escape);
        let shown = self.shown(&name, &lexer, &Masked { vars: &vars, secret }, step.span())?;
        let about = About {
            name: self.next_name(at, &shown, &vars, step.trigger),
            command: Some(step.instruction.text.clone()),
            span: Some(step.span()),
            ignore_cache: self.stages[at].ignore_cache,
            group: None,
        };
        let platform = self.platform(at);
        let tree = self.graph.add(op::Op::Exec(exec), inputs, Some(&platform), about);
        self.stages[at].tree = Some(tree);
        let history = self.told(at, &command);
        self.count(history.len(), step.span())?;
        self.record(at, format!("RUN {history} # buildkit"), true);
        Ok(())
    }

    /// A here-document that is the whole command: its text, or where it lies if it says itself what reads it.
    fn script(&mut self, heredoc: &Heredoc, mounts: &mut Mounts) -> String {
        let content = heredoc.text();
        if !content.starts_with("#!") {
            return content;
        }
        let mut files = Files::on(None);
        files.add(Action::Mkfile(pb::FileActionMkFile {
            path: path::clean(&heredoc.name),
            mode: 0o755,
            data: content.into_bytes(),
            owner: None,
            timestamp: -1,
        }));
        let (op, inputs) = files.finish();
        let tree = self.graph.add(op, inputs, None, About::internal("preparing inline document"));
        let mount = pb::Mount { dest: SCRIPTS.into(), readonly: true, ..mount_of(pb::MountType::Bind) };
        mounts.trees.push((Some(tree), mount));
        format!("{SCRIPTS}{}", path::base(&heredoc.name))
    }

    fn confinement(&self, step: &Step, run: &Run) -> Result<(pb::NetMode, pb::SecurityMode), Error> {
        let network = match run.network.as_deref() {
            Some("none") => pb::NetMode::None,
            Some("host") => pb::NetMode::Host,
            Some("default") | None => match self.options.network.as_deref() {
                None | Some("" | "default" | "sandbox") => pb::NetMode::Unset,
                Some("none") => pb::NetMode::None,
                Some("host") => pb::NetMode::Host,
                Some(other) => return Err(step.error(format!("unsupported network mode {other:?}"))),
            },
            Some(other) => return Err(step.error(format!("unsupported network mode {other:?}"))),
        };
        let security = match run.security.as_deref() {
            None | Some("sandbox") => pb::SecurityMode::Sandbox,
            Some("insecure") => pb::SecurityMode::Insecure,
            Some(other) => return Err(step.error(format!("unsupported security mode {other:?}"))),
        };
        Ok((network, security))
    }

    fn mount(
        &mut self,
        at: usize,
        step: &Step,
        mount: &Mount,
        source: Option<usize>,
        mounts: &mut Mounts,
    ) -> Result<(), Error> {
        let (mount, unset) = mount.expand(&self.lexer, &self.stages[at].env).map_err(|problem| step.error(problem))?;
        self.undefined(at, step, &unset);
        let mount = &mount;
        let (from, target, id) = (mount.source.clone(), mount.target.clone(), mount.id.clone());
        match mount.kind {
            MountKind::Secret => return self.secret(at, step, mount, from.or(id), target, mounts),
            MountKind::Ssh => {
                if from.is_some() {
                    return Err(step.error("ssh does not support source"));
                }
                let dest = match target {
                    Some(target) => path::join(&self.stages[at].dir, &target),
                    None => format!("/run/buildkit/ssh_agent.{}", mounts.agents),
                };
                mounts.agents += 1;
                let ssh_opt = Some(pb::SshOpt {
                    id: id.unwrap_or_else(|| "default".into()),
                    uid: mount.uid.unwrap_or(0),
                    gid: mount.gid.unwrap_or(0),
                    mode: mount.mode.unwrap_or(0o600),
                    optional: !mount.required,
                });
                mounts.others.push(pb::Mount { dest, ssh_opt, ..mount_of(pb::MountType::Ssh) });
                return Ok(());
            }
            MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => (),
        }

        let Some(target) = target else { return Err(step.error("target can not be empty")) };
        let dest = path::join(&self.stages[at].dir, &target);
        if dest == "/" {
            return Err(step.error(format!("invalid mount target {target:?}")));
        }
        if mount.kind == MountKind::Tmpfs {
            let size = i64::try_from(mount.size.unwrap_or(0)).unwrap_or(i64::MAX);
            let tmpfs_opt = Some(pb::TmpfsOpt { size });
            let readonly = mount.readonly.unwrap_or(false);
            mounts.trees.push((None, pb::Mount { dest, readonly, tmpfs_opt, ..mount_of(pb::MountType::Tmpfs) }));
            return Ok(());
        }
        let from = path::clean(from.as_deref().unwrap_or("/"));
        let mut tree = match source {
            // A new one is empty.
            None if mount.kind == MountKind::Cache => None,
            None => {
                self.use_context(&from);
                self.main_context(step)?
            }
            Some(source) => {
                let tree = self.source(source, |name| {
                    let message = format!("cannot mount from stage {name:?} to {target:?}");
                    step.error(format!("{message}, stage needs to be defined before current command"))
                })?;
                self.use_path(source, &from);
                tree
            }
        };
        let mut made = pb::Mount { dest, ..mount_of(pb::MountType::Bind) };
        if from != "/" {
            made.selector = from;
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            tree = Some(self.owned_folder(tree, mount));
            made.selector = "/cache".into();
        }
        made.readonly = mount.readonly.unwrap_or(mount.kind == MountKind::Bind);
        if mount.kind == MountKind::Cache {
            let id = id.unwrap_or_else(|| path_like_go(&target));
            let sharing = match mount.sharing {
                None | Some(Sharing::Shared) => pb::CacheSharingOpt::Shared,
                Some(Sharing::Private) => pb::CacheSharingOpt::Private,
                Some(Sharing::Locked) => pb::CacheSharingOpt::Locked,
            };
            let id = format!("{}/{id}", self.options.cache_namespace);
            made.cache_opt = Some(pb::CacheOpt { id, sharing: sharing.into() });
            made.mount_type = pb::MountType::Cache.into();
        }
        mounts.trees.push((tree, made));
        Ok(())
    }

    /// What a cache is when it is new, with an owner and a mode.
    fn owned_folder(&mut self, tree: Tree, mount: &Mount) -> Output {
        let id = |id: Option<u32>| Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id.unwrap_or(0))) });
        let mut files = Files::on(tree);
        files.add(Action::Mkdir(pb::FileActionMkDir {
            path: "/cache".into(),
            mode: i32::try_from(mount.mode.unwrap_or(0o755)).unwrap_or(0o755),
            make_parents: false,
            owner: Some(pb::ChownOpt { user: id(mount.uid), group: id(mount.gid) }),
            timestamp: -1,
        }));
        let (op, inputs) = files.finish();
        self.graph.add(op, inputs, None, About::internal("setting cache mount permissions"))
    }

    fn secret(
        &mut self,
        at: usize,
        step: &Step,
        mount: &Mount,
        id: Option<String>,
        target: Option<String>,
        mounts: &mut Mounts,
    ) -> Result<(), Error> {
        let id = match (id.filter(|id| !id.is_empty()), &target) {
            (Some(id), _) => id,
            (None, Some(target)) => path::base(target).to_owned(),
            (None, None) => return Err(step.error("one of source, target required")),
        };
        let optional = !mount.required;
        if let Some(name) = &mount.env {
            let name = if name.is_empty() { id.clone() } else { name.clone() };
            mounts.variables.push(pb::SecretEnv { id: id.clone(), name, optional });
        }
        let dest = match (target, &mount.env) {
            (Some(target), _) => path::join(&self.stages[at].dir, &target),
            (None, Some(_)) => return Ok(()),
            (None, None) => format!("/run/secrets/{}", path::base(&id)),
        };
        let secret_opt = Some(pb::SecretOpt {
            id,
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o400),
            optional,
        });
        mounts.others.push(pb::Mount { dest, secret_opt, ..mount_of(pb::MountType::Secret) });
        Ok(())
    }

    /// A command for the history: arguments of the build in front, since it may have used them.
    fn told(&self, at: usize, command: &[String]) -> String {
        let stage = &self.stages[at];
        let mut used = Vars::default();
        for (name, value) in &stage.args {
            let value = stage.env.get(name).or(value.as_deref()).unwrap_or_default();
            used.replace(name, value);
        }
        let mut words = used.list();
        if !words.is_empty() {
            words.insert(0, format!("|{}", words.len()));
        }
        words.extend_from_slice(command);
        words.join(" ")
    }
}

/// A mount of nothing that has no result.
fn mount_of(kind: pb::MountType) -> pb::Mount {
    pb::Mount { input: -1, output: -1, mount_type: kind.into(), ..pb::Mount::default() }
}

/// A cache's name if it has none: its target, tidied but not made absolute.
fn path_like_go(target: &str) -> String {
    let cleaned = path::clean(target);
    match target.starts_with('/') {
        true => cleaned,
        false => cleaned.trim_start_matches('/').to_owned(),
    }
}

/// Whether a command is nothing but its here-document.
fn is_alone(line: &str) -> bool {
    matches!(parse::heredoc(line.trim()), Ok(Some(_)))
}

/// The first line.
fn summary(text: &str) -> String {
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or_default();
    format!("{first}{}", if lines.next().is_some() { "..." } else { "" })
}
