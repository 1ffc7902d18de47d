//! How long an answer of another name server may be kept (RFC 1035, RFC 2308), and where it says so. Reads untrusted bytes.

use std::time::Duration;

use super::message::{self, Question, u16_at};

/// Nothing is kept longer, whatever its owner allows: the host's own server may answer otherwise from one moment to the next,
/// as when a VPN comes up.
const LONGEST: u32 = 300;
/// Nor that there is nothing: what is being set up is asked for before it is there.
const LONGEST_NOTHING: u32 = 30;
/// Longest answer that is kept.
const LARGEST: usize = 4096;

const SOA: u16 = 6;
const OPT: u16 = 41;
/// Signatures of a single message (SIG(0), TSIG): true for nobody else.
const SIGNATURES: [u16; 2] = [24, 250];
/// Types from here to 255 are no types of records: transfers, ANY.
const META: u16 = 128;

/// How long an answer may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// So long.
    pub(super) lasts: Duration,
    /// Where its records say how long they may be kept.
    pub(super) at: Vec<u16>,
}

/// A record: where its lifetime stands, and what it says.
struct Record<'a> {
    kind: u16,
    at: usize,
    ttl: u32,
    data: &'a [u8],
    end: usize,
}

/// How long an answer to this question may be kept; none when not at all: what failed, what is cut short, what its owner wants to be
/// asked for each time, and what can't be read.
pub(super) fn of(reply: &[u8], question: &Question) -> Option<Lifetime> {
    let asked = question.kind;
    if reply.len() > LARGEST || !question.is_internet || asked == OPT || (META..256).contains(&asked) {
        return None;
    }
    let code = message::code_of(reply);
    if !message::repeats(reply) || message::is_truncated(reply) || !matches!(code, message::NO_ERROR | message::NO_NAME)
    {
        return None;
    }
    let (mut at, mut lasts) = (Vec::new(), LONGEST);
    let (mut has_answer, mut nothing) = (false, None);
    let mut position = question.end();
    for section in 0..3 {
        for _ in 0..u16_at(reply, 6 + 2 * section)? {
            let record = read(reply, position)?;
            position = record.end;
            if record.kind == OPT {
                continue;
            }
            if SIGNATURES.contains(&record.kind) {
                return None;
            }
            at.push(u16::try_from(record.at).ok()?);
            lasts = lasts.min(record.ttl);
            has_answer |= section == 0 && record.kind == asked;
            if section == 1 && record.kind == SOA {
                let minimum = u32::from_be_bytes(record.data.last_chunk().copied()?);
                nothing = Some(record.ttl.min(minimum).min(LONGEST_NOTHING));
            }
        }
    }
    if code == message::NO_NAME || !has_answer {
        // Without an SOA it is no answer, but where to ask.
        lasts = lasts.min(nothing?);
    }
    (lasts > 0 && position == reply.len()).then(|| Lifetime { lasts: Duration::from_secs(lasts.into()), at })
}

fn read(reply: &[u8], mut at: usize) -> Option<Record<'_>> {
    loop {
        match *reply.get(at)? {
            0 => break at += 1,
            // The rest of the name is elsewhere.
            0xc0.. => break at += 2,
            length if length < 64 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
    let kind = u16_at(reply, at)?;
    let ttl = u32::from_be_bytes(reply.get(at + 4..at + 8)?.try_into().ok()?);
    let data = at + 10;
    let end = data + usize::from(u16_at(reply, at + 8)?);
    // With the highest bit set it means none (RFC 2181).
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    Some(Record { kind, at: at + 4, ttl, data: reply.get(data..end)?, end })
}

/// Takes from an answer's lifetimes the time that it was kept.
pub(super) fn shorten(reply: &mut [u8], at: &[u16], by: Duration) {
    let by = u32::try_from(by.as_secs()).unwrap_or(u32::MAX);
    for at in at {
        if let Some(ttl) = reply.get_mut(usize::from(*at)..).and_then(|rest| rest.first_chunk_mut()) {
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(by).to_be_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{ask, kind, parse};
    use super::*;
    use proptest::prelude::*;

    /// An answer with these records: section, type, lifetime, data.
    fn reply(asked: u16, code: u8, records: &[(usize, u16, u32, &[u8])]) -> (Vec<u8>, Question) {
        let message = ask("web.example.com", asked, None);
        let question = parse(&message).expect("question");
        let mut reply = message;
        reply[2..4].copy_from_slice(&[0x81, 0x80 | code]);
        for section in 0..3 {
            for (_, kind, ttl, data) in records.iter().filter(|(of, ..)| *of == section) {
                reply[7 + 2 * section] += 1;
                reply.extend_from_slice(&[0xc0, 12]);
                reply.extend_from_slice(&kind.to_be_bytes());
                reply.extend_from_slice(&[0, 1]);
                reply.extend_from_slice(&ttl.to_be_bytes());
                reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
                reply.extend_from_slice(data);
            }
        }
        (reply, question)
    }

    fn lasts(asked: u16, code: u8, records: &[(usize, u16, u32, &[u8])]) -> Option<u64> {
        let (reply, question) = reply(asked, code, records);
        of(&reply, &question).map(|lifetime| lifetime.lasts.as_secs())
    }

    #[test]
    fn answers_are_kept_as_long_as_their_owners_allow() {
        const ADDRESS: &[u8] = &[10, 0, 0, 1];
        // Two empty names, four numbers, and how long "nothing" lasts: 20 seconds.
        const AUTHORITY: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 20];
        const ALIAS: u16 = 5;
        let a = kind::A;
        for (what, code, records, expected) in [
            ("the shortest counts", 0, vec![(0, a, 60, ADDRESS), (0, a, 50, ADDRESS)], Some(50)),
            ("of all sections", 0, vec![(0, a, 60, ADDRESS), (2, a, 5, ADDRESS)], Some(5)),
            ("an alias", 0, vec![(0, ALIAS, 9, &[0]), (0, a, 60, ADDRESS)], Some(9)),
            ("not too long", 0, vec![(0, a, 86400, ADDRESS)], Some(300)),
            ("not at all", 0, vec![(0, a, 0, ADDRESS)], None),
            ("no number", 0, vec![(0, a, 1 << 31, ADDRESS)], None),
            ("EDNS has no lifetime", 0, vec![(0, a, 60, ADDRESS), (2, OPT, 0, &[])], Some(60)),
            ("signed", 0, vec![(0, a, 60, ADDRESS), (2, 250, 60, &[])], None),
            ("no such name", 3, vec![(1, SOA, 3600, AUTHORITY)], Some(20)),
            ("no such name, for short", 3, vec![(1, SOA, 7, AUTHORITY)], Some(7)),
            ("no such name behind an alias", 3, vec![(0, ALIAS, 9, &[0]), (1, SOA, 60, AUTHORITY)], Some(9)),
            ("none of the kind", 0, vec![(1, SOA, 3600, AUTHORITY)], Some(20)),
            ("an alias without address", 0, vec![(0, ALIAS, 60, &[0]), (1, SOA, 60, AUTHORITY)], Some(20)),
            ("no such name, nobody says for how long", 3, vec![], None),
            ("ask elsewhere", 0, vec![(1, 2, 3600, &[0])], None),
            ("failed", 2, vec![(0, a, 60, ADDRESS)], None),
            ("refused", 5, vec![(1, SOA, 60, AUTHORITY)], None),
        ] {
            assert_eq!(lasts(a, code, &records), expected, "{what}");
        }
        assert_eq!(lasts(255, 0, &[(0, a, 60, ADDRESS)]), None, "ANY");
        assert_eq!(lasts(kind::AAAA, 0, &[(0, a, 60, ADDRESS)]), None, "another kind, no SOA");

        let (good, question) = reply(a, 0, &[(0, a, 60, ADDRESS)]);
        let mut cut = good.clone();
        cut[2] |= 2;
        assert_eq!(of(&cut, &question), None, "truncated");
        assert_eq!(of(&good[..good.len() - 1], &question), None, "cut short");
        assert_eq!(of(&[&good[..], &[0]].concat(), &question), None, "more than it says");
        let mut unnamed = good;
        unnamed[5] = 0;
        assert_eq!(of(&unnamed, &question), None, "without the question");
    }

    #[test]
    fn kept_answers_say_how_long_is_left() {
        let (mut bytes, question) = reply(kind::A, 0, &[(0, 1, 60, &[1, 2, 3, 4]), (2, 1, 500, &[1, 2, 3, 4])]);
        let lifetime = of(&bytes, &question).expect("may be kept");
        shorten(&mut bytes, &lifetime.at, Duration::from_millis(45_900));
        assert_eq!(of(&bytes, &question).expect("still").lasts, Duration::from_secs(15));
        assert_eq!(bytes, reply(kind::A, 0, &[(0, 1, 15, &[1, 2, 3, 4]), (2, 1, 455, &[1, 2, 3, 4])]).0);
        shorten(&mut bytes, &lifetime.at, Duration::from_secs(100));
        assert_eq!(of(&bytes, &question), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..200), counts in any::<[u8; 3]>()) {
            let message = ask("a.b", kind::A, None);
            let question = parse(&message).expect("question");
            let mut reply = message;
            reply[2] = 0x81;
            for (at, count) in [7, 9, 11].into_iter().zip(counts) {
                reply[at] = count % 4;
            }
            reply.extend(tail);
            if let Some(lifetime) = of(&reply, &question) {
                let length = reply.len();
                prop_assert!(lifetime.at.iter().all(|at| usize::from(*at) + 4 <= length));
                shorten(&mut reply, &lifetime.at, lifetime.lasts);
            }
        }
    }
}
