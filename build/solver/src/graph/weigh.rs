//! What an operation becomes in memory, found out before it is decoded: an empty mount is two bytes on the wire, and hundreds
//! decoded, so that a limit of bytes alone would let a small message take all memory.

/// Parts of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Mounts and actions, of hundreds of bytes.
    pub(super) heavy: usize,
    /// All else that there may be many of: words, variables, patterns.
    pub(super) light: usize,
}

impl Weight {
    /// Adds what `op` holds. What can't be read here, prost refuses.
    pub(super) fn add(&mut self, op: &[u8]) {
        for (field, kind) in Fields(op) {
            self.light += 1;
            // Exec, file and merge: their second, second and first field are lists.
            if matches!(field, 2 | 4 | 6) {
                for (field_of_kind, part) in Fields(kind) {
                    match (field, field_of_kind) {
                        (2 | 4, 2) => {
                            self.heavy += 1;
                            self.words(part, 2);
                        }
                        (2, 1) => self.words(part, 1),
                        _ => self.light += 1,
                    }
                }
            } else {
                self.words(kind, 1);
            }
        }
    }

    fn words(&mut self, part: &[u8], depth: usize) {
        for (_, inner) in Fields(part) {
            self.light += 1;
            if depth > 1 {
                self.words(inner, depth - 1);
            }
        }
    }
}

/// Fields with a length, and their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.varint()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    return Some((key >> 3, self.take(length)?));
                }
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}
