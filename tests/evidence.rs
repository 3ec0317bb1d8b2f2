//! Evidence: bound to one artifact, said by whom it says, and changed by nothing but its revocation.

use chrono::TimeDelta;
use futures_util::future::join_all;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::{EvidenceKind, EvidenceOutcome};
use shared::time::to_proto;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{create_component, request_id};
use crate::harness::{Answer as _, Caller, Stack, Watch, person, reason_of, workload};

/// The artifact of this number.
pub(crate) fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

/// What tests said of an artifact of `storefront`.
pub(crate) fn test_report(artifact: u8, suite: &str, has_passed: bool) -> pb::Evidence {
    let outcome = if has_passed { EvidenceOutcome::Passed } else { EvidenceOutcome::Failed };
    pb::Evidence {
        component: "storefront".to_owned(),
        artifact_digest: digest(artifact),
        kind: EvidenceKind::TestReport.into(),
        suite: suite.to_owned(),
        outcome: outcome.into(),
        ..Default::default()
    }
}

pub(crate) async fn submit_evidence(caller: &Caller, evidence: pb::Evidence) -> pb::Evidence {
    caller
        .evidence()
        .submit_evidence(submission(evidence))
        .await
        .answer()
        .evidence
        .unwrap()
}

fn submission(evidence: pb::Evidence) -> pb::SubmitEvidenceRequest {
    pb::SubmitEvidenceRequest { evidence: Some(evidence), request_id: String::new() }
}

fn revocation(evidence: &pb::Evidence) -> pb::RevokeEvidenceRequest {
    let (evidence_id, reason) = (evidence.evidence_id.clone(), "of another commit".to_owned());
    pb::RevokeEvidenceRequest { evidence_id, reason, ..Default::default() }
}

fn review(reviewer: &str, authors: &[&str]) -> pb::Evidence {
    let authors = authors.iter().map(ToString::to_string).collect();
    pb::Evidence {
        kind: EvidenceKind::Review.into(),
        review: Some(pb::Review { reviewer: reviewer.to_owned(), authors }),
        ..test_report(1, "", true)
    }
}

fn statement(media_type: &str, bytes: usize) -> pb::EvidenceStatement {
    let (media_type, content) = (media_type.to_owned(), vec![7; bytes]);
    pb::EvidenceStatement { media_type, content, verified: true }
}

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let pipeline = stack.caller(&workload("pipeline"));
    create_storefront(&pipeline).await;
    (stack, pipeline)
}

async fn create_storefront(caller: &Caller) {
    let component = pb::Component { component: "storefront".to_owned(), ..Default::default() };
    create_component(caller, component).await;
}

async fn get(caller: &Caller, evidence: &pb::Evidence) -> pb::Evidence {
    let request = pb::GetEvidenceRequest { evidence_id: evidence.evidence_id.clone() };
    caller.evidence().get_evidence(request).await.answer().evidence.unwrap()
}

async fn list(caller: &Caller, request: pb::ListEvidenceRequest) -> Vec<pb::Evidence> {
    caller.evidence().list_evidence(request).await.answer().evidence
}

/// Suite and outcome of what counts for artifact 1.
async fn counting(caller: &Caller) -> Vec<(String, EvidenceOutcome)> {
    let request =
        pb::ListEvidenceRequest { artifact_digest: digest(1), counting_only: true, ..Default::default() };
    let listed = list(caller, request).await;
    listed
        .into_iter()
        .map(|evidence| (evidence.suite.clone(), evidence.outcome()))
        .collect()
}

#[tokio::test]
async fn what_is_handed_in_is_kept_with_who_did() {
    let (stack, pipeline) = start().await;
    let mut watch = Watch::open(pipeline.release_events()).await;
    let produced = stack.now() - TimeDelta::hours(1);
    let sent = pb::Evidence {
        counts: Some(pb::EvidenceCounts { passed: 812, failed: 0, skipped: 3 }),
        url: "https://ci.example/runs/7".to_owned(),
        summary: "all green\n3 skipped".to_owned(),
        statement: Some(statement("application/vnd.in-toto+json", 65_536)),
        produce_time: Some(to_proto(produced)),
        evidence_id: "not mine to say".to_owned(),
        producer: "nor this".to_owned(),
        ..test_report(1, "unit", true)
    };
    let kept = submit_evidence(&pipeline, sent.clone()).await;
    let unchecked =
        pb::EvidenceStatement { content: vec![], verified: false, ..sent.statement.clone().unwrap() };
    let expected = pb::Evidence {
        evidence_id: kept.evidence_id.clone(),
        producer: "tandem-local|pipeline".to_owned(),
        create_time: Some(to_proto(stack.now())),
        statement: Some(unchecked.clone()),
        ..sent
    };
    assert!(kept.evidence_id.starts_with("evd_"));
    assert_eq!(kept, expected);
    assert_eq!(list(&pipeline, pb::ListEvidenceRequest::default()).await, std::slice::from_ref(&kept));
    let whole = pb::EvidenceStatement { content: vec![7; 65_536], ..unchecked };
    assert_eq!(get(&pipeline, &kept).await, pb::Evidence { statement: Some(whole), ..expected });
    let event = watch.next_of("evidence.submitted").await;
    assert_eq!(event.subject, kept.evidence_id);
    let told = [
        ("artifact_digest", Kind::StringValue(digest(1))),
        ("component", Kind::StringValue("storefront".to_owned())),
        ("evidence_id", Kind::StringValue(kept.evidence_id)),
        ("kind", Kind::StringValue("TEST_REPORT".to_owned())),
        ("passed", Kind::BoolValue(true)),
        ("suite", Kind::StringValue("unit".to_owned())),
    ];
    let told = told.map(|(name, kind)| (name.to_owned(), prost_types::Value { kind: Some(kind) }));
    assert_eq!(event.data.unwrap().fields, told.into());
}

#[tokio::test]
async fn what_is_malformed_or_too_long_is_refused_by_its_field() {
    let (_stack, pipeline) = start().await;
    let good = || test_report(1, "unit", true);
    let counts = |passed, failed, skipped| Some(pb::EvidenceCounts { passed, failed, skipped });
    let produced = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let many: Vec<_> = (0..51).map(|n| format!("dev-{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let with_statement = |statement| pb::Evidence { statement: Some(statement), ..good() };
    for (field, evidence) in [
        ("evidence.component", pb::Evidence { component: String::new(), ..good() }),
        ("evidence.artifact_digest", pb::Evidence { artifact_digest: String::new(), ..good() }),
        ("evidence.artifact_digest", pb::Evidence { artifact_digest: digest(1).to_uppercase(), ..good() }),
        (
            "evidence.artifact_digest",
            pb::Evidence { artifact_digest: digest(1).replace("256", "512"), ..good() },
        ),
        ("evidence.kind", pb::Evidence { kind: 0, ..good() }),
        ("evidence.kind", pb::Evidence { kind: 99, ..good() }),
        ("evidence.outcome", pb::Evidence { outcome: 0, ..good() }),
        ("evidence.outcome", pb::Evidence { outcome: 3, ..good() }),
        ("evidence.suite", test_report(1, "", true)),
        ("evidence.suite", test_report(1, &"s".repeat(101), true)),
        ("evidence.suite", test_report(1, "unit\n", true)),
        ("evidence.suite", pb::Evidence { kind: EvidenceKind::Scan.into(), ..test_report(1, "", true) }),
        ("evidence.counts.passed", pb::Evidence { counts: counts(-1, 0, 0), ..good() }),
        ("evidence.counts.skipped", pb::Evidence { counts: counts(0, 0, i32::MAX), ..good() }),
        ("evidence.counts.failed", pb::Evidence { counts: counts(9, 1, 0), ..good() }),
        ("evidence.url", pb::Evidence { url: "javascript:alert(1)".to_owned(), ..good() }),
        ("evidence.url", pb::Evidence { url: format!("https://{}", "u".repeat(1993)), ..good() }),
        ("evidence.summary", pb::Evidence { summary: "s".repeat(2001), ..good() }),
        ("evidence.review", pb::Evidence { review: review("a", &["b"]).review, ..good() }),
        ("evidence.review", pb::Evidence { review: None, ..review("a", &["b"]) }),
        ("evidence.review.reviewer", review("", &["b"])),
        ("evidence.review.reviewer", review(&"r".repeat(201), &["b"])),
        ("evidence.review.reviewer", review("a", &["b", "a"])),
        ("evidence.review.authors", review("a", &[])),
        ("evidence.review.authors", review("a", &many)),
        ("evidence.review.authors[1]", review("a", &["b", ""])),
        ("evidence.statement.media_type", with_statement(statement("", 1))),
        ("evidence.statement.media_type", with_statement(statement(&"m".repeat(101), 1))),
        ("evidence.statement.content", with_statement(statement("application/json", 0))),
        ("evidence.statement.content", with_statement(statement("application/json", 65_537))),
        ("evidence.produce_time", pb::Evidence { produce_time: produced(0, -1), ..good() }),
        ("evidence.produce_time", pb::Evidence { produce_time: produced(i64::MAX, 0), ..good() }),
    ] {
        let refused = pipeline.evidence().submit_evidence(submission(evidence)).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["field"], field);
    }
    let nothing = pb::SubmitEvidenceRequest::default();
    let refused = pipeline.evidence().submit_evidence(nothing).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    let elsewhere = pb::Evidence { component: "ledger".to_owned(), ..good() };
    let refused = pipeline.evidence().submit_evidence(submission(elsewhere)).await;
    refused.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    assert_eq!(list(&pipeline, pb::ListEvidenceRequest::default()).await, []);
}

#[tokio::test]
async fn nothing_is_produced_in_the_future() {
    let (stack, pipeline) = start().await;
    let produced_in = |delta: TimeDelta| pb::Evidence {
        produce_time: Some(to_proto(stack.now() + delta)),
        ..test_report(1, "unit", true)
    };
    let refused = pipeline
        .evidence()
        .submit_evidence(submission(produced_in(TimeDelta::seconds(61))))
        .await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    // A clock that is a little ahead of ours.
    let kept = submit_evidence(&pipeline, produced_in(TimeDelta::seconds(60))).await;
    assert_eq!(kept.produce_time, Some(to_proto(stack.now())));
}

#[tokio::test]
async fn the_last_report_of_a_suite_counts_and_a_revoked_one_does_not() {
    use EvidenceOutcome::{Failed, Passed};
    let (stack, pipeline) = start().await;
    let unit = |outcome| vec![("unit".to_owned(), outcome)];
    submit_evidence(&pipeline, test_report(1, "unit", false)).await;
    assert_eq!(counting(&pipeline).await, unit(Failed));
    // Within one instant the one that comes last.
    let fixed = submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    assert_eq!(counting(&pipeline).await, unit(Passed));
    // What was found before that, and only came late, changes nothing.
    let produce_time = Some(to_proto(stack.now() - TimeDelta::seconds(1)));
    submit_evidence(&pipeline, pb::Evidence { produce_time, ..test_report(1, "unit", false) }).await;
    assert_eq!(counting(&pipeline).await, unit(Passed));
    // Nor does what is about another artifact, whoever's it is.
    submit_evidence(&pipeline, test_report(2, "unit", false)).await;
    assert_eq!(counting(&pipeline).await, unit(Passed));
    submit_evidence(&pipeline, test_report(1, "e2e", true)).await;
    assert_eq!(counting(&pipeline).await, [unit_of("e2e", Passed), unit_of("unit", Passed)]);
    pipeline.evidence().revoke_evidence(revocation(&fixed)).await.answer();
    assert_eq!(counting(&pipeline).await, [unit_of("e2e", Passed), unit_of("unit", Failed)]);
}

fn unit_of(suite: &str, outcome: EvidenceOutcome) -> (String, EvidenceOutcome) {
    (suite.to_owned(), outcome)
}

#[tokio::test]
async fn evidence_is_revoked_once_and_says_why() {
    let (stack, pipeline) = start().await;
    let kept = submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let boss = stack.caller(&person("boss"));
    let mut watch = Watch::open(boss.release_events()).await;
    let wordless = pb::RevokeEvidenceRequest { reason: String::new(), ..revocation(&kept) };
    let refused = boss.evidence().revoke_evidence(wordless).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    stack.advance(TimeDelta::minutes(1));
    let revoked = boss
        .evidence()
        .revoke_evidence(revocation(&kept))
        .await
        .answer()
        .evidence
        .unwrap();
    let expected = pb::EvidenceRevocation {
        revoker: "tandem-local|boss".to_owned(),
        reason: "of another commit".to_owned(),
        revoke_time: Some(to_proto(stack.now())),
    };
    assert_eq!(revoked, pb::Evidence { revocation: Some(expected), ..kept.clone() });
    assert_eq!(get(&boss, &kept).await, revoked);
    let event = watch.next_of("evidence.revoked").await;
    assert_eq!((&event.subject, event.principal.as_str()), (&kept.evidence_id, "tandem-local|boss"));
    let again = pipeline.evidence().revoke_evidence(revocation(&kept)).await;
    again.refused(Code::FailedPrecondition, "EVIDENCE_REVOKED");
    let unknown = pb::Evidence { evidence_id: kept.evidence_id.replace("evd_0", "evd_f"), ..kept };
    let refused = boss.evidence().revoke_evidence(revocation(&unknown)).await;
    refused.refused(Code::NotFound, "EVIDENCE_NOT_FOUND");
}

#[tokio::test]
async fn of_two_who_revoke_at_once_one_does() {
    let (stack, pipeline) = start().await;
    let kept = submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let people: Vec<_> = ["ann", "bob", "cat", "dan"].map(|sub| stack.caller(&person(sub))).into();
    let calls = people
        .iter()
        .map(async |caller| caller.evidence().revoke_evidence(revocation(&kept)).await);
    let answers = join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|status| reason_of(status) == "EVIDENCE_REVOKED"), "{refused:?}");
    let told = "select count(*) from release.events where kind = 'evidence.revoked'";
    assert_eq!(stack.database.count(told).await, 1);
}

#[tokio::test]
async fn a_person_reports_their_own_reviews_and_a_workload_anybodys() {
    let (stack, bridge) = start().await;
    let ann = stack.caller(&person("ann"));
    let of_others = ann
        .evidence()
        .submit_evidence(submission(review("tandem-local|bob", &["x"])))
        .await;
    of_others.refused(Code::PermissionDenied, "EVIDENCE_REVIEW_NOT_OWN");
    let own_work = ann
        .evidence()
        .submit_evidence(submission(review("", &["tandem-local|ann"])))
        .await;
    own_work.refused(Code::InvalidArgument, "FIELD_INVALID");
    for reviewer in ["", "tandem-local|ann"] {
        let kept = submit_evidence(&ann, review(reviewer, &["tandem-local|bob"])).await;
        let expected = review("tandem-local|ann", &["tandem-local|bob"]).review;
        assert_eq!(kept.review, expected);
    }
    let kept = submit_evidence(&bridge, review("bob@example.com", &["ann@example.com"])).await;
    assert_eq!(kept.producer, "tandem-local|pipeline");
    assert_eq!(kept.review.unwrap().reviewer, "bob@example.com");
}

#[tokio::test]
async fn another_tenants_evidence_is_not_there() {
    let (stack, pipeline) = start().await;
    let kept = submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("pipeline") });
    let request = pb::GetEvidenceRequest { evidence_id: kept.evidence_id.clone() };
    acme.evidence()
        .get_evidence(request)
        .await
        .refused(Code::NotFound, "EVIDENCE_NOT_FOUND");
    let refused = acme.evidence().revoke_evidence(revocation(&kept)).await;
    refused.refused(Code::NotFound, "EVIDENCE_NOT_FOUND");
    let refused = acme.evidence().submit_evidence(submission(test_report(1, "unit", false))).await;
    refused.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    // The same artifact, which is theirs to judge for themselves.
    create_storefront(&acme).await;
    assert_eq!(counting(&acme).await, []);
    submit_evidence(&acme, test_report(1, "unit", false)).await;
    assert_eq!(counting(&pipeline).await, [unit_of("unit", EvidenceOutcome::Passed)]);
}

#[tokio::test]
async fn who_may_read_may_not_write() {
    let (stack, pipeline) = start().await;
    let kept = submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let reader = stack.caller(&Grant { scope: "evidence.read".to_owned(), ..workload("reader") });
    assert_eq!(get(&reader, &kept).await, kept);
    let refused = reader
        .evidence()
        .submit_evidence(submission(test_report(1, "unit", true)))
        .await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let refused = reader.evidence().revoke_evidence(revocation(&kept)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

#[tokio::test]
async fn a_repetition_adds_and_revokes_nothing() {
    let (_stack, pipeline) = start().await;
    let request =
        pb::SubmitEvidenceRequest { request_id: request_id(1), ..submission(test_report(1, "unit", true)) };
    let calls = (0..3).map(async |_| pipeline.evidence().submit_evidence(request.clone()).await);
    let answers: Vec<_> = join_all(calls)
        .await
        .into_iter()
        .map(|answer| answer.answer().evidence)
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let kept = answers[0].clone().unwrap();
    assert_eq!(list(&pipeline, pb::ListEvidenceRequest::default()).await, std::slice::from_ref(&kept));
    let other = pb::SubmitEvidenceRequest { evidence: Some(test_report(1, "unit", false)), ..request };
    let refused = pipeline.evidence().submit_evidence(other).await;
    refused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let request = pb::RevokeEvidenceRequest { request_id: request_id(2), ..revocation(&kept) };
    let revoked = pipeline.evidence().revoke_evidence(request.clone()).await.answer();
    assert_eq!(pipeline.evidence().revoke_evidence(request).await.answer(), revoked);
}

#[tokio::test]
async fn lists_are_narrowed_and_paged() {
    let (_stack, pipeline) = start().await;
    create_component(&pipeline, pb::Component { component: "ledger".to_owned(), ..Default::default() }).await;
    for suite in ["a", "b", "c"] {
        submit_evidence(&pipeline, test_report(1, suite, true)).await;
    }
    submit_evidence(&pipeline, review("ann", &["bob"])).await;
    submit_evidence(&pipeline, test_report(2, "d", true)).await;
    let ledger = pb::Evidence { component: "ledger".to_owned(), ..test_report(1, "e", true) };
    submit_evidence(&pipeline, ledger).await;
    let suites = async |request| {
        let found = list(&pipeline, request).await;
        found.into_iter().map(|evidence| evidence.suite).collect::<Vec<_>>()
    };
    let all = pb::ListEvidenceRequest::default();
    assert_eq!(suites(all.clone()).await, ["e", "d", "", "c", "b", "a"]);
    let of_ledger = pb::ListEvidenceRequest { component: "ledger".to_owned(), ..all.clone() };
    assert_eq!(suites(of_ledger).await, ["e"]);
    let of_first = pb::ListEvidenceRequest { artifact_digest: digest(1), ..all.clone() };
    assert_eq!(suites(of_first).await, ["e", "", "c", "b", "a"]);
    let reviews = pb::ListEvidenceRequest { kinds: vec![EvidenceKind::Review.into()], ..all.clone() };
    assert_eq!(suites(reviews).await, [""]);

    let first = pb::ListEvidenceRequest { component: "storefront".to_owned(), page_size: 2, ..all };
    let page = pipeline.evidence().list_evidence(first.clone()).await.answer();
    submit_evidence(&pipeline, test_report(1, "f", true)).await;
    let second = pb::ListEvidenceRequest { page_token: page.next_page_token.clone(), ..first.clone() };
    assert_eq!(suites(second.clone()).await, ["c", "b"]);
    let other = pb::ListEvidenceRequest { counting_only: true, ..second };
    let refused = pipeline.evidence().list_evidence(other).await;
    refused.refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    for bad in [
        pb::ListEvidenceRequest { artifact_digest: "sha256:1".to_owned(), ..first.clone() },
        pb::ListEvidenceRequest { kinds: vec![0], ..first.clone() },
        pb::ListEvidenceRequest { kinds: vec![1; 33], ..first.clone() },
        pb::ListEvidenceRequest { page_size: -1, ..first },
    ] {
        let refused = pipeline.evidence().list_evidence(bad).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}

#[tokio::test]
async fn an_artifact_has_a_thousand_reports_at_most() {
    let (stack, pipeline) = start().await;
    submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let copy = "insert into release.evidence
            (tenant_id, evidence_id, component, artifact_digest, kind, suite, passed, count_passed, count_failed,
            count_skipped, url, summary, producer, produced_at, submitted_at)
        select tenant_id, gen_random_uuid(), component, artifact_digest, kind, suite, passed, count_passed,
            count_failed, count_skipped, url, summary, producer, produced_at, submitted_at
        from release.evidence, generate_series(1, 998)";
    let mut db = stack.database.connect().await;
    sqlx::query(copy).execute(&mut db).await.unwrap();
    submit_evidence(&pipeline, test_report(1, "unit", true)).await;
    let refused = pipeline
        .evidence()
        .submit_evidence(submission(test_report(1, "unit", true)))
        .await;
    let status = refused.refused(Code::ResourceExhausted, "EVIDENCE_LIMIT");
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["max"], "1000");
    submit_evidence(&pipeline, test_report(2, "unit", true)).await;
    assert_eq!(counting(&pipeline).await.len(), 1);
}
