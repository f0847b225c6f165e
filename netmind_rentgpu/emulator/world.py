"""What the service's documentation leaves open, as switches: an emulated service can be any of the plausible ones.

Each switch is one open question of `netmind_rentgpu/guide/wire-contract.md`. The first value of each is the default: the
documented one where there is one, else the plainest.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import attrs

__all__ = ["World"]

Token: TypeAlias = Literal["bearer", "bare"]
BadToken: TypeAlias = Literal["403 error", "403 message", "401 detail"]
Limit: TypeAlias = Literal["100", "50", "10", "5", "none"]
OverLimit: TypeAlias = Literal["clamp", "refuse"]
Order: TypeAlias = Literal["ascending", "descending"]
Marker: TypeAlias = Literal["exclusive", "inclusive"]
DeadMarker: TypeAlias = Literal["by value", "empty page", "first page", "404"]
ListLag: TypeAlias = Literal["none", "20 s"]
Stamps: TypeAlias = Literal["zone", "naive", "space", "missing"]
DeleteAnswer: TypeAlias = Literal["object", "null", "empty", "204"]
SecondDelete: TypeAlias = Literal["404", "200", "400", "409"]
SSHForm: TypeAlias = Literal["ssh user@host -p port", "ssh -p port user@host", "host:port", "url", "other text"]
NotYet: TypeAlias = Literal["empty", "null", "absent"]
Services: TypeAlias = Literal["empty", "null", "absent", "url"]
GPUName: TypeAlias = Literal["number", "text"]
OptionalFields: TypeAlias = Literal["there", "null", "absent"]
Numbers: TypeAlias = Literal["integers", "floats"]
Prices: TypeAlias = Literal["text", "number"]
NewFields: TypeAlias = Literal["no", "yes"]
Members: TypeAlias = Literal["usual", "new"]
ValidationErrors: TypeAlias = Literal["pydantic 1", "pydantic 2"]
Names: TypeAlias = Literal["any", "unique"]
LongNames: TypeAlias = Literal["kept", "cut at 24"]
BalanceRefusal: TypeAlias = Literal["400 detail", "403 code", "402 empty"]
StopBilling: TypeAlias = Literal["goes on", "ends"]
RestartPort: TypeAlias = Literal["kept", "changed"]
RestartHostKey: TypeAlias = Literal["kept", "changed"]
Errors: TypeAlias = Literal["json", "html from a gateway"]
AlteredNames: TypeAlias = Literal["no", "upper case", "prefix", "suffix"]
CreateAnswer: TypeAlias = Literal["its own", "another"]
Ids: TypeAlias = Literal["new", "reused"]
DeleteLag: TypeAlias = Literal["none", "20 s", "for ever"]
Deleted: TypeAlias = Literal["gone", "listed"]
OtherAccounts: TypeAlias = Literal["404", "403"]


def _switch(values: Any, *, in_presets: bool = True) -> Any:
    choices = get_args(values)
    metadata = {"values": choices, "in_presets": in_presets}
    return attrs.field(default=choices[0], validator=attrs.validators.in_(choices), metadata=metadata)


@attrs.frozen(kw_only=True)
class World:
    """How an emulated service behaves where the documentation is silent.

    Attributes:
        token: how the API token stands in the `Authorization` header.
        bad_token: the answer to a wrong one.
        limit, over_limit: the largest page, and what becomes of a request for a larger one.
        order, marker, dead_marker: how lists are sorted; whether the marker's own item is listed again; what a marker leads
            to whose item was deleted.
        list_lag: how long a new container is missing from the list.
        stamps: the form of `created_at`.
        delete_answer, second_delete: what a delete answers, and what the next one does.
        ssh, ssh_not_yet, services: the form of those fields; of `ssh` before a container is up.
        gpu_name: what stands in a container's field of that name.
        optional_fields: the fields that a renter can do without.
        numbers, prices, new_fields, members: numbers for integers, for prices; fields and members nobody documented.
        validation_errors: the form of a 422; the second repeats the rejected value.
        names, long_names: of containers.
        balance_refusal: the answer to a create that the balance does not allow.
        stop_billing: whether a stop ends the bill.
        restart_port, restart_host_key: whether a restart keeps them.
        errors: whether errors other than 422 come from the service or from a gateway before it.
        altered_names: how the service alters a container's name. No preset changes this switch, nor those that follow.
        create_answer: which container a create's answer shows, where there is another.
        ids: whether the id of a container that is gone is given again.
        delete_lag: how long after its answer a delete takes effect; until then the container is shown, and costs.
        deleted: whether the service still shows a deleted container, which costs nothing any more.
        other_accounts: the answer to a request for what another account has.
    """

    token: Token = _switch(Token)
    bad_token: BadToken = _switch(BadToken)
    limit: Limit = _switch(Limit)
    over_limit: OverLimit = _switch(OverLimit)
    order: Order = _switch(Order)
    marker: Marker = _switch(Marker)
    dead_marker: DeadMarker = _switch(DeadMarker)
    list_lag: ListLag = _switch(ListLag)
    stamps: Stamps = _switch(Stamps)
    delete_answer: DeleteAnswer = _switch(DeleteAnswer)
    second_delete: SecondDelete = _switch(SecondDelete)
    ssh: SSHForm = _switch(SSHForm)
    ssh_not_yet: NotYet = _switch(NotYet)
    services: Services = _switch(Services)
    gpu_name: GPUName = _switch(GPUName)
    optional_fields: OptionalFields = _switch(OptionalFields)
    numbers: Numbers = _switch(Numbers)
    prices: Prices = _switch(Prices)
    new_fields: NewFields = _switch(NewFields)
    members: Members = _switch(Members)
    validation_errors: ValidationErrors = _switch(ValidationErrors)
    names: Names = _switch(Names)
    long_names: LongNames = _switch(LongNames)
    balance_refusal: BalanceRefusal = _switch(BalanceRefusal)
    stop_billing: StopBilling = _switch(StopBilling)
    restart_port: RestartPort = _switch(RestartPort)
    restart_host_key: RestartHostKey = _switch(RestartHostKey)
    errors: Errors = _switch(Errors)
    altered_names: AlteredNames = _switch(AlteredNames, in_presets=False)
    create_answer: CreateAnswer = _switch(CreateAnswer, in_presets=False)
    ids: Ids = _switch(Ids, in_presets=False)
    delete_lag: DeleteLag = _switch(DeleteLag, in_presets=False)
    deleted: Deleted = _switch(Deleted, in_presets=False)
    other_accounts: OtherAccounts = _switch(OtherAccounts, in_presets=False)

    @classmethod
    def switches(cls, *, in_presets: bool = False) -> dict[str, tuple[str, ...]]:
        """Return every switch and its values, the default first.

        Args:
            in_presets: return only the switches that presets vary.
        """
        return {
            field.name: field.metadata["values"]
            for field in attrs.fields(cls)
            if field.metadata["in_presets"] or not in_presets
        }
