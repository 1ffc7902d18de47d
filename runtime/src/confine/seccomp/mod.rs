//! The seccomp section of config.json -> a filter for the kernel.
//!
//! Own compiler, because a profile needs per-rule errno values and several architectures in one program (which rules out
//! seccompiler) and the binary is to stay static and small (which rules out libseccomp).
//! `profile` reads the section, `compile` writes the program, `syscalls` knows the numbers.

mod compile;
mod profile;
mod syscalls;

pub(crate) use profile::SeccompError;
use sys::seccomp::Instruction;

use crate::spec::Seccomp;

/// A filter ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    /// Flags of seccomp(2).
    pub(crate) flags: u64,
}

/// Compiles a section; `None` when it would allow everything.
pub(crate) fn compile(section: &Seccomp, warnings: &mut Vec<String>) -> Result<Option<Filter>, SeccompError> {
    let profile = profile::Profile::new(section, warnings)?;
    if profile.allows_everything() {
        return Ok(None);
    }
    let program = compile::program(&profile)?;
    Ok(Some(Filter { program, flags: profile.flags }))
}

#[cfg(test)]
mod tests;
