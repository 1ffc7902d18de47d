//! Values as Go writes them, since that is what Dockerfiles hold.

/// `1h30m`, `1.5s`: nanoseconds.
pub fn duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end = tail.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        if whole.len() > 19 {
            return Err(invalid());
        }
        total += whole.parse::<i128>().unwrap_or(0) * unit;
        // Digits beyond the eighteenth are less than a nanosecond, whatever the unit.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let digits: i128 = fraction.parse().map_err(|_| invalid())?;
            total += digits * unit / 10_i128.pow(fraction.len() as u32);
        }
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = tail;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

/// `64m`, `1.5 GiB`: bytes, by powers of 1024.
pub fn bytes(text: &str) -> Option<u64> {
    let number_end = text.rfind(|letter: char| letter.is_ascii_digit() || letter == '.' || letter == ' ')?;
    let (number, suffix) = text.split_at(number_end + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let suffix = suffix.to_lowercase();
    let power = match suffix.strip_suffix("ib").or(suffix.strip_suffix('b')).unwrap_or(&suffix) {
        "" if suffix == "ib" => return None,
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    (bytes.is_finite() && bytes < i64::MAX as f64).then_some(bytes as u64)
}

/// What Go takes for true and false.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A number without a sign.
pub fn number(text: &str, radix: u32) -> Option<u32> {
    if text.starts_with('+') { None } else { u32::from_str_radix(text, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        const S: i64 = 1_000_000_000;
        for (text, expected) in [
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("+0", Ok(0)),
            ("5s", Ok(5 * S)),
            ("1m30s", Ok(90 * S)),
            ("1.5h", Ok(5400 * S)),
            (".5s", Ok(S / 2)),
            ("1.s", Ok(S)),
            ("100ms", Ok(S / 10)),
            ("3us", Ok(3000)),
            ("3µs", Ok(3000)),
            ("7ns", Ok(7)),
            ("-2s", Ok(-2 * S)),
            ("0.0000000000000000000001s", Ok(0)),
            ("", Err("time: invalid duration \"\"")),
            ("-", Err("time: invalid duration \"-\"")),
            (".s", Err("time: invalid duration \".s\"")),
            ("1..s", Err("time: invalid duration \"1..s\"")),
            ("s", Err("time: invalid duration \"s\"")),
            ("3", Err("time: missing unit in duration \"3\"")),
            ("3d", Err("time: unknown unit \"d\" in duration \"3d\"")),
            ("3s4", Err("time: missing unit in duration \"3s4\"")),
            ("9999999999h", Err("time: invalid duration \"9999999999h\"")),
            ("99999999999999999999999s", Err("time: invalid duration \"99999999999999999999999s\"")),
        ] {
            assert_eq!(duration(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("42b", Some(42)),
            ("1k", Some(1024)),
            ("1kb", Some(1024)),
            ("1KiB", Some(1024)),
            ("1.5m", Some(1536 * 1024)),
            ("2 G", Some(2 << 30)),
            ("1T", Some(1 << 40)),
            ("1PB", Some(1 << 50)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1ib", None),
            ("1bb", None),
            ("1kbb", None),
            ("1e3", None),
            ("1..2", None),
            ("9999999999p", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number("0755", 8), Some(0o755));
        assert_eq!(number("9", 8), None);
        assert_eq!(number("+5", 10), None);
        assert_eq!(number("4294967296", 10), None);
        assert_eq!((boolean("T"), boolean("yes"), boolean("0")), (Some(true), None, Some(false)));
    }
}
