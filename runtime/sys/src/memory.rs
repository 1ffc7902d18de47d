//! The allocator of a small long-lived process: keep nothing that isn't needed, give back what was.

/// Makes glibc's allocator hold on to as little as it can: one arena, big blocks straight from the kernel, the top of
/// the heap trimmed early. Costs a few system calls when blocks come and go; meant for processes that mostly wait.
pub fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, 32 << 10),
        (libc::M_TRIM_THRESHOLD, 32 << 10),
        (libc::M_TOP_PAD, 4 << 10),
    ] {
        // SAFETY: mallopt takes integers; a value it doesn't like it ignores and says so, which changes nothing for us.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free memory of the heap back to the kernel (malloc_trim(3)).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The same for a daemon with several threads, which works hard at times: a few arenas (by default there are eight for each
/// processor, and each keeps what its threads once needed), and only blocks of `large` bytes come straight from the kernel.
///
/// To be called before there are threads: arenas that exist stay.
pub fn keep_heaps_few(arenas: i32, large: i32) {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, arenas), (libc::M_MMAP_THRESHOLD, large), (libc::M_TRIM_THRESHOLD, large)]
    {
        // SAFETY: mallopt takes integers; a value it doesn't like it ignores and says so, which changes nothing for us.
        unsafe { libc::mallopt(parameter, value) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = (arenas, large);
}
