//! What a seccomp section means: words looked up, names turned into numbers per architecture, rules put in order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::errno::Errno;
use sys::seccomp::flag;

use super::Listener;
use super::syscalls::{self, ARM_PRIVATE, Column};
use crate::spec::{ArgumentTest, Seccomp};

/// Why a section is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SeccompError {
    /// A word that is not one of those known.
    #[error("{field}: {word:?} is unknown")]
    Unknown { field: String, word: String },
    /// Something that has to be there is not.
    #[error("{field} is missing")]
    Missing { field: String },
    /// Arguments are numbered 0 to 5.
    #[error("{field}: {index} is not within 0 to 5")]
    Index { field: String, index: u32 },
    /// Errno values end at 4095, what a tracer is told at 65535.
    #[error("{field}: {value} is no errno")]
    Errno { field: String, value: u32 },
    /// Only two actions carry a value.
    #[error("{field}: {action} takes none")]
    NoErrno { field: String, action: String },
    /// Nothing would be left that works without the listener.
    #[error("defaultAction: SCMP_ACT_NOTIFY cannot be the default: the process could not even hand over the listener")]
    NotifyByDefault,
    /// The process hands the descriptor over with this call.
    #[error(
        "with SCMP_ACT_NOTIFY, sendmsg has to be allowed without conditions: the process needs it to hand over the listener"
    )]
    NotifyNeedsSendmsg,
    /// There is nobody to notify.
    #[error("{field}: SCMP_ACT_NOTIFY needs linux.seccomp.listenerPath")]
    NotifyNobody { field: String },
    /// `start` has another working directory than `create`.
    #[error("listenerPath: {0:?} is not an absolute path")]
    ListenerPath(PathBuf),
    /// The kernel takes 4096 instructions at most.
    #[error("the filter has {0} instructions, more than the kernel's 4096")]
    TooLong(usize),
}

/// Values of `struct seccomp_data.arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    X86,
    /// Shares the audit value of x86_64; told by a bit of the call number.
    X32,
    Aarch64,
    Arm,
}

impl Arch {
    pub(super) const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// How wide an argument is. x32 has the registers of x86_64, and the kernel takes them whole.
    pub(super) fn is_64_bit(self) -> bool {
        !matches!(self, Self::X86 | Self::Arm)
    }

    pub(super) fn column(self) -> Column {
        match self {
            Self::X86_64 => Column::X86_64,
            Self::X86 => Column::X86,
            Self::X32 => Column::X32,
            Self::Aarch64 => Column::Aarch64,
            Self::Arm => Column::Arm,
        }
    }

    fn runs_beside(self, native: Self) -> bool {
        matches!(self, Self::Aarch64 | Self::Arm) == (native == Self::Aarch64)
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal under a mask.
    Masked(u64),
}

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) index: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// An action for when all the tests hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    pub(super) action: u32,
}

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Default,
    /// Always this action.
    Action(u32),
    /// The first that holds of these rules of the profile, else the default.
    Tests(u16),
}

/// The calls of one architecture.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) arch: Arch,
    /// By number, as the table of calls has it.
    pub(super) slots: Vec<Slot>,
    /// The largest number that the profile names, without arm's private calls.
    pub(super) largest: Option<u16>,
    /// What happens to larger ones.
    pub(super) beyond: u32,
}

/// A section of config.json, understood.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) default: u32,
    pub(super) flags: u64,
    pub(super) sections: Vec<Section>,
    pub(super) tests: Vec<Vec<Rule>>,
    pub(super) listener: Option<Listener>,
}

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const KILL_THREAD: u32 = 0;
pub(super) const TRAP: u32 = 0x0003_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const NOTIFY: u32 = 0x7fc0_0000;
pub(super) const TRACE: u32 = 0x7ff0_0000;
pub(super) const LOG: u32 = 0x7ffc_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// ENOSYS as an action.
pub(super) const NO_SUCH_CALL: u32 = ERRNO | Errno::ENOSYS as u32;

/// All threads get the filter: there is one only, so it changes nothing, and the kernel would not give a listener with it.
pub(super) const TSYNC: &str = "SECCOMP_FILTER_FLAG_TSYNC";

/// The other flags, as the kernel numbers them.
pub(super) const FLAGS: [(&str, u64); 3] = [
    ("SECCOMP_FILTER_FLAG_LOG", flag::LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", flag::SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", flag::WAIT_KILLABLE_RECV),
];

const OTHER_ARCHES: &str = "MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC PARISC64 \
    RISCV64 LOONGARCH64 M68K SH SHEB";

/// The order in which the kernel takes one of several filters' actions: the smaller goes first.
fn strictness(action: u32) -> i32 {
    (action & 0xffff_0000) as i32
}

/// Whether calls go through. A tracer is expected to judge calls that are newer than the profile by itself.
fn is_lenient(action: u32) -> bool {
    action == ALLOW || action == LOG || action & 0xffff_0000 == TRACE
}

fn action(
    word: &str,
    value: Option<u32>,
    fields: impl Fn() -> (String, String), // of the action, and of its value
) -> Result<u32, SeccompError> {
    let errno = value.unwrap_or(Errno::EPERM as u32);
    let no_errno = || SeccompError::Errno { field: fields().1, value: errno };
    let found = match word {
        "SCMP_ACT_ERRNO" if errno > 4095 => return Err(no_errno()),
        "SCMP_ACT_ERRNO" => return Ok(ERRNO | errno),
        "SCMP_ACT_TRACE" if errno > 0xffff => return Err(no_errno()),
        "SCMP_ACT_TRACE" => return Ok(TRACE | errno),
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        "" => return Err(SeccompError::Missing { field: fields().0 }),
        _ => return Err(SeccompError::Unknown { field: fields().0, word: word.to_owned() }),
    };
    // The specification: "the runtime MUST print an error and fail".
    if value.is_some() { Err(SeccompError::NoErrno { field: fields().1, action: word.to_owned() }) } else { Ok(found) }
}

/// The native architecture and those named that can run beside it: calls of another processor cannot happen here.
fn arches(native: Arch, words: &[String]) -> Result<Vec<Arch>, SeccompError> {
    let mut found = vec![native];
    for word in words {
        let name = word.strip_prefix("SCMP_ARCH_").unwrap_or_default();
        let arch = match name {
            "X86_64" => Arch::X86_64,
            "X86" => Arch::X86,
            "X32" => Arch::X32,
            "AARCH64" => Arch::Aarch64,
            "ARM" => Arch::Arm,
            _ if OTHER_ARCHES.split_whitespace().any(|known| known == name) => continue,
            _ => return Err(SeccompError::Unknown { field: "architectures".into(), word: word.clone() }),
        };
        if arch.runs_beside(native) && !found.contains(&arch) {
            found.push(arch);
        }
    }
    Ok(found)
}

/// Without a word about flags the speculation of the container's programs is left as it is, as runc has it since 1.2.
fn flags(words: Option<&[String]>) -> Result<u64, SeccompError> {
    let Some(words) = words else { return Ok(flag::SPEC_ALLOW) };
    words.iter().try_fold(0, |flags, word| match FLAGS.iter().find(|(name, _)| name == word) {
        Some((_, flag)) => Ok(flags | flag),
        None if word == TSYNC => Ok(flags),
        None => Err(SeccompError::Unknown { field: "flags".into(), word: word.clone() }),
    })
}

fn test(given: &ArgumentTest, field: impl Fn(&str) -> String) -> Result<Test, SeccompError> {
    if given.index > 5 {
        return Err(SeccompError::Index { field: field("index"), index: given.index });
    }
    let (operator, value) = match given.op.as_str() {
        "SCMP_CMP_NE" => (Operator::NotEqual, given.value),
        "SCMP_CMP_LT" => (Operator::Less, given.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, given.value),
        "SCMP_CMP_EQ" => (Operator::Equal, given.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, given.value),
        "SCMP_CMP_GT" => (Operator::Greater, given.value),
        // For this one `value` is the mask and `valueTwo` what is to be left; libseccomp masks both.
        "SCMP_CMP_MASKED_EQ" => (Operator::Masked(given.value), given.value_two & given.value),
        "" => return Err(SeccompError::Missing { field: field("op") }),
        word => return Err(SeccompError::Unknown { field: field("op"), word: word.to_owned() }),
    };
    Ok(Test { index: given.index, operator, value })
}

/// All tests of a rule have to hold, unless one argument is tested twice: then each test is a rule of its own, as runc has it.
fn alternatives(tests: Vec<Test>) -> Vec<Vec<Test>> {
    let repeated = tests.iter().enumerate().any(|(at, test)| tests[..at].iter().any(|other| other.index == test.index));
    if repeated { tests.into_iter().map(|test| vec![test]).collect() } else { vec![tests] }
}

/// Calls that i386 also makes through one door, numbered by its first argument: socketcall(2) and ipc(2).
const SOCKETCALL: &str = "socket bind connect listen accept getsockname getpeername socketpair send recv sendto \
    recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg";
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// A door by name, and the number of a call in it.
type Door = (&'static str, u64);

/// What happens behind doors: an action, and whether it is for sure.
type Behind = BTreeMap<Door, (u32, bool)>;

/// The doors that the calls of the table have on i386, by row.
fn doors() -> Vec<Option<Door>> {
    let mut doors = vec![None; syscalls::ROWS];
    let sockets = SOCKETCALL.split(' ').zip(1..).map(|(name, number)| (name, ("socketcall", number)));
    for (name, door) in sockets.chain(IPC.map(|(name, number)| (name, ("ipc", number)))) {
        if let Some(row) = syscalls::row(name) {
            doors[usize::from(row)] = Some(door);
        }
    }
    doors
}

impl Section {
    fn new(arch: Arch) -> Self {
        Self { arch, slots: vec![Slot::Default; syscalls::END], largest: None, beyond: NO_SUCH_CALL }
    }
}

impl Profile {
    pub(super) fn new(native: Arch, section: &Seccomp, warnings: &mut Vec<String>) -> Result<Self, SeccompError> {
        let fields = || ("defaultAction".to_owned(), "defaultErrnoRet".to_owned());
        let default = action(&section.default_action, section.default_errno_ret, fields)?;
        if default == NOTIFY {
            return Err(SeccompError::NotifyByDefault);
        }
        if section.listener_path.as_os_str().is_empty() && !section.listener_metadata.is_empty() {
            // The specification forbids it; runc takes it, so there are profiles that have it.
            let text = "linux.seccomp.listenerMetadata has nobody to go to without linux.seccomp.listenerPath";
            warnings.push(format!("{text}; left out"));
        }
        let mut profile = Self {
            default,
            flags: flags(section.flags.as_deref())?,
            sections: arches(native, &section.architectures)?.into_iter().map(Section::new).collect(),
            tests: Vec::new(),
            listener: None,
        };
        let on_x86 = profile.sections.iter().any(|section| section.arch == Arch::X86);
        let doors = if on_x86 { doors() } else { Vec::new() };
        let (mut behind, mut notifies) = (Behind::new(), false);
        for (at, rule) in section.syscalls.iter().enumerate() {
            let fields = || (format!("syscalls[{at}].action"), format!("syscalls[{at}].errnoRet"));
            let outcome = action(&rule.action, rule.errno_ret, fields)?;
            let field = |test: usize| move |name: &str| format!("syscalls[{at}].args[{test}].{name}");
            let tests = rule.args.iter().enumerate().map(|(test_at, given)| test(given, field(test_at)));
            let tests = alternatives(tests.collect::<Result<Vec<_>, _>>()?);
            if rule.names.rows.is_empty() && rule.names.unknown.is_empty() {
                warnings.push(format!("linux.seccomp.syscalls[{at}].names is empty: the rule says nothing"));
            }
            for section in 0..profile.sections.len() {
                for row in &rule.names.rows {
                    profile.add(section, *row, outcome, &tests);
                    if profile.sections[section].arch == Arch::X86
                        && let Some(door) = doors[usize::from(*row)]
                    {
                        through_door(&mut behind, door, outcome, tests[0].is_empty(), default);
                    }
                }
            }
            notifies |= outcome == NOTIFY;
            if notifies && section.listener_path.as_os_str().is_empty() {
                return Err(SeccompError::NotifyNobody { field: fields().0 });
            }
        }
        profile.add_doors(behind);
        if is_lenient(default) {
            profile.sections.iter_mut().for_each(|section| section.beyond = default);
        }
        if notifies && profile.notifies() {
            profile.check_sendmsg()?;
            if !section.listener_path.is_absolute() {
                return Err(SeccompError::ListenerPath(section.listener_path.clone()));
            }
            profile.flags |= flag::NEW_LISTENER;
            profile.listener = Some(Listener { path: section.listener_path.clone() });
        } else {
            // It is about notifications only, and the kernel refuses it without them.
            profile.flags &= !flag::WAIT_KILLABLE_RECV;
        }
        Ok(profile)
    }

    /// A rule without tests beats those with tests, whichever comes first (as in libseccomp); of two without, the first stays.
    /// A rule that says what the default says is none, for libseccomp skips it.
    fn add(&mut self, section: usize, row: u16, outcome: u32, alternatives: &[Vec<Test>]) {
        let section = &mut self.sections[section];
        // A name this architecture does not have changes nothing: without a rule it gets the default or, beyond the largest
        // call named, ENOSYS.
        let Some(number) = syscalls::number(row, section.arch.column()) else { return };
        if number < ARM_PRIVATE {
            section.largest = section.largest.max(Some(number));
        }
        if outcome == self.default {
            return;
        }
        let slot = &mut section.slots[usize::from(number)];
        match slot {
            Slot::Action(_) => return,
            _ if alternatives[0].is_empty() => {
                *slot = Slot::Action(outcome);
                return;
            }
            Slot::Default => {
                *slot = Slot::Tests(self.tests.len() as u16);
                self.tests.push(Vec::new());
            }
            Slot::Tests(_) => {}
        }
        if let Slot::Tests(index) = *slot {
            let rules = alternatives.iter().map(|tests| Rule { tests: tests.clone(), action: outcome });
            self.tests[usize::from(index)].extend(rules);
        }
    }

    /// What goes through doors is put behind what the section says about the doors themselves.
    fn add_doors(&mut self, behind: Behind) {
        let Some(section) = self.sections.iter().position(|section| section.arch == Arch::X86) else { return };
        for ((door, number), (outcome, _)) in behind {
            let test = Test { index: 0, operator: Operator::Equal, value: number };
            if let Some(row) = syscalls::row(door) {
                self.add(section, row, outcome, &[vec![test]]);
            }
        }
    }

    /// A filter that can only allow is none.
    pub(super) fn allows_everything(&self) -> bool {
        let allows = |section: &Section| section.slots.iter().all(|slot| *slot == Slot::Default);
        self.default == ALLOW && self.sections.iter().all(allows)
    }

    fn notifies(&self) -> bool {
        let slots = self.sections.iter().flat_map(|section| &section.slots);
        let in_tests = self.tests.iter().flatten().any(|rule| rule.action == NOTIFY);
        in_tests || slots.into_iter().any(|slot| *slot == Slot::Action(NOTIFY))
    }

    fn check_sendmsg(&self) -> Result<(), SeccompError> {
        let native = &self.sections[0];
        let number = syscalls::row("sendmsg").and_then(|row| syscalls::number(row, native.arch.column()));
        let passes = |action| action == ALLOW || action == LOG;
        let fine = match number.map_or(Slot::Default, |number| native.slots[usize::from(number)]) {
            Slot::Default => passes(self.default),
            Slot::Action(action) => passes(action),
            Slot::Tests(index) => {
                passes(self.default) && self.tests[usize::from(index)].iter().all(|rule| passes(rule.action))
            }
        };
        if fine { Ok(()) } else { Err(SeccompError::NotifyNeedsSendmsg) }
    }
}

/// A door hides the arguments behind it in memory, out of a filter's sight. So a rule about these is taken for all calls of
/// the kind when it is stricter than the default, and for none when it is not: AF_ALG sockets do not come in by socketcall
/// (Linux CVE-2026-31431), as they do with libseccomp.
fn through_door(behind: &mut Behind, door: Door, outcome: u32, certain: bool, default: u32) {
    if outcome == default || (!certain && strictness(outcome) >= strictness(default)) {
        return;
    }
    match behind.get(&door) {
        Some((_, true)) => {}
        Some((_, false)) if !certain => {}
        _ => {
            behind.insert(door, (outcome, certain));
        }
    }
}
