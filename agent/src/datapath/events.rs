//! What the kernel tells by itself: sampled refusals, and what it asks about leases.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{Map, MapData, RingBuf},
};
use weir_common::layout::{Event, Handup};

use super::error::DatapathError;

/// A ring of what the kernel tells. There is one reader: the owner of the data plane.
pub struct Ring<T> {
    ring: RingBuf<MapData>,
    told: PhantomData<T>,
}

/// Sampled refusals.
pub type Events = Ring<Event>;
/// What is asked about leases.
pub type Handups = Ring<Handup>;

/// What a ring holds, and which.
pub trait Told: Pod {
    /// The ring's name.
    const RING: &'static str;
}

impl Told for Event {
    const RING: &'static str = "EVENTS";
}

impl Told for Handup {
    const RING: &'static str = "HANDUPS";
}

impl<T: Told> Ring<T> {
    pub(super) fn open(directory: &Path) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { name: T::RING, source };
        let data = MapData::from_pin(directory.join(T::RING)).map_err(failed)?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?;
        Ok(Self { ring, told: PhantomData })
    }

    /// The next one, if one is there.
    pub fn next_told(&mut self) -> Option<T> {
        loop {
            let item = self.ring.next()?;
            if item.len() >= size_of::<T>() {
                // SAFETY: the item is as long as a `T`, whose every bit pattern is valid.
                return Some(unsafe { item.as_ptr().cast::<T>().read_unaligned() });
            }
        }
    }
}

impl<T> AsRawFd for Ring<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl<T> AsFd for Ring<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
