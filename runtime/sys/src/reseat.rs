//! Changing the file that a running program is an image of, without execve.
//!
//! `/proc/PID/exe` and every mapping of the program's segments name the mount through which it was started. [`onto`] maps the same
//! bytes again through another mount of the same file, page for page at the same addresses, and then tells the kernel that this is
//! the program now (prctl(2), PR_SET_MM_MAP). The kernel refuses while any mapping of the old file is left, so that success
//! means that nothing of it is. It saves a second execve of the program, and with that its whole start.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::Errno;

/// prctl(2) PR_SET_MM and its operation (linux/prctl.h).
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: libc::c_ulong = 14;

/// `struct prctl_mm_map` of linux/prctl.h.
#[repr(C)]
#[derive(Debug, Default)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

impl MemoryMap {
    /// What the kernel knows now (proc_pid_stat(5), fields 26 to 28 and 45 to 51): all of it stays as it is.
    fn current() -> Result<Self, Errno> {
        let mut text = String::new();
        let failed = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        File::open("/proc/self/stat").and_then(|mut file| file.read_to_string(&mut text)).map_err(failed)?;
        let mut map = Self::parse(&text).ok_or(Errno::EBADMSG)?;
        // SAFETY: sbrk(0) moves nothing and tells where the heap ends.
        map.brk = unsafe { libc::sbrk(0) } as u64;
        Ok(map)
    }

    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<u64> =
            text.rsplit_once(')')?.1.split_ascii_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
        // The first field behind the name is number 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            start_code: field(26)?,
            end_code: field(27)?,
            start_stack: field(28)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            ..Self::default()
        })
    }
}

/// A loaded segment, in whole pages.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: usize,
    length: usize,
    offset: libc::off_t,
    flags: u32,
}

/// How the program lies in memory.
#[derive(Debug)]
struct Layout {
    /// Those that are mapped from the file.
    segments: Vec<Segment>,
    /// From where to where it was made read-only after relocation.
    relro: Option<(usize, usize)>,
}

fn layout() -> Result<Layout, Errno> {
    // SAFETY: getauxval reads a table that the kernel left on the stack; absent entries are 0.
    let auxiliary = |kind| unsafe { libc::getauxval(kind) } as usize;
    // A dynamic loader, or libraries, would have mappings of their own to see to: not this way.
    if auxiliary(libc::AT_BASE) != 0 || auxiliary(libc::AT_PHENT) != size_of::<libc::Elf64_Phdr>() {
        return Err(Errno::EOPNOTSUPP);
    }
    let (table, count) = (auxiliary(libc::AT_PHDR), auxiliary(libc::AT_PHNUM));
    if table == 0 || count > 64 {
        return Err(Errno::EOPNOTSUPP);
    }
    // SAFETY: the kernel says that `count` program headers of this size are at `table`, inside the program's first, read-only
    // segment, which stays for as long as the process runs.
    let headers = unsafe { std::slice::from_raw_parts(table as *const libc::Elf64_Phdr, count) };
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR).ok_or(Errno::EOPNOTSUPP)?;
    let bias = table.wrapping_sub(own.p_vaddr as usize);
    let page = page_size();
    let down = |address: usize| address & !(page - 1);
    let up = |address: usize| down(address + page - 1);
    let mut found: Vec<Segment> = Vec::with_capacity(count);
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0) {
        let begin = bias.wrapping_add(header.p_vaddr as usize);
        let (start, end) = (down(begin), up(begin + header.p_filesz as usize));
        if found.last().is_some_and(|last| last.start + last.length > start) {
            return Err(Errno::EOPNOTSUPP); // segments that share a page
        }
        let offset = down(header.p_offset as usize) as libc::off_t;
        found.push(Segment { start, length: end - start, offset, flags: header.p_flags });
    }
    let relro = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO).map(|header| {
        let begin = bias.wrapping_add(header.p_vaddr as usize);
        (down(begin), down(begin + header.p_memsz as usize))
    });
    Ok(Layout { segments: found, relro })
}

fn page_size() -> usize {
    // SAFETY: sysconf takes a number and gives one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Makes `file` the program that this process runs: another way (through another mount) to the very file it was started from.
///
/// Takes a single-threaded, statically linked process with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in its user namespace.
/// EXDEV: another file. EOPNOTSUPP: not a program that this can be done to. EINVAL: a kernel without it. EBUSY, EPERM, EACCES: as
/// prctl(2) says. After any error the process runs on as before, from the old file as far as the kernel is concerned.
pub fn onto(file: &File) -> Result<(), Errno> {
    if !crate::process::is_single_threaded() {
        return Err(Errno::EOPNOTSUPP);
    }
    let same =
        |a: &nix::sys::stat::FileStat, b: &nix::sys::stat::FileStat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    if !same(&nix::sys::stat::fstat(file)?, &nix::sys::stat::stat("/proc/self/exe")?) {
        return Err(Errno::EXDEV);
    }
    let Layout { segments, relro } = layout()?;
    let mut map = MemoryMap::current()?;
    map.exe_fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    for segment in &segments {
        if segment.flags & libc::PF_W == 0 {
            map_again(file.as_fd(), segment)?;
        } else {
            copy_to_memory(segment, relro)?;
        }
    }
    // SAFETY: `map` is the structure that the operation takes, of the size given; the kernel copies it. All addresses in it are
    // those that it named itself.
    Errno::result(unsafe {
        libc::prctl(PR_SET_MM, PR_SET_MM_MAP, std::ptr::from_ref(&map), size_of::<MemoryMap>(), 0 as libc::c_ulong)
    })
    .map(drop)
}

/// Code and constants: the same bytes from the same file, mapped over themselves.
fn map_again(file: BorrowedFd<'_>, segment: &Segment) -> Result<(), Errno> {
    let mut protection = libc::PROT_READ;
    if segment.flags & libc::PF_X != 0 {
        protection |= libc::PROT_EXEC;
    }
    // SAFETY: the range is one whole segment of this program, which nothing has written to (it is not writable). The file is the
    // one it came from, checked by the caller, and cannot have changed: the kernel refuses writes to a running program.
    // MAP_FIXED replaces the pages in one step, with equal content, so that even the code that is running finds itself again.
    let mapped = unsafe {
        libc::mmap(
            segment.start as *mut libc::c_void,
            segment.length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
            file.as_raw_fd(),
            segment.offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Variables: a copy in anonymous memory takes their place.
fn copy_to_memory(segment: &Segment, relro: Option<(usize, usize)>) -> Result<(), Errno> {
    // SAFETY: a new mapping wherever the kernel likes.
    let copy = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            segment.length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if copy == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let place = segment.start as *mut libc::c_void;
    // SAFETY: the segment is readable over its whole length and `copy` was made as long. There is no other thread, and between
    // the copy and the move nothing here writes to a static variable, so nothing is lost. The move replaces the pages in
    // one step; every pointer into the segment stays valid, since address and content are the same.
    let moved = unsafe {
        std::ptr::copy_nonoverlapping(place.cast::<u8>().cast_const(), copy.cast::<u8>(), segment.length);
        libc::mremap(copy, segment.length, segment.length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place)
    };
    if moved == libc::MAP_FAILED {
        let cause = Errno::last();
        // SAFETY: the mapping made above, which nobody else knows of.
        unsafe { libc::munmap(copy, segment.length) };
        return Err(cause);
    }
    let Some((start, end)) = relro else { return Ok(()) };
    let (start, end) = (start.max(segment.start), end.min(segment.start + segment.length));
    if start < end {
        // SAFETY: whole pages inside the mapping just moved; they were read-only before, so nobody writes to them.
        Errno::result(unsafe { libc::mprotect(start as *mut libc::c_void, end - start, libc::PROT_READ) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_gives_the_map() {
        let numbers: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let map = MemoryMap::parse(&format!("12 (a b) c) S {}", numbers.join(" "))).expect("map");
        assert_eq!((map.start_code, map.start_stack, map.start_data, map.env_end), (26, 28, 45, 51));
        assert!(MemoryMap::parse("12 (a) S 1").is_none());
    }

    #[test]
    fn another_file_is_refused() {
        // Tests have many threads, which is a refusal too; in both cases nothing was touched.
        let other = File::open("/proc/self/maps").expect("a file");
        assert!(matches!(onto(&other), Err(Errno::EXDEV | Errno::EOPNOTSUPP)));
    }
}
