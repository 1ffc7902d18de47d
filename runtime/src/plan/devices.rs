//! `linux.devices`, and the devices every container has.

use std::path::PathBuf;

use nix::sys::stat::{SFlag, makedev};

use super::PlanError;
use crate::spec::Device;

/// One device node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceStep {
    pub(crate) path: PathBuf,
    /// S_IFCHR, S_IFBLK or S_IFIFO.
    pub(crate) kind: SFlag,
    pub(crate) number: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The devices of the runtime specification's `default devices`, without console and ptmx, which are no plain nodes.
const DEFAULT: &[(&str, u64, u64)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

pub(super) fn plan(devices: &[Device]) -> Result<Vec<DeviceStep>, PlanError> {
    let mut steps = Vec::with_capacity(DEFAULT.len() + devices.len());
    for (index, device) in devices.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        let kind = match device.kind.as_str() {
            "c" | "u" => SFlag::S_IFCHR,
            "b" => SFlag::S_IFBLK,
            "p" => SFlag::S_IFIFO,
            kind => return Err(PlanError::unknown(field("type"), kind)),
        };
        let path = &device.path;
        if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
            return Err(PlanError::invalid(field("path"), path.as_str(), "is not a plain absolute path"));
        }
        let number = |name: &str, value: i64, limit: i64| match value {
            0.. if value <= limit => Ok(value as u64),
            _ => Err(PlanError::invalid(field(name), value.to_string(), "is no device number")),
        };
        // The kernel has 12 bits for the major and 20 for the minor number.
        let (major, minor) = (number("major", device.major, 0xfff)?, number("minor", device.minor, 0xf_ffff)?);
        steps.push(DeviceStep {
            path: path.into(),
            kind,
            number: if kind == SFlag::S_IFIFO { 0 } else { makedev(major, minor) },
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        });
    }
    for &(path, major, minor) in DEFAULT {
        // config.json may say otherwise about a default device.
        if !steps.iter().any(|step| step.path == std::path::Path::new(path)) {
            let number = makedev(major, minor);
            steps.push(DeviceStep { path: path.into(), kind: SFlag::S_IFCHR, number, mode: 0o666, uid: 0, gid: 0 });
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_added_unless_given() {
        let given = Device {
            kind: "c".into(),
            path: "/dev/null".into(),
            major: 1,
            minor: 3,
            file_mode: Some(0o600),
            ..Device::default()
        };
        let steps = plan(&[given]).expect("plan");
        assert_eq!(steps.len(), DEFAULT.len());
        assert_eq!(
            steps.iter().filter(|step| step.path.ends_with("null")).map(|step| step.mode).collect::<Vec<_>>(),
            [0o600]
        );
    }

    #[test]
    fn refusals() {
        for (kind, path, major) in [
            ("x", "/dev/a", 1),
            ("c", "dev/a", 1),
            ("c", "/dev/../a", 1),
            ("b", "/dev/a", -1),
            ("b", "/dev/a", 1 << 20),
        ] {
            let device = Device { kind: kind.into(), path: path.into(), major, ..Device::default() };
            assert!(plan(&[device]).is_err(), "{kind} {path} {major}");
        }
    }
}
