//! Zeroed memory for what is large and read in full for every token: in huge pages where the system has them, since at
//! 4 KiB each the look-up of a page takes about as long as reading it.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A fixed number of elements, zeros at first. The system provides the memory when it is first written to.
pub(crate) struct HugePages<T> {
    map: Option<MmapMut>,
    element: PhantomData<T>,
}

impl<T: Pod> HugePages<T> {
    /// Room for `len` elements; nothing if there is not so much memory.
    pub fn zeroed(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let map = match bytes {
            0 => None,
            _ => Some(MmapMut::map_anon(bytes).ok()?),
        };
        #[cfg(target_os = "linux")]
        if let Some(map) = &map {
            // Without huge pages it is slower, no more.
            map.advise(memmap2::Advice::HugePage).ok();
        }
        Some(Self { map, element: PhantomData })
    }
}

impl<T: Pod> Deref for HugePages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.map.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}

impl<T: Pod> DerefMut for HugePages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.map.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}
