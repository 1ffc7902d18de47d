//! Questions for a name server, by UDP, as many as it answers: written for tests and benches of the resolver.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

/// How long an answer may take; then the question is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// What came of a load of questions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Questions with an answer that has at least one record.
    pub answered: u64,
    /// Questions with any other answer.
    pub refused: u64,
    /// Questions without an answer in a second.
    pub lost: u64,
    /// How long it took.
    pub took: Duration,
}

impl Load {
    /// Answers per second.
    pub fn per_second(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64()
    }
}

/// A question for the IPv4 addresses of `name` (RFC 1035, section 4).
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    // Recursion desired; one question, nothing else.
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Asks `server` for `name` from a socket in `namespace` for so long, with so many questions on their way at any time.
pub fn load(
    namespace: BorrowedFd<'_>,
    server: SocketAddr,
    name: &str,
    outstanding: u16,
    duration: Duration,
) -> io::Result<Load> {
    let open = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(server)?;
        io::Result::Ok(socket)
    };
    let socket = sys::netns::within(namespace, open).map_err(io::Error::other)??;
    socket.set_read_timeout(Some(PATIENCE))?;
    // An id is its slot and a generation: an answer to a question that was given up is nobody's.
    let mut ids: Vec<u16> = (0..outstanding).collect();
    let mut packet = question(0, name);
    let mut ask = |id: u16| {
        packet[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&packet).map(drop)
    };
    let next = |id: u16| id.checked_add(outstanding).unwrap_or(id % outstanding);
    let mut load = Load::default();
    let begun = Instant::now();
    ids.iter().try_for_each(|id| ask(*id))?;
    let mut pending = u64::from(outstanding);
    let mut answer = [0; 1500];
    while pending > 0 {
        match socket.recv(&mut answer) {
            Ok(length) if length >= 12 => {
                let id = u16::from_be_bytes([answer[0], answer[1]]);
                let slot = usize::from(id % outstanding);
                if ids[slot] != id {
                    continue;
                }
                // The low four bits are the code; then come the numbers of questions and of answers.
                let fine = answer[3] & 15 == 0 && u16::from_be_bytes([answer[6], answer[7]]) > 0;
                *if fine { &mut load.answered } else { &mut load.refused } += 1;
                load.took = begun.elapsed();
                ids[slot] = next(id);
                if load.took < duration {
                    ask(ids[slot])?;
                } else {
                    pending -= 1;
                }
            }
            Ok(_) => load.refused += 1,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                load.lost += pending;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_what_the_standard_says() {
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let rest = b"\x03web\x03net\0\0\x01\0\x01";
        assert_eq!(question(0x1234, "web.net"), [&header[..], &rest[..]].concat());
    }
}
