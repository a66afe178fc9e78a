//! Memory from the kernel: words that anybody may set, and regions of bytes that one owner has.
//!
//! It is behind a memory file (memfd_create(2)) that others may map too, or behind none, and is not
//! part of a core.  A mapping is divided once ([`Memory::divide`]): then every byte belongs to the
//! [`Words`] or to one [`Region`], so that a region can be written like any slice.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals,
    memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes of a word.
pub const WORD: usize = 8;

/// A mapping that is not divided yet.
#[derive(Debug)]
pub struct Memory(Map);

/// The part of a mapping that consists of words.
#[derive(Debug)]
pub struct Words {
    map: Arc<Map>,
    size: usize,
}

/// Two words side by side, found once and set often.
#[derive(Debug)]
pub struct Pair {
    map: Arc<Map>,
    at: usize,
}

/// A part of a mapping that has one owner.
#[derive(Debug)]
pub struct Region {
    map: Arc<Map>,
    at: usize,
    size: usize,
}

#[derive(Debug)]
struct Map {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory belongs to this value until it is dropped.
#[expect(unsafe_code, reason = "a mapping may be used by several threads")]
unsafe impl Send for Map {}
// SAFETY: its words are atomic, and every other byte belongs to one `Region`.
#[expect(unsafe_code, reason = "a mapping may be used by several threads")]
unsafe impl Sync for Map {}

/// Makes a memory file of this size that can neither shrink nor grow.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn memory_file(name: &str, size: usize) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know the second flag.
    let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, flags))?;
    let file = File::from(file);
    file.set_len(size as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}

/// Allocates a part of a memory file (fallocate(2)): where memory is short, this is an error, and a
/// first access would be a SIGBUS.
///
/// # Errors
/// Those of fallocate(2); `ENOSPC` where the system commits no more memory
/// (`vm.overcommit_memory` of proc(5)).
pub(crate) fn allocate(file: &File, at: usize, size: usize) -> io::Result<()> {
    fallocate(file, FallocateFlags::KEEP_SIZE, at as u64, size as u64)?;
    Ok(())
}

/// Whether nobody can shrink a file any more: touching what is gone would be a SIGBUS.
#[must_use]
pub fn cannot_shrink(file: &File) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Makes the allocator give large blocks back to the kernel, as it does with the first: by itself it
/// learns from that one to keep those that follow (`M_MMAP_THRESHOLD` of mallopt(3)), and what a
/// crowd took would stay.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "mallopt(3) is reached through libc only")]
    // SAFETY: it takes two numbers; failing, it changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives memory that is free back to the kernel (malloc_trim(3)): what is in use may lie behind it,
/// and then the allocator keeps it by itself.  It takes some 100 us.
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim(3) is reached through libc only")]
    // SAFETY: it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Memory {
    /// Maps a file, or memory that nobody else has; nothing is used before it is written.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: Option<&File>, size: usize) -> io::Result<Self> {
        Map::new(file, size).map(Self)
    }

    /// A word, by its offset in bytes.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        self.0.word(at)
    }

    /// Divides it into words up to an offset and regions of equal size behind them.
    ///
    /// # Panics
    /// If it is too small.
    #[must_use]
    pub fn divide(self, words: usize, count: usize, size: usize) -> (Words, Vec<Region>) {
        assert!(words + count * size <= self.0.size, "more than is mapped");
        let map = Arc::new(self.0);
        let region = |index| Region {
            map: map.clone(),
            at: words + index * size,
            size,
        };
        let regions = (0..count).map(region).collect();
        (Words { map, size: words }, regions)
    }
}

impl Words {
    /// A word, by its offset in bytes.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + WORD <= self.size, "not a word");
        self.map.word(at)
    }

    /// Two words, by the offset of the first in bytes.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn pair(&self, at: usize) -> Pair {
        // Both are looked at now, so that nothing has to be later.
        let _ = (self.word(at), self.word(at + WORD));
        let map = self.map.clone();
        Pair { map, at }
    }
}

impl Pair {
    /// Sets the first word, then the second.
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub fn set(&self, first: u64, second: u64) {
        // SAFETY: `Words::pair` has found both within the words of the mapping, and aligned.
        let (one, other) = unsafe {
            let place = self.map.base.as_ptr().add(self.at);
            (
                AtomicU64::from_ptr(place.cast()),
                AtomicU64::from_ptr(place.add(WORD).cast()),
            )
        };
        one.store(first, Ordering::Release);
        other.store(second, Ordering::Release);
    }
}

impl Region {
    /// Its bytes.
    #[must_use]
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: it lies within the mapping, which `map` keeps, and no other region or word has
        // a byte of it, so nothing writes it as long as `self` is borrowed.
        unsafe { slice::from_raw_parts(self.map.base.as_ptr().add(self.at), self.size) }
    }

    /// Its bytes, to be written.
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; it is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.map.base.as_ptr().add(self.at), self.size) }
    }

    /// Gives a part back to the kernel; it reads as zero then, and costs nothing.
    ///
    /// # Panics
    /// If it is not a part.
    #[expect(unsafe_code, reason = "madvise(2) works on addresses")]
    pub fn give_back(&mut self, at: usize, size: usize) {
        let part = &mut self.bytes_mut()[at..at + size];
        // SAFETY: the bytes are borrowed exclusively, and any value is a byte.  Failing, they stay.
        let _ = unsafe { madvise(part.as_mut_ptr().cast(), part.len(), Advice::LinuxRemove) };
    }
}

impl Map {
    #[expect(unsafe_code, reason = "mmap(2) gives an address")]
    fn new(file: Option<&File>, size: usize) -> io::Result<Self> {
        let (null, access) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists; its
        // pages last as long as it does.
        let base = unsafe {
            let base = match file {
                Some(file) => mmap(null, size, access, flags, file, 0),
                None => mmap_anonymous(null, size, access, flags),
            }?;
            // A core may not contain what peers sent; failing, LimitCORE= of the unit is left.
            let _ = madvise(base, size, Advice::LinuxDontDump);
            base
        };
        let base = NonNull::new(base.cast());
        let base = base.ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(Self { base, size })
    }

    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % WORD == 0 && at + WORD <= self.size, "not a word");
        // SAFETY: it lies within the mapping, is aligned, and is only ever used as an atomic word.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "munmap(2) works on addresses")]
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The largest page that Linux has by default.
    const PAGE: usize = 65_536;

    #[test]
    fn words_and_regions_are_seen_by_whoever_maps_the_file() {
        let file = memory_file("test", 3 * PAGE).unwrap();
        assert!(cannot_shrink(&file));
        let (one, mut regions) = Memory::new(Some(&file), 3 * PAGE)
            .unwrap()
            .divide(PAGE, 2, PAGE);
        one.word(8).store(7, Ordering::Release);
        regions[1].bytes_mut()[5] = 9;
        let (other, others) = Memory::new(Some(&file), 3 * PAGE)
            .unwrap()
            .divide(PAGE, 2, PAGE);
        assert_eq!(other.word(8).load(Ordering::Acquire), 7);
        assert_eq!((others[0].bytes()[5], others[1].bytes()[5]), (0, 9));
        regions[1].give_back(0, PAGE);
        assert_eq!(others[1].bytes()[5], 0);
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn without_a_file_it_is_memory_all_the_same() {
        let (words, mut regions) = Memory::new(None, 2 * PAGE).unwrap().divide(PAGE, 1, PAGE);
        words.word(0).store(1, Ordering::Relaxed);
        regions[0].bytes_mut().fill(1);
        regions[0].give_back(0, PAGE);
        assert_eq!(regions[0].bytes()[0], 0);
    }

    #[test]
    #[should_panic(expected = "not a word")]
    fn a_region_has_no_words() {
        let (words, _regions) = Memory::new(None, 2 * PAGE).unwrap().divide(PAGE, 1, PAGE);
        let _ = words.word(PAGE);
    }
}
