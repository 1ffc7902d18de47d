//! What a seccomp section means: words looked up, names turned into numbers per architecture, rules put in order.

use std::collections::BTreeMap;

use super::syscalls::{Column, number};
use crate::spec::{ArgumentTest, Seccomp};

/// Why a section is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SeccompError {
    /// A word that is not one of those known.
    #[error("{field}: {word:?} is unknown")]
    Unknown { field: &'static str, word: String },
    /// SCMP_ACT_NOTIFY
    #[error("SCMP_ACT_NOTIFY is not supported yet")]
    Notify,
    /// Arguments are numbered 0 to 5.
    #[error("syscalls[].args[].index: {0} is not within 0 to 5")]
    Index(u32),
    /// Errno values end at 4095.
    #[error("errnoRet: {0} is no errno")]
    Errno(u32),
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
}

impl Arch {
    pub(super) const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    pub(super) fn is_64_bit(self) -> bool {
        self != Self::X86
    }

    fn column(self) -> Column {
        match self {
            Self::X86_64 => Column::X86_64,
            Self::X86 => Column::X86,
            Self::X32 => Column::X32,
            Self::Aarch64 => Column::Aarch64,
        }
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

/// What happens to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Always this action.
    Action(u32),
    /// The first of these whose tests all hold, else the default.
    Tests(Vec<(Vec<Test>, u32)>),
}

/// A section, understood.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) default: u32,
    pub(super) flags: u64,
    /// Per architecture: the calls that the section says something else than the default about, and the largest one named.
    pub(super) arches: Vec<(Arch, BTreeMap<u32, Verdict>, Option<u32>)>,
}

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const KILL_THREAD: u32 = 0;
pub(super) const TRAP: u32 = 0x0003_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const TRACE: u32 = 0x7ff0_0000;
pub(super) const LOG: u32 = 0x7ffc_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// ENOSYS as an action.
pub(super) const NO_SUCH_CALL: u32 = ERRNO | nix::errno::Errno::ENOSYS as u32;

fn action(word: &str, value: Option<u32>) -> Result<u32, SeccompError> {
    let value = value.unwrap_or(nix::errno::Errno::EPERM as u32);
    Ok(match word {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" if value > 4095 => return Err(SeccompError::Errno(value)),
        "SCMP_ACT_ERRNO" => ERRNO | value,
        "SCMP_ACT_TRACE" if value > 0xffff => return Err(SeccompError::Errno(value)),
        "SCMP_ACT_TRACE" => TRACE | value,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => return Err(SeccompError::Notify),
        _ => return Err(SeccompError::Unknown { field: "action", word: word.to_owned() }),
    })
}

fn arches(words: &[String], warnings: &mut Vec<String>) -> Result<Vec<Arch>, SeccompError> {
    let mut found = vec![Arch::NATIVE];
    for word in words {
        let arch = match word.as_str() {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" if Arch::NATIVE == Arch::Aarch64 => {
                warnings.push("seccomp: 32-bit arm calls are not known: such programs will be killed".into());
                continue;
            }
            word if word.starts_with("SCMP_ARCH_") => continue, // of some other machine
            word => return Err(SeccompError::Unknown { field: "architectures", word: word.to_owned() }),
        };
        // Calls of another processor cannot happen here.
        let same_family = (arch == Arch::Aarch64) == (Arch::NATIVE == Arch::Aarch64);
        if same_family && !found.contains(&arch) {
            found.push(arch);
        }
    }
    Ok(found)
}

fn test(given: &ArgumentTest) -> Result<Test, SeccompError> {
    if given.index > 5 {
        return Err(SeccompError::Index(given.index));
    }
    let (operator, value) = match given.op.as_str() {
        "SCMP_CMP_NE" => (Operator::NotEqual, given.value),
        "SCMP_CMP_LT" => (Operator::Less, given.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, given.value),
        "SCMP_CMP_EQ" => (Operator::Equal, given.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, given.value),
        "SCMP_CMP_GT" => (Operator::Greater, given.value),
        // For this one `value` is the mask and `valueTwo` what is to be left.
        "SCMP_CMP_MASKED_EQ" => (Operator::Masked(given.value), given.value_two),
        word => return Err(SeccompError::Unknown { field: "syscalls[].args[].op", word: word.to_owned() }),
    };
    Ok(Test { index: given.index, operator, value })
}

/// All tests of a rule have to hold, unless one argument is tested twice: then each test is a rule of its own, as runc has it.
fn alternatives(tests: Vec<Test>) -> Vec<Vec<Test>> {
    let repeated = tests.iter().enumerate().any(|(at, test)| tests[..at].iter().any(|other| other.index == test.index));
    if repeated { tests.into_iter().map(|test| vec![test]).collect() } else { vec![tests] }
}

impl Profile {
    pub(super) fn new(section: &Seccomp, warnings: &mut Vec<String>) -> Result<Self, SeccompError> {
        let default = action(&section.default_action, section.default_errno_ret)?;
        let mut flags = 0;
        for word in &section.flags {
            flags |= match word.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => sys::seccomp::flag::TSYNC,
                "SECCOMP_FILTER_FLAG_LOG" => sys::seccomp::flag::LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => sys::seccomp::flag::SPEC_ALLOW,
                // Says something about the notify action only, which is refused.
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
                word => return Err(SeccompError::Unknown { field: "flags", word: word.to_owned() }),
            };
        }
        let mut arches: Vec<_> =
            arches(&section.architectures, warnings)?.into_iter().map(|arch| (arch, BTreeMap::new(), None)).collect();
        for rule in &section.syscalls {
            let outcome = action(&rule.action, rule.errno_ret)?;
            let tests = rule.args.iter().map(test).collect::<Result<Vec<_>, _>>()?;
            for (arch, verdicts, largest) in &mut arches {
                for name in &rule.names {
                    // A name this architecture does not have, or that is newer than the table, changes nothing: without a
                    // rule it gets the default or, beyond the largest call named, ENOSYS.
                    let Some(number) = number(name, arch.column()) else { continue };
                    *largest = (*largest).max(Some(number));
                    add(verdicts, number, outcome, &tests);
                }
            }
        }
        for (_, verdicts, _) in &mut arches {
            verdicts.retain(|_, verdict| *verdict != Verdict::Action(default));
        }
        Ok(Self { default, flags, arches })
    }

    /// A filter that can only allow is none.
    pub(super) fn allows_everything(&self) -> bool {
        self.default == ALLOW && self.arches.iter().all(|(_, verdicts, _)| verdicts.is_empty())
    }
}

/// A rule without tests beats those with tests, whichever comes first (as in libseccomp); of two without, the first stays.
fn add(verdicts: &mut BTreeMap<u32, Verdict>, number: u32, outcome: u32, tests: &[Test]) {
    if tests.is_empty() {
        match verdicts.get(&number) {
            Some(Verdict::Action(_)) => {}
            _ => {
                verdicts.insert(number, Verdict::Action(outcome));
            }
        }
        return;
    }
    match verdicts.entry(number).or_insert_with(|| Verdict::Tests(Vec::new())) {
        Verdict::Action(_) => {}
        Verdict::Tests(rules) => rules.extend(alternatives(tests.to_vec()).into_iter().map(|tests| (tests, outcome))),
    }
}
