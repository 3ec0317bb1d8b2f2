use proptest::prelude::*;

use super::*;

fn name(text: &str) -> ComponentId {
    text.parse().unwrap()
}

fn place(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn need(on: &str, environment: Option<&str>, constraint: &str) -> Dependency {
    let (on, constraint) = (name(on), constraint.parse().unwrap());
    Dependency { on, environment: environment.map(place), constraint }
}

fn edge(component: &str, on: &str, environment: Option<&str>, constraint: &str) -> Edge {
    Edge { component: name(component), needs: need(on, environment, constraint) }
}

fn serving(rows: &[(&str, Option<&str>, Option<&str>)]) -> Serving {
    let served = |stable: Option<&str>, canary: Option<&str>| Served {
        stable: stable.map(version),
        canary: canary.map(version),
    };
    rows.iter()
        .map(|(component, stable, canary)| (name(component), served(*stable, *canary)))
        .collect()
}

fn sentences(unmet: &[Unmet]) -> Vec<String> {
    unmet.iter().map(ToString::to_string).collect()
}

#[test]
fn constraints_are_met_as_cargo_reads_them() {
    for (constraint, version_text, is_met) in [
        ("^1.4", "1.4", true),
        ("1.4", "1.9.3", true),
        ("^1.4", "2.0.0", false),
        (">=1.4, <3", "2.9", true),
        ("~1.4", "1.5.0", false),
        ("=1.4.2", "1.4.2", true),
        ("*", "0.0.1", true),
        ("*", "1.0.0-rc.1", false),
        (">=1.0.0-rc.1", "1.0.0-rc.2", true),
        (">=1.0.0-rc.1", "1.1.0-rc.2", false),
    ] {
        let parsed: Constraint = constraint.parse().unwrap();
        assert_eq!(parsed.is_met_by(&version(version_text)), is_met, "{constraint} {version_text}");
    }
}

#[test]
fn constraints_that_no_version_meets_are_refused() {
    for bad in [
        ">2, <1",
        "<0.0.0",
        "=1.0.0, =1.0.1",
        "^1, ^2",
        ">1.0.0, <1.0.1",
        "~1.2, >=1.3",
        ">=1.0.0, <1.0.0-rc.1",
    ] {
        assert_eq!(bad.parse::<Constraint>(), Err(MalformedConstraint::Unsatisfiable), "{bad}");
    }
    for bad in ["", "latest", ">>1", "^1.0.0.0", "1.0 2.0"] {
        assert!(matches!(bad.parse::<Constraint>(), Err(MalformedConstraint::Form(_))), "{bad}");
    }
    assert_eq!("1".repeat(201).parse::<Constraint>(), Err(MalformedConstraint::Long));
    for good in [
        ">1.0.0, <1.0.2",
        ">1, <3",
        ">=1.0.0-rc.1, <1.0.0",
        ">1.0.0-rc.1, <1.0.0-rc.2",
        "<1.0.0-alpha",
        "<0.0.0-b",
        "=18446744073709551615.0.0",
    ] {
        assert!(good.parse::<Constraint>().is_ok(), "{good}");
    }
}

#[test]
fn a_component_needs_neither_itself_nor_the_impossible_nor_one_thing_twice() {
    let a = name("a");
    let ok = [need("b", None, ">=1"), need("b", Some("prod"), "<3"), need("c", None, "*")];
    assert_eq!(check(&a, &ok), Ok(()));
    assert_eq!(check(&a, &[need("a", Some("prod"), "*")]), Err(BadDependencies::Itself));
    let twice = [need("b", None, "1"), need("b", None, "2")];
    assert_eq!(check(&a, &twice), Err(BadDependencies::Twice { on: name("b") }));
    let impossible = [need("b", None, ">=2"), need("b", Some("prod"), "<2")];
    assert_eq!(check(&a, &impossible), Err(BadDependencies::Unsatisfiable { on: name("b") }));
    let apart = [need("b", Some("staging"), ">=2"), need("b", Some("prod"), "<2")];
    assert_eq!(check(&a, &apart), Ok(()));
}

#[test]
fn a_cycle_is_named_in_order_and_is_one_only_within_an_environment() {
    let edges = [edge("a", "b", None, "*"), edge("b", "c", Some("prod"), "*"), edge("c", "a", None, "*")];
    let cycle = refuse_cycle(&name("c"), &edges).unwrap_err();
    assert_eq!(cycle.environment, Some(place("prod")));
    assert_eq!(cycle.to_string(), "c would depend on itself: c -> a -> b -> c");
    let apart = [edge("a", "b", Some("staging"), "*"), edge("b", "a", Some("prod"), "*")];
    assert_eq!(refuse_cycle(&name("a"), &apart), Ok(()));
    let elsewhere = [edge("a", "b", None, "*"), edge("b", "b2", None, "*"), edge("c", "a", None, "*")];
    assert_eq!(refuse_cycle(&name("c"), &elsewhere), Ok(()));
}

#[test]
fn what_is_needed_must_be_stable_and_its_canary_must_do_too() {
    let edges = [edge("shop", "pay", None, "^2"), edge("shop", "pay", Some("staging"), "^3")];
    let held = |rows: &[(&str, Option<&str>, Option<&str>)]| {
        sentences(&hold(&name("shop"), &version("5.0"), &edges, &place("prod"), &serving(rows)))
    };
    assert_eq!(held(&[]), ["shop needs pay ^2, and pay is not there"]);
    assert_eq!(held(&[("pay", Some("1.9"), Some("2.0"))]), ["shop needs pay ^2, and pay is 1.9"]);
    assert_eq!(held(&[("pay", Some("2.0"), Some("3.0"))]), ["shop needs pay ^2, and pay is 3.0"]);
    assert_eq!(held(&[("pay", Some("2.0"), Some("2.1"))]), [""; 0]);
}

#[test]
fn nothing_is_exposed_that_breaks_whoever_depends_on_it_and_is_exposed() {
    let edges = [edge("shop", "pay", None, "^1")];
    let held = |rows: &[(&str, Option<&str>, Option<&str>)]| {
        sentences(&hold(&name("pay"), &version("2.0"), &edges, &place("prod"), &serving(rows)))
    };
    assert_eq!(held(&[("pay", Some("1.0"), None)]), [""; 0]);
    for shop in [("shop", Some("1.0"), None), ("shop", None, Some("1.0"))] {
        assert_eq!(held(&[("pay", Some("1.0"), None), shop]), ["shop needs pay ^1, and pay is 2.0"]);
    }
}

#[test]
fn a_plan_goes_in_waves_and_names_what_would_not_fit() {
    let edges = [
        edge("shop", "pay", None, "^2"),
        edge("pay", "ledger", None, ">=1"),
        edge("desk", "ledger", None, "^1"),
        edge("app", "pay", Some("staging"), "^9"),
    ];
    let planned: BTreeMap<_, _> = [("shop", "4.0"), ("pay", "2.0"), ("ledger", "2.0")]
        .map(|(component, text)| (name(component), version(text)))
        .into();
    let components = planned.keys().cloned().collect();
    let waves = waves(&components, &edges, &place("prod"));
    assert_eq!(waves, [[name("ledger")], [name("pay")], [name("shop")]]);
    let found = |rows: &[(&str, Option<&str>, Option<&str>)]| {
        sentences(&conflicts(&planned, &edges, &place("prod"), &serving(rows)))
    };
    assert_eq!(found(&[("app", Some("1.0"), None), ("pay", Some("1.0"), None)]), [""; 0]);
    assert_eq!(
        found(&[("desk", Some("1.0"), None), ("pay", Some("1.0"), None)]),
        ["desk needs ledger ^1, and ledger is 2.0"]
    );
}

#[test]
fn dependants_go_back_first_and_those_that_cannot_are_named() {
    let edges = [
        edge("pay", "ledger", None, "^2"),
        edge("shop", "pay", None, "^2"),
        edge("app", "shop", None, "^2"),
        edge("desk", "ledger", None, "^2"),
        edge("mail", "ledger", None, "*"),
    ];
    let serving = serving(&[
        ("ledger", Some("1.0"), Some("2.0")),
        ("pay", None, Some("2.0")),
        ("shop", None, Some("2.0")),
        ("desk", Some("3.0"), None),
        ("mail", Some("1.0"), Some("1.1")),
    ]);
    let ledger = (&name("ledger"), Some(&version("1.0")));
    let cascade = cascade(ledger, &edges, &place("prod"), &serving, &BTreeMap::new());
    assert_eq!(cascade.before, [name("shop"), name("pay")]);
    assert_eq!(sentences(&cascade.unmet), ["desk needs ledger ^2, and ledger is 1.0"]);
}

#[test]
fn what_came_to_everyone_on_the_ground_that_goes_goes_back_to_what_was_there_before() {
    let edges = [
        edge("pay", "ledger", None, "^2"),
        edge("shop", "pay", None, "^2"),
        edge("desk", "ledger", None, "^2"),
        edge("mail", "ledger", None, "*"),
    ];
    let serving = serving(&[
        ("ledger", Some("2.0"), None),
        ("pay", Some("2.0"), None),
        ("shop", Some("2.0"), Some("2.1")),
        ("desk", Some("3.0"), None),
        ("mail", Some("1.0"), None),
    ]);
    let came = |number, before: &str| Came {
        rollout: RolloutId::from_uuid(uuid::Uuid::from_u128(number)),
        before: version(before),
    };
    let since = BTreeMap::from([
        (name("pay"), came(1, "1.0")),
        (name("shop"), came(2, "1.0")),
        (name("mail"), came(3, "0.9")),
    ]);
    let ledger = (&name("ledger"), Some(&version("1.0")));
    let cascade = cascade(ledger, &edges, &place("prod"), &serving, &since);
    assert_eq!(cascade.before, [name("shop"), name("pay")]);
    let succeeded =
        [(name("pay"), since[&name("pay")].rollout), (name("shop"), since[&name("shop")].rollout)];
    assert_eq!(cascade.succeeded, BTreeMap::from(succeeded));
    let unmet = [
        "desk needs ledger ^2, and ledger is 1.0",
        "pay needs ledger ^2, and ledger is 1.0",
        "shop needs pay ^2, and pay is 1.0",
    ];
    let mut found = sentences(&cascade.unmet);
    found.sort();
    assert_eq!(found, unmet);
}

/// Edges among eight components, any of which may lead anywhere, here or there.
fn graphs() -> impl Strategy<Value = Vec<Edge>> {
    let parts = (0_usize..8, 0_usize..8, proptest::option::of(prop_oneof![Just("prod"), Just("staging")]));
    let edges = parts
        .prop_map(|(from, to, environment)| edge(&format!("c{from}"), &format!("c{to}"), environment, "*"));
    proptest::collection::vec(edges, 0..16)
}

fn reaches(
    edges: &[Edge],
    environment: Option<&EnvironmentId>,
    from: &ComponentId,
    to: &ComponentId,
) -> bool {
    let mut seen: Vec<&ComponentId> = vec![from];
    let mut n = 0;
    while n < seen.len() {
        let at = seen[n];
        for edge in edges
            .iter()
            .filter(|edge| edge.component == *at && edge.needs.holds_in(environment))
        {
            if edge.needs.on == *to {
                return true;
            }
            if !seen.contains(&&edge.needs.on) {
                seen.push(&edge.needs.on);
            }
        }
        n += 1;
    }
    false
}

proptest! {
    #[test]
    fn every_cycle_is_found_and_is_one(edges in graphs()) {
        let start = name("c0");
        let places = [None, Some(place("prod")), Some(place("staging"))];
        let is_cyclic = places.iter().any(|place| reaches(&edges, place.as_ref(), &start, &start));
        match refuse_cycle(&start, &edges) {
            Ok(()) => prop_assert!(!is_cyclic),
            Err(Cycle { path, environment }) => {
                prop_assert_eq!((path.first(), path.last()), (Some(&start), Some(&start)));
                for pair in path.windows(2) {
                    let is_there = edges.iter().any(|edge| {
                        edge.component == pair[0]
                            && edge.needs.on == pair[1]
                            && edge.needs.holds_in(environment.as_ref())
                    });
                    prop_assert!(is_there, "{path:?}");
                }
            }
        }
    }

    #[test]
    fn waves_hold_each_once_and_after_what_it_needs(edges in graphs()) {
        let prod = place("prod");
        let all: BTreeSet<_> = (0..8).map(|n| name(&format!("c{n}"))).collect();
        let is_cyclic = all.iter().any(|one| reaches(&edges, Some(&prod), one, one));
        prop_assume!(!is_cyclic);
        let waves = waves(&all, &edges, &prod);
        let wave_of = |one: &ComponentId| waves.iter().position(|wave| wave.contains(one)).unwrap();
        prop_assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), all.len());
        for edge in edges.iter().filter(|edge| edge.needs.holds_in(Some(&prod))) {
            prop_assert!(wave_of(&edge.needs.on) < wave_of(&edge.component));
        }
    }

    #[test]
    fn what_some_version_meets_is_taken(
        bounds in proptest::collection::vec(
            ("(<|<=|>|>=|=|~|\\^)", 0_u64..3, 0_u64..3, 0_u64..3, "(-[ab](\\.[01])?)?"), 1..4,
        ),
        at in (0_u64..4, 0_u64..4, 0_u64..4, "(-[ab](\\.[01])?)?"),
    ) {
        let comparators = bounds.iter().map(|(op, major, minor, patch, pre)| format!("{op}{major}.{minor}.{patch}{pre}"));
        let text = comparators.collect::<Vec<_>>().join(", ");
        let req = VersionReq::parse(&text).unwrap();
        let candidate = format!("{}.{}.{}{}", at.0, at.1, at.2, at.3).parse().unwrap();
        let is_met = req.matches(&candidate);
        prop_assert!(!is_met || text.parse::<Constraint>().is_ok(), "{text} takes {candidate}");
    }
}
