//! Which tasks of a list the kernel has killed something in because memory ran out: a fact that containerd's messages have no
//! field for. Its event (`/tasks/oom`) is gone for whoever was away, so the supervisor says it again in the metadata of its
//! answer to `Tasks/List`, where callers that don't know of it don't see it. A peer that lacks it answers without.

/// The metadata key. The value has a bit per task of the list, in its order, the first in the lowest bit of the first byte;
/// bits at the end that are not set may be left out, and so may the whole.
pub const HEADER: &str = "berth-oom-killed-bin";

/// The value for these tasks; `None` if there is nothing to say.
pub fn encode(tasks: impl IntoIterator<Item = bool>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for (number, _) in tasks.into_iter().enumerate().filter(|(_, oom)| *oom) {
        bytes.resize(number / 8 + 1, 0);
        bytes[number / 8] |= 1 << (number % 8);
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// Whether the value says so of the task at `place`.
pub fn is_set(value: &[u8], place: usize) -> bool {
    value.get(place / 8).is_some_and(|byte| byte & (1 << (place % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_to_say_is_not_said() {
        assert_eq!(encode([false; 9]), None);
        assert_eq!(encode([true, false, true]), Some(vec![0b101]));
        assert_eq!(encode([false, false, false, false, false, false, false, false, true, false]), Some(vec![0, 1]));
        assert!(!is_set(&[], 0));
    }

    proptest! {
        #[test]
        fn round_trip(tasks in proptest::collection::vec(any::<bool>(), 0..40)) {
            let value = encode(tasks.clone()).unwrap_or_default();
            for (place, oom) in tasks.iter().enumerate() {
                prop_assert_eq!(is_set(&value, place), *oom);
            }
            prop_assert!(!is_set(&value, tasks.len() + 8));
        }
    }
}
