//! `linux.netDevices`: network devices of the host that become the container's.

use std::collections::BTreeMap;

use super::PlanError;
use super::libc_flag::NEWNET;
use super::namespaces::NamespacePlan;
use crate::spec::NetDevice;

/// One device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetDeviceStep {
    /// Its name in the runtime's network namespace.
    pub(crate) from: String,
    /// Its name in the container's.
    pub(crate) to: String,
}

pub(super) fn plan(
    devices: &BTreeMap<String, NetDevice>,
    namespaces: &NamespacePlan,
) -> Result<Vec<NetDeviceStep>, PlanError> {
    let field = "linux.netDevices";
    if !devices.is_empty() && !namespaces.is_private(NEWNET) {
        return Err(PlanError::NeedsNamespace { field: field.into(), namespace: "network" });
    }
    let mut steps: Vec<NetDeviceStep> = Vec::with_capacity(devices.len());
    for (from, device) in devices {
        let to = if device.name.is_empty() { from } else { &device.name };
        for name in [from, to] {
            if !is_name(name) {
                return Err(PlanError::invalid(field, name.as_str(), "is no name of a network device"));
            }
        }
        if steps.iter().any(|step| step.to == *to) {
            return Err(PlanError::invalid(field, to.as_str(), "is the new name of two devices"));
        }
        steps.push(NetDeviceStep { from: from.clone(), to: to.clone() });
    }
    Ok(steps)
}

/// What the kernel takes for a name (dev_valid_name), without `%`, which it would replace by a number.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| !byte.is_ascii_whitespace() && byte != 0x0b && !b"/:%\0".contains(&byte);
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, new: u64) -> Result<Vec<NetDeviceStep>, PlanError> {
        let devices = serde_json::from_str(text).expect("parses");
        plan(&devices, &NamespacePlan { new, ..NamespacePlan::default() })
    }

    #[test]
    fn names_are_kept_or_changed() {
        let steps =
            of(r#"{"eth1": {}, "eth0": {"name": "lan"}, "x": null}"#.replace(", \"x\": null", "").as_str(), NEWNET);
        let step = |from: &str, to: &str| NetDeviceStep { from: from.into(), to: to.into() };
        assert_eq!(steps.expect("steps"), [step("eth0", "lan"), step("eth1", "eth1")]);
        assert_eq!(of("{}", 0).expect("none"), []);
    }

    #[test]
    fn refusals() {
        assert!(matches!(of(r#"{"eth0": {}}"#, 0), Err(PlanError::NeedsNamespace { .. })));
        for text in [
            r#"{"eth0": {"name": "eth1"}, "eth1": {}}"#,
            r#"{"": {}}"#,
            r#"{"a/b": {}}"#,
            r#"{"..": {}}"#,
            r#"{"eth0": {"name": "a b"}}"#,
            r#"{"eth0": {"name": "eth%d"}}"#,
            r#"{"eth0": {"name": "abcdefghijklmnop"}}"#,
        ] {
            assert!(matches!(of(text, NEWNET), Err(PlanError::Invalid { .. })), "{text}");
        }
    }
}
