//! criu's requests and responses on the wire: as much of protocol buffers as its `rpc.proto` needs, which is not much.
//!
//! A message is a row of fields. Each begins with a number, `field << 3 | wire type`; here the types are 0 (a number in groups of
//! seven bits) and 2 (a length and that many bytes: text, or a message again).

/// What a request asks for, and a response answers (`criu_req_type`).
pub(crate) mod kind {
    pub(crate) const DUMP: u64 = 1;
    pub(crate) const RESTORE: u64 = 2;
    pub(crate) const PRE_DUMP: u64 = 4;
    pub(crate) const NOTIFY: u64 = 6;
    pub(crate) const FEATURE_CHECK: u64 = 9;
    pub(crate) const VERSION: u64 = 10;
}

/// Fields of `criu_opts`.
pub(crate) mod opt {
    pub(crate) const IMAGES_DIR_FD: u32 = 1;
    pub(crate) const PID: u32 = 2;
    pub(crate) const LEAVE_RUNNING: u32 = 3;
    pub(crate) const EXT_UNIX_SK: u32 = 4;
    pub(crate) const TCP_ESTABLISHED: u32 = 5;
    pub(crate) const EVASIVE_DEVICES: u32 = 6;
    pub(crate) const SHELL_JOB: u32 = 7;
    pub(crate) const FILE_LOCKS: u32 = 8;
    pub(crate) const LOG_LEVEL: u32 = 9;
    pub(crate) const LOG_FILE: u32 = 10;
    pub(crate) const PAGE_SERVER: u32 = 11;
    pub(crate) const NOTIFY_SCRIPTS: u32 = 12;
    pub(crate) const ROOT: u32 = 13;
    pub(crate) const PARENT_IMG: u32 = 14;
    pub(crate) const TRACK_MEM: u32 = 15;
    pub(crate) const AUTO_DEDUP: u32 = 16;
    pub(crate) const WORK_DIR_FD: u32 = 17;
    pub(crate) const LINK_REMAP: u32 = 18;
    pub(crate) const EXT_MNT: u32 = 23;
    pub(crate) const MANAGE_CGROUPS: u32 = 24;
    pub(crate) const CG_ROOT: u32 = 25;
    pub(crate) const RST_SIBLING: u32 = 26;
    pub(crate) const INHERIT_FD: u32 = 27;
    pub(crate) const MANAGE_CGROUPS_MODE: u32 = 34;
    pub(crate) const EXTERNAL: u32 = 37;
    pub(crate) const EMPTY_NS: u32 = 38;
    pub(crate) const JOIN_NS: u32 = 39;
    pub(crate) const FREEZE_CGROUP: u32 = 44;
    pub(crate) const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub(crate) const LAZY_PAGES: u32 = 48;
    pub(crate) const ORPHAN_PTS_MASTER: u32 = 50;
    pub(crate) const CONFIG_FILE: u32 = 51;
    pub(crate) const LSM_PROFILE: u32 = 53;
    pub(crate) const LSM_MOUNT_CONTEXT: u32 = 63;
}

/// A message to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request.
    pub(crate) fn request(kind: u64, opts: Option<&Message>) -> Self {
        let mut request = Self::default();
        request.number(1, kind as i64);
        if let Some(opts) = opts {
            request.message(2, opts);
        }
        request
    }

    /// The answer to a notification.
    pub(crate) fn notified(success: bool) -> Self {
        let mut request = Self::request(kind::NOTIFY, None);
        request.flag(3, success);
        request
    }

    /// A question about two features.
    pub(crate) fn features(mem_track: bool, lazy_pages: bool) -> Self {
        let (mut request, mut features) = (Self::request(kind::FEATURE_CHECK, None), Self::default());
        features.flag(1, mem_track);
        features.flag(2, lazy_pages);
        request.message(5, &features);
        request
    }

    /// A response that says no: for our own side, which stands in for criu until criu runs.
    pub(crate) fn failure(text: &str) -> Self {
        let mut response = Self::default();
        response.number(1, 0);
        response.flag(2, false);
        response.text(9, text);
        response
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, field: u32, value: i64) {
        self.varint(u64::from(field) << 3);
        // Negative ones take ten bytes, as if they had 64 bits.
        self.varint(value as u64);
    }

    /// Adds a truth value.
    pub(crate) fn flag(&mut self, field: u32, value: bool) {
        self.number(field, i64::from(value));
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, field: u32, text: &str) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Adds a message.
    pub(crate) fn message(&mut self, field: u32, message: &Message) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(message.0.len() as u64);
        self.0.extend_from_slice(&message.0);
    }

    /// Adds a message of two texts, of which criu has several kinds.
    pub(crate) fn pair(&mut self, field: u32, first: &str, second: &str) {
        let mut pair = Self::default();
        pair.text(1, first);
        pair.text(2, second);
        self.message(field, &pair);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The bytes to send.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A response, as far as we want to know.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) kind: u64,
    pub(crate) success: bool,
    /// Name of the step that criu has come to, and a pid that goes with it.
    pub(crate) notify: Option<(String, i32)>,
    pub(crate) errno: i32,
    pub(crate) text: String,
    pub(crate) mem_track: bool,
    pub(crate) lazy_pages: bool,
    /// 3.17.1 is 31701.
    pub(crate) version: u64,
}

/// Bytes that are no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("criu answers in a way that cannot be understood")]
pub(crate) struct Malformed;

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

impl Response {
    /// Reads a response; fields it does not know are skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        each(bytes, |field, value| {
            match field {
                1 => response.kind = value.number(),
                2 => response.success = value.number() != 0,
                5 => {
                    let mut notify = (String::new(), 0);
                    each(value.bytes(), |field, value| {
                        match field {
                            1 => notify.0 = value.text(),
                            2 => notify.1 = value.number() as i32,
                            _ => {}
                        }
                        Ok(())
                    })?;
                    response.notify = Some(notify);
                }
                7 => response.errno = value.number() as i32,
                8 => each(value.bytes(), |field, value| {
                    match field {
                        1 => response.mem_track = value.number() != 0,
                        2 => response.lazy_pages = value.number() != 0,
                        _ => {}
                    }
                    Ok(())
                })?,
                9 => response.text = value.text(),
                10 => {
                    let mut parts = [0; 6];
                    each(value.bytes(), |field, value| {
                        if let Some(part) = parts.get_mut(field as usize) {
                            *part = value.number().min(1000);
                        }
                        Ok(())
                    })?;
                    // major, minor, (git), sublevel
                    response.version = parts[1] * 10_000 + parts[2] * 100 + parts[4];
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(response)
    }
}

/// Goes through the fields of a message.
fn each<'a>(
    mut bytes: &'a [u8],
    mut with: impl FnMut(u64, Value<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => Value::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Malformed)?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => Value::Bytes(take(&mut bytes, 4)?),
            _ => return Err(Malformed),
        };
        with(key >> 3, value)?;
    }
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_look_as_protocol_buffers_have_them() {
        let mut message = Message::default();
        message.number(1, 150);
        message.text(2, "testing");
        message.number(38, 0x4000_0000);
        assert_eq!(
            message.bytes(),
            b"\x08\x96\x01\x12\x07testing\xb0\x02\x80\x80\x80\x80\x04",
            "the examples of the protocol buffers documentation, and a field above 15"
        );
        let mut negative = Message::default();
        negative.number(1, -1);
        assert_eq!(negative.bytes(), b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    }

    #[test]
    fn responses_are_read() {
        let response = Response::parse(b"\x08\x06\x10\x01\x2a\x10\x0a\x0cpost-restore\x10\x2a").expect("a response");
        assert_eq!((response.kind, response.success), (kind::NOTIFY, true));
        assert_eq!(response.notify, Some(("post-restore".into(), 42)));
        let version = Response::parse(b"\x08\x0a\x10\x01\x52\x06\x08\x03\x10\x11\x20\x01").expect("a response");
        assert_eq!(version.version, 31_701);
        let failure = Response::parse(Message::failure("no").bytes()).expect("a response");
        assert_eq!((failure.success, failure.text.as_str()), (false, "no"));
        for bad in [&b"\x08"[..], b"\x12\x05ab", b"\x0b", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"] {
            assert_eq!(Response::parse(bad), Err(Malformed), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let _ = Response::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read(text in ".{0,200}", code in proptest::prelude::any::<i32>()) {
            let mut message = Message::failure(&text);
            message.number(7, i64::from(code));
            let response = Response::parse(message.bytes()).expect("a response");
            proptest::prop_assert_eq!((response.text, response.errno), (text, code));
        }
    }
}
