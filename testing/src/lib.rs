//! Small tools that the suites of all crates share. They panic where they fail: these are tests' tools.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

/// Writes a program that can be executed at once. A process of its own writes it: whatever another thread starts at that moment
/// would get a copy of this process's descriptor, and executing a file that is open for writing ends with ETXTBSY (execve(2)).
pub fn executable(at: &Path, content: impl AsRef<[u8]>) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat >\"$0\" && chmod 0755 \"$0\""]).arg(at).stdin(Stdio::piped());
    let mut writer = writer.spawn().expect("start sh");
    writer.stdin.take().expect("its input is a pipe").write_all(content.as_ref()).expect("write a program");
    assert!(writer.wait().expect("wait for sh").success(), "write {}", at.display());
}

/// A port on loopback that is free, below those that the kernel gives to whoever asks for any: no other test gets it by chance.
pub fn free_port() -> u16 {
    loop {
        let chance = RandomState::new().build_hasher().finish();
        let port = 10_000 + u16::try_from(chance % 20_000).expect("below 20,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
