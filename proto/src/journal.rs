//! The journal of a task's events: how a shim notes in the bundle what it has to tell, so that nothing is lost when it dies
//! before somebody took it. Written by the shim, read by the supervisor after the shim's death; here is only the form.
//!
//! ```text
//! events.journal    u64 LE: where the first record begins that was not delivered yet
//!                   record: u32 LE length, then a containerd.services.events.v1.Envelope; and so on
//! ```
//! A record is appended before the event may leave the shim. After delivery the number at the front moves on; when nothing is
//! left, the file is cut back to its front. A record that is cut off at the end was never announced, and is ignored.

use prost::Message as _;

use crate::containerd::services::events::v1::Envelope;

/// Name of the file in a bundle.
pub const FILE: &str = "events.journal";

/// Length of the front.
pub const FRONT: u64 = 8;

/// The front for a journal whose first record to deliver begins at `place`.
pub fn front(place: u64) -> [u8; FRONT as usize] {
    place.to_le_bytes()
}

/// An event as a record.
pub fn record(event: &Envelope) -> Vec<u8> {
    let length = event.encoded_len();
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(event.encode_to_vec());
    bytes
}

/// The event of a record that [`record`] made.
pub fn event(record: &[u8]) -> Option<Envelope> {
    let (length, rest) = record.split_first_chunk::<4>()?;
    Envelope::decode(rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?).ok()
}

/// Every event of a journal that was not delivered, in order.
pub fn undelivered(journal: &[u8]) -> Vec<Envelope> {
    let Some((front, _)) = journal.split_first_chunk::<8>() else { return Vec::new() };
    let place = usize::try_from(u64::from_le_bytes(*front)).unwrap_or(usize::MAX).max(FRONT as usize);
    let mut rest = journal.get(place..).unwrap_or_default();
    let mut events = Vec::new();
    while let Some((length, _)) = rest.split_first_chunk::<4>() {
        let Some(event) = event(rest) else { break };
        events.push(event);
        // `event` found that many bytes.
        rest = rest.get(4 + u32::from_le_bytes(*length) as usize..).unwrap_or_default();
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(topic: &str) -> Envelope {
        Envelope { topic: topic.into(), namespace: "n".into(), ..Envelope::default() }
    }

    fn topics(journal: &[u8]) -> Vec<String> {
        undelivered(journal).into_iter().map(|event| event.topic).collect()
    }

    #[test]
    fn what_was_not_delivered_is_read_in_order() {
        let records = ["a", "b", "c"].map(|topic| record(&envelope(topic)));
        let second = FRONT + records[0].len() as u64;
        let with = |place: u64| [front(place).as_slice(), &records.concat()].concat();
        for (place, wanted) in
            [(FRONT, &["a", "b", "c"][..]), (second, &["b", "c"]), (0, &["a", "b", "c"]), (9999, &[]), (u64::MAX, &[])]
        {
            assert_eq!(topics(&with(place)), wanted, "{place}");
        }
        assert_eq!(topics(&front(FRONT)), [""; 0]);
        assert_eq!(event(&records[1]).map(|event| event.topic).as_deref(), Some("b"));
    }

    #[test]
    fn a_record_cut_off_is_none() {
        let journal = [front(FRONT).as_slice(), &record(&envelope("a")), &record(&envelope("b"))].concat();
        let first = FRONT as usize + record(&envelope("a")).len();
        for cut in first..journal.len() {
            assert_eq!(topics(&journal[..cut]), ["a"], "{cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = undelivered(&bytes);
        }
    }
}
