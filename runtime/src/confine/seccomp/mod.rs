//! The seccomp section of config.json -> a filter for the kernel.
//!
//! Own compiler, because a profile needs per-rule errno values and several architectures in one program (which rules out
//! seccompiler) and the binary is to stay static and small (which rules out libseccomp).
//! `profile` reads the section, `compile` writes the program by way of `assembler`, `syscalls` knows the numbers.
//!
//! Nothing is cached: the default profile compiles in 27 us. Opening and reading a file takes 5 already, before the section is
//! hashed and the file trusted; what would be left is less than half a percent of a `run` (`tests::figures` measures it).

mod assembler;
mod compile;
mod profile;
mod syscalls;

use std::path::PathBuf;

pub(crate) use profile::SeccompError;
use sys::seccomp::Instruction;
pub(crate) use syscalls::SyscallNames;

use crate::spec::Seccomp;
use profile::Arch;

/// A filter ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    /// Flags of seccomp(2).
    pub(crate) flags: u64,
    /// Who answers the calls with SCMP_ACT_NOTIFY, if there are any.
    pub(crate) listener: Option<Listener>,
    /// Names of calls that no architecture here has.
    pub(crate) unknown: Vec<String>,
}

/// `listenerPath`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) path: PathBuf,
}

impl Filter {
    /// Takes away the one flag that a kernel with all the rest that this runtime needs may lack (before 5.19).
    pub(crate) fn drop_missing_flag(&mut self) -> Option<&'static str> {
        const MAYBE: u64 = sys::seccomp::flag::WAIT_KILLABLE_RECV;
        if self.flags & MAYBE == 0 || sys::seccomp::flag_available(MAYBE) {
            return None;
        }
        self.flags &= !MAYBE;
        profile::FLAGS.iter().find(|(_, flag)| *flag == MAYBE).map(|(name, _)| *name)
    }
}

/// Names of the flags that are taken, if the condition holds for what they are to the kernel.
pub(crate) fn flags(wanted: impl Fn(u64) -> bool) -> Vec<&'static str> {
    let own = profile::FLAGS.iter().filter(|(_, flag)| wanted(*flag)).map(|(name, _)| *name);
    own.chain([profile::TSYNC]).collect()
}

/// Compiles a section; `None` when it would allow everything.
pub(crate) fn compile(section: &Seccomp, warnings: &mut Vec<String>) -> Result<Option<Filter>, SeccompError> {
    compile_for(Arch::NATIVE, section, warnings)
}

fn compile_for(native: Arch, section: &Seccomp, warnings: &mut Vec<String>) -> Result<Option<Filter>, SeccompError> {
    let profile = profile::Profile::new(native, section, warnings)?;
    if profile.allows_everything() {
        return Ok(None);
    }
    let program = compile::program(&profile)?;
    let unknown = section.syscalls.iter().flat_map(|rule| rule.names.unknown.iter().cloned()).collect();
    Ok(Some(Filter { program, flags: profile.flags, listener: profile.listener, unknown }))
}

#[cfg(test)]
mod tests;
