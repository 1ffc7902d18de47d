//! The name in a certificate: its subject's common name (X.509, RFC 5280 4.1; DER, X.690). What rustls has checked is read here, no
//! more; anything unusual is no name.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const VERSION: u8 = 0xa0;
/// 2.5.4.3
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// One element: its tag, its content, and what comes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Long form, in one to three bytes: no certificate is larger.
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(tag, ..)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

/// The first common name of a certificate's subject.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut fields, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, rest)) = expect(fields, VERSION) {
        fields = rest;
    }
    // serialNumber, signature, issuer, validity, and then the subject.
    for _ in 0..4 {
        (_, _, fields) = element(fields)?;
    }
    let (mut names, _) = expect(fields, SEQUENCE)?;
    while !names.is_empty() {
        let (mut set, rest) = expect(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (attribute, others) = expect(set, SEQUENCE)?;
            set = others;
            let (kind, value) = expect(attribute, OID)?;
            if kind != COMMON_NAME {
                continue;
            }
            // UTF8String, PrintableString, TeletexString, IA5String: all of which are UTF-8 in practice, or no name here.
            let (tag, text, _) = element(value)?;
            if !matches!(tag, 0x0c | 0x13 | 0x14 | 0x16) {
                return None;
            }
            let text = std::str::from_utf8(text).ok()?;
            return (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match content.len() {
            short @ 0..=0x7f => bytes.push(short as u8),
            long => bytes.extend([0x82, (long >> 8) as u8, long as u8]),
        }
        bytes.extend_from_slice(content);
        bytes
    }

    fn certificate(name: &[u8], tag: u8, version: bool) -> Vec<u8> {
        let attribute =
            |oid: &[u8], tag, value: &[u8]| der(SET, &der(SEQUENCE, &[der(OID, oid), der(tag, value)].concat()));
        let subject = der(
            SEQUENCE,
            &[attribute(&[0x55, 4, 10], 0x0c, b"An organisation"), attribute(&COMMON_NAME, tag, name)].concat(),
        );
        let filler = der(SEQUENCE, &[0; 200]);
        let version = if version { der(VERSION, &der(2, &[2])) } else { Vec::new() };
        let fields = [version, der(2, &[1]), filler.clone(), filler.clone(), filler.clone(), subject, filler].concat();
        der(SEQUENCE, &der(SEQUENCE, &fields))
    }

    #[test]
    fn names() {
        assert_eq!(common_name(&certificate(b"alice", 0x0c, true)).as_deref(), Some("alice"));
        assert_eq!(common_name(&certificate(b"bob", 0x13, false)).as_deref(), Some("bob"));
        assert_eq!(common_name(&certificate(b"a\nb", 0x0c, true)), None);
        assert_eq!(common_name(&certificate(b"\xff", 0x0c, true)), None);
        assert_eq!(common_name(&certificate(b"wide", 0x1e, true)), None);
        assert_eq!(common_name(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0_usize..300, with: u8) {
            let _ = common_name(&bytes);
            let mut bent = certificate(b"carol", 0x0c, true);
            let place = at % bent.len();
            bent[place] = with;
            let _ = common_name(&bent);
            let _ = common_name(&bent[..place]);
        }
    }
}
