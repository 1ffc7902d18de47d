//! `--device`, `--gpus` and the block device limits.

use super::OptionError;
use super::mounts::csv;
use crate::args::values;
use serde_json::{Value, json};

/// A device of `--device`: a node of the host, or the name of a CDI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// Host path, path in the container, permissions.
    Node(String, String, String),
    /// vendor/class=name
    Cdi(String),
}

/// One request of `--gpus`.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuRequest(pub Value);

/// path and weight of `--blkio-weight-device`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightDevice(pub String, pub u16);

/// path and rate of the `--device-*` limits
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleDevice(pub String, pub u64);

/// Why a device was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not path:value.
    #[error("bad format: {0}")]
    Format(String),
    /// A path that is none of a device.
    #[error("bad format for device path: {0}")]
    Path(String),
    /// A rate that is none.
    #[error(
        "invalid rate for device: {0}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
    )]
    Bps(String),
    /// A rate that is none.
    #[error(
        "invalid rate for device: {0}. The correct format is <device-path>:<number>. Number must be a positive integer"
    )]
    Iops(String),
    /// A weight that is none.
    #[error("invalid weight for device: {0}")]
    Weight(String),
    /// A rule that is none.
    #[error("invalid device cgroup format '{0}'")]
    Rule(String),
    /// An unknown field.
    #[error("unexpected key '{key}' in '{field}'")]
    GpuKey {
        /// The key.
        key: String,
        /// Where it stands.
        field: String,
    },
    /// A number that is none.
    #[error("count must be an integer: {0:?}")]
    GpuCount(String),
}

/// Reads `host[:container[:rwm]]` or vendor/class=name.
pub fn parse(text: &str) -> Result<Device, OptionError> {
    if is_cdi(text) {
        return Ok(Device::Cdi(text.to_owned()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let permissions = |t: &str| !t.is_empty() && t.chars().all(|c| "rwm".contains(c));
    let (host, inner, mode) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if permissions(mode) => (host, host, mode),
        [host, inner] => (host, inner, "rwm"),
        [host, inner, mode] if permissions(mode) => (host, inner, mode),
        [_, _, mode] => return Err(OptionError::Invalid(format!("bad mode specified: {mode}"))),
        _ => return Err(OptionError::Invalid(format!("invalid device specification: {text}"))),
    };
    for path in [host, inner] {
        if !path.starts_with('/') {
            return Err(OptionError::Invalid(format!("{path} is not an absolute path")));
        }
    }
    Ok(Device::Node(host.to_owned(), inner.to_owned(), mode.to_owned()))
}

/// vendor.com/class=name
fn is_cdi(text: &str) -> bool {
    let word = |t: &str| {
        t.starts_with(|c: char| c.is_ascii_alphabetic())
            && t.ends_with(|c: char| c.is_ascii_alphanumeric())
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    let Some((kind, name)) = text.split_once('=') else { return false };
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    word(vendor)
        && word(class)
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b))
}

/// Accepts a rule like "c 1:3 rwm".
pub fn check_rule(text: &str) -> Result<String, DeviceError> {
    let number = |t: &str| t == "*" || !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let fine = match text.split_whitespace().collect::<Vec<_>>()[..] {
        [kind, numbers, mode] => {
            matches!(kind, "a" | "b" | "c")
                && numbers.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor))
                && mode.len() <= 3
                && mode.chars().all(|c| "rwm".contains(c))
        }
        _ => false,
    };
    if fine { Ok(text.to_owned()) } else { Err(DeviceError::Rule(text.to_owned())) }
}

fn path_and(text: &str) -> Result<(&str, &str), DeviceError> {
    let (path, value) = text.split_once(':').ok_or_else(|| DeviceError::Format(text.to_owned()))?;
    if !path.starts_with("/dev/") {
        return Err(DeviceError::Path(text.to_owned()));
    }
    Ok((path, value))
}

/// path:weight
pub fn parse_weight(text: &str) -> Result<WeightDevice, DeviceError> {
    let (path, weight) = path_and(text)?;
    match weight.parse::<u16>() {
        Ok(weight) if weight == 0 || (10..=1000).contains(&weight) => Ok(WeightDevice(path.to_owned(), weight)),
        _ => Err(DeviceError::Weight(text.to_owned())),
    }
}

/// path:bytes
pub fn parse_bps(text: &str) -> Result<ThrottleDevice, DeviceError> {
    let (path, rate) = path_and(text)?;
    let rate = values::bytes(rate).ok().and_then(|size| u64::try_from(size.0).ok());
    rate.map(|rate| ThrottleDevice(path.to_owned(), rate)).ok_or_else(|| DeviceError::Bps(text.to_owned()))
}

/// path:number
pub fn parse_iops(text: &str) -> Result<ThrottleDevice, DeviceError> {
    let (path, rate) = path_and(text)?;
    rate.parse().map(|rate| ThrottleDevice(path.to_owned(), rate)).map_err(|_| DeviceError::Iops(text.to_owned()))
}

/// "all", a number, or driver=,count=,device=,capabilities=,options=
pub fn parse_gpus(text: &str) -> Result<GpuRequest, DeviceError> {
    let count = |t: &str| match t {
        "all" => Ok(-1),
        t => t.parse::<i64>().map_err(|_| DeviceError::GpuCount(t.to_owned())),
    };
    let (mut driver, mut number, mut ids) = (String::new(), None, Vec::<String>::new());
    let mut capabilities = vec!["gpu".to_owned()];
    let mut options = serde_json::Map::new();
    for field in csv(text).map_err(|_| DeviceError::Format(text.to_owned()))? {
        let Some((key, value)) = field.split_once('=') else {
            number = Some(count(&field)?);
            continue;
        };
        let list = || value.split(',').map(str::to_owned);
        match key {
            "driver" => driver = value.to_owned(),
            "count" => number = Some(count(value)?),
            "device" => ids = list().collect(),
            "capabilities" => capabilities.extend(list()),
            "options" => {
                for pair in list() {
                    let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
                    options.insert(key.to_owned(), json!(value));
                }
            }
            _ => return Err(DeviceError::GpuKey { key: key.to_owned(), field: field.clone() }),
        }
    }
    let number = number.unwrap_or(i64::from(ids.is_empty()));
    let ids = if ids.is_empty() { Value::Null } else { json!(ids) };
    Ok(GpuRequest(json!({
        "Driver": driver, "Count": number, "DeviceIDs": ids, "Capabilities": [capabilities], "Options": options,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let node = |a: &str, b: &str, c: &str| Device::Node(a.into(), b.into(), c.into());
        for (text, want) in [
            ("/dev/null", node("/dev/null", "/dev/null", "rwm")),
            ("/dev/a:/dev/b", node("/dev/a", "/dev/b", "rwm")),
            ("/dev/a:r", node("/dev/a", "/dev/a", "r")),
            ("/dev/a:/dev/b:rw", node("/dev/a", "/dev/b", "rw")),
            ("vendor.com/class=name", Device::Cdi("vendor.com/class=name".into())),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for (text, message) in [
            ("x", "x is not an absolute path"),
            ("/dev/a:/b:q", "bad mode specified: q"),
            ("/a:/b:r:w", "invalid device specification: /a:/b:r:w"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn limits_and_rules() {
        assert_eq!(parse_bps("/dev/a:1mb"), Ok(ThrottleDevice("/dev/a".into(), 1 << 20)));
        assert_eq!(parse_iops("/dev/a:3"), Ok(ThrottleDevice("/dev/a".into(), 3)));
        assert_eq!(parse_weight("/dev/a:10"), Ok(WeightDevice("/dev/a".into(), 10)));
        assert!(parse_weight("/dev/a:5").is_err() && parse_bps("/a:1").is_err() && parse_iops("/dev/a:x").is_err());
        assert!(check_rule("c 1:* rwm").is_ok() && check_rule("x 1:2 r").is_err() && check_rule("c 1 r").is_err());
    }

    #[test]
    fn gpus() {
        let all = json!({"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]],"Options":{}});
        assert_eq!(parse_gpus("all"), Ok(GpuRequest(all)));
        let two = json!({"Driver":"","Count":0,"DeviceIDs":["0","1"],"Capabilities":[["gpu","utility"]],"Options":{}});
        assert_eq!(parse_gpus("\"device=0,1\",capabilities=utility"), Ok(GpuRequest(two)));
        assert!(parse_gpus("x=1").is_err() && parse_gpus("many").is_err());
    }
}
