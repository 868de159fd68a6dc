//! The engine's journal, looked at before the engine opens it: what of it is whole, and on which file.
//!
//! A crash of the process tears at most the last batch. A crash of the machine may leave holes anywhere in
//! what was not flushed, and a flush that failed may have left nothing on disk of what reads as if it were
//! there. So whatever is whole, up to the first batch that is not, is written to a fresh file and flushed
//! before anybody relies on it; what lies behind is dropped. Whether it had been confirmed to PostgreSQL,
//! PostgreSQL knows: then its slot is ahead of the log, and a new epoch begins.
//!
//! The engine writes a batch as Start(count, number), items, End(checksum), numbers growing, and fills a
//! new file with zeros. Here the frame is read; the checksums are the engine's matter, and where it finds
//! one wrong, the first bad batch is searched by letting it read ever other beginnings of the file.
//!
//! Must not know: what is in a batch.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

use fjall::Database;

/// The engine's mark of the format that is read here. Another one is left to the engine.
const VERSION: &[u8] = b"FJL\x03";

const END_TRAILER: [u8; 4] = *b"FJL\x03";

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;

/// How an item's value is stored.
const UNCOMPRESSED: u8 = 0;

/// What is left of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Number of the last batch that is whole.
    pub(super) last: Option<u64>,
    /// What came behind it, and was dropped.
    pub(super) ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing.
    Clean,
    /// A batch that was not written to its end, as any crash may leave it.
    Torn,
    /// Anything else.
    Broken,
}

/// Cuts the journal before its first broken batch, and puts its newest file on fresh blocks.
pub(super) fn prepare(data: &Path) -> io::Result<Prepared> {
    let known = match fs::read(data.join("version")) {
        Ok(version) => version == VERSION,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    let mut prepared = Prepared { last: None, ending: Ending::Clean };
    if !known {
        return Ok(prepared);
    }
    let files = files(data)?;
    for (index, file) in files.iter().enumerate() {
        let scan = Scan::of(file, prepared.last)?;
        prepared.last = scan.batches.last().map(|batch| batch.number).or(prepared.last);
        let rest = &files[index + 1..];
        if scan.ending == Ending::Clean && !rest.is_empty() {
            continue;
        }
        prepared.ending = if all_empty(rest)? { scan.ending } else { Ending::Broken };
        cut(file, scan.end(), rest)?;
        break;
    }
    Ok(prepared)
}

/// Where the engine found a wrong checksum: cuts before the batch that has it. `scratch` is a directory
/// that may be made and removed.
pub(super) fn salvage(data: &Path, scratch: &Path) -> io::Result<Prepared> {
    let files = files(data)?;
    let mut last = None;
    for (index, file) in files.iter().enumerate() {
        let scan = Scan::of(file, last)?;
        let whole = first_bad(file, &scan.batches, scratch)?;
        last = whole.checked_sub(1).and_then(|before| scan.batches.get(before)).map(|b| b.number).or(last);
        if whole < scan.batches.len() {
            let end = whole.checked_sub(1).and_then(|before| scan.batches.get(before)).map_or(0, |b| b.end);
            cut(file, end, &files[index + 1..])?;
            break;
        }
    }
    clear(scratch)?;
    Ok(Prepared { last, ending: Ending::Broken })
}

/// How many batches from the beginning the engine can read.
fn first_bad(file: &Path, batches: &[Batch], scratch: &Path) -> io::Result<usize> {
    let (mut good, mut bad) = (0, batches.len() + 1);
    if batches.last().is_none_or(|all| matches!(reads(file, all.end, scratch), Ok(true))) {
        return Ok(batches.len());
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match batches.get(middle - 1) {
            Some(batch) if reads(file, batch.end, scratch)? => good = middle,
            _ => bad = middle,
        }
    }
    Ok(good)
}

/// Lets the engine read the first `length` bytes as the journal of an empty database.
fn reads(file: &Path, length: u64, scratch: &Path) -> io::Result<bool> {
    let open = || Database::builder(scratch).worker_threads(1).open();
    let other = |error: fjall::Error| io::Error::other(error);
    clear(scratch)?;
    drop(open().map_err(other)?);
    copy(file, length, &scratch.join("0.jnl"))?;
    match open() {
        Ok(_) => Ok(true),
        Err(fjall::Error::JournalRecovery(_)) => Ok(false),
        Err(error) => Err(other(error)),
    }
}

/// The files in the order of their numbers; what an interrupted renewal left is removed.
fn files(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let number =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        match (extension, number) {
            (Some("jnl"), Some(number)) => files.push((number, path)),
            (Some("renewed"), Some(_)) => fs::remove_file(path)?,
            _ => {}
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn all_empty(files: &[PathBuf]) -> io::Result<bool> {
    for file in files {
        if !zeros(&mut BufReader::new(File::open(file)?))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Leaves the first `end` bytes of a file, on blocks of their own, and none of those behind it. A crash in
/// the middle leaves what can be cut again.
fn cut(file: &Path, end: u64, rest: &[PathBuf]) -> io::Result<()> {
    for later in rest.iter().rev() {
        fs::remove_file(later)?;
    }
    let renewed = file.with_extension("renewed");
    copy(file, end, &renewed)?;
    fs::rename(&renewed, file)?;
    file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn copy(from: &Path, length: u64, to: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    let copied = io::copy(&mut File::open(from)?.take(length), &mut out)?;
    if copied != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn clear(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One whole batch.
#[derive(Debug, Clone, Copy)]
struct Batch {
    number: u64,
    end: u64,
}

/// What a file holds.
#[derive(Debug)]
struct Scan {
    batches: Vec<Batch>,
    ending: Ending,
}

impl Scan {
    fn of(path: &Path, after: Option<u64>) -> io::Result<Scan> {
        let mut frames = Frames { reader: BufReader::with_capacity(1 << 18, File::open(path)?), position: 0 };
        let (mut batches, mut last) = (Vec::new(), after);
        loop {
            let ending = match frames.batch() {
                Ok(Some(number)) if last.is_none_or(|last| number > last) => {
                    last = Some(number);
                    batches.push(Batch { number, end: frames.position });
                    continue;
                }
                // A number that does not grow.
                Ok(Some(_)) => Ending::Broken,
                Ok(None) if zeros(&mut frames.reader)? => Ending::Clean,
                Err(Broken::Zero) if zeros(&mut frames.reader)? => Ending::Torn,
                Err(Broken::Over) => Ending::Torn,
                Ok(None) | Err(Broken::Zero | Broken::Frame) => Ending::Broken,
                Err(Broken::Io(error)) => return Err(error),
            };
            return Ok(Scan { batches, ending });
        }
    }

    fn end(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.end)
    }
}

enum Broken {
    /// The file ends here.
    Over,
    /// Zeros begin here.
    Zero,
    /// No entry of the format.
    Frame,
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Broken::Over,
            _ => Broken::Io(error),
        }
    }
}

struct Frames<R> {
    reader: R,
    position: u64,
}

impl<R: Read> Frames<R> {
    /// Reads one batch, and gives its number; `None` where there is none: zeros or the end.
    fn batch(&mut self) -> Result<Option<u64>, Broken> {
        match self.bytes::<1>() {
            Ok([TAG_START]) => {}
            Ok([0]) | Err(Broken::Over) => return Ok(None),
            Ok(_) => return Err(Broken::Frame),
            Err(error) => return Err(error),
        }
        let count = u32::from_le_bytes(self.bytes()?);
        let number = u64::from_le_bytes(self.bytes()?);
        for _ in 0..count {
            self.item()?;
        }
        match self.bytes::<1>()? {
            [TAG_END] => {}
            [0] => return Err(Broken::Zero),
            _ => return Err(Broken::Frame),
        }
        let _checksum: [u8; 8] = self.bytes()?;
        match self.bytes()? {
            END_TRAILER => Ok(Some(number)),
            [_, _, _, 0] => Err(Broken::Zero),
            _ => Err(Broken::Frame),
        }
    }

    fn item(&mut self) -> Result<(), Broken> {
        match self.bytes::<1>()? {
            [TAG_CLEAR] => self.skip(8),
            [TAG_ITEM] => {
                let [_kind, compression] = self.bytes()?;
                let _keyspace: [u8; 8] = self.bytes()?;
                let key = u16::from_le_bytes(self.bytes()?);
                let length = u32::from_le_bytes(self.bytes()?);
                let stored = u32::from_le_bytes(self.bytes()?);
                // The engine takes this for granted, and its checksum does not cover it.
                if compression == UNCOMPRESSED && length != stored {
                    return Err(Broken::Frame);
                }
                self.skip(u64::from(key) + u64::from(stored))
            }
            [0] => Err(Broken::Zero),
            _ => Err(Broken::Frame),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), Broken> {
        let skipped = io::copy(&mut self.reader.by_ref().take(length), &mut io::sink())?;
        self.position += skipped;
        if skipped == length { Ok(()) } else { Err(Broken::Over) }
    }
}

fn zeros(reader: &mut impl Read) -> io::Result<bool> {
    let mut block = vec![0; 1 << 16];
    loop {
        match reader.read(&mut block)? {
            0 => return Ok(true),
            read if block[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}
