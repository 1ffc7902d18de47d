//! `org.systemd.property.NAME` annotations: properties of the unit, with values in the text form of GVariant.
//!
//! ```text
//! value  := true | false | number | type number | 'text' | "text" | [value, ...] | @as [] | @au []
//! type   := byte int16 uint16 int32 uint32 int64 uint64 double         (int32 when there is none)
//! ```
//! Whoever writes a container's annotations may be less trusted than whoever started systemd. So only properties that act on
//! the scope alone are taken: limits, how it is killed, order. Refused is what pulls in or stops other units (`Wants=`,
//! `OnFailure=`), acts on the machine (`FailureAction=`), or is the runtime's to say (`PIDs`, `Slice`, `Delegate`, devices).

use sys::dbus::Value;

/// What annotations of this kind begin with.
pub(crate) const KEY: &str = "org.systemd.property.";

/// Properties that may be set, by name.
const ALLOWED: &[&str] = &[
    "After",
    "AllowedCPUs",
    "AllowedMemoryNodes",
    "Before",
    "CollectMode",
    "CoredumpReceive",
    "DefaultDependencies",
    "Description",
    "Documentation",
    "FinalKillSignal",
    "KillMode",
    "KillSignal",
    "ManagedOOMMemoryPressure",
    "ManagedOOMMemoryPressureLimit",
    "ManagedOOMPreference",
    "ManagedOOMSwap",
    "OOMPolicy",
    "PartOf",
    "RestartKillSignal",
    "RuntimeMaxUSec",
    "RuntimeRandomizedExtraUSec",
    "SendSIGHUP",
    "SendSIGKILL",
    "StartupAllowedCPUs",
    "StartupAllowedMemoryNodes",
    "StopWhenUnneeded",
    "TimeoutStopUSec",
    "WatchdogSignal",
];

/// Beginnings of names that are all about resources.
const ALLOWED_BEGINNINGS: &[&str] =
    &["BlockIO", "CPU", "DefaultMemory", "DefaultStartupMemory", "IO", "IPAccounting", "Memory", "Startup", "Tasks"];

/// Reads one annotation; `name` is what follows [`KEY`]. The error says what is wrong.
pub(crate) fn property(name: &str, text: &str) -> Result<(String, Value), &'static str> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err("is not the name of a systemd property");
    }
    let mut value = parse(text).ok_or("is not a value in GVariant's text form")?;
    let mut name = name.to_owned();
    // What unit files call TimeoutStopSec is TimeoutStopUSec on the bus.
    if name.ends_with("Sec") && !name.ends_with("USec") {
        value = microseconds(&value).ok_or("is not a number of seconds")?;
        name.truncate(name.len() - "Sec".len());
        name.push_str("USec");
    }
    let allowed = ALLOWED.contains(&name.as_str()) || ALLOWED_BEGINNINGS.iter().any(|start| name.starts_with(start));
    if !allowed {
        return Err("is not a property that a container may set on its scope");
    }
    Ok((name, value))
}

fn microseconds(seconds: &Value) -> Option<Value> {
    let whole = |value: u64| value.checked_mul(1_000_000);
    let number = match seconds {
        Value::Byte(value) => whole((*value).into()),
        Value::U16(value) => whole((*value).into()),
        Value::U32(value) => whole((*value).into()),
        Value::U64(value) => whole(*value),
        Value::I16(value) => whole(u64::try_from(*value).ok()?),
        Value::I32(value) => whole(u64::try_from(*value).ok()?),
        Value::I64(value) => whole(u64::try_from(*value).ok()?),
        Value::Double(value) if (0.0..1e12).contains(value) => Some((value * 1e6) as u64),
        _ => None,
    };
    number.map(Value::U64)
}

/// Reads a value, all of it.
fn parse(text: &str) -> Option<Value> {
    const MAX_TEXT: usize = 4096;
    if text.len() > MAX_TEXT {
        return None;
    }
    let (value, rest) = value(text.trim_start())?;
    rest.trim_start().is_empty().then_some(value)
}

fn value(text: &str) -> Option<(Value, &str)> {
    match text.chars().next()? {
        quote @ ('\'' | '"') => {
            let (content, rest) = quoted(&text[1..], quote)?;
            Some((Value::Text(content), rest))
        }
        '[' => {
            let (values, rest) = list(&text[1..])?;
            let element = values.first()?.signature(); // an empty list has no type: it has to be said
            Some((Value::Array(element, values), rest))
        }
        '@' => {
            let (element, rest) = text.strip_prefix("@a")?.split_once([' ', '\t'])?;
            let (values, rest) = list(rest.trim_start().strip_prefix('[')?)?;
            let fits = matches!(element, "s" | "u" | "t" | "i" | "y" | "b")
                && values.iter().all(|value| value.signature() == element);
            fits.then(|| (Value::Array(element.to_owned(), values), rest))
        }
        _ => word(text),
    }
}

/// Elements up to the bracket, all of one plain type.
fn list(text: &str) -> Option<(Vec<Value>, &str)> {
    let (mut values, mut rest): (Vec<Value>, _) = (Vec::new(), text.trim_start());
    if let Some(rest) = rest.strip_prefix(']') {
        return Some((values, rest));
    }
    loop {
        let (next, after) = value(rest)?;
        let same = values.first().is_none_or(|first| first.signature() == next.signature());
        if !same || matches!(next, Value::Array(..)) {
            return None;
        }
        values.push(next);
        rest = after.trim_start();
        if let Some(rest) = rest.strip_prefix(']') {
            return Some((values, rest));
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\0' => return None,
            c if c == quote => return Some((out, &text[at + 1..])),
            '\\' => out.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
    None
}

fn word(text: &str) -> Option<(Value, &str)> {
    let end = text.find([',', ']', ' ', '\t']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let typed = |rest: &str| {
        let rest = rest.trim_start();
        let end = rest.find([',', ']', ' ', '\t']).unwrap_or(rest.len());
        (rest[..end].to_owned(), rest.len() - end)
    };
    macro_rules! number {
        ($kind:ident) => {{
            let (digits, left) = typed(rest);
            Some((Value::$kind(digits.parse().ok()?), &rest[rest.len() - left..]))
        }};
    }
    match word {
        "true" => Some((Value::Bool(true), rest)),
        "false" => Some((Value::Bool(false), rest)),
        "byte" => number!(Byte),
        "int16" => number!(I16),
        "uint16" => number!(U16),
        "int32" => number!(I32),
        "uint32" => number!(U32),
        "int64" => number!(I64),
        "uint64" => number!(U64),
        "double" => number!(Double),
        word if word.contains('.') => Some((Value::Double(word.parse().ok()?), rest)),
        word => Some((Value::I32(word.parse().ok()?), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_gvariant_text() {
        let text = |text: &str| Value::text(text);
        for (given, expected) in [
            ("true", Value::Bool(true)),
            (" false ", Value::Bool(false)),
            ("12", Value::I32(12)),
            ("-1", Value::I32(-1)),
            ("uint64 123456789", Value::U64(123_456_789)),
            ("byte 7", Value::Byte(7)),
            ("1.5", Value::Double(1.5)),
            ("'inactive-or-failed'", text("inactive-or-failed")),
            (r#""it's \"x\"""#, text("it's \"x\"")),
            ("['a', 'b']", Value::Array("s".into(), vec![text("a"), text("b")])),
            ("[uint32 1,uint32 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)])),
            ("@as []", Value::Array("s".into(), vec![])),
            ("@ay [byte 1]", Value::Array("y".into(), vec![Value::Byte(1)])),
        ] {
            assert_eq!(parse(given), Some(expected), "{given}");
        }
        for bad in [
            "",
            "maybe",
            "'open",
            "[",
            "[]",
            "['a', 1]",
            "['a'",
            "[['a']]",
            "1 2",
            "uint64",
            "uint64 -1",
            "byte 256",
            "'a' 'b'",
            "@as [1]",
            "@x []",
            "'\\q'",
            "99999999999",
            "uint64 1x",
            "nan(",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        for (name, text, micros) in
            [("TimeoutStopSec", "3", 3_000_000), ("TimeoutStopSec", "0.5", 500_000), ("TimeoutStopUSec", "uint64 7", 7)]
        {
            assert_eq!(property(name, text), Ok(("TimeoutStopUSec".to_owned(), Value::U64(micros))));
        }
        assert!(property("TimeoutStopSec", "-3").is_err());
        assert!(property("TimeoutStopSec", "'3'").is_err());
    }

    #[test]
    fn only_the_scope_itself_can_be_changed() {
        for good in ["CollectMode", "MemoryHigh", "CPUWeight", "IOReadBandwidthMax", "After", "OOMPolicy"] {
            assert!(property(good, "true").is_ok(), "{good}");
        }
        for bad in [
            "ExecStart",
            "OnFailure",
            "Wants",
            "Requires",
            "BindsTo",
            "Conflicts",
            "FailureAction",
            "SuccessAction",
            "JobTimeoutAction",
            "PIDs",
            "Slice",
            "Delegate",
            "DeviceAllow",
            "DevicePolicy",
            "BPFProgram",
            "IPIngressFilterPath",
            "User",
            "ab",
            "Collect-Mode",
            "",
        ] {
            assert!(property(bad, "true").is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z0-9'\"@\\[\\], .\\\\ä-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
