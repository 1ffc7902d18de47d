//! Lists of numbers as the kernel writes sets of processors and memory nodes: `0-3,8,10-11`.

/// Highest number taken: beyond what a kernel can be built for, and a bound for what config.json can make us allocate.
const MAX: u32 = 65_535;

/// Reads a list into a bit mask, as short as it can be. `None` when it is no such list or has nothing in it.
pub(crate) fn mask(list: &str) -> Option<Vec<u64>> {
    let mut mask = Vec::new();
    for part in list.split(',') {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        let words = last as usize / 64 + 1;
        if mask.len() < words {
            mask.resize(words, 0);
        }
        for bit in first..=last {
            mask[bit as usize / 64] |= 1_u64 << (bit % 64);
        }
    }
    Some(mask)
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sets_of_bits() {
        for (list, expected) in [
            ("0", vec![1]),
            ("0-3,8", vec![0x10f]),
            ("1, 3", vec![0b1010]),
            ("63-64", vec![1 << 63, 1]),
            ("3,3,3", vec![8]),
            ("1024", [vec![0; 16], vec![1]].concat()),
        ] {
            assert_eq!(mask(list), Some(expected), "{list}");
        }
        for bad in ["", ",", "1,", "3-1", "-1", "1-", "+1", "a", "0x1", "1-2-3", "65536", "99999999999"] {
            assert_eq!(mask(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_or_refused(list in "[0-9,\\- ]{0,24}") {
            if let Some(mask) = mask(&list) {
                assert!(mask.iter().any(|word| *word != 0));
            }
        }
    }
}
