//! Archives as they should be, and as they shouldn't.

use super::*;
use proptest::prelude::*;

fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(TarError::Read)?;
        found.push((entry, data));
    }
    reader.drain()?;
    Ok(found)
}

#[test]
fn an_archive_may_end_without_its_last_padding() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    archive.append_data(&mut header, "f", &b"abc"[..]).unwrap();
    let bytes = archive.into_inner().unwrap();
    let found = all(&bytes[..BLOCK + 3]).unwrap();
    assert_eq!((found.len(), found[0].1.as_slice()), (1, &b"abc"[..]));
    assert!(all(&bytes[..BLOCK + 2]).is_err(), "data is missing");
}

fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("SCHILY.xattr.user.a", &b"1\n2="[..]), ("mtime", b"-1.5"), ("uid", b"70000000")])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o104755);
    header.set_cksum();
    builder.append_data(&mut header, "dir/file", &b"hello"[..]).unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "x/".repeat(200) + "link", "y".repeat(300)).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn pax_and_long_names() {
    let found = all(&sample()).unwrap();
    let (file, data) = &found[0];
    assert_eq!((file.path.as_slice(), data.as_slice()), (&b"dir/file"[..], &b"hello"[..]));
    assert_eq!((file.mode, file.uid, file.mtime), (0o4755, 70_000_000, (-2, 500_000_000)));
    assert_eq!(file.xattrs, vec![(b"user.a".to_vec(), b"1\n2=".to_vec())]);
    assert_eq!(found[1].0.path.len(), 404);
    assert_eq!(found[1].0.kind, Kind::Symlink(vec![b'y'; 300]));
}

#[test]
fn cut_anywhere_is_an_error_or_a_shorter_archive() {
    let sample = sample();
    let whole = all(&sample).unwrap();
    for cut in 0..sample.len() {
        match all(&sample[..cut]) {
            // What was found is found whole: only padding or entries behind it are missing.
            Ok(found) => {
                assert!(found.len() <= whole.len(), "{cut}");
                for ((entry, data), (wanted, wanted_data)) in found.iter().zip(&whole) {
                    assert!(entry.path == wanted.path && data == wanted_data, "{cut}");
                }
            }
            Err(error) => assert!(matches!(error, TarError::Read(_)), "{cut}: {error}"),
        }
    }
}

#[test]
fn giant_names_are_refused_unread() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = all(header.as_bytes()).unwrap_err();
    assert!(matches!(error, TarError::Extended { why: "longer than 1 MiB", .. }), "{error}");
}

/// What GNU tar itself writes, in each of its formats.
#[test]
fn sparse_files_of_gnu_tar() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("holes")).unwrap();
    let mut wanted = vec![0_u8; 3 << 20];
    // More pieces than the four of one header, and than the 21 of the next.
    for piece in 0..40 {
        let at = piece * 65536;
        wanted[at..at + 5].copy_from_slice(b"bytes");
        std::os::unix::fs::FileExt::write_all_at(&file, b"bytes", at as u64).unwrap();
    }
    file.set_len(wanted.len() as u64).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let mut tar = std::process::Command::new("tar");
        let output = tar.arg("-C").arg(folder.path()).args(["-S", "-c"]).args(format).arg("holes").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < 1 << 20, "{format:?}: tar has stored the holes");
        let found = all(&output.stdout).unwrap();
        let (entry, data) = &found[0];
        assert_eq!((found.len(), entry.path.as_slice()), (1, &b"holes"[..]), "{format:?}");
        let sparse = entry.sparse.as_ref().unwrap();
        let (mut whole, mut rest) = (vec![0; sparse.size as usize], data.as_slice());
        for (at, length) in &sparse.pieces {
            let (piece, behind) = rest.split_at(*length as usize);
            whole[*at as usize..*at as usize + piece.len()].copy_from_slice(piece);
            rest = behind;
        }
        assert!(rest.is_empty() && whole == wanted, "{format:?}");
        for cut in (0..output.stdout.len()).step_by(97) {
            let _ = all(&output.stdout[..cut]);
        }
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let archive = |records: &[(&str, &[u8])], data: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, "x", data).unwrap();
        all(&builder.into_inner().unwrap())
    };
    let v1 = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend(b"12345");
        archive(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"100")], &data)
    };
    assert_eq!(v1("1\n10\n5\n").unwrap()[0].0.sparse, Some(Sparse { pieces: vec![(10, 5)], size: 100 }));
    for (map, why) in [
        ("1\n96\n5\n", "beyond its end"),
        ("2\n5\n2\n6\n3\n", "overlap"),
        ("1\n10\n4\n", "not what follows"),
        ("1\n10\nx\n", "malformed"),
        ("99999999\n", "malformed"),
        ("1\n9223372036854775807\n9223372036854775807\n", "beyond its end"),
    ] {
        let error = v1(map).unwrap_err().to_string();
        assert!(error.contains(why), "{map:?}: {error}");
    }
    let odd: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"1,2,3")];
    assert!(archive(&odd, b"").unwrap_err().to_string().contains("malformed"));
    assert!(archive(&[("GNU.sparse.numbytes", b"1")], b"").is_err());
}

proptest! {
    #[test]
    fn damaged_archives_never_panic(at in 0..3000_usize, with in any::<[u8; 3]>(), fix in any::<bool>()) {
        let mut bytes = sample();
        let at = at % (bytes.len() - 3);
        bytes[at..at + 3].copy_from_slice(&with);
        if fix {
            // A right checksum leads deeper.
            let start = at / BLOCK * BLOCK;
            let mut header = Header::from_byte_slice(&bytes[start..start + BLOCK]).clone();
            header.set_cksum();
            bytes[start..start + BLOCK].copy_from_slice(header.as_bytes());
        }
        let _ = all(&bytes);
    }
}
