//! Memory of a process that lives for a millisecond: handed out front to back from one static block.
//!
//! A plugin's call allocates some 100 KB in all. musl's allocator, made for long lives, asks the kernel for a page of its own
//! for each size, and gives it back as soon as it is empty; here neither happens, and what is used lies together. Once the
//! block is used up, which only daemons and large inputs do, everything comes from the allocator below.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the block. Pages that are never used cost nothing.
const SIZE: usize = 512 * 1024;

/// A block of zeroes, with the system's allocator behind it.
///
/// Only the allocation made last is given back to the block, or grows where it is.
pub struct Arena {
    block: Block,
    /// Offset of the first free byte.
    next: AtomicUsize,
    /// Offset behind the last byte that was ever handed out: from here on there are zeroes.
    touched: AtomicUsize,
}

#[repr(align(64))]
struct Block(UnsafeCell<[u8; SIZE]>);

// SAFETY: every byte is handed out to one owner at a time: see `Arena::take`.
unsafe impl Sync for Block {}

impl Arena {
    /// An arena of which nothing is used.
    pub const fn unused() -> Arena {
        let block = Block(UnsafeCell::new([0; SIZE]));
        Arena { block, next: AtomicUsize::new(0), touched: AtomicUsize::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.block.0.get().cast()
    }

    /// Where in the block `at` is; `None` when the system's allocator gave it.
    fn offset(&self, at: *mut u8) -> Option<usize> {
        at.addr().checked_sub(self.start().addr()).filter(|offset| *offset < SIZE)
    }

    /// Hands out a part of the block: its offset, and whether it has been somebody's before.
    fn take(&self, layout: Layout) -> Option<(usize, bool)> {
        let mut next = self.next.load(Ordering::Acquire);
        loop {
            let address = self.start().addr() + next;
            let offset = next + (address.next_multiple_of(layout.align()) - address);
            let end = offset.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
            match self.next.compare_exchange_weak(next, end, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((offset, offset < self.touched.fetch_max(end, Ordering::AcqRel))),
                Err(now) => next = now,
            }
        }
    }

    /// Moves the end of the allocation at `offset`; false when it was not made last, or does not fit.
    fn resize(&self, offset: usize, old: usize, new: usize) -> bool {
        let Some(end) = offset.checked_add(new).filter(|end| *end <= SIZE) else { return false };
        let moved =
            self.next.compare_exchange(offset + old, end, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if moved {
            self.touched.fetch_max(end, Ordering::AcqRel);
        }
        moved
    }

    fn give(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        match self.take(layout) {
            Some((offset, used)) => {
                // SAFETY: `take` keeps the part within the block.
                let at = unsafe { self.start().add(offset) };
                if zeroed && used {
                    // SAFETY: the part is within the block, and nobody else's.
                    unsafe { ptr::write_bytes(at, 0, layout.size()) };
                }
                at
            }
            // SAFETY: the caller's promise for `layout` is the system allocator's.
            None if zeroed => unsafe { System.alloc_zeroed(layout) },
            // SAFETY: as above.
            None => unsafe { System.alloc(layout) },
        }
    }
}

// SAFETY: parts of the block do not overlap, are aligned, and stay where they are until given back; all else is the
// system's allocator, which gets back what it gave.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.give(layout, false)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.give(layout, true)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match self.offset(at) {
            Some(offset) => {
                self.resize(offset, layout.size(), 0);
            }
            // SAFETY: it is not the block's, so the system's allocator gave it, with the same layout.
            None => unsafe { System.dealloc(at, layout) },
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(at) else {
            // SAFETY: as in `dealloc`.
            return unsafe { System.realloc(at, layout, size) };
        };
        if self.resize(offset, layout.size(), size) || size <= layout.size() {
            return at;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow.
        let moved = self.give(unsafe { Layout::from_size_align_unchecked(size, layout.align()) }, false);
        if !moved.is_null() {
            // SAFETY: both are at least `layout.size()` long, which is less than `size`, and do not overlap.
            unsafe { ptr::copy_nonoverlapping(at, moved, layout.size()) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// An allocation filled with `fill`.
    fn filled(arena: &Arena, of: Layout, fill: u8) -> *mut u8 {
        // SAFETY: no layout of these tests is empty.
        let at = unsafe { arena.alloc(of) };
        // SAFETY: just allocated with that size.
        unsafe { at.write_bytes(fill, of.size()) };
        at
    }

    fn bytes<'a>(at: *mut u8, length: usize) -> &'a [u8] {
        // SAFETY: tests ask for what they allocated and wrote.
        unsafe { std::slice::from_raw_parts(at, length) }
    }

    #[test]
    fn allocations_are_aligned_and_do_not_overlap() {
        static ARENA: Arena = Arena::unused();
        let sizes = [(1, 1), (3, 2), (8, 8), (5, 1), (64, 64), (1, 1), (4096, 4096)];
        let all: Vec<*mut u8> = sizes
            .iter()
            .zip(1..)
            .map(|((size, align), n)| filled(&ARENA, layout(*size, *align), n))
            .collect();
        for ((at, (size, align)), n) in all.iter().zip(sizes).zip(1..) {
            assert!(at.addr().is_multiple_of(align) && ARENA.offset(*at).is_some());
            assert!(bytes(*at, size).iter().all(|byte| *byte == n), "{size} {align}");
        }
    }

    #[test]
    fn the_last_allocation_is_given_back_and_grows_in_place() {
        static ARENA: Arena = Arena::unused();
        let (first, last) = (filled(&ARENA, layout(10, 1), 1), filled(&ARENA, layout(10, 1), 2));
        // SAFETY: each pointer is used with the layout it has by then, and not after it was given back.
        unsafe {
            assert_eq!(ARENA.realloc(last, layout(10, 1), 1000), last);
            let moved = ARENA.realloc(first, layout(10, 1), 20);
            assert!(moved != first && bytes(moved, 10) == [1; 10]);
            assert_eq!(ARENA.realloc(last, layout(1000, 1), 5), last);
            ARENA.dealloc(moved, layout(20, 1));
            assert_eq!(ARENA.alloc(layout(30, 1)), moved);
        }
    }

    #[test]
    fn zeroed_memory_is_zero_where_something_was_before() {
        static ARENA: Arena = Arena::unused();
        let used = filled(&ARENA, layout(100, 1), 7);
        // SAFETY: given back once, with its layout.
        unsafe { ARENA.dealloc(used, layout(100, 1)) };
        // SAFETY: the layout is not empty.
        let zeroed = unsafe { ARENA.alloc_zeroed(layout(200, 1)) };
        assert_eq!((zeroed, bytes(zeroed, 200)), (used, [0; 200].as_slice()));
    }

    #[test]
    fn what_does_not_fit_comes_from_the_system() {
        static ARENA: Arena = Arena::unused();
        let large = layout(SIZE, 1);
        let first = filled(&ARENA, layout(10, 1), 1);
        let outside = filled(&ARENA, large, 2);
        assert!(ARENA.offset(first).is_some() && ARENA.offset(outside).is_none());
        // SAFETY: each pointer is used with the layout it has by then.
        unsafe {
            let grown = ARENA.realloc(first, layout(10, 1), SIZE + 1);
            assert!(ARENA.offset(grown).is_none() && bytes(grown, 10) == [1; 10]);
            ARENA.dealloc(grown, layout(SIZE + 1, 1));
            let zeroed = ARENA.alloc_zeroed(large);
            assert!(bytes(zeroed, SIZE).iter().all(|byte| *byte == 0));
            ARENA.dealloc(zeroed, large);
            ARENA.dealloc(outside, large);
        }
    }

    #[test]
    fn threads_get_memory_of_their_own() {
        static ARENA: Arena = Arena::unused();
        let threads: Vec<_> = (1..=4)
            .map(|fill| {
                thread::spawn(move || {
                    let sizes = (1..600).map(|n| n % 200 + 1);
                    let all: Vec<_> =
                        sizes.map(|size| (filled(&ARENA, layout(size, 8), fill), size)).collect();
                    for (at, size) in all.into_iter().rev() {
                        assert!(bytes(at, size).iter().all(|byte| *byte == fill));
                        // SAFETY: given back once, with its layout.
                        unsafe { ARENA.dealloc(at, layout(size, 8)) };
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
