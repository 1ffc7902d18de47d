//! Modes as chmod(1) takes them: `u=rwX,go-w`.

use super::FileError;

/// What is taken from the bits of a clause without `u`, `g`, `o` and `a`.
const UMASK: u32 = 0o022;

/// Changes of a mode, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modes(Vec<Change>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    // Bits that it may touch.
    who: u32,
    masked: bool,
    operation: char,
    bits: Bits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bits {
    // Permissions, and whether `X` is among them.
    Some(u32, bool),
    // Those of the user (6), the group (3) or others (0), by their place.
    Of(u32),
}

impl Modes {
    /// Reads an octal mode or clauses.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let bad = || FileError::Invalid(format!("invalid mode {text:?}"));
        if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(bad)?;
            return Ok(Self(vec![Change {
                who: 0o7777,
                masked: false,
                operation: '=',
                bits: Bits::Some(mode, false),
            }]));
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let start = clause.find(|c| !matches!(c, 'u' | 'g' | 'o' | 'a')).ok_or_else(bad)?;
            let mut who = clause[..start].chars().map(touched).fold(0, |all, bits| all | bits);
            let masked = who == 0;
            if masked {
                who = 0o7777;
            }
            let mut rest = clause[start..].chars().peekable();
            while let Some(operation) = rest.next() {
                if !matches!(operation, '+' | '-' | '=') {
                    return Err(bad());
                }
                let bits = match rest.peek() {
                    Some('u' | 'g' | 'o') => match rest.next() {
                        Some('u') => Bits::Of(6),
                        Some('g') => Bits::Of(3),
                        _ => Bits::Of(0),
                    },
                    _ => {
                        let (mut bits, mut if_any) = (0, false);
                        while let Some(c) = rest.peek().copied().filter(|c| !matches!(c, '+' | '-' | '=')) {
                            match c {
                                'r' => bits |= 0o444,
                                'w' => bits |= 0o222,
                                'x' => bits |= 0o111,
                                'X' => if_any = true,
                                's' => bits |= 0o6000,
                                't' => bits |= 0o1000,
                                _ => return Err(bad()),
                            }
                            rest.next();
                        }
                        Bits::Some(bits, if_any)
                    }
                };
                changes.push(Change { who, masked, operation, bits });
            }
        }
        Ok(Self(changes))
    }

    /// The mode, of 12 bits, of what has `mode`.
    pub fn apply(&self, mode: u32, is_folder: bool) -> u32 {
        let before = mode & 0o7777;
        self.0.iter().fold(before, |mode, change| {
            let bits = match change.bits {
                Bits::Some(bits, if_any) => {
                    let x = if_any && (is_folder || before & 0o111 != 0);
                    bits | if x { 0o111 } else { 0 }
                }
                Bits::Of(place) => ((mode >> place) & 0o7) * 0o111,
            };
            let mask = if change.masked { change.who & !UMASK } else { change.who };
            match change.operation {
                '+' => mode | (bits & mask),
                '-' => mode & !(bits & mask),
                _ => (mode & !change.who) | (bits & mask),
            }
        })
    }
}

fn touched(who: char) -> u32 {
    match who {
        'u' => 0o4700,
        'g' => 0o2070,
        'o' => 0o0007,
        // The sticky bit belongs to nobody: only `a` and nothing reach it.
        _ => 0o7777,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_chmod_does() {
        for (text, mode, is_folder, expected) in [
            ("0755", 0o4644, false, 0o755),
            ("4755", 0o644, false, 0o4755),
            ("u+x", 0o644, false, 0o744),
            ("a=rx", 0o4600, false, 0o555),
            ("go-rwx", 0o777, false, 0o700),
            ("u=rwX,go=rX", 0o640, false, 0o644),
            ("u=rwX,go=rX", 0o640, true, 0o755),
            ("u=rwX,go=rX", 0o750, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("+w", 0o444, false, 0o644),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o777, true, 0o1777),
            ("g=u", 0o740, false, 0o770),
            ("u+x-w", 0o644, false, 0o544),
            ("o=", 0o777, false, 0o770),
            ("u=g,o=g", 0o640, false, 0o444),
        ] {
            let modes = Modes::parse(text).unwrap();
            assert_eq!(modes.apply(mode, is_folder), expected, "{text} of {mode:o}");
        }
        for bad in ["", "u", "z+x", "u+q", "u*x", "8", "99999", "u+x,", "77777"] {
            assert!(Modes::parse(bad).is_err(), "{bad}");
        }
    }
}
