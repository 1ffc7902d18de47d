//! Messages of protobuf bent field by field, whatever they mean.

/// Numbers that look random (xorshift64*).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// One below `below`, or 0.
    pub(super) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

/// Words that mean something somewhere.
const WORDS: [&str; 30] = [
    "",
    "/",
    ".",
    "..",
    "../../etc",
    "/../..",
    "a/../../b",
    "a\0b",
    "a\nb",
    "\u{202e}x",
    "-",
    "--help",
    "*",
    "$(id)",
    "%2e%2e%2f",
    "localhost//x",
    "runtime/default",
    "net.ipv4.ip_forward",
    "kernel.msgmax",
    "fs.mqueue.x",
    "a.slice",
    "/a:b:c",
    "0",
    "-1",
    "18446744073709551616",
    "::1",
    "10.0.0.0/8",
    "sha256:0",
    "0123456789abcdef",
    "\u{7f}",
];

#[derive(Clone)]
enum Value {
    Number(u64),
    Eight([u8; 8]),
    Bytes(Vec<u8>),
    Four([u8; 4]),
}

type Field = (u64, Value);

/// One field somewhere in a message changed, left out, or there twice.
pub(super) fn bend(dice: &mut Dice, message: &[u8]) -> Vec<u8> {
    let Some(mut fields) = parse(message).filter(|fields| !fields.is_empty()) else {
        return bent_bytes(dice, message);
    };
    let at = dice.roll(fields.len());
    match dice.roll(12) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        2 => fields[at].0 = 1 + dice.roll(20) as u64,
        3 => {
            let many = fields[at].clone();
            fields.extend(std::iter::repeat_n(many, 1 + dice.roll(300)));
        }
        _ => {
            fields[at].1 = match fields[at].1.clone() {
                Value::Number(old) => Value::Number(match dice.roll(5) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => i64::MIN.cast_unsigned(),
                    3 => old.wrapping_add(1),
                    _ => dice.roll(200) as u64,
                }),
                // Of short strings many could be read as messages; these have bytes that no text has.
                Value::Bytes(old) if !is_text(&old) && parse(&old).is_some() => Value::Bytes(bend(dice, &old)),
                Value::Bytes(old) => Value::Bytes(bent_bytes(dice, &old)),
                Value::Eight(_) => Value::Eight([0xff; 8]),
                Value::Four(_) => Value::Four([0xff; 4]),
            };
        }
    }
    encode(&fields)
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(char::is_control))
}

fn bent_bytes(dice: &mut Dice, old: &[u8]) -> Vec<u8> {
    match dice.roll(6) {
        // More and more of it, but not for ever.
        0 if old.len() < 100_000 => old.repeat(2),
        1 => [old, WORDS[dice.roll(WORDS.len())].as_bytes()].concat(),
        2 => WORDS[dice.roll(WORDS.len())].repeat(1 + dice.roll(3000)).into_bytes(),
        3 if !old.is_empty() => old[..dice.roll(old.len())].to_vec(),
        _ => WORDS[dice.roll(WORDS.len())].as_bytes().to_vec(),
    }
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(number(&mut bytes)?),
            1 => Value::Eight(take(&mut bytes, 8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(number(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?.to_vec())
            }
            5 => Value::Four(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

fn encode(fields: &[Field]) -> Vec<u8> {
    use prost::encoding::encode_varint;
    let mut bytes = Vec::new();
    for (number, value) in fields {
        let kind = match value {
            Value::Number(_) => 0,
            Value::Eight(_) => 1,
            Value::Bytes(_) => 2,
            Value::Four(_) => 5,
        };
        encode_varint(number << 3 | kind, &mut bytes);
        match value {
            Value::Number(value) => encode_varint(*value, &mut bytes),
            Value::Eight(value) => bytes.extend(value),
            Value::Bytes(value) => {
                encode_varint(value.len() as u64, &mut bytes);
                bytes.extend(value);
            }
            Value::Four(value) => bytes.extend(value),
        }
    }
    bytes
}
