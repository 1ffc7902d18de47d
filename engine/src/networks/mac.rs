//! Link layer addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::subnet::bits;

/// Why a text is no usable MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes in hex.
    #[error("invalid MAC address {0:?}")]
    Syntax(String),
    /// A group address, or all zeros.
    #[error("MAC address {0} can't be that of a single link")]
    NotUnicast(Mac),
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The MAC that goes with an address, as docker forms it: `02:42` and the four bytes, of IPv6 the last four. An address that is handed
    /// out again keeps its MAC, so no neighbour ever holds a stale entry for it.
    pub fn of_address(address: IpAddr) -> Self {
        let [.., a, b, c, d] = bits(address).to_be_bytes();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(syntax)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        let mac = Self(octets);
        if octets[0] & 1 != 0 || octets == [0; 6] { Err(MacError::NotUnicast(mac)) } else { Ok(mac) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_and_printing() {
        assert_eq!(Mac::of_address([172, 17, 0, 2].into()).to_string(), "02:42:ac:11:00:02");
        for (text, fine) in [
            ("02:42:ac:11:00:02", true),
            ("02-42-AC-11-00-02", true),
            ("01:00:5e:00:00:01", false),
            ("00:00:00:00:00:00", false),
            ("02:42:ac:11:00", false),
            ("02:42:ac:11:00:02:03", false),
            ("2:42:ac:11:00:02", false),
            ("+2:42:ac:11:00:02", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Mac>().is_ok(), fine, "{text}");
        }
    }
}
