//! Sparse files, in the four ways that GNU tar has written them: in headers of its own, and in PAX records of the versions
//! 0.0, 0.1 and 1.0, the last with the map in front of the data.

use std::io::Read;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{TarError, TarReader, number};

/// Most pieces of one file: what a map of 1 MiB can name.
const PIECES_LIMIT: usize = 1 << 16;

/// Where the bytes of a sparse file belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offset and length of what isn't a hole, in the order of the archive.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// The file's size.
    pub(crate) size: u64,
}

/// What PAX records say about one.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    /// The file's name: the entry's own is made up for readers that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    pieces: Vec<(u64, u64)>,
    // Offset of a piece whose length comes next.
    offset: Option<u64>,
    map_in_data: bool,
}

impl SparseRecords {
    /// Takes the record `GNU.sparse.KEY`.
    pub(super) fn take(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), &'static str> {
        let bad = "sparse map is malformed";
        let parsed = number(&value).ok_or(bad);
        match key {
            b"name" => self.name = Some(value),
            b"size" | b"realsize" => self.size = Some(parsed?),
            b"offset" => self.offset = Some(parsed?),
            b"numbytes" => self.pieces.push((self.offset.take().ok_or(bad)?, parsed?)),
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(number).collect();
                let numbers = numbers.ok_or(bad)?;
                self.pieces =
                    numbers.chunks(2).map(|pair| Some((pair[0], *pair.get(1)?))).collect::<Option<_>>().ok_or(bad)?;
            }
            b"major" => self.map_in_data = parsed? == 1,
            _ => {}
        }
        if self.pieces.len() > PIECES_LIMIT { Err("sparse map is too long") } else { Ok(()) }
    }
}

fn piece(header: &GnuSparseHeader) -> Option<(u64, u64)> {
    Some((header.offset().ok()?, header.length().ok()?))
}

impl<R: Read> TarReader<R> {
    // The map of the present entry, if it is a sparse file; reads what of the map stands before the data.
    pub(super) fn sparse(
        &mut self,
        at: u64,
        header: &Header,
        records: SparseRecords,
    ) -> Result<Option<Sparse>, TarError> {
        let bad = |why| TarError::Extended { at, why };
        let sparse = if header.entry_type() == EntryType::GNUSparse {
            self.gnu_map(header).map_err(|cause| cause.unwrap_or(bad("sparse map is malformed")))?
        } else if let Some(size) = records.size {
            let pieces = if records.map_in_data { self.map_in_data(at)? } else { records.pieces };
            Sparse { pieces, size }
        } else {
            return Ok(None);
        };
        let mut end = 0;
        for (offset, length) in &sparse.pieces {
            let piece_end = offset.checked_add(*length).filter(|_| *offset >= end);
            end = piece_end.ok_or(bad("pieces of a sparse file overlap"))?;
        }
        if end > sparse.size || sparse.size > i64::MAX as u64 {
            return Err(bad("pieces of a sparse file lie beyond its end"));
        }
        if sparse.pieces.iter().map(|(_, length)| length).sum::<u64>() != self.left {
            return Err(bad("pieces of a sparse file are not what follows"));
        }
        Ok(Some(sparse))
    }

    // `None` as error: the header is malformed.
    fn gnu_map(&mut self, header: &Header) -> Result<Sparse, Option<TarError>> {
        let gnu = header.as_gnu().ok_or(None)?;
        let size = gnu.real_size().map_err(|_| None)?;
        let mut pieces = Vec::new();
        let mut add = |headers: &[GnuSparseHeader]| {
            for header in headers.iter().filter(|header| !header.is_empty()) {
                pieces.push(piece(header)?);
            }
            (pieces.len() <= PIECES_LIMIT).then_some(())
        };
        add(&gnu.sparse).ok_or(None)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extended = GnuExtSparseHeader::new();
            // These blocks come between header and data and don't count as data.
            self.input.read_exact(extended.as_mut_bytes()).map_err(TarError::Read)?;
            self.at += extended.as_bytes().len() as u64;
            add(&extended.sparse).ok_or(None)?;
            more = extended.is_extended();
        }
        Ok(Sparse { pieces, size })
    }

    // How many pieces, then offset and length of each: decimal numbers, a line each, filled up to a block.
    fn map_in_data(&mut self, at: u64) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = || TarError::Extended { at, why: "sparse map is malformed" };
        let mut numbers = Vec::new();
        let (mut line, mut wanted) = (Vec::new(), 1);
        while numbers.len() < wanted {
            let mut block = [0; super::BLOCK];
            self.read_exact(&mut block).map_err(TarError::Read)?;
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad());
                    }
                    continue;
                }
                let value = number(&line).ok_or_else(bad)?;
                line.clear();
                if numbers.is_empty() {
                    let count = usize::try_from(value).ok().filter(|count| *count <= PIECES_LIMIT).ok_or_else(bad)?;
                    wanted = 1 + 2 * count;
                }
                numbers.push(value);
            }
        }
        Ok(numbers[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect())
    }
}
