//! Capability sets: names of config.json -> bits, and putting them on the process.
//!
//! The `caps` crate gives names and numbers. Setting is our own: all sets at once, and without its detour over /proc.

use std::str::FromStr;

use sys::Errno;
use sys::creds::{self, CapSets};

use crate::spec::Capabilities;

/// CAP_SYS_ADMIN, which loading a seccomp filter takes unless no_new_privs is set.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;

/// The five sets, a bit per capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// The bit of a capability by name, with or without `CAP_`, in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    caps::Capability::from_str(&full).ok().map(|capability| capability.bitmask())
}

impl CapPlan {
    /// Reads the five lists. No section means no capabilities; unknown names are left out with a warning, as the specification has it.
    pub(crate) fn new(given: Option<&Capabilities>, warnings: &mut Vec<String>) -> Self {
        let Some(given) = given else { return Self::default() };
        let mut set = |names: &[String]| {
            let mut bits = 0;
            for name in names {
                match bit(name) {
                    Some(bit) => bits |= bit,
                    None => {
                        let warning = format!("capability {name:?} is unknown and ignored");
                        if !warnings.contains(&warning) {
                            warnings.push(warning);
                        }
                    }
                }
            }
            bits
        };
        let mut plan = Self {
            bounding: set(&given.bounding),
            effective: set(&given.effective),
            permitted: set(&given.permitted),
            inheritable: set(&given.inheritable),
            ambient: set(&given.ambient),
        };
        plan.effective &= plan.permitted;
        // The kernel wants an ambient capability permitted and inheritable.
        let refused = plan.ambient & !(plan.permitted & plan.inheritable);
        if refused != 0 {
            warnings.push(format!("ambient capabilities {refused:#x} are not permitted and inheritable, and ignored"));
            plan.ambient &= !refused;
        }
        plan
    }

    /// Leaves out what the runtime itself does not have and so cannot give. Returns what that was.
    pub(crate) fn limit_to(&mut self, available: u64) -> u64 {
        let missing = (self.permitted | self.inheritable) & !available;
        for set in [&mut self.effective, &mut self.permitted, &mut self.inheritable, &mut self.ambient] {
            *set &= available;
        }
        missing
    }

    /// `exec --cap`: in force for this process, but never inheritable (CVE-2022-29162).
    pub(crate) fn add(&mut self, bits: u64) {
        self.bounding |= bits;
        self.effective |= bits;
        self.permitted |= bits;
    }

    /// Narrows the bounding set; to be called while CAP_SETPCAP is still there.
    pub(crate) fn drop_bounding(&self) -> Result<(), Errno> {
        for capability in 0..64 {
            if self.bounding & (1 << capability) != 0 {
                continue;
            }
            match creds::drop_bounding(capability) {
                Ok(()) => {}
                Err(Errno::EINVAL) => return Ok(()), // beyond the kernel's last one
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets the other sets; `extra` stays in force on top of them.
    pub(crate) fn apply(&self, extra: u64) -> Result<(), Errno> {
        let sets = CapSets {
            effective: self.effective | extra,
            permitted: self.permitted | extra,
            inheritable: self.inheritable,
        };
        creds::set_caps(sets)
    }

    /// Raises the ambient set; what the kernel cannot do is left out, since only a newer kernel's names get that far.
    pub(crate) fn raise_ambient(&self) -> Result<(), Errno> {
        creds::clear_ambient()?;
        for capability in (0..64).filter(|capability| self.ambient & (1_u64 << capability) != 0) {
            match creds::raise_ambient(capability) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_spelling() {
        for (name, number) in [("CAP_CHOWN", 0), ("chown", 0), ("CAP_SYS_ADMIN", 21), ("CAP_CHECKPOINT_RESTORE", 40)] {
            assert_eq!(bit(name), Some(1 << number), "{name}");
        }
        assert_eq!(bit("CAP_MOON"), None);
        assert_eq!(bit("CAP_CAP_CHOWN"), None);
    }

    #[test]
    fn unknown_names_warn_and_sets_stay_consistent() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let given = Capabilities {
            bounding: list(&["CAP_CHOWN", "CAP_MOON"]),
            effective: list(&["CAP_CHOWN", "CAP_KILL"]),
            permitted: list(&["CAP_CHOWN"]),
            inheritable: Vec::new(),
            ambient: list(&["CAP_CHOWN"]),
        };
        let mut warnings = Vec::new();
        let plan = CapPlan::new(Some(&given), &mut warnings);
        assert_eq!(plan, CapPlan { bounding: 1, effective: 1, permitted: 1, inheritable: 0, ambient: 0 });
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn exec_never_adds_inheritable() {
        let mut plan = CapPlan::default();
        plan.add(bit("CAP_NET_ADMIN").expect("known"));
        assert_eq!((plan.inheritable, plan.ambient), (0, 0));
        assert_ne!(plan.effective, 0);
    }
}
