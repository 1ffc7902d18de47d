//! The graph of operations while it grows, and the message that it becomes.
//!
//! A node knows its inputs by their place and not by their digest: the folder that the client sends is only described at the
//! end, when every step has said what it wants of it. A node's inputs always have lower numbers than itself.

use super::platform;
use crate::error::Span;
use prost::Message;
use proto::pb::{self, file_action::Action, op};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

/// Description of an operation: its name for the user.
pub const NAME: &str = "llb.customname";
/// Description of an operation: the instruction that it comes from.
pub const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// One result of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    node: usize,
    index: i64,
}

/// A filesystem; nothing is an empty one.
pub(super) type Tree = Option<Output>;

/// What is known of an operation besides what it does.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    /// For the user.
    pub(super) name: String,
    /// The instruction.
    pub(super) command: Option<String>,
    /// Where it was written.
    pub(super) span: Option<Span>,
    /// Whether it is done even if it was done before.
    pub(super) ignore_cache: bool,
    /// Steps that are shown as one.
    pub(super) group: Option<pb::ProgressGroup>,
}

impl About {
    pub(super) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// A step of which the Dockerfile says nothing.
    pub(super) fn internal(name: &str) -> Self {
        Self::named(format!("[internal] {name}"))
    }
}

#[derive(Debug)]
enum Body {
    /// Described later.
    Pending,
    Op(Box<pb::Op>),
    /// As a client sent it.
    Raw(Vec<u8>),
}

#[derive(Debug)]
struct Node {
    body: Body,
    inputs: Vec<Output>,
    metadata: pb::OpMetadata,
    spans: Vec<Span>,
}

/// Operations.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// Adds an operation with one result.
    pub(super) fn add(
        &mut self,
        op: op::Op,
        inputs: Vec<Output>,
        platform: Option<&pb::Platform>,
        about: About,
    ) -> Output {
        let node = self.reserve();
        self.describe(node, op, inputs, platform, about);
        node
    }

    /// A place for an operation that is described later and has no inputs.
    pub(super) fn reserve(&mut self) -> Output {
        self.nodes.push(Node {
            body: Body::Pending,
            inputs: Vec::new(),
            metadata: pb::OpMetadata::default(),
            spans: Vec::new(),
        });
        Output { node: self.nodes.len() - 1, index: 0 }
    }

    /// What a source that was reserved is.
    pub(super) fn describe_source(&mut self, at: Output, source: pb::SourceOp, about: About) {
        self.describe(at, op::Op::Source(source), Vec::new(), None, about);
    }

    fn describe(&mut self, at: Output, op: op::Op, inputs: Vec<Output>, platform: Option<&pb::Platform>, about: About) {
        let mut description = BTreeMap::new();
        if !about.name.is_empty() {
            description.insert(NAME.to_owned(), about.name);
        }
        if let Some(command) = about.command {
            description.insert(COMMAND.to_owned(), command);
        }
        let op = pb::Op { op: Some(op), platform: platform.cloned(), ..pb::Op::default() };
        self.nodes[at.node] = Node {
            body: Body::Op(Box::new(op)),
            inputs,
            metadata: pb::OpMetadata {
                description: description.into_iter().collect(),
                ignore_cache: about.ignore_cache,
                progress_group: about.group,
                ..pb::OpMetadata::default()
            },
            spans: about.span.into_iter().collect(),
        };
    }

    /// What an operation is called.
    pub(super) fn rename(&mut self, at: Output, name: String) {
        self.nodes[at.node].metadata.description.insert(NAME.into(), name);
    }

    /// Adds a client's graph as it is; what is wrong with it, if anything.
    pub(super) fn import(&mut self, definition: &pb::Definition) -> Result<Tree, String> {
        let mut known = HashMap::new();
        for (number, bytes) in definition.def.iter().enumerate() {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|error| format!("operation {number}: {error}"))?;
            let mut inputs = Vec::new();
            for input in &op.inputs {
                let node = *known.get(&input.digest).ok_or_else(|| {
                    format!("operation {number} wants {}, which does not come before it", input.digest)
                })?;
                inputs.push(Output { node, index: input.index });
            }
            if number + 1 == definition.def.len() {
                if op.op.is_some() {
                    return Err("the last operation does not name the result".into());
                }
                return Ok(inputs.first().copied());
            }
            let digest = digest(bytes);
            let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
            known.insert(digest, self.nodes.len());
            self.nodes.push(Node { body: Body::Raw(bytes.clone()), inputs, metadata, spans: Vec::new() });
        }
        Ok(None)
    }

    /// The message for `result`: what it needs and nothing else, inputs first.
    pub(super) fn definition(&self, result: Output, source: &(String, Vec<u8>)) -> pb::Definition {
        let mut needed = BTreeSet::from([result.node]);
        for node in (0..=result.node).rev() {
            if needed.contains(&node) {
                needed.extend(self.nodes[node].inputs.iter().map(|input| input.node));
            }
        }
        let mut def = Vec::new();
        let mut metadata = BTreeMap::new();
        let mut locations: BTreeMap<String, pb::Locations> = BTreeMap::new();
        let mut digests = HashMap::new();
        let mut seen = BTreeSet::new();
        for number in needed {
            let node = &self.nodes[number];
            let bytes = match &node.body {
                Body::Pending => pb::Op::default().encode_to_vec(),
                Body::Raw(bytes) => bytes.clone(),
                Body::Op(op) => {
                    pb::Op { inputs: inputs(&node.inputs, &digests), ..op.as_ref().clone() }.encode_to_vec()
                }
            };
            let digest = digest(&bytes);
            digests.insert(number, digest.clone());
            let places = node.spans.iter().map(|span| pb::Location { source_index: 0, ranges: vec![range(*span)] });
            locations.entry(digest.clone()).or_default().locations.extend(places);
            if seen.insert(digest.clone()) {
                def.push(bytes);
                metadata.insert(digest, node.metadata.clone());
            }
        }
        let last = pb::Op { inputs: inputs(&[result], &digests), ..pb::Op::default() }.encode_to_vec();
        metadata.insert(digest(&last), pb::OpMetadata::default());
        def.push(last);
        locations.retain(|_, found| !found.locations.is_empty());
        let info = pb::SourceInfo {
            filename: source.0.clone(),
            data: source.1.clone(),
            language: "Dockerfile".into(),
            definition: None,
        };
        let source = pb::Source { locations: locations.into_iter().collect(), infos: vec![info] };
        pb::Definition { def, metadata: metadata.into_iter().collect(), source: Some(source) }
    }
}

fn inputs(outputs: &[Output], digests: &HashMap<usize, String>) -> Vec<pb::Input> {
    let input = |output: &Output| pb::Input { digest: digests[&output.node].clone(), index: output.index };
    outputs.iter().map(input).collect()
}

/// What an operation is known by.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn range(span: Span) -> pb::Range {
    let position = |line: usize| pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
    pb::Range { start: Some(position(span.first)), end: Some(position(span.last)) }
}

/// An operation on files that is being put together: actions one after the other on one filesystem.
#[derive(Debug)]
pub(super) struct Files {
    base: Tree,
    inputs: Vec<Output>,
    actions: Vec<(i64, Action)>,
}

impl Files {
    /// Changes `base`.
    pub(super) fn on(base: Tree) -> Self {
        Self { base, inputs: base.into_iter().collect(), actions: Vec::new() }
    }

    /// The input that names of users are looked up in.
    pub(super) fn base(&self) -> i64 {
        if self.base.is_some() { 0 } else { -1 }
    }

    /// Adds a copy of something in `from`.
    pub(super) fn copy(&mut self, from: Tree, copy: pb::FileActionCopy) {
        let input = match from {
            None => -1,
            Some(output) => match self.inputs.iter().position(|known| *known == output) {
                Some(at) => at as i64,
                None => {
                    self.inputs.push(output);
                    self.inputs.len() as i64 - 1
                }
            },
        };
        self.actions.push((input, Action::Copy(copy)));
    }

    /// Adds what needs no second filesystem.
    pub(super) fn add(&mut self, action: Action) {
        self.actions.push((-1, action));
    }

    /// The operation and its inputs.
    pub(super) fn finish(self) -> (op::Op, Vec<Output>) {
        let (base, inputs, count) = (self.base(), self.inputs.len() as i64, self.actions.len());
        let action = |(number, (secondary_input, action)): (usize, (i64, Action))| pb::FileAction {
            // An action's result is an input of the next one, numbered after the real inputs.
            input: if number == 0 { base } else { inputs + number as i64 - 1 },
            secondary_input,
            output: if number + 1 == count { 0 } else { -1 },
            action: Some(action),
        };
        let actions = self.actions.into_iter().enumerate().map(action).collect();
        (op::Op::File(pb::FileOp { actions }), self.inputs)
    }
}

/// `user[:group]` of --chown, names or numbers.
pub(super) fn owner(text: &str, base: i64) -> pb::ChownOpt {
    let one = |name: &str| {
        let user = match name.parse() {
            Ok(id) => pb::user_opt::User::ById(id),
            Err(_) if name.is_empty() => pb::user_opt::User::ById(0),
            Err(_) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.into(), input: base }),
        };
        Some(pb::UserOpt { user: Some(user) })
    };
    match text.split_once(':') {
        Some((user, group)) => pb::ChownOpt { user: one(user), group: one(group) },
        None => pb::ChownOpt { user: one(text), group: None },
    }
}

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
