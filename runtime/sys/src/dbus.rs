//! D-Bus messages as far as clients of systemd and firewalld need them: marshalling of any value, reading of replies and signals; and
//! the sockets in an address. Talking is left to who asks.
//! What is read comes from another process: every length is checked, and nothing longer than [`MAX_MESSAGE`] is taken.
//!
//! Numbers are in this machine's byte order, which is also that of the peer: both ends of a unix socket are on one machine.

/// Longest message that is read. Replies are object paths, error texts and short lists.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The fixed part of a header.
pub const PREAMBLE: usize = 16;

const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// A value with its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `n`
    I16(i16),
    /// `q`
    U16(u16),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `(..)`; also an entry of a dictionary, which is laid out alike.
    Struct(Vec<Value>),
    /// The signature of an element, then the elements.
    Array(String, Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// Text, from anything that is text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Adds the signature.
    pub fn sign(&self, out: &mut String) {
        match self {
            Self::Byte(_) => out.push('y'),
            Self::Bool(_) => out.push('b'),
            Self::I16(_) => out.push('n'),
            Self::U16(_) => out.push('q'),
            Self::I32(_) => out.push('i'),
            Self::U32(_) => out.push('u'),
            Self::I64(_) => out.push('x'),
            Self::U64(_) => out.push('t'),
            Self::Double(_) => out.push('d'),
            Self::Text(_) => out.push('s'),
            Self::Path(_) => out.push('o'),
            Self::Struct(fields) => {
                out.push('(');
                fields.iter().for_each(|field| field.sign(out));
                out.push(')');
            }
            Self::Array(element, _) => {
                out.push('a');
                out.push_str(element);
            }
            Self::Variant(_) => out.push('v'),
        }
    }

    /// The signature.
    pub fn signature(&self) -> String {
        let mut out = String::new();
        self.sign(&mut out);
        out
    }
}

/// What a type is aligned to; 0 for what no signature begins with.
fn alignment(first: u8) -> usize {
    match first {
        b'y' | b'g' | b'v' => 1,
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 0,
    }
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to.max(1)), 0);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    pad(out, 4);
    out.extend((text.len() as u32).to_ne_bytes());
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_signature(out: &mut Vec<u8>, signature: &str) {
    out.push(signature.len() as u8);
    out.extend(signature.as_bytes());
    out.push(0);
}

/// Adds a value at the end of a buffer that begins at a multiple of 8.
pub fn put(out: &mut Vec<u8>, value: &Value) {
    macro_rules! number {
        ($value:expr, $size:expr) => {{
            pad(out, $size);
            out.extend($value.to_ne_bytes())
        }};
    }
    match value {
        Value::Byte(value) => out.push(*value),
        Value::Bool(value) => number!(u32::from(*value), 4),
        Value::I16(value) => number!(value, 2),
        Value::U16(value) => number!(value, 2),
        Value::I32(value) => number!(value, 4),
        Value::U32(value) => number!(value, 4),
        Value::I64(value) => number!(value, 8),
        Value::U64(value) => number!(value, 8),
        Value::Double(value) => number!(value, 8),
        Value::Text(text) => put_text(out, text),
        Value::Path(text) => put_text(out, text),
        Value::Struct(fields) => {
            pad(out, 8);
            fields.iter().for_each(|field| put(out, field));
        }
        Value::Array(element, values) => {
            pad(out, 4);
            let at = out.len();
            out.extend([0; 4]);
            pad(out, alignment(element.as_bytes().first().copied().unwrap_or(b'y')));
            let start = out.len();
            values.iter().for_each(|value| put(out, value));
            let length = (out.len() - start) as u32;
            out[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        }
        Value::Variant(value) => {
            put_signature(out, &value.signature());
            put(out, value);
        }
    }
}

/// The kinds of message.
pub mod kind {
    /// A call of a method.
    pub const CALL: u8 = 1;
    /// What it gives.
    pub const REPLY: u8 = 2;
    /// Why it doesn't.
    pub const ERROR: u8 = 3;
    /// News for everybody.
    pub const SIGNAL: u8 = 4;
}

mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// The words of a header; what is absent is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// One of [`kind`].
    pub kind: u8,
    /// Its number.
    pub serial: u32,
    /// The object that it is about.
    pub path: String,
    /// The interface.
    pub interface: String,
    /// The method or signal.
    pub member: String,
    /// The error's name.
    pub error: String,
    /// Who it is for.
    pub destination: String,
    /// The number of the call that it answers.
    pub reply_to: u32,
    /// Types of what is in the body.
    pub signature: String,
    /// What it says.
    pub body: Vec<u8>,
}

impl Message {
    /// The bytes of it, with this body.
    pub fn marshal(&self, body: &[Value]) -> Vec<u8> {
        let (mut signature, mut bytes) = (String::new(), Vec::new());
        for value in body {
            value.sign(&mut signature);
            put(&mut bytes, value);
        }
        let mut out = vec![ORDER, self.kind, 0, 1];
        out.extend((bytes.len() as u32).to_ne_bytes());
        out.extend(self.serial.to_ne_bytes());
        out.extend([0; 4]);
        let text = |code: u8, text: &str, out: &mut Vec<u8>| {
            if !text.is_empty() {
                pad(out, 8);
                out.push(code);
                put_signature(out, if code == field::PATH { "o" } else { "s" });
                put_text(out, text);
            }
        };
        text(field::PATH, &self.path, &mut out);
        text(field::INTERFACE, &self.interface, &mut out);
        text(field::MEMBER, &self.member, &mut out);
        text(field::ERROR_NAME, &self.error, &mut out);
        text(field::DESTINATION, &self.destination, &mut out);
        if self.reply_to != 0 {
            pad(&mut out, 8);
            out.push(field::REPLY_SERIAL);
            put_signature(&mut out, "u");
            pad(&mut out, 4);
            out.extend(self.reply_to.to_ne_bytes());
        }
        if !signature.is_empty() {
            pad(&mut out, 8);
            out.push(field::SIGNATURE);
            put_signature(&mut out, "g");
            put_signature(&mut out, &signature);
        }
        let fields = (out.len() - PREAMBLE) as u32;
        out[12..16].copy_from_slice(&fields.to_ne_bytes());
        pad(&mut out, 8);
        out.extend(bytes);
        out
    }

    /// How many bytes follow the preamble. `None` if it is not the beginning of a message, or of one that is too long.
    pub fn rest(preamble: &[u8; PREAMBLE]) -> Option<usize> {
        if preamble[0] != ORDER || preamble[3] != 1 {
            return None;
        }
        let number =
            |at: usize| u32::from_ne_bytes([preamble[at], preamble[at + 1], preamble[at + 2], preamble[at + 3]]);
        let (body, fields) = (number(4) as usize, number(12) as usize);
        let rest = fields.checked_next_multiple_of(8)?.checked_add(body)?;
        (rest <= MAX_MESSAGE - PREAMBLE).then_some(rest)
    }

    /// Reads a whole message.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let preamble: &[u8; PREAMBLE] = bytes.get(..PREAMBLE)?.try_into().ok()?;
        if bytes.len() != PREAMBLE + Self::rest(preamble)? {
            return None;
        }
        let mut reader = Reader { bytes, at: 4 };
        let (body, serial, fields) = (reader.u32()? as usize, reader.u32()?, reader.u32()? as usize);
        let end = PREAMBLE.checked_add(fields)?;
        let mut message = Self { kind: bytes[1], serial, ..Self::default() };
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (field::PATH, "o") => message.path = reader.text()?.to_owned(),
                (field::INTERFACE, "s") => message.interface = reader.text()?.to_owned(),
                (field::MEMBER, "s") => message.member = reader.text()?.to_owned(),
                (field::ERROR_NAME, "s") => message.error = reader.text()?.to_owned(),
                (field::DESTINATION, "s") => message.destination = reader.text()?.to_owned(),
                (field::REPLY_SERIAL, "u") => message.reply_to = reader.u32()?,
                (field::SIGNATURE, "g") => message.signature = reader.signature()?.to_owned(),
                // Fields that later versions add are to be ignored; so far all are of these types.
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return None,
            }
        }
        if reader.at != end {
            return None;
        }
        reader.align(8)?;
        message.body = bytes.get(reader.at..)?.to_owned();
        (message.body.len() == body).then_some(message)
    }

    /// Reads the body from its beginning.
    pub fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Reads values one after the other; `None` at the first that is not there.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A number.
    pub fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        self.take(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// A string or an object path.
    pub fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    /// A list of strings.
    pub fn texts(&mut self) -> Option<Vec<&'a str>> {
        let length = self.u32()? as usize;
        let end = self.at.checked_add(length)?;
        let mut texts = Vec::new();
        while self.at < end {
            texts.push(self.text()?);
        }
        (self.at == end).then_some(texts)
    }

    /// A signature.
    pub fn signature(&mut self) -> Option<&'a str> {
        let length = usize::from(self.byte()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

/// The unix sockets in a D-Bus address such as `unix:path=/run/user/1000/bus,guid=..;unix:abstract=x`. Other transports lead to
/// other machines and are left out.
pub fn sockets(address: &str) -> Vec<String> {
    let parts = address.split(';').filter_map(|part| part.strip_prefix("unix:"));
    let socket = |part: &str| {
        part.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", value) => unescape(value).filter(|path| path.starts_with('/')),
            ("abstract", value) => unescape(value).map(|name| format!("@{name}")),
            _ => None,
        })
    };
    parts.filter_map(socket).collect()
}

/// Undoes `%2f` and the like.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marshalled(values: &[Value]) -> (String, Vec<u8>) {
        let bytes = Message { kind: kind::CALL, serial: 7, ..Message::default() }.marshal(values);
        let message = Message::parse(&bytes).expect("parses");
        assert_eq!((message.kind, message.serial), (kind::CALL, 7));
        (message.signature, message.body)
    }

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("unix:path=/run/user/1000/bus", &["/run/user/1000/bus"][..]),
            ("unix:path=/run/a%20b,guid=12", &["/run/a b"]),
            ("tcp:host=x;unix:abstract=/tmp/dbus-1,guid=1;unix:path=/b", &["@/tmp/dbus-1", "/b"]),
            ("unix:path=relative", &[]),
            ("unix:path=/x%zz", &[]),
            ("unix:path=/x%2", &[]),
            ("", &[]),
        ] {
            assert_eq!(sockets(text), expected, "{text}");
        }
    }

    #[test]
    fn values_are_laid_out_as_the_specification_says() {
        let n = |value: u32| value.to_ne_bytes();
        let (signature, body) = marshalled(&[
            Value::Byte(5),
            Value::text("ab"),
            Value::Bool(true),
            Value::Array("u".into(), vec![Value::U32(9), Value::U32(10)]),
        ]);
        assert_eq!(signature, "ysbau");
        let expected = [&[5, 0, 0, 0], &n(2)[..], b"ab\0\0", &n(1), &n(8), &n(9), &n(10)].concat();
        assert_eq!(body, expected);
    }

    #[test]
    fn structs_and_their_arrays_are_aligned_to_eight() {
        let pair = Value::Struct(vec![Value::text("P"), Value::Variant(Box::new(Value::U64(3)))]);
        let (signature, body) =
            marshalled(&[Value::Array("(sv)".into(), vec![pair]), Value::Array("s".into(), vec![])]);
        assert_eq!(signature, "a(sv)as");
        let expected = [
            &24_u32.to_ne_bytes()[..],
            &[0; 4], // up to the first struct
            &1_u32.to_ne_bytes(),
            b"P\0",
            b"\x01t\0", // signature of the variant
            &[0; 7],    // up to the number
            &3_u64.to_ne_bytes(),
            &0_u32.to_ne_bytes(),
        ]
        .concat();
        assert_eq!(body, expected);
    }

    #[test]
    fn headers_survive() {
        let message = Message {
            kind: kind::CALL,
            serial: 1,
            path: "/org/freedesktop/systemd1".into(),
            interface: "a.b".into(),
            member: "Do".into(),
            destination: "c.d".into(),
            reply_to: 3,
            error: "e.f".into(),
            ..Message::default()
        };
        assert_eq!(Message::parse(&message.marshal(&[])).expect("parses"), message);
    }

    #[test]
    fn lengths_are_bounded() {
        let mut bytes = Message { kind: kind::SIGNAL, serial: 1, ..Message::default() }.marshal(&[Value::text("x")]);
        for at in [4, 12] {
            let mut forged = bytes.clone();
            forged[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
            assert_eq!(Message::parse(&forged), None);
            assert_eq!(Message::rest(forged[..PREAMBLE].try_into().expect("16")), None);
        }
        bytes.pop();
        assert_eq!(Message::parse(&bytes), None, "cut off");
    }

    proptest! {
        #[test]
        fn addresses_never_panic(text in ".{0,60}") {
            let _ = sockets(&text);
            let _ = sockets(&format!("unix:path=/{text}"));
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0_usize..120, to in any::<u8>()) {
            let _ = Message::parse(&bytes);
            // Nearly right ones get further.
            let call = Message { kind: kind::REPLY, serial: 1, path: "/a".into(), reply_to: 2, ..Message::default() };
            let mut near = call.marshal(&[Value::text("abc"), Value::U32(1)]);
            let at = flip % near.len();
            near[at] = to;
            if let Some(message) = Message::parse(&near) {
                let mut reader = message.reader();
                while reader.text().is_some() {}
                let _ = message.reader().texts();
                let mut reader = message.reader();
                let _ = (reader.u32(), reader.signature(), reader.text());
            }
        }
    }
}
