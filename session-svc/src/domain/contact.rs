//! How, and whether, a shopper may be written to about a cart. Addresses are not kept here, only that the shop has one.

/// A way to reach a shopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Electronic mail.
    Email,
    /// Text messages.
    Sms,
    /// Notifications of an app or browser.
    Push,
    /// Calls.
    Phone,
}

impl Channel {
    const ALL: [Self; 4] = [Self::Email, Self::Sms, Self::Push, Self::Phone];

    /// As it is stored and told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "EMAIL",
            Self::Sms => "SMS",
            Self::Push => "PUSH",
            Self::Phone => "PHONE",
        }
    }

    /// The channel of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.name() == name)
    }
}

/// What a shopper answered when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    /// Whether they agreed.
    pub granted: bool,
    /// To which text.
    pub policy_version: String,
}

/// What the shop knows of a cart's shopper.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// Where it has an address.
    pub channels: Vec<Channel>,
    /// To being written to about this cart; none where nobody asked.
    pub consent: Option<Consent>,
    /// To marketing, by the shopper's own consents, which hold for all of their carts; none where they never said.
    pub marketing: Option<bool>,
}

impl Contact {
    /// Whether there is a channel, and the shopper agreed, here or there, and refused neither here nor there.
    pub fn is_contactable(&self) -> bool {
        let said = [self.consent.as_ref().map(|consent| consent.granted), self.marketing];
        !self.channels.is_empty() && said.contains(&Some(true)) && !said.contains(&Some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contactable_is_who_has_an_address_and_agreed() {
        let consent = |granted| Some(Consent { granted, policy_version: "1".to_owned() });
        for (channels, consent, is_contactable) in [
            (vec![Channel::Sms], consent(true), true),
            (vec![Channel::Sms], consent(false), false),
            (vec![Channel::Sms], None, false),
            (vec![], consent(true), false),
        ] {
            assert_eq!(Contact { channels, consent, marketing: None }.is_contactable(), is_contactable);
        }
    }

    #[test]
    fn channels_are_found_by_their_names() {
        for channel in Channel::ALL {
            assert_eq!(Channel::from_name(channel.name()), Some(channel));
        }
        assert_eq!(Channel::from_name("email"), None);
    }

    #[test]
    fn a_refusal_on_either_side_holds_and_an_agreement_on_one_is_enough() {
        let said = |cart: Option<bool>, marketing| Contact {
            channels: vec![Channel::Sms],
            consent: cart.map(|granted| Consent { granted, policy_version: "1".to_owned() }),
            marketing,
        };
        for (cart, marketing, is_contactable) in [
            (None, None, false),
            (None, Some(true), true),
            (None, Some(false), false),
            (Some(true), Some(true), true),
            (Some(true), Some(false), false),
            (Some(false), Some(true), false),
        ] {
            assert_eq!(said(cart, marketing).is_contactable(), is_contactable, "{cart:?} {marketing:?}");
        }
    }
}
