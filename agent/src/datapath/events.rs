//! Sampled refusals, as the kernel tells them.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use weir_common::layout::Event;

use super::error::DatapathError;

/// The ring of events. There is one reader: the owner of the data plane.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn open(directory: &Path) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { name: "EVENTS", source };
        let data = MapData::from_pin(directory.join("EVENTS")).map_err(failed)?;
        Ok(Self(RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?))
    }

    /// The next event, if one is there.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            if item.len() >= size_of::<Event>() {
                // SAFETY: the item is as long as an `Event`, whose every bit pattern is valid.
                return Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's, which lives as long as `self`.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
