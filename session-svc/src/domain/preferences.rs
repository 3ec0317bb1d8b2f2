//! How a shopper likes things: values that say when, and in which session, they were set, so that a login knows which of
//! two wins. What a value may be depends on its key; a key that a newer build set is kept as it is.

use icu_locale_core::Locale;
use iso_country::Country;
use shared::id::SessionId;
use shared::time::Time;

use super::cart::Currency;
use super::consent::Consents;

const LOCALE_MAX: usize = 64;

/// One of the things that can be set, by its number in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Language tag.
    Locale = 1,
    /// Currency code.
    Currency = 2,
    /// Country code.
    Country = 3,
    /// The shop's own id.
    Store = 4,
    /// Name of a zone.
    TimeZone = 5,
    /// Number of the API's enum.
    Theme = 6,
    /// Numbers of the API's enum.
    AccessibilityNeeds = 7,
    /// Numbers of the API's enum.
    NotificationChannels = 8,
}

impl Key {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Locale,
        Self::Currency,
        Self::Country,
        Self::Store,
        Self::TimeZone,
        Self::Theme,
        Self::AccessibilityNeeds,
        Self::NotificationChannels,
    ];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Locale => "locale",
            Self::Currency => "currency_code",
            Self::Country => "country_code",
            Self::Store => "store_id",
            Self::TimeZone => "time_zone",
            Self::Theme => "theme",
            Self::AccessibilityNeeds => "accessibility_needs",
            Self::NotificationChannels => "notification_channels",
        }
    }

    /// The name of a key by its number, which is its name where only newer builds know another.
    pub fn name_of(number: i32) -> String {
        let known = Self::ALL.into_iter().find(|key| *key as i32 == number);
        known.map_or_else(|| number.to_string(), |key| key.name().to_owned())
    }
}

/// A value that was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Number of a [`Key`], or of one that only newer builds know.
    pub key: i32,
    /// One, or several where the key takes several; never none.
    pub values: Vec<String>,
    /// When.
    pub set_at: Time,
    /// The session that it was set in, if it was in one.
    pub session: Option<SessionId>,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

/// A shopper's preferences, and what they consent to: one section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preferences {
    /// One a key.
    pub settings: Vec<Setting>,
    /// What they decided.
    pub consents: Consents,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
    /// When a setting last changed.
    pub updated_at: Option<Time>,
    /// Rises with every change, of consent, too; 0 where nothing is stored.
    pub version: i64,
}

impl Preferences {
    /// The values of a key; none where it is not set.
    pub fn values(&self, key: Key) -> &[String] {
        let set = self.settings.iter().find(|setting| setting.key == key as i32);
        set.map_or(&[], |setting| &setting.values)
    }

    /// Sets the values of a key, none of them meaning that it is set no more; false if they are the same already.
    pub fn set(&mut self, key: Key, values: Vec<String>, now: Time, session: Option<SessionId>) -> bool {
        if self.values(key) == values {
            return false;
        }
        self.settings.retain(|setting| setting.key != key as i32);
        if !values.is_empty() {
            let key = key as i32;
            self.settings.push(Setting { key, values, set_at: now, session, newer: vec![] });
        }
        self.updated_at = Some(now);
        true
    }

    /// Takes over what a shopper who logs in has set: what is not set here, and what was set in the session that logs in.
    /// Answers the keys that were taken over. Of consent see [`Consents::merge`].
    pub fn merge(&mut self, theirs: &Self, session: SessionId, now: Time) -> Vec<i32> {
        let mut taken = vec![];
        for setting in &theirs.settings {
            let own = self.settings.iter_mut().find(|own| own.key == setting.key);
            match own {
                Some(own) if setting.session != Some(session) || own == setting => continue,
                Some(own) => *own = setting.clone(),
                None => self.settings.push(setting.clone()),
            }
            taken.push(setting.key);
            self.updated_at = Some(now);
        }
        if self.newer.is_empty() {
            self.newer.clone_from(&theirs.newer);
        }
        taken
    }
}

/// A BCP 47 language tag in its canonical case.
pub fn locale(text: &str) -> Result<String, &'static str> {
    let is_short = text.len() <= LOCALE_MAX;
    let locale = Locale::try_from_str(text).ok().filter(|_| is_short && !text.contains('_'));
    let locale = locale.ok_or("must be a BCP 47 language tag of at most 64 characters")?;
    Ok(locale.to_string())
}

/// An ISO 4217 code.
pub fn currency(text: &str) -> Result<String, String> {
    let currency: Currency = text.parse().map_err(|error| format!("{error}"))?;
    Ok(currency.as_str().to_owned())
}

/// An ISO 3166-1 alpha-2 code.
pub fn country(text: &str) -> Result<String, &'static str> {
    let is_code = text.len() == 2 && text.parse::<Country>().is_ok_and(|country| country.to_string() == text);
    is_code
        .then(|| text.to_owned())
        .ok_or("must be an ISO 3166-1 alpha-2 code, upper case")
}

/// A zone of the IANA time zone database.
pub fn time_zone(text: &str) -> Result<String, &'static str> {
    let zone: Result<chrono_tz::Tz, _> = text.parse();
    zone.map(|zone| zone.name().to_owned())
        .map_err(|_| "must be a time zone of the IANA database, such as Europe/Zurich")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::time::at;

    fn session(n: u8) -> SessionId {
        SessionId::new(at(0), [n; 10])
    }

    fn setting(key: i32, value: &str, in_session: Option<u8>) -> Setting {
        let values = vec![value.to_owned()];
        Setting { key, values, set_at: at(1), session: in_session.map(session), newer: vec![] }
    }

    fn preferences(settings: Vec<Setting>) -> Preferences {
        Preferences { settings, ..Preferences::default() }
    }

    #[test]
    fn locales_are_language_tags_in_canonical_case() {
        for (text, canonical) in [
            ("de", "de"),
            ("DE-ch", "de-CH"),
            ("zh-hant-tw", "zh-Hant-TW"),
            ("en-US-u-hc-h12", "en-US-u-hc-h12"),
        ] {
            assert_eq!(locale(text).as_deref(), Ok(canonical));
        }
        for bad in
            ["", "d", "de_CH", "deutsch!", "de-", "-de", "de-CH\n", "english language", &"de-".repeat(40)]
        {
            assert!(locale(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn countries_and_zones_are_of_their_lists() {
        for good in ["DE", "CH", "SS", "BQ"] {
            assert_eq!(country(good).as_deref(), Ok(good));
        }
        for bad in ["", "de", "DEU", "XX", "ZZ", "D\u{0}", "AN"] {
            assert!(country(bad).is_err(), "{bad}");
        }
        for good in ["Europe/Zurich", "UTC", "America/Argentina/Buenos_Aires"] {
            assert_eq!(time_zone(good).as_deref(), Ok(good));
        }
        for bad in ["", "Europe/Atlantis", "europe/zurich", "+01:00", "CEST", "../etc/localtime"] {
            assert!(time_zone(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_set_is_there_until_it_is_cleared() {
        let mut preferences = Preferences::default();
        assert!(preferences.set(Key::Locale, vec!["de".to_owned()], at(1), None));
        assert!(!preferences.set(Key::Locale, vec!["de".to_owned()], at(2), None));
        assert_eq!(preferences.values(Key::Locale), ["de"]);
        assert_eq!(preferences.values(Key::Store), [""; 0]);
        assert!(preferences.set(Key::Locale, vec![], at(3), None));
        assert_eq!((preferences.settings.len(), preferences.updated_at), (0, Some(at(3))));
    }

    #[test]
    fn the_account_wins_but_over_what_was_set_in_the_session_that_logs_in() {
        let mine = || preferences(vec![setting(1, "de", None), setting(2, "EUR", Some(9))]);
        let theirs = preferences(vec![
            setting(1, "fr", Some(1)),
            setting(2, "CHF", None),
            setting(3, "CH", None),
            setting(99, "of a newer build", Some(1)),
        ]);
        let mut merged = mine();
        assert_eq!(merged.merge(&theirs, session(1), at(9)), [1, 3, 99]);
        let values: Vec<_> = merged
            .settings
            .iter()
            .map(|setting| (setting.key, &*setting.values[0]))
            .collect();
        assert_eq!(values, [(1, "fr"), (2, "EUR"), (3, "CH"), (99, "of a newer build")]);
        // Set in another session of the anonymous shopper's.
        assert_eq!(mine().merge(&preferences(vec![setting(1, "fr", Some(2))]), session(1), at(9)), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_merge_made_twice_is_one_and_no_key_is_lost(
            mine in proptest::collection::btree_map(1..6, ("[a-c]", proptest::option::of(0_u8..3)), 0..6),
            theirs in proptest::collection::btree_map(1..6, ("[a-c]", proptest::option::of(0_u8..3)), 0..6),
        ) {
            let of = |map: &std::collections::BTreeMap<i32, (String, Option<u8>)>| {
                preferences(map.iter().map(|(key, (value, session))| setting(*key, value, *session)).collect())
            };
            let (theirs_now, mut merged) = (of(&theirs), of(&mine));
            merged.merge(&theirs_now, session(1), at(9));
            for key in mine.keys().chain(theirs.keys()) {
                prop_assert_eq!(merged.settings.iter().filter(|setting| setting.key == *key).count(), 1);
            }
            let once = merged.clone();
            prop_assert_eq!(merged.merge(&theirs_now, session(1), at(9)), vec![0; 0]);
            prop_assert_eq!(merged, once);
        }
    }
}
