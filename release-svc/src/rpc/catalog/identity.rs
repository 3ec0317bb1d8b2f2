//! Identity aliases: under which other names people commit.

use shared::auth::Caller;
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{optional, parse, required};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use crate::apply;
use crate::domain::identity::{Alias, IdentityAlias, Person};
use crate::rpc::App;
use crate::store;

impl From<&IdentityAlias> for pb::IdentityAlias {
    fn from(alias: &IdentityAlias) -> Self {
        Self {
            alias: alias.alias.as_str().to_owned(),
            person: alias.person.as_str().to_owned(),
            create_time: Some(to_proto(alias.created_at)),
        }
    }
}

fn parse_alias(alias: Option<pb::IdentityAlias>) -> Result<(Alias, Person), Refusal> {
    let pb::IdentityAlias { alias, person, create_time: _ } = required("identity_alias", alias)?;
    let alias: Alias = parse("identity_alias.alias", &alias)?;
    let person: Person = parse("identity_alias.person", &person)?;
    if alias.as_str() == person.as_str() {
        return Err(Refusal::field("identity_alias.alias", "must be another name than the person's own"));
    }
    Ok((alias, person))
}

impl App {
    pub(super) async fn set_identity_alias(
        &self,
        request: Request<pb::SetIdentityAliasRequest>,
    ) -> Result<pb::SetIdentityAliasResponse, Failure> {
        let (call, message) = Call::of(request, "SetIdentityAlias", |message| &mut message.request_id)?;
        let pb::SetIdentityAliasRequest { identity_alias, request_id: _ } = message;
        let (alias, person) = parse_alias(identity_alias)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        store::identity::lock_all(&mut work.tx, tenant).await?;
        let asked = person.as_str().to_owned();
        let persons = store::identity::persons(&mut work.tx, tenant, std::slice::from_ref(&asked)).await?;
        let is_itself = persons.get(&asked).is_some_and(|found| found.as_ref() == Some(&asked));
        if !is_itself || store::identity::has_alias(&mut work.tx, tenant, alias.as_str()).await? {
            let text =
                "an alias leads to a person in one step: the person is an alias, or the alias has some";
            return Err(Refusal::new(Reason::IdentityAliasChained, text).into());
        }
        let alias = IdentityAlias { alias, person, created_at: work.now };
        store::identity::upsert(&mut work.tx, tenant, &alias).await?;
        apply::tell_alias(&mut work.tx, &work.actor, "identity_alias.set", &alias).await?;
        work.answer(pb::SetIdentityAliasResponse { identity_alias: Some((&alias).into()) })
            .await
    }

    pub(super) async fn delete_identity_alias(
        &self,
        request: Request<pb::DeleteIdentityAliasRequest>,
    ) -> Result<pb::DeleteIdentityAliasResponse, Failure> {
        let (call, message) = Call::of(request, "DeleteIdentityAlias", |message| &mut message.request_id)?;
        let pb::DeleteIdentityAliasRequest { alias, request_id: _ } = message;
        let alias: Alias = parse("alias", &alias)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let deleted = store::identity::delete(&mut work.tx, &work.actor.tenant, &alias).await?;
        let deleted = deleted
            .ok_or_else(|| Refusal::new(Reason::IdentityAliasNotFound, "there is no such identity alias"))?;
        apply::tell_alias(&mut work.tx, &work.actor, "identity_alias.deleted", &deleted).await?;
        work.answer(pb::DeleteIdentityAliasResponse {}).await
    }

    pub(super) async fn list_identity_aliases(
        &self,
        request: Request<pb::ListIdentityAliasesRequest>,
    ) -> Result<pb::ListIdentityAliasesResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListIdentityAliasesRequest { person, page_size, page_token } = request.into_inner();
        let list = List { name: "ListIdentityAliases", tenant: &caller.tenant, filter: &person };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let (person, after) = (optional("person", &person)?, after.unwrap_or_default());
        let mut db = self.db.connection().await?;
        let mut rows =
            store::identity::list(&mut db, &caller.tenant, person.as_ref(), &after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.alias.as_str().to_owned())?;
        let identity_aliases = rows.iter().map(Into::into).collect();
        Ok(pb::ListIdentityAliasesResponse { identity_aliases, next_page_token })
    }
}
