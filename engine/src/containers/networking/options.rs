//! Options of a container's place in a network (`DriverOpts`): docker's for its link's name and settings, and ours for how much goes
//! through it. Pure.

use super::super::record::Joining;
use crate::{
    http::{ApiError, ApiResult},
    networks::LinkOptions,
};

/// `net.ipv4.conf.IFNAME.log_martians=1,...`: settings of the container's end.
const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";
/// The name of the container's end.
const INTERFACE: &str = "com.docker.network.endpoint.ifname";
/// Most that the container gets in a second: `10mbit`, `1gbit`.
const INGRESS: &str = "berth.network.endpoint.ingress";
/// Most that it sends.
const EGRESS: &str = "berth.network.endpoint.egress";
/// Longest name of a link.
const LONGEST: usize = 15;

/// What the options say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub interface: Option<String>,
    pub link: LinkOptions,
}

/// Reads them. One in docker's own space or ours that there isn't is refused; others are shown.
pub fn read(joining: &Joining) -> ApiResult<Options> {
    let mut options = Options::default();
    for (key, value) in joining.driver_opts.iter().flatten() {
        let bad = |why: &str| {
            ApiError::invalid(format!("invalid value {value:?} for option {key} of network {}: {why}", joining.name))
        };
        match key.as_str() {
            SYSCTLS => {
                for setting in value.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
                    let (path, value) = sysctl(setting).ok_or_else(|| bad("not net.FAMILY.GROUP.IFNAME.NAME=VALUE"))?;
                    options.link.sysctls.insert(path, value);
                }
            }
            INTERFACE => {
                let fine = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
                let named = (1..=LONGEST).contains(&value.len()) && value.bytes().all(fine);
                if !named || matches!(value.as_str(), "." | ".." | "lo" | "all" | "default") {
                    return Err(bad("it can't be the name of a link"));
                }
                options.interface = Some(value.clone());
            }
            INGRESS => options.link.ingress = Some(rate(value).ok_or_else(|| bad("not a rate like 10mbit"))?),
            EGRESS => options.link.egress = Some(rate(value).ok_or_else(|| bad("not a rate like 10mbit"))?),
            key if key.starts_with("com.docker.network.endpoint.") || key.starts_with("berth.network.") => {
                return Err(ApiError::not_implemented(format!("option {key} is not implemented in berth")));
            }
            _ => {}
        }
    }
    Ok(options)
}

/// A setting and its value; the path is that below /proc/sys.
fn sysctl(setting: &str) -> Option<(String, String)> {
    let (name, value) = setting.split_once('=')?;
    let parts: Vec<&str> = name.split('.').collect();
    let known = matches!(parts[..], ["net", "ipv4" | "ipv6" | "mpls", _, "IFNAME", _]);
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    (known && parts.iter().all(|part| plain(part)) && !value.is_empty()).then(|| (parts.join("/"), value.to_owned()))
}

/// Bytes per second, from bits per second in the words of tc(8).
fn rate(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let bits = match text[digits..].to_ascii_lowercase().as_str() {
        "bit" | "" => number,
        "kbit" => number.checked_mul(1_000)?,
        "mbit" => number.checked_mul(1_000_000)?,
        "gbit" => number.checked_mul(1_000_000_000)?,
        _ => return None,
    };
    // Less than a packet in a second is no rate.
    (bits >= 16_000).then_some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Options, String> {
        let options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        read(&Joining { driver_opts: Some(options), ..Joining::default() }).map_err(|error| error.message)
    }

    #[test]
    fn what_they_say() {
        let read = with(&[
            (SYSCTLS, "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.mtu=1400"),
            (INTERFACE, "wan"),
            (INGRESS, "10mbit"),
            ("k", "v"),
        ]);
        let read = read.unwrap();
        assert_eq!(read.interface.as_deref(), Some("wan"));
        assert_eq!(read.link.sysctls["net/ipv4/conf/IFNAME/log_martians"], "1");
        assert_eq!((read.link.ingress, read.link.egress), (Some(1_250_000), None));
        for (key, value) in [
            (SYSCTLS, "net.ipv4.ip_forward=1"),
            (SYSCTLS, "kernel.ipv4.conf.IFNAME.x=1"),
            (SYSCTLS, "net.ipv4.conf.IFNAME.../../x=1"),
            (SYSCTLS, "net.ipv4.conf.IFNAME.x"),
            (INTERFACE, "a/b"),
            (INTERFACE, "sixteen-letters-"),
            (INTERFACE, "lo"),
            (EGRESS, "fast"),
            (EGRESS, "1bit"),
            ("com.docker.network.endpoint.nonsense", "1"),
        ] {
            assert!(with(&[(key, value)]).is_err(), "{key}={value}");
        }
    }
}
