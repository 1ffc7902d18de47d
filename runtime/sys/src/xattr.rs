//! Extended attributes (xattr(7)) of open files and, by path, of what can't be opened: symlinks and devices.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;

// Linux limits a value to 64 KiB and the list of names to 64 KiB (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LIMIT: usize = 64 << 10;

/// Sets an attribute of an open file.
pub fn fset(file: impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the name ends with NUL, the value is read within its length, the descriptor is borrowed and open.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// Sets an attribute of `path` itself; a symlink at its end is not followed.
pub fn lset(path: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: path and name end with NUL, the value is read within its length.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

// Most values and lists are short: the large buffer is for those that aren't.
const SHORT: usize = 512;

/// An attribute of `path` itself; `None` if it has none of this name.
pub fn lget(path: &CStr, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let read = |value: &mut [u8]| {
        // SAFETY: path and name end with NUL, the kernel writes at most `len` bytes to the buffer.
        Errno::result(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) })
    };
    match fill(read) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The names of the attributes of `path` itself.
pub fn llist(path: &CStr) -> Result<Vec<Vec<u8>>, Errno> {
    let read = |names: &mut [u8]| {
        // SAFETY: the path ends with NUL, the kernel writes at most `len` bytes to the buffer.
        Errno::result(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) })
    };
    match fill(read) {
        Ok(names) => Ok(names.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(Errno::ENOTSUP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

fn fill(read: impl Fn(&mut [u8]) -> Result<isize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut short = [0_u8; SHORT];
    match read(&mut short) {
        Ok(length) => return Ok(short[..length.unsigned_abs()].to_vec()),
        Err(Errno::ERANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut whole = vec![0_u8; LIMIT];
    let length = read(&mut whole)?;
    whole.truncate(length.unsigned_abs());
    Ok(whole)
}

/// Removes an attribute of `path` itself; one that isn't there is no error.
pub fn lremove(path: &CStr, name: &CStr) -> Result<(), Errno> {
    // SAFETY: path and name end with NUL.
    match Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }) {
        Err(Errno::ENODATA) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let path = std::env::temp_dir().join(format!("berth-xattr-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        let name = c"user.berth";
        let c_path = std::ffi::CString::new(path.to_string_lossy().as_bytes()).unwrap();
        match fset(&file, name, b"1") {
            Err(Errno::ENOTSUP) => {} // a file system without attributes
            other => {
                other.unwrap();
                lset(&c_path, name, b"22").unwrap();
                assert_eq!(lget(&c_path, name), Ok(Some(b"22".to_vec())));
                assert!(llist(&c_path).unwrap().contains(&b"user.berth".to_vec()));
                assert_eq!(lget(&c_path, c"user.none"), Ok(None));
                let long = vec![7; 2000];
                lset(&c_path, c"user.long", &long).unwrap();
                assert_eq!(lget(&c_path, c"user.long"), Ok(Some(long)));
                lremove(&c_path, c"user.long").unwrap();
                lremove(&c_path, c"user.long").unwrap();
                assert_eq!(lget(&c_path, c"user.long"), Ok(None));
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
