//! Memory from the kernel that several processes may map: atomic words, and regions of bytes.
//!
//! The memory is that of a memory file (memfd_create(2)), which other processes may map too, or
//! anonymous, and it is not written into a core dump.  A mapping is divided once
//! ([`Memory::divide`]).  Then every byte belongs to the [`Words`] or to exactly one [`Region`].
//! Several threads and processes may use the words at the same time; a region has one owner, which
//! can write it like any slice.
//!
//! The words have names: [`shared!`] declares a struct of words, and [`Words::at`] finds one by its
//! offset.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals,
    memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// 64 bits that several threads and processes may read and set.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Word(AtomicU64);

impl Word {
    /// The value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Sets the value, after every store that the program makes before this one.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// Sets the value; returns the one before.
    pub(crate) fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, Ordering::AcqRel)
    }
}

/// A type that consists of [`Word`]s alone.
///
/// # Safety
/// The type is `repr(C)` or `repr(transparent)`, and all its parts are `Shared`.  So any bytes are a
/// value of it, it has no padding, and every access to it is atomic.
#[expect(unsafe_code, reason = "mapped memory is used as a value of the type")]
pub(crate) unsafe trait Shared {}

// SAFETY: it is a transparent `AtomicU64`.
#[expect(unsafe_code, reason = "`Shared` promises something about memory")]
unsafe impl Shared for Word {}

// SAFETY: the elements of an array follow each other, and are `Shared`.
#[expect(unsafe_code, reason = "`Shared` promises something about memory")]
unsafe impl<T: Shared, const COUNT: usize> Shared for [T; COUNT] {}

/// Declares structs that lie in shared memory: `repr(C)`, with fields that are [`Shared`].  For tests
/// `FIELDS` has the name, the offset and the size of each field, in bytes.
macro_rules! shared {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident: $type:ty,)+
        }
    )+) => {$(
        $(#[$attribute])*
        #[derive(Debug)]
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)+
        }

        const _: () = {
            const fn is_shared<T: $crate::sys::memory::Shared>() {}
            $(is_shared::<$type>();)+
        };

        // SAFETY: it is `repr(C)`, and the lines above compile only if its fields are `Shared`.
        #[expect(unsafe_code, reason = "`Shared` promises something about memory")]
        unsafe impl $crate::sys::memory::Shared for $name {}

        #[cfg(test)]
        impl $name {
            /// Name, offset and size of each field.
            pub(super) const FIELDS: &[(&'static str, usize, usize)] = &[$((
                stringify!($field),
                std::mem::offset_of!($name, $field),
                std::mem::size_of::<$type>(),
            ),)+];
        }
    )+};
}
pub(crate) use shared;

/// A mapping that is not divided yet.
#[derive(Debug)]
pub(crate) struct Memory(Map);

/// The part of a mapping that consists of atomic words.
#[derive(Debug)]
pub(crate) struct Words {
    map: Arc<Map>,
    /// Its size in bytes.
    size: usize,
}

/// A struct among the words, looked up once so that each access costs nothing more.
#[derive(Debug)]
pub(crate) struct Place<T> {
    map: Arc<Map>,
    /// The offset of the first word in bytes.
    at: usize,
    kind: PhantomData<T>,
}

/// A part of a mapping that has one owner.
#[derive(Debug)]
pub(crate) struct Region {
    map: Arc<Map>,
    /// Its offset in bytes.
    at: usize,
    /// Its size in bytes.
    size: usize,
}

/// An address range of mmap(2), unmapped when it is dropped.
#[derive(Debug)]
struct Map {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping lasts until this value is dropped, in whichever thread that is.
#[expect(unsafe_code, reason = "a mapping may be used by several threads")]
unsafe impl Send for Map {}
// SAFETY: the words are atomic, and every other byte belongs to one `Region`.
#[expect(unsafe_code, reason = "a mapping may be used by several threads")]
unsafe impl Sync for Map {}

/// Makes a memory file of `size` bytes that can neither shrink nor grow.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub(crate) fn memory_file(name: &str, size: usize) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know MFD_NOEXEC_SEAL.
    let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, flags))?;
    let file = File::from(file);
    file.set_len(size as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}

/// Allocates `size` bytes of a memory file from the offset `at` on (fallocate(2)).  Where memory is
/// short, this returns an error, whereas the first access to bytes that are not allocated would end
/// the process with SIGBUS.
///
/// # Errors
/// Those of fallocate(2); `ENOSPC` where the system commits no more memory
/// (`vm.overcommit_memory` of proc(5)).
pub(crate) fn allocate(file: &File, at: usize, size: usize) -> io::Result<()> {
    fallocate(file, FallocateFlags::KEEP_SIZE, at as u64, size as u64)?;
    Ok(())
}

/// Whether the file is sealed against shrinking (`F_SEAL_SHRINK` of fcntl(2)).  An access to a mapping
/// behind the end of its file would end the process with SIGBUS.
#[must_use]
pub(crate) fn cannot_shrink(file: &File) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Makes the allocator return every large block to the kernel when it is freed.  Without a fixed
/// threshold (`M_MMAP_THRESHOLD` of mallopt(3)) the first large block that is freed raises the
/// threshold, and the memory that many connections took would stay with the process.
///
/// The threshold, and what is taken from the kernel beyond what is asked for (`M_TOP_PAD`), are below
/// their defaults of 128 KiB: a table that grows leaves its smaller blocks behind, and with the defaults
/// these were 100 KiB that nothing used.
pub(crate) fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "mallopt(3) is reached through libc only")]
    // SAFETY: mallopt(3) takes two numbers; if it fails, nothing has changed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 16 * 1024);
    }
}

/// Returns free memory to the kernel (malloc_trim(3)).  By itself the allocator keeps free memory that
/// lies before memory in use.  A call takes some 100 us.
pub(crate) fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim(3) is reached through libc only")]
    // SAFETY: malloc_trim(3) touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Memory {
    /// Maps the first `size` bytes of a file, or so many bytes of anonymous memory.  A page that was
    /// never written takes no memory.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn new(file: Option<&File>, size: usize) -> io::Result<Self> {
        Map::new(file, size).map(Self)
    }

    /// The struct at an offset in bytes.
    ///
    /// # Panics
    /// The struct would not lie within the mapping, or not be aligned.
    #[must_use]
    pub(crate) fn at<T: Shared>(&self, at: usize) -> &T {
        self.0.at(at)
    }

    /// Divides the mapping: its first `words` bytes are words, and `count` regions of `size` bytes
    /// follow.
    ///
    /// # Panics
    /// The mapping is smaller than that.
    #[must_use]
    pub(crate) fn divide(self, words: usize, count: usize, size: usize) -> (Words, Vec<Region>) {
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
    /// The struct at an offset in bytes.
    ///
    /// # Panics
    /// The struct would not lie within the words, or not be aligned.
    #[must_use]
    pub(crate) fn at<T: Shared>(&self, at: usize) -> &T {
        assert!(at + size_of::<T>() <= self.size, "not among the words");
        self.map.at(at)
    }

    /// The struct at an offset in bytes, to be used often.
    ///
    /// # Panics
    /// The struct would not lie within the words, or not be aligned.
    #[must_use]
    pub(crate) fn place<T: Shared>(&self, at: usize) -> Place<T> {
        let _checked: &T = self.at(at);
        Place {
            map: self.map.clone(),
            at,
            kind: PhantomData,
        }
    }
}

impl<T: Shared> Deref for Place<T> {
    type Target = T;

    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    fn deref(&self) -> &T {
        // SAFETY: `Words::place` has found a `T` here with `Map::at`, and `map` keeps the mapping.
        unsafe { &*self.map.base.as_ptr().add(self.at).cast() }
    }
}

impl Region {
    /// The bytes of the region.
    #[must_use]
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the region lies within the mapping, which `map` keeps.  It shares no byte with a word
        // or with another region, so nothing writes to it as long as `self` is borrowed.
        unsafe { slice::from_raw_parts(self.map.base.as_ptr().add(self.at), self.size) }
    }

    /// The bytes of the region, to be written.
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.map.base.as_ptr().add(self.at), self.size) }
    }

    /// Returns the memory of `size` bytes from the offset `at` on to the kernel (`MADV_REMOVE` of
    /// madvise(2)).  They read as zero afterwards.
    ///
    /// # Panics
    /// The region has fewer bytes.
    #[expect(unsafe_code, reason = "madvise(2) works on addresses")]
    pub(crate) fn give_back(&mut self, at: usize, size: usize) {
        let part = &mut self.bytes_mut()[at..at + size];
        // SAFETY: the bytes are borrowed exclusively, and zeros are valid bytes.  If the call fails,
        // the bytes stay as they are.
        let _ = unsafe { madvise(part.as_mut_ptr().cast(), part.len(), Advice::LinuxRemove) };
    }
}

impl Map {
    #[expect(unsafe_code, reason = "mmap(2) gives an address")]
    fn new(file: Option<&File>, size: usize) -> io::Result<Self> {
        let (null, access) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps no memory in use.
        let base = unsafe {
            let base = match file {
                Some(file) => mmap(null, size, access, flags, file, 0),
                None => mmap_anonymous(null, size, access, flags),
            }?;
            // A core dump may not contain what peers have sent.  If this fails, LimitCORE= of the unit
            // is what prevents it.
            let _ = madvise(base, size, Advice::LinuxDontDump);
            base
        };
        let base = NonNull::new(base.cast());
        let base = base.ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(Self { base, size })
    }

    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    fn at<T: Shared>(&self, at: usize) -> &T {
        let is_within = at % align_of::<T>() == 0 && at + size_of::<T>() <= self.size;
        assert!(is_within, "not within the mapping");
        // SAFETY: it lies within the mapping and is aligned, as a mapping begins with a page.  Its bytes
        // are a value of `T`, which consists of atomic words (`Shared`); no `Region` has them, which
        // `Words` and `Memory::divide` see to.
        unsafe { &*self.base.as_ptr().add(at).cast() }
    }
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "munmap(2) works on addresses")]
    fn drop(&mut self) {
        // SAFETY: `base` was mapped with this size, and no reference into the mapping is left.
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
    fn every_mapping_of_a_file_sees_its_words_and_regions() {
        let file = memory_file("test", 3 * PAGE).unwrap();
        assert!(cannot_shrink(&file));
        let (one, mut regions) = Memory::new(Some(&file), 3 * PAGE)
            .unwrap()
            .divide(PAGE, 2, PAGE);
        one.at::<Word>(8).set(7);
        regions[1].bytes_mut()[5] = 9;
        let (other, others) = Memory::new(Some(&file), 3 * PAGE)
            .unwrap()
            .divide(PAGE, 2, PAGE);
        assert_eq!(other.at::<[Word; 2]>(0)[1].get(), 7);
        assert_eq!(other.place::<Word>(8).swap(8), 7);
        assert_eq!(one.at::<Word>(8).get(), 8);
        assert_eq!((others[0].bytes()[5], others[1].bytes()[5]), (0, 9));
        regions[1].give_back(0, PAGE);
        assert_eq!(others[1].bytes()[5], 0);
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn anonymous_memory_works_in_the_same_way() {
        let (words, mut regions) = Memory::new(None, 2 * PAGE).unwrap().divide(PAGE, 1, PAGE);
        words.at::<Word>(0).set(1);
        regions[0].bytes_mut().fill(1);
        regions[0].give_back(0, PAGE);
        assert_eq!(regions[0].bytes()[0], 0);
    }

    #[test]
    #[should_panic(expected = "not among the words")]
    fn a_struct_does_not_reach_into_a_region() {
        let (words, _regions) = Memory::new(None, 2 * PAGE).unwrap().divide(PAGE, 1, PAGE);
        let _ = words.at::<[Word; 2]>(PAGE - 8);
    }
}
