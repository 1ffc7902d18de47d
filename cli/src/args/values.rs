//! Values of flags: what docker's flag parser accepts, refused with docker's words.

use std::net::IpAddr;

/// A number of bytes; -1 means "unlimited" where that is allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteSize(pub i64);

/// A duration in nanoseconds, the unit of the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nanos(pub i64);

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A size without digits.
    #[error("invalid size: '{0}'")]
    Size(String),
    /// A size with an unknown unit.
    #[error("invalid suffix: '{0}'")]
    Suffix(String),
    /// Not a decimal number.
    #[error("failed to parse {0} as a rational number")]
    Rational(String),
    /// More than nine decimals.
    #[error("value is too precise")]
    TooPrecise,
    /// Not an integer.
    #[error("strconv.ParseInt: parsing {0:?}: invalid syntax")]
    Integer(String),
    /// An integer that is too large.
    #[error("strconv.ParseInt: parsing {0:?}: value out of range")]
    Range(String),
    /// Not a duration.
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    /// A duration without a unit.
    #[error("time: missing unit in duration {0:?}")]
    DurationUnit(String),
    /// An environment variable without a name.
    #[error("invalid environment variable: {0}")]
    Env(String),
    /// A name:address pair that is none.
    #[error("bad format for add-host: {0:?}")]
    ExtraHost(String),
    /// An address in a name:address pair that is none.
    #[error("invalid IP address in add-host: {0:?}")]
    ExtraHostAddress(String),
    /// Not an address.
    #[error("IP address is not correctly formatted: {0}")]
    IpAddress(String),
    /// Not a domain.
    #[error("{0} is not a valid domain")]
    Domain(String),
    /// A pair without "=".
    #[error("invalid argument {0:?}, expected KEY=VALUE")]
    Map(String),
    /// A filter without "=".
    #[error("bad format of filter (expected name=value)")]
    Filter,
    /// A kernel parameter no namespace confines.
    #[error("sysctl '{0}' is not allowed")]
    Sysctl(String),
    /// A stream other than the three.
    #[error("valid streams are STDIN, STDOUT and STDERR")]
    Stream,
    /// A malformed link.
    #[error("bad format for links: {0}")]
    Link(String),
    /// A boolean that is none.
    #[error("strconv.ParseBool: parsing {0:?}: invalid syntax")]
    Bool(String),
}

/// A boolean as Go reads it.
pub fn boolean(text: &str) -> Result<bool, ValueError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ValueError::Bool(text.to_owned())),
    }
}

/// A whole number.
pub fn int(text: &str) -> Result<i64, ValueError> {
    text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => ValueError::Range(text.to_owned()),
        _ => ValueError::Integer(text.to_owned()),
    })
}

/// A whole number of 16 bits.
pub fn uint16(text: &str) -> Result<u16, ValueError> {
    match text.parse::<u64>() {
        Ok(number) => u16::try_from(number).map_err(|_| ValueError::Range(text.to_owned())),
        Err(_) => Err(ValueError::Integer(text.to_owned())),
    }
}

/// Bytes with a unit: "64m", "1.5GiB", "10 kB"; the base is 1024 in every spelling.
pub fn bytes(text: &str) -> Result<ByteSize, ValueError> {
    let size = || ValueError::Size(text.to_owned());
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.').ok_or_else(size)? + 1;
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.trim().parse().map_err(|_| size())?;
    if number < 0.0 || !number.is_finite() {
        return Err(size());
    }
    let suffix = suffix.trim().to_ascii_lowercase();
    let unit = match suffix.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(ValueError::Suffix(suffix)),
    };
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and no machine has so much")]
    Ok(ByteSize((number * 1024f64.powi(unit)) as i64))
}

/// Bytes, or -1.
pub fn bytes_or_unlimited(text: &str) -> Result<ByteSize, ValueError> {
    if text == "-1" { Ok(ByteSize(-1)) } else { bytes(text) }
}

/// A decimal number of CPUs, in billionths.
pub fn cpus(text: &str) -> Result<i64, ValueError> {
    let rational = || ValueError::Rational(text.to_owned());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(rational());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 {
        return Err(ValueError::TooPrecise);
    }
    let negative = whole.starts_with('-');
    let whole: i64 = match whole.trim_start_matches(['-', '+']) {
        "" => 0,
        digits => digits.parse().map_err(|_| rational())?,
    };
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| rational())?;
    let value = whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(fraction)).ok_or_else(rational)?;
    Ok(if negative { -value } else { value })
}

/// A duration as Go writes it: "1h2m3.5s".
pub fn duration(text: &str) -> Result<Nanos, ValueError> {
    let invalid = || ValueError::Duration(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Nanos(0));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(ValueError::DurationUnit(text.to_owned())),
            _ => return Err(invalid()),
        };
        total += number * unit;
        rest = &rest[end..];
    }
    // The largest duration of the API: 63 bits of nanoseconds, some 292 years.
    if total > 9.2e18 {
        return Err(invalid());
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let total = total.round() as i64;
    Ok(Nanos(if negative { -total } else { total }))
}

/// An environment variable: K=V, or K for the client's own value.
pub fn env(text: &str) -> Result<String, ValueError> {
    if text.is_empty() || text.starts_with('=') {
        return Err(ValueError::Env(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// K=V.
pub fn map(text: &str) -> Result<(String, String), ValueError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ValueError::Map(text.to_owned())),
    }
}

/// A filter: K=V, keys in lower case.
pub fn filter(text: &str) -> Result<(String, String), ValueError> {
    let (key, value) = text.split_once('=').ok_or(ValueError::Filter)?;
    Ok((key.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// A kernel parameter that belongs to a namespace.
pub fn sysctl(text: &str) -> Result<(String, String), ValueError> {
    const NAMES: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    match text.split_once('=') {
        Some((key, value)) if NAMES.contains(&key) || key.starts_with("net.") || key.starts_with("fs.mqueue.") => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(ValueError::Sysctl(text.to_owned())),
    }
}

/// A name for an image.
pub fn image_name(text: &str) -> Result<String, proto::image_ref::ImageRefError> {
    text.parse::<proto::image_ref::ImageRef>().map(|_| text.to_owned())
}

/// name:address or name=address, address may be host-gateway.
pub fn extra_host(text: &str) -> Result<String, ValueError> {
    let bad = || ValueError::ExtraHost(text.to_owned());
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad)?;
    if name.is_empty() || address.is_empty() {
        return Err(bad());
    }
    let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if plain != "host-gateway" && plain.parse::<IpAddr>().is_err() {
        return Err(ValueError::ExtraHostAddress(address.to_owned()));
    }
    Ok(format!("{name}:{plain}"))
}

/// An IP address.
pub fn ip_address(text: &str) -> Result<String, ValueError> {
    text.trim().parse::<IpAddr>().map(|ip| ip.to_string()).map_err(|_| ValueError::IpAddress(text.to_owned()))
}

/// A DNS search domain; "." clears the list.
pub fn dns_search(text: &str) -> Result<String, ValueError> {
    let domain = text.trim();
    let label = |l: &str| {
        !l.is_empty() && l.len() < 64 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if domain == "." || domain.len() < 255 && domain.trim_end_matches('.').split('.').all(label) {
        return Ok(domain.to_owned());
    }
    Err(ValueError::Domain(text.to_owned()))
}

/// One of the three streams, in lower case.
pub fn stream(text: &str) -> Result<String, ValueError> {
    let name = text.to_ascii_lowercase();
    if matches!(name.as_str(), "stdin" | "stdout" | "stderr") { Ok(name) } else { Err(ValueError::Stream) }
}

/// A link: name[:alias].
pub fn link(text: &str) -> Result<String, ValueError> {
    if text.is_empty() || text.split(':').count() > 2 {
        return Err(ValueError::Link(text.to_owned()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("0", 0), ("10", 10), ("64m", 64 << 20), ("1.5g", 3 << 29), ("2KiB", 2048), ("3 kB", 3072), ("1b", 1)]
        {
            assert_eq!(bytes(text), Ok(ByteSize(size)), "{text}");
        }
        for text in ["", "m", "-1", "x1", "1.2.3"] {
            assert_eq!(bytes(text), Err(ValueError::Size(text.into())), "{text}");
        }
        assert_eq!(bytes("1x"), Err(ValueError::Suffix("x".into())));
        assert_eq!(bytes_or_unlimited("-1"), Ok(ByteSize(-1)));
    }

    #[test]
    fn cpu_numbers() {
        for (text, nanos) in [("1", 1_000_000_000), ("1.5", 1_500_000_000), (".01", 10_000_000), ("0.000000001", 1)] {
            assert_eq!(cpus(text), Ok(nanos), "{text}");
        }
        assert_eq!(cpus("0.0000000001"), Err(ValueError::TooPrecise));
        for text in ["", ".", "a", "1.x", "1e3"] {
            assert_eq!(cpus(text), Err(ValueError::Rational(text.into())), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, nanos) in
            [("0", 0), ("3s", 3_000_000_000), ("1m30s", 90_000_000_000), ("1.5ms", 1_500_000), ("-1ns", -1)]
        {
            assert_eq!(duration(text), Ok(Nanos(nanos)), "{text}");
        }
        assert_eq!(duration("3").unwrap_err().to_string(), "time: missing unit in duration \"3\"");
        for text in ["", "x", "s", "3q", "-"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_links_and_sysctls() {
        assert_eq!(extra_host("a:1.2.3.4").as_deref(), Ok("a:1.2.3.4"));
        assert_eq!(extra_host("a=::1").as_deref(), Ok("a:::1"));
        assert_eq!(extra_host("a:[::1]").as_deref(), Ok("a:::1"));
        assert_eq!(extra_host("a:host-gateway").as_deref(), Ok("a:host-gateway"));
        assert!(extra_host("a").is_err() && extra_host("a:").is_err() && extra_host("a:b").is_err());
        assert_eq!(link("db:alias").as_deref(), Ok("db:alias"));
        assert!(link("").is_err() && link("a:b:c").is_err());
        assert!(sysctl("net.core.somaxconn=1").is_ok() && sysctl("kernel.panic=1").is_err());
        assert_eq!(filter("Label=a=b"), Ok(("label".into(), "a=b".into())));
        assert!(filter("x").is_err());
    }
}
