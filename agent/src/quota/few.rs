//! A list that is usually short.

/// Up to `N` items in place, more on the heap.
#[derive(Clone, Debug)]
pub(super) struct Few<T, const N: usize> {
    first: [Option<T>; N],
    length: usize,
    rest: Vec<T>,
}

impl<T, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Self { first: [const { None }; N], length: 0, rest: Vec::new() }
    }
}

impl<T, const N: usize> Few<T, N> {
    pub(super) fn of(items: impl Iterator<Item = T>) -> Self {
        let mut few = Self::default();
        items.for_each(|item| few.push(item));
        few
    }

    pub(super) fn push(&mut self, item: T) {
        match self.first.get_mut(self.length) {
            Some(place) => {
                *place = Some(item);
                self.length += 1;
            }
            None => self.rest.push(item),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().take(self.length).flatten().chain(&self.rest)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().take(self.length).flatten().chain(&mut self.rest)
    }

    pub(super) fn into_vec(self) -> Vec<T> {
        self.first.into_iter().flatten().chain(self.rest).collect()
    }
}
