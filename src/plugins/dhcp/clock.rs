//! Time and chance, as values that the state machines are given.

use std::hash::{BuildHasher, Hasher, RandomState};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the host was started, suspended time included (`CLOCK_BOOTTIME`): a lease runs out in a sleeping
/// host too, and the value means the same to every process until the next boot.
pub type Millis = u64;

/// A moment that does not come.
pub const NEVER: Millis = u64::MAX;

/// The present moment.
pub fn now() -> Millis {
    // The call cannot fail for a clock that Linux has had since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Numbers that others cannot guess before they see them: transaction ids and jitter (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each call; the seed is the kernel's, through the standard library.
    pub fn from_system() -> Random {
        Random(RandomState::new().build_hasher().finish())
    }

    /// The sequence of this seed.
    #[cfg(any(test, fuzzing))]
    pub fn from_seed(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The upper half of the next number.
    pub fn next_u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// `value` changed by at most `by`, up or down.
    pub fn around(&mut self, value: Millis, by: Millis) -> Millis {
        let by = by.min(value);
        value - by + self.next() % (2 * by + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bounds_and_varies() {
        let mut random = Random::from_seed(1);
        let values: Vec<Millis> = (0..100).map(|_| random.around(4000, 1000)).collect();
        assert!(values.iter().all(|v| (3000..=5000).contains(v)));
        assert!(values.iter().any(|v| *v < 3500) && values.iter().any(|v| *v > 4500));
        assert_eq!(random.around(0, 1000), 0);
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = now();
        assert!(before > 0 && now() >= before);
    }
}
