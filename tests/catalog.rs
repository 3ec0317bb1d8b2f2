//! The catalogue's settings that decide what releases need, and who is who.

use shared::issuer::Grant;
use shared::pb::release as pb;
use tonic::Code;

use crate::harness::shop::{create_catalog, create_component, seconds, set_alias};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, reason_of, workload};

const ADA: &str = "https://id.example|ada";
const BOB: &str = "https://id.example|bob";

fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&workload("platform"));
    (stack, caller)
}

fn component() -> pb::Component {
    pb::Component { component: "storefront".to_owned(), ..Default::default() }
}

fn update(component: pb::Component) -> pb::UpdateComponentRequest {
    pb::UpdateComponentRequest { component: Some(component), ..Default::default() }
}

fn alias(alias: &str, person: &str) -> pb::SetIdentityAliasRequest {
    let (alias, person) = (alias.to_owned(), person.to_owned());
    let identity_alias = Some(pb::IdentityAlias { alias, person, create_time: None });
    pb::SetIdentityAliasRequest { identity_alias, ..Default::default() }
}

async fn aliases(caller: &Caller, person: &str) -> Vec<(String, String)> {
    let request = pb::ListIdentityAliasesRequest { person: person.to_owned(), ..Default::default() };
    let listed = caller.catalog().list_identity_aliases(request).await.answer().identity_aliases;
    listed.into_iter().map(|it| (it.alias, it.person)).collect()
}

#[tokio::test]
async fn who_says_nothing_gets_the_stricter_settings_and_keeps_them() {
    let (_stack, caller) = start();
    let created = create_component(&caller, component()).await;
    assert_eq!(
        (created.tier(), created.kind()),
        (pb::ComponentTier::ComponentTier2, pb::ComponentKind::Service)
    );
    let strict = pb::Component {
        tier: pb::ComponentTier::ComponentTier1.into(),
        kind: pb::ComponentKind::Schema.into(),
        business_owner_groups: vec!["treasury".to_owned()],
        data_scopes: vec![
            pb::DataScope::Personal.into(),
            pb::DataScope::Card.into(),
            pb::DataScope::Card.into(),
        ],
        ..component()
    };
    let updated = caller
        .catalog()
        .update_component(update(strict))
        .await
        .answer()
        .component
        .unwrap();
    assert_eq!(updated.data_scopes, [pb::DataScope::Card as i32, pb::DataScope::Personal as i32]);
    assert_eq!(updated.business_owner_groups, ["treasury"]);
    let forgetful = pb::Component { tier: 0, kind: 0, etag: String::new(), ..updated };
    let kept = caller
        .catalog()
        .update_component(update(forgetful))
        .await
        .answer()
        .component
        .unwrap();
    assert_eq!((kept.tier(), kept.kind()), (pb::ComponentTier::ComponentTier1, pb::ComponentKind::Schema));
}

#[tokio::test]
async fn what_releases_need_takes_the_scope_of_policies() {
    let (stack, caller) = start();
    let created = create_component(&caller, component()).await;
    let writer = stack.caller(&Grant { scope: "catalog.write".to_owned(), ..workload("writer") });
    let tier = pb::ComponentTier::ComponentTier4.into();
    for laxer in [
        pb::Component { tier, ..created.clone() },
        pb::Component { data_scopes: vec![pb::DataScope::Ledger.into()], ..created.clone() },
        pb::Component { business_owner_groups: vec!["mates".to_owned()], ..created.clone() },
        pb::Component { kind: pb::ComponentKind::MlModel.into(), ..created.clone() },
    ] {
        let refused = writer.catalog().update_component(update(laxer)).await;
        refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    }
    let renamed = pb::Component { display_name: "Shop".to_owned(), ..created };
    writer.catalog().update_component(update(renamed)).await.answer();
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let (_stack, caller) = start();
    create_catalog(&caller).await;
    let many = (0..17).map(|n| format!("g{n}")).collect();
    for bad in [
        pb::Component { tier: 9, ..component() },
        pb::Component { kind: -1, ..component() },
        pb::Component { data_scopes: vec![0], ..component() },
        pb::Component { business_owner_groups: many, ..component() },
        pb::Component { business_owner_groups: vec![String::new()], ..component() },
    ] {
        let refused = caller.catalog().update_component(update(bad)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let evidence = |kind: &str| pb::EvidenceRequirement { kind: kind.to_owned(), suite: String::new() };
    for bad in [
        pb::EnvironmentRequirements { min_bake: Some(seconds(60)), ..Default::default() },
        pb::EnvironmentRequirements {
            requires_promotion: true,
            min_bake: Some(seconds(-1)),
            ..Default::default()
        },
        pb::EnvironmentRequirements {
            requires_promotion: true,
            min_bake: Some(seconds(30 * 86_400 + 1)),
            ..Default::default()
        },
        pb::EnvironmentRequirements { required_evidence: vec![evidence("GOSSIP")], ..Default::default() },
        pb::EnvironmentRequirements { required_evidence: vec![evidence("SCAN"); 2], ..Default::default() },
    ] {
        let environment = Some(pb::Environment {
            environment: "local".to_owned(),
            requirements: Some(bad),
            ..Default::default()
        });
        let request = pb::UpdateEnvironmentRequest { environment, ..Default::default() };
        let refused = caller.catalog().update_environment(request).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}

#[tokio::test]
async fn an_environment_is_production_until_somebody_who_may_says_otherwise() {
    let (stack, caller) = start();
    create_catalog(&caller).await;
    let request = pb::GetEnvironmentRequest { environment: "local".to_owned() };
    let read = caller.catalog().get_environment(request).await.answer().environment.unwrap();
    assert_eq!((read.is_production, read.region.as_str()), (Some(true), ""));
    let change = |environment: pb::Environment| pb::UpdateEnvironmentRequest {
        environment: Some(environment),
        ..Default::default()
    };
    let lax = pb::Environment { is_production: Some(false), ..read.clone() };
    let writer = stack.caller(&Grant { scope: "catalog.write".to_owned(), ..workload("writer") });
    for laxer in [
        lax.clone(),
        pb::Environment { promotion_order: read.promotion_order + 1, ..read.clone() },
        pb::Environment { region: "eu".to_owned(), ..read.clone() },
    ] {
        let refused = writer.catalog().update_environment(change(laxer)).await;
        refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    }
    let moved =
        pb::Environment { region: "eu".to_owned(), promotion_order: 7, is_production: None, ..read.clone() };
    let moved = caller
        .catalog()
        .update_environment(change(moved))
        .await
        .answer()
        .environment
        .unwrap();
    assert_eq!((moved.region.as_str(), moved.promotion_order, moved.is_production), ("eu", 7, Some(true)));
    let stale = caller.catalog().update_environment(change(lax)).await;
    stale.refused(Code::Aborted, "ETAG_MISMATCH");
    let requirements = pb::EnvironmentRequirements {
        requires_promotion: true,
        min_bake: Some(seconds(3600)),
        required_evidence: vec![
            pb::EvidenceRequirement { kind: "SCAN".to_owned(), suite: String::new() },
            pb::EvidenceRequirement { kind: "TEST_REPORT".to_owned(), suite: "a/b".to_owned() },
        ],
    };
    let full = pb::Environment { requirements: Some(requirements), is_production: Some(false), ..moved };
    let written = caller
        .catalog()
        .update_environment(change(full.clone()))
        .await
        .answer()
        .environment
        .unwrap();
    assert_eq!(pb::Environment { etag: full.etag.clone(), ..written }, full);
    let nowhere = pb::Environment { environment: "nowhere".to_owned(), ..full };
    let refused = caller.catalog().update_environment(change(nowhere)).await;
    refused.refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
}

#[tokio::test]
async fn an_alias_is_one_persons_and_addresses_know_no_case() {
    let (stack, caller) = start();
    let set = set_alias(&caller, "Ada@Example.COM", ADA).await;
    assert_eq!(set.alias, "ada@example.com");
    set_alias(&caller, "AdaL", ADA).await;
    set_alias(&caller, "ada@example.com", BOB).await;
    let all = [("AdaL", ADA), ("ada@example.com", BOB)].map(|(a, p)| (a.to_owned(), p.to_owned()));
    assert_eq!(aliases(&caller, "").await, all);
    assert_eq!(aliases(&caller, ADA).await, all[..1]);
    let names = ["ADA@example.com", "AdaL", "adal", BOB].map(str::to_owned);
    let mut db = stack.database.connect().await;
    let tenant = "shop".parse().unwrap();
    let persons = release_svc::store::identity::persons(&mut db, &tenant, &names).await.unwrap();
    let person = |name: &str| persons[name].as_deref();
    assert_eq!(
        [person("ADA@example.com"), person("AdaL"), person("adal"), person(BOB)],
        [Some(BOB), Some(ADA), None, Some(BOB)]
    );
    let request =
        |alias: &str| pb::DeleteIdentityAliasRequest { alias: alias.to_owned(), ..Default::default() };
    caller
        .catalog()
        .delete_identity_alias(request("ADA@example.com"))
        .await
        .answer();
    let again = caller.catalog().delete_identity_alias(request("ada@example.com")).await;
    again.refused(Code::NotFound, "IDENTITY_ALIAS_NOT_FOUND");
}

#[tokio::test]
async fn no_alias_leads_to_an_alias() {
    let (_stack, caller) = start();
    let set = async |name: &str, person: &str| caller.catalog().set_identity_alias(alias(name, person)).await;
    for (name, person) in [("", ADA), ("ada l", ADA), ("ada", "ada"), ("ada", "|ada"), (ADA, ADA)] {
        set(name, person).await.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    set(BOB, ADA).await.answer();
    let chained = (Code::FailedPrecondition, "IDENTITY_ALIAS_CHAINED");
    set("bob", BOB).await.refused(chained.0, chained.1);
    set(ADA, "https://id.example|carol").await.refused(chained.0, chained.1);
}

#[tokio::test]
async fn of_two_aliases_that_would_chain_one_is_set() {
    let (stack, caller) = start();
    let replica = stack.release_svc(&Options::default());
    let (mut here, mut there) = (caller.catalog(), caller.at_release(&replica).catalog());
    for n in 0..10 {
        let [a, b, c] = ["a", "b", "c"].map(|name| format!("https://id.example|{name}{n}"));
        let (one, two) =
            tokio::join!(here.set_identity_alias(alias(&a, &b)), there.set_identity_alias(alias(&b, &c)));
        let refused: Vec<_> = [one.err(), two.err()].into_iter().flatten().collect();
        assert_eq!(refused.iter().map(reason_of).collect::<Vec<_>>(), ["IDENTITY_ALIAS_CHAINED"], "{n}");
    }
}

#[tokio::test]
async fn events_tell_of_settings_and_keep_addresses_to_themselves() {
    let (_stack, caller) = start();
    let mut watch = Watch::open(caller.release_events()).await;
    set_alias(&caller, "ada@example.com", ADA).await;
    set_alias(&caller, "AdaL", ADA).await;
    create_component(&caller, component()).await;
    let mut told = Vec::new();
    while told.len() < 4 {
        let event = watch.next().await;
        told.push((event.r#type.clone(), format!("{event:?}")));
    }
    let kinds: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    let expected =
        ["identity_alias.set", "identity_alias.set", "approval_policy.created", "component.created"];
    assert_eq!(kinds, expected);
    assert!(told.iter().all(|(_, text)| !text.contains("ada@example.com")), "{told:?}");
    assert!(told[1].1.contains("AdaL") && told[1].1.contains(ADA), "{told:?}");
    assert!(told[3].1.contains("TIER_2"), "{told:?}");
}
