//! What a Dockerfile says, one type per instruction. Words are as they were written, variables in them not yet filled in, but
//! without the quotes and line continuations that the parser understands.

use crate::error::Span;

/// A whole Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dockerfile {
    /// Comments at its top that are for the parser.
    pub directives: Directives,
    /// ARG before the first FROM.
    pub globals: Vec<Instruction>,
    /// One per FROM.
    pub stages: Vec<Stage>,
    /// Last lines of instructions that an empty line goes through.
    pub empty_continuations: Vec<Span>,
}

/// `# directive=value`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// The frontend that the file is written for.
    pub syntax: Option<String>,
    /// `\` or a backtick.
    pub escape: char,
    /// Which checks are made.
    pub check: Check,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: Check::default() }
    }
}

/// `# check=skip=A,B;error=true`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    /// Names of rules.
    pub skip: Vec<String>,
    /// `skip=all`
    pub skip_all: bool,
    /// Experimental rules that are wanted.
    pub experimental: Vec<String>,
    /// Whether a warning ends the build.
    pub error: bool,
}

/// FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// AS, in lower case.
    pub name: Option<String>,
    /// AS, as written.
    pub written_name: Option<String>,
    /// The word `AS` itself, as written.
    pub written_as: Option<String>,
    /// The word `FROM` itself, as written.
    pub keyword: String,
    /// Image or stage.
    pub base: String,
    /// --platform
    pub platform: Option<String>,
    /// What was written, for the user.
    pub text: String,
    /// Where.
    pub span: Span,
    /// The comment right above it.
    pub comment: Vec<String>,
    /// In their order.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it says.
    pub kind: Kind,
    /// Its keyword as written.
    pub keyword: String,
    /// What was written, in one line, for the user: `RUN make`.
    pub text: String,
    /// Where.
    pub span: Span,
    /// The comment right above it.
    pub comment: Vec<String>,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the instructions")]
pub enum Kind {
    Add(Add),
    Arg(Vec<Arg>),
    Cmd(Command),
    Copy(Copy),
    Entrypoint(Command),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// An instruction for those who build on the image, and what it says.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// A name and its value; both may have variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Whether it was written `NAME value`, as docker once did.
    pub old_form: bool,
}

/// `ARG name[=default]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Name.
    pub name: String,
    /// What it is if the client says nothing.
    pub default: Option<String>,
    /// What the comment right above it says of it: `# name what it is for`.
    pub comment: Vec<String>,
}

/// How a command is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// For the shell, without the here-documents that follow it.
    Shell(String),
    /// As a JSON list.
    Exec(Vec<String>),
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// Its word: `EOF`; with COPY and ADD the file's name.
    pub name: String,
    /// The descriptor in front of it: `3<<EOF`.
    pub descriptor: u32,
    /// Whether variables in it are filled in: its word has no quotes.
    pub expand: bool,
    /// Whether tabs at the start of its lines go: `<<-`.
    pub chomp: bool,
    /// What is in it, as written.
    pub content: String,
}

/// RUN
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub command: Command,
    /// Files that are in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
    /// --mount, in their order.
    pub mounts: Vec<Mount>,
    /// --network
    pub network: Option<String>,
    /// --security
    pub security: Option<String>,
    /// --device
    pub devices: Vec<Device>,
}

/// --device
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// vendor.com/class=name
    pub name: String,
    /// Nothing happens if there is none.
    pub required: bool,
}

/// --mount of RUN. Values are as written; those that need variables to be filled in first are missing. [`Mount::expand`] gives
/// the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// bind if not said.
    pub kind: MountKind,
    /// from: a stage, an image or a named context.
    pub from: Option<String>,
    /// source, src
    pub source: Option<String>,
    /// target, dst, destination
    pub target: Option<String>,
    /// id
    pub id: Option<String>,
    /// readonly, ro, readwrite, rw, as far as said.
    pub readonly: Option<bool>,
    /// sharing, of a cache.
    pub sharing: Option<Sharing>,
    /// required, of secrets and ssh.
    pub required: bool,
    /// size, of a tmpfs, bytes.
    pub size: Option<u64>,
    /// mode
    pub mode: Option<u32>,
    /// uid
    pub uid: Option<u32>,
    /// gid
    pub gid: Option<u32>,
    /// env, of a secret: the variable; empty for the one named like the secret.
    pub env: Option<String>,
    /// All of it, as written.
    pub written: String,
}

/// type of a --mount
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words themselves")]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// sharing of a cache mount
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words themselves")]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

/// What COPY and ADD have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// Paths, patterns, and with ADD URLs.
    pub paths: Vec<String>,
    /// Files that are in the Dockerfile; they come after `paths`.
    pub heredocs: Vec<Heredoc>,
    /// Where they go.
    pub target: String,
    /// --chown
    pub chown: Option<String>,
    /// --chmod
    pub chmod: Option<String>,
    /// --link
    pub link: bool,
    /// --exclude
    pub exclude: Vec<String>,
}

/// COPY
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// What and where.
    pub sources: Sources,
    /// --from
    pub from: Option<String>,
    /// --parents
    pub parents: bool,
}

/// ADD
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// What and where.
    pub sources: Sources,
    /// --checksum
    pub checksum: Option<String>,
    /// --keep-git-dir
    pub keep_git_dir: Option<bool>,
    /// --unpack
    pub unpack: Option<bool>,
}

/// HEALTHCHECK
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// NONE
    None,
    /// CMD
    Cmd {
        /// What is run.
        command: Command,
        /// --interval, nanoseconds.
        interval: Option<u64>,
        /// --timeout, nanoseconds.
        timeout: Option<u64>,
        /// --start-period, nanoseconds.
        start_period: Option<u64>,
        /// --start-interval, nanoseconds.
        start_interval: Option<u64>,
        /// --retries
        retries: Option<u32>,
    },
}
