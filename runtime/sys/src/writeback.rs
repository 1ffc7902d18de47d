//! Writing to the disk ahead of time.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Asks the kernel to begin writing `length` bytes of a file from `offset` to the disk (all that follow if 0), and doesn't wait
/// (sync_file_range(2), SYNC_FILE_RANGE_WRITE). Nothing is durable by it; a later fdatasync(2) has less to do.
pub fn start(file: impl AsFd, offset: u64, length: u64) -> Result<(), Errno> {
    let (offset, length) = (i64::try_from(offset), i64::try_from(length));
    let (Ok(offset), Ok(length)) = (offset, length) else { return Err(Errno::EFBIG) };
    // SAFETY: takes a descriptor that is open for the call's time, and numbers.
    let result =
        unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_range_of_a_file() {
        let file = nix::sys::memfd::memfd_create("range", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, 100_000).unwrap();
        for (offset, length) in [(0, 0), (4096, 50_000), (1 << 30, 5)] {
            super::start(&file, offset, length).unwrap();
        }
        assert!(super::start(&file, u64::MAX, 1).is_err());
    }
}
