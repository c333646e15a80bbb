//! A keyed hash of a few words that costs a few multiplications.
//!
//! Sources and handshakes are placed by it, and what is hashed comes from the network: with an
//! unkeyed hash somebody could aim thousands of addresses at one line. This is NH, the universal
//! hash inside UMAC (RFC 4418 §5.2.2): each word is added to its part of a secret key as two halves,
//! the halves are multiplied, the products summed. Without the key two different inputs meet with
//! probability 2^-32 at most, whoever chose them. The multiplications do not wait for each other,
//! which is what makes it cheap on the packet path; a mix at the end spreads the sum over all bits.

/// Words that can be hashed.
pub const WORDS: usize = 6;

/// The secret: one word more than can be hashed, drawn once per boot of the tables.
pub type Secret = [u64; WORDS + 1];

/// Hashes up to [`WORDS`] words.
#[inline(always)]
pub fn hash<const N: usize>(secret: &Secret, words: [u64; N]) -> u64 {
    hash_from(secret, 0, words)
}

/// A second hash of the same words. Two inputs meet in both with probability 2^-64 at most: the key
/// is shifted by one word, which is how UMAC gets several hashes from one key (RFC 4418 §5.2).
#[inline(always)]
pub fn second_hash<const N: usize>(secret: &Secret, words: [u64; N]) -> u64 {
    hash_from(secret, 1, words)
}

#[inline(always)]
fn hash_from<const N: usize>(secret: &Secret, first: usize, words: [u64; N]) -> u64 {
    const { assert!(N <= WORDS) };
    let mut sum = 0u64;
    for index in 0..N {
        let (key, word) = (secret[first + index], words[index]);
        let low = (word as u32).wrapping_add(key as u32);
        let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
        sum = sum.wrapping_add(u64::from(low).wrapping_mul(u64::from(high)));
    }
    mix(sum)
}

/// A bijection under which every bit of the input reaches every bit of the output (the finaliser of
/// SplitMix64, G. L. Steele et al., "Fast splittable pseudorandom number generators").
#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// NH as RFC 4418 writes it, with exact integers.
    fn reference(secret: &[u64], words: &[u64]) -> u64 {
        let half = |word: u64, key: u64| (u128::from(word) + u128::from(key)) % (1 << 32);
        let sum: u128 = words
            .iter()
            .zip(secret)
            .map(|(word, key)| {
                half(word & 0xffff_ffff, key & 0xffff_ffff) * half(word >> 32, key >> 32)
            })
            .sum();
        mix((sum % (1 << 64)) as u64)
    }

    proptest! {
        #[test]
        fn equals_the_definition(secret: Secret, words: [u64; WORDS]) {
            prop_assert_eq!(hash(&secret, words), reference(&secret, &words));
            prop_assert_eq!(second_hash(&secret, words), reference(&secret[1..], &words));
            prop_assert_eq!(hash(&secret, [words[0]]), reference(&secret, &words[..1]));
        }

        #[test]
        fn neighbours_spread_over_lines_and_tags(secret: Secret, base: u64) {
            let hashes: Vec<u64> = (0..4096).map(|i| hash(&secret, [base.wrapping_add(i)])).collect();
            let lines: HashSet<u64> = hashes.iter().map(|hash| hash & 0xffff).collect();
            let tags: HashSet<u64> = hashes.iter().map(|hash| hash >> 44).collect();
            // 4096 balls into 65 536 boxes leave about 3 970 full ones; NH may be unlucky, not blind.
            prop_assert!(lines.len() > 3000 && tags.len() > 3000, "{} {}", lines.len(), tags.len());
        }
    }
}
