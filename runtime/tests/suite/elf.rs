//! The smallest programs: one system call, then an exit whose code is the errno (or 256 less the result).

/// Kinds of program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    X86_64,
    /// 32 bits, calls by interrupt 0x80.
    X86,
}

const BASE: u32 = 0x0804_8000;

pub(crate) mod probe {
    /// In place of an argument: the address of a list of words, which are the arguments after it.
    pub(crate) const WORDS: u32 = 0xfeed_0001;
}

/// A static program that makes a call.
pub(crate) fn probe(machine: Machine, number: u32, arguments: &[u32]) -> Vec<u8> {
    let header = if machine == Machine::X86 { 52 + 32 } else { 64 + 56 };
    let (inline, words) = match arguments.iter().position(|argument| *argument == probe::WORDS) {
        Some(at) => (&arguments[..=at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    // mov of a constant to eax, then to the registers of the first three arguments.
    let registers = if machine == Machine::X86 { [0xbb, 0xb9, 0xba] } else { [0xbf, 0xbe, 0xba] };
    let enter = if machine == Machine::X86 { [0xcd, 0x80] } else { [0x0f, 0x05] };
    let exit_group: u32 = if machine == Machine::X86 { 252 } else { 231 };
    let to_first = if machine == Machine::X86 { 0xc3 } else { 0xc7 };
    let length = 5 * (1 + inline.len()) + 2 + 2 + 2 + 5 + 2;
    let mut code = Vec::new();
    let mut set = |register: u8, value: u32| {
        code.push(register);
        code.extend(value.to_le_bytes());
    };
    set(0xb8, number);
    for (register, value) in registers.into_iter().zip(inline) {
        set(register, if *value == probe::WORDS { BASE + (header + length) as u32 } else { *value });
    }
    code.extend(enter);
    code.extend([0xf7, 0xd8, 0x89, to_first]); // neg eax; mov it to the first argument
    code.push(0xb8);
    code.extend(exit_group.to_le_bytes());
    code.extend(enter);
    assert_eq!(code.len(), length);
    code.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let mut file = elf_header(machine, header as u32, code.len() as u32);
    file.extend(code);
    file
}

/// ELF header and one segment: the whole file, to be read and executed.
fn elf_header(machine: Machine, header: u32, code: u32) -> Vec<u8> {
    let wide = machine == Machine::X86_64;
    let mut out = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let word = |out: &mut Vec<u8>, value: u32| {
        out.extend(value.to_le_bytes());
        if wide {
            out.extend([0; 4]);
        }
    };
    let half = |out: &mut Vec<u8>, value: u16| out.extend(value.to_le_bytes());
    let plain = |out: &mut Vec<u8>, value: u32| out.extend(value.to_le_bytes());
    half(&mut out, 2); // executable
    half(&mut out, if wide { 62 } else { 3 });
    plain(&mut out, 1);
    word(&mut out, BASE + header);
    word(&mut out, if wide { 64 } else { 52 }); // segments are told right after this header
    word(&mut out, 0);
    plain(&mut out, 0);
    for value in if wide { [64, 56, 1, 64, 0, 0] } else { [52, 32, 1, 40, 0, 0] } {
        half(&mut out, value);
    }
    let size = header + code;
    plain(&mut out, 1); // to be loaded
    if wide {
        plain(&mut out, 5);
    }
    for value in [0, BASE, BASE, size, size] {
        word(&mut out, value);
    }
    if !wide {
        plain(&mut out, 5);
    }
    word(&mut out, 0x1000);
    out
}
