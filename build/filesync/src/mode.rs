//! Modes as Go has them (os.FileMode): what the protocol's `mode` is.

/// The type's bits.
pub const TYPE: u32 = DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;
/// A folder.
pub const DIR: u32 = 1 << 31;
/// A symbolic link.
pub const SYMLINK: u32 = 1 << 27;
/// A device; a block device if it isn't [`CHAR_DEVICE`] as well.
pub const DEVICE: u32 = 1 << 26;
/// A named pipe.
pub const NAMED_PIPE: u32 = 1 << 25;
/// A socket.
pub const SOCKET: u32 = 1 << 24;
/// setuid
pub const SETUID: u32 = 1 << 23;
/// setgid
pub const SETGID: u32 = 1 << 22;
/// A character device.
pub const CHAR_DEVICE: u32 = 1 << 21;
/// sticky
pub const STICKY: u32 = 1 << 20;
/// Something else.
pub const IRREGULAR: u32 = 1 << 19;

/// From `st_mode`.
pub fn from_unix(mode: u32) -> u32 {
    let kind = match mode & nix::libc::S_IFMT {
        nix::libc::S_IFDIR => DIR,
        nix::libc::S_IFLNK => SYMLINK,
        nix::libc::S_IFBLK => DEVICE,
        nix::libc::S_IFCHR => DEVICE | CHAR_DEVICE,
        nix::libc::S_IFIFO => NAMED_PIPE,
        nix::libc::S_IFSOCK => SOCKET,
        _ => 0,
    };
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0).fold(0, |all, (_, go)| all | go);
    kind | special | (mode & 0o777)
}

/// The twelve bits of chmod(2).
pub fn permissions(mode: u32) -> u32 {
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    (mode & 0o777) | special.iter().filter(|(_, go)| mode & go != 0).fold(0, |all, (bit, _)| all | bit)
}

/// Whether it is a file with content.
pub fn is_file(mode: u32) -> bool {
    mode & TYPE == 0
}

/// Whether it is a folder.
pub fn is_dir(mode: u32) -> bool {
    mode & DIR != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let cases = [
            (0o100_644, 0o644, 0o644),
            (0o040_755, DIR | 0o755, 0o755),
            (0o041_777, DIR | STICKY | 0o777, 0o1777),
            (0o104_755, SETUID | 0o755, 0o4755),
            (0o102_755, SETGID | 0o755, 0o2755),
            (0o120_777, SYMLINK | 0o777, 0o777),
            (0o010_600, NAMED_PIPE | 0o600, 0o600),
            (0o020_666, DEVICE | CHAR_DEVICE | 0o666, 0o666),
            (0o060_660, DEVICE | 0o660, 0o660),
            (0o140_700, SOCKET | 0o700, 0o700),
        ];
        for (unix, go, plain) in cases {
            assert_eq!((from_unix(unix), permissions(go)), (go, plain), "{unix:o}");
        }
    }
}
