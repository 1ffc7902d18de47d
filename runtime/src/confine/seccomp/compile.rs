//! Profile -> classic BPF.
//!
//! Layout: look at the architecture, jump to its section; there, a binary tree over ranges of call numbers, each leaf an
//! action or a chain of argument tests. The tree is balanced by how often calls are made, so that `read` takes fewer steps
//! than `reboot`. x32, which shares the audit value of x86_64, is a part of that tree.
//!
//! Numbers above the largest one that the profile names get ENOSYS instead of a refusing default: such calls are newer than
//! the profile, and libc falls back to older ones on ENOSYS only (runc does the same).
//!
//! The kernel runs the filter once per call number at load time to find those that are always allowed; a tree keeps that short.

use sys::seccomp::Instruction;

use super::assembler::{Code, Compare, Target};
use super::profile::{Arch, KILL_PROCESS, Operator, Profile, Rule, SeccompError, Section, Slot, Test};
use super::syscalls::{self, ARM_PRIVATE};

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const X32_BIT: u32 = 0x4000_0000;
/// Arm's own calls, such as set_tls.
const ARM_BASE: u32 = 0x000f_0000;
const MAX_LENGTH: usize = 4096;

/// What programs call most.
const HOT: &str = "read write futex epoll_wait epoll_pwait recvfrom sendto recvmsg sendmsg poll ppoll close openat fstat \
    newfstatat stat mmap munmap madvise brk getpid clock_gettime clock_nanosleep ioctl lseek pread64 pwrite64 writev \
    rt_sigprocmask rt_sigaction fcntl access";
const HOT_WEIGHT: u32 = 64;
const PLAIN_WEIGHT: u32 = 16;

pub(super) fn program(profile: &Profile) -> Result<Vec<Instruction>, SeccompError> {
    let mut writer = Writer { profile, code: Code::default(), chains: Vec::new() };
    // A call of an architecture that the profile does not name could not be judged.
    let mut entry = Target::Return(KILL_PROCESS);
    // From the end to the beginning: what is asked first, the native architecture, is written last.
    for section in profile.sections.iter().rev().filter(|section| section.arch != Arch::X32) {
        let mut ranges = Ranges { list: Vec::with_capacity(400), default: profile.default };
        ranges.add(section);
        if section.arch == Arch::X86_64 {
            match profile.sections.iter().find(|section| section.arch == Arch::X32) {
                Some(x32) => ranges.add(x32),
                None => ranges.push(X32_BIT, Leaf::Action(KILL_PROCESS), 1),
            }
            // -1 is what a tracer leaves behind to skip a call, and no x32 number.
            ranges.push(u32::MAX, Leaf::Action(section.beyond), 1);
        }
        let ranges = ranges.list;
        let mut sums = Vec::with_capacity(ranges.len() + 1);
        sums.push(0);
        sums.extend(ranges.iter().scan(0, |sum, range| {
            *sum += range.weight;
            Some(*sum)
        }));
        let tree = writer.tree(&ranges, &sums);
        let body = writer.code.load(NUMBER, tree);
        entry = writer.code.branch(Compare::Equal, section.arch.audit(), body, entry);
    }
    writer.code.load(ARCH, entry);
    let program = writer.code.finish();
    if program.len() > MAX_LENGTH { Err(SeccompError::TooLong(program.len())) } else { Ok(program) }
}

/// What happens in one range of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Action(u32),
    /// Rules of the profile, for arguments of 64 or 32 bits.
    Tests(u16, bool),
}

struct Range {
    start: u32,
    leaf: Leaf,
    weight: u32,
}

/// All numbers, cut where the outcome changes.
struct Ranges {
    list: Vec<Range>,
    default: u32,
}

impl Ranges {
    fn push(&mut self, start: u32, leaf: Leaf, weight: u32) {
        match self.list.last_mut() {
            Some(last) if last.leaf == leaf => last.weight += weight,
            _ => self.list.push(Range { start, leaf, weight }),
        }
    }

    fn add(&mut self, section: &Section) {
        let arch = section.arch;
        let mut hot = [false; syscalls::END];
        if arch != Arch::X32 {
            let rows = HOT.split(' ').filter_map(syscalls::row);
            let numbers = rows.filter_map(|row| syscalls::number(row, arch.column()));
            numbers.for_each(|number| hot[usize::from(number)] = true);
        }
        let marker = if arch == Arch::X32 { X32_BIT } else { 0 };
        let end = section.largest.map_or(0, |largest| usize::from(largest) + 1);
        self.add_slots(section, 0..end, marker, &hot);
        let beyond = Leaf::Action(section.beyond);
        self.push(end as u32 | marker, beyond, 1);
        if arch == Arch::Arm {
            self.add_slots(section, usize::from(ARM_PRIVATE)..syscalls::END, ARM_BASE, &hot);
            self.push(ARM_BASE + (syscalls::END - usize::from(ARM_PRIVATE)) as u32, beyond, 1);
        }
    }

    fn add_slots(&mut self, section: &Section, numbers: std::ops::Range<usize>, base: u32, hot: &[bool]) {
        let plain = if section.arch == Arch::X32 { 1 } else { PLAIN_WEIGHT };
        for (at, number) in numbers.enumerate() {
            let leaf = match section.slots[number] {
                Slot::Default => Leaf::Action(self.default),
                Slot::Action(action) => Leaf::Action(action),
                Slot::Tests(index) => Leaf::Tests(index, section.arch.is_64_bit()),
            };
            // The weight of a range is that of its hot calls, and at least something.
            let fresh = self.list.last().is_none_or(|last| last.leaf != leaf);
            let weight = if hot[number] { HOT_WEIGHT } else { 0 } + if fresh { plain } else { 0 };
            self.push(base + at as u32, leaf, weight);
        }
    }
}

/// A chain of tests that is written, by its rules.
type Chain<'a> = (&'a [Rule], bool, Target);

struct Writer<'a> {
    profile: &'a Profile,
    code: Code,
    chains: Vec<Chain<'a>>,
}

impl<'a> Writer<'a> {
    fn tree(&mut self, ranges: &[Range], sums: &[u32]) -> Target {
        match ranges {
            [] => Target::Return(KILL_PROCESS),
            [range] => self.leaf(range.leaf),
            // One number within others of one kind.
            [before, one, after] if before.leaf == after.leaf && after.start == one.start + 1 => {
                let (others, one_leaf) = (self.leaf(before.leaf), self.leaf(one.leaf));
                self.code.branch(Compare::Equal, one.start, one_leaf, others)
            }
            _ => {
                let middle = (sums[0] + sums[ranges.len()]) / 2;
                let over = sums.partition_point(|sum| *sum < middle).clamp(1, ranges.len() - 1);
                // The sum nearest to the middle, of the two beside it.
                let under = over.saturating_sub(1).max(1);
                let at = if sums[over].abs_diff(middle) < sums[under].abs_diff(middle) { over } else { under };
                let (low, high) = ranges.split_at(at);
                let (low_sums, high_sums) = (&sums[..=at], &sums[at..]);
                let weight = |sums: &[u32]| sums[sums.len() - 1] - sums[0];
                // The heavier half comes last, hence nearer.
                let (low, high_target) = if weight(low_sums) < weight(high_sums) {
                    let low = self.tree(low, low_sums);
                    (low, self.tree(high, high_sums))
                } else {
                    let high = self.tree(high, high_sums);
                    (self.tree(low, low_sums), high)
                };
                self.code.branch(Compare::GreaterOrEqual, high[0].start, high_target, low)
            }
        }
    }

    fn leaf(&mut self, leaf: Leaf) -> Target {
        match leaf {
            Leaf::Action(action) => Target::Return(action),
            Leaf::Tests(index, wide) => {
                let rules = self.profile.tests[usize::from(index)].as_slice();
                if let Some((.., target)) =
                    self.chains.iter().find(|(known, as_wide, _)| *as_wide == wide && *known == rules)
                {
                    return *target;
                }
                let target = self.chain(rules, wide);
                self.chains.push((rules, wide, target));
                target
            }
        }
    }

    /// Rules in order: the first whose tests all hold decides.
    fn chain(&mut self, rules: &[Rule], wide: bool) -> Target {
        let mut next = Entry::new(Target::Return(self.profile.default));
        for rule in rules.iter().rev() {
            let mut holds = Entry::new(Target::Return(rule.action));
            for test in rule.tests.iter().rev() {
                holds = self.test(test, wide, holds, next);
            }
            next = holds;
        }
        next.target
    }

    /// One test. Arguments have 64 bits and the machine 32, hence two halves.
    fn test(&mut self, test: &Test, wide: bool, yes: Entry, no: Entry) -> Entry {
        let low_at = ARGUMENTS + 8 * test.index; // all architectures here are little-endian
        let high_at = low_at + 4;
        let (high, low) = ((test.value >> 32) as u32, test.value as u32);
        let masked = |writer: &mut Self, mask: u64, yes, no| {
            let yes = if wide { writer.equal(high_at, (mask >> 32) as u32, high, yes, no) } else { yes };
            writer.equal(low_at, mask as u32, low, yes, no)
        };
        let ordered = |writer: &mut Self, compare, yes: Entry, no: Entry| {
            let rest = writer.compare(low_at, compare, low, yes, no);
            if !wide {
                return rest;
            }
            let loaded = Some(high_at);
            let same = writer.code.branch(Compare::Equal, high, rest.from(loaded), no.from(loaded));
            let after = writer.code.branch(Compare::Greater, high, yes.from(loaded), same);
            Entry { target: writer.code.load(high_at, after), loaded: Some((high_at, after)) }
        };
        match test.operator {
            Operator::Equal => masked(self, u64::MAX, yes, no),
            Operator::NotEqual => masked(self, u64::MAX, no, yes),
            Operator::Masked(mask) => masked(self, mask, yes, no),
            Operator::Greater => ordered(self, Compare::Greater, yes, no),
            Operator::GreaterOrEqual => ordered(self, Compare::GreaterOrEqual, yes, no),
            Operator::Less => ordered(self, Compare::GreaterOrEqual, no, yes),
            Operator::LessOrEqual => ordered(self, Compare::Greater, no, yes),
        }
    }

    fn equal(&mut self, offset: u32, mask: u32, value: u32, yes: Entry, no: Entry) -> Entry {
        match mask {
            0 => yes, // the value was masked as well
            u32::MAX => self.compare(offset, Compare::Equal, value, yes, no),
            _ => {
                let test = self.code.branch(Compare::Equal, value, yes.target, no.target);
                let after = self.code.and(mask, test);
                Entry { target: self.code.load(offset, after), loaded: Some((offset, after)) }
            }
        }
    }

    fn compare(&mut self, offset: u32, compare: Compare, value: u32, yes: Entry, no: Entry) -> Entry {
        let loaded = Some(offset);
        let after = self.code.branch(compare, value, yes.from(loaded), no.from(loaded));
        Entry { target: self.code.load(offset, after), loaded: Some((offset, after)) }
    }
}

/// Where a test begins, and where for those who have loaded its word already.
#[derive(Debug, Clone, Copy)]
struct Entry {
    target: Target,
    loaded: Option<(u32, Target)>,
}

impl Entry {
    fn new(target: Target) -> Self {
        Self { target, loaded: None }
    }

    fn from(self, loaded: Option<u32>) -> Target {
        match (self.loaded, loaded) {
            (Some((offset, after)), Some(have)) if offset == have => after,
            _ => self.target,
        }
    }
}
