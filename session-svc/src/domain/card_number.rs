//! Payment card numbers, which have no business here: they are refused wherever a shopper or a clerk can type freely.
//! Fields of a kind of their own, such as article numbers and order numbers, are not asked, as one number in ten passes the
//! check digit by chance.

use std::ops::RangeInclusive;

/// What the numbers of each kind of card begin with, and how many digits they have. Shorter prefixes are written as ranges
/// of the longest, six digits.
const ISSUERS: [(RangeInclusive<u32>, &[usize]); 17] = [
    (220_000..=220_499, &[16, 17, 18, 19]),                 // Mir
    (222_100..=272_099, &[16]),                             // Mastercard
    (300_000..=305_999, &[14, 16, 17, 18, 19]),             // Diners Club
    (309_500..=309_599, &[14, 16, 17, 18, 19]),             // Diners Club
    (340_000..=349_999, &[15]),                             // American Express
    (352_800..=358_999, &[16, 17, 18, 19]),                 // JCB
    (360_000..=369_999, &[14, 15, 16, 17, 18, 19]),         // Diners Club
    (370_000..=379_999, &[15]),                             // American Express
    (380_000..=399_999, &[14, 16, 17, 18, 19]),             // Diners Club
    (400_000..=499_999, &[13, 16, 18, 19]),                 // Visa
    (500_000..=509_999, &[12, 13, 14, 15, 16, 17, 18, 19]), // Maestro, RuPay, Verve, Elo
    (510_000..=559_999, &[16]),                             // Mastercard
    (560_000..=589_999, &[12, 13, 14, 15, 16, 17, 18, 19]), // Maestro
    (601_100..=601_199, &[16, 17, 18, 19]),                 // Discover
    (620_000..=629_999, &[16, 17, 18, 19]),                 // UnionPay
    (630_000..=699_999, &[12, 13, 14, 15, 16, 17, 18, 19]), // Maestro, Discover, RuPay
    (810_000..=829_999, &[16, 17, 18, 19]),                 // UnionPay, RuPay
];
const DIGITS_MAX: usize = 19;
/// Signs between two groups of digits that still are one number, as in `4111 - 1111`.
const GAP_MAX: usize = 3;

/// Whether a number in the text could be a card's: by what it begins with, its length and its check digit. It may stand in
/// groups, and beside other text and numbers.
pub fn is_in(text: &str) -> bool {
    let mut groups: Vec<Vec<u32>> = vec![];
    // Where the next group begins a number anew, as too much is between it and the one before.
    let mut begins_anew = vec![];
    let mut gap = GAP_MAX + 1;
    for c in text.chars() {
        if let Some(digit) = digit_of(c) {
            if gap > 0 {
                groups.push(vec![]);
                begins_anew.push(gap > GAP_MAX);
            }
            groups.last_mut().into_iter().for_each(|group| group.push(digit));
            gap = 0;
        } else {
            gap += if c.is_alphabetic() { GAP_MAX + 1 } else { 1 };
        }
    }
    (0..groups.len()).any(|first| {
        let mut digits = vec![];
        for (n, group) in groups.iter().enumerate().skip(first) {
            if n > first && begins_anew[n] || digits.len() + group.len() > DIGITS_MAX {
                return false;
            }
            digits.extend_from_slice(group);
            if is_card_number(&digits) {
                return true;
            }
        }
        false
    })
}

/// As it is typed in Latin, Arabic, Persian, Devanagari, Bengali, Thai and full-width script: ten in a row each.
fn digit_of(c: char) -> Option<u32> {
    const ZEROS: [char; 7] = ['0', '٠', '۰', '०', '০', '๐', '\u{ff10}'];
    ZEROS
        .iter()
        .find_map(|zero| u32::from(c).checked_sub(u32::from(*zero)).filter(|digit| *digit < 10))
}

fn is_card_number(digits: &[u32]) -> bool {
    let Some(prefix) = digits.get(..6) else { return false };
    let prefix = prefix.iter().fold(0, |number, digit| number * 10 + digit);
    let is_issued = |(prefixes, lengths): &(_, &[usize])| {
        RangeInclusive::contains(prefixes, &prefix) && lengths.contains(&digits.len())
    };
    ISSUERS.iter().any(is_issued) && passes_luhn(digits)
}

/// ISO/IEC 7812-1, annex B.
fn passes_luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(n, digit)| if n % 2 == 0 { *digit } else { digit * 2 % 10 + digit * 2 / 10 })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers that the card schemes publish for tests.
    const CARDS: [&str; 10] = [
        "4111111111111111",
        "4222222222222",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "30569309025904",
        "6011111111111117",
        "3530111333300000",
        "6200000000000005",
        "6759649826438453",
    ];

    #[test]
    fn card_numbers_are_found_however_they_are_written() {
        for card in CARDS {
            let groups: Vec<_> =
                card.as_bytes().chunks(4).map(|group| str::from_utf8(group).unwrap()).collect();
            for text in [
                card.to_owned(),
                format!("pay with {card}, please"),
                format!("card:{card}"),
                groups.join(" "),
                groups.join("-"),
                groups.join(" - "),
                groups.join("\u{a0}"),
                format!("{} 12/27 123", groups.join(" ")),
                format!("2 pieces, {card}"),
                format!("7 {card} 9"),
            ] {
                assert!(is_in(&text), "{text}");
            }
        }
    }

    #[test]
    fn other_numbers_are_not() {
        for text in [
            "",
            "2026-11-23",
            "4111111111111112",     // check digit
            "9111111111111111",     // nobody's prefix
            "41111111111111111111", // too long
            "411111 is the prefix",
            "41111111 and, later on, 11111111", // not one number
            "order 10000001",
            "4006381333931", // an EAN that fails the check
            "WHITE HANGING HEART T-LIGHT HOLDER",
        ] {
            assert!(!is_in(text), "{text}");
        }
    }

    #[test]
    fn of_neighbouring_numbers_one_has_the_check_digit() {
        let found = (0..10).filter(|last| is_in(&format!("411111111111111{last}"))).count();
        assert_eq!(found, 1);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String, digits in "[0-9 -]{0,60}") {
            is_in(&text);
            is_in(&digits);
        }

        #[test]
        fn a_card_number_is_found_in_any_text(before in "[^0-9]{4,12}", card in 0..CARDS.len(), after in "[^0-9]{0,12}") {
            let text = format!("{before}{}{after}", CARDS[card]);
            prop_assert!(is_in(&text));
        }
    }
}
