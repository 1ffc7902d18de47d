//! DNS messages (RFC 1035), as far as a resolver of container names has to understand them: one question in, addresses or names
//! out. Everything else is passed on as it came. Reads untrusted bytes.

use std::net::IpAddr;

/// Length of a message's header.
const HEADER: usize = 12;
/// A UDP answer may be this long, if the question doesn't say otherwise.
const CLASSIC_LIMIT: usize = 512;
/// No longer answer than this goes by UDP, whatever the question says (no fragments).
const UDP_LIMIT: usize = 1232;
/// How long an answer may be kept. Containers come and go.
const TTL: u32 = 30;

/// Bits of the header's second word.
const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const AUTHORITATIVE: u16 = 1 << 10;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;
const CODE: u16 = 0xf;

/// Codes of others' answers.
pub(super) const NO_ERROR: u16 = 0;
const FAILED: u16 = 2;
/// No such name.
pub(super) const NO_NAME: u16 = 3;
const REFUSED: u16 = 5;

/// The class of the internet.
const IN: u16 = 1;
/// The pseudo record by which a question says what its sender can do (EDNS).
const OPT: u16 = 41;

/// Types of records.
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const AAAA: u16 = 28;
}

/// A record that says what its sender can do (EDNS), in answer to one that says so: root, type, size, no flags, no data.
const OPT_ANSWER: [u8; 11] = [0, 0, OPT as u8, (UDP_LIMIT >> 8) as u8, UDP_LIMIT as u8, 0, 0, 0, 0, 0, 0];

/// How a question is answered that has no records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// The name is known.
    NoError = 0,
    /// The question can't be read.
    FormatError = 1,
    /// Nobody could be asked.
    ServerFailure = 2,
    /// Not a kind of message that is served.
    NotImplemented = 4,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The name in lower case without the dot at its end; none when it holds other characters than names of containers do.
    pub(super) name: Option<String>,
    /// The type of the records asked for.
    pub(super) kind: u16,
    /// Whether it is about the internet, as all are.
    pub(super) is_internet: bool,
    /// Where it ends in the message.
    end: usize,
    /// How long an answer of ours by UDP may be.
    limit: usize,
    /// How long an answer by UDP may be at most.
    pub(super) room: usize,
    /// Whether it says what its sender can do (EDNS), and so wants to be told likewise.
    edns: bool,
}

impl Question {
    /// Where it ends in its message, and in answers.
    pub(super) fn end(&self) -> usize {
        self.end
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a message that should hold one question. The error is what to answer; none for what deserves no answer.
pub(super) fn parse(message: &[u8]) -> Result<Question, Option<Code>> {
    let flags = u16_at(message, 2).ok_or(None)?;
    if message.len() < HEADER || flags & RESPONSE != 0 {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return Err(Some(Code::NotImplemented));
    }
    let bad = || Some(Code::FormatError);
    if u16_at(message, 4) != Some(1) {
        return Err(bad());
    }
    let (name, end) = read_name(message, HEADER).ok_or_else(bad)?;
    let kind = u16_at(message, end).ok_or_else(bad)?;
    let class = u16_at(message, end + 2).ok_or_else(bad)?;
    let end = end + 4;
    // Only where nothing else stands between.
    let plain = u16_at(message, 6) == Some(0) && u16_at(message, 8) == Some(0);
    let edns = plain && message.get(end) == Some(&0) && u16_at(message, end + 1) == Some(OPT);
    let size = if edns { u16_at(message, end + 3).map_or(CLASSIC_LIMIT, usize::from) } else { CLASSIC_LIMIT };
    let room = size.max(CLASSIC_LIMIT);
    Ok(Question { name, kind, is_internet: class == IN, end, limit: room.min(UDP_LIMIT), room, edns })
}

/// Reads a name and gives where it ends. No pointers: there is nothing yet they could point at.
fn read_name(message: &[u8], mut at: usize) -> Option<(Option<String>, usize)> {
    let mut name = Some(String::new());
    let start = at;
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            return Some((name, at + 1));
        }
        if length > 63 || at + length + 1 - start > 254 {
            return None;
        }
        let label = message.get(at + 1..at + 1 + length)?;
        let plain = label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.');
        name = name.filter(|_| plain).map(|mut text| {
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            text
        });
        at += length + 1;
    }
}

/// Writes a name; none when it can't be one.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// The address that a reverse look-up is about: `2.0.18.172.in-addr.arpa`, or 32 digits before `ip6.arpa`.
pub(super) fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut parts = rest.split('.').rev();
        for octet in &mut octets {
            let part = parts.next()?;
            *octet = part.parse().ok()?;
            // One way to write a number: no sign, no zeros before it.
            if octet.to_string() != part {
                return None;
            }
        }
        return parts.next().is_none().then(|| octets.into());
    }
    let mut digits = name.strip_suffix(".ip6.arpa")?.split('.').rev();
    let mut bits = 0u128;
    for _ in 0..32 {
        let &[digit] = digits.next()?.as_bytes() else { return None };
        bits = bits << 4 | u128::from(char::from(digit).to_digit(16)?);
    }
    digits.next().is_none().then(|| IpAddr::V6(bits.into()))
}

/// Records of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Records {
    /// None: the name is known and has none of the kind, or there is a failure.
    None(Code),
    /// Addresses of the name, all of the kind that was asked for.
    Addresses(Vec<IpAddr>),
    /// The name of an address.
    Name(String),
}

/// Answers a message whose question is known. By UDP an answer that is too long is cut, so that the asker comes back by TCP.
pub(super) fn answer(message: &[u8], question: &Question, records: &Records, by_udp: bool) -> Vec<u8> {
    let (code, count) = match records {
        Records::None(code) => (*code, 0),
        Records::Addresses(all) => (Code::NoError, all.len()),
        Records::Name(_) => (Code::NoError, 1),
    };
    let tail: &[u8] = if question.edns { &OPT_ANSWER } else { &[] };
    let limit = if by_udp { question.limit } else { usize::from(u16::MAX) } - tail.len();
    let mut reply = Vec::with_capacity(question.end + tail.len() + count * 28);
    reply.extend_from_slice(&head(message, code, AUTHORITATIVE));
    reply[5] = 1;
    reply.extend_from_slice(&message[HEADER..question.end]);
    let written = match records {
        Records::None(_) => 0,
        Records::Addresses(all) => {
            let fits = |ip: &&IpAddr| match ip {
                IpAddr::V4(ip) => add_record(&mut reply, kind::A, &ip.octets(), limit),
                IpAddr::V6(ip) => add_record(&mut reply, kind::AAAA, &ip.octets(), limit),
            };
            all.iter().take_while(fits).count()
        }
        Records::Name(name) => {
            encode_name(name).map_or(0, |bytes| usize::from(add_record(&mut reply, kind::PTR, &bytes, limit)))
        }
    };
    if written < count {
        reply[2] |= (TRUNCATED >> 8) as u8;
    }
    reply[6..8].copy_from_slice(&(written as u16).to_be_bytes());
    reply[11] = u8::from(question.edns);
    reply.extend_from_slice(tail);
    reply
}

/// Adds a record about the question's name, unless the message gets too long by it.
fn add_record(reply: &mut Vec<u8>, kind: u16, data: &[u8], limit: usize) -> bool {
    if reply.len() + 12 + data.len() > limit {
        return false;
    }
    reply.extend_from_slice(&[0xc0, HEADER as u8]);
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&IN.to_be_bytes());
    reply.extend_from_slice(&TTL.to_be_bytes());
    reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
    reply.extend_from_slice(data);
    true
}

/// Refuses a message that isn't understood. It has at least a header's length... or gets an empty answer.
pub(super) fn refuse(message: &[u8], code: Code) -> Vec<u8> {
    head(message, code, 0).to_vec()
}

fn head(message: &[u8], code: Code, more: u16) -> [u8; HEADER] {
    let mut reply = [0; HEADER];
    let flags = u16_at(message, 2).unwrap_or(0);
    let kept = flags & (OPCODE | RECURSION_DESIRED);
    reply[..2].copy_from_slice(message.get(..2).unwrap_or(&[0, 0]));
    reply[2..4].copy_from_slice(&(RESPONSE | RECURSION_AVAILABLE | kept | more | code as u16).to_be_bytes());
    reply
}

/// Whether a message is an answer to another one: the same id and the same question.
pub(super) fn answers(reply: &[u8], message: &[u8], question: &Question) -> bool {
    let id = reply.get(..2).is_some() && reply.get(..2) == message.get(..2);
    let response = u16_at(reply, 2).is_some_and(|flags| flags & RESPONSE != 0);
    let asked = &message[HEADER.min(message.len())..question.end.min(message.len())];
    let same = match u16_at(reply, 4) {
        Some(1) => reply.get(HEADER..question.end).is_some_and(|repeated| repeated.eq_ignore_ascii_case(asked)),
        // Some servers leave the question out of a failure.
        Some(0) => reply.len() >= HEADER,
        _ => false,
    };
    id && response && same
}

/// Makes an answer to a question like this one an answer to this one: its id, its name as it was spelled.
pub(super) fn readdress(reply: &mut [u8], message: &[u8], question: &Question) {
    reply[..2].copy_from_slice(&message[..2]);
    if repeats(reply) && reply.len() >= question.end {
        reply[HEADER..question.end].copy_from_slice(&message[HEADER..question.end]);
    }
}

/// Whether an answer holds the question.
pub(super) fn repeats(reply: &[u8]) -> bool {
    u16_at(reply, 4) == Some(1)
}

/// What tells questions apart for a name server: everything but the id and the way that a name is spelled.
pub(super) fn essence(message: &[u8], question: &Question) -> Vec<u8> {
    let mut bytes = message[2..].to_vec();
    // Lengths of labels are no letters.
    bytes[HEADER - 2..question.end - 2].make_ascii_lowercase();
    bytes
}

/// The code of an answer.
pub(super) fn code_of(reply: &[u8]) -> u16 {
    u16_at(reply, 2).unwrap_or(0) & CODE
}

/// Whether an answer is cut short, so that its asker has to come back by TCP.
pub(super) fn is_truncated(reply: &[u8]) -> bool {
    u16_at(reply, 2).unwrap_or(0) & TRUNCATED != 0
}

/// Whether an answer says that its sender couldn't or wouldn't help, so that another one may.
pub(super) fn is_failure(reply: &[u8]) -> bool {
    matches!(code_of(reply), FAILED | REFUSED)
}

/// A question as clients send it.
#[cfg(test)]
pub(super) fn ask(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    message.extend(encode_name(name).expect("name"));
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&IN.to_be_bytes());
    if let Some(size) = edns {
        message.push(0);
        message.extend_from_slice(&OPT.to_be_bytes());
        message.extend_from_slice(&size.to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_is_read_and_answered() {
        let message = ask("Web.Net", kind::A, None);
        let question = parse(&message).expect("question");
        assert_eq!((question.name.as_deref(), question.kind, question.limit), (Some("web.net"), kind::A, 512));
        let reply = answer(&message, &question, &Records::Addresses(vec![[10, 0, 0, 2].into()]), true);
        assert_eq!(reply[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(reply[reply.len() - 6..], [0, 4, 10, 0, 0, 2]);
        assert!(answers(&reply, &message, &question) && !is_failure(&reply));
        let failed = answer(&message, &question, &Records::None(Code::ServerFailure), true);
        assert!(is_failure(&failed) && answers(&failed, &message, &question));
        let pointer = answer(&message, &question, &Records::Name("web.net".into()), true);
        assert!(pointer.ends_with(b"\x03web\x03net\x00"));
    }

    #[test]
    fn long_answers_are_cut_by_udp_only() {
        let four: Vec<IpAddr> = (0..200u8).map(|n| [10, 0, 0, n].into()).collect();
        let six: Vec<IpAddr> = (0..200u16).map(|n| [0xfd00, 0, 0, 0, 0, 0, 0, n].into()).collect();
        for (all, edns, by_udp, count) in [
            (&four, None, true, 30),
            (&four, Some(4096), true, 75),
            (&four, None, false, 200),
            (&six, None, true, 17),
            (&six, Some(1232), true, 42),
            (&six, Some(512), false, 200),
        ] {
            let message = ask("web", kind::A, edns);
            let question = parse(&message).expect("question");
            let reply = answer(&message, &question, &Records::Addresses(all.clone()), by_udp);
            assert!(!by_udp || reply.len() <= question.limit, "{} {edns:?}", reply.len());
            assert_eq!(reply.ends_with(&OPT_ANSWER), edns.is_some(), "told likewise");
            let got = u16_at(&reply, 6).expect("count");
            assert_eq!((got, u16_at(&reply, 2).expect("flags") & TRUNCATED != 0), (count, by_udp), "{edns:?}");
        }
    }

    #[test]
    fn what_is_no_question() {
        let good = ask("web", kind::A, None);
        let changed = |at: usize, value: u8| {
            let mut message = good.clone();
            message[at] = value;
            parse(&message)
        };
        assert_eq!(changed(2, 0x80), Err(None), "an answer");
        assert_eq!(changed(2, 0x28), Err(Some(Code::NotImplemented)), "an update");
        assert_eq!(changed(5, 2), Err(Some(Code::FormatError)), "two questions");
        assert_eq!(changed(12, 0xc0), Err(Some(Code::FormatError)), "a pointer");
        assert_eq!(parse(&good[..good.len() - 1]), Err(Some(Code::FormatError)), "cut short");
        assert_eq!(parse(b""), Err(None));
        assert_eq!(changed(13, b'.').map(|question| question.name), Ok(None), "a dot within a label");
        assert_eq!(reversed("2.0.18.172.in-addr.arpa"), Some([172, 18, 0, 2].into()));
        for text in [
            "in-addr.arpa",
            "1.2.3.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "1.2.3.x.in-addr.arpa",
            "1.2.3.04.in-addr.arpa",
            "1.2.3.+4.in-addr.arpa",
            "1.2.3.256.in-addr.arpa",
            "8.b.d.0.1.0.0.2.ip6.arpa",
            &format!("{}ip6.arpa", "0.".repeat(33)),
            &format!("{}ip6.arpa", "g.".repeat(32)),
            &format!("{}ip6.arpa", "00.".repeat(32)),
        ] {
            assert_eq!(reversed(text), None, "{text}");
        }
    }

    #[test]
    fn an_answer_serves_questions_that_are_spelled_otherwise() {
        let (first, mut second) = (ask("web.net", kind::A, Some(1232)), ask("Web.nEt", kind::A, Some(1232)));
        second[..2].copy_from_slice(&[0x56, 0x78]);
        let (question, other) = (parse(&first).expect("question"), parse(&second).expect("question"));
        assert_eq!(essence(&first, &question), essence(&second, &other));
        for different in
            [ask("web.net", kind::AAAA, Some(1232)), ask("web.net", kind::A, None), ask("web", kind::A, None)]
        {
            let question = parse(&different).expect("question");
            assert_ne!(essence(&different, &question), essence(&second, &other));
        }
        let mut reply = answer(&first, &question, &Records::Addresses(vec![[10, 0, 0, 2].into()]), true);
        readdress(&mut reply, &second, &other);
        assert!(reply[..2] == [0x56, 0x78] && answers(&reply, &second, &other));
        assert!(reply[HEADER..].starts_with(b"\x03Web\x03nEt"));
    }

    proptest! {
        #[test]
        fn reversed_is_the_reverse(ip in any::<IpAddr>()) {
            let name = match ip {
                IpAddr::V4(ip) => {
                    let [a, b, c, d] = ip.octets();
                    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
                }
                IpAddr::V6(ip) => {
                    let digits = format!("{:032x}", u128::from(ip));
                    digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa"
                }
            };
            let message = ask(&name.to_uppercase(), kind::PTR, None);
            let question = parse(&message).expect("question");
            prop_assert_eq!(question.name.as_deref().and_then(reversed), Some(ip));
        }

        #[test]
        fn reversed_reads_one_spelling(digits in "([0-9a-f+ ]{1,3}\\.){1,34}") {
            for suffix in ["in-addr.arpa", "ip6.arpa"] {
                let name = format!("{digits}{suffix}");
                if let Some(ip) = reversed(&name) {
                    let parts = digits.split('.').count() - 1;
                    prop_assert_eq!(parts, if ip.is_ipv4() { 4 } else { 32 });
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), udp in any::<bool>(), ip in any::<IpAddr>()) {
            match parse(&bytes) {
                Ok(question) => {
                    let records = Records::Addresses(vec![ip; 100]);
                    let reply = answer(&bytes, &question, &records, udp);
                    prop_assert!(!udp || reply.len() <= UDP_LIMIT);
                    prop_assert!(answers(&reply, &bytes, &question));
                    answers(&bytes, &bytes, &question);
                    let mut other = reply.clone();
                    readdress(&mut other, &bytes, &question);
                    prop_assert_eq!(other, reply);
                    essence(&bytes, &question);
                }
                Err(Some(code)) => prop_assert_eq!(refuse(&bytes, code).len(), HEADER),
                Err(None) => {}
            }
            is_failure(&bytes);
        }

        #[test]
        fn questions_survive_a_change_of_any_byte(at in 0usize..40, value in any::<u8>()) {
            let mut message = ask("some.name.of-a-service", kind::AAAA, Some(1232));
            message[at] = value;
            if let Ok(question) = parse(&message) {
                prop_assert!(question.end <= message.len() && question.name.is_none_or(|name| name.len() <= 253));
            }
        }
    }
}
